//! What a journal's region says to somebody who only reads it: the records that an open would replay, and whether the end
//! of its chain is the end, a torn tail (normal after a crash) or a break in the middle (damage), with its page.

use super::frame::{FRAME_MAGIC, FrameHeader, HEADER_PAGES, HeaderPage, JournalId, PAGE_LEN_BYTES, RegionHeader};
use super::open::replayed;
use super::region::RING_PAGES_MIN;
use super::scan::{MirrorScan, NoHeader, newest_header, scan_ring};
use kiseki_types::journal::{ReplayedRecord, Sequence};

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
    let mangled = page_at(scan.end_page % ring_pages).starts_with(&FRAME_MAGIC)
        && FrameHeader::decode(id, page_at(scan.end_page % ring_pages)).is_none();
    let follows = |at: u64| {
        FrameHeader::decode(id, page_at(at)).is_some_and(|frame| {
            frame.incarnation == scan.header.incarnation && frame.page >= scan.end_page && frame.page % ring_pages == at
        })
    };
    match mangled || (0..ring_pages).any(follows) {
        true => ChainEnd::Torn { page },
        false => ChainEnd::Whole,
    }
}
