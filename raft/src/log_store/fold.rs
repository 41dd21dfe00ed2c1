//! Folding: what is committed goes from the journal into the log file, then the journal's front is free again.
//!
//! Order (each step needs the one before): stuck uncommitted entries are appended once more at the end; the groups'
//! state is collected; the journal is flushed up to there, so that the log file is never ahead of it; the rows are
//! written and made durable; the journal is trimmed.
//!
//! A fold moves tens of thousands of entries, and the core has others to serve: rows are made and written in slices.
//! Each slice leaves the log file in a state that a start can go on from, since the file may become durable behind any of
//! them: entries come with the group's row that counts them, and purged rows go before the row that says so, for the
//! journal still holds that purge.

use super::record::{
    Change, ENTRIES_PER_RECORD_MAX, GroupRow, LaneRow, Record, encode_entry_row, encode_lane_row, entry_len_bytes,
};
use super::{FOLD_FILL, Lane, TABLE_ENTRIES, TABLE_GROUPS, TABLE_LANE, entry_key, row_write, shard_key};
use crate::error::RaftError;
use crate::type_config::Entry;
use kiseki_types::ShardId;
use kiseki_types::journal::{JournalError, Sequence};
use kiseki_types::runtime::RuntimeExt;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tracing::warn;

/// A fold that failed is not tried again at once.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Below this fill of the journal nothing is copied forward: the trim stops in front of what is stuck.
const COPY_FORWARD_FILL: f64 = 0.25;

/// Rows that are written, and entries that leave memory, before other tasks of the core get a turn.
const ROWS_PER_TURN: usize = 128;

/// Indexes of entries and the newer record that holds them.
type Copies = Vec<(Range<u64>, Sequence)>;

/// What a fold does to one group's rows.
struct GroupFold {
    shard: ShardId,
    /// The row as the log file has it.
    before: GroupRow,
    /// The row when the fold is done.
    after: GroupRow,
    /// Entries that go into the log file, in order.
    entries: Vec<Entry>,
}

/// The background task of a lane: folds when asked, ends with the lane.
pub async fn run(lane: Weak<Lane>, wanted: Rc<Notify>) {
    loop {
        wanted.notified().await;
        let Some(lane) = lane.upgrade() else { return };
        if let Err(error) = lane.fold_older().await {
            warn!(lane = %lane.lane, %error, "Raft log not folded; the journal keeps what it holds");
            lane.ports.sleep(PAUSE_AFTER_FAILURE).await;
        }
    }
}

impl Lane {
    /// Folds everything committed; a second fold waits for the first.
    pub async fn fold(&self) -> Result<(), RaftError> {
        self.fold_records(|lane| lane.last.get()).await
    }

    /// Folds what is committed of the older half of the entries, or of all of them when the journal runs out of room.
    async fn fold_older(&self) -> Result<(), RaftError> {
        self.fold_records(|lane| match lane.journal.fill() > FOLD_FILL {
            true => lane.last.get(),
            false => lane.unfolded.borrow().older_half(),
        })
        .await
    }

    async fn fold_records(&self, upto: impl Fn(&Lane) -> Sequence) -> Result<(), RaftError> {
        let _turn = self.folding.lock().await;
        self.copy_stuck_forward()?;
        let upto = upto(self);
        let (folds, trim_to) = self.collect(upto).await;
        self.unfolded.borrow_mut().fold(upto);
        let reached = self.last.get();
        self.flushed(reached).await?;
        for fold in &folds {
            self.write_rows(fold).await;
        }
        // The last record stays: that a journal holds it shows at a start that it is this one (I-L10).
        let trim_to = trim_to.min(reached.saturating_sub(1)).max(self.folded_sequence.get());
        let lane_row = LaneRow { folded: trim_to, reached };
        self.table.write(vec![row_write(TABLE_LANE, Vec::new(), Some(encode_lane_row(lane_row)))]);
        self.table.checkpoint().await?;
        for GroupFold { shard, after, .. } in folds {
            self.with_group(shard, |group| group.fold_done(after));
            while self.with_group(shard, |group| group.forget_folded(ROWS_PER_TURN)) {
                self.ports.yield_now().await;
            }
        }
        if trim_to > self.folded_sequence.get() {
            self.folded_sequence.set(trim_to);
            self.journal.trim(trim_to);
        }
        Ok(())
    }

