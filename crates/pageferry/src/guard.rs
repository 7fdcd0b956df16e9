//! Has anybody else changed the file?
//!
//! # The one idea
//!
//! Instead of comparing what a file looks like, which a store through a mapping need not change, the
//! guard proves that nobody *could* have changed it. It numbers each file's epochs; the number rises
//! when the proof has a gap, and the engine drops the copies of earlier epochs (`trust.rs` there).
//!
//! ```text
//!                 silent since: the same epoch, one system call
//!                ┌──────────┐
//!                ▼          │        heard of readers only, alone again: the same epoch
//!            ┌────────┐ ────┴─── look ─────────────────────────────────────┐
//!      ┌───▶ │ proven │ ◀──────────────────────────────────────────────────┘
//!      │     └────────┘ ── heard of a change, alone again: a new epoch ──▶ proven
//!      │         │
//!   alone        │ not alone: a new epoch
//!   (new epoch)  ▼
//!      │     ┌──────────┐
//!      └──── │ unproven │ every look is a new epoch: a copy serves the pin that made it
//!            └──────────┘
//! ```
//!
//! # Why it holds
//!
//! *Alone* means: a lease was granted on the one description that we have of the file, opened by
//! ourselves and given to nobody. So at that moment nobody else had it open or mapped (open for
//! reading: could write to it). *Silent* means: the fanotify group, read after that moment, had
//! nothing to tell. An open raises the count that a lease looks at before its event is queued, and the
//! event is queued before the open returns; a close queues its event before the count falls. Hence
//!
//! 1. alone, then silent: whoever comes later leaves an event before it can change anything;
//! 2. the event of whoever was there before is in the queue when the lease is granted: it is read, and
//!    says whether a call changed something (`MODIFY`), a writer closed (`CLOSE_WRITE`) or nobody but
//!    readers came. A writer that no call has changed anything for may have stored through a mapping. Where the first
//!    store of a mapping to each page moves the file's times, and these are what they were when the file was last
//!    ours alone, it has not: any mapping of its was made after that;
//! 3. a look that finds the group silent since then has proven that nobody has been able to change
//!    the file before that look.
//!
//! **Our own changes** must not look like others'. To root the events name threads: the group is read
//! before and after each change, and what the changing thread did in between is ours. To others they name
//! the process, and own changes run in *windows*: from the lease's being taken, the group silent, to the
//! group's being read again, the lease still held. Nobody else can have the file open meanwhile, and who
//! truncates it by name waits for the lease; so what the group tells of this process in between is our own
//! doing. The application's own descriptors count as others', in our process or not.
//!
//! **What it cannot see**, and what follows: `fixed` files need no proof; file systems that others change
//! without this kernel, or where descriptors and mappings count differently (overlayfs), files of other
//! owners, no fanotify: never proven. Writing to the block device beneath a mounted file system is not
//! seen by anybody. A description that a forked child inherits is used by nobody there (the library
//! refuses to).

mod changes;
mod gate;
mod keep;
mod look;
mod strangers;
mod window;

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use pageferry_engine::{FileKey, Observed};
use pageferry_linux::{FileId, FileStamp, HostFile, LeaseBreaks, Watch, WatchKey};

use self::changes::Changes;
pub(crate) use self::gate::GateKeeper;
use self::strangers::Strangers;
use crate::config::{CacheConfig, Guard, Validation};
use crate::perform::measure;
use crate::shared::Shared;
use crate::sync::{Condvar, Mutex};
use crate::{Error, Result};

/// What a copy's trust in a file rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Coherence {
    /// Nobody can change it.
    Fixed,
    /// It is proven that nobody has changed it: copies serve until somebody may have.
    Proven,
    /// Its times and size, as the caller chose: stores through foreign mappings can hide.
    Stamps,
    /// Nothing: a copy serves the pin that made it and no later one. The reason is for people.
    Unproven(String),
}

/// The guards of one cache's files.
pub(crate) struct Guards {
    validation: Validation,
    guard: Guard,
    /// The group, or why there is none.
    watch: Result<Watch, String>,
    /// Started with the cache.
    breaks: OnceLock<Result<LeaseBreaks, String>>,
    shared: OnceLock<Weak<Shared>>,
    /// Started when something is first kept away.
    gate: Mutex<Option<Result<GateKeeper, String>>>,
    gates_taken_down: AtomicU64,
    state: Mutex<State>,
    /// Some keeping away is done.
    kept: Condvar,
}

