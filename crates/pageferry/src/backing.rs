//! One file as the cache holds it: its private description and its device address space.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::sync::{Mutex, RwLock};
use pageferry_device::{Device, DeviceAddr, DeviceError};
use pageferry_engine::FileKey;
use pageferry_linux::HostFile;

/// A file behind a cache.
pub(crate) struct Backing {
    pub(crate) key: FileKey,
    /// For messages.
    pub(crate) name: String,
    /// Replaced under the cache's table lock: by a writable description when the file is opened for writing later, and
    /// by another when somebody has this one who may not have it any longer.
    io: RwLock<Arc<HostFile>>,
    /// Device address regions by number: the file's bytes `[n, n+1) * region_bytes`.
    regions: Mutex<BTreeMap<u64, DeviceAddr>>,
    region_bytes: u64,
    /// Rises when a folio loses its frame.
    pub(crate) layout: AtomicU64,
    /// Handles (`File`s) that are open. Guarded by the cache's table lock.
    pub(crate) handles: Mutex<usize>,
}

impl Backing {
    pub(crate) fn new(key: FileKey, name: String, io: Arc<HostFile>, region_bytes: u64) -> Backing {
        Backing {
            key,
            name,
            io: RwLock::new(io),
            regions: Mutex::new(BTreeMap::new()),
            region_bytes,
            layout: AtomicU64::new(0),
            handles: Mutex::new(0),
        }
    }

    pub(crate) fn io(&self) -> Arc<HostFile> {
        self.io.read().clone()
    }

    /// Another description takes over from `old`; `false`: one has already.
    pub(crate) fn replace(&self, old: &Arc<HostFile>, new: &Arc<HostFile>) -> bool {
        let mut current = self.io.write();
        let same = Arc::ptr_eq(&current, old);
        if same {
            *current = Arc::clone(new);
        }
        same
    }

    /// The device address of a byte, reserving its region if need be.
    pub(crate) fn reserve(&self, device: &dyn Device, at: u64) -> Result<DeviceAddr, DeviceError> {
        let mut regions = self.regions.lock();
        let region = at / self.region_bytes;
        let base = match regions.get(&region) {
            Some(base) => *base,
            None => {
                let base = device.reserve_region()?;
                regions.insert(region, base);
                base
            }
        };
        Ok(base.offset(at % self.region_bytes))
    }

    /// The device address of a byte whose region is reserved.
    pub(crate) fn addr(&self, at: u64) -> Option<DeviceAddr> {
        let base = self.regions.lock().get(&(at / self.region_bytes)).copied();
        base.map(|b| b.offset(at % self.region_bytes))
    }

    /// The pieces of a range that lie in one reserved region each, with their addresses.
    pub(crate) fn pieces(&self, range: &Range<u64>) -> Vec<(DeviceAddr, Range<u64>)> {
        let regions = self.regions.lock();
        let (first, last) = (range.start / self.region_bytes, range.end / self.region_bytes);
        regions
            .range(first..=last)
            .filter_map(|(&region, base)| {
                let start = range.start.max(region * self.region_bytes);
                let end = range.end.min((region + 1).saturating_mul(self.region_bytes));
                let at = start % self.region_bytes;
                (start < end).then(|| (base.offset(at), start..end))
            })
            .collect()
    }

    /// Gives the address space back; every frame must be detached.
    pub(crate) fn release_regions(&self, device: &dyn Device) {
        for (_, base) in std::mem::take(&mut *self.regions.lock()) {
            device.release_region(base);
        }
    }
}
