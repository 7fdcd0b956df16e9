//! The daemon: one cache for every process that may read its files.
//!
//! # The one idea
//!
//! A daemon is a cache whose handles are held by other processes. A client sends what a
//! [`File`](crate::File) asks of its cache; a session makes that request of the cache in this
//! process, in the client's name, and keeps what comes of it (openings, pins) in a table of its own, so that
//! all of it can be given back when the client is gone, whatever it was doing.
//!
//! ```text
//!  client ── packet ──▶ session thread ── FileService ──▶ the cache
//!         ◀── packet ──        │
//!                              └ who has received a packet answers it; another thread receives the next
//! ```
//!
//! What a client is given of the device is memory it cannot write ([`Device::export_frame`]), of folios that
//! it has pinned, of files that it has shown a descriptor of. What it stores under a write pin it stores in
//! copies of its own, and sends them with the release: whatever happens to it before, nothing is half done.
//!
//! Copies outlive those who had them made: each file stays open here, by a handle of the daemon's own, until
//! nothing of it is left on the device (`kept.rs`).

mod answer;
mod held;
mod kept;
mod limits;
mod maps;
mod patience;
mod release;
mod replies;
mod session;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pageferry_device::Device;
use pageferry_linux::Socket;

use crate::embedded::Embedded;
use crate::error::os_error;
use crate::service::CacheService;
use crate::sync::{Condvar, Mutex, RwLock};
use crate::{Cache, CacheConfig, Error, Result};
use kept::Kept;
use limits::Users;
use replies::Replies;
use session::Session;

pub use limits::Limits;
pub use pageferry_linux::{ListenError, Listener};

/// How often files are looked at that nobody has open.
const KEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long sessions may take to end that only storage can keep.
const STOP_TIME: Duration = Duration::from_secs(10);
/// How long no client is accepted when that has failed (no descriptors are left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A daemon that runs in this process until it is stopped or dropped.
pub struct Server {
    daemon: Arc<Daemon>,
    /// Shared with the thread that accepts only: a session's thread, which may outlive the server by moments, keeps
    /// no socket in its place.
    listener: Option<Arc<Listener>>,
    threads: Vec<JoinHandle<()>>,
}

/// What the daemon's threads share.
pub(crate) struct Daemon {
    cache: Arc<Embedded>,
    limits: RwLock<Limits>,
    sessions: Mutex<Sessions>,
    /// A session has ended, or the daemon is stopping.
    changed: Condvar,
    users: Users,
    kept: Kept,
    stopping: AtomicBool,
}

#[derive(Default)]
struct Sessions {
    open: BTreeMap<u64, Arc<Session>>,
    /// Of sessions that have ended, with their users: there are descriptors on their way still.
    unread: Vec<(u32, Arc<Replies>)>,
    /// The last number given.
    last: u64,
}

impl Sessions {
    /// How many count.
    fn count(&self) -> usize {
        self.open.len() + self.unread.len()
    }

    /// A session has ended. Unless all that it was sent is received, it counts still.
    fn close(&mut self, session: &Session) {
        self.open.remove(&session.number);
        self.unread.push((session.peer.uid, Arc::clone(&session.replies)));
        self.let_go(&session.daemon.users);
    }

    /// Those of which nothing is on its way any more count no longer.
    fn let_go(&mut self, users: &Users) {
        let received = self.unread.extract_if(.., |(_, replies)| replies.are_received());
        received.for_each(|(uid, _)| users.leave(uid));
    }
}

impl Server {
    /// Serves a cache on `device` to those who connect to the listener.
    ///
    /// # Errors
    /// As [`Cache::new`]; [`Error::Unsupported`] on a device whose memory other processes cannot map;
    /// [`Error::Os`] if a thread cannot be started.
    pub fn start(
        device: Arc<dyn Device>,
        config: CacheConfig,
        limits: Limits,
        listener: Listener,
    ) -> Result<Server> {
        if !device.info().exports {
            let name = device.info().name;
            return Err(Error::Unsupported(format!("{name}: its memory cannot be shared")));
        }
        let daemon = Arc::new(Daemon {
            cache: Embedded::new(device, config)?,
            limits: RwLock::new(limits),
            sessions: Mutex::default(),
            changed: Condvar::new(),
            users: Users::default(),
            kept: Kept::default(),
            stopping: AtomicBool::new(false),
        });
        let listener = Arc::new(listener);
        let mut server =
            Server { daemon, listener: Some(Arc::clone(&listener)), threads: Vec::new() };
        server.spawn("pageferry-accept", move |daemon| daemon.accept(&listener))?;
        server.spawn("pageferry-kept", Daemon::look_after_kept)?;
        Ok(server)
    }

