//! What can go wrong with a Raft group or its lane's log.

use kiseki_types::codec::CodecError;
use kiseki_types::group::ProposeError;
use kiseki_types::journal::JournalError;
use kiseki_types::table::TableError;
use kiseki_types::{LaneId, NodeId, ShardId};
use std::io;
use thiserror::Error;

/// Why a group could not be made, opened or kept running.
#[derive(Debug, Error, Clone)]
#[non_exhaustive]
pub enum RaftError {
    /// The group has never been made on this node.
    #[error("shard {shard} has no replica here; create it first")]
    Absent {
        /// The shard.
        shard: ShardId,
    },
    /// The group was made, but its bootstrap did not finish; nothing was ever acknowledged by it.
    #[error("shard {shard} was made but never bootstrapped; create it again")]
    NotBootstrapped {
        /// The shard.
        shard: ShardId,
    },
    /// The group exists, so it must not be made again.
    #[error("shard {shard} exists on this node; a group is bootstrapped once in its life")]
    Exists {
        /// The shard.
        shard: ShardId,
    },
    /// Part of the vote or log is gone (I-L10): this voter never votes under its id again.
    #[error("shard {shard} has lost part of its vote or log ({reason}); it must rejoin as a new learner")]
    Lost {
        /// The shard.
        shard: ShardId,
        /// What is missing.
        reason: String,
    },
    /// The lane's log holds bytes that make no sense.
    #[error("Raft log of lane {lane} is damaged: {reason}")]
    LogDamaged {
        /// The lane.
        lane: LaneId,
        /// What is wrong.
        reason: String,
    },
    /// More groups on one lane than it takes.
    #[error("lane {lane} holds {limit} groups already; that is its limit")]
    TooManyGroups {
        /// The lane.
        lane: LaneId,
        /// The limit.
        limit: usize,
    },
    /// The group stopped.
    #[error("shard {shard} has stopped: {reason}")]
    Stopped {
        /// The shard.
        shard: ShardId,
        /// Why.
        reason: String,
    },
    /// This replica does not lead, so it can't do this; nothing happened.
    #[error("shard {shard} is not led here{}", leader.map(|node| format!(", ask {node}")).unwrap_or_default())]
    NotLeader {
        /// The shard.
        shard: ShardId,
        /// The node that leads it, as far as this replica knows.
        leader: Option<NodeId>,
    },
    /// The voters or the leader can't be changed like this; nothing happened.
    #[error("voters of shard {shard} stay as they are: {reason}")]
    Membership {
        /// The shard.
        shard: ShardId,
        /// Why.
        reason: String,
    },
    /// No leader within the time allowed.
    #[error("shard {shard} found no leader within {waited_ms} ms")]
    NoLeader {
        /// The shard.
        shard: ShardId,
        /// How long the open waited.
        waited_ms: u64,
    },
    /// A snapshot from a peer is damaged or was cut off.
    #[error("snapshot of shard {shard} is refused: {reason}")]
    Snapshot {
        /// The shard.
        shard: ShardId,
        /// What is wrong.
        reason: String,
    },
    /// A metadata file failed.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Bytes could not be decoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl From<RaftError> for io::Error {
    fn from(error: RaftError) -> io::Error {
        io::Error::other(error)
    }
}

impl RaftError {
    /// The error as someone who proposes a command sees it.
    #[must_use]
    pub fn as_propose_error(&self, shard: ShardId) -> ProposeError {
        ProposeError::Unavailable { shard, reason: self.to_string() }
    }
}
