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
    b.engine.complete(writing, Reply::Changed { after: b.now, error: None });
    assert!(b.run(write).unwrap().is_ok());
    b.now = at(50 * P, 1);
    assert!(b.run(cut).unwrap().is_ok());
}
