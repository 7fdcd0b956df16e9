//! Makes a failing sequence short: takes operations out as long as it still fails.

use std::time::{Duration, Instant};

use crate::number;
use crate::run::{Report, Site};
use crate::sequence::Sequence;
use crate::watchdog::Watchdog;

/// What shrinking made of a sequence.
pub(crate) struct Shrunk {
    pub(crate) sequence: Sequence,
    /// Of its last run.
    pub(crate) report: Report,
    pub(crate) runs: u64,
}

struct Shrinker<'a> {
    site: &'a Site,
    watchdog: &'a Watchdog,
    /// A failure that depends on time is tried for so often.
    tries: u32,
    until: Instant,
    best: Shrunk,
}

/// Shrinks `sequence`, which failed with `report`, for at most `limit`. Delta debugging: ever
/// smaller chunks are left out; then offsets and lengths are made rounder.
///
/// # Errors
/// What keeps the tool from running a sequence.
pub(crate) fn shrink(
    sequence: &Sequence,
    report: Report,
    site: &Site,
    watchdog: &Watchdog,
    tries: u32,
    limit: Duration,
) -> anyhow::Result<Shrunk> {
    let best = Shrunk { sequence: sequence.upto(&report), report, runs: 0 };
    let mut shrinker = Shrinker { site, watchdog, tries, until: Instant::now() + limit, best };
    let mut chunk = shrinker.best.sequence.ops.len().div_ceil(2);
    loop {
        let removed = shrinker.without_chunks(chunk)?;
        if chunk <= 1 && !removed || shrinker.late() {
            break;
        }
        chunk = chunk.div_ceil(2);
    }
    shrinker.round()?;
    Ok(shrinker.best)
}

/// The same line with simpler numbers, one at a time, the simplest first.
fn simpler(line: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for word in line.split_whitespace() {
        // Slots and fills are names, not amounts.
        let Some((name, value)) =
            word.split_once('=').filter(|(n, _)| !["slot", "fill"].contains(n))
        else {
            continue;
        };
        let Ok(n) = number::parse(value) else { continue };
        let numbers = [0, 1, 4096, n & !0xffff, n & !0xfff, n / 2].into_iter();
        let numbers = numbers.filter(|s| *s < n && !(n.is_multiple_of(4096) && *s % 4096 != 0));
        lines.extend(numbers.map(|s| line.replace(word, &format!("{name}={s}"))));
    }
    lines
}

impl Shrinker<'_> {
    fn late(&self) -> bool {
        Instant::now() > self.until
    }

    /// Tries to leave out each chunk, from the end: what fails last is needed most surely, and
    /// what was just before it least.
    fn without_chunks(&mut self, chunk: usize) -> anyhow::Result<bool> {
        let mut removed = false;
        let mut end = self.best.sequence.ops.len();
        while end > 0 && !self.late() {
            let start = end.saturating_sub(chunk);
            let mut candidate = self.best.sequence.clone();
            candidate.ops.drain(start..end.min(candidate.ops.len()));
            removed |= self.fails(&candidate)?;
            end = start.min(self.best.sequence.ops.len());
        }
        Ok(removed)
    }

    /// Makes the numbers of each operation simpler.
    fn round(&mut self) -> anyhow::Result<()> {
        let mut at = 0;
        while at < self.best.sequence.ops.len() && !self.late() {
            let mut changed = false;
            for line in simpler(&self.best.sequence.ops[at].to_string()) {
                let Ok(op) = line.parse() else { continue };
                let mut candidate = self.best.sequence.clone();
                candidate.ops[at] = op;
                changed = self.fails(&candidate)?;
                if changed || self.late() {
                    break;
                }
            }
            at += usize::from(!changed);
        }
        Ok(())
    }

    /// Keeps the candidate if it fails.
    fn fails(&mut self, candidate: &Sequence) -> anyhow::Result<bool> {
        for _ in 0..self.tries.max(1) {
            self.best.runs += 1;
            let report = candidate.run(self.site, self.watchdog)?;
            if report.failure.is_some() {
                self.best.sequence = candidate.upto(&report);
                self.best.report = report;
                return Ok(true);
            }
        }
        Ok(false)
    }
}
