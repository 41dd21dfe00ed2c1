//! The Raft logs of one lane: acknowledged from one shared journal, folded behind it into one redb file.
//!
//! - Saving a vote returns after its flush; an append is acknowledged after its flush, strictly in order, and never
//!   with success after a failure (I-L2). All groups of the lane share the journal's flushes.
//! - Only committed entries are folded. What is not folded stays in memory too, so reads of it touch no file.
//! - A group's existence is a durable row; a group that acknowledged anything and whose vote or log is not whole is
//!   *lost*, never new (I-L10).
//!
//! The byte layouts are told in docs/formats/raft-log.md.

mod acks;
mod fold;
mod group_log;
mod open;
mod raft_storage;
pub mod record;
mod unfolded;

pub(crate) use group_log::replay_group;
pub use raft_storage::GroupLogStore;

use crate::error::RaftError;
use crate::table_set::TableSet;
use crate::times::RaftTimes;
use crate::type_config::{Entry, LogId, VoterId, voter_after};
use acks::Acks;
use group_log::GroupLog;
use kiseki_types::journal::{Journal, JournalError, ReplayedRecord, Sequence};
use kiseki_types::limits::COMMAND_LEN_BYTES_MAX;
use kiseki_types::runtime::{LocalBoxFuture, Ports, RuntimeExt};
use kiseki_types::table::{Direction, Scan, TableId, TableStore, TableWrite};
use kiseki_types::{LaneId, ShardId};
use openraft::storage::IOFlushed;
use record::{Change, GroupRow, LaneRow, Record, decode_entry_row, entry_len_bytes};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use unfolded::Unfolded;

/// Most groups on one lane.
pub const GROUPS_PER_LANE_MAX: usize = 4096;

/// Fill of the journal at which all of it is folded in the background.
const FOLD_FILL: f64 = 0.5;

/// Fill at which appends wait for a fold; the rest is for copying stuck entries forward.
const HOLD_FILL: f64 = 0.85;

/// Bytes of entries that only the journal and memory hold at which a fold starts. It takes the older half: what is purged
/// before it gets old never goes through the log file.
const FOLD_LEN_BYTES: usize = 16 * 1024 * 1024;

/// Bytes of commands of one lane that are proposed and not answered; more wait. A Raft journal must be at least four
/// times as long, so that what can't be folded yet never fills it.
pub const PROPOSED_LEN_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Appends wait this long for room in the journal, then the group stops.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(30);

/// Pause between looks for room.
const ROOM_POLL: Duration = Duration::from_millis(10);

/// Most rows in one read of the log file.
const ROWS_PER_READ: usize = 256;

/// The lane's row, under the empty key.
const TABLE_LANE: TableId = 0;
/// Rows of groups, by shard.
const TABLE_GROUPS: TableId = 1;
/// Entries, by shard and index.
const TABLE_ENTRIES: TableId = 2;

fn shard_key(shard: ShardId) -> Vec<u8> {
    shard.0.to_be_bytes().to_vec()
}

fn entry_key(shard: ShardId, index: u64) -> Vec<u8> {
    [shard.0.to_be_bytes(), index.to_be_bytes()].concat()
}

fn row_write(table: TableId, key: Vec<u8>, value: Option<Vec<u8>>) -> TableWrite {
    TableWrite { file: 0, table, key, value }
}

/// What a lane knows of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupStatus {
    /// No replica was ever made here.
    Absent,
    /// Made, but nothing was acknowledged yet: the bootstrap may be done again.
    Fresh,
    /// A voter in good standing.
    Live,
    /// Part of its vote or log is gone (I-L10).
    Lost(String),
}

/// The Raft logs of one lane. A clone is another handle of the same logs.
#[derive(Clone)]
pub struct LaneLog {
    inner: Rc<Lane>,
}

