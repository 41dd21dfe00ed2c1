//! The engine of one core: opens the shards of its lanes, answers requests for them, runs collection.

use crate::api::{Store, StoreError};
use crate::calls::Calls;
use crate::control_service::ControlService;
use crate::core::Core;
use crate::device_record::{DeviceRecord, DeviceUpdate};
use crate::evacuation::{EvacuationState, Evacuator};
use crate::home_service::HomeService;
use crate::host::{FileSpec, GroupHost, GroupSpec};
use crate::keyring::{NodeKeys, shard_deltas, shard_pages};
use crate::keys::MetaSealer;
use crate::leader::Leader;
use crate::machine::Machine;
use crate::message::{
    Closing, ControlRequest, ControlResponse, DeviceLook, EngineRequest, EngineResponse, OpenShard, RequestBody,
    ResponseBody,
};
use crate::orphans;
use crate::repairer::{RepairSettings, RepairState, Repairer};
use crate::scrubber::{LaneShare, ScrubSettings, ScrubState, Scrubber};
use crate::shard_service::ShardService;
use crate::store::EngineStore;
use kiseki_types::Ports;
use kiseki_types::buf::BufferSource;
use kiseki_types::fragment::{FragmentStore, StripeShape};
use kiseki_types::ids::{DeviceId, LaneId, ShardId};
use kiseki_types::link::Link;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// What an engine is made of.
pub struct EngineInputs {
    /// Time, chance, tasks of this core.
    pub ports: Ports,
    /// The way to all lanes.
    pub link: Rc<dyn Link<EngineRequest, EngineResponse>>,
    /// Opens groups on this core.
    pub host: Rc<dyn GroupHost>,
    /// The fragments of this node.
    pub fragments: Rc<dyn FragmentStore>,
    /// Where buffers of chunks and parity come from.
    pub buffers: BufferSource,
    /// The node's own keys.
    pub keys: Rc<NodeKeys>,
    /// Lanes of this core.
    pub lanes: Vec<LaneId>,
    /// Lanes of the node, fixed at format.
    pub lane_count: u16,
    /// Homes of the node, fixed at format.
    pub home_count: u16,
    /// Shards that a new tenant gets.
    pub shards_per_tenant: u16,
    /// Shape of the first pool's stripes, when the cluster is new.
    pub first_pool: StripeShape,
    /// How long a pin epoch stays open at least once writers get the next one, see [`PIN_EPOCH_AGE`].
    pub pin_epoch_age: Duration,
    /// How fast this core may repair.
    pub repair: RepairSettings,
    /// How often everything is read and checked; `None` for never.
    pub scrub: Option<ScrubSettings>,
}

/// Time between two closings of pin epochs. A writer asks for the epoch ten times as often and commits what it holds
/// under an older one, so only one that makes no progress for most of this time is refused.
pub const PIN_EPOCH_AGE: Duration = Duration::from_secs(600);

/// The engine of one core.
pub struct Engine {
    inputs: EngineInputs,
    calls: Calls,
    core: Rc<Core>,
    control: RefCell<Option<Rc<ControlService>>>,
    homes: RefCell<BTreeMap<ShardId, Rc<HomeService>>>,
    shards: RefCell<BTreeMap<ShardId, Rc<ShardService>>>,
    repairer: RefCell<Option<Rc<Repairer>>>,
    scrubber: RefCell<Option<Rc<Scrubber>>>,
    evacuator: RefCell<Option<Rc<Evacuator>>>,
}

impl Engine {
    /// Puts an engine together; nothing is open yet.
    #[must_use]
    pub fn new(inputs: EngineInputs) -> Rc<Engine> {
        let calls = Calls::new(inputs.link.clone(), inputs.lane_count, inputs.home_count);
        let core = Core::new(
            inputs.ports.clone(),
            calls.clone(),
            inputs.fragments.clone(),
            inputs.buffers.clone(),
            inputs.keys.clone(),
            inputs.pin_epoch_age,
        );
        Rc::new(Engine {
            inputs,
            calls,
            core,
            control: RefCell::default(),
            homes: RefCell::default(),
            shards: RefCell::default(),
            repairer: RefCell::default(),
            scrubber: RefCell::default(),
            evacuator: RefCell::default(),
        })
    }

    /// What gateways use.
    #[must_use]
    pub fn store(&self) -> Store {
        Rc::new(EngineStore::new(self.core.clone()))
    }

    /// The data path of this core, for its counters.
    #[must_use]
    pub fn core(&self) -> &Rc<Core> {
        &self.core
    }

