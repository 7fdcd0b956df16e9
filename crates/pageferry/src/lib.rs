//! A page cache in device memory for ordinary files. (API skeleton; bodies follow.)
#![allow(missing_docs, unused_variables)]
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use pageferry_device as device;
pub use pageferry_device::{Device, DeviceAddr};
pub use pageferry_soft as soft;

mod error;
pub use error::{Error, Result};

#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CacheConfig {
    /// Device memory the cache may use, in bytes; rounded down to whole frames. Default: all of it.
    pub memory_bytes: Option<u64>,
    /// Away pages older than this are written back by the flusher and stay as copies. Default 5 s;
    /// `None`: no flusher.
    pub flush_age: Option<Duration>,
    /// Away bytes brought home by one CPU touch (page-aligned around it). Default 64 KiB.
    pub touch_bytes: u64,
    /// Threads that copy for one large pin. Default: available parallelism, at most 8.
    pub copy_threads: usize,
}
impl Default for CacheConfig {
    fn default() -> Self {
        unimplemented!()
    }
}

/// Which access a pin or view gives to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinMode {
    Read,
    Write,
    /// Write, without reading first what is there: bytes not stored to keep the file's content.
    Overwrite,
}

/// How long a call may wait for others' pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    Block,
    Timeout(Duration),
    Try,
}

/// What a release does with stored-to pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    WriteBack,
    KeepAway,
}

#[derive(Clone)]
pub struct Cache(Arc<()>);
impl Cache {
    pub fn new(device: Arc<dyn Device>, config: CacheConfig) -> Result<Cache> {
        unimplemented!()
    }
    pub fn open(&self, path: impl AsRef<Path>) -> Result<File> {
        unimplemented!()
    } // read-write
    pub fn open_read_only(&self, path: impl AsRef<Path>) -> Result<File> {
        unimplemented!()
    }
    /// The descriptor's own access mode decides; the cache reopens it privately.
    pub fn open_fd(&self, fd: BorrowedFd<'_>) -> Result<File> {
        unimplemented!()
    }
    /// Runs `kernel` for each group on the device's processors; the first error, if any, is returned.
    pub fn launch(&self, groups: u64, kernel: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
        unimplemented!()
    }
    pub fn device(&self) -> &Arc<dyn Device> {
        unimplemented!()
    }
    pub fn frame_bytes(&self) -> u64 {
        unimplemented!()
    }
    /// Budget in bytes.
    pub fn memory_bytes(&self) -> u64 {
        unimplemented!()
    }
    /// Device memory in use now, bytes.
    pub fn used_bytes(&self) -> u64 {
        unimplemented!()
    }
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }
    /// Writes all away pages of all files back (they stay as copies).
    pub fn flush(&self) -> Result<u64> {
        unimplemented!()
    }
}

/// One file in a cache. Clones share it.
#[derive(Clone)]
pub struct File(Arc<()>);
impl File {
    pub fn len(&self) -> Result<u64> {
        unimplemented!()
    }
    pub fn is_writable(&self) -> bool {
        unimplemented!()
    }
    pub fn pin(&self, range: Range<u64>, mode: PinMode) -> Result<Pin> {
        unimplemented!()
    }
    pub fn pin_wait(&self, range: Range<u64>, mode: PinMode, wait: Wait) -> Result<Pin> {
        unimplemented!()
    }
    /// A device view that faults pages in on demand; `close` releases (and writes back) what it took.
    pub fn view(&self, writable: bool) -> Result<View<'static>> {
        unimplemented!()
    }
    pub fn map(&self, range: Range<u64>, writable: bool) -> Result<Map> {
        unimplemented!()
    }
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        unimplemented!()
    }
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        unimplemented!()
    }
    pub fn set_len(&self, bytes: u64) -> Result<()> {
        unimplemented!()
    }
    pub fn punch_hole(&self, range: Range<u64>) -> Result<()> {
        unimplemented!()
    }
    pub fn zero_range(&self, range: Range<u64>, keep_size: bool) -> Result<()> {
        unimplemented!()
    }
    pub fn allocate(&self, range: Range<u64>, keep_size: bool) -> Result<()> {
        unimplemented!()
    }
    pub fn collapse_range(&self, range: Range<u64>) -> Result<()> {
        unimplemented!()
    }
    pub fn insert_range(&self, range: Range<u64>) -> Result<()> {
        unimplemented!()
    }
    /// Writes away pages of the range back to the page cache; bytes written back.
    pub fn flush(&self, range: Range<u64>) -> Result<u64> {
        unimplemented!()
    }
    /// Flush of everything, then fsync.
    pub fn sync(&self) -> Result<()> {
        unimplemented!()
    }
    pub fn sync_range(&self, range: Range<u64>) -> Result<()> {
        unimplemented!()
    }
    /// Brings what it can of the range onto the device without waiting for others; bytes now resident of the range.
    pub fn prefetch(&self, range: Range<u64>) -> Result<u64> {
        unimplemented!()
    }
    /// Takes unpinned pages of the range off the device (away ones are written back first); bytes evicted.
    pub fn evict(&self, range: Range<u64>) -> Result<u64> {
        unimplemented!()
    }
    pub fn placement(&self, range: Range<u64>) -> Result<Vec<Placement>> {
        unimplemented!()
    }
    /// Writes back, frees the device's frames; errors leave the file usable through other handles.
    pub fn close(self) -> Result<()> {
        unimplemented!()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    pub range: Range<u64>,
    pub state: PageState,
    pub pinned: bool,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    Home,
    Copy,
    Away,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub addr: DeviceAddr,
    pub offset: u64,
    pub len: u64,
}

