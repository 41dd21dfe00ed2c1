//! What objects hold: a megabyte of noise, made once a run, of which every megabyte of every object is a variation.
//!
//! Nothing compresses it, no two objects share a chunk (unless that is asked for), and no run repeats another's. Making
//! it costs one pass, as does checking it, so that the client stays cheap beside any server.

use crate::noise::{Noise, mix};

const BASE_LEN_BYTES: usize = 1 << 20;

/// Bytes compared before a difference is looked for.
const COMPARE_LEN_BYTES: usize = 4096;

/// The noise of a run.
pub struct Content {
    base: Vec<u8>,
    seed: u64,
}

/// One object's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentId(pub u64);

impl Content {
    /// That of a seed.
    pub fn new(seed: u64) -> Content {
        let mut base = vec![0; BASE_LEN_BYTES];
        Noise::new(seed).fill(&mut base);
        Content { base, seed }
    }

    /// The content that belongs to `words`, which name an object and its version. A share of `dedup_ratio` of all
    /// objects has one and the same content.
    pub fn id(&self, words: [u64; 3], dedup_ratio: f64) -> ContentId {
        let id = words.iter().fold(self.seed, |sum, word| mix(sum.wrapping_mul(31).wrapping_add(mix(*word ^ sum))));
        let is_common = ((mix(id) >> 11) as f64 / (1u64 << 53) as f64) < dedup_ratio;
        ContentId(if is_common { mix(self.seed) } else { id })
    }

    /// What the words of a megabyte are XORed with, seen from a byte in it.
    fn word(&self, id: ContentId, offset: u64) -> (usize, u64) {
        let megabyte = offset / BASE_LEN_BYTES as u64;
        let at = (offset % BASE_LEN_BYTES as u64) as usize;
        (at, mix(id.0 ^ mix(megabyte.wrapping_add(1))).rotate_right(8 * (at as u32 % 8)))
    }

    /// Fills `out` with the bytes from `offset` on.
    pub fn fill(&self, id: ContentId, mut offset: u64, mut out: &mut [u8]) {
        while !out.is_empty() {
            let (at, word) = self.word(id, offset);
            let (now, later) = out.split_at_mut(out.len().min(BASE_LEN_BYTES - at));
            let base = &self.base[at..at + now.len()];
            offset += now.len() as u64;
            let (words, rest) = now.as_chunks_mut::<8>();
            let (base_words, base_rest) = base.as_chunks::<8>();
            for (out, base) in words.iter_mut().zip(base_words) {
                *out = (u64::from_ne_bytes(*base) ^ u64::from_ne_bytes(word.to_le_bytes())).to_ne_bytes();
            }
            for ((out, base), key) in rest.iter_mut().zip(base_rest).zip(word.to_le_bytes()) {
                *out = base ^ key;
            }
            out = later;
        }
    }

    /// Where `bytes`, read from `offset` on, first differ from the content.
    pub fn difference(&self, id: ContentId, offset: u64, bytes: &[u8]) -> Option<u64> {
        let mut wanted = [0; COMPARE_LEN_BYTES];
        let mut at = offset;
        for part in bytes.chunks(COMPARE_LEN_BYTES) {
            let wanted = &mut wanted[..part.len()];
            self.fill(id, at, wanted);
            if wanted != part {
                let first = wanted.iter().zip(part).position(|(wanted, found)| wanted != found);
                return Some(at + first.unwrap_or(0) as u64);
            }
            at += part.len() as u64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_is_the_same_as_in_the_whole() {
        let content = Content::new(7);
        let id = content.id([1, 2, 3], 0.0);
        let mut whole = vec![0; (2 << 20) + 77];
        content.fill(id, 0, &mut whole);
        for (offset, len) in [(0, 5), (3, 1000), ((1 << 20) - 3, 10), ((1 << 20) + 5, 1 << 20), (2 << 20, 77)] {
            let mut part = vec![0; len];
            content.fill(id, offset as u64, &mut part);
            assert!(part == whole[offset..offset + len], "{len} bytes from {offset}");
            assert_eq!(content.difference(id, offset as u64, &part), None);
            part[len / 2] ^= 1;
            assert_eq!(content.difference(id, offset as u64, &part), Some((offset + len / 2) as u64));
        }
    }

    #[test]
    fn objects_versions_runs_and_megabytes_differ() {
        let part = |seed, words, offset| {
            let (content, mut out) = (Content::new(seed), [0; 64]);
            content.fill(content.id(words, 0.0), offset, &mut out);
            out
        };
        let first = part(1, [0, 0, 0], 0);
        for (seed, words, offset) in
            [(2, [0, 0, 0], 0), (1, [1, 0, 0], 0), (1, [0, 1, 0], 0), (1, [0, 0, 1], 0), (1, [0, 0, 0], 1 << 20)]
        {
            assert_ne!(part(seed, words, offset), first, "{seed} {words:?} {offset}");
        }
    }

    #[test]
    fn the_dedup_ratio_is_kept() {
        let content = Content::new(9);
        for ratio in [0.0, 0.3, 1.0] {
            let ids: Vec<ContentId> = (0..2000).map(|object| content.id([0, object, 0], ratio)).collect();
            let common = ids.iter().filter(|id| **id == ContentId(mix(9))).count() as f64 / 2000.0;
            assert!((common - ratio).abs() < 0.05, "{common} instead of {ratio}");
        }
    }
}
