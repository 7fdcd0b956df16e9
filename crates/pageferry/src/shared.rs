//! The heart of a cache: the engine under its lock, and the loop that drives requests through it.
//!
//! The data's way: a public call becomes a request; [`Shared::drive`] polls it; each action is
//! performed by [`perform`](crate::perform) without the lock; its reply goes back into the engine.
//! Nothing else changes state, and nothing is called back.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::sync::{Condvar, HELP_BYTES, Mutex, RwLock};
use pageferry_device::{Device, DeviceInfo};

use pageferry_engine::{
    Action, ActionKey, Class, Engine, FileKey, MapKey, OpKey, Outcome, Owner, Refusal, Reply,
    Request, Step, WaitFor,
};

use crate::backing::Backing;
use crate::guard::Guards;
use crate::map::{AnyMap, Tracker};
use crate::trap::{Fault, TrapService};
use crate::{CacheConfig, Error, Result, Wait};

/// What the lock protects.
pub(crate) struct Core {
    pub(crate) engine: Engine<Error>,
    /// CPU accesses that wait, as the event reader found them.
    pub(crate) faults: VecDeque<Fault>,
    /// The service threads shall end.
    pub(crate) stopping: bool,
}

/// Everything that the parts of one cache share.
pub(crate) struct Shared {
    pub(crate) core: Mutex<Core>,
    /// The engine's state changed, a fault came in, or the cache is stopping.
    pub(crate) changed: Condvar,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) info: DeviceInfo,
    pub(crate) config: CacheConfig,
    pub(crate) guards: Guards,
    pub(crate) budget_frames: u64,
    pub(crate) files: RwLock<HashMap<FileKey, Arc<Backing>>>,
    pub(crate) maps: RwLock<HashMap<MapKey, AnyMap>>,
    map_keys: AtomicU64,
    /// Opened with the first writable mapping.
    pub(crate) tracker: Tracker,
    /// Started with the first mapping.
    pub(crate) traps: Mutex<Option<TrapService>>,
    pub(crate) tally: Tally,
    started: Instant,
    /// The process that made the cache.
    process: u32,
}

/// Counters of what happens outside the engine.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) touches: AtomicU64,
    pub(crate) refused_touches: AtomicU64,
    pub(crate) device_faults: AtomicU64,
    pub(crate) failed_releases: AtomicU64,
    pub(crate) flusher_runs: AtomicU64,
    pub(crate) flusher_failures: AtomicU64,
    pub(crate) lost_bytes: AtomicU64,
    pub(crate) unguarded_openers: AtomicU64,
}

impl Tally {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// In whose name a request is made.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'a> {
    pub(crate) owner: Owner,
    /// Becomes true when nobody is there any more who could use what the request waits for.
    pub(crate) gone: Option<&'a AtomicBool>,
}

impl Caller<'_> {
    pub(crate) fn this_thread() -> Caller<'static> {
        Caller { owner: crate::sync::this_thread(), gone: None }
    }
}

/// How long a request waits for pins.
#[derive(Clone, Copy)]
struct Patience<'a> {
    deadline: Option<Instant>,
    gone: Option<&'a AtomicBool>,
}

impl Patience<'_> {
    const ENDLESS: Patience<'static> = Patience { deadline: None, gone: None };

    fn is_gone(&self) -> bool {
        self.gone.is_some_and(|gone| gone.load(Ordering::Relaxed))
    }
}

/// The system call inside a `Change` or `Resize`.
pub(crate) type Change<'a> = &'a mut (dyn FnMut(&pageferry_linux::HostFile) -> Result<()> + Send);

impl Shared {
    pub(crate) fn new(device: Arc<dyn Device>, config: CacheConfig, budget_frames: u64) -> Shared {
        let info = device.info();
        let engine = Engine::new(pageferry_engine::Config {
            frame_bytes: info.frame_bytes,
            budget_frames,
            touch_bytes: config.touch_bytes,
        });
        Shared {
            core: Mutex::new(Core { engine, faults: VecDeque::new(), stopping: false }),
            changed: Condvar::new(),
            device,
            info,
            guards: Guards::new(&config),
            config,
            budget_frames,
            files: RwLock::new(HashMap::new()),
            maps: RwLock::new(HashMap::new()),
            map_keys: AtomicU64::new(0),
            tracker: Tracker::default(),
            traps: Mutex::new(None),
            tally: Tally::default(),
            started: Instant::now(),
            process: std::process::id(),
        }
    }

