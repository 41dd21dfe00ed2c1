//! The floor: openraft alone, with the product's types and runtime. Its log and state machine are memory, nothing is
//! flushed or encoded, and replicas call each other. What a product adds to it can only cost.

use kiseki_raft::type_config::{Entry, LogId, Response, SnapshotMeta, StoredMembership, TypeConfig, Vote, VoterId};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::storage::{
    EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine,
};
use openraft::{Config, EmptyNode, OptionalSend, Raft, RaftNetworkFactory, RaftNetworkV2, Snapshot, SnapshotPolicy};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

/// A replica that keeps everything in memory.
pub type Replica = Raft<TypeConfig, Machine>;

type Replicas = Rc<RefCell<BTreeMap<VoterId, Replica>>>;

#[derive(Default)]
struct Log {
    vote: Option<Vote>,
    committed: Option<LogId>,
    entries: VecDeque<Entry>,
}

/// A log in memory. A clone is another handle.
#[derive(Clone, Default)]
struct MemoryLog(Rc<RefCell<Log>>);

impl RaftLogReader<TypeConfig> for MemoryLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let log = self.0.borrow();
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(from) => from + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(to) => to + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        let to = to.min(log.entries.len() as u64);
        Ok(log.entries.range(from.min(to) as usize..to as usize).cloned().collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.borrow().vote)
    }
}

impl RaftLogStorage<TypeConfig> for MemoryLog {
    type LogReader = MemoryLog;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let last_log_id = self.0.borrow().entries.back().map(|entry| entry.log_id);
        Ok(LogState { last_purged_log_id: None, last_log_id })
    }

    async fn get_log_reader(&mut self) -> MemoryLog {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.0.borrow_mut().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.0.borrow_mut().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.0.borrow().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.0.borrow_mut().entries.extend(entries);
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.0.borrow_mut().entries.truncate(last.map_or(0, |id| id.index as usize + 1));
        Ok(())
    }

    async fn purge(&mut self, _upto: LogId) -> Result<(), io::Error> {
        Ok(()) // nothing is ever purged: no snapshot is made
    }
}

/// A state machine that does nothing.
#[derive(Clone, Default)]
pub struct Machine {
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<openraft::alias::SnapshotOf<TypeConfig, ()>, io::Error> {
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        Ok(Snapshot { meta, snapshot: () })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = ();
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: futures::Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.applied = Some(entry.log_id);
            if let openraft::EntryPayload::Membership(membership) = entry.payload {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            if let Some(responder) = responder {
                responder.send(Response::default());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, _snapshot: ()) -> Result<(), io::Error> {
        Err(io::Error::other("no snapshot is ever sent"))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<openraft::alias::SnapshotOf<TypeConfig, ()>>, io::Error> {
        Ok(None)
    }
}

/// Calls between the replicas of one group.
#[derive(Clone)]
struct Calls {
    replicas: Replicas,
    target: VoterId,
}

impl Calls {
    fn replica(&self) -> Result<Replica, RPCError<TypeConfig>> {
        let replica = self.replicas.borrow().get(&self.target).cloned();
        replica.ok_or_else(|| RPCError::Unreachable(Unreachable::from_string("it is not there yet")))
    }
}

fn failed(error: impl ToString) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::from_string(error.to_string()))
}

impl RaftNetworkFactory<TypeConfig> for Calls {
    type Network = Calls;

    async fn new_client(&mut self, target: VoterId, _node: &EmptyNode) -> Calls {
        Calls { replicas: self.replicas.clone(), target }
    }
}

impl RaftNetworkV2<TypeConfig> for Calls {
    type SnapshotData = ();

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.replica()?.append_entries(request).await.map_err(failed)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.replica()?.vote(request).await.map_err(failed)
    }

    async fn full_snapshot(
        &mut self,
        _vote: Vote,
        _snapshot: openraft::alias::SnapshotOf<TypeConfig, ()>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(StreamingError::from(failed("no snapshot is ever made")))
    }
}

/// Groups of three replicas in memory; the first of each leads.
pub async fn groups(count: u64) -> Vec<Replica> {
    let mut leaders = Vec::new();
    for number in 0..count {
        leaders.push(group(number).await);
    }
    leaders
}

async fn group(number: u64) -> Replica {
    let config = Config {
        cluster_name: number.to_string(),
        heartbeat_interval: 300,
        // A lease that no pause of this bench outlasts: openraft refuses commands of a leader without one.
        election_timeout_min: 600_000,
        election_timeout_max: 1_200_000,
        snapshot_policy: SnapshotPolicy::Never,
        ..Config::default()
    };
    let config = Arc::new(config.validate().expect("it makes sense"));
    let replicas = Replicas::default();
    for voter in 1..=3 {
        let calls = Calls { replicas: replicas.clone(), target: voter };
        let replica = Raft::new(voter, config.clone(), calls, MemoryLog::default(), Machine::default()).await;
        replicas.borrow_mut().insert(voter, replica.expect("it starts"));
    }
    let first = replicas.borrow()[&1].clone();
    let members: BTreeMap<VoterId, EmptyNode> = (1..=3).map(|voter| (voter, EmptyNode {})).collect();
    first.initialize(members).await.expect("it is new");
    first.trigger().elect(false).await.expect("it runs");
    let led = first.wait(Some(Duration::from_secs(20))).current_leader(1, "the first leads").await;
    led.expect("it is elected");
    // The floor's timers would cost the product's figures something.
    for replica in replicas.borrow().values() {
        replica.runtime_config().tick(false);
    }
    first
}
