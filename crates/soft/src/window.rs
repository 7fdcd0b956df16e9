//! Frames of another process's software device, mapped.
//!
//! A [`Window`] is the client's side of [`Device::export_frame`](pageferry_device::Device::export_frame).
//! Its accesses go by the page's stamp and give the same guarantees as a kernel's in the device's
//! process do: a page is accessed atomically, and only if it is present. What goes through the address
//! itself, by other code, has neither: it sees whatever is in the memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use pageferry_device::PAGE_BYTES;
use parking_lot::RwLock;
use rustix::fs::{FileType, SealFlags};

use crate::bounce::{Bounce, PIECE_BYTES};
use crate::config::FRAME_SIZES;
use crate::frame_memory::tail_bytes;
use crate::mapping::Canary;
use crate::page_state::Patience;
use crate::stamp::Unread;
use crate::window_map::WindowMap;
use crate::window_stores::Stores;

/// The device holds a page that is present for one write of a copy. If that lasts longer, somebody had better ask
/// whether it is still there.
const WRITE_LIMIT: Duration = Duration::from_secs(1);

/// Frames of another process's software device, mapped in a row at one address.
///
/// All calls may come from any thread. In a forked child nothing of it is mapped, and every call is
/// refused.
pub struct Window {
    /// Held for reading by accesses, while they are in the mapped memory; never while the caller's
    /// memory is touched, which may itself need a frame attached or detached to come home.
    map: RwLock<WindowMap>,
    stores: Option<Stores>,
    canary: Canary,
    addr: usize,
    frames: u64,
    frame_bytes: u64,
    /// For how long one write by the device may take.
    write_limit: Duration,
}

/// A frame was not attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WindowError {
    /// The window has no such index.
    #[error("index {index} of a window of {frames} frames")]
    Index {
        /// As given.
        index: u64,
        /// What there is.
        frames: u64,
    },
    /// The descriptor is not of a frame of this size that can neither shrink nor grow: an access of
    /// it could end the process.
    #[error("the memory is no exported frame of {frame_bytes} bytes: {what}")]
    Unfit {
        /// Bytes of a frame of the window.
        frame_bytes: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The host refused the mapping. Nothing is attached at the index now.
    #[error("mapping a frame: {0}")]
    Map(#[from] io::Error),
    /// This is a forked child of the process that made the window.
    #[error("the window is of another process")]
    OtherProcess,
}

/// An access did not get to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped after {done} bytes: {reason}")]
pub struct Stop {
    /// Bytes before the page that stopped it; they are accessed.
    pub done: usize,
    /// Why.
    pub reason: StopReason,
}

/// Why an access of a [`Window`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopReason {
    /// No frame is attached there, or it is outside of the window.
    #[error("no frame is attached")]
    NotAttached,
    /// The page is not present on the device, or not in this frame any more.
    #[error("the page is not present")]
    NotPresent,
    /// The window is not one for stores.
    #[error("the window is read-only")]
    ReadOnly,
    /// The device began to write to the page and has not ended for a second: its process is slow or stopped, or has
    /// died.
    #[error("the device left the page half written")]
    Abandoned,
    /// This is a forked child of the process that made the window.
    #[error("the window is of another process")]
    OtherProcess,
}

impl Window {
    /// Reserves address space for `frames` frames of `frame_bytes`, with nothing attached. With
    /// `stores`, bytes can be changed: in copies of the pages, which only this window sees.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for no frame, or a frame size that no software device has; what
    /// the host says.
    pub fn new(frames: u64, frame_bytes: u64, stores: bool) -> io::Result<Window> {
        if frames == 0 || !FRAME_SIZES.contains(&frame_bytes) || !frame_bytes.is_power_of_two() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let canary = Canary::new()?;
        let map = WindowMap::new(frames, frame_bytes, stores)?;
        Ok(Window {
            addr: map.addr(),
            map: RwLock::new(map),
            stores: stores.then(|| Stores::new(frames * (frame_bytes / PAGE_BYTES))),
            canary,
            frames,
            frame_bytes,
            write_limit: WRITE_LIMIT,
        })
    }

    /// Where the first frame is, or would be; aligned to the size of a frame.
    #[must_use]
    pub fn addr(&self) -> usize {
        self.addr
    }

    /// How many frames it has room for.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Bytes of one frame.
    #[must_use]
    pub fn frame_bytes(&self) -> u64 {
        self.frame_bytes
    }

