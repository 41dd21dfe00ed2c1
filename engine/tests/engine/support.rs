//! A whole engine on one simulated core: real services, with groups that commit at once and fragments in memory.
//! What devices and logs promise is tested in their own rooms; here it is what the engine makes of it.

use bytes::Bytes;
use futures::FutureExt;
use kiseki_engine::api::{FinishWrite, ObjectInfo, Store, StoreError};
use kiseki_engine::calls::Calls;
use kiseki_engine::device_record::{DeviceActor, DevicePlace, DeviceRecord, DeviceUpdate};
use kiseki_engine::engine::{Engine, EngineInputs};
use kiseki_engine::host::{GroupHost, GroupSpec};
use kiseki_engine::keyring::NodeKeys;
use kiseki_engine::keys::MasterKeys;
use kiseki_engine::machine;
use kiseki_engine::message::{ControlRequest, ControlResponse, Dedup, EngineRequest, EngineResponse};
use kiseki_engine::repairer::RepairSettings;
use kiseki_engine::scrubber::ScrubSettings;
use kiseki_simulator::{NodeId, Sim, SimLink};
use kiseki_types::LocalBoxFuture;
use kiseki_types::buf::{IoBuf, IoBytes, STALE_BYTE, stale_buffers};
use kiseki_types::fragment::{
    DeviceState, DeviceStatus, DeviceUse, FragmentError, FragmentKey, FragmentMeta, FragmentStore, StoredFragment,
    StripeShape,
};
use kiseki_types::group::{LogPosition, ProposeError, RaftGroup, StateMachine};
use kiseki_types::ids::{DeviceId, Generation, LaneId, Locator, MasterEpoch, PoolId, ShardId, TenantId, Term};
use kiseki_types::runtime::{Ports, RuntimeExt};
use kiseki_types::secret::SecretKey;
use kiseki_types::table::{Direction, Row, Scan, TableError, TableId, TableReader, TableWrite};
use kiseki_types::units::{BlockCount, BlockIndex, Extent};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

pub const NODE: NodeId = NodeId(0);
const LANES: u16 = 2;

type Rows = Rc<RefCell<BTreeMap<(u8, TableId, Vec<u8>), Vec<u8>>>>;

#[derive(Clone, Default)]
pub struct MemoryTables(Rows);

impl MemoryTables {
    pub fn write(&self, writes: Vec<TableWrite>) {
        for write in writes {
            let key = (write.file, write.table, write.key);
            match write.value {
                Some(value) => self.0.borrow_mut().insert(key, value),
                None => self.0.borrow_mut().remove(&key),
            };
        }
    }
}

impl TableReader for MemoryTables {
    fn get(
        &self,
        file: u8,
        table: TableId,
        key: &[u8],
    ) -> LocalBoxFuture<'static, Result<Option<Vec<u8>>, TableError>> {
        let value = self.0.borrow().get(&(file, table, key.to_vec())).cloned();
        Box::pin(async move { Ok(value) })
    }

    fn scan(&self, scan: Scan) -> LocalBoxFuture<'static, Result<Vec<Row>, TableError>> {
        assert_eq!(scan.direction, Direction::Forward);
        let inside = |key: &[u8]| {
            use std::ops::RangeBounds;
            (scan.from.clone(), scan.to.clone()).contains(&key.to_vec())
        };
        let rows = self.0.borrow();
        let rows: Vec<Row> = rows
            .iter()
            .filter(|((file, table, key), _)| *file == scan.file && *table == scan.table && inside(key))
            .take(scan.limit)
            .map(|((_, _, key), value)| (key.clone(), value.clone()))
            .collect();
        Box::pin(async move { Ok(rows) })
    }
}

