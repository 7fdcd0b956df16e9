//! Which file, and in what state.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, StatxFlags, StatxTimestamp, statx};
use rustix::io::retry_on_intr;

/// Which file: equal for two descriptors exactly if they lead to the same inode.
///
/// An inode number is given to a new file once the old one is gone, so an id means something only
/// while the file is held open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// Major number of the device that holds the file.
    pub dev_major: u32,
    /// Minor number of the device that holds the file.
    pub dev_minor: u32,
    /// Inode number.
    pub ino: u64,
}

/// What a file looked like at one moment.
///
/// On kernels with multigrain timestamps (6.13) every completed change after the stamp was taken
/// gives another stamp; a *store* through a mapping need not (`ctime` moves only when a clean page
/// becomes dirty).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileStamp {
    /// Bytes.
    pub size: u64,
    /// Last change of the contents: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Last change of contents or attributes; nobody can set it at will.
    pub ctime: (i64, u32),
    /// Storage in use, in units of 512 bytes.
    pub blocks: u64,
    /// How many names the file has; 0 once it is unlinked.
    pub nlink: u32,
}

impl FileStamp {
    /// Its times have fractions of seconds. Whole seconds are those of a file system that has no finer ones (ext4 with
    /// small inodes, ext2), where two changes within a second look alike; elsewhere they come once in a long while.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        self.mtime.1 != 0 && self.ctime.1 != 0
    }
}

/// Through which mount a descriptor was opened.
pub(super) fn mount(fd: BorrowedFd<'_>) -> rustix::io::Result<u64> {
    let x = retry_on_intr(|| statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID))?;
    if x.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(rustix::io::Errno::NOSYS);
    }
    Ok(x.stx_mnt_id)
}

/// One `statx`.
pub(super) fn look(fd: BorrowedFd<'_>) -> rustix::io::Result<(FileId, FileStamp)> {
    // On a network file system even this may be interrupted.
    let x = retry_on_intr(|| statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS))?;
    let time = |t: &StatxTimestamp| (t.tv_sec, t.tv_nsec);
    Ok((
        FileId { dev_major: x.stx_dev_major, dev_minor: x.stx_dev_minor, ino: x.stx_ino },
        FileStamp {
            size: x.stx_size,
            mtime: time(&x.stx_mtime),
            ctime: time(&x.stx_ctime),
            blocks: x.stx_blocks,
            nlink: x.stx_nlink,
        },
    ))
}
