//! Performing the engine's actions: the only place where bytes move.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;

use pageferry_device::{Access, DeviceError, Dirty, FrameId, FrameSpan, TransferError};
use pageferry_engine::{Action, Class, FileKey, Reply};
use pageferry_linux::{FileStamp, HostFile, MapError};

use crate::backing::Backing;
use crate::shared::{Change, Shared};
use crate::{Error, Result};

/// A failure with what the engine must know of it.
struct Failure {
    class: Class,
    error: Error,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let class = match &error {
            Error::Device(DeviceError::Lost) => Class::DeviceLost,
            Error::Device(DeviceError::Full { .. }) => Class::NoFrame,
            Error::OutOfVmas { .. } => Class::OutOfVmas,
            _ => Class::Other,
        };
        Failure { class, error }
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Failure {
        Error::Device(error).into()
    }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

fn file_error(what: &'static str, range: &Range<u64>, error: &io::Error) -> Error {
    Error::File { what, range: range.clone(), errno: errno(error) }
}

fn transfer_error(what: &'static str, range: &Range<u64>, error: TransferError) -> Failure {
    match error {
        TransferError::Device(error) => error.into(),
        TransferError::Host(error) => file_error(what, range, &error).into(),
    }
}

pub(crate) fn map_error(error: MapError) -> Error {
    match error {
        MapError::OutOfVmas { max_map_count } => Error::OutOfVmas { max_map_count },
        MapError::Forked => Error::Forked,
        MapError::ReadOnlyFile => Error::ReadOnly("the file".into()),
        MapError::Os { call, source } => Error::Os { what: call.into(), errno: errno(&source) },
        error => Error::InvalidArgument(error.to_string()),
    }
}

/// What a file looks like now.
pub(crate) fn measure(io: &HostFile) -> Result<FileStamp> {
    io.observe().map_err(|e| file_error("statx", &(0..0), &e))
}

impl Backing {
    /// The file's size now, in bytes.
    pub(crate) fn bytes(&self) -> Result<u64> {
        Ok(measure(&self.io())?.size)
    }
}

impl Shared {
    /// Performs one action; blocks for as long as the copy or the call takes.
    pub(crate) fn perform(&self, action: &Action, change: &mut Option<Change<'_>>) -> Reply<Error> {
        self.attempt(action, change)
            .unwrap_or_else(|Failure { class, error }| Reply::Failed { class, error })
    }

    fn attempt(
        &self,
        action: &Action,
        change: &mut Option<Change<'_>>,
    ) -> Result<Reply<Error>, Failure> {
        match action {
            Action::Observe { file, since } => {
                Ok(Reply::Observed(self.guards.look(*file, *since)?))
            }
            Action::Measure { file } => Ok(Reply::Measured(self.backing(*file)?.bytes()?)),
            Action::ScanStores { map, range, .. } => {
                Ok(Reply::Stored(self.mapped(*map)?.trappable().scan_stores(range)?))
            }
            Action::Trap { map, range, .. } => {
                Ok(Reply::Stored(self.mapped(*map)?.trappable().trap(range)?))
            }
            Action::Untrap { map, range, .. } => {
                self.mapped(*map)?.trappable().untrap(range)?;
                Ok(Reply::Done)
            }
            Action::Allocate { file, folio } => self.allocate(*file, *folio),
            Action::Steal { frame, from, to } => {
                self.detach(from.0, from.1)?;
                self.reassign(*frame, from.0 == to.0)?;
                self.attach(*frame, to.0, to.1)?;
                Ok(Reply::Done)
            }
            Action::Free { frame, file, folio } => {
                self.detach(*file, *folio)?;
                self.device.free_frame(device_frame(*frame));
                Ok(Reply::Done)
            }
            Action::Fetch { file, frame, range, zero } => self.fetch(*file, *frame, range, *zero),
            Action::WriteBack { file, frame, range } => self.write_back(*file, *frame, range),
            Action::TakeDirty { file, range } => self.take_dirty(*file, range),
            Action::Hide { file, ranges } => self.hide(*file, ranges),
            Action::Change { file } => {
                let (made, after) = self.guards.change(*file, |io| match change {
                    Some(change) => change(io),
                    None => Err(Error::Unsupported("a change without its call".into())),
                })?;
                Ok(Reply::Changed { after, error: made.err() })
            }
            Action::Expel { map, at, .. } => {
                self.mapped(*map)?.trappable().expel(*at)?;
                Ok(Reply::Done)
            }
            Action::MapIn { map, traps, .. } => {
                let mapped = self.mapped(*map)?;
                for trap in traps {
                    // Nobody knows its address yet: nothing was stored through it.
                    mapped.trappable().trap(trap)?;
                }
                Ok(Reply::Done)
            }
            Action::MapOut { map, .. } => {
                self.maps.write().remove(map);
                Ok(Reply::Done)
            }
        }
    }

    fn span(&self, frame: FrameId, range: &Range<u64>) -> FrameSpan {
        let offset = range.start % self.info.frame_bytes;
        FrameSpan { frame, offset, len: range.end - range.start }
    }

