//! Room below `vm.max_map_count`, for the program and for bringing pages home.
//!
//! A process that has all the mappings it may have cannot start a thread; one that has one more than
//! that (the kernel lets the last call pass the limit) cannot even put a file's pages where a
//! placeholder stands, though that needs no more mappings than there are: `mmap` and `mremap` refuse at
//! their door (6.18). Only `munmap` still works. So, for each [`Uffd`](crate::Uffd):
//!
//! - *A margin is the program's*: new traps are refused when fewer are left than a 64th of the limit.
//!   How many there are the kernel tells only by `/proc/self/maps`, half a microsecond to some a line.
//!   So they are counted seldom: a quarter of what a count finds free may be taken before the next.
//!   And a refusal stands, uncounted, until time has passed that is long beside the counting, or much
//!   has come home.
//! - *A few mappings are held in reserve*, of no use but to be unmapped when something cannot come home.
//!   What the program takes of its margin, and beyond, it cannot take of these.

use std::ffi::c_void;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::fork::Owner;
use crate::limits::{max_map_count, vma_count};
use crate::page_bytes;

/// This part of the limit is the program's.
const MARGIN_PART: u64 = 64;
/// What is free beyond the margin must be worth a count.
const FREE_MIN: u64 = 128;
/// A trap in the middle of what is home makes two more of one.
const PER_TRAP: u64 = 2;
/// A refusal stands for so many times as long as the counting took...
const REFUSED_TIMES: u32 = 16;
/// ...or until so many stretches have come home.
const HOME_MANY: u64 = 64;
/// Mappings in reserve, and how many are given up at a time: `mremap` to a fixed place asks for six.
const RESERVE: usize = 64;
const AT_ONCE: usize = 8;

/// See the module.
///
/// # Invariants
/// In the address space of `owner`, each of `reserve` is a page mapped by us and known to nobody else.
#[derive(Debug)]
pub(crate) struct Room {
    owner: Owner,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// May be taken before the next count.
    credit: u64,
    refused: Option<Refused>,
    /// The addresses of mappings.
    reserve: Vec<usize>,
}

#[derive(Debug)]
struct Refused {
    at: Instant,
    counting: Duration,
    limit: u64,
    /// Stretches that came home since.
    home: u64,
}

impl Room {
    pub(crate) fn new(owner: Owner) -> Room {
        Room { owner, inner: Mutex::default() }
    }

    /// Takes what a trap needs, and sees to it that the reserve is whole.
    ///
    /// # Errors
    /// The limit, if the rest is the program's.
    pub(crate) fn take(&self) -> Result<(), u64> {
        if !self.owner.is_current() {
            return Ok(());
        }
        let mut inner = self.inner.lock();
        if inner.credit < PER_TRAP {
            inner.count()?;
        }
        inner.credit -= PER_TRAP;
        inner.fill();
        Ok(())
    }

    /// A stretch has come home.
    pub(crate) fn came_home(&self) {
        if let Some(refused) = &mut self.inner.lock().refused {
            refused.home += 1;
        }
    }

    /// Gives up some of the reserve: whether there was any.
    pub(crate) fn release(&self) -> bool {
        if !self.owner.is_current() {
            return false;
        }
        let mut inner = self.inner.lock();
        let kept = inner.reserve.len().saturating_sub(AT_ONCE);
        let given: Vec<usize> = inner.reserve.drain(kept..).collect();
        given.iter().for_each(|&at| unmap(at));
        !given.is_empty()
    }
}

impl Inner {
    /// Finds out how many may be taken from here on; at least what a trap needs.
    fn count(&mut self) -> Result<(), u64> {
        if let Some(refused) = &self.refused
            && refused.home < HOME_MANY
            && refused.at.elapsed() < refused.counting * REFUSED_TIMES
        {
            return Err(refused.limit);
        }
        let begun = Instant::now();
        let (Ok(limit), Ok(count)) = (max_map_count(), vma_count()) else {
            // Nobody can tell: the kernel will.
            self.credit = FREE_MIN;
            return Ok(());
        };
        let free = limit.saturating_sub(limit / MARGIN_PART + count);
        if free < FREE_MIN {
            let at = Instant::now();
            self.refused = Some(Refused { at, counting: at - begun, limit, home: 0 });
            return Err(limit);
        }
        self.refused = None;
        self.credit = free / 4;
        Ok(())
    }

    fn fill(&mut self) {
        while self.reserve.len() < RESERVE {
            // Shared memory, as mappings of that do not become one with their neighbours.
            let (null, flags) = (std::ptr::null_mut(), MapFlags::SHARED | MapFlags::NORESERVE);
            // SAFETY: a mapping at an address of the kernel's choice takes the place of no other.
            let page = unsafe { mmap_anonymous(null, page_bytes(), ProtFlags::empty(), flags) };
            let Ok(page) = page else { return };
            self.reserve.push(page.expose_provenance());
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        while self.release() {}
    }
}

/// Unmaps a page of the reserve.
fn unmap(at: usize) {
    let page = std::ptr::with_exposed_provenance_mut::<c_void>(at);
    // SAFETY: by the invariant, in the process that mapped it (the caller has looked), it is ours alone,
    // and it has just been taken off the list. Failing leaves it mapped, which is sound.
    let _ = unsafe { munmap(page, page_bytes()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_and_the_reserve_is_given_up_bit_by_bit() {
        let room = Room::new(Owner::current().expect("owner"));
        room.take().expect("room");
        let mut times = 0;
        while room.release() {
            times += 1;
        }
        assert_eq!(times, RESERVE / AT_ONCE);
        room.take().expect("room");
        assert_eq!(room.inner.lock().reserve.len(), RESERVE);
    }

    #[test]
    fn a_refusal_stands_until_much_has_come_home() {
        let room = Room::new(Owner::current().expect("owner"));
        let (at, counting) = (Instant::now(), Duration::from_secs(1000));
        room.inner.lock().refused = Some(Refused { at, counting, limit: 7, home: 0 });
        assert_eq!(room.take(), Err(7));
        (0..HOME_MANY).for_each(|_| room.came_home());
        assert_eq!(room.take(), Ok(()));
    }
}
