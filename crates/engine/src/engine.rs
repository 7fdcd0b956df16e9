//! The state machine itself: requests in, actions out, replies in, outcomes out.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::file::{Claim, FileState, Pin};
use crate::op::{Effect, Flight, Op, Phase, Turn};
use crate::pages::{clip, page_span};
use crate::queue::Queues;
use crate::range::RangeSet;
use crate::{
    Action, ActionKey, FileKey, Observed, OpKey, Outcome, Owner, PAGE_BYTES, PinKey, Refusal,
    Request, Stats, Step, WaitFor,
};

/// What the engine is told once.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bytes of a frame: a power of two, at least [`PAGE_BYTES`].
    pub frame_bytes: u64,
    /// Frames that the cache may use.
    pub budget_frames: u64,
    /// Away bytes that one CPU touch brings home, aligned around it.
    pub touch_bytes: u64,
}

/// The placement protocol for all files on one device.
///
/// # Invariants
/// Checked by [`check`](Engine::check); numbered in the crate's documentation.
#[derive(Clone, Debug)]
pub struct Engine<E> {
    pub(crate) config: Config,
    pub(crate) files: BTreeMap<FileKey, FileState>,
    pub(crate) ops: BTreeMap<OpKey, Op<E>>,
    pub(crate) flights: BTreeMap<ActionKey, Flight>,
    pub(crate) queues: Queues,
    pub(crate) frames_used: u64,
    pub(crate) budget_frames: u64,
    /// Set when the device is lost: no pin is granted any more.
    pub(crate) lost: Option<E>,
    pub(crate) stats: Stats,
    /// The caller's clock at the last poll, in whatever unit it uses for ages.
    pub(crate) now: u64,
    /// Counts pins granted and folios born: the clock of `heat`.
    pub(crate) tick: u64,
    /// Pins by file, so that a release need not name it.
    pub(crate) pin_files: BTreeMap<PinKey, FileKey>,
    next: u64,
    next_file: u32,
    /// Something happened that a waiting request may care for.
    changed: bool,
}

impl<E: Clone> Engine<E> {
    /// An engine with no files.
    #[must_use]
    pub fn new(config: Config) -> Engine<E> {
        Engine {
            config,
            files: BTreeMap::new(),
            ops: BTreeMap::new(),
            flights: BTreeMap::new(),
            queues: Queues::new(config.budget_frames),
            frames_used: 0,
            budget_frames: config.budget_frames,
            lost: None,
            stats: Stats::default(),
            now: 0,
            tick: 0,
            pin_files: BTreeMap::new(),
            next: 0,
            next_file: 0,
            changed: false,
        }
    }

