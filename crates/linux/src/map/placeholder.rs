//! What stands where a map's pages are away.
//!
//! Under `mlockall(MCL_FUTURE)` the kernel locks new memory and fills it at once: with zeros that
//! never trap, and as much of it as is taken away. Memory that nobody may access it does not fill
//! (seen on 6.18); so a placeholder becomes accessible only when it is unlocked and registered.

use std::ffi::c_void;

use rustix::io::Errno;
use rustix::mm::{
    MapFlags, MprotectFlags, MremapFlags, ProtFlags, mmap_anonymous, mprotect, mremap_fixed,
    munlock, munmap,
};

use super::{MapError, keep_from_children};
use crate::uffd::Uffd;

/// Anonymous memory without a page in it, registered for missing faults, not yet in place.
///
/// # Invariants
/// `[start, start + len)` is mapped, ours, and known to nobody else.
pub(super) struct Placeholder {
    start: *mut c_void,
    len: usize,
}

/// Why there is no placeholder.
pub(super) enum NoPlaceholder {
    /// No address space of that length is to be had: a shorter one may be.
    NoSpace(Errno),
    Other(MapError),
}

impl From<NoPlaceholder> for MapError {
    fn from(why: NoPlaceholder) -> MapError {
        match why {
            NoPlaceholder::NoSpace(errno) => MapError::of("mmap", errno),
            NoPlaceholder::Other(error) => error,
        }
    }
}

impl Placeholder {
    pub(super) fn new(uffd: &Uffd, len: usize) -> Result<Placeholder, NoPlaceholder> {
        let null = std::ptr::null_mut();
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a mapping at an address of the kernel's choice takes the place of no other.
        let mapped = unsafe { mmap_anonymous(null, len, ProtFlags::empty(), flags) };
        let start = mapped.map_err(|errno| match errno {
            Errno::NOMEM => NoPlaceholder::NoSpace(errno),
            errno => NoPlaceholder::Other(MapError::of("mmap", errno)),
        })?;
        let placeholder = Placeholder { start, len };
        placeholder.arm(uffd).map_err(NoPlaceholder::Other)?;
        Ok(placeholder)
    }

    fn arm(&self, uffd: &Uffd) -> Result<(), MapError> {
        let Placeholder { start, len } = *self;
        keep_from_children(start, len)?;
        // SAFETY: unlocking changes no contents.
        unsafe { munlock(start, len) }.map_err(|e| MapError::of("munlock", e))?;
        // SAFETY: the range is anonymous memory of ours that nobody knows, in the process whose
        // userfaultfd this is (checked by the map, which is this process's too).
        unsafe { uffd.register(start.addr()..start.addr() + len) }
            .map_err(|e| MapError::of("ioctl(UFFDIO_REGISTER)", e))?;
        // SAFETY: nobody knows the range, so that nobody relies on its protection.
        unsafe { mprotect(start, len, MprotectFlags::READ | MprotectFlags::WRITE) }
            .map_err(|e| MapError::of("mprotect", e))
    }

    /// Moves it over a range of a map, which must be of the same length.
    pub(super) fn move_to(self, to: *mut c_void) -> Result<(), Errno> {
        // SAFETY: the source is ours and unknown; the destination is a part of a map, to which
        // nothing in Rust holds references. Accesses to it wait from then on.
        unsafe { mremap_fixed(self.start, self.len, self.len, MremapFlags::MAYMOVE, to) }?;
        // It is part of the map now.
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        // SAFETY: by the invariant it is ours alone. Failing leaves it mapped, which is sound.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}
