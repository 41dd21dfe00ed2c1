//! Orders are the same everywhere, follow the weights, and move no more than they must.

use super::*;
use proptest::prelude::*;

/// Which node a device is on, when `nodes` says how many devices each has: the first ones are the first node's.
fn node_of(nodes: &[usize], id: &DeviceId) -> NodeId {
    let number = (0..nodes.iter().sum::<usize>()).find(|number| device(*number as u8) == *id).expect("one of them");
    let ends = nodes.iter().scan(0, |end, count| {
        *end += count;
        Some(*end)
    });
    NodeId(ends.take_while(|end| *end <= number).count() as u64 + 1)
}

fn of_nodes(locator: &Locator, nodes: &[usize]) -> Vec<DeviceId> {
    let weights = vec![1; nodes.iter().sum()];
    alone(order(locator, &candidates(&weights)), |id| node_of(nodes, id), &BTreeMap::new())
}

/// By turns of nodes that fail alone.
fn alone(order: Vec<DeviceId>, node_of: impl Fn(&DeviceId) -> NodeId, held: &ByNode) -> Vec<DeviceId> {
    by_turns(order, node_of, &Racks::default(), (held, &BTreeSet::new()), StripeShape { data: 4, parity: 2 })
}

fn device(number: u8) -> DeviceId {
    DeviceId([number.wrapping_mul(37).wrapping_add(11); 16])
}

fn candidates(weights: &[u64]) -> Vec<PlacementCandidate> {
    let candidate =
        |(number, weight): (usize, &u64)| PlacementCandidate { device: device(number as u8), weight: *weight };
    weights.iter().enumerate().map(candidate).collect()
}

/// Locators as they come: the output of a mixing function.
fn locators(count: u64) -> impl Iterator<Item = Locator> {
    (0..count).map(|number| {
        let word = |i: u64| mix(number * 4 + i + 1).to_le_bytes();
        Locator([word(0), word(1), word(2), word(3)].concat().try_into().unwrap())
    })
}

/// How often each device comes first.
fn firsts(weights: &[u64], count: u64) -> Vec<u64> {
    let candidates = candidates(weights);
    let mut firsts = vec![0; weights.len()];
    for locator in locators(count) {
        let first = order(&locator, &candidates)[0];
        firsts[candidates.iter().position(|candidate| candidate.device == first).unwrap()] += 1;
    }
    firsts
}

#[test]
fn devices_come_first_as_often_as_their_weights_say() {
    const COUNT: u64 = 40_000;
    for weights in
        [vec![1; 6], vec![1, 2, 3, 4], vec![1 << 40, 3 << 40, 1 << 43], vec![u64::MAX, u64::MAX / 2], vec![7; 40]]
    {
        let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
        for (weight, first) in weights.iter().zip(firsts(&weights, COUNT)) {
            let expected = (u128::from(COUNT) * u128::from(*weight)) as f64 / total as f64;
            let deviation = (first as f64 - expected).abs();
            assert!(deviation < 4.5 * expected.sqrt(), "{weights:?}: {first} for {expected}");
        }
    }
}

#[test]
fn a_removed_device_moves_only_its_own_share() {
    let all = candidates(&[5, 1, 2, 5, 9, 3, 3]);
    for locator in locators(2_000) {
        let before = order(&locator, &all);
        for gone in &all {
            let left: Vec<_> = all.iter().copied().filter(|candidate| candidate.device != gone.device).collect();
            let expected: Vec<_> = before.iter().copied().filter(|device| *device != gone.device).collect();
            assert_eq!(order(&locator, &left), expected, "without {}", gone.device);
        }
    }
}

#[test]
fn a_heavier_device_only_gains() {
    let (before, after) = (candidates(&[4, 4, 4, 4]), candidates(&[4, 4, 8, 4]));
    let mut gained = 0;
    for locator in locators(5_000) {
        let (before, after) = (order(&locator, &before)[0], order(&locator, &after)[0]);
        assert!(before == after || after == device(2), "{locator}: {before} became {after}");
        gained += u32::from(before != after);
    }
    assert!((600..900).contains(&gained), "from a quarter to two fifths of 5,000, not {gained}");
}

