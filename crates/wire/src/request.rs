//! What a client asks for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{MapId, Span, Stores};

/// A request and the number by which its answer is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The client's choice; no two requests that are not yet answered have the same.
    pub id: u32,
    /// What is asked.
    pub request: Request,
}

/// A file that the session has opened. The daemon's choice, of this session only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId(pub u64);

/// A pin that the session holds. The daemon's choice, of this session only; never used again within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PinId(pub u64);

/// What a client asks for. Each names the reply that it has; all may fail instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The first of a session, and only the first. [`Reply::Welcome`](crate::Reply::Welcome), or
    /// [`Failure::Version`](crate::Failure::Version). Stays the first variant, as it is, in every version.
    Hello {
        /// [`VERSION`](crate::VERSION).
        version: u32,
    },
    /// Takes the file behind the descriptor that comes with it.
    /// [`Reply::Opened`](crate::Reply::Opened).
    Open {
        /// For messages only: what the file is, is told by the descriptor. At most
        /// [`NAME_BYTES_MAX`](crate::NAME_BYTES_MAX) bytes.
        name: String,
        /// Pins for writing and changes may follow. The descriptor must then be open for writing too.
        writable: bool,
    },
    /// Gives the file up; pins of it must have been released. [`Reply::Done`](crate::Reply::Done).
    Close {
        /// Which file.
        file: FileId,
    },
    /// The file's size now. [`Reply::Bytes`](crate::Reply::Bytes).
    Len {
        /// Which file.
        file: FileId,
    },
    /// Holds all of the ranges on the device, or none. [`Reply::Pinned`](crate::Reply::Pinned).
    Pin {
        /// Which file.
        file: FileId,
        /// What to hold, each by a pin of its own: 1 to [`RANGES_MAX`](crate::RANGES_MAX).
        ranges: Vec<Span>,
        /// What the device will do.
        mode: Mode,
        /// How long to wait for pins of others, all in all.
        wait: Wait,
        /// The client's thread that asks and will hold them, as the client numbers its threads: waits of one
        /// owner for itself, or in a circle, are refused. `None`: nobody; whoever holds them is assumed to
        /// release them.
        owner: Option<u32>,
    },
    /// Hands a pin to another thread of the client. [`Reply::Done`](crate::Reply::Done).
    SetOwner {
        /// Which pin.
        pin: PinId,
        /// As in [`Pin`](Request::Pin).
        owner: Option<u32>,
    },
    /// Tells what the device stored under a pin for writing that the session holds, in the message itself: for a client
    /// that cannot make the memory for [`Release`](Request::Release). [`Reply::Done`](crate::Reply::Done).
    Store {
        /// Which pin.
        pin: PinId,
        /// At which byte of the file.
        offset: u64,
        /// At most [`DATA_BYTES_MAX`](crate::DATA_BYTES_MAX).
        #[serde(with = "crate::bytes")]
        bytes: Vec<u8>,
    },
    /// Tells what the device stored, and ends pins. [`Reply::Released`](crate::Reply::Released): the pins are gone
    /// whatever it says.
    Release {
        /// At most [`RELEASES_MAX`](crate::RELEASES_MAX); none, to tell of stores and go on.
        pins: Vec<Release>,
        /// What the device stored under write pins that the session holds, these ones included; with a
        /// descriptor of the bytes. Taken before any of the pins ends.
        stores: Option<Stores>,
    },
    /// The memory in which pinned folios are. [`Reply::Frames`](crate::Reply::Frames), with descriptors: see
    /// [`frames_sent`].
    Frames {
        /// The pin; folios of which it holds no byte count as having no frame.
        pin: PinId,
        /// The first of them, in frames from the start of the file.
        first_folio: u64,
        /// The serials of the frames that the client has for this and the folios behind it; 0: it has none. 1 to
        /// [`FOLIOS_MAX`](crate::FOLIOS_MAX).
        known: Vec<u64>,
    },
    /// The device could not access a byte under a pin, a first store or bytes that were cut off: makes its page
    /// accessible. [`Reply::Done`](crate::Reply::Done), or [`Failure::PastEof`](crate::Failure::PastEof) and others.
    Fault {
        /// Which pin.
        pin: PinId,
        /// Which byte of the file.
        at: u64,
    },
    /// Reads like `pread`. [`Reply::Data`](crate::Reply::Data).
    Read {
        /// Which file.
        file: FileId,
        /// From which byte.
        offset: u64,
        /// How many, at most [`DATA_BYTES_MAX`](crate::DATA_BYTES_MAX).
        bytes: u32,
        /// The client's thread that asks, as in [`Pin`](Request::Pin).
        owner: Option<u32>,
    },
    /// Changes the file. [`Reply::Done`](crate::Reply::Done).
    Change {
        /// Which file.
        file: FileId,
        /// How.
        change: Change,
        /// The client's thread that asks, as in [`Pin`](Request::Pin).
        owner: Option<u32>,
    },
    /// Writes away bytes to the file. [`Reply::Bytes`](crate::Reply::Bytes): those written.
    Flush {
        /// Which file.
        file: FileId,
        /// Which bytes.
        span: Span,
        /// The client's thread that asks, as in [`Pin`](Request::Pin).
        owner: Option<u32>,
    },
    /// Flushes, then makes the file durable. [`Reply::Done`](crate::Reply::Done).
    Sync {
        /// Which file.
        file: FileId,
        /// Which bytes are flushed before.
        span: Span,
        /// As `fdatasync`.
        data_only: bool,
        /// The client's thread that asks, as in [`Pin`](Request::Pin).
        owner: Option<u32>,
    },
    /// Brings what it can onto the device. [`Reply::Bytes`](crate::Reply::Bytes): those brought or found there.
    Prefetch {
        /// Which file.
        file: FileId,
        /// Which bytes.
        span: Span,
    },
    /// Takes unpinned pages off the device. [`Reply::Bytes`](crate::Reply::Bytes): those taken off.
    Evict {
        /// Which file.
        file: FileId,
        /// Which bytes.
        span: Span,
    },
    /// What the trust in copies rests on. [`Reply::Coherence`](crate::Reply::Coherence).
    Coherence {
        /// Which file.
        file: FileId,
    },
    /// Where pages are. [`Reply::Placement`](crate::Reply::Placement): as many runs as fit; who wants more asks on
    /// from the end of the last.
    Placement {
        /// Which file.
        file: FileId,
        /// Which bytes.
        span: Span,
    },
    /// Writes away bytes of all files that the session has open. [`Reply::Bytes`](crate::Reply::Bytes): those
    /// written.
    FlushAll {
        /// The client's thread that asks, as in [`Pin`](Request::Pin).
        owner: Option<u32>,
    },
    /// The cache's counters. [`Reply::Stats`](crate::Reply::Stats).
    Stats,
    /// How full the cache is. [`Reply::Usage`](crate::Reply::Usage).
    Usage,
    /// Who holds what. [`Reply::Sessions`](crate::Reply::Sessions): as many as fit; who wants more asks on from the
    /// last.
    Sessions {
        /// Only sessions with a higher number than this; 0: from the first.
        after: u64,
    },
    /// Evicts all of a file that is not pinned. [`Reply::Bytes`](crate::Reply::Bytes): those taken off.
    Drop {
        /// Which file.
        file: FileId,
    },
    /// The description of the file that the daemon has itself, to be mapped: it counts as nobody else's.
    /// [`Reply::Done`](crate::Reply::Done), with a descriptor if the daemon gives it to this client and it is not open
    /// for more than the client's is.
    Description {
        /// Which file.
        file: FileId,
    },
    /// Asks for a socket on which the client answers what is asked of its mappings ([`Ask`](crate::Ask)); once.
    /// [`Reply::Done`](crate::Reply::Done), with its descriptor.
    Callbacks,
    /// Tells of a mapping. The daemon asks for its pages to be trapped as they must be, on the socket of
    /// [`Callbacks`](Request::Callbacks), before it answers [`Reply::Done`](crate::Reply::Done).
    MapIn {
        /// The client's name for it.
        map: MapId,
        /// Which file.
        file: FileId,
        /// Which bytes: whole pages.
        span: Span,
        /// Stores are possible.
        writable: bool,
    },
    /// The mapping goes: the daemon asks for its last stores before it answers
    /// [`Reply::Done`](crate::Reply::Done).
    MapOut {
        /// Which mapping.
        map: MapId,
    },
    /// An access of a trapped page waits: brings it home. [`Reply::Done`](crate::Reply::Done) when it may go on. If it
    /// never may, the daemon asks for it to be expelled, and says why.
    Touch {
        /// Which mapping.
        map: MapId,
        /// Which byte of the file.
        at: u64,
        /// The thread that waits, as in [`Pin`](Request::Pin).
        owner: Option<u32>,
        /// The access cannot be told that it failed, only expelled.
        expel: bool,
    },
}

