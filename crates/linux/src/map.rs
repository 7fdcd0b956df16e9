//! A shared mapping of a file range whose pages can be made to wait.
//!
//! *Trap*: an anonymous placeholder is registered with userfaultfd **elsewhere**, then moved over
//! the range in one step (`mremap`): at no time does an access find memory that is neither the
//! file's nor trapped. *Untrap*: the file is mapped over the placeholder in one step, then waiters
//! are woken and retry.
//!
//! No part of the mapping is inherited by a forked child: its touch is a SIGSEGV, never zeros.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use rustix::mm::{self, Advice, MapFlags, MremapFlags, MsyncFlags, ProtFlags};

use crate::{HostFile, PAGE, StoreTracker, Uffd, max_map_count};

/// A mapping could not be made or changed; nothing was.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The kernel's limit on mappings.
    #[error("out of mappings: vm.max_map_count is {max_map_count}")]
    OutOfVmas {
        /// The limit.
        max_map_count: u64,
    },
    /// A writable mapping of a file that is open read-only.
    #[error("the file is open read-only")]
    ReadOnlyFile,
    /// The range makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The system's error.
    #[error(transparent)]
    Os(#[from] io::Error),
}

/// A copy into or out of a mapping failed.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Outside of the mapping.
    #[error("bytes {}..{} are outside of the mapping of {len} bytes", range.start, range.end)]
    Outside {
        /// Asked for.
        range: Range<usize>,
        /// The mapping's length.
        len: usize,
    },
    /// The mapping is read-only.
    #[error("the mapping is read-only")]
    ReadOnly,
    /// The memory is not to be had: past the end of the file, or trapped where system calls do not
    /// wait.
    #[error("byte {at} of the mapping cannot be accessed")]
    Fault {
        /// The first byte that could not be.
        at: usize,
    },
    /// The system's error.
    #[error(transparent)]
    Os(#[from] io::Error),
}

/// A `MAP_SHARED` mapping.
///
/// # Invariants
/// - `[base, base + len)` is mapped, page-aligned and ours alone to change; every part of it is
///   either the file at the matching offset or a trapped placeholder.
#[derive(Debug)]
pub struct FileMap {
    file: Arc<HostFile>,
    base: usize,
    len: usize,
    offset: u64,
    writable: bool,
}

fn map_error(error: rustix::io::Errno) -> MapError {
    match error {
        rustix::io::Errno::NOMEM => MapError::OutOfVmas { max_map_count: max_map_count() },
        rustix::io::Errno::ACCESS => MapError::ReadOnlyFile,
        error => MapError::Os(error.into()),
    }
}

