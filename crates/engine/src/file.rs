//! What the engine knows of one file: its pages on the device, who holds them, how it is mapped.
//!
//! # What a truncation leaves of a pin
//!
//! The one idea: a pin holds what it can still bring home. A truncation below its end *cuts* a granted
//! pin for good: the file may grow back, the pin does not. Its *live* bytes lie before the cut. It holds
//! the pages of these, with the one that the cut runs through (no page is hidden in part): they keep
//! their frames and traps, nobody fetches them anew or changes them. Other pages it does not hold, also
//! where it had its first bytes behind the cut in the page of the cut.
//!
//! Its kernels know nothing of the cut. They fault behind it, as those pages are hidden, until another
//! pin brings such a page back: all pins of a file have the same addresses, and where the other pin
//! stores, the kernels of the cut one may. Hence two things stay as they were. A cut write pin keeps all
//! its *bytes* from other pins until its release: a stray store hits no byte that anybody is shown. And
//! pages that the device stored to count for it as before (`stored`): its end drops the copies of
//! those behind the cut, stray stores included, and its release tells of them.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::pages::{Pages, clip, page_span};
use crate::pins::{Pins, part};
use crate::range::{RangeMap, RangeSet};
use crate::trust::Trust;
use crate::{ActionKey, MapKey, Mode, OpKey, Owner};

/// A range held on the device. It holds from the moment it is admitted, before it is filled.
#[derive(Clone, Debug)]
pub(crate) struct Pin {
    pub(crate) range: Range<u64>,
    pub(crate) mode: Mode,
    pub(crate) owner: Owner,
    /// Filled: the device may be using it.
    pub(crate) granted: bool,
    /// The lowest size of the file since: bytes from there on are not written back any more.
    pub(crate) cut: Option<u64>,
    /// Pages that the device was seen to have stored to and that are not yet marked dirty.
    pub(crate) stored: RangeSet,
    /// Pages that were zeroed for an overwrite instead of fetched.
    pub(crate) zeroed: RangeSet,
}

impl Pin {
    /// The pages it touches.
    pub(crate) fn pages(&self) -> Range<u64> {
        page_span(&self.range)
    }

    /// The bytes that it can still bring home.
    pub(crate) fn live(&self) -> Range<u64> {
        clip(&self.range, &(0..self.cut.unwrap_or(u64::MAX)))
    }

    /// The pages of those.
    pub(crate) fn live_pages(&self) -> Range<u64> {
        page_span(&self.live())
    }

    /// The bytes that it keeps from pins that it cannot stand beside. (One that is not granted yet
    /// takes everything back should the file grow back.)
    pub(crate) fn kept_bytes(&self) -> Range<u64> {
        if self.granted && !self.mode.writes() { self.live() } else { self.range.clone() }
    }

    /// The pages that it keeps as they are, if it writes.
    pub(crate) fn kept_pages(&self) -> Range<u64> {
        if self.granted { self.live_pages() } else { self.pages() }
    }
}

/// A CPU mapping.
#[derive(Clone, Debug)]
pub(crate) struct Map {
    pub(crate) range: Range<u64>,
    pub(crate) writable: bool,
    /// Pages whose CPU accesses wait.
    pub(crate) trapped: RangeSet,
}

/// A change through a system call, from its admission to its end.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) range: Range<u64>,
    pub(crate) owner: Owner,
    pub(crate) resizes: bool,
}

/// What a shrink leaves to do from an offset on: make pages unreachable for kernels, lift traps,
/// free frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tidy {
    pub(crate) from: u64,
    /// What kernels had stored there is known: releases tell of it.
    pub(crate) asked: bool,
    /// Kernels cannot reach the pages any more.
    pub(crate) hidden: bool,
    /// Which shrink it was.
    pub(crate) serial: u64,
}

