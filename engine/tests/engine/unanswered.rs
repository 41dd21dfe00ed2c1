//! Shards and homes that do not answer: what depends on them waits, is kept meanwhile, and all else goes on.

use crate::support::{CODED, World, content, noise};
use bytes::Bytes;
use kiseki_engine::api::{Condition, FinishWrite, ObjectWriter};
use kiseki_engine::delta::ChunkName;
use kiseki_engine::machine::ROWS_FILE;
use kiseki_engine::message::{Dedup, HomeRequest};
use kiseki_types::ids::{Generation, Locator, ShardId, TenantId};
use std::collections::BTreeSet;

/// Buckets "low" and "high", named for the order of their shards, in which homes ask them.
fn two_shards(world: World) -> (World, TenantId, [ShardId; 2]) {
    let tenant = world.tenant("a", Dedup::Shared);
    // Namespaces are dealt to the shards in turn.
    let shard_of = |name: &str| {
        let bucket = world.run(world.store.bucket(tenant, name)).unwrap();
        ShardId(ShardId::TENANT_FIRST + bucket.namespace.0 % 2)
    };
    world.run(world.store.create_bucket(tenant, "high")).unwrap();
    world.run(world.store.create_bucket(tenant, "low")).unwrap();
    let shards = [shard_of("low"), shard_of("high")];
    assert!(shards[0] < shards[1], "{shards:?}");
    (world, tenant, shards)
}

fn set_stuck(world: &World, shard: ShardId, is_stuck: bool) {
    let mut stuck = world.logs.stuck.borrow_mut();
    if is_stuck {
        stuck.insert(shard)
    } else {
        stuck.remove(&shard)
    };
}

/// A writer that has stored its bytes, and has nothing named yet.
fn stored(world: &World, tenant: TenantId, bucket: &str, key: &str, bytes: &[u8]) -> Box<dyn ObjectWriter> {
    world.run(async {
        let mut writer = world.store.put(tenant, bucket, key, Some(bytes.len() as u64)).await.unwrap();
        writer.write(Bytes::copy_from_slice(bytes)).await.unwrap();
        writer.drain().await.unwrap();
        writer
    })
}

fn pardoned(world: &World) -> u64 {
    world.engine.core().homes.counters.pardoned.get()
}

#[test]
fn i_d1_i_c2_what_is_condemned_and_named_is_repaired_and_moved_while_a_shard_does_not_answer() {
    let (mut world, tenant, [_, high]) = two_shards(World::new(1));
    world.record_opened();
    for bucket in ["low", "high"] {
        world.put(tenant, bucket, "k", &content(1)).unwrap();
        world.sleep(1);
    }
    assert_eq!(world.fragments.stripes().len(), 1, "both shards name one generation");
    // A writer dies that pinned it once more, and a shard that names it takes no fence: nobody knows who names it.
    let writer = stored(&world, tenant, "high", "other", &content(1));
    set_stuck(&world, high, true);
    world.restart();
    std::mem::forget(writer); // it went down with the node, and gives up nothing
    world.sleep(30);
    let holder = |world: &World| world.fragments.good().into_values().flatten().next().unwrap().1.0[0];
    let lost = holder(&world);
    world.fragments.fail(lost);
    world.await_that("I-D1: a condemned stripe is whole again", |world| {
        let good: BTreeSet<u8> = world.fragments.good().into_values().flatten().map(|(index, _)| index).collect();
        good.len() == 6
    });
    let evacuated = holder(&world);
    world.evacuate(evacuated);
    world.await_that("a condemned stripe is moved", |world| world.held_by(evacuated) == 0);
    assert_eq!((pardoned(&world), world.engine.repair_state().lost), (0, 0));
    set_stuck(&world, high, false);
    world.await_that("it is pardoned", |world| pardoned(world) == 1);
    for bucket in ["low", "high"] {
        assert!(world.get(tenant, bucket, "k").unwrap() == content(1), "I-C2");
        assert!(world.run(world.store.delete(tenant, bucket, "k", Condition::None)).unwrap());
    }
    world.fragments.repair();
    world.await_that("it is freed in the end", |world| world.fragments.count() == 0);
}

