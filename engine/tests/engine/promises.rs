//! What the engine promises when devices fail, fill up or rot, writers vanish, and the node goes down.

use crate::support::{World, noise};
use bytes::Bytes;
use kiseki_engine::api::{Condition, EtagMode, StoreError};
use kiseki_engine::message::{ControlRequest, ControlResponse, Dedup};
use kiseki_types::fragment::StripeShape;
use kiseki_types::ids::TenantId;
use std::collections::BTreeSet;

fn world_with_bucket(seed: u64) -> (World, TenantId) {
    let world = World::new(seed);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    (world, tenant)
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
                    crate::support::put(&store, tenant, "bucket", &key, &content, Default::default()).await.unwrap();
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
        let ports = world.sim.ports(crate::support::NODE);
        let cut_off = async move {
            let mut writer = store.put(tenant, "bucket", "cut", None).await.unwrap();
            writer.write(Bytes::from(noise(6 + seed, 5 << 20))).await.unwrap();
            let _ = writer.finish(Default::default()).await;
        };
        kiseki_types::runtime::Spawn::spawn(&*ports, "cut off", Box::pin(cut_off));
        let pause = std::time::Duration::from_micros(100 + 130 * seed);
        let ports = world.sim.ports(crate::support::NODE);
        world.run(kiseki_types::runtime::RuntimeExt::sleep(&*ports, pause));
        drop(ports);
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
