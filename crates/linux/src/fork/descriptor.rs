//! Descriptors that no forked child may have.
//!
//! A fanotify group that is asked lives as long as anybody has it open. A child that outlives its parent
//! and never calls `exec` would keep it, and nobody would answer: whoever touches a marked file would
//! wait for ever. So the child, before `fork` returns in it, puts another descriptor in its place. (It is
//! not closed: what owns the number in the child's copy of memory would close somebody else's.)
//!
//! As for [`GuardedRange`](super::GuardedRange), this takes effect in children made by `fork`, not by a
//! bare `clone`; the handler takes no lock and makes one system call for each.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// So many at most.
const MAX: usize = 64;

/// Two descriptors each, the one below and the one in its place above, plus one; 0: none.
static LOST: [AtomicU64; MAX] = [const { AtomicU64::new(0) }; MAX];

/// A descriptor that children lose, as long as this lives.
#[derive(Debug)]
pub(crate) struct LostInChildren(&'static AtomicU64);

impl LostInChildren {
    /// Children find `instead` in the place of `fd`. Both must stay open as long as this lives.
    ///
    /// # Errors
    /// `EMFILE`: there are 64 already.
    pub(crate) fn new(fd: BorrowedFd<'_>, instead: BorrowedFd<'_>) -> io::Result<LostInChildren> {
        static HANDLER: AtomicBool = AtomicBool::new(false);
        if !HANDLER.load(Ordering::Acquire) {
            // SAFETY: the handler may be called in any child at any time: it reads atomics and replaces
            // descriptors by others. That there is no room for it is the only error, told below.
            let rc = unsafe { libc::pthread_atfork(None, None, Some(replace)) };
            if rc != 0 {
                return Err(io::Error::from_raw_os_error(rc));
            }
            HANDLER.store(true, Ordering::Release);
        }
        let half = |fd: BorrowedFd<'_>| u64::from(fd.as_raw_fd().cast_unsigned());
        let both = (half(instead) << 32 | half(fd)) + 1;
        let free = |place: &&AtomicU64| {
            place.compare_exchange(0, both, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let place = LOST.iter().find(free);
        Ok(LostInChildren(place.ok_or(rustix::io::Errno::MFILE)?))
    }
}

impl Drop for LostInChildren {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

/// In a child, before `fork` returns.
extern "C" fn replace() {
    for place in &LOST {
        if let Some(both) = place.load(Ordering::Acquire).checked_sub(1) {
            let fd = |half: u64| (half as u32).cast_signed();
            // SAFETY: takes numbers; the child's own copies of descriptors of ours are replaced.
            unsafe { libc::dup3(fd(both >> 32), fd(both), libc::O_CLOEXEC) };
        }
    }
}
