//! Small objects that lie in their pages.

use crate::groups::GroupState;
use crate::support::{CODED, Upkeep, World, noise};
use bytes::Bytes;
use kiseki_engine::api::{Attributes, CompletePart, Condition, FinishWrite, ObjectInfo, StoreError};
use kiseki_engine::inline::InlineSettings;
use kiseki_engine::inline_threshold::THRESHOLD_LEN_BYTES;
use kiseki_engine::machine::ROWS_FILE;
use kiseki_engine::message::{ControlRequest, ControlResponse, Dedup};
use kiseki_engine::shard_tables::{DROPPED, LOOSE, PAGES};
use kiseki_engine::wire::INLINE_VERSION;
use kiseki_types::ids::{NodeId, ShardId, TenantId};
use kiseki_types::meta::MetaSpace;
use kiseki_types::table::TableId;

const BUCKET: &str = "bucket";

/// The first threshold.
const FIRST: usize = THRESHOLD_LEN_BYTES as usize;

/// Metadata directories that are so full.
fn directories(fill: u64) -> [MetaSpace; 1] {
    [MetaSpace { used_bytes: fill << 30, total_bytes: 100 << 30, file_system: 0 }]
}

fn world_with(seed: u64, inline: InlineSettings) -> (World, TenantId) {
    let world = World::with_upkeep(seed, 8, CODED, Upkeep { inline: Some(inline), ..Upkeep::default() });
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, BUCKET)).expect("a bucket");
    (world, tenant)
}

fn world(seed: u64) -> (World, TenantId) {
    world_with(seed, InlineSettings::default())
}

/// Rows of a table, of all tenants' shards.
fn rows(world: &World, table: TableId) -> Vec<Vec<u8>> {
    let logs = world.logs.groups.borrow();
    let of_shard = |(shard, (tables, _)): (&ShardId, &GroupState)| -> Vec<Vec<u8>> {
        let tables = tables.0.borrow();
        let found = tables.iter().filter(|((file, of, _), _)| (*file, *of) == (ROWS_FILE, table));
        if shard.0 < ShardId::TENANT_FIRST { Vec::new() } else { found.map(|(_, value)| value.clone()).collect() }
    };
    logs.iter().flat_map(of_shard).collect()
}

fn range(world: &World, tenant: TenantId, key: &str, range: std::ops::Range<u64>) -> Vec<u8> {
    world.run(async {
        let mut reader = world.store.get(tenant, BUCKET, key).await.expect("it is there");
        reader.seek(range);
        let mut out = Vec::new();
        while let Some(bytes) = reader.next().await.expect("it reads") {
            out.extend_from_slice(&bytes);
        }
        out
    })
}

/// What was offered to shards and taken, and what they refused.
fn counts(world: &World) -> (u64, u64) {
    let inline = &world.engine.core().inline;
    (inline.writes.get(), inline.refusals.get())
}

#[test]
fn i_l9_small_objects_have_no_fragments_and_read_like_any_other() {
    let (mut world, tenant) = world(1);
    let key = |len: usize| format!("d/{len}");
    let lens = [1, 2, 100, FIRST - 1, FIRST];
    for len in lens {
        let info = world.put(tenant, BUCKET, &key(len), &noise(len as u64, len)).unwrap();
        assert_eq!(info.len_bytes, len as u64);
    }
    assert_eq!(world.fragments.count(), 0);
    let longer = FIRST + 1;
    world.put(tenant, BUCKET, &key(longer), &noise(7, longer)).unwrap();
    assert_eq!(world.fragments.count(), 3, "a chunk");
    assert_eq!(counts(&world), (lens.len() as u64, 1), "it was offered, and the shard says what it takes");
    for _ in 0..2 {
        for len in lens {
            let content = noise(len as u64, len);
            assert_eq!(world.get(tenant, BUCKET, &key(len)).unwrap(), content, "{len} bytes");
            let len = len as u64;
            for wanted in [0..0, 0..1, len - 1..len, len / 3..len / 2 + 1] {
                let expected = content[wanted.start as usize..wanted.end as usize].to_vec();
                assert_eq!(range(&world, tenant, &key(content.len()), wanted), expected);
            }
        }
        world.restart();
    }
    assert_eq!(world.get(tenant, BUCKET, &key(longer)).unwrap(), noise(7, longer));
}

#[test]
fn i_k1_the_content_is_sealed_before_it_reaches_the_shard() {
    let (world, tenant) = world(2);
    let content = b"this must not be read by whoever has the rows ".repeat(20);
    world.put(tenant, BUCKET, "secret", &content).unwrap();
    let pages = rows(&world, PAGES);
    assert_eq!(pages.len(), 1);
    assert!(pages[0].len() > content.len());
    assert!(!pages[0].windows(8).any(|window| content.windows(8).any(|plain| plain == window)));
}

