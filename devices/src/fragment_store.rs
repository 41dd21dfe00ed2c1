//! The fragments of a node, as one core keeps them: put, locate, read, release, fold, and what other cores ask for.
//!
//! - The core that writes a fragment owns its extent and its journal record (one of the core's lanes allocates); the
//!   *index lane* of the locator owns the row that answers `locate`, and hears of the fragment before the put answers.
//! - Data and journal record are written side by side; then one flush, shared with everyone who waits, covers both.
//! - A failed write or flush fences the device here and on every other core (I-D6).
//! - In the background each lane's journals are folded into its table file ([`CoreFragmentStore::fold`]).
//!
//! Order of a start, per node: [`CoreFragmentStore::open`] on every core, requests of other cores go to
//! [`CoreFragmentStore::handle`], then [`CoreFragmentStore::publish_recovered`] on every core, then serving. Devices come
//! and go while it serves: [`CoreFragmentStore::add_device`], [`CoreFragmentStore::remove_device`].

mod discard;
mod fold;
mod held;
mod messages;
pub(crate) mod put;
mod read;
mod release;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use fold::folded_key;
pub use messages::{LaneRequest, LaneResponse};
pub use read::READ_GAP_BYTES_MAX;
pub(crate) use read::is_fragment;
pub use table::{AddDeviceError, StillInFlight};

use crate::device_times::DeviceTimes;
use crate::flush_gate::{DeviceFenced, FlushGate};
use crate::index::{InsertMode, Inserted, LaneIndex};
use crate::lane::{LaneOnDevice, reserve_blocks};
use crate::layout::DeviceLayout;
use crate::recovery;
use crate::space::{DeviceSpace, PutPurpose, SpacePolicy};
use kiseki_types::buf::{BufferSource, IoBuf, IoBytes};
use kiseki_types::device::Device;
use kiseki_types::fragment::{
    DeviceState, DeviceStatus, DeviceUse, FragmentError, FragmentMeta, FragmentStore, Located, StoredFragment,
};
use kiseki_types::link::Link;
use kiseki_types::runtime::{LocalBoxFuture, Ports};
use kiseki_types::table::{TableError, TableStore};
use kiseki_types::units::Extent;
use kiseki_types::{BlockIndex, DeviceId, Generation, Instant, LaneId, Locator, NodeId, PoolId};
use put::PutScope;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use table::DeviceTable;

/// A lane of this core and its table file.
pub struct OwnLane {
    /// The lane.
    pub lane: LaneId,
    /// Its table file: [`TABLE_EXTENTS`](crate::index::TABLE_EXTENTS),
    /// [`TABLE_FRAGMENTS`](crate::index::TABLE_FRAGMENTS), [`TABLE_META`](crate::index::TABLE_META).
    pub table: Rc<dyn TableStore>,
}

/// A device as this core sees it.
pub struct StoreDevice {
    /// Its id, from the superblock.
    pub id: DeviceId,
    /// Its pool, from the superblock.
    pub pool: PoolId,
    /// Its path, for messages.
    pub name: String,
    /// How it is divided, from the superblock.
    pub layout: DeviceLayout,
    /// How its space is used.
    pub space: SpacePolicy,
    /// This core's own queue on it.
    pub device: Rc<dyn Device>,
}

/// How cores reach the lanes of others.
pub type LaneLink = Rc<dyn Link<LaneRequest, LaneResponse>>;

/// What a core's store is opened with.
pub struct FragmentStoreConfig {
    /// The node that this is.
    pub node: NodeId,
    /// Time and tasks of the core.
    pub ports: Ports,
    /// Lanes of the node, as the devices were formatted.
    pub lane_count: u16,
    /// The lanes dealt to this core.
    pub lanes: Vec<OwnLane>,
    /// Every usable device of the node. A missing or foreign one is simply not in the list; rows that name it stay.
    pub devices: Vec<StoreDevice>,
    /// To the cores of all lanes.
    pub link: LaneLink,
    /// Where buffers come from; [`plain_buffers`](kiseki_types::buf::plain_buffers) without a pool.
    pub buffers: BufferSource,
    /// How often the background task looks for journals to fold.
    pub fold_interval: Duration,
}

