//! Every kernel gives the digests of the `sha2` and `hmac` crates, at every length around block ends.

use super::stream::advance_many_with;
use super::*;
use hmac::{Hmac, KeyInit, Mac};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

fn bytes(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}

fn twin(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data).into()
}

#[test]
fn the_known_answer_of_fips_180() {
    let abc = [
        0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23, 0xb0, 0x03,
        0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad,
    ];
    for kernel in Kernel::runnable() {
        assert_eq!(sha256_with(kernel, b"abc"), abc, "{kernel:?}");
    }
}

#[test]
fn every_length_around_block_ends_matches_the_twin() {
    for kernel in Kernel::runnable() {
        for len in (0..300).chain([4095, 4096, 4097, 65_536, 100_003]) {
            assert_eq!(sha256_with(kernel, &bytes(len)), twin(&bytes(len)), "{kernel:?}, {len} bytes");
        }
    }
}

#[test]
fn messages_of_different_lengths_side_by_side_match_the_twin() {
    let lens = [0, 1000, 63, 64, 55, 56, 119, 120, 65_536, 1 << 20, 1];
    for kernel in Kernel::runnable() {
        for count in 0..40 {
            let messages: Vec<Vec<u8>> = lens.iter().cycle().skip(count).take(count).map(|len| bytes(*len)).collect();
            let slices: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
            let expected: Vec<[u8; 32]> = slices.iter().map(|data| twin(data)).collect();
            assert!(sha256_many_with(kernel, &slices) == expected, "{kernel:?}, {count} messages");
        }
    }
}

/// Each lane gets the digest of its own message, with every number of lanes: also when some stay empty.
#[test]
fn every_number_of_streams_side_by_side_matches_the_twin() {
    for kernel in Kernel::runnable() {
        for count in 0..=35 {
            let messages: Vec<Vec<u8>> = (0..count).map(|i| bytes(3000 + 100 * i)).collect();
            let mut streams: Vec<Stream> = messages.iter().map(|_| Stream::sha256()).collect();
            for len in [640, 63, 2000, 10_000] {
                let lanes = streams.iter_mut().zip(&messages).map(|(stream, message)| (stream, &message[..]));
                advance_many_with(kernel, &mut lanes.collect::<Vec<_>>(), len);
            }
            for (stream, message) in streams.into_iter().zip(&messages) {
                assert_eq!(stream.finish(message), twin(message), "{kernel:?}, {count} streams");
            }
        }
    }
}

proptest! {
    #[test]
    fn slices_alone_and_beside_each_other_give_the_same_digest(
        lens in prop::array::uniform2(0usize..5000),
        steps in prop::collection::vec((0usize..3, 0usize..700), 0..20),
        key: [u8; 32],
    ) {
        let messages = lens.map(bytes);
        let key = HmacSha256Key::new(&key);
        let (mut a, mut b) = (Stream::sha256(), key.begin());
        for (who, len) in steps {
            match who {
                0 => a.advance(&messages[0], len),
                1 => b.advance(&messages[1], len),
                _ => advance_many(&mut [(&mut a, &messages[0]), (&mut b, &messages[1])], len),
            }
        }
        prop_assert_eq!(a.finish(&messages[0]), twin(&messages[0]));
        prop_assert_eq!(key.finish(b, &messages[1]), key.mac(&messages[1]));
    }

    #[test]
    fn a_batch_of_any_lengths_keeps_its_order(lens in prop::collection::vec(0usize..1500, 0..40)) {
        let messages: Vec<Vec<u8>> = lens.iter().map(|len| bytes(*len)).collect();
        let slices: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        for kernel in Kernel::runnable() {
            let expected: Vec<[u8; 32]> = slices.iter().map(|data| twin(data)).collect();
            prop_assert_eq!(sha256_many_with(kernel, &slices), expected);
        }
    }

    #[test]
    fn hmac_matches_the_twin(key: [u8; 32], lens in prop::collection::vec(0usize..500, 1..6)) {
        let messages: Vec<Vec<u8>> = lens.iter().map(|len| bytes(*len)).collect();
        let slices: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        let expected: Vec<[u8; 32]> = slices.iter().map(|data| {
            let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
            mac.update(data);
            mac.finalize().into_bytes().into()
        }).collect();
        let absorbed = HmacSha256Key::new(&key);
        prop_assert_eq!(absorbed.mac(slices[0]), expected[0]);
        prop_assert_eq!(absorbed.mac_many(&slices), expected);
    }
}
