//! Devices that explain themselves: `verify` names each kind of damage, writes nothing, and an index made from the bytes
//! alone is the node's.

use super::*;
use crate::fragment_header::FragmentHeader;
use crate::image::Image;
use crate::index::{TABLE_EXTENTS, encode_row, extent_row_key, write};
use crate::index_rebuild::{
    LaneTable, NodeRows, RebuiltDevice, ReplaceProgress, RowTable, compare, rebuild, replace_rows,
};
use crate::layout::SUPERBLOCK_COPIES;
use crate::superblock::{DeviceClass, MetadataEpoch, Superblock, write_superblock};
use crate::verify::{FragmentState, ProblemKind, Verdict, VerifyOptions, verify};
use kiseki_types::{BlockCount, ClusterId};
use std::os::unix::fs::PermissionsExt;

const FRAME: &[u8] = b"KSKJFRAM";
const PAGE: usize = 4096;

fn superblock(id: DeviceId, layout: &DeviceLayout) -> Superblock {
    Superblock {
        cluster: ClusterId([9; 16]),
        device: id,
        pool: PoolId(1),
        class: DeviceClass::File,
        layout: *layout,
        generation: 1,
        incarnation: 1,
        metadata: MetadataEpoch::default(),
    }
}

/// Where intact fragments lie in the bytes of a device, whatever else is known of them; it needs no superblock.
pub(super) fn intact_extents(id: DeviceId, layout: &DeviceLayout, mut bytes: Vec<u8>) -> Vec<Extent> {
    bytes[..PAGE].copy_from_slice(&superblock(id, layout).encode(0));
    verified(bytes, None).fragments.into_iter().map(|found| found.fragment.extent).collect()
}

impl Rig {
    /// Writes superblocks, as format does.
    fn write_superblocks(&self) {
        for (id, disk, layout) in &self.disks {
            let mut superblock = superblock(*id, layout);
            let device = disk.open();
            self.run(async {
                write_superblock(&*device, &superblock).await.unwrap();
                superblock.generation = 2;
                write_superblock(&*device, &superblock).await.unwrap();
            });
        }
    }

    /// All bytes of a disk.
    pub(super) fn bytes(&self, disk: usize) -> Vec<u8> {
        let geometry = self.disks[disk].2.geometry();
        let bytes = self.disks[disk].1.peek(BlockIndex(0), geometry.block_count);
        assert_eq!(bytes.len() as u64, geometry.len_bytes());
        bytes
    }

    fn lane_tables(&self) -> Vec<LaneTable> {
        let ports = self.sim.ports(NODE);
        let table = |lane: u16| -> LaneTable {
            let medium = self.tables[usize::from(lane)].clone();
            (LaneId(lane), Rc::new(MemoryTable { medium, ports: ports.clone() }))
        };
        (0..LANES).map(table).collect()
    }

    fn node_rows(&self) -> NodeRows {
        let tables = self.lane_tables();
        self.run(async { NodeRows::read(&tables).await.unwrap() })
    }

    fn rebuilt(&self) -> Vec<RebuiltDevice> {
        (0..self.disks.len()).map(|disk| rebuild(&verified(self.bytes(disk), None)).unwrap()).collect()
    }
}

fn verified(bytes: Vec<u8>, known: Option<&NodeRows>) -> Verdict {
    verify(&Image::of_bytes("disk", bytes), &VerifyOptions { known, threads: 2, on_progress: &|_| {} })
}

fn kinds(verdict: &Verdict) -> Vec<ProblemKind> {
    verdict.problems.iter().map(|problem| problem.kind).collect()
}

/// A device with some fragments, none of them folded, and where things lie on it, in bytes.
struct Sample {
    rig: Rig,
    bytes: Vec<u8>,
    /// Fragments in the order of their writing, all of one length.
    extents: Vec<Extent>,
    /// Frames of lane 0's journal.
    frames: Vec<usize>,
    /// Journal of lane 0 and of lane 1.
    journals: [usize; 2],
}

