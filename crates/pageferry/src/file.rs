//! One file in a cache, as its users hold it.

use std::ops::Range;
use std::sync::Arc;

use pageferry_engine::{Mode, Outcome, Request};
use pageferry_linux::HostFile;

use crate::backing::Backing;
use crate::cache::{Inner, os_error};
use crate::{Coherence, Error, Map, Pin, PinMode, Placement, Result, View, Wait};

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
    pub(crate) cache: Arc<Inner>,
    pub(crate) backing: Arc<Backing>,
    writable: bool,
    closed: crate::sync::Mutex<bool>,
}

impl Handle {
    fn close(&self) -> Result<()> {
        self.cache.shared.not_forked()?;
        if std::mem::replace(&mut *self.closed.lock(), true) {
            return Ok(());
        }
        self.cache.close(&self.backing)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let result = self.close();
        // A forked child has nothing to close.
        if let Err(error) = result.or_else(Error::unless_forked) {
            let file = &self.backing.name;
            tracing::error!(file, %error, "closing could not write everything back; the cache tries again");
        }
    }
}

impl File {
    pub(crate) fn new(cache: Arc<Inner>, backing: Arc<Backing>, writable: bool) -> File {
        let closed = crate::sync::Mutex::new(false);
        File { handle: Arc::new(Handle { cache, backing, writable, closed }) }
    }

    fn request(&self, request: Request, range: &Range<u64>) -> Result<Outcome> {
        let shared = &self.handle.cache.shared;
        shared.request(request, Wait::Block).map_err(|r| shared.explain(r, range, Wait::Block))
    }

    fn key(&self) -> pageferry_engine::FileKey {
        self.handle.backing.key
    }

    /// The file's size now, in bytes.
    ///
    /// # Errors
    /// [`Error::File`] if `statx` fails.
    pub fn len(&self) -> Result<u64> {
        self.handle.backing.bytes()
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
        self.handle.writable
    }

    fn must_be_writable(&self) -> Result<()> {
        if self.handle.writable {
            Ok(())
        } else {
            Err(Error::ReadOnly(self.handle.backing.name.clone()))
        }
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
        let owner = Some(crate::sync::current_tid());
        let key = self.pin_key(range.clone(), mode, wait, owner)?;
        Ok(Pin::new(self.clone(), key, range, mode))
    }

    pub(crate) fn pin_key(
        &self,
        range: Range<u64>,
        mode: PinMode,
        wait: Wait,
        owner: pageferry_engine::Owner,
    ) -> Result<pageferry_engine::PinKey> {
        let shared = &self.handle.cache.shared;
        let mode = match mode {
            PinMode::Read => Mode::Read,
            PinMode::Write => Mode::Write,
            PinMode::Overwrite => Mode::Overwrite,
        };
        let request = Request::Pin { file: self.key(), range: range.clone(), mode };
        match shared.request_as(request, owner, wait, None) {
            Ok(Outcome::Pinned(key)) => Ok(key),
            Ok(_) => Err(Error::InvalidArgument("the pin was not granted".into())),
            Err(refusal) => Err(shared.explain(refusal, &range, wait)),
        }
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
        self.bring_home(&range)?;
        let io = self.handle.backing.io();
        io.read_at(buf, offset).map_err(|e| file_error("read", &range, &e))
    }

    pub(crate) fn bring_home(&self, range: &Range<u64>) -> Result<()> {
        let shared = &self.handle.cache.shared;
        shared.not_forked()?;
        if shared.core.lock().engine.is_away(self.key(), range) {
            shared.flush(self.key(), range.clone(), false)?;
            // Whole pages come home, as far as nobody is writing beside.
            let pages = range.start & !4095..range.end.saturating_add(4095) & !4095;
            shared.flush(self.key(), pages, true)?;
        }
        Ok(())
    }

