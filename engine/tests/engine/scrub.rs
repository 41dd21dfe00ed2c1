//! Scrub: what nobody reads is read and checked in a stated time.

use crate::support::{Upkeep, World, noise};
use kiseki_engine::message::Dedup;
use kiseki_engine::scrubber::{ScrubSettings, ScrubState};
use kiseki_types::fragment::StripeShape;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_secs(3600);

fn world(seed: u64) -> World {
    let scrub = Some(ScrubSettings { interval: INTERVAL, bytes_per_second_max: 8 << 20 });
    let upkeep = Upkeep { scrub, ..Upkeep::default() };
    let world = World::with_upkeep(seed, 8, StripeShape { data: 4, parity: 2 }, upkeep);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    for index in 0..30 {
        let len = if index % 3 == 0 { 8_000 } else { 700_000 };
        world.put(tenant, "bucket", &index.to_string(), &noise(index + 1, len)).unwrap();
    }
    world
}

fn state(world: &World) -> ScrubState {
    world.engine.scrub_state().expect("scrub is on")
}

#[test]
fn i_o2_scrub_reads_everything_in_time_and_what_rotted_is_repaired() {
    let world = world(1);
    world.await_that("the first pass ends", |world| state(world).passes == 2);
    // What rots right behind it is found by the next pass, after the interval.
    let (before, stripes) = (world.fragments.count(), world.fragments.stripes().len() as u64);
    world.fragments.rot(&[2]);
    assert_eq!(state(&world).bad, 0, "nobody has read it");
    world.await_that("rot is found", |world| state(world).bad == stripes);
    world.await_full_width();
    let good: usize = world.fragments.good().values().map(Vec::len).sum();
    assert_eq!(good, before, "I-O2: what scrub found is repaired");
    world.await_that("the pass ends", |world| state(world).passes == 4);
    let first = state(&world);
    assert!(first.last_full_pass_unix_ms > 0 && first.bytes > 16 << 20, "{first:?}");
    assert_eq!(first.overdue, 0);
    // Again and again, each time within the interval.
    world.sleep(INTERVAL.as_secs() + 600);
    let second = state(&world);
    assert!(second.last_full_pass_unix_ms >= first.last_full_pass_unix_ms + 3_500_000, "{first:?} {second:?}");
    assert!(second.bytes > first.bytes && second.bad == first.bad, "{second:?}");
}

#[test]
fn scrub_remembers_across_a_restart_when_it_last_read_everything() {
    let mut world = world(2);
    world.await_that("two passes of each home", |world| state(world).passes == 4);
    let before = state(&world);
    world.restart();
    world.sleep(60);
    let after = state(&world);
    assert_eq!(after.last_full_pass_unix_ms, before.last_full_pass_unix_ms);
    assert_eq!((after.passes, after.bytes), (0, 0), "nothing is due yet");
    world.sleep(INTERVAL.as_secs() + 600);
    assert!(state(&world).passes >= 2);
}
