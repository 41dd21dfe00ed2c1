//! What a keeper does, case by case.

use super::*;

const SHARD: ShardId = ShardId(1024);

/// The number of a node's replica that began anew once.
fn again(node: u64) -> VoterId {
    (1 << 48) + node
}

/// A node that is active, answers and hosts what it votes as.
fn node(number: u64) -> Candidate {
    let node = NodeId(number);
    Candidate {
        node,
        domain: Domain::Node(node),
        is_active: true,
        heard: Heard::Here,
        declined: false,
        hosts: Some(number),
    }
}

/// Nodes 1 to `count`.
fn nodes(count: u64) -> Vec<Candidate> {
    (1..=count).map(node).collect()
}

/// A shard whose order begins with these nodes, among as many as are compared.
fn shard_with_order(order: &[u64]) -> ShardId {
    let fits = |shard: &ShardId| order.is_sorted_by_key(|node| std::cmp::Reverse(lot(*shard, NodeId(*node))));
    (1024..).map(ShardId).find(fits).expect("some shard draws this order")
}

fn view(own: u64, voters: &[VoterId], nodes: Vec<Candidate>) -> View {
    View {
        shard: SHARD,
        own: NodeId(own),
        voters: voters.to_vec(),
        nodes,
        is_settled: true,
        may_transfer: true,
        may_balance: false,
    }
}

fn with(mut nodes: Vec<Candidate>, number: u64, change: impl Fn(&mut Candidate)) -> Vec<Candidate> {
    nodes.iter_mut().filter(|candidate| candidate.node == NodeId(number)).for_each(change);
    nodes
}

fn drained(candidate: &mut Candidate) {
    candidate.is_active = false;
}

fn lost(candidate: &mut Candidate) {
    candidate.heard = Heard::Lost;
}

fn quiet(candidate: &mut Candidate) {
    candidate.heard = Heard::Quiet;
}

fn unasked(candidate: &mut Candidate) {
    candidate.hosts = None;
}

fn declining(candidate: &mut Candidate) {
    (candidate.hosts, candidate.declined) = (None, true);
}

#[test]
fn voters_are_set_as_the_nodes_allow() {
    let order = [1, 2, 3, 4, 5];
    let set = |voters: &[VoterId]| Step::SetVoters(voters.to_vec());
    for (what, own, voters, nodes, expected) in [
        ("alone", 1, vec![1], nodes(1), Step::Rest),
        ("two nodes would need each other", 1, vec![1], nodes(2), Step::Rest),
        ("a third node is asked", 1, vec![1], with(nodes(3), 3, unasked), Step::Ask(NodeId(3))),
        ("from one to three at once", 1, vec![1], nodes(3), set(&[1, 2, 3])),
        ("never to two", 1, vec![1], with(nodes(3), 3, declining), Step::Rest),
        ("another one instead", 1, vec![1], with(nodes(4), 3, declining), set(&[1, 2, 4])),
        ("as it should be", 1, vec![1, 2, 3], nodes(5), Step::Rest),
        (
            "its log was lost",
            1,
            vec![1, 2, 3],
            with(nodes(3), 2, |node| node.hosts = Some(again(2))),
            set(&[1, 3, again(2)]),
        ),
        ("an old answer", 1, vec![1, 3, again(2)], nodes(3), Step::Rest),
        ("a change was cut off", 1, vec![1, 2, 3, again(2)], nodes(3), set(&[1, 3, again(2)])),
        ("a silent voter is waited for", 1, vec![1, 2, 3], with(nodes(4), 2, quiet), Step::Rest),
        ("a lost one is replaced", 1, vec![1, 2, 3], with(nodes(4), 2, lost), set(&[1, 3, 4])),
        (
            "but not by one that is lost too",
            1,
            vec![1, 2, 3],
            with(with(with(nodes(5), 2, lost), 4, lost), 4, unasked),
            set(&[1, 3, 5]),
        ),
        ("if there is another", 1, vec![1, 2, 3], with(nodes(3), 2, lost), Step::Rest),
        ("that is asked first", 1, vec![1, 2, 3], with(with(nodes(4), 2, lost), 4, unasked), Step::Ask(NodeId(4))),
        ("that takes it", 1, vec![1, 2, 3], with(with(nodes(4), 2, lost), 4, declining), Step::Rest),
        ("a drained one is replaced", 1, vec![1, 2, 3], with(nodes(4), 3, drained), set(&[1, 2, 4])),
        ("three stay three", 1, vec![1, 2, 3], with(nodes(3), 3, drained), Step::Rest),
        ("nothing moves while one is silent", 1, vec![1, 3, 4], with(nodes(4), 3, quiet), Step::Rest),
        ("the order decides when all are there", 1, vec![1, 3, 4], nodes(4), set(&[1, 2, 3])),
        ("too many: the lost one goes", 1, vec![1, 2, 3, 4], with(nodes(4), 2, lost), set(&[1, 3, 4])),
        ("too many: the last goes", 1, vec![1, 2, 3, 4], nodes(4), set(&[1, 2, 3])),
        ("what a drain left", 2, vec![1, 2], with(nodes(2), 1, drained), set(&[2])),
        ("a node of one voter is drained", 1, vec![1], with(nodes(2), 1, drained), set(&[1, 2])),
        ("then another leads", 1, vec![1, 2], with(nodes(2), 1, drained), Step::Transfer(2)),
        ("a leader that is drained gives way", 1, vec![1, 2, 3], with(nodes(4), 1, drained), Step::Transfer(2)),
        ("to one that answers", 1, vec![1, 2, 3], with(with(nodes(4), 1, drained), 2, quiet), Step::Transfer(3)),
        ("nowhere to go", 1, vec![1], with(nodes(1), 1, drained), Step::Rest),
        ("a leader that the order does not want", 4, vec![2, 3, 4], nodes(4), Step::Transfer(2)),
        ("who has not said lately is asked", 1, vec![1, 2, 3], with(nodes(3), 2, unasked), Step::Ask(NodeId(2))),
        ("but not at once again", 1, vec![1, 2, 3], with(nodes(3), 2, declining), Step::Rest),
    ] {
        let view = View { shard: shard_with_order(&order), ..view(own, &voters, nodes) };
        assert_eq!(plan(&view), expected, "{what}");
    }
}

