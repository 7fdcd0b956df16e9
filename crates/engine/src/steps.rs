//! The steps that requests are made of. Each looks at the state as it is now and finds the next
//! thing to do; none remembers anything between calls.

use std::ops::Range;

use crate::file::{FileState, Map};
use crate::op::{Effect, Op, Turn};
use crate::pages::{clip, page_span};
use crate::pins::part;
use crate::queue::{Resident, Standing, Victim};
use crate::{Action, Engine, FileKey, MapKey, Mode, OpKey, PinKey, Refusal, WaitFor};

/// How many folios that could not be written back before a request tries again for a frame.
const TRIES: usize = 8;

impl FileState {
    /// The part of `span` before its first locked page: `Err` with the locked stretch if that is
    /// the very first.
    pub(crate) fn unlocked(&self, span: &Range<u64>, who: OpKey) -> Result<Range<u64>, Range<u64>> {
        match self.first_lock(span, who) {
            Some(locked) if locked.start <= span.start => Err(locked),
            Some(locked) => Ok(span.start..locked.start),
            None => Ok(span.clone()),
        }
    }

    /// The first trapped pages of `range` in a mapping that are neither dirty nor under a write pin.
    fn next_needless(&self, m: &Map, range: &Range<u64>) -> Option<Range<u64>> {
        let mut rest = range.clone();
        while !rest.is_empty() {
            let trapped = m.trapped.overlaps(rest.clone()).next()?.0;
            let dirty = self.pages.next_dirty(&trapped).map(|r| page_span(&r));
            let held = self.first_trap_holder(&trapped);
            match dirty.into_iter().chain(held).min_by_key(|r| r.start) {
                Some(needed) if needed.start <= trapped.start => rest.start = needed.end,
                Some(needed) => return Some(trapped.start..needed.start),
                None => return Some(trapped),
            }
        }
        None
    }

    fn write_pin_over(&self, range: &Range<u64>, own: Option<PinKey>) -> Option<Range<u64>> {
        let mut others = self.pins.writers_over(range).filter(|(k, _)| Some(*k) != own);
        others.next().map(|(_, p)| clip(range, &p.range))
    }
}

impl<E: Clone> Engine<E> {
    /// Writes back the next stretch of dirty bytes that no live write pin of another holds and that
    /// the request has not failed to write.
    pub(crate) fn clean(
        &self,
        op: &Op<E>,
        file: FileKey,
        range: &Range<u64>,
        skip_pinned: bool,
    ) -> Turn<E> {
        let Some(state) = self.files.get(&file) else { return Turn::Clear };
        let mut rest = range.clone();
        let (mut io, mut pins) = (false, false);
        while let Some(mut run) = state.pages.next_dirty(&rest) {
            rest.start = run.end;
            if file == op.file
                && let Some((failed, ())) = op.unwritten.overlaps(run.clone()).next()
            {
                if failed.start == run.start {
                    rest.start = failed.end;
                    continue;
                }
                run.end = failed.start;
                rest.start = failed.start;
            }
            if let Some(held) = state.write_pin_over(&run, op.pin) {
                if held.start == run.start {
                    pins |= !skip_pinned;
                    rest.start = held.end;
                    continue;
                }
                run.end = held.start;
                rest.start = held.start;
            }
            let span = page_span(&run);
            match state.unlocked(&span, op.key) {
                Err(locked) => {
                    io = true;
                    rest.start = locked.end;
                    continue;
                }
                Ok(open) => run.end = run.end.min(open.end),
            }
            let folio = state.pages.folio_of(run.start);
            let Some(frame) = state.pages.frame(folio) else { continue };
            return Turn::Act {
                action: Action::WriteBack { file, frame, range: run.clone() },
                file,
                effect: Effect::WriteBack { range: run.clone() },
                locks: vec![(file, page_span(&run))],
            };
        }
        match (io, pins) {
            (true, _) => Turn::Blocked(WaitFor::Io),
            (_, true) => Turn::Blocked(WaitFor::Pins),
            _ => Turn::Clear,
        }
    }