/// One file.
#[derive(Clone, Debug)]
pub(crate) struct FileState {
    pub(crate) pages: Pages,
    pub(crate) trust: Trust,
    pub(crate) pins: Pins,
    pub(crate) maps: BTreeMap<MapKey, Map>,
    pub(crate) claims: BTreeMap<OpKey, Claim>,
    /// Page locks: which action works on which pages.
    pub(crate) busy: RangeMap<ActionKey>,
    /// Ranges that a request wants all to itself: later ones lock nothing there before it does.
    pub(crate) barriers: BTreeMap<OpKey, Range<u64>>,
    /// Pages whose last fetch failed half-way: what is on the device is nobody's bytes.
    pub(crate) spoiled: RangeSet,
    /// Bytes that a flush has left out for a write pin: they go home when next pinned for writing.
    pub(crate) due: RangeSet,
    /// Last use, by folio.
    pub(crate) heat: RangeMap<u64>,
    /// The file shrank: what lies beyond is to be tidied up.
    pub(crate) tidy: Option<Tidy>,
}

impl FileState {
    pub(crate) fn new(frame_bytes: u64, epoch: u64) -> FileState {
        FileState {
            pages: Pages::new(frame_bytes),
            trust: Trust::new(epoch),
            pins: Pins::default(),
            maps: BTreeMap::new(),
            claims: BTreeMap::new(),
            busy: RangeMap::new(),
            barriers: BTreeMap::new(),
            spoiled: RangeSet::new(),
            due: RangeSet::new(),
            heat: RangeMap::new(),
            tidy: None,
        }
    }

    /// Some pin holds pages of `range`.
    pub(crate) fn is_pinned(&self, range: &Range<u64>) -> bool {
        self.pins.over(&page_span(range)).any(|(_, p)| part(range, &p.live_pages()).is_some())
    }

    /// The pages of `range` that CPU accesses must not reach: dirty, or under a write pin.
    pub(crate) fn must_trap(&self, range: &Range<u64>) -> RangeSet {
        let mut set = RangeSet::new();
        for run in self.pages.dirty_runs(range) {
            set.add(page_span(&run));
        }
        let pages = page_span(range);
        for (_, pin) in self.pins.writers_over(&pages) {
            set.add(clip(&pages, &pin.live_pages()));
        }
        set
    }

    /// The first pages of `range` under a write pin.
    pub(crate) fn first_trap_holder(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let mut over = self.pins.writers_over(&page_span(range));
        over.find_map(|(_, p)| part(range, &p.live_pages()))
    }

    /// Pages on frames inside `range` that are neither valid nor held by a pin.
    pub(crate) fn unserved(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut held = RangeSet::new();
        for (_, pin) in self.pins.over(&page_span(range)) {
            held.add(pin.live_pages());
        }
        let runs = self.pages.invalid_runs(range);
        runs.into_iter().flat_map(|run| held.gaps(run)).collect()
    }

    /// The first stretch of `range` that the request may not lock now.
    pub(crate) fn first_lock(&self, range: &Range<u64>, who: OpKey) -> Option<Range<u64>> {
        let busy = self.busy.overlaps(range.clone()).next().map(|(r, _)| r);
        let bars = self.barriers.range(..who).map(|(_, bar)| clip(bar, range));
        bars.filter(|r| !r.is_empty()).chain(busy).min_by_key(|r| r.start)
    }

    /// The first stretch of `range` that the request may lock now.
    pub(crate) fn first_open(&self, range: &Range<u64>, who: OpKey) -> Option<Range<u64>> {
        let mut rest = range.clone();
        while !rest.is_empty() {
            match self.first_lock(&rest, who) {
                Some(locked) if locked.start <= rest.start => rest.start = locked.end,
                Some(locked) => return Some(rest.start..locked.start),
                None => return Some(rest),
            }
        }
        None
    }

    pub(crate) fn is_locked(&self, range: &Range<u64>, who: OpKey) -> bool {
        self.first_lock(range, who).is_some()
    }

    /// Trapped in some mapping.
    pub(crate) fn is_trapped(&self, range: &Range<u64>) -> bool {
        self.maps.values().any(|m| m.trapped.intersects(range.clone()))
    }
}
