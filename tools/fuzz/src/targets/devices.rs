//! What lies on a device and in a metadata directory.

use crate::mend;
use crate::target::{Seed, Target, Verdict, accepted, bytes_settle, bytes_survive, value_survives};
use kiseki_devices::fragment_header::FragmentHeader;
use kiseki_devices::fuzzing;
use kiseki_devices::layout::{DeviceLayout, SUPERBLOCK_COPIES};
use kiseki_devices::nvme::identify::{self, ControllerIdentity, IDENTIFY_LEN_BYTES, NamespaceIdentity};
use kiseki_devices::nvme::smart::{SMART_LEN_BYTES, SmartLog};
use kiseki_devices::probe;
use kiseki_devices::superblock::{DeviceClass, MemberId, MetadataEpoch, Superblock, SuperblockState};
use kiseki_types::device::DeviceGeometry;
use kiseki_types::fragment::{FragmentKey, FragmentMeta, StripeShape};
use kiseki_types::{BlockCount, ClusterId, DeviceId, Generation, LaneId, Locator, MapEpoch, PoolId};

/// One copy of a superblock, read as each of the four.
pub const SUPERBLOCK: Target = Target::new("superblock", superblock, superblock_seeds).mended(mend::block);
/// Both ends of a device that may belong to somebody else.
pub const PROBE: Target = Target::new("probe", probe_ends, probe_seeds);
/// The header in front of a fragment.
pub const FRAGMENT_HEADER: Target =
    Target::new("fragment_header", fragment_header, fragment_header_seeds).mended(mend::block);
/// A record in the journal of a lane on a device.
pub const LANE_RECORD: Target = Target::new("lane_record", lane_record, || seeds_of("lane_record/"));
/// A row of the fragment index.
pub const INDEX_ROW: Target = Target::new("index_row", index_row, || seeds_of("index_row/"));
/// The `member` file of a metadata directory.
pub const MEMBER_FILE: Target = Target::new("member_file", member_file, || seeds_of("member_file/")).mended(mend::tail);
/// A journal's region: pages, each without the zeros behind it, so a page of memory for two bytes of input.
pub const JOURNAL: Target = Target::new("journal", journal, journal_seeds)
    .mended(mend_journal)
    .allowed(4 * JOURNAL_PAGES_MAX * mend::BLOCK_BYTES, 16);
/// What an NVMe controller says of itself; pages of a drive are kept without the zeros behind them.
pub const NVME_CONTROLLER: Target =
    Target::new("nvme_controller", nvme_controller, nvme_controller_seeds).mended(whole_identify_page);
/// What an NVMe namespace says of itself.
pub const NVME_NAMESPACE: Target =
    Target::new("nvme_namespace", nvme_namespace, nvme_namespace_seeds).mended(whole_identify_page);
/// The namespaces that a controller lists.
pub const NVME_NAMESPACE_LIST: Target =
    Target::new("nvme_namespace_list", nvme_namespace_list, nvme_namespace_list_seeds).mended(whole_identify_page);
/// How a drive fares.
pub const NVME_SMART: Target = Target::new("nvme_smart", nvme_smart, nvme_smart_seeds).mended(whole_smart_page);

/// A whole device as `kiseki-devctl verify` looks at it: its superblock, a journal and the start of a zone, in pages.
pub const DEVICE_IMAGE: Target = Target::new("device_image", device_image, device_image_seeds)
    .mended(mend_device)
    .allowed(4 * fuzzing::DEVICE_SEED_LEN_BYTES, 64);

/// Pages of a fuzzed journal.
const JOURNAL_PAGES_MAX: usize = 64;

fn superblock(bytes: &[u8]) -> Verdict {
    let copies = [0, 1, 2, 3].map(|copy| Superblock::decode(bytes, copy));
    let Some(found) = copies.iter().flatten().next().cloned() else {
        let _state = SuperblockState::choose(copies);
        return Verdict::Refused;
    };
    for copy in 0..SUPERBLOCK_COPIES {
        assert_eq!(Superblock::decode(&found.encode(copy), copy).as_ref(), Ok(&found));
    }
    assert!(matches!(SuperblockState::choose(copies), SuperblockState::Present { .. }));
    let _writes = found.writes();
    // What a start does with it.
    let next = [found.generation, found.incarnation, found.metadata.epoch].map(|counter| counter.checked_add(1));
    assert!(next.iter().all(Option::is_some), "a superblock can be followed by the next one");
    check_layout(&found.layout);
    Verdict::Accepted
}

