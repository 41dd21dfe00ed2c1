//! Objects in and out of a whole engine: content, ranges, dedup, names, conditions, uploads.

use crate::support::{World, noise, put};
use bytes::Bytes;
use kiseki_engine::api::{Attributes, CompletePart, Condition, FinishWrite, ListItem, ListRequest, StoreError};
use kiseki_engine::message::Dedup;

#[test]
fn objects_of_every_size_come_back_byte_for_byte() {
    let world = World::new(1);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    for len in [0, 1, 15, 4096, 65_535, 65_536, 65_537, 262_143, 262_144, 300_000, 1 << 20, (4 << 20) + 1, 9_000_000] {
        let content = noise(len as u64 + 1, len);
        let key = format!("dir/{len}");
        let info = world.put(tenant, "bucket", &key, &content).unwrap();
        assert_eq!(info.len_bytes, len as u64);
        assert!(world.get(tenant, "bucket", &key).unwrap() == content, "{len} bytes");
    }
    let zeros = vec![0; 10 << 20];
    world.put(tenant, "bucket", "zeros", &zeros).unwrap();
    assert!(world.get(tenant, "bucket", "zeros").unwrap() == zeros);
}

#[test]
fn ranges_are_right_at_every_border() {
    let world = World::new(2);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    let content = noise(7, 5 << 20);
    world.put(tenant, "bucket", "k", &content).unwrap();
    let borders: Vec<u64> = [0_u64, 65_536, 262_144, 1 << 20, 4 << 20, 5 << 20]
        .iter()
        .flat_map(|at| [at.saturating_sub(1), *at, at + 1])
        .filter(|at| *at <= 5 << 20)
        .collect();
    for start in &borders {
        for end in borders.iter().filter(|end| *end >= start) {
            let bytes = world.run(async {
                let mut reader = world.store.get(tenant, "bucket", "k").await.unwrap();
                reader.seek(*start..*end);
                let mut out = Vec::new();
                while let Some(bytes) = reader.next().await.unwrap() {
                    out.extend_from_slice(&bytes);
                }
                out
            });
            assert!(bytes == content[*start as usize..*end as usize], "{start}..{end}");
        }
    }
}

#[test]
fn equal_content_is_stored_once_and_an_inserted_byte_costs_little() {
    let world = World::new(3);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    let content = noise(9, 24 << 20);
    world.put(tenant, "bucket", "one", &content).unwrap();
    world.sleep(5);
    let before = world.fragments.used_bytes();
    world.put(tenant, "bucket", "two", &content).unwrap();
    assert_eq!(world.fragments.used_bytes(), before);
    let shifted = [&[42], content.as_slice()].concat();
    world.put(tenant, "bucket", "three", &shifted).unwrap();
    let grown = world.fragments.used_bytes() - before;
    assert!(grown < before / 4, "one byte in front cost {grown} of {before}");
    assert!(world.get(tenant, "bucket", "three").unwrap() == shifted);
}

#[test]
fn i_x1_tenants_with_private_dedup_share_nothing_and_meet_nobody() {
    let world = World::new(4);
    let (shared, private) = (world.tenant("a", Dedup::Shared), world.tenant("b", Dedup::Private));
    let content = noise(11, 1 << 20);
    for (tenant, bucket) in [(shared, "of-a"), (private, "of-b")] {
        world.run(world.store.create_bucket(tenant, bucket)).unwrap();
        world.put(tenant, bucket, "k", &content).unwrap();
        world.sleep(5);
    }
    assert!(world.fragments.used_bytes() > 2 * (1 << 20), "two domains store the content twice");
    assert!(world.get(private, "of-b", "k").unwrap() == content);
    // I-T1: another tenant's bucket looks absent, and its name is taken.
    assert_eq!(world.get(private, "of-a", "k").unwrap_err(), StoreError::NoSuchBucket);
    assert_eq!(world.run(world.store.create_bucket(private, "of-a")).unwrap_err(), StoreError::BucketNameTaken);
    assert_eq!(world.run(world.store.buckets(private)).unwrap().len(), 1);
}

#[test]
fn i_k1_neither_content_nor_names_reach_a_fragment() {
    let world = World::new(5);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    let marker = b"a marker that must never be seen in clear";
    let content = marker.repeat(30_000);
    world.put(tenant, "bucket", "a-name-that-must-not-be-seen", &content).unwrap();
    let stored = world.fragments.all_bytes();
    for needle in [&marker[..], b"a-name-that-must-not-be-seen"] {
        assert!(!stored.windows(needle.len()).any(|window| window == needle), "I-K1: plaintext on a device");
    }
}

#[test]
fn conditions_hold_against_the_entry_as_it_is() {
    let world = World::new(6);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    let attempt = |condition: Condition, etag: &str| {
        let finish = FinishWrite { etag: Some(etag.to_owned()), attributes: Attributes::new(), condition };
        world.run(put(&world.store, tenant, "bucket", "k", b"x", finish))
    };
    assert_eq!(attempt(Condition::IfMatch("e1".to_owned()), "e0").unwrap_err(), StoreError::NoSuchKey);
    attempt(Condition::IfAbsent, "e1").unwrap();
    assert_eq!(attempt(Condition::IfAbsent, "e2").unwrap_err(), StoreError::PreconditionFailed);
    assert_eq!(attempt(Condition::IfMatch("no".to_owned()), "e2").unwrap_err(), StoreError::PreconditionFailed);
    attempt(Condition::IfMatch("e1".to_owned()), "e2").unwrap();
    let delete = |condition: Condition| world.run(world.store.delete(tenant, "bucket", "k", condition));
    assert_eq!(delete(Condition::IfMatch("e1".to_owned())).unwrap_err(), StoreError::PreconditionFailed);
    assert!(delete(Condition::IfMatch("e2".to_owned())).unwrap());
    assert!(!delete(Condition::None).unwrap());
}

