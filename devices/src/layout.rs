//! How a device is divided: superblock copies at both ends, a journal per lane, zones dealt to lanes.
//!
//! ```text
//! | copy 0 | copy 1 | reserved | journal l0 | journal l1 | .. | zone 0 (l0) | zone 1 (l1) | .. | reserved | copy 2 | copy 3 |
//! ```
//!
//! [`DeviceLayout::compute`] decides once, at format. The result is stored in the superblock and from then on read from
//! there, so that other constants in a later release never move anything. Bytes: `docs/formats/device.md`.

use crate::error::DeviceError;
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::device::DeviceGeometry;
use kiseki_types::limits::{DEVICE_BLOCK_BYTES_MAX, DEVICE_BLOCK_BYTES_MIN, LANES_MAX};
use kiseki_types::{BlockCount, BlockIndex, LaneId};

/// Bytes of one copy of the superblock.
pub const SUPERBLOCK_LEN_BYTES: usize = 4096;

/// Copies of the superblock: two in front, two at the end.
pub const SUPERBLOCK_COPIES: usize = 4;

/// Bytes kept for superblocks at each end of a device below [`COARSE_DEVICE_LEN_BYTES_MIN`], and always at the far end.
const END_LEN_BYTES: u64 = 64 * 1024;

/// From this size on areas start at multiples of [`COARSE_ALIGN_BYTES`], which flash likes.
const COARSE_DEVICE_LEN_BYTES_MIN: u64 = 1 << 30;
const COARSE_ALIGN_BYTES: u64 = 1 << 20;
const FINE_ALIGN_BYTES: u64 = DEVICE_BLOCK_BYTES_MAX as u64;

/// A lane's journal takes this share of the device (8 MiB of 8 GiB)...
const JOURNAL_SHARE: u64 = 1024;
/// ...unless all lanes together would take more than this share...
const JOURNALS_SHARE_MAX: u64 = 32;
/// ...and within these bounds: room for some thousand records, and a bounded replay.
pub const JOURNAL_LEN_BYTES_MIN: u64 = 128 * 1024;
/// Longest journal of one lane on one device.
pub const JOURNAL_LEN_BYTES_MAX: u64 = 64 << 20;

/// Zones are at least this long where the device allows two of them per lane: the longest fragment fits.
const ZONE_LEN_BYTES_SMALL: u64 = 8 << 20;
/// What zones are on an ordinary device.
const ZONE_LEN_BYTES_USUAL: u64 = 64 << 20;
/// Shortest zone; below that the device is too small.
const ZONE_LEN_BYTES_MIN: u64 = 512 * 1024;
/// A small device prefers up to this many zones per lane over usual ones.
const ZONES_PER_LANE_SMALL: u64 = 16;
/// Most zones per lane; on larger devices zones are longer.
const ZONES_PER_LANE_MAX: u64 = 16 * 1024;

const _: () = assert!(SUPERBLOCK_LEN_BYTES.is_multiple_of(DEVICE_BLOCK_BYTES_MAX));
const _: () = assert!(END_LEN_BYTES >= 2 * SUPERBLOCK_LEN_BYTES as u64);

/// Division of one device. Every area starts and ends on a multiple of 4096 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLayout {
    geometry: DeviceGeometry,
    lanes: u16,
    journals_start: BlockIndex,
    journal_len: BlockCount,
    zones_start: BlockIndex,
    zone_len: BlockCount,
    zones_per_lane: u32,
}

