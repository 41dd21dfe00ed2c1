//! One core: a pinned executor with its rings, links, gateway and a [`CoreNode`].

use crate::admin::server::{AdminCalls, AdminDesk};
use crate::admin::{self, AdminStore};
use crate::admin_store::EngineAdmin;
use crate::cluster::{self, CoreCluster, Membership, Neighbours};
use crate::config::Config;
use crate::core_node::{CoreInputs, CoreNode, LaneInput, LogMirror, RAFT_JOURNAL_LEN_BYTES};
use crate::device_admin::DeviceAdmin;
use crate::device_orders::{self, DeviceOrders};
use crate::device_records::DeviceRecorder;
use crate::device_table::{DeviceTable, OpenDevice};
use crate::ending::{Ending, HANDOVER_MAX};
use crate::key_store::KeyStore;
use crate::metadata::{NodeMetadata, mark_formed, raft_journal_path};
use crate::node_admin::NodeAdmin;
use crate::peer_port::{self, PeerPort};
use crate::replaced::Replacements;
use crate::report;
use crate::shard_admin::ShardAdmin;
use crate::status::{Phase, StatusBoard};
use crate::steps::Steps;
use anyhow::{Context, Result};
use futures::StreamExt;
use kiseki_devices::file_device::{create_image, open_device};
use kiseki_devices::flush_gate::FlushGate;
use kiseki_devices::fragment_store::{LaneRequest, LaneResponse, StoreDevice};
use kiseki_devices::journal::{MirrorContent, MirrorRegion};
use kiseki_devices::pool::BufferPool;
use kiseki_devices::ring::RingOptions;
use kiseki_devices::superblock::Superblock;
use kiseki_engine::engine::PIN_EPOCH_AGE;
use kiseki_engine::keyring::NodeKeys;
use kiseki_engine::keys::MasterKeys;
use kiseki_engine::message::{EngineRequest, EngineResponse};
use kiseki_executor::{Executor, ExecutorOptions};
use kiseki_gateway::{GatewayConfig, S3Service};
use kiseki_net::{
    Connection, CoreRuntime, Listener, Mesh, MeshCaller, MeshShape, ServeLimits, SidePool, StopSignal, TlsAcceptor,
    serve,
};
use kiseki_raft::GroupSettings;
use kiseki_raft::table_set::COMPACT_FROM_BYTES;
use kiseki_types::BlockIndex;
use kiseki_types::fragment::StripeShape;
use kiseki_types::ids::{CoreId, LaneId};
use kiseki_types::runtime::{LocalBoxFuture, Ports, RuntimeExt, set_current};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Registered buffers of one core.
pub const BUFFER_POOL_LEN_BYTES: usize = 64 << 20;

/// What all cores share.
pub struct CoreShared {
    /// The configuration.
    pub config: Config,
    /// Lanes of the node.
    pub lanes: u16,
    /// Shape of the first pool.
    pub shape: StripeShape,
    /// Shards of a new tenant.
    pub shards_per_tenant: u16,
    /// Start and stop, step by step.
    pub steps: Steps,
    /// Which core holds which lane.
    pub mesh_shape: MeshShape,
    /// Calls between fragment stores.
    pub lane_mesh: Mesh<LaneRequest, LaneResponse>,
    /// Calls between engines.
    pub engine_mesh: Mesh<EngineRequest, EngineResponse>,
    /// Devices that the node holds; they come and go.
    pub devices: DeviceTable,
    /// The way to all cores when one does.
    pub orders: DeviceOrders,
    /// The port for members of the cluster, where it is open.
    pub peer: Option<PeerPort>,
    /// Who this node is, and what it knew of the others when it started.
    pub membership: Membership,
    /// The other nodes, as the cores share them.
    pub neighbours: Neighbours,
    /// The metadata set.
    pub meta: NodeMetadata,
    /// Side threads.
    pub side: Arc<SidePool>,
    /// The node's own keys.
    pub keys: KeyStore,
    /// TLS towards clients; `None` serves plain.
    pub tls: Option<TlsAcceptor>,
    /// What the node says about itself.
    pub board: Arc<StatusBoard>,
    /// Devices that were replaced while the node did not run.
    pub replacements: Replacements,
    /// Thrown by a signal.
    pub stop: StopSignal,
    /// What is ended after that, step by step.
    pub ending: Ending,
}

