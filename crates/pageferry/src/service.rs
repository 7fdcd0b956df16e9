//! What the handles of a cache ask, wherever the cache is.
//!
//! The one idea: a [`File`](crate::File), a [`Pin`](crate::Pin), a [`View`](crate::View) do not know where
//! their cache lives. What they need of it is these two traits: [`embedded`](crate::embedded) has them in
//! this process; a daemon speaks them over a socket and its clients are proxies of them, so that both
//! forms of a cache do the same by construction.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use pageferry_device::{Access, Device, DeviceAddr, Memory, MemoryFault};
use pageferry_engine::{Owner, PinKey};
use pageferry_linux::SealedMemory;

use crate::map::MapService;
use crate::{After, Coherence, PinMode, Placement, Result, Segment, Session, Stats, Wait};

/// A cache.
pub(crate) trait CacheService: Send + Sync {
    /// Opens a file by name.
    fn open(&self, path: &Path, writable: bool) -> Result<Arc<dyn FileService>>;

    /// Opens the file behind a descriptor, in its access mode.
    fn open_fd(&self, fd: BorrowedFd<'_>) -> Result<Arc<dyn FileService>>;

    /// The device whose processors run this process's kernels.
    fn device(&self) -> &Arc<dyn Device>;

    /// The budget, in bytes.
    fn memory_bytes(&self) -> u64;

    /// Device memory in use now, in bytes.
    fn used_bytes(&self) -> u64;

    /// A snapshot of the counters.
    fn stats(&self) -> Stats;

    /// Who else uses the cache, if it is a daemon's.
    fn sessions(&self) -> Result<Vec<Session>>;

    /// Writes the away pages of all files back.
    fn flush(&self, owner: Owner) -> Result<u64>;

    /// Refuses a forked child.
    fn not_forked(&self) -> Result<()>;

    /// A pin or view could not be released as it should, and nobody was there to be told.
    fn count_failed_release(&self);
}

/// One opening of a file. An `owner` is the thread that asks: it is not made to wait for pins that it holds.
pub(crate) trait FileService: Send + Sync {
    /// For messages.
    fn name(&self) -> &str;

    /// Opened for writing too.
    fn is_writable(&self) -> bool;

    /// The file's size now, in bytes.
    fn bytes(&self) -> Result<u64>;

    /// Pins all of the ranges or none.
    fn pin(
        &self,
        ranges: &[Range<u64>],
        mode: PinMode,
        wait: Wait,
        owner: Owner,
    ) -> Result<Vec<PinKey>>;

    /// Another thread is the one to be asked to release the pin; `None`: nobody in particular.
    fn set_owner(&self, pin: PinKey, owner: Owner);

    /// Ends a pin whatever the result.
    fn release(&self, pin: PinKey, range: &Range<u64>, after: After) -> Result<Released>;

    /// Where a pinned range is in the device's address space.
    fn segments(&self, pin: PinKey, range: &Range<u64>) -> Vec<Segment>;

    /// Performs a kernel's access of bytes that the pin holds.
    fn access(&self, pin: PinKey, range: Range<u64>, piece: &mut Piece<'_>) -> Result<()>;

    /// Reads like `pread`.
    fn read_at(&self, buf: &mut [u8], range: &Range<u64>, owner: Owner) -> Result<usize>;

    /// Changes the file by a system call.
    fn change(&self, change: &FileChange<'_>, owner: Owner) -> Result<()>;

    /// Writes away bytes of the range to the file.
    fn flush(&self, range: Range<u64>, owner: Owner) -> Result<u64>;

    /// Makes the file durable, as `fsync` or `fdatasync`.
    fn sync(&self, range: Range<u64>, data_only: bool, owner: Owner) -> Result<()>;

    /// Brings what it can of a range onto the device.
    fn prefetch(&self, range: Range<u64>, owner: Owner) -> Result<u64>;

    /// Takes unpinned pages off the device.
    fn evict(&self, range: Range<u64>) -> Result<u64>;

    /// What the trust in copies rests on.
    fn coherence(&self) -> Result<Coherence>;

    /// Where the pages of a range are.
    fn placement(&self, range: Range<u64>) -> Result<Vec<Placement>>;

    /// Maps whole pages into this process.
    fn map(&self, range: Range<u64>, writable: bool) -> Result<Box<dyn MapService>>;

    /// Closes this opening; once.
    fn close(&self) -> Result<()>;
}

/// How a pin ended.
pub(crate) struct Released {
    /// What went home.
    pub(crate) written_bytes: u64,
    /// Why bytes were not kept away that should have been.
    pub(crate) refused: Option<String>,
}

/// A change of a file by a system call, in its terms.
#[derive(Clone, Debug)]
pub(crate) enum FileChange<'a> {
    Write {
        offset: u64,
        bytes: &'a [u8],
    },
    /// All of the bytes of some memory of another process.
    WriteMemory {
        offset: u64,
        memory: &'a SealedMemory,
    },
    SetLen(u64),
    PunchHole(Range<u64>),
    ZeroRange {
        range: Range<u64>,
        keep_size: bool,
    },
    Allocate {
        range: Range<u64>,
        keep_size: bool,
    },
    CollapseRange(Range<u64>),
    InsertRange(Range<u64>),
}

/// One access of a kernel, as far as it is not done.
pub(crate) enum Piece<'x> {
    /// For loading, or for loading what will be stored to next.
    Load(&'x mut [u8], Access),
    Store(&'x [u8]),
}

impl Piece<'_> {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Piece::Load(buf, _) => buf.len() as u64,
            Piece::Store(bytes) => bytes.len() as u64,
        }
    }

    /// What the pages must permit.
    pub(crate) fn access(&self) -> Access {
        match self {
            Piece::Load(_, access) => *access,
            Piece::Store(_) => Access::Write,
        }
    }

    /// Performs the first `len` bytes.
    pub(crate) fn perform(
        &mut self,
        memory: &dyn Memory,
        addr: DeviceAddr,
        len: u64,
    ) -> Result<(), MemoryFault> {
        match self {
            Piece::Load(buf, _) => memory.load(addr, &mut buf[..len as usize]),
            Piece::Store(bytes) => memory.store(addr, &bytes[..len as usize]),
        }
    }

    /// The first `len` bytes are done.
    pub(crate) fn advance(&mut self, len: u64) {
        match self {
            Piece::Load(buf, _) => *buf = &mut std::mem::take(buf)[len as usize..],
            Piece::Store(bytes) => *bytes = &bytes[len as usize..],
        }
    }
}
