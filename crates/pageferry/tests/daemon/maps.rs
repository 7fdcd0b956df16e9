//! Clients that have mapped files, and do not answer as they should when they are asked about it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::common::*;
use crate::raw::*;
use pageferry_linux::{Received, Socket};
use pageferry_wire::*;

/// A client with mappings of all of a file.
struct Mapper {
    raw: Raw,
    file: FileId,
    /// Where it is asked.
    asked: Socket,
}

impl Mapper {
    fn new(d: &Daemon, path: &Path) -> Mapper {
        let mut raw = d.client();
        let file = raw.open(path, true);
        let (reply, came) = raw.call(Request::Callbacks, &[]).unwrap();
        assert!(matches!(reply, Reply::Done));
        let asked = Socket::received(came.into_iter().next().unwrap()).unwrap();
        Mapper { raw, file, asked }
    }

    /// Nothing of the file is on the device: nothing is asked.
    fn map(&mut self, map: u64) {
        let (map, span) = (MapId(map), span(0..FILE));
        let mapped = self.raw.ask(Request::MapIn { map, file: self.file, span, writable: true });
        assert!(matches!(mapped, Ok(Reply::Done)), "{mapped:?}");
    }
}

/// Answers what is asked, each after a time, until the daemon hangs up or that is no more to be.
fn answers(asked: Socket, after: Duration, told: Told, until: &Arc<AtomicBool>) -> JoinHandle<u32> {
    let until = Arc::clone(until);
    asked.set_receive_timeout(Some(Duration::from_millis(20))).unwrap();
    std::thread::spawn(move || {
        let mut times = 0;
        while !until.load(Ordering::SeqCst) {
            let mut packet = vec![0; MESSAGE_BYTES_MAX];
            match asked.recv(&mut packet, &mut Vec::new(), 0) {
                Ok(Received::Packet(_)) => times += 1,
                Ok(_) => break,
                Err(_) => continue,
            }
            std::thread::sleep(after);
            let _ = asked.send(&encode_told(&told).unwrap(), &[]);
        }
        times
    })
}

/// Another client pins what is mapped, for writing and for reading.
fn pins(d: &Daemon, path: &Path) {
    let mut other = d.client();
    let file = other.open(path, true);
    for mode in [Mode::Write, Mode::Read] {
        let pin = other.pin(file, 0..FRAME, mode).unwrap();
        other.release(pin).unwrap();
    }
}

/// Each answer comes in time, but all together they are too many for the pin that waits for them.
#[test]
fn a_client_slow_to_answer_for_many_mappings_is_hung_up_on() {
    alone(120, || {
        let d = daemon(16);
        let path = d.file("a");
        let mut slow = Mapper::new(&d, &path);
        (0..6).for_each(|map| slow.map(map));
        let over = Arc::new(AtomicBool::new(false));
        let answered = answers(slow.asked, Duration::from_secs(2), Told::Done(None), &over);
        pins(&d, &path);
        until("its end", || d.server().sessions() == 0);
        over.store(true, Ordering::SeqCst);
        assert!(answered.join().unwrap() > 0, "it was asked nothing");
        drop(slow.raw);
        d.ends_clean();
    });
}

/// So slow, and slower, is nobody hung up on who answers each in time and is not asked so much at once.
#[test]
fn a_client_slow_to_answer_for_one_mapping_stays() {
    alone(120, || {
        let d = daemon(16);
        let path = d.file("a");
        let mut slow = Mapper::new(&d, &path);
        slow.map(0);
        let over = Arc::new(AtomicBool::new(false));
        let answered = answers(slow.asked, Duration::from_secs(1), Told::Done(None), &over);
        for _ in 0..3 {
            pins(&d, &path);
        }
        over.store(true, Ordering::SeqCst);
        assert!(answered.join().unwrap() > 5, "it was asked too little to tell");
        slow.raw.ask(Request::Stats).unwrap();
        drop(slow.raw);
        d.ends_clean();
    });
}
