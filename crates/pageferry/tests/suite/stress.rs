//! Threads that pin, store, touch, evict and flush at random over one file and a device that holds
//! a tenth of it. Every page carries a stamp in each of its words, so that torn, stale and lost
//! bytes are told apart.
//!
//! Three seconds by default; `PAGEFERRY_STRESS_SECONDS=600` for a long run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::{Dice, FRAME, PAGE, Rig, rig_with};
use pageferry::{After, CacheConfig, Error, File, Map, PinMode, Wait};
use std::sync::Mutex;

const FRAMES: u64 = 4;
const PAGES: u64 = 10 * FRAMES * FRAME / PAGE;
const WORDS: usize = PAGE as usize / 8;

/// One page's history. Who writes it holds the lock.
#[derive(Default)]
struct Page {
    writer: Mutex<()>,
    /// The version whose writing has begun last.
    begun: AtomicU64,
    /// The version whose writing was complete last.
    complete: AtomicU64,
    /// How that was written.
    way: AtomicU64,
}

fn word(page: u64, version: u64) -> u64 {
    page << 40 | version
}

struct World {
    file: File,
    map: Map,
    pages: Vec<Page>,
    counts: [AtomicU64; 8],
}

impl World {
    fn count(&self, what: usize) {
        self.counts[what].fetch_add(1, Ordering::Relaxed);
    }

    /// Writes a new version of a page in one of four ways.
    fn write(&self, dice: &mut Dice) {
        let number = dice.roll(PAGES);
        let page = &self.pages[number as usize];
        let Ok(_alone) = page.writer.try_lock() else { return };
        let version = page.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let at = number * PAGE;
        let bytes: Vec<u8> = word(number, version).to_le_bytes().repeat(WORDS);
        let way = dice.roll(4);
        match way {
            0..=1 => {
                let mode = if dice.roll(2) == 0 { PinMode::Write } else { PinMode::Overwrite };
                let pin = loop {
                    match self.file.pin_wait(at..at + PAGE, mode, Wait::Block) {
                        Ok(pin) => break pin,
                        // Everything is pinned by others at this moment.
                        Err(Error::DeviceFull { .. }) => std::thread::yield_now(),
                        Err(error) => panic!("pinning page {number}: {error}"),
                    }
                };
                pin.view().unwrap().write(at, &bytes).unwrap();
                let after = if way == 0 { After::WriteBack } else { After::KeepAway };
                pin.release_with(after).unwrap();
                self.count(0);
            }
            2 => {
                for (n, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
                    self.map.store_u64(at as usize + 8 * n, u64::from_le_bytes(*word)).unwrap();
                }
                self.count(1);
            }
            _ => {
                self.file.write_at(&bytes, at).unwrap();
                self.count(2);
            }
        }
        page.way.store(way, Ordering::SeqCst);
        page.complete.store(version, Ordering::SeqCst);
    }

    /// Reads a page in one of four ways and judges what it shows.
    fn read(&self, dice: &mut Dice) {
        let number = dice.roll(PAGES);
        let page = &self.pages[number as usize];
        let at = number * PAGE;
        let before = page.complete.load(Ordering::SeqCst);
        let mut bytes = vec![0xEE; PAGE as usize];
        let way = dice.roll(4);
        match way {
            0 => match self.file.pin_wait(at..at + PAGE, PinMode::Read, Wait::Block) {
                Ok(pin) => pin.view().unwrap().read(at, &mut bytes).unwrap(),
                Err(Error::DeviceFull { .. }) => return,
                Err(error) => panic!("pinning page {number}: {error}"),
            },
            1 => self.map.read(at as usize, &mut bytes).unwrap(),
            2 => {
                for (n, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                    *word = self.map.load_u64(at as usize + 8 * n).unwrap().to_le_bytes();
                }
            }
            _ => assert_eq!(self.file.read_at(&mut bytes, at).unwrap(), bytes.len()),
        }
        let after = page.begun.load(Ordering::SeqCst);
        let first = u64::from_le_bytes(*bytes.first_chunk().unwrap());
        for word in bytes.as_chunks::<8>().0 {
            let seen = u64::from_le_bytes(*word);
            let (owner, version) = (seen >> 40, seen & ((1 << 40) - 1));
            assert_eq!(owner, number, "way {way}: page {number} shows a word of page {owner}");
            assert!(
                version >= before,
                "way {way}: page {number} is stale: {version}, not {before}, which was written by way {}",
                page.way.load(Ordering::SeqCst)
            );
            assert!(version <= after, "way {way}: page {number} shows {version} of {after}");
            if before == after {
                assert_eq!(seen, first, "way {way}: page {number} is torn with nobody writing");
            }
        }
        self.count(3 + way as usize);
    }

