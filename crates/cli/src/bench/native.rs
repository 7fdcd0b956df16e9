//! CPU access through our mapping, beside a plain mapping of the same file: two files would differ in
//! how the kernel has laid out their pages.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use pageferry_linux::{FileMap, HostFile};

use super::{Figure, Ground, timed};
use crate::setup;

/// Touches one word of every page; the sum, so that nothing is optimised away.
fn sweep(load: impl Fn(usize) -> anyhow::Result<u64>, bytes: usize) -> anyhow::Result<u64> {
    (0..bytes).step_by(4096).try_fold(0u64, |sum, at| Ok(sum.wrapping_add(load(at)?)))
}

pub(super) fn native(ground: &Ground) -> anyhow::Result<Vec<Figure>> {
    let (scratch, data) = ground.file()?;
    let bytes = ground.bytes as usize;
    let expected = data
        .chunks(4096)
        .filter_map(|page| page.first_chunk::<8>())
        .fold(0u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
    let (cache, _) = setup::cache(ground.bytes, 2 << 20, None)?;
    let file = cache.open(scratch.path())?;
    let host = Arc::new(HostFile::open(scratch.path(), true)?);
    // First touches: a new mapping each time.
    let ours = || -> anyhow::Result<Duration> {
        let map = file.map(0..ground.bytes, true)?;
        timed(|| {
            ensure!(sweep(|at| Ok(map.load_u64(at)?), bytes)? == expected, "a wrong word");
            Ok(())
        })
    };
    let floor = || -> anyhow::Result<Duration> {
        let map = FileMap::new(&host, 0, bytes, true)?;
        timed(|| {
            ensure!(sweep(|at| Ok(map.load::<u64>(at)?), bytes)? == expected, "a wrong word");
            Ok(())
        })
    };
    let misses = ground.against(ours, floor)?;
    // And again over the same mapping.
    let map = file.map(0..ground.bytes, true)?;
    let plain = FileMap::new(&host, 0, bytes, true)?;
    sweep(|at| Ok(map.load_u64(at)?), bytes)?;
    sweep(|at| Ok(plain.load::<u64>(at)?), bytes)?;
    let hits = ground.against(
        || timed(|| sweep(|at| Ok(map.load_u64(at)?), bytes)),
        || timed(|| sweep(|at| Ok(plain.load::<u64>(at)?), bytes)),
    )?;
    let pages = ground.bytes as f64 / 4096.0;
    let figure = |name: &str, what, (ours, floor): (f64, f64)| Figure {
        name: name.into(),
        what,
        ours: ours / pages * 1e9,
        floor: floor / pages * 1e9,
        unit: "ns a page",
        goal: Some(1.1),
    };
    Ok(vec![
        figure(
            "native, misses",
            "first loads through our mapping, beside plain MAP_SHARED",
            misses,
        ),
        figure("native, hits", "later loads through our mapping, beside plain MAP_SHARED", hits),
    ])
}
