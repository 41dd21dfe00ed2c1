//! The index rows of a device made anew from its bytes alone, compared with a node's lane tables, and put in their place.
//!
//! **What the bytes say.** Records that a journal still holds decide about every block they touch: allocated and (where
//! the record was not flushed) verified means a row, released means none. Everything else was folded into the tables and
//! trimmed, so only the zones speak: a fragment that verifies gets a row.
//!
//! **What they can't say.** A fragment whose release was folded and trimmed, and which nothing has overwritten, looks like
//! one that is used, and gets a row as well. That is safe, and the next start of the node takes it out:
//! - Its generation is gone (the usual case): generations are never reused, so no home knows it and no delta can name it.
//!   The orphan search of every start asks the homes and frees it.
//! - Its generation lives, because repair or evacuation moved this fragment elsewhere: its bytes are still the right ones
//!   (a generation is sealed and encoded once, and every piece is checked). The node has met this before: it is a device
//!   that came back after its fragments were rebuilt. The walk of every start finds a stripe that is not whole (too many
//!   fragments) and repair frees the surplus, keeping one of each index, each on a device of its own (I-D4).
//!
//! Nothing that was released can so be named again (I-C2): rows are no references, homes and deltas are.
//!
//! **The other way round** nothing may be missing: a used extent without a row would be given out again (I-C8). A used
//! fragment fails to get a row only if its header is gone, and then it is lost already and repair rebuilds it. One with an
//! intact header and damaged payload keeps its row: reads use its good pieces, repair replaces it.
//!
//! Two fragments can't hold the same blocks: intact ones never overlap (a scan skips what an intact one covers), and a
//! damaged one gives way to any other. Of two of one key on the device one row remains, the journal's if it has one; the
//! other's blocks are free, since no table could name both and its blocks would be lost for good.
//!
//! **What such an index is no proof of**: that a write was flushed. Of the writes that the last, torn frame of a journal
//! names, those whose fragments are whole get rows like any others. So each lane notes, with the rows, the incarnation of
//! the journal that they were made beside; until the next start raises it, `verify` does not go by the rows there.
//!
//! **Writing** ([`replace_rows`]) is safe to cut off: "folded through" of the devices goes first, durably, so that a node
//! refuses what is half done; then all rows of all lanes; then "folded through" again, as far as each journal was trimmed.
//! The start that follows replays the journals over the rows as after any crash.

