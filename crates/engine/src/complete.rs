//! What a reply changes.

use std::ops::Range;

use crate::file::FileState;
use crate::op::{Effect, Flight};
use crate::pages::{clip, page_span};
use crate::{
    ActionKey, Class, Engine, FileKey, FrameId, MapKey, Observed, OpKey, PAGE_BYTES, Refusal,
    Reply, Request,
};

impl<E: Clone> Engine<E> {
    /// Tells how an action ended. Page locks it held are free again.
    pub fn complete(&mut self, action: ActionKey, reply: Reply<E>) {
        let Some(Flight { op, file, effect, locks }) = self.flights.remove(&action) else { return };
        for (file, range) in locks {
            if let Some(state) = self.files.get_mut(&file) {
                state.busy.remove(range);
            }
        }
        if let Some(o) = self.ops.get_mut(&op) {
            o.inflight -= 1;
        }
        self.note_change();
        let changing = matches!(effect, Effect::WriteBack { .. } | Effect::Change { .. });
        let alone = changing && self.end_of_change(file, &effect);
        match reply {
            Reply::Failed { class, error } => self.failed(op, file, effect, class, error),
            reply => self.succeeded(op, file, effect, reply, alone),
        }
    }

    /// Whether no other own change overlapped this one.
    fn end_of_change(&mut self, file: FileKey, effect: &Effect) -> bool {
        let Some(state) = self.files.get_mut(&file) else { return false };
        let (Effect::WriteBack { epoch, .. } | Effect::Change { epoch }) = effect else {
            return false;
        };
        state.changing -= 1;
        state.change_epoch += 1;
        state.changing == 0 && state.change_epoch == epoch + 2
    }

    fn failed(&mut self, op: OpKey, file: FileKey, effect: Effect, class: Class, error: E) {
        if class == Class::DeviceLost {
            self.lost.get_or_insert(error.clone());
        }
        if let Some(state) = self.files.get_mut(&file) {
            match &effect {
                Effect::Fetch { range, .. } => {
                    state.pages.clear_valid(range);
                    state.spoiled.add(range.clone());
                }
                Effect::Allocate { .. } => self.frames_used -= 1,
                Effect::Steal { .. } => {
                    // The frame could not be attached anywhere: the device is gone.
                    self.frames_used -= 1;
                }
                _ => {}
            }
        }
        let Some(op) = self.ops.get_mut(&op) else { return };
        match effect {
            // The budget is more than the device has: live within what there is.
            Effect::Allocate { .. } if class == Class::NoFrame && self.frames_used > 0 => {
                self.budget_frames = self.frames_used;
            }
            Effect::Untrap { range, map } => {
                let run = self
                    .files
                    .get(&file)
                    .and_then(|s| s.maps.get(&map))
                    .and_then(|m| m.trapped.range_at(range.start));
                match run {
                    // Lifting the whole trapped stretch needs no more mappings than there are. (A pin
                    // keeps its range: it only lifts traps of pages that it evicts.)
                    Some(run)
                        if class == Class::OutOfVmas
                            && !op.widened
                            && run != range
                            && op.mode().is_none() =>
                    {
                        op.widened = true;
                        op.range = run;
                    }
                    _ => {
                        op.stay_trapped = true;
                        if matches!(op.request, Request::Touch { .. } | Request::Pin { .. }) {
                            op.refusal.get_or_insert(Refusal::Failed(error));
                        }
                    }
                }
            }
            _ => {
                op.refusal.get_or_insert(Refusal::Failed(error));
            }
        }
    }

