//! A shared mapping of a file in our own address space, parts of which can be taken away.
//!
//! # Home and away
//! Where a page is home, the mapping is a plain `MAP_SHARED` one: native speed, no traps. Where it
//! is away, an anonymous *placeholder* stands in its place, registered for missing faults with a
//! [`Uffd`]: whoever touches it waits. The two are exchanged in one step each ([`trap`] and
//! [`untrap`] tell how), so no access ever meets anything else, and nothing reads as zeros.
//!
//! # What it costs
//! A map is two VMAs (address ranges that the kernel manages): the mapping itself and its *anchor*,
//! a second mapping of the same bytes that nobody touches and from which parts of the first are
//! made anew. Each separate away range adds up to two; neighbours that are away merge (seen on
//! 6.18), and a range that has come home merges with its neighbours as well, with store tracking
//! after the next scan. `vm.max_map_count` bounds them all: [`MapError::OutOfVmas`].
//!
//! # Fork
//! All mappings are `MADV_DONTFORK`: a forked child has no mapping that could write behind the
//! parent's back. What cannot be closed is the instant between `mmap` and `madvise` in
//! [`FileMap::new`]; bringing ranges home has no such instant. In a child, a `FileMap` refuses
//! everything, loads and stores too, and its drop does nothing.
//!
//! A pointer from [`FileMap::as_ptr`] raises `SIGSEGV` in a child: `fork` leaves memory there that
//! nobody may access, lest the child's allocator puts its own there. A child made by a bare `clone`
//! system call, or one that is short of mappings, has a hole instead, which is `SIGSEGV` only until
//! something else is mapped there.
//!
//! # Beyond the end of the file
//! A map may extend beyond it, as with any `mmap`: a whole page beyond raises `SIGBUS`, and what is
//! stored between the end and the end of its page reaches nobody. [`FileMap::copy_out`] and
//! [`FileMap::copy_in`] give an error instead of the signal.
//!
//! [`trap`]: FileMap::trap
//! [`untrap`]: FileMap::untrap

mod copy;
mod error;
mod mend;
mod placeholder;
mod scalar;
mod stores;
mod trap;

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use rustix::mm::{
    Advice as Madvise, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mprotect, munlock, munmap,
};

use crate::file::HostFile;
use crate::fork::{GuardedRange, Owner};
use crate::page::{RangeSet, page_bytes};
use crate::store_tracker::StoreTracker;
use crate::uffd::Uffd;

pub use error::{AccessError, MapError};
pub use scalar::Scalar;
pub use stores::StoredPages;

/// A shared mapping of one page-aligned range of a [`HostFile`].
///
/// # Invariants
/// - In the address space of `owner`, `[base, base + len)` is mapped from construction to drop, by us alone:
///   each part by the file's pages or by a placeholder registered with `uffd`. (After a failure of
///   the kernel's half-way, the module `mend` makes it so again, or aborts.)
/// - `anchor` is a second mapping of the same file range, with the same protection, that is never
///   touched, changed, locked or registered until drop.
/// - `shape.away` holds exactly the parts where placeholders stand, `shape.loose` those parts that
///   came home and have not been registered with `tracker` since.
/// - Once a placeholder has been placed, `uffd` is alive as long as the map is: closing it would
///   turn placeholders into zeros.
#[derive(Debug)]
pub struct FileMap {
    base: NonNull<u8>,
    anchor: NonNull<u8>,
    len: usize,
    offset: u64,
    file: Arc<HostFile>,
    writable: bool,
    /// The process that made the map; a forked child has other memory at these addresses.
    owner: Owner,
    tracker: Option<Arc<StoreTracker>>,
    uffd: OnceLock<Arc<Uffd>>,
    /// Shared by copies, which need the range to stay home while they are in the kernel; whatever
    /// changes the map, and a scan for stores, excludes them. parking_lot's lock lets a waiting
    /// writer go before readers that come later, so neither side starves.
    ///
    /// What is done under it may wait for storage, and for the reader of `uffd`, but never for a
    /// page that is away: so no memory of a caller is touched under it.
    shape: RwLock<Shape>,
    /// Dropped after the range has been unmapped.
    _guard: GuardedRange,
}

