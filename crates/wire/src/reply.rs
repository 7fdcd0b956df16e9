//! What a daemon answers.

use serde::{Deserialize, Serialize};

use crate::{Failure, FileId, PinId, Span};

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Return {
    /// The request's.
    pub id: u32,
    /// What came of it.
    pub result: Result<Reply, Failure>,
}

/// How a request ended well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done, and there is nothing to tell.
    Done,
    /// The session is open.
    Welcome {
        /// [`VERSION`](crate::VERSION).
        version: u32,
        /// This session's number, by which [`Reply::Sessions`] names it; from 1.
        session: u64,
        /// The device.
        device: Device,
        /// The cache's budget, in bytes.
        memory_bytes: u64,
        /// What one session may hold.
        limits: Limits,
    },
    /// The file is open.
    Opened {
        /// Its name from now on.
        file: FileId,
    },
    /// The ranges are on the device.
    Pinned {
        /// One for each range, in order.
        pins: Vec<PinId>,
        /// A number that grows whenever a folio of the file gets another frame: who has asked for the
        /// [frames](crate::Request::Frames) at this number need not ask again.
        layout: u64,
    },
    /// The pins are gone.
    Released {
        /// How it went for each pin, in order.
        pins: Vec<Result<Released, Failure>>,
    },
    /// Where folios are. With a descriptor of the frame's memory for each folio that
    /// [`frames_sent`](crate::frames_sent) names.
    Frames {
        /// As in [`Pinned`](Reply::Pinned), when this was looked up.
        layout: u64,
        /// The serial of each folio's frame, as many as were asked about; 0: it has none. No two frames
        /// ever have the same.
        serials: Vec<u64>,
    },
    /// Bytes of the file, at most [`DATA_BYTES_MAX`](crate::DATA_BYTES_MAX); fewer than asked only at its end.
    Data(#[serde(with = "crate::bytes")] Vec<u8>),
    /// A number of bytes.
    Bytes(u64),
    /// What the trust in copies rests on.
    Coherence(Coherence),
    /// Where pages are: ascending, without gaps, from the start of the span that was asked about. At most
    /// [`PLACEMENT_RUNS_MAX`](crate::PLACEMENT_RUNS_MAX). None: nothing of the file lies there.
    Placement(Vec<Run>),
    /// The counters, at most [`COUNTERS_MAX`](crate::COUNTERS_MAX).
    Stats(Vec<Counter>),
    /// How full the cache is.
    Usage {
        /// Device memory in use, in bytes.
        used_bytes: u64,
        /// The budget, in bytes.
        memory_bytes: u64,
        /// Open sessions.
        sessions: u64,
    },
    /// Sessions, ascending by number, at most [`SESSIONS_MAX`](crate::SESSIONS_MAX).
    Sessions {
        /// Who holds what.
        sessions: Vec<SessionUse>,
        /// There are more behind the last.
        more: bool,
    },
}

/// The device, as its trait describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// For people.
    pub name: String,
    /// Bytes of one frame.
    pub frame_bytes: u64,
    /// Frames that the device has.
    pub capacity_frames: u64,
    /// Bytes of one address reservation.
    pub region_bytes: u64,
    /// The device says which pages were stored to.
    pub dirty_bits: bool,
}

/// What one session may hold; more is [`Failure::Limit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Open files.
    pub files: u64,
    /// Pins.
    pub pins: u64,
    /// Bytes under pins.
    pub pinned_bytes: u64,
    /// Requests not yet answered.
    pub requests: u64,
}

/// A pin that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// Bytes written back.
    pub written_bytes: u64,
    /// Why they were not kept away, if they should have been; for people.
    pub refused: Option<String>,
}

/// What the trust in copies of a file rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Coherence {
    /// Nobody can change it.
    Fixed,
    /// It is proven that nobody has changed it.
    Proven,
    /// Its times and size.
    Stamps,
    /// Nothing; why, for people.
    Unproven(String),
}

/// Where a stretch of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The stretch.
    pub span: Span,
    /// Its pages' state.
    pub state: PageState,
    /// Some pin holds it.
    pub pinned: bool,
}

/// Where the newest version of a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PageState {
    /// In the page cache only.
    Home,
    /// In the page cache; the device has a duplicate.
    Copy,
    /// On the device only.
    Away,
}

/// One counter or gauge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// Stable, snake_case.
    pub name: String,
    /// "bytes", "count".
    pub unit: String,
    /// For people.
    pub help: String,
    /// Its value.
    pub value: u64,
}

/// What one session holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionUse {
    /// Its number.
    pub session: u64,
    /// The client's process, as the daemon sees it (0: in a namespace it cannot see).
    pub pid: u32,
    /// The client's user.
    pub uid: u32,
    /// The client's program, for people.
    pub program: String,
    /// Open files.
    pub files: u64,
    /// Pins.
    pub pins: u64,
    /// Bytes under pins.
    pub pinned_bytes: u64,
    /// Requests that are not yet answered.
    pub requests: u64,
}

impl Return {
    /// The texts for people, which may be cut to fit a message.
    pub(crate) fn texts(&mut self) -> Vec<&mut String> {
        match &mut self.result {
            Err(failure) => failure.texts(),
            Ok(Reply::Released { pins }) => pins.iter_mut().flat_map(outcome_texts).collect(),
            Ok(Reply::Coherence(Coherence::Unproven(why))) => vec![why],
            Ok(Reply::Welcome { device, .. }) => vec![&mut device.name],
            Ok(Reply::Stats(counters)) => counters.iter_mut().map(|c| &mut c.help).collect(),
            Ok(Reply::Sessions { sessions, .. }) => {
                sessions.iter_mut().map(|s| &mut s.program).collect()
            }
            Ok(_) => Vec::new(),
        }
    }
}

fn outcome_texts(outcome: &mut Result<Released, Failure>) -> Vec<&mut String> {
    match outcome {
        Ok(released) => released.refused.iter_mut().collect(),
        Err(failure) => failure.texts(),
    }
}
