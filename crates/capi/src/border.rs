//! What passes between C and Rust: results, errors, strings, buffers.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use pageferry::Error;

/// Why a call failed.
pub(crate) struct Failure {
    errno: c_int,
    kind: &'static str,
    text: String,
}

impl Failure {
    /// An argument that makes no sense.
    pub(crate) fn invalid(text: impl Into<String>) -> Failure {
        Error::InvalidArgument(text.into()).into()
    }

    /// The caller's array has no room for all.
    pub(crate) fn too_small(text: String) -> Failure {
        Failure { errno: libc::ERANGE, kind: "too-small", text }
    }

    /// The pin has no such bytes.
    pub(crate) fn outside(text: String) -> Failure {
        Failure { errno: libc::EPERM, kind: "outside-pin", text }
    }

    fn panicked(cause: &(dyn Any + Send)) -> Failure {
        let text = match (cause.downcast_ref::<&str>(), cause.downcast_ref::<String>()) {
            (Some(text), _) => (*text).to_owned(),
            (None, Some(text)) => text.clone(),
            (None, None) => "no more is known".to_owned(),
        };
        Failure { errno: libc::EIO, kind: "panicked", text: format!("panicked: {text}") }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { errno: error.errno(), kind: error.kind(), text: error.to_string() }
    }
}

pub(crate) type Result<T = (), E = Failure> = std::result::Result<T, E>;

/// The calling thread's last failure, as C reads it.
struct Last {
    kind: CString,
    text: CString,
}

thread_local! {
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

fn c_string(text: &str) -> CString {
    let until_nul = text.split('\0').next().unwrap_or_default();
    // There is no NUL in it any more.
    CString::new(until_nul).unwrap_or_default()
}

/// Runs what a function does. Its failure is kept for the thread, and told as a negative number.
pub(crate) fn call(body: impl FnOnce() -> Result) -> c_int {
    // What a panic leaves is locked up in the library, whose locks know no poison: as in a thread that panics.
    let outcome = catch_unwind(AssertUnwindSafe(body));
    let failure = match outcome {
        Ok(Ok(())) => return 0,
        Ok(Err(failure)) => failure,
        Err(cause) => Failure::panicked(&*cause),
    };
    let last = Last { kind: c_string(failure.kind), text: c_string(&failure.text) };
    // A thread that is ending has nobody left to read it.
    let _ = LAST.try_with(|kept| kept.replace(Some(last)));
    // Zero would be success.
    -failure.errno.max(1)
}

fn last(pick: fn(&Last) -> &CStr) -> *const c_char {
    let kept = LAST.try_with(|kept| kept.borrow().as_ref().map(|last| pick(last).as_ptr()));
    kept.ok().flatten().unwrap_or(c"".as_ptr())
}

/// What the calling thread's last failed call failed with, in words, for people. Empty if none failed yet; a
/// call that succeeds leaves it. Never NULL. It may be read until the next call of this thread that fails.
#[unsafe(no_mangle)]
pub extern "C" fn pf_error_text() -> *const c_char {
    last(|last| &last.text)
}

/// The kind of that failure, a stable word for programs where the number does not say enough: "would-deadlock",
/// "past-eof", "disconnected", ... Empty if none failed yet. Valid as long as pf_error_text().
#[unsafe(no_mangle)]
pub extern "C" fn pf_error_kind() -> *const c_char {
    last(|last| &last.kind)
}

/// Stores a result where the caller wants it.
///
/// # Safety
/// `to` is NULL, or may be written as a `T`.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) {
    if !to.is_null() {
        // SAFETY: not NULL, so the caller vouches for it.
        unsafe { to.write(value) };
    }
}

/// Refuses a call that has nowhere to put its handle, and leaves NULL there until there is one.
///
/// # Safety
/// As [`put`].
pub(crate) unsafe fn prepare<T>(to: *mut *mut T) -> Result {
    if to.is_null() {
        return Err(Failure::invalid("the place for the result is NULL"));
    }
    // SAFETY: as the caller vouches.
    unsafe { put(to, std::ptr::null_mut()) };
    Ok(())
}

