//! Bytes of a journal: region headers and frames. The layout is told in `docs/formats/journal.md`.
//!
//! A frame is what one write submits: a header, then the records, zero-padded to whole pages. It is written once and
//! never again, so a crash can tear only frames that nobody was told about.

use crate::crc32c;
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::journal::Sequence;
use kiseki_types::limits::JOURNAL_RECORD_LEN_BYTES_MAX;
use std::fmt;

/// Unit of space in a journal, whatever the device's block.
pub const PAGE_LEN_BYTES: usize = 4096;

/// Pages at the start of a region that hold the two region headers, written in turn.
pub const HEADER_PAGES: u64 = 2;

/// Bytes in front of the records of a frame.
pub const FRAME_HEADER_BYTES: usize = 88;

/// Bytes in front of each record: its length.
pub const RECORD_HEADER_BYTES: usize = 4;

/// Most payload bytes in one frame; a frame is cut when the next record would pass it.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 2 * (JOURNAL_RECORD_LEN_BYTES_MAX + RECORD_HEADER_BYTES);

/// Longest region that a journal takes: an open reads it into memory, one journal at a time.
pub const REGION_LEN_BYTES_MAX: u64 = 256 << 20;

pub(crate) const FRAME_MAGIC: [u8; 8] = *b"KSKJFRAM";
const REGION_MAGIC: [u8; 8] = *b"KSKJHEAD";

/// Version of the format: 1 is the first.
const VERSION: u16 = 1;

const REGION_HEADER_BYTES: usize = 100;

const _: () = assert!(FRAME_HEADER_BYTES < PAGE_LEN_BYTES && REGION_HEADER_BYTES < PAGE_LEN_BYTES);

/// Id of one journal, chosen when its region is formatted: what another journal left in the region is not ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct JournalId(pub [u8; 16]);

impl fmt::Display for JournalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What stands in front of a frame's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    /// Start of the process that wrote it.
    pub incarnation: u64,
    /// Its first page, counted from the journal's first and never reused; `page % ring_pages` is its place.
    pub page: u64,
    /// Sequence of its first record.
    pub first_sequence: Sequence,
    /// Number of records, at least one.
    pub record_count: u32,
    /// Bytes of records.
    pub payload_len: u32,
    /// Checksum of the frame before it: the chain.
    pub previous_checksum: u32,
    /// Every record up to here was durable when the frame was submitted.
    pub flushed_through: Sequence,
    /// CRC32C of the payload.
    pub payload_checksum: u32,
    /// CRC32C of the header above, so of the frame.
    pub checksum: u32,
}

impl FrameHeader {
    /// Pages that the frame fills.
    pub fn pages(&self) -> u64 {
        pages_of(self.payload_len as usize)
    }

    /// Sequence of its last record.
    pub fn last_sequence(&self) -> Sequence {
        self.first_sequence + u64::from(self.record_count) - 1
    }

    /// The header's bytes; fills in `checksum`.
    pub fn encode(&mut self, id: JournalId) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.raw(&FRAME_MAGIC).u16(VERSION).u16(0).raw(&id.0).u64(self.incarnation).u64(self.page);
        writer.u64(self.first_sequence).u32(self.record_count).u32(self.payload_len).u32(self.previous_checksum);
        writer.u64(self.flushed_through).u32(self.payload_checksum).u64(0);
        let mut bytes = writer.finish();
        self.checksum = crc32c(&bytes);
        bytes.extend_from_slice(&self.checksum.to_le_bytes());
        assert_eq!(bytes.len(), FRAME_HEADER_BYTES, "the frame header has one length");
        bytes
    }

    /// The header at the start of `bytes`; `None` when there is no intact one of this journal.
    pub fn decode(id: JournalId, bytes: &[u8]) -> Option<FrameHeader> {
        if bytes.len() < FRAME_HEADER_BYTES || bytes[..8] != FRAME_MAGIC {
            return None;
        }
        FrameHeader::decode_checked(id, &bytes[..FRAME_HEADER_BYTES]).ok()
    }

    fn decode_checked(id: JournalId, bytes: &[u8]) -> Result<FrameHeader, CodecError> {
        let mut reader = Reader::new("journal frame", bytes);
        reader.raw(8)?;
        let version = reader.u16()?;
        reader.u16()?;
        let found: [u8; 16] = reader.array()?;
        let header = FrameHeader {
            incarnation: reader.counter()?,
            page: reader.counter()?,
            first_sequence: reader.counter()?,
            record_count: reader.u32()?,
            payload_len: reader.u32()?,
            previous_checksum: reader.u32()?,
            flushed_through: reader.counter()?,
            payload_checksum: reader.u32()?,
            checksum: {
                reader.u64()?;
                reader.u32()?
            },
        };
        let plausible = header.record_count > 0
            && header.payload_len as usize <= FRAME_PAYLOAD_BYTES_MAX
            && header.first_sequence > 0;
        let intact = crc32c(&bytes[..FRAME_HEADER_BYTES - 4]) == header.checksum;
        if version != VERSION || found != id.0 || !intact || !plausible {
            return Err(CodecError::Checksum { what: "journal frame" });
        }
        Ok(header)
    }
}