    /// Lifts the next trap of `range` that nothing needs any more, of those at or behind `from`: it
    /// moves on past what was looked at.
    pub(crate) fn settle(
        &self,
        op: &Op<E>,
        file: FileKey,
        range: &Range<u64>,
        from: &mut (MapKey, u64),
    ) -> Turn<E> {
        let Some(state) = self.files.get(&file) else { return Turn::Clear };
        let mut io = false;
        for (&map, m) in state.maps.range(from.0..) {
            let mut rest = clip(&m.range, &page_span(range));
            if map == from.0 {
                rest = clip(&rest, &(from.1..u64::MAX));
            }
            while let Some(gap) = state.next_needless(m, &rest) {
                let open = state.unlocked(&gap, op.key);
                if !io {
                    *from = (map, gap.start);
                }
                let Ok(open) = open else {
                    io = true;
                    rest.start = gap.end;
                    continue;
                };
                return Turn::Act {
                    action: Action::Untrap { file, map, range: open.clone() },
                    file,
                    effect: Effect::Untrap { map, range: open.clone() },
                    locks: vec![(file, open)],
                };
            }
        }
        if io { Turn::Blocked(WaitFor::Io) } else { Turn::Clear }
    }

    /// Traps the next run of pages of `range` that some mapping still lets through. What was begun
    /// before and lifts traps, or makes a mapping that was not told of this pin, is waited for.
    pub(crate) fn trap(&self, op: &Op<E>) -> Turn<E> {
        let Some(state) = self.files.get(&op.file) else { return Turn::Clear };
        let pages = page_span(&op.range);
        let mut io = false;
        for (&map, m) in &state.maps {
            let mut rest = clip(&m.range, &pages);
            while let Some(gap) = m.trapped.first_gap(rest.clone()) {
                let range = match state.unlocked(&gap, op.key) {
                    Ok(open) => open,
                    Err(locked) => {
                        io = true;
                        rest.start = locked.end;
                        continue;
                    }
                };
                return Turn::Act {
                    action: Action::Trap { file: op.file, map, range: range.clone() },
                    file: op.file,
                    effect: Effect::Trap { map, range: range.clone() },
                    locks: vec![(op.file, range)],
                };
            }
        }
        let opens = |key| {
            let effect = self.flights.get(key).map(|f| &f.effect);
            matches!(effect, Some(Effect::Untrap { .. } | Effect::MapIn { .. }))
        };
        io |= state.busy.overlaps(pages).any(|(_, key)| opens(key));
        if io { Turn::Blocked(WaitFor::Io) } else { Turn::Clear }
    }

    /// Gives back the next frame of `range` that serves nothing.
    pub(crate) fn free(&self, op: &Op<E>, file: FileKey, range: &Range<u64>) -> Turn<E> {
        let Some(state) = self.files.get(&file) else { return Turn::Clear };
        let mut io = false;
        for (&folio, f) in state.pages.folios.range(state.pages.folios_of(range)) {
            let span = state.pages.folio_span(folio);
            if !state.pages.is_idle(folio) || state.is_pinned(&span) {
                continue;
            }
            if state.is_locked(&span, op.key) {
                io = true;
                continue;
            }
            return Turn::Act {
                action: Action::Free { frame: f.frame, file, folio },
                file,
                effect: Effect::Free { folio, frame: f.frame },
                locks: vec![(file, span)],
            };
        }
        if io { Turn::Blocked(WaitFor::Io) } else { Turn::Clear }
    }

    /// The next action towards all pages of the pin being on the device.
    pub(crate) fn fill(&mut self, op: &mut Op<E>) -> Turn<E> {
        let Some(state) = self.files.get(&op.file) else { return Turn::Refuse(Refusal::Gone) };
        let pages = clip(&page_span(&op.range), &(0..state.pages.limit()));
        let folios = state.pages.folios_of(&pages);
        let mut folio = op.cursor.max(folios.start);
        let mut blocked = None;
        let mut looked = 0;
        op.cursor = folios.end;
        while let Some(next) =
            self.files.get(&op.file).and_then(|f| f.pages.first_not_full(folio, folios.end))
        {
            folio = next;
            let turn = self.fill_folio(op, folio, &pages);
            match turn {
                Turn::Clear => {}
                Turn::Blocked(w) => {
                    op.cursor = op.cursor.min(folio);
                    // A wait for I/O ends by itself: it is the better news.
                    blocked = if blocked == Some(WaitFor::Io) { blocked } else { Some(w) };
                    looked += 1;
                }
                other => {
                    op.cursor = op.cursor.min(folio);
                    return other;
                }
            }
            // Look ahead as far as helpers can make use of, not over the whole file.
            if looked == 64 {
                break;
            }
            folio += 1;
        }
        blocked.map_or(Turn::Clear, Turn::Blocked)
    }

