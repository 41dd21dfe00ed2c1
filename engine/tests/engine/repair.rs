//! Repair without anybody asking: what devices lose, what rots, what was written degraded.

use crate::support::{CODED, NODE, Upkeep, World, assert_readable, content, filled, noise, put};
use futures::channel::oneshot;
use kiseki_engine::api::{Condition, FinishWrite, StoreError};
use kiseki_engine::repairer::RepairSettings;
use kiseki_types::runtime::RuntimeExt;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Full width: every index once, on a usable device of its own, and nothing more.
fn assert_full_width(world: &World, what: &str) {
    for (name, good) in world.fragments.good() {
        let indices: BTreeSet<u8> = good.iter().map(|(index, _)| *index).collect();
        let devices: BTreeSet<_> = good.iter().map(|(_, device)| *device).collect();
        let width = if good.len() == 3 { 3 } else { 6 };
        assert_eq!(indices.len(), width, "I-D1: {what}: {name:?} is not at full width: {good:?}");
        assert_eq!(devices.len(), good.len(), "I-D4: {what}: {name:?} uses a device twice: {good:?}");
        assert_eq!(good.len(), width, "{what}: {name:?} holds fragments twice: {good:?}");
    }
}

#[test]
fn i_d1_i_d4_lost_devices_are_rebuilt_on_others_one_after_the_other() {
    let (world, tenant) = filled(World::new(1), 40);
    for lost in [2, 5] {
        world.fragments.fail(lost);
        world.await_full_width();
        assert_full_width(&world, "after a loss");
    }
    let counters = &world.engine.core().repair_counters;
    assert!(counters.fragments.get() > 40 && counters.fragment_bytes.get() > 0 && counters.walks.get() >= 3);
    // The proof: four of eight devices are gone now, and two at once is all that 4+2 survives without repair.
    world.fragments.fail(0);
    world.fragments.fail(7);
    assert_readable(&world, tenant, 40);
}

#[test]
fn i_d1_i_d4_two_devices_lost_at_once_are_rebuilt() {
    let (world, tenant) = filled(World::new(2), 40);
    world.fragments.fail(1);
    world.fragments.fail(6);
    world.await_full_width();
    assert_full_width(&world, "after two losses");
    world.fragments.fail(3);
    world.fragments.fail(4);
    assert_readable(&world, tenant, 40);
}

#[test]
fn i_d1_a_device_that_is_missing_at_the_start_is_rebuilt() {
    let (mut world, _) = filled(World::new(3), 20);
    world.fragments.fail(4);
    world.restart();
    world.await_full_width();
    assert_full_width(&world, "after a start without a device");
    // In the middle of a repair the node goes down: the next start goes on without ceremony.
    world.fragments.set_put_delay(Duration::from_millis(300));
    world.fragments.fail(0);
    world.sleep(2);
    assert!(world.engine.repair_state().backlog > 0, "in the middle");
    world.restart();
    world.await_full_width();
    assert_full_width(&world, "after a restart in the middle");
}

#[test]
fn i_d1_a_walk_that_can_not_look_at_a_stripe_goes_on_where_it_is() {
    let (world, tenant) = filled(World::new(14), 0);
    for index in 0..800 {
        world.put(tenant, "bucket", &index.to_string(), &noise(index + 1, 2_000)).unwrap();
    }
    world.sleep(10);
    let spare = world.fragments.locates();
    world.fragments.fail_locate(700);
    world.fragments.fail(0);
    world.await_that("the walk has ended", |world| world.engine.repair_state().devices_walked == 7);
    let looks = world.fragments.locates() - spare;
    let repaired = world.engine.core().repair_counters.fragments.get();
    assert!(looks - repaired < 800 + 2 * 128, "it has begun again: {looks} looks, {repaired} of repairs");
    world.await_full_width();
    assert_full_width(&world, "after a look that failed");
}

#[test]
fn i_d1_the_most_endangered_stripes_come_first() {
    let repair = RepairSettings { stripes_at_once: 1, ..RepairSettings::default() };
    // Many devices and stripes: few lose two, and the walk takes many steps, so that those come up late.
    let (world, tenant) = filled(World::with_upkeep(4, 20, CODED, Upkeep { repair, ..Upkeep::default() }), 0);
    for index in 0..700 {
        world.put(tenant, "bucket", &index.to_string(), &noise(index + 1, 20_000)).unwrap();
    }
    let before = world.fragments.good();
    world.fragments.fail(0);
    world.fragments.fail(1);
    world.fragments.take_puts();
    let lost: BTreeMap<_, usize> =
        world.fragments.good().iter().map(|(name, good)| (*name, before[name].len() - good.len())).collect();
    let count = |wanted: usize| lost.values().filter(|lost| **lost == wanted).count();
    assert!(count(2) > 10 && count(1) > 10, "{} and {}", count(2), count(1));
    world.await_full_width();
    let order: Vec<usize> =
        world.fragments.take_puts().iter().map(|key| lost[&(key.locator, key.generation)]).collect();
    assert_eq!(order.len(), 2 * count(2) + count(1));
    assert!(
        order.is_sorted_by(|a, b| a >= b),
        "I-D1: stripes that lost two come before those that lost one: {order:?}"
    );
    assert_full_width(&world, "in order");
}

