//! A whole engine on one simulated core: real services, with groups that commit at once and fragments in memory.
//! What devices and logs promise is tested in their own rooms; here it is what the engine makes of it.

use crate::groups::{GroupState, Logs, MemoryHost};
use bytes::Bytes;
use futures::FutureExt;
use kiseki_engine::api::{FinishWrite, ObjectInfo, Store, StoreError};
use kiseki_engine::calls::Calls;
use kiseki_engine::cluster_fragments::fragment_handler;
use kiseki_engine::device_record::{DeviceActor, DevicePlace, DeviceRecord, DeviceUpdate};
use kiseki_engine::engine::{Engine, EngineInputs};
use kiseki_engine::inline::InlineSettings;
use kiseki_engine::keyring::NodeKeys;
use kiseki_engine::keys::MasterKeys;
use kiseki_engine::machine;
use kiseki_engine::message::{
    ControlRequest, ControlResponse, Dedup, EngineRequest, EngineResponse, NodeEntry, NodeState,
};
use kiseki_engine::nodes::{NobodyElse, NodeBoard, Standing};
use kiseki_engine::rebalancer::RebalanceSettings;
use kiseki_engine::repairer::RepairSettings;
use kiseki_engine::scrubber::ScrubSettings;
use kiseki_engine::split_message::SplitCeilings;
use kiseki_simulator::{NodeId, Sim, SimLink, SimNet};
use kiseki_types::LocalBoxFuture;
use kiseki_types::buf::{IoBuf, IoBytes, STALE_BYTE, stale_buffers};
use kiseki_types::fragment::{
    DeviceState, DeviceStatus, DeviceUse, FragmentError, FragmentKey, FragmentMeta, FragmentStore, Located,
    StoredFragment, StripeShape,
};
use kiseki_types::ids::{DeviceId, Generation, LaneId, Locator, MasterEpoch, PoolId, ShardId, TenantId};
use kiseki_types::peer::{PeerCalls, PeerHandler, ServiceId};
use kiseki_types::runtime::{Ports, RuntimeExt};
use kiseki_types::secret::SecretKey;
use kiseki_types::table::TableId;
use kiseki_types::units::{BlockCount, BlockIndex, Extent};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

pub const NODE: NodeId = NodeId(0);
const LANES: u16 = 2;
pub const ONLY_NODE: kiseki_types::NodeId = kiseki_types::NodeId(1);

/// Every so many reads of a device one takes longer.
#[derive(Clone, Copy)]
struct SlowReads {
    every: u64,
    delay: Duration,
    begun: u64,
}

