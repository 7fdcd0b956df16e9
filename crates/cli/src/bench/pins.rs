//! What pins cost when little or nothing happened.

use std::time::{Duration, Instant};

use anyhow::ensure;
use pageferry::PinMode;
use pageferry_linux::HostFile;

use super::{Figure, Ground};
use crate::setup;

const CALLS: u32 = 2000;

pub(super) fn each(work: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let started = Instant::now();
    for _ in 0..CALLS {
        work()?;
    }
    Ok(started.elapsed() / CALLS)
}

/// Pin and release of a resident, unchanged range, in units of one `statx`.
pub(super) fn repin(ground: &Ground) -> anyhow::Result<Vec<Figure>> {
    let (scratch, _) = ground.file()?;
    let (cache, _) = setup::cache(ground.bytes, 2 << 20, None)?;
    let file = cache.open(scratch.path())?;
    // Another file: who has the cache's open takes its proofs.
    let bare = HostFile::open(std::env::current_exe()?, false)?;
    file.pin(0..ground.bytes, PinMode::Read)?.release()?;
    let moved = cache.stats().get("fetched_bytes");
    let mut figures = Vec::new();
    for bytes in [1 << 20, 64 << 20, ground.bytes] {
        if bytes > ground.bytes {
            continue;
        }
        let ours = || each(|| Ok(file.pin(0..bytes, PinMode::Read)?.release().map(drop)?));
        let floor = || each(|| Ok(bare.observe().map(drop)?));
        let (ours, floor) = ground.against(ours, floor)?;
        figures.push(Figure {
            name: format!("repin {} MiB", bytes >> 20),
            what: "pin and release, resident and unchanged, beside one statx",
            ours: ours * 1e6,
            floor: floor * 1e6,
            unit: "µs",
            goal: Some(10.0),
        });
    }
    ensure!(cache.stats().get("fetched_bytes") == moved, "a re-pin moved bytes");
    Ok(figures)
}

/// Pages moved when k pages changed.
pub(super) fn moved(ground: &Ground) -> anyhow::Result<Vec<Figure>> {
    let (scratch, _) = ground.file()?;
    let bytes = ground.bytes;
    let (cache, _) = setup::cache(bytes, 2 << 20, None)?;
    let file = cache.open(scratch.path())?;
    let map = file.map(0..bytes, true)?;
    file.pin(0..bytes, PinMode::Read)?.release()?;
    let pages = bytes / 4096;
    let changed: Vec<u64> = (0..100).map(|n| n * (pages / 100)).collect();
    let mut figures = Vec::new();
    for way in ["write_at", "mapped stores"] {
        let before = cache.stats().get("fetched_bytes").unwrap_or(0);
        for page in &changed {
            let at = page * 4096 + 8;
            match way {
                "write_at" => file.write_at(&[7], at)?,
                _ => map.store_u8(at as usize, 9)?,
            }
        }
        let pin = file.pin(0..bytes, PinMode::Read)?;
        let mut byte = [0];
        for page in &changed {
            pin.view()?.read(page * 4096 + 8, &mut byte)?;
            ensure!(byte == [if way == "write_at" { 7 } else { 9 }], "a change was missed");
        }
        pin.release()?;
        let fetched = cache.stats().get("fetched_bytes").unwrap_or(0) - before;
        figures.push(Figure {
            name: format!("moved, {way}"),
            what: "pages moved after 100 pages changed",
            ours: fetched as f64 / 4096.0,
            floor: changed.len() as f64,
            unit: "pages",
            goal: Some(1.0),
        });
    }
    Ok(figures)
}

/// Host memory of the records, beside what they are about.
pub(super) fn records(ground: &Ground) -> anyhow::Result<Vec<Figure>> {
    let (scratch, _) = ground.file()?;
    let (cache, _) = setup::cache(ground.bytes, 2 << 20, None)?;
    let file = cache.open(scratch.path())?;
    let pin = file.pin(0..ground.bytes, PinMode::Write)?;
    pin.view()?.update(0..ground.bytes, &mut |piece| piece[0] ^= 1)?;
    pin.release_with(pageferry::After::KeepAway)?;
    let get = |name| cache.stats().get(name).unwrap_or(0) as f64;
    Ok(vec![Figure {
        name: "records".into(),
        what: "bytes of records (estimated), beside resident bytes, all of them away",
        ours: get("record_bytes"),
        floor: get("resident_bytes"),
        unit: "bytes",
        goal: Some(0.001),
    }])
}
