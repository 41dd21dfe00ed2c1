//! Pin epochs: fences are forgotten, but only with every delta that they would have refused.

use crate::groups::MemoryTables;
use crate::support::{CODED, NODE, World, noise};
use bytes::Bytes;
use futures::future::select;
use kiseki_engine::api::{Condition, FinishWrite, StoreError};
use kiseki_engine::delta::{ChunkName, Command, Delta, Outcome, Payload, encode_rows};
use kiseki_engine::keys::MetaSealer;
use kiseki_engine::machine::{COUNTS_FILE, FENCES, Machine, count_of};
use kiseki_engine::message::Dedup;
use kiseki_simulator::{NodeId, Sim};
use kiseki_types::group::{LogPosition, StateMachine};
use kiseki_types::ids::{Generation, Locator, NamespaceId, PinEpoch, RequestId, Term};
use kiseki_types::runtime::RuntimeExt;
use kiseki_types::secret::SecretKey;
use kiseki_types::table::{Scan, TableReader};
use std::rc::Rc;
use std::time::Duration;

/// One shard's machine, fed by hand.
struct Shard {
    sim: Sim,
    machine: Machine,
    sealer: Rc<MetaSealer>,
    tables: MemoryTables,
    index: u64,
}

impl Shard {
    fn new() -> Shard {
        let sim = Sim::new(1);
        let sealer = Rc::new(MetaSealer::new(SecretKey::take(&mut [7; 32]), &*sim.ports(NodeId(0))));
        let machine = Machine::of_tenant_shard(sealer.clone());
        Shard { sim, machine, sealer, tables: MemoryTables::default(), index: 0 }
    }

    fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let at = LogPosition { term: Term(1), index: self.index };
        let applied = self.sim.block_on(NodeId(0), self.machine.apply(at, &command.encode(), &self.tables)).unwrap();
        self.tables.write(applied.writes);
        Outcome::decode(&applied.response).unwrap()
    }

    fn name_it(&mut self, name: ChunkName, pin_epoch: u64) -> Outcome {
        let (namespace, request) = (NamespaceId::default(), RequestId([1; 16]));
        let payload = Payload::Sealed(self.sealer.seal(&Delta::binding(namespace, request), &encode_rows(&[])));
        let (term, pin_epoch, added, dropped) = (Term(1), PinEpoch(pin_epoch), vec![(name, 1)], vec![]);
        let (added_bytes, dropped_bytes) = (1, 0);
        self.apply(Command::Delta(Delta {
            term,
            pin_epoch,
            request,
            namespace,
            added,
            dropped,
            added_bytes,
            dropped_bytes,
            payload,
        }))
    }

    fn count(&self, name: ChunkName) -> u64 {
        self.sim.block_on(NodeId(0), count_of(name, &self.tables)).unwrap()
    }

    fn fences(&self) -> usize {
        let scan = Scan::prefix(COUNTS_FILE, FENCES, &[], usize::MAX);
        self.sim.block_on(NodeId(0), self.tables.scan(scan)).unwrap().len()
    }
}

fn generation(number: u64) -> ChunkName {
    ChunkName { locator: Locator([3; 32]), generation: Generation(number) }
}

#[test]
fn i_c2_a_writer_meets_the_fence_or_its_closed_epoch() {
    let mut shard = Shard::new();
    let (dead, alive) = (generation(1), generation(2));
    assert_eq!(shard.apply(Command::Fence(dead)), Outcome::Done { count: 0 });
    assert_eq!(shard.name_it(dead, 1), Outcome::RefusedFenced(dead), "I-C2: the fence stands");
    // The first close leaves the epoch open in which the fence was set, so it keeps the fence.
    assert_eq!(shard.apply(Command::ClosePinEpochs(PinEpoch(1))), Outcome::Done { count: 0 });
    assert_eq!(shard.name_it(dead, 1), Outcome::RefusedFenced(dead), "I-C2: the fence outlives no epoch that needs it");
    assert_eq!(shard.name_it(alive, 1), Outcome::Done { count: 0 }, "writers of the latest epoch go on");
    assert_eq!(shard.apply(Command::ClosePinEpochs(PinEpoch(2))), Outcome::Done { count: 1 });
    assert_eq!(shard.fences(), 0);
    assert_eq!(shard.name_it(dead, 1), Outcome::RefusedEpoch, "I-C2: the fence is forgotten, the epoch refuses");
    assert_eq!((shard.count(dead), shard.count(alive)), (0, 1));
}