#[test]
fn i_sf6_replaced_and_deleted_content_leaves_no_rows() {
    let (world, tenant) = world(3);
    for number in 0..20 {
        world.put(tenant, BUCKET, &format!("k{number}"), &noise(number, 500)).unwrap();
    }
    for number in 0..10 {
        // Half of them become chunks, and small again.
        let len = if number % 2 == 0 { 300 } else { 40_000 };
        world.put(tenant, BUCKET, &format!("k{number}"), &noise(100 + number, len)).unwrap();
    }
    world.await_that("what was replaced is gone", |world| rows(world, DROPPED).is_empty());
    assert_eq!(rows(&world, PAGES).len(), 20);
    for number in 0..20 {
        assert!(world.run(world.store.delete(tenant, BUCKET, &format!("k{number}"), Condition::None)).unwrap());
    }
    world.await_that("what was deleted is gone", |world| rows(world, PAGES).is_empty());
    assert_eq!((rows(&world, LOOSE).len(), rows(&world, DROPPED).len()), (0, 0));
    world.await_that("the chunks are collected", |world| world.fragments.count() == 0);
}

#[test]
fn who_has_opened_small_content_reads_it_whatever_becomes_of_it() {
    let (world, tenant) = world(4);
    let content = noise(1, 2_000);
    world.put(tenant, BUCKET, "k", &content).unwrap();
    let mut reader = world.run(world.store.get(tenant, BUCKET, "k")).unwrap();
    assert!(world.run(world.store.delete(tenant, BUCKET, "k", Condition::None)).unwrap());
    world.await_that("nobody holds its page", |world| rows(world, PAGES).is_empty());
    assert_eq!(world.run(reader.next()).unwrap().as_deref(), Some(&content[..]));
    assert_eq!(world.run(reader.next()).unwrap(), None);
}

/// An object of these parts.
fn put_parts(world: &World, tenant: TenantId, contents: &[Vec<u8>]) -> ObjectInfo {
    let made = world.run(async {
        let store = &world.store;
        let upload = store.create_upload(tenant, BUCKET, "k", Attributes::new()).await?;
        let mut parts = Vec::new();
        for (number, content) in (1..).zip(contents) {
            let mut writer = store.put_part(tenant, BUCKET, "k", upload, number).await?;
            writer.write(Bytes::from(content.clone())).await?;
            parts.push(CompletePart { part: number, etag: writer.finish(FinishWrite::default()).await?.etag });
        }
        store.complete_upload(tenant, BUCKET, "k", upload, parts, FinishWrite::default()).await
    });
    made.expect("it is made")
}

#[test]
fn an_object_whose_first_part_is_small_is_held_while_it_is_read() {
    let (world, tenant) = world(11);
    let contents = [noise(1, 1_000), noise(2, 90_000), noise(3, 2_000)];
    put_parts(&world, tenant, &contents);
    let mut reader = world.run(world.store.get(tenant, BUCKET, "k")).unwrap();
    assert!(world.run(world.store.delete(tenant, BUCKET, "k", Condition::None)).unwrap());
    world.sleep(30);
    let mut out = Vec::new();
    while let Some(bytes) = world.run(reader.next()).expect("its pages are held") {
        out.extend_from_slice(&bytes);
    }
    assert_eq!(out, contents.concat());
    drop(reader);
    world.await_that("nobody holds them any more", |world| rows(world, PAGES).is_empty());
}

#[test]
fn parts_are_small_too_and_a_read_goes_from_chunks_to_content() {
    let (world, tenant) = world(5);
    let contents = [noise(1, 90_000), noise(2, 1_000), noise(3, 4_000)];
    let whole = contents.concat();
    assert_eq!(put_parts(&world, tenant, &contents).len_bytes, whole.len() as u64);
    assert_eq!(counts(&world).0, 2);
    assert_eq!(world.get(tenant, BUCKET, "k").unwrap(), whole);
    let len = whole.len() as u64;
    for wanted in [89_990..90_010, 90_500..91_500, 91_000..len, 0..len, len - 1..len] {
        let expected = whole[wanted.start as usize..wanted.end as usize].to_vec();
        assert_eq!(range(&world, tenant, "k", wanted.clone()), expected, "{wanted:?}");
    }
}

