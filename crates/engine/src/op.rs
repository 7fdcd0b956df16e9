//! One request in progress.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::queue::Resident;
use crate::range::RangeSet;
use crate::{FileKey, MapKey, Mode, OpKey, Owner, PinKey, Refusal, Request, WaitFor};

/// Where a request is on its way. Every kind of request walks a subsequence, downwards only (but for
/// `Observe`, which a pin whose file turned out shorter visits again).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Look at the file.
    Observe,
    /// After a shrink: lift traps and free frames beyond the end.
    Tidy,
    /// Wait for whoever holds the range.
    Admit,
    /// Make CPU accesses of the range wait.
    Trap,
    /// Learn which pages our own mappings stored to.
    Scan,
    /// Ask the device which pages it stored to.
    TakeDirty,
    /// Write dirty bytes back.
    Clean,
    /// Get a frame for every folio and bytes for every page.
    Fill,
    /// The request's own action: a change, a mapping.
    Perform,
    /// Let CPU accesses through again where nothing forbids it.
    Settle,
    /// Give frames back that serve nothing.
    Free,
    /// Report.
    End,
}

/// A request in progress.
#[derive(Clone, Debug)]
pub(crate) struct Op<E> {
    pub(crate) key: OpKey,
    pub(crate) request: Request,
    pub(crate) file: FileKey,
    /// The bytes it works on.
    pub(crate) range: Range<u64>,
    pub(crate) owner: Owner,
    pub(crate) patient: bool,
    pub(crate) phase: Phase,
    /// The pin it holds, fills or releases.
    pub(crate) pin: Option<PinKey>,
    pub(crate) inflight: u32,
    pub(crate) waiting: Option<WaitFor>,
    /// For whom it was last found to wait in `Admit`, and not for ever.
    pub(crate) waits_for: Option<Vec<Owner>>,
    /// Why it fails; what it holds is undone before that is reported.
    pub(crate) refusal: Option<Refusal<E>>,
    /// Undoing has begun.
    pub(crate) unwinding: bool,
    /// First folio that may still need filling.
    pub(crate) cursor: u64,
    /// Traps before this place it has lifted, or found needed.
    pub(crate) settled: (MapKey, u64),
    /// What `Scan` or `TakeDirty` has still to ask.
    pub(crate) queue: Vec<(Option<MapKey>, Range<u64>)>,
    /// The phase has filled its queue.
    pub(crate) queued: bool,
    /// Pages that it has fetched itself: new enough for it, whatever others have learnt meanwhile.
    pub(crate) fetched: RangeSet,
    /// A fetch met an early end of file.
    pub(crate) short: bool,
    /// `Untrap` ran out of mappings once: the range was widened to the whole trapped run.
    pub(crate) widened: bool,
    /// Its lifting of traps failed: give it up.
    pub(crate) stay_trapped: bool,
    /// Tidying up after a shrink failed: leave it to the next comer.
    pub(crate) stay_untidy: bool,
    /// Giving frames back failed: give it up.
    pub(crate) keep_frames: bool,
    /// The first error of what may fail without ending the request at once: it ends with it.
    pub(crate) trouble: Option<E>,
    /// The folio (and its residency) that it is writing back to get its frame.
    pub(crate) victim: Option<Resident>,
    /// Folios whose frames it could not get.
    pub(crate) passed: BTreeSet<(FileKey, u64)>,
    /// Bytes that it could not write back.
    pub(crate) unwritten: RangeSet,
    pub(crate) written_bytes: u64,
    pub(crate) evicted_bytes: u64,
    pub(crate) lost_bytes: u64,
    pub(crate) cut: Option<u64>,
}

impl<E> Op<E> {
    pub(crate) fn new(
        key: OpKey,
        request: Request,
        file: FileKey,
        range: Range<u64>,
        owner: Owner,
        patient: bool,
    ) -> Op<E> {
        let phase = match &request {
            Request::Pin { .. } | Request::Query { .. } => Phase::Observe,
            Request::Release { .. } => Phase::TakeDirty,
            Request::Change { .. } | Request::Touch { .. } => Phase::Admit,
            Request::Resize { .. } | Request::MapIn { .. } | Request::Expel { .. } => {
                Phase::Perform
            }
            Request::Flush { .. } | Request::Evict { .. } | Request::Close { .. } => Phase::Clean,
            Request::MapOut { .. } => Phase::Scan,
        };
        Op {
            key,
            request,
            file,
            range,
            owner,
            patient,
            phase,
            pin: None,
            inflight: 0,
            waiting: None,
            waits_for: None,
            refusal: None,
            unwinding: false,
            cursor: 0,
            settled: (MapKey(0), 0),
            queue: Vec::new(),
            queued: false,
            fetched: RangeSet::new(),
            short: false,
            widened: false,
            stay_trapped: false,
            stay_untidy: false,
            keep_frames: false,
            trouble: None,
            victim: None,
            passed: BTreeSet::new(),
            unwritten: RangeSet::new(),
            written_bytes: 0,
            evicted_bytes: 0,
            lost_bytes: 0,
            cut: None,
        }
    }

    pub(crate) fn mode(&self) -> Option<Mode> {
        match self.request {
            Request::Pin { mode, .. } => Some(mode),
            _ => None,
        }
    }

    pub(crate) fn goto(&mut self, phase: Phase) {
        self.phase = phase;
        self.queued = false;
        self.cursor = 0;
        self.settled = (MapKey(0), 0);
    }
}

/// What a completed action means, remembered from when it was handed out.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    Observe,
    Measure,
    Scan { map: MapKey, range: Range<u64> },
    Trap { map: MapKey, range: Range<u64> },
    Untrap { map: MapKey, range: Range<u64> },
    Allocate { folio: u64 },
    Steal { folio: u64, frame: crate::FrameId },
    Free { folio: u64, frame: crate::FrameId },
    Fetch { range: Range<u64>, zero: bool, stale: bool },
    WriteBack { range: Range<u64> },
    TakeDirty { range: Range<u64> },
    Hide { serial: u64 },
    Expel,
    Change,
    MapIn { map: MapKey, range: Range<u64>, writable: bool, trapped: RangeSet },
    MapOut { map: MapKey },
}

/// An action handed out.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub(crate) op: crate::OpKey,
    pub(crate) file: FileKey,
    pub(crate) effect: Effect,
    pub(crate) locks: Vec<(FileKey, Range<u64>)>,
}

/// What a step of a request came to.
pub(crate) enum Turn<E> {
    /// Hand out an action.
    Act { action: crate::Action, file: FileKey, effect: Effect, locks: Vec<(FileKey, Range<u64>)> },
    /// Nothing can be done before something changes.
    Blocked(WaitFor),
    /// This step has nothing (more) to do.
    Clear,
    /// Look again at once.
    Again,
    /// The request cannot be granted.
    Refuse(Refusal<E>),
}