/// What a core does between its start and its end.
pub enum Duty {
    /// It serves clients until the node is stopped; core 0 answers administration too.
    Serve(Option<AdminCalls>),
    /// It does this and serves nobody; the node ends when all cores have done it.
    Work(CoreWork),
}

/// Work on each core of a node that serves nobody.
pub type CoreWork = Arc<dyn Fn(OpenCore) -> LocalBoxFuture<'static, Result<()>> + Send + Sync>;

/// A core that is open.
pub struct OpenCore {
    /// Which.
    pub core: CoreId,
    /// Its ports.
    pub ports: Ports,
    /// Its lanes, shards and engine.
    pub node: Rc<CoreNode>,
    /// What its lanes' Raft journals are flushed through, a gate for each metadata directory.
    pub log_gates: Vec<FlushGate>,
}

/// The boottime clock in nanoseconds, for threads without ports.
#[must_use]
pub fn boottime_ns() -> u64 {
    kiseki_net::runtime::boottime().0
}

/// Starts the executor of a core on a thread of its own, pinned when there are CPUs enough.
pub fn spawn(
    shared: Arc<CoreShared>,
    core: u16,
    duty: Duty,
    desk: AdminDesk<CoreShared>,
) -> Result<JoinHandle<Result<()>>> {
    let cpus = machine_cpus();
    let cpu = cpus.get(usize::from(core)).copied().filter(|_| usize::from(shared.config.cores) <= cpus.len());
    let busy_poll = shared.config.busy_poll();
    let thread = std::thread::Builder::new().name(format!("kiseki-core-{core}"));
    let handle = thread.spawn(move || {
        let result = match Executor::new(ExecutorOptions { cpu, busy_poll, ..ExecutorOptions::default() }) {
            Ok(executor) => executor.run(run_core(shared.clone(), CoreId(core), duty, desk)),
            Err(error) => Err(anyhow::anyhow!("core {core} can't start: {error}; try `kiseki-server doctor`")),
        };
        if let Err(error) = &result {
            shared.steps.fail(format!("{error:#}"));
        }
        result
    });
    handle.context("can't start an executor thread")
}

/// CPUs that this process may use.
fn machine_cpus() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