#[test]
fn of_many_conditional_writers_exactly_one_wins() {
    let world = World::new(7);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    let attempts = (0..8_u8).map(|index| {
        let finish = FinishWrite { condition: Condition::IfAbsent, ..FinishWrite::default() };
        let (store, content) = (world.store.clone(), [index; 10]);
        async move { put(&store, tenant, "bucket", "deep/er/k", &content, finish).await.is_ok() }
    });
    let won = world.run(futures::future::join_all(attempts));
    assert_eq!(won.iter().filter(|won| **won).count(), 1);
}

#[test]
fn names_list_in_order_and_vanish_with_their_directories() {
    let world = World::new(8);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    let keys = ["a", "a/", "a//b", "a/b", ".", "..", "b/c/d", "é/ü"];
    for key in keys {
        world.put(tenant, "bucket", key, key.as_bytes()).unwrap();
    }
    let list = |delimiter: Option<&str>| -> Vec<String> {
        let request = ListRequest { delimiter: delimiter.map(str::to_owned), limit: 1000, ..ListRequest::default() };
        let page = world.run(world.store.list(tenant, "bucket", request)).unwrap();
        let name = |item| match item {
            ListItem::Object(info) => info.key,
            ListItem::CommonPrefix(prefix) => prefix,
        };
        page.items.into_iter().map(name).collect()
    };
    let mut sorted: Vec<String> = keys.iter().map(ToString::to_string).collect();
    sorted.sort_unstable();
    assert_eq!(list(None), sorted);
    assert_eq!(list(Some("/")), [".", "..", "a", "a/", "b/", "é/"]);
    assert_eq!(world.run(world.store.delete_bucket(tenant, "bucket")).unwrap_err(), StoreError::BucketNotEmpty);
    for key in keys {
        assert!(world.run(world.store.delete(tenant, "bucket", key, Condition::None)).unwrap(), "{key}");
    }
    assert_eq!(list(Some("/")), Vec::<String>::new());
    world.run(world.store.delete_bucket(tenant, "bucket")).unwrap();
    assert_eq!(world.get(tenant, "bucket", "a").unwrap_err(), StoreError::NoSuchBucket);
    world.sleep(10);
    assert_eq!(world.fragments.count(), 0, "space comes back after deletes");
}

#[test]
fn uploads_become_objects_of_their_parts() {
    let world = World::new(9);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    let parts = [noise(1, 3 << 20), noise(2, 700_000), noise(3, 5)];
    let (upload, complete) = world.run(async {
        let upload = world.store.create_upload(tenant, "bucket", "d/k", Attributes::new()).await.unwrap();
        let mut complete = Vec::new();
        for (index, content) in parts.iter().enumerate() {
            let part = index as u16 + 1;
            // The first try of each part is replaced.
            for bytes in [b"replaced".as_slice(), content] {
                let mut writer = world.store.put_part(tenant, "bucket", "d/k", upload, part).await.unwrap();
                writer.write(Bytes::copy_from_slice(bytes)).await.unwrap();
                let etag = Some(format!("etag-{part}"));
                writer.finish(FinishWrite { etag, ..FinishWrite::default() }).await.unwrap();
            }
            complete.push(CompletePart { part, etag: format!("etag-{part}") });
        }
        (upload, complete)
    });
    let (_, listed) = world.run(world.store.parts(tenant, "bucket", "d/k", upload, 1, 10)).unwrap();
    assert_eq!(listed.iter().map(|part| part.part).collect::<Vec<_>>(), [2, 3]);
    let wrong = vec![CompletePart { part: 1, etag: "other".to_owned() }];
    let finish = FinishWrite::default();
    let error = world.run(world.store.complete_upload(tenant, "bucket", "d/k", upload, wrong, finish)).unwrap_err();
    assert_eq!(error, StoreError::InvalidPart { part: 1 });
    let finish = FinishWrite { etag: Some("whole".to_owned()), ..FinishWrite::default() };
    let info = world.run(world.store.complete_upload(tenant, "bucket", "d/k", upload, complete, finish)).unwrap();
    assert_eq!(info.part_lens_bytes, [3 << 20, 700_000, 5]);
    assert!(world.get(tenant, "bucket", "d/k").unwrap() == parts.concat());
    assert_eq!(world.run(world.store.uploads(tenant, "bucket", "", None, 10)).unwrap(), []);
    let error = world.run(world.store.abort_upload(tenant, "bucket", "d/k", upload)).unwrap_err();
    assert_eq!(error, StoreError::NoSuchUpload);
    world.run(world.store.delete(tenant, "bucket", "d/k", Condition::None)).unwrap();
    world.sleep(10);
    assert_eq!(world.fragments.count(), 0, "replaced parts and the object are collected");
}
