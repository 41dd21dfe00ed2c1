//! What a device explains by itself: every fragment found by reading its zones, without a journal, index or server.
//!
//! Released fragments whose blocks were not reused are found too: only journals and tables know that they are gone.

use crate::fragment_header::FragmentHeader;
use crate::layout::DeviceLayout;
use crate::recovery::read_fragment;
use kiseki_types::buf::IoBuf;
use kiseki_types::device::Device;
use kiseki_types::fragment::StoredFragment;
use kiseki_types::limits::FRAGMENT_HEADER_BYTES;
use kiseki_types::units::Extent;
use kiseki_types::{BlockCount, BlockIndex, DeviceId};
use std::io;
use std::rc::Rc;

/// Bytes that one read of a scan takes.
const STEP_BYTES: usize = 1 << 20;

/// What a scan found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceScan {
    /// Fragments whose header and payload are intact, in order of place.
    pub fragments: Vec<StoredFragment>,
    /// What looked like a fragment and is not one: rotten, torn, or partly written over after its release.
    pub problems: Vec<ScanProblem>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanProblem {
    /// Where.
    pub start: BlockIndex,
    /// What.
    pub kind: ScanProblemKind,
}

/// What is wrong at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScanProblemKind {
    /// A fragment's magic, but the header's checksum does not match.
    HeaderDamaged,
    /// The header is intact, the payload behind it is not.
    PayloadDamaged {
        /// What the header says.
        fragment: Box<StoredFragment>,
    },
    /// The device can't read these blocks.
    Unreadable {
        /// The error.
        reason: String,
    },
}

/// Reads all zones of a device. `on_progress` hears of each step: (bytes done, bytes in all).
pub async fn scan_device(
    device: &Rc<dyn Device>,
    id: DeviceId,
    layout: &DeviceLayout,
    mut on_progress: impl FnMut(u64, u64),
) -> DeviceScan {
    let mut scan = DeviceScan::default();
    let total = layout.capacity_bytes();
    let mut done = 0;
    for zone in 0..layout.zone_count() {
        let (start, len) = layout.zone(zone);
        let mut at = start;
        while at < start.plus(len) {
            let next = scan_step(device, id, layout, at, start.plus(len), &mut scan).await;
            done += (next.0 - at.0) * u64::from(layout.block_len_bytes());
            on_progress(done.min(total), total);
            at = next;
        }
    }
    scan
}

/// Looks through one step from `at` on; returns where to go on: behind it, or behind a fragment found.
async fn scan_step(
    device: &Rc<dyn Device>,
    id: DeviceId,
    layout: &DeviceLayout,
    at: BlockIndex,
    zone_end: BlockIndex,
    scan: &mut DeviceScan,
) -> BlockIndex {
    let block = layout.block_len_bytes() as usize;
    let stride = BlockCount((FRAGMENT_HEADER_BYTES / block) as u64);
    let blocks = (zone_end.0 - at.0).min((STEP_BYTES / block) as u64);
    let bytes = match device.read(at, IoBuf::zeroed(blocks as usize * block)).await {
        Ok(bytes) => bytes,
        Err(error) => {
            let kind = ScanProblemKind::Unreadable { reason: error.to_string() };
            scan.problems.push(ScanProblem { start: at, kind });
            return at.plus(BlockCount(blocks));
        }
    };
    let mut here = at;
    for header in bytes.chunks(FRAGMENT_HEADER_BYTES) {
        if FragmentHeader::is_candidate(header)
            && let Some(end) = scan_candidate(device, id, here, zone_end, scan).await
        {
            return end;
        }
        here = here.plus(stride);
    }
    at.plus(BlockCount(blocks))
}

/// Judges what may be a fragment; returns its end when it is an intact one, which holds no other one inside.
async fn scan_candidate(
    device: &Rc<dyn Device>,
    id: DeviceId,
    start: BlockIndex,
    zone_end: BlockIndex,
    scan: &mut DeviceScan,
) -> Option<BlockIndex> {
    let problem = |kind| ScanProblem { start, kind };
    let (header, is_intact) = match read_fragment(device, start).await {
        Ok(Some(found)) => found,
        Ok(None) => {
            scan.problems.push(problem(ScanProblemKind::HeaderDamaged));
            return None;
        }
        Err(error) => {
            scan.problems.push(problem(unreadable(&error)));
            return None;
        }
    };
    let bytes = FRAGMENT_HEADER_BYTES as u64 + u64::from(header.meta.payload_len_bytes);
    let len = BlockCount::holding(bytes, device.geometry().block_len_bytes);
    let fragment = StoredFragment { meta: header.meta, extent: Extent { device: id, start, len } };
    let end = fragment.extent.end();
    if !is_intact || end > zone_end {
        scan.problems.push(problem(ScanProblemKind::PayloadDamaged { fragment: Box::new(fragment) }));
        return None;
    }
    scan.fragments.push(fragment);
    Some(end)
}

fn unreadable(error: &io::Error) -> ScanProblemKind {
    ScanProblemKind::Unreadable { reason: error.to_string() }
}
