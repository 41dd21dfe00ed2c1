//! The real node on simulated media: eight disks, two metadata directories with their Raft journals, one or two cores.
//!
//! A start goes through the same steps as on a machine, with the same code from the first superblock on; only disks,
//! directories, links, time and chance are simulated.

mod draining;
mod moving;

use crate::node::{NodeUnderTest, OpenCore, OpenError, OpenNode};
use draining::{Draining, Drains};
use futures::channel::oneshot;
use futures::future::join_all;
use kiseki_devices::fragment_store::{LaneRequest, LaneResponse, StoreDevice};
use kiseki_devices::journal::{MirrorContent, MirrorRegion};
use kiseki_devices::layout::DeviceLayout;
use kiseki_devices::metadata_set::{MemberFate, MetadataSet, MirroredDir};
use kiseki_devices::recovery::format_journals;
use kiseki_devices::space::{DiscardPolicy, SpacePolicy};
use kiseki_devices::superblock::{
    DeviceClass, MetadataEpoch, Superblock, SuperblockKeeper, SuperblockWitness, write_superblock,
};
use kiseki_engine::engine::PIN_EPOCH_AGE;
use kiseki_engine::inline::InlineSettings;
use kiseki_engine::keyring::NodeKeys;
use kiseki_engine::keys::MasterKeys;
use kiseki_engine::message::{ControlRequest, ControlResponse, Dedup, EngineRequest, EngineResponse, NodeEntry};
use kiseki_engine::nodes::{NobodyElse, NodeBoard};
use kiseki_raft::GroupSettings;
use kiseki_raft::table_set::COMPACT_FROM_BYTES;
use kiseki_server::core_node::{CoreInputs, CoreNode, LaneInput, LogMirror};
use kiseki_server::metadata::mark_formed;
use kiseki_simulator::seed::mix64;
use kiseki_simulator::{CutSwitch, DiskOptions, NodeId, SeededRng, Sim, SimDisk, SimLink, SimMetaDir, SimNet};
use kiseki_types::buf::stale_buffers;
use kiseki_types::fragment::StripeShape;
use kiseki_types::ids::{ClusterId, CoreId, DeviceId, LaneId, MasterEpoch, PoolId, TenantId};
use kiseki_types::meta::MetaDir;
use kiseki_types::peer::PeerCalls;
use kiseki_types::runtime::{Ports, RuntimeExt};
use kiseki_types::secret::SecretKey;
use kiseki_types::{BlockIndex, LocalBoxFuture};
use moving::Moving;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The machine of a node that is alone.
const NODE: NodeId = NodeId(1);

/// The cluster of every run.
const CLUSTER: ClusterId = ClusterId(*b"simulated cluste");

/// Pin epochs of nodes of a cluster: a new leader waits so long before it settles what writers left, and a run is short.
const MEMBERS_PIN_EPOCH_AGE: Duration = Duration::from_secs(60);

/// The tenant that the clients are.
const TENANT_NAME: &str = "sim";

/// Time that a start gives to disks that are being emptied.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// What [`mark_formed`] makes once the first shards exist.
const FORMED_FILE: &str = "formed";

/// What a simulated node is made of.
#[derive(Clone, Copy, Debug)]
pub struct RealOptions {
    /// Disks.
    pub devices: u16,
    /// Bytes of each.
    pub device_len_bytes: u64,
    /// Metadata directories.
    pub metadata_dirs: u16,
    /// Bytes of each lane's Raft journal: small, so that it is folded and trimmed during a run.
    pub raft_journal_len_bytes: u64,
    /// Lanes.
    pub lanes: u16,
    /// Cores.
    pub cores: u16,
    /// Shape of the stripes.
    pub shape: StripeShape,
    /// Disks that every start but the first finds missing, other ones each time: what they hold is repaired, and when
    /// they come back they hold what was repaired, overwritten or deleted meanwhile.
    pub absent: u16,
    /// Further disks that the node learns of only while it serves; from then on these and the others come and go, one at
    /// a time, each reopened when it is back.
    pub late: u16,
    /// Disks that are retired in the course of a run; one after the other is emptied meanwhile, and some stay after all.
    pub drain: u16,
    /// Whether small objects lie beside their names.
    pub inline: InlineSettings,
    /// Table files that are at least this long are compacted.
    pub compact_from_bytes: u64,
    /// What lies about flushing once the node serves: the controls that a run must catch.
    pub lie: Lie,
}

