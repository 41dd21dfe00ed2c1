//! Devices that are emptied and leave: everything stays readable and at full width on the way, whatever happens beside.

use crate::support::{CODED, MemoryFragments, NODE, World, assert_readable, content, filled, put};
use futures::channel::oneshot;
use kiseki_engine::api::{Condition, FinishWrite, StoreError};
use kiseki_engine::device_record::DeviceUpdate;
use kiseki_engine::retirement::{GiveUp, retire};
use kiseki_types::fragment::DeviceState;
use kiseki_types::runtime::RuntimeExt;
use std::collections::BTreeSet;
use std::time::Duration;

/// Every index of every stripe lies on a device that works, no device twice: at any moment.
pub fn assert_whole(world: &World, what: &str) {
    for (name, good) in world.fragments.good() {
        let indices: BTreeSet<u8> = good.iter().map(|(index, _)| *index).collect();
        let devices: BTreeSet<_> = good.iter().map(|(_, device)| *device).collect();
        assert!(indices.len() == 3 || indices.len() == 6, "I-D4: {what}: {name:?} is not whole: {good:?}");
        assert_eq!(devices.len(), good.len(), "I-D4: {what}: {name:?} uses a device twice: {good:?}");
    }
}

fn assert_once(world: &World, what: &str) {
    for (name, good) in world.fragments.good() {
        assert!(good.len() == 3 || good.len() == 6, "{what}: {name:?} holds fragments twice: {good:?}");
    }
}

fn await_empty(world: &World, device: u8) {
    world.await_that("the device is empty", |world| {
        assert_whole(world, "while it is emptied");
        world.held_by(device) == 0
    });
}

pub fn retire_now(world: &World, device: u8, give_up: GiveUp) -> Result<DeviceState, StoreError> {
    let (calls, ports) = (world.engine.calls().clone(), world.sim.ports(NODE));
    let device = MemoryFragments::device(device);
    world.run(async move { retire(&calls, &ports, device, "test", give_up).await }).map(|record| record.state())
}

pub fn refusal(result: Result<DeviceState, StoreError>) -> String {
    match result {
        Err(StoreError::Invalid { what }) => what,
        other => panic!("not refused: {other:?}"),
    }
}

fn cancel(world: &World, device: u8) {
    world.record(device, DeviceUpdate::CancelEvacuation { reason: "test".to_owned() }).unwrap();
}

#[test]
fn i_d4_i_d5_a_device_is_emptied_under_load_and_leaves() {
    let (world, tenant) = filled(World::new(50), 40);
    world.record_opened();
    assert!(refusal(retire_now(&world, 2, GiveUp::Nothing)).contains("drain it first"), "I-D5");
    let held = world.held_by(2);
    assert!(held > 10);
    world.fragments.set_put_delay(Duration::from_secs(2));
    world.evacuate(2);
    let text = refusal(retire_now(&world, 2, GiveUp::Nothing));
    assert!(text.contains("I-D5") && text.contains("still live"), "{text}");
    world.fragments.set_put_delay(Duration::from_millis(20));
    world.fragments.take_puts();
    for index in 40..60 {
        world.put(tenant, "bucket", &index.to_string(), &content(index)).unwrap();
        assert_whole(&world, "between writes");
    }
    assert!(world.run(world.store.delete(tenant, "bucket", "1", Condition::None)).unwrap());
    world.put(tenant, "bucket", "1", &content(1)).unwrap();
    await_empty(&world, 2);
    assert!(world.engine.core().repair_counters.fragments_moved.get() >= held / 2, "I-O2: it is counted");
    world.await_full_width();
    assert_once(&world, "when it is done");
    assert_readable(&world, tenant, 60);
    assert_eq!(retire_now(&world, 2, GiveUp::Nothing).unwrap(), DeviceState::Removed);
    assert!(refusal(retire_now(&world, 2, GiveUp::Nothing)).contains("removed already"));
    for index in 60..80 {
        world.put(tenant, "bucket", &index.to_string(), &content(index)).unwrap();
    }
    assert_eq!(world.held_by(2), 0, "I-D5: nothing is placed on a device that has left");
    world.fragments.fail(2);
    world.fragments.fail(0);
    world.fragments.fail(5);
    assert_readable(&world, tenant, 80);
}

