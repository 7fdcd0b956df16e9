//! What the kernel does with the same pages beside us: writeback, direct I/O, locking, limits,
//! failing storage.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::*;
use crate::mount::Mount;
use pageferry::{After, Error, PageState, PinMode};

fn plain(rig: &Rig, name: &str) -> std::fs::File {
    std::fs::OpenOptions::new().read(true).write(true).open(rig.path(name)).unwrap()
}

/// Pages are fetched and written back while the kernel writes the same pages to storage without a
/// pause.
#[test]
fn writeback_beside_fetches_corrupts_nothing() {
    let r = rig(8);
    let f = r.file("a", 4 * FRAME);
    let synced = plain(&r, "a");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                synced.sync_data().unwrap();
            }
        });
        for round in 0..200_u8 {
            device_writes(&f, 0, &vec![round; 4 * FRAME as usize], After::WriteBack);
            f.evict(0..4 * FRAME).unwrap();
            same(&device_reads(&f, 0..4 * FRAME), &vec![round; 4 * FRAME as usize], "fetched");
            same(&r.on_disk("a"), &vec![round; 4 * FRAME as usize], "written");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn two_threads_that_pin_one_range_move_each_page_once() {
    let r = rig(16);
    let f = r.file("a", 16 * FRAME);
    for _ in 0..50 {
        f.evict(0..16 * FRAME).unwrap();
        let before = r.stat("fetched_bytes");
        let ready = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    ready.wait();
                    same(&device_reads(&f, 0..16 * FRAME), &pattern(16 * FRAME), "the device");
                });
            }
        });
        assert_eq!(r.stat("fetched_bytes") - before, 16 * FRAME);
    }
}

/// An aligned buffer's worth of `O_DIRECT`; `None` where the file system has none.
fn direct(rig: &Rig, name: &str) -> Option<std::fs::File> {
    let mut options = std::fs::OpenOptions::new();
    let opened = options.read(true).write(true).custom_flags(libc::O_DIRECT).open(rig.path(name));
    match opened {
        Ok(file) => Some(file),
        Err(e) => {
            skipped!("O_DIRECT is not to be had on this file system: {e}");
            None
        }
    }
}

/// A system call of direct I/O into, and out of, mapped memory that is away: it waits, and neither
/// takes old bytes nor loses new ones.
#[test]
fn direct_io_through_away_memory_waits() {
    let r = rig(8);
    let f = r.file("a", 2 * FRAME);
    std::fs::write(r.path("other"), vec![0x5A; FRAME as usize]).unwrap();
    let Some(other) = direct(&r, "other") else { return };
    let m = f.map(0..2 * FRAME, true).unwrap();
    let (fd, at, len) = (other.as_raw_fd(), m.as_ptr(), FRAME as usize);
    let call = |write: bool| {
        if write {
            // SAFETY: the memory is the mapping's, for as long as it lives; others may change it.
            unsafe { libc::pwrite(fd, at.cast(), len, 0) }
        } else {
            // SAFETY: as above.
            unsafe { libc::pread(fd, at.cast(), len, 0) }
        }
    };
    device_writes(&f, 0, &vec![7; FRAME as usize], After::KeepAway);
    let written = call(true);
    if written < 0 {
        let error = std::io::Error::last_os_error();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT), "{error}");
        skipped!("system calls do not wait for away memory here (doctor says why)");
        return;
    }
    assert_eq!(written, FRAME as isize);
    same(&r.on_disk("other"), &vec![7; FRAME as usize], "what direct I/O took from away memory");
    device_writes(&f, 0, &vec![8; 2 * FRAME as usize], After::KeepAway);
    std::fs::write(r.path("other"), vec![0x5A; FRAME as usize]).unwrap();
    assert_eq!(call(false), FRAME as isize);
    let mut model = vec![0x5A; FRAME as usize];
    model.resize(2 * FRAME as usize, 8);
    same(&device_reads(&f, 0..2 * FRAME), &model, "the device after direct I/O into it");
}

/// Locking an away range brings it home; a locked range can be trapped again, and stays coherent.
#[test]
fn locked_memory_comes_home_and_may_go_away_again() {
    let r = rig(8);
    let f = r.file("a", 4 * PAGE);
    let m = f.map(0..4 * PAGE, true).unwrap();
    device_writes(&f, 0, &[7; 4096], After::KeepAway);
    // SAFETY: locking changes no contents.
    let rc = unsafe { libc::mlock(m.as_ptr().cast(), 4 * PAGE as usize) };
    if rc != 0 {
        let error = std::io::Error::last_os_error();
        skipped!("mlock: {error}");
        return;
    }
    assert_eq!(f.placement(0..PAGE).unwrap()[0].state, PageState::Copy, "home after mlock");
    assert_eq!(m.load_u8(0).unwrap(), 7);
    for round in 8..20 {
        device_writes(&f, 0, &[round; 4096], After::KeepAway);
        assert_eq!(f.placement(0..PAGE).unwrap()[0].state, PageState::Away);
        assert_eq!(m.load_u8(4095).unwrap(), round);
    }
    m.store_u8(1, 99).unwrap();
    assert_eq!(device_reads(&f, 0..3), [19, 99, 19]);
}