    fn fill_folio(&mut self, op: &mut Op<E>, folio: u64, pages: &Range<u64>) -> Turn<E> {
        let Some(state) = self.files.get(&op.file) else { return Turn::Refuse(Refusal::Gone) };
        let span = clip(pages, &state.pages.folio_span(folio));
        let Some(frame) = state.pages.frame(folio) else { return self.obtain(op, folio) };
        let mut rest = span;
        let mut blocked = None;
        while let Some(mut run) = state.pages.first_invalid(folio, &rest) {
            // What it has fetched itself is new enough for it.
            match op.fetched.overlaps(run.clone()).next() {
                Some((own, ())) if own.start <= run.start => {
                    rest.start = own.end;
                    continue;
                }
                Some((own, ())) => run.end = own.start,
                None => {}
            }
            let mut run = match state.unlocked(&run, op.key) {
                Ok(open) => open,
                Err(locked) => {
                    blocked = Some(WaitFor::Io);
                    rest.start = locked.end;
                    continue;
                }
            };
            // Stores of another live write pin to other bytes of the page would be overwritten.
            if let Some(held) = state.page_write_pin(&run, op.pin) {
                if held.start <= run.start {
                    blocked = blocked.or(Some(WaitFor::Pins));
                    rest.start = held.end;
                    continue;
                }
                run.end = held.start;
            }
            match state.pages.next_dirty(&run) {
                // Newer bytes of a page that is otherwise unknown go home before it is fetched.
                Some(dirty) if page_span(&dirty).start == run.start => {
                    let page = clip(&run, &page_span(&dirty));
                    return self.clean(op, op.file, &page, false);
                }
                Some(dirty) => return self.fetch(op, frame, run.start..page_span(&dirty).start),
                None => return self.fetch(op, frame, run),
            }
        }
        blocked.map_or(Turn::Clear, Turn::Blocked)
    }

    fn fetch(&self, op: &Op<E>, frame: crate::FrameId, mut run: Range<u64>) -> Turn<E> {
        let Some(state) = self.files.get(&op.file) else { return Turn::Clear };
        let mut zero = false;
        if op.mode() == Some(Mode::Overwrite) {
            // Pages that the pin covers up to their end, or to the end of file.
            let up = |at: u64| page_span(&(0..at)).end;
            let end = if op.range.end >= state.pages.bytes() {
                state.pages.limit()
            } else {
                op.range.end & !(crate::PAGE_BYTES - 1)
            };
            let whole = clip(&run, &(up(op.range.start)..end.max(up(op.range.start))));
            // Dirty marks are per page: beside another's stores, zeros could be taken for ours.
            let shared = |range: &Range<u64>| {
                state.pins.writers_over(range).any(|(key, _)| Some(key) != op.pin)
            };
            if whole.is_empty() || shared(&whole) {
            } else if whole.start == run.start {
                zero = true;
                run = whole;
            } else {
                run.end = whole.start;
            }
        }
        Turn::Act {
            action: Action::Fetch { file: op.file, frame, range: run.clone(), zero },
            file: op.file,
            effect: Effect::Fetch { range: run.clone(), zero, stale: false },
            locks: vec![(op.file, run)],
        }
    }

    /// A frame for a folio: a free one, or another folio's.
    fn obtain(&mut self, op: &mut Op<E>, folio: u64) -> Turn<E> {
        let Some(state) = self.files.get(&op.file) else { return Turn::Refuse(Refusal::Gone) };
        let span = state.pages.folio_span(folio);
        if state.is_locked(&span, op.key) {
            return Turn::Blocked(WaitFor::Io);
        }
        let file = op.file;
        if self.frames_used < self.budget_frames {
            self.frames_used += 1;
            return Turn::Act {
                action: Action::Allocate { file, folio },
                file,
                effect: Effect::Allocate { folio },
                locks: vec![(file, span)],
            };
        }
        if let Some(it) = op.victim.take() {
            match self.standing(it.file, it.folio, it.born) {
                Standing::Clean => return self.steal((it.file, it.folio), (file, folio)),
                Standing::Dirty => return self.clear_out(op, it),
                _ => {}
            }
        }
        match self.victim(op) {
            Victim::Clean(from, old) => self.steal((from, old), (file, folio)),
            Victim::Dirty(it) => self.clear_out(op, it),
            Victim::Stubborn(it) if op.passed.len() < TRIES => self.clear_out(op, it),
            Victim::Busy => Turn::Blocked(WaitFor::Io),
            // One that is in nobody's books is on its way.
            Victim::None if self.frames_moving() => Turn::Blocked(WaitFor::Io),
            Victim::None | Victim::Stubborn(_) => match op.trouble.take() {
                Some(error) => Turn::Refuse(Refusal::Failed(error)),
                None => Turn::Blocked(WaitFor::Frames),
            },
        }
    }

