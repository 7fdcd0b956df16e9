//! Clients that ask and do not listen.

use std::time::Duration;

use crate::common::*;
use crate::raw::*;
use pageferry_wire::*;

/// Its session is ended when it has not taken an answer for as long as it may; others do not notice.
#[test]
fn a_client_that_reads_no_answer_is_hung_up_on() {
    alone(120, || {
        let d = daemon_with(16, 0o600, |limits| limits.reply_time = Duration::from_millis(200));
        let path = d.file("a");
        let mut raw = d.client();
        let file = raw.open(&path, true);
        raw.pin(file, 0..FRAME, Mode::Write).unwrap();
        let mut other = d.client();
        let theirs = other.open(&path, false);
        // Its own buffer fills as well: it must not be this thread that waits.
        raw.socket.set_send_timeout(Some(Duration::from_secs(30))).unwrap();
        let read = Request::Read { file, offset: FRAME, bytes: 60 << 10, owner: None };
        let packet = encode_call(&Call { id: 7, request: read }).unwrap();
        let asked = (0..100_000).take_while(|_| raw.socket.send(&packet, &[]).is_ok()).count();
        println!("asked {asked} times");
        assert!(asked < 100_000, "it is never hung up on");
        // Its pin is released, though it is still there and its socket full.
        let pin = other.pin(theirs, 0..FRAME, Mode::Read).unwrap();
        other.release(pin).unwrap();
        until("its end", || d.server().sessions() == 1);
        drop((raw, other));
        d.ends_clean();
    });
}

/// The daemon stops while clients hold pins, wait, and do not listen.
#[test]
fn the_daemon_stops_whatever_its_clients_do() {
    alone(120, || {
        let mut d = daemon(16);
        let path = d.file("a");
        let mut holder = d.client();
        let file = holder.open(&path, true);
        holder.pin(file, 0..4096, Mode::Write).unwrap();
        let mut waiter = d.client();
        let file = waiter.open(&path, true);
        let ranges = vec![span(0..4096)];
        let (mode, wait) = (Mode::Write, Wait::Block);
        waiter.send(Request::Pin { file, ranges, mode, wait, owner: None }, &[]);
        let mut deaf = d.client();
        let file = deaf.open(&path, false);
        for _ in 0..20 {
            deaf.send(Request::Read { file, offset: 0, bytes: 60 << 10, owner: None }, &[]);
        }
        d.server.take().unwrap().stop().unwrap();
        assert!(holder.next().is_none(), "it is hung up on");
        same(&std::fs::read(&path).unwrap(), &pattern(FILE), "the file");
    });
}
