//! The emulation is that of the manuals, and the algorithm over it cuts as the plain loop does.

use super::super::Kernel;
use super::super::self_check::random;
use super::emulated::Bytes;
use super::*;
use std::arch::x86_64::*;

const POLYNOMIAL_LOW: u32 = 0xD306_EACF;
const KEY: u32 = 0xA5C3_E719;

fn emulated(threshold: u32) -> Rabin {
    Rabin::with_kernel(POLYNOMIAL_LOW, KEY, threshold, Kernel::Emulated)
}

fn plain(threshold: u32) -> Rabin {
    Rabin::with_kernel(POLYNOMIAL_LOW, KEY, threshold, Kernel::Plain)
}

/// Lines of words, the words drawn from a short list.
fn text(len: usize, seed: u64) -> Vec<u8> {
    const WORDS: [&str; 8] = ["alpha ", "block ", "chunk ", "delta ", "extent\n", "flush ", "grain ", "home "];
    let picks = random(len, seed);
    picks.iter().flat_map(|pick| WORDS[usize::from(pick % 8)].bytes()).take(len).collect()
}

/// Lengths of chunks, as the chunker cuts them.
fn cuts(rabin: &Rabin, mut data: &[u8], min: usize, max: usize) -> Vec<usize> {
    let mut lens = Vec::new();
    while !data.is_empty() {
        let end = data.len().min(max);
        let len = if end < min { end } else { rabin.find_hit(&data[..end], min - 1).map_or(end, |hit| hit + 1) };
        lens.push(len);
        data = &data[len..];
    }
    lens
}

/// Multiplication in the field of AES.
fn times(a: u8, b: u8) -> u8 {
    (0..8).rev().fold(0, |product: u8, bit| {
        let doubled = product << 1 ^ if product >> 7 == 1 { 0x1b } else { 0 };
        doubled ^ if b >> bit & 1 == 1 { a } else { 0 }
    })
}

#[test]
fn the_emulated_product_has_the_bit_order_of_the_instruction() {
    let bytes = Bytes(std::array::from_fn(|i| (i * 37 + 5) as u8));
    let product = |matrix: u64, bytes: Bytes| {
        // SAFETY: the definitions run everywhere.
        bytes.affine(unsafe { Bytes::splat_matrix(matrix) })
    };
    // Matrices whose effect is common knowledge: the identity, the reversal of bits, and a shift to the left by two.
    assert_eq!(product(0x0102_0408_1020_4080, bytes), bytes);
    assert_eq!(product(0x8040_2010_0804_0201, bytes), Bytes(bytes.0.map(u8::reverse_bits)));
    assert_eq!(product(0x0102_0408_1020_4080 >> 2 & 0x3f3f_3f3f_3f3f_3f3f, bytes), Bytes(bytes.0.map(|b| b << 2)));
    // The S-box of AES is this matrix times the inverse, XOR 0x63; a few of its entries from FIPS 197.
    for (byte, substitute) in [(0x00, 0x63), (0x01, 0x7c), (0x53, 0xed), (0x10, 0xca), (0x9a, 0xb8), (0xff, 0x16)] {
        let inverse = (0..=255).find(|inverse| times(byte, *inverse) == 1).unwrap_or(0);
        let mut single = Bytes([0; 64]);
        single.0[50] = inverse;
        assert_eq!(product(0xf1e3_c78f_1f3e_7cf8, single).0[50] ^ 0x63, substitute, "{byte:#x}");
    }
    // Each quadword has a matrix of its own.
    let matrices = Bytes(std::array::from_fn(|i| if i / 8 == 3 { 1 << (i % 8) } else { 0 }));
    let only = |i: usize| if i / 8 == 3 { bytes.0[i].reverse_bits() } else { 0 };
    assert_eq!(bytes.affine(matrices), Bytes(std::array::from_fn(only)));
}

#[test]
fn the_other_emulated_operations_are_those_of_sse_in_each_quarter() {
    let [a, b, c] = [1, 2, 3].map(|seed| Bytes(random(64, seed).try_into().unwrap()));
    // Some lanes are equal, and some are zero.
    let b = Bytes(std::array::from_fn(|i| if i % 5 == 0 { a.0[i] } else { b.0[i] }));
    let a = Bytes(std::array::from_fn(|i| if i % 15 == 0 { 0 } else { a.0[i] }));
    let quarter = |bytes: Bytes, quarter: usize| bytes.0.as_chunks::<16>().0[quarter];
    for q in 0..4 {
        let [x, y, z] = [a, b, c].map(|bytes| {
            // SAFETY: every processor of this architecture has SSE2, and the array has 16 bytes.
            unsafe { _mm_loadu_si128(quarter(bytes, q).as_ptr().cast()) }
        });
        let same = |register: __m128i, expected: Bytes| {
            let mut out = [0u8; 16];
            // SAFETY: every processor of this architecture has SSE2, and the array has 16 bytes.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), register) };
            assert_eq!(out, quarter(expected, q));
        };
        // SAFETY: every processor of this architecture has SSE2.
        unsafe {
            same(_mm_unpacklo_epi8(x, y), a.unpack_low(b));
            same(_mm_unpackhi_epi8(x, y), a.unpack_high(b));
            same(_mm_xor_si128(x, y), a.xor(b));
            same(_mm_xor_si128(_mm_xor_si128(x, y), z), a.xor3(b, c));
            same(_mm_or_si128(x, y), a.or(b));
            same(_mm_min_epu8(x, y), a.min(b));
            let mask = |mask: u64| (mask >> (16 * q) & 0xffff) as i32;
            assert_eq!(_mm_movemask_epi8(_mm_cmpeq_epi8(x, y)), mask(a.equal(b)));
            assert_eq!(_mm_movemask_epi8(_mm_cmpeq_epi8(x, _mm_setzero_si128())), mask(a.zeros()));
            // Below means: the lesser one, and not equal.
            let at_most = _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8(x, y), x));
            assert_eq!(at_most & !mask(a.equal(b)), mask(a.below(b)));
        }
    }
}

