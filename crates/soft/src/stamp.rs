//! What other processes see of a page's state: one word, which they can only read.
//!
//! ```text
//!   31          2      1         0
//!  ┌─────────────┬─────────┬─────────┐
//!  │ count       │ PRESENT │ WRITING │
//!  └─────────────┴─────────┴─────────┘
//!   count: of the changes of the page's bytes, modulo 2^30
//! ```
//!
//! A reader in another process cannot take the page's lock: it could die with it, and would have to
//! be able to write. So it copies without, and the stamp tells whether the copy is to be kept: only if
//! the page was present, nobody was writing, and the stamp is the same afterwards (a seqlock). The
//! lock's holder is the only writer; what a reader misses is a number of changes that is a multiple of
//! 2^30 while it copies one page.
//!
//! The page may by then be another one: a frame that one folio has lost serves another of the same file, in the same
//! memory. So the frame says which of its uses this is, and a reader that knows the one it was told of reads that
//! word as if it were one of the page's bytes: it is changed only while no page of the frame is present.

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

const WRITING: u32 = 1;
const PRESENT: u32 = 2;
const COUNT: u32 = 4;

/// One page's stamp. All zero is a page that is not present.
///
/// # Invariants
/// - `WRITING` is set and cleared only by holders of the page's exclusive lock.
/// - Whenever nobody holds or waits for that lock, `PRESENT` is that of the page's state.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Stamp(AtomicU32);

/// Which use of its frame the memory is in: the serial number of what was exported.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct FrameUse(AtomicU64);

impl FrameUse {
    #[cfg(all(loom, test))]
    pub(crate) fn new() -> FrameUse {
        FrameUse(AtomicU64::new(0))
    }

    /// By whoever has found no page of the frame present, and lets none become so meanwhile.
    pub(crate) fn set(&self, serial: u64) {
        // Release, with the other one's acquire: who finds this use finds no page of the former one present.
        self.0.store(serial, Ordering::Release);
    }

    /// For a [`Stamp`] to confirm.
    pub(crate) fn is(&self, serial: u64) -> bool {
        self.0.load(Ordering::Acquire) == serial
    }
}

/// Why a copy of a page is not to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// It is not on the device, or another one is where it was.
    NotPresent,
    /// The page is being written to; this was its stamp.
    Writing(u32),
    /// The page changed during the copy.
    Changed,
}

impl Stamp {
    #[cfg(all(loom, test))]
    pub(crate) fn new() -> Stamp {
        Stamp(AtomicU32::new(0))
    }

    /// Before the first byte is written. By the holder of the page's exclusive lock.
    pub(crate) fn begin_write(&self) {
        self.0.fetch_or(WRITING, Ordering::Relaxed);
        // A reader whose copy has any byte written from here on has a fence behind its copy: by these
        // two fences it finds `WRITING`, or something newer, afterwards.
        fence(Ordering::Release);
    }

    /// After the last byte was written. By the holder of the page's exclusive lock.
    pub(crate) fn end_write(&self) {
        // `WRITING` is set, so this clears it and counts; an overflow leaves at the top.
        // Release: a reader that begins with this stamp, or with a later change of `PRESENT` alone
        // (part of the same release sequence), sees the bytes.
        self.0.fetch_add(COUNT - WRITING, Ordering::Release);
    }

    /// By the holder of the page's exclusive lock.
    pub(crate) fn set_present(&self, present: bool) {
        // The bytes were released by `end_write`, whose release sequence this continues; the frame's use by this, should
        // a page ever become present without having been written.
        if present {
            self.0.fetch_or(PRESENT, Ordering::Release);
        } else {
            self.0.fetch_and(!PRESENT, Ordering::Relaxed);
        }
    }

    /// Calls `copy`, which reads the page by relaxed atomic loads, and says whether what it read is a
    /// state that the page was in while it was present.
    pub(crate) fn read(&self, copy: impl FnOnce()) -> Result<(), Unread> {
        // Acquire: pairs with `end_write`.
        let before = self.0.load(Ordering::Acquire);
        if before & PRESENT == 0 {
            return Err(Unread::NotPresent);
        }
        if before & WRITING != 0 {
            return Err(Unread::Writing(before));
        }
        copy();
        // Pairs with the fence of `begin_write`.
        fence(Ordering::Acquire);
        if self.0.load(Ordering::Relaxed) == before { Ok(()) } else { Err(Unread::Changed) }
    }

    /// As [`Stamp::read`], of the page that the frame held in one of its uses.
    pub(crate) fn read_of(
        &self,
        frame: &FrameUse,
        serial: u64,
        copy: impl FnOnce(),
    ) -> Result<(), Unread> {
        let mut is_same = false;
        self.read(|| {
            is_same = frame.is(serial);
            copy();
        })?;
        if is_same { Ok(()) } else { Err(Unread::NotPresent) }
    }

    /// Whether the page is present now: for bytes that are not the device's, so it orders nothing.
    pub(crate) fn is_present(&self) -> bool {
        self.0.load(Ordering::Relaxed) & PRESENT != 0
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    /// What a reader keeps is one write's bytes, and not older than the page's presence.
    #[test]
    fn a_copy_that_is_kept_is_whole() {
        loom::model(|| {
            let page = Arc::new((Stamp::new(), [AtomicU32::new(0), AtomicU32::new(0)]));
            let write = |page: &(Stamp, [AtomicU32; 2]), value| {
                page.0.begin_write();
                page.1.iter().for_each(|word| word.store(value, Ordering::Relaxed));
                page.0.end_write();
            };
            let writer = {
                let page = Arc::clone(&page);
                loom::thread::spawn(move || {
                    write(&page, 1);
                    page.0.set_present(true);
                    write(&page, 2);
                })
            };
            let mut copy = [0; 2];
            let kept = page.0.read(|| {
                for (to, from) in copy.iter_mut().zip(&page.1) {
                    *to = from.load(Ordering::Relaxed);
                }
            });
            if kept.is_ok() {
                assert!(copy == [1; 2] || copy == [2; 2], "{copy:?}");
            }
            writer.join().unwrap();
        });
    }

    /// What a reader keeps is of the use that it knows of, not of the next one of the same memory.
    #[test]
    fn a_copy_that_is_kept_is_of_the_use_that_was_asked_for() {
        loom::model(|| {
            let frame = Arc::new((FrameUse::new(), Stamp::new(), AtomicU32::new(0)));
            let fill = |frame: &(FrameUse, Stamp, AtomicU32), value| {
                frame.1.begin_write();
                frame.2.store(value, Ordering::Relaxed);
                frame.1.end_write();
                frame.1.set_present(true);
            };
            frame.0.set(1);
            fill(&frame, 10);
            let writer = {
                let frame = Arc::clone(&frame);
                loom::thread::spawn(move || {
                    frame.1.set_present(false);
                    frame.0.set(2);
                    fill(&frame, 20);
                })
            };
            for (serial, value) in [(1, 10), (2, 20)] {
                let mut copy = 0;
                let kept =
                    frame.1.read_of(&frame.0, serial, || copy = frame.2.load(Ordering::Relaxed));
                assert!(kept.is_err() || copy == value, "use {serial} shows {copy}");
            }
            writer.join().unwrap();
        });
    }
}
