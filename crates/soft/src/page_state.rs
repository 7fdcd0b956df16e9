//! The state of one page of device memory: permissions, dirtiness and its lock, in one word.
//!
//! ```text
//!   31    24 23    16 15     4      3         2       1          0
//!  ┌────────┬────────┬────────┬──────────┬───────┬──────────┬─────────┐
//!  │ turn   │ next   │ lock   │ LEFTOVER │ DIRTY │ WRITABLE │ PRESENT │
//!  └────────┴────────┴────────┴──────────┴───────┴──────────┴─────────┘
//!   lock: 0 free, 1..=4094 readers, 4095 a writer
//! ```
//!
//! **Nobody starves.** Whoever finds the lock taken draws a number (`next`) and goes when it is their
//! `turn`; while a number is out, newcomers draw one as well. So each waits for those who came
//! before, reader or writer, and for nobody else. What changes the page without needing the lock to
//! itself (more permissions, marks under readers) takes no turn at all.

use crate::sync::{AtomicU32, Ordering, yield_now};
use pageferry_device::{Access, FaultReason};

const PRESENT: u32 = 1;
const WRITABLE: u32 = 2;
const DIRTY: u32 = 4;
const LEFTOVER: u32 = 8;
const READER: u32 = 1 << 4;
const LOCK: u32 = 0xfff0;
const WRITER: u32 = LOCK;
const READERS_MAX: u32 = WRITER - READER;
const NEXT_SHIFT: u32 = 16;
const TURN_SHIFT: u32 = 24;

/// Spins before a number is drawn, and between looks at whose turn it is before yielding.
const SPINS: u32 = if cfg!(loom) { 0 } else { 50 };
/// Yields before sleeping: somebody holds the page for a system call.
#[cfg(not(loom))]
const YIELDS: u32 = 200;

/// One page's entry. All zero is a page that is free, not present and clean.
///
/// # Invariants
/// - While the lock field is `WRITER` exactly one holder that was told so by [`lock`](Self::lock) or
///   [`access`](Self::access) has not [given it back](Self::unlock); while it counts readers,
///   exactly so many have not.
/// - `WRITABLE` implies `PRESENT`. `DIRTY` is set only under the writer's lock of a store.
/// - `LEFTOVER` is changed only under the exclusive lock.
/// - `turn` goes from each number to the next exactly once, by the one who drew it.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct PageState(AtomicU32);

/// Who may hold the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    Shared,
    Exclusive,
}

/// What an attempt to change the state came to.
enum Next<T> {
    /// This is the answer, and nothing is to be changed.
    Stay(T),
    /// Allowed whoever waits.
    Set(u32, T),
    /// Takes the lock: allowed when it is one's turn.
    Take(u32, T),
    Wait,
}

fn next(state: u32) -> u32 {
    state >> NEXT_SHIFT & 0xff
}

fn turn(state: u32) -> u32 {
    state >> TURN_SHIFT
}

/// The state with the next number drawn.
fn drawn(state: u32) -> u32 {
    state & !(0xff << NEXT_SHIFT) | ((next(state) + 1) & 0xff) << NEXT_SHIFT
}

/// The state with the turn passed on.
fn passed(state: u32) -> u32 {
    state & !(0xff << TURN_SHIFT) | ((turn(state) + 1) & 0xff) << TURN_SHIFT
}

impl PageState {
    #[cfg(any(loom, test))]
    pub(crate) fn new() -> PageState {
        PageState(AtomicU32::new(0))
    }

