//! What a truncation leaves of a pin, and what of it others wait for.

use pageferry_engine::*;

use crate::bench::*;

/// A write pin of `1`, cut at `bytes` by thread `9`; then the file grows back.
fn cut_and_grown(b: &mut Bench, file: FileKey, held: std::ops::Range<u64>, bytes: u64) -> PinKey {
    let old = b.now.bytes;
    let pin = b.granted(1, pin(file, held, Mode::Write));
    for bytes in [bytes, old] {
        b.now = at(bytes, 1);
        b.done(9, Request::Resize { file, bytes });
    }
    pin
}

#[test]
fn neighbours_on_pages_behind_a_cut_do_not_wait_for_the_pin() {
    let (mut b, file) = Bench::new(8, 32);
    // Its first page, of which it has lost all, and its last.
    let cut = cut_and_grown(&mut b, file, 4 * P + 1000..9 * P + 100, 4 * P + 500);
    for (range, mode) in [
        (4 * P..4 * P + 1000, Mode::Write),
        (9 * P + 100..9 * P + 200, Mode::Write),
        (9 * P + 200..10 * P, Mode::Overwrite),
    ] {
        let held = b.granted(2, pin(file, range, mode));
        b.done(2, Request::Release { pin: held, keep: false });
    }
    b.done(1, Request::Release { pin: cut, keep: false });
}

#[test]
fn who_needs_the_page_that_a_cut_runs_through_waits() {
    let (mut b, file) = Bench::new(8, 32);
    let cut = cut_and_grown(&mut b, file, 4 * P + 1000..9 * P, 4 * P + 2000);
    let beside = b.submit(2, pin(file, 4 * P..4 * P + 1000, Mode::Read));
    assert_eq!(b.run(beside), None, "what the device stored before the cut would be overwritten");
    b.done(1, Request::Release { pin: cut, keep: false });
    assert!(b.run(beside).unwrap().is_ok());
}

/// The kernels of the cut pin may still be storing, and other pins have the same addresses.
#[test]
fn a_cut_write_pin_keeps_its_bytes_from_other_pins() {
    let (mut b, file) = Bench::new(8, 32);
    let cut = cut_and_grown(&mut b, file, 4 * P..9 * P, 5 * P);
    for mode in [Mode::Read, Mode::Write, Mode::Overwrite] {
        let over = b.engine.submit(pin(file, 8 * P..8 * P + 1, mode), Some(2), false);
        assert_eq!(b.run(over), Some(Err(Refusal::WouldBlock)));
    }
    b.done(1, Request::Release { pin: cut, keep: false });
    b.granted(2, pin(file, 8 * P..8 * P + 1, Mode::Write));
}

#[test]
fn a_cut_read_pin_keeps_writers_from_what_is_left_of_it() {
    let (mut b, file) = Bench::new(8, 32);
    b.granted(1, pin(file, 4 * P..9 * P, Mode::Read));
    for bytes in [5 * P + 100, 32 * P] {
        b.now = at(bytes, 1);
        b.done(9, Request::Resize { file, bytes });
    }
    let left = b.engine.submit(pin(file, 5 * P..5 * P + 100, Mode::Write), Some(2), false);
    assert_eq!(b.run(left), Some(Err(Refusal::WouldBlock)));
    b.granted(2, pin(file, 5 * P + 100..9 * P, Mode::Write));
}

/// It was shown to nobody: whoever pins the bytes next gets those of the file.
#[test]
fn a_stray_store_behind_a_cut_is_gone_with_its_pin_and_told() {
    let (mut b, file) = Bench::new(8, 32);
    let cut = cut_and_grown(&mut b, file, 4 * P..9 * P + 100, 5 * P);
    let beside = b.granted(2, pin(file, 9 * P + 100..10 * P, Mode::Write));
    // The page is there again, and is stored to: the device tells of pages, not of whose stores.
    b.dirty = one(9 * P..10 * P);
    b.done(2, Request::Release { pin: beside, keep: false });
    b.dirty.clear();
    assert!(!b.fetches(3, file, 9 * P + 100..10 * P), "a copy, but for the bytes of the pin");
    let release = b.submit(1, Request::Release { pin: cut, keep: false });
    let released = b.run(release);
    let Some(Ok(Outcome::Released { lost_bytes, cut, .. })) = released else {
        panic!("{released:?}")
    };
    assert_eq!((lost_bytes, cut), (100, Some(5 * P)));
    assert!(b.fetches(3, file, 9 * P..9 * P + 100));
}

