//! The engine of one core: opens the shards of its lanes, answers requests for them, runs collection.

use crate::api::{Store, StoreError};
use crate::calls::{Calls, CallsInputs};
use crate::cluster_fragments::ClusterFragments;
use crate::control_service::FIRST_POOL;
use crate::core::{Core, CoreSettings};
use crate::device_record::{DeviceRecord, DeviceUpdate};
use crate::evacuation::{EvacuationState, Evacuator};
use crate::holdings::Holdings;
use crate::home_service::HomeService;
use crate::host::{FileSpec, GroupHost, GroupSpec, Opening};
use crate::inline::InlineSettings;
use crate::keyring::{NodeKeys, shard_deltas, shard_pages};
use crate::keys::MetaSealer;
use crate::late_puts;
use crate::machine::Machine;
use crate::message::{
    Closing, ControlRequest, ControlResponse, CoreRequest, DeviceLook, EngineRequest, EngineResponse, OpenShard,
    RequestBody, ResponseBody,
};
use crate::metadata_room::MetadataRoom;
use crate::nodes::NodeBoard;
use crate::orphans;
use crate::rebalancer::{RebalanceSettings, RebalanceState, Rebalancer};
use crate::repairer::{RepairSettings, RepairState, Repairer};
use crate::replica_keeper::voters_wanted;
use crate::scrubber::{LaneShare, ScrubSettings, ScrubState, Scrubber};
use crate::seats::{Entered, Seats, Service};
use crate::shard_service::ShardService;
use crate::split_message::SplitCeilings;
use crate::store::EngineStore;
use crate::wire;
use crate::without::{Leaving, Without, shard_without};
use kiseki_types::Ports;
use kiseki_types::buf::BufferSource;
use kiseki_types::fragment::{FragmentStore, StripeShape};
use kiseki_types::group::{GroupView, Leadership, RaftGroup, VoterId, node_of};
use kiseki_types::ids::{DeviceId, LaneId, NodeId, ShardId};
use kiseki_types::link::Link;
use kiseki_types::peer::{Parcel, PeerCalls, PeerHandler, PeerIdentity};
use kiseki_types::runtime::RuntimeExt;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;
use tracing::{debug, error, warn};
use zeroize::Zeroize;

/// What an engine is made of.
pub struct EngineInputs {
    /// Time, chance, tasks of this core.
    pub ports: Ports,
    /// The way to all lanes.
    pub link: Rc<dyn Link<EngineRequest, EngineResponse>>,
    /// This node, and the others.
    pub nodes: Rc<NodeBoard>,
    /// The way to other nodes.
    pub peers: Rc<dyn PeerCalls>,
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
    /// When devices are balanced.
    pub rebalance: RebalanceSettings,
    /// How often everything is read and checked; `None` for never.
    pub scrub: Option<ScrubSettings>,
    /// When a shard has itself split.
    pub split: SplitCeilings,
    /// How much of small objects lies beside their names.
    pub inline: InlineSettings,
}

/// Time between two closings of pin epochs. A writer asks for the epoch ten times as often and commits what it holds
/// under an older one, so only one that makes no progress for most of this time is refused.
pub const PIN_EPOCH_AGE: Duration = Duration::from_secs(600);

/// Before others are asked again that a start waits for.
const OTHERS_INTERVAL: Duration = Duration::from_millis(500);

/// Between two events that tell of that.
const TOLD_INTERVAL: Duration = Duration::from_secs(10);

/// Between two looks at the records of devices and nodes: a core that could not be told of a change learns of it so.
const RECORDS_INTERVAL: Duration = Duration::from_secs(5);

