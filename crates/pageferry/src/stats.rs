//! The counters, in one table.

use std::sync::atomic::{AtomicU64, Ordering};

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

/// Names, units, and what they count.
const TABLE: [(&str, &str, &str); 30] = [
    ("pins", "count", "pins granted, those of device faults included"),
    (
        "pinned_bytes",
        "bytes",
        "bytes of these pins, of which those not fetched or zeroed were there",
    ),
    ("fetches", "count", "copies onto the device"),
    ("fetched_bytes", "bytes", "bytes copied onto the device"),
    ("zeroed_bytes", "bytes", "bytes zeroed on the device for overwriting pins"),
    ("writebacks", "count", "copies back into the file"),
    ("written_back_bytes", "bytes", "bytes copied back into the file"),
    ("evictions", "count", "frames taken from one folio for another"),
    ("evicted_bytes", "bytes", "copies dropped by eviction"),
    ("stored_bytes", "bytes", "copies dropped because a mapping of ours was stored to"),
    (
        "distrusts",
        "count",
        "times that all copies of a file were dropped because it changed behind our back",
    ),
    ("distrusted_bytes", "bytes", "copies dropped by that: others may have changed any of them"),
    ("changed_bytes", "bytes", "copies dropped because others may have changed just these pages"),
    (
        "forgotten_bytes",
        "bytes",
        "device-written bytes dropped because the file was cut below them",
    ),
    ("traps", "count", "ranges whose CPU accesses were made to wait"),
    ("touches", "count", "CPU accesses that waited"),
    ("refused_touches", "count", "of those, ended by a signal or EFAULT"),
    ("device_faults", "count", "device page faults on pinned pages (first stores)"),
    ("failed_releases", "count", "dropped pins and views whose write-back failed"),
    ("flusher_runs", "count", "ranges that the flusher found old enough"),
    ("flusher_failures", "count", "of those, not written back yet"),
    ("lost_bytes", "bytes", "device-written bytes that could not be kept at the cache's end"),
    ("unguarded_openers", "count", "times that others were let in though bytes were away"),
    ("live_pins", "count", "pins held now"),
    ("resident_bytes", "bytes", "valid bytes on the device now"),
    ("away_bytes", "bytes", "bytes newer on the device than in the file now"),
    ("used_bytes", "bytes", "device memory in use now"),
    ("memory_bytes", "bytes", "the budget"),
    ("frame_bytes", "bytes", "bytes of a frame"),
    ("record_bytes", "bytes", "host memory of the cache's records (estimate)"),
];

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
        let (e, t) = (core.engine.stats(), &shared.tally);
        let frame = shared.info.frame_bytes;
        let of = |c: &AtomicU64| c.load(Ordering::Relaxed);
        // In the order of the table.
        let values = [
            e.pins,
            e.pinned_bytes,
            e.fetches,
            e.fetched_bytes,
            e.zeroed_bytes,
            e.writebacks,
            e.written_bytes,
            e.evictions,
            e.evicted_bytes,
            e.stored_bytes,
            e.distrusts,
            e.distrusted_bytes,
            e.changed_bytes,
            e.forgotten_bytes,
            e.traps,
            of(&t.touches),
            of(&t.refused_touches),
            of(&t.device_faults),
            of(&t.failed_releases),
            of(&t.flusher_runs),
            of(&t.flusher_failures),
            of(&t.lost_bytes),
            of(&t.unguarded_openers),
            core.engine.live_pins(),
            core.engine.resident_bytes(),
            core.engine.away_bytes(),
            core.engine.frames_used() * frame,
            shared.budget_frames * frame,
            frame,
            core.engine.record_bytes(),
        ];
        let counter = |((name, unit, help), value)| Counter { name, unit, help, value };
        Stats { counters: TABLE.into_iter().zip(values).map(counter).collect() }
    }

    /// From the values of another process's counters, and this one's failed releases.
    pub(crate) fn of(values: &[(String, u64)], failed_releases: u64) -> Stats {
        let value = |name| {
            let value = values.iter().find(|(n, _)| n == name).map(|(_, value)| *value)?;
            Some(if name == "failed_releases" { value + failed_releases } else { value })
        };
        let counter =
            |(name, unit, help)| value(name).map(|value| Counter { name, unit, help, value });
        Stats { counters: TABLE.into_iter().filter_map(counter).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_now_is_a_gauge_and_what_happened_a_counter() {
        for (name, unit, help) in TABLE {
            let counter = Counter { name, unit, help, value: 0 };
            let is_state =
                help.contains(" now") || help == "the budget" || help.contains("of a frame");
            let is_gauge = is_state || name == "record_bytes";
            assert_eq!(counter.grows(), !is_gauge, "{name}");
        }
    }
}
