//! Whether the cluster would hold if a node, or a whole rack, left now: what its members know, put together and said in plain words. What
//! stands behind it is the engine's (`kiseki_engine::without`); here it is asked and judged.

use crate::core_node::CoreNode;
use crate::executor::CoreShared;
use crate::status::Phase;
use kiseki_engine::message::NodeState;
use kiseki_engine::nodes::Standing;
use kiseki_engine::racks::Racks;
use kiseki_engine::spread::ByNode;
use kiseki_engine::without::{Leaving, Without, placed, pool_without};
use kiseki_types::fragment::{DeviceStatus, StripeShape};
use kiseki_types::ids::{NodeId, PoolId};
use kiseki_types::runtime::Instant;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Whether the cluster would hold without a node or a rack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReport {
    /// Whether it would.
    pub ok: bool,
    /// Without which node; 0 when it is about a rack.
    pub node: u64,
    /// Without all nodes of which rack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// Whether that is the only one: then nothing is served while it is away, and `ok` says only that it serves now.
    pub alone: bool,
    /// Why not, each with the shard, node or pool that it is about.
    pub reasons: Vec<String>,
}

impl HealthReport {
    /// It is not known, or known not to hold.
    #[must_use]
    pub fn not_ok(node: NodeId, reason: impl Into<String>) -> HealthReport {
        HealthReport::of(&Leaving::Node(node), vec![reason.into()])
    }

    /// What keeps a node or a rack; nothing when the cluster would hold.
    fn of(about: &Leaving, reasons: Vec<String>) -> HealthReport {
        let (node, rack) = match about {
            Leaving::Node(node) => (node.0, None),
            Leaving::Rack(rack) => (0, Some(rack.clone())),
        };
        HealthReport { ok: reasons.is_empty(), node, rack, alone: false, reasons }
    }

    /// Who it is about, in words.
    #[must_use]
    pub fn about(&self) -> String {
        match &self.rack {
            Some(rack) => Leaving::Rack(rack.clone()).to_string(),
            None => NodeId(self.node).to_string(),
        }
    }
}

/// What a judgment rests on.
#[derive(Clone, Debug)]
struct Known {
    about: Leaving,
    /// The members that would leave.
    leaving: BTreeSet<NodeId>,
    racks: Racks,
    /// Other members that are being drained.
    draining: Vec<NodeId>,
    /// Members but those in question that do not answer, and whether each is expected back.
    silent: BTreeMap<NodeId, bool>,
    /// What each member says, or why it does not.
    answers: Vec<(NodeId, Result<Without, String>)>,
    devices: Vec<DeviceStatus>,
    /// Members of which it is not known what devices they have.
    unknown: usize,
    /// Shards of which a replica is here that sees no leader.
    leaderless: BTreeSet<u64>,
}

/// Asks all members what would be if `about` left, and judges.
pub async fn look(shared: &CoreShared, node: &CoreNode, about: Leaving, now: Instant) -> HealthReport {
    let core = node.engine().core();
    let own = core.nodes.own();
    let not_ok = |reason| HealthReport::of(&about, vec![reason]);
    let phase = shared.board.lock().phase;
    if phase != Phase::Serving {
        let doing = if phase == Phase::Starting { "starting" } else { "stopping" };
        return not_ok(format!("{own} is {doing}"));
    }
    if core.nodes.is_alone() && about == Leaving::Node(own) {
        return HealthReport { alone: true, ..HealthReport::of(&about, Vec::new()) };
    }
    let members: BTreeMap<NodeId, NodeState> = core.nodes.entries().iter().map(|e| (e.node, e.state)).collect();
    let leaving = about.nodes(&core.nodes);
    match &about {
        Leaving::Node(node) if !members.get(node).is_some_and(|state| state.is_member()) => {
            return not_ok(format!("{node} is no member of the cluster; `kiseki node list` shows them"));
        }
        Leaving::Rack(rack) if leaving.is_empty() => {
            return not_ok(format!("no node says that it is in rack {rack}; `kiseki node list` shows the racks"));
        }
        _ => {}
    }
    let answers = node.engine().calls().without(about.clone()).await;
    let other = |node: &NodeId| !leaving.contains(node) && members[node].is_member();
    let silent = members.keys().filter(|node| other(node)).filter_map(|node| match core.nodes.standing(*node, now) {
        Standing::Here => None,
        standing => Some((*node, standing == Standing::Awaited)),
    });
    let leaderless =
        shared.board.lock().shards().filter(|shard| shard.leader.is_none()).map(|shard| shard.shard).collect();
    let known = Known {
        about: about.clone(),
        draining: members.keys().filter(|node| other(node) && members[node] == NodeState::Draining).copied().collect(),
        silent: silent.collect(),
        answers: answers.into_iter().map(|(node, it)| (node, it.map_err(|error| error.to_string()))).collect(),
        devices: core.devices.devices(),
        unknown: core.nodes.never_heard(now).into_iter().filter(|node| !leaving.contains(node)).count(),
        racks: core.nodes.racks(),
        leaderless,
        leaving,
    };
    HealthReport::of(&about, judge(&known))
}