    fn succeeded(
        &mut self,
        op: OpKey,
        file: FileKey,
        effect: Effect,
        reply: Reply<E>,
        alone: bool,
    ) {
        match (effect, reply) {
            (Effect::Observe { epoch }, Reply::Observed(seen)) => {
                let undisturbed = self
                    .files
                    .get(&file)
                    .is_some_and(|s| s.changing == 0 && s.change_epoch == epoch);
                if undisturbed {
                    self.learn(file, seen);
                }
            }
            (Effect::Scan { map, range }, Reply::Stored(stored)) => {
                self.stored(op, (file, map), &range, stored)
            }
            (Effect::Trap { map, range }, Reply::Done) => {
                let Some(state) = self.files.get_mut(&file) else { return };
                let Some(m) = state.maps.get_mut(&map) else { return };
                m.trapped.add(range.clone());
                self.stats.traps += 1;
                if m.writable {
                    // A store may have come between the last scan and the trap: nobody can know.
                    state.pages.clear_valid(&range);
                }
            }
            (Effect::Untrap { map, range }, Reply::Done) => {
                if let Some(m) = self.files.get_mut(&file).and_then(|s| s.maps.get_mut(&map)) {
                    m.trapped.remove(range);
                }
            }
            (Effect::Allocate { folio }, Reply::Frame(frame)) => self.adopt(file, folio, frame),
            (Effect::Steal { folio, frame }, Reply::Done) => self.adopt(file, folio, frame),
            (Effect::Free { .. }, Reply::Done) => self.frames_used -= 1,
            (Effect::Fetch { range, zero, stale }, Reply::Fetched { short }) => {
                self.fetched(op, file, &range, zero, stale, short);
            }
            (Effect::WriteBack { range, .. }, Reply::WroteBack { before, after }) => {
                self.wrote_back(op, file, &range, (before, after), alone);
            }
            (Effect::TakeDirty { range }, Reply::Dirty(dirty)) => {
                if let Some(state) = self.files.get_mut(&file) {
                    state.note_stored(&range, dirty);
                }
            }
            (Effect::Change { .. }, Reply::Changed { before, after, error }) => {
                self.has_changed(op, file, (before, after), error, alone);
            }
            (Effect::MapIn { map, range, writable, traps }, Reply::Done) => {
                self.add_map(file, map, range, writable, &traps);
            }
            (Effect::MapOut { map }, Reply::Done) => {
                if let Some(state) = self.files.get_mut(&file) {
                    state.maps.remove(&map);
                }
            }
            (Effect::Hide | Effect::Expel, Reply::Done) => {}
            (effect, _) => debug_assert!(false, "reply does not fit {effect:?}"),
        }
    }

    fn adopt(&mut self, file: FileKey, folio: u64, frame: FrameId) {
        self.tick += 1;
        let born = self.tick;
        let Some(state) = self.files.get_mut(&file) else { return };
        state.pages.add_folio(folio, frame, born);
        let mut queues = std::mem::take(&mut self.queues);
        queues.push((file, folio), born, born, |f, folio, born| self.standing(f, folio, born));
        self.queues = queues;
    }

    fn fetched(
        &mut self,
        op: OpKey,
        file: FileKey,
        range: &Range<u64>,
        zero: bool,
        stale: bool,
        short: bool,
    ) {
        let Some(state) = self.files.get_mut(&file) else { return };
        state.spoiled.remove(range.clone());
        if !stale {
            state.pages.set_valid(range);
        }
        let bytes = range.end - range.start;
        if zero {
            self.stats.zeroed_bytes += bytes;
        } else {
            self.stats.fetched_bytes += bytes;
            self.stats.fetches += 1;
        }
        let Some(op) = self.ops.get_mut(&op) else { return };
        op.short |= short;
        if let Some(pin) = op.pin.and_then(|p| state.pins.get_mut(&p))
            && zero
        {
            pin.zeroed.add(range.clone());
        }
    }

    fn wrote_back(
        &mut self,
        op: OpKey,
        file: FileKey,
        range: &Range<u64>,
        seen: (Observed, Observed),
        alone: bool,
    ) {
        let Some(state) = self.files.get_mut(&file) else { return };
        let inside = clip(range, &(0..seen.0.bytes));
        self.stats.written_bytes += inside.end - inside.start;
        self.stats.writebacks += 1;
        if let Some(op) = self.ops.get_mut(&op) {
            op.written_bytes += inside.end - inside.start;
        }
        let foreign = alone && state.is_foreign(seen.0);
        if foreign {
            state.pages.clear_valid_copies();
            self.stats.distrusts += 1;
        }
        state.pages.clear_dirty(range);
        if alone {
            self.resized(file, seen.1.bytes);
        }
        if let Some(state) = self.files.get_mut(&file) {
            state.stamp = alone.then_some(seen.1.stamp);
        }
    }

