//! What a caller may choose.

use std::time::Duration;

/// Settings of a [`Cache`](crate::Cache).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CacheConfig {
    /// Device memory that the cache may use, in bytes, rounded down to whole frames (at least one).
    /// `None`: all of the device.
    pub memory_bytes: Option<u64>,
    /// Away pages older than this are written back and stay as copies, so that a killed process
    /// loses at most so much. Default 5 s; `None`: only releases, flushes and touches write back.
    pub flush_age: Option<Duration>,
    /// Away bytes that one CPU touch brings home, aligned around it. A power of two from 4 KiB;
    /// default 64 KiB.
    pub touch_bytes: u64,
    /// Threads that copy for one large request, the caller's included. Default: the machine's
    /// parallelism, at most 8.
    pub copy_threads: usize,
    /// What a copy's trust rests on. Default [`Validation::Proof`].
    pub validation: Validation,
    /// Who makes others wait for what is away. Default [`Guard::Auto`].
    pub guard: Guard,
}

impl Default for CacheConfig {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
        CacheConfig {
            memory_bytes: None,
            flush_age: Some(Duration::from_secs(5)),
            touch_bytes: 64 << 10,
            copy_threads: threads,
            validation: Validation::Proof,
            guard: Guard::Auto,
        }
    }
}

impl CacheConfig {
    /// With a memory budget in bytes.
    #[must_use]
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.memory_bytes = Some(bytes);
        self
    }

    /// With another flush age; `None` for no flusher.
    #[must_use]
    pub fn flush_age(mut self, age: Option<Duration>) -> Self {
        self.flush_age = age;
        self
    }

    /// With another touch granule, in bytes.
    #[must_use]
    pub fn touch_bytes(mut self, bytes: u64) -> Self {
        self.touch_bytes = bytes;
        self
    }

    /// With another number of copy threads for one request.
    #[must_use]
    pub fn copy_threads(mut self, threads: usize) -> Self {
        self.copy_threads = threads;
        self
    }

    /// With another way to tell whether others have changed a file.
    #[must_use]
    pub fn validation(mut self, validation: Validation) -> Self {
        self.validation = validation;
        self
    }

    /// With another guard.
    #[must_use]
    pub fn guard(mut self, guard: Guard) -> Self {
        self.guard = guard;
        self
    }
}

/// How a pin of a resident range learns whether others may have changed the file since it was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Validation {
    /// A copy is used again only where it is proven that nobody can have changed the file since; where
    /// that cannot be proven ([`File::coherence`](crate::File::coherence) says why), each pin copies
    /// again.
    Proof,
    /// A copy is used again as long as the file's size and times are what they were. Finds completed
    /// writes on kernels with fine-grained times (6.13); does not find every store through a mapping
    /// of somebody else's, nor a change beside one of our own. For file systems and files where
    /// nothing can be proven, if that is good enough.
    Stamps,
}

/// Who makes other programs wait until what they ask for is home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Guard {
    /// Nobody: keeping away is refused ([`Error::Unguarded`](crate::Error::Unguarded)).
    None,
    /// A lease, held while something is away: without privileges, on files of one's own (others with
    /// `CAP_LEASE`) that nobody else has open. Whoever opens the file, or truncates it by name, waits
    /// until all of it is home, at most for `/proc/sys/fs/lease-break-time` (45 s by default); with
    /// `O_NONBLOCK` it gets `EAGAIN` and may try again.
    Lease,
    /// fanotify (`CAP_SYS_ADMIN`, Linux 6.14, not on tmpfs): whoever touches bytes that are away waits
    /// until they are home, whether it has just opened the file or long before. It stands while the file
    /// is open here, from the first moment at which nobody else has the file open, and each access of
    /// others costs them a question to a thread of ours (some 40 µs): so it is known which pages they may
    /// have changed, and only those move again. Names of calls are read from `/proc/<thread>/syscall`;
    /// without `CAP_SYS_PTRACE` over the others, every call counts as touching the whole file.
    Fanotify,
    /// The strongest that works for a file: as `Fanotify`, but only while something is away, or else
    /// `Lease`.
    Auto,
}

/// What the device may do with a pinned range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinMode {
    /// Load. Read pins of the same bytes share.
    Read,
    /// Load and store. Excludes every other pin of its bytes.
    Write,
    /// As `Write`, without reading first what is there: pages that the pin covers whole start as
    /// zeros on the device. What the device does not store to keeps the file's bytes (at the grain
    /// of pages, where the device has dirty bits).
    Overwrite,
}

/// How long a call may wait for pins of others. Copies under way are always waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until they are released.
    Block,
    /// At most so long; then [`Error::TimedOut`](crate::Error::TimedOut).
    Timeout(Duration),
    /// Not at all: [`Error::WouldBlock`](crate::Error::WouldBlock).
    Try,
}

/// What a release does with the pages that the device stored to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Writes them to the file; they stay on the device as copies.
    WriteBack,
    /// Leaves them away: accesses through this cache bring them home when they are needed, and whoever
    /// opens the file waits until they are.
    ///
    /// Where no [guard](CacheConfig::guard) can keep that, they are written back as with `WriteBack`,
    /// and the release says so: [`Error::Unguarded`](crate::Error::Unguarded).
    KeepAway,
}