    fn spawn(
        &mut self,
        name: &str,
        body: impl FnOnce(&Arc<Daemon>) + Send + 'static,
    ) -> Result<()> {
        let daemon = Arc::clone(&self.daemon);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || body(&daemon));
        self.threads.push(thread.map_err(|e| os_error("starting a thread", &e))?);
        Ok(())
    }

    /// The cache, for this process's own use.
    #[must_use]
    pub fn cache(&self) -> Cache {
        Cache { service: self.daemon.cache.clone() }
    }

    /// Sessions now.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.daemon.sessions.lock().open.len()
    }

    /// What clients may hold from now on. Who holds more already keeps it.
    pub fn set_limits(&self, limits: Limits) {
        *self.daemon.limits.write() = limits;
    }

    /// Ends all sessions, writes everything back, gives the device's memory back. What clients have released
    /// is in the files then; they hear [`Error::Disconnected`].
    ///
    /// # Errors
    /// The first file's that could not be written back; `ETIMEDOUT` if a file's storage has not answered for ten
    /// seconds (the other files are then written back or not, and threads are left behind); [`Error::Forked`] in a
    /// forked child, where it does nothing.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let daemon = &self.daemon;
        if let Err(forked) = daemon.cache.shared.not_forked() {
            // Sockets are shared with the parent, whose sessions go on; the threads are its alone.
            std::mem::forget(std::mem::take(&mut self.threads));
            return Err(forked);
        }
        daemon.stopping.store(true, Ordering::SeqCst);
        if let Some(listener) = &self.listener {
            listener.stop();
        }
        let stuck = daemon.end_sessions();
        let threads: Vec<_> = self.threads.drain(..).collect();
        // The last one, but for a thread that does not end: its file is removed.
        self.listener = None;
        let daemon = Arc::clone(daemon);
        let rest = move || {
            for thread in threads {
                // One that panicked has said so.
                let _ = thread.join();
            }
            daemon.kept.close_all();
            let service: &dyn CacheService = &*daemon.cache;
            service.flush(None).map(drop)
        };
        if stuck == 0 {
            return rest();
        }
        // What holds them may hold this, too.
        let (done, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || drop(done.send(rest())));
        end.recv_timeout(STOP_TIME).unwrap_or_else(|_| {
            let what = format!("ending {stuck} sessions whose files' storage does not answer");
            Err(Error::Os { what, errno: libc::ETIMEDOUT })
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.threads.is_empty()
            && let Err(error) = self.end()
            && !matches!(error, Error::Forked)
        {
            tracing::error!(%error, "the daemon's end could not write everything back");
        }
    }
}

impl Daemon {
    /// Hangs up on all clients. Tells how many sessions have not ended after a while: some file's storage keeps
    /// them.
    fn end_sessions(&self) -> usize {
        let until = Instant::now() + STOP_TIME;
        let mut sessions = self.sessions.lock();
        self.changed.notify_all();
        while !sessions.open.is_empty() {
            sessions.open.values().for_each(|session| session.hang_up());
            if self.changed.wait_until(&mut sessions, until).timed_out() {
                tracing::error!(sessions = sessions.open.len(), "sessions do not end");
                break;
            }
        }
        sessions.open.len()
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn accept(self: &Arc<Self>, listener: &Listener) {
        while !self.is_stopping() {
            match listener.accept() {
                Ok(Some(socket)) => self.admit(socket),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "accepting a client failed; trying again");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Opens a session for who has connected, or tells why not and hangs up.
    fn admit(self: &Arc<Self>, socket: Socket) {
        let limits = self.limits.read().clone();
        let opened = Session::open(self, socket, &limits);
        if let Err(error) = opened {
            tracing::error!(%error, "a client cannot be served");
        }
    }

    fn look_after_kept(self: &Arc<Self>) {
        let mut sessions = self.sessions.lock();
        while !self.is_stopping() {
            let until = Instant::now() + KEPT_PAUSE;
            self.changed.wait_until(&mut sessions, until);
            sessions.let_go(&self.users);
            drop(sessions);
            self.kept.tidy(self.limits.read().kept_files);
            sessions = self.sessions.lock();
        }
    }
}
