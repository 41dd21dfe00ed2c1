//! What `tools/fuzz` needs of this room's private decoders, and nothing else does.
//!
//! Each function decodes bytes and gives back what the encoder makes of the result (`None`: refused), so that no private
//! type leaves the room. Seeds are bytes that the private encoders make.

use crate::fragment_header::FragmentHeader;
use crate::image::Image;
use crate::index::{decode_row, encode_row};
use crate::index_rebuild::rebuild;
use crate::journal::fuzz_scan;
use crate::lane::LaneRecord;
use crate::layout::DeviceLayout;
use crate::metadata_set::fuzz_member;
use crate::superblock::{DeviceClass, MetadataEpoch, Superblock};
use crate::verify::{VerifyOptions, verify};
use kiseki_types::buf::{IoBuf, plain_buffers};
use kiseki_types::device::DeviceGeometry;
use kiseki_types::fragment::{FragmentKey, FragmentMeta, StoredFragment, StripeShape};
use kiseki_types::units::Extent;
use kiseki_types::{BlockCount, BlockIndex, ClusterId, DeviceId, Generation, Locator, MapEpoch, PoolId};

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

/// A whole device, verified, and its index made anew; `None` when it has no superblock to go by. Gives back how many
/// rows there are.
#[must_use]
pub fn device_image(bytes: Vec<u8>) -> Option<usize> {
    let image = Image::of_bytes("fuzzed", bytes);
    let verdict = verify(&image, &VerifyOptions { known: None, threads: 1, on_progress: &|_| {} });
    let superblock = verdict.superblock.as_ref()?;
    let Ok(rebuilt) = rebuild(&verdict) else { return Some(0) };
    let mut end = BlockIndex(0);
    for row in rebuilt.rows() {
        let extent = row.extent;
        let zone = superblock.layout.zone_of(extent.start).expect("I-C8: a row lies in a zone");
        let (start, len) = superblock.layout.zone(zone);
        assert!(extent.start >= end && extent.end() <= start.plus(len), "I-C8: rows overlap or leave their zone");
        end = extent.end();
    }
    Some(rebuilt.rows().count())
}

/// Bytes of the device that [`device_seed`] describes.
pub const DEVICE_SEED_LEN_BYTES: usize = 1 << 20;

/// Parts of a device with one lane and two fragments, one of them journaled: the superblock's first copy, the lane's
/// journal, the start of the first zone; and the first byte of each.
#[must_use]
pub fn device_seed() -> [(usize, Vec<u8>); 3] {
    let block_count = BlockCount(DEVICE_SEED_LEN_BYTES as u64 / 4096);
    let geometry = DeviceGeometry { block_len_bytes: 4096, block_count };
    let layout = DeviceLayout::compute(geometry, 1).expect("the device is large enough");
    let superblock = Superblock {
        cluster: ClusterId([1; 16]),
        device: DEVICE,
        pool: PoolId(3),
        class: DeviceClass::File,
        layout,
        generation: 2,
        incarnation: 1,
        metadata: MetadataEpoch::default(),
    };
    let (journal, journal_len) = layout.journal_extent(kiseki_types::LaneId(0));
    let (zone, _) = layout.zone(0);
    let (mut zone_bytes, mut records) = (Vec::new(), Vec::new());
    for index in 0..2 {
        let payload = IoBuf::copy_of(&[index; 8192]).freeze();
        let meta = FragmentMeta {
            key: FragmentKey { locator: Locator([index; 32]), generation: Generation(7), index },
            shape: StripeShape { data: 4, parity: 2 },
            pool: PoolId(3),
            envelope_len_bytes: 30_000,
            payload_len_bytes: 8192,
            map_epoch: MapEpoch(12),
            devices: Vec::new(),
        };
        let start = zone.plus(BlockCount(3 * u64::from(index)));
        zone_bytes.extend_from_slice(
            &FragmentHeader::of(meta.clone(), std::slice::from_ref(&payload)).encode(&plain_buffers()),
        );
        zone_bytes.extend_from_slice(&payload);
        let extent = Extent { device: DEVICE, start, len: BlockCount(3) };
        records.push(LaneRecord::Allocate(StoredFragment { meta, extent }).encode());
    }
    let region = journal_region(journal_len.0 - 2, &[&[&records[0]]]);
    [(0, superblock.encode(0)), (journal.0 as usize * 4096, region), (zone.0 as usize * 4096, zone_bytes)]
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
