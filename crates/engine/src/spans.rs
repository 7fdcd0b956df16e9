//! Ranges that may overlap, each under a key, found by what they meet.
//!
//! The one idea: each range stands at the smallest aligned power-of-two block that contains it, so
//! it crosses the middle of that block. Of all blocks of one size only one contains a given point;
//! whether a range there holds the point is told by its start alone (left of the middle), or by its
//! end alone (right of it). So whoever asks walks over what he finds and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::PinKey;

/// The ranges whose blocks have one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Level {
    starts: BTreeSet<(u64, PinKey)>,
    ends: BTreeSet<(u64, PinKey)>,
}

/// An index of ranges by place.
///
/// # Invariants
/// - Each range stands in both sets of the level of its block, and nowhere else. No level is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spans {
    /// By the number of low bits that vary inside of a block.
    levels: BTreeMap<u32, Level>,
}

/// The level of a range that is not empty.
fn level(range: &Range<u64>) -> u32 {
    u64::BITS - (range.start ^ (range.end - 1)).leading_zeros()
}

/// The low bits that vary inside of a block.
fn low_bits(level: u32) -> u64 {
    u64::MAX.checked_shr(u64::BITS - level).unwrap_or(0)
}

impl Spans {
    pub(crate) fn insert(&mut self, range: &Range<u64>, key: PinKey) {
        if !range.is_empty() {
            let level = self.levels.entry(level(range)).or_default();
            level.starts.insert((range.start, key));
            level.ends.insert((range.end, key));
        }
    }

    /// Takes out what was inserted with this range.
    pub(crate) fn remove(&mut self, range: &Range<u64>, key: PinKey) {
        if range.is_empty() {
            return;
        }
        let at = level(range);
        if let Some(level) = self.levels.get_mut(&at) {
            level.starts.remove(&(range.start, key));
            level.ends.remove(&(range.end, key));
            if level.starts.is_empty() {
                self.levels.remove(&at);
            }
        }
    }

    /// Keys of ranges that meet `range`, in no order. O(log n) for each size of blocks that there
    /// is, and then by what is found.
    pub(crate) fn over(&self, range: Range<u64>) -> impl Iterator<Item = PinKey> + '_ {
        let levels = (!range.is_empty()).then_some(&self.levels).into_iter().flatten();
        levels.flat_map(move |(&at, level)| level.over(low_bits(at), &range))
    }
}

impl Level {
    fn over<'a>(&'a self, low: u64, range: &Range<u64>) -> impl Iterator<Item = PinKey> + use<'a> {
        let (first, last) = (range.start & !low, range.start | low);
        // Left of the middle: all of the block that begin before the end of `range`, and of later ones.
        let left = range.start <= first + low / 2;
        let from = if left { first } else { range.start };
        let begin = self.starts.range((from, PinKey(0))..(range.end, PinKey(0)));
        // Right of it: those of the block that end behind the first point. None of them begins there.
        let behind = (range.start.saturating_add(1), PinKey(0));
        let end = self.ends.range(behind..).take_while(move |(end, _)| !left && end - 1 <= last);
        begin.chain(end).map(|(_, key)| *key)
    }
}

#[cfg(test)]
#[path = "spans_tests.rs"]
mod tests;
