//! This process's mappings of files that a daemon keeps coherent.
//!
//! Two sides need a thread each. The daemon asks for ranges to be trapped and for what was stored: the *answerer*
//! does it. And accesses that wait are told of by the kernel: the *reader* reads that, and does nothing else (a trap
//! blocks until its event is read); each is turned into a request that waits in a thread of its own, as many as there
//! are threads that wait.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use pageferry_engine::{FileKey, MapKey};
use pageferry_linux::{HostFile, Received, Socket, Uffd};
use pageferry_wire::{
    self as wire, Ask, FileId, MapId, Request, STORED_RUNS_MAX, Span, Task, Told,
};

use super::link::{Link, thread};
use crate::error::os_error;
use crate::map::{MapService, Mapped, Tracker, Trappable};
use crate::sync::{Mutex, RwLock, this_thread};
use crate::trap::{Fault, read_faults};
use crate::{Error, Result};

/// How long an access rests that could not even be asked for.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// The mappings of one connection; nothing runs before the first.
pub(super) struct Maps {
    link: Arc<Link>,
    running: Mutex<Option<Running>>,
}

struct Running {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    link: Arc<Link>,
    uffd: Arc<Uffd>,
    tracker: Tracker,
    maps: RwLock<Registry>,
    /// Accesses that wait and are being asked for.
    waiting: Mutex<Vec<Fault>>,
    /// Our end of the socket on which the daemon asks.
    socket: Socket,
    stopping: AtomicBool,
}

#[derive(Default)]
struct Registry {
    open: HashMap<MapId, Arc<Mapped>>,
    last: u64,
}

/// A mapping.
struct Mapping {
    shared: Arc<Shared>,
    id: MapId,
    mapped: Arc<Mapped>,
}

impl Maps {
    pub(super) fn new(link: Arc<Link>) -> Maps {
        Maps { link, running: Mutex::new(None) }
    }

    /// Maps whole pages of a file, and tells the daemon.
    pub(super) fn map_in(
        &self,
        file: FileId,
        io: &Arc<HostFile>,
        whole: Range<u64>,
        writable: bool,
    ) -> Result<Box<dyn MapService>> {
        let shared = self.running()?;
        let map = shared.tracker.map(io, &whole, writable)?;
        let (id, mapped) = {
            let mut maps = shared.maps.write();
            maps.last += 1;
            let id = MapId(maps.last);
            let uffd = Arc::clone(&shared.uffd);
            // What the engine would know of it, the daemon does.
            let mapped = Arc::new(Mapped::new(FileKey(0), map, MapKey(id.0), uffd));
            maps.open.insert(id, Arc::clone(&mapped));
            (id, mapped)
        };
        let span = crate::translate::span(&whole)?;
        if let Err(error) = self.link.ask_done(Request::MapIn { map: id, file, span, writable }) {
            shared.maps.write().open.remove(&id);
            return Err(error);
        }
        Ok(Box::new(Mapping { shared, id, mapped }))
    }

    /// Starts what serves mappings, if it does not run.
    fn running(&self) -> Result<Arc<Shared>> {
        let mut running = self.running.lock();
        if let Some(running) = &*running {
            return Ok(Arc::clone(&running.shared));
        }
        let uffd = Arc::new(Uffd::open().map_err(|e| Error::Unsupported(e.to_string()))?);
        let sent = self.link.call(Request::Callbacks, None)?.descriptors.into_iter().next();
        let socket = sent.and_then(Socket::received);
        let socket = socket.ok_or_else(|| Error::Protocol("it sends no socket".into()))?;
        let shared = Arc::new(Shared {
            link: Arc::clone(&self.link),
            uffd,
            tracker: Tracker::default(),
            maps: RwLock::default(),
            waiting: Mutex::default(),
            socket,
            stopping: AtomicBool::new(false),
        });
        let mut started = Running { shared: Arc::clone(&shared), threads: Vec::new() };
        started.start("pageferry-answer", Shared::answer_daemon)?;
        started.start("pageferry-events", Shared::read_events)?;
        *running = Some(started);
        Ok(shared)
    }
}

