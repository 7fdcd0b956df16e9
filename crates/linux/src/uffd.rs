//! userfaultfd: CPU accesses that wait, and the events that tell of them.
//!
//! A range registered here that is *moved* (`mremap`) stays registered, because the remap event is
//! asked for; the thread that moves it blocks until that event has been read. So the thread that
//! reads events must never move a range.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use linux_raw_sys::general as raw;
use linux_raw_sys::ioctl;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::mm::UserfaultfdFlags;

/// What an access in the kernel's name (a system call given trapped memory) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UffdMode {
    /// It waits like any other.
    KernelAndUser,
    /// It fails with `EFAULT`: all that an ordinary user gets where
    /// `vm.unprivileged_userfaultfd` is 0 and `/dev/userfaultfd` is closed to them.
    UserOnly,
}

/// userfaultfd is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum UffdError {
    /// Refused.
    #[error(
        "userfaultfd is refused ({source}): allow access to /dev/userfaultfd, or the system call (containers block it)"
    )]
    Refused {
        /// The system's error.
        source: io::Error,
    },
    /// The kernel lacks a feature.
    #[error("this kernel's userfaultfd lacks {feature} ({source})")]
    Lacks {
        /// Which.
        feature: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// Something happened to a registered range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread waits at an address.
    Fault {
        /// The page's address.
        addr: usize,
        /// It wants to store.
        write: bool,
        /// The thread, if the kernel says so.
        tid: Option<u32>,
    },
    /// A range was moved (by us); its mover may go on.
    Remap,
    /// Anything else.
    Other,
}

/// Ends a wait for events, from any thread, for good.
#[derive(Debug)]
pub struct Stop(OwnedFd);

