//! The lease as a guard: whoever opens the file waits until what is away is home.
//!
//! The one idea: bytes are kept away only under a held lease, which is taken for the first of them and
//! given up when all are home: openers with `O_NONBLOCK` (`truncate(1)` is one) get `EAGAIN` from a
//! leased file instead of waiting, so it is held no longer than it is needed. In between stands one
//! thread, which the kernel tells of whoever wants to open the file: it lets no more be kept away, waits
//! for releases that are just doing so, brings everything home, and then gives the lease up. What is
//! stored under a live write pin is not away yet: outsiders see the old bytes of it until the release, as
//! promised. But where those old bytes are away themselves, kept by an earlier release, nobody has them
//! any more, and others wait for the pin.

use std::ops::Range;
use std::time::{Duration, Instant};

use pageferry_engine::FileKey;

use super::look::explain;
use super::{Basis, Guards, Watched, surviving};
use crate::Wait;
use crate::config::Guard;
use crate::shared::{Caller, Shared, Tally, panicked};

/// How long bringing home is tried, and write pins over what is away are waited for, before others are
/// let in all the same. (The kernel lets them in by itself after `lease-break-time`.)
const HOMING_MAX: Duration = Duration::from_secs(10);
const HOMING_PAUSE: Duration = Duration::from_millis(50);
/// How often and how long the gate's own descriptors are waited for.
pub(super) const ASKED_TRIES: u32 = 100;
pub(super) const ASKED_PAUSE: Duration = Duration::from_micros(50);

/// A release that keeps away is under way: nobody is let in before it is over.
pub(crate) struct Kept<'g> {
    guards: &'g Guards,
    file: FileKey,
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if let Some(watched) = self.guards.state.lock().files.get_mut(&self.file) {
            watched.keeps -= 1;
        }
        self.guards.kept.notify_all();
    }
}

impl Watched {
    /// Takes a lease to keep, if there is none yet.
    fn hold(&mut self) -> Result<(), String> {
        if self.is_held() {
            return Ok(());
        }
        let wanted = || "somebody is about to open the file".to_owned();
        if self.held {
            return Err(wanted());
        }
        // A window of our own may have it for the moment: then it is kept from now on.
        self.io.take_lease().map_err(|e| explain(&e))?;
        self.held = self.io.has_lease();
        if self.held {
            return Ok(());
        }
        // Whoever came in between waits for it, and its signal found nothing that was held.
        if !self.leased {
            self.io.drop_lease();
        }
        Err(wanted())
    }

    /// The lease is held and nobody waits for it.
    pub(super) fn is_held(&self) -> bool {
        self.held && self.breaking.is_none() && self.io.has_lease()
    }

    /// Gives up a lease that is kept.
    pub(super) fn give_up(&mut self) {
        if std::mem::take(&mut self.held) {
            self.io.drop_lease();
        }
        self.breaking = None;
        self.home = false;
    }
}

