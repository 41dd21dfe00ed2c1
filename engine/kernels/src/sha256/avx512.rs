//! SHA-256 compression with one stream to each 32-bit lane of AVX-512 vectors: sixteen lanes, or eight in half vectors.
//!
//! Where the SHA unit is slow this is the faster way, but only with most lanes taken: a lane without a stream costs as
//! much as one with.
#![allow(unsafe_code)]

use super::BLOCK_LEN_BYTES;
use super::constants::ROUND_CONSTANTS;
use std::arch::x86_64::*;

/// Streams of a full vector.
pub(super) const LANES: usize = 16;

/// Streams of half a vector.
pub(super) const LANES_HALF: usize = 8;

/// A stream's state and the blocks that it is to absorb.
pub(super) type Stream<'a> = (&'a mut [u32; 8], &'a [u8]);

/// Whether this processor has every instruction that [`compress`] uses.
pub(super) fn runs_here() -> bool {
    std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512vl")
}

/// Compresses the whole blocks of up to [`LANES`] streams into their states; all have the same number of blocks.
pub(super) fn compress(streams: &mut [Stream<'_>]) {
    assert!(runs_here(), "AVX-512 is chosen only where it runs");
    // SAFETY: the instructions were detected above; all memory is reached through slices.
    unsafe {
        match streams.len() {
            0 => {}
            1..=LANES_HALF => half::compress(streams),
            _ => full::compress(streams),
        }
    }
}

/// The same sixteen bytes of four streams, one after the other.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn four_quarters(quarters: [&[u8; 16]; 4]) -> __m512i {
    let [a, b, c, d] = quarters.map(quarter);
    let low = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(a), b);
    _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(low, c), d)
}

/// The same sixteen bytes of two streams, one after the other.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn two_quarters(quarters: [&[u8; 16]; 2]) -> __m256i {
    let [a, b] = quarters.map(quarter);
    _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b)
}

