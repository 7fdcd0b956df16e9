//! Bytes handed to another process as a whole: a memory file that nobody can change any more.
//!
//! Seen on 6.18: only memory files have seals (`fcntl(F_GET_SEALS)` says `EINVAL` of others without asking their file
//! systems), so what has the right ones is in this kernel's memory, and neither `fstat` nor reading it can wait
//! for anybody. Other files of tmpfs have the seal that forbids seals, and no other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::{Errno, retry_on_intr};

/// Collects bytes, then [seals](Self::seal) them.
///
/// # Invariants
/// `fd` is a memory file of `bytes` bytes, known to nobody else.
#[derive(Debug)]
pub struct MemoryWriter {
    fd: OwnedFd,
    bytes: u64,
}

impl MemoryWriter {
    /// An empty one.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub fn new() -> io::Result<MemoryWriter> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Not executable, where the kernel knows that (6.3); there, saying nothing is worth a line of its log.
        let fd = match rustix::fs::memfd_create("pageferry", flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => rustix::fs::memfd_create("pageferry", flags)?,
            result => result?,
        };
        Ok(MemoryWriter { fd, bytes: 0 })
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// Out of memory (`ENOSPC`), or beyond `RLIMIT_FSIZE` (`EFBIG`).
    pub fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = retry_on_intr(|| rustix::io::pwrite(&self.fd, bytes, self.bytes))?;
            self.bytes += count as u64;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// There are none so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Ends it: from now on nobody can change it, not even its size.
    ///
    /// # Errors
    /// None that is known of.
    pub fn seal(self) -> io::Result<SealedMemory> {
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&self.fd, seals)?;
        Ok(SealedMemory { fd: self.fd, bytes: self.bytes })
    }
}

/// Bytes that nobody can change.
///
/// # Invariants
/// `fd` is a memory file of `bytes` bytes, sealed against changes of them and of its size.
#[derive(Debug)]
pub struct SealedMemory {
    fd: OwnedFd,
    bytes: u64,
}

/// A descriptor does not lead to what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotSealed {
    /// Not a memory file.
    #[error("not a memory file")]
    NotMemory,
    /// Its bytes can still be changed, or its size.
    #[error("a memory file that is not sealed against writing and changes of its size")]
    Open,
    /// It has another size.
    #[error("a memory file of {found} bytes; {expected} were announced")]
    Size {
        /// Its bytes.
        found: u64,
        /// Those it should have.
        expected: u64,
    },
    /// A system call failed.
    #[error("{0}")]
    Os(io::Error),
}

impl SealedMemory {
    /// Takes a descriptor that somebody has sent, if it leads to sealed memory of so many bytes. Never waits, whatever
    /// it leads to.
    ///
    /// # Errors
    /// It does not.
    pub fn check(fd: OwnedFd, bytes: u64) -> Result<SealedMemory, NotSealed> {
        let seals = match rustix::fs::fcntl_get_seals(&fd) {
            Ok(seals) => seals,
            // `EBADF`: opened with `O_PATH`.
            Err(Errno::INVAL | Errno::BADF) => return Err(NotSealed::NotMemory),
            Err(error) => return Err(NotSealed::Os(error.into())),
        };
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE) {
            return Err(NotSealed::Open);
        }
        let stat = rustix::fs::fstat(&fd).map_err(|e| NotSealed::Os(e.into()))?;
        let found = u64::try_from(stat.st_size).unwrap_or(0);
        match found == bytes {
            true => Ok(SealedMemory { fd, bytes }),
            false => Err(NotSealed::Size { found, expected: bytes }),
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// It has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Reads all of `buf` from a place.
    ///
    /// # Errors
    /// `UnexpectedEof` beyond the end; `EBADF` if who sent the descriptor has opened it for writing only.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset.saturating_add(done as u64);
            match retry_on_intr(|| rustix::io::pread(&self.fd, &mut buf[done..], at))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => done += count,
            }
        }
        Ok(())
    }
}

impl AsFd for SealedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
