//! The header in front of every fragment on a device: 4096 bytes that say what the fragment is and let any part of its
//! payload be checked alone (I-C9). Layout: `docs/formats/fragment.md`.

use crate::crc32c;
use kiseki_types::buf::{BufferSource, IoBuf, IoBytes};
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::fragment::{FragmentKey, FragmentMeta, StripeShape};
use kiseki_types::limits::{DEVICE_BLOCK_BYTES_MAX, ENVELOPE_LEN_BYTES_MAX, FRAGMENT_HEADER_BYTES, STRIPE_WIDTH_MAX};
use kiseki_types::{DeviceId, Generation, Locator, MapEpoch, PoolId};
use std::ops::Range;

/// Bytes of payload under one checksum: the smallest part that a read can check.
pub const PIECE_LEN_BYTES: usize = 32 * 1024;

/// Longest payload: a whole envelope, padded.
pub const PAYLOAD_LEN_BYTES_MAX: usize = ENVELOPE_LEN_BYTES_MAX.next_multiple_of(DEVICE_BLOCK_BYTES_MAX);

/// Most checksums in a header.
const PIECES_MAX: usize = PAYLOAD_LEN_BYTES_MAX.div_ceil(PIECE_LEN_BYTES);

const MAGIC: [u8; 8] = *b"KSKFRAGM";

/// Version of the format: 1 is the first.
const VERSION: u16 = 1;

const CHECKSUM_AT: usize = FRAGMENT_HEADER_BYTES - 4;
const FIXED_BYTES: usize = 8 + 2 + 2 + META_BYTES + 4 + 4;
const META_BYTES: usize = 32 + 8 + 1 + 1 + 1 + 1 + 2 + 2 + 4 + 4 + 8;
const _: () = assert!(FIXED_BYTES + STRIPE_WIDTH_MAX * 16 + PIECES_MAX * 4 <= CHECKSUM_AT);

/// A decoded header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FragmentHeader {
    /// What the fragment is.
    pub meta: FragmentMeta,
    /// CRC32C of each [`PIECE_LEN_BYTES`] of payload, the last one perhaps shorter.
    pub piece_checksums: Vec<u32>,
}

/// Whether the numbers in `meta` are possible. What is not comes from a damaged disk or from our own bug.
pub(crate) fn check_meta(meta: &FragmentMeta) -> Result<(), CodecError> {
    let unknown = |value: u64| Err(CodecError::Unknown { what: "fragment meta", value });
    let width = meta.shape.width();
    if meta.shape.data == 0 || width > STRIPE_WIDTH_MAX || usize::from(meta.key.index) >= width {
        return unknown(u64::from(meta.key.index));
    }
    let payload = meta.payload_len_bytes as usize;
    if payload == 0 || payload > PAYLOAD_LEN_BYTES_MAX || !payload.is_multiple_of(DEVICE_BLOCK_BYTES_MAX) {
        return unknown(u64::from(meta.payload_len_bytes));
    }
    if meta.envelope_len_bytes as usize > ENVELOPE_LEN_BYTES_MAX {
        return unknown(u64::from(meta.envelope_len_bytes));
    }
    if meta.devices.len() > STRIPE_WIDTH_MAX {
        return unknown(meta.devices.len() as u64);
    }
    Ok(())
}

/// Appends `meta` without its hint of devices: the form in journals and index rows too.
pub(crate) fn encode_meta(meta: &FragmentMeta, writer: &mut Writer) {
    writer.raw(&meta.key.locator.0).u64(meta.key.generation.0).u8(meta.key.index);
    writer.u8(meta.shape.data).u8(meta.shape.parity).u8(0).u16(meta.pool.0).u16(0);
    writer.u32(meta.envelope_len_bytes).u32(meta.payload_len_bytes).u64(meta.map_epoch.0);
}

/// Reads what [`encode_meta`] wrote.
pub(crate) fn decode_meta(reader: &mut Reader<'_>) -> Result<FragmentMeta, CodecError> {
    let locator = Locator(reader.array()?);
    let generation = Generation(reader.u64()?);
    let index = reader.u8()?;
    let shape = StripeShape { data: reader.u8()?, parity: reader.u8()? };
    reader.u8()?;
    let pool = PoolId(reader.u16()?);
    reader.u16()?;
    let meta = FragmentMeta {
        key: FragmentKey { locator, generation, index },
        shape,
        pool,
        envelope_len_bytes: reader.u32()?,
        payload_len_bytes: reader.u32()?,
        map_epoch: MapEpoch(reader.u64()?),
        devices: Vec::new(),
    };
    check_meta(&meta)?;
    Ok(meta)
}

