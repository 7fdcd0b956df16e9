//! One client's session: the threads that take its requests, and its end.
//!
//! **Whoever receives a request answers it.** All threads of a session receive on one socket; the kernel gives
//! each packet to one of them. A thread that is about to do something that may take its time sees to it first that
//! another one receives, and starts one if there is none. So there is no queue and no hand-over, requests of one
//! client run beside each other, and its releases are heard while its pins wait. Where the limit of threads is
//! reached, the last one takes nothing that may wait, so that it always comes back to receive.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pageferry_linux::{Peer, Received, Socket};
use pageferry_wire::{self as wire, Call, Failure, Request};

use super::held::Held;
use super::limits::{Limits, beyond};
use super::maps::Maps;
use super::replies::{Answer, Replies, send};
use super::{Daemon, answer, patience};
use crate::error::os_error;
use crate::sync::Mutex;
use crate::translate::for_people;
use crate::{Error, Result};

/// Threads of one session that wait for a request at once. More end: a client that has had many requests under
/// way is not going to have so many again soon.
const RECEIVERS_MAX: usize = 2;
/// Of a program's name.
const PROGRAM_BYTES_MAX: usize = 64;

/// One client.
pub(super) struct Session {
    pub(super) daemon: Arc<Daemon>,
    pub(super) number: u64,
    pub(super) peer: Peer,
    /// For people.
    pub(super) program: String,
    pub(super) replies: Arc<Replies>,
    /// Nobody is there any more: what waits in its name gives up.
    pub(super) gone: Arc<AtomicBool>,
    greeted: AtomicBool,
    pub(super) held: Held,
    pub(super) maps: Maps,
    crew: Mutex<Crew>,
}

/// The session's threads.
///
/// # Invariants
/// - `receiving <= all`. Threads on their way there count, from before their answer is sent: a processor that is busy
///   with others is no reason to start more. The session ends when `all` is 0, and is not on the daemon's list then.
#[derive(Default)]
struct Crew {
    receiving: usize,
    all: usize,
}

/// What a thread does next.
enum Next {
    Receive,
    End,
}

impl Session {
    /// Opens a session for who is at the other end of the socket, or tells it which limit keeps it out.
    pub(super) fn open(daemon: &Arc<Daemon>, socket: Socket, limits: &Limits) -> Result<()> {
        let peer = socket.peer().map_err(|e| os_error("asking for the client's user", &e))?;
        socket
            .set_send_timeout(Some(limits.reply_time))
            .map_err(|e| os_error("limiting the time for answers", &e))?;
        let mut sessions = daemon.sessions.lock();
        sessions.let_go(&daemon.users);
        let room = match sessions.count() < limits.sessions {
            true => daemon.users.enter(peer.uid, limits),
            false => Err(beyond("sessions", limits.sessions as u64)),
        };
        if let Err(failure) = room {
            drop(sessions);
            let Peer { pid, uid, .. } = peer;
            let error = crate::translate::error(failure.clone());
            tracing::warn!(uid, pid, %error, "a client is turned away");
            // It may be gone already.
            let _ = send(&socket, 0, Err(failure), &[]);
            return Ok(());
        }
        sessions.last += 1;
        let gone = Arc::<AtomicBool>::default();
        let session = Arc::new(Session {
            daemon: Arc::clone(daemon),
            number: sessions.last,
            peer,
            program: program(peer.pid),
            replies: Arc::new(Replies::new(socket, Arc::clone(&gone))),
            gone,
            greeted: AtomicBool::new(false),
            held: Held::default(),
            maps: Maps::default(),
            crew: Mutex::default(),
        });
        sessions.open.insert(session.number, Arc::clone(&session));
        drop(sessions);
        let Session { number, program, .. } = &*session;
        tracing::info!(session = number, uid = peer.uid, pid = peer.pid, program, "session opened");
        if daemon.is_stopping() {
            session.hang_up();
        }
        let started = session.start_thread();
        if started.is_err() {
            session.clean_up();
        }
        started
    }

    fn start_thread(self: &Arc<Self>) -> Result<()> {
        {
            let mut crew = self.crew.lock();
            crew.all += 1;
            crew.receiving += 1;
        }
        let session = Arc::clone(self);
        let name = format!("pageferry-{}", self.number);
        let spawned = std::thread::Builder::new().name(name).spawn(move || session.work());
        if let Err(error) = &spawned {
            let mut crew = self.crew.lock();
            crew.all -= 1;
            crew.receiving -= 1;
            return Err(os_error("starting a session's thread", error));
        }
        Ok(())
    }

    /// What one thread does, which counts as receiving already.
    fn work(self: Arc<Self>) {
        let mut packet = vec![0; wire::MESSAGE_BYTES_MAX];
        loop {
            let mut descriptors = Vec::new();
            let received = self.replies.socket.recv(&mut packet, &mut descriptors, 1);
            let last = {
                let mut crew = self.crew.lock();
                crew.receiving -= 1;
                crew.receiving == 0
            };
            let next = match received {
                Ok(Received::Packet(bytes)) => self.take(&packet[..bytes], descriptors, last),
                Ok(Received::Closed) => Next::End,
                Ok(Received::Truncated { .. }) => {
                    self.break_off("a message longer than any may be")
                }
                Ok(Received::TooManyDescriptors) => self.break_off("more descriptors than may be"),
                Err(error) => self.break_off(&error.to_string()),
            };
            if matches!(next, Next::End) {
                break;
            }
            let mut crew = self.crew.lock();
            if crew.receiving > RECEIVERS_MAX {
                crew.receiving -= 1;
                crew.all -= 1;
                return;
            }
        }
        self.hang_up();
        let over = {
            let mut crew = self.crew.lock();
            crew.all -= 1;
            crew.all == 0
        };
        if over {
            self.clean_up();
        }
    }

