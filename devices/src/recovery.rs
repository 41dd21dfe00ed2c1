//! Opening this core's lanes on a device: rows of the table, then what the journal says after them.
//!
//! The table may be ahead of "folded through" (its rows become durable in the background), so a replay does not apply
//! record after record to it: the journal alone decides about every block that its records touch, and the table about
//! all others.

use crate::flush_gate::FlushGate;
use crate::fragment_header::{FragmentHeader, PIECE_LEN_BYTES};
use crate::fragment_store::{DeviceOnCore, DeviceReport, OwnLane, folded_key, is_fragment};
use crate::history::{History, decode_records};
use crate::index::{TABLE_EXTENTS, TABLE_META, decode_row, encode_row, extent_row_key, write};
use crate::journal::{self, JournalConfig, LaneJournal, MirrorContent, MirrorRegion};
use crate::lane::{LaneOnDevice, lane_journal_id};
use crate::zones::Zones;
use kiseki_types::buf::{BufferSource, IoBuf, plain_buffers};
use kiseki_types::device::Device;
use kiseki_types::fragment::StoredFragment;
use kiseki_types::journal::{ReplayedRecord, Sequence};
use kiseki_types::limits::FRAGMENT_HEADER_BYTES;
use kiseki_types::runtime::Ports;
use kiseki_types::table::{Direction, Scan, TableError, TableStore, TableWrite, prefix_end};
use kiseki_types::{BlockCount, BlockIndex, DeviceId, LaneId};
use std::ops::Bound;
use std::rc::Rc;

/// Rows that one scan of a table takes.
const SCAN_ROWS: usize = 1024;

/// Why a lane on a device can't be used; the device then counts as failed.
type Problem = String;

/// What a lane opens with.
enum LaneFailure {
    /// The device's fault.
    Device(Problem),
    /// The lane's table can't be read: the node can't go on.
    Table(TableError),
}

impl From<TableError> for LaneFailure {
    fn from(error: TableError) -> LaneFailure {
        LaneFailure::Table(error)
    }
}

/// Formats the journal of every lane on a device, as `kiseki-devctl format` does after the superblock's layout is
/// decided and before the superblock is written.
pub async fn format_journals(
    ports: &Ports,
    id: DeviceId,
    name: &str,
    layout: &crate::layout::DeviceLayout,
    device: &Rc<dyn Device>,
) -> Result<(), journal::JournalOpenError> {
    for lane in (0..layout.lanes()).map(LaneId) {
        format_journal(ports, id, name, layout, device, lane).await?;
    }
    Ok(())
}

/// Formats the journal of one lane: zeros, then its header.
pub(crate) async fn format_journal(
    ports: &Ports,
    id: DeviceId,
    name: &str,
    layout: &crate::layout::DeviceLayout,
    device: &Rc<dyn Device>,
    lane: LaneId,
) -> Result<(), journal::JournalOpenError> {
    let gate = FlushGate::new(ports.clone(), device.clone());
    let (start, len) = layout.journal_extent(lane);
    let region = MirrorRegion { device: device.clone(), gate, start, len, content: MirrorContent::Refill };
    journal::format(&journal_config(ports, &plain_buffers(), id, name, lane, region)).await
}

fn journal_config(
    ports: &Ports,
    buffers: &BufferSource,
    id: DeviceId,
    name: &str,
    lane: LaneId,
    region: MirrorRegion,
) -> JournalConfig {
    JournalConfig {
        name: format!("of lane {lane} on {name}"),
        id: lane_journal_id(id, lane),
        ports: ports.clone(),
        buffers: buffers.clone(),
        mirrors: vec![region],
        // The journal has fenced the device's gate already, and the gate tells the store.
        on_mirror_failed: Rc::new(|_, _| Box::pin(async { Ok(()) })),
    }
}

/// Opens all own lanes on `device`. A problem with one of them fences the device: no part of it is trusted then.
pub(crate) async fn open_device<'a>(
    ports: &Ports,
    buffers: &BufferSource,
    lanes: impl Iterator<Item = (LaneId, &'a Rc<dyn TableStore>)>,
    device: &mut DeviceOnCore,
) -> Result<DeviceReport, TableError> {
    let mut report = DeviceReport {
        device: device.id,
        name: device.name.clone(),
        fragments: 0,
        replayed: 0,
        disbelieved: 0,
        problem: None,
    };
    for (lane, table) in lanes {
        let own = OwnLane { lane, table: table.clone() };
        match open_lane(ports, buffers, &own, device, &mut report).await {
            Ok(opened) => {
                report.fragments += opened.zones.borrow().used().count() as u64;
                device.lanes.insert(lane, opened);
            }
            Err(LaneFailure::Table(error)) => return Err(error),
            Err(LaneFailure::Device(problem)) => {
                device.gate.fence(&problem);
                report.problem = Some(problem);
                break;
            }
        }
    }
    Ok(report)
}

