//! What requests look at, counted.

use std::cell::Cell;

use crate::{
    Action, Config, Engine, FileKey, FrameId, MapKey, Mode, Observed, Outcome, PAGE_BYTES, PinKey,
    Refusal, Reply, Request, Step,
};

thread_local! {
    /// Pins looked at by this thread.
    pub(super) static LOOKED_AT: Cell<u64> = const { Cell::new(0) };
}

const PINS: u64 = 10_000;
const P: u64 = PAGE_BYTES;
/// What is pinned: every other page, a folio each.
const HELD: u64 = 2 * P * PINS;

/// An engine whose actions succeed.
struct World {
    engine: Engine<()>,
    frames: u32,
}

impl World {
    fn new(frames: u64) -> (World, FileKey) {
        let config = Config { frame_bytes: P, budget_frames: frames, touch_bytes: P };
        let mut world = World { engine: Engine::new(config), frames: 0 };
        let bytes = HELD + 64 * P;
        let file = world.engine.add_file(Observed { bytes, epoch: 1, parts: None });
        (world, file)
    }

    fn reply(&mut self, action: &Action) -> Reply<()> {
        let bytes = HELD + 64 * P;
        match action {
            Action::Observe { .. } => Reply::Observed(Observed { bytes, epoch: 1, parts: None }),
            Action::Measure { .. } => Reply::Measured(bytes),
            Action::Allocate { .. } => {
                self.frames += 1;
                Reply::Frame(FrameId(self.frames))
            }
            Action::Fetch { .. } => Reply::Fetched { short: false },
            Action::TakeDirty { range, .. } => Reply::Dirty(Some(vec![range.clone()])),
            Action::ScanStores { .. } | Action::Trap { .. } => Reply::Stored(Some(vec![])),
            Action::WriteBack { range, .. } => {
                Reply::WroteBack { bytes: range.end - range.start, after: bytes }
            }
            Action::Change { .. } => Reply::Changed { after: bytes, error: None },
            _ => Reply::Done,
        }
    }

    /// Polls until it is done, `None` if it waits.
    fn run(
        &mut self,
        owner: u64,
        patient: bool,
        request: Request,
    ) -> Option<Result<Outcome, Refusal<()>>> {
        let op = self.engine.submit(request, Some(owner), patient);
        loop {
            match self.engine.poll(op, 0) {
                Step::Do(key, action) => {
                    let reply = self.reply(&action);
                    self.engine.complete(key, reply);
                }
                Step::Wait(_) => return None,
                Step::Done(result) => return Some(result),
            }
        }
    }

    fn pin(&mut self, file: FileKey, page: u64, mode: Mode) -> PinKey {
        let range = page * P..(page + 1) * P;
        match self.run(page, true, Request::Pin { file, range, mode }) {
            Some(Ok(Outcome::Pinned(pin))) => pin,
            other => panic!("{other:?}"),
        }
    }

    /// Every other page is pinned, by turns for reading and for writing.
    fn pinned(&mut self, file: FileKey) {
        for n in 0..PINS {
            self.pin(file, 2 * n, if n % 2 == 0 { Mode::Read } else { Mode::Write });
        }
    }
}

/// What `work` looks at is little, whoever else holds what.
fn looks_at_few<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let before = LOOKED_AT.get();
    let done = work();
    let looked = LOOKED_AT.get() - before;
    assert!(looked <= 40, "{what} looked at {looked} pins");
    done
}

#[test]
fn a_request_looks_at_the_pins_in_its_way_only() {
    let (mut w, file) = World::new(2 * PINS);
    let map = MapKey(1);
    let all = 0..HELD + 64 * P;
    w.run(0, true, Request::MapIn { file, map, range: all, writable: true }).unwrap().unwrap();
    w.pinned(file);
    w.engine.check().unwrap();
    for mode in [Mode::Read, Mode::Write, Mode::Overwrite] {
        for page in [1, PINS + 1, 2 * PINS + 3] {
            let pin = looks_at_few("a pin", || w.pin(file, page, mode));
            let end = Request::Release { pin, keep: false };
            looks_at_few("a release", || w.run(0, true, end)).unwrap().unwrap();
        }
    }
    let range = 4 * P..8 * P;
    for request in [
        Request::Query { file, range: range.clone() },
        Request::Evict { file, range: range.clone() },
        Request::Flush { file, range, skip_pinned: true },
        Request::Change { file, range: P..2 * P, resizes: false },
        Request::Touch { file, at: P },
    ] {
        let what = format!("{request:?}");
        looks_at_few(&what, || w.run(0, true, request)).unwrap().unwrap();
    }
    // One that clashes, and one that would have to wait.
    let (range, mode) = (2 * P..3 * P, Mode::Write);
    let clash = Request::Pin { file, range, mode };
    let refused = looks_at_few("a clash", || w.run(0, false, clash));
    assert!(matches!(refused, Some(Err(Refusal::WouldBlock))), "{refused:?}");
    let waits = looks_at_few("a wait", || w.run(1, true, Request::Touch { file, at: 2 * P }));
    assert!(waits.is_none(), "{waits:?}");
    w.engine.check().unwrap();
}

#[test]
fn who_needs_a_frame_looks_at_the_pins_of_what_it_is_offered_only() {
    let (mut w, file) = World::new(PINS + 4);
    for page in HELD / P..HELD / P + 4 {
        let pin = w.pin(file, page, Mode::Read);
        w.run(0, true, Request::Release { pin, keep: false }).unwrap().unwrap();
    }
    w.pinned(file);
    let pin = looks_at_few("a steal", || w.pin(file, HELD / P + 10, Mode::Read));
    w.run(0, true, Request::Release { pin, keep: false }).unwrap().unwrap();
    w.engine.check().unwrap();
}
