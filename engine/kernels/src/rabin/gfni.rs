//! The AVX-512 kernel: 64 far-apart segments of a block roll side by side, and GFNI does the look-ups.
//!
//! The 64 fingerprints lie in four byte planes. A table look-up of a step is a linear map of one byte, so for each
//! plane it is an 8x8 bit matrix, and one GF2P8AFFINEQB does it for 64 bytes. Bytes come in by transposing 64 rows
//! (segments) of 16 columns; the window is as wide as a tile of 64 columns, so the byte that leaves is the same column
//! of the tile before. Blocks, and the two variants, are those of `blocks.rs`.
//!
//! The algorithm is written once, over the operations of [`Vector`]. Few machines have the instructions, so there are
//! two sets of operations: the instructions themselves, and, for tests, their definitions in plain Rust. For the same
//! reason the kernel is used only after it agreed with the plain one on the very machine.
#![allow(unsafe_code)]

mod avx512;
#[cfg(test)]
mod emulated;
#[cfg(test)]
mod tests;

use super::blocks::{Block, Masks, Rolling, TILE};
use super::{Rabin, self_check};
use std::hint::black_box;
use std::sync::OnceLock;

/// Segments that roll side by side: bytes of a vector.
const LANES: usize = 64;

/// The kernel of this machine, if it has the instructions.
pub(super) const NATIVE: Rolling = Rolling { lanes: LANES, mark: Rabin::mark_gfni };

/// The same algorithm over the definitions of the instructions.
#[cfg(test)]
pub(super) const EMULATED: Rolling = Rolling { lanes: LANES, mark: Rabin::mark_emulated };

/// Whether this processor finds the right hits with this kernel; `None` when it lacks the instructions. Checked once.
pub(super) fn checked() -> Option<bool> {
    static PASSED: OnceLock<bool> = OnceLock::new();
    avx512::runs_here().then(|| {
        *PASSED.get_or_init(|| self_check::passes(|rabin, data, from| rabin.find_hit_rolling(NATIVE, data, from)))
    })
}

/// 64 bytes, and what the kernel does with them. Each operation is one instruction, but for the load.
///
/// A value is proof that this processor has the instructions: the functions that make the first ones are unsafe.
trait Vector: Copy {
    /// The byte in all lanes.
    ///
    /// # Safety
    /// The processor has the instructions of this type.
    unsafe fn splat(byte: u8) -> Self;

    /// The 8-byte matrix in all lanes of eight.
    ///
    /// # Safety
    /// The processor has the instructions of this type.
    unsafe fn splat_matrix(matrix: u64) -> Self;

    /// The 16 bytes at `from`, and those at one, two and three times `apart` behind it, in this order.
    ///
    /// # Safety
    /// The processor has the instructions of this type, and all four are readable.
    unsafe fn load_quarters(from: *const u8, apart: usize) -> Self;

    /// In each quarter, the low eight bytes of both, by turns.
    fn unpack_low(self, other: Self) -> Self;

    /// In each quarter, the high eight bytes of both, by turns.
    fn unpack_high(self, other: Self) -> Self;

    /// Each byte times the matrix of its lane of eight.
    fn affine(self, matrices: Self) -> Self;

    /// Bitwise.
    fn xor(self, other: Self) -> Self;

    /// Bitwise, of three.
    fn xor3(self, second: Self, third: Self) -> Self;

    /// Bitwise.
    fn or(self, other: Self) -> Self;

    /// The lesser of each two unsigned bytes.
    fn min(self, other: Self) -> Self;

    /// The lanes that hold zero.
    fn zeros(self) -> u64;

    /// The lanes that hold equal bytes.
    fn equal(self, other: Self) -> u64;

    /// The lanes whose unsigned byte is below the other's.
    fn below(self, other: Self) -> u64;
}

/// Everything that the kernel knows beforehand, the lowest plane first.
pub(super) struct Tables {
    /// What leaves the top of the fingerprint comes back reduced.
    append: [u64; 4],
    /// What leaves the window is taken out.
    expire: [u64; 4],
    key: [u8; 4],
    threshold: [u8; 4],
}

