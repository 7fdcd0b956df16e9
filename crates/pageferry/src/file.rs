//! One file in a cache, as its users hold it.

use std::ops::Range;
use std::sync::Arc;

use crate::error::os_error;
use crate::service::{FileChange, FileService};
use crate::sync::this_thread;
use crate::{Cache, Coherence, Error, Map, Pin, PinMode, Placement, Result, View, Wait};

/// A file in a cache. Clones share it; the last one closes it.
///
/// All ranges are in bytes of the file. Reads and writes through here see and keep what the device
/// wrote; so do mappings made here ([`map`](File::map)).
#[derive(Clone)]
pub struct File {
    pub(crate) handle: Arc<Handle>,
}

/// One opening of a file.
pub(crate) struct Handle {
    pub(crate) cache: Cache,
    pub(crate) service: Arc<dyn FileService>,
    closed: crate::sync::Mutex<bool>,
}

impl Handle {
    fn close(&self) -> Result<()> {
        self.cache.service.not_forked()?;
        if std::mem::replace(&mut *self.closed.lock(), true) {
            return Ok(());
        }
        self.service.close()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let result = self.close();
        // A forked child has nothing to close.
        if let Err(error) = result.or_else(Error::unless_forked) {
            let file = self.service.name();
            tracing::error!(file, %error, "closing could not write everything back; the cache tries again");
        }
    }
}

impl File {
    pub(crate) fn new(cache: Cache, service: Arc<dyn FileService>) -> File {
        let closed = crate::sync::Mutex::new(false);
        File { handle: Arc::new(Handle { cache, service, closed }) }
    }

    pub(crate) fn service(&self) -> &dyn FileService {
        &*self.handle.service
    }

    pub(crate) fn name(&self) -> &str {
        self.service().name()
    }

    /// The file's size now, in bytes.
    ///
    /// # Errors
    /// [`Error::File`] if `statx` fails.
    pub fn len(&self) -> Result<u64> {
        self.service().bytes()
    }

