//! A group of one voter: what was acknowledged is there after every kind of restart.

use crate::common::{LANE, Node, SHARD, all_values, command, count, put, value};
use kiseki_devices::journal;
use kiseki_raft::table_file::TableFile;
use kiseki_raft::table_set::TableSettings;
use kiseki_raft::{GroupState, GroupStatus, LaneLog, RaftError, ShardGroup};
use kiseki_simulator::Sim;
use kiseki_types::ShardId;
use kiseki_types::group::{ProposeError, RaftGroup};
use kiseki_types::journal::{Journal, JournalError, ReplayedRecord, Sequence};
use kiseki_types::runtime::{LocalBoxFuture, Ports, RuntimeExt};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

#[test]
fn acknowledged_commands_are_there_after_a_restart() {
    let sim = Sim::new(1);
    let node = Node::new(&sim, 1);
    sim.block_on(node.id, async {
        node.format(&sim).await;
        let mut running = node.start(&sim).await.expect("starts");
        let parts = node.parts(&mut running, SHARD).await;
        let group = ShardGroup::create(parts, 1, &[1]).await.expect("created");
        for n in 0..100 {
            assert_eq!(put(&group, n % 10, &n.to_le_bytes()).await, n + 1);
        }
        let term = group.read_barrier().await.expect("leads");
        assert_eq!(group.read_barrier().await.expect("leads"), term);
    });
    // Twice: once from the journal, once more from what the first restart left.
    for restart in 0..2 {
        node.power_cut(&sim, restart);
        sim.block_on(node.id, async {
            let mut running = node.start(&sim).await.expect("starts");
            let parts = node.parts(&mut running, SHARD).await;
            let tables = parts.tables.clone();
            let group = ShardGroup::open(parts).await.expect("opens");
            assert_eq!(count(&tables).await, 100 + restart);
            assert_eq!(value(&tables, 3).await.expect("there"), 93_u64.to_le_bytes());
            assert_eq!(put(&group, 1000, b"more").await, 101 + restart);
        });
    }
}

#[test]
fn i_o4_i_l10_a_group_is_bootstrapped_once() {
    let sim = Sim::new(2);
    let node = Node::new(&sim, 1);
    sim.block_on(node.id, async {
        node.format(&sim).await;
        let mut running = node.start(&sim).await.expect("starts");
        let parts = node.parts(&mut running, SHARD).await;
        assert!(matches!(ShardGroup::open(parts.clone()).await, Err(RaftError::Absent { .. })));
        running.log.create_group(SHARD, 1).await.expect("recorded");
        assert_eq!(running.log.status(SHARD), GroupStatus::Fresh);
        assert!(matches!(ShardGroup::open(parts.clone()).await, Err(RaftError::NotBootstrapped { .. })));
        let group = ShardGroup::create(parts.clone(), 1, &[1]).await.expect("an unfinished creation goes on");
        put(&group, 1, b"x").await;
        group.close().await.expect("closes");
        assert!(matches!(ShardGroup::create(parts, 1, &[1]).await, Err(RaftError::Exists { .. })));
    });
}

/// The log's disks are replaced by empty ones: the metadata file remembers that there was a vote.
#[test]
fn i_l10_a_missing_log_is_lost_never_new() {
    for folded in [false, true] {
        let sim = Sim::new(3);
        let mut node = Node::new(&sim, 1);
        sim.block_on(node.id, async {
            node.format(&sim).await;
            let mut running = node.start(&sim).await.expect("starts");
            let parts = node.parts(&mut running, SHARD).await;
            let group = ShardGroup::create(parts, 1, &[1]).await.expect("created");
            put(&group, 1, b"x").await;
            if folded {
                running.log.fold().await.expect("folds");
            }
        });
        node.power_cut(&sim, 0);
        let empty = Node::new(&sim, 1);
        node.disks = empty.disks;
        sim.block_on(node.id, async {
            node.format(&sim).await;
            for _ in 0..2 {
                let mut running = node.start(&sim).await.expect("the node starts all the same");
                assert!(matches!(running.log.status(SHARD), GroupStatus::Lost(_)), "folded: {folded}");
                let parts = node.parts(&mut running, SHARD).await;
                assert!(matches!(ShardGroup::open(parts.clone()).await, Err(RaftError::Lost { .. })));
                assert!(matches!(ShardGroup::create(parts, 1, &[1]).await, Err(RaftError::Lost { .. })));
                running.tables.remove(&SHARD).expect("opened").close().await.expect("closes");
                sim.kill(node.id);
            }
        });
    }
}

