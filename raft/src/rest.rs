//! Groups that nobody uses rest: their timers stand still, and one message between two cores vouches for all of them.
//!
//! - A leader that was asked for nothing for a while, and whose peers have applied all of its log, asks them to rest. When
//!   all agree it rests as well. It asks again each [`BEAT`], all groups of the core in one parcel: that is their sign
//!   of life. A peer that hears none for the shortest election timeout wakes, and elections go on as ever.
//! - Whatever else reaches a replica wakes it. A leader wakes as well when a peer does not rest with it, or is not heard
//!   for so long. A group with a peer that is away does not rest.
//! - A peer that rests and hears its leader gives no vote, as one that hears heartbeats: a replica that was started
//!   meanwhile must not depose a leader that is well. The leader wakes and tells it.
//! - Nothing is believed for it. A leader's lease runs out while it rests, and the first command or read asks a majority.
//!   So what a beat says may be wrong and costs time alone.

use crate::group::{GroupState, ShardGroup};
use crate::network::RestRequest;
use crate::replicas::ReplicaMap;
use crate::type_config::{TypeConfig, VoterId};
use futures::future::join_all;
use kiseki_types::group::ProposeError;
use kiseki_types::runtime::{Instant, Ports, RuntimeExt};
use openraft::async_runtime::WatchReceiver;
use openraft::{RaftMetrics, ServerState};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Weak;
use std::time::Duration;

/// Leaders that rest, or want to, say so this often.
pub const BEAT: Duration = Duration::from_millis(300);

/// How a replica rests.
#[derive(Clone, Copy, Debug)]
enum Asleep {
    /// As the leader: all peers agreed to what was asked at this time.
    Leading { agreed: Instant },
    /// As a peer of a leader that counts as well until this time.
    Following { until: Instant },
}

/// Whether a replica rests.
pub(crate) struct Rest {
    asleep: Cell<Option<Asleep>>,
    /// When it was last asked for something, or woke.
    used: Cell<Instant>,
    /// As the leader: when each peer was asked what it agreed to last.
    agreed: RefCell<BTreeMap<VoterId, Instant>>,
    /// As the leader: a majority agreed to what was asked at this time.
    heard: Cell<Option<Instant>>,
    /// It has rested as the leader, and no majority was asked since.
    unconfirmed: Cell<bool>,
}

/// What a leader asks its peers.
struct Wish {
    request: RestRequest,
    peers: Vec<VoterId>,
    voters: BTreeSet<VoterId>,
}

impl Rest {
    /// It does not.
    pub(crate) fn awake(now: Instant) -> Rest {
        Rest {
            asleep: Cell::new(None),
            used: Cell::new(now),
            agreed: RefCell::default(),
            heard: Cell::new(None),
            unconfirmed: Cell::new(false),
        }
    }

    /// A new instance, whose timers run, takes the place of the one that rested.
    pub(crate) fn begin_anew(&self, now: Instant) {
        self.asleep.set(None);
        self.used.set(now);
        self.agreed.borrow_mut().clear();
        self.heard.set(None);
    }

    /// A majority was asked.
    pub(crate) fn confirmed(&self) {
        self.unconfirmed.set(false);
    }
}

impl ShardGroup {
    /// Whether the replica's timers stand still.
    #[must_use]
    pub fn rests(&self) -> bool {
        self.inner.rest.asleep.get().is_some()
    }

    /// The group is used: a leader wakes. A peer does not, since whoever asks it is told who leads.
    pub(crate) fn wake(&self) {
        self.inner.rest.used.set(self.inner.parts.ports.now());
        if let Some(Asleep::Leading { .. }) = self.inner.rest.asleep.get() {
            self.stir();
        }
    }

    /// A message has come: the timers run again.
    pub(crate) fn stir(&self) {
        if self.inner.rest.asleep.take().is_some() {
            self.inner.instance.borrow().raft.runtime_config().tick(true);
        }
    }

    /// Wakes a leader, and has it ask a majority whether it still leads, if it has rested: openraft refuses commands of a
    /// leader that was not answered for long.
    pub(crate) async fn rouse(&self) -> Result<(), ProposeError> {
        self.wake();
        if self.inner.rest.unconfirmed.get() { self.read_index().await.map(drop) } else { Ok(()) }
    }

    /// Whether the group has a leader that a majority heard within the shortest election timeout: then nobody is to be elected.
    /// openraft does not know, since it sees no heartbeats. A leader wakes, for whoever does not know either.
    pub(crate) fn is_led(&self) -> bool {
        let (rest, now) = (&self.inner.rest, self.inner.parts.ports.now());
        if let Some(Asleep::Following { until }) = rest.asleep.get() {
            return now < until;
        }
        // It holds for a leader that just woke as well, until it has sent heartbeats.
        let heard = rest.heard.get().is_some_and(|at| now < at + self.inner.parts.settings.quiet());
        let is_led = heard && self.state() == GroupState::Running && self.leads();
        if is_led {
            self.wake();
        }
        is_led
    }

    /// A leader says that it rests, or would like to. Whether this replica rests as well: only when it follows that leader and
    /// has applied all that the leader has.
    pub fn handle_rest(&self, request: RestRequest) -> bool {
        let agrees = self.state() == GroupState::Running && {
            let instance = self.instance();
            let metrics = instance.raft.metrics();
            let now = metrics.borrow_watched();
            let follows = matches!(now.state, ServerState::Follower | ServerState::Learner);
            let has_all = now.last_log_index == Some(request.last.index) && now.last_applied == Some(request.last);
            !instance.health.panicked() && now.running_state.is_ok() && follows && has_all && now.vote == request.vote
        };
        if !agrees {
            self.stir();
            return false;
        }
        let until = self.inner.parts.ports.now() + self.inner.parts.settings.quiet();
        self.fall_asleep(Asleep::Following { until });
        true
    }

