//! What it takes to get a thread out of a wait for a page that will not come, of which the library
//! uses the last resort only: poison.
//!
//! What was seen on 6.18:
//!
//! - **A load or store that waits** can be interrupted. The thread sleeps interruptibly; a signal
//!   with a handler wakes it, the handler runs, and when it returns the access is made again and
//!   traps again: another `Fault`, which can succeed. A signal that is blocked or
//!   ignored does not disturb the wait.
//! - **A system call that waits** (`write(fd, trapped, n)`) cannot. A handler runs only when the
//!   call is over, and meanwhile the pending signal keeps the thread from sleeping: it retries the
//!   page as fast as it can, tells the reader over 100,000 faults a second and burns a CPU. *Any*
//!   signal does that, a profiler's too. `FileMap::poison` ends it:
//!   the call returns `EFAULT`. (A call that pins pages, like `process_vm_readv`, sleeps
//!   uninterruptibly instead: no storm, but also no signal; poison ends it as well.)
//! - So look at `stance` first: signal a thread that waits in user mode, poison the page of one
//!   that waits in a system call.
//! - **`si_code`.** A thread may send a code of the kernel's (`BUS_ADRERR`) only to itself:
//!   `rt_tgsigqueueinfo` compares the *thread* ids and says `EPERM` otherwise. So the signal comes
//!   with `SI_QUEUE`; `si_addr` holds the address all the same, as the kernel hands the bytes over
//!   as they are, and so does `si_value`. A page that is poisoned raises a genuine `BUS_ADRERR`.
//! - Without a handler for `SIGBUS` the process dies of it, as with any mapping whose file was cut
//!   off. A Rust program has a handler, though: the standard library's, which looks for stack
//!   overflows. It takes the first signal, restores the default and returns; the access traps
//!   again, and the process dies of the second. So send one for *every* fault told, not one per
//!   wait.

use std::fs;
use std::io;
use std::mem::offset_of;

/// Queues `SIGBUS` for the thread `tid` of this process, with `addr` as `si_addr` and as
/// `si_value`, and `SI_QUEUE` as `si_code`.
///
/// Only for a thread that waits in user mode.
///
/// `ESRCH` if there is no such thread; `EAGAIN` if the limit of queued signals
/// (`RLIMIT_SIGPENDING`) is reached.
pub(crate) fn send_sigbus(tid: u32, addr: usize) -> io::Result<()> {
    let info = QueuedSignal {
        signo: libc::SIGBUS,
        errno: 0,
        code: libc::SI_QUEUE,
        _align: 0,
        addr,
        value: addr,
        _rest: [0; REST],
    };
    // SAFETY: the kernel reads a `siginfo_t` at the pointer, of whose size and layout `info` is
    // (asserted below). What a signal does to this process is the program's own affair.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            libc::c_long::from(std::process::id() as libc::pid_t),
            libc::c_long::from(tid),
            libc::c_long::from(libc::SIGBUS),
            std::ptr::from_ref(&info),
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Where a thread is while it does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stance {
    /// Stopped at an instruction of the program: a load or store that waits for its page.
    UserMode,
    /// Inside this system call.
    SystemCall(i64),
    /// Running; it waits for nothing at the moment.
    Running,
}

/// Where the thread `tid` of this process is.
///
/// Fails if there is no such thread, or if the kernel does not tell (`CONFIG_HAVE_ARCH_TRACEHOOK`, `/proc`).
pub(crate) fn stance(tid: u32) -> io::Result<Stance> {
    let path = format!("/proc/self/task/{tid}/syscall");
    let text = fs::read_to_string(&path)?;
    let first = text.split_ascii_whitespace().next().unwrap_or_default();
    match (first, first.parse()) {
        ("running", _) => Ok(Stance::Running),
        (_, Ok(-1)) => Ok(Stance::UserMode),
        (_, Ok(number)) => Ok(Stance::SystemCall(number)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{path} holds {text:?}"))),
    }
}

const REST: usize = size_of::<libc::siginfo_t>() - 32;

/// A `siginfo_t` with both the address of a fault and the value of a queued signal.
#[repr(C)]
struct QueuedSignal {
    signo: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    _align: libc::c_int,
    addr: usize,
    value: usize,
    _rest: [u8; REST],
}

const _: () = {
    assert!(size_of::<QueuedSignal>() == size_of::<libc::siginfo_t>());
    assert!(align_of::<QueuedSignal>() == align_of::<libc::siginfo_t>());
    assert!(offset_of!(QueuedSignal, signo) == offset_of!(libc::siginfo_t, si_signo));
    assert!(offset_of!(QueuedSignal, code) == offset_of!(libc::siginfo_t, si_code));
    assert!(offset_of!(QueuedSignal, addr) == 16 && offset_of!(QueuedSignal, value) == 24);
};
