//! Plans alone: what moves, how little of it, and that it ends.

use super::*;
use kiseki_types::fragment::DeviceState;
use kiseki_types::ids::{Locator, PoolId};

/// A device of each node for each number, by turns of nodes.
fn devices(by_node: &[u8]) -> Vec<DeviceStatus> {
    let of_node = |(node, count): (u64, &u8)| {
        (0..*count).map(move |number| DeviceStatus {
            id: DeviceId([node as u8 * 16 + number; 16]),
            node: NodeId(node),
            name: String::new(),
            pool: PoolId(0),
            capacity_bytes: 1 << 30,
            free_bytes: 500,
            lanes_bytes: 1000,
            state: DeviceState::Healthy,
            read_errors: 0,
        })
    };
    (1..).zip(by_node).flat_map(of_node).collect()
}

fn locator(number: u64) -> Locator {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    Locator(bytes)
}

/// Nothing survives the loss of a rack in this shape, so only nodes count.
fn of_width(width: usize) -> StripeShape {
    StripeShape { data: width as u8, parity: 0 }
}

fn order(locator: &Locator, devices: &[DeviceStatus], racks: &Racks, shape: StripeShape) -> Vec<Spot> {
    let find = |id: &DeviceId| devices.iter().find(|device| device.id == *id).expect("it is one of them");
    let order = placement_order(locator, devices.iter(), racks, (&ByNode::new(), &BTreeSet::new()), shape);
    order.iter().map(|id| Spot::of(find(id), racks)).collect()
}

/// A stripe that was written on `before`, as it is looked at with `now`.
fn map(locator: &Locator, before: &[DeviceStatus], now: &[DeviceStatus], width: usize) -> StripeMap {
    racked(locator, (before, &Racks::default()), (now, &Racks::default()), of_width(width))
}

/// The same with racks.
fn racked(
    locator: &Locator,
    before: (&[DeviceStatus], &Racks),
    now: (&[DeviceStatus], &Racks),
    shape: StripeShape,
) -> StripeMap {
    let today = order(locator, now.0, now.1, shape);
    let spot = |spot: &Spot| *today.iter().find(|other| other.device == spot.device).expect("it is still there");
    let held = order(locator, before.0, before.1, shape).iter().take(shape.width()).map(spot).collect::<Vec<_>>();
    let held = (0..).zip(held.into_iter().map(|spot| (spot, false))).collect();
    StripeMap::of(held, today, shape).expect("there are devices enough")
}

fn all_counts(map: &StripeMap) -> Counts {
    Counts::of(map.held.values().map(|(spot, _)| spot))
}

fn counts(map: &StripeMap) -> ByNode {
    all_counts(map).nodes
}

fn most_wanted(map: &StripeMap) -> usize {
    map.most().0
}

fn surplus(map: &StripeMap) -> usize {
    let most = most_wanted(map);
    counts(map).into_values().map(|count| count.saturating_sub(most)).sum()
}

fn misplaced(map: &StripeMap) -> usize {
    map.held.values().filter(|(spot, _)| map.rank(&spot.device) >= map.placed().len()).count()
}

fn forgotten(mut map: StripeMap) -> StripeMap {
    map.held.values_mut().for_each(|(_, moved)| *moved = false);
    map
}

/// Makes every move for a goal, and checks that each is one.
fn reach(map: &mut StripeMap, goal: Goal) -> usize {
    let mut moves = 0;
    while let Some(step) = map.next(goal, &BTreeSet::new()) {
        assert!(!map.holds(&step.to.device), "I-D4: a device twice");
        let before = map.held[&step.index].0;
        let (surplus_before, misplaced_before) = (surplus(map), misplaced(map));
        map.moved(step);
        match goal {
            Goal::Spread => assert_eq!(surplus(map) + 1, surplus_before, "I-D4: each move takes one off the surplus"),
            Goal::Balance { apart_permille } => {
                assert_eq!(misplaced(map) + 1, misplaced_before, "each move goes where placement would");
                assert!(surplus(map) <= surplus_before, "I-D4: no node gets more than placement gives it");
                assert!(before.fill_permille.unwrap() > step.to.fill_permille.unwrap() + apart_permille);
            }
        }
        moves += 1;
    }
    moves
}

