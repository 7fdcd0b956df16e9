//! A CPU touch of away memory, beside a bare userfaultfd program that copies as much.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::Builder;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use pageferry::{After, PinMode};
use pageferry_linux::{Event, FileMap, HostFile, Uffd, Wakeup};

use super::{Figure, Ground};
use crate::setup;

/// What one touch brings home: the cache's default.
const BLOCK: u64 = 64 << 10;
const BLOCKS: u64 = 128;

pub(super) fn trap(ground: &Ground) -> anyhow::Result<Vec<Figure>> {
    ensure!(ground.bytes >= BLOCK * BLOCKS, "--size must be at least 8m for this one");
    let (scratch, _) = ground.file()?;
    let (floor_scratch, _) = ground.file()?;
    let (cache, _) = setup::cache(ground.bytes, 2 << 20, None)?;
    let file = cache.open(scratch.path())?;
    let map = file.map(0..BLOCK * BLOCKS, true)?;
    let mut turn = 0u8;
    let ours = || -> anyhow::Result<Duration> {
        turn = turn.wrapping_add(1);
        let pin = file.pin(0..BLOCK * BLOCKS, PinMode::Write)?;
        pin.view()?.update(0..BLOCK * BLOCKS, &mut |piece| piece.fill(turn))?;
        pin.release_with(After::KeepAway)?;
        let started = Instant::now();
        for block in 0..BLOCKS {
            ensure!(map.load_u8((block * BLOCK) as usize)? == turn, "not the device's byte");
        }
        Ok(started.elapsed() / BLOCKS as u32)
    };
    let bare = Bare::new(floor_scratch.path())?;
    let floor = || bare.touch_all();
    let (ours, floor) = ground.against(ours, floor)?;
    Ok(vec![Figure {
        name: "trap".into(),
        what: "touch of 64 KiB away, beside a bare userfaultfd program",
        ours: ours * 1e6,
        floor: floor * 1e6,
        unit: "µs",
        goal: Some(1.3),
    }])
}

/// The least that can be done: one thread reads events, one copies, maps and wakes.
struct Bare {
    map: Arc<FileMap>,
    uffd: Arc<Uffd>,
}

impl Bare {
    fn new(path: &std::path::Path) -> anyhow::Result<Bare> {
        let file = Arc::new(HostFile::open(path, true)?);
        let map = Arc::new(FileMap::new(&file, 0, (BLOCK * BLOCKS) as usize, true)?);
        let uffd = Arc::new(Uffd::open()?);
        let (send, faults) = channel::<usize>();
        let (reader, addresses) = (Arc::clone(&uffd), Arc::clone(&map));
        let reading = Builder::new().spawn(move || {
            let mut events = Vec::new();
            while matches!(reader.wait(&mut events, None), Ok(Wakeup::Events)) {
                for event in events.drain(..) {
                    if let Event::Fault(fault) = event
                        && let Some(at) = addresses.offset_of(fault.addr)
                        && send.send(at).is_err()
                    {
                        return;
                    }
                }
            }
        });
        let (worker, home) = (Arc::clone(&uffd), Arc::clone(&map));
        let serving = Builder::new().spawn(move || {
            let bytes = vec![5u8; BLOCK as usize];
            for at in faults {
                let start = at as u64 / BLOCK * BLOCK;
                let range = start as usize..(start + BLOCK) as usize;
                // A failure would leave the toucher waiting; the bench then never ends.
                if file.write_at(&bytes, start).is_err() || home.untrap(&worker, range).is_err() {
                    return;
                }
            }
        });
        let bare = Bare { map, uffd };
        // If only one of them runs, dropping `bare` ends it.
        reading.and(serving).context("starting the threads of the floor")?;
        Ok(bare)
    }

    fn touch_all(&self) -> anyhow::Result<Duration> {
        let whole = 0..(BLOCK * BLOCKS) as usize;
        self.map.trap(&self.uffd, whole).context("trapping")?;
        let started = Instant::now();
        for block in 0..BLOCKS {
            ensure!(self.map.load::<u8>((block * BLOCK) as usize)? == 5, "not the copied byte");
        }
        Ok(started.elapsed() / BLOCKS as u32)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // Everything is home: nobody waits any more.
        let _ = self.uffd.stop();
    }
}