impl Request {
    /// Descriptors that come with it: none or one. A daemon refuses any other number.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        match self {
            Request::Open { .. }
            | Request::Release { stores: Some(_), .. }
            | Request::Change { change: Change::WriteMemory { .. }, .. } => 1,
            _ => 0,
        }
    }
}

/// What the device may do with a pinned range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Load.
    Read,
    /// Load and store.
    Write,
    /// Load and store, without reading first what is there.
    Overwrite,
}

/// How long a request may wait for pins of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wait {
    /// Until they are released.
    Block,
    /// At most so long.
    Timeout(Duration),
    /// Not at all.
    Try,
}

/// What a release does with the pages that the device stored to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum After {
    /// Writes them to the file.
    WriteBack,
    /// Leaves them away.
    KeepAway,
}

/// A pin to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Which.
    pub pin: PinId,
    /// How.
    pub after: After,
}

/// A change of a file, as its system call makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// `pwrite` of all the bytes.
    Write {
        /// At which byte.
        offset: u64,
        /// At most [`DATA_BYTES_MAX`](crate::DATA_BYTES_MAX).
        #[serde(with = "crate::bytes")]
        bytes: Vec<u8>,
    },
    /// `pwrite` of all the bytes in the sealed memory whose descriptor comes along: more than a message holds.
    WriteMemory {
        /// At which byte.
        offset: u64,
        /// How many they are.
        bytes: u64,
    },
    /// `ftruncate`, to so many bytes.
    SetLen(u64),
    /// Deallocates: it reads as zeros, the size stays.
    PunchHole(Span),
    /// Zeroes.
    ZeroRange {
        /// Which bytes.
        span: Span,
        /// The file does not grow to the span's end.
        keep_size: bool,
    },
    /// Allocates storage.
    Allocate {
        /// Which bytes.
        span: Span,
        /// The file does not grow to the span's end.
        keep_size: bool,
    },
    /// Removes; what lies behind moves forward.
    CollapseRange(Span),
    /// Inserts a hole; what lies behind moves back.
    InsertRange(Span),
}

/// Which of the folios asked about with [`Request::Frames`] come with a descriptor, in the descriptors' order:
/// those that have a frame which is not the one the client has. Numbers count from the first folio asked about.
///
/// `known` is the request's, `serials` the reply's; they must have the same length.
pub fn frames_sent(known: &[u64], serials: &[u64]) -> impl Iterator<Item = usize> {
    let sent = |(known, serial): (&u64, &u64)| *serial != 0 && serial != known;
    let pairs = known.iter().zip(serials).enumerate();
    pairs.filter_map(move |(folio, pair)| sent(pair).then_some(folio))
}