/// What a core's store has done; read by the metrics endpoint.
#[derive(Debug, Default)]
pub struct FragmentCounters {
    /// Fragments written and acknowledged.
    pub puts: Cell<u64>,
    /// Payload bytes of those.
    pub put_bytes: Cell<u64>,
    /// Puts that were refused or failed.
    pub puts_failed: Cell<u64>,
    /// Puts that another core carried out because this core's lanes were full on the device.
    pub puts_forwarded: Cell<u64>,
    /// Payload parts that were copied because they were not aligned.
    pub parts_copied: Cell<u64>,
    /// Reads answered.
    pub reads: Cell<u64>,
    /// Payload bytes of those.
    pub read_bytes: Cell<u64>,
    /// Reads that failed their check (I-C9).
    pub corrupt: Cell<u64>,
    /// Reads that the device failed.
    pub read_errors: Cell<u64>,
    /// Bytes discarded after their fragments were released, or because they were free at the start.
    pub discarded_bytes: Cell<u64>,
    /// Runs that were discarded for that.
    pub discards: Cell<u64>,
    /// Discards that failed.
    pub discard_errors: Cell<u64>,
    /// Fragments released.
    pub releases: Cell<u64>,
    /// Devices fenced on this core (I-D6).
    pub fenced: Cell<u64>,
    /// Journals folded into tables.
    pub folds: Cell<u64>,
    /// Attempts to fold that failed. (Flushes and their waiters are counted by the gates, see
    /// [`CoreFragmentStore::flushes`].)
    pub fold_errors: Cell<u64>,
}

pub(crate) fn add(counter: &Cell<u64>, count: u64) {
    counter.set(counter.get().saturating_add(count));
}

/// What was read of a device and written to it on this core since it was opened: of fragments that were good or durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Reads.
    pub reads: u64,
    /// Payload bytes of those.
    pub read_bytes: u64,
    /// Time that they took in all, in microseconds.
    pub read_us: u64,
    /// Fragments written.
    pub writes: u64,
    /// Payload bytes of those.
    pub write_bytes: u64,
    /// Time that they took in all, in microseconds, until they were durable.
    pub write_us: u64,
}

/// A device on this core.
pub(crate) struct DeviceOnCore {
    pub id: DeviceId,
    pub pool: PoolId,
    pub name: String,
    pub layout: DeviceLayout,
    pub space: SpacePolicy,
    pub device: Rc<dyn Device>,
    pub gate: FlushGate,
    /// Of all devices of this core.
    pub times: Rc<DeviceTimes>,
    /// This core's lanes; some are missing when a journal could not be opened (the gate is fenced then).
    pub lanes: BTreeMap<LaneId, LaneOnDevice>,
    /// Whether another core told of the failure, so that it is not told again.
    failure_is_known: Cell<bool>,
    /// When it was opened.
    pub opened: Instant,
    /// A discard failed: none is tried until it is opened again.
    pub discard_failed: Cell<bool>,
    /// A round of discards is under way.
    pub is_discarding: Cell<bool>,
    /// Blocks that the rate left over, up to one unit of the device: a rate below that discards now and then, not never.
    pub discard_credit: Cell<u64>,
    /// Which lane's discards come first in the next round, so that a busy one does not take all of the rate.
    pub discard_turn: Cell<usize>,
    /// Reads that it failed.
    pub read_errors: Cell<u64>,
    /// What was read and written.
    pub io: Cell<DeviceIo>,
    /// Whether all cores of the node have it, so that fragments may be placed on it.
    is_admitted: Cell<bool>,
    /// Whether it is being taken out: then its fence is no failure.
    is_leaving: Cell<bool>,
}

impl DeviceOnCore {
    fn new(ports: &Ports, times: &Rc<DeviceTimes>, given: StoreDevice, is_admitted: bool) -> DeviceOnCore {
        DeviceOnCore {
            gate: FlushGate::timed(ports.clone(), given.device.clone(), times.clone()),
            times: times.clone(),
            id: given.id,
            pool: given.pool,
            name: given.name,
            layout: given.layout,
            space: given.space,
            device: given.device,
            lanes: BTreeMap::new(),
            failure_is_known: Cell::new(false),
            opened: ports.now(),
            discard_failed: Cell::new(false),
            is_discarding: Cell::new(false),
            discard_credit: Cell::new(0),
            discard_turn: Cell::new(0),
            read_errors: Cell::new(0),
            io: Cell::default(),
            is_admitted: Cell::new(is_admitted),
            is_leaving: Cell::new(false),
        }
    }

