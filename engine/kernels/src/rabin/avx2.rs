//! The AVX2 kernel: 32 far-apart segments of a block roll side by side, one byte of each in a step.
//!
//! A fingerprint depends on 64 bytes only, so segments can start anywhere after a warm-up of 64 bytes. The 32
//! fingerprints lie in four byte planes; the two table look-ups of a step are linear in their byte, so each is, for
//! each plane, the XOR of two 16-entry shuffles, one for each nibble. Bytes come in by transposing 32 rows (segments) of
//! 16 columns; the window is as wide as a tile of 64 columns, so the byte that leaves is the same column of the tile
//! before.
//!
//! Two variants look for hits, both without a branch in the loop. `Suspects` looks at the high 16 bits only (T <= 2^16)
//! and is the faster one; each suspect is then tested by the plain kernel. Data made to match those 16 bits everywhere
//! would drown it, so `Exact`, which compares all 32, takes over where suspects crowd, and where T is larger.
#![allow(unsafe_code)]

use super::{Rabin, WINDOW_LEN_BYTES};
use std::arch::x86_64::*;

/// Segments that roll side by side: bytes of a vector.
const LANES: usize = 32;

/// Columns of a tile: the window, so that the byte that leaves is one tile back.
const TILE: usize = WINDOW_LEN_BYTES;

/// Most tiles of a segment. Odd, like every number of tiles here: with segments an even number of cache lines apart
/// the 32 rows fall into the same few cache sets.
const TILES_MAX: usize = 17;

/// Shorter searches take the plain kernel: a block of one tile a segment costs as much.
const BLOCK_WORTH_LEN_BYTES: usize = 1024;

/// Suspects are tested one by one while a block has at most one for so many bytes.
const BYTES_PER_SUSPECT: usize = 4096;

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
    tiles_max: usize,
    suspects_usable: bool,
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
        // Blocks of about an eighth of the mean distance between hits: less of the last one is wasted.
        let mean_distance = (1u64 << 32) / u64::from(threshold.max(1));
        let tiles = (mean_distance as usize / 8 / (LANES * TILE)).clamp(3, TILES_MAX);
        Tables {
            suspects: Variant::new(append, expire, key),
            exact: Variant::new(append, expire, key ^ SIGNS),
            threshold: threshold ^ SIGNS,
            tiles_max: (tiles - 1) | 1,
            suspects_usable: threshold <= 1 << 16,
        }
    }
}

/// One block: 32 segments, one after the other, starting at `start`, which has 64 bytes in front of it.
#[derive(Clone, Copy)]
struct Block {
    start: usize,
    tiles: usize,
}

impl Block {
    fn end(self) -> usize {
        self.start + LANES * TILE * self.tiles
    }

    /// The block that searches on from `at`: it begins there, or, near the end of the data, ends with the data and
    /// covers some positions again. `None` when the rest is not worth one, or too little lies before it.
    fn next(at: usize, data_len: usize, tiles_max: usize) -> Option<Block> {
        let left = data_len - at;
        if left < BLOCK_WORTH_LEN_BYTES || at < WINDOW_LEN_BYTES {
            return None;
        }
        if left >= LANES * TILE * tiles_max {
            return Some(Block { start: at, tiles: tiles_max });
        }
        let tiles = left.div_ceil(LANES * TILE) | 1;
        let back = data_len.checked_sub(LANES * TILE * tiles).filter(|start| *start >= WINDOW_LEN_BYTES);
        match back {
            Some(start) => Some(Block { start, tiles }),
            // Too near to the start of the data to reach back: a shorter block from `at` on, if one fits.
            None => {
                let whole = left / (LANES * TILE);
                (whole > 0).then(|| Block { start: at, tiles: (whole - 1) | 1 })
            }
        }
    }

    /// Positions of tile `tile` of segment `lane`.
    fn tile_start(self, lane: usize, tile: usize) -> usize {
        self.start + (lane * self.tiles + tile) * TILE
    }
}

/// For each tile of a block, which lanes have a hit or a suspect in it.
type Masks = [u32; TILES_MAX];

impl Rabin {
    /// [`Rabin::find_hit`] with this kernel.
    pub(super) fn find_hit_avx2(&self, data: &[u8], from: usize) -> Option<usize> {
        let mut at = from;
        if at + 1 == WINDOW_LEN_BYTES && at < data.len() {
            // The very first window has nothing in front of it to reach back to.
            if self.is_hit(self.fingerprint_at(data, at)) {
                return Some(at);
            }
            at += 1;
        }
        let mut exact = !self.avx2.suspects_usable;
        while at < data.len() {
            let Some(block) = Block::next(at, data.len(), self.avx2.tiles_max) else {
                return self.find_hit_plain(data, at);
            };
            if let Some(position) = self.first_hit_of_block(data, block, at, &mut exact) {
                return Some(position);
            }
            at = block.end();
        }
        None
    }