    /// The file has no bytes.
    ///
    /// # Errors
    /// As [`len`](Self::len).
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Opened for writing.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.service().is_writable()
    }

    fn must_be_writable(&self) -> Result<()> {
        if self.is_writable() { Ok(()) } else { Err(Error::ReadOnly(self.name().into())) }
    }

    /// Pins a range, waiting as long as it takes.
    ///
    /// # Errors
    /// As [`pin_wait`](Self::pin_wait).
    pub fn pin(&self, range: Range<u64>, mode: PinMode) -> Result<Pin> {
        self.pin_wait(range, mode, Wait::Block)
    }

    /// Holds a range on the device: when this returns, its bytes are there and at least as new as
    /// every change of the file that was complete before the call.
    ///
    /// The range may reach to the end of the page that holds the end of file; what lies past the
    /// end reads as zeros, and what the device stores there is dropped.
    ///
    /// The calling thread becomes the pin's owner: a wait that could only end after this thread
    /// releases something is refused.
    ///
    /// # Errors
    /// [`Error::PastEof`], [`Error::InvalidArgument`] (empty range), [`Error::ReadOnly`],
    /// [`Error::WouldBlock`], [`Error::TimedOut`], [`Error::WouldDeadlock`],
    /// [`Error::DeviceFull`], [`Error::File`] (reading failed), [`Error::OutOfVmas`],
    /// [`Error::Device`]. A failed call holds nothing.
    pub fn pin_wait(&self, range: Range<u64>, mode: PinMode, wait: Wait) -> Result<Pin> {
        if mode != PinMode::Read {
            self.must_be_writable()?;
        }
        let owner = this_thread();
        let pins = self.service().pin(std::slice::from_ref(&range), mode, wait, owner)?;
        let key = pins.first().copied().ok_or_else(not_granted)?;
        Ok(Pin::new(self.clone(), key, range, mode))
    }

    /// Pins several ranges, in their order: all of them or, on an error, none. A daemon is asked once
    /// for up to 1024.
    ///
    /// # Errors
    /// As [`pin_wait`](Self::pin_wait); [`Error::WouldDeadlock`] also if one range overlaps another
    /// and the mode writes.
    pub fn pin_ranges(&self, ranges: &[Range<u64>], mode: PinMode, wait: Wait) -> Result<Vec<Pin>> {
        if mode != PinMode::Read {
            self.must_be_writable()?;
        }
        let owner = this_thread();
        let keys = self.service().pin(ranges, mode, wait, owner)?;
        let pin = |(key, range): (_, &Range<u64>)| Pin::new(self.clone(), key, range.clone(), mode);
        Ok(keys.into_iter().zip(ranges).map(pin).collect())
    }

    /// A device view that faults pages in as kernels reach them, and holds no more than it has to.
    /// [`View::close`] ends it.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Unsupported`] on a device without processors.
    pub fn view(&self, writable: bool) -> Result<View<'static>> {
        if writable {
            self.must_be_writable()?;
        }
        View::on_demand(self.clone(), writable)
    }

    /// Maps a range into this process: plain `MAP_SHARED`, at its speed, while pages are home.
    /// See [`Map`]. The range is widened to whole pages.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::InvalidArgument`], [`Error::OutOfVmas`], [`Error::Os`],
    /// [`Error::Unsupported`] where userfaultfd is not to be had.
    pub fn map(&self, range: Range<u64>, writable: bool) -> Result<Map> {
        if writable {
            self.must_be_writable()?;
        }
        Map::new(self.clone(), range, writable)
    }

    /// Reads like `pread`: what the device wrote and released is seen. Returns the bytes read,
    /// fewer than asked only at the end of file.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::WouldDeadlock`] if this thread holds a write pin over bytes that
    /// were away before it.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let range = checked_range(offset, buf.len())?;
        self.service().read_at(buf, &range, this_thread())
    }

    /// Writes like `pwrite`, all of `bytes`. Copies of the range on the device are dropped. Waits
    /// for write pins that touch the same pages.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::File`], [`Error::WouldDeadlock`] if this thread holds such a
    /// pin.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        checked_range(offset, bytes.len())?;
        if bytes.is_empty() {
            return self.must_be_writable();
        }
        self.change(FileChange::Write { offset, bytes })
    }

    /// Sets the size like `ftruncate`. Never waits for pins: a pin over bytes that are cut off
    /// keeps the rest, and its release reports [`Error::FileShrunk`] if the device had written there.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::File`].
    pub fn set_len(&self, bytes: u64) -> Result<()> {
        self.change(FileChange::SetLen(bytes))
    }

    /// Deallocates a range: it reads as zeros, the size stays.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn punch_hole(&self, range: Range<u64>) -> Result<()> {
        self.change(FileChange::PunchHole(range))
    }

    /// Zeroes a range; grows the file to its end unless `keep_size`.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn zero_range(&self, range: Range<u64>, keep_size: bool) -> Result<()> {
        self.change(FileChange::ZeroRange { range, keep_size })
    }

    /// Allocates storage; contents stay. Grows the file to the range's end unless `keep_size`.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn allocate(&self, range: Range<u64>, keep_size: bool) -> Result<()> {
        self.change(FileChange::Allocate { range, keep_size })
    }

    /// Removes a range (block-aligned); what lies behind moves forward.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn collapse_range(&self, range: Range<u64>) -> Result<()> {
        self.change(FileChange::CollapseRange(range))
    }

    /// Inserts a hole (block-aligned); what lies behind moves back.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn insert_range(&self, range: Range<u64>) -> Result<()> {
        self.change(FileChange::InsertRange(range))
    }

    fn change(&self, change: FileChange<'_>) -> Result<()> {
        self.must_be_writable()?;
        self.service().change(&change, this_thread())
    }

    /// Writes away bytes of the range to the file (page cache); they stay on the device as copies.
    /// Waits for write pins over bytes that are away. Returns the bytes written.
    ///
    /// # Errors
    /// [`Error::File`] (what could not be written stays away, a later call tries again),
    /// [`Error::WouldDeadlock`], [`Error::Device`].
    pub fn flush(&self, range: Range<u64>) -> Result<u64> {
        self.service().flush(range, this_thread())
    }

    /// `fsync` that covers away pages: flushes all, then makes the file durable.
    ///
    /// # Errors
    /// As [`flush`](Self::flush); [`Error::File`] with the error of `fsync`.
    pub fn sync(&self) -> Result<()> {
        self.service().sync(0..u64::MAX, false, this_thread())
    }

    /// Flushes the range, then makes the file's data durable (`fdatasync`).
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    pub fn sync_range(&self, range: Range<u64>) -> Result<()> {
        self.service().sync(range, true, this_thread())
    }

    /// Brings what it can of a range onto the device without waiting for pins of others, evicting
    /// colder pages but none that are pinned. A range larger than the budget is cut to it. Returns
    /// the bytes brought (or found) there.
    ///
    /// # Errors
    /// [`Error::File`] (reading failed), [`Error::Device`].
    pub fn prefetch(&self, range: Range<u64>) -> Result<u64> {
        self.service().prefetch(range, this_thread())
    }

    /// Takes unpinned pages wholly inside the range off the device; away ones are written back
    /// first. Returns the bytes evicted.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Device`]: nothing that could not be written back was dropped.
    pub fn evict(&self, range: Range<u64>) -> Result<u64> {
        self.service().evict(range)
    }

    /// What the trust in copies of this file rests on, now. One look, as a pin begins with.
    ///
    /// # Errors
    /// [`Error::File`] if looking fails.
    pub fn coherence(&self) -> Result<Coherence> {
        self.service().coherence()
    }

    /// Where the pages of a range are, moving none and waiting for no pin: ascending, without gaps, up
    /// to the end that the file has now. What else others have done to it is not looked for: a copy
    /// may be one that the next pin will not believe.
    ///
    /// # Errors
    /// [`Error::File`] if `statx` fails, [`Error::Device`].
    pub fn placement(&self, range: Range<u64>) -> Result<Vec<Placement>> {
        self.service().placement(range)
    }

    /// Closes this handle. If it is the file's last (clones, pins and mappings count), what is away
    /// is written back and the file's frames are given back.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Device`] if something could not be written back: the cache keeps
    /// it, and opening the file again finds it.
    pub fn close(self) -> Result<()> {
        match Arc::try_unwrap(self.handle) {
            Ok(handle) => handle.close(),
            Err(_) => Ok(()),
        }
    }
}

pub(crate) fn not_granted() -> Error {
    Error::InvalidArgument("the pin was not granted".into())
}

fn checked_range(offset: u64, len: usize) -> Result<Range<u64>> {
    let end = offset.checked_add(len as u64).filter(|end| i64::try_from(*end).is_ok());
    match end {
        Some(end) => Ok(offset..end),
        None => Err(os_error("the offset", &std::io::Error::from_raw_os_error(libc::EINVAL))),
    }
}
