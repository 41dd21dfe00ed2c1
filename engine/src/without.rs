//! Whether the cluster would hold if a node, or a rack, left now: what each core knows of it, and what follows for stripes that are
//! written meanwhile.
//!
//! Leaders know which of their voters have caught up, homes know which stripes have fragments to spare, and whoever asks
//! knows the devices. Nothing is decided with it but what an operator is told: what is committed and acknowledged is safe
//! whatever this says.

use crate::nodes::NodeBoard;
use crate::placement::by_turns;
use crate::racks::Racks;
use crate::spread::{ByNode, Spread, survives_any};
use crate::stripe::shape_for;
use kiseki_types::fragment::{DeviceState, DeviceStatus, StripeShape};
use kiseki_types::group::{GroupView, VoterId, node_of};
use kiseki_types::ids::{DeviceId, LaneId, NodeId, PoolId, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Reasons that one answer names; further ones are counted (I-O5).
pub const REASONS_MAX: usize = 16;

/// Margins that stripes are counted by: a stripe has no more fragments to spare.
pub const MARGINS: usize = kiseki_types::limits::STRIPE_WIDTH_MAX;

/// Who leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// A node.
    Node(NodeId),
    /// All nodes of the rack that is called so.
    Rack(String),
}

impl Leaving {
    /// The members that leave.
    #[must_use]
    pub fn nodes(&self, board: &NodeBoard) -> BTreeSet<NodeId> {
        match self {
            Leaving::Node(node) => BTreeSet::from([*node]),
            Leaving::Rack(rack) => {
                let members = board.entries().into_iter().filter(|entry| entry.state.is_member());
                members.filter(|entry| entry.rack == *rack).map(|entry| entry.node).collect()
            }
        }
    }
}

impl fmt::Display for Leaving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Leaving::Node(node) => node.fmt(f),
            Leaving::Rack(rack) => write!(f, "rack {rack}"),
        }
    }
}

/// What a core, or all of a node, knows of what would be if a node or a rack left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Without {
    /// The first lane of the core that answers: a core may be asked through each of its lanes.
    pub core: LaneId,
    /// Shards led by whoever answers.
    pub led: u64,
    /// Shards of the cluster, where the control shard is led; otherwise 0.
    pub shards: u64,
    /// Pools and how they protect chunks, where the control shard is led.
    pub pools: Vec<(PoolId, StripeShape)>,
    /// Shards that would lose their majority, each named, and why.
    pub reasons: Vec<String>,
    /// Reasons that are not named.
    pub more: u64,
    /// Stripes of homes led here that can't be read without the node or the rack.
    pub reliant_stripes: u64,
    /// Most fragments that one node holds of a stripe.
    pub most_on_a_node: u64,
    /// Most fragments that one rack holds of a stripe.
    pub most_in_a_rack: u64,
    /// Stripes that wait for repair, by the number of fragments that they can lose.
    pub endangered: Vec<u64>,
    /// Cores whose repair has not looked at every stripe yet.
    pub cores_not_walked: u64,
}

impl Without {
    /// Names a reason, or counts it.
    pub fn add_reason(&mut self, reason: String) {
        match self.reasons.len() < REASONS_MAX {
            true => self.reasons.push(reason),
            false => self.more += 1,
        }
    }

    /// What two cores know together.
    #[must_use]
    pub fn and(mut self, other: Without) -> Without {
        self.led += other.led;
        self.shards += other.shards;
        self.pools.extend(other.pools);
        other.reasons.into_iter().for_each(|reason| self.add_reason(reason));
        self.more += other.more;
        self.reliant_stripes += other.reliant_stripes;
        self.most_on_a_node = self.most_on_a_node.max(other.most_on_a_node);
        self.most_in_a_rack = self.most_in_a_rack.max(other.most_in_a_rack);
        self.endangered.resize(self.endangered.len().max(other.endangered.len()), 0);
        self.endangered.iter_mut().zip(&other.endangered).for_each(|(sum, more)| *sum += more);
        self.cores_not_walked += other.cores_not_walked;
        self
    }

