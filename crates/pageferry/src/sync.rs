//! Locks and threads of the library: the usual ones, or, under `--cfg shuttle`, those whose every
//! interleaving the scheduler of [shuttle](https://docs.rs/shuttle) decides. Both look alike.

#[cfg(not(shuttle))]
mod native {
    pub(crate) use parking_lot::{Condvar, Mutex, RwLock};
    pub(crate) use std::thread::{Scope, scope};

    /// The calling thread, as a holder of pins.
    pub(crate) fn this_thread() -> pageferry_engine::Owner {
        Some(u64::from(pageferry_linux::current_tid()))
    }

    /// Starts a thread in a scope; where there is none to be had, nothing happens.
    pub(crate) fn try_spawn<'s>(scope: &'s Scope<'s, '_>, body: impl FnOnce() + Send + 's) {
        let _ = std::thread::Builder::new().spawn_scoped(scope, body);
    }

    /// From this many bytes on a request gets helpers: below, starting a thread costs more than it
    /// saves.
    pub(crate) const HELP_BYTES: u64 = 8 << 20;
}
#[cfg(not(shuttle))]
pub(crate) use native::*;

#[cfg(shuttle)]
mod scheduled {
    use std::ops::{Deref, DerefMut};
    use std::time::Instant;

    use shuttle::sync;
    pub(crate) use shuttle::thread::{Scope, scope};

    pub(crate) fn try_spawn<'s>(scope: &'s Scope<'s, '_>, body: impl FnOnce() + Send + 's) {
        scope.spawn(body);
    }

    /// Helpers at once: their interleavings are to be seen.
    pub(crate) const HELP_BYTES: u64 = 1;

    /// All run on one thread of the kernel: the scheduler's names tell them apart.
    pub(crate) fn this_thread() -> pageferry_engine::Owner {
        Some(usize::from(shuttle::current::me()) as u64 + 1)
    }

    fn whole<T>(result: Result<T, sync::PoisonError<T>>) -> T {
        result.unwrap_or_else(sync::PoisonError::into_inner)
    }

    #[derive(Default)]
    pub(crate) struct Mutex<T>(sync::Mutex<T>);

    /// Empty only while its thread waits.
    pub(crate) struct Guard<'a, T>(Option<sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Mutex<T> {
            Mutex(sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> Guard<'_, T> {
            Guard(Some(whole(self.0.lock())))
        }

        pub(crate) fn into_inner(self) -> T {
            whole(self.0.into_inner())
        }
    }

    impl<T> Deref for Guard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.0.as_ref().expect("not waiting")
        }
    }

    impl<T> DerefMut for Guard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("not waiting")
        }
    }

    #[derive(Default)]
    pub(crate) struct RwLock<T>(sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> RwLock<T> {
            RwLock(sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> sync::RwLockReadGuard<'_, T> {
            whole(self.0.read())
        }

        pub(crate) fn write(&self) -> sync::RwLockWriteGuard<'_, T> {
            whole(self.0.write())
        }
    }

    #[derive(Default)]
    pub(crate) struct Condvar(sync::Condvar);

    /// Time stands still.
    pub(crate) struct Waited;

    impl Waited {
        pub(crate) fn timed_out(&self) -> bool {
            false
        }
    }

    impl Condvar {
        pub(crate) fn new() -> Condvar {
            Condvar::default()
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        pub(crate) fn wait<T>(&self, guard: &mut Guard<'_, T>) {
            guard.0 = guard.0.take().map(|held| whole(self.0.wait(held)));
        }

        pub(crate) fn wait_until<T>(&self, guard: &mut Guard<'_, T>, _: Instant) -> Waited {
            self.wait(guard);
            Waited
        }
    }
}
#[cfg(shuttle)]
pub(crate) use scheduled::*;
