//! The virtual threads, and the scheduler.

use std::ops::Range;

use pageferry_engine::{
    Action, ActionKey, Config, Engine, FileKey, MapKey, Mode, OpKey, Outcome, PAGE_BYTES, PinKey,
    Refusal, Reply, Request, Step, WaitFor,
};

use crate::model::Model;
use crate::twins::{CELL, FILE_MAX, FRAME, TwinFile, Twins};

/// xorshift.
pub struct Dice(u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % sides
    }
}

/// What a virtual thread is at.
pub enum Task {
    Idle,
    Asked {
        op: OpKey,
        want: Want,
    },
    Holding {
        pin: PinKey,
        file: FileKey,
        range: Range<u64>,
        mode: Mode,
        stores: Vec<(u64, u32)>,
        /// What its kernels may see at least.
        floors: Vec<usize>,
        left: u64,
    },
}

/// What it asked for, with what it will need to judge the answer.
pub enum Want {
    Pin { file: FileKey, range: Range<u64>, mode: Mode, floors: Vec<usize> },
    Release { file: FileKey, range: Range<u64>, mode: Mode, stores: Vec<(u64, u32)> },
    Write { file: FileKey, range: Range<u64>, claimed: Range<u64>, value: u32 },
    Resize { file: FileKey, bytes: u64, old: u64 },
    Read { file: FileKey, range: Range<u64>, floors: Vec<usize> },
    Touch { file: FileKey, map: MapKey, at: u64, store: Option<u32>, floor: usize },
    Close { file: FileKey },
    Unmap { file: FileKey, map: MapKey },
    Other { file: FileKey },
}

impl Want {
    pub fn file(&self) -> FileKey {
        match self {
            Want::Pin { file, .. }
            | Want::Release { file, .. }
            | Want::Write { file, .. }
            | Want::Resize { file, .. }
            | Want::Read { file, .. }
            | Want::Touch { file, .. }
            | Want::Close { file }
            | Want::Unmap { file, .. }
            | Want::Other { file } => *file,
        }
    }
}

/// An action under way, and how many more moments it takes.
pub struct Flight {
    pub actor: usize,
    pub key: ActionKey,
    pub action: Action,
    pub steps: u64,
    pub reply: Option<Reply<u32>>,
}