/// Why the cluster would not hold; nothing when it would.
fn judge(known: &Known) -> Vec<String> {
    let mut reasons: Vec<String> =
        known.draining.iter().map(|node| format!("{node} is being drained; one node leaves at a time")).collect();
    for (node, answer) in &known.answers {
        match answer {
            Err(error) if !known.silent.contains_key(node) && !known.leaving.contains(node) => {
                reasons.push(format!("{node} does not say what it knows: {error}"));
            }
            _ => {}
        }
    }
    let answers = || known.answers.iter().filter_map(|(node, answer)| Some((*node, answer.as_ref().ok()?)));
    let all = answers().map(|(_, known)| known.clone()).reduce(Without::and).unwrap_or_default();
    shards(known, &all, &mut reasons);
    let pools: BTreeMap<PoolId, StripeShape> = all.pools.iter().copied().collect();
    for pool in pools.iter().map(|(pool, shape)| (*pool, *shape)) {
        let is_awaited = |node: NodeId| known.silent.get(&node) == Some(&true);
        let (devices, racks) = (&known.devices, &known.racks);
        reasons.extend(pool_without(pool, devices, racks, &known.leaving, is_awaited, known.unknown));
    }
    stripes(known, &all, &pools, &mut reasons);
    for (node, _) in answers().filter(|(_, known)| known.cores_not_walked > 0) {
        reasons.push(format!("repair of {node} has not looked at every stripe since nodes or devices changed; wait"));
    }
    reasons
}

fn shards(known: &Known, all: &Without, reasons: &mut Vec<String>) {
    if all.shards == 0 {
        reasons.push("the control shard s0 has no leader that answers".to_owned());
    } else if all.led != all.shards {
        let named: Vec<String> = known.leaderless.iter().take(8).map(|shard| format!("s{shard}")).collect();
        let named = if named.is_empty() { String::new() } else { format!(": {} have none here", named.join(", ")) };
        reasons.push(format!("{} of {} shards are led just now{named}", all.led, all.shards));
    }
    reasons.extend(all.reasons.iter().cloned());
    if all.more > 0 {
        reasons.push(format!("{} more shards would lose their majority", all.more));
    }
}