struct Lane {
    lane: LaneId,
    ports: Ports,
    journal: Rc<dyn Journal>,
    table: Rc<dyn TableStore>,
    groups: RefCell<BTreeMap<ShardId, GroupLog>>,
    acks: Acks,
    times: Rc<RaftTimes>,
    /// The lane's last record.
    last: Cell<Sequence>,
    /// Up to here every record is held durably by the log file.
    folded_sequence: Cell<Sequence>,
    /// What only the journal holds.
    unfolded: RefCell<Unfolded>,
    fold_wanted: Rc<Notify>,
    /// One permit for each byte that may be proposed.
    proposed: tokio::sync::Semaphore,
    /// Held by whoever writes rows of groups, so that an older row never replaces a newer one.
    folding: tokio::sync::Mutex<()>,
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.fold_wanted.notify_one(); // the background task sees that the lane is gone
    }
}

impl LaneLog {
    /// Opens the logs of a lane.
    ///
    /// - `journal`: the lane's journal, opened; `replayed`: what its open found, in order.
    /// - `table`: the lane's log file (clear: entries carry sealed payloads).
    /// - Ends after a flush, so that everything replayed counts as durable (I-L2).
    /// - Errors: `LogDamaged` when records make no sense; a group whose log is not whole is no error here, its
    ///   [`GroupStatus`] is `Lost`.
    pub fn open(
        ports: Ports,
        lane: LaneId,
        journal: Rc<dyn Journal>,
        replayed: Vec<ReplayedRecord>,
        table: Rc<dyn TableStore>,
    ) -> LocalBoxFuture<'static, Result<LaneLog, RaftError>> {
        Box::pin(open::open(ports, lane, journal, replayed, table))
    }

    /// What the lane knows of `shard`.
    #[must_use]
    pub fn status(&self, shard: ShardId) -> GroupStatus {
        match self.inner.groups.borrow().get(&shard) {
            None => GroupStatus::Absent,
            Some(GroupLog { lost: Some(reason), .. }) => GroupStatus::Lost(reason.clone()),
            Some(group) if group.row.live => GroupStatus::Live,
            Some(_) => GroupStatus::Fresh,
        }
    }

    /// Shards with a replica on this lane, in order.
    #[must_use]
    pub fn shards(&self) -> Vec<ShardId> {
        self.inner.groups.borrow().keys().copied().collect()
    }

    /// Records, durably, that this node holds a replica of `shard` that votes as `voter`. Done again on a group that
    /// never acknowledged anything it changes nothing.
    ///
    /// Errors: `Exists` and `Lost` when the group was made before.
    pub async fn create_group(&self, shard: ShardId, voter: VoterId) -> Result<(), RaftError> {
        match self.status(shard) {
            GroupStatus::Absent => {}
            GroupStatus::Fresh => return Ok(()),
            GroupStatus::Live => return Err(RaftError::Exists { shard }),
            GroupStatus::Lost(reason) => return Err(RaftError::Lost { shard, reason }),
        }
        let lane = &self.inner;
        if lane.groups.borrow().len() >= GROUPS_PER_LANE_MAX {
            return Err(RaftError::TooManyGroups { lane: lane.lane, limit: GROUPS_PER_LANE_MAX });
        }
        let row = GroupRow { voter, ..GroupRow::default() };
        lane.table.write(vec![row_write(TABLE_GROUPS, shard_key(shard), Some(row.encode()))]);
        lane.table.checkpoint().await?;
        lane.groups.borrow_mut().entry(shard).or_insert_with(|| GroupLog::from_row(shard, row));
        Ok(())
    }

    /// The storage of one group for openraft. Handles opened before are dead from now on. Everything that the group
    /// ever appended is durable when this returns, since openraft counts it as such.
    ///
    /// Errors: `Absent`, `Lost`, or the journal's.
    pub async fn open_group(&self, shard: ShardId, tables: TableSet) -> Result<GroupLogStore, RaftError> {
        match self.status(shard) {
            GroupStatus::Absent => return Err(RaftError::Absent { shard }),
            GroupStatus::Lost(reason) => return Err(RaftError::Lost { shard, reason }),
            GroupStatus::Fresh | GroupStatus::Live => {}
        }
        let (opened, voter) = self.inner.with_group(shard, |group| {
            group.opened += 1;
            (group.opened, group.row.voter)
        });
        self.inner.flushed(self.inner.last.get()).await?;
        Ok(GroupLogStore::new(self.inner.clone(), shard, voter, opened, tables))
    }

    /// The voter that this node's replica of `shard` votes as.
    #[must_use]
    pub fn voter(&self, shard: ShardId) -> Option<VoterId> {
        self.inner.groups.borrow().get(&shard).map(|group| group.row.voter)
    }

    /// Marks, durably, that the group's vote or log is not whole: it never votes again under its id (I-L10).
    pub async fn mark_lost(&self, shard: ShardId, reason: &str) -> Result<(), RaftError> {
        self.inner.mark_lost(shard, reason).await
    }

    /// Has a replica whose vote or log is lost begin anew, durably, as a voter that never was (I-L10), which is given
    /// back. It knows nothing until a leader fills it, and votes when the group has made it a voter.
    ///
    /// Errors: `Absent`; `Membership` when nothing is lost, or when it is not known as whom it voted.
    pub async fn begin_anew(&self, shard: ShardId) -> Result<VoterId, RaftError> {
        let refused = |reason: &str| RaftError::Membership { shard, reason: reason.to_owned() };
        match self.status(shard) {
            GroupStatus::Absent => return Err(RaftError::Absent { shard }),
            GroupStatus::Fresh | GroupStatus::Live => return Err(refused("its vote and log are whole")),
            GroupStatus::Lost(_) => {}
        }
        let lane = &self.inner;
        let _turn = lane.folding.lock().await;
        let old = lane.with_group(shard, |group| group.row.voter);
        let voter = voter_after(old).filter(|_| old != 0);
        let voter = voter.ok_or_else(|| refused("as whom this node voted is not known; use another node"))?;
        // First the record: from then on older ones, where there are any, count no more.
        let sequence = lane.record(shard, Change::Begun(voter))?;
        lane.flushed(sequence).await?;
        lane.forget_rows(shard).await?;
        Ok(voter)
    }

    /// Folds everything committed into the log file and trims the journal.
    pub async fn fold(&self) -> Result<(), RaftError> {
        self.inner.fold().await
    }

    /// Waits until a command of `len_bytes` may be proposed; it may until the permit is dropped.
    pub async fn proposing(&self, len_bytes: usize) -> Option<tokio::sync::SemaphorePermit<'_>> {
        let permits = u32::try_from(len_bytes).unwrap_or(u32::MAX).max(1);
        self.inner.proposed.acquire_many(permits).await.ok()
    }

    /// How long steps of commands took.
    #[must_use]
    pub fn times(&self) -> Rc<RaftTimes> {
        self.inner.times.clone()
    }

    /// Share of the journal in use, 0.0 to 1.0.
    #[must_use]
    pub fn journal_fill(&self) -> f64 {
        self.inner.journal.fill()
    }
}