    /// Stripes that wait for repair and can lose at most `margin` fragments.
    #[must_use]
    pub fn endangered_at(&self, margin: u64) -> u64 {
        let upto = usize::try_from(margin).unwrap_or(MARGINS).saturating_add(1);
        self.endangered.iter().take(upto).sum()
    }
}

/// Why a shard that is led here would have no majority without some nodes; `None`: it would, or they have no vote in it.
#[must_use]
pub fn shard_without(shard: ShardId, view: &GroupView, leaving: &BTreeSet<NodeId>) -> Option<String> {
    let leaves = |voter: &VoterId| leaving.contains(&node_of(*voter));
    let is_ready = |voter: VoterId| {
        voter == view.voter || view.followers.iter().any(|other| other.voter == voter && other.is_ready())
    };
    for set in &view.voter_sets {
        if !set.iter().any(leaves) {
            continue;
        }
        let (needed, left) = (set.len() / 2 + 1, set.iter().filter(|voter| !leaves(voter)));
        let (ready, missing): (Vec<VoterId>, Vec<VoterId>) = left.copied().partition(|voter| is_ready(*voter));
        if ready.len() >= needed {
            continue;
        }
        if let [only] = set[..] {
            return Some(format!("shard {shard} has its only replica on {}", node_of(only)));
        }
        let state = |voter: &VoterId| {
            let other = view.followers.iter().find(|other| other.voter == *voter);
            match other {
                Some(other) if other.answers => format!("{} lacks {} entries", node_of(*voter), other.lag_entries),
                _ => format!("{} does not answer", node_of(*voter)),
            }
        };
        let missing: Vec<String> = missing.iter().map(state).collect();
        let because = if missing.is_empty() { String::new() } else { format!(": {}", missing.join(", ")) };
        return Some(format!(
            "shard {shard} would have {} of {} voters up to date, {needed} are needed{because}",
            ready.len(),
            set.len(),
        ));
    }
    None
}

/// Why stripes of a pool could not be written, or acknowledged, if some nodes left; `None`: they could.
///
/// - `devices`: as they are now, those of nodes that are silent unreachable; `is_awaited` and `unknown`: as of [`Spread::of`].
#[must_use]
pub fn pool_without(
    pool: (PoolId, StripeShape),
    devices: &[DeviceStatus],
    racks: &Racks,
    leaving: &BTreeSet<NodeId>,
    is_awaited: impl Fn(NodeId) -> bool,
    unknown: usize,
) -> Option<String> {
    let (pool, shape) = pool;
    let mut left = devices.to_vec();
    left.iter_mut()
        .filter(|device| leaving.contains(&device.node) && device.state.is_readable())
        .for_each(|device| device.state = DeviceState::Unreachable);
    let spread = Spread::of(&left, pool, |other| leaving.contains(&other) || is_awaited(other), unknown);
    let now = spread.shape_now(shape, |shape| placed(&left, racks, pool, shape));
    // Small chunks are stored as copies.
    for shape in [now, shape_for(shape, 1)] {
        let placed = placed(&left, racks, pool, shape);
        if !spread.is_enough(shape, &placed) {
            let (nodes, devices) = (placed.len(), placed.values().sum::<usize>());
            let text = if shape.data == 1 { format!("{} copies", shape.width()) } else { shape_text(shape) };
            return Some(format!(
                "pool {} could not take writes: a stripe of {text} would get {devices} devices on {nodes} nodes, too few to survive \
                 the loss of another device or node",
                pool.0
            ));
        }
    }
    None
}