/// Whichever record is missing between others, a vote or an entry: it was acknowledged, so the voter is lost.
#[test]
fn i_l10_a_journal_with_a_hole_is_lost() {
    let mut records = 0;
    for hole in 0.. {
        let (sim, node) = three_puts(11);
        let is_whole = hole + 1 == records;
        sim.block_on(node.id, async {
            let ports = sim.ports(node.id);
            let (journal, mut replayed, _) = journal::open(node.config(&ports)).await.expect("the journal opens");
            records = replayed.len();
            // Nothing tells a missing last record from one that was never written.
            if !is_whole {
                replayed.remove(hole);
            }
            let status = status_with(&ports, &node, journal, replayed).await;
            assert_eq!(
                matches!(status, GroupStatus::Lost(_)),
                !is_whole,
                "I-L10: without record {hole} of {records}: {status:?}"
            );
        });
        if is_whole {
            break;
        }
    }
    assert!(records > 4, "{records} records");
}

/// What was folded from a journal is remembered, so another one does not pass for it: neither one that ends before that, nor
/// one that counts further, nor one that holds what others wrote. Full as it is, it is emptied.
#[test]
fn i_l10_a_journal_that_was_replaced_is_lost() {
    let strange = ReplayedRecord { sequence: 1 << 40, bytes: vec![0xff; 9], flushed: true };
    for (last, replayed) in [(0, Vec::new()), (1 << 40, Vec::new()), (1 << 40, vec![strange])] {
        let (sim, node) = three_puts(12);
        sim.block_on(node.id, async {
            let running = node.start(&sim).await.expect("starts");
            running.log.fold().await.expect("folds");
        });
        node.power_cut(&sim, 1);
        sim.block_on(node.id, async {
            let journal = StandIn::full(last);
            let status = status_with(&sim.ports(node.id), &node, journal.clone(), replayed.clone()).await;
            assert!(matches!(status, GroupStatus::Lost(_)), "I-L10: {last}, {replayed:?}: {status:?}");
            assert_eq!(journal.trimmed.get(), Some(last), "what it holds is nobody's");
        });
    }
}

/// A crash between a fold and its trim, with no room left for another record.
#[test]
fn a_full_journal_that_was_folded_is_trimmed_at_the_next_start() {
    let (sim, node) = three_puts(13);
    sim.block_on(node.id, async {
        let running = node.start(&sim).await.expect("starts");
        running.log.fold().await.expect("folds");
    });
    node.power_cut(&sim, 1);
    sim.block_on(node.id, async {
        let ports = sim.ports(node.id);
        let (journal, replayed, _) = journal::open(node.config(&ports)).await.expect("the journal opens");
        let full = StandIn::full(journal.last());
        let status = status_with(&ports, &node, full.clone(), replayed).await;
        assert_eq!(status, GroupStatus::Live);
        let trimmed = full.trimmed.get();
        assert!(trimmed.is_some_and(|to| 0 < to && to < full.last), "as far as it was folded: {trimmed:?}");
    });
}

/// A group with three commands, after a power cut.
fn three_puts(seed: u64) -> (Sim, Node) {
    let sim = Sim::new(seed);
    let node = Node::new(&sim, 1);
    sim.block_on(node.id, async {
        node.format(&sim).await;
        let mut running = node.start(&sim).await.expect("starts");
        let parts = node.parts(&mut running, SHARD).await;
        let group = ShardGroup::create(parts, 1, &[1]).await.expect("created");
        for n in 0..3 {
            put(&group, n, b"x").await;
        }
    });
    node.power_cut(&sim, 0);
    (sim, node)
}

