//! Splits of shards (I-L6): keys move to another shard while they are written, read and listed, and a crash at any step loses nothing.

use crate::support::{CODED, NODE, Upkeep, World, noise, put};
use bytes::Bytes;
use kiseki_engine::api::{CompletePart, Condition, FinishWrite, ListItem, ListRequest, ObjectInfo, Store, StoreError};
use kiseki_engine::inline::InlineSettings;
use kiseki_engine::message::{ControlRequest, ControlResponse, Dedup, ShardRequest, ShardResponse};
use kiseki_engine::split_message::{
    Attempt, Handover, ShardEntry, ShardMapAnswer, ShardMapRequest, ShardStanding, SplitAnswer, SplitCeilings,
    SplitOrder, SplitRequest,
};
use kiseki_engine::wire::SPLIT_VERSION;
use kiseki_types::fragment::StripeShape;
use kiseki_types::ids::{NodeId, ShardId, TenantId};
use kiseki_types::meta::MetaSpace;
use kiseki_types::runtime::RuntimeExt;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

const BUCKET: &str = "bucket";

const COPIES: StripeShape = StripeShape { data: 1, parity: 1 };

fn shards(world: &World) -> Vec<ShardEntry> {
    match world.run(world.engine.calls().control(ControlRequest::Shards(ShardMapRequest::List))) {
        Ok(ControlResponse::Shards(ShardMapAnswer::Shards(shards))) => shards,
        _ => panic!("the shards are listed"),
    }
}

fn standing(world: &World, shard: ShardId) -> ShardStanding {
    let request = ShardRequest::Split(Box::new(SplitRequest::Standing));
    match world.run(world.engine.calls().shard(shard, request)) {
        Ok(ShardResponse::Split(SplitAnswer::Standing(standing))) => *standing,
        other => panic!("a shard says how it is: {other:?}", other = other.err()),
    }
}

/// The shard that holds the bucket's first key.
fn first_shard(world: &World, tenant: TenantId) -> ShardId {
    let request = ControlRequest::Bucket { tenant, name: BUCKET.to_owned() };
    match world.run(world.engine.calls().control(request)) {
        Ok(ControlResponse::Bucket(bucket)) => bucket.ranges.holder("", bucket.shard).shard,
        _ => panic!("the bucket is there"),
    }
}

fn split(world: &World, shard: ShardId, at: Option<&str>) -> Result<SplitOrder, StoreError> {
    let (bucket, at) = (at.map(|_| BUCKET.to_owned()), at.map(str::to_owned));
    let request = ControlRequest::Shards(ShardMapRequest::Split { shard, bucket, at });
    match world.run(world.engine.calls().control(request))? {
        ControlResponse::Shards(ShardMapAnswer::Begun(order)) => Ok(order),
        _ => panic!("a split is begun"),
    }
}

fn is_splitting(world: &World) -> bool {
    shards(world).iter().any(|shard| shard.split_of.is_some())
}

fn world_with_bucket(seed: u64) -> (World, TenantId) {
    let world = World::new(seed);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, BUCKET)).expect("a bucket");
    (world, tenant)
}

/// Nested keys on both sides of "m", some of which have no directory.
fn key_of(number: u64) -> String {
    match number % 4 {
        0 => format!("a/{number:03}"),
        1 => format!("m/{}/{number:03}", number % 8),
        2 => format!("m/{number:03}"),
        _ => format!("z{number:03}"),
    }
}

fn listed(world: &World, tenant: TenantId, delimiter: Option<&str>, limit: usize) -> Vec<String> {
    world.run(list_all(&world.store, tenant, delimiter, limit)).expect("a listing")
}

async fn list_all(
    store: &Store,
    tenant: TenantId,
    delimiter: Option<&str>,
    limit: usize,
) -> Result<Vec<String>, StoreError> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let delimiter = delimiter.map(str::to_owned);
        let request = ListRequest { after: after.clone(), delimiter, limit, ..ListRequest::default() };
        let page = store.list(tenant, BUCKET, request).await?;
        assert!(page.items.len() <= limit);
        found.extend(page.items.into_iter().map(|item| match item {
            ListItem::Object(ObjectInfo { key, .. }) => key,
            ListItem::CommonPrefix(common) => common,
        }));
        match page.truncated {
            true => after = found.last().cloned(),
            false => return Ok(found),
        }
    }
}