/// A path of C's.
///
/// # Safety
/// `path` is NULL or a string that ends with NUL and does not change during `'a`.
pub(crate) unsafe fn path<'a>(path: *const c_char) -> Result<&'a Path> {
    if path.is_null() {
        return Err(Failure::invalid("the path is NULL"));
    }
    // SAFETY: not NULL, so the caller vouches for it.
    let bytes = unsafe { CStr::from_ptr(path) }.to_bytes();
    Ok(Path::new(OsStr::from_bytes(bytes)))
}

fn check_buffer(is_null: bool, len: usize) -> Result<()> {
    match (is_null, isize::try_from(len)) {
        (_, Err(_)) => Err(Failure::invalid(format!("a buffer of {len} bytes"))),
        (true, _) if len > 0 => Err(Failure::invalid("the buffer is NULL")),
        _ => Ok(()),
    }
}

/// Bytes that the caller has.
///
/// # Safety
/// NULL, or readable for `len` bytes, which nobody changes during `'a`.
pub(crate) unsafe fn bytes<'a>(buf: *const u8, len: usize) -> Result<&'a [u8]> {
    check_buffer(buf.is_null(), len)?;
    if len == 0 {
        return Ok(&[]);
    }
    // SAFETY: not NULL, no longer than an object can be (both checked); the caller vouches for the rest.
    Ok(unsafe { std::slice::from_raw_parts(buf, len) })
}

/// A buffer to fill.
///
/// # Safety
/// NULL, or writable for `len` bytes, of which nobody else uses any during `'a`.
pub(crate) unsafe fn buffer<'a>(buf: *mut u8, len: usize) -> Result<&'a mut [u8]> {
    check_buffer(buf.is_null(), len)?;
    if len == 0 {
        return Ok(&mut []);
    }
    // SAFETY: not NULL, no longer than an object can be (both checked); the caller vouches for the rest.
    // C's memory has some value as far as this language can tell.
    Ok(unsafe { std::slice::from_raw_parts_mut(buf, len) })
}

/// The end of a range that has to make sense.
pub(crate) fn end_of(offset: u64, len: u64) -> Result<u64> {
    let wraps = || Failure::invalid(format!("{len} bytes at {offset} end nowhere"));
    offset.checked_add(len).ok_or_else(wraps)
}

/// Refuses bits without a meaning.
pub(crate) fn check_flags(flags: u32, known: u32) -> Result {
    match flags & !known {
        0 => Ok(()),
        unknown => Err(Failure::invalid(format!("unknown flags {unknown:#x}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> String {
        // SAFETY: a string of this thread's; no call fails meanwhile.
        unsafe { CStr::from_ptr(pf_error_text()) }.to_str().unwrap().to_owned()
    }

    fn kind() -> String {
        // SAFETY: a string of this thread's; no call fails meanwhile.
        unsafe { CStr::from_ptr(pf_error_kind()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_stops_at_the_border() {
        assert_eq!(call(|| panic!("on purpose")), -libc::EIO);
        assert_eq!((kind().as_str(), text().as_str()), ("panicked", "panicked: on purpose"));
    }

    #[test]
    fn failures_are_each_threads_own_and_outlast_success() {
        assert_eq!(text(), "");
        assert_eq!(call(|| Err(Failure::invalid("a\0b"))), -libc::EINVAL);
        assert_eq!(call(|| Ok(())), 0);
        assert_eq!((kind().as_str(), text().as_str()), ("invalid-argument", "invalid argument: a"));
        std::thread::scope(|s| s.spawn(|| assert_eq!(text(), "")).join().unwrap());
    }

    #[test]
    fn an_error_without_a_number_is_no_success() {
        let error = Error::Os { what: "nothing".into(), errno: 0 };
        assert!(call(|| Err(error.into())) < 0);
    }
}
