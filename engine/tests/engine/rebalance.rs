//! Rebalancing: what was written before nodes and devices joined moves to where it would be put today; no more than that, behind
//! everything else, and it ends.

use crate::support::{CODED, MemoryFragments, NODE, Upkeep, World, assert_readable, content, filled, noise};
use bytes::Bytes;
use kiseki_engine::api::{Condition, FinishWrite};
use kiseki_engine::rebalancer::{Hindrance, RebalanceSettings};
use kiseki_engine::repairer::RepairSettings;
use kiseki_types::ids::{Generation, Locator, NodeId, TenantId};
use kiseki_types::runtime::RuntimeExt;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

type ByStripe = BTreeMap<(Locator, Generation), BTreeMap<u64, usize>>;

fn by_node(world: &World) -> ByStripe {
    let count = |good: Vec<(u8, u64)>| {
        let mut by_node = BTreeMap::<u64, usize>::new();
        good.iter().for_each(|(_, node)| *by_node.entry(*node).or_default() += 1);
        by_node
    };
    world.good_by_node().into_iter().map(|(name, good)| (name, count(good))).collect()
}

/// Most fragments of a stripe on one node that placement gives on so many nodes, all of them with devices enough.
fn most(by_node: &BTreeMap<u64, usize>, nodes: usize) -> usize {
    by_node.values().sum::<usize>().div_ceil(nodes)
}

/// Fragments that have to move at the least.
fn surplus(stripes: &ByStripe, nodes: usize) -> u64 {
    let of = |by_node: &BTreeMap<u64, usize>| {
        by_node.values().map(|count| count.saturating_sub(most(by_node, nodes)) as u64).sum::<u64>()
    };
    stripes.values().map(of).sum()
}

fn assert_whole(world: &World, what: &str) {
    for (name, good) in world.good_by_node() {
        let indices: BTreeSet<u8> = good.iter().map(|(index, _)| *index).collect();
        assert!(indices.len() == 3 || indices.len() == 6, "I-D4: {what}: {name:?} is not whole: {good:?}");
    }
}

fn assert_once(world: &World, what: &str) {
    for (name, good) in world.good_by_node() {
        assert!(good.len() == 3 || good.len() == 6, "{what}: {name:?} holds fragments twice: {good:?}");
    }
}

fn moved(world: &World) -> u64 {
    let state = world.engine.rebalance_state();
    state.spread.fragments + state.balanced.fragments
}

fn pause(world: &World, ms: u64) {
    let ports = world.sim.ports(NODE);
    world.run(async move { ports.sleep(Duration::from_millis(ms)).await });
}

fn delete_all(world: &World, tenant: TenantId, objects: u64) {
    for index in 0..objects {
        let key = index.to_string();
        assert!(world.run(world.store.delete(tenant, "bucket", &key, Condition::None)).unwrap());
    }
}

#[test]
fn i_d4_what_was_written_on_few_nodes_spreads_over_those_that_join_and_moves_the_least() {
    // Coded 4+2 on two nodes: three fragments each, so either node's loss would lose everything.
    let (mut world, tenant) = filled(World::on_nodes(70, 2, 3, CODED), 40);
    world.join(3);
    world.join(3);
    let before = by_node(&world);
    let least = surplus(&before, 4);
    assert!(least >= 40, "two of six fragments each: {least}");
    world.await_rebalanced(12);
    let state = world.engine.rebalance_state();
    println!(
        "spread {} fragments, {} bytes; at the least {least} fragments",
        state.spread.fragments, state.spread.bytes
    );
    // Of those that moved while only three nodes were there some may have gone where four nodes want fewer.
    assert!(
        state.spread.fragments >= least && state.spread.fragments <= least + least / 10,
        "I-D4: {state:?}, {least}"
    );
    for (name, by_node) in by_node(&world) {
        assert!(by_node.values().all(|count| *count <= most(&by_node, 4)), "I-D4: {name:?}: {by_node:?}");
    }
    assert_once(&world, "when it is done");
    assert_eq!(
        (state.spread_left.fragments, state.balanced.fragments),
        (0, 0),
        "the fill of devices is not known here"
    );
    for lost in 2..=4 {
        world.apart.as_ref().unwrap().cut(lost);
        world.sleep(4);
        assert_readable(&world, tenant, 40);
        world.put(tenant, "bucket", &format!("without {lost}"), &noise(900 + lost, 200_000)).unwrap();
        world.apart.as_ref().unwrap().net.heal();
        world.await_all_heard();
    }
}