    /// Writes like `pwrite`, all of `bytes`. Copies of the range on the device are dropped. Waits
    /// for write pins that touch the same pages.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::File`], [`Error::WouldDeadlock`] if this thread holds such a
    /// pin.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let range = checked_range(offset, bytes.len())?;
        if bytes.is_empty() {
            return self.must_be_writable();
        }
        self.handle.cache.shared.not_forked()?;
        let known = self.handle.cache.shared.core.lock().engine.file_bytes(self.key());
        let resizes = known.is_none_or(|b| range.end > b);
        self.change("write", range, resizes, &mut |io| {
            io.write_at(bytes, offset).map_err(|e| e.source)
        })
    }

    /// Sets the size like `ftruncate`. Never waits for pins: a pin over bytes that are cut off
    /// keeps the rest, and its release reports [`Error::FileShrunk`] if the device had written there.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::File`].
    pub fn set_len(&self, bytes: u64) -> Result<()> {
        self.must_be_writable()?;
        let range = bytes..bytes;
        let request = Request::Resize { file: self.key(), bytes };
        self.run_change("truncate", request, &range, &mut |io| io.set_len(bytes))
    }

    /// Deallocates a range: it reads as zeros, the size stays.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn punch_hole(&self, range: Range<u64>) -> Result<()> {
        self.change("punch", range.clone(), false, &mut |io| io.punch_hole(range.clone()))
    }

    /// Zeroes a range; grows the file to its end unless `keep_size`.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn zero_range(&self, range: Range<u64>, keep_size: bool) -> Result<()> {
        let call = &mut |io: &HostFile| io.zero_range(range.clone(), keep_size);
        self.change("zero-range", range.clone(), !keep_size, call)
    }

    /// Allocates storage; contents stay. Grows the file to the range's end unless `keep_size`.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn allocate(&self, range: Range<u64>, keep_size: bool) -> Result<()> {
        let nothing = range.start..range.start;
        let call = &mut |io: &HostFile| io.allocate(range.clone(), keep_size);
        self.change("allocate", nothing, !keep_size, call)
    }

    /// Removes a range (block-aligned); what lies behind moves forward.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn collapse_range(&self, range: Range<u64>) -> Result<()> {
        let moved = range.start..u64::MAX;
        self.change("collapse", moved, true, &mut |io| io.collapse_range(range.clone()))
    }

    /// Inserts a hole (block-aligned); what lies behind moves back.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn insert_range(&self, range: Range<u64>) -> Result<()> {
        let moved = range.start..u64::MAX;
        self.change("insert", moved, true, &mut |io| io.insert_range(range.clone()))
    }

    fn change(
        &self,
        what: &'static str,
        range: Range<u64>,
        resizes: bool,
        call: &mut (dyn FnMut(&HostFile) -> std::io::Result<()> + Send),
    ) -> Result<()> {
        self.must_be_writable()?;
        let request = Request::Change { file: self.key(), range: range.clone(), resizes };
        self.run_change(what, request, &range, call)
    }

    fn run_change(
        &self,
        what: &'static str,
        request: Request,
        range: &Range<u64>,
        call: &mut (dyn FnMut(&HostFile) -> std::io::Result<()> + Send),
    ) -> Result<()> {
        let shared = &self.handle.cache.shared;
        let owner = Some(crate::sync::current_tid());
        let mut change = |io: &HostFile| call(io).map_err(|e| file_error(what, range, &e));
        shared
            .request_as(request, owner, Wait::Block, Some(&mut change))
            .map_err(|r| shared.explain(r, range, Wait::Block))?;
        Ok(())
    }

    /// Writes away bytes of the range to the file (page cache); they stay on the device as copies.
    /// Waits for write pins over bytes that are away. Returns the bytes written.
    ///
    /// # Errors
    /// [`Error::File`] (what could not be written stays away, a later call tries again),
    /// [`Error::WouldDeadlock`], [`Error::Device`].
    pub fn flush(&self, range: Range<u64>) -> Result<u64> {
        self.handle.cache.shared.flush(self.key(), range, false)
    }

    /// `fsync` that covers away pages: flushes all, then makes the file durable.
    ///
    /// # Errors
    /// As [`flush`](Self::flush); [`Error::File`] with the error of `fsync`.
    pub fn sync(&self) -> Result<()> {
        self.sync_with(0..u64::MAX, false)
    }

    /// Flushes the range, then makes the file's data durable (`fdatasync`).
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    pub fn sync_range(&self, range: Range<u64>) -> Result<()> {
        self.sync_with(range, true)
    }

    fn sync_with(&self, range: Range<u64>, data_only: bool) -> Result<()> {
        self.flush(range.clone())?;
        let io = self.handle.backing.io();
        io.sync(data_only).map_err(|e| file_error("fsync", &range, &e))
    }

    /// Brings what it can of a range onto the device without waiting for pins of others, evicting
    /// colder pages but none that are pinned. A range larger than the budget is cut to it. Returns
    /// the bytes brought (or found) there.
    ///
    /// # Errors
    /// [`Error::File`] (reading failed), [`Error::Device`].
    pub fn prefetch(&self, range: Range<u64>) -> Result<u64> {
        let shared = &self.handle.cache.shared;
        let budget = shared.budget_frames * shared.info.frame_bytes;
        let end = range.end.min(self.len()?).min(range.start.saturating_add(budget));
        let step = (8 * shared.info.frame_bytes).min(budget);
        let (mut at, mut there) = (range.start, 0);
        while at < end {
            let next = (at / step * step).saturating_add(step).min(end);
            match self.pin_wait(at..next, PinMode::Read, Wait::Try) {
                Ok(pin) => {
                    pin.release()?;
                    there += next - at;
                }
                Err(Error::WouldBlock { .. }) => {}
                Err(Error::DeviceFull { .. } | Error::PastEof { .. }) => break,
                Err(error) => return Err(error),
            }
            at = next;
        }
        Ok(there)
    }

    /// Takes unpinned pages wholly inside the range off the device; away ones are written back
    /// first. Returns the bytes evicted.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Device`]: nothing that could not be written back was dropped.
    pub fn evict(&self, range: Range<u64>) -> Result<u64> {
        let request = Request::Evict { file: self.key(), range: range.clone() };
        match self.request(request, &range)? {
            Outcome::Moved { evicted_bytes, .. } => Ok(evicted_bytes),
            _ => Ok(0),
        }
    }

    /// What the trust in copies of this file rests on, now. One look, as a pin begins with.
    ///
    /// # Errors
    /// [`Error::File`] if looking fails.
    pub fn coherence(&self) -> Result<Coherence> {
        let shared = &self.handle.cache.shared;
        shared.not_forked()?;
        shared.guards.look(self.key(), u64::MAX)?;
        Ok(shared.guards.coherence(self.key()))
    }

    /// Where the pages of a range are, moving none and waiting for no pin: ascending, without gaps, up
    /// to the end that the file has now. What else others have done to it is not looked for: a copy
    /// may be one that the next pin will not believe.
    ///
    /// # Errors
    /// [`Error::File`] if `statx` fails, [`Error::Device`].
    pub fn placement(&self, range: Range<u64>) -> Result<Vec<Placement>> {
        let request = Request::Query { file: self.key(), range: range.clone() };
        match self.request(request, &range)? {
            Outcome::Placed(runs) => Ok(runs),
            _ => Ok(Vec::new()),
        }
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

pub(crate) fn file_error(what: &'static str, range: &Range<u64>, error: &std::io::Error) -> Error {
    Error::File { what, range: range.clone(), errno: error.raw_os_error().unwrap_or(libc::EINVAL) }
}

fn checked_range(offset: u64, len: usize) -> Result<Range<u64>> {
    let end = offset.checked_add(len as u64).filter(|end| i64::try_from(*end).is_ok());
    match end {
        Some(end) => Ok(offset..end),
        None => Err(os_error("the offset", &std::io::Error::from_raw_os_error(libc::EINVAL))),
    }
}
