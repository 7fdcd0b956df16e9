//! Errors: typed, nothing lost that can be kept, retry works.

use std::time::Duration;

use crate::common::{FRAME, PAGE, device_reads, device_writes, pattern, rig, rig_with, same};
use pageferry::soft::FailPoint;
use pageferry::{After, CacheConfig, Error, PageState, PinMode};

#[test]
fn a_failed_allocation_leaves_nothing_and_the_next_works() {
    let r = rig(4);
    let f = r.file("a", FRAME);
    r.device.arm(FailPoint::Alloc, 1);
    let failed = f.pin(0..10, PinMode::Read).map(drop).unwrap_err();
    assert_eq!((failed.kind(), failed.errno()), ("device-error", libc::ENOMEM));
    assert_eq!((r.stat("live_pins"), r.stat("used_bytes")), (0, 0));
    same(&device_reads(&f, 0..10), &pattern(10), "retry");
}

#[test]
fn a_failed_copy_in_shows_nothing() {
    let r = rig(4);
    let f = r.file("a", FRAME);
    r.device.arm(FailPoint::CopyIn, 1);
    let failed = f.pin(0..FRAME, PinMode::Read).map(drop).unwrap_err();
    assert_eq!(failed.errno(), libc::EIO, "{failed}");
    assert_eq!((r.stat("resident_bytes"), r.stat("used_bytes")), (0, 0));
    same(&device_reads(&f, 0..FRAME), &pattern(FRAME), "retry");
}

#[test]
fn a_failed_write_back_keeps_the_bytes_away_until_a_retry() {
    let r = rig(4);
    let f = r.file("a", FRAME);
    let m = f.map(0..FRAME, true).unwrap();
    let pin = f.pin(0..8 * PAGE, PinMode::Write).unwrap();
    pin.view().unwrap().write(0, &[9; 8 * 4096]).unwrap();
    r.device.arm(FailPoint::CopyOut, 1);
    assert_eq!(pin.release().unwrap_err().errno(), libc::EIO);
    assert_eq!(f.placement(0..PAGE).unwrap()[0].state, PageState::Away);
    r.device.arm(FailPoint::CopyOut, 1);
    assert_eq!(m.read(0, &mut [0]).unwrap_err().errno(), libc::EIO, "never stale bytes instead");
    assert_eq!(m.load_u8(0).unwrap(), 9);
    f.flush(0..u64::MAX).unwrap();
    let mut model = pattern(FRAME);
    model[..8 * 4096].fill(9);
    same(&r.on_disk("a"), &model, "after the retry");
}

#[test]
fn a_lost_device_is_an_error_everywhere_and_never_stale_bytes() {
    let r = rig(4);
    let f = r.file("a", FRAME);
    let m = f.map(0..FRAME, true).unwrap();
    device_writes(&f, 0, &[9; 100], After::KeepAway);
    r.device.lose();
    for error in [
        f.flush(0..u64::MAX).map(drop).unwrap_err(),
        f.read_at(&mut [0], 5).map(drop).unwrap_err(),
        m.read(0, &mut [0]).unwrap_err(),
        f.pin(0..1, PinMode::Read).map(drop).unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.errno()), ("device-lost", libc::ENODEV), "{error}");
    }
    // What was never away is the file's, and still to be had.
    let mut buf = [0; 10];
    f.read_at(&mut buf, 2 * PAGE).unwrap();
    assert_eq!(buf[..], pattern(FRAME)[2 * PAGE as usize..][..10]);
    drop((m, f));
    let crate::common::Rig { cache, device, dir: _dir, server } = r;
    drop((cache, server));

    use pageferry::Device;
    assert_eq!(device.frames_in_use(), 0);
}