impl Lane {
    /// Runs `body` on a group that must be there.
    fn with_group<T>(&self, shard: ShardId, body: impl FnOnce(&mut GroupLog) -> T) -> T {
        body(self.groups.borrow_mut().get_mut(&shard).expect("a group's handle outlives nothing of the group"))
    }

    /// Waits until everything up to `sequence` is durable, and notes it.
    async fn flushed(&self, sequence: Sequence) -> Result<(), JournalError> {
        if sequence > self.acks.synced() {
            self.journal.flushed(sequence).await?;
            self.acks.note_synced(sequence);
        }
        Ok(())
    }

    /// Queues one record and applies it to the group in memory, in one step.
    fn record(&self, shard: ShardId, change: Change) -> Result<Sequence, JournalError> {
        let record = Record { shard, previous: self.last.get(), change };
        let sequence = self.journal.append(&record.encode())?;
        self.last.set(sequence);
        if let Change::Append(entries) = &record.change {
            self.unfolded.borrow_mut().add(sequence, entries.iter().map(entry_len_bytes).sum());
        }
        self.with_group(shard, |group| {
            let applied = group.apply(record.change, sequence);
            assert!(applied.is_ok(), "I-L1: shard {shard}: {applied:?}");
        });
        Ok(sequence)
    }