    /// The first hit of a block that is not before `from`; turns to the exact variant for good when suspects crowd.
    fn first_hit_of_block(&self, data: &[u8], block: Block, from: usize, exact: &mut bool) -> Option<usize> {
        let mut masks = [0; TILES_MAX];
        if !*exact {
            self.mark::<false>(data, block, &mut masks);
            let suspects: u32 = masks.iter().map(|mask| mask.count_ones()).sum();
            if suspects == 0 {
                return None;
            }
            *exact = suspects as usize > 2 + (block.end() - block.start) / BYTES_PER_SUSPECT;
        }
        if *exact {
            self.mark::<true>(data, block, &mut masks);
        }
        let any = masks.iter().fold(0, |any, mask| any | mask);
        let lanes = (0..LANES).filter(|lane| any >> lane & 1 == 1);
        let marked = lanes.flat_map(|lane| (0..block.tiles).map(move |tile| (lane, tile)));
        marked.filter(|(lane, tile)| masks[*tile] >> lane & 1 == 1).find_map(|(lane, tile)| {
            let start = block.tile_start(lane, tile);
            let first = start.max(from);
            if first >= start + TILE { None } else { self.find_hit_plain(&data[..start + TILE], first) }
        })
    }

    /// Rolls a block and marks its tiles.
    fn mark<const EXACT: bool>(&self, data: &[u8], block: Block, masks: &mut Masks) {
        let inside = block.start >= WINDOW_LEN_BYTES && block.end() <= data.len() && block.tiles <= TILES_MAX;
        assert!(inside, "a block of {} tiles at {} of {} bytes", block.tiles, block.start, data.len());
        let variant = if EXACT { &self.avx2.exact } else { &self.avx2.suspects };
        // SAFETY: this kernel is chosen only after AVX2 was detected; `roll` asks for a block that lies in `data` with
        // 64 bytes in front, which was asserted.
        unsafe { roll::<EXACT>(variant, self.avx2.threshold, data, block, masks) }
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
        prefetch(data, block, tile);
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
        *mask = _mm256_movemask_epi8(marked) as u32;
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

/// Asks for the part of the next block that is as far into it as this tile is into this block. The 32 rows are 32
/// streams, more than the hardware follows by itself.
#[target_feature(enable = "avx2")]
#[inline]
fn prefetch(data: &[u8], block: Block, tile: usize) {
    let start = block.end() + tile * LANES * TILE;
    let Some(ahead) = data.get(start..start + LANES * TILE) else { return };
    for line in ahead.as_chunks::<64>().0 {
        _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kernel;
    use super::*;

    /// What one block of `data` leaves behind: its first hit, and whether the exact variant took over.
    fn after_one_block(key: u32, threshold: u32, data: &[u8]) -> Option<(Option<usize>, bool)> {
        Kernel::runnable().contains(&Kernel::Avx2).then(|| {
            let rabin = Rabin::with_kernel(0xD306_EACF, key, threshold, Kernel::Avx2);
            let block = Block::next(64, data.len(), rabin.avx2.tiles_max).unwrap();
            let mut exact = false;
            (rabin.first_hit_of_block(data, block, 64, &mut exact), exact)
        })
    }

    #[test]
    fn crowded_suspects_are_not_tested_one_by_one() {
        // Zeros have fingerprint 0: every position matches the high half of this key, none is below T.
        let hostile = after_one_block(0x0000_8000, 1, &vec![0; 40_000]);
        assert!(hostile.is_none_or(|(hit, exact)| hit.is_none() && exact), "{hostile:?}");
        // Ordinary data stays with the faster variant.
        let data: Vec<u8> = (0..40_000u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
        let ordinary = after_one_block(0xA5C3_E719, 1, &data);
        assert!(ordinary.is_none_or(|(hit, exact)| hit.is_none() && !exact), "{ordinary:?}");
    }

    #[test]
    fn blocks_cover_everything_from_where_they_are_asked_to() {
        for tiles_max in [3, 5, 17] {
            for data_len in (64..20_000).step_by(61).chain([34_880, 34_881, 100_000]) {
                let mut at = 64;
                while let Some(block) = (at < data_len).then(|| Block::next(at, data_len, tiles_max)).flatten() {
                    let inside = block.start >= WINDOW_LEN_BYTES && block.end() <= data_len;
                    let usable = inside && block.tiles % 2 == 1 && block.tiles <= tiles_max;
                    assert!(usable && block.start <= at && block.end() > at, "{at} of {data_len}: {}", block.tiles);
                    at = block.end();
                }
                assert!(
                    data_len - at.min(data_len) < 2 * LANES * TILE,
                    "{at} of {data_len}: too much for the plain kernel"
                );
            }
        }
    }
}
