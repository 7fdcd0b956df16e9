//! Telling a thread that the memory it waits for will not come.
//!
//! What was found on Linux 6.18 (tests in `tests/trap.rs`): a thread that waits in a fault of its own
//! (user mode) takes a SIGBUS at once, and when its handler returns the access is tried again. A
//! thread that waits in a fault inside a system call does not take it before the fault is resolved;
//! poisoning the page resolves it: the call fails with `EFAULT` (or is cut short).

use std::fs;
use std::io;

/// Sends SIGBUS to one thread of this process, as the kernel does for an access past end of file:
/// `si_code` is `BUS_ADRERR`, `si_addr` the address.
///
/// # Errors
/// The system's: `ESRCH` if the thread is gone.
pub fn send_sigbus(tid: u32, addr: usize) -> io::Result<()> {
    /// `siginfo_t` as the kernel lays it out for a fault on 64-bit machines.
    #[repr(C)]
    struct Info {
        signo: i32,
        errno: i32,
        code: i32,
        pad: i32,
        addr: u64,
        rest: [u64; 13],
    }
    const _: () = assert!(size_of::<Info>() == size_of::<libc::siginfo_t>());
    let info = Info {
        signo: libc::SIGBUS,
        errno: 0,
        code: libc::BUS_ADRERR,
        pad: 0,
        addr: addr as u64,
        rest: [0; 13],
    };
    // SAFETY: the call reads a `siginfo_t`, which `info` is laid out as.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            std::process::id(),
            tid,
            libc::SIGBUS,
            &raw const info,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether a thread of this process, known to be blocked, blocks inside a system call (as opposed to
/// a fault of its own). `None` if the kernel does not say.
#[must_use]
pub fn in_system_call(tid: u32) -> Option<bool> {
    let text = fs::read_to_string(format!("/proc/self/task/{tid}/syscall")).ok()?;
    match text.split_whitespace().next()? {
        "running" => None,
        "-1" => Some(false),
        _ => Some(true),
    }
}
