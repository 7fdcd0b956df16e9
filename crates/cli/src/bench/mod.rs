//! `bench`: each figure against a floor taken in the same run.
//!
//! Ours and the floor take turns, round by round, so that a slow moment of the machine strikes
//! both; the medians are compared. Every measurement checks what it moved or read.

mod copies;
mod guards;
mod native;
mod pins;
mod trap;

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use comfy_table::presets;
use serde_json::json;

use crate::args::BenchArgs;
use crate::output::{line, table};
use crate::scratch::{Scratch, ensure_room, reserved};

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
    goal: f64,
}

impl Figure {
    fn ratio(&self) -> f64 {
        self.ours / self.floor
    }

    fn met(&self) -> bool {
        if self.goal < 0.0 { self.ratio() >= -self.goal } else { self.ratio() <= self.goal }
    }

    fn goal(&self) -> String {
        if self.goal < 0.0 { format!("≥ {}", -self.goal) } else { format!("≤ {}", self.goal) }
    }
}

type Bench = fn(&Ground) -> anyhow::Result<Vec<Figure>>;

const BENCHES: [(&str, Bench); 8] = [
    ("load", copies::load),
    ("writeback", copies::write_back),
    ("repin", pins::repin),
    ("moved", pins::moved),
    ("records", pins::records),
    ("native", native::native),
    ("trap", trap::trap),
    ("guards", guards::guards),
];

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
    let mut table = table(presets::NOTHING);
    table.set_header(["figure", "ours", "floor", "unit", "ours / floor", "goal", ""]);
    for (name, bench) in BENCHES {
        if !args.names.is_empty() && !args.names.iter().any(|n| n == name) {
            continue;
        }
        for f in bench(&ground).with_context(|| format!("bench {name}"))? {
            if args.json {
                line(json!({
                    "figure": f.name, "what": f.what, "ours": f.ours, "floor": f.floor, "unit": f.unit,
                    "ratio": f.ratio(), "goal": f.goal(), "met": f.met(),
                }).to_string())?;
            }
            let verdict = if f.met() { "met" } else { "not met" };
            table.add_row([
                format!("{}: {}", f.name, f.what),
                format!("{:.3}", f.ours),
                format!("{:.3}", f.floor),
                f.unit.to_owned(),
                format!("{:.2}", f.ratio()),
                f.goal(),
                verdict.to_owned(),
            ]);
        }
    }
    if !args.json {
        line(table.to_string())?;
    }
    Ok(true)
}

impl Ground {
    /// A file of a pattern, in the page cache.
    fn file(&self) -> anyhow::Result<(Scratch, Vec<u8>)> {
        let mut data = reserved(self.bytes)?;
        for n in 0..self.bytes / 8 {
            data.extend_from_slice(&(n ^ (n << 40)).to_le_bytes());
        }
        let scratch = Scratch::new(|file| file.write_all(&data).context("writing the file"))?;
        Ok((scratch, data))
    }

    /// Times two ways in turn; the medians.
    fn against(
        &self,
        mut ours: impl FnMut() -> anyhow::Result<Duration>,
        mut floor: impl FnMut() -> anyhow::Result<Duration>,
    ) -> anyhow::Result<(f64, f64)> {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for round in 0..self.rounds {
            // Who comes second finds warmer caches: that shall be each in turn.
            if round % 2 == 0 {
                a.push(ours()?.as_secs_f64());
                b.push(floor()?.as_secs_f64());
            } else {
                b.push(floor()?.as_secs_f64());
                a.push(ours()?.as_secs_f64());
            }
        }
        Ok((median(a), median(b)))
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
