//! How fast bytes move, beside plain system calls into memory that was touched before.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::thread::Builder;
use std::time::Duration;

use anyhow::{Context, ensure};
use pageferry::PinMode;

use super::{Figure, Ground, rate, timed};
use crate::scratch::memory;
use crate::setup;

/// Threads that the cache copies with by default.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(8))
}

/// Splits memory among threads and lets each do its part with calls of 1 MiB.
pub(super) fn spread(
    memory: &mut [u8],
    work: impl Fn(&mut [u8], u64) -> std::io::Result<()> + Sync,
) -> anyhow::Result<()> {
    let part = memory.len().div_ceil(threads()).next_multiple_of(1 << 20);
    std::thread::scope(|scope| {
        let parts = memory.chunks_mut(part).enumerate().map(|(n, part_of)| {
            let work = &work;
            Builder::new().spawn_scoped(scope, move || {
                let start = (n * part) as u64;
                for (m, piece) in part_of.chunks_mut(1 << 20).enumerate() {
                    work(piece, start + (m << 20) as u64)?;
                }
                Ok::<(), std::io::Error>(())
            })
        });
        let running: std::io::Result<Vec<_>> = parts.collect();
        for thread in running.context("starting a copying thread")? {
            thread.join().map_err(|_| anyhow::anyhow!("a copying thread failed"))??;
        }
        Ok(())
    })
}

/// Page cache → device, frames that were used before.
pub(super) fn load(ground: &Ground) -> anyhow::Result<Vec<Figure>> {
    let (scratch, data) = ground.file()?;
    // One of its own: who has the cache's file open takes its proofs.
    let (twin, _) = ground.file()?;
    let bytes = ground.bytes;
    let (cache, _) = setup::cache(bytes, 2 << 20, None)?;
    let file = cache.open(scratch.path())?;
    let plain = OpenOptions::new().read(true).open(twin.path())?;
    let mut memory = memory(bytes, 1)?;
    file.pin(0..bytes, PinMode::Read)?.release()?;
    let ours = || {
        file.evict(0..bytes)?;
        timed(|| Ok(file.pin(0..bytes, PinMode::Read)?.release()?))
    };
    let floor = || timed(|| spread(&mut memory, |piece, at| plain.read_exact_at(piece, at)));
    let (ours, floor) = ground.against(ours, floor)?;
    let pin = file.pin(0..bytes, PinMode::Read)?;
    let mut at = 0;
    let mut same = true;
    pin.view()?.visit(0..bytes, &mut |piece| {
        same &= piece == &data[at..at + piece.len()];
        at += piece.len();
    })?;
    ensure!(same && memory == data, "the device's bytes, or the floor's, are not the file's");
    Ok(vec![Figure {
        name: "load".into(),
        what: "page cache to device, beside preads into touched memory",
        ours: rate(bytes, ours),
        floor: rate(bytes, floor),
        unit: "GiB/s",
        goal: Some(-0.9),
    }])
}

/// Device → page cache, every page stored to.
pub(super) fn write_back(ground: &Ground) -> anyhow::Result<Vec<Figure>> {
    let (scratch, mut data) = ground.file()?;
    let (twin, _) = ground.file()?;
    let bytes = ground.bytes;
    let (cache, _) = setup::cache(bytes, 2 << 20, None)?;
    let file = cache.open(scratch.path())?;
    let plain = OpenOptions::new().write(true).open(twin.path())?;
    let mut turn = 0u8;
    let ours = || -> anyhow::Result<Duration> {
        turn += 1;
        let pin = file.pin(0..bytes, PinMode::Write)?;
        let view = pin.view()?;
        view.update(0..bytes, &mut |piece| piece.iter_mut().step_by(4096).for_each(|b| *b = turn))?;
        drop(view);
        timed(|| Ok(pin.release()?))
    };
    let floor = || timed(|| spread(&mut data, |piece, at| plain.write_all_at(piece, at)));
    let (ours, floor) = ground.against(ours, floor)?;
    let end = std::fs::read(scratch.path())?;
    ensure!(end.iter().step_by(4096).all(|b| *b == turn), "not every page went home");
    ensure!(
        end.len() == data.len() && end[1..4096] == data[1..4096],
        "more than was stored changed"
    );
    Ok(vec![Figure {
        name: "writeback".into(),
        what: "device to page cache, beside plain pwrites",
        ours: rate(bytes, ours),
        floor: rate(bytes, floor),
        unit: "GiB/s",
        goal: Some(-0.9),
    }])
}
