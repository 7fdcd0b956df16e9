//! Copying bytes in and out without ever raising a signal.
//!
//! `process_vm_readv` and `process_vm_writev` on our own process let the kernel make the accesses.
//! Seen on 6.18:
//! - beyond the end of the file they stop, with `EFAULT` where a plain access is `SIGBUS`, and give
//!   the count of whole pages before it;
//! - at a trapped page they wait, uninterruptibly but killably, if the userfaultfd catches the
//!   kernel's accesses, and fail with `EFAULT` if it is user-mode-only;
//! - they *pin* up to 4 MiB of pages first and copy afterwards, past the page tables. In between a
//!   trap does not stop them, nor does a scan see the store: it would come into the file after the
//!   device has taken the page's bytes, and be lost. (If the other side's memory takes a while to be
//!   readable, "in between" is as long as one likes.)
//!
//! So a copy is made in pieces, each under the shared lock of the map's shape, which traps and scans
//! take exclusively: while the kernel has pages pinned, they stay home. Between map and caller there
//! is a private buffer: the caller's memory may be anything, also a page that is away, whose coming
//! home needs the very lock; it is only touched with the lock given back.

use std::io;

use super::{AccessError, FileMap};
use crate::tid::current_pid;

/// Copied under the lock at once: so much that system calls do not count, so little that a trap does
/// not wait long.
const PIECE: usize = 64 << 10;

/// A page that the kernel could not get at, though it is neither away nor beyond the end of the
/// file, was so a moment ago: the file has grown back, or the page has come home. If it still fails
/// after so many tries, storage does.
const TRIES_MAX: u32 = 16;

/// The caller's side of a copy.
enum Caller<'a> {
    Out(&'a mut [u8]),
    In(&'a [u8]),
}

impl Caller<'_> {
    fn len(&self) -> usize {
        match self {
            Caller::Out(bytes) => bytes.len(),
            Caller::In(bytes) => bytes.len(),
        }
    }

    fn call(&self) -> &'static str {
        match self {
            Caller::Out(_) => "process_vm_readv",
            Caller::In(_) => "process_vm_writev",
        }
    }
}

/// What came of a piece.
enum Outcome {
    Copied(usize),
    /// Its first page was away and may have come home.
    Waited,
    Failed(i32),
}

impl FileMap {
    /// Fills `buf` from the bytes at `at`. Waits for what is away where system calls do.
    ///
    /// Another process that stores there at the same time may give a mixture of old and new.
    ///
    /// # Errors
    /// [`AccessError`] tells how much was copied before.
    pub fn copy_out(&self, at: usize, buf: &mut [u8]) -> Result<(), AccessError> {
        self.copy(Caller::Out(buf), at)
    }

    /// Stores `buf` at `at`; otherwise as [`copy_out`](FileMap::copy_out).
    ///
    /// # Errors
    /// [`AccessError`] tells how much was stored before.
    pub fn copy_in(&self, at: usize, buf: &[u8]) -> Result<(), AccessError> {
        if !self.writable {
            return Err(AccessError::ReadOnly);
        }
        self.copy(Caller::In(buf), at)
    }

    fn copy(&self, mut caller: Caller<'_>, at: usize) -> Result<(), AccessError> {
        let len = caller.len();
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(AccessError::OutOfRange { at, len, map_len: self.len });
        }
        if !self.owner.is_current() {
            return Err(AccessError::Forked);
        }
        let mut bounce = vec![0; len.min(PIECE)];
        let (mut done, mut tries) = (0, 0);
        while done < len {
            let piece = &mut bounce[..(len - done).min(PIECE)];
            if let Caller::In(bytes) = &caller {
                piece.copy_from_slice(&bytes[done..done + piece.len()]);
            }
            match self.copy_piece(matches!(caller, Caller::In(_)), at + done, piece) {
                Outcome::Copied(n) => {
                    if let Caller::Out(bytes) = &mut caller {
                        bytes[done..done + n].copy_from_slice(&piece[..n]);
                    }
                    (done, tries) = (done + n, 0);
                }
                Outcome::Waited | Outcome::Failed(libc::EINTR) => {}
                Outcome::Failed(errno) => {
                    tries += 1;
                    let refused = self.refused(caller.call(), at, done, errno);
                    let came_back = errno == libc::EFAULT
                        && matches!(refused, AccessError::Os { .. })
                        && tries < TRIES_MAX;
                    if !came_back {
                        return Err(refused);
                    }
                }
            }
        }
        Ok(())
    }

    /// Copies between the map and the piece, as far as it is home and inside the file.
    fn copy_piece(&self, store: bool, at: usize, piece: &mut [u8]) -> Outcome {
        let shape = self.shape.read();
        let away = shape.away.within(at..at + piece.len());
        let home = away.first().map_or(piece.len(), |away| away.start - at);
        if home > 0 {
            return match self.ask_kernel(store, at, &mut piece[..home]) {
                Ok(n) => Outcome::Copied(n),
                Err(errno) => Outcome::Failed(errno),
            };
        }
        // Whoever brings it home takes the lock.
        drop(shape);
        match self.ask_kernel(false, at, &mut [0]) {
            Ok(_) => Outcome::Waited,
            Err(errno) => Outcome::Failed(errno),
        }
    }

    /// One system call. Waits if the map's page is away; `piece` is memory of our own.
    fn ask_kernel(&self, store: bool, at: usize, piece: &mut [u8]) -> Result<usize, i32> {
        let ours = libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() };
        let mapped = libc::iovec { iov_base: self.at(at).cast(), iov_len: piece.len() };
        let pid = current_pid();
        let n = if store {
            // SAFETY: one vector each, in this process: `ours` is only read; `mapped` is inside the
            // map (checked by `copy`, as is that the map is this process's and writable), to which
            // nothing in Rust holds references.
            unsafe { libc::process_vm_writev(pid, &ours, 1, &mapped, 1, 0) }
        } else {
            // SAFETY: as above; `ours` is exclusively borrowed, `mapped` is only read.
            unsafe { libc::process_vm_readv(pid, &ours, 1, &mapped, 1, 0) }
        };
        match usize::try_from(n) {
            Ok(n) if n > 0 => Ok(n),
            Ok(_) => Err(libc::EFAULT),
            Err(_) => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EFAULT)),
        }
    }

    /// Why the kernel could not get at the byte `done` bytes after `at`.
    fn refused(&self, call: &'static str, at: usize, done: usize, errno: i32) -> AccessError {
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
        AccessError::Os { done, call, source: io::Error::from_raw_os_error(errno) }
    }
}
