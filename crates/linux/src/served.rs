//! Whether a descriptor of somebody else's leads to a file system on which calls may wait for others.
//!
//! A file of FUSE, or of the network, answers when its server does, if ever: even to `fstat`, `fstatfs`, and
//! `close`. So who takes descriptors from strangers has to know before the first call. What is asked here is
//! answered by the kernel alone: `/proc/self/fdinfo` tells the descriptor's mount, `/proc/self/mountinfo` the
//! mount's file system.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Where a descriptor leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Served {
    /// To a file system that this kernel serves, from memory or from disks. (Also an overlay, whatever it is
    /// made of: who makes one of served layers for everybody is root.)
    ByKernel,
    /// To one that is, or may be, served by others. Its type, for people.
    ByOthers(String),
    /// To none that is mounted for this process: a memory file, a pipe, a socket, a file of another mount namespace (a
    /// container's), or one that was unmounted since.
    Unknown,
}

/// The types that answer by themselves. What is not known to do so may wait for others.
const BY_KERNEL: [&str; 28] = [
    "bcachefs",
    "btrfs",
    "devtmpfs",
    "erofs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "hfsplus",
    "hugetlbfs",
    "iso9660",
    "jfs",
    "minix",
    "msdos",
    "nilfs2",
    "ntfs3",
    "overlay",
    "ramfs",
    "reiserfs",
    "rootfs",
    "squashfs",
    "tmpfs",
    "ubifs",
    "udf",
    "vfat",
    "xfs",
    "zfs",
];

/// Tells where a descriptor leads, without a call that its file system could hear of.
///
/// # Errors
/// `/proc` is not mounted, or not the kernel's.
pub fn file_system_served(fd: BorrowedFd<'_>) -> io::Result<Served> {
    let mount = mount_of(fd)?;
    // Paths in it are bytes.
    let mounts = fs::read("/proc/self/mountinfo")?;
    Ok(served(&mount, &String::from_utf8_lossy(&mounts)))
}

/// Tells where a descriptor leads that a process has sent, which may be in another mount namespace: what is not mounted
/// here is looked for there. Mounts have numbers that are unique on the system, and a mount stays while a file on it
/// is open; so it does not matter who the process is by now, or what it would like to be believed.
///
/// # Errors
/// As [`file_system_served`].
pub fn file_system_served_to(fd: BorrowedFd<'_>, pid: u32) -> io::Result<Served> {
    match file_system_served(fd)? {
        Served::Unknown => {}
        known => return Ok(known),
    }
    // Of memory; the file system is not asked.
    if rustix::fs::fcntl_get_seals(fd).is_ok() {
        return Ok(Served::ByKernel);
    }
    // The process may be gone, and hidden.
    let mounts = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let mount = mount_of(fd)?;
    Ok(match served(&mount, &String::from_utf8_lossy(&mounts)) {
        // Anybody may mount one in a namespace of their own, and of layers that they serve themselves.
        Served::ByKernel if kind(&mount, &String::from_utf8_lossy(&mounts)) == Some("overlay") => {
            Served::ByOthers("an overlay of another mount namespace".into())
        }
        found => found,
    })
}

/// The number of a descriptor's mount.
fn mount_of(fd: BorrowedFd<'_>) -> io::Result<String> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim);
    mount.map(String::from).ok_or_else(|| {
        let what = "/proc/self/fdinfo names no mount";
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}

/// Finds a mount in the text of `mountinfo`.
fn served(mount: &str, mounts: &str) -> Served {
    match kind(mount, mounts) {
        None => Served::Unknown,
        Some(kind) if BY_KERNEL.contains(&kind) => Served::ByKernel,
        Some(kind) => Served::ByOthers(kind.into()),
    }
}

/// The type of a mount's file system.
fn kind<'a>(mount: &str, mounts: &'a str) -> Option<&'a str> {
    let mut fields = mounts.lines().map(|line| line.split(' '));
    let line = fields.find_map(|mut fields| (fields.next() == Some(mount)).then_some(fields))?;
    // Behind a number of optional fields, and a dash that ends them.
    Some(line.skip_while(|field| *field != "-").nth(1).unwrap_or("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
23 22 0:21 / /mnt\\040-\\040x rw master:1 propagate_from:2 - fuse.sshfs me@there:/ rw,user_id=0
24 22 0:22 / /n rw - nfs4 server:/ rw
25 22 0:23 / /o rw shared:7 - overlay overlay rw,lowerdir=/n
26 22 0:24 / /q rw - newfs none rw
2 22 0:25 / /broken rw";

    #[test]
    fn a_mount_is_found_by_its_whole_number() {
        let by = |kind: &str| Served::ByOthers(kind.into());
        assert_eq!(served("22", MOUNTS), Served::ByKernel);
        assert_eq!(served("23", MOUNTS), by("fuse.sshfs"));
        assert_eq!(served("24", MOUNTS), by("nfs4"));
        assert_eq!(served("25", MOUNTS), Served::ByKernel);
        assert_eq!(served("26", MOUNTS), by("newfs"));
        assert_eq!(served("2", MOUNTS), by("unknown"));
        assert_eq!(served("1", MOUNTS), Served::Unknown);
    }
}
