//! One group's vote and log in memory: what the journal and the log file together say. Pure: no I/O here.

use super::record::{Change, GroupRow, entry_len_bytes};
use crate::type_config::{Entry, LogId, Vote};
use kiseki_types::ShardId;
use kiseki_types::journal::Sequence;
use std::collections::VecDeque;
use std::ops::Range;

/// Bytes of folded entries that a group keeps in memory for followers a little behind.
const CACHED_LEN_BYTES: usize = 256 * 1024;

/// An entry in memory.
#[derive(Clone, Debug)]
pub struct Held {
    /// The entry.
    pub entry: Entry,
    /// The journal record that holds it.
    pub sequence: Sequence,
}

/// A change that can't follow what the log holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Misfit(pub String);

/// One group's vote and log.
#[derive(Debug)]
pub struct GroupLog {
    /// The shard.
    pub shard: ShardId,
    /// The row as it was last written.
    pub row: GroupRow,
    /// Why the log is lost, when it is.
    pub lost: Option<String>,
    /// The last saved vote.
    pub vote: Option<Vote>,
    /// Highest entry known to be committed.
    pub committed: Option<LogId>,
    /// `committed` is not in the journal yet.
    pub committed_unwritten: bool,
    /// Highest purged entry.
    pub purged: Option<LogId>,
    /// Highest entry, purged or not.
    pub last: Option<LogId>,
    /// Highest entry of a snapshot that was announced.
    pub installing: Option<LogId>,
    /// Highest entry in the log file (or purged).
    pub folded: Option<LogId>,
    /// Handles opened before the latest one are dead.
    pub opened: u64,
    /// Entries in memory, consecutive, ending at `last`; at least all behind `folded`.
    entries: VecDeque<Held>,
    /// Bytes of entries in memory.
    entries_len_bytes: usize,
}

fn next(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}

impl GroupLog {
    /// The group as its row tells.
    #[must_use]
    pub fn from_row(shard: ShardId, row: GroupRow) -> GroupLog {
        GroupLog {
            shard,
            lost: row.lost.then(|| "found at an earlier start".to_owned()),
            vote: row.vote,
            committed: row.committed,
            committed_unwritten: false,
            purged: row.purged,
            last: row.folded.max(row.purged),
            installing: row.installing,
            folded: row.folded.max(row.purged),
            opened: 0,
            entries: VecDeque::new(),
            entries_len_bytes: 0,
            row,
        }
    }

    /// Index behind the highest entry.
    #[must_use]
    pub fn next_index(&self) -> u64 {
        next(self.last)
    }

    /// Lowest index in memory; `next_index` when nothing is.
    #[must_use]
    pub fn memory_start(&self) -> u64 {
        self.entries.front().map_or(self.next_index(), |held| held.entry.log_id.index)
    }

    /// Applies one change, live or replayed. A change that is replayed over a state that already has it leaves the
    /// state as it is once the whole journal is replayed.
    pub fn apply(&mut self, change: Change, sequence: Sequence) -> Result<(), Misfit> {
        match change {
            Change::Vote(vote) => self.vote = Some(vote),
            Change::Append(entries) => {
                for entry in entries {
                    self.append(entry, sequence)?;
                }
            }
            Change::TruncateAfter(id) => self.truncate_from(next(id)),
            Change::Purge(id) => self.purge(id),
            Change::Committed(id) => self.committed = self.committed.max(Some(id)),
            Change::Installing(id) => self.installing = self.installing.max(Some(id)),
            Change::Opened => {}
        }
        Ok(())
    }

    fn append(&mut self, entry: Entry, sequence: Sequence) -> Result<(), Misfit> {
        let index = entry.log_id.index;
        // Folded entries are committed: they never change (I-L3), so a replayed older version is stale.
        if index < next(self.folded) || index < next(self.purged) {
            return Ok(());
        }
        if index > self.next_index() {
            return Err(Misfit(format!("entry {index} follows entry {:?}", self.last.map(|id| id.index))));
        }
        self.truncate_from(index);
        self.entries_len_bytes += entry_len_bytes(&entry);
        self.last = Some(entry.log_id);
        self.entries.push_back(Held { entry, sequence });
        Ok(())
    }

    fn truncate_from(&mut self, index: u64) {
        let index = index.max(next(self.folded)).max(next(self.purged));
        while self.entries.back().is_some_and(|held| held.entry.log_id.index >= index) {
            let held = self.entries.pop_back().expect("there is a last one");
            self.entries_len_bytes -= entry_len_bytes(&held.entry);
        }
        if self.next_index() > index {
            self.last = self.entries.back().map(|held| held.entry.log_id).or(self.folded).or(self.purged);
        }
    }

    fn purge(&mut self, id: LogId) {
        self.purged = self.purged.max(Some(id));
        self.folded = self.folded.max(Some(id));
        self.last = if self.last.is_none_or(|last| last.index <= id.index) { Some(id) } else { self.last };
        while self.entries.front().is_some_and(|held| held.entry.log_id.index <= id.index) {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some(held) = self.entries.pop_front() {
            self.entries_len_bytes -= entry_len_bytes(&held.entry);
        }
    }

    /// The entries of `range` that are in memory.
    #[must_use]
    pub fn in_memory(&self, range: Range<u64>) -> Vec<Entry> {
        let start = self.memory_start();
        let skip = usize::try_from(range.start.saturating_sub(start)).unwrap_or(usize::MAX);
        let take = usize::try_from(range.end.saturating_sub(range.start.max(start))).unwrap_or(usize::MAX);
        self.entries.iter().skip(skip).take(take).map(|held| held.entry.clone()).collect()
    }

    /// Entries that are committed and not yet in the log file.
    pub fn to_fold(&self) -> impl Iterator<Item = &Entry> {
        let from = next(self.folded);
        let to = next(self.committed);
        self.entries.iter().map(|held| &held.entry).filter(move |entry| (from..to).contains(&entry.log_id.index))
    }

    /// Entries that are not committed as far as this replica knows: they stay in the journal.
    pub fn uncommitted(&self) -> impl Iterator<Item = &Held> {
        let from = next(self.committed).max(next(self.folded));
        self.entries.iter().filter(move |held| held.entry.log_id.index >= from)
    }

    /// The uncommitted entries now stand in the record `sequence` too.
    pub fn moved_forward(&mut self, indexes: Range<u64>, sequence: Sequence) {
        for held in self.entries.iter_mut().filter(|held| indexes.contains(&held.entry.log_id.index)) {
            held.sequence = sequence;
        }
    }

    /// The row as it should be written now, with everything committed folded.
    #[must_use]
    pub fn row_now(&self) -> GroupRow {
        let folded = self.to_fold().last().map(|entry| entry.log_id).or(self.folded);
        GroupRow {
            voter: self.row.voter,
            live: self.row.live,
            lost: self.row.lost,
            vote: self.vote,
            committed: self.committed,
            purged: self.purged,
            folded,
            installing: self.installing,
        }
    }

    /// The log file holds `row` durably, and the entries up to `row.folded`.
    pub fn fold_done(&mut self, row: GroupRow) {
        self.folded = self.folded.max(row.folded);
        self.row = GroupRow { live: self.row.live, lost: self.row.lost, ..row };
        while self.entries_len_bytes > CACHED_LEN_BYTES
            && self.entries.front().is_some_and(|held| held.entry.log_id.index < next(self.folded))
        {
            self.pop_front();
        }
    }
}
