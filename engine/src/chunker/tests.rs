//! Cuts are where the format says, however the bytes arrive and whichever kernel looks.

use super::*;
use proptest::prelude::*;

/// SplitMix64: a small deterministic generator.
fn random(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31).to_le_bytes()
    });
    words.take(len).collect()
}

/// Lines of words, the words drawn from a short list.
fn text(len: usize, seed: u64) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "alpha ", "block ", "chunk ", "delta ", "extent\n", "flush ", "grain ", "home ", "index ", "journal ", "key ",
        "lane\n", "map ", "node ", "order ", "pool, ",
    ];
    let picks = random(len, seed);
    picks.iter().flat_map(|pick| WORDS[usize::from(pick % 16)].bytes()).take(len).collect()
}

fn small() -> ChunkFormat {
    ChunkFormat::with_lengths(128, 512, 2048).unwrap()
}

fn every_kernel(format: ChunkFormat) -> Vec<Chunker> {
    let open = |kernel| Chunker::open_with_kernel(format, kernel).unwrap();
    Kernel::runnable().into_iter().map(open).collect()
}

/// A chunk of `len` bytes of zeros whose fingerprint asks for a cut after byte `position` (and nowhere before, unless
/// by chance, which the callers' expectations would show).
fn with_hit_at(chunker: &Chunker, len: usize, position: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    data[position - 20] = 1;
    let difference = chunker.rabin.fingerprint_at(&data, position) ^ chunker.format.key;
    data[position - 3..=position].copy_from_slice(&difference.to_be_bytes());
    assert!(chunker.rabin.is_hit(chunker.rabin.fingerprint_at(&data, position)));
    data
}

#[test]
fn the_default_format_follows_from_its_lengths() {
    assert_eq!(ChunkFormat::with_lengths(256 << 10, 1 << 20, 4 << 20), Ok(ChunkFormat::default()));
    assert!(Chunker::open(ChunkFormat::default()).is_ok());
}

#[test]
fn golden_cuts_of_the_default_format() {
    let golden: [(&str, Vec<u8>, &[usize]); 3] = [
        ("random", random(12 << 20, 1), &GOLDEN_RANDOM),
        ("text", text(12 << 20, 2), &GOLDEN_TEXT),
        ("zeros", vec![0; 10 << 20], &[4 << 20, 4 << 20, 2 << 20]),
    ];
    for chunker in every_kernel(ChunkFormat::default()) {
        for (name, data, lens) in &golden {
            assert_eq!(chunker.cut_all(data), *lens, "{name}");
        }
    }
}

/// Made by a second implementation in another language, as the other committed figures here are.
const GOLDEN_RANDOM: [usize; 16] = [
    388949, 712999, 1274743, 585695, 770362, 627841, 627310, 451219, 576171, 634277, 1744833, 710615, 835318, 635964,
    490704, 1515912,
];
const GOLDEN_TEXT: [usize; 10] = [373965, 1038141, 732353, 397713, 1780587, 570790, 1656259, 2268480, 2746350, 1018274];

#[test]
fn golden_cuts_of_a_small_format() {
    let format = ChunkFormat::with_lengths(2 << 10, 8 << 10, 64 << 10).unwrap();
    assert_eq!(format.threshold, 699_028);
    for chunker in every_kernel(format) {
        // Number of chunks, and a sum that weighs each with its place.
        let digest = |data: &[u8]| {
            let lens = chunker.cut_all(data);
            (lens.len(), lens.iter().zip(1..).map(|(len, place)| len * place).sum::<usize>())
        };
        assert_eq!(digest(&random(4 << 20, 3)), (541, 1_167_006_925));
        assert_eq!(digest(&text(4 << 20, 4)), (527, 1_114_415_515));
        assert_eq!(digest(&vec![0; 4 << 20]), (64, (64 << 10) * 64 * 65 / 2));
    }
}