    /// Calls to every shard, for administration.
    #[must_use]
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Homes of this core, for their counters.
    #[must_use]
    pub fn homes(&self) -> Vec<Rc<HomeService>> {
        self.homes.borrow().values().cloned().collect()
    }

    /// Tenants' shards of this core, for their counters.
    #[must_use]
    pub fn shards(&self) -> Vec<Rc<ShardService>> {
        self.shards.borrow().values().cloned().collect()
    }

    fn holds(&self, shard: ShardId) -> bool {
        self.inputs.lanes.contains(&shard.lane(self.inputs.lane_count))
    }

    /// Step 1 of a start, on every core: opens the control shard and the homes of this core's lanes. `create` only
    /// when the cluster is being made (I-O4).
    pub async fn open_system_shards(&self, create: bool) -> Result<(), StoreError> {
        if self.holds(ShardId::CONTROL) {
            let keys = &self.inputs.keys;
            let sealer = Rc::new(MetaSealer::new(keys.control_deltas(), &*self.inputs.ports));
            let group = self.inputs.host.open(GroupSpec {
                shard: ShardId::CONTROL,
                files: vec![FileSpec { name: "control.redb".to_owned(), seal: Some(keys.control_pages()) }],
                create,
                machine: Rc::new(Machine::of_control_shard(sealer.clone())),
            });
            let leader = Leader::new(self.inputs.ports.clone(), group.await?, Some(sealer));
            let control = ControlService::new(leader, self.calls.clone(), keys, self.inputs.shards_per_tenant);
            control.start(self.inputs.first_pool).await?;
            self.control.replace(Some(control));
        }
        for home in (0..u64::from(self.inputs.home_count)).map(|index| ShardId(ShardId::HOME_FIRST + index)) {
            if !self.holds(home) {
                continue;
            }
            let group = self.inputs.host.open(GroupSpec {
                shard: home,
                files: vec![FileSpec { name: format!("home-{}.redb", home.0), seal: None }],
                create,
                machine: Rc::new(Machine::of_home()),
            });
            let leader = Leader::new(self.inputs.ports.clone(), group.await?, None);
            let service = HomeService::new(
                leader,
                self.calls.clone(),
                self.inputs.fragments.clone(),
                self.core.devices.clone(),
                self.core.background.clone(),
                self.core.repairs.clone(),
            );
            service.start().await?;
            self.homes.borrow_mut().insert(home, service);
        }
        Ok(())
    }

    /// What is recorded of all devices, in the order of their ids.
    pub async fn device_records(&self) -> Result<Vec<DeviceRecord>, StoreError> {
        self.recorded_devices().await.map(|(_, records)| records)
    }

    async fn recorded_devices(&self) -> Result<(u64, Vec<DeviceRecord>), StoreError> {
        match self.calls.control(ControlRequest::Devices).await? {
            ControlResponse::Devices(version, records) => Ok((version, records)),
            _ => panic!("the control shard answers Devices with Devices"),
        }
    }

    /// Changes what is recorded of a device (I-D2), and answers the record as it is then. On Ok the change is durable
    /// and every core acts on it.
    pub async fn record_device(&self, device: DeviceId, update: DeviceUpdate) -> Result<DeviceRecord, StoreError> {
        match self.calls.control(ControlRequest::UpdateDevice { device, update }).await? {
            ControlResponse::Device(record) => Ok(*record),
            _ => panic!("the control shard answers UpdateDevice with Device"),
        }
    }

    /// Step 2, when step 1 is done on every core: this core takes up what is recorded of the devices, and the core of
    /// the control shard has all tenants' shards opened.
    pub async fn open_tenant_shards(&self) -> Result<(), StoreError> {
        let (version, records) = self.recorded_devices().await?;
        self.core.devices.take_up(version, records);
        let control = self.control.borrow().clone();
        match control {
            Some(control) => control.open_tenant_shards().await,
            None => Ok(()),
        }
    }

    /// Shape of the first pool's stripes, from step 1 on, on the core of the control shard; `None` on others.
    pub async fn first_pool(&self) -> Result<Option<StripeShape>, StoreError> {
        let control = self.control.borrow().clone();
        match control {
            Some(control) => control.first_pool().await.map(Some),
            None => Ok(None),
        }
    }

