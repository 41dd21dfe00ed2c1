//! Folding: what is committed goes from the journal into the log file, then the journal's front is free again.
//!
//! Order (each step needs the one before): stuck uncommitted entries are appended once more at the end; the groups'
//! state is collected; the journal is flushed up to there, so that the log file is never ahead of it; the rows are
//! written and made durable; the journal is trimmed.

use super::record::{
    Change, ENTRIES_PER_RECORD_MAX, GroupRow, LaneRow, Record, encode_entry_row, encode_lane_row, entry_len_bytes,
};
use super::{Lane, TABLE_ENTRIES, TABLE_GROUPS, TABLE_LANE, entry_key, row_write, shard_key};
use crate::error::RaftError;
use crate::type_config::Entry;
use kiseki_types::ShardId;
use kiseki_types::journal::{JournalError, Sequence};
use kiseki_types::runtime::RuntimeExt;
use kiseki_types::table::TableWrite;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tracing::warn;

/// A fold that failed is not tried again at once.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Below this fill of the journal nothing is copied forward: the trim stops in front of what is stuck.
const COPY_FORWARD_FILL: f64 = 0.25;

/// Indexes of entries and the newer record that holds them.
type Copies = Vec<(Range<u64>, Sequence)>;

/// The background task of a lane: folds when asked, ends with the lane.
pub async fn run(lane: Weak<Lane>, wanted: Rc<Notify>) {
    loop {
        wanted.notified().await;
        let Some(lane) = lane.upgrade() else { return };
        if let Err(error) = lane.fold().await {
            warn!(lane = %lane.lane, %error, "Raft log not folded; the journal keeps what it holds");
            lane.ports.sleep(PAUSE_AFTER_FAILURE).await;
        }
    }
}

impl Lane {
    /// One fold; a second one waits for the first.
    pub async fn fold(&self) -> Result<(), RaftError> {
        let _turn = self.folding.lock().await;
        self.copy_stuck_forward()?;
        let (mut writes, rows, trim_to) = self.collect().await;
        self.unfolded_len_bytes.set(0);
        let reached = self.last.get();
        self.flushed(reached).await?;
        // The last record stays: that a journal holds it shows at a start that it is this one (I-L10).
        let trim_to = trim_to.min(reached.saturating_sub(1)).max(self.folded_sequence.get());
        let lane_row = LaneRow { folded: trim_to, reached };
        writes.push(row_write(TABLE_LANE, Vec::new(), Some(encode_lane_row(lane_row))));
        self.table.write(writes);
        self.table.checkpoint().await?;
        for (shard, row) in rows {
            self.with_group(shard, |group| group.fold_done(row));
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

    /// All rows that bring the log file up to date, and how far the journal is free once they are durable.
    async fn collect(&self) -> (Vec<TableWrite>, Vec<(ShardId, GroupRow)>, Sequence) {
        let mut trim_to = self.last.get();
        let mut writes = Vec::new();
        let mut rows = Vec::new();
        let shards: Vec<ShardId> = self.groups.borrow().keys().copied().collect();
        for shard in shards {
            let needed = self.with_group(shard, |group| {
                if group.lost.is_some() {
                    return None;
                }
                let row = group.row_now();
                if row != group.row {
                    writes.extend(group_writes(shard, group.to_fold(), &group.row, &row));
                    rows.push((shard, row));
                }
                group.uncommitted().map(|held| held.sequence).min()
            });
            trim_to = trim_to.min(needed.map_or(Sequence::MAX, |needed| needed - 1));
            self.ports.yield_now().await;
        }
        trim_to = trim_to.max(self.folded_sequence.get());
        (writes, rows, trim_to)
    }
}

fn group_writes<'a>(
    shard: ShardId,
    entries: impl Iterator<Item = &'a Entry>,
    before: &GroupRow,
    after: &GroupRow,
) -> Vec<TableWrite> {
    let mut writes: Vec<TableWrite> = entries
        .map(|entry| row_write(TABLE_ENTRIES, entry_key(shard, entry.log_id.index), Some(encode_entry_row(entry))))
        .collect();
    // Rows in the file lie behind what was purged and up to what was folded, as of the last fold.
    let purged_to = after.purged.map_or(0, |id| id.index + 1);
    let first = before.purged.map_or(0, |id| id.index + 1);
    let end = before.folded.map_or(0, |id| id.index + 1).min(purged_to);
    writes.extend((first..end).map(|index| row_write(TABLE_ENTRIES, entry_key(shard, index), None)));
    writes.push(row_write(TABLE_GROUPS, shard_key(shard), Some(after.encode())));
    writes
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
