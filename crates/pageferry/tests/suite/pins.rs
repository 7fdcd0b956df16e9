//! Pins: what they hold, what they wait for, what their release leaves.

use std::sync::mpsc;
use std::time::Duration;

use crate::common::{FRAME, PAGE, device_reads, device_writes, pattern, rig, same};
use pageferry::{After, Error, PageState, PinMode, Wait};

#[test]
fn the_device_reads_what_the_file_holds_and_moves_it_once() {
    let r = rig(8);
    let f = r.file("a", 3 * FRAME + 1234);
    same(&device_reads(&f, 0..3 * FRAME + 1234), &pattern(3 * FRAME + 1234), "the device");
    let moved = r.stat("fetched_bytes");
    assert_eq!(moved, (3 * FRAME + 1234).next_multiple_of(PAGE));
    assert_eq!(device_reads(&f, 100..FRAME + 5), pattern(3 * FRAME)[100..(FRAME + 5) as usize]);
    assert_eq!(r.stat("fetched_bytes"), moved, "a resident range was copied again");
}

#[test]
fn a_release_writes_exactly_the_pins_bytes() {
    let r = rig(8);
    let f = r.file("a", 5 * PAGE);
    let pin = f.pin(100..PAGE + 50, PinMode::Write).unwrap();
    pin.view().unwrap().write(100, &vec![7; PAGE as usize - 50]).unwrap();
    // Somebody else writes beside the pin, in pages that the device has stored to.
    use std::os::unix::fs::FileExt;
    let other = std::fs::OpenOptions::new().write(true).open(r.path("a")).unwrap();
    other.write_all_at(&[9; 100], 0).unwrap();
    other.write_all_at(&[9; 50], PAGE + 50).unwrap();
    assert_eq!(pin.release().unwrap(), PAGE - 50);
    let mut model = pattern(5 * PAGE);
    model[..100].fill(9);
    model[100..PAGE as usize + 50].fill(7);
    model[PAGE as usize + 50..PAGE as usize + 100].fill(9);
    same(&r.on_disk("a"), &model, "the file");
    same(&device_reads(&f, 0..5 * PAGE), &model, "the device");
}

#[test]
fn byte_disjoint_write_pins_share_a_page() {
    let r = rig(2);
    let f = r.file("a", PAGE);
    let a = f.pin(0..100, PinMode::Write).unwrap();
    let b = f.pin(100..200, PinMode::Write).unwrap();
    a.view().unwrap().write(0, &[1; 100]).unwrap();
    b.view().unwrap().write(100, &[2; 100]).unwrap();
    a.release().unwrap();
    let mut model = pattern(PAGE);
    model[..100].fill(1);
    same(&r.on_disk("a"), &model, "an unreleased pin's bytes were published");
    b.release().unwrap();
    model[100..200].fill(2);
    same(&r.on_disk("a"), &model, "the file");
}

#[test]
fn what_the_device_only_read_is_not_written() {
    let r = rig(4);
    let f = r.file("a", FRAME);
    let before = std::fs::metadata(r.path("a")).unwrap().modified().unwrap();
    let pin = f.pin(0..FRAME, PinMode::Write).unwrap();
    pin.view().unwrap().read(0, &mut [0; 100]).unwrap();
    assert_eq!(pin.release().unwrap(), 0);
    assert_eq!(std::fs::metadata(r.path("a")).unwrap().modified().unwrap(), before);
}

#[test]
fn holes_stay_holes_unless_the_device_writes_them() {
    use std::os::unix::fs::MetadataExt;
    let r = rig(32);
    std::fs::File::create(r.path("s")).unwrap().set_len(1 << 20).unwrap();
    let f = r.cache.open(r.path("s")).unwrap();
    let pin = f.pin(0..1 << 20, PinMode::Write).unwrap();
    pin.view().unwrap().write(512 << 10, b"x").unwrap();
    assert_eq!(pin.release().unwrap(), PAGE);
    f.sync().unwrap();
    assert!(std::fs::metadata(r.path("s")).unwrap().blocks() * 512 <= 64 << 10);
}

