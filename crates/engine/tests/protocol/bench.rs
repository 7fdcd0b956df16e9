//! An engine and whoever performs its actions.

use std::ops::Range;

use pageferry_engine::*;

pub const P: u64 = PAGE_BYTES;
pub const FRAME: u64 = 16 * P;

/// A reply in place of success.
type Breaks = dyn Fn(&Action) -> Option<Reply<u32>>;

pub const EIO: Reply<u32> = Reply::Failed { class: Class::Other, error: 5 };
pub const NO_VMAS: Reply<u32> = Reply::Failed { class: Class::OutOfVmas, error: 12 };
pub const LOST: Reply<u32> = Reply::Failed { class: Class::DeviceLost, error: 19 };

/// An engine and whoever performs its actions: they succeed, unless told otherwise, and are written
/// down.
pub struct Bench {
    pub engine: Engine<u32>,
    /// What a look would tell now.
    pub now: Observed,
    /// What the device is found to have stored to.
    pub dirty: Vec<Range<u64>>,
    /// What a scan of a mapping finds, beside what it was never asked about.
    pub stored: Vec<Range<u64>>,
    pub frames: u32,
    pub done: Vec<Action>,
    /// Which actions fail.
    pub broken: Box<Breaks>,
}

pub fn at(bytes: u64, epoch: u64) -> Observed {
    Observed { bytes, epoch, parts: None }
}

pub fn pin(file: FileKey, range: Range<u64>, mode: Mode) -> Request {
    Request::Pin { file, range, mode }
}

pub fn one(range: Range<u64>) -> Vec<Range<u64>> {
    std::iter::once(range).collect()
}

impl Bench {
    pub fn new(frames: u64, pages: u64) -> (Bench, FileKey) {
        let config = Config { frame_bytes: FRAME, budget_frames: frames, touch_bytes: P };
        let (engine, now) = (Engine::new(config), at(pages * P, 1));
        let mut bench = Bench {
            engine,
            now: now.clone(),
            dirty: vec![],
            stored: vec![],
            frames: 0,
            done: vec![],
            broken: Box::new(|_| None),
        };
        let file = bench.engine.add_file(now);
        (bench, file)
    }

    pub fn reply(&mut self, action: &Action) -> Reply<u32> {
        self.done.push(action.clone());
        if let Some(reply) = (self.broken)(action) {
            return reply;
        }
        match action {
            Action::Observe { .. } => Reply::Observed(self.now.clone()),
            Action::Measure { .. } => Reply::Measured(self.now.bytes),
            Action::Allocate { .. } => {
                self.frames += 1;
                Reply::Frame(FrameId(self.frames))
            }
            Action::Fetch { .. } => Reply::Fetched { short: false },
            Action::TakeDirty { .. } => Reply::Dirty(Some(self.dirty.clone())),
            Action::ScanStores { .. } | Action::Trap { .. } => {
                Reply::Stored(Some(self.stored.clone()))
            }
            Action::WriteBack { range, .. } => {
                Reply::WroteBack { bytes: range.end - range.start, after: self.now.bytes }
            }
            Action::Change { .. } => Reply::Changed { after: self.now.bytes, error: None },
            _ => Reply::Done,
        }
    }

    pub fn submit(&mut self, who: u32, request: Request) -> OpKey {
        self.engine.submit(request, Some(u64::from(who)), true)
    }

    /// Polls until the request is done, `None` if it waits.
    pub fn run(&mut self, op: OpKey) -> Option<Result<Outcome, Refusal<u32>>> {
        for _ in 0..1000 {
            match self.engine.poll(op, 0) {
                Step::Do(key, action) => {
                    let reply = self.reply(&action);
                    self.engine.complete(key, reply);
                }
                Step::Wait(_) => return None,
                Step::Done(result) => return Some(result),
            }
            self.engine.check().unwrap();
        }
        panic!("never done");
    }

    pub fn granted(&mut self, who: u32, request: Request) -> PinKey {
        let op = self.submit(who, request);
        match self.run(op) {
            Some(Ok(Outcome::Pinned(pin))) => pin,
            other => panic!("{other:?}"),
        }
    }

    pub fn done(&mut self, who: u32, request: Request) {
        let op = self.submit(who, request);
        self.run(op).expect("does not wait").expect("succeeds");
    }

    /// Pins for reading and releases: whether anything was fetched.
    pub fn fetches(&mut self, who: u32, file: FileKey, range: Range<u64>) -> bool {
        self.done.clear();
        let pin = self.granted(who, pin(file, range, Mode::Read));
        let fetched = self.done.iter().any(|a| matches!(a, Action::Fetch { .. }));
        self.done(who, Request::Release { pin, keep: false });
        fetched
    }

    /// Runs a request up to the action that `stop` names, which stays out.
    pub fn until(&mut self, op: OpKey, stop: impl Fn(&Action) -> bool) -> ActionKey {
        for _ in 0..1000 {
            match self.engine.poll(op, 0) {
                Step::Do(key, action) if stop(&action) => return key,
                Step::Do(key, action) => {
                    let reply = self.reply(&action);
                    self.engine.complete(key, reply);
                }
                step => panic!("{step:?}"),
            }
        }
        panic!("never comes");
    }

    pub fn until_fetch(&mut self, op: OpKey) -> ActionKey {
        self.until(op, |a| matches!(a, Action::Fetch { .. }))
    }

    /// Runs a request until its fetch is out: `None` if it waits, or is done without.
    pub fn fetch_begun(&mut self, op: OpKey) -> Option<ActionKey> {
        for _ in 0..1000 {
            match self.engine.poll(op, 0) {
                Step::Do(key, Action::Fetch { .. }) => return Some(key),
                Step::Do(key, action) => {
                    let reply = self.reply(&action);
                    self.engine.complete(key, reply);
                }
                Step::Wait(_) | Step::Done(_) => return None,
            }
        }
        panic!("never comes");
    }

    /// A write of ours to a page that stays under way, with what it will have seen after.
    pub fn write_under_way(&mut self, who: u32, file: FileKey, page: u64) -> (OpKey, ActionKey) {
        let range = page * P..(page + 1) * P;
        let op = self.submit(who, Request::Change { file, range, resizes: false });
        (op, self.until(op, |a| matches!(a, Action::Change { .. })))
    }

    pub fn map(&mut self, file: FileKey, pages: Range<u64>) {
        let range = pages.start * P..pages.end * P;
        self.done(1, Request::MapIn { file, map: MapKey(1), range, writable: true });
    }

    /// Pins, stores and keeps away.
    pub fn away(&mut self, who: u32, file: FileKey, range: Range<u64>) {
        let held = self.granted(who, pin(file, range.clone(), Mode::Write));
        self.dirty = one(range);
        self.done(who, Request::Release { pin: held, keep: true });
        self.dirty.clear();
    }
}
