//! The device among what else there is in a process: memory that waits, children, locked memory.
#![cfg(not(loom))]

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use pageferry_device::{Access, Device, DeviceAddr, DeviceError, FrameSpan, Processors};
use pageferry_linux::{Event, FileMap, HostFile, Uffd, Wakeup, page_bytes};
use pageferry_soft::{SoftConfig, SoftDevice};

/// A device with one writable frame.
fn device(exportable: bool) -> (SoftDevice, DeviceAddr) {
    let config = SoftConfig { workers: 1, exportable, ..SoftConfig::default() };
    let device = SoftDevice::new(config).expect("device");
    let at = device.reserve_region().expect("region");
    let frame = device.alloc_frame().expect("frame");
    device.attach(at, frame).expect("attach");
    device.zero(FrameSpan { frame, offset: 0, len: 1 << 20 }).expect("zero");
    device.protect(at, 1 << 20, Some(Access::Write)).expect("protect");
    (device, at)
}

/// A kernel's access that is given a page of a mapping that is away used to wait for it with the
/// locks held that bringing it home needs.
#[test]
fn no_lock_is_held_while_the_callers_memory_makes_one_wait() {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        accesses_of_what_is_away();
        let _ = tell.send(());
    });
    told.recv_timeout(Duration::from_secs(60)).expect("an end within a minute");
}

fn accesses_of_what_is_away() {
    let uffd = match Uffd::open() {
        Ok(uffd) => Arc::new(uffd),
        Err(e) => return println!("skipped: {e}"),
    };
    let page = page_bytes();
    let dir = tempfile::tempdir().expect("dir");
    std::fs::write(dir.path().join("file"), vec![5; page]).expect("write");
    let file = Arc::new(HostFile::open(dir.path().join("file"), true).expect("open"));
    let map = FileMap::new(&file, 0, page, true).expect("map");
    let (device, at) = device(false);
    let memory = device.processors().expect("processors").memory();
    let (tell, faults) = mpsc::channel();
    thread::scope(|scope| {
        let reads = Arc::clone(&uffd);
        scope.spawn(move || {
            let mut events = Vec::new();
            while let Ok(Wakeup::Events) = reads.wait(&mut events, None) {
                if events.iter().any(|e| matches!(e, Event::Fault(_))) {
                    let _ = tell.send(());
                }
            }
        });
        for load in [false, true] {
            map.trap(&uffd, 0..page).expect("trap");
            let map = &map;
            let access = scope.spawn(move || {
                if load {
                    // SAFETY: mapped, and used by this thread only.
                    let to = unsafe { std::slice::from_raw_parts_mut(map.as_ptr(), page) };
                    memory.load(at, to)
                } else {
                    // SAFETY: as above.
                    let from = unsafe { std::slice::from_raw_parts(map.as_ptr(), page) };
                    memory.store(at, from)
                }
            });
            faults.recv().expect("a fault");
            // What bringing pages home does with a device, on the very page.
            device.take_dirty(at, 1 << 20).expect("take");
            device.protect(at, 1 << 20, None).expect("protect");
            let more = device.alloc_frame().expect("frame");
            device.attach(at.offset(2 << 20), more).expect("attach");
            device.detach(at.offset(2 << 20));
            device.free_frame(more);
            device.protect(at, 1 << 20, Some(Access::Write)).expect("protect");
            map.untrap(&uffd, 0..page).expect("untrap");
            access.join().expect("thread").expect("access");
        }
        uffd.stop().expect("stop");
    });
    let mut byte = [0];
    memory.load(at, &mut byte).expect("load");
    assert_eq!((byte, map.load::<u8>(9).expect("load")), ([5], 5));
}

/// Runs `body` in a forked child; its result, or the signal that ended it.
fn fork(body: impl FnOnce() -> i32) -> Result<i32, i32> {
    // SAFETY: the child allocates, makes system calls and exits.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        let code = body();
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    if libc::WIFSIGNALED(status) {
        Err(libc::WTERMSIG(status))
    } else {
        Ok(libc::WEXITSTATUS(status))
    }
}

/// Its memory left holes in the child, into which the child's allocator put its own; the device then
/// read and wrote that, and its drop unmapped it.
#[test]
fn a_forked_child_has_lost_the_device_and_keeps_its_own_memory() {
    for exportable in [false, true] {
        loses_the_device_by_forking(exportable);
    }
}

fn loses_the_device_by_forking(exportable: bool) {
    let (device, at) = device(exportable);
    device.processors().expect("processors").memory().store(at, &[9]).expect("store");
    let frame = pageferry_device::FrameId(0);
    let mut parents = Some(device);
    let outcome = fork(|| {
        let Some(device) = parents.take() else { return 1 };
        let own: Vec<Vec<u8>> = (1..9).map(|n| vec![n; 40 << 20]).collect();
        let span = FrameSpan { frame, offset: 0, len: 4096 };
        let lost = [
            device.alloc_frame().is_err_and(|e| e == DeviceError::Lost),
            device.memory().load(at, &mut [0]).is_err(),
            device.memory().store(at, &[0]).is_err(),
            device.fill(span, &mut |_| Ok(())).is_err(),
            device.drain(span, &mut |_| Ok(())).is_err(),
            device.zero(span) == Err(DeviceError::Lost),
            device.protect(at, 4096, None) == Err(DeviceError::Lost),
            device.take_dirty(at, 4096) == Err(DeviceError::Lost),
            device.frames_in_use() == 0,
        ];
        device.detach(at);
        device.free_frame(frame);
        device.release_region(at);
        drop(device);
        let whole = own.iter().zip(1..).all(|(bytes, n)| bytes.iter().all(|&byte| byte == n));
        match lost.iter().position(|lost| !lost) {
            None if whole => 0,
            None => 2,
            Some(which) => 10 + which as i32,
        }
    });
    assert_eq!(outcome, Ok(0));
    let mut byte = [0];
    let device = parents.expect("the parent's");
    device.memory().load(at, &mut byte).expect("load");
    assert_eq!(byte, [9]);
}

/// All of the device's memory used to be taken from the host at once.
#[test]
fn under_mlockall_device_memory_costs_nothing_until_it_is_used() {
    let status = |name: &str| {
        let text = std::fs::read_to_string("/proc/self/status").expect("status");
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<i64>().expect("a number") << 10
    };
    let outcome = fork(|| {
        // SAFETY: locks memory, changes nothing else.
        if unsafe { libc::mlockall(libc::MCL_FUTURE) } != 0 {
            return 0;
        }
        let before = status("VmRSS:");
        for exportable in [false, true] {
            let capacity_bytes = 512 << 20;
            let config = SoftConfig { capacity_bytes, exportable, ..SoftConfig::default() };
            let device = SoftDevice::new(config);
            if device.is_err() || status("VmRSS:") - before > 256 << 20 {
                return 1;
            }
        }
        0
    });
    assert_eq!(outcome, Ok(0));
}
