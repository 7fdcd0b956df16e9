//! Where and when others may have changed a file: its epochs.

use std::ops::Range;

use pageferry_engine::range::RangeMap;

/// So many parts are told apart; of more, it is the whole file.
const PARTS_MAX: usize = 256;

/// The epochs of one file.
///
/// # Invariants
/// No epoch in `parts`, nor `whole`, is above `epoch`.
#[derive(Debug, Default)]
pub(super) struct Changes {
    epoch: u64,
    /// The last in which anything may have changed.
    whole: u64,
    /// Later ones in which only these parts have, the last of each.
    parts: RangeMap<u64>,
}

impl Changes {
    /// Those of a file whose epochs were counted to here before.
    pub(super) fn after(epoch: u64) -> Changes {
        Changes { epoch, whole: epoch, parts: RangeMap::new() }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Anything may have changed.
    pub(super) fn anything(&mut self) {
        self.epoch += 1;
        self.whole = self.epoch;
        self.parts = RangeMap::new();
    }

    /// These bytes may have.
    pub(super) fn part(&mut self, part: Range<u64>) {
        self.epoch += 1;
        self.parts.insert(part, self.epoch);
        if self.parts.len() > PARTS_MAX {
            self.anything();
        }
    }

    /// All of these may have; `None`: anything.
    pub(super) fn parts(&mut self, parts: Option<Vec<Range<u64>>>) {
        match parts {
            Some(parts) => parts.into_iter().for_each(|part| self.part(part)),
            None => self.anything(),
        }
    }

    /// What may have changed after that epoch; `None`: anything.
    pub(super) fn since(&self, epoch: u64) -> Option<Vec<Range<u64>>> {
        let later = self.parts.iter().filter(|(_, at)| **at > epoch);
        (self.whole <= epoch).then(|| later.map(|(part, _)| part).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_until_heard_and_too_many_are_the_whole() {
        let mut changes = Changes::after(7);
        assert_eq!(changes.since(6), None);
        assert_eq!(changes.since(7), Some(vec![]));
        changes.part(0..10);
        changes.part(5..20);
        assert_eq!(changes.epoch(), 9);
        assert_eq!(changes.since(7), Some(vec![0..5, 5..20]));
        assert_eq!(changes.since(8), Some(std::iter::once(5..20).collect()));
        assert_eq!(changes.since(9), Some(vec![]));
        changes.anything();
        assert_eq!(changes.since(9), None);
        assert_eq!(changes.since(10), Some(vec![]));
        for part in 0..PARTS_MAX as u64 {
            changes.part(part * 10..part * 10 + 5);
        }
        assert_eq!(changes.since(10).map(|parts| parts.len()), Some(PARTS_MAX));
        changes.part(1 << 40..1 << 41);
        assert_eq!(changes.since(10), None);
        assert_eq!(changes.since(changes.epoch()), Some(vec![]));
    }
}
