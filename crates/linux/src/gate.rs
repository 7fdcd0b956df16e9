//! Being asked before others touch a file: a fanotify pre-content group (`CAP_SYS_ADMIN`, Linux 6.14).
//!
//! Seen on 6.18, on ext4, xfs and btrfs (tmpfs refuses the mark):
//!
//! - Every read, write, `mmap`, truncation, hole, reflink of a marked file is told before it happens and
//!   waits for an answer, with a range in whole pages. So does one of this process's own, through a
//!   descriptor opened while the mark was there: never mark a file before opening what will be used
//!   to serve it.
//! - An open waits for an answer, too (`FAN_OPEN_PERM`), before `O_TRUNC` does anything.
//! - What came before the mark is not told, nor what happens in a mapping once it is made. Through an
//!   overlay above the file, opens, reads and writes are told; mappings, `splice` and `sendfile` are not. The
//!   event's descriptor leads through a mount of the overlay's own. Nothing is told of loop devices.
//! - The range is not all of the truth: a truncation names its new end only, an append names the file's
//!   start, `FALLOC_FL_COLLAPSE_RANGE` and `INSERT_RANGE` name their own range though all behind it
//!   moves. From the first byte named to the end of the file is enough, but for appends, which show in
//!   the size; reads and writes keep to their range ([`Call`](crate::Call)).
//! - The event comes with a descriptor of the file, which counts as a reader while it is open: no lease
//!   is to be had meanwhile, and a lease that is held breaks.
//! - If the group is closed, whoever waits is let through. A forked child that has it open keeps it, and
//!   nobody answers: children do not get it.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rustix::event::{PollFd, PollFlags, poll};

use crate::fanotify::{self, FAN_PRE_ACCESS, double_word, word};
use crate::file::{FileId, HostFile};
use crate::fork::LostInChildren;

/// The type of the record of a range, which no crate has.
const INFO_TYPE_RANGE: u8 = 6;
/// Ranges are in pages of this system, or larger ones.
const PAGE_MASK: u64 = 4095;

/// A group that is asked.
///
/// # Invariants
/// - `group` is a non-blocking pre-content group.
/// - Every event read from it becomes an [`Access`], which answers.
#[derive(Debug)]
pub struct Gate {
    /// Dropped first: it speaks of the two descriptors behind it.
    _lost: LostInChildren,
    group: OwnedFd,
    stop: OwnedFd,
    /// Descriptors of events that may be open.
    open: AtomicUsize,
    /// How often one was opened or closed.
    turns: AtomicU64,
}

/// Somebody waits to touch a file. Dropped unanswered, it is let through.
#[derive(Debug)]
pub struct Access {
    gate: Arc<Gate>,
    /// A descriptor of the file; also names the event in the answer. Taken when answered.
    fd: Option<OwnedFd>,
    /// It is an open.
    pub opening: bool,
    /// What may be touched, in whole pages, as far as the [call](crate::Call) keeps to it. All, of an open.
    pub range: Range<u64>,
    /// The thread that waits.
    pub thread: u32,
}

impl Gate {
    /// A group without files.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`; `EMFILE` beyond 64 of them.
    pub fn new() -> io::Result<Gate> {
        let group = fanotify::group(
            // Who finds the queue full would not be asked.
            libc::FAN_CLASS_PRE_CONTENT | libc::FAN_REPORT_TID | libc::FAN_UNLIMITED_QUEUE,
        )?;
        let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        let lost = LostInChildren::new(group.as_fd(), stop.as_fd())?;
        Ok(Gate { _lost: lost, group, stop, open: AtomicUsize::new(0), turns: AtomicU64::new(0) })
    }

    /// Is asked about `file` from now on.
    ///
    /// # Errors
    /// `EINVAL` before Linux 6.14; `EOPNOTSUPP` on tmpfs and others.
    pub fn add(&self, file: &HostFile) -> io::Result<()> {
        self.mark(libc::FAN_MARK_ADD, file.as_fd())
    }

