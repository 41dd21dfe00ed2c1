//! What a journal's region says to somebody who only reads it: the records that an open would replay, and whether the end
//! of its chain is the end, a torn tail (normal after a crash) or a break in the middle (damage), with its page.

use super::frame::{
    FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader, HEADER_PAGES, HeaderPage, JournalId, PAGE_LEN_BYTES, RegionHeader,
};
use super::open::replayed;
use super::region::RING_PAGES_MIN;
use super::scan::{MirrorScan, NoHeader, frame_bytes, newest_header, scan_ring};
use crate::checksum::flipped_bit;
use kiseki_types::codec::Reader;
use kiseki_types::journal::{ReplayedRecord, Sequence};
use kiseki_types::limits::JOURNAL_RECORD_LEN_BYTES_MAX;

/// What a region holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Examined {
    /// Never written.
    Blank,
    /// Another journal.
    Foreign,
    /// A journal that can't be followed, and why.
    Unreadable(&'static str),
    /// A journal.
    Read(ReadJournal),
}

/// A journal that can be followed from its start page on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadJournal {
    /// Header pages that are neither intact nor blank; the other one holds. A crash may tear one.
    pub broken_headers: usize,
    /// What an open would replay, up to the break if there is one.
    pub records: Vec<ReplayedRecord>,
    /// Records up to here were given back.
    pub trimmed_through: Sequence,
    /// Starts so far.
    pub incarnation: u64,
    /// How the chain ends.
    pub end: ChainEnd,
}

/// How a chain ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ChainEnd {
    /// Behind its last frame nothing of this journal lies.
    Whole,
    /// Behind it lies what was written and never stated as flushed.
    Torn {
        /// Page of the region.
        page: u64,
        /// What is left of the frame that should follow.
        rest: TornFrame,
    },
    /// It breaks below what was stated as flushed.
    Broken {
        /// Page of the region where the next frame should be.
        page: u64,
        /// Last record before the break.
        last: Sequence,
        /// What was stated as flushed.
        stated: Sequence,
    },
}

/// What is left of a frame that does not verify, at the end of a chain.
///
/// A crash leaves each sector of 512 bytes as it was or as it was to be; what no such mixture can be has rotted since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TornFrame {
    /// Nothing that could be told from what lay there before.
    Gone,
    /// A sector is damaged inside, or one flipped bit explains it: it was written, and rotted.
    Rotten(&'static str),
    /// Its header is whole and its records are not; as many of them as can be made out.
    Cut(Vec<Vec<u8>>),
}

/// Drives write so many bytes as a whole or not at all.
const SECTOR_LEN_BYTES: usize = 512;

/// Longest payload that is searched for a flipped bit: beyond it chance would explain too much.
const ONE_BIT_LEN_BYTES_MAX: usize = 64 << 10;

const _: () = assert!(FRAME_HEADER_BYTES <= SECTOR_LEN_BYTES); // a crash leaves a whole header or none

/// Reads a region, all of whose pages are in `region`, as an open would.
pub(crate) fn examine(id: JournalId, region: &[u8]) -> Examined {
    let pages = (region.len() / PAGE_LEN_BYTES) as u64;
    let Some(ring_pages) = pages.checked_sub(HEADER_PAGES).filter(|ring_pages| *ring_pages >= RING_PAGES_MIN) else {
        return Examined::Unreadable("its region is too short for a journal");
    };
    let (headers, ring) = region.split_at(HEADER_PAGES as usize * PAGE_LEN_BYTES);
    let header = match newest_header(id, headers) {
        Ok(header) => header,
        Err(NoHeader::Blank) => return Examined::Blank,
        Err(NoHeader::Foreign) => return Examined::Foreign,
        Err(NoHeader::Broken) => return Examined::Unreadable("neither of its two header pages is intact"),
    };
    if header.ring_pages > ring_pages || header.ring_pages < RING_PAGES_MIN {
        return Examined::Unreadable("its region is shorter than its ring");
    }
    let scan = scan_ring(id, header, &ring[..header.ring_pages as usize * PAGE_LEN_BYTES]);
    if scan.header_lost() {
        return Examined::Unreadable("its newest header page is gone: frames of a later start exist");
    }
    let broken = |page: &&[u8]| RegionHeader::decode(id, page) == HeaderPage::Broken;
    let stated = scan.stated_flushed;
    Examined::Read(ReadJournal {
        broken_headers: headers.chunks(PAGE_LEN_BYTES).filter(broken).count(),
        trimmed_through: header.trimmed_through,
        incarnation: header.incarnation,
        end: chain_end(id, &scan, ring),
        records: replayed(scan.records, stated),
    })
}

fn chain_end(id: JournalId, scan: &MirrorScan, ring: &[u8]) -> ChainEnd {
    let ring_pages = scan.header.ring_pages;
    let page = HEADER_PAGES + scan.end_page % ring_pages;
    let (last, stated) = (scan.last(), scan.stated_flushed);
    if last < stated {
        return ChainEnd::Broken { page, last, stated };
    }
    // Older frames lie in the ring too: only one at its own page, or what looks like one and is none, was to follow.
    let page_at = |at: u64| &ring[at as usize * PAGE_LEN_BYTES..][..PAGE_LEN_BYTES];
    let rest = rest_of_frame(id, scan, page_at(scan.end_page % ring_pages), ring);
    let follows = |at: u64| {
        FrameHeader::decode(id, page_at(at)).is_some_and(|frame| {
            frame.incarnation == scan.header.incarnation && frame.page >= scan.end_page && frame.page % ring_pages == at
        })
    };
    match rest != TornFrame::Gone || (0..ring_pages).any(follows) {
        true => ChainEnd::Torn { page, rest },
        false => ChainEnd::Whole,
    }
}

