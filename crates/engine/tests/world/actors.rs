//! The virtual threads, and the scheduler.

use std::ops::Range;

use pageferry_engine::{
    Action, ActionKey, Config, Engine, FileKey, MapKey, Mode, OpKey, Outcome, PAGE_BYTES, PinKey,
    Refusal, Reply, Request, Step, WaitFor,
};

use crate::model::Model;
use crate::twins::{CELL, FILE_MAX, FRAME, TwinFile, TwinMap, Twins, cells};

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
    fn file(&self) -> FileKey {
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
    next_map: u64,
    /// Others change the files, too.
    outsiders: bool,
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
            let key = world.engine.add_file(file.observe());
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

    fn value(&mut self) -> u32 {
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

    fn finish(&mut self, request: Request) {
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
                        self.use_pin(file, &range, mode, &mut stores);
                    }
                    let left = left - 1;
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

    fn ask(&mut self, actor: usize, request: Request, patient: bool, want: Want) {
        let text = format!("{request:?}");
        let op = self.engine.submit(request, Some(actor as u32), patient);
        self.say(|| format!("{actor} asks {op:?} {text}"));
        self.actors[actor] = Task::Asked { op, want };
    }

    fn any_file(&mut self) -> FileKey {
        let at = self.dice.roll(self.twins.files.len() as u64) as usize;
        *self.twins.files.keys().nth(at).expect("there are files")
    }

    /// A range of cells inside the file, mostly small.
    fn any_range(&mut self, file: FileKey) -> Option<Range<u64>> {
        let count = self.twins.files[&file].bytes / CELL;
        if count == 0 {
            return None;
        }
        let start = self.dice.roll(count);
        let len = if self.dice.roll(4) == 0 { self.dice.roll(30) } else { self.dice.roll(9) } + 1;
        Some(start * CELL..(start + len).min(count) * CELL)
    }

    fn begin(&mut self, actor: usize) {
        let file = self.any_file();
        if self.wants().any(|(f, want)| f == file && matches!(want, Want::Close { .. })) {
            return;
        }
        let Some(range) = self.any_range(file) else { return self.begin_resize(actor, file) };
        let patient = self.dice.roll(5) > 0;
        match self.dice.roll(25) {
            0..=3 => {
                let floors = self.model.floors(file, &range);
                let want = Want::Pin { file, range: range.clone(), mode: Mode::Read, floors };
                self.ask(actor, Request::Pin { file, range, mode: Mode::Read }, patient, want);
            }
            4..=8 if self.model.is_free(file, &range) => {
                self.model.claim(file, &range, true);
                let mode = if self.dice.roll(3) == 0 { Mode::Overwrite } else { Mode::Write };
                let floors = self.model.floors(file, &range);
                let want = Want::Pin { file, range: range.clone(), mode, floors };
                self.ask(actor, Request::Pin { file, range, mode }, patient, want);
            }
            9..=10 => self.begin_change(actor, file, range),
            11 => self.begin_resize(actor, file),
            12..=13 => {
                let floors = self.model.floors(file, &range);
                let want = Want::Read { file, range: range.clone(), floors };
                self.ask(actor, Request::Flush { file, range, skip_pinned: false }, true, want);
            }
            14 => self.ask(
                actor,
                Request::Flush { file, range, skip_pinned: true },
                true,
                Want::Other { file },
            ),
            15..=16 => {
                let want = Want::Other { file };
                self.ask(actor, Request::Evict { file, range }, true, want);
            }
            17 => {
                let want = Want::Other { file };
                self.ask(actor, Request::Query { file, range }, true, want);
            }
            18 => self.begin_map(actor, file),
            19 => self.begin_close(actor, file),
            _ => self.begin_touch(actor, file, range.start),
        }
    }

    fn begin_resize(&mut self, actor: usize, file: FileKey) {
        let old = self.twins.files[&file].bytes;
        let bytes = self.dice.roll(5 * FRAME / CELL) * CELL;
        // Two at once on one file would leave the order of their effects open.
        if self.wants().any(|(f, want)| f == file && matches!(want, Want::Resize { .. })) {
            return;
        }
        for at in (bytes.min(old)..FILE_MAX).step_by(CELL as usize) {
            self.model.begin(file, at, 0);
        }
        self.ask(actor, Request::Resize { file, bytes }, true, Want::Resize { file, bytes, old });
    }

    /// A write inside the file or beyond its end, or a change of all that lies behind.
    fn begin_change(&mut self, actor: usize, file: FileKey, range: Range<u64>) {
        let bytes = self.twins.files[&file].bytes;
        let (range, asked, resizes, value) = match self.dice.roll(6) {
            0 => {
                let end = (range.end + self.dice.roll(12) * CELL).min(FILE_MAX);
                let range = range.start..end;
                (range.clone(), range, true, self.value())
            }
            1 => (range.start..bytes.max(range.end), range.start..u64::MAX, true, 0),
            _ => (range.clone(), range, false, self.value()),
        };
        let behind = range.start..if asked.end == u64::MAX { FILE_MAX } else { range.end };
        // What somebody else is given at the same time would leave the order open.
        let cuts = |w: &Want| matches!(w, Want::Resize { .. });
        let cut = self.wants().any(|(f, want)| f == file && cuts(want));
        if !self.model.is_free(file, &behind) || value == 0 && cut {
            return;
        }
        self.model.claim(file, &behind, true);
        let want = Want::Write { file, range, claimed: behind, value };
        self.ask(actor, Request::Change { file, range: asked, resizes }, true, want);
    }

    fn begin_map(&mut self, actor: usize, file: FileKey) {
        let maps: Vec<MapKey> = self.twins.files[&file].maps.keys().copied().collect();
        let ends = |w: &Want| matches!(w, Want::Unmap { .. });
        let ending = self.wants().any(|(f, want)| f == file && ends(want));
        if maps.len() < 2 {
            let map = MapKey(self.next_map);
            self.next_map += 1;
            let start = self.dice.roll(8) * PAGE_BYTES;
            let range = start..start + (self.dice.roll(12) + 1) * PAGE_BYTES;
            let writable = self.is_writable(map);
            let request = Request::MapIn { file, map, range, writable };
            self.ask(actor, request, true, Want::Other { file });
        } else if !ending {
            let want = Want::Unmap { file, map: maps[0] };
            self.ask(actor, Request::MapOut { file, map: maps[0] }, true, want);
        }
    }

    /// Every third mapping is read-only.
    pub fn is_writable(&self, map: MapKey) -> bool {
        !map.0.is_multiple_of(3)
    }

    /// What everybody is at, with the file it is about.
    fn wants(&self) -> impl Iterator<Item = (FileKey, &Want)> {
        self.actors.iter().filter_map(|task| match task {
            Task::Asked { want, .. } => Some((want.file(), want)),
            _ => None,
        })
    }

    /// Closes a file that nobody uses; once closed it is opened anew.
    fn begin_close(&mut self, actor: usize, file: FileKey) {
        let held = |t: &Task| matches!(t, Task::Holding { file: f, .. } if *f == file);
        let used = self.actors.iter().any(held) || self.wants().any(|(f, _)| f == file);
        if !used && self.twins.files[&file].maps.is_empty() {
            self.ask(actor, Request::Close { file }, true, Want::Close { file });
        }
    }

    fn closed(&mut self, file: FileKey) {
        let twin = self.twins.files.remove(&file).expect("a known file");
        assert!(twin.attached.is_empty(), "a closed file has frames");
        let key = self.engine.add_file(twin.observe());
        self.twins.files.insert(key, twin);
        self.model.rename(file, key);
    }

    /// Somebody we know nothing of changes a file, beside whatever we do; not what somebody here is
    /// writing, or has kept away, which would leave the order open.
    fn outsider(&mut self) {
        let file = self.any_file();
        let resizes = |w: &Want| matches!(w, Want::Resize { .. } | Want::Write { .. });
        let ours = self.wants().any(|(f, want)| f == file && resizes(want));
        let bytes = self.dice.roll(5 * FRAME / CELL) * CELL;
        let free = |w: &World, range: &Range<u64>| {
            let pages =
                range.start / PAGE_BYTES * PAGE_BYTES..range.end.next_multiple_of(PAGE_BYTES);
            w.model.is_free(file, range) && !w.engine.is_away(file, &pages)
        };
        match (self.dice.roll(6), self.any_range(file)) {
            (0, _) if !ours && free(self, &(bytes..FILE_MAX)) => {
                self.say(|| format!("an outsider sets the size of {file:?} to {bytes}"));
                let twin = self.twins.files.get_mut(&file).expect("a known file");
                let gone = bytes.min(twin.bytes)..FILE_MAX;
                twin.resize(bytes);
                twin.epoch += 1;
                self.give(file, &gone, 0);
            }
            (1.., Some(range)) if !ours && free(self, &range) => {
                self.say(|| format!("an outsider writes {range:?} of {file:?}"));
                let value = self.value();
                let twin = self.twins.files.get_mut(&file).expect("a known file");
                twin.cells[cells(&range)].fill(value);
                twin.epoch += 1;
                self.give(file, &range, value);
            }
            _ => {}
        }
    }

    /// Cells have a value at once.
    fn give(&mut self, file: FileKey, range: &Range<u64>, value: u32) {
        for at in (range.start..range.end).step_by(CELL as usize) {
            self.model.begin(file, at, value);
            self.model.complete(file, at, value);
        }
    }

    /// A CPU access through a mapping: at once if nothing traps it.
    fn begin_touch(&mut self, actor: usize, file: FileKey, at: u64) {
        let inside = |m: &TwinMap| m.range.contains(&at);
        let found = self.twins.files[&file].maps.iter().find(|(_, m)| inside(m));
        let Some((&map, twin)) = found else { return };
        let cell = at..at + CELL;
        let stores = twin.writable && self.dice.roll(2) == 0 && self.model.is_free(file, &cell);
        let store = stores.then(|| {
            self.model.claim(file, &cell, true);
            self.value()
        });
        let floor = self.model.floors(file, &cell)[0];
        self.touch(actor, file, map, at, store, floor);
    }

    fn touch(
        &mut self,
        actor: usize,
        file: FileKey,
        map: MapKey,
        at: u64,
        store: Option<u32>,
        floor: usize,
    ) {
        let cell = at..at + CELL;
        // Whoever ends a mapping accesses it no more.
        let ends = |w: &Want| matches!(w, Want::Unmap { map: ending, .. } if *ending == map);
        let ending = self.wants().any(|(_, want)| ends(want));
        let twin = self.twins.files.get_mut(&file).expect("a known file");
        let (page, index) = (at / PAGE_BYTES, (at / CELL) as usize);
        let gone = ending || at >= twin.bytes || !twin.maps.contains_key(&map);
        if gone {
            // SIGBUS, or unmapped: no access.
            return if store.is_some() {
                self.model.claim(file, &cell, false)
            };
        }
        let mapping = twin.maps.get_mut(&map).expect("checked");
        if mapping.trapped.contains(&page) {
            let want = Want::Touch { file, map, at, store, floor };
            return self.ask(actor, Request::Touch { file, at }, true, want);
        }
        match store {
            Some(value) => {
                mapping.stored.insert(page);
                twin.cells[index] = value;
                self.model.begin(file, at, value);
                self.model.complete(file, at, value);
                self.model.claim(file, &cell, false);
            }
            None => {
                let seen = twin.cells[index];
                self.model.judge(file, at, floor, seen, "a load through a mapping");
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

    /// A pin may change hands.
    fn give_pin(&mut self, pin: PinKey) {
        if self.dice.roll(6) == 0 {
            let owner = self.dice.roll(self.actors.len() as u64 * 2) as u32;
            self.engine.set_owner(pin, Some(owner).filter(|o| (*o as usize) < self.actors.len()));
        }
    }

    /// Kernels load all that a pin holds.
    fn load_pin(
        &mut self,
        pin: PinKey,
        file: FileKey,
        range: &Range<u64>,
        mode: Mode,
        stores: &[(u64, u32)],
        floors: &[usize],
    ) {
        let known = self.engine.file_bytes(file).unwrap_or(0);
        let end = self.engine.pin_end(pin).min(self.twins.files[&file].bytes).min(range.end);
        for (n, at) in (range.start..end.min(known)).step_by(CELL as usize).enumerate() {
            if !self.twins.is_present(file, at) {
                assert!(self.failures > 0, "a pinned page at {at} of {file:?} is hidden");
                continue;
            }
            let seen = self.twins.device_load(file, at);
            if let Some((_, value)) = stores.iter().find(|(a, _)| *a == at) {
                assert_eq!(seen, *value, "a store under the pin at {at} of {file:?} is gone");
            } else if mode != Mode::Overwrite {
                self.model.judge(file, at, floors[n], seen, "a held pin");
            }
        }
    }

    /// Kernels at work under a pin.
    fn use_pin(
        &mut self,
        file: FileKey,
        range: &Range<u64>,
        mode: Mode,
        stores: &mut Vec<(u64, u32)>,
    ) {
        // What is stored past the end of the file is dropped, and that the file has grown behind its
        // back the engine need not know yet.
        let known = self.engine.file_bytes(file).unwrap_or(0);
        let bytes = self.twins.files[&file].bytes.min(known);
        let inside = range.start..range.end.min(bytes);
        if !mode.writes() || inside.start >= inside.end {
            return;
        }
        let count = (inside.end - inside.start) / CELL;
        let at = inside.start + self.dice.roll(count) * CELL;
        if self.engine.frame(file, at / FRAME).is_none() || stores.iter().any(|(a, _)| *a == at) {
            return;
        }
        // Overwriting zeroes pages: who stores to one stores to all of it that is pinned.
        let page = at / PAGE_BYTES * PAGE_BYTES;
        let cells = if mode == Mode::Overwrite {
            page.max(inside.start)..(page + PAGE_BYTES).min(inside.end)
        } else {
            at..at + CELL
        };
        let value = self.value();
        for at in (cells.start..cells.end).step_by(CELL as usize) {
            self.twins.device_store(file, at, value);
            self.model.begin(file, at, value);
            stores.push((at, value));
        }
    }
}
