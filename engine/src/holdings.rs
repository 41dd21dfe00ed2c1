//! What would be missing without a node.

use kiseki_types::ids::LaneId;

/// What a core or a node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// The first lane of the core that answers: a core may be asked through each of its lanes.
    pub core: LaneId,
    /// Fragments on its devices.
    pub fragments: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Shards led by whoever answers in which the node has a vote: one that lost its vote may not know.
    pub votes: u64,
    /// Shards led by whoever answers.
    pub led: u64,
    /// Shards of the cluster, where the control shard is led; otherwise 0.
    pub shards: u64,
    /// Whether this is all: no device of it is out of reach.
    pub is_whole: bool,
}

impl Holdings {
    /// What two cores hold together. Each core has lanes of its own, and each shard is in one lane.
    #[must_use]
    pub fn and(self, other: Holdings) -> Holdings {
        Holdings {
            core: self.core,
            fragments: self.fragments + other.fragments,
            bytes: self.bytes + other.bytes,
            votes: self.votes + other.votes,
            led: self.led + other.led,
            shards: self.shards + other.shards,
            is_whole: self.is_whole && other.is_whole,
        }
    }
}
