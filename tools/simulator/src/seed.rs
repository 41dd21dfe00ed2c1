//! Chance from a seed: a small generator (xoshiro256**, seeded through splitmix64), never for secrets.

use std::cell::Cell;

/// One step of splitmix64: mixes `state` well; used for seeding and for trace hashes.
#[must_use]
pub fn mix64(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A generator of numbers that depend on nothing but its seed and how often it was asked.
#[derive(Debug)]
pub struct SeededRng {
    state: Cell<[u64; 4]>,
}

impl SeededRng {
    /// A generator for `seed`.
    #[must_use]
    pub fn new(seed: u64) -> SeededRng {
        let mut word = seed;
        let state = [(); 4].map(|()| {
            word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix64(word)
        });
        SeededRng { state: Cell::new(state) }
    }

    /// A generator of its own for a part of the run: `label` tells parts apart, this one is not moved.
    #[must_use]
    pub fn for_part(seed: u64, label: u64) -> SeededRng {
        SeededRng::new(mix64(seed) ^ mix64(label ^ 0x6b69_7365_6b69))
    }

    /// The next 64 bits.
    pub fn next_u64(&self) -> u64 {
        let mut s = self.state.get();
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        self.state.set(s);
        result
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&self, bound: u64) -> u64 {
        assert!(bound > 0, "a number below 0 was asked for");
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// An index into something of `len` elements.
    pub fn index(&self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A number in `range` (half-open, not empty).
    pub fn between(&self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// True in `numerator` of `denominator` cases.
    pub fn chance(&self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// One of `items`, which must not be empty.
    pub fn pick<'a, T>(&self, items: &'a [T]) -> &'a T {
        &items[self.index(items.len())]
    }

    /// Fills `out`.
    pub fn fill(&self, out: &mut [u8]) {
        for piece in out.chunks_mut(8) {
            let word = self.next_u64().to_le_bytes();
            piece.copy_from_slice(&word[..piece.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_and_another_gives_others() {
        let numbers = |seed| {
            let rng = SeededRng::new(seed);
            (0..64).map(|_| rng.next_u64()).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
    }

    #[test]
    fn numbers_stay_in_their_range_and_reach_all_of_it() {
        let rng = SeededRng::new(1);
        let mut seen = [0_u32; 5];
        for _ in 0..1000 {
            seen[rng.between(10..15) as usize - 10] += 1;
        }
        assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
    }

    #[test]
    fn fill_covers_odd_lengths() {
        let mut bytes = [0_u8; 13];
        SeededRng::new(3).fill(&mut bytes);
        assert!(bytes.iter().any(|byte| *byte != 0));
        assert!(bytes[8..].iter().any(|byte| *byte != 0));
    }
}