    /// Maps an exported frame at an index, over whatever was there; stores to that are forgotten. `serial` is that
    /// of the export: when the device uses the frame for something else, none of its pages counts as present here.
    ///
    /// # Errors
    /// [`WindowError`].
    pub fn attach(
        &self,
        index: u64,
        memory: BorrowedFd<'_>,
        serial: u64,
    ) -> Result<(), WindowError> {
        if !self.canary.is_ours() {
            return Err(WindowError::OtherProcess);
        }
        if index >= self.frames {
            return Err(WindowError::Index { index, frames: self.frames });
        }
        check(memory, self.frame_bytes)?;
        if serial == 0 {
            let what = "a use of a frame has a number";
            return Err(WindowError::Unfit { frame_bytes: self.frame_bytes, what });
        }
        let mut map = self.map.write();
        if let Some(stores) = &self.stores {
            let pages = self.frame_bytes / PAGE_BYTES;
            stores.forget(index * pages..(index + 1) * pages);
        }
        Ok(map.attach(index, memory, serial)?)
    }

    /// Takes a frame out; stores to it are forgotten. Nothing attached: no effect.
    pub fn detach(&self, index: u64) {
        if !self.canary.is_ours() {
            return;
        }
        let mut map = self.map.write();
        if map.is_attached(index) {
            map.detach(index);
        }
    }

    /// Whether a frame is attached at an index.
    #[must_use]
    pub fn is_attached(&self, index: u64) -> bool {
        self.canary.is_ours() && self.map.read().is_attached(index)
    }

    /// Copies out the bytes from offset `at` of the window on.
    ///
    /// # Errors
    /// The first page that cannot be accessed; `buf` before it is filled.
    pub fn load(&self, at: u64, buf: &mut [u8]) -> Result<(), Stop> {
        self.load_by(at, buf, |map, page, to| match &self.stores {
            Some(stores) => stores.load(map, page, to),
            None => map.read_page(page, to),
        })
    }

    /// Copies out bytes of pages that [`stored`](Self::stored) has named: this process's own, present on the device
    /// or not.
    ///
    /// # Errors
    /// No frame is attached, or the window is not one for stores; `buf` before it is filled.
    pub fn load_stored(&self, at: u64, buf: &mut [u8]) -> Result<(), Stop> {
        let Some(stores) = &self.stores else {
            return Err(Stop { done: 0, reason: StopReason::ReadOnly });
        };
        self.load_by(at, buf, |map, page, to| {
            stores.load_own(map, page, to);
            Ok(())
        })
    }

    fn load_by(
        &self,
        at: u64,
        buf: &mut [u8],
        load: impl Fn(&WindowMap, u64, &mut [u8]) -> Result<(), Unread>,
    ) -> Result<(), Stop> {
        let mut bounce = Bounce::of(buf.len());
        let mut done = 0;
        while done < buf.len() {
            let (from, len) = self.piece(at, done, buf.len())?;
            let to = bounce.first(len);
            let (copied, outcome) =
                self.each_page(from, len, |map, page, range| load(map, page, &mut to[range]));
            buf[done..done + copied].copy_from_slice(&bounce.first(len)[..copied]);
            done += copied;
            outcome.map_err(|reason| Stop { done, reason })?;
        }
        Ok(())
    }

    /// Copies in bytes, from offset `at` of the window on; only for a window with stores.
    ///
    /// A page's first store copies it. Other code of this process that changes the page through its
    /// address at that moment is not seen.
    ///
    /// # Errors
    /// The first page that cannot be accessed; the bytes before it are stored.
    pub fn store(&self, at: u64, bytes: &[u8]) -> Result<(), Stop> {
        let Some(stores) = &self.stores else {
            return Err(Stop { done: 0, reason: StopReason::ReadOnly });
        };
        let mut bounce = Bounce::of(bytes.len());
        let mut done = 0;
        while done < bytes.len() {
            let (to, len) = self.piece(at, done, bytes.len())?;
            bounce.first(len).copy_from_slice(&bytes[done..done + len]);
            let from = bounce.first(len);
            let (copied, outcome) =
                self.each_page(to, len, |map, page, range| stores.store(map, page, &from[range]));
            done += copied;
            outcome.map_err(|reason| Stop { done, reason })?;
        }
        Ok(())
    }