#[test]
fn i_sf7_over_its_rate_a_shard_has_chunks_made_and_nobody_waits() {
    let rate = InlineSettings { bytes_per_second_max: 100, ..InlineSettings::default() };
    let (world, tenant) = world_with(6, rate);
    for number in 0..10 {
        world.put(tenant, BUCKET, &format!("k{number}"), &noise(number, 300)).unwrap();
    }
    let (taken, refused) = counts(&world);
    assert_eq!((taken, refused), (3, 1), "ten seconds' worth, and then the writer does not ask for a while");
    assert_eq!(world.fragments.count(), 7 * 3);
    world.sleep(11);
    world.put(tenant, BUCKET, "later", &noise(11, 300)).unwrap();
    assert_eq!(counts(&world), (4, 1), "the rate has fallen");
    for number in 0..10 {
        assert_eq!(world.get(tenant, BUCKET, &format!("k{number}")).unwrap(), noise(number, 300), "{number}");
    }
    world.await_that("no page is left of what was refused", |world| rows(world, PAGES).len() == 11);
}

#[test]
fn i_sf2_full_metadata_directories_take_no_more_than_the_floor() {
    let (world, tenant) = world(7);
    let inline = world.engine.core().inline.clone();
    inline.metadata_has(&directories(76));
    world.put(tenant, BUCKET, "chunk", &noise(1, 300)).unwrap();
    assert_eq!((counts(&world), world.fragments.count()), ((0, 1), 3));
    world.put(tenant, BUCKET, "tiny", &noise(3, 128)).unwrap();
    assert_eq!((counts(&world), world.fragments.count()), ((1, 1), 3), "no more than a reference would take");
    inline.metadata_has(&directories(10));
    world.sleep(10);
    world.put(tenant, BUCKET, "content", &noise(2, 300)).unwrap();
    assert_eq!((counts(&world), world.fragments.count()), ((2, 1), 3));
    assert_eq!(world.get(tenant, BUCKET, "chunk").unwrap(), noise(1, 300));
    assert_eq!(world.get(tenant, BUCKET, "content").unwrap(), noise(2, 300));
}

#[test]
fn conditions_hold_for_small_objects() {
    let (world, tenant) = world(8);
    let put = |bytes: &[u8], condition| {
        let finish = FinishWrite { condition, ..FinishWrite::default() };
        world.run(crate::support::put(&world.store, tenant, BUCKET, "k", bytes, finish))
    };
    let first = put(b"first", Condition::IfAbsent).unwrap();
    assert_eq!(put(b"second", Condition::IfAbsent), Err(StoreError::PreconditionFailed));
    put(b"third", Condition::IfMatch(first.etag.clone())).unwrap();
    assert_eq!(put(b"fourth", Condition::IfMatch(first.etag)), Err(StoreError::PreconditionFailed));
    assert_eq!(world.get(tenant, BUCKET, "k").unwrap(), b"third");
    world.await_that("what was refused leaves nothing", |world| rows(world, PAGES).len() == 1);
}

#[test]
fn an_abandoned_small_write_leaves_nothing() {
    let (world, tenant) = world(9);
    world.run(async {
        let mut writer = world.store.put(tenant, BUCKET, "k", None).await.unwrap();
        writer.write(Bytes::from_static(b"0123456789")).await.unwrap();
        writer.drain().await.unwrap();
        assert_eq!(world.engine.core().write_budget.filling.used(), 0, "no memory is kept for more");
    });
    world.sleep(1);
    assert_eq!((rows(&world, PAGES).len(), world.fragments.count()), (0, 0));
    assert_eq!(world.get(tenant, BUCKET, "k"), Err(StoreError::NoSuchKey));
}

#[test]
fn content_lies_in_pages_when_every_node_can_read_such() {
    let (world, tenant) = world(10);
    let ControlResponse::Node(invited) = world.run(world.engine.calls().control(ControlRequest::InviteNode)).unwrap()
    else {
        panic!("a node is invited")
    };
    let here = |number: u64| ControlRequest::NodeHere {
        node: NodeId(number),
        addresses: vec![format!("n{number}:1")],
        lanes: 2,
        cores: 1,
        version: "1".to_owned(),
        rack: String::new(),
    };
    world.run(world.engine.calls().control(here(invited.node.0))).unwrap();
    let board = &world.engine.core().nodes;
    for (version, taken) in [(None, 0), (Some(INLINE_VERSION - 1), 0), (Some(INLINE_VERSION), 1)] {
        if let Some(version) = version {
            board.speaks(invited.node, version);
        }
        world.put(tenant, BUCKET, "k", &noise(1, 100)).unwrap();
        assert_eq!(counts(&world).0, taken, "{version:?}");
    }
}
