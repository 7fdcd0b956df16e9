//! Numbers and layouts of the kernel's interface that no crate has, checked at compile time; and
//! the one function that issues an `ioctl`.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

use linux_raw_sys::general as raw;
use linux_raw_sys::ioctl as numbers;

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// `_IOC` as all architectures but a few old ones (mips, powerpc, sparc, alpha) encode it.
const fn ioc(direction: u32, group: u32, number: u32, size: usize) -> u32 {
    (direction << 30) | ((size as u32) << 16) | (group << 8) | number
}

const UFFDIO: u32 = raw::UFFDIO;
/// Makes a userfaultfd through `/dev/userfaultfd`; its argument are open flags.
pub(crate) const USERFAULTFD_IOC_NEW: u32 = ioc(NONE, UFFDIO, 0, 0);
pub(crate) const UFFDIO_POISON: u32 =
    ioc(READ | WRITE, UFFDIO, raw::_UFFDIO_POISON, size_of::<raw::uffdio_poison>());
pub(crate) const PAGEMAP_SCAN: u32 =
    ioc(READ | WRITE, b'f' as u32, 16, size_of::<raw::pm_scan_arg>());

pub(crate) const MISSING: u64 = raw::UFFDIO_REGISTER_MODE_MISSING as u64;
pub(crate) const WRITE_PROTECT: u64 = raw::UFFDIO_REGISTER_MODE_WP as u64;

/// Bytes of one message read from a userfaultfd.
pub(crate) const MESSAGE_BYTES: usize = size_of::<raw::uffd_msg>();
/// Where a message's argument starts.
pub(crate) const MESSAGE_ARG: usize = offset_of!(raw::uffd_msg, arg);

// The encoding is right on this architecture if it yields the numbers that linux-raw-sys has.
const _: () = {
    const API: u32 = ioc(READ | WRITE, UFFDIO, raw::_UFFDIO_API, size_of::<raw::uffdio_api>());
    assert!(API == numbers::UFFDIO_API);
    const WAKE: u32 = ioc(READ, UFFDIO, raw::_UFFDIO_WAKE, size_of::<raw::uffdio_range>());
    assert!(WAKE == numbers::UFFDIO_WAKE);
    assert!(size_of::<raw::uffdio_poison>() == 32);
    assert!(UFFDIO_POISON == 0xc020_aa08);
    assert!(size_of::<raw::pm_scan_arg>() == 96);
    assert!(PAGEMAP_SCAN == 0xc060_6610);
    assert!(USERFAULTFD_IOC_NEW == 0xaa00);
    assert!(size_of::<raw::page_region>() == 24);
    assert!(MESSAGE_BYTES == 32 && MESSAGE_ARG == 8);
    assert!(offset_of!(raw::uffd_msg__bindgen_ty_1__bindgen_ty_1, flags) == 0);
    assert!(offset_of!(raw::uffd_msg__bindgen_ty_1__bindgen_ty_1, address) == 8);
    assert!(offset_of!(raw::uffd_msg__bindgen_ty_1__bindgen_ty_1, feat) == 16);
    assert!(offset_of!(raw::uffd_msg__bindgen_ty_1__bindgen_ty_3, len) == 16);
};

/// `ioctl(fd, number, &mut argument)`, repeated while signals interrupt it.
///
/// # Safety
/// `number` must be a request whose argument is a pointer to a `T`, and whatever it does to memory
/// other than `argument` must be sound.
pub(crate) unsafe fn ioctl<T>(
    fd: BorrowedFd<'_>,
    number: u32,
    argument: &mut T,
) -> io::Result<u32> {
    loop {
        // SAFETY: `fd` is open; by the caller's word the request reads and writes a `T` at the
        // pointer, which is valid and exclusive for the call, and is sound otherwise.
        let rc = unsafe {
            libc::ioctl(fd.as_raw_fd(), number as libc::Ioctl, std::ptr::from_mut(argument))
        };
        if let Ok(value) = u32::try_from(rc) {
            return Ok(value);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
