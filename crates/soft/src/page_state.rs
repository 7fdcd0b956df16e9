//! The state of one page of device memory: permissions, dirtiness and its lock, in one byte.
//!
//! ```text
//!   7        3   2       1          0
//!  ┌──────────┬───────┬──────────┬─────────┐
//!  │ lock     │ DIRTY │ WRITABLE │ PRESENT │      lock: 0 free, 1..=30 readers, 31 a writer
//!  └──────────┴───────┴──────────┴─────────┘
//! ```

use crate::sync::{AtomicU8, Ordering, yield_now};
use pageferry_device::{Access, FaultReason};

const PRESENT: u8 = 1;
const WRITABLE: u8 = 2;
const DIRTY: u8 = 4;
const READER: u8 = 8;
const LOCK: u8 = 31 * READER;
const WRITER: u8 = LOCK;
const READERS_MAX: u8 = 30 * READER;

/// One page's entry.
///
/// # Invariants
/// - While the lock field is `WRITER` exactly one guard made by [`lock`](Self::lock) or
///   [`load_or_store`](Self::load_or_store) exists; while it counts readers, exactly so many do.
/// - `WRITABLE` implies `PRESENT`. `DIRTY` is set only under the writer's lock of a store.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct PageState(AtomicU8);

/// Who may hold the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    Shared,
    Exclusive,
}

impl PageState {
    #[cfg(any(loom, test))]
    pub(crate) fn new() -> PageState {
        PageState(AtomicU8::new(0))
    }

    fn update<T>(&self, mut next: impl FnMut(u8) -> Next<T>) -> T {
        let mut spins = 0u32;
        loop {
            let now = self.0.load(Ordering::Relaxed);
            match next(now) {
                Next::Stay(value) => return value,
                Next::Set(new, value) => {
                    // Acquire: what the last holder did to the page is seen by the next.
                    let swap =
                        self.0.compare_exchange_weak(now, new, Ordering::AcqRel, Ordering::Relaxed);
                    if swap.is_ok() {
                        return value;
                    }
                }
                Next::Wait => {
                    spins += 1;
                    if spins > 50 || cfg!(loom) {
                        yield_now();
                    } else {
                        std::hint::spin_loop();
                    }
                }
            }
        }
    }

    /// Takes the lock of the page, whatever its permissions: for copies.
    pub(crate) fn lock(&self, hold: Hold) {
        self.update(|now| match hold {
            Hold::Shared if now & LOCK < READERS_MAX => Next::Set(now + READER, ()),
            Hold::Exclusive if now & LOCK == 0 => Next::Set(now | WRITER, ()),
            _ => Next::Wait,
        });
    }

    /// Takes the lock for a kernel's access if the page permits it; a store marks it dirty.
    pub(crate) fn access(&self, access: Access) -> Result<(), FaultReason> {
        self.update(|now| match access {
            _ if now & PRESENT == 0 => Next::Stay(Err(FaultReason::NotPresent)),
            Access::Write if now & WRITABLE == 0 => Next::Stay(Err(FaultReason::ReadOnly)),
            Access::Read if now & LOCK < READERS_MAX => Next::Set(now + READER, Ok(())),
            Access::Write if now & LOCK == 0 => Next::Set(now | WRITER | DIRTY, Ok(())),
            _ => Next::Wait,
        })
    }

    /// Gives the lock back.
    pub(crate) fn unlock(&self, hold: Hold) {
        match hold {
            // Release: the next holder sees what we did.
            Hold::Shared => drop(self.0.fetch_sub(READER, Ordering::Release)),
            Hold::Exclusive => drop(self.0.fetch_and(!LOCK, Ordering::Release)),
        }
    }

    /// Sets the permission, waiting for accesses under way. Dirtiness stays.
    pub(crate) fn protect(&self, access: Option<Access>) {
        let bits = match access {
            None => 0,
            Some(Access::Read) => PRESENT,
            Some(Access::Write) => PRESENT | WRITABLE,
        };
        self.update(|now| {
            if now & LOCK != 0 {
                return Next::Wait;
            }
            Next::Set(now & !(PRESENT | WRITABLE) | bits, ())
        });
    }

    /// Makes the page read-only where it is present, clears its dirty mark and returns it. A store
    /// either came before and is in the answer, or comes after and faults.
    pub(crate) fn take_dirty(&self) -> bool {
        self.update(|now| {
            if now & LOCK == WRITER {
                return Next::Wait;
            }
            Next::Set(now & !(WRITABLE | DIRTY), now & DIRTY != 0)
        })
    }

    /// Not present, clean: a page of a frame that changes hands. Waits for accesses under way.
    pub(crate) fn reset(&self) {
        self.update(|now| if now & LOCK != 0 { Next::Wait } else { Next::Set(0, ()) });
    }
}

/// What an attempt to change the state came to.
enum Next<T> {
    Set(u8, T),
    Stay(T),
    Wait,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_checked_before_the_page_is_touched() {
        let page = PageState::new();
        assert_eq!(page.access(Access::Read), Err(FaultReason::NotPresent));
        page.protect(Some(Access::Read));
        assert_eq!(page.access(Access::Write), Err(FaultReason::ReadOnly));
        assert_eq!(page.access(Access::Read), Ok(()));
        page.unlock(Hold::Shared);
        page.protect(Some(Access::Write));
        assert!(!page.take_dirty(), "nobody stored");
        page.protect(Some(Access::Write));
        assert_eq!(page.access(Access::Write), Ok(()));
        page.unlock(Hold::Exclusive);
        assert!(page.take_dirty());
        assert!(!page.take_dirty());
        assert_eq!(page.access(Access::Write), Err(FaultReason::ReadOnly));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// A store that succeeded is in exactly one of the answers.
    #[test]
    fn no_store_is_lost() {
        loom::model(|| {
            let page = Arc::new(PageState::new());
            page.protect(Some(Access::Write));
            let kernel = {
                let page = Arc::clone(&page);
                thread::spawn(move || {
                    let stored = page.access(Access::Write).is_ok();
                    if stored {
                        page.unlock(Hold::Exclusive);
                    }
                    stored
                })
            };
            let early = page.take_dirty();
            let stored = kernel.join().unwrap();
            let late = page.take_dirty();
            assert_eq!(stored, early | late);
            assert!(!(early && late));
        });
    }

    /// An exclusive holder is alone; what it wrote is seen by the next.
    #[test]
    fn the_lock_excludes() {
        loom::model(|| {
            let page = Arc::new((PageState::new(), loom::cell::UnsafeCell::new(0u32)));
            let other = {
                let page = Arc::clone(&page);
                thread::spawn(move || {
                    page.0.lock(Hold::Exclusive);
                    // SAFETY: the page's writer lock is held; loom checks that it excludes.
                    page.1.with_mut(|v| unsafe { *v += 1 });
                    page.0.unlock(Hold::Exclusive);
                })
            };
            page.0.lock(Hold::Exclusive);
            // SAFETY: as above.
            page.1.with_mut(|v| unsafe { *v += 1 });
            page.0.unlock(Hold::Exclusive);
            other.join().unwrap();
            page.0.lock(Hold::Shared);
            // SAFETY: a reader lock is held.
            page.1.with(|v| assert_eq!(unsafe { *v }, 2));
            page.0.unlock(Hold::Shared);
        });
    }
}
