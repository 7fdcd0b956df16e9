//! The calling thread's name in the kernel.

/// The calling thread's id, as the kernel gives it in faults (see
/// [`Fault::tid`](crate::Fault::tid)).
///
/// It asks the kernel each time (about 0.1 µs). A cached id would be wrong in a forked child, and
/// whoever needs one here is about to do work that takes microseconds.
#[must_use]
pub fn current_tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

/// The calling process's id; asked anew each time, so that it is right in a forked child.
pub(crate) fn current_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// The calling process's effective user.
#[must_use]
pub fn current_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_have_different_ids() {
        let here = current_tid();
        let there = std::thread::spawn(current_tid).join().expect("thread");
        assert_ne!(here, there);
        assert_eq!(here, current_tid());
        assert!(std::path::Path::new(&format!("/proc/self/task/{here}")).exists());
    }
}
