//! The daemon's frames in this process's memory.
//!
//! For each file there is a *window* that pins for reading share: the file's folios in a row, as far as they have
//! been touched. Each pin for writing has one of its own, in which stores go to copies. A frame is asked for
//! when it is first touched, so that what a pin costs does not depend on its length.
//!
//! A folio that is not pinned may lose its frame to another; the daemon counts when that happens (the *layout*),
//! and says with each pin how far it has counted. A frame that was looked up at that count or later is the right
//! one for as long as the pin lasts; one that was looked up before is asked for again.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use pageferry_device::PAGE_BYTES;
use pageferry_soft::{Stop, StopReason, Window, WindowError};
use pageferry_wire::{self as wire, PinId, Reply, Request, frames_sent};

use super::link::{Link, Replied, unexpected};
use crate::error::os_error;
use crate::service::Piece;
use crate::sync::Mutex;
use crate::{Error, Result};

/// Bytes of a file's window for reading. Address space only.
const WINDOW_BYTES: u64 = 64 << 30;
/// A page that is present for the daemon and yet not here so often in a row is a bug, not a race.
const REFAULTS_MAX: u32 = 1000;

/// Frames in a row, from some folio of a file on.
pub(super) struct Frames {
    window: Window,
    first_folio: u64,
    frame_bytes: u64,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// By index in the window.
    frames: HashMap<u64, Frame>,
    /// The index behind the last one asked for, and how many were asked for: who goes on from there gets more.
    next: u64,
    run: u64,
}

/// What is attached.
#[derive(Clone, Copy)]
struct Frame {
    serial: u64,
    /// `None`: it may be the wrong one, and is asked for again.
    layout: Option<u64>,
}

/// In whose name frames are asked for.
#[derive(Clone, Copy)]
pub(super) struct Holder<'a> {
    pub(super) link: &'a Link,
    pub(super) pin: PinId,
    pub(super) layout: u64,
    /// What the pin holds, in bytes of the file.
    pub(super) range: &'a Range<u64>,
}

impl Frames {
    /// For the file's folios of a range, with nothing mapped yet.
    pub(super) fn new(folios: Range<u64>, frame_bytes: u64, stores: bool) -> Result<Frames> {
        let window = Window::new(folios.end - folios.start, frame_bytes, stores)
            .map_err(|e| os_error("reserving address space for device memory", &e))?;
        Ok(Frames { window, first_folio: folios.start, frame_bytes, known: Mutex::default() })
    }

    fn start(&self) -> u64 {
        self.first_folio * self.frame_bytes
    }

    /// Where a byte of the file is, or will be when its frame is mapped.
    pub(super) fn addr(&self, at: u64) -> u64 {
        self.window.addr() as u64 + (at - self.start())
    }

    /// Performs a kernel's access; the window covers the range.
    pub(super) fn access(
        &self,
        holder: Holder<'_>,
        range: Range<u64>,
        piece: &mut Piece<'_>,
    ) -> Result<()> {
        let (mut at, mut refaults) = (range.start, 0);
        while at < range.end {
            let folio_end = (at / self.frame_bytes + 1) * self.frame_bytes;
            let len = range.end.min(folio_end) - at;
            let inside = at - self.start();
            let accessed = match (self.map_folios(holder, at..range.end)?, &mut *piece) {
                (false, _) => Err(Stop { done: 0, reason: StopReason::NotPresent }),
                (true, Piece::Load(buf, _)) => self.window.load(inside, &mut buf[..len as usize]),
                (true, Piece::Store(bytes)) => self.window.store(inside, &bytes[..len as usize]),
            };
            let (done, stop) = match accessed {
                Ok(()) => (len, None),
                Err(Stop { done, reason }) => (done as u64, Some(reason)),
            };
            piece.advance(done);
            at += done;
            refaults = if done > 0 { 0 } else { refaults + 1 };
            match stop {
                None => {}
                Some(_) if refaults > REFAULTS_MAX => {
                    return Err(Error::KernelFailed(format!("byte {at} cannot be served")));
                }
                // Cut off, spoilt, or written to for long: the daemon knows, if it is still there. If it says nothing
                // of the kind, a cut has cost the pin its frame, and there is another.
                Some(StopReason::NotPresent | StopReason::Abandoned) => {
                    holder.link.ask_done(Request::Fault { pin: holder.pin, at })?;
                    self.doubt(at);
                }
                // Another pin found that the frame has changed.
                Some(StopReason::NotAttached) => self.doubt(at),
                Some(StopReason::OtherProcess) => return Err(Error::Forked),
                Some(reason) => return Err(Error::Disconnected { why: reason.to_string() }),
            }
        }
        Ok(())
    }

    /// The folio's frame is asked for again. If it is still the same, it stays attached, with what was stored.
    fn doubt(&self, at: u64) {
        let index = at / self.frame_bytes - self.first_folio;
        if let Some(frame) = self.known.lock().frames.get_mut(&index) {
            frame.layout = None;
        }
    }