/// Whether a seed has inline content is drawn for itself.
const INLINE_SALT: u64 = 0x696e_6c69_6e65;

/// How much room metadata directories have likewise.
const SPACE_SALT: u64 = 0x73_7061_6365;

/// Whether table files are compacted likewise.
const COMPACT_SALT: u64 = 0x63_6f6d_7061_6374;

/// Which media answer a flush without saving anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// None.
    Nobody,
    /// The disks that hold fragments and their journals.
    Devices,
    /// The disks that hold the Raft journals.
    RaftJournals,
    /// The metadata directories.
    MetadataDirs,
}

impl RealOptions {
    /// The node of a seed: one core or two, otherwise always the same.
    #[must_use]
    pub fn for_seed(seed: u64) -> RealOptions {
        RealOptions {
            devices: 8,
            device_len_bytes: 64 << 20,
            metadata_dirs: 2,
            raft_journal_len_bytes: 4 << 20,
            lanes: 2,
            cores: 1 + (mix64(seed) % 2) as u16,
            shape: StripeShape { data: 4, parity: 2 },
            absent: 0,
            late: 0,
            drain: 0,
            inline: if mix64(seed ^ INLINE_SALT).is_multiple_of(2) {
                InlineSettings::default()
            } else {
                InlineSettings::off()
            },
            // Those of every shard, or none.
            compact_from_bytes: if mix64(seed ^ COMPACT_SALT).is_multiple_of(2) {
                64 << 10
            } else {
                COMPACT_FROM_BYTES
            },
            lie: Lie::Nobody,
        }
    }
}

/// One metadata directory and the disks that stand for the Raft journals in it, by lane.
struct Member {
    dir: SimMetaDir,
    journals: Vec<SimDisk>,
}

/// What makes a node one of several.
#[derive(Clone)]
pub struct Membership {
    /// Its number; the first one forms the cluster.
    pub number: u32,
    /// The network between them.
    pub net: SimNet,
    /// What it knows of the others, as in its file.
    pub known: Rc<RefCell<(u64, Vec<NodeEntry>)>>,
    /// Homes of the cluster.
    pub home_count: u16,
    /// The rack that it says it is in; empty: none.
    pub rack: String,
}

/// The node's media, and while it runs its cores.
pub struct RealNode {
    options: RealOptions,
    membership: Option<Membership>,
    switch: Arc<CutSwitch>,
    disks: Vec<SimDisk>,
    members: Vec<Member>,
    is_formatted: bool,
    seed: u64,
    starts: u64,
    running: Vec<Rc<CoreNode>>,
    /// Fragments repaired in all starts that ended.
    repaired: Rc<Cell<u64>>,
    /// Disks that the node's configuration names: durable, like a file.
    configured: Rc<Cell<usize>>,
    /// Disks that joined or came back while the node served.
    joined: Rc<Cell<u64>>,
    drains: Rc<Drains>,
}

impl RealNode {
    /// A node on blank media.
    #[must_use]
    pub fn new(sim: &Sim, options: RealOptions) -> RealNode {
        RealNode::member(sim, options, None)
    }