/// The matrix, as GF2P8AFFINEQB wants it, of one plane of a linear map of bytes: the row that makes bit i of the result
/// is byte 7 - i, and bit j of a row says whether bit j of the argument counts.
fn matrix(map: &[u32; 256], plane: usize) -> u64 {
    let row = |bit: usize| (0..8).fold(0, |row, j| row | (map[1 << j] >> (8 * plane + bit) & 1) << j) as u8;
    u64::from_le_bytes(std::array::from_fn(|byte| row(7 - byte)))
}

impl Tables {
    pub(super) fn new(append: &[u32; 256], expire: &[u32; 256], key: u32, threshold: u32) -> Tables {
        Tables {
            append: std::array::from_fn(|plane| matrix(append, plane)),
            expire: std::array::from_fn(|plane| matrix(expire, plane)),
            key: key.to_le_bytes(),
            threshold: threshold.to_le_bytes(),
        }
    }
}

impl Rabin {
    /// Rolls a block with this kernel and marks its tiles.
    fn mark_gfni(&self, data: &[u8], exact: bool, block: Block, masks: &mut Masks) {
        assert!(avx512::runs_here(), "this processor can't run the AVX-512 kernel");
        block.assert_rollable(LANES, data);
        // SAFETY: the processor has the instructions, and the block lies in `data` with 64 bytes in front: both were
        // asserted.
        unsafe {
            match exact {
                false => avx512::roll_suspects(&self.gfni, data, block, masks),
                true => avx512::roll_exact(&self.gfni, data, block, masks),
            }
        }
    }

    /// [`Rabin::mark_gfni`] over the definitions of the instructions.
    #[cfg(test)]
    fn mark_emulated(&self, data: &[u8], exact: bool, block: Block, masks: &mut Masks) {
        block.assert_rollable(LANES, data);
        // SAFETY: the definitions run everywhere; the block lies in `data` with 64 bytes in front, which was asserted.
        unsafe {
            match exact {
                false => roll::<emulated::Bytes, false>(&self.gfni, data, block, masks),
                true => roll::<emulated::Bytes, true>(&self.gfni, data, block, masks),
            }
        }
    }
}

