//! One replica of one shard: openraft over the lane's log and the shard's tables, behind the port that the engine uses.

use crate::error::RaftError;
use crate::log_store::{GroupStatus, LaneLog};
use crate::network::{AppendRequest, AppendResponse, PeerLink, PeerNetwork, SnapshotAnswer};
use crate::release::{self, Release};
use crate::rest::Rest;
use crate::runtime::{GroupHealth, in_group};
use crate::shard_machine::{MachineParts, ShardMachine, applied_in};
use crate::snapshot::{SnapshotReceiver, SnapshotSeals};
use crate::supervisor;
use crate::table_set::TableSet;
use crate::type_config::{Command, TypeConfig, Vote, VoterId};
use futures::future::{Either, select};
use futures::stream::{LocalBoxStream, StreamExt};
use kiseki_types::group::{GroupView, Leadership, ProposeError, RaftGroup, ReplicasError, StateMachine};
use kiseki_types::limits::COMMAND_LEN_BYTES_MAX;
use kiseki_types::runtime::{Instant, LocalBoxFuture, Ports, RuntimeExt};
use kiseki_types::table::TableReader;
use kiseki_types::{ShardId, Term};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError as OpenraftError};
use openraft::{Config, Raft, RaftMetrics, Snapshot, SnapshotPolicy};
use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

type Openraft = Raft<TypeConfig, ShardMachine>;

/// Timers and limits of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupSettings {
    /// A leader's heartbeat.
    pub heartbeat_ms: u64,
    /// A follower waits at least this long before it stands for election.
    pub election_ms_min: u64,
    /// And at most this long.
    pub election_ms_max: u64,
    /// Entries behind the last snapshot that start a new one (a checkpoint of the tables).
    pub snapshot_entries: u64,
    /// Entries kept behind a snapshot, so that a peer a little behind needs no snapshot.
    pub kept_entries: u64,
    /// A replica without peers keeps about so many bytes of applied entries (`release`).
    pub kept_alone_len_bytes: u64,
    /// An open waits this long for a leader.
    pub leader_wait: Duration,
    /// A group that nobody used for so long rests: see [`crate::rest`].
    pub rest_after: Duration,
}

impl GroupSettings {
    /// For a group of one voter: nobody waits for heartbeats, so the timers are slow.
    #[must_use]
    pub fn single_voter() -> GroupSettings {
        GroupSettings {
            heartbeat_ms: 1_000,
            election_ms_min: 3_000,
            election_ms_max: 6_000,
            snapshot_entries: 20_000,
            kept_entries: 5_000,
            kept_alone_len_bytes: 4 << 20,
            leader_wait: Duration::from_secs(30),
            rest_after: Duration::from_secs(3),
        }
    }

    /// For several voters on a local network.
    #[must_use]
    pub fn several_voters() -> GroupSettings {
        GroupSettings { heartbeat_ms: 300, election_ms_min: 1_200, election_ms_max: 1_800, ..Self::single_voter() }
    }

    fn config(&self, shard: ShardId) -> Config {
        Config {
            cluster_name: shard.to_string(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_ms_min,
            election_timeout_max: self.election_ms_max,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            max_in_snapshot_log_to_keep: self.kept_entries,
            purge_batch_size: (self.kept_entries / 4).max(1),
            replication_lag_threshold: self.snapshot_entries.saturating_mul(4),
            max_payload_entries: 1024,
            enable_pre_vote: Some(true),
            // A restarted leader stands for election again: what it applied before is then known to be committed.
            enable_leader_restore: Some(false),
            ..Config::default()
        }
    }
}

/// What a group is made of.
#[derive(Clone)]
pub struct GroupParts {
    /// Ports of the core.
    pub ports: Ports,
    /// The lane's logs.
    pub log: LaneLog,
    /// The shard.
    pub shard: ShardId,
    /// Its tables.
    pub tables: TableSet,
    /// Its logic.
    pub machine: Rc<dyn StateMachine>,
    /// Who carries messages to peers; [`crate::network::NoPeers`] for a group of one voter.
    pub link: Rc<dyn PeerLink>,
    /// How files travel in a snapshot.
    pub seals: SnapshotSeals,
    /// Timers and limits.
    pub settings: GroupSettings,
}

/// What a replica does just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// It works.
    Running,
    /// Its tasks panicked; it is being built again from what its log and tables hold.
    Rebuilding,
    /// Its storage failed, or it panicked too often: it does nothing until the node is restarted.
    Fenced(String),
    /// It was closed.
    Closed,
}

