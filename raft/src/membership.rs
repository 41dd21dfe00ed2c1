//! Who leads and who votes: giving leadership away, learners, replacing a voter.

use crate::error::RaftError;
use crate::group::ShardGroup;
use crate::log_store::record::MEMBERS_MAX;
use crate::network::{ElectionRequest, ElectionResponse, TransferRequest};
use crate::type_config::{VoterId, node_of};
use futures::future::{Either, select};
use kiseki_types::NodeId;
use kiseki_types::group::ProposeError;
use kiseki_types::runtime::{Instant, RuntimeExt};
use openraft::async_runtime::WatchReceiver;
use openraft::{ChangeMembers, EmptyNode, ServerState};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

/// Longest election timeouts after which a leadership that was given away, and that nobody is known to have taken, is ended.
const TRANSFER_LOST_AFTER: u64 = 5;

/// A voter takes over only when it lacks no more entries than this: the group commits nothing meanwhile.
pub const TRANSFER_LAG_ENTRIES_MAX: u64 = 1_000;

/// A learner that gets nothing new for so long is not waited for any longer.
pub const LEARN_STALL_MAX: Duration = Duration::from_secs(30);

/// Most voters of a shard.
pub const VOTERS_MAX: usize = 9;

impl ShardGroup {
    /// The voter that this replica is.
    #[must_use]
    pub fn voter(&self) -> VoterId {
        *self.raft().node_id()
    }

    /// The node that leads, as far as this replica knows.
    #[must_use]
    pub fn leader_node(&self) -> Option<NodeId> {
        self.leader().map(node_of)
    }

