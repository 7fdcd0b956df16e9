//! Serving CPU accesses that wait.
//!
//! Two threads per cache, from its first mapping on. The *reader* reads events and does nothing
//! else: a move of a placeholder (a trap) blocks until its event is read, so it must never wait for
//! anything that moves. The *toucher* turns each fault into a `Touch` request and drives all of them
//! at once: one that waits for a pin does not hold up the others.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use pageferry_engine::{OpKey, Refusal, Request, Step};
use pageferry_linux::{Event, Uffd, Wakeup};

use crate::map::{AnyMap, Mapped};
use crate::shared::{Shared, Tally};
use crate::{Error, Result};

/// How long the reader rests after an error.
const READ_AGAIN: Duration = Duration::from_millis(20);

/// A CPU access that waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) addr: usize,
    pub(crate) tid: Option<u32>,
}

impl Fault {
    /// The same thread waits for the same page.
    pub(crate) fn is_again(&self, other: &Fault) -> bool {
        self.tid == other.tid && self.addr & !4095 == other.addr & !4095
    }
}

/// The threads.
pub(crate) struct TrapService {
    uffd: Arc<Uffd>,
    threads: Vec<JoinHandle<()>>,
}

/// A fault being served.
struct Touching {
    op: OpKey,
    fault: Fault,
    mapped: Arc<Mapped>,
    /// The byte of the file.
    at: u64,
    /// It was refused; this ends its waiting.
    expelling: bool,
}

impl TrapService {
    /// Ends both threads. No mapping may be left.
    pub(crate) fn stop(self) {
        if let Err(error) = self.uffd.stop() {
            tracing::error!(%error, "stopping the event reader failed");
        }
        for thread in self.threads {
            // They do not panic; if one did, its message was printed.
            let _ = thread.join();
        }
    }
}

/// Reads events until the source is stopped, and hands over the accesses that wait. After an error it goes on unless
/// it `is_stopping`: whoever waits depends on this thread.
pub(crate) fn read_faults(
    uffd: &Uffd,
    is_stopping: impl Fn() -> bool,
    mut take: impl FnMut(&mut dyn Iterator<Item = Fault>),
) {
    let mut events = Vec::new();
    loop {
        match uffd.wait(&mut events, None) {
            Ok(Wakeup::Stopped) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "reading userfaultfd events failed; trying again");
                if is_stopping() {
                    return;
                }
                std::thread::sleep(READ_AGAIN);
            }
        }
        take(&mut events.drain(..).filter_map(|event| match event {
            Event::Fault(fault) => Some(Fault { addr: fault.addr, tid: fault.tid }),
            _ => None,
        }));
    }
}

