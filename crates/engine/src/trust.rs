//! Whose change was it? What makes the engine believe, or no longer believe, its copies.
//!
//! The one idea: every movement of a file's stamp has to be *accounted for*. Only two kinds of ours
//! can move it: a change through a system call ([`Trust::changing`]), and a store through a writable
//! mapping. So
//!
//! - no own change begins before the stamp has just been looked at: what moved earlier is not ours;
//! - while own changes run, movement is theirs; when the last of them has ended, the newest stamp
//!   that one of them saw is what is known;
//! - movement at any other time is somebody else's, and every copy of the file is dropped; but where
//!   a mapping of ours is writable the file becomes *suspect*: no pin is granted before all that is
//!   mapped was asked for stores. A store to a page that was asked about before explains the
//!   movement, and so does a page that came home since; nothing else does.
//!
//! Observations may end in another order than they were made: one that differs from what was
//! learnt while it was under way is made again.

use crate::file::FileState;
use crate::op::{Effect, Turn};
use crate::{Action, Engine, FileKey, Observed, OpKey, Stamp};

/// What is known of one file's stamp. Moments are counted by the keys of actions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trust {
    /// Every movement up to this stamp is accounted for.
    pub(crate) stamp: Stamp,
    /// When the newest observation that was learnt from had begun.
    began: u64,
    /// When something was last learnt.
    learnt: u64,
    /// Own changes under way.
    changing: u32,
    /// What the own changes since there was none saw at their ends: how many, the newest; a failed
    /// one saw nothing.
    seen: (u32, Option<Observed>),
    blind: bool,
    /// When the stamp moved while stores through mappings of ours may explain it.
    pub(crate) suspect: Option<u64>,
    /// A tracked store was found since.
    explained: bool,
}

impl Trust {
    pub(crate) fn new(stamp: Stamp) -> Trust {
        Trust { stamp, ..Trust::default() }
    }

    pub(crate) fn change_begins(&mut self) {
        if self.changing == 0 {
            self.seen = (0, None);
            self.blind = false;
        }
        self.changing += 1;
    }

    /// A store to a tracked page was found.
    pub(crate) fn explain(&mut self) {
        self.explained = true;
    }
}

/// Of two stamps of one file, the first is newer: only the time of change of the inode cannot be
/// set back.
fn is_newer(a: Stamp, b: Stamp) -> bool {
    (a.ctime, a.mtime) > (b.ctime, b.mtime)
}

impl<E: Clone> Engine<E> {
    /// What has to be done before a change of ours may begin: an observation that began at `since`
    /// or later, unless other changes of ours are under way.
    pub(crate) fn look_first(&self, file: FileKey, since: u64) -> Option<Turn<E>> {
        let trust = &self.files.get(&file)?.trust;
        (trust.changing == 0 && trust.began < since).then(|| look(file))
    }

    /// An observation is back. Whoever needs to know and was not told looks again.
    pub(crate) fn observed(&mut self, op: OpKey, file: FileKey, began: u64, seen: Observed) {
        let now = self.clock();
        let Some(state) = self.files.get_mut(&file) else { return };
        let same = state.trust.stamp == seen.stamp && state.pages.bytes() == seen.bytes;
        let trust = &mut state.trust;
        if trust.changing > 0 || trust.began > began {
            return;
        }
        if trust.learnt >= began && !same {
            if let Some(op) = self.ops.get_mut(&op) {
                op.queued = false;
            }
            return;
        }
        trust.began = began;
        if same {
            return;
        }
        trust.learnt = now;
        let moved = trust.stamp != seen.stamp;
        trust.stamp = seen.stamp;
        if moved && state.has_writable_maps() {
            state.trust.suspect = Some(now);
            state.trust.explained = false;
        } else if moved {
            self.distrust(file);
        }
        self.resized(file, seen.bytes);
    }

    /// A change of ours has ended; `after` is missing where it failed and nobody looked.
    pub(crate) fn change_ended(&mut self, file: FileKey, began: u64, after: Option<Observed>) {
        let now = self.clock();
        let Some(state) = self.files.get_mut(&file) else { return };
        let trust = &mut state.trust;
        trust.changing -= 1;
        trust.seen.0 += 1;
        match after {
            Some(after) if trust.seen.1.is_none_or(|s| is_newer(after.stamp, s.stamp)) => {
                trust.seen.1 = Some(after);
            }
            Some(_) => {}
            None => trust.blind = true,
        }
        if trust.changing > 0 || trust.blind {
            return;
        }
        let (changes, Some(newest)) = trust.seen else { return };
        trust.stamp = newest.stamp;
        trust.began = trust.began.max(began);
        trust.learnt = now;
        // Of several that overlapped, the newest stamp may still go with an older size.
        if changes == 1 {
            self.resized(file, newest.bytes);
        }
    }

    /// Somebody else changed the file: no copy of it is to be believed, nor what is being copied.
    pub(crate) fn distrust(&mut self, file: FileKey) {
        let Some(state) = self.files.get_mut(&file) else { return };
        state.pages.clear_valid_copies();
        self.stats.distrusts += 1;
        for flight in self.flights.values_mut().filter(|f| f.file == file) {
            if let Effect::Fetch { stale, .. } = &mut flight.effect {
                *stale = true;
            }
        }
    }

    /// All that is mapped was asked for stores, on account of the suspicion `of`: it ends, unless a
    /// newer one has taken its place. `false`: ask again.
    pub(crate) fn scanned(&mut self, file: FileKey, of: Option<u64>) -> bool {
        let Some(state) = self.files.get_mut(&file) else { return true };
        if state.trust.suspect != of {
            return state.trust.suspect.is_none();
        }
        if state.trust.suspect.take().is_some() && !state.trust.explained {
            self.distrust(file);
        }
        true
    }
}

pub(crate) fn look<E>(file: FileKey) -> Turn<E> {
    Turn::Act { action: Action::Observe { file }, file, effect: Effect::Observe, locks: Vec::new() }
}

impl FileState {
    fn has_writable_maps(&self) -> bool {
        self.maps.values().any(|m| m.writable)
    }
}
