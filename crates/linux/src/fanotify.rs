//! What the uses of fanotify share: groups, marks, and the events read from them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `FAN_PRE_ACCESS`, which no crate has.
pub(crate) const FAN_PRE_ACCESS: u64 = 0x0010_0000;
/// Bytes of the head of an event.
pub(crate) const HEAD_BYTES: usize = size_of::<libc::fanotify_event_metadata>();

/// A non-blocking group that closes on exec.
pub(crate) fn group(flags: libc::c_uint) -> io::Result<OwnedFd> {
    let flags = flags | libc::FAN_NONBLOCK | libc::FAN_CLOEXEC;
    let files = (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE).cast_unsigned();
    // SAFETY: takes flags only.
    let fd = unsafe { libc::fanotify_init(flags, files) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: opened just now, and known to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Changes a group's mark on the file behind a descriptor.
pub(crate) fn mark(
    group: &OwnedFd,
    flags: libc::c_uint,
    events: u64,
    file: BorrowedFd<'_>,
) -> io::Result<()> {
    let (group, file) = (group.as_raw_fd(), file.as_raw_fd());
    // SAFETY: takes numbers and, for "this descriptor's file", a null path.
    let rc = unsafe { libc::fanotify_mark(group, flags, events, file, std::ptr::null()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The events in what was read from a group, each with its records. One whose length makes no sense
/// is taken to be all the rest.
pub(crate) fn events(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if bytes.len() < HEAD_BYTES {
            return None;
        }
        let len = word(bytes, 0) as usize;
        let whole = HEAD_BYTES..=bytes.len();
        let (event, rest) = bytes.split_at(if whole.contains(&len) { len } else { bytes.len() });
        bytes = rest;
        Some(event)
    })
}

/// The first record behind an event's head.
pub(crate) fn record(event: &[u8]) -> Option<&[u8]> {
    event.get(usize::from(u16::from_ne_bytes([*event.get(6)?, *event.get(7)?]))..)
}

/// The word at an offset; 0 beyond the end.
pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b))
}

/// Two words at an offset.
pub(crate) fn double_word(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

const _: () = {
    assert!(HEAD_BYTES == 24 && size_of::<libc::fanotify_response>() == 8);
    assert!(std::mem::offset_of!(libc::fanotify_event_metadata, metadata_len) == 6);
    assert!(std::mem::offset_of!(libc::fanotify_event_metadata, mask) == 8);
    assert!(std::mem::offset_of!(libc::fanotify_event_metadata, fd) == 16);
    assert!(std::mem::offset_of!(libc::fanotify_event_metadata, pid) == 20);
};
