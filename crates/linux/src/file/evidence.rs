//! What can be known of others' changes to a file, by what kind of file it is.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, SealFlags, StatxAttributes, StatxFlags};

use super::{FileId, FileStamp, HostFile, OpenError, file_system, require_regular, stamp};
use crate::limits;

/// Numbers of file systems (`statfs`) whose leases and events were found to tell of every other
/// user, mappings included: ext2, ext3 and ext4; xfs; btrfs; tmpfs.
///
/// Not on the list: file systems over a network and FUSE, where others change files without this
/// kernel; overlayfs, where a mapping counts on another inode than the descriptor it was made through.
const TELLING: [(u64, &str); 4] =
    [(0xEF53, "ext4"), (0x5846_5342, "xfs"), (0x9123_683E, "btrfs"), (0x0102_1994, "tmpfs")];

/// Linux's `fsid` type of tmpfs, whose mapped stores move no times.
const TMPFS: u64 = 0x0102_1994;

impl HostFile {
    /// Nobody can change the file any more, whoever opens it: a memfd sealed against writing, shrinking
    /// and growing, or a file under fs-verity. Neither can be undone.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        let all = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
        if rustix::fs::fcntl_get_seals(&self.fd).is_ok_and(|seals| seals.contains(all)) {
            return true;
        }
        let seen = rustix::fs::statx(&self.fd, c"", AtFlags::EMPTY_PATH, StatxFlags::empty());
        seen.is_ok_and(|x| x.stx_attributes.contains(StatxAttributes::VERITY))
    }

    /// Leases and events of this file tell of every other user.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn tells_of_others(&self) -> Result<(), String> {
        if !self.private {
            return Err("its descriptor could not be opened anew and may be shared".into());
        }
        tells_through_overlays(rustix::system::uname().release())?;
        let kind = self.file_system().map_err(|e| format!("statfs: {e}"))?;
        match TELLING.iter().any(|(number, _)| *number == kind) {
            true => Ok(()),
            false => Err(format!(
                "its file system (type {kind:#x}) may be changed without this kernel's knowledge"
            )),
        }
    }

    /// The first store to a clean or write-protected page through a mapping moves the times.
    #[must_use]
    fn stores_move_times(&self) -> bool {
        let kind = self.file_system();
        kind.is_ok_and(|kind| kind != TMPFS && TELLING.iter().any(|(number, _)| *number == kind))
    }

    /// What it looks like now, if what is stored to clean or write-protected pages from here on shows in another look:
    /// the system's times are fine enough for that, and so are the file's.
    #[must_use]
    pub fn telling_look(&self) -> Option<FileStamp> {
        let tells = limits::times_are_fine() && self.stores_move_times();
        tells.then(|| self.observe().ok()).flatten().filter(FileStamp::is_fine)
    }

    fn file_system(&self) -> rustix::io::Result<u64> {
        file_system(self.fd.as_fd())
    }
}

/// Whoever opens a file through an overlay above it leaves an event since Linux 6.5 (its change "ovl:
/// enable fsnotify events on underlying real files"), and it cannot be known what overlays there are.
pub(crate) fn tells_through_overlays(release: &CStr) -> Result<(), String> {
    let release = release.to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 5) => Ok(()),
        _ => Err(format!(
            "this kernel ({release}) does not tell of changes through an overlay above the file; \
             Linux 6.5 does"
        )),
    }
}

/// A regular file found by name and not opened: that leaves no event and breaks no lease.
#[derive(Debug)]
pub struct Place {
    fd: OwnedFd,
    id: FileId,
}

impl Place {
    /// Finds it.
    ///
    /// # Errors
    /// As [`HostFile::open`], but that permissions on the file itself do not matter.
    pub fn find(path: &Path) -> Result<Place, OpenError> {
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| OpenError::os("open", e))?;
        require_regular(fd.as_fd())?;
        let (id, _) = stamp::look(fd.as_fd()).map_err(|e| OpenError::os("statx", e))?;
        Ok(Place { fd, id })
    }

    /// Which file it is.
    #[must_use]
    pub fn identity(&self) -> FileId {
        self.id
    }

    /// Opens it.
    ///
    /// # Errors
    /// As [`HostFile::open`].
    pub fn open(&self, writable: bool) -> Result<HostFile, OpenError> {
        let fd = super::reopen(self.fd.as_fd(), writable).map_err(|e| OpenError::os("open", e))?;
        HostFile::own(fd, writable, true)
    }

    /// This process may open it for reading, or for reading and writing.
    #[must_use]
    pub fn permits(&self, writable: bool) -> bool {
        use rustix::fs::Access;
        let access = if writable { Access::READ_OK | Access::WRITE_OK } else { Access::READ_OK };
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        rustix::fs::accessat(rustix::fs::CWD, path, access, AtFlags::EACCESS).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_do_not_tell_all() {
        for old in [c"6.4.16", c"5.15.0-91-generic", c"4.19", c"6", c"", c"next", c"6.x"] {
            assert!(tells_through_overlays(old).is_err(), "{old:?}");
        }
        for new in [c"6.5.0", c"6.18.44-fc", c"7.0", c"10.1.2-rc3"] {
            assert!(tells_through_overlays(new).is_ok(), "{new:?}");
        }
    }
}
