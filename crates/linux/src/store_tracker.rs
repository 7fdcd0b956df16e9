//! The kernel's record of which pages a process has stored to.
//!
//! A userfaultfd in asynchronous write-protect mode never stops anybody: the first store to a
//! watched page only takes a mark off, and `PAGEMAP_SCAN` finds the pages without one and marks
//! them again, both at once. It works on ordinary file mappings and without privileges. The rules
//! of what is reported when are with [`FileMap::scan_stores`](crate::FileMap::scan_stores).

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use linux_raw_sys::general as raw;
use rustix::fs::{Mode, OFlags};

use crate::abi;
use crate::fork::Owner;
use crate::uffd::{Features, UffdError, UffdMode, connect, register};

/// Tracks stores to the [`FileMap`](crate::FileMap)s made with it, any number of them: its two
/// descriptors are the process's, not a map's.
///
/// # Invariants
/// - `uffd` has agreed on `WP_ASYNC`: what is registered for write protection never blocks.
/// - Both descriptors act on the memory of `owner`, in a forked child of it as well.
#[derive(Debug)]
pub struct StoreTracker {
    owner: Owner,
    uffd: OwnedFd,
    pagemap: OwnedFd,
}

/// Regions taken from the kernel in one call.
const BATCH: usize = 512;

impl StoreTracker {
    /// A tracker for this process.
    ///
    /// # Errors
    /// [`UffdError`] names what is missing; `Os` with `ENOTTY` means that the kernel has no
    /// `PAGEMAP_SCAN`.
    pub fn open() -> Result<StoreTracker, UffdError> {
        let os = |call| move |source: io::Error| UffdError::Os { call, source };
        let owner = Owner::current().map_err(os("a page for MADV_WIPEONFORK"))?;
        let features = Features::WP_ASYNC | Features::WP_UNPOPULATED;
        // It never handles a fault, so the mode that needs no privilege will do.
        let modes = [UffdMode::UserOnly, UffdMode::KernelAndUser];
        let (uffd, _, _) = connect(&modes, features, features)?;
        let pagemap =
            rustix::fs::open("/proc/self/pagemap", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|e| os("open(/proc/self/pagemap)")(e.into()))?;
        let tracker = StoreTracker { owner, uffd, pagemap };
        // A scan of nothing: succeeds if the kernel knows the request.
        tracker.scan_some(&(0..0), &mut [], false).map_err(os("ioctl(PAGEMAP_SCAN)"))?;
        Ok(tracker)
    }

    /// Whether it tracks the calling process, and not a parent.
    pub(crate) fn is_ours(&self) -> bool {
        self.owner.is_current()
    }

    /// Watches `range`. Everything in it counts as stored to until it is scanned.
    ///
    /// # Safety
    /// `range` must be a mapping that belongs to the caller, in the process that this is
    /// [ours](StoreTracker::is_ours) in.
    pub(crate) unsafe fn watch(&self, range: Range<usize>) -> io::Result<()> {
        // SAFETY: the mapping is the caller's; in asynchronous mode accesses go on as ever.
        unsafe { register(self.uffd.as_fd(), range, abi::WRITE_PROTECT) }
    }

    /// Calls `stored` for each page range of `range` (addresses) stored to since the last scan, and
    /// watches it anew. What cannot be scanned counts as stored to.
    pub(crate) fn scan(&self, range: Range<usize>, mut stored: impl FnMut(Range<usize>)) {
        let mut regions = vec![raw::page_region { start: 0, end: 0, categories: 0 }; BATCH];
        let mut left = range;
        while !left.is_empty() {
            match self.scan_some(&left, &mut regions, true) {
                Ok((found, walked)) if walked > left.start => {
                    for region in &regions[..found] {
                        stored(region.start as usize..region.end as usize);
                    }
                    left.start = walked;
                }
                // The call may have marked pages anew before it failed, and told nobody.
                _ => {
                    stored(left.clone());
                    return;
                }
            }
        }
    }

    /// One call: how many regions were found, and up to which address.
    fn scan_some(
        &self,
        range: &Range<usize>,
        regions: &mut [raw::page_region],
        watch_anew: bool,
    ) -> io::Result<(usize, usize)> {
        let written = u64::from(raw::PAGE_IS_WRITTEN);
        let flags =
            if watch_anew { raw::PM_SCAN_WP_MATCHING | raw::PM_SCAN_CHECK_WPASYNC } else { 0 };
        let mut argument = raw::pm_scan_arg {
            size: size_of::<raw::pm_scan_arg>() as u64,
            flags: flags.into(),
            start: range.start as u64,
            end: range.end as u64,
            walk_end: 0,
            vec: regions.as_mut_ptr().expose_provenance() as u64,
            vec_len: regions.len() as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: written,
            category_anyof_mask: 0,
            return_mask: written,
        };
        if regions.is_empty() {
            argument.vec = 0;
        }
        // SAFETY: the number goes with the struct (checked in `abi`). The kernel writes at most
        // `vec_len` regions at `vec`, which is exclusively ours for the call (its provenance is
        // exposed). Marking pages changes nothing that anybody can see.
        let found = unsafe { abi::ioctl(self.pagemap.as_fd(), abi::PAGEMAP_SCAN, &mut argument) }?;
        Ok(((found as usize).min(regions.len()), argument.walk_end as usize))
    }
}