#[test]
fn i_c2_what_another_shard_names_is_not_fenced() {
    let (world, tenant, [_, high]) = two_shards(World::new(6));
    for bucket in ["low", "high"] {
        world.put(tenant, bucket, "k", &content(1)).unwrap();
        world.sleep(1);
    }
    // It takes no fence, and is not asked for one.
    set_stuck(&world, high, true);
    assert!(world.run(world.store.delete(tenant, "low", "k", Condition::None)).unwrap());
    world.sleep(60);
    world.put(tenant, "low", "again", &content(1)).unwrap();
    assert_eq!((world.fragments.stripes().len(), pardoned(&world)), (1, 0), "a hit: it was never condemned");
    assert!(world.run(world.store.delete(tenant, "low", "again", Condition::None)).unwrap());
    world.sleep(60);
    set_stuck(&world, high, false);
    assert!(world.get(tenant, "high", "k").unwrap() == content(1));
    assert!(world.run(world.store.delete(tenant, "high", "k", Condition::None)).unwrap());
    world.await_that("the last shard that names it has it freed", |world| world.fragments.count() == 0);
}

#[test]
fn what_a_writer_gave_up_half_written_is_condemned_and_not_said_to_be_lost() {
    let (world, tenant, [low, _]) = two_shards(World::with_devices(2, 8, CODED));
    (0..5).for_each(|device| world.fragments.fail(device));
    world.put(tenant, "low", "k", &noise(1, 200_000)).unwrap_err();
    set_stuck(&world, low, true);
    world.fragments.repair();
    world.sleep(400);
    let state = world.engine.repair_state();
    assert_eq!((state.lost, world.engine.core().repair_counters.lost.get()), (0, 0), "{state:?}");
    set_stuck(&world, low, false);
    world.await_that("it is freed", |world| world.fragments.count() == 0);
}

#[test]
fn i_c2_a_writer_that_ends_while_its_chunk_is_condemned_has_it_pardoned() {
    // With other nodes there, so that a pin has an end.
    let (world, tenant, [low, _]) = two_shards(World::on_nodes(3, 3, 4, CODED));
    world.put(tenant, "low", "k", &content(1)).unwrap();
    world.sleep(1);
    let slow = stored(&world, tenant, "high", "k", &content(1));
    set_stuck(&world, low, true);
    world.sleep(3700);
    world.run(slow.finish(FinishWrite::default())).unwrap();
    world.sleep(60);
    assert_eq!(pardoned(&world), 0, "it is condemned for as long as the first shard does not answer");
    set_stuck(&world, low, false);
    world.await_that("I-C2: it is complete again, not condemned for ever", |world| pardoned(world) == 1);
    for bucket in ["low", "high"] {
        assert!(world.get(tenant, bucket, "k").unwrap() == content(1));
        assert!(world.run(world.store.delete(tenant, bucket, "k", Condition::None)).unwrap());
    }
    world.await_that("it is freed in the end", |world| world.good_by_node().is_empty());
}

#[test]
fn what_a_writer_gives_up_while_its_home_commits_nothing_is_collected_later() {
    let (world, tenant, _) = two_shards(World::new(4));
    world.sleep(20);
    let writer = stored(&world, tenant, "low", "k", &noise(1, 6 << 20));
    let homes: Vec<ShardId> = world.engine.homes().iter().map(|home| home.shard()).collect();
    homes.iter().for_each(|home| set_stuck(&world, *home, true));
    drop(writer);
    world.sleep(20);
    assert!(world.fragments.count() > 0);
    homes.iter().for_each(|home| set_stuck(&world, *home, false));
    world.sleep(60);
    assert_eq!(world.fragments.count(), 0, "nobody tries again");
}