impl Sample {
    fn new() -> Sample {
        let rig = Rig::new(8, 1, 1);
        rig.write_superblocks();
        let extents = rig.run(async {
            let (stores, _) = rig.start().await;
            let mut extents = Vec::new();
            for chunk in 0..8 {
                extents.push(put(&stores[0], rig.disks[0].0, chunk, &payload(chunk, 20)).await.unwrap());
            }
            extents
        });
        let bytes = rig.bytes(0);
        let layout = rig.disks[0].2;
        let byte_of = |block: BlockIndex| block.0 as usize * layout.block_len_bytes() as usize;
        let journals = [0, 1].map(|lane| byte_of(layout.journal_extent(LaneId(lane)).0));
        let len = byte_of(BlockIndex(layout.journal_extent(LaneId(0)).1.0));
        let frames = (0..len / PAGE).map(|page| journals[0] + page * PAGE);
        let frames = frames.filter(|at| bytes[*at..].starts_with(FRAME)).collect();
        Sample { rig, bytes, extents, frames, journals }
    }

    fn at(&self, fragment: usize) -> usize {
        self.extents[fragment].start.0 as usize * self.rig.disks[0].2.block_len_bytes() as usize
    }

    fn fragment_len(&self) -> usize {
        21 * PAGE
    }
}

/// What is done to a sample's bytes.
type Damage = Box<dyn Fn(&Sample, &mut Vec<u8>)>;

fn flip(at: usize) -> impl Fn(&mut Vec<u8>) {
    move |bytes| bytes[at] ^= 0x40
}

fn copy_offset(copy: usize) -> usize {
    [0, PAGE, DISK_BYTES as usize - 2 * PAGE, DISK_BYTES as usize - PAGE][copy]
}

fn cases() -> Vec<(&'static str, Damage, Vec<ProblemKind>)> {
    use ProblemKind as P;
    let mut cases: Vec<(&'static str, Damage, Vec<ProblemKind>)> = vec![
        ("nothing", Box::new(|_, _| {}), vec![]),
        (
            "all copies of the superblock rot",
            Box::new(|_, bytes| (0..SUPERBLOCK_COPIES).for_each(|copy| flip(copy_offset(copy) + 200)(bytes))),
            vec![P::SuperblockLost],
        ),
        (
            "all copies overwritten with a file system",
            Box::new(|_, bytes| {
                (0..SUPERBLOCK_COPIES).for_each(|copy| bytes[copy_offset(copy)..][..PAGE].fill(0));
                bytes[..4].copy_from_slice(b"XFSB");
            }),
            vec![P::NotFormatted],
        ),
        (
            "another device's superblock in copy 1",
            Box::new(|sample, bytes| {
                let mut other = verified(sample.bytes.clone(), None).superblock.unwrap();
                other.device = DeviceId([0xdd; 16]);
                bytes[copy_offset(1)..][..PAGE].copy_from_slice(&other.encode(1));
            }),
            vec![P::SuperblockForeign],
        ),
        (
            "a copy that missed many writes",
            Box::new(|sample, bytes| {
                let mut later = verified(sample.bytes.clone(), None).superblock.unwrap();
                later.generation = 8;
                bytes[copy_offset(0)..][..PAGE].copy_from_slice(&later.encode(0));
                bytes[copy_offset(2)..][..PAGE].copy_from_slice(&later.encode(2));
            }),
            vec![P::SuperblockStale, P::SuperblockStale],
        ),
        (
            "the device shrank by its far end",
            Box::new(|_, bytes| bytes.truncate(DISK_BYTES as usize - 2 * PAGE)),
            vec![P::DeviceShrunk, P::SuperblockDamaged, P::SuperblockDamaged],
        ),
        (
            // The record of the very last one is not stated as flushed: it was never acknowledged.
            "cut off in the middle of a fragment, the last but one of its zone",
            Box::new(|sample, bytes| {
                let last = (0..sample.extents.len()).map(|fragment| sample.at(fragment)).max().unwrap();
                bytes.truncate(last - sample.fragment_len() + 5 * PAGE + 100);
            }),
            vec![P::DeviceShrunk, P::FragmentPayload, P::SuperblockDamaged, P::SuperblockDamaged],
        ),
        (
            "both header pages of a journal rot",
            Box::new(|sample, bytes| {
                flip(sample.journals[0] + 50)(bytes);
                bytes[sample.journals[0] + PAGE..][..PAGE].fill(0xee);
            }),
            vec![P::JournalDamaged],
        ),
        (
            "a journal is blank",
            Box::new(|sample, bytes| bytes[sample.journals[0]..][..2 * PAGE].fill(0)),
            vec![P::JournalMissing],
        ),
        (
            "another lane's journal lies in the place of one",
            Box::new(|sample, bytes| {
                bytes.copy_within(sample.journals[1]..sample.journals[1] + 2 * PAGE, sample.journals[0])
            }),
            vec![P::JournalForeign],
        ),
        (
            "a frame in the middle of a journal rots",
            Box::new(|sample, bytes| flip(sample.frames[1] + 100)(bytes)),
            vec![P::JournalDamaged],
        ),
        (
            "the last frame of a journal rots",
            Box::new(|sample, bytes| flip(sample.frames.last().unwrap() + 100)(bytes)),
            vec![P::JournalTail],
        ),
        (
            "the header of a fragment rots",
            Box::new(|sample, bytes| flip(sample.at(2) + 30)(bytes)),
            vec![P::FragmentHeader],
        ),
        (
            "the header of a fragment is zeros",
            Box::new(|sample, bytes| bytes[sample.at(2)..][..PAGE].fill(0)),
            vec![P::FragmentMissing],
        ),
        (
            "a piece of a fragment rots",
            Box::new(|sample, bytes| flip(sample.at(3) + PAGE + 40_000)(bytes)),
            vec![P::FragmentPayload],
        ),
        (
            "a fragment lies in the place of another one",
            Box::new(|sample, bytes| {
                let from = sample.at(1);
                bytes.copy_within(from..from + sample.fragment_len(), sample.at(2));
            }),
            vec![P::FragmentOther],
        ),
    ];
    for copy in 0..SUPERBLOCK_COPIES {
        let damage: Damage = Box::new(move |_, bytes| flip(copy_offset(copy) + 200)(bytes));
        cases.push(("one copy of the superblock rots", damage, vec![P::SuperblockDamaged]));
    }
    cases
}