fn check(world: &World, tenant: TenantId, wanted: &BTreeMap<String, Vec<u8>>) {
    for (key, bytes) in wanted {
        assert!(world.get(tenant, BUCKET, key).as_ref() == Ok(bytes), "{key}");
    }
    let keys: Vec<&String> = wanted.keys().collect();
    for limit in [3, 1000] {
        assert_eq!(listed(world, tenant, None, limit).iter().collect::<Vec<_>>(), keys, "I-L6: pages of {limit}");
    }
    let mut rolled: Vec<String> =
        wanted.keys().map(|key| key.find('/').map_or(key.clone(), |at| key[..=at].to_owned())).collect();
    rolled.dedup();
    for limit in [1, 1000] {
        assert_eq!(listed(world, tenant, Some("/"), limit), rolled, "I-L6: common prefixes, pages of {limit}");
    }
}

/// Everything that was ever stored goes, and nothing stays behind on a device.
fn remove_all(world: &World, tenant: TenantId) {
    for key in listed(world, tenant, None, 1000) {
        assert_eq!(world.run(world.store.delete(tenant, BUCKET, &key, Condition::None)), Ok(true), "{key}");
    }
    world.run(world.store.delete_bucket(tenant, BUCKET)).expect("the bucket is empty");
    // Copies that nobody needs wait an hour for their writer, and fences for their epoch.
    world.await_that("I-C2: nothing is left that nobody names", |world| world.fragments.count() == 0);
}