use crate::fragment_store::folded_key;
use crate::index::{
    REBUILT_PREFIX, TABLE_EXTENTS, TABLE_FRAGMENTS, TABLE_META, damaged_row, decode_row, encode_row, extent_row_key,
    fragment_row_key, rebuilt_key, write,
};
use crate::verify::Verdict;
use kiseki_types::fragment::{FragmentKey, StoredFragment};
use kiseki_types::journal::Sequence;
use kiseki_types::table::{Direction, Row, Scan, TableError, TableId, TableStore, TableWrite};
use kiseki_types::{BlockIndex, ClusterId, DeviceId, LaneId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;

/// Rows that one scan or write of a table takes.
const BATCH_ROWS: usize = 4096;

/// Rows that may be written and not durable yet, of all tables: a checkpoint costs a commit and a flush in every metadata
/// directory, and some hundred bytes of memory a row are cheap.
const OVERLAY_ROWS_MAX: usize = 512 * 1024;

/// A lane's table file.
pub type LaneTable = (LaneId, Rc<dyn TableStore>);

/// What a node's lane tables say about its devices.
#[derive(Debug, Default)]
pub struct NodeRows {
    /// Extents by device and first block, and the lane whose table has the row.
    extents: BTreeMap<DeviceId, BTreeMap<u64, (LaneId, StoredFragment)>>,
    /// Rows that answer where fragments lie, by device.
    fragments: BTreeMap<DeviceId, Vec<StoredFragment>>,
    /// "Folded through" of each lane on each device.
    folded: BTreeMap<(DeviceId, LaneId), Sequence>,
    /// Where the rows were made anew from the bytes: the incarnation of the lane's journal then.
    made_anew: BTreeMap<(DeviceId, LaneId), u64>,
}

impl NodeRows {
    /// Reads the tables of all lanes. Errors: a table that can't be read, or a row that makes no sense.
    pub async fn read(tables: &[LaneTable]) -> Result<NodeRows, TableError> {
        let mut rows = NodeRows::default();
        for (lane, table) in tables {
            for_each_row(table, TABLE_EXTENTS, |(key, value)| {
                let device = device_in(key.get(..16))?;
                let row = decode(device, &value)?;
                rows.extents.entry(device).or_default().insert(row.extent.start.0, (*lane, row));
                Ok(())
            })
            .await?;
            for_each_row(table, TABLE_FRAGMENTS, |(key, value)| {
                let device = device_in(key.get(41..57))?;
                rows.fragments.entry(device).or_default().push(decode(device, &value)?);
                Ok(())
            })
            .await?;
            for_each_row(table, TABLE_META, |(key, value)| {
                if let Some(id) = key.strip_prefix(b"folded") {
                    rows.folded.insert((device_in(Some(id))?, *lane), number(&value)?);
                }
                if let Some(id) = key.strip_prefix(REBUILT_PREFIX) {
                    rows.made_anew.insert((device_in(Some(id))?, *lane), number(&value)?);
                }
                Ok(())
            })
            .await?;
        }
        Ok(rows)
    }

    /// Extents that the tables give to a device, in order of place, with the lane whose table says so.
    pub fn extents_of(&self, device: DeviceId) -> impl Iterator<Item = (LaneId, &StoredFragment)> {
        self.extents.get(&device).into_iter().flat_map(BTreeMap::values).map(|(lane, row)| (*lane, row))
    }

    /// The fragment that the tables have at this place, of the lane that allocated it.
    pub(crate) fn extent_at(&self, device: DeviceId, start: BlockIndex) -> Option<FragmentKey> {
        self.extents.get(&device)?.get(&start.0).map(|(_, row)| row.meta.key)
    }

    /// Whether the rows of a lane's extents on a device are what the node wrote when they were flushed: not those that were
    /// made anew from the bytes since the journal, now of this incarnation, was opened last.
    pub(crate) fn are_first_hand(&self, device: DeviceId, lane: LaneId, incarnation: u64) -> bool {
        self.made_anew.get(&(device, lane)) != Some(&incarnation)
    }

    /// Whether a start would take the device: no journal was trimmed beyond what the tables hold.
    #[must_use]
    pub fn holds_all_of(&self, rebuilt: &RebuiltDevice) -> bool {
        rebuilt
            .lanes
            .iter()
            .all(|(lane, rows)| rows.trimmed_through <= self.folded.get(&(rebuilt.device, *lane)).copied().unwrap_or(0))
    }
}

fn decode(device: DeviceId, value: &[u8]) -> Result<StoredFragment, TableError> {
    decode_row(device, value).map_err(|error| damaged_row(&error.to_string()))
}

fn number(value: &[u8]) -> Result<u64, TableError> {
    value.try_into().map(u64::from_le_bytes).map_err(|_| damaged_row("a number of the lane is not eight bytes"))
}

fn device_in(key: Option<&[u8]>) -> Result<DeviceId, TableError> {
    let id = key.and_then(|id| id.try_into().ok()).map(DeviceId);
    id.ok_or_else(|| damaged_row("a key of the wrong length"))
}

async fn for_each_row(
    table: &Rc<dyn TableStore>,
    id: TableId,
    mut visit: impl FnMut(Row) -> Result<(), TableError>,
) -> Result<(), TableError> {
    let mut from = Bound::Unbounded;
    loop {
        let scan =
            Scan { file: 0, table: id, from, to: Bound::Unbounded, limit: BATCH_ROWS, direction: Direction::Forward };
        let rows = table.scan(scan).await?;
        let is_last = rows.len() < BATCH_ROWS;
        let last = rows.last().map(|(key, _)| key.clone());
        rows.into_iter().try_for_each(&mut visit)?;
        match last {
            Some(last) if !is_last => from = Bound::Excluded(last),
            _ => return Ok(()),
        }
    }
}

/// The rows of one lane's extents on a device.
#[derive(Debug, Default)]
struct RebuiltLane {
    rows: Vec<StoredFragment>,
    trimmed_through: Sequence,
    incarnation: u64,
}

/// The index rows of one device, made from its bytes.
#[derive(Debug)]
pub struct RebuiltDevice {
    /// The device.
    pub device: DeviceId,
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// Its path.
    pub name: String,
    /// Its lanes.
    pub lane_count: u16,
    lanes: BTreeMap<LaneId, RebuiltLane>,
    /// Blocks that a journal's untrimmed records decide about, by lane.
    histories: Vec<crate::history::History>,
}

/// Makes the rows of a verified device. Errors: why its bytes can't stand for its index, and what to do.
pub fn rebuild(verdict: &Verdict) -> Result<RebuiltDevice, String> {
    let Some(superblock) = &verdict.superblock else {
        return Err(format!("{}: it has no superblock to go by, so no rows are made for it", verdict.name));
    };
    if let Some(lane) = verdict.lanes.iter().find(|lane| !lane.is_sound) {
        return Err(format!(
            "{}: the journal of lane {} is not sound, so no node takes the device and no rows are made for it; its \
             fragments are rebuilt on others",
            verdict.name, lane.lane.0
        ));
    }
    let layout = &superblock.layout;
    let mut claims = Claims::default();
    for fragment in verdict.lanes.iter().flat_map(|lane| lane.history.live()) {
        if !claims.claim(fragment) {
            return Err(format!("{}: its journals name overlapping extents, so no rows are made for it", verdict.name));
        }
    }
    let intact = verdict.fragments.iter().map(|found| &found.fragment);
    for fragment in intact.chain(&verdict.damaged) {
        let (start, end) = (fragment.extent.start.0, fragment.extent.end().0);
        if verdict.lanes.iter().all(|lane| lane.history.touching(start, end).is_none()) {
            claims.claim(fragment);
        }
    }
    let mut lanes: BTreeMap<LaneId, RebuiltLane> = verdict
        .lanes
        .iter()
        .map(|lane| {
            let (trimmed_through, incarnation) = (lane.trimmed_through, lane.incarnation);
            (lane.lane, RebuiltLane { rows: Vec::new(), trimmed_through, incarnation })
        })
        .collect();
    for fragment in claims.by_start.into_values() {
        let lane = layout.zone_of(fragment.extent.start).map(|zone| layout.lane_of_zone(zone));
        let lane = lane.and_then(|lane| lanes.get_mut(&lane)).expect("what is claimed lies in a zone of a lane");
        lane.rows.push(fragment);
    }
    Ok(RebuiltDevice {
        device: superblock.device,
        cluster: superblock.cluster,
        name: verdict.name.clone(),
        lane_count: layout.lanes(),
        lanes,
        histories: verdict.lanes.iter().map(|lane| lane.history.clone()).collect(),
    })
}

/// Who holds which blocks.
#[derive(Default)]
struct Claims {
    by_start: BTreeMap<u64, StoredFragment>,
    keys: BTreeSet<FragmentKey>,
}

impl Claims {
    /// Takes the blocks of a fragment, unless they or its key are taken.
    fn claim(&mut self, fragment: &StoredFragment) -> bool {
        let before = self.by_start.range(..fragment.extent.end().0).next_back();
        if before.is_some_and(|(_, other)| other.extent.end() > fragment.extent.start) {
            return false;
        }
        if self.keys.insert(fragment.meta.key) {
            self.by_start.insert(fragment.extent.start.0, fragment.clone());
        }
        true
    }
}

impl RebuiltDevice {
    /// All rows, in order of lane and place.
    pub fn rows(&self) -> impl Iterator<Item = &StoredFragment> {
        self.lanes.values().flat_map(|lane| &lane.rows)
    }

    /// Whether an untrimmed record of a journal decides about blocks of a row; then tables may lag behind.
    fn is_journaled(&self, row: &StoredFragment) -> bool {
        let (start, end) = (row.extent.start.0, row.extent.end().0);
        self.histories.iter().any(|history| history.touching(start, end).is_some())
    }
}

/// A table of the two that hold rows of fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowTable {
    /// Extents of the lane that allocated them.
    Extents,
    /// Fragments of the lane that their locator hashes to.
    Fragments,
}

