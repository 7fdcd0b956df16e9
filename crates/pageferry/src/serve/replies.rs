//! Answers, and the descriptors among them that a client has not received.
//!
//! A descriptor that was sent and not received counts for the daemon's user, however it came there: with as many as it
//! may have open (`RLIMIT_NOFILE`) it can send none to anybody, unless it has `CAP_SYS_RESOURCE` or `CAP_SYS_ADMIN`.
//! Nothing takes them back from a client that keeps its end open. So a session gets no more before it has received those
//! that it has been sent, as much as one answer may have; and a session that ends with some on their way keeps its place
//! among the sessions until they are received, or its end is closed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pageferry_linux::Socket;
use pageferry_wire::{self as wire, Failure, Reply, Return};

use super::limits::beyond;
use crate::sync::RwLock;

/// How long the pauses are in which the client may receive.
const PAUSE_MIN: Duration = Duration::from_micros(50);
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// An answer and what comes with it.
pub(super) struct Answer {
    pub(super) reply: Reply,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Answer {
        Answer { reply, descriptors: Vec::new() }
    }
}

/// A session's socket.
pub(super) struct Replies {
    pub(super) socket: Socket,
    /// Descriptors that were sent since everything was seen to be received. Who sends some holds it for writing, so
    /// that nothing else is sent while the client is waited for: it comes to the end of what there is to receive.
    on_their_way: RwLock<usize>,
    /// Nobody is there any more.
    gone: Arc<AtomicBool>,
}

impl Replies {
    pub(super) fn new(socket: Socket, gone: Arc<AtomicBool>) -> Replies {
        Replies { socket, on_their_way: RwLock::new(0), gone }
    }

    /// Sends an answer.
    ///
    /// # Errors
    /// The client cannot be reached, or does not receive; for descriptors, within `time`.
    pub(super) fn send(
        &self,
        id: u32,
        answer: Result<Answer, Failure>,
        time: Duration,
    ) -> io::Result<()> {
        let (reply, descriptors) = match answer {
            Ok(Answer { reply, descriptors }) if !descriptors.is_empty() => (reply, descriptors),
            answer => {
                let _order = self.on_their_way.read();
                return send(&self.socket, id, answer.map(|answer| answer.reply), &[]);
            }
        };
        let mut on_their_way = self.on_their_way.write();
        self.make_room(&mut on_their_way, descriptors.len(), time)?;
        match send(&self.socket, id, Ok(reply), &descriptors) {
            Ok(()) => *on_their_way += descriptors.len(),
            // Not this client's fault: it may ask again.
            Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                let limit = pageferry_linux::limits::descriptor_limit();
                tracing::warn!(limit, "clients do not receive the descriptors that they were sent");
                let failure = beyond("descriptors on their way to clients", limit);
                send(&self.socket, id, Err(failure), &[])?;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Waits until so many more descriptors may be on their way.
    fn make_room(&self, on_their_way: &mut usize, more: usize, time: Duration) -> io::Result<()> {
        let since = Instant::now();
        let mut pause = PAUSE_MIN;
        while *on_their_way > 0 {
            if self.socket.all_received()? {
                *on_their_way = 0;
            }
            if *on_their_way + more <= wire::DESCRIPTORS_MAX {
                break;
            }
            if since.elapsed() >= time || self.gone.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(pause);
            pause = PAUSE_MAX.min(pause * 2);
        }
        Ok(())
    }

    /// The client has received all descriptors that it was sent, or is gone.
    pub(super) fn are_received(&self) -> bool {
        // What cannot be told is not to keep anybody out.
        *self.on_their_way.read() == 0 || self.socket.all_received().unwrap_or(true)
    }
}

/// Sends an answer to who has no session, too.
pub(super) fn send(
    socket: &Socket,
    id: u32,
    result: Result<Reply, Failure>,
    descriptors: &[OwnedFd],
) -> io::Result<()> {
    let packet = wire::encode_return(&Return { id, result })
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    socket.send(&packet, &descriptors)
}