#[test]
fn i_l6_keys_move_while_they_are_written_read_and_listed() {
    let (world, tenant) = world_with_bucket(1);
    let mut wanted = BTreeMap::new();
    for number in 0..400 {
        let bytes = noise(number % 60, 5_000); // equal content, named by keys on both sides
        world.put(tenant, BUCKET, &key_of(number), &bytes).unwrap();
        wanted.insert(key_of(number), bytes);
    }
    // Keys that nobody changes, on both sides: whoever lists finds them, whatever moves meanwhile.
    let still: Vec<String> =
        (0..60).flat_map(|number| [format!("a/still{number}"), format!("m/still{number}")]).collect();
    for (number, key) in still.iter().enumerate() {
        let bytes = noise(3000 + number as u64, 2_000);
        world.put(tenant, BUCKET, key, &bytes).unwrap();
        wanted.insert(key.clone(), bytes);
    }
    let parent = first_shard(&world, tenant);
    let (wanted, still) = (Rc::new(RefCell::new(wanted)), Rc::new(still));
    // A reader that is open all the while, and an upload that has begun.
    let mut open = world.run(world.store.get(tenant, BUCKET, "z399")).unwrap();
    let upload = world.run(world.store.create_upload(tenant, BUCKET, "m/upload", Default::default())).unwrap();
    let part = |number: u16, seed: u64| {
        let store = world.store.clone();
        async move {
            let mut writer = store.put_part(tenant, BUCKET, "m/upload", upload, number).await?;
            writer.write(Bytes::from(noise(seed, 30_000))).await?;
            writer.finish(FinishWrite { etag: Some(format!("e{number}")), ..FinishWrite::default() }).await
        }
    };
    world.run(part(1, 1001)).unwrap();
    // Writers that have pinned their chunks for the shard that holds the keys before.
    let mut early = world.run(world.store.put(tenant, BUCKET, "n/early", Some(9_000))).unwrap();
    world.run(early.write(Bytes::from(noise(2001, 9_000)))).unwrap();
    world.run(early.drain()).unwrap();
    let order = split(&world, parent, Some("m")).unwrap();
    assert!(matches!(split(&world, parent, Some("m")), Err(StoreError::Exists { .. })), "one at a time");
    let stop = Rc::new(Cell::new(false));
    let refused = Rc::new(Cell::new(0));
    for client in 0..4u64 {
        let (store, wanted, stop, refused) = (world.store.clone(), wanted.clone(), stop.clone(), refused.clone());
        let still = still.clone();
        let ports = world.sim.ports(NODE);
        let work = async move {
            let mut number = client;
            while !stop.get() {
                number += 4; // keys of its own
                let key = key_of(number % 800);
                let done = if number.is_multiple_of(3) {
                    let done = store.delete(tenant, BUCKET, &key, Condition::None).await;
                    done.map(|_| drop(wanted.borrow_mut().remove(&key)))
                } else {
                    let bytes = noise(number % 50, 4_000);
                    let done = put(&store, tenant, BUCKET, &key, &bytes, FinishWrite::default()).await;
                    done.map(|_| drop(wanted.borrow_mut().insert(key, bytes)))
                };
                refused.set(refused.get() + u32::from(done.is_err()));
                if number.is_multiple_of(5) {
                    let listed =
                        list_all(&store, tenant, None, 100).await.expect("listings are answered all the while");
                    let lacking = still.iter().find(|key| listed.binary_search(key).is_err());
                    assert_eq!(lacking, None, "I-L6: a listing lacks a key that is there all the while");
                }
            }
            drop(ports);
        };
        world.sim.ports(NODE).spawn("client", Box::pin(work));
    }
    world.await_that("the keys have moved", |world| !is_splitting(world));
    stop.set(true);
    world.sleep(1);
    assert_eq!(refused.get(), 0, "I-L6: writers are redirected, not refused");
    world.run(early.finish(FinishWrite::default())).expect("a writer that began before ends after");
    wanted.borrow_mut().insert("n/early".to_owned(), noise(2001, 9_000));
    world.run(part(2, 1002)).unwrap();
    let parts = [1, 2].map(|part| CompletePart { part, etag: format!("e{part}") }).to_vec();
    world.run(world.store.complete_upload(tenant, BUCKET, "m/upload", upload, parts, FinishWrite::default())).unwrap();
    wanted.borrow_mut().insert("m/upload".to_owned(), [noise(1001, 30_000), noise(1002, 30_000)].concat());
    let mut read = Vec::new();
    while let Some(bytes) = world.run(open.next()).unwrap() {
        read.extend_from_slice(&bytes);
    }
    assert_eq!(read, noise(399 % 60, 5_000), "an open reader reads what it opened");
    drop(open);
    check(&world, tenant, &wanted.borrow());
    let moved = wanted.borrow().keys().filter(|key| key.as_str() >= "m").count() as u64;
    world.await_that("both are counted", |world| {
        [parent, order.child].iter().all(|shard| standing(world, *shard).is_counted)
    });
    world.sleep(1000); // a count that began before the last key moved is overtaken
    assert_eq!(standing(&world, order.child).keys, moved);
    assert_eq!(standing(&world, parent).keys, wanted.borrow().len() as u64 - moved);
    world.sleep(2 * 3600);
    check(&world, tenant, &wanted.borrow()); // I-C2: what the giver names no more is not collected
    remove_all(&world, tenant);
}

#[test]
fn i_l6_a_crash_at_any_step_of_a_split_loses_nothing() {
    for step in 0..24u64 {
        let (mut world, tenant) = world_with_bucket(100 + step);
        let mut wanted = BTreeMap::new();
        for number in 0..40 {
            let bytes = noise(number % 20, 3_000);
            world.put(tenant, BUCKET, &key_of(number), &bytes).unwrap();
            wanted.insert(key_of(number), bytes);
        }
        let upload = world.run(world.store.create_upload(tenant, BUCKET, "m/upload", Default::default())).unwrap();
        split(&world, first_shard(&world, tenant), Some("m")).unwrap();
        // It begins within a second or two; each crash comes a little later than the one before.
        let ports = world.sim.ports(NODE);
        let pause = Duration::from_millis(990 + 61 * step);
        world.run(async move { ports.sleep(pause).await });
        world.restart();
        check(&world, tenant, &wanted);
        world.put(tenant, BUCKET, "m/after", b"after").unwrap();
        wanted.insert("m/after".to_owned(), b"after".to_vec());
        world.await_that("the split goes on by itself", |world| !is_splitting(world));
        check(&world, tenant, &wanted);
        assert_eq!(world.run(world.store.uploads(tenant, BUCKET, "m/", None, 10)).unwrap().len(), 1, "step {step}");
        world.run(world.store.abort_upload(tenant, BUCKET, "m/upload", upload)).unwrap();
        world.restart();
        check(&world, tenant, &wanted);
        remove_all(&world, tenant);
    }
}