    /// The next piece of an access of `len` bytes at `at`: its place and length.
    fn piece(&self, at: u64, done: usize, len: usize) -> Result<(u64, usize), Stop> {
        let stop = |reason| Stop { done, reason };
        if !self.canary.is_ours() {
            return Err(stop(StopReason::OtherProcess));
        }
        let at = at.checked_add(done as u64).ok_or(stop(StopReason::NotAttached))?;
        Ok((at, (len - done).min(PIECE_BYTES as usize)))
    }

    /// Calls `access` for the pages of a piece, with the offset in the window and the range of the
    /// piece's bytes, and again where the device was writing. Tells how many bytes were accessed.
    fn each_page(
        &self,
        at: u64,
        len: usize,
        mut access: impl FnMut(&WindowMap, u64, Range<usize>) -> Result<(), Unread>,
    ) -> (usize, Result<(), StopReason>) {
        let mut done = 0;
        let mut wait = Wait::new(self.write_limit);
        loop {
            let map = self.map.read();
            let unread = loop {
                if done == len {
                    return (done, Ok(()));
                }
                // No overflow: outside of the window nothing is attached.
                let page = at.saturating_add(done as u64);
                if !map.is_attached_at(page) {
                    return (done, Err(StopReason::NotAttached));
                }
                let left = (PAGE_BYTES - page % PAGE_BYTES) as usize;
                let end = (done + left).min(len);
                match access(&map, page, done..end) {
                    Ok(()) => done = end,
                    Err(unread) => break unread,
                }
            };
            // Whoever attaches or detaches need not wait for the device.
            drop(map);
            if let Err(reason) = wait.wait(unread) {
                return (done, Err(reason));
            }
        }
    }

    /// The pages of a range of the window that this process has stored to since their frame was
    /// attached, also through the address: page-aligned offsets of the window, ascending and merged.
    ///
    /// # Errors
    /// `/proc/self/pagemap` cannot be read; this is a forked child.
    pub fn stored(&self, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        if !self.canary.is_ours() {
            return Err(io::Error::other(WindowError::OtherProcess));
        }
        let mut found = Vec::new();
        let map = self.map.read();
        let end = range.end.min(map.bytes()).next_multiple_of(PAGE_BYTES);
        let mut at = range.start - range.start % PAGE_BYTES;
        if self.stores.is_none() || range.is_empty() {
            return Ok(found);
        }
        let pagemap = File::open("/proc/self/pagemap")?;
        while at < end {
            let next = ((at / self.frame_bytes + 1) * self.frame_bytes).min(end);
            if map.is_attached_at(at) {
                map.copies(&pagemap, at..next, &mut found)?;
            }
            at = next;
        }
        Ok(found)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if self.canary.is_ours() {
            self.map.get_mut().unmap();
        }
    }
}

/// Whether memory is an exported frame of this size that can neither shrink nor grow: an access of
/// another one could end the process.
fn check(memory: BorrowedFd<'_>, frame_bytes: u64) -> Result<(), WindowError> {
    let unfit = |what| Err(WindowError::Unfit { frame_bytes, what });
    let stat = rustix::fs::fstat(memory).map_err(io::Error::from)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return unfit("it is no regular file");
    }
    if stat.st_size as u64 != frame_bytes + tail_bytes(frame_bytes) {
        return unfit("its size is not right");
    }
    // Only memory files have seals.
    let sealed = SealFlags::SHRINK | SealFlags::GROW;
    match rustix::fs::fcntl_get_seals(memory) {
        Ok(seals) if seals.contains(sealed) => Ok(()),
        _ => unfit("it is not sealed against other sizes"),
    }
}

/// Waiting for the device to end a write to a page, but not for one that has died.
struct Wait {
    patience: Patience,
    limit: Duration,
    /// A stamp that said that the page is being written to, and since when it has not changed.
    writing: Option<(u32, Instant)>,
}

impl Wait {
    fn new(limit: Duration) -> Wait {
        Wait { patience: Patience::new(), limit, writing: None }
    }

    fn wait(&mut self, unread: Unread) -> Result<(), StopReason> {
        match unread {
            Unread::NotPresent => return Err(StopReason::NotPresent),
            Unread::Changed => self.writing = None,
            Unread::Writing(stamp) => match self.writing {
                Some((before, since)) if before == stamp => {
                    if since.elapsed() >= self.limit {
                        return Err(StopReason::Abandoned);
                    }
                }
                _ => self.writing = Some((stamp, Instant::now())),
            },
        }
        self.patience.wait();
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
#[path = "window_tests.rs"]
mod tests;
