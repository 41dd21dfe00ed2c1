//! Fragments on several nodes: one engine, and nodes that hold fragments and fall silent.

use crate::support::{CODED, MemoryFragments, NODE, World, assert_readable, content, filled, noise};
use kiseki_engine::api::{Condition, StoreError};
use kiseki_engine::cluster_fragments::fragment_handler;
use kiseki_types::buf::IoBuf;
use kiseki_types::fragment::{
    DeviceState, DeviceUse, FragmentError, FragmentKey, FragmentMeta, StoredFragment, StripeShape,
};
use kiseki_types::ids::{Generation, LaneId, Locator, MapEpoch, NodeId, PoolId};
use kiseki_types::peer::{Parcel, PeerIdentity};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// Every stripe has each index once, and on no node more than `most` of them.
fn assert_spread(world: &World, most: usize, what: &str) {
    for (name, good) in world.good_by_node() {
        let indices: BTreeSet<u8> = good.iter().map(|(index, _)| *index).collect();
        let width = if good.len() == 3 { 3 } else { 6 };
        assert_eq!((good.len(), indices.len()), (width, width), "{what}: {name:?}: {good:?}");
        let mut by_node = BTreeMap::<u64, usize>::new();
        good.iter().for_each(|(_, node)| *by_node.entry(*node).or_default() += 1);
        assert!(by_node.values().all(|count| *count <= most), "I-D4: {what}: {name:?}: {by_node:?}");
    }
}

fn meta(index: u8, payload: usize) -> FragmentMeta {
    FragmentMeta {
        key: FragmentKey { locator: Locator([9; 32]), generation: Generation(4), index },
        shape: CODED,
        pool: PoolId(0),
        envelope_len_bytes: 4 * payload as u32,
        payload_len_bytes: payload as u32,
        map_epoch: MapEpoch(1),
        devices: Vec::new(),
    }
}

fn is_silent(world: &World, node: u64) -> bool {
    let devices = world.all_fragments.devices();
    devices.iter().filter(|device| device.node == NodeId(node)).all(|one| one.state == DeviceState::Unreachable)
}

fn fall_silent(world: &World, node: u64) {
    world.apart.as_ref().unwrap().cut(node);
    world.await_that("it counts as silent", |world| is_silent(world, node));
}

fn heal(world: &World) {
    world.apart.as_ref().unwrap().net.heal();
    world.await_all_heard();
}

#[test]
fn what_is_put_on_another_node_is_found_read_and_freed_there() {
    let world = World::on_nodes(1, 3, 2, CODED);
    let (store, others) = (&world.all_fragments, &world.apart.as_ref().unwrap().others);
    let owners: Vec<u64> = store.devices().iter().map(|device| device.node.0).collect();
    assert_eq!(owners, [1, 1, 2, 2, 3, 3]);
    let bytes = noise(1, 8192);
    for (index, device) in [(0, 0), (1, 2), (2, 5)] {
        let part = |range: std::ops::Range<usize>| IoBuf::copy_of(&bytes[range]).freeze();
        let parts = vec![part(0..4096), part(4096..8192)];
        let put = store.put(MemoryFragments::device(device), meta(index, 8192), parts);
        assert_eq!(world.run(put).unwrap().device, MemoryFragments::device(device));
    }
    let second = store.put_for_upkeep(MemoryFragments::device(2), meta(3, 8192), vec![IoBuf::zeroed(8192).freeze()]);
    assert!(matches!(world.run(second), Err(FragmentError::SecondOfStripe { .. })), "its own refusal comes back");
    assert_eq!((world.fragments.count(), others[0].count(), others[1].count()), (1, 1, 1));

    let located = world.run(store.locate(Locator([9; 32]), Generation(4))).unwrap();
    assert!(located.is_all());
    assert_eq!(located.found.iter().map(|found| found.meta.key.index).collect::<Vec<_>>(), [0, 1, 2]);
    let here = world.run(store.locate_here(Locator([9; 32]), Generation(4))).unwrap();
    assert_eq!(here.len(), 1, "only what this node's index lists");
    for found in &located.found {
        let read = world.run(store.read(found, 100..5000)).unwrap();
        assert!(*read == bytes[100..5000], "fragment {}", found.meta.key.index);
    }
    others[0].rot(&[1]);
    let rotten = world.run(store.read(&located.found[1], 0..8192));
    assert!(matches!(rotten, Err(FragmentError::Corrupt { index: 1, .. })), "{rotten:?}");

    assert_eq!(store.use_of(MemoryFragments::device(2)), Some(DeviceUse::default()), "another node looks after it");
    assert_eq!(store.use_of(MemoryFragments::device(0)).unwrap().fragments, 1);
    assert!(world.run(store.held_on(MemoryFragments::device(5), None, 10)).unwrap().is_empty());
    for found in &located.found {
        world.run(store.release(found)).unwrap();
    }
    // A device that nobody has any more: whoever lists it lets go of it.
    let mut gone = located.found[1].clone();
    gone.extent.device = MemoryFragments::device(77);
    world.run(store.forget(&gone)).unwrap();
    assert_eq!((world.fragments.count(), others[0].count(), others[1].count()), (0, 0, 0));
}

