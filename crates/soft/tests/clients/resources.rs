//! What devices and windows take of a process, and what becomes of them in its children.

use std::os::fd::{AsFd, AsRawFd};

use pageferry_device::{Device, DeviceError, FrameSpan, TransferError};
use pageferry_soft::{StopReason, Window};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::child::fork;
use crate::common::{FRAME, PAGES, Served, device, raw, serial, window};

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("fd").count()
}

/// Mappings of frames, and the process's address space in KiB.
fn mappings() -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    let reserved = maps.lines().filter(|line| line.contains(" ---p ")).map(|line| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        Some((number(end)? - number(start)?) >> 10)
    });
    let frames = maps.lines().filter(|line| line.contains("pageferry frame")).count();
    (frames, reserved.flatten().sum())
}

/// In a process of one thread, so that nobody else's come and go.
#[test]
fn descriptors_and_mappings_go_with_devices_and_windows() {
    let outcome = fork(|| {
        drop(std::fs::read_to_string("/proc/self/maps"));
        let before = (descriptors(), mappings());
        let served = [Served::full(1), Served::full(2)];
        let mut windows = Vec::new();
        for stores in [false, true] {
            let window = Window::new(100, FRAME, stores).expect("window");
            for (index, served) in [3, 9].into_iter().zip(&served) {
                let exported = served.export();
                let memory = exported.memory.as_fd();
                window.attach(index, memory, exported.serial).expect("attach");
            }
            window.detach(3);
            windows.push(window);
        }
        for served in &served {
            for same_file in [false, true, false, false] {
                served.reassign(same_file);
                served.export();
            }
        }
        // A frame's and, for each window, the bytes and the tail.
        let during = (descriptors(), mappings().0);
        if during != (before.0 + 2, before.1.0 + 2 + 4) {
            eprintln!("{during:?} after {before:?}");
            return 1;
        }
        drop(windows);
        drop(served);
        let after = (descriptors(), mappings());
        if after != before {
            eprintln!("{after:?} after {before:?}");
            return 2;
        }
        0
    });
    assert_eq!(outcome, Ok(0));
}

/// Lets there be no new descriptor, or some.
fn limit(new: bool) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let lowest_free = || rustix::io::dup(std::io::stdin()).expect("dup").as_raw_fd() as u64;
    let descriptors = if new { 1000 } else { lowest_free() };
    setrlimit(Resource::Nofile, Rlimit { current: Some(descriptors), maximum }).expect("limit");
}

#[test]
fn a_frame_without_memory_is_refused_until_there_is_some() {
    let outcome = fork(|| {
        let emfile = DeviceError::FrameMemory { frame_bytes: FRAME, errno: libc::EMFILE };
        let device = device(2, FRAME);
        limit(false);
        assert_eq!(device.alloc_frame(), Err(emfile.clone()));
        assert_eq!(device.frames_in_use(), 0);
        limit(true);
        assert!(device.alloc_frame().is_ok());

        let served = Served::full(7);
        let holder = window(served.export().memory, FRAME, false);
        served.device.detach(served.at);
        limit(false);
        assert_eq!(served.device.reassign_frame(served.frame, false), Err(emfile));
        let refused = served.device.attach(served.at, served.frame);
        assert!(matches!(refused, Err(DeviceError::Invalid { .. })), "{refused:?}");
        let span = FrameSpan { frame: served.frame, offset: 0, len: FRAME };
        let refused = served.device.fill(span, &mut |_| unreachable!());
        assert!(refused.is_err());
        assert!(served.device.drain(span, &mut |_| unreachable!()).is_err());
        assert!(matches!(served.device.zero(span), Err(DeviceError::Invalid { .. })));
        limit(true);
        assert_eq!(served.device.reassign_frame(served.frame, true), Ok(()));
        served.device.attach(served.at, served.frame).expect("attach");
        let fresh = window(served.export().memory, FRAME, false);
        assert!(raw(&fresh).iter().all(|byte| *byte == 0));
        served.fill(0..PAGES, 8);
        assert!(raw(&holder).iter().all(|byte| *byte == 7));
        0
    });
    assert_eq!(outcome, Ok(0));
}

#[test]
fn a_forked_child_is_refused_everything_and_keeps_its_own_memory() {
    let served = Served::full(7);
    let memory = served.export().memory;
    let windows = [false, true].map(|stores| window(&memory, FRAME, stores));
    windows[1].store(0, &[1]).expect("store");
    let mut parents = Some((served, windows));
    let outcome = fork(|| {
        let (served, windows) = parents.take().expect("both");
        assert_eq!(mappings().0, 0, "memory of frames");
        // Some of it takes the places of what is not mapped here.
        let own: Vec<Vec<u8>> = (1..200).map(|n| vec![n; 140 << 10]).collect();
        for window in &windows {
            let load = window.load(0, &mut [0]).expect_err("another process's");
            let store = window.store(0, &[0]).expect_err("another process's");
            assert_eq!(load.reason, StopReason::OtherProcess);
            assert!([StopReason::OtherProcess, StopReason::ReadOnly].contains(&store.reason));
            assert!(window.attach(0, memory.as_fd(), serial(&memory, FRAME)).is_err());
            assert!(window.stored(0..FRAME).is_err());
            assert!(!window.is_attached(0));
            window.detach(0);
        }
        assert!(matches!(served.device.export_frame(served.frame), Err(DeviceError::Lost)));
        let reassigned = served.device.reassign_frame(served.frame, false);
        assert_eq!(reassigned, Err(DeviceError::Lost));
        served.device.detach(served.at);
        let before = descriptors();
        drop(windows);
        drop(served);
        assert_eq!(descriptors(), before - 1, "the frame's");
        let whole = own.iter().zip(1..).all(|(bytes, n)| bytes.iter().all(|byte| *byte == n));
        i32::from(!whole)
    });
    assert_eq!(outcome, Ok(0));
    let (served, windows) = parents.expect("the parent's");
    assert!(served.content().iter().all(|byte| *byte == 7));
    let mut bytes = [0; 2];
    windows[1].load(0, &mut bytes).expect("load");
    assert_eq!(bytes, [1, 7]);
    windows[0].load(0, &mut bytes).expect("load");
    assert_eq!(bytes, [7, 7]);
}

/// A child that is forked in the middle of a copy finds the device lost like any other.
#[test]
fn a_child_forked_in_the_middle_of_a_copy_is_not_ended_by_it() {
    let frame_bytes = 2 << 20;
    let served = Served::empty(frame_bytes);
    let span = FrameSpan { frame: served.frame, offset: 0, len: frame_bytes };
    let (mut child, mut calls) = (-1, 0);
    let outcome = served.device.fill(span, &mut |_| {
        calls += 1;
        if child < 0 {
            // SAFETY: the child goes out of the copy and exits.
            child = unsafe { libc::fork() };
        }
        Ok(())
    });
    if child == 0 {
        let lost = matches!(outcome, Err(TransferError::Device(DeviceError::Lost)));
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(if lost && calls == 1 { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child's end");
    outcome.expect("the parent's copy");
    assert_eq!(calls, 2);
}
