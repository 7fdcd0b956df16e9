//! What a reply changes.

use std::ops::Range;

use crate::file::{FileState, Map, Tidy};
use crate::op::{Effect, Flight, Phase};
use crate::pages::{clip, page_span};
use crate::{
    ActionKey, Class, Engine, FileKey, FrameId, MapKey, OpKey, PAGE_BYTES, Refusal, Reply, Request,
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
        match reply {
            Reply::Failed { class, error } => {
                if matches!(effect, Effect::WriteBack { .. } | Effect::Change) {
                    self.change_ended(file, action.0, None);
                }
                self.failed(op, file, effect, class, error);
            }
            reply => self.succeeded((action, op), file, effect, reply),
        }
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
                    for op in self.ops.values_mut().filter(|o| o.file == file) {
                        op.fetched.remove(range.clone());
                    }
                }
                Effect::Allocate { .. } => self.frames_used -= 1,
                Effect::Steal { .. } => {
                    // The frame could not be attached anywhere: the device is gone.
                    self.frames_used -= 1;
                }
                // It is still where it was.
                Effect::Free { folio, frame } => self.adopt(file, *folio, *frame),
                // Of several stretches the marks of some may have been taken.
                Effect::TakeDirty { range } => self.doubt_stores(file, range),
                _ => {}
            }
        }
        let ends_map = |o: &crate::op::Op<E>| matches!(o.request, crate::Request::MapOut { .. });
        match &effect {
            // Nobody knows how much of it was done.
            Effect::Change => self.distrust(file),
            // A mapping ends all the same.
            Effect::Scan { .. } if self.ops.get(&op).is_some_and(ends_map) => {
                return self.distrust(file);
            }
            _ => {}
        }
        let Some(op) = self.ops.get_mut(&op) else { return };
        let tidying = op.phase == Phase::Tidy;
        match effect {
            // What was stored there is lost anyway; its pin is taken to have stored.
            Effect::TakeDirty { .. } if tidying => {}
            // The file is cut whatever becomes of the pages beyond. But nobody is granted a pin while
            // kernels may still reach them.
            Effect::Hide { .. } if op.mode().is_none() || class == Class::DeviceLost => {
                op.stay_untidy = class != Class::DeviceLost;
            }
            // What else there is to write is written first.
            Effect::WriteBack { range } if op.mode().is_none() => {
                op.unwritten.add(range);
                match class {
                    // Merely to lift a trap.
                    _ if op.phase != Phase::Clean => {}
                    Class::DeviceLost => drop(op.refusal.get_or_insert(Refusal::Failed(error))),
                    _ => drop(op.trouble.get_or_insert(error)),
                }
            }
            // It was merely due: the next flush that leaves it out says so again.
            Effect::WriteBack { range }
                if op.phase == Phase::Clean && class != Class::DeviceLost =>
            {
                if let Some(state) = self.files.get_mut(&file) {
                    state.due.remove(range);
                }
            }
            // One folio that cannot go is no reason not to take another's frame.
            Effect::WriteBack { range } | Effect::Untrap { range, .. }
                if op.phase == Phase::Fill
                    && class != Class::DeviceLost
                    && (file != op.file || clip(&page_span(&op.range), &range).is_empty()) =>
            {
                let Some(state) = self.files.get_mut(&file) else { return };
                state.pages.set_stubborn(range.start, true);
                op.passed.insert((file, state.pages.folio_of(range.start)));
                op.victim = None;
                op.trouble.get_or_insert(error);
            }
            Effect::Untrap { .. } | Effect::Free { .. } if tidying => op.stay_untidy = true,
            Effect::Free { .. } => {
                op.keep_frames = true;
                if matches!(op.request, Request::Evict { .. } | Request::Close { .. }) {
                    op.refusal.get_or_insert(Refusal::Failed(error));
                }
            }
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
                        op.settled = (MapKey(0), 0);
                        // A flush of more than that still has the rest to do.
                        op.range = run.start.min(op.range.start)..run.end.max(op.range.end);
                    }
                    _ => {
                        op.stay_trapped = true;
                        let tells = matches!(
                            op.request,
                            Request::Touch { .. }
                                | Request::Pin { .. }
                                | Request::Flush { .. }
                                | Request::Evict { .. }
                        );
                        if tells {
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
        (action, op): (ActionKey, OpKey),
        file: FileKey,
        effect: Effect,
        reply: Reply<E>,
    ) {
        match (effect, reply) {
            (Effect::Observe, Reply::Observed(seen)) => self.observed(op, file, action.0, seen),
            (Effect::Measure, Reply::Measured(bytes)) => self.measured(op, file, action.0, bytes),
            (Effect::Scan { map, range }, Reply::Stored(stored)) => {
                self.stored((file, map), &range, stored)
            }
            (Effect::Trap { map, range }, Reply::Stored(stored)) => {
                self.stats.traps += 1;
                self.stored((file, map), &range, stored);
                let Some(state) = self.files.get_mut(&file) else { return };
                let Some(m) = state.maps.get_mut(&map) else { return };
                m.trapped.add(range);
            }
            (Effect::Untrap { map, range }, Reply::Done) => {
                let Some(state) = self.files.get_mut(&file) else { return };
                state.pages.set_stubborn(range.start, false);
                if let Some(m) = state.maps.get_mut(&map) {
                    m.trapped.remove(range);
                }
            }
            (Effect::Allocate { folio }, Reply::Frame(frame)) => self.adopt(file, folio, frame),
            (Effect::Steal { folio, frame }, Reply::Done) => self.adopt(file, folio, frame),
            (Effect::Free { .. }, Reply::Done) => self.frames_freed(1),
            (Effect::Fetch { range, zero, stale }, Reply::Fetched { short }) => {
                self.fetched(op, file, &range, (zero, stale, short));
            }
            (Effect::WriteBack { range }, Reply::WroteBack { bytes, after }) => {
                self.wrote_back(op, file, &range, bytes);
                self.change_ended(file, action.0, Some(after));
            }
            (Effect::TakeDirty { range }, Reply::Dirty(dirty)) => {
                if let Some(state) = self.files.get_mut(&file) {
                    state.note_stored(&range, dirty);
                }
            }
            (Effect::Change, Reply::Changed { after, error }) => {
                self.has_changed(op, file, after, error);
                self.change_ended(file, action.0, Some(after));
            }
            (Effect::MapIn { map, range, writable, trapped }, Reply::Done) => {
                if let Some(state) = self.files.get_mut(&file) {
                    state.maps.insert(map, Map { range, writable, trapped });
                }
            }
            (Effect::MapOut { map }, Reply::Done) => {
                if let Some(state) = self.files.get_mut(&file) {
                    state.maps.remove(&map);
                }
            }
            (Effect::Hide { serial }, Reply::Done) => {
                if let Some(tidy) = self.files.get_mut(&file).and_then(|s| s.tidy.as_mut()) {
                    tidy.hidden |= tidy.serial == serial;
                }
            }
            (Effect::Expel, Reply::Done) => {}
            (effect, _) => debug_assert!(false, "reply does not fit {effect:?}"),
        }
    }

    /// The device has frames again: should it have had fewer than the budget says, it may now.
    pub(crate) fn frames_freed(&mut self, count: u64) {
        self.frames_used -= count;
        self.budget_frames = self.config.budget_frames;
    }

    /// Nobody can tell what the device stored to: all that it may have.
    pub(crate) fn doubt_stores(&mut self, file: FileKey, range: &Range<u64>) {
        if let Some(state) = self.files.get_mut(&file) {
            state.note_stored(&page_span(range), None);
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
        (zero, stale, short): (bool, bool, bool),
    ) {
        let Some(state) = self.files.get_mut(&file) else { return };
        state.spoiled.remove(range.clone());
        if !stale {
            state.pages.set_valid(range);
        } else if let Some(op) = self.ops.get_mut(&op) {
            // What was cut off meanwhile it has to fetch again, should the file grow back.
            let cut = op.pin.and_then(|p| state.pins.get(&p)).and_then(|p| p.cut);
            let end = state.pages.limit().min(cut.unwrap_or(u64::MAX) & !(PAGE_BYTES - 1));
            op.fetched.add(clip(range, &(0..end)));
        }
        let bytes = range.end - range.start;
        if zero {
            self.stats.zeroed_bytes += bytes;
        } else {
            self.stats.fetched_bytes += bytes;
            self.stats.fetches += 1;
        }
        if let Some(op) = self.ops.get_mut(&op) {
            op.short |= short;
        }
    }

    fn wrote_back(&mut self, op: OpKey, file: FileKey, range: &Range<u64>, bytes: u64) {
        let Some(state) = self.files.get_mut(&file) else { return };
        state.pages.clear_dirty(range);
        state.pages.set_stubborn(range.start, false);
        let lost = range.end - range.start - bytes;
        self.stats.written_bytes += bytes;
        self.stats.forgotten_bytes += lost;
        self.stats.writebacks += 1;
        if let Some(op) = self.ops.get_mut(&op) {
            op.written_bytes += bytes;
            op.lost_bytes += lost;
            if lost > 0 {
                op.cut = Some(op.cut.unwrap_or(u64::MAX).min(range.start + bytes));
            }
        }
    }

    fn has_changed(&mut self, op: OpKey, file: FileKey, after: u64, error: Option<E>) {
        let Some(o) = self.ops.get_mut(&op) else { return };
        let (range, request) = (page_span(&o.range), o.request.clone());
        let failed = error.is_some();
        if let Some(error) = error {
            o.refusal.get_or_insert(Refusal::Failed(error));
        }
        // Only one change of the size is under way at a time.
        if let (Request::Resize { bytes, .. }, false) = (&request, failed) {
            // Beside it, another change may have made the file longer again before it was looked at.
            self.resized(file, *bytes);
        }
        if matches!(request, Request::Resize { .. } | Request::Change { resizes: true, .. }) {
            self.resized(file, after);
        }
        if matches!(request, Request::Change { .. })
            && let Some(state) = self.files.get_mut(&file)
        {
            state.pages.clear_valid(&range);
            self.doubt_fetches(file, &range);
        }
    }

    /// What is being copied of the range serves who copies it and no later pin.
    fn doubt_fetches(&mut self, file: FileKey, range: &Range<u64>) {
        for flight in self.flights.values_mut().filter(|f| f.file == file) {
            if let Effect::Fetch { range: fetching, stale, .. } = &mut flight.effect {
                *stale |= !clip(fetching, range).is_empty();
            }
        }
    }

    /// What a scan of a mapping found makes those copies old.
    fn stored(
        &mut self,
        (file, map): (FileKey, MapKey),
        range: &Range<u64>,
        stored: Option<Vec<Range<u64>>>,
    ) {
        let Some(state) = self.files.get_mut(&file) else { return };
        let Some(m) = state.maps.get(&map) else { return };
        let runs = stored.unwrap_or_else(|| vec![range.clone()]);
        for run in runs.iter().map(|r| clip(r, range)) {
            // Trapped pages cannot have been stored to; the device may hold their newest bytes.
            for open in m.trapped.gaps(run) {
                self.stats.stored_bytes += state.pages.valid_bytes(&open);
                state.pages.clear_valid(&open);
            }
        }
    }

    /// The size is now `bytes`: pins are cut, what lay beyond is forgotten.
    pub(crate) fn resized(&mut self, file: FileKey, bytes: u64) {
        let serial = self.clock();
        let Some(state) = self.files.get_mut(&file) else { return };
        let old = state.pages.bytes();
        // What a release was about to write back, and cannot any more, its caller is told.
        for op in self.ops.values_mut().filter(|o| o.file == file) {
            op.fetched.remove(bytes & !(PAGE_BYTES - 1)..u64::MAX);
            let held = op.pin.and_then(|p| state.pins.get(&p));
            let releases = matches!(op.request, Request::Release { .. });
            if !releases || !held.is_some_and(|p| p.mode.writes()) {
                continue;
            }
            let beyond = clip(&op.range, &(bytes..u64::MAX));
            let lost = state.pages.dirty_runs(&beyond);
            op.lost_bytes += lost.iter().map(|r| r.end - r.start).sum::<u64>();
        }
        self.stats.forgotten_bytes += state.pages.resize(bytes);
        state.spoiled.remove(state.pages.limit()..u64::MAX);
        state.due.remove(bytes..u64::MAX);
        if bytes >= old {
            return;
        }
        let cut: Vec<_> = state.pins.over(&(bytes..u64::MAX)).map(|(key, _)| key).collect();
        for pin in cut {
            let Some(pin) = state.pins.get_mut(&pin) else { continue };
            pin.cut = Some(pin.cut.unwrap_or(u64::MAX).min(bytes));
        }
        // The page of the cut, too: some pin may have nothing left of it.
        let page = bytes & !(PAGE_BYTES - 1);
        let from = state.tidy.map_or(page, |t| t.from.min(page));
        state.tidy = Some(Tidy { from, asked: false, hidden: false, serial });
        // Should the file grow back, it will have been read before.
        self.doubt_fetches(file, &(page..u64::MAX));
    }
}

impl FileState {
    /// Pages stored to count for every live write pin that touches them.
    fn note_stored(&mut self, range: &Range<u64>, dirty: Option<Vec<Range<u64>>>) {
        for run in dirty.unwrap_or_else(|| vec![range.clone()]) {
            let over = self.pins.writers_over(&page_span(&run)).filter(|(_, p)| p.granted);
            let over: Vec<_> = over.map(|(key, _)| key).collect();
            for pin in over {
                let Some(pin) = self.pins.get_mut(&pin) else { continue };
                let mine = clip(&pin.pages(), &run);
                pin.stored.add(mine);
            }
        }
    }
}