/// What a replica has done since it was opened.
#[derive(Default)]
pub(crate) struct GroupCounters {
    pub(crate) proposals: Cell<u64>,
    pub(crate) snapshots_sent: Rc<Cell<u64>>,
    pub(crate) snapshots_installed: Rc<Cell<u64>>,
    pub(crate) release: Rc<Release>,
}

/// One running instance of openraft.
pub(crate) struct Instance {
    pub(crate) raft: Openraft,
    pub(crate) health: Rc<GroupHealth>,
    /// It gives no vote before this time.
    pub(crate) quiet_until: Instant,
    /// So many wait for a majority to answer a heartbeat.
    pub(crate) hurries: Rc<Cell<u32>>,
    alive: Rc<Cell<bool>>,
}

impl Instance {
    /// Nothing of this instance touches the log or the tables any more.
    pub(crate) fn disown(&self) {
        self.alive.set(false);
    }
}

pub(crate) struct Inner {
    pub(crate) parts: GroupParts,
    pub(crate) instance: RefCell<Rc<Instance>>,
    pub(crate) state: RefCell<GroupState>,
    /// The term in which a read index was confirmed once, as the only voter.
    pub(crate) confirmed: Cell<Option<u64>>,
    /// No vote before this time: see [`crate::reads`].
    pub(crate) quiet_until: Cell<Instant>,
    pub(crate) rest: Rest,
    /// The term in which leadership was given away last, and when: see [`crate::membership`].
    pub(crate) given_away: Cell<Option<(u64, Instant)>>,
    /// A snapshot is being received; one at a time.
    receiving: tokio::sync::Mutex<()>,
    pub(crate) rebuilds: Cell<u64>,
    pub(crate) counters: Rc<GroupCounters>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.counters.release.end();
    }
}

/// One replica of one shard. A clone is another handle.
#[derive(Clone)]
pub struct ShardGroup {
    pub(crate) inner: Rc<Inner>,
}

/// How a replica comes into being.
enum Start {
    /// The first replica of a new group: it sets the first membership.
    Bootstrap(Vec<VoterId>),
    /// A replica that others add to their group, or that exists.
    Join,
}

impl ShardGroup {
    /// Makes a new group whose first voters are `members`, this node voting as `voter`. Only one node does this, once
    /// in the group's life (I-O4); the others `join`. When it did not end before a crash it is done again.
    ///
    /// Ends when the group has a leader. Errors: `Exists` or `Lost` when the group was made before.
    pub async fn create(parts: GroupParts, voter: VoterId, members: &[VoterId]) -> Result<ShardGroup, RaftError> {
        parts.log.create_group(parts.shard, voter).await?;
        Self::start(parts, Start::Bootstrap(members.to_vec())).await
    }

    /// Makes an empty replica that a leader elsewhere fills.
    pub async fn join(parts: GroupParts, voter: VoterId) -> Result<ShardGroup, RaftError> {
        parts.log.create_group(parts.shard, voter).await?;
        Self::start(parts, Start::Join).await
    }

    /// Opens a replica that exists. Never bootstraps (I-L10, I-O4). Ends when the group has a leader and this replica
    /// has applied what it knows to be committed.
    ///
    /// Errors: `Absent`; `NotBootstrapped` when `create` did not end; `Lost`; `NoLeader`.
    pub async fn open(parts: GroupParts) -> Result<ShardGroup, RaftError> {
        let group = Self::rejoin(parts).await?;
        match group.wait_for_leader().await {
            Ok(()) => Ok(group),
            Err(error) => Err(group.given_up(error).await),
        }
    }