impl RowTable {
    /// Its name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            RowTable::Extents => "extents",
            RowTable::Fragments => "fragments",
        }
    }
}

/// How the rows made from a device's bytes differ from a node's.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Rows that both have.
    pub same: u64,
    /// Rows of blocks that a journal still decides about: the next start brings the tables up to it.
    pub journaled: u64,
    /// Rows that the node has and the device does not explain.
    pub missing: Vec<(RowTable, StoredFragment)>,
    /// Rows that the node does not have: fragments that were released and are not overwritten yet.
    pub surplus: Vec<(RowTable, StoredFragment)>,
}

/// Compares one device's rows with those of the node.
#[must_use]
pub fn compare(rebuilt: &RebuiltDevice, node: &NodeRows) -> Comparison {
    let mut comparison = Comparison::default();
    let of_node = node.extents_of(rebuilt.device).map(|(_, row)| row);
    comparison.add(RowTable::Extents, rebuilt, of_node);
    let of_node = node.fragments.get(&rebuilt.device).into_iter().flatten();
    comparison.add(RowTable::Fragments, rebuilt, of_node);
    comparison
}

impl Comparison {
    fn add<'a>(&mut self, table: RowTable, rebuilt: &RebuiltDevice, of_node: impl Iterator<Item = &'a StoredFragment>) {
        let mut ours: BTreeMap<(u64, FragmentKey), &StoredFragment> =
            rebuilt.rows().map(|row| ((row.extent.start.0, row.meta.key), row)).collect();
        for row in of_node {
            let found = ours.remove(&(row.extent.start.0, row.meta.key));
            if rebuilt.is_journaled(row) {
                self.journaled += 1;
            } else if found.is_some_and(|found| found.extent == row.extent && found.meta.shape == row.meta.shape) {
                self.same += 1;
            } else {
                self.missing.push((table, row.clone()));
            }
        }
        for row in ours.into_values() {
            match rebuilt.is_journaled(row) {
                true => self.journaled += 1,
                false => self.surplus.push((table, row.clone())),
            }
        }
    }
}