#[test]
fn verify_names_each_kind_of_damage() {
    let sample = Sample::new();
    assert!(sample.frames.len() >= 3, "{:?}", sample.frames);
    for (name, damage, expected) in cases() {
        let mut bytes = sample.bytes.clone();
        damage(&sample, &mut bytes);
        let verdict = verified(bytes, None);
        let mut found = kinds(&verdict);
        found.sort_unstable();
        let mut expected = expected;
        expected.sort_unstable();
        assert_eq!(found, expected, "{name}: {:?}", verdict.problems);
        assert_eq!(verdict.is_clean(), expected.is_empty(), "{name}");
        for problem in &verdict.problems {
            assert!(!problem.text.is_empty() && !problem.kind.advice().is_empty(), "{name}");
        }
    }
}

#[test]
fn a_torn_tail_is_told_from_a_break_by_its_block() {
    let sample = Sample::new();
    let block = |at: usize| BlockIndex((at / sample.rig.disks[0].2.block_len_bytes() as usize) as u64);
    let whole = verified(sample.bytes.clone(), None);
    assert_eq!(whole.lanes[0].torn_tail, None);
    assert_eq!(whole.count(FragmentState::Used), 8, "the journals speak of all");
    let last = *sample.frames.last().unwrap();
    let mut rotten = sample.bytes.clone();
    flip(last + 100)(&mut rotten);
    let rotten = verified(rotten, None);
    assert_eq!((rotten.lanes[0].torn_tail, rotten.problems[0].block), (None, Some(block(last))));
    assert!(rotten.lanes[0].is_sound, "a node takes it, as after a crash");
    assert_eq!(rotten.count(FragmentState::Unspoken), 1, "its fragment is there, and nothing says so");
    let mut broken = sample.bytes.clone();
    flip(sample.frames[1] + 100)(&mut broken);
    let broken = verified(broken, None);
    assert_eq!(broken.problems[0].block, Some(block(sample.frames[1])));
    assert!(!broken.lanes[0].is_sound && broken.lanes[1].is_sound);
}

