//! What bookkeeping costs as things get many: each line is a ratio that should stay near the ratio of
//! the counts. `cargo run --release -p pageferry-engine --example costs`

use std::ops::Range;
use std::time::Instant;

use pageferry_engine::*;

const P: u64 = PAGE_BYTES;
const FRAME: u64 = 16 * P;
const PINS: u64 = 1_000;

struct Bench {
    engine: Engine<u32>,
    file: FileKey,
    now: Observed,
    frames: u32,
    dirty: Vec<Range<u64>>,
}

impl Bench {
    /// A file of so many folios, and frames for half of them.
    fn new(folios: u64) -> Bench {
        let config = Config { frame_bytes: FRAME, budget_frames: folios / 2, touch_bytes: P };
        let mut engine = Engine::new(config);
        let now = Observed { bytes: folios * FRAME, epoch: 1, parts: None };
        let file = engine.add_file(now.clone());
        Bench { engine, file, now, frames: 0, dirty: vec![] }
    }

    fn run(&mut self, who: u32, request: Request) -> Option<Outcome> {
        let op = self.engine.submit(request, Some(u64::from(who)), true);
        loop {
            let (key, action) = match self.engine.poll(op, 0) {
                Step::Do(key, action) => (key, action),
                Step::Wait(_) => return None,
                Step::Done(result) => return result.ok(),
            };
            let reply = match &action {
                Action::Observe { .. } => Reply::Observed(self.now.clone()),
                Action::Allocate { .. } => {
                    self.frames += 1;
                    Reply::Frame(FrameId(self.frames))
                }
                Action::Fetch { .. } => Reply::Fetched { short: false },
                Action::TakeDirty { .. } => Reply::Dirty(Some(self.dirty.clone())),
                Action::Trap { .. } => Reply::Stored(Some(vec![])),
                Action::WriteBack { range, .. } => {
                    Reply::WroteBack { bytes: range.end - range.start, after: self.now.bytes }
                }
                _ => Reply::Done,
            };
            self.engine.complete(key, reply);
        }
    }

    fn pin(&mut self, who: u32, range: Range<u64>, mode: Mode) -> PinKey {
        match self.run(who, Request::Pin { file: self.file, range, mode }) {
            Some(Outcome::Pinned(pin)) => pin,
            other => panic!("{other:?}"),
        }
    }
}

/// Keeps away one page of each folio of a mapping, and flushes them.
fn away_pages(count: u64) {
    let mut b = Bench::new(2 * count);
    let (file, range) = (b.file, 0..count * FRAME);
    b.run(1, Request::MapIn { file, map: MapKey(1), range: range.clone(), writable: true });
    let pin = b.pin(1, range, Mode::Write);
    b.dirty = (0..count).map(|n| n * FRAME..n * FRAME + P).collect();
    b.run(1, Request::Release { pin, keep: true });
    b.run(1, Request::Flush { file, range: 0..u64::MAX, skip_pinned: false });
}

/// Pins that wait behind others', and pins that evict beside them.
fn waiting_pins(count: u64) {
    let mut b = Bench::new(2 * PINS + 4);
    for n in 0..PINS {
        b.pin(n as u32 % 50, n * FRAME..n * FRAME + P, Mode::Read);
    }
    let (file, mode) = (b.file, Mode::Write);
    for n in 0..count as u32 {
        assert_eq!(b.run(100 + n, Request::Pin { file, range: 0..P, mode }), None);
        let at = (PINS + u64::from(n) % 4) * FRAME;
        let pin = b.pin(1, at..at + P, Mode::Read);
        b.run(1, Request::Release { pin, keep: false });
    }
}

fn main() {
    for (name, count) in [("away pages", 1_000), ("waiting pins", 5)] {
        let test = if name == "away pages" { away_pages } else { waiting_pins };
        let time = |count| {
            let begun = Instant::now();
            test(count);
            begun.elapsed().as_secs_f64()
        };
        time(count);
        println!("8 times the {name} cost {:.1} times as much", time(8 * count) / time(count));
    }
}