    /// What moves pages without changing them.
    fn disturb(&self, dice: &mut Dice) {
        let start = dice.roll(PAGES) * PAGE;
        let range = start..(start + dice.roll(40) * PAGE).min(PAGES * PAGE);
        match dice.roll(16) {
            0..=3 => drop(self.file.evict(range).unwrap()),
            4..=6 => drop(self.file.prefetch(range).unwrap()),
            7..=9 => drop(self.file.flush(range).unwrap()),
            10 => drop(self.file.placement(range).unwrap()),
            11 if dice.roll(20) == 0 => self.file.sync().unwrap(),
            // A second mapping comes and goes.
            _ if range.start < range.end => {
                let map = self.file.map(range, dice.roll(2) == 0).unwrap();
                map.read(0, &mut [0]).unwrap();
            }
            _ => {}
        }
        self.count(7);
    }
}

#[test]
fn every_byte_is_accounted_for() {
    let seconds = std::env::var("PAGEFERRY_STRESS_SECONDS").ok().and_then(|s| s.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(3));
    let config = CacheConfig::default().flush_age(Some(Duration::from_millis(50)));
    let rig: Rig = rig_with(FRAMES, config.touch_bytes(4096 << 2));
    let first: Vec<u8> = (0..PAGES).flat_map(|p| word(p, 0).to_le_bytes().repeat(WORDS)).collect();
    std::fs::write(rig.path("a"), &first).unwrap();
    let file = rig.cache.open(rig.path("a")).unwrap();
    let map = file.map(0..PAGES * PAGE, true).unwrap();
    let pages = (0..PAGES).map(|_| Page::default()).collect();
    let world = World { file, map, pages, counts: Default::default() };
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let world = &world;
            scope.spawn(move || {
                let mut dice = Dice(0x9E37_79B9 + thread * 7919);
                while Instant::now() < until {
                    match thread {
                        0..=1 => world.write(&mut dice),
                        2..=4 => world.read(&mut dice),
                        _ => world.disturb(&mut dice),
                    }
                }
            });
        }
    });
    let names = [
        "device writes",
        "mapped stores",
        "write_at",
        "device reads",
        "map reads",
        "raw loads",
        "read_at",
        "disturbances",
    ];
    let counts = world.counts.iter().map(|c| c.load(Ordering::Relaxed));
    println!("{:?}", names.iter().zip(counts.clone()).collect::<Vec<_>>());
    assert!(counts.into_iter().all(|n| n > 0), "some way was never taken");
    let World { file, map, pages, .. } = world;
    map.unmap().unwrap();
    // A daemon keeps copies.
    file.evict(0..u64::MAX).unwrap();
    file.close().unwrap();
    assert_eq!(rig.stat("used_bytes"), 0);
    let end = rig.on_disk("a");
    for (number, page) in pages.iter().enumerate() {
        let expected = word(number as u64, page.complete.load(Ordering::SeqCst)).to_le_bytes();
        let bytes = &end[number * PAGE as usize..][..PAGE as usize];
        assert!(bytes.as_chunks::<8>().0.iter().all(|w| *w == expected), "page {number} was lost");
    }
}
