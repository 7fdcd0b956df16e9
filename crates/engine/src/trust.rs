//! How old is a copy? What makes the engine believe, or no longer believe, its copies.
//!
//! The one idea: who looks at a file numbers its *epochs*. The number rises when somebody else may
//! have changed the file since it was last looked at, never by a change of our own; how that is known
//! is the looker's affair (a lease and a silent fanotify group, or stamps: the guard). A copy is as old
//! as the epoch in which its fetch began. So when a higher number is learnt, every copy is dropped, or
//! those of the parts that may have changed since the number heard of before, if the looker knows them;
//! and what is being fetched there serves the pin that fetches it and no later one: its fetch began after
//! that pin was asked for.
//!
//! Looks may end in another order than they were made. For epochs that does not matter: each look is
//! asked what changed since the highest number heard, so whoever is told a still higher one is told of
//! all that lies in between. A size is believed only if no change of ours ran, and nothing was learnt, since the look
//! that told it began; otherwise the file is looked at again.

use std::ops::Range;

use crate::op::{Effect, Turn};
use crate::pages::{clip, page_span};
use crate::{Action, Engine, FileKey, Observed, OpKey};

/// What is known of one file's age. Moments are counted by the keys of actions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trust {
    /// The highest number heard of.
    epoch: u64,
    /// When the newest look that was learnt from had begun.
    began: u64,
    /// When something was last learnt.
    learnt: u64,
    /// Own changes under way, and how many have ended since there was none.
    changing: u32,
    ended: u32,
}

impl Trust {
    pub(crate) fn new(epoch: u64) -> Trust {
        Trust { epoch, ..Trust::default() }
    }

    pub(crate) fn change_begins(&mut self) {
        if self.changing == 0 {
            self.ended = 0;
        }
        self.changing += 1;
    }
}

impl<E: Clone> Engine<E> {
    /// An observation is back. Whoever needs to know the size and was not told looks again.
    pub(crate) fn observed(&mut self, op: OpKey, file: FileKey, began: u64, seen: Observed) {
        self.hear_epoch(file, &seen);
        self.measured(op, file, began, seen.bytes);
    }

    /// The size is known as it was at some moment after `began`.
    pub(crate) fn measured(&mut self, op: OpKey, file: FileKey, began: u64, bytes: u64) {
        let now = self.clock();
        let Some(state) = self.files.get_mut(&file) else { return };
        let same = state.pages.bytes() == bytes;
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
        if !same {
            trust.learnt = now;
            self.resized(file, bytes);
        }
    }

    /// A change of ours has ended; `after`, the size, is missing where it failed and
    /// nobody looked.
    pub(crate) fn change_ended(&mut self, file: FileKey, began: u64, after: Option<u64>) {
        let now = self.clock();
        let Some(state) = self.files.get_mut(&file) else { return };
        let trust = &mut state.trust;
        trust.changing -= 1;
        trust.ended += 1;
        let Some(after) = after else { return };
        if trust.changing > 0 {
            return;
        }
        trust.began = trust.began.max(began);
        trust.learnt = now;
        // Of several that overlapped, nobody knows whose size is the newest.
        if trust.ended == 1 {
            self.resized(file, after);
        }
    }

    fn hear_epoch(&mut self, file: FileKey, seen: &Observed) {
        let Some(state) = self.files.get_mut(&file) else { return };
        if seen.epoch <= state.trust.epoch {
            return;
        }
        state.trust.epoch = seen.epoch;
        match &seen.parts {
            None => self.distrust(file),
            Some(parts) => {
                for part in parts {
                    self.stats.changed_bytes += self.drop_copies(file, part);
                }
            }
        }
    }

    /// No copy of the file is to be believed by a later pin, nor what is being copied.
    pub(crate) fn distrust(&mut self, file: FileKey) {
        self.stats.distrusts += 1;
        self.stats.distrusted_bytes += self.drop_copies(file, &(0..u64::MAX));
    }

    /// The same of the pages that `range` touches. Bytes of copies dropped.
    fn drop_copies(&mut self, file: FileKey, range: &Range<u64>) -> u64 {
        let Some(state) = self.files.get_mut(&file) else { return 0 };
        let pages = page_span(range);
        for flight in self.flights.values_mut().filter(|f| f.file == file) {
            if let Effect::Fetch { range, stale, .. } = &mut flight.effect {
                *stale |= !clip(range, &pages).is_empty();
            }
        }
        state.pages.clear_valid_copies(&pages)
    }

    /// Looks at a file.
    pub(crate) fn look(&self, file: FileKey) -> Turn<E> {
        let since = self.files.get(&file).map_or(0, |state| state.trust.epoch);
        let action = Action::Observe { file, since };
        Turn::Act { action, file, effect: Effect::Observe, locks: Vec::new() }
    }
}

/// A look that tells the size only. Of age it says nothing: no copy is dropped for it.
pub(crate) fn measure<E>(file: FileKey) -> Turn<E> {
    Turn::Act { action: Action::Measure { file }, file, effect: Effect::Measure, locks: Vec::new() }
}