    pub fn note_read(&self, bytes: u64, took: Duration) {
        let mut io = self.io.get();
        (io.reads, io.read_bytes) = (io.reads + 1, io.read_bytes + bytes);
        io.read_us += took.as_micros() as u64;
        self.io.set(io);
    }

    pub fn note_write(&self, bytes: u64, took: Duration) {
        let mut io = self.io.get();
        (io.writes, io.write_bytes) = (io.writes + 1, io.write_bytes + bytes);
        io.write_us += took.as_micros() as u64;
        self.io.set(io);
    }

    /// The device's error, when it is fenced.
    pub fn check(&self) -> Result<(), FragmentError> {
        self.gate.fenced().map_or(Ok(()), |fenced| Err(self.failed(&fenced)))
    }

    pub fn failed(&self, fenced: &DeviceFenced) -> FragmentError {
        FragmentError::DeviceFailed { device: self.id, reason: fenced.reason.clone() }
    }

    /// The error after an operation that fenced the device.
    pub fn fenced_error(&self) -> FragmentError {
        self.check().err().unwrap_or_else(|| FragmentError::DeviceFailed {
            device: self.id,
            reason: "its journal takes nothing any more".to_string(),
        })
    }
}

/// Everything of one core's store.
pub(crate) struct Core {
    pub node: NodeId,
    pub ports: Ports,
    pub lane_count: u16,
    pub indexes: BTreeMap<LaneId, LaneIndex>,
    pub devices: DeviceTable,
    pub device_times: Rc<DeviceTimes>,
    pub link: LaneLink,
    pub buffers: BufferSource,
    pub counters: FragmentCounters,
    pub pins: read::ReadPins,
    /// Pools that were found at their critical fill by a client's put, see
    /// [`DeviceSpace::refuses_clients`].
    pub critical_pools: RefCell<BTreeSet<PoolId>>,
    /// Which own lane the next put tries first.
    pub turn: Cell<usize>,
    /// Whether index lanes have heard of what the journals replayed; before that nothing is written.
    pub is_published: Cell<bool>,
    pub fold_lock: futures::lock::Mutex<()>,
    pub fold_kick: RefCell<Option<futures::channel::oneshot::Sender<()>>>,
    pub fold_interval: Duration,
}

/// One core's [`FragmentStore`].
#[derive(Clone)]
pub struct CoreFragmentStore {
    core: Rc<Core>,
}

/// What opening found on a device, for logs, health and `doctor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceReport {
    /// Which device.
    pub device: DeviceId,
    /// Its path.
    pub name: String,
    /// Fragments that this core's lanes hold there.
    pub fragments: u64,
    /// Journal records replayed.
    pub replayed: u64,
    /// Unflushed allocations whose fragment did not verify, so they never happened.
    pub disbelieved: u64,
    /// Why the device is not used, if so: it counts as failed, and the remedy is in the text.
    pub problem: Option<String>,
}

impl CoreFragmentStore {
    /// Opens this core's lanes on every device. A device with a damaged journal is reported and treated as failed; it
    /// does not keep the store from opening (I-O3). Only an unreadable table file of an own lane does.
    pub async fn open(config: FragmentStoreConfig) -> Result<(CoreFragmentStore, Vec<DeviceReport>), TableError> {
        let (devices, device_times, mut reports) = (DeviceTable::default(), Rc::default(), Vec::new());
        for given in config.devices {
            assert_eq!(given.layout.lanes(), config.lane_count, "device {} has other lanes", given.name);
            let mut device = DeviceOnCore::new(&config.ports, &device_times, given, true);
            let tables = config.lanes.iter().map(|own| (own.lane, &own.table));
            reports.push(recovery::open_device(&config.ports, &config.buffers, tables, &mut device).await?);
            devices.insert(Rc::new(device));
        }
        let indexes = config.lanes.into_iter().map(|own| (own.lane, LaneIndex::new(own.table))).collect();
        let core = Rc::new(Core {
            node: config.node,
            ports: config.ports,
            lane_count: config.lane_count,
            indexes,
            devices,
            device_times,
            link: config.link,
            buffers: config.buffers,
            counters: FragmentCounters::default(),
            pins: read::ReadPins::default(),
            critical_pools: RefCell::default(),
            turn: Cell::new(0),
            is_published: Cell::new(false),
            fold_lock: futures::lock::Mutex::new(()),
            fold_kick: RefCell::default(),
            fold_interval: config.fold_interval,
        });
        for device in core.devices.all() {
            core.watch_fence(&device);
        }
        Ok((CoreFragmentStore { core }, reports))
    }