#[test]
fn i_l6_what_moved_is_split_again_and_a_bucket_in_many_shards_is_deleted_when_it_is_empty() {
    let (mut world, tenant) = world_with_bucket(3);
    let mut wanted = BTreeMap::new();
    for number in 0..80 {
        let bytes = noise(number, 2_000);
        world.put(tenant, BUCKET, &key_of(number), &bytes).unwrap();
        wanted.insert(key_of(number), bytes);
    }
    let parent = first_shard(&world, tenant);
    let child = split(&world, parent, Some("m/2")).unwrap().child;
    world.await_that("the first split", |world| !is_splitting(world));
    assert!(matches!(split(&world, parent, Some("n")), Err(StoreError::Invalid { .. })), "those keys are elsewhere");
    let grandchild = split(&world, child, Some("z")).unwrap().child;
    world.await_that("the second split", |world| !is_splitting(world));
    let third = split(&world, parent, Some("b")).unwrap().child;
    world.await_that("the third split", |world| !is_splitting(world));
    // What it was given ends where another shard's keys begin, which it never held.
    let fourth = split(&world, third, Some("m/04")).unwrap().child;
    world.await_that("the fourth split", |world| !is_splitting(world));
    check(&world, tenant, &wanted);
    assert_eq!(shards(&world).len(), 6);
    for shard in [parent, third, fourth, child, grandchild] {
        world.await_that("all is counted", |world| standing(world, shard).is_counted);
        assert!(standing(&world, shard).keys > 0, "{shard} holds some");
    }
    world.restart();
    check(&world, tenant, &wanted);
    let refused = world.run(world.store.delete_bucket(tenant, BUCKET));
    assert_eq!(refused, Err(StoreError::BucketNotEmpty));
    // Only what the last shard holds is left: the others were closed, and are open again.
    for key in wanted.keys().filter(|key| key.as_str() < "z").cloned().collect::<Vec<_>>() {
        world.run(world.store.delete(tenant, BUCKET, &key, Condition::None)).unwrap();
        wanted.remove(&key);
    }
    let upload = world.run(world.store.create_upload(tenant, BUCKET, "c", Default::default())).unwrap();
    assert_eq!(world.run(world.store.delete_bucket(tenant, BUCKET)), Err(StoreError::BucketNotEmpty));
    for key in ["a", "c", "m/3", "zz"] {
        world.put(tenant, BUCKET, key, b"open again").unwrap();
        wanted.insert(key.to_owned(), b"open again".to_vec());
    }
    assert!(world.run(world.store.parts(tenant, BUCKET, "c", upload, 0, 10)).is_ok(), "uploads outlive the attempt");
    check(&world, tenant, &wanted);
    remove_all(&world, tenant);
    assert_eq!(world.put(tenant, BUCKET, "a", b"gone"), Err(StoreError::NoSuchBucket));
}

#[test]
fn i_l6_a_shard_says_where_it_is_split_by_the_keys_that_are_asked_for() {
    let (world, tenant) = world_with_bucket(4);
    let parent = first_shard(&world, tenant);
    assert!(matches!(split(&world, parent, None), Err(StoreError::Invalid { .. })), "nothing was asked for yet");
    for number in 0..200 {
        world.put(tenant, BUCKET, &format!("{number:03}"), b"x").unwrap();
    }
    let order = split(&world, parent, None).unwrap();
    assert_eq!(order.start, "1");
    world.await_that("the keys have moved", |world| !is_splitting(world));
    world.await_that("it is counted", |world| standing(world, order.child).is_counted);
    assert_eq!(listed(&world, tenant, None, 1000).len(), 200);
}