#[test]
fn i_c8_what_tables_and_journals_say_is_held_against_the_bytes() {
    let sample = Sample::new();
    let (id, layout) = (sample.rig.disks[0].0, sample.rig.disks[0].2);
    let row_of = |chunk: u64, start: BlockIndex, blocks: u64| StoredFragment {
        meta: meta(chunk, 1, &payload(chunk, 20)),
        extent: Extent { device: id, start, len: BlockCount(blocks) },
    };
    let unit = u64::from(4096 / layout.block_len_bytes());
    let (zone, zone_len) = layout.zone(0);
    let free = BlockIndex(zone.0 + zone_len.0 - 40 * unit);
    // A fragment of chunk 3, whose first one is used, in free space.
    let second = row_of(3, free, 21 * unit);
    let mut with_second = sample.bytes.clone();
    let body = payload(3, 20);
    let header = FragmentHeader::of(second.meta.clone(), &parts(&body)).encode(&stale_buffers());
    let at = free.0 as usize * layout.block_len_bytes() as usize;
    with_second[at..at + PAGE].copy_from_slice(&header);
    with_second[at + PAGE..at + 21 * PAGE].copy_from_slice(&body);
    let unspoken = verified(with_second.clone(), None);
    assert_eq!((kinds(&unspoken), unspoken.doubles), (vec![], 1), "it may be a leftover");
    assert_eq!(verified(with_second.clone(), Some(&NodeRows::default())).count(FragmentState::Leftover), 1);
    let (last_zone, last_len) = layout.zone(layout.zone_count() - 1);
    let last = BlockIndex(last_zone.0 + last_len.0 - 20 * unit);
    let cases = [
        ("second of its stripe", 0, second.clone(), vec![ProblemKind::SecondOfStripe]),
        ("leaves its zone", 1, row_of(70, last, 21 * unit), vec![ProblemKind::FragmentOutside]),
        ("another lane's", 0, row_of(70, BlockIndex(last.0 - unit), 21 * unit), vec![ProblemKind::FragmentOutside]),
        ("nothing there", 0, row_of(71, BlockIndex(free.0 - 60 * unit), 21 * unit), vec![ProblemKind::FragmentMissing]),
    ];
    for (name, table, row, expected) in cases {
        let value = Some(encode_row(&row));
        let put = write(TABLE_EXTENTS, extent_row_key(id, row.extent.start), value);
        sample.rig.tables.iter().for_each(|table| table.borrow_mut().durable = Tables::new());
        apply(&mut sample.rig.tables[table].borrow_mut().durable, &[put]);
        let verdict = verified(with_second.clone(), Some(&sample.rig.node_rows()));
        assert_eq!(kinds(&verdict), expected, "{name}: {:?}", verdict.problems);
    }
    let rows = [second.clone(), row_of(72, BlockIndex(free.0 + unit), 21 * unit)];
    let puts: Vec<_> = rows
        .iter()
        .map(|row| write(TABLE_EXTENTS, extent_row_key(id, row.extent.start), Some(encode_row(row))))
        .collect();
    apply(&mut sample.rig.tables[0].borrow_mut().durable, &puts);
    let verdict = verified(with_second, Some(&sample.rig.node_rows()));
    assert!(kinds(&verdict).contains(&ProblemKind::ExtentsOverlap), "{:?}", verdict.problems);
}

#[test]
fn a_record_that_makes_no_sense_is_named() {
    let rig = Rig::new(9, 1, 1);
    rig.write_superblocks();
    rig.run(async {
        let (stores, _) = rig.start().await;
        let journal = stores[0].core.devices.get(rig.disks[0].0).unwrap().lanes[&LaneId(1)].journal.clone();
        let sequence = journal.append(b"no record").unwrap();
        journal.flushed(sequence).await.unwrap();
    });
    let verdict = verified(rig.bytes(0), None);
    assert_eq!(kinds(&verdict), [ProblemKind::JournalRecord]);
    assert!(rebuild(&verdict).unwrap_err().contains("not sound"));
}