/// A group of one voter whose log needs no disk.
struct MemoryGroup {
    shard: ShardId,
    machine: Rc<dyn StateMachine>,
    tables: MemoryTables,
    index: Rc<Cell<u64>>,
    turn: Rc<futures::lock::Mutex<()>>,
    ports: Ports,
    /// How long a commit takes, see [`Logs::set_home_delay`].
    delay: Rc<Cell<Duration>>,
    /// What becomes of the next command, see [`Logs::lose_next_control_answer`].
    next_lost: Rc<Cell<Option<Lost>>>,
}

/// A command whose answer does not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It was committed.
    Answer,
    /// It was not.
    Command,
}

impl RaftGroup for MemoryGroup {
    fn shard(&self) -> ShardId {
        self.shard
    }

    fn propose(&self, command: Vec<u8>) -> LocalBoxFuture<'static, Result<Vec<u8>, ProposeError>> {
        let (machine, tables, index) = (self.machine.clone(), self.tables.clone(), self.index.clone());
        let (turn, ports, delay) = (self.turn.clone(), self.ports.clone(), self.delay.get());
        let (shard, lost) = (self.shard, self.next_lost.take());
        Box::pin(async move {
            ports.sleep(Duration::from_micros(100) + delay).await;
            let unknown = || ProposeError::Unavailable { shard, reason: "the answer is lost".to_owned() };
            if lost == Some(Lost::Command) {
                return Err(unknown());
            }
            let _turn = turn.lock().await;
            index.set(index.get() + 1);
            let at = LogPosition { term: Term(1), index: index.get() };
            let applied = machine.apply(at, &command, &tables).await.expect("commands of this engine apply");
            tables.write(applied.writes);
            if lost.is_some() { Err(unknown()) } else { Ok(applied.response) }
        })
    }

    fn read_barrier(&self) -> LocalBoxFuture<'static, Result<Term, ProposeError>> {
        Box::pin(async { Ok(Term(1)) })
    }

    fn tables(&self) -> Rc<dyn TableReader> {
        Rc::new(self.tables.clone())
    }
}

/// A group's tables and the index of its last command.
type GroupState = (MemoryTables, Rc<Cell<u64>>);

/// Tables of all groups; they survive a restart of the engine.
#[derive(Clone, Default)]
pub struct Logs {
    groups: Rc<RefCell<BTreeMap<ShardId, GroupState>>>,
    home_delay: Rc<Cell<Duration>>,
    control_lost: Rc<Cell<Option<Lost>>>,
}

impl Logs {
    /// Whoever proposes the next change of the control shard does not hear what became of it.
    pub fn lose_next_control_answer(&self, lost: Lost) {
        self.control_lost.set(Some(lost));
    }

    /// How much longer commits of homes take from now on than those of shards.
    pub fn set_home_delay(&self, delay: Duration) {
        self.home_delay.set(delay);
    }
}

struct MemoryHost {
    logs: Logs,
    ports: Ports,
}

impl GroupHost for MemoryHost {
    fn open(&self, spec: GroupSpec) -> LocalBoxFuture<'static, Result<Rc<dyn RaftGroup>, StoreError>> {
        let mut logs = self.logs.groups.borrow_mut();
        assert!(spec.create || logs.contains_key(&spec.shard), "I-L10: {} was opened but never made", spec.shard);
        let (tables, index) = logs.entry(spec.shard).or_default().clone();
        let (turn, ports) = (Rc::default(), self.ports.clone());
        let is_home = spec.shard != ShardId::CONTROL && spec.shard.0 < ShardId::TENANT_FIRST;
        let delay = if is_home { self.logs.home_delay.clone() } else { Rc::default() };
        let next_lost = if spec.shard == ShardId::CONTROL { self.logs.control_lost.clone() } else { Rc::default() };
        let (shard, machine) = (spec.shard, spec.machine);
        let group = MemoryGroup { shard, machine, tables, index, turn, ports, delay, next_lost };
        Box::pin(async move { Ok(Rc::new(group) as Rc<dyn RaftGroup>) })
    }
}

