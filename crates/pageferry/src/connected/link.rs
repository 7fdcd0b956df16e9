//! The connection: requests of many threads over one socket.
//!
//! **Who waits receives.** There is no thread of the connection's own. Of those that wait for an answer one
//! receives; what it gets for another it puts down for that one, and when it has its own it leaves, and another
//! one of those that still wait receives. A thread that is alone thus makes two system calls, and wakes nobody.

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use pageferry_engine::Owner;
use pageferry_linux::{Received, Socket};
use pageferry_wire::{self as wire, Call, FileId, Reply, Request, Return};

use crate::error::os_error;
use crate::sync::{Condvar, Mutex};
use crate::{Error, Result, translate};

/// How often, and with what pauses, it asks again for descriptors that the daemon could not send.
const ASK_AGAIN_MAX: u32 = 1000;
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// A connection to a daemon.
pub(super) struct Link {
    socket: Socket,
    calls: Mutex<Calls>,
    /// An answer was put down, or nobody receives.
    changed: Condvar,
    /// Whoever receives holds it.
    packet: Mutex<Vec<u8>>,
    process: u32,
}

#[derive(Default)]
struct Calls {
    /// By id: what has come for those that wait.
    open: HashMap<u32, Option<Answer>>,
    receiving: bool,
    last_id: u32,
    /// Why there is no daemon any more.
    lost: Option<Error>,
}

/// What the daemon says.
pub(super) struct Answer {
    result: Result<Reply, wire::Failure>,
    descriptors: Vec<OwnedFd>,
}