    /// The client has broken the rules, or cannot be reached: there is nothing more to say.
    fn break_off(&self, why: &str) -> Next {
        if !self.gone.load(Ordering::Relaxed) {
            let Session { number, peer, .. } = self;
            tracing::warn!(session = number, uid = peer.uid, why, "a session is broken off");
        }
        Next::End
    }

    /// Answers one packet. `last`: no other thread receives. Whoever goes on counts as receiving again.
    fn take(self: &Arc<Self>, packet: &[u8], descriptors: Vec<OwnedFd>, last: bool) -> Next {
        let Call { id, request } = match wire::decode_call(packet) {
            Ok(call) => call,
            Err(malformed) => return self.break_off(&malformed.to_string()),
        };
        let hello = matches!(request, Request::Hello { .. });
        let out_of_turn = hello == self.greeted.load(Ordering::SeqCst);
        let wrong = match request.descriptors() == descriptors.len() {
            _ if out_of_turn => Some("a session begins with one Hello"),
            false => Some("a message with a wrong number of descriptors"),
            true => None,
        };
        if let Some(wrong) = wrong {
            let _ = self.send(id, Err(Failure::Protocol(wrong.into())));
            return self.break_off(wrong);
        }
        let alone = last && answer::takes_time(&request);
        let others = if alone { self.another_thread() } else { Ok(()) };
        let answer = match others {
            Err(failure) if answer::may_wait(&request) => Err(failure),
            _ => self.answer_surely(request, descriptors),
        };
        if let Err(failure) = &answer {
            // Whoever asks wrongly, or for too much, could fill any log.
            tracing::debug!(session = self.number, ?failure, "a request is refused");
        }
        if hello && answer.is_ok() {
            self.greeted.store(true, Ordering::SeqCst);
        }
        self.crew.lock().receiving += 1;
        match self.send(id, answer) {
            Ok(()) => Next::Receive,
            Err(error) => {
                self.crew.lock().receiving -= 1;
                self.break_off(&error.to_string())
            }
        }
    }

    /// Sees to it that another thread receives, while this one has its hands full.
    fn another_thread(self: &Arc<Self>) -> Result<(), Failure> {
        let limit = self.daemon.limits.read().requests.max(2);
        let all = self.crew.lock().all;
        if all >= limit {
            return Err(beyond("requests of a session under way at once", limit as u64));
        }
        self.start_thread().map_err(|error| {
            tracing::warn!(%error, "a session stays short of threads");
            beyond("requests of a session under way at once, for want of threads", all as u64)
        })
    }

    /// A device's or file system's code may panic; the client is answered all the same.
    fn answer_surely(
        self: &Arc<Self>,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Answer, Failure> {
        patience::begin();
        let answered = catch_unwind(AssertUnwindSafe(|| self.answer(request, descriptors)));
        answered.unwrap_or_else(|_| {
            Err(Failure::KernelFailed("a step of the request panicked in the daemon".into()))
        })
    }

    fn send(&self, id: u32, answer: Result<Answer, Failure>) -> std::io::Result<()> {
        let time = self.daemon.limits.read().reply_time;
        self.replies.send(id, answer, time)
    }

    /// Ends the session, also from another thread: nothing more is received, and what waits gives up.
    pub(super) fn hang_up(&self) {
        if !self.gone.swap(true, Ordering::SeqCst) {
            self.replies.socket.shutdown();
            self.daemon.cache.shared.wake_all();
        }
    }

    /// Gives back all that the client held. The last thread does it: nothing else is under way. What panics here keeps
    /// nothing else from being given back.
    fn clean_up(&self) {
        patience::begin();
        let (pins, files) = self.held.take_all();
        for pin in pins {
            // Nothing that the client had stored and not told of is here; it is not half done.
            self.give_back("releasing a pin", || {
                self.end_pin(&pin, crate::After::WriteBack).map(drop)
            });
        }
        self.forget_maps();
        for file in files {
            // The cache tries again what it could not write back.
            self.give_back("closing a file", || self.close_file(file));
        }
        tracing::info!(
            session = self.number,
            uid = self.peer.uid,
            pid = self.peer.pid,
            program = self.program,
            "session closed"
        );
        self.daemon.sessions.lock().close(self);
        self.daemon.changed.notify_all();
    }

    /// Takes one step of giving back what a client held that is gone.
    pub(super) fn give_back(&self, what: &str, step: impl FnOnce() -> Result<(), Failure>) {
        let session = self.number;
        match catch_unwind(AssertUnwindSafe(step)) {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                tracing::error!(session, what, ?failure, "what a client had is given back badly");
            }
            Err(_) => tracing::error!(session, what, "giving back what a client had panicked"),
        }
    }

    /// The client is root's, or of the daemon's own user.
    pub(super) fn is_trusted(&self) -> bool {
        self.peer.uid == 0 || self.peer.uid == pageferry_linux::current_uid()
    }

    /// Requests under way.
    pub(super) fn requests(&self) -> usize {
        let crew = self.crew.lock();
        crew.all - crew.receiving
    }
}

/// What the process runs, for people.
fn program(pid: u32) -> String {
    let comm = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let comm = &comm[..comm.len().min(PROGRAM_BYTES_MAX)];
    for_people(String::from_utf8_lossy(comm).trim_end()).into_owned()
}

/// In the terms of the wire.
pub(super) fn failed<T>(result: Result<T, Error>) -> Result<T, Failure> {
    result.map_err(crate::translate::failure)
}
