//! The lease as a guard: whoever opens the file waits until what is away is home.
//!
//! The one idea: bytes are kept away only under a held lease, which is taken for the first of them and
//! given up when all are home: openers with `O_NONBLOCK` (`truncate(1)` is one) get `EAGAIN` from a
//! leased file instead of waiting, so it is held no longer than it is needed. In between stands one thread, which the kernel tells of whoever wants to open the file: it
//! lets no more be kept away, waits for releases that are just doing so, brings everything home, and
//! then gives the lease up. What is stored under a live write pin is not away yet: outsiders see the
//! old bytes of it until the release, as promised. But where those old bytes are away themselves, kept
//! by an earlier release, nobody has them any more, and others wait for the pin.

use std::time::{Duration, Instant};

use pageferry_engine::FileKey;

use super::look::explain;
use super::{Basis, Guards, Watched};
use crate::Wait;
use crate::shared::{Shared, Tally};

/// How long bringing home is tried, and write pins over what is away are waited for, before others are
/// let in all the same. (The kernel lets them in by itself after `lease-break-time`.)
const HOMING_MAX: Duration = Duration::from_secs(10);
const HOMING_PAUSE: Duration = Duration::from_millis(50);

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
    pub(crate) fn keep(&self, file: FileKey) -> Result<Kept<'_>, String> {
        if !self.holds {
            return Err("no guard was asked for (a lease would do)".into());
        }
        let mut state = self.state.lock();
        let watched = state.files.get_mut(&file).ok_or("the file is closed")?;
        match &watched.basis {
            Basis::Watch(_) if watched.is_held() => {}
            Basis::Watch(_) if watched.held => {
                return Err("somebody is about to open the file".into());
            }
            Basis::Watch(_) => {
                // A window of our own may have it for the moment: then it is kept from now on.
                watched.io.take_lease().map_err(|e| explain(&e))?;
                if !watched.io.has_lease() {
                    return Err("somebody is about to open the file".into());
                }
                watched.held = true;
            }
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
        state.files.get(&file).filter(|w| w.held && w.keeps == 0).map(|w| w.kept)
    }

    /// At that moment or later nothing of the file was away: if nothing has been kept since, its lease
    /// is in nobody's way any longer.
    pub(crate) fn all_is_home(&self, file: FileKey, moment: u64) {
        if let Some(watched) = self.state.lock().files.get_mut(&file)
            && watched.held
            && watched.kept == moment
            && watched.breaking.is_none()
        {
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
            let until = Instant::now() + HOMING_MAX;
            loop {
                // What can go at once goes first.
                let left = until.saturating_duration_since(Instant::now());
                let home = self
                    .flush(file, 0..u64::MAX, true)
                    .and_then(|_| self.flush_within(file, 0..u64::MAX, Wait::Timeout(left)));
                let Err(error) = home else { break };
                if left.is_zero() {
                    Tally::add(&self.tally.unguarded_openers, 1);
                    tracing::error!(%error, "others are let in though bytes are away");
                    break;
                }
                std::thread::sleep(HOMING_PAUSE);
            }
            self.guards.let_in(file);
        }
    }
}