impl DeviceLayout {
    /// Divides a device among `lanes` lanes.
    ///
    /// Errors: `BlockLen`, `Lanes`, or `TooSmall` with the bytes that would do.
    pub fn compute(geometry: DeviceGeometry, lanes: u16) -> Result<DeviceLayout, DeviceError> {
        check_geometry(geometry)?;
        if lanes == 0 || lanes > LANES_MAX {
            return Err(DeviceError::Lanes { lanes, limit: LANES_MAX });
        }
        let len = geometry.len_bytes();
        let align = if len >= COARSE_DEVICE_LEN_BYTES_MIN { COARSE_ALIGN_BYTES } else { FINE_ALIGN_BYTES };
        let lane_count = u64::from(lanes);
        let journal_len = (len / JOURNAL_SHARE)
            .min(len / JOURNALS_SHARE_MAX / lane_count)
            .clamp(JOURNAL_LEN_BYTES_MIN, JOURNAL_LEN_BYTES_MAX)
            .next_multiple_of(align);
        let journals_start = align.max(END_LEN_BYTES);
        let zones_start = journals_start + journal_len * lane_count;
        let zones_end = align_down(len, FINE_ALIGN_BYTES).saturating_sub(END_LEN_BYTES);
        let per_lane = zones_end.saturating_sub(zones_start) / lane_count;
        if per_lane < ZONE_LEN_BYTES_MIN {
            let needed_bytes = zones_start + ZONE_LEN_BYTES_MIN * lane_count + END_LEN_BYTES;
            return Err(DeviceError::TooSmall { len_bytes: len, lanes, needed_bytes });
        }
        let small = (per_lane / ZONE_LEN_BYTES_SMALL).clamp(1, ZONES_PER_LANE_SMALL);
        let zones_per_lane = (per_lane / ZONE_LEN_BYTES_USUAL).clamp(small, ZONES_PER_LANE_MAX);
        let zone_len = align_down(per_lane / zones_per_lane, align);
        let block = u64::from(geometry.block_len_bytes);
        DeviceLayout {
            geometry,
            lanes,
            journals_start: BlockIndex(journals_start / block),
            journal_len: BlockCount(journal_len / block),
            zones_start: BlockIndex(zones_start / block),
            zone_len: BlockCount(zone_len / block),
            zones_per_lane: u32::try_from(zones_per_lane).expect("bounded by ZONES_PER_LANE_MAX"),
        }
        .checked()
    }

    /// The layout if its areas lie in order inside the device, aligned to 4096 bytes.
    fn checked(self) -> Result<DeviceLayout, DeviceError> {
        check_geometry(self.geometry)?;
        if self.lanes == 0 || self.lanes > LANES_MAX {
            return Err(DeviceError::Lanes { lanes: self.lanes, limit: LANES_MAX });
        }
        let unit = FINE_ALIGN_BYTES / u64::from(self.geometry.block_len_bytes);
        let areas = [self.journals_start.0, self.journal_len.0, self.zones_start.0, self.zone_len.0];
        if areas.iter().any(|blocks| *blocks == 0 || !blocks.is_multiple_of(unit)) {
            return Err(DeviceError::Layout { reason: "an area is empty or not aligned to 4096 bytes" });
        }
        if self.zones_per_lane == 0 || u64::from(self.zones_per_lane) > ZONES_PER_LANE_MAX {
            return Err(DeviceError::Layout { reason: "the number of zones is out of range" });
        }
        let end_blocks = 2 * unit; // two copies
        let ends_at =
            |start: u64, count: u64, each: u64| count.checked_mul(each).and_then(|len| start.checked_add(len));
        let journals_end = ends_at(self.journals_start.0, u64::from(self.lanes), self.journal_len.0);
        let zones_end = ends_at(self.zones_start.0, u64::from(self.zone_count()), self.zone_len.0);
        let last = align_down(self.geometry.block_count.0, unit).saturating_sub(end_blocks);
        match (journals_end, zones_end) {
            (Some(journals_end), Some(zones_end))
                if self.journals_start.0 >= end_blocks && journals_end <= self.zones_start.0 && zones_end <= last =>
            {
                Ok(self)
            }
            _ => Err(DeviceError::Layout { reason: "areas overlap or leave the device" }),
        }
    }