    /// Like [`Lane::record`], with the group's unwritten commit position in front, and waiting for room. `opened` is the
    /// number of the handle: the group may be rebuilt while this waits, and then the handle writes no more.
    async fn record_in_order(&self, shard: ShardId, opened: u64, change: Change) -> Result<Sequence, RaftError> {
        // Only entries are held back: without votes nobody is elected, nothing commits, and no room is ever freed.
        let held_at = if matches!(change, Change::Append(_)) { HOLD_FILL } else { 1.0 };
        let mut deadline = None;
        loop {
            self.check_handle(shard, opened)?;
            if self.journal.fill() < held_at {
                match self.try_record_in_order(shard, &change) {
                    Err(JournalError::Full { .. }) => {}
                    other => return Ok(other?),
                }
            }
            self.fold().await?;
            if self.journal.fill() >= held_at {
                // Counted from the end of the first fold: however long that took, its trim is under way now.
                let deadline = *deadline.get_or_insert_with(|| self.ports.now() + ROOM_WAIT_MAX);
                if self.ports.now() >= deadline {
                    return Err(JournalError::Full { journal: format!("Raft log of lane {}", self.lane) }.into());
                }
                self.ports.sleep(ROOM_POLL).await;
            }
        }
    }

    fn try_record_in_order(&self, shard: ShardId, change: &Change) -> Result<Sequence, JournalError> {
        let unwritten = self.with_group(shard, |group| if group.committed_unwritten { group.committed } else { None });
        if let Some(committed) = unwritten {
            self.record(shard, Change::Committed(committed))?;
            self.with_group(shard, |group| group.committed_unwritten = false);
        }
        let sequence = self.record(shard, change.clone())?;
        if self.journal.fill() > FOLD_FILL || self.unfolded.borrow().len_bytes() > FOLD_LEN_BYTES {
            self.fold_wanted.notify_one();
        }
        Ok(sequence)
    }

    /// Makes the group's row say that something was acknowledged; before the first acknowledgement only.
    async fn mark_live(&self, shard: ShardId) -> Result<(), RaftError> {
        if self.with_group(shard, |group| group.row.live) {
            return Ok(());
        }
        let _turn = self.folding.lock().await;
        let row = self.with_group(shard, |group| GroupRow { live: true, ..group.row.clone() });
        self.table.write(vec![row_write(TABLE_GROUPS, shard_key(shard), Some(row.encode()))]);
        self.table.checkpoint().await?;
        self.with_group(shard, |group| group.row.live = true);
        Ok(())
    }

    async fn mark_lost(&self, shard: ShardId, reason: &str) -> Result<(), RaftError> {
        let _turn = self.folding.lock().await;
        let row = self.with_group(shard, |group| {
            group.lost = Some(reason.to_owned());
            group.opened += 1;
            group.row.lost = true;
            group.row.clone()
        });
        self.table.write(vec![row_write(TABLE_GROUPS, shard_key(shard), Some(row.encode()))]);
        Ok(self.table.checkpoint().await?)
    }

    /// The log file holds nothing of the group but that it is there.
    async fn forget_rows(&self, shard: ShardId) -> Result<(), RaftError> {
        loop {
            let rows = self.table.scan(Scan::prefix(0, TABLE_ENTRIES, &shard_key(shard), ROWS_PER_READ)).await?;
            let row = self.with_group(shard, |group| group.row.clone());
            let mut writes = vec![row_write(TABLE_GROUPS, shard_key(shard), Some(row.encode()))];
            let is_last = rows.len() < ROWS_PER_READ;
            writes.extend(rows.into_iter().map(|(key, _)| row_write(TABLE_ENTRIES, key, None)));
            self.table.write(writes);
            if is_last {
                return Ok(self.table.checkpoint().await?);
            }
        }
    }

    /// The journal is another than the one that was folded: it counts behind `start`, and is flushed up to `reached`.
    async fn restart_sequences(&self, start: Sequence, reached: Sequence) -> Result<(), RaftError> {
        let _turn = self.folding.lock().await;
        self.table.write(vec![row_write(
            TABLE_LANE,
            Vec::new(),
            Some(record::encode_lane_row(LaneRow { folded: start, reached })),
        )]);
        self.table.checkpoint().await?;
        self.folded_sequence.set(start);
        // Folds trim behind it only, so a journal that came full would stay so.
        self.journal.trim(start);
        Ok(())
    }

