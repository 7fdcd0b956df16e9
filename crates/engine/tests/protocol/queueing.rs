//! Who waits for whom, and who goes first.

use pageferry_engine::*;

use crate::bench::*;

/// A write that extends the file reads its bytes from a mapping, of a page under a write pin whose
/// thread sets the file's size.
#[test]
fn a_truncation_beside_a_write_that_waits_for_its_own_pin_is_refused() {
    let (mut b, file) = Bench::new(8, 8);
    b.map(file, 0..8);
    let held = b.granted(1, pin(file, 0..P, Mode::Write));
    let write = Request::Change { file, range: 100 * P..101 * P, resizes: true };
    let write = b.submit(2, write);
    let writing = b.until(write, |a| matches!(a, Action::Change { .. }));
    let touch = b.submit(2, Request::Touch { file, at: 0 });
    assert_eq!(b.run(touch), None);
    let cut = b.submit(1, Request::Resize { file, bytes: 50 * P });
    assert_eq!(b.run(cut), Some(Err(Refusal::WouldDeadlock)));
    // Anybody else waits for the write, and gets on.
    let cut = b.submit(3, Request::Resize { file, bytes: 50 * P });
    assert_eq!(b.run(cut), None);
    b.done(1, Request::Release { pin: held, keep: false });
    assert!(b.run(touch).unwrap().is_ok());
    b.now = at(101 * P, 1);
    b.engine.complete(writing, Reply::Changed { after: b.now.bytes, error: None });
    assert!(b.run(write).unwrap().is_ok());
    b.now = at(50 * P, 1);
    assert!(b.run(cut).unwrap().is_ok());
}

/// SEMANTICS: a later request does not overtake an earlier one that it conflicts with.
#[test]
fn impatient_readers_do_not_starve_a_waiting_writer() {
    let (mut b, file) = Bench::new(8, 16);
    let held = b.granted(1, pin(file, 0..P, Mode::Read));
    let writer = b.submit(2, pin(file, 0..P, Mode::Write));
    assert_eq!(b.run(writer), None);
    let next = b.engine.submit(pin(file, 0..P, Mode::Read), Some(3), false);
    assert_eq!(b.run(next), Some(Err(Refusal::WouldBlock)));
    // Whom the writer waits for may have more of what it has: else it would wait for itself.
    let more = b.engine.submit(pin(file, 0..P, Mode::Read), Some(1), false);
    let Some(Ok(Outcome::Pinned(more))) = b.run(more) else { panic!() };
    b.done(1, Request::Release { pin: held, keep: false });
    b.done(1, Request::Release { pin: more, keep: false });
    assert!(b.run(writer).unwrap().is_ok());
}

/// A device phase after another: pin, store, keep away, pin again, by two threads in turn.
#[test]
fn a_touch_and_a_flush_are_not_overtaken_by_later_write_pins() {
    let (mut b, file) = Bench::new(8, 64);
    b.map(file, 0..64);
    b.away(1, file, 0..P);
    let held = b.granted(1, pin(file, 0..P, Mode::Write));
    let touch = b.submit(7, Request::Touch { file, at: 0 });
    let flush = b.submit(8, Request::Flush { file, range: 0..u64::MAX, skip_pinned: false });
    assert_eq!(b.run(touch), None);
    assert_eq!(b.run(flush), None);
    let next = b.submit(2, pin(file, 0..P, Mode::Write));
    assert_eq!(b.run(next), None);
    b.granted(3, pin(file, 20 * P..21 * P, Mode::Write));
    b.dirty = one(0..P);
    b.done(1, Request::Release { pin: held, keep: true });
    assert_eq!(b.run(next), None, "the touch is first");
    assert!(b.run(touch).unwrap().is_ok());
    assert!(b.run(flush).unwrap().is_ok());
    assert!(b.run(next).unwrap().is_ok());
}

/// The flusher leaves out what is under a write pin, and there nearly always is one.
#[test]
fn aged_bytes_go_home_beside_device_phases() {
    let (mut b, file) = Bench::new(8, 64);
    b.away(1, file, 0..2 * P);
    let held = b.granted(1, pin(file, 0..P, Mode::Write));
    b.done(9, Request::Flush { file, range: 0..16 * P, skip_pinned: true });
    assert!(b.engine.is_away(file, &(0..P)) && !b.engine.is_away(file, &(P..2 * P)));
    b.dirty = one(0..P);
    b.done(1, Request::Release { pin: held, keep: true });
    b.dirty.clear();
    b.done.clear();
    // One that cannot be written then is no reason not to grant the pin.
    b.broken = Box::new(|a| matches!(a, Action::WriteBack { .. }).then_some(EIO));
    let held = b.granted(2, pin(file, 0..8 * P, Mode::Write));
    assert!(b.engine.is_away(file, &(0..P)));
    b.broken = Box::new(|_| None);
    b.done(9, Request::Flush { file, range: 0..16 * P, skip_pinned: true });
    b.done(2, Request::Release { pin: held, keep: true });
    let held = b.granted(2, pin(file, 0..8 * P, Mode::Write));
    assert!(!b.engine.is_away(file, &(0..P)));
    // Nothing is due any more: the next phases keep theirs away.
    b.dirty = one(0..P);
    b.done(2, Request::Release { pin: held, keep: true });
    b.granted(2, pin(file, 0..8 * P, Mode::Write));
    assert!(b.engine.is_away(file, &(0..P)));
}

/// A chain of narrow pins: at any moment one of them is being filled.
struct Chain {
    flying: (OpKey, ActionKey),
    next: u64,
}

impl Chain {
    fn begin(b: &mut Bench, file: FileKey) -> Chain {
        let op = b.submit(1, pin(file, 0..P, Mode::Read));
        Chain { flying: (op, b.until_fetch(op)), next: 1 }
    }

    /// The next one comes, if it is let, and the one before ends.
    fn turn(&mut self, b: &mut Bench, file: FileKey) {
        let range = self.next * P..(self.next + 1) * P;
        let op = b.submit(2, pin(file, range, Mode::Read));
        let next = b.fetch_begun(op);
        b.engine.complete(self.flying.1, Reply::Fetched { short: false });
        if let Some(Ok(Outcome::Pinned(pin))) = b.run(self.flying.0) {
            b.done(1, Request::Release { pin, keep: false });
        }
        if let Some(key) = next {
            self.flying = (op, key);
        }
        self.next += 1;
    }
}

#[test]
fn what_needs_a_range_to_itself_is_not_starved_by_narrow_pins() {
    let (b, file) = Bench::new(8, 64);
    let range = 0..64 * P;
    let requests = [
        Request::Resize { file, bytes: 0 },
        Request::MapIn { file, map: MapKey(2), range: range.clone(), writable: true },
        Request::MapOut { file, map: MapKey(1) },
        pin(file, range.clone(), Mode::Read),
        pin(file, range, Mode::Write),
    ];
    drop(b);
    for request in requests {
        let (mut b, _) = Bench::new(8, 64);
        b.map(file, 0..64);
        let mut chain = Chain::begin(&mut b, file);
        let op = b.submit(9, request.clone());
        let mut turns = 0;
        while b.run(op).is_none() {
            assert!(turns < 3, "{request:?} waits while narrow pins pass");
            chain.turn(&mut b, file);
            turns += 1;
        }
    }
}
