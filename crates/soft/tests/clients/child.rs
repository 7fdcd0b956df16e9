//! Other processes.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::FdFlags;

const MARK: &str = "PAGEFERRY_TEST_CLIENT";

/// In the parent: runs the test `name` once more in a process of its own, as another user if said so,
/// with a descriptor, and fails unless it passes there.
pub(crate) fn again(name: &str, user: Option<u32>, memory: &OwnedFd) {
    rustix::io::fcntl_setfd(memory, FdFlags::empty()).expect("setfd");
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(MARK, memory.as_raw_fd().to_string());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let output = command.output().expect("run the test binary");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", output.status);
    assert!(said.contains("1 passed"), "the child ran no test:\n{said}");
}

/// In the child: the descriptor.
pub(crate) fn handed() -> Option<OwnedFd> {
    let fd = std::env::var(MARK).ok()?.parse().expect("a number");
    // SAFETY: inherited, and nobody else's in this process.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs `body` in a forked child; its result, or the signal that ended it.
pub(crate) fn fork(body: impl FnOnce() -> i32) -> Result<i32, i32> {
    // SAFETY: the child allocates, makes system calls and exits.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        let body = std::panic::AssertUnwindSafe(body);
        let code = std::panic::catch_unwind(body).unwrap_or(101);
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    if libc::WIFSIGNALED(status) {
        Err(libc::WTERMSIG(status))
    } else {
        Ok(libc::WEXITSTATUS(status))
    }
}