#[derive(Default)]
struct Medium {
    fragments: BTreeMap<(FragmentKey, DeviceId), (StoredFragment, Vec<u8>)>,
    failed: BTreeSet<DeviceId>,
    capacity_bytes: u64,
    device_count: u8,
    put_delay: Duration,
    /// Puts under way, by device.
    putting: BTreeMap<DeviceId, u64>,
    /// Where the next fragment lies on its device.
    next_block: u64,
    /// Every fragment that was put, in the order in which the puts ended.
    puts: Vec<FragmentKey>,
}

impl Medium {
    fn put(&mut self, device: DeviceId, meta: FragmentMeta, bytes: Vec<u8>) -> Result<Extent, FragmentError> {
        let on_device = || self.fragments.iter().filter(|((_, on), _)| *on == device);
        let used: u64 = on_device().map(|(_, (_, b))| b.len() as u64).sum();
        let FragmentKey { locator, generation, .. } = meta.key;
        if self.failed.contains(&device) {
            return Err(FragmentError::DeviceFailed { device, reason: "test".to_owned() });
        }
        if used + bytes.len() as u64 > self.capacity_bytes {
            return Err(FragmentError::Full { device, needed_bytes: bytes.len() as u64 });
        }
        if on_device().any(|((key, _), _)| key.locator == locator && key.generation == generation) {
            return Err(FragmentError::SecondOfStripe { device, locator, generation });
        }
        let extent =
            Extent { device, start: BlockIndex(self.next_block), len: BlockCount(bytes.len() as u64 / 4096 + 1) };
        self.next_block += extent.len.0;
        self.puts.push(meta.key);
        self.fragments.insert((meta.key, device), (StoredFragment { meta, extent }, bytes));
        Ok(extent)
    }
}

/// Fragments in memory, with devices that fail, fill up and rot on demand.
#[derive(Clone)]
pub struct MemoryFragments {
    medium: Rc<RefCell<Medium>>,
    ports: Ports,
}

impl MemoryFragments {
    pub fn device(index: u8) -> DeviceId {
        DeviceId([index; 16])
    }
    pub fn fail(&self, index: u8) {
        self.medium.borrow_mut().failed.insert(Self::device(index));
    }
    /// All failed devices are back, with what they held.
    pub fn repair(&self) {
        self.medium.borrow_mut().failed.clear();
    }
    pub fn bring_back(&self, index: u8) {
        self.medium.borrow_mut().failed.remove(&Self::device(index));
    }
    pub fn healthy_count(&self) -> usize {
        let medium = self.medium.borrow();
        usize::from(medium.device_count) - medium.failed.len()
    }
    /// How long a put takes; the fragment is there at its end.
    pub fn set_put_delay(&self, delay: Duration) {
        self.medium.borrow_mut().put_delay = delay;
    }
    /// What was put since the last call, in order.
    pub fn take_puts(&self) -> Vec<FragmentKey> {
        std::mem::take(&mut self.medium.borrow_mut().puts)
    }
    /// Fragments that can be read, as (index, device), by stripe.
    pub fn good(&self) -> BTreeMap<(Locator, Generation), Vec<(u8, DeviceId)>> {
        let medium = self.medium.borrow();
        let mut stripes = BTreeMap::<_, Vec<_>>::new();
        for ((key, device), (_, bytes)) in &medium.fragments {
            let good = stripes.entry((key.locator, key.generation)).or_default();
            if !medium.failed.contains(device) && !bytes.is_empty() {
                good.push((key.index, *device));
            }
        }
        stripes
    }
    pub fn set_capacity(&self, bytes: u64) {
        self.medium.borrow_mut().capacity_bytes = bytes;
    }
    pub fn count(&self) -> usize {
        self.medium.borrow().fragments.len()
    }
    pub fn used_bytes(&self) -> u64 {
        self.medium.borrow().fragments.values().map(|(_, bytes)| bytes.len() as u64).sum()
    }
    /// Flips a bit of every fragment with an index in `indices`; reads of them fail their check from then on.
    pub fn rot(&self, indices: &[u8]) {
        for ((key, _), (_, bytes)) in &mut self.medium.borrow_mut().fragments {
            if indices.contains(&key.index) {
                bytes.clear();
            }
        }
    }
    /// Every byte stored, for searches of plaintext.
    pub fn all_bytes(&self) -> Vec<u8> {
        self.medium.borrow().fragments.values().flat_map(|(_, bytes)| bytes.clone()).collect()
    }
    /// Every fragment's device, by stripe.
    pub fn stripes(&self) -> BTreeMap<(Locator, Generation), Vec<DeviceId>> {
        let mut stripes = BTreeMap::<_, Vec<_>>::new();
        for (key, device) in self.medium.borrow().fragments.keys() {
            stripes.entry((key.locator, key.generation)).or_default().push(*device);
        }
        stripes
    }
    fn later<T: 'static>(&self, result: T) -> LocalBoxFuture<'static, T> {
        let ports = self.ports.clone();
        Box::pin(async move {
            ports.sleep(Duration::from_micros(50)).await;
            result
        })
    }
}

