//! CPU mappings.
//!
//! A mapping is the kernel's own `MAP_SHARED` mapping of the file as long as its pages are home.
//! The pages of a live write pin, and those that are away, are *trapped*: an access of them waits
//! until they are home (see `trap`).

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use pageferry_engine::{FileKey, MapKey};
use pageferry_linux::{AccessError, FileMap, HostFile, StoreTracker, StoredPages, Uffd, UffdError};

use crate::error::os_error;
use crate::perform::map_error;
use crate::sync::Mutex;
use crate::{Error, File, Result};

/// How long a page stays an error after an access of it was refused.
const EXPEL_GRACE: Duration = Duration::from_millis(1);
/// Where system calls do not wait for a trapped page: how often it is tried without a pause, how long
/// the pauses are then, and when it is given up.
const TRIES_AT_ONCE: u32 = 100;
const TRIES_PAUSE: Duration = Duration::from_micros(100);
const TRIES_MAX: u32 = 10_000;

/// A mapping as the engine's actions reach it, in this process or in a client's. Ranges are in bytes of the file.
pub(crate) trait Trappable: Send + Sync {
    /// Makes accesses of a range wait, and tells which pages were stored to before: `None` if nobody can tell.
    fn trap(&self, range: &Range<u64>) -> Result<Option<Vec<Range<u64>>>>;

    /// Lets accesses of a range reach the file again.
    fn untrap(&self, range: &Range<u64>) -> Result<()>;

    /// Ends the waiting for a page with an error, and makes later accesses wait again.
    fn expel(&self, at: u64) -> Result<()>;

    /// The parts of the range stored to since last asked, `None` if nobody can tell.
    fn scan_stores(&self, range: &Range<u64>) -> Result<Option<Vec<Range<u64>>>>;
}

/// A mapping of which the engine knows.
#[derive(Clone)]
pub(crate) enum AnyMap {
    /// In this process.
    Here(Arc<Mapped>),
    /// In another.
    There(Arc<dyn Trappable>),
}

impl AnyMap {
    pub(crate) fn trappable(&self) -> &dyn Trappable {
        match self {
            AnyMap::Here(mapped) => &**mapped,
            AnyMap::There(map) => &**map,
        }
    }
}

/// What tracks stores in all mappings of a cache or connection, from the first writable one on.
#[derive(Default)]
pub(crate) struct Tracker(Mutex<Option<Arc<StoreTracker>>>);

impl Tracker {
    /// Maps whole pages of a file, with stores tracked where that can be.
    pub(crate) fn map(
        &self,
        io: &Arc<HostFile>,
        whole: &Range<u64>,
        writable: bool,
    ) -> Result<FileMap> {
        let len = usize::try_from(whole.end - whole.start)
            .map_err(|_| Error::InvalidArgument("the range exceeds the address space".into()))?;
        let tracker = if writable { self.get()? } else { None };
        let map = match &tracker {
            Some(tracker) => FileMap::tracked(io, whole.start, len, writable, tracker),
            None => FileMap::new(io, whole.start, len, writable),
        };
        map.map_err(map_error)
    }

    /// `None` where the kernel has none.
    fn get(&self) -> Result<Option<Arc<StoreTracker>>> {
        let mut tracker = self.0.lock();
        if let Some(tracker) = &*tracker {
            return Ok(Some(Arc::clone(tracker)));
        }
        match StoreTracker::open() {
            Ok(opened) => Ok(Some(Arc::clone(tracker.insert(Arc::new(opened))))),
            // No descriptors are left: that passes, and is no reason to go without for ever.
            Err(UffdError::Os { call, source })
                if matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) =>
            {
                Err(os_error(call, &source))
            }
            Err(_) => Ok(None),
        }
    }
}

/// A mapping of this process.
pub(crate) struct Mapped {
    pub(crate) file: FileKey,
    pub(crate) map: FileMap,
    key: MapKey,
    uffd: Arc<Uffd>,
}

impl Mapped {
    pub(crate) fn new(file: FileKey, map: FileMap, key: MapKey, uffd: Arc<Uffd>) -> Mapped {
        Mapped { file, map, key, uffd }
    }

    fn inside(&self, range: &Range<u64>) -> Range<usize> {
        let base = self.map.file_offset();
        (range.start - base) as usize..(range.end - base) as usize
    }

    /// Lets the waiters of the page at an address try again.
    pub(crate) fn wake(&self, addr: usize) -> Result<()> {
        let Some(at) = self.map.offset_of(addr) else { return Ok(()) };
        let page = at & !4095;
        self.map.wake(&self.uffd, page..page + 4096).map_err(map_error)
    }

    pub(crate) fn key(&self) -> MapKey {
        self.key
    }

    pub(crate) fn range(&self) -> Range<u64> {
        let start = self.map.file_offset();
        start..start + self.map.len() as u64
    }
}

