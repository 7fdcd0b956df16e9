//! What only a cache can do.

use std::ops::Range;

use super::pins::store_grain;
use super::{Done, World, unexpected};
use crate::difference::Step;
use crate::op::{Act, By, Mode};
use crate::ranges::{clip, overlap, pages};
use crate::rng::{Rng, fill_bytes};
use crate::settings::Sabotage;

impl World {
    pub(super) fn act(&mut self, act: &Act) -> Step<Done> {
        let span = |at: u64, len: u64| at..at.saturating_add(len);
        match *act {
            Act::Pin { slot, at, len, mode } => self.pin(slot, span(at, len), mode),
            Act::DeviceLoad { slot, at, len } => self.device_load(slot, &span(at, len)),
            Act::DeviceStore { slot, at, len, fill } => {
                self.device_store(slot, &span(at, len), fill)
            }
            Act::Release { slot, keep } => self.release(slot, keep),
            Act::See { at, len } => {
                let range = clip(&span(at, len), &(0..self.size));
                Ok(if self.see(&range)? { Done::Did } else { Done::Refused })
            }
            Act::Stint { at, len, mode, from, bytes, fill, keep } => {
                self.stint(span(at, len), mode, span(from, bytes), fill, keep)
            }
            Act::View { at, len, writable, accesses, fill } => {
                self.view(span(at, len), writable, accesses, fill)
            }
            Act::Poke { slot, at, fill } => self.poke(slot, at, fill),
            Act::Prefetch { at, len } => self.prefetch(span(at, len)),
            Act::Evict { at, len } => {
                self.file()?.evict(span(at, len)).map_err(|e| unexpected("evict", &e))?;
                Ok(Done::Did)
            }
            Act::Flush { at, len } => self.flush(span(at, len)),
            Act::Reopen {} => self.reopen(),
            Act::Restart {} => self.restart().map(|()| Done::Did),
            Act::Check {} => self.check().map(|()| Done::Did),
        }
    }

    /// A pin with one store by a kernel. What it stores past the end of file is dropped.
    fn stint(
        &mut self,
        range: Range<u64>,
        mode: Mode,
        store: Range<u64>,
        fill: u64,
        keep: bool,
    ) -> Step<Done> {
        if range.is_empty() {
            return Ok(Done::Skipped);
        }
        let Some(pin) = self.take(&range, mode)? else { return Ok(Done::Refused) };
        let store = clip(&store_grain(&store, mode), &range);
        let bytes = fill_bytes(fill, store.start, store.end - store.start);
        if mode != Mode::Read && !store.is_empty() {
            let view = pin.view().map_err(|e| unexpected("a view of a pin", &e))?;
            let stored = self.cache.launch(1, |_| view.write(store.start, &bytes));
            stored.map_err(|e| unexpected("a kernel's store", &e))?;
        }
        self.let_go(pin, keep, false)?;
        let inside = clip(&store, &(0..self.size));
        if mode == Mode::Read || inside.is_empty() {
            return Ok(Done::Did);
        }
        let skipped =
            self.settings.sabotage == Some(Sabotage::SkipDeviceStore) && fill.is_multiple_of(8);
        if !skipped {
            self.store_on_twin(inside.start, &bytes[..(inside.end - inside.start) as usize])?;
        }
        if keep {
            self.away.add(pages(&inside));
        }
        Ok(Done::Did)
    }

    /// A view on demand: loads and stores here and there, all of them compared; then its end.
    fn view(&mut self, range: Range<u64>, writable: bool, accesses: u64, fill: u64) -> Step<Done> {
        let range = clip(&range, &(0..self.size));
        let beside = self
            .pins
            .values()
            .any(|p| overlap(&pages(&p.range), &pages(&range)) && (writable || p.writes()));
        if range.is_empty() || beside || self.fills_device(&range) {
            return Ok(Done::Skipped);
        }
        let mut shadow = self.expected(&range)?;
        let view = self.file()?.view(writable).map_err(|e| unexpected("a view", &e))?;
        let mut rng = Rng::new(fill);
        for _ in 0..accesses.min(1000) {
            let at = range.start + rng.below(range.end - range.start);
            let len = 1 + rng.below((range.end - at).min(20_000));
            let part = &mut shadow[(at - range.start) as usize..][..len as usize];
            if writable && rng.chance(50) {
                part.copy_from_slice(&fill_bytes(fill, at, len));
                view.write(at, part).map_err(|e| unexpected("a view's store", &e))?;
            } else {
                let (mut got, expected) = (vec![0; len as usize], part.to_vec());
                view.read(at, &mut got).map_err(|e| unexpected("a view's load", &e))?;
                self.compare("device, view", at, &expected, &got)?;
            }
        }
        view.close().map_err(|e| unexpected("a view's close", &e))?;
        if writable {
            self.store_on_twin(range.start, &shadow)?;
        }
        Ok(Done::Did)
    }

    /// One store by the processor. It would be a SIGBUS under a write pin of this very thread.
    fn poke(&mut self, slot: u64, at: u64, fill: u64) -> Step<Done> {
        let range = at..at.saturating_add(8);
        let sense = at.is_multiple_of(8) && self.in_map(By::Cache, slot, &range, true);
        if !sense || self.touches_write_pin(&range) {
            return Ok(Done::Skipped);
        }
        let Some(held) = self.maps.get(&slot) else { return Ok(Done::Skipped) };
        let value = Rng::new(fill).next();
        let stored = held.map.store_u64((at - held.range.start) as usize, value);
        stored.map_err(|e| unexpected("a store", &e))?;
        self.store_on_twin(at, &value.to_le_bytes()).map(|()| Done::Did)
    }

    fn prefetch(&mut self, range: Range<u64>) -> Step<Done> {
        match self.file()?.prefetch(range.clone()) {
            Ok(_) => Ok(Done::Did),
            Err(e) if e.kind() == "would-deadlock" && self.touches_write_pin(&range) => {
                Ok(Done::Refused)
            }
            Err(e) => Err(unexpected("prefetch", &e).into()),
        }
    }

    fn flush(&mut self, range: Range<u64>) -> Step<Done> {
        match self.file()?.flush(range.clone()) {
            Ok(_) => {
                self.away.remove(range);
                Ok(Done::Did)
            }
            Err(e) if e.kind() == "would-deadlock" && self.held_away(&range) => Ok(Done::Refused),
            Err(e) => Err(unexpected("flush", &e).into()),
        }
    }

    fn reopen(&mut self) -> Step<Done> {
        if let Some(file) = self.file.take() {
            file.close().map_err(|e| unexpected("close", &e))?;
        }
        let opened = self.cache.open(&self.place.file).map_err(|e| unexpected("open", &e))?;
        self.file = Some(opened);
        if self.pins.is_empty() && self.maps.is_empty() {
            self.away.clear();
        }
        Ok(Done::Did)
    }

    pub(super) fn restart(&mut self) -> Step<()> {
        let slots: Vec<u64> = self.pins.keys().copied().collect();
        for slot in slots {
            self.release(slot, slot.is_multiple_of(2))?;
        }
        for held in std::mem::take(&mut self.maps).into_values() {
            held.map.unmap().map_err(|e| unexpected("unmap", &e))?;
        }
        if let Some(file) = self.file.take() {
            file.close().map_err(|e| unexpected("close", &e))?;
        }
        self.away.clear();
        self.counters = self.counters();
        self.cache = self.settings.cache()?;
        let opened = self.cache.open(&self.place.file).map_err(|e| unexpected("open", &e))?;
        self.file = Some(opened);
        Ok(())
    }
}
