//! The AVX2 kernel: 32 far-apart segments of a block roll side by side, one byte of each in a step.
//!
//! The 32 fingerprints lie in four byte planes; the two table look-ups of a step are linear in their byte, so each is,
//! for each plane, the XOR of two 16-entry shuffles, one for each nibble. Bytes come in by transposing 32 rows
//! (segments) of 16 columns; the window is as wide as a tile of 64 columns, so the byte that leaves is the same column
//! of the tile before. Blocks, and the two variants, are those of `blocks.rs`.
#![allow(unsafe_code)]

use super::Rabin;
use super::blocks::{Block, Masks, Rolling, TILE};
use std::arch::x86_64::*;

/// Segments that roll side by side: bytes of a vector.
const LANES: usize = 32;

/// This kernel.
pub(super) const ROLLING: Rolling = Rolling { lanes: LANES, mark: Rabin::mark_avx2 };

/// Constants of one variant, each a 16-entry table twice (both halves of a vector look up alike).
#[repr(C, align(32))]
struct Nibbles {
    /// What leaves the top of the fingerprint comes back reduced: by plane, low and high nibble.
    append: [[[u8; 32]; 2]; 4],
    /// What leaves the window is taken out: by plane, low and high nibble. The low ones carry the offset too.
    expire: [[[u8; 32]; 2]; 4],
}

/// A variant's constants.
struct Variant {
    nibbles: Nibbles,
    /// The planes hold F XOR `offset` instead of F; the comparisons then need no XOR of their own.
    offset: u32,
}

/// Everything that the kernel knows beforehand.
pub(super) struct Tables {
    suspects: Variant,
    exact: Variant,
    /// T with the sign bit of each byte flipped: bytes compare as signed ones.
    threshold: u32,
}

/// Turns unsigned byte order into signed byte order.
const SIGNS: u32 = 0x8080_8080;

impl Variant {
    fn new(append: &[u32; 256], expire: &[u32; 256], offset: u32) -> Variant {
        let planes = |value: u32| value.to_le_bytes();
        let table = |of: &dyn Fn(u32) -> u32, plane: usize, shift: usize| -> [u8; 32] {
            std::array::from_fn(|entry| planes(of(((entry as u32) % 16) << shift))[plane])
        };
        let appended = |byte: u32| append[byte as usize];
        // With g = F ^ c for F: F' = M(F) ^ ... becomes g' = M(g) ^ ... ^ (M(c) ^ c). The constant rides in the
        // low-nibble expire table, which every step looks up exactly once.
        let step = (offset << 8) ^ appended(offset >> 24) ^ offset;
        let expired_low = |byte: u32| expire[byte as usize] ^ step;
        let expired_high = |byte: u32| expire[byte as usize];
        let nibbles = Nibbles {
            append: std::array::from_fn(|plane| [table(&appended, plane, 0), table(&appended, plane, 4)]),
            expire: std::array::from_fn(|plane| [table(&expired_low, plane, 0), table(&expired_high, plane, 4)]),
        };
        Variant { nibbles, offset }
    }
}

impl Tables {
    pub(super) fn new(append: &[u32; 256], expire: &[u32; 256], key: u32, threshold: u32) -> Tables {
        Tables {
            suspects: Variant::new(append, expire, key),
            exact: Variant::new(append, expire, key ^ SIGNS),
            threshold: threshold ^ SIGNS,
        }
    }
}

impl Rabin {
    /// Rolls a block with this kernel and marks its tiles.
    fn mark_avx2(&self, data: &[u8], exact: bool, block: Block, masks: &mut Masks) {
        block.assert_rollable(LANES, data);
        let threshold = self.avx2.threshold;
        // SAFETY: this kernel is chosen only after AVX2 was detected; `roll` asks for a block that lies in `data` with
        // 64 bytes in front, which was asserted.
        unsafe {
            match exact {
                false => roll::<false>(&self.avx2.suspects, threshold, data, block, masks),
                true => roll::<true>(&self.avx2.exact, threshold, data, block, masks),
            }
        }
    }
}

/// Look-ups of one byte vector in a pair of nibble tables, for one plane.
#[target_feature(enable = "avx2")]
#[inline]
fn look_up(tables: &[[u8; 32]; 2], low: __m256i, high: __m256i) -> __m256i {
    // SAFETY: `Nibbles` is aligned to 32 bytes and consists of 32-byte tables only.
    let (low_table, high_table) =
        unsafe { (_mm256_load_si256(tables[0].as_ptr().cast()), _mm256_load_si256(tables[1].as_ptr().cast())) };
    _mm256_xor_si256(_mm256_shuffle_epi8(low_table, low), _mm256_shuffle_epi8(high_table, high))
}

/// Low and high nibble of each byte.
#[target_feature(enable = "avx2")]
#[inline]
fn nibbles(bytes: __m256i) -> (__m256i, __m256i) {
    let mask = _mm256_set1_epi8(0x0f);
    (_mm256_and_si256(bytes, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask))
}