/// Checksums of the pieces of a payload that lies in several parts.
#[must_use]
pub fn checksum_pieces(payload: &[IoBytes]) -> Vec<u32> {
    let mut checksums = Vec::new();
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    let mut left = PIECE_LEN_BYTES;
    for part in payload {
        let mut part: &[u8] = part;
        while !part.is_empty() {
            let take = left.min(part.len());
            if left == PIECE_LEN_BYTES && take == PIECE_LEN_BYTES {
                checksums.push(crc32c(&part[..take]));
            } else {
                digest.update(&part[..take]);
                left -= take;
                if left == 0 {
                    checksums.push(digest.finalize_reset() as u32);
                    left = PIECE_LEN_BYTES;
                }
            }
            part = &part[take..];
        }
    }
    if left < PIECE_LEN_BYTES {
        checksums.push(digest.finalize_reset() as u32);
    }
    checksums
}

impl FragmentHeader {
    /// The header of a payload.
    #[must_use]
    pub fn of(meta: FragmentMeta, payload: &[IoBytes]) -> FragmentHeader {
        FragmentHeader { meta, piece_checksums: checksum_pieces(payload) }
    }

    /// The header's block, in memory of `buffers`.
    ///
    /// Panics on an impossible `meta`: that is our own bug.
    #[must_use]
    pub fn encode(&self, buffers: &BufferSource) -> IoBuf {
        check_meta(&self.meta).expect("the caller checked the meta");
        let mut writer = Writer::new();
        writer.raw(&MAGIC).u16(VERSION).u16(0);
        encode_meta(&self.meta, &mut writer);
        writer.u32(self.meta.devices.len() as u32);
        self.meta.devices.iter().for_each(|device| {
            writer.raw(&device.0);
        });
        writer.u32(self.piece_checksums.len() as u32);
        self.piece_checksums.iter().for_each(|checksum| {
            writer.u32(*checksum);
        });
        let bytes = writer.finish();
        let mut block = buffers(FRAGMENT_HEADER_BYTES);
        block[..bytes.len()].copy_from_slice(&bytes);
        block[bytes.len()..].fill(0); // I-K1: what the memory held before reaches no device
        let checksum = crc32c(&block[..CHECKSUM_AT]);
        block[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    /// Whether a block may start a fragment; most blocks of a scan do not.
    #[must_use]
    pub fn is_candidate(block: &[u8]) -> bool {
        block.starts_with(&MAGIC)
    }

    /// Reads a header; anything but an intact one is an error.
    pub fn decode(block: &[u8]) -> Result<FragmentHeader, CodecError> {
        let mut whole = Reader::new("fragment header", block);
        let body = whole.raw(CHECKSUM_AT)?;
        let stated = whole.u32()?;
        if !FragmentHeader::is_candidate(body) || crc32c(body) != stated {
            return Err(CodecError::Checksum { what: "fragment header" });
        }
        let mut reader = Reader::new("fragment header", body);
        reader.raw(8)?;
        let version = reader.u16()?;
        if version != VERSION {
            return Err(reader.unknown(u64::from(version)));
        }
        reader.u16()?;
        let mut meta = decode_meta(&mut reader)?;
        for _ in 0..reader.count(STRIPE_WIDTH_MAX)? {
            meta.devices.push(DeviceId(reader.array()?));
        }
        let pieces = reader.count(PIECES_MAX)?;
        if pieces != (meta.payload_len_bytes as usize).div_ceil(PIECE_LEN_BYTES) {
            return Err(reader.unknown(pieces as u64));
        }
        let mut piece_checksums = Vec::with_capacity(pieces);
        for _ in 0..pieces {
            piece_checksums.push(reader.u32()?);
        }
        Ok(FragmentHeader { meta, piece_checksums })
    }

    /// Whether the pieces in `bytes` are intact; `first_piece` is the number of the first one, and `bytes` holds whole
    /// pieces (the payload's last one may be short).
    #[must_use]
    pub fn pieces_match(&self, first_piece: usize, bytes: &[u8]) -> bool {
        let mut pieces = bytes.chunks(PIECE_LEN_BYTES).enumerate();
        pieces.all(|(at, piece)| self.piece_checksums.get(first_piece + at) == Some(&crc32c(piece)))
    }
}

/// The payload bytes that must be read to check all of `range`: whole pieces, cut at the payload's end.
#[must_use]
pub fn piece_range(range: &Range<u32>, payload_len_bytes: u32) -> Range<usize> {
    let start = range.start as usize / PIECE_LEN_BYTES * PIECE_LEN_BYTES;
    let end = (range.end as usize).next_multiple_of(PIECE_LEN_BYTES).min(payload_len_bytes as usize);
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_types::buf::{plain_buffers, stale_buffers};

    fn meta() -> FragmentMeta {
        FragmentMeta {
            key: FragmentKey { locator: Locator([9; 32]), generation: Generation(7), index: 5 },
            shape: StripeShape { data: 4, parity: 2 },
            pool: PoolId(3),
            envelope_len_bytes: 300_000,
            payload_len_bytes: 77_824,
            map_epoch: MapEpoch(12),
            devices: (0..6).map(|device| DeviceId([device; 16])).collect(),
        }
    }

    fn payload() -> IoBytes {
        let bytes: Vec<u8> = (0..77_824_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        IoBuf::copy_of(&bytes).freeze()
    }

    #[test]
    fn i_c9_header_reads_back_and_every_flipped_bit_is_seen() {
        let header = FragmentHeader::of(meta(), &[payload()]);
        let block = header.encode(&stale_buffers());
        assert_eq!(block.len(), FRAGMENT_HEADER_BYTES);
        assert_eq!(FragmentHeader::decode(&block), Ok(header));
        for bit in 0..FRAGMENT_HEADER_BYTES * 8 {
            let mut flipped = block.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(FragmentHeader::decode(&flipped).is_err(), "bit {bit}");
        }
        for len in [0, 1, 8, 4091, 4095] {
            assert!(FragmentHeader::decode(&block[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn i_k1_what_the_memory_held_before_is_not_in_the_header() {
        let header = FragmentHeader::of(meta(), &[payload()]);
        assert!(header.encode(&stale_buffers())[..] == header.encode(&plain_buffers())[..], "I-K1");
    }

    #[test]
    fn the_widest_header_fits() {
        let mut widest = meta();
        widest.devices = vec![DeviceId([1; 16]); STRIPE_WIDTH_MAX];
        widest.payload_len_bytes = PAYLOAD_LEN_BYTES_MAX as u32;
        let header = FragmentHeader { meta: widest, piece_checksums: vec![u32::MAX; PIECES_MAX] };
        assert_eq!(FragmentHeader::decode(&header.encode(&stale_buffers())), Ok(header));
    }

    #[test]
    fn random_bytes_with_a_right_checksum_never_panic() {
        let mut state = 1_u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        };
        let good = FragmentHeader::of(meta(), &[payload()]).encode(&stale_buffers()).to_vec();
        for round in 0..20_000 {
            let mut block = if round % 2 == 0 { vec![0; FRAGMENT_HEADER_BYTES] } else { good.clone() };
            let changes = if round % 2 == 0 { 600 } else { 1 + usize::from(next() % 8) };
            for _ in 0..changes {
                let at = if round % 2 == 0 { usize::from(next()) * 2 + 12 } else { usize::from(next()) };
                block[at] = next();
            }
            block[..8].copy_from_slice(&MAGIC);
            let checksum = crc32c(&block[..CHECKSUM_AT]);
            block[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
            if let Ok(header) = FragmentHeader::decode(&block) {
                assert_eq!(FragmentHeader::decode(&header.encode(&stale_buffers())), Ok(header), "round {round}");
            }
        }
    }

    #[test]
    fn i_c9_pieces_are_the_same_however_the_payload_is_cut_and_a_flipped_bit_is_seen() {
        let whole = payload();
        let header = FragmentHeader::of(meta(), std::slice::from_ref(&whole));
        for cut in [4096, 32_768, 36_864, 65_536, 73_728] {
            let parts = [whole.slice(0..cut), whole.slice(cut..whole.len())];
            assert_eq!(checksum_pieces(&parts), header.piece_checksums, "cut at {cut}");
        }
        assert!(header.pieces_match(0, &whole));
        assert!(header.pieces_match(2, &whole[65_536..]));
        assert!(!header.pieces_match(1, &whole[65_536..]));
        let mut bad = whole.to_vec();
        bad[40_000] ^= 1;
        assert!(header.pieces_match(0, &bad[..32_768]));
        assert!(!header.pieces_match(1, &bad[32_768..65_536]));
        assert!(!header.pieces_match(0, &[&whole[..], &[0; 10]].concat()), "beyond the payload");
        assert_eq!(piece_range(&(1..2), 77_824), 0..32_768);
        assert_eq!(piece_range(&(32_767..32_769), 77_824), 0..65_536);
        assert_eq!(piece_range(&(70_000..77_824), 77_824), 65_536..77_824);
    }
}
