//! What one file has on the device: which folio on which frame, which of its bytes are valid there,
//! which are dirty (newer than the file).
//!
//! Two grains: frames are given to *folios* (frame-sized, aligned stretches of the file), validity
//! and dirtiness are bits per 4 KiB page. A page that is dirty in some bytes only (a write pin's
//! edge, the page at end of file) lists those bytes in `partial`: write-back must write exactly
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::bitmap::Bitmap;
use crate::range::RangeSet;
use crate::{FrameId, PAGE_BYTES};

/// One frame-sized stretch of a file that has a frame.
#[derive(Clone, Debug)]
pub(crate) struct Folio {
    pub(crate) frame: FrameId,
    valid: Bitmap,
    valid_pages: u64,
    /// Allocated with the first dirty page: most folios never have one.
    dirty: Option<Bitmap>,
    /// When the oldest of the dirty pages became so, in the caller's clock.
    pub(crate) dirty_since: u64,
    /// Its write-back failed when it was last tried for its frame: others go first.
    pub(crate) stubborn: bool,
    /// Which residency this is, for the eviction queues.
    pub(crate) born: u64,
}

/// The folios of one file.
///
/// # Invariants
/// - A page beyond `limit()` is neither valid nor dirty; no byte beyond `bytes` is dirty.
/// - `partial` lies inside dirty pages; a dirty page without a partial range is dirty in all bytes.
/// - `dirty` holds exactly the folios with a dirty page; `valid_pages` counts.
/// - `full` holds exactly the folios whose every page up to `limit()` is valid.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    frame_bytes: u64,
    bytes: u64,
    pub(crate) folios: BTreeMap<u64, Folio>,
    full: RangeSet,
    /// Folios with a dirty page.
    dirty: BTreeSet<u64>,
    partial: RangeSet,
    valid_pages: u64,
}

fn floor(at: u64) -> u64 {
    at & !(PAGE_BYTES - 1)
}

fn ceil(at: u64) -> u64 {
    floor(at.saturating_add(PAGE_BYTES - 1))
}

/// The whole pages that `range` touches.
pub(crate) fn page_span(range: &Range<u64>) -> Range<u64> {
    if range.is_empty() { range.start..range.start } else { floor(range.start)..ceil(range.end) }
}

/// The overlap of two ranges, empty (at `a.start`) if they do not meet.
pub(crate) fn clip(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    let start = a.start.max(b.start);
    let end = a.end.min(b.end);
    if start < end { start..end } else { a.start..a.start }
}

impl Pages {
    pub(crate) fn new(frame_bytes: u64) -> Pages {
        Pages {
            frame_bytes,
            bytes: 0,
            folios: BTreeMap::new(),
            full: RangeSet::new(),
            dirty: BTreeSet::new(),
            partial: RangeSet::new(),
            valid_pages: 0,
        }
    }

    /// The file's size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The end of the page that holds the end of file.
    pub(crate) fn limit(&self) -> u64 {
        ceil(self.bytes)
    }

    pub(crate) fn folio_of(&self, at: u64) -> u64 {
        at / self.frame_bytes
    }

    /// The folio's bytes, valid or not, up to its frame's end.
    pub(crate) fn folio_span(&self, folio: u64) -> Range<u64> {
        let start = folio * self.frame_bytes;
        start..start.saturating_add(self.frame_bytes)
    }

    /// The folios that `range` touches.
    pub(crate) fn folios_of(&self, range: &Range<u64>) -> Range<u64> {
        if range.is_empty() {
            return 0..0;
        }
        self.folio_of(range.start)..self.folio_of(range.end - 1) + 1
    }

    /// Page bits of the folio's bitmap for the pages that `range` touches in it.
    fn bits(&self, folio: u64, range: &Range<u64>) -> Range<u32> {
        let span = self.folio_span(folio);
        let inside = clip(&page_span(range), &span);
        let at = |byte: u64| ((byte - span.start) / PAGE_BYTES) as u32;
        if inside.is_empty() { 0..0 } else { at(inside.start)..at(inside.end) }
    }

    fn bytes_of(&self, folio: u64, bits: &Range<u32>) -> Range<u64> {
        let base = folio * self.frame_bytes;
        base + u64::from(bits.start) * PAGE_BYTES..base + u64::from(bits.end) * PAGE_BYTES
    }