/// What the node's log file says of the group with `journal` beside it.
async fn status_with(
    ports: &Ports,
    node: &Node,
    journal: Rc<dyn Journal>,
    replayed: Vec<ReplayedRecord>,
) -> GroupStatus {
    let table = TableFile::open(ports.clone(), node.dir.open(), "raft-log", None, TableSettings::new(1));
    let table = Rc::new(table.await.expect("opens"));
    let log = LaneLog::open(ports.clone(), LANE, journal, replayed, table).await;
    log.expect("the node starts all the same").status(SHARD)
}

/// A journal without room.
struct StandIn {
    last: Sequence,
    trimmed: Cell<Option<Sequence>>,
}

impl StandIn {
    fn full(last: Sequence) -> Rc<StandIn> {
        Rc::new(StandIn { last, trimmed: Cell::new(None) })
    }
}

impl Journal for StandIn {
    fn append(&self, _record: &[u8]) -> Result<Sequence, JournalError> {
        Err(JournalError::Full { journal: "stand-in".to_owned() })
    }
    fn written(&self, _sequence: Sequence) -> LocalBoxFuture<'static, Result<(), JournalError>> {
        Box::pin(async { Ok(()) })
    }
    fn flushed(&self, _sequence: Sequence) -> LocalBoxFuture<'static, Result<(), JournalError>> {
        Box::pin(async { Ok(()) })
    }
    fn trim(&self, sequence: Sequence) {
        assert!(sequence <= self.last);
        self.trimmed.set(Some(sequence));
    }
    fn last(&self) -> Sequence {
        self.last
    }
    fn fill(&self) -> f64 {
        0.0
    }
}

#[test]
fn a_purged_log_restarts_from_the_tables_and_the_kept_entries() {
    let sim = Sim::new(4);
    let node = Node::new(&sim, 1);
    sim.block_on(node.id, async {
        node.format(&sim).await;
        let mut running = node.start(&sim).await.expect("starts");
        running.settings.snapshot_entries = 50;
        running.settings.kept_entries = 20;
        let parts = node.parts(&mut running, SHARD).await;
        let group = ShardGroup::create(parts, 1, &[1]).await.expect("created");
        for n in 0..400 {
            put(&group, n, &n.to_le_bytes()).await;
            if n % 100 == 50 {
                running.log.fold().await.expect("folds");
            }
        }
        running.ports.sleep(Duration::from_secs(2)).await;
        let metrics = group.metrics();
        assert!(metrics.purged.expect("purged").index > 200, "{metrics:?}");
        running.log.fold().await.expect("folds");
        put(&group, 400, b"behind the fold").await;
    });
    node.power_cut(&sim, 5);
    sim.block_on(node.id, async {
        let mut running = node.start(&sim).await.expect("starts");
        let parts = node.parts(&mut running, SHARD).await;
        let tables = parts.tables.clone();
        let group = ShardGroup::open(parts).await.expect("opens");
        assert_eq!(count(&tables).await, 401);
        assert_eq!(all_values(&tables).await.len(), 401);
        assert_eq!(put(&group, 401, b"more").await, 402);
    });
}

#[test]
fn groups_of_a_lane_share_flushes() {
    let sim = Sim::new(5);
    let node = Node::new(&sim, 1);
    sim.block_on(node.id, async {
        node.format(&sim).await;
        let mut running = node.start(&sim).await.expect("starts");
        let mut groups = Vec::new();
        for shard in 0..8 {
            let parts = node.parts(&mut running, ShardId(1024 + shard)).await;
            groups.push(ShardGroup::create(parts, 1, &[1]).await.expect("created"));
        }
        let before = node.disks[0].counts().flushes;
        let commands = groups.iter().flat_map(|group| (0..64).map(|n| put(group, n, b"value")));
        futures::future::join_all(commands).await;
        let flushes = node.disks[0].counts().flushes - before;
        assert!(flushes < 8 * 64 / 4, "{flushes} flushes for {} commands", 8 * 64);
    });
}