#[test]
fn i_c2_a_close_that_comes_late_or_early_closes_nothing() {
    let mut shard = Shard::new();
    shard.apply(Command::ClosePinEpochs(PinEpoch(1)));
    shard.apply(Command::ClosePinEpochs(PinEpoch(2)));
    for wrong in [0, 1, 4, u64::MAX] {
        assert_eq!(shard.apply(Command::ClosePinEpochs(PinEpoch(wrong))), Outcome::Done { count: 0 });
    }
    assert_eq!(shard.name_it(generation(1), 1), Outcome::RefusedEpoch);
    assert_eq!(shard.name_it(generation(1), 2), Outcome::Done { count: 0 });
}

#[test]
fn fences_are_forgotten_unattended() {
    let world = World::new(1);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    for round in 0..3 {
        world.put(tenant, "bucket", "k", &noise(round, 100_000)).unwrap();
    }
    world.sleep(60);
    assert_eq!(world.fences(), 2, "two generations were replaced and freed");
    world.sleep(1300);
    assert_eq!(world.fences(), 0, "I-C2: their epoch is closed, the fences are forgotten");
    let closed: u64 = world.engine.core().collection_counters.epochs_closed.get();
    world.sleep(3000);
    let later: u64 = world.engine.core().collection_counters.epochs_closed.get();
    assert_eq!(closed, later, "with no fence there is no need to close anything");
    assert!(world.get(tenant, "bucket", "k").unwrap() == noise(2, 100_000));
}

#[test]
fn i_c2_a_slow_writer_outlives_its_first_epoch() {
    let world = World::new(2);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    let content = noise(7, 24 << 20);
    let mut writer = world.run(world.store.put(tenant, "bucket", "slow", None)).unwrap();
    for (round, piece) in content.chunks(1 << 20).enumerate() {
        world.run(writer.write(Bytes::copy_from_slice(piece))).unwrap();
        // Something is collected in every epoch, so every epoch is closed.
        world.put(tenant, "bucket", "other", &noise(100 + round as u64, 10_000)).unwrap();
        world.sleep(240);
    }
    world.run(writer.finish(FinishWrite::default())).unwrap();
    assert!(world.get(tenant, "bucket", "slow").unwrap() == content);
    let closed = world.engine.core().collection_counters.epochs_closed.get();
    assert!(closed > 3, "{closed} epochs were closed under it");
}

#[test]
fn i_c2_a_writer_that_takes_hours_outlives_the_life_of_its_pins() {
    // With other nodes there, so that a pin has an end.
    let world = World::on_nodes(5, 3, 4, CODED);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    let content = noise(8, 24 << 20);
    let mut writer = world.run(world.store.put(tenant, "bucket", "slow", None)).unwrap();
    for piece in content.chunks(256 << 10) {
        world.run(writer.write(Bytes::copy_from_slice(piece))).unwrap();
        world.sleep(120);
    }
    let written = world.run(writer.finish(FinishWrite::default()));
    assert!(written.is_ok(), "its pins were given up: {written:?}");
    world.sleep(60);
    assert!(world.get(tenant, "bucket", "slow").unwrap() == content, "I-C2");
    let pardoned: u64 = world.engine.core().homes.counters.pardoned.get();
    assert_eq!(pardoned, 0, "each pin was ended in time");
}