impl FragmentStore for MemoryFragments {
    fn devices(&self) -> Vec<DeviceStatus> {
        let medium = self.medium.borrow();
        (0..medium.device_count)
            .map(|index| {
                let id = Self::device(index);
                let state = if medium.failed.contains(&id) { DeviceState::Failed } else { DeviceState::Healthy };
                let capacity_bytes = medium.capacity_bytes;
                let (pool, name, read_errors) = (PoolId(0), format!("d{index}"), 0);
                DeviceStatus { id, name, pool, capacity_bytes, free_bytes: 0, state, read_errors }
            })
            .collect()
    }

    fn put(
        &self,
        device: DeviceId,
        meta: FragmentMeta,
        payload: Vec<IoBytes>,
    ) -> LocalBoxFuture<'static, Result<Extent, FragmentError>> {
        let bytes: Vec<u8> = payload.iter().flat_map(|part| part.to_vec()).collect();
        assert_eq!(bytes.len(), meta.payload_len_bytes as usize);
        let stale = bytes.windows(16).any(|window| window == [STALE_BYTE; 16]);
        assert!(!stale, "I-K1: fragment {} carries what an earlier user of the memory left", meta.key.index);
        let (medium, ports) = (self.medium.clone(), self.ports.clone());
        Box::pin(async move {
            let delay = medium.borrow().put_delay;
            *medium.borrow_mut().putting.entry(device).or_default() += 1;
            ports.sleep(Duration::from_micros(50) + delay).await;
            let mut medium = medium.borrow_mut();
            *medium.putting.entry(device).or_default() -= 1;
            medium.put(device, meta, bytes)
        })
    }

    fn put_for_upkeep(
        &self,
        device: DeviceId,
        meta: FragmentMeta,
        payload: Vec<IoBytes>,
    ) -> LocalBoxFuture<'static, Result<Extent, FragmentError>> {
        self.put(device, meta, payload)
    }

    fn locate(
        &self,
        locator: Locator,
        generation: Generation,
    ) -> LocalBoxFuture<'static, Result<Vec<StoredFragment>, FragmentError>> {
        let medium = self.medium.borrow();
        let of_stripe = |key: &FragmentKey| key.locator == locator && key.generation == generation;
        let found =
            medium.fragments.iter().filter(|((key, _), _)| of_stripe(key)).map(|(_, (stored, _))| stored.clone());
        self.later(Ok(found.collect()))
    }

    fn read(
        &self,
        fragment: &StoredFragment,
        range: Range<u32>,
    ) -> LocalBoxFuture<'static, Result<IoBytes, FragmentError>> {
        let medium = self.medium.borrow();
        let FragmentKey { locator, index, .. } = fragment.meta.key;
        let corrupt = FragmentError::Corrupt { locator, index, extent: fragment.extent };
        let device = fragment.extent.device;
        if medium.failed.contains(&device) {
            return self.later(Err(FragmentError::DeviceFailed { device, reason: "test".to_owned() }));
        }
        let bytes = medium.fragments.get(&(fragment.meta.key, device));
        let result = bytes
            .and_then(|(_, bytes)| bytes.get(range.start as usize..range.end as usize))
            .map(|bytes| IoBuf::copy_of(bytes).freeze())
            .ok_or(corrupt);
        self.later(result)
    }

    fn release(&self, fragment: &StoredFragment) -> LocalBoxFuture<'static, Result<(), FragmentError>> {
        let device = fragment.extent.device;
        let mut medium = self.medium.borrow_mut();
        let result = match medium.failed.contains(&device) {
            true => Err(FragmentError::DeviceFailed { device, reason: "test".to_owned() }),
            false => {
                medium.fragments.remove(&(fragment.meta.key, device));
                Ok(())
            }
        };
        drop(medium);
        self.later(result)
    }

    fn use_of(&self, device: DeviceId) -> Option<DeviceUse> {
        let medium = self.medium.borrow();
        if medium.failed.contains(&device) {
            return None;
        }
        let on_device = || medium.fragments.iter().filter(|((_, on), _)| *on == device);
        let bytes = on_device().map(|(_, (_, bytes))| bytes.len() as u64).sum();
        Some(DeviceUse { fragments: on_device().count() as u64 + medium.putting.get(&device).unwrap_or(&0), bytes })
    }

    fn held_on(
        &self,
        device: DeviceId,
        after: Option<BlockIndex>,
        limit: usize,
    ) -> LocalBoxFuture<'static, Result<Vec<StoredFragment>, FragmentError>> {
        let medium = self.medium.borrow();
        let on_device = medium.fragments.iter().filter(|((_, on), _)| *on == device);
        let mut held: Vec<StoredFragment> = on_device.map(|(_, (stored, _))| stored.clone()).collect();
        held.sort_unstable_by_key(|stored| stored.extent.start);
        held.retain(|stored| after.is_none_or(|after| stored.extent.start > after));
        held.truncate(limit);
        self.later(Ok(held))
    }

    fn forget(&self, fragment: &StoredFragment) -> LocalBoxFuture<'static, Result<(), FragmentError>> {
        self.medium.borrow_mut().fragments.remove(&(fragment.meta.key, fragment.extent.device));
        self.later(Ok(()))
    }

    fn list(
        &self,
        after: Option<(Locator, Generation)>,
        limit: usize,
    ) -> LocalBoxFuture<'static, Result<Vec<(Locator, Generation)>, FragmentError>> {
        let stripes = self.stripes();
        let names = stripes.keys().filter(|name| after.is_none_or(|after| **name > after)).take(limit).copied();
        self.later(Ok(names.collect()))
    }
}