/// The journal is a few MiB: three times as much goes through it.
#[test]
fn a_full_journal_is_folded_while_writers_wait() {
    let sim = Sim::new(6);
    let node = Node::new(&sim, 1);
    sim.block_on(node.id, async {
        node.format(&sim).await;
        let mut running = node.start(&sim).await.expect("starts");
        let parts = node.parts(&mut running, SHARD).await;
        let group = ShardGroup::create(parts, 1, &[1]).await.expect("created");
        let big = vec![7; 60_000];
        for round in 0..10 {
            let commands = (0..20).map(|n| put(&group, round * 20 + n, &big));
            futures::future::join_all(commands).await;
        }
        assert!(running.log.journal_fill() < 0.9);
    });
    node.power_cut(&sim, 6);
    sim.block_on(node.id, async {
        let mut running = node.start(&sim).await.expect("starts");
        let parts = node.parts(&mut running, SHARD).await;
        let tables = parts.tables.clone();
        ShardGroup::open(parts).await.expect("opens");
        assert_eq!(count(&tables).await, 200);
        assert_eq!(value(&tables, 199).await.expect("there").len(), 60_000);
    });
}

#[test]
fn a_panic_in_a_groups_task_rebuilds_that_group_alone() {
    let sim = Sim::new(7);
    let node = Node::new(&sim, 1);
    crate::common::only_guarded_tasks_may_panic();
    sim.block_on(node.id, async {
        node.format(&sim).await;
        let mut running = node.start(&sim).await.expect("starts");
        let parts = node.parts(&mut running, SHARD).await;
        let group = ShardGroup::create(parts, 1, &[1]).await.expect("created");
        let parts = node.parts(&mut running, ShardId(1025)).await;
        let other = ShardGroup::create(parts, 1, &[1]).await.expect("created");
        put(&group, 1, b"before").await;
        running.machine.panics.set(1);
        let answer = group.propose(command(2, b"panics")).await;
        assert!(matches!(answer, Err(ProposeError::Unavailable { .. })), "{answer:?}");
        put(&other, 1, b"goes on").await;
        running.ports.sleep(Duration::from_secs(5)).await;
        assert_eq!(group.state(), GroupState::Running);
        assert_eq!(group.rebuilds(), 1);
        // The command was in the log: it is applied by the new instance, once.
        assert_eq!(put(&group, 3, b"after").await, 3);
        group.read_barrier().await.expect("leads again");
        // A bug that comes back every time: fenced in the end, the other group lives.
        running.machine.panics.set(1);
        let _ = group.propose(command(2, b"panics")).await;
        running.machine.panics.set(u32::MAX);
        let _ = group.propose(command(2, b"panics")).await;
        running.ports.sleep(Duration::from_secs(60)).await;
        assert!(matches!(group.state(), GroupState::Fenced(_)), "{:?}", group.state());
        running.machine.panics.set(0);
        put(&other, 2, b"goes on").await;
    });
    let _ = std::panic::take_hook();
}

#[test]
fn a_command_that_cannot_be_applied_fences_the_group() {
    let sim = Sim::new(8);
    let node = Node::new(&sim, 1);
    sim.block_on(node.id, async {
        node.format(&sim).await;
        let mut running = node.start(&sim).await.expect("starts");
        let parts = node.parts(&mut running, SHARD).await;
        let group = ShardGroup::create(parts, 1, &[1]).await.expect("created");
        running.machine.failures.set(1);
        let answer = group.propose(command(2, b"damaged")).await;
        assert!(matches!(answer, Err(ProposeError::Unavailable { .. })), "{answer:?}");
        running.ports.sleep(Duration::from_secs(1)).await;
        assert!(matches!(group.state(), GroupState::Fenced(_)), "{:?}", group.state());
        assert!(group.read_barrier().await.is_err());
    });
}

#[test]
fn i_l2_a_failed_flush_is_never_acknowledged() {
    let sim = Sim::new(9);
    let node = Node::new(&sim, 1);
    sim.block_on(node.id, async {
        node.format(&sim).await;
        let mut running = node.start(&sim).await.expect("starts");
        let parts = node.parts(&mut running, SHARD).await;
        let group = ShardGroup::create(parts, 1, &[1]).await.expect("created");
        put(&group, 1, b"x").await;
        for disk in &node.disks {
            disk.fail_flush(1);
        }
        for n in 0..3 {
            let answer = group.propose(command(n, b"y")).await;
            assert!(matches!(answer, Err(ProposeError::Unavailable { .. })), "{answer:?}");
        }
        running.ports.sleep(Duration::from_secs(1)).await;
        assert!(matches!(group.state(), GroupState::Fenced(_)), "{:?}", group.state());
    });
}