#[test]
fn a_silent_node_makes_absence_unknown_and_its_devices_unreachable() {
    let world = World::on_nodes(2, 3, 2, CODED);
    let store = &world.all_fragments;
    let put = |index, device| {
        let payload = vec![IoBuf::copy_of(&[7; 4096]).freeze()];
        world.run(store.put(MemoryFragments::device(device), meta(index, 4096), payload))
    };
    put(0, 0).unwrap();
    put(1, 4).unwrap();
    let of_three = world.run(store.locate(Locator([9; 32]), Generation(4))).unwrap().found.remove(1);
    world.apart.as_ref().unwrap().cut(3);
    // Before it counts as silent it is asked, and does not answer in time.
    let located = world.run(store.locate(Locator([9; 32]), Generation(4))).unwrap();
    assert_eq!((located.found.len(), located.unanswered.clone()), (1, vec![NodeId(3)]));
    assert!(matches!(located.all(), Err(FragmentError::Unknown { .. })));
    assert!(matches!(put(2, 5), Err(FragmentError::Unanswered { .. })));
    world.await_that("it counts as silent", |world| is_silent(world, 3));
    let began = world.sim.ports(NODE).now();
    assert_eq!(world.run(store.locate(Locator([9; 32]), Generation(4))).unwrap().unanswered, [NodeId(3)]);
    for failed in [world.run(store.release(&of_three)), world.run(store.read(&of_three, 0..10)).map(drop)] {
        assert!(matches!(failed, Err(FragmentError::Unanswered { .. })), "what it has may be back: {failed:?}");
    }
    let refused = put(2, 5);
    assert!(matches!(refused, Err(FragmentError::DeviceFailed { .. })), "it was never sent there: {refused:?}");
    assert!(world.sim.ports(NODE).now().since(began).as_millis() < 100, "who is silent is not waited for");
    heal(&world);
    let located = world.run(store.locate(Locator([9; 32]), Generation(4))).unwrap();
    assert!(located.is_all() && located.found.len() >= 2);
    assert!(store.devices().iter().all(|device| device.state == DeviceState::Healthy));
}

#[test]
fn a_node_that_refuses_takes_nothing_of_clients_and_upkeep_goes_on_to_another_device() {
    let world = World::on_nodes(4, 3, 2, CODED);
    let store = &world.all_fragments;
    world.apart.as_ref().unwrap().stop(&world.sim, 3);
    let (device, payload) = (MemoryFragments::device(4), || vec![IoBuf::copy_of(&[7; 4096]).freeze()]);
    let refused = world.run(store.put(device, meta(0, 4096), payload()));
    assert!(matches!(refused, Err(FragmentError::Unanswered { .. })), "no device of it takes any: {refused:?}");
    // Repair waits where a fragment may have been put all the same; here it was not.
    let refused = world.run(store.put_for_upkeep(device, meta(0, 4096), payload()));
    assert!(matches!(refused, Err(FragmentError::DeviceFailed { .. })), "the next device is tried: {refused:?}");
}