#[test]
fn golden_orders() {
    let candidates = candidates(&[1, 1, 2, 4, 8, 0]);
    let numbers = |locator: &Locator| -> Vec<u8> {
        let number = |id: &DeviceId| (0..6).find(|number| device(*number) == *id).unwrap();
        order(locator, &candidates).iter().map(number).collect()
    };
    let golden: [(Locator, [u8; 5]); 4] = [
        (Locator([0; 32]), [4, 2, 3, 1, 0]),
        (Locator([255; 32]), [4, 0, 1, 2, 3]),
        (Locator(std::array::from_fn(|i| i as u8)), [2, 4, 0, 1, 3]),
        (Locator(std::array::from_fn(|i| (i * i) as u8)), [1, 2, 4, 0, 3]),
    ];
    for (locator, expected) in golden {
        assert_eq!(numbers(&locator), expected, "{locator}");
    }
}

#[test]
fn i_d4_chosen_devices_are_distinct_and_usable() {
    let order = order(&Locator([3; 32]), &candidates(&[1, 2, 3, 4, 5]));
    assert_eq!(choose(&order, 3, |_| true), order[..3]);
    let without_first = choose(&order, 3, |device| device != order[0]);
    assert_eq!(without_first, order[1..4]);
    assert_eq!(choose(&order, 9, |_| true).len(), 5, "no device is used twice to make up the width");
}

#[test]
#[should_panic(expected = "I-D4")]
fn i_d4_a_device_named_twice_is_a_bug() {
    let _ = order(&Locator([3; 32]), &[candidates(&[1, 2]), candidates(&[1])].concat());
}

#[test]
#[should_panic(expected = "I-D4")]
fn i_d4_an_order_that_repeats_a_device_is_a_bug() {
    let _ = choose(&[device(1), device(2), device(1)], 3, |_| true);
}

#[test]
fn the_logarithm_is_exact_at_powers_of_two_and_never_grows() {
    assert_eq!(negative_log2(u64::MAX), 0);
    for bits in 0..64 {
        assert_eq!(negative_log2((1 << bits) - 1), u64::from(64 - bits as u32) << FRACTION_BITS, "2^{bits}");
    }
    for hash in locators(5_000).map(|locator| locator.hash64()) {
        let exact = 64.0 - (hash as f64 + 1.0).log2();
        let ours = negative_log2(hash) as f64 / 2f64.powi(FRACTION_BITS as i32);
        assert!((ours - exact).abs() < 1e-9, "{hash}: {ours} for {exact}");
        assert!(negative_log2(hash.saturating_add(1 << 30)) <= negative_log2(hash), "{hash}");
    }
}

proptest! {
    #[test]
    fn the_order_of_the_candidates_does_not_matter(locator: [u8; 32], weights in prop::collection::vec(0u64.., 1..20), turn in 0usize..20) {
        let mut shuffled = candidates(&weights);
        shuffled.rotate_left(turn % weights.len());
        shuffled.reverse();
        let ordered = order(&Locator(locator), &candidates(&weights));
        prop_assert_eq!(&ordered, &order(&Locator(locator), &shuffled));
        prop_assert_eq!(ordered.len(), weights.iter().filter(|weight| **weight > 0).count());
    }
}

/// Devices by node, up to forty in all.
fn some_nodes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1usize..6, 1..9)
}

