//! A thread that opens, pins, evicts and prefetches whatever files it finds in a directory.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use pageferry::soft::{SoftConfig, SoftDevice};
use pageferry::{Cache, CacheConfig, Error, File, PinMode, Server};

use crate::common::{Dice, FRAME, cache_on, connected, same};

/// Files that it keeps open.
const KEPT: usize = 6;
const PIN_MAX: u64 = 4 * FRAME;

#[derive(Default)]
pub struct Tally {
    opens: u64,
    read_pins: u64,
    write_pins: u64,
    evictions: u64,
    prefetches: u64,
    gone: u64,
    compared: u64,
    fetched: u64,
    news: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} opens, {} read pins, {} write pins of nothing, {} evictions, {} prefetches ({} of them \
             found no such bytes any more); {} KiB fetched, {} times a file was new, {} files compared \
             at the end",
            self.opens,
            self.read_pins,
            self.write_pins,
            self.evictions,
            self.prefetches,
            self.gone,
            self.fetched >> 10,
            self.news,
            self.compared,
        )
    }
}

pub struct Pest {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Tally>>,
}

impl Pest {
    pub fn start(dir: &Path, seed: u64) -> Pest {
        let stop = Arc::new(AtomicBool::new(false));
        let (dir, stopped) = (dir.to_owned(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || Hands::new(dir, seed).work(&stopped));
        Pest { stop, thread: Some(thread) }
    }

    /// Ends it. Before that it compares what the device sees of each file with what everybody sees.
    pub fn finish(mut self) -> Tally {
        self.stop.store(true, Relaxed);
        match self.thread.take().unwrap().join() {
            Ok(tally) => tally,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Pest {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // The test has failed already.
            let _ = thread.join();
        }
    }
}

struct Hands {
    dir: PathBuf,
    open: BTreeMap<PathBuf, File>,
    cache: Cache,
    /// Where the cache is, if that is a daemon.
    _home: (Option<Server>, tempfile::TempDir),
    dice: Dice,
    tally: Tally,
}

/// All regular files of a directory and those below it, as far as they are there.
fn files(dir: &Path, into: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path(), into),
            Ok(kind) if kind.is_file() => into.push(entry.path()),
            _ => {}
        }
    }
}

impl Hands {
    fn new(dir: PathBuf, seed: u64) -> Hands {
        let soft = SoftConfig {
            frame_bytes: FRAME,
            capacity_bytes: 32 * FRAME,
            workers: 2,
            exportable: connected(),
            ..SoftConfig::default()
        };
        let device = Arc::new(SoftDevice::new(soft).unwrap());
        let sockets = tempfile::tempdir().unwrap();
        let socket = sockets.path().join("socket");
        let (cache, server) = cache_on(device, CacheConfig::default(), &socket);
        Hands {
            dir,
            open: BTreeMap::new(),
            cache,
            _home: (server, sockets),
            dice: Dice(seed),
            tally: Tally::default(),
        }
    }

    fn work(mut self, stop: &AtomicBool) -> Tally {
        while !stop.load(Relaxed) {
            let mut found = Vec::new();
            files(&self.dir, &mut found);
            for _ in 0..20 {
                if found.is_empty() || stop.load(Relaxed) {
                    break;
                }
                let path = &found[self.dice.roll(found.len() as u64) as usize];
                if let Some(file) = self.file(path) {
                    self.touch(&file);
                }
                let pause = self.dice.roll(300);
                std::thread::sleep(Duration::from_micros(pause));
            }
        }
        self.compare();
        self.tally.fetched = self.cache.stats().get("fetched_bytes").unwrap_or(0);
        self.tally.news = self.cache.stats().get("distrusts").unwrap_or(0);
        self.tally
    }

    /// Opened anew or kept from before, though its name may be another file's by now.
    fn file(&mut self, path: &Path) -> Option<File> {
        if let Some(file) = self.open.get(path)
            && self.dice.roll(8) != 0
        {
            return Some(file.clone());
        }
        if self.open.len() >= KEPT {
            let nth = self.dice.roll(KEPT as u64) as usize;
            let victim = self.open.keys().nth(nth).cloned();
            victim.map(|path| self.open.remove(&path));
        }
        let opened = match self.dice.roll(3) {
            0 => self.cache.open_read_only(path),
            _ => self.cache.open(path).or_else(|_| self.cache.open_read_only(path)),
        };
        match opened {
            Ok(file) => {
                self.tally.opens += 1;
                self.open.insert(path.to_owned(), file.clone());
                Some(file)
            }
            // Gone, or somebody else's.
            Err(Error::Os { errno: libc::ENOENT | libc::EACCES | libc::ENOTDIR, .. }) => {
                self.tally.gone += 1;
                None
            }
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }

    fn touch(&mut self, file: &File) {
        let bytes = file.len().unwrap();
        if bytes == 0 {
            return;
        }
        let start = self.dice.roll(bytes);
        let end = bytes.min(start + 1 + self.dice.roll(PIN_MAX));
        let done = match self.dice.roll(8) {
            0 => {
                self.tally.evictions += 1;
                file.evict(start..end).map(drop)
            }
            1 => {
                self.tally.prefetches += 1;
                file.prefetch(start..end).map(drop)
            }
            2 if file.is_writable() => {
                self.tally.write_pins += 1;
                self.pin(file, start..end, PinMode::Write)
            }
            _ => {
                self.tally.read_pins += 1;
                self.pin(file, start..end, PinMode::Read)
            }
        };
        match done {
            Ok(()) => {}
            Err(Error::PastEof { .. }) => self.tally.gone += 1,
            Err(error) => panic!("{error}"),
        }
    }

    fn pin(
        &mut self,
        file: &File,
        range: std::ops::Range<u64>,
        mode: PinMode,
    ) -> Result<(), Error> {
        let pin = file.pin(range.clone(), mode)?;
        let mut sum = 0u64;
        let visited = pin.view()?.visit(range, &mut |piece| {
            sum = piece.iter().fold(sum, |sum, byte| sum.wrapping_add(u64::from(*byte)));
        });
        if self.dice.roll(4) == 0 {
            std::thread::sleep(Duration::from_micros(self.dice.roll(2000)));
        }
        assert_eq!(pin.release()?, 0, "nothing was stored, yet something was written");
        visited
    }

    fn compare(&mut self) {
        let mut found = Vec::new();
        files(&self.dir, &mut found);
        for path in found {
            let expected = std::fs::read(&path).unwrap();
            let kept = self.open.get(&path).cloned();
            // Another file may have this name by now; then the copies are of one that is gone.
            drop(kept);
            let file = self.cache.open_read_only(&path).unwrap();
            let mut got = Vec::new();
            for start in (0..expected.len() as u64).step_by(PIN_MAX as usize) {
                let range = start..(expected.len() as u64).min(start + PIN_MAX);
                let pin = file.pin(range.clone(), PinMode::Read).unwrap();
                pin.view()
                    .unwrap()
                    .visit(range, &mut |piece| got.extend_from_slice(piece))
                    .unwrap();
                pin.release().unwrap();
            }
            same(&got, &expected, &path.display().to_string());
            self.tally.compared += 1;
        }
    }
}