#[test]
fn changes_and_touches_behind_a_cut_wait_for_nobody() {
    let (mut b, file) = Bench::new(8, 32);
    b.map(file, 0..32);
    cut_and_grown(&mut b, file, 4 * P + 1000..9 * P, 4 * P + 500);
    let range = 4 * P + 1000..6 * P;
    b.done(1, Request::Change { file, range, resizes: false });
    for page in [4, 8] {
        let trapped = b.engine.first_trapped(file, MapKey(1), &(page * P..(page + 1) * P));
        assert_eq!(trapped, None, "page {page}");
        b.done(1, Request::Touch { file, at: page * P });
    }
}

/// A pin that is not granted yet gets back what has grown back.
#[test]
fn a_pin_being_filled_lets_nobody_in_behind_a_cut() {
    let (mut b, file) = Bench::new(8, 32);
    let slow = b.submit(1, pin(file, 0..32 * P, Mode::Read));
    let fetching = b.until_fetch(slow);
    for pages in [16, 32] {
        b.now = at(pages * P, pages);
        let who = b.engine.submit(pin(file, 20 * P..21 * P, Mode::Write), Some(2), false);
        assert!(b.run(who).unwrap().is_err());
    }
    b.engine.complete(fetching, Reply::Fetched { short: false });
    assert!(b.run(slow).unwrap().is_ok());
}

#[test]
fn a_query_learns_the_size_and_nothing_else() {
    let (mut b, file) = Bench::new(8, 32);
    assert!(b.fetches(1, file, 0..8 * P));
    let held = b.granted(1, pin(file, 16 * P..32 * P, Mode::Write));
    // Somebody writes, and cuts the file, and it grows; nobody has looked since.
    for (pages, end) in [(20, 20), (40, 40)] {
        b.now = at(pages * P, pages);
        b.done.clear();
        let query = b.submit(2, Request::Query { file, range: 0..u64::MAX });
        let Some(Ok(Outcome::Placed(placed))) = b.run(query) else { panic!("it waits") };
        assert_eq!(placed[0].state, PageState::Copy, "a copy is dropped by a pin, if at all");
        assert_eq!(placed.last().unwrap().range.end, end * P);
        let asks = |a: &Action| matches!(a, Action::Measure { .. } | Action::TakeDirty { .. });
        assert!(b.done.iter().all(asks), "{:?}", b.done);
    }
    assert_eq!(b.engine.pin_end(held), 20 * P);
    assert!(b.fetches(2, file, 0..P), "now somebody looks");
}

/// The copy was begun before the file was cut: it has grown back as zeros since.
#[test]
fn a_fetch_under_way_when_a_query_sees_a_cut_is_not_believed() {
    let (mut b, file) = Bench::new(8, 32);
    let slow = b.submit(1, pin(file, 0..16 * P, Mode::Read));
    let fetching = b.until_fetch(slow);
    for bytes in [8 * P, 32 * P] {
        b.now = at(bytes, 1);
        b.done(2, Request::Query { file, range: 0..P });
    }
    b.engine.complete(fetching, Reply::Fetched { short: false });
    b.done.clear();
    assert!(b.run(slow).unwrap().is_ok());
    let again = |a: &Action| matches!(a, Action::Fetch { range, .. } if *range == (8 * P..16 * P));
    assert!(b.done.iter().any(again));
    assert!(b.fetches(3, file, 0..8 * P), "it serves the pin that fetched it, and no later one");
}

/// Of the page of the cut nothing is left to the pin: its frame goes, and with it the device's marks.
#[test]
fn a_release_tells_of_stores_behind_a_cut_in_the_page_of_the_cut() {
    let (mut b, file) = Bench::new(8, 16);
    let held = b.granted(1, pin(file, 4 * P + 1000..5 * P, Mode::Write));
    b.dirty = one(4 * P..5 * P);
    b.now = at(4 * P + 500, 1);
    b.done(9, Request::Resize { file, bytes: 4 * P + 500 });
    b.dirty.clear();
    assert_eq!(b.engine.frames_used(), 0);
    let release = b.submit(1, Request::Release { pin: held, keep: true });
    let released = b.run(release);
    assert!(
        matches!(released, Some(Ok(Outcome::Released { lost_bytes, .. })) if lost_bytes == P - 1000),
        "{released:?}"
    );
}
