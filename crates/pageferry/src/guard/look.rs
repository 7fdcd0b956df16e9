//! Looks.

use std::io;
use std::ops::DerefMut;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pageferry_engine::{FileKey, Observed};
use pageferry_linux::{Call, FileStamp, Heard, Watch, newest_loop};

use super::keep::{ASKED_PAUSE, ASKED_TRIES};
use super::strangers::Strangers;
use super::{Basis, Guards, State, Watched, gone, stamp};
use crate::Result;
use crate::perform::measure;

/// A lease that somebody waits for ends after a second at the earliest (`lease-break-time` counts
/// seconds).
pub(super) const LEASE_MIN: Duration = Duration::from_millis(900);
/// Somebody comes and goes all the time: it is as good as there.
const TRIES_MAX: u32 = 4;

impl State {
    /// Notes what the group has heard. If it cannot say, everything may have changed.
    pub(super) fn hear(&mut self, watch: &Watch) {
        let State { files, names, .. } = self;
        let heard = watch.drain(|heard| match heard.file.as_ref().map(|f| names.get(f)) {
            Some(Some(file)) => {
                if let Some(watched) = files.get_mut(file) {
                    watched.hear(&heard);
                }
            }
            // Of a file that was closed meanwhile.
            Some(None) => {}
            None => files.values_mut().for_each(Watched::miss),
        });
        if let Err(error) = heard {
            tracing::error!(%error, "reading fanotify events failed");
            files.values_mut().for_each(Watched::miss);
        }
    }
}

impl Watched {
    fn hear(&mut self, heard: &Heard) {
        let ours = match heard.thread {
            Some(thread) => self.threads.contains(&thread),
            None => heard.own && self.leased,
        };
        if ours && !heard.visited() {
            return;
        }
        self.changed |= heard.modified;
        self.suspect |= heard.closed_writer;
        self.visited |= heard.visited();
        if let Some(strangers) = &mut self.gate {
            strangers.heard(heard);
        }
    }

    /// Something may have been changed that nobody can name.
    fn miss(&mut self) {
        self.changed = true;
        self.proven = false;
    }

    /// What it looks like now, with a look made just before; while own changes run, what moves is theirs.
    pub(super) fn learn(&mut self, seen: &FileStamp) {
        self.resized(seen.size);
        if let Basis::Stamps(known) = &mut self.basis
            && self.own == 0
            && *known != stamp(seen)
        {
            *known = stamp(seen);
            self.changes.anything();
        }
    }

    /// Its size now. What is not the doing of a change of ours may be an append, or an `O_TRUNC`.
    pub(super) fn resized(&mut self, bytes: u64) {
        let was = std::mem::replace(&mut self.bytes, bytes);
        if let (Some(strangers), true) = (&mut self.gate, was != bytes) {
            self.changes.part(strangers.resized(was, bytes));
        }
    }

    /// Nothing was heard of it.
    pub(super) fn is_quiet(&self) -> bool {
        !self.changed && !self.suspect && !self.visited
    }

    /// Somebody else may be at it, as far as the gate knows.
    pub(super) fn has_strangers(&self) -> bool {
        self.gate.as_ref().is_some_and(Strangers::are_there)
    }

    /// The file is ours alone, and what was heard before is all that has been: has it `changed`, and was
    /// the gate `told` of all that?
    fn settle_alone(&mut self, changed: bool, told: bool, loops: Option<u64>) {
        let looped = self.gate.as_ref().is_some_and(Strangers::may_be_loops);
        let parts = self.gate.as_mut().and_then(Strangers::changed).filter(|_| told && !looped);
        if changed {
            self.changes.parts(parts);
        }
        if let Some(strangers) = &mut self.gate {
            strangers.leave(loops, Call::may_cut);
        }
    }

    /// Others have it open. If the gate was told of all they did, it is known where they did it.
    fn settle_among_others(&mut self, told: bool) {
        self.proven = self.gate.is_some();
        let Some(strangers) = &mut self.gate else { return self.changes.anything() };
        strangers.present = true;
        let told = told && !strangers.may_be_loops();
        self.changes.parts(strangers.changed().filter(|_| told));
    }

    /// Nobody else has it open, or could write to it where it is open for reading.
    pub(super) fn alone(&self) -> io::Result<()> {
        if self.held {
            // Whoever waits for it may have been let in by the kernel.
            let sure = self.is_held();
            return if sure { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EAGAIN)) };
        }
        if self.leased {
            return Ok(());
        }
        self.io.take_lease()?;
        self.io.drop_lease();
        Ok(())
    }

    /// The lease still shuts others out: nobody waits for it, or not for long.
    pub(super) fn shuts_out(&self, since: Instant) -> bool {
        self.io.has_lease() || self.breaking.unwrap_or(since).elapsed() < LEASE_MIN
    }

    fn observed(&self, since: u64) -> Observed {
        let (epoch, parts) = (self.changes.epoch(), self.changes.since(since));
        Observed { bytes: self.bytes, epoch, parts }
    }
}