    /// The moment, counted in keys given out.
    pub(crate) fn clock(&self) -> u64 {
        self.next
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Makes a file known, as observed now.
    pub fn add_file(&mut self, observed: Observed) -> FileKey {
        // The last one names no file; and none is given twice while it is in use.
        let free = |key: &FileKey| key.0 != u32::MAX && !self.files.contains_key(key);
        let keys = (0..=u32::MAX).map(|n| FileKey(self.next_file.wrapping_add(n)));
        let key = keys.into_iter().find(free).unwrap_or(FileKey(u32::MAX));
        self.next_file = key.0.wrapping_add(1);
        let mut file = FileState::new(self.config.frame_bytes, observed.epoch);
        file.pages.resize(observed.bytes);
        self.files.insert(key, file);
        key
    }

    /// Submits a request; poll it until it is done. A request that is not `patient` is refused
    /// where it would have to wait for pins or frames that others hold.
    pub fn submit(&mut self, request: Request, owner: Owner, patient: bool) -> OpKey {
        let (file, range) = match &request {
            Request::Pin { file, range, .. }
            | Request::Change { file, range, .. }
            | Request::Flush { file, range, .. }
            | Request::Evict { file, range }
            | Request::MapIn { file, range, .. }
            | Request::Query { file, range } => (*file, range.clone()),
            Request::Release { pin, .. } => {
                let file = self.pin_files.get(pin).copied().unwrap_or(FileKey(u32::MAX));
                let held = self.files.get(&file).and_then(|f| f.pins.get(pin));
                (file, held.map_or(0..0, |p| p.range.clone()))
            }
            Request::Resize { file, bytes } => (*file, *bytes & !(PAGE_BYTES - 1)..u64::MAX),
            Request::Touch { file, at } | Request::Expel { file, at, .. } => {
                (*file, *at..at.saturating_add(1))
            }
            Request::MapOut { file, map } => {
                let map = self.files.get(file).and_then(|f| f.maps.get(map));
                (*file, map.map_or(0..0, |m| m.range.clone()))
            }
            Request::Close { file } => (*file, 0..u64::MAX),
        };
        let key = OpKey(self.fresh());
        let mut op = Op::new(key, request, file, range, owner, patient);
        self.greet(key, &mut op);
        self.ops.insert(key, op);
        key
    }

    /// What can be said of a request at once.
    fn greet(&mut self, key: OpKey, op: &mut Op<E>) {
        let Some(state) = self.files.get(&op.file) else {
            op.refusal = Some(Refusal::Gone);
            return;
        };
        match &op.request {
            Request::Pin { .. } => {
                if op.range.start >= op.range.end {
                    op.refusal = Some(Refusal::BadRange);
                }
                op.pin = Some(PinKey(key.0));
            }
            Request::Release { pin, .. } => {
                op.pin = Some(*pin);
                if let Some(p) = state.pins.get(pin) {
                    op.cut = p.cut;
                    if !p.mode.writes() {
                        op.phase = Phase::End;
                    }
                }
            }
            Request::Touch { at, .. } => {
                let touch = self.config.touch_bytes.max(PAGE_BYTES);
                let around = at - at % touch..(at - at % touch).saturating_add(touch);
                let trapped = state.maps.values().filter_map(|m| m.trapped.range_at(*at));
                let run = trapped.reduce(|a, b| a.start.max(b.start)..a.end.min(b.end));
                op.range = match run {
                    Some(run) => clip(&around, &run),
                    None => page_span(&op.range),
                };
            }
            Request::Close { .. } if !state.pins.is_empty() || !state.maps.is_empty() => {
                op.refusal = Some(Refusal::Gone);
            }
            Request::MapOut { map, .. } if !state.maps.contains_key(map) => {
                op.refusal = Some(Refusal::Gone);
            }
            _ => {}
        }
    }

    /// Ends a wait that took too long: the request unwinds and is refused with `TimedOut`. No effect
    /// on one that has actions out or is not waiting for pins or frames.
    pub fn time_out(&mut self, key: OpKey) {
        if let Some(op) = self.ops.get_mut(&key)
            && matches!(op.waiting, Some(WaitFor::Pins | WaitFor::Frames))
            && op.refusal.is_none()
        {
            op.refusal = Some(Refusal::TimedOut);
            self.changed = true;
        }
    }

    /// Ends a request that nobody drives any more: polled until it is done, it undoes what it did and
    /// is refused with `error`.
    pub fn withdraw(&mut self, key: OpKey, error: E) {
        if let Some(op) = self.ops.get_mut(&key) {
            op.refusal.get_or_insert(Refusal::Failed(error));
            self.changed = true;
        }
    }

    /// The next thing to do for a request. `now` is the caller's clock for the age of dirty pages.
    pub fn poll(&mut self, key: OpKey, now: u64) -> Step<E> {
        self.now = now;
        let Some(mut op) = self.ops.remove(&key) else { return Step::Done(Err(Refusal::Gone)) };
        loop {
            let before = op.waiting;
            op.waiting = None;
            match self.advance(key, &mut op) {
                Turn::Act { action, file, effect, locks } => {
                    let flight = self.take_off(key, &mut op, effect, file, locks);
                    self.ops.insert(key, op);
                    return Step::Do(flight, action);
                }
                Turn::Blocked(wait) => {
                    let wait = if op.inflight > 0 { WaitFor::Io } else { wait };
                    op.waiting = Some(wait);
                    if let Some(refusal) = self.hopeless(key, &op) {
                        op.refusal = Some(refusal);
                        continue;
                    }
                    self.changed |= before != op.waiting;
                    self.ops.insert(key, op);
                    return Step::Wait(wait);
                }
                Turn::Again => {}
                Turn::Refuse(refusal) => {
                    op.refusal.get_or_insert(refusal);
                }
                Turn::Clear if op.inflight > 0 => {
                    op.waiting = Some(WaitFor::Io);
                    self.ops.insert(key, op);
                    return Step::Wait(WaitFor::Io);
                }
                Turn::Clear if op.phase != Phase::End => {
                    // A failed untrap leaves the page away: better slow than wrong.
                    op.goto(next_phase(&op));
                }
                Turn::Clear => {
                    self.changed = true;
                    return Step::Done(self.report(key, op));
                }
            }
        }
    }

    /// The next copy of a request, for a thread that helps with it: `None` if there is none to hand
    /// out now. All else, the request's own call above all, is for the thread that polls.
    pub fn help(&mut self, key: OpKey, now: u64) -> Option<(ActionKey, Action)> {
        self.now = now;
        let copying = |op: &Op<E>| matches!(op.phase, Phase::Fill | Phase::Clean);
        let mut op = self.ops.remove(&key)?;
        let mut handed = None;
        if copying(&op) && op.refusal.is_none() {
            match self.advance(key, &mut op) {
                Turn::Act { action, file, effect, locks } => {
                    // It gets on: whoever waits for it is not stuck.
                    op.waiting = None;
                    handed = Some((self.take_off(key, &mut op, effect, file, locks), action));
                }
                Turn::Refuse(refusal) => {
                    op.refusal.get_or_insert(refusal);
                    self.changed = true;
                }
                Turn::Blocked(_) | Turn::Clear | Turn::Again => {}
            }
        }
        self.ops.insert(key, op);
        handed
    }

    /// Refuses a wait that must not or cannot be.
    fn hopeless(&self, key: OpKey, op: &Op<E>) -> Option<Refusal<E>> {
        let wait = op.waiting.filter(|w| *w != WaitFor::Io)?;
        if op.unwinding {
            return None;
        }
        if !op.patient && wait == WaitFor::Pins {
            return Some(Refusal::WouldBlock);
        }
        // Pins and changes have been judged when they tried to enter.
        let enters = matches!(op.request, Request::Pin { .. } | Request::Change { .. });
        let judged = enters && op.phase == Phase::Admit;
        let stuck = !judged && self.is_stuck(op, self.blockers(key, op));
        match wait {
            WaitFor::Frames if stuck || !op.patient => Some(self.full(op)),
            _ if stuck => Some(Refusal::WouldDeadlock),
            _ => None,
        }
    }

    pub(crate) fn full(&self, op: &Op<E>) -> Refusal<E> {
        let needed = self.folios_of(&op.range);
        let mut pinned = 0;
        for file in self.files.values() {
            let mut held = RangeSet::new();
            for (_, pin) in file.pins.all().filter(|(k, _)| Some(*k) != op.pin) {
                held.add(file.pages.folios_of(&pin.range));
            }
            let frames = |r: Range<u64>| file.pages.folios.range(r).count() as u64;
            pinned += held.iter().map(|(folios, ())| frames(folios)).sum::<u64>();
        }
        Refusal::Full { needed_frames: needed, pinned_frames: pinned }
    }

    pub(crate) fn folios_of(&self, range: &Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        (range.end - 1) / self.config.frame_bytes - range.start / self.config.frame_bytes + 1
    }

    /// Bookkeeping at the moment an action goes out.
    fn take_off(
        &mut self,
        op_key: OpKey,
        op: &mut Op<E>,
        effect: Effect,
        file: FileKey,
        locks: Vec<(FileKey, Range<u64>)>,
    ) -> ActionKey {
        let key = ActionKey(self.fresh());
        op.inflight += 1;
        for (file, range) in &locks {
            if let Some(state) = self.files.get_mut(file) {
                debug_assert!(!state.busy.intersects(range.clone()), "page lock taken twice");
                state.busy.insert(range.clone(), key);
            }
        }
        // The device may give the frame to somebody else before we hear that it is free.
        if let Some(state) = self.files.get_mut(&file) {
            match &effect {
                Effect::Free { folio, .. } => {
                    let span = state.pages.folio_span(*folio);
                    state.spoiled.remove(span);
                    state.pages.remove_folio(*folio);
                    state.heat.remove(*folio..*folio + 1);
                }
                Effect::WriteBack { .. } | Effect::Change => state.trust.change_begins(),
                Effect::Fetch { range, zero: true, .. } => {
                    if let Some(pin) = op.pin.and_then(|p| state.pins.get_mut(&p)) {
                        pin.zeroed.add(range.clone());
                    }
                }
                _ => {}
            }
        }
        self.flights.insert(key, Flight { op: op_key, file, effect, locks });
        key
    }

    /// Takes the pin out of the books and says what its end leaves to do.
    pub(crate) fn end_pin(&mut self, op: &mut Op<E>) {
        let Some(key) = op.pin.take() else { return };
        self.pin_files.remove(&key);
        self.changed = true;
        let Some(state) = self.files.get_mut(&op.file) else { return };
        let Some(pin) = state.pins.remove(&key) else { return };
        for (zeroed, ()) in pin.zeroed.iter() {
            for untouched in pin.stored.gaps(zeroed) {
                if !state.pages.is_dirty(&untouched) {
                    state.pages.clear_valid(&untouched);
                }
            }
        }
        // Past the end of file, and behind a cut, the device may have left bytes that are nobody's.
        let end = state.pages.bytes().min(pin.cut.unwrap_or(u64::MAX));
        if pin.mode.writes() {
            let dropped = clip(&pin.range, &(end..u64::MAX));
            for (stray, ()) in pin.stored.overlaps(dropped.clone()) {
                state.pages.clear_valid(&clip(&stray, &dropped));
            }
        }
        op.cut = pin.cut;
    }

    fn report(&mut self, key: OpKey, mut op: Op<E>) -> Result<Outcome, Refusal<E>> {
        if let Some(state) = self.files.get_mut(&op.file) {
            state.claims.remove(&key);
            state.barriers.remove(&key);
        }
        if let Some(refusal) = op.refusal {
            return Err(refusal);
        }
        Ok(match &op.request {
            Request::Pin { range, .. } => {
                self.stats.pins += 1;
                self.stats.pinned_bytes += range.end - range.start;
                let Some(pin) = op.pin else { return Err(Refusal::Gone) };
                let held = self.files.get_mut(&op.file).and_then(|f| f.pins.get_mut(&pin));
                let Some(held) = held else { return Err(Refusal::Gone) };
                held.granted = true;
                Outcome::Pinned(pin)
            }
            Request::Release { .. } => {
                self.end_pin(&mut op);
                Outcome::Released {
                    written_bytes: op.written_bytes,
                    lost_bytes: op.lost_bytes,
                    cut: op.cut,
                }
            }
            Request::Flush { .. } | Request::Evict { .. } => {
                Outcome::Moved { written_bytes: op.written_bytes, evicted_bytes: op.evicted_bytes }
            }
            Request::Query { file, range } => Outcome::Placed(self.placement(*file, range)),
            Request::Close { file } => {
                self.files.remove(file);
                Outcome::Done
            }
            _ => Outcome::Done,
        })
    }

    /// Something a waiting request may care for has happened since last asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(crate) fn note_change(&mut self) {
        self.changed = true;
    }

