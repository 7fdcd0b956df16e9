//! Pin and release where nothing happened, under each guard.

use anyhow::ensure;
use pageferry::{Coherence, Error, Guard, PinMode, Validation};
use pageferry_linux::HostFile;

use super::{Cached, GUARDS, absent};
use crate::bench::pins::each;
use crate::bench::{Figure, Ground, PAGE, Row};

pub(super) fn repins(ground: &Ground, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let (scratch, _) = ground.file()?;
    // Another file: who has the cache's open takes its proofs.
    let bare = HostFile::open(std::env::current_exe()?, false)?;
    let proofs = GUARDS.map(|(name, guard)| (name, guard, Validation::Proof));
    for (name, guard, validation) in
        proofs.into_iter().chain([("stamps", Guard::None, Validation::Stamps)])
    {
        let cached = Cached::new(ground, scratch.path(), guard, validation)?;
        rows.push(repin(ground, &cached, &bare, name, guard)?);
    }
    Ok(())
}

fn repin(
    ground: &Ground,
    cached: &Cached,
    bare: &HostFile,
    name: &str,
    guard: Guard,
) -> anyhow::Result<Row> {
    // The first page is left alone: what is away there keeps the guard up.
    let range = PAGE..ground.bytes;
    let pin = || Ok(cached.file.pin(range.clone(), PinMode::Read)?.release().map(drop)?);
    pin()?;
    if guard != Guard::None {
        match cached.keep(PAGE, 1) {
            Err(Error::Unguarded { why, .. }) => {
                return Ok(absent(&format!("{name}, repin"), &why));
            }
            kept => kept?,
        }
    }
    if let Coherence::Unproven(why) = cached.file.coherence()? {
        let name = format!("guards, {name}, repin");
        return Ok(Row::Absent { name, why: format!("each pin copies again: {why}") });
    }
    let moved = cached.count("fetched_bytes");
    let (ours, floor) = ground.against(|| each(pin), || each(|| Ok(bare.observe().map(drop)?)))?;
    ensure!(cached.count("fetched_bytes") == moved, "a re-pin moved bytes");
    let what = match guard {
        Guard::None => "pin and release, nothing happened, beside one statx",
        _ => "the same, 4 KiB elsewhere in the file away",
    };
    Ok(Row::Figure(Figure {
        name: format!("guards, {name}, repin"),
        what,
        ours: ours * 1e6,
        floor: floor * 1e6,
        unit: "µs",
        goal: Some(10.0),
    }))
}
