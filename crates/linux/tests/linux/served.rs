//! Who answers for a descriptor's file, found without asking it.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};

use pageferry_linux::{Served, file_system_served};
use rustix::fs::{Mode, OFlags};

use crate::Watchdog;

#[test]
fn files_of_this_kernel_are_known_and_what_is_not_mounted_is_not() {
    let served = |fd: std::os::fd::BorrowedFd<'_>| file_system_served(fd).expect("/proc");
    let file = tempfile::tempfile_in("/dev/shm").expect("file");
    assert_eq!(served(file.as_fd()), Served::ByKernel);
    let place = rustix::fs::open("/dev/shm", OFlags::PATH, Mode::empty()).expect("open");
    assert_eq!(served(place.as_fd()), Served::ByKernel);
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let memory = rustix::fs::memfd_create("test", flags).expect("memfd");
    assert_eq!(served(memory.as_fd()), Served::Unknown);
    assert_eq!(served(std::io::pipe().expect("pipe").0.as_fd()), Served::Unknown);
}

/// A file system whose server never answers anything. It is gone when dropped.
struct Mute {
    dir: tempfile::TempDir,
    _server: std::fs::File,
}

impl Mute {
    fn mount() -> Result<Mute, String> {
        let server = std::fs::File::options().read(true).write(true).open("/dev/fuse");
        let server = server.map_err(|e| format!("no FUSE here: {e}"))?;
        let dir = tempfile::tempdir().expect("directory");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let (at, options) = (path(&dir), CString::new(options).expect("options"));
        let (kind, data) = (c"fuse".as_ptr(), options.as_ptr().cast());
        // SAFETY: all pointers are to strings that end, and live as long as the call.
        if unsafe { libc::mount(kind, at.as_ptr(), kind, 0, data) } != 0 {
            return Err(format!("mounting: {}", std::io::Error::last_os_error()));
        }
        Ok(Mute { dir, _server: server })
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        let at = path(&self.dir);
        // SAFETY: the path is a string that ends, and lives as long as the call.
        unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
    }
}

fn path(dir: &tempfile::TempDir) -> CString {
    CString::new(dir.path().to_str().expect("text")).expect("path")
}

#[test]
fn a_server_that_never_answers_is_found_out() {
    let _watchdog = Watchdog::watch("asking about a file of a server that never answers");
    let mute = match Mute::mount() {
        Ok(mute) => mute,
        Err(why) => return println!("skipped: {why}"),
    };
    let place = rustix::fs::open(mute.dir.path(), OFlags::PATH, Mode::empty()).expect("open");
    let served = || file_system_served(place.as_fd()).expect("/proc");
    assert_eq!(served(), Served::ByOthers("fuse".into()));
    drop(mute);
    assert_eq!(served(), Served::Unknown, "it is mounted no more");
}
