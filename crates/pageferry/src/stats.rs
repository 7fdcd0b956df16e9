//! The counters, in one table.

use std::sync::atomic::{AtomicU64, Ordering};

use pageferry_engine::Engine;

use crate::Error;
use crate::shared::Shared;

/// One counter or gauge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Stable, snake_case.
    pub name: &'static str,
    /// "bytes", "count".
    pub unit: &'static str,
    /// For people.
    pub help: &'static str,
    /// Its value when the snapshot was taken.
    pub value: u64,
}

impl Counter {
    /// It counts what has happened and never goes back, unlike a gauge, which tells how things are.
    #[must_use]
    pub fn grows(&self) -> bool {
        TABLE[..TABLE.len() - GAUGES].iter().any(|(name, ..)| *name == self.name)
    }
}

/// So many at the end of the table are gauges.
const GAUGES: usize = 7;

/// What the counters are taken from.
struct Facts<'a> {
    shared: &'a Shared,
    engine: &'a Engine<Error>,
}

/// Name, unit, what is counted, and where it is found.
type Row = (&'static str, &'static str, &'static str, fn(&Facts<'_>) -> u64);

const TABLE: [Row; 30] = [
    ("pins", "count", "pins granted, those of device faults included", |f| f.engine.stats().pins),
    (
        "pinned_bytes",
        "bytes",
        "bytes of these pins, of which those not fetched or zeroed were there",
        |f| f.engine.stats().pinned_bytes,
    ),
    ("fetches", "count", "copies onto the device", |f| f.engine.stats().fetches),
    ("fetched_bytes", "bytes", "bytes copied onto the device", |f| f.engine.stats().fetched_bytes),
    ("zeroed_bytes", "bytes", "bytes zeroed on the device for overwriting pins", |f| {
        f.engine.stats().zeroed_bytes
    }),
    ("writebacks", "count", "copies back into the file", |f| f.engine.stats().writebacks),
    ("written_back_bytes", "bytes", "bytes copied back into the file", |f| {
        f.engine.stats().written_bytes
    }),
    ("evictions", "count", "frames taken from one folio for another", |f| {
        f.engine.stats().evictions
    }),
    ("evicted_bytes", "bytes", "copies dropped by eviction", |f| f.engine.stats().evicted_bytes),
    ("stored_bytes", "bytes", "copies dropped because a mapping of ours was stored to", |f| {
        f.engine.stats().stored_bytes
    }),
    (
        "distrusts",
        "count",
        "times that all copies of a file were dropped because it changed behind our back",
        |f| f.engine.stats().distrusts,
    ),
    (
        "distrusted_bytes",
        "bytes",
        "copies dropped by that: others may have changed any of them",
        |f| f.engine.stats().distrusted_bytes,
    ),
    (
        "changed_bytes",
        "bytes",
        "copies dropped because others may have changed just these pages",
        |f| f.engine.stats().changed_bytes,
    ),
    (
        "forgotten_bytes",
        "bytes",
        "device-written bytes dropped because the file was cut below them",
        |f| f.engine.stats().forgotten_bytes,
    ),
    ("traps", "count", "ranges whose CPU accesses were made to wait", |f| f.engine.stats().traps),
    ("touches", "count", "CPU accesses that waited", |f| count(&f.shared.tally.touches)),
    ("refused_touches", "count", "of those, ended by a signal or EFAULT", |f| {
        count(&f.shared.tally.refused_touches)
    }),
    ("device_faults", "count", "device page faults on pinned pages (first stores)", |f| {
        count(&f.shared.tally.device_faults)
    }),
    ("failed_releases", "count", "dropped pins and views whose write-back failed", |f| {
        count(&f.shared.tally.failed_releases)
    }),
    ("flusher_runs", "count", "ranges that the flusher found old enough", |f| {
        count(&f.shared.tally.flusher_runs)
    }),
    ("flusher_failures", "count", "of those, not written back yet", |f| {
        count(&f.shared.tally.flusher_failures)
    }),
    (
        "lost_bytes",
        "bytes",
        "device-written bytes that could not be kept at the cache's end",
        |f| count(&f.shared.tally.lost_bytes),
    ),
    ("unguarded_openers", "count", "times that others were let in though bytes were away", |f| {
        count(&f.shared.tally.unguarded_openers)
    }),
    ("live_pins", "count", "pins held now", |f| f.engine.live_pins()),
    ("resident_bytes", "bytes", "valid bytes on the device now", |f| f.engine.resident_bytes()),
    ("away_bytes", "bytes", "bytes newer on the device than in the file now", |f| {
        f.engine.away_bytes()
    }),
    ("used_bytes", "bytes", "device memory in use now", |f| {
        f.engine.frames_used() * f.shared.info.frame_bytes
    }),
    ("memory_bytes", "bytes", "the budget", |f| f.shared.budget_frames * f.shared.info.frame_bytes),
    ("frame_bytes", "bytes", "bytes of a frame", |f| f.shared.info.frame_bytes),
    ("record_bytes", "bytes", "host memory of the cache's records (estimate)", |f| {
        f.engine.record_bytes()
    }),
];

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// A snapshot of a cache's counters.
#[derive(Clone, Debug)]
pub struct Stats {
    counters: Vec<Counter>,
}

impl Stats {
    /// All of them, in the table's order.
    #[must_use]
    pub fn counters(&self) -> &[Counter] {
        &self.counters
    }

    /// The value of one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        self.counters.iter().find(|c| c.name == name).map(|c| c.value)
    }

    pub(crate) fn take(shared: &Shared) -> Stats {
        if shared.not_forked().is_err() {
            return Stats { counters: Vec::new() };
        }
        let core = shared.core.lock();
        let facts = Facts { shared, engine: &core.engine };
        let counter = |(name, unit, help, of): Row| Counter { name, unit, help, value: of(&facts) };
        Stats { counters: TABLE.into_iter().map(counter).collect() }
    }

    /// From the values of another process's counters, and this one's failed releases.
    pub(crate) fn of(values: &[(String, u64)], failed_releases: u64) -> Stats {
        let value = |name| {
            let value = values.iter().find(|(n, _)| n == name).map(|(_, value)| *value)?;
            Some(if name == "failed_releases" { value + failed_releases } else { value })
        };
        let counter = |(name, unit, help, _): Row| {
            value(name).map(|value| Counter { name, unit, help, value })
        };
        Stats { counters: TABLE.into_iter().filter_map(counter).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_now_is_a_gauge_and_what_happened_a_counter() {
        for (name, unit, help, _) in TABLE {
            let counter = Counter { name, unit, help, value: 0 };
            let is_state =
                help.contains(" now") || help == "the budget" || help.contains("of a frame");
            let is_gauge = is_state || name == "record_bytes";
            assert_eq!(counter.grows(), !is_gauge, "{name}");
        }
    }
}
