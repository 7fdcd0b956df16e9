//! What a thread that waits inside the kernel has called.
//!
//! `/proc/<thread>/syscall` names the system call of a thread that is blocked in one, and says
//! `running` of one that is not blocked (yet). It takes `PTRACE_MODE_ATTACH`, which a process with
//! `CAP_SYS_PTRACE` has over all it can see. Seen on 6.18: a thread that a fanotify group has asked about
//! is blocked until the answer, or about to be. A thread that issues requests of io_uring does so in
//! whatever call it is in, also at its end, and reads and writes only; all else is left to workers, which
//! say any call, as kernel threads do, but have neither stack nor program (`0x0 0x0`, in the last words).
//!
//! Numbers of 32-bit programs mean other calls. On x86 none that shares a number with one named here
//! reads, writes or maps a file (`restart_syscall`, `exit`, `lseek`, `openat`, `mkdirat`, ...), nor opens one
//! with one of those for opens: a thread that waits to do that is not in one of them.

use std::sync::OnceLock;

/// What a call does to the file that it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Opens the file, and does not empty it.
    Open,
    /// Reads the range that it was told with; or changes it, by a request of io_uring that is issued in
    /// passing.
    Read,
    /// Writes the range that it was told with, or, appending, from the end of file on.
    Write,
    /// Reads, changes or cuts the file somewhere from the first byte told on. It maps nothing.
    Change,
    /// Cuts it, by name: whoever makes this call need not have the file open while it waits.
    Truncate,
    /// It may map the file; or nobody knows what it is.
    Unknown,
}

/// How often a thread is looked at that is not blocked yet.
const TRIES: u32 = 20;

impl Call {
    /// What the thread with this number, which is about to wait or waits, has called; `opening`: it is
    /// known to open the file.
    #[must_use]
    pub fn of(thread: u32, opening: bool) -> Call {
        if !names_our_threads() {
            return if opening { Call::Change } else { Call::Unknown };
        }
        let parse = if opening { Call::parse_open } else { Call::parse };
        let path = format!("/proc/{thread}/syscall");
        for _ in 0..TRIES {
            match std::fs::read_to_string(&path) {
                Ok(text) if text.starts_with("running") => std::thread::yield_now(),
                Ok(text) => return parse(&text),
                Err(_) => break,
            }
        }
        if opening { Call::Change } else { Call::Unknown }
    }

    /// A thread that was in [`Truncate`](Call::Truncate) may still be: it is, or it runs. Nobody's number is in none.
    #[must_use]
    pub fn may_cut(thread: u32) -> bool {
        match std::fs::read_to_string(format!("/proc/{thread}/syscall")) {
            Ok(text) => text.starts_with("running") || Call::parse(&text) == Call::Truncate,
            Err(_) => !names_our_threads(),
        }
    }

    /// An open that cannot be told not to empty the file is a change.
    fn parse_open(text: &str) -> Call {
        if is_of_the_kernel(text) {
            return Call::Change;
        }
        let mut words = text.split_ascii_whitespace();
        let number = words.next().and_then(|n| n.parse::<i64>().ok());
        let flags = match number {
            #[cfg(target_arch = "x86_64")]
            Some(libc::SYS_open) => words.nth(1),
            Some(libc::SYS_openat | libc::SYS_open_by_handle_at) => words.nth(2),
            Some(libc::SYS_execve | libc::SYS_execveat) => return Call::Open,
            _ => None,
        };
        let flags = flags.and_then(|word| word.strip_prefix("0x"));
        match flags.and_then(|word| u64::from_str_radix(word, 16).ok()) {
            Some(flags) if flags & libc::O_TRUNC as u64 == 0 => Call::Open,
            _ => Call::Change,
        }
    }

    fn parse(text: &str) -> Call {
        if is_of_the_kernel(text) {
            return Call::Change;
        }
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
            Some(libc::SYS_truncate) => Call::Truncate,
            Some(
                libc::SYS_ftruncate
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

/// It is a line of a thread without user stack and program: a kernel thread's, or a worker's of io_uring.
fn is_of_the_kernel(text: &str) -> bool {
    let mut words = text.split_ascii_whitespace().rev();
    let both = (words.next(), words.next());
    both == (Some("0x0"), Some("0x0"))
}

/// The request of an `ioctl` is one that clones or compares ranges of files.
fn clones(request: &str) -> bool {
    // `FICLONE`, `FICLONERANGE`, `FIDEDUPERANGE`.
    ["0x40049409", "0x4020940d", "0xc0189436"].contains(&request)
}

/// `/proc` numbers threads as this process sees them, and not as another namespace does.
fn names_our_threads() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let own = std::fs::read_link("/proc/self");
        own.is_ok_and(|own| own.as_os_str() == &*std::process::id().to_string())
    })
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
        assert_eq!(Call::parse("-1 0x7ffd 0x7f\n"), Call::Change);
        assert_eq!(Call::parse(&line(libc::SYS_truncate)), Call::Truncate);
        let worker = format!("{} 0xb 0x7f 0x1 0x0 0x0 0x0 0x0 0x0\n", libc::SYS_read);
        assert_eq!(Call::parse(&worker), Call::Change);
        assert_eq!(Call::parse_open(&worker), Call::Change);
        let ioctl = |request: u32| format!("{} 0x3 {request:#x} 0x4 0x0\n", libc::SYS_ioctl);
        assert_eq!(Call::parse(&ioctl(0x4004_9409)), Call::Change);
        assert_eq!(Call::parse(&ioctl(0x5401)), Call::Unknown);
        assert_eq!(Call::parse(&line(libc::SYS_mmap)), Call::Unknown);
        // The 32-bit calls of x86-64's x32 have numbers of their own.
        assert_eq!(Call::parse(&line(0x4000_0000)), Call::Unknown);
        let open =
            |words: &str| Call::parse_open(&format!("{} {words} 0x0 0x7f 0x7f", libc::SYS_openat));
        assert_eq!(open("0xffffff9c 0x7f 0x80002 0x1b6"), Call::Open);
        assert_eq!(open("0xffffff9c 0x7f 0x80201 0x1b6"), Call::Change);
        assert_eq!(
            Call::parse_open(&format!("{} 0xffffff9c 0x7f", libc::SYS_openat)),
            Call::Change
        );
        assert_eq!(Call::parse_open(&format!("{} 0x0 0x7f", libc::SYS_execve)), Call::Open);
        assert_eq!(Call::parse_open(&format!("{} 0x0 0x7f 0x0", libc::SYS_openat2)), Call::Change);
        for nonsense in ["", "\n", "running\n", "0x0", "99999999999999999999 0x0"] {
            assert_eq!(Call::parse(nonsense), Call::Unknown, "{nonsense:?}");
            assert_eq!(Call::parse_open(nonsense), Call::Change, "{nonsense:?}");
        }
    }

    #[test]
    fn of_a_thread_that_waits_and_of_nobody() {
        assert_eq!(Call::of(u32::MAX, false), Call::Unknown);
        assert_eq!(Call::of(u32::MAX, true), Call::Change);
        assert!(!Call::may_cut(u32::MAX));
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let (tell, told) = std::sync::mpsc::channel();
        let waiting = std::thread::spawn(move || {
            tell.send(crate::current_tid()).expect("somebody waits for it");
            std::io::Read::read(&mut &reader, &mut [0])
        });
        let thread = told.recv().expect("it starts");
        while Call::of(thread, false) != Call::Read {
            std::thread::yield_now();
        }
        drop(writer);
        assert_eq!(waiting.join().expect("no panic").expect("reads"), 0);
    }
}
