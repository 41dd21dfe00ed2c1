//! Any `parity` losses rebuild the same bytes.

use super::*;
use proptest::prelude::*;

const SHAPES: [(u8, u8); 5] = [(1, 1), (1, 2), (2, 1), (4, 2), (8, 3)];

fn shape(data: u8, parity: u8) -> StripeShape {
    StripeShape { data, parity }
}

fn bytes(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_add(seed).wrapping_mul(0x9e37_79b9) >> 21) as u8).collect()
}

/// All fragments of a stripe, as they would lie on devices.
fn fragments(coder: &StripeCoder, shape: StripeShape, envelope_len: u32, seed: u32) -> Vec<Vec<u8>> {
    let mut envelope = IoBuf::copy_of(&bytes(padded_len(envelope_len, shape), seed));
    envelope[envelope_len as usize..].fill(0);
    let payload_len = fragment_payload_len(envelope_len, shape) as usize;
    let mut parity: Vec<IoBuf> = (0..parity_buffer_count(shape)).map(|_| IoBuf::zeroed(payload_len)).collect();
    coder.encode(&envelope, shape, &mut parity);
    if shape.data == 1 {
        return vec![envelope.to_vec(); shape.width()];
    }
    envelope.chunks(payload_len).map(<[u8]>::to_vec).chain(parity.iter().map(|buf| buf.to_vec())).collect()
}

/// Every set of at most `most` indices below `width`.
fn losses(width: usize, most: u32) -> Vec<Vec<u8>> {
    let sets = (0u32..1 << width).filter(|set| set.count_ones() <= most);
    sets.map(|set| (0..width as u8).filter(|index| set >> index & 1 == 1).collect()).collect()
}

#[test]
fn i_d4_every_pattern_of_as_many_losses_as_parity_rebuilds_the_same_bytes() {
    let coder = StripeCoder::new();
    for (data, parity) in SHAPES {
        let shape = shape(data, parity);
        let whole = fragments(&coder, shape, 3 * 4096 * u32::from(data) - 100, 1);
        for lost in losses(shape.width(), u32::from(parity)) {
            let left = whole.iter().zip(0u8..).filter(|(_, index)| !lost.contains(index));
            let left: Vec<(u8, &[u8])> = left.map(|(bytes, index)| (index, bytes.as_slice())).collect();
            let rebuilt = coder.rebuild(shape, &left, &lost).unwrap();
            for (index, bytes) in lost.iter().zip(rebuilt) {
                assert!(*bytes == *whole[usize::from(*index)], "{data}+{parity}, lost {lost:?}, fragment {index}");
            }
        }
    }
}

#[test]
fn one_loss_too_many_is_said_not_guessed() {
    let coder = StripeCoder::new();
    for (data, parity) in SHAPES {
        let whole = fragments(&coder, shape(data, parity), 50_000, 2);
        let left: Vec<(u8, &[u8])> = (0..data - 1).map(|index| (index, whole[usize::from(index)].as_slice())).collect();
        let error = coder.rebuild(shape(data, parity), &left, &[data]).unwrap_err();
        assert_eq!(error, StripeError::TooFew { available: usize::from(data) - 1, needed: usize::from(data) });
        // The same fragment twice is one fragment.
        if let Some(one) = left.first() {
            let twice: Vec<_> = std::iter::repeat_n(*one, usize::from(data)).collect();
            assert!(matches!(coder.rebuild(shape(data, parity), &twice, &[data]), Err(StripeError::TooFew { .. })));
        }
    }
}

#[test]
fn strangers_and_impossible_shapes_are_refused() {
    let coder = StripeCoder::new();
    let (long, short) = ([1u8; 4096], [1u8; 4095]);
    let odd: [(u8, &[u8]); 2] = [(0, &long), (2, &short)];
    assert_eq!(coder.rebuild(shape(2, 1), &odd, &[1]).unwrap_err(), StripeError::Stranger { index: 2 });
    let outside: [(u8, &[u8]); 2] = [(0, &long), (3, &long)];
    assert_eq!(coder.rebuild(shape(2, 1), &outside, &[1]).unwrap_err(), StripeError::Stranger { index: 3 });
    let good: [(u8, &[u8]); 2] = [(0, &long), (2, &long)];
    assert_eq!(coder.rebuild(shape(2, 1), &good, &[3]).unwrap_err(), StripeError::Stranger { index: 3 });
    for (data, parity) in [(0, 1), (0, 0), (30, 3), (255, 255)] {
        assert_eq!(check_shape(shape(data, parity)), Err(StripeError::Shape { data, parity }));
        assert!(coder.rebuild(shape(data, parity), &good, &[0]).is_err());
    }
    assert!(check_shape(shape(1, 0)).is_ok() && check_shape(shape(29, 3)).is_ok());
}

#[test]
fn i_c7_payloads_are_blocks_and_hold_the_envelope() {
    for (data, parity) in SHAPES {
        for envelope_len in [17, 4095, 4096, 4097, 65_552, 1_048_832, 4_195_328] {
            let shape = shape_for(shape(data, parity), envelope_len);
            let payload_len = fragment_payload_len(envelope_len, shape) as usize;
            assert!(payload_len.is_multiple_of(4096), "{shape:?}, {envelope_len}");
            assert!(padded_len(envelope_len, shape) >= envelope_len as usize, "{shape:?}, {envelope_len}");
            let spare = padded_len(envelope_len, shape) - envelope_len as usize;
            assert!(spare < 4096 * usize::from(shape.data), "{shape:?}, {envelope_len}: no block more than needed");
        }
    }
}

#[test]
fn small_envelopes_become_copies_that_survive_as_many_losses() {
    let pool = shape(4, 2);
    assert_eq!(shape_for(pool, 4 * 4096 - 1), shape(1, 2));
    assert_eq!(shape_for(pool, 4 * 4096), pool);
    assert_eq!(shape_for(shape(1, 2), 17), shape(1, 2));
}

/// The parity bytes of a small stripe, committed: a change of matrix or layout would lose every stored stripe.
#[test]
fn golden_parity() {
    let coder = StripeCoder::new();
    let whole = fragments(&coder, shape(4, 2), 4 * 4096, 3);
    assert_eq!(whole[4][..8], [141, 71, 2, 51, 226, 131, 42, 132]);
    assert_eq!(whole[5][..8], [24, 38, 6, 37, 26, 97, 203, 106]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_part_of_each_payload_rebuilds_that_part(
        which in 0usize..SHAPES.len(),
        envelope_len in 1u32..300_000,
        seed: u32,
        pick: u32,
        from in 0usize..4096,
    ) {
        let (data, parity) = SHAPES[which];
        let shape = shape(data, parity);
        let coder = StripeCoder::new();
        let whole = fragments(&coder, shape, envelope_len, seed);
        let patterns = losses(shape.width(), u32::from(parity));
        let lost = &patterns[pick as usize % patterns.len()];
        let range = from..whole[0].len().min(from + 5000);
        let left = whole.iter().zip(0u8..).filter(|(_, index)| !lost.contains(index));
        let left: Vec<(u8, &[u8])> = left.map(|(bytes, index)| (index, &bytes[range.clone()])).collect();
        // All fragments are wanted, those that are there too.
        let want: Vec<u8> = (0..shape.width() as u8).collect();
        for (index, bytes) in coder.rebuild(shape, &left, &want).unwrap().iter().enumerate() {
            prop_assert!(**bytes == whole[index][range.clone()], "fragment {}", index);
        }
    }
}
