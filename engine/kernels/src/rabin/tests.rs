//! Every kernel finds the hits that the definition of the fingerprint finds.

use super::self_check::random;
use super::*;
use proptest::prelude::*;

const POLYNOMIAL_LOW: u32 = 0xD306_EACF;
const KEY: u32 = 0xA5C3_E719;

/// The definition: the 64 bytes as one polynomial, the newest byte lowest, divided by P bit by bit.
fn by_definition(window: &[u8]) -> u32 {
    let bits = window.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
    bits.fold(0u32, |f, bit| (f << 1 | u32::from(bit)) ^ if f >> 31 == 1 { POLYNOMIAL_LOW } else { 0 })
}

/// Every hit from `from` on, each found by searching on after the one before.
fn all_hits(rabin: &Rabin, data: &[u8], mut from: usize) -> Vec<usize> {
    let mut hits = Vec::new();
    while let Some(hit) = rabin.find_hit(data, from) {
        hits.push(hit);
        from = hit + 1;
    }
    hits
}

/// Hits of the plain definition, slowly.
fn hits_by_definition(threshold: u32, data: &[u8], from: usize) -> Vec<usize> {
    let hit = |position: &usize| by_definition(&data[position - 63..=*position]) ^ KEY < threshold;
    (from..data.len()).filter(hit).collect()
}

#[test]
fn fingerprints_are_those_of_the_definition() {
    let rabin = Rabin::new(POLYNOMIAL_LOW, KEY, 5423);
    let data = random(4000, 1);
    for position in 63..data.len() {
        assert_eq!(rabin.fingerprint_at(&data, position), by_definition(&data[position - 63..=position]));
    }
}

#[test]
fn every_kernel_finds_the_hits_of_the_definition() {
    let data = random(70_000, 2);
    for threshold in [1, 5423, 1 << 16, (1 << 16) + 1, 1 << 20, 1 << 24, u32::MAX] {
        let expected = hits_by_definition(threshold, &data, 63);
        for kernel in Kernel::runnable() {
            let rabin = Rabin::with_kernel(POLYNOMIAL_LOW, KEY, threshold, kernel);
            let (first, expected_first) = (rabin.find_hit(&data, 63), expected.first().copied());
            assert_eq!(first, expected_first, "{kernel:?}, T = {threshold}");
            if expected.len() < 3000 {
                assert_eq!(all_hits(&rabin, &data, 63), expected, "{kernel:?}, T = {threshold}");
            }
        }
    }
}

#[test]
fn every_start_and_length_gives_the_same_answer() {
    let data = random(150_000, 3);
    let plain = Rabin::with_kernel(POLYNOMIAL_LOW, KEY, 60_000, Kernel::Plain);
    let others = Kernel::runnable().into_iter().filter(|kernel| *kernel != Kernel::Plain);
    let others: Vec<_> = others.map(|kernel| Rabin::with_kernel(POLYNOMIAL_LOW, KEY, 60_000, kernel)).collect();
    let starts = (63..70).chain([127, 1000, 2047, 2048, 2112, 2113, 6143, 34_815, 34_880, 100_000]);
    for from in starts {
        let ends = (0..70).map(|more| from + more).chain((10..28).map(|i| from + i * 1_777)).chain([data.len()]);
        for end in ends.filter(|end| *end <= data.len()) {
            let expected = plain.find_hit(&data[..end], from);
            for other in &others {
                let found = other.find_hit(&data[..end], from);
                assert_eq!(found, expected, "{:?}: from {from} of {end} bytes", other.kernel);
            }
        }
    }
    for kernel in Kernel::runnable() {
        let rabin = Rabin::with_kernel(POLYNOMIAL_LOW, KEY, 60_000, kernel);
        assert_eq!(rabin.find_hit(&data[..500], 500), None, "nothing to search");
        assert_eq!(rabin.find_hit(&data[..500], 700), None, "beyond the end");
    }
}

/// 64 bytes with the wanted fingerprint: 60 free bytes, then four that steer it (appending is a bijection on them).
fn window_with(fingerprint: u32, seed: u64) -> [u8; 64] {
    let mut window: [u8; 64] = random(64, seed).try_into().unwrap();
    window[60..].fill(0);
    let difference = by_definition(&window) ^ fingerprint;
    window[60..].copy_from_slice(&difference.to_be_bytes());
    assert_eq!(by_definition(&window), fingerprint);
    window
}

#[test]
fn data_made_of_near_misses_and_hits_is_cut_alike() {
    for threshold in [1, 300, 5423, 65_535, 65_536] {
        // The 16 bits that a filter sees match K in every window; only some are below T.
        let near = |low: u32| (KEY & 0xffff_0000) | ((KEY ^ low) & 0xffff);
        let mut data = random(64, 9);
        for i in 0..1200u32 {
            let low = if i % 97 == 5 { threshold - 1 } else { threshold.max(1) + i % (70_000 - threshold) };
            let fingerprint = if low < 1 << 16 { near(low) } else { KEY ^ low };
            data.extend_from_slice(&window_with(fingerprint, u64::from(i)));
        }
        let expected = hits_by_definition(threshold, &data, 63);
        assert!(expected.len() >= 12, "T = {threshold}: {} hits", expected.len());
        for kernel in Kernel::runnable() {
            let rabin = Rabin::with_kernel(POLYNOMIAL_LOW, KEY, threshold, kernel);
            assert_eq!(all_hits(&rabin, &data, 63), expected, "{kernel:?}, T = {threshold}");
        }
    }
}

#[test]
fn the_bounds_of_the_comparison_are_exact_in_every_kernel() {
    for threshold in [1u32, 255, 256, 5423, 65_536, 65_537, 0x0100_0000, 0x8000_0000, 0xff00_ff01] {
        for (value, hit) in [(threshold - 1, true), (threshold, false), (threshold ^ 0x8000_0000, threshold >= 1 << 31)]
        {
            let mut data = random(30_000, 11);
            // Only the planted window may be a hit: everything before it is searched past.
            data[20_000..20_064].copy_from_slice(&window_with(KEY ^ value, 5));
            for kernel in Kernel::runnable() {
                let rabin = Rabin::with_kernel(POLYNOMIAL_LOW, KEY, threshold, kernel);
                let found = rabin.find_hit(&data[..24_064], 20_063) == Some(20_063);
                assert_eq!(found, hit, "{kernel:?}, T = {threshold:#x}, F ^ K = {value:#x}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn kernels_agree_on_anything(
        seed: u64,
        len in 64usize..120_000,
        from in 63usize..3_000,
        alphabet in 1u8..=255,
        threshold in prop_oneof![1u32..100_000, 1u32..1 << 24],
        polynomial_low: u32,
        key: u32,
    ) {
        let data: Vec<u8> = random(len, seed).iter().map(|byte| byte % alphabet).collect();
        let hits: Vec<_> = Kernel::runnable().into_iter().map(|kernel| {
            Rabin::with_kernel(polynomial_low, key, threshold, kernel).find_hit(&data, from)
        }).collect();
        prop_assert!(hits.iter().all(|hit| *hit == hits[0]), "{hits:?}");
    }
}
