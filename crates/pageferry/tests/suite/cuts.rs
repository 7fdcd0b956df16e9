//! Truncation and punching against everything at once: pins, stores, touches, evictions, write-back.
//!
//! Every word of a page is its number and a version, or zero. A page may be zero after it was cut or
//! punched, until somebody writes it again; what was complete before a cut that is complete must never
//! come back. `PAGEFERRY_STRESS_SECONDS=600` for a long run.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::*;
use pageferry::{After, CacheConfig, Error, File, Map, PinMode, Wait};

const FRAMES: u64 = 3;
const PAGES: u64 = 4 * FRAMES * FRAME / PAGE;
const WORDS: usize = PAGE as usize / 8;

#[derive(Default)]
struct Page {
    /// Held by whoever writes it.
    writer: Mutex<()>,
    begun: AtomicU64,
    complete: AtomicU64,
    /// Versions up to this one are gone: complete before a cut that is complete.
    gone: AtomicU64,
    /// A version up to this one may have become zeros.
    cut: AtomicU64,
    /// A cut of it is under way.
    cutting: AtomicBool,
}

struct World {
    file: File,
    map: Map,
    pages: Vec<Page>,
    /// One cut at a time.
    cutter: Mutex<()>,
    counts: [AtomicU64; 5],
}

fn word(page: u64, version: u64) -> u64 {
    (page + 1) << 40 | version
}

impl World {
    fn count(&self, what: usize) {
        self.counts[what].fetch_add(1, Ordering::Relaxed);
    }

    fn write(&self, dice: &mut Dice) {
        let number = dice.roll(PAGES);
        let page = &self.pages[number as usize];
        let Ok(_alone) = page.writer.try_lock() else { return };
        let version = page.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let at = number * PAGE;
        let bytes: Vec<u8> = word(number, version).to_le_bytes().repeat(WORDS);
        let way = dice.roll(4);
        let written = match way {
            0..=1 => {
                let mode = if dice.roll(2) == 0 { PinMode::Write } else { PinMode::Overwrite };
                let after = if way == 0 { After::WriteBack } else { After::KeepAway };
                self.file.pin_wait(at..at + PAGE, mode, Wait::Block).and_then(|pin| {
                    let stored = pin.view()?.write(at, &bytes);
                    pin.release_with(after)?;
                    stored
                })
            }
            2 => self.map.write(at as usize, &bytes),
            // Beyond the end it extends the file: what lies between are zeros.
            _ => self.file.write_at(&bytes, at),
        };
        match written {
            // Refused to be kept away, it went home.
            Ok(()) | Err(Error::Unguarded { .. }) => self.count(0),
            // Cut off before, or meanwhile: some of it may have arrived.
            Err(Error::PastEof { .. } | Error::FileShrunk { .. }) => {
                self.count(1);
                page.cut.fetch_max(version, Ordering::SeqCst);
                return;
            }
            Err(Error::DeviceFull { .. }) => return,
            Err(error) => panic!("writing page {number}, way {way}: {error}"),
        }
        page.complete.store(version, Ordering::SeqCst);
    }

    fn cut(&self, dice: &mut Dice) {
        let _alone = self.cutter.lock().unwrap();
        let first = dice.roll(PAGES);
        let last = if dice.roll(2) == 0 { PAGES } else { (first + 1 + dice.roll(8)).min(PAGES) };
        let cut = &self.pages[first as usize..last as usize];
        let before: Vec<u64> = cut.iter().map(|p| p.complete.load(Ordering::SeqCst)).collect();
        cut.iter().for_each(|p| p.cutting.store(true, Ordering::SeqCst));
        if last == PAGES {
            self.file.set_len(first * PAGE).unwrap();
        } else {
            self.file.punch_hole(first * PAGE..last * PAGE).unwrap();
        }
        for page in cut {
            page.cut.fetch_max(page.begun.load(Ordering::SeqCst), Ordering::SeqCst);
            page.cutting.store(false, Ordering::SeqCst);
        }
        for (page, complete) in cut.iter().zip(before) {
            page.gone.fetch_max(complete, Ordering::SeqCst);
        }
        // Nobody extends it further than this: growing never cuts.
        if last == PAGES && dice.roll(4) > 0 {
            self.file.set_len(PAGES * PAGE).unwrap();
        }
        self.count(2);
    }

