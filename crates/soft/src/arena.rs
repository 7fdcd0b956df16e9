//! The device's memory, and one word of state per page.
//!
//! It is one anonymous mapping; or, where other processes are to map it, memory of its own for each
//! frame (see [`exports`](crate::exports)), which has a [`Stamp`] for each page beside its bytes.

use std::io;
use std::ptr::NonNull;

use pageferry_device::{Access, DeviceError, FaultReason, FrameId, PAGE_BYTES};

use crate::exports::Exports;
use crate::frame_memory::stamp_offset;
use crate::mapping::{Canary, Mapping};
use crate::page_state::{Hold, PageState};
use crate::stamp::Stamp;

/// Device memory.
///
/// # Invariants
/// - Page `n`'s bytes are read or written only under the lock of `states[n]`: shared for reading,
///   exclusive for writing. Its stamp is touched only under the exclusive lock.
/// - The place of a frame's memory changes only under the exclusive locks of all its pages.
pub(crate) struct Arena {
    memory: Memory,
    states: Mapping,
    canary: Canary,
    pages: u64,
    frame_bytes: u64,
}

enum Memory {
    Private(Mapping),
    Exportable(Exports),
}

const STATE_BYTES: u64 = size_of::<PageState>() as u64;

impl Arena {
    /// Memory of so many frames; costs host memory only where it is touched, or a frame is in use.
    pub(crate) fn new(frames: u64, frame_bytes: u64, exportable: bool) -> io::Result<Arena> {
        let bytes =
            |n: u64| usize::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory));
        let pages = frames * (frame_bytes / PAGE_BYTES);
        let memory = if exportable {
            Memory::Exportable(Exports::new(frames, frame_bytes))
        } else {
            Memory::Private(Mapping::new(bytes(frames * frame_bytes)?, true)?)
        };
        let states = Mapping::new(bytes(pages * STATE_BYTES)?, false)?;
        Ok(Arena { memory, states, canary: Canary::new()?, pages, frame_bytes })
    }

    /// Whether this is the process that made it; in a forked child everything is empty.
    pub(crate) fn is_ours(&self) -> bool {
        self.canary.is_ours()
    }

    pub(crate) fn exports(&self) -> Option<&Exports> {
        match &self.memory {
            Memory::Private(_) => None,
            Memory::Exportable(exports) => Some(exports),
        }
    }

    /// The state of a page.
    pub(crate) fn state(&self, page: u64) -> &PageState {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        let state = self.states.base().as_ptr().wrapping_add((page * STATE_BYTES) as usize);
        // SAFETY: in bounds of the states' mapping, aligned; it was zeroed memory: a valid
        // `PageState` (a transparent `AtomicU32`); it lives as long as `self`.
        unsafe { &*state.cast::<PageState>() }
    }

    /// Sets the permission of a page; see [`PageState::protect`].
    pub(crate) fn protect(&self, page: u64, access: Option<Access>) {
        if self.state(page).protect(access) {
            self.publish(page);
        }
    }

    /// Makes a page not present and clean; see [`PageState::reset`].
    pub(crate) fn reset(&self, page: u64) {
        if self.state(page).reset() {
            self.publish(page);
        }
    }

    /// Tells other processes whether a page is present. Of two changes at a time the last one to come
    /// here finds both.
    fn publish(&self, page: u64) {
        if self.exports().is_some() {
            let locked = Locked::lock(self, page * PAGE_BYTES, PAGE_BYTES, Hold::Exclusive);
            for (state, stamp) in locked.stamps() {
                stamp.set_present(state.is_present());
            }
        }
    }

    /// The pages of a frame.
    pub(crate) fn pages(&self, frame: FrameId) -> std::ops::Range<u64> {
        let pages = self.frame_bytes / PAGE_BYTES;
        u64::from(frame.0) * pages..(u64::from(frame.0) + 1) * pages
    }

    /// Locks the pages `[at, at + len)` touches, in ascending order, and calls `f` with the bytes.
    /// They must be of one frame.
    ///
    /// # Errors
    /// Those of `f`; [`DeviceError::Invalid`] if the frame has no memory.
    pub(crate) fn copy_out<E: From<DeviceError>>(
        &self,
        at: u64,
        len: u64,
        f: impl FnOnce(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let locked = Locked::lock(self, at, len, Hold::Shared);
        f(locked.begin()?.bytes(at, len))
    }

    /// As [`copy_out`](Self::copy_out), to be written.
    pub(crate) fn copy_in<E: From<DeviceError>>(
        &self,
        at: u64,
        len: u64,
        f: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut held = Locked::lock(self, at, len, Hold::Exclusive).begin()?;
        held.erase_leftovers(at, len);
        f(held.bytes_mut(at, len))?;
        held.forget_leftovers();
        Ok(())
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
        let mut held = locked.begin().map_err(|_| FaultReason::NotPresent)?;
        if access == Access::Write {
            held.erase_leftovers(at, 0);
        }
        Ok(Piece { held, at, len })
    }

    /// Notes that the pages of a frame hold bytes of its former use.
    pub(crate) fn leave(&self, frame: FrameId) {
        for page in self.pages(frame) {
            let state = self.state(page);
            let _lock = Locked::lock(self, page * PAGE_BYTES, PAGE_BYTES, Hold::Exclusive);
            state.set_leftovers(true);
        }
    }

    /// Sets the pages of a frame to zero that hold bytes of its former use.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if the frame has no memory.
    pub(crate) fn scrub(&self, frame: FrameId) -> Result<(), DeviceError> {
        for page in self.pages(frame).filter(|page| self.state(*page).has_leftovers()) {
            let at = page * PAGE_BYTES;
            // Whoever overwrote the page meanwhile has taken the mark away: then nothing is erased.
            let mut held = Locked::lock(self, at, PAGE_BYTES, Hold::Exclusive).begin()?;
            held.erase_leftovers(at, 0);
        }
        Ok(())
    }

    /// Calls `swap`, which exchanges the memory of a frame for another or for none, when nobody uses
    /// it. Fresh memory holds nothing of a former use.
    pub(crate) fn exchange<T>(&self, frame: FrameId, swap: impl FnOnce() -> T) -> T {
        let start = u64::from(frame.0) * self.frame_bytes;
        let locked = Locked::lock(self, start, self.frame_bytes, Hold::Exclusive);
        let old = swap();
        for page in self.pages(frame) {
            self.state(page).set_leftovers(false);
        }
        for (state, stamp) in locked.stamps() {
            stamp.set_present(state.is_present());
        }
        old
    }

    /// Whether a frame can be copied to.
    pub(crate) fn has_memory(&self, frame: FrameId) -> bool {
        self.place(frame).is_some()
    }

    /// Where a frame's memory is, under the lock of any of its pages.
    fn place(&self, frame: FrameId) -> Option<NonNull<u8>> {
        match &self.memory {
            Memory::Private(mapping) => {
                let start = u64::from(frame.0) * self.frame_bytes;
                NonNull::new(mapping.base().as_ptr().wrapping_add(start as usize))
            }
            Memory::Exportable(exports) => exports.place(frame),
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let ours = self.is_ours();
        if let Memory::Exportable(exports) = &mut self.memory {
            exports.close(ours);
        }
    }
}

/// Bytes that a kernel may access, locked.
pub(crate) struct Piece<'a> {
    held: Held<'a>,
    at: u64,
    len: u64,
}

