//! A cache in this process: one device, one budget, any number of files.

mod access;
mod change;
#[cfg(all(test, not(shuttle)))]
mod descriptions;
mod file;
mod map;
mod table;

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use pageferry_device::Device;
use pageferry_engine::{FileKey, Outcome, Owner, Request};
use pageferry_linux::{HostFile, OpenError, Place};

use crate::backing::Backing;
use crate::error::os_error;
use crate::guard::Met;
use crate::service::{CacheService, FileService};
use crate::shared::{Caller, Shared, Tally};
use crate::{CacheConfig, Error, Result, Session, Stats, Wait, flusher};

use self::table::Table;

pub(crate) use file::Opening;

/// What keeps the cache alive: files, pins and mappings hold it. When it goes, what is still away is
/// written back and the device's memory is given back.
pub(crate) struct Embedded {
    pub(crate) shared: Arc<Shared>,
    /// For the files, which keep it alive.
    this: Weak<Embedded>,
    table: Table,
    flusher: Option<JoinHandle<()>>,
}

impl Embedded {
    pub(crate) fn new(device: Arc<dyn Device>, config: CacheConfig) -> Result<Arc<Embedded>> {
        let info = device.info();
        let asked = config.memory_bytes.unwrap_or(u64::MAX) / info.frame_bytes;
        let budget = asked.min(info.capacity_frames);
        if budget == 0 {
            return Err(Error::InvalidArgument(format!(
                "a memory budget of {} bytes holds no frame of {} bytes",
                config.memory_bytes.unwrap_or(0),
                info.frame_bytes
            )));
        }
        if !config.touch_bytes.is_power_of_two() || config.touch_bytes < 4096 {
            return Err(Error::InvalidArgument(format!(
                "a touch granule of {} bytes is not a power of two from 4096",
                config.touch_bytes
            )));
        }
        let age = config.flush_age;
        let shared = Arc::new(Shared::new(device, config, budget));
        shared.guards.start(&shared);
        let flusher = match age {
            Some(age) => Some(flusher::start(Arc::clone(&shared), age)?),
            None => None,
        };
        Ok(Arc::new_cyclic(|this| Embedded {
            shared,
            this: this.clone(),
            table: Table::default(),
            flusher,
        }))
    }

    /// Opens the file behind a descriptor, under a name.
    pub(crate) fn open_fd_as(&self, fd: BorrowedFd<'_>, name: String) -> Result<Opening> {
        let gates = self.shared.guards.gates_taken_down();
        let io = HostFile::from_fd(fd).map_err(|e| open_error(&name, e))?;
        self.adopt(io, gates, name)
    }

    /// An opening of the file that a new description leads to, which was opened when so many gates were down again.
    fn adopt(&self, io: HostFile, gates: u64, name: String) -> Result<Opening> {
        let (id, writable) = (io.identity(), io.is_writable());
        let (cache, guards) = (self.alive()?, &self.shared.guards);
        let (mut io, mut gates) = (Arc::new(io), gates);
        let (backing, made) = loop {
            if let Some(backing) = self.table.hold(id, |_| true) {
                break (backing, false);
            }
            let met = guards.meet(&io)?;
            // A gate that stood on the file until it was closed may have seen the description opened.
            let unseen = || !io.is_private() || guards.gates_taken_down() == gates;
            let make = || unseen().then(|| self.add(&io, met, &name));
            if let Some(held) = self.table.hold_or_make(id, make) {
                break held;
            }
            gates = guards.gates_taken_down();
            io = Arc::new(io.again().map_err(|e| open_error(&name, e))?);
        };
        if !made && let Err(error) = self.upgrade(&backing, io) {
            // What is away stays with the cache if it cannot go home.
            let _ = self.close(&backing);
            return Err(error);
        }
        Ok(Opening::new(cache, backing, name, writable))
    }

