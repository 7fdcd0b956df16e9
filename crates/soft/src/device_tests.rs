use super::*;
use pageferry_device::FaultReason;
use std::sync::atomic::AtomicU64;

const FRAME: u64 = 64 << 10;

/// Makes a test for each kind of memory.
macro_rules! on_both_kinds_of_memory {
    ($($test:ident,)*) => {
        mod private {
            $(#[test] fn $test() { super::$test(false) })*
        }
        mod exportable {
            $(#[test] fn $test() { super::$test(true) })*
        }
    };
}

on_both_kinds_of_memory! {
    bad_settings_are_refused_with_numbers,
    capacity_is_a_limit_and_freed_frames_serve_again,
    kernels_fault_on_absent_and_read_only_pages_and_stores_mark_dirty,
    a_detached_or_reused_frame_shows_nothing,
    armed_copies_fail_halfway_and_then_work,
    a_device_lost_in_the_middle_of_a_copy_fails_it_and_everything_after,
    no_dirty_mark_is_lost_under_stress,
    a_refused_attach_changes_nothing,
    a_region_in_use_is_not_given_to_anybody_else,
    ranges_that_overflow_are_refused,
}

fn device(frames: u64, exportable: bool) -> SoftDevice {
    let config = SoftConfig {
        frame_bytes: FRAME,
        capacity_bytes: frames * FRAME,
        workers: 2,
        exportable,
        ..SoftConfig::default()
    };
    SoftDevice::new(config).unwrap()
}

fn span(frame: FrameId) -> FrameSpan {
    FrameSpan { frame, offset: 0, len: FRAME }
}

/// A device with one attached frame, filled with `byte`, readable.
fn attached(byte: u8, exportable: bool) -> (SoftDevice, FrameId, DeviceAddr) {
    let d = device(2, exportable);
    let region = d.reserve_region().unwrap();
    let frame = d.alloc_frame().unwrap();
    d.attach(region, frame).unwrap();
    d.fill(span(frame), &mut |b| {
        b.fill(byte);
        Ok(())
    })
    .unwrap();
    d.protect(region, FRAME, Some(Access::Read)).unwrap();
    (d, frame, region)
}

fn bad_settings_are_refused_with_numbers(exportable: bool) {
    for (frame_bytes, capacity_bytes) in
        [(4096, 1 << 20), (3 << 20, 1 << 30), (128 << 20, 1 << 30), (2 << 20, 1 << 20)]
    {
        let config =
            SoftConfig { frame_bytes, capacity_bytes, exportable, ..SoftConfig::default() };
        let Err(error) = SoftDevice::new(config) else { panic!("{frame_bytes} was accepted") };
        assert!(error.to_string().contains(&frame_bytes.to_string()), "{error}");
    }
    let huge = SoftConfig { capacity_bytes: 1 << 40, exportable, ..SoftConfig::default() };
    assert_eq!(SoftDevice::new(huge).unwrap().info().capacity_frames, 1 << 19);
}

fn capacity_is_a_limit_and_freed_frames_serve_again(exportable: bool) {
    let d = device(2, exportable);
    let (a, b) = (d.alloc_frame().unwrap(), d.alloc_frame().unwrap());
    assert_ne!(a, b);
    assert_eq!(d.alloc_frame(), Err(DeviceError::Full { capacity_frames: 2, frame_bytes: FRAME }));
    d.free_frame(a);
    assert_eq!((d.frames_in_use(), d.alloc_frame()), (1, Ok(a)));
}

fn kernels_fault_on_absent_and_read_only_pages_and_stores_mark_dirty(exportable: bool) {
    let (d, _, at) = attached(7, exportable);
    let mut buf = [0; 10];
    let outside = d.load(at.offset(FRAME), &mut buf).unwrap_err();
    assert_eq!((outside.addr, outside.reason), (at.offset(FRAME), FaultReason::NotPresent));
    d.load(at.offset(4090), &mut buf).unwrap();
    assert_eq!(buf, [7; 10]);
    assert_eq!(d.store(at, b"x").unwrap_err().reason, FaultReason::ReadOnly);
    d.protect(at.offset(4096), 8192, Some(Access::Write)).unwrap();
    // The first page is read-only, the second is not: the store stops where it faults.
    let fault = d.store(at.offset(4096 + 8190), &[1; 4]).unwrap_err();
    assert_eq!((fault.addr, fault.reason), (at.offset(12288), FaultReason::ReadOnly));
    let one = vec![std::ops::Range { start: 8192, end: 12288 }];
    assert_eq!(d.take_dirty(at, FRAME), Ok(Dirty::Pages(one)));
    assert_eq!(d.take_dirty(at, FRAME), Ok(Dirty::Pages(vec![])));
    assert_eq!(d.store(at.offset(8192), b"x").unwrap_err().reason, FaultReason::ReadOnly);
    d.protect(at, 4096, None).unwrap();
    assert_eq!(d.load(at, &mut buf).unwrap_err().reason, FaultReason::NotPresent);
}

fn a_detached_or_reused_frame_shows_nothing(exportable: bool) {
    let (d, frame, at) = attached(7, exportable);
    d.protect(at, FRAME, Some(Access::Write)).unwrap();
    d.store(at, b"dirty").unwrap();
    d.detach(at);
    assert_eq!(d.load(at, &mut [0]).unwrap_err().reason, FaultReason::NotPresent);
    d.free_frame(frame);
    let again = d.alloc_frame().unwrap();
    assert_eq!(again, frame);
    d.attach(at, again).unwrap();
    assert_eq!(d.load(at, &mut [0]).unwrap_err().reason, FaultReason::NotPresent);
    assert_eq!(d.take_dirty(at, FRAME), Ok(Dirty::Pages(vec![])));
    assert!(matches!(d.attach(at, FrameId(1)), Err(DeviceError::Invalid { .. })));
}

fn armed_copies_fail_halfway_and_then_work(exportable: bool) {
    let (d, frame, at) = attached(1, exportable);
    d.arm(FailPoint::CopyIn, 1);
    let failed = d.fill(span(frame), &mut |b| {
        b.fill(2);
        Ok(())
    });
    assert!(matches!(failed, Err(TransferError::Device(DeviceError::CopyIn { len: FRAME }))));
    let mut buf = vec![0; FRAME as usize];
    d.load(at, &mut buf).unwrap();
    assert_eq!((buf[0], buf[FRAME as usize / 2], buf[FRAME as usize - 1]), (2, 1, 1));
    d.arm(FailPoint::CopyOut, 1);
    let mut seen = 0;
    let failed = d.drain(span(frame), &mut |b| {
        seen += b.len();
        Ok(())
    });
    assert!(matches!(failed, Err(TransferError::Device(DeviceError::CopyOut { .. }))));
    assert_eq!(seen as u64, FRAME / 2);
    d.drain(span(frame), &mut |_| Ok(())).unwrap();
    let host = d.fill(span(frame), &mut |_| Err(io::Error::from_raw_os_error(5)));
    assert!(matches!(host, Err(TransferError::Host(e)) if e.raw_os_error() == Some(5)));
    d.arm(FailPoint::Alloc, 1);
    assert!(matches!(d.alloc_frame(), Err(DeviceError::AllocFailed { .. })));
    assert!(d.alloc_frame().is_ok());
}

fn a_device_lost_in_the_middle_of_a_copy_fails_it_and_everything_after(exportable: bool) {
    let big = SoftConfig {
        frame_bytes: 4 << 20,
        capacity_bytes: 8 << 20,
        workers: 1,
        exportable,
        ..SoftConfig::default()
    };
    let d = SoftDevice::new(big).unwrap();
    let frame = d.alloc_frame().unwrap();
    let mut calls = 0;
    let whole = FrameSpan { frame, offset: 0, len: 4 << 20 };
    let lost = d.fill(whole, &mut |_| {
        calls += 1;
        d.lose();
        Ok(())
    });
    assert!(matches!(lost, Err(TransferError::Device(DeviceError::Lost))));
    assert_eq!(calls, 1, "the copy went on after the loss");
    assert_eq!(d.alloc_frame(), Err(DeviceError::Lost));
    assert_eq!(d.launch(1, &|_| ()), Err(DeviceError::Lost));
    d.free_frame(frame);
    assert_eq!(d.frames_in_use(), 0);
}

/// Kernels store while somebody takes the dirty marks again and again: every page stored to is
/// reported at least once after its last store.
fn no_dirty_mark_is_lost_under_stress(exportable: bool) {
    let (d, _, at) = attached(0, exportable);
    let pages = FRAME / PAGE_BYTES;
    let stores: Vec<AtomicU64> = (0..pages).map(|_| AtomicU64::new(0)).collect();
    let mut seen = vec![0u64; pages as usize];
    let take = |seen: &mut [u64]| {
        let before: Vec<u64> = stores.iter().map(|s| s.load(Ordering::SeqCst)).collect();
        let Dirty::Pages(runs) = d.take_dirty(at, FRAME).unwrap() else { panic!() };
        for run in runs {
            for page in run.start / PAGE_BYTES..run.end / PAGE_BYTES {
                seen[page as usize] = u64::MAX;
            }
        }
        for (page, before) in before.iter().enumerate() {
            // Stores finished before the take must be in this or an earlier answer.
            if seen[page] == u64::MAX {
                seen[page] = *before
            } else {
                assert_eq!(seen[page], *before, "page {page}");
            }
        }
    };
    std::thread::scope(|scope| {
        let kernels = scope.spawn(|| {
            d.launch(2, &|g| {
                for i in 0..20_000u64 {
                    let page = (i * 7 + g) % pages;
                    let addr = at.offset(page * PAGE_BYTES + g * 8);
                    while d.store(addr, &i.to_le_bytes()).is_err() {
                        d.protect(at.offset(page * PAGE_BYTES), PAGE_BYTES, Some(Access::Write))
                            .unwrap();
                    }
                }
            })
            .unwrap();
        });
        while !kernels.is_finished() {
            let Dirty::Pages(_) = d.take_dirty(at, FRAME).unwrap() else { panic!() };
        }
    });
    // Quiet now: one more round with an exact account.
    d.take_dirty(at, FRAME).unwrap();
    for page in [1u64, 5] {
        d.protect(at.offset(page * PAGE_BYTES), PAGE_BYTES, Some(Access::Write)).unwrap();
        d.store(at.offset(page * PAGE_BYTES), b"x").unwrap();
        stores[page as usize].fetch_add(1, Ordering::SeqCst);
    }
    take(&mut seen);
    assert_eq!((seen[1], seen[5], seen[2]), (1, 1, 0));
}

/// The refused attach used to wipe permissions and dirty marks first.
fn a_refused_attach_changes_nothing(exportable: bool) {
    let (d, frame, at) = attached(7, exportable);
    d.protect(at, PAGE_BYTES, Some(Access::Write)).unwrap();
    d.store(at, b"dirty").unwrap();
    let invalid = |addr| {
        assert!(matches!(d.attach(addr, frame), Err(DeviceError::Invalid { .. })), "{addr}");
    };
    invalid(at);
    invalid(at.offset(FRAME));
    let other = d.alloc_frame().unwrap();
    // Taken, not a frame's, and in no region that was reserved.
    for addr in [
        at,
        at.offset(PAGE_BYTES),
        DeviceAddr(0),
        at.offset(REGION_BYTES),
        DeviceAddr(0u64.wrapping_sub(FRAME)),
    ] {
        assert!(matches!(d.attach(addr, other), Err(DeviceError::Invalid { .. })), "{addr}");
    }
    let mut buf = [0; 5];
    d.load(at, &mut buf).unwrap();
    assert_eq!(&buf, b"dirty");
    assert_eq!(d.take_dirty(at, FRAME), Ok(Dirty::Pages(std::iter::once(0..PAGE_BYTES).collect())));
}

fn a_region_in_use_is_not_given_to_anybody_else(exportable: bool) {
    let (d, _, at) = attached(7, exportable);
    d.release_region(at);
    assert_ne!(d.reserve_region().unwrap(), at);
    let mut buf = [0; 1];
    d.load(at, &mut buf).unwrap();
    assert_eq!(buf, [7]);
    d.detach(at);
    d.release_region(at);
    d.release_region(at);
    assert_eq!(d.reserve_region(), Ok(at));
    assert_ne!(d.reserve_region(), Ok(at));
    d.release_region(at);
    assert!(matches!(d.attach(at, FrameId(0)), Err(DeviceError::Invalid { .. })));
}

fn ranges_that_overflow_are_refused(exportable: bool) {
    let (d, _, at) = attached(7, exportable);
    for bytes in [u64::MAX - 4095, u64::MAX, FRAME + PAGE_BYTES, 1] {
        let refused = d.protect(at.offset(PAGE_BYTES), bytes, None);
        assert!(matches!(refused, Err(DeviceError::Invalid { .. })), "{bytes}");
    }
    for (from, bytes) in [(at, u64::MAX - 4095), (at, 1), (at.offset(1), PAGE_BYTES)] {
        let refused = d.take_dirty(from, bytes);
        assert!(matches!(refused, Err(DeviceError::Invalid { .. })), "{from} {bytes}");
    }
    assert!(d.load(DeviceAddr(u64::MAX - 3), &mut [0; 10]).is_err());
    d.load(at, &mut [0]).unwrap();
}