#[test]
fn no_space_keeps_the_bytes_and_a_retry_after_making_room_works() {
    // A file system that is full: a small tmpfs.
    let r = rig(8);
    let dir = r.path("mnt");
    std::fs::create_dir(&dir).unwrap();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
        .arg(&dir)
        .status();
    if !mount.is_ok_and(|s| s.success()) {
        crate::skipped!("mounting a tmpfs needs root");
        return;
    }
    let sparse = std::fs::File::create(dir.join("sparse")).unwrap();
    sparse.set_len(FRAME).unwrap();
    drop(sparse);
    std::fs::write(dir.join("filler"), vec![1; 250 << 10]).unwrap();
    let f = r.cache.open(dir.join("sparse")).unwrap();
    let pin = f.pin(0..FRAME, PinMode::Write).unwrap();
    pin.view().unwrap().write(0, &vec![7; FRAME as usize]).unwrap();
    let error = pin.release().unwrap_err();
    assert_eq!((error.kind(), error.errno()), ("no-space", libc::ENOSPC), "{error}");
    assert_eq!(f.sync().unwrap_err().errno(), libc::ENOSPC);
    same(&device_reads(&f, 0..FRAME), &vec![7; FRAME as usize], "the device still has them");
    std::fs::remove_file(dir.join("filler")).unwrap();
    f.sync().unwrap();
    same(&std::fs::read(dir.join("sparse")).unwrap(), &vec![7; FRAME as usize], "after the retry");
    // A daemon keeps a file open as long as it has copies of it.
    f.evict(0..u64::MAX).unwrap();
    drop(f);
    let unmount = std::process::Command::new("umount").arg(&dir).status().unwrap();
    assert!(unmount.success(), "the cache left something open");
}

#[test]
fn the_flusher_bounds_how_long_bytes_stay_away() {
    let age = Duration::from_millis(20);
    let r = rig_with(4, CacheConfig::default().flush_age(Some(age)));
    let f = r.file("a", FRAME);
    device_writes(&f, 10, &[6; 100], After::KeepAway);
    // No wait by the clock: until it has happened, however slow the machine.
    while r.stat("away_bytes") > 0 {
        std::thread::yield_now();
    }
    assert_eq!(r.on_disk("a")[10..110], [6; 100]);
    assert_eq!(f.placement(0..PAGE).unwrap()[0].state, PageState::Copy, "it stays as a copy");
    // A live write pin's bytes are not the flusher's business.
    device_writes(&f, 0, &[1; 1], After::KeepAway);
    let pin = f.pin(0..PAGE, PinMode::Write).unwrap();
    device_writes(&f, 2 * PAGE, &[1; 1], After::KeepAway);
    while f.placement(2 * PAGE..3 * PAGE).unwrap()[0].state == PageState::Away {
        std::thread::yield_now();
    }
    pin.release().unwrap();
}

#[test]
fn only_regular_files() {
    let r = rig(4);
    for (path, what) in
        [(r.dir.path().to_owned(), "a directory"), ("/dev/null".into(), "a character device")]
    {
        let Err(Error::NotRegularFile { what: found, .. }) = r.cache.open(&path).map(drop) else {
            panic!("{path:?}")
        };
        assert_eq!(found, what);
    }
    let missing = r.cache.open(r.path("none")).map(drop).unwrap_err();
    assert_eq!((missing.kind(), missing.errno()), ("not-found", libc::ENOENT));
}

/// They call themselves regular, and have a size of 0 but contents.
#[test]
fn files_that_the_kernel_makes_up_are_refused() {
    let r = rig(4);
    for path in ["/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"] {
        if !std::path::Path::new(path).exists() {
            crate::skipped!("there is no {path}");
            continue;
        }
        let refused = r.cache.open_read_only(path).map(drop).unwrap_err();
        assert_eq!(refused.kind(), "not-regular-file", "{refused}");
        assert!(refused.to_string().contains("copy it to a file first"), "{refused}");
    }
}

#[test]
fn a_panicking_kernel_is_an_error() {
    let r = rig(4);
    let error = r.cache.launch(3, |g| if g == 1 { panic!("boom") } else { Ok(()) }).unwrap_err();
    assert!(matches!(&error, Error::KernelFailed(m) if m.contains("boom")), "{error}");
    let error = r.cache.launch(3, |_| Err(Error::InvalidArgument("mine".into()))).unwrap_err();
    assert!(matches!(&error, Error::InvalidArgument(m) if m == "mine"), "{error}");
}

#[test]
fn prefetch_brings_what_fits() {
    let r = rig(4);
    let f = r.file("a", 10 * FRAME);
    assert_eq!(f.prefetch(0..3 * FRAME).unwrap(), 3 * FRAME);
    let fetched = r.stat("fetched_bytes");
    device_reads(&f, 0..3 * FRAME);
    assert_eq!(r.stat("fetched_bytes"), fetched);
    assert_eq!(f.prefetch(0..10 * FRAME).unwrap(), 4 * FRAME, "cut to the budget");
    assert_eq!(f.prefetch(20 * FRAME..21 * FRAME).unwrap(), 0);
}
