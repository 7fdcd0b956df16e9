//! Which folio loses its frame: S3-FIFO.
//!
//! Why this one: device pages are scanned (a kernel streams over a file) far more often than they
//! are looped over, and S3-FIFO's small first queue lets a scan pass through a tenth of the memory
//! without displacing what is re-used; it needs no work at all on a hit but a mark, which for us is
//! one range of `heat` per pin, whatever its length.

use std::collections::{HashSet, VecDeque};

use crate::FileKey;

/// One residency of one folio.
#[derive(Clone, Copy, Debug)]
struct Entry {
    file: FileKey,
    folio: u64,
    /// Distinguishes this residency from later ones of the same folio.
    born: u64,
    /// Heat at which it was last looked at; hotter means used since.
    seen: u64,
}

/// One residency of one folio, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resident {
    pub(crate) file: FileKey,
    pub(crate) folio: u64,
    pub(crate) born: u64,
}

/// What the engine says of a queued folio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// That residency has ended.
    Gone,
    /// Pinned.
    Held,
    /// An action works on it.
    Busy,
    /// May go at once.
    Clean,
    /// May go after write-back.
    Dirty,
    /// As `Dirty`, but that failed when it was last tried.
    Stubborn,
}

/// The answer of one search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    Clean(FileKey, u64),
    Dirty(Resident),
    Stubborn(Resident),
    /// Only folios that an action works on are left.
    Busy,
    /// All are pinned.
    None,
}

/// The three queues.
///
/// # Invariants
/// - Every resident folio has exactly one live entry in `small` or `main`. Entries whose residency
///   has ended are dropped when met, and counted out before the queues outgrow twice the budget.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queues {
    small: VecDeque<Entry>,
    main: VecDeque<Entry>,
    ghost: VecDeque<(FileKey, u64)>,
    ghosts: HashSet<(FileKey, u64)>,
    budget: usize,
}

impl Queues {
    pub(crate) fn new(budget: u64) -> Queues {
        Queues { budget: budget as usize, ..Queues::default() }
    }

    /// A folio got a frame.
    pub(crate) fn push(
        &mut self,
        (file, folio): (FileKey, u64),
        born: u64,
        seen: u64,
        standing: impl Fn(FileKey, u64, u64) -> Standing,
    ) {
        let entry = Entry { file, folio, born, seen };
        let remembered = self.ghosts.remove(&(file, folio));
        if self.small.len() + self.main.len() > 2 * self.budget + 16 {
            let live = |e: &Entry| standing(e.file, e.folio, e.born) != Standing::Gone;
            self.small.retain(live);
            self.main.retain(live);
        }
        if remembered { self.main.push_back(entry) } else { self.small.push_back(entry) }
    }

    /// Finds the folio to evict. `heat` is the last use of a folio.
    pub(crate) fn victim(
        &mut self,
        standing: impl Fn(FileKey, u64, u64) -> Standing,
        heat: impl Fn(FileKey, u64) -> u64,
    ) -> Victim {
        let (mut dirty, mut stubborn, mut busy) = (None, None, false);
        // Twice round: the first may only age what was used, the second then finds it cold. And twice
        // more, now for the protected tenth of the small queue as well. But where the first round
        // finds nothing cold that is clean, something cold that is dirty will do.
        let all = self.small.len() + self.main.len();
        for turn in 0..4 * all {
            if turn >= all && dirty.is_some() {
                break;
            }
            let protected = self.small.len() <= self.budget / 10 && turn < 2 * all;
            let from_small = !self.small.is_empty() && (!protected || self.main.is_empty());
            let queue = if from_small { &mut self.small } else { &mut self.main };
            let Some(mut entry) = queue.pop_front() else { break };
            let Entry { file, folio, born, .. } = entry;
            let state = standing(file, folio, born);
            let now = heat(file, folio);
            match state {
                Standing::Gone => continue,
                Standing::Clean if now <= entry.seen => {
                    // Its residency ends now; a fresh entry comes with the next.
                    if from_small {
                        self.remember(file, folio);
                    }
                    return Victim::Clean(file, folio);
                }
                Standing::Dirty | Standing::Stubborn if now <= entry.seen => {
                    let it = Resident { file, folio, born };
                    if state == Standing::Dirty {
                        dirty.get_or_insert(Victim::Dirty(it));
                    } else {
                        stubborn.get_or_insert(Victim::Stubborn(it));
                    }
                    // Aged once: a dirty page that nobody uses waits in the main queue.
                    self.main.push_back(entry);
                }
                Standing::Held | Standing::Busy => {
                    busy |= state == Standing::Busy;
                    self.main.push_back(entry);
                }
                Standing::Clean | Standing::Dirty | Standing::Stubborn => {
                    entry.seen = now;
                    self.main.push_back(entry);
                }
            }
        }
        let none = if busy { Victim::Busy } else { Victim::None };
        dirty.or(stubborn).unwrap_or(none)
    }

