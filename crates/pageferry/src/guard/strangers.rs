//! What others have done to a file while the gate stands.
//!
//! The one idea: since nobody had the file open when the gate was put up, every call that reads or
//! changes its bytes is told to the gate before it begins. When it ends nobody says; so what a call may
//! change counts as changing from then until the file has been ours alone again, at every look anew.
//!
//! Which call a thread is in can mislead: a request of io_uring is issued in passing, by a thread in any other
//! call. It reads or writes, and keeps to its range. So what was told as reading counts as changed when its
//! thread is heard to have changed anything. *`truncate` by name* has the file not open while it waits: it
//! is remembered until its `MODIFY` is heard or its thread is seen in no such call.
//!
//! What the gate is not told of must show otherwise, or the whole file counts as changed:
//!
//! - *Mappings* are told of when they are made; what happens in them is not, and they can grow and move
//!   along the file without a word (`mremap`, `remap_file_pages`): whoever maps some of it may store to
//!   all of it. The same goes for a call that nobody can name, and for an open through another mount, which
//!   may be an overlay's.
//! - *Changes inside the kernel* (`acct`, core dumps, ioctls of file systems) leave a `MODIFY` by a thread
//!   that owes none (each told call that changes anything leaves one), or a `CLOSE_WRITE` by one that was not
//!   told to write. A loop device leaves nothing as long as it stands: whether any came or went is looked up.
//! - *Appends* name any place. They show in the size: the page that held the end of file has changed.

use std::collections::HashMap;
use std::ops::Range;

use pageferry_engine::PAGE_BYTES;
use pageferry_engine::range::RangeSet;
use pageferry_linux::{Call, Heard};

/// Others, since the file was last ours alone.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    /// When last asked, somebody was there.
    pub(super) present: bool,
    /// Pages that they may be changing.
    touched: RangeSet,
    /// They may have any of it mapped.
    mapped: bool,
    /// A change was heard of that the gate was not told of.
    untold: bool,
    /// The threads that the gate was told of.
    threads: HashMap<u32, Stranger>,
    /// The newest loop device when the file was ours alone.
    loops: Option<u64>,
}

/// One thread.
#[derive(Debug, Default)]
struct Stranger {
    /// It was told to change something, once, and has not yet left a `MODIFY` for the last time.
    writes: bool,
    owes: bool,
    /// It cuts the file by name, and need not have it open.
    cuts: bool,
    /// What it reads, if it does not change it.
    reads: RangeSet,
}

impl Strangers {
    /// None, when `loops` was the newest loop device.
    pub(super) fn since(loops: Option<u64>) -> Strangers {
        Strangers { loops, ..Strangers::default() }
    }

    /// The file is ours alone: none are left but those who cut it by name, if they `may_cut` still.
    pub(super) fn leave(&mut self, loops: Option<u64>, may_cut: impl Fn(u32) -> bool) {
        let mut left = Strangers::since(loops);
        let cutting = std::mem::take(&mut self.threads).into_iter();
        left.threads = cutting.filter(|(t, s)| s.cuts && s.owes && may_cut(*t)).collect();
        if !left.threads.is_empty() {
            left.present = true;
            left.touched = std::mem::take(&mut self.touched);
        }
        *self = left;
    }

    /// Somebody may still cut the file by name, as [`leave`](Strangers::leave) remembers.
    pub(super) fn may_be_cut(&self, may_cut: impl Fn(u32) -> bool) -> bool {
        self.threads.iter().any(|(t, s)| s.cuts && s.owes && may_cut(*t))
    }

    /// A loop device may have come to stand on the file, or have stood on it.
    pub(super) fn may_be_loops(&self) -> bool {
        let now = pageferry_linux::newest_loop();
        now.is_none() || now != self.loops
    }

    /// A thread is about to make a call. Which bytes must be home before.
    pub(super) fn told(&mut self, thread: u32, call: Call, range: &Range<u64>) -> Range<u64> {
        self.present = true;
        let stranger = self.threads.entry(thread).or_default();
        let range = match call {
            Call::Open => return 0..0,
            Call::Read => {
                stranger.reads.add(range.clone());
                return range.clone();
            }
            Call::Write => range.clone(),
            Call::Change | Call::Truncate => range.start..u64::MAX,
            Call::Unknown => 0..u64::MAX,
        };
        (stranger.writes, stranger.owes) = (true, true);
        stranger.cuts = call == Call::Truncate;
        self.mapped |= call == Call::Unknown;
        self.touched.add(range.clone());
        range
    }

    /// Something was heard of a thread (`None`: nobody knows which).
    pub(super) fn heard(&mut self, heard: &Heard) {
        let stranger = heard.thread.and_then(|thread| self.threads.get_mut(&thread));
        let Some(stranger) = stranger else {
            self.untold |= heard.changed();
            return;
        };
        if heard.modified {
            self.untold |= !std::mem::take(&mut stranger.owes);
            // One of these may have been the change.
            for (range, ()) in std::mem::take(&mut stranger.reads).iter() {
                self.touched.add(range);
            }
        }
        self.untold |= heard.closed_writer && !stranger.writes;
    }

    /// The size is another than when last looked at: what else may have changed with it.
    pub(super) fn resized(&mut self, old: u64, new: u64) -> Range<u64> {
        let from = old.min(new) / PAGE_BYTES * PAGE_BYTES;
        if new > old {
            return from..old.next_multiple_of(PAGE_BYTES);
        }
        // By a call that is told it was cut from there on as well.
        self.touched.add(from..u64::MAX);
        from..u64::MAX
    }

