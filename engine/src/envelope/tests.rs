//! An envelope opens to what was sealed, under the binding it was sealed with, or not at all.

use super::*;
use aes_gcm::{AeadInPlace, Aes256Gcm, KeyInit};
use proptest::prelude::*;

const LOCATOR: Locator = Locator([0x5a; 32]);

fn dek(byte: u8) -> SecretKey {
    SecretKey::take(&mut [byte; 32])
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 22) as u8).collect()
}

/// Sealed by each library, which must not differ: what one machine stores, another one reads.
fn sealed(plaintext: &[u8], padded_len: usize) -> (EnvelopeBinding, IoBuf) {
    let binding = EnvelopeBinding::current(LOCATOR, plaintext.len() as u32);
    let [one, other] = CipherLibrary::ALL.map(|library| {
        // Memory that somebody used before.
        let mut buf = IoBuf::in_slab(vec![0xee; IoBuf::slab_len_bytes(padded_len)], None).resized(plaintext.len());
        buf.copy_from_slice(plaintext);
        seal_with(library, &dek(1), &binding, &mut buf, padded_len);
        buf
    });
    assert!(*one == *other, "I-K7: two libraries seal {} bytes differently", plaintext.len());
    (binding, one)
}

/// Opens all of an envelope into memory that was not clean, which must be zeros after an error.
fn opened(key: &SecretKey, binding: &EnvelopeBinding, envelope: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
    let [one, other] = CipherLibrary::ALL.map(|library| {
        let mut out = vec![0xdd; binding.plaintext_len as usize];
        let result = open_with(library, key, binding, envelope, &mut out);
        let clean = matches!(result, Err(EnvelopeError::Unknown { .. } | EnvelopeError::Length { .. }))
            || out.iter().all(|byte| *byte == 0);
        assert!(result.is_ok() || clean, "I-C9: unchecked bytes were returned");
        result.map(|()| out)
    });
    assert_eq!(one, other, "two libraries disagree");
    one
}

#[test]
fn what_was_sealed_opens_at_every_length_around_segment_ends() {
    const SEGMENT: usize = SEGMENT_LEN_BYTES;
    for len in [1, 15, 16, 17, 4096, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT, 3 * SEGMENT + 5] {
        let plaintext = bytes(len);
        let padded = (envelope_len(len as u32) as usize).next_multiple_of(4096);
        let (binding, envelope) = sealed(&plaintext, padded);
        assert_eq!(opened(&dek(1), &binding, &envelope), Ok(plaintext), "{len} bytes");
        assert_eq!(envelope.len(), padded);
        let tail = &envelope[envelope_len(len as u32) as usize..];
        assert!(tail.iter().all(|byte| *byte == 0), "I-K1: stale bytes behind an envelope of {len} bytes");
    }
}

#[test]
fn i_k7_sealing_the_same_chunk_twice_gives_the_same_bytes() {
    let plaintext = bytes(200_000);
    assert!(*sealed(&plaintext, 204_800).1 == *sealed(&plaintext, 204_800).1);
}

#[test]
fn the_layout_is_that_of_the_plain_twin() {
    let plaintext = bytes(150_000);
    let (binding, envelope) = sealed(&plaintext, 151_552);
    let cipher = Aes256Gcm::new(&[1; 32].into());
    let (mut text, mut tags) = (plaintext, Vec::new());
    let last = text.chunks(SEGMENT_LEN_BYTES).count() as u32 - 1;
    for (segment, part) in text.chunks_mut(SEGMENT_LEN_BYTES).enumerate() {
        let number = (segment as u32).to_le_bytes();
        let nonce: [u8; 12] = [&number[..], &[0; 8]].concat().try_into().unwrap();
        let aad =
            [&[1, 0, 1, 0][..], &[0x5a; 32], &150_000u32.to_le_bytes(), &number, &[(segment as u32 == last) as u8]];
        tags.extend(cipher.encrypt_in_place_detached(&nonce.into(), &aad.concat(), part).unwrap());
    }
    assert!(envelope[..150_000] == text, "ciphertext");
    assert_eq!(envelope[150_000..150_048], tags, "tags");
    assert_eq!(binding.kind(), SealKind { format: 1, algorithm: 1 });
}

/// Committed bytes: a change here would make every stored chunk unreadable.
#[test]
fn known_answer() {
    let (_, envelope) = sealed(b"kiseki seals chunks", 4096);
    let hex: String = envelope[..35].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "d45cebb91e5223ccf618fe365147a934dbadec50d0ae3e5fbb7fd025c9ecc6fabb45d7");
}

#[test]
fn i_c9_every_flipped_bit_fails() {
    let plaintext = bytes(100);
    let (binding, envelope) = sealed(&plaintext, 4096);
    for bit in 0..116 * 8 {
        let mut damaged = envelope.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = EnvelopeError::Corrupt { locator: LOCATOR, segment: 0 };
        assert_eq!(opened(&dek(1), &binding, &damaged), Err(error), "bit {bit}");
    }
    let (binding, envelope) = sealed(&bytes(150_000), 151_552);
    for at in (0..150_048).step_by(9_973).chain([65_535, 65_536, 149_999, 150_000, 150_015, 150_016, 150_047]) {
        let mut damaged = envelope.to_vec();
        damaged[at] ^= 1;
        let segment = if at < 150_000 { at / SEGMENT_LEN_BYTES } else { (at - 150_000) / TAG_LEN_BYTES } as u32;
        let error = EnvelopeError::Corrupt { locator: LOCATOR, segment };
        assert_eq!(opened(&dek(1), &binding, &damaged), Err(error), "byte {at}");
    }
}

