//! Advice, residency and synchronisation of mapped pages.

use std::io;
use std::ops::Range;

use rustix::mm::{Advice as Madvise, MsyncFlags, madvise, msync};

use super::{FileMap, MapError};

/// How a range is going to be used. None of these changes what any access yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Advice {
    /// In no particular way.
    Normal,
    /// Here and there: no readahead.
    Random,
    /// From start to end: much readahead.
    Sequential,
    /// Soon: read it from storage now, in the background.
    WillNeed,
    /// Not soon: unmap and reclaim its pages now.
    PageOut,
}

impl FileMap {
    /// Tells the kernel how `range` is going to be used. Where the range is away it has no lasting
    /// effect: `Normal`, `Random` and `Sequential` would split placeholders off and are forgotten
    /// when the range comes home.
    ///
    /// # Errors
    /// A bad range, or the kernel's refusal.
    pub fn advise(&self, range: Range<usize>, advice: Advice) -> Result<(), MapError> {
        self.check_pages(&range)?;
        let advice = match advice {
            Advice::Normal => Madvise::Normal,
            Advice::Random => Madvise::Random,
            Advice::Sequential => Madvise::Sequential,
            Advice::WillNeed => Madvise::WillNeed,
            Advice::PageOut => Madvise::LinuxPageOut,
        };
        let shape = self.shape.write();
        for part in shape.away.gaps(range) {
            // SAFETY: none of these advices changes the contents of a shared file mapping.
            unsafe { madvise(self.at(part.start).cast(), part.len(), advice) }
                .map_err(|e| MapError::of("madvise", e))?;
        }
        Ok(())
    }

    /// Which pages of `range` are in the page cache, one entry a page. Pages that are away count as
    /// not resident. The kernel tells the truth only about files that one owns or may write; it
    /// says "resident" of all pages of others.
    ///
    /// # Errors
    /// A bad range, or the kernel's refusal.
    pub fn residency(&self, range: Range<usize>) -> Result<Vec<bool>, MapError> {
        self.check_pages(&range)?;
        let mut pages = vec![0_u8; range.len() / crate::page_bytes()];
        // SAFETY: reads no memory of the range; the vector has one byte for each of its pages.
        let rc =
            unsafe { libc::mincore(self.at(range.start).cast(), range.len(), pages.as_mut_ptr()) };
        if rc != 0 {
            return Err(MapError::Os { call: "mincore", source: io::Error::last_os_error() });
        }
        Ok(pages.into_iter().map(|page| page & 1 != 0).collect())
    }

    /// Writes the dirty pages of `range` to storage and waits if `wait`; otherwise does next to
    /// nothing, as Linux writes them back in its own time anyway. Pages that are away are not
    /// concerned.
    ///
    /// # Errors
    /// A bad range, or `EIO`, `ENOSPC` of the write-back.
    pub fn msync(&self, range: Range<usize>, wait: bool) -> Result<(), MapError> {
        self.check_pages(&range)?;
        let flags = if wait { MsyncFlags::SYNC } else { MsyncFlags::ASYNC };
        // SAFETY: synchronising changes no contents.
        unsafe { msync(self.at(range.start).cast(), range.len(), flags) }
            .map_err(|e| MapError::of("msync", e))
    }
}