impl Running {
    fn start(&mut self, name: &str, body: fn(&Arc<Shared>)) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || body(&shared));
        self.threads.push(thread.map_err(|e| os_error("starting a thread for mappings", &e))?);
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.shared.link.not_forked().is_err() {
            // A forked child has none of the threads.
            return;
        }
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.socket.shutdown();
        if let Err(error) = self.shared.uffd.stop() {
            tracing::error!(%error, "stopping the event reader failed");
        }
        for thread in self.threads.drain(..) {
            // They do not panic; if one did, its message was printed.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Does what the daemon asks, until the connection ends.
    fn answer_daemon(self: &Arc<Self>) {
        let mut packet = vec![0; wire::MESSAGE_BYTES_MAX];
        while let Ok(Received::Packet(bytes)) = self.socket.recv(&mut packet, &mut Vec::new(), 0) {
            let told = match wire::decode_ask(&packet[..bytes]) {
                Ok(ask) => self.perform(&ask),
                Err(malformed) => Told::Failed(malformed.to_string()),
            };
            let sent = wire::encode_told(&told).map(|packet| self.socket.send(&packet, &[]));
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    }

    fn perform(&self, ask: &Ask) -> Told {
        let Some(mapped) = self.maps.read().open.get(&ask.map).cloned() else {
            return Told::Failed("it is gone".into());
        };
        // The daemon's spans may be any.
        let all = mapped.range();
        let inside = |span: Span| {
            let range = span.range();
            all.start <= range.start && range.end <= all.end
        };
        let done = match ask.task {
            Task::Scan(span) if inside(span) => mapped.scan_stores(&span.range()),
            Task::Trap(span) if inside(span) => mapped.trap(&span.range()),
            Task::Untrap(span) if inside(span) => mapped.untrap(&span.range()).map(|()| None),
            Task::Expel(at) if all.contains(&at) => mapped.expel(at).map(|()| None),
            _ => return Told::Failed("bytes outside of it".into()),
        };
        match done {
            Ok(Some(runs)) if runs.len() <= STORED_RUNS_MAX => {
                Told::Done(Some(runs.into_iter().map(Span::or_empty).collect()))
            }
            Ok(_) => Told::Done(None),
            Err(Error::OutOfVmas { max_map_count }) => Told::OutOfVmas { max_map_count },
            Err(error) => Told::Failed(error.to_string()),
        }
    }

    fn read_events(self: &Arc<Self>) {
        let stopping = || self.stopping.load(Ordering::SeqCst);
        read_faults(&self.uffd, stopping, |faults| faults.for_each(|f| self.begin_touch(f)));
    }

    /// Has a thread ask for what an access waits for.
    fn begin_touch(self: &Arc<Self>, fault: Fault) {
        {
            let mut waiting = self.waiting.lock();
            // A thread in a system call with a signal pending tells of its page without end.
            if waiting.iter().any(|f| f.is_again(&fault)) {
                return;
            }
            waiting.push(fault);
        }
        let shared = Arc::clone(self);
        let toucher = std::thread::Builder::new().name("pageferry-touch".into());
        let started = toucher.spawn(move || shared.touch(fault));
        if let Err(error) = started {
            tracing::error!(%error, "no thread for an access that waits; it asks again");
            self.end_touch(fault);
            self.wake(fault);
        }
    }

    fn end_touch(&self, fault: Fault) {
        self.waiting.lock().retain(|f| !f.is_again(&fault));
    }

    fn wake(&self, fault: Fault) {
        if let Some((_, mapped)) = self.find(fault.addr)
            && let Err(error) = mapped.wake(fault.addr)
        {
            tracing::error!(%error, "waking the waiters of a page failed");
        }
    }

    fn find(&self, addr: usize) -> Option<(MapId, Arc<Mapped>)> {
        let maps = self.maps.read();
        let found = maps.open.iter().find(|(_, mapped)| mapped.map.offset_of(addr).is_some());
        found.map(|(id, mapped)| (*id, Arc::clone(mapped)))
    }

    fn touch(&self, fault: Fault) {
        // No mapping of ours any more: whoever waits there finds out by retrying.
        if let Some((map, mapped)) = self.find(fault.addr) {
            let inside = mapped.map.offset_of(fault.addr).unwrap_or(0);
            let at = mapped.range().start + inside as u64;
            let touch = Request::Touch { map, at, owner: fault.tid, expel: true };
            match self.link.ask_done(touch) {
                Ok(()) => {}
                // What was away is not to be had any more, and what the file has instead is old.
                Err(error @ Error::Disconnected { .. }) => {
                    tracing::error!(%error, addr = fault.addr, "a CPU touch is refused");
                    if let Err(error) = mapped.expel(at) {
                        tracing::error!(%error, "a CPU touch can neither be served nor refused");
                    }
                }
                // Too many wait: it asks again.
                Err(Error::Limit { .. }) => std::thread::sleep(ASK_AGAIN),
                Err(error) => tracing::warn!(%error, addr = fault.addr, "a CPU touch is refused"),
            }
        }
        self.end_touch(fault);
        // Whoever was expelled is gone from there; whoever could not be asks again.
        self.wake(fault);
    }
}

impl MapService for Mapping {
    fn mapped(&self) -> &Arc<Mapped> {
        &self.mapped
    }

    fn touch(&self, range: Range<u64>) -> Result<()> {
        self.shared.link.not_forked()?;
        let base = self.mapped.map.file_offset();
        let inside = |at: u64| usize::try_from(at.saturating_sub(base)).unwrap_or(usize::MAX);
        let range = inside(range.start)..inside(range.end).min(self.mapped.map.len());
        while let Some(away) = self.mapped.map.first_away(range.clone()) {
            let (map, at, owner) = (self.id, base + away as u64, thread(this_thread()));
            self.shared.link.ask_done(Request::Touch { map, at, owner, expel: false })?;
        }
        Ok(())
    }

    fn end(&self) -> Result<()> {
        self.shared.link.not_forked()?;
        let ended = self.shared.link.ask_done(Request::MapOut { map: self.id });
        self.shared.maps.write().open.remove(&self.id);
        match ended {
            // It has forgotten it by itself.
            Err(Error::Disconnected { .. }) => Ok(()),
            ended => ended,
        }
    }
}