#[test]
fn overwriting_reads_nothing_and_keeps_what_was_not_stored_to() {
    let r = rig(4);
    let f = r.file("a", 4 * PAGE + 10);
    let pin = f.pin(10..4 * PAGE + 10, PinMode::Overwrite).unwrap();
    // The first page is only partly covered: it alone is read.
    assert_eq!(r.stat("fetched_bytes"), PAGE);
    assert_eq!(r.stat("zeroed_bytes"), 4 * PAGE);
    pin.view().unwrap().write(PAGE, &[5; 4096]).unwrap();
    assert_eq!(pin.release().unwrap(), PAGE);
    let mut model = pattern(4 * PAGE + 10);
    model[PAGE as usize..2 * PAGE as usize].fill(5);
    same(&r.on_disk("a"), &model, "the file");
    same(&device_reads(&f, 0..4 * PAGE + 10), &model, "zeros were taken for the file");
}

#[test]
fn kept_away_bytes_are_seen_by_every_way_through_the_cache() {
    let r = rig(4);
    let f = r.file("a", 4 * PAGE);
    device_writes(&f, 50, &[3; 5000], After::KeepAway);
    let mut model = pattern(4 * PAGE);
    let states: Vec<_> =
        f.placement(0..4 * PAGE).unwrap().into_iter().map(|p| (p.range, p.state)).collect();
    assert_eq!(states, [(0..2 * PAGE, PageState::Away), (2 * PAGE..4 * PAGE, PageState::Home)]);
    model[50..5050].fill(3);
    same(&device_reads(&f, 0..4 * PAGE), &model, "the device");
    let mut buf = vec![0; 4 * PAGE as usize];
    assert_eq!(f.read_at(&mut buf, 0).unwrap() as u64, 4 * PAGE);
    same(&buf, &model, "read_at");
    same(&r.on_disk("a"), &model, "the file");
}

#[test]
fn write_pins_exclude_and_waiters_get_on() {
    let r = rig(4);
    let f = r.file("a", FRAME);
    let first = f.pin(0..PAGE, PinMode::Write).unwrap();
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let f = &f;
        scope.spawn(move || {
            let range = PAGE - 1..PAGE + 1;
            let tried = f.pin_wait(range.clone(), PinMode::Read, Wait::Try);
            assert!(matches!(tried, Err(Error::WouldBlock { .. })), "{:?}", tried.err());
            let limit = Duration::from_millis(30);
            let timed = f.pin_wait(range.clone(), PinMode::Write, Wait::Timeout(limit));
            assert!(matches!(timed, Err(Error::TimedOut { waited, .. }) if waited == limit));
            tell.send(()).unwrap();
            let pin = f.pin(range, PinMode::Write).unwrap();
            let mut byte = [0];
            pin.view().unwrap().read(PAGE - 1, &mut byte).unwrap();
            assert_eq!(byte, [8], "granted before the first pin's release");
        });
        told.recv().unwrap();
        first.view().unwrap().write(PAGE - 1, &[8]).unwrap();
        first.release().unwrap();
    });
    assert_eq!(r.stat("live_pins"), 0);
}

#[test]
fn a_thread_never_waits_for_itself() {
    let r = rig(4);
    let f = r.file("a", FRAME);
    let read = f.pin(0..100, PinMode::Read).unwrap();
    let again = f.pin(50..60, PinMode::Read).unwrap();
    let upgrade = f.pin(99..200, PinMode::Write);
    assert!(matches!(upgrade, Err(Error::WouldDeadlock { range }) if range == (99..200)));
    drop((read, again));
    let write = f.pin(0..100, PinMode::Write).unwrap();
    assert!(matches!(f.pin(0..1, PinMode::Read), Err(Error::WouldDeadlock { .. })));
    assert!(matches!(f.write_at(b"x", 5), Err(Error::WouldDeadlock { .. })));
    // Reading the old bytes is no deadlock: nothing of them was away.
    f.read_at(&mut [0; 10], 0).unwrap();
    write.release().unwrap();
}

