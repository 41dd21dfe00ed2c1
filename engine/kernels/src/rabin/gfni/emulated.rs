//! The operations of the kernel as the processor manuals define them, byte by byte and bit by bit, for tests.

use super::Vector;

/// A 512-bit register, its lowest byte first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) [u8; 64]);

impl Bytes {
    /// One byte of the result for each pair.
    fn pairwise(self, other: Bytes, operation: impl Fn(u8, u8) -> u8) -> Bytes {
        Bytes(std::array::from_fn(|i| operation(self.0[i], other.0[i])))
    }

    /// A mask register: bit i is the answer for byte i.
    fn compare(self, other: Bytes, operation: impl Fn(u8, u8) -> bool) -> u64 {
        (0..64).fold(0, |mask, i| mask | u64::from(operation(self.0[i], other.0[i])) << i)
    }

    /// VPUNPCKLBW and VPUNPCKHBW: in each 128-bit lane, byte 2i of the result is byte i of the lane's half of the first
    /// operand, byte 2i + 1 that of the second. `half` is 0 for the low and 8 for the high one.
    fn unpack(self, other: Bytes, half: usize) -> Bytes {
        let source = |i: usize| i / 16 * 16 + half + i % 16 / 2;
        Bytes(std::array::from_fn(|i| if i % 2 == 0 { self.0[source(i)] } else { other.0[source(i)] }))
    }
}

/// The XOR of all bits.
fn parity(byte: u8) -> u8 {
    let folded = byte ^ byte >> 4;
    let folded = folded ^ folded >> 2;
    (folded ^ folded >> 1) & 1
}

impl Vector for Bytes {
    unsafe fn splat(byte: u8) -> Bytes {
        Bytes([byte; 64])
    }

    /// VPBROADCASTQ.
    unsafe fn splat_matrix(matrix: u64) -> Bytes {
        let matrix = matrix.to_le_bytes();
        Bytes(std::array::from_fn(|i| matrix[i % 8]))
    }

    /// VMOVDQU, and inserts that put the second quarter into the upper half of the lower 256 bits, and so on.
    unsafe fn load_quarters(from: *const u8, apart: usize) -> Bytes {
        let mut bytes = [0; 64];
        for (i, quarter) in bytes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            // SAFETY: the caller says that 16 bytes are readable at each of the four places.
            *quarter = unsafe { from.add(i * apart).cast::<[u8; 16]>().read_unaligned() };
        }
        Bytes(bytes)
    }

    fn unpack_low(self, other: Bytes) -> Bytes {
        self.unpack(other, 0)
    }

    fn unpack_high(self, other: Bytes) -> Bytes {
        self.unpack(other, 8)
    }

    /// GF2P8AFFINEQB with an immediate of zero. For byte j of each quadword, `affine_byte` of the manual: bit i of the
    /// result is parity(tsrc2qw.byte[7 - i] AND src1.byte[j]), tsrc2qw being that quadword of the second operand.
    fn affine(self, matrices: Bytes) -> Bytes {
        (0..8).fold(Bytes([0; 64]), |result, i| {
            let row = Bytes(std::array::from_fn(|lane| matrices.0[lane / 8 * 8 + 7 - i]));
            result.or(row.pairwise(self, |row, byte| parity(row & byte) << i))
        })
    }

    fn xor(self, other: Bytes) -> Bytes {
        self.pairwise(other, |a, b| a ^ b)
    }

    /// VPTERNLOGQ with 0x96: the bits of the three operands, the first one highest, are an index into the immediate.
    fn xor3(self, second: Bytes, third: Bytes) -> Bytes {
        let bit = |i: usize, bit: usize| {
            let index = [self, second, third].iter().fold(0, |index, operand| index << 1 | operand.0[i] >> bit & 1);
            (0x96 >> index & 1) << bit
        };
        Bytes(std::array::from_fn(|i| (0..8).fold(0, |byte, at| byte | bit(i, at))))
    }

    fn or(self, other: Bytes) -> Bytes {
        self.pairwise(other, |a, b| a | b)
    }

    fn min(self, other: Bytes) -> Bytes {
        self.pairwise(other, u8::min)
    }

    /// VPTESTNMB of a register with itself.
    fn zeros(self) -> u64 {
        self.compare(self, |a, b| a & b == 0)
    }

    fn equal(self, other: Bytes) -> u64 {
        self.compare(other, |a, b| a == b)
    }

    fn below(self, other: Bytes) -> u64 {
        self.compare(other, |a, b| a < b)
    }
}
