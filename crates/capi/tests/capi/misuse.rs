//! What makes no sense is refused, and what one thread holds another may release.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::{null, null_mut};

use pageferry_c::*;

use crate::held::*;
use crate::{bad, daemon, good};

/// Calls `test` with a cache of its own and a daemon's.
fn both(test: impl Fn(*mut pf_cache)) {
    test(cache(None));
    let daemon = daemon();
    test(cache(Some(&daemon.socket)));
}

fn data(dir: &tempfile::TempDir) -> std::path::PathBuf {
    let path = dir.path().join("data");
    std::fs::write(&path, vec![7; 200_000]).unwrap();
    path
}

#[test]
fn null_is_refused_everywhere() {
    let no = |result| bad(result, libc::EINVAL, "invalid-argument");
    let mut cache = null_mut();
    let (mut file, mut pin, mut map) = (null_mut(), null_mut(), null_mut());
    // SAFETY: NULL, or a place for a result.
    no(unsafe { pf_cache_open(1 << 20, 0, null_mut()) });
    // SAFETY: as above.
    no(unsafe { pf_cache_connect(null(), &mut cache) });
    // SAFETY: as above.
    no(unsafe { pf_cache_flush(null(), null_mut()) });
    // SAFETY: as above.
    no(unsafe { pf_cache_close(null_mut()) });
    // SAFETY: as above.
    no(unsafe { pf_file_open(null(), c"x".as_ptr(), PF_READ, &mut file) });
    // SAFETY: as above.
    no(unsafe { pf_file_open_fd(null(), 0, &mut file) });
    // SAFETY: as above.
    no(unsafe { pf_file_size(null(), null_mut()) });
    // SAFETY: as above.
    no(unsafe { pf_file_flush(null(), 0, 1) });
    // SAFETY: as above.
    no(unsafe { pf_file_sync(null()) });
    // SAFETY: as above.
    no(unsafe { pf_file_prefetch(null(), 0, 1, null_mut()) });
    // SAFETY: as above.
    no(unsafe { pf_file_evict(null(), 0, 1, null_mut()) });
    // SAFETY: as above.
    no(unsafe { pf_file_close(null_mut()) });
    // SAFETY: as above.
    no(unsafe { pf_file_pin(null(), 0, 1, PF_PIN_READ, 0, &mut pin) });
    // SAFETY: as above.
    no(unsafe { pf_pin_detach(null()) });
    // SAFETY: as above.
    no(unsafe { pf_pin_address(null(), 0, 1, null_mut(), null_mut()) });
    // SAFETY: as above.
    no(unsafe { pf_pin_read(null(), 0, null_mut(), 0) });
    // SAFETY: as above.
    no(unsafe { pf_pin_write(null(), 0, null(), 0) });
    // SAFETY: as above.
    no(unsafe { pf_pin_release(null_mut(), 0, null_mut()) });
    // SAFETY: as above.
    no(unsafe { pf_file_map(null(), 0, 1, PF_READ, &mut map) });
    // SAFETY: as above.
    no(unsafe { pf_map_address(null(), null_mut()) });
    // SAFETY: as above.
    no(unsafe { pf_map_length(null(), null_mut()) });
    // SAFETY: as above.
    no(unsafe { pf_map_close(null_mut()) });
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = data(&dir);
    both(|cache| {
        let no = |result| bad(result, libc::EINVAL, "invalid-argument");
        let file = open(cache, &path);
        let mut opened = file;
        let name = c_path(&path);
        // SAFETY: a string, and a place for a handle.
        no(unsafe { pf_file_open(cache, name.as_ptr(), 0, &mut opened) });
        assert!(opened.is_null());
        // SAFETY: a string, and a place for a handle.
        no(unsafe { pf_file_open(cache, name.as_ptr(), 8, &mut opened) });
        // SAFETY: a place for a handle.
        no(unsafe { pf_file_open(cache, null(), PF_READ, &mut opened) });
        no(try_pin(file, 0, 0, PF_PIN_READ).0);
        no(try_pin(file, u64::MAX, 2, PF_PIN_READ).0);
        no(try_pin(file, 0, 1, 3).0);
        bad(try_pin(file, 0, 1 << 30, PF_PIN_READ).0, libc::EFAULT, "past-eof");
        // SAFETY: no place for a handle.
        no(unsafe { pf_file_pin(file, 0, 1, PF_PIN_READ, -1, null_mut()) });
        let mut pin = null_mut();
        // SAFETY: a place for a handle.
        no(unsafe { pf_file_pin(file, 0, 1, PF_PIN_READ, -2, &mut pin) });
        // A file's handle is no pin's.
        // SAFETY: takes numbers only.
        no(unsafe { pf_pin_release(file.cast(), 0, null_mut()) });
        let held = self::pin(file, 0, 10, PF_PIN_READ);
        // SAFETY: takes numbers only.
        no(unsafe { pf_pin_release(held, 2, null_mut()) });
        // SAFETY: no buffer.
        no(unsafe { pf_pin_read(held, 0, null_mut(), 10) });
        // SAFETY: one byte; no buffer is as long as is said, which is found out first.
        no(unsafe { pf_pin_read(held, 0, (&raw mut pin).cast(), usize::MAX) });
        // SAFETY: one byte.
        let stored = unsafe { pf_pin_write(held, 0, c"x".as_ptr().cast(), 1) };
        bad(stored, libc::EPERM, "outside-pin");
        release(held);
        // SAFETY: takes numbers only.
        no(unsafe { pf_pin_release(held, 0, null_mut()) });
        close(file, cache);
        // SAFETY: takes numbers only.
        no(unsafe { pf_file_sync(file) });
        // SAFETY: takes numbers only.
        no(unsafe { pf_cache_close(cache) });
    });
}