    /// A node on blank media, alone or one of several.
    #[must_use]
    pub fn member(sim: &Sim, options: RealOptions, membership: Option<Membership>) -> RealNode {
        let number = membership.as_ref().map_or(1, |membership| membership.number);
        let switch = Arc::<CutSwitch>::default();
        let disk = |name: String, len| SimDisk::new(sim, DiskOptions::of_len(&name, len), &switch);
        let disks: Vec<SimDisk> = (0..options.devices + options.late)
            .map(|index| disk(format!("disk{index}"), options.device_len_bytes))
            .collect();
        let member = |index: u16| {
            let journal = |lane| disk(format!("meta{index}-lane{lane}"), options.raft_journal_len_bytes);
            let seed = mix64(sim.seed() ^ u64::from(index) ^ u64::from(number - 1) << 32);
            let dir = SimMetaDir::new(&format!("meta{index}"), seed, &switch);
            // From what is full in moments to what never is, so that thresholds differ and fall in the middle of work (I-SF1).
            dir.set_space(1 << (22 + mix64(seed ^ SPACE_SALT ^ u64::from(index)) % 16));
            Member { dir, journals: (0..options.lanes).map(journal).collect() }
        };
        let members: Vec<Member> = (0..options.metadata_dirs).map(member).collect();
        let (seed, repaired) = (sim.seed(), Rc::default());
        RealNode {
            options,
            membership,
            switch,
            disks,
            members,
            is_formatted: false,
            seed,
            starts: 0,
            running: Vec::new(),
            repaired,
            configured: Rc::new(Cell::new(usize::from(options.devices))),
            joined: Rc::default(),
            drains: Rc::default(),
        }
    }

    /// Begins or ends the lie that the options ask for. Starts are told the truth: a node that does not come up at all
    /// would show nothing about its flushes at work.
    fn set_lying(&self, is_lying: bool) {
        let journals = self.members.iter().flat_map(|member| &member.journals);
        match self.options.lie {
            Lie::Nobody => {}
            Lie::Devices => self.disks.iter().for_each(|disk| disk.set_flush_is_a_lie(is_lying)),
            Lie::RaftJournals => journals.for_each(|disk| disk.set_flush_is_a_lie(is_lying)),
            Lie::MetadataDirs => self.members.iter().for_each(|member| member.dir.set_sync_is_a_lie(is_lying)),
        }
    }

    /// Counts the fragments that the node repairs; it goes on counting across starts.
    #[must_use]
    pub fn repaired(&self) -> Rc<Cell<u64>> {
        self.repaired.clone()
    }

    /// Counts the disks that joined or came back while the node served, across starts.
    #[must_use]
    pub fn joined(&self) -> Rc<Cell<u64>> {
        self.joined.clone()
    }

    /// Counts the evacuations that were begun, and the disks that were retired.
    pub fn drained(&self) -> impl Fn() -> (u64, usize) + use<> {
        let drains = self.drains.clone();
        move || (drains.begun.get(), drains.retired_count())
    }

    /// Empties and retires disks while clients work. At times the start itself gives that some time, so that the power
    /// fails there too.
    async fn drain(&self, ports: &Ports, plan: &Plan) -> Result<(), OpenError> {
        let engine = self.running[0].engine().clone();
        self.drains.check(&engine.device_records().await.map_err(failed)?);
        let devices = plan.superblocks.iter().map(|superblock| superblock.device);
        let draining = Draining {
            engine,
            ports: ports.clone(),
            switch: self.switch.clone(),
            devices: devices.filter(|device| !self.drains.is_retired(*device)).collect(),
            retire_max: usize::from(self.options.drain),
            drains: self.drains.clone(),
            rng: SeededRng::new(mix64(self.seed ^ self.starts)),
        };
        ports.spawn("drain devices", Box::pin(draining.forever()));
        if self.starts.is_multiple_of(3) {
            ports.sleep(DRAIN_TIME).await;
        }
        Ok(())
    }

    /// The machine that it is.
    #[must_use]
    pub fn machine(&self) -> NodeId {
        self.membership.as_ref().map_or(NODE, |membership| NodeId(membership.number))
    }

    /// The cores that run.
    #[must_use]
    pub fn running(&self) -> &[Rc<CoreNode>] {
        &self.running
    }

    /// Whether this node forms the cluster.
    fn forms_cluster(&self) -> bool {
        self.machine() == NODE
    }

    /// The disks that the node opens at a start.
    fn configured(&self) -> &[SimDisk] {
        &self.disks[..self.configured.get()]
    }

    /// What the cores know of other nodes is in a file by now.
    fn keep_known(&self) {
        let (Some(Membership { known, .. }), Some(core)) = (&self.membership, self.running.first()) else { return };
        let nodes = &core.engine().core().nodes;
        if nodes.version() >= known.borrow().0 && !nodes.entries().is_empty() {
            known.replace((nodes.version(), nodes.entries()));
        }
    }