#[test]
fn a_node_that_does_not_know_the_others_yet_finds_and_puts_nothing() {
    let world = World::on_nodes(3, 1, 4, CODED);
    let unknown = kiseki_engine::nodes::NodeBoard::new(NodeId(1));
    let peers = world.apart.as_ref().unwrap().net.calls(NodeId(1), world.sim.ports(NODE));
    let store = kiseki_engine::cluster_fragments::ClusterFragments::new(
        world.sim.ports(NODE),
        unknown.clone(),
        peers,
        Rc::new(world.fragments.clone()),
        kiseki_types::buf::plain_buffers(),
    );
    use kiseki_types::fragment::FragmentStore;
    let put = || store.put(MemoryFragments::device(0), meta(0, 4096), vec![IoBuf::zeroed(4096).freeze()]);
    assert!(world.run(put()).is_err());
    assert!(world.run(store.locate(Locator([9; 32]), Generation(4))).is_err());
    unknown.take_up(0, &[]);
    world.run(put()).unwrap();
    assert_eq!(world.run(store.locate(Locator([9; 32]), Generation(4))).unwrap().found.len(), 1);
}

#[test]
fn i_o5_what_peers_send_is_checked() {
    let world = World::on_nodes(4, 2, 2, CODED);
    let handler = fragment_handler(Rc::new(world.fragments.clone()));
    let ask = |from, message: &[u8], bulk: Vec<IoBuf>| {
        world.run(handler(from, LaneId(0), Parcel { message: message.to_vec(), bulk })).map(|answer| answer.message)
    };
    let call = |call| kiseki_engine::wire::encode_fragment_call(&call).unwrap();
    use kiseki_engine::wire::FragmentCall;
    let node = PeerIdentity::Node(NodeId(2));
    assert!(ask(PeerIdentity::Admin, &call(FragmentCall::Devices), Vec::new()).is_err(), "not for administrators");
    assert!(ask(node, &call(FragmentCall::Devices), Vec::new()).is_ok());
    assert!(ask(node, &call(FragmentCall::Devices), vec![IoBuf::zeroed(1)]).is_err(), "bytes that belong to nothing");
    assert!(ask(node, b"nonsense", Vec::new()).is_err());
    let device = MemoryFragments::device(0);
    for (index, payload, sent) in [(6, 4096, 4096), (0, 4096, 4095), (0, 4095, 4095), (0, 0, 0), (0, 8 << 20, 8 << 20)]
    {
        let put = FragmentCall::Put { device, meta: meta(index, payload), is_upkeep: false };
        // Some of it is refused where it is sent already.
        let Ok(message) = kiseki_engine::wire::encode_fragment_call(&put) else { continue };
        assert!(ask(node, &message, vec![IoBuf::zeroed(sent)]).is_err(), "{index}, {payload}, {sent}");
    }
    let extent = kiseki_types::units::Extent {
        device,
        start: kiseki_types::units::BlockIndex(0),
        len: kiseki_types::units::BlockCount(2),
    };
    let fragment = StoredFragment { meta: meta(0, 4096), extent };
    for range in [0..4097, 5000..6000] {
        let Ok(message) =
            kiseki_engine::wire::encode_fragment_call(&FragmentCall::Read { fragment: fragment.clone(), range })
        else {
            continue;
        };
        assert!(ask(node, &message, Vec::new()).is_err());
    }
    assert_eq!(world.fragments.count(), 0);
}

#[test]
fn i_d4_stripes_spread_over_the_nodes_and_deletes_free_them_everywhere() {
    let (world, tenant) = filled(World::on_nodes(5, 3, 4, CODED), 20);
    assert_spread(&world, 2, "as written");
    assert_readable(&world, tenant, 20);
    for index in 0..20u64 {
        world.run(world.store.delete(tenant, "bucket", &index.to_string(), Condition::None)).unwrap();
    }
    world.await_that("everything is freed", |world| world.good_by_node().is_empty());
}

