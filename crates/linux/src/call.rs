//! What a thread that waits inside the kernel has called.
//!
//! `/proc/<thread>/syscall` names the system call of a thread that is blocked in one, and says
//! `running` of one that is not blocked (yet). It takes `PTRACE_MODE_ATTACH`, which a process with
//! `CAP_SYS_PTRACE` has over all it can see. Seen on 6.18: a thread that a fanotify group has asked about
//! is blocked until the answer, or about to be; a worker of io_uring, which is never in a system call of
//! its own, says `-1`.
//!
//! Numbers of 32-bit programs mean other calls. None of those that share a number with one named here
//! reads, writes or maps a file (x86: `restart_syscall`, `exit`, `lseek`, `openat`, `mkdirat`, ...), so a
//! thread that waits to touch a file is not in one of them.

/// What a call does to the file that it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Reads the range that it was told with.
    Read,
    /// Writes the range that it was told with, or, appending, from the end of file on.
    Write,
    /// Reads, changes or cuts the file somewhere from the first byte told on. It maps nothing.
    Change,
    /// It may map the file; or nobody knows what it is.
    Unknown,
}

/// How often a thread is looked at that is not blocked yet.
const TRIES: u32 = 20;

impl Call {
    /// What the thread with this number, which is about to wait or waits, has called.
    #[must_use]
    pub fn of(thread: u32) -> Call {
        let path = format!("/proc/{thread}/syscall");
        for _ in 0..TRIES {
            match std::fs::read_to_string(&path) {
                Ok(text) if text.starts_with("running") => std::thread::yield_now(),
                Ok(text) => return Call::parse(&text),
                Err(_) => break,
            }
        }
        Call::Unknown
    }

    fn parse(text: &str) -> Call {
        let mut words = text.split_ascii_whitespace();
        let number = words.next().and_then(|n| n.parse::<i64>().ok());
        match number {
            Some(libc::SYS_ioctl) if words.nth(1).is_some_and(clones) => Call::Change,
            Some(
                libc::SYS_read
                | libc::SYS_pread64
                | libc::SYS_readv
                | libc::SYS_preadv
                | libc::SYS_preadv2,
            ) => Call::Read,
            Some(
                libc::SYS_write
                | libc::SYS_pwrite64
                | libc::SYS_writev
                | libc::SYS_pwritev
                | libc::SYS_pwritev2,
            ) => Call::Write,
            Some(
                libc::SYS_truncate
                | libc::SYS_ftruncate
                | libc::SYS_fallocate
                | libc::SYS_copy_file_range
                | libc::SYS_sendfile
                | libc::SYS_splice
                | libc::SYS_io_uring_enter
                | -1,
            ) => Call::Change,
            _ => Call::Unknown,
        }
    }
}

/// The request of an `ioctl` is one that clones or compares ranges of files.
fn clones(request: &str) -> bool {
    // `FICLONE`, `FICLONERANGE`, `FIDEDUPERANGE`.
    ["0x40049409", "0x4020940d", "0xc0189436"].contains(&request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_by_their_numbers() {
        let line = |number: i64| format!("{number} 0x3 0x7f 0x1000 0x0 0x0 0x0 0x7ffd 0x7f\n");
        assert_eq!(Call::parse(&line(libc::SYS_pread64)), Call::Read);
        assert_eq!(Call::parse(&line(libc::SYS_writev)), Call::Write);
        assert_eq!(Call::parse(&line(libc::SYS_fallocate)), Call::Change);
        assert_eq!(Call::parse("-1 0x0 0x0\n"), Call::Change);
        let ioctl = |request: u32| format!("{} 0x3 {request:#x} 0x4 0x0\n", libc::SYS_ioctl);
        assert_eq!(Call::parse(&ioctl(0x4004_9409)), Call::Change);
        assert_eq!(Call::parse(&ioctl(0x5401)), Call::Unknown);
        assert_eq!(Call::parse(&line(libc::SYS_mmap)), Call::Unknown);
        // The 32-bit calls of x86-64's x32 have numbers of their own.
        assert_eq!(Call::parse(&line(0x4000_0000)), Call::Unknown);
        for nonsense in ["", "\n", "running\n", "0x0", "99999999999999999999 0x0"] {
            assert_eq!(Call::parse(nonsense), Call::Unknown, "{nonsense:?}");
        }
    }

    #[test]
    fn of_a_thread_that_waits_and_of_nobody() {
        assert_eq!(Call::of(u32::MAX), Call::Unknown);
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let (tell, told) = std::sync::mpsc::channel();
        let waiting = std::thread::spawn(move || {
            tell.send(crate::current_tid()).expect("somebody waits for it");
            std::io::Read::read(&mut &reader, &mut [0])
        });
        let thread = told.recv().expect("it starts");
        while Call::of(thread) != Call::Read {
            std::thread::yield_now();
        }
        drop(writer);
        assert_eq!(waiting.join().expect("no panic").expect("reads"), 0);
    }
}
