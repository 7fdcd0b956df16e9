//! An ordinary file, through an open file description of our own.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, FallocateFlags, FileType, Mode, OFlags, StatxFlags};

/// Which file, on this machine and until it is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// The device of its file system.
    pub dev: u64,
    /// Its inode.
    pub ino: u64,
}

/// What one `statx` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FileStamp {
    /// Size in bytes.
    pub bytes: u64,
    /// Allocated storage, in units of 512 bytes.
    pub blocks512: u64,
    /// Last change of the content: seconds, nanoseconds.
    pub mtime: (i64, u32),
    /// Last change of the inode: seconds, nanoseconds.
    pub ctime: (i64, u32),
    /// Names that the file has.
    pub nlink: u32,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not a regular file.
    #[error("a {what} is not a regular file")]
    NotRegular {
        /// "directory", "fifo", ...
        what: &'static str,
    },
    /// The descriptor does not allow reading.
    #[error("the descriptor is open for writing only")]
    WriteOnly,
    /// The system's error.
    #[error(transparent)]
    Os(#[from] io::Error),
}

impl From<rustix::io::Errno> for OpenError {
    fn from(error: rustix::io::Errno) -> Self {
        OpenError::Os(error.into())
    }
}

/// A regular file, open through a description that nobody else has.
///
/// # Invariants
/// - The description allows reading, and writing if `writable`.
/// - It refers to a regular file.
#[derive(Debug)]
pub struct HostFile {
    file: File,
    writable: bool,
    id: FileId,
}

impl HostFile {
    /// Opens a path. Never creates, truncates or hangs (a FIFO is refused, not waited for).
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: impl AsRef<Path>, writable: bool) -> Result<HostFile, OpenError> {
        let access = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        match fs::open(path.as_ref(), flags, Mode::empty()) {
            Ok(fd) => Self::checked(fd, writable),
            // A directory opened for writing, a socket, a FIFO: say what it is, not how it failed.
            Err(error) => {
                let stat = fs::stat(path.as_ref());
                match stat.map(|s| kind(FileType::from_raw_mode(s.st_mode))) {
                    Ok(Some(what)) => Err(OpenError::NotRegular { what }),
                    _ => Err(error.into()),
                }
            }
        }
    }

    /// Opens the file behind a descriptor anew, with the descriptor's access mode, so that neither
    /// file position nor status flags nor locks are shared with its owner.
    ///
    /// # Errors
    /// [`OpenError`]. Where the file cannot be opened again (its permissions changed), the
    /// description is shared instead; nothing here depends on it yet.
    pub fn from_fd(fd: BorrowedFd<'_>) -> Result<HostFile, OpenError> {
        let stat = fs::fstat(fd)?;
        if let Some(what) = kind(FileType::from_raw_mode(stat.st_mode)) {
            return Err(OpenError::NotRegular { what });
        }
        let flags = fs::fcntl_getfl(fd)?;
        if flags.contains(OFlags::PATH) {
            return Err(io::Error::from_raw_os_error(libc::EBADF).into());
        }
        let writable = match flags & OFlags::RWMODE {
            OFlags::WRONLY => return Err(OpenError::WriteOnly),
            access => access == OFlags::RDWR,
        };
        let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
        match Self::open(&name, writable) {
            Ok(file) => Ok(file),
            Err(_) => Self::checked(fd.try_clone_to_owned()?, writable),
        }
    }

    fn checked(fd: OwnedFd, writable: bool) -> Result<HostFile, OpenError> {
        let stat = fs::fstat(&fd)?;
        if let Some(what) = kind(FileType::from_raw_mode(stat.st_mode)) {
            return Err(OpenError::NotRegular { what });
        }
        let id = FileId { dev: stat.st_dev, ino: stat.st_ino };
        Ok(HostFile { file: File::from(fd), writable, id })
    }

    /// Which file it is.
    #[must_use]
    pub fn id(&self) -> FileId {
        self.id
    }

    /// Writing is possible.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Size and times now.
    ///
    /// # Errors
    /// The system's.
    pub fn observe(&self) -> io::Result<FileStamp> {
        let mask = StatxFlags::SIZE
            | StatxFlags::BLOCKS
            | StatxFlags::MTIME
            | StatxFlags::CTIME
            | StatxFlags::NLINK;
        let stat = fs::statx(&self.file, "", AtFlags::EMPTY_PATH, mask)?;
        Ok(FileStamp {
            bytes: stat.stx_size,
            blocks512: stat.stx_blocks,
            mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            ctime: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
            nlink: stat.stx_nlink,
        })
    }

    /// Reads until `buf` is full or the file ends; returns the bytes read.
    ///
    /// # Errors
    /// The system's, after whatever had been read.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        check_end(offset, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// The system's; a part may have been written.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        check_end(offset, bytes.len() as u64)?;
        self.file.write_all_at(bytes, offset)
    }

    /// `ftruncate`.
    ///
    /// # Errors
    /// The system's.
    pub fn set_len(&self, bytes: u64) -> io::Result<()> {
        check_end(bytes, 0)?;
        self.file.set_len(bytes)
    }

    /// Deallocates a range; the size stays.
    ///
    /// # Errors
    /// The system's.
    pub fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        self.fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, range)
    }

    /// Zeroes a range.
    ///
    /// # Errors
    /// The system's.
    pub fn zero_range(&self, range: Range<u64>, keep_size: bool) -> io::Result<()> {
        self.fallocate(FallocateFlags::ZERO_RANGE | keep(keep_size), range)
    }

    /// Allocates storage for a range.
    ///
    /// # Errors
    /// The system's.
    pub fn allocate(&self, range: Range<u64>, keep_size: bool) -> io::Result<()> {
        self.fallocate(keep(keep_size), range)
    }

    /// Removes a range; what follows moves forward.
    ///
    /// # Errors
    /// The system's.
    pub fn collapse_range(&self, range: Range<u64>) -> io::Result<()> {
        self.fallocate(FallocateFlags::COLLAPSE_RANGE, range)
    }

    /// Inserts a hole; what follows moves back.
    ///
    /// # Errors
    /// The system's.
    pub fn insert_range(&self, range: Range<u64>) -> io::Result<()> {
        self.fallocate(FallocateFlags::INSERT_RANGE, range)
    }

    fn fallocate(&self, flags: FallocateFlags, range: Range<u64>) -> io::Result<()> {
        let len = range.end.checked_sub(range.start).ok_or(io::ErrorKind::InvalidInput)?;
        check_end(range.start, len)?;
        Ok(fs::fallocate(&self.file, flags, range.start, len)?)
    }

    /// `fsync`, or `fdatasync`.
    ///
    /// # Errors
    /// The system's: an error of write-back is reported once.
    pub fn sync(&self, data_only: bool) -> io::Result<()> {
        if data_only { self.file.sync_data() } else { self.file.sync_all() }
    }
}

