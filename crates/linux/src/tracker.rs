//! Which pages of our own mappings were stored to.
//!
//! userfaultfd's write protection in asynchronous mode, asked through `PAGEMAP_SCAN`. What was found
//! on Linux 6.18, each by a test below:
//! - Before a range is first scanned, all of it reports as stored to, populated or not.
//! - A scan that re-protects also protects pages that are not there (`WP_UNPOPULATED`): a first store
//!   to them is reported, a first load is not. The protection survives reclaim.
//! - A new mapping over a part (which is how a trap is lifted) is not registered; stores to it until
//!   it is registered and scanned once are unseen. So its owner must take it as stored to till then.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use linux_raw_sys::general as raw;

use crate::uffd;

/// A context that marks stores, and the process's page map to read the marks from.
#[derive(Debug)]
pub struct StoreTracker {
    uffd: OwnedFd,
    pagemap: OwnedFd,
}

/// `PAGEMAP_SCAN`: `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u32 = 0xC000_0000 | (size_of::<raw::pm_scan_arg>() as u32) << 16 | 0x6610;
const _: () = assert!(size_of::<raw::pm_scan_arg>() == 96);
const _: () = assert!(PAGEMAP_SCAN == 0xC060_6610);
const REGIONS: usize = 512;

impl StoreTracker {
    /// Opens one; needs no privileges.
    ///
    /// # Errors
    /// The system's: kernels before 6.7 lack it.
    pub fn open() -> io::Result<StoreTracker> {
        let (fd, _) = uffd::create().map_err(io::Error::other)?;
        let features = raw::UFFD_FEATURE_WP_ASYNC | raw::UFFD_FEATURE_WP_UNPOPULATED;
        uffd::handshake(&fd, features.into())?;
        let pagemap = std::fs::File::open("/proc/self/pagemap")?.into();
        Ok(StoreTracker { uffd: fd, pagemap })
    }

    /// Begins to track a range; all of it counts as stored to until the first scan.
    pub(crate) fn register(&self, addr: usize, len: usize) -> io::Result<()> {
        let mode = 2; // UFFDIO_REGISTER_MODE_WP
        uffd::register(&self.uffd, addr, len, mode)
    }

    /// The addresses of pages stored to since the last scan; protects them again in the same step.
    pub(crate) fn scan(&self, addrs: Range<usize>) -> io::Result<Vec<Range<usize>>> {
        let mut found: Vec<Range<usize>> = Vec::new();
        let mut regions = vec![raw::page_region { start: 0, end: 0, categories: 0 }; REGIONS];
        let mut at = addrs.start as u64;
        while at < addrs.end as u64 {
            let written = u64::from(raw::PAGE_IS_WRITTEN);
            let mut arg = raw::pm_scan_arg {
                size: size_of::<raw::pm_scan_arg>() as u64,
                flags: u64::from(raw::PM_SCAN_WP_MATCHING | raw::PM_SCAN_CHECK_WPASYNC),
                start: at,
                end: addrs.end as u64,
                walk_end: 0,
                vec: regions.as_mut_ptr() as u64,
                vec_len: REGIONS as u64,
                max_pages: 0,
                category_inverted: 0,
                category_mask: written,
                category_anyof_mask: 0,
                return_mask: written,
            };
            // SAFETY: `arg` is the struct of this request, and `vec` has room for `vec_len` regions.
            let n = unsafe {
                libc::ioctl(
                    self.pagemap.as_raw_fd(),
                    PAGEMAP_SCAN as _,
                    std::ptr::from_mut(&mut arg),
                )
            };
            let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
            for region in &regions[..n] {
                let (start, end) = (region.start as usize, region.end as usize);
                match found.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => found.push(start..end),
                }
            }
            if arg.walk_end <= at {
                return Err(io::Error::other("PAGEMAP_SCAN made no progress"));
            }
            at = arg.walk_end;
        }
        Ok(found)
    }
}
