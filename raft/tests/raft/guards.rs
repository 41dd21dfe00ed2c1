//! What a replica refuses so that it never votes or counts under a number whose promises it no longer knows, and what it must
//! not refuse because nothing would go on without it.

use crate::common::{LANE, Node, SHARD, put};
use kiseki_raft::table_file::TableFile;
use kiseki_raft::table_set::TableSettings;
use kiseki_raft::type_config::Vote;
use kiseki_raft::{LaneLog, RaftError, ShardGroup};
use kiseki_simulator::{Sim, SimMetaDir};
use kiseki_types::journal::{Journal, JournalError, Sequence};
use kiseki_types::runtime::{LocalBoxFuture, RuntimeExt};
use openraft::storage::{RaftLogReader, RaftLogStorage};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// The journal was folded and trimmed, so groups may stand in the log file alone: without it they would seem new, and vote
/// again under the same number.
#[test]
fn i_l10_a_lane_without_its_log_file_does_not_open() {
    let sim = Sim::new(21);
    let mut node = Node::new(&sim, 1);
    sim.block_on(node.id, async {
        node.format(&sim).await;
        let mut running = node.start(&sim).await.expect("starts");
        let parts = node.parts(&mut running, SHARD).await;
        let group = ShardGroup::create(parts, 1, &[1]).await.expect("created");
        for n in 0..300 {
            put(&group, n, &[7; 4000]).await;
        }
        running.log.fold().await.expect("folds");
        put(&group, 0, b"behind the fold").await;
    });
    node.power_cut(&sim, 0);
    node.dir = SimMetaDir::new("empty", 1, &node.switch);
    sim.block_on(node.id, async {
        let refused = node.start(&sim).await.map(drop);
        assert!(matches!(refused, Err(RaftError::LogDamaged { .. })), "I-L10: {refused:?}");
    });
}

/// The tables are gone, or are those of long ago, and what lies between is purged.
#[test]
fn i_l10_a_log_that_begins_behind_its_tables_is_lost_and_begins_anew() {
    let sim = Sim::new(22);
    let node = Node::new(&sim, 1);
    sim.block_on(node.id, async {
        node.format(&sim).await;
        let mut running = node.start(&sim).await.expect("starts");
        running.settings.snapshot_entries = 50;
        running.settings.kept_entries = 20;
        let parts = node.parts(&mut running, SHARD).await;
        let group = ShardGroup::create(parts, 1, &[1]).await.expect("created");
        for n in 0..200 {
            put(&group, n, b"x").await;
        }
        group.checkpoint().await.expect("checkpoints");
        running.ports.sleep(Duration::from_secs(5)).await;
        assert!(group.metrics().purged.is_some(), "{:?}", group.metrics());
        group.close().await.expect("closes");
    });
    node.power_cut(&sim, 0);
    sim.block_on(node.id, async {
        let dir = node.dir.open();
        for name in dir.list().expect("lists").iter().filter(|name| *name != "raft-log") {
            dir.remove(name).expect("removed");
        }
        let mut running = node.start(&sim).await.expect("starts");
        let parts = node.parts(&mut running, SHARD).await;
        let lost = ShardGroup::rejoin(parts.clone()).await.map(drop);
        assert!(matches!(lost, Err(RaftError::Lost { .. })), "{lost:?}");
        ShardGroup::begin_anew(parts).await.expect("another number, which a leader fills");
    });
}

/// A node, and a journal that is as full as it is told to be.
fn lane_with(fill: f64) -> (Sim, Node, Rc<Meter>) {
    let sim = Sim::new(23);
    let node = Node::new(&sim, 1);
    (sim, node, Rc::new(Meter { last: Cell::new(0), fill: Cell::new(fill) }))
}

async fn open_lane(sim: &Sim, node: &Node, meter: &Rc<Meter>) -> LaneLog {
    let ports = sim.ports(node.id);
    let table = TableFile::open(ports.clone(), node.dir.open(), "raft-log", None, TableSettings::new(1));
    let table = Rc::new(table.await.expect("opens"));
    let log = LaneLog::open(ports, LANE, meter.clone(), Vec::new(), table).await.expect("opens");
    log.create_group(SHARD, 1).await.expect("created");
    log
}

/// While the group was rebuilt a handle waited for room. What it would write then is of another time.
#[test]
fn i_l10_a_handle_that_waited_writes_nothing_once_the_group_was_rebuilt() {
    let (sim, node, meter) = lane_with(1.0);
    sim.block_on(node.id, async {
        let ports = sim.ports(node.id);
        let log = open_lane(&sim, &node, &meter).await;
        let tables = node.open_tables(&ports, SHARD).await;
        let mut old = log.open_group(SHARD, tables.clone()).await.expect("opens");
        let vote = Vote::new(5, 1);
        let waiting = old.save_vote(&vote);
        let rebuilt = async {
            ports.sleep(Duration::from_secs(1)).await;
            let mut new = log.open_group(SHARD, tables).await.expect("opens");
            meter.fill.set(0.1);
            new.save_vote(&Vote::new(6, 2)).await.expect("there is room");
            new
        };
        let (late, mut new) = futures::future::join(waiting, rebuilt).await;
        assert!(late.is_err(), "I-L10: it was rebuilt");
        assert_eq!(new.read_vote().await.expect("reads"), Some(Vote::new(6, 2)));
    });
}

/// A journal in which nothing can be committed without an election must not hold back the votes.
#[test]
fn votes_are_taken_down_in_a_journal_that_holds_back_entries() {
    let (sim, node, meter) = lane_with(0.95);
    sim.block_on(node.id, async {
        let ports = sim.ports(node.id);
        let log = open_lane(&sim, &node, &meter).await;
        let mut store = log.open_group(SHARD, node.open_tables(&ports, SHARD).await).await.expect("opens");
        store.save_vote(&Vote::new(1, 1)).await.expect("a vote has room");
        assert!(meter.last.get() > 0);
    });
}

/// A journal in memory.
struct Meter {
    last: Cell<Sequence>,
    fill: Cell<f64>,
}

impl Journal for Meter {
    fn append(&self, _record: &[u8]) -> Result<Sequence, JournalError> {
        self.last.set(self.last.get() + 1);
        Ok(self.last.get())
    }
    fn written(&self, _sequence: Sequence) -> LocalBoxFuture<'static, Result<(), JournalError>> {
        Box::pin(async { Ok(()) })
    }
    fn flushed(&self, _sequence: Sequence) -> LocalBoxFuture<'static, Result<(), JournalError>> {
        Box::pin(async { Ok(()) })
    }
    fn trim(&self, _sequence: Sequence) {}
    fn last(&self) -> Sequence {
        self.last.get()
    }
    fn fill(&self) -> f64 {
        self.fill.get()
    }
}
