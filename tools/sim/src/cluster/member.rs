//! One node: what survives its power, and what runs on it.

use crate::cluster::judge::Judge;
use crate::cluster::machine::Registers;
use kiseki_devices::journal::{self, JournalConfig, JournalId, JournalOpenError, MirrorRegion};
use kiseki_raft::group::{GroupParts, GroupSettings, GroupState};
use kiseki_raft::messages::{decode_answers, decode_calls};
use kiseki_raft::snapshot::{KeyedRowSeal, SnapshotSeals};
use kiseki_raft::table_file::TableFile;
use kiseki_raft::table_set::{FileSpec, TableSet, TableSettings};
use kiseki_raft::type_config::{VoterId, node_of, voter_of};
use kiseki_raft::{GroupStatus, LaneLog, PeerDirectory, RaftPeers, Replicas, ShardGroup};
use kiseki_simulator::{CutSwitch, DiskOptions, Sim, SimDisk, SimMetaDir, SimNet};
use kiseki_types::buf::stale_buffers;
use kiseki_types::peer::{Parcel, PeerCallError, PeerCalls, PeerHandler, PeerLane, ServiceId};
use kiseki_types::runtime::{LocalBoxFuture, Ports};
use kiseki_types::secret::SecretKey;
use kiseki_types::{BlockCount, BlockIndex, LaneId, NodeId, ShardId};
use std::cell::RefCell;
use std::fmt::Display;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The lane of each node.
const LANE: LaneId = LaneId(0);

/// Blocks of a Raft journal: few, so that it is folded and trimmed in a run.
const JOURNAL_BLOCKS: u64 = 256;

/// Entries after which a checkpoint is made; few, so that peers that were away need snapshots.
const SNAPSHOT_ENTRIES: u64 = 40;

/// Entries kept behind a checkpoint.
const KEPT_ENTRIES: u64 = 8;

/// What survives a node's power.
pub struct Member {
    /// Its number, from 1.
    pub id: NodeId,
    /// Its power.
    pub switch: Arc<CutSwitch>,
    disk: RefCell<SimDisk>,
    dir: SimMetaDir,
    lies: bool,
    /// What runs now, if anything does.
    pub running: Rc<RefCell<Option<Running>>>,
}

/// Voters that were lost, and as whom they began anew.
pub type Renewed = Rc<RefCell<Vec<(ShardId, VoterId, VoterId)>>>;

/// What runs on a node.
#[derive(Clone)]
pub struct Running {
    /// Ports of its core.
    pub ports: Ports,
    /// Its replicas.
    pub replicas: Replicas,
    /// What it sends with.
    pub peers: RaftPeers,
    log: LaneLog,
    dir: SimMetaDir,
    judge: Rc<Judge>,
}

/// Voters live on the node that their number names; each node has one lane.
struct OneLane;

impl PeerDirectory for OneLane {
    fn locate(&self, voter: VoterId, _shard: ShardId) -> Option<PeerLane> {
        Some(PeerLane { node: node_of(voter), lane: LANE })
    }
}

/// Shows the judge what a node sends.
struct Watched {
    calls: Rc<dyn PeerCalls>,
    judge: Rc<Judge>,
}

impl PeerCalls for Watched {
    fn call(
        &self,
        to: PeerLane,
        service: ServiceId,
        parcel: Parcel,
        deadline: Duration,
    ) -> LocalBoxFuture<'static, Result<Parcel, PeerCallError>> {
        match decode_calls(&parcel) {
            Ok((calls, _)) => calls.iter().for_each(|call| self.judge.sent(call)),
            Err(error) => self.judge.violation(format!("a node sends what is no message: {error}")),
        }
        self.calls.call(to, service, parcel, deadline)
    }
}

/// Shows the judge what a node answers.
fn watched(handler: PeerHandler, judge: Rc<Judge>) -> PeerHandler {
    Rc::new(move |from, lane, parcel| {
        let (handler, judge) = (handler.clone(), judge.clone());
        let calls = decode_calls(&parcel).map(|(calls, _)| calls).unwrap_or_default();
        Box::pin(async move {
            let answer = handler(from, lane, parcel).await;
            if let Ok(parcel) = &answer {
                match decode_answers(parcel, calls.len()) {
                    Ok(answers) => calls.iter().zip(&answers).for_each(|(call, answer)| judge.answered(call, answer)),
                    Err(error) => judge.violation(format!("a node answers what is no message: {error}")),
                }
            }
            answer
        })
    })
}

fn text(error: impl Display) -> String {
    error.to_string()
}

