//! Reading a journal back: which frames form the chain, where it ends, and whether the end is a torn tail or damage.
//!
//! Everything here is pure: from a ring's bytes to what they say. Frames that were submitted but not flushed may be
//! missing, torn or reordered, so the chain may end before them: a torn tail. But every frame and header states through
//! which record everything was flushed when it was submitted. A chain that ends below the highest such statement,
//! found anywhere in the region, has lost what somebody was told is safe: damage.

use super::frame::{
    FRAME_HEADER_BYTES, FrameHeader, HEADER_PAGES, HeaderPage, JournalId, PAGE_LEN_BYTES, RegionHeader, decode_records,
};
use crate::crc32c;
use kiseki_types::journal::Sequence;

/// A frame of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChainFrame {
    pub page: u64,
    pub pages: u64,
    pub first: Sequence,
    pub last: Sequence,
    pub checksum: u32,
    pub previous_checksum: u32,
}

/// What one mirror says.
#[derive(Debug)]
pub(crate) struct MirrorScan {
    pub header: RegionHeader,
    pub frames: Vec<ChainFrame>,
    pub records: Vec<(Sequence, Vec<u8>)>,
    /// Where the next frame would start.
    pub end_page: u64,
    /// Checksum of the last frame.
    pub end_checksum: u32,
    /// Highest "flushed through" stated anywhere in the region.
    pub stated_flushed: Sequence,
    /// Highest sequence named anywhere in the region.
    pub highest_sequence: Sequence,
    /// Highest incarnation named anywhere in the region.
    pub highest_incarnation: u64,
}

/// Why a mirror says nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoHeader {
    /// Both header pages were never written.
    Blank,
    /// The region holds another journal.
    Foreign,
    /// No header page is intact.
    Broken,
}

impl MirrorScan {
    /// Last record of the chain, or of what was trimmed.
    pub fn last(&self) -> Sequence {
        self.frames.last().map_or(0, |frame| frame.last).max(self.header.trimmed_through)
    }

    /// Whether the newest header was lost: frames of a later start exist, and a start's header is flushed first.
    pub fn header_lost(&self) -> bool {
        self.highest_incarnation > self.header.incarnation
    }
}

/// The newer intact header of the two pages.
pub(crate) fn newest_header(id: JournalId, pages: &[u8]) -> Result<RegionHeader, NoHeader> {
    let found: Vec<HeaderPage> = (0..HEADER_PAGES as usize)
        .map(|slot| RegionHeader::decode(id, &pages[slot * PAGE_LEN_BYTES..][..PAGE_LEN_BYTES]))
        .collect();
    let ours = found.iter().filter_map(|page| match page {
        HeaderPage::Ours(header) => Some(*header),
        _ => None,
    });
    match ours.max_by_key(|header| header.generation) {
        Some(header) => Ok(header),
        None if found.iter().all(|page| *page == HeaderPage::Blank) => Err(NoHeader::Blank),
        None if found.contains(&HeaderPage::Foreign) => Err(NoHeader::Foreign),
        None => Err(NoHeader::Broken),
    }
}

