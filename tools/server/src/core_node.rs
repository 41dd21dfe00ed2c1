//! One core of a node: its lanes' logs and tables, its part of the fragment store, its engine.
//!
//! Everything that touches the world comes in through [`CoreInputs`], so the simulator runs this very code. A start
//! goes through steps, and each step has to be done on every core before any core takes the next:
//!
//! 1. [`CoreNode::open`]: journals are replayed, tables opened, the core answers requests of other cores.
//! 2. [`CoreNode::publish`]: index lanes hear of fragments that journals replayed.
//! 3. [`CoreNode::open_system_shards`]: control shard and homes.
//! 4. [`CoreNode::open_tenant_shards`].
//! 5. [`CoreNode::start_background`]; the core serves.

use crate::group_host::{CoreGroups, CoreGroupsInputs, Host};
use crate::peer_directory::{NotedCalls, RecordedNodes};
use crate::slow_calls::SlowCalls;
use kiseki_devices::fragment_store::{
    AddDeviceError, CoreFragmentStore, DeviceReport, FragmentStoreConfig, LaneLink, LaneRequest, LaneResponse, OwnLane,
    StillInFlight, StoreDevice,
};
use kiseki_devices::journal::{self, JournalConfig, JournalId, JournalOpenError, MirrorRegion};
use kiseki_devices::metadata_set::MirroredDir;
use kiseki_devices::superblock::MemberId;
use kiseki_engine::api::{Store, StoreError};
use kiseki_engine::cluster_fragments::fragment_handler;
use kiseki_engine::engine::{Engine, EngineInputs};
use kiseki_engine::inline::{InlinePolicy, InlineSettings};
use kiseki_engine::keyring::NodeKeys;
use kiseki_engine::message::{EngineRequest, EngineResponse};
use kiseki_engine::nodes::NodeBoard;
use kiseki_engine::rebalancer::RebalanceSettings;
use kiseki_engine::repairer::RepairSettings;
use kiseki_engine::scrubber::ScrubSettings;
use kiseki_engine::split_message::SplitCeilings;
use kiseki_raft::table_file::TableFile;
use kiseki_raft::table_set::TableSettings;
use kiseki_raft::{GroupSettings, LaneLog, RaftError, RaftPeers, Replicas};
use kiseki_types::buf::BufferSource;
use kiseki_types::fragment::{FragmentError, FragmentStore, StripeShape};
use kiseki_types::ids::{CoreId, DeviceId, LaneId};
use kiseki_types::journal::Journal;
use kiseki_types::link::Link;
use kiseki_types::meta::MetaDir;
use kiseki_types::peer::{PeerCalls, PeerHandler, ServiceId};
use kiseki_types::runtime::{Ports, RuntimeExt};
use kiseki_types::table::TableError;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Bytes of one lane's Raft journal in each metadata directory: four times the commands that a lane has in flight at
/// most, so that folding always has room to copy forward what is not committed.
pub const RAFT_JOURNAL_LEN_BYTES: u64 = 64 << 20;

/// How often the fragment store looks for journals to fold.
const FOLD_INTERVAL: Duration = Duration::from_millis(500);

/// Side thread queue for looking how full the metadata directories are.
const METADATA_FILL_QUEUE: u64 = u64::MAX - 1;

/// Side thread queue for taking a metadata directory out; lanes' and shards' tables use small numbers.
const FENCE_QUEUE: u64 = u64::MAX;