fn node_keys() -> NodeKeys {
    let key = |byte: u8| SecretKey::take(&mut [byte; 32]);
    let masters = MasterKeys::new(BTreeMap::from([(MasterEpoch(1), key(1))])).expect("one key");
    NodeKeys { masters, locator: key(2), control: key(3) }
}

/// An engine, its media, and the run that drives it.
pub struct World {
    pub sim: Sim,
    pub logs: Logs,
    pub fragments: MemoryFragments,
    pub engine: Rc<Engine>,
    pub store: Store,
    shape: StripeShape,
    upkeep: Upkeep,
}

/// How an engine repairs and scrubs.
#[derive(Clone, Copy, Default)]
pub struct Upkeep {
    pub repair: RepairSettings,
    pub scrub: Option<ScrubSettings>,
}

impl World {
    /// Eight devices, coded 4+2.
    pub fn new(seed: u64) -> World {
        World::with_devices(seed, 8, StripeShape { data: 4, parity: 2 })
    }

    pub fn with_devices(seed: u64, device_count: u8, shape: StripeShape) -> World {
        World::with_upkeep(seed, device_count, shape, Upkeep::default())
    }

    pub fn with_upkeep(seed: u64, device_count: u8, shape: StripeShape, upkeep: Upkeep) -> World {
        let sim = Sim::new(seed);
        let medium = Medium { device_count, capacity_bytes: 1 << 40, ..Medium::default() };
        let fragments = MemoryFragments { medium: Rc::new(RefCell::new(medium)), ports: sim.ports(NODE) };
        let logs = Logs::default();
        let engine = start(&sim, &logs, &fragments, shape, upkeep, true);
        let store = engine.store();
        World { sim, logs, fragments, engine, store, shape, upkeep }
    }

