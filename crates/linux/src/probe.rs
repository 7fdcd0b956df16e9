//! What this kernel and machine allow, found by trying.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use crate::{FileMap, HostFile, PAGE, StoreTracker, Uffd, UffdMode, max_map_count};

/// One finding.
#[derive(Clone, Debug)]
pub struct Capability {
    /// What was tried.
    pub name: &'static str,
    /// It works.
    pub ok: bool,
    /// How it went.
    pub detail: String,
    /// What follows for pageferry.
    pub consequence: String,
}

fn finding(name: &'static str, result: io::Result<String>, yes: &str, no: &str) -> Capability {
    let (ok, detail) = match result {
        Ok(detail) => (true, detail),
        Err(error) => (false, error.to_string()),
    };
    Capability { name, ok, detail, consequence: if ok { yes } else { no }.to_owned() }
}

/// Tries everything. Takes some milliseconds; leaves nothing behind.
#[must_use]
pub fn probe() -> Vec<Capability> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let uffd = Uffd::open();
    let mode = match &uffd {
        Ok(u) if u.mode() == UffdMode::KernelAndUser => {
            Ok("accesses in user and kernel mode".into())
        }
        Ok(_) => Ok("accesses in user mode only".to_owned()),
        Err(e) => Err(io::Error::other(e.to_string())),
    };
    let kernel_faults = match &uffd {
        Ok(u) if u.mode() == UffdMode::KernelAndUser => Ok("yes".into()),
        Ok(_) => Err(io::Error::other(
            "needs /dev/userfaultfd, CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd=1",
        )),
        Err(_) => Err(io::Error::other("no userfaultfd")),
    };
    let threads = match &uffd {
        Ok(u) if u.names_threads() => Ok("yes".into()),
        _ => Err(io::Error::other("the kernel does not say which thread waits")),
    };
    vec![
        finding("kernel", Ok(release.trim().to_owned()), "", ""),
        finding(
            "userfaultfd",
            mode,
            "mappings wait for away pages",
            "files cannot be mapped through the cache; everything else works",
        ),
        finding(
            "system calls wait too",
            kernel_faults,
            "write(fd, mapped, ..) of an away page waits",
            "a system call given away memory fails with EFAULT; copies through Map do not",
        ),
        finding(
            "faults name their thread",
            threads,
            "a thread that waits for itself gets SIGBUS",
            "a thread that touches what it has pinned itself waits until it is released",
        ),
        finding(
            "own stores are tracked",
            tracking(),
            "after CPU stores only the pages stored to move again",
            "after CPU stores through a mapping all its copies move again",
        ),
        finding(
            "fine-grained ctime",
            fine_ctime(),
            "a write right after another shows",
            "a change inside one clock tick can hide from a stamp",
        ),
        finding(
            "vm.max_map_count",
            Ok(max_map_count().to_string()),
            "limits scattered away ranges under a mapping",
            "",
        ),
        finding(
            "fanotify, unprivileged",
            fanotify(0x200),
            "others' opens and writes can be noticed (used from the next version on)",
            "others' changes show by size and times only",
        ),
        finding(
            "fanotify, pre-content",
            fanotify(0x8),
            "others' accesses could be made to wait (not used yet)",
            "needs CAP_SYS_ADMIN and Linux 6.14",
        ),
        finding(
            "file leases",
            lease(),
            "exclusive use can be proven (not used yet)",
            "exclusive use cannot be proven",
        ),
        finding(
            "transparent huge pages",
            huge(),
            "the software device's memory is cheap to reach",
            "the software device works, a little slower",
        ),
        finding("memory available", memory(), "", "unknown"),
    ]
}

fn scratch(pages: usize) -> io::Result<Arc<HostFile>> {
    let path = std::env::temp_dir().join(format!("pageferry-probe-{}", std::process::id()));
    let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    file.set_len((pages * PAGE) as u64)?;
    use std::os::fd::AsFd;
    HostFile::from_fd(file.as_fd()).map(Arc::new).map_err(io::Error::other)
}

fn tracking() -> io::Result<String> {
    let map = FileMap::new(scratch(4)?, 0, 4 * PAGE, true).map_err(io::Error::other)?;
    let tracker = StoreTracker::open()?;
    let scan = |map: &FileMap| map.scan(&tracker, 0..4 * PAGE).map_err(io::Error::other);
    map.track(&tracker, 0..4 * PAGE).map_err(io::Error::other)?;
    scan(&map)?;
    map.store_u8(2 * PAGE, 1).map_err(io::Error::other)?;
    match scan(&map)?.as_slice() {
        [one] if *one == (2 * PAGE..3 * PAGE) => Ok("write-protect-async and PAGEMAP_SCAN".into()),
        other => Err(io::Error::other(format!("one store was reported as {other:?}"))),
    }
}

fn fine_ctime() -> io::Result<String> {
    let file = scratch(1)?;
    let mut hidden = 0;
    for _ in 0..50 {
        let before = file.observe()?;
        file.write_at(b"x", 0)?;
        hidden += u32::from(file.observe()?.ctime == before.ctime);
    }
    if hidden == 0 {
        Ok("50 of 50 writes showed".into())
    } else {
        Err(io::Error::other(format!("{hidden} of 50 writes did not show")))
    }
}

/// `fanotify_init` with a class or report flag.
fn fanotify(flags: libc::c_uint) -> io::Result<String> {
    // SAFETY: the call takes flags by value and returns a new descriptor or an error.
    let fd = unsafe { libc::fanotify_init(flags | libc::FAN_CLOEXEC, libc::O_CLOEXEC as u32) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor just created, owned by nobody else.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok("yes".into())
}

fn lease() -> io::Result<String> {
    use std::os::fd::AsFd;
    let file = scratch(1)?;
    let set = |kind: libc::c_int| {
        // SAFETY: a lease command on a descriptor of ours, arguments by value.
        let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_SETLEASE, kind) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    set(libc::F_WRLCK)?;
    set(libc::F_UNLCK)?;
    Ok("yes, on own files".into())
}

fn huge() -> io::Result<String> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")?;
    let chosen = text.split_whitespace().find(|w| w.starts_with('['));
    match chosen {
        Some("[never]") | None => Err(io::Error::other("never")),
        Some(word) => Ok(word.trim_matches(['[', ']']).to_owned()),
    }
}

fn memory() -> io::Result<String> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    line.map(|l| l.trim().to_owned()).ok_or_else(|| io::Error::other("not said"))
}
