//! The store of one or two cores on simulated devices, with power cuts at any write.

mod discards;
mod explained;
mod faults;
mod holding;
mod images;
mod moving;
mod prefixes;

use super::*;
use crate::fragment_header::FragmentHeader;
use crate::recovery::format_journals;
use crate::space::{DiscardPolicy, FillLevels};
use futures::future::join_all;
use kiseki_simulator::executor::Interrupted;
use kiseki_simulator::{CutSwitch, DiskOptions, NodeId, Recorder, SeededRng, Sim, SimDisk, SimLink};
use kiseki_types::buf::stale_buffers;
use kiseki_types::fragment::{FragmentKey, StripeShape};
use kiseki_types::journal::Journal;
use kiseki_types::runtime::RuntimeExt;
use kiseki_types::table::{Direction, Row, Scan, TableReader, TableWrite};
use kiseki_types::{BlockIndex, CoreId, MapEpoch};
use std::collections::BTreeSet;
use std::sync::Arc;

const NODE: NodeId = NodeId(1);
const DISK_BYTES: u64 = 3 << 20;
const LANES: u16 = 2;

type Tables = BTreeMap<(u8, Vec<u8>), Vec<u8>>;

/// A table file: what is durable, and the writes after it, of which a power cut keeps a prefix of whole calls.
#[derive(Clone, Default)]
struct TableMedium {
    durable: Tables,
    waiting: Vec<Vec<TableWrite>>,
    /// In a recorded run: what was done, and how many events the devices had seen by then.
    recorder: Option<Recorder>,
    done: Vec<(usize, TableChange)>,
}

/// A change of a table file in a recorded run.
#[derive(Clone)]
enum TableChange {
    Written(Vec<TableWrite>),
    /// So many of the waiting writes are durable.
    Saved(usize),
}

fn apply(tables: &mut Tables, writes: &[TableWrite]) {
    for write in writes {
        let at = (write.table, write.key.clone());
        match &write.value {
            Some(value) => tables.insert(at, value.clone()),
            None => tables.remove(&at),
        };
    }
}

impl TableMedium {
    fn change(&mut self, change: TableChange) {
        if let Some(recorder) = &self.recorder {
            self.done.push((recorder.len(), change.clone()));
        }
        match change {
            TableChange::Written(writes) => self.waiting.push(writes),
            TableChange::Saved(count) => {
                for writes in self.waiting.drain(..count).collect::<Vec<_>>() {
                    apply(&mut self.durable, &writes);
                }
            }
        }
    }

    fn get(&self, table: u8, key: &[u8]) -> Option<Vec<u8>> {
        let waiting = self.waiting.iter().flatten().rev().find(|write| write.table == table && write.key == key);
        match waiting {
            Some(write) => write.value.clone(),
            None => self.durable.get(&(table, key.to_vec())).cloned(),
        }
    }

    fn power_cut(&mut self, rng: &SeededRng) {
        let keep = rng.below(self.waiting.len() as u64 + 1) as usize;
        for writes in self.waiting.drain(..).take(keep) {
            apply(&mut self.durable, &writes);
        }
    }
}

/// A [`TableStore`] on such a medium; a checkpoint takes its time.
struct MemoryTable {
    medium: Rc<RefCell<TableMedium>>,
    ports: Ports,
}

impl MemoryTable {
    fn view(&self) -> Tables {
        let medium = self.medium.borrow();
        let mut tables = medium.durable.clone();
        medium.waiting.iter().for_each(|writes| apply(&mut tables, writes));
        tables
    }
}

impl TableReader for MemoryTable {
    fn get(&self, _: u8, table: u8, key: &[u8]) -> LocalBoxFuture<'static, Result<Option<Vec<u8>>, TableError>> {
        let value = self.medium.borrow().get(table, key);
        let pause = self.ports.yield_now();
        Box::pin(async move {
            pause.await;
            Ok(value)
        })
    }

    fn scan(&self, scan: Scan) -> LocalBoxFuture<'static, Result<Vec<Row>, TableError>> {
        assert_eq!(scan.direction, Direction::Forward);
        let range = (scan.from, scan.to);
        let view = self.view();
        let in_range = |key: &Vec<u8>| std::ops::RangeBounds::contains(&range, key);
        let rows = view.into_iter().filter(|((table, key), _)| *table == scan.table && in_range(key));
        let rows: Vec<Row> = rows.map(|((_, key), value)| (key, value)).take(scan.limit).collect();
        let pause = self.ports.yield_now();
        Box::pin(async move {
            pause.await;
            Ok(rows)
        })
    }
}

