//! Who leads, for whoever works only while a replica does.

use crate::group::{GroupState, ShardGroup};
use crate::type_config::node_of;
use futures::future::pending;
use kiseki_types::Term;
use kiseki_types::group::Leadership;
use kiseki_types::runtime::RuntimeExt;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use std::time::Duration;

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
}
