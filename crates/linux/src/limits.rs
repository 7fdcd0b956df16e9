//! Limits of the system and of this process that the cache runs into.

use std::fs::{self, File};
use std::io::{self, Read};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, MemfdFlags, StatxFlags};

/// `vm.max_map_count`: how many mappings (VMAs) a process may have. Linux gives 65,530 unless told
/// otherwise.
///
/// # Errors
/// `/proc` is not mounted or is not what it should be.
pub fn max_map_count() -> io::Result<u64> {
    number_in("/proc/sys/vm/max_map_count")
}

/// How many mappings this process has now.
///
/// The kernel publishes the number nowhere, so this counts the lines of `/proc/self/maps`: about
/// 0.5 µs a mapping, which is for error messages and `doctor`, not for hot paths.
///
/// # Errors
/// `/proc` is not mounted.
pub fn vma_count() -> io::Result<u64> {
    let mut maps = File::open("/proc/self/maps")?;
    let mut chunk = vec![0_u8; 64 << 10];
    let mut lines = 0_u64;
    loop {
        match maps.read(&mut chunk) {
            Ok(0) => return Ok(lines),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
            Ok(n) => lines += chunk[..n].iter().filter(|&&b| b == b'\n').count() as u64,
        }
    }
}

/// The limit of mappings, if so few are left that a failed call is the limit's doing.
///
/// `mremap` to a fixed place refuses unless six are left, and other calls need up to two.
pub(crate) fn out_of_vmas() -> Option<u64> {
    const HEADROOM: u64 = 16;
    let limit = max_map_count().ok()?;
    (vma_count().ok()? + HEADROOM >= limit).then_some(limit)
}

/// The largest file size this process may write (`RLIMIT_FSIZE`), `u64::MAX` if there is no limit.
#[must_use]
pub fn max_file_bytes() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Fsize).current.unwrap_or(u64::MAX)
}

/// How many descriptors this process may have, and its user may have on their way to others.
#[must_use]
pub fn descriptor_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Lets this process open as many files as it may at all: the soft limit of `RLIMIT_NOFILE`, which stands at
/// 1,024 for the sake of `select`, becomes the hard one, which is given back.
///
/// # Errors
/// None that is known of.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)?;
    }
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// Every change right after a look gives a file another time: the kernel has multigrain timestamps
/// (6.13), which it was given for ext4, xfs, btrfs and tmpfs at once. Found by trying, once.
#[must_use]
pub fn times_are_fine() -> bool {
    static FINE: OnceLock<bool> = OnceLock::new();
    *FINE.get_or_init(|| {
        const TRIES: u64 = 64;
        let Ok(file) = rustix::fs::memfd_create("pageferry-times", MemfdFlags::CLOEXEC) else {
            return false;
        };
        let time = || {
            let seen =
                rustix::fs::statx(&file, c"", AtFlags::EMPTY_PATH, StatxFlags::CTIME).ok()?;
            Some((seen.stx_ctime.tv_sec, seen.stx_ctime.tv_nsec))
        };
        (0..TRIES).all(|n| {
            let before = time();
            rustix::fs::ftruncate(&file, n + 1).is_ok() && before.is_some() && before != time()
        })
    })
}

/// The one number that is the whole content of a file of `/proc` or `/sys`.
pub(crate) fn number_in(path: &str) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{path} holds {text:?}, not a number"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_mappings_and_there_is_room() {
        let limit = max_map_count().expect("limit");
        let count = vma_count().expect("count");
        assert!(count > 5 && count < limit, "{count} of {limit}");
        assert_eq!(out_of_vmas(), None);
        assert!(max_file_bytes() > 1 << 20);
    }
}