/// Pages of a frame with `payload_len` bytes of records.
pub(crate) fn pages_of(payload_len: usize) -> u64 {
    (FRAME_HEADER_BYTES + payload_len).div_ceil(PAGE_LEN_BYTES) as u64
}

/// The records in a payload whose checksum holds. An error is our own bug or a forged frame; it counts as damage.
pub(crate) fn decode_records(payload: &[u8], record_count: u32) -> Result<Vec<Vec<u8>>, CodecError> {
    let mut reader = Reader::new("journal records", payload);
    let mut records = Vec::new();
    for _ in 0..record_count {
        records.push(reader.bytes(JOURNAL_RECORD_LEN_BYTES_MAX)?.to_vec());
    }
    reader.end()?;
    Ok(records)
}

/// What the two header pages say, written in turn: at each start and each time space is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegionHeader {
    /// Pages of the ring, fixed at format.
    pub ring_pages: u64,
    /// Counts header writes; the higher intact one holds, and its parity is its page.
    pub generation: u64,
    /// Counts starts. Flushed before the first frame of the start; 0 right after format.
    pub incarnation: u64,
    /// First page of this incarnation's frames: from there on only frames of this incarnation are believed.
    pub incarnation_page: u64,
    /// First sequence of this incarnation.
    pub incarnation_sequence: Sequence,
    /// Where replay starts.
    pub start_page: u64,
    /// Checksum that the frame at `start_page` names as its predecessor's.
    pub start_checksum: u32,
    /// Records up to here are not replayed.
    pub trimmed_through: Sequence,
    /// Every record up to here was durable when the header was submitted.
    pub flushed_through: Sequence,
}

/// What a header page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderPage {
    /// Zeros: never written.
    Blank,
    /// An intact header of this journal.
    Ours(RegionHeader),
    /// An intact header of another journal.
    Foreign,
    /// Anything else: torn or rotten.
    Broken,
}

