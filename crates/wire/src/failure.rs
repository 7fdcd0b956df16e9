//! How a request fails: the library's errors, as they travel, and those that only a daemon has.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Span;

/// Why a request failed. All but the first three are the errors of the library, one for one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The daemon speaks another version. Stays the first variant, as it is, in every version.
    Version {
        /// The daemon's [`VERSION`](crate::VERSION).
        daemon: u32,
    },
    /// The message breaks a rule; what is wrong with it, for people.
    Protocol(String),
    /// A limit of the daemon is reached.
    Limit {
        /// Of what: "open files of a session", ...
        what: String,
        /// How many there may be.
        limit: u64,
    },
    /// The argument makes no sense.
    InvalidArgument(String),
    /// Not a regular file.
    NotRegularFile {
        /// As given.
        name: String,
        /// "a directory", "a FIFO", ...
        what: String,
    },
    /// The range reaches beyond the page that holds the end of file.
    PastEof {
        /// The range asked for.
        range: Span,
        /// The file's size, in bytes.
        file_bytes: u64,
    },
    /// The file shrank while pinned.
    FileShrunk {
        /// The pinned range.
        range: Span,
        /// The lowest size seen, in bytes.
        file_bytes: u64,
        /// Device-written bytes beyond it.
        lost_bytes: u64,
    },
    /// What is read-only.
    ReadOnly(String),
    /// A device access outside the pin, or a store through a read pin.
    OutsidePin {
        /// "load" or "store".
        access: String,
        /// The access.
        range: Span,
        /// The pin.
        pinned: Span,
        /// "read" or "write".
        mode: String,
    },
    /// The pin would have had to wait.
    WouldBlock {
        /// The range asked for.
        range: Span,
    },
    /// The wait ended without the range becoming free.
    TimedOut {
        /// The range asked for.
        range: Span,
        /// How long the call waited.
        waited: Duration,
    },
    /// Waiting could never end.
    WouldDeadlock {
        /// The range asked for.
        range: Span,
    },
    /// The device has no room.
    DeviceFull {
        /// Bytes needed at once, in whole frames.
        needed_bytes: u64,
        /// The cache's budget.
        budget_bytes: u64,
        /// Bytes in frames under pins.
        pinned_bytes: u64,
    },
    /// A device operation failed.
    Device(DeviceFailure),
    /// Reading or writing the file failed.
    File {
        /// "read", "write-back", "fsync", ...
        what: String,
        /// The bytes concerned.
        range: Span,
        /// The system error number.
        errno: i32,
    },
    /// A system call on the descriptor failed.
    Os {
        /// What was tried.
        what: String,
        /// The system error number.
        errno: i32,
    },
    /// The limit on mappings of the daemon is reached.
    OutOfVmas {
        /// The limit in force.
        max_map_count: u64,
    },
    /// What is unsupported.
    Unsupported(String),
    /// Keeping away was refused; the bytes were written back instead.
    Unguarded {
        /// The released range.
        range: Span,
        /// What stands in the way, for people.
        why: String,
    },
    /// A forked child uses what its parent made.
    Forked,
    /// A kernel failed.
    KernelFailed(String),
}

/// A device operation failed: the errors of the device's trait, one for one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceFailure {
    /// No frame is free on the device.
    Full {
        /// Frames that the device has.
        capacity_frames: u64,
        /// Bytes of one frame.
        frame_bytes: u64,
    },
    /// The device refused an allocation.
    AllocFailed {
        /// Bytes of one frame.
        frame_bytes: u64,
    },
    /// A copy into device memory failed.
    CopyIn {
        /// Bytes of the copy.
        len: u64,
    },
    /// A copy out of device memory failed.
    CopyOut {
        /// Bytes of the copy.
        len: u64,
    },
    /// The device is gone.
    Lost,
    /// The device's address space has no room.
    NoAddressSpace {
        /// Bytes asked for.
        bytes: u64,
    },
    /// A caller named something that is not there.
    Invalid {
        /// What was wrong.
        what: String,
        /// The frame concerned, where there is one.
        frame: Option<u32>,
    },
    /// A kernel panicked or was aborted.
    KernelFailed {
        /// The panic message, or the driver's reason.
        message: String,
    },
}

impl Failure {
    /// The texts for people, which may be cut to fit a message.
    pub(crate) fn texts(&mut self) -> Vec<&mut String> {
        match self {
            Failure::Protocol(text)
            | Failure::InvalidArgument(text)
            | Failure::ReadOnly(text)
            | Failure::Unsupported(text)
            | Failure::KernelFailed(text)
            | Failure::Limit { what: text, .. }
            | Failure::Os { what: text, .. }
            | Failure::File { what: text, .. }
            | Failure::Unguarded { why: text, .. }
            | Failure::Device(
                DeviceFailure::Invalid { what: text, .. }
                | DeviceFailure::KernelFailed { message: text },
            ) => vec![text],
            Failure::NotRegularFile { name, what } => vec![name, what],
            Failure::OutsidePin { access, mode, .. } => vec![access, mode],
            Failure::Version { .. }
            | Failure::PastEof { .. }
            | Failure::FileShrunk { .. }
            | Failure::WouldBlock { .. }
            | Failure::TimedOut { .. }
            | Failure::WouldDeadlock { .. }
            | Failure::DeviceFull { .. }
            | Failure::Device(_)
            | Failure::OutOfVmas { .. }
            | Failure::Forked => Vec::new(),
        }
    }
}