impl TableStore for MemoryTable {
    fn write(&self, writes: Vec<TableWrite>) {
        self.medium.borrow_mut().change(TableChange::Written(writes));
    }

    fn checkpoint(&self) -> LocalBoxFuture<'static, Result<(), TableError>> {
        let (medium, ports, count) = (self.medium.clone(), self.ports.clone(), self.medium.borrow().waiting.len());
        Box::pin(async move {
            kiseki_types::runtime::RuntimeExt::sleep(&*ports, Duration::from_millis(2)).await;
            let mut medium = medium.borrow_mut();
            let count = count.min(medium.waiting.len());
            medium.change(TableChange::Saved(count));
            Ok(())
        })
    }

    fn overlay_rows(&self) -> usize {
        self.medium.borrow().waiting.len()
    }
}

/// So every test runs beside discards.
fn discards_at_once() -> SpacePolicy {
    let discard = DiscardPolicy { bytes_per_second_max: 1 << 30, unknown_after: Some(Duration::ZERO) };
    SpacePolicy { discard: Some(discard), ..SpacePolicy::default() }
}

struct Rig {
    sim: Sim,
    switch: Arc<CutSwitch>,
    disks: Vec<(DeviceId, SimDisk, DeviceLayout)>,
    tables: Vec<Rc<RefCell<TableMedium>>>,
    cores: u16,
    space: SpacePolicy,
}

impl Rig {
    fn new(seed: u64, disks: u8, cores: u16) -> Rig {
        let sim = Sim::new(seed);
        let switch = Arc::<CutSwitch>::default();
        let make = |at: u8| {
            let disk = SimDisk::new(&sim, DiskOptions::of_len(&format!("disk{at}"), DISK_BYTES), &switch);
            let layout = DeviceLayout::compute(disk.open().geometry(), LANES).unwrap();
            (DeviceId([at + 1; 16]), disk, layout)
        };
        let disks: Vec<_> = (0..disks).map(make).collect();
        let ports = sim.ports(NODE);
        for (id, disk, layout) in &disks {
            let device = disk.open();
            sim.block_on(NODE, format_journals(&ports, *id, "disk", layout, &device)).unwrap();
        }
        let tables = (0..LANES).map(|_| Rc::default()).collect();
        Rig { sim, switch, disks, tables, cores, space: discards_at_once() }
    }

    fn config(&self, core: u16, link: &SimLink<LaneRequest, LaneResponse>) -> FragmentStoreConfig {
        let ports = self.sim.core_ports(NODE, CoreId(core));
        let own = (0..LANES).filter(|lane| lane % self.cores == core);
        let table = |lane: u16| MemoryTable { medium: self.tables[usize::from(lane)].clone(), ports: ports.clone() };
        FragmentStoreConfig {
            node: kiseki_types::NodeId(1),
            lanes: own.map(|lane| OwnLane { lane: LaneId(lane), table: Rc::new(table(lane)) }).collect(),
            ports: ports.clone(),
            lane_count: LANES,
            devices: self
                .disks
                .iter()
                .map(|(id, disk, layout)| StoreDevice {
                    id: *id,
                    pool: PoolId(1),
                    name: disk.name(),
                    layout: *layout,
                    space: self.space,
                    device: disk.open(),
                })
                .collect(),
            link: Rc::new(link.clone()),
            buffers: stale_buffers(),
            fold_interval: Duration::from_millis(50),
        }
    }

    /// Opens every core and publishes what they recovered.
    async fn start(&self) -> (Vec<CoreFragmentStore>, Vec<DeviceReport>) {
        let link = SimLink::new(&self.sim);
        let (mut stores, mut reports) = (Vec::new(), Vec::new());
        for core in 0..self.cores {
            let (store, report) = CoreFragmentStore::open(self.config(core, &link)).await.unwrap();
            for lane in (0..LANES).filter(|lane| lane % self.cores == core).map(LaneId) {
                let store = store.clone();
                let answer = move |request| -> LocalBoxFuture<'static, LaneResponse> {
                    let store = store.clone();
                    Box::pin(async move { store.handle(lane, request).await })
                };
                link.serve(lane, self.sim.core_ports(NODE, CoreId(core)), answer);
            }
            stores.push(store);
            reports.extend(report);
        }
        for store in &stores {
            store.publish_recovered().await.unwrap();
        }
        (stores, reports)
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.sim.block_on(NODE, future)
    }

    fn power_cut(&self, rng: &SeededRng) {
        self.sim.kill(NODE);
        self.disks.iter().for_each(|(_, disk, _)| disk.power_cut(rng.next_u64()));
        self.tables.iter().for_each(|table| table.borrow_mut().power_cut(rng));
        self.switch.restore();
    }
}

