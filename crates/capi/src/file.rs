//! Files.

use std::ffi::{c_char, c_int};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use pageferry::File;

use crate::border::{Failure, Result, call, check_flags, path, prepare, put};
use crate::cache::{CACHES, CacheHandle, pf_cache};
use crate::handles::Table;

/// For reading. (Every file and mapping is.)
pub const PF_READ: u32 = 1;
/// For writing, too.
pub const PF_WRITE: u32 = 2;

/// A file in a cache.
pub struct pf_file {
    _private: [u8; 0],
}

pub(crate) struct FileHandle {
    pub(crate) file: File,
    pub(crate) in_memory: bool,
    pub(crate) frame_bytes: u64,
}

impl FileHandle {
    fn new(cache: &CacheHandle, file: File) -> FileHandle {
        FileHandle { file, in_memory: cache.in_memory, frame_bytes: cache.cache.frame_bytes() }
    }
}

pub(crate) static FILES: Table<pf_file, FileHandle> = Table::new("file");

/// Whether flags ask for writing.
pub(crate) fn writable(flags: u32) -> Result<bool> {
    check_flags(flags, PF_READ | PF_WRITE)?;
    match flags {
        0 => Err(Failure::invalid("neither PF_READ nor PF_WRITE")),
        flags => Ok(flags & PF_WRITE != 0),
    }
}

/// Opens a file for reading (PF_READ) or for reading and writing (PF_READ | PF_WRITE). Never creates or truncates.
///
/// -EINVAL: not a regular file; what open(2) fails with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_file_open(
    cache: *const pf_cache,
    name: *const c_char,
    flags: u32,
    file: *mut *mut pf_file,
) -> c_int {
    call(|| {
        // SAFETY: NULL or a place for a handle, as the header asks for.
        unsafe { prepare(file) }?;
        let cache = CACHES.get(cache)?;
        // SAFETY: NULL or a string, as the header asks for.
        let name = unsafe { path(name) }?;
        let opened = match writable(flags)? {
            true => cache.cache.open(name)?,
            false => cache.cache.open_read_only(name)?,
        };
        // SAFETY: as for `prepare`.
        unsafe { put(file, FILES.add(FileHandle::new(&cache, opened))) };
        Ok(())
    })
}

/// Opens the file behind a descriptor, in the descriptor's access mode. The descriptor stays the caller's; while
/// it is open it counts as another user's, which costs the reuse of copies: close it.
///
/// -EBADF: no descriptor; -EINVAL: not of a regular file, or write-only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_file_open_fd(
    cache: *const pf_cache,
    fd: c_int,
    file: *mut *mut pf_file,
) -> c_int {
    call(|| {
        // SAFETY: NULL or a place for a handle, as the header asks for.
        unsafe { prepare(file) }?;
        let cache = CACHES.get(cache)?;
        // SAFETY: only asks about a number.
        if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            let what = format!("file descriptor {fd}");
            return Err(pageferry::Error::Os { what, errno: libc::EBADF }.into());
        }
        // SAFETY: it is open, and the header asks that it stays so during the call.
        let opened = cache.cache.open_fd(unsafe { BorrowedFd::borrow_raw(fd) })?;
        // SAFETY: as for `prepare`.
        unsafe { put(file, FILES.add(FileHandle::new(&cache, opened))) };
        Ok(())
    })
}

/// Closes a file; the handle is gone whatever the result. If nothing else (a pin, a mapping, a call of another
/// thread) uses this opening, and the cache has no other of the file, what only the device has is written back;
/// otherwise that is done when the last of them goes, and nobody is told of errors.
///
/// What writing the file fails with: the cache keeps the bytes, and opening the file again finds them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_file_close(file: *mut pf_file) -> c_int {
    call(|| match Arc::try_unwrap(FILES.take(file)?) {
        Ok(last) => Ok(last.file.close()?),
        Err(_in_use) => Ok(()),
    })
}

/// The file's size now, in bytes.
///
/// What fstat(2) fails with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_file_size(file: *const pf_file, bytes: *mut u64) -> c_int {
    call(|| {
        let len = FILES.get(file)?.file.len()?;
        // SAFETY: NULL or a place for a number, as the header asks for.
        unsafe { put(bytes, len) };
        Ok(())
    })
}

/// Writes what only the device has of a range back to the file (to the page cache; it stays on the device as a
/// copy). Waits for write pins over such bytes. A length that reaches too far, as UINT64_MAX does, means: to the end.
///
/// -EDEADLK: this thread holds such a pin; what writing fails with: the bytes stay on the device, try again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_file_flush(file: *const pf_file, offset: u64, length: u64) -> c_int {
    call(|| {
        FILES.get(file)?.file.flush(offset..offset.saturating_add(length))?;
        Ok(())
    })
}

/// fsync(2) that covers what only the device has.
///
/// As pf_file_flush(), and what fsync(2) fails with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_file_sync(file: *const pf_file) -> c_int {
    call(|| Ok(FILES.get(file)?.file.sync()?))
}

/// Brings what it can of a range onto the device, up to the cache's size; waits for nobody's pins. The length as in
/// pf_file_flush(). `bytes` gets the number of bytes brought or found there, if it is not NULL.
///
/// What reading the file fails with.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_file_prefetch(
    file: *const pf_file,
    offset: u64,
    length: u64,
    bytes: *mut u64,
) -> c_int {
    call(|| {
        let brought = FILES.get(file)?.file.prefetch(offset..offset.saturating_add(length))?;
        // SAFETY: NULL or a place for a number, as the header asks for.
        unsafe { put(bytes, brought) };
        Ok(())
    })
}

/// Takes what nobody has pinned of a range off the device; what only the device has is written back first. The
/// length as in pf_file_flush(). `bytes` gets the number of bytes taken off, if it is not NULL.
///
/// What writing the file fails with: nothing that could not be written was dropped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pf_file_evict(
    file: *const pf_file,
    offset: u64,
    length: u64,
    bytes: *mut u64,
) -> c_int {
    call(|| {
        let evicted = FILES.get(file)?.file.evict(offset..offset.saturating_add(length))?;
        // SAFETY: NULL or a place for a number, as the header asks for.
        unsafe { put(bytes, evicted) };
        Ok(())
    })
}
