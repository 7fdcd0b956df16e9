//! Everything at once, for a second or two: nothing stale, nothing torn, nothing missed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use pageferry_linux::{FileMap, HostFile, StoreTracker, StoredPages, UffdMode, page_bytes};

use crate::reader::Reader;
use crate::{file_of, page_out};

const BLOCKS: usize = 64;
const PAGES_PER_BLOCK: usize = 4;
const WORDS_PER_PAGE: usize = 512;

/// A small generator; good enough to jump about.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// A word tells where it belongs, in its upper half, and how often it was written, in its lower.
fn word(index: usize, version: u32) -> u64 {
    ((index as u64) << 32) | u64::from(version)
}

/// Blocks that go away to a "device" and come home when touched. While a block is away, the file
/// holds rubbish, so that whoever gets past the trap is found out.
struct Cache {
    map: FileMap,
    file: Arc<HostFile>,
    reader: Reader,
    /// What the device holds, for blocks that are away.
    device: Vec<Mutex<Option<Vec<u8>>>>,
    block: usize,
}

impl Cache {
    fn take(&self, n: usize) {
        let mut device = self.device[n].lock().expect("lock");
        if device.is_some() {
            return;
        }
        let range = n * self.block..(n + 1) * self.block;
        self.map.trap(&self.reader.uffd, range.clone()).expect("trap");
        let mut bytes = vec![0; self.block];
        self.file.read_at(&mut bytes, range.start as u64).expect("read");
        self.file.write_at(&vec![0xee; self.block], range.start as u64).expect("write");
        *device = Some(bytes);
    }

    fn bring(&self, n: usize) {
        let mut device = self.device[n].lock().expect("lock");
        let range = n * self.block..(n + 1) * self.block;
        if let Some(bytes) = device.take() {
            self.file.write_at(&bytes, range.start as u64).expect("write");
        }
        // Under the lock or not: a wake for nothing does no harm.
        self.map.untrap(&self.reader.uffd, range).expect("untrap");
    }
}

fn run_for(time: Duration, mut step: impl FnMut()) {
    let start = Instant::now();
    while start.elapsed() < time {
        step();
    }
}

