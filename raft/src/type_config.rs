//! The types that openraft is configured with.
//!
//! Leader ids are those of the Raft paper: one leader in a term, so a term alone names its leader, and a command can
//! refuse to be applied in another term than the one that it was decided in.

use crate::runtime::PortsRuntime;
use openraft::alias;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::rc::Rc;

pub use kiseki_types::group::{BEGINNINGS_MAX, VoterId, node_of, voter_after, voter_of};

/// A proposed command: the shard's own bytes, sealed where they name anything. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Command(pub Rc<[u8]>);

/// What a state machine answers to a command.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Response(pub Vec<u8>);

impl Serialize for Command {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(|bytes| Command(bytes.into()))
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} bytes)", self.0.len()) // never its contents
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Response({} bytes)", self.0.len())
    }
}

openraft::declare_raft_types!(
    /// Kiseki's choice of openraft types.
    pub TypeConfig:
        D = Command,
        R = Response,
        NodeId = u64,
        Node = openraft::EmptyNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = PortsRuntime,
);

/// A log entry.
pub type Entry = alias::EntryOf<TypeConfig>;
/// A log id: term and index.
pub type LogId = alias::LogIdOf<TypeConfig>;
/// A vote.
pub type Vote = alias::VoteOf<TypeConfig>;
/// A membership with the log id that set it.
pub type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
/// A membership.
pub type Membership = openraft::Membership<u64, openraft::EmptyNode>;
/// Meta of a snapshot.
pub type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;

/// A log id from its parts.
#[must_use]
pub fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: openraft::vote::leader_id_std::CommittedLeaderId { term }, index }
}

/// The term of a log id.
#[must_use]
pub fn term_of(id: &LogId) -> u64 {
    id.leader_id.term
}
