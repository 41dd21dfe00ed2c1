//! A sealed chunk: ciphertext of every 64 KiB segment, then every tag, then zeros (docs/formats/envelope.md).
//!
//! Sealing one chunk again gives the same bytes, so that two writers of the same content store the same envelope: the
//! nonce is the segment number, and nothing that differs between writers goes into the AAD. It is safe because a DEK
//! belongs to one plaintext (it derives from the chunk id), so one key and nonce never seal two texts (I-K7).

mod cipher;
#[cfg(test)]
mod tests;

use crate::keys::SealKind;
use cipher::ChunkCipher;
pub use cipher::CipherLibrary;
use kiseki_types::buf::IoBuf;
use kiseki_types::ids::Locator;
use kiseki_types::limits::{CHUNK_LEN_BYTES_MAX, ENVELOPE_LEN_BYTES_MAX, SEGMENT_LEN_BYTES, TAG_LEN_BYTES};
use kiseki_types::secret::SecretKey;
use std::ops::Range;
use thiserror::Error;
use zeroize::Zeroize;

/// The envelope format that this code writes and reads.
pub const FORMAT: u16 = 1;

/// AES-256-GCM over segments of 64 KiB: the only algorithm of format 1.
pub const ALGORITHM_AES_256_GCM_64_KIB: u16 = 1;

const AAD_LEN_BYTES: usize = 2 + 2 + 32 + 4 + 4 + 1;

/// What every segment of an envelope is bound to. Never a place, generation, stripe or tenant: two writers of one
/// chunk must seal the same AAD under the same key and nonce (I-K7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnvelopeBinding {
    /// [`FORMAT`].
    pub format: u16,
    /// [`ALGORITHM_AES_256_GCM_64_KIB`].
    pub algorithm: u16,
    /// Keyed name of the chunk.
    pub locator: Locator,
    /// Bytes of the plaintext, 1..=[`CHUNK_LEN_BYTES_MAX`].
    pub plaintext_len: u32,
}

/// Why an envelope does not open.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Written by a later release, or damaged metadata.
    #[error("envelope of {locator}: format {format} with algorithm {algorithm} is not known")]
    Unknown {
        /// The chunk.
        locator: Locator,
        /// The format.
        format: u16,
        /// The algorithm.
        algorithm: u16,
    },
    /// A length that no envelope has.
    #[error("envelope of {locator}: a plaintext of {plaintext_len} bytes is out of limits")]
    Length {
        /// The chunk.
        locator: Locator,
        /// The length.
        plaintext_len: u32,
    },
    /// The bytes are not what was sealed: rebuild them (I-C9).
    #[error("envelope of {locator}: segment {segment} fails its check")]
    Corrupt {
        /// The chunk.
        locator: Locator,
        /// The first segment that fails.
        segment: u32,
    },
}

/// Segments of a plaintext of that length.
#[must_use]
pub const fn segment_count(plaintext_len: u32) -> u32 {
    plaintext_len.div_ceil(SEGMENT_LEN_BYTES as u32)
}

/// Bytes of the envelope of a plaintext of that length: ciphertext and all tags, no padding.
#[must_use]
pub const fn envelope_len(plaintext_len: u32) -> u32 {
    plaintext_len + segment_count(plaintext_len) * TAG_LEN_BYTES as u32
}

const _: () = assert!(envelope_len(CHUNK_LEN_BYTES_MAX as u32) as usize == ENVELOPE_LEN_BYTES_MAX);

/// What must be read of an envelope to open part of its plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvelopeRanges {
    /// Segments to open.
    pub segments: Range<u32>,
    /// Bytes of the envelope that hold their ciphertext (and, opened, the same range of the plaintext).
    pub ciphertext: Range<u32>,
    /// Bytes of the envelope that hold their tags.
    pub tags: Range<u32>,
}

impl EnvelopeRanges {
    /// For the bytes `plaintext` of a plaintext of `plaintext_len` bytes. Panics unless they are inside and not none.
    #[must_use]
    pub fn covering(plaintext_len: u32, plaintext: Range<u32>) -> EnvelopeRanges {
        let inside = plaintext.start < plaintext.end && plaintext.end <= plaintext_len;
        assert!(inside, "range {plaintext:?} of a plaintext of {plaintext_len} bytes");
        let (segment_len, tag_len) = (SEGMENT_LEN_BYTES as u32, TAG_LEN_BYTES as u32);
        let segments = plaintext.start / segment_len..plaintext.end.div_ceil(segment_len);
        EnvelopeRanges {
            ciphertext: segments.start * segment_len..(segments.end * segment_len).min(plaintext_len),
            tags: plaintext_len + segments.start * tag_len..plaintext_len + segments.end * tag_len,
            segments,
        }
    }
}

