//! `bench`: each figure against a floor taken in the same run.
//!
//! Ours and the floor take turns, round by round, so that a slow moment of the machine strikes
//! both; the medians are compared. Every measurement checks what it moved or read.

mod copies;
mod guards;
mod native;
mod outsider;
mod pins;
mod report;
mod share;
mod trap;

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

pub(crate) use self::outsider::serve;
use self::report::Report;
use crate::args::BenchArgs;
use crate::scratch::{Scratch, ensure_room, reserved};

const PAGE: u64 = 4096;

/// Where a bench works.
struct Ground {
    bytes: u64,
    rounds: u32,
}

/// One figure.
struct Figure {
    name: String,
    /// What `ours` and `floor` are.
    what: &'static str,
    ours: f64,
    floor: f64,
    unit: &'static str,
    /// `ours / floor` may be at most (or, if negative, at least its absolute value) so much.
    goal: Option<f64>,
}

/// What a bench has to tell.
enum Row {
    Figure(Figure),
    /// A figure and the bytes that the cache's statistics counted at it: which, and how many at a time.
    Counted(Figure, &'static str, u64),
    /// What cannot be measured here, and why.
    Absent {
        name: String,
        why: String,
    },
}

impl Figure {
    fn ratio(&self) -> f64 {
        self.ours / self.floor
    }

    fn met(&self) -> Option<bool> {
        let ratio = self.ratio();
        self.goal.map(|g| if g < 0.0 { ratio >= -g } else { ratio <= g })
    }

    fn goal(&self) -> Option<String> {
        self.goal.map(|g| if g < 0.0 { format!("≥ {}", -g) } else { format!("≤ {g}") })
    }
}

type Bench = fn(&Ground) -> anyhow::Result<Vec<Row>>;

const BENCHES: [(&str, Bench); 11] = [
    ("load", |g| copies::load(g).map(rows)),
    ("writeback", |g| copies::write_back(g).map(rows)),
    ("repin", |g| pins::repin(g).map(rows)),
    ("moved", |g| pins::moved(g).map(rows)),
    ("records", |g| pins::records(g).map(rows)),
    ("native", |g| native::native(g).map(rows)),
    ("trap", |g| trap::trap(g).map(rows)),
    ("guards", guards::guards),
    ("attach", |g| share::attached(g).map(rows)),
    ("request", |g| share::asked(g).map(rows)),
    ("crowd", |g| share::crowd(g).map(rows)),
];

fn rows(figures: Vec<Figure>) -> Vec<Row> {
    figures.into_iter().map(Row::Figure).collect()
}

pub(crate) fn bench(args: &BenchArgs) -> anyhow::Result<bool> {
    if let Some(name) = args.names.iter().find(|n| !BENCHES.iter().any(|(b, _)| b == n)) {
        let names: Vec<&str> = BENCHES.iter().map(|(n, _)| *n).collect();
        bail!("there is no bench '{name}'; there are {}", names.join(", "));
    }
    let bytes = args.size / (2 << 20) * (2 << 20);
    if bytes == 0 {
        bail!("--size must be at least 2m");
    }
    // At most two files at a time; in memory their contents, a twin of them, and the device's.
    ensure_room(2 * u128::from(bytes), 3 * u128::from(bytes))?;
    let ground = Ground { bytes, rounds: args.rounds };
    let mut report = Report::new(args.json);
    for (name, bench) in BENCHES {
        if args.names.is_empty() || args.names.iter().any(|n| n == name) {
            for row in bench(&ground).with_context(|| format!("bench {name}"))? {
                report.tell(row)?;
            }
        }
    }
    report.end()?;
    Ok(true)
}

impl Ground {
    fn data(&self) -> anyhow::Result<Vec<u8>> {
        let mut data = reserved(self.bytes)?;
        for n in 0..self.bytes / 8 {
            data.extend_from_slice(&(n ^ (n << 40)).to_le_bytes());
        }
        Ok(data)
    }

    /// A file of a pattern, in the page cache.
    fn file(&self) -> anyhow::Result<(Scratch, Vec<u8>)> {
        let data = self.data()?;
        let scratch = Scratch::new(|file| file.write_all(&data).context("writing the file"))?;
        Ok((scratch, data))
    }

    /// The same, with a name; who asks for it sees to it that it goes. It is on the disk as well: the
    /// kernel's own write-back shall not run beside what is timed.
    fn file_at(&self, path: &Path) -> anyhow::Result<Vec<u8>> {
        let data = self.data()?;
        let write = |mut file: std::fs::File| file.write_all(&data).and_then(|()| file.sync_all());
        let written = std::fs::File::create(path).and_then(write);
        written.with_context(|| format!("writing {}", path.display()))?;
        Ok(data)
    }

    /// Times two ways in turn; the medians.
    fn against(
        &self,
        mut ours: impl FnMut() -> anyhow::Result<Duration>,
        mut floor: impl FnMut() -> anyhow::Result<Duration>,
    ) -> anyhow::Result<(f64, f64)> {
        self.in_turn(|is_ours| if is_ours { ours() } else { floor() })
    }

    /// The same, where one closure knows both ways: ours, and the floor.
    fn in_turn(
        &self,
        mut time: impl FnMut(bool) -> anyhow::Result<Duration>,
    ) -> anyhow::Result<(f64, f64)> {
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for round in 0..self.rounds {
            // Who comes second finds warmer caches: that shall be each in turn.
            let first = round % 2 == 0;
            for is_ours in [first, !first] {
                let times = if is_ours { &mut ours } else { &mut floor };
                times.push(time(is_ours)?.as_secs_f64());
            }
        }
        Ok((median(ours), median(floor)))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}

/// Bytes in so many seconds, as GiB/s.
fn rate(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 / f64::from(1 << 30) / seconds
}
