//! One group's vote and log in memory: what the journal and the log file together say. Pure: no I/O here.

use super::record::{Change, GroupRow, entry_len_bytes};
use crate::type_config::{Entry, LogId, Vote, VoterId};
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
    /// Highest entry that a replay met before the ones in front of it: see [`GroupLog::replay`].
    ahead: Option<u64>,
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
            ahead: None,
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
            Change::Begun(voter) => self.begin_anew(voter),
        }
        Ok(())
    }

    /// What was before is of another voter. A row that is this voter's already says what it did since.
    fn begin_anew(&mut self, voter: VoterId) {
        let row = if self.row.voter == voter { self.row.clone() } else { GroupRow { voter, ..GroupRow::default() } };
        *self = GroupLog { opened: self.opened + 1, ..GroupLog::from_row(self.shard, row) };
    }

    /// Applies one change of a replay.
    ///
    /// A fold copies stuck entries to the journal's end, and the trim may then fall between their old records: an
    /// entry's old record can stand in front of the copy of the entry before it. Such an entry is passed over here;
    /// the copies bring it again, in order. One that is never brought again is lost: see [`GroupLog::missing`].
    pub fn replay(&mut self, change: Change, sequence: Sequence) -> Result<(), Misfit> {
        match change {
            Change::Append(entries) => {
                for entry in entries {
                    let index = entry.log_id.index;
                    if index > self.next_index() && index >= next(self.folded) {
                        self.ahead = self.ahead.max(Some(index));
                    } else {
                        self.append(entry, sequence)?;
                    }
                }
                Ok(())
            }
            Change::TruncateAfter(id) => {
                self.ahead = self.ahead.filter(|ahead| *ahead < next(id));
                self.apply(Change::TruncateAfter(id), sequence)
            }
            other => self.apply(other, sequence),
        }
    }

    /// After a replay: an entry that was met, while the ones before it were not (I-L10).
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let ahead = self.ahead.filter(|ahead| *ahead >= self.next_index())?;
        Some(format!("entry {ahead} follows entry {:?}", self.last.map(|id| id.index)))
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
        // The same log id is the same entry: a copy that a fold made. What follows it stays, and so does the older
        // record's number: the records of a group must be trimmed in the order of their entries.
        if self.held(index).is_some_and(|held| held.entry.log_id == entry.log_id) {
            return Ok(());
        }
        self.truncate_from(index);
        self.entries_len_bytes += entry_len_bytes(&entry);
        self.last = Some(entry.log_id);
        self.entries.push_back(Held { entry, sequence });
        Ok(())
    }

    /// The record that holds an entry; `None`: it is in the log file, or nowhere.
    #[must_use]
    pub fn record_of(&self, index: u64) -> Option<Sequence> {
        self.held(index).map(|held| held.sequence)
    }

    fn held(&self, index: u64) -> Option<&Held> {
        self.entries.get(usize::try_from(index.checked_sub(self.memory_start())?).ok()?)
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

    /// Entries that are committed and not yet in the log file, of records up to `upto`.
    pub fn to_fold(&self, upto: Sequence) -> impl Iterator<Item = &Entry> {
        let from = next(self.folded);
        let to = next(self.committed);
        // Records follow each other as their entries do.
        let older = self.entries.iter().take_while(move |held| held.sequence <= upto);
        older.map(|held| &held.entry).filter(move |entry| (from..to).contains(&entry.log_id.index))
    }

    /// The first record that is needed behind `folded`, where an entry stands in one.
    #[must_use]
    pub fn first_needed(&self, folded: Option<LogId>) -> Option<Sequence> {
        self.entries.iter().find(|held| held.entry.log_id.index >= next(folded)).map(|held| held.sequence)
    }

    /// Entries that are not committed as far as this replica knows: they stay in the journal.
    pub fn uncommitted(&self) -> impl Iterator<Item = &Held> {
        let from = next(self.committed).max(next(self.folded));
        self.entries.iter().filter(move |held| held.entry.log_id.index >= from)
    }

    /// All uncommitted entries stand in newer records too: these indexes in that record.
    pub fn moved_forward(&mut self, copies: &[(Range<u64>, Sequence)]) {
        for held in &mut self.entries {
            let copy = copies.iter().find(|(indexes, _)| indexes.contains(&held.entry.log_id.index));
            held.sequence = copy.map_or(held.sequence, |(_, sequence)| *sequence);
        }
    }

    /// The row as it should be written now, with everything committed folded that records up to `upto` hold.
    #[must_use]
    pub fn row_now(&self, upto: Sequence) -> GroupRow {
        let folded = self.to_fold(upto).last().map(|entry| entry.log_id).or(self.folded);
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
    }

    /// Lets entries that are in the log file leave memory, at most so many, but for what followers a little behind may ask for.
    /// Whether there are more.
    pub fn forget_folded(&mut self, most: usize) -> bool {
        for _ in 0..most {
            let folded = self.entries.front().is_some_and(|held| held.entry.log_id.index < next(self.folded));
            if !folded || self.entries_len_bytes <= CACHED_LEN_BYTES {
                return false;
            }
            self.pop_front();
        }
        true
    }
}

