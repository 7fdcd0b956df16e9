//! Clients that stop, and clients that are killed, while they hold what others want.

use std::time::Duration;

use crate::children::{Player, play};
use crate::common::*;
use crate::raw::*;
use pageferry_wire::*;

fn start(d: &Daemon, part: &str, name: &str, says: &str) -> Player {
    let path = d.path(name);
    let mut player = play(part, &[d.socket.to_str().unwrap(), path.to_str().unwrap()], |_| {});
    player.must_say(says);
    player
}

/// What others want of it ends by their own time limits; all else goes on.
#[test]
fn a_stopped_client_holds_up_what_it_has_pinned_and_no_more() {
    alone(120, || {
        let d = daemon(16);
        for (part, name) in [("read", "a"), ("write", "b")] {
            let path = d.file(name);
            let mut player = start(&d, part, name, "holds");
            player.signal(libc::SIGSTOP);
            let mut other = d.client();
            let file = other.open(&path, true);
            let wait = Wait::Timeout(Duration::from_millis(100));
            let late = other.pin_for(file, 0..4096, Mode::Write, wait);
            assert!(matches!(late, Err(Failure::TimedOut { .. })), "{part}: {late:?}");
            let busy = other.pin_for(file, 0..4096, Mode::Overwrite, Wait::Try);
            assert!(matches!(busy, Err(Failure::WouldBlock { .. })), "{part}: {busy:?}");
            let read = other.pin_for(file, 0..4096, Mode::Read, wait);
            assert_eq!(read.is_ok(), part == "read", "{read:?}");
            if let Ok(pin) = read {
                other.release(pin).unwrap();
            }
            // The rest of the file, and other files.
            let pin = other.pin(file, FRAME..FILE, Mode::Write).unwrap();
            other.release(pin).unwrap();
            d.serves();
            player.kill();
            let pin = other.pin(file, 0..4096, Mode::Write).unwrap();
            other.release(pin).unwrap();
            same(&std::fs::read(&path).unwrap(), &pattern(FILE), "the file");
        }
        d.ends_clean();
    });
}

/// Those that wait go on as soon as the one that is waited for is dead.
#[test]
fn what_a_killed_client_held_is_released() {
    alone(120, || {
        let d = daemon(16);
        for part in ["read", "write"] {
            let path = d.file("a");
            let mut player = start(&d, part, "a", "holds");
            let mut other = d.client();
            let file = other.open(&path, true);
            let ranges = vec![span(0..4096)];
            let (mode, wait) = (Mode::Write, Wait::Block);
            other.send(Request::Pin { file, ranges, mode, wait, owner: None }, &[]);
            player.kill();
            let (answer, _) = other.next().unwrap();
            assert!(matches!(answer.result, Ok(Reply::Pinned { .. })), "{answer:?}");
            same(&std::fs::read(&path).unwrap(), &pattern(FILE), "the file");
            drop(other);
            d.deserted();
        }
        d.ends_clean();
    });
}

#[test]
fn a_client_killed_while_it_waits_leaves_nothing() {
    alone(120, || {
        let d = daemon(16);
        let path = d.file("a");
        let mut holder = d.client();
        let file = holder.open(&path, true);
        let pin = holder.pin(file, 0..4096, Mode::Write).unwrap();
        let mut player = start(&d, "wait", "a", "waits");
        until("two sessions", || d.server().sessions() == 2);
        player.kill();
        until("its end", || d.server().sessions() == 1);
        assert_eq!(d.stat("live_pins"), 1, "the holder's");
        holder.release(pin).unwrap();
        drop((holder, player));
        d.ends_clean();
    });
}

#[test]
fn a_client_killed_while_it_loads_leaves_nothing() {
    alone(120, || {
        let d = daemon(1024);
        std::fs::write(d.path("large"), pattern(1000 * FRAME)).unwrap();
        for _ in 0..5 {
            let mut player = start(&d, "load", "large", "loads");
            player.kill();
            d.serves();
            d.deserted();
            let mut raw = d.client();
            let file = raw.open(&d.path("large"), true);
            let ask = Request::Evict { file, span: span(0..u64::MAX) };
            raw.ask(ask).unwrap();
        }
        same(&std::fs::read(d.path("large")).unwrap(), &pattern(1000 * FRAME), "the file");
        d.ends_clean();
    });
}
