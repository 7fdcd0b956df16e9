//! What a request does in each phase.

use std::ops::Range;

use crate::op::{Effect, Op, Phase, Turn};
use crate::pages::{clip, page_span};
use crate::range::RangeSet;
use crate::trust::measure;
use crate::{Action, Engine, OpKey, PAGE_BYTES, Refusal, Request, WaitFor};

impl<E: Clone> Engine<E> {
    pub(crate) fn advance(&mut self, key: OpKey, op: &mut Op<E>) -> Turn<E> {
        if op.refusal.is_some() && !op.unwinding {
            if op.inflight > 0 {
                return Turn::Blocked(WaitFor::Io);
            }
            self.unwind(key, op);
        }
        match op.phase {
            Phase::Observe => self.observe(op),
            Phase::Tidy => self.tidy(op),
            Phase::Admit => self.admit(key, op),
            Phase::Trap => self.trap(op),
            Phase::Scan => self.scan(op),
            Phase::TakeDirty => self.take_dirty(op),
            Phase::Fill => self.fill_or_recheck(op),
            Phase::Clean => self.clean_op(op),
            Phase::Perform => self.perform(op),
            Phase::Settle => self.settle_op(key, op),
            Phase::Free => self.free_op(op),
            Phase::End => Turn::Clear,
        }
    }

    /// Nothing of a refused request may remain but its error.
    fn unwind(&mut self, key: OpKey, op: &mut Op<E>) {
        op.unwinding = true;
        match &op.request {
            // A failed release ends its pin all the same: what could not go home stays away, and
            // where nobody could tell what was stored, that is all of it.
            Request::Release { pin, .. } => {
                let pin = *pin;
                if op.phase == Phase::TakeDirty {
                    self.doubt_stores(op.file, &op.range);
                    self.mark_stored(op, pin);
                }
                self.end_pin(op);
            }
            Request::Pin { .. } => self.end_pin(op),
            Request::Change { .. } => {
                if let Some(state) = self.files.get_mut(&op.file) {
                    state.claims.remove(&key);
                }
            }
            _ => {}
        }
        if let Some(state) = self.files.get_mut(&op.file) {
            state.barriers.remove(&key);
        }
        let held_nothing = matches!(op.refusal, Some(Refusal::Gone | Refusal::BadRange))
            || op.phase < Phase::Admit;
        op.goto(if held_nothing { Phase::End } else { Phase::Settle });
    }

    fn observe(&mut self, op: &mut Op<E>) -> Turn<E> {
        if let Some(error) = &self.lost
            && op.mode().is_some()
        {
            return Turn::Refuse(Refusal::Failed(error.clone()));
        }
        if op.queued || op.inflight > 0 {
            return Turn::Clear;
        }
        op.queued = true;
        // A question about places is none about age: no copy is dropped for it.
        match op.request {
            Request::Query { .. } => measure(op.file),
            _ => self.look(op.file),
        }
    }

    /// After a shrink, by whoever comes first.
    fn tidy(&mut self, op: &mut Op<E>) -> Turn<E> {
        let Some(state) = self.files.get_mut(&op.file) else { return Turn::Clear };
        let Some(tidy) = state.tidy else { return Turn::Clear };
        if op.stay_untidy {
            return Turn::Clear;
        }
        let beyond = tidy.from..u64::MAX;
        if !tidy.hidden {
            // What is on its way onto the device may be of a file that has grown back.
            if state.is_locked(&beyond, op.key) {
                return Turn::Blocked(WaitFor::Io);
            }
            // Before the pages go: what was stored to them is lost, and its pin's release says so.
            let last = state.pins.writers_back().find(|(_, p)| p.granted);
            let end = last.map_or(0, |(_, p)| p.pages().end);
            if !tidy.asked && self.lost.is_none() && end > tidy.from {
                state.tidy = Some(crate::file::Tidy { asked: true, ..tidy });
                let range = tidy.from..end;
                return Turn::Act {
                    action: Action::TakeDirty { file: op.file, range: range.clone() },
                    file: op.file,
                    effect: Effect::TakeDirty { range: range.clone() },
                    locks: vec![(op.file, range)],
                };
            }
            let ranges = state.unserved(&beyond);
            // No kernel reaches anything on a device that is lost.
            if ranges.is_empty() || self.lost.is_some() {
                state.tidy = Some(crate::file::Tidy { hidden: true, ..tidy });
                return Turn::Again;
            }
            return Turn::Act {
                action: Action::Hide { file: op.file, ranges },
                file: op.file,
                effect: Effect::Hide { serial: tidy.serial },
                locks: vec![(op.file, beyond)],
            };
        }
        let mut from = op.settled;
        let turn = self.settle(op, op.file, &beyond, &mut from);
        op.settled = from;
        let turn = match turn {
            Turn::Clear => self.free(op, op.file, &beyond),
            turn => turn,
        };
        if matches!(turn, Turn::Clear)
            && op.inflight == 0
            && let Some(state) = self.files.get_mut(&op.file)
            && state.tidy == Some(tidy)
        {
            state.tidy = None;
        }
        turn
    }

