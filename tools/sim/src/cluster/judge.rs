//! What must never happen, checked while it could: by what replicas apply, what they send, and what clients see.

use crate::cluster::machine::Put;
use crate::register::{Bound, Register, Tick, Value, WriteId};
use kiseki_raft::messages::{Answer, Call, Question};
use kiseki_raft::type_config::{Vote, VoterId};
use kiseki_simulator::seed::mix64;
use kiseki_types::ShardId;
use kiseki_types::group::LogPosition;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// Violations of one run that are written down; the first tell the most.
const VIOLATIONS_MAX: usize = 8;

/// What all replicas apply at one index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AppliedAt {
    term: u64,
    put: Put,
    chain: u64,
}

/// Knows everything that happened in a run.
#[derive(Default)]
pub struct Judge {
    violations: RefCell<Vec<String>>,
    applied: RefCell<BTreeMap<(ShardId, u64), AppliedAt>>,
    leaders: RefCell<BTreeMap<(ShardId, u64), VoterId>>,
    votes: RefCell<BTreeMap<(ShardId, VoterId, u64), VoterId>>,
    registers: RefCell<BTreeMap<(ShardId, u64), Register>>,
    acknowledged: RefCell<BTreeMap<WriteId, (ShardId, u64)>>,
    tick: Cell<Tick>,
    next_write: Cell<WriteId>,
    reads: Cell<u64>,
    digest: Cell<u64>,
}

impl Judge {
    /// Writes a violation down.
    pub fn violation(&self, text: String) {
        let mut violations = self.violations.borrow_mut();
        if violations.len() < VIOLATIONS_MAX {
            violations.push(text);
        }
    }

    /// Whether anything is wrong.
    #[must_use]
    pub fn found(&self) -> bool {
        !self.violations.borrow().is_empty()
    }

    /// All that is wrong.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.violations.borrow().clone()
    }

    /// Writes acknowledged, reads answered.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.acknowledged.borrow().len() as u64, self.reads.get())
    }

    /// Leaders that were seen.
    #[must_use]
    pub fn terms(&self) -> u64 {
        self.leaders.borrow().len() as u64
    }

    /// A number into which everything seen went.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest.get()
    }

    fn mix(&self, value: u64) {
        self.digest.set(mix64(self.digest.get() ^ value));
    }

    /// The next point in logical time.
    pub fn tick(&self) -> Tick {
        self.tick.set(self.tick.get() + 1);
        self.tick.get()
    }

    /// I-L1, I-L3: a replica applies a command. All replicas apply the same at each index, whatever was between.
    pub fn applied(&self, shard: ShardId, at: LogPosition, put: Put, chain: u64) {
        let here = AppliedAt { term: at.term.0, put, chain };
        let first = *self.applied.borrow_mut().entry((shard, at.index)).or_insert(here);
        self.mix(chain);
        if first != here {
            self.violation(format!("I-L3: {shard} index {}: {here:?} is applied where {first:?} was", at.index));
        }
    }

    /// The command that stands at an index, once a replica has applied it.
    fn put_at(&self, shard: ShardId, index: u64) -> Option<Put> {
        self.applied.borrow().get(&(shard, index)).map(|at| at.put)
    }

    /// Values that the registers of a shard must hold when everything is applied, and the chain.
    #[must_use]
    pub fn expected(&self, shard: ShardId) -> (BTreeMap<u64, WriteId>, u64) {
        let applied = self.applied.borrow();
        let all = applied.range((shard, 0)..=(shard, u64::MAX));
        let mut values = BTreeMap::new();
        let mut chain = 0;
        for (_, at) in all {
            values.insert(at.put.key, at.put.id);
            chain = at.chain;
        }
        (values, chain)
    }

    /// A replica was seen to lead. Two of one term could both commit.
    pub fn leads(&self, shard: ShardId, term: u64, leader: VoterId) {
        let first = *self.leaders.borrow_mut().entry((shard, term)).or_insert(leader);
        if first != leader {
            self.violation(format!("{shard}: {leader} leads in term {term}, in which {first} led"));
        }
    }

    /// I-L10: a vote left a node. One voter gives one in a term, also across its restarts.
    fn votes(&self, shard: ShardId, voter: VoterId, vote: &Vote) {
        let (term, candidate) = (vote.leader_id.term, vote.leader_id.voted_for);
        let first = *self.votes.borrow_mut().entry((shard, voter, term)).or_insert(candidate);
        if first != candidate {
            self.violation(format!("I-L10: {shard}: {voter} votes for {candidate} in term {term}, it did for {first}"));
        }
    }

    /// A question leaves a node.
    pub fn sent(&self, call: &Call) {
        match &call.question {
            Question::Append(request) => self.sent_as_leader(call.shard, &request.vote),
            Question::Snapshot(piece) => self.sent_as_leader(call.shard, &piece.vote),
            Question::Rest(request) => self.sent_as_leader(call.shard, &request.vote),
            // Whoever asks for votes has given its own.
            Question::Vote(request) => self.votes(call.shard, request.vote.leader_id.voted_for, &request.vote),
            Question::PreVote(_) | Question::Transfer(_) => {}
        }
    }

    fn sent_as_leader(&self, shard: ShardId, vote: &Vote) {
        self.leads(shard, vote.leader_id.term, vote.leader_id.voted_for);
    }

    /// An answer leaves a node.
    pub fn answered(&self, call: &Call, answer: &Answer) {
        if let (Question::Vote(request), Answer::Election(response)) = (&call.question, answer)
            && response.vote_granted
        {
            self.votes(call.shard, call.to, &request.vote);
        }
    }

    /// A client begins to write.
    pub fn begin_write(&self, shard: ShardId, key: u64) -> WriteId {
        let id = self.next_write.get() + 1;
        self.next_write.set(id);
        let now = self.tick();
        let mut registers = self.registers.borrow_mut();
        registers.entry((shard, key)).or_default().begin(id, Value::Object(Vec::new()), Bound::Free, now);
        id
    }

    /// I-L2: a write was acknowledged, and its entry said to stand at `index`.
    pub fn acknowledge(&self, shard: ShardId, put: Put, index: u64) {
        self.mix(put.id);
        if self.put_at(shard, index) != Some(put) {
            self.violation(format!("I-L2: {shard} index {index} is not the write {put:?} that it answers for"));
        }
        self.acknowledged.borrow_mut().insert(put.id, (shard, index));
        let now = self.tick();
        let wrong = self.registers.borrow_mut().entry((shard, put.key)).or_default().happened(put.id, now);
        wrong.into_iter().for_each(|wrong| self.violation(format!("{shard} key {}: {wrong}", put.key)));
    }

    /// A write was refused before anything happened.
    pub fn refuse(&self, shard: ShardId, put: Put) {
        self.registers.borrow_mut().entry((shard, put.key)).or_default().refused(put.id);
    }

    /// A linearizable read that began at `from` returned this write (0: none).
    pub fn read(&self, shard: ShardId, key: u64, id: WriteId, from: Tick) {
        self.reads.set(self.reads.get() + 1);
        self.mix(id);
        let now = self.tick();
        let mut registers = self.registers.borrow_mut();
        let register = registers.entry((shard, key)).or_default();
        if register.find(id, from, now).is_none() {
            let possible = register.describe(from, now);
            drop(registers);
            self.violation(format!("I-V2: {shard} key {key}: a read returned write {id}; possible: {possible}"));
            return;
        }
        let wrong = register.seen(id, now);
        drop(registers);
        wrong.into_iter().for_each(|wrong| self.violation(format!("{shard} key {key}: {wrong}")));
    }
}