/// Puts the rows of these devices in the place of whatever the tables say about them; rows of other devices stay. The
/// tables are those of all lanes of the node, in order. Durable on return; when cut off, a node refuses the devices until
/// it is done again. Returns the rows written.
pub async fn replace_rows(
    tables: &[LaneTable],
    rebuilt: &[RebuiltDevice],
    on_progress: &dyn Fn(ReplaceProgress),
) -> Result<u64, TableError> {
    let devices: BTreeSet<DeviceId> = rebuilt.iter().map(|device| device.device).collect();
    for (lane, table) in tables {
        let forget = devices.iter().map(|device| write(TABLE_META, folded_key(*device), None));
        let note = |device: &RebuiltDevice| {
            let incarnation = device.lanes.get(lane).map(|lane| lane.incarnation.to_le_bytes().to_vec());
            write(TABLE_META, rebuilt_key(device.device), incarnation)
        };
        table.write(forget.chain(rebuilt.iter().map(note)).collect());
        table.checkpoint().await?;
    }
    let rows: u64 = rebuilt.iter().map(|device| device.rows().count() as u64).sum();
    let progress = ReplaceProgress { done_rows: 0, total_rows: 2 * rows };
    let mut writes = BoundedWrites { tables, progress, on_progress };
    for (_, table) in tables {
        writes.remove(table, TABLE_EXTENTS, 0, &devices).await?;
        writes.remove(table, TABLE_FRAGMENTS, 41, &devices).await?;
    }
    let mut written = 0;
    for device in rebuilt {
        for (lane, rows) in &device.lanes {
            for batch in rows.rows.chunks(BATCH_ROWS) {
                written += writes.put(*lane, batch).await?;
            }
        }
    }
    for (_, table) in tables {
        table.checkpoint().await?;
    }
    for (lane, table) in tables {
        let folded = |device: &RebuiltDevice| {
            let through = device.lanes.get(lane).map_or(0, |lane| lane.trimmed_through);
            write(TABLE_META, folded_key(device.device), Some(through.to_le_bytes().to_vec()))
        };
        table.write(rebuilt.iter().map(folded).collect());
        table.checkpoint().await?;
    }
    Ok(written)
}