impl RegionHeader {
    /// The bytes of one header page.
    pub fn encode(&self, id: JournalId) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.raw(&REGION_MAGIC).u16(VERSION).u16(0).raw(&id.0).u64(self.ring_pages);
        writer.u64(self.generation).u64(self.incarnation);
        writer.u64(self.incarnation_page).u64(self.incarnation_sequence).u64(self.start_page);
        writer.u32(self.start_checksum).u64(self.trimmed_through).u64(self.flushed_through);
        let mut bytes = writer.finish();
        let checksum = crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        assert_eq!(bytes.len(), REGION_HEADER_BYTES, "the region header has one length");
        bytes
    }

    /// What a header page says.
    pub fn decode(id: JournalId, page: &[u8]) -> HeaderPage {
        if page.iter().all(|byte| *byte == 0) {
            return HeaderPage::Blank;
        }
        if page.len() < REGION_HEADER_BYTES || page[..8] != REGION_MAGIC {
            return HeaderPage::Broken;
        }
        let bytes = &page[..REGION_HEADER_BYTES];
        let stated = u32::from_le_bytes(bytes[REGION_HEADER_BYTES - 4..].try_into().expect("four bytes"));
        if crc32c(&bytes[..REGION_HEADER_BYTES - 4]) != stated {
            return HeaderPage::Broken;
        }
        match RegionHeader::decode_intact(bytes) {
            Ok((found, _)) if found != id => HeaderPage::Foreign,
            Ok((_, header)) => HeaderPage::Ours(header),
            Err(_) => HeaderPage::Broken,
        }
    }

    fn decode_intact(bytes: &[u8]) -> Result<(JournalId, RegionHeader), CodecError> {
        let mut reader = Reader::new("journal region header", bytes);
        reader.raw(8)?;
        let version = reader.u16()?;
        if version != VERSION {
            return Err(reader.unknown(u64::from(version)));
        }
        reader.u16()?;
        let id = JournalId(reader.array()?);
        let header = RegionHeader {
            ring_pages: reader.u64()?,
            generation: reader.counter()?,
            incarnation: reader.counter()?,
            incarnation_page: reader.counter()?,
            incarnation_sequence: reader.counter()?,
            start_page: reader.counter()?,
            start_checksum: reader.u32()?,
            trimmed_through: reader.counter()?,
            flushed_through: reader.counter()?,
        };
        if header.incarnation_sequence == 0 {
            return Err(reader.unknown(0)); // the first record has sequence 1
        }
        Ok((id, header))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: JournalId = JournalId([7; 16]);

    #[test]
    fn headers_read_back_and_every_flipped_bit_is_seen() {
        let mut frame = FrameHeader {
            incarnation: 3,
            page: 17,
            first_sequence: 40,
            record_count: 2,
            payload_len: 5000,
            previous_checksum: 9,
            flushed_through: 38,
            payload_checksum: 11,
            checksum: 0,
        };
        let bytes = frame.encode(ID);
        assert_eq!(FrameHeader::decode(ID, &bytes), Some(frame));
        assert_eq!(FrameHeader::decode(JournalId([8; 16]), &bytes), None, "another journal's");
        assert_eq!((frame.pages(), frame.last_sequence()), (2, 41));
        let region = RegionHeader {
            ring_pages: 14,
            generation: 1,
            incarnation: 2,
            incarnation_page: 3,
            incarnation_sequence: 4,
            start_page: 5,
            start_checksum: 6,
            trimmed_through: 7,
            flushed_through: 8,
        };
        let mut page = region.encode(ID);
        page.resize(PAGE_LEN_BYTES, 0);
        assert_eq!(RegionHeader::decode(ID, &page), HeaderPage::Ours(region));
        assert_eq!(RegionHeader::decode(JournalId([8; 16]), &page), HeaderPage::Foreign);
        assert_eq!(RegionHeader::decode(ID, &[0; PAGE_LEN_BYTES]), HeaderPage::Blank);
        for bit in 0..FRAME_HEADER_BYTES * 8 {
            let mut torn = bytes.clone();
            torn[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::decode(ID, &torn), None, "frame bit {bit}");
        }
        for bit in 0..REGION_HEADER_BYTES * 8 {
            let mut torn = page.clone();
            torn[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RegionHeader::decode(ID, &torn), HeaderPage::Broken, "region bit {bit}");
        }
    }

    #[test]
    fn counters_that_no_start_can_raise_are_broken() {
        let header = |incarnation, incarnation_sequence, trimmed_through| RegionHeader {
            ring_pages: 8,
            generation: 1,
            incarnation,
            incarnation_page: 0,
            incarnation_sequence,
            start_page: 0,
            start_checksum: 0,
            trimmed_through,
            flushed_through: 0,
        };
        for (header, fits) in [
            (header(1, 1, 0), true),
            (header(1, 0, 0), false),
            (header(u64::MAX, 1, 0), false),
            (header(1, u64::MAX, 0), false),
            (header(1, 1, u64::MAX), false),
        ] {
            let read = RegionHeader::decode(ID, &header.encode(ID));
            assert_eq!(read == HeaderPage::Ours(header), fits, "{header:?}");
            assert_eq!(read == HeaderPage::Broken, !fits, "{header:?}");
        }
    }
}
