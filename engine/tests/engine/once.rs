//! Changes whose outcome is not heard: asked again they get their first answer.

use crate::groups::Lost;
use crate::support::{CODED, World, filled, noise, put};
use kiseki_engine::api::{Attributes, CompletePart, Condition, FinishWrite, StoreError};
use kiseki_engine::composition::Page;
use kiseki_engine::message::{ControlRequest, ControlResponse, Dedup, ObjectPath, ShardRequest, ShardResponse};
use kiseki_engine::request_log::REQUESTS;
use kiseki_types::ids::{CompositionId, PageId, PinEpoch, ShardId};

fn in_two_nodes(seed: u64) -> (World, kiseki_types::ids::TenantId) {
    filled(World::on_nodes(seed, 2, 6, CODED), 0)
}

fn if_absent() -> FinishWrite {
    FinishWrite { condition: Condition::IfAbsent, ..FinishWrite::default() }
}

#[test]
fn a_put_that_was_committed_does_not_fail_on_its_own_success() {
    let (world, tenant) = in_two_nodes(1);
    let bytes = noise(1, 300_000);
    world.logs.lose_next_shard_answer(Lost::Answer);
    let put = put(&world.store, tenant, "bucket", "dir/key", &bytes, if_absent());
    let info = world.run(put).expect("it gets its first answer");
    assert_eq!(info.len_bytes, 300_000);
    assert!(world.get(tenant, "bucket", "dir/key").unwrap() == bytes);
    let again = world.run(crate::support::put(&world.store, tenant, "bucket", "dir/key", &bytes, if_absent()));
    assert!(matches!(again, Err(StoreError::PreconditionFailed)), "another request is another one: {again:?}");
}

#[test]
fn deletes_and_uploads_get_their_first_answers() {
    let (world, tenant) = in_two_nodes(2);
    let lose = || world.logs.lose_next_shard_answer(Lost::Answer);
    world.put(tenant, "bucket", "a/b", &noise(1, 5_000)).unwrap();
    lose();
    let deleted = world.run(world.store.delete(tenant, "bucket", "a/b", Condition::None));
    assert_eq!(deleted, Ok(true), "there was something, and it was this request that removed it");
    assert!(matches!(world.get(tenant, "bucket", "a/b"), Err(StoreError::NoSuchKey)));

    lose();
    let attributes = Attributes::from([("k".to_owned(), "v".to_owned())]);
    let upload = world.run(world.store.create_upload(tenant, "bucket", "u", attributes.clone())).unwrap();
    let uploads = world.run(world.store.uploads(tenant, "bucket", "", None, 10)).unwrap();
    assert_eq!(uploads.len(), 1, "one upload was begun");
    assert_eq!(uploads[0].upload, upload);
    let mut parts = Vec::new();
    for part in 1..=2 {
        let bytes = noise(u64::from(part), 100_000);
        lose();
        let info = world.run(async {
            let mut writer = world.store.put_part(tenant, "bucket", "u", upload, part).await?;
            writer.write(bytes.clone().into()).await?;
            writer.finish(FinishWrite::default()).await
        });
        parts.push(CompletePart { part, etag: info.unwrap().etag });
    }
    lose();
    let info = world.run(world.store.complete_upload(tenant, "bucket", "u", upload, parts, if_absent())).unwrap();
    assert_eq!((info.len_bytes, info.part_lens_bytes.clone()), (200_000, vec![100_000; 2]));
    assert_eq!(info.attributes, attributes);
    assert_eq!(world.run(world.store.head(tenant, "bucket", "u")), Ok(info));

    let upload = world.run(world.store.create_upload(tenant, "bucket", "v", Attributes::new())).unwrap();
    lose();
    assert_eq!(world.run(world.store.abort_upload(tenant, "bucket", "v", upload)), Ok(()));
}

#[test]
fn i_c2_a_chunk_whose_pin_is_not_known_to_be_durable_is_begun_anew() {
    for (seed, lost) in [(9, Lost::Answer), (10, Lost::Command)] {
        let (world, tenant) = in_two_nodes(seed);
        let bytes = noise(seed, 200_000);
        world.logs.lose_next_home_answer(lost);
        world.put(tenant, "bucket", "written", &bytes).expect("the chunk is written under another generation");
        world.sleep(1); // its home hears that it is complete
        world.logs.lose_next_home_answer(lost);
        world.put(tenant, "bucket", "found", &bytes).expect("it is found again");
        assert!(world.get(tenant, "bucket", "written").unwrap() == bytes, "{lost:?}");
        // What the first beginning wrote is a candidate for collection, or an orphan that each node finds on its own devices.
        assert!(world.get(tenant, "bucket", "found").unwrap() == bytes, "{lost:?}");
    }
}

#[test]
fn what_is_not_known_to_be_committed_is_not_done_twice() {
    let (world, tenant) = in_two_nodes(3);
    world.logs.lose_next_shard_answer(Lost::Command);
    // In this term it may still be committed, as far as its leader knows.
    let bytes = noise(1, 5_000);
    let put = put(&world.store, tenant, "bucket", "key", &bytes, if_absent());
    assert!(matches!(world.run(put), Err(StoreError::Unsettled { .. })));
    assert!(matches!(world.get(tenant, "bucket", "key"), Err(StoreError::NoSuchKey)));
    world.put(tenant, "bucket", "key", &bytes).unwrap();
}

