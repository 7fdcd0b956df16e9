//! fanotify as a guard: whoever touches what is away waits until it is home.
//!
//! The one idea: bytes are kept away only where every way to them leads through the gate. The gate is
//! asked about a file from before its first bytes are kept away, and a lease shows at that moment that
//! nobody had it open or mapped earlier. From then on it is known what others do
//! ([`Strangers`](super::strangers::Strangers)): what they may be changing, or may have mapped, is not
//! kept away until the file is ours alone again, and of copies no more moves again than that.
//!
//! Who chose this guard has the gate stand as long as the file is open, and others' accesses cost them a
//! question each. Otherwise (`auto`) it stands while something is away; where others changed the file
//! after that is not known.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use pageferry_engine::FileKey;
use pageferry_linux::{Access, Call, Gate, newest_loop};

use super::look::explain;
use super::strangers::Strangers;
use super::{Guards, Watched, surviving};
use crate::config::Guard;
use crate::perform::measure;
use crate::shared::Shared;

/// The gate and the thread that is asked.
pub(crate) struct GateKeeper {
    gate: Arc<Gate>,
    thread: Option<JoinHandle<()>>,
    process: u32,
}

impl Drop for GateKeeper {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            return;
        }
        self.gate.stop();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // It does not panic; if it did, its message was printed.
            let _ = thread.join();
        }
    }
}

/// No gate stands on a file.
pub(crate) struct Lowered<'g> {
    guards: &'g Guards,
    file: FileKey,
    /// One has: who opened the file earlier may have been seen by it.
    pub(crate) has_stood: bool,
}

impl Drop for Lowered<'_> {
    fn drop(&mut self) {
        if let Some(watched) = self.guards.state.lock().files.get_mut(&self.file) {
            watched.lowered = watched.lowered.saturating_sub(1);
        }
    }
}

impl Guards {
    /// Keeping the range away is guarded by the gate.
    pub(super) fn pass(&self, watched: &mut Watched, range: &Range<u64>) -> Result<(), String> {
        if watched.gate.is_none() {
            self.put_up_gate(watched)?;
            if let Err(error) = watched.alone() {
                // Who was there before would not be asked about.
                self.take_down_gate(watched);
                return Err(explain(&error));
            }
        }
        let strangers = watched.gate.as_ref();
        if strangers.is_some_and(|strangers| strangers.bar(range)) {
            watched.alone().map_err(|e| format!("{}, and has touched it", explain(&e)))?;
            if strangers.is_some_and(|strangers| strangers.may_be_cut(Call::may_cut)) {
                return Err("somebody is cutting it".into());
            }
        }
        if strangers.is_some_and(|strangers| strangers.present && strangers.may_be_loops()) {
            return Err("a loop device may stand on it, which nobody can make wait".into());
        }
        Ok(())
    }

    /// The gate stands as long as the file is open here, not only while something is away: where others
    /// change the file is then known.
    pub(super) fn gate_stays(&self) -> bool {
        self.guard == Guard::Fanotify
    }

    /// As [`Watched::alone`]. If it is, and the gate is to stay, it stands now.
    pub(super) fn alone_at_gate(&self, watched: &mut Watched) -> io::Result<()> {
        let raised = self.gate_stays()
            && !cfg!(shuttle)
            && watched.gate.is_none()
            && !watched.gateless
            && self.put_up_gate(watched).is_ok();
        let alone = watched.alone();
        if raised && alone.is_err() {
            self.take_down_gate(watched);
        }
        alone
    }

    fn put_up_gate(&self, watched: &mut Watched) -> Result<(), String> {
        if watched.lowered > 0 {
            return Err("another description of it is taking over".into());
        }
        let added = self.gate().and_then(|gate| {
            gate.add(&watched.io).map_err(|e| format!("fanotify cannot guard it: {e}"))
        });
        watched.gateless = added.is_err();
        added?;
        watched.gate = Some(Strangers::since(newest_loop()));
        watched.gate_has_stood = true;
        Ok(())
    }

    /// The gate is asked about a file no longer. Nothing of it may be away.
    pub(super) fn take_down_gate(&self, watched: &mut Watched) {
        let Some(strangers) = watched.gate.take() else { return };
        // From now on nobody tells what they do.
        watched.proven &= !strangers.are_there();
        if let Some(Ok(keeper)) = &*self.gate.lock()
            && let Err(error) = keeper.gate.remove(&watched.io)
        {
            tracing::debug!(%error, "a file's gate could not be taken down");
        }
        self.gates_taken_down.fetch_add(1, Ordering::SeqCst);
    }

