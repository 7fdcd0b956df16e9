//! The process with the cache: it pins, and compares with what was published.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pageferry::soft::{SoftConfig, SoftDevice};
use pageferry::{Cache, CacheConfig, Error, File, Guard, Pin, PinMode};

use crate::board::Board;
use crate::common::{Dice, FRAME, cache_on, connected};
use crate::layout::{DIRECT, FAR, FILE_BYTES, HOLES, NEAR, OWN, PAGE, SLOTS, Slot, TAIL, WRITERS};
use crate::own::Own;

/// How the cache is used.
pub struct Case {
    /// Opened for writing: the proof is then that nobody has it open; else that nobody can write.
    pub writable: bool,
    pub guard: Guard,
}

/// How long a case lasts.
enum Length {
    Pins(u64),
    Time(Duration),
}

impl Length {
    fn asked() -> Length {
        let number = |name| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap());
        match (number("PAGEFERRY_HUNT_PINS"), number("PAGEFERRY_HUNT_SECONDS")) {
            (Some(pins), _) => Length::Pins(pins),
            (None, seconds) => Length::Time(Duration::from_secs(seconds.unwrap_or(3))),
        }
    }

    fn over(&self, pins: u64, since: Instant) -> bool {
        match self {
            Length::Pins(most) => pins >= *most,
            Length::Time(most) => since.elapsed() >= *most,
        }
    }
}

/// The others, ended with the hunt.
struct Others(Vec<Child>);

impl Others {
    fn start(board: &Path, path: &Path, seed: u64) -> Others {
        let roles = (0..WRITERS).map(|n| ("writer", n)).chain([("onlooker", 0)]);
        let start = |(kind, number): (&str, usize)| {
            let seed = seed.wrapping_mul(31) + number as u64 + kind.len() as u64;
            let (board, path) = (board.display(), path.display());
            let role = format!("{kind} {number} {seed} {board} {path}");
            crate::again("role").env(crate::ROLE, role).spawn().unwrap()
        };
        Others(roles.map(start).collect())
    }

    /// They end only when they are told to: before that they have found something.
    fn ensure_running(&mut self) {
        for child in &mut self.0 {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("another process has found something wrong: {status}");
            }
        }
    }

    fn join(&mut self) {
        for child in &mut self.0 {
            assert!(child.wait().unwrap().success(), "another process has found something wrong");
        }
        self.0.clear();
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Hunter<'b> {
    board: &'b Board,
    cache: Cache,
    file: File,
    dice: Dice,
    own: Own,
    /// A read pin that outlives a few others.
    held: Option<Pin>,
    pins: u64,
    reuses: u64,
    cut: u64,
}

impl Case {
    pub fn run(&self, dir: &Path) {
        let scratch = tempfile::tempdir_in(dir).unwrap();
        let path = scratch.path().join("hunted");
        std::fs::write(&path, vec![0; FILE_BYTES as usize]).unwrap();
        // Not beside the file: it could share something with it.
        let shm = PathBuf::from("/dev/shm");
        let place = if shm.is_dir() { shm } else { std::env::temp_dir() };
        let board_file = tempfile::NamedTempFile::new_in(place).unwrap();
        let board = Board::create(board_file.path()).unwrap();
        let seed = u64::from(std::process::id()) * 1_000_003 + FILE_BYTES + self.writable as u64;
        let soft = SoftConfig {
            frame_bytes: FRAME,
            capacity_bytes: 8 * FRAME,
            workers: 2,
            exportable: connected(),
            ..SoftConfig::default()
        };
        let device = Arc::new(SoftDevice::new(soft).unwrap());
        let config =
            CacheConfig::default().flush_age(Some(Duration::from_millis(50))).guard(self.guard);
        let sockets = tempfile::tempdir().unwrap();
        let (cache, server) = cache_on(device, config, &sockets.path().join("socket"));
        let opened = if self.writable { cache.open(&path) } else { cache.open_read_only(&path) };
        let mut hunter = Hunter {
            board: &board,
            cache,
            file: opened.unwrap(),
            dice: Dice(seed),
            own: Own::new(),
            held: None,
            pins: 0,
            reuses: 0,
            cut: 0,
        };
        let mut others = Others::start(board_file.path(), &path, seed);
        let (length, since) = (Length::asked(), Instant::now());
        while !length.over(hunter.pins, since) {
            hunter.step(self);
            if hunter.pins.is_multiple_of(1024) {
                others.ensure_running();
            }
        }
        board.stop();
        others.join();
        hunter.report(self, dir, since.elapsed());
        drop(hunter);
        // After those who are connected to it.
        drop(server);
    }
}

