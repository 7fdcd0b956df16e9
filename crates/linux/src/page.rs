//! Pages and page ranges.

use std::ops::Range;

/// The CPU's base page in bytes, as the running kernel has it.
#[must_use]
pub fn page_bytes() -> usize {
    rustix::param::page_size()
}

/// Disjoint, non-touching, ordered ranges of offsets: a set that merges what meets.
#[derive(Debug, Default)]
pub(crate) struct RangeSet {
    /// Start → end.
    spans: std::collections::BTreeMap<usize, usize>,
}

impl RangeSet {
    /// Adds `range`.
    pub(crate) fn insert(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        let met: Vec<usize> = self
            .spans
            .range(..=end)
            .rev()
            .take_while(|&(_, &e)| e >= start)
            .map(|(&s, _)| s)
            .collect();
        for s in met {
            if let Some(e) = self.spans.remove(&s) {
                start = start.min(s);
                end = end.max(e);
            }
        }
        self.spans.insert(start, end);
    }

    /// Takes `range` away.
    pub(crate) fn remove(&mut self, range: Range<usize>) {
        for part in self.within(range.clone()) {
            let Some((&s, &e)) = self.spans.range(..=part.start).next_back() else { continue };
            self.spans.remove(&s);
            if s < part.start {
                self.spans.insert(s, part.start);
            }
            if part.end < e {
                self.spans.insert(part.end, e);
            }
        }
    }

    /// The parts of `range` that are in the set, ascending.
    pub(crate) fn within(&self, range: Range<usize>) -> Vec<Range<usize>> {
        let from = self.spans.range(..=range.start).next_back().map_or(range.start, |(&s, _)| s);
        self.spans
            .range(from..range.end.max(from))
            .map(|(&s, &e)| s.max(range.start)..e.min(range.end))
            .filter(|r| !r.is_empty())
            .collect()
    }

    /// The parts of `range` that are not in the set, ascending.
    pub(crate) fn gaps(&self, range: Range<usize>) -> Vec<Range<usize>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        for part in self.within(range.clone()) {
            if at < part.start {
                gaps.push(at..part.start);
            }
            at = part.end;
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// The range of the set that `at` is in.
    pub(crate) fn around(&self, at: usize) -> Option<Range<usize>> {
        self.spans.range(..=at).next_back().map(|(&s, &e)| s..e).filter(|r| r.contains(&at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_set_of_points() {
        let mut points = [false; 64];
        let mut set = RangeSet::default();
        let mut seed = 12345_u64;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let a = (seed >> 33) as usize % 64;
            let b = (seed >> 45) as usize % 65;
            let range = a.min(b)..a.max(b);
            if seed >> 63 == 0 {
                set.insert(range.clone());
                points[range].fill(true);
            } else {
                set.remove(range.clone());
                points[range].fill(false);
            }
            let c = (seed >> 20) as usize % 32;
            let inside = set.within(c..c + 32);
            let outside = set.gaps(c..c + 32);
            for (at, &point) in points.iter().enumerate().skip(c).take(32) {
                assert_eq!(inside.iter().any(|r| r.contains(&at)), point);
                assert_eq!(outside.iter().any(|r| r.contains(&at)), !point);
                assert_eq!(set.around(at).is_some(), point);
            }
        }
        // Touching ranges have become one.
        set.remove(0..64);
        set.insert(0..2);
        set.insert(4..6);
        set.insert(2..4);
        assert_eq!(set.within(0..64), vec![(0..6)]);
    }
}