    /// Shape of the device when it was formatted.
    #[must_use]
    pub fn geometry(&self) -> DeviceGeometry {
        self.geometry
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_len_bytes(&self) -> u32 {
        self.geometry.block_len_bytes
    }

    /// Number of lanes.
    #[must_use]
    pub fn lanes(&self) -> u16 {
        self.lanes
    }

    /// Where a lane's journal lies. Panics when the device has no such lane: that is our own bug.
    #[must_use]
    pub fn journal_extent(&self, lane: LaneId) -> (BlockIndex, BlockCount) {
        self.assert_lane(lane);
        let start = self.journals_start.plus(BlockCount(u64::from(lane.0) * self.journal_len.0));
        (start, self.journal_len)
    }

    /// Number of zones on the device.
    #[must_use]
    pub fn zone_count(&self) -> u32 {
        self.zones_per_lane * u32::from(self.lanes)
    }

    /// Number of zones of each lane.
    #[must_use]
    pub fn zones_per_lane(&self) -> u32 {
        self.zones_per_lane
    }

    /// Length of every zone.
    #[must_use]
    pub fn zone_len(&self) -> BlockCount {
        self.zone_len
    }

    /// Where zone `zone` (0..zone_count) lies.
    #[must_use]
    pub fn zone(&self, zone: u32) -> (BlockIndex, BlockCount) {
        assert!(zone < self.zone_count(), "zone {zone} of {}", self.zone_count());
        (self.zones_start.plus(BlockCount(u64::from(zone) * self.zone_len.0)), self.zone_len)
    }

    /// The lane that a zone belongs to: they are dealt round robin.
    #[must_use]
    pub fn lane_of_zone(&self, zone: u32) -> LaneId {
        LaneId(u16::try_from(zone % u32::from(self.lanes)).expect("below the number of lanes"))
    }

    /// The zone that holds a block; `None` for superblocks, journals and reserved space.
    #[must_use]
    pub fn zone_of(&self, block: BlockIndex) -> Option<u32> {
        let zone = block.0.checked_sub(self.zones_start.0)? / self.zone_len.0;
        u32::try_from(zone).ok().filter(|zone| *zone < self.zone_count())
    }

    /// The zones of one lane, in the order of their places.
    pub fn zones(&self, lane: LaneId) -> impl Iterator<Item = (BlockIndex, BlockCount)> + use<> {
        self.assert_lane(lane);
        let layout = *self;
        (0..self.zones_per_lane).map(move |turn| layout.zone(turn * u32::from(layout.lanes) + u32::from(lane.0)))
    }

    /// Bytes that zones hold, of all lanes: headers and payloads share them.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        u64::from(self.zone_count()) * self.zone_len.0 * u64::from(self.geometry.block_len_bytes)
    }

    /// Byte offsets of the superblock copies on a device of `geometry`.
    #[must_use]
    pub fn superblock_offsets(geometry: DeviceGeometry) -> [u64; SUPERBLOCK_COPIES] {
        let copy = SUPERBLOCK_LEN_BYTES as u64;
        let end = align_down(geometry.len_bytes(), FINE_ALIGN_BYTES);
        [0, copy, end.saturating_sub(2 * copy), end.saturating_sub(copy)]
    }