    fn read(&self, dice: &mut Dice) {
        let number = dice.roll(PAGES);
        let page = &self.pages[number as usize];
        let at = number * PAGE;
        let gone = page.gone.load(Ordering::SeqCst);
        let complete = page.complete.load(Ordering::SeqCst);
        let mut bytes = vec![0xEE; PAGE as usize];
        let way = dice.roll(3);
        let read = match way {
            0 => self
                .file
                .pin_wait(at..at + PAGE, PinMode::Read, Wait::Block)
                .and_then(|pin| pin.view()?.read(at, &mut bytes)),
            1 => self.map.read(at as usize, &mut bytes),
            _ => self.file.read_at(&mut bytes, at).map(|got| bytes.truncate(got)),
        };
        match read {
            Ok(()) => self.count(3),
            Err(Error::PastEof { .. } | Error::DeviceFull { .. }) => return,
            Err(error) => panic!("reading page {number}, way {way}: {error}"),
        }
        let begun = page.begun.load(Ordering::SeqCst);
        let cutting = page.cutting.load(Ordering::SeqCst);
        let cut = page.cut.load(Ordering::SeqCst);
        for seen in bytes.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)) {
            if seen == 0 {
                assert!(
                    cutting || cut >= complete,
                    "way {way}: page {number} lost version {complete}"
                );
                continue;
            }
            let version = seen & ((1 << 40) - 1);
            assert_eq!(seen, word(number, version), "way {way}: page {number} shows {seen:#x}");
            assert!(version > gone, "way {way}: page {number}: {version} came back, cut at {gone}");
            assert!(version <= begun, "way {way}: page {number} shows {version} of {begun}");
            assert!(
                version >= complete || cutting || cut >= complete,
                "way {way}: page {number} is stale: {version}, not {complete}"
            );
        }
    }

    fn disturb(&self, dice: &mut Dice) {
        let start = dice.roll(PAGES) * PAGE;
        let range = start..start + (1 + dice.roll(20)) * PAGE;
        match dice.roll(4) {
            0 => drop(self.file.evict(range).unwrap()),
            1 => drop(self.file.prefetch(range).unwrap()),
            2 => drop(self.file.flush(range).unwrap()),
            _ => drop(self.file.placement(range).unwrap()),
        }
        self.count(4);
    }
}

#[test]
fn what_was_cut_off_never_comes_back() {
    let seconds = std::env::var("PAGEFERRY_STRESS_SECONDS").ok().and_then(|s| s.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(3));
    let config = CacheConfig::default().flush_age(Some(Duration::from_millis(50)));
    let rig = rig_with(FRAMES, config);
    std::fs::File::create(rig.path("a")).unwrap().set_len(PAGES * PAGE).unwrap();
    let file = rig.cache.open(rig.path("a")).unwrap();
    let map = file.map(0..PAGES * PAGE, true).unwrap();
    let pages = (0..PAGES).map(|_| Page::default()).collect();
    let world = World { file, map, pages, cutter: Mutex::default(), counts: Default::default() };
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let world = &world;
            scope.spawn(move || {
                let mut dice = Dice(0x0C07_0000 + thread * 104_729);
                while Instant::now() < until {
                    match thread {
                        0..=1 => world.write(&mut dice),
                        2..=3 => world.read(&mut dice),
                        4 => world.cut(&mut dice),
                        _ => world.disturb(&mut dice),
                    }
                }
            });
        }
    });
    let names = ["writes", "writes past the end", "cuts", "reads", "disturbances"];
    let counts = world.counts.iter().map(|c| c.load(Ordering::Relaxed));
    println!("{:?}", names.iter().zip(counts.clone()).collect::<Vec<_>>());
    assert!(counts.into_iter().all(|n| n > 0), "some way was never taken");
    let World { file, map, pages, .. } = world;
    map.unmap().unwrap();
    // A daemon keeps copies.
    file.evict(0..u64::MAX).unwrap();
    file.close().unwrap();
    assert_eq!((rig.stat("used_bytes"), rig.stat("live_pins")), (0, 0));
    let end = rig.on_disk("a");
    for (number, (page, bytes)) in pages.iter().zip(end.chunks(PAGE as usize)).enumerate() {
        let (complete, cut) =
            (page.complete.load(Ordering::SeqCst), page.cut.load(Ordering::SeqCst));
        for seen in bytes.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)) {
            let version = seen & ((1 << 40) - 1);
            let lost = seen == 0 && cut >= complete;
            let kept = seen == word(number as u64, version)
                && version >= complete
                && version > page.gone.load(Ordering::SeqCst);
            assert!(lost || kept, "page {number} has {seen:#x} of {complete}, cut at {cut}");
        }
    }
}