#[test]
fn i_l6_a_handover_that_comes_late_changes_nothing() {
    let (world, tenant) = world_with_bucket(7);
    for number in 0..40 {
        world.put(tenant, BUCKET, &key_of(number), b"x").unwrap();
    }
    let SplitOrder { child, namespace, root, .. } = split(&world, first_shard(&world, tenant), Some("m")).unwrap();
    world.await_that("the keys have moved", |world| !is_splitting(world));
    // Another try of the same keys, which their giver gave up, was long on its way.
    let (start, attempt) = ("m".to_owned(), Attempt { term: 1, count: 1 });
    let late = Handover { namespace, root, start, end: None, attempt, follows: None, items: Vec::new() };
    let request = ShardRequest::Split(Box::new(SplitRequest::Take(late)));
    assert!(matches!(world.run(world.engine.calls().shard(child, request)), Err(StoreError::Invalid { .. })));
    assert_eq!(listed(&world, tenant, None, 1000).len(), 40, "I-L6: what was handed over since is gone");
}

#[test]
fn a_node_of_an_earlier_release_keeps_shards_whole() {
    let world = World::on_nodes(8, 2, 4, COPIES);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, BUCKET)).unwrap();
    let (shard, other) = (first_shard(&world, tenant), NodeId(2));
    for spoken in [None, Some(SPLIT_VERSION - 1)] {
        spoken.inspect(|version| world.engine.core().nodes.speaks(other, *version));
        let refused = split(&world, shard, Some("m"));
        assert!(
            matches!(&refused, Err(StoreError::Invalid { what }) if what.contains("node 2")),
            "{:?}",
            refused.err()
        );
    }
    world.engine.core().nodes.speaks(other, SPLIT_VERSION);
    assert!(split(&world, shard, Some("m")).is_ok());
}

#[test]
fn a_bucket_that_is_split_is_deleted_and_its_split_ends() {
    let (world, tenant) = world_with_bucket(5);
    let parent = first_shard(&world, tenant);
    split(&world, parent, Some("m")).unwrap();
    world.run(world.store.delete_bucket(tenant, BUCKET)).unwrap();
    world.await_that("nothing is split any more", |world| !is_splitting(world));
    world.run(world.store.create_bucket(tenant, BUCKET)).unwrap();
    world.put(tenant, BUCKET, "m", b"new").unwrap();
    assert_eq!(world.get(tenant, BUCKET, "m"), Ok(b"new".to_vec()));
}

#[test]
fn i_l6_a_shard_over_its_ceiling_has_itself_split() {
    let split = SplitCeilings { keys: 300, ..SplitCeilings::default() };
    let world = World::with_upkeep(6, 8, CODED, Upkeep { split, ..Upkeep::default() });
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, BUCKET)).unwrap();
    for number in 0..290 {
        world.put(tenant, BUCKET, &format!("{number:03}"), b"x").unwrap();
    }
    world.sleep(1200);
    assert_eq!(shards(&world).len(), 2, "it is not over it yet");
    for number in 290..500 {
        world.put(tenant, BUCKET, &format!("{number:03}"), b"x").unwrap();
    }
    world.await_that("I-L6: it is split", |world| shards(world).len() > 2 && !is_splitting(world));
    world.sleep(3600);
    assert_eq!(shards(&world).len(), 3, "both halves are below it");
    assert_eq!(listed(&world, tenant, None, 1000).len(), 500);
}

