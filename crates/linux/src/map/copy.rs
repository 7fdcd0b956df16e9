//! Copying bytes in and out without ever raising a signal.
//!
//! `process_vm_readv` and `process_vm_writev` on our own process let the kernel make the accesses.
//! Seen on 6.18:
//! - beyond the end of the file they stop, with `EFAULT` where a plain access is `SIGBUS`, and give
//!   the count of whole pages before it;
//! - at a trapped page they wait, uninterruptibly but killably, if the userfaultfd catches the
//!   kernel's accesses, and fail with `EFAULT` if it is user-mode-only;
//! - what they write counts as stored for [`scan_stores`](FileMap::scan_stores).

use std::io;

use super::{AccessError, FileMap};
use crate::tid::current_pid;

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Out,
    In,
}

/// A page that the kernel could not get at, though it is neither away nor beyond the end of the
/// file, was so a moment ago: the file has grown back, or the page has come home. If it still fails
/// after so many tries, storage does.
const TRIES_MAX: u32 = 16;

impl Direction {
    fn call(self) -> &'static str {
        match self {
            Direction::Out => "process_vm_readv",
            Direction::In => "process_vm_writev",
        }
    }
}

impl FileMap {
    /// Fills `buf` from the bytes at `at`.
    ///
    /// Another process that stores there at the same time may give a mixture of old and new.
    ///
    /// # Errors
    /// [`AccessError`] tells how much was copied before.
    pub fn copy_out(&self, at: usize, buf: &mut [u8]) -> Result<(), AccessError> {
        self.copy(Direction::Out, at, buf.as_mut_ptr(), buf.len())
    }

    /// Stores `buf` at `at`.
    ///
    /// # Errors
    /// [`AccessError`] tells how much was stored before.
    pub fn copy_in(&self, at: usize, buf: &[u8]) -> Result<(), AccessError> {
        if !self.writable {
            return Err(AccessError::ReadOnly);
        }
        self.copy(Direction::In, at, buf.as_ptr().cast_mut(), buf.len())
    }

    /// Copies between the map and `[buf, buf + len)`, which the two callers above vouch for: valid
    /// for writes on the way out, for reads on the way in.
    fn copy(
        &self,
        direction: Direction,
        at: usize,
        buf: *mut u8,
        len: usize,
    ) -> Result<(), AccessError> {
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(AccessError::OutOfRange { at, len, map_len: self.len });
        }
        let (mut done, mut tries) = (0, 0);
        while done < len {
            let ours = libc::iovec { iov_base: buf.wrapping_add(done).cast(), iov_len: len - done };
            let mapped = libc::iovec { iov_base: self.at(at + done).cast(), iov_len: len - done };
            let pid = current_pid();
            let n = match direction {
                // SAFETY: one vector each; `ours` is inside the caller's exclusive buffer, and
                // `mapped` is only read.
                Direction::Out => unsafe { libc::process_vm_readv(pid, &ours, 1, &mapped, 1, 0) },
                // SAFETY: one vector each; `ours` is inside the caller's buffer and is only read,
                // and `mapped` is inside this writable map (checked), to which nothing in Rust
                // holds references.
                Direction::In => unsafe { libc::process_vm_writev(pid, &ours, 1, &mapped, 1, 0) },
            };
            match usize::try_from(n) {
                Ok(n) if n > 0 => (done, tries) = (done + n, 0),
                n => {
                    let error = io::Error::last_os_error();
                    let errno = match n {
                        Ok(_) => libc::EFAULT,
                        Err(_) => error.raw_os_error().unwrap_or(libc::EFAULT),
                    };
                    tries += 1;
                    let refused = self.refused(direction, at, done, errno);
                    let came_back = errno == libc::EFAULT
                        && matches!(refused, AccessError::Os { .. })
                        && tries < TRIES_MAX;
                    if errno != libc::EINTR && !came_back {
                        return Err(refused);
                    }
                }
            }
        }
        Ok(())
    }

    /// Why the kernel could not get at the byte `done` bytes after `at`.
    fn refused(&self, direction: Direction, at: usize, done: usize, errno: i32) -> AccessError {
        let at = at + done;
        if errno == libc::EFAULT {
            let offset = self.offset + at as u64;
            if self.is_away(at) {
                return AccessError::Away { done, at };
            }
            if let Ok(stamp) = self.file.observe()
                && offset >= stamp.size
            {
                return AccessError::PastEof { done, offset, size: stamp.size };
            }
        }
        let source = io::Error::from_raw_os_error(errno);
        AccessError::Os { done, call: direction.call(), source }
    }
}
