//! Raft groups with three replicas in one process, on real files: commands per second by writers and groups, how many
//! calls travel in a parcel, and what idle groups cost.
//!
//! `cargo bench --ignore-rust-version -p kiseki-benches --bench raft_groups -- [SECONDS] [DIRECTORY]`: seconds of each
//! figure (3) and where the files lie (a new directory in the system's place for temporary files). Run `fio` beside it:
//! a figure means nothing without what the disk gives in the same minute.

use futures::channel::oneshot;
use kiseki_devices::file_device::{create_image, open_device};
use kiseki_devices::journal::{self, JournalConfig, JournalId, MirrorRegion};
use kiseki_devices::meta_dir::FsDir;
use kiseki_devices::ring::RingOptions;
use kiseki_executor::{Executor, ExecutorOptions};
use kiseki_net::runtime::CoreRuntime;
use kiseki_net::side::SidePool;
use kiseki_raft::group::{GroupParts, GroupSettings};
use kiseki_raft::snapshot::SnapshotSeals;
use kiseki_raft::table_file::TableFile;
use kiseki_raft::table_set::{FileSpec, TableSet, TableSettings};
use kiseki_raft::type_config::{VoterId, node_of};
use kiseki_raft::{LaneLog, PeerDirectory, RaftPeers, Replicas, ShardGroup};
use kiseki_types::buf::plain_buffers;
use kiseki_types::group::{Applied, ApplyError, LogPosition, RaftGroup, StateMachine};
use kiseki_types::ids::CoreId;
use kiseki_types::peer::{Parcel, PeerCallError, PeerCalls, PeerHandler, PeerIdentity, PeerLane, ServiceId};
use kiseki_types::runtime::{LocalBoxFuture, Ports, RuntimeExt, set_current};
use kiseki_types::table::{TableReader, TableWrite};
use kiseki_types::{BlockIndex, LaneId, NodeId, ShardId};
use rustix::time::{ClockId, clock_gettime};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

const NODES: u64 = 3;
const LANE: LaneId = LaneId(0);
const JOURNAL_LEN_BYTES: u64 = 64 << 20;
const COMMAND_LEN_BYTES: usize = 256;

/// Calls between the nodes of this process.
#[derive(Default)]
struct Wires {
    handlers: RefCell<BTreeMap<NodeId, PeerHandler>>,
}

struct Wire {
    wires: Rc<Wires>,
    from: NodeId,
}

impl PeerCalls for Wire {
    fn call(
        &self,
        to: PeerLane,
        _service: ServiceId,
        parcel: Parcel,
        _deadline: Duration,
    ) -> LocalBoxFuture<'static, Result<Parcel, PeerCallError>> {
        let (handler, from) = (self.wires.handlers.borrow().get(&to.node).cloned(), self.from);
        Box::pin(async move {
            let unreachable = || PeerCallError::Unreachable { node: to.node, reason: "it does not run".to_owned() };
            let handler = handler.ok_or_else(unreachable)?;
            let answer = handler(PeerIdentity::Node(from), to.lane, parcel).await;
            answer.map_err(|reason| PeerCallError::Refused { node: to.node, reason })
        })
    }
}

struct OneLane;

impl PeerDirectory for OneLane {
    fn locate(&self, voter: VoterId, _shard: ShardId) -> Option<PeerLane> {
        Some(PeerLane { node: node_of(voter), lane: LANE })
    }
}

/// Keeps the last command of each writer.
struct Last;

impl StateMachine for Last {
    fn apply<'a>(
        &'a self,
        _at: LogPosition,
        command: &'a [u8],
        _tables: &'a dyn TableReader,
    ) -> LocalBoxFuture<'a, Result<Applied, ApplyError>> {
        let write = TableWrite { file: 0, table: 0, key: command[..8].to_vec(), value: Some(command[8..].to_vec()) };
        Box::pin(async move { Ok(Applied { response: Vec::new(), writes: vec![write] }) })
    }
}

struct Node {
    id: NodeId,
    ports: Ports,
    log: LaneLog,
    dir: Arc<FsDir>,
    peers: RaftPeers,
    replicas: Replicas,
}

impl Node {
    async fn start(id: NodeId, ports: &Ports, wires: &Rc<Wires>, base: &Path) -> Node {
        let path = base.join(format!("node{}", id.0));
        let dir = Arc::new(FsDir::create(&path).expect("a new directory"));
        let image = path.join("raft-journal");
        create_image(&image, JOURNAL_LEN_BYTES).expect("a new file");
        // Written once, so that no write of the run has to change what the file system knows of the file.
        std::fs::write(&image, vec![0; JOURNAL_LEN_BYTES as usize]).expect("there is room");
        let device = open_device(&image, RingOptions::default(), None).expect("it opens");
        let len = device.geometry().block_count;
        let config = JournalConfig {
            name: "raft".to_owned(),
            id: JournalId([7; 16]),
            ports: ports.clone(),
            buffers: plain_buffers(),
            mirrors: vec![MirrorRegion::new(ports.clone(), device, BlockIndex(0), len)],
            on_mirror_failed: Rc::new(|_, _| Box::pin(async { Ok(()) })),
        };
        journal::format(&config).await.expect("formatted");
        let (journal, replayed, _) = journal::open(config).await.expect("opened");
        let settings = TableSettings::new(id.0 * 1_000);
        let table = TableFile::open(ports.clone(), dir.clone(), "raft-log", None, settings).await.expect("a log file");
        let log = LaneLog::open(ports.clone(), LANE, journal, replayed, Rc::new(table)).await.expect("a log");
        let wire = Rc::new(Wire { wires: wires.clone(), from: id });
        let peers = RaftPeers::new(ports.clone(), wire, Rc::new(OneLane), plain_buffers());
        let replicas = Replicas::new(ports.clone());
        wires.handlers.borrow_mut().insert(id, replicas.handler());
        Node { id, ports: ports.clone(), log, dir, peers, replicas }
    }