/// Every area can be asked for and lies on the device.
fn check_layout(layout: &DeviceLayout) {
    let end = layout.geometry().block_count.0;
    let last_lane = LaneId(layout.lanes() - 1);
    for (start, len) in [layout.journal_extent(last_lane), layout.zone(layout.zone_count() - 1)] {
        assert!(start.0 + len.0 <= end, "I-C8: an area leaves the device");
        assert!(len.0 > 0);
    }
    let (start, len) = layout.zone(0);
    assert_eq!(layout.zone_of(start.plus(BlockCount(len.0 - 1))), Some(0));
    assert!(layout.capacity_bytes() <= layout.geometry().len_bytes());
    assert!(layout.zones(last_lane).all(|(start, len)| start.0 + len.0 <= end));
}

fn superblock_seeds() -> Vec<Seed> {
    let seed = |len_bytes: u64, lanes, copy, members: u8| {
        let geometry = DeviceGeometry { block_len_bytes: 4096, block_count: BlockCount(len_bytes / 4096) };
        let superblock = Superblock {
            cluster: ClusterId([1; 16]),
            device: DeviceId([2; 16]),
            pool: PoolId(3),
            class: DeviceClass::Nvme,
            layout: DeviceLayout::compute(geometry, lanes).expect("the device is large enough"),
            generation: 4,
            incarnation: 5,
            metadata: MetadataEpoch { epoch: 6, members: (0..members).map(|member| MemberId([member; 16])).collect() },
        };
        mend::block_body(&superblock.encode(copy))
    };
    vec![("large", seed(8 << 30, 4, 0, 2)), ("small", seed(16 << 20, 2, 3, 0))]
}

fn probe_ends(bytes: &[u8]) -> Verdict {
    // The first bytes say how long the device is and which part of the input is its far end.
    let Some((shape, ends)) = bytes.split_first_chunk::<4>() else { return Verdict::Refused };
    let [blocks_low, blocks_high, small, cut] = *shape;
    let block_count = BlockCount(u64::from(u16::from_le_bytes([blocks_low, blocks_high])));
    let geometry = DeviceGeometry { block_len_bytes: if small & 1 == 1 { 512 } else { 4096 }, block_count };
    let (front, far) = ends.split_at(ends.len() * usize::from(cut) / 256);
    accepted(probe::probe(front, far, geometry).first())
}

fn probe_seeds() -> Vec<Seed> {
    let ends = |front: &[u8], far: &[u8]| {
        let cut = (front.len() * 256).div_ceil(front.len() + far.len());
        [&[1, 0, 1, cut as u8][..], front, far].concat()
    };
    let mut boot = vec![0x33; 510];
    boot.extend_from_slice(&[0x55, 0xaa]);
    boot.extend_from_slice(b"EFI PART");
    vec![("xfs", ends(b"XFSB\0\0\x10\0", &[0; 512])), ("boot", ends(&boot, &[0; 256]))]
}

fn fragment_header(bytes: &[u8]) -> Verdict {
    value_survives(bytes, FragmentHeader::decode, |header| header.encode(&kiseki_types::buf::plain_buffers()).to_vec())
}

fn fragment_header_seeds() -> Vec<Seed> {
    let meta = FragmentMeta {
        key: FragmentKey { locator: Locator([9; 32]), generation: Generation(7), index: 5 },
        shape: StripeShape { data: 4, parity: 2 },
        pool: PoolId(3),
        envelope_len_bytes: 300_000,
        payload_len_bytes: 77_824,
        map_epoch: MapEpoch(12),
        devices: (0..6).map(|device| DeviceId([device; 16])).collect(),
    };
    let header = FragmentHeader { meta, piece_checksums: vec![1, 2, 3] };
    vec![("wide", mend::block_body(&header.encode(&kiseki_types::buf::plain_buffers())))]
}

fn seeds_of(prefix: &str) -> Vec<Seed> {
    let own = fuzzing::seeds().into_iter();
    own.filter_map(|(name, bytes)| name.strip_prefix(prefix).map(|name| (name, bytes))).collect()
}

fn lane_record(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, fuzzing::lane_record)
}

fn index_row(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, fuzzing::index_row)
}

fn member_file(bytes: &[u8]) -> Verdict {
    bytes_survive(bytes, fuzzing::member_file)
}

fn region_of(bytes: &[u8]) -> Vec<u8> {
    let mut region = Vec::new();
    for page in mend::unpack(bytes, JOURNAL_PAGES_MAX) {
        let start = region.len();
        region.extend_from_slice(&page[..page.len().min(mend::BLOCK_BYTES)]);
        region.resize(start + mend::BLOCK_BYTES, 0);
    }
    region
}

fn journal(bytes: &[u8]) -> Verdict {
    accepted(fuzzing::journal_scan(&region_of(bytes)))
}