/// Why a core does not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CoreError {
    /// A lane's Raft journal can't be opened.
    #[error("the Raft journal of lane {lane} can't be opened: {source}; restore a metadata directory that holds it")]
    Journal {
        /// The lane.
        lane: LaneId,
        /// Why.
        source: JournalOpenError,
    },
    /// A lane's Raft logs make no sense.
    #[error("the Raft logs of lane {lane}: {source}")]
    Log {
        /// The lane.
        lane: LaneId,
        /// Why.
        source: RaftError,
    },
    /// A table file can't be opened.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A lane's index is lost. It is not an empty one: reads would find nothing, and extents would be given out again.
    #[error(
        "the index of lane {lane} is lost: {reason}; the devices hold all that it said: stop the node and run \
         `kiseki-devctl verify --rebuild-index --write --dir DIR`"
    )]
    IndexLost {
        /// The lane.
        lane: LaneId,
        /// What is wrong with the file.
        reason: String,
    },
    /// The fragment index can't be brought up to date.
    #[error(transparent)]
    Fragments(#[from] FragmentError),
    /// A shard can't be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A group did not end cleanly.
    #[error(transparent)]
    Raft(#[from] RaftError),
}

/// One mirror of a lane's Raft journal.
pub struct LogMirror {
    /// The metadata directory that it lies in.
    pub member: MemberId,
    /// Where.
    pub region: MirrorRegion,
}

/// A lane that this core holds.
pub struct LaneInput {
    /// Which.
    pub lane: LaneId,
    /// Mirrors of its Raft journal, one for each metadata directory in use.
    pub log_mirrors: Vec<LogMirror>,
}

/// Between two looks at how full the metadata directories are.
const METADATA_FILL_INTERVAL: Duration = Duration::from_secs(5);

/// Looks how full the metadata directories are, again and again: small objects go elsewhere before they fill up.
async fn watch_metadata_fill(ports: Ports, meta: Arc<MirroredDir>, inline: Rc<InlinePolicy>) {
    loop {
        let dir = meta.clone();
        match ports.offload(METADATA_FILL_QUEUE, move || dir.spaces()).await {
            Ok(Ok(spaces)) => inline.metadata_has(&spaces),
            Ok(Err(error)) => tracing::debug!(%error, "how full the metadata directories are is not known"),
            Err(_stopping) => return,
        }
        ports.sleep(METADATA_FILL_INTERVAL).await;
    }
}

/// What a core is made of.
pub struct CoreInputs {
    /// Time, chance, tasks, side threads.
    pub ports: Ports,
    /// Which core.
    pub core: CoreId,
    /// Lanes of the node, fixed at format.
    pub lane_count: u16,
    /// Lanes of this core.
    pub lanes: Vec<LaneInput>,
    /// Every usable device, each through this core's own queue.
    pub devices: Vec<StoreDevice>,
    /// The metadata set.
    pub meta: Arc<MirroredDir>,
    /// To the fragment stores of all lanes.
    pub lane_link: LaneLink,
    /// To the engines of all lanes.
    pub engine_link: Rc<dyn Link<EngineRequest, EngineResponse>>,
    /// This node, and the others as they were known last.
    pub nodes: Rc<NodeBoard>,
    /// The way to other nodes.
    pub peers: Rc<dyn PeerCalls>,
    /// Where buffers come from.
    pub buffers: BufferSource,
    /// The node's own keys.
    pub keys: Rc<NodeKeys>,
    /// Shape of the first pool's stripes, when the cluster is new.
    pub first_pool: StripeShape,
    /// Shards that a new tenant gets.
    pub shards_per_tenant: u16,
    /// Time between two closings of pin epochs.
    pub pin_epoch_age: Duration,
    /// How fast this core may repair.
    pub repair: RepairSettings,
    /// When devices are balanced.
    pub rebalance: RebalanceSettings,
    /// How often this core reads and checks what it holds; `None` for never.
    pub scrub: Option<ScrubSettings>,
    /// When a shard has itself split.
    pub split: SplitCeilings,
    /// How much of small objects lies beside their names.
    pub inline: InlineSettings,
    /// Timers of the Raft groups.
    pub group_settings: GroupSettings,
    /// Shards' table files that are at least this long are compacted.
    pub compact_from_bytes: u64,
    /// Homes of the cluster, fixed when it was formed.
    pub home_count: u16,
    /// A call to another node that takes longer is told of, when it is made for a client's request; `None`: none is.
    pub slow_call: Option<Duration>,
    /// Whether the node is being made: only then may its logs start empty (I-L10).
    pub is_new: bool,
    /// Whether the cluster is being made with it: only then may shards start empty (I-O4).
    pub forms_cluster: bool,
}

/// One core of a node.
pub struct CoreNode {
    core: CoreId,
    forms_cluster: bool,
    fragments: CoreFragmentStore,
    groups: Rc<CoreGroups>,
    replicas: Replicas,
    engine: Rc<Engine>,
    slow: Rc<SlowCalls>,
    /// Tables of the lanes, for a clean stop.
    tables: Vec<TableFile>,
}

impl CoreNode {
    /// Step 1. The reports tell which devices are not used and why.
    pub async fn open(inputs: CoreInputs) -> Result<(Rc<CoreNode>, Vec<DeviceReport>), CoreError> {
        let (mut logs, mut own_lanes, mut tables) = (BTreeMap::new(), Vec::new(), Vec::new());
        let lanes: Vec<LaneId> = inputs.lanes.iter().map(|lane| lane.lane).collect();
        for input in inputs.lanes {
            let lane = input.lane;
            let log_table =
                open_table(&inputs.ports, &inputs.meta, format!("lane-{}-log.redb", lane.0), lane, 0).await?;
            let index = open_index(&inputs.ports, &inputs.meta, lane, inputs.is_new).await?;
            let log = open_log(
                &inputs.ports,
                &inputs.buffers,
                &inputs.meta,
                input,
                Rc::new(log_table.clone()),
                inputs.is_new,
            )
            .await?;
            logs.insert(lane, log);
            own_lanes.push(OwnLane { lane, table: Rc::new(index.clone()) });
            tables.extend([log_table, index]);
        }
        let (fragments, reports) = CoreFragmentStore::open(FragmentStoreConfig {
            node: inputs.nodes.own(),
            ports: inputs.ports.clone(),
            lane_count: inputs.lane_count,
            lanes: own_lanes,
            devices: inputs.devices,
            link: inputs.lane_link,
            buffers: inputs.buffers.clone(),
            fold_interval: FOLD_INTERVAL,
        })
        .await?;
        let (nodes, ports) = (inputs.nodes.clone(), inputs.ports.clone());
        let slow = SlowCalls::new(ports.clone(), inputs.slow_call);
        let peers: Rc<dyn PeerCalls> = Rc::new(NotedCalls { calls: inputs.peers, nodes, ports, slow: slow.clone() });
        let directory = Rc::new(RecordedNodes(inputs.nodes.clone()));
        let replicas = Replicas::new(inputs.ports.clone());
        let groups = CoreGroups::new(CoreGroupsInputs {
            ports: inputs.ports.clone(),
            meta: inputs.meta.clone(),
            lane_count: inputs.lane_count,
            logs,
            settings: inputs.group_settings,
            compact_from_bytes: inputs.compact_from_bytes,
            nodes: inputs.nodes.clone(),
            peers: RaftPeers::new(inputs.ports.clone(), peers.clone(), directory, inputs.buffers.clone()),
            replicas: replicas.clone(),
        });
        let ports_of_fill = inputs.ports.clone();
        let engine = Engine::new(EngineInputs {
            ports: inputs.ports,
            link: inputs.engine_link,
            nodes: inputs.nodes,
            peers,
            host: Rc::new(Host(groups.clone())),
            fragments: Rc::new(fragments.clone()),
            buffers: inputs.buffers,
            keys: inputs.keys,
            lanes,
            lane_count: inputs.lane_count,
            home_count: inputs.home_count,
            shards_per_tenant: inputs.shards_per_tenant,
            first_pool: inputs.first_pool,
            pin_epoch_age: inputs.pin_epoch_age,
            repair: inputs.repair,
            rebalance: inputs.rebalance,
            scrub: inputs.scrub,
            split: inputs.split,
            inline: inputs.inline,
        });
        let watching = watch_metadata_fill(ports_of_fill, inputs.meta, engine.core().inline.clone());
        engine.core().background.repeat("metadata fill", Box::pin(watching));
        let core = CoreNode {
            core: inputs.core,
            forms_cluster: inputs.forms_cluster,
            fragments,
            groups,
            replicas,
            engine,
            slow,
            tables,
        };
        Ok((Rc::new(core), reports))
    }

    /// Answers another core's request to the fragments of a lane, from step 1 on.
    pub async fn handle_lane(&self, lane: LaneId, request: LaneRequest) -> LaneResponse {
        self.fragments.handle(lane, request).await
    }

    /// Answers a request to a shard of this core, from step 1 on.
    pub async fn handle_engine(&self, request: EngineRequest) -> EngineResponse {
        self.engine.handle(request).await
    }

    /// What this core answers to other nodes, from step 1 on: whichever of its lanes a parcel names.
    #[must_use]
    pub fn peer_services(&self) -> Vec<(ServiceId, PeerHandler)> {
        let fragments: Rc<dyn FragmentStore> = Rc::new(self.fragments.clone());
        vec![
            (ServiceId::RAFT, self.replicas.handler()),
            (ServiceId::ENGINE, self.slow.watched(ServiceId::ENGINE, self.engine.peer_handler())),
            (ServiceId::FRAGMENTS, self.slow.watched(ServiceId::FRAGMENTS, fragment_handler(fragments))),
        ]
    }

    /// Step 2.
    pub async fn publish(&self) -> Result<(), CoreError> {
        Ok(self.fragments.publish_recovered().await?)
    }

    /// Step 3.
    pub async fn open_system_shards(&self) -> Result<(), CoreError> {
        Ok(self.engine.open_system_shards(self.forms_cluster).await?)
    }

    /// Step 4.
    pub async fn open_tenant_shards(&self) -> Result<(), CoreError> {
        Ok(self.engine.open_tenant_shards().await?)
    }

    /// Step 5.
    pub fn start_background(&self) {
        self.engine.start_background();
    }

    /// Opens this core's lanes on a device that joins; from step 2 on. Nothing is placed on it before
    /// [`CoreNode::admit_device`].
    pub async fn add_device(&self, device: StoreDevice) -> Result<DeviceReport, AddDeviceError> {
        self.fragments.add_device(device).await
    }

    /// Places fragments on a device that all cores have added.
    pub fn admit_device(&self, device: DeviceId) -> Result<(), FragmentError> {
        self.fragments.admit_device(device)
    }

    /// Uses a device no more and closes it.
    pub async fn remove_device(&self, device: DeviceId) -> Result<(), StillInFlight> {
        self.fragments.remove_device(device).await
    }

    /// How the first pool protects chunks, from step 3 on, on the core that has the control shard; it was decided when the cluster
    /// was made.
    pub async fn pool_shape(&self) -> Result<Option<StripeShape>, CoreError> {
        Ok(self.engine.first_pool().await?)
    }

    /// Gives the shards that this core leads to other nodes: the first step of a stop. Everything is answered meanwhile.
    pub async fn hand_over(&self, within: Duration) {
        self.engine.hand_over(within).await;
    }

    /// Ends background work. To be done on every core before any core is closed: they need each other's shards.
    pub async fn stop_background(&self) {
        self.engine.stop_background().await;
    }

    /// What gateways use.
    #[must_use]
    pub fn store(&self) -> Store {
        self.engine.store()
    }

    /// The engine, for administration and counters.
    #[must_use]
    pub fn engine(&self) -> &Rc<Engine> {
        &self.engine
    }

    /// The fragment store, for counters and device states.
    #[must_use]
    pub fn fragments(&self) -> &CoreFragmentStore {
        &self.fragments
    }

    /// The Raft groups, for health.
    #[must_use]
    pub fn groups(&self) -> &Rc<CoreGroups> {
        &self.groups
    }

    /// Makes everything durable where it belongs, so that the next start replays nothing. Nothing may be served any
    /// more; other cores must still answer. Goes on after an error and returns the first one.
    pub async fn close(&self) -> Result<(), CoreError> {
        let groups = self.groups.close().await.map_err(CoreError::from);
        let fragments = self.fragments.fold().await.map_err(CoreError::from);
        tracing::debug!(core = %self.core, "groups and fragments checkpointed");
        groups.and(fragments)
    }

    /// Closes the lanes' files, when every core has ended [`CoreNode::close`].
    pub async fn close_files(&self) -> Result<(), CoreError> {
        let mut result = Ok(());
        for table in &self.tables {
            result = result.and(table.close().await.map_err(CoreError::from));
        }
        result
    }
}

/// The file of a lane's index in the metadata directories.
#[must_use]
pub fn index_file(lane: LaneId) -> String {
    format!("lane-{}-index.redb", lane.0)
}

/// Opens a lane's index. Only a new cluster may have none: every start since made it before it wrote anything.
async fn open_index(
    ports: &Ports,
    meta: &Arc<MirroredDir>,
    lane: LaneId,
    is_new: bool,
) -> Result<TableFile, CoreError> {
    let lost = |reason: String| CoreError::IndexLost { lane, reason };
    let (dir, name) = (meta.clone(), index_file(lane));
    let listed = ports.offload(u64::from(lane.0), move || dir.list());
    let closed = |_| TableError::Closed { file: index_file(lane) };
    let names = listed.await.map_err(closed)?;
    let names = names.map_err(|error| TableError::File { file: index_file(lane), reason: error.to_string() })?;
    if !is_new && !names.contains(&name) {
        return Err(lost(format!("{name} is missing in the metadata directories")));
    }
    open_table(ports, meta, name, lane, 1).await.map_err(|error| match error {
        TableError::File { .. } => lost(error.to_string()),
        closed => closed.into(),
    })
}

async fn open_table(
    ports: &Ports,
    meta: &Arc<MirroredDir>,
    name: String,
    lane: LaneId,
    number: u64,
) -> Result<TableFile, TableError> {
    let meta: Arc<dyn MetaDir> = meta.clone();
    let settings = TableSettings::new(u64::from(lane.0) * 2 + number);
    TableFile::open(ports.clone(), meta, &name, None, settings).await
}

/// Opens the Raft logs of a lane; makes their journal when the cluster is being made and it is not there yet.
async fn open_log(
    ports: &Ports,
    buffers: &BufferSource,
    meta: &Arc<MirroredDir>,
    input: LaneInput,
    table: Rc<TableFile>,
    is_new: bool,
) -> Result<LaneLog, CoreError> {
    let lane = input.lane;
    let members: Vec<MemberId> = input.log_mirrors.iter().map(|mirror| mirror.member).collect();
    let (fence_ports, fence_meta) = (ports.clone(), meta.clone());
    let config = JournalConfig {
        name: format!("Raft log of lane {lane}"),
        id: raft_journal_id(lane),
        ports: ports.clone(),
        buffers: buffers.clone(),
        mirrors: input.log_mirrors.into_iter().map(|mirror| mirror.region).collect(),
        // The journal goes on without a mirror only when a metadata-set epoch without it is durable.
        on_mirror_failed: Rc::new(move |mirror, error| {
            let (set, member) = (fence_meta.clone(), members[mirror]);
            let fenced = fence_ports.offload(FENCE_QUEUE, move || set.fence_member(member, &error.to_string()));
            Box::pin(async move {
                let fenced = fenced.await.map_err(|stopping| stopping.to_string())?;
                fenced.map_err(|error| error.to_string())
            })
        }),
    };
    let failed = |source| CoreError::Journal { lane, source };
    let opened = match journal::open(config.clone()).await {
        Err(JournalOpenError::Missing { .. }) if is_new => {
            journal::format(&config).await.map_err(failed)?;
            journal::open(config).await
        }
        other => other,
    };
    let (journal, replayed, report) = opened.map_err(failed)?;
    if !report.damaged_mirrors.is_empty() || !report.lost_mirrors.is_empty() {
        tracing::warn!(
            %lane, damaged = ?report.damaged_mirrors, lost = ?report.lost_mirrors,
            "a mirror of the Raft journal was not whole; it is filled from the others"
        );
    }
    let journal: Rc<dyn Journal> = journal;
    LaneLog::open(ports.clone(), lane, journal, replayed, table).await.map_err(|source| CoreError::Log { lane, source })
}

/// Tells a lane's Raft journal from any other journal.
fn raft_journal_id(lane: LaneId) -> JournalId {
    let mut id = *b"kiseki-raftlog\0\0";
    id[14..].copy_from_slice(&lane.0.to_le_bytes());
    JournalId(id)
}