#[test]
fn i_d4_exactly_the_surplus_of_a_node_moves_and_nothing_else() {
    // (devices by node before, now, width, most on a node now, whether something moves)
    for (before, now, width, most, does_move) in [
        (&[8][..], &[8, 8][..], 6, 3, true),
        (&[8], &[8, 8, 8], 6, 2, true),
        (&[3, 3], &[3, 3, 3], 6, 2, true),
        (&[2, 2, 2], &[2, 2, 2, 2], 6, 2, false),
        (&[2, 2, 2], &[2, 2, 2, 2, 2, 2], 6, 1, true),
        (&[2, 2], &[2, 2, 2, 2], 3, 1, true),
        (&[2, 2, 2], &[2, 2, 2, 2, 2], 4, 1, true),
        (&[6, 1], &[6, 1, 1], 6, 4, true),
        (&[4, 4], &[6, 6], 6, 3, false),
    ] {
        let (before, now) = (devices(before), devices(now));
        let mut total = 0;
        for number in 0..200 {
            let mut map = map(&locator(number), &before, &now, width);
            let needed = surplus(&map);
            let stays: Vec<_> = map.held.clone().into_iter().collect();
            assert_eq!(reach(&mut map, Goal::Spread), needed, "the least");
            let moved = stays.iter().filter(|(index, (spot, _))| map.held[index].0.device != spot.device).count();
            assert_eq!(moved, needed);
            assert!(counts(&map).into_values().all(|count| count <= most), "I-D4: {:?}", counts(&map));
            assert_eq!(most_wanted(&map), most);
            assert_eq!(forgotten(map).count(Goal::Spread), 0, "it is done");
            total += needed;
        }
        assert_eq!(total > 0, does_move, "{} devices, then {}", before.len(), now.len());
    }
}

#[test]
fn i_d4_a_device_that_takes_nothing_is_passed_over() {
    let (before, now) = (devices(&[5, 5]), devices(&[5, 5, 5]));
    let map = map(&locator(7), &before, &now, 6);
    let first = map.next(Goal::Spread, &BTreeSet::new()).unwrap();
    let mut refused = BTreeSet::from([first.to.device]);
    let second = map.next(Goal::Spread, &refused).unwrap();
    assert!(second.to.device != first.to.device && second.to.node == first.to.node);
    refused.extend(now.iter().filter(|device| device.node == first.to.node).map(|device| device.id));
    assert_eq!(map.next(Goal::Spread, &refused), None, "I-D4: the others hold more than their share already");
}

#[test]
fn balance_moves_only_misplaced_fragments_to_much_emptier_devices() {
    let before = devices(&[7]);
    let mut now = devices(&[8]);
    let mut moved = 0;
    for number in 0..300 {
        let fills = |now: &mut Vec<DeviceStatus>, free_on_new: u64| now[7].free_bytes = free_on_new;
        fills(&mut now, 560);
        let balance = Goal::Balance { apart_permille: 60 };
        assert_eq!(map(&locator(number), &before, &now, 6).count(balance), 0, "not so much emptier");
        fills(&mut now, 561);
        let mut map = map(&locator(number), &before, &now, 6);
        let wanted = misplaced(&map);
        assert!(wanted <= 1, "a device that joins displaces one fragment at most");
        assert_eq!(reach(&mut map, balance), wanted);
        moved += wanted;
    }
    assert!((300 * 6 / 8 - 40..300 * 6 / 8 + 40).contains(&moved), "its share of the stripes: {moved} of 300");
    for device in &mut now {
        device.lanes_bytes = 0;
    }
    let map = map(&locator(1), &before, &now, 6);
    assert_eq!(map.count(Goal::Balance { apart_permille: 0 }), 0, "nothing moves for a fill that nobody knows");
}

