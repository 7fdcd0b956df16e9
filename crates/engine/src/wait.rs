//! Who waits for whom: conflicts, fairness, and the proof that waiting can end.
//!
//! The one idea: a thread is *stuck* if the request it waits in can only be served after threads
//! that are stuck. The set of those that are not is the least fixpoint below; a request whose own
//! thread is not in it is refused instead of queued, so a cycle is broken by whoever would close it.

use std::ops::Range;

use crate::file::Pin;
use crate::op::{Op, Phase};
use crate::pages::{clip, page_span};
use crate::{Engine, OpKey, Owner, PinKey, Request, WaitFor};

/// Whom a request waits for.
pub(crate) struct Blockers {
    owners: Vec<Owner>,
    /// One of them is enough (a frame from anybody), not all.
    any: bool,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    !clip(a, b).is_empty()
}

/// Owners of pins, in the order in which these were asked for.
fn by_key<'a>(pins: impl Iterator<Item = (PinKey, &'a Pin)>) -> impl Iterator<Item = Owner> {
    let mut pins: Vec<_> = pins.map(|(key, pin)| (key, pin.owner)).collect();
    pins.sort_unstable_by_key(|(key, _)| *key);
    pins.into_iter().map(|(_, owner)| owner)
}

impl<E: Clone> Engine<E> {
    /// Owners of what stands in the way of `op` now, queueing aside.
    pub(crate) fn blockers(&self, key: OpKey, op: &Op<E>) -> Blockers {
        let mut owners = Vec::new();
        let Some(file) = self.files.get(&op.file) else { return Blockers { owners, any: false } };
        if op.waiting == Some(WaitFor::Frames) {
            owners.extend(self.files.values().flat_map(|f| f.pins.owners(op.pin)));
            return Blockers { owners, any: true };
        }
        let pages = page_span(&op.range);
        let other = |(k, _): &(PinKey, &Pin)| Some(*k) != op.pin;
        // Those that write and keep some of the pages.
        let writers = file.pins.writers_over(&pages).filter(other);
        let writers = writers.filter(|(_, p)| overlap(&p.kept_pages(), &pages));
        // One that is only being filled gets on by itself, unless it waits for a frame.
        let idle = |k: &PinKey| {
            self.ops.get(&OpKey(k.0)).is_some_and(|o| o.waiting == Some(WaitFor::Frames))
        };
        match &op.request {
            Request::Pin { mode, .. } if op.phase <= Phase::Admit => {
                // A page that was zeroed for an overwrite belongs to that pin whole.
                let clash = |(_, p): &(PinKey, &Pin)| {
                    let whole = clip(&p.kept_pages(), &pages);
                    let zeroed = mode.writes() && p.zeroed.intersects(whole);
                    zeroed || overlap(&p.kept_bytes(), &op.range)
                };
                // Those that read stand beside each other.
                if mode.writes() {
                    let others = file.pins.over(&pages).filter(other);
                    owners.extend(by_key(others.filter(clash)));
                } else {
                    let others = file.pins.writers_over(&pages).filter(other);
                    owners.extend(by_key(others.filter(clash)));
                }
                let claims = file.claims.iter().filter(|(k, c)| {
                    **k != key && mode.writes() && overlap(&page_span(&c.range), &pages)
                });
                owners.extend(claims.map(|(_, c)| c.owner));
            }
            Request::Pin { .. } => {
                let writers = writers.filter(|(k, p)| p.granted || idle(k));
                owners.extend(by_key(writers));
            }
            Request::Flush { .. } | Request::Release { .. } => {
                let others = file.pins.writers_over(&op.range).filter(other);
                let dirty = others.filter(|(_, p)| file.pages.is_dirty(&clip(&p.range, &op.range)));
                owners.extend(by_key(dirty));
            }
            Request::Change { resizes, .. } => {
                owners.extend(by_key(writers));
                let claims =
                    file.claims.iter().filter(|(k, c)| **k != key && *resizes && c.resizes);
                owners.extend(claims.map(|(_, c)| c.owner));
            }
            Request::Resize { .. } => {
                owners.extend(file.claims.values().map(|c| c.owner));
            }
            _ => {
                owners.extend(by_key(writers));
            }
        }
        Blockers { owners, any: false }
    }