    /// Tells the index lanes what the journals replayed, makes that durable and trims the journals; then starts the
    /// background folding. Nothing can be written before. Call it once, when every core is open and answers requests.
    ///
    /// Errors: an index lane that does not answer; the node can't serve without it.
    pub async fn publish_recovered(&self) -> Result<(), FragmentError> {
        self.core.clone().publish_recovered().await
    }

    /// Folds every journal of this core's lanes as far as possible and makes the tables durable: for a clean stop.
    pub async fn fold(&self) -> Result<(), FragmentError> {
        self.core.fold_all().await
    }

    /// Answers a request to one of this core's lanes.
    pub async fn handle(&self, lane: LaneId, request: LaneRequest) -> LaneResponse {
        self.core.clone().handle(lane, request).await
    }

    /// Marks a device as failed on this core and all others: an operator or the map says so.
    pub fn fail_device(&self, device: DeviceId, reason: &str) {
        if let Some(found) = self.core.devices.get(device) {
            found.gate.fence(reason);
        }
    }

    /// Why a device is fenced on this core, if it is (I-D6).
    #[must_use]
    pub fn why_failed(&self, device: DeviceId) -> Option<String> {
        self.core.devices.get(device)?.gate.fenced().map(|fenced| fenced.reason)
    }

    /// What this core has done.
    #[must_use]
    pub fn counters(&self) -> &FragmentCounters {
        &self.core.counters
    }

    /// What was read and written on this core, by device.
    #[must_use]
    pub fn device_io(&self) -> Vec<(DeviceId, DeviceIo)> {
        self.core.devices.all().iter().map(|device| (device.id, device.io.get())).collect()
    }

    /// How long this core's devices took, those that have gone included.
    #[must_use]
    pub fn device_times(&self) -> &DeviceTimes {
        &self.core.device_times
    }

    /// (flushes, waiters that shared them) of all devices on this core, those that have gone included.
    #[must_use]
    pub fn flushes(&self) -> (u64, u64) {
        self.core.devices.flushes()
    }

    /// Space of every usable device on this core's lanes.
    #[must_use]
    pub fn space(&self) -> BTreeMap<DeviceId, DeviceSpace> {
        self.core.leave_critical();
        let critical = self.core.critical_pools.borrow();
        let usable = self.core.devices.all().into_iter().filter(|device| device.check().is_ok());
        usable.map(|device| (device.id, device.report_space(critical.contains(&device.pool)))).collect()
    }

    /// Highest fill of any journal of this core, 0.0 to 1.0.
    #[must_use]
    pub fn journal_fill(&self) -> f64 {
        self.core.fullest_journal()
    }
}

impl Core {
    pub fn device(&self, id: DeviceId) -> Result<Rc<DeviceOnCore>, FragmentError> {
        let found = self.devices.get(id).ok_or_else(|| FragmentError::DeviceFailed {
            device: id,
            reason: "it is missing on this node".to_string(),
        })?;
        found.check()?;
        Ok(found)
    }

    /// When the device is fenced here, ends what waits for its journals and tells the other cores.
    fn watch_fence(self: &Rc<Core>, device: &Rc<DeviceOnCore>) {
        let (core, watched) = (Rc::downgrade(self), Rc::downgrade(device));
        device.gate.on_fenced(Rc::new(move |fenced| {
            let (Some(core), Some(device)) = (core.upgrade(), watched.upgrade()) else { return };
            device.lanes.values().for_each(|lane| lane.journal.fence(&fenced.reason));
            if device.is_leaving.get() {
                return;
            }
            add(&core.counters.fenced, 1);
            let id = device.id;
            tracing::error!(device = %id, name = %device.name, reason = %fenced.reason, "device fenced; repair takes over");
            if !device.failure_is_known.replace(true) {
                let reason = fenced.reason.clone();
                let teller = core.clone();
                core.ports.spawn("tell fence", Box::pin(async move { teller.tell_failed(id, reason).await }));
            }
        }));
    }