/// How many fragments of a new stripe each node would take with the devices that there are; those that are being emptied
/// come last.
#[must_use]
pub fn placed(devices: &[DeviceStatus], racks: &Racks, pool: PoolId, shape: StripeShape) -> ByNode {
    let by_turns = |wanted: fn(DeviceState) -> bool| {
        let of_pool = devices.iter().filter(|device| device.pool == pool && wanted(device.state));
        let nodes: BTreeMap<DeviceId, NodeId> = of_pool.map(|device| (device.id, device.node)).collect();
        let order = nodes.keys().copied().collect();
        let turns = by_turns(order, |device| nodes[device], racks, (&ByNode::new(), &BTreeSet::new()), shape);
        turns.into_iter().map(|device| nodes[&device]).collect::<Vec<_>>()
    };
    let takes = by_turns(DeviceState::takes_fragments);
    let last = by_turns(|state| state == DeviceState::Evacuating);
    let mut placed = ByNode::new();
    takes.into_iter().chain(last).take(shape.width()).for_each(|node| *placed.entry(node).or_default() += 1);
    placed
}

/// Whether a new stripe could be read without any one rack.
#[must_use]
pub(crate) fn would_survive_any_rack(
    devices: &[DeviceStatus],
    racks: &Racks,
    pool: PoolId,
    shape: StripeShape,
) -> bool {
    survives_any(shape, &racks.by_domain(&placed(devices, racks, pool, shape)))
}