/// Which parts of a map are not ordinary.
#[derive(Debug, Default)]
struct Shape {
    away: RangeSet,
    loose: RangeSet,
}

// SAFETY: the pointers are to memory that the map owns, valid in every thread of the process; what
// is done with it through `&self` is done by the kernel or by atomic accesses.
unsafe impl Send for FileMap {}
// SAFETY: as above; the shape is under a lock.
unsafe impl Sync for FileMap {}

impl FileMap {
    /// Maps `len` bytes of `file` from `offset` on, both multiples of the page size.
    ///
    /// # Errors
    /// [`MapError`] tells an impossible request from a refusal.
    pub fn new(
        file: &Arc<HostFile>,
        offset: u64,
        len: usize,
        writable: bool,
    ) -> Result<FileMap, MapError> {
        check_placement(offset, len)?;
        if writable && !file.is_writable() {
            return Err(MapError::ReadOnlyFile);
        }
        let owner = Owner::current().map_err(|e| MapError::of("a page for MADV_WIPEONFORK", e))?;
        let base = map_file(file, offset, len, protection(writable))?;
        let anchor = map_anchor(file, offset, len, writable).inspect_err(|_| {
            // SAFETY: `base` has just been mapped by us with this length, and nobody knows it.
            let _ = unsafe { munmap(base.as_ptr().cast(), len) };
        })?;
        Ok(FileMap {
            base,
            anchor,
            len,
            offset,
            file: Arc::clone(file),
            writable,
            owner,
            tracker: None,
            uffd: OnceLock::new(),
            shape: RwLock::default(),
            _guard: GuardedRange::new(&(base.addr().get()..base.addr().get() + len)),
        })
    }

    /// As [`new`](FileMap::new), with our own stores tracked; see
    /// [`scan_stores`](FileMap::scan_stores).
    ///
    /// # Errors
    /// As [`new`](FileMap::new), and `Forked` if the tracker is a parent process's.
    pub fn tracked(
        file: &Arc<HostFile>,
        offset: u64,
        len: usize,
        writable: bool,
        tracker: &Arc<StoreTracker>,
    ) -> Result<FileMap, MapError> {
        if !tracker.is_ours() {
            // It would watch the parent's memory.
            return Err(MapError::Forked);
        }
        let mut map = FileMap::new(file, offset, len, writable)?;
        map.tracker = Some(Arc::clone(tracker));
        // Registered by the first scan; until then any store is unseen.
        map.lost_track(&mut map.shape.write(), 0..len);
        Ok(map)
    }