proptest! {
    #[test]
    fn one_node_keeps_the_order_of_the_draws(locator: [u8; 32], count in 1usize..30) {
        let drawn = order(&Locator(locator), &candidates(&vec![1; count]));
        prop_assert_eq!(of_nodes(&Locator(locator), &[count]), drawn.clone());
        let held = BTreeMap::from([(NodeId(1), 3), (NodeId(2), 1)]);
        prop_assert_eq!(alone(drawn.clone(), |_| NodeId(1), &held), drawn);
    }

    #[test]
    fn i_d4_a_node_is_taken_again_only_when_every_node_with_a_device_left_was(
        locator: [u8; 32], nodes in some_nodes(), parity in 1usize..4, data in 1usize..9,
    ) {
        let turns = of_nodes(&Locator(locator), &nodes);
        let count = |devices: &[DeviceId]| {
            let mut counts = vec![0; nodes.len()];
            devices.iter().for_each(|id| counts[node_of(&nodes, id).0 as usize - 1] += 1);
            counts
        };
        for width in 0..=turns.len() {
            let counts = count(&turns[..width]);
            for (taken, (other, has)) in counts.iter().flat_map(|taken| counts.iter().zip(&nodes).map(move |pair| (taken, pair))) {
                prop_assert!(other == has || other + 1 >= *taken, "{:?} of {:?}", counts, nodes);
            }
        }
        // No node has more than m of a stripe while one with fewer has a device left.
        let counts = count(&turns[..turns.len().min(data + parity)]);
        let has_room = counts.iter().zip(&nodes).any(|(taken, has)| *taken < parity && taken < has);
        prop_assert!(!has_room || counts.iter().all(|taken| *taken <= parity), "{:?} of {:?}", counts, nodes);
        prop_assert_eq!(turns.iter().collect::<BTreeSet<_>>().len(), nodes.iter().sum::<usize>());
    }

    #[test]
    fn a_device_that_joins_or_leaves_moves_one_fragment_at_most(
        locator: [u8; 32], nodes in some_nodes(), gone in 0usize..40, width in 1usize..12,
    ) {
        let locator = Locator(locator);
        let with = of_nodes(&locator, &nodes);
        let gone = with[gone % with.len()];
        let left: Vec<_> = candidates(&vec![1; with.len()]).into_iter().filter(|one| one.device != gone).collect();
        let without = alone(order(&locator, &left), |id| node_of(&nodes, id), &BTreeMap::new());
        let first = |devices: &[DeviceId]| devices.iter().take(width).copied().collect::<BTreeSet<_>>();
        let (with, without) = (first(&with), first(&without));
        prop_assert!(with.difference(&without).all(|device| *device == gone), "only the fragment on it moves");
        prop_assert!(without.difference(&with).count() <= 1);
    }

    #[test]
    fn a_node_that_joins_takes_fragments_and_nobody_else_does(locator: [u8; 32], nodes in some_nodes(), joins in 1usize..6) {
        let more: Vec<usize> = nodes.iter().copied().chain([joins]).collect();
        let first = |devices: Vec<DeviceId>| devices.into_iter().take(6).collect::<BTreeSet<_>>();
        let before = first(of_nodes(&Locator(locator), &nodes));
        let after = first(of_nodes(&Locator(locator), &more));
        let new = NodeId(more.len() as u64);
        prop_assert!(after.difference(&before).all(|device| node_of(&more, device) == new));
        let fair = 6usize.div_ceil(more.len()).max(6usize.saturating_sub(nodes.iter().sum()));
        prop_assert!(after.difference(&before).count() <= fair.max(joins.min(6)));
    }

    #[test]
    fn nodes_that_hold_fragments_already_come_later(locator: [u8; 32], held in 0usize..4) {
        let nodes = [4, 4, 4];
        let drawn = order(&Locator(locator), &candidates(&[1; 12]));
        let turns = alone(drawn, |id| node_of(&nodes, id), &BTreeMap::from([(NodeId(2), held)]));
        let before = turns.iter().take_while(|id| node_of(&nodes, id) != NodeId(2)).count();
        prop_assert!((2 * held..=2 * held + 2).contains(&before), "{} before it", before);
    }
}

/// Nodes 1, 2 and so on, in these racks; 0 is none.
fn racks(of_nodes: &[u8]) -> Racks {
    let names: Vec<String> =
        of_nodes.iter().map(|rack| if *rack == 0 { String::new() } else { format!("r{rack}") }).collect();
    Racks::of((1..).map(NodeId).zip(names.iter().map(String::as_str)))
}