/// A range held on the device. Not `Send`: its thread is its owner (see `detach`). Drop releases with write-back.
#[must_use]
pub struct Pin(std::marker::PhantomData<*const ()>);
impl Pin {
    pub fn range(&self) -> Range<u64> {
        unimplemented!()
    }
    pub fn mode(&self) -> PinMode {
        unimplemented!()
    }
    pub fn segments(&self) -> Vec<Segment> {
        unimplemented!()
    }
    pub fn view(&self) -> View<'_> {
        unimplemented!()
    }
    /// Write-back release; bytes written back.
    pub fn release(self) -> Result<u64> {
        unimplemented!()
    }
    pub fn release_with(self, after: After) -> Result<u64> {
        unimplemented!()
    }
    pub fn detach(self) -> DetachedPin {
        unimplemented!()
    }
}
/// A pin without an owning thread; can be sent.
#[must_use]
pub struct DetachedPin(());
impl DetachedPin {
    pub fn attach(self) -> Pin {
        unimplemented!()
    }
}

/// What a kernel sees of a file, by file offset. `Sync`: kernels on many workers share it.
pub struct View<'a>(std::marker::PhantomData<&'a ()>);
impl View<'_> {
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        unimplemented!()
    }
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        unimplemented!()
    }
    /// In place, piece by piece (pieces break at page boundaries at the finest), in order.
    pub fn visit(&self, range: Range<u64>, f: &mut dyn FnMut(&[u8])) -> Result<()> {
        unimplemented!()
    }
    pub fn update(&self, range: Range<u64>, f: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        unimplemented!()
    }
    /// For on-demand views: releases what faults took, writing back; errors are reported here.
    pub fn close(self) -> Result<ViewSummary> {
        unimplemented!()
    }
}
#[derive(Clone, Copy, Debug, Default)]
pub struct ViewSummary {
    pub faults: u64,
    pub fetched_bytes: u64,
    pub written_back_bytes: u64,
}

/// A shared CPU mapping of a file range; plain mmap speed while its pages are home.
pub struct Map(());
impl Map {
    pub fn offset(&self) -> u64 {
        unimplemented!()
    }
    pub fn len(&self) -> usize {
        unimplemented!()
    }
    pub fn is_writable(&self) -> bool {
        unimplemented!()
    }
    /// `at` is relative to the mapping. Typed errors instead of SIGBUS; waits for write pins.
    pub fn read(&self, at: usize, buf: &mut [u8]) -> Result<()> {
        unimplemented!()
    }
    pub fn write(&self, at: usize, bytes: &[u8]) -> Result<()> {
        unimplemented!()
    }
    pub fn as_ptr(&self) -> *mut u8 {
        unimplemented!()
    }
    pub fn sync(&self, range: Range<usize>) -> Result<()> {
        unimplemented!()
    }
    pub fn unmap(self) -> Result<()> {
        unimplemented!()
    }
}

/// A snapshot of the counters.
#[derive(Clone, Debug)]
pub struct Stats(());
#[derive(Clone, Copy, Debug)]
pub struct Counter {
    pub name: &'static str,
    pub unit: &'static str,
    pub help: &'static str,
    pub value: u64,
}
impl Stats {
    pub fn counters(&self) -> Vec<Counter> {
        unimplemented!()
    }
    pub fn get(&self, name: &str) -> Option<u64> {
        unimplemented!()
    }
}