    /// Where the mapping starts. It stays there until the map is dropped, however often parts of it
    /// are away; what is read through it can change at any time, by any process.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes mapped.
    #[expect(clippy::len_without_is_empty, reason = "a map is never empty")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where in the file the mapping starts.
    #[must_use]
    pub fn file_offset(&self) -> u64 {
        self.offset
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Arc<HostFile> {
        &self.file
    }

    /// Whether the mapping may be stored to.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Where in the map an address is, if it is in the map. Takes no lock: made for the thread that
    /// reads faults.
    #[must_use]
    pub fn offset_of(&self, addr: usize) -> Option<usize> {
        addr.checked_sub(self.base.addr().get()).filter(|&at| at < self.len)
    }

    /// The addresses of a range of the map.
    fn addresses(&self, range: &Range<usize>) -> Range<usize> {
        let base = self.base.addr().get();
        base + range.start..base + range.end
    }

    /// A pointer `at` bytes into the mapping.
    fn at(&self, at: usize) -> *mut u8 {
        debug_assert!(at <= self.len, "{at} is beyond the map's {} bytes", self.len);
        self.base.as_ptr().wrapping_add(at)
    }

    /// Checks a range of whole pages inside the map, in the process that made it.
    fn check_pages(&self, range: &Range<usize>) -> Result<(), MapError> {
        let page = page_bytes();
        if range.start >= range.end || range.end > self.len {
            return Err(MapError::OutOfRange {
                start: range.start,
                end: range.end,
                map_len: self.len,
            });
        }
        if !range.start.is_multiple_of(page) || !range.end.is_multiple_of(page) {
            let (offset, len) = (range.start as u64, range.len());
            return Err(MapError::Misaligned { offset, len, page });
        }
        if !self.owner.is_current() {
            return Err(MapError::Forked);
        }
        Ok(())
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        if !self.owner.is_current() {
            return;
        }
        for start in [self.base, self.anchor] {
            // SAFETY: by the invariants both ranges are ours in this process, and `&mut self` shows
            // that no access through the map is under way. Pointers from `as_ptr` carry no promise
            // beyond the map's life. Failing leaves the range mapped, which is sound.
            let _ = unsafe { munmap(start.as_ptr().cast(), self.len) };
        }
        if let Some(uffd) = self.uffd.get() {
            // Whoever still waits, at an address kept beyond the map's life, gets SIGSEGV now
            // instead of waiting for ever.
            let _ = uffd.wake(self.addresses(&(0..self.len)));
        }
    }
}

fn check_placement(offset: u64, len: usize) -> Result<(), MapError> {
    let page = page_bytes();
    if len == 0 {
        return Err(MapError::Empty);
    }
    if !offset.is_multiple_of(page as u64) || !len.is_multiple_of(page) {
        return Err(MapError::Misaligned { offset, len, page });
    }
    let end = offset.checked_add(len as u64).and_then(|end| i64::try_from(end).ok());
    if end.is_none() || isize::try_from(len).is_err() {
        return Err(MapError::TooLarge { offset, len });
    }
    Ok(())
}

fn protection(writable: bool) -> ProtFlags {
    if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ }
}

/// A second mapping, which `mlockall(MCL_FUTURE)` neither fills nor locks: made without access, as
/// the kernel fills locked memory when it maps it or makes it accessible, unless it cannot be
/// accessed or is not locked by then.
fn map_anchor(
    file: &HostFile,
    offset: u64,
    len: usize,
    writable: bool,
) -> Result<NonNull<u8>, MapError> {
    let anchor = map_file(file, offset, len, ProtFlags::empty())?;
    let access =
        if writable { MprotectFlags::READ | MprotectFlags::WRITE } else { MprotectFlags::READ };
    let start = anchor.as_ptr().cast();
    // SAFETY: unlocking changes no contents.
    unsafe { munlock(start, len) }
        .map_err(|e| MapError::of("munlock", e))
        .and_then(|()| {
            // SAFETY: mapped above; nobody knows the range, so nobody relies on its protection.
            unsafe { mprotect(start, len, access) }.map_err(|e| MapError::of("mprotect", e))
        })
        .inspect_err(|_| {
            // SAFETY: as above.
            let _ = unsafe { munmap(start, len) };
        })?;
    Ok(anchor)
}

/// A fresh shared mapping wherever there is room, not inherited by children.
fn map_file(
    file: &HostFile,
    offset: u64,
    len: usize,
    access: ProtFlags,
) -> Result<NonNull<u8>, MapError> {
    let null = std::ptr::null_mut();
    // SAFETY: a mapping at an address of the kernel's choice takes the place of no other.
    let start = unsafe { mmap(null, len, access, MapFlags::SHARED, file, offset) }
        .map_err(|e| MapError::of("mmap", e))?;
    keep_from_children(start, len).inspect_err(|_| {
        // SAFETY: mapped above, known to nobody.
        let _ = unsafe { munmap(start, len) };
    })?;
    NonNull::new(start.cast()).ok_or_else(|| MapError::Os {
        call: "mmap",
        source: io::Error::other("the kernel mapped the file at address zero"),
    })
}

/// `MADV_DONTFORK`.
fn keep_from_children(start: *mut c_void, len: usize) -> Result<(), MapError> {
    // SAFETY: this advice changes nothing in this process.
    unsafe { madvise(start, len, Madvise::LinuxDontFork) }
        .map_err(|e| MapError::of("madvise(MADV_DONTFORK)", e))
}