#[derive(Default)]
struct State {
    files: HashMap<FileKey, Watched>,
    names: HashMap<WatchKey, FileKey>,
    ids: HashMap<FileId, FileKey>,
    /// Of the file that was settled last: it was proven, and nothing was heard since.
    silent: bool,
}

/// What one file's evidence is made of.
enum Basis {
    Fixed,
    Watch(WatchKey),
    Stamps(Stamp),
    Nothing(String),
}

/// The parts of a stamp that every completed change moves.
type Stamp = (u64, (i64, u32), (i64, u32));

fn stamp(seen: &FileStamp) -> Stamp {
    (seen.size, seen.mtime, seen.ctime)
}

struct Watched {
    io: Arc<HostFile>,
    basis: Basis,
    changes: Changes,
    /// As last looked at.
    bytes: u64,
    proven: bool,
    /// Why not, when last asked.
    why: String,
    /// Heard since the last look: a change, a writer that has gone (and may have stored through a mapping), or a
    /// visitor.
    changed: bool,
    suspect: bool,
    visited: bool,
    /// Where stores move the times: what it looked like when it was last ours alone, and no change of ours ran.
    when_alone: Option<Stamp>,
    /// Own changes that have ended.
    ends: u64,
    /// Own changes under way, and whether the lease is held for them, or which threads make them.
    own: u32,
    leased: bool,
    threads: Vec<u32>,
    /// When the first of them began.
    since: Instant,
    /// The lease is kept, for the guard.
    held: bool,
    /// When it was noticed that somebody waits for it.
    breaking: Option<Instant>,
    /// Releases that keep away under way, and how many there have been.
    keeps: u32,
    kept: u64,
    /// All is home: the lease goes with the last change of ours.
    home: bool,
    /// The gate is asked about the file, and has been since before anybody opened it who has it open.
    gate: Option<Strangers>,
    /// It has been at some time: a description that was opened then is asked about for ever.
    gate_has_stood: bool,
    /// The gate cannot stand on it.
    gateless: bool,
    /// So many descriptions are about to take over: the gate must not stand before they have.
    lowered: u32,
}

/// How a file looked when it was met, and what kind of file it is.
pub(crate) struct Met {
    seen: FileStamp,
    fixed: bool,
    /// Leases and events tell of others, or why not.
    tells: Result<(), String>,
}

impl Met {
    pub(crate) fn observed(&self) -> Observed {
        Observed { bytes: self.seen.size, ..Observed::default() }
    }
}

impl Guards {
    pub(crate) fn new(config: &CacheConfig) -> Guards {
        let watch = match config.validation {
            Validation::Proof => {
                Watch::new().map_err(|e| format!("fanotify is not to be had: {e}"))
            }
            Validation::Stamps => Err("the caller chose stamps".into()),
        };
        Guards {
            validation: config.validation,
            guard: config.guard,
            watch,
            breaks: OnceLock::new(),
            shared: OnceLock::new(),
            gate: Mutex::new(None),
            gates_taken_down: AtomicU64::new(0),
            state: Mutex::default(),
            kept: Condvar::new(),
        }
    }

    /// Starts the thread that brings bytes home before others are let in.
    pub(crate) fn start(&self, shared: &Arc<Shared>) {
        if self.validation == Validation::Stamps {
            return;
        }
        let shared: Weak<Shared> = Arc::downgrade(shared);
        // Nobody else sets it.
        let _ = self.shared.set(Weak::clone(&shared));
        let told = move || {
            if let Some(shared) = shared.upgrade() {
                let _ = surviving(|| shared.let_others_in());
            }
        };
        let started = LeaseBreaks::start(told).map_err(|e| format!("no thread for leases: {e}"));
        // Nobody else sets it.
        let _ = self.breaks.set(started);
    }

    fn breaks(&self) -> Result<&LeaseBreaks, String> {
        match self.breaks.get() {
            Some(Ok(breaks)) => Ok(breaks),
            Some(Err(why)) => Err(why.clone()),
            None => Err("no thread for leases was started".into()),
        }
    }

    /// A file's first look, before it has a key. Its server may take its time to answer: it is asked while nothing is
    /// locked.
    pub(crate) fn meet(&self, io: &HostFile) -> Result<Met> {
        let seen = measure(io)?;
        let (fixed, tells) = (io.is_fixed(), io.tells_of_others());
        Ok(Met { seen, fixed, tells })
    }