#[test]
fn it_ends_whatever_the_fill_of_devices_does_meanwhile() {
    let mut state = 1u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for number in 0..400 {
        let nodes = 1 + random(6) as usize;
        let before: Vec<u8> = (0..nodes).map(|_| 1 + random(4) as u8).collect();
        let mut after: Vec<u8> = before.iter().map(|count| count + random(3) as u8).collect();
        after.extend((0..random(4)).map(|_| 1 + random(4) as u8));
        let width = 1 + random(u64::from(before.iter().sum::<u8>()).min(8)) as usize;
        let (before, mut now) = (devices(&before), devices(&after));
        let mut map = map(&locator(number), &before, &now, width);
        let (mut moves, bound) = (0, surplus(&map) + 2 * width);
        for _ in 0..12 {
            // Fill turns as badly as it can: what has just been given to is the fullest.
            for device in &mut now {
                device.free_bytes = random(1001);
            }
            let today = order(&locator(number), &now, &Racks::default(), of_width(width));
            let fill = |spot: &Spot| *today.iter().find(|other| other.device == spot.device).unwrap();
            let held = map.held.iter().map(|(index, (spot, _))| (*index, (fill(spot), false))).collect();
            map = StripeMap::of(held, today, of_width(width)).unwrap();
            moves += reach(&mut map, Goal::Spread);
            assert_eq!(surplus(&map), 0, "I-D4");
            map = forgotten(map);
            moves += reach(&mut map, Goal::Balance { apart_permille: 0 });
            assert_eq!(surplus(&map), 0, "I-D4: balance undoes no spread");
        }
        assert!(moves <= bound, "{moves} moves, no fragment goes back and forth");
    }
}

#[test]
fn i_d4_what_a_rack_has_too_much_of_moves_to_others_and_then_it_ends() {
    // Nodes 1 to 6, two devices each; named only later, or one more joins.
    let named = |racks: &[&str]| {
        let racks: Vec<(NodeId, &str)> = (1..).map(NodeId).zip(racks.iter().copied()).collect();
        Racks::of(racks.into_iter())
    };
    let shape = StripeShape { data: 4, parity: 2 };
    let (six, seven) = (devices(&[2; 6]), devices(&[2; 7]));
    let (none, three) = (Racks::default(), named(&["a", "a", "b", "b", "c", "c"]));
    let two = named(&["a", "a", "a", "b", "b", "b"]);
    let lopsided = named(&["a", "a", "a", "b", "c", "c"]);
    let joined = named(&["a", "a", "a", "b", "b", "b", "c"]);
    for (what, before, now, most_in_rack, does_move) in [
        ("racks of two that had one of each node", (&six, &none), (&six, &three), 2, false),
        ("two racks can't hold a stripe that survives one", (&six, &none), (&six, &two), 6, false),
        ("three in a rack is one too many", (&six, &none), (&six, &lopsided), 2, true),
        ("a third rack takes a third", (&six, &two), (&seven, &joined), 2, true),
    ] {
        let mut total = 0;
        for number in 0..200 {
            let mut map = racked(&locator(number), (before.0, before.1), (now.0, now.1), shape);
            let over = |map: &StripeMap| -> usize {
                all_counts(map).domains.into_values().map(|count| count.saturating_sub(most_in_rack)).sum()
            };
            let needed = over(&map);
            let mut moves = 0;
            while let Some(step) = map.next(Goal::Spread, &BTreeSet::new()) {
                assert!(!map.holds(&step.to.device), "I-D4: a device twice");
                map.moved(step);
                moves += 1;
            }
            assert_eq!((moves, over(&map)), (needed, 0), "{what}: exactly the surplus moves");
            assert!(counts(&map).into_values().all(|count| count <= most_wanted(&map)), "{what}: {:?}", counts(&map));
            let mut balanced = forgotten(map);
            assert_eq!(balanced.clone().count(Goal::Spread), 0, "{what}: it is done");
            while let Some(step) = balanced.next(Goal::Balance { apart_permille: 0 }, &BTreeSet::new()) {
                balanced.moved(step);
            }
            assert_eq!(over(&balanced), 0, "{what}: balance undoes no spread");
            total += needed;
        }
        assert_eq!(total > 0, does_move, "{what}");
    }
}