#[test]
fn a_rack_takes_no_majority_away_where_there_are_racks_enough() {
    let racked = |racks: &[usize]| -> Vec<Candidate> {
        let in_rack = |(number, rack): (u64, &usize)| Candidate { domain: Domain::Rack(*rack), ..node(number) };
        (1..).zip(racks).map(in_rack).collect()
    };
    let set = |voters: &[VoterId]| Step::SetVoters(voters.to_vec());
    for (what, racks, voters, expected) in [
        ("one of each of three", &[1, 1, 2, 2, 3][..], vec![1], set(&[1, 3, 5])),
        ("that is kept", &[1, 1, 2, 2, 3], vec![1, 3, 5], Step::Rest),
        ("two of one move apart", &[1, 1, 2, 2, 3], vec![1, 2, 3], set(&[1, 3, 5])),
        ("two racks: the first of the second turn", &[1, 1, 2, 2, 2], vec![1], set(&[1, 2, 3])),
        ("nothing moves while one is silent", &[1, 1, 1, 2, 3], vec![1, 2, 3], Step::Rest),
    ] {
        let nodes = if what.starts_with("nothing") { with(racked(racks), 2, quiet) } else { racked(racks) };
        let view = View { shard: shard_with_order(&[1, 2, 3, 4, 5]), ..view(1, &voters, nodes) };
        assert_eq!(plan(&view), expected, "{what}");
    }
}

#[test]
fn the_control_shard_has_five_voters_from_five_nodes_on() {
    let control = |voters: &[VoterId], nodes| View { shard: ShardId::CONTROL, ..view(1, voters, nodes) };
    assert_eq!(plan(&control(&[1], nodes(5))), Step::SetVoters(vec![1, 2, 3, 4, 5]));
    assert_eq!(plan(&control(&[1, 2, 3], nodes(5))), Step::SetVoters(vec![1, 2, 3, 4, 5]));
    assert_eq!(plan(&control(&[1, 2, 3, 4, 5], with(nodes(5), 2, lost))), Step::Rest, "no other can take its place");
    let Step::SetVoters(voters) = plan(&control(&[1, 2, 3, 4, 5], with(nodes(5), 2, drained))) else {
        panic!("four active nodes carry three voters");
    };
    assert!(voters.len() == 3 && !voters.contains(&2), "{voters:?}");
}

#[test]
fn what_an_earlier_leader_began_is_ended_first() {
    let unsettled = |voters: &[VoterId]| View { is_settled: false, ..view(1, voters, nodes(3)) };
    assert_eq!(plan(&unsettled(&[1, 2, 3])), Step::SetVoters(vec![1, 2, 3]));
    assert_eq!(plan(&View { nodes: nodes(1), ..unsettled(&[1]) }), Step::Rest, "one voter has no half of a change");
}

#[test]
fn leadership_goes_to_the_first_of_the_order_that_answers_and_not_too_often() {
    for (may_balance, may_transfer, silent, expected) in [
        (true, true, None, Step::Transfer(3)),
        (true, true, Some(3), Step::Rest), // this node is the next of the order
        (false, true, None, Step::Rest),
        (true, false, None, Step::Rest),
    ] {
        let nodes = silent.map_or(nodes(3), |silent| with(nodes(3), silent, quiet));
        let view =
            View { shard: shard_with_order(&[3, 1, 2]), may_balance, may_transfer, ..view(1, &[1, 2, 3], nodes) };
        assert_eq!(plan(&view), expected, "{may_balance} {may_transfer} {silent:?}");
    }
}

