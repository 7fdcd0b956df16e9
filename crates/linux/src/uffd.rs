//! The descriptor through which the kernel tells of CPU accesses to pages that are away.
//!
//! # Rules
//! - Somebody has to read: [`Uffd::wait`], in a thread of its own, whatever errors it gives. Moving a placeholder into place
//!   ([`FileMap::trap`](crate::FileMap::trap)) waits until the reader has taken the `REMAP` event
//!   that the move causes, so **the reader never moves**, nor waits for someone who does. It never
//!   touches trapped memory either.
//! - The same fault may be told more than once: after a wake that came too early, after a signal
//!   handler has run in between, and some hundred thousand times a second while a thread inside a
//!   system call has a signal pending, any signal: it cannot sleep then, and retries the page until
//!   it comes or is [poisoned](crate::FileMap::poison).
//! - Closing the descriptor would turn every placeholder into ordinary zeros. Therefore each
//!   [`FileMap`](crate::FileMap) keeps the `Uffd` it has trapped with alive. (Nothing helps against
//!   a program that closes descriptors it does not know, as `close_range(3, ..)` does.)
//!
//! # Privileges
//! A descriptor that also catches accesses made *inside system calls* (`write(fd, trapped, n)`)
//! needs the right to open `/dev/userfaultfd`, or CAP_SYS_PTRACE, or
//! `vm.unprivileged_userfaultfd = 1`. Without, the kernel gives a user-mode-only one, and such
//! system calls fail with `EFAULT`. `EVENT_REMAP`, `THREAD_ID`, `POISON` and `WP_ASYNC` are had
//! without privileges (only `EVENT_FORK`, which is not used here, is not).

mod event;
mod handshake;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linux_raw_sys::{general as raw, ioctl as numbers};

use crate::abi;
use crate::fork::Owner;
use crate::room::Room;
pub use event::{Event, Fault, Wakeup};
pub(crate) use handshake::{Features, connect};
pub use handshake::{UffdError, UffdMode};

/// A userfaultfd for missing pages, and the means to stop whoever reads it.
///
/// # Invariants
/// - `fd` is non-blocking and has agreed on `EVENT_REMAP`; a placeholder that moves stays trapped.
/// - Only anonymous placeholders of [`FileMap`](crate::FileMap)s are ever registered with it.
/// - It acts on the memory of `owner`, in a forked child of it as well; so a child does nothing with
///   it.
#[derive(Debug)]
pub struct Uffd {
    owner: Owner,
    fd: OwnedFd,
    /// Readable for ever once the readers are to stop.
    stop: OwnedFd,
    /// An epoll instance over the two.
    either: OwnedFd,
    mode: UffdMode,
    features: Features,
    /// Which descriptor this is, for [`is_reader`](Uffd::is_reader).
    serial: u64,
    /// For what is trapped with it.
    room: Room,
}

impl Uffd {
    /// The most capable descriptor this process may have.
    ///
    /// # Errors
    /// [`UffdError`] names what stands in the way.
    pub fn open() -> Result<Uffd, UffdError> {
        Uffd::open_as(&[UffdMode::KernelAndUser, UffdMode::UserOnly])
    }

    /// A descriptor of the given mode and no other.
    ///
    /// # Errors
    /// As [`open`](Uffd::open).
    pub fn open_mode(mode: UffdMode) -> Result<Uffd, UffdError> {
        Uffd::open_as(&[mode])
    }

    fn open_as(modes: &[UffdMode]) -> Result<Uffd, UffdError> {
        let optional = Features::THREAD_ID | Features::POISON | Features::EXACT_ADDRESS;
        let (fd, mode, features) = connect(modes, Features::EVENT_REMAP, optional)?;
        let os = |call, source: io::Error| UffdError::Os { call, source };
        let owner = Owner::current().map_err(|e| os("a page for MADV_WIPEONFORK", e))?;
        let stop = rustix::event::eventfd(
            0,
            rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK,
        )
        .map_err(|e| os("eventfd", e.into()))?;
        let either = event::either(fd.as_fd(), stop.as_fd()).map_err(|e| os("epoll", e))?;
        let (serial, room) = (event::fresh_serial(), Room::new(owner));
        Ok(Uffd { owner, fd, stop, either, mode, features, serial, room })
    }