#[test]
fn verify_writes_nothing_and_survives_a_file_that_is_cut() {
    let sample = Sample::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, &sample.bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
    let before = std::fs::metadata(&path).unwrap();
    let options = VerifyOptions { known: None, threads: 4, on_progress: &|_| {} };
    let image = Image::open(&path).unwrap();
    assert!(verify(&image, &options).is_clean());
    let after = std::fs::metadata(&path).unwrap();
    assert_eq!(before.modified().unwrap(), after.modified().unwrap());
    assert!(std::fs::read(&path).unwrap() == sample.bytes, "not a byte is written");
    // Somebody who ignores the lock cuts it: named, and no signal.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(sample.at(4) as u64 + 4096).unwrap();
    let verdict = verify(&image, &options);
    assert!(kinds(&verdict).contains(&ProblemKind::Unreadable), "{:?}", verdict.problems);
}

/// Some thousand steps on two devices; every stop, clean or by a power cut at any write, is explained by the bytes alone.
#[test]
fn i_c8_an_index_made_from_the_bytes_is_the_nodes_and_serves_everything() {
    let (mut same, mut surplus) = (0, 0);
    for seed in 0..24 {
        let rng = SeededRng::new(seed ^ 0x1dea);
        let rig = Rig::new(seed, 2, 1 + (seed % 2) as u16);
        rig.write_superblocks();
        let model: Rc<RefCell<Model>> = Rc::default();
        let devices: Vec<DeviceId> = rig.disks.iter().map(|(id, _, _)| *id).collect();
        for round in 0..4 {
            let is_clean = rng.chance(1, 2);
            if !is_clean {
                rig.switch.arm(1 + rng.below(400));
            }
            let work = async {
                let (stores, reports) = rig.start().await;
                assert!(reports.iter().all(|report| report.problem.is_none()), "seed {seed}: {reports:?}");
                free_orphans(&stores, &model).await;
                rig.sim.ports(NODE).sleep(Duration::from_secs(1)).await; // until their extents are free
                check(&stores, &model).await.unwrap_or_else(|error| panic!("seed {seed}, round {round}: {error}"));
                for _ in 0..12 {
                    let steps = (0..1 + rng.below(6)).map(|_| {
                        let store = rng.pick(&stores).clone();
                        one_step(store, devices.clone(), model.clone(), SeededRng::new(rng.next_u64()))
                    });
                    join_all(steps).await;
                }
                for store in stores.iter().filter(|_| is_clean) {
                    store.fold().await.unwrap();
                }
            };
            match rig.sim.block_on_or_cut(NODE, work, &rig.switch) {
                Ok(()) | Err(Interrupted::PowerCut) => {}
                Err(Interrupted::Stalled(stalled)) => panic!("seed {seed} round {round}: {stalled}"),
            }
            rig.power_cut(&rng); // what a clean stop folded is durable; rows in memory are not
            let rebuilt = rig.rebuilt();
            let node = rig.node_rows();
            for device in &rebuilt {
                let comparison = compare(device, &node);
                let missing = comparison.missing.iter().filter(|(table, _)| *table == RowTable::Extents);
                assert_eq!(
                    missing.collect::<Vec<_>>(),
                    Vec::<&(RowTable, StoredFragment)>::new(),
                    "seed {seed}, {round}"
                );
                same += comparison.same;
                surplus += comparison.surplus.len();
            }
            // The tables are lost; what the bytes say takes their place.
            rig.tables.iter().for_each(|table| *table.borrow_mut() = TableMedium::default());
            let tables = rig.lane_tables();
            rig.run(async { replace_rows(&tables, &rebuilt, &|_| ()).await.unwrap() });
            let node = rig.node_rows();
            assert!(rebuilt.iter().all(|device| node.holds_all_of(device)), "seed {seed}");
            for device in &rebuilt {
                let again = compare(device, &node);
                assert_eq!((again.missing, again.surplus), (vec![], vec![]), "seed {seed}: what was written is there");
            }
        }
        rig.run(async {
            let (stores, reports) = rig.start().await;
            assert!(reports.iter().all(|report| report.problem.is_none()), "seed {seed}: {reports:?}");
            free_orphans(&stores, &model).await;
            rig.sim.ports(NODE).sleep(Duration::from_secs(1)).await;
            check(&stores, &model).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        });
    }
    assert!(
        same > 100 && surplus > 10,
        "rows that both have: {same}, released ones that the bytes still show: {surplus}"
    );
}

