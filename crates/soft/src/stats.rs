//! Counters.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the device has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoftStats {
    /// Copies into device memory.
    pub copies_in: u64,
    /// Bytes of them.
    pub bytes_in: u64,
    /// Copies out of device memory.
    pub copies_out: u64,
    /// Bytes of them.
    pub bytes_out: u64,
    /// Faults of kernels on pages that were not present.
    pub faults_not_present: u64,
    /// Faults of kernels' stores on read-only pages.
    pub faults_read_only: u64,
    /// Launches.
    pub launches: u64,
    /// Groups run.
    pub groups: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) copies_in: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) copies_out: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) faults_not_present: AtomicU64,
    pub(crate) faults_read_only: AtomicU64,
    pub(crate) launches: AtomicU64,
    pub(crate) groups: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> SoftStats {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        SoftStats {
            copies_in: get(&self.copies_in),
            bytes_in: get(&self.bytes_in),
            copies_out: get(&self.copies_out),
            bytes_out: get(&self.bytes_out),
            faults_not_present: get(&self.faults_not_present),
            faults_read_only: get(&self.faults_read_only),
            launches: get(&self.launches),
            groups: get(&self.groups),
        }
    }
}
