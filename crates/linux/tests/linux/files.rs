//! Opening, reading and writing.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use pageferry_linux::{FileKind, HostFile, OpenError, current_tid};
use rustix::fs::{CWD, FileType, Mode};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::threads::{Stance, stance};
use crate::{Watchdog, child, file_of};

fn kind(result: Result<HostFile, OpenError>) -> FileKind {
    match result {
        Err(OpenError::NotRegular { kind }) => kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_not_a_regular_file_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("dir");
    let at = |name: &str| dir.path().join(name);
    rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("fifo");
    let _listener = UnixListener::bind(at("socket")).expect("socket");
    for writable in [false, true] {
        assert_eq!(kind(HostFile::open(dir.path(), writable)), FileKind::Directory);
        assert_eq!(kind(HostFile::open(at("fifo"), writable)), FileKind::Fifo);
        assert_eq!(kind(HostFile::open(at("socket"), writable)), FileKind::Socket);
        assert_eq!(kind(HostFile::open("/dev/null", writable)), FileKind::CharacterDevice);
    }
    let made_up = HostFile::open("/proc/version", false);
    assert_eq!(kind(made_up), FileKind::MadeUp);
    let version = File::open("/proc/version").expect("open");
    assert_eq!(kind(HostFile::from_fd(version.as_fd())), FileKind::MadeUp);
    assert_eq!(kind(HostFile::shared(version.into())), FileKind::MadeUp);
    let missing = HostFile::open(at("missing"), false).expect_err("missing");
    assert_eq!(missing.errno(), Some(libc::ENOENT));
}

#[test]
fn descriptors_that_cannot_serve_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("file");
    fs::write(&path, b"x").expect("write");
    let write_only = OpenOptions::new().write(true).open(&path).expect("open");
    assert!(matches!(HostFile::from_fd(write_only.as_fd()), Err(OpenError::WriteOnly)));
    let place = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&path).expect("open");
    assert!(matches!(HostFile::from_fd(place.as_fd()), Err(OpenError::PathOnly)));
    let (pipe, _end) = io::pipe().expect("pipe");
    assert_eq!(kind(HostFile::from_fd(pipe.as_fd())), FileKind::Fifo);
    let directory = File::open(dir.path()).expect("open");
    assert_eq!(kind(HostFile::from_fd(directory.as_fd())), FileKind::Directory);
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("eventfd");
    assert_eq!(kind(HostFile::from_fd(event.as_fd())), FileKind::Other);
}

#[test]
fn a_descriptor_is_opened_anew_in_its_own_mode() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("file");
    fs::write(&path, b"0123456789").expect("write");
    let appending = OpenOptions::new().read(true).append(true).open(&path).expect("open");
    fs::remove_file(&path).expect("unlink");

    let file = HostFile::from_fd(appending.as_fd()).expect("unlinked files can be opened anew");
    assert!(file.is_private() && file.is_writable());
    file.write_at(b"ab", 2).expect("write");
    let mut bytes = [0; 16];
    assert_eq!(file.read_at(&mut bytes, 0).expect("read"), 10, "O_APPEND is not inherited");
    assert_eq!(&bytes[..10], b"01ab456789");
    assert_eq!(file.observe().expect("stat").nlink, 0);
    // The two have positions of their own, so the descriptions differ.
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(5)).expect("seek");
    assert_eq!(rustix::fs::tell(&appending).expect("tell"), 0);

    let read_only = File::open(format!("/proc/self/fd/{}", appending.as_raw_fd())).expect("open");
    let reading = HostFile::from_fd(read_only.as_fd()).expect("open anew");
    assert!(!reading.is_writable());
    assert_eq!(reading.identity(), file.identity());
    let refused = reading.write_at(b"x", 0).expect_err("read-only");
    assert_eq!((refused.written, refused.source.raw_os_error()), (0, Some(libc::EBADF)));
    let flags = rustix::io::fcntl_getfd(&file).expect("flags");
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));

    let memory = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::empty()).expect("memfd");
    let memory = HostFile::from_fd(memory.as_fd()).expect("memfds can be opened anew");
    assert!(memory.is_private() && memory.is_writable());
    assert_ne!(memory.identity(), file.identity());
}

