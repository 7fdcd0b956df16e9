//! Leases: the proof that nobody else has a file open, and notice of whoever is about to.
//!
//! Seen on 6.18, on ext4, xfs, btrfs and tmpfs, on one's own files (all files with `CAP_LEASE`):
//!
//! - A write lease on our only description is granted if and only if nobody else has the file open or
//!   mapped, our own process included; duplicates of the description, and mappings made through it, do
//!   not count. A read lease needs a description for reading and that nobody can write.
//! - While it is held, an `open` and a `truncate` by name wait until it is given up, for
//!   `/proc/sys/fs/lease-break-time` seconds at most (45 by default), and then go ahead. From the
//!   moment they begin to wait, [`HostFile::has_lease`] says `false`, and it does so after that time
//!   as well. An opener with `O_NONBLOCK` gets `EAGAIN`, and has the same effect.
//! - The holder is told by a signal, `SIGIO`, whose default action would end the process: it is sent
//!   to a thread of ours in which it is blocked ([`LeaseBreaks`]), so no handler, mask or other thread
//!   of the program is concerned. Giving a lease up also forgets whom to signal: the next would be told
//!   to the whole process, and end it. So that is said anew before each.
//! - It says nothing about a description that is shared with another process; a
//!   [private](HostFile::is_private) one is not.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::file::HostFile;
use crate::tid::{current_pid, current_tid};

/// A thread that is told of breaking leases.
#[derive(Debug)]
pub struct LeaseBreaks {
    tid: u32,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    process: i32,
}

impl LeaseBreaks {
    /// Starts the thread. It calls `told` whenever some lease taken with it may be breaking: ask
    /// [`HostFile::has_lease`] which.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(told: impl Fn() + Send + 'static) -> io::Result<LeaseBreaks> {
        let stopping = Arc::new(AtomicBool::new(false));
        let (ready, started) = std::sync::mpsc::channel();
        let stop = Arc::clone(&stopping);
        let thread =
            std::thread::Builder::new().name("pageferry-lease".into()).spawn(move || {
                block_signals();
                // Nobody waits for it any more if the starter is gone.
                let _ = ready.send(current_tid());
                while wait_for_signal() {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    told();
                }
            })?;
        let tid = started.recv().map_err(|_| io::Error::other("the lease thread did not start"))?;
        Ok(LeaseBreaks { tid, stopping, thread: Some(thread), process: current_pid() })
    }
}

impl Drop for LeaseBreaks {
    fn drop(&mut self) {
        if current_pid() != self.process {
            return;
        }
        self.stopping.store(true, Ordering::Release);
        // SAFETY: sends a signal to a thread of ours in which it is blocked and waited for; the thread
        // is not joined yet, so the number is still its own.
        unsafe {
            libc::syscall(libc::SYS_tgkill, self.process, self.tid.cast_signed(), libc::SIGIO);
        }
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // It does not panic unless `told` does, which has said so then.
            let _ = thread.join();
        }
    }
}

/// Blocks every signal in this thread.
fn block_signals() {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: fills the set.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: the set is filled; the old mask is not asked for. Only this thread is concerned.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut()) };
}

/// Waits for `SIGIO`. `false` if that cannot be done.
fn wait_for_signal() -> bool {
    let mut wanted = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: empties the set.
    unsafe { libc::sigemptyset(wanted.as_mut_ptr()) };
    // SAFETY: the set is initialised above.
    unsafe { libc::sigaddset(wanted.as_mut_ptr(), libc::SIGIO) };
    loop {
        // SAFETY: the set is initialised; nothing else is asked for.
        let signal = unsafe { libc::sigwaitinfo(wanted.as_ptr(), std::ptr::null_mut()) };
        if signal == libc::SIGIO {
            return true;
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return false;
        }
    }
}

/// `struct f_owner_ex`.
#[repr(C)]
struct Owner {
    kind: libc::c_int,
    pid: libc::c_int,
}

const F_SETOWN_EX: libc::c_int = 15;
const F_OWNER_TID: libc::c_int = 0;

impl HostFile {
    /// The lease that proves the most for this file: for writing if it is open for writing, else for
    /// reading.
    fn lease_kind(&self) -> libc::c_int {
        if self.is_writable() { libc::F_WRLCK } else { libc::F_RDLCK }
    }

    /// Has the signals of this file's leases sent to `breaks`, which must outlive them.
    pub fn send_breaks_to(&self, breaks: &LeaseBreaks) {
        self.lease_tid.store(breaks.tid, Ordering::Release);
    }

    /// Says where the signal of the next lease goes.
    fn set_owner(&self) -> io::Result<()> {
        let tid = self.lease_tid.load(Ordering::Acquire);
        if tid == 0 {
            return Err(io::Error::other("nobody is there to be told of who waits for a lease"));
        }
        let owner = Owner { kind: F_OWNER_TID, pid: tid.cast_signed() };
        let fd = self.as_fd().as_raw_fd();
        // SAFETY: reads an `f_owner_ex` at the pointer.
        let rc = unsafe { libc::fcntl(fd, F_SETOWN_EX, std::ptr::from_ref(&owner)) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Takes the lease. Granted: at this moment nobody else has the file open or mapped (open for
    /// reading: can write to it), unless through a description shared with us.
    ///
    /// # Errors
    /// `EAGAIN`: somebody has. `EACCES`: not our file. `EINVAL`: the file system has no leases. `ESRCH`,
    /// or no number: [`send_breaks_to`](HostFile::send_breaks_to) was not called, or its thread is gone.
    pub fn take_lease(&self) -> io::Result<()> {
        self.set_owner()?;
        self.set_lease(self.lease_kind())
    }

    /// Gives it up: whoever waited goes on.
    pub fn drop_lease(&self) {
        // It fails only if there is none.
        let _ = self.set_lease(libc::F_UNLCK);
    }

    fn set_lease(&self, kind: libc::c_int) -> io::Result<()> {
        // SAFETY: takes numbers only; the descriptor is open.
        let rc = unsafe { libc::fcntl(self.as_fd().as_raw_fd(), libc::F_SETLEASE, kind) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The lease is held and nobody waits for its end.
    #[must_use]
    pub fn has_lease(&self) -> bool {
        // SAFETY: takes numbers only; the descriptor is open.
        let kind = unsafe { libc::fcntl(self.as_fd().as_raw_fd(), libc::F_GETLEASE) };
        kind == self.lease_kind()
    }
}