impl Piece<'_> {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.held.bytes(self.at, self.len)
    }

    /// Of a [`Access::Write`].
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.held.bytes_mut(self.at, self.len)
    }
}

/// Locks of consecutive pages of one frame, given back on drop (also when a closure panics).
///
/// # Invariants
/// - The pages `[first, first + count)` have been locked so by this value, in ascending order, which
///   is what keeps several of these from waiting for each other.
/// - They are of `frame`.
struct Locked<'a> {
    arena: &'a Arena,
    frame: FrameId,
    first: u64,
    count: u64,
    hold: Hold,
}

impl<'a> Locked<'a> {
    /// No page, with room for those of `[at, at + len)`.
    fn none(arena: &'a Arena, at: u64, len: u64, hold: Hold) -> Locked<'a> {
        let frame = at / arena.frame_bytes;
        let inside = len > 0 && at + len <= (frame + 1) * arena.frame_bytes;
        assert!(inside, "bytes {at}..{} are not of one frame", at + len);
        Locked { arena, frame: FrameId(frame as u32), first: at / PAGE_BYTES, count: 0, hold }
    }

    fn lock(arena: &'a Arena, at: u64, len: u64, hold: Hold) -> Locked<'a> {
        let mut locked = Locked::none(arena, at, len, hold);
        for page in at / PAGE_BYTES..(at + len).div_ceil(PAGE_BYTES) {
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
        let mut locked = Locked::none(arena, at, len, hold);
        for page in at / PAGE_BYTES..(at + len).div_ceil(PAGE_BYTES) {
            match arena.state(page).access(access) {
                Ok(()) => locked.count += 1,
                Err(reason) if locked.count == 0 => return Err(reason),
                Err(_) => break,
            }
        }
        let end = (at + len).min((locked.first + locked.count) * PAGE_BYTES);
        Ok((locked, end - at))
    }

    /// The locked pages' states and stamps; none if the memory is not exportable, or not there.
    fn stamps(&self) -> impl Iterator<Item = (&PageState, &Stamp)> {
        let exportable = self.arena.exports().is_some();
        let place = self.arena.place(self.frame).filter(|_| exportable && self.count > 0);
        let pages = self.first..self.first + self.count;
        let base = self.arena.pages(self.frame).start;
        pages.filter_map(move |page| {
            let offset = self.arena.frame_bytes + stamp_offset(page - base);
            let stamp = place?.as_ptr().wrapping_add(offset as usize).cast::<Stamp>();
            // SAFETY: in the tail of the frame's memory (`tail_bytes`), aligned; any word is a valid
            // `Stamp`; the page is locked for as long as `self` is borrowed, so it stays mapped.
            Some((self.arena.state(page), unsafe { &*stamp }))
        })
    }

    /// Goes on to the bytes.
    fn begin(self) -> Result<Held<'a>, DeviceError> {
        // A closure may have forked.
        if !self.arena.is_ours() {
            return Err(DeviceError::Lost);
        }
        let Some(place) = self.arena.place(self.frame) else {
            let what = "the frame has no memory: it was never allocated, or that failed";
            return Err(DeviceError::Invalid { what, frame: Some(self.frame) });
        };
        if self.hold == Hold::Exclusive {
            self.stamps().for_each(|(_, stamp)| stamp.begin_write());
        }
        Ok(Held { locked: self, place })
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

/// The bytes of locked pages.
///
/// # Invariants
/// - `place` is where the memory of the locks' frame is; it is not empty of locks, so it stays.
/// - With exclusive locks, the pages' stamps say that they are being written to.
struct Held<'a> {
    locked: Locked<'a>,
    place: NonNull<u8>,
}

impl Held<'_> {
    fn check(&self, at: u64, len: u64) {
        let Locked { first, count, .. } = self.locked;
        let inside = at >= first * PAGE_BYTES && at + len <= (first + count) * PAGE_BYTES;
        assert!(inside, "bytes {at}..{} are not locked", at + len);
    }

    fn start(&self, at: u64) -> *mut u8 {
        self.place.as_ptr().wrapping_add((at % self.locked.arena.frame_bytes) as usize)
    }

    fn bytes(&self, at: u64, len: u64) -> &[u8] {
        self.check(at, len);
        // SAFETY: inside the frame's memory (checked: it has the locked pages), initialised (it was
        // zero), and the pages' locks are held: shared, so nobody writes, for as long as `self` is
        // borrowed.
        unsafe { std::slice::from_raw_parts(self.start(at), len as usize) }
    }

    fn bytes_mut(&mut self, at: u64, len: u64) -> &mut [u8] {
        self.check(at, len);
        assert_eq!(self.locked.hold, Hold::Exclusive);
        // SAFETY: as in `bytes`; the locks are exclusive, so this is the only slice of the pages in
        // this process. Others only read, and keep nothing that they read meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.start(at), len as usize) }
    }

    /// Sets the pages to zero that hold bytes of the frame's former use, except those that
    /// `[at, at + len)` covers.
    fn erase_leftovers(&mut self, at: u64, len: u64) {
        for page in self.locked.first..self.locked.first + self.locked.count {
            let start = page * PAGE_BYTES;
            let covered = at <= start && start + PAGE_BYTES <= at + len;
            if !covered && self.locked.arena.state(page).has_leftovers() {
                self.bytes_mut(start, PAGE_BYTES).fill(0);
                self.locked.arena.state(page).set_leftovers(false);
            }
        }
    }

    /// After all of the pages that still had any were overwritten.
    fn forget_leftovers(&mut self) {
        for page in self.locked.first..self.locked.first + self.locked.count {
            let state = self.locked.arena.state(page);
            if state.has_leftovers() {
                state.set_leftovers(false);
            }
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // A child that was forked meanwhile has neither the bytes nor the stamps.
        if self.locked.hold == Hold::Exclusive && self.locked.arena.is_ours() {
            self.locked.stamps().for_each(|(_, stamp)| stamp.end_write());
        }
    }
}