    fn add(&self, io: &Arc<HostFile>, met: Met, name: &str) -> Arc<Backing> {
        let shared = &self.shared;
        let key = shared.core.lock().engine.add_file(met.observed());
        shared.guards.open(key, io, met);
        let (name, io) = (name.to_owned(), Arc::clone(io));
        let backing = Arc::new(Backing::new(key, name, io, shared.info.region_bytes));
        shared.files.write().insert(key, Arc::clone(&backing));
        backing
    }

    /// A description that can write takes over from one that cannot.
    fn upgrade(&self, backing: &Backing, mut io: Arc<HostFile>) -> Result<()> {
        loop {
            let old = backing.io();
            if !io.is_writable() || old.is_writable() {
                return Ok(());
            }
            // The gate would be asked about what is done through a description that it has seen opened.
            let lowered = self.shared.guards.lower_gate(backing.key);
            if lowered.has_stood && io.is_private() {
                io = Arc::new(io.again().map_err(|e| open_error(&backing.name, e))?);
            }
            if self.take_over(backing, &old, &io) {
                return Ok(());
            }
        }
    }

    fn take_new_description(&self, backing: &Backing) -> Result<()> {
        let guards = &self.shared.guards;
        loop {
            let old = backing.io();
            // The gate would be asked about what is done through a description that it has seen opened.
            let _lowered = guards.lower_gate(backing.key);
            let io = Arc::new(old.again().map_err(|e| open_error(&backing.name, e))?);
            if self.take_over(backing, &old, &io) {
                break;
            }
        }
        // Whoever has the old one may have stored through it since its mapping was last asked.
        guards.suspect_all(backing.key);
        Ok(())
    }

    /// A description takes over from the one that it was made for; `false` if another already has.
    fn take_over(&self, backing: &Backing, old: &Arc<HostFile>, new: &Arc<HostFile>) -> bool {
        let told = || self.shared.guards.replace(backing.key, new);
        self.table.take_over(backing, old, new, told)
    }

    fn alive(&self) -> Result<Arc<Embedded>> {
        let gone = || Error::InvalidArgument("the cache is being dropped".into());
        self.this.upgrade().ok_or_else(gone)
    }

    /// The last handle of a file is gone. What cannot be written back stays with the cache, which
    /// tries again by age and at its own end.
    pub(crate) fn close(&self, backing: &Arc<Backing>) -> Result<()> {
        self.table.release(backing, || self.shared.close(backing))
    }
}

impl CacheService for Embedded {
    fn open(&self, path: &Path, writable: bool) -> Result<Arc<dyn FileService>> {
        self.shared.not_forked()?;
        let name = path.display().to_string();
        let place = Place::find(path).map_err(|e| open_error(&name, e))?;
        let cache = self.alive()?;
        // One description of a file is enough, and a second would count as somebody else's.
        let suits = |backing: &Backing| backing.io().is_writable() || !writable;
        if place.permits(writable)
            && let Some(backing) = self.table.hold(place.identity(), suits)
        {
            return Ok(Arc::new(Opening::new(cache, backing, name, writable)));
        }
        let gates = self.shared.guards.gates_taken_down();
        let io = HostFile::open(path, writable).map_err(|e| open_error(&name, e))?;
        Ok(Arc::new(self.adopt(io, gates, name)?))
    }

    fn open_fd(&self, fd: BorrowedFd<'_>) -> Result<Arc<dyn FileService>> {
        use std::os::fd::AsRawFd;
        self.shared.not_forked()?;
        let name = format!("file descriptor {}", fd.as_raw_fd());
        Ok(Arc::new(self.open_fd_as(fd, name)?))
    }

    fn device(&self) -> &Arc<dyn Device> {
        &self.shared.device
    }

    fn memory_bytes(&self) -> u64 {
        self.shared.budget_frames * self.shared.info.frame_bytes
    }

    fn used_bytes(&self) -> u64 {
        if self.shared.not_forked().is_err() {
            return 0;
        }
        self.shared.core.lock().engine.frames_used() * self.shared.info.frame_bytes
    }

    fn stats(&self) -> Stats {
        Stats::take(&self.shared)
    }

    fn sessions(&self) -> Result<Vec<Session>> {
        Err(Error::Unsupported("a cache of this process's own has no sessions".into()))
    }

