//! Disjoint half-open ranges of `u64` with a value each.
//!
//! The one structure behind page locks, traps, heat and "every page valid": what a file knows about
//! long stretches costs memory and time by the number of *stretches*, not of pages.

use std::collections::BTreeMap;
use std::ops::Range;

/// A map from disjoint ranges to values.
///
/// # Invariants
/// - No stored range is empty, and none overlaps another.
/// - Adjacent ranges with equal values are one range.
#[derive(Clone, Debug)]
pub struct RangeMap<V> {
    /// start -> (end, value)
    ranges: BTreeMap<u64, (u64, V)>,
}

/// A set of `u64`, stored as ranges.
pub type RangeSet = RangeMap<()>;

impl<V> Default for RangeMap<V> {
    fn default() -> Self {
        RangeMap { ranges: BTreeMap::new() }
    }
}

impl<V: Clone + PartialEq> RangeMap<V> {
    /// An empty map.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing is stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many maximal ranges are stored.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Sets every point of `range` to `value`. O(log n) plus the ranges replaced.
    pub fn insert(&mut self, range: Range<u64>, value: V) {
        if range.is_empty() {
            return;
        }
        self.remove(range.clone());
        let Range { mut start, mut end } = range;
        if let Some((&before, (before_end, v))) = self.ranges.range(..start).next_back()
            && *before_end == start
            && *v == value
        {
            start = before;
        }
        if let Some((after_end, v)) = self.ranges.get(&end)
            && *v == value
        {
            let after_end = *after_end;
            self.ranges.remove(&end);
            end = after_end;
        }
        self.ranges.insert(start, (end, value));
    }

    /// Removes every point of `range`.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        if let Some((&start, &(end, ref value))) = self.ranges.range(..range.start).next_back()
            && end > range.start
        {
            let value = value.clone();
            if end > range.end {
                self.ranges.insert(range.end, (end, value.clone()));
            }
            self.ranges.insert(start, (range.start, value));
        }
        while let Some((&start, &(end, _))) = self.ranges.range(range.clone()).next() {
            if let Some((_, value)) = self.ranges.remove(&start)
                && end > range.end
            {
                self.ranges.insert(range.end, (end, value));
            }
        }
    }

    /// The stored ranges that meet `range`, clipped to it, ascending.
    pub fn overlaps(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, &V)> + '_ {
        let first = self
            .ranges
            .range(..range.start)
            .next_back()
            .filter(move |(_, (end, _))| *end > range.start && range.start < range.end);
        let rest = if range.is_empty() { range.start..range.start } else { range.clone() };
        first.into_iter().chain(self.ranges.range(rest)).map(move |(&start, (end, value))| {
            (start.max(range.start)..(*end).min(range.end), value)
        })
    }

    /// The first gap of `range`: points that nothing is stored for.
    #[must_use]
    pub fn first_gap(&self, range: Range<u64>) -> Option<Range<u64>> {
        let mut at = range.start;
        for (covered, _) in self.overlaps(range.clone()) {
            if covered.start > at {
                return Some(at..covered.start);
            }
            at = covered.end;
        }
        (at < range.end).then_some(at..range.end)
    }

    /// Every point of `range` is stored. O(log n) when values do not vary inside.
    #[must_use]
    pub fn covers(&self, range: Range<u64>) -> bool {
        self.first_gap(range).is_none()
    }

    /// Some point of `range` is stored.
    #[must_use]
    pub fn intersects(&self, range: Range<u64>) -> bool {
        self.overlaps(range).next().is_some()
    }

    /// The value at a point.
    #[must_use]
    pub fn get(&self, at: u64) -> Option<&V> {
        self.ranges.range(..=at).next_back().filter(|(_, (end, _))| *end > at).map(|(_, (_, v))| v)
    }

    /// The maximal stored range around a point.
    #[must_use]
    pub fn range_at(&self, at: u64) -> Option<Range<u64>> {
        let (&start, &(end, _)) = self.ranges.range(..=at).next_back()?;
        (end > at).then_some(start..end)
    }

    /// All ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (Range<u64>, &V)> + '_ {
        self.ranges.iter().map(|(&start, (end, value))| (start..*end, value))
    }
}

impl RangeSet {
    /// Adds every point of `range`.
    pub fn add(&mut self, range: Range<u64>) {
        self.insert(range, ());
    }

    /// The parts of `range` that are not in the set, ascending.
    #[must_use]
    pub fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        for (covered, ()) in self.overlaps(range.clone()) {
            if covered.start > at {
                gaps.push(at..covered.start);
            }
            at = covered.end;
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// Points in the set.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.iter().map(|(r, ())| r.end - r.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flat(map: &RangeMap<u8>) -> Vec<Option<u8>> {
        (0..64).map(|at| map.get(at).copied()).collect()
    }

    proptest! {
        /// Any sequence of inserts and removes equals the same on a plain array.
        #[test]
        fn equals_an_array(ops in prop::collection::vec((0u64..64, 0u64..64, prop::option::of(0u8..3)), 0..60)) {
            let mut map = RangeMap::new();
            let mut model = vec![None; 64];
            for (a, b, value) in ops {
                let range = a.min(b)..a.max(b);
                match value {
                    Some(v) => map.insert(range.clone(), v),
                    None => map.remove(range.clone()),
                }
                for at in range.clone() {
                    model[at as usize] = value;
                }
                prop_assert_eq!(flat(&map), model.clone());
                // Maximal, disjoint, non-empty.
                let all: Vec<_> = map.iter().map(|(r, v)| (r, *v)).collect();
                for pair in all.windows(2) {
                    prop_assert!(pair[0].0.end <= pair[1].0.start);
                    prop_assert!(pair[0].0.end < pair[1].0.start || pair[0].1 != pair[1].1);
                }
                // overlaps and gaps tile the range.
                let covered: u64 = map.overlaps(range.clone()).map(|(r, _)| r.end - r.start).sum();
                let expected = range.clone().filter(|at| model[*at as usize].is_some()).count();
                prop_assert_eq!(covered, expected as u64);
                let gap = range.clone().find(|at| model[*at as usize].is_none());
                prop_assert_eq!(map.first_gap(range).map(|g| g.start), gap);
            }
        }
    }

    #[test]
    fn adjacent_equal_ranges_are_one() {
        let mut set = RangeSet::new();
        for at in (0..10_000u64).rev() {
            set.add(at..at + 1);
        }
        assert_eq!(set.len(), 1);
        assert!(set.covers(0..10_000));
        set.remove(5..6);
        assert_eq!(set.gaps(0..8), vec![5..6]);
    }
}
