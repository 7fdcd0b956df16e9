//! Mappings as the engine of this process keeps them coherent.

use std::ops::Range;
use std::sync::Arc;

use pageferry_engine::{MapKey, Request};
use pageferry_linux::{FileMap, StoreTracker, UffdError};

use super::{Embedded, Opening};
use crate::backing::Backing;
use crate::error::os_error;
use crate::map::{MapService, Mapped};
use crate::perform::map_error;
use crate::shared::Shared;
use crate::{Error, Result, Wait};

impl Shared {
    /// One tracker for all mappings; `None` where the kernel has none.
    fn store_tracker(&self) -> Result<Option<Arc<StoreTracker>>> {
        let mut tracker = self.tracker.lock();
        if let Some(tracker) = &*tracker {
            return Ok(Some(Arc::clone(tracker)));
        }
        match StoreTracker::open() {
            Ok(opened) => Ok(Some(Arc::clone(tracker.insert(Arc::new(opened))))),
            // No descriptors are left: that passes, and is no reason to go without for ever.
            Err(UffdError::Os { call, source })
                if matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) =>
            {
                Err(os_error(call, &source))
            }
            Err(_) => Ok(None),
        }
    }

    pub(crate) fn mapped(&self, map: MapKey) -> Result<Arc<Mapped>> {
        let gone = || Error::InvalidArgument("the mapping is gone".into());
        self.maps.read().get(&map).cloned().ok_or_else(gone)
    }
}

/// A mapping that the engine knows.
struct Mapping {
    cache: Arc<Embedded>,
    backing: Arc<Backing>,
    mapped: Arc<Mapped>,
}

impl Opening {
    /// Maps whole pages and tells the engine.
    pub(super) fn map_in(&self, whole: Range<u64>, writable: bool) -> Result<Box<dyn MapService>> {
        let (shared, backing) = (&self.cache.shared, &self.backing);
        shared.not_forked()?;
        let len = usize::try_from(whole.end - whole.start)
            .map_err(|_| Error::InvalidArgument("the range exceeds the address space".into()))?;
        let uffd = shared.trap_events()?;
        let io = backing.io();
        let tracker = if writable { shared.store_tracker()? } else { None };
        let map = match &tracker {
            Some(tracker) => FileMap::tracked(&io, whole.start, len, writable, tracker),
            None => FileMap::new(&io, whole.start, len, writable),
        };
        let map = map.map_err(map_error)?;
        // Where the device has copies, stores are tracked from the start: nobody knows the address
        // yet, so what the first scan reports is none. Elsewhere the mapping stays a plain one
        // until the range is pinned.
        let frame = shared.info.frame_bytes;
        let resident = shared.core.lock().engine.resident_folios(backing.key, &whole);
        for folio in resident {
            let from = (folio * frame).max(whole.start) - whole.start;
            let to = ((folio + 1) * frame).min(whole.end) - whole.start;
            map.scan_stores(from as usize..to as usize).map_err(map_error)?;
        }
        let key = shared.fresh_map_key();
        let mapped = Arc::new(Mapped::new(backing.key, map, key, uffd));
        shared.maps.write().insert(key, Arc::clone(&mapped));
        let request =
            Request::MapIn { file: backing.key, map: key, range: whole.clone(), writable };
        if let Err(refusal) = shared.request(request, Wait::Block) {
            shared.maps.write().remove(&key);
            return Err(shared.explain(refusal, &whole, Wait::Block));
        }
        let (cache, backing) = (Arc::clone(&self.cache), Arc::clone(backing));
        Ok(Box::new(Mapping { cache, backing, mapped }))
    }
}

impl MapService for Mapping {
    fn mapped(&self) -> &Arc<Mapped> {
        &self.mapped
    }

    fn touch(&self, range: Range<u64>) -> Result<()> {
        let (shared, file) = (&self.cache.shared, self.backing.key);
        shared.not_forked()?;
        loop {
            let trapped = shared.core.lock().engine.first_trapped(file, self.mapped.key(), &range);
            let Some(at) = trapped else { return Ok(()) };
            shared
                .request(Request::Touch { file, at }, Wait::Block)
                .map_err(|r| shared.explain(r, &(at..at + 1), Wait::Block))?;
        }
    }

    fn end(&self) -> Result<()> {
        let shared = &self.cache.shared;
        let request = Request::MapOut { file: self.mapped.file, map: self.mapped.key() };
        let range = self.mapped.range();
        match shared.request(request, Wait::Block) {
            Ok(_) => Ok(()),
            Err(refusal) => Err(shared.explain(refusal, &range, Wait::Block)),
        }
    }
}
