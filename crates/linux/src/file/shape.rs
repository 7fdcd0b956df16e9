//! Size, holes, allocation and durability.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fdatasync, fsync, ftruncate, seek};
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

    /// Starts write-back of the dirty pages of `range` and waits for it, so that they are clean.
    ///
    /// This is **not** durable (no attributes, no flush of the disk's cache); it is there to make
    /// the next store through a mapping change the file's stamp.
    ///
    /// # Errors
    /// `EIO`, `ENOSPC` of the write-back.
    pub fn sync_range(&self, range: Range<u64>) -> io::Result<()> {
        let (offset, len) = signed_span(&range)?;
        let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        loop {
            // SAFETY: takes numbers only; `fd` is open for as long as `self` is borrowed.
            let rc = unsafe { libc::sync_file_range(self.fd.as_raw_fd(), offset, len, flags) };
            if rc == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// The parts of `range` that are not known to be holes, ascending, within the file's size.
    ///
    /// Where that cannot be found out (the file system has no such notion, or the description is
    /// shared, whose file position is not ours to move), the whole range counts as data.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn data_runs(&self, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let (start, _) = signed_span(&range)?;
        let mut at = start.unsigned_abs();
        if !self.is_private() {
            return Ok(vec![range]);
        }
        let mut runs = Vec::new();
        while at < range.end {
            let data = match seek(&self.fd, SeekFrom::Data(at)) {
                Ok(data) => data,
                // No data from here to the end of the file, or beyond it already.
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL | Errno::OPNOTSUPP) if at == range.start => {
                    return Ok(vec![range]);
                }
                Err(e) => return Err(e.into()),
            };
            if data >= range.end {
                break;
            }
            let hole = match seek(&self.fd, SeekFrom::Hole(data)) {
                Ok(hole) => hole.min(range.end),
                // The file was cut off between the two calls.
                Err(Errno::NXIO) => break,
                Err(e) => return Err(e.into()),
            };
            // A hole may have been punched at `data` in between.
            if data < hole {
                runs.push(data..hole);
            }
            at = hole.max(data + 1);
        }
        Ok(runs)
    }

    fn fallocate(&self, mode: FallocateFlags, range: Range<u64>) -> io::Result<()> {
        signed_span(&range)?;
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

/// A non-empty range as the kernel wants it: offset and length.
fn signed_span(range: &Range<u64>) -> io::Result<(i64, i64)> {
    let invalid = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{}..{} is not a range of bytes of a file", range.start, range.end),
        )
    };
    let len = range.end.checked_sub(range.start).filter(|&n| n > 0).ok_or_else(invalid)?;
    let end = i64::try_from(range.end).map_err(|_| invalid())?;
    let len = i64::try_from(len).map_err(|_| invalid())?;
    Ok((end - len, len))
}