/// `MADV_REMOVE` through a mapping is a hole punched by somebody else.
#[test]
fn madv_remove_is_a_punched_hole() {
    let r = rig(8);
    let f = r.file("a", 8 * PAGE);
    let m = f.map(0..8 * PAGE, true).unwrap();
    let mut model = pattern(8 * PAGE);
    device_reads(&f, 0..8 * PAGE);
    let second = m.as_ptr().wrapping_add(4096);
    // SAFETY: the range is the mapping's own; that its bytes become zeros is the point.
    let rc = unsafe { libc::madvise(second.cast(), 2 * PAGE as usize, libc::MADV_REMOVE) };
    if rc != 0 {
        skipped!("MADV_REMOVE: {}", std::io::Error::last_os_error());
        return;
    }
    model[4096..3 * 4096].fill(0);
    same(&device_reads(&f, 0..8 * PAGE), &model, "the device");
    let mut seen = vec![0xEE; 8 * PAGE as usize];
    m.read(0, &mut seen).unwrap();
    same(&seen, &model, "the mapping");
}

/// The file-size limit: reported with its number, nothing lost, and a retry works.
#[test]
fn the_file_size_limit_is_reported_and_keeps_the_bytes() {
    let limit = |bytes: u64| {
        let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: this is the signal of the limit, which shall be an error instead.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        // SAFETY: takes a valid struct.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut old) }, 0);
        let new = libc::rlimit { rlim_cur: bytes, ..old };
        // SAFETY: as above.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &new) }, 0);
        old.rlim_cur
    };
    // The limit is the process's, and other tests write files: a process of its own.
    if std::env::var_os("PAGEFERRY_FSIZE_CHILD").is_none() {
        let me = std::env::current_exe().unwrap();
        let name = "kernel::the_file_size_limit_is_reported_and_keeps_the_bytes";
        let out = std::process::Command::new(me)
            .args(["--exact", name, "--nocapture"])
            .env("PAGEFERRY_FSIZE_CHILD", "1")
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert!(String::from_utf8_lossy(&out.stdout).contains("1 passed"));
        return;
    }
    let r = rig(8);
    let f = r.file("a", 4 * FRAME);
    let m = f.map(0..4 * FRAME, false).unwrap();
    let pin = f.pin(0..4 * FRAME, PinMode::Write).unwrap();
    pin.view().unwrap().write(0, &vec![9; 4 * FRAME as usize]).unwrap();
    let old = limit(2 * FRAME);
    let error = pin.release().unwrap_err();
    assert_eq!((error.kind(), error.errno()), ("file-too-big", libc::EFBIG), "{error}");
    let away = f.placement(3 * FRAME..4 * FRAME).unwrap();
    assert_eq!(away[0].state, PageState::Away, "what could not go home is still there");
    assert_eq!(f.write_at(b"x", 3 * FRAME).unwrap_err().errno(), libc::EFBIG);
    limit(old);
    f.flush(0..4 * FRAME).unwrap();
    same(&r.on_disk("a"), &vec![9; 4 * FRAME as usize], "after the retry");
    assert_eq!(m.load_u8(3 * FRAME as usize).unwrap(), 9);
}

