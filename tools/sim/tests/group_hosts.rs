//! The group host of the server on several simulated nodes: a group that one node made gets voters on others, outlives its leader, and
//! takes back a node whose log was lost.

use futures::channel::oneshot;
use futures::future::select;
use kiseki_devices::journal::{self, JournalConfig, JournalId, JournalOpenError, MirrorRegion};
use kiseki_engine::api::StoreError;
use kiseki_engine::host::{FileSpec, GroupHost, GroupSpec, Opening};
use kiseki_engine::message::{NodeEntry, NodeState};
use kiseki_engine::nodes::NodeBoard;
use kiseki_engine::replica_keeper::{AskHost, KeeperInputs, PassOn, keep};
use kiseki_raft::messages::{Question, decode_calls};
use kiseki_raft::table_file::TableFile;
use kiseki_raft::table_set::{COMPACT_FROM_BYTES, TableSettings};
use kiseki_raft::{GroupSettings, LaneLog, RaftPeers, Replicas};
use kiseki_server::group_host::{CoreGroups, CoreGroupsInputs, Host};
use kiseki_server::peer_directory::{NotedCalls, RecordedNodes};
use kiseki_server::slow_calls::SlowCalls;
use kiseki_simulator::{CutSwitch, DiskOptions, NodeId as Machine, Sim, SimDisk, SimMetaDir, SimNet};
use kiseki_types::buf::stale_buffers;
use kiseki_types::group::{Applied, ApplyError, LogPosition, RaftGroup, StateMachine, VoterId};
use kiseki_types::peer::{Parcel, PeerCallError, PeerCalls, PeerLane, ServiceId};
use kiseki_types::runtime::{LocalBoxFuture, Ports, RuntimeExt};
use kiseki_types::secret::SecretKey;
use kiseki_types::table::{TableReader, TableWrite};
use kiseki_types::{BlockCount, BlockIndex, LaneId, NodeId, ShardId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const SHARD: ShardId = ShardId(1024);
const LANE: LaneId = LaneId(0);
const JOURNAL_BLOCKS: u64 = 256;

/// The machine of the test itself.
const HARNESS: Machine = Machine(u32::MAX);

/// Each command is a key, which goes into both files.
struct Keys;

impl StateMachine for Keys {
    fn apply<'a>(
        &'a self,
        at: LogPosition,
        command: &'a [u8],
        _tables: &'a dyn TableReader,
    ) -> LocalBoxFuture<'a, Result<Applied, ApplyError>> {
        let write = |file| TableWrite { file, table: 1, key: command.to_vec(), value: Some(vec![1]) };
        let applied = Applied { response: at.index.to_be_bytes().to_vec(), writes: vec![write(0), write(1)] };
        Box::pin(async move { Ok(applied) })
    }
}

/// Looks at snapshots on their way: rows of the sealed file never travel in clear (I-K1).
struct Watched {
    calls: Rc<dyn PeerCalls>,
    sealed: Rc<Cell<u64>>,
}

