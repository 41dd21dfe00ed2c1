//! Up to which length content lies inline, and how that changes.

use crate::support::{CODED, Upkeep, World, noise};
use kiseki_engine::api::{Condition, StoreError};
use kiseki_engine::inline::InlineSettings;
use kiseki_engine::inline_message::{InlineRequest, InlineView};
use kiseki_engine::inline_threshold::{OBJECTS_EXPECTED_MIN, THRESHOLD_LEN_BYTES, ThresholdBy};
use kiseki_engine::message::{ControlRequest, ControlResponse, Dedup, ShardRequest, ShardResponse};
use kiseki_engine::split_message::{ShardMapAnswer, ShardMapRequest};
use kiseki_engine::wire::ROOM_VERSION;
use kiseki_types::ids::{ShardId, TenantId};
use kiseki_types::meta::MetaSpace;

const BUCKET: &str = "bucket";

fn world(seed: u64) -> (World, TenantId) {
    let inline = Some(InlineSettings::default());
    let world = World::with_upkeep(seed, 8, CODED, Upkeep { inline, ..Upkeep::default() });
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, BUCKET)).expect("a bucket");
    (world, tenant)
}

fn shard_of(world: &World, tenant: TenantId) -> ShardId {
    let request = ControlRequest::Bucket { tenant, name: BUCKET.to_owned() };
    match world.run(world.engine.calls().control(request)) {
        Ok(ControlResponse::Bucket(bucket)) => bucket.ranges.holder("", bucket.shard).shard,
        _ => panic!("the bucket is there"),
    }
}

fn ask(world: &World, tenant: TenantId, request: InlineRequest) -> Result<InlineView, StoreError> {
    let shard = shard_of(world, tenant);
    match world.run(world.engine.calls().shard(shard, ShardRequest::Inline(request)))? {
        ShardResponse::Inline(view) => Ok(*view),
        _ => panic!("a shard answers Inline with Inline"),
    }
}

fn show(world: &World, tenant: TenantId) -> InlineView {
    ask(world, tenant, InlineRequest::Show).expect("it is led")
}

fn set(world: &World, tenant: TenantId, len_bytes: Option<u32>) -> Result<u32, StoreError> {
    ask(world, tenant, InlineRequest::Set { len_bytes }).map(|view| view.effective_len_bytes)
}

/// Gives the metadata directories room for so many bytes of each object that every shard here is expected to get. Their use is
/// `used` percent of what they have.
fn give_room(world: &World, tenant: TenantId, len_bytes: u64) {
    world.sleep(6); // it has said how many shards share it
    // The soft limit is far away, and a byte of content takes up to two.
    let content = len_bytes * OBJECTS_EXPECTED_MIN * show(world, tenant).voters[0].replicas.max(1);
    let total_bytes = (2 * content).div_ceil(75) * 100;
    world.engine.core().inline.metadata_has(&[MetaSpace { used_bytes: 0, total_bytes, file_system: 0 }]);
    world.sleep(6);
}

/// Whether content of this length is stored inline.
fn lies_inline(world: &World, tenant: TenantId, key: &str, len: usize) -> bool {
    let writes = world.engine.core().inline.writes.get();
    world.put(tenant, BUCKET, key, &noise(len as u64, len)).unwrap();
    world.engine.core().inline.writes.get() > writes
}

#[test]
fn i_sf1_the_threshold_falls_with_the_room_of_a_voter_and_stays_there() {
    let (mut world, tenant) = world(1);
    world.sleep(6);
    assert_eq!(show(&world, tenant).supported_len_bytes, None, "nobody has measured");
    give_room(&world, tenant, 8192);
    assert_eq!(show(&world, tenant).supported_len_bytes, Some(8192));
    assert!(lies_inline(&world, tenant, "before", 4096) && !lies_inline(&world, tenant, "long", 4097));
    give_room(&world, tenant, 512);
    let view = show(&world, tenant);
    assert_eq!((view.effective_len_bytes, view.supported_len_bytes), (4096, Some(512)), "it may be for a moment only");
    assert!(lies_inline(&world, tenant, "meanwhile", 4096));
    world.sleep(40);
    let view = show(&world, tenant);
    assert_eq!((view.threshold.len_bytes, view.threshold.by), (512, ThresholdBy::Room));
    assert!(!lies_inline(&world, tenant, "after", 513) && lies_inline(&world, tenant, "short", 512));
    give_room(&world, tenant, 60_000);
    world.sleep(60);
    world.restart();
    assert_eq!(show(&world, tenant).effective_len_bytes, 512, "I-SF2: it rises by an operator's command alone");
    for (key, len) in [("before", 4096), ("long", 4097), ("meanwhile", 4096), ("after", 513), ("short", 512)] {
        assert_eq!(world.get(tenant, BUCKET, key).unwrap(), noise(len as u64, len), "I-L9: {key}");
    }
}

