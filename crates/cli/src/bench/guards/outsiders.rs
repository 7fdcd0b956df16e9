//! What another process pays: for a file that has copies on a device, and for one that has bytes away,
//! beside an untouched file.
//!
//! Under a lease nothing is kept away while somebody has the file open, so that an outsider can only come
//! after it: its open waits, and what it then reads or writes is home. Under fanotify its open does not
//! wait, but the first read or write does. Both are measured one by one, and together for more bytes.

use std::time::Duration;

use anyhow::{Context, ensure};
use pageferry::{Guard, Validation};

use super::{Cached, GUARDS, absent};
use crate::bench::outsider::{Deed, Outsider, Site};
use crate::bench::{Figure, Ground, PAGE, Row, median};
use crate::size::human;

/// How often an outsider does a thing in one round, to a file with copies.
const TIMES: u32 = 200;
/// How often it comes in one round to a file with a page away, and to one with `MANY` bytes away.
const COMES: u32 = 20;
const COMES_TO_MANY: u32 = 3;
const MANY: u64 = 16 << 20;

/// What one guard is measured with.
struct Scene<'s> {
    ground: &'s Ground,
    guard: &'static str,
    cached: Cached,
    outsider: &'s mut Outsider,
    /// The file under the cache, and one that nobody watches over.
    ours: &'s mut Site,
    twin: &'s mut Site,
}

pub(super) fn outsiders(
    ground: &Ground,
    outsider: &mut Outsider,
    rows: &mut Vec<Row>,
) -> anyhow::Result<()> {
    let site = |name| Site { path: outsider.place(name), at: 0, byte: 1 };
    let (mut ours, mut twin) = (site("ours"), site("twin"));
    for site in [&ours, &twin] {
        ground.file_at(&site.path)?;
    }
    for (name, guard) in GUARDS {
        let cached = Cached::new(ground, &ours.path, guard, Validation::Proof)?;
        let refusal = cached.refusal()?;
        for site in [&ours, &twin] {
            outsider.does(&site.order(Deed::Write, 1))?;
        }
        let (ours, twin) = (&mut ours, &mut twin);
        let mut scene = Scene { ground, guard: name, cached, outsider: &mut *outsider, ours, twin };
        match refusal {
            Some(why) if guard != Guard::None => rows.push(absent(name, &why)),
            Some(why) => {
                scene.copies(rows)?;
                let why = format!("keeping away is refused: {why}");
                rows.push(Row::Absent { name: format!("guards, {name}, away"), why });
            }
            None => {
                scene.copies(rows)?;
                scene.away(rows)?;
            }
        }
    }
    Ok(std::fs::remove_file(&twin.path)?)
}

impl Scene<'_> {
    /// An outsider and a file that has copies on the device.
    fn copies(&mut self, rows: &mut Vec<Row>) -> anyhow::Result<()> {
        for (deed, what) in [
            (Deed::Open, "open and close, beside an untouched file"),
            (Deed::Read, "read 4 KiB, open all the while, beside an untouched file"),
            (Deed::Write, "write 4 KiB, open all the while, beside an untouched file"),
        ] {
            let (mut moved, mut pins) = (0, 0);
            let ground = self.ground;
            let (ours, floor) = ground.in_turn(|ours| {
                // The copies are there, and the cache has heard of all that was before.
                self.cached.load()?;
                let took = self.outsider_does(deed, TIMES, ours)?;
                if ours {
                    let before = self.cached.count("fetched_bytes");
                    self.cached.load()?;
                    moved += self.cached.count("fetched_bytes") - before;
                    pins += 1;
                    self.cached.ensure_page(self.ours.at, self.ours.byte)?;
                }
                Ok(took)
            })?;
            let figure = self.figure(
                "copies",
                deed,
                what,
                (ours, floor),
                (self.guard != "fanotify").then_some(2.0),
            );
            rows.push(Row::Counted(figure, "moved by the next pin", moved / pins));
        }
        Ok(())
    }

    /// An outsider and a file that has bytes away.
    fn away(&mut self, rows: &mut Vec<Row>) -> anyhow::Result<()> {
        let many = MANY.min(self.ground.bytes);
        for (bytes, comes, deed, what) in [
            (PAGE, COMES, Deed::Open, "open and close, beside an untouched file"),
            (PAGE, COMES, Deed::Read, "first read once open, beside an untouched file"),
            (PAGE, COMES, Deed::Write, "first write once open, beside an untouched file"),
            (many, COMES_TO_MANY, Deed::Visit, "open, read 4 KiB, close, beside an untouched file"),
        ] {
            let mut home = 0;
            let ground = self.ground;
            let times = ground.in_turn(|ours| {
                // The median here as well: one that meets a commit of the journal takes a hundred times
                // as long.
                let each = (0..comes).map(|_| self.comes(bytes, deed, ours, &mut home));
                let each: Vec<f64> = each.collect::<anyhow::Result<_>>()?;
                Ok(Duration::from_secs_f64(median(each)))
            })?;
            let state = format!("{} away", human(bytes));
            let goal = (deed != Deed::Visit).then_some(100.0);
            let figure = self.figure(&state, deed, what, times, goal);
            let each = home / u64::from(comes * ground.rounds);
            rows.push(Row::Counted(figure, "came home", each));
        }
        let missed = self.cached.count("unguarded_openers");
        ensure!(missed == 0, "{missed} times an outsider was let in though bytes were away");
        Ok(self.cached.file.flush(0..self.cached.bytes).map(drop)?)
    }

    /// An outsider comes once, `bytes` being away; to the twin as well, so that both are met by a
    /// machine that has just done the same.
    fn comes(&mut self, bytes: u64, deed: Deed, ours: bool, home: &mut u64) -> anyhow::Result<f64> {
        self.ours.byte = self.ours.byte.wrapping_add(1);
        self.cached.keep(bytes, self.ours.byte).context("keeping bytes away once more")?;
        let before = self.cached.count("written_back_bytes");
        let took = self.outsider_does(deed, 1, ours)?;
        if ours {
            *home += self.cached.count("written_back_bytes") - before;
            let away = self.cached.count("away_bytes");
            // Who only opens the file waits for nothing under fanotify; who reads a page, for that page.
            let left = match deed {
                Deed::Open => bytes,
                Deed::Visit => bytes - PAGE,
                Deed::Read | Deed::Write => 0,
            };
            ensure!(away == 0 || away == left, "{away} bytes were away under an outsider");
            self.cached.ensure_page(self.ours.at, self.ours.byte)?;
        }
        Ok(took.as_secs_f64())
    }

    /// Has it done to our file, or to the other: the time of each.
    fn outsider_does(&mut self, deed: Deed, times: u32, ours: bool) -> anyhow::Result<Duration> {
        let site = if ours { &mut *self.ours } else { &mut *self.twin };
        if deed == Deed::Write {
            site.byte = site.byte.wrapping_add(1);
        }
        Ok(self.outsider.does(&site.order(deed, times))? / times)
    }

    fn figure(
        &self,
        state: &str,
        deed: Deed,
        what: &'static str,
        (ours, floor): (f64, f64),
        goal: Option<f64>,
    ) -> Figure {
        Figure {
            name: format!("guards, {}, {state}, {}", self.guard, deed.name()),
            what,
            ours: ours * 1e6,
            floor: floor * 1e6,
            unit: "µs",
            goal,
        }
    }
}