impl EnvelopeRanges {
    /// The bytes of the envelope that hold the ciphertext of one of the segments.
    #[must_use]
    pub fn of_segment(&self, segment: u32) -> Range<u32> {
        let start = self.ciphertext.start + (segment - self.segments.start) * SEGMENT_LEN_BYTES as u32;
        start..(start + SEGMENT_LEN_BYTES as u32).min(self.ciphertext.end)
    }
}

/// Opens segments of one envelope, one by one and in any order.
pub struct SegmentOpener {
    cipher: ChunkCipher,
    binding: EnvelopeBinding,
}

impl SegmentOpener {
    /// With the key of the chunk.
    pub fn new(dek: &SecretKey, binding: EnvelopeBinding) -> Result<SegmentOpener, EnvelopeError> {
        SegmentOpener::with(CipherLibrary::fastest(), dek, binding)
    }

    fn with(library: CipherLibrary, dek: &SecretKey, binding: EnvelopeBinding) -> Result<SegmentOpener, EnvelopeError> {
        binding.check()?;
        Ok(SegmentOpener { cipher: ChunkCipher::new(library, dek), binding })
    }

    /// Opens one segment into `out`, which is as long as `ciphertext` and holds zeros after an error: bytes that failed their check
    /// are never returned (I-C9).
    pub fn open(
        &self,
        segment: u32,
        ciphertext: &[u8],
        tag: &[u8; TAG_LEN_BYTES],
        out: &mut [u8],
    ) -> Result<(), EnvelopeError> {
        let EnvelopeBinding { locator, .. } = self.binding;
        let opened = self.cipher.open(segment_nonce(segment), &self.binding.aad(segment), ciphertext, tag, out);
        opened.map_err(|_| {
            out.zeroize();
            EnvelopeError::Corrupt { locator, segment }
        })
    }
}

impl EnvelopeBinding {
    /// A binding of the format and algorithm that this code writes.
    #[must_use]
    pub fn current(locator: Locator, plaintext_len: u32) -> EnvelopeBinding {
        EnvelopeBinding { format: FORMAT, algorithm: ALGORITHM_AES_256_GCM_64_KIB, locator, plaintext_len }
    }

    /// Which DEK fits.
    #[must_use]
    pub fn kind(&self) -> SealKind {
        SealKind { format: self.format, algorithm: self.algorithm }
    }

    fn check(&self) -> Result<(), EnvelopeError> {
        let EnvelopeBinding { format, algorithm, locator, plaintext_len } = *self;
        if (format, algorithm) != (FORMAT, ALGORITHM_AES_256_GCM_64_KIB) {
            return Err(EnvelopeError::Unknown { locator, format, algorithm });
        }
        match plaintext_len as usize {
            1..=CHUNK_LEN_BYTES_MAX => Ok(()),
            _ => Err(EnvelopeError::Length { locator, plaintext_len }),
        }
    }

    fn aad(&self, segment: u32) -> [u8; AAD_LEN_BYTES] {
        let mut aad = [0; AAD_LEN_BYTES];
        aad[0..2].copy_from_slice(&self.format.to_le_bytes());
        aad[2..4].copy_from_slice(&self.algorithm.to_le_bytes());
        aad[4..36].copy_from_slice(&self.locator.0);
        aad[36..40].copy_from_slice(&self.plaintext_len.to_le_bytes());
        aad[40..44].copy_from_slice(&segment.to_le_bytes());
        aad[44] = u8::from(segment + 1 == segment_count(self.plaintext_len));
        aad
    }
}

/// The nonce of a segment: its number, little-endian, then zeros.
fn segment_nonce(segment: u32) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&segment.to_le_bytes());
    nonce
}

/// Seals a chunk in place and makes it `padded_len` bytes long: ciphertext, tags, zeros.
///
/// - `dek`: the chunk's own key, derived for `binding.kind()`.
/// - `buf`: holds the plaintext, `binding.plaintext_len` bytes, and has the capacity for `padded_len`.
/// - `padded_len`: at least [`envelope_len`]; `data * fragment_payload_len` of the stripe.
///
/// Panics when lengths, format or capacity do not fit: that is our own bug. Cost: one pass, no copy.
pub fn seal(dek: &SecretKey, binding: &EnvelopeBinding, buf: &mut IoBuf, padded_len: usize) {
    seal_with(CipherLibrary::fastest(), dek, binding, buf, padded_len);
}