impl Hunter<'_> {
    fn step(&mut self, case: &Case) {
        match self.dice.roll(400) {
            0 => self.bystand(|file, range| file.evict(range).map(drop)),
            1 => self.bystand(|file, range| file.prefetch(range).map(drop)),
            2 => self.held = None,
            3..15 if case.writable => self.own.change(&self.file, self.board, &mut self.dice),
            15 if case.writable => {
                self.file.flush(0..FILE_BYTES).unwrap();
            }
            _ => self.look(),
        }
    }

    fn bystand(&mut self, work: impl FnOnce(&File, std::ops::Range<u64>) -> pageferry::Result<()>) {
        let start = [NEAR, FAR, HOLES, DIRECT][self.dice.roll(4) as usize] * PAGE;
        work(&self.file, start..start + 16 * PAGE).unwrap();
    }

    /// A read pin of some of the pages; what it shows is compared with what was published before.
    fn look(&mut self) {
        let range = match self.dice.roll(16) {
            0..4 => NEAR * PAGE..NEAR * PAGE + 1024,
            4..8 => FAR * PAGE..FAR * PAGE + PAGE,
            8..10 => HOLES * PAGE..(HOLES + WRITERS as u64) * PAGE,
            10..12 => DIRECT * PAGE..(DIRECT + WRITERS as u64) * PAGE,
            12 => TAIL * PAGE..(TAIL + 1) * PAGE,
            13 => NEAR * PAGE..(HOLES + WRITERS as u64) * PAGE,
            _ => {
                let slot = Slot::of(self.dice.roll(SLOTS as u64) as usize);
                slot.at()..slot.at() + 8
            }
        };
        let slots = (0..SLOTS).map(Slot::of);
        let inside = slots.filter(|s| range.start <= s.at() && s.at() < range.end);
        let before: Vec<_> = inside.map(|s| (s, self.board.published(s))).collect();
        let fetched = self.fetched();
        let pin = match self.file.pin(range.clone(), PinMode::Read) {
            Ok(pin) => pin,
            // Only its last page comes and goes.
            Err(Error::PastEof { .. }) if range.start >= TAIL * PAGE => {
                self.cut += 1;
                return before.iter().for_each(|(slot, change)| self.check(*slot, *change, 0));
            }
            Err(error) => panic!("{error}"),
        };
        self.pins += 1;
        self.reuses += u64::from(self.fetched() == fetched);
        let view = pin.view().unwrap();
        let word = |at: u64| {
            let mut word = [0; 8];
            match view.read(at, &mut word) {
                Ok(()) => u64::from_le_bytes(word),
                Err(Error::PastEof { .. }) if at >= TAIL * PAGE => 0,
                Err(error) => panic!("{error}"),
            }
        };
        for (slot, change) in before {
            self.check(slot, change, word(slot.at()));
        }
        for (own, at) in OWN.into_iter().enumerate() {
            if range.start <= at && at < range.end {
                self.own.check(own, word(at));
            }
        }
        drop(view);
        // A pin over the hunter's own words would have its changes wait for itself.
        if range.end == 1024 && self.dice.roll(50) == 0 {
            self.held = Some(pin);
        } else {
            pin.release().unwrap();
        }
    }

    fn check(&self, slot: Slot, before: crate::board::Change, seen: u64) {
        assert!(
            self.board.allows(slot, before, seen),
            "stale after {} pins: {slot:?} shows {seen}, though change {} by {} was complete ({:?})",
            self.pins,
            before.number(),
            before.way(),
            self.file.coherence(),
        );
    }

    fn fetched(&self) -> Option<u64> {
        self.cache.stats().get("fetched_bytes")
    }

    fn report(&self, case: &Case, dir: &Path, took: Duration) {
        let count = |name| self.cache.stats().get(name).unwrap_or(0);
        let own = &self.own;
        let mut lines = format!(
            "hunt in {} as {}, {}, guard {:?}: {} pins in {:.1} s, none stale, {} reused ({} %), \
             {} times the file was new, {} pins past the end; the longest open took {:.1?}\n",
            dir.display(),
            rustix::process::geteuid().as_raw(),
            if case.writable { "read-write" } else { "read-only" },
            case.guard,
            self.pins,
            took.as_secs_f64(),
            self.reuses,
            100 * self.reuses / self.pins.max(1),
            count("distrusts"),
            self.cut,
            self.board.longest_open(),
        );
        lines += "  they: ";
        let ways = self.board.tally().into_iter().map(|(way, n)| format!("{way} {n}"));
        lines += &ways.collect::<Vec<_>>().join(", ");
        if case.writable {
            lines += &format!(
                "\n  we: {} releases written back, {} kept away, {} refused, {} mapped stores, \
                 {} writes; {} openers unguarded",
                own.releases,
                own.kept,
                own.refused,
                own.stores,
                own.writes,
                count("unguarded_openers"),
            );
        }
        crate::tell(&lines);
    }
}
