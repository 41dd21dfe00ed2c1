//! A journal's place on one mirror: pages in, pages out, around the end of the ring.

use super::frame::{HEADER_PAGES, PAGE_LEN_BYTES, REGION_LEN_BYTES_MAX};
use crate::flush_gate::FlushGate;
use futures::future::join_all;
use kiseki_types::buf::{IoBuf, IoBytes};
use kiseki_types::device::Device;
use kiseki_types::runtime::Ports;
use kiseki_types::{BlockCount, BlockIndex};
use std::io;
use std::rc::Rc;

/// Fewest pages that a ring works with.
pub const RING_PAGES_MIN: u64 = 4;

/// Bytes of one read or write while a region is scanned or zeroed.
const SCAN_STEP_BYTES: usize = 1 << 20;

/// Steps in flight while a region is scanned or zeroed.
const SCAN_DEPTH: usize = 4;

/// Where a mirror of a journal lies.
#[derive(Clone)]
pub struct MirrorRegion {
    /// The device.
    pub device: Rc<dyn Device>,
    /// The device's shared flush on this core.
    pub gate: FlushGate,
    /// First block of the region.
    pub start: BlockIndex,
    /// Blocks of the region.
    pub len: BlockCount,
    /// Whether the mirror holds the journal, or is to be filled as a new one.
    pub content: MirrorContent,
}

/// What a mirror is expected to hold when the journal is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorContent {
    /// The journal: what can't be read there is damage.
    Member,
    /// Nothing that counts (new, or stale): it is filled from the others.
    Refill,
}

impl MirrorRegion {
    /// A mirror that holds the journal, with a flush gate of its own.
    #[must_use]
    pub fn new(ports: Ports, device: Rc<dyn Device>, start: BlockIndex, len: BlockCount) -> MirrorRegion {
        let gate = FlushGate::new(ports, device.clone());
        MirrorRegion { device, gate, start, len, content: MirrorContent::Member }
    }

    /// Pages of the ring, without the header pages.
    pub(crate) fn ring_pages(&self) -> u64 {
        let bytes = (self.len.0 * u64::from(self.block_len())).min(REGION_LEN_BYTES_MAX);
        (bytes / PAGE_LEN_BYTES as u64).saturating_sub(HEADER_PAGES)
    }

    fn block_len(&self) -> u32 {
        self.device.geometry().block_len_bytes
    }

    fn block_of(&self, region_page: u64) -> BlockIndex {
        self.start.plus(BlockCount(region_page * (PAGE_LEN_BYTES as u64 / u64::from(self.block_len()))))
    }

    fn check_fence(&self) -> io::Result<()> {
        self.gate.fenced().map_or(Ok(()), |fenced| Err(io::Error::other(fenced.to_string())))
    }

    /// Writes header page `slot` (0 or 1).
    pub(crate) async fn write_header(&self, slot: u64, page: IoBytes) -> io::Result<()> {
        assert!(slot < HEADER_PAGES && page.len() == PAGE_LEN_BYTES, "a header is one page of two");
        self.check_fence()?;
        self.device.write(self.block_of(slot), vec![page]).await
    }

    /// Both header pages.
    pub(crate) async fn read_headers(&self) -> io::Result<IoBuf> {
        let buf = IoBuf::zeroed(HEADER_PAGES as usize * PAGE_LEN_BYTES);
        self.device.read(self.block_of(0), buf).await
    }

    /// Writes whole pages of the ring from `page` on, around its end where needed.
    pub(crate) async fn write_ring(&self, page: u64, ring_pages: u64, bytes: IoBytes) -> io::Result<()> {
        self.check_fence()?;
        let count = (bytes.len() / PAGE_LEN_BYTES) as u64;
        assert!(bytes.len().is_multiple_of(PAGE_LEN_BYTES) && count <= ring_pages, "I-C7: frames are whole pages");
        let at = page % ring_pages;
        let first = count.min(ring_pages - at) as usize * PAGE_LEN_BYTES;
        let head = self.device.write(self.block_of(HEADER_PAGES + at), vec![bytes.slice(0..first)]);
        if first == bytes.len() {
            return head.await;
        }
        let tail = self.device.write(self.block_of(HEADER_PAGES), vec![bytes.slice(first..bytes.len())]);
        let (head, tail) = futures::future::join(head, tail).await;
        head.and(tail)
    }

    /// The whole ring.
    pub(crate) async fn read_ring(&self, ring_pages: u64) -> io::Result<Vec<u8>> {
        let len = ring_pages as usize * PAGE_LEN_BYTES;
        let mut ring = Vec::with_capacity(len);
        while ring.len() < len {
            let reads =
                (0..SCAN_DEPTH).map(|step| ring.len() + step * SCAN_STEP_BYTES).take_while(|at| *at < len).map(|at| {
                    let block = self.block_of(HEADER_PAGES + (at / PAGE_LEN_BYTES) as u64);
                    self.device.read(block, IoBuf::zeroed(SCAN_STEP_BYTES.min(len - at)))
                });
            for read in join_all(reads).await {
                ring.extend_from_slice(&read?);
            }
        }
        Ok(ring)
    }

    /// Writes zeros over the whole region: no older byte can be taken for a frame, and no block is unwritten.
    pub(crate) async fn zero(&self) -> io::Result<()> {
        self.check_fence()?;
        let len = (HEADER_PAGES + self.ring_pages()) as usize * PAGE_LEN_BYTES;
        let zeros = IoBuf::zeroed(SCAN_STEP_BYTES.min(len)).freeze();
        let mut at = 0;
        while at < len {
            let writes = (0..SCAN_DEPTH).map(|step| at + step * SCAN_STEP_BYTES).take_while(|at| *at < len).map(|at| {
                let part = zeros.slice(0..SCAN_STEP_BYTES.min(len - at));
                self.device.write(self.block_of((at / PAGE_LEN_BYTES) as u64), vec![part])
            });
            for write in join_all(writes).await {
                write?;
            }
            at += SCAN_DEPTH * SCAN_STEP_BYTES;
        }
        Ok(())
    }
}
