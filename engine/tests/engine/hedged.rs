//! Reads with devices and nodes that are slow: others are asked, seldom enough, and nothing is asked twice while all are quick.

use crate::support::{CODED, NODE, World, noise};
use kiseki_engine::latency::{HEDGES_AT_ONCE, READS_PER_HEDGE};
use kiseki_engine::message::Dedup;
use kiseki_types::fragment::StripeShape;
use kiseki_types::ids::TenantId;
use std::time::Duration;

const OBJECTS: u64 = 12;

/// So slow that a read which waits for it can't be missed.
const SLOW: Duration = Duration::from_millis(400);

/// What a read may take that asks somebody else when a first one is late.
const SOON: Duration = Duration::from_millis(50);

/// Objects of one large chunk each, all of them read often enough that it is known how long reads take.
fn warmed(world: World) -> (World, TenantId) {
    let tenant = world.tenant("a", Dedup::Private);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    for index in 0..OBJECTS {
        world.put(tenant, "bucket", &index.to_string(), &large(index)).unwrap();
    }
    for _ in 0..6 {
        read_all(&world, tenant);
    }
    (world, tenant)
}

fn large(index: u64) -> Vec<u8> {
    noise(index + 1, 400_000)
}

/// How long each object took.
fn read_all(world: &World, tenant: TenantId) -> Vec<Duration> {
    let read = |index: u64| {
        let began = world.sim.ports(NODE).now();
        assert!(world.get(tenant, "bucket", &index.to_string()).unwrap() == large(index), "object {index}");
        world.sim.ports(NODE).now().since(began)
    };
    (0..OBJECTS).map(read).collect()
}

fn hedged(world: &World) -> (u64, u64, u64) {
    let counters = &world.engine.core().counters;
    (counters.hedged_reads.get(), counters.hedged_reads_won.get(), counters.slow_reads_avoided.get())
}

#[test]
fn while_all_are_quick_nothing_is_asked_twice() {
    let (world, tenant) = warmed(World::new(1));
    let before = world.fragments.reads();
    read_all(&world, tenant);
    let chunks = world.fragments.stripes().len() as u64;
    assert_eq!(world.fragments.reads() - before, chunks * 4, "each chunk takes the fragments that its data need, once");
    assert_eq!(hedged(&world), (0, 0, 0));
}

#[test]
fn a_slow_device_is_not_waited_for() {
    let (world, tenant) = warmed(World::new(2));
    world.fragments.slow_down(3, 1, SLOW);
    let before = world.fragments.reads();
    let mut times = Vec::new();
    for _ in 0..20 {
        times.extend(read_all(&world, tenant));
    }
    let worst = times.iter().max().unwrap();
    assert!(*worst < SOON, "the slow device was waited for: {worst:?}");
    let (asked, won, avoided) = hedged(&world);
    assert!(won > 0 && avoided > 0, "{asked} {won} {avoided}");
    let reads = world.fragments.reads() - before;
    let needed = 20 * 4 * world.fragments.stripes().len() as u64;
    assert!(reads <= needed + needed / 20 + u64::from(HEDGES_AT_ONCE), "{reads} reads for {needed}");
    // It is as quick as before: what it holds is read from it again.
    world.fragments.slow_down(3, 1, Duration::ZERO);
    world.sleep(10);
    read_all(&world, tenant);
    let avoided = hedged(&world).2;
    read_all(&world, tenant);
    assert_eq!(hedged(&world).2, avoided, "a device that is quick again is used again");
}

#[test]
fn i_o5_second_reads_stay_few_however_many_are_late() {
    let (world, tenant) = warmed(World::new(3));
    for device in 0..8 {
        world.fragments.slow_down(device, 3, Duration::from_millis(60));
    }
    let before = world.fragments.reads();
    for _ in 0..20 {
        read_all(&world, tenant);
    }
    let (asked, won, _) = hedged(&world);
    let most = (world.fragments.reads() - before) / u64::from(READS_PER_HEDGE) + u64::from(HEDGES_AT_ONCE);
    assert!(won > 0 && asked <= most, "I-O5: {asked} second reads, at most {most} allowed");
}

#[test]
fn now_and_then_a_late_read_costs_what_another_one_takes() {
    let (world, tenant) = warmed(World::new(4));
    for device in 0..8 {
        world.fragments.slow_down(device, 41, SLOW);
    }
    let mut times = Vec::new();
    for _ in 0..20 {
        times.extend(read_all(&world, tenant));
    }
    times.sort_unstable();
    let (most, asked) = (times[times.len() * 99 / 100], hedged(&world).0);
    assert!(most < SOON && asked > 0, "99 % within {most:?}, {asked} second reads");
}

#[test]
fn a_copy_on_a_slow_device_is_read_from_another_one() {
    let (world, tenant) = warmed(World::with_devices(5, 3, StripeShape { data: 1, parity: 2 }));
    world.fragments.slow_down(0, 1, SLOW);
    let worst = (0..10).flat_map(|_| read_all(&world, tenant)).max().unwrap();
    assert!(worst < SOON, "{worst:?}");
}

#[test]
fn a_slow_node_is_waited_for_neither_with_its_index_nor_with_its_fragments() {
    let (world, tenant) = warmed(World::on_nodes(6, 6, 1, CODED));
    let slow = &world.apart.as_ref().unwrap().others[3];
    slow.set_locate_delay(SLOW);
    slow.slow_down(4, 1, SLOW);
    let worst = (0..10).flat_map(|_| read_all(&world, tenant)).max().unwrap();
    assert!(worst < SOON, "{worst:?}");
    assert_eq!(world.engine.repair_state().backlog, 0, "who is late lacks nothing");
    world.sleep(1);
    assert_eq!(world.engine.core().late_reads.get(), 0, "what came too late has run out");
}

#[test]
fn what_only_a_slow_node_has_is_waited_for() {
    let (world, tenant) = warmed(World::on_nodes(7, 6, 1, CODED));
    let others = &world.apart.as_ref().unwrap().others;
    others[3].set_locate_delay(SLOW);
    others[3].slow_down(4, 1, SLOW);
    others[0].fail(1);
    others[1].fail(2);
    read_all(&world, tenant);
}