fn meta(chunk: u64, index: u8, payload: &[u8]) -> FragmentMeta {
    let mut locator = [0; 32];
    locator[..8].copy_from_slice(&kiseki_simulator::seed::mix64(chunk).to_le_bytes());
    locator[8..16].copy_from_slice(&chunk.to_le_bytes());
    FragmentMeta {
        key: FragmentKey { locator: Locator(locator), generation: Generation(1), index },
        shape: StripeShape { data: 2, parity: 1 },
        pool: PoolId(1),
        envelope_len_bytes: payload.len() as u32,
        payload_len_bytes: payload.len() as u32,
        map_epoch: MapEpoch(1),
        devices: Vec::new(),
    }
}

fn payload(chunk: u64, pages: usize) -> Vec<u8> {
    let rng = SeededRng::new(chunk);
    let mut bytes = vec![0; pages * 4096];
    rng.fill(&mut bytes);
    bytes
}

fn parts(bytes: &[u8]) -> Vec<IoBytes> {
    let whole = IoBuf::copy_of(bytes).freeze();
    let cut = bytes.len() / 2 / 4096 * 4096;
    vec![whole.slice(0..cut), whole.slice(cut..bytes.len())]
}

/// What was promised: chunks with their bytes and place.
#[derive(Default)]
struct Model {
    /// Acknowledged and not asked to be released.
    there: BTreeMap<u64, (Vec<u8>, Extent)>,
    /// In doubt: a put or release that was not answered; the bytes that it would have.
    in_doubt: BTreeMap<u64, Vec<u8>>,
    next: u64,
}

async fn find(store: &CoreFragmentStore, chunk: u64) -> Vec<StoredFragment> {
    let key = meta(chunk, 0, &[0; 4096]).key;
    store.locate(key.locator, key.generation).await.unwrap().all().unwrap()
}

async fn put(store: &CoreFragmentStore, device: DeviceId, chunk: u64, bytes: &[u8]) -> Result<Extent, FragmentError> {
    store.put(device, meta(chunk, 0, bytes), parts(bytes)).await
}

async fn one_step(store: CoreFragmentStore, devices: Vec<DeviceId>, model: Rc<RefCell<Model>>, rng: SeededRng) {
    let target = {
        let model = model.borrow();
        let chunks: Vec<u64> = model.there.keys().copied().collect();
        (!chunks.is_empty() && rng.chance(2, 5)).then(|| *rng.pick(&chunks))
    };
    if let Some(chunk) = target {
        let taken = model.borrow_mut().there.remove(&chunk);
        let Some((bytes, _)) = taken else { return };
        model.borrow_mut().in_doubt.insert(chunk, bytes.clone());
        let found = find(&store, chunk).await;
        let read = store.read(&found[0], 0..bytes.len() as u32).await.unwrap();
        assert_eq!(&read[..], &bytes[..]);
        store.release(&found[0]).await.unwrap();
        assert_eq!(find(&store, chunk).await, []);
        model.borrow_mut().in_doubt.remove(&chunk);
        return;
    }
    let chunk = {
        let mut model = model.borrow_mut();
        model.next += 1;
        model.next
    };
    let bytes = payload(chunk, 1 + rng.index(20));
    model.borrow_mut().in_doubt.insert(chunk, bytes.clone());
    match put(&store, *rng.pick(&devices), chunk, &bytes).await {
        Ok(extent) => {
            let mut model = model.borrow_mut();
            model.in_doubt.remove(&chunk);
            model.there.insert(chunk, (bytes, extent));
        }
        Err(FragmentError::Full { .. }) => {
            model.borrow_mut().in_doubt.remove(&chunk);
        }
        Err(error) => panic!("{error}"),
    }
}

