//! Every kernel gives the digests of RFC 1321 and of the `md-5` crate, whatever shares the lanes with a stream.

use super::*;
use ::md5::{Digest, Md5};
use proptest::prelude::*;

/// Bytes that differ between seeds, so that a lane that takes another's block is noticed.
fn bytes(len: usize, seed: usize) -> Vec<u8> {
    let seed = (seed as u32).wrapping_mul(0x85eb_ca6b);
    (0..len as u32).map(|i| (i.wrapping_add(seed).wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}

fn twin(data: &[u8]) -> [u8; 16] {
    Md5::digest(data).into()
}

/// The digests of messages that go through the lanes together, in slices of `len_bytes`.
fn digests(kernel: Kernel, messages: &[&[u8]], len_bytes: usize) -> Vec<[u8; 16]> {
    let mut streams = vec![Stream::begin(); messages.len()];
    let mut lanes: Vec<Lane<'_>> =
        streams.iter_mut().zip(messages).map(|(stream, data)| Lane { stream, data }).collect();
    while lanes.iter().any(|lane| !lane.data.is_empty()) {
        advance_many_with(kernel, &mut lanes, len_bytes);
    }
    streams.into_iter().map(Stream::finish).collect()
}

#[test]
fn the_known_answers_of_rfc_1321() {
    let known: [(&[u8], u128); 7] = [
        (b"", 0xd41d_8cd9_8f00_b204_e980_0998_ecf8_427e),
        (b"a", 0x0cc1_75b9_c0f1_b6a8_31c3_99e2_6977_2661),
        (b"abc", 0x9001_5098_3cd2_4fb0_d696_3f7d_28e1_7f72),
        (b"message digest", 0xf96b_697d_7cb7_938d_525a_2f31_aaf1_61d0),
        (b"abcdefghijklmnopqrstuvwxyz", 0xc3fc_d3d7_6192_e400_7dfb_496c_ca67_e13b),
        (b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", 0xd174_ab98_d277_d9f5_a561_1c2c_9f41_9d9f),
        (
            b"12345678901234567890123456789012345678901234567890123456789012345678901234567890",
            0x57ed_f4a2_2be3_c955_ac49_da2e_2107_b67a,
        ),
    ];
    for kernel in Kernel::runnable() {
        let messages = known.map(|(message, _)| message);
        for ((message, digest), computed) in known.iter().zip(digests(kernel, &messages, 1 << 20)) {
            assert_eq!(computed, digest.to_be_bytes(), "{kernel:?}: {}", message.escape_ascii());
        }
    }
}

#[test]
fn every_length_in_every_number_of_lanes_matches_the_twin() {
    for kernel in Kernel::runnable() {
        for len in (0..=300).chain([4095, 4096, 4097, 65_536, 100_003]) {
            for count in if len <= 300 { 1..=LANES_MAX } else { 7..=LANES_MAX } {
                let messages: Vec<Vec<u8>> = (0..count).map(|lane| bytes(len, lane)).collect();
                let slices: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
                let expected: Vec<[u8; 16]> = slices.iter().map(|data| twin(data)).collect();
                assert_eq!(digests(kernel, &slices, 1 << 20), expected, "{kernel:?}, {count} lanes of {len} bytes");
            }
        }
    }
}

#[test]
fn lanes_go_on_until_the_shortest_ends_or_the_slice_does() {
    let (long, short) = (bytes(1000, 1), bytes(300, 2));
    let (mut a, mut b) = (Stream::begin(), Stream::begin());
    let mut lanes = [Lane { stream: &mut a, data: &long }, Lane { stream: &mut b, data: &short }];
    advance_many(&mut lanes, 128);
    assert_eq!(lanes.each_ref().map(|lane| lane.data.len()), [872, 172]);
    advance_many(&mut lanes, 1 << 20);
    assert_eq!(lanes.each_ref().map(|lane| lane.data.len()), [744, 0]);
    advance_many(&mut lanes, 1 << 20);
    assert_eq!(lanes.each_ref().map(|lane| lane.data.len()), [0, 0]);
    assert_eq!([a.finish(), b.finish()], [twin(&long), twin(&short)]);
}

proptest! {
    #[test]
    fn slices_of_any_length_alone_and_in_lanes_give_the_same_digest(
        lens in prop::collection::vec(0usize..5000, 1..=LANES_MAX),
        steps in prop::collection::vec((0..=LANES_MAX, 1usize..200, 0usize..700), 0..30),
    ) {
        let messages: Vec<Vec<u8>> = lens.iter().enumerate().map(|(lane, len)| bytes(*len, lane)).collect();
        for kernel in Kernel::runnable() {
            let mut streams = vec![Stream::begin(); messages.len()];
            let mut rests: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
            for (who, offered, len) in &steps {
                if let Some(rest) = rests.get_mut(*who) {
                    // This one alone.
                    let (now, later) = rest.split_at(rest.len().min(*len));
                    streams[*who].absorb(now);
                    *rest = later;
                    continue;
                }
                // Every lane is offered some bytes more than the one before it.
                let offers: Vec<&[u8]> = rests.iter().enumerate()
                    .map(|(lane, rest)| &rest[..rest.len().min(offered * lane)]).collect();
                let mut lanes: Vec<Lane<'_>> =
                    streams.iter_mut().zip(&offers).map(|(stream, data)| Lane { stream, data }).collect();
                advance_many_with(kernel, &mut lanes, *len);
                let left: Vec<usize> = lanes.iter().map(|lane| lane.data.len()).collect();
                for ((rest, offer), left) in rests.iter_mut().zip(&offers).zip(left) {
                    *rest = &rest[offer.len() - left..];
                }
            }
            for ((mut stream, rest), message) in streams.into_iter().zip(rests).zip(&messages) {
                stream.absorb(rest);
                prop_assert_eq!(stream.finish(), twin(message), "{:?}", kernel);
            }
        }
    }
}
