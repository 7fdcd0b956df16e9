//! What watching over a file costs: the cache where nothing happens, others who open the file, and
//! all that moves again after a change of others.

use std::cell::Cell;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use pageferry::{After, Cache, CacheConfig, File, Guard, PinMode, Validation};
use pageferry_linux::HostFile;

use super::pins::each;
use super::{Figure, Ground, timed};
use crate::setup;

/// Times that others come, for one measurement: each may have to wait.
const VISITS: u32 = 200;
const PAGE: u64 = 4096;

fn cache_over(
    ground: &Ground,
    path: &Path,
    guard: Guard,
    validation: Validation,
) -> anyhow::Result<(Cache, File)> {
    let config = CacheConfig::default().flush_age(None).guard(guard).validation(validation);
    let (cache, _) = setup::cache_with(ground.bytes, 2 << 20, config)?;
    let file = cache.open(path)?;
    Ok((cache, file))
}

fn store_and_keep(file: &File, at: u64, byte: u8) -> anyhow::Result<()> {
    let pin = file.pin(at..at + PAGE, PinMode::Write)?;
    pin.view()?.write(at, &[byte; PAGE as usize])?;
    // Refused where there is no guard.
    Ok(pin.release_with(After::KeepAway).map(drop)?)
}

/// Pin and release where nothing happened, under each guard, in units of one `statx`.
fn repins(ground: &Ground, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let (scratch, _) = ground.file()?;
    // Another file: who has the cache's open takes its proofs.
    let bare = HostFile::open(std::env::current_exe()?, false)?;
    for (name, guard, validation) in [
        ("none", Guard::None, Validation::Proof),
        ("lease held", Guard::Lease, Validation::Proof),
        ("stamps", Guard::None, Validation::Stamps),
    ] {
        let (cache, file) = cache_over(ground, scratch.path(), guard, validation)?;
        // The first page is left alone: what is away there makes the lease be held.
        let range = PAGE..ground.bytes;
        file.pin(range.clone(), PinMode::Read)?.release()?;
        if guard == Guard::Lease {
            store_and_keep(&file, 0, 1)?;
        }
        let moved = cache.stats().get("fetched_bytes");
        let ours = || each(|| Ok(file.pin(range.clone(), PinMode::Read)?.release().map(drop)?));
        let floor = || each(|| Ok(bare.observe().map(drop)?));
        let (ours, floor) = ground.against(ours, floor)?;
        ensure!(cache.stats().get("fetched_bytes") == moved, "a re-pin moved bytes");
        figures.push(Figure {
            name: format!("guards, repin, {name}"),
            what: "pin and release, nothing happened, beside one statx",
            ours: ours * 1e6,
            floor: floor * 1e6,
            unit: "µs",
            goal: 10.0,
        });
    }
    Ok(())
}

/// Somebody who comes, reads a page, which starts with this byte, and goes.
fn visit(path: &Path, byte: u8) -> anyhow::Result<()> {
    let file = std::fs::File::open(path)?;
    let mut page = [0; PAGE as usize];
    file.read_exact_at(&mut page, 0)?;
    ensure!(page[0] == byte, "a visitor saw {} where {byte} was", page[0]);
    Ok(())
}

fn visit_to_write(path: &Path, byte: u8) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    Ok(file.write_all_at(&[byte; PAGE as usize], 0)?)
}