    /// Step 3, when step 2 is done: settles what writers left when the node went down, looks for orphans, repairs, scrubs.
    pub fn start_background(&self) {
        for home in self.homes() {
            home.settle_stale_pins();
        }
        orphans::start(&self.core);
        self.repairer.replace(Some(Repairer::start(&self.core, self.homes(), self.inputs.repair)));
        self.evacuator.replace(Some(Evacuator::start(&self.core)));
        if let Some(settings) = self.inputs.scrub {
            let share = LaneShare { lanes: self.inputs.lanes.len(), of: usize::from(self.inputs.lane_count) };
            self.scrubber.replace(Some(Scrubber::start(&self.core, self.homes(), share, settings)));
        }
    }

    /// What repair is about on this core; nothing before step 3.
    #[must_use]
    pub fn repair_state(&self) -> RepairState {
        self.repairer.borrow().as_ref().map(|repairer| repairer.state()).unwrap_or_default()
    }

    /// What keeps devices that are to be emptied from being so, as far as this core knows; nothing before step 3.
    #[must_use]
    pub fn evacuation_states(&self) -> BTreeMap<DeviceId, EvacuationState> {
        self.evacuator.borrow().as_ref().map(|evacuator| evacuator.states()).unwrap_or_default()
    }

    /// What this core knows of a device that is to be removed.
    fn look_at(&self, device: DeviceId, closing: Closing) -> DeviceLook {
        match closing {
            Closing::Close => self.core.devices.set_closed(device, true),
            Closing::Open => self.core.devices.set_closed(device, false),
            Closing::AsItIs => {}
        }
        let repair = self.repair_state();
        let has_walked = repair.devices_walked > 0;
        DeviceLook {
            core: self.inputs.lanes.first().copied().expect("a core that is asked has a lane"),
            used: self.core.fragments.use_of(device),
            older_placements: self.core.devices.older_placements(),
            open_stripes: has_walked.then_some(repair.backlog + repair.waiting + repair.lost),
        }
    }

    /// How far scrub is on this core; `None` when it is off, and before step 3.
    #[must_use]
    pub fn scrub_state(&self) -> Option<ScrubState> {
        self.scrubber.borrow().as_ref().map(|scrubber| scrubber.state())
    }

    /// Ends what goes on behind the answers, on every core before any core closes its groups.
    pub async fn stop_background(&self) {
        self.core.background.stop().await;
    }

    async fn open_shard(&self, shard: ShardId, open: OpenShard) -> Result<(), StoreError> {
        if self.shards.borrow().contains_key(&shard) {
            return Ok(());
        }
        let sealer = Rc::new(MetaSealer::new(shard_deltas(&open.metadata_key), &*self.inputs.ports));
        let group = self.inputs.host.open(GroupSpec {
            shard,
            files: vec![
                FileSpec { name: format!("shard-{}-names.redb", shard.0), seal: Some(shard_pages(&open.metadata_key)) },
                FileSpec { name: format!("shard-{}-counts.redb", shard.0), seal: None },
            ],
            create: open.create,
            machine: Rc::new(Machine::of_tenant_shard(sealer.clone())),
        });
        let leader = Leader::new(self.inputs.ports.clone(), group.await?, Some(sealer));
        let service =
            ShardService::new(leader, self.calls.clone(), self.core.background.clone(), self.inputs.pin_epoch_age);
        service.start().await?;
        self.shards.borrow_mut().insert(shard, service);
        Ok(())
    }

    /// Answers a request that arrived at this core.
    pub async fn handle(&self, request: EngineRequest) -> EngineResponse {
        let shard = request.shard;
        match request.body {
            RequestBody::Control(body) => {
                let control = self.control.borrow().clone().ok_or_else(|| not_open(shard))?;
                control.handle(body).await.map(ResponseBody::Control)
            }
            RequestBody::Home(body) => {
                let home = self.homes.borrow().get(&shard).cloned().ok_or_else(|| not_open(shard))?;
                home.handle(body).await.map(ResponseBody::Home)
            }
            RequestBody::Shard(body) => {
                let service = self.shards.borrow().get(&shard).cloned().ok_or_else(|| not_open(shard))?;
                service.handle(*body).await.map(ResponseBody::Shard)
            }
            RequestBody::Open(open) => self.open_shard(shard, open).await.map(|()| ResponseBody::Done),
            RequestBody::Forget => {
                self.core.control_cache.forget();
                Ok(ResponseBody::Done)
            }
            RequestBody::LookAtDevice(device, closing) => Ok(ResponseBody::Look(self.look_at(device, closing))),
            RequestBody::Devices { version, records } => {
                self.core.devices.take_up(version, records);
                Ok(ResponseBody::Done)
            }
        }
    }
}

fn not_open(shard: ShardId) -> StoreError {
    StoreError::Unavailable { reason: format!("shard {shard} is not open yet; try again") }
}
