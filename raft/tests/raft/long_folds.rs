//! Folds of many entries: the core goes on meanwhile, and a power cut in the middle of one costs nothing.

use crate::common::{Node, Running, SHARD, count, put, value};
use futures::future::{Either, select};
use kiseki_raft::group::GroupSettings;
use kiseki_raft::table_set::TableSettings;
use kiseki_raft::{GroupStatus, ShardGroup};
use kiseki_simulator::Sim;
use kiseki_simulator::executor::Interrupted;
use kiseki_types::group::RaftGroup;
use kiseki_types::runtime::RuntimeExt;
use std::cell::Cell;
use std::pin::pin;
use std::time::Duration;

/// Entries of a long fold: many turns of it.
const ENTRIES: u64 = 1_500;

async fn open_group(node: &Node, sim: &Sim, settings: GroupSettings) -> (Running, ShardGroup) {
    let mut running = node.start(sim).await.expect("starts");
    running.settings = settings;
    let parts = node.parts(&mut running, SHARD).await;
    let group = match running.log.status(SHARD) {
        GroupStatus::Absent | GroupStatus::Fresh => ShardGroup::create(parts, 1, &[1]).await.expect("created"),
        GroupStatus::Live | GroupStatus::Lost(_) => ShardGroup::open(parts).await.expect("opens"),
    };
    (running, group)
}

async fn put_all(group: &ShardGroup, keys: std::ops::Range<u64>) {
    futures::future::join_all(keys.map(|key| put(group, key, b"a value"))).await;
}

#[test]
fn a_long_fold_leaves_turns_to_others() {
    let sim = Sim::new(21);
    let node = Node::new(&sim, 1);
    sim.block_on(node.id, async {
        node.format(&sim).await;
        let (running, group) = open_group(&node, &sim, GroupSettings::single_voter()).await;
        put_all(&group, 0..ENTRIES).await;
        let turns = Cell::new(0);
        let others = async {
            loop {
                running.ports.yield_now().await;
                turns.set(turns.get() + 1);
            }
        };
        match select(pin!(running.log.fold()), pin!(others)).await {
            Either::Left((folded, _)) => folded.expect("folds"),
            Either::Right(((), _)) => unreachable!("they never end"),
        }
        // Once while rows are made and once while entries leave memory; what the table file takes comes on top.
        assert!(turns.get() >= ENTRIES / 128, "{} turns", turns.get());
    });
}

/// Whatever of a fold is durable when the power fails, the next start finds all of the log: entries that were folded in part,
/// purged rows that are gone before the row that says so.
#[test]
fn i_l2_a_power_cut_within_a_long_fold_loses_nothing() {
    let settings = GroupSettings { snapshot_entries: 400, kept_entries: 40, ..GroupSettings::single_voter() };
    let mut cut_at = 1;
    loop {
        let sim = Sim::new(22);
        let mut node = Node::new(&sim, 1);
        // So that the file becomes durable in the middle of the fold.
        node.log_table = TableSettings { fold_rows: 150, ..TableSettings::new(1) };
        let (running, group) = sim.block_on(node.id, async {
            node.format(&sim).await;
            let (running, group) = open_group(&node, &sim, settings).await;
            put_all(&group, 0..600).await;
            running.log.fold().await.expect("folds");
            put_all(&group, 600..1_200).await;
            (running, group)
        });
        node.switch.arm(cut_at);
        let folding = async { running.log.fold().await.expect("folds") };
        let ended = sim.block_on_or_cut(node.id, folding, &node.switch);
        let is_whole = match ended {
            Ok(()) => true,
            Err(Interrupted::PowerCut) => false,
            Err(Interrupted::Stalled(stalled)) => panic!("cut at {cut_at}: {stalled}"),
        };
        node.switch.cut_now();
        drop((running, group));
        node.power_cut(&sim, cut_at);
        sim.block_on(node.id, async {
            let (running, group) = open_group(&node, &sim, settings).await;
            assert_eq!(count(&*group.tables()).await, 1_200, "I-L2: cut at write {cut_at}");
            for key in [0, 599, 600, 1_199] {
                assert!(value(&*group.tables(), key).await.is_some(), "I-L2: key {key}, cut at write {cut_at}");
            }
            put(&group, 5_000, b"goes on").await;
            running.log.fold().await.expect("folds again");
            group.close().await.expect("closes");
        });
        if is_whole {
            break;
        }
        cut_at += 1 + cut_at / 8;
    }
    assert!(cut_at > 20, "the fold took {cut_at} writes");
}

/// Without peers nobody needs what the tables hold durably: it is purged before it gets old.
#[test]
fn a_replica_without_peers_lets_its_log_go() {
    let sim = Sim::new(23);
    let node = Node::new(&sim, 1);
    let settings = GroupSettings { kept_alone_len_bytes: 512, ..GroupSettings::single_voter() };
    sim.block_on(node.id, async {
        node.format(&sim).await;
        let (running, group) = open_group(&node, &sim, settings).await;
        for round in 0..20 {
            put_all(&group, round * 20..round * 20 + 20).await;
        }
        let purged = async {
            loop {
                let metrics = group.metrics();
                if metrics.purged.map(|id| id.index) > metrics.last_log_index.map(|last| last - 60) {
                    break;
                }
                running.ports.sleep(Duration::from_millis(1)).await;
            }
        };
        let late = running.ports.sleep(Duration::from_secs(60));
        assert!(matches!(select(pin!(purged), late).await, Either::Left(_)), "{:?}", group.metrics());
    });
    node.power_cut(&sim, 1);
    sim.block_on(node.id, async {
        let (_running, group) = open_group(&node, &sim, settings).await;
        assert_eq!(count(&*group.tables()).await, 400);
    });
}
