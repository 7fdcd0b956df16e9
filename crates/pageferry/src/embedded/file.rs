//! One opening of a file in a cache of this process.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use pageferry_device::ExportedFrame;
use pageferry_engine::{FileKey, Mode, Outcome, Owner, PinKey, Request};
use pageferry_linux::HostFile;

use super::Embedded;
use crate::backing::Backing;
use crate::error::{file_error, os_error};
use crate::file::not_granted;
use crate::map::MapService;
use crate::service::{FileChange, FileService, Piece, Released};
use crate::shared::Caller;
use crate::{After, Coherence, Error, PinMode, Placement, Result, Segment, Wait};

/// A file that loses frames so often while one is being exported is short of memory.
const EXPORT_TRIES_MAX: u32 = 1000;

/// One opening.
pub(crate) struct Opening {
    pub(super) cache: Arc<Embedded>,
    pub(super) backing: Arc<Backing>,
    /// As whoever opened it calls it.
    name: String,
    writable: bool,
    /// For whom it was opened, if for another process: set when that is gone.
    gone: Option<Arc<AtomicBool>>,
}

impl Opening {
    pub(super) fn new(
        cache: Arc<Embedded>,
        backing: Arc<Backing>,
        name: String,
        writable: bool,
    ) -> Opening {
        Opening { cache, backing, name, writable, gone: None }
    }

    /// An opening for another process: what it waits for ends when that is gone (whoever sets the word wakes
    /// those that [wait](crate::shared::Shared::changed)).
    pub(crate) fn for_another(mut self, gone: Arc<AtomicBool>) -> Opening {
        self.gone = Some(gone);
        self
    }

    /// One opening more of the same file, as the cache itself may hold one.
    pub(crate) fn again(&self) -> Opening {
        *self.backing.handles.lock() += 1;
        let (cache, backing) = (Arc::clone(&self.cache), Arc::clone(&self.backing));
        Opening::new(cache, backing, self.name.clone(), self.writable)
    }

    pub(crate) fn key(&self) -> FileKey {
        self.backing.key
    }

    /// There are more openings of the file than so many.
    pub(crate) fn is_shared_by_more_than(&self, openings: usize) -> bool {
        *self.backing.handles.lock() > openings
    }

    /// Somebody can still open the file, and would find copies of it on the device.
    pub(crate) fn is_served(&self) -> bool {
        let resident = || {
            let core = self.cache.shared.core.lock();
            !core.engine.resident_folios(self.backing.key, &(0..u64::MAX)).is_empty()
        };
        resident() && self.backing.io().observe().is_ok_and(|seen| seen.nlink > 0)
    }

    /// The cache's own description, if it is open for no more than this opening is.
    pub(crate) fn description(&self) -> Result<Option<OwnedFd>> {
        let io = self.backing.io();
        if (io.is_writable() && !self.writable) || !io.is_private() {
            return Ok(None);
        }
        let lent = io.as_fd().try_clone_to_owned();
        lent.map(Some).map_err(|e| os_error("lending a description", &e))
    }

    /// The cache takes another description of the file. Who still has the one before is somebody else from now on.
    pub(crate) fn take_new_description(&self) -> Result<()> {
        self.cache.take_new_description(&self.backing)
    }

    /// Rises when a folio of the file loses its frame.
    pub(crate) fn layout(&self) -> u64 {
        self.backing.layout.load(Ordering::SeqCst)
    }

    /// Where the pages end that the pin has not lost to a truncation.
    pub(crate) fn pin_end(&self, pin: PinKey) -> u64 {
        self.cache.shared.core.lock().engine.pin_end(pin)
    }

    /// The lowest size that the file had under the pin, if that cut it.
    pub(crate) fn pin_cut(&self, pin: PinKey) -> u64 {
        self.cache.shared.core.lock().engine.pin_cut(pin).unwrap_or(0)
    }

    /// The memory of a folio's frame, for another process to map; `None` if it has no frame, or loses it all the
    /// time.
    pub(crate) fn export(&self, folio: u64) -> Result<Option<ExportedFrame>> {
        let shared = &self.cache.shared;
        for _ in 0..EXPORT_TRIES_MAX {
            // A pin keeps the frame where it is, unless a truncation has cut it off: then it may have been another
            // file's when it was exported, if this file has lost one meanwhile.
            let layout = self.layout();
            let frame = shared.core.lock().engine.frame(self.backing.key, folio);
            let Some(frame) = frame else { return Ok(None) };
            let exported = shared.device.export_frame(pageferry_device::FrameId(frame.0));
            if self.layout() == layout {
                return exported.map(Some).map_err(Error::Device);
            }
        }
        Ok(None)
    }

