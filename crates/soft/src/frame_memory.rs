//! The memory of one frame that other processes can map, and its layout.
//!
//! A memfd of its own: the frame's bytes, then the *tail*: the [`FrameUse`], and one [`Stamp`] per page, rounded up
//! to whole pages. Once this process has mapped it, it is sealed for ever against other writers and other sizes:
//! nobody who is handed it can change a byte of it, or make an access of it fail, whoever they are.
//!
//! Memory that was exported is never given to another file. Nobody can tell whether a former client
//! still sees it: descriptions of it and mappings can be found (a lease on it is refused meanwhile),
//! but not the pages that sit in a pipe by `splice`; inotify merges equal events, so that counting opens
//! and closes does not help either. `tests/memfd.rs` shows these.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;

use pageferry_device::PAGE_BYTES;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::stamp::{FrameUse, Stamp};

/// Frames of at least this size are made of huge pages where the host has them: filling 512 small
/// pages for the first time costs ten times what one huge page does.
const HUGE_BYTES: usize = 2 << 20;

/// Where the stamps begin in the tail; the use is at its start.
const STAMPS_OFFSET: u64 = size_of::<FrameUse>() as u64;

/// Bytes of the tail of a frame.
pub(crate) fn tail_bytes(frame_bytes: u64) -> u64 {
    stamp_offset(frame_bytes / PAGE_BYTES).next_multiple_of(PAGE_BYTES)
}

/// Where the stamp of a frame's page is in the tail.
pub(crate) fn stamp_offset(page: u64) -> u64 {
    STAMPS_OFFSET + page * size_of::<Stamp>() as u64
}

/// A frame's memory.
///
/// # Invariants
/// - In the process that made it, `[base, base + bytes)` is a shared, writable mapping of `file` from
///   its beginning. In its children nothing of it is mapped, and something of theirs may be there.
pub(crate) struct FrameMemory {
    file: OwnedFd,
    map: Map,
}

struct Map {
    base: NonNull<u8>,
    bytes: usize,
    /// Of these, before the tail.
    frame_bytes: usize,
}

// SAFETY: an address and a descriptor; what is there is for its users to share correctly.
unsafe impl Send for FrameMemory {}

impl FrameMemory {
    /// Fresh memory, all zero, every page of it not present.
    pub(crate) fn new(frame_bytes: u64) -> io::Result<FrameMemory> {
        let file_bytes = frame_bytes + tail_bytes(frame_bytes);
        let file = memfd()?;
        rustix::fs::ftruncate(&file, file_bytes)?;
        let map = Map::new(&file, file_bytes as usize, frame_bytes as usize)?;
        rustix::fs::fcntl_add_seals(
            &file,
            SealFlags::FUTURE_WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
        )?;
        // The seals are what counts; this refuses the attempt already.
        rustix::fs::fchmod(&file, Mode::RUSR)?;
        Ok(FrameMemory { file, map })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.map.base
    }

    /// Which use of the frame it is in.
    pub(crate) fn frame_use(&self) -> &FrameUse {
        let tail = self.map.base.as_ptr().wrapping_add(self.map.frame_bytes);
        // SAFETY: mapped for as long as `self` is borrowed, aligned to a page; any word is a valid `FrameUse`.
        unsafe { &*tail.cast::<FrameUse>() }
    }

    /// A description of its own, which cannot write.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(path, flags, Mode::empty())?)
    }

    /// In a forked child, where the mapping is not there: closes the child's descriptor.
    pub(crate) fn forget(self) {
        std::mem::forget(self.map);
    }
}

fn memfd() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(c"pageferry frame", flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(rustix::io::Errno::INVAL) => Ok(rustix::fs::memfd_create(c"pageferry frame", flags)?),
        made => Ok(made?),
    }
}

impl Map {
    fn new(file: &OwnedFd, bytes: usize, frame_bytes: usize) -> io::Result<Map> {
        let hint = if frame_bytes >= HUGE_BYTES { aligned_gap(bytes)? } else { 0 };
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        let at = std::ptr::without_provenance_mut(hint);
        // SAFETY: without `MAP_FIXED` a new mapping replaces nothing, whatever is at the hint.
        let base = unsafe { mm::mmap(at, bytes, flags, MapFlags::SHARED, file.as_fd(), 0) }?;
        let Some(base) = NonNull::new(base.cast::<u8>()) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        let map = Map { base, bytes, frame_bytes };
        // What a child stored would be stored here, and it may be forked under our locks.
        map.advise(Advice::LinuxDontFork)?;
        map.advise(Advice::LinuxDontDump)?;
        if frame_bytes >= HUGE_BYTES {
            map.collapse(frame_bytes);
        }
        Ok(map)
    }

    fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: the range is ours, and none of the advices used changes its content here.
        unsafe { mm::madvise(self.base.as_ptr().cast(), self.bytes, advice) }?;
        Ok(())
    }

    /// Asks for huge pages under the frame's bytes, at once: those of a memfd are usually not made on
    /// demand. Only speed depends on it; kernels before 6.1, or without huge pages, refuse.
    fn collapse(&self, frame_bytes: usize) {
        if self.advise(Advice::LinuxHugepage).is_err() {
            return;
        }
        for start in (0..frame_bytes).step_by(HUGE_BYTES) {
            let at = self.base.as_ptr().wrapping_add(start);
            // A range without any page is not collapsed.
            // SAFETY: inside of our mapping, which nobody else knows yet.
            unsafe { at.write_volatile(0) };
            // SAFETY: the range is ours; its content stays.
            let refused = unsafe { libc::madvise(at.cast(), HUGE_BYTES, libc::MADV_COLLAPSE) };
            if refused != 0 {
                return;
            }
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: ours alone in the process that made it, and forgotten in its children; its owner
        // lets nothing in it be used any more.
        let _ = unsafe { mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// An address for a mapping whose huge pages shall be aligned; it is free unless another thread takes
/// it, and then the mapping lies elsewhere and is slower.
fn aligned_gap(bytes: usize) -> io::Result<usize> {
    let room = bytes + HUGE_BYTES;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice replaces nothing.
    let found =
        unsafe { mm::mmap_anonymous(std::ptr::null_mut(), room, ProtFlags::empty(), flags) }?;
    // SAFETY: the mapping just made, which nobody else knows.
    unsafe { mm::munmap(found, room) }?;
    Ok(found.addr().next_multiple_of(HUGE_BYTES))
}