    /// Whether the handle numbered `opened` may still be used.
    fn check_handle(&self, shard: ShardId, opened: u64) -> Result<(), RaftError> {
        self.with_group(shard, |group| match &group.lost {
            Some(reason) => Err(RaftError::Lost { shard, reason: reason.clone() }),
            None if group.opened != opened => {
                Err(RaftError::Stopped { shard, reason: "the group was rebuilt".to_owned() })
            }
            None => Ok(()),
        })
    }

    /// Reads entries of `from..to`, from the log file where they are not in memory.
    async fn read(&self, shard: ShardId, from: u64, to: u64) -> Result<Vec<Entry>, RaftError> {
        // One look at memory first: what is appended or truncated while the file is read is not seen.
        let (from, to, file_end, in_memory) = self.with_group(shard, |group| {
            let from = from.max(group.purged.map_or(0, |id| id.index + 1));
            let to = to.min(group.next_index()).max(from);
            (from, to, to.min(group.memory_start()), group.in_memory(from..to))
        });
        let mut entries = Vec::new();
        let mut at = from;
        while at < file_end {
            let rows = self
                .table
                .scan(Scan {
                    file: 0,
                    table: TABLE_ENTRIES,
                    from: Bound::Included(entry_key(shard, at)),
                    to: Bound::Excluded(entry_key(shard, file_end)),
                    limit: ROWS_PER_READ,
                    direction: Direction::Forward,
                })
                .await?;
            for (_, value) in &rows {
                entries.push(decode_entry_row(value)?);
            }
            at = match rows.is_empty() {
                true => file_end,
                false => entries.last().map_or(file_end, |entry| entry.log_id.index + 1),
            };
        }
        entries.extend(in_memory);
        self.check_run(shard, &entries, from, to)?;
        Ok(entries)
    }

    /// I-L10: the entries must be all of `from..to`; only what was purged meanwhile may be missing in front.
    fn check_run(&self, shard: ShardId, entries: &[Entry], from: u64, to: u64) -> Result<(), RaftError> {
        let purged = self.with_group(shard, |group| group.purged.map_or(0, |id| id.index + 1));
        let from = from.max(purged).min(to);
        let first = entries.first().map_or(to, |entry| entry.log_id.index);
        let end = entries.last().map_or(to, |entry| entry.log_id.index + 1);
        let holes = entries.windows(2).any(|pair| pair[0].log_id.index + 1 != pair[1].log_id.index);
        if holes || first > from || end != to {
            let reason = format!("entries {from} to {to} were asked for, {first} to {end} found");
            return Err(RaftError::Lost { shard, reason });
        }
        Ok(())
    }
}

/// Splits a batch into records and journals it.
async fn append_entries(
    lane: &Lane,
    shard: ShardId,
    opened: u64,
    entries: impl IntoIterator<Item = Entry>,
) -> Result<Option<Sequence>, RaftError> {
    let mut last = None;
    let mut batch: Vec<Entry> = Vec::new();
    let mut batch_len_bytes = 0;
    for entry in entries {
        let len_bytes = entry_len_bytes(&entry);
        assert!(len_bytes <= COMMAND_LEN_BYTES_MAX + 64, "propose refuses longer commands");
        let full = batch_len_bytes + len_bytes > record::APPEND_RECORD_LEN_BYTES
            || batch.len() == record::ENTRIES_PER_RECORD_MAX;
        if full && !batch.is_empty() {
            last = Some(lane.record_in_order(shard, opened, Change::Append(std::mem::take(&mut batch))).await?);
            batch_len_bytes = 0;
        }
        batch_len_bytes += len_bytes;
        batch.push(entry);
    }
    if !batch.is_empty() {
        last = Some(lane.record_in_order(shard, opened, Change::Append(batch)).await?);
    }
    Ok(last)
}

type Flushed = IOFlushed<crate::type_config::TypeConfig>;

fn as_io(error: impl Into<RaftError>) -> io::Error {
    error.into().into()
}

/// What openraft asks of a group's log at start.
#[derive(Clone, Copy, Debug)]
struct Ends {
    purged: Option<LogId>,
    last: Option<LogId>,
}
