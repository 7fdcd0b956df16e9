//! Every way a call can fail, with the numbers that explain it.

use std::io;
use std::ops::Range;
use std::time::Duration;

use pageferry_device::DeviceError;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. [`kind`](Error::kind) is a stable word for programs, [`errno`](Error::errno) the
/// closest system error number.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The argument makes no sense (empty or wrapping range, misaligned, too large).
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// Not a regular file.
    #[error("{name} is {what}, not a regular file; only regular files have pages to cache")]
    NotRegularFile {
        /// The path or descriptor as given.
        name: String,
        /// "a directory", "a FIFO", ...
        what: String,
    },
    /// The range reaches beyond the page that holds the end of file.
    #[error(
        "bytes {}..{} reach past the end of the file, which has {file_bytes} bytes",
        range.start, range.end
    )]
    PastEof {
        /// The range asked for, in bytes.
        range: Range<u64>,
        /// The file's size, in bytes.
        file_bytes: u64,
    },
    /// The file shrank while pinned; what the device wrote beyond the new end is gone, as a store
    /// through a mapping would be.
    #[error("the file shrank to {file_bytes} bytes while {}..{} was pinned; {lost_bytes} bytes written beyond it were dropped", range.start, range.end)]
    FileShrunk {
        /// The pinned range, in bytes.
        range: Range<u64>,
        /// The lowest size seen, in bytes.
        file_bytes: u64,
        /// Device-written bytes beyond it.
        lost_bytes: u64,
    },
    /// The file, its descriptor or mapping is read-only.
    #[error("{0} is read-only; open the file for writing first")]
    ReadOnly(String),
    /// A device access outside the view's pin, or a store through a read pin.
    #[error("device {access} of bytes {}..{} is not covered by the pin of {}..{} ({mode})", range.start, range.end, pinned.start, pinned.end)]
    OutsidePin {
        /// "load" or "store".
        access: &'static str,
        /// The access, in bytes.
        range: Range<u64>,
        /// The pin, in bytes.
        pinned: Range<u64>,
        /// "read" or "write".
        mode: &'static str,
    },
    /// The pin would have had to wait (`Wait::Try`).
    #[error("{} is pinned by another user; try later or wait", bytes(range))]
    WouldBlock {
        /// The range asked for, in bytes.
        range: Range<u64>,
    },
    /// The wait ended without the range becoming free.
    #[error("timed out after {waited:?} waiting for pins of {}", bytes(range))]
    TimedOut {
        /// The range asked for, in bytes.
        range: Range<u64>,
        /// How long the call waited.
        waited: Duration,
    },
    /// Waiting could never end: this thread (or a cycle of waiting threads) holds what it asks for.
    #[error(
        "waiting for {} would deadlock: this thread, or one waiting for it, holds a pin there; release that first",
        bytes(range)
    )]
    WouldDeadlock {
        /// The range asked for, in bytes.
        range: Range<u64>,
    },
    /// The device has no room: everything is pinned, or the request exceeds the budget.
    #[error(
        "device memory is full: {needed_bytes} bytes needed, budget {budget_bytes}, {pinned_bytes} pinned; release pins or ask for less"
    )]
    DeviceFull {
        /// Bytes needed at once, in whole frames.
        needed_bytes: u64,
        /// The cache's budget.
        budget_bytes: u64,
        /// Bytes in frames under pins.
        pinned_bytes: u64,
    },
    /// A device operation failed.
    #[error("device: {0}")]
    Device(DeviceError),
    /// Reading or writing the file failed; the number tells why (ENOSPC, EIO, EFBIG, ...).
    #[error("{what} of {}: {}", bytes(range), io::Error::from_raw_os_error(*errno))]
    File {
        /// "read", "write-back", "fsync", ...
        what: &'static str,
        /// The bytes concerned.
        range: Range<u64>,
        /// The system error number.
        errno: i32,
    },
    /// A system call on the path or descriptor failed.
    #[error("{what}: {}", io::Error::from_raw_os_error(*errno))]
    Os {
        /// What was tried.
        what: String,
        /// The system error number.
        errno: i32,
    },
    /// The process comes near the kernel's limit on mappings (`vm.max_map_count`), of which each
    /// separate stretch that a mapping has away takes two. The pin or mapping is refused while fewer
    /// are left than a 64th of the limit, which are the program's: for its threads and memory. That is
    /// found by counting now and then, so a refusal may stand for some seconds after others have
    /// given mappings back; `flush` gives back at once what the cache took. From `flush` or a
    /// touch: the program has used up the rest and what is kept in reserve for coming home as well;
    /// nothing is lost, and it works again once some are given back.
    #[error(
        "out of mappings: vm.max_map_count is {max_map_count}; raise it, or pin larger contiguous ranges"
    )]
    OutOfVmas {
        /// The limit in force.
        max_map_count: u64,
    },
    /// This kernel or container lacks something that the call needs.
    #[error("unsupported here: {0}")]
    Unsupported(String),
    /// Keeping away was refused; the bytes were written back instead.
    #[error("{} cannot be kept away, and went home: {why}", bytes(range))]
    Unguarded {
        /// The released range, in bytes.
        range: Range<u64>,
        /// What stands in the way, for people.
        why: String,
    },
    /// A limit of the daemon is reached (it can be raised there).
    #[error("the daemon allows no more than {limit} {what}")]
    Limit {
        /// Of what: "pins of a session", ...
        what: String,
        /// How many there may be.
        limit: u64,
    },
    /// There is no daemon any more at the other end: everything held through this cache is gone. What had
    /// been released is in the files, or was with the daemon; connect again.
    #[error("the connection to the daemon is lost ({why}); connect again")]
    Disconnected {
        /// How that was noticed.
        why: String,
    },
    /// The daemon and this library do not understand each other.
    #[error("the daemon speaks another language: {0}; use the same release on both sides")]
    Protocol(String),
    /// A forked child uses what its parent made.
    #[error("the cache belongs to the process that made it; a forked child opens its own")]
    Forked,
    /// A kernel closure failed or panicked.
    #[error("kernel failed: {0}")]
    KernelFailed(String),
}

