//! A chunk is handed out part by part, each as soon as what comes before it is there.

use crate::support::{CODED, NODE, World, noise};
use kiseki_engine::api::ObjectReader;
use kiseki_engine::message::Dedup;
use kiseki_types::ids::TenantId;
use std::collections::BTreeMap;
use std::time::Duration;

/// So slow that a part which waits for it can't be missed.
const SLOW: Duration = Duration::from_millis(400);
const SOON: Duration = Duration::from_millis(50);

/// One object of one chunk, of which only the data fragments can be read, and the device of each fragment.
fn without_parity() -> (World, TenantId, Vec<u8>, BTreeMap<u8, u8>) {
    let world = World::new(1);
    let tenant = world.tenant("a", Dedup::Private);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    let content = noise(1, 400_000);
    world.put(tenant, "bucket", "one", &content).unwrap();
    let stripes = world.fragments.good();
    assert_eq!(stripes.len(), 1, "one chunk");
    let holders = stripes.into_values().next().unwrap();
    let by_index: BTreeMap<u8, u8> = holders.into_iter().map(|(index, device)| (index, device.0[0])).collect();
    assert_eq!(by_index.len(), CODED.width());
    for parity in [4, 5] {
        world.fragments.fail(by_index[&parity]);
    }
    (world, tenant, content, by_index)
}

/// The bytes of a read that come before it has waited for what is slow, and then all of them.
async fn read_on(world: &World, reader: &mut dyn ObjectReader, meanwhile: impl FnOnce()) -> (usize, Vec<u8>) {
    let ports = world.sim.ports(NODE);
    let (began, mut soon, mut meanwhile, mut read) = (ports.now(), 0, Some(meanwhile), Vec::new());
    while let Some(part) = reader.next().await.unwrap() {
        read.extend_from_slice(&part);
        if ports.now().since(began) < SOON {
            soon = read.len();
            meanwhile.take().into_iter().for_each(|act| act());
        }
    }
    (soon, read)
}

#[test]
fn a_part_does_not_wait_for_the_fragments_behind_it() {
    let (world, tenant, content, by_index) = without_parity();
    world.fragments.slow_down(by_index[&2], 1, SLOW);
    for range in [0..400_000, 1..399_999, 70_000..390_000] {
        let (soon, read) = world.run(async {
            let mut reader = world.store.get(tenant, "bucket", "one").await.unwrap();
            reader.seek(range.start as u64..range.end as u64);
            read_on(&world, &mut *reader, || ()).await
        });
        assert!(read == content[range.clone()], "{range:?}");
        // Two fragments of four, of which the last segment reaches into the third.
        assert_eq!(soon, (196_608 - range.start), "{range:?}");
    }
}

#[test]
fn i_c9_a_read_that_is_begun_anew_goes_on_where_it_was() {
    let (world, tenant, content, by_index) = without_parity();
    world.fragments.slow_down(by_index[&2], 1, SLOW);
    world.fragments.rot(&[2]);
    let (soon, read) = world.run(async {
        let mut reader = world.store.get(tenant, "bucket", "one").await.unwrap();
        reader.seek(0..400_000);
        read_on(&world, &mut *reader, || world.fragments.bring_back(by_index[&4])).await
    });
    assert_eq!(soon, 196_608);
    assert!(read == content, "each byte once, in its place");
}
