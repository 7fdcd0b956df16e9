//! Copies that a window keeps for itself.

use std::os::fd::AsFd;

use pageferry_device::PAGE_BYTES;
use pageferry_soft::{Stop, StopReason, Window};

use crate::common::{FRAME, PAGE, PAGES, Served, raw, raw_store, serial, window};

fn pages(range: std::ops::Range<u64>) -> std::ops::Range<u64> {
    range.start * PAGE_BYTES..range.end * PAGE_BYTES
}

#[test]
fn stores_are_seen_by_the_storer_only_who_sees_later_fills_of_other_pages() {
    let served = Served::full(7);
    let memory = served.export().memory;
    let [storer, other] = [true, true].map(|stores| window(&memory, FRAME, stores));
    let reader = window(&memory, FRAME, false);
    storer.store(2 * PAGE_BYTES - 1, &[1, 2]).expect("store");
    let mut buf = vec![0; 4];
    storer.load(2 * PAGE_BYTES - 2, &mut buf).expect("load");
    assert_eq!(buf, [7, 1, 2, 7]);
    for window in [&other, &reader] {
        window.load(2 * PAGE_BYTES - 2, &mut buf).expect("load");
        assert_eq!(buf, [7; 4]);
    }
    assert!(served.content().iter().all(|byte| *byte == 7));
    served.fill(0..PAGES, 8);
    let mut all = vec![0; FRAME as usize];
    storer.load(0, &mut all).expect("load");
    let expected = |n: usize| match n {
        n if n == 2 * PAGE - 1 => 1,
        n if n == 2 * PAGE => 2,
        n if (PAGE..3 * PAGE).contains(&n) => 7,
        _ => 8,
    };
    assert!(all.iter().enumerate().all(|(n, byte)| *byte == expected(n)));
    // Attached anew, everything is the device's again; so is what is stored then.
    storer.attach(0, memory.as_fd(), serial(&memory, FRAME)).expect("attach");
    storer.load(0, &mut all).expect("load");
    assert!(all.iter().all(|byte| *byte == 8));
    storer.store(PAGE_BYTES, &[3]).expect("store");
    storer.load(PAGE_BYTES, &mut buf).expect("load");
    assert_eq!(buf, [3, 8, 8, 8]);
}

#[test]
fn the_pages_stored_to_are_found_and_no_others() {
    let served = Served::full(7);
    let memory = served.export().memory;
    let window = Window::new(4, FRAME, true).expect("window");
    for index in [0, 2, 3] {
        window.attach(index, memory.as_fd(), serial(&memory, FRAME)).expect("attach");
    }
    let whole = 0..4 * FRAME;
    assert_eq!(window.stored(whole.clone()).expect("stored"), []);
    // Read pages and pages that nobody looked at are not stored to.
    let mut buf = vec![0; 5 * PAGE];
    window.load(0, &mut buf).expect("load");
    assert_eq!(window.stored(whole.clone()).expect("stored"), []);
    window.store(3 * PAGE_BYTES, &[1]).expect("store");
    window.store(4 * PAGE_BYTES - 1, &[1, 2]).expect("store");
    raw_store(&window, 6 * PAGE_BYTES + 5, 1);
    // The byte that is there already, or zero, is a store as well.
    raw_store(&window, 3 * FRAME - 1, 7);
    window.store(3 * FRAME, &vec![0; PAGE]).expect("store");
    let last = PAGES * 3;
    let expected = [pages(3..5), pages(6..7), pages(last - 1..last + 1)];
    assert_eq!(window.stored(whole.clone()).expect("stored"), expected);
    // Whatever the kernel has moved elsewhere meanwhile.
    for index in [0, 2, 3] {
        let at = std::ptr::with_exposed_provenance_mut(window.addr() + (index * FRAME) as usize);
        // SAFETY: of the window's own mapping; changes no content.
        unsafe { libc::madvise(at, FRAME as usize, libc::MADV_PAGEOUT) };
    }
    assert_eq!(window.stored(whole.clone()).expect("stored"), expected);
    let inside = window.stored(4 * PAGE_BYTES + 1..6 * PAGE_BYTES + 1).expect("stored");
    assert_eq!(inside, [pages(4..5), pages(6..7)]);
    assert_eq!(window.stored(5 * PAGE_BYTES..6 * PAGE_BYTES).expect("stored"), []);
    assert_eq!(window.stored(4 * FRAME..u64::MAX).expect("stored"), []);
    assert_eq!(window.stored(u64::MAX..u64::MAX).expect("stored"), []);
    window.detach(2);
    let expected = [pages(3..5), pages(6..7), pages(last..last + 1)];
    assert_eq!(window.stored(0..u64::MAX).expect("stored"), expected);
    window.attach(0, memory.as_fd(), serial(&memory, FRAME)).expect("attach");
    assert_eq!(window.stored(0..3 * FRAME).expect("stored"), []);
}

/// A store through the address makes the copy; the window's own accesses go on with it.
#[test]
fn stores_through_the_address_and_by_calls_meet() {
    let served = Served::full(7);
    let window = window(served.export().memory, FRAME, true);
    raw_store(&window, 10, 1);
    window.store(12, &[3]).expect("store");
    raw_store(&window, 11, 2);
    let mut buf = [0; 5];
    window.load(9, &mut buf).expect("load");
    assert_eq!(buf, [7, 1, 2, 3, 7]);
    assert_eq!(raw(&window)[9..14], buf);
}

/// The device may have lost its own copy of the page meanwhile: what was stored is not lost with it.
#[test]
fn what_was_stored_is_read_whether_its_page_is_present_or_not() {
    let served = Served::full(7);
    let window = window(served.export().memory, FRAME, true);
    window.store(PAGE_BYTES, &[1; PAGE]).expect("store");
    raw_store(&window, 2 * PAGE_BYTES, 2);
    served.protect(0..PAGES, false);
    let mut buf = vec![0; 2 * PAGE];
    window.load_stored(PAGE_BYTES, &mut buf).expect("load");
    assert_eq!((&buf[..PAGE], &buf[PAGE..PAGE + 2]), (&[1; PAGE][..], &[2, 7][..]));
    let refused = Err(Stop { done: 0, reason: StopReason::NotPresent });
    assert_eq!(window.load(PAGE_BYTES, &mut buf), refused);
}