#[derive(Default)]
struct Medium {
    fragments: BTreeMap<(FragmentKey, DeviceId), (StoredFragment, Vec<u8>)>,
    failed: BTreeSet<DeviceId>,
    capacity_bytes: u64,
    node: kiseki_types::NodeId,
    first_device: u8,
    device_count: u8,
    put_delay: Duration,
    slow_reads: BTreeMap<DeviceId, SlowReads>,
    locate_delay: Duration,
    /// Reads that began.
    reads: u64,
    /// Whether every put finds the device full.
    refuses_puts: bool,
    /// Whether the devices say how full they are.
    tells_fill: bool,
    /// Puts under way, by device.
    putting: BTreeMap<DeviceId, u64>,
    /// Where the next fragment lies on its device.
    next_block: u64,
    /// How often stripes were looked up, and which of these times fails.
    locates: u64,
    failing_locate: Option<u64>,
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
        if self.refuses_puts || used + bytes.len() as u64 > self.capacity_bytes {
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
    fn new(ports: Ports, node: u64, first_device: u8, device_count: u8) -> MemoryFragments {
        let (capacity_bytes, node) = (1 << 40, kiseki_types::NodeId(node));
        let medium = Medium { node, first_device, device_count, capacity_bytes, ..Medium::default() };
        MemoryFragments { medium: Rc::new(RefCell::new(medium)), ports }
    }
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
    /// Lookups of stripes so far.
    pub fn locates(&self) -> u64 {
        self.medium.borrow().locates
    }
    /// Has the lookup fail that is so many away.
    pub fn fail_locate(&self, after: u64) {
        let mut medium = self.medium.borrow_mut();
        medium.failing_locate = Some(medium.locates + after);
    }
    /// How much longer one of `every` reads of a device takes from now on.
    pub fn slow_down(&self, index: u8, every: u64, delay: Duration) {
        let slow = SlowReads { every, delay, begun: 0 };
        self.medium.borrow_mut().slow_reads.insert(Self::device(index), slow);
    }
    /// How much longer it takes to say what lies here.
    pub fn set_locate_delay(&self, delay: Duration) {
        self.medium.borrow_mut().locate_delay = delay;
    }
    /// Reads that began so far.
    pub fn reads(&self) -> u64 {
        self.medium.borrow().reads
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
    /// Whether every put finds its device full.
    pub fn refuse_puts(&self, refuses: bool) {
        self.medium.borrow_mut().refuses_puts = refuses;
    }
    /// One more device, empty.
    pub fn add_device(&self) {
        self.medium.borrow_mut().device_count += 1;
    }
    /// From now on devices have so many bytes and say how full they are.
    pub fn tell_fill(&self, capacity_bytes: u64) {
        self.set_capacity(capacity_bytes);
        self.medium.borrow_mut().tells_fill = true;
    }
    /// Bytes on each device.
    pub fn bytes_by_device(&self) -> BTreeMap<DeviceId, u64> {
        let mut bytes: BTreeMap<DeviceId, u64> = self.devices().iter().map(|device| (device.id, 0)).collect();
        for ((_, device), (_, fragment)) in &self.medium.borrow().fragments {
            *bytes.entry(*device).or_default() += fragment.len() as u64;
        }
        bytes
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
    /// A second copy of the first fragment of each stripe, on another device: what puts leave that landed when nobody waited for
    /// them any more.
    pub fn land_again(&self) {
        let stripes = self.stripes();
        let mut medium = self.medium.borrow_mut();
        for ((locator, generation), holders) in stripes {
            let first = medium
                .fragments
                .iter()
                .find(|((key, _), _)| (key.locator, key.generation, key.index) == (locator, generation, 0));
            let (meta, bytes) = first.map(|(_, (stored, bytes))| (stored.meta.clone(), bytes.clone())).unwrap();
            let mut devices = (0..medium.device_count).map(Self::device);
            let other = devices.find(|device| !holders.contains(device)).expect("a device without it");
            medium.put(other, meta, bytes).unwrap();
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
        self.after(Duration::ZERO, result)
    }
    fn after<T: 'static>(&self, delay: Duration, result: T) -> LocalBoxFuture<'static, T> {
        let ports = self.ports.clone();
        Box::pin(async move {
            ports.sleep(Duration::from_micros(50) + delay).await;
            result
        })
    }
}

impl FragmentStore for MemoryFragments {
    fn devices(&self) -> Vec<DeviceStatus> {
        let medium = self.medium.borrow();
        (medium.first_device..medium.first_device + medium.device_count)
            .map(|index| {
                let id = Self::device(index);
                let state = if medium.failed.contains(&id) { DeviceState::Failed } else { DeviceState::Healthy };
                let capacity_bytes = medium.capacity_bytes;
                let (pool, name, read_errors) = (PoolId(0), format!("d{index}"), 0);
                let node = medium.node;
                let on_device = || medium.fragments.iter().filter(|((_, on), _)| *on == id);
                let used: u64 = on_device().map(|(_, (_, bytes))| bytes.len() as u64).sum();
                let (free_bytes, lanes_bytes) = match medium.tells_fill {
                    true => (capacity_bytes - used, capacity_bytes),
                    false => (0, 0),
                };
                DeviceStatus { id, node, name, pool, capacity_bytes, free_bytes, lanes_bytes, state, read_errors }
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
    ) -> LocalBoxFuture<'static, Result<Located, FragmentError>> {
        let mut medium = self.medium.borrow_mut();
        medium.locates += 1;
        if medium.failing_locate == Some(medium.locates) {
            return self.later(Err(FragmentError::Unknown { reason: "test".to_owned() }));
        }
        let of_stripe = |key: &FragmentKey| key.locator == locator && key.generation == generation;
        let found =
            medium.fragments.iter().filter(|((key, _), _)| of_stripe(key)).map(|(_, (stored, _))| stored.clone());
        let located = Located { found: found.collect(), unanswered: Vec::new() };
        self.after(medium.locate_delay, Ok(located))
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
        drop(medium);
        let mut medium = self.medium.borrow_mut();
        medium.reads += 1;
        let delay = medium.slow_reads.get_mut(&device).map_or(Duration::ZERO, |slow| {
            slow.begun += 1;
            if slow.begun.is_multiple_of(slow.every) { slow.delay } else { Duration::ZERO }
        });
        self.after(delay, result)
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

/// Other nodes, which hold fragments and nothing else, and the network to them.
pub struct Apart {
    pub net: SimNet,
    pub others: Vec<MemoryFragments>,
}

impl Apart {
    fn entries(&self) -> Vec<NodeEntry> {
        let entry = |node| NodeEntry {
            state: NodeState::Active,
            lanes: LANES,
            cores: 1,
            ..NodeEntry::invited(kiseki_types::NodeId(node), 0)
        };
        (1..=self.others.len() as u64 + 1).map(entry).collect()
    }

    /// A node of the cluster that holds fragments.
    fn add(&mut self, sim: &Sim, devices: u8) {
        let node = self.others.len() as u8 + 2;
        let ports = sim.ports(NodeId(u32::from(node)));
        let fragments = MemoryFragments::new(ports.clone(), u64::from(node), (node - 1) * devices, devices);
        let handler = fragment_handler(Rc::new(fragments.clone()));
        let number = kiseki_types::NodeId(u64::from(node));
        self.net.serve(number, ServiceId::FRAGMENTS, ports.clone(), handler);
        let no_shards: PeerHandler = Rc::new(|_, _, _| Box::pin(async { Err("it holds fragments alone".to_owned()) }));
        self.net.serve(number, ServiceId::ENGINE, ports, no_shards);
        self.others.push(fragments);
    }

    /// A node refuses whatever it is asked, as one that stops.
    pub fn stop(&self, sim: &Sim, node: u64) {
        let refuses: PeerHandler = Rc::new(|_, _, _| Box::pin(async { Err("it is stopping".to_owned()) }));
        self.net.serve(kiseki_types::NodeId(node), ServiceId::FRAGMENTS, sim.ports(NodeId(node as u32)), refuses);
    }

    /// Nothing gets to a node or from it any more.
    pub fn cut(&self, node: u64) {
        for (from, to) in [(1, node), (node, 1)] {
            self.net.cut(kiseki_types::NodeId(from), kiseki_types::NodeId(to));
        }
    }
}

/// An engine, its media, and the run that drives it.
pub struct World {
    pub sim: Sim,
    pub logs: Logs,
    pub fragments: MemoryFragments,
    pub nodes: Rc<NodeBoard>,
    pub apart: Option<Apart>,
    /// What the engine uses.
    pub all_fragments: Rc<dyn FragmentStore>,
    pub engine: Rc<Engine>,
    pub store: Store,
    shape: StripeShape,
    upkeep: Upkeep,
}

/// How an engine repairs and scrubs, and when its shards split.
#[derive(Clone, Copy, Default)]
pub struct Upkeep {
    pub repair: RepairSettings,
    pub scrub: Option<ScrubSettings>,
    pub rebalance: RebalanceSettings,
    pub split: SplitCeilings,
    /// Without, everything becomes chunks.
    pub inline: Option<InlineSettings>,
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
        let fragments = MemoryFragments::new(sim.ports(NODE), 1, 0, device_count);
        World::over(sim, fragments, None, shape, upkeep)
    }

    /// One engine, and fragments on several nodes with as many devices each.
    pub fn on_nodes(seed: u64, node_count: u8, devices: u8, shape: StripeShape) -> World {
        let (sim, own) = (Sim::new(seed), kiseki_types::NodeId(1));
        let net = SimNet::new(&sim);
        let mut apart = Apart { net, others: Vec::new() };
        (2..=node_count).for_each(|_| apart.add(&sim, devices));
        let fragments = MemoryFragments::new(sim.ports(NODE), own.0, 0, devices);
        let world = World::over(sim, fragments, Some(apart), shape, Upkeep::default());
        world.await_all_heard();
        world
    }

    fn over(sim: Sim, fragments: MemoryFragments, apart: Option<Apart>, shape: StripeShape, upkeep: Upkeep) -> World {
        let logs = Logs::default();
        let (engine, nodes, all_fragments) = start(&sim, &logs, &fragments, apart.as_ref(), shape, upkeep, true);
        let store = engine.store();
        World { sim, logs, fragments, nodes, apart, all_fragments, engine, store, shape, upkeep }
    }

    /// One more node joins, with as many devices as the others have.
    pub fn join(&mut self, devices: u8) {
        let apart = self.apart.as_mut().expect("a world of several nodes");
        apart.add(&self.sim, devices);
        self.nodes.take_up(self.nodes.version() + 1, &apart.entries());
        self.await_all_heard();
    }

    /// Until rebalancing has looked at everything with so many devices, and has nothing left to move.
    pub fn await_rebalanced(&self, devices: usize) {
        self.await_that("rebalancing is at rest", |world| {
            let state = world.engine.rebalance_state();
            state.is_at_rest && state.devices_surveyed == devices
        });
    }

    pub fn await_all_heard(&self) {
        self.await_that("every node is heard", |world| {
            let now = world.sim.ports(NODE).now();
            let mut entries = world.nodes.entries().into_iter();
            entries.all(|entry| world.nodes.standing(entry.node, now) == Standing::Here)
        });
    }

    /// Fragments that can be read on any node, as (index, node), by stripe.
    pub fn good_by_node(&self) -> BTreeMap<(Locator, Generation), Vec<(u8, u64)>> {
        let mut stripes = BTreeMap::<_, Vec<_>>::new();
        let others = self.apart.iter().flat_map(|apart| &apart.others);
        for (node, fragments) in (1..).zip(std::iter::once(&self.fragments).chain(others)) {
            for (name, good) in fragments.good() {
                stripes.entry(name).or_default().extend(good.iter().map(|(index, _)| (*index, node)));
            }
        }
        stripes
    }

    /// The node goes down and comes back with what was committed and durable.
    pub fn restart(&mut self) {
        self.sim.kill(NODE);
        self.fragments.ports = self.sim.ports(NODE);
        self.fragments.medium.borrow_mut().putting.clear();
        (self.engine, self.nodes, self.all_fragments) =
            start(&self.sim, &self.logs, &self.fragments, self.apart.as_ref(), self.shape, self.upkeep, false);
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
    apart: Option<&Apart>,
    shape: StripeShape,
    upkeep: Upkeep,
    create: bool,
) -> (Rc<Engine>, Rc<NodeBoard>, Rc<dyn FragmentStore>) {
    let ports = sim.ports(NODE);
    let nodes = NodeBoard::new(ONLY_NODE);
    let peers: Rc<dyn PeerCalls> = match apart {
        Some(apart) => apart.net.calls(ONLY_NODE, ports.clone()),
        None => Rc::new(NobodyElse),
    };
    let link = SimLink::<EngineRequest, EngineResponse>::new(sim);
    let engine = Engine::new(EngineInputs {
        ports: ports.clone(),
        link: Rc::new(link.clone()),
        nodes: nodes.clone(),
        peers,
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
        rebalance: upkeep.rebalance,
        scrub: upkeep.scrub,
        split: upkeep.split,
        inline: upkeep.inline.unwrap_or(InlineSettings::off()),
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
        if let Some(apart) = apart {
            nodes.take_up(u64::from(u32::MAX), &apart.entries()); // newer than what the control shard records
        }
        engine.start_background();
    });
    let all = engine.core().fragments.clone();
    (engine, nodes, all)
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
