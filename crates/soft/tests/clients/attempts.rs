//! Nobody writes through what is handed out.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::ptr;

use pageferry_device::{Device, PAGE_BYTES};
use pageferry_soft::{Window, WindowError};
use rustix::fs::OFlags;

use crate::child;
use crate::common::{FRAME, Served, device, window};

const BYTES: usize = PAGE_BYTES as usize;
const READ: i32 = libc::PROT_READ;
const WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Runs `f` with a shared mapping of the first page, if there can be one.
fn mapped<T>(file: &File, access: i32, f: impl FnOnce(*mut libc::c_void) -> T) -> Option<T> {
    let fd = file.as_raw_fd();
    // SAFETY: a new mapping replaces nothing.
    let at = unsafe { libc::mmap(ptr::null_mut(), BYTES, access, libc::MAP_SHARED, fd, 0) };
    if at == libc::MAP_FAILED {
        return None;
    }
    let outcome = f(at);
    // SAFETY: the mapping just made.
    unsafe { libc::munmap(at, BYTES) };
    Some(outcome)
}

/// All that could change memory through a description of it; what was not refused.
fn successes(file: &File) -> Vec<&'static str> {
    let fd = file.as_raw_fd();
    let bytes = BYTES as i64;
    let fallocate = |mode| {
        // SAFETY: concerns the file only.
        unsafe { libc::fallocate(fd, mode, 0, bytes) == 0 }
    };
    let (out, into) = io::pipe().expect("pipe");
    rustix::io::write(&into, &[9; 10]).expect("write");
    // SAFETY: moves bytes between descriptors.
    let spliced =
        unsafe { libc::splice(out.as_raw_fd(), ptr::null_mut(), fd, ptr::null_mut(), 10, 0) };
    let own_memory = File::options().write(true).open("/proc/self/mem").expect("mem");
    let attempts = [
        ("write", rustix::io::write(file, &[9; 10]).is_ok()),
        ("pwrite", file.write_at(&[9; 10], 0).is_ok()),
        ("splice", spliced >= 0),
        ("shrink", file.set_len(0).is_ok()),
        ("grow", file.set_len(1 << 30).is_ok()),
        ("punch", fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)),
        ("zero", fallocate(libc::FALLOC_FL_ZERO_RANGE)),
        ("collapse", fallocate(libc::FALLOC_FL_COLLAPSE_RANGE)),
        ("map", mapped(file, WRITE, |_| ()).is_some()),
        (
            "mprotect",
            // SAFETY: the mapping just made.
            mapped(file, READ, |at| unsafe { libc::mprotect(at, BYTES, WRITE) == 0 })
                != Some(false),
        ),
        (
            "remove",
            // SAFETY: as above.
            mapped(file, READ, |at| unsafe { libc::madvise(at, BYTES, libc::MADV_REMOVE) == 0 })
                != Some(false),
        ),
        (
            "mem",
            mapped(file, READ, |at| own_memory.write_at(&[9; 10], at.addr() as u64).is_ok())
                != Some(false),
        ),
        (
            "seal",
            // SAFETY: concerns the file only.
            unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_EXEC) == 0 },
        ),
    ];
    attempts.into_iter().filter(|(_, done)| *done).map(|(what, _)| what).collect()
}

/// As handed out, and as whoever is allowed to can open it again.
fn all_successes(memory: OwnedFd) -> Vec<&'static str> {
    let memory = File::from(memory);
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    let mut all = successes(&memory);
    // For who has the right to it.
    let _ = memory.set_permissions(Permissions::from_mode(0o666));
    if let Ok(again) = File::options().read(true).write(true).open(&path) {
        all.extend(successes(&again));
    }
    if File::options().write(true).truncate(true).open(&path).is_ok() {
        all.push("truncating open");
    }
    all
}

