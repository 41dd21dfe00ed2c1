//! A node on this machine: opens what belongs to it, starts an executor per core, waits for a signal, stops cleanly.

use crate::admin::http::{self, HealthDesk};
use crate::admin::server::{self, AdminDesk};
use crate::cluster::{self, Membership, Neighbours};
use crate::config::Config;
use crate::device_orders::DeviceOrders;
use crate::device_table::DeviceTable;
use crate::devices;
use crate::doctor::Severity;
use crate::ending::Ending;
use crate::executor::{self, CoreShared, CoreWork, Duty};
use crate::files::read_bounded;
use crate::key_store::{KeyStore, read_passphrase};
use crate::machine;
use crate::metadata::{self, NodeMetadata};
use crate::nodes_file::NodesFile;
use crate::paths::KisekiDir;
use crate::peer_port::PeerTrustOfNode;
use crate::replaced::Replacements;
use crate::status::{Phase, StatusBoard};
use crate::steps::Steps;
use anyhow::{Context, Result, anyhow, bail};
use kiseki_net::{Listener, Mesh, MeshShape, SidePool, Stopper, TlsAcceptor};
use kiseki_types::fragment::StripeShape;
use kiseki_types::ids::ClusterId;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest certificate or key file.
const PEM_LEN_BYTES_MAX: u64 = 1 << 20;

/// A port that stays taken this long belongs to somebody else.
const PORT_PATIENCE: Duration = Duration::from_secs(2);

/// Shards that a new tenant gets for each core.
const SHARDS_PER_CORE: u16 = 2;

/// Runs a node until a signal stops it. An error is one message with its remedy.
pub fn run(config: Config) -> Result<()> {
    let _lock = lock_dir(&config.dir)?;
    raise_open_files();
    tracing::info!("configuration:\n{}", config.describe());
    probe_ports(&config)?;
    let keys = read_passphrase(&config.keys.passphrase_file)
        .and_then(|passphrase| KeyStore::open(&config.keys.key_store_file, &passphrase))?;
    let tls = if config.s3.unsafe_s3_plaintext { None } else { Some(tls_acceptor(&config)?) };
    if let Err(reason) = machine::try_executor() {
        return Err(no_executor(&reason, config.cores));
    }

    let board = Arc::new(StatusBoard::default());
    let stoppers = Stopper::new();
    let health = Arc::new(HealthDesk::default());
    let asked = health.clone();
    let ask_health = Arc::new(move || asked.ask());
    let admin_http =
        http::start(config.admin.listen, board.clone(), ask_health, executor::boottime_ns).map_err(|error| {
            anyhow!("{}: {error}; stop whatever listens there, or choose --admin-port", config.admin.listen)
        })?;
    let shared = open(config, keys, tls, board, stoppers.1)?;
    let shared = Arc::new(shared);
    let (desk, calls) = AdminDesk::new(shared.clone());
    health.open(desk.clone());
    server::start(&shared.config.dir.admin_socket(), desk.clone())
        .with_context(|| format!("can't make {}", shared.config.dir.admin_socket().display()))?;
    stop_on_signal(stoppers.0, shared.board.clone())?;

    let mut calls = Some(calls);
    let mut threads = Vec::new();
    for core in 0..shared.config.cores {
        threads.push(executor::spawn(shared.clone(), core, Duty::Serve(calls.take()), desk.clone())?);
    }
    crate::banner::when_ready(shared.clone(), admin_http);
    crate::watch::start(shared.clone()).context("can't start a thread")?;
    crate::wear::start(shared.clone()).context("can't start a thread")?;
    if shared.peer.is_some() {
        crate::peer_port::watch(shared.clone()).context("can't start a thread")?;
    }
    cluster::watch(shared.clone()).context("can't start a thread")?;
    let result = end(&shared, threads);
    let _gone = std::fs::remove_file(shared.config.dir.admin_socket());
    result
}

/// Opens a node that listens nowhere and serves nobody, has every core do `work`, and closes it cleanly. Rings, devices, journals
/// and tables are those of any node; measurements drive its engine so.
pub fn work(config: Config, work: &CoreWork) -> Result<()> {
    let _lock = lock_dir(&config.dir)?;
    raise_open_files();
    let keys = KeyStore::open(&config.keys.key_store_file, &read_passphrase(&config.keys.passphrase_file)?)?;
    if let Err(reason) = machine::try_executor() {
        return Err(no_executor(&reason, config.cores));
    }
    // Nobody stops it: it ends with the work.
    let (_stopper, stop) = Stopper::new();
    let shared = Arc::new(open(config, keys, None, Arc::default(), stop)?);
    let (desk, _no_calls) = AdminDesk::new(shared.clone());
    let spawn = |core| executor::spawn(shared.clone(), core, Duty::Work(work.clone()), desk.clone());
    let threads = (0..shared.config.cores).map(spawn).collect::<Result<Vec<_>>>()?;
    end(&shared, threads)
}

