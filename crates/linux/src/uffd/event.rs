//! Reading what the kernel tells, in batches.
//!
//! `poll` refuses (`EINVAL`) once `RLIMIT_NOFILE` is below the number of descriptors it is asked
//! about, and a program may lower that limit at any time; an epoll instance that exists is not
//! concerned (both seen on 6.18). Nobody who waits may be left waiting for such a reason.

use std::cell::RefCell;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use linux_raw_sys::general as raw;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::{Features, Uffd};
use crate::abi::{MESSAGE_ARG, MESSAGE_BYTES};

/// A thread stopped at a trapped page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The address accessed; on kernels without `EXACT_ADDRESS`, the start of its page.
    pub addr: usize,
    /// Whether it was a store (a system call that only checks a buffer may load before it stores).
    pub write: bool,
    /// Which thread, as in [`current_tid`](crate::current_tid), where the kernel tells.
    pub tid: Option<u32>,
}

/// What the kernel tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A thread waits. It goes on after the range is woken.
    Fault(Fault),
    /// A placeholder has moved. Having been read is all it is for: the mover goes on now.
    Remap {
        /// Where it was.
        from: usize,
        /// Where it is.
        to: usize,
        /// Bytes.
        len: usize,
    },
    /// Nothing that was asked for.
    Other(u8),
}

/// Why [`Uffd::wait`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// There are events.
    Events,
    /// Nothing happened for the time given.
    TimedOut,
    /// [`Uffd::stop`] was called and no event is left.
    Stopped,
}

/// Messages taken in one read.
const BATCH: usize = 64;

/// What epoll says of the userfaultfd and of the descriptor that stops its readers.
const EVENTS: u64 = 0;
const STOP: u64 = 1;

thread_local! {
    /// The descriptors that this thread has ever waited for.
    static READS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// A name for a descriptor, never used again.
pub(super) fn fresh_serial() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed)
}

/// An epoll instance over a userfaultfd and a descriptor that stops its readers.
pub(super) fn either(fd: BorrowedFd<'_>, stop: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let either = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (fd, name) in [(fd, EVENTS), (stop, STOP)] {
        epoll::add(&either, fd, epoll::EventData::new_u64(name), epoll::EventFlags::IN)?;
    }
    Ok(either)
}

impl Uffd {
    /// Waits for events and puts up to 64 of them into `events`, which is emptied first.
    ///
    /// Several threads may wait; each event comes to one of them. A thread that has waited once is
    /// a reader for its life, and must not move placeholders.
    ///
    /// After an error wait again, perhaps a little later: threads depend on it.
    ///
    /// # Errors
    /// Whatever `epoll_wait` and `read` say; not `EINTR`. `PermissionDenied` in a forked child.
    pub fn wait(&self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<Wakeup> {
        events.clear();
        self.check_owner()?;
        READS.with_borrow_mut(|reads| {
            if !reads.contains(&self.serial) {
                reads.push(self.serial);
            }
        });
        // A time too long for the kernel's clock is as good as none.
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        loop {
            let none = epoll::Event {
                flags: epoll::EventFlags::empty(),
                data: epoll::EventData::new_u64(EVENTS),
            };
            let mut ready = [none; 2];
            let count = match epoll::wait(&self.either, &mut ready[..], timeout.as_ref()) {
                Ok(0) => return Ok(Wakeup::TimedOut),
                Ok(count) => count,
                Err(Errno::INTR) => 0,
                Err(e) => return Err(e.into()),
            };
            // Copied out of the packed struct.
            let says = |name| {
                let found = ready[..count].iter().find(|event| event.data.u64() == name);
                found.map(|event| event.flags)
            };
            if says(EVENTS).is_some_and(|flags| flags.contains(epoll::EventFlags::ERR)) {
                return Err(io::Error::other(
                    "the userfaultfd is not readable (not non-blocking?)",
                ));
            }
            if self.read_batch(events)? {
                return Ok(Wakeup::Events);
            }
            if says(STOP).is_some() {
                return Ok(Wakeup::Stopped);
            }
        }
    }

    /// Whether the calling thread is one that reads the events.
    pub(crate) fn is_reader(&self) -> bool {
        READS.with_borrow(|reads| reads.contains(&self.serial))
    }

    fn check_owner(&self) -> io::Result<()> {
        if self.is_ours() {
            return Ok(());
        }
        let what = "the userfaultfd belongs to the process that opened it, not to a forked child";
        Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
    }

    /// Makes [`wait`](Uffd::wait) return [`Wakeup::Stopped`] from now on, once it has handed over
    /// the events there are.
    ///
    /// Whoever traps, or touches what is trapped, after the last reader has gone waits for ever:
    /// bring everything home first.
    ///
    /// # Errors
    /// `PermissionDenied` in a forked child, whose readers these are not. Otherwise never in
    /// practice (the write that tells the reader failed).
    pub fn stop(&self) -> io::Result<()> {
        self.check_owner()?;
        match rustix::io::write(&self.stop, &1_u64.to_ne_bytes()) {
            // Full: it has been told often enough.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether there was anything to read.
    fn read_batch(&self, events: &mut Vec<Event>) -> io::Result<bool> {
        let mut bytes = [0_u8; BATCH * MESSAGE_BYTES];
        let filled = match rustix::io::read(&self.fd, &mut bytes[..]) {
            Ok(n) => n,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(e) => return Err(e.into()),
        };
        let tells_thread = self.features.contains(Features::THREAD_ID);
        events.extend(bytes[..filled].chunks_exact(MESSAGE_BYTES).map(|m| parse(m, tells_thread)));
        Ok(!events.is_empty())
    }
}

/// One message: the event's number in the first byte, three words of argument from the ninth on
/// (layouts checked in [`abi`](crate::abi)).
fn parse(message: &[u8], tells_thread: bool) -> Event {
    let mut words = [0_u64; 3];
    for (word, bytes) in words.iter_mut().zip(message[MESSAGE_ARG..].chunks_exact(8)) {
        let mut raw = [0; 8];
        raw.copy_from_slice(bytes);
        *word = u64::from_ne_bytes(raw);
    }
    let [a, b, c] = words;
    match u32::from(message[0]) {
        raw::UFFD_EVENT_PAGEFAULT => {
            let mut tid = [0; 4];
            tid.copy_from_slice(&c.to_ne_bytes()[..4]);
            Event::Fault(Fault {
                addr: b as usize,
                write: a & u64::from(raw::UFFD_PAGEFAULT_FLAG_WRITE) != 0,
                tid: tells_thread.then_some(u32::from_ne_bytes(tid)),
            })
        }
        raw::UFFD_EVENT_REMAP => Event::Remap { from: a as usize, to: b as usize, len: c as usize },
        _ => Event::Other(message[0]),
    }
}