impl Shared {
    /// The event source for mappings, started if it is not running.
    pub(crate) fn trap_events(self: &Arc<Self>) -> Result<Arc<Uffd>> {
        let mut service = self.traps.lock();
        if let Some(service) = &*service {
            return Ok(Arc::clone(&service.uffd));
        }
        let uffd = Arc::new(Uffd::open().map_err(|e| Error::Unsupported(e.to_string()))?);
        let os = |e: &std::io::Error| crate::error::os_error("starting the trap service", e);
        let mut threads = Vec::new();
        let mut start = |name: &str, body: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.into()).spawn(body);
            thread.map(|t| threads.push(t)).map_err(|e| os(&e))
        };
        let (shared, events) = (Arc::clone(self), Arc::clone(&uffd));
        start("pageferry-events", Box::new(move || shared.read_events(&events)))?;
        let shared = Arc::clone(self);
        let toucher = start("pageferry-touch", Box::new(move || shared.serve_touches()));
        let started = TrapService { uffd: Arc::clone(&uffd), threads };
        if let Err(error) = toucher {
            started.stop();
            return Err(error);
        }
        *service = Some(started);
        Ok(uffd)
    }

    fn read_events(&self, uffd: &Uffd) {
        let stopping = || self.core.lock().stopping;
        read_faults(uffd, stopping, |faults| {
            let mut core = self.core.lock();
            let known = core.faults.len();
            for fault in faults {
                // A thread in a system call with a signal pending tells of its page without end.
                if !core.faults.iter().any(|f| f.is_again(&fault)) {
                    core.faults.push_back(fault);
                }
            }
            if core.faults.len() > known {
                self.changed.notify_all();
            }
        });
    }

    fn serve_touches(&self) {
        let mut serving: Vec<Touching> = Vec::new();
        loop {
            let mut core = self.core.lock();
            if core.stopping && core.faults.is_empty() && serving.is_empty() {
                return;
            }
            while let Some(fault) = core.faults.pop_front() {
                if serving.iter().any(|s| !s.expelling && s.fault.is_again(&fault)) {
                    continue;
                }
                let here = |m: &AnyMap| match m {
                    AnyMap::Here(m) if m.map.offset_of(fault.addr).is_some() => Some(Arc::clone(m)),
                    _ => None,
                };
                let found = self.maps.read().values().find_map(here);
                // No mapping of ours any more: whoever waits there finds out by retrying.
                let Some(mapped) = found else { continue };
                let inside = mapped.map.offset_of(fault.addr).unwrap_or(0);
                let at = mapped.range().start + inside as u64;
                let touch = Request::Touch { file: mapped.file, at };
                let op = core.engine.submit(touch, fault.tid.map(u64::from), true);
                serving.push(Touching { op, fault, mapped, at, expelling: false });
            }
            let mut idle = true;
            let mut at = 0;
            while at < serving.len() {
                match core.engine.poll(serving[at].op, self.now()) {
                    Step::Do(key, action) => {
                        idle = false;
                        drop(core);
                        let reply = self.perform(&action, &mut None);
                        core = self.core.lock();
                        core.engine.complete(key, reply);
                        self.changed.notify_all();
                    }
                    Step::Wait(_) => at += 1,
                    Step::Done(result) => {
                        idle = false;
                        let done = serving.swap_remove(at);
                        drop(core);
                        let expel = match result {
                            Ok(_) => {
                                self.resolve(&done);
                                None
                            }
                            Err(refusal) => self.refuse(&done, refusal),
                        };
                        core = self.core.lock();
                        if let Some(request) = expel {
                            let op = core.engine.submit(request, None, true);
                            serving.push(Touching { op, expelling: true, ..done });
                        }
                    }
                }
            }
            if core.engine.take_changed() {
                self.changed.notify_all();
            }
            let over = core.stopping && serving.is_empty();
            if idle && core.faults.is_empty() && !over {
                self.changed.wait(&mut core);
            }
        }
    }

    /// The page is home: whoever waits for it may try again.
    fn resolve(&self, done: &Touching) {
        Tally::add(&self.tally.touches, 1);
        if let Err(error) = done.mapped.wake(done.fault.addr) {
            tracing::error!(%error, "waking the waiters of a page failed");
        }
    }

    /// The page will not come for this thread: its access shall fail.
    fn refuse(&self, done: &Touching, refusal: Refusal<Error>) -> Option<Request> {
        let Touching { fault, mapped, at, .. } = done;
        let range = *at..*at + 1;
        let error = self.explain(refusal, &range, crate::Wait::Block);
        if done.expelling {
            // Kernels before 6.6 cannot: the thread waits on, and is woken to ask again.
            tracing::error!(addr = fault.addr, %error, "a CPU touch can neither be served nor refused");
            std::thread::sleep(Duration::from_millis(10));
            self.resolve(done);
            return None;
        }
        Tally::add(&self.tally.refused_touches, 1);
        tracing::warn!(addr = fault.addr, %error, "a CPU touch is refused");
        Some(Request::Expel { file: mapped.file, map: mapped.key(), at: *at })
    }
}
