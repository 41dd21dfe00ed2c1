//! SHA-256 compression with SHA-NI, one or two streams side by side.
#![allow(unsafe_code)]

use super::BLOCK_LEN_BYTES;
use super::constants::ROUND_CONSTANTS;
use std::arch::x86_64::*;

/// Whether this processor has every instruction that [`compress`] uses.
pub(super) fn runs_here() -> bool {
    std::is_x86_feature_detected!("sha") && std::is_x86_feature_detected!("sse4.1")
}

/// Compresses the whole blocks of each stream into its state; all streams have the same number of blocks.
pub(super) fn compress<const STREAMS: usize>(states: [&mut [u32; 8]; STREAMS], data: [&[u8]; STREAMS]) {
    assert!(runs_here(), "SHA-NI is chosen only where it runs");
    // SAFETY: the instructions were detected above; all memory is reached through slices.
    unsafe { compress_streams(states, data) }
}

#[target_feature(enable = "sha,sse4.1")]
#[allow(clippy::needless_range_loop)] // the same block of every stream, which no one iterator yields
fn compress_streams<const STREAMS: usize>(states: [&mut [u32; 8]; STREAMS], data: [&[u8]; STREAMS]) {
    let blocks: [&[[u8; BLOCK_LEN_BYTES]]; STREAMS] = data.map(|data| data.as_chunks().0);
    let count = blocks[0].len();
    assert!(blocks.iter().all(|blocks| blocks.len() == count), "streams of different lengths");
    let mut abef = [_mm_setzero_si128(); STREAMS];
    let mut cdgh = [_mm_setzero_si128(); STREAMS];
    for s in 0..STREAMS {
        (abef[s], cdgh[s]) = load_state(states[s]);
    }
    for at in 0..count {
        let mut words = [[_mm_setzero_si128(); 4]; STREAMS];
        for s in 0..STREAMS {
            words[s] = load_words(&blocks[s][at]);
        }
        let (abef_before, cdgh_before) = (abef, cdgh);
        macro_rules! four_rounds {
            ($($group:literal)*) => {$(
                for s in 0..STREAMS {
                    let w = &mut words[s];
                    if $group >= 4 {
                        let seven_back = _mm_alignr_epi8::<4>(w[($group + 3) % 4], w[($group + 2) % 4]);
                        let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w[$group % 4], w[($group + 1) % 4]), seven_back);
                        w[$group % 4] = _mm_sha256msg2_epu32(sum, w[($group + 3) % 4]);
                    }
                    let input = _mm_add_epi32(w[$group % 4], constants($group));
                    cdgh[s] = _mm_sha256rnds2_epu32(cdgh[s], abef[s], input);
                    abef[s] = _mm_sha256rnds2_epu32(abef[s], cdgh[s], _mm_shuffle_epi32::<0x0e>(input));
                }
            )*};
        }
        four_rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        for s in 0..STREAMS {
            abef[s] = _mm_add_epi32(abef[s], abef_before[s]);
            cdgh[s] = _mm_add_epi32(cdgh[s], cdgh_before[s]);
        }
    }
    for (s, state) in states.into_iter().enumerate() {
        store_state(state, abef[s], cdgh[s]);
    }
}

#[target_feature(enable = "sse4.1")]
fn constants(group: usize) -> __m128i {
    // SAFETY: 16 readable bytes; the load needs no alignment.
    unsafe { _mm_loadu_si128(ROUND_CONSTANTS[group].as_ptr().cast()) }
}

/// Sixteen big-endian words of a block.
#[target_feature(enable = "sse4.1")]
fn load_words(block: &[u8; BLOCK_LEN_BYTES]) -> [__m128i; 4] {
    let big_endian = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let quarters = block.as_chunks::<16>().0;
    let mut words = [_mm_setzero_si128(); 4];
    for (word, quarter) in words.iter_mut().zip(quarters) {
        // SAFETY: `quarter` is 16 readable bytes; the load needs no alignment.
        let raw = unsafe { _mm_loadu_si128(quarter.as_ptr().cast()) };
        *word = _mm_shuffle_epi8(raw, big_endian);
    }
    words
}

/// The state in the order that the round instruction wants: (ABEF, CDGH), first letter in the highest word.
#[target_feature(enable = "sse4.1")]
fn load_state(state: &[u32; 8]) -> (__m128i, __m128i) {
    let [a, b, c, d, e, f, g, h] = state.map(|word| word as i32);
    (_mm_set_epi32(a, b, e, f), _mm_set_epi32(c, d, g, h))
}

#[target_feature(enable = "sse4.1")]
fn store_state(state: &mut [u32; 8], abef: __m128i, cdgh: __m128i) {
    let word = |value: i32| value as u32;
    *state = [
        word(_mm_extract_epi32::<3>(abef)),
        word(_mm_extract_epi32::<2>(abef)),
        word(_mm_extract_epi32::<3>(cdgh)),
        word(_mm_extract_epi32::<2>(cdgh)),
        word(_mm_extract_epi32::<1>(abef)),
        word(_mm_extract_epi32::<0>(abef)),
        word(_mm_extract_epi32::<1>(cdgh)),
        word(_mm_extract_epi32::<0>(cdgh)),
    ];
}