/// Takes up what is recorded of devices and nodes, again and again while there are other nodes.
async fn refresh_records(engine: Weak<Engine>, ports: Ports) {
    loop {
        ports.sleep(RECORDS_INTERVAL).await;
        let Some(engine) = engine.upgrade() else { return };
        if !engine.core.nodes.is_alone()
            && let Err(error) = engine.take_up_records().await
        {
            debug!(%error, "the records of devices and nodes can't be read now");
        }
        // This core may have nothing else to ask a member, and would store nothing inline for ever.
        engine.calls.ask_what_is_spoken(wire::ROOM_VERSION).await;
    }
}

/// Asks voters what their metadata directories have room for, again and again.
async fn ask_for_rooms(engine: Weak<Engine>, ports: Ports) {
    loop {
        ports.sleep(RECORDS_INTERVAL).await;
        let Some(engine) = engine.upgrade() else { return };
        engine.ask_for_rooms().await;
    }
}

/// The engine of one core.
pub struct Engine {
    inputs: Rc<EngineInputs>,
    calls: Calls,
    core: Rc<Core>,
    seats: Rc<Seats>,
    repairer: RefCell<Option<Rc<Repairer>>>,
    scrubber: RefCell<Option<Rc<Scrubber>>>,
    evacuator: RefCell<Option<Rc<Evacuator>>>,
    rebalancer: RefCell<Option<Rc<Rebalancer>>>,
    /// Replicas that are being opened.
    opening: futures::lock::Mutex<()>,
}