fn quarter(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: 16 readable bytes; the load needs no alignment, and every x86-64 processor has it.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Big-endian words, in every sixteen bytes.
const BIG_ENDIAN: (i64, i64) = (0x0405_0607_0001_0203, 0x0c0d_0e0f_0809_0a0b);

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn big_endian_512() -> __m512i {
    let (low, high) = BIG_ENDIAN;
    _mm512_set_epi64(high, low, high, low, high, low, high, low)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn big_endian_256() -> __m256i {
    let (low, high) = BIG_ENDIAN;
    _mm256_set_epi64x(high, low, high, low)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load_512(words: &[u32; LANES]) -> __m512i {
    // SAFETY: 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load_256(words: &[u32; LANES_HALF]) -> __m256i {
    // SAFETY: 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn store_512(words: &mut [u32; LANES], value: __m512i) {
    // SAFETY: 64 writable bytes; the store needs no alignment.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), value) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn store_256(words: &mut [u32; LANES_HALF], value: __m256i) {
    // SAFETY: 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), value) }
}

/// Truth tables of the three-way logic instruction.
const XOR: i32 = 0x96;
const CHOOSE: i32 = 0xca;
const MAJORITY: i32 = 0xe8;

/// The same rounds for one width of vector.
macro_rules! width {
    (
        $width:ident, $vector:ty, $lanes:ident, streams of one vector: $across:literal,
        $load:ident, $store:ident, $quarters:ident, $big_endian:ident, $zero:ident, $set:ident, $add:ident,
        $rotate:ident, $shift:ident, $logic:ident, $bytes:ident,
        $low32:ident, $high32:ident, $low64:ident, $high64:ident
    ) => {
        mod $width {
            use super::*;

            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            pub(super) fn compress(streams: &mut [Stream<'_>]) {
                assert!((1..=$lanes).contains(&streams.len()), "{} streams for {} lanes", streams.len(), $lanes);
                let count = streams[0].1.len() / BLOCK_LEN_BYTES;
                assert!(
                    streams.iter().all(|(_, data)| data.len() == count * BLOCK_LEN_BYTES),
                    "streams of different lengths"
                );
                let mut state = load_states(streams);
                // A lane without a stream computes what the first one does, for nobody.
                let data: [&[[u8; BLOCK_LEN_BYTES]]; $lanes] =
                    std::array::from_fn(|lane| streams[if lane < streams.len() { lane } else { 0 }].1.as_chunks().0);
                for at in 0..count {
                    let blocks: [&[u8; BLOCK_LEN_BYTES]; $lanes] = std::array::from_fn(|lane| &data[lane][at]);
                    rounds(&mut state, load_words(&blocks));
                }
                store_states(streams, &state);
            }

            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            fn load_states(streams: &[Stream<'_>]) -> [$vector; 8] {
                let mut state = [$zero(); 8];
                for (word, vector) in state.iter_mut().enumerate() {
                    let mut across = [0; $lanes];
                    across.iter_mut().zip(streams).for_each(|(to, (state, _))| *to = state[word]);
                    *vector = $load(&across);
                }
                state
            }

            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            fn store_states(streams: &mut [Stream<'_>], state: &[$vector; 8]) {
                for (word, vector) in state.iter().enumerate() {
                    let mut across = [0; $lanes];
                    $store(&mut across, *vector);
                    streams.iter_mut().zip(across).for_each(|((state, _), from)| state[word] = from);
                }
            }

            /// Word by word over all lanes: four words of each stream are turned at a time.
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            fn load_words(blocks: &[&[u8; BLOCK_LEN_BYTES]; $lanes]) -> [$vector; 16] {
                let mut words = [$zero(); 16];
                for (at, words) in words.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    let mut rows = [$zero(); 4];
                    for (row, vector) in rows.iter_mut().enumerate() {
                        let quarters: [&[u8; 16]; $across] =
                            std::array::from_fn(|group| &blocks[4 * group + row].as_chunks().0[at]);
                        *vector = $bytes($quarters(quarters), $big_endian());
                    }
                    let (low, high) = ($low32(rows[0], rows[1]), $low32(rows[2], rows[3]));
                    words[0] = $low64(low, high);
                    words[1] = $high64(low, high);
                    let (low, high) = ($high32(rows[0], rows[1]), $high32(rows[2], rows[3]));
                    words[2] = $low64(low, high);
                    words[3] = $high64(low, high);
                }
                words
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            fn rounds(state: &mut [$vector; 8], mut w: [$vector; 16]) {
                let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
                macro_rules! round {
                    ($at:expr) => {
                        if $at >= 16 {
                            let (back15, back2) = (w[($at + 1) % 16], w[($at + 14) % 16]);
                            let small0 =
                                $logic::<XOR>($rotate::<7>(back15), $rotate::<18>(back15), $shift::<3>(back15));
                            let small1 = $logic::<XOR>($rotate::<17>(back2), $rotate::<19>(back2), $shift::<10>(back2));
                            w[$at % 16] = $add($add(w[$at % 16], small0), $add(w[($at + 9) % 16], small1));
                        }
                        let big1 = $logic::<XOR>($rotate::<6>(e), $rotate::<11>(e), $rotate::<25>(e));
                        let constant = $set(ROUND_CONSTANTS.as_flattened()[$at] as i32);
                        let mixed = $add($add(h, $add(w[$at % 16], constant)), $add(big1, $logic::<CHOOSE>(e, f, g)));
                        let big0 = $logic::<XOR>($rotate::<2>(a), $rotate::<13>(a), $rotate::<22>(a));
                        let next = $add(mixed, $add(big0, $logic::<MAJORITY>(a, b, c)));
                        (h, g, f, e, d, c, b, a) = (g, f, e, $add(d, mixed), c, b, a, next);
                    };
                }
                macro_rules! sixteen {
                    ($from:literal) => {
                        round!($from);
                        round!($from + 1);
                        round!($from + 2);
                        round!($from + 3);
                        round!($from + 4);
                        round!($from + 5);
                        round!($from + 6);
                        round!($from + 7);
                        round!($from + 8);
                        round!($from + 9);
                        round!($from + 10);
                        round!($from + 11);
                        round!($from + 12);
                        round!($from + 13);
                        round!($from + 14);
                        round!($from + 15);
                    };
                }
                sixteen!(0);
                sixteen!(16);
                sixteen!(32);
                sixteen!(48);
                for (state, word) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
                    *state = $add(*state, word);
                }
            }
        }
    };
}

width! {
    full, __m512i, LANES, streams of one vector: 4,
    load_512, store_512, four_quarters, big_endian_512, _mm512_setzero_si512, _mm512_set1_epi32, _mm512_add_epi32,
    _mm512_ror_epi32, _mm512_srli_epi32, _mm512_ternarylogic_epi32, _mm512_shuffle_epi8,
    _mm512_unpacklo_epi32, _mm512_unpackhi_epi32, _mm512_unpacklo_epi64, _mm512_unpackhi_epi64
}

width! {
    half, __m256i, LANES_HALF, streams of one vector: 2,
    load_256, store_256, two_quarters, big_endian_256, _mm256_setzero_si256, _mm256_set1_epi32, _mm256_add_epi32,
    _mm256_ror_epi32, _mm256_srli_epi32, _mm256_ternarylogic_epi32, _mm256_shuffle_epi8,
    _mm256_unpacklo_epi32, _mm256_unpackhi_epi32, _mm256_unpacklo_epi64, _mm256_unpackhi_epi64
}
