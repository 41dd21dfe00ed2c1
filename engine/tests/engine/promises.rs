//! What the engine promises when devices fail, fill up or rot, writers vanish, and the node goes down.

use crate::support::{NODE, World, noise, put};
use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::join_all;
use kiseki_engine::api::{Condition, EtagMode, FinishWrite, ObjectInfo, StoreError};
use kiseki_engine::message::{ControlRequest, ControlResponse, Dedup};
use kiseki_types::fragment::StripeShape;
use kiseki_types::ids::TenantId;
use kiseki_types::runtime::{RuntimeExt, Spawn};
use std::collections::BTreeSet;
use std::time::Duration;

fn world_with_bucket(seed: u64) -> (World, TenantId) {
    let world = World::new(seed);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    (world, tenant)
}

fn pause(world: &World, span: Duration) {
    let ports = world.sim.ports(NODE);
    world.run(async move { ports.sleep(span).await });
}

/// A write that goes on while the test looks, or until the node goes down.
fn begin_put(
    world: &World,
    tenant: TenantId,
    key: &str,
    content: &[u8],
) -> oneshot::Receiver<Result<ObjectInfo, StoreError>> {
    let (store, (sender, done)) = (world.store.clone(), oneshot::channel());
    let (key, content) = (key.to_owned(), content.to_vec());
    let task = async move {
        let _gone = sender.send(put(&store, tenant, "bucket", &key, &content, FinishWrite::default()).await);
    };
    world.sim.ports(NODE).spawn("client", Box::pin(task));
    done
}

#[test]
fn i_d4_no_two_fragments_of_a_stripe_share_a_device() {
    let (world, tenant) = world_with_bucket(1);
    for index in 0..20 {
        world.put(tenant, "bucket", &index.to_string(), &noise(index + 1, 200_000)).unwrap();
    }
    let stripes = world.fragments.stripes();
    assert_eq!(stripes.len(), 20);
    for (name, devices) in stripes {
        let distinct: BTreeSet<_> = devices.iter().collect();
        assert_eq!((devices.len(), distinct.len()), (6, 6), "I-D4: {name:?}");
    }
}

#[test]
fn i_c9_what_rots_is_rebuilt_and_never_returned() {
    let (world, tenant) = world_with_bucket(2);
    let content = noise(5, 3 << 20);
    world.put(tenant, "bucket", "k", &content).unwrap();
    world.fragments.rot(&[1, 3]);
    assert!(world.get(tenant, "bucket", "k").unwrap() == content);
    assert!(world.engine.core().counters.rebuilds.get() > 0);
    world.fragments.rot(&[0, 1, 3]); // 1 and 3 may be repaired by now
    let error = world.get(tenant, "bucket", "k").unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "I-C9: three of 4+2 are gone: {error}");
}

#[test]
fn writes_go_on_down_to_the_ack_width_and_reads_below_it() {
    let (world, tenant) = world_with_bucket(3);
    let content = noise(6, 1 << 20);
    world.put(tenant, "bucket", "before", &content).unwrap();
    for device in 0..3 {
        world.fragments.fail(device);
    }
    world.put(tenant, "bucket", "degraded", &noise(7, 1 << 20)).unwrap();
    assert_eq!(world.engine.core().counters.stripes_degraded.get(), 1);
    world.fragments.fail(3);
    let error = world.put(tenant, "bucket", "refused", &noise(8, 1 << 20)).unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "4 of 8 devices can't hold 5 fragments: {error}");
    // I-L5: what was not durable is not visible.
    assert_eq!(world.get(tenant, "bucket", "refused").unwrap_err(), StoreError::NoSuchKey);
    world.fragments.repair();
    assert!(world.get(tenant, "bucket", "before").unwrap() == content);
}