#[test]
fn i_c2_what_a_journal_released_gets_no_row_although_its_bytes_are_there() {
    let rig = Rig::new(12, 1, 1);
    rig.write_superblocks();
    rig.run(async {
        let (stores, _) = rig.start().await;
        for chunk in 0..4 {
            put(&stores[0], rig.disks[0].0, chunk, &payload(chunk, 3)).await.unwrap();
        }
        let found = find(&stores[0], 2).await.remove(0);
        stores[0].release(&found).await.unwrap();
    });
    let verdict = verified(rig.bytes(0), None);
    assert_eq!((verdict.count(FragmentState::Used), verdict.count(FragmentState::Leftover)), (3, 1));
    assert!(verdict.is_clean(), "a leftover is normal");
    let released = meta(2, 0, &payload(2, 3)).key;
    let rows: Vec<_> = rig.rebuilt()[0].rows().map(|row| row.meta.key).collect();
    assert!(rows.len() == 3 && !rows.contains(&released), "I-C2: {rows:?}");
}

#[test]
fn i_l10_rows_that_were_half_replaced_are_not_used() {
    let rig = Rig::new(11, 1, 1);
    rig.write_superblocks();
    rig.run(async {
        let (stores, _) = rig.start().await;
        for chunk in 0..4 {
            put(&stores[0], rig.disks[0].0, chunk, &payload(chunk, 3)).await.unwrap();
        }
        stores[0].fold().await.unwrap();
        for lane in stores[0].core.devices.get(rig.disks[0].0).unwrap().lanes.values() {
            lane.journal.trim_persisted().await.unwrap();
        }
    });
    rig.power_cut(&SeededRng::new(1));
    let rebuilt = rig.rebuilt();
    let tables = rig.lane_tables();
    // Cut off after each number of table writes (of both lanes), as a crash may leave them.
    let whole = rig.tables.iter().map(|table| table.borrow().durable.clone()).collect::<Vec<_>>();
    let mut refused = 0;
    for keep in 0..20 {
        for (table, durable) in rig.tables.iter().zip(&whole) {
            *table.borrow_mut() = TableMedium { durable: durable.clone(), ..TableMedium::default() };
        }
        let left = Rc::new(Cell::new(keep));
        let limited: Vec<LaneTable> = tables
            .iter()
            .map(|(lane, table)| -> LaneTable { (*lane, Rc::new(CutOff { table: table.clone(), left: left.clone() })) })
            .collect();
        rig.run(async { replace_rows(&limited, &rebuilt, &|_| ()).await.unwrap() });
        let node = rig.node_rows();
        if !rebuilt.iter().all(|device| node.holds_all_of(device)) {
            refused += 1;
            continue;
        }
        let comparison = compare(&rebuilt[0], &node);
        assert_eq!((comparison.missing, comparison.surplus), (vec![], vec![]), "I-L10: {keep} writes and it is used");
    }
    assert!(refused > 2, "{refused}");
}

/// A table that counts its checkpoints.
struct Counted {
    table: Rc<dyn TableStore>,
    checkpoints: Cell<u32>,
}

impl TableReader for Counted {
    fn get(&self, file: u8, id: u8, key: &[u8]) -> LocalBoxFuture<'static, Result<Option<Vec<u8>>, TableError>> {
        self.table.get(file, id, key)
    }

    fn scan(&self, scan: Scan) -> LocalBoxFuture<'static, Result<Vec<Row>, TableError>> {
        self.table.scan(scan)
    }
}

impl TableStore for Counted {
    fn write(&self, writes: Vec<TableWrite>) {
        self.table.write(writes);
    }

    fn checkpoint(&self) -> LocalBoxFuture<'static, Result<(), TableError>> {
        self.checkpoints.set(self.checkpoints.get() + 1);
        self.table.checkpoint()
    }

    fn overlay_rows(&self) -> usize {
        self.table.overlay_rows()
    }
}