    /// Refuses a forked child: it has none of the cache's threads, nobody there opens the locks that
    /// were held at that moment, and the device's memory is not its own. Asked before any lock.
    pub(crate) fn not_forked(&self) -> Result<()> {
        if std::process::id() == self.process { Ok(()) } else { Err(Error::Forked) }
    }

    /// The clock for the age of away pages: milliseconds since the cache was opened.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A key that no mapping has had: an address would be used again, and what was still meant for
    /// the old mapping would reach the new one.
    pub(crate) fn fresh_map_key(&self) -> MapKey {
        MapKey(self.map_keys.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn backing(&self, file: FileKey) -> Result<Arc<Backing>> {
        let gone = || Error::InvalidArgument("the file is closed".into());
        self.files.read().get(&file).cloned().ok_or_else(gone)
    }

    /// Whoever waits looks again at what it waits for.
    pub(crate) fn wake_all(&self) {
        // Under the lock: nobody is between looking and waiting.
        let _core = self.core.lock();
        self.changed.notify_all();
    }

    /// Submits a request in the name of the calling thread and sees it through.
    pub(crate) fn request(&self, request: Request, wait: Wait) -> Result<Outcome, Refusal<Error>> {
        self.request_as(request, Caller::this_thread(), wait, None)
    }

    /// As [`request`](Self::request), for a given caller and with the change to make.
    pub(crate) fn request_as(
        &self,
        request: Request,
        caller: Caller<'_>,
        wait: Wait,
        change: Option<Change<'_>>,
    ) -> Result<Outcome, Refusal<Error>> {
        self.not_forked().map_err(Refusal::Failed)?;
        let deadline = match wait {
            Wait::Timeout(limit) => Instant::now().checked_add(limit),
            Wait::Block | Wait::Try => None,
        };
        let op = self.core.lock().engine.submit(request, caller.owner, wait != Wait::Try);
        self.drive(op, Patience { deadline, gone: caller.gone }, change)
    }

    fn drive(
        &self,
        op: OpKey,
        patience: Patience<'_>,
        mut change: Option<Change<'_>>,
    ) -> Result<Outcome, Refusal<Error>> {
        let ended = Mutex::new(None);
        let driven = Driven { shared: self, op, ended: &ended };
        let helpers = self.config.copy_threads.saturating_sub(1);
        let mut bytes = 0;
        // Alone until it is clear that there is much to copy.
        while bytes < HELP_BYTES || helpers == 0 {
            match self.advance(op, patience, &mut change, &ended) {
                Some(copied) => bytes += copied,
                None => {
                    drop(driven);
                    return outcome(ended);
                }
            }
        }
        crate::sync::scope(|scope| {
            // Helpers, too, are told if this one panics; and without them it takes longer.
            let _driven = Driven { shared: self, op, ended: &ended };
            for _ in 0..helpers {
                crate::sync::try_spawn(scope, || while self.help(op, &ended) {});
            }
            while self.advance(op, patience, &mut change, &ended).is_some() {}
        });
        drop(driven);
        outcome(ended)
    }

    /// One copy of a request that another thread drives. `false` when it has ended.
    fn help(&self, op: OpKey, ended: &Ended) -> bool {
        let mut core = self.core.lock();
        if ended.lock().is_some() {
            return false;
        }
        match core.engine.help(op, self.now()) {
            Some((key, action)) => {
                drop(core);
                self.carry_out(key, &action, &mut None);
            }
            None => {
                if core.engine.take_changed() {
                    self.changed.notify_all();
                }
                self.changed.wait(&mut core);
            }
        }
        true
    }

    /// One step of a request, possibly beside other threads that help. `None` when it has ended;
    /// otherwise the bytes that the step copied.
    fn advance(
        &self,
        op: OpKey,
        patience: Patience<'_>,
        change: &mut Option<Change<'_>>,
        ended: &Ended,
    ) -> Option<u64> {
        let mut core = self.core.lock();
        if ended.lock().is_some() {
            return None;
        }
        let step = core.engine.poll(op, self.now());
        if core.engine.take_changed() {
            self.changed.notify_all();
        }
        match step {
            Step::Done(result) => {
                *ended.lock() = Some(result);
                self.changed.notify_all();
                None
            }
            Step::Do(key, action) => {
                drop(core);
                self.carry_out(key, &action, change);
                Some(match &action {
                    Action::Fetch { range, .. } | Action::WriteBack { range, .. } => {
                        range.end - range.start
                    }
                    _ => 0,
                })
            }
            Step::Wait(WaitFor::Io) => {
                self.changed.wait(&mut core);
                Some(0)
            }
            Step::Wait(WaitFor::Pins | WaitFor::Frames) => {
                match patience.deadline {
                    _ if patience.is_gone() => core.engine.time_out(op),
                    Some(at) if self.changed.wait_until(&mut core, at).timed_out() => {
                        core.engine.time_out(op);
                    }
                    Some(_) => {}
                    None => self.changed.wait(&mut core),
                }
                Some(0)
            }
        }
    }

    fn carry_out(&self, key: ActionKey, action: &Action, change: &mut Option<Change<'_>>) {
        let mut underway = Underway { shared: self, key, reply: None };
        underway.reply = Some(self.perform(action, change));
    }

    /// Turns a refusal into the error that the caller sees.
    pub(crate) fn explain(&self, refusal: Refusal<Error>, range: &Range<u64>, wait: Wait) -> Error {
        let range = range.clone();
        let frame = self.info.frame_bytes;
        match refusal {
            Refusal::BadRange => Error::InvalidArgument(format!(
                "the range {}..{} is empty or wraps",
                range.start, range.end
            )),
            Refusal::PastEof { file_bytes } => Error::PastEof { range, file_bytes },
            Refusal::WouldBlock => Error::WouldBlock { range },
            Refusal::TimedOut => Error::TimedOut {
                range,
                waited: match wait {
                    Wait::Timeout(limit) => limit,
                    Wait::Block | Wait::Try => std::time::Duration::ZERO,
                },
            },
            Refusal::WouldDeadlock => Error::WouldDeadlock { range },
            Refusal::Full { needed_frames, pinned_frames } => Error::DeviceFull {
                needed_bytes: needed_frames * frame,
                budget_bytes: self.budget_frames * frame,
                pinned_bytes: pinned_frames * frame,
            },
            Refusal::Gone => Error::InvalidArgument("the file is closed or still in use".into()),
            Refusal::Failed(error) => error,
        }
    }
}

/// How a request ended, once it has.
type Ended = Mutex<Option<Result<Outcome, Refusal<Error>>>>;

/// What becomes of an action whose performer panics (a device's or file system's code is others').
pub(crate) fn panicked() -> Error {
    Error::KernelFailed("a step of the request panicked".into())
}

/// An action under way: the engine hears of its end, whatever that is.
struct Underway<'a> {
    shared: &'a Shared,
    key: ActionKey,
    reply: Option<Reply<Error>>,
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        let failed = || Reply::Failed { class: Class::Other, error: panicked() };
        let reply = self.reply.take().unwrap_or_else(failed);
        let mut core = self.shared.core.lock();
        core.engine.complete(self.key, reply);
        core.engine.take_changed();
        self.shared.changed.notify_all();
    }
}

/// A request that is being driven: should its driver panic, it is withdrawn, so that nothing of it
/// (a range held, others kept waiting) remains.
struct Driven<'a> {
    shared: &'a Shared,
    op: OpKey,
    ended: &'a Ended,
}

impl Drop for Driven<'_> {
    fn drop(&mut self) {
        if self.ended.lock().is_some() {
            return;
        }
        self.shared.core.lock().engine.withdraw(self.op, panicked());
        let again =
            || self.shared.advance(self.op, Patience::ENDLESS, &mut None, self.ended).is_some();
        // What panics while this is undone is a failure like another.
        while catch_unwind(AssertUnwindSafe(again)).unwrap_or(true) {}
    }
}

fn outcome(ended: Ended) -> Result<Outcome, Refusal<Error>> {
    ended.into_inner().unwrap_or(Err(Refusal::Gone))
}