impl Engine {
    /// Puts an engine together; nothing is open yet.
    #[must_use]
    pub fn new(inputs: EngineInputs) -> Rc<Engine> {
        let calls = Calls::new(CallsInputs {
            ports: inputs.ports.clone(),
            link: inputs.link.clone(),
            lane_count: inputs.lane_count,
            home_count: inputs.home_count,
            nodes: inputs.nodes.clone(),
            peers: inputs.peers.clone(),
        });
        let fragments = ClusterFragments::new(
            inputs.ports.clone(),
            inputs.nodes.clone(),
            inputs.peers.clone(),
            inputs.fragments.clone(),
            inputs.buffers.clone(),
        );
        let core = Core::new(
            inputs.ports.clone(),
            calls.clone(),
            inputs.nodes.clone(),
            &fragments,
            inputs.buffers.clone(),
            inputs.keys.clone(),
            CoreSettings { pin_epoch_age: inputs.pin_epoch_age, inline: inputs.inline },
        );
        fragments.start(&core.background);
        let inputs = Rc::new(inputs);
        let seats = Seats::new(core.clone(), inputs.clone());
        Rc::new(Engine {
            inputs,
            calls,
            core,
            seats,
            repairer: RefCell::default(),
            scrubber: RefCell::default(),
            evacuator: RefCell::default(),
            rebalancer: RefCell::default(),
            opening: futures::lock::Mutex::new(()),
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

    /// Homes that this core leads, for their counters.
    #[must_use]
    pub fn homes(&self) -> Vec<Rc<HomeService>> {
        self.core.homes.all()
    }

    /// Tenants' shards that this core leads, for their counters.
    #[must_use]
    pub fn shards(&self) -> Vec<Rc<ShardService>> {
        let shard = |service| match service {
            Service::Shard(shard) => Some(shard),
            Service::Control(_) | Service::Home(_) => None,
        };
        self.seats.services().into_iter().filter_map(shard).collect()
    }

    /// Every replica of this core, who leads it, and its voters.
    #[must_use]
    pub fn replicas(&self) -> Vec<(ShardId, Leadership, Vec<VoterId>)> {
        self.seats.leaderships()
    }

    /// Every replica of this core as it is, and how many terms began here since the node started.
    #[must_use]
    pub fn group_views(&self) -> Vec<(ShardId, GroupView, u64)> {
        self.seats.views()
    }

    /// Shards that this core leads, and votes that they lack.
    #[must_use]
    pub fn led(&self) -> (u64, u64) {
        let members = self.core.nodes.members().len() + 1;
        let led = self.seats.leaderships().into_iter().filter(|(_, leadership, _)| leadership.is_here);
        led.fold((0, 0), |(led, missing), (shard, _, voters)| {
            (led + 1, missing + voters_wanted(shard, members).saturating_sub(voters.len()) as u64)
        })
    }

    fn holds(&self, shard: ShardId) -> bool {
        self.inputs.lanes.contains(&shard.lane(self.inputs.lane_count))
    }

    /// Step 1 of a start, on every core: opens the control shard and the homes of this core's lanes. `create` only
    /// when the cluster is being made (I-O4).
    ///
    /// A node that is alone has them all; another one opens those that its logs know, and does not wait for leaders: others may
    /// have to start for that.
    pub async fn open_system_shards(&self, create: bool) -> Result<(), StoreError> {
        let is_alone = self.core.nodes.is_alone();
        let all = std::iter::once(ShardId::CONTROL)
            .chain((0..u64::from(self.inputs.home_count)).map(|index| ShardId(ShardId::HOME_FIRST + index)));
        let opening = if create { Opening::Create } else { Opening::Existing };
        let hosted = self.inputs.host.hosted();
        for shard in all.filter(|shard| self.holds(*shard)).filter(|shard| is_alone || hosted.contains(shard)) {
            match self.open_system_shard(shard, opening).await {
                Ok(()) if is_alone => self.seats.until_led(shard).await?,
                Ok(()) => {}
                Err(error) if is_alone => return Err(error),
                Err(error) => without(shard, &error),
            }
        }
        Ok(())
    }

    async fn open_system_shard(&self, shard: ShardId, opening: Opening) -> Result<(), StoreError> {
        let ports = &self.inputs.ports;
        let (sealer, file, machine) = if shard == ShardId::CONTROL {
            let keys = &self.inputs.keys;
            let sealer = Rc::new(MetaSealer::new(keys.control_deltas(), &**ports));
            let file = FileSpec::sealed("control.redb".to_owned(), keys.control_pages());
            (Some(sealer.clone()), file, Machine::of_control_shard(sealer))
        } else {
            (None, FileSpec::clear(format!("home-{}.redb", shard.0)), Machine::of_home())
        };
        let spec = GroupSpec { shard, files: vec![file], opening, machine: Rc::new(machine) };
        let group = self.inputs.host.open(spec).await?;
        let other = group.voters().into_iter().map(node_of).find(|node| *node != self.core.nodes.own());
        if let Some(other) = other.filter(|_| self.core.nodes.entries().is_empty()) {
            let reason = format!(
                "this node is one of several and does not know where the others are: {other} has a vote in shard {shard}, and \
                 nodes.json is missing; copy the file of another node of the cluster beside kiseki.toml"
            );
            return Err(StoreError::Unavailable { reason });
        }
        self.seats.add(group, sealer);
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

    /// Step 2, when step 1 is done on every core: this core takes up what is recorded of the devices and nodes, and tenants'
    /// shards are opened. With other nodes this waits for as long as it takes until the control shard is led.
    pub async fn open_tenant_shards(&self) -> Result<(), StoreError> {
        let is_alone = self.core.nodes.is_alone();
        self.patiently(is_alone, async || self.take_up_records().await).await?;
        if is_alone {
            return match self.seats.control() {
                Some(control) => control.open_tenant_shards(true).await,
                None => Ok(()),
            };
        }
        for shard in self.inputs.host.hosted() {
            if shard.0 >= ShardId::TENANT_FIRST && self.holds(shard) {
                // The control shard is waited for, for as long as it takes; whether the replica opens is another matter.
                let key = RefCell::new(None);
                let asked = self.patiently(false, async || {
                    key.replace(Some(self.shard_key(shard).await?));
                    Ok(())
                });
                let opened = match (asked.await, key.take()) {
                    (Ok(()), Some(open)) => self.open_shard(shard, open, Opening::Existing).await.map(drop),
                    (asked, _) => asked,
                };
                if let Err(error) = opened {
                    without(shard, &error);
                }
            }
        }
        Ok(())
    }

    async fn shard_key(&self, shard: ShardId) -> Result<OpenShard, StoreError> {
        match self.calls.control(ControlRequest::ShardKey(shard)).await? {
            ControlResponse::ShardKey(open) => Ok(open),
            _ => panic!("the control shard answers ShardKey with ShardKey"),
        }
    }

    /// Does something again until the others answer.
    async fn patiently(&self, is_alone: bool, act: impl AsyncFn() -> Result<(), StoreError>) -> Result<(), StoreError> {
        let mut told = None;
        loop {
            match act().await {
                Err(StoreError::Unavailable { reason } | StoreError::Unsettled { reason }) if !is_alone => {
                    let now = self.inputs.ports.now();
                    if told.is_none_or(|at| now.since(at) >= TOLD_INTERVAL) {
                        told = Some(now);
                        warn!(%reason, "this node waits for others of its cluster");
                    }
                    self.inputs.ports.sleep(OTHERS_INTERVAL).await;
                }
                other => return other,
            }
        }
    }

    async fn take_up_records(&self) -> Result<(), StoreError> {
        let (version, records) = self.recorded_devices().await?;
        self.core.devices.take_up(version, records);
        match self.calls.control(ControlRequest::Nodes).await? {
            ControlResponse::Nodes(version, entries) => self.core.nodes.take_up_recorded(version, &entries),
            _ => panic!("the control shard answers Nodes with Nodes"),
        };
        Ok(())
    }

    /// Opens the replica of a tenant's shard, or makes an empty one.
    async fn open_replica(&self, shard: ShardId, opening: Opening) -> Result<Rc<dyn RaftGroup>, StoreError> {
        let open = self.shard_key(shard).await?;
        self.open_shard(shard, open, opening).await
    }

    /// Keeps a replica of a shard from now on, and says which voter it is.
    async fn host(&self, shard: ShardId) -> Result<VoterId, StoreError> {
        if let Some(group) = self.seats.group(shard) {
            return Ok(group.voter());
        }
        if shard.0 >= ShardId::TENANT_FIRST {
            return self.open_replica(shard, Opening::Join).await.map(|group| group.voter());
        }
        let _one = self.opening.lock().await;
        if self.seats.group(shard).is_none() {
            self.open_system_shard(shard, Opening::Join).await?;
        }
        self.seats.group(shard).map(|group| group.voter()).ok_or_else(|| not_open(shard))
    }

    /// Shape of the first pool's stripes, from step 1 on, on the core that leads the control shard; `None` on others.
    pub async fn first_pool(&self) -> Result<Option<StripeShape>, StoreError> {
        match self.seats.control() {
            Some(control) => control.first_pool().await.map(Some),
            None => Ok(None),
        }
    }

    /// Step 3, when step 2 is done: settles what writers left when the node went down, looks for orphans, repairs, scrubs.
    pub fn start_background(self: &Rc<Self>) {
        self.seats.activate();
        orphans::start(&self.core);
        late_puts::start(&self.core);
        let repairer = Repairer::start(&self.core, self.inputs.repair);
        self.repairer.replace(Some(repairer.clone()));
        self.evacuator.replace(Some(Evacuator::start(&self.core)));
        self.rebalancer.replace(Some(Rebalancer::start(&self.core, repairer, self.inputs.rebalance)));
        if let Some(settings) = self.inputs.scrub {
            let share = LaneShare { lanes: self.inputs.lanes.len(), of: usize::from(self.inputs.lane_count) };
            self.scrubber.replace(Some(Scrubber::start(&self.core, share, settings)));
        }
        let engine = Rc::downgrade(self);
        self.core.background.repeat("records", Box::pin(refresh_records(engine.clone(), self.inputs.ports.clone())));
        self.core.background.repeat("metadata rooms", Box::pin(ask_for_rooms(engine, self.inputs.ports.clone())));
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

    /// What rebalancing is about on this core; nothing before step 3.
    #[must_use]
    pub fn rebalance_state(&self) -> RebalanceState {
        self.rebalancer.borrow().as_ref().map(|rebalancer| rebalancer.state()).unwrap_or_default()
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
            node: self.inputs.nodes.own(),
            core: self.inputs.lanes.first().copied().expect("a core that is asked has a lane"),
            used: self.core.fragments.use_of(device),
            older_placements: self.core.devices.older_placements(),
            open_stripes: has_walked.then_some(repair.backlog + repair.unfinished + repair.waiting + repair.lost),
        }
    }

    /// How far scrub is on this core; `None` when it is off, and before step 3.
    #[must_use]
    pub fn scrub_state(&self) -> Option<ScrubState> {
        self.scrubber.borrow().as_ref().map(|scrubber| scrubber.state())
    }

    /// Gives the shards that this core leads to other nodes, before a stop; takes no longer than `within`. Requests are answered
    /// meanwhile, here or where the shards go.
    pub async fn hand_over(&self, within: Duration) {
        self.seats.hand_over(within).await;
    }

    /// Ends what goes on behind the answers, on every core before any core closes its groups.
    pub async fn stop_background(&self) {
        futures::future::join(self.core.background.stop(), self.seats.stop()).await;
    }

    async fn open_shard(
        &self,
        shard: ShardId,
        open: OpenShard,
        opening: Opening,
    ) -> Result<Rc<dyn RaftGroup>, StoreError> {
        let _one = self.opening.lock().await;
        if let Some(group) = self.seats.group(shard) {
            return Ok(group);
        }
        let sealer = Rc::new(MetaSealer::new(shard_deltas(&open.metadata_key), &*self.inputs.ports));
        let group = self.inputs.host.open(GroupSpec {
            shard,
            files: vec![
                FileSpec::sealed(format!("shard-{}-names.redb", shard.0), shard_pages(&open.metadata_key)),
                FileSpec::clear(format!("shard-{}-counts.redb", shard.0)),
            ],
            opening,
            machine: Rc::new(Machine::of_tenant_shard(sealer.clone())),
        });
        let group = group.await?;
        self.seats.add(group.clone(), Some(sealer));
        Ok(group)
    }

    /// Opens or makes the only replica of a tenant's shard, and waits until it is served.
    async fn found_shard(&self, shard: ShardId, open: OpenShard) -> Result<(), StoreError> {
        let opening = if open.create { Opening::Create } else { Opening::Existing };
        self.open_shard(shard, open, opening).await?;
        self.seats.until_led(shard).await
    }

    /// Answers requests of other nodes.
    #[must_use]
    pub fn peer_handler(self: &Rc<Self>) -> PeerHandler {
        let engine = Rc::downgrade(self);
        Rc::new(move |from, _lane, parcel: Parcel| {
            let engine = engine.upgrade();
            Box::pin(async move {
                let PeerIdentity::Node(from) = from else {
                    return Err("only nodes of the cluster ask shards".to_owned());
                };
                let engine = engine.ok_or_else(|| "the node is stopping".to_owned())?;
                engine.answer(from, parcel).await
            })
        })
    }

    async fn answer(&self, from: NodeId, mut parcel: Parcel) -> Result<Parcel, String> {
        let nodes = &self.core.nodes;
        let (request, spoken) = wire::decode_spoken_request(&parcel.message).map_err(|error| error.to_string())?;
        if let RequestBody::Control(ControlRequest::NodeHere { node, .. }) = &request.body
            && *node != from
        {
            return Err(format!("{from} speaks for {node}"));
        }
        // Who went back to an earlier release is to be understood from its first word on.
        nodes.speaks(from, spoken);
        parcel.message.zeroize(); // it may have held a key (I-K8)
        nodes.heard(from, self.inputs.ports.now());
        let (shard, stamp) = (request.shard, request.stamp);
        let answer = match request.body {
            RequestBody::Node(body) => self.calls.ask_whole_node(&body).await,
            body => {
                let lane = shard.lane(self.inputs.lane_count);
                let answer = self.inputs.link.call(lane, EngineRequest { shard, body, stamp }).await;
                answer.unwrap_or_else(|error| Err(StoreError::Unavailable { reason: error.to_string() }))
            }
        };
        let message = wire::encode_response(&answer).or_else(|error| {
            // It has happened: who hears that it was refused would ask again.
            wire::encode_response(&Err(StoreError::TooLarge { what: error.to_string() }))
        });
        let message = message.map_err(|error| error.to_string())?;
        Ok(Parcel { message, bulk: Vec::new() })
    }

    /// What is said of a shard that is not served here, with the request for whoever asks elsewhere.
    fn not_here(&self, shard: ShardId, request: RequestBody) -> EngineResponse {
        let leader = self.seats.leader(shard);
        Ok(ResponseBody::NotHere { leader, request: Some(Box::new(request)) })
    }

    /// Answers a request that arrived at this core.
    pub async fn handle(&self, request: EngineRequest) -> EngineResponse {
        let shard = request.shard;
        let mut entered = self.seats.enter(shard, &request.body);
        if let Entered::Shut = entered {
            self.seats.wait_outside(shard).await;
            entered = self.seats.enter(shard, &request.body);
        }
        let (service, _busy) = match entered {
            Entered::Served(service, busy) => (Some(service), Some(busy)),
            Entered::Shut | Entered::Nobody => (None, None),
        };
        match (request.body, service) {
            (RequestBody::Control(body), Some(Service::Control(control))) => {
                let answer = control.handle(body, request.stamp).await;
                answer.map(|answer| ResponseBody::Control(answer, control.mark()))
            }
            (RequestBody::Home(body), Some(Service::Home(home))) => home.handle(body).await.map(ResponseBody::Home),
            (RequestBody::Shard(body), Some(Service::Shard(service))) => {
                let answer = service.handle(*body, request.stamp).await;
                answer.map(|answer| ResponseBody::Shard(answer, service.mark()))
            }
            (RequestBody::Open(open), _) => self.found_shard(shard, open).await.map(|()| ResponseBody::Done),
            (RequestBody::Core(request), _) => self.handle_core(shard, request).await,
            (RequestBody::Node(request), _) => self.calls.ask_whole_node(&request).await,
            (body, _) => self.not_here(shard, body),
        }
    }

    /// What would be missing without a node, as far as this core knows.
    async fn holdings(&self, node: NodeId) -> Result<Holdings, StoreError> {
        let core = self.inputs.lanes.first().copied().expect("a core that is asked has a lane");
        let mut held = Holdings { core, fragments: 0, bytes: 0, votes: 0, led: 0, shards: 0, is_whole: true };
        let is_own = node == self.core.nodes.own();
        for device in self.inputs.fragments.devices() {
            if !is_own || self.core.devices.is_removed(device.id) {
                continue;
            }
            match self.inputs.fragments.use_of(device.id) {
                Some(used) => {
                    held.fragments += used.fragments;
                    held.bytes += used.bytes;
                }
                None => held.is_whole = false,
            }
        }
        for (_, _, voters) in self.seats.leaderships().into_iter().filter(|(_, leadership, _)| leadership.is_here) {
            held.led += 1;
            held.votes += u64::from(voters.iter().any(|voter| node_of(*voter) == node));
        }
        if let Some(control) = self.seats.control() {
            held.shards = 1 + u64::from(self.inputs.home_count) + control.shard_count().await?;
        }
        Ok(held)
    }

    /// What would be if a node or a rack left now, as far as this core knows.
    async fn without(&self, leaving: &Leaving) -> Result<Without, StoreError> {
        let nodes = leaving.nodes(&self.core.nodes);
        let core = self.inputs.lanes.first().copied().expect("a core that is asked has a lane");
        let mut known = Without { core, endangered: self.core.repairs.endangered(), ..Without::default() };
        for (shard, view, _) in self.seats.views().into_iter().filter(|(_, view, _)| view.leadership.is_here) {
            known.led += 1;
            if let Some(reason) = shard_without(shard, &view, &nodes) {
                known.add_reason(reason);
            }
        }
        let repairer = self.repairer.borrow().clone();
        let reliance = repairer.as_ref().map(|repairer| repairer.reliance()).unwrap_or_default();
        known.reliant_stripes = match (leaving, nodes.first()) {
            (Leaving::Node(node), _) => reliance.stripes.get(node).copied().unwrap_or_default(),
            (Leaving::Rack(_), Some(node)) => {
                reliance.racks.get(&self.core.nodes.racks().domain(*node)).copied().unwrap_or_default()
            }
            (Leaving::Rack(_), None) => 0,
        };
        known.most_on_a_node = reliance.most_on_a_node as u64;
        known.most_in_a_rack = reliance.most_in_a_rack as u64;
        // A core that has not heard yet who is in the rack can't tell.
        let can_tell = !nodes.is_empty() && repairer.is_some_and(|repairer| repairer.has_walked_without(&nodes));
        known.cores_not_walked = u64::from(!can_tell);
        if let Some(control) = self.seats.control() {
            known.shards = 1 + u64::from(self.inputs.home_count) + control.shard_count().await?;
            known.pools.push((FIRST_POOL, control.first_pool().await?));
        }
        Ok(known)
    }

    /// What this node's metadata directories have room for, and how many replicas of this core share it.
    fn metadata_room(&self) -> MetadataRoom {
        let core = self.inputs.lanes.first().copied().expect("a core that is asked has a lane");
        let replicas = self.seats.leaderships();
        let replicas = replicas.iter().filter(|(shard, ..)| shard.0 >= ShardId::TENANT_FIRST).count() as u64;
        MetadataRoom { core, replicas, budget: self.core.inline.budget() }
    }

    /// Asks the voters of the shards that this core leads what their metadata directories have room for.
    async fn ask_for_rooms(&self) {
        let voters: BTreeSet<NodeId> = self.shards().iter().flat_map(|shard| shard.voters()).collect();
        self.core.inline.keep_rooms_of(&voters);
        let note = |node, room| self.core.inline.node_has(node, room, self.core.ports.now());
        self.calls.metadata_rooms(voters, note).await;
    }

    async fn handle_core(&self, shard: ShardId, request: CoreRequest) -> EngineResponse {
        match request {
            CoreRequest::Forget => {
                self.core.control_cache.forget();
                Ok(ResponseBody::Done)
            }
            CoreRequest::LookAtDevice(device, closing) => Ok(ResponseBody::Looks(vec![self.look_at(device, closing)])),
            CoreRequest::Devices { version, records } => {
                self.core.devices.take_up(version, records);
                Ok(ResponseBody::Done)
            }
            CoreRequest::Nodes { version, entries } => {
                self.inputs.nodes.take_up_recorded(version, &entries);
                Ok(ResponseBody::Done)
            }
            CoreRequest::Host => self.host(shard).await.map(ResponseBody::Hosted),
            CoreRequest::Holdings(node) => self.holdings(node).await.map(ResponseBody::Holdings),
            CoreRequest::Without(leaving) => self.without(&leaving).await.map(|it| ResponseBody::Without(Box::new(it))),
            CoreRequest::MetadataRoom => Ok(ResponseBody::MetadataRoom(self.metadata_room())),
        }
    }
}

fn not_open(shard: ShardId) -> StoreError {
    StoreError::Unavailable { reason: format!("shard {shard} is not open yet; try again") }
}

/// One replica that does not open must not keep a node from starting: its other replicas and its devices are wanted (I-O3).
fn without(shard: ShardId, error: &StoreError) {
    error!(%shard, %error, "a replica does not open; the node goes on without it, and the shard has one voter less");
}