#[test]
fn reads_and_writes_go_on_with_a_node_away_and_its_return_brings_full_width() {
    // One device each, so five fragments are all that five nodes take.
    let (world, tenant) = filled(World::on_nodes(6, 6, 1, CODED), 12);
    fall_silent(&world, 4);
    assert_readable(&world, tenant, 12);
    for index in 12..20u64 {
        world.put(tenant, "bucket", &index.to_string(), &content(index)).unwrap();
    }
    assert_readable(&world, tenant, 20);
    world.sleep(60);
    assert_eq!(world.engine.core().repair_counters.fragments.get(), 0, "a node that is awaited is waited for");
    let degraded = world.engine.core().counters.stripes_degraded.get();
    assert!((5..=8).contains(&degraded), "{degraded} stripes wait for the node");
    heal(&world);
    world
        .await_that("full width", |world| world.good_by_node().values().all(|good| good.len() == 6 || good.len() == 3));
    world.sleep(120);
    assert_spread(&world, 1, "after its return");
    assert_eq!(world.engine.core().repair_counters.fragments.get(), degraded, "nothing but what was missing");
    assert_readable(&world, tenant, 20);
}

#[test]
fn what_would_not_survive_the_loss_of_a_node_is_not_acknowledged() {
    // 4+2 on three nodes: on one of them neither six fragments nor three copies survive its loss.
    let (world, tenant) = filled(World::on_nodes(7, 3, 8, CODED), 4);
    fall_silent(&world, 2);
    fall_silent(&world, 3);
    let before = world.fragments.count();
    for size in [5_000, 200_000] {
        let refused = world.put(tenant, "bucket", "more", &noise(99, size)).unwrap_err();
        assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused}");
        assert!(refused.to_string().contains("nodes"), "{refused}");
    }
    assert_eq!(world.fragments.count(), before, "nothing was written for nothing");
    heal(&world);
    world.put(tenant, "bucket", "more", &noise(99, 200_000)).unwrap();
}

/// Stripes by how many fragments they have, and on how many nodes.
fn widths(world: &World) -> BTreeMap<(usize, usize), usize> {
    let mut widths = BTreeMap::new();
    for good in world.good_by_node().into_values() {
        let nodes: BTreeSet<u64> = good.iter().map(|(_, node)| *node).collect();
        *widths.entry((good.len(), nodes.len())).or_default() += 1;
    }
    widths
}

#[test]
fn three_nodes_coded_4_2_go_on_writing_without_one_of_them() {
    // Without one, three fragments of six would lie on a node; of three copies no node needs to have all.
    for (seed, devices) in [(14, 4), (15, 2)] {
        let (world, tenant) = filled(World::on_nodes(seed, 3, devices, CODED), 4);
        let counters = &world.engine.core().counters;
        fall_silent(&world, 2);
        let before = widths(&world);
        for index in 100..108u64 {
            world.put(tenant, "bucket", &index.to_string(), &noise(index, 200_000)).unwrap();
        }
        let as_copies = counters.stripes_as_copies.get();
        assert!(as_copies >= 8, "{as_copies}");
        let (degraded, now) = (counters.stripes_degraded.get(), widths(&world));
        let written = now.get(&(3, 2)).copied().unwrap_or_default() - before.get(&(3, 2)).copied().unwrap_or_default();
        assert_eq!((written as u64, degraded), (as_copies, 0), "each has its three copies, on both nodes: {now:?}");
        let all_there = |world: &World| {
            for index in 100..108u64 {
                let read = world.get(tenant, "bucket", &index.to_string()).unwrap();
                assert!(read == noise(index, 200_000), "{index} with {devices} devices a node");
            }
            assert_readable(world, tenant, 4);
        };
        all_there(&world);
        // What was stored before can't be named anew while it could not be written like that; it is stored once more.
        world.put(tenant, "bucket", "again", &content(3)).unwrap();
        heal(&world);
        // No node but the one that was away has what a stripe needs.
        world.await_that("copies lie on three nodes", |world| widths(world).keys().all(|(_, nodes)| *nodes == 3));
        assert_eq!(world.engine.repair_state().lost, 0);
        fall_silent(&world, 3);
        all_there(&world);
        heal(&world);
        let coded = counters.stripes_as_copies.get();
        world.put(tenant, "bucket", "coded", &noise(77, 200_000)).unwrap();
        assert_eq!(counters.stripes_as_copies.get(), coded, "all nodes answer: coded again");
        // Each version of a chunk is collected when nothing names it.
        for key in (0..4u64).chain(100..108).map(|index| index.to_string()).chain(["again".into(), "coded".into()]) {
            world.run(world.store.delete(tenant, "bucket", &key, Condition::None)).unwrap();
        }
        world.await_that("everything is freed", |world| world.good_by_node().is_empty());
    }
}

