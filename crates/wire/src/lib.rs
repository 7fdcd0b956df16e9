//! What a process and the daemon that owns its page cache say to each other.
//!
//! The one idea: **one request is one packet, and so is its reply**. A packet of a `SOCK_SEQPACKET`
//! socket arrives whole or not at all, so there is no framing and no half of a message to wait for; an
//! [id](Call::id) tells which reply answers which request, so any number of threads share one socket. This
//! crate is only the messages: it opens nothing, and whatever bytes it is given, it answers with a message or
//! with [`Malformed`].
//!
//! # A session
//!
//! 1. The client connects and sends [`Hello`](Request::Hello), its first message. The daemon answers
//!    [`Welcome`](Reply::Welcome).
//! 2. [`Open`](Request::Open) brings a descriptor, and gives a [`FileId`]; [`Pin`](Request::Pin) gives
//!    [`PinId`]s; [`Frames`](Request::Frames) gives the memory in which the pinned bytes are, so that bytes
//!    do not travel by messages, but for the few of [`Read`](Request::Read) and `Write`. Ids are those of the
//!    session: the same numbers mean nothing in another.
//! 3. The session ends with the socket. The daemon then releases what the client held.
//!
//! Every request is answered exactly once, in any order. An id must not be used again before its answer is
//! there. Who breaks a rule of this page hears [`Failure::Protocol`] if there is an id to answer to; else the
//! daemon hangs up.
//!
//! # What may wait
//!
//! For pins of others, as long as those are held: [`Pin`](Request::Pin) (as its [`Wait`] says),
//! [`Read`](Request::Read), [`Change`](Request::Change) (but not `SetLen`), [`Flush`](Request::Flush),
//! [`Sync`](Request::Sync), [`FlushAll`](Request::FlushAll), [`Touch`](Request::Touch). For copies and the storage only:
//! [`Open`](Request::Open), [`Close`](Request::Close), [`Release`](Request::Release),
//! [`Prefetch`](Request::Prefetch), [`Evict`](Request::Evict), [`Drop`](Request::Drop),
//! [`Fault`](Request::Fault), [`Len`](Request::Len), [`Coherence`](Request::Coherence),
//! [`Placement`](Request::Placement), [`MapIn`](Request::MapIn), [`MapOut`](Request::MapOut). The others are answered at once. So a client may have one thread
//! waiting for a pin and another release what it waits for, over the same socket.
//!
//! # Limits
//!
//! A packet has at most [`MESSAGE_BYTES_MAX`] bytes; what a list may hold is a constant of this crate, named
//! at each list. Both sides check both: [`encode_call`] and [`encode_return`] refuse to make what
//! [`decode_call`] and [`decode_return`] refuse to take. Decoding allocates a small multiple of the packet's
//! bytes, whatever they say. What a session may hold is the daemon's choice ([`Limits`]).
//!
//! # Versions
//!
//! There is one [`VERSION`], and both sides must have it: a daemon and its clients are one release. Any change of
//! a message is a new version. Only what tells so never changes: `Hello`'s bytes, those of [`Call::id`] and
//! [`Return::id`], and those of [`Failure::Version`], the answer to a `Hello` of another version.
//!
//! # Testing
//!
//! `cargo test -p pageferry-wire`; for long, with any number of cases of each property:
//! `WIRE_CASES=5000000 cargo test --release -p pageferry-wire`.
//!
//! ```
//! use pageferry_wire::{Call, Request, VERSION, decode_call, encode_call};
//!
//! let call = Call { id: 1, request: Request::Hello { version: VERSION } };
//! let packet = encode_call(&call)?;
//! assert_eq!(decode_call(&packet)?, call);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod bytes;
mod codec;
mod failure;
mod mapping;
mod reply;
mod request;
mod span;
mod stores;

pub use codec::{Malformed, TooLarge, decode_call, decode_return, encode_call, encode_return};
pub use failure::{DeviceFailure, Failure};
pub use mapping::{
    Ask, MapId, STORED_RUNS_MAX, Task, Told, decode_ask, decode_told, encode_ask, encode_told,
};
pub use reply::{
    Coherence, Counter, Device, Limits, PageState, Released, Reply, Return, Run, SessionUse,
};
pub use request::{After, Call, Change, FileId, Mode, PinId, Release, Request, Wait, frames_sent};
pub use span::Span;
pub use stores::{BadRuns, Stores, encode_runs, parse_runs};

/// The version of the messages; see the [head](self) of this crate.
pub const VERSION: u32 = 1;
/// Bytes of one packet, at most.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Bytes of a file in one message, at most.
pub const DATA_BYTES_MAX: usize = 60 << 10;
/// Descriptors with one reply, at most. With a request comes at most one
/// ([`Request::descriptors`]).
pub const DESCRIPTORS_MAX: usize = 64;
/// Bytes of the name of a file, at most.
pub const NAME_BYTES_MAX: usize = 4096;
/// Ranges that one request pins, at most.
pub const RANGES_MAX: usize = 1024;
/// Pins that one request releases, at most.
pub const RELEASES_MAX: usize = 1024;
/// Folios that one [`Request::Frames`] asks about, at most: each may come with a descriptor.
pub const FOLIOS_MAX: usize = DESCRIPTORS_MAX;
/// Runs in one [`Reply::Placement`], at most.
pub const PLACEMENT_RUNS_MAX: usize = 2048;
/// Counters in one [`Reply::Stats`], at most.
pub const COUNTERS_MAX: usize = 256;
/// Sessions in one [`Reply::Sessions`], at most.
pub const SESSIONS_MAX: usize = 64;
/// Runs of one [`Stores`], at most.
pub const STORE_RUNS_MAX: u64 = 1 << 16;