#[test]
fn i_c5_a_full_pool_refuses_writes_and_deletes_bring_space_back() {
    let (world, tenant) = world_with_bucket(4);
    world.fragments.set_capacity(2 << 20);
    let mut stored = 0;
    let error = loop {
        match world.put(tenant, "bucket", &stored.to_string(), &noise(stored + 1, 1 << 20)) {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(stored >= 4, "{stored} objects fit");
    assert!(world.get(tenant, "bucket", "0").unwrap() == noise(1, 1 << 20));
    for index in 0..stored {
        assert!(world.run(world.store.delete(tenant, "bucket", &index.to_string(), Condition::None)).unwrap());
    }
    world.sleep(10);
    assert_eq!(world.fragments.count(), 0, "I-C5: space of deletes and of the refused write comes back");
    world.put(tenant, "bucket", "again", &noise(99, 1 << 20)).unwrap();
}

#[test]
fn i_c2_a_chunk_is_kept_while_any_name_or_reader_needs_it() {
    let (world, tenant) = world_with_bucket(5);
    let content = noise(9, 6 << 20);
    world.put(tenant, "bucket", "one", &content).unwrap();
    world.sleep(1);
    world.put(tenant, "bucket", "two", &content).unwrap();
    let mut reader = world.run(world.store.get(tenant, "bucket", "one")).unwrap();
    world.run(world.store.delete(tenant, "bucket", "one", Condition::None)).unwrap();
    world.sleep(20);
    assert!(world.get(tenant, "bucket", "two").unwrap() == content, "I-C2: another name holds it");
    world.run(world.store.delete(tenant, "bucket", "two", Condition::None)).unwrap();
    world.sleep(20);
    let read = world.run(async {
        let mut out = Vec::new();
        while let Some(bytes) = reader.next().await.unwrap() {
            out.extend_from_slice(&bytes);
        }
        out
    });
    assert!(read == content, "I-C2: an open reader holds it");
    drop(reader);
    world.sleep(20);
    assert_eq!(world.fragments.count(), 0);
}

#[test]
fn i_c2_writers_of_one_content_race_its_deletion() {
    for seed in 0..20 {
        let (world, tenant) = world_with_bucket(100 + seed);
        let content = noise(3, 400_000);
        let rounds = (0..6_u64).map(|writer| {
            let (store, content) = (world.store.clone(), content.clone());
            async move {
                let key = format!("k{writer}");
                for _ in 0..8 {
                    put(&store, tenant, "bucket", &key, &content, Default::default()).await.unwrap();
                    let mut reader = store.get(tenant, "bucket", &key).await.unwrap();
                    let mut out = Vec::new();
                    while let Some(bytes) = reader.next().await.unwrap() {
                        out.extend_from_slice(&bytes);
                    }
                    assert!(out == content, "I-C2: seed {seed}");
                    assert!(store.delete(tenant, "bucket", &key, Condition::None).await.unwrap());
                }
            }
        });
        world.run(futures::future::join_all(rounds));
        world.put(tenant, "bucket", "last", &content).unwrap();
        world.sleep(30);
        assert!(world.get(tenant, "bucket", "last").unwrap() == content, "I-C2: seed {seed}");
        assert_eq!(world.fragments.stripes().len(), 1, "seed {seed}: everything but the last is collected");
    }
}

#[test]
fn an_abandoned_write_leaves_nothing() {
    let (world, tenant) = world_with_bucket(6);
    world.run(async {
        let mut writer = world.store.put(tenant, "bucket", "k", None).await.unwrap();
        writer.write(Bytes::from(noise(4, 9 << 20))).await.unwrap();
    });
    world.sleep(20);
    assert_eq!(world.get(tenant, "bucket", "k").unwrap_err(), StoreError::NoSuchKey);
    assert_eq!(world.fragments.count(), 0);
}

#[test]
fn i_l5_a_restart_in_the_middle_keeps_what_was_named_and_collects_the_rest() {
    for seed in 0..20 {
        let (mut world, tenant) = world_with_bucket(200 + seed);
        let content = noise(5, 2 << 20);
        world.put(tenant, "bucket", "kept", &content).unwrap();
        // A write that is cut off after some virtual microseconds, at another step for each seed.
        let store = world.store.clone();
        let ports = world.sim.ports(NODE);
        let cut_off = async move {
            let mut writer = store.put(tenant, "bucket", "cut", None).await.unwrap();
            writer.write(Bytes::from(noise(6 + seed, 5 << 20))).await.unwrap();
            let _ = writer.finish(Default::default()).await;
        };
        Spawn::spawn(&*ports, "cut off", Box::pin(cut_off));
        pause(&world, Duration::from_micros(100 + 130 * seed));
        world.restart();
        assert!(world.get(tenant, "bucket", "kept").unwrap() == content, "seed {seed}");
        let named = match world.get(tenant, "bucket", "cut") {
            Ok(bytes) => {
                assert!(bytes == noise(6 + seed, 5 << 20), "I-L5: seed {seed}: visible but not whole");
                true
            }
            Err(error) => {
                assert_eq!(error, StoreError::NoSuchKey, "seed {seed}");
                false
            }
        };
        world.run(world.store.delete(tenant, "bucket", "kept", Condition::None)).unwrap();
        if named {
            world.run(world.store.delete(tenant, "bucket", "cut", Condition::None)).unwrap();
        }
        world.sleep(60);
        assert_eq!(world.fragments.count(), 0, "seed {seed}: what no name reaches is collected");
    }
}

#[test]
fn i_l5_nothing_is_answered_before_its_intent_is_committed() {
    let (mut world, tenant) = world_with_bucket(8);
    let content = noise(9, 200_000);
    world.logs.set_home_delay(Duration::from_secs(60));
    let _cut_off = begin_put(&world, tenant, "k", &content);
    // The fragments are durable, the intent is not: no home will know of them.
    pause(&world, Duration::from_secs(2));
    assert_eq!(world.fragments.count(), 6);
    world.logs.set_home_delay(Duration::ZERO);
    world.restart();
    world.sleep(60);
    match world.get(tenant, "bucket", "k") {
        Err(StoreError::NoSuchKey) => assert_eq!(world.fragments.count(), 0, "orphans are freed"),
        other => panic!("I-L5: visible before its intent was committed: {:?}", other.map(|bytes| bytes == content)),
    }
}

#[test]
fn i_c2_what_a_committed_delta_names_stays_although_its_writer_could_not_say_so() {
    let (mut world, tenant) = world_with_bucket(14);
    let content = noise(15, 200_000);
    world.put(tenant, "bucket", "k", &content).unwrap();
    // The answer is given, and the node goes down before the home hears of it: its pin looks like one of a dead writer.
    world.restart();
    world.sleep(60);
    let pardoned: u64 = world.engine.core().homes.counters.pardoned.get();
    assert!(world.get(tenant, "bucket", "k").unwrap() == content, "I-C2: acknowledged and collected");
    assert_eq!((pardoned, world.fragments.count()), (1, 6), "the shard that was asked names it");
}

#[test]
fn i_c2_a_pin_keeps_what_a_writer_is_about_to_name() {
    let (world, tenant) = world_with_bucket(15);
    let content = noise(16, 3 << 20);
    world.put(tenant, "bucket", "one", &content).unwrap();
    world.sleep(1);
    let mut writer = world.run(world.store.put(tenant, "bucket", "two", Some(content.len() as u64))).unwrap();
    world.run(writer.write(Bytes::from(content.clone()))).unwrap();
    world.run(writer.drain()).unwrap();
    let hits: u64 = world.engine.core().homes.counters.hits.get();
    assert!(hits > 0, "it was told that the chunks are there");
    assert!(world.run(world.store.delete(tenant, "bucket", "one", Condition::None)).unwrap());
    world.sleep(30);
    let written = world.run(writer.finish(FinishWrite::default()));
    assert!(written.is_ok(), "I-C2: its chunks were collected under it: {written:?}");
    assert!(world.get(tenant, "bucket", "two").unwrap() == content, "I-C2");
}

#[test]
fn i_c2_a_number_is_given_out_once_across_a_crash() {
    let (mut world, tenant) = world_with_bucket(9);
    let content = noise(10, 200_000);
    world.logs.set_home_delay(Duration::from_secs(60));
    let _cut_off = begin_put(&world, tenant, "k", &content);
    pause(&world, Duration::from_secs(2));
    let before = world.fragments.stripes();
    assert_eq!(before.len(), 1);
    world.logs.set_home_delay(Duration::ZERO);
    world.restart();
    // The same chunk in the same home, while the fragments of the first attempt are still there.
    world.put(tenant, "bucket", "k", &content).unwrap();
    let after = world.fragments.stripes();
    let again: Vec<_> = after.keys().filter(|name| !before.contains_key(name)).collect();
    assert_eq!(again.len(), 1, "I-C2: two writes have one number: {before:?} {after:?}");
    world.sleep(60);
    assert_eq!((world.fragments.count(), world.engine.core().counters.stripes_degraded.get()), (6, 0));
    assert!(world.get(tenant, "bucket", "k").unwrap() == content);
}

#[test]
fn i_c2_what_is_written_while_orphans_are_looked_for_stays() {
    let (mut world, tenant) = world_with_bucket(10);
    let content = |index: u64| noise(index + 1, 5_000);
    // More than one step of the search, so that it is still under way when the writes begin.
    for index in 0..300 {
        world.put(tenant, "bucket", &index.to_string(), &content(index)).unwrap();
    }
    world.restart();
    world.logs.set_home_delay(Duration::from_secs(1));
    let writes = (300..360).map(|index| begin_put(&world, tenant, &index.to_string(), &content(index)));
    let writes: Vec<_> = writes.collect();
    for written in world.run(join_all(writes)) {
        written.unwrap().unwrap();
    }
    world.sleep(10);
    assert_eq!(world.fragments.count(), 360 * 3, "I-C2: fragments were freed whose intents were being committed");
    for index in 0..360 {
        assert!(world.get(tenant, "bucket", &index.to_string()).unwrap() == content(index), "I-C2: object {index}");
    }
}

#[test]
fn what_is_deleted_is_freed_many_generations_at_once() {
    let (world, tenant) = world_with_bucket(21);
    for index in 0..64 {
        world.put(tenant, "bucket", &index.to_string(), &noise(index + 1, 5_000)).unwrap();
    }
    // Each generation takes three commits of its home, that is 19 s for all of them singly.
    world.logs.set_home_delay(Duration::from_millis(100));
    for index in 0..64 {
        world.run(world.store.delete(tenant, "bucket", &index.to_string(), Condition::None)).unwrap();
    }
    let now = || world.sim.ports(NODE).now();
    let began = now();
    world.await_that("everything is freed", |world| world.fragments.count() == 0);
    let took = now().since(began);
    assert!(took < Duration::from_secs(8), "collection took {took:?}");
}

#[test]
fn i_c2_a_generation_that_is_being_freed_is_no_hit() {
    let (world, tenant) = world_with_bucket(11);
    let content = noise(12, 200_000);
    world.put(tenant, "bucket", "one", &content).unwrap();
    // It is fenced, but no device is there to free its fragments.
    (0..8).for_each(|device| world.fragments.fail(device));
    assert!(world.run(world.store.delete(tenant, "bucket", "one", Condition::None)).unwrap());
    world.sleep(5);
    assert_eq!((world.fences(), world.fragments.count()), (1, 6));
    world.fragments.repair();
    let written = world.put(tenant, "bucket", "two", &content);
    assert!(written.is_ok(), "I-C2: an upload was given a generation that is fenced: {written:?}");
    world.sleep(60);
    assert!(world.get(tenant, "bucket", "two").unwrap() == content, "I-C2");
    assert_eq!(world.fragments.count(), 6, "the first generation is freed");
}

#[test]
fn i_c2_a_chunk_that_cannot_be_read_is_no_hit() {
    let (world, tenant) = world_with_bucket(12);
    let content = noise(13, 200_000);
    world.put(tenant, "bucket", "one", &content).unwrap();
    let holders: Vec<u8> = world.fragments.good().values().flatten().map(|(_, device)| device.0[0]).collect();
    for device in &holders[..3] {
        world.fragments.fail(*device);
    }
    assert!(world.get(tenant, "bucket", "one").is_err(), "three of six are gone");
    world.put(tenant, "bucket", "two", &content).unwrap();
    assert!(world.get(tenant, "bucket", "two").unwrap() == content, "I-C2: answered, and not readable");
}

#[test]
fn copies_serve_where_there_are_too_few_devices_for_a_code() {
    let world = World::with_devices(7, 3, StripeShape { data: 1, parity: 2 });
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    let content = noise(8, 2 << 20);
    world.put(tenant, "bucket", "k", &content).unwrap();
    world.fragments.rot(&[0, 1]);
    assert!(world.get(tenant, "bucket", "k").unwrap() == content);
}

#[test]
fn a_core_remembers_buckets_and_keys_and_never_beyond_a_change() {
    let (world, tenant) = world_with_bucket(31);
    let calls = world.engine.calls();
    let create = ControlRequest::CreateAccessKey { tenant: "a".to_owned() };
    let Ok(ControlResponse::NewAccessKey(id, secret)) = world.run(calls.control(create)) else { panic!("a key") };
    let cache = &world.engine.core().control_cache;
    for _ in 0..3 {
        world.run(world.store.bucket(tenant, "bucket")).unwrap();
        let key = world.run(world.store.access_key(&id)).unwrap().unwrap();
        assert_eq!((key.tenant, &*key.secret), (tenant, &*secret));
    }
    assert_eq!((cache.misses.get(), cache.hits.get()), (2, 4), "asked once each");
    // Another tenant is not let in by what was remembered (I-T1).
    let other = world.tenant("b", Dedup::Shared);
    assert_eq!(world.run(world.store.bucket(other, "bucket")).unwrap_err(), StoreError::NoSuchBucket);
    let set = ControlRequest::SetBucketEtag { tenant: "a".into(), name: "bucket".into(), mode: EtagMode::Opaque };
    world.run(calls.control(set)).map(drop).unwrap();
    let before = world.run(world.store.bucket(tenant, "bucket")).unwrap();
    assert_eq!(before.etag_mode, EtagMode::Opaque, "the change was answered, so it holds");
    world.run(world.store.delete_bucket(tenant, "bucket")).unwrap();
    assert_eq!(world.run(world.store.bucket(tenant, "bucket")).unwrap_err(), StoreError::NoSuchBucket);
    world.run(world.store.create_bucket(other, "bucket")).unwrap();
    assert_eq!(world.run(world.store.bucket(tenant, "bucket")).unwrap_err(), StoreError::NoSuchBucket, "I-T1");
}
