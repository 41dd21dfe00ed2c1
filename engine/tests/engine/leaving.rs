//! What a device that is emptied still takes, whose fragments hold it, and when it may go.

use crate::evacuation::{assert_whole, refusal, retire_now};
use crate::groups::Lost;
use crate::support::{CODED, MemoryFragments, NODE, World, assert_readable, content, filled, put};
use futures::channel::oneshot;
use kiseki_engine::api::{FinishWrite, ObjectInfo, StoreError};
use kiseki_engine::device_record::DeviceUpdate;
use kiseki_engine::retirement::{GiveUp, retire};
use kiseki_types::buf::IoBuf;
use kiseki_types::fragment::{DeviceState, FragmentKey, FragmentMeta, FragmentStore};
use kiseki_types::ids::{Generation, Locator, MapEpoch, PoolId, TenantId};
use kiseki_types::runtime::RuntimeExt;
use std::time::Duration;

/// A write that goes on while the test looks.
fn begin_put(world: &World, tenant: TenantId, index: u64) -> oneshot::Receiver<Result<ObjectInfo, StoreError>> {
    let (store, (sender, done)) = (world.store.clone(), oneshot::channel());
    let task = async move {
        let written = put(&store, tenant, "bucket", &index.to_string(), &content(index), FinishWrite::default()).await;
        let _gone = sender.send(written);
    };
    world.sim.ports(NODE).spawn("client", Box::pin(task));
    done
}

fn pause(world: &World, millis: u64) {
    let ports = world.sim.ports(NODE);
    world.run(async move { ports.sleep(Duration::from_millis(millis)).await });
}

#[test]
fn i_d1_a_repair_uses_a_device_that_is_emptied_rather_than_leave_a_stripe_short() {
    let world = World::with_devices(70, 7, CODED);
    world.record_opened();
    world.evacuate(0);
    let (world, tenant) = filled(world, 12);
    assert_eq!(world.held_by(0), 0, "the six others are enough");
    world.fragments.fail(1);
    world.await_full_width();
    assert_whole(&world, "rebuilt on the device that is to be emptied");
    assert!(world.held_by(0) > 5);
    world.fragments.fail(2);
    world.fragments.fail(3);
    assert_readable(&world, tenant, 12);
}

#[test]
fn i_d5_what_is_written_meanwhile_goes_to_other_devices() {
    let (world, tenant) = filled(World::new(71), 0);
    world.record_opened();
    world.evacuate(2);
    for index in 0..20 {
        world.put(tenant, "bucket", &index.to_string(), &content(index)).unwrap();
        assert_eq!(world.held_by(2), 0, "I-D5: object {index} was put on a device that is to be emptied");
    }
    assert_whole(&world, "on the others");
}

#[test]
fn i_d5_nothing_is_placed_on_a_device_while_it_is_found_empty() {
    let world = World::with_devices(72, 7, CODED);
    world.record_opened();
    world.fragments.fail(6);
    world.evacuate(0);
    let (world, tenant) = filled(world, 0);
    let (calls, ports, (sender, mut done)) = (world.engine.calls().clone(), world.sim.ports(NODE), oneshot::channel());
    let task_ports = ports.clone();
    let task = async move {
        let device = MemoryFragments::device(0);
        let _gone = sender.send(retire(&calls, &task_ports, device, "test", GiveUp::Nothing).await);
    };
    ports.spawn("retire", Box::pin(task));
    pause(&world, 50);
    // Five other devices are left for six fragments: each write would use the one that leaves.
    let mut written = 0;
    let retired = loop {
        if let Some(retired) = done.try_recv().unwrap() {
            break retired;
        }
        world.put(tenant, "bucket", &written.to_string(), &content(written)).unwrap();
        written += 1;
        pause(&world, 20);
    };
    let record = retired.unwrap_or_else(|error| panic!("I-D5: writes were put on a closed device: {error}"));
    assert_eq!((record.state(), world.held_by(0)), (DeviceState::Removed, 0), "I-D5");
    assert!(written > 3, "{written} writes while it was looked at");
    assert_readable(&world, tenant, written);
}