impl Trappable for Mapped {
    /// Makes accesses of a range wait, and tells which pages were stored to before: `None` if nobody
    /// can tell.
    ///
    /// A store between the question and the trap is not in the answer. Where the file system notes the
    /// first store to each page that was asked about in the file's times, and these have not moved from
    /// before the question to after the trap, there was none. (The fault of such a store takes the mark
    /// off its page first, then moves the times, and only then makes the page writable: a store that the
    /// question missed moves the times after it.)
    fn trap(&self, range: &Range<u64>) -> Result<Option<Vec<Range<u64>>>> {
        self.map.reserve(&self.uffd, &self.inside(range)).map_err(map_error)?;
        let trap = || self.map.trap(&self.uffd, self.inside(range)).map_err(map_error);
        let io = self.map.file();
        if !self.map.is_writable() {
            trap()?;
            return Ok(Some(Vec::new()));
        }
        let Some(before) = io.telling_look() else {
            trap()?;
            return Ok(None);
        };
        let stored = self.scan_stores(range)?;
        trap()?;
        let after = io.observe().ok();
        let unmoved = after.is_some_and(|s| (s.mtime, s.ctime) == (before.mtime, before.ctime));
        Ok(stored.filter(|_| unmoved))
    }

    fn untrap(&self, range: &Range<u64>) -> Result<()> {
        self.map.untrap(&self.uffd, self.inside(range)).map_err(map_error)
    }

    /// Ends the waiting for a page with an error, and makes later accesses wait again.
    fn expel(&self, at: u64) -> Result<()> {
        let page = self.inside(&(at & !4095..(at & !4095) + 4096));
        self.map.poison(&self.uffd, page.clone()).map_err(map_error)?;
        // Time for the woken thread to meet the error. If it is slower than that, it waits again
        // and is expelled again.
        std::thread::sleep(EXPEL_GRACE);
        self.map.rearm(&self.uffd, page).map_err(map_error)
    }

    /// The parts of the range stored to since last asked, `None` if nobody can tell.
    fn scan_stores(&self, range: &Range<u64>) -> Result<Option<Vec<Range<u64>>>> {
        let base = self.map.file_offset();
        let in_file = |r: Range<usize>| base + r.start as u64..base + r.end as u64;
        Ok(match self.map.scan_stores(self.inside(range)).map_err(map_error)? {
            StoredPages::Known(runs) => Some(runs.into_iter().map(in_file).collect()),
            StoredPages::Unknown => None,
        })
    }
}

/// A shared mapping of a range of a file.
///
/// - While its pages are home, loads and stores through [`as_ptr`](Map::as_ptr) or
///   [`load_u64`](Map::load_u64) and the like are the kernel's own, at its speed.
/// - A touch of a page that is away waits until the page is home, and then has the device's bytes.
/// - A touch of a page under a live write pin waits for its release. If that can never be (this
///   thread holds the pin, or one that waits for this thread does), [`read`](Map::read) and
///   [`write`](Map::write) return [`Error::WouldDeadlock`]; a raw access gets SIGBUS (the address in
///   `si_addr`), a system call fails; so does one whose page cannot be brought home (ENOSPC, a
///   lost device).
/// - A system call that is given such memory waits, too, where the system allows it (`doctor` says);
///   elsewhere it fails with EFAULT.
/// - A forked child does not inherit it: every call is refused there with [`Error::Forked`], and a
///   raw access is a SIGSEGV, never zeros (except in a child made by a bare `clone` system call,
///   which may come to have memory of its own at the same place).
///
/// Rust references to the memory are not handed out: others change it.
pub struct Map {
    file: File,
    mapped: Arc<Mapped>,
    service: Box<dyn MapService>,
    live: bool,
}

/// What a mapping asks of its cache.
pub(crate) trait MapService: Send + Sync {
    /// The mapping.
    fn mapped(&self) -> &Arc<Mapped>;

    /// Brings home what is trapped of a range of the file, so that an access that follows need not wait.
    fn touch(&self, range: Range<u64>) -> Result<()>;

    /// The mapping goes.
    fn end(&self) -> Result<()>;
}

impl Map {
    pub(crate) fn new(file: File, range: Range<u64>, writable: bool) -> Result<Map> {
        file.handle.cache.service.not_forked()?;
        if range.start >= range.end || i64::try_from(range.end).is_err() {
            let what = format!("the range {}..{} cannot be mapped", range.start, range.end);
            return Err(Error::InvalidArgument(what));
        }
        let pages = range.start & !4095..range.end.next_multiple_of(4096);
        let service = file.service().map(pages, writable)?;
        let mapped = Arc::clone(service.mapped());
        Ok(Map { file, mapped, service, live: true })
    }

