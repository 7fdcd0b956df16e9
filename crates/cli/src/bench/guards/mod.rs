//! What watching over a file costs, under each guard: the cache where nothing happens, another process
//! that uses the file, and what moves again after a change of its.

mod invalidation;
mod outsiders;
mod repins;

use std::path::Path;

use anyhow::ensure;
use pageferry::{After, Cache, CacheConfig, Error, File, Guard, PinMode, Validation};

use super::outsider::Outsider;
use super::{Ground, PAGE, Row};
use crate::setup;

const GUARDS: [(&str, Guard); 4] = [
    ("none", Guard::None),
    ("lease", Guard::Lease),
    ("fanotify", Guard::Fanotify),
    ("auto", Guard::Auto),
];

/// A file under a cache that has room for all of it.
struct Cached {
    file: File,
    cache: Cache,
    bytes: u64,
}

impl Cached {
    fn new(
        ground: &Ground,
        path: &Path,
        guard: Guard,
        validation: Validation,
    ) -> anyhow::Result<Cached> {
        let config = CacheConfig::default().flush_age(None).guard(guard).validation(validation);
        let (cache, _) = setup::cache_with(ground.bytes, 2 << 20, config)?;
        let file = cache.open(path)?;
        Ok(Cached { file, cache, bytes: ground.bytes })
    }

    /// A counter of the cache's statistics.
    fn count(&self, name: &str) -> u64 {
        self.cache.stats().get(name).unwrap_or(0)
    }

    /// All of the file is on the device, and what happened to it has been heard of.
    fn load(&self) -> anyhow::Result<()> {
        Ok(self.file.pin(0..self.bytes, PinMode::Read)?.release().map(drop)?)
    }

    /// Has the device store to the first bytes, and keeps them away.
    fn keep(&self, bytes: u64, byte: u8) -> Result<(), Error> {
        let pin = self.file.pin(0..bytes, PinMode::Write)?;
        pin.view()?.update(0..bytes, &mut |piece| piece.fill(byte))?;
        pin.release_with(After::KeepAway).map(drop)
    }

    /// Why nothing can be kept away; leaves everything home.
    fn refusal(&self) -> anyhow::Result<Option<String>> {
        let refused = match self.keep(PAGE, 1) {
            Ok(()) => None,
            Err(Error::Unguarded { why, .. }) => Some(why),
            Err(error) => return Err(error.into()),
        };
        self.file.flush(0..self.bytes)?;
        Ok(refused)
    }

    /// A pin of the page sees this byte all over it.
    fn ensure_page(&self, at: u64, byte: u8) -> anyhow::Result<()> {
        let mut page = [0; PAGE as usize];
        let pin = self.file.pin(at..at + PAGE, PinMode::Read)?;
        pin.view()?.read(at, &mut page)?;
        pin.release()?;
        ensure!(page == [byte; PAGE as usize], "the device has {} where {byte} is", page[0]);
        Ok(())
    }
}

/// The guard cannot be had here.
fn absent(guard: &str, why: &str) -> Row {
    Row::Absent { name: format!("guards, {guard}"), why: format!("not to be had here: {why}") }
}

pub(super) fn guards(ground: &Ground) -> anyhow::Result<Vec<Row>> {
    let mut outsider = Outsider::start()?;
    let mut rows = Vec::new();
    repins::repins(ground, &mut rows)?;
    outsiders::outsiders(ground, &mut outsider, &mut rows)?;
    invalidation::invalidation(ground, &mut outsider, &mut rows)?;
    Ok(rows)
}
