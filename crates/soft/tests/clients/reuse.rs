//! Frames that come to hold other bytes.

use std::os::fd::AsFd;

use pageferry_device::{Access, Device, DeviceAddr, FrameSpan, PAGE_BYTES};
use pageferry_soft::{FailPoint, Stop, StopReason};

use crate::common::{FRAME, PAGE, PAGES, Served, raw, window};

const A: u8 = b'a';
const B: u8 = b'b';

#[test]
fn who_holds_a_frames_memory_never_sees_another_files_bytes() {
    let served = Served::full(A);
    let first = served.export();
    let holder = window(&first.memory, FRAME, false);
    served.reassign(false);
    served.fill(0..PAGES, B);
    served.protect(0..PAGES, true);
    let second = served.export();
    assert_ne!(first.serial, second.serial);
    assert_eq!(holder.load(0, &mut [0]).map_err(|stop| stop.reason), Err(StopReason::NotPresent));
    assert!(raw(&holder).iter().all(|byte| [A, 0].contains(byte)));
    // Nor through the handle, mapped once more.
    assert!(raw(&window(&first.memory, FRAME, true)).iter().all(|byte| [A, 0].contains(byte)));
    let mut buf = vec![0; FRAME as usize];
    window(&second.memory, FRAME, false).load(0, &mut buf).expect("load");
    assert!(buf.iter().all(|byte| *byte == B));
}

/// Of one file: the memory stays, and so do the mappings of those who have not heard of it.
#[test]
fn who_knows_of_a_frames_former_folio_is_not_shown_the_next_one() {
    let served = Served::full(A);
    let first = served.export();
    let holders = [false, true].map(|stores| window(&first.memory, FRAME, stores));
    holders[1].store(0, b"own").expect("store");
    let not_present = Err(Stop { done: 0, reason: StopReason::NotPresent });
    served.reassign(true);
    served.fill(0..PAGES, B);
    served.protect(0..PAGES, true);
    for holder in &holders {
        assert!(raw(holder).contains(&B), "the memory is another one");
        for at in [0, PAGE_BYTES] {
            assert_eq!(holder.load(at, &mut [0]), not_present);
        }
    }
    for at in [0, PAGE_BYTES] {
        assert_eq!(holders[1].store(at, b"own"), not_present);
    }
    let second = served.export();
    let mut byte = [0];
    window(&second.memory, FRAME, false).load(0, &mut byte).expect("load");
    assert_eq!(byte, [B]);
    // Whoever has learned of the second use only now finds nothing of the third.
    let late = pageferry_soft::Window::new(1, FRAME, false).expect("window");
    served.reassign(true);
    served.fill(0..PAGES, A);
    served.protect(0..PAGES, true);
    late.attach(0, second.memory.as_fd(), second.serial).expect("attach");
    assert_eq!(late.load(0, &mut byte), not_present);
}

/// Not even where nobody seems to hold it; see `memfd.rs`.
#[test]
fn memory_once_exported_serves_no_other_file() {
    let served = Served::full(A);
    let inode = |memory| rustix::fs::fstat(&memory).expect("stat").st_ino;
    let first = inode(served.export().memory);
    assert_eq!(inode(served.export().memory), first);
    served.reassign(true);
    assert_eq!(inode(served.export().memory), first);
    served.reassign(false);
    let second = inode(served.export().memory);
    assert_ne!(first, second);
    served.device.detach(served.at);
    served.device.free_frame(served.frame);
    assert_eq!(served.device.alloc_frame(), Ok(served.frame));
    served.device.attach(served.at, served.frame).expect("attach");
    assert!(![first, second].contains(&inode(served.export().memory)));
}

/// Goes on with the same memory, of another file than before, in all ways that there are.
fn with_other_file(check: impl Fn(&Served)) {
    let reassigned = Served::full(A);
    reassigned.reassign(false);
    check(&reassigned);
    let freed = Served::full(A);
    freed.device.detach(freed.at);
    freed.device.free_frame(freed.frame);
    assert_eq!(freed.device.alloc_frame(), Ok(freed.frame));
    freed.device.attach(freed.at, freed.frame).expect("attach");
    check(&freed);
    let same = Served::full(A);
    same.reassign(true);
    check(&same);
}

#[test]
fn an_export_shows_nothing_of_what_the_memory_held_before() {
    with_other_file(|served| {
        served.fill(3..4, B);
        served.protect(3..4, true);
        // The device's own bytes go on as they are until then: this is memory used again.
        assert_eq!(served.content()[0], A);
        let window = window(served.export().memory, FRAME, false);
        for (page, n) in raw(&window).chunks(PAGE).zip(0..) {
            assert!(page.iter().all(|byte| *byte == if n == 3 { B } else { 0 }), "page {n}");
        }
        // Nor later.
        served.protect(0..PAGES, true);
        served.protect(0..PAGES, false);
        assert!(raw(&window).iter().all(|byte| *byte != A));
    });
}