#[test]
fn where_opening_anew_is_refused_the_description_is_shared() {
    const NAME: &str = "files::where_opening_anew_is_refused_the_description_is_shared";
    match child::again_as_nobody(NAME) {
        Ok(Some(output)) => return child::passed(&output),
        Ok(None) => {}
        Err(why) => return println!("skipped: {why}"),
    }
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("file");
    fs::write(&path, [1; 100]).expect("write");
    let open = |append| OpenOptions::new().read(true).write(true).append(append).open(&path);
    let (plain, appending) = (open(false).expect("open"), open(true).expect("open"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).expect("chmod");

    let file = HostFile::from_fd(plain.as_fd()).expect("shared");
    assert!(!file.is_private() && file.is_writable());
    file.write_at(&[2], 50).expect("write");
    assert_eq!(rustix::fs::tell(&plain).expect("tell"), 0, "the shared position was moved");
    let refused = HostFile::from_fd(appending.as_fd()).expect_err("writes would go elsewhere");
    assert!(matches!(refused, OpenError::Unusable { flag: "O_APPEND" }), "{refused:?}");
    let refused = HostFile::open(&path, false).expect_err("no permission");
    assert_eq!(refused.errno(), Some(libc::EACCES));
}

extern "C" fn noticed(_: libc::c_int) {
    NOTICED.store(true, Ordering::Release);
}

static NOTICED: AtomicBool = AtomicBool::new(false);

/// An open that waits for a lease to break can be interrupted; the description used to be shared
/// then, silently, and nothing could be proven of the file any more.
#[test]
fn a_signal_does_not_make_the_description_shared() {
    const NAME: &str = "files::a_signal_does_not_make_the_description_shared";
    if let Some(output) = child::again(NAME) {
        return child::passed(&output);
    }
    let _bounded = Watchdog::watch("an open that waits for a lease");
    // SAFETY: all-zero is a valid value of this plain struct; without SA_RESTART.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = noticed as *const () as usize;
    // SAFETY: the handler only stores a flag.
    assert_eq!(unsafe { libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()) }, 0);
    // SAFETY: what tells the holder of the lease, and would end the process.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    let dir = tempfile::tempdir().expect("dir");
    let options = OpenOptions::new().read(true).write(true).create(true).clone();
    let file = options.open(dir.path().join("file")).expect("open");
    let lease = |kind: libc::c_int| {
        // SAFETY: takes numbers only.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) == 0 }
    };
    if !lease(libc::F_WRLCK) {
        return println!("skipped: {}", io::Error::last_os_error());
    }
    let (tell, told) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        let opener = scope.spawn(|| {
            // SAFETY: asks for a number.
            tell.send((current_tid(), unsafe { libc::pthread_self() })).expect("tell");
            HostFile::from_fd(file.as_fd())
        });
        let (tid, thread) = told.recv().expect("thread");
        // `openat`, or where there is one, `open`.
        let opening = |s| {
            matches!(s, Ok(Stance::SystemCall(n)) if n == libc::SYS_openat
                || (cfg!(target_arch = "x86_64") && n == 2))
        };
        while !opening(stance(tid)) {
            thread::yield_now();
        }
        while !NOTICED.load(Ordering::Acquire) {
            // SAFETY: the thread waits for the lease that this one holds.
            unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
            thread::yield_now();
        }
        // It waits again, or has given up.
        while !opener.is_finished() && !opening(stance(tid)) {
            thread::yield_now();
        }
        assert!(lease(libc::F_UNLCK));
        assert!(opener.join().expect("opener").expect("open").is_private());
    });
}

#[test]
fn reads_and_writes_are_whole_and_short_only_at_the_end() {
    let file = file_of(&[7; 1000]);
    let mut bytes = [0; 600];
    assert_eq!(file.read_at(&mut bytes, 0).expect("read"), 600);
    assert_eq!(file.read_at(&mut bytes, 600).expect("read"), 400);
    assert_eq!(file.read_at(&mut bytes, 1000).expect("read"), 0);
    assert_eq!(file.read_at(&mut bytes, 1 << 40).expect("read"), 0);
    file.write_at(&[], 5000).expect("nothing");
    assert_eq!(file.observe().expect("stat").size, 1000, "writing nothing does not extend");
    file.write_at(&[8; 600], 900).expect("write");
    assert_eq!(file.observe().expect("stat").size, 1500);
}

#[test]
fn places_that_no_file_has_are_errors() {
    let file = file_of(&[7; 10]);
    let mut byte = [0];
    let beyond = i64::MAX.unsigned_abs();
    for offset in [beyond, beyond + 1, u64::MAX] {
        let read = file.read_at(&mut byte, offset).expect_err("read");
        assert_eq!(read.kind(), io::ErrorKind::InvalidInput);
        let write = file.write_at(&byte, offset).expect_err("write");
        assert_eq!((write.written, write.source.kind()), (0, io::ErrorKind::InvalidInput));
    }
    let invalid = |r: io::Result<()>| {
        assert_eq!(r.expect_err("invalid").kind(), io::ErrorKind::InvalidInput);
    };
    invalid(file.set_len(u64::MAX));
    invalid(file.punch_hole(5..5));
    invalid(file.zero_range(0..u64::MAX, true));
    #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
    let backwards = 9..3;
    invalid(file.allocate(backwards, false));
}

#[test]
fn every_completed_write_changes_the_stamp() {
    let file = file_of(&[7; 10]);
    let before = file.observe().expect("stat");
    assert_eq!(before, file.observe().expect("stat"), "looking changes nothing");
    file.write_at(&[8], 0).expect("write");
    let after = file.observe().expect("stat");
    assert_eq!(after.size, before.size);
    if after.ctime == before.ctime {
        println!("skipped: this file system's timestamps are too coarse");
    } else {
        assert!(after.ctime > before.ctime && after.mtime > before.mtime);
    }
}

#[test]
fn the_file_size_limit_is_an_error_and_not_a_signal() {
    const NAME: &str = "files::the_file_size_limit_is_an_error_and_not_a_signal";
    if let Some(output) = child::again(NAME) {
        return child::passed(&output);
    }
    let file = file_of(&[1; 100]);
    let old = file_of(&[1; 10_000]);
    setrlimit(Resource::Fsize, Rlimit { current: Some(8192), maximum: Some(8192) })
        .expect("setrlimit");
    let error = file.write_at(&[2; 12_288], 0).expect_err("limit");
    assert_eq!((error.written, error.source.raw_os_error()), (8192, Some(libc::EFBIG)));
    let error = file.write_at(&[2; 10], 8192).expect_err("limit");
    assert_eq!((error.written, error.source.raw_os_error()), (0, Some(libc::EFBIG)));
    file.write_at(&[3; 10], 8182).expect("up to the limit");
    let efbig = |r: io::Result<()>| {
        let e = r.expect_err("limit");
        assert!(e.raw_os_error() == Some(libc::EFBIG), "{e}");
    };
    efbig(file.set_len(8193));
    efbig(file.allocate(0..8193, false));
    file.set_len(8192).expect("up to the limit");
    old.set_len(9_000).expect("shrinking is not growing");
}