#[test]
fn every_length_around_minimum_and_maximum() {
    for format in [small(), ChunkFormat::default()] {
        let (min, max) = (format.len_bytes_min as usize, format.len_bytes_max as usize);
        for chunker in every_kernel(format) {
            for len in (min - 2..min + 3).chain(max - 2..max) {
                assert_eq!(chunker.cut(&vec![0; len]), None, "{len} zeros");
            }
            for len in max..max + 3 {
                assert_eq!(chunker.cut(&vec![0; len]), Some(max), "{len} zeros");
            }
            for cut_len in (min..min + 3).chain([min + 63, min + 64, min + 65]).chain(max - 66..=max) {
                let data = with_hit_at(&chunker, max + 10, cut_len - 1);
                assert_eq!(chunker.cut(&data), Some(cut_len), "hit after {cut_len} bytes");
                assert_eq!(chunker.cut(&data[..cut_len]), Some(cut_len), "nothing after the hit");
                assert_eq!(chunker.cut(&data[..cut_len - 1]), None, "all but the hit");
            }
            for too_early in [min - 1, min - 2, min - 40] {
                assert_eq!(chunker.cut(&with_hit_at(&chunker, max, too_early - 1)), Some(max), "hit at {too_early}");
            }
            assert_eq!(chunker.cut(&with_hit_at(&chunker, max + 10, max)), Some(max), "hit just beyond the maximum");
        }
    }
}

#[test]
fn chunks_of_random_data_have_the_wanted_mean() {
    let chunker = Chunker::open(ChunkFormat::with_lengths(2 << 10, 8 << 10, 64 << 10).unwrap()).unwrap();
    let data = random(24 << 20, 5);
    let mean = data.len() / chunker.cut_all(&data).len();
    assert!((7_800..8_600).contains(&mean), "mean {mean}");
}

#[test]
fn an_inserted_byte_changes_the_chunks_around_it_only() {
    let chunker = Chunker::open(small()).unwrap();
    for data in [random(200_000, 6), text(200_000, 7)] {
        let chunks = |data: &[u8]| -> std::collections::BTreeSet<Vec<u8>> {
            let mut rest = data;
            let take = |len: &usize| {
                let (chunk, after) = rest.split_at(*len);
                rest = after;
                chunk.to_vec()
            };
            chunker.cut_all(data).iter().map(take).collect()
        };
        let mut changed = data.clone();
        changed.insert(100_000, b'!');
        let new = chunks(&changed).difference(&chunks(&data)).count();
        assert!((1..=8).contains(&new), "{new} new chunks");
    }
}

#[test]
fn unfit_formats_are_refused() {
    let good = ChunkFormat::default();
    let refuse = |format: ChunkFormat| Chunker::open(format).err();
    let (min, avg, max) = (good.len_bytes_min, good.len_bytes_avg, good.len_bytes_max);
    for (min, avg, max) in [(63, avg, max), (min, avg, max + 1), (avg, avg, max), (min, max, max), (min, min - 1, max)]
    {
        let format = ChunkFormat { len_bytes_min: min, len_bytes_avg: avg, len_bytes_max: max, ..good };
        assert_eq!(refuse(format), Some(ChunkFormatError::Lengths { min, avg, max }));
        assert_eq!(ChunkFormat::with_lengths(min, avg, max).err(), refuse(format));
    }
    for polynomial in [0, 1, 0xD306_EACF, 0x1_D306_EACE, 0x1_D306_EACD, 0x3_D306_EACF, 0x2_0000_0029] {
        let format = ChunkFormat { polynomial, ..good };
        assert_eq!(refuse(format), Some(ChunkFormatError::Polynomial { polynomial }), "{polynomial:#x}");
    }
    for (threshold, key) in [(0, good.key), (good.key.wrapping_add(1), good.key), (5423, 5422), (1, 0)] {
        let format = ChunkFormat { threshold, key, ..good };
        assert_eq!(refuse(format), Some(ChunkFormatError::Threshold { threshold, key }));
    }
    assert_eq!(refuse(ChunkFormat { threshold: 1, key: 1, ..good }), None, "K = T is fit");
    let rabin = Rabin::new(good.polynomial as u32, good.key, good.threshold);
    for byte in 1..=255 {
        let key = rabin.fingerprint_at(&[byte; 64], 63) ^ (good.threshold - 1);
        let error = refuse(ChunkFormat { key, ..good });
        let first = ChunkFormatError::ConstantWindow { key, byte };
        assert!(error == Some(first) || matches!(error, Some(ChunkFormatError::ConstantWindow { .. })), "{byte}");
    }
}