#[test]
fn i_d4_with_one_join_exactly_the_surplus_moves_and_then_nothing_ever_again() {
    let (mut world, _) = filled(World::on_nodes(71, 2, 3, CODED), 30);
    world.sleep(30);
    assert_eq!(moved(&world), 0, "as it was written it lies right");
    let least = surplus(&by_node(&world), 3);
    world.join(3);
    world.await_rebalanced(9);
    assert_eq!(moved(&world), least);
    assert_eq!(world.engine.rebalance_state().needed.fragments, least, "I-O2: it was said before");
    world.sleep(4 * 3600);
    assert_eq!(moved(&world), least, "it has ended");
    assert!(world.engine.rebalance_state().surveys < 20);
}

#[test]
fn i_d4_a_restart_at_any_point_leaves_stripes_whole_and_it_goes_on() {
    for seed in 0..8 {
        let (mut world, tenant) = filled(World::on_nodes(700 + seed, 2, 3, CODED), 20);
        world.join(3);
        let others = |world: &World| world.apart.as_ref().unwrap().others.clone();
        others(&world).iter().for_each(|other| other.set_put_delay(Duration::from_millis(150)));
        for restart in 0..3 {
            world.await_that("something moves", |world| world.engine.rebalance_state().spread.fragments > 0);
            pause(&world, 37 * seed + 61 * restart);
            assert_whole(&world, "in the middle");
            world.restart();
            world.await_all_heard();
            if world.engine.rebalance_state().is_at_rest || surplus(&by_node(&world), 3) == 0 {
                break;
            }
        }
        world.await_rebalanced(9);
        assert_whole(&world, "after restarts");
        world.await_that("nothing lies twice", |world| world.good_by_node().values().all(|good| good.len() % 3 == 0));
        assert_once(&world, "after restarts");
        assert_eq!(surplus(&by_node(&world), 3), 0, "I-D4: seed {seed}");
        assert_readable(&world, tenant, 20);
    }
}

#[test]
fn i_c2_what_is_deleted_while_it_moves_does_not_come_back() {
    for seed in 0..12 {
        let (mut world, tenant) = filled(World::on_nodes(800 + seed, 2, 3, CODED), 8);
        world.join(3);
        for other in &world.apart.as_ref().unwrap().others {
            other.set_put_delay(Duration::from_millis(300));
        }
        world.await_that("something moves", |world| world.engine.rebalance_state().spread.fragments > 0);
        pause(&world, 45 * seed);
        delete_all(&world, tenant, 8);
        world.await_that("everything is freed", |world| world.good_by_node().is_empty());
        world.sleep(60);
        assert!(world.good_by_node().is_empty(), "I-C2: seed {seed}");
        world.await_rebalanced(9);
    }
}

#[test]
fn while_a_node_is_awaited_nothing_moves_and_it_says_so() {
    let (mut world, tenant) = filled(World::on_nodes(73, 3, 2, CODED), 40);
    world.join(2);
    world.join(2);
    world.join(2);
    for other in &world.apart.as_ref().unwrap().others {
        other.set_put_delay(Duration::from_millis(200));
    }
    world.await_that("some have moved", |world| moved(world) > 3);
    world.apart.as_ref().unwrap().cut(2);
    world.await_that("it waits", |world| world.engine.rebalance_state().waits_for == Some(Hindrance::Node(NodeId(2))));
    pause(&world, 500);
    let then = moved(&world);
    world.sleep(60);
    assert_eq!(moved(&world), then, "nothing moves meanwhile");
    assert!(!world.engine.rebalance_state().is_at_rest);
    world.apart.as_ref().unwrap().net.heal();
    world.await_all_heard();
    world.await_rebalanced(12);
    assert_eq!(surplus(&by_node(&world), 6), 0, "I-D4: no two on one node");
    assert_readable(&world, tenant, 40);
}