/// Others open a file under a cache, beside one that nobody watches over. Here they are descriptors
/// of this process, which count as others' and cost the same.
fn visitors(ground: &Ground, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let (scratch, data) = ground.file()?;
    let (twin, _) = ground.file()?;
    let (_cache, file) = cache_over(ground, scratch.path(), Guard::Lease, Validation::Proof)?;
    file.pin(0..ground.bytes, PinMode::Read)?.release()?;
    let reading = |path: &Path| timed(|| (0..VISITS).try_for_each(|_| visit(path, data[0])));
    let idle = ground.against(|| reading(scratch.path()), || reading(twin.path()))?;
    let writing = |path: &Path| timed(|| (0..VISITS).try_for_each(|_| visit_to_write(path, 5)));
    let writes = ground.against(|| writing(scratch.path()), || writing(twin.path()))?;
    let mut byte = [0];
    let pin = file.pin(0..PAGE, PinMode::Read)?;
    pin.view()?.read(PAGE - 1, &mut byte)?;
    pin.release()?;
    ensure!(byte == [5], "what visitors wrote was missed");
    // Each one comes while the page is away.
    let turn = Cell::new(0u8);
    let waiting = || -> anyhow::Result<Duration> {
        let mut took = Duration::ZERO;
        for _ in 0..VISITS {
            turn.set(turn.get().wrapping_add(1));
            store_and_keep(&file, 0, turn.get())?;
            took += timed(|| visit(scratch.path(), turn.get()))?;
        }
        Ok(took)
    };
    let quiet = || timed(|| (0..VISITS).try_for_each(|_| visit(twin.path(), 5)));
    let away = ground.against(waiting, quiet)?;
    for (name, what, (ours, floor), goal) in [
        ("reader", "open, read 4 KiB, close, beside a file without a cache", idle, 2.0),
        ("writer", "open, write 4 KiB, close, beside a file without a cache", writes, 2.0),
        ("reader, away", "the same, 4 KiB away: it waits until they are home", away, 100.0),
    ] {
        figures.push(Figure {
            name: format!("guards, {name}"),
            what,
            ours: ours / f64::from(VISITS) * 1e6,
            floor: floor / f64::from(VISITS) * 1e6,
            unit: "µs",
            goal,
        });
    }
    Ok(())
}

/// One page changed by others: all of the file moves again, as nobody says which page it was.
fn invalidation(ground: &Ground, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let (scratch, data) = ground.file()?;
    let bytes = ground.bytes;
    let (cache, file) = cache_over(ground, scratch.path(), Guard::Lease, Validation::Proof)?;
    let fetched = || cache.stats().get("fetched_bytes").unwrap_or(0);
    file.pin(0..bytes, PinMode::Read)?.release()?;
    let (turn, moved) = (Cell::new(0u8), Cell::new(0));
    let ours = || {
        turn.set(turn.get().wrapping_add(1));
        visit_to_write(scratch.path(), turn.get())?;
        let before = fetched();
        let took = timed(|| Ok(file.pin(0..bytes, PinMode::Read)?.release()?))?;
        moved.set(fetched() - before);
        Ok(took)
    };
    let floor = || {
        file.evict(0..bytes)?;
        timed(|| Ok(file.pin(0..bytes, PinMode::Read)?.release()?))
    };
    let (ours, floor) = ground.against(ours, floor)?;
    let pin = file.pin(0..bytes, PinMode::Read)?;
    let (mut at, mut same) = (0, true);
    pin.view()?.visit(0..bytes, &mut |piece| {
        let expected = &data[at..at + piece.len()];
        same &= match at {
            0 => piece[..4096] == [turn.get(); 4096] && piece[4096..] == expected[4096..],
            _ => piece == expected,
        };
        at += piece.len();
    })?;
    ensure!(same && at == data.len(), "the device's bytes are not the file's");
    figures.push(Figure {
        name: format!("guards, invalidation of {} MiB", bytes >> 20),
        what: "bytes moved after others wrote 4 KiB, beside the file's",
        ours: moved.get() as f64,
        floor: bytes as f64,
        unit: "bytes",
        goal: 1.0,
    });
    figures.push(Figure {
        name: format!("guards, invalidation of {} MiB", bytes >> 20),
        what: "pin after others wrote 4 KiB, beside loading the file",
        ours: ours * 1e3,
        floor: floor * 1e3,
        unit: "ms",
        goal: 1.2,
    });
    Ok(())
}

pub(super) fn guards(ground: &Ground) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    repins(ground, &mut figures)?;
    visitors(ground, &mut figures)?;
    invalidation(ground, &mut figures)?;
    Ok(figures)
}
