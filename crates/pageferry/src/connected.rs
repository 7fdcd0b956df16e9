//! A cache that a daemon has: this process holds a connection, and memory it can read.
//!
//! # The one idea
//!
//! Everything that is asked of a cache goes to the daemon as one message, except what a cache is for: kernels
//! load device memory that the daemon has handed over, and store into private copies of it (copy-on-write
//! mappings). Both find out by the device's own page table, which is in that memory, whether a page may be
//! accessed; so a pin costs one message, an access none.
//!
//! ```text
//!  File, Pin ── FileService ──▶ RemoteFile ── packet ──▶ daemon
//!  View ─────────────────────▶ Frames (windows)          │
//!                                 ▲── descriptors of frames, once each, when first touched
//! ```

mod device;
mod file;
mod frames;
mod link;
mod maps;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pageferry_device::Device;
use pageferry_engine::Owner;
use pageferry_linux::{HostFile, Place};
use pageferry_wire::{Reply, Request, VERSION};

use crate::embedded::open_error;
use crate::service::{CacheService, FileService};
use crate::{Error, Result, Session, Stats, translate};
use device::RemoteDevice;
use file::{RemoteFile, Writing};
use link::{Link, unexpected};
use maps::Maps;

/// A daemon's cache.
pub(crate) struct Connected {
    link: Arc<Link>,
    maps: Arc<Maps>,
    device: Arc<dyn Device>,
    frame_bytes: u64,
    memory_bytes: u64,
    failed_releases: AtomicU64,
}

impl Connected {
    pub(crate) fn new(socket: &Path) -> Result<Connected> {
        let link = Arc::new(Link::connect(socket)?);
        match link.call(Request::Hello { version: VERSION }, None)?.reply {
            Reply::Welcome { device, memory_bytes, .. } => {
                let frame_bytes = device.frame_bytes;
                let sound = frame_bytes.is_power_of_two() && frame_bytes >= 4096;
                if !sound {
                    return Err(Error::Protocol(format!("frames of {frame_bytes} bytes")));
                }
                let device = Arc::new(RemoteDevice::new(device));
                let failed_releases = AtomicU64::new(0);
                let maps = Arc::new(Maps::new(Arc::clone(&link)));
                Ok(Connected { link, maps, device, frame_bytes, memory_bytes, failed_releases })
            }
            reply => Err(unexpected(&reply)),
        }
    }

    fn opened(
        &self,
        fd: BorrowedFd<'_>,
        (place, name): (Place, String),
        writing: Writing,
    ) -> Result<RemoteFile> {
        let writable = matches!(writing, Writing::Open);
        let file = self.link.open(fd, &name, writable)?;
        let (link, maps) = (Arc::clone(&self.link), Arc::clone(&self.maps));
        Ok(RemoteFile::new(link, maps, file, (place, name), writing, self.frame_bytes))
    }
}

impl CacheService for Connected {
    fn open(&self, path: &Path, writable: bool) -> Result<Arc<dyn FileService>> {
        self.not_forked()?;
        let name = path.display().to_string();
        // Whether the file may be opened so is for the system to say, to this process. The descriptor goes when the
        // daemon has its own: it would count as another user's. One for writing, even if nothing is written, would
        // make all copies old: it is opened when it is needed.
        let place = Place::find(path).map_err(|e| open_error(&name, e))?;
        let later = writable && place.permits(true);
        let io = place.open(writable && !later).map_err(|e| open_error(&name, e))?;
        let writing = match (writable, later) {
            (false, _) => Writing::No,
            (true, true) => Writing::Later,
            (true, false) => Writing::Open,
        };
        Ok(Arc::new(self.opened(io.as_fd(), (place, name), writing)?))
    }

    fn open_fd(&self, fd: BorrowedFd<'_>) -> Result<Arc<dyn FileService>> {
        use std::os::fd::AsRawFd;
        self.not_forked()?;
        let name = format!("file descriptor {}", fd.as_raw_fd());
        let writable = HostFile::from_fd(fd).map_err(|e| open_error(&name, e))?.is_writable();
        let writing = if writable { Writing::Open } else { Writing::No };
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let place = Place::find(Path::new(&path)).map_err(|e| open_error(&name, e))?;
        Ok(Arc::new(self.opened(fd, (place, name), writing)?))
    }

    fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    fn used_bytes(&self) -> u64 {
        match self.link.ask(Request::Usage) {
            Ok(Reply::Usage { used_bytes, .. }) => used_bytes,
            _ => 0,
        }
    }

    fn stats(&self) -> Stats {
        match self.link.ask(Request::Stats) {
            Ok(Reply::Stats(counters)) => {
                let values: Vec<_> = counters.into_iter().map(|c| (c.name, c.value)).collect();
                Stats::of(&values, self.failed_releases.load(Ordering::Relaxed))
            }
            _ => Stats::of(&[], 0),
        }
    }

    fn sessions(&self) -> Result<Vec<Session>> {
        let mut all: Vec<Session> = Vec::new();
        loop {
            let after = all.last().map_or(0, |session| session.number);
            let reply = self.link.ask(Request::Sessions { after })?;
            let Reply::Sessions { sessions, more } = reply else { return Err(unexpected(&reply)) };
            all.extend(sessions.into_iter().map(translate::session_in));
            let last = all.last().map_or(0, |session| session.number);
            if !more {
                return Ok(all);
            }
            if last <= after {
                return Err(Error::Protocol("its list of sessions has no end".into()));
            }
        }
    }

    fn flush(&self, owner: Owner) -> Result<u64> {
        self.link.ask_bytes(Request::FlushAll { owner: link::thread(owner) })
    }

    fn not_forked(&self) -> Result<()> {
        self.link.not_forked()
    }

    fn count_failed_release(&self) {
        self.failed_releases.fetch_add(1, Ordering::Relaxed);
    }
}