#[test]
fn what_cannot_be_opened_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut nothing = null_mut();
    // SAFETY: a place for a handle.
    bad(unsafe { pf_cache_open(16 * MIB, 3, &mut nothing) }, libc::EINVAL, "invalid-argument");
    // SAFETY: a place for a handle.
    bad(unsafe { pf_cache_open(0, 0, &mut nothing) }, libc::EINVAL, "invalid-argument");
    let nowhere = c_path(&dir.path().join("nobody"));
    // SAFETY: a string, and a place for a handle.
    let result = unsafe { pf_cache_connect(nowhere.as_ptr(), &mut nothing) };
    bad(result, libc::ENOENT, "not-found");
    assert!(nothing.is_null());
    both(|cache| {
        let mut file = null_mut();
        let open = |path: &Path, file: &mut *mut pf_file| {
            let path = c_path(path);
            // SAFETY: a string, and a place for a handle.
            unsafe { pf_file_open(cache, path.as_ptr(), PF_READ, file) }
        };
        bad(open(&dir.path().join("nobody"), &mut file), libc::ENOENT, "not-found");
        bad(open(dir.path(), &mut file), libc::EINVAL, "not-regular-file");
        // SAFETY: a place for a handle.
        bad(unsafe { pf_file_open_fd(cache, -1, &mut file) }, libc::EBADF, "os-error");
        // SAFETY: a place for a handle.
        bad(unsafe { pf_file_open_fd(cache, 1 << 20, &mut file) }, libc::EBADF, "os-error");
        // SAFETY: takes numbers only.
        good(unsafe { pf_cache_close(cache) });
    });
}

#[test]
fn handles_keep_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = data(&dir);
    both(|cache| {
        let readable = std::fs::File::open(&path).unwrap();
        let mut file = null_mut();
        // SAFETY: an open descriptor, and a place for a handle.
        good(unsafe { pf_file_open_fd(cache, readable.as_raw_fd(), &mut file) });
        bad(try_pin(file, 0, 10, PF_PIN_WRITE).0, libc::EACCES, "read-only");
        let held = pin(file, 0, 100_000, PF_PIN_READ);
        close(file, cache);
        assert_eq!(read(held, 99_000, 1000), [7; 1000]);
        assert_eq!(release(held), 0);
    });
}

/// So that a test's thread can have a handle.
#[derive(Clone, Copy)]
struct Sent(*mut pf_pin);
// SAFETY: a handle is a number.
unsafe impl Send for Sent {}

impl Sent {
    fn get(self) -> *mut pf_pin {
        self.0
    }
}