#[test]
fn rows_are_replaced_with_three_checkpoints_a_table_and_every_row_is_told() {
    let rig = Rig::new(13, 2, 1);
    rig.write_superblocks();
    rig.run(async {
        let (stores, _) = rig.start().await;
        for chunk in 0..16 {
            put(&stores[0], rig.disks[chunk as usize % 2].0, chunk, &payload(chunk, 1)).await.unwrap();
        }
        stores[0].fold().await.unwrap();
    });
    rig.power_cut(&SeededRng::new(1));
    let (rebuilt, tables) = (rig.rebuilt(), rig.lane_tables());
    let counted: Vec<Rc<Counted>> =
        tables.into_iter().map(|(_, table)| Rc::new(Counted { table, checkpoints: Cell::new(0) })).collect();
    let tables: Vec<LaneTable> =
        counted.iter().enumerate().map(|(lane, table)| -> LaneTable { (LaneId(lane as u16), table.clone()) }).collect();
    let last = Cell::new(ReplaceProgress { done_rows: 0, total_rows: 1 });
    let written = rig.run(async { replace_rows(&tables, &rebuilt, &|at| last.set(at)).await.unwrap() });
    assert_eq!(written, 32, "an extent and a fragment of each");
    assert_eq!(last.get(), ReplaceProgress { done_rows: 64, total_rows: 64 }, "as many were there before");
    let checkpoints: Vec<u32> = counted.iter().map(|table| table.checkpoints.get()).collect();
    assert_eq!(checkpoints, [3, 3], "forget, rows, folded: a checkpoint a batch made large devices slow");
}

/// A lane whose journal ends with a frame of more than a sector, and where that lies.
fn last_long_frame(bytes: &[u8], layout: &DeviceLayout) -> Option<(u16, usize)> {
    let frame = |lane: u16| {
        let (start, len) = layout.journal_extent(LaneId(lane));
        let block = layout.block_len_bytes() as usize;
        let pages = (0..len.0 as usize * block / PAGE).map(|page| start.0 as usize * block + page * PAGE);
        let page_of = |at: usize| u64::from_le_bytes(bytes[at + 36..at + 44].try_into().unwrap());
        let frames = pages.filter(|at| bytes[*at..].starts_with(FRAME));
        frames.max_by_key(|at| page_of(*at)).expect("a frame")
    };
    let payload_len = |at: usize| u32::from_le_bytes(bytes[at + 56..at + 60].try_into().unwrap());
    (0..LANES).map(|lane| (lane, frame(lane))).find(|(_, at)| payload_len(*at) > 1000)
}

#[test]
fn a_frame_that_a_crash_tore_says_how_many_of_its_writes_are_whole_and_the_index_whether_they_were_flushed() {
    let rig = Rig::new(14, 1, 1);
    rig.write_superblocks();
    rig.run(async {
        let (stores, _) = rig.start().await;
        let bytes: Vec<_> = (0..24).map(|chunk| payload(chunk, 1)).collect();
        let puts = (0..24).map(|chunk| put(&stores[0], rig.disks[0].0, chunk, &bytes[chunk as usize]));
        join_all(puts).await;
    });
    let (bytes, layout) = (rig.bytes(0), rig.disks[0].2);
    let (lane, last) = last_long_frame(&bytes, &layout).expect("a long one");
    let mut torn = bytes.clone();
    torn[last + 512..last + 1024].fill(0);
    let verdict = verified(torn.clone(), None);
    let found = &verdict.lanes[usize::from(lane)];
    assert!(verdict.is_clean() && found.torn_tail.is_some(), "{:?}", verdict.problems);
    let (named, whole) = found.torn_writes;
    assert!(named >= 1 && whole >= 1, "{named} named, {whole} whole");
    // The fragments were never written, as a crash before both leaves it.
    let mut empty = torn.clone();
    let zone = layout.zone(0).0.0 as usize * layout.block_len_bytes() as usize;
    empty[zone..DISK_BYTES as usize - 2 * PAGE].fill(0);
    let nothing = verified(empty, None);
    assert_eq!(nothing.lanes[usize::from(lane)].torn_writes, (named, 0));
    // A row of one of them was made when it was flushed.
    for fragment in &verified(bytes, None).fragments {
        let row = &fragment.fragment;
        let put = write(TABLE_EXTENTS, extent_row_key(rig.disks[0].0, row.extent.start), Some(encode_row(row)));
        apply(&mut rig.tables[0].borrow_mut().durable, &[put]);
    }
    let known = verified(torn, Some(&rig.node_rows()));
    assert!(kinds(&known).contains(&ProblemKind::JournalTail), "{:?}", known.problems);
    assert_eq!(known.lanes[usize::from(lane)].torn_tail, None);
}