#[test]
fn i_d1_a_device_that_fails_meanwhile_is_repaired_first() {
    let (mut world, tenant) = filled(World::on_nodes(74, 2, 4, CODED), 40);
    world.join(4);
    let others = world.apart.as_ref().unwrap().others.clone();
    others.iter().chain([&world.fragments]).for_each(|one| one.set_put_delay(Duration::from_millis(200)));
    world.await_that("some have moved", |world| moved(world) > 3);
    others[0].fail(4);
    world.await_that("repair is about it", |world| {
        let state = world.engine.repair_state();
        state.backlog > 3 && state.devices_walked != 12
    });
    pause(&world, 600); // what has begun ends
    let (then, left) = (moved(&world), surplus(&by_node(&world), 3));
    assert!(left > 5, "in the middle");
    world.await_that("repair is done", |world| {
        let state = world.engine.repair_state();
        assert!(state.backlog == 0 || moved(world) == then, "I-D1: repair comes first");
        state.backlog == 0 && state.devices_walked == 11
    });
    world.await_rebalanced(11);
    assert_eq!(surplus(&by_node(&world), 3), 0, "I-D4");
    assert_readable(&world, tenant, 40);
}

/// One node of eight devices that are filled to three eighths.
fn part_full(seed: u64, percent: u8, objects: u64) -> (World, TenantId) {
    let rebalance = RebalanceSettings { fill_difference_percent: percent };
    let (world, tenant) =
        filled(World::with_upkeep(seed, 8, CODED, Upkeep { rebalance, ..Upkeep::default() }), objects);
    let used = world.fragments.used_bytes();
    world.fragments.tell_fill(used / 3);
    (world, tenant)
}

/// Thousandths of fill of each device.
fn fills(world: &World) -> Vec<u64> {
    world.all_fragments.devices().iter().filter_map(|device| device.fill_permille()).collect()
}

#[test]
fn a_device_that_joins_gets_its_share_in_the_fewest_moves_and_then_it_ends() {
    let (world, tenant) = part_full(75, 5, 240);
    world.sleep(30);
    let (before, already) = (world.fragments.bytes_by_device(), moved(&world));
    let free_before = fills(&world);
    world.fragments.add_device();
    world.await_rebalanced(9);
    let (after, fills) = (world.fragments.bytes_by_device(), fills(&world));
    let state = world.engine.rebalance_state();
    let gain = |(device, bytes): (_, &u64)| bytes.saturating_sub(before.get(device).copied().unwrap_or_default());
    let least: u64 = after.iter().map(gain).sum();
    println!("balanced {} bytes, at the least {least}; fill was {free_before:?}, is {fills:?}", state.balanced.bytes);
    let new = *fills.last().unwrap();
    assert!((280..=380).contains(&new), "its share is 333: {fills:?}");
    assert!(state.balanced.bytes <= least + least / 10, "moved {} of {least}", state.balanced.bytes);
    assert_eq!(state.spread.fragments, 0);
    assert_once(&world, "when it is done");
    assert_readable(&world, tenant, 240);
    let then = moved(&world);
    assert!(then > already);
    world.sleep(5 * 3600);
    assert_eq!(moved(&world), then, "it has ended");
    // What comes and goes later tips nothing over.
    delete_all(&world, tenant, 60);
    for index in 0..60 {
        world.put(tenant, "bucket", &index.to_string(), &content(index)).unwrap();
    }
    world.sleep(5 * 3600);
    assert!(moved(&world) - then < 20, "no fragment goes back and forth: {} more", moved(&world) - then);
}

#[test]
fn balancing_can_be_off_and_small_differences_are_none() {
    for percent in [0, 50] {
        let (world, _) = part_full(76, percent, 60);
        world.fragments.add_device();
        world.await_rebalanced(9);
        world.sleep(2 * 3600);
        let new = world.fragments.bytes_by_device()[&MemoryFragments::device(8)];
        assert_eq!((moved(&world), new), (0, 0), "at {percent} percent");
    }
}