    /// Acquire: what the last holder did to the page is seen by the next. Release: what a change of
    /// permissions follows is seen by who finds them changed.
    fn swap(&self, now: u32, new: u32) -> bool {
        self.0.compare_exchange_weak(now, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn update<T>(&self, mut step: impl FnMut(u32) -> Next<T>) -> T {
        let mut patience = Patience::new();
        let mut number = None;
        loop {
            let now = self.0.load(Ordering::Relaxed);
            let mine = match number {
                None => next(now) == turn(now),
                Some(number) => turn(now) == number,
            };
            // With the turn passed on, if it is ours.
            let on = |state| if number.is_some() { passed(state) } else { state };
            match step(now) {
                // Without a number, or with a number and its turn: done.
                Next::Stay(value) if number.is_none() => return value,
                Next::Stay(value) if mine => {
                    if self.swap(now, on(now)) {
                        return value;
                    }
                    continue;
                }
                Next::Set(new, value) if number.is_none() => {
                    if self.swap(now, new) {
                        return value;
                    }
                    continue;
                }
                Next::Set(new, value) | Next::Take(new, value) if mine => {
                    if self.swap(now, on(new)) {
                        return value;
                    }
                    continue;
                }
                _ => {}
            }
            // All numbers are out: one after the other comes in.
            let numbers_left = (next(now) + 1) & 0xff != turn(now);
            if number.is_none() && numbers_left && (!mine || patience.has_spun()) {
                if self.swap(now, drawn(now)) {
                    number = Some(next(now));
                }
                continue;
            }
            patience.wait();
        }
    }

    /// Takes the lock of the page, whatever its permissions: for copies.
    pub(crate) fn lock(&self, hold: Hold) {
        self.update(|now| match hold {
            Hold::Shared if now & LOCK < READERS_MAX => Next::Take(now + READER, ()),
            Hold::Exclusive if now & LOCK == 0 => Next::Take(now | WRITER, ()),
            _ => Next::Wait,
        });
    }

    /// Takes the lock for a kernel's access if the page permits it; a store marks it dirty.
    pub(crate) fn access(&self, access: Access) -> Result<(), FaultReason> {
        self.update(|now| match access {
            _ if now & PRESENT == 0 => Next::Stay(Err(FaultReason::NotPresent)),
            Access::Write if now & WRITABLE == 0 => Next::Stay(Err(FaultReason::ReadOnly)),
            Access::Read if now & LOCK < READERS_MAX => Next::Take(now + READER, Ok(())),
            Access::Write if now & LOCK == 0 => Next::Take(now | WRITER | DIRTY, Ok(())),
            _ => Next::Wait,
        })
    }

    /// Gives the lock back.
    ///
    /// # Safety
    /// The caller holds it so, by a call of [`lock`](Self::lock) or a successful one of
    /// [`access`](Self::access), and from now on does not touch the page.
    pub(crate) unsafe fn unlock(&self, hold: Hold) {
        match hold {
            // Release: the next holder sees what we did.
            Hold::Shared => drop(self.0.fetch_sub(READER, Ordering::Release)),
            Hold::Exclusive => drop(self.0.fetch_and(!LOCK, Ordering::Release)),
        }
    }

    /// Sets the permission, and tells whether that made the page present or not present. Dirtiness
    /// stays.
    ///
    /// More of it is given at once, as every access takes the lock anyway. Where some is taken away,
    /// this waits for the accesses under way that would not be permitted any more.
    pub(crate) fn protect(&self, access: Option<Access>) -> bool {
        let bits = match access {
            None => 0,
            Some(Access::Read) => PRESENT,
            Some(Access::Write) => PRESENT | WRITABLE,
        };
        self.update(|now| {
            let lost = now & (PRESENT | WRITABLE) & !bits;
            let wait = match now & LOCK {
                _ if lost == 0 => false,
                WRITER => true,
                readers => lost & PRESENT != 0 && readers != 0,
            };
            if wait {
                return Next::Wait;
            }
            Next::Set(now & !(PRESENT | WRITABLE) | bits, (now ^ bits) & PRESENT != 0)
        })
    }

    /// Makes the page read-only where it is present, clears its dirty mark and returns it. A store
    /// either came before and is in the answer, or comes after and faults.
    pub(crate) fn take_dirty(&self) -> bool {
        self.update(|now| {
            if now & LOCK == WRITER && now & (WRITABLE | DIRTY) != 0 {
                return Next::Wait;
            }
            Next::Set(now & !(WRITABLE | DIRTY), now & DIRTY != 0)
        })
    }

    /// Not present, clean: a page of a frame that changes hands. Waits for accesses under way, and
    /// tells whether it was present.
    pub(crate) fn reset(&self) -> bool {
        self.update(|now| {
            let clean = now & !(PRESENT | WRITABLE | DIRTY);
            if now & LOCK != 0 { Next::Wait } else { Next::Set(clean, now & PRESENT != 0) }
        })
    }

    pub(crate) fn is_present(&self) -> bool {
        self.0.load(Ordering::Relaxed) & PRESENT != 0
    }

    /// Whether bytes of a former use of the frame may still be there.
    pub(crate) fn has_leftovers(&self) -> bool {
        self.0.load(Ordering::Relaxed) & LEFTOVER != 0
    }

    /// Notes whether bytes of a former use of the frame may still be there. Under the exclusive lock
    /// of the page, which also orders it: the next holder sees it.
    pub(crate) fn set_leftovers(&self, there: bool) {
        if there {
            self.0.fetch_or(LEFTOVER, Ordering::Relaxed);
        } else {
            self.0.fetch_and(!LEFTOVER, Ordering::Relaxed);
        }
    }

    /// Numbers that are out.
    #[cfg(all(test, not(loom)))]
    fn waiting(&self) -> u32 {
        let now = self.0.load(Ordering::Relaxed);
        next(now).wrapping_sub(turn(now)) & 0xff
    }
}

/// Waiting without burning a processor for long.
pub(crate) struct Patience(u32);

impl Patience {
    pub(crate) fn new() -> Patience {
        Patience(0)
    }

    fn has_spun(&self) -> bool {
        self.0 >= SPINS
    }

    #[cfg(loom)]
    pub(crate) fn wait(&mut self) {
        yield_now();
    }

    #[cfg(not(loom))]
    pub(crate) fn wait(&mut self) {
        self.0 = self.0.saturating_add(1);
        if self.0 <= SPINS {
            std::hint::spin_loop();
        } else if self.0 <= SPINS + YIELDS {
            yield_now();
        } else {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    }
}

#[cfg(all(test, not(loom)))]
#[path = "page_state_tests.rs"]
mod tests;

#[cfg(all(test, loom))]
#[path = "page_state_loom.rs"]
mod loom_tests;