    fn remember(&mut self, file: FileKey, folio: u64) {
        if self.ghosts.insert((file, folio)) {
            self.ghost.push_back((file, folio));
        }
        while self.ghost.len() > self.budget {
            if let Some(old) = self.ghost.pop_front() {
                self.ghosts.remove(&old);
            }
        }
    }

    /// Bytes of host memory that the queues take.
    pub(crate) fn record_bytes(&self) -> u64 {
        let entries = self.small.capacity() + self.main.capacity();
        let ghosts = self.ghost.capacity() + 2 * self.ghosts.capacity();
        (entries * size_of::<Entry>() + ghosts * size_of::<(FileKey, u64)>()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A scan of ten times the budget does not displace a small set that is used again and again.
    #[test]
    fn a_scan_passes_through() {
        let budget = 100u64;
        let mut q = Queues::new(budget);
        let file = FileKey(0);
        let mut resident: std::collections::HashMap<u64, u64> = Default::default();
        let mut heat: std::collections::HashMap<u64, u64> = Default::default();
        let (mut tick, mut misses_of_hot) = (0u64, 0);
        let hot = 0..40u64;
        let mut next_cold = 1000u64;
        for round in 0..50 {
            let cold: Vec<u64> = (next_cold..next_cold + 40).collect();
            next_cold += 40;
            for folio in hot.clone().chain(cold) {
                tick += 1;
                heat.insert(folio, tick);
                if resident.contains_key(&folio) {
                    continue;
                }
                misses_of_hot += u64::from(folio < 40 && round > 2);
                let alive = |r: &std::collections::HashMap<u64, u64>, f: u64, b| {
                    if r.get(&f) == Some(&b) { Standing::Clean } else { Standing::Gone }
                };
                if resident.len() as u64 == budget {
                    let v = q.victim(|_, f, b| alive(&resident, f, b), |_, f| heat[&f]);
                    let Victim::Clean(_, gone) = v else { panic!("no victim: {v:?}") };
                    resident.remove(&gone);
                }
                resident.insert(folio, tick);
                q.push((file, folio), tick, tick, |_, f, b| alive(&resident, f, b));
            }
        }
        assert!(misses_of_hot < 40, "the hot set was displaced {misses_of_hot} times");
    }

    #[test]
    fn clean_goes_before_dirty_and_pinned_never() {
        let mut q = Queues::new(3);
        let standing = |_: FileKey, f: u64, _| match f {
            0 => Standing::Held,
            1 => Standing::Dirty,
            _ => Standing::Clean,
        };
        for f in 0..3 {
            q.push((FileKey(0), f), 0, 0, standing);
        }
        let one = Resident { file: FileKey(0), folio: 1, born: 0 };
        assert_eq!(q.victim(standing, |_, _| 0), Victim::Clean(FileKey(0), 2));
        assert_eq!(q.victim(standing, |_, _| 0), Victim::Dirty(one));
        let stubborn = |_: FileKey, f, _| if f == 1 { Standing::Stubborn } else { Standing::Held };
        assert_eq!(q.victim(stubborn, |_, _| 0), Victim::Stubborn(one));
        assert_eq!(q.victim(|_, _, _| Standing::Held, |_, _| 0), Victim::None);
        assert_eq!(q.victim(|_, _, _| Standing::Busy, |_, _| 0), Victim::Busy);
    }
}