/// After a start: everything acknowledged is there, what was in doubt is whole or absent, no extent is shared.
async fn check(stores: &[CoreFragmentStore], model: &RefCell<Model>) -> Result<(), String> {
    let there = model.borrow().there.clone();
    let in_doubt = std::mem::take(&mut model.borrow_mut().in_doubt);
    for (chunk, (bytes, extent)) in &there {
        let store = &stores[*chunk as usize % stores.len()];
        let found = find(store, *chunk).await;
        if found.len() != 1 || found[0].extent != *extent {
            return Err(format!("chunk {chunk} at {extent} was acknowledged, found {found:?}"));
        }
        let read = store.read(&found[0], 0..bytes.len() as u32).await.map_err(|error| format!("{chunk}: {error}"))?;
        if read[..] != bytes[..] {
            return Err(format!("chunk {chunk} reads as something else"));
        }
    }
    for (chunk, bytes) in in_doubt {
        match find(&stores[0], chunk).await.as_slice() {
            [] => {}
            [found] => {
                let read = stores[0].read(found, 0..bytes.len() as u32).await;
                if read.map_err(|error| format!("half of {chunk} is there: {error}"))?[..] != bytes[..] {
                    return Err(format!("chunk {chunk} reads as something else"));
                }
                model.borrow_mut().there.insert(chunk, (bytes, found.extent));
            }
            many => return Err(format!("chunk {chunk} is there {} times", many.len())),
        }
    }
    no_extent_is_shared(stores, model)
}

/// I-C8: the extents of all chunks are disjoint, and the allocators know exactly them.
fn no_extent_is_shared(stores: &[CoreFragmentStore], model: &RefCell<Model>) -> Result<(), String> {
    let mut blocks = BTreeSet::new();
    for (chunk, (_, extent)) in &model.borrow().there {
        for block in extent.start.0..extent.end().0 {
            if !blocks.insert((extent.device, block)) {
                return Err(format!("I-C8: block {block} of {} is shared by chunk {chunk}", extent.device));
            }
        }
    }
    for device in stores.iter().flat_map(|store| store.core.devices.all()) {
        for lane in device.lanes.values() {
            for (start, len) in lane.zones.borrow().used() {
                for block in start.0..start.0 + len.0 {
                    if !blocks.remove(&(device.id, block)) {
                        return Err(format!("I-C8: block {block} of {} is used by nobody", device.id));
                    }
                }
            }
        }
    }
    if blocks.is_empty() { Ok(()) } else { Err(format!("I-C8: {} used blocks count as free", blocks.len())) }
}

fn crash_run(seed: u64, flush_is_a_lie: bool) -> Result<(), String> {
    let rig = Rig::new(seed, 2, 1 + (seed % 2) as u16);
    let rng = SeededRng::new(seed ^ 0xf4a6);
    rig.disks.iter().for_each(|(_, disk, _)| disk.set_flush_is_a_lie(flush_is_a_lie));
    let devices: Vec<DeviceId> = rig.disks.iter().map(|(id, ..)| *id).collect();
    let model = Rc::new(RefCell::new(Model::default()));
    for round in 0..5 {
        rig.switch.arm(1 + rng.below(250));
        let work = async {
            let (stores, reports) = rig.start().await;
            if let Some(problem) = reports.iter().find_map(|report| report.problem.clone()) {
                return Err(problem);
            }
            check(&stores, &model).await?;
            for _ in 0..rng.below(25) {
                let steps = (0..1 + rng.below(8)).map(|_| {
                    let store = rng.pick(&stores).clone();
                    one_step(store, devices.clone(), model.clone(), SeededRng::new(rng.next_u64()))
                });
                join_all(steps).await;
            }
            Ok(())
        };
        match rig.sim.block_on_or_cut(NODE, work, &rig.switch) {
            Ok(result) => result.map_err(|error| format!("round {round}: {error}"))?,
            Err(Interrupted::PowerCut) => {}
            Err(Interrupted::Stalled(stalled)) => panic!("seed {seed} round {round}: {stalled}"),
        }
        rig.power_cut(&rng);
    }
    rig.run(async {
        let (stores, reports) = rig.start().await;
        match reports.iter().find_map(|report| report.problem.clone()) {
            Some(problem) => Err(problem),
            None => check(&stores, &model).await,
        }
    })
}

#[test]
fn i_c8_acknowledged_fragments_survive_a_power_cut_at_any_write_and_no_extent_is_given_twice() {
    for seed in 0..100 {
        assert_eq!(crash_run(seed, false), Ok(()), "seed {seed}");
    }
}

