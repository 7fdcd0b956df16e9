//! What an ordinary program does that nothing safe can: real loads and stores of mapped memory, and
//! `truncate` by path. The only place with `unsafe`.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// `truncate(2)`: no descriptor, so nobody sees one being opened.
pub(crate) fn truncate(path: &Path, size: u64) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let size = i64::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: `path` is a C string that lives until the call returns.
    match unsafe { libc::truncate(path.as_ptr(), size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A `MAP_SHARED` mapping of whole pages.
pub(crate) struct Mapping {
    base: *mut u8,
    range: Range<u64>,
    writable: bool,
}

impl Mapping {
    pub(crate) fn new(file: &File, at: u64, len: u64, writable: bool) -> io::Result<Mapping> {
        let range = at & !4095..at.saturating_add(len).next_multiple_of(4096);
        let size = (range.end - range.start) as usize;
        let store = if writable { ProtFlags::WRITE } else { ProtFlags::empty() };
        let prot = ProtFlags::READ | store;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base =
            unsafe { mmap(ptr::null_mut(), size, prot, MapFlags::SHARED, file, range.start) };
        Ok(Mapping { base: base?.cast(), range, writable })
    }

    fn holds(&self, range: &Range<u64>) -> bool {
        self.range.start <= range.start && range.end <= self.range.end
    }

    /// Loads bytes of the file. They must not lie past the page that holds its end (SIGBUS).
    pub(crate) fn load(&self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        if !self.holds(&(at..at + len)) {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::FAULT.raw_os_error()));
        }
        let mut bytes = vec![0; len as usize];
        let from = self.base.wrapping_add((at - self.range.start) as usize);
        // SAFETY: inside of the mapping, as was just checked; `bytes` is our own and as long. The
        // process is single-threaded in its accesses and the others wait for it meanwhile.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), len as usize) };
        Ok(bytes)
    }

    /// Stores bytes of the file; otherwise as `load`.
    pub(crate) fn store(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.writable || !self.holds(&(at..at + bytes.len() as u64)) {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::FAULT.raw_os_error()));
        }
        let to = self.base.wrapping_add((at - self.range.start) as usize);
        // SAFETY: as for `load`, and the mapping is writable.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let size = (self.range.end - self.range.start) as usize;
        // SAFETY: made by `new` with this size; nothing refers to it, and it is unmapped once.
        let unmapped = unsafe { munmap(self.base.cast(), size) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}