    /// The node goes down and comes back with what was committed and durable.
    pub fn restart(&mut self) {
        self.sim.kill(NODE);
        self.fragments.ports = self.sim.ports(NODE);
        self.fragments.medium.borrow_mut().putting.clear();
        self.engine = start(&self.sim, &self.logs, &self.fragments, self.shape, self.upkeep, false);
        self.store = self.engine.store();
    }

    /// Changes what is recorded of a device.
    pub fn record(&self, index: u8, update: DeviceUpdate) -> Result<DeviceRecord, StoreError> {
        self.run(self.engine.record_device(MemoryFragments::device(index), update))
    }

    /// As a start does: every device is recorded as opened.
    pub fn record_opened(&self) {
        for index in 0..self.fragments.healthy_count() as u8 {
            let place = DevicePlace { path: format!("d{index}"), pool: PoolId(0), class: "file".to_owned() };
            let update = DeviceUpdate::Opened { place, actor: DeviceActor::Node, reason: "opened".to_owned() };
            self.record(index, update).expect("it is opened");
        }
    }

    /// Has a device emptied.
    pub fn evacuate(&self, index: u8) {
        let (actor, reason) = (DeviceActor::Operator, "test".to_owned());
        self.record(index, DeviceUpdate::Evacuate { actor, reason, cause: None }).expect("it is evacuated");
    }

    /// Fragments that lie on a device, or are being put there.
    pub fn held_by(&self, index: u8) -> u64 {
        self.fragments.use_of(MemoryFragments::device(index)).expect("it works").fragments
    }

    /// Fences in all shards.
    pub fn fences(&self) -> usize {
        let logs = self.logs.groups.borrow();
        let is_fence = |file: u8, table: TableId| (file, table) == (machine::COUNTS_FILE, machine::FENCES);
        let in_shard = |(shard, (tables, _)): (&ShardId, &GroupState)| {
            let fences = tables.0.borrow().keys().filter(|(file, table, _)| is_fence(*file, *table)).count();
            if shard.0 < ShardId::TENANT_FIRST { 0 } else { fences }
        };
        logs.iter().map(in_shard).sum()
    }

    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.sim.block_on(NODE, future)
    }

    pub fn sleep(&self, seconds: u64) {
        // In parts: one run of the simulator has a limit.
        for part in (0..seconds).step_by(600) {
            let ports = self.sim.ports(NODE);
            let span = Duration::from_secs(600.min(seconds - part));
            self.run(async move { ports.sleep(span).await });
        }
    }

    /// Lets virtual time pass until the condition holds; not for ever.
    pub fn await_that(&self, what: &str, condition: impl Fn(&World) -> bool) {
        let ports = self.sim.ports(NODE);
        let deadline = ports.now() + Duration::from_secs(3 * 3600);
        while !condition(self) {
            assert!(ports.now() < deadline, "not within three hours: {what}");
            let pause = ports.clone();
            self.run(async move { pause.sleep(Duration::from_millis(20)).await });
        }
    }

    /// Until repair has looked at every stripe with the devices that are usable now, and has nothing left to do.
    pub fn await_full_width(&self) {
        self.await_that("full width", |world| {
            let state = world.engine.repair_state();
            let open = state.backlog + state.waiting + state.lost;
            state.devices_walked == world.fragments.healthy_count() && open == 0
        });
    }

    pub fn tenant(&self, name: &str, dedup: Dedup) -> TenantId {
        let calls: &Calls = self.engine.calls();
        let create = ControlRequest::CreateTenant { name: name.to_owned(), dedup };
        match self.run(calls.control(create)).expect("a tenant") {
            ControlResponse::Tenant(info) => info.tenant,
            _ => panic!("a tenant"),
        }
    }

    pub fn put(&self, tenant: TenantId, bucket: &str, key: &str, bytes: &[u8]) -> Result<ObjectInfo, StoreError> {
        self.run(put(&self.store, tenant, bucket, key, bytes, FinishWrite::default()))
    }

    pub fn get(&self, tenant: TenantId, bucket: &str, key: &str) -> Result<Vec<u8>, StoreError> {
        self.run(async {
            let mut reader = self.store.get(tenant, bucket, key).await?;
            let len = reader.info().len_bytes;
            reader.seek(0..len);
            let mut out = Vec::new();
            while let Some(bytes) = reader.next().await? {
                out.extend_from_slice(&bytes);
            }
            Ok(out)
        })
    }
}

