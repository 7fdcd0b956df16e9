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
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim);
    let Some(mount) = mount else {
        let what = "/proc/self/fdinfo names no mount";
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    };
    // Paths in it are bytes.
    let mounts = fs::read("/proc/self/mountinfo")?;
    Ok(served(mount, &String::from_utf8_lossy(&mounts)))
}

/// Finds a mount in the text of `mountinfo`.
fn served(mount: &str, mounts: &str) -> Served {
    let mut fields = mounts.lines().map(|line| line.split(' '));
    let Some(line) = fields.find_map(|mut fields| (fields.next() == Some(mount)).then_some(fields))
    else {
        return Served::Unknown;
    };
    // Behind a number of optional fields, and a dash that ends them.
    match line.skip_while(|field| *field != "-").nth(1) {
        Some(kind) if BY_KERNEL.contains(&kind) => Served::ByKernel,
        kind => Served::ByOthers(kind.unwrap_or("unknown").into()),
    }
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