    /// Adds what the running cores have repaired; before they are dropped.
    fn count_repaired(&self) {
        let counters = self.running.iter().map(|node| node.engine().core().repair_counters.fragments.get());
        self.repaired.set(self.repaired.get() + counters.sum::<u64>());
    }

    /// Whether this start finds the disk missing.
    fn is_absent(&self, disk: usize) -> bool {
        let first = mix64(self.seed ^ self.starts) as usize;
        let count = usize::from(if self.starts > 1 { self.options.absent } else { 0 });
        (0..count).any(|more| (first.wrapping_add(more)) % self.disks.len() == disk)
    }

    /// The disks that hold fragments, for faults and for looking at what lies on them.
    #[must_use]
    pub fn disks(&self) -> &[SimDisk] {
        &self.disks
    }

    /// The metadata directories.
    pub fn metadata_dirs(&self) -> impl Iterator<Item = &SimMetaDir> {
        self.members.iter().map(|member| &member.dir)
    }

    /// Formats the disks and sets the metadata set up, as a first start does.
    async fn format(&self, ports: &Ports) -> Result<(), OpenError> {
        for (index, disk) in self.disks.iter().enumerate() {
            let device = disk.open();
            let layout = DeviceLayout::compute(device.geometry(), self.options.lanes).map_err(failed)?;
            let id = DeviceId(ports.random());
            format_journals(ports, id, device.name(), &layout, &device).await.map_err(failed)?;
            let superblock = Superblock {
                cluster: CLUSTER,
                device: id,
                pool: PoolId(0),
                class: DeviceClass::File,
                layout,
                generation: 1 + index as u64 % 2,
                incarnation: 0,
                metadata: MetadataEpoch::default(),
            };
            write_superblock(&*device, &superblock).await.map_err(failed)?;
        }
        let (_, _, witness) = self.superblocks()?;
        self.metadata_set(ports, witness, |set| set.create().map(drop).map_err(failed))
    }

    /// The superblocks as a start finds them, raised to this start's incarnation.
    fn superblocks(&self) -> Result<FoundSuperblocks, OpenError> {
        let (mut superblocks, mut keepers) = (Vec::new(), Vec::new());
        for disk in self.configured() {
            let (superblock, keeper) = moving::take_up(disk)?;
            superblocks.push(superblock);
            keepers.push(keeper);
        }
        let enrolled = keepers.len();
        Ok((superblocks, keepers.clone(), Arc::new(SuperblockWitness::new(keepers, enrolled))))
    }

