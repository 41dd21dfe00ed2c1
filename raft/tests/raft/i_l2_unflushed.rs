//! I-L2 with a journal whose flushes never return: nothing that needs one may be answered.

use crate::common::{Ledger, Node, SHARD, command};
use futures::future::{Either, select};
use kiseki_raft::ShardGroup;
use kiseki_raft::group::{GroupParts, GroupSettings};
use kiseki_raft::log_store::LaneLog;
use kiseki_raft::network::NoPeers;
use kiseki_raft::snapshot::SnapshotSeals;
use kiseki_raft::table_file::TableFile;
use kiseki_raft::table_set::TableSettings;
use kiseki_raft::type_config::Vote;
use kiseki_simulator::Sim;
use kiseki_types::LaneId;
use kiseki_types::group::RaftGroup;
use kiseki_types::journal::{Journal, JournalError, Sequence};
use kiseki_types::runtime::{LocalBoxFuture, RuntimeExt};
use openraft::storage::RaftLogStorage;
use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

#[derive(Default)]
struct StuckJournal {
    last: Cell<Sequence>,
    stuck: Rc<Cell<bool>>,
    /// Flushes that were asked for while it was stuck.
    waiting: Rc<Cell<u32>>,
}

impl Journal for StuckJournal {
    fn append(&self, _record: &[u8]) -> Result<Sequence, JournalError> {
        self.last.set(self.last.get() + 1);
        Ok(self.last.get())
    }
    fn written(&self, _sequence: Sequence) -> LocalBoxFuture<'static, Result<(), JournalError>> {
        Box::pin(async { Ok(()) })
    }
    fn flushed(&self, _sequence: Sequence) -> LocalBoxFuture<'static, Result<(), JournalError>> {
        match self.stuck.get() {
            true => {
                self.waiting.set(self.waiting.get() + 1);
                Box::pin(std::future::pending())
            }
            false => Box::pin(async { Ok(()) }),
        }
    }
    fn trim(&self, _sequence: Sequence) {}
    fn last(&self) -> Sequence {
        self.last.get()
    }
    fn fill(&self) -> f64 {
        0.0
    }
}

/// The leader and another voter have committed the entry: this voter must not apply it before its own flush. Tables that
/// went on before the log would look, after a power cut, like a log that was lost.
#[test]
fn i_l10_a_follower_applies_nothing_that_its_own_log_may_still_lose() {
    use kiseki_raft::fuzzing::Payload;
    use kiseki_raft::type_config::{Command, Entry, Membership, Vote, log_id};
    let sim = Sim::new(3);
    let node = Node::new(&sim, 1);
    sim.block_on(node.id, async {
        let ports = sim.ports(node.id);
        let journal = Rc::new(StuckJournal::default());
        let (stuck, waiting) = (journal.stuck.clone(), journal.waiting.clone());
        let table = TableFile::open(ports.clone(), node.dir.open(), "raft-log", None, TableSettings::new(1));
        let table = Rc::new(table.await.expect("opens"));
        let log = LaneLog::open(ports.clone(), LaneId(0), journal, Vec::new(), table).await.expect("opens");
        let parts = GroupParts {
            ports: ports.clone(),
            log,
            shard: SHARD,
            tables: node.open_tables(&ports, SHARD).await,
            machine: Rc::new(Ledger::default()),
            link: Rc::new(NoPeers),
            seals: SnapshotSeals::none(),
            settings: GroupSettings::several_voters(),
        };
        let group = ShardGroup::join(parts, 1).await.expect("joins");
        let voters = Membership::new_with_defaults(vec![[1, 2, 3].into()], []);
        let entry = |index, payload| Entry { log_id: log_id(1, index), payload };
        let append = |entry: Entry, previous| kiseki_raft::network::AppendRequest {
            vote: Vote::new_committed(1, 2),
            prev_log_id: previous,
            leader_commit: Some(entry.log_id),
            entries: vec![entry],
        };
        let first = append(entry(0, Payload::Membership(voters)), None);
        assert!(group.handle_append(first).await.expect("it answers").is_success());
        stuck.set(true);
        let write = Payload::Normal(Command(command(2, b"unflushed").into()));
        let second = pin!(group.handle_append(append(entry(1, write), Some(log_id(1, 0)))));
        if let Either::Left((answer, _)) = select(second, ports.sleep(Duration::from_secs(60))).await {
            panic!("I-L2: answered without a flush: {answer:?}");
        }
        let seen = group.tables().get(0, 0, &2_u64.to_be_bytes()).await.expect("readable");
        assert_eq!(seen, None, "I-L10: applied what a power cut takes from the log");
        assert_eq!(waiting.get(), 1, "the append and its application wait for one flush");
    });
}

#[test]
fn i_l2_nothing_is_acknowledged_before_its_flush() {
    let sim = Sim::new(1);
    let node = Node::new(&sim, 1);
    sim.block_on(node.id, async {
        let ports = sim.ports(node.id);
        let journal = Rc::new(StuckJournal::default());
        let stuck = journal.stuck.clone();
        let table = TableFile::open(ports.clone(), node.dir.open(), "raft-log", None, TableSettings::new(1));
        let table = Rc::new(table.await.expect("opens"));
        let log = LaneLog::open(ports.clone(), LaneId(0), journal, Vec::new(), table).await.expect("opens");
        let parts = GroupParts {
            ports: ports.clone(),
            log,
            shard: SHARD,
            tables: node.open_tables(&ports, SHARD).await,
            machine: Rc::new(Ledger::default()),
            link: Rc::new(NoPeers),
            seals: SnapshotSeals::none(),
            settings: GroupSettings::single_voter(),
        };
        let group = ShardGroup::create(parts, 1, &[1]).await.expect("created");
        group.propose(command(1, b"flushed")).await.expect("committed");
        stuck.set(true);
        let proposed = pin!(group.propose(command(2, b"not flushed")));
        match select(proposed, ports.sleep(Duration::from_secs(60))).await {
            Either::Left((answer, _)) => panic!("I-L2: answered without a flush: {answer:?}"),
            Either::Right(_) => {}
        }
        let seen = group.tables().get(0, 0, &2_u64.to_be_bytes()).await.expect("readable");
        assert_eq!(seen, None, "what is not committed is not visible");
    });
}

#[test]
fn i_l2_i_l10_a_vote_is_answered_when_it_is_flushed() {
    let sim = Sim::new(2);
    let node = Node::new(&sim, 1);
    sim.block_on(node.id, async {
        let ports = sim.ports(node.id);
        let journal = Rc::new(StuckJournal::default());
        let stuck = journal.stuck.clone();
        let table = TableFile::open(ports.clone(), node.dir.open(), "raft-log", None, TableSettings::new(1));
        let table = Rc::new(table.await.expect("opens"));
        let log = LaneLog::open(ports.clone(), LaneId(0), journal, Vec::new(), table).await.expect("opens");
        log.create_group(SHARD, 1).await.expect("created");
        let mut storage = log.open_group(SHARD, node.open_tables(&ports, SHARD).await).await.expect("opens");
        storage.save_vote(&Vote::new(1, 1)).await.expect("flushed");
        stuck.set(true);
        let vote = Vote::new(2, 1);
        let saved = pin!(storage.save_vote(&vote));
        if let Either::Left((saved, _)) = select(saved, ports.sleep(Duration::from_secs(60))).await {
            panic!("I-L10: a vote was given that a power cut forgets: {saved:?}");
        }
    });
}
