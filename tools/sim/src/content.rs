//! Contents of objects, made from a few numbers: nothing has to be kept to compare what comes back.

use bytes::Bytes;
use kiseki_simulator::SeededRng;
use kiseki_simulator::seed::mix64;
use std::ops::Range;

/// Longest single object of a run.
pub const CONTENT_LEN_BYTES_MAX: u64 = 2 << 20;

/// Contents that come back again and again, for dedup.
const POPULAR_COUNT: u64 = 6;

/// A stream of bytes, with some others put in front: so contents share their tails, as edited files do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    seed: u64,
    /// Bytes in front that belong to another stream.
    front: u64,
    len: u64,
}

impl Content {
    /// Draws a content of at most `len_max` bytes.
    #[must_use]
    pub fn draw(rng: &SeededRng, len_max: u64) -> Content {
        let is_popular = rng.chance(1, 4);
        let seed = if is_popular { rng.below(POPULAR_COUNT) } else { rng.next_u64() };
        // A popular content has one length, or there would be nothing to find again.
        let lens = SeededRng::new(seed);
        let len = draw_len(if is_popular { &lens } else { rng }).min(len_max);
        let front = if is_popular && rng.chance(1, 3) { rng.below(3).min(len) } else { 0 };
        Content { seed, front, len }
    }

    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes of `range`, which must lie in the content.
    #[must_use]
    pub fn bytes(&self, range: Range<u64>) -> Bytes {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        let mut out = Vec::with_capacity((range.end - range.start) as usize + 8);
        let in_front = range.start.min(self.front)..range.end.min(self.front);
        extend(&mut out, !self.seed, in_front);
        let behind = range.start.max(self.front)..range.end.max(self.front);
        extend(&mut out, self.seed, behind.start - self.front..behind.end - self.front);
        Bytes::from(out)
    }
}

fn draw_len(rng: &SeededRng) -> u64 {
    match rng.below(100) {
        0..6 => 0,
        6..50 => rng.between(1..4096),
        50..75 => rng.between(4096..64 << 10),
        75..80 => *rng.pick(&[4095, 4096, 4097, 65_535, 65_536, 65_537, 262_144]),
        80..96 => rng.between(64 << 10..400 << 10),
        _ => rng.between(400 << 10..CONTENT_LEN_BYTES_MAX),
    }
}

fn extend(out: &mut Vec<u8>, seed: u64, range: Range<u64>) {
    let seed = mix64(seed);
    let (len, skip) = ((range.end - range.start) as usize, (range.start % 8) as usize);
    let goal = out.len() + len;
    let mut word = range.start / 8;
    let mut first = skip;
    while out.len() < goal {
        let bytes = mix64(seed ^ word).to_le_bytes();
        out.extend_from_slice(&bytes[first..]);
        (word, first) = (word + 1, 0);
    }
    out.truncate(goal);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_the_same_bytes_as_the_whole() {
        let rng = SeededRng::new(1);
        for _ in 0..200 {
            let content = Content::draw(&rng, 10_000);
            let whole = content.bytes(0..content.len());
            let start = rng.below(content.len() + 1);
            let end = rng.between(start..content.len() + 1);
            assert_eq!(content.bytes(start..end), whole[start as usize..end as usize], "{content:?} {start}..{end}");
        }
    }

    #[test]
    fn contents_repeat_and_lengths_vary() {
        let rng = SeededRng::new(2);
        let drawn: Vec<Content> = (0..500).map(|_| Content::draw(&rng, CONTENT_LEN_BYTES_MAX)).collect();
        let repeats = drawn.iter().filter(|content| drawn.iter().filter(|other| other == content).count() > 1).count();
        assert!(repeats > 60, "{repeats}");
        assert!(drawn.iter().any(Content::is_empty) && drawn.iter().any(|content| content.len() > 1 << 20));
    }

    #[test]
    fn an_insertion_in_front_shifts_the_rest() {
        let plain = Content { seed: 3, front: 0, len: 1000 };
        let shifted = Content { seed: 3, front: 1, len: 1001 };
        assert_eq!(plain.bytes(0..1000), shifted.bytes(1..1001));
    }
}
