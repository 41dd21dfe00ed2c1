//! The ports between a shard's logic (engine) and its Raft group (raft).

use crate::ids::{NodeId, ShardId, Term};
use crate::runtime::LocalBoxFuture;
use crate::table::{TableError, TableReader, TableSizes, TableWrite};
use std::rc::Rc;
use thiserror::Error;

/// Where a committed command stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    /// Term of the leader that proposed it.
    pub term: Term,
    /// Its index.
    pub index: u64,
}

/// What applying a command does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Handed to whoever proposed the command, if that one is still there.
    pub response: Vec<u8>,
    /// Changes to the shard's tables, all or nothing.
    pub writes: Vec<TableWrite>,
}

/// A shard's deterministic logic: from its tables and a committed command to changes of its tables.
///
/// To be correct: the result depends on nothing but `at`, `command` and what `tables` answers. Refusing a command is a
/// response, not an error. A shard with several files never lets a decision depend on a file other than the *last*:
/// after a crash the earlier files may be ahead of the last one (never behind), and then commands are applied again
/// while the earlier files skip what they already hold. A command that can't be decoded is damage: an error, which
/// stops the group.
pub trait StateMachine {
    /// Decides what a command does.
    fn apply<'a>(
        &'a self,
        at: LogPosition,
        command: &'a [u8],
        tables: &'a dyn TableReader,
    ) -> LocalBoxFuture<'a, Result<Applied, ApplyError>>;
}

/// Why a committed command could not be applied.
#[derive(Debug, Error, Clone)]
#[non_exhaustive]
pub enum ApplyError {
    /// The bytes make no sense, or do not open under the shard's key.
    #[error("command at index {index} is damaged: {reason}")]
    Damaged {
        /// Its index.
        index: u64,
        /// What is wrong.
        reason: String,
    },
    /// The shard's tables could not be read.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// Why a command was not committed, as far as we know.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProposeError {
    /// This replica does not lead; nothing happened. Ask the leader, or any other node when it is not known.
    #[error("shard {shard} is not led here{}", leader.map(|node| format!(", ask {node}")).unwrap_or_default())]
    NotLeader {
        /// The shard.
        shard: ShardId,
        /// The node that leads it, as far as this replica knows.
        leader: Option<NodeId>,
    },
    /// The group can't commit now (stopping, fenced, no majority). Whether the command will be committed is unknown.
    #[error("shard {shard} can't commit now: {reason}; the write may or may not have happened, ask again")]
    Unavailable {
        /// The shard.
        shard: ShardId,
        /// Why.
        reason: String,
    },
    /// The command is longer than the log takes; nothing happened.
    #[error("command of {len} bytes is over the limit of {limit}")]
    TooLong {
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
}

/// Number of a voter: the node's id and, above it, how often the node's replica of this shard began anew. A voter that
/// lost its vote or log comes back under the next number, never under its old one (I-L10).
pub type VoterId = u64;

/// Bits of a voter's number that name the node.
const VOTER_NODE_BITS: u32 = 48;

/// Most new beginnings of one node's replica of one shard.
pub const BEGINNINGS_MAX: u64 = (1 << (u64::BITS - VOTER_NODE_BITS)) - 1;

/// The node of a voter.
#[must_use]
pub fn node_of(voter: VoterId) -> NodeId {
    NodeId(voter & ((1 << VOTER_NODE_BITS) - 1))
}

/// The number under which a node's replica votes that began anew `beginnings` times; `None`: no such number.
#[must_use]
pub fn voter_of(node: NodeId, beginnings: u64) -> Option<VoterId> {
    let fits = node.0 >> VOTER_NODE_BITS == 0 && beginnings <= BEGINNINGS_MAX;
    fits.then_some(beginnings << VOTER_NODE_BITS | node.0)
}

/// The number under which a replica comes back that must never vote as `lost` again (I-L10).
#[must_use]
pub fn voter_after(lost: VoterId) -> Option<VoterId> {
    voter_of(node_of(lost), (lost >> VOTER_NODE_BITS) + 1)
}

/// Who leads a shard, as far as one replica of it knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The replica's term.
    pub term: Term,
    /// The node that leads in it, where that is known.
    pub leader: Option<NodeId>,
    /// Whether this very replica leads.
    pub is_here: bool,
}