impl Guards {
    /// One look at a file: what has changed since an epoch.
    pub(crate) fn look(&self, file: FileKey, since: u64) -> Result<Observed> {
        let mut state = self.settled(file)?;
        let silent = state.silent;
        let watched = state.files.get_mut(&file).ok_or_else(gone)?;
        if silent && watched.own == 0 {
            // Then the size is what it was, too.
            return Ok(watched.observed(since));
        }
        let io = Arc::clone(&watched.io);
        // It may take its time on a file system that is far away: not under the lock.
        drop(state);
        let seen = measure(&io)?;
        let mut state = self.state.lock();
        let watched = state.files.get_mut(&file).ok_or_else(gone)?;
        watched.learn(&seen);
        Ok(watched.observed(since))
    }

    /// Brings the file's epoch up to date; the state says whether it was proven, and silent since.
    fn settled(&self, file: FileKey) -> Result<impl DerefMut<Target = State> + '_> {
        for attempt in 0.. {
            let mut state = self.state.lock();
            if let Some(silent) = self.settle(&mut state, file, attempt == ASKED_TRIES)? {
                state.silent = silent;
                return Ok(state);
            }
            drop(state);
            std::thread::sleep(ASKED_PAUSE);
        }
        Err(gone())
    }

    /// Whether the file was proven, and nothing was heard since. `None`, unless it is the `last` try:
    /// the gate itself has the file open, to be asked, for a moment.
    pub(super) fn settle(
        &self,
        state: &mut State,
        file: FileKey,
        last: bool,
    ) -> Result<Option<bool>> {
        let watched = state.files.get_mut(&file).ok_or_else(gone)?;
        let (Basis::Watch(_), Ok(watch)) = (&watched.basis, &self.watch) else {
            if matches!(watched.basis, Basis::Nothing(_)) {
                watched.changes.anything();
            }
            return Ok(Some(false));
        };
        state.hear(watch);
        let watched = state.files.get_mut(&file).ok_or_else(gone)?;
        if watched.proven && watched.is_quiet() && !watched.has_strangers() {
            return Ok(Some(true));
        }
        let mut changed = !watched.proven;
        let mut suspect = false;
        // All changes until now were told of, so that it is known where.
        let mut told = watched.proven && watched.gate.is_some();
        for _ in 0..TRIES_MAX {
            let watched = state.files.get_mut(&file).ok_or_else(gone)?;
            changed |= watched.changed;
            suspect |= watched.suspect;
            (watched.changed, watched.suspect, watched.visited) = (false, false, false);
            // Whoever comes from here on is heard of in the next round.
            let was = std::mem::replace(&mut watched.proven, true);
            let idle = self.idle();
            // Before the file is ours alone: none that comes to stand on it is older.
            let gated = watched.gate.is_some() || self.gate_stays();
            let loops = gated.then(newest_loop).flatten();
            if let Err(error) = self.alone_at_gate(watched) {
                watched.why = explain(&error);
                if !last && !self.was_idle(idle) {
                    // As if nothing of this try had been.
                    (watched.proven, watched.changed, watched.visited) = (was, changed, true);
                    watched.suspect = suspect;
                    return Ok(None);
                }
                break;
            }
            let looks = watched.io.telling_look().map(|seen| stamp(&seen));
            state.hear(watch);
            let watched = state.files.get_mut(&file).ok_or_else(gone)?;
            told &= watched.proven;
            if watched.is_quiet() {
                let was = std::mem::replace(&mut watched.when_alone, looks);
                changed |= suspect && (was.is_none() || was != looks || watched.own > 0);
                watched.when_alone = looks.filter(|_| watched.own == 0);
                watched.settle_alone(changed, told, loops);
                return Ok(Some(false));
            }
        }
        let watched = state.files.get_mut(&file).ok_or_else(gone)?;
        watched.settle_among_others(told);
        Ok(Some(false))
    }

    pub(super) fn hear(&self, state: &mut State) {
        if let Ok(watch) = &self.watch {
            state.hear(watch);
        }
    }
}

/// Why a lease was refused.
pub(super) fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => "somebody else has it open or mapped".into(),
        Some(libc::EACCES) => {
            "it belongs to another user: leases need its owner or CAP_LEASE".into()
        }
        _ => format!("no lease is to be had: {error}"),
    }
}
