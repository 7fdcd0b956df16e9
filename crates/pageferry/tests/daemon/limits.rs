//! More of everything than there may be.

use std::os::fd::AsFd;

use crate::common::*;
use crate::raw::*;
use pageferry_wire::*;

#[test]
fn more_sessions_than_there_may_be() {
    alone(60, || {
        let d = daemon_with(4, 0o600, |limits| limits.sessions = 4);
        let mut raws: Vec<Raw> = (0..4).map(|_| d.client()).collect();
        // Told to the first message, or before it.
        let mut fifth = Raw::connect(&d.socket);
        fifth.send(Request::Hello { version: VERSION }, &[]);
        let (answer, _) = fifth.next().unwrap();
        assert!(matches!(answer.result, Err(Failure::Limit { limit: 4, .. })), "{answer:?}");
        assert!(fifth.next().is_none());
        raws.iter_mut().for_each(|raw| drop(raw.ask(Request::Stats).unwrap()));
        drop(raws.pop());
        until("room", || d.server().sessions() == 3);
        d.serves();
        drop((raws, fifth));
        d.ends_clean();
    });
}

/// Sessions that say nothing count too: their room is that of their user.
#[test]
fn more_sessions_of_a_user_than_there_may_be() {
    alone(60, || {
        let d = daemon_with(4, 0o600, |limits| limits.sessions_per_user = 3);
        let silent: Vec<Raw> = (0..3).map(|_| Raw::connect(&d.socket)).collect();
        let fourth = Raw::connect(&d.socket);
        let (answer, _) = fourth.next().unwrap();
        assert!(matches!(answer.result, Err(Failure::Limit { limit: 3, .. })), "{answer:?}");
        drop((silent, fourth));
        until("room", || d.server().sessions() == 0);
        d.ends_clean();
    });
}

/// Connects and disconnects without a word, many times: nothing is left.
#[test]
fn connections_that_come_and_go() {
    alone(120, || {
        let d = daemon(4);
        for _ in 0..500 {
            drop(Raw::connect(&d.socket));
        }
        d.deserted();
        d.ends_clean();
    });
}

#[test]
fn more_files_pins_and_bytes_than_a_session_may_hold() {
    alone(60, || {
        let d = daemon_with(16, 0o600, |limits| {
            limits.files = 3;
            limits.pins = 5;
            limits.pinned_bytes = 2 * FRAME;
        });
        let path = d.file("a");
        let mut raw = d.client();
        let files: Vec<FileId> = (0..3).map(|_| raw.open(&path, false)).collect();
        let fd = std::fs::File::open(&path).unwrap();
        for _ in 0..20 {
            is_limit(raw.show(fd.as_fd(), false));
        }
        raw.ask(Request::Close { file: files[2] }).unwrap();
        let again = raw.open(&path, false);
        let pins: Vec<PinId> =
            (0..5).map(|_| raw.pin(again, 0..4096, Mode::Read).unwrap()).collect();
        is_limit(raw.pin(again, 0..1, Mode::Read));
        pins.into_iter().for_each(|pin| raw.release(pin).unwrap());
        // Many at once, of which the last are too many: none is held.
        let many = vec![span(0..4096); 6];
        let (mode, wait) = (Mode::Read, Wait::Try);
        is_limit(raw.ask(Request::Pin { file: again, ranges: many, mode, wait, owner: None }));
        for beyond in [0..2 * FRAME + 1, 0..u64::MAX, 0..1 << 63] {
            is_limit(raw.pin(again, beyond, Mode::Read));
        }
        let sums = vec![span(0..u64::MAX), span(0..u64::MAX)];
        is_limit(raw.ask(Request::Pin { file: again, ranges: sums, mode, wait, owner: None }));
        assert_eq!(d.stat("live_pins"), 0);
        // A pin that is refused for another reason does not count.
        for _ in 0..20 {
            let refused = raw.pin(again, FILE + FRAME..FILE + FRAME + 1, Mode::Read);
            assert!(matches!(refused, Err(Failure::PastEof { .. })), "{refused:?}");
        }
        let pin = raw.pin(again, 0..2 * FRAME, Mode::Read).unwrap();
        let mut other = d.client();
        let theirs = other.open(&path, false);
        other.pin(theirs, 0..2 * FRAME, Mode::Read).unwrap();
        raw.release(pin).unwrap();
        drop((raw, other, fd));
        d.ends_clean();
    });
}

/// Sessions and pinned bytes of one user are counted together.
#[test]
fn more_bytes_than_a_user_may_pin() {
    alone(60, || {
        let d = daemon_with(16, 0o600, |limits| limits.pinned_bytes_per_user = 3 * FRAME);
        let path = d.file("a");
        let (mut one, mut two) = (d.client(), d.client());
        let (a, b) = (one.open(&path, false), two.open(&path, false));
        one.pin(a, 0..2 * FRAME, Mode::Read).unwrap();
        let refused = two.pin(b, 0..2 * FRAME, Mode::Read);
        assert!(matches!(refused, Err(Failure::Limit { limit, .. }) if limit == 3 * FRAME));
        two.pin(b, 0..FRAME, Mode::Read).unwrap();
        drop(one);
        until("the first one's end", || d.server().sessions() == 1);
        let pin = two.pin(b, 0..2 * FRAME, Mode::Read).unwrap();
        two.release(pin).unwrap();
        drop(two);
        d.ends_clean();
    });
}