    /// The folio that may lose its frame to the request.
    fn victim(&mut self, op: &Op<E>) -> Victim {
        let mut queues = std::mem::take(&mut self.queues);
        let heat = |f: FileKey, folio| {
            self.files.get(&f).and_then(|s| s.heat.get(folio)).copied().unwrap_or(0)
        };
        let standing = |f, folio, born| match self.standing(f, folio, born) {
            Standing::Dirty | Standing::Stubborn if op.passed.contains(&(f, folio)) => {
                Standing::Held
            }
            standing => standing,
        };
        let victim = queues.victim(standing, heat);
        self.queues = queues;
        victim
    }

    fn steal(&mut self, from: (FileKey, u64), to: (FileKey, u64)) -> Turn<E> {
        let Some(victim) = self.files.get_mut(&from.0) else { return Turn::Blocked(WaitFor::Io) };
        let old_span = victim.pages.folio_span(from.1);
        self.stats.evicted_bytes += victim.pages.valid_bytes(&old_span);
        self.stats.evictions += 1;
        victim.spoiled.remove(old_span.clone());
        victim.heat.remove(from.1..from.1 + 1);
        let Some(frame) = victim.pages.remove_folio(from.1) else {
            return Turn::Blocked(WaitFor::Io);
        };
        let new_span = to.1 * self.config.frame_bytes;
        let new_span = new_span..new_span.saturating_add(self.config.frame_bytes);
        Turn::Act {
            action: Action::Steal { frame, from, to },
            file: to.0,
            effect: Effect::Steal { folio: to.1, frame },
            locks: vec![(to.0, new_span), (from.0, old_span)],
        }
    }

    /// The next step towards a folio having nothing on its frame that is not home.
    fn clear_out(&self, op: &mut Op<E>, it: Resident) -> Turn<E> {
        let Some(victim) = self.files.get(&it.file) else { return Turn::Blocked(WaitFor::Io) };
        op.victim = Some(it);
        let span = victim.pages.folio_span(it.folio);
        let turn = match self.clean(op, it.file, &span, true) {
            Turn::Clear => self.settle(op, it.file, &span, &mut (MapKey(0), 0)),
            turn => turn,
        };
        // Nothing to do for it now means that somebody else is doing it.
        if matches!(turn, Turn::Clear) { Turn::Blocked(WaitFor::Io) } else { turn }
    }

    /// Some frame is being allocated, given back, or changes hands.
    fn frames_moving(&self) -> bool {
        let moves = |e: &Effect| {
            matches!(e, Effect::Allocate { .. } | Effect::Free { .. } | Effect::Steal { .. })
        };
        self.flights.values().any(|f| moves(&f.effect))
    }

    pub(crate) fn standing(&self, file: FileKey, folio: u64, born: u64) -> Standing {
        let Some(state) = self.files.get(&file) else { return Standing::Gone };
        if state.pages.folios.get(&folio).is_none_or(|f| f.born != born) {
            return Standing::Gone;
        }
        let span = state.pages.folio_span(folio);
        if state.is_pinned(&span) {
            Standing::Held
        } else if state.is_locked(&span, OpKey(u64::MAX)) {
            Standing::Busy
        } else if state.pages.is_dirty(&span) || state.is_trapped(&span) {
            let stubborn = state.pages.folios.get(&folio).is_some_and(|f| f.stubborn);
            if stubborn { Standing::Stubborn } else { Standing::Dirty }
        } else {
            Standing::Clean
        }
    }
}

impl FileState {
    /// The pages of the first other granted write pin with live bytes on pages of `range`: the device may
    /// have stored to them. (One that is only being filled waits for the same pages as we do.)
    fn page_write_pin(&self, range: &Range<u64>, own: Option<PinKey>) -> Option<Range<u64>> {
        let over = self.pins.writers_over(&page_span(range));
        let mut others = over.filter(|(k, p)| p.granted && Some(*k) != own);
        others.find_map(|(_, p)| part(range, &p.live_pages()))
    }
}