    pub(crate) fn frame(&self, folio: u64) -> Option<FrameId> {
        self.folios.get(&folio).map(|f| f.frame)
    }

    pub(crate) fn add_folio(&mut self, folio: u64, frame: FrameId, born: u64) {
        let bits = (self.frame_bytes / PAGE_BYTES) as u32;
        self.folios.insert(
            folio,
            Folio {
                frame,
                valid: Bitmap::new(bits),
                valid_pages: 0,
                dirty: None,
                dirty_since: 0,
                stubborn: false,
                born,
            },
        );
    }

    pub(crate) fn set_stubborn(&mut self, at: u64, stubborn: bool) {
        let folio = self.folio_of(at);
        if let Some(f) = self.folios.get_mut(&folio) {
            f.stubborn = stubborn;
        }
    }

    pub(crate) fn remove_folio(&mut self, folio: u64) -> Option<FrameId> {
        self.full.remove(folio..folio + 1);
        let span = self.folio_span(folio);
        self.partial.remove(span);
        self.dirty.remove(&folio);
        let gone = self.folios.remove(&folio)?;
        self.valid_pages -= gone.valid_pages;
        Some(gone.frame)
    }

    #[cfg(test)]
    /// Whether the pages of `range` are all valid. O(log n) where whole folios are.
    pub(crate) fn is_valid(&self, range: &Range<u64>) -> bool {
        range.end <= self.limit()
            && self.full.gaps(self.folios_of(range)).into_iter().flatten().all(|folio| {
                let bits = self.bits(folio, range);
                self.folios.get(&folio).is_some_and(|f| f.valid.all(bits))
            })
    }

    /// The first folio at or after `from` (and before `until`) that is not full.
    pub(crate) fn first_not_full(&self, from: u64, until: u64) -> Option<u64> {
        self.full.first_gap(from..until).map(|gap| gap.start)
    }

    /// The first run of pages of `range` inside `folio` that are not valid, as bytes.
    pub(crate) fn first_invalid(&self, folio: u64, range: &Range<u64>) -> Option<Range<u64>> {
        let bits = self.bits(folio, range);
        match self.folios.get(&folio) {
            Some(f) => f.valid.first_run(bits, false).map(|run| self.bytes_of(folio, &run)),
            None => (!bits.is_empty()).then(|| self.bytes_of(folio, &bits)),
        }
    }

    /// The runs of valid pages inside `range`, as bytes, split at folios.
    pub(crate) fn valid_runs(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        for (&folio, f) in self.folios.range(self.folios_of(range)) {
            let mut bits = self.bits(folio, range);
            while let Some(run) = f.valid.first_run(bits.clone(), true) {
                bits.start = run.end;
                runs.push(self.bytes_of(folio, &run));
            }
        }
        runs
    }

    /// The runs of pages inside `range` that have frames and are not valid, as bytes, split at folios.
    pub(crate) fn invalid_runs(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        for (&folio, _) in self.folios.range(self.folios_of(range)) {
            let mut rest = clip(&self.folio_span(folio), range);
            while let Some(run) = self.first_invalid(folio, &rest) {
                rest.start = run.end;
                runs.push(run);
            }
        }
        runs
    }

    /// Resident bytes of `range`.
    pub(crate) fn valid_bytes(&self, range: &Range<u64>) -> u64 {
        self.folios
            .range(self.folios_of(range))
            .map(|(&folio, f)| f.valid.count(self.bits(folio, range)) * PAGE_BYTES)
            .sum()
    }

    pub(crate) fn set_valid(&mut self, range: &Range<u64>) {
        let range = clip(range, &(0..self.limit()));
        for folio in self.folios_of(&range) {
            let bits = self.bits(folio, &range);
            if let Some(f) = self.folios.get_mut(&folio) {
                f.valid.set(bits);
            }
            self.refresh_full(folio);
        }
    }

    pub(crate) fn clear_valid(&mut self, range: &Range<u64>) {
        let touched: Vec<u64> =
            self.folios.range(self.folios_of(range)).map(|(&folio, _)| folio).collect();
        for folio in touched {
            let bits = self.bits(folio, range);
            if let Some(f) = self.folios.get_mut(&folio) {
                f.valid.clear(bits);
            }
            self.refresh_full(folio);
        }
    }