    pub(crate) fn encode(&self, writer: &mut Writer) {
        writer
            .u32(self.geometry.block_len_bytes)
            .u64(self.geometry.block_count.0)
            .u16(self.lanes)
            .u64(self.journals_start.0)
            .u64(self.journal_len.0)
            .u64(self.zones_start.0)
            .u64(self.zone_len.0)
            .u32(self.zones_per_lane);
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<DeviceLayout, CodecError> {
        let block_len_bytes = reader.u32()?;
        let block_count = BlockCount(reader.u64()?);
        let layout = DeviceLayout {
            geometry: DeviceGeometry { block_len_bytes, block_count },
            lanes: reader.u16()?,
            journals_start: BlockIndex(reader.u64()?),
            journal_len: BlockCount(reader.u64()?),
            zones_start: BlockIndex(reader.u64()?),
            zone_len: BlockCount(reader.u64()?),
            zones_per_lane: reader.u32()?,
        };
        layout.checked().map_err(|_| CodecError::Unknown { what: "layout of a device", value: block_count.0 })
    }

    fn assert_lane(&self, lane: LaneId) {
        assert!(lane.0 < self.lanes, "lane {lane} on a device with {} lanes", self.lanes);
    }
}

fn check_geometry(geometry: DeviceGeometry) -> Result<(), DeviceError> {
    let block = geometry.block_len_bytes;
    if ![DEVICE_BLOCK_BYTES_MIN as u32, DEVICE_BLOCK_BYTES_MAX as u32].contains(&block) {
        return Err(DeviceError::BlockLen { device: "the device".to_owned(), block_len_bytes: block });
    }
    match geometry.block_count.0.checked_mul(u64::from(block)) {
        Some(_) => Ok(()),
        None => Err(DeviceError::Layout { reason: "the device's length does not fit into 64 bits" }),
    }
}

fn align_down(value: u64, unit: u64) -> u64 {
    value - value % unit
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn geometry(len_bytes: u64, block_len_bytes: u32) -> DeviceGeometry {
        DeviceGeometry { block_len_bytes, block_count: BlockCount(len_bytes / u64::from(block_len_bytes)) }
    }

    /// All areas of a layout in blocks, as (start, end).
    fn areas(layout: &DeviceLayout) -> Vec<(u64, u64)> {
        let block = u64::from(layout.block_len_bytes());
        let copies = DeviceLayout::superblock_offsets(layout.geometry());
        let mut areas: Vec<(u64, u64)> =
            copies.iter().map(|offset| (offset / block, (offset + SUPERBLOCK_LEN_BYTES as u64) / block)).collect();
        for lane in (0..layout.lanes()).map(LaneId) {
            let extents = layout.zones(lane).chain([layout.journal_extent(lane)]);
            areas.extend(extents.map(|(start, len)| (start.0, start.0 + len.0)));
        }
        areas.sort_unstable();
        areas
    }

    #[test]
    fn usual_sizes_get_sensible_areas() {
        // (device bytes, lanes, journal bytes per lane, zone bytes at most, zones per lane at least)
        for (len, lanes, journal, zone_max, zones_min) in [
            (16 << 20, 4, 128 << 10, 4 << 20, 1),
            (64 << 20, 4, 128 << 10, 16 << 20, 1),
            (1 << 30, 4, 1 << 20, 64 << 20, 16),
            (8 << 30, 4, 8 << 20, 128 << 20, 31),
            (16 << 40, 4, 64 << 20, 512 << 20, 16 * 1024),
        ] {
            let layout = DeviceLayout::compute(geometry(len, 4096), lanes).unwrap();
            assert_eq!(layout.journal_extent(LaneId(0)).1.0 * 4096, journal, "journal of {len}");
            assert!(layout.zone_len().0 * 4096 <= zone_max, "zone of {len}: {layout:?}");
            assert!(layout.zones_per_lane() >= zones_min, "zones of {len}: {layout:?}");
            assert!(layout.capacity_bytes() > len / 10 * 9, "capacity of {len}: {layout:?}");
        }
    }

    #[test]
    fn too_small_says_what_would_do() {
        let Err(DeviceError::TooSmall { needed_bytes, .. }) = DeviceLayout::compute(geometry(1 << 20, 4096), 4) else {
            panic!("1 MiB is too small for 4 lanes");
        };
        DeviceLayout::compute(geometry(needed_bytes, 4096), 4).unwrap();
    }

    proptest! {
        #[test]
        fn i_c8_areas_never_overlap_and_stay_inside(
            len_4k in 256u64..(1 << 28), lanes in 1u16..=256, small in any::<bool>(),
        ) {
            let geometry = geometry(len_4k * 4096, if small { 512 } else { 4096 });
            let Ok(layout) = DeviceLayout::compute(geometry, lanes) else { return Ok(()) };
            let mut end = 0;
            for (start, until) in areas(&layout) {
                prop_assert!(start >= end && start < until, "I-C8: {layout:?}");
                end = until;
            }
            prop_assert!(end <= geometry.block_count.0);
            for zone in [0, layout.zone_count() / 2, layout.zone_count() - 1] {
                let (start, len) = layout.zone(zone);
                prop_assert_eq!(layout.zone_of(start), Some(zone));
                prop_assert_eq!(layout.zone_of(BlockIndex(start.0 + len.0 - 1)), Some(zone));
                prop_assert!(layout.zones(layout.lane_of_zone(zone)).any(|(first, _)| first == start));
            }
        }

        #[test]
        fn random_bytes_never_decode_into_overlapping_areas(bytes in prop::collection::vec(any::<u8>(), 50)) {
            if let Ok(layout) = DeviceLayout::decode(&mut Reader::new("test", &bytes)) {
                prop_assert!(layout.zone_count() > 0);
            }
        }
    }

    #[test]
    fn what_is_encoded_decodes_and_damage_is_refused() {
        let layout = DeviceLayout::compute(geometry(64 << 20, 4096), 4).unwrap();
        let mut writer = Writer::new();
        layout.encode(&mut writer);
        let bytes = writer.finish();
        assert_eq!(DeviceLayout::decode(&mut Reader::new("test", &bytes)).unwrap(), layout);
        let mut overlapping = bytes.clone();
        overlapping[14..22].copy_from_slice(&0u64.to_le_bytes()); // journals on top of the superblock
        DeviceLayout::decode(&mut Reader::new("test", &overlapping)).unwrap_err();
    }
}