    /// Something may have changed, or be changing, at any moment.
    pub(super) fn are_there(&self) -> bool {
        self.present || self.untold || self.mapped || !self.touched.is_empty()
    }

    /// What may have changed; `None`: anything.
    pub(super) fn changed(&mut self) -> Option<Vec<Range<u64>>> {
        let anywhere = std::mem::take(&mut self.untold) || self.mapped;
        (!anywhere).then(|| self.touched.iter().map(|(range, ())| range).collect())
    }

    /// Bytes of a range must not be kept away while they are there.
    pub(super) fn bar(&self, range: &Range<u64>) -> bool {
        self.mapped || self.touched.intersects(range.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(thread: u32) -> Heard {
        Heard {
            file: None,
            own: false,
            thread: Some(thread),
            modified: false,
            opened: false,
            closed: false,
            closed_writer: false,
        }
    }

    fn modified(thread: u32) -> Heard {
        Heard { modified: true, ..heard(thread) }
    }

    const PAGE: Range<u64> = 8192..12_288;

    #[test]
    fn calls_change_what_they_were_told_with_until_all_are_gone() {
        let mut others = Strangers::default();
        assert!(!others.are_there());
        assert_eq!(others.told(1, Call::Read, &PAGE), PAGE);
        assert_eq!(others.changed(), Some(vec![]));
        assert!(!others.bar(&PAGE));
        assert_eq!(others.told(1, Call::Write, &PAGE), PAGE);
        others.heard(&modified(1));
        for _ in 0..2 {
            assert_eq!(others.changed(), Some(vec![PAGE]));
        }
        assert!(others.bar(&(9000..9001)) && !others.bar(&(0..8192)));
        assert_eq!(others.told(1, Call::Change, &(40_960..40_960)), 40_960..u64::MAX);
        assert_eq!(others.changed(), Some(vec![PAGE, 40_960..u64::MAX]));
        assert_eq!(others.told(2, Call::Unknown, &PAGE), 0..u64::MAX);
        assert_eq!(others.changed(), None);
        assert!(others.bar(&(0..1)));
    }

    #[test]
    fn a_change_by_a_thread_that_owes_none_may_be_anywhere() {
        // Never told of: an `O_TRUNC`, an `acct`.
        let mut others = Strangers::default();
        others.told(1, Call::Write, &PAGE);
        others.heard(&modified(2));
        assert_eq!(others.changed(), None);
        assert_eq!(others.changed(), Some(vec![PAGE]), "once is enough");
        // Told of, and paid for.
        others.heard(&modified(1));
        assert_eq!(others.changed(), Some(vec![PAGE]));
        others.heard(&modified(1));
        assert_eq!(others.changed(), None);
        // A loop device goes.
        others.heard(&Heard { closed_writer: true, ..heard(9) });
        assert_eq!(others.changed(), None);
        others.heard(&Heard { closed_writer: true, ..heard(1) });
        assert!(others.changed().is_some());
        others.heard(&Heard { thread: None, ..modified(1) });
        assert_eq!(others.changed(), None);
    }

    #[test]
    fn an_open_touches_nothing_unless_it_may_empty_the_file() {
        let mut others = Strangers::default();
        assert!(others.told(1, Call::Open, &(0..u64::MAX)).is_empty());
        assert!(others.are_there());
        assert_eq!(others.changed(), Some(vec![]));
        others.heard(&Heard { closed_writer: true, ..heard(1) });
        assert_eq!(others.changed(), None, "it may have had a loop device put there");
        assert_eq!(others.told(1, Call::Change, &(0..u64::MAX)), 0..u64::MAX);
        others.heard(&Heard { opened: true, ..modified(1) });
        assert_eq!(others.changed(), Some(std::iter::once(0..u64::MAX).collect()));
    }

    /// A request of io_uring that writes, issued in passing by a thread in `read`.
    #[test]
    fn what_was_told_as_reading_counts_when_its_thread_has_changed_something() {
        let mut others = Strangers::default();
        others.told(1, Call::Read, &PAGE);
        others.told(2, Call::Read, &(0..4096));
        assert_eq!(others.changed(), Some(vec![]));
        // A write that failed owes for ever.
        others.told(1, Call::Write, &(40_960..45_056));
        others.heard(&modified(1));
        assert_eq!(others.changed(), Some(vec![PAGE, 40_960..45_056]));
    }

    #[test]
    fn who_cuts_by_name_is_there_though_the_file_is_ours_alone() {
        let mut others = Strangers::default();
        others.told(1, Call::Truncate, &(8192..8192));
        others.told(2, Call::Write, &PAGE);
        others.leave(None, |_| true);
        assert!(others.are_there() && others.bar(&PAGE));
        others.heard(&modified(1));
        others.leave(None, |_| true);
        assert!(!others.are_there() && !others.bar(&PAGE));
        others.told(1, Call::Truncate, &(8192..8192));
        others.leave(None, |_| false);
        assert!(!others.are_there(), "it has failed");
    }

    #[test]
    fn a_size_that_moves_changes_the_page_of_the_old_end_or_all_from_the_new() {
        let mut others = Strangers::default();
        assert_eq!(others.resized(5000, 50_000), 4096..8192);
        assert_eq!(others.resized(8192, 50_000), 8192..8192);
        assert!(!others.are_there(), "an append is over when it shows");
        assert_eq!(others.resized(50_000, 5000), 4096..u64::MAX);
        assert_eq!(others.changed(), Some(std::iter::once(4096..u64::MAX).collect()));
    }
}
