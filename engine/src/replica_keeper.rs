//! Keeps the voters of a group right, on the node that leads it: enough of them, on distinct nodes, none on a node that is
//! drained, removed or silent for long, and the leader where it belongs.
//!
//! `plan` decides, [`keep`] does it, one change at a time. A keeper remembers nothing that the next leader's would have to know.
//!
//! - A group has three voters, or one: two would lose their majority with either. So it grows from one to three in one change,
//!   and a group that has three keeps them, however few nodes are left.
//! - Voters are the first nodes of an order that each shard draws for itself (rendezvous hashing), so that shards spread and a node
//!   that comes or goes moves only its own share. Racks take turns in it, so that a rack takes no majority away where there
//!   are racks enough. Nothing moves for the order's sake while a voter is silent.
//! - A leader does not take its own vote away: it gives leadership away first.

#[cfg(test)]
mod tests;

use crate::api::StoreError;
use crate::message::NodeState;
use crate::nodes::NodeBoard;
use crate::placement::turns;
use crate::racks::Domain;
use kiseki_types::group::{RaftGroup, ReplicasError, VoterId, node_of};
use kiseki_types::ids::{NodeId, ShardId};
use kiseki_types::runtime::{Instant, LocalBoxFuture, Ports, RuntimeExt};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use tracing::{debug, info};

/// Voters of a group.
pub const VOTERS: usize = 3;

/// Voters of the control shard from so many active nodes on.
pub const CONTROL_VOTERS: usize = 5;

/// A voter whose node was not heard of for so long is replaced.
pub const NODE_LOST_AFTER: Duration = Duration::from_secs(300);

/// A node that was heard of within this time is there.
const HERE_WITHIN: Duration = Duration::from_secs(10);

/// How long what a node said it hosts is believed.
const HOSTED_FRESH: Duration = Duration::from_secs(30);

/// A node that does not take a replica is asked again after this time.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// A leader leads at least so long before it gives leadership away for the order's sake.
const LEAD_MIN: Duration = Duration::from_secs(30);

/// Time between two attempts to give leadership away.
const TRANSFER_INTERVAL: Duration = Duration::from_secs(60);

/// Pause while something is to be done.
const PAUSE_BUSY: Duration = Duration::from_secs(1);

/// Pause while nothing is.
const PAUSE_IDLE: Duration = Duration::from_secs(5);

/// Asks a node to have a replica of a shard; answers the voter that the replica is.
pub type AskHost = Rc<dyn Fn(NodeId, ShardId) -> LocalBoxFuture<'static, Result<VoterId, StoreError>>>;

/// Gives leadership to a voter, so that no request that is being answered fails by it.
pub type PassOn = Rc<dyn Fn(VoterId) -> LocalBoxFuture<'static, Result<(), ReplicasError>>>;

/// What a keeper works with.
pub struct KeeperInputs {
    /// Time of the core.
    pub ports: Ports,
    /// The group, led here.
    pub group: Rc<dyn RaftGroup>,
    /// The nodes.
    pub nodes: Rc<NodeBoard>,
    /// Asks a node to have a replica.
    pub ask_host: AskHost,
    /// Gives leadership away.
    pub pass_on: PassOn,
}

/// What is known of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    node: NodeId,
    /// What it fails with.
    domain: Domain,
    /// It may be given replicas: not drained, not removed.
    is_active: bool,
    heard: Heard,
    /// It did not take a replica lately.
    declined: bool,
    /// The voter that it has, as it said lately.
    hosts: Option<VoterId>,
}

/// How long ago a node was heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// Just now.
    Here,
    /// A while ago.
    Quiet,
    /// Too long ago to wait for it.
    Lost,
}