#[test]
fn i_d1_with_too_few_devices_it_says_what_it_waits_for_and_then_goes_on() {
    let world = World::with_devices(5, 7, CODED);
    world.fragments.fail(6);
    let (world, tenant) = filled(world, 20);
    let coded = world.fragments.good().values().filter(|good| good.len() == 6).count();
    world.fragments.fail(0);
    world.await_that("repair waits", |world| {
        let state = world.engine.repair_state();
        state.devices_walked == 5 && state.backlog == 0
    });
    let state = world.engine.repair_state();
    assert_eq!((state.waiting, state.devices_wanted), (coded, 1), "I-D1: what it waits for is said");
    // What is read or written meanwhile is no reason to try again and again.
    assert_readable(&world, tenant, 20);
    world.put(tenant, "bucket", "degraded", &noise(77, 200_000)).unwrap();
    assert_eq!(world.engine.core().counters.stripes_degraded.get(), 1);
    world.sleep(5);
    assert_eq!(
        world.engine.repair_state().waiting,
        coded + 1,
        "I-D1: the degraded one waits too, and not from a walk on"
    );
    world.fragments.bring_back(6);
    world.await_full_width();
    assert_full_width(&world, "after a device came");
    world.fragments.fail(3);
    world.fragments.fail(4);
    assert_readable(&world, tenant, 20);
}

#[test]
fn i_d1_what_was_written_degraded_reaches_full_width_after_a_restart() {
    let world = World::with_devices(6, 6, CODED);
    world.fragments.fail(2);
    let (mut world, tenant) = filled(world, 10);
    assert!(world.engine.core().counters.stripes_degraded.get() > 0);
    world.fragments.bring_back(2);
    world.restart();
    world.await_full_width();
    assert_full_width(&world, "after a restart");
    assert_readable(&world, tenant, 10);
}

#[test]
fn i_c9_what_a_read_finds_rotten_is_repaired_behind_it() {
    for devices in [8, 6] {
        let (world, tenant) = filled(World::with_devices(7, devices, CODED), 12);
        let before = world.fragments.count();
        world.fragments.rot(&[1]);
        assert_readable(&world, tenant, 12);
        // With copies a read takes index 0 only, so what rotted there is left to scrub.
        world.await_that("rot is repaired", |world| world.engine.core().repair_counters.fragments.get() == 9);
        world.await_full_width();
        assert_eq!(world.fragments.count(), before, "the bad ones are freed");
        let coded = |good: &&Vec<(u8, _)>| good.len() == 6;
        assert_eq!(world.fragments.good().values().filter(coded).count(), 9, "{devices} devices");
        let rebuilds = world.engine.core().counters.rebuilds.get();
        assert_readable(&world, tenant, 12);
        assert_eq!(world.engine.core().counters.rebuilds.get(), rebuilds, "the next read finds it whole");
    }
}

#[test]
fn i_c2_a_generation_that_is_freed_while_it_is_repaired_does_not_come_back() {
    for seed in 0..30 {
        let (world, tenant) = filled(World::new(100 + seed), 6);
        world.fragments.set_put_delay(Duration::from_millis(400));
        world.fragments.rot(&[1]);
        assert_readable(&world, tenant, 6);
        let ports = world.sim.ports(NODE);
        world.run(async move { ports.sleep(Duration::from_millis(60 * seed)).await });
        for index in 0..6 {
            let key = index.to_string();
            assert!(world.run(world.store.delete(tenant, "bucket", &key, Condition::None)).unwrap());
        }
        world.sleep(60);
        assert_eq!(world.fragments.count(), 0, "I-C2: seed {seed}: fragments of freed generations are left");
        assert_eq!(world.engine.repair_state().backlog, 0, "seed {seed}");
        let freed: u64 = world.engine.core().homes.counters.freed.get();
        assert_eq!(freed, 6, "seed {seed}");
    }
}

