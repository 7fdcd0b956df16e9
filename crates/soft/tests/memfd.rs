//! What the kernel tells about who holds a memory file, and why that is not enough to give its memory
//! to somebody else. All of it found on Linux 6.18.
#![cfg(not(loom))]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr;

use libc::c_int;

const BYTES: usize = 4096;

fn answer(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn memory() -> File {
    // SAFETY: makes a new descriptor.
    let fd = unsafe { libc::memfd_create(c"facts".as_ptr(), libc::MFD_CLOEXEC) };
    // SAFETY: the new descriptor is nobody else's.
    let file = unsafe { File::from_raw_fd(answer(fd).expect("memfd")) };
    file.set_len(BYTES as u64).expect("size");
    file
}

fn again(file: &File, write: bool) -> File {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().read(true).write(write).open(path).expect("open")
}

/// Whether a write lease is granted, which is given back at once.
fn lease(file: &File) -> bool {
    // SAFETY: leases change no memory.
    let granted = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
    if granted != 0 {
        let error = io::Error::last_os_error();
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{error}");
        return false;
    }
    // SAFETY: as above.
    answer(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) })
        .expect("back");
    true
}

/// The first description of a memory file is not counted as a writer, so a lease through it is always
/// refused; one that was opened gets it whenever there is no other that was opened, also none that only
/// a mapping keeps.
#[test]
fn a_lease_shows_descriptions_and_mappings() {
    let memory = memory();
    assert!(!lease(&memory));
    let own = again(&memory, false);
    assert!(lease(&own));
    for write in [false, true] {
        let other = again(&memory, write);
        assert!(!lease(&own));
        let (any, read) = (ptr::null_mut(), libc::PROT_READ);
        let fd = other.as_raw_fd();
        // SAFETY: a new mapping replaces nothing.
        let at = unsafe { libc::mmap(any, BYTES, read, libc::MAP_PRIVATE, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        drop(other);
        assert!(!lease(&own), "a mapping is not seen");
        // SAFETY: the mapping just made.
        answer(unsafe { libc::munmap(at, BYTES) }).expect("munmap");
        assert!(lease(&own));
    }
}

/// This is why memory that was exported never serves another file.
#[test]
fn no_lease_shows_a_page_in_a_pipe_which_shows_what_is_written_later() {
    let memory = memory();
    memory.write_all_at(&[b'a'; BYTES], 0).expect("write");
    let own = again(&memory, false);
    let client = again(&memory, false);
    let (mut out, into) = io::pipe().expect("pipe");
    let (from, to) = (client.as_raw_fd(), into.as_raw_fd());
    // SAFETY: moves page references between descriptors.
    let moved = unsafe { libc::splice(from, ptr::null_mut(), to, ptr::null_mut(), BYTES, 0) };
    assert_eq!(moved, BYTES as isize);
    drop(client);
    assert!(lease(&own), "nobody has it open or mapped");
    memory.write_all_at(&[b'b'; BYTES], 0).expect("write");
    let mut seen = [0; BYTES];
    out.read_exact(&mut seen).expect("read");
    assert_eq!(seen, [b'b'; BYTES]);
}

/// This is why opens and closes cannot be counted.
#[test]
fn inotify_makes_one_of_equal_events_in_a_row() {
    let memory = memory();
    // SAFETY: makes a new descriptor.
    let fd = answer(unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) });
    // SAFETY: the new descriptor is nobody else's.
    let mut events = File::from(unsafe { OwnedFd::from_raw_fd(fd.expect("inotify")) });
    let path = format!("/proc/self/fd/{}\0", memory.as_raw_fd());
    let mask = libc::IN_OPEN | libc::IN_CLOSE;
    // SAFETY: the path ends with a zero.
    answer(unsafe { libc::inotify_add_watch(events.as_raw_fd(), path.as_ptr().cast(), mask) })
        .expect("watch");
    let opened = [again(&memory, false), again(&memory, false)];
    drop(opened);
    let mut buffer = [0; 4096];
    let bytes = events.read(&mut buffer).expect("events");
    assert_eq!(bytes, 2 * size_of::<libc::inotify_event>(), "of two opens and two closes");
}