#[test]
fn i_sf2_it_is_at_the_floor_at_once_when_a_voter_is_over_its_hard_limit() {
    let (world, tenant) = world(2);
    assert!(lies_inline(&world, tenant, "before", 300));
    world.engine.core().inline.metadata_has(&[MetaSpace { used_bytes: 76, total_bytes: 100, file_system: 0 }]);
    world.sleep(10);
    let view = show(&world, tenant);
    assert_eq!((view.threshold.len_bytes, view.threshold.by), (128, ThresholdBy::Room));
    assert!(!lies_inline(&world, tenant, "long", 129) && lies_inline(&world, tenant, "short", 128));
    assert_eq!(world.get(tenant, BUCKET, "before").unwrap(), noise(300, 300));
    match set(&world, tenant, Some(512)) {
        Err(StoreError::Invalid { what }) => assert!(what.contains("76 % full, over their hard limit"), "{what}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn i_sf2_an_operator_raises_it_as_far_as_every_voter_has_room() {
    let (world, tenant) = world(3);
    let refused = |wanted, words: &str| match set(&world, tenant, wanted) {
        Err(StoreError::Invalid { what }) => assert!(what.contains(words), "{words} is not in {what}"),
        other => panic!("{wanted:?} gave {other:?}"),
    };
    refused(Some(8192), "node 1 has not said lately");
    refused(None, "node 1 has not said lately");
    assert_eq!(set(&world, tenant, Some(1000)), Ok(1000), "lower is always possible");
    assert!(!lies_inline(&world, tenant, "1001", 1001) && lies_inline(&world, tenant, "1000", 1000));
    give_room(&world, tenant, 20_480);
    for (wanted, words) in
        [(127, "128 to 65536"), (65_537, "128 to 65536"), (20_481, "node 1 has room for 20480 bytes")]
    {
        refused(Some(wanted), words);
    }
    assert_eq!(set(&world, tenant, Some(20_000)), Ok(20_000));
    world.sleep(10); // writers ask again after a while
    assert!(lies_inline(&world, tenant, "20000", 20_000) && !lies_inline(&world, tenant, "20001", 20_001));
    assert_eq!(set(&world, tenant, None), Ok(20_480));
    world.sleep(60);
    let view = show(&world, tenant);
    assert_eq!((view.threshold.len_bytes, view.threshold.by), (20_480, ThresholdBy::Operator));
    give_room(&world, tenant, 65_536);
    assert_eq!(set(&world, tenant, None), Ok(65_536));
    assert!(lies_inline(&world, tenant, "65536", 65_536) && !lies_inline(&world, tenant, "65537", 65_537));
    for len in [1000, 1001, 20_000, 20_001, 65_536, 65_537] {
        assert_eq!(world.get(tenant, BUCKET, &len.to_string()).unwrap(), noise(len as u64, len), "{len}");
    }
}

#[test]
fn what_a_shard_does_not_take_is_offered_to_it_once_in_a_while() {
    let (world, tenant) = world(4);
    for number in 0..10 {
        assert!(!lies_inline(&world, tenant, &number.to_string(), 5000));
        assert!(lies_inline(&world, tenant, "short", 4096), "content that it takes is not held back");
    }
    assert_eq!(world.engine.core().inline.refusals.get(), 1);
    world.sleep(10);
    assert!(!lies_inline(&world, tenant, "again", 5000));
    assert_eq!(world.engine.core().inline.refusals.get(), 2);
}

#[test]
fn nothing_longer_than_the_first_threshold_is_inline_before_every_node_knows_of_such() {
    let (world, tenant) = world(5);
    let invited = match world.run(world.engine.calls().control(ControlRequest::InviteNode)) {
        Ok(ControlResponse::Node(invited)) => invited.node,
        _ => panic!("a node is invited"),
    };
    let here = ControlRequest::NodeHere {
        node: invited,
        addresses: vec!["n:1".to_owned()],
        lanes: 2,
        cores: 1,
        version: "1".to_owned(),
        rack: String::new(),
    };
    world.run(world.engine.calls().control(here)).unwrap();
    world.engine.core().nodes.speaks(invited, ROOM_VERSION - 1);
    give_room(&world, tenant, 65_536);
    assert!(matches!(set(&world, tenant, Some(8192)), Err(StoreError::Invalid { what }) if what.contains("update it")));
    assert!(!lies_inline(&world, tenant, "long", 5000) && lies_inline(&world, tenant, "short", 4096));
    assert_eq!(world.engine.core().inline.refusals.get(), 0, "it is not even offered");
    assert_eq!(set(&world, tenant, Some(512)), Ok(512));
    assert!(!lies_inline(&world, tenant, "512", 513));
    assert!(!lies_inline(&world, tenant, "511", 511), "an earlier release understands only that nothing is taken");
    world.engine.core().nodes.speaks(invited, ROOM_VERSION);
    world.sleep(2);
    assert_eq!(set(&world, tenant, Some(8192)), Ok(8192));
}

/// Splits the bucket's shard at "m"; the child, when the keys have moved.
fn split(world: &World, tenant: TenantId) -> ShardId {
    let of_control = |request| match world.run(world.engine.calls().control(ControlRequest::Shards(request))) {
        Ok(ControlResponse::Shards(answer)) => answer,
        _ => panic!("the control shard answers"),
    };
    let request = ShardMapRequest::Split {
        shard: shard_of(world, tenant),
        bucket: Some(BUCKET.to_owned()),
        at: Some("m".to_owned()),
    };
    let ShardMapAnswer::Begun(order) = of_control(request) else { panic!("the split begins") };
    world.await_that("the keys have moved", |_| match of_control(ShardMapRequest::List) {
        ShardMapAnswer::Shards(shards) => shards.iter().all(|shard| shard.split_of.is_none()),
        ShardMapAnswer::Begun(_) => panic!("a list is asked for"),
    });
    order.child
}

/// What a shard takes inline.
fn threshold(world: &World, shard: ShardId) -> u32 {
    let all = world.engine.shards();
    all.iter().find(|service| service.shard() == shard).expect("it is led here").threshold_len_bytes()
}

#[test]
fn i_l6_long_inline_content_moves_with_its_key_and_the_child_begins_with_the_first_threshold() {
    let (world, tenant) = world(6);
    give_room(&world, tenant, 65_536);
    assert_eq!(set(&world, tenant, None), Ok(65_536));
    let key = |number: u64| format!("{}{number}", if number.is_multiple_of(2) { "a" } else { "n" });
    for number in 0..24 {
        world.put(tenant, BUCKET, &key(number), &noise(number, 60_000)).unwrap();
    }
    assert_eq!(world.fragments.count(), 0);
    let child = split(&world, tenant);
    assert_eq!(threshold(&world, child), THRESHOLD_LEN_BYTES);
    for number in 0..24 {
        assert_eq!(world.get(tenant, BUCKET, &key(number)).unwrap(), noise(number, 60_000), "I-L9: {number}");
        assert!(world.run(world.store.delete(tenant, BUCKET, &key(number), Condition::None)).unwrap());
    }
}

#[test]
fn i_sf2_a_child_takes_no_longer_content_than_the_shard_that_it_comes_from() {
    let (world, tenant) = world(7);
    assert_eq!(set(&world, tenant, Some(512)), Ok(512));
    world.put(tenant, BUCKET, "n", &noise(1, 300)).unwrap();
    let child = split(&world, tenant);
    assert_eq!(threshold(&world, child), 512);
    assert!(!lies_inline(&world, tenant, "n-long", 513) && lies_inline(&world, tenant, "n-short", 512));
}

#[test]
fn a_threshold_that_means_nothing_does_not_fall() {
    let inline = Some(InlineSettings::off());
    let world = World::with_upkeep(8, 8, CODED, Upkeep { inline, ..Upkeep::default() });
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, BUCKET)).expect("a bucket");
    world.engine.core().inline.metadata_has(&[MetaSpace { used_bytes: 90, total_bytes: 100, file_system: 0 }]);
    world.sleep(60);
    assert_eq!(show(&world, tenant).threshold.len_bytes, THRESHOLD_LEN_BYTES, "it would not rise when it is on again");
}
