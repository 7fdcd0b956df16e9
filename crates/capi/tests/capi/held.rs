//! The functions as a test calls them: what they return by pointer, returned.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null_mut;

use pageferry_c::*;

use crate::good;

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// A cache of its own with frames of 64 KiB, or the daemon's.
pub(crate) fn cache(socket: Option<&Path>) -> *mut pf_cache {
    let mut cache = null_mut();
    match socket {
        // SAFETY: a place for a handle.
        None => good(unsafe { pf_cache_open(16 * MIB, 64 << 10, &mut cache) }),
        Some(socket) => {
            let socket = c_path(socket);
            // SAFETY: a string, and a place for a handle.
            good(unsafe { pf_cache_connect(socket.as_ptr(), &mut cache) });
        }
    }
    cache
}

pub(crate) fn open(cache: *mut pf_cache, path: &Path) -> *mut pf_file {
    let (mut file, path) = (null_mut(), c_path(path));
    // SAFETY: a string, and a place for a handle.
    good(unsafe { pf_file_open(cache, path.as_ptr(), PF_READ | PF_WRITE, &mut file) });
    file
}

pub(crate) fn try_pin(file: *mut pf_file, at: u64, len: u64, mode: u32) -> (i32, *mut pf_pin) {
    let mut pin = null_mut();
    // SAFETY: a place for a handle.
    let result = unsafe { pf_file_pin(file, at, len, mode, 0, &mut pin) };
    (result, pin)
}

#[track_caller]
pub(crate) fn pin(file: *mut pf_file, at: u64, len: u64, mode: u32) -> *mut pf_pin {
    let (result, pin) = try_pin(file, at, len, mode);
    good(result);
    pin
}

/// Returns the bytes written back.
#[track_caller]
pub(crate) fn release(pin: *mut pf_pin) -> u64 {
    let mut written = 0;
    // SAFETY: a place for a number.
    good(unsafe { pf_pin_release(pin, 0, &mut written) });
    written
}

/// The only stretch of a part of a pin.
#[track_caller]
pub(crate) fn segment(pin: *mut pf_pin, at: u64, len: u64) -> pf_segment {
    let mut segment = pf_segment { address: 0, offset: 0, length: 0, flags: 0 };
    let mut count = 1;
    // SAFETY: room for one segment, and a number that says so.
    good(unsafe { pf_pin_address(pin, at, len, &mut segment, &mut count) });
    assert_eq!((count, segment.offset, segment.length), (1, at, len));
    segment
}

#[track_caller]
pub(crate) fn read(pin: *mut pf_pin, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    // SAFETY: a buffer of so many bytes.
    good(unsafe { pf_pin_read(pin, at, bytes.as_mut_ptr().cast(), len) });
    bytes
}

#[track_caller]
pub(crate) fn write(pin: *mut pf_pin, at: u64, bytes: &[u8]) {
    // SAFETY: so many bytes.
    good(unsafe { pf_pin_write(pin, at, bytes.as_ptr().cast(), bytes.len()) });
}

#[track_caller]
pub(crate) fn close(file: *mut pf_file, cache: *mut pf_cache) {
    // SAFETY: takes numbers only.
    good(unsafe { pf_file_close(file) });
    // SAFETY: takes numbers only.
    good(unsafe { pf_cache_close(cache) });
}