impl Member {
    /// A node without anything on its media. `lies`: its journal's disk answers flushes and saves nothing.
    #[must_use]
    pub fn new(sim: &Sim, number: u32, lies: bool) -> Member {
        let switch = Arc::new(CutSwitch::default());
        let disk = RefCell::new(new_disk(sim, number, &switch, lies));
        let dir = SimMetaDir::new(&format!("meta{number}"), sim.seed() ^ u64::from(number), &switch);
        Member { id: NodeId(u64::from(number)), switch, disk, dir, lies, running: Rc::default() }
    }

    /// The machine that the simulator knows.
    #[must_use]
    pub fn machine(&self) -> kiseki_simulator::NodeId {
        kiseki_simulator::NodeId(u32::try_from(self.id.0).expect("nodes are few"))
    }

    /// What runs here.
    #[must_use]
    pub fn now_running(&self) -> Option<Running> {
        self.running.borrow().clone()
    }

    fn journal_config(&self, ports: &Ports) -> JournalConfig {
        let region =
            MirrorRegion::new(ports.clone(), self.disk.borrow().open(), BlockIndex(0), BlockCount(JOURNAL_BLOCKS));
        JournalConfig {
            name: format!("raft of {}", self.id),
            id: JournalId([7; 16]),
            ports: ports.clone(),
            buffers: stale_buffers(),
            mirrors: vec![region],
            on_mirror_failed: Rc::new(|_, _| Box::pin(async { Ok(()) })),
        }
    }

    /// Makes the journal.
    pub fn format(&self, sim: &Sim) {
        let config = self.journal_config(&sim.ports(self.machine()));
        sim.block_on(self.machine(), async { journal::format(&config).await.expect("an empty disk is formatted") });
    }

    /// The disk of the journal breaks and is replaced by an empty one. The node has no power.
    pub fn lose_journal(&self, sim: &Sim) {
        let number = self.machine().0;
        self.disk.replace(new_disk(sim, number, &self.switch, self.lies));
    }

    /// Starts the node as a task of its own; what goes wrong is told to the judge.
    /// Replicas that began anew, because their journal was lost, are added to `renewed`.
    pub fn start(&self, sim: &Sim, net: &SimNet, judge: &Rc<Judge>, renewed: &Renewed) {
        let ports = sim.ports(self.machine());
        let (id, net, judge, slot) = (self.id, net.clone(), judge.clone(), self.running.clone());
        let starting = Starting {
            id,
            config: self.journal_config(&ports),
            dir: self.dir.clone(),
            ports: ports.clone(),
            net,
            judge: judge.clone(),
            renewed: renewed.clone(),
        };
        let switch = self.switch.clone();
        ports.spawn(
            "start",
            Box::pin(async move {
                match starting.run().await {
                    Ok(running) => drop(slot.replace(Some(running))),
                    Err(_) if switch.is_cut() => {}
                    Err(error) => judge.violation(format!("{id} does not start: {error}")),
                }
            }),
        );
    }

    /// The power fails: what runs is gone, media forget what was not flushed.
    pub fn power_cut(&self, sim: &Sim, net: &SimNet, seed: u64) {
        self.switch.cut_now();
        net.unplug(self.id);
        sim.kill(self.machine());
        drop(self.running.take());
        self.disk.borrow().power_cut(seed);
        self.dir.power_cut(seed);
        self.switch.restore();
    }
}

fn new_disk(sim: &Sim, number: u32, switch: &Arc<CutSwitch>, lies: bool) -> SimDisk {
    let options = DiskOptions::of_len(&format!("log{number}"), JOURNAL_BLOCKS * 4096);
    let disk = SimDisk::new(sim, options, switch);
    disk.set_flush_is_a_lie(lies);
    disk
}

struct Starting {
    id: NodeId,
    config: JournalConfig,
    dir: SimMetaDir,
    ports: Ports,
    net: SimNet,
    judge: Rc<Judge>,
    renewed: Renewed,
}

impl Starting {
    async fn run(self) -> Result<Running, String> {
        let ports = self.ports.clone();
        let opened = match journal::open(self.config.clone()).await {
            // An operator says that the journal is gone for good.
            Err(JournalOpenError::Missing { .. }) => {
                journal::format(&self.config).await.map_err(text)?;
                journal::open(self.config).await
            }
            opened => opened,
        };
        let (journal, replayed, _) = opened.map_err(text)?;
        let table = TableFile::open(ports.clone(), self.dir.open(), "raft-log", None, TableSettings::new(1));
        let table = Rc::new(table.await.map_err(text)?);
        let log = LaneLog::open(ports.clone(), LANE, journal, replayed, table).await.map_err(text)?;
        let replicas = Replicas::new(ports.clone());
        let calls: Rc<dyn PeerCalls> =
            Rc::new(Watched { calls: self.net.calls(self.id, ports.clone()), judge: self.judge.clone() });
        let peers = RaftPeers::new(ports.clone(), calls, Rc::new(OneLane), stale_buffers());
        self.net.serve(self.id, ServiceId::RAFT, ports.clone(), watched(replicas.handler(), self.judge.clone()));
        let running = Running { ports, replicas, peers, log, dir: self.dir, judge: self.judge };
        for shard in running.log.shards() {
            running.open(shard, &self.renewed).await.map_err(|error| format!("{shard}: {error}"))?;
        }
        Ok(running)
    }
}