#[test]
fn pins_that_stay_busy_keep_no_others_from_being_settled() {
    let (mut world, tenant, [low, _]) = two_shards(World::new(5));
    // Both homes have more pins that can't be settled than a round looks at.
    let mut writers = Vec::new();
    for number in 0..640 {
        let bucket = if number % 32 == 0 { "high" } else { "low" };
        writers.push(stored(&world, tenant, bucket, &number.to_string(), &noise(number + 1, 2_000)));
    }
    assert_eq!(world.fragments.count(), 640 * 3);
    set_stuck(&world, low, true);
    world.restart();
    std::mem::forget(writers); // they went down with the node, and give up nothing
    world.sleep(120);
    assert_eq!(world.fragments.count(), 620 * 3, "what has nothing to do with the shard is settled");
    set_stuck(&world, low, false);
    world.sleep(120);
    assert_eq!(world.fragments.count(), 0);
    let left: u64 = world.engine.homes().iter().map(|home| home.stale_pins()).sum();
    assert_eq!(left, 0);
}

#[test]
fn a_home_that_may_be_deposed_says_of_nothing_that_it_is_freed() {
    let (world, ..) = two_shards(World::new(6));
    let name = ChunkName { locator: Locator([7; 32]), generation: Generation(1) };
    let home = world.engine.calls().home_of(&name.locator);
    let collect = || world.run(world.engine.calls().home(home, HomeRequest::Collect(name)));
    world.logs.deposed.borrow_mut().insert(home);
    assert!(collect().is_err(), "a shard would forget a candidate that is still there");
    world.logs.deposed.borrow_mut().clear();
    assert!(collect().is_ok());
}

#[test]
fn pins_of_a_generation_that_is_gone_are_removed() {
    let (mut world, ..) = two_shards(World::new(7));
    let name = ChunkName { locator: Locator([8; 32]), generation: Generation(1) };
    let home = world.engine.calls().home_of(&name.locator);
    let rows = world.logs.groups.borrow()[&home].0.0.clone();
    // More than are looked at together, as a generation with that many pins left them.
    const PINS: u8 = 2;
    for pin in 0..1100u64 {
        let mut key = name.to_key();
        key.extend_from_slice(&u128::from(pin).to_be_bytes());
        rows.borrow_mut().insert((ROWS_FILE, PINS, key), vec![0; 17]);
    }
    world.restart();
    world.sleep(60);
    let left = rows.borrow().keys().filter(|(file, table, _)| (*file, *table) == (ROWS_FILE, PINS)).count();
    assert_eq!(left, 0);
}

#[test]
fn a_home_that_commits_nothing_keeps_no_other_from_collecting_and_no_epoch_open() {
    let (world, tenant, [low, _]) = two_shards(World::new(8));
    for index in 0..20u64 {
        world.put(tenant, "low", &index.to_string(), &noise(index + 1, 5_000)).unwrap();
    }
    world.sleep(1);
    let home_of = |locator: &Locator| world.engine.calls().home_of(locator);
    let stripes = world.fragments.stripes();
    // That of the first candidate.
    let stuck = home_of(&stripes.keys().next().unwrap().0);
    let left = stripes.keys().filter(|(locator, _)| home_of(locator) == stuck).count();
    assert!((1..20).contains(&left), "{left} of 20");
    set_stuck(&world, stuck, true);
    for index in 0..20u64 {
        assert!(world.run(world.store.delete(tenant, "low", &index.to_string(), Condition::None)).unwrap());
    }
    world.sleep(30);
    assert_eq!(world.fragments.stripes().len(), left, "those of the other home are collected");
    assert_eq!(world.fences(), 20 - left);
    world.sleep(1300);
    assert_eq!(world.fences(), 0, "pin epochs are closed, and fences forgotten");
    let shard = world.engine.shards().into_iter().find(|shard| shard.shard() == low).unwrap();
    assert_eq!(shard.waiting_for_collection(), left as u64);
    assert!(world.engine.core().collection_counters.failed_rounds.get() > 0);
    set_stuck(&world, stuck, false);
    world.await_that("the rest is collected", |world| world.fragments.count() == 0);
}