    /// Copies of the whole pages `range` are no longer to be trusted: all but those dirty in every byte
    /// lose validity. How many bytes did.
    pub(crate) fn clear_valid_copies(&mut self, range: &Range<u64>) -> u64 {
        let before = self.valid_pages;
        let folios: Vec<u64> =
            self.folios.range(self.folios_of(range)).map(|(&folio, _)| folio).collect();
        let all = (self.frame_bytes / PAGE_BYTES) as u32;
        for folio in folios {
            let span = self.folio_span(folio);
            let partial: Vec<Range<u32>> =
                self.partial.overlaps(span).map(|(r, ())| self.bits(folio, &r)).collect();
            let mut rest = self.bits(folio, range);
            if let Some(f) = self.folios.get_mut(&folio) {
                let mut keep = f.dirty.clone().unwrap_or_else(|| Bitmap::new(all));
                for bits in partial {
                    keep.clear(bits);
                }
                while let Some(run) = keep.first_run(rest.clone(), false) {
                    f.valid.clear(run.clone());
                    rest.start = run.end;
                }
            }
            self.refresh_full(folio);
        }
        (before - self.valid_pages) * PAGE_BYTES
    }

    fn refresh_full(&mut self, folio: u64) {
        let file = clip(&self.folio_span(folio), &(0..self.limit()));
        let bits = self.bits(folio, &file);
        let full = !bits.is_empty() && self.folios.get(&folio).is_some_and(|f| f.valid.all(bits));
        if let Some(f) = self.folios.get_mut(&folio) {
            let pages = f.valid.count(0..(self.frame_bytes / PAGE_BYTES) as u32);
            self.valid_pages = self.valid_pages + pages - f.valid_pages;
            f.valid_pages = pages;
        }
        if full {
            self.full.add(folio..folio + 1);
        } else {
            self.full.remove(folio..folio + 1);
        }
    }

    /// The bytes of `range` become dirty. Bytes past end of file never do.
    pub(crate) fn mark_dirty(&mut self, range: &Range<u64>, now: u64) {
        let range = clip(range, &(0..self.bytes));
        let inner = ceil(range.start)..floor(range.end);
        for folio in self.folios_of(&range) {
            let all = self.bits(folio, &range);
            let whole = if inner.start < inner.end { self.bits(folio, &inner) } else { 0..0 };
            let span = clip(&range, &self.folio_span(folio));
            let bitmap_bits = (self.frame_bytes / PAGE_BYTES) as u32;
            let Some(f) = self.folios.get_mut(&folio) else { continue };
            let dirty = f.dirty.get_or_insert_with(|| Bitmap::new(bitmap_bits));
            if !dirty.any(0..bitmap_bits) {
                f.dirty_since = now;
            }
            // A page that is dirty throughout stays so; a clean or partial one gains these bytes.
            let base = folio * self.frame_bytes;
            for bit in [all.start, all.end - 1] {
                if whole.contains(&bit) {
                    continue;
                }
                let page = base + u64::from(bit) * PAGE_BYTES;
                let page = page..page + PAGE_BYTES;
                if !dirty.get(bit) || self.partial.intersects(page.clone()) {
                    self.partial.add(clip(&span, &page));
                    if self.partial.covers(page.clone()) {
                        self.partial.remove(page);
                    }
                }
            }
            dirty.set(all);
            self.dirty.insert(folio);
            let whole = self.bytes_of(folio, &whole);
            self.partial.remove(whole);
        }
    }

    /// The bytes of `range` are no longer dirty.
    pub(crate) fn clear_dirty(&mut self, range: &Range<u64>) {
        let touched: Vec<u64> = self.dirty.range(self.folios_of(range)).copied().collect();
        for folio in touched {
            let span = clip(range, &self.folio_span(folio));
            let bits = self.bits(folio, &span);
            let base = folio * self.frame_bytes;
            let bitmap_bits = (self.frame_bytes / PAGE_BYTES) as u32;
            let Some(f) = self.folios.get_mut(&folio) else { continue };
            let Some(dirty) = f.dirty.as_mut() else { continue };
            let inner = ceil(span.start)..floor(span.end);
            for bit in [bits.start, bits.end - 1] {
                let page = base + u64::from(bit) * PAGE_BYTES;
                let page = page..page + PAGE_BYTES;
                if !dirty.get(bit) || (inner.start <= page.start && page.end <= inner.end) {
                    continue;
                }
                if !self.partial.intersects(page.clone()) {
                    self.partial.add(clip(&page, &(0..self.bytes)));
                }
                self.partial.remove(clip(&span, &page));
                if !self.partial.intersects(page) {
                    dirty.clear(bit..bit + 1);
                }
            }
            if inner.start < inner.end {
                self.partial.remove(inner.clone());
                let at = |byte: u64| ((byte - base) / PAGE_BYTES) as u32;
                dirty.clear(at(inner.start)..at(inner.end));
            }
            if !dirty.any(0..bitmap_bits) {
                f.dirty = None;
                self.dirty.remove(&folio);
            }
        }
    }