pub struct World {
    pub dice: Dice,
    pub engine: Engine<u32>,
    pub twins: Twins,
    pub model: Model,
    pub actors: Vec<Task>,
    pub flights: Vec<Flight>,
    /// In per mille.
    pub failures: u64,
    /// Some failures last: those of write-backs of every third folio.
    pub lasting: bool,
    /// The device may be lost; and it is.
    may_lose: bool,
    pub lost: bool,
    frames: u64,
    next_value: u32,
    pub next_map: u64,
    /// Others change the files, too.
    pub outsiders: bool,
    /// Nobody can prove that nobody has changed a file: each look is a new epoch.
    pub blind: bool,
    clock: u64,
    loud: bool,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let failures = [0, 0, 20, 100][dice.roll(4) as usize];
        let (outsiders, blind) = (dice.roll(2) == 0, dice.roll(4) == 0);
        let (actors, frames) = if dice.roll(4) == 0 { (14, 10) } else { (5, 3) };
        let (lasting, may_lose) = (dice.roll(8) == 0, dice.roll(8) == 0);
        let config = Config {
            frame_bytes: FRAME,
            budget_frames: frames,
            touch_bytes: PAGE_BYTES << dice.roll(3),
        };
        let mut world = World {
            dice,
            engine: Engine::new(config),
            twins: Twins::new(frames as usize),
            model: Model::default(),
            actors: (0..actors).map(|_| Task::Idle).collect(),
            flights: Vec::new(),
            failures,
            lasting,
            may_lose,
            lost: false,
            frames,
            next_value: 1,
            next_map: 1,
            outsiders,
            blind,
            clock: 0,
            loud: false,
        };
        for _ in 0..2 {
            let file = TwinFile::new((world.dice.roll(4 * FRAME / CELL) + 1) * CELL);
            let key = world.engine.add_file(file.observe(0));
            world.twins.files.insert(key, file);
            world.model.add(key);
        }
        world
    }

    pub fn loud(seed: u64) -> World {
        World { loud: true, ..World::new(seed) }
    }

    pub fn say(&self, text: impl FnOnce() -> String) {
        if self.loud {
            eprintln!("{}", text());
        }
    }

    pub fn value(&mut self) -> u32 {
        self.next_value += 1;
        self.next_value + 0x1_0000
    }

    /// Runs `steps` steps, then lets everybody finish, then closes everything.
    pub fn live(mut self, steps: u64) {
        for step in 0..steps {
            self.step(true);
            self.check(step);
        }
        // Nobody begins anything new: all must come to an end.
        for step in 0.. {
            if self.flights.is_empty() && self.actors.iter().all(|a| matches!(a, Task::Idle)) {
                break;
            }
            assert!(step < 60_000, "not everybody comes to an end: {}", self.stuck());
            self.step(false);
            self.check(step);
        }
        (self.failures, self.lasting) = (0, false);
        let files: Vec<FileKey> = self.twins.files.keys().copied().collect();
        for file in files {
            let maps: Vec<MapKey> = self.twins.files[&file].maps.keys().copied().collect();
            for map in maps {
                self.finish(Request::MapOut { file, map });
            }
            let away = self.close_at_end(file);
            let floors = self.model.floors(file, &(0..FILE_MAX));
            let twin = &self.twins.files[&file];
            for at in (0..twin.bytes).step_by(CELL as usize) {
                let cell = (at / CELL) as usize;
                if !away.contains(&at) {
                    let seen = twin.cells[cell];
                    self.model.judge(file, at, floors[cell], seen, "the file at the end");
                }
            }
        }
        assert_eq!(self.engine.frames_used(), 0, "frames are left");
        assert!(self.twins.frames.iter().all(|f| !f.used), "device frames are left");
    }

    /// Closes a file; on a lost device it is given up: returns the cells whose newest bytes that cost.
    fn close_at_end(&mut self, file: FileKey) -> Vec<u64> {
        let cells = (0..FILE_MAX).step_by(CELL as usize);
        let away: Vec<u64> =
            cells.filter(|at| self.engine.is_away(file, &(*at..at + CELL))).collect();
        if !self.lost || away.is_empty() {
            self.finish(Request::Close { file });
            return Vec::new();
        }
        let (frames, bytes) = self.engine.abandon(file).expect("nothing works on it");
        assert_eq!(bytes, away.len() as u64 * CELL, "what is lost is told");
        for (folio, frame) in frames {
            let had = self.twins.files.get_mut(&file).expect("known").attached.remove(&folio);
            assert_eq!(had, Some(frame), "a frame is given up where it is not");
            self.twins.frames[frame.0 as usize].used = false;
        }
        away
    }

    fn stuck(&self) -> String {
        let task = |t: &Task| match t {
            Task::Idle => "idle".to_owned(),
            Task::Asked { op, .. } => format!("{op:?}"),
            Task::Holding { pin, .. } => format!("holds {pin:?}"),
        };
        format!("{:?}", self.actors.iter().map(task).collect::<Vec<_>>())
    }

    fn check(&self, step: u64) {
        self.engine.check().unwrap_or_else(|e| panic!("step {step}: {e}"));
        for task in &self.actors {
            if let Task::Holding { pin, .. } = task {
                let known =
                    self.engine.check_pin(*pin).unwrap_or_else(|e| panic!("step {step}: {e}"));
                assert!(known, "step {step}: a granted pin is gone");
            }
        }
    }

    pub fn finish(&mut self, request: Request) {
        let op = self.engine.submit(request, Some(99), true);
        for _ in 0..10_000 {
            match self.engine.poll(op, self.clock) {
                Step::Done(result) => return drop(result.expect("nothing fails at the end")),
                Step::Do(key, action) => {
                    let mut flight = Flight { actor: 0, key, action, steps: 0, reply: None };
                    self.perform(&mut flight);
                    self.engine.complete(flight.key, flight.reply.expect("performed"));
                }
                Step::Wait(_) => panic!("waits alone"),
            }
        }
        panic!("never done");
    }

    fn step(&mut self, begin: bool) {
        self.clock += 1;
        if !self.flights.is_empty() && self.dice.roll(2) == 0 {
            let at = self.dice.roll(self.flights.len() as u64) as usize;
            return self.fly(at);
        }
        if begin && self.outsiders && self.dice.roll(8) == 0 {
            return self.outsider();
        }
        if begin && self.may_lose && !self.lost && self.dice.roll(400) == 0 {
            self.say(|| "the device is lost".to_owned());
            self.lost = true;
        }
        let actor = self.dice.roll(self.actors.len() as u64) as usize;
        match std::mem::replace(&mut self.actors[actor], Task::Idle) {
            Task::Idle if begin => self.begin(actor),
            Task::Idle => {}
            Task::Asked { op, want } => self.poll(actor, op, want),
            Task::Holding { pin, file, range, mode, mut stores, floors, left } => {
                if left > 0 {
                    self.give_pin(pin);
                    if !self.lost {
                        self.load_pin(pin, file, &range, mode, &stores, &floors);
                        self.use_pin(pin, file, &range, mode, &mut stores);
                        self.stray(pin, file, &range, mode);
                    }
                    // Who was cut stays long enough for others to come beside.
                    let goes_on = self.cut(pin) < range.end && self.dice.roll(8) > 0;
                    let left = left - u64::from(!goes_on);
                    self.actors[actor] =
                        Task::Holding { pin, file, range, mode, stores, floors, left };
                } else {
                    let keep = self.dice.roll(2) == 0;
                    let want = Want::Release { file, range, mode, stores };
                    self.ask(actor, Request::Release { pin, keep }, true, want);
                }
            }
        }
    }

    /// What a thread that helps with a request does.
    fn help(&mut self, actor: usize, op: OpKey) {
        if let Some((key, action)) = self.engine.help(op, self.clock) {
            self.say(|| format!("{actor}'s helper begins {key:?} {action:?}"));
            let steps = self.dice.roll(3) + 1;
            self.flights.push(Flight { actor, key, action, steps, reply: None });
        }
    }

    fn poll(&mut self, actor: usize, op: OpKey, want: Want) {
        if self.dice.roll(4) == 0 {
            self.help(actor, op);
        }
        match self.engine.poll(op, self.clock) {
            Step::Do(key, action) => {
                self.say(|| format!("{actor} begins {key:?} {action:?}"));
                let steps = self.dice.roll(3) + 1;
                self.flights.push(Flight { actor, key, action, steps, reply: None });
                self.actors[actor] = Task::Asked { op, want };
            }
            Step::Wait(wait) => {
                if wait != WaitFor::Io && self.dice.roll(40) == 0 {
                    self.engine.time_out(op);
                }
                self.actors[actor] = Task::Asked { op, want };
            }
            Step::Done(result) => {
                self.say(|| format!("{actor} done {op:?} {result:?}"));
                self.done(actor, want, result);
            }
        }
    }

    fn done(&mut self, actor: usize, want: Want, result: Result<Outcome, Refusal<u32>>) {
        match (want, result) {
            (Want::Pin { file, range, mode, floors }, Ok(Outcome::Pinned(pin))) => {
                if mode != Mode::Overwrite {
                    let end = self.engine.pin_end(pin);
                    for (at, floor) in
                        (range.start..range.end).step_by(CELL as usize).zip(floors.clone())
                    {
                        // A copy that is failing for another pin is hidden before the engine hears.
                        let failing = self.flights.iter().any(|f| {
                            let failed = matches!(f.reply, Some(Reply::Failed { .. }));
                            matches!(&f.action, Action::Fetch { file: of, range, .. }
                                if failed && *of == file && range.contains(&at))
                        });
                        if at < end && at < self.twins.files[&file].bytes && !failing {
                            if !self.twins.is_present(file, at) {
                                let may = self.failures > 0 || self.lost;
                                assert!(may, "a pin's page at {at} is hidden");
                                continue;
                            }
                            let seen = self.twins.device_load(file, at);
                            self.model.judge(file, at, floor, seen, "a pin");
                        }
                    }
                }
                // A release that could not ask has left marks behind: what an overwrite has zeroed there
                // and does not store to may be taken for stored.
                for at in (range.start..range.end).step_by(CELL as usize) {
                    if mode == Mode::Overwrite && self.twins.is_marked(file, at) {
                        self.model.begin(file, at, 0);
                    }
                }
                let (left, stores) = (self.dice.roll(4), Vec::new());
                self.actors[actor] = Task::Holding { pin, file, range, mode, stores, floors, left };
            }
            (Want::Pin { file, range, mode, .. }, Err(refusal)) => {
                assert!(!matches!(refusal, Refusal::Gone | Refusal::BadRange), "{refusal:?}");
                if let Refusal::Full { needed_frames, pinned_frames } = refusal {
                    assert!(
                        needed_frames + pinned_frames > self.frames || self.failures > 0,
                        "{refusal:?}"
                    );
                }
                if mode.writes() {
                    self.model.claim(file, &range, false);
                }
            }
            (Want::Release { file, range, mode, stores }, result) => {
                // However it ended, what was stored is the newest there is (but for what was cut).
                let cut = match result {
                    Ok(Outcome::Released { cut, .. }) => cut,
                    _ => None,
                };
                for (at, value) in stores {
                    if cut.is_none_or(|c| at < c) {
                        self.model.complete(file, at, value);
                    }
                }
                if mode.writes() {
                    self.model.claim(file, &range, false);
                }
            }
            (Want::Write { file, range, claimed, value }, result) => {
                for at in (range.start..range.end).step_by(CELL as usize) {
                    if result.is_ok() {
                        self.model.complete(file, at, value);
                    }
                }
                self.model.claim(file, &claimed, false);
            }
            (Want::Resize { file, bytes, old }, Ok(_)) => {
                for at in (bytes.min(old)..FILE_MAX).step_by(CELL as usize) {
                    self.model.complete(file, at, 0);
                }
            }
            (Want::Read { file, range, floors }, Ok(_)) => {
                let twin = &self.twins.files[&file];
                for (at, floor) in (range.start..range.end).step_by(CELL as usize).zip(floors) {
                    if at < twin.bytes {
                        let seen = twin.cells[(at / CELL) as usize];
                        self.model.judge(file, at, floor, seen, "a plain read");
                    }
                }
            }
            (Want::Touch { file, map, at, store, floor }, Ok(_)) => {
                self.touch(actor, file, map, at, store, floor);
            }
            (Want::Close { file }, Ok(_)) => self.closed(file),
            (Want::Touch { file, map, at, store, .. }, Err(_)) => {
                if store.is_some() {
                    self.model.claim(file, &(at..at + CELL), false);
                }
                self.ask(actor, Request::Expel { file, map, at }, true, Want::Other { file });
            }
            _ => {}
        }
    }
}