#[test]
fn i_d5_a_write_that_chose_it_as_its_last_resort_is_waited_for() {
    let (world, tenant) = filled(World::new(73), 0);
    world.record_opened();
    world.fragments.fail(6);
    world.evacuate(0);
    world.evacuate(7);
    world.fragments.set_put_delay(Duration::from_secs(3));
    let done = begin_put(&world, tenant, 1);
    pause(&world, 500);
    // Six fragments lie on the five others and on one of the two; should one of those fail, the last one is next.
    let spare = if world.held_by(0) == 0 { 0 } else { 7 };
    assert_eq!((world.held_by(spare), world.held_by(7 - spare)), (0, 1));
    world.fragments.fail(1);
    world.fragments.set_put_delay(Duration::ZERO);
    let started = world.sim.ports(NODE).now();
    let retired = retire_now(&world, spare, GiveUp::Nothing);
    assert!(world.sim.ports(NODE).now().since(started) > Duration::from_secs(2), "I-D5: it waits for the write");
    assert!(refusal(retired).contains("still live"), "I-D5: the write has turned to it");
    world.run(done).unwrap().unwrap();
    assert_eq!(world.held_by(spare), 1);
    assert!(world.get(tenant, "bucket", "1").unwrap() == content(1));
}

#[test]
fn i_d5_fragments_that_no_home_knows_do_not_keep_a_device() {
    let (world, tenant) = filled(World::new(74), 4);
    world.record_opened();
    // As a node leaves it that goes down between fragments and intent.
    let bytes = IoBuf::copy_of(&[7; 4096]).freeze();
    let meta = FragmentMeta {
        key: FragmentKey { locator: Locator([5; 32]), generation: Generation(1), index: 0 },
        shape: CODED,
        pool: PoolId(0),
        envelope_len_bytes: 16_000,
        payload_len_bytes: 4096,
        map_epoch: MapEpoch(1),
        devices: Vec::new(),
    };
    world.run(world.fragments.put(MemoryFragments::device(3), meta, vec![bytes])).unwrap();
    world.evacuate(3);
    world.await_that("the device is empty", |world| world.held_by(3) == 0);
    assert_eq!(world.engine.core().repair_counters.orphans_freed.get(), 1);
    assert_eq!(retire_now(&world, 3, GiveUp::Nothing).unwrap(), DeviceState::Removed);
    assert_readable(&world, tenant, 4);
}

#[test]
fn i_c2_a_fragment_whose_intent_is_being_committed_is_no_orphan() {
    for seed in 0..4 {
        let world = World::with_devices(600 + seed, 7, CODED);
        world.record_opened();
        world.fragments.fail(6);
        world.evacuate(0);
        let (world, tenant) = filled(world, 0);
        pause(&world, 230 * seed);
        // Its fragments are there long before its intent; sweeps pass over one of them meanwhile.
        world.logs.set_home_delay(Duration::from_secs(3));
        world.put(tenant, "bucket", "1", &content(1)).unwrap();
        assert_eq!(world.held_by(0), 1, "I-C2: seed {seed}");
        assert_eq!(world.engine.core().repair_counters.orphans_freed.get(), 0, "I-C2: seed {seed}");
        assert_whole(&world, "after sweeps");
    }
}

#[test]
fn i_d5_a_device_that_a_core_knows_nothing_of_does_not_leave() {
    let (world, tenant) = filled(World::new(76), 8);
    world.record_opened();
    world.evacuate(3);
    world.fragments.fail(3);
    let retired = retire_now(&world, 3, GiveUp::Nothing);
    assert!(matches!(retired, Err(StoreError::Unavailable { .. })), "I-D5: nobody knows what lies there: {retired:?}");
    world.fragments.bring_back(3);
    assert_readable(&world, tenant, 8);
}

#[test]
fn i_d5_a_device_that_was_perhaps_removed_takes_nothing_until_that_is_settled() {
    for lost in [Lost::Answer, Lost::Command] {
        let world = World::with_devices(77, 7, CODED);
        world.record_opened();
        world.fragments.fail(6);
        world.evacuate(0);
        let (world, tenant) = filled(world, 0);
        let write = |index: u64| world.put(tenant, "bucket", &index.to_string(), &content(index)).unwrap();
        world.logs.lose_next_control_answer(lost);
        let retired = retire_now(&world, 0, GiveUp::Nothing);
        assert!(matches!(retired, Err(StoreError::Unsettled { .. })), "{lost:?}: {retired:?}");
        // Five other devices are left for six fragments.
        (0..4).for_each(|index| drop(write(index)));
        assert_eq!(world.held_by(0), 0, "I-D5: {lost:?}: it is removed, or may be yet");
        let cancel = DeviceUpdate::CancelEvacuation { reason: "test".to_owned() };
        let cancelled = world.record(0, cancel);
        match lost {
            Lost::Answer => assert!(cancelled.unwrap_err().to_string().contains("was removed"), "it is settled"),
            Lost::Command => {
                cancelled.unwrap();
                world.evacuate(0);
                write(5);
                assert_eq!(world.held_by(0), 1, "it stayed, and is the last resort again");
            }
        }
        assert_readable(&world, tenant, 4);
    }
}