#[test]
fn a_write_goes_on_as_copies_when_a_node_falls_silent_under_it() {
    let (world, tenant) = filled(World::on_nodes(16, 3, 4, CODED), 2);
    world.apart.as_ref().unwrap().cut(2);
    assert!(!is_silent(&world, 2), "nobody knows yet");
    world.put(tenant, "bucket", "during", &noise(99, 200_000)).unwrap();
    assert!(world.engine.core().counters.stripes_as_copies.get() > 0);
    assert!(world.get(tenant, "bucket", "during").unwrap() == noise(99, 200_000));
    heal(&world);
    world.sleep(2 * 3600);
    world.await_that("what was begun in vain is collected, and copies lie on three nodes", |world| {
        widths(world).keys().all(|(count, nodes)| matches!(count, 3 | 6) && *nodes == 3)
    });
    assert!(world.get(tenant, "bucket", "during").unwrap() == noise(99, 200_000));
}

#[test]
fn writes_do_not_wait_until_a_node_that_stops_counts_as_silent() {
    // With copies the two that are left have room for what the third refuses; 4+2 is begun anew without it.
    for (seed, shape) in [(17, CODED), (18, StripeShape { data: 1, parity: 2 })] {
        let (world, tenant) = filled(World::on_nodes(seed, 3, 4, shape), 2);
        world.apart.as_ref().unwrap().stop(&world.sim, 2);
        let began = world.sim.ports(NODE).now();
        for index in 100..104u64 {
            world.put(tenant, "bucket", &index.to_string(), &noise(index, 200_000)).unwrap();
        }
        let took = world.sim.ports(NODE).now().since(began);
        assert!(took < Duration::from_millis(500) && !is_silent(&world, 2), "{shape:?}: {took:?}");
        for index in 100..104u64 {
            assert!(world.get(tenant, "bucket", &index.to_string()).unwrap() == noise(index, 200_000));
        }
    }
}

#[test]
fn i_d1_a_node_that_is_lost_is_repaired_and_what_it_brings_back_is_freed() {
    let (world, tenant) = filled(World::on_nodes(8, 3, 4, CODED), 16);
    fall_silent(&world, 3);
    world.sleep(200);
    let without = |good: &[(u8, u64)]| {
        let left = good.iter().filter(|(_, node)| *node != 3).map(|(index, _)| *index);
        left.collect::<BTreeSet<u8>>().len()
    };
    let is_copies = |good: &[(u8, u64)]| good.iter().all(|(index, _)| *index < 3);
    let copies: Vec<_> = world.good_by_node().into_values().filter(|good| is_copies(good)).collect();
    assert_eq!(copies.len(), 4);
    assert!(copies.iter().all(|good| without(good) == 2), "what can afford another loss waits for it: {copies:?}");
    let on_two = |world: &World| {
        let stripes = world.good_by_node();
        stripes.values().all(|good| without(good) == if is_copies(good) { 3 } else { 6 })
    };
    world.await_that("it counts as lost, and everything is whole without it", on_two);
    world.put(tenant, "bucket", "more", &noise(99, 200_000)).unwrap();
    assert_readable(&world, tenant, 16);
    heal(&world);
    world.await_that("what it brought back is freed, the best spread kept", |world| {
        world.good_by_node().values().all(|good| good.len() == 6 || good.len() == 3)
    });
    let spread = world.good_by_node().into_values().filter(|good| without(good) < good.len()).count();
    assert_eq!(spread, 16, "all but what was written without it");
    assert_readable(&world, tenant, 16);
}

