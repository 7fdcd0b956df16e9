//! Memory of this process alone.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};

/// An anonymous mapping that is empty again in a forked child: there it is memory of the child's own,
/// of zeros, so that nothing done with it or to it there concerns anybody else.
///
/// # Invariants
/// - `[base, base + bytes)` is mapped, readable and writable, and ours, in the process that made it
///   and in its children.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is an address; what is there is for its users to share correctly.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn new(bytes: usize, huge: bool) -> io::Result<Mapping> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // Under `mlockall(MCL_FUTURE)` the kernel would fill all of it at once; not what cannot be
        // accessed, nor what is not locked by the time that it can.
        let none = ProtFlags::empty();
        // SAFETY: a new anonymous mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe { mm::mmap_anonymous(std::ptr::null_mut(), bytes, none, flags) }?;
        let Some(base) = NonNull::new(base.cast::<u8>()) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        let mapping = Mapping { base, bytes };
        let start = base.as_ptr().cast();
        // SAFETY: the range is ours; unlocking changes no content.
        unsafe { mm::munlock(start, bytes) }?;
        mapping.advise(Advice::LinuxWipeOnFork)?;
        mapping.advise(Advice::LinuxDontDump)?;
        if huge {
            // Only speed depends on it; kernels without THP refuse.
            let _ = mapping.advise(Advice::LinuxHugepage);
        }
        // SAFETY: the range is ours, and nobody knows it yet.
        unsafe { mm::mprotect(start, bytes, MprotectFlags::READ | MprotectFlags::WRITE) }?;
        Ok(mapping)
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: the range is ours, and none of the advices used changes its content here.
        unsafe { mm::madvise(self.base.as_ptr().cast(), self.bytes, advice) }?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone, in a child too; nothing in it outlives its owner.
        let _ = unsafe { mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Tells the process that made it from its forked children.
pub(crate) struct Canary(Mapping);

impl Canary {
    pub(crate) fn new() -> io::Result<Canary> {
        let canary = Canary(Mapping::new(size_of::<AtomicU32>(), false)?);
        canary.word().store(1, Ordering::Relaxed);
        Ok(canary)
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the mapping is of at least one word, aligned; any word is a valid `AtomicU32`; it
        // lives as long as `self`.
        unsafe { self.0.base.cast::<AtomicU32>().as_ref() }
    }

    /// Whether this is the process that made it; in a forked child the word is zero.
    pub(crate) fn is_ours(&self) -> bool {
        self.word().load(Ordering::Relaxed) != 0
    }
}