#[test]
fn a_full_device_is_no_target_and_is_waited_for() {
    let (world, _) = part_full(77, 5, 60);
    world.fragments.set_put_delay(Duration::from_millis(5));
    world.fragments.add_device();
    world.fragments.refuse_puts(true);
    world.await_that("it waits for room", |world| world.engine.rebalance_state().waits_for == Some(Hindrance::Room));
    assert_eq!(moved(&world), 0);
    assert_whole(&world, "without room");
    world.fragments.refuse_puts(false);
    world.await_rebalanced(9);
    assert!(moved(&world) > 10);
}

#[test]
fn it_keeps_to_the_rate_of_repair_and_gives_way_to_clients() {
    let rate = 1 << 20;
    let seconds = |serves_clients: bool| {
        let repair = RepairSettings { bytes_per_second_max: rate, stripes_at_once: 2 };
        let upkeep = Upkeep { repair, ..Upkeep::default() };
        let (world, tenant) = filled(World::with_upkeep(78, 8, CODED, upkeep), 240);
        world.fragments.tell_fill(world.fragments.used_bytes() / 4);
        world.sleep(30);
        world.fragments.add_device();
        let start = world.sim.ports(NODE).now();
        world.await_that("it is done", |world| {
            if serves_clients {
                assert!(world.get(tenant, "bucket", "1").is_ok());
            }
            let state = world.engine.rebalance_state();
            state.is_at_rest && state.devices_surveyed == 9
        });
        let touched = world.engine.core().repair_counters.bytes_moved.get();
        (world.sim.ports(NODE).now().since(start).as_secs_f64(), touched as f64 / rate as f64)
    };
    let (alone, at_full_rate) = seconds(false);
    assert!(alone > 0.8 * at_full_rate && alone < at_full_rate + 5.0, "{alone} s for {at_full_rate} s of work");
    let (busy, _) = seconds(true);
    assert!(busy > 2.5 * alone, "{busy} s beside clients, {alone} s alone");
}

#[test]
fn i_d4_what_an_upload_wrote_before_a_node_joined_spreads_when_it_is_done() {
    let (mut world, tenant) = filled(World::on_nodes(79, 2, 3, CODED), 4);
    let bytes = noise(5, 12 << 20);
    let (first, rest) = bytes.split_at(10 << 20);
    let mut writer = world.run(world.store.put(tenant, "bucket", "slow", Some(bytes.len() as u64))).unwrap();
    world.run(async {
        for piece in first.chunks(100_000) {
            writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
    });
    world.sleep(2);
    let (stripes, open) = (by_node(&world).len(), surplus(&by_node(&world), 3));
    assert!(stripes > 4 && open > 0, "{stripes} stripes, {open} fragments too many on a node");
    world.join(3);
    world.await_rebalanced(9);
    let left = surplus(&by_node(&world), 3);
    assert!(left > 0, "what is being written is left alone: {stripes} stripes, {open} before");
    world.sleep(300);
    world.run(async {
        for piece in rest.chunks(100_000) {
            writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        writer.finish(FinishWrite::default()).await.unwrap();
    });
    world.sleep(130);
    assert_eq!(surplus(&by_node(&world), 3), 0, "I-D4");
    assert!(world.get(tenant, "bucket", "slow").unwrap() == bytes);
}

#[test]
fn i_d4_a_fragment_that_is_there_twice_is_freed_when_nothing_changes_any_more() {
    let (world, tenant) = filled(World::with_devices(80, 8, CODED), 4);
    world.fragments.add_device();
    world.await_rebalanced(9);
    world.sleep(20); // all walks are over, and another survey comes
    let before = world.fragments.count();
    world.fragments.land_again();
    assert!(world.fragments.count() > before);
    world.sleep(130);
    assert_once(&world, "a put that landed late");
    assert_eq!(world.fragments.count(), before);
    assert_readable(&world, tenant, 4);
}
