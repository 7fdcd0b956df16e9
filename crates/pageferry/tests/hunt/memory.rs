//! Shared mappings, and the little else that is unsafe here.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, MprotectFlags, MsyncFlags, ProtFlags};

/// A `MAP_SHARED` mapping of a file.
pub struct Mapping {
    base: *mut u8,
    bytes: usize,
}

// SAFETY: all access is through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub fn new(file: impl AsFd, at: u64, bytes: usize, writable: bool) -> io::Result<Mapping> {
        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let null = std::ptr::null_mut();
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let base = unsafe { rustix::mm::mmap(null, bytes, prot, MapFlags::SHARED, file, at) }?;
        Ok(Mapping { base: base.cast(), bytes })
    }

    /// A word of it. Whoever stores to it has mapped it for that; it lies before the file's end.
    pub fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.bytes, "outside of the mapping");
        let word = self.base.wrapping_add(at).cast();
        // SAFETY: inside the mapping, which lives as long as the reference, and aligned; every process
        // accesses it as an atomic or through the kernel.
        unsafe { AtomicU64::from_ptr(word) }
    }

    pub fn make_writable(&self) -> io::Result<()> {
        let prot = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: our own mapping; nothing relies on its being read-only.
        Ok(unsafe { rustix::mm::mprotect(self.base.cast(), self.bytes, prot) }?)
    }

    pub fn sync(&self, wait: bool) -> io::Result<()> {
        let flags = if wait { MsyncFlags::SYNC } else { MsyncFlags::ASYNC };
        // SAFETY: our own mapping, whose bytes stay what they are.
        Ok(unsafe { rustix::mm::msync(self.base.cast(), self.bytes, flags) }?)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nobody refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.bytes) };
    }
}

/// What direct reads and writes take.
#[repr(align(4096))]
pub struct Page(pub [u8; 4096]);

impl Page {
    pub fn new() -> Page {
        Page([0; 4096])
    }

    pub fn fill(&mut self, number: u64) {
        self.0.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&number.to_le_bytes()));
    }

    pub fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(*self.0[at..].first_chunk().expect("inside the page"))
    }
}

/// A hunter that fails leaves nobody behind.
pub fn die_with_parent() {
    // SAFETY: sets a property of this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// `sync_file_range(2)`: starts or awaits the writing of a range.
pub fn sync_file_range(file: impl AsFd, at: u64, bytes: u64) {
    use std::os::fd::AsRawFd;
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: plain numbers; file systems that cannot do it say so, which is no matter here.
    unsafe { libc::sync_file_range(fd, at as i64, bytes as i64, flags) };
}

/// `truncate(2)`, which opens nothing.
pub fn truncate(path: &std::ffi::CStr, bytes: u64) -> io::Result<()> {
    // SAFETY: a valid string.
    match unsafe { libc::truncate(path.as_ptr(), bytes as i64) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
