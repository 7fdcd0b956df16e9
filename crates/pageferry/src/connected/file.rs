//! One opening of a file at a daemon.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use pageferry_device::DeviceAddr;
use pageferry_engine::{Owner, PinKey};
use pageferry_linux::{HostFile, MemoryWriter, Place, SealedMemory};
use pageferry_wire::{self as wire, FileId, PinId, Reply, Request, Span, Stores};

use super::frames::{Frames, Holder, ReadWindows};
use super::link::{Link, Replied, thread, unexpected};
use super::maps::Maps;
use crate::embedded::open_error;
use crate::error::os_error;
use crate::map::MapService;
use crate::service::{FileChange, FileService, Piece, Released};
use crate::sync::Mutex;
use crate::translate::{self, span};
use crate::{After, Coherence, Error, PageState, PinMode, Placement, Result, Segment, Wait};

/// Bytes of stores copied at once on their way to the daemon.
const PIECE_BYTES: u64 = 1 << 20;

/// One opening.
pub(super) struct RemoteFile {
    link: Arc<Link>,
    maps: Arc<Maps>,
    /// To open it once more.
    place: Place,
    id: FileId,
    name: String,
    writable: bool,
    writing: Mutex<Written>,
    frame_bytes: u64,
    windows: ReadWindows,
    pins: Mutex<Pins>,
}

/// Whether a file is opened for writing.
pub(super) enum Writing {
    No,
    /// When the first write needs it.
    Later,
    /// It is.
    Open,
}

/// As what the daemon knows the file that is written to.
enum Written {
    Not,
    Later,
    As(FileId),
}

#[derive(Default)]
struct Pins {
    held: HashMap<PinKey, Arc<RemotePin>>,
    /// The highest that any pin was granted at.
    layout: u64,
}

struct RemotePin {
    range: Range<u64>,
    layout: u64,
    /// Of a pin for writing: its window, once there is one.
    stores: Option<Mutex<Option<Arc<Frames>>>>,
}

impl RemoteFile {
    pub(super) fn new(
        link: Arc<Link>,
        maps: Arc<Maps>,
        id: FileId,
        (place, name): (Place, String),
        writing: Writing,
        frame_bytes: u64,
    ) -> RemoteFile {
        let (windows, pins) = (ReadWindows::default(), Mutex::default());
        let (writable, written) = match writing {
            Writing::No => (false, Written::Not),
            Writing::Later => (true, Written::Later),
            Writing::Open => (true, Written::As(id)),
        };
        let writing = Mutex::new(written);
        RemoteFile { link, maps, place, id, name, writable, writing, frame_bytes, windows, pins }
    }

    /// The file to be written to, opened for that if it was not yet.
    fn writer(&self) -> Result<FileId> {
        self.link.not_forked()?;
        let mut writing = self.writing.lock();
        let id = match &*writing {
            Written::Not => return Err(Error::ReadOnly(self.name.clone())),
            Written::As(id) => return Ok(*id),
            Written::Later => {
                let io = self.place.open(true).map_err(|e| open_error(&self.name, e))?;
                self.link.open(io.as_fd(), &self.name, true)?
            }
        };
        *writing = Written::As(id);
        Ok(id)
    }

    /// A description to map: the daemon's own, which counts as nobody else's, or else one of ours.
    fn description(&self, file: FileId) -> Result<Arc<HostFile>> {
        let Replied { reply, descriptors } = self.link.call(Request::Description { file }, None)?;
        if reply != Reply::Done {
            return Err(unexpected(&reply));
        }
        let io = match descriptors.into_iter().next() {
            Some(lent) => HostFile::shared(lent),
            None => self.place.open(file != self.id || self.opened_writable()),
        };
        Ok(Arc::new(io.map_err(|e| open_error(&self.name, e))?))
    }

    /// What the daemon knows as `id` is open for writing.
    fn opened_writable(&self) -> bool {
        matches!(*self.writing.lock(), Written::As(id) if id == self.id)
    }

