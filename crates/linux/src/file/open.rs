//! Why a file could not be opened.

use std::fmt;
use std::io;

use rustix::fs::FileType;

/// What a file is that is not a regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A symbolic link (an `O_PATH` descriptor of one).
    Symlink,
    /// A FIFO, or an anonymous pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device: a terminal, `/dev/null`, a GPU.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A file whose contents the kernel makes up when they are read: of `/proc`, `/sys` and the like. It has no
    /// pages, and a size of 0 or of anything.
    MadeUp,
    /// None of these: an epoll instance, an eventfd, a userfaultfd.
    Other,
}

impl FileKind {
    pub(super) fn of(kind: FileType) -> FileKind {
        match kind {
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Symlink,
            FileType::Fifo => FileKind::Fifo,
            FileType::Socket => FileKind::Socket,
            FileType::CharacterDevice => FileKind::CharacterDevice,
            FileType::BlockDevice => FileKind::BlockDevice,
            FileType::RegularFile | FileType::Unknown => FileKind::Other,
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileKind::Directory => "a directory",
            FileKind::Symlink => "a symbolic link",
            FileKind::Fifo => "a FIFO",
            FileKind::Socket => "a socket",
            FileKind::CharacterDevice => "a character device",
            FileKind::BlockDevice => "a block device",
            FileKind::MadeUp => {
                "made up by its file system when it is read (copy it to a file first)"
            }
            FileKind::Other => "something without contents of its own",
        })
    }
}

/// Why a [`HostFile`](crate::HostFile) could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Only regular files have pages to cache.
    #[error("not a regular file but {kind}")]
    NotRegular {
        /// What it is.
        kind: FileKind,
    },
    /// The descriptor is open for writing only; a page cache has to read.
    #[error("the descriptor is open for writing only; a cache must be able to read")]
    WriteOnly,
    /// The descriptor names a file without having opened it (`O_PATH`).
    #[error("the descriptor was opened with O_PATH and gives no access to the file's bytes")]
    PathOnly,
    /// The file could not be opened anew, and the description handed over cannot read or write at
    /// given places because of one of its flags.
    #[error("the file cannot be opened anew, and the descriptor at hand is of no use with {flag}")]
    Unusable {
        /// The flag in the way.
        flag: &'static str,
    },
    /// The system refused.
    #[error("{call}: {source}")]
    Os {
        /// The system call that failed.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl OpenError {
    pub(super) fn os(call: &'static str, source: impl Into<io::Error>) -> OpenError {
        OpenError::Os { call, source: source.into() }
    }

    /// The kernel's error number, if the kernel was what refused.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            OpenError::Os { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