pub async fn put(
    store: &Store,
    tenant: TenantId,
    bucket: &str,
    key: &str,
    bytes: &[u8],
    finish: FinishWrite,
) -> Result<ObjectInfo, StoreError> {
    let mut writer = store.put(tenant, bucket, key, Some(bytes.len() as u64)).await?;
    for piece in bytes.chunks(100_000) {
        writer.write(Bytes::copy_from_slice(piece)).await?;
    }
    writer.finish(finish).await
}

fn start(
    sim: &Sim,
    logs: &Logs,
    fragments: &MemoryFragments,
    shape: StripeShape,
    upkeep: Upkeep,
    create: bool,
) -> Rc<Engine> {
    let ports = sim.ports(NODE);
    let link = SimLink::<EngineRequest, EngineResponse>::new(sim);
    let engine = Engine::new(EngineInputs {
        ports: ports.clone(),
        link: Rc::new(link.clone()),
        host: Rc::new(MemoryHost { logs: logs.clone(), ports: ports.clone() }),
        fragments: Rc::new(fragments.clone()),
        buffers: stale_buffers(),
        keys: Rc::new(node_keys()),
        lanes: (0..LANES).map(LaneId).collect(),
        lane_count: LANES,
        home_count: LANES,
        shards_per_tenant: 2,
        first_pool: shape,
        pin_epoch_age: kiseki_engine::engine::PIN_EPOCH_AGE,
        repair: upkeep.repair,
        scrub: upkeep.scrub,
    });
    for lane in (0..LANES).map(LaneId) {
        let engine = engine.clone();
        link.serve(lane, ports.clone(), move |request| {
            let engine = engine.clone();
            async move { engine.handle(request).await }.boxed_local()
        });
    }
    sim.block_on(NODE, async {
        engine.open_system_shards(create).await.expect("system shards open");
        engine.open_tenant_shards().await.expect("tenants' shards open");
        engine.start_background();
    });
    engine
}

/// Bytes that don't compress and differ by seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// What most objects of repair and evacuation are coded with.
pub const CODED: StripeShape = StripeShape { data: 4, parity: 2 };

/// Objects of one chunk, every fourth of them small and so stored as copies.
pub fn content(index: u64) -> Vec<u8> {
    noise(index + 1, if index.is_multiple_of(4) { 9_000 } else { 200_000 })
}

/// A bucket with objects "0", "1" and so on.
pub fn filled(world: World, objects: u64) -> (World, TenantId) {
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    for index in 0..objects {
        world.put(tenant, "bucket", &index.to_string(), &content(index)).unwrap();
    }
    (world, tenant)
}

pub fn assert_readable(world: &World, tenant: TenantId, objects: u64) {
    for index in 0..objects {
        assert!(world.get(tenant, "bucket", &index.to_string()).unwrap() == content(index), "object {index}");
    }
}
