//! What a replica knows of its group, for whoever shows it.

use crate::group::{GroupState, ShardGroup};
use kiseki_types::group::{FollowerView, GroupView, VoterId};
use openraft::async_runtime::WatchReceiver;

impl ShardGroup {
    /// What this replica knows of its group. Who follows, and how far, only a leader knows.
    #[must_use]
    pub fn view(&self) -> GroupView {
        let leadership = self.leadership_now();
        let counters = &self.inner.counters;
        let now = self.inner.parts.ports.now();
        let mut metrics = self.raft().metrics();
        let metrics = metrics.borrow_and_update();
        let joint = metrics.membership_config.membership().get_joint_config();
        let last_index = metrics.last_log_index.unwrap_or(0);
        let follower = |voter: &VoterId| {
            let matched = metrics.replication.as_ref().and_then(|all| all.get(voter).copied()).flatten();
            FollowerView {
                voter: *voter,
                lag_entries: last_index.saturating_sub(matched.map_or(0, |id| id.index)),
                answers: self.has_answered(*voter, &metrics, now),
            }
        };
        let others = metrics.replication.iter().flat_map(|all| all.keys()).filter(|voter| **voter != metrics.id);
        let leads = leadership.is_here && self.state() == GroupState::Running;
        GroupView {
            voter: metrics.id,
            leadership,
            voter_sets: joint.iter().map(|set| set.iter().copied().collect()).collect(),
            last_index,
            applied_index: metrics.last_applied.map_or(0, |id| id.index),
            followers: others.filter(|_| leads).map(follower).collect(),
            proposals: counters.proposals.get(),
            snapshots_sent: counters.snapshots_sent.get(),
            snapshots_installed: counters.snapshots_installed.get(),
            table_sizes: self.inner.parts.tables.sizes(),
        }
    }
}