    fn admit(&mut self, key: OpKey, op: &mut Op<E>) -> Turn<E> {
        let Some(state) = self.files.get(&op.file) else { return Turn::Refuse(Refusal::Gone) };
        match op.request.clone() {
            Request::Pin { mode, .. } => {
                if op.range.end > state.pages.limit() {
                    return Turn::Refuse(Refusal::PastEof { file_bytes: state.pages.bytes() });
                }
                if self.folios_of(&op.range) > self.budget_frames {
                    return Turn::Refuse(self.full(op));
                }
                match self.may_enter(key, op) {
                    Err(()) => Turn::Refuse(Refusal::WouldDeadlock),
                    Ok(false) => Turn::Blocked(WaitFor::Pins),
                    Ok(true) => {
                        if let Some(pin) = op.pin {
                            self.admit_pin(op, pin, mode);
                        }
                        Turn::Clear
                    }
                }
            }
            Request::Change { resizes, .. } => match self.may_enter(key, op) {
                Err(()) => Turn::Refuse(Refusal::WouldDeadlock),
                Ok(false) => Turn::Blocked(WaitFor::Pins),
                Ok(true) => {
                    self.admit_change(key, op, resizes);
                    Turn::Clear
                }
            },
            // A touch waits for whoever may be writing its page.
            Request::Touch { at, .. } => {
                let page = page_span(&(at..at + 1));
                if !state.is_trapped(&page) {
                    op.goto(Phase::End);
                    return Turn::Clear;
                }
                if state.first_trap_holder(&page).is_some() {
                    op.range = page;
                    return Turn::Blocked(WaitFor::Pins);
                }
                Turn::Clear
            }
            _ => Turn::Clear,
        }
    }

    /// Asks every writable mapping of ours over the range what was stored to; at a mapping's end, it
    /// alone, about all that the device has copies of or is getting.
    fn scan(&mut self, op: &mut Op<E>) -> Turn<E> {
        let Some(state) = self.files.get(&op.file) else { return Turn::Clear };
        if !op.queued {
            op.queued = true;
            for (&map, m) in state.maps.iter().filter(|(_, m)| m.writable) {
                let inside = clip(&m.range, &(0..state.pages.limit()));
                let mut asked = RangeSet::new();
                match op.request {
                    Request::MapOut { map: ending, .. } if ending == map => {
                        state.pages.valid_runs(&inside).into_iter().for_each(|run| asked.add(run));
                        for (locked, flight) in state.busy.overlaps(inside) {
                            let effect = self.flights.get(flight).map(|f| &f.effect);
                            if matches!(effect, Some(Effect::Fetch { .. })) {
                                asked.add(clip(&locked, &m.range));
                            }
                        }
                    }
                    Request::MapOut { .. } => {}
                    _ => asked.add(clip(&inside, &page_span(&op.range))),
                }
                op.queue.extend(asked.iter().map(|(run, ())| (Some(map), run)));
            }
        }
        // Whatever of it is not locked now, in whatever order: wide pins are not to wait for a moment
        // in which nobody works anywhere in their range.
        for at in (0..op.queue.len()).rev() {
            let (map, range) = op.queue[at].clone();
            let Some(map) = map.filter(|map| state.maps.contains_key(map)) else {
                op.queue.swap_remove(at);
                continue;
            };
            let Some(open) = state.first_open(&range, op.key) else { continue };
            op.queue.swap_remove(at);
            let rest = [range.start..open.start, open.end..range.end].into_iter();
            op.queue.extend(rest.filter(|r| !r.is_empty()).map(|r| (Some(map), r)));
            return Turn::Act {
                action: Action::ScanStores { file: op.file, map, range: open.clone() },
                file: op.file,
                effect: Effect::Scan { map, range: open.clone() },
                locks: vec![(op.file, open)],
            };
        }
        if op.queue.is_empty() { Turn::Clear } else { Turn::Blocked(WaitFor::Io) }
    }

