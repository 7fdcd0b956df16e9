//! Mappings as the engine of this process keeps them coherent.

use std::ops::Range;
use std::sync::Arc;

use pageferry_engine::{FileKey, MapKey, Owner, Request};

use super::{Embedded, Opening};
use crate::backing::Backing;
use crate::map::{AnyMap, MapService, Mapped, Trappable};
use crate::shared::Shared;
use crate::{Error, Result, Wait};

impl Shared {
    fn map_out(&self, file: FileKey, map: MapKey, range: &Range<u64>) -> Result<()> {
        match self.request(Request::MapOut { file, map }, Wait::Block) {
            Ok(_) => Ok(()),
            Err(refusal) => Err(self.explain(refusal, range, Wait::Block)),
        }
    }

    pub(crate) fn mapped(&self, map: MapKey) -> Result<AnyMap> {
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
        let uffd = shared.trap_events()?;
        // Its stores move the file's times, by which others are judged until now.
        shared.guards.look(backing.key, u64::MAX)?;
        let map = shared.tracker.map(&backing.io(), &whole, writable)?;
        // Where the device has copies, stores are tracked from the start: nobody knows the address
        // yet, so what the first scan reports is none. Elsewhere the mapping stays a plain one
        // until the range is pinned.
        let key = shared.fresh_map_key();
        let mapped = Arc::new(Mapped::new(backing.key, map, key, uffd));
        self.track_stores(&*mapped, &whole)?;
        self.add_map(key, AnyMap::Here(Arc::clone(&mapped)), whole, writable)?;
        let (cache, backing) = (Arc::clone(&self.cache), Arc::clone(backing));
        Ok(Box::new(Mapping { cache, backing, mapped }))
    }

    /// Has stores tracked where the device has copies.
    fn track_stores(&self, map: &dyn Trappable, whole: &Range<u64>) -> Result<()> {
        let shared = &self.cache.shared;
        let frame = shared.info.frame_bytes;
        let resident = shared.core.lock().engine.resident_folios(self.backing.key, whole);
        for folio in resident {
            let (from, to) = (folio * frame, (folio + 1) * frame);
            map.scan_stores(&(from.max(whole.start)..to.min(whole.end)))?;
        }
        Ok(())
    }

    /// Tells the engine of a mapping, which is trapped where it must be when this returns.
    fn add_map(&self, key: MapKey, map: AnyMap, whole: Range<u64>, writable: bool) -> Result<()> {
        let shared = &self.cache.shared;
        shared.maps.write().insert(key, map);
        let file = self.backing.key;
        let request = Request::MapIn { file, map: key, range: whole.clone(), writable };
        if let Err(refusal) = shared.request(request, Wait::Block) {
            shared.maps.write().remove(&key);
            return Err(shared.explain(refusal, &whole, Wait::Block));
        }
        Ok(())
    }

    /// As [`map_in`](Self::map_in), of a mapping that another process has.
    pub(crate) fn map_in_another(
        &self,
        map: Arc<dyn Trappable>,
        whole: Range<u64>,
        writable: bool,
    ) -> Result<MapKey> {
        let shared = &self.cache.shared;
        let key = shared.fresh_map_key();
        // Its stores move the file's times, by which others are judged until now.
        shared.guards.look(self.backing.key, u64::MAX)?;
        self.track_stores(&*map, &whole)?;
        self.add_map(key, AnyMap::There(map), whole, writable)?;
        Ok(key)
    }

    /// Brings home the page of a byte, which an access through a mapping waits for. If it never may, and the access
    /// can only be expelled, that is done.
    pub(crate) fn touch(&self, map: MapKey, at: u64, owner: Owner, expel: bool) -> Result<()> {
        let (shared, file) = (&self.cache.shared, self.backing.key);
        let touch = Request::Touch { file, at };
        let touched = shared.request_as(touch, self.caller(owner), Wait::Block, None);
        let Err(refusal) = touched else { return Ok(()) };
        let range = at..at.saturating_add(1);
        if expel {
            let expelled = shared.request(Request::Expel { file, map, at }, Wait::Block);
            expelled.map_err(|r| shared.explain(r, &range, Wait::Block))?;
        }
        Err(shared.explain(refusal, &range, Wait::Block))
    }

    /// A mapping goes; the engine learns of its last stores.
    pub(crate) fn map_out(&self, map: MapKey, range: &Range<u64>) -> Result<()> {
        self.cache.shared.map_out(self.backing.key, map, range)
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
        let Mapping { cache, mapped, .. } = self;
        cache.shared.map_out(mapped.file, mapped.key(), &mapped.range())
    }
}
