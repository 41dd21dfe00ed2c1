//! Memory of writes: bounded for any number of clients, and a client that stands still costs others nothing for long.

use crate::support::{World, noise, put};
use bytes::Bytes;
use futures::future::join_all;
use kiseki_engine::api::{FinishWrite, StoreError};
use kiseki_engine::message::Dedup;
use kiseki_engine::write_budget::{FILLING_BYTES_MAX, IN_FLIGHT_BYTES_MAX, TURN_WAIT_MAX};

const CHUNK: usize = 4 << 20;

#[test]
fn i_o5_more_uploads_than_memory_take_turns_and_all_end() {
    let world = World::new(71);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    let budget = &world.engine.core().write_budget;
    let uploads = FILLING_BYTES_MAX / CHUNK + 32;
    let highest = std::cell::Cell::new((0, 0));
    // Zeros are cut at the longest chunk, and stored once: many bytes in flight, little work.
    let content = vec![0; CHUNK + 1];
    world.run(async {
        let puts = (0..uploads).map(|number| {
            let (world, content, highest) = (&world, &content, &highest);
            async move {
                let key = format!("k{number}");
                let put = put(&world.store, tenant, "bucket", &key, content, FinishWrite::default());
                let info = put.await?;
                let (filling, in_flight) = highest.get();
                highest.set((filling.max(budget.filling.used()), in_flight.max(budget.in_flight.used())));
                Ok::<u64, StoreError>(info.len_bytes)
            }
        });
        for len in join_all(puts).await {
            assert_eq!(len.unwrap(), CHUNK as u64 + 1);
        }
    });
    let (filling, in_flight) = highest.get();
    assert!(filling <= FILLING_BYTES_MAX && in_flight <= IN_FLIGHT_BYTES_MAX, "I-O5: {filling} and {in_flight} bytes");
    assert!(budget.filling.waits.get() > 0, "nobody had to wait");
    assert_eq!((budget.filling.used(), budget.in_flight.used()), (0, 0), "all of it came back");
}

#[test]
fn uploads_that_stand_still_hold_their_share_and_no_more() {
    let world = World::new(72);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    world.run(async {
        let mut stalled = Vec::new();
        for number in 0..FILLING_BYTES_MAX / CHUNK {
            let key = format!("s{number}");
            let mut writer = world.store.put(tenant, "bucket", &key, Some(100 << 20)).await.unwrap();
            writer.write(Bytes::from_static(b"a first byte")).await.unwrap();
            stalled.push(writer);
        }
        let before = world.engine.core().ports.now();
        let small = put(&world.store, tenant, "bucket", "small", &noise(1, 4096), FinishWrite::default()).await;
        assert!(matches!(small, Err(StoreError::Unavailable { .. })), "told in time to try again: {small:?}");
        assert!(world.engine.core().ports.now().since(before) >= TURN_WAIT_MAX);
        stalled.pop();
        put(&world.store, tenant, "bucket", "small", &noise(1, 4096), FinishWrite::default()).await.unwrap();
        drop(stalled);
    });
    let budget = &world.engine.core().write_budget;
    assert_eq!((budget.filling.used(), budget.in_flight.used()), (0, 0));
}