    pub(super) fn caller(&self, owner: Owner) -> Caller<'_> {
        Caller { owner, gone: self.gone.as_deref() }
    }

    fn request(&self, request: Request, range: &Range<u64>) -> Result<Outcome> {
        let shared = &self.cache.shared;
        shared.request(request, Wait::Block).map_err(|r| shared.explain(r, range, Wait::Block))
    }

    fn pin_one(&self, range: &Range<u64>, mode: Mode, wait: Wait, owner: Owner) -> Result<PinKey> {
        let shared = &self.cache.shared;
        let request = Request::Pin { file: self.backing.key, range: range.clone(), mode };
        match shared.request_as(request, self.caller(owner), wait, None) {
            Ok(Outcome::Pinned(key)) => Ok(key),
            Ok(_) => Err(not_granted()),
            Err(refusal) => Err(shared.explain(refusal, range, wait)),
        }
    }

    fn end_pin(&self, pin: PinKey, range: &Range<u64>, keep: bool) -> Result<u64> {
        let shared = &self.cache.shared;
        match shared.request(Request::Release { pin, keep }, Wait::Block) {
            Ok(Outcome::Released { lost_bytes, cut, .. }) if lost_bytes > 0 => {
                Err(Error::FileShrunk {
                    range: range.clone(),
                    file_bytes: cut.unwrap_or(0),
                    lost_bytes,
                })
            }
            Ok(Outcome::Released { written_bytes, .. }) => Ok(written_bytes),
            Ok(_) => Ok(0),
            Err(refusal) => Err(shared.explain(refusal, range, Wait::Block)),
        }
    }

    fn flush_by(&self, range: Range<u64>, skip_pinned: bool, owner: Owner) -> Result<u64> {
        let (file, caller) = (self.backing.key, self.caller(owner));
        self.cache.shared.flush(file, range, skip_pinned, caller, Wait::Block)
    }

    fn bring_home(&self, range: &Range<u64>, owner: Owner) -> Result<()> {
        let (shared, file) = (&self.cache.shared, self.backing.key);
        shared.not_forked()?;
        if shared.core.lock().engine.is_away(file, range) {
            self.flush_by(range.clone(), false, owner)?;
            // Whole pages come home, as far as nobody is writing beside.
            let pages = range.start & !4095..range.end.saturating_add(4095) & !4095;
            self.flush_by(pages, true, owner)?;
        }
        Ok(())
    }
}

impl FileService for Opening {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_writable(&self) -> bool {
        self.writable
    }

    fn bytes(&self) -> Result<u64> {
        self.backing.bytes()
    }

    fn pin(
        &self,
        ranges: &[Range<u64>],
        mode: PinMode,
        wait: Wait,
        owner: Owner,
    ) -> Result<Vec<PinKey>> {
        let mode = match mode {
            PinMode::Read => Mode::Read,
            PinMode::Write => Mode::Write,
            PinMode::Overwrite => Mode::Overwrite,
        };
        let until = match wait {
            Wait::Timeout(limit) => Instant::now().checked_add(limit),
            Wait::Block | Wait::Try => None,
        };
        let mut pins = Vec::with_capacity(ranges.len());
        for range in ranges {
            // The time is for all of them together.
            let wait = match until {
                Some(until) if !pins.is_empty() => {
                    Wait::Timeout(until.saturating_duration_since(Instant::now()))
                }
                _ => wait,
            };
            match self.pin_one(range, mode, wait, owner) {
                Ok(pin) => pins.push(pin),
                Err(error) => {
                    for (pin, range) in pins.into_iter().zip(ranges) {
                        // Nothing was stored: there is nothing to fail.
                        let _ = self.end_pin(pin, range, false);
                    }
                    return Err(error);
                }
            }
        }
        Ok(pins)
    }

    fn set_owner(&self, pin: PinKey, owner: Owner) {
        let shared = &self.cache.shared;
        // A forked child's calls are refused later, where they can say so.
        if shared.not_forked().is_ok() {
            shared.core.lock().engine.set_owner(pin, owner);
            shared.changed.notify_all();
        }
    }