#[test]
fn nobody_writes_through_a_handle() {
    let name = "attempts::nobody_writes_through_a_handle";
    if let Some(memory) = child::handed() {
        assert_eq!(all_successes(memory), Vec::<&str>::new());
        return;
    }
    let served = Served::full(7);
    let before = served.content();
    assert_eq!(all_successes(served.export().memory), Vec::<&str>::new());
    child::again(name, None, &served.export().memory);
    if rustix::process::geteuid().is_root() {
        child::again(name, Some(65534), &served.export().memory);
    }
    assert!(served.content() == before);
    let memory = served.export().memory;
    let flags = rustix::fs::fcntl_getfl(&memory).expect("flags");
    assert_eq!(flags & OFlags::RWMODE, OFlags::RDONLY);
    let stat = rustix::fs::fstat(&memory).expect("stat");
    assert_eq!(stat.st_size as u64, FRAME + PAGE_BYTES);
    let mut byte = [0];
    window(memory, FRAME, false).load(FRAME - 1, &mut byte).expect("load");
    assert_eq!(byte, [7]);
}

#[test]
fn only_frames_of_the_right_kind_are_attached() {
    let window = Window::new(2, FRAME, false).expect("window");
    let unfit = |memory: &dyn AsFd| {
        let refused = window.attach(1, memory.as_fd(), 1);
        assert!(matches!(refused, Err(WindowError::Unfit { .. })), "{refused:?}");
        assert!(!window.is_attached(1));
    };
    let tail = PAGE_BYTES;
    let file = tempfile::tempfile().expect("file");
    file.set_len(FRAME + tail).expect("size");
    unfit(&file);
    let (out, _into) = io::pipe().expect("pipe");
    unfit(&out);
    let flags = rustix::fs::MemfdFlags::ALLOW_SEALING;
    let unsealed = rustix::fs::memfd_create("unsealed", flags).expect("memfd");
    rustix::fs::ftruncate(&unsealed, FRAME + tail).expect("size");
    unfit(&unsealed);
    rustix::fs::fcntl_add_seals(&unsealed, rustix::fs::SealFlags::SHRINK).expect("seal");
    unfit(&unsealed);
    rustix::fs::fcntl_add_seals(&unsealed, rustix::fs::SealFlags::GROW).expect("seal");
    window.attach(1, unsealed.as_fd(), 1).expect("attach");
    window.detach(1);
    let unnumbered = window.attach(1, unsealed.as_fd(), 0);
    assert!(matches!(unnumbered, Err(WindowError::Unfit { .. })), "{unnumbered:?}");
    let large = Served::empty(2 * FRAME);
    unfit(&large.export().memory);
    let served = Served::empty(FRAME);
    let index = window.attach(2, served.export().memory.as_fd(), 1);
    assert!(matches!(index, Err(WindowError::Index { index: 2, frames: 2 })), "{index:?}");
    for (frames, frame_bytes) in [(0, FRAME), (1, FRAME + 4096), (1, 4096), (1, 1 << 40)] {
        assert!(Window::new(frames, frame_bytes, false).is_err(), "{frames} {frame_bytes}");
    }
    assert!(Window::new(u64::MAX / FRAME, FRAME, false).is_err());
}

#[test]
fn what_cannot_be_exported_is_refused() {
    use pageferry_device::{DeviceError, FrameId};
    let d = device(2, FRAME);
    let frame = d.alloc_frame().expect("frame");
    for frame in [frame, FrameId(1), FrameId(9)] {
        let refused = d.export_frame(frame);
        assert!(matches!(refused, Err(DeviceError::Invalid { .. })), "{refused:?}");
    }
    let at = d.reserve_region().expect("region");
    d.attach(at, frame).expect("attach");
    let refused = d.reassign_frame(frame, false);
    assert!(matches!(refused, Err(DeviceError::Invalid { .. })), "{refused:?}");
    d.export_frame(frame).expect("export");
    d.lose();
    assert!(matches!(d.export_frame(frame), Err(DeviceError::Lost)));
    let plain = pageferry_soft::SoftDevice::new(Default::default()).expect("device");
    let frame = plain.alloc_frame().expect("frame");
    assert!(matches!(plain.export_frame(frame), Err(DeviceError::Unsupported { .. })));
    assert_eq!(plain.reassign_frame(frame, false), Ok(()));
}
