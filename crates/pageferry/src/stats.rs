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
        let table: [(&str, &str, u64, &str); 29] = [
            ("pins", "count", e.pins, "pins granted, those of device faults included"),
            ("fetches", "count", e.fetches, "copies onto the device"),
            ("fetched_bytes", "bytes", e.fetched_bytes, "bytes copied onto the device"),
            (
                "zeroed_bytes",
                "bytes",
                e.zeroed_bytes,
                "bytes zeroed on the device for overwriting pins",
            ),
            ("writebacks", "count", e.writebacks, "copies back into the file"),
            ("written_back_bytes", "bytes", e.written_bytes, "bytes copied back into the file"),
            ("evictions", "count", e.evictions, "frames taken from one folio for another"),
            ("evicted_bytes", "bytes", e.evicted_bytes, "copies dropped by eviction"),
            (
                "stored_bytes",
                "bytes",
                e.stored_bytes,
                "copies dropped because a mapping of ours was stored to",
            ),
            (
                "distrusts",
                "count",
                e.distrusts,
                "times that all copies of a file were dropped because it changed behind our back",
            ),
            (
                "distrusted_bytes",
                "bytes",
                e.distrusted_bytes,
                "copies dropped by that: others may have changed any of them",
            ),
            (
                "changed_bytes",
                "bytes",
                e.changed_bytes,
                "copies dropped because others may have changed just these pages",
            ),
            (
                "forgotten_bytes",
                "bytes",
                e.forgotten_bytes,
                "device-written bytes dropped because the file was cut below them",
            ),
            ("traps", "count", e.traps, "ranges whose CPU accesses were made to wait"),
            ("touches", "count", of(&t.touches), "CPU accesses that waited"),
            (
                "refused_touches",
                "count",
                of(&t.refused_touches),
                "of those, ended by a signal or EFAULT",
            ),
            (
                "device_faults",
                "count",
                of(&t.device_faults),
                "device page faults on pinned pages (first stores)",
            ),
            (
                "failed_releases",
                "count",
                of(&t.failed_releases),
                "dropped pins and views whose write-back failed",
            ),
            (
                "flusher_runs",
                "count",
                of(&t.flusher_runs),
                "ranges that the flusher found old enough",
            ),
            (
                "flusher_failures",
                "count",
                of(&t.flusher_failures),
                "of those, not written back yet",
            ),
            (
                "lost_bytes",
                "bytes",
                of(&t.lost_bytes),
                "device-written bytes that could not be kept at the cache's end",
            ),
            (
                "unguarded_openers",
                "count",
                of(&t.unguarded_openers),
                "times that others were let in though bytes were away",
            ),
            ("live_pins", "count", core.engine.live_pins(), "pins held now"),
            (
                "resident_bytes",
                "bytes",
                core.engine.resident_bytes(),
                "valid bytes on the device now",
            ),
            (
                "away_bytes",
                "bytes",
                core.engine.away_bytes(),
                "bytes newer on the device than in the file now",
            ),
            ("used_bytes", "bytes", core.engine.frames_used() * frame, "device memory in use now"),
            ("memory_bytes", "bytes", shared.budget_frames * frame, "the budget"),
            ("frame_bytes", "bytes", frame, "bytes of a frame"),
            (
                "record_bytes",
                "bytes",
                core.engine.record_bytes(),
                "host memory of the cache's records (estimate)",
            ),
        ];
        let counter = |(name, unit, value, help)| Counter { name, unit, help, value };
        Stats { counters: table.into_iter().map(counter).collect() }
    }
}
