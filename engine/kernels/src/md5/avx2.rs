//! MD5 compression of up to eight streams, one in each 32-bit lane of AVX2.
//!
//! A step takes one word of the block: word w of all eight blocks has to stand in one vector, so blocks are transposed as
//! they are loaded. The steps form one chain of additions, which leaves execution units free, and the processor
//! transposes the next blocks in their shadow.
#![allow(unsafe_code)]

use super::{BLOCK_LEN_BYTES, LANES_MAX, STEP_CONSTANTS, Task};
use std::arch::x86_64::*;

/// Whether this processor has every instruction that [`compress`] uses.
pub(super) fn runs_here() -> bool {
    std::is_x86_feature_detected!("avx2")
}

/// Compresses the blocks of each stream into its state; all streams have the same number of blocks.
pub(super) fn compress(tasks: &mut [Task<'_>]) {
    assert!(runs_here(), "AVX2 is chosen only where it runs");
    // SAFETY: the instructions were detected above; all memory is reached through slices.
    unsafe { compress_lanes(tasks) }
}

#[target_feature(enable = "avx2")]
#[allow(clippy::needless_range_loop)] // the same block of every stream, which no one iterator yields
fn compress_lanes(tasks: &mut [Task<'_>]) {
    assert!((1..=LANES_MAX).contains(&tasks.len()), "{} streams", tasks.len());
    let count = tasks[0].1.len();
    assert!(tasks.iter().all(|(_, blocks)| blocks.len() == count), "streams of different lengths");
    // An idle lane does what lane 0 does, and nobody looks at its state.
    let of_lane = |lane: usize| if lane < tasks.len() { lane } else { 0 };
    let blocks: [&[[u8; BLOCK_LEN_BYTES]]; LANES_MAX] = std::array::from_fn(|lane| tasks[of_lane(lane)].1);
    let mut state = [_mm256_setzero_si256(); 4];
    for (word, vector) in state.iter_mut().enumerate() {
        *vector = gather(std::array::from_fn(|lane| tasks[of_lane(lane)].0[word]));
    }
    for at in 0..count {
        state = compress_block(state, &load_words(std::array::from_fn(|lane| &blocks[lane][at])));
    }
    for (word, vector) in state.into_iter().enumerate() {
        for ((state, _), value) in tasks.iter_mut().zip(scatter(vector)) {
            state[word] = value;
        }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn gather(lanes: [u32; LANES_MAX]) -> __m256i {
    let [a, b, c, d, e, f, g, h] = lanes.map(|lane| lane as i32);
    _mm256_setr_epi32(a, b, c, d, e, f, g, h)
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn scatter(vector: __m256i) -> [u32; LANES_MAX] {
    let mut lanes = [0; LANES_MAX];
    // SAFETY: 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), vector) }
    lanes
}

/// Word w of all blocks in vector w, lane by lane.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load_words(blocks: [&[u8; BLOCK_LEN_BYTES]; LANES_MAX]) -> [__m256i; 16] {
    let mut words = [_mm256_setzero_si256(); 16];
    for quarter in 0..4 {
        // Lanes i and i + 4 in the halves of one vector: what is left is a transposition of 4 by 4 in each half.
        let mut rows = [_mm256_setzero_si256(); 4];
        for (i, row) in rows.iter_mut().enumerate() {
            let (low, high) = (&blocks[i].as_chunks::<16>().0[quarter], &blocks[i + 4].as_chunks::<16>().0[quarter]);
            // SAFETY: `low` and `high` are 16 readable bytes each; the loads need no alignment.
            let (low, high) = unsafe { (_mm_loadu_si128(low.as_ptr().cast()), _mm_loadu_si128(high.as_ptr().cast())) };
            *row = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
        }
        let even = (_mm256_unpacklo_epi32(rows[0], rows[1]), _mm256_unpackhi_epi32(rows[0], rows[1]));
        let odd = (_mm256_unpacklo_epi32(rows[2], rows[3]), _mm256_unpackhi_epi32(rows[2], rows[3]));
        words[4 * quarter] = _mm256_unpacklo_epi64(even.0, odd.0);
        words[4 * quarter + 1] = _mm256_unpackhi_epi64(even.0, odd.0);
        words[4 * quarter + 2] = _mm256_unpacklo_epi64(even.1, odd.1);
        words[4 * quarter + 3] = _mm256_unpackhi_epi64(even.1, odd.1);
    }
    words
}

/// One block of each lane.
#[target_feature(enable = "avx2")]
#[inline]
fn compress_block(state: [__m256i; 4], words: &[__m256i; 16]) -> [__m256i; 4] {
    let [mut a, mut b, mut c, mut d] = state;
    // One step: a = b + ((a + f(b, c, d) + word + constant) rotated left). The functions hand over what they add in
    // one or two terms, so that little of the sum waits for b, the result of the step before.
    macro_rules! step {
        ($terms:ident, $a:ident, $b:ident, $c:ident, $d:ident, $step:expr, $word:expr, $left:literal) => {{
            let known = _mm256_add_epi32($a, _mm256_set1_epi32(STEP_CONSTANTS[$step] as i32));
            let known = _mm256_add_epi32(known, words[$word % 16]);
            let sum = $terms(known, $b, $c, $d);
            let turned = _mm256_or_si256(_mm256_slli_epi32::<$left>(sum), _mm256_srli_epi32::<{ 32 - $left }>(sum));
            $a = _mm256_add_epi32(turned, $b);
        }};
    }
    // Sixteen steps: step i of a round takes word `factor * i + offset`.
    macro_rules! round {
        ($terms:ident, $first:literal, $factor:literal, $offset:literal, $r:literal $s:literal $t:literal $u:literal) => {
            round!(@ $terms, $first, $factor, $offset, $r $s $t $u, 0);
            round!(@ $terms, $first, $factor, $offset, $r $s $t $u, 4);
            round!(@ $terms, $first, $factor, $offset, $r $s $t $u, 8);
            round!(@ $terms, $first, $factor, $offset, $r $s $t $u, 12);
        };
        (@ $terms:ident, $first:literal, $factor:literal, $offset:literal, $r:literal $s:literal $t:literal $u:literal,
            $i:literal) => {
            step!($terms, a, b, c, d, $first + $i, $factor * $i + $offset, $r);
            step!($terms, d, a, b, c, $first + $i + 1, $factor * ($i + 1) + $offset, $s);
            step!($terms, c, d, a, b, $first + $i + 2, $factor * ($i + 2) + $offset, $t);
            step!($terms, b, c, d, a, $first + $i + 3, $factor * ($i + 3) + $offset, $u);
        };
    }
    round!(add_f, 0, 1, 0, 7 12 17 22);
    round!(add_g, 16, 5, 1, 5 9 14 20);
    round!(add_h, 32, 3, 5, 4 11 16 23);
    round!(add_i, 48, 7, 0, 6 10 15 21);
    let [a_before, b_before, c_before, d_before] = state;
    [
        _mm256_add_epi32(a, a_before),
        _mm256_add_epi32(b, b_before),
        _mm256_add_epi32(c, c_before),
        _mm256_add_epi32(d, d_before),
    ]
}

/// `sum` and F: c where b is set, else d.
#[target_feature(enable = "avx2")]
#[inline]
fn add_f(sum: __m256i, b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_xor_si256(d, _mm256_and_si256(b, _mm256_xor_si256(c, d))))
}

/// `sum` and G: b where d is set, else c. The two parts share no bit, so both can be added.
#[target_feature(enable = "avx2")]
#[inline]
fn add_g(sum: __m256i, b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    _mm256_add_epi32(_mm256_add_epi32(sum, _mm256_andnot_si256(d, c)), _mm256_and_si256(d, b))
}

/// `sum` and H: the XOR of all.
#[target_feature(enable = "avx2")]
#[inline]
fn add_h(sum: __m256i, b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_xor_si256(b, _mm256_xor_si256(c, d)))
}

/// `sum` and I: c XOR (b or not d).
#[target_feature(enable = "avx2")]
#[inline]
fn add_i(sum: __m256i, b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    let not_d = _mm256_xor_si256(d, _mm256_set1_epi32(-1));
    _mm256_add_epi32(sum, _mm256_xor_si256(c, _mm256_or_si256(b, not_d)))
}