impl Stop {
    /// Not stopped yet.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> io::Result<Stop> {
        Ok(Stop(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Stops.
    pub fn stop(&self) {
        // Cannot fail but by overflow, which is stopped as well.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// A userfaultfd context for missing pages.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
    mode: UffdMode,
    names_threads: bool,
}

/// Creates a context: the most capable kind that we may have.
pub(crate) fn create() -> Result<(OwnedFd, UffdMode), UffdError> {
    const NEW: libc::c_ulong = 0xAA00; // USERFAULTFD_IOC_NEW: _IO(0xAA, 0)
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    if let Ok(device) = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd") {
        // SAFETY: the ioctl takes flags by value and returns a new descriptor or an error.
        let fd = unsafe { libc::ioctl(device.as_raw_fd(), NEW as _, flags) };
        if fd >= 0 {
            // SAFETY: a descriptor just created, owned by nobody else.
            return Ok((unsafe { OwnedFd::from_raw_fd(fd) }, UffdMode::KernelAndUser));
        }
    }
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: a context has no effect on memory before ranges are registered with it.
    if let Ok(fd) = unsafe { rustix::mm::userfaultfd(flags) } {
        return Ok((fd, UffdMode::KernelAndUser));
    }
    let user_only = UserfaultfdFlags::from_bits_retain(raw::UFFD_USER_MODE_ONLY);
    // SAFETY: as above.
    match unsafe { rustix::mm::userfaultfd(flags | user_only) } {
        Ok(fd) => Ok((fd, UffdMode::UserOnly)),
        Err(source) => Err(UffdError::Refused { source: source.into() }),
    }
}

/// Performs an ioctl whose argument is a struct of its own type.
pub(crate) fn control<T>(fd: &OwnedFd, request: u32, arg: &mut T) -> io::Result<i32> {
    // SAFETY: every caller pairs a request with the struct that the kernel's headers give it; the
    // kernel reads and writes only that struct.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, std::ptr::from_mut(arg)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(crate) fn handshake(fd: &OwnedFd, features: u64) -> io::Result<()> {
    let mut api = raw::uffdio_api { api: 0xAA, features, ioctls: 0 };
    control(fd, ioctl::UFFDIO_API, &mut api).map(drop)
}

impl Uffd {
    /// Opens a context.
    ///
    /// # Errors
    /// [`UffdError`].
    pub fn open() -> Result<Uffd, UffdError> {
        let remap = u64::from(raw::UFFD_FEATURE_EVENT_REMAP);
        let named = remap | u64::from(raw::UFFD_FEATURE_THREAD_ID);
        for (features, names_threads) in [(named, true), (remap, false)] {
            // A context whose handshake failed cannot shake hands again.
            let (fd, mode) = create()?;
            match handshake(&fd, features) {
                Ok(()) => return Ok(Uffd { fd, mode, names_threads }),
                Err(_) if names_threads => {}
                Err(source) => return Err(UffdError::Lacks { feature: "EVENT_REMAP", source }),
            }
        }
        Err(UffdError::Refused { source: io::ErrorKind::Unsupported.into() })
    }

    /// What accesses in the kernel's name do.
    #[must_use]
    pub fn mode(&self) -> UffdMode {
        self.mode
    }

    /// Events tell which thread waits.
    #[must_use]
    pub fn names_threads(&self) -> bool {
        self.names_threads
    }

    /// Waits for events and appends them. `false` once stopped.
    ///
    /// # Errors
    /// The system's.
    pub fn wait_events(&self, stop: &Stop, events: &mut Vec<Event>) -> io::Result<bool> {
        loop {
            let mut fds =
                [PollFd::new(&self.fd, PollFlags::IN), PollFd::new(&stop.0, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let [ours, stopped] = fds.map(|fd| !fd.revents().is_empty());
            if stopped {
                return Ok(false);
            }
            if ours && self.read(events)? {
                return Ok(true);
            }
        }
    }

    fn read(&self, events: &mut Vec<Event>) -> io::Result<bool> {
        const MESSAGE: usize = size_of::<raw::uffd_msg>();
        const _: () = assert!(MESSAGE == 32);
        let mut buf = [0u8; 64 * MESSAGE];
        let n = match rustix::io::read(&self.fd, &mut buf) {
            Ok(n) => n,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        for message in buf[..n].chunks_exact(MESSAGE) {
            events.push(self.decode(message));
        }
        Ok(n > 0)
    }

    /// The layout of `struct uffd_msg`: event, padding, then flags, address and thread of a fault.
    fn decode(&self, message: &[u8]) -> Event {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&message[at..at + 8]);
            u64::from_ne_bytes(bytes)
        };
        match message[0] {
            0x12 => Event::Fault {
                addr: (word(16) as usize) & !(crate::PAGE - 1),
                write: word(8) & 1 != 0,
                tid: self.names_threads.then_some(word(24) as u32),
            },
            0x14 => Event::Remap,
            _ => Event::Other,
        }
    }

    /// Registers a range of anonymous memory: accesses of pages not there wait.
    pub(crate) fn register(&self, addr: usize, len: usize) -> io::Result<()> {
        let mode = 1; // UFFDIO_REGISTER_MODE_MISSING
        register(&self.fd, addr, len, mode)
    }

    /// Lets the waiters of a range try again.
    ///
    /// # Errors
    /// The system's.
    pub fn wake(&self, addr: usize, len: usize) -> io::Result<()> {
        let mut range = raw::uffdio_range { start: addr as u64, len: len as u64 };
        control(&self.fd, ioctl::UFFDIO_WAKE, &mut range).map(drop)
    }

    /// Makes a missing page an error: accesses of it get SIGBUS (`BUS_MCEERR_AR`, with the address),
    /// system calls given it fail or are cut short; who waits for it is woken.
    ///
    /// This is how a thread is told that the page it waits for will not come. A signal sent to it
    /// would not do: the kernel lets a thread send a SIGBUS with an address only to itself
    /// (`EPERM` for every positive `si_code`), and one that waits inside a system call would not
    /// take it.
    ///
    /// # Errors
    /// The system's; kernels before 6.6 lack it.
    pub fn poison(&self, addr: usize, len: usize) -> io::Result<()> {
        #[repr(C)]
        struct Poison {
            range: raw::uffdio_range,
            mode: u64,
            updated: i64,
        }
        // _IOWR(0xAA, 0x08, struct uffdio_poison)
        const UFFDIO_POISON: u32 = 0xC000_0000 | (size_of::<Poison>() as u32) << 16 | 0xAA08;
        const _: () = assert!(UFFDIO_POISON == 0xC020_AA08);
        let range = raw::uffdio_range { start: addr as u64, len: len as u64 };
        let mut poison = Poison { range, mode: 0, updated: 0 };
        control(&self.fd, UFFDIO_POISON, &mut poison).map(drop)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

pub(crate) fn register(fd: &OwnedFd, addr: usize, len: usize, mode: u64) -> io::Result<()> {
    let range = raw::uffdio_range { start: addr as u64, len: len as u64 };
    let mut register = raw::uffdio_register { range, mode, ioctls: 0 };
    control(fd, ioctl::UFFDIO_REGISTER, &mut register).map(drop)
}