    /// Like [`ShardGroup::open`], without waiting for a leader: peers may have to reach this replica first.
    pub async fn rejoin(parts: GroupParts) -> Result<ShardGroup, RaftError> {
        let shard = parts.shard;
        match parts.log.status(shard) {
            GroupStatus::Absent => return Err(RaftError::Absent { shard }),
            GroupStatus::Fresh => return Err(RaftError::NotBootstrapped { shard }),
            GroupStatus::Lost(reason) => return Err(RaftError::Lost { shard, reason }),
            GroupStatus::Live => {}
        }
        Self::start(parts, Start::Join).await
    }

    /// Has a replica whose vote or log is lost begin anew: as another voter, which knows nothing and does not vote until
    /// the group has put it in the place of the lost one (I-L10): [`ShardGroup::replace_voter`]. What its tables hold is
    /// committed and stays.
    ///
    /// Errors: `Membership` when nothing is lost.
    pub async fn begin_anew(parts: GroupParts) -> Result<ShardGroup, RaftError> {
        parts.log.begin_anew(parts.shard).await?;
        Self::start(parts, Start::Join).await
    }

    async fn start(parts: GroupParts, start: Start) -> Result<ShardGroup, RaftError> {
        let counters = Rc::new(GroupCounters::default());
        let instance = build(&parts, &counters).await?;
        let quiet_until = Cell::new(instance.quiet_until);
        let rest = Rest::awake(parts.ports.now());
        let group = ShardGroup {
            inner: Rc::new(Inner {
                parts,
                instance: RefCell::new(Rc::new(instance)),
                state: RefCell::new(GroupState::Running),
                confirmed: Cell::new(None),
                quiet_until,
                rest,
                given_away: Cell::new(None),
                receiving: tokio::sync::Mutex::new(()),
                rebuilds: Cell::new(0),
                counters,
            }),
        };
        supervisor::watch(&group);
        release::watch(&group);
        if let Start::Bootstrap(members) = start
            && let Err(error) = group.form(&members).await
        {
            return Err(group.given_up(error).await);
        }
        group.stand_if_alone();
        Ok(group)
    }

    /// Nobody gets the replica, so it ends: opened again it must be alone with its files.
    async fn given_up(&self, error: RaftError) -> RaftError {
        if let Err(unclosed) = self.close().await {
            warn!(shard = %self.shard_id(), error = %unclosed, "a replica that did not open did not close either");
        }
        error
    }

    /// The shard.
    #[must_use]
    pub fn shard_id(&self) -> ShardId {
        self.inner.parts.shard
    }

    /// What the replica does just now.
    #[must_use]
    pub fn state(&self) -> GroupState {
        self.inner.state.borrow().clone()
    }

    /// How often the group was built again after a panic.
    #[must_use]
    pub fn rebuilds(&self) -> u64 {
        self.inner.rebuilds.get()
    }

    /// openraft's view of the replica.
    #[must_use]
    pub fn metrics(&self) -> RaftMetrics<TypeConfig> {
        self.raft().metrics().borrow_watched().clone()
    }

    /// The voter that leads, as far as this replica knows.
    #[must_use]
    pub fn leader(&self) -> Option<VoterId> {
        self.metrics().current_leader
    }

    /// Makes the tables durable and lets the log behind them go, now rather than when the policy says so.
    pub async fn checkpoint(&self) -> Result<(), RaftError> {
        self.raft().trigger().snapshot().await.map_err(|error| self.stopped(error.to_string()))
    }

    /// Stops the replica: no message is answered any more, its tables are durable and stay open.
    pub async fn close(&self) -> Result<(), RaftError> {
        self.inner.state.replace(GroupState::Closed);
        let instance = self.instance();
        let ended = instance.raft.shutdown().await;
        instance.disown();
        self.inner.parts.tables.checkpoint().await?;
        ended.map_err(|error| self.stopped(error.to_string()))
    }