    fn take_dirty(&mut self, op: &mut Op<E>) -> Turn<E> {
        let Some(state) = self.files.get(&op.file) else { return Turn::Refuse(Refusal::Gone) };
        if !op.queued {
            op.queued = true;
            op.queue = match (&op.request, op.pin) {
                (Request::Release { .. }, Some(pin)) => match state.pins.get(&pin) {
                    Some(p) => vec![(None, p.pages())],
                    None => return Turn::Refuse(Refusal::Gone),
                },
                _ => {
                    let pages = page_span(&op.range);
                    let mut over: Vec<_> = state.pins.writers_over(&pages).collect();
                    over.sort_unstable_by_key(|(key, _)| *key);
                    over.iter().map(|(_, p)| (None, clip(&p.pages(), &pages))).collect()
                }
            };
        }
        if let Some((_, range)) = op.queue.last().cloned() {
            // Under page locks: marks that a query has taken and not yet noted would be missed by
            // the release that comes in between.
            if state.is_locked(&range, op.key) {
                return Turn::Blocked(WaitFor::Io);
            }
            op.queue.pop();
            return Turn::Act {
                action: Action::TakeDirty { file: op.file, range: range.clone() },
                file: op.file,
                effect: Effect::TakeDirty { range: range.clone() },
                locks: vec![(op.file, range)],
            };
        }
        if op.inflight == 0
            && let Request::Release { pin, keep } = op.request
        {
            self.mark_stored(op, pin);
            if keep {
                self.end_pin(op);
            }
        }
        Turn::Clear
    }

    /// What the device stored under the pin becomes dirty: exactly those bytes, none past the end.
    fn mark_stored(&mut self, op: &mut Op<E>, key: crate::PinKey) {
        let Some(state) = self.files.get_mut(&op.file) else { return };
        let Some(pin) = state.pins.get(&key) else { return };
        let end = pin.cut.unwrap_or(u64::MAX);
        let stored: Vec<Range<u64>> = pin
            .stored
            .iter()
            .map(|(r, ())| clip(&r, &pin.range))
            .filter(|r| !r.is_empty())
            .collect();
        for run in stored {
            state.pages.mark_dirty(&clip(&run, &(0..end)), self.now);
            if end < run.end {
                op.lost_bytes += run.end - end.max(run.start);
            }
        }
    }

    fn fill_or_recheck(&mut self, op: &mut Op<E>) -> Turn<E> {
        if !op.short {
            let turn = self.fill(op);
            return match turn {
                Turn::Clear if op.inflight == 0 => self.still_inside(op),
                turn => turn,
            };
        }
        // A fetch met the end of file early: learn the size, then judge.
        if op.inflight > 0 {
            return Turn::Clear;
        }
        if !op.queued {
            op.queued = true;
            return self.look(op.file);
        }
        (op.short, op.queued) = (false, false);
        match self.still_inside(op) {
            // It has grown back; other pages may not have been filled.
            Turn::Clear => Turn::Again,
            turn => turn,
        }
    }

    fn still_inside(&mut self, op: &mut Op<E>) -> Turn<E> {
        let Some(state) = self.files.get_mut(&op.file) else {
            return Turn::Refuse(Refusal::Gone);
        };
        // A page that was there when we came by may have been spoilt since, by another's failed
        // fetch of newer bytes.
        if let Some((spoiled, ())) = state.spoiled.overlaps(page_span(&op.range)).next() {
            op.cursor = state.pages.folio_of(spoiled.start);
            op.short = false;
            op.queued = false;
            return Turn::Again;
        }
        if op.range.end > state.pages.limit() {
            return Turn::Refuse(Refusal::PastEof { file_bytes: state.pages.bytes() });
        }
        // A page that lost its trust since we came by may be on its way anew, for another pin: what
        // the device stores meanwhile would be overwritten. (What it loads is either copy, as after
        // the grant.)
        let fetches =
            |key| self.flights.get(key).is_some_and(|f| matches!(f.effect, Effect::Fetch { .. }));
        let writes = op.mode().is_some_and(|m| m.writes());
        if writes && state.busy.overlaps(page_span(&op.range)).any(|(_, key)| fetches(key)) {
            return Turn::Blocked(WaitFor::Io);
        }
        // The file shrank and grew back while the pin was being filled: nothing was stored yet that
        // the cut could have lost, but what lay beyond is gone.
        if let Some(pin) = op.pin.and_then(|p| state.pins.get_mut(&p))
            && pin.cut.take().is_some()
        {
            op.short = false;
            op.goto(if pin.mode.writes() { Phase::Trap } else { Phase::Scan });
            return Turn::Again;
        }
        Turn::Clear
    }

