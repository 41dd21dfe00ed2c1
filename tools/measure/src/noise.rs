//! Seeded numbers and bytes without structure: nothing compresses them, equal seeds give equal bytes.

/// SplitMix64: one multiplication chain a word, good enough to defeat every compressor, and seekable.
#[derive(Clone, Debug)]
pub struct Noise(u64);

/// Mixes a word so that neighbors have nothing in common.
#[must_use]
pub fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

impl Noise {
    /// The sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Noise {
        Noise(seed)
    }

    /// The next word.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `limit`; the bias is below 2^-32 for every limit used here.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(limit)) >> 64) as u64
    }

    /// Fills `out`.
    pub fn fill(&mut self, out: &mut [u8]) {
        let (words, rest) = out.as_chunks_mut::<8>();
        words.iter_mut().for_each(|word| *word = self.word().to_le_bytes());
        let last = self.word().to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// A seed that no other run has.
#[must_use]
pub fn fresh_seed() -> u64 {
    // Where the kernel has no random numbers to give, the clock tells runs apart well enough.
    getrandom::u64().unwrap_or_else(|_| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        mix(since.map_or(1, |since| since.as_nanos() as u64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_bytes_and_no_others() {
        let bytes = |seed| {
            let mut out = [0; 37];
            Noise::new(seed).fill(&mut out);
            out
        };
        assert_eq!(bytes(1), bytes(1));
        assert_ne!(bytes(1), bytes(2));
        let mut noise = Noise::new(3);
        assert!((0..1000).all(|_| noise.below(7) < 7));
    }
}