fn stripes(known: &Known, all: &Without, pools: &BTreeMap<PoolId, StripeShape>, reasons: &mut Vec<String>) {
    let about = &known.about;
    let leaves = |device: &&DeviceStatus| known.leaving.contains(&device.node) && device.state.is_readable();
    let has_devices = known.devices.iter().any(|device| leaves(&device));
    if all.reliant_stripes > 0 {
        reasons.push(format!(
            "{} stripes can't be read without {about}: it holds more of their fragments than they can lose",
            all.reliant_stripes
        ));
    }
    let most_of = |counts: &dyn Fn(&ByNode) -> Option<usize>| {
        let placed =
            pools.iter().filter_map(|(pool, shape)| counts(&placed(&known.devices, &known.racks, *pool, *shape)));
        placed.max().unwrap_or_default() as u64
    };
    let most_on_a_node = all.most_on_a_node.max(most_of(&|by_node| by_node.values().copied().max()));
    let most = match about {
        Leaving::Node(_) => most_on_a_node,
        Leaving::Rack(_) => {
            let in_rack = |by_node: &ByNode| known.racks.by_domain(by_node).into_values().max();
            all.most_in_a_rack.max(most_of(&in_rack))
        }
    };
    if has_devices && most > 0 {
        let endangered = all.endangered_at(most - 1);
        if endangered > 0 {
            reasons.push(format!(
                "{endangered} stripes wait for repair and can't afford to lose {most} fragments with {about}"
            ));
        }
    }
    let awaited: Vec<String> =
        known.silent.iter().filter(|(_, back)| **back).map(|(node, _)| node.to_string()).collect();
    let parity = pools.values().map(|shape| u64::from(shape.parity)).min();
    let missed = most_on_a_node * awaited.len() as u64 + most * u64::from(has_devices);
    if !awaited.is_empty() && parity.is_some_and(|parity| missed > parity) {
        reasons.push(format!(
            "{} does not answer: without {about} as well a stripe may miss {missed} fragments, and can lose {}",
            awaited.join(", "),
            parity.unwrap_or_default()
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_types::fragment::DeviceState;
    use kiseki_types::ids::DeviceId;

    const COPIES: StripeShape = StripeShape { data: 1, parity: 2 };

    /// Three nodes with two devices each, in good order; node 1 is asked about.
    fn sound() -> Known {
        let device = |number: u8| DeviceStatus {
            id: DeviceId([number; 16]),
            node: NodeId(u64::from(number / 2) + 1),
            name: String::new(),
            pool: PoolId(0),
            capacity_bytes: 1,
            free_bytes: 1,
            lanes_bytes: 1,
            state: DeviceState::Healthy,
            read_errors: 0,
        };
        let answer = |node: u64| {
            let (shards, pools) = if node == 2 { (9, vec![(PoolId(0), COPIES)]) } else { (0, Vec::new()) };
            (NodeId(node), Ok(Without { led: 3, shards, pools, most_on_a_node: 1, ..Without::default() }))
        };
        let answers = (1..=3).map(answer).collect();
        Known {
            about: Leaving::Node(NodeId(1)),
            leaving: BTreeSet::from([NodeId(1)]),
            racks: Racks::default(),
            draining: Vec::new(),
            silent: BTreeMap::new(),
            answers,
            devices: (0..6).map(device).collect(),
            unknown: 0,
            leaderless: BTreeSet::new(),
        }
    }

    fn edit(known: &mut Known, node: usize, edit: impl FnOnce(&mut Without)) {
        edit(known.answers[node].1.as_mut().unwrap());
    }

    /// A name, what is not in order, and words of the reason.
    type Case = (&'static str, fn(&mut Known), &'static str);

    #[test]
    fn what_is_not_in_order_is_said_and_nothing_else() {
        assert_eq!(judge(&sound()), Vec::<String>::new());
        let cases: &[Case] = &[
            ("drain", |known| known.draining.push(NodeId(3)), "node 3 is being drained"),
            ("no answer", |known| known.answers[2].1 = Err("late".to_owned()), "node 3 does not say"),
            ("leader", |known| edit(known, 0, |it| it.led = 2), "8 of 9 shards are led"),
            ("control", |known| edit(known, 1, |it| it.shards = 0), "control shard s0 has no leader"),
            ("shard", |known| edit(known, 0, |it| it.add_reason("shard s7 is late".to_owned())), "shard s7"),
            ("relies", |known| edit(known, 2, |it| it.reliant_stripes = 4), "4 stripes can't be read without node 1"),
            ("backlog", |known| edit(known, 2, |it| it.endangered = vec![5]), "5 stripes wait for repair"),
            ("walk", |known| edit(known, 1, |it| it.cores_not_walked = 1), "repair of node 2"),
        ];
        for (name, break_it, words) in cases {
            let mut known = sound();
            break_it(&mut known);
            let reasons = judge(&known);
            assert!(reasons.iter().any(|reason| reason.contains(words)), "{name}: {reasons:?}");
        }
        let mut safe = sound();
        edit(&mut safe, 2, |it| it.endangered = vec![0, 0, 7]);
        assert_eq!(judge(&safe), Vec::<String>::new(), "stripes that can lose what the node holds may wait");
    }

    #[test]
    fn a_rack_is_held_against_what_its_nodes_hold_together() {
        let mut known = sound();
        known.racks = Racks::of([(NodeId(1), "a"), (NodeId(2), "a"), (NodeId(3), "b")].into_iter());
        (known.about, known.leaving) = (Leaving::Rack("b".to_owned()), BTreeSet::from([NodeId(3)]));
        assert_eq!(judge(&known), Vec::<String>::new(), "one node of three");
        edit(&mut known, 1, |it| (it.endangered, it.most_in_a_rack) = (vec![0, 4], 2));
        let reasons = judge(&known);
        assert!(reasons.iter().any(|reason| reason.contains("lose 2 fragments with rack b")), "{reasons:?}");
        (known.about, known.leaving) = (Leaving::Rack("a".to_owned()), BTreeSet::from([NodeId(1), NodeId(2)]));
        let reasons = judge(&known);
        assert!(reasons.iter().any(|reason| reason.contains("pool 0 could not take writes")), "{reasons:?}");
    }

    #[test]
    fn with_one_of_three_nodes_down_no_other_may_leave() {
        let mut known = sound();
        known.silent.insert(NodeId(3), true);
        known.answers[2].1 = Err("it does not answer".to_owned());
        edit(&mut known, 0, |it| (it.led, it.shards) = (6, 0));
        known
            .devices
            .iter_mut()
            .filter(|one| one.node == NodeId(3))
            .for_each(|one| one.state = DeviceState::Unreachable);
        let reasons = judge(&known);
        assert!(reasons.iter().any(|reason| reason.contains("pool 0 could not take writes")), "{reasons:?}");
        assert!(!reasons.iter().any(|reason| reason.contains("does not say")), "who is silent is no news: {reasons:?}");
        edit(&mut known, 0, |it| it.most_on_a_node = 2);
        assert!(judge(&known).iter().any(|reason| reason.contains("node 3 does not answer")));
    }
}