#[test]
fn i_c2_a_loose_page_is_counted_once_and_outlives_the_second_asking() {
    let (world, tenant) = in_two_nodes(4);
    let bucket = world.run(world.engine.core().bucket(tenant, "bucket")).unwrap();
    let (calls, id) = (world.engine.calls(), PageId([9; 16]));
    let page = Page {
        composition: CompositionId([1; 16]),
        wrap_salt: [2; 16],
        kek_epoch: 1,
        references: Vec::new(),
        inline: None,
    };
    let loose = ShardRequest::PutLoosePage { namespace: bucket.info.namespace, pin_epoch: PinEpoch(1), id, page };
    world.logs.lose_next_shard_answer(Lost::Answer);
    assert!(matches!(world.run(calls.shard(bucket.shard, loose.clone())), Ok(ShardResponse::Count(0))));
    // It is given up, and given up again.
    for _ in 0..2 {
        world.logs.lose_next_shard_answer(Lost::Answer);
        let abandon = ShardRequest::AbandonPages(vec![id]);
        assert!(matches!(world.run(calls.shard(bucket.shard, abandon)), Ok(ShardResponse::Count(0))));
    }
}

#[test]
fn a_node_that_is_alone_remembers_nothing_and_a_store_from_before_opens() {
    let (mut world, tenant) = filled(World::new(5), 3);
    let remembered = |world: &World| {
        let logs = world.logs.groups.borrow();
        let of = |(tables, _): &crate::groups::GroupState| {
            tables.0.borrow().keys().filter(|(_, table, _)| *table == REQUESTS).count()
        };
        logs.iter().filter(|(shard, _)| shard.0 >= ShardId::TENANT_FIRST).map(|(_, state)| of(state)).sum::<usize>()
    };
    assert_eq!(remembered(&world), 0, "its rows are as an earlier release wrote them");
    world.restart();
    assert_eq!(world.get(tenant, "bucket", "1").unwrap(), crate::support::content(1));
    let (world, tenant) = in_two_nodes(6);
    let before = remembered(&world);
    world.put(tenant, "bucket", "key", &noise(1, 5_000)).unwrap();
    assert_eq!(remembered(&world), before + 1);
    let path = ObjectPath {
        namespace: kiseki_types::ids::NamespaceId(77),
        root: kiseki_types::ids::DirId([7; 16]),
        key: "k".to_owned(),
    };
    let bucket = world.run(world.engine.core().bucket(tenant, "bucket")).unwrap();
    let nothing = ShardRequest::Delete { path, condition: Condition::None };
    let answer = world.run(world.engine.calls().shard(bucket.shard, nothing));
    assert!(matches!(answer, Ok(ShardResponse::Deleted(false))));
    assert_eq!(remembered(&world), before + 1, "what changes nothing is not remembered");
}

#[test]
fn i_o5_uploads_with_long_attributes_are_listed_in_answers_that_fit_a_message() {
    let (world, tenant) = in_two_nodes(8);
    let long = |at: u8| (format!("k{at}"), "v".repeat(16_000));
    let attributes: Attributes = (0..4).map(long).collect();
    for index in 0..40 {
        let key = format!("{index:02}");
        world.run(world.store.create_upload(tenant, "bucket", &key, attributes.clone())).unwrap();
    }
    let (mut after, mut keys, mut answers) = (None, Vec::new(), 0);
    loop {
        let page = world.run(world.store.uploads(tenant, "bucket", "", after.clone(), 1000)).unwrap();
        let Some(last) = page.last() else { break };
        after = Some((last.key.clone(), last.upload));
        let len: usize = page.iter().map(|upload| upload.attributes.values().map(String::len).sum::<usize>()).sum();
        assert!(len <= kiseki_types::peer::MESSAGE_LEN_BYTES_MAX / 2);
        keys.extend(page.into_iter().map(|upload| upload.key));
        answers += 1;
    }
    assert_eq!(keys, (0..40).map(|index| format!("{index:02}")).collect::<Vec<_>>());
    assert!(answers > 1);
}

#[test]
fn changes_of_the_control_shard_get_their_first_answers() {
    let (world, tenant) = in_two_nodes(7);
    let control = |request| {
        world.logs.lose_next_control_answer(Lost::Answer);
        world.run(world.engine.calls().control(request))
    };
    let name = || "late".to_owned();
    let Ok(ControlResponse::Bucket(made)) = control(ControlRequest::CreateBucket { tenant, name: name() }) else {
        panic!("the bucket is made")
    };
    world.put(tenant, "late", "key", b"bytes").unwrap();
    world.run(world.store.delete(tenant, "late", "key", Condition::None)).unwrap();
    let Ok(ControlResponse::Bucket(gone)) = control(ControlRequest::DeleteBucket { tenant, name: name() }) else {
        panic!("the bucket is removed")
    };
    assert_eq!(gone.info, made.info);
    assert!(matches!(world.run(world.store.bucket(tenant, "late")), Err(StoreError::NoSuchBucket)));

    let create = ControlRequest::CreateTenant { name: "second".to_owned(), dedup: Dedup::Private };
    let Ok(ControlResponse::Tenant(second)) = control(create) else { panic!("the tenant is made") };
    world.run(world.store.create_bucket(second.tenant, "its")).expect("its shards were made");
    let key = ControlRequest::CreateAccessKey { tenant: "second".to_owned() };
    let Ok(ControlResponse::NewAccessKey(id, secret)) = control(key) else { panic!("the key is made") };
    let keys = world.run(world.engine.calls().control(ControlRequest::AccessKeys { tenant: "second".to_owned() }));
    assert!(matches!(keys, Ok(ControlResponse::AccessKeys(ids)) if ids == [id.clone()]), "one key was made");
    let known = world.run(world.store.access_key(&id)).unwrap().expect("it is known");
    assert_eq!(known.secret, secret);

    let invited: Vec<u64> = (0..2)
        .map(|_| match control(ControlRequest::InviteNode) {
            Ok(ControlResponse::Node(entry)) => entry.node.0,
            _ => panic!("a node is invited"),
        })
        .collect();
    assert_eq!(invited[0] + 1, invited[1], "no number is lost");
}