impl PeerCalls for Watched {
    fn call(
        &self,
        to: PeerLane,
        service: ServiceId,
        parcel: Parcel,
        deadline: Duration,
    ) -> LocalBoxFuture<'static, Result<Parcel, PeerCallError>> {
        let (calls, _) = decode_calls(&parcel).expect("a node sends messages");
        for call in calls {
            let Question::Snapshot(piece) = call.question else { continue };
            let text = String::from_utf8_lossy(piece.frame.as_deref().unwrap_or_default()).into_owned();
            assert!(!text.contains(r#""record":"rows","number":0,"file":0"#), "I-K1: {text}");
            self.sealed.set(self.sealed.get() + u64::from(text.contains(r#""record":"sealed""#)));
        }
        self.calls.call(to, service, parcel, deadline)
    }
}

struct Node {
    id: NodeId,
    switch: Arc<CutSwitch>,
    disk: RefCell<SimDisk>,
    dir: SimMetaDir,
    running: RefCell<Option<Running>>,
}

#[derive(Clone)]
struct Running {
    ports: Ports,
    groups: Rc<CoreGroups>,
    board: Rc<NodeBoard>,
    group: Rc<RefCell<Option<Rc<dyn RaftGroup>>>>,
}

impl Node {
    fn machine(&self) -> Machine {
        Machine(self.id.0 as u32)
    }

    fn running(&self) -> Option<Running> {
        self.running.borrow().clone()
    }

    fn group(&self) -> Option<Rc<dyn RaftGroup>> {
        self.running().and_then(|running| running.group.borrow().clone())
    }
}

struct Cluster {
    sim: Sim,
    net: SimNet,
    nodes: Rc<Vec<Node>>,
    sealed: Rc<Cell<u64>>,
}

fn disk(sim: &Sim, number: u64, switch: &Arc<CutSwitch>) -> SimDisk {
    SimDisk::new(sim, DiskOptions::of_len(&format!("log{number}"), JOURNAL_BLOCKS * 4096), switch)
}

impl Cluster {
    fn new(seed: u64, count: u64) -> Cluster {
        let sim = Sim::new(seed);
        let node = |number: u64| {
            let switch = Arc::new(CutSwitch::default());
            let dir = SimMetaDir::new(&format!("meta{number}"), seed ^ number, &switch);
            let disk = RefCell::new(disk(&sim, number, &switch));
            Node { id: NodeId(number), disk, dir, switch, running: RefCell::default() }
        };
        let nodes = Rc::new((1..=count).map(node).collect::<Vec<_>>());
        let (net, sealed) = (SimNet::new(&sim), Rc::default());
        let cluster = Cluster { sim, net, nodes, sealed };
        (1..=count).for_each(|number| cluster.start(number));
        cluster
    }

    fn node(&self, number: u64) -> &Node {
        &self.nodes[number as usize - 1]
    }

    fn start(&self, number: u64) {
        let node = self.node(number);
        let ports = self.sim.ports(node.machine());
        let region =
            MirrorRegion::new(ports.clone(), node.disk.borrow().open(), BlockIndex(0), BlockCount(JOURNAL_BLOCKS));
        let config = JournalConfig {
            name: format!("raft of {}", node.id),
            id: JournalId([7; 16]),
            ports: ports.clone(),
            buffers: stale_buffers(),
            mirrors: vec![region],
            on_mirror_failed: Rc::new(|_, _| Box::pin(async { Ok(()) })),
        };
        let board = NodeBoard::new(node.id);
        board.take_up(1, &self.nodes.iter().map(|node| entry(node.id)).collect::<Vec<_>>());
        let calls = Watched { calls: self.net.calls(node.id, ports.clone()), sealed: self.sealed.clone() };
        let slow = SlowCalls::new(ports.clone(), None);
        let calls = NotedCalls { calls: Rc::new(calls), nodes: board.clone(), ports: ports.clone(), slow };
        let replicas = Replicas::new(ports.clone());
        self.net.serve(node.id, ServiceId::RAFT, ports.clone(), replicas.handler());
        let running = self.sim.block_on(node.machine(), async {
            let opened = match journal::open(config.clone()).await {
                Err(JournalOpenError::Missing { .. }) => {
                    journal::format(&config).await.expect("an empty disk is formatted");
                    journal::open(config).await
                }
                opened => opened,
            };
            let (journal, replayed, _) = opened.expect("the journal opens");
            let table = TableFile::open(ports.clone(), node.dir.open(), "raft-log", None, TableSettings::new(1));
            let table = Rc::new(table.await.expect("the log's table opens"));
            let log = LaneLog::open(ports.clone(), LANE, journal, replayed, table).await.expect("the log opens");
            let groups = CoreGroups::new(CoreGroupsInputs {
                ports: ports.clone(),
                meta: node.dir.open(),
                lane_count: 1,
                logs: BTreeMap::from([(LANE, log)]),
                settings: GroupSettings { snapshot_entries: 20, kept_entries: 5, ..GroupSettings::several_voters() },
                compact_from_bytes: COMPACT_FROM_BYTES,
                nodes: board.clone(),
                peers: RaftPeers::new(
                    ports.clone(),
                    Rc::new(calls),
                    Rc::new(RecordedNodes(board.clone())),
                    stale_buffers(),
                ),
                replicas,
            });
            Running { ports: ports.clone(), groups, board, group: Rc::default() }
        });
        node.running.replace(Some(running));
    }

    /// The power fails. With `lose_journal` the disk of its logs is an empty one from then on.
    fn stop(&self, number: u64, lose_journal: bool) {
        let node = self.node(number);
        node.switch.cut_now();
        self.net.unplug(node.id);
        self.sim.kill(node.machine());
        drop(node.running.take());
        node.disk.borrow().power_cut(number);
        node.dir.power_cut(number);
        node.switch.restore();
        if lose_journal {
            node.disk.replace(disk(&self.sim, number, &node.switch));
        }
    }

    fn open(&self, number: u64, opening: Opening) -> Result<Rc<dyn RaftGroup>, StoreError> {
        let (nodes, id) = (self.nodes.clone(), NodeId(number));
        self.sim.block_on(HARNESS, open(nodes, id, opening))
    }

    fn await_that(&self, what: &str, condition: impl Fn(&Cluster) -> bool) {
        let ports = self.sim.ports(HARNESS);
        let deadline = ports.now() + Duration::from_secs(600);
        while !condition(self) {
            assert!(ports.now() < deadline, "not within ten minutes: {what}");
            let pause = ports.clone();
            self.sim.block_on(HARNESS, async move { pause.sleep(Duration::from_millis(100)).await });
        }
    }

    fn leader(&self) -> Option<u64> {
        let leads = |node: &&Node| node.group().is_some_and(|group| group.leadership().is_here);
        self.nodes.iter().find(leads).map(|node| node.id.0)
    }

    /// Commits keys on whatever node leads.
    fn propose(&self, keys: std::ops::Range<u32>) {
        self.await_that("a leader", |cluster| cluster.leader().is_some());
        let leader = self.node(self.leader().expect("it was there"));
        let (group, ports) = (leader.group().expect("it leads"), leader.running().expect("it leads").ports);
        self.sim.block_on(leader.machine(), async {
            until_led(&ports, &group).await.expect("it leads");
            for key in keys {
                group.propose(key.to_be_bytes().to_vec()).await.expect("a majority is there");
            }
        });
    }

    /// Whether a node has all keys below `end` in both files.
    fn has_keys(&self, number: u64, end: u32) -> bool {
        let Some(group) = self.node(number).group() else { return false };
        self.sim.block_on(self.node(number).machine(), async {
            for key in 0..end {
                for file in [0, 1] {
                    let row = group.tables().get(file, 1, &key.to_be_bytes()).await;
                    if row.expect("tables are read").is_none() {
                        return false;
                    }
                }
            }
            true
        })
    }

    fn voters(&self) -> Vec<VoterId> {
        let leader = self.leader().and_then(|leader| self.node(leader).group());
        leader.map(|group| group.voters()).unwrap_or_default()
    }
}

fn entry(node: NodeId) -> NodeEntry {
    NodeEntry { state: NodeState::Active, lanes: 1, cores: 1, ..NodeEntry::invited(node, 0) }
}

/// Opens the group on a node, as a task of that node, and has its voters kept whenever it leads.
async fn open(nodes: Rc<Vec<Node>>, id: NodeId, opening: Opening) -> Result<Rc<dyn RaftGroup>, StoreError> {
    let away = || StoreError::Unavailable { reason: format!("{id} is away") };
    let found = nodes.iter().find(|node| node.id == id).expect("the node is known");
    let running = found.running().ok_or_else(away)?;
    let (sender, opened) = oneshot::channel();
    let (ports, all) = (running.ports.clone(), nodes.clone());
    let task = async move {
        let key = SecretKey::take(&mut [9; 32]);
        let files = vec![FileSpec::sealed("names".to_owned(), key), FileSpec::clear("counts".to_owned())];
        let host = Host(running.groups.clone());
        let group = host.open(GroupSpec { shard: SHARD, files, opening, machine: Rc::new(Keys) }).await;
        if let Ok(group) = &group {
            assert_eq!(host.hosted(), [SHARD]);
            if running.group.replace(Some(group.clone())).is_none() {
                running.ports.spawn("seat", Box::pin(seat(all, running.clone(), group.clone())));
            }
        }
        let _gone = sender.send(group);
    };
    ports.spawn("open", Box::pin(task));
    opened.await.map_err(|_| away())?
}

async fn seat(nodes: Rc<Vec<Node>>, running: Running, group: Rc<dyn RaftGroup>) {
    loop {
        let seen = group.leadership();
        let other = group.leadership_after(seen);
        if !seen.is_here {
            other.await;
            continue;
        }
        let all = nodes.clone();
        let ask_host: AskHost = Rc::new(move |node, _| {
            let all = all.clone();
            Box::pin(async move { open(all, node, Opening::Join).await.map(|group| group.voter()) })
        });
        let (ports, group, nodes) = (running.ports.clone(), group.clone(), running.board.clone());
        let passed = group.clone();
        let pass_on: PassOn = Rc::new(move |voter| passed.transfer_leader(voter));
        select(Box::pin(keep(KeeperInputs { ports, group, nodes, ask_host, pass_on })), other).await;
    }
}

#[test]
fn i_l2_i_l10_a_group_spreads_outlives_its_leader_and_takes_a_node_without_its_log_back() {
    let cluster = Cluster::new(11, 3);
    assert!(cluster.open(2, Opening::Existing).is_err(), "I-L10: what was never there is not opened");
    cluster.open(1, Opening::Create).expect("the group is made");
    cluster.propose(0..60);
    cluster.await_that("three voters", |cluster| cluster.voters() == [1, 2, 3]);
    cluster.propose(60..70);
    for number in 1..=3 {
        cluster.await_that("the same on every node", |cluster| cluster.has_keys(number, 70));
    }
    assert!(cluster.sealed.get() > 0, "a snapshot was on its way");

    let old = cluster.leader().expect("a leader");
    cluster.stop(old, false);
    cluster.await_that("another leader", |cluster| cluster.leader().is_some());
    cluster.propose(70..80);
    cluster.start(old);
    cluster.open(old, Opening::Existing).expect("its replica is whole");
    cluster.await_that("it catches up", |cluster| cluster.has_keys(old, 80));

    let lost = (1..=3).find(|number| Some(*number) != cluster.leader()).expect("a follower");
    cluster.stop(lost, true);
    cluster.propose(80..90);
    cluster.start(lost);
    cluster.open(lost, Opening::Existing).expect("the others have what it lost");
    let again = (1 << 48) + lost;
    cluster.await_that("it votes under another number", |cluster| {
        let voters = cluster.voters();
        voters.len() == 3 && voters.contains(&again) && !voters.contains(&lost)
    });
    cluster.await_that("it catches up", |cluster| cluster.has_keys(lost, 90));
    // Every node is as good as another: the group goes on without any of the old ones.
    let other = (1..=3).find(|number| *number != lost).expect("another node");
    cluster.stop(other, false);
    cluster.await_that("a leader", |cluster| cluster.leader().is_some());
    cluster.propose(90..100);
    cluster.await_that("it is a full voter", |cluster| cluster.has_keys(lost, 100));
}

#[test]
fn i_l10_a_node_alone_does_not_begin_anew() {
    let cluster = Cluster::new(12, 1);
    cluster.open(1, Opening::Create).expect("the group is made");
    cluster.propose(0..5);
    cluster.stop(1, false);
    cluster.start(1);
    cluster.open(1, Opening::Existing).expect("it is whole");
    cluster.await_that("it leads at once", |cluster| cluster.leader() == Some(1));
    assert!(cluster.has_keys(1, 5));
    cluster.stop(1, true);
    cluster.start(1);
    for opening in [Opening::Existing, Opening::Join, Opening::Create] {
        assert!(cluster.open(1, opening).is_err(), "I-L10: {opening:?}");
    }
}

/// Waits until this replica leads and has applied everything that was committed before.
async fn until_led(ports: &Ports, group: &Rc<dyn RaftGroup>) -> Result<(), String> {
    let deadline = ports.now() + Duration::from_secs(30);
    loop {
        match group.read_barrier().await {
            Ok(_) => return Ok(()),
            Err(error) if ports.now() >= deadline => return Err(error.to_string()),
            Err(_) => ports.sleep(Duration::from_millis(20)).await,
        }
    }
}
