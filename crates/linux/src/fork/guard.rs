//! Keeping a forked child's hands off the addresses of maps.
//!
//! Memory that is `MADV_DONTFORK` leaves holes in the child, and the child's allocator fills holes:
//! a pointer into a map, kept across the fork, would then read and change whatever has come to be
//! there. So the child, before `fork` returns in it, fills the holes itself with memory that nobody
//! may access.
//!
//! This takes effect in children made by `fork`, which runs such handlers; not in those made by a
//! bare `clone` system call, nor if the child has no room for the mappings (its limits are its
//! parent's, from which all that it does not inherit is missing).
//!
//! The handler takes no lock, as the parent's other threads may hold any, and calls nothing but
//! `mmap`: it walks a list that only grows. Places in the list are used again.

use std::ops::Range;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// A place in the list.
struct Place {
    taken: AtomicBool,
    start: AtomicUsize,
    /// 0: nothing is guarded here.
    len: AtomicUsize,
    next: AtomicPtr<Place>,
}

/// The first place. Places are never freed.
static FIRST: AtomicPtr<Place> = AtomicPtr::new(null_mut());

/// Addresses that no child can use, as long as this lives.
pub(crate) struct GuardedRange(&'static Place);

impl std::fmt::Debug for GuardedRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GuardedRange({:#x})", self.0.start.load(Ordering::Relaxed))
    }
}

impl GuardedRange {
    /// Guards whole pages.
    pub(crate) fn new(range: &Range<usize>) -> GuardedRange {
        // No `Once`, for which a child might wait whose parent was in the middle of it. A handler
        // that is there twice finds nothing to do the second time.
        static HANDLER: AtomicBool = AtomicBool::new(false);
        if !HANDLER.load(Ordering::Acquire) {
            // SAFETY: the handler may be called in any child at any time: it only reads the list
            // and maps memory where there is none. Should there be no room for it (the only error),
            // children have holes.
            unsafe { libc::pthread_atfork(None, None, Some(fill_holes)) };
            HANDLER.store(true, Ordering::Release);
        }
        let place = places().find(|place| !place.taken.swap(true, Ordering::Acquire));
        let place = place.unwrap_or_else(add);
        place.start.store(range.start, Ordering::Relaxed);
        // Last: a child made meanwhile sees nothing guarded here.
        place.len.store(range.len(), Ordering::Release);
        GuardedRange(place)
    }
}

impl Drop for GuardedRange {
    fn drop(&mut self) {
        self.0.len.store(0, Ordering::Release);
        self.0.taken.store(false, Ordering::Release);
    }
}

fn places() -> impl Iterator<Item = &'static Place> {
    let follow = |link: &AtomicPtr<Place>| {
        // SAFETY: only ever set in `add`, to places that live for ever.
        NonNull::new(link.load(Ordering::Acquire)).map(|place| unsafe { place.as_ref() })
    };
    std::iter::successors(follow(&FIRST), move |place| follow(&place.next))
}

/// A new place, taken.
fn add() -> &'static Place {
    let place: &'static Place = Box::leak(Box::new(Place {
        taken: AtomicBool::new(true),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        next: AtomicPtr::new(null_mut()),
    }));
    let new = std::ptr::from_ref(place).cast_mut();
    let mut first = FIRST.load(Ordering::Acquire);
    loop {
        place.next.store(first, Ordering::Relaxed);
        match FIRST.compare_exchange(first, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return place,
            Err(newer) => first = newer,
        }
    }
}

/// In a child, before `fork` returns.
extern "C" fn fill_holes() {
    for place in places() {
        let len = place.len.load(Ordering::Acquire);
        if len > 0 {
            let at = std::ptr::with_exposed_provenance_mut(place.start.load(Ordering::Relaxed));
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
            // SAFETY: takes the place of no other mapping. Where something is mapped (the parent was
            // about to unmap the range, and something else has come there), that stays.
            let _ = unsafe { mmap_anonymous(at, len, ProtFlags::empty(), flags) };
        }
    }
}
