//! Strangers that do to a gated file something else than they seem to: each once hid a change.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use crate::common::*;
use crate::mount::Mount;
use crate::strangers::{PAGES, filled, guarded, keep, prove};
use crate::ways::Page;
use pageferry::Guard;

const ALL: std::ops::Range<u64> = 0..PAGES * PAGE;
const LEN: u64 = PAGES * PAGE;

/// Whole pages at a page's address, as `O_DIRECT` wants them.
#[repr(align(4096))]
struct Aligned([u8; 4096]);

fn open_rw(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn sync_file(path: &Path, number: u64) {
    std::fs::write(path, filled(PAGES, number)).unwrap();
    File::open(path).unwrap().sync_all().unwrap();
}

fn truncate(path: &Path, to: u64) {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: a string.
    let rc = unsafe { libc::truncate(path.as_ptr(), to as i64) };
    assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
}

/// A file behind a gate, with copies of all of it; nothing where there is no gate.
fn gated() -> Option<(Rig, pageferry::File)> {
    let rig = guarded(Guard::Fanotify);
    sync_file(&rig.path("a"), 1);
    let f = rig.cache.open(rig.path("a")).unwrap();
    if let Err(why) = keep(&f, PAGES, 2) {
        crate::skipped!("{why}");
        return None;
    }
    f.flush(ALL).unwrap();
    prove(&f);
    Some((rig, f))
}

/// A thread that has the file open puts a loop device on it, writes, and takes it off again.
#[test]
fn a_loop_device_that_comes_and_goes_between_two_looks() {
    let Some((rig, f)) = gated() else { return };
    let s = open_rw(&rig.path("a"));
    device_reads(&f, ALL);
    let Ok(control) = File::options().read(true).write(true).open("/dev/loop-control") else {
        return crate::skipped!("no loop devices");
    };
    // SAFETY: LOOP_CTL_GET_FREE takes nothing.
    let n = unsafe { libc::ioctl(control.as_raw_fd(), 0x4C82) };
    let options = |flags| File::options().read(true).write(true).custom_flags(flags).clone();
    let l = match options(libc::O_DIRECT).open(format!("/dev/loop{n}")) {
        Ok(l) => l,
        Err(why) => return crate::skipped!("/dev/loop{n}: {why}"),
    };
    // SAFETY: LOOP_SET_FD takes a descriptor.
    assert_eq!(unsafe { libc::ioctl(l.as_raw_fd(), 0x4C00, s.as_raw_fd()) }, 0);
    let page = Aligned(Page::of(7).0);
    l.write_all_at(&page.0, 3 * PAGE).unwrap();
    l.sync_all().unwrap();
    // SAFETY: LOOP_CLR_FD takes nothing.
    assert_eq!(unsafe { libc::ioctl(l.as_raw_fd(), 0x4C01, 0) }, 0);
    drop(l);
    while std::fs::exists(format!("/sys/block/loop{n}/loop/backing_file")).unwrap() {
        std::thread::sleep(Duration::from_millis(1));
    }
    same(&device_reads(&f, 3 * PAGE..4 * PAGE), &page.0, "the device");
}

/// `truncate` by name was told, and waits, on a frozen file system, before it counts as somebody who has
/// the file open.
#[test]
fn a_truncation_by_name_that_waits_where_nobody_sees_it() {
    within(60, || {
        let rig = guarded(Guard::Fanotify);
        let fs = match Mount::image_at("ext4", 64 << 20, &rig.path("img")) {
            Ok(fs) => fs,
            Err(why) => return crate::skipped!("{why}"),
        };
        let a = fs.path().join("a");
        sync_file(&a, 1);
        let f = rig.cache.open(&a).unwrap();
        if let Err(why) = keep(&f, PAGES, 2) {
            return crate::skipped!("{why}");
        }
        f.flush(ALL).unwrap();
        let root = File::open(fs.path()).unwrap();
        // SAFETY: FIFREEZE takes nothing.
        assert_eq!(unsafe { libc::ioctl(root.as_raw_fd(), 0xC004_5877_u64, 0) }, 0);
        let by = a.clone();
        let cutter = std::thread::spawn(move || {
            truncate(&by, 0);
            truncate(&by, LEN);
        });
        std::thread::sleep(Duration::from_millis(100));
        // Kept away, these would come home over the truncation. Not kept, they wait for the thaw.
        let thaw = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            // SAFETY: FITHAW takes nothing.
            assert_eq!(unsafe { libc::ioctl(root.as_raw_fd(), 0xC004_5878_u64, 0) }, 0);
        });
        let pin = f.pin(0..PAGE, pageferry::PinMode::Write).unwrap();
        pin.view().unwrap().write(0, &[9; 4096]).unwrap();
        let kept = pin.release_with(pageferry::After::KeepAway);
        assert_eq!(kept.unwrap_err().kind(), "unguarded");
        thaw.join().unwrap();
        cutter.join().unwrap();
        let disk = std::fs::read(&a).unwrap();
        // Its own bytes the release may have written after the truncation.
        assert!(disk[PAGE as usize..].iter().all(|byte| *byte == 0), "what was cut is back");
        same(&device_reads(&f, ALL), &disk, "the device");
    });
}