/// Replays changes and folds what they commit, for `crate::fuzzing`: how many of them fitted.
pub(crate) fn replay_group(shard: ShardId, row: GroupRow, changes: impl Iterator<Item = Change>) -> usize {
    let mut group = GroupLog::from_row(shard, row);
    let mut fitting = 0;
    for (number, change) in changes.enumerate() {
        if group.replay(change, number as u64 + 1).is_err() {
            break;
        }
        fitting += 1;
    }
    let _missing = group.missing();
    let row = group.row_now(Sequence::MAX);
    assert!(
        group.uncommitted().all(|held| held.entry.log_id.index >= next(row.folded)),
        "folded entries are committed"
    );
    group.fold_done(row);
    while group.forget_folded(64) {}
    assert_eq!(group.in_memory(0..u64::MAX).len(), group.entries.len(), "memory holds consecutive entries");
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::type_config::{Command, log_id};
    use openraft::EntryPayload;

    fn entry(term: u64, index: u64) -> Entry {
        Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(Command(vec![7; 10].into())) }
    }

    fn append(term: u64, indexes: Range<u64>) -> Change {
        Change::Append(indexes.map(|index| entry(term, index)).collect())
    }

    fn group() -> GroupLog {
        GroupLog::from_row(ShardId(1024), GroupRow::default())
    }

    fn ids(group: &GroupLog) -> Vec<LogId> {
        group.in_memory(0..u64::MAX).iter().map(|entry| entry.log_id).collect()
    }

    #[test]
    fn an_index_ends_older_entries_from_it_on() {
        let mut group = group();
        group.apply(append(1, 0..5), 1).expect("fits");
        group.apply(append(2, 3..4), 2).expect("fits");
        assert_eq!(ids(&group), [log_id(1, 0), log_id(1, 1), log_id(1, 2), log_id(2, 3)]);
        assert_eq!(group.last, Some(log_id(2, 3)));
        assert!(group.apply(append(2, 6..7), 3).is_err(), "a hole");
    }

    #[test]
    fn replaying_over_a_folded_state_changes_nothing() {
        let changes = [
            append(1, 0..4),
            Change::Vote(Vote::new(2, 1)),
            Change::TruncateAfter(Some(log_id(1, 1))),
            append(2, 2..6),
            Change::Committed(log_id(2, 4)),
            Change::Purge(log_id(1, 1)),
            append(2, 6..8),
        ];
        let mut live = group();
        for (sequence, change) in changes.iter().enumerate() {
            live.apply(change.clone(), sequence as u64 + 1).expect("fits");
        }
        // The log file is as of any point of the run; the journal is replayed from any earlier point.
        for folded_at in 0..=changes.len() {
            let mut before = group();
            for (sequence, change) in changes[..folded_at].iter().enumerate() {
                before.apply(change.clone(), sequence as u64 + 1).expect("fits");
            }
            // A fold takes everything up to now, or what stands in the older records.
            for upto in 0..=folded_at as u64 {
                let row = before.row_now(upto);
                let needed = before.first_needed(row.folded).unwrap_or(Sequence::MAX).min(upto + 1);
                for from in 1..=needed {
                    let at = format!("folded at {folded_at} up to {upto}, replayed from {from}");
                    let mut again = GroupLog::from_row(ShardId(1024), row.clone());
                    for (number, change) in changes.iter().enumerate().skip(from as usize - 1) {
                        let applied = again.replay(change.clone(), number as u64 + 1);
                        assert!(applied.is_ok(), "{at}: {applied:?}");
                    }
                    assert_eq!(
                        (again.last, again.vote, again.committed, again.purged, again.missing()),
                        (live.last, live.vote, live.committed, live.purged, None),
                        "{at}"
                    );
                    let from_memory = ids(&again);
                    assert!(ids(&live).ends_with(&from_memory), "{at}");
                    assert!(again.memory_start() <= next(row.folded).max(next(again.purged)), "{at}: nothing between");
                }
            }
        }
    }

    #[test]
    fn a_copy_of_some_entries_does_not_end_those_behind_them() {
        let mut group = group();
        group.apply(append(1, 0..6), 1).expect("fits");
        group.apply(append(1, 0..3), 2).expect("fits");
        assert_eq!(group.last, Some(log_id(1, 5)));
        assert_eq!(group.uncommitted().map(|held| held.sequence).min(), Some(1));
    }

    #[test]
    fn i_l10_a_trim_between_old_records_of_copied_entries_loses_nothing_and_a_real_hole_is_seen() {
        // Records 1 to 3 hold an entry each, record 4 copies of all; the trim fell behind record 1.
        let changes = [append(1, 0..1), append(1, 1..2), append(1, 2..3), append(1, 0..3), append(1, 3..4)];
        for first in 0..=3 {
            let mut group = group();
            for (number, change) in changes.iter().enumerate().skip(first) {
                group.replay(change.clone(), number as u64 + 1).expect("fits");
            }
            assert_eq!(group.missing(), None, "from record {}", first + 1);
            assert_eq!(group.last, Some(log_id(1, 3)));
        }
        let mut hole = group();
        hole.replay(append(1, 0..1), 1).expect("fits");
        hole.replay(append(1, 2..3), 3).expect("passed over for now");
        assert!(hole.missing().is_some(), "I-L10: record 2 is lost");
        hole.replay(Change::TruncateAfter(Some(log_id(1, 0))), 4).expect("fits");
        assert_eq!(hole.missing(), None, "what was truncated is missed by nobody");
    }

    #[test]
    fn i_l10_what_was_before_a_new_beginning_is_of_another_voter() {
        let changes = [append(1, 0..4), Change::Vote(Vote::new(2, 1)), Change::Begun(9), Change::Vote(Vote::new(5, 3))];
        // The row is as of before the new beginning, right behind it, or of later, when it is live again.
        let lost = GroupRow { voter: 1, live: true, lost: true, vote: Some(Vote::new(4, 4)), ..GroupRow::default() };
        let begun = GroupRow { voter: 9, ..GroupRow::default() };
        let later = GroupRow { live: true, vote: Some(Vote::new(5, 3)), ..begun.clone() };
        for row in [lost, begun, later] {
            let mut group = GroupLog::from_row(ShardId(1024), row.clone());
            for (number, change) in changes.iter().enumerate() {
                group.replay(change.clone(), number as u64 + 1).expect("fits");
            }
            assert_eq!((group.row.voter, group.row.live), (9, row.voter == 9 && row.live), "{row:?}");
            assert_eq!((group.vote, group.last, group.lost), (Some(Vote::new(5, 3)), None, None), "{row:?}");
        }
    }

    #[test]
    fn a_purge_beyond_the_log_moves_its_end() {
        let mut group = group();
        group.apply(append(1, 0..3), 1).expect("fits");
        group.apply(Change::Purge(log_id(4, 9)), 2).expect("fits");
        assert_eq!((group.last, group.next_index()), (Some(log_id(4, 9)), 10));
        group.apply(append(5, 10..11), 3).expect("fits");
        assert_eq!(ids(&group), [log_id(5, 10)]);
    }
}
