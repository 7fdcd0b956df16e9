//! What can go wrong with a map.

use std::io;

use rustix::io::Errno;

use crate::limits;

/// Why a mapping could not be made or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// A mapping of no bytes.
    #[error("a mapping must have at least one page")]
    Empty,
    /// A place that is not made of whole pages.
    #[error("{len} bytes at offset {offset} are not whole pages of {page} bytes")]
    Misaligned {
        /// Where.
        offset: u64,
        /// How long.
        len: usize,
        /// The page size.
        page: usize,
    },
    /// A place that no file has.
    #[error("{len} bytes at offset {offset} end beyond the largest file there can be")]
    TooLarge {
        /// Where.
        offset: u64,
        /// How long.
        len: usize,
    },
    /// A range that is empty or not inside the map.
    #[error("{start}..{end} is not a range of a map of {map_len} bytes")]
    OutOfRange {
        /// First byte.
        start: usize,
        /// One past the last byte.
        end: usize,
        /// The map's length.
        map_len: usize,
    },
    /// A writable mapping of a file that was opened for reading.
    #[error("the file is open for reading only and cannot be mapped for writing")]
    ReadOnlyFile,
    /// The process has as many mappings as it may; bring neighbouring ranges home, or raise
    /// `vm.max_map_count`.
    #[error(
        "the process has used up its mappings (vm.max_map_count = {max_map_count}); \
         scattered ranges that are away need two each"
    )]
    OutOfVmas {
        /// The limit.
        max_map_count: u64,
    },
    /// The map already has placeholders of another [`Uffd`](crate::Uffd).
    #[error("parts of this map are trapped with another userfaultfd")]
    OtherUffd,
    /// Called by the thread that reads the userfaultfd's events, which would wait for itself.
    #[error("called by the thread that reads the userfaultfd's events")]
    CalledByReader,
    /// The map, the userfaultfd or the store tracker belongs to a parent process.
    #[error("what a process has mapped is not its forked child's")]
    Forked,
    /// The system refused.
    #[error("{call}: {source}")]
    Os {
        /// The system call.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl MapError {
    /// The error of a call that can fail because there are too many mappings.
    pub(super) fn of(call: &'static str, error: impl Into<io::Error>) -> MapError {
        let source = error.into();
        if source.raw_os_error() == Some(Errno::NOMEM.raw_os_error())
            && let Some(max_map_count) = limits::out_of_vmas()
        {
            return MapError::OutOfVmas { max_map_count };
        }
        MapError::Os { call, source }
    }
}

/// Why an access through a map failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// Not inside the map.
    #[error("{len} bytes at {at} are not inside a map of {map_len} bytes")]
    OutOfRange {
        /// First byte.
        at: usize,
        /// How many.
        len: usize,
        /// The map's length.
        map_len: usize,
    },
    /// An access of one value that is not at a multiple of its size.
    #[error("offset {at} is not a multiple of {size}")]
    Misaligned {
        /// Where.
        at: usize,
        /// The value's size.
        size: usize,
    },
    /// The map belongs to a parent process, and its addresses mean something else here.
    #[error("what a process has mapped is not its forked child's")]
    Forked,
    /// A store into a map for reading.
    #[error("the map is for reading only")]
    ReadOnly,
    /// The page lies beyond the end of the file.
    #[error("after {done} bytes: offset {offset} of the file is beyond its end at {size}")]
    PastEof {
        /// Bytes copied before.
        done: usize,
        /// Where in the file.
        offset: u64,
        /// The file's size.
        size: u64,
    },
    /// The page is away, and the kernel does not make system calls wait for it: the userfaultfd is
    /// user-mode-only ([`UffdMode::UserOnly`](crate::UffdMode::UserOnly)), or the page is poisoned.
    #[error("after {done} bytes: the page at {at} is away and cannot be waited for")]
    Away {
        /// Bytes copied before.
        done: usize,
        /// Where in the map.
        at: usize,
    },
    /// The system refused; `EFAULT` here means that reading the page from storage failed.
    #[error("{call}, after {done} bytes: {source}")]
    Os {
        /// Bytes copied before.
        done: usize,
        /// The system call.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
}