    fn flush(&self, owner: Owner) -> Result<u64> {
        let shared = &self.shared;
        shared.not_forked()?;
        let files: Vec<FileKey> = shared.core.lock().engine.files().collect();
        let (mut bytes, mut failed) = (0, None);
        for file in files {
            let caller = Caller { owner, gone: None };
            match shared.flush(file, 0..u64::MAX, false, caller, Wait::Block) {
                Ok(written) => bytes += written,
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        failed.map_or(Ok(bytes), Err)
    }

    fn not_forked(&self) -> Result<()> {
        self.shared.not_forked()
    }

    fn count_failed_release(&self) {
        Tally::add(&self.shared.tally.failed_releases, 1);
    }
}

impl Shared {
    /// Everything home, every frame free, the file forgotten.
    pub(crate) fn close(&self, backing: &Backing) -> Result<()> {
        let close = Request::Close { file: backing.key };
        self.request(close, Wait::Block)
            .map_err(|r| self.explain(r, &(0..u64::MAX), Wait::Block))?;
        self.forget(backing);
        Ok(())
    }

    fn forget(&self, backing: &Backing) {
        self.files.write().remove(&backing.key);
        self.guards.close(backing.key);
        backing.release_regions(&*self.device);
    }

    /// Brings a range home; tells how many bytes were written.
    pub(crate) fn flush(
        &self,
        file: FileKey,
        range: Range<u64>,
        skip_pinned: bool,
        caller: Caller<'_>,
        wait: Wait,
    ) -> Result<u64> {
        let request = Request::Flush { file, range: range.clone(), skip_pinned };
        match self.request_as(request, caller, wait, None) {
            Ok(Outcome::Moved { written_bytes, .. }) => {
                self.spare_lease(file);
                Ok(written_bytes)
            }
            Ok(_) => Ok(0),
            Err(refusal) => Err(self.explain(refusal, &range, wait)),
        }
    }

    /// Gives up the lease of a file of which nothing is away any more.
    fn spare_lease(&self, file: FileKey) {
        let Some(moment) = self.guards.holds(file) else { return };
        if !self.core.lock().engine.is_away(file, &(0..u64::MAX)) {
            self.guards.all_is_home(file, moment);
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        let shared = &self.shared;
        if shared.not_forked().is_err() {
            // Its threads and its device are the parent's: leave all as it is.
            std::mem::forget(Arc::clone(shared));
            return;
        }
        shared.core.lock().stopping = true;
        shared.changed.notify_all();
        if let Some(flusher) = self.flusher.take() {
            // A flusher that panicked has said so already.
            let _ = flusher.join();
        }
        // Only files whose last write-back failed are left.
        let left: Vec<Arc<Backing>> = shared.files.read().values().cloned().collect();
        for backing in left {
            if let Err(error) = shared.close(&backing) {
                let abandoned = shared.core.lock().engine.abandon(backing.key);
                if let Some((frames, lost)) = abandoned {
                    for (folio, frame) in frames {
                        if let Some(addr) = backing.addr(folio * shared.info.frame_bytes) {
                            shared.device.detach(addr);
                        }
                        shared.device.free_frame(pageferry_device::FrameId(frame.0));
                    }
                    shared.forget(&backing);
                    shared.tally.lost_bytes.fetch_add(lost, Ordering::Relaxed);
                    tracing::error!(file = backing.name, lost, %error, "device-written bytes are lost");
                }
            }
        }
        if let Some(traps) = shared.traps.lock().take() {
            traps.stop();
        }
    }
}

pub(crate) fn open_error(name: &str, error: OpenError) -> Error {
    match error {
        OpenError::NotRegular { kind } => {
            Error::NotRegularFile { name: name.into(), what: kind.to_string() }
        }
        OpenError::WriteOnly => Error::InvalidArgument(format!(
            "{name} is open for writing only; the cache has to read it too: open it read-write"
        )),
        OpenError::Os { source, .. } => os_error(&format!("opening {name}"), &source),
        error => Error::InvalidArgument(format!("{name}: {error}")),
    }
}