    fn metadata_set<T>(
        &self,
        ports: &Ports,
        witness: Arc<SuperblockWitness>,
        act: impl FnOnce(MetadataSet<'_>) -> Result<T, OpenError>,
    ) -> Result<T, OpenError> {
        let dirs: Vec<Arc<dyn MetaDir>> = self.members.iter().map(|member| member.dir.open()).collect();
        act(MetadataSet { cluster: CLUSTER, dirs, witness, fresh_id: &mut || ports.random() })
    }

    async fn start(&mut self, sim: &Sim) -> Result<OpenNode, OpenError> {
        self.set_lying(false);
        self.starts += 1;
        let first_ports = sim.ports(self.machine());
        if !self.is_formatted {
            self.format(&first_ports).await?;
            self.is_formatted = true;
        }
        let (superblocks, keepers, witness) = self.superblocks()?;
        let (meta, report) = self.metadata_set(&first_ports, witness.clone(), |set| set.open().map_err(failed))?;
        let is_new = match meta.open(FORMED_FILE) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
            other => other.map(|_| false).map_err(failed)?,
        };
        let plan = Plan { superblocks, meta, fates: report.fates, is_new };
        let lane_link = SimLink::<LaneRequest, LaneResponse>::new(sim);
        let engine_link = SimLink::<EngineRequest, EngineResponse>::new(sim);
        let ports: Vec<Ports> =
            (0..self.options.cores).map(|core| sim.core_ports(self.machine(), CoreId(core))).collect();

        let opened = ports.iter().enumerate().map(|(core, ports)| {
            let inputs = self.inputs(&plan, core, ports.clone(), lane_link.clone(), engine_link.clone());
            on_core(ports, async move { CoreNode::open(inputs).await.map_err(failed) })
        });
        for opened in join_all(opened).await {
            let (node, reports) = opened?;
            if let Some(report) = reports.iter().find(|report| report.problem.is_some()) {
                return Err(OpenError(format!("{}: {}", report.name, report.problem.clone().unwrap_or_default())));
            }
            self.running.push(node);
        }
        self.serve_links(&ports, &lane_link, &engine_link);
        self.serve_peers(&ports);
        self.on_every_core(&ports, |node| Box::pin(async move { node.publish().await.map_err(failed) })).await?;
        self.on_every_core(&ports, |node| Box::pin(async move { node.open_system_shards().await.map_err(failed) }))
            .await?;
        self.on_every_core(&ports, |node| Box::pin(async move { node.open_tenant_shards().await.map_err(failed) }))
            .await?;
        if plan.is_new {
            mark_formed(&plan.meta).map_err(failed)?;
        }
        let start_background = |node: Rc<CoreNode>| -> LocalBoxFuture<'static, Result<(), OpenError>> {
            Box::pin(async move {
                node.start_background();
                Ok(())
            })
        };
        self.on_every_core(&ports, start_background).await?;
        self.announce(&ports[0]);
        let tenant = self.tenant().await?;
        self.set_lying(true);
        if self.options.drain > 0 {
            self.drain(&ports[0], &plan).await?;
        }
        if self.options.late > 0 {
            let moving = Moving {
                cores: ports.iter().cloned().zip(self.running.iter().cloned()).collect(),
                disks: self.disks.clone(),
                keepers,
                witness,
                meta: plan.meta.clone(),
                switch: self.switch.clone(),
                configured: self.configured.clone(),
                joined: self.joined.clone(),
                rng: SeededRng::new(mix64(self.seed ^ self.starts)),
            };
            first_ports.spawn("move devices", Box::pin(moving.forever()));
        }
        let cores = ports.into_iter().zip(&self.running).map(|(ports, node)| {
            let calls = Some(node.engine().calls().clone());
            OpenCore { ports, store: node.store(), calls }
        });
        Ok(OpenNode { tenant, cores: cores.collect() })
    }

    /// Cores answer each other from now on. Links hold them weakly, or no node would ever be freed.
    fn serve_links(
        &self,
        ports: &[Ports],
        lane_link: &SimLink<LaneRequest, LaneResponse>,
        engine_link: &SimLink<EngineRequest, EngineResponse>,
    ) {
        for lane in (0..self.options.lanes).map(LaneId) {
            let core = usize::from(lane.0 % self.options.cores);
            let node = Rc::downgrade(&self.running[core]);
            lane_link.serve(lane, ports[core].clone(), move |request| {
                let node = node.upgrade();
                Box::pin(async move { node.expect(ALIVE).handle_lane(lane, request).await })
            });
            let node = Rc::downgrade(&self.running[core]);
            engine_link.serve(lane, ports[core].clone(), move |request| {
                let node = node.upgrade();
                Box::pin(async move { node.expect(ALIVE).handle_engine(request).await })
            });
        }
    }

    /// Other nodes are answered from now on.
    fn serve_peers(&self, ports: &[Ports]) {
        let Some(Membership { number, net, .. }) = &self.membership else { return };
        for (service, handler) in self.running[0].peer_services() {
            net.serve(kiseki_types::NodeId(u64::from(*number)), service, ports[0].clone(), handler);
        }
    }

    /// This node and what it knows of the others.
    fn nodes(&self) -> Rc<NodeBoard> {
        let board = NodeBoard::new(kiseki_types::NodeId(u64::from(self.machine().0)));
        if let Some(Membership { known, .. }) = &self.membership {
            let (version, entries) = &*known.borrow();
            board.take_up(*version, entries);
        }
        board
    }

    /// What it calls other nodes with.
    fn peers(&self, ports: &Ports) -> Rc<dyn PeerCalls> {
        match &self.membership {
            Some(Membership { number, net, .. }) => net.calls(kiseki_types::NodeId(u64::from(*number)), ports.clone()),
            None => Rc::new(NobodyElse),
        }
    }

    /// Takes one step on every core, each with the ports of its own.
    async fn on_every_core(
        &self,
        ports: &[Ports],
        step: impl Fn(Rc<CoreNode>) -> LocalBoxFuture<'static, Result<(), OpenError>>,
    ) -> Result<(), OpenError> {
        let steps = ports.iter().zip(&self.running).map(|(ports, node)| on_core(ports, step(node.clone())));
        join_all(steps).await.into_iter().collect()
    }

    fn inputs(
        &self,
        plan: &Plan,
        core: usize,
        ports: Ports,
        lane_link: SimLink<LaneRequest, LaneResponse>,
        engine_link: SimLink<EngineRequest, EngineResponse>,
    ) -> CoreInputs {
        let lanes = (0..self.options.lanes).filter(|lane| usize::from(lane % self.options.cores) == core);
        let device = |(disk, superblock): (&SimDisk, &Superblock)| StoreDevice {
            id: superblock.device,
            pool: superblock.pool,
            name: disk.name(),
            layout: superblock.layout,
            space: space_policy(),
            device: disk.open(),
        };
        CoreInputs {
            core: CoreId(core as u16),
            lane_count: self.options.lanes,
            lanes: lanes.map(|lane| self.lane_input(plan, LaneId(lane), &ports)).collect(),
            devices: self
                .configured()
                .iter()
                .zip(&plan.superblocks)
                .enumerate()
                .filter(|(index, _)| !self.is_absent(*index))
                .filter(|(_, (_, superblock))| !self.drains.is_retired(superblock.device))
                .map(|(_, pair)| device(pair))
                .collect(),
            meta: plan.meta.clone(),
            lane_link: Rc::new(lane_link),
            engine_link: Rc::new(engine_link),
            nodes: self.nodes(),
            peers: self.peers(&ports),
            buffers: stale_buffers(),
            keys: Rc::new(node_keys()),
            first_pool: self.options.shape,
            shards_per_tenant: 2 * self.options.cores,
            pin_epoch_age: if self.membership.is_some() { MEMBERS_PIN_EPOCH_AGE } else { PIN_EPOCH_AGE },
            repair: Default::default(),
            rebalance: Default::default(),
            scrub: Some(Default::default()),
            split: Default::default(),
            inline: self.options.inline,
            group_settings: GroupSettings {
                snapshot_entries: 60,
                kept_entries: 20,
                ..match &self.membership {
                    Some(_) => GroupSettings::several_voters(),
                    None => GroupSettings::single_voter(),
                }
            },
            compact_from_bytes: self.options.compact_from_bytes,
            home_count: self.membership.as_ref().map_or(self.options.lanes, |membership| membership.home_count),
            slow_call: None,
            is_new: plan.is_new,
            forms_cluster: plan.is_new && self.forms_cluster(),
            ports,
        }
    }

    fn lane_input(&self, plan: &Plan, lane: LaneId, ports: &Ports) -> LaneInput {
        let healthy = plan.meta.members().into_iter().filter(|member| member.healthy);
        let mirror = |member: kiseki_devices::metadata_set::MemberStatus| {
            let device = self.members[member.index].journals[usize::from(lane.0)].open();
            let len = device.geometry().block_count;
            let mut region = MirrorRegion::new(ports.clone(), device, BlockIndex(0), len);
            if plan.fates[member.index] == MemberFate::Refilled {
                region.content = MirrorContent::Refill;
            }
            LogMirror { member: member.id, region }
        };
        LaneInput { lane, log_mirrors: healthy.map(mirror).collect() }
    }

    /// Tells the cluster that this node is here, until that is known.
    fn announce(&self, ports: &Ports) {
        let Some(membership) = &self.membership else { return };
        let node = kiseki_types::NodeId(u64::from(membership.number));
        let own_rack = membership.rack.clone();
        let (lanes, cores) = (self.options.lanes, self.options.cores);
        let (calls, task_ports) = (self.running[0].engine().calls().clone(), ports.clone());
        let task = async move {
            loop {
                let addresses = vec![format!("{node}")];
                let (version, rack) = ("sim".to_owned(), own_rack.clone());
                let here = ControlRequest::NodeHere { node, addresses, lanes, cores, version, rack };
                match calls.control(here).await {
                    Ok(ControlResponse::Node(entry)) if entry.rack == own_rack => return,
                    _ => {}
                }
                task_ports.sleep(Duration::from_millis(500)).await;
            }
        };
        ports.spawn("announce", Box::pin(task));
    }

    /// The clients' tenant, made at the first start.
    async fn tenant(&self) -> Result<TenantId, OpenError> {
        let calls = self.running[0].engine().calls().clone();
        let tenants = calls.control(ControlRequest::Tenants).await.map_err(failed)?;
        if let ControlResponse::Tenants(tenants) = tenants
            && let Some(tenant) = tenants.iter().find(|tenant| tenant.name == TENANT_NAME)
        {
            return Ok(tenant.tenant);
        }
        let request = ControlRequest::CreateTenant { name: TENANT_NAME.to_owned(), dedup: Dedup::Shared };
        match calls.control(request).await.map_err(failed)? {
            ControlResponse::Tenant(tenant) => Ok(tenant.tenant),
            _ => Err(OpenError("the control shard answers in another kind".to_owned())),
        }
    }
}

