//! The file under the cache, its plain twin, and everything that is held of both.
//!
//! The twin *is* the model of the bytes: what the file has to show is what the twin shows. Beside it
//! the world knows what no file shows: what is pinned, and what was stored under pins that are not
//! released yet. From that follows which calls must be refused, and which may be.

mod access;
mod acts;
mod look;
mod pins;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;

use crate::home::Home;
use anyhow::Context;

use crate::difference::{Difference, Step, Trouble};
use crate::foreign::Foreign;
use crate::op::{By, Op};
use crate::plain::PlainFile;
use crate::ranges::{Ranges, pages};
use crate::rng::fill_bytes;
use crate::settings::Settings;
use pins::Held;

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Did,
    /// Refused, as it had to be or may have been.
    Refused,
    /// It makes no sense in this state; an operation that another one relied on was taken out.
    Skipped,
}

/// Where the two files are.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) file: PathBuf,
    pub(crate) twin: PathBuf,
}

/// Bytes compared, by the way of looking.
pub(crate) type Compared = BTreeMap<&'static str, u64>;

/// A mapping through the cache.
struct HeldMap {
    map: pageferry::Map,
    range: Range<u64>,
    writable: bool,
}

pub(crate) struct World {
    settings: Settings,
    place: Place,
    // Pins and mappings end before the file, the file before the cache.
    pins: BTreeMap<u64, Held>,
    maps: BTreeMap<u64, HeldMap>,
    file: Option<pageferry::File>,
    cache: Home,
    own: PlainFile,
    foreign: Foreign,
    /// Mappings of outsiders: who, which, where, writable.
    plain_maps: BTreeMap<(By, u64), (Range<u64>, bool)>,
    twin: PlainFile,
    twin_io: File,
    size: u64,
    /// What may be away, not more than is known of.
    away: Ranges,
    compared: Compared,
    /// Of the caches that are no more.
    counters: BTreeMap<String, u64>,
}

impl World {
    pub(crate) fn new(settings: &Settings, place: &Place) -> anyhow::Result<World> {
        let start = fill_bytes(0, 0, settings.start.min(settings.size));
        for path in [&place.file, &place.twin] {
            std::fs::write(path, &start).with_context(|| format!("making {}", path.display()))?;
        }
        let cache = settings.cache()?;
        let file = cache.open(&place.file).context("opening the file")?;
        Ok(World {
            settings: settings.clone(),
            place: place.clone(),
            pins: BTreeMap::new(),
            maps: BTreeMap::new(),
            file: Some(file),
            cache,
            own: PlainFile::new(&place.file, "own"),
            foreign: Foreign::start(&place.file)?,
            plain_maps: BTreeMap::new(),
            twin: PlainFile::new(&place.twin, "twin"),
            twin_io: File::options().read(true).write(true).open(&place.twin)?,
            size: start.len() as u64,
            away: Ranges::default(),
            compared: Compared::new(),
            counters: BTreeMap::new(),
        })
    }

    /// Performs an operation on both sides, and compares what it shows and the sizes.
    pub(crate) fn step(&mut self, op: &Op) -> Step<Done> {
        let done = match op {
            Op::By(by, access) => self.access(*by, access)?,
            Op::Act(act) => self.act(act)?,
        };
        let size = std::fs::metadata(&self.place.file).map_err(anyhow::Error::new)?.len();
        if size != self.size {
            let what = format!("{size} bytes instead of {}", self.size);
            return Err(Difference::new("size", what).into());
        }
        Ok(done)
    }

    /// Everything is compared, released and closed, and what remains is compared again.
    pub(crate) fn end(&mut self) -> Step<()> {
        self.check()?;
        self.restart()?;
        self.check()
    }

    pub(crate) fn compared(&self) -> &Compared {
        &self.compared
    }

    /// The counters of all caches there were.
    pub(crate) fn counters(&self) -> BTreeMap<String, u64> {
        let mut sum = self.counters.clone();
        for counter in self.cache.stats().counters() {
            *sum.entry(counter.name.into()).or_default() += counter.value;
        }
        sum
    }

    fn file(&self) -> Step<&pageferry::File> {
        self.file.as_ref().context("the file is closed").map_err(Trouble::Broken)
    }

    /// What the file has to have there, as far as it reaches.
    fn expected(&self, range: &Range<u64>) -> Step<Vec<u8>> {
        Ok(crate::plain::read_at(&self.twin_io, range.start, range.end - range.start)?)
    }

    fn compare(&mut self, path: &'static str, at: u64, expected: &[u8], got: &[u8]) -> Step<()> {
        *self.compared.entry(path).or_default() += expected.len() as u64;
        Difference::between(path, at, expected, got).map_or(Ok(()), |d| Err(d.into()))
    }

    /// The size changed, by whom: pins beyond it are cut.
    fn resized(&mut self, by: By) -> Step<()> {
        let size = self.twin_io.metadata()?.len();
        if size < self.size {
            self.pins.values_mut().for_each(|pin| pin.cut(size, by));
            self.away.remove(size..u64::MAX);
        }
        self.size = size;
        Ok(())
    }

    /// The range touches pages that write pins keep.
    fn touches_write_pin(&self, range: &Range<u64>) -> bool {
        let range = pages(range);
        self.pins.values().any(|p| p.writes() && crate::ranges::overlap(&pages(&p.kept()), &range))
    }

    /// Pages that were away when a live write pin took them: they cannot come home before its release.
    fn held_away(&self, range: &Range<u64>) -> bool {
        let range = pages(range);
        let held = |p: &Held| p.over_away && crate::ranges::overlap(&pages(&p.range), &range);
        self.pins.values().any(held)
    }

    /// What outsiders are owed without a guard: nothing away when they come. False if that cannot be.
    fn make_ready_for_outsiders(&mut self) -> Step<bool> {
        if self.held_away(&(0..u64::MAX)) {
            return Ok(false);
        }
        if !self.settings.guarded() && !self.away.is_empty() {
            let flushed = self.file()?.flush(0..u64::MAX);
            flushed.map_err(|e| unexpected("flush", &e))?;
            self.away.clear();
        }
        Ok(true)
    }
}

/// What the generator looks at.
impl World {
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Which pin slots are taken: slot, range, writing.
    pub(crate) fn pinned(&self) -> Vec<(u64, Range<u64>, bool)> {
        self.pins.iter().map(|(slot, p)| (*slot, p.range.clone(), p.writes())).collect()
    }

    /// Which mapping slots are taken: slot, range, writable.
    pub(crate) fn mapped(&self, by: By) -> Vec<(u64, Range<u64>, bool)> {
        let plain = self.plain_maps.iter().filter(|((b, _), _)| *b == by);
        let plain = plain.map(|((_, slot), (range, writable))| (*slot, range.clone(), *writable));
        match by {
            By::Cache => {
                let maps = self.maps.iter();
                maps.map(|(slot, m)| (*slot, m.range.clone(), m.writable)).collect()
            }
            By::Own | By::Foreign => plain.collect(),
        }
    }
}

/// A refusal that nothing explains.
fn unexpected(call: &str, error: &pageferry::Error) -> Difference {
    Difference::new("refusal", format!("{call} was refused ({}): {error}", error.kind()))
}
