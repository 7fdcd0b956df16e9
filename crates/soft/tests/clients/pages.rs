//! What clients see of a frame.

use std::os::fd::AsFd;

use pageferry_device::{Device, FrameSpan, PAGE_BYTES};
use pageferry_soft::{Stop, StopReason, Window};

use crate::child;
use crate::common::{FRAME, PAGE, PAGES, Served, raw, window};

fn stopped(done: usize, reason: StopReason) -> Result<(), Stop> {
    Err(Stop { done, reason })
}

#[test]
fn another_process_reads_what_was_filled() {
    let frame_bytes = 4 << 20;
    if let Some(memory) = child::handed() {
        for stores in [false, true] {
            let window = window(&memory, frame_bytes, stores);
            let mut buf = vec![0; frame_bytes as usize];
            window.load(0, &mut buf).expect("load");
            assert!(buf.chunks(PAGE).zip(0..).all(|(page, n)| page == [n as u8 ^ 85; PAGE]));
            assert!(raw(&window) == buf);
            let mut some = [0; 3];
            window.load(5 * PAGE_BYTES - 1, &mut some).expect("load");
            assert_eq!(some, [4 ^ 85, 5 ^ 85, 5 ^ 85]);
        }
        return;
    }
    let served = Served::empty(frame_bytes);
    let span = FrameSpan { frame: served.frame, offset: 0, len: frame_bytes };
    let mut n = 0;
    let source = &mut |bytes: &mut [u8]| {
        for page in bytes.chunks_mut(PAGE) {
            page.fill(n as u8 ^ 85);
            n += 1;
        }
        Ok(())
    };
    served.device.fill(span, source).expect("fill");
    served.protect(0..frame_bytes / PAGE_BYTES, true);
    child::again("pages::another_process_reads_what_was_filled", None, &served.export().memory);
}

#[test]
fn pages_that_are_not_present_fault_and_come_and_go_while_mapped() {
    let served = Served::full(7);
    let memory = served.export().memory;
    for stores in [false, true] {
        let window = window(&memory, FRAME, stores);
        let mut buf = vec![0; FRAME as usize];
        served.protect(3..4, false);
        assert_eq!(window.load(10, &mut buf), stopped(3 * PAGE - 10, StopReason::NotPresent));
        assert_eq!(buf.iter().filter(|byte| **byte == 7).count(), 3 * PAGE - 10);
        assert_eq!(window.load(3 * PAGE_BYTES + 1, &mut [0]), stopped(0, StopReason::NotPresent));
        window.load(4 * PAGE_BYTES, &mut buf[..PAGE]).expect("load");
        if stores {
            let across = window.store(3 * PAGE_BYTES - 2, &[1; 4]);
            assert_eq!(across, stopped(2, StopReason::NotPresent));
            // What was stored to is not served either, once the page is away.
            served.protect(2..3, false);
            assert_eq!(window.load(2 * PAGE_BYTES, &mut [0]), stopped(0, StopReason::NotPresent));
            assert_eq!(window.store(2 * PAGE_BYTES, &[0]), stopped(0, StopReason::NotPresent));
            served.protect(2..3, true);
        } else {
            assert_eq!(window.store(0, &[1]), stopped(0, StopReason::ReadOnly));
        }
        served.protect(3..4, true);
        window.load(0, &mut buf).expect("load");
        served.device.detach(served.at);
        assert_eq!(window.load(0, &mut buf), stopped(0, StopReason::NotPresent));
        served.device.attach(served.at, served.frame).expect("attach");
        assert_eq!(window.load(0, &mut buf), stopped(0, StopReason::NotPresent));
        served.protect(0..PAGES, true);
        window.load(0, &mut buf).expect("load");
    }
}

#[test]
fn frames_are_attached_and_detached_one_by_one() {
    let served = [Served::full(1), Served::full(2)];
    let window = Window::new(3, FRAME, false).expect("window");
    assert_eq!((window.frames(), window.frame_bytes()), (3, FRAME));
    assert_eq!(window.addr() as u64 % FRAME, 0);
    for (index, served) in [0, 1].into_iter().zip(&served) {
        let exported = served.export();
        window.attach(index, exported.memory.as_fd(), exported.serial).expect("attach");
    }
    let mut buf = vec![0; 3 * FRAME as usize];
    let two = 2 * FRAME as usize;
    assert_eq!(window.load(0, &mut buf), stopped(two, StopReason::NotAttached));
    assert!(buf[..two / 2].iter().all(|byte| *byte == 1));
    assert!(buf[two / 2..two].iter().all(|byte| *byte == 2));
    for at in [3 * FRAME, u64::MAX - 2, u64::MAX] {
        assert_eq!(window.load(at, &mut [0; 9]), stopped(0, StopReason::NotAttached), "{at}");
    }
    let exported = served[1].export();
    window.attach(0, exported.memory.as_fd(), exported.serial).expect("attach");
    window.load(0, &mut buf[..two]).expect("load");
    assert!(buf[..two].iter().all(|byte| *byte == 2));
    window.detach(0);
    window.detach(7);
    assert_eq!([0, 1, 2, 3].map(|index| window.is_attached(index)), [false, true, false, false]);
    assert_eq!(window.load(FRAME - 1, &mut buf[..2]), stopped(0, StopReason::NotAttached));
    window.load(FRAME, &mut buf[..2]).expect("load");
}

/// What a client keeps mapped goes on when the device and its process's descriptors are gone.
#[test]
fn memory_outlives_the_device() {
    let served = Served::full(7);
    let window = window(served.export().memory, FRAME, false);
    drop(served);
    let mut buf = vec![0; FRAME as usize];
    window.load(0, &mut buf).expect("load");
    assert!(buf.iter().all(|byte| *byte == 7));
}