    /// The room for traps.
    pub(crate) fn room(&self) -> &Room {
        &self.room
    }

    /// Whether it is the calling process's, and not a parent's.
    pub(crate) fn is_ours(&self) -> bool {
        self.owner.is_current()
    }

    /// Whether accesses inside system calls are caught as well.
    #[must_use]
    pub fn mode(&self) -> UffdMode {
        self.mode
    }

    /// Whether faults tell which thread they stopped.
    #[must_use]
    pub fn tells_thread(&self) -> bool {
        self.features.contains(Features::THREAD_ID)
    }

    /// Whether [`FileMap::poison`](crate::FileMap::poison) works.
    #[must_use]
    pub fn can_poison(&self) -> bool {
        self.features.contains(Features::POISON)
    }

    /// Registers `range` for missing faults.
    ///
    /// # Safety
    /// `range` must be anonymous memory that belongs to the caller and that nothing refers to:
    /// from now on accesses to it wait. This must be [ours](Uffd::is_ours).
    pub(crate) unsafe fn register(&self, range: Range<usize>) -> io::Result<()> {
        // SAFETY: the caller's promise is the callee's condition.
        unsafe { register(self.fd.as_fd(), range, abi::MISSING) }
    }

    /// Wakes every thread that waits in `range`. Each repeats its access, and traps again if the
    /// range still is a placeholder. (In a child it would wake threads of the parent: to no harm.)
    pub(crate) fn wake(&self, range: Range<usize>) -> io::Result<()> {
        let mut argument = raw::uffdio_range { start: range.start as u64, len: range.len() as u64 };
        // SAFETY: UFFDIO_WAKE takes a `uffdio_range` and touches no memory; a thread that is woken
        // repeats its access, which is what it would have done at any time after a signal.
        unsafe { abi::ioctl(self.fd.as_fd(), numbers::UFFDIO_WAKE, &mut argument) }?;
        Ok(())
    }

    /// Makes every page of `range` fail: `SIGBUS` for a load or store, `EFAULT` in a system call.
    ///
    /// # Safety
    /// `range` must be registered with this descriptor, which must be [ours](Uffd::is_ours), and
    /// nothing in Rust may rely on being able to access it.
    pub(crate) unsafe fn poison(&self, range: Range<usize>) -> io::Result<()> {
        let page = crate::page_bytes();
        let mut at = range.start;
        while at < range.end {
            let mut argument = raw::uffdio_poison {
                range: raw::uffdio_range { start: at as u64, len: (range.end - at) as u64 },
                mode: 0,
                updated: 0,
            };
            // SAFETY: the number goes with the struct (checked in `abi`); what becomes inaccessible
            // is a placeholder by the caller's word.
            let result = unsafe { abi::ioctl(self.fd.as_fd(), abi::UFFDIO_POISON, &mut argument) };
            match result {
                Ok(_) => break,
                // Stopped part of the way, for one of the reasons below.
                Err(_) if argument.updated > 0 => {
                    at += usize::try_from(argument.updated).unwrap_or(page);
                }
                // Poisoned already.
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => at += page,
                // Another thread is moving a placeholder: until the reader has heard of it.
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => std::thread::yield_now(),
                Err(e) => return Err(e),
            }
        }
        // Parts that were done in an interrupted call may have waiters left.
        self.wake(range)
    }
}

/// `UFFDIO_REGISTER`.
///
/// # Safety
/// What accesses to `range` do under `mode` must be fine for everything that may access it.
pub(crate) unsafe fn register(
    fd: BorrowedFd<'_>,
    range: Range<usize>,
    mode: u64,
) -> io::Result<()> {
    let mut argument = raw::uffdio_register {
        range: raw::uffdio_range { start: range.start as u64, len: range.len() as u64 },
        mode,
        ioctls: 0,
    };
    // SAFETY: the number goes with the struct (both from linux-raw-sys); the effect on the range is
    // the caller's promise.
    unsafe { abi::ioctl(fd, numbers::UFFDIO_REGISTER, &mut argument) }?;
    Ok(())
}