/// What lies where the chain should go on, at ring page `end_page`.
fn rest_of_frame(id: JournalId, scan: &MirrorScan, page: &[u8], ring: &[u8]) -> TornFrame {
    let belongs = |frame: &FrameHeader| {
        (frame.incarnation, frame.page, frame.previous_checksum)
            == (scan.header.incarnation, scan.end_page, scan.end_checksum)
            && frame.pages() <= scan.header.ring_pages
    };
    let Some(frame) = FrameHeader::decode(id, page) else {
        let mended = with_one_bit_flipped(id, page);
        return match (mended.filter(belongs), page.starts_with(&FRAME_MAGIC)) {
            (Some(_), _) => TornFrame::Rotten("one flipped bit explains it"),
            (None, true) => TornFrame::Rotten("its header is damaged inside a sector"),
            (None, false) => TornFrame::Gone,
        };
    };
    if !belongs(&frame) {
        return TornFrame::Gone; // of an earlier round of the ring
    }
    let ring_pages = scan.header.ring_pages;
    let bytes = frame_bytes(frame.page, frame.pages(), &ring[..ring_pages as usize * PAGE_LEN_BYTES], ring_pages);
    let payload = &bytes[FRAME_HEADER_BYTES..][..frame.payload_len as usize];
    if FRAME_HEADER_BYTES + payload.len() <= SECTOR_LEN_BYTES {
        return TornFrame::Rotten("it fits into one sector, and that is damaged inside");
    }
    if payload.len() <= ONE_BIT_LEN_BYTES_MAX && flipped_bit(payload, frame.payload_checksum).is_some() {
        return TornFrame::Rotten("one flipped bit explains it");
    }
    TornFrame::Cut(readable_records(payload, frame.record_count))
}

/// The header that a page would have but for one bit.
fn with_one_bit_flipped(id: JournalId, page: &[u8]) -> Option<FrameHeader> {
    let mut header = page[..FRAME_HEADER_BYTES].to_vec();
    (0..8 * FRAME_HEADER_BYTES).find_map(|bit| {
        header[bit / 8] ^= 1 << (bit % 8);
        let found = FrameHeader::decode(id, &header);
        header[bit / 8] ^= 1 << (bit % 8);
        found
    })
}

/// Records of a damaged payload, up to the first one whose length makes no sense.
fn readable_records(payload: &[u8], record_count: u32) -> Vec<Vec<u8>> {
    let mut reader = Reader::new("journal records", payload);
    let records = (0..record_count).map_while(|_| reader.bytes(JOURNAL_RECORD_LEN_BYTES_MAX).ok().map(<[u8]>::to_vec));
    records.collect()
}

#[cfg(test)]
mod tests {
    use super::super::fuzz::fuzz_region;
    use super::*;

    const ID: JournalId = JournalId([7; 16]);

    /// A journal of two frames, the second with records of 700 bytes in all, and where that begins.
    fn region(second: &[&[u8]]) -> (Vec<u8>, usize) {
        (fuzz_region(8, &[&[b"first"], second]), 3 * PAGE_LEN_BYTES)
    }

    fn end(region: &[u8]) -> ChainEnd {
        match examine(ID, region) {
            Examined::Read(journal) => journal.end,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_rotten_last_frame_is_told_from_one_that_a_crash_cut_off() {
        let records: [&[u8]; 3] = [&[1; 100], &[2; 500], &[3; 88]];
        let (whole, at) = region(&records);
        assert_eq!(end(&whole), ChainEnd::Whole);
        let torn = |rest: TornFrame| ChainEnd::Torn { page: 3, rest };
        // A crash between the two sectors of the frame.
        let mut cut = whole.clone();
        cut[at + 512..at + 1024].fill(0);
        let ChainEnd::Torn { page: 3, rest: TornFrame::Cut(readable) } = end(&cut) else { panic!("{:?}", end(&cut)) };
        assert_eq!(readable[0], records[0], "what can be made out of it is");
        // And one before the first of them: nothing of it is there.
        let mut gone = whole.clone();
        gone[at..at + 512].fill(0);
        assert_eq!(end(&gone), ChainEnd::Whole);
        for bit in [0, 8 * 20 + 3, 8 * 86, 8 * 100, 8 * 600 + 7] {
            let mut rotten = whole.clone();
            rotten[at + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(end(&rotten), torn(TornFrame::Rotten("one flipped bit explains it")), "bit {bit}");
        }
        let mut header = whole.clone();
        header[at + 30..at + 60].fill(0xee);
        assert_eq!(end(&header), torn(TornFrame::Rotten("its header is damaged inside a sector")));
        let (mut small, at) = region(&[&[1; 100]]);
        small[at + 120..at + 140].fill(0xee);
        assert_eq!(end(&small), torn(TornFrame::Rotten("it fits into one sector, and that is damaged inside")));
    }
}
