//! AES-256-GCM of one chunk's segments, by whichever of two libraries is faster on this processor.
//!
//! `aws-lc` has kernels for AVX-512 and for AES-NI, `ring` has one for AVX2 with VAES in between: on a processor with
//! VAES and without AVX-512 `ring` seals about twice as fast. Both give the same bytes.

use kiseki_types::limits::TAG_LEN_BYTES;
use kiseki_types::secret::SecretKey;

/// Who computes. The order is that of preference where nothing is known of the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CipherLibrary {
    /// `aws-lc-rs`.
    AwsLc,
    /// `ring`.
    Ring,
}

impl CipherLibrary {
    /// Both, for tests and benches.
    pub const ALL: [CipherLibrary; 2] = [CipherLibrary::AwsLc, CipherLibrary::Ring];

    /// The faster one here; asked for each chunk, because detection is one cached load.
    #[must_use]
    pub fn fastest() -> CipherLibrary {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("vaes")
            && std::is_x86_feature_detected!("vpclmulqdq")
            && std::is_x86_feature_detected!("avx2")
            && !std::is_x86_feature_detected!("avx512f")
        {
            return CipherLibrary::Ring;
        }
        CipherLibrary::AwsLc
    }
}

/// The text fails its check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

/// A chunk's key, expanded.
pub(super) enum ChunkCipher {
    AwsLc(aws_lc_rs::aead::LessSafeKey),
    // Boxed, for the other one is a pointer and this some five hundred bytes.
    Ring(Box<ring::aead::LessSafeKey>),
}

impl ChunkCipher {
    pub fn new(library: CipherLibrary, dek: &SecretKey) -> ChunkCipher {
        match library {
            CipherLibrary::AwsLc => ChunkCipher::AwsLc(crate::keys::aead_key(dek)),
            CipherLibrary::Ring => {
                let key = ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, dek.expose());
                ChunkCipher::Ring(Box::new(ring::aead::LessSafeKey::new(key.expect("the key has 256 bits"))))
            }
        }
    }

    /// Seals in place. The caller never uses a nonce for two texts (I-K7).
    pub fn seal(&self, nonce: [u8; 12], aad: &[u8], text: &mut [u8]) -> [u8; TAG_LEN_BYTES] {
        const WITHIN: &str = "a segment is within the cipher's limit";
        let tag = |tag: &[u8]| tag.try_into().expect("a tag of AES-GCM has 16 bytes");
        match self {
            ChunkCipher::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                tag(key.seal_in_place_separate_tag(nonce, Aad::from(aad), text).expect(WITHIN).as_ref())
            }
            ChunkCipher::Ring(key) => {
                use ring::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                tag(key.seal_in_place_separate_tag(nonce, Aad::from(aad), text).expect(WITHIN).as_ref())
            }
        }
    }

    /// Opens `text` into `out`, which is as long. After an error `out` holds nothing that may be used.
    pub fn open(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        text: &[u8],
        tag: &[u8; TAG_LEN_BYTES],
        out: &mut [u8],
    ) -> Result<(), Refused> {
        match self {
            ChunkCipher::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_separate_gather(nonce, Aad::from(aad), text, tag, out).map_err(|_| Refused)
            }
            ChunkCipher::Ring(key) => {
                use ring::aead::{Aad, Nonce, Tag};
                // In place only: one copy more, still the faster way where this library is chosen.
                out.copy_from_slice(text);
                let nonce = Nonce::assume_unique_for_key(nonce);
                let opened = key.open_in_place_separate_tag(nonce, Aad::from(aad), Tag::from(*tag), out, 0..);
                opened.map(drop).map_err(|_| Refused)
            }
        }
    }
}