#[test]
fn i_c2_a_writer_that_stands_still_is_refused_and_leaves_nothing() {
    let world = World::new(3);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    let mut writer = world.run(world.store.put(tenant, "bucket", "stuck", None)).unwrap();
    world.run(writer.write(Bytes::from(noise(1, 9 << 20)))).unwrap();
    for round in 0..10 {
        world.put(tenant, "bucket", "other", &noise(100 + round, 10_000)).unwrap();
        world.sleep(400);
    }
    let error = world.run(writer.finish(FinishWrite::default())).unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    assert!(world.run(world.store.delete(tenant, "bucket", "other", Condition::None)).unwrap());
    world.sleep(60);
    assert_eq!(world.fragments.count(), 0);
}

#[test]
fn i_c2_a_write_whose_client_goes_away_while_it_is_named_is_whole_or_absent() {
    let world = World::new(4);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    let key = |index: usize| format!("slow{index}");
    let content = |index: usize| noise(1000 + index as u64, 6 << 20);
    let mut writers: Vec<_> =
        (0..16).map(|index| world.run(world.store.put(tenant, "bucket", &key(index), None)).unwrap()).collect();
    // Slow ones, so that they commit pages that no name reaches yet.
    for round in 0..6 {
        for (index, writer) in writers.iter_mut().enumerate() {
            let piece = Bytes::copy_from_slice(&content(index)[round << 20..(round + 1) << 20]);
            world.run(writer.write(piece)).unwrap();
        }
        world.put(tenant, "bucket", "other", &noise(100 + round as u64, 10_000)).unwrap();
        world.sleep(240);
    }
    for (index, mut writer) in writers.into_iter().enumerate() {
        world.run(writer.drain()).unwrap();
        let patience = world.sim.ports(NODE).sleep(Duration::from_micros(2 * index as u64));
        world.run(async move { drop(select(writer.finish(FinishWrite::default()), patience).await) });
    }
    world.sleep(60);
    let mut named = 0;
    for index in 0..16 {
        match world.get(tenant, "bucket", &key(index)) {
            Ok(read) => {
                assert!(read == content(index), "I-C2: {index}");
                named += 1;
            }
            Err(error) => assert_eq!(error, StoreError::NoSuchKey, "I-C2: what was named lost its pages: {index}"),
        }
    }
    assert!((1..16).contains(&named), "{named} were named");
}

#[test]
fn i_c2_pages_of_a_writer_that_went_down_with_its_node_are_given_up_and_those_of_a_slow_one_are_not() {
    let world = World::on_nodes(6, 3, 4, CODED);
    let tenant = world.tenant("a", Dedup::Shared);
    world.run(world.store.create_bucket(tenant, "bucket")).unwrap();
    let begin = |key: &str| world.run(world.store.put(tenant, "bucket", key, None)).unwrap();
    let (mut slow, mut lost) = (begin("slow"), begin("lost"));
    let (slow_content, lost_content) = (noise(9, 40 << 20), noise(10, 8 << 20));
    let mut lost_pieces = lost_content.chunks(1 << 20);
    for (round, piece) in slow_content.chunks(512 << 10).enumerate() {
        world.run(slow.write(Bytes::copy_from_slice(piece))).unwrap();
        if let Some(piece) = lost_pieces.next() {
            world.run(lost.write(Bytes::copy_from_slice(piece))).unwrap();
        }
        world.sleep(150);
        if round == 8 {
            world.run(lost.drain()).unwrap();
        }
    }
    // Nobody gives up what it has written, as when its node is gone.
    std::mem::forget(lost);
    world.run(slow.finish(FinishWrite::default())).unwrap();
    assert!(world.get(tenant, "bucket", "slow").unwrap() == slow_content, "I-C2");
    assert!(world.run(world.store.delete(tenant, "bucket", "slow", Condition::None)).unwrap());
    world.await_that("the pages of the lost one are given up", |world| world.good_by_node().is_empty());
}