/// The body once for each of 0..16, without a loop: where the compiler keeps one, arrays of vectors stay in memory.
macro_rules! unrolled {
    ($index:ident, $body:block) => {
        unrolled!($index, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($index:ident, $body:block, $($value:literal)*) => {
        $({
            let $index: usize = $value;
            $body
        })*
    };
}

/// The byte of each plane in all lanes.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn splat_planes<V: Vector>(bytes: [u8; 4]) -> [V; 4] {
    // SAFETY: the caller says so.
    unsafe { [V::splat(bytes[0]), V::splat(bytes[1]), V::splat(bytes[2]), V::splat(bytes[3])] }
}

/// The matrix of each plane in all lanes.
///
/// # Safety
/// The processor has the instructions of `V`.
#[inline(always)]
unsafe fn splat_matrices<V: Vector>(matrices: [u64; 4]) -> [V; 4] {
    let [m0, m1, m2, m3] = matrices;
    // SAFETY: the caller says so.
    unsafe { [V::splat_matrix(m0), V::splat_matrix(m1), V::splat_matrix(m2), V::splat_matrix(m3)] }
}

/// Sixteen columns of the 64 rows that lie `stride` bytes apart: vector c holds column c, row r in byte r.
///
/// # Safety
/// The processor has the instructions of `V`; for each row r < 64, 16 bytes at `from + r * stride` are readable.
#[inline(always)]
unsafe fn transpose<V: Vector>(from: *const u8, stride: usize) -> [V; 16] {
    // SAFETY: the caller says that the processor has the instructions.
    let mut rows = [unsafe { V::splat(0) }; 16];
    // Behind the black box is the same stride. Without it the compiler works the 64 addresses out before the loop over
    // quarters and keeps them all on the stack.
    let stride = black_box(stride);
    unrolled!(row, {
        // SAFETY: the caller says so; quarter q is row `row + 16 * q`, which is below 64.
        rows[row] = unsafe { V::load_quarters(from.wrapping_add(row.wrapping_mul(stride)), stride.wrapping_mul(16)) };
    });
    interleave(interleave(interleave(interleave(rows))))
}

/// One round of four: each doubles how many rows of a column stand side by side in a quarter, 1, 2, 4, 8, 16.
#[inline(always)]
fn interleave<V: Vector>(before: [V; 16]) -> [V; 16] {
    let [r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, r12, r13, r14, r15] = before;
    [
        r0.unpack_low(r8),
        r0.unpack_high(r8),
        r1.unpack_low(r9),
        r1.unpack_high(r9),
        r2.unpack_low(r10),
        r2.unpack_high(r10),
        r3.unpack_low(r11),
        r3.unpack_high(r11),
        r4.unpack_low(r12),
        r4.unpack_high(r12),
        r5.unpack_low(r13),
        r5.unpack_high(r13),
        r6.unpack_low(r14),
        r6.unpack_high(r14),
        r7.unpack_low(r15),
        r7.unpack_high(r15),
    ]
}

/// Rolls all segments of a block and sets, for each tile, the lanes in which a position is a suspect or a hit.
///
/// Everything that touches vectors here is inlined without exception and without closures: a call would leave the
/// function that may use these instructions.
///
/// # Safety
/// The processor has the instructions of `V`; the 64 bytes before the block and all of its bytes lie in `data`.
#[inline(always)]
unsafe fn roll<V: Vector, const EXACT: bool>(tables: &Tables, data: &[u8], block: Block, masks: &mut Masks) {
    // SAFETY: the caller says that the processor has the instructions.
    let (append, expire) = unsafe { (splat_matrices::<V>(tables.append), splat_matrices::<V>(tables.expire)) };
    // SAFETY: as above.
    let (key, threshold) = unsafe { (splat_planes::<V>(tables.key), splat_planes::<V>(tables.threshold)) };
    // SAFETY: as above.
    let (zero, ones) = unsafe { (V::splat(0), V::splat(0xff)) };
    let stride = block.tiles * TILE;
    let mut planes = [zero; 4];
    let mut window = [zero; TILE];
    // The warm-up: the 64 bytes before each segment enter, and nothing leaves.
    for quarter in 0..TILE / 16 {
        // SAFETY: row r of the warm-up lies at the 64 bytes before segment r: before the block, or inside it.
        let columns: [V; 16] = unsafe { transpose(data.as_ptr().add(block.start - TILE + quarter * 16), stride) };
        unrolled!(column, {
            let (entering, top) = (columns[column], planes[3]);
            window[quarter * 16 + column] = entering;
            planes = [
                entering.xor(top.affine(append[0])),
                planes[0].xor(top.affine(append[1])),
                planes[1].xor(top.affine(append[2])),
                planes[2].xor(top.affine(append[3])),
            ];
        });
    }
    for (tile, mask) in masks.iter_mut().enumerate().take(block.tiles) {
        block.prefetch_next(data, tile);
        let (mut least, mut hits) = (ones, 0);
        for quarter in 0..TILE / 16 {
            // SAFETY: row r lies in tile `tile` of segment r, inside the block.
            let columns: [V; 16] =
                unsafe { transpose(data.as_ptr().add(block.start + tile * TILE + quarter * 16), stride) };
            unrolled!(column, {
                let (entering, leaving, top) = (columns[column], window[quarter * 16 + column], planes[3]);
                window[quarter * 16 + column] = entering;
                planes = [
                    entering.xor3(top.affine(append[0]), leaving.affine(expire[0])),
                    planes[0].xor3(top.affine(append[1]), leaving.affine(expire[1])),
                    planes[1].xor3(top.affine(append[2]), leaving.affine(expire[2])),
                    planes[2].xor3(top.affine(append[3]), leaving.affine(expire[3])),
                ];
                if EXACT {
                    hits |= below(planes, key, threshold);
                } else {
                    least = least.min(planes[3].xor(key[3]).or(planes[2].xor(key[2])));
                }
            });
        }
        *mask = if EXACT { hits } else { least.zeros() };
    }
}

/// Lanes whose value XOR `key` is below `threshold`: decided by the highest plane that differs.
#[inline(always)]
fn below<V: Vector>(planes: [V; 4], key: [V; 4], threshold: [V; 4]) -> u64 {
    let mut below = planes[0].xor(key[0]).below(threshold[0]);
    for plane in 1..4 {
        let value = planes[plane].xor(key[plane]);
        below = value.below(threshold[plane]) | (value.equal(threshold[plane]) & below);
    }
    below
}