#[test]
fn i_d1_what_is_being_written_is_neither_repaired_nor_said_to_be_lost() {
    let (world, tenant) = filled(World::new(13), 0);
    world.fragments.set_put_delay(Duration::from_secs(20));
    let (store, (sender, done)) = (world.store.clone(), oneshot::channel());
    let task = async move {
        let _gone = sender.send(put(&store, tenant, "bucket", "1", &content(1), FinishWrite::default()).await);
    };
    world.sim.ports(NODE).spawn("client", Box::pin(task));
    world.sleep(1);
    // A device that it does not use fails, so repair walks over its intent.
    let spare = (0..8).find(|device| world.held_by(*device) == 0).expect("eight devices for six fragments");
    world.fragments.fail(spare);
    world.sleep(10);
    let counters = &world.engine.core().repair_counters;
    assert!(counters.walks.get() > 0);
    assert_eq!((world.engine.repair_state().lost, counters.lost.get()), (0, 0), "I-D1: it is not there yet, not lost");
    let state = world.engine.repair_state();
    assert_eq!((state.backlog, state.unfinished), (0, 1), "I-D1: nobody has stored it, so nothing lacks width");
    world.run(done).unwrap().unwrap();
    world.await_full_width();
    assert_full_width(&world, "after its writer was done");
    assert_eq!((world.fragments.take_puts().len(), counters.fragments.get()), (6, 0), "each fragment was put once");
}

#[test]
fn a_stripe_with_too_few_good_fragments_is_said_to_be_lost_and_left_alone() {
    let (world, tenant) = filled(World::new(9), 4);
    let whole = world.fragments.good();
    world.fragments.rot(&[0, 1, 3]);
    let error = world.get(tenant, "bucket", "1").unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    world.await_that("it is noticed", |world| world.engine.repair_state().lost == 1);
    let (count, lost) = (world.fragments.count(), &world.engine.core().repair_counters.lost);
    assert_eq!((count, lost.get()), (whole.values().map(Vec::len).sum(), 1), "nothing is freed");
    assert!(world.get(tenant, "bucket", "1").is_err());
    world.sleep(700);
    assert_eq!((world.engine.repair_state().lost, lost.get()), (1, 1), "once");
    assert!(world.run(world.store.delete(tenant, "bucket", "1", Condition::None)).unwrap());
    world.await_that("a deleted object is not lost", |world| world.engine.repair_state().lost == 0);
}

#[test]
fn devices_that_come_back_bring_lost_stripes_back_and_second_copies_are_freed() {
    let (world, tenant) = filled(World::new(10), 30);
    let before = world.fragments.count();
    world.fragments.fail(0);
    world.await_full_width();
    for device in [1, 2, 3] {
        world.fragments.fail(device);
    }
    world.await_that("some are lost", |world| world.engine.repair_state().lost > 0);
    let lost = world.engine.repair_state().lost;
    let unreadable = (0..30).filter(|index| world.get(tenant, "bucket", &index.to_string()).is_err()).count();
    assert_eq!(lost, unreadable);
    world.fragments.repair();
    world.await_full_width();
    assert_full_width(&world, "all devices are back");
    assert_eq!(world.fragments.count(), before, "each fragment once");
    assert_readable(&world, tenant, 30);
}

#[test]
fn a_full_device_is_passed_over_and_space_is_waited_for() {
    let world = World::with_devices(11, 7, CODED);
    let (world, tenant) = filled(world, 20);
    world.fragments.set_capacity(1);
    world.fragments.fail(0);
    world.await_that("it waits for room", |world| world.engine.repair_state().no_room);
    assert!(world.engine.core().repair_counters.failures.get() > 0);
    world.fragments.set_capacity(1 << 30);
    world.await_full_width();
    assert_full_width(&world, "with room");
    assert_readable(&world, tenant, 20);
}

#[test]
fn repair_keeps_to_its_rate_and_gives_way_to_clients() {
    let rate = 4 << 20;
    let seconds = |seed: u64, serves_clients: bool| {
        let repair = RepairSettings { bytes_per_second_max: rate, stripes_at_once: 2 };
        let (world, tenant) = filled(World::with_upkeep(seed, 8, CODED, Upkeep { repair, ..Upkeep::default() }), 60);
        let ports = world.sim.ports(NODE);
        world.sleep(3);
        world.fragments.fail(0);
        let start = ports.now();
        world.await_that("the repair is done", |world| {
            if serves_clients {
                let survivors = world.fragments.healthy_count();
                assert!(world.get(tenant, "bucket", "1").is_ok(), "{survivors} devices");
            }
            let state = world.engine.repair_state();
            state.devices_walked == 7 && state.backlog == 0
        });
        let moved = world.engine.core().repair_counters.bytes_moved.get();
        (ports.now().since(start).as_secs_f64(), moved as f64 / rate as f64)
    };
    let (alone, at_full_rate) = seconds(12, false);
    assert!(alone > 0.9 * at_full_rate && alone < at_full_rate + 2.0, "{alone} s for {at_full_rate} s of work");
    let (busy, _) = seconds(12, true);
    assert!(busy > 2.5 * alone, "{busy} s beside clients, {alone} s alone");
}
