//! Whether a kernel finds the hits that the plain loop finds, on the machine that is about to rely on it.

use super::{Kernel, Rabin, WINDOW_LEN_BYTES};

/// Enough for three whole blocks of the widest kernel and a shorter one at the end.
const DATA_LEN_BYTES: usize = 256 << 10;

/// Hits that are followed under one condition; the next ones would say little more.
const HITS_MAX: usize = 200;

/// The polynomial and the key of the default chunking format; any others would do.
const POLYNOMIAL_LOW: u32 = 0xD306_EACF;
const KEY: u32 = 0xA5C3_E719;

/// SplitMix64: a small deterministic generator.
pub(super) fn random(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31).to_le_bytes()
    });
    words.take(len).collect()
}

/// Whether the search finds what the plain loop finds: few hits and many, by the filter and by the exact comparison,
/// in data that swamps the filter, and in every segment of a block.
///
/// It takes some ten milliseconds, most of them for the plain loop.
pub(super) fn passes(search: impl Fn(&Rabin, &[u8], usize) -> Option<usize>) -> bool {
    let mut data = random(DATA_LEN_BYTES, 1);
    // Zeros have fingerprint 0, so all of these positions look alike to the filter.
    data[100_000..140_000].fill(0);
    let plain = Rabin::build(POLYNOMIAL_LOW, KEY, 1, Kernel::Plain);
    let agrees = |key: u32, threshold: u32, mut from: usize| {
        let rabin = plain.with_condition(key, threshold);
        for _ in 0..HITS_MAX {
            let expected = rabin.find_hit_plain(&data, from);
            if search(&rabin, &data, from) != expected {
                return false;
            }
            let Some(hit) = expected else { break };
            from = hit + 1;
        }
        true
    };
    // The last two conditions see zeros as suspects that are no hits, and as hits.
    let conditions = [1, 5423, 1 << 16, (1 << 16) + 1, 1 << 18, 1 << 20, 1 << 24].map(|threshold| (KEY, threshold));
    let zeros = [(0x0000_8000, 1), (0x0000_8000, 0x8001)];
    if !conditions.into_iter().chain(zeros).all(|(key, threshold)| agrees(key, threshold, WINDOW_LEN_BYTES)) {
        return false;
    }
    // Each segment of a block, and with them each column of a tile, has the first hit once: in a block of 17 tiles by
    // the filter, in one of three by the exact comparison.
    (0..64).all(|segment| {
        let hit_first = |threshold: u32, tiles: usize| {
            let segment_len = tiles * WINDOW_LEN_BYTES;
            let position = 80_000 + segment;
            let from = position - segment * segment_len - segment * 131 % segment_len;
            let rabin = plain.with_condition(plain.fingerprint_at(&data, position), threshold);
            search(&rabin, &data, from) == rabin.find_hit_plain(&data[..=position], from)
        };
        hit_first(1, 17) && hit_first((1 << 16) + 1, 3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_passes() {
        assert!(passes(|rabin, data, from| rabin.find_hit_plain(data, from)));
        #[cfg(target_arch = "x86_64")]
        for rolling in Kernel::runnable().into_iter().filter_map(Kernel::rolling) {
            assert!(passes(|rabin, data, from| rabin.find_hit_rolling(rolling, data, from)), "{} lanes", rolling.lanes);
        }
    }

    #[test]
    fn a_kernel_that_errs_once_is_noticed() {
        let wrong = |when: &dyn Fn(&Rabin, usize) -> bool| {
            passes(|rabin, data, from| {
                let hit = rabin.find_hit_plain(data, from);
                if hit.is_some_and(|hit| when(rabin, hit)) { rabin.find_hit_plain(data, hit? + 1) } else { hit }
            })
        };
        assert!(wrong(&|_, _| false));
        // One place of many, for the filter, and an error of the exact comparison.
        for segment in 0..64 {
            assert!(!wrong(&|rabin, hit| rabin.threshold == 1 && hit == 80_000 + segment), "segment {segment}");
        }
        assert!(!wrong(&|rabin, hit| rabin.threshold == 1 << 20 && hit % 8 == 5));
        assert!(!wrong(&|rabin, hit| rabin.threshold == 0x8001 && hit > 100_200));
        assert!(!passes(|_, _, _| None));
        assert!(!passes(|_, _, from| Some(from)));
    }
}