/// What a replica knows of its group: for status, health and metrics, never for a decision about data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupView {
    /// The voter that the replica is.
    pub voter: VoterId,
    /// Who leads.
    pub leadership: Leadership,
    /// Sets of voters each of which needs a majority: one, and two while they change.
    pub voter_sets: Vec<Vec<VoterId>>,
    /// Index of the last entry of the log.
    pub last_index: u64,
    /// Index of the last entry that is applied.
    pub applied_index: u64,
    /// The other replicas, where this one leads.
    pub followers: Vec<FollowerView>,
    /// Commands proposed here since the replica was opened.
    pub proposals: u64,
    /// Snapshots that were sent to others since then.
    pub snapshots_sent: u64,
    /// Snapshots of others that took the place of its tables since then.
    pub snapshots_installed: u64,
    /// How large its tables are.
    pub table_sizes: TableSizes,
}

/// Another replica as its leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerView {
    /// The voter that it is.
    pub voter: VoterId,
    /// Entries that it lacks.
    pub lag_entries: u64,
    /// Whether it has answered within the shortest election timeout.
    pub answers: bool,
}

/// A follower that lacks no more entries than this has caught up: it is as good as those with all of them.
pub const CAUGHT_UP_LAG_ENTRIES: u64 = 1_000;

impl FollowerView {
    /// Whether it would count at once if others left.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.answers && self.lag_entries <= CAUGHT_UP_LAG_ENTRIES
    }
}

/// Why voters or leader of a shard stay as they are.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("the replicas of shard {shard} can't be changed now: {reason}")]
pub struct ReplicasError {
    /// The shard.
    pub shard: ShardId,
    /// Why.
    pub reason: String,
}

/// A handle on one replica of one shard, on the core that holds it.
///
/// To be correct: `propose` answers with the response of [`StateMachine::apply`] only after the command is flushed on
/// a majority of the voters (I-L2) and applied here; what is applied is visible to `tables` at once. `read_barrier`
/// answers only while this replica leads and has applied everything that was committed before the call (so reads of
/// `tables` after it are linearizable), with the term it leads in. `leadership_after` ends soon after what `leadership` says
/// differs from `seen`, and at once when it does so already; when the replica ends for good it never does.
pub trait RaftGroup {
    /// Which shard.
    fn shard(&self) -> ShardId;
    /// Commits a command.
    fn propose(&self, command: Vec<u8>) -> LocalBoxFuture<'static, Result<Vec<u8>, ProposeError>>;
    /// Waits until reads here are linearizable.
    fn read_barrier(&self) -> LocalBoxFuture<'static, Result<Term, ProposeError>>;
    /// The shard's tables.
    fn tables(&self) -> Rc<dyn TableReader>;
    /// Who leads, as far as this replica knows.
    fn leadership(&self) -> Leadership;
    /// Waits until that is something else than `seen`.
    fn leadership_after(&self, seen: Leadership) -> LocalBoxFuture<'static, Leadership>;
    /// What this replica knows of its group.
    fn view(&self) -> GroupView;
    /// The voter that this replica is.
    fn voter(&self) -> VoterId;
    /// The voters, as far as this replica knows; while they change, those of before and after.
    fn voters(&self) -> Vec<VoterId>;
    /// Makes these the voters, one change after the other: new ones learn first and wait until they have caught up. Their replicas
    /// must be there. A change that was cut off is finished by asking again. Only the leader can.
    fn set_voters(&self, voters: Vec<VoterId>) -> LocalBoxFuture<'static, Result<(), ReplicasError>>;
    /// Gives leadership to a voter that has caught up. Only the leader can.
    fn transfer_leader(&self, to: VoterId) -> LocalBoxFuture<'static, Result<(), ReplicasError>>;
}