#[test]
fn a_cycle_of_threads_is_broken_by_who_closes_it() {
    let r = rig(4);
    let f = r.file("a", FRAME);
    let (ready_a, is_a) = mpsc::channel();
    let (ready_b, is_b) = mpsc::channel();
    std::thread::scope(|scope| {
        let take = |own: std::ops::Range<u64>,
                    other: std::ops::Range<u64>,
                    tell: mpsc::Sender<()>,
                    told: mpsc::Receiver<()>| {
            let f = &f;
            scope.spawn(move || {
                let mine = f.pin(own, PinMode::Write).unwrap();
                tell.send(()).unwrap();
                told.recv().unwrap();
                let result = f.pin(other, PinMode::Write).map(drop);
                drop(mine);
                result
            })
        };
        let a = take(0..10, 10..20, ready_a, is_b);
        let b = take(10..20, 0..10, ready_b, is_a);
        let results = [a.join().unwrap(), b.join().unwrap()];
        let refused =
            results.iter().filter(|r| matches!(r, Err(Error::WouldDeadlock { .. }))).count();
        assert!(
            refused >= 1 && results.iter().filter(|r| r.is_err()).count() == refused,
            "{results:?}"
        );
    });
}

#[test]
fn a_detached_pin_travels() {
    let r = rig(4);
    let f = r.file("a", FRAME);
    let pin = f.pin(0..10, PinMode::Write).unwrap();
    pin.view().unwrap().write(0, b"0123456789").unwrap();
    let pin = pin.detach();
    std::thread::spawn(move || pin.attach().release().unwrap()).join().unwrap();
    assert_eq!(&r.on_disk("a")[..10], b"0123456789");
}

#[test]
fn views_stay_inside_their_pins() {
    let r = rig(4);
    let f = r.file("a", FRAME);
    let pin = f.pin(100..200, PinMode::Read).unwrap();
    let view = pin.view().unwrap();
    assert!(matches!(view.read(99, &mut [0]), Err(Error::OutsidePin { .. })));
    assert!(matches!(view.read(150, &mut [0; 51]), Err(Error::OutsidePin { .. })));
    let store = view.write(150, b"x").unwrap_err();
    assert_eq!((store.kind(), store.errno()), ("outside-pin", 1));
    assert!(matches!(view.read(u64::MAX, &mut [0]), Err(Error::InvalidArgument(_))));
}

#[test]
fn ranges_are_checked() {
    let r = rig(4);
    let f = r.file("a", PAGE + 10);
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    for range in [5..5, 10..5] {
        assert!(matches!(f.pin(range, PinMode::Read), Err(Error::InvalidArgument(_))));
    }
    let past = f.pin(0..2 * PAGE + 1, PinMode::Read).map(drop);
    assert!(matches!(past, Err(Error::PastEof { file_bytes, .. }) if file_bytes == PAGE + 10));
    let tail = device_reads(&f, PAGE..2 * PAGE);
    assert_eq!(tail[10..], [0; 4086], "past the end of the file there are zeros");
    assert!(matches!(f.pin(u64::MAX - 1..u64::MAX, PinMode::Read), Err(Error::PastEof { .. })));
    let empty = r.file("empty", 0);
    assert!(matches!(empty.pin(0..1, PinMode::Read), Err(Error::PastEof { file_bytes: 0, .. })));
    let read_only = r.cache.open_read_only(r.path("empty")).unwrap();
    assert!(matches!(read_only.write_at(b"x", 0), Err(Error::ReadOnly(_))));
    assert!(matches!(read_only.pin(0..1, PinMode::Write), Err(Error::ReadOnly(_))));
}