    /// Appends uncommitted entries once more whose records stand in the older half of the journal: a group without a
    /// majority must not keep the others' space.
    fn copy_stuck_forward(&self) -> Result<(), RaftError> {
        if self.journal.fill() < COPY_FORWARD_FILL {
            return Ok(());
        }
        let middle = self.folded_sequence.get() + (self.last.get() - self.folded_sequence.get()) / 2;
        let stuck: Vec<(ShardId, Vec<Entry>)> = self
            .groups
            .borrow()
            .values()
            .filter(|group| group.lost.is_none())
            .filter(|group| group.uncommitted().next().is_some_and(|held| held.sequence <= middle))
            .map(|group| (group.shard, group.uncommitted().map(|held| held.entry.clone()).collect()))
            .collect();
        for (shard, entries) in stuck {
            let Some(copies) = self.copy_forward(shard, entries)? else { return Ok(()) };
            self.with_group(shard, |group| group.moved_forward(&copies));
        }
        Ok(())
    }

    /// Appends the entries once more; says which indexes stand in which record now. `None`: there is no room for all
    /// of them, so the old records stay and the trim stops in front of them.
    fn copy_forward(&self, shard: ShardId, entries: Vec<Entry>) -> Result<Option<Copies>, RaftError> {
        let mut copies = Copies::new();
        for batch in batches(entries) {
            let (Some(first), Some(last)) = (batch.first(), batch.last()) else { continue };
            let indexes = first.log_id.index..last.log_id.index + 1;
            let record = Record { shard, previous: self.last.get(), change: Change::Append(batch) };
            match self.journal.append(&record.encode()) {
                Ok(sequence) => {
                    self.last.set(sequence);
                    copies.push((indexes, sequence));
                }
                Err(JournalError::Full { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(copies))
    }

    /// All that brings the log file up to date as far as records up to `upto` go, and how far the journal is free once that
    /// is durable.
    async fn collect(&self, upto: Sequence) -> (Vec<GroupFold>, Sequence) {
        let mut trim_to = upto;
        let mut folds = Vec::new();
        let shards: Vec<ShardId> = self.groups.borrow().keys().copied().collect();
        for shard in shards {
            let needed = self.with_group(shard, |group| {
                if group.lost.is_some() {
                    return None;
                }
                let after = group.row_now(upto);
                let needed = group.first_needed(after.folded);
                if after != group.row {
                    let entries = group.to_fold(upto).cloned().collect();
                    folds.push(GroupFold { shard, before: group.row.clone(), after, entries });
                }
                needed
            });
            trim_to = trim_to.min(needed.map_or(Sequence::MAX, |needed| needed - 1));
            self.ports.yield_now().await;
        }
        trim_to = trim_to.max(self.folded_sequence.get());
        (folds, trim_to)
    }

    async fn write_rows(&self, fold: &GroupFold) {
        let GroupFold { shard, before, after, entries } = fold;
        let group_row = |row: &GroupRow| row_write(TABLE_GROUPS, shard_key(*shard), Some(row.encode()));
        for slice in entries.chunks(ROWS_PER_TURN) {
            let entry_row = |entry: &Entry| {
                row_write(TABLE_ENTRIES, entry_key(*shard, entry.log_id.index), Some(encode_entry_row(entry)))
            };
            let folded = slice.last().map(|entry| entry.log_id);
            let row = GroupRow { folded, committed: before.committed.max(folded), ..before.clone() };
            self.table.write(slice.iter().map(entry_row).chain([group_row(&row)]).collect());
            self.ports.yield_now().await;
        }
        // Rows in the file lie behind what was purged and up to what was folded, as of the last fold.
        let purged_to = after.purged.map_or(0, |id| id.index + 1);
        let mut at = before.purged.map_or(0, |id| id.index + 1);
        let end = before.folded.map_or(0, |id| id.index + 1).min(purged_to);
        while at < end {
            let to = end.min(at + ROWS_PER_TURN as u64);
            self.table.write((at..to).map(|index| row_write(TABLE_ENTRIES, entry_key(*shard, index), None)).collect());
            at = to;
            self.ports.yield_now().await;
        }
        self.table.write(vec![group_row(after)]);
    }
}

fn batches(entries: Vec<Entry>) -> Vec<Vec<Entry>> {
    let mut batches: Vec<Vec<Entry>> = Vec::new();
    let mut len_bytes = 0;
    for entry in entries {
        let entry_len = entry_len_bytes(&entry);
        let fits = len_bytes + entry_len <= super::record::APPEND_RECORD_LEN_BYTES;
        match batches.last_mut() {
            Some(batch) if fits && batch.len() < ENTRIES_PER_RECORD_MAX => {
                batch.push(entry);
                len_bytes += entry_len;
            }
            _ => {
                batches.push(vec![entry]);
                len_bytes = entry_len;
            }
        }
    }
    batches
}
