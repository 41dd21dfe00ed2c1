//! What a node says of the shards that it has replicas of: to status, `top`, health and metrics.

use kiseki_types::group::{FollowerView, GroupView, node_of};
use kiseki_types::ids::ShardId;
use serde::{Deserialize, Serialize};

/// Shards that a node tells of; further ones are counted (I-O5).
const SHARDS_MAX: usize = 1_024;

/// A replica as `status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardReport {
    /// Number of the shard.
    pub shard: u64,
    /// `control`, `home` or `tenant`.
    pub kind: String,
    /// The node that leads it, as far as the replica knows.
    pub leader: Option<u64>,
    /// Whether it is the replica here that leads.
    pub is_led_here: bool,
    /// The replica's term.
    pub term: u64,
    /// Nodes that vote; while they change, those of before and after.
    pub voters: Vec<u64>,
    /// Index of the last entry of its log.
    pub last_index: u64,
    /// Index of the last entry that is applied.
    pub applied_index: u64,
    /// The other replicas, where this one leads.
    pub followers: Vec<FollowerReport>,
    /// Terms in which the replica here was elected and served, since the node started.
    pub elections_won: u64,
    /// Commands proposed here since then.
    pub proposals: u64,
    /// Snapshots sent to others since then.
    pub snapshots_sent: u64,
    /// Snapshots of others installed since then.
    #[serde(default)]
    pub snapshots_installed: u64,
}

/// Another replica of a shard, as its leader sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowerReport {
    /// Its node.
    pub node: u64,
    /// Entries that it lacks.
    pub lag_entries: u64,
    /// Whether it answers.
    pub answers: bool,
}

fn kind(shard: ShardId) -> &'static str {
    match shard {
        ShardId::CONTROL => "control",
        shard if shard.0 < ShardId::TENANT_FIRST => "home",
        _ => "tenant",
    }
}

impl ShardReport {
    fn of(shard: ShardId, view: &GroupView, elections_won: u64) -> ShardReport {
        let mut voters: Vec<u64> = view.voter_sets.iter().flatten().map(|voter| node_of(*voter).0).collect();
        voters.sort_unstable();
        voters.dedup();
        let follower = |follower: &FollowerView| FollowerReport {
            node: node_of(follower.voter).0,
            lag_entries: follower.lag_entries,
            answers: follower.answers,
        };
        ShardReport {
            shard: shard.0,
            kind: kind(shard).to_owned(),
            leader: view.leadership.leader.map(|node| node.0),
            is_led_here: view.leadership.is_here,
            term: view.leadership.term.0,
            voters,
            last_index: view.last_index,
            applied_index: view.applied_index,
            followers: view.followers.iter().map(follower).collect(),
            elections_won,
            proposals: view.proposals,
            snapshots_sent: view.snapshots_sent,
            snapshots_installed: view.snapshots_installed,
        }
    }
}

/// The replicas that a core told of with `views`, of `cores` that share what a node tells; and how many are not told of.
#[must_use]
pub fn of_core(views: &[(ShardId, GroupView, u64)], cores: u16) -> (Vec<ShardReport>, u64) {
    let most = SHARDS_MAX / usize::from(cores.max(1));
    let reports = views.iter().take(most).map(|(shard, view, won)| ShardReport::of(*shard, view, *won)).collect();
    (reports, views.len().saturating_sub(most) as u64)
}
