//! Who else has touched a file: an unprivileged fanotify group.
//!
//! Seen on 6.18, on ext4, xfs, btrfs and tmpfs, as an ordinary user:
//!
//! - An open raises the file's count of users *before* its `OPEN` is queued, and the event is queued
//!   before `open` returns; a close queues its event before the count falls. So a silent group,
//!   after a [lease](crate::HostFile::take_lease) has shown that nobody else had the file open,
//!   means that nobody has been able to change it.
//! - Events that this process causes carry its number, all others carry 0 or their own; to root they
//!   can carry the thread's instead. Events of one kind, by one process (thread), on one file merge while
//!   they are unread: they cannot be counted.
//! - `write`, `fallocate`, `truncate` by name or descriptor, and reflinks, give `MODIFY` when they are
//!   done. A store through a mapping gives nothing, but its open and the last close show; the close of
//!   a mapped file's last user comes when the mapping goes.
//! - `truncate` by name gives `MODIFY` without any `OPEN`.
//! - More unread events than the queue holds (16,384) leave one `Q_OVERFLOW`.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::fanotify::{self, double_word, word};
use crate::file::HostFile;
use crate::tid::current_pid;

/// A fanotify group that hears of opens, closes and changes of the files it watches.
///
/// # Invariants
/// `group` is non-blocking and reports file identities.
#[derive(Debug)]
pub struct Watch {
    group: OwnedFd,
    process: i32,
    threads: bool,
}

/// A watched file as events name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchKey(Box<[u8]>);

/// What was heard of one file, or, without one, that something was missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Which file; `None`: events were lost, of any file.
    pub file: Option<WatchKey>,
    /// This process did it. Not known where [threads are told](Watch::tells_threads).
    pub own: bool,
    /// The thread that did it, where threads are told.
    pub thread: Option<u32>,
    /// Its bytes were changed by a call.
    pub modified: bool,
    /// It was opened.
    pub opened: bool,
    /// It was closed.
    pub closed: bool,
    /// By somebody who could write.
    pub closed_writer: bool,
}

impl Heard {
    /// Its bytes may have been changed.
    #[must_use]
    pub fn changed(&self) -> bool {
        self.modified || self.closed_writer
    }

    /// Somebody came or went.
    #[must_use]
    pub fn visited(&self) -> bool {
        self.opened || self.closed
    }
}

const OPENS: u64 = libc::FAN_OPEN | libc::FAN_CLOSE_NOWRITE;
const CHANGES: u64 = libc::FAN_MODIFY | libc::FAN_CLOSE_WRITE;
/// Bytes of the head of each record behind an event's.
const RECORD_BYTES: usize = size_of::<libc::fanotify_event_info_header>();
/// Bytes before a handle in its record: file system, length, type.
const HANDLE_AT: usize = 16;
/// The longest handle there is (`MAX_HANDLE_SZ`).
const HANDLE_MAX: usize = 128;

impl Watch {
    /// A group without files.
    ///
    /// # Errors
    /// `ENOSYS` or `EPERM` where there is no fanotify for this user; `EMFILE` beyond the user's
    /// limit of groups (`/proc/sys/fs/fanotify/max_user_groups`, 128 by default).
    pub fn new() -> io::Result<Watch> {
        // Which thread did something is told to the privileged only.
        let flags = libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_FID;
        let (group, threads) = match fanotify::group(flags | libc::FAN_REPORT_TID) {
            Ok(group) => (group, true),
            Err(_) => (fanotify::group(flags)?, false),
        };
        Ok(Watch { group, process: current_pid(), threads })
    }

    /// Events name the thread that caused them instead of the process.
    #[must_use]
    pub fn tells_threads(&self) -> bool {
        self.threads
    }

    /// Hears of `file` from now on.
    ///
    /// # Errors
    /// `EOPNOTSUPP`, `ENODEV` or `EXDEV` where the file system cannot name files in events; `ENOSPC`
    /// beyond the user's limit of marks.
    pub fn add(&self, file: &HostFile) -> io::Result<WatchKey> {
        let key = name(file.as_fd())?;
        self.mark(libc::FAN_MARK_ADD, file.as_fd())?;
        Ok(key)
    }

    /// Hears of it no longer.
    ///
    /// # Errors
    /// `ENOENT` if it was not watched.
    pub fn remove(&self, file: &HostFile) -> io::Result<()> {
        self.mark(libc::FAN_MARK_REMOVE, file.as_fd())
    }