    pub(crate) fn admit_pin(&mut self, op: &Op<E>, key: PinKey, mode: crate::Mode) {
        self.tick += 1;
        let frame = self.config.frame_bytes;
        let Some(state) = self.files.get_mut(&op.file) else { return };
        let hot = op.range.start / frame..(op.range.end - 1) / frame + 1;
        state.heat.insert(hot, self.tick);
        state.pins.insert(
            key,
            Pin {
                range: op.range.clone(),
                mode,
                owner: op.owner,
                granted: false,
                cut: None,
                stored: Default::default(),
                zeroed: Default::default(),
            },
        );
        self.pin_files.insert(key, op.file);
    }

    pub(crate) fn admit_change(&mut self, key: OpKey, op: &Op<E>, resizes: bool) {
        if let Some(state) = self.files.get_mut(&op.file) {
            let claim = Claim { range: op.range.clone(), owner: op.owner, resizes };
            state.claims.insert(key, claim);
        }
    }
}

/// Where a request goes when a phase has nothing left to do.
fn next_phase<E>(op: &Op<E>) -> Phase {
    use Phase::*;
    if op.unwinding {
        return match op.phase {
            Settle => Free,
            Free => End,
            _ => Settle,
        };
    }
    match (&op.request, op.phase) {
        (Request::Pin { .. }, Observe) => Tidy,
        (Request::Pin { .. }, Tidy) => Admit,
        (Request::Pin { mode, .. }, Admit) => {
            if mode.writes() {
                Trap
            } else {
                Scan
            }
        }
        (Request::Pin { .. }, Trap) => Clean,
        (Request::Pin { .. }, Scan | Clean) => Fill,
        (Request::Release { keep, .. }, TakeDirty) => {
            if *keep {
                Settle
            } else {
                Clean
            }
        }
        (Request::Query { .. }, Observe) => TakeDirty,
        (Request::Query { .. }, TakeDirty) => End,
        (Request::Touch { .. } | Request::Change { .. }, Admit) => Clean,
        (Request::Change { .. }, Clean) => Perform,
        (Request::Resize { .. }, Perform) => Tidy,
        (Request::MapOut { .. }, Scan) => Perform,
        (Request::MapIn { .. } | Request::MapOut { .. } | Request::Expel { .. }, Perform) => End,
        (_, Clean | Perform | Tidy) => Settle,
        (Request::Touch { .. }, Settle) => End,
        (_, Settle) => Free,
        _ => End,
    }
}