/// Waits for all cores and closes what they share.
fn end(shared: &CoreShared, threads: Vec<JoinHandle<Result<()>>>) -> Result<()> {
    let mut result = Ok(());
    for thread in threads {
        // A panic has ended the process already.
        let ended = thread.join().map_err(|_| anyhow!("an executor thread died"))?;
        result = result.and(ended);
    }
    shared.side.stop();
    if result.is_ok() && shared.steps.failure().is_none() {
        result = shared.meta.dir.close().context("the metadata directories can't be closed");
    }
    match shared.steps.failure() {
        Some(reason) => bail!("{reason}"),
        None => result,
    }
}

/// Opens devices and metadata, and makes everything that cores share.
fn open(
    config: Config,
    keys: KeyStore,
    tls: Option<TlsAcceptor>,
    board: Arc<StatusBoard>,
    stop: kiseki_net::StopSignal,
) -> Result<CoreShared> {
    let nodes = NodesFile::read(&config.dir)?;
    if let Some(other) =
        nodes.as_ref().map(|file| &file.cluster).filter(|cluster| **cluster != keys.cluster.to_string())
    {
        bail!(
            "nodes.json is of cluster {other}, this node of {}: copy the file of a node of this cluster, or take it away where the node \
             is alone",
            keys.cluster
        );
    }
    let trust = peer_trust(&config, keys.cluster, &board);
    let found = devices::open_all(&config.devices, keys.cluster, config.device_path.into());
    if found.usable.is_empty() {
        let reasons: Vec<String> =
            found.reports.iter().map(|report| format!("  {}: {}", report.path, report.reason)).collect();
        bail!("no usable device:\n{}\nmend one of them, or format new ones with kiseki-devctl", reasons.join("\n"));
    }
    let witness = metadata::witness(&found.usable, config.devices.len());
    let meta = metadata::open(keys.cluster, &config.metadata_dirs, witness.clone())?;
    let membership = Membership::of(nodes, meta.joined, meta.forms_cluster(), found.lanes)?;
    cluster::check_port(&membership, trust.as_ref().and_then(PeerTrustOfNode::node), &board)?;
    cluster::check_addresses(&membership, &config.peer)?;
    let shape = stripe_shape(&config, meta.forms_cluster())?;
    let replacements = replacements(&config, &board);
    describe(&config, &board, &found.reports, &meta, found.lanes);
    board.lock().cluster = keys.cluster.to_string();
    board.lock().node = membership.own.0;
    let mesh_shape = MeshShape { core_count: config.cores, lane_count: found.lanes };
    let peer = trust.map(|trust| trust.open(mesh_shape, &board));
    let side = SidePool::start(usize::from(config.side_threads)).context("can't start side threads")?;
    Ok(CoreShared {
        lanes: found.lanes,
        shape,
        shards_per_tenant: SHARDS_PER_CORE * config.cores,
        steps: Steps::new(config.cores),
        lane_mesh: Mesh::new(mesh_shape),
        engine_mesh: Mesh::new(mesh_shape),
        mesh_shape,
        devices: DeviceTable::new(found.usable, witness),
        orders: DeviceOrders::new(config.cores),
        peer,
        neighbours: Neighbours::new(&membership),
        membership,
        meta,
        side,
        keys,
        tls,
        board,
        replacements,
        stop,
        ending: Ending::default(),
        config,
    })
}

/// Whom the node believes on the port for members. Clients are served without that port too, so what is wrong with its files
/// keeps it closed and no node from starting.
fn peer_trust(config: &Config, cluster: ClusterId, board: &StatusBoard) -> Option<PeerTrustOfNode> {
    PeerTrustOfNode::read(config, cluster).unwrap_or_else(|error| {
        let warning = format!("the port for members of the cluster stays closed: {error:#}; then restart");
        tracing::warn!("{warning}");
        board.lock().warnings.push(warning);
        None
    })
}

/// Devices that were replaced while the node did not run. A damaged list keeps no node from starting (I-O3).
fn replacements(config: &Config, board: &StatusBoard) -> Replacements {
    Replacements::open(&config.dir).unwrap_or_else(|error| {
        let file = config.dir.replaced_file();
        let warning = format!(
            "{} can't be read ({error}), so what became of replaced devices is not recorded; correct it, or remove it, and restart",
            file.display()
        );
        tracing::warn!("{warning}");
        board.lock().warnings.push(warning);
        Replacements::none(&config.dir)
    })
}

/// Two nodes in one directory would take each other's devices.
pub fn lock_dir(dir: &KisekiDir) -> Result<File> {
    let path = dir.lock_file();
    let file = File::create(&path).with_context(|| format!("can't make {}", path.display()))?;
    match kiseki_devices::file_lock::lock_exclusive(&file) {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!("a node is running in {} already; stop it, or name another --dir", dir.path().display())
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("can't lock {}", path.display()))
        }
    }
}

