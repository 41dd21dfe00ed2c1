//! Linearizable reads: by the leader's lease, or by asking a majority when the lease is not fresh.
//!
//! A leader that a majority answered *knows* that no other leader commits anything until those voters vote again. They
//! don't as long as their own lease for it lasts, which began later than the leader's; a voter that forgot its lease in
//! a restart does not vote for one election timeout. The leader counts from when it *sent* what was answered, and
//! believes its lease for a share less than the shortest election timeout, for clocks that run at different speeds.

use crate::group::{GroupSettings, GroupState, ShardGroup};
use kiseki_types::Term;
use kiseki_types::group::ProposeError;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{LinearizableReadError, RaftError as OpenraftError};
use openraft::raft::linearizable_read::LinearizerOption;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Two clocks of a cluster run at speeds that differ by less than this.
pub const CLOCK_DRIFT_PERCENT: u64 = 10;

impl GroupSettings {
    /// How long a leader may answer reads after a majority was asked: no longer than its voters keep still, who may run with
    /// the timers of several voters when it was started with those of one.
    #[must_use]
    pub fn lease(&self) -> Duration {
        let election_ms_min = self.election_ms_min.min(GroupSettings::several_voters().election_ms_min);
        Duration::from_millis(election_ms_min * (100 - CLOCK_DRIFT_PERCENT) / 100)
    }

    /// How long a voter gives no vote after a start: it may have promised a leader before.
    #[must_use]
    pub fn quiet(&self) -> Duration {
        Duration::from_millis(self.election_ms_min)
    }
}

/// Counts who waits for a majority, however the wait ends.
struct Hurry(Rc<Cell<u32>>);

impl Hurry {
    fn begin(waiting: Rc<Cell<u32>>) -> Hurry {
        waiting.set(waiting.get() + 1);
        Hurry(waiting)
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl ShardGroup {
    /// Confirms leadership, by the lease or with a majority, and waits until everything committed before is applied.
    pub(crate) async fn read_index(&self) -> Result<Term, ProposeError> {
        let shard = self.shard_id();
        let settings = &self.inner.parts.settings;
        let raft = self.raft();
        let _hurry = Hurry::begin(self.instance().hurries.clone());
        let option = LinearizerOption::new(Some(settings.lease()), true)
            .with_wait_timeout(Duration::from_millis(settings.election_ms_min));
        let confirmed = match raft.get_read_linearizer(option).await {
            Ok(confirmed) => confirmed,
            Err(OpenraftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                return Err(self.not_leader(forward.leader_id));
            }
            Err(error) => return Err(ProposeError::Unavailable { shard, reason: error.to_string() }),
        };
        let term = confirmed.read_log_id().committed_leader_id().term;
        match confirmed.await_ready(&raft).await {
            Ok(_) => {
                self.inner.confirmed.set(Some(term));
                self.inner.rest.confirmed();
                Ok(Term(term))
            }
            Err(error) => Err(ProposeError::Unavailable { shard, reason: error.to_string() }),
        }
    }

    /// The read barrier of a lone voter, without a turn of openraft's task: nobody else can lead, and an answer is
    /// given only after its command was applied here, so once a read index was confirmed in this term, every
    /// acknowledged command of this and earlier terms is in the tables. `None`: ask openraft.
    pub(crate) fn read_alone(&self) -> Option<Term> {
        let confirmed = self.inner.confirmed.get()?;
        if *self.inner.state.borrow() != GroupState::Running {
            return None;
        }
        let instance = self.inner.instance.borrow();
        if instance.health.panicked() {
            return None;
        }
        let metrics = instance.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters = metrics.membership_config.membership().get_joint_config();
        let alone = voters.len() == 1 && voters[0].len() == 1 && voters[0].contains(&metrics.id);
        let leads = metrics.running_state.is_ok()
            && metrics.state == ServerState::Leader
            && metrics.current_term == confirmed
            && metrics.local_committed == metrics.last_applied;
        (alone && leads).then_some(Term(confirmed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_before_any_voter_votes_again() {
        let of_one = GroupSettings::single_voter();
        let of_several = GroupSettings::several_voters();
        let quick = GroupSettings { election_ms_min: 500, ..of_several };
        for leader in [of_one, of_several, quick] {
            assert!(leader.lease() < leader.quiet().min(of_several.quiet()), "{leader:?}");
        }
    }
}
