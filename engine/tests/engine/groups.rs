//! Raft groups of one voter in memory: they commit at once, and outlive the engine that uses them.

use crate::support::ONLY_NODE;
use futures::channel::oneshot;
use kiseki_engine::api::StoreError;
use kiseki_engine::host::{GroupHost, GroupSpec, Opening};
use kiseki_types::LocalBoxFuture;
use kiseki_types::group::{
    GroupView, Leadership, LogPosition, ProposeError, RaftGroup, ReplicasError, StateMachine, VoterId,
};
use kiseki_types::ids::{ShardId, Term};
use kiseki_types::runtime::{Ports, RuntimeExt};
use kiseki_types::table::{Direction, Row, Scan, TableError, TableId, TableReader, TableWrite};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

pub type Rows = Rc<RefCell<BTreeMap<(u8, TableId, Vec<u8>), Vec<u8>>>>;

#[derive(Clone, Default)]
pub struct MemoryTables(pub Rows);

impl MemoryTables {
    pub fn write(&self, writes: Vec<TableWrite>) {
        for write in writes {
            let key = (write.file, write.table, write.key);
            match write.value {
                Some(value) => self.0.borrow_mut().insert(key, value),
                None => self.0.borrow_mut().remove(&key),
            };
        }
    }
}

impl TableReader for MemoryTables {
    fn get(
        &self,
        file: u8,
        table: TableId,
        key: &[u8],
    ) -> LocalBoxFuture<'static, Result<Option<Vec<u8>>, TableError>> {
        let value = self.0.borrow().get(&(file, table, key.to_vec())).cloned();
        Box::pin(async move { Ok(value) })
    }

    fn scan(&self, scan: Scan) -> LocalBoxFuture<'static, Result<Vec<Row>, TableError>> {
        assert_eq!(scan.direction, Direction::Forward);
        let inside = |key: &[u8]| {
            use std::ops::RangeBounds;
            (scan.from.clone(), scan.to.clone()).contains(&key.to_vec())
        };
        let rows = self.0.borrow();
        let rows: Vec<Row> = rows
            .iter()
            .filter(|((file, table, key), _)| *file == scan.file && *table == scan.table && inside(key))
            .take(scan.limit)
            .map(|((_, _, key), value)| (key.clone(), value.clone()))
            .collect();
        Box::pin(async move { Ok(rows) })
    }
}

/// A group of one voter whose log needs no disk.
struct MemoryGroup {
    shard: ShardId,
    machine: Rc<dyn StateMachine>,
    tables: MemoryTables,
    index: Rc<Cell<u64>>,
    turn: Rc<futures::lock::Mutex<()>>,
    ports: Ports,
    /// How long a commit takes, see [`Logs::set_home_delay`].
    delay: Rc<Cell<Duration>>,
    /// What becomes of the next command, see [`Logs::lose_next_control_answer`].
    next_lost: Rc<Cell<Option<Lost>>>,
    /// See [`Logs::stuck`].
    stuck: Shards,
    /// See [`Logs::deposed`].
    deposed: Shards,
    terms: Rc<Terms>,
}

/// The term that all groups are in.
#[derive(Default)]
pub struct Terms {
    before: Cell<u64>,
    waiting: RefCell<Vec<oneshot::Sender<()>>>,
}

impl Terms {
    fn now(&self) -> Term {
        Term(self.before.get() + 1)
    }

    /// Every group elects its leader once more: the same one, in another term.
    pub fn elect(&self) {
        self.before.set(self.before.get() + 1);
        for waiting in self.waiting.take() {
            let _gone = waiting.send(());
        }
    }
}

/// A command whose answer does not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It was committed.
    Answer,
    /// It was not.
    Command,
}

impl RaftGroup for MemoryGroup {
    fn shard(&self) -> ShardId {
        self.shard
    }