    fn release(&self, pin: PinKey, range: &Range<u64>, after: After) -> Result<Released> {
        let shared = &self.cache.shared;
        shared.not_forked()?;
        if after == After::WriteBack {
            let written_bytes = self.end_pin(pin, range, false)?;
            return Ok(Released { written_bytes, refused: None });
        }
        // Whoever opens the file while this lasts waits until it is over, and then for the bytes.
        let (written_bytes, refused) = match shared.guards.keep(self.backing.key, range) {
            Ok(_kept) => (self.end_pin(pin, range, true)?, None),
            Err(why) => (self.end_pin(pin, range, false)?, Some(why)),
        };
        Ok(Released { written_bytes, refused })
    }

    fn segments(&self, _pin: PinKey, range: &Range<u64>) -> Vec<Segment> {
        let pieces = self.backing.pieces(range).into_iter();
        pieces.map(|(addr, r)| Segment { addr, offset: r.start, len: r.end - r.start }).collect()
    }

    fn access(&self, pin: PinKey, range: Range<u64>, piece: &mut Piece<'_>) -> Result<()> {
        self.through(pin, range, piece)
    }

    fn read_at(&self, buf: &mut [u8], range: &Range<u64>, owner: Owner) -> Result<usize> {
        self.bring_home(range, owner)?;
        let io = self.backing.io();
        io.read_at(buf, range.start).map_err(|e| file_error("read", range, &e))
    }

    fn change(&self, change: &FileChange<'_>, owner: Owner) -> Result<()> {
        let shared = &self.cache.shared;
        shared.not_forked()?;
        let known = shared.core.lock().engine.file_bytes(self.backing.key);
        let (request, range) = (change.request(self.backing.key, known), change.range());
        let mut make =
            |io: &HostFile| change.make(io).map_err(|e| file_error(change.what(), &range, &e));
        shared
            .request_as(request, self.caller(owner), Wait::Block, Some(&mut make))
            .map_err(|r| shared.explain(r, &range, Wait::Block))?;
        Ok(())
    }

    fn flush(&self, range: Range<u64>, owner: Owner) -> Result<u64> {
        self.flush_by(range, false, owner)
    }

    fn sync(&self, range: Range<u64>, data_only: bool, owner: Owner) -> Result<()> {
        self.flush(range.clone(), owner)?;
        let io = self.backing.io();
        io.sync(data_only).map_err(|e| file_error("fsync", &range, &e))
    }

    fn prefetch(&self, range: Range<u64>, owner: Owner) -> Result<u64> {
        let shared = &self.cache.shared;
        let budget = shared.budget_frames * shared.info.frame_bytes;
        let end = range.end.min(self.bytes()?).min(range.start.saturating_add(budget));
        let step = (8 * shared.info.frame_bytes).min(budget);
        let (mut at, mut there) = (range.start, 0);
        while at < end {
            let next = (at / step * step).saturating_add(step).min(end);
            match self.pin_one(&(at..next), Mode::Read, Wait::Try, owner) {
                Ok(pin) => {
                    self.end_pin(pin, &(at..next), false)?;
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

    fn evict(&self, range: Range<u64>) -> Result<u64> {
        let request = Request::Evict { file: self.backing.key, range: range.clone() };
        match self.request(request, &range)? {
            Outcome::Moved { evicted_bytes, .. } => Ok(evicted_bytes),
            _ => Ok(0),
        }
    }

    fn coherence(&self) -> Result<Coherence> {
        let shared = &self.cache.shared;
        shared.not_forked()?;
        shared.guards.look(self.backing.key, u64::MAX)?;
        Ok(shared.guards.coherence(self.backing.key))
    }

    fn placement(&self, range: Range<u64>) -> Result<Vec<Placement>> {
        let request = Request::Query { file: self.backing.key, range: range.clone() };
        match self.request(request, &range)? {
            Outcome::Placed(runs) => Ok(runs),
            _ => Ok(Vec::new()),
        }
    }

    fn map(&self, range: Range<u64>, writable: bool) -> Result<Box<dyn MapService>> {
        self.map_in(range, writable)
    }

    fn close(&self) -> Result<()> {
        self.cache.close(&self.backing)
    }
}
