//! What a caller may ask, or tell, without a request.

use std::ops::Range;

use crate::file::Pin;
use crate::op::Flight;
use crate::{Engine, FileKey, FrameId, MapKey, Owner, PinKey};

impl<E: Clone> Engine<E> {
    /// The size of a file as last learnt.
    #[must_use]
    pub fn file_bytes(&self, file: FileKey) -> Option<u64> {
        self.files.get(&file).map(|f| f.pages.bytes())
    }

    /// Some byte of the range is dirty: a plain read of the file would miss it.
    #[must_use]
    pub fn is_away(&self, file: FileKey, range: &Range<u64>) -> bool {
        self.files.get(&file).is_some_and(|f| f.pages.is_dirty(range))
    }

    /// The frame of a folio.
    #[must_use]
    pub fn frame(&self, file: FileKey, folio: u64) -> Option<FrameId> {
        self.files.get(&file).and_then(|f| f.pages.frame(folio))
    }

    /// The folios of a range that have frames.
    #[must_use]
    pub fn resident_folios(&self, file: FileKey, range: &Range<u64>) -> Vec<u64> {
        let Some(state) = self.files.get(&file) else { return Vec::new() };
        state.pages.folios.range(state.pages.folios_of(range)).map(|(folio, _)| *folio).collect()
    }

    /// Where the pages that a pin holds end now: where they begin if a cut has left none. 0 if the
    /// pin is gone.
    #[must_use]
    pub fn pin_end(&self, pin: PinKey) -> u64 {
        let end = |p: &Pin| match p.live_pages() {
            none if none.is_empty() => p.pages().start,
            live => live.end,
        };
        self.held(pin).map_or(0, end)
    }

    /// The lowest size that the file had under a pin, if that cut it: what lies behind is not the pin's.
    #[must_use]
    pub fn pin_cut(&self, pin: PinKey) -> Option<u64> {
        self.held(pin)?.cut
    }

    fn held(&self, pin: PinKey) -> Option<&Pin> {
        self.files.get(self.pin_files.get(&pin)?)?.pins.get(&pin)
    }

    /// The first byte of the range whose CPU accesses through a mapping wait.
    #[must_use]
    pub fn first_trapped(&self, file: FileKey, map: MapKey, range: &Range<u64>) -> Option<u64> {
        let map = self.files.get(&file)?.maps.get(&map)?;
        map.trapped.overlaps(range.clone()).next().map(|(run, ())| run.start)
    }

    /// Frames in use, or being allocated or freed.
    #[must_use]
    pub fn frames_used(&self) -> u64 {
        self.frames_used
    }

    /// Ranges, with at least one dirty page that became so at or before `since`, one per folio.
    #[must_use]
    pub fn aged(&self, file: FileKey, since: u64) -> Vec<Range<u64>> {
        let Some(state) = self.files.get(&file) else { return Vec::new() };
        state.pages.aged(since).map(|f| state.pages.folio_span(f)).collect()
    }

    /// All files.
    pub fn files(&self) -> impl Iterator<Item = FileKey> + '_ {
        self.files.keys().copied()
    }

    /// Gives a pin to another owner.
    pub fn set_owner(&mut self, pin: PinKey, owner: Owner) {
        if let Some(f) = self.pin_files.get(&pin).and_then(|f| self.files.get_mut(f)) {
            f.pins.set_owner(&pin, owner);
            self.note_change();
        }
    }

    /// Some action on the file is under way, or some request for it.
    fn is_worked_on(&self, file: FileKey) -> bool {
        self.is_in_flight(file) || self.ops.values().any(|o| o.file == file)
    }

    /// Some action under way names the file.
    pub(crate) fn is_in_flight(&self, file: FileKey) -> bool {
        let names = |f: &Flight| f.file == file || f.locks.iter().any(|(l, _)| *l == file);
        self.flights.values().any(names)
    }

    /// Forgets a file whatever it holds (its last bytes cannot be kept): returns the folios and
    /// frames to free and the dirty bytes lost. Refused (`None`) while anything works on it.
    pub fn abandon(&mut self, file: FileKey) -> Option<(Vec<(u64, FrameId)>, u64)> {
        let state = self.files.get(&file)?;
        if !state.busy.is_empty() || self.is_worked_on(file) {
            return None;
        }
        let state = self.files.remove(&file)?;
        let lost = state.pages.dirty_runs(&(0..u64::MAX)).iter().map(|r| r.end - r.start).sum();
        for (pin, _) in state.pins.all() {
            self.pin_files.remove(&pin);
        }
        let frames: Vec<_> = state.pages.folios.iter().map(|(k, f)| (*k, f.frame)).collect();
        self.frames_freed(frames.len() as u64);
        self.note_change();
        Some((frames, lost))
    }
}