#[test]
fn i_c9_a_segment_opens_only_in_its_place_with_its_own_tag() {
    let (binding, envelope) = sealed(&bytes(3 * SEGMENT_LEN_BYTES), 200_704);
    let (text, tags) = envelope.split_at(3 * SEGMENT_LEN_BYTES);
    let part = |segment: usize| &text[segment * SEGMENT_LEN_BYTES..(segment + 1) * SEGMENT_LEN_BYTES];
    let tag = |segment: usize| &tags[segment * TAG_LEN_BYTES..(segment + 1) * TAG_LEN_BYTES];
    let mut out = vec![0; SEGMENT_LEN_BYTES];
    for (place, text_of, tag_of) in (0..27).map(|i| (i / 9, i / 3 % 3, i % 3)) {
        let place = place as u32;
        let result = open_segments_with(
            CipherLibrary::fastest(),
            &dek(1),
            &binding,
            place..place + 1,
            part(text_of),
            tag(tag_of),
            &mut out,
        );
        let own = text_of as u32 == place && tag_of as u32 == place;
        assert_eq!(result.is_ok(), own, "text {text_of} and tag {tag_of} as segment {place}");
    }
}

#[test]
#[should_panic(expected = "tags of segments")]
fn a_truncated_tag_is_never_tried() {
    let (binding, envelope) = sealed(&bytes(100), 4096);
    let _ = open_segments_with(
        CipherLibrary::fastest(),
        &dek(1),
        &binding,
        0..1,
        &envelope[..100],
        &envelope[100..115],
        &mut [0; 100],
    );
}

#[test]
fn i_c9_an_envelope_opens_only_under_its_own_key_and_binding() {
    let (binding, envelope) = sealed(&bytes(2 * SEGMENT_LEN_BYTES), 135_168);
    let corrupt = Err(EnvelopeError::Corrupt { locator: LOCATOR, segment: 0 });
    assert_eq!(opened(&dek(2), &binding, &envelope), corrupt, "another key");
    let mut other = binding;
    other.locator.0[31] ^= 1;
    assert!(matches!(opened(&dek(1), &other, &envelope), Err(EnvelopeError::Corrupt { .. })), "another locator");
    // Cut short at a segment's end: the length and the last flag are bound, so it is no shorter chunk.
    let shorter = EnvelopeBinding { plaintext_len: SEGMENT_LEN_BYTES as u32, ..binding };
    let cut = [&envelope[..SEGMENT_LEN_BYTES], &envelope[2 * SEGMENT_LEN_BYTES..]].concat();
    assert_eq!(opened(&dek(1), &shorter, &cut), corrupt, "cut short");
    for (format, algorithm) in [(0, 1), (2, 1), (1, 0), (1, 2)] {
        let unknown = EnvelopeBinding { format, algorithm, ..binding };
        let error = EnvelopeError::Unknown { locator: LOCATOR, format, algorithm };
        assert_eq!(opened(&dek(1), &unknown, &envelope), Err(error));
        assert_ne!(unknown.aad(0).as_ref(), binding.aad(0).as_ref(), "format and algorithm are bound too");
    }
    for plaintext_len in [0, CHUNK_LEN_BYTES_MAX as u32 + 1, u32::MAX] {
        let error = EnvelopeError::Length { locator: LOCATOR, plaintext_len };
        let binding = EnvelopeBinding { plaintext_len, ..binding };
        assert_eq!(open(&dek(1), &binding, &envelope, &mut []), Err(error));
    }
}

#[test]
fn the_aad_binds_every_field_and_tells_the_last_segment() {
    let binding = EnvelopeBinding::current(LOCATOR, 2 * SEGMENT_LEN_BYTES as u32);
    let variants = [
        binding,
        EnvelopeBinding { format: 2, ..binding },
        EnvelopeBinding { algorithm: 2, ..binding },
        EnvelopeBinding { locator: Locator([0; 32]), ..binding },
        EnvelopeBinding { plaintext_len: binding.plaintext_len - 1, ..binding },
    ];
    let all: std::collections::BTreeSet<Vec<u8>> =
        variants.iter().flat_map(|binding| [0, 1].map(|segment| binding.aad(segment).as_ref().to_vec())).collect();
    assert_eq!(all.len(), 10);
    assert_eq!((binding.aad(0).as_ref()[44], binding.aad(1).as_ref()[44]), (0, 1));
}

#[test]
#[should_panic(expected = "does not fit")]
fn sealing_without_room_for_the_tags_is_a_bug() {
    let _ = sealed(&bytes(4096), 4096);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_range_opens_from_the_bytes_that_covering_names(len in 1u32..400_000, a: u32, b: u32) {
        let plaintext = bytes(len as usize);
        let (binding, envelope) = sealed(&plaintext, envelope_len(len) as usize);
        let (a, b) = (a % len, b % len);
        let wanted = a.min(b)..a.max(b) + 1;
        let ranges = EnvelopeRanges::covering(len, wanted.clone());
        let part = |range: &Range<u32>| &envelope[range.start as usize..range.end as usize];
        let mut out = vec![0; ranges.ciphertext.len()];
        let (text, tags) = (part(&ranges.ciphertext), part(&ranges.tags));
        open_segments_with(CipherLibrary::fastest(), &dek(1), &binding, ranges.segments.clone(), text, tags, &mut out).unwrap();
        let skip = (wanted.start - ranges.ciphertext.start) as usize;
        prop_assert!(out[skip..skip + wanted.len()] == plaintext[wanted.start as usize..wanted.end as usize]);
        // No segment too many.
        prop_assert!(skip < SEGMENT_LEN_BYTES && ranges.ciphertext.end < wanted.end + SEGMENT_LEN_BYTES as u32);
    }
}
