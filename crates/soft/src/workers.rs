//! The device's processors: threads that run the groups of a launch.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

thread_local! {
    /// This thread is a worker: a launch from here must not wait for workers.
    static WORKER: Cell<bool> = const { Cell::new(false) };
}

/// A kernel on loan from a launching thread.
///
/// # Invariants
/// - `body` is valid until the launch's `left` has reached zero, for which `launch` waits.
struct Launch {
    body: *const (dyn Fn(u64) + Sync),
    next: u64,
    groups: u64,
    /// Groups not yet ended.
    left: u64,
    panic: Option<String>,
}

// SAFETY: `body` points to a `Sync` closure, which may be called from any thread; the pointer is
// only followed while the closure is alive (the type's invariant).
unsafe impl Send for Launch {}

#[derive(Default)]
struct Queue {
    launches: VecDeque<(u64, Launch)>,
    serial: u64,
    stopping: bool,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    ended: Condvar,
}

/// Worker threads that run kernels, started with the first launch. For whoever has kernels to run and no
/// [`SoftDevice`](crate::SoftDevice) of its own; in a forked child there are none.
pub struct Workers {
    shared: Arc<Shared>,
    count: usize,
    /// The process whose threads they are.
    process: u32,
}

impl Workers {
    /// As many as `count`, from 1.
    #[must_use]
    pub fn new(count: usize) -> Workers {
        let shared =
            Shared { queue: Mutex::default(), work: Condvar::new(), ended: Condvar::new() };
        Workers { shared: Arc::new(shared), count, process: std::process::id() }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Runs `body` for `0..groups` and waits for all.
    ///
    /// # Errors
    /// The first panic's message; the other groups still run to their ends.
    pub fn launch(&self, groups: u64, body: &(dyn Fn(u64) + Sync)) -> Result<(), String> {
        if groups == 0 {
            return Ok(());
        }
        if WORKER.get() {
            // A kernel that launches: its own thread does the work.
            let panics: Vec<String> = (0..groups).filter_map(|g| run(body, g)).collect();
            return panics.into_iter().next().map_or(Ok(()), Err);
        }
        // SAFETY: only the lifetime is extended; this function does not return, nor unwind, before
        // `left` is zero, and no worker touches `body` after it has counted its last group down.
        let body: *const (dyn Fn(u64) + Sync) = unsafe {
            std::mem::transmute::<&(dyn Fn(u64) + Sync), &'static (dyn Fn(u64) + Sync)>(body)
        };
        let mut queue = self.shared.queue.lock();
        self.start(&mut queue);
        queue.serial += 1;
        let serial = queue.serial;
        queue
            .launches
            .push_back((serial, Launch { body, next: 0, groups, left: groups, panic: None }));
        self.shared.work.notify_all();
        if queue.threads.is_empty() {
            // The host refuses threads: work here, one group after the other.
            drop(queue);
            while step(&self.shared, false) {}
            queue = self.shared.queue.lock();
        }
        loop {
            let at = queue.launches.iter().position(|(s, l)| *s == serial && l.left == 0);
            if let Some((_, launch)) = at.and_then(|at| queue.launches.remove(at)) {
                return launch.panic.map_or(Ok(()), Err);
            }
            self.shared.ended.wait(&mut queue);
        }
    }

    fn start(&self, queue: &mut Queue) {
        while queue.threads.len() < self.count {
            let shared = Arc::clone(&self.shared);
            let name = format!("soft-worker-{}", queue.threads.len());
            let thread = std::thread::Builder::new().name(name).spawn(move || {
                WORKER.set(true);
                while step(&shared, true) {}
            });
            match thread {
                Ok(thread) => queue.threads.push(thread),
                Err(_) => break,
            }
        }
    }
}

/// Runs one group of the oldest launch that has one left. `false`: there is none (without `wait`),
/// or the device is going.
fn step(shared: &Shared, wait: bool) -> bool {
    let mut queue = shared.queue.lock();
    let (serial, body, group) = loop {
        let open = queue.launches.iter_mut().find(|(_, l)| l.next < l.groups);
        if let Some((serial, launch)) = open {
            launch.next += 1;
            break (*serial, launch.body, launch.next - 1);
        }
        if queue.stopping || !wait {
            return false;
        }
        shared.work.wait(&mut queue);
    };
    drop(queue);
    // SAFETY: the group is not counted down yet, so the launch still waits and the closure lives.
    let panic = run(unsafe { &*body }, group);
    let mut queue = shared.queue.lock();
    if let Some((_, launch)) = queue.launches.iter_mut().find(|(s, _)| *s == serial) {
        launch.left -= 1;
        if let Some(message) = panic {
            launch.panic.get_or_insert(message);
        }
        if launch.left == 0 {
            shared.ended.notify_all();
        }
    }
    true
}

fn run(body: &(dyn Fn(u64) + Sync), group: u64) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(|| body(group))).err()?;
    let message = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
    // What a kernel panics with may panic again when it is dropped; the worker must live on.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(second);
    }
    Some(format!("group {group}: {}", message.unwrap_or_else(|| "panicked".into())))
}

impl Drop for Workers {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            // A forked child has no such threads, and the lock may be held by one of them.
            return;
        }
        let threads = {
            let mut queue = self.shared.queue.lock();
            queue.stopping = true;
            std::mem::take(&mut queue.threads)
        };
        self.shared.work.notify_all();
        for thread in threads {
            // Workers catch what kernels throw; there is nothing to report here.
            let _ = thread.join();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn every_group_runs_once_even_if_one_panics() {
        let workers = Workers::new(3);
        let sum = AtomicU64::new(0);
        let result = workers.launch(100, &|g| {
            sum.fetch_add(g, Ordering::Relaxed);
            assert!(g != 7, "seven");
        });
        assert_eq!(sum.into_inner(), 4950);
        assert_eq!(result, Err("group 7: seven".into()));
        assert_eq!(workers.launch(1, &|_| ()), Ok(()));
    }

    #[test]
    fn a_panic_whose_payload_panics_too_ends_its_launch() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                if !std::thread::panicking() {
                    panic!("again");
                }
            }
        }
        let workers = Workers::new(1);
        let result = workers.launch(1, &|_| std::panic::panic_any(Bomb));
        assert_eq!(result, Err("group 0: panicked".into()));
        assert_eq!(workers.launch(1, &|_| ()), Ok(()));
    }

    #[test]
    fn launches_nest_and_run_beside_each_other() {
        let workers = Workers::new(2);
        let count = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let nested = |_| {
                            let inner = |_| {
                                count.fetch_add(1, Ordering::Relaxed);
                            };
                            assert_eq!(workers.launch(3, &inner), Ok(()));
                        };
                        assert_eq!(workers.launch(5, &nested), Ok(()));
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 4 * 20 * 5 * 3);
    }
}
