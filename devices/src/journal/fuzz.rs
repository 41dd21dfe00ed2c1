//! A journal's region as plain bytes, for `crate::fuzzing`: read as [`super::open`] reads a mirror, and made.

use super::frame::{FRAME_HEADER_BYTES, FrameHeader, HEADER_PAGES, JournalId, PAGE_LEN_BYTES, RegionHeader};
use super::open::next_start;
use super::region::RING_PAGES_MIN;
use super::scan::{newest_header, scan_ring};
use crate::crc32c;
use kiseki_types::journal::Sequence;

const ID: JournalId = JournalId([7; 16]);

/// Reads a region as an open does, up to the numbers of the start that follows.
pub(crate) fn fuzz_scan(region: &[u8]) -> Option<usize> {
    let pages = (region.len() / PAGE_LEN_BYTES) as u64;
    let ring_pages = pages.checked_sub(HEADER_PAGES).filter(|ring_pages| *ring_pages >= RING_PAGES_MIN)?;
    let (headers, ring) = region.split_at(HEADER_PAGES as usize * PAGE_LEN_BYTES);
    let header = newest_header(ID, headers).ok()?;
    if header.ring_pages > ring_pages || header.ring_pages < RING_PAGES_MIN {
        return None;
    }
    let scan = scan_ring(ID, header, &ring[..header.ring_pages as usize * PAGE_LEN_BYTES]);
    if scan.header_lost() {
        return None;
    }
    let next = next_start(&scan, 0, 0);
    assert!(next.first > scan.last(), "a new start numbers its records behind all that are there");
    Some(scan.records.len())
}

/// A region of one start with a frame for each group of records, and a second header page.
#[must_use]
pub fn fuzz_region(ring_pages: u64, frames: &[&[&[u8]]]) -> Vec<u8> {
    let mut header = RegionHeader {
        ring_pages,
        generation: 1,
        incarnation: 0,
        incarnation_page: 0,
        incarnation_sequence: 1,
        start_page: 0,
        start_checksum: 0,
        trimmed_through: 0,
        flushed_through: 0,
    };
    let mut pages: Vec<Vec<u8>> = Vec::new();
    let second = header.encode(ID);
    header = RegionHeader { generation: 2, incarnation: 1, ..header };
    pages.push(header.encode(ID));
    pages.push(second);
    let (mut page, mut sequence, mut previous_checksum): (u64, Sequence, u32) = (0, 1, 0);
    for records in frames {
        let mut payload = Vec::new();
        for record in *records {
            payload.extend_from_slice(&(record.len() as u32).to_le_bytes());
            payload.extend_from_slice(record);
        }
        assert!(FRAME_HEADER_BYTES + payload.len() <= PAGE_LEN_BYTES, "a seed's frame fills one page at most");
        let mut frame = FrameHeader {
            incarnation: 1,
            page,
            first_sequence: sequence,
            record_count: records.len() as u32,
            payload_len: payload.len() as u32,
            previous_checksum,
            flushed_through: sequence - 1,
            payload_checksum: crc32c(&payload),
            checksum: 0,
        };
        pages.push([frame.encode(ID), payload].concat());
        (page, sequence, previous_checksum) = (page + 1, sequence + records.len() as u64, frame.checksum);
    }
    pages.resize((HEADER_PAGES + ring_pages) as usize, Vec::new());
    pages.iter_mut().for_each(|page| page.resize(PAGE_LEN_BYTES, 0));
    pages.concat()
}
