//! A cache as its users hold it.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use crate::sync::Mutex;
use pageferry_device::{Device, DeviceError};

use crate::connected::Connected;
use crate::embedded::Embedded;
use crate::service::CacheService;
use crate::{CacheConfig, Error, File, Result, Session, Stats};

/// A page cache in one device's memory. Clones share it.
///
/// Files, pins and mappings keep it alive. When the last of them is dropped, what is still away is
/// written back and the device's memory is given back.
#[derive(Clone)]
pub struct Cache {
    pub(crate) service: Arc<dyn CacheService>,
}

impl Cache {
    /// A cache on `device`, in this process.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the settings make no sense (the message says which), or
    /// [`Error::Os`] if the flusher's thread cannot be started.
    pub fn new(device: Arc<dyn Device>, config: CacheConfig) -> Result<Cache> {
        Ok(Cache { service: Embedded::new(device, config)? })
    }

    /// The cache of the daemon that listens at a socket (`pageferry serve --socket`): used as one of one's own.
    /// Copies are shared with all processes that use the daemon, and stay when this one ends; `SEMANTICS.md` says
    /// what else differs. All threads use one connection. A forked child is refused ([`Error::Forked`]) and connects
    /// anew.
    ///
    /// # Errors
    /// [`Error::Os`] if nobody listens there, [`Error::Limit`] if the daemon has no room,
    /// [`Error::Protocol`] if it is of another release. When the daemon goes, every call fails with
    /// [`Error::Disconnected`]; a new connection serves.
    pub fn connect(socket: impl AsRef<Path>) -> Result<Cache> {
        Ok(Cache { service: Arc::new(Connected::new(socket.as_ref())?) })
    }

    /// Opens a file for reading and writing. Never creates or truncates.
    ///
    /// # Errors
    /// [`Error::NotRegularFile`], [`Error::Os`] (with its `errno`).
    pub fn open(&self, path: impl AsRef<Path>) -> Result<File> {
        Ok(File::new(self.clone(), self.service.open(path.as_ref(), true)?))
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_read_only(&self, path: impl AsRef<Path>) -> Result<File> {
        Ok(File::new(self.clone(), self.service.open(path.as_ref(), false)?))
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
        Ok(File::new(self.clone(), self.service.open_fd(fd)?))
    }

    /// Runs `kernel` once for each group `0..groups` on the device's processors and waits for all.
    /// Kernels reach files through [`View`](crate::View)s. The first error that a group returns is
    /// the result; the other groups still run to their ends.
    ///
    /// # Errors
    /// A group's error; [`Error::KernelFailed`] if one panicked; [`Error::Unsupported`] on a device
    /// that cannot run host closures.
    pub fn launch(&self, groups: u64, kernel: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
        self.service.not_forked()?;
        let device = self.device();
        let Some(processors) = device.processors() else {
            let name = device.info().name;
            return Err(Error::Unsupported(format!("{name} runs no host closures")));
        };
        let first = Mutex::new(None);
        let launched = processors.launch(groups, &|group| {
            if let Err(error) = kernel(group) {
                first.lock().get_or_insert(error);
            }
        });
        match (launched, first.into_inner()) {
            (_, Some(error)) => Err(error),
            (Err(DeviceError::KernelFailed { message }), None) => Err(Error::KernelFailed(message)),
            (Err(error), None) => Err(Error::Device(error)),
            (Ok(()), None) => Ok(()),
        }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        self.service.device()
    }

    /// Bytes of a frame.
    #[must_use]
    pub fn frame_bytes(&self) -> u64 {
        self.device().info().frame_bytes
    }

    /// The budget, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.service.memory_bytes()
    }

    /// Device memory in use now, in bytes (whole frames); none in a forked child.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.service.used_bytes()
    }

    /// A snapshot of the counters; a forked child has none.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.service.stats()
    }

    /// Who uses the cache that a daemon has, ascending by number; this connection is one of them. Who is neither the
    /// daemon's user nor root is told of the sessions of its own user.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a cache of this process's own; [`Error::Disconnected`].
    pub fn sessions(&self) -> Result<Vec<Session>> {
        self.service.sessions()
    }

    /// Writes the away pages of all files back; they stay as copies. Waits for write pins over
    /// away pages. Returns the bytes written.
    ///
    /// # Errors
    /// The first file's that failed; the others are flushed all the same.
    pub fn flush(&self) -> Result<u64> {
        self.service.flush(crate::sync::this_thread())
    }
}
