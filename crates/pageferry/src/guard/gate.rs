//! fanotify as a guard: whoever touches the file waits until what is away behind that place is home.
//!
//! The one idea: bytes are kept away only where every way to them leads through the gate. The gate is
//! asked about a file from before its first bytes are kept away, and a lease shows at that moment that
//! nobody had it open or mapped earlier. What others touch from then on may be in a mapping, whose
//! accesses nobody is asked about: from the first byte touched on, nothing is kept away any more until
//! the file is ours alone again. When all is home, the gate is taken down: others pay nothing for it.

use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;

use pageferry_engine::FileKey;
use pageferry_linux::{Access, FileId, Gate};

use super::look::explain;
use super::{Guards, Watched};
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

impl Watched {
    /// Keeping the range away is guarded by the gate.
    pub(super) fn pass(&mut self, gate: &Gate, range: &Range<u64>) -> Result<(), String> {
        if !self.gated {
            gate.add(&self.io).map_err(|e| format!("fanotify cannot guard it: {e}"))?;
            if let Err(error) = self.alone() {
                // Who was there before would not be asked about.
                let _ = gate.remove(&self.io);
                return Err(explain(&error));
            }
            self.gated = true;
            self.exposed = None;
        }
        if self.exposed.is_some_and(|from| range.end > from) {
            self.alone().map_err(|e| format!("{}, and has touched it", explain(&e)))?;
            self.exposed = None;
        }
        Ok(())
    }
}

impl Guards {
    /// The gate, started if it is not.
    pub(super) fn gate(&self) -> Result<Arc<Gate>, String> {
        let mut keeper = self.gate.lock();
        let keeper = keeper.get_or_insert_with(|| self.start_gate());
        keeper.as_ref().map(|k| Arc::clone(&k.gate)).map_err(Clone::clone)
    }

    pub(super) fn is_asked(&self) -> bool {
        matches!(&*self.gate.lock(), Some(Ok(keeper)) if keeper.gate.is_asked())
    }

    fn start_gate(&self) -> Result<GateKeeper, String> {
        let gate = Arc::new(Gate::new().map_err(|e| format!("fanotify cannot guard: {e}"))?);
        let shared = self.shared.get().cloned().ok_or("the cache is not started")?;
        let asked = Arc::clone(&gate);
        let body = move || {
            loop {
                let next = asked.next(|access| {
                    if let Some(shared) = shared.upgrade() {
                        shared.let_touch(access);
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

    /// The gate is asked about a file no longer. Nothing of it may be away.
    pub(super) fn ungate(&self, watched: &mut Watched) {
        if std::mem::take(&mut watched.gated)
            && let Some(Ok(keeper)) = &*self.gate.lock()
            && let Err(error) = keeper.gate.remove(&watched.io)
        {
            tracing::debug!(%error, "a file's gate could not be taken down");
        }
    }

    /// Somebody waits to touch a file from a place on: from now on nothing more is kept away there, and
    /// what is being kept just now is waited for. `None`: it need not wait.
    fn touched(&self, id: FileId, from: u64, thread: u32) -> Option<FileKey> {
        let mut state = self.state.lock();
        let file = *state.ids.get(&id)?;
        let watched = state.files.get_mut(&file)?;
        if !watched.gated || watched.threads.contains(&thread) {
            return None;
        }
        watched.exposed = Some(watched.exposed.map_or(from, |e| e.min(from)));
        while state.files.get(&file).is_some_and(|w| w.keeps > 0) {
            self.kept.wait(&mut state);
        }
        Some(file)
    }
}

impl Shared {
    /// What the thread does that is asked; the access goes on when it is dropped.
    fn let_touch(self: &Arc<Self>, access: Access) {
        let Ok(id) = access.file() else { return };
        let Some(file) = self.guards.touched(id, access.from, access.thread) else { return };
        let range = access.from..u64::MAX;
        if !self.core.lock().engine.is_away(file, &range) {
            return;
        }
        // It may take its time, and others shall not wait for that.
        let shared = Arc::clone(self);
        let access = Arc::new(access);
        let waiting = Arc::clone(&access);
        let home = move || {
            shared.bring_home_for_others(file, waiting.from..u64::MAX);
            drop(waiting);
        };
        let spawned = std::thread::Builder::new().name("pageferry-home".into()).spawn(home);
        if spawned.is_err() {
            self.bring_home_for_others(file, access.from..u64::MAX);
        }
    }
}
