//! The AVX2 kernel with two instructions of AVX-512 on vectors of the same width: any function of three bits, and the
//! rotation. A step's chain is four instructions instead of seven, and MD5 is nothing but that chain.
//!
//! Wider vectors would bring nothing here: a core seldom has more than eight bodies at once, and the chain is as long.
#![allow(unsafe_code)]

use super::avx2::{gather, load_words, scatter};
use super::{BLOCK_LEN_BYTES, LANES_MAX, STEP_CONSTANTS, Task};
use std::arch::x86_64::*;

/// The functions of the four rounds as tables: bit `4 b + 2 c + d` is the result (RFC 1321, 3.4).
/// F: c where b is set, else d.
const F: i32 = 0b1100_1010;
/// G: b where d is set, else c.
const G: i32 = 0b1110_0100;
/// H: the XOR of all.
const H: i32 = 0b1001_0110;
/// I: c XOR (b or not d).
const I: i32 = 0b0011_1001;

/// Whether this processor has every instruction that [`compress`] uses.
pub(super) fn runs_here() -> bool {
    std::is_x86_feature_detected!("avx2")
        && std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512vl")
}

/// Compresses the blocks of each stream into its state; all streams have the same number of blocks.
pub(super) fn compress(tasks: &mut [Task<'_>]) {
    assert!(runs_here(), "AVX-512 is chosen only where it runs");
    // SAFETY: the instructions were detected above; all memory is reached through slices.
    unsafe { compress_lanes(tasks) }
}

#[target_feature(enable = "avx2,avx512f,avx512vl")]
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

/// One block of each lane.
#[target_feature(enable = "avx2,avx512f,avx512vl")]
#[inline]
fn compress_block(state: [__m256i; 4], words: &[__m256i; 16]) -> [__m256i; 4] {
    let [mut a, mut b, mut c, mut d] = state;
    // One step: a = b + ((a + f(b, c, d) + word + constant) rotated left). Only f and what follows wait for b.
    macro_rules! step {
        ($function:ident, $a:ident, $b:ident, $c:ident, $d:ident, $step:expr, $word:expr, $left:literal) => {{
            let known = _mm256_add_epi32($a, _mm256_set1_epi32(STEP_CONSTANTS[$step] as i32));
            let known = _mm256_add_epi32(known, words[$word % 16]);
            let sum = _mm256_add_epi32(known, _mm256_ternarylogic_epi32::<$function>($b, $c, $d));
            $a = _mm256_add_epi32(_mm256_rol_epi32::<$left>(sum), $b);
        }};
    }
    // Sixteen steps: step i of a round takes word `factor * i + offset`.
    macro_rules! round {
        ($function:ident, $first:literal, $factor:literal, $offset:literal, $r:literal $s:literal $t:literal $u:literal) => {
            round!(@ $function, $first, $factor, $offset, $r $s $t $u, 0);
            round!(@ $function, $first, $factor, $offset, $r $s $t $u, 4);
            round!(@ $function, $first, $factor, $offset, $r $s $t $u, 8);
            round!(@ $function, $first, $factor, $offset, $r $s $t $u, 12);
        };
        (@ $function:ident, $first:literal, $factor:literal, $offset:literal, $r:literal $s:literal $t:literal $u:literal,
            $i:literal) => {
            step!($function, a, b, c, d, $first + $i, $factor * $i + $offset, $r);
            step!($function, d, a, b, c, $first + $i + 1, $factor * ($i + 1) + $offset, $s);
            step!($function, c, d, a, b, $first + $i + 2, $factor * ($i + 2) + $offset, $t);
            step!($function, b, c, d, a, $first + $i + 3, $factor * ($i + 3) + $offset, $u);
        };
    }
    round!(F, 0, 1, 0, 7 12 17 22);
    round!(G, 16, 5, 1, 5 9 14 20);
    round!(H, 32, 3, 5, 4 11 16 23);
    round!(I, 48, 7, 0, 6 10 15 21);
    let [a_before, b_before, c_before, d_before] = state;
    [
        _mm256_add_epi32(a, a_before),
        _mm256_add_epi32(b, b_before),
        _mm256_add_epi32(c, c_before),
        _mm256_add_epi32(d, d_before),
    ]
}