/// What a decision rests on.
#[derive(Clone, Debug)]
struct View {
    shard: ShardId,
    own: NodeId,
    /// The voters; those of before and after while they change.
    voters: Vec<VoterId>,
    /// All nodes that are recorded, this one among them.
    nodes: Vec<Candidate>,
    /// Whether a change of voters has ended since this replica leads: one that an earlier leader began may be half done.
    is_settled: bool,
    /// Whether leadership may be given away now.
    may_transfer: bool,
    /// Whether it may be for the order's sake.
    may_balance: bool,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Nothing.
    Rest,
    /// Ask a node to have a replica.
    Ask(NodeId),
    /// Make these the voters.
    SetVoters(Vec<VoterId>),
    /// Give leadership to a voter.
    Transfer(VoterId),
}

/// A node's lot for a shard: the highest come first.
fn lot(shard: ShardId, node: NodeId) -> u64 {
    let mix = |value: u64| {
        let value = (value ^ value >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let value = (value ^ value >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        value ^ value >> 33
    };
    mix(mix(shard.0 ^ 0x6b69_7365_6b69_2131) ^ node.0)
}

/// Decides what is to be done next.
fn plan(view: &View) -> Step {
    let voter_nodes: BTreeSet<NodeId> = view.voters.iter().copied().map(node_of).collect();
    let wanted = wanted_nodes(view, &voter_nodes);
    let candidate = |node: NodeId| view.nodes.iter().find(|candidate| candidate.node == node);
    let hosts = |node: NodeId| candidate(node).and_then(|candidate| candidate.hosts);
    let is_new = |node: &NodeId| *node != view.own && !voter_nodes.contains(node);
    let unasked = wanted.iter().find(|node| is_new(node) && hosts(**node).is_none());
    if let Some(node) = unasked {
        return Step::Ask(*node);
    }
    // I-L10: a voter that lost its log came back under a higher number, and takes its own place.
    let voter_on = |node: NodeId| {
        let voting = view.voters.iter().copied().filter(|voter| node_of(*voter) == node).max();
        voting.max(hosts(node).filter(|_| node != view.own))
    };
    let target: BTreeSet<VoterId> = wanted.iter().filter_map(|node| voter_on(*node)).collect();
    let now: BTreeSet<VoterId> = view.voters.iter().copied().collect();
    if !wanted.contains(&view.own) {
        return give_way(view, &target, &now);
    }
    let is_half_done = !view.is_settled && now.len() > 1;
    if target != now || is_half_done {
        return Step::SetVoters(target.into_iter().collect());
    }
    let is_here = |node: NodeId| candidate(node).is_some_and(|node| node.is_active && node.heard == Heard::Here);
    let first = now.iter().copied().filter(|voter| is_here(node_of(*voter)));
    let first = first.max_by_key(|voter| lot(view.shard, node_of(*voter)));
    match first.filter(|voter| node_of(*voter) != view.own) {
        Some(first) if view.may_balance && view.may_transfer => return Step::Transfer(first),
        _ => {}
    }
    // Whether a voter lost its log is told by nobody but its node.
    let stale = |node: &&NodeId| {
        **node != view.own && candidate(**node).is_some_and(|node| node.hosts.is_none() && !node.declined)
    };
    voter_nodes.iter().find(stale).map_or(Step::Rest, |node| Step::Ask(*node))
}

/// This node is to vote no more: another voter leads first, and takes the vote away then.
fn give_way(view: &View, target: &BTreeSet<VoterId>, now: &BTreeSet<VoterId>) -> Step {
    let is_here = |voter: &VoterId| {
        let node = node_of(*voter);
        view.nodes.iter().any(|candidate| candidate.node == node && candidate.heard == Heard::Here)
    };
    let staying = target.intersection(now).copied();
    let heirs: Vec<VoterId> = staying.filter(|voter| node_of(*voter) != view.own).collect();
    let heir = heirs.iter().copied().filter(is_here).max_by_key(|voter| lot(view.shard, node_of(*voter)));
    match heir {
        Some(heir) if view.may_transfer => Step::Transfer(heir),
        None if heirs.is_empty() && target != now => Step::SetVoters(target.union(now).copied().collect()),
        _ => Step::Rest,
    }
}

/// The nodes that are to vote. Those of them that vote already and can't be replaced stay.
fn wanted_nodes(view: &View, voter_nodes: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let votes = |candidate: &Candidate| voter_nodes.contains(&candidate.node);
    let is_lost = |candidate: &Candidate| candidate.node != view.own && candidate.heard == Heard::Lost;
    let fits =
        |candidate: &Candidate| candidate.is_active && !is_lost(candidate) && (votes(candidate) || !candidate.declined);
    let mut fitting: Vec<&Candidate> = view.nodes.iter().filter(|candidate| fits(candidate)).collect();
    let active_count = view.nodes.iter().filter(|candidate| candidate.is_active).count();
    let to_be_had = fitting.len() + voter_nodes.len() - fitting.iter().filter(|candidate| votes(candidate)).count();
    let most = active_count.min(to_be_had);
    let count = if view.shard == ShardId::CONTROL && most >= CONTROL_VOTERS {
        CONTROL_VOTERS
    } else if most >= VOTERS || voter_nodes.len() >= VOTERS {
        VOTERS
    } else {
        1
    };
    // Nothing moves for the order's sake while a voter is silent, nor ever a group of one.
    let is_calm = voter_nodes.iter().all(|node| {
        let heard = view.nodes.iter().find(|candidate| candidate.node == *node).map(|candidate| candidate.heard);
        *node == view.own || heard == Some(Heard::Here)
    });
    let keeps = |candidate: &Candidate| match count {
        1 => candidate.node == view.own,
        _ => !is_calm && votes(candidate),
    };
    fitting.sort_by_key(|candidate| std::cmp::Reverse((keeps(candidate), lot(view.shard, candidate.node))));
    let mut fitting = turns(fitting, |candidate| candidate.domain, BTreeMap::new());
    fitting.sort_by_key(|candidate| !keeps(candidate)); // stable: who stays comes first, then turns and lots decide
    let mut wanted: BTreeSet<NodeId> = fitting.iter().take(count).map(|candidate| candidate.node).collect();
    // Who votes and should not does so until another node can take its place: first those that answer.
    let mut others: Vec<NodeId> = voter_nodes.difference(&wanted).copied().collect();
    let answers = |node: &NodeId| {
        let heard = view.nodes.iter().find(|candidate| candidate.node == *node).map(|candidate| candidate.heard);
        *node == view.own || heard == Some(Heard::Here)
    };
    others.sort_by_key(|node| std::cmp::Reverse((answers(node), lot(view.shard, *node))));
    let missing = count.saturating_sub(wanted.len());
    wanted.extend(others.into_iter().take(missing));
    wanted
}

/// What a keeper remembers between two steps.
struct Memory {
    began: Instant,
    settled: bool,
    transferred: Option<Instant>,
    hosted: BTreeMap<NodeId, (Instant, VoterId)>,
    declined: BTreeMap<NodeId, Instant>,
}

impl Memory {
    fn view(&self, inputs: &KeeperInputs) -> View {
        let (now, nodes, racks) = (inputs.ports.now(), &inputs.nodes, inputs.nodes.racks());
        let candidate = |node: NodeId, state: NodeState| {
            let silent = now.since(nodes.last_heard(node).unwrap_or(self.began));
            let heard = match nodes.last_heard(node) {
                _ if node == nodes.own() => Heard::Here,
                Some(_) if silent < HERE_WITHIN => Heard::Here,
                _ if silent < NODE_LOST_AFTER => Heard::Quiet,
                _ => Heard::Lost,
            };
            let hosted = self.hosted.get(&node).filter(|(at, _)| now.since(*at) < HOSTED_FRESH);
            Candidate {
                node,
                domain: racks.domain(node),
                is_active: state == NodeState::Active,
                heard,
                declined: self.declined.get(&node).is_some_and(|at| now.since(*at) < RETRY_AFTER),
                hosts: hosted.map(|(_, voter)| *voter),
            }
        };
        let entries = nodes.entries();
        let is_recorded = entries.iter().any(|entry| entry.node == nodes.own());
        let unrecorded = (!is_recorded).then(|| candidate(nodes.own(), NodeState::Active));
        View {
            shard: inputs.group.shard(),
            own: nodes.own(),
            voters: inputs.group.voters(),
            nodes: entries.iter().map(|entry| candidate(entry.node, entry.state)).chain(unrecorded).collect(),
            is_settled: self.settled,
            may_transfer: self.transferred.is_none_or(|at| now.since(at) >= TRANSFER_INTERVAL),
            may_balance: now.since(self.began) >= LEAD_MIN,
        }
    }

    async fn take(&mut self, inputs: &KeeperInputs, step: Step) {
        let shard = inputs.group.shard();
        match step {
            Step::Rest => {}
            Step::Ask(node) => match (inputs.ask_host)(node, shard).await {
                Ok(voter) if node_of(voter) == node => {
                    self.hosted.insert(node, (inputs.ports.now(), voter));
                }
                answer => {
                    debug!(%shard, %node, answer = ?answer.map_err(|error| error.to_string()), "a node has no replica");
                    self.declined.insert(node, inputs.ports.now());
                }
            },
            Step::SetVoters(voters) => {
                let before = inputs.group.voters();
                let nodes: Vec<NodeId> = voters.iter().copied().map(node_of).collect();
                match inputs.group.set_voters(voters.clone()).await {
                    Ok(()) => {
                        self.settled = true;
                        if before != voters {
                            info!(%shard, ?nodes, "the voters of a shard have changed");
                        }
                    }
                    Err(error) => {
                        debug!(%shard, ?nodes, %error, "the voters of a shard stay as they are");
                        let new = voters.iter().filter(|voter| !before.contains(voter));
                        self.declined.extend(new.map(|voter| (node_of(*voter), inputs.ports.now())));
                    }
                }
            }
            Step::Transfer(voter) => {
                self.transferred = Some(inputs.ports.now());
                if let Err(error) = (inputs.pass_on)(voter).await {
                    debug!(%shard, voter, %error, "leadership stays here");
                }
            }
        }
    }
}

/// How many voters a shard is to have among so many members.
#[must_use]
pub fn voters_wanted(shard: ShardId, members: usize) -> usize {
    match shard {
        ShardId::CONTROL if members >= CONTROL_VOTERS => CONTROL_VOTERS,
        _ if members >= VOTERS => VOTERS,
        _ => 1,
    }
}

/// Who could lead instead of this node, the best first: voters whose nodes answer, of those such as stay, and of those by lot.
#[must_use]
pub(crate) fn heirs(shard: ShardId, nodes: &NodeBoard, voters: &[VoterId], now: Instant) -> Vec<VoterId> {
    let mut heirs: Vec<VoterId> = voters.iter().copied().filter(|voter| node_of(*voter) != nodes.own()).collect();
    heirs.sort_by_key(|voter| {
        let node = node_of(*voter);
        let is_here = nodes.last_heard(node).is_some_and(|at| now.since(at) < HERE_WITHIN);
        let stays = nodes.entry(node).is_some_and(|entry| entry.state == NodeState::Active);
        std::cmp::Reverse((is_here, stays, lot(shard, node)))
    });
    heirs
}

/// Keeps the voters of a group that this node leads right, until it is dropped.
pub async fn keep(inputs: KeeperInputs) {
    let mut memory = Memory {
        began: inputs.ports.now(),
        settled: false,
        transferred: None,
        hosted: BTreeMap::new(),
        declined: BTreeMap::new(),
    };
    loop {
        let step = plan(&memory.view(&inputs));
        let pause = if step == Step::Rest { PAUSE_IDLE } else { PAUSE_BUSY };
        memory.take(&inputs, step).await;
        inputs.ports.sleep(pause).await;
    }
}
