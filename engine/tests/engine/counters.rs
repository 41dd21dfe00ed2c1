//! Counters go on when leaders change: what watches them takes one that falls for a node that was started anew.

use crate::support::{World, noise};
use kiseki_engine::message::Dedup;

/// Hits, misses, generations freed by homes, generations freed by shards, pages dropped, epochs closed, fences forgotten.
fn counted(world: &World) -> [u64; 7] {
    let core = world.engine.core();
    let (homes, shards) = (&core.homes.counters, &core.collection_counters);
    [
        homes.hits.get(),
        homes.misses.get(),
        homes.freed.get(),
        shards.generations_freed.get(),
        shards.pages_dropped.get(),
        shards.epochs_closed.get(),
        shards.fences_forgotten.get(),
    ]
}

#[test]
fn counters_go_on_in_the_next_term() {
    let world = World::new(1);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    for (key, seed) in [("k", 1), ("again", 1), ("k", 2), ("again", 3)] {
        world.put(tenant, "bucket", key, &noise(seed, 100_000)).unwrap();
    }
    world.sleep(1300);
    let before = counted(&world);
    assert!(before.iter().all(|count| *count > 0), "each of them is about something: {before:?}");
    world.logs.terms.elect();
    world.sleep(1);
    let after = counted(&world);
    assert!(after.iter().zip(&before).all(|(after, before)| after >= before), "{before:?} fell to {after:?}");
    world.put(tenant, "bucket", "k", &noise(3, 100_000)).unwrap();
    assert!(counted(&world)[0] > after[0], "the next term counts on");
}