#[test]
fn i_d4_two_devices_are_emptied_at_once() {
    let (world, tenant) = filled(World::new(51), 40);
    world.record_opened();
    world.fragments.set_put_delay(Duration::from_millis(5));
    world.evacuate(1);
    world.evacuate(6);
    await_empty(&world, 1);
    await_empty(&world, 6);
    world.await_full_width();
    assert_once(&world, "two devices at once");
    assert_readable(&world, tenant, 40);
}

#[test]
fn i_d3_a_cancelled_evacuation_leaves_everything_valid_and_the_device_in_use() {
    for seed in 0..10 {
        let (world, tenant) = filled(World::new(300 + seed), 30);
        world.record_opened();
        let (before, held) = (world.fragments.count(), world.held_by(3));
        world.fragments.set_put_delay(Duration::from_millis(100));
        world.evacuate(3);
        let ports = world.sim.ports(NODE);
        world.run(async move { ports.sleep(Duration::from_millis(1100 + 37 * seed)).await });
        cancel(&world, 3);
        let moved = || world.engine.core().repair_counters.fragments_moved.get();
        world.await_that("what has begun ends", |world| world.engine.repair_state().moving == 0);
        let moved_then = moved();
        assert!(moved_then < held, "seed {seed}: cancelled in the middle");
        world.sleep(10);
        assert_eq!(moved(), moved_then, "seed {seed}: nothing moves any more");
        assert_whole(&world, "after the cancel");
        assert_once(&world, "after the cancel");
        assert_eq!(world.fragments.count(), before, "seed {seed}");
        assert_readable(&world, tenant, 30);
        assert!(refusal(retire_now(&world, 3, GiveUp::Nothing)).contains("healthy"));
        let before = world.held_by(3);
        for index in 30..50 {
            world.put(tenant, "bucket", &index.to_string(), &content(index)).unwrap();
        }
        assert!(world.held_by(3) > before, "seed {seed}: it takes fragments again");
    }
}

#[test]
fn i_d2_an_evacuation_goes_on_after_a_restart_at_any_point() {
    for seed in 0..10 {
        let (mut world, tenant) = filled(World::new(400 + seed), 30);
        world.record_opened();
        world.fragments.set_put_delay(Duration::from_millis(100));
        world.evacuate(4);
        for restart in 0..3 {
            let ports = world.sim.ports(NODE);
            world.run(async move { ports.sleep(Duration::from_millis(1010 + 31 * seed + 7 * restart)).await });
            world.restart();
        }
        await_empty(&world, 4);
        world.await_full_width();
        assert_once(&world, "after restarts");
        assert_readable(&world, tenant, 30);
        let records = world.run(world.engine.device_records()).unwrap();
        assert_eq!(records[4].state(), DeviceState::Evacuating, "I-D2: it is durable");
    }
}