    fn allocate(&self, file: FileKey, folio: u64) -> Result<Reply<Error>, Failure> {
        let frame = self.device.alloc_frame()?;
        self.attach(engine_frame(frame), file, folio)?;
        Ok(Reply::Frame(engine_frame(frame)))
    }

    /// Attaches a frame; one that cannot be attached goes back to the device.
    fn attach(
        &self,
        frame: pageferry_engine::FrameId,
        file: FileKey,
        folio: u64,
    ) -> Result<(), Failure> {
        let place = self.backing(file)?;
        let at = folio * self.info.frame_bytes;
        let attached = place
            .reserve(&*self.device, at)
            .and_then(|addr| self.device.attach(addr, device_frame(frame)));
        attached.map_err(|error| {
            self.device.free_frame(device_frame(frame));
            error.into()
        })
    }

    /// Whoever could map the frame until now is not to see what comes; one for which that cannot be had goes
    /// back to the device.
    fn reassign(&self, frame: pageferry_engine::FrameId, same_file: bool) -> Result<(), Failure> {
        let frame = device_frame(frame);
        let reassigned = self.device.reassign_frame(frame, same_file);
        Ok(reassigned.inspect_err(|_| self.device.free_frame(frame))?)
    }

    fn detach(&self, file: FileKey, folio: u64) -> Result<(), Failure> {
        let backing = self.backing(file)?;
        if let Some(addr) = backing.addr(folio * self.info.frame_bytes) {
            // Who is told of the layout from here on looks again for the frames that it knows.
            backing.layout.fetch_add(1, Ordering::SeqCst);
            self.device.detach(addr);
        }
        Ok(())
    }

    fn fetch(
        &self,
        file: FileKey,
        frame: pageferry_engine::FrameId,
        range: &Range<u64>,
        zero: bool,
    ) -> Result<Reply<Error>, Failure> {
        let backing = self.backing(file)?;
        let span = self.span(device_frame(frame), range);
        let mut short = false;
        if zero {
            self.device.zero(span)?;
        } else {
            let known = self.core.lock().engine.file_bytes(file).unwrap_or(0);
            let io = backing.io();
            let mut at = range.start;
            let mut source = |piece: &mut [u8]| {
                let got = io.read_at(piece, at)?;
                piece[got..].fill(0);
                // Zeros past the end are right; an end before the one we know is news.
                short |= at + (got as u64) < known.min(at + piece.len() as u64);
                at += piece.len() as u64;
                Ok(())
            };
            if let Err(error) = self.device.fill(span, &mut source) {
                // Another pin may be using an older copy of these pages: its kernels shall fault
                // rather than see half a copy.
                if let Some(addr) = backing.addr(range.start) {
                    let _ = self.device.protect(addr, span.len, None);
                }
                return Err(transfer_error("read", range, error));
            }
        }
        if let Some(addr) = backing.addr(range.start) {
            self.device.protect(addr, span.len, Some(Access::Read))?;
        }
        Ok(Reply::Fetched { short })
    }

    fn write_back(
        &self,
        file: FileKey,
        frame: pageferry_engine::FrameId,
        range: &Range<u64>,
    ) -> Result<Reply<Error>, Failure> {
        let backing = self.backing(file)?;
        let (written, after) = self.guards.change(file, |io| -> Result<u64, Failure> {
            // Never beyond the end of the file as it is now.
            let end = range.end.min(backing.bytes()?);
            let inside = range.start..end.max(range.start);
            if inside.is_empty() {
                return Ok(0);
            }
            let mut at = inside.start;
            let mut sink = |piece: &[u8]| {
                io.write_at(piece, at).map_err(|e| e.source)?;
                at += piece.len() as u64;
                Ok(())
            };
            let drained = self.device.drain(self.span(device_frame(frame), &inside), &mut sink);
            drained.map_err(|e| transfer_error("write-back", range, e))?;
            Ok(inside.end - inside.start)
        })?;
        Ok(Reply::WroteBack { bytes: written?, after })
    }

    fn take_dirty(&self, file: FileKey, range: &Range<u64>) -> Result<Reply<Error>, Failure> {
        let mut stored = Vec::new();
        for (addr, piece) in self.backing(file)?.pieces(range) {
            match self.device.take_dirty(addr, piece.end - piece.start)? {
                Dirty::Unknown => return Ok(Reply::Dirty(None)),
                Dirty::Pages(runs) => {
                    stored.extend(runs.iter().map(|r| piece.start + r.start..piece.start + r.end));
                }
            }
        }
        Ok(Reply::Dirty(Some(stored)))
    }

    fn hide(&self, file: FileKey, ranges: &[Range<u64>]) -> Result<Reply<Error>, Failure> {
        let backing = self.backing(file)?;
        for range in ranges {
            if let Some(addr) = backing.addr(range.start) {
                self.device.protect(addr, range.end - range.start, None)?;
            }
        }
        Ok(Reply::Done)
    }
}

fn engine_frame(frame: FrameId) -> pageferry_engine::FrameId {
    pageferry_engine::FrameId(frame.0)
}

fn device_frame(frame: pageferry_engine::FrameId) -> FrameId {
    FrameId(frame.0)
}
