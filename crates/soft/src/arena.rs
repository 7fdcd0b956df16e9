//! The device's memory: one anonymous mapping, and one state byte per page.

use std::io;
use std::ptr::NonNull;

use pageferry_device::{Access, FaultReason, PAGE_BYTES};
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::page_state::{Hold, PageState};

/// An anonymous mapping that a forked child does not inherit.
struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize, huge: bool) -> io::Result<Mapping> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe { mm::mmap_anonymous(std::ptr::null_mut(), bytes, prot, flags) }?;
        let Some(base) = NonNull::new(base.cast::<u8>()) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        let mapping = Mapping { base, bytes };
        mapping.advise(Advice::LinuxDontFork)?;
        mapping.advise(Advice::LinuxDontDump)?;
        if huge {
            // Only speed depends on it; kernels without THP refuse.
            let _ = mapping.advise(Advice::LinuxHugepage);
        }
        Ok(mapping)
    }

    fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: the range is ours, and none of the advices used changes its content.
        unsafe { mm::madvise(self.base.as_ptr().cast(), self.bytes, advice) }?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone; no slice of it outlives the arena.
        let _ = unsafe { mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Device memory.
///
/// # Invariants
/// - Page `n`'s bytes are read or written only under the lock of `states[n]`: shared for reading,
///   exclusive for writing.
pub(crate) struct Arena {
    memory: Mapping,
    states: Mapping,
    pages: u64,
}

// SAFETY: the memory is reached only under the page locks (the type's invariant), and the states
// are atomics; nothing depends on the thread.
unsafe impl Send for Arena {}
// SAFETY: as for `Send`.
unsafe impl Sync for Arena {}

impl Arena {
    /// Memory of so many pages; costs host memory only where it is touched.
    pub(crate) fn new(pages: u64) -> io::Result<Arena> {
        let bytes =
            |n: u64| usize::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory));
        let memory = Mapping::new(bytes(pages * PAGE_BYTES)?, true)?;
        let states = Mapping::new(bytes(pages)?, false)?;
        Ok(Arena { memory, states, pages })
    }

    /// The state of a page.
    pub(crate) fn state(&self, page: u64) -> &PageState {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        let state = self.states.base.as_ptr().wrapping_add(page as usize).cast::<PageState>();
        // SAFETY: in bounds of the states' mapping, which is zeroed memory: a valid `PageState`
        // (a transparent `AtomicU8`); it lives as long as `self`.
        unsafe { &*state }
    }

    /// Locks the pages `[at, at + len)` touches, in ascending order, and calls `f` with the bytes.
    pub(crate) fn copy_out<T>(&self, at: u64, len: u64, f: impl FnOnce(&[u8]) -> T) -> T {
        let locked = Locked::copies(self, at, len, Hold::Shared);
        f(locked.bytes(at, len))
    }

    /// As [`copy_out`](Self::copy_out), to be written.
    pub(crate) fn copy_in<T>(&self, at: u64, len: u64, f: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut locked = Locked::copies(self, at, len, Hold::Exclusive);
        f(locked.bytes_mut(at, len))
    }

    /// A kernel's load of `[at, at + len)`: pages up to the first that faults are handed to `f` as
    /// one slice. Returns the bytes handed over.
    pub(crate) fn load(
        &self,
        at: u64,
        len: u64,
        f: impl FnOnce(&[u8]),
    ) -> Result<u64, FaultReason> {
        let (locked, len) = Locked::access(self, at, len, Access::Read)?;
        f(locked.bytes(at, len));
        Ok(len)
    }

    /// As [`load`](Self::load), for a store.
    pub(crate) fn store(
        &self,
        at: u64,
        len: u64,
        f: impl FnOnce(&mut [u8]),
    ) -> Result<u64, FaultReason> {
        let (mut locked, len) = Locked::access(self, at, len, Access::Write)?;
        f(locked.bytes_mut(at, len));
        Ok(len)
    }
}

/// Locks of consecutive pages, given back on drop (also when a closure panics).
struct Locked<'a> {
    arena: &'a Arena,
    first: u64,
    count: u64,
    hold: Hold,
}

impl<'a> Locked<'a> {
    fn copies(arena: &'a Arena, at: u64, len: u64, hold: Hold) -> Locked<'a> {
        let first = at / PAGE_BYTES;
        let mut locked = Locked { arena, first, count: 0, hold };
        for page in first..(at + len).div_ceil(PAGE_BYTES) {
            arena.state(page).lock(hold);
            locked.count += 1;
        }
        locked
    }

    fn access(
        arena: &'a Arena,
        at: u64,
        len: u64,
        access: Access,
    ) -> Result<(Locked<'a>, u64), FaultReason> {
        let hold = if access == Access::Write { Hold::Exclusive } else { Hold::Shared };
        let first = at / PAGE_BYTES;
        let mut locked = Locked { arena, first, count: 0, hold };
        for page in first..(at + len).div_ceil(PAGE_BYTES) {
            match arena.state(page).access(access) {
                Ok(()) => locked.count += 1,
                Err(reason) if locked.count == 0 => return Err(reason),
                Err(_) => break,
            }
        }
        let end = (at + len).min((first + locked.count) * PAGE_BYTES);
        Ok((locked, end - at))
    }

    fn check(&self, at: u64, len: u64) {
        let inside = at >= self.first * PAGE_BYTES
            && at + len <= (self.first + self.count) * PAGE_BYTES
            && at + len <= self.arena.pages * PAGE_BYTES;
        assert!(inside, "bytes {at}..{} are not locked", at + len);
    }

    fn start(&self, at: u64) -> *mut u8 {
        self.arena.memory.base.as_ptr().wrapping_add(at as usize)
    }

    fn bytes(&self, at: u64, len: u64) -> &[u8] {
        self.check(at, len);
        // SAFETY: inside the arena's mapping (checked), initialised (anonymous memory), and the
        // pages' locks are held: shared, so nobody writes, for as long as `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.start(at), len as usize) }
    }

    fn bytes_mut(&mut self, at: u64, len: u64) -> &mut [u8] {
        self.check(at, len);
        debug_assert_eq!(self.hold, Hold::Exclusive);
        // SAFETY: as in `bytes`; the locks are exclusive, so this is the only slice of the pages.
        unsafe { std::slice::from_raw_parts_mut(self.start(at), len as usize) }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        for page in self.first..self.first + self.count {
            self.arena.state(page).unlock(self.hold);
        }
    }
}