#[test]
fn i_d5_a_write_that_began_before_counts_until_it_has_ended() {
    let (world, tenant) = filled(World::new(52), 0);
    world.record_opened();
    world.fragments.set_put_delay(Duration::from_secs(3));
    let (store, ports) = (world.store.clone(), world.sim.ports(NODE));
    let (sender, done) = oneshot::channel();
    // Coded 4+2 over eight devices: its fragments lie on six of them.
    let task = async move {
        let written = put(&store, tenant, "bucket", "late", &content(1), FinishWrite::default()).await;
        let _ = sender.send(written.is_ok());
    };
    ports.spawn("client", Box::pin(task));
    world.run(async move { ports.sleep(Duration::from_millis(500)).await });
    let spares: Vec<u8> = (0..8).filter(|device| world.held_by(*device) == 0).collect();
    let targets: Vec<u8> = (0..8).filter(|device| world.held_by(*device) > 0).collect();
    assert_eq!((targets.len(), spares.len()), (6, 2));
    // The write will turn to the two that it did not need: it chose before they were to be emptied.
    world.fragments.fail(targets[0]);
    world.fragments.fail(targets[1]);
    spares.iter().for_each(|spare| world.evacuate(*spare));
    world.fragments.set_put_delay(Duration::ZERO);
    let started = world.sim.ports(NODE).now();
    let first = retire_now(&world, spares[0], GiveUp::Nothing);
    assert!(world.sim.ports(NODE).now().since(started) > Duration::from_secs(2), "I-D5: it waits for the write");
    assert!(world.run(done).unwrap());
    world.sleep(5);
    if let Ok(DeviceState::Removed) = first {
        assert_eq!(world.held_by(spares[0]), 0, "I-D5: something came after it had left");
    }
    assert!(world.get(tenant, "bucket", "late").unwrap() == content(1));
}

#[test]
fn i_d4_with_too_few_devices_it_says_what_it_waits_for_and_no_stripe_loses_width() {
    let world = World::with_devices(53, 7, CODED);
    world.record_opened();
    world.fragments.fail(6);
    let (world, tenant) = filled(world, 20);
    world.await_full_width();
    world.evacuate(0);
    let device = MemoryFragments::device(0);
    world.await_that("it waits", |world| {
        assert_whole(world, "with too few devices");
        world.engine.evacuation_states().get(&device).is_some_and(|state| state.devices_wanted == 1)
    });
    assert!(world.engine.evacuation_states()[&device].waiting > 5);
    for index in 20..30 {
        world.put(tenant, "bucket", &index.to_string(), &content(index)).unwrap();
    }
    assert_eq!(world.engine.core().counters.stripes_degraded.get(), 0, "a write gets its width, even on that device");
    assert_whole(&world, "written meanwhile");
    world.fragments.bring_back(6);
    await_empty(&world, 0);
    world.await_full_width();
    assert_readable(&world, tenant, 30);
}

#[test]
fn i_d4_a_full_pool_is_waited_for() {
    let (world, tenant) = filled(World::new(54), 20);
    world.record_opened();
    world.fragments.set_capacity(1);
    world.evacuate(5);
    let device = MemoryFragments::device(5);
    world.await_that("it waits for room", |world| {
        assert_whole(world, "without room");
        world.engine.evacuation_states().get(&device).is_some_and(|state| state.no_room)
    });
    assert!(!world.engine.repair_state().no_room, "repair is not held up by that");
    world.fragments.set_capacity(1 << 30);
    await_empty(&world, 5);
    assert_readable(&world, tenant, 20);
}

#[test]
fn i_d1_a_device_that_fails_while_it_is_emptied_is_repaired() {
    let (world, tenant) = filled(World::new(55), 40);
    world.record_opened();
    world.fragments.set_put_delay(Duration::from_millis(50));
    world.evacuate(7);
    world.await_that("some have moved", |world| world.engine.core().repair_counters.fragments_moved.get() > 3);
    world.fragments.fail(7);
    world.fragments.set_put_delay(Duration::ZERO);
    world.await_full_width();
    assert_whole(&world, "after its failure");
    let failed = DeviceUpdate::Lost { state: DeviceState::Failed, reason: "test".to_owned() };
    world.record(7, failed).unwrap();
    world.fragments.fail(0);
    world.fragments.fail(1);
    assert_readable(&world, tenant, 40);
}

#[test]
fn i_d1_repair_of_endangered_stripes_comes_before_moves() {
    let (world, _) = filled(World::new(56), 60);
    world.record_opened();
    world.evacuate(0);
    world.fragments.set_put_delay(Duration::from_millis(200));
    world.sleep(2);
    let leaving: BTreeSet<_> = world.fragments.stripes().into_keys().collect();
    world.fragments.fail(1);
    let whole = |good: &Vec<(u8, _)>| good.len() == 3 || good.len() >= 6;
    world.await_that("the loss is repaired", |world| world.fragments.good().values().all(whole));
    assert!(world.held_by(0) > 5, "I-D1: moves wait: {} of {}", world.held_by(0), leaving.len());
    world.fragments.set_put_delay(Duration::ZERO);
    await_empty(&world, 0);
}