    fn held(&self, pin: PinKey) -> Result<Arc<RemotePin>> {
        let gone = || Error::InvalidArgument("the pin is released".into());
        self.pins.lock().held.get(&pin).cloned().ok_or_else(gone)
    }

    fn folios(&self, range: &Range<u64>) -> Range<u64> {
        range.start / self.frame_bytes..range.end.div_ceil(self.frame_bytes)
    }

    /// The window in which a byte of a pin is, with the range that it covers.
    fn window(&self, pin: &RemotePin, at: u64) -> Result<(Arc<Frames>, Range<u64>)> {
        let Some(stores) = &pin.stores else { return self.windows.at(at, self.frame_bytes) };
        let mut window = stores.lock();
        if let Some(frames) = &*window {
            return Ok((Arc::clone(frames), pin.range.clone()));
        }
        let frames = Arc::new(Frames::new(self.folios(&pin.range), self.frame_bytes, true)?);
        *window = Some(Arc::clone(&frames));
        Ok((frames, pin.range.clone()))
    }

    fn pin_some(
        &self,
        ranges: &[Range<u64>],
        mode: PinMode,
        wait: Wait,
        owner: Owner,
    ) -> Result<Vec<PinKey>> {
        let request = Request::Pin {
            file: if mode == PinMode::Read { self.id } else { self.writer()? },
            ranges: ranges.iter().map(span).collect::<Result<_>>()?,
            mode: translate::mode_out(mode),
            wait: translate::wait_out(wait),
            owner: thread(owner),
        };
        let reply = self.link.ask(request)?;
        let Reply::Pinned { pins, layout } = reply else { return Err(unexpected(&reply)) };
        if pins.len() != ranges.len() {
            return Err(Error::Protocol(format!("{} pins for {}", pins.len(), ranges.len())));
        }
        let mut held = self.pins.lock();
        let keys: Vec<PinKey> = pins.iter().map(|pin| PinKey(pin.0)).collect();
        for (key, range) in keys.iter().zip(ranges) {
            let stores = (mode != PinMode::Read).then(Mutex::default);
            let pin = RemotePin { range: range.clone(), layout, stores };
            held.held.insert(*key, Arc::new(pin));
        }
        let newer = layout > held.layout;
        held.layout = held.layout.max(layout);
        drop(held);
        if newer {
            self.windows.let_go_older(layout, &|folio| {
                let overlaps =
                    |range: &Range<u64>| folio.start < range.end && range.start < folio.end;
                self.pins.lock().held.values().any(|pin| overlaps(&pin.range))
            });
        }
        Ok(keys)
    }

    /// Tells the daemon what was stored under a pin; the last message's worth is for the release to take along.
    fn tell_stores(&self, key: PinKey, pin: &RemotePin) -> Result<Option<(Stores, SealedMemory)>> {
        let window = pin.stores.as_ref().and_then(|stores| stores.lock().clone());
        let Some(window) = window else { return Ok(None) };
        let stored = window.stored(&pin.range)?;
        let mut packed = None;
        for runs in stored.chunks(wire::STORE_RUNS_MAX as usize) {
            if let Some((stores, memory)) = packed.take() {
                self.tell(stores, &memory)?;
            }
            match self.pack(&window, runs) {
                Ok(some) => packed = Some(some),
                // A process that may write no file of that size, say.
                Err(Error::Os { .. }) => self.tell_inline(key, &window, runs)?,
                Err(error) => return Err(error),
            }
        }
        Ok(packed)
    }

    fn tell(&self, stores: Stores, memory: &SealedMemory) -> Result<()> {
        let request = Request::Release { pins: Vec::new(), stores: Some(stores) };
        self.link.call(request, Some(memory.as_fd())).map(drop)
    }