    async fn tell_failed(self: Rc<Core>, device: DeviceId, reason: String) {
        let others = (0..self.lane_count).map(LaneId).filter(|lane| !self.indexes.contains_key(lane));
        let told = others.map(|lane| {
            let request = LaneRequest::DeviceFailed { device, reason: reason.clone() };
            self.link.call(lane, request)
        });
        // A core that does not answer is stopping; it finds out at its own next flush otherwise.
        futures::future::join_all(told).await;
    }

    pub fn index_lane(&self, locator: Locator) -> LaneId {
        locator.index_lane(self.lane_count)
    }

    /// Calls a lane: directly when it is ours.
    pub async fn call(self: &Rc<Core>, lane: LaneId, request: LaneRequest) -> Result<LaneResponse, FragmentError> {
        let response = if self.indexes.contains_key(&lane) {
            let direct: LocalBoxFuture<'_, LaneResponse> = Box::pin(self.clone().handle(lane, request));
            direct.await
        } else {
            let call = self.link.call(lane, request);
            call.await.map_err(|error| FragmentError::Unknown { reason: error.to_string() })?
        };
        match response {
            LaneResponse::Failed(error) => Err(error),
            response => Ok(response),
        }
    }

    async fn handle(self: Rc<Core>, lane: LaneId, request: LaneRequest) -> LaneResponse {
        let answer = self.try_handle(lane, request).await;
        answer.unwrap_or_else(LaneResponse::Failed)
    }

    async fn try_handle(self: &Rc<Core>, lane: LaneId, request: LaneRequest) -> Result<LaneResponse, FragmentError> {
        let index = self.indexes.get(&lane).ok_or_else(|| FragmentError::Unknown {
            reason: format!("lane {lane} is not on the core that was asked"),
        })?;
        match request {
            LaneRequest::IndexInsert { fragment, is_recovered } => {
                let mode = if is_recovered { InsertMode::Recovered } else { InsertMode::New };
                match index.insert(&fragment, mode).await.map_err(unknown)? {
                    Inserted::Yes => Ok(LaneResponse::Done),
                    Inserted::SecondOfStripe => Err(FragmentError::SecondOfStripe {
                        device: fragment.extent.device,
                        locator: fragment.meta.key.locator,
                        generation: fragment.meta.key.generation,
                    }),
                }
            }
            LaneRequest::IndexRemove { key, extent } => {
                index.remove(&key, extent).await.map_err(unknown)?;
                Ok(LaneResponse::Done)
            }
            LaneRequest::IndexLookup { locator, generation } => {
                index.lookup(locator, generation).await.map(LaneResponse::Found).map_err(unknown)
            }
            LaneRequest::IndexCheckpoint => {
                index.table().checkpoint().await.map_err(unknown)?;
                Ok(LaneResponse::Done)
            }
            LaneRequest::Put { device, meta, payload, purpose } => {
                let payload = vec![IoBuf::copy_of(&payload).freeze()];
                self.clone()
                    .start_put(device, meta, payload, purpose, PutScope::OwnLanes)
                    .await
                    .map(LaneResponse::Stored)
            }
            LaneRequest::ReleaseExtent { fragment } => {
                self.clone().release_own(fragment).await?;
                Ok(LaneResponse::Done)
            }
            LaneRequest::AwaitReads { extent } => {
                self.pins.ended(extent).await;
                Ok(LaneResponse::Done)
            }
            LaneRequest::ListFrom { after, limit } => {
                index.list(after, limit).await.map(LaneResponse::Pairs).map_err(unknown)
            }
            LaneRequest::DeviceFailed { device, reason } => {
                if let Some(found) = self.devices.get(device) {
                    found.failure_is_known.set(true);
                    found.gate.fence(&reason);
                }
                Ok(LaneResponse::Done)
            }
        }
    }