#[test]
fn shards_and_their_leaders_spread() {
    let (mut voters, mut leaders) = ([0; 6], [0; 6]);
    for shard in (1024..1624).map(ShardId) {
        let mut all: Vec<u64> = (1..=6).collect();
        all.sort_by_key(|node| std::cmp::Reverse(lot(shard, NodeId(*node))));
        leaders[all[0] as usize - 1] += 1;
        all[..3].iter().for_each(|node| voters[*node as usize - 1] += 1);
    }
    assert!(leaders.iter().all(|count| (70..130).contains(count)), "{leaders:?}");
    assert!(voters.iter().all(|count| (250..350).contains(count)), "{voters:?}");
}

/// Whatever happens to the nodes: a group of three voters keeps three on distinct nodes, a change never takes the leader's
/// own vote, and it comes to rest with its voters on active nodes as soon as there are three of those.
#[test]
fn whatever_happens_it_comes_to_rest_with_three_good_voters() {
    for seed in 0..400u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let mut view = View { shard: ShardId(1024 + seed), may_balance: true, ..view(1, &[1], nodes(3 + random(4))) };
        for _ in 0..6 {
            let hit = random(view.nodes.len() as u64) as usize;
            let trouble = random(4);
            let touched = &mut view.nodes[hit];
            match trouble {
                0 => touched.is_active = !touched.is_active,
                1 if touched.node != view.own => touched.heard = Heard::Lost,
                2 if touched.node != view.own => {
                    let anew = touched.hosts.unwrap_or(touched.node.0) + (1 << 48);
                    touched.hosts = Some(anew);
                }
                _ => touched.heard = Heard::Here,
            }
            settle(&mut view, seed);
        }
    }
}

/// Does what the plan says until there is nothing to do. Who declined before is asked again.
fn settle(view: &mut View, seed: u64) {
    view.nodes.iter_mut().for_each(|node| node.declined = false);
    let real: BTreeMap<NodeId, VoterId> =
        view.nodes.iter().map(|node| (node.node, node.hosts.unwrap_or(node.node.0))).collect();
    for _ in 0..40 {
        match plan(view) {
            Step::Rest => return assert_good(view, seed),
            Step::Ask(node) => {
                let asked = view.nodes.iter_mut().find(|candidate| candidate.node == node).expect("it is recorded");
                (asked.hosts, asked.declined) = match asked.heard {
                    Heard::Here => (real.get(&node).copied(), false),
                    _ => (None, true),
                };
            }
            Step::SetVoters(voters) => {
                let nodes: BTreeSet<NodeId> = voters.iter().copied().map(node_of).collect();
                assert_eq!(nodes.len(), voters.len(), "seed {seed}: one node would vote twice: {voters:?}");
                assert!(nodes.contains(&view.own), "seed {seed}: the leader takes its own vote");
                assert!(voters.len() >= 3 || view.voters.len() < 3, "seed {seed}: {:?} become {voters:?}", view.voters);
                let learned = voters.iter().filter(|voter| !view.voters.contains(voter));
                let silent = |voter: &VoterId| {
                    view.nodes.iter().any(|node| node.node == node_of(*voter) && node.heard != Heard::Here)
                };
                let declined: Vec<NodeId> = learned.copied().filter(silent).map(node_of).collect();
                if declined.is_empty() {
                    (view.voters, view.is_settled) = (voters, true);
                }
                for node in &mut view.nodes {
                    if declined.contains(&node.node) {
                        (node.hosts, node.declined) = (None, true);
                    }
                }
            }
            Step::Transfer(voter) => {
                assert!(view.voters.contains(&voter), "seed {seed}: {voter} is no voter");
                (view.own, view.is_settled) = (node_of(voter), false);
            }
        }
    }
    panic!("seed {seed}: it comes to no rest: {view:?}");
}

fn assert_good(view: &View, seed: u64) {
    let good = |voter: &VoterId| {
        let node = view.nodes.iter().find(|node| node.node == node_of(*voter)).expect("it is recorded");
        node.is_active && (node.heard == Heard::Here || node.node == view.own)
    };
    let to_be_had = view.nodes.iter().filter(|node| node.is_active && node.heard == Heard::Here).count();
    let good_count = view.voters.iter().filter(|voter| good(voter)).count();
    assert!(good_count >= to_be_had.min(3) || view.voters.len() == 1, "seed {seed}: {view:?}");
    assert!(view.voters.len() != 2 || to_be_had < 2, "seed {seed}: {view:?}");
}