    fn has_changed(
        &mut self,
        op: OpKey,
        file: FileKey,
        seen: (Observed, Observed),
        error: Option<E>,
        alone: bool,
    ) {
        let Some(o) = self.ops.get_mut(&op) else { return };
        let (range, request) = (o.range.clone(), o.request.clone());
        if let Some(error) = error {
            o.refusal.get_or_insert(Refusal::Failed(error));
        }
        let Some(state) = self.files.get_mut(&file) else { return };
        if alone && state.is_foreign(seen.0) {
            state.pages.clear_valid_copies();
            self.stats.distrusts += 1;
        }
        let size_is_ours = match request {
            Request::Resize { .. } => true,
            Request::Change { resizes, .. } => resizes || alone,
            _ => false,
        };
        if size_is_ours {
            self.resized(file, seen.1.bytes);
        }
        let Some(state) = self.files.get_mut(&file) else { return };
        state.stamp = alone.then_some(seen.1.stamp);
        if matches!(request, Request::Change { .. }) {
            state.pages.clear_valid(&page_span(&range));
            for flight in self.flights.values_mut().filter(|f| f.file == file) {
                if let Effect::Fetch { range: fetching, stale, .. } = &mut flight.effect {
                    *stale |= !clip(fetching, &page_span(&range)).is_empty();
                }
            }
        }
    }

    /// What a scan of a mapping found makes those copies old.
    fn stored(
        &mut self,
        op: OpKey,
        (file, map): (FileKey, MapKey),
        range: &Range<u64>,
        stored: Option<Vec<Range<u64>>>,
    ) {
        let Some(state) = self.files.get_mut(&file) else { return };
        let runs = stored.unwrap_or_else(|| vec![range.clone()]);
        let trapped = state.maps.get(&map).map(|m| m.trapped.clone()).unwrap_or_default();
        for run in runs.iter().map(|r| clip(r, range)) {
            // Trapped pages cannot have been stored to; the device may hold their newest bytes.
            for open in trapped.gaps(run) {
                self.stats.stored_bytes += state.pages.valid_bytes(&open);
                state.pages.clear_valid(&open);
            }
        }
        if let Some(op) = self.ops.get_mut(&op) {
            op.found |= !runs.is_empty();
        }
    }

    /// An undisturbed observation: what happened to the file behind our back?
    pub(crate) fn learn(&mut self, file: FileKey, seen: Observed) {
        let Some(state) = self.files.get_mut(&file) else { return };
        if state.is_foreign(seen) {
            state.pages.clear_valid_copies();
            self.stats.distrusts += 1;
        } else if state.stamp.is_some_and(|s| s != seen.stamp) {
            state.suspect = true;
        }
        state.stamp = Some(seen.stamp);
        self.resized(file, seen.bytes);
    }

    /// The size is now `bytes`: pins are cut, what lay beyond is forgotten.
    pub(crate) fn resized(&mut self, file: FileKey, bytes: u64) {
        let Some(state) = self.files.get_mut(&file) else { return };
        let old = state.pages.bytes();
        self.stats.forgotten_bytes += state.pages.resize(bytes);
        state.spoiled.remove(state.pages.limit()..u64::MAX);
        if bytes >= old {
            return;
        }
        for pin in state.pins.values_mut().filter(|p| p.range.end > bytes) {
            pin.cut = Some(pin.cut.unwrap_or(u64::MAX).min(bytes));
        }
        let from = bytes.saturating_add(PAGE_BYTES - 1) & !(PAGE_BYTES - 1);
        state.tidy_from = Some(state.tidy_from.unwrap_or(u64::MAX).min(from));
    }
}

impl FileState {
    /// A stamp that moved, with no store through a mapping of ours that could have moved it.
    fn is_foreign(&self, seen: Observed) -> bool {
        self.stamp.is_some_and(|s| s != seen.stamp) && !self.has_writable_maps()
    }

    /// Pages stored to count for every live write pin that touches them.
    fn note_stored(&mut self, range: &Range<u64>, dirty: Option<Vec<Range<u64>>>) {
        for run in dirty.unwrap_or_else(|| vec![range.clone()]) {
            for pin in self.pins.values_mut().filter(|p| p.mode.writes() && p.granted) {
                let mine = clip(&pin.pages(), &run);
                pin.stored.add(mine);
            }
        }
    }
}