#[test]
fn an_index_that_was_made_from_the_bytes_is_no_proof_that_a_torn_frame_was_flushed_until_the_next_start() {
    let rig = Rig::new(14, 1, 1);
    rig.write_superblocks();
    let write_some = |from: u64| {
        rig.run(async {
            let (stores, _) = rig.start().await;
            let bytes: Vec<_> = (from..from + 24).map(|chunk| payload(chunk, 1)).collect();
            join_all((from..).zip(&bytes).map(|(chunk, bytes)| put(&stores[0], rig.disks[0].0, chunk, bytes))).await;
        });
        rig.sim.kill(NODE);
    };
    let torn = || {
        let mut bytes = rig.bytes(0);
        let (lane, last) = last_long_frame(&bytes, &rig.disks[0].2)?;
        bytes[last + 512..last + 1024].fill(0);
        Some((usize::from(lane), bytes))
    };
    write_some(0);
    let (lane, bytes) = torn().expect("a long frame");
    let before = verified(bytes.clone(), None);
    assert!(before.lanes[lane].torn_writes.1 > 0, "some of the frame's writes are whole, so they get rows");
    let rebuilt = [rebuild(&before).unwrap()];
    rig.run(async { replace_rows(&rig.lane_tables(), &rebuilt, &|_| ()).await.unwrap() });
    let after = verified(bytes, Some(&rig.node_rows()));
    assert!(after.is_clean() && after.lanes[lane].torn_tail.is_some(), "{:?}", after.problems);
    // The next start writes rows of its own.
    let mut starts = (1..10).map(|start| {
        write_some(start * 100);
        torn()
    });
    let (_, bytes) = starts.find_map(|torn| torn).expect("a long frame");
    let later = verified(bytes, Some(&rig.node_rows()));
    assert_eq!(kinds(&later), [ProblemKind::JournalTail], "{:?}", later.problems);
}

/// A table that takes so many more writes, of all its siblings together, and forgets the rest.
struct CutOff {
    table: Rc<dyn TableStore>,
    left: Rc<Cell<u32>>,
}

impl TableReader for CutOff {
    fn get(&self, file: u8, id: u8, key: &[u8]) -> LocalBoxFuture<'static, Result<Option<Vec<u8>>, TableError>> {
        self.table.get(file, id, key)
    }

    fn scan(&self, scan: Scan) -> LocalBoxFuture<'static, Result<Vec<Row>, TableError>> {
        self.table.scan(scan)
    }
}

impl TableStore for CutOff {
    fn write(&self, writes: Vec<TableWrite>) {
        if self.left.get() > 0 {
            self.left.set(self.left.get() - 1);
            self.table.write(writes);
        }
    }

    fn checkpoint(&self) -> LocalBoxFuture<'static, Result<(), TableError>> {
        self.table.checkpoint()
    }

    fn overlay_rows(&self) -> usize {
        self.table.overlay_rows()
    }
}

/// What a node's search for orphans and its repair do: chunks that nobody knows are released, and so are the rests of puts
/// that a cut tore before they were answered (their headers are whole, so the bytes alone give them a row).
async fn free_orphans(stores: &[CoreFragmentStore], model: &RefCell<Model>) {
    for store in stores {
        for (locator, generation) in store.list(None, 10_000).await.unwrap() {
            let chunk = u64::from_le_bytes(locator.0[8..16].try_into().unwrap());
            if model.borrow().there.contains_key(&chunk) {
                continue;
            }
            let is_in_doubt = model.borrow().in_doubt.contains_key(&chunk);
            for fragment in store.locate(locator, generation).await.unwrap().all().unwrap() {
                let whole = store.read(&fragment, 0..fragment.meta.payload_len_bytes).await;
                if !is_in_doubt || whole.is_err() {
                    store.release(&fragment).await.unwrap();
                }
            }
        }
    }
}
