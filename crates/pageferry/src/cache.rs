//! A cache: one device, one budget, any number of files.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use crate::sync::Mutex;
use pageferry_device::Device;
use pageferry_engine::{FileKey, Outcome, Request};
use pageferry_linux::{FileId, HostFile, OpenError, Place};

use crate::backing::Backing;
use crate::guard::Guards;
use crate::shared::Shared;
use crate::{CacheConfig, Error, File, Result, Stats, Wait, flusher};

/// A page cache in one device's memory. Clones share it.
///
/// Files, pins and mappings keep it alive. When the last of them is dropped, what is still away is
/// written back and the device's memory is given back.
#[derive(Clone)]
pub struct Cache {
    pub(crate) inner: Arc<Inner>,
}

/// What keeps the cache alive.
pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    /// Which file is known under which key. Also serialises opening and closing.
    table: Mutex<HashMap<FileId, FileKey>>,
    flusher: Option<JoinHandle<()>>,
}

impl Cache {
    /// A cache on `device`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the settings make no sense (the message says which), or
    /// [`Error::Os`] if the flusher's thread cannot be started.
    pub fn new(device: Arc<dyn Device>, config: CacheConfig) -> Result<Cache> {
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
        Ok(Cache { inner: Arc::new(Inner { shared, table: Mutex::default(), flusher }) })
    }