async fn run_core(shared: Arc<CoreShared>, core: CoreId, duty: Duty, desk: AdminDesk<CoreShared>) -> Result<()> {
    let ports: Ports = Rc::new(CoreRuntime::new(core, shared.side.clone()));
    set_current(Some(ports.clone()));
    let lane_link = shared.lane_mesh.connect(core, ports.clone());
    let engine_link = shared.engine_mesh.connect(core, ports.clone());
    let pool = BufferPool::with_len_bytes(BUFFER_POOL_LEN_BYTES);
    let buffer_pool = pool.clone();
    let cluster = Rc::new(CoreCluster::new(&shared, shared.peer.as_ref().map(|peer| peer.links(&pool, &ports))));
    cluster.follow(&shared, &ports);
    let lanes = (0..shared.lanes).map(LaneId).filter(|lane| shared.mesh_shape.core_of(*lane) == core);
    let lanes = lanes.map(|lane| lane_input(&shared, lane, &ports)).collect::<Result<Vec<LaneInput>>>()?;
    let log_mirrors = lanes.iter().flat_map(|lane| &lane.log_mirrors);
    let log_gates = log_mirrors.map(|mirror| mirror.region.gate.clone()).collect();
    let inputs = CoreInputs {
        ports: ports.clone(),
        core,
        lane_count: shared.lanes,
        lanes,
        devices: open_devices(&shared, &pool)?,
        meta: shared.meta.dir.clone(),
        lane_link: Rc::new(MeshCaller(lane_link.clone())),
        engine_link: Rc::new(MeshCaller(engine_link.clone())),
        nodes: cluster.board.clone(),
        peers: cluster.calls(),
        buffers: Rc::new(move |len_bytes| buffer_pool.alloc(len_bytes)),
        keys: Rc::new(node_keys(&shared.keys)?),
        first_pool: shared.shape,
        shards_per_tenant: shared.shards_per_tenant,
        pin_epoch_age: PIN_EPOCH_AGE,
        repair: shared.config.repair.of_core(shared.config.cores),
        rebalance: shared.config.rebalance.settings(),
        scrub: shared.config.scrub_of_core(),
        split: shared.config.shards.ceilings(),
        inline: shared.config.inline.settings(),
        group_settings: match shared.peer {
            Some(_) => GroupSettings::several_voters(),
            None => GroupSettings::single_voter(),
        },
        compact_from_bytes: COMPACT_FROM_BYTES,
        home_count: shared.membership.homes,
        slow_call: shared.config.log.slow_request(),
        is_new: shared.meta.is_new,
        forms_cluster: shared.meta.forms_cluster(),
    };
    let (node, reports) = CoreNode::open(inputs).await?;
    report::devices_opened(&shared.board, &reports);
    let (lane_node, engine_node) = (node.clone(), node.clone());
    lane_link.serve(Rc::new(move |lane, request| {
        let node = lane_node.clone();
        Box::pin(async move { node.handle_lane(lane, request).await })
    }));
    engine_link.serve(Rc::new(move |_, request| {
        let node = engine_node.clone();
        Box::pin(async move { node.handle_engine(request).await })
    }));
    shared.steps.done(1, &ports).await?;
    if shared.meta.is_new && !shared.meta.forms_cluster() {
        // All lanes are there now, before anybody has a replica made on them: from here on a missing one is lost (I-L10).
        note_formed(&shared, core, &ports).await?;
    }
    node.publish().await?;
    shared.steps.done(2, &ports).await?;
    // Others need this node's replicas for a majority as it needs theirs, so it answers before it has any majority itself.
    let services = peer_port::services(&shared, &node, &cluster.board, desk);
    let server = peer_port::serve(&shared, core, &pool, services, &ports)?;
    if core == CoreId(0) && shared.membership.has_others() {
        cluster::tell_while_starting(&shared, &cluster, &ports);
        cluster::ask_around(&shared, &cluster, &ports);
    }
    node.open_system_shards().await?;
    shared.steps.done(3, &ports).await?;
    node.open_tenant_shards().await?;
    if shared.meta.forms_cluster() {
        note_formed(&shared, core, &ports).await?;
    }
    shared.steps.done(4, &ports).await?;
    node.start_background();
    device_orders::serve(&shared, core, &node, pool, &ports);
    if core == CoreId(0) && shared.peer.is_some() {
        cluster::announce(&shared, &node, &ports);
    }
    if cluster::wait_for_control(&shared, &node, &ports).await {
        if let Some(shape) = node.pool_shape().await? {
            shared.board.lock().set_pool_shape(shape);
        }
        match duty {
            Duty::Serve(calls) => {
                let members = report::Members { server: server.clone(), cluster };
                serve_until_stopped(&shared, core, &node, &ports, calls, members).await?;
            }
            Duty::Work(work) => {
                work(OpenCore { core, ports: ports.clone(), node: node.clone(), log_gates }).await?;
                leave(&shared, &node, &ports).await?;
            }
        }
    } else {
        leave(&shared, &node, &ports).await?;
    }
    shared.steps.done(6, &ports).await?;
    // No client is served any more, and no shard is led here that another node could lead.
    shared.ending.end_members();
    if let Some(server) = server {
        server.ended().await;
    }
    shared.steps.done(7, &ports).await?;
    // Nobody is; the cores still answer each other while they make everything durable.
    node.stop_background().await;
    shared.steps.done(8, &ports).await?;
    let closed = node.close().await;
    shared.steps.done(9, &ports).await?;
    let closed = closed.and(node.close_files().await);
    shared.steps.done(10, &ports).await?;
    lane_link.stop();
    engine_link.stop();
    // Whoever is woken by that gets to run once more before the executor goes.
    ports.sleep(Duration::from_millis(1)).await;
    set_current(None);
    closed.context("stopped, but not everything could be checkpointed; the next start replays it")
}