fn shape_text(shape: StripeShape) -> String {
    format!("{}+{}", shape.data, shape.parity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spread::tests::devices;
    use kiseki_types::group::{FollowerView, Leadership};
    use kiseki_types::ids::Term;

    fn view(sets: &[&[VoterId]], followers: &[(VoterId, u64, bool)]) -> GroupView {
        let follower = |(voter, lag_entries, answers): &(VoterId, u64, bool)| FollowerView {
            voter: *voter,
            lag_entries: *lag_entries,
            answers: *answers,
        };
        GroupView {
            voter: 1,
            leadership: Leadership { term: Term(3), leader: Some(NodeId(1)), is_here: true },
            voter_sets: sets.iter().map(|set| set.to_vec()).collect(),
            followers: followers.iter().map(follower).collect(),
            ..GroupView::default()
        }
    }

    #[test]
    fn a_shard_needs_a_majority_that_has_caught_up_without_the_node() {
        let all = [(2, 0, true), (3, 5, true), (4, 0, true)];
        let late = [(2, 0, true), (3, 9_000, true)];
        let dead = [(2, 0, true), (3, 0, false)];
        let again: VoterId = (1 << 48) | 3;
        let shard = ShardId(7);
        for (view, node, expected) in [
            (view(&[&[1, 2, 3]], &all), 2, None),
            (view(&[&[1, 2, 3]], &all), 1, None),
            (view(&[&[1, 2, 3]], &late), 1, Some("node 3 lacks 9000 entries")),
            (view(&[&[1, 2, 3]], &late), 2, Some("node 3 lacks 9000 entries")),
            (view(&[&[1, 2, 3]], &late), 3, None),
            (view(&[&[1, 2, 3]], &dead), 2, Some("node 3 does not answer")),
            (view(&[&[1, 2, 3]], &dead), 4, None),
            (view(&[&[1]], &[]), 1, Some("only replica on node 1")),
            (view(&[&[1]], &[]), 2, None),
            (view(&[&[1, 2, 3], &[1, 2, 4]], &all), 4, None),
            (view(&[&[1, 2, 3], &[1, 2, 4]], &dead), 1, Some("1 of 3 voters")),
            (view(&[&[1, 2, again]], &dead), 2, Some("does not answer")),
        ] {
            let reason = shard_without(shard, &view, &BTreeSet::from([NodeId(node)]));
            let case = format!("{:?} without {node}: {reason:?}", view.voter_sets);
            match expected {
                None => assert_eq!(reason, None, "{case}"),
                Some(words) => {
                    let reason = reason.unwrap_or_else(|| panic!("{case}"));
                    assert!(reason.contains(words) && reason.contains("s7"), "{case} lacks {words}");
                }
            }
        }
    }

    #[test]
    fn a_pool_takes_writes_without_a_node_when_they_could_be_acknowledged() {
        // (shape, devices by node, nodes that are silent, node that leaves, whether writes go on)
        type Case = ((u8, u8), &'static [usize], &'static [u64], u64, bool);
        let cases: &[Case] = &[
            ((1, 2), &[2, 2, 2], &[], 3, true),
            ((1, 2), &[2, 2, 2], &[2], 3, false),
            ((4, 2), &[4, 4, 4], &[], 1, true), // as copies
            ((4, 2), &[4, 4, 4], &[2], 1, false),
            ((4, 2), &[2, 2, 2, 2], &[], 1, true),
            ((4, 2), &[1, 1, 1, 1, 1, 1], &[], 6, true),
            ((4, 2), &[1, 1, 1, 1, 1, 1], &[5], 6, true), // as copies
            ((4, 2), &[1, 1, 1, 1], &[1, 2], 3, false),
            ((4, 0), &[4, 4, 4], &[2], 1, true), // promises nothing
            ((4, 2), &[1; 9], &[5], 6, true),
            ((4, 2), &[8, 8], &[], 2, true),
            ((1, 1), &[1, 1], &[], 2, false),
        ];
        for (shape, by_node, away, node, expected) in cases {
            let shape = StripeShape { data: shape.0, parity: shape.1 };
            let (leaving, alone) = (BTreeSet::from([NodeId(*node)]), Racks::default());
            let reason = pool_without((PoolId(0), shape), &devices(by_node, away), &alone, &leaving, |_| true, 0);
            assert_eq!(reason.is_none(), *expected, "{shape:?} on {by_node:?} less {away:?} and {node}: {reason:?}");
        }
    }

    #[test]
    fn a_rack_leaves_when_the_others_have_majorities_and_places() {
        let all = [(2, 0, true), (3, 0, true), (4, 0, true), (5, 0, true)];
        let leaving = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        let without = |sets, nodes| shard_without(ShardId(7), &view(sets, &all), &leaving(nodes));
        assert_eq!(without(&[&[1, 2, 3]], &[3, 4]), None, "one of its voters");
        assert!(without(&[&[1, 2, 3]], &[2, 3]).is_some_and(|reason| reason.contains("1 of 3 voters")));
        assert_eq!(without(&[&[1, 2, 3, 4, 5]], &[2, 3]), None, "three of five are left");
        let shape = StripeShape { data: 4, parity: 2 };
        let racks = |names: &[&str]| {
            let racks: Vec<(NodeId, &str)> = (1..).map(NodeId).zip(names.iter().copied()).collect();
            Racks::of(racks.into_iter())
        };
        let pool = |by_node, racks, nodes| {
            pool_without((PoolId(0), shape), &devices(by_node, &[]), &racks, &leaving(nodes), |_| true, 0)
        };
        assert_eq!(pool(&[2; 6], racks(&["a", "a", "b", "b", "c", "c"]), &[5, 6]), None, "4 nodes are left");
        let two_left = racks(&["a", "b", "c", "c", "c", "c"]);
        assert_eq!(pool(&[2; 6], two_left, &[3, 4, 5, 6]), None, "2 nodes with 4 devices take copies");
        assert!(pool(&[2; 6], racks(&["a", "c", "c", "c", "c", "c"]), &[2, 3, 4, 5, 6]).is_some(), "1 node is left");
        let three = racks(&["a", "a", "b", "b", "c", "c"]);
        let most = three.by_domain(&placed(&devices(&[2; 6], &[]), &three, PoolId(0), shape)).into_values().max();
        assert_eq!(most, Some(2), "what a rack takes of a new stripe");
    }

    #[test]
    fn i_o5_reasons_are_bounded_and_answers_add_up() {
        let mut one = Without { endangered: vec![1, 2], led: 3, ..Without::default() };
        (0..REASONS_MAX + 4).for_each(|number| one.add_reason(number.to_string()));
        assert_eq!((one.reasons.len(), one.more), (REASONS_MAX, 4), "I-O5");
        let other = Without { endangered: vec![4, 0, 9], most_on_a_node: 2, more: 1, ..Without::default() };
        let both = one.and(other);
        assert_eq!((both.led, both.more, both.most_on_a_node), (3, 5, 2));
        assert_eq!((both.endangered_at(0), both.endangered_at(1), both.endangered_at(50)), (5, 7, 16));
    }
}