impl FileMap {
    /// Maps `len` bytes from `offset` (both multiples of the page size; `len` is rounded up).
    /// Reaching past the end of the file is allowed, as it is for `mmap`.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn new(
        file: Arc<HostFile>,
        offset: u64,
        len: usize,
        writable: bool,
    ) -> Result<FileMap, MapError> {
        let rounded = len.checked_next_multiple_of(PAGE).filter(|l| *l > 0);
        let end = rounded.and_then(|l| offset.checked_add(l as u64)).map(i64::try_from);
        let (Some(len), Some(Ok(_))) = (rounded, end) else {
            return Err(MapError::Invalid(format!("{len} bytes at {offset} cannot be mapped")));
        };
        if !offset.is_multiple_of(PAGE as u64) {
            return Err(MapError::Invalid(format!("offset {offset} is no multiple of {PAGE}")));
        }
        if writable && !file.is_writable() {
            return Err(MapError::ReadOnlyFile);
        }
        let prot = prot(writable);
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe {
            mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, file.as_fd(), offset)
        };
        let base = base.map_err(map_error)? as usize;
        let map = FileMap { file, base, len, offset, writable };
        map.dont_fork(base, len)?;
        Ok(map)
    }

    fn dont_fork(&self, addr: usize, len: usize) -> Result<(), MapError> {
        // SAFETY: the advice concerns children only; the range is mapped and ours.
        unsafe { mm::madvise(addr as *mut _, len, Advice::LinuxDontFork) }.map_err(map_error)
    }

    fn check(&self, range: &Range<usize>) -> Result<(), MapError> {
        let aligned = range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE);
        if aligned && range.start < range.end && range.end <= self.len {
            return Ok(());
        }
        Err(MapError::Invalid(format!("{range:?} is not a range of pages of the mapping")))
    }

    /// Makes accesses of the pages wait until [`untrap`](Self::untrap). Blocks until the reader of
    /// `uffd`'s events has seen the move: never call it on that thread.
    ///
    /// # Errors
    /// [`MapError`]; the pages then still show the file.
    pub fn trap(&self, uffd: &Uffd, range: Range<usize>) -> Result<(), MapError> {
        self.check(&range)?;
        let len = range.end - range.start;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let held = unsafe { mm::mmap_anonymous(std::ptr::null_mut(), len, prot, flags) };
        let held = held.map_err(map_error)? as usize;
        let moved = self.dont_fork(held, len).and_then(|()| {
            uffd.register(held, len)?;
            let target = (self.base + range.start) as *mut _;
            // SAFETY: the source is the placeholder just made; the target lies inside our mapping
            // (checked), whose pages are reached only through raw pointers and system calls.
            unsafe { mm::mremap_fixed(held as *mut _, len, len, MremapFlags::MAYMOVE, target) }
                .map_err(map_error)
        });
        match moved {
            Ok(_) => Ok(()),
            Err(error) => {
                // SAFETY: the placeholder is still where it was made, and ours.
                let _ = unsafe { mm::munmap(held as *mut _, len) };
                Err(error)
            }
        }
    }

    /// Shows the file again and wakes those who waited.
    ///
    /// # Errors
    /// [`MapError`]; the pages then still wait.
    pub fn untrap(&self, uffd: &Uffd, range: Range<usize>) -> Result<(), MapError> {
        self.check(&range)?;
        let (addr, len) = (self.base + range.start, range.end - range.start);
        let offset = self.offset + range.start as u64;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: inside our mapping (checked): replaces the placeholder by the file, atomically.
        let mapped = unsafe {
            mm::mmap(addr as *mut _, len, prot(self.writable), flags, self.file.as_fd(), offset)
        };
        mapped.map_err(map_error)?;
        self.dont_fork(addr, len)?;
        uffd.wake(addr, len)?;
        Ok(())
    }

    /// Ends the waiting of whoever waits for a trapped page with an error; the page stays an error
    /// until it is trapped anew or untrapped.
    ///
    /// # Errors
    /// The system's; kernels before 6.6 lack it.
    pub fn poison(&self, uffd: &Uffd, at: usize) -> io::Result<()> {
        uffd.poison(self.base + at / PAGE * PAGE, PAGE)
    }

    /// Lets the waiters of a page try again.
    ///
    /// # Errors
    /// The system's.
    pub fn wake(&self, uffd: &Uffd, at: usize) -> io::Result<()> {
        uffd.wake(self.base + at / PAGE * PAGE, PAGE)
    }

    /// Begins to track stores to the pages: all count as stored to until the first scan.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn track(&self, tracker: &StoreTracker, range: Range<usize>) -> Result<(), MapError> {
        self.check(&range)?;
        Ok(tracker.register(self.base + range.start, range.end - range.start)?)
    }

    /// The pages stored to since the last scan, which are armed anew. Every page of the range must
    /// be tracked and show the file.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn scan(
        &self,
        tracker: &StoreTracker,
        range: Range<usize>,
    ) -> Result<Vec<Range<usize>>, MapError> {
        self.check(&range)?;
        let found = tracker.scan(self.base + range.start..self.base + range.end)?;
        Ok(found.into_iter().map(|r| r.start - self.base..r.end - self.base).collect())
    }

    /// Where it begins in the address space.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base as *mut u8
    }

    /// Bytes, whole pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a mapping has at least a page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Its first byte in the file.
    #[must_use]
    pub fn file_offset(&self) -> u64 {
        self.offset
    }

    /// Stores are possible.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    fn bounds(&self, at: usize, len: usize) -> Result<(), AccessError> {
        match at.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            end => {
                Err(AccessError::Outside { range: at..end.unwrap_or(usize::MAX), len: self.len })
            }
        }
    }

    /// Copies out of the mapping without ever raising a signal. Waits at trapped pages where system
    /// calls can ([`UffdMode`](crate::UffdMode)); fails there where they cannot.
    ///
    /// # Errors
    /// [`AccessError`]; bytes before the failing one are copied.
    pub fn copy_out(&self, at: usize, buf: &mut [u8]) -> Result<(), AccessError> {
        self.bounds(at, buf.len())?;
        let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        self.transfer(at, local, Direction::Out)
    }

    /// Copies into the mapping without ever raising a signal; otherwise as
    /// [`copy_out`](Self::copy_out).
    ///
    /// # Errors
    /// [`AccessError`]; bytes before the failing one are copied.
    pub fn copy_in(&self, at: usize, bytes: &[u8]) -> Result<(), AccessError> {
        self.bounds(at, bytes.len())?;
        if !self.writable {
            return Err(AccessError::ReadOnly);
        }
        let local =
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        self.transfer(at, local, Direction::In)
    }

    fn transfer(&self, at: usize, local: libc::iovec, call: Direction) -> Result<(), AccessError> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let mut done = 0;
        while done < local.iov_len {
            // One page-bounded megabyte at a time: a partial count then tells where it stopped.
            let len = (local.iov_len - done).min((1 << 20) - (at + done) % (1 << 20));
            let near =
                libc::iovec { iov_base: (local.iov_base as usize + done) as *mut _, iov_len: len };
            let far = libc::iovec { iov_base: (self.base + at + done) as *mut _, iov_len: len };
            // SAFETY: `near` lies in the caller's buffer, which is borrowed (mutably for reads) for
            // the call; `far` lies in our mapping (checked), of which no Rust reference exists; the
            // kernel copies and reports faults as errors.
            let n = unsafe {
                match call {
                    Direction::Out => {
                        libc::process_vm_readv(pid, &raw const near, 1, &raw const far, 1, 0)
                    }
                    Direction::In => {
                        libc::process_vm_writev(pid, &raw const near, 1, &raw const far, 1, 0)
                    }
                }
            };
            match usize::try_from(n) {
                Ok(0) => return Err(AccessError::Fault { at: at + done }),
                Ok(n) => done += n,
                Err(_) => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    e if e.raw_os_error() == Some(libc::EFAULT) => {
                        return Err(AccessError::Fault { at: at + done });
                    }
                    e => return Err(e.into()),
                },
            }
        }
        Ok(())
    }

    fn aligned(&self, at: usize, len: usize) -> Result<usize, AccessError> {
        self.bounds(at, len)?;
        if !at.is_multiple_of(len) {
            let what = format!("offset {at} is not aligned to {len} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what).into());
        }
        Ok(self.base + at)
    }

    /// `msync(MS_SYNC)` of a range of bytes.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&self, range: Range<usize>) -> Result<(), AccessError> {
        self.bounds(range.start, range.end.saturating_sub(range.start))?;
        let start = range.start / PAGE * PAGE;
        // SAFETY: inside our mapping (checked); writes nothing to it.
        unsafe { mm::msync((self.base + start) as *mut _, range.end - start, MsyncFlags::SYNC) }
            .map_err(|e| AccessError::Os(e.into()))
    }
}