    /// An append or heartbeat from a peer.
    pub async fn handle_append(&self, request: AppendRequest) -> Result<AppendResponse, RaftError> {
        self.stir();
        self.raft().append_entries(request).await.map_err(|error| self.stopped(error.to_string()))
    }

    /// A snapshot from the leader: put into new files, checked, then swapped in.
    pub async fn handle_snapshot(
        &self,
        vote: Vote,
        mut frames: LocalBoxStream<'static, Vec<u8>>,
    ) -> Result<SnapshotAnswer, RaftError> {
        self.stir();
        let _one = self.inner.receiving.lock().await;
        let parts = &self.inner.parts;
        let mut receiver = SnapshotReceiver::new(parts.shard, parts.tables.clone(), parts.seals.clone());
        while let Some(frame) = frames.next().await {
            receiver.push(&frame).await?;
        }
        let (meta, snapshot) = receiver.finish()?;
        self.raft()
            .install_full_snapshot(vote, Snapshot { meta, snapshot })
            .await
            .map_err(|error| self.stopped(error.to_string()))
    }

    pub(crate) fn instance(&self) -> Rc<Instance> {
        self.inner.instance.borrow().clone()
    }

    pub(crate) fn raft(&self) -> Openraft {
        self.inner.instance.borrow().raft.clone()
    }

    pub(crate) fn stopped(&self, reason: String) -> RaftError {
        RaftError::Stopped { shard: self.shard_id(), reason }
    }

    async fn propose_here(&self, command: Vec<u8>) -> Result<Vec<u8>, ProposeError> {
        let shard = self.shard_id();
        if command.len() > COMMAND_LEN_BYTES_MAX {
            return Err(ProposeError::TooLong { len: command.len(), limit: COMMAND_LEN_BYTES_MAX });
        }
        match self.state() {
            GroupState::Running => {}
            GroupState::Rebuilding => return Err(unavailable(shard, "the group is being rebuilt")),
            GroupState::Fenced(reason) => return Err(unavailable(shard, &reason)),
            GroupState::Closed => return Err(unavailable(shard, "the group is closed")),
        }
        self.rouse().await?;
        let permit = self.inner.parts.log.proposing(command.len()).await;
        let proposals = &self.inner.counters.proposals;
        proposals.set(proposals.get() + 1);
        let instance = self.instance();
        let answer = {
            let written = async {
                let written = pin!(instance.raft.client_write(Command(command.into())));
                // A group without its majority must not keep the room of all groups of the lane. The command is waited for
                // all the same: until it is known, what its caller latched stays as it is.
                match select(written, self.inner.parts.ports.sleep(ROOM_HELD_MAX)).await {
                    Either::Left((answer, _)) => answer,
                    Either::Right(((), written)) => {
                        drop(permit);
                        written.await
                    }
                }
            };
            match select(pin!(written), pin!(instance.health.until_over())).await {
                Either::Left((answer, _)) => answer,
                Either::Right(_) => return Err(unavailable(shard, "the group is being rebuilt")),
            }
        };
        match answer {
            Ok(written) => Ok(written.data.0),
            // It was refused before anything was appended; what became of an entry that was is another error.
            Err(OpenraftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(self.not_leader(forward.leader_id))
            }
            Err(error) => Err(unavailable(shard, &error.to_string())),
        }
    }
}

/// A command that is not answered by then gives its share of the lane's room to others.
const ROOM_HELD_MAX: Duration = Duration::from_secs(5);

fn unavailable(shard: ShardId, reason: &str) -> ProposeError {
    ProposeError::Unavailable { shard, reason: reason.to_owned() }
}