/// Whether no polynomial of degree 1..=16 divides it.
fn irreducible_by_trial_division(polynomial: u64) -> bool {
    polynomial >> 32 == 1
        && (2u64..1 << 17).all(|divisor| {
            let mut rest = polynomial;
            while rest.leading_zeros() <= divisor.leading_zeros() {
                rest ^= divisor << (divisor.leading_zeros() - rest.leading_zeros());
            }
            rest != 0
        })
}

#[test]
fn irreducibility_agrees_with_trial_division() {
    let mut irreducible = 0;
    let words = random(8 * 150, 8);
    for word in words.as_chunks::<8>().0 {
        let polynomial = 1 << 32 | u64::from_le_bytes(*word) & 0xffff_ffff | 1;
        let verdict = is_irreducible_of_degree_32(polynomial);
        assert_eq!(verdict, irreducible_by_trial_division(polynomial), "{polynomial:#x}");
        irreducible += u32::from(verdict);
    }
    assert!(irreducible > 0, "some of them must be");
    assert!(irreducible_by_trial_division(POLYNOMIAL_DEFAULT));
    // A square of an irreducible polynomial of degree 16 passes the first condition's cousin only.
    assert!(!is_irreducible_of_degree_32(0x1_0000_0000));
}

#[test]
fn a_format_reads_back_and_every_truncation_is_an_error() {
    let mut out = Writer::new();
    ChunkFormat::default().encode(&mut out);
    let bytes = out.finish();
    assert_eq!(bytes.len(), 29);
    assert_eq!(ChunkFormat::decode(&mut Reader::new("chunk format", &bytes)), Ok(ChunkFormat::default()));
    for len in 0..bytes.len() {
        assert!(ChunkFormat::decode(&mut Reader::new("chunk format", &bytes[..len])).is_err(), "{len} bytes");
    }
    let later = [&[2], &bytes[1..]].concat();
    assert!(ChunkFormat::decode(&mut Reader::new("chunk format", &later)).is_err(), "a later version");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn cuts_do_not_depend_on_how_the_bytes_arrive(
        seed: u64,
        len in 0usize..40_000,
        alphabet in 1u8..=255,
        pieces in prop::collection::vec(1usize..5_000, 1..40),
    ) {
        let data: Vec<u8> = random(len, seed).iter().map(|byte| byte % alphabet).collect();
        let expected = every_kernel(small())[0].cut_all(&data);
        for chunker in every_kernel(small()) {
            let (mut cutter, mut lens, mut start, mut arrived) = (Cutter::new(), Vec::new(), 0, 0);
            for piece in pieces.iter().cycle() {
                arrived = data.len().min(arrived + piece);
                while let Some(len) = cutter.cut(&chunker, &data[start..arrived]) {
                    lens.push(len);
                    start += len;
                }
                // Nothing that has been searched will be again.
                let open = arrived - start;
                let min = chunker.format().len_bytes_min as usize;
                prop_assert_eq!(cutter.searched_len_bytes, if open < min { 0 } else { open });
                if arrived == data.len() {
                    break;
                }
            }
            lens.extend((start < data.len()).then_some(data.len() - start));
            prop_assert_eq!(&lens, &expected);
        }
    }
}