macro_rules! atomics {
    ($($load:ident $store:ident $type:ty, $atomic:ty;)*) => {
        /// Single loads and stores at the speed of memory: relaxed atomics, so that racing with
        /// other threads and processes is defined. Waits at trapped pages. Like for any mapping, an
        /// access of a page wholly past the end of the file is a SIGBUS.
        impl FileMap {
            $(
                /// Loads the value at an aligned offset.
                ///
                /// # Errors
                /// [`AccessError`] if it is outside or misaligned.
                #[inline]
                pub fn $load(&self, at: usize) -> Result<$type, AccessError> {
                    let addr = self.aligned(at, size_of::<$type>())?;
                    // SAFETY: aligned, inside the mapping, which lives as long as `self`; all
                    // accesses of it from Rust are atomic.
                    Ok(unsafe { <$atomic>::from_ptr(addr as *mut $type) }.load(Ordering::Relaxed))
                }

                /// Stores a value at an aligned offset.
                ///
                /// # Errors
                /// [`AccessError`] if it is outside, misaligned, or the mapping is read-only.
                #[inline]
                pub fn $store(&self, at: usize, value: $type) -> Result<(), AccessError> {
                    if !self.writable {
                        return Err(AccessError::ReadOnly);
                    }
                    let addr = self.aligned(at, size_of::<$type>())?;
                    // SAFETY: as for the load; the mapping is writable (checked).
                    unsafe { <$atomic>::from_ptr(addr as *mut $type) }.store(value, Ordering::Relaxed);
                    Ok(())
                }
            )*
        }
    };
}

atomics! {
    load_u8 store_u8 u8, AtomicU8;
    load_u32 store_u32 u32, AtomicU32;
    load_u64 store_u64 u64, AtomicU64;
}

/// The direction of a copy between a mapping and a buffer.
#[derive(Clone, Copy)]
enum Direction {
    Out,
    In,
}

fn prot(writable: bool) -> ProtFlags {
    if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; borrows of it have ended with `self`.
        let _ = unsafe { mm::munmap(self.base as *mut _, self.len) };
    }
}