    /// Is asked no longer.
    ///
    /// # Errors
    /// `ENOENT` if it was not.
    pub fn remove(&self, file: &HostFile) -> io::Result<()> {
        self.mark(libc::FAN_MARK_REMOVE, file.as_fd())
    }

    fn mark(&self, flags: libc::c_uint, file: BorrowedFd<'_>) -> io::Result<()> {
        fanotify::mark(&self.group, flags, FAN_PRE_ACCESS | libc::FAN_OPEN_PERM, file)
    }

    /// Ends the wait of whoever is in [`next`](Gate::next), now or later.
    pub fn stop(&self) {
        // It fails only where the counter is full, and then it is not zero, which is the point.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }

    /// Waits for accesses. `false`: stopped.
    ///
    /// # Errors
    /// Reading failed.
    pub fn next(self: &Arc<Self>, mut each: impl FnMut(Access)) -> io::Result<bool> {
        let mut fds =
            [PollFd::new(&self.group, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds[1].revents().contains(PollFlags::IN) {
            return Ok(false);
        }
        let mut buf = [0_u8; 4096];
        // Reading opens the descriptors.
        self.opens();
        let read = rustix::io::read(&self.group, &mut buf[..]);
        if let Ok(len) = read {
            self.parse(&buf[..len], &mut each);
        }
        self.closed();
        match read {
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    fn opens(&self) {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.turns.fetch_add(1, Ordering::AcqRel);
    }

    fn closed(&self) {
        self.turns.fetch_add(1, Ordering::AcqRel);
        self.open.fetch_sub(1, Ordering::AcqRel);
    }

    /// A moment at which no file is open for the sake of an event, which a lease would take for a reader;
    /// `None`: some may be. Of two equal ones, none was in between.
    #[must_use]
    pub fn idle(&self) -> Option<u64> {
        let turns = self.turns.load(Ordering::Acquire);
        (self.open.load(Ordering::Acquire) == 0).then_some(turns)
    }

    fn parse(self: &Arc<Self>, bytes: &[u8], each: &mut impl FnMut(Access)) {
        for event in fanotify::events(bytes) {
            let fd = word(event, 16).cast_signed();
            if fd < 0 {
                continue;
            }
            // SAFETY: the kernel has opened it for this event, and nobody else knows it.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            self.opens();
            let opening = double_word(event, 8) & libc::FAN_OPEN_PERM != 0;
            let (gate, fd, range) = (Arc::clone(self), Some(fd), range(event));
            each(Access { gate, fd, opening, range, thread: word(event, 20) });
        }
    }
}

/// The pages of the range record of an event; without one, all.
fn range(event: &[u8]) -> Range<u64> {
    let record = fanotify::record(event).filter(|r| r.first() == Some(&INFO_TYPE_RANGE));
    let Some(record) = record else { return 0..u64::MAX };
    let (from, len) = (double_word(record, 8), double_word(record, 16));
    from & !PAGE_MASK..from.saturating_add(len).saturating_add(PAGE_MASK) & !PAGE_MASK
}

impl Access {
    /// Which file it is.
    ///
    /// # Errors
    /// `statx` fails.
    pub fn file(&self) -> io::Result<FileId> {
        let fd = self.fd.as_ref().ok_or(rustix::io::Errno::BADF)?;
        crate::file::identity(fd.as_fd())
    }

    /// It goes through the mount that `file` was opened through. What an overlay, say, has opened does not,
    /// and then not all that happens to the file is asked about.
    #[must_use]
    pub fn is_beside(&self, file: &HostFile) -> bool {
        self.fd.as_ref().is_some_and(|fd| crate::file::share_mount(fd.as_fd(), file.as_fd()))
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        let answer = libc::fanotify_response { fd: fd.as_raw_fd(), response: libc::FAN_ALLOW };
        let bytes = [answer.fd.to_ne_bytes(), answer.response.to_ne_bytes()].concat();
        // Nobody waits any more if the access was given up meanwhile (ENOENT).
        let _ = rustix::io::write(&self.gate.group, &bytes);
        drop(fd);
        self.gate.closed();
    }
}