/// A request of io_uring that writes is issued while its thread waits in a `read` of a pipe; a write that
/// failed seems to owe what is heard of it.
#[test]
fn a_write_in_passing() {
    in_passing(true);
}

/// The same, but that a worker issues it, who says that he is in whatever call his maker was in.
#[test]
fn a_write_by_a_worker() {
    in_passing(false);
}

fn in_passing(inline: bool) {
    within(30, move || {
        if let Err(why) = io_uring::IoUring::new(4) {
            return crate::skipped!("io_uring: {why}");
        }
        let Some((rig, f)) = gated() else { return };
        let s = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(rig.path("a"))
            .unwrap();
        let (gate_out, mut gate_in) = std::io::pipe().unwrap();
        let (mut stop_out, mut stop_in) = std::io::pipe().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let t = std::thread::spawn(move || {
            // SAFETY: the kernel is given a bad pointer on purpose.
            let rc = unsafe { libc::pwrite(s.as_raw_fd(), 0x1000 as *const _, 4096, 7 * 4096) };
            assert_eq!(rc, -1);
            let a = Box::new(Aligned(Page::of(7).0));
            let mut ring = io_uring::IoUring::new(4).unwrap();
            let poll = io_uring::opcode::PollAdd::new(
                io_uring::types::Fd(gate_out.as_raw_fd()),
                libc::POLLIN as u32,
            )
            .build()
            .flags(io_uring::squeue::Flags::IO_LINK);
            let write = io_uring::opcode::Write::new(
                io_uring::types::Fd(s.as_raw_fd()),
                a.0.as_ptr(),
                4096,
            )
            .offset(3 * PAGE)
            .build();
            let write = if inline { write } else { write.flags(io_uring::squeue::Flags::ASYNC) };
            // SAFETY: all outlives the calls.
            unsafe { ring.submission().push_multiple(&[poll, write]) }.unwrap();
            ring.submit().unwrap();
            tell.send(()).unwrap();
            let mut b = [0];
            stop_out.read_exact(&mut b).unwrap();
            let results: Vec<i32> = ring.completion().map(|c| c.result()).collect();
            drop(gate_out);
            (s, results, a)
        });
        told.recv().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let look = open_rw(&rig.path("a"));
        device_reads(&f, ALL);
        if inline {
            // SAFETY: numbers only.
            unsafe { libc::posix_fadvise(look.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        }
        gate_in.write_all(&[1]).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let mut b = [0; 4096];
        look.read_exact_at(&mut b, 3 * PAGE).unwrap();
        let got = device_reads(&f, 3 * PAGE..4 * PAGE);
        let again = device_reads(&f, 3 * PAGE..4 * PAGE);
        stop_in.write_all(&[1]).unwrap();
        let (s, results, _) = t.join().unwrap();
        assert_eq!(results[1..], [4096], "the write");
        drop((s, look));
        same(&b, &Page::of(7).0, "the file");
        same(&got, &b, "the device");
        same(&again, &b, "the device, again");
    });
}