#[test]
fn device_full_is_an_error_with_numbers_and_leaves_nothing_behind() {
    let r = rig(2);
    let f = r.file("a", 4 * FRAME);
    let too_much = f.pin(0..3 * FRAME, PinMode::Read).map(drop);
    let Err(Error::DeviceFull { needed_bytes, budget_bytes, .. }) = too_much else {
        panic!("{too_much:?}")
    };
    assert_eq!((needed_bytes, budget_bytes), (3 * FRAME, 2 * FRAME));
    let held = f.pin(0..FRAME + 1, PinMode::Read).unwrap();
    let Err(Error::DeviceFull { pinned_bytes, .. }) =
        f.pin(3 * FRAME..3 * FRAME + 1, PinMode::Read).map(drop)
    else {
        panic!()
    };
    assert_eq!(pinned_bytes, 2 * FRAME);
    held.release().unwrap();
    assert_eq!(
        device_reads(&f, 3 * FRAME..3 * FRAME + 9),
        pattern(4 * FRAME)[3 * FRAME as usize..][..9]
    );
}

#[test]
fn ten_times_the_device_runs_through_it() {
    let r = rig(4);
    let f = r.file("a", 40 * FRAME);
    let mut model = pattern(40 * FRAME);
    for round in 0..3u64 {
        for folio in (0..40).rev() {
            let at = folio * FRAME + round * 100;
            device_writes(&f, at, &[round as u8 + 1; 50], After::KeepAway);
            model[at as usize..at as usize + 50].fill(round as u8 + 1);
        }
    }
    assert!(r.stat("evictions") > 30 && r.stat("used_bytes") <= 4 * FRAME);
    for folio in 0..40 {
        let range = folio * FRAME..(folio + 1) * FRAME;
        assert_eq!(
            device_reads(&f, range.clone()),
            model[range.start as usize..range.end as usize]
        );
    }
    f.sync().unwrap();
    same(&r.on_disk("a"), &model, "the file");
}

#[test]
fn everything_dropped_leaves_the_device_empty() {
    use pageferry::Device;
    let r = rig(8);
    let f = r.file("a", 4 * FRAME);
    let g = r.file("b", FRAME);
    device_writes(&f, 0, &[1; 100], After::KeepAway);
    let pin = g.pin(0..FRAME, PinMode::Read).unwrap();
    drop(f);
    assert_eq!(r.on_disk("a")[..100], [1; 100]);
    // A daemon keeps what it has copies of.
    let kept = u64::from(crate::common::connected());
    assert_eq!(r.device.frames_in_use(), kept + 1);
    drop((g, pin));
    assert_eq!(r.device.frames_in_use(), 2 * kept);
    let crate::common::Rig { cache, device, server, .. } = r;
    drop((cache, server));
    assert_eq!(device.frames_in_use(), 0);
}

#[test]
fn eviction_on_request_spares_pins_and_loses_nothing() {
    let r = rig(8);
    let f = r.file("a", 2 * FRAME);
    device_reads(&f, 0..2 * FRAME);
    device_writes(&f, FRAME, &[4; 10], After::KeepAway);
    let held = f.pin(PAGE..2 * PAGE, PinMode::Read).unwrap();
    assert_eq!(f.evict(0..2 * FRAME).unwrap(), 2 * FRAME - PAGE);
    assert_eq!(r.on_disk("a")[FRAME as usize..][..10], [4; 10]);
    let placed = f.placement(0..2 * FRAME).unwrap();
    assert_eq!(placed.len(), 3, "{placed:?}");
    assert!(
        placed[1].pinned
            && placed[1].state == PageState::Copy
            && placed[1].range == (PAGE..2 * PAGE)
    );
    held.release().unwrap();
    f.evict(0..2 * FRAME).unwrap();
    assert_eq!(r.stat("used_bytes"), 0);
}