    /// Its first byte in the file.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.mapped.map.file_offset()
    }

    /// Bytes, whole pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.mapped.map.len()
    }

    /// Never: a mapping has at least a page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Stores are possible.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.mapped.map.is_writable()
    }

    /// Where it is. Valid until the map is dropped; accesses must tolerate that others change the
    /// bytes (use volatile or atomic accesses), and get SIGBUS past the end of the file. Advice that
    /// changes contents (`MADV_REMOVE`) is not for it: use [`File::punch_hole`]; beside another change
    /// of ours it would not be noticed.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapped.map.as_ptr()
    }

    /// Brings a stretch home that is trapped, so that the access that follows need not wait.
    fn touch(&self, at: usize, len: usize) -> Result<()> {
        let start = self.offset().saturating_add(at as u64);
        self.service.touch(start..start.saturating_add(len as u64))
    }

    fn retrying(
        &self,
        at: usize,
        len: usize,
        mut copy: impl FnMut() -> Result<(), AccessError>,
    ) -> Result<()> {
        for attempt in 0..TRIES_MAX {
            self.touch(at, len)?;
            match copy() {
                Ok(()) => return Ok(()),
                // Trapped anew in between, where system calls do not wait; or just being moved by a
                // thread that may have lost its processor.
                Err(AccessError::Away { .. }) if attempt < TRIES_AT_ONCE => {
                    std::thread::yield_now();
                }
                Err(AccessError::Away { .. }) => std::thread::sleep(TRIES_PAUSE),
                Err(AccessError::PastEof { size, .. }) => {
                    let start = self.offset() + at as u64;
                    return Err(Error::PastEof {
                        range: start..start + len as u64,
                        file_bytes: size,
                    });
                }
                Err(AccessError::ReadOnly) => return Err(Error::ReadOnly("the mapping".into())),
                Err(AccessError::Os { source, .. }) => {
                    return Err(os_error("accessing the mapping", &source));
                }
                Err(error) => return Err(access_error(error)),
            }
        }
        Err(Error::Os { what: "accessing the mapping".into(), errno: libc::EBUSY })
    }

    /// Copies bytes out, `at` bytes into the mapping. Never raises a signal; waits like a touch.
    ///
    /// # Errors
    /// [`Error::PastEof`], [`Error::WouldDeadlock`], [`Error::InvalidArgument`], and what bringing
    /// pages home can fail with.
    pub fn read(&self, at: usize, buf: &mut [u8]) -> Result<()> {
        let len = buf.len();
        self.retrying(at, len, || self.mapped.map.copy_out(at, buf))
    }

    /// Copies bytes in, `at` bytes into the mapping; otherwise as [`read`](Self::read).
    ///
    /// # Errors
    /// As [`read`](Self::read); [`Error::ReadOnly`].
    pub fn write(&self, at: usize, bytes: &[u8]) -> Result<()> {
        self.retrying(at, bytes.len(), || self.mapped.map.copy_in(at, bytes))
    }

    /// Brings home and makes durable what a range of the mapping holds, as `msync(MS_SYNC)` would
    /// (which knows nothing of away pages).
    ///
    /// # Errors
    /// As [`File::sync`]; [`Error::InvalidArgument`] if the range ends outside of the mapping.
    pub fn sync(&self, range: Range<usize>) -> Result<()> {
        if range.end > self.len() {
            let what = format!("bytes {range:?} of a mapping of {}", self.len());
            return Err(Error::InvalidArgument(what));
        }
        let file = self.offset() + range.start as u64..self.offset() + range.end as u64;
        self.file.sync_range(file)
    }

    /// Unmaps. What is away stays away; nothing is lost.
    ///
    /// # Errors
    /// What learning of the last stores can fail with; it is unmapped all the same.
    pub fn unmap(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if !std::mem::replace(&mut self.live, false) {
            return Ok(());
        }
        self.service.end()
    }
}

fn access_error(error: AccessError) -> Error {
    match error {
        AccessError::Forked => Error::Forked,
        error => Error::InvalidArgument(error.to_string()),
    }
}

macro_rules! atomics {
    ($($load:ident $store:ident $type:ty;)*) => {
        /// Single accesses at the speed of memory, as relaxed atomics. They are touches like any
        /// other: past the end of the file, or in a deadlock with this thread's own pin, SIGBUS.
        impl Map {
            $(
                /// Loads the value `at` bytes into the mapping, aligned to its size.
                ///
                /// # Errors
                /// [`Error::InvalidArgument`] if it is outside or misaligned.
                #[inline]
                pub fn $load(&self, at: usize) -> Result<$type> {
                    self.mapped.map.load::<$type>(at).map_err(access_error)
                }

                /// Stores a value `at` bytes into the mapping, aligned to its size.
                ///
                /// # Errors
                /// [`Error::InvalidArgument`] if it is outside or misaligned, or the mapping is
                /// read-only.
                #[inline]
                pub fn $store(&self, at: usize, value: $type) -> Result<()> {
                    self.mapped.map.store(at, value).map_err(access_error)
                }
            )*
        }
    };
}

atomics! {
    load_u8 store_u8 u8;
    load_u32 store_u32 u32;
    load_u64 store_u64 u64;
}

impl Drop for Map {
    fn drop(&mut self) {
        if let Err(error) = self.end().or_else(Error::unless_forked) {
            tracing::error!(%error, "unmapping failed");
        }
    }
}
