//! Reading what the kernel tells, in batches.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use linux_raw_sys::general as raw;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
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

impl Uffd {
    /// Waits for events and puts up to 64 of them into `events`, which is emptied first.
    ///
    /// Several threads may wait; each event comes to one of them.
    ///
    /// # Errors
    /// Whatever `poll` and `read` say; not `EINTR`.
    pub fn wait(&self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<Wakeup> {
        events.clear();
        self.reader.store(crate::tid::current_tid(), Ordering::Relaxed);
        // A time too long for the kernel's clock is as good as none.
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        loop {
            let mut fds =
                [PollFd::new(&self.fd, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return Ok(Wakeup::TimedOut),
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            let stopped = !fds[1].revents().is_empty();
            if fds[0].revents().contains(PollFlags::ERR) {
                return Err(io::Error::other(
                    "the userfaultfd is not readable (not non-blocking?)",
                ));
            }
            if self.read_batch(events)? {
                return Ok(Wakeup::Events);
            }
            if stopped {
                return Ok(Wakeup::Stopped);
            }
        }
    }

    /// Makes [`wait`](Uffd::wait) return [`Wakeup::Stopped`] from now on, once it has handed over
    /// the events there are.
    ///
    /// Whoever traps, or touches what is trapped, after the last reader has gone waits for ever:
    /// bring everything home first.
    ///
    /// # Errors
    /// Never in practice (the write that tells the reader failed).
    pub fn stop(&self) -> io::Result<()> {
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
