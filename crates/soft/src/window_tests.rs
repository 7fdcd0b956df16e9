use std::os::fd::AsFd;
use std::sync::mpsc;

use pageferry_device::{Access, Device, FrameSpan};

use super::*;
use crate::{SoftConfig, SoftDevice};

const FRAME: u64 = 64 << 10;

/// A device's process that dies in the middle of a copy leaves the page marked for ever.
#[test]
fn a_write_that_never_ends_is_not_waited_for_for_ever() {
    let config = SoftConfig {
        frame_bytes: FRAME,
        capacity_bytes: FRAME,
        exportable: true,
        ..Default::default()
    };
    let device = SoftDevice::new(config).unwrap();
    let at = device.reserve_region().unwrap();
    let frame = device.alloc_frame().unwrap();
    device.attach(at, frame).unwrap();
    device.protect(at, FRAME, Some(Access::Read)).unwrap();
    let exported = device.export_frame(frame).unwrap();
    let memory = exported.memory;
    let mut windows = [false, true].map(|stores| Window::new(1, FRAME, stores).unwrap());
    for window in &mut windows {
        window.attach(0, memory.as_fd(), exported.serial).unwrap();
        window.write_limit = Duration::from_millis(10);
    }
    let (begin, begun) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    // A page that a window has a copy of is its own.
    windows[1].store(2 * PAGE_BYTES, &[3]).unwrap();
    std::thread::scope(|scope| {
        // If this thread fails, the other one shall end.
        let end = end;
        let device = &device;
        let fill = scope.spawn(move || {
            let span = FrameSpan { frame, offset: PAGE_BYTES, len: 2 * PAGE_BYTES };
            device.fill(span, &mut |bytes| {
                bytes.fill(7);
                begin.send(()).unwrap();
                let _ = ended.recv();
                Ok(())
            })
        });
        begun.recv().unwrap();
        let stop = Stop { done: PAGE_BYTES as usize, reason: StopReason::Abandoned };
        let mut buf = vec![1; FRAME as usize];
        windows[1].store(2 * PAGE_BYTES + 1, &[4]).unwrap();
        windows[1].load(2 * PAGE_BYTES, &mut buf[..3]).unwrap();
        assert_eq!(buf[..3], [3, 4, 0]);
        for window in &windows {
            assert_eq!(window.load(0, &mut buf), Err(stop));
            assert_eq!(buf[..PAGE_BYTES as usize], [0; PAGE_BYTES as usize]);
            // Nobody who attaches or detaches had to wait for it.
            window.attach(0, memory.as_fd(), exported.serial).unwrap();
        }
        let stored = windows[1].store(PAGE_BYTES, &[1]);
        assert_eq!(stored, Err(Stop { done: 0, reason: StopReason::Abandoned }));
        end.send(()).unwrap();
        fill.join().unwrap().unwrap();
        for window in &windows {
            window.load(0, &mut buf).unwrap();
            assert_eq!(buf[PAGE_BYTES as usize..][..2], [7; 2]);
        }
    });
}