    /// What a flush has left out for the pin before, lest pin after pin keeps it away.
    fn clean_due(&mut self, op: &mut Op<E>) -> Turn<E> {
        loop {
            let Some(state) = self.files.get(&op.file) else { return Turn::Clear };
            let Some((due, ())) = state.due.overlaps(op.range.clone()).next() else {
                return Turn::Clear;
            };
            let turn = self.clean(op, op.file, &due, true);
            if !matches!(turn, Turn::Clear) || op.inflight > 0 {
                return turn;
            }
            if let Some(state) = self.files.get_mut(&op.file) {
                state.due.remove(due);
            }
        }
    }

    /// Remembers what a flush leaves out.
    fn leave_due(&mut self, op: &Op<E>) {
        let Some(state) = self.files.get_mut(&op.file) else { return };
        let pins = state.pins.writers_over(&op.range).map(|(_, p)| clip(&p.range, &op.range));
        let left: Vec<_> = pins.filter(|r| state.pages.is_dirty(r)).collect();
        left.into_iter().for_each(|range| state.due.add(range));
    }

    fn clean_op(&mut self, op: &mut Op<E>) -> Turn<E> {
        if op.mode().is_some() {
            return self.clean_due(op);
        }
        let skip = match &op.request {
            Request::Flush { skip_pinned, .. } => *skip_pinned,
            Request::Release { .. } | Request::Change { .. } | Request::Close { .. } => false,
            _ => true,
        };
        // A change drops whole pages of copies: their other dirty bytes go home with the range's.
        let range = match &op.request {
            Request::Change { .. } => page_span(&op.range),
            _ => op.range.clone(),
        };
        let turn = self.clean(op, op.file, &range, skip);
        if op.inflight > 0 || !matches!(turn, Turn::Clear | Turn::Blocked(WaitFor::Pins)) {
            return turn;
        }
        if skip && matches!(op.request, Request::Flush { .. }) {
            self.leave_due(op);
        }
        // All that can go home is home, as far as it need not wait: now for what cannot.
        if let Some(error) = op.trouble.take() {
            if matches!(op.request, Request::Evict { .. }) {
                self.drop_pages(op);
            }
            return Turn::Refuse(Refusal::Failed(error));
        }
        if matches!(turn, Turn::Clear) {
            match &op.request {
                Request::Release { .. } => self.end_pin(op),
                Request::Evict { .. } | Request::Close { .. } => self.drop_pages(op),
                _ => {}
            }
        }
        turn
    }

    /// The pages of an eviction: unpinned, clean, wholly inside the range.
    fn drop_pages(&mut self, op: &mut Op<E>) {
        let Some(state) = self.files.get_mut(&op.file) else { return };
        let up = |at: u64| at.saturating_add(PAGE_BYTES - 1) & !(PAGE_BYTES - 1);
        let end = if op.range.end >= state.pages.bytes() {
            state.pages.limit()
        } else {
            op.range.end & !(PAGE_BYTES - 1)
        };
        let whole = up(op.range.start)..end;
        if whole.start >= whole.end {
            return;
        }
        let mut kept = RangeSet::new();
        for (_, pin) in state.pins.over(&whole) {
            kept.add(pin.pages());
        }
        for run in state.pages.dirty_runs(&whole) {
            kept.add(page_span(&run));
        }
        for gap in kept.gaps(whole) {
            let bytes = state.pages.valid_bytes(&gap);
            state.pages.clear_valid(&gap);
            op.evicted_bytes += bytes;
            self.stats.evicted_bytes += bytes;
        }
    }
}