#[test]
fn a_tile_is_transposed() {
    let data = random(64 * 192 + 16, 4);
    // SAFETY: the definitions run everywhere; row 63 ends 16 bytes behind 63 * 192.
    let columns: [Bytes; 16] = unsafe { transpose(data.as_ptr(), 192) };
    for (column, bytes) in columns.iter().enumerate() {
        assert!((0..64).all(|row| bytes.0[row] == data[row * 192 + column]), "column {column}");
    }
}

#[test]
fn matrices_multiply_as_the_tables_do() {
    let rabin = plain(1);
    for byte in 0..=255u8 {
        for plane in 0..4 {
            for (map, matrices) in [(&rabin.append, rabin.gfni.append), (&rabin.expire, rabin.gfni.expire)] {
                // SAFETY: the definitions run everywhere.
                let product = unsafe { Bytes::splat(byte).affine(Bytes::splat_matrix(matrices[plane])) };
                assert_eq!(product.0, [map[usize::from(byte)].to_le_bytes()[plane]; 64]);
            }
        }
    }
}

#[test]
fn chunks_of_any_data_are_those_of_the_plain_loop() {
    let len = 400_000;
    let mut mixed = random(len, 5);
    mixed[100_000..250_000].fill(0);
    mixed[300_000..380_000].copy_from_slice(&text(80_000, 6));
    for data in [random(len, 7), text(len, 8), vec![0; len], mixed] {
        // Thresholds for means of 2 KiB (the exact variant), 64 KiB and 1 MiB.
        for (threshold, min, max) in [(1 << 21, 128, 8192), (1 << 16, 16_384, 131_072), (5423, 64, 262_144)] {
            let expected = cuts(&plain(threshold), &data, min, max);
            assert_eq!(cuts(&emulated(threshold), &data, min, max), expected, "T = {threshold}");
        }
    }
}

#[test]
fn every_length_around_block_borders_is_searched_to_its_end() {
    // Zeros have no hit under this key; the planted one is the last position, the one before it, or just behind the
    // end.
    let rabins = [(5423, 17), (60_000, 3), (1 << 17, 3)].map(|(threshold, tiles)| (emulated(threshold), tiles));
    for (rabin, tiles) in rabins {
        let block = LANES * TILE * tiles;
        let borders = [64, 1024, LANES * TILE, LANES * TILE + 64, 3 * LANES * TILE, block, block + 64, block + 1024];
        for border in borders.into_iter().chain([block + LANES * TILE, 2 * block + 64]) {
            for end in [0, 1, 2, 3, 4, 17, 18, 19, 65, 66, 67].map(|more| border.max(66) + more - 2) {
                let mut data = vec![0; end + 1];
                // Appending four bytes is a bijection on fingerprints, so they steer the last one to K.
                let steer = rabin.key.to_be_bytes();
                data[end - 4..end].copy_from_slice(&steer);
                assert!(rabin.is_hit(rabin.fingerprint_at(&data, end - 1)));
                let from = 64.min(end - 1);
                assert_eq!(rabin.find_hit(&data[..end], from), Some(end - 1), "all of {end}");
                assert_eq!(rabin.find_hit(&data, from), Some(end - 1), "one more than {end}");
                assert_eq!(rabin.find_hit(&data[..end - 1], from), None, "one less than {end}");
            }
        }
    }
}

#[test]
fn a_hit_is_found_in_every_column_of_every_segment() {
    let len = LANES * TILE * 17 + 64;
    let data = random(len, 9);
    let plain = plain(1);
    for segment in 0..LANES {
        // Over all segments that is every column of a tile, and every tile, several times.
        for at in (0..TILE * 17).step_by(4 * TILE + 1).map(|at| (at + segment) % (TILE * 17)) {
            let position = 64 + segment * TILE * 17 + at;
            let rabin = plain.with_condition(plain.fingerprint_at(&data, position), 1);
            assert_eq!(rabin.find_hit_rolling(EMULATED, &data, 64), Some(position), "segment {segment}");
        }
    }
}

#[test]
fn data_that_matches_the_filter_everywhere_is_cut_alike() {
    // All windows of zeros have fingerprint 0, whose high half is that of these keys: the exact variant takes over.
    let mut data = vec![0; 300_000];
    data[..1000].copy_from_slice(&random(1000, 10));
    data[250_000..].copy_from_slice(&random(50_000, 11));
    for (key, threshold) in [(0x0000_8000, 1), (0x0000_8000, 0x8000), (0x0000_8000, 0x8001), (0x0000_0001, 2)] {
        let rabin = plain(1).with_condition(key, threshold);
        for from in [63, 64, 500, 1100, 200_000, 249_990, 250_020] {
            let expected = rabin.find_hit_plain(&data, from);
            assert_eq!(rabin.find_hit_rolling(EMULATED, &data, from), expected, "K = {key:#x}, from {from}");
        }
    }
}

#[test]
fn a_processor_without_the_instructions_never_gets_the_kernel() {
    assert_eq!(checked().is_some(), avx512::runs_here());
    assert_eq!(checked() == Some(true), Kernel::runnable().contains(&Kernel::Avx512Gfni));
    assert_eq!(checked() == Some(false), Kernel::rejected().contains(&Kernel::Avx512Gfni));
    if !Kernel::rejected().is_empty() {
        // Users are safe, the next kernel is chosen; whoever reads this has a processor to find the reason on.
        eprintln!("the kernel disagrees with the plain loop on this processor and is not used");
    }
}