fn packed_region(region: &[u8]) -> Vec<u8> {
    let pages: Vec<Vec<u8>> = region.chunks(mend::BLOCK_BYTES).map(mend::without_zeros).collect();
    mend::pack(pages.iter().map(|page| &page[..]))
}

/// Offsets in `docs/formats/journal.md`: of the checksum of a region header, and of four fields of a frame header.
const REGION_SUM: usize = 96;
const FRAME_HEADER_BYTES: usize = 88;
const FRAME_PAYLOAD_LEN: usize = 56;
const FRAME_PREVIOUS_SUM: usize = 60;
const FRAME_PAYLOAD_SUM: usize = 72;
const FRAME_SUM: usize = 84;

/// Checksums of headers, of frames and of their payloads, and the chain of the frames.
fn mend_journal(bytes: &[u8]) -> Vec<u8> {
    let mut region = region_of(bytes);
    mend_region(&mut region);
    packed_region(&region)
}

fn mend_region(region: &mut [u8]) {
    let pages = region.len() / mend::BLOCK_BYTES;
    let mut previous = [0; 4];
    for page in 0..pages {
        let start = page * mend::BLOCK_BYTES;
        if region[start..].starts_with(b"KSKJHEAD") {
            let sum = kiseki_devices::crc32c(&region[start..start + REGION_SUM]);
            region[start + REGION_SUM..start + REGION_SUM + 4].copy_from_slice(&sum.to_le_bytes());
        } else if region[start..].starts_with(b"KSKJFRAM") {
            let len: [u8; 4] = region[start + FRAME_PAYLOAD_LEN..][..4].try_into().expect("four bytes");
            let payload = start + FRAME_HEADER_BYTES;
            let end = (payload + u32::from_le_bytes(len) as usize).min(region.len());
            let payload_sum = kiseki_devices::crc32c(&region[payload..end]).to_le_bytes();
            region[start + FRAME_PAYLOAD_SUM..][..4].copy_from_slice(&payload_sum);
            region[start + FRAME_PREVIOUS_SUM..][..4].copy_from_slice(&previous);
            previous = kiseki_devices::crc32c(&region[start..start + FRAME_SUM]).to_le_bytes();
            region[start + FRAME_SUM..][..4].copy_from_slice(&previous);
        }
    }
}

fn journal_seeds() -> Vec<Seed> {
    let frames: [&[&[u8]]; 4] = [&[b"first", b"second"], &[b"third"], &[b""], &[b"fifth", b"sixth"]];
    vec![
        ("four-frames", packed_region(&fuzzing::journal_region(6, &frames))),
        ("empty", packed_region(&fuzzing::journal_region(4, &[]))),
    ]
}

fn padded(bytes: &[u8], len_bytes: usize) -> Vec<u8> {
    let mut page = bytes[..bytes.len().min(len_bytes)].to_vec();
    page.resize(len_bytes, 0);
    page
}

fn whole_identify_page(bytes: &[u8]) -> Vec<u8> {
    padded(bytes, IDENTIFY_LEN_BYTES)
}

fn whole_smart_page(bytes: &[u8]) -> Vec<u8> {
    padded(bytes, SMART_LEN_BYTES)
}

/// A page with some fields set.
fn page_with(fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut page = vec![0; IDENTIFY_LEN_BYTES];
    fields.iter().for_each(|(offset, bytes)| page[*offset..*offset + bytes.len()].copy_from_slice(bytes));
    mend::without_zeros(&page)
}

/// Nothing of a drive's texts can move a terminal's cursor or grow.
fn check_text(text: &str, len_bytes_max: usize) {
    assert!(text.len() <= len_bytes_max && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text:?}");
}

fn nvme_controller(bytes: &[u8]) -> Verdict {
    let Ok(found) = ControllerIdentity::parse(bytes) else { return Verdict::Refused };
    check_text(&found.serial, 20);
    check_text(&found.model, 40);
    check_text(&found.firmware, 8);
    // What the passthrough device cuts its commands by.
    assert!(found.transfer_len_bytes_max.is_none_or(|len| len.is_power_of_two() && len >= 8192));
    assert!(found.atomic_blocks > 0 && found.atomic_blocks_power_fail > 0);
    Verdict::Accepted
}

fn nvme_controller_seeds() -> Vec<Seed> {
    let serial: (usize, &[u8]) = (4, b"S64H1               ");
    let model: (usize, &[u8]) = (24, b"ACME Fast Drive");
    let limits: (usize, &[u8]) = (77, &[7]);
    let features: (usize, &[u8]) = (520, &[0x8c, 0, 0, 0, 1, 1, 127, 0, 31, 0]);
    vec![("drive", page_with(&[serial, model, limits, features])), ("bare", page_with(&[(0, &[1])]))]
}