#[test]
fn i_d6_without_the_flush_the_same_run_loses_fragments() {
    let broken = (0..20).filter(|seed| crash_run(*seed, true).is_err()).count();
    assert!(broken > 5, "only {broken} of 20 runs noticed that flushes are lies");
}

#[test]
fn puts_locate_read_any_range_and_release() {
    let rig = Rig::new(1, 2, 2);
    rig.run(async {
        let (stores, _) = rig.start().await;
        let bytes = payload(7, 30);
        let extent = put(&stores[0], rig.disks[0].0, 7, &bytes).await.unwrap();
        let found = find(&stores[1], 7).await;
        assert_eq!((found.len(), found[0].extent), (1, extent));
        for range in [0..1, 0..4096, 5..32_769, 32_767..32_769, 70_000..122_880, 98_304..98_305, 9..9] {
            let read = stores[1].read(&found[0], range.clone()).await.unwrap();
            assert_eq!(&read[..], &bytes[range.start as usize..range.end as usize], "{range:?}");
        }
        let free = |store: &CoreFragmentStore| store.devices().iter().map(|device| device.free_bytes).sum::<u64>();
        let before = free(&stores[0]);
        let (key, generation) = (found[0].meta.key.locator, found[0].meta.key.generation);
        let listed: Vec<_> = [stores[0].list(None, 9).await.unwrap(), stores[1].list(None, 9).await.unwrap()].concat();
        assert_eq!(listed, [(key, generation)]);
        assert_eq!(stores[0].list(Some((key, generation)), 9).await.unwrap(), []);
        stores[1].release(&found[0]).await.unwrap();
        stores[0].release(&found[0]).await.unwrap(); // not there: no error
        assert_eq!(find(&stores[0], 7).await, []);
        stores[0].fold().await.unwrap();
        assert!(free(&stores[0]) > before, "space comes back");
        assert!(matches!(stores[0].read(&found[0], 0..1).await, Ok(_) | Err(FragmentError::Unknown { .. })));
    });
}

#[test]
fn i_d4_a_device_refuses_a_second_fragment_of_a_stripe() {
    let rig = Rig::new(2, 2, 2);
    rig.run(async {
        let (stores, _) = rig.start().await;
        let (bytes, device) = (payload(1, 3), rig.disks[0].0);
        let both = (0..2).map(|index| stores[usize::from(index)].put(device, meta(1, index, &bytes), parts(&bytes)));
        let results = join_all(both.collect::<Vec<_>>()).await;
        let refused = results.iter().filter(|result| matches!(result, Err(FragmentError::SecondOfStripe { .. })));
        assert_eq!(refused.count(), 1, "{results:?}");
        assert_eq!(find(&stores[0], 1).await.len(), 1);
        stores[0].put(rig.disks[1].0, meta(1, 2, &bytes), parts(&bytes)).await.unwrap();
        assert_eq!(find(&stores[0], 1).await.len(), 2);
    });
}

/// Levels that leave the reserve alone to stop a put.
fn to_the_brim() -> FillLevels {
    FillLevels { warn_percent: 98, critical_percent: 98, read_only_percent: 98 }
}

/// Puts one chunk after the other until one is refused; returns how many were taken, and why no more.
async fn fill(store: &CoreFragmentStore, device: DeviceId, first: u64) -> (u64, FragmentError) {
    for chunk in first.. {
        if let Err(error) = put(store, device, chunk, &payload(chunk, 15)).await {
            return (chunk - first, error);
        }
    }
    unreachable!("no device is endless")
}

