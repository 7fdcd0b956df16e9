//! Reading and writing at given places.

use std::io;

use rustix::io::{Errno, pread, pwrite};

use super::HostFile;
use crate::limits::max_file_bytes;

/// A write that did not get everything into the file.
#[derive(Debug, thiserror::Error)]
#[error("write stopped after {written} bytes: {source}")]
pub struct WriteError {
    /// How many bytes, from the start of the buffer, are in the file.
    pub written: usize,
    /// What stopped it.
    pub source: io::Error,
}

impl HostFile {
    /// Fills `buf` from `offset` on; less than its length comes back only at the end of the file.
    ///
    /// # Errors
    /// Whatever the file system says. What part of `buf` was filled by then is not told.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        check_span(offset, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            match pread(&self.fd, &mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(done)
    }

    /// Writes all of `buf` at `offset`, extending the file if need be.
    ///
    /// A write beyond this process's `RLIMIT_FSIZE` is cut off at the limit and ends with `EFBIG`
    /// without asking the kernel, whose answer would be a `SIGXFSZ` that kills the process.
    ///
    /// # Errors
    /// [`WriteError`] says how much is in the file nevertheless.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), WriteError> {
        check_span(offset, buf.len() as u64).map_err(|source| WriteError { written: 0, source })?;
        let room = max_file_bytes().saturating_sub(offset);
        let allowed = usize::try_from(room).unwrap_or(usize::MAX).min(buf.len());
        let mut written = 0;
        while written < allowed {
            let source = match pwrite(&self.fd, &buf[written..allowed], offset + written as u64) {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(n) => {
                    written += n;
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(e) => e.into(),
            };
            return Err(WriteError { written, source });
        }
        if allowed < buf.len() {
            return Err(WriteError { written, source: Errno::FBIG.into() });
        }
        Ok(())
    }
}

/// Refuses places that no file has, which the kernel would take for negative numbers.
pub(super) fn check_span(offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if i64::try_from(end).is_ok() => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{len} bytes at offset {offset} end beyond the largest file there can be"),
        )),
    }
}