/// Storage that fails: `sync` says so with the kernel's error, the bytes stay readable, and once
/// storage has room again new writes are durable.
#[test]
fn an_error_of_the_kernels_writeback_is_reported_by_sync() {
    // A file system on an image that has no room for its blocks: writes to it end in EIO.
    let small = match Mount::tmpfs(24 << 20) {
        Ok(small) => small,
        Err(why) => return skipped!("{why}"),
    };
    // Without a journal, whose failure would make all of it read-only.
    let broken = match Mount::image_at("ext2", 64 << 20, &small.path().join("image")) {
        Ok(broken) => broken,
        Err(why) => return skipped!("{why}"),
    };
    let r = rig(4);
    let bytes = 40 << 20;
    std::fs::File::create(broken.path().join("a")).unwrap().set_len(bytes).unwrap();
    let f = r.cache.open(broken.path().join("a")).unwrap();
    let mut failed = None;
    for at in (0..bytes).step_by(FRAME as usize) {
        device_writes(&f, at, &vec![3; FRAME as usize], After::WriteBack);
    }
    for _ in 0..3 {
        failed = failed.or(f.sync().err());
    }
    let error = failed.expect("40 MiB were synced into 24");
    assert!(matches!(error, Error::File { what: "fsync", .. }), "{error}");
    assert!([libc::EIO, libc::ENOSPC].contains(&error.errno()), "{error}");
    same(&device_reads(&f, 0..FRAME), &vec![3; FRAME as usize], "the device afterwards");
    small.grow(128 << 20);
    for at in (0..bytes).step_by(FRAME as usize) {
        device_writes(&f, at, &vec![4; FRAME as usize], After::WriteBack);
    }
    // A descriptor hears of each error once; the second call tells of new ones only.
    if let Err(old) = f.sync() {
        assert!(matches!(old, Error::File { what: "fsync", .. }), "{old}");
        f.sync().unwrap();
    }
    f.evict(0..bytes).unwrap();
    std::fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    let mut piece = vec![0; FRAME as usize];
    let plain = std::fs::File::open(broken.path().join("a")).unwrap();
    for at in (0..bytes).step_by(FRAME as usize) {
        plain.read_exact_at(&mut piece, at).unwrap();
        same(&piece, &vec![4; FRAME as usize], "storage");
    }
}

/// A frame that served one file shows nothing of it in the next, nor is anything dirty in it.
#[test]
fn a_reused_frame_shows_nothing_of_its_past() {
    let r = rig(1);
    let secret = r.file("secret", FRAME);
    device_writes(&secret, 0, &vec![0x5E; FRAME as usize], After::KeepAway);
    secret.close().unwrap();
    // A hole, and an end in the middle of a page: what is not in the file is zeros.
    std::fs::File::create(r.path("b")).unwrap().set_len(3 * PAGE + 100).unwrap();
    let before = std::fs::metadata(r.path("b")).unwrap();
    let b = r.cache.open(r.path("b")).unwrap();
    let pin = b.pin(0..4 * PAGE, PinMode::Write).unwrap();
    let mut seen = vec![0xEE; 4 * PAGE as usize];
    pin.view().unwrap().read(0, &mut seen).unwrap();
    same(&seen, &vec![0; 4 * PAGE as usize], "the device");
    assert_eq!(pin.release().unwrap(), 0, "nothing was stored");
    // The whole is overwritten by a part: the rest of it is the file's, not the frame's.
    let pin = b.pin(0..3 * PAGE + 100, PinMode::Overwrite).unwrap();
    pin.view().unwrap().write(PAGE, &[1; 4096]).unwrap();
    assert_eq!(pin.release().unwrap(), PAGE);
    let mut model = vec![0; 3 * PAGE as usize + 100];
    model[4096..8192].fill(1);
    same(&r.on_disk("b"), &model, "the file");
    let after = std::fs::metadata(r.path("b")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert!(after.blocks() - before.blocks() <= 8, "only one page was allocated");
}

/// Every system call that reads gives what the device wrote and released, through a descriptor that
/// the cache knows nothing of.
#[test]
fn every_reading_call_gives_released_bytes() {
    let r = rig(8);
    let f = r.file("a", 4 * PAGE);
    let file = plain(&r, "a");
    for round in 1..20_u8 {
        let model = vec![round; 4 * PAGE as usize];
        device_writes(&f, 0, &model, After::WriteBack);
        let mut buf = vec![0xEE; 4 * PAGE as usize];
        file.read_exact_at(&mut buf, 0).unwrap();
        same(&buf, &model, "pread");
        let out = std::fs::File::create(r.path("out")).unwrap();
        // SAFETY: descriptors and offsets are ours.
        let sent = unsafe {
            let mut at = 0;
            libc::sendfile(out.as_raw_fd(), file.as_raw_fd(), &mut at, 4 * PAGE as usize)
        };
        assert_eq!(sent, 4 * PAGE as isize);
        same(&r.on_disk("out"), &model, "sendfile");
        std::fs::remove_file(r.path("out")).unwrap();
        // `copy` uses copy_file_range where the kernel has it.
        std::fs::copy(r.path("a"), r.path("out")).unwrap();
        same(&r.on_disk("out"), &model, "copy_file_range");
        if let Some(direct) = direct(&r, "a") {
            let mut aligned = vec![0xEE_u8; 5 * PAGE as usize];
            let start = aligned.as_ptr().align_offset(4096);
            direct.read_exact_at(&mut aligned[start..start + 4 * PAGE as usize], 0).unwrap();
            same(&aligned[start..start + 4 * PAGE as usize], &model, "O_DIRECT");
        }
    }
}

/// Written through O_DIRECT by another description, over copies.
#[test]
fn direct_writes_reach_the_next_pin() {
    let r = rig(8);
    let f = r.file("a", 4 * PAGE);
    let Some(direct) = direct(&r, "a") else { return };
    let mut aligned = vec![0_u8; 2 * PAGE as usize];
    let start = aligned.as_ptr().align_offset(4096);
    for round in 1..50 {
        device_reads(&f, 0..4 * PAGE);
        aligned[start..start + 4096].fill(round);
        direct.write_all_at(&aligned[start..start + 4096], PAGE).unwrap();
        same(&device_reads(&f, PAGE..2 * PAGE), &[round; 4096], "the device");
    }
}

/// A file system with reflinks: what they share is right on either side, both ways.
#[test]
fn reflinks_carry_released_bytes_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let fs = match Mount::image_at("xfs", 512 << 20, &dir.path().join("image")) {
        Ok(fs) => fs,
        Err(why) => return skipped!("{why}"),
    };
    let r = rig(8);
    let (path, other) = (fs.path().join("a"), fs.path().join("b"));
    std::fs::write(&path, pattern(4 * PAGE)).unwrap();
    let f = r.cache.open(&path).unwrap();
    let clone = |from: &std::path::Path, to: &std::path::Path| {
        let from = std::fs::File::open(from).unwrap();
        let to = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(to);
        rustix::fs::ioctl_ficlone(to.unwrap(), from)
    };
    for round in 1..10_u8 {
        device_writes(&f, PAGE, &[round; 4096], After::KeepAway);
        if let Err(error) = clone(&path, &other) {
            return skipped!("FICLONE: {error}");
        }
        let mut model = pattern(4 * PAGE);
        model[4096..8192].fill(round);
        same(&std::fs::read(&other).unwrap(), &model, "the clone");
        std::fs::write(&other, vec![round ^ 0xFF; 4 * PAGE as usize]).unwrap();
        device_reads(&f, 0..4 * PAGE);
        clone(&other, &path).unwrap();
        same(&device_reads(&f, 0..4 * PAGE), &vec![round ^ 0xFF; 4 * PAGE as usize], "cloned into");
        std::fs::write(&path, pattern(4 * PAGE)).unwrap();
    }
}