impl AsFd for HostFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn keep(size: bool) -> FallocateFlags {
    if size { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() }
}

/// File offsets are signed in the kernel.
fn check_end(offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len).map(i64::try_from) {
        Some(Ok(_)) => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EFBIG)),
    }
}

/// What it is, if it is not a regular file.
fn kind(file_type: FileType) -> Option<&'static str> {
    Some(match file_type {
        FileType::RegularFile => return None,
        FileType::Directory => "directory",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::Symlink => "symbolic link",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "special file",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(result: Result<HostFile, OpenError>) -> String {
        result.expect_err("it was accepted").to_string()
    }

    #[test]
    fn only_regular_files_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        assert!(refused(HostFile::open(dir.path(), true)).contains("directory"));
        assert!(refused(HostFile::open(dir.path(), false)).contains("directory"));
        let fifo = dir.path().join("fifo");
        fs::mknodat(fs::CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(refused(HostFile::open(&fifo, false)).contains("fifo"));
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(refused(HostFile::open(&socket, true)).contains("socket"));
        assert!(refused(HostFile::open("/dev/null", true)).contains("character device"));
        assert!(refused(HostFile::open(dir.path().join("none"), true)).contains("No such file"));
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(refused(HostFile::from_fd(reader.as_fd())).contains("fifo"));
    }

    #[test]
    fn descriptors_are_opened_anew_with_their_access_mode() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let path = fs::open(temp.path(), OFlags::PATH, Mode::empty()).unwrap();
        assert!(HostFile::from_fd(path.as_fd()).is_err());
        let write_only = fs::open(temp.path(), OFlags::WRONLY, Mode::empty()).unwrap();
        assert!(matches!(HostFile::from_fd(write_only.as_fd()), Err(OpenError::WriteOnly)));
        let read_only = File::open(temp.path()).unwrap();
        let ours = HostFile::from_fd(read_only.as_fd()).unwrap();
        assert!(!ours.is_writable() && ours.write_at(b"x", 0).is_err());
        let both = HostFile::from_fd(temp.as_file().as_fd()).unwrap();
        // An unlinked file goes on to work, also through a descriptor.
        std::fs::remove_file(temp.path()).unwrap();
        let unlinked = HostFile::from_fd(both.as_fd()).unwrap();
        unlinked.write_at(b"hello", 3).unwrap();
        let mut buf = [9; 16];
        assert_eq!(both.read_at(&mut buf, 0).unwrap(), 8);
        assert_eq!(&buf[..9], b"\0\0\0hello\x09");
        assert_eq!((both.id(), both.observe().unwrap().nlink), (unlinked.id(), 0));
    }

    #[test]
    fn offsets_beyond_the_kernels_are_errors() {
        let file = HostFile::from_fd(tempfile::tempfile().unwrap().as_fd()).unwrap();
        assert!(file.write_at(b"x", u64::MAX).is_err());
        assert!(file.read_at(&mut [0], i64::MAX as u64).is_err());
        assert!(file.set_len(1 << 63).is_err());
        assert!(file.punch_hole(5..3).is_err());
        assert_eq!(file.observe().unwrap().bytes, 0);
    }
}