    /// The first stretch of dirty bytes of `range`, inside one folio.
    pub(crate) fn next_dirty(&self, range: &Range<u64>) -> Option<Range<u64>> {
        for &folio in self.dirty.range(self.folios_of(range)) {
            let dirty = self.folios.get(&folio).and_then(|f| f.dirty.as_ref());
            let Some(dirty) = dirty else { continue };
            let mut bits = self.bits(folio, range);
            while let Some(run) = dirty.first_run(bits.clone(), true) {
                let run = clip(&self.bytes_of(folio, &run), range);
                let page = floor(run.start)..floor(run.start) + PAGE_BYTES;
                if !self.partial.intersects(page.clone()) {
                    let next = self.partial.overlaps(run.clone()).next();
                    let end = next.map_or(run.end, |(p, ())| floor(p.start));
                    return Some(run.start..end);
                }
                let here = run.start..page.end.min(run.end);
                if let Some((bytes, ())) = self.partial.overlaps(here).next() {
                    return Some(bytes);
                }
                bits.start = ((page.end - folio * self.frame_bytes) / PAGE_BYTES) as u32;
            }
        }
        None
    }

    /// Every stretch of dirty bytes of `range`, ascending, merged across folios.
    pub(crate) fn dirty_runs(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut rest = range.clone();
        while let Some(run) = self.next_dirty(&rest) {
            rest.start = run.end;
            match runs.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => runs.push(run),
            }
        }
        runs
    }

    pub(crate) fn is_dirty(&self, range: &Range<u64>) -> bool {
        self.next_dirty(range).is_some()
    }

    /// Neither a valid nor a dirty page is left: the frame serves nothing.
    pub(crate) fn is_idle(&self, folio: u64) -> bool {
        let span = 0..(self.frame_bytes / PAGE_BYTES) as u32;
        self.folios.get(&folio).is_some_and(|f| !f.valid.any(span) && f.dirty.is_none())
    }

    /// Folios with pages that became dirty at or before `since`.
    pub(crate) fn aged(&self, since: u64) -> impl Iterator<Item = u64> {
        let old = move |f: &&u64| self.folios.get(f).is_some_and(|f| f.dirty_since <= since);
        self.dirty.iter().filter(old).copied()
    }

    /// All bytes that are valid.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.valid_pages * PAGE_BYTES
    }

    /// The size changed. Shrinking forgets what lay beyond; the page that now holds the end loses
    /// validity if its tail may hold old bytes. Returns the dirty bytes forgotten.
    pub(crate) fn resize(&mut self, bytes: u64) -> u64 {
        let old = self.bytes;
        if bytes == old {
            return 0;
        }
        let mut forgotten = 0;
        if bytes < old {
            let gone = bytes..old;
            forgotten = self.dirty_runs(&gone).iter().map(|r| r.end - r.start).sum();
            // Up to the page's end, so that no partial range is left past the new end.
            self.clear_dirty(&(bytes..ceil(old)));
            self.clear_valid(&(floor(bytes)..ceil(old).max(ceil(bytes))));
        }
        self.bytes = bytes;
        for folio in [self.folio_of(old.saturating_sub(1)), self.folio_of(bytes.saturating_sub(1))]
        {
            self.refresh_full(folio);
        }
        forgotten
    }

    /// Bytes of host memory that the records themselves take (estimate: node overhead included).
    pub(crate) fn record_bytes(&self) -> u64 {
        let node = 24;
        let bitmap = Bitmap::new((self.frame_bytes / PAGE_BYTES) as u32).heap_bytes();
        let folios = self.folios.len() * (size_of::<Folio>() + node + bitmap)
            + self.dirty.len() * (node + bitmap);
        (folios + (self.full.len() + self.partial.len()) * (node + 16)) as u64
    }
}

#[path = "pages_check.rs"]
mod check;
#[cfg(test)]
#[path = "pages_tests.rs"]
mod tests;