#[test]
fn i_c9_what_is_rotten_on_a_device_that_is_emptied_is_repaired() {
    let (world, tenant) = filled(World::new(57), 20);
    world.record_opened();
    world.fragments.rot(&[1]);
    world.evacuate(2);
    world.await_that("the device is empty", |world| world.held_by(2) == 0);
    world.await_full_width();
    assert_readable(&world, tenant, 20);
}

#[test]
fn i_c2_what_is_collected_while_its_device_is_emptied_does_not_come_back() {
    for seed in 0..30 {
        let (world, tenant) = filled(World::new(500 + seed), 8);
        world.record_opened();
        world.fragments.set_put_delay(Duration::from_millis(400));
        world.evacuate(1);
        let ports = world.sim.ports(NODE);
        world.run(async move { ports.sleep(Duration::from_millis(900 + 60 * seed)).await });
        for index in 0..8 {
            let key = index.to_string();
            assert!(world.run(world.store.delete(tenant, "bucket", &key, Condition::None)).unwrap());
        }
        world.sleep(60);
        assert_eq!(world.fragments.count(), 0, "I-C2: seed {seed}: fragments of freed generations are left");
        let freed: u64 = world.engine.core().homes.counters.freed.get();
        assert_eq!(freed, 8, "seed {seed}");
        retire_now(&world, 1, GiveUp::Nothing).unwrap();
    }
}

#[test]
fn i_d5_a_device_that_is_lost_leaves_when_no_stripe_needs_it_and_collection_lets_go_of_it() {
    let (world, tenant) = filled(World::new(58), 12);
    world.record_opened();
    world.fragments.fail(3);
    let failed = DeviceUpdate::Lost { state: DeviceState::Unreachable, reason: "test".to_owned() };
    world.record(3, failed).unwrap();
    let text = refusal(retire_now(&world, 3, GiveUp::Nothing).map_err(|error| match error {
        StoreError::Invalid { what } => StoreError::Invalid { what },
        other => panic!("{other}"),
    }));
    assert!(text.contains("not whole") || text.contains("still looking"), "I-D5: {text}");
    world.await_full_width();
    for index in 0..12 {
        assert!(world.run(world.store.delete(tenant, "bucket", &index.to_string(), Condition::None)).unwrap());
    }
    let freed = |world: &World| world.engine.core().homes.counters.freed.get();
    world.sleep(120);
    assert!(freed(&world) < 12 && world.fragments.count() > 0, "what lies on a device that may come back is kept");
    assert_eq!(retire_now(&world, 3, GiveUp::Nothing).unwrap(), DeviceState::Removed);
    world.await_that("collection lets go", |world| freed(world) == 12);
    assert_eq!(world.fragments.count(), 0, "the index says nothing of it any more");
}

#[test]
fn i_d5_what_only_a_lost_device_holds_is_given_up_only_when_that_is_said() {
    let world = World::with_devices(59, 6, CODED);
    let (world, _) = filled(world, 8);
    world.record_opened();
    world.fragments.fail(3);
    let failed = DeviceUpdate::Lost { state: DeviceState::Failed, reason: "test".to_owned() };
    world.record(3, failed).unwrap();
    world.await_that("repair waits", |world| {
        let state = world.engine.repair_state();
        state.devices_walked == 5 && state.waiting > 0 && state.backlog == 0
    });
    let text = refusal(retire_now(&world, 3, GiveUp::Nothing));
    assert!(text.contains("I-D5") && text.contains("--lost"), "{text}");
    assert_eq!(retire_now(&world, 3, GiveUp::WhatIsLost).unwrap(), DeviceState::Removed);
}
