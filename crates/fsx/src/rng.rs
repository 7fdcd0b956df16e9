//! Where all chance comes from: one number decides a whole run.

/// SplitMix64: small, and every seed is as good as any other.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`; 0 if `n` is 0.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next() % n }
    }

    /// True in `percent` of a hundred.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What a store numbered `fill` stores: different at every place and for every number, so that a
/// byte shows which store it came from and where it belongs.
pub(crate) fn fill_bytes(fill: u64, at: u64, len: u64) -> Vec<u8> {
    let byte =
        |i: u64| Rng::new(fill.wrapping_mul(0x1_0000_0001) ^ (i >> 3)).next() >> ((i & 7) * 8);
    let mut bytes = Vec::with_capacity(len as usize);
    let mut i = at;
    while i < at + len {
        if i.is_multiple_of(8) && i + 8 <= at + len {
            bytes.extend_from_slice(&byte(i).to_le_bytes());
            i += 8;
        } else {
            bytes.push(byte(i) as u8);
            i += 1;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::fill_bytes;

    #[test]
    fn a_part_of_a_fill_is_that_part_of_the_whole() {
        let whole = fill_bytes(5, 0, 100);
        for (at, len) in [(0, 100), (3, 9), (8, 16), (13, 80), (99, 1), (50, 0)] {
            assert_eq!(fill_bytes(5, at, len), whole[at as usize..(at + len) as usize]);
        }
        assert_ne!(whole, fill_bytes(6, 0, 100));
    }
}
