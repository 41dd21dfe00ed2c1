//! What `tools/fuzz` needs of this room's private decoders, and nothing else does.
//!
//! Each function decodes bytes and gives back what the encoder makes of the result (`None`: refused), so that no private
//! type leaves the room. Seeds are bytes that the private encoders make.

use crate::index::{decode_row, encode_row};
use crate::journal::fuzz_scan;
use crate::lane::LaneRecord;
use crate::metadata_set::fuzz_member;
use kiseki_types::fragment::{FragmentKey, FragmentMeta, StoredFragment, StripeShape};
use kiseki_types::units::Extent;
use kiseki_types::{BlockCount, BlockIndex, DeviceId, Generation, Locator, MapEpoch, PoolId};

pub use crate::journal::fuzz_region as journal_region;

const DEVICE: DeviceId = DeviceId([7; 16]);

/// A record in the journal of a lane on a device.
#[must_use]
pub fn lane_record(bytes: &[u8]) -> Option<Vec<u8>> {
    LaneRecord::decode(DEVICE, bytes).ok().map(|record| record.encode())
}

/// A row of the fragment index.
#[must_use]
pub fn index_row(bytes: &[u8]) -> Option<Vec<u8>> {
    decode_row(DEVICE, bytes).ok().map(|fragment| encode_row(&fragment))
}

/// The `member` file of a metadata directory.
#[must_use]
pub fn member_file(bytes: &[u8]) -> Option<Vec<u8>> {
    fuzz_member(bytes)
}

/// Two header pages and a ring of a journal, read as an open reads them; `None` when no open would get to the ring.
/// Gives back how many records the open would replay.
#[must_use]
pub fn journal_scan(region: &[u8]) -> Option<usize> {
    fuzz_scan(region)
}

/// Lane records and an index row: (name, bytes).
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let extent = Extent { device: DEVICE, start: BlockIndex(4096), len: BlockCount(20) };
    let key = FragmentKey { locator: Locator([9; 32]), generation: Generation(7), index: 5 };
    let meta = FragmentMeta {
        key,
        shape: StripeShape { data: 4, parity: 2 },
        pool: PoolId(3),
        envelope_len_bytes: 300_000,
        payload_len_bytes: 77_824,
        map_epoch: MapEpoch(12),
        devices: Vec::new(),
    };
    let fragment = StoredFragment { meta, extent };
    vec![
        ("lane_record/allocate", LaneRecord::Allocate(fragment.clone()).encode()),
        ("lane_record/release", LaneRecord::Release { key, extent }.encode()),
        ("index_row/fragment", encode_row(&fragment)),
        ("member_file/two", crate::metadata_set::fuzz_member_seed()),
    ]
}