/// Notes, once for all cores, that what makes the node or its cluster is there.
async fn note_formed(shared: &CoreShared, core: CoreId, ports: &Ports) -> Result<()> {
    if core != CoreId(0) {
        return Ok(());
    }
    let dir = shared.meta.dir.clone();
    ports.offload(0, move || mark_formed(&dir)).await?.context("the metadata directories can't be written")
}

/// The first step of a stop, once on every core: what is led here is given to other nodes. Clients are still served meanwhile.
async fn leave(shared: &CoreShared, node: &CoreNode, ports: &Ports) -> Result<()> {
    node.hand_over(HANDOVER_MAX).await;
    let all = shared.steps.done(5, ports).await;
    shared.ending.end_clients();
    Ok(all?)
}

/// Serves S3 (and on core 0 administration) until the signal and until the node has given away what it leads, then ends what is in
/// flight.
async fn serve_until_stopped(
    shared: &Arc<CoreShared>,
    core: CoreId,
    node: &Rc<CoreNode>,
    ports: &Ports,
    calls: Option<AdminCalls>,
    members: report::Members,
) -> Result<()> {
    let gateway_config = GatewayConfig {
        region: shared.config.s3.region.clone(),
        slow_request: shared.config.log.slow_request(),
        ..GatewayConfig::default()
    };
    let gateway = S3Service::new(ports.clone(), node.store(), gateway_config);
    report::start(shared, core, node, &gateway, members, ports);
    if let Some(calls) = calls {
        let store = Rc::new(EngineAdmin::new(node.engine().calls().clone()));
        let devices = DeviceAdmin::new(shared.clone(), node.clone(), ports.clone());
        let nodes = NodeAdmin::new(shared.clone(), node.clone());
        serve_admin(calls, store.clone(), devices, nodes, ShardAdmin::new(node.clone()), ports);
        DeviceRecorder::start(shared, node, ports);
        first_tenant(shared, node, &store, ports).await?;
    }
    let listener = Listener::bind(shared.config.s3.listen)?;
    if core == CoreId(0) {
        shared.board.lock().phase = Phase::Serving;
    }
    let limits = ServeLimits { connections_max: shared.config.s3.connections_per_core_max, ..ServeLimits::default() };
    let service = gateway.clone();
    let handler = Rc::new(move |connection: Connection| {
        let serving = service.serve_connection(connection.io);
        let peer = connection.peer;
        Box::pin(async move {
            if let Err(error) = serving.await {
                tracing::debug!(%peer, %error, "connection ended");
            }
        }) as LocalBoxFuture<'static, ()>
    });
    let (all, stopping, leaving, clock) = (shared.clone(), gateway.clone(), node.clone(), ports.clone());
    let watch = async move {
        all.stop.stopped().await;
        all.board.lock().phase = Phase::Stopping;
        // Where another core has failed, that core says why.
        let _all = leave(&all, &leaving, &clock).await;
        stopping.begin_shutdown();
    };
    ports.spawn("stop", Box::pin(watch));
    serve(listener, shared.tls.clone(), ports.clone(), limits, shared.ending.clients(), handler).await;
    Ok(())
}

/// The first tenant and the files of clients. Among others a leader may go while it is asked: then it is asked again.
async fn first_tenant(shared: &CoreShared, node: &CoreNode, store: &EngineAdmin, ports: &Ports) -> Result<()> {
    loop {
        let done = crate::first_tenant::ensure(&shared.config, &node.store(), store).await;
        if done.is_ok() || !shared.membership.has_others() || shared.stop.is_stopped() {
            return done;
        }
        tracing::warn!(error = %format!("{:#}", done.expect_err("it is no Ok")), "the first tenant can't be looked at; tried again");
        ports.sleep(Duration::from_secs(1)).await;
    }
}