#[test]
fn nobody_sees_a_stale_or_torn_word_while_blocks_come_and_go() {
    let Some(reader) = Reader::any() else { return };
    let page = page_bytes();
    let block = PAGES_PER_BLOCK * page;
    let words = BLOCKS * block / 8;
    let bytes: Vec<u8> = (0..words).flat_map(|n| word(n, 0).to_ne_bytes()).collect();
    let file = file_of(&bytes);
    let map = FileMap::new(&file, 0, BLOCKS * block, true).expect("map");
    let device = (0..BLOCKS).map(|_| Mutex::new(None)).collect();
    let cache = Cache { map, file, reader, device, block };
    let done = AtomicBool::new(false);
    let (reads, writes, faults) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let mut moves = 0_u64;

    thread::scope(|scope| {
        let cache = &cache;
        let (done, reads, writes) = (&done, &reads, &writes);
        let faults = &faults;
        let home = scope.spawn(move || {
            while !done.load(Ordering::Acquire) {
                if let Some(fault) = cache.reader.fault_within(Duration::from_millis(5)) {
                    let at = cache.map.offset_of(fault.addr).expect("in the map");
                    cache.bring(at / cache.block);
                    faults.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let stop = AtomicBool::new(false);
        let workers: Vec<_> = thread::scope(|inner| {
            let stop = &stop;
            let mut handles = Vec::new();
            for seed in 0..2 {
                handles.push(inner.spawn(move || {
                    let mut dice = Dice(seed + 7);
                    while !stop.load(Ordering::Relaxed) {
                        let at = dice.below(words);
                        let value = cache.map.load::<u64>(at * 8).expect("load");
                        assert_eq!(value >> 32, at as u64, "word {at} reads {value:#x}");
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                }));
            }
            // The last one copies, which is more than a store.
            for writer in 0..3_usize {
                let copies = writer == 2 && cache.reader.uffd.mode() == UffdMode::KernelAndUser;
                handles.push(inner.spawn(move || {
                    // Each writer has one word of each page for itself, and remembers it.
                    let mut versions = vec![0_u32; BLOCKS * PAGES_PER_BLOCK];
                    let mut dice = Dice(writer as u64 + 99);
                    while !stop.load(Ordering::Relaxed) {
                        let page = dice.below(versions.len());
                        let at = page * WORDS_PER_PAGE + 100 + writer;
                        let expected = word(at, versions[page]);
                        let value = if copies {
                            let mut bytes = [0; 8];
                            cache.map.copy_out(at * 8, &mut bytes).expect("copy");
                            u64::from_ne_bytes(bytes)
                        } else {
                            cache.map.load::<u64>(at * 8).expect("load")
                        };
                        assert_eq!(value, expected, "a store to word {at} was lost");
                        versions[page] += 1;
                        let new = word(at, versions[page]);
                        if copies {
                            cache.map.copy_in(at * 8, &new.to_ne_bytes()).expect("copy");
                        } else {
                            cache.map.store(at * 8, new).expect("store");
                        }
                        writes.fetch_add(1, Ordering::Relaxed);
                    }
                }));
            }
            let mut dice = Dice(1);
            run_for(Duration::from_millis(2500), || {
                cache.take(dice.below(BLOCKS));
                moves += 1;
            });
            stop.store(true, Ordering::Relaxed);
            handles.into_iter().map(thread::ScopedJoinHandle::join).collect()
        });
        done.store(true, Ordering::Release);
        home.join().expect("the thread that brings home");
        for worker in workers {
            worker.expect("a worker found a wrong word");
        }
    });
    let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let (reads, writes, faults) = (count(&reads), count(&writes), count(&faults));
    println!("{moves} moves, {reads} reads, {writes} writes, {faults} faults");
    assert!(moves > 100 && reads > 1000 && writes > 1000 && faults > 50);
}

#[test]
fn no_store_is_missed_by_concurrent_scans() {
    let tracker = match StoreTracker::open() {
        Ok(tracker) => Arc::new(tracker),
        Err(e) => return println!("skipped: {e}"),
    };
    let Some(reader) = Reader::any() else { return };
    let page = page_bytes();
    const PAGES: usize = 128;
    let len = PAGES * page;
    let file = file_of(&vec![0; len]);
    let map = FileMap::tracked(&file, 0, len, true, &tracker).expect("map");
    // A copy that is renewed page by page, where a scan says so and nowhere else.
    let mut copy = vec![0; len];
    map.scan_stores(0..len).expect("arm");
    let renew = |copy: &mut [u8]| -> usize {
        let StoredPages::Known(found) = map.scan_stores(0..len).expect("scan") else {
            panic!("tracked, and still unknown");
        };
        for range in &found {
            file.read_at(&mut copy[range.clone()], range.start as u64).expect("read");
        }
        found.len()
    };
    let stop = AtomicBool::new(false);
    let mut scans = 0;
    thread::scope(|scope| {
        for seed in 0..2_u64 {
            let (map, stop) = (&map, &stop);
            scope.spawn(move || {
                let mut dice = Dice(seed + 1);
                let mut count = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    count += 1;
                    let at = dice.below(PAGES) * page + dice.below(WORDS_PER_PAGE) * 8;
                    map.store(at, (seed << 56) | count).expect("store");
                }
            });
        }
        let mut dice = Dice(5);
        run_for(Duration::from_millis(1500), || {
            renew(&mut copy);
            scans += 1;
            // Short absences, and reclaim, in between.
            let start = dice.below(PAGES - 8) * page;
            map.trap(&reader.uffd, start..start + 8 * page).expect("trap");
            map.untrap(&reader.uffd, start..start + 8 * page).expect("untrap");
            if scans % 16 == 0 {
                page_out(&map);
            }
        });
        stop.store(true, Ordering::Relaxed);
    });
    renew(&mut copy);
    assert_eq!(renew(&mut copy), 0);
    let mut bytes = vec![0; len];
    file.read_at(&mut bytes, 0).expect("read");
    let wrong = (0..PAGES).find(|n| bytes[n * page..][..page] != copy[n * page..][..page]);
    assert_eq!(wrong, None, "a store to this page was missed in {scans} scans");
    println!("{scans} scans");
}