/// An answer that is a reply.
pub(super) struct Replied {
    pub(super) reply: Reply,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Link {
    pub(super) fn connect(path: &Path) -> Result<Link> {
        let what = format!("connecting to the daemon at {}", path.display());
        let socket = Socket::connect(path).map_err(|e| os_error(&what, &e))?;
        Ok(Link {
            socket,
            calls: Mutex::default(),
            changed: Condvar::new(),
            packet: Mutex::new(vec![0; wire::MESSAGE_BYTES_MAX]),
            process: std::process::id(),
        })
    }

    pub(super) fn not_forked(&self) -> Result<()> {
        if std::process::id() == self.process { Ok(()) } else { Err(Error::Forked) }
    }

    /// Asks, waits for the answer.
    pub(super) fn call(&self, request: Request, fd: Option<BorrowedFd<'_>>) -> Result<Replied> {
        let brings = matches!(
            request,
            Request::Frames { .. } | Request::Description { .. } | Request::Callbacks
        );
        let again = if brings { ASK_AGAIN_MAX } else { 0 };
        for _ in 0..again {
            match self.call_once(request.clone(), fd) {
                // Others have not received what they were sent, which passes.
                Err(Error::Limit { .. }) => std::thread::sleep(ASK_AGAIN),
                answer => return answer,
            }
        }
        self.call_once(request, fd)
    }

    fn call_once(&self, request: Request, fd: Option<BorrowedFd<'_>>) -> Result<Replied> {
        self.not_forked()?;
        let id = self.begin()?;
        let sent = match wire::encode_call(&Call { id, request }) {
            Ok(packet) => match self.socket.send(&packet, fd.as_slice()) {
                // Why the daemon has hung up, it may have said before: that is still to be received.
                Err(error) if is_hung_up(&error) => Ok(()),
                sent => sent.map_err(|e| lost(&e)),
            },
            Err(error) => Err(Error::InvalidArgument(error.to_string())),
        };
        if let Err(error) = sent {
            let mut calls = self.calls.lock();
            calls.open.remove(&id);
            return Err(calls.lost.clone().unwrap_or(error));
        }
        let Answer { result, descriptors } = self.answer(id)?;
        match result {
            Ok(reply) => Ok(Replied { reply, descriptors }),
            Err(failure) => Err(translate::error(failure)),
        }
    }

    /// As [`call`](Self::call), where no descriptors come or go.
    pub(super) fn ask(&self, request: Request) -> Result<Reply> {
        Ok(self.call(request, None)?.reply)
    }

    /// Shows the daemon a file.
    pub(super) fn open(&self, fd: BorrowedFd<'_>, name: &str, writable: bool) -> Result<FileId> {
        let mut cut = name.len().min(wire::NAME_BYTES_MAX);
        while !name.is_char_boundary(cut) {
            cut -= 1;
        }
        let request = Request::Open { name: name[..cut].into(), writable };
        match self.call(request, Some(fd))?.reply {
            Reply::Opened { file } => Ok(file),
            reply => Err(unexpected(&reply)),
        }
    }

    pub(super) fn ask_bytes(&self, request: Request) -> Result<u64> {
        match self.ask(request)? {
            Reply::Bytes(bytes) => Ok(bytes),
            reply => Err(unexpected(&reply)),
        }
    }

    pub(super) fn ask_done(&self, request: Request) -> Result<()> {
        match self.ask(request)? {
            Reply::Done => Ok(()),
            reply => Err(unexpected(&reply)),
        }
    }

    fn begin(&self) -> Result<u32> {
        let mut calls = self.calls.lock();
        if let Some(error) = &calls.lost {
            return Err(error.clone());
        }
        loop {
            calls.last_id = calls.last_id.wrapping_add(1);
            let id = calls.last_id;
            if id != 0 && !calls.open.contains_key(&id) {
                calls.open.insert(id, None);
                return Ok(id);
            }
        }
    }

    /// Waits for an answer, receiving if nobody does.
    fn answer(&self, id: u32) -> Result<Answer> {
        let mut calls = self.calls.lock();
        loop {
            if let Some(answer) = calls.open.get_mut(&id).and_then(Option::take) {
                calls.open.remove(&id);
                if !calls.open.is_empty() {
                    self.changed.notify_all();
                }
                return Ok(answer);
            }
            if let Some(error) = &calls.lost {
                let error = error.clone();
                calls.open.remove(&id);
                return Err(error);
            }
            if calls.receiving {
                self.changed.wait(&mut calls);
                continue;
            }
            calls.receiving = true;
            drop(calls);
            let received = self.receive();
            calls = self.calls.lock();
            calls.receiving = false;
            match received {
                Ok((for_id, answer)) => match calls.open.get_mut(&for_id) {
                    Some(place) => *place = Some(answer),
                    // To the first message, before the daemon knows its number.
                    None if for_id == 0 => calls.lost = answer.result.err().map(translate::error),
                    None => tracing::warn!(id = for_id, "an answer that nobody waits for"),
                },
                Err(error) => calls.lost = Some(error),
            }
            self.changed.notify_all();
        }
    }

    fn receive(&self) -> Result<(u32, Answer)> {
        let mut packet = self.packet.lock();
        let mut descriptors = Vec::new();
        let received = self.socket.recv(&mut packet, &mut descriptors, wire::DESCRIPTORS_MAX);
        match received.map_err(|e| lost(&e))? {
            Received::Packet(bytes) => {
                let Return { id, result } = wire::decode_return(&packet[..bytes])
                    .map_err(|e| Error::Protocol(e.to_string()))?;
                Ok((id, Answer { result, descriptors }))
            }
            Received::Closed => Err(Error::Disconnected { why: "the daemon has hung up".into() }),
            Received::Truncated { .. } => {
                Err(Error::Protocol("an answer longer than any may be".into()))
            }
            Received::TooManyDescriptors => Err(Error::Disconnected {
                why: "this process has no descriptors left to receive one".into(),
            }),
        }
    }
}

fn is_hung_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn lost(error: &io::Error) -> Error {
    Error::Disconnected { why: error.to_string() }
}

/// An answer to another question.
pub(super) fn unexpected(reply: &Reply) -> Error {
    let text = format!("{reply:?}");
    let name = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    Error::Protocol(format!("it answers with {name}"))
}

/// A thread of this process, as the daemon is told of it.
pub(super) fn thread(owner: Owner) -> Option<u32> {
    owner.and_then(|owner| u32::try_from(owner).ok())
}

#[cfg(test)]
mod tests {
    use pageferry_linux::Listener;

    use super::*;

    #[test]
    fn who_is_turned_away_before_the_first_word_hears_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = Listener::bind(&path, 0o600).unwrap();
        let link = Link::connect(&path).unwrap();
        let daemon = listener.accept().unwrap().unwrap();
        let failure = wire::Failure::Limit { what: "sessions".into(), limit: 0 };
        let refusal = wire::encode_return(&Return { id: 0, result: Err(failure) }).unwrap();
        daemon.send(&refusal, &[]).unwrap();
        drop(daemon);
        for _ in 0..2 {
            let refused = link.ask(Request::Hello { version: wire::VERSION });
            assert!(matches!(refused, Err(Error::Limit { limit: 0, .. })), "{refused:?}");
        }
    }

    #[test]
    fn a_daemon_that_hangs_up_without_a_word_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = Listener::bind(&path, 0o600).unwrap();
        let link = Link::connect(&path).unwrap();
        drop(listener.accept().unwrap().unwrap());
        for _ in 0..2 {
            let gone = link.ask(Request::Stats);
            assert!(matches!(gone, Err(Error::Disconnected { .. })), "{gone:?}");
        }
    }
}
