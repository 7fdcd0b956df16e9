//! Tests that must have a process of their own: they die of signals, use up limits, change users.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

const MARK: &str = "PAGEFERRY_TEST_CHILD";

/// In the parent: runs the test `name` once more in a process of its own and gives its outcome.
/// In that process: `None`, and the test goes on.
pub(crate) fn again(name: &str) -> Option<Output> {
    run(name, None)
}

/// As [`again`], in the child as the user `nobody`. `Err` if that cannot be done here.
pub(crate) fn again_as_nobody(name: &str) -> Result<Option<Output>, &'static str> {
    if std::env::var_os(MARK).is_none() && !rustix::process::geteuid().is_root() {
        return Err("only root can become somebody else");
    }
    Ok(run(name, Some(65534)))
}

fn run(name: &str, user: Option<u32>) -> Option<Output> {
    if std::env::var(MARK).is_ok_and(|marked| marked == name) {
        return None;
    }
    let exe = std::env::current_exe().expect("own path");
    let mut command = Command::new(exe);
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(MARK, name);
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    Some(command.output().expect("run the test binary"))
}

/// Fails with what the child said unless it passed.
pub(crate) fn passed(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", output.status);
    assert!(said.contains("1 passed"), "the child ran no test:\n{said}");
}

/// Runs `body` in a forked child, which must do nothing but simple system calls and memory
/// accesses; gives the signal that ended it, or its result.
pub(crate) fn fork(body: impl FnOnce() -> i32) -> Result<i32, i32> {
    // SAFETY: the child only runs `body`, which keeps to what is safe after a fork, and exits.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        let code = body();
        // SAFETY: ends the child at once, without running anything of the parent's.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: our own child; `status` is valid for writes.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    if libc::WIFSIGNALED(status) {
        return Err(libc::WTERMSIG(status));
    }
    Ok(libc::WEXITSTATUS(status))
}
