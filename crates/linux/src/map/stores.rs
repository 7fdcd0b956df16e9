//! Which pages of a map this process has stored to.
//!
//! Seen on 6.18, on ext4 and tmpfs, also as an ordinary user:
//!
//! | state of a page | reported |
//! |---|---|
//! | never scanned; populated, only read, or never touched | stored to |
//! | scanned ("armed"), then read, or mapped by readahead, or reclaimed | no |
//! | armed, then stored to, also by `read(2)` into it or `process_vm_writev` (once it is over) | stored to |
//! | the same, then reclaimed, unmapped, punched out of the file, cut off | stored to, still |
//! | armed, then written with `pwrite`, punched, cut off by truncate, by anybody | no |
//! | away | no (nothing can be stored) |
//! | came home since the last scan, stored to or not | stored to |
//!
//! So nothing is missed: what the kernel has no mark for counts as stored to, and a mark outlives
//! the page it was made for. A range is registered by its first scan, not before: in a registered
//! range the kernel maps pages one by one (no fault-around; a first load then costs a microsecond
//! instead of twenty nanoseconds a page), and arming writes a mark for every page, 2.5 ms and 2 MiB
//! of page tables a GiB. Only ranges that are used should pay; and whoever uses a range for the
//! first time has to read all of it anyway. Scan
//! first, read then: a store in between shows in the next scan.
//!
//! **What is not found.** The mark is taken off when a page is made writable for a store, not when
//! the store is made. A system call that *pins* pages does the first for all of them and the second
//! later, without the page tables: a scan in between reports the page, and what is stored then is
//! reported to nobody. [`FileMap::copy_in`] is such a call inside, and shuts scans out. Those of the
//! program's own are a window that only the program can close: a `read(2)` with `O_DIRECT` into the
//! map, buffers registered with io_uring, pages given to `vmsplice`, another process's
//! `process_vm_writev`, RDMA.

use std::ops::Range;
use std::sync::Arc;

use super::{FileMap, MapError, Shape};
use crate::store_tracker::StoreTracker;

/// What a scan for stores found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredPages {
    /// Exactly these page ranges of the map may have been stored to by this process: ascending,
    /// disjoint.
    Known(Vec<Range<usize>>),
    /// The map is not tracked: anything may have been stored to.
    Unknown,
}

impl FileMap {
    /// The pages of `range` that this process has stored to since the last scan of them, which are
    /// watched anew from the very moment at which they are found: a concurrent store is in this
    /// scan or in the next.
    ///
    /// Stores by other processes, and writes that do not go through this map, are not reported.
    ///
    /// # Errors
    /// A bad range. Failures of the scan itself are reported as stores.
    pub fn scan_stores(&self, range: Range<usize>) -> Result<StoredPages, MapError> {
        self.check_pages(&range)?;
        let Some(tracker) = &self.tracker else { return Ok(StoredPages::Unknown) };
        if !self.writable {
            return Ok(StoredPages::Known(Vec::new()));
        }
        let mut shape = self.shape.write();
        let mut found = Found::default();
        for part in shape.loose.within(range.clone()) {
            // SAFETY: part of this map's file mapping; only tracked from now on, and not hindered.
            if unsafe { tracker.watch(self.addresses(&part)) }.is_ok() {
                shape.loose.remove(part);
            }
        }
        let base = self.base.addr().get();
        for part in shape.away.gaps(range) {
            for loose in shape.loose.within(part.clone()) {
                found.0.push(loose);
            }
            for watched in shape.loose.gaps(part) {
                let stored = |r: Range<usize>| found.0.push(r.start - base..r.end - base);
                tracker.scan(self.addresses(&watched), stored);
            }
        }
        Ok(StoredPages::Known(found.sorted()))
    }

    /// Notes that a part has been mapped anew, unwatched.
    pub(super) fn lost_track(&self, shape: &mut Shape, part: Range<usize>) {
        if self.tracker.is_some() && self.writable {
            shape.loose.insert(part);
        }
    }
}

/// Ranges found, in the order of finding.
#[derive(Default)]
struct Found(Vec<Range<usize>>);

impl Found {
    /// Ascending, touching ones joined.
    fn sorted(mut self) -> Vec<Range<usize>> {
        self.0.sort_unstable_by_key(|r| r.start);
        self.0.dedup_by(|next, kept| {
            let joins = next.start <= kept.end;
            if joins {
                kept.end = kept.end.max(next.end);
            }
            joins
        });
        self.0
    }
}

impl FileMap {
    /// The tracker of this map's stores.
    #[must_use]
    pub fn tracker(&self) -> Option<&Arc<StoreTracker>> {
        self.tracker.as_ref()
    }
}