/// Walks the chain from where `header` says and gathers every statement in the ring.
pub(crate) fn scan_ring(id: JournalId, header: RegionHeader, ring: &[u8]) -> MirrorScan {
    let ring_pages = (ring.len() / PAGE_LEN_BYTES) as u64;
    let mut scan = MirrorScan {
        header,
        frames: Vec::new(),
        records: Vec::new(),
        end_page: header.start_page,
        end_checksum: header.start_checksum,
        stated_flushed: header.flushed_through.max(header.trimmed_through),
        highest_sequence: header.trimmed_through.max(header.flushed_through),
        highest_incarnation: header.incarnation,
    };
    for at in 0..ring_pages {
        if let Some(frame) = frame_at(id, ring, at) {
            scan.stated_flushed = scan.stated_flushed.max(frame.flushed_through);
            scan.highest_sequence = scan.highest_sequence.max(frame.last_sequence());
            scan.highest_incarnation = scan.highest_incarnation.max(frame.incarnation);
        }
    }
    let mut used_pages = 0;
    let mut incarnation = 0;
    let mut next: Option<Sequence> = None;
    while let Some((frame, records)) = next_frame(id, &scan, ring, incarnation, next) {
        used_pages += frame.pages();
        if used_pages > ring_pages {
            break; // a chain longer than its ring would overlap itself; only forged frames get here
        }
        scan.frames.push(ChainFrame {
            page: frame.page,
            pages: frame.pages(),
            first: frame.first_sequence,
            last: frame.last_sequence(),
            checksum: frame.checksum,
            previous_checksum: frame.previous_checksum,
        });
        let numbered = (frame.first_sequence..).zip(records);
        scan.records.extend(numbered.filter(|(sequence, _)| *sequence > header.trimmed_through));
        scan.end_page = frame.page + frame.pages();
        scan.end_checksum = frame.checksum;
        incarnation = frame.incarnation;
        next = Some(frame.last_sequence() + 1);
    }
    scan
}

/// The frame header at ring page `at`, if an intact one of this journal belongs there.
fn frame_at(id: JournalId, ring: &[u8], at: u64) -> Option<FrameHeader> {
    let ring_pages = (ring.len() / PAGE_LEN_BYTES) as u64;
    let frame = FrameHeader::decode(id, &ring[at as usize * PAGE_LEN_BYTES..][..PAGE_LEN_BYTES])?;
    (frame.page % ring_pages == at && frame.pages() <= ring_pages).then_some(frame)
}

/// The frame that continues the chain, with its records.
fn next_frame(
    id: JournalId,
    scan: &MirrorScan,
    ring: &[u8],
    incarnation: u64,
    next: Option<Sequence>,
) -> Option<(FrameHeader, Vec<Vec<u8>>)> {
    let ring_pages = (ring.len() / PAGE_LEN_BYTES) as u64;
    let header = &scan.header;
    let frame = frame_at(id, ring, scan.end_page % ring_pages)?;
    // From the last start's first page on only its own frames count: what an earlier one left there was never
    // acknowledged, or this start would have begun behind it.
    let incarnation_fits = if frame.page >= header.incarnation_page {
        frame.incarnation == header.incarnation
    } else {
        frame.incarnation >= incarnation && frame.incarnation < header.incarnation
    };
    let sequence_fits = match next {
        Some(next) if frame.incarnation == incarnation => frame.first_sequence == next,
        Some(next) => frame.first_sequence >= next,
        None => true,
    };
    let chained = frame.page == scan.end_page && frame.previous_checksum == scan.end_checksum;
    if !(incarnation_fits && sequence_fits && chained) {
        return None;
    }
    let payload = payload_of(&frame, ring, ring_pages);
    if crc32c(&payload) != frame.payload_checksum {
        return None;
    }
    let records = decode_records(&payload, frame.record_count).ok()?;
    Some((frame, records))
}

fn payload_of(frame: &FrameHeader, ring: &[u8], ring_pages: u64) -> Vec<u8> {
    let bytes = frame_bytes(frame.page, frame.pages(), ring, ring_pages);
    bytes[FRAME_HEADER_BYTES..][..frame.payload_len as usize].to_vec()
}

/// The pages of a frame, around the ring's end where needed.
pub(crate) fn frame_bytes(page: u64, pages: u64, ring: &[u8], ring_pages: u64) -> Vec<u8> {
    let start = (page % ring_pages) as usize * PAGE_LEN_BYTES;
    let len = pages as usize * PAGE_LEN_BYTES;
    let first = len.min(ring.len() - start);
    let mut bytes = ring[start..start + first].to_vec();
    bytes.extend_from_slice(&ring[..len - first]);
    bytes
}