#[test]
fn i_c5_a_pool_at_its_critical_fill_refuses_clients_and_takes_repairs_and_releases() {
    let mut rig = Rig::new(13, 2, 2);
    rig.space.fill = FillLevels { warn_percent: 50, critical_percent: 60, read_only_percent: 80 };
    rig.run(async {
        let (stores, _) = rig.start().await;
        let (store, devices) = (&stores[0], [rig.disks[0].0, rig.disks[1].0]);
        let used = |device: DeviceId| {
            let spaces = stores.iter().map(|store| store.space()[&device]);
            let (free, total) = spaces.fold((0, 0), |sum, one| (sum.0 + one.free_bytes, sum.1 + one.total_bytes));
            1.0 - free as f64 / total as f64
        };
        let (first, error) = fill(store, devices[0], 0).await;
        assert!(matches!(error, FragmentError::Full { .. }), "the pool has room on the other device: {error}");
        assert!(used(devices[0]) > 0.7 && used(devices[0]) <= 0.8, "I-C5: read-only at {}", used(devices[0]));
        let (second, error) = fill(store, devices[1], 1000).await;
        assert!(matches!(error, FragmentError::PoolCritical { critical_percent: 60, .. }), "{error}");
        let pool = (used(devices[0]) + used(devices[1])) / 2.0;
        assert!(pool > 0.55 && pool <= 0.6, "I-C5: the pool refuses clients at {pool}");
        assert!(store.space()[&devices[0]].refuses_clients, "I-C5: it is told");
        let bytes = payload(2000, 15);
        let repaired = store.put_for_upkeep(devices[1], meta(2000, 0, &bytes), parts(&bytes)).await;
        repaired.expect("I-C5: what clients must leave alone is for repair");
        for chunk in (0..first).chain(1000..1000 + second) {
            let found = find(store, chunk).await;
            assert_eq!(store.read(&found[0], 0..100).await.unwrap()[..], payload(chunk, 15)[..100]);
            store.release(&found[0]).await.expect("I-C5: a full pool takes deletes");
        }
        rig.sim.ports(NODE).sleep(Duration::from_secs(1)).await;
        put(store, devices[0], 3000, &payload(3000, 15)).await.expect("I-C5: and goes on when there is room");
        assert!(!store.space()[&devices[0]].refuses_clients);
    });
}

#[test]
fn i_c5_a_full_device_says_so_and_takes_more_after_releases() {
    let mut rig = Rig::new(3, 1, 1);
    rig.space.fill = to_the_brim();
    rig.run(async {
        let (stores, _) = rig.start().await;
        let (store, device) = (&stores[0], rig.disks[0].0);
        let mut chunks = Vec::new();
        let error = loop {
            let chunk = chunks.len() as u64;
            match put(store, device, chunk, &payload(chunk, 15)).await {
                Ok(_) => chunks.push(chunk),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, FragmentError::Full { needed_bytes: 65_536, .. }), "{error}");
        assert!(chunks.len() > 20, "{} chunks", chunks.len());
        for chunk in &chunks {
            store.release(&find(store, *chunk).await[0]).await.unwrap();
        }
        let again = chunks.iter().map(|chunk| chunk + 1000);
        for chunk in again {
            put(store, device, chunk, &payload(chunk, 15)).await.unwrap();
        }
    });
}

#[test]
fn i_c5_one_core_fills_the_lanes_of_all() {
    let mut rig = Rig::new(5, 1, 2);
    rig.space.fill = to_the_brim();
    rig.run(async {
        let (stores, _) = rig.start().await;
        let device = rig.disks[0].0;
        let status = || stores.iter().map(|store| store.devices()[0].free_bytes).collect::<Vec<_>>();
        let (before, mut chunks) = (status(), 0);
        let error = loop {
            match put(&stores[0], device, chunks, &payload(chunks, 15)).await {
                Ok(_) => chunks += 1,
                Err(error) => break error,
            }
        };
        assert!(error.is_space(), "{error}");
        let after = status();
        for (core, (before, after)) in before.iter().zip(&after).enumerate() {
            assert!(*after < before / 10, "I-C5: core {core} has {after} of {before} bytes left when the pool is full");
        }
        assert!(stores[0].counters().puts_forwarded.get() > 10);
        for chunk in 0..chunks {
            let found = find(&stores[1], chunk).await;
            assert_eq!(stores[0].read(&found[0], 0..100).await.unwrap()[..], payload(chunk, 15)[..100]);
            stores[0].release(&found[0]).await.unwrap();
        }
        // An extent is given out again once the reads of all cores have ended, behind the answer.
        rig.sim.ports(NODE).sleep(Duration::from_secs(1)).await;
        assert_eq!(status(), before, "space of forwarded fragments comes back to the lanes that gave it");
    });
}

#[test]
fn i_c9_rotten_bytes_are_never_returned() {
    let rig = Rig::new(4, 1, 1);
    rig.run(async {
        let (stores, _) = rig.start().await;
        let bytes = payload(1, 20);
        let extent = put(&stores[0], rig.disks[0].0, 1, &bytes).await.unwrap();
        let found = find(&stores[0], 1).await.remove(0);
        rig.disks[0].1.rot_block(BlockIndex(extent.start.0 + 1 + 10)); // in the second piece
        stores[0].read(&found, 0..32_768).await.unwrap();
        stores[0].read(&found, 65_536..81_920).await.unwrap();
        let damaged = stores[0].read(&found, 40_000..40_001).await;
        assert!(matches!(damaged, Err(FragmentError::Corrupt { .. })), "{damaged:?}");
        rig.disks[0].1.rot_block(extent.start);
        assert!(matches!(stores[0].read(&found, 0..1).await, Err(FragmentError::Corrupt { .. })));
        assert_eq!(stores[0].counters().corrupt.get(), 2);
    });
}

