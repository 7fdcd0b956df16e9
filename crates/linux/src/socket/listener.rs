//! Where clients connect.
//!
//! Seen on 6.18: `bind` gives the socket's file the mode that `fchmod` has given the socket before, less the
//! process's umask. So the file is never open to more than it should be, and is opened to all that it should be
//! before `listen`; until then every connect is refused.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SocketAddrUnix, SocketFlags};

use super::Socket;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Nobody can connect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Somebody listens there already, or is about to.
    #[error("{} is in use by another server", .0.display())]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{} is there, and is no socket", .0.display())]
    NotASocket(PathBuf),
    /// The descriptor that systemd has handed over cannot be used.
    #[error("the socket from systemd is {0}")]
    Handed(&'static str),
    /// A system call failed.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl ListenError {
    pub(super) fn os(what: &'static str) -> impl Fn(Errno) -> ListenError {
        move |error| ListenError::Os { what, source: error.into() }
    }
}

/// A socket that clients [connect](Socket::connect) to.
///
/// # Invariants
/// `fd` is a listening `SOCK_SEQPACKET` socket of the Unix family, non-blocking, and closes on exec.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    /// Readable once accepting has ended. Not a `shutdown`: a socket of systemd's would be shut down for who
    /// comes after.
    stop: OwnedFd,
    /// Its file, if it is ours to remove.
    file: Option<SocketFile>,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl Listener {
    /// Listens at `path`, whose file gets the permissions `mode`; who may write to it may connect. A socket there that
    /// nobody listens to is replaced. Two that do this at once are kept apart by a lock on the directory.
    ///
    /// # Errors
    /// [`ListenError::InUse`], [`ListenError::NotASocket`]; `ENAMETOOLONG` beyond 107 bytes, and others.
    pub fn bind(path: impl AsRef<Path>, mode: u32) -> Result<Listener, ListenError> {
        let path = path.as_ref();
        let address = SocketAddrUnix::new(path).map_err(ListenError::os("the socket's path"))?;
        let _lock = lock_directory(path)?;
        clear(path, &address)?;
        let mode = Mode::from_raw_mode(mode & 0o777);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = super::new(flags).map_err(|source| ListenError::Os { what: "socket", source })?;
        rustix::fs::fchmod(&fd, mode).map_err(ListenError::os("fchmod"))?;
        rustix::net::bind(&fd, &address).map_err(ListenError::os("bind"))?;
        let stat = rustix::fs::lstat(path).map_err(ListenError::os("stat"))?;
        let file = SocketFile { path: path.into(), id: (stat.st_dev, stat.st_ino) };
        // From here on, a failure removes the file.
        let listener = Listener { fd, stop: stop()?, file: Some(file) };
        if Mode::from_raw_mode(stat.st_mode) != mode {
            rustix::fs::chmod(path, mode).map_err(ListenError::os("chmod"))?;
        }
        rustix::net::listen(&listener.fd, BACKLOG).map_err(ListenError::os("listen"))?;
        Ok(listener)
    }

    /// One whose socket is somebody else's, checked by the caller.
    pub(super) fn handed(fd: OwnedFd) -> Result<Listener, ListenError> {
        rustix::io::ioctl_fionbio(&fd, true).map_err(ListenError::os("ioctl(FIONBIO)"))?;
        Ok(Listener { fd, stop: stop()?, file: None })
    }

    /// Waits for a client. `None`: accepting has been [stopped](Self::stop).
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`: the client goes on waiting; the caller should as well before it tries
    /// again, because the next call will not.
    pub fn accept(&self) -> io::Result<Option<Socket>> {
        loop {
            let mut both =
                [PollFd::new(&self.fd, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            retry_on_intr(|| rustix::event::poll(&mut both, None))?;
            if !both[1].revents().is_empty() {
                return Ok(None);
            }
            match rustix::net::accept_with(&self.fd, SocketFlags::CLOEXEC) {
                Ok(fd) => return Ok(Some(Socket::plain(fd))),
                // Another process that has the socket was quicker.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Ends accepting, in all threads, now and later. Clients can connect, and wait, until the listener is dropped.
    pub fn stop(&self) {
        // It cannot overflow before 2^64 stops.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some(file) = &self.file else { return };
        let seen = rustix::fs::lstat(&file.path).map(|stat| (stat.st_dev, stat.st_ino));
        if seen == Ok(file.id) {
            // If it cannot be removed, the next server finds that nobody listens there.
            let _ = rustix::fs::unlink(&file.path);
        }
    }
}

fn stop() -> Result<OwnedFd, ListenError> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    rustix::event::eventfd(0, flags).map_err(ListenError::os("eventfd"))
}

/// Keeps out others that look whether a path in the directory is free.
struct DirectoryLock(OwnedFd);

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Closing is not enough while a child that was forked meanwhile has the descriptor too.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

fn lock_directory(path: &Path) -> Result<DirectoryLock, ListenError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = || rustix::fs::open(parent.unwrap_or(Path::new(".")), flags, Mode::empty());
    let dir = retry_on_intr(open).map_err(ListenError::os("opening the socket's directory"))?;
    match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(DirectoryLock(dir)),
        Err(Errno::WOULDBLOCK) => Err(ListenError::InUse(path.into())),
        Err(error) => Err(ListenError::os("locking the socket's directory")(error)),
    }
}

/// Removes a socket that nobody listens to.
fn clear(path: &Path, address: &SocketAddrUnix) -> Result<(), ListenError> {
    match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(ListenError::os("stat")(error)),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => {}
        Ok(_) => return Err(ListenError::NotASocket(path.into())),
    }
    // Without blocking, because a server may be too busy to accept.
    let probe = super::new(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        .map_err(|source| ListenError::Os { what: "socket", source })?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => {
            rustix::fs::unlink(path).map_err(ListenError::os("removing a dead socket"))
        }
        // Of another type, which somebody listens to as well.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(ListenError::InUse(path.into())),
        Err(error) => Err(ListenError::os("connecting to the socket that is there")(error)),
    }
}
