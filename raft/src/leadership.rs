//! Who leads, for whoever works only while a replica does.

use crate::error::RaftError;
use crate::group::{GroupState, ShardGroup};
use crate::type_config::{VoterId, node_of};
use futures::future::{Either, pending, select};
use kiseki_types::Term;
use kiseki_types::group::Leadership;
use kiseki_types::runtime::RuntimeExt;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use std::pin::pin;
use std::time::Duration;

/// Pause between looks for a leader.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Pause before a look at a replica that is being built again.
const REBUILD_PAUSE: Duration = Duration::from_millis(20);

impl ShardGroup {
    /// Who leads, as far as this replica knows. One that does not work knows nothing.
    #[must_use]
    pub fn leadership_now(&self) -> Leadership {
        let metrics = self.raft().server_metrics();
        let now = metrics.borrow_watched();
        let term = Term(now.vote.leader_id.term);
        if self.state() != GroupState::Running {
            return Leadership { term, leader: None, is_here: false };
        }
        let is_here = now.state == ServerState::Leader && now.current_leader == Some(now.id);
        Leadership { term, leader: now.current_leader.map(node_of), is_here }
    }

    /// Waits until [`ShardGroup::leadership_now`] says something else than `seen`; never ends when the replica is closed or
    /// fenced.
    pub async fn leadership_other_than(&self, seen: Leadership) -> Leadership {
        loop {
            // Before the look, so that no change falls between the two.
            let mut metrics = self.raft().server_metrics();
            let _seen = metrics.borrow_and_update();
            drop(_seen);
            let now = self.leadership_now();
            if now != seen {
                return now;
            }
            if metrics.changed().await.is_err() {
                if matches!(self.state(), GroupState::Closed | GroupState::Fenced(_)) && self.leadership_now() == seen {
                    pending::<()>().await;
                }
                self.inner.parts.ports.sleep(REBUILD_PAUSE).await; // the next instance is not there yet
            }
        }
    }

    /// A lone voter need not wait for its election timeout.
    pub(crate) fn stand_if_alone(&self) {
        let raft = self.raft();
        let voters: Vec<VoterId> = raft.voter_ids().collect();
        if voters == [*raft.node_id()] && !raft.is_leader() {
            self.inner.parts.ports.spawn(
                "raft-elect",
                Box::pin(async move {
                    let _ = raft.trigger().elect(false).await; // the supervisor sees why it stopped
                }),
            );
        }
    }

    /// Waits until a leader is known and, when it is this replica, until reads here are linearizable.
    pub(crate) async fn wait_for_leader(&self) -> Result<(), RaftError> {
        let parts = &self.inner.parts;
        let deadline = parts.ports.sleep(parts.settings.leader_wait);
        self.stand_if_alone();
        let led = async {
            loop {
                let mut metrics = self.raft().metrics();
                let (leader, running) = {
                    let now = metrics.borrow_and_update();
                    (now.current_leader, now.running_state.clone())
                };
                match (self.state(), running) {
                    (GroupState::Fenced(reason), _) => return Err(self.stopped(reason)),
                    (GroupState::Closed, _) => return Err(self.stopped("closed".to_owned())),
                    _ => {}
                }
                match leader {
                    Some(leader) if leader == *self.raft().node_id() => {
                        if self.read_index().await.is_ok() {
                            return Ok(());
                        }
                        parts.ports.sleep(RETRY_PAUSE).await;
                    }
                    Some(_) => return Ok(()),
                    None => {
                        let _ = select(pin!(metrics.changed()), parts.ports.sleep(RETRY_PAUSE)).await;
                    }
                }
            }
        };
        match select(pin!(led), deadline).await {
            Either::Left((led, _)) => led,
            Either::Right(_) => {
                let waited_ms = u64::try_from(parts.settings.leader_wait.as_millis()).unwrap_or(u64::MAX);
                Err(RaftError::NoLeader { shard: parts.shard, waited_ms })
            }
        }
    }
}