    /// Sees to it that the folio of a range's first byte is mapped, and some of the next ones. `false`: it has no
    /// frame.
    fn map_folios(&self, holder: Holder<'_>, range: Range<u64>) -> Result<bool> {
        let first = range.start / self.frame_bytes - self.first_folio;
        let mut known = self.known.lock();
        if known.frames.get(&first).is_some_and(|frame| frame.layout >= Some(holder.layout)) {
            return Ok(true);
        }
        // As many as this access needs, and more for those who go on where they were.
        let behind = (range.end.div_ceil(self.frame_bytes) - self.first_folio).max(first + 1);
        known.run = if known.next == first { known.run * 2 } else { 1 };
        let pin_end = holder.range.end.div_ceil(self.frame_bytes) - self.first_folio;
        let end = pin_end.min(self.window.frames());
        let wanted = (behind - first).max(known.run).min(end - first);
        let count = wanted.clamp(1, wire::FOLIOS_MAX as u64);
        (known.next, known.run) = (first + count, count);
        let serial = |index| known.frames.get(&index).map_or(0, |frame: &Frame| frame.serial);
        let serials: Vec<u64> = (first..first + count).map(serial).collect();
        let request = Request::Frames {
            pin: holder.pin,
            first_folio: self.first_folio + first,
            known: serials.clone(),
        };
        // Under the lock: frames come in the order in which they are asked for.
        let Replied { reply, descriptors } = holder.link.call(request, None)?;
        let Reply::Frames { layout, serials: now } = reply else { return Err(unexpected(&reply)) };
        let sent: Vec<usize> = frames_sent(&serials, &now).collect();
        if now.len() != serials.len() || sent.len() != descriptors.len() {
            return Err(Error::Protocol("it sends other frames than it says".into()));
        }
        for (i, memory) in sent.iter().zip(&descriptors) {
            let index = first + *i as u64;
            known.frames.remove(&index);
            let serial = now[*i];
            self.window.attach(index, memory.as_fd(), serial).map_err(window_error)?;
            known.frames.insert(index, Frame { serial, layout: None });
        }
        for (index, serial) in (first..).zip(now) {
            let Some(frame) = known.frames.get_mut(&index) else { continue };
            // Without a frame, for now or for good: what is there stays until it is known what comes.
            frame.layout = (serial == frame.serial).then_some(layout);
        }
        Ok(known.frames.get(&first).is_some_and(|frame| frame.layout.is_some()))
    }

    /// Lets go of frames that were looked up before `layout`, but for those of pinned folios: what was evicted since
    /// is not to stay in memory for our sake.
    ///
    /// Who is asked what is pinned answers for that moment: a pin that was granted before, and comes to be known only
    /// now, finds its frames gone before it is accessed, and not while somebody uses their addresses.
    pub(super) fn let_go_older(&self, layout: u64, pinned: &dyn Fn(Range<u64>) -> bool) {
        let mut known = self.known.lock();
        let is_old = |index: &u64, frame: &Frame| {
            let start = (self.first_folio + index) * self.frame_bytes;
            frame.layout < Some(layout) && !pinned(start..start + self.frame_bytes)
        };
        let old = known.frames.iter().filter(|(index, frame)| is_old(index, frame));
        let old: Vec<u64> = old.map(|(index, _)| *index).collect();
        for index in old {
            known.frames.remove(&index);
            self.window.detach(index);
        }
    }

    /// What was stored, as far as it is inside a range: pages, ascending.
    pub(super) fn stored(&self, range: &Range<u64>) -> Result<Vec<Range<u64>>> {
        let start = self.start();
        let pages = range.start - start..(range.end - start).next_multiple_of(PAGE_BYTES);
        let stored = self.window.stored(pages);
        let stored = stored.map_err(|e| os_error("looking for what was stored", &e))?;
        let clip = |run: Range<u64>| {
            (run.start + start).max(range.start)..(run.end + start).min(range.end)
        };
        Ok(stored.into_iter().map(clip).filter(|run| !run.is_empty()).collect())
    }

    /// Copies what was stored.
    pub(super) fn read_stored(&self, at: u64, buf: &mut [u8]) -> Result<(), Stop> {
        self.window.load_stored(at - self.start(), buf)
    }
}

/// The windows for reading of a file, by number.
#[derive(Default)]
pub(super) struct ReadWindows(Mutex<HashMap<u64, Arc<Frames>>>);

impl ReadWindows {
    /// The window of a byte, with the range that it covers.
    pub(super) fn at(&self, at: u64, frame_bytes: u64) -> Result<(Arc<Frames>, Range<u64>)> {
        let folios = WINDOW_BYTES / frame_bytes;
        let number = at / WINDOW_BYTES;
        let covers = number * WINDOW_BYTES..(number + 1).saturating_mul(WINDOW_BYTES);
        let mut windows = self.0.lock();
        if let Some(frames) = windows.get(&number) {
            return Ok((Arc::clone(frames), covers));
        }
        let frames = Frames::new(number * folios..(number + 1) * folios, frame_bytes, false)?;
        let frames = Arc::clone(windows.entry(number).insert_entry(Arc::new(frames)).get());
        Ok((frames, covers))
    }

    pub(super) fn let_go_older(&self, layout: u64, pinned: &dyn Fn(Range<u64>) -> bool) {
        let windows: Vec<_> = self.0.lock().values().cloned().collect();
        windows.iter().for_each(|frames| frames.let_go_older(layout, pinned));
    }
}

fn window_error(error: WindowError) -> Error {
    match error {
        WindowError::OtherProcess => Error::Forked,
        WindowError::Map(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
            let max_map_count = pageferry_linux::limits::max_map_count().unwrap_or(0);
            Error::OutOfVmas { max_map_count }
        }
        WindowError::Map(error) => os_error("mapping device memory", &error),
        error => Error::Protocol(error.to_string()),
    }
}