    /// Owners of conflicting requests that came earlier and still wait: they go first.
    fn ahead(&self, key: OpKey, op: &Op<E>) -> Vec<Owner> {
        let waits = |o: &&Op<E>| {
            let resizes = matches!(o.request, Request::Resize { .. }) && o.inflight == 0;
            let cuts = resizes && o.phase == Phase::Perform && o.waiting == Some(WaitFor::Io);
            o.file == op.file && (cuts || o.waiting == Some(WaitFor::Pins))
        };
        let earlier = self.ops.range(..key).map(|(_, o)| o).filter(waits);
        earlier.filter(|o| self.goes_first(o, op)).map(|o| o.owner).collect()
    }

    /// Whether a request that waits for pins would have to wait for those of `later`, too.
    fn goes_first(&self, waiting: &Op<E>, later: &Op<E>) -> bool {
        if let Request::Resize { .. } = waiting.request {
            return matches!(later.request, Request::Change { .. });
        }
        let shared = clip(&page_span(&waiting.range), &page_span(&later.range));
        let writes = |o: &Op<E>| o.mode().is_none_or(|m| m.writes());
        let pins = later.mode().is_some_and(|m| m.writes());
        !shared.is_empty()
            && match waiting.request {
                Request::Pin { .. } | Request::Change { .. } => {
                    waiting.phase == Phase::Admit && (writes(waiting) || writes(later))
                }
                Request::Touch { .. } => pins,
                // It waits for what is dirty, not for all of its range.
                Request::Flush { .. } => {
                    let file = self.files.get(&waiting.file);
                    pins && file.is_some_and(|f| f.pages.is_dirty(&shared))
                }
                _ => false,
            }
    }

    /// Whether `op` could wait for ever for `blockers`.
    ///
    /// One that waits for a frame and cannot get it is refused when it is polled next, and gives
    /// back what it holds: who waits for its pins will be served. And where nobody holds a frame any
    /// more, it just has not been polled yet.
    pub(crate) fn is_stuck(&self, op: &Op<E>, blockers: Blockers) -> bool {
        let for_pins = !blockers.any;
        let mut waiting: Vec<(Owner, Blockers, bool)> = vec![(op.owner, blockers, false)];
        for (key, other) in &self.ops {
            if matches!(other.waiting, Some(WaitFor::Pins | WaitFor::Frames)) {
                let theirs = self.blockers(*key, other);
                let served = theirs.any && (for_pins || theirs.owners.is_empty());
                waiting.push((other.owner, theirs, served));
            }
        }
        loop {
            let free = |owner: &Owner| {
                owner.is_none() || waiting.iter().all(|(o, _, served)| o != owner || *served)
            };
            let next = waiting.iter().position(|(_, b, served)| {
                let ok = if b.any { b.owners.iter().any(free) } else { b.owners.iter().all(free) };
                !served && ok
            });
            match next {
                Some(0) => return false,
                Some(at) => waiting[at].2 = true,
                None => return true,
            }
        }
    }

    /// Whether a pin or change may be admitted now: `Ok(true)`, has to queue: `Ok(false)`, or would
    /// queue for ever: `Err`.
    pub(crate) fn may_enter(&self, key: OpKey, op: &mut Op<E>) -> Result<bool, ()> {
        let hard = self.blockers(key, op);
        if !hard.owners.is_empty() {
            // Whoever else closes a cycle is told so; what this one waits for has not changed.
            if !op.patient || op.waits_for.as_ref() == Some(&hard.owners) {
                return Ok(false);
            }
            op.waits_for = Some(hard.owners.clone());
            return if self.is_stuck(op, hard) { Err(()) } else { Ok(false) };
        }
        op.waits_for = None;
        let ahead = self.ahead(key, op);
        // Politeness only: whom it would starve goes first.
        Ok(ahead.is_empty() || self.is_stuck(op, Blockers { owners: ahead, any: false }))
    }
}