#[test]
fn i_l6_all_uploads_move_and_are_listed_also_those_that_one_answer_does_not_hold() {
    let (world, tenant) = world_with_bucket(10);
    let long = vec![("x-amz-meta-long".to_owned(), "v".repeat(2_000))];
    world.run(async {
        // More of one key than are looked at at once, and more bytes before "m" than one answer takes.
        for (key, count, attributes) in [("a", 600, &long), ("m/many", 200, &Vec::new()), ("z", 1, &Vec::new())] {
            for _ in 0..count {
                let attributes = attributes.iter().cloned().collect();
                world.store.create_upload(tenant, BUCKET, key, attributes).await.unwrap();
            }
        }
    });
    let count = || {
        world.run(async {
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let page = world.store.uploads(tenant, BUCKET, "", after.clone(), 900).await.unwrap();
                let Some(last) = page.last() else { return found };
                after = Some((last.key.clone(), last.upload));
                found.extend(page.into_iter().map(|info| info.key));
            }
        })
    };
    let before = count();
    assert_eq!(before.len(), 801);
    split(&world, first_shard(&world, tenant), Some("m")).unwrap();
    world.await_that("the uploads have moved", |world| !is_splitting(world));
    assert_eq!(count(), before, "I-L6: uploads are lost or listed twice");
}

#[test]
fn i_l6_small_objects_move_with_the_pages_that_hold_them() {
    let upkeep = Upkeep { inline: Some(InlineSettings::default()), ..Upkeep::default() };
    let world = World::with_upkeep(12, 8, CODED, upkeep);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, BUCKET)).expect("a bucket");
    let content = |number: u64| noise(number, 1 + (number as usize * 97) % 5_000);
    for number in 0..120 {
        world.put(tenant, BUCKET, &key_of(number), &content(number)).unwrap();
    }
    // One that was begun before the keys move: it is offered to the shard that gives them away, and sent on.
    let mut early = world.run(world.store.put(tenant, BUCKET, "z-early", None)).unwrap();
    world.run(early.write(Bytes::from_static(b"early"))).unwrap();
    split(&world, first_shard(&world, tenant), Some("m")).unwrap();
    world.await_that("the keys have moved", |world| !is_splitting(world));
    world.run(early.finish(FinishWrite::default())).unwrap();
    for number in 0..120 {
        assert_eq!(world.get(tenant, BUCKET, &key_of(number)).unwrap(), content(number), "I-L6: {number}");
    }
    assert_eq!(world.get(tenant, BUCKET, "z-early").unwrap(), b"early");
    for number in 0..120 {
        assert!(world.run(world.store.delete(tenant, BUCKET, &key_of(number), Condition::None)).unwrap());
    }
    world.await_that("their chunks are collected", |world| world.fragments.count() == 0);
}

#[test]
fn i_c2_chunks_of_refused_inline_content_are_pinned_for_the_shard_that_names_them() {
    let inline = InlineSettings { bytes_per_second_max: 200, ..InlineSettings::default() };
    let world = World::with_upkeep(13, 8, CODED, Upkeep { inline: Some(inline), ..Upkeep::default() });
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, BUCKET)).expect("a bucket");
    let content = noise(1, 300);
    let mut early = world.run(world.store.put(tenant, BUCKET, "z-early", Some(300))).unwrap();
    world.run(early.write(Bytes::from(content.clone()))).unwrap();
    world.put(tenant, BUCKET, "z", b"").unwrap();
    split(&world, first_shard(&world, tenant), Some("m")).unwrap();
    world.await_that("the keys have moved", |world| !is_splitting(world));
    // The child has taken what it may, and the giver, which is asked first, has not.
    for number in 0..4 {
        world.put(tenant, BUCKET, &format!("z-full{number}"), &noise(10 + number, 500)).unwrap();
    }
    assert_eq!((world.engine.core().inline.writes.get(), world.fragments.count()), (4, 0));
    world.run(early.finish(FinishWrite::default())).unwrap();
    assert_eq!((world.engine.core().inline.writes.get(), world.fragments.count()), (4, 3), "it is a chunk");
    // The giver names an equal chunk, and then does not: whom the home asks decides whether it is freed.
    world.engine.core().inline.metadata_has(&[MetaSpace { used_bytes: 1, total_bytes: 1, file_system: 0 }]);
    world.put(tenant, BUCKET, "a", &content).unwrap();
    assert_eq!(world.fragments.count(), 3, "it is the same one");
    assert!(world.run(world.store.delete(tenant, BUCKET, "a", Condition::None)).unwrap());
    world.sleep(600);
    assert_eq!(world.get(tenant, BUCKET, "z-early"), Ok(content), "I-C2");
}