/// While the file system is frozen nothing reaches it; what was to be written arrives afterwards.
#[test]
fn a_frozen_file_system_gets_its_bytes_later() {
    let dir = tempfile::tempdir().unwrap();
    let fs = match Mount::image_at("ext4", 64 << 20, &dir.path().join("image")) {
        Ok(fs) => fs,
        Err(why) => return skipped!("{why}"),
    };
    let freeze = |how: &str| {
        std::process::Command::new("fsfreeze")
            .arg(how)
            .arg(fs.path())
            .status()
            .is_ok_and(|s| s.success())
    };
    let r = rig(8);
    std::fs::write(fs.path().join("a"), pattern(4 * PAGE)).unwrap();
    let f = r.cache.open(fs.path().join("a")).unwrap();
    let pin = f.pin(0..PAGE, PinMode::Write).unwrap();
    pin.view().unwrap().write(0, &[7; 4096]).unwrap();
    if !freeze("--freeze") {
        return skipped!("fsfreeze is not to be had");
    }
    let pin = pin.detach();
    let release = std::thread::spawn(move || pin.attach().release());
    std::thread::sleep(std::time::Duration::from_millis(50));
    let frozen = !release.is_finished();
    assert!(freeze("--unfreeze"));
    assert!(frozen, "it was written to a frozen file system");
    release.join().unwrap().unwrap();
    let mut model = pattern(4 * PAGE);
    model[..4096].fill(7);
    same(&std::fs::read(fs.path().join("a")).unwrap(), &model, "the file");
}

/// A file system that is open for writing here is not made read-only (one that has failed is, of itself); what is
/// away meanwhile is not lost.
#[test]
fn a_file_system_is_not_remounted_read_only_over_away_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let fs = match Mount::image_at("ext4", 64 << 20, &dir.path().join("image")) {
        Ok(fs) => fs,
        Err(why) => return skipped!("{why}"),
    };
    let remount = |options: &str| {
        let mut mount = std::process::Command::new("mount");
        mount.args(["-o", options]).arg(fs.path()).output().unwrap().status.success()
    };
    let r = rig(8);
    std::fs::write(fs.path().join("a"), pattern(4 * PAGE)).unwrap();
    let f = r.cache.open(fs.path().join("a")).unwrap();
    device_writes(&f, 0, &[7; 4096], After::KeepAway);
    assert!(!remount("remount,ro"), "it was made read-only under an open file");
    assert_eq!(device_reads(&f, 0..PAGE), [7; 4096], "the device");
    f.flush(0..u64::MAX).unwrap();
    let mut model = pattern(4 * PAGE);
    model[..4096].fill(7);
    same(&std::fs::read(fs.path().join("a")).unwrap(), &model, "the file");
}
