//! The last phases of a request: its own action, and what its end leaves to do.

use std::ops::Range;

use crate::op::{Effect, Op, Turn};
use crate::pages::page_span;
use crate::range::RangeSet;
use crate::{Action, Engine, OpKey, PAGE_BYTES, Refusal, Request, WaitFor};

impl<E: Clone> Engine<E> {
    pub(crate) fn perform(&mut self, op: &mut Op<E>) -> Turn<E> {
        if op.queued {
            return Turn::Clear;
        }
        let file = op.file;
        let Some(state) = self.files.get(&file) else { return Turn::Refuse(Refusal::Gone) };
        let (action, effect, locks) = match op.request.clone() {
            Request::Resize { bytes, .. } => {
                let from = bytes.min(state.pages.bytes()) & !(PAGE_BYTES - 1);
                let region = from..u64::MAX;
                // The kernel makes one wait for the other, and a write may be reading memory that
                // waits for a pin, or for a page of the range that would be locked here.
                if !state.claims.is_empty() {
                    self.unbar(op);
                    return Turn::Blocked(WaitFor::Pins);
                }
                if state.is_locked(&region, op.key) {
                    return self.bar(op, region);
                }
                (Action::Change { file }, Effect::Change, vec![(file, region)])
            }
            Request::Change { .. } => (Action::Change { file }, Effect::Change, Vec::new()),
            Request::MapIn { map, range, writable, .. } => {
                if state.is_locked(&range, op.key) {
                    return self.bar(op, range);
                }
                let traps: Vec<Range<u64>> =
                    state.must_trap(&range).overlaps(range.clone()).map(|(r, ())| r).collect();
                let trapped = set(&traps);
                let action = Action::MapIn { file, map, range: range.clone(), traps };
                let lock = vec![(file, range.clone())];
                (action, Effect::MapIn { map, range, writable, trapped }, lock)
            }
            Request::Expel { map, at, .. } => {
                let page = page_span(&op.range);
                let trapped = |m: &crate::file::Map| m.trapped.intersects(page.clone());
                if !state.maps.get(&map).is_some_and(trapped) {
                    return Turn::Clear;
                }
                if state.is_locked(&page, op.key) {
                    return Turn::Blocked(WaitFor::Io);
                }
                (Action::Expel { file, map, at }, Effect::Expel, vec![(file, page)])
            }
            Request::MapOut { map, .. } => {
                if state.is_locked(&op.range, op.key) {
                    return self.bar(op, op.range.clone());
                }
                let lock = vec![(file, op.range.clone())];
                (Action::MapOut { file, map }, Effect::MapOut { map }, lock)
            }
            _ => return Turn::Clear,
        };
        op.queued = true;
        self.unbar(op);
        Turn::Act { action, file, effect, locks }
    }

    /// Waits for what is under way in a range, and lets nothing new begin there.
    fn bar(&mut self, op: &Op<E>, range: Range<u64>) -> Turn<E> {
        if let Some(state) = self.files.get_mut(&op.file) {
            state.barriers.insert(op.key, range);
        }
        Turn::Blocked(WaitFor::Io)
    }

    fn unbar(&mut self, op: &Op<E>) {
        let state = self.files.get_mut(&op.file);
        if state.is_some_and(|s| s.barriers.remove(&op.key).is_some()) {
            self.note_change();
        }
    }

    pub(crate) fn settle_op(&mut self, key: OpKey, op: &mut Op<E>) -> Turn<E> {
        if op.stay_trapped {
            return Turn::Clear;
        }
        // A change is over when its copies are dropped: others may have the range again.
        if op.inflight == 0
            && let Some(state) = self.files.get_mut(&op.file)
            && state.claims.remove(&key).is_some()
        {
            self.note_change();
        }
        if op.widened {
            match self.clean(op, op.file, &op.range, true) {
                Turn::Clear => {}
                turn => return turn,
            }
        }
        let mut from = op.settled;
        let turn = self.settle(op, op.file, &op.range, &mut from);
        op.settled = from;
        turn
    }

    pub(crate) fn free_op(&mut self, op: &mut Op<E>) -> Turn<E> {
        let worth = match &op.request {
            // An ordinary release leaves its pages as copies: nothing to look for.
            Request::Release { .. } => op.cut.is_some() || op.unwinding,
            Request::Flush { .. } => false,
            _ => true,
        };
        let worth = worth && !op.keep_frames;
        let turn = if worth { self.free(op, op.file, &op.range) } else { Turn::Clear };
        // A frame of the file may be on its way to another, which is no longer in the books.
        let closes = matches!(op.request, Request::Close { .. });
        if closes && matches!(turn, Turn::Clear) && self.is_in_flight(op.file) {
            return Turn::Blocked(WaitFor::Io);
        }
        turn
    }
}

fn set(ranges: &[Range<u64>]) -> RangeSet {
    let mut set = RangeSet::new();
    ranges.iter().for_each(|r| set.add(r.clone()));
    set
}
