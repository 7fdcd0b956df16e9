//! Getting a userfaultfd, and agreeing with the kernel on what it does.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use linux_raw_sys::{general as raw, ioctl as numbers};
use rustix::fs::{Mode, OFlags};

use crate::{abi, limits};

/// Which accesses a userfaultfd catches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UffdMode {
    /// Loads and stores of the program and those that the kernel makes for its system calls.
    KernelAndUser,
    /// Loads and stores only; a system call that meets a trapped page fails with `EFAULT`.
    UserOnly,
}

/// A set of `UFFD_FEATURE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Features(u64);

impl Features {
    pub(crate) const EVENT_REMAP: Features = Features(raw::UFFD_FEATURE_EVENT_REMAP as u64);
    pub(crate) const THREAD_ID: Features = Features(raw::UFFD_FEATURE_THREAD_ID as u64);
    pub(crate) const EXACT_ADDRESS: Features = Features(raw::UFFD_FEATURE_EXACT_ADDRESS as u64);
    pub(crate) const POISON: Features = Features(raw::UFFD_FEATURE_POISON as u64);
    pub(crate) const WP_ASYNC: Features = Features(raw::UFFD_FEATURE_WP_ASYNC as u64);
    pub(crate) const WP_UNPOPULATED: Features = Features(raw::UFFD_FEATURE_WP_UNPOPULATED as u64);

    const NAMES: [(Features, &str); 6] = [
        (Features::EVENT_REMAP, "EVENT_REMAP"),
        (Features::THREAD_ID, "THREAD_ID"),
        (Features::EXACT_ADDRESS, "EXACT_ADDRESS"),
        (Features::POISON, "POISON"),
        (Features::WP_ASYNC, "WP_ASYNC"),
        (Features::WP_UNPOPULATED, "WP_UNPOPULATED"),
    ];

    pub(crate) fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    fn names(self) -> Vec<&'static str> {
        Features::NAMES.iter().filter(|(f, _)| self.contains(*f)).map(|&(_, n)| n).collect()
    }
}

impl std::ops::BitOr for Features {
    type Output = Features;
    fn bitor(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }
}

/// Why there is no userfaultfd to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UffdError {
    /// The kernel was built without userfaultfd.
    #[error("this kernel has no userfaultfd (CONFIG_USERFAULTFD)")]
    NotInKernel,
    /// Every way to get one was refused.
    #[error("{}", refusal(device, call, *unprivileged))]
    Refused {
        /// What opening `/dev/userfaultfd` said; `None` if that way was not tried.
        device: Option<io::Error>,
        /// What the system call said, in the least demanding mode that was asked for.
        call: io::Error,
        /// `vm.unprivileged_userfaultfd`, if it can be read.
        unprivileged: Option<u64>,
    },
    /// The kernel lacks features without which nothing works.
    #[error("this kernel's userfaultfd lacks {}", missing.join(", "))]
    MissingFeatures {
        /// Their names, without `UFFD_FEATURE_`.
        missing: Vec<&'static str>,
    },
    /// Something else failed.
    #[error("{call}: {source}")]
    Os {
        /// The system call.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
}

fn refusal(
    device: &Option<io::Error>,
    call: &io::Error,
    unprivileged: Option<u64>,
) -> impl fmt::Display {
    let mut text = String::from("userfaultfd is refused");
    if let Some(error) = device {
        text += &format!("; /dev/userfaultfd: {error} (give this user access to it)");
    }
    text += &format!("; userfaultfd(2): {call}");
    text += match (call.raw_os_error(), unprivileged) {
        (Some(libc::EPERM), Some(0)) => {
            " (vm.unprivileged_userfaultfd is 0 and CAP_SYS_PTRACE is missing; if even the \
             user-mode-only descriptor was refused, a seccomp filter or container policy forbids it)"
        }
        (Some(libc::EPERM), _) => " (a seccomp filter or container policy forbids it)",
        (Some(libc::EMFILE | libc::ENFILE), _) => " (too many open files)",
        _ => "",
    };
    text
}

/// A descriptor in the first of `modes` that is to be had, with all of `required` and what there
/// is of `optional`.
pub(crate) fn connect(
    modes: &[UffdMode],
    required: Features,
    optional: Features,
) -> Result<(OwnedFd, UffdMode, Features), UffdError> {
    // An agreement cannot be changed, so a descriptor that is thrown away asks what there is.
    let (asking, mode) = create(modes)?;
    let offered = agree(asking.as_fd(), Features(0))?;
    if !offered.contains(required) {
        return Err(UffdError::MissingFeatures {
            missing: Features(required.0 & !offered.0).names(),
        });
    }
    let (fd, _) = create(&[mode])?;
    let wanted = Features(required.0 | (optional.0 & offered.0));
    agree(fd.as_fd(), wanted)?;
    Ok((fd, mode, wanted))
}

fn agree(fd: BorrowedFd<'_>, wanted: Features) -> Result<Features, UffdError> {
    let mut api = raw::uffdio_api { api: raw::UFFD_API.into(), features: wanted.0, ioctls: 0 };
    // SAFETY: UFFDIO_API takes a `uffdio_api` and touches nothing else.
    unsafe { abi::ioctl(fd, numbers::UFFDIO_API, &mut api) }
        .map_err(|source| UffdError::Os { call: "ioctl(UFFDIO_API)", source })?;
    Ok(Features(api.features))
}

fn create(modes: &[UffdMode]) -> Result<(OwnedFd, UffdMode), UffdError> {
    let mut device = None;
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for &mode in modes {
        let mut flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        match mode {
            UffdMode::KernelAndUser => match create_by_device(flags) {
                Ok(fd) => return Ok((fd, mode)),
                Err(e) => device = Some(e),
            },
            UffdMode::UserOnly => flags |= raw::UFFD_USER_MODE_ONLY.cast_signed(),
        }
        // SAFETY: takes flags only, and gives a new descriptor or fails.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        match own(fd) {
            Ok(fd) => return Ok((fd, mode)),
            Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => return Err(UffdError::NotInKernel),
            Err(e) => refused = e,
        }
    }
    Err(UffdError::Refused {
        device,
        call: refused,
        unprivileged: limits::number_in("/proc/sys/vm/unprivileged_userfaultfd").ok(),
    })
}

fn create_by_device(flags: i32) -> io::Result<OwnedFd> {
    let device =
        rustix::fs::open("/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: the request takes flags by value and gives a new descriptor or fails.
    let fd =
        unsafe { libc::ioctl(device.as_raw_fd(), abi::USERFAULTFD_IOC_NEW as libc::Ioctl, flags) };
    own(fd.into())
}

/// The descriptor that a system call has just returned, or its error.
fn own(fd: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(fd) {
        // SAFETY: only called with the result of a call that creates a descriptor: `fd` is open
        // and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
