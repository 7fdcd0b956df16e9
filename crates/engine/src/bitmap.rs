//! A fixed-size bitmap with run queries: one bit for each page of a folio.

use std::ops::Range;

/// Bits `0..len`, all clear at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bitmap {
    words: Box<[u64]>,
}

impl Bitmap {
    pub(crate) fn new(bits: u32) -> Bitmap {
        Bitmap { words: vec![0; bits.div_ceil(64) as usize].into_boxed_slice() }
    }

    /// Calls `f` with each word's index and the mask of the bits of `range` in it.
    fn masks(range: Range<u32>) -> impl Iterator<Item = (usize, u64)> {
        let words =
            if range.is_empty() { 0..0 } else { range.start / 64..(range.end - 1) / 64 + 1 };
        words.map(move |word| {
            let low = range.start.saturating_sub(word * 64).min(64);
            let high = (range.end - word * 64).min(64);
            let upto = if high == 64 { u64::MAX } else { (1 << high) - 1 };
            (word as usize, upto & (u64::MAX << low))
        })
    }

    pub(crate) fn set(&mut self, range: Range<u32>) {
        for (word, mask) in Self::masks(range) {
            self.words[word] |= mask;
        }
    }

    pub(crate) fn clear(&mut self, range: Range<u32>) {
        for (word, mask) in Self::masks(range) {
            self.words[word] &= !mask;
        }
    }

    pub(crate) fn get(&self, bit: u32) -> bool {
        self.words[bit as usize / 64] >> (bit % 64) & 1 == 1
    }

    pub(crate) fn any(&self, range: Range<u32>) -> bool {
        Self::masks(range).any(|(word, mask)| self.words[word] & mask != 0)
    }

    pub(crate) fn all(&self, range: Range<u32>) -> bool {
        Self::masks(range).all(|(word, mask)| self.words[word] & mask == mask)
    }

    pub(crate) fn count(&self, range: Range<u32>) -> u64 {
        Self::masks(range)
            .map(|(word, mask)| u64::from((self.words[word] & mask).count_ones()))
            .sum()
    }

    /// The first maximal run inside `range` of bits that equal `value`.
    pub(crate) fn first_run(&self, range: Range<u32>, value: bool) -> Option<Range<u32>> {
        let start = self.find(range.clone(), value)?;
        let end = self.find(start..range.end, !value).unwrap_or(range.end);
        Some(start..end)
    }

    fn find(&self, range: Range<u32>, value: bool) -> Option<u32> {
        Self::masks(range).find_map(|(word, mask)| {
            let bits = if value { self.words[word] } else { !self.words[word] } & mask;
            (bits != 0).then(|| word as u32 * 64 + bits.trailing_zeros())
        })
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.words.len() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_an_array(ops in prop::collection::vec((0u32..200, 0u32..200, any::<bool>()), 1..40)) {
            let mut bits = Bitmap::new(200);
            let mut model = [false; 200];
            for (a, b, value) in ops {
                let range = a.min(b)..a.max(b);
                if value { bits.set(range.clone()) } else { bits.clear(range.clone()) }
                for at in range.clone() { model[at as usize] = value; }
                for at in 0..200 { prop_assert_eq!(bits.get(at), model[at as usize]); }
                let slice = &model[range.start as usize..range.end as usize];
                prop_assert_eq!(bits.all(range.clone()), slice.iter().all(|b| *b));
                prop_assert_eq!(bits.count(0..200), model.iter().filter(|b| **b).count() as u64);
                let run = bits.first_run(0..200, value);
                let start = model.iter().position(|b| *b == value);
                prop_assert_eq!(run.as_ref().map(|r| r.start as usize), start);
                if let Some(run) = run {
                    prop_assert!((run.clone()).all(|at| model[at as usize] == value));
                    prop_assert!(run.end == 200 || model[run.end as usize] != value);
                }
            }
        }
    }
}