#[test]
fn another_thread_may_use_and_release_a_pin() {
    let dir = tempfile::tempdir().unwrap();
    let path = data(&dir);
    both(|cache| {
        let file = open(cache, &path);
        let held = pin(file, 0, 10, PF_PIN_WRITE);
        let mut second = null_mut();
        // A wait without end, for this thread's own pin.
        // SAFETY: a place for a handle.
        let result = unsafe { pf_file_pin(file, 0, 10, PF_PIN_WRITE, -1, &mut second) };
        bad(result, libc::EDEADLK, "would-deadlock");
        // SAFETY: takes numbers only.
        good(unsafe { pf_pin_detach(held) });
        // SAFETY: takes numbers only.
        good(unsafe { pf_pin_detach(held) });
        bad(try_pin(file, 0, 10, PF_PIN_WRITE).0, libc::EAGAIN, "would-block");
        let sent = Sent(held);
        std::thread::scope(|s| {
            s.spawn(move || {
                write(sent.get(), 0, b"elsewhere");
                assert!(release(sent.get()) > 0);
            });
            // SAFETY: a place for a handle.
            good(unsafe { pf_file_pin(file, 0, 10, PF_PIN_WRITE, -1, &mut second) });
        });
        assert_eq!(read(second, 0, 10), b"elsewhere\x07");
        release(second);
        // Of a thread that has not let go of it, too.
        let sent = Sent(pin(file, 0, 10, PF_PIN_READ));
        std::thread::scope(|s| drop(s.spawn(move || release(sent.get()))));
        release(pin(file, 0, 10, PF_PIN_WRITE));
        close(file, cache);
        std::fs::write(&path, vec![7; 200_000]).unwrap();
    });
}

#[test]
fn files_are_moved_flushed_and_kept_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = data(&dir);
    both(|cache| {
        let file = open(cache, &path);
        let (mut size, mut brought, mut evicted) = (0, 0, 0);
        // SAFETY: a place for a number.
        good(unsafe { pf_file_size(file, &mut size) });
        // SAFETY: a place for a number.
        good(unsafe { pf_file_prefetch(file, 0, u64::MAX, &mut brought) });
        // SAFETY: a place for a number.
        good(unsafe { pf_file_evict(file, 0, u64::MAX, &mut evicted) });
        assert_eq!(size, 200_000);
        assert!(brought >= size && evicted >= size, "{brought} brought, {evicted} evicted");
        let held = pin(file, 0, 4096, PF_PIN_WRITE);
        write(held, 0, b"kept");
        // Whether it can be kept is the system's business.
        // SAFETY: takes numbers only.
        match unsafe { pf_pin_release(held, PF_KEEP_AWAY, null_mut()) } {
            0 => {}
            refused => bad(refused, libc::EBUSY, "unguarded"),
        }
        // SAFETY: takes numbers only.
        good(unsafe { pf_file_flush(file, 0, u64::MAX) });
        assert_eq!(&std::fs::read(&path).unwrap()[..5], b"kept\x07");
        // SAFETY: takes numbers only.
        good(unsafe { pf_file_sync(file) });
        // SAFETY: nowhere to write to.
        good(unsafe { pf_cache_flush(cache, null_mut()) });
        close(file, cache);
    });
}

#[test]
fn a_mapping_has_the_devices_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = data(&dir);
    both(|cache| {
        let file = open(cache, &path);
        let mut map = null_mut();
        // SAFETY: a place for a handle.
        match unsafe { pf_file_map(file, 5000, 100, PF_READ | PF_WRITE, &mut map) } {
            0 => {}
            refused => {
                bad(refused, libc::EOPNOTSUPP, "unsupported");
                eprintln!("skipped: no mappings here");
                return close(file, cache);
            }
        }
        let (mut address, mut len) = (null_mut(), 0);
        // SAFETY: a place for a pointer.
        good(unsafe { pf_map_address(map, &mut address) });
        // SAFETY: a place for a number.
        good(unsafe { pf_map_length(map, &mut len) });
        assert_eq!(len, 8192 - 5000);
        let held = pin(file, 5000, 4, PF_PIN_WRITE);
        write(held, 5000, b"news");
        release(held);
        let address = address.cast::<[u8; 4]>();
        // SAFETY: mapped, and no pin is in the way.
        assert_eq!(unsafe { address.read_volatile() }, *b"news");
        // SAFETY: as above, for writing.
        unsafe { address.write_volatile(*b"olds") };
        let held = pin(file, 5000, 4, PF_PIN_READ);
        assert_eq!(read(held, 5000, 4), b"olds");
        release(held);
        // SAFETY: nobody uses the memory any more.
        good(unsafe { pf_map_close(map) });
        close(file, cache);
    });
}