    fn status(&self, device: &DeviceOnCore) -> DeviceStatus {
        let block = u64::from(device.layout.block_len_bytes());
        let zones_per_lane = u64::from(device.layout.zones_per_lane()) * device.layout.zone_len().0;
        let reserve = reserve_blocks(kiseki_types::BlockCount(zones_per_lane)) * u64::from(self.lane_count) * block;
        DeviceStatus {
            id: device.id,
            node: self.node,
            name: device.name.clone(),
            pool: device.pool,
            capacity_bytes: device.layout.capacity_bytes().saturating_sub(reserve),
            free_bytes: device.lanes.values().map(LaneOnDevice::free_blocks).sum::<u64>() * block,
            lanes_bytes: device.lanes.len() as u64 * zones_per_lane * block,
            state: if device.gate.fenced().is_some() { DeviceState::Failed } else { DeviceState::Healthy },
            read_errors: device.read_errors.get(),
        }
    }

    async fn list(
        &self,
        after: Option<(Locator, Generation)>,
        limit: usize,
    ) -> Result<Vec<(Locator, Generation)>, FragmentError> {
        let mut pairs = Vec::new();
        for index in self.indexes.values() {
            pairs.extend(index.list(after, limit).await.map_err(unknown)?);
        }
        pairs.sort_unstable();
        pairs.truncate(limit);
        Ok(pairs)
    }
}

/// An index that can't be read answers nothing: neither "there" nor "absent".
pub(crate) fn unknown(error: TableError) -> FragmentError {
    FragmentError::Unknown { reason: error.to_string() }
}

impl FragmentStore for CoreFragmentStore {
    fn devices(&self) -> Vec<DeviceStatus> {
        let devices = self.core.devices.all().into_iter();
        devices.filter(|device| device.is_admitted.get()).map(|device| self.core.status(&device)).collect()
    }

    fn put(
        &self,
        device: DeviceId,
        meta: FragmentMeta,
        payload: Vec<IoBytes>,
    ) -> LocalBoxFuture<'static, Result<Extent, FragmentError>> {
        self.core.clone().start_put(device, meta, payload, PutPurpose::Client, PutScope::AllLanes)
    }

    fn put_for_upkeep(
        &self,
        device: DeviceId,
        meta: FragmentMeta,
        payload: Vec<IoBytes>,
    ) -> LocalBoxFuture<'static, Result<Extent, FragmentError>> {
        self.core.clone().start_put(device, meta, payload, PutPurpose::Upkeep, PutScope::AllLanes)
    }

    fn locate(
        &self,
        locator: Locator,
        generation: Generation,
    ) -> LocalBoxFuture<'static, Result<Located, FragmentError>> {
        let core = self.core.clone();
        Box::pin(async move {
            let lane = core.index_lane(locator);
            match core.call(lane, LaneRequest::IndexLookup { locator, generation }).await? {
                LaneResponse::Found(found) => Ok(Located { found, unanswered: Vec::new() }),
                other => Err(FragmentError::Unknown { reason: format!("lane {lane} answered {other:?}") }),
            }
        })
    }

    fn read(
        &self,
        fragment: &StoredFragment,
        range: Range<u32>,
    ) -> LocalBoxFuture<'static, Result<IoBytes, FragmentError>> {
        self.core.clone().start_read(fragment.clone(), range)
    }

    fn release(&self, fragment: &StoredFragment) -> LocalBoxFuture<'static, Result<(), FragmentError>> {
        self.core.clone().start_release(fragment.clone())
    }

    fn use_of(&self, device: DeviceId) -> Option<DeviceUse> {
        self.core.use_of(device)
    }

    fn held_on(
        &self,
        device: DeviceId,
        after: Option<BlockIndex>,
        limit: usize,
    ) -> LocalBoxFuture<'static, Result<Vec<StoredFragment>, FragmentError>> {
        Box::pin(self.core.clone().held_on(device, after, limit))
    }

    fn forget(&self, fragment: &StoredFragment) -> LocalBoxFuture<'static, Result<(), FragmentError>> {
        let (core, fragment) = (self.core.clone(), fragment.clone());
        Box::pin(async move { core.forget(&fragment).await })
    }

    fn list(
        &self,
        after: Option<(Locator, Generation)>,
        limit: usize,
    ) -> LocalBoxFuture<'static, Result<Vec<(Locator, Generation)>, FragmentError>> {
        let core = self.core.clone();
        Box::pin(async move { core.list(after, limit).await })
    }
}
