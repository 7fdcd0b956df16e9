//! The device's memory: one anonymous mapping, and one word of state per page.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use pageferry_device::{Access, FaultReason, PAGE_BYTES};
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};

use crate::page_state::{Hold, PageState};

/// An anonymous mapping that is empty again in a forked child: there it is memory of the child's own,
/// of zeros, so that nothing done with it or to it there concerns anybody else.
///
/// # Invariants
/// - `[base, base + bytes)` is mapped, readable and writable, and ours, in the process that made it
///   and in its children.
struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize, huge: bool) -> io::Result<Mapping> {
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

    fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: the range is ours, and none of the advices used changes its content here.
        unsafe { mm::madvise(self.base.as_ptr().cast(), self.bytes, advice) }?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone, in a child too; no slice of it outlives the arena.
        let _ = unsafe { mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Device memory.
///
/// # Invariants
/// - Page `n`'s bytes are read or written only under the lock of `states[n]`: shared for reading,
///   exclusive for writing.
/// - `states` are `pages` states and one word more, which is not zero in the process that made the
///   arena, and zero in its children.
pub(crate) struct Arena {
    memory: Mapping,
    states: Mapping,
    pages: u64,
}

const STATE_BYTES: u64 = size_of::<PageState>() as u64;

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
        let states = Mapping::new(bytes((pages + 1) * STATE_BYTES)?, false)?;
        let arena = Arena { memory, states, pages };
        arena.canary().store(1, Ordering::Relaxed);
        Ok(arena)
    }

    fn canary(&self) -> &AtomicU32 {
        let word = self.states.base.as_ptr().wrapping_add((self.pages * STATE_BYTES) as usize);
        // SAFETY: in bounds of the states' mapping, behind the last of them, aligned; any word is a
        // valid `AtomicU32`; it lives as long as `self`.
        unsafe { &*word.cast::<AtomicU32>() }
    }

    /// Whether this is the process that made it; in a forked child everything is empty.
    pub(crate) fn is_ours(&self) -> bool {
        self.canary().load(Ordering::Relaxed) != 0
    }

    /// The state of a page.
    pub(crate) fn state(&self, page: u64) -> &PageState {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        let state = self.states.base.as_ptr().wrapping_add((page * STATE_BYTES) as usize);
        // SAFETY: in bounds of the states' mapping, aligned; it was zeroed memory: a valid
        // `PageState` (a transparent `AtomicU32`); it lives as long as `self`.
        unsafe { &*state.cast::<PageState>() }
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

    /// Locks the pages `[at, at + len)` touches for a kernel's access, up to the first that faults;
    /// with the bytes before it.
    pub(crate) fn access(
        &self,
        at: u64,
        len: u64,
        access: Access,
    ) -> Result<Piece<'_>, FaultReason> {
        let (locked, len) = Locked::access(self, at, len, access)?;
        Ok(Piece { locked, at, len })
    }
}

/// Bytes that a kernel may access, locked.
pub(crate) struct Piece<'a> {
    locked: Locked<'a>,
    at: u64,
    len: u64,
}

impl Piece<'_> {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.locked.bytes(self.at, self.len)
    }

    /// Of a [`Access::Write`].
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.locked.bytes_mut(self.at, self.len)
    }
}

/// Locks of consecutive pages, given back on drop (also when a closure panics).
///
/// # Invariants
/// - The pages `[first, first + count)` have been locked so by this value, in ascending order, which
///   is what keeps several of these from waiting for each other.
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
        assert_eq!(self.hold, Hold::Exclusive);
        // SAFETY: as in `bytes`; the locks are exclusive, so this is the only slice of the pages.
        unsafe { std::slice::from_raw_parts_mut(self.start(at), len as usize) }
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        for page in self.first..self.first + self.count {
            // SAFETY: by the invariant this value holds it so, and no slice outlives the value.
            unsafe { self.arena.state(page).unlock(self.hold) };
        }
    }
}
