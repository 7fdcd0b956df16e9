//! One open file description of a regular file, ours alone.
//!
//! Everything the cache may conclude about who else uses a file rests on *open file descriptions*:
//! one that is shared with another process hides its sharers from every probe. So a [`HostFile`]
//! opens its own, even when a caller hands over a descriptor: `/proc/self/fd/N` is opened anew,
//! which works for unlinked files and memfds as well. The descriptor closes on exec.
//!
//! A path is looked up with `O_PATH` first, which has no side effects on FIFOs, terminals and
//! devices and never waits; only a regular file is then opened. No `O_NONBLOCK` is used for that:
//! on a regular file it would do nothing but refuse a leased one (`EAGAIN`) instead of waiting for
//! the lease to break.

mod bytes;
mod evidence;
mod loops;
mod open;
mod shape;
mod stamp;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicU32;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

pub use bytes::WriteError;
pub use evidence::Place;
pub(crate) use evidence::tells_through_overlays;
pub use loops::newest_loop;
pub use open::{FileKind, OpenError};
pub use stamp::{FileId, FileStamp};

/// Our own open file description of a regular file.
///
/// # Invariants
/// - `fd` is a regular file, open for reading, and for writing as well if `writable`.
/// - Writes through `fd` go where they are told: it is neither `O_APPEND` nor `O_DIRECT`.
/// - If `private`, nobody outside this value has this description: it was opened here, closes on
///   exec, and is lent only as [`BorrowedFd`] and to mappings that forked children do not inherit.
#[derive(Debug)]
pub struct HostFile {
    fd: OwnedFd,
    id: FileId,
    writable: bool,
    private: bool,
    /// Who is told of openers that wait for a lease: a thread, 0 for nobody.
    pub(crate) lease_tid: AtomicU32,
}

impl HostFile {
    /// Opens the regular file at `path`, for writing too if `writable`.
    ///
    /// # Errors
    /// Anything but a regular file is [`OpenError::NotRegular`], found without opening it.
    pub fn open(path: impl AsRef<Path>, writable: bool) -> Result<HostFile, OpenError> {
        let path = path.as_ref();
        let look = || rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let place = retry_on_intr(look).map_err(|e| OpenError::os("open", e))?;
        require_regular(place.as_fd())?;
        let fd = match reopen(place.as_fd(), writable) {
            // Without /proc the name is all there is; what it leads to now is looked at again.
            Err(Errno::NOENT) => {
                let flags = access(writable) | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
                retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))
            }
            result => result,
        }
        .map_err(|e| OpenError::os("open", e))?;
        HostFile::own(fd, writable, true)
    }

    /// Opens the file behind `fd` anew, in the same access mode.
    ///
    /// Where that cannot be, by nature, the descriptor is duplicated instead and
    /// [`is_private`](HostFile::is_private) says `false`: nothing can then be concluded from probes
    /// of this file about who else uses it. It cannot be where the file may no longer be opened so
    /// (`EACCES`, `EPERM`: its mode or its attributes have changed, or a policy forbids it; `EROFS`:
    /// it is now on a file system for reading) and where there is no `/proc` (`ENOENT`, `ENOTDIR`).
    ///
    /// # Errors
    /// Whatever else opening says (too many open files, ...). Not a regular file; open for writing only ([`OpenError::WriteOnly`]: the cache must read);
    /// an `O_PATH` descriptor; or a description that cannot be reopened and whose flags (`O_APPEND`
    /// on a writable one, `O_DIRECT`) make it useless for reads and writes at given places.
    pub fn from_fd(fd: BorrowedFd<'_>) -> Result<HostFile, OpenError> {
        let flags = rustix::fs::fcntl_getfl(fd).map_err(|e| OpenError::os("fcntl(F_GETFL)", e))?;
        if flags.contains(OFlags::PATH) {
            return Err(OpenError::PathOnly);
        }
        require_regular(fd)?;
        let mode = flags & OFlags::RWMODE;
        if mode == OFlags::WRONLY {
            return Err(OpenError::WriteOnly);
        }
        let writable = mode == OFlags::RDWR;
        match reopen(fd, writable) {
            Ok(own) => return HostFile::own(own, writable, true),
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::NOENT | Errno::NOTDIR) => {}
            Err(e) => return Err(OpenError::os("open", e)),
        }
        if writable && flags.contains(OFlags::APPEND) {
            return Err(OpenError::Unusable { flag: "O_APPEND" });
        }
        if flags.contains(OFlags::DIRECT) {
            return Err(OpenError::Unusable { flag: "O_DIRECT" });
        }
        let shared = rustix::io::fcntl_dupfd_cloexec(fd, 0)
            .map_err(|e| OpenError::os("fcntl(F_DUPFD_CLOEXEC)", e))?;
        HostFile::own(shared, writable, false)
    }

    /// Takes a description that somebody else has opened and goes on using, as it is.
    ///
    /// # Errors
    /// As [`from_fd`](Self::from_fd), for a descriptor that cannot be reopened.
    pub fn shared(fd: OwnedFd) -> Result<HostFile, OpenError> {
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(|e| OpenError::os("fcntl(F_GETFL)", e))?;
        match flags & OFlags::RWMODE {
            _ if flags.contains(OFlags::PATH) => Err(OpenError::PathOnly),
            OFlags::WRONLY => Err(OpenError::WriteOnly),
            mode => HostFile::own(fd, mode == OFlags::RDWR, false),
        }
    }

    /// Opens it once more: a new description, also private, in the same access mode.
    ///
    /// # Errors
    /// Whatever opening says.
    pub fn again(&self) -> Result<HostFile, OpenError> {
        let fd = reopen(self.as_fd(), self.writable).map_err(|e| OpenError::os("open", e))?;
        HostFile::own(fd, self.writable, true)
    }

    fn own(fd: OwnedFd, writable: bool, private: bool) -> Result<HostFile, OpenError> {
        require_regular(fd.as_fd())?;
        let (id, _) = stamp::look(fd.as_fd()).map_err(|e| OpenError::os("statx", e))?;
        Ok(HostFile { fd, id, writable, private, lease_tid: AtomicU32::new(0) })
    }

    /// Which file this is.
    #[must_use]
    pub fn identity(&self) -> FileId {
        self.id
    }

    /// What the file looks like now, in one system call.
    ///
    /// # Errors
    /// Whatever `statx` says, for example on a network file system that has gone away.
    pub fn observe(&self) -> io::Result<FileStamp> {
        Ok(stamp::look(self.fd.as_fd())?.1)
    }

    /// Whether the file was opened for writing.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Whether the open file description is ours alone.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.private
    }
}