/// Freed extents are discarded within a run.
fn space_policy() -> SpacePolicy {
    SpacePolicy {
        // All that is free, as soon as there is time: what is discarded must be missed by nobody.
        discard: Some(DiscardPolicy { bytes_per_second_max: u64::MAX >> 20, unknown_after: Some(Duration::ZERO) }),
        ..SpacePolicy::default()
    }
}

/// A call to a core arrives only while its tasks live, and these hold the core.
const ALIVE: &str = "a core that is called is running";

/// Superblocks, those who write them, and the witness that they are.
type FoundSuperblocks = (Vec<Superblock>, Vec<Arc<SuperblockKeeper>>, Arc<SuperblockWitness>);

/// What all cores are opened with.
struct Plan {
    superblocks: Vec<Superblock>,
    meta: Arc<MirroredDir>,
    fates: Vec<MemberFate>,
    is_new: bool,
}

fn failed(error: impl Display + std::fmt::Debug) -> OpenError {
    OpenError(format!("{error} ({error:?})"))
}

/// Runs a future as a task of a core, so that everything in it sees that core's ports.
async fn on_core<T: 'static>(
    ports: &Ports,
    future: impl Future<Output = Result<T, OpenError>> + 'static,
) -> Result<T, OpenError> {
    let (sender, receiver) = oneshot::channel();
    let task = async move {
        let _ = sender.send(future.await); // nobody waits any more when the power is gone
    };
    ports.spawn("start", Box::pin(task));
    receiver.await.map_err(|_| OpenError("the core died".to_owned()))?
}

/// The same keys in every run.
fn node_keys() -> NodeKeys {
    let rng = SeededRng::new(7);
    let key = || {
        let mut bytes = [0; 32];
        rng.fill(&mut bytes);
        SecretKey::take(&mut bytes)
    };
    let masters = MasterKeys::new(BTreeMap::from([(MasterEpoch(1), key())])).expect("there is one key");
    NodeKeys { masters, locator: key(), control: key() }
}

impl NodeUnderTest for RealNode {
    fn id(&self) -> NodeId {
        self.machine()
    }

    fn switch(&self) -> Arc<CutSwitch> {
        self.switch.clone()
    }

    fn open<'a>(&'a mut self, sim: &'a Sim) -> LocalBoxFuture<'a, Result<OpenNode, OpenError>> {
        Box::pin(self.start(sim))
    }

    fn power_cut(&mut self, seed: u64) {
        self.count_repaired();
        self.keep_known();
        self.running.clear();
        let rng = SeededRng::new(seed);
        self.disks.iter().for_each(|disk| disk.power_cut(rng.next_u64()));
        for member in &self.members {
            member.dir.power_cut(rng.next_u64());
            member.journals.iter().for_each(|disk| disk.power_cut(rng.next_u64()));
        }
    }
}