/// Sixteen columns of the 32 rows that lie `stride` bytes apart: vector c holds column c, row r in byte r.
///
/// # Safety
/// For each row r < 32, 16 bytes at `from + r * stride` are readable.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn transpose(from: *const u8, stride: usize) -> [__m256i; 16] {
    let mut rows = [_mm256_setzero_si256(); 16];
    for (row, vector) in rows.iter_mut().enumerate() {
        // SAFETY: rows `row` and `row + 16` are below 32; the caller says that their bytes are readable.
        *vector = unsafe {
            let low = _mm_loadu_si128(from.add(row * stride).cast());
            let high = _mm_loadu_si128(from.add((row + 16) * stride).cast());
            _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
        };
    }
    // Each round doubles how many rows of a column stand side by side: 1, 2, 4, 8, 16.
    for _ in 0..4 {
        let before = rows;
        for i in 0..8 {
            rows[2 * i] = _mm256_unpacklo_epi8(before[i], before[i + 8]);
            rows[2 * i + 1] = _mm256_unpackhi_epi8(before[i], before[i + 8]);
        }
    }
    rows
}

/// Rolls all segments of a block and sets, for each tile, the lanes in which a position is a suspect or a hit.
///
/// # Safety
/// The 64 bytes before the block and all of its bytes lie in `data`.
#[target_feature(enable = "avx2")]
unsafe fn roll<const EXACT: bool>(variant: &Variant, threshold: u32, data: &[u8], block: Block, masks: &mut Masks) {
    let tables = &variant.nibbles;
    let stride = block.tiles * TILE;
    let bytes_of = |value: u32| value.to_le_bytes().map(|byte| _mm256_set1_epi8(byte as i8));
    let threshold = bytes_of(threshold);
    let mut planes = [_mm256_setzero_si256(); 4];
    let mut window = [_mm256_setzero_si256(); TILE];
    // The warm-up: the 64 bytes before each segment enter, and nothing leaves.
    for quarter in 0..TILE / 16 {
        // SAFETY: row r of the warm-up lies at the 64 bytes before segment r: before the block, or inside it.
        let columns = unsafe { transpose(data.as_ptr().add(block.start - TILE + quarter * 16), stride) };
        for (column, entering) in columns.into_iter().enumerate() {
            window[quarter * 16 + column] = entering;
            let (low, high) = nibbles(planes[3]);
            planes = [
                _mm256_xor_si256(entering, look_up(&tables.append[0], low, high)),
                _mm256_xor_si256(planes[0], look_up(&tables.append[1], low, high)),
                _mm256_xor_si256(planes[1], look_up(&tables.append[2], low, high)),
                _mm256_xor_si256(planes[2], look_up(&tables.append[3], low, high)),
            ];
        }
    }
    for (plane, offset) in planes.iter_mut().zip(bytes_of(variant.offset)) {
        *plane = _mm256_xor_si256(*plane, offset);
    }
    for (tile, mask) in masks.iter_mut().enumerate().take(block.tiles) {
        let mut found = if EXACT { _mm256_setzero_si256() } else { _mm256_set1_epi8(-1) };
        block.prefetch_next(data, tile);
        for quarter in 0..TILE / 16 {
            // SAFETY: row r lies in tile `tile` of segment r, inside the block.
            let columns = unsafe { transpose(data.as_ptr().add(block.start + tile * TILE + quarter * 16), stride) };
            for (column, entering) in columns.into_iter().enumerate() {
                let leaving = std::mem::replace(&mut window[quarter * 16 + column], entering);
                let (low, high) = nibbles(planes[3]);
                let (out_low, out_high) = nibbles(leaving);
                let change = |plane: usize| {
                    _mm256_xor_si256(
                        look_up(&tables.append[plane], low, high),
                        look_up(&tables.expire[plane], out_low, out_high),
                    )
                };
                planes = [
                    _mm256_xor_si256(entering, change(0)),
                    _mm256_xor_si256(planes[0], change(1)),
                    _mm256_xor_si256(planes[1], change(2)),
                    _mm256_xor_si256(planes[2], change(3)),
                ];
                found = if EXACT {
                    _mm256_or_si256(found, below(planes, threshold))
                } else {
                    _mm256_min_epu8(found, _mm256_or_si256(planes[3], planes[2]))
                };
            }
        }
        let marked = if EXACT { found } else { _mm256_cmpeq_epi8(found, _mm256_setzero_si256()) };
        *mask = u64::from(_mm256_movemask_epi8(marked) as u32);
    }
}

/// Lanes whose value is below the threshold: decided by the highest plane that differs. Signed bytes on both sides.
#[target_feature(enable = "avx2")]
#[inline]
fn below(planes: [__m256i; 4], threshold: [__m256i; 4]) -> __m256i {
    let mut below = _mm256_cmpgt_epi8(threshold[0], planes[0]);
    for plane in 1..4 {
        let equal = _mm256_cmpeq_epi8(threshold[plane], planes[plane]);
        let less = _mm256_cmpgt_epi8(threshold[plane], planes[plane]);
        below = _mm256_or_si256(less, _mm256_and_si256(equal, below));
    }
    below
}