    fn propose(&self, command: Vec<u8>) -> LocalBoxFuture<'static, Result<Vec<u8>, ProposeError>> {
        let (machine, tables, index) = (self.machine.clone(), self.tables.clone(), self.index.clone());
        let (turn, ports, delay) = (self.turn.clone(), self.ports.clone(), self.delay.get());
        let (shard, lost) = (self.shard, self.next_lost.take());
        let (is_stuck, terms) = (self.stuck.borrow().contains(&shard), self.terms.clone());
        Box::pin(async move {
            ports.sleep(Duration::from_micros(100) + delay).await;
            let unknown = || ProposeError::Unavailable { shard, reason: "the answer is lost".to_owned() };
            if is_stuck || lost == Some(Lost::Command) {
                return Err(unknown());
            }
            let _turn = turn.lock().await;
            index.set(index.get() + 1);
            let at = LogPosition { term: terms.now(), index: index.get() };
            let applied = machine.apply(at, &command, &tables).await.expect("commands of this engine apply");
            tables.write(applied.writes);
            if lost.is_some() { Err(unknown()) } else { Ok(applied.response) }
        })
    }

    fn read_barrier(&self) -> LocalBoxFuture<'static, Result<Term, ProposeError>> {
        let (shard, is_deposed) = (self.shard, self.deposed.borrow().contains(&self.shard));
        let deposed = || ProposeError::Unavailable { shard, reason: "no majority answers".to_owned() };
        Box::pin(std::future::ready(if is_deposed { Err(deposed()) } else { Ok(self.terms.now()) }))
    }

    fn tables(&self) -> Rc<dyn TableReader> {
        Rc::new(self.tables.clone())
    }

    fn leadership(&self) -> Leadership {
        Leadership { term: self.terms.now(), leader: Some(ONLY_NODE), is_here: true }
    }

    fn leadership_after(&self, seen: Leadership) -> LocalBoxFuture<'static, Leadership> {
        let terms = self.terms.clone();
        Box::pin(async move {
            while terms.now() == seen.term {
                let (sender, elected) = oneshot::channel();
                terms.waiting.borrow_mut().push(sender);
                let _elected = elected.await;
            }
            Leadership { term: terms.now(), ..seen }
        })
    }

    fn view(&self) -> GroupView {
        let (voter, index) = (ONLY_NODE.0, self.index.get());
        GroupView {
            voter,
            leadership: self.leadership(),
            voter_sets: vec![vec![voter]],
            last_index: index,
            applied_index: index,
            ..GroupView::default()
        }
    }

    fn voter(&self) -> VoterId {
        ONLY_NODE.0
    }

    fn voters(&self) -> Vec<VoterId> {
        vec![ONLY_NODE.0]
    }

    fn set_voters(&self, _voters: Vec<VoterId>) -> LocalBoxFuture<'static, Result<(), ReplicasError>> {
        let error = ReplicasError { shard: self.shard, reason: "there is one node".to_owned() };
        Box::pin(async move { Err(error) })
    }

    fn transfer_leader(&self, _to: VoterId) -> LocalBoxFuture<'static, Result<(), ReplicasError>> {
        self.set_voters(Vec::new())
    }
}

pub type Shards = Rc<RefCell<BTreeSet<ShardId>>>;

/// A group's tables and the index of its last command.
pub type GroupState = (MemoryTables, Rc<Cell<u64>>);

/// Tables of all groups; they survive a restart of the engine.
#[derive(Clone, Default)]
pub struct Logs {
    pub groups: Rc<RefCell<BTreeMap<ShardId, GroupState>>>,
    pub home_delay: Rc<Cell<Duration>>,
    control_lost: Rc<Cell<Option<Lost>>>,
    /// Groups that commit nothing: their leaders go on reading.
    pub stuck: Shards,
    /// Groups whose leaders don't know that they lead: reads don't become linearizable.
    pub deposed: Shards,
    pub terms: Rc<Terms>,
    shard_lost: Rc<Cell<Option<Lost>>>,
    home_lost: Rc<Cell<Option<Lost>>>,
}

impl Logs {
    /// Whoever proposes the next change of the control shard does not hear what became of it.
    pub fn lose_next_control_answer(&self, lost: Lost) {
        self.control_lost.set(Some(lost));
    }

    /// The same of the next change of any tenant's shard.
    pub fn lose_next_shard_answer(&self, lost: Lost) {
        self.shard_lost.set(Some(lost));
    }

    /// And of the next change of any home.
    pub fn lose_next_home_answer(&self, lost: Lost) {
        self.home_lost.set(Some(lost));
    }

    /// How much longer commits of homes take from now on than those of shards.
    pub fn set_home_delay(&self, delay: Duration) {
        self.home_delay.set(delay);
    }
}

pub struct MemoryHost {
    pub logs: Logs,
    pub ports: Ports,
}

impl GroupHost for MemoryHost {
    fn open(&self, spec: GroupSpec) -> LocalBoxFuture<'static, Result<Rc<dyn RaftGroup>, StoreError>> {
        let mut logs = self.logs.groups.borrow_mut();
        assert!(
            spec.opening == Opening::Create || logs.contains_key(&spec.shard),
            "I-L10: {} was opened but never made",
            spec.shard
        );
        let (tables, index) = logs.entry(spec.shard).or_default().clone();
        let (turn, ports) = (Rc::default(), self.ports.clone());
        let is_home = spec.shard != ShardId::CONTROL && spec.shard.0 < ShardId::TENANT_FIRST;
        let delay = if is_home { self.logs.home_delay.clone() } else { Rc::default() };
        let next_lost = match spec.shard {
            ShardId::CONTROL => self.logs.control_lost.clone(),
            _ if is_home => self.logs.home_lost.clone(),
            _ => self.logs.shard_lost.clone(),
        };
        let (shard, machine) = (spec.shard, spec.machine);
        let (stuck, deposed, terms) = (self.logs.stuck.clone(), self.logs.deposed.clone(), self.logs.terms.clone());
        let group = MemoryGroup { shard, machine, tables, index, turn, ports, delay, next_lost, stuck, deposed, terms };
        Box::pin(async move { Ok(Rc::new(group) as Rc<dyn RaftGroup>) })
    }

    fn hosted(&self) -> Vec<ShardId> {
        self.logs.groups.borrow().keys().copied().collect()
    }
}