/// Builds an instance from what the log and the tables hold.
pub(crate) async fn build(parts: &GroupParts, counters: &GroupCounters) -> Result<Instance, RaftError> {
    let shard = parts.shard;
    // The instance before this one may still install a snapshot.
    parts.tables.idle().await;
    let (applied, _) = applied_in(&parts.tables)?;
    let log = parts.log.open_group(shard, parts.tables.clone()).await?;
    if let Err(RaftError::Lost { reason, .. }) = log.check_against_tables(applied) {
        parts.log.mark_lost(shard, &reason).await?;
        return Err(RaftError::Lost { shard, reason });
    }
    // A replica that never voted has promised nothing to any leader.
    let has_voted = log.has_voted();
    let alive = Rc::new(Cell::new(true));
    let machine_parts = MachineParts {
        shard,
        ports: parts.ports.clone(),
        tables: parts.tables.clone(),
        machine: parts.machine.clone(),
        snapshots_installed: counters.snapshots_installed.clone(),
        release: counters.release.clone(),
        kept_alone_len_bytes: parts.settings.kept_alone_len_bytes,
        times: parts.log.times(),
    };
    let machine = ShardMachine::new(machine_parts, log.clone(), alive.clone())?;
    let (link, seals, hurries) = (parts.link.clone(), parts.seals.clone(), Rc::<Cell<u32>>::default());
    let network = PeerNetwork {
        ports: parts.ports.clone(),
        shard,
        link,
        seals,
        hurries: hurries.clone(),
        snapshots_sent: counters.snapshots_sent.clone(),
        times: parts.log.times(),
    };
    let stopped = |reason: String| RaftError::Stopped { shard, reason };
    let config = parts.settings.config(shard).validate().map_err(|error| stopped(error.to_string()))?;
    let health = GroupHealth::new();
    let built = Raft::new(log.voter(), Arc::new(config), network, log, machine);
    let raft = in_group(health.clone(), built)
        .await
        .map_err(|error| stopped(error.to_string()))?
        .map_err(|error| stopped(error.to_string()))?;
    let now = parts.ports.now();
    let quiet_until = if has_voted { now + parts.settings.quiet() } else { now };
    Ok(Instance { raft, health, quiet_until, hurries, alive })
}

impl RaftGroup for ShardGroup {
    fn shard(&self) -> ShardId {
        self.shard_id()
    }

    fn propose(&self, command: Vec<u8>) -> LocalBoxFuture<'static, Result<Vec<u8>, ProposeError>> {
        let group = self.clone();
        Box::pin(async move { group.propose_here(command).await })
    }

    fn read_barrier(&self) -> LocalBoxFuture<'static, Result<Term, ProposeError>> {
        if let Some(term) = self.read_alone() {
            return Box::pin(async move { Ok(term) });
        }
        self.wake();
        let group = self.clone();
        Box::pin(async move { group.read_index().await })
    }

    fn tables(&self) -> Rc<dyn TableReader> {
        Rc::new(self.inner.parts.tables.clone())
    }

    fn leadership(&self) -> Leadership {
        self.leadership_now()
    }

    fn leadership_after(&self, seen: Leadership) -> LocalBoxFuture<'static, Leadership> {
        let group = self.clone();
        Box::pin(async move { group.leadership_other_than(seen).await })
    }

    fn view(&self) -> GroupView {
        ShardGroup::view(self)
    }

    fn voter(&self) -> VoterId {
        ShardGroup::voter(self)
    }

    fn voters(&self) -> Vec<VoterId> {
        ShardGroup::voters(self).into_iter().collect()
    }

    fn set_voters(&self, voters: Vec<VoterId>) -> LocalBoxFuture<'static, Result<(), ReplicasError>> {
        let group = self.clone();
        Box::pin(async move { group.change_voters(&voters).await.map_err(|error| group.unchanged(&error)) })
    }

    fn transfer_leader(&self, to: VoterId) -> LocalBoxFuture<'static, Result<(), ReplicasError>> {
        let group = self.clone();
        Box::pin(async move { ShardGroup::transfer_leader(&group, to).await.map_err(|error| group.unchanged(&error)) })
    }
}

impl ShardGroup {
    fn unchanged(&self, error: &RaftError) -> ReplicasError {
        ReplicasError { shard: self.shard_id(), reason: error.to_string() }
    }
}
