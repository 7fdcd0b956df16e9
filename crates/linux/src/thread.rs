//! Who is running.

use std::cell::Cell;

thread_local! {
    static TID: Cell<(u32, u32)> = const { Cell::new((0, 0)) };
}

/// The kernel's id of the calling thread, as userfaultfd events name it.
#[must_use]
pub fn current_tid() -> u32 {
    // A forked child inherits the cell but not the id: the process id tells.
    let pid = std::process::id();
    let (known, tid) = TID.get();
    if known == pid {
        return tid;
    }
    let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
    TID.set((pid, tid));
    tid
}

#[cfg(test)]
mod tests {
    #[test]
    fn threads_differ_and_stay_themselves() {
        let here = super::current_tid();
        assert_eq!(here, super::current_tid());
        let there = std::thread::spawn(super::current_tid).join().unwrap();
        assert_ne!(here, there);
    }
}
