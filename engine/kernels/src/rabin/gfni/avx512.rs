//! The operations of the kernel as instructions, and the only functions that are compiled for them.

use super::super::blocks::{Block, Masks};
use super::{Tables, Vector, roll};
use std::arch::x86_64::*;

/// Whether the processor has every instruction set that is enabled below, and the system saves its registers.
pub(super) fn runs_here() -> bool {
    std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("gfni")
}

/// Marks tiles with suspects.
///
/// # Safety
/// As for [`roll`]; the instruction sets are those of [`runs_here`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,gfni")]
pub(super) unsafe fn roll_suspects(tables: &Tables, data: &[u8], block: Block, masks: &mut Masks) {
    // SAFETY: the caller says so.
    unsafe { roll::<Zmm, false>(tables, data, block, masks) }
}

/// Marks tiles with hits.
///
/// # Safety
/// As for [`roll`]; the instruction sets are those of [`runs_here`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,gfni")]
pub(super) unsafe fn roll_exact(tables: &Tables, data: &[u8], block: Block, masks: &mut Masks) {
    // SAFETY: the caller says so.
    unsafe { roll::<Zmm, true>(tables, data, block, masks) }
}

/// A 512-bit register.
#[derive(Clone, Copy)]
struct Zmm(__m512i);

impl Vector for Zmm {
    #[inline(always)]
    unsafe fn splat(byte: u8) -> Zmm {
        // SAFETY: the caller says that the processor has AVX-512 F.
        Zmm(unsafe { _mm512_set1_epi8(byte as i8) })
    }

    #[inline(always)]
    unsafe fn splat_matrix(matrix: u64) -> Zmm {
        // SAFETY: the caller says that the processor has AVX-512 F.
        Zmm(unsafe { _mm512_set1_epi64(matrix as i64) })
    }

    #[inline(always)]
    unsafe fn load_quarters(from: *const u8, apart: usize) -> Zmm {
        // SAFETY: the caller says that the processor has AVX-512 F, and that all four places are readable.
        unsafe {
            let quarter0 = _mm_loadu_si128(from.cast());
            let quarter1 = _mm_loadu_si128(from.wrapping_add(apart).cast());
            let quarter2 = _mm_loadu_si128(from.wrapping_add(apart.wrapping_mul(2)).cast());
            let quarter3 = _mm_loadu_si128(from.wrapping_add(apart.wrapping_mul(3)).cast());
            let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(quarter0), quarter1);
            let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(quarter2), quarter3);
            Zmm(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high))
        }
    }

    #[inline(always)]
    fn unpack_low(self, other: Zmm) -> Zmm {
        // SAFETY: a value exists, so the processor has AVX-512 BW.
        Zmm(unsafe { _mm512_unpacklo_epi8(self.0, other.0) })
    }

    #[inline(always)]
    fn unpack_high(self, other: Zmm) -> Zmm {
        // SAFETY: a value exists, so the processor has AVX-512 BW.
        Zmm(unsafe { _mm512_unpackhi_epi8(self.0, other.0) })
    }

    #[inline(always)]
    fn affine(self, matrices: Zmm) -> Zmm {
        // SAFETY: a value exists, so the processor has GFNI.
        Zmm(unsafe { _mm512_gf2p8affine_epi64_epi8::<0>(self.0, matrices.0) })
    }

    #[inline(always)]
    fn xor(self, other: Zmm) -> Zmm {
        // SAFETY: a value exists, so the processor has AVX-512 F.
        Zmm(unsafe { _mm512_xor_si512(self.0, other.0) })
    }

    #[inline(always)]
    fn xor3(self, second: Zmm, third: Zmm) -> Zmm {
        // SAFETY: a value exists, so the processor has AVX-512 F. The truth table of 0x96 is odd parity.
        Zmm(unsafe { _mm512_ternarylogic_epi64::<0x96>(self.0, second.0, third.0) })
    }

    #[inline(always)]
    fn or(self, other: Zmm) -> Zmm {
        // SAFETY: a value exists, so the processor has AVX-512 F.
        Zmm(unsafe { _mm512_or_si512(self.0, other.0) })
    }

    #[inline(always)]
    fn min(self, other: Zmm) -> Zmm {
        // SAFETY: a value exists, so the processor has AVX-512 BW.
        Zmm(unsafe { _mm512_min_epu8(self.0, other.0) })
    }

    #[inline(always)]
    fn zeros(self) -> u64 {
        // SAFETY: a value exists, so the processor has AVX-512 BW.
        unsafe { _mm512_testn_epi8_mask(self.0, self.0) }
    }

    #[inline(always)]
    fn equal(self, other: Zmm) -> u64 {
        // SAFETY: a value exists, so the processor has AVX-512 BW.
        unsafe { _mm512_cmpeq_epi8_mask(self.0, other.0) }
    }

    #[inline(always)]
    fn below(self, other: Zmm) -> u64 {
        // SAFETY: a value exists, so the processor has AVX-512 BW.
        unsafe { _mm512_cmplt_epu8_mask(self.0, other.0) }
    }
}