    /// So many have been, whatever file they stood on: a description that was opened since has been seen by none that
    /// is down.
    pub(crate) fn gates_taken_down(&self) -> u64 {
        self.gates_taken_down.load(Ordering::SeqCst)
    }

    /// Before another description of a file takes over: its gate is down until what this yields is dropped.
    pub(crate) fn lower_gate(&self, file: FileKey) -> Lowered<'_> {
        let mut state = self.state.lock();
        let watched = state.files.get_mut(&file);
        let has_stood = watched.is_some_and(|watched| {
            self.take_down_gate(watched);
            watched.lowered += 1;
            watched.gate_has_stood
        });
        Lowered { guards: self, file, has_stood }
    }

    /// The gate, started if it is not.
    pub(super) fn gate(&self) -> Result<Arc<Gate>, String> {
        let mut keeper = self.gate.lock();
        let keeper = keeper.get_or_insert_with(|| self.start_gate());
        keeper.as_ref().map(|k| Arc::clone(&k.gate)).map_err(Clone::clone)
    }

    /// A moment at which the gate has no file open, to be asked; see [`Gate::idle`].
    pub(super) fn idle(&self) -> Option<u64> {
        match &*self.gate.lock() {
            Some(Ok(keeper)) => keeper.gate.idle(),
            _ => Some(0),
        }
    }

    /// It has had none open since that moment.
    pub(super) fn was_idle(&self, since: Option<u64>) -> bool {
        since.is_some() && self.idle() == since
    }

    fn start_gate(&self) -> Result<GateKeeper, String> {
        let gate = Arc::new(Gate::new().map_err(|e| format!("fanotify cannot guard: {e}"))?);
        let shared = self.shared.get().cloned().ok_or("the cache is not started")?;
        let asked = Arc::clone(&gate);
        let body = move || {
            loop {
                let next = asked.next(|access| {
                    if let Some(shared) = shared.upgrade() {
                        let _ = surviving(|| shared.let_touch(access));
                    }
                });
                match next {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => {
                        tracing::error!(%error, "reading who waits failed; trying again");
                        std::thread::sleep(std::time::Duration::from_millis(10));
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("pageferry-gate".into()).spawn(body);
        let thread = Some(thread.map_err(|e| format!("no thread for fanotify: {e}"))?);
        Ok(GateKeeper { gate, thread, process: std::process::id() })
    }

    /// The file that an access waits for, if it must be asked about.
    fn gated(&self, access: &Access) -> Option<FileKey> {
        let id = access.file().ok()?;
        let state = self.state.lock();
        let file = *state.ids.get(&id)?;
        let watched = state.files.get(&file)?;
        (watched.gate.is_some() && !watched.threads.contains(&access.thread)).then_some(file)
    }

    /// Somebody waits to make a call: what it may change is noted, and what is being kept just now is
    /// waited for. Which bytes must be home before it goes on; `None`: none.
    fn told(&self, file: FileKey, access: &Access, call: Call) -> Option<Range<u64>> {
        let mut state = self.state.lock();
        // What the thread has done before, and the size that it left, is not this call's doing.
        self.hear(&mut state);
        let watched = state.files.get_mut(&file)?;
        if let Ok(seen) = measure(&watched.io) {
            watched.learn(&seen);
        }
        // What came by another way may be used in ways that nobody is asked about.
        let call =
            if access.opening && !access.is_beside(&watched.io) { Call::Unknown } else { call };
        let range = watched.gate.as_mut()?.told(access.thread, call, &access.range);
        while state.files.get(&file).is_some_and(|w| w.keeps > 0) {
            self.kept.wait(&mut state);
        }
        Some(range)
    }
}

impl Shared {
    /// What the thread does that is asked; the access goes on when it is dropped.
    fn let_touch(self: &Arc<Self>, access: Access) {
        let Some(file) = self.guards.gated(&access) else { return };
        let call = Call::of(access.thread, access.opening);
        let Some(range) = self.guards.told(file, &access, call) else { return };
        if !self.core.lock().engine.is_away(file, &range) {
            return;
        }
        // It may take its time, and others shall not wait for that.
        let shared = Arc::clone(self);
        let access = Arc::new(access);
        let (waiting, bytes) = (Arc::clone(&access), range.clone());
        let home = move || {
            shared.bring_home_for_others(file, bytes);
            drop(waiting);
        };
        let spawned = std::thread::Builder::new().name("pageferry-home".into()).spawn(home);
        if spawned.is_err() {
            self.bring_home_for_others(file, range);
        }
    }
}