async fn open_lane(
    ports: &Ports,
    buffers: &BufferSource,
    own: &OwnLane,
    device: &DeviceOnCore,
    report: &mut DeviceReport,
) -> Result<LaneOnDevice, LaneFailure> {
    let folded = read_folded(own, device.id).await?;
    let (journal, records) = open_journal(ports, buffers, own.lane, device).await?;
    if journal.trimmed_through() > folded {
        // A lost file is lost, never new: its extents would be given out again.
        return Err(LaneFailure::Device(format!(
            "the table file of lane {} says that the journal is folded through {folded}, the journal gave up everything \
             through {}: the file was lost or is an old one; rebuild the index: stop the node and run \
             `kiseki-devctl verify --rebuild-index --write --dir DIR`",
            own.lane,
            journal.trimmed_through()
        )));
    }
    let records = decode_records(device.id, &device.layout, own.lane, folded, &records).map_err(|broken| {
        LaneFailure::Device(format!(
            "record {} in the journal of lane {} makes no sense: {}",
            broken.sequence, own.lane, broken.reason
        ))
    })?;
    report.replayed += records.len() as u64;
    let mut history = History::of(records);
    report.disbelieved += disbelieve(&mut history, device).await;
    let mut zones = Zones::new(device.layout.zones(own.lane));
    let mut writes = keep_untouched_rows(own, device, &history, &mut zones).await?;
    for fragment in history.live() {
        zones.mark_used(fragment.extent.start, fragment.extent.len).map_err(|error| {
            LaneFailure::Device(format!("the journal of lane {} contradicts itself: {error}", own.lane))
        })?;
        let key = extent_row_key(device.id, fragment.extent.start);
        writes.push(write(TABLE_EXTENTS, key, Some(encode_row(fragment))));
    }
    own.table.write(writes);
    Ok(LaneOnDevice::new(own.lane, zones, journal, folded, history.recovered()))
}

async fn read_folded(own: &OwnLane, device: DeviceId) -> Result<Sequence, LaneFailure> {
    let Some(value) = own.table.get(0, TABLE_META, &folded_key(device)).await? else { return Ok(0) };
    let value: [u8; 8] =
        value.try_into().map_err(|_| crate::index::damaged_row("the folded sequence is not eight bytes"))?;
    Ok(Sequence::from_le_bytes(value))
}

async fn open_journal(
    ports: &Ports,
    buffers: &BufferSource,
    lane: LaneId,
    device: &DeviceOnCore,
) -> Result<(Rc<LaneJournal>, Vec<ReplayedRecord>), LaneFailure> {
    let (start, len) = device.layout.journal_extent(lane);
    let region = MirrorRegion {
        device: device.device.clone(),
        gate: device.gate.clone(),
        start,
        len,
        content: MirrorContent::Member,
    };
    let config = journal_config(ports, buffers, device.id, &device.name, lane, region);
    match journal::open(config).await {
        Ok((journal, records, _)) => Ok((journal, records)),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            Err(LaneFailure::Device(format!(
                "{error}{cause}; nothing is written or read there until its headers are scanned or it is formatted again"
            )))
        }
    }
}

/// Drops allocations whose record was not flushed and whose fragment does not verify: they were never acknowledged. The
/// others are news for the index lanes.
async fn disbelieve(history: &mut History, device: &DeviceOnCore) -> u64 {
    let mut dropped = Vec::new();
    for fragment in history.unproven() {
        if !verify_fragment(&device.device, &fragment).await {
            dropped.push(fragment.extent.start.0);
        }
    }
    history.disbelieve(&dropped);
    dropped.len() as u64
}

/// Marks the extents of all rows that the journal does not speak about; returns the removal of the others.
async fn keep_untouched_rows(
    own: &OwnLane,
    device: &DeviceOnCore,
    history: &History,
    zones: &mut Zones,
) -> Result<Vec<TableWrite>, LaneFailure> {
    let mut stale = Vec::new();
    let mut from = Bound::Included(device.id.0.to_vec());
    loop {
        let rows = own.table.scan(row_scan(device.id, from)).await?;
        for (key, value) in &rows {
            let row = decode_row(device.id, value).map_err(|error| crate::index::damaged_row(&error.to_string()))?;
            let (start, end) = (row.extent.start.0, row.extent.end().0);
            if history.touching(start, end).is_some() {
                stale.push(write(TABLE_EXTENTS, key.clone(), None));
            } else {
                zones.mark_used(row.extent.start, row.extent.len).map_err(|error| {
                    LaneFailure::Device(format!("the table of lane {} contradicts itself: {error}", own.lane))
                })?;
            }
        }
        match rows.last() {
            Some((key, _)) if rows.len() == SCAN_ROWS => from = Bound::Excluded(key.clone()),
            _ => return Ok(stale),
        }
    }
}

fn row_scan(device: DeviceId, from: Bound<Vec<u8>>) -> Scan {
    Scan {
        file: 0,
        table: TABLE_EXTENTS,
        from,
        to: prefix_end(&device.0),
        limit: SCAN_ROWS,
        direction: Direction::Forward,
    }
}

/// Whether the device holds exactly this fragment, every piece of it intact.
pub(crate) async fn verify_fragment(device: &Rc<dyn Device>, fragment: &StoredFragment) -> bool {
    match read_fragment(device, fragment.extent.start).await {
        Ok(Some((header, true))) => is_fragment(&header, fragment),
        _ => false,
    }
}

/// The header at `start`, if there is one, and whether its whole payload is intact.
pub(crate) async fn read_fragment(
    device: &Rc<dyn Device>,
    start: BlockIndex,
) -> std::io::Result<Option<(FragmentHeader, bool)>> {
    let block = device.read(start, IoBuf::zeroed(FRAGMENT_HEADER_BYTES)).await?;
    let Ok(header) = FragmentHeader::decode(&block) else { return Ok(None) };
    let geometry = device.geometry();
    let first = start.plus(BlockCount((FRAGMENT_HEADER_BYTES / geometry.block_len_bytes as usize) as u64));
    let len = BlockCount::holding(u64::from(header.meta.payload_len_bytes), geometry.block_len_bytes);
    if first.plus(len).0 > geometry.block_count.0 {
        return Ok(Some((header, false)));
    }
    let payload = device.read(first, IoBuf::zeroed(header.meta.payload_len_bytes as usize)).await?;
    let pieces = payload.len().div_ceil(PIECE_LEN_BYTES);
    let is_intact = pieces == header.piece_checksums.len() && header.pieces_match(0, &payload);
    Ok(Some((header, is_intact)))
}