fn nvme_namespace(bytes: &[u8]) -> Verdict {
    let Ok(found) = NamespaceIdentity::parse(bytes) else { return Verdict::Refused };
    assert!(found.block_count > 0 && found.len_bytes() <= i64::MAX as u64);
    assert!(found.capacity_blocks <= found.block_count && found.used_blocks <= found.block_count);
    assert!(found.formats.contains(&found.format) && found.formats.len() <= 64);
    assert!(found.preferred_format().is_none_or(|best| found.formats.contains(&best) && best.metadata_len_bytes == 0));
    assert!(found.boundary_blocks.is_none_or(|blocks| blocks > 0));
    Verdict::Accepted
}

fn nvme_namespace_seeds() -> Vec<Seed> {
    let blocks: (usize, &[u8]) = (0, &[0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0]);
    let two: (usize, &[u8]) = (24, &[0x12, 1, 1]);
    let formats: (usize, &[u8]) = (128, &[0, 0, 9, 2, 0, 0, 12, 0]);
    let many: Vec<u8> = (0..33).flat_map(|_| [0, 0, 9, 0]).collect();
    vec![
        ("two-formats", page_with(&[blocks, two, formats, (104, &[9; 24])])),
        ("many-formats", page_with(&[blocks, (25, &[32, 0x40]), (128, &many)])),
    ]
}

fn nvme_namespace_list(bytes: &[u8]) -> Verdict {
    let Ok(found) = identify::parse_namespace_list(bytes) else { return Verdict::Refused };
    assert!(found.len() <= IDENTIFY_LEN_BYTES / 4 && found.windows(2).all(|pair| pair[0] < pair[1]));
    Verdict::Accepted
}

fn nvme_namespace_list_seeds() -> Vec<Seed> {
    vec![("two", page_with(&[(0, &[1, 0, 0, 0, 3])]))]
}

fn nvme_smart(bytes: &[u8]) -> Verdict {
    let Ok(found) = SmartLog::parse(bytes) else { return Verdict::Refused };
    let (_texts, _temperature) = (found.critical.texts(), found.temperature_celsius());
    assert!(found.bytes_written() >= found.data_units_written && found.bytes_read() >= found.data_units_read);
    Verdict::Accepted
}

fn nvme_smart_seeds() -> Vec<Seed> {
    vec![("worn", page_with(&[(0, &[0x19, 0x43, 1, 97, 10, 91]), (48, &[1, 2, 3]), (160, &[0xff; 16])]))]
}

/// The device that an input describes: pages of the seed's three parts, each without the zeros behind it.
fn device_of(bytes: &[u8]) -> Vec<u8> {
    let mut device = vec![0; fuzzing::DEVICE_SEED_LEN_BYTES];
    let seed = fuzzing::device_seed();
    let pages = seed.iter().flat_map(|(at, part)| (*at..at + part.len()).step_by(mend::BLOCK_BYTES));
    for (at, page) in pages.zip(mend::unpack(bytes, usize::MAX)) {
        let len = page.len().min(mend::BLOCK_BYTES);
        device[at..at + len].copy_from_slice(&page[..len]);
    }
    device
}

fn packed_device(device: &[u8]) -> Vec<u8> {
    let seed = fuzzing::device_seed();
    let parts = seed.iter().map(|(at, part)| &device[*at..at + part.len()]);
    let pages: Vec<Vec<u8>> = parts.flat_map(|part| part.chunks(mend::BLOCK_BYTES)).map(mend::without_zeros).collect();
    mend::pack(pages.iter().map(|page| &page[..]))
}

fn device_image(bytes: &[u8]) -> Verdict {
    accepted(fuzzing::device_image(device_of(bytes)))
}

/// The checksum of the superblock, of the journal, and of every fragment's header.
fn mend_device(bytes: &[u8]) -> Vec<u8> {
    let mut device = device_of(bytes);
    let [(superblock, _), (journal, region), (zone, _)] = fuzzing::device_seed();
    let page = mend::block(&device[superblock..][..mend::BLOCK_BYTES]);
    device[superblock..][..mend::BLOCK_BYTES].copy_from_slice(&page);
    mend_region(&mut device[journal..][..region.len()]);
    for page in device[zone..].chunks_mut(mend::BLOCK_BYTES).filter(|page| page.starts_with(b"KSKFRAGM")) {
        let mended = mend::block(page);
        page.copy_from_slice(&mended);
    }
    packed_device(&device)
}

fn device_image_seeds() -> Vec<Seed> {
    let mut device = vec![0; fuzzing::DEVICE_SEED_LEN_BYTES];
    for (at, part) in fuzzing::device_seed() {
        device[at..at + part.len()].copy_from_slice(&part);
    }
    vec![("two-fragments", packed_device(&device))]
}