    fn tell_inline(&self, pin: PinKey, window: &Frames, runs: &[Range<u64>]) -> Result<()> {
        for run in runs {
            for offset in run.clone().step_by(wire::DATA_BYTES_MAX) {
                let len = (run.end - offset).min(wire::DATA_BYTES_MAX as u64);
                let mut bytes = vec![0; len as usize];
                read_stored(window, offset, &mut bytes);
                let pin = PinId(pin.0);
                self.link.ask_done(Request::Store { pin, offset, bytes })?;
            }
        }
        Ok(())
    }

    /// What was stored under pins of this opening's is away, though the daemon does not know of it yet.
    fn show_stores(&self, placed: &mut Vec<Placement>) -> Result<()> {
        let pins: Vec<Arc<RemotePin>> = self.pins.lock().held.values().cloned().collect();
        for pin in pins {
            let window = pin.stores.as_ref().and_then(|stores| stores.lock().clone());
            let Some(window) = window else { continue };
            for run in window.stored(&pin.range)? {
                let page = run.start & !4095..run.end.next_multiple_of(4096);
                *placed = std::mem::take(placed).into_iter().flat_map(|p| cut(p, &page)).collect();
            }
        }
        placed.dedup_by(|next, last| {
            let same = last.state == next.state && last.pinned == next.pinned;
            if same {
                last.range.end = next.range.end;
            }
            same
        });
        Ok(())
    }

    /// Puts runs of stores into a memory file.
    fn pack(&self, window: &Frames, runs: &[Range<u64>]) -> Result<(Stores, SealedMemory)> {
        let failed = |e: &std::io::Error| os_error("collecting what was stored", e);
        let spans: Vec<Span> = runs.iter().map(span).collect::<Result<_>>()?;
        let records = wire::encode_runs(&spans).map_err(|e| Error::Protocol(e.to_string()))?;
        let mut memory = MemoryWriter::new().map_err(|e| failed(&e))?;
        memory.append(&records).map_err(|e| failed(&e))?;
        let mut bytes = 0;
        let mut buf = vec![0; PIECE_BYTES as usize];
        for run in runs {
            let mut at = run.start;
            while at < run.end {
                let piece = &mut buf[..(run.end - at).min(PIECE_BYTES) as usize];
                read_stored(window, at, piece);
                memory.append(piece).map_err(|e| failed(&e))?;
                at += piece.len() as u64;
            }
            bytes += run.end - run.start;
        }
        let memory = memory.seal().map_err(|e| failed(&e))?;
        Ok((Stores { file: self.writer()?, runs: runs.len() as u64, bytes }, memory))
    }
}

