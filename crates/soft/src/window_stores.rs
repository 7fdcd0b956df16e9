//! Accesses of a window that has copies of its own.
//!
//! The kernel copies a page at its first store, but not atomically: the device may be writing to it.
//! So the first store reads the page by its stamp, and then stores all of it. From then on the page is
//! this process's own, and only its threads have to be kept apart, by locks of this process.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use pageferry_device::PAGE_BYTES;
use parking_lot::RwLock;

use crate::stamp::Unread;
use crate::window_map::WindowMap;

/// Pages share locks; so many that threads on different pages seldom meet.
const LOCKS: u64 = 64;
const BITS: u64 = u64::BITS as u64;

/// # Invariants
/// - The bit of a page is set only if this process has a copy of it, all of which was stored at once;
///   it is changed under the page's lock, or while nobody accesses the window.
pub(crate) struct Stores {
    locks: Box<[RwLock<()>]>,
    copied: Box<[AtomicU64]>,
}

impl Stores {
    pub(crate) fn new(pages: u64) -> Stores {
        Stores {
            locks: (0..LOCKS).map(|_| RwLock::new(())).collect(),
            copied: (0..pages.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn lock(&self, page: u64) -> &RwLock<()> {
        &self.locks[(page % LOCKS) as usize]
    }

    /// Relaxed: the page's lock orders it.
    fn is_copied(&self, page: u64) -> bool {
        self.copied[(page / BITS) as usize].load(Ordering::Relaxed) & 1 << (page % BITS) != 0
    }

    /// By the one who holds the window's table exclusively: these pages are the device's again.
    pub(crate) fn forget(&self, pages: Range<u64>) {
        for page in pages {
            self.copied[(page / BITS) as usize].fetch_and(!(1 << (page % BITS)), Ordering::Relaxed);
        }
    }

    /// Copies out bytes of one attached page.
    pub(crate) fn load(&self, map: &WindowMap, at: u64, to: &mut [u8]) -> Result<(), Unread> {
        let page = at / PAGE_BYTES;
        let _lock = self.lock(page).read();
        if !self.is_copied(page) {
            return map.read_page(at, to);
        }
        if !map.is_present(at) {
            return Err(Unread::NotPresent);
        }
        map.read(at, to);
        Ok(())
    }

    /// Copies out bytes of one attached page that this process has a copy of.
    pub(crate) fn load_own(&self, map: &WindowMap, at: u64, to: &mut [u8]) {
        let _lock = self.lock(at / PAGE_BYTES).read();
        map.read(at, to);
    }

    /// Copies in bytes of one attached page.
    pub(crate) fn store(&self, map: &WindowMap, at: u64, bytes: &[u8]) -> Result<(), Unread> {
        let page = at / PAGE_BYTES;
        let _lock = self.lock(page).write();
        if self.is_copied(page) {
            if !map.is_present(at) {
                return Err(Unread::NotPresent);
            }
            map.write(at, bytes);
            return Ok(());
        }
        let start = page * PAGE_BYTES;
        let mut whole = [0; PAGE_BYTES as usize];
        map.read_page(start, &mut whole)?;
        whole[(at - start) as usize..][..bytes.len()].copy_from_slice(bytes);
        map.write(start, &whole);
        self.copied[(page / BITS) as usize].fetch_or(1 << (page % BITS), Ordering::Relaxed);
        Ok(())
    }
}
