//! Sets of bytes, as sorted ranges that neither overlap nor touch.
//!
//! The engine has a better one; this tool shares no code with what it tests.

use std::ops::Range;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    pub(crate) fn add(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        let mut merged = range;
        self.0.retain(|r| {
            let apart = r.end < merged.start || merged.end < r.start;
            if !apart {
                merged = merged.start.min(r.start)..merged.end.max(r.end);
            }
            apart
        });
        let at = self.0.partition_point(|r| r.start < merged.start);
        self.0.insert(at, merged);
    }

    pub(crate) fn remove(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        let parts = self.0.drain(..).flat_map(|r| {
            let before = r.start..r.end.min(range.start);
            let after = r.start.max(range.end)..r.end;
            [before, after]
        });
        self.0 = parts.filter(|r| r.start < r.end).collect();
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn intersects(&self, range: &Range<u64>) -> bool {
        self.0.iter().any(|r| overlap(r, range))
    }

    /// The parts of `range` in the set.
    pub(crate) fn within(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        self.0.iter().map(|r| clip(r, range)).filter(|r| r.start < r.end).collect()
    }

    /// The parts of `range` not in the set.
    pub(crate) fn gaps(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut whole = Ranges::default();
        whole.add(range.clone());
        self.0.iter().for_each(|r| whole.remove(r.clone()));
        whole.0
    }
}

pub(crate) fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start.max(b.start) < a.end.min(b.end)
}

/// What two ranges share; empty, but never inverted, if nothing.
pub(crate) fn clip(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// Widened to whole pages.
pub(crate) fn pages(range: &Range<u64>) -> Range<u64> {
    if range.is_empty() {
        return range.clone();
    }
    range.start & !4095..range.end.saturating_add(4095) & !4095
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn like_an_array(steps in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 0..40)) {
            let (mut set, mut array) = (Ranges::default(), [false; 100]);
            for (adds, at, len) in steps {
                if adds { set.add(at..at + len) } else { set.remove(at..at + len) }
                array[at as usize..(at + len) as usize].fill(adds);
                let listed: Vec<u64> = set.within(&(0..100)).into_iter().flatten().collect();
                let expected: Vec<u64> = (0..100).filter(|i| array[*i as usize]).collect();
                prop_assert_eq!(&listed, &expected);
                let missing: Vec<u64> = set.gaps(&(5..50)).into_iter().flatten().collect();
                let expected: Vec<u64> = (5..50).filter(|i| !array[*i as usize]).collect();
                prop_assert_eq!(&missing, &expected);
                prop_assert!(set.0.windows(2).all(|w| w[0].end < w[1].start));
            }
        }
    }
}
