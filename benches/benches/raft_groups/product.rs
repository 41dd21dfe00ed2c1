//! Three replicas of the product in one process: its groups, parcels, journals and table files, on real files.
//!
//! The nodes share an executor and hand each other parcels without a socket; everything else is as in a node.

use kiseki_devices::file_device::{create_image, open_device};
use kiseki_devices::journal::{self, JournalConfig, JournalId, MirrorRegion};
use kiseki_devices::meta_dir::FsDir;
use kiseki_devices::ring::RingOptions;
use kiseki_raft::group::{GroupParts, GroupSettings};
use kiseki_raft::snapshot::SnapshotSeals;
use kiseki_raft::table_file::TableFile;
use kiseki_raft::table_set::{FileSpec, TableSet, TableSettings};
use kiseki_raft::type_config::{VoterId, node_of};
use kiseki_raft::{LaneLog, PeerDirectory, RaftPeers, Replicas, ShardGroup};
use kiseki_types::buf::plain_buffers;
use kiseki_types::group::{Applied, ApplyError, LogPosition, StateMachine};
use kiseki_types::peer::{Parcel, PeerCallError, PeerCalls, PeerHandler, PeerIdentity, PeerLane, ServiceId};
use kiseki_types::runtime::{LocalBoxFuture, Ports};
use kiseki_types::table::{TableReader, TableWrite};
use kiseki_types::{BlockIndex, LaneId, NodeId, ShardId};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Nodes of a cluster.
pub const NODES: u64 = 3;
const LANE: LaneId = LaneId(0);
const JOURNAL_LEN_BYTES: u64 = 64 << 20;

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

/// A cluster in this process.
pub struct Cluster {
    nodes: Vec<Node>,
    /// The replicas that lead, all on the first node.
    pub leaders: Vec<ShardGroup>,
}

impl Cluster {
    /// Makes a cluster of so many groups, with its files below `base`.
    pub async fn start(ports: &Ports, base: &Path, groups: u64) -> Cluster {
        let wires = Rc::new(Wires::default());
        let mut nodes = Vec::new();
        for number in 1..=NODES {
            nodes.push(Node::start(NodeId(number), ports, &wires, base).await);
        }
        let leaders = make_groups(&nodes, groups).await;
        Cluster { nodes, leaders }
    }

    /// Parcels and calls that the nodes have sent so far.
    pub fn sent(&self) -> (u64, u64) {
        let peers = self.nodes.iter().map(|node| &node.peers);
        peers.fold((0, 0), |(parcels, calls), peers| (parcels + peers.parcels(), calls + peers.calls()))
    }

    /// Ends the groups.
    pub async fn close(self) {
        for leader in &self.leaders {
            leader.close().await.expect("it closes");
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