/// Refuses a port that is taken. After a `kill -9` the kernel lets go of a node's sockets (its rings hold them) a moment
/// after the process is gone, and whoever supervises a node starts it again at once.
fn probe_ports(config: &Config) -> Result<()> {
    probe_port(config.s3.listen, "--s3-port")?;
    config.peer.listen.map_or(Ok(()), |listen| probe_port(listen, "[peer] listen"))
}

fn probe_port(listen: SocketAddr, setting: &str) -> Result<()> {
    let deadline = Instant::now() + PORT_PATIENCE;
    loop {
        match Listener::probe(listen) {
            Ok(()) => return Ok(()),
            Err(error @ kiseki_net::NetError::AddressInUse { .. }) if Instant::now() >= deadline => {
                bail!("{error} ({setting})")
            }
            Err(kiseki_net::NetError::AddressInUse { .. }) => std::thread::sleep(PORT_PATIENCE / 50),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Why no executor can be made, with the command that mends it.
fn no_executor(reason: &str, cores: u16) -> anyhow::Error {
    let blamed = [crate::doctor::memlock(cores), crate::doctor::io_uring()];
    match blamed.iter().find(|finding| finding.severity == Severity::Error) {
        Some(found) => anyhow!("{}: {}; mend it with: {}", found.check, found.message, found.remedy),
        None => anyhow!("no executor can be made ({reason}); `kiseki-server doctor` tells what hinders it"),
    }
}

fn tls_acceptor(config: &Config) -> Result<TlsAcceptor> {
    let read = |path: &Path| {
        read_bounded(path, PEM_LEN_BYTES_MAX).with_context(|| {
            format!("{}: `kiseki-server init` makes a certificate, S3_TLS=off serves without", path.display())
        })
    };
    let chain = read(&config.s3.certificate_file)?;
    let key = zeroize::Zeroizing::new(read(&config.s3.private_key_file)?);
    TlsAcceptor::from_pem(&chain, &key).map_err(|error| {
        anyhow!(
            "{error} ({}, {}); put the right files there, or remove both and run `kiseki-server init`",
            config.s3.certificate_file.display(),
            config.s3.private_key_file.display()
        )
    })
}

/// Connections take four descriptors, devices one a core: use what the hard limit allows.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// How the first pool of a new cluster protects chunks: as the configuration says, or by the number of devices that the node is to
/// have. A cluster that exists keeps the shape that it was made with; it is recorded in the control shard.
fn stripe_shape(config: &Config, forms_cluster: bool) -> Result<StripeShape> {
    if let Some(shape) = config.first_pool {
        return Ok(shape.stripe());
    }
    if forms_cluster && config.devices.len() == 1 && !config.unsafe_single_copy {
        bail!(
            "a single device keeps a single copy of everything: add a second one to `devices`, or set \
             unsafe_single_copy = true"
        );
    }
    Ok(crate::status::shape_for(config.devices.len()))
}

fn describe(
    config: &Config,
    board: &StatusBoard,
    devices: &[crate::status::DeviceReport],
    meta: &NodeMetadata,
    lanes: u16,
) {
    let mut report = board.lock();
    report.version = env!("CARGO_PKG_VERSION").to_owned();
    report.phase = Phase::Starting;
    report.started_at = executor::boottime_ns();
    report.endpoint = config.endpoint();
    report.cores = config.cores;
    report.lanes = lanes;
    report.paths_in_use = machine::cpu_paths().into_iter().map(|(what, path)| (what.to_owned(), path)).collect();
    report.paths_in_use.insert("devices".to_owned(), io_paths(devices));
    report.devices = devices.to_vec();
    report.metadata_dirs = meta.reports.clone();
    report.pool_is_chosen = config.first_pool.is_some();
    report.unsafe_settings = config.unsafe_settings().into_iter().map(str::to_owned).collect();
    if config.metadata_dirs.len() == 1 {
        report.warnings.push(
            "a single metadata directory: if it is lost, all data is lost; add one on another disk to metadata_dirs"
                .to_owned(),
        );
    }
}

/// How many devices are driven in which way: `4 passthrough_polled, 2 file`.
fn io_paths(devices: &[crate::status::DeviceReport]) -> String {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for device in devices.iter().filter(|device| !device.io_path.is_empty()) {
        *counts.entry(&device.io_path).or_default() += 1;
    }
    counts.iter().map(|(path, count)| format!("{count} {path}")).collect::<Vec<_>>().join(", ")
}

/// The first SIGINT or SIGTERM stops the node cleanly, a second one ends it at once (what is acknowledged stays). While
/// the node starts there is nothing to end: every step of a start survives being cut off.
fn stop_on_signal(stopper: Stopper, board: Arc<StatusBoard>) -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])?;
    std::thread::Builder::new().name("kiseki-signals".to_owned()).spawn(move || {
        let mut is_stopping = false;
        for signal in signals.forever() {
            if is_stopping || board.lock().phase == Phase::Starting {
                std::process::exit(128 + signal);
            }
            is_stopping = true;
            tracing::info!(signal, "stopping; a second signal ends at once");
            stopper.stop();
        }
    })?;
    Ok(())
}