    /// Opens a file for reading and writing. Never creates or truncates.
    ///
    /// # Errors
    /// [`Error::NotRegularFile`], [`Error::Os`] (with its `errno`).
    pub fn open(&self, path: impl AsRef<Path>) -> Result<File> {
        self.open_path(path.as_ref(), true)
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_read_only(&self, path: impl AsRef<Path>) -> Result<File> {
        self.open_path(path.as_ref(), false)
    }

    fn open_path(&self, path: &Path, writable: bool) -> Result<File> {
        self.inner.shared.not_forked()?;
        let name = path.display().to_string();
        let place = Place::find(path).map_err(|e| open_error(&name, e))?;
        let mut table = self.inner.table.lock();
        // One description of a file is enough, and a second would count as somebody else's.
        if let Some(backing) = self.inner.known(&table, place.identity())
            && (backing.io().is_writable() || !writable)
            && place.permits(writable)
        {
            return Ok(self.handle(backing, writable));
        }
        let io = HostFile::open(path, writable).map_err(|e| open_error(&name, e))?;
        self.adopt(&mut table, io, name)
    }

    /// Takes the file behind an open descriptor, which the caller keeps: the cache opens the file
    /// anew, privately, with the descriptor's access mode (read-only or read-write).
    ///
    /// The caller's descriptor counts as another user's: while a writable one is open, or any one of a
    /// file that the cache may write, nothing can be proven ([`File::coherence`]).
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Error::InvalidArgument`] for a write-only descriptor.
    pub fn open_fd(&self, fd: BorrowedFd<'_>) -> Result<File> {
        use std::os::fd::AsRawFd;
        self.inner.shared.not_forked()?;
        let name = format!("file descriptor {}", fd.as_raw_fd());
        let io = HostFile::from_fd(fd).map_err(|e| open_error(&name, e))?;
        let mut table = self.inner.table.lock();
        self.adopt(&mut table, io, name)
    }

    fn adopt(
        &self,
        table: &mut HashMap<FileId, FileKey>,
        io: HostFile,
        name: String,
    ) -> Result<File> {
        let shared = &self.inner.shared;
        let (id, writable) = (io.identity(), io.is_writable());
        let backing = match self.inner.known(table, id) {
            Some(backing) => {
                self.upgrade(&backing, io)?;
                backing
            }
            None => {
                let io = Arc::new(io);
                let key = shared.core.lock().engine.add_file(Guards::meet(&io)?);
                shared.guards.open(key, &io)?;
                let backing = Arc::new(Backing::new(key, name, io, shared.info.region_bytes));
                shared.files.write().insert(key, Arc::clone(&backing));
                table.insert(id, key);
                backing
            }
        };
        Ok(self.handle(backing, writable))
    }

    /// A description that can write takes over from one that cannot.
    fn upgrade(&self, backing: &Backing, io: HostFile) -> Result<()> {
        let guards = &self.inner.shared.guards;
        if !io.is_writable() || backing.io().is_writable() {
            return Ok(());
        }
        // The gate would be asked about what is done through a description that it has seen opened.
        let io = match guards.lower_gate(backing.key) && io.is_private() {
            true => io.again().map_err(|e| open_error(&backing.name, e))?,
            false => io,
        };
        if let Some(io) = backing.upgrade(io) {
            guards.replace(backing.key, &io);
        }
        Ok(())
    }

    fn handle(&self, backing: Arc<Backing>, writable: bool) -> File {
        *backing.handles.lock() += 1;
        File::new(Arc::clone(&self.inner), backing, writable)
    }

    /// Runs `kernel` once for each group `0..groups` on the device's processors and waits for all.
    /// Kernels reach files through [`View`](crate::View)s. The first error that a group returns is
    /// the result; the other groups still run to their ends.
    ///
    /// # Errors
    /// A group's error; [`Error::KernelFailed`] if one panicked; [`Error::Unsupported`] on a device
    /// that cannot run host closures.
    pub fn launch(&self, groups: u64, kernel: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
        let shared = &self.inner.shared;
        shared.not_forked()?;
        let Some(processors) = shared.device.processors() else {
            return Err(Error::Unsupported(format!("{} runs no host closures", shared.info.name)));
        };
        let first = Mutex::new(None);
        let launched = processors.launch(groups, &|group| {
            if let Err(error) = kernel(group) {
                first.lock().get_or_insert(error);
            }
        });
        match (launched, first.into_inner()) {
            (_, Some(error)) => Err(error),
            (Err(pageferry_device::DeviceError::KernelFailed { message }), None) => {
                Err(Error::KernelFailed(message))
            }
            (Err(error), None) => Err(Error::Device(error)),
            (Ok(()), None) => Ok(()),
        }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.inner.shared.device
    }

    /// Bytes of a frame.
    #[must_use]
    pub fn frame_bytes(&self) -> u64 {
        self.inner.shared.info.frame_bytes
    }

    /// The budget, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.inner.shared.budget_frames * self.frame_bytes()
    }

    /// Device memory in use now, in bytes (whole frames); none in a forked child.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        if self.inner.shared.not_forked().is_err() {
            return 0;
        }
        self.inner.shared.core.lock().engine.frames_used() * self.frame_bytes()
    }

    /// A snapshot of the counters; a forked child has none.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::take(&self.inner.shared)
    }

    /// Writes the away pages of all files back; they stay as copies. Waits for write pins over
    /// away pages. Returns the bytes written.
    ///
    /// # Errors
    /// The first file's that failed; the others are flushed all the same.
    pub fn flush(&self) -> Result<u64> {
        let shared = &self.inner.shared;
        shared.not_forked()?;
        let files: Vec<FileKey> = shared.core.lock().engine.files().collect();
        let (mut bytes, mut failed) = (0, None);
        for file in files {
            match shared.flush(file, 0..u64::MAX, false) {
                Ok(written) => bytes += written,
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        failed.map_or(Ok(bytes), Err)
    }
}

impl Inner {
    fn known(&self, table: &HashMap<FileId, FileKey>, id: FileId) -> Option<Arc<Backing>> {
        table.get(&id).and_then(|key| self.shared.files.read().get(key).cloned())
    }

    /// The last handle of a file is gone. What cannot be written back stays with the cache, which
    /// tries again by age and at its own end.
    pub(crate) fn close(&self, backing: &Arc<Backing>) -> Result<()> {
        let mut table = self.table.lock();
        let mut handles = backing.handles.lock();
        *handles -= 1;
        if *handles > 0 {
            return Ok(());
        }
        let id = backing.io().identity();
        self.shared.close(backing)?;
        table.remove(&id);
        Ok(())
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

    pub(crate) fn flush(
        &self,
        file: FileKey,
        range: std::ops::Range<u64>,
        skip_pinned: bool,
    ) -> Result<u64> {
        let request = Request::Flush { file, range: range.clone(), skip_pinned };
        self.flush_by(request, &range, Wait::Block)
    }

    /// As [`flush`](Self::flush), waiting for write pins over away bytes no longer than told.
    pub(crate) fn flush_within(
        &self,
        file: FileKey,
        range: std::ops::Range<u64>,
        wait: Wait,
    ) -> Result<u64> {
        let request = Request::Flush { file, range: range.clone(), skip_pinned: false };
        self.flush_by(request, &range, wait)
    }

    fn flush_by(&self, request: Request, range: &std::ops::Range<u64>, wait: Wait) -> Result<u64> {
        let Request::Flush { file, .. } = request else { return Ok(0) };
        match self.request(request, wait) {
            Ok(Outcome::Moved { written_bytes, .. }) => {
                self.spare_lease(file);
                Ok(written_bytes)
            }
            Ok(_) => Ok(0),
            Err(refusal) => Err(self.explain(refusal, range, wait)),
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

impl Drop for Inner {
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

pub(crate) fn os_error(what: &str, error: &std::io::Error) -> Error {
    Error::Os { what: what.into(), errno: error.raw_os_error().unwrap_or(libc::EIO) }
}

fn open_error(name: &str, error: OpenError) -> Error {
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