impl Guards {
    /// Leave to keep bytes of a file away.
    ///
    /// # Errors
    /// Why not, for people.
    pub(crate) fn keep(&self, file: FileKey, range: &Range<u64>) -> Result<Kept<'_>, String> {
        for _ in 0..ASKED_TRIES {
            let idle = self.idle();
            match self.try_keep(file, range) {
                // The gate itself has it open, to be asked, for a moment.
                Err(_) if !self.was_idle(idle) => std::thread::sleep(ASKED_PAUSE),
                tried => return tried,
            }
        }
        self.try_keep(file, range)
    }

    fn try_keep(&self, file: FileKey, range: &Range<u64>) -> Result<Kept<'_>, String> {
        // A scheduler of tests decides about every lock: the kernel's threads have no place there.
        let guarded = !cfg!(shuttle);
        let gate = match self.guard {
            Guard::None => return Err("no guard was asked for".into()),
            Guard::Fanotify | Guard::Auto if guarded => Some(self.gate()),
            _ => None,
        };
        let mut state = self.state.lock();
        let watched = state.files.get_mut(&file).ok_or("the file is closed")?;
        match &watched.basis {
            _ if !guarded => {}
            Basis::Watch(_) => match (gate, self.guard) {
                (Some(Ok(_)), Guard::Auto) if watched.held => watched.hold()?,
                (Some(Ok(_)), Guard::Fanotify) => self.pass(watched, range)?,
                (Some(Err(why)), Guard::Fanotify) => return Err(why),
                // The gate may not stand on this file system.
                (Some(Ok(_)), _) => {
                    if let Err(why) = self.pass(watched, range) {
                        watched.hold().map_err(|_| why)?;
                    }
                }
                _ => watched.hold()?,
            },
            Basis::Fixed => return Err("the file cannot be written".into()),
            Basis::Stamps(_) => return Err("stamps guard nothing".into()),
            Basis::Nothing(why) => return Err(why.clone()),
        }
        watched.home = false;
        watched.keeps += 1;
        watched.kept += 1;
        Ok(Kept { guards: self, file })
    }

    /// A lease of the file is kept, and nobody is keeping anything away just now: the moment, as
    /// counted by releases that did.
    pub(crate) fn holds(&self, file: FileKey) -> Option<u64> {
        let state = self.state.lock();
        let file = state.files.get(&file)?;
        let gated = file.gate.is_some() && !self.gate_stays();
        ((file.held || gated) && file.keeps == 0).then_some(file.kept)
    }

    /// At that moment or later nothing of the file was away: if nothing has been kept since, its lease
    /// is in nobody's way any longer.
    pub(crate) fn all_is_home(&self, file: FileKey, moment: u64) {
        let mut state = self.state.lock();
        let Some(watched) = state.files.get_mut(&file).filter(|w| w.kept == moment) else { return };
        if !self.gate_stays() {
            self.take_down_gate(watched);
        }
        if watched.held && watched.breaking.is_none() {
            watched.home = true;
            if watched.own == 0 {
                watched.give_up();
            }
        }
    }

    /// Files that somebody waits to open; no more is kept away from now on, and what is being kept
    /// just now is waited for.
    fn wanted(&self) -> Vec<FileKey> {
        let mut state = self.state.lock();
        let mut wanted = Vec::new();
        for (file, watched) in &mut state.files {
            if watched.held && !watched.io.has_lease() {
                watched.breaking.get_or_insert_with(Instant::now);
                wanted.push(*file);
            }
        }
        let keeping = |state: &super::State| {
            wanted.iter().any(|f| state.files.get(f).is_some_and(|w| w.keeps > 0))
        };
        while keeping(&state) {
            self.kept.wait(&mut state);
        }
        wanted
    }

    /// All that can be is home: whoever waits is let in, after the changes of ours that run.
    fn let_in(&self, file: FileKey) {
        if let Some(watched) = self.state.lock().files.get_mut(&file) {
            watched.home = true;
            if watched.own == 0 {
                watched.give_up();
            }
        }
    }
}

impl Shared {
    /// What the thread does that is told of openers.
    pub(crate) fn let_others_in(&self) {
        for file in self.guards.wanted() {
            self.bring_home_for_others(file, 0..u64::MAX);
            self.guards.let_in(file);
        }
    }

    /// Brings home what is away of a range, as long as it makes sense to have others wait.
    pub(super) fn bring_home_for_others(&self, file: FileKey, range: Range<u64>) {
        let until = Instant::now() + HOMING_MAX;
        loop {
            // What can go at once goes first.
            let left = until.saturating_duration_since(Instant::now());
            let home = || {
                let caller = Caller::this_thread();
                self.flush(file, range.clone(), true, caller, Wait::Block)?;
                self.flush(file, range.clone(), false, caller, Wait::Timeout(left))
            };
            let Some(error) = surviving(home).unwrap_or_else(|| Err(panicked())).err() else {
                return;
            };
            if left.is_zero() {
                Tally::add(&self.tally.unguarded_openers, 1);
                tracing::error!(%error, "others are let in though bytes are away");
                return;
            }
            std::thread::sleep(HOMING_PAUSE);
        }
    }
}