/// A system call on a path or descriptor failed.
pub(crate) fn os_error(what: &str, error: &io::Error) -> Error {
    Error::Os { what: what.into(), errno: error.raw_os_error().unwrap_or(libc::EIO) }
}

/// A system call on a file's bytes failed; one that the caller's argument was refused for says so.
pub(crate) fn file_error(what: &'static str, range: &Range<u64>, error: &io::Error) -> Error {
    Error::File { what, range: range.clone(), errno: error.raw_os_error().unwrap_or(libc::EINVAL) }
}

/// A range in words.
fn bytes(range: &Range<u64>) -> String {
    match range.end {
        u64::MAX if range.start == 0 => "the file".into(),
        u64::MAX => format!("bytes {} to the end", range.start),
        end => format!("bytes {}..{end}", range.start),
    }
}

impl Error {
    /// What a `Drop` has to report: nothing in a forked child.
    pub(crate) fn unless_forked(self) -> Result<()> {
        if matches!(self, Error::Forked) { Ok(()) } else { Err(self) }
    }

    /// A stable, kebab-case word for programs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Error::InvalidArgument(_) => "invalid-argument",
            Error::NotRegularFile { .. } => "not-regular-file",
            Error::PastEof { .. } => "past-eof",
            Error::FileShrunk { .. } => "file-shrunk",
            Error::ReadOnly(_) => "read-only",
            Error::OutsidePin { .. } => "outside-pin",
            Error::WouldBlock { .. } => "would-block",
            Error::TimedOut { .. } => "timed-out",
            Error::WouldDeadlock { .. } => "would-deadlock",
            Error::DeviceFull { .. } => "device-full",
            Error::Device(DeviceError::Lost) => "device-lost",
            Error::Device(_) => "device-error",
            Error::File { errno, .. } | Error::Os { errno, .. } => match *errno {
                libc::ENOSPC | libc::EDQUOT => "no-space",
                libc::EFBIG => "file-too-big",
                libc::EIO => "io-error",
                libc::ENOENT => "not-found",
                libc::EACCES | libc::EPERM => "permission",
                libc::EROFS => "read-only",
                _ => "os-error",
            },
            Error::OutOfVmas { .. } => "out-of-vmas",
            Error::Unsupported(_) => "unsupported",
            Error::Unguarded { .. } => "unguarded",
            Error::Limit { .. } => "limit",
            Error::Disconnected { .. } => "disconnected",
            Error::Protocol(_) => "protocol",
            Error::Forked => "forked",
            Error::KernelFailed(_) => "kernel-failed",
        }
    }

    /// The closest `errno`.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Error::InvalidArgument(_) | Error::NotRegularFile { .. } => libc::EINVAL,
            Error::PastEof { .. } => libc::EFAULT,
            Error::FileShrunk { .. } => libc::ESTALE,
            Error::ReadOnly(_) => libc::EACCES,
            Error::OutsidePin { .. } => libc::EPERM,
            Error::WouldBlock { .. } => libc::EAGAIN,
            Error::TimedOut { .. } => libc::ETIMEDOUT,
            Error::WouldDeadlock { .. } => libc::EDEADLK,
            Error::DeviceFull { .. } => libc::ENOMEM,
            Error::Device(DeviceError::Lost) => libc::ENODEV,
            Error::Device(DeviceError::Full { .. } | DeviceError::AllocFailed { .. }) => {
                libc::ENOMEM
            }
            Error::Device(_) => libc::EIO,
            Error::File { errno, .. } | Error::Os { errno, .. } => *errno,
            Error::OutOfVmas { .. } => libc::ENOMEM,
            Error::Unsupported(_) => libc::EOPNOTSUPP,
            Error::Unguarded { .. } => libc::EBUSY,
            Error::Limit { .. } => libc::EUSERS,
            Error::Disconnected { .. } => libc::ECONNRESET,
            Error::Protocol(_) => libc::EPROTO,
            Error::Forked => libc::EPERM,
            Error::KernelFailed(_) => libc::ECANCELED,
        }
    }
}