impl AsFd for HostFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Which file a descriptor leads to.
pub(crate) fn identity(fd: BorrowedFd<'_>) -> io::Result<FileId> {
    Ok(stamp::look(fd)?.0)
}

/// Two descriptors were opened through one mount; `false` also if the system does not say.
pub(crate) fn share_mount(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    matches!((stamp::mount(one), stamp::mount(other)), (Ok(one), Ok(other)) if one == other)
}

fn access(writable: bool) -> OFlags {
    if writable { OFlags::RDWR } else { OFlags::RDONLY }
}

/// A new description of the file behind `fd`.
fn reopen(fd: BorrowedFd<'_>, writable: bool) -> rustix::io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = access(writable) | OFlags::CLOEXEC | OFlags::NOCTTY;
    // A signal interrupts an open that waits for somebody's lease to break.
    retry_on_intr(|| rustix::fs::open(&*path, flags, Mode::empty()))
}

fn require_regular(fd: BorrowedFd<'_>) -> Result<(), OpenError> {
    let stat = retry_on_intr(|| rustix::fs::fstat(fd)).map_err(|e| OpenError::os("fstat", e))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if made_up(fd)? => {
            Err(OpenError::NotRegular { kind: FileKind::MadeUp })
        }
        FileType::RegularFile => Ok(()),
        other => Err(OpenError::NotRegular { kind: FileKind::of(other) }),
    }
}

/// File systems of the kernel's own, by their numbers (`linux/magic.h`). Their files call themselves regular, but
/// their sizes tell nothing, and two reads of one may differ without a change.
const MADE_UP: [u64; 17] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0x6265_6570, // configfs
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0x4249_4e4d, // binfmt_misc
    0x6e73_6673, // nsfs
    0x0765_5821, // resctrl
    0x6573_5543, // fusectl
];

/// The file's contents are the kernel's to make up. FUSE and network file systems answer `statfs` from afar, as they
/// did `fstat`.
fn made_up(fd: BorrowedFd<'_>) -> Result<bool, OpenError> {
    let kind = file_system(fd).map_err(|e| OpenError::os("fstatfs", e))?;
    Ok(MADE_UP.contains(&kind))
}

/// The number of a file's file system. The kernel's has 32 bits; where the field has more, its sign may be extended.
fn file_system(fd: BorrowedFd<'_>) -> rustix::io::Result<u64> {
    Ok(retry_on_intr(|| rustix::fs::fstatfs(fd))?.f_type as u64 & 0xffff_ffff)
}
