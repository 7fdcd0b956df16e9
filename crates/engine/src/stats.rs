//! Counters.

use crate::Engine;

/// What the engine has counted since it was made, and what it holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Pins granted.
    pub pins: u64,
    /// Bytes of them.
    pub pinned_bytes: u64,
    /// Copies onto the device.
    pub fetches: u64,
    /// Bytes of them.
    pub fetched_bytes: u64,
    /// Bytes zeroed on the device instead of fetched.
    pub zeroed_bytes: u64,
    /// Write-backs.
    pub writebacks: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Frames taken from one folio for another.
    pub evictions: u64,
    /// Bytes of copies dropped, by eviction or on request.
    pub evicted_bytes: u64,
    /// Bytes of copies dropped because a mapping of ours was stored to.
    pub stored_bytes: u64,
    /// Times that all copies of a file were dropped because it changed behind our back.
    pub distrusts: u64,
    /// Bytes of copies dropped by that.
    pub distrusted_bytes: u64,
    /// Bytes of copies dropped because others may have changed just these pages.
    pub changed_bytes: u64,
    /// Ranges whose CPU accesses were made to wait.
    pub traps: u64,
    /// Device-written bytes dropped because the file was cut below them.
    pub forgotten_bytes: u64,
}

impl<E: Clone> Engine<E> {
    /// The counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Valid bytes on the device, of all files.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.files.values().map(|f| f.pages.resident_bytes()).sum()
    }

    /// Dirty bytes on the device, of all files.
    #[must_use]
    pub fn away_bytes(&self) -> u64 {
        let runs = self.files.values().flat_map(|f| f.pages.dirty_runs(&(0..u64::MAX)));
        runs.map(|r| r.end - r.start).sum()
    }

    /// Live pins.
    #[must_use]
    pub fn live_pins(&self) -> u64 {
        self.pin_files.len() as u64
    }

    /// Bytes of host memory that the records take (estimate).
    #[must_use]
    pub fn record_bytes(&self) -> u64 {
        self.files.values().map(|f| f.pages.record_bytes() + 48 * f.heat.len() as u64).sum::<u64>()
            + self.queues.record_bytes()
    }
}