impl FileService for RemoteFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_writable(&self) -> bool {
        self.writable
    }

    fn bytes(&self) -> Result<u64> {
        self.link.ask_bytes(Request::Len { file: self.id })
    }

    fn pin(
        &self,
        ranges: &[Range<u64>],
        mode: PinMode,
        wait: Wait,
        owner: Owner,
    ) -> Result<Vec<PinKey>> {
        let mut pins = Vec::with_capacity(ranges.len());
        for ranges in ranges.chunks(wire::RANGES_MAX) {
            match self.pin_some(ranges, mode, wait, owner) {
                Ok(some) => pins.extend(some),
                Err(error) => {
                    for pin in pins {
                        // Nothing was stored: there is nothing to fail.
                        let _ = self.release(pin, &(0..0), After::WriteBack);
                    }
                    return Err(error);
                }
            }
        }
        Ok(pins)
    }

    fn set_owner(&self, pin: PinKey, owner: Owner) {
        let request = Request::SetOwner { pin: PinId(pin.0), owner: thread(owner) };
        if let Err(error) = self.link.ask_done(request) {
            // The pin is gone then, too.
            tracing::debug!(%error, "a pin's owner stays what it was");
        }
    }

    fn release(&self, pin: PinKey, _range: &Range<u64>, after: After) -> Result<Released> {
        self.link.not_forked()?;
        let gone = || Error::InvalidArgument("the pin is released".into());
        let held = self.pins.lock().held.remove(&pin).ok_or_else(gone)?;
        let stored = self.tell_stores(pin, &held);
        let (stores, memory, failed) = match stored {
            Ok(Some((stores, memory))) => (Some(stores), Some(memory), None),
            Ok(None) => (None, None, None),
            Err(error) => (None, None, Some(error)),
        };
        let release = wire::Release { pin: PinId(pin.0), after: translate::after_out(after) };
        let request = Request::Release { pins: vec![release], stores };
        let reply = self.link.call(request, memory.as_ref().map(AsFd::as_fd))?.reply;
        let Reply::Released { mut pins } = reply else { return Err(unexpected(&reply)) };
        match (failed, pins.pop()) {
            (Some(error), _) => Err(error),
            (None, Some(Ok(wire::Released { written_bytes, refused }))) => {
                Ok(Released { written_bytes, refused })
            }
            (None, Some(Err(failure))) => Err(translate::error(failure)),
            (None, None) => Err(Error::Protocol("no pin is released".into())),
        }
    }

    fn segments(&self, pin: PinKey, range: &Range<u64>) -> Vec<Segment> {
        let Ok(held) = self.held(pin) else { return Vec::new() };
        let mut segments = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let Ok((frames, covers)) = self.window(&held, at) else { return Vec::new() };
            let end = range.end.min(covers.end);
            let addr = DeviceAddr(frames.addr(at));
            segments.push(Segment { addr, offset: at, len: end - at });
            at = end;
        }
        segments
    }

    fn access(&self, pin: PinKey, range: Range<u64>, piece: &mut Piece<'_>) -> Result<()> {
        self.link.not_forked()?;
        let held = self.held(pin)?;
        let RemotePin { range: pinned, layout, .. } = &*held;
        let holder = Holder { link: &self.link, pin: PinId(pin.0), layout: *layout, range: pinned };
        let mut at = range.start;
        while at < range.end {
            let (frames, covers) = self.window(&held, at)?;
            let end = range.end.min(covers.end);
            frames.access(holder, at..end, piece)?;
            at = end;
        }
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], range: &Range<u64>, owner: Owner) -> Result<usize> {
        let mut done = 0;
        for piece in buf.chunks_mut(wire::DATA_BYTES_MAX) {
            let request = Request::Read {
                file: self.id,
                offset: range.start + done as u64,
                bytes: piece.len() as u32,
                owner: thread(owner),
            };
            let reply = self.link.ask(request)?;
            let Reply::Data(data) = reply else { return Err(unexpected(&reply)) };
            if data.len() > piece.len() {
                return Err(Error::Protocol("it sends more than was asked for".into()));
            }
            piece[..data.len()].copy_from_slice(&data);
            done += data.len();
            if data.len() < piece.len() {
                break;
            }
        }
        Ok(done)
    }

    fn change(&self, change: &FileChange<'_>, owner: Owner) -> Result<()> {
        let (file, owner) = (self.writer()?, thread(owner));
        let ask = |change: FileChange<'_>| {
            let change = translate::change_out(&change)?;
            self.link.ask_done(Request::Change { file, change, owner })
        };
        let FileChange::Write { offset, bytes } = change else { return ask(change.clone()) };
        // All of it in one go, as one change, if it can be had so.
        if bytes.len() > wire::DATA_BYTES_MAX
            && let Ok(memory) = in_memory(bytes)
        {
            let change = FileChange::WriteMemory { offset: *offset, memory: &memory };
            let change = translate::change_out(&change)?;
            let request = Request::Change { file, change, owner };
            return match self.link.call(request, Some(memory.as_fd()))?.reply {
                Reply::Done => Ok(()),
                reply => Err(unexpected(&reply)),
            };
        }
        for (n, bytes) in bytes.chunks(wire::DATA_BYTES_MAX).enumerate() {
            let offset = offset + (n * wire::DATA_BYTES_MAX) as u64;
            ask(FileChange::Write { offset, bytes })?;
        }
        Ok(())
    }

    fn flush(&self, range: Range<u64>, owner: Owner) -> Result<u64> {
        let span = span(&range)?;
        self.link.ask_bytes(Request::Flush { file: self.id, span, owner: thread(owner) })
    }

    fn sync(&self, range: Range<u64>, data_only: bool, owner: Owner) -> Result<()> {
        let (file, span, owner) = (self.id, span(&range)?, thread(owner));
        self.link.ask_done(Request::Sync { file, span, data_only, owner })
    }

    fn prefetch(&self, range: Range<u64>, _owner: Owner) -> Result<u64> {
        self.link.ask_bytes(Request::Prefetch { file: self.id, span: span(&range)? })
    }

    fn evict(&self, range: Range<u64>) -> Result<u64> {
        self.link.ask_bytes(Request::Evict { file: self.id, span: span(&range)? })
    }

    fn coherence(&self) -> Result<Coherence> {
        match self.link.ask(Request::Coherence { file: self.id })? {
            Reply::Coherence(coherence) => Ok(translate::coherence_in(coherence)),
            reply => Err(unexpected(&reply)),
        }
    }

    fn placement(&self, range: Range<u64>) -> Result<Vec<Placement>> {
        let mut placed: Vec<Placement> = Vec::new();
        let mut rest = range.clone();
        loop {
            let span = span(&rest)?;
            let reply = self.link.ask(Request::Placement { file: self.id, span })?;
            let Reply::Placement(runs) = reply else { return Err(unexpected(&reply)) };
            let full = runs.len() >= wire::PLACEMENT_RUNS_MAX;
            placed.extend(runs.iter().map(translate::run_in));
            match placed.last() {
                Some(last) if full && last.range.end > rest.start && last.range.end < rest.end => {
                    rest.start = last.range.end;
                }
                _ => break,
            }
        }
        self.show_stores(&mut placed)?;
        Ok(placed)
    }

    fn map(&self, range: Range<u64>, writable: bool) -> Result<Box<dyn MapService>> {
        // The description for reading would count as another user's beside the one for writing.
        let file = if self.writable { self.writer()? } else { self.id };
        let io = self.description(file)?;
        self.maps.map_in(file, &io, range, writable)
    }

    fn close(&self) -> Result<()> {
        let close = |file| match self.link.ask_done(Request::Close { file }) {
            // It has closed everything.
            Err(Error::Disconnected { .. }) => Ok(()),
            closed => closed,
        };
        let written = match *self.writing.lock() {
            Written::As(id) if id != self.id => close(id),
            _ => Ok(()),
        };
        close(self.id).and(written)
    }
}

/// A stretch with the part of it away that is inside a range.
fn cut(placed: Placement, away: &Range<u64>) -> Vec<Placement> {
    let Placement { range, state, pinned } = placed;
    let inside = away.start.clamp(range.start, range.end)..away.end.clamp(range.start, range.end);
    let part = |range, state| Placement { range, state, pinned };
    let parts = [
        part(range.start..inside.start, state),
        part(inside.clone(), PageState::Away),
        part(inside.end..range.end, state),
    ];
    parts.into_iter().filter(|p| !p.range.is_empty()).collect()
}

fn in_memory(bytes: &[u8]) -> std::io::Result<SealedMemory> {
    let mut memory = MemoryWriter::new()?;
    memory.append(bytes)?;
    memory.seal()
}

/// Copies what was stored. What has lost its frame meanwhile was cut off; the daemon drops it anyway.
fn read_stored(window: &Frames, at: u64, buf: &mut [u8]) {
    let mut from = 0;
    while let Err(stop) = window.read_stored(at + from as u64, &mut buf[from..]) {
        let page = (at + (from + stop.done) as u64) / 4096 * 4096;
        let next = ((page + 4096 - at) as usize).min(buf.len());
        buf[from + stop.done..next].fill(0);
        from = next;
    }
}