/// A page is filled first and becomes present afterwards; an export in between must not erase it.
#[test]
fn an_export_erases_nothing_that_was_filled() {
    with_other_file(|served| {
        served.fill(5..7, B);
        let window = window(served.export().memory, FRAME, false);
        served.fill(7..8, B);
        served.protect(5..8, true);
        let mut buf = vec![0; 3 * PAGE];
        window.load(5 * PAGE_BYTES, &mut buf).expect("load");
        assert!(buf.iter().all(|byte| *byte == B));
    });
}

/// The rest of a page that is filled or stored to in part, or by a copy that fails.
#[test]
fn pages_that_are_filled_in_part_show_nothing_older_either() {
    with_other_file(|served| {
        let Served { device, frame, at, .. } = served;
        let part = FrameSpan { frame: *frame, offset: 2 * PAGE_BYTES + 100, len: 50 };
        let source = &mut |bytes: &mut [u8]| {
            bytes.fill(B);
            Ok(())
        };
        device.fill(part, source).expect("fill");
        let zero = FrameSpan { frame: *frame, offset: 4 * PAGE_BYTES, len: 100 };
        device.zero(zero).expect("zero");
        let page = at.offset(6 * PAGE_BYTES);
        device.protect(page, PAGE_BYTES, Some(Access::Write)).expect("protect");
        let memory = pageferry_device::Processors::memory(device);
        memory.store(DeviceAddr(page.0 + 100), &[B; 50]).expect("store");
        device.arm(FailPoint::CopyIn, 1);
        let failing = FrameSpan { frame: *frame, offset: 8 * PAGE_BYTES, len: 2 * PAGE_BYTES };
        device.fill(failing, source).expect_err("armed");
        let host = FrameSpan { frame: *frame, offset: 12 * PAGE_BYTES, len: PAGE_BYTES };
        device.fill(host, &mut |_| Err(std::io::ErrorKind::Other.into())).expect_err("the host");
        let window = window(served.export().memory, FRAME, false);
        let seen = raw(&window);
        assert!(seen.iter().all(|byte| *byte != A));
        for n in [2, 6] {
            assert_eq!(seen[n * PAGE + 100..][..50], [B; 50], "page {n}");
            assert_eq!(seen[n * PAGE..].iter().take(PAGE).filter(|byte| **byte == B).count(), 50);
        }
    });
}

#[test]
fn every_use_of_a_frame_has_a_serial_of_its_own() {
    let served = Served::full(A);
    let mut serials = vec![served.export().serial];
    assert_eq!(served.export().serial, serials[0]);
    for same_file in [true, false, true] {
        served.reassign(same_file);
        serials.push(served.export().serial);
    }
    served.device.detach(served.at);
    let other = served.device.alloc_frame().expect("frame");
    served.device.attach(served.at, other).expect("attach");
    serials.push(served.device.export_frame(other).expect("export").serial);
    let distinct: std::collections::BTreeSet<_> = serials.iter().collect();
    assert_eq!(distinct.len(), serials.len(), "{serials:?}");
}

/// Whatever threads ask of one frame at a time, what is exported for one file is never another's.
#[test]
fn exports_beside_other_uses_of_the_frame_are_safe() {
    let served = Served::full(A);
    std::thread::scope(|scope| {
        let user = scope.spawn(|| {
            for round in 0..500 {
                served.device.detach(served.at);
                served.device.reassign_frame(served.frame, round % 3 == 0).expect("reassign");
                let attached = served.device.attach(served.at, served.frame);
                attached.expect("attach");
                served.fill(0..PAGES, round as u8);
                served.protect(0..PAGES, true);
            }
        });
        let other = scope.spawn(|| {
            let span = FrameSpan { frame: served.frame, offset: 0, len: FRAME };
            // Against all rules, on a frame that is being reassigned.
            for _ in 0..500 {
                served.device.zero(span).expect("zero");
                served.content();
            }
        });
        while !(user.is_finished() && other.is_finished()) {
            let Ok(exported) = served.device.export_frame(served.frame) else { continue };
            let window = window(exported.memory, FRAME, true);
            let mut buf = vec![0; PAGE];
            if window.load(PAGE_BYTES, &mut buf).is_ok() {
                assert!(buf.iter().all(|byte| *byte == buf[0]), "a torn page");
            }
        }
    });
    // Nothing of it has stuck.
    served.fill(0..PAGES, B);
    served.protect(0..PAGES, true);
    assert!(raw(&window(served.export().memory, FRAME, false)).iter().all(|byte| *byte == B));
}