    fn fall_asleep(&self, how: Asleep) {
        if self.inner.rest.asleep.replace(Some(how)).is_none() {
            self.inner.instance.borrow().raft.runtime_config().tick(false);
        }
    }

    /// Whether a peer answered a heartbeat, or agreed to rest, within the shortest election timeout.
    pub(crate) fn has_answered(&self, peer: VoterId, seen: &RaftMetrics<TypeConfig>, now: Instant) -> bool {
        let heartbeat = seen.heartbeat.as_ref().and_then(|all| all.get(&peer).copied()).flatten();
        let beat = self.inner.rest.agreed.borrow().get(&peer).copied();
        let last = heartbeat.map(|at| at.into_inner().0).max(beat);
        last.is_some_and(|at| now.since(at) <= self.inner.parts.settings.quiet())
    }

    /// What to ask the peers, if this replica leads and nothing is left to do.
    fn wish(&self, now: Instant) -> Option<Wish> {
        let settings = &self.inner.parts.settings;
        if self.state() != GroupState::Running || now.since(self.inner.rest.used.get()) < settings.rest_after {
            return None;
        }
        let instance = self.instance();
        let metrics = instance.raft.metrics();
        let seen = metrics.borrow_watched();
        let last = seen.last_applied.filter(|last| seen.last_log_index == Some(last.index))?;
        let leads = seen.state == ServerState::Leader && seen.current_leader == Some(seen.id);
        let membership = seen.membership_config.membership();
        if instance.health.panicked()
            || seen.running_state.is_err()
            || !leads
            || membership.get_joint_config().len() != 1
        {
            return None;
        }
        let peers: Vec<VoterId> =
            membership.nodes().map(|(voter, _)| *voter).filter(|voter| *voter != seen.id).collect();
        let matched = seen.replication.as_ref()?;
        let has_all = peers.iter().all(|peer| matched.get(peer).copied().flatten() == Some(last));
        let heard_lately = peers.iter().all(|peer| self.has_answered(*peer, &seen, now));
        let voters = membership.voter_ids().collect();
        let wish = Wish { request: RestRequest { vote: seen.vote, last }, peers, voters };
        (!wish.peers.is_empty() && has_all && heard_lately).then_some(wish)
    }

    /// Looks after a replica's rest, once in each beat. What to ask its peers, if it leads.
    fn look_after(&self, now: Instant) -> Option<Wish> {
        match self.inner.rest.asleep.get() {
            Some(Asleep::Following { until }) => {
                if now >= until {
                    self.stir(); // the leader is silent
                }
                None
            }
            Some(Asleep::Leading { .. }) => {
                let wish = self.wish(now);
                if wish.is_none() {
                    self.stir(); // it leads no more
                }
                wish
            }
            None => self.wish(now),
        }
    }

    /// Whether it rests as the leader, and not all peers have agreed for the shortest election timeout.
    fn has_missed(&self, now: Instant) -> bool {
        let quiet = self.inner.parts.settings.quiet();
        matches!(self.inner.rest.asleep.get(), Some(Asleep::Leading { agreed }) if now >= agreed + quiet)
    }

    async fn ask_to_rest(self, wish: Wish, asked: Instant) {
        let parts = &self.inner.parts;
        let asks = wish.peers.iter().map(|peer| parts.link.rest(*peer, parts.shard, wish.request));
        let answers = join_all(asks).await;
        let now = parts.ports.now();
        for (peer, _) in wish.peers.iter().zip(&answers).filter(|(_, answer)| **answer == Ok(true)) {
            self.inner.rest.agreed.borrow_mut().insert(*peer, asked);
        }
        let agree = wish.peers.iter().zip(&answers).filter(|(_, answer)| **answer == Ok(true)).map(|(peer, _)| peer);
        if 2 * (agree.filter(|peer| wish.voters.contains(*peer)).count() + 1) > wish.voters.len() {
            self.inner.rest.heard.set(Some(asked));
        }
        // Meanwhile it may have been used, or have lost its leadership.
        let holds = self.wish(now).is_some_and(|still| still.request == wish.request);
        if holds && answers.iter().all(|answer| *answer == Ok(true)) {
            self.inner.rest.unconfirmed.set(true);
            self.fall_asleep(Asleep::Leading { agreed: asked });
        } else if !self.rests() || answers.contains(&Ok(false)) || self.has_missed(now) {
            self.wake(); // and asks not again at once, whatever it is that a peer does not agree to
        }
    }
}

/// Looks after the rest of a core's replicas, for as long as there are any handles of them.
pub(crate) async fn look_after(ports: Ports, replicas: Weak<ReplicaMap>) {
    loop {
        ports.sleep(BEAT).await;
        let Some(replicas) = replicas.upgrade() else { return };
        let groups: Vec<ShardGroup> = replicas.borrow().values().cloned().collect();
        drop(replicas);
        let now = ports.now();
        groups.iter().for_each(|group| group.end_lost_transfer(now));
        let asks: Vec<_> = groups
            .into_iter()
            .filter_map(|group| group.look_after(now).map(|wish| group.ask_to_rest(wish, now)))
            .collect();
        if !asks.is_empty() {
            // Beside the next beat, which must not wait for a peer that does not answer.
            ports.spawn("raft-rest", Box::pin(async move { drop(join_all(asks).await) }));
        }
    }
}
