//! A key opens what it was made for, and nothing else.

use super::*;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// A generator for tests: bytes of a counter, never the same twice.
#[derive(Default)]
struct CountingRng(Cell<u8>);

impl Rng for CountingRng {
    fn fill_random(&self, out: &mut [u8]) {
        self.0.set(self.0.get() + 1);
        out.fill(self.0.get());
    }
}

const KIND: SealKind = SealKind { format: 1, algorithm: 1 };
const CHUNK: ChunkId = ChunkId([9; 32]);

fn key(byte: u8) -> SecretKey {
    SecretKey::take(&mut [byte; 32])
}

fn masters(keys: &[(u32, u8)]) -> MasterKeys {
    MasterKeys::new(keys.iter().map(|(epoch, byte)| (MasterEpoch(*epoch), key(*byte))).collect()).ok().unwrap()
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// RFC 5869 by hand: extract, then the one block of expand.
fn hkdf(secret: &[u8], salt: &[u8], info: &[&[u8]]) -> [u8; 32] {
    hmac(&hmac(salt, &[secret]), &[info, &[&[1]]].concat())
}

#[test]
fn deks_are_those_of_the_plain_twin() {
    let shared = masters(&[(3, 7)]).shared_dek(MasterEpoch(3), &CHUNK, KIND).ok().unwrap();
    let info = |label: &'static [u8]| [label, &[1, 0, 1, 0], &[0, 0, 1, 0]];
    assert!(*shared.expose() == hkdf(&[7; 32], &[9; 32], &info(b"kiseki/dek/shared/1")));
    let private = private_dek(&key(7), &CHUNK, KIND);
    assert!(*private.expose() == hkdf(&[7; 32], &[9; 32], &info(b"kiseki/dek/private/1")));
    let naming = private_naming_secret(&key(7));
    assert!(*naming.expose() == hkdf(&[7; 32], &[], &[b"kiseki/chunk-id/private/1"]));
}

#[test]
fn every_input_makes_another_dek() {
    let masters = masters(&[(1, 1), (2, 2)]);
    let shared = |epoch, chunk, format, algorithm| {
        *masters
            .shared_dek(MasterEpoch(epoch), &ChunkId([chunk; 32]), SealKind { format, algorithm })
            .ok()
            .unwrap()
            .expose()
    };
    let all = [
        shared(1, 1, 1, 1),
        shared(2, 1, 1, 1),
        shared(1, 2, 1, 1),
        shared(1, 1, 2, 1),
        shared(1, 1, 1, 2),
        *private_dek(&key(1), &ChunkId([1; 32]), KIND).expose(),
        *private_naming_secret(&key(1)).expose(),
    ];
    assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
    assert!(shared(1, 1, 1, 1) == all[0], "the same inputs make the same DEK");
}

#[test]
fn i_k18_there_is_no_default_key_and_no_other_epoch_in_place_of_a_missing_one() {
    assert_eq!(MasterKeys::new(BTreeMap::new()).err(), Some(KeyError::NoMasterKey));
    let masters = masters(&[(2, 2), (5, 5)]);
    assert_eq!(masters.current(), MasterEpoch(5));
    let missing = masters.shared_dek(MasterEpoch(3), &CHUNK, KIND).err();
    assert_eq!(missing, Some(KeyError::NoMasterEpoch { epoch: MasterEpoch(3) }));
}

fn wrapper(kek: u8, rng: &CountingRng) -> DekWrapper {
    DekWrapper::begin(&key(kek), KekEpoch(4), TenantId(8), CompositionId([6; 16]), rng)
}

#[test]
fn wrapped_keys_unwrap_in_any_order() {
    let mut wrapper = wrapper(1, &CountingRng::default());
    let wrapped: Vec<WrappedDek> = (0..5).map(|i| wrapper.wrap(&ChunkId([i; 32]), &key(100 + i))).collect();
    let unwrapper = DekUnwrapper::new(&key(1), wrapper.scope());
    for i in [3, 0, 4, 1, 2] {
        let dek = unwrapper.unwrap(&ChunkId([i; 32]), &wrapped[usize::from(i)]).ok().unwrap();
        assert!(*dek.expose() == [100 + i; 32], "{i}");
    }
}

#[test]
fn i_k17_a_wrapped_key_moved_elsewhere_does_not_open() {
    let mut wrapper = wrapper(1, &CountingRng::default());
    let wrapped = wrapper.wrap(&CHUNK, &key(50));
    let scope = wrapper.scope();
    let unwrap =
        |kek: u8, scope: WrapScope, chunk: ChunkId| DekUnwrapper::new(&key(kek), scope).unwrap(&chunk, &wrapped);
    assert!(unwrap(1, scope, CHUNK).is_ok());
    let error = Some(KeyError::Unwrap { tenant: TenantId(8), epoch: KekEpoch(4) });
    assert_eq!(unwrap(2, scope, CHUNK).err(), error, "another KEK");
    assert_eq!(unwrap(1, scope, ChunkId([8; 32])).err(), error, "another chunk");
    for (what, moved) in [
        ("tenant", WrapScope { tenant: TenantId(9), ..scope }),
        ("epoch", WrapScope { kek_epoch: KekEpoch(5), ..scope }),
        ("composition", WrapScope { composition: CompositionId([7; 16]), ..scope }),
        ("attempt", WrapScope { attempt: [0; 16], ..scope }),
    ] {
        assert!(unwrap(1, moved, CHUNK).is_err(), "another {what}");
    }
}

#[test]
fn i_c9_every_flipped_bit_of_a_wrapped_key_fails() {
    let mut wrapper = wrapper(1, &CountingRng::default());
    let wrapped = wrapper.wrap(&CHUNK, &key(50));
    let unwrapper = DekUnwrapper::new(&key(1), wrapper.scope());
    for bit in 0..WRAPPED_DEK_LEN_BYTES * 8 {
        let mut damaged = wrapped;
        damaged.0[bit / 8] ^= 1 << (bit % 8);
        assert!(unwrapper.unwrap(&CHUNK, &damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn i_k7_no_two_wraps_share_key_and_nonce() {
    let rng = CountingRng::default();
    let (mut first, mut retry) = (wrapper(1, &rng), wrapper(1, &rng));
    assert_ne!(first.scope().attempt, retry.scope().attempt, "a retry draws bits of its own");
    let (a, b, c) = (first.wrap(&CHUNK, &key(5)), first.wrap(&CHUNK, &key(5)), retry.wrap(&CHUNK, &key(5)));
    assert_ne!(a.0[..4], b.0[..4], "one attempt counts");
    assert_ne!(a.0[4..36], c.0[4..36], "another attempt has another key");
}

#[test]
#[should_panic(expected = "I-K7")]
fn i_k7_a_wrapper_stops_before_its_counter_repeats() {
    let mut wrapper = wrapper(1, &CountingRng::default());
    wrapper.next = u32::MAX;
    let _ = wrapper.wrap(&CHUNK, &key(5));
}

#[test]
fn metadata_opens_in_every_process_that_has_the_key() {
    let rng = CountingRng::default();
    let (writer, reader) = (MetaSealer::new(key(1), &rng), MetaSealer::new(key(1), &rng));
    for plaintext in [&b""[..], b"a", &[7; 5000]] {
        let sealed = writer.seal(b"aad", plaintext);
        assert_eq!(sealed.len(), plaintext.len() + META_SEAL_OVERHEAD_BYTES);
        assert_eq!(reader.open(b"aad", &sealed).as_deref(), Ok(plaintext));
        assert_eq!(writer.open(b"aad", &sealed).as_deref(), Ok(plaintext));
    }
}

#[test]
fn i_k7_sealers_never_share_key_and_nonce() {
    let rng = CountingRng::default();
    let (one, two) = (MetaSealer::new(key(1), &rng), MetaSealer::new(key(1), &rng));
    let heads: std::collections::BTreeSet<Vec<u8>> =
        (0..50).flat_map(|_| [one.seal(b"", b"same"), two.seal(b"", b"same")]).map(|s| s[..24].to_vec()).collect();
    assert_eq!(heads.len(), 100, "salt and counter together are never the same");
    let (a, b) = (one.seal(b"", b"same"), one.seal(b"", b"same"));
    assert_ne!(a[24..], b[24..], "the counter is the nonce");
}

#[test]
#[should_panic(expected = "I-K7")]
fn i_k7_a_sealer_stops_before_its_counter_repeats() {
    let sealer = MetaSealer::new(key(1), &CountingRng::default());
    sealer.next.set(u64::MAX);
    let _ = sealer.seal(b"", b"");
}

#[test]
fn i_k7_metadata_is_sealed_as_the_plain_twin_says() {
    use aes_gcm::{AeadInPlace, Aes256Gcm, KeyInit};
    let sealer = MetaSealer::new(key(1), &CountingRng::default());
    sealer.next.set(0x0102);
    let sealed = sealer.seal(b"where it belongs", b"payload");
    let (salt, mut text) = ([1u8; 16], *b"payload");
    let cipher = Aes256Gcm::new(&hkdf(&[1; 32], &salt, &[b"kiseki/metadata/1"]).into());
    let nonce = [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tag = cipher.encrypt_in_place_detached(&nonce.into(), b"where it belongs", &mut text).unwrap();
    assert_eq!(sealed, [&salt[..], &[2, 1, 0, 0, 0, 0, 0, 0], &text, &tag].concat());
}

#[test]
fn i_c9_damaged_or_moved_metadata_does_not_open() {
    let sealer = MetaSealer::new(key(1), &CountingRng::default());
    let sealed = sealer.seal(b"here", b"secret names");
    let refused = |sealed: &[u8]| Err(KeyError::SealedPayload { len_bytes: sealed.len() });
    assert_eq!(sealer.open(b"there", &sealed), refused(&sealed), "another place");
    let other = MetaSealer::new(key(2), &CountingRng::default());
    assert_eq!(other.open(b"here", &sealed), refused(&sealed), "another key");
    for bit in 0..sealed.len() * 8 {
        let mut damaged = sealed.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(sealer.open(b"here", &damaged), refused(&damaged), "bit {bit}");
    }
    for len in 0..sealed.len() {
        assert_eq!(sealer.open(b"here", &sealed[..len]), refused(&sealed[..len]), "{len} bytes");
    }
    assert!(sealer.opening.borrow().len() <= OPENING_KEYS_MAX, "forged salts do not fill memory");
}