/// Answers administration, each request in a task of its own; the socket's side bounds how many there are.
fn serve_admin(
    mut calls: AdminCalls,
    store: Rc<EngineAdmin>,
    devices: Rc<DeviceAdmin>,
    nodes: Rc<NodeAdmin>,
    shards: Rc<ShardAdmin>,
    ports: &Ports,
) {
    let task_ports = ports.clone();
    let task = async move {
        while let Some(call) = calls.next().await {
            let (store, devices, nodes, shards) = (store.clone(), devices.clone(), nodes.clone(), shards.clone());
            let answering = async move {
                let response = match &call.request {
                    request if DeviceAdmin::answers(request) => devices.answer(call.request).await,
                    request if NodeAdmin::answers(request) => nodes.answer(call.request).await,
                    request if ShardAdmin::answers(request) => shards.answer(call.request).await,
                    _ => admin::answer(&*store as &dyn AdminStore, call.request).await,
                };
                // A client that has gone does not want its answer.
                let _gone = call.answer.try_send(response);
            };
            task_ports.spawn("admin", Box::pin(answering));
        }
    };
    ports.spawn("admin", Box::pin(task));
}

fn open_devices(shared: &CoreShared, pool: &Rc<BufferPool>) -> Result<Vec<StoreDevice>> {
    let open = |device: &OpenDevice| open_queue(&shared.config, &device.path, &device.superblock, pool);
    shared.devices.all().iter().map(open).collect()
}

/// This core's queue on a device of the node.
pub fn open_queue(config: &Config, path: &Path, superblock: &Superblock, pool: &Rc<BufferPool>) -> Result<StoreDevice> {
    let name = path.display().to_string();
    let options = RingOptions { path: config.device_path.into(), ..RingOptions::default() };
    match open_device(path, options, Some(pool.clone())) {
        Ok(queue) => Ok(StoreDevice {
            id: superblock.device,
            pool: superblock.pool,
            name,
            layout: superblock.layout,
            space: crate::space::policy(&config.fill, &config.discard, superblock.class, config.cores),
            device: queue,
        }),
        // It was there a moment ago: more likely our own limits than the device.
        Err(error) => Err(error).with_context(|| format!("device {name}; `kiseki-server doctor` may tell why")),
    }
}

/// The mirrors of a lane's Raft journal, one in each healthy metadata directory. A missing file is made: with other
/// mirrors it is filled from them, alone it is formatted only while the cluster is new.
fn lane_input(shared: &CoreShared, lane: LaneId, ports: &Ports) -> Result<LaneInput> {
    let mut log_mirrors = Vec::new();
    for member in shared.meta.dir.members().into_iter().filter(|member| member.healthy) {
        let path = raft_journal_path(&shared.meta.paths[member.index], lane.0);
        let mut refill = shared.meta.refilled.contains(&member.index);
        if !path.exists() {
            create_image(&path, RAFT_JOURNAL_LEN_BYTES)?;
            refill = !shared.meta.is_new;
        }
        let device = open_device(&path, RingOptions { depth: 64, ..RingOptions::default() }, None)?;
        let len = device.geometry().block_count;
        let mut region = MirrorRegion::new(ports.clone(), device, BlockIndex(0), len);
        if refill {
            region.content = MirrorContent::Refill;
        }
        log_mirrors.push(LogMirror { member: member.id, region });
    }
    Ok(LaneInput { lane, log_mirrors })
}

/// A core's own copy of the node's keys.
fn node_keys(keys: &KeyStore) -> Result<NodeKeys> {
    let masters = keys.masters.iter().map(|(epoch, key)| (*epoch, key.duplicate())).collect();
    Ok(NodeKeys {
        masters: MasterKeys::new(masters)?,
        locator: keys.locator.duplicate(),
        control: keys.control.duplicate(),
    })
}