    fn mark(&self, flags: libc::c_uint, file: BorrowedFd<'_>) -> io::Result<()> {
        fanotify::mark(&self.group, flags, OPENS | CHANGES | libc::FAN_ATTRIB, file)
    }

    /// Takes all that has been heard, without waiting. One system call if that is nothing.
    ///
    /// # Errors
    /// Reading failed: what was heard is not known.
    pub fn drain(&self, mut heard: impl FnMut(Heard)) -> io::Result<()> {
        let mut buf = [0_u8; 4096];
        loop {
            match rustix::io::read(&self.group, &mut buf[..]) {
                Ok(0) | Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Ok(len) => self.parse(&buf[..len], &mut heard),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn parse(&self, bytes: &[u8], heard: &mut impl FnMut(Heard)) {
        for event in fanotify::events(bytes) {
            let mask = double_word(event, 8);
            let pid = word(event, 20).cast_signed();
            let file = if mask & libc::FAN_Q_OVERFLOW == 0 { file_of(event) } else { None };
            heard(Heard {
                file,
                own: !self.threads && pid == self.process,
                thread: u32::try_from(pid).ok().filter(|_| self.threads),
                modified: mask & libc::FAN_MODIFY != 0,
                opened: mask & libc::FAN_OPEN != 0,
                closed: mask & libc::FAN_CLOSE != 0,
                closed_writer: mask & libc::FAN_CLOSE_WRITE != 0,
            });
        }
    }
}

/// The file that an event's record names.
fn file_of(event: &[u8]) -> Option<WatchKey> {
    let record = fanotify::record(event)?;
    if *record.first()? != libc::FAN_EVENT_INFO_TYPE_FID {
        return None;
    }
    let body = record.get(RECORD_BYTES..)?;
    let handle_len = word(body, 8) as usize;
    Some(WatchKey(body.get(..HANDLE_AT.checked_add(handle_len)?)?.into()))
}

/// A file's name in events: the file system's number and the file's handle.
fn name(fd: BorrowedFd<'_>) -> io::Result<WatchKey> {
    #[repr(C)]
    struct Handle {
        len: u32,
        kind: i32,
        bytes: [u8; HANDLE_MAX],
    }
    let mut handle = Handle { len: HANDLE_MAX as u32, kind: 0, bytes: [0; HANDLE_MAX] };
    let mut mount = 0_i32;
    let path: &CStr = c"";
    // SAFETY: the handle says how many bytes it has room for; both pointers are valid for writes, and
    // the path is empty: the descriptor's own file.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd.as_raw_fd(),
            path.as_ptr(),
            std::ptr::from_mut(&mut handle),
            std::ptr::from_mut(&mut mount),
            libc::AT_EMPTY_PATH,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the pointer is valid for writes of a `statfs`.
    let rc = unsafe { libc::fstatfs(fd.as_raw_fd(), stat.as_mut_ptr()) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed, then filled by the kernel; all bit patterns are valid.
    let stat = unsafe { stat.assume_init() };
    // SAFETY: two numbers without padding, by the kernel's definition (`__kernel_fsid_t`).
    let fsid: [u8; 8] = unsafe { std::mem::transmute(stat.f_fsid) };
    let mut key = fsid.to_vec();
    key.extend(handle.len.to_ne_bytes());
    key.extend(handle.kind.to_ne_bytes());
    key.extend(&handle.bytes[..(handle.len as usize).min(HANDLE_MAX)]);
    Ok(WatchKey(key.into()))
}

const _: () = assert!(RECORD_BYTES == 4);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fanotify::HEAD_BYTES;

    /// Whatever bytes come, each is taken for something, and none is read beyond its end.
    #[test]
    fn any_bytes_are_events_or_none() {
        let group = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("fd");
        let watch = Watch { group, process: 1, threads: false };
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        for round in 0..20_000 {
            let mut bytes = vec![0_u8; round % 200];
            for byte in &mut bytes {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                // Small numbers are likely to be lengths that fit.
                *byte = if state & 3 == 0 { (state >> 32) as u8 } else { (state >> 40) as u8 & 31 };
            }
            let mut count = 0;
            watch.parse(&bytes, &mut |_| count += 1);
            assert!(count <= bytes.len() / HEAD_BYTES, "{count} events in {} bytes", bytes.len());
        }
    }
}