#[test]
fn i_d4_racks_take_turns_where_that_lets_a_stripe_survive_one() {
    // (shape, devices by node, rack by node, the most of a new stripe in a rack, on a node)
    type Case = ((u8, u8), &'static [usize], &'static [u8], usize, usize);
    let cases: &[Case] = &[
        ((4, 2), &[2; 6], &[1, 1, 2, 2, 3, 3], 2, 1),
        ((4, 2), &[2, 2, 2, 2, 2, 8], &[1, 1, 1, 1, 1, 2], 5, 1), // two racks can't: nodes take turns
        ((4, 2), &[4; 6], &[1, 1, 1, 1, 2, 3], 2, 2),             // rather two on a node than four in a rack
        ((4, 2), &[4; 4], &[1, 1, 2, 2], 4, 2),
        ((4, 2), &[4; 4], &[1, 1, 0, 0], 2, 2), // nodes without a rack fail alone
        ((1, 2), &[2; 4], &[1, 1, 1, 2], 2, 1),
        ((8, 3), &[4; 12], &[1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4], 3, 1),
    ];
    for (shape, nodes, of_nodes, in_rack, on_node) in cases {
        let (shape, racks) = (StripeShape { data: shape.0, parity: shape.1 }, racks(of_nodes));
        let of_node = |id: &DeviceId| node_of(nodes, id);
        for locator in locators(300) {
            let drawn = order(&locator, &candidates(&vec![1; nodes.iter().sum()]));
            let turns = by_turns(drawn, of_node, &racks, (&ByNode::new(), &BTreeSet::new()), shape);
            assert_eq!(turns.iter().collect::<BTreeSet<_>>().len(), nodes.iter().sum::<usize>(), "I-D4");
            let mut counts = ByNode::new();
            turns[..shape.width()].iter().for_each(|id| *counts.entry(of_node(id)).or_default() += 1);
            let most = |counts: Vec<usize>| counts.into_iter().max().unwrap();
            let found = (most(racks.by_domain(&counts).into_values().collect()), most(counts.into_values().collect()));
            assert!(found.0 <= *in_rack && found.1 <= *on_node, "{shape:?} on {nodes:?} in {of_nodes:?}: {found:?}");
        }
    }
}

#[test]
fn i_d4_what_a_stripe_holds_counts_for_its_rack_too() {
    let (nodes, shape) = ([2; 6], StripeShape { data: 4, parity: 2 });
    let racks = racks(&[1, 1, 2, 2, 3, 3]);
    for locator in locators(200) {
        let drawn = order(&locator, &candidates(&[1; 12]));
        let held = ByNode::from([(NodeId(1), 1), (NodeId(3), 1), (NodeId(4), 1), (NodeId(5), 1), (NodeId(6), 1)]);
        let first = by_turns(drawn, |id| node_of(&nodes, id), &racks, (&held, &BTreeSet::new()), shape)[0];
        assert_eq!(node_of(&nodes, &first), NodeId(2), "its rack has one only, and so has no other");
    }
}

#[test]
fn i_d4_a_device_that_holds_a_fragment_takes_no_turn_of_its_rack() {
    // Racks of three nodes, one node and three nodes; the stripe has two fragments in the first and the last and one in the second.
    let (nodes, shape) = ([1, 1, 1, 4, 1, 1, 1], StripeShape { data: 4, parity: 2 });
    let racks = racks(&[1, 1, 1, 2, 3, 3, 3]);
    let held = ByNode::from([(NodeId(1), 1), (NodeId(2), 1), (NodeId(4), 1), (NodeId(5), 1), (NodeId(6), 1)]);
    for locator in locators(200) {
        let drawn = order(&locator, &candidates(&[1; 10]));
        for of_node_4 in 3..7 {
            let holders = BTreeSet::from([0, 1, of_node_4, 7, 8].map(device));
            let first = by_turns(drawn.clone(), |id| node_of(&nodes, id), &racks, (&held, &holders), shape)[0];
            assert_eq!(node_of(&nodes, &first), NodeId(4), "I-D4: a rack would have three of them");
        }
    }
}