/// All of the device under pins: others hear so, and go on when it is released.
#[test]
fn more_bytes_than_the_device_has() {
    alone(60, || {
        let d = daemon(4);
        let path = d.file("a");
        let (mut hog, mut other) = (d.client(), d.client());
        let file = hog.open(&path, false);
        let all = hog.pin(file, 0..FILE, Mode::Read).unwrap();
        let another = d.file("b");
        let theirs = other.open(&another, false);
        let wait = Wait::Timeout(std::time::Duration::from_millis(50));
        let full = other.pin_for(theirs, 0..4096, Mode::Read, wait);
        assert!(matches!(full, Err(Failure::TimedOut { .. })), "{full:?}");
        let full = other.pin_for(theirs, 0..4096, Mode::Read, Wait::Try);
        assert!(
            matches!(full, Err(Failure::WouldBlock { .. } | Failure::DeviceFull { .. })),
            "{full:?}"
        );
        same(&other.read(theirs, 0, 4096).unwrap(), &pattern(FILE)[..4096], "without the device");
        hog.release(all).unwrap();
        let pin = other.pin(theirs, 0..4096, Mode::Read).unwrap();
        other.release(pin).unwrap();
        drop((hog, other));
        d.ends_clean();
    });
}

/// However long the threads that the daemon starts take to get a processor.
#[test]
fn one_request_at_a_time_is_never_too_many() {
    alone(120, || {
        let d = daemon_with(16, 0o600, |limits| limits.requests = 2);
        let path = d.file("a");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let mut raw = d.client();
                        let file = raw.open(&path, true);
                        for _ in 0..10 {
                            let pin = raw.pin(file, 0..4096, Mode::Read).unwrap();
                            raw.release(pin).unwrap();
                        }
                    }
                });
            }
        });
        d.ends_clean();
    });
}

/// More pins that wait than a session may have requests under way: the last thread refuses, and hears releases.
#[test]
fn more_requests_under_way_than_there_may_be() {
    alone(60, || {
        let d = daemon_with(16, 0o600, |limits| limits.requests = 4);
        let path = d.file("a");
        let mut holder = d.client();
        let file = holder.open(&path, true);
        let held = holder.pin(file, 0..4096, Mode::Write).unwrap();
        let mut raw = d.client();
        let file = raw.open(&path, true);
        let ranges = vec![span(0..4096)];
        for _ in 0..20 {
            let (mode, wait) = (Mode::Write, Wait::Block);
            raw.send(Request::Pin { file, ranges: ranges.clone(), mode, wait, owner: None }, &[]);
        }
        // At most three wait; the others are refused at once, and this is heard all the same.
        let usage = raw.send(Request::Usage, &[]);
        let (mut refused, mut granted, mut heard) = (0, 0, false);
        while refused < 17 || !heard {
            let (answer, _) = raw.next().unwrap();
            heard |= answer.id == usage;
            if answer.id != usage {
                is_limit(answer.result);
                refused += 1;
            }
        }
        d.serves();
        holder.release(held).unwrap();
        // Each of those that wait is granted when the one before it is released.
        while refused + granted < 20 {
            match raw.next().unwrap().0.result {
                Ok(Reply::Pinned { pins, .. }) => {
                    granted += 1;
                    let pins = vec![Release { pin: pins[0], after: After::WriteBack }];
                    raw.send(Request::Release { pins, stores: None }, &[]);
                }
                Err(failure) => {
                    is_limit(Err::<(), _>(failure));
                    refused += 1;
                }
                Ok(_) => {}
            }
        }
        assert!(granted > 0);
        drop((raw, holder));
        d.ends_clean();
    });
}

/// A range beyond all limits is refused for what it is; meanwhile other sessions of the user pin as they like.
#[test]
fn a_huge_range_that_waits_leaves_the_user_its_room() {
    alone(60, || {
        let d = daemon(16);
        let path = d.file("a");
        let mut holder = d.client();
        let file = holder.open(&path, true);
        let held = holder.pin(file, 0..4096, Mode::Write).unwrap();
        let mut raw = d.client();
        let file = raw.open(&path, false);
        // The second range is huge, and not looked at before the first is granted.
        let ranges = vec![span(0..4096), span(8192..u64::MAX)];
        let (mode, wait) = (Mode::Read, Wait::Block);
        let id = raw.send(Request::Pin { file, ranges, mode, wait, owner: None }, &[]);
        until("the wait", || requests_of_sessions(&d) > 1);
        d.serves();
        holder.release(held).unwrap();
        let (answer, _) = raw.next().unwrap();
        assert_eq!(answer.id, id);
        assert!(matches!(answer.result, Err(Failure::PastEof { .. })), "{answer:?}");
        drop((raw, holder));
        d.ends_clean();
    });
}

/// Requests under way in all sessions: the one that asks, and those that wait.
fn requests_of_sessions(d: &Daemon) -> u64 {
    match d.client().ask(Request::Sessions { after: 0 }) {
        Ok(Reply::Sessions { sessions, .. }) => sessions.iter().map(|s| s.requests).sum(),
        other => panic!("{other:?}"),
    }
}