#[test]
fn a_stripe_that_can_afford_no_other_loss_does_not_wait_for_a_silent_node() {
    let shape = StripeShape { data: 2, parity: 1 };
    let (world, tenant) = filled(World::on_nodes(9, 3, 3, shape), 8);
    fall_silent(&world, 2);
    assert_readable(&world, tenant, 8);
    world.await_that("what was met is repaired", |world| world.engine.core().repair_counters.fragments.get() >= 6);
    heal(&world);
    world.await_that("what came back is freed", |world| world.good_by_node().values().all(|good| good.len() == 3));
    assert_readable(&world, tenant, 8);
}

#[test]
fn i_c2_nothing_is_collected_that_a_silent_node_may_hold() {
    let (world, tenant) = filled(World::on_nodes(10, 3, 3, CODED), 6);
    fall_silent(&world, 3);
    let on_three = world.apart.as_ref().unwrap().others[1].count();
    for index in 0..6u64 {
        world.run(world.store.delete(tenant, "bucket", &index.to_string(), Condition::None)).unwrap();
    }
    world.sleep(120);
    assert!(world.fragments.count() > 0, "generations stay condemned until every node has answered");
    assert_eq!(world.engine.core().homes.counters.freed.get(), 0);
    assert_eq!(world.apart.as_ref().unwrap().others[1].count(), on_three);
    heal(&world);
    world.await_that("everything is freed", |world| world.good_by_node().is_empty());
}

#[test]
fn a_start_repairs_nothing_and_an_unanswered_put_leaves_nothing_behind() {
    let (mut world, tenant) = filled(World::on_nodes(11, 3, 4, CODED), 10);
    world.restart();
    world.sleep(60);
    assert_eq!(world.engine.core().repair_counters.fragments.get(), 0, "nobody had been heard at first");
    assert_eq!(world.engine.repair_state().lost, 0);
    assert_readable(&world, tenant, 10);
    // The answers of a node are lost, its puts are done all the same.
    let net = &world.apart.as_ref().unwrap().net;
    net.cut(NodeId(2), NodeId(1));
    let written = world.put(tenant, "bucket", "more", &noise(99, 200_000));
    heal(&world);
    if written.is_err() {
        world.put(tenant, "bucket", "more", &noise(99, 200_000)).unwrap();
    }
    world.sleep(2 * 3600);
    world.await_that("no fragment is twice and no orphan left", |world| {
        let stripes = world.good_by_node();
        stripes.len() == 11 && stripes.values().all(|good| good.len() == 6 || good.len() == 3)
    });
    assert_readable(&world, tenant, 10);
}

#[test]
fn i_d4_a_put_that_lands_when_another_device_has_its_fragment_is_freed() {
    let (world, tenant) = filled(World::on_nodes(13, 3, 4, CODED), 2);
    world.sleep(200);
    // A node is there, and its devices take longer than a put is waited for.
    let slow = &world.apart.as_ref().unwrap().others[0];
    slow.set_put_delay(Duration::from_secs(11));
    let small = noise(7, 3_000);
    world.put(tenant, "bucket", "late", &small).unwrap();
    slow.set_put_delay(Duration::ZERO);
    world.sleep(5);
    let twice = |world: &World| world.good_by_node().values().filter(|good| good.len() == 4).count();
    assert_eq!(twice(&world), 1, "it has landed: {:?}", world.good_by_node());
    world.sleep(75);
    assert_eq!(twice(&world), 0, "a fragment is kept twice while nothing changes");
    assert!(world.get(tenant, "bucket", "late").unwrap() == small);
}