    async fn parts(&self, shard: ShardId) -> GroupParts {
        let files = vec![FileSpec { name: format!("{shard}.rows"), seal: None }];
        let settings = TableSettings::new(self.id.0 * 1_000 + 10 + shard.0 % 64);
        GroupParts {
            ports: self.ports.clone(),
            log: self.log.clone(),
            shard,
            tables: TableSet::open(self.ports.clone(), self.dir.clone(), files, settings).await.expect("tables"),
            machine: Rc::new(Last),
            link: Rc::new(self.peers.clone()),
            seals: SnapshotSeals::none(),
            settings: GroupSettings::several_voters(),
        }
    }
}

/// Makes groups whose leaders are on the first node.
async fn make_groups(nodes: &[Node], groups: u64) -> Vec<ShardGroup> {
    let voters: Vec<VoterId> = nodes.iter().map(|node| node.id.0).collect();
    let mut leaders = Vec::new();
    for shard in (0..groups).map(|number| ShardId(1024 + number)) {
        for node in &nodes[1..] {
            let replica = ShardGroup::join(node.parts(shard).await, node.id.0).await.expect("joins");
            node.replicas.join(replica);
        }
        let leader = ShardGroup::create(nodes[0].parts(shard).await, nodes[0].id.0, &voters).await.expect("made");
        nodes[0].replicas.join(leader.clone());
        leaders.push(leader);
    }
    leaders
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Writers that propose one command after the other for `span`; how many commands were answered.
async fn load(ports: &Ports, leaders: &[ShardGroup], writers: usize, span: Duration) -> u64 {
    let (done, until) = (Rc::new(Cell::new(0)), ports.now() + span);
    let mut ends = Vec::new();
    for number in 0..writers {
        let (leader, done, ports) = (leaders[number % leaders.len()].clone(), done.clone(), ports.clone());
        let (sender, receiver) = oneshot::channel();
        ports.clone().spawn(
            "writer",
            Box::pin(async move {
                let mut command = vec![7; COMMAND_LEN_BYTES];
                command[..8].copy_from_slice(&(number as u64).to_be_bytes());
                while ports.now() < until {
                    leader.propose(command.clone()).await.expect("it is committed");
                    done.set(done.get() + 1);
                }
                let _ = sender.send(());
            }),
        );
        ends.push(receiver);
    }
    futures::future::join_all(ends).await;
    done.get()
}

async fn measure(ports: &Ports, base: PathBuf, groups: u64, span: Duration) {
    std::fs::create_dir_all(&base).expect("a directory for the files");
    let wires = Rc::new(Wires::default());
    let mut nodes = Vec::new();
    for number in 1..=NODES {
        nodes.push(Node::start(NodeId(number), ports, &wires, &base).await);
    }
    let leaders = make_groups(&nodes, groups).await;
    for writers in [1, 16, 256] {
        load(ports, &leaders, writers, span / 4).await;
        let (parcels, calls, cpu, start) =
            (nodes[0].peers.parcels(), nodes[0].peers.calls(), cpu_time(), Instant::now());
        let done = load(ports, &leaders, writers, span).await;
        let (wall, cpu) = (start.elapsed(), cpu_time() - cpu);
        let (parcels, calls) = (nodes[0].peers.parcels() - parcels, nodes[0].peers.calls() - calls);
        println!(
            "{groups:>3} groups {writers:>4} writers {:>9.0} commands/s, {:>6.1} us of CPU each, {:>5.2} calls a parcel, {:>6.1} commands a call",
            done as f64 / wall.as_secs_f64(),
            cpu.as_secs_f64() * 1e6 / done as f64,
            calls as f64 / parcels.max(1) as f64,
            2.0 * done as f64 / calls.max(1) as f64,
        );
    }
    ports.sleep(Duration::from_secs(2)).await; // folds end
    let (parcels, calls, cpu, start) = (nodes[0].peers.parcels(), nodes[0].peers.calls(), cpu_time(), Instant::now());
    ports.sleep(span * 2).await;
    let (wall, cpu) = (start.elapsed().as_secs_f64(), (cpu_time() - cpu).as_secs_f64());
    let (parcels, calls) = (nodes[0].peers.parcels() - parcels, nodes[0].peers.calls() - calls);
    println!(
        "{groups:>3} groups idle: {:.1} % of a core for {NODES} nodes, {:.1} parcels/s, {:.1} calls a parcel",
        100.0 * cpu / wall,
        parcels as f64 / wall,
        calls as f64 / parcels.max(1) as f64
    );
    for leader in leaders {
        leader.close().await.expect("it closes");
    }
    drop(nodes);
    std::fs::remove_dir_all(&base).expect("the files go");
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let seconds = arguments.first().and_then(|text| text.parse().ok()).unwrap_or(3);
    let base = arguments.get(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let base = base.join(format!("kiseki-raft-groups-{}", std::process::id()));
    for groups in [1, 16, 64] {
        let side = SidePool::start(2).expect("threads");
        let (pool, base) = (side.clone(), base.join(groups.to_string()));
        let executor = Executor::new(ExecutorOptions::default()).expect("an executor");
        executor.run(async move {
            let ports: Ports = Rc::new(CoreRuntime::new(CoreId(0), pool));
            set_current(Some(ports.clone()));
            measure(&ports, base, groups, Duration::from_secs(seconds)).await;
            set_current(None);
        });
        drop(executor);
        side.stop();
    }
    let _ = std::fs::remove_dir(&base); // what a run that broke left stays to be looked at
}