#[test]
fn i_d6_a_failed_write_or_flush_fences_the_device_on_every_core() {
    for is_flush in [false, true] {
        let rig = Rig::new(5, 2, 2);
        rig.run(async {
            let (stores, _) = rig.start().await;
            put(&stores[0], rig.disks[0].0, 1, &payload(1, 3)).await.unwrap();
            let disk = &rig.disks[0].1;
            if is_flush {
                disk.fail_flush(1)
            } else {
                disk.fail_write(1)
            };
            let results = join_all((2..6).map(|chunk| {
                let store = stores[0].clone();
                let device = rig.disks[0].0;
                async move { put(&store, device, chunk, &payload(chunk, 3)).await }
            }));
            for result in results.await {
                assert!(matches!(result, Err(FragmentError::DeviceFailed { .. })), "{result:?}");
            }
            let ports = rig.sim.ports(NODE);
            kiseki_types::runtime::RuntimeExt::sleep(&*ports, Duration::from_millis(50)).await;
            for store in &stores {
                assert_eq!(store.devices()[0].state, DeviceState::Failed);
                assert_eq!(store.devices()[1].state, DeviceState::Healthy);
                let refused = put(store, rig.disks[0].0, 9, &payload(9, 3)).await;
                assert!(matches!(refused, Err(FragmentError::DeviceFailed { .. })), "{refused:?}");
                let found = find(store, 1).await;
                assert!(matches!(store.read(&found[0], 0..1).await, Err(FragmentError::DeviceFailed { .. })));
                put(store, rig.disks[1].0, 10 + store.counters().puts.get(), &payload(9, 3)).await.unwrap();
            }
        });
    }
}

#[test]
fn i_o3_a_device_with_a_damaged_journal_is_reported_and_the_rest_goes_on() {
    let rig = Rig::new(6, 2, 1);
    rig.run(async {
        let (stores, _) = rig.start().await;
        for chunk in 0..6 {
            put(&stores[0], rig.disks[0].0, chunk, &payload(chunk, 3)).await.unwrap();
        }
        for lane in 0..LANES {
            let journal = stores[0].core.devices.get(rig.disks[0].0).unwrap().lanes[&LaneId(lane)].journal.clone();
            assert!(journal.last() > 0);
        }
    });
    rig.power_cut(&SeededRng::new(1));
    let (start, _) = rig.disks[0].2.journal_extent(LaneId(0));
    rig.run(async {
        let (device, noise) = (rig.disks[0].1.open(), IoBuf::copy_of(&[0xee; 8192]).freeze());
        device.write(start, vec![noise]).await.unwrap(); // both header pages
        device.flush().await.unwrap();
        let (stores, reports) = rig.start().await;
        assert!(reports[0].problem.is_some() && reports[1].problem.is_none(), "{reports:?}");
        assert_eq!(stores[0].devices()[0].state, DeviceState::Failed);
        put(&stores[0], rig.disks[1].0, 77, &payload(77, 3)).await.unwrap();
    });
}

#[test]
fn i_l10_a_lost_table_file_is_lost_and_its_extents_are_not_given_out_again() {
    let rig = Rig::new(7, 1, 1);
    rig.run(async {
        let (stores, _) = rig.start().await;
        put(&stores[0], rig.disks[0].0, 1, &payload(1, 3)).await.unwrap();
        stores[0].fold().await.unwrap();
        for lane in stores[0].core.devices.get(rig.disks[0].0).unwrap().lanes.values() {
            lane.journal.trim_persisted().await.unwrap();
        }
    });
    rig.power_cut(&SeededRng::new(1));
    rig.tables.iter().for_each(|table| *table.borrow_mut() = TableMedium::default());
    rig.run(async {
        let (_, reports) = rig.start().await;
        let problem = reports[0].problem.clone().unwrap();
        assert!(problem.contains("rebuild the index"), "{problem}");
    });
}