    /// What can be known of a file. Only one that the kernel tells of is asked anything more: it is local.
    fn basis(&self, io: &HostFile, met: &Met) -> Basis {
        if met.fixed {
            return Basis::Fixed;
        }
        if self.validation == Validation::Stamps {
            return Basis::Stamps(stamp(&met.seen));
        }
        let key = met.tells.clone().and_then(|()| {
            let watch = self.watch.as_ref().map_err(Clone::clone)?;
            let breaks = self.breaks()?;
            io.send_breaks_to(breaks);
            watch.add(io).map_err(|e| format!("it cannot be watched: {e}"))
        });
        key.map_or_else(Basis::Nothing, Basis::Watch)
    }

    /// Watches over a file from now on. Nothing is proven before it is looked at. Nobody else opens or closes the file
    /// meanwhile: who closes it ends the watch.
    pub(crate) fn open(&self, file: FileKey, io: &Arc<HostFile>, met: Met) {
        let basis = self.basis(io, &met);
        let mut state = self.state.lock();
        if let Basis::Watch(name) = &basis {
            state.names.insert(name.clone(), file);
            state.ids.insert(io.identity(), file);
        }
        let epoch = state.files.get(&file).map_or(0, |w| w.changes.epoch() + 1);
        let watched = Watched {
            io: Arc::clone(io),
            basis,
            changes: Changes::after(epoch),
            bytes: met.seen.size,
            proven: false,
            why: "it has not been looked at yet".into(),
            changed: false,
            suspect: false,
            visited: false,
            when_alone: None,
            own: 0,
            ends: 0,
            leased: false,
            since: Instant::now(),
            held: false,
            breaking: None,
            keeps: 0,
            kept: 0,
            home: false,
            threads: Vec::new(),
            gate: None,
            gate_has_stood: false,
            gateless: false,
            lowered: 0,
        };
        state.files.insert(file, watched);
    }

    /// Another description of a file takes over. It must have been opened while no gate stood on the file
    /// ([`lower_gate`](Guards::lower_gate)), which would otherwise be asked about what we do ourselves.
    pub(crate) fn replace(&self, file: FileKey, io: &Arc<HostFile>) {
        if let Ok(breaks) = self.breaks() {
            io.send_breaks_to(breaks);
        }
        let mut state = self.state.lock();
        if let Some(watched) = state.files.get_mut(&file) {
            watched.give_up();
            watched.io = Arc::clone(io);
            // What was proven with the old one stands; from now on it is to be proven with this one.
            watched.visited = true;
            watched.gateless = false;
        }
    }

    /// Anything may have been changed since the last look, by mappings that were made before it: the times tell nothing
    /// of their stores.
    pub(crate) fn suspect_all(&self, file: FileKey) {
        if let Some(watched) = self.state.lock().files.get_mut(&file) {
            watched.changed = true;
            watched.when_alone = None;
        }
    }

    /// Watches over it no longer.
    pub(crate) fn close(&self, file: FileKey) {
        let Some(mut watched) = self.state.lock().files.remove(&file) else { return };
        watched.give_up();
        self.take_down_gate(&mut watched);
        if let (Basis::Watch(name), Ok(watch)) = (&watched.basis, &self.watch) {
            let mut state = self.state.lock();
            state.names.remove(name);
            state.ids.remove(&watched.io.identity());
            if let Err(error) = watch.remove(&watched.io) {
                tracing::debug!(%error, "a file's watch could not be removed");
            }
        }
    }

    /// What the trust in a file's copies rests on, as of the last look.
    pub(crate) fn coherence(&self, file: FileKey) -> Coherence {
        let state = self.state.lock();
        match state.files.get(&file).map(|w| (w, &w.basis)) {
            None => Coherence::Unproven("the file is closed".into()),
            Some((_, Basis::Fixed)) => Coherence::Fixed,
            Some((_, Basis::Stamps(_))) => Coherence::Stamps,
            Some((_, Basis::Nothing(why))) => Coherence::Unproven(why.clone()),
            Some((w, Basis::Watch(_))) if w.proven => Coherence::Proven,
            Some((w, Basis::Watch(_))) => Coherence::Unproven(w.why.clone()),
        }
    }
}

/// A thread that others wait for goes on, whatever panics in it (a device's code is others').
fn surviving<T>(body: impl FnOnce() -> T) -> Option<T> {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
    outcome.inspect_err(|_| tracing::error!("a thread that guards files has panicked")).ok()
}

fn gone() -> Error {
    Error::InvalidArgument("the file is closed".into())
}