/// [`seal`] with a library of the caller's choice (tests and benches).
pub fn seal_with(
    library: CipherLibrary,
    dek: &SecretKey,
    binding: &EnvelopeBinding,
    buf: &mut IoBuf,
    padded_len: usize,
) {
    binding.check().expect("only a known format and a length in limits is sealed");
    let plaintext_len = binding.plaintext_len as usize;
    assert_eq!(buf.len(), plaintext_len, "the buffer holds the plaintext and nothing else");
    let sealed_len = envelope_len(binding.plaintext_len) as usize;
    assert!(padded_len >= sealed_len, "an envelope of {sealed_len} bytes does not fit in {padded_len}");
    // I-K1: what the memory held before must not reach a device behind the envelope.
    buf.zero_tail(plaintext_len, padded_len);
    let key = ChunkCipher::new(library, dek);
    let (text, tail) = buf.split_at_mut(plaintext_len);
    let tags = tail.as_chunks_mut::<TAG_LEN_BYTES>().0;
    for (segment, (text, tag)) in text.chunks_mut(SEGMENT_LEN_BYTES).zip(tags).enumerate() {
        let segment = segment as u32;
        *tag = key.seal(segment_nonce(segment), &binding.aad(segment), text);
    }
}

/// Opens whole segments.
///
/// - `segments`: which, as [`EnvelopeRanges`] says; not none.
/// - `ciphertext`, `tags`: exactly the bytes of those segments.
/// - `out`: as long as `ciphertext`; holds the plaintext on success, zeros after an error: bytes that failed their
///   check are never returned (I-C9).
///
/// Panics when the lengths do not belong to `segments`: that is our own bug.
fn open_segments_with(
    library: CipherLibrary,
    dek: &SecretKey,
    binding: &EnvelopeBinding,
    segments: Range<u32>,
    ciphertext: &[u8],
    tags: &[u8],
    out: &mut [u8],
) -> Result<(), EnvelopeError> {
    let opener = SegmentOpener::with(library, dek, *binding)?;
    let ends = segments.start < segments.end && segments.end <= segment_count(binding.plaintext_len);
    assert!(ends, "segments {segments:?} of a plaintext of {} bytes", binding.plaintext_len);
    let last_byte = (segments.end * SEGMENT_LEN_BYTES as u32).min(binding.plaintext_len);
    let needed_len = last_byte as usize - segments.start as usize * SEGMENT_LEN_BYTES;
    assert_eq!(ciphertext.len(), needed_len, "ciphertext of segments {segments:?}");
    assert_eq!(tags.len(), segments.len() * TAG_LEN_BYTES, "tags of segments {segments:?}");
    assert_eq!(out.len(), needed_len, "room for segments {segments:?}");
    let parts = ciphertext.chunks(SEGMENT_LEN_BYTES).zip(tags.as_chunks().0);
    for ((segment, (text, tag)), out_segment) in segments.zip(parts).zip(out.chunks_mut(SEGMENT_LEN_BYTES)) {
        if let Err(error) = opener.open(segment, text, tag, out_segment) {
            out.zeroize();
            return Err(error);
        }
    }
    Ok(())
}

/// Opens a whole envelope that lies in one piece (padding after it is not looked at) into `out`.
///
/// `out` is `binding.plaintext_len` bytes long; `envelope` at least [`envelope_len`]. After an error `out` holds zeros (I-C9).
pub fn open(dek: &SecretKey, binding: &EnvelopeBinding, envelope: &[u8], out: &mut [u8]) -> Result<(), EnvelopeError> {
    open_with(CipherLibrary::fastest(), dek, binding, envelope, out)
}

/// [`open`] with a library of the caller's choice (tests and benches).
pub fn open_with(
    library: CipherLibrary,
    dek: &SecretKey,
    binding: &EnvelopeBinding,
    envelope: &[u8],
    out: &mut [u8],
) -> Result<(), EnvelopeError> {
    binding.check()?;
    let ranges = EnvelopeRanges::covering(binding.plaintext_len, 0..binding.plaintext_len);
    let part = |range: &Range<u32>| &envelope[range.start as usize..range.end as usize];
    let (ciphertext, tags) = (part(&ranges.ciphertext), part(&ranges.tags));
    open_segments_with(library, dek, binding, ranges.segments.clone(), ciphertext, tags, out)
}