    /// Whether this replica leads, as far as it knows.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.metrics().state == ServerState::Leader
    }

    /// The voters, as far as this replica knows; while they change, those of before and after.
    #[must_use]
    pub fn voters(&self) -> BTreeSet<VoterId> {
        self.raft().voter_ids().collect()
    }

    /// Sets the first voters of a group that has none yet, on a replica that was made for it, and waits for a leader. Only
    /// one node does this, once in the group's life (I-O4). On a group that has voters it changes nothing.
    pub async fn form(&self, members: &[VoterId]) -> Result<(), RaftError> {
        let raft = self.raft();
        // A crash may have come behind the first entry and before anything was acknowledged: go on from there.
        if !raft.is_initialized().await.map_err(|error| self.stopped(error.to_string()))? {
            let members: BTreeMap<VoterId, EmptyNode> = members.iter().map(|id| (*id, EmptyNode {})).collect();
            raft.initialize(members).await.map_err(|error| self.stopped(error.to_string()))?;
        }
        self.wait_for_leader().await
    }

    pub(crate) fn not_leader(&self, leader: Option<VoterId>) -> ProposeError {
        ProposeError::NotLeader { shard: self.shard_id(), leader: leader.map(node_of) }
    }

    fn refused(&self, reason: impl Into<String>) -> RaftError {
        RaftError::Membership { shard: self.shard_id(), reason: reason.into() }
    }

    fn must_lead(&self) -> Result<(), RaftError> {
        if self.leads() {
            return Ok(());
        }
        Err(RaftError::NotLeader { shard: self.shard_id(), leader: self.leader_node() })
    }

    /// Gives leadership to `to` and waits until this replica sees another leader. While it goes on nothing is
    /// committed, so a voter that lags, or has not answered within an election timeout, is refused at once.
    ///
    /// Errors: `NotLeader`; `Membership` when `to` can't take over; `NoLeader` when no other leader is seen in time:
    /// then the voters elect one by themselves; `Stopped` when this replica ends before it sees one.
    pub async fn transfer_leader(&self, to: VoterId) -> Result<(), RaftError> {
        self.must_lead()?;
        if to == self.voter() {
            return Ok(());
        }
        self.rouse().await.map_err(|error| self.stopped(error.to_string()))?;
        self.can_lead(to)?;
        let raft = self.raft();
        self.inner.given_away.set(Some((self.metrics().current_term, self.inner.parts.ports.now())));
        raft.trigger().transfer_leader(to).await.map_err(|error| self.stopped(error.to_string()))?;
        let parts = &self.inner.parts;
        let wait = Duration::from_millis(parts.settings.election_ms_max * 2);
        let moved = async {
            let mut metrics = raft.metrics();
            loop {
                let leader = metrics.borrow_and_update().current_leader;
                if leader.is_some_and(|leader| leader != self.voter()) {
                    return Ok(());
                }
                if metrics.changed().await.is_err() {
                    return Err(self.stopped("it ended meanwhile".to_owned()));
                }
            }
        };
        match select(pin!(moved), parts.ports.sleep(wait)).await {
            Either::Left((moved, _)) => moved,
            Either::Right(_) => {
                let waited_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                Err(RaftError::NoLeader { shard: self.shard_id(), waited_ms })
            }
        }
    }

    /// Looks after a leadership that was given away. openraft asks `to` once, and from then on sends no heartbeat and answers nobody:
    /// where the asking got lost, and others were elected while this replica was cut off, it would take itself for the leader for ever, since
    /// it asks nobody who could tell. It is built again, as a follower.
    pub(crate) fn end_lost_transfer(&self, now: Instant) {
        let Some((term, at)) = self.inner.given_away.get() else { return };
        let metrics = self.metrics();
        if metrics.current_term != term || metrics.state != ServerState::Leader {
            return self.inner.given_away.set(None);
        }
        if now >= at + Duration::from_millis(self.inner.parts.settings.election_ms_max * TRANSFER_LOST_AFTER) {
            self.inner.given_away.set(None);
            self.instance().health.give_up();
        }
    }

    /// Whether `to` is a voter that is up with the log and answers.
    fn can_lead(&self, to: VoterId) -> Result<(), RaftError> {
        if !self.voters().contains(&to) {
            return Err(self.refused(format!("{to} is no voter, so it can't lead")));
        }
        let metrics = self.metrics();
        let matched = metrics.replication.as_ref().and_then(|all| all.get(&to).copied()).flatten();
        let lag = metrics.last_log_index.unwrap_or(0).saturating_sub(matched.map_or(0, |id| id.index));
        if matched.is_none() || lag > TRANSFER_LAG_ENTRIES_MAX {
            return Err(self.refused(format!("voter {to} lacks {lag} entries; wait until it has caught up")));
        }
        if !self.has_answered(to, &metrics, self.inner.parts.ports.now()) {
            return Err(self.refused(format!("voter {to} does not answer")));
        }
        Ok(())
    }

    /// Adds voters (and waits until they are caught up) or removes some: `voters` is the new set. A change that was cut
    /// off is finished by doing it again, on whatever replica leads then.
    ///
    /// Errors: `NotLeader`, `Membership`; `Stopped` when the group can't commit it now.
    pub async fn change_voters(&self, voters: &[VoterId]) -> Result<(), RaftError> {
        self.must_lead()?;
        let wanted: BTreeSet<VoterId> = voters.iter().copied().collect();
        if wanted.is_empty() || wanted.len() > VOTERS_MAX {
            return Err(self.refused(format!("{} voters are not between 1 and {VOTERS_MAX}", wanted.len())));
        }
        // I-L10: two voters of one node would die together, and one of them would be the other come back.
        let nodes: BTreeSet<NodeId> = wanted.iter().copied().map(node_of).collect();
        if nodes.len() != wanted.len() {
            return Err(self.refused("one node would vote twice"));
        }
        self.rouse().await.map_err(|error| self.stopped(error.to_string()))?;
        let raft = self.raft();
        let now = self.voters();
        for voter in wanted.difference(&now) {
            self.add_learner(*voter).await?;
        }
        let change = raft.change_membership(wanted.clone(), false).await;
        change.map_err(|error| self.stopped(error.to_string()))?;
        // Who was to become a voter and did not would be sent everything for ever.
        let members = self.members();
        if members.is_subset(&wanted) {
            return Ok(());
        }
        let idle = members.difference(&wanted).copied().collect();
        let change = raft.change_membership(ChangeMembers::RemoveNodes(idle), false).await;
        change.map(drop).map_err(|error| self.stopped(error.to_string()))
    }

    /// Voters and learners.
    fn members(&self) -> BTreeSet<VoterId> {
        self.metrics().membership_config.membership().nodes().map(|(id, _)| *id).collect()
    }

    /// Adds a replica that gets everything and does not vote; ends when it has what the log held at the beginning.
    ///
    /// Errors: as of [`ShardGroup::change_voters`]; `Membership` when nothing reaches it for [`LEARN_STALL_MAX`]: it stays
    /// a learner then. It must have joined.
    pub async fn add_learner(&self, learner: VoterId) -> Result<(), RaftError> {
        self.must_lead()?;
        let mut members = self.members();
        members.insert(learner);
        if members.len() > MEMBERS_MAX {
            return Err(self.refused(format!("it has {MEMBERS_MAX} members; remove some voters first")));
        }
        self.rouse().await.map_err(|error| self.stopped(error.to_string()))?;
        let raft = self.raft();
        // openraft's own waiting ends when few entries are missing, which may be all there are.
        let added = raft.add_learner(learner, EmptyNode {}, false).await;
        let goal = added.map_err(|error| self.stopped(error.to_string()))?.log_id.index;
        let ports = &self.inner.parts.ports;
        let mut metrics = raft.metrics();
        let (mut matched, mut since) = (None, ports.now());
        loop {
            self.must_lead()?; // only a leader knows who has what
            let now = {
                let metrics = metrics.borrow_and_update();
                let known = metrics.replication.as_ref().and_then(|all| all.get(&learner).copied()).flatten();
                known.map(|id| id.index)
            };
            if now >= Some(goal) {
                return Ok(());
            }
            if now > matched {
                (matched, since) = (now, ports.now());
            }
            let left = LEARN_STALL_MAX.saturating_sub(ports.now().since(since));
            match select(pin!(metrics.changed()), ports.sleep(left)).await {
                Either::Left((Ok(()), _)) => {}
                Either::Left((Err(_), _)) => return Err(self.stopped("it ended meanwhile".to_owned())),
                Either::Right(_) => return Err(self.refused(format!("learner {learner} does not catch up"))),
            }
        }
    }

    /// Puts `new` in the place of `old`: it learns, catches up, and in one change gets the vote that `old` loses, so
    /// that there are never fewer voters on the way and the two never count together (I-L10). What was cut off is
    /// finished by doing it again.
    pub async fn replace_voter(&self, old: VoterId, new: VoterId) -> Result<(), RaftError> {
        self.must_lead()?;
        // Of a change that was cut off only its goal counts: what it was to remove must not come back.
        let joint = self.metrics().membership_config.membership().get_joint_config().clone();
        let mut voters = joint.last().cloned().unwrap_or_default();
        if !voters.contains(&old) && !voters.contains(&new) {
            return Err(self.refused(format!("{old} is no voter, so nobody can take its place")));
        }
        voters.remove(&old);
        voters.insert(new);
        self.change_voters(&voters.into_iter().collect::<Vec<_>>()).await
    }

    /// A leader gives its leadership away.
    pub async fn handle_transfer(&self, request: TransferRequest) -> Result<(), RaftError> {
        self.stir();
        let answer = self.raft().handle_transfer_leader(request).await;
        answer.map_err(|error| self.stopped(error.to_string()))?.map_err(|error| self.stopped(error.to_string()))
    }

    /// A peer stands for election.
    pub async fn handle_vote(&self, request: ElectionRequest) -> Result<ElectionResponse, RaftError> {
        // An election that the leader itself asked for breaks no promise: it answers no reads any more.
        if !request.leadership_transfer && (self.is_quiet() || self.is_led()) {
            return Ok(self.not_now());
        }
        self.stir();
        self.raft().vote(request).await.map_err(|error| self.stopped(error.to_string()))
    }

    /// A peer asks whether it would be elected.
    pub async fn handle_pre_vote(&self, request: ElectionRequest) -> Result<ElectionResponse, RaftError> {
        if self.is_quiet() || self.is_led() {
            return Ok(self.not_now());
        }
        self.stir();
        self.raft().pre_vote(request).await.map_err(|error| self.stopped(error.to_string()))
    }

    /// Whether this replica may have promised a leader not to vote, before it was started.
    fn is_quiet(&self) -> bool {
        self.inner.parts.ports.now() < self.inner.quiet_until.get()
    }

    /// No vote, whatever is asked.
    fn not_now(&self) -> ElectionResponse {
        ElectionResponse::new(self.metrics().vote, None, false)
    }
}
