//! Size, holes, allocation and durability.

use std::io;
use std::ops::Range;

use rustix::fs::{FallocateFlags, fallocate, fdatasync, fsync, ftruncate};
use rustix::io::{Errno, retry_on_intr};

use super::HostFile;
use super::bytes::check_span;
use crate::limits::max_file_bytes;

impl HostFile {
    /// Makes the file `size` bytes long: cuts it off, or extends it with a hole.
    ///
    /// # Errors
    /// `EFBIG` beyond `RLIMIT_FSIZE` (without the signal that would kill the process), or whatever
    /// the file system says.
    pub fn set_len(&self, size: u64) -> io::Result<()> {
        check_span(size, 0)?;
        self.check_growth(size)?;
        Ok(retry_on_intr(|| ftruncate(&self.fd, size))?)
    }

    /// Makes `range` a hole that reads as zeros; the size stays.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the file system cannot; an empty range is `InvalidInput`, here and below.
    pub fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        self.fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, range)
    }

    /// Makes `range` read as zeros while keeping or taking storage for it. Unless `keep_size`, the
    /// file grows to its end.
    ///
    /// # Errors
    /// As [`punch_hole`](HostFile::punch_hole), and `ENOSPC`.
    pub fn zero_range(&self, range: Range<u64>, keep_size: bool) -> io::Result<()> {
        self.fallocate(FallocateFlags::ZERO_RANGE | keep(keep_size), range)
    }

    /// Takes storage for `range`, so that writes to it do not fail for want of space. Unless
    /// `keep_size`, the file grows to its end.
    ///
    /// # Errors
    /// As [`zero_range`](HostFile::zero_range).
    pub fn allocate(&self, range: Range<u64>, keep_size: bool) -> io::Result<()> {
        self.fallocate(keep(keep_size), range)
    }

    /// Cuts `range` out of the file; what follows moves down.
    ///
    /// # Errors
    /// `EINVAL` unless the range is made of whole file system blocks and ends before the file does;
    /// `EOPNOTSUPP` where the file system cannot.
    pub fn collapse_range(&self, range: Range<u64>) -> io::Result<()> {
        self.fallocate(FallocateFlags::COLLAPSE_RANGE, range)
    }

    /// Puts a hole as long as `range` at its start; what was there moves up.
    ///
    /// # Errors
    /// As [`collapse_range`](HostFile::collapse_range).
    pub fn insert_range(&self, range: Range<u64>) -> io::Result<()> {
        self.fallocate(FallocateFlags::INSERT_RANGE, range)
    }

    /// Puts the file on storage, durably; with `data_only`, without attributes that are not needed
    /// to find the data again.
    ///
    /// # Errors
    /// `EIO` if a write-back has failed since the last call through this description: once, and
    /// then never again, as the kernel forgets it.
    pub fn sync(&self, data_only: bool) -> io::Result<()> {
        let call = || if data_only { fdatasync(&self.fd) } else { fsync(&self.fd) };
        Ok(retry_on_intr(call)?)
    }

    fn fallocate(&self, mode: FallocateFlags, range: Range<u64>) -> io::Result<()> {
        check_range(&range)?;
        let grows = if mode.contains(FallocateFlags::INSERT_RANGE) {
            self.observe()?.size.saturating_add(range.end - range.start)
        } else if mode.intersects(FallocateFlags::KEEP_SIZE | FallocateFlags::COLLAPSE_RANGE) {
            0
        } else {
            range.end
        };
        self.check_growth(grows)?;
        let len = range.end - range.start;
        Ok(retry_on_intr(|| fallocate(&self.fd, mode, range.start, len))?)
    }

    /// `EFBIG` if the file would become longer than this process may make it.
    fn check_growth(&self, size: u64) -> io::Result<()> {
        if size > max_file_bytes() && size > self.observe()?.size {
            return Err(Errno::FBIG.into());
        }
        Ok(())
    }
}

fn keep(keep_size: bool) -> FallocateFlags {
    if keep_size { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() }
}

/// Refuses empty ranges, and those that no file has.
fn check_range(range: &Range<u64>) -> io::Result<()> {
    if range.start < range.end && i64::try_from(range.end).is_ok() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{}..{} is not a range of bytes of a file", range.start, range.end),
    ))
}