/// How far a replacement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplaceProgress {
    /// Rows taken out or put in.
    pub done_rows: u64,
    /// Rows of which that is known.
    pub total_rows: u64,
}

/// Writes to the tables of all lanes, with a bound on what is not durable.
struct BoundedWrites<'a> {
    tables: &'a [LaneTable],
    progress: ReplaceProgress,
    on_progress: &'a dyn Fn(ReplaceProgress),
}

impl BoundedWrites<'_> {
    async fn write(&mut self, table: &Rc<dyn TableStore>, rows: Vec<TableWrite>) -> Result<(), TableError> {
        self.progress.done_rows += rows.len() as u64;
        table.write(rows);
        (self.on_progress)(self.progress);
        if self.tables.iter().map(|(_, table)| table.overlay_rows()).sum::<usize>() >= OVERLAY_ROWS_MAX {
            for (_, table) in self.tables.iter().filter(|(_, table)| table.overlay_rows() > 0) {
                table.checkpoint().await?;
            }
        }
        Ok(())
    }

    async fn remove(
        &mut self,
        table: &Rc<dyn TableStore>,
        id: TableId,
        device_at: usize,
        devices: &BTreeSet<DeviceId>,
    ) -> Result<(), TableError> {
        let mut gone: Vec<TableWrite> = Vec::new();
        for_each_row(table, id, |(key, _)| {
            if devices.contains(&device_in(key.get(device_at..device_at + 16))?) {
                gone.push(write(id, key, None));
            }
            Ok(())
        })
        .await?;
        self.progress.total_rows += gone.len() as u64;
        for batch in gone.chunks(BATCH_ROWS) {
            self.write(table, batch.to_vec()).await?;
        }
        Ok(())
    }

    /// Extents go to the lane that allocated them, the answers to where a fragment lies to the lane of its locator.
    async fn put(&mut self, lane: LaneId, rows: &[StoredFragment]) -> Result<u64, TableError> {
        let lane_count = u16::try_from(self.tables.len()).expect("at most LANES_MAX lanes");
        let mut writes: BTreeMap<LaneId, Vec<TableWrite>> = BTreeMap::new();
        for row in rows {
            let (device, key) = (row.extent.device, &row.meta.key);
            let value = encode_row(row);
            let extent = write(TABLE_EXTENTS, extent_row_key(device, row.extent.start), Some(value.clone()));
            writes.entry(lane).or_default().push(extent);
            let fragment = write(TABLE_FRAGMENTS, fragment_row_key(key, device), Some(value));
            writes.entry(key.locator.index_lane(lane_count)).or_default().push(fragment);
        }
        let mut written = 0;
        for (lane, writes) in writes {
            let table = self.tables.iter().find(|(other, _)| *other == lane);
            let (_, table) = table.expect("the tables of all lanes are given");
            written += writes.len() as u64;
            self.write(table, writes).await?;
        }
        Ok(written)
    }
}