impl Running {
    async fn parts(&self, shard: ShardId) -> Result<GroupParts, String> {
        let key = || SecretKey::take(&mut [9; 32]);
        let files = vec![
            FileSpec { name: format!("{shard}.registers"), seal: Some(key()) },
            FileSpec { name: format!("{shard}.chain"), seal: None },
        ];
        let settings = TableSettings::new(2 + shard.0);
        let tables = TableSet::open(self.ports.clone(), self.dir.open(), files, settings).await.map_err(text)?;
        Ok(GroupParts {
            ports: self.ports.clone(),
            log: self.log.clone(),
            shard,
            tables,
            machine: Rc::new(Registers { shard, judge: self.judge.clone() }),
            link: Rc::new(self.peers.clone()),
            seals: SnapshotSeals::none().with(0, Rc::new(KeyedRowSeal::new(key()))),
            settings: GroupSettings {
                snapshot_entries: SNAPSHOT_ENTRIES,
                kept_entries: KEPT_ENTRIES,
                ..GroupSettings::several_voters()
            },
        })
    }

    /// Opens the replica of a shard that was made here.
    async fn open(&self, shard: ShardId, renewed: &Renewed) -> Result<(), String> {
        let parts = self.parts(shard).await?;
        let group = match self.log.status(shard) {
            GroupStatus::Live => ShardGroup::rejoin(parts).await,
            // It was made, and nothing ever happened in it: a leader may still be about to fill it.
            GroupStatus::Fresh => {
                let voter = self.log.voter(shard).unwrap_or_default();
                if let Some(old) = voter.checked_sub(voter_of(NodeId(0), 1).unwrap_or_default()) {
                    renewed.borrow_mut().push((shard, old, voter)); // the power failed when it had begun anew
                }
                ShardGroup::join(parts, voter).await
            }
            GroupStatus::Lost(_) => {
                let old = self.log.voter(shard).unwrap_or_default();
                let group = ShardGroup::begin_anew(parts).await;
                if let Ok(group) = &group {
                    renewed.borrow_mut().push((shard, old, group.voter()));
                }
                group
            }
            GroupStatus::Absent => return Err("its row is gone".to_owned()),
        };
        self.replicas.join(group.map_err(text)?);
        Ok(())
    }

    /// Makes an empty replica of a shard.
    pub async fn join(&self, node: NodeId, shard: ShardId) -> Result<(), String> {
        if self.replicas.get(shard).is_some() {
            return Ok(());
        }
        let voter = voter_of(node, 0).ok_or("a node's number is too high")?;
        let group = ShardGroup::join(self.parts(shard).await?, voter).await.map_err(text)?;
        self.replicas.join(group);
        Ok(())
    }

    /// Makes the first replica of a shard with these voters; the others have joined.
    pub async fn create(&self, node: NodeId, shard: ShardId, voters: &[VoterId]) -> Result<(), String> {
        let voter = voter_of(node, 0).ok_or("a node's number is too high")?;
        let group = ShardGroup::create(self.parts(shard).await?, voter, voters).await.map_err(text)?;
        self.replicas.join(group);
        Ok(())
    }

    /// Shows the judge who leads here, and replicas that broke though nothing happened to them.
    pub fn inspect(&self, node: NodeId, shards: &[ShardId]) {
        for group in shards.iter().filter_map(|shard| self.replicas.get(*shard)) {
            let (shard, metrics) = (group.shard_id(), group.metrics());
            if group.leads() {
                self.judge.leads(shard, metrics.current_term, group.voter());
            }
            // One that gave its leadership away in vain is built again, and not broken; a panic is counted when it has been.
            if group.rebuilds() > 0 || !matches!(group.state(), GroupState::Running | GroupState::Rebuilding) {
                let (rebuilds, state) = (group.rebuilds(), group.state());
                self.judge.violation(format!("{node}: {shard} broke: {state:?}, rebuilt {rebuilds} times"));
            }
        }
    }
}
