//! openraft's storage traits on one group's log.

use super::record::{Change, entry_len_bytes};
use super::{Ends, Flushed, Lane, append_entries, as_io};
use crate::error::RaftError;
use crate::table_set::TableSet;
use crate::type_config::{Entry, LogId, TypeConfig, Vote, VoterId};
use futures::stream::{self, Stream};
use kiseki_types::ShardId;
use openraft::OptionalSend;
use openraft::storage::{LogState, RaftLogReader, RaftLogStorage};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::rc::Rc;

/// Entries read at a time.
const ENTRIES_PER_READ: u64 = 64;

/// Bytes of entries sent to a peer at a time; at least one entry.
const READ_LEN_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The storage of one group. A clone is another handle on the same log.
#[derive(Clone)]
pub struct GroupLogStore {
    lane: Rc<Lane>,
    shard: ShardId,
    voter: VoterId,
    opened: u64,
    tables: TableSet,
}

impl GroupLogStore {
    pub(super) fn new(lane: Rc<Lane>, shard: ShardId, voter: VoterId, opened: u64, tables: TableSet) -> Self {
        GroupLogStore { lane, shard, voter, opened, tables }
    }

    /// The voter that this replica votes as.
    #[must_use]
    pub fn voter(&self) -> VoterId {
        self.voter
    }

    /// Whether a vote was ever saved.
    #[must_use]
    pub fn has_voted(&self) -> bool {
        self.lane.with_group(self.shard, |group| group.vote.is_some())
    }

    fn ends(&self) -> Ends {
        self.lane.with_group(self.shard, |group| Ends { purged: group.purged, last: group.last })
    }

    fn check(&self) -> Result<(), io::Error> {
        self.lane.check_handle(self.shard, self.opened).map_err(as_io)
    }

    /// I-L10: the tables hold entries that the log lost? Then the log's tail is gone. A snapshot that was announced
    /// and installed explains it. Or the log begins behind what the tables hold? Then the tables are gone, or old ones.
    pub fn check_against_tables(&self, applied: Option<LogId>) -> Result<(), RaftError> {
        self.lane.with_group(self.shard, |group| {
            let known = group.last.max(group.installing).max(group.committed).map_or(0, |id| id.index + 1);
            let needed = applied.map_or(0, |id| id.index + 1);
            if needed > known && group.row.live {
                let reason = format!("the tables hold {needed} entries, the log only {known}");
                return Err(RaftError::Lost { shard: self.shard, reason });
            }
            // The entries between are nowhere here; a leader fills the replica again, under another number.
            let purged = group.purged.map_or(0, |id| id.index + 1);
            if needed < purged && group.row.live {
                let reason = format!("the tables hold {needed} entries, the log begins behind {purged}");
                return Err(RaftError::Lost { shard: self.shard, reason });
            }
            Ok(())
        })
    }

    /// Waits until the entry is flushed here. Others may have committed it before that: tables that hold more than the
    /// log would look like a log that was lost (I-L10).
    pub async fn entry_flushed(&self, index: u64) -> Result<(), RaftError> {
        let Some(sequence) = self.lane.with_group(self.shard, |group| group.record_of(index)) else { return Ok(()) };
        // The append's own flush is on its way, as a rule.
        match self.lane.acks.answered(sequence).await {
            Some(flushed) => Ok(flushed?),
            None => Ok(self.lane.flushed(sequence).await?),
        }
    }

    /// Announces, durably, that a snapshot up to `last` is about to replace the tables.
    pub async fn announce_snapshot(&self, last: LogId) -> Result<(), RaftError> {
        self.check().map_err(|error| RaftError::Stopped { shard: self.shard, reason: error.to_string() })?;
        let sequence = self.lane.record_in_order(self.shard, self.opened, Change::Installing(last)).await?;
        self.lane.flushed(sequence).await?;
        self.lane.mark_live(self.shard).await
    }

    fn bounds(&self, range: &impl RangeBounds<u64>) -> (u64, u64) {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(from) => from.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(to) => to.saturating_add(1),
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        (from, to)
    }
}

impl RaftLogReader<TypeConfig> for GroupLogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        self.check()?;
        let (from, to) = self.bounds(&range);
        self.lane.read(self.shard, from, to).await.map_err(as_io)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.check()?;
        Ok(self.lane.with_group(self.shard, |group| group.vote))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let (mut entries, mut len_bytes): (Vec<Entry>, usize) = (Vec::new(), 0);
        // In steps: entries of the log file are read before their lengths are known.
        let mut at = start;
        while at < end {
            let read = self.try_get_log_entries(at..end.min(at.saturating_add(ENTRIES_PER_READ))).await?;
            at = read.last().map_or(end, |entry| entry.log_id.index + 1);
            for entry in read {
                len_bytes += entry_len_bytes(&entry);
                if len_bytes > READ_LEN_BYTES_MAX && !entries.is_empty() {
                    return Ok(entries);
                }
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = self.bounds(&range);
        let to = to.min(self.ends().last.map_or(0, |id| id.index + 1));
        let reader = self.clone();
        let batches = stream::unfold(Some(from), move |at| {
            let mut reader = reader.clone();
            async move {
                let at = at.filter(|at| *at < to)?;
                let end = to.min(at.saturating_add(ENTRIES_PER_READ));
                match reader.try_get_log_entries(at..end).await {
                    Ok(entries) => {
                        let next = entries.last().map(|entry| entry.log_id.index + 1);
                        Some((entries.into_iter().map(Ok).collect::<Vec<_>>(), next))
                    }
                    Err(error) => Some((vec![Err(error)], None)),
                }
            }
        });
        Box::pin(futures::StreamExt::flat_map(batches, stream::iter))
    }
}

impl RaftLogStorage<TypeConfig> for GroupLogStore {
    type LogReader = GroupLogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        self.check()?;
        let ends = self.ends();
        Ok(LogState { last_purged_log_id: ends.purged, last_log_id: ends.last })
    }

    async fn get_log_reader(&mut self) -> GroupLogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.check()?;
        let sequence = self.lane.record_in_order(self.shard, self.opened, Change::Vote(*vote)).await.map_err(as_io)?;
        self.lane.flushed(sequence).await.map_err(as_io)?;
        self.lane.mark_live(self.shard).await.map_err(as_io)
    }

    /// Kept in memory and journaled in front of the group's next record or with the next fold: losing it costs a
    /// longer replay, a record of its own would cost a block for each commit.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.check()?;
        self.lane.with_group(self.shard, |group| {
            group.committed_unwritten |= committed > group.committed;
            group.committed = group.committed.max(committed);
        });
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        self.check()?;
        // Entries behind the log's end are known to be committed from a snapshot alone.
        Ok(self.lane.with_group(self.shard, |group| group.committed.min(group.last)))
    }

    async fn append<I>(&mut self, entries: I, callback: Flushed) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.check()?;
        let last = append_entries(&self.lane, self.shard, self.opened, entries).await.map_err(as_io)?;
        let sequence = last.unwrap_or(self.lane.last.get());
        if !self.lane.with_group(self.shard, |group| group.row.live) {
            self.lane.flushed(sequence).await.map_err(as_io)?;
            self.lane.mark_live(self.shard).await.map_err(as_io)?;
        }
        self.lane.acks.push(&self.lane.journal, sequence, callback);
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.check()?;
        self.lane.record_in_order(self.shard, self.opened, Change::TruncateAfter(last_log_id)).await.map_err(as_io)?;
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.check()?;
        // The tables are the only other holder of what is purged: never past what they hold durably.
        let durable = self.tables.durable_position();
        assert!(log_id.index < durable, "I-L4: shard {}: purging {log_id}, tables durable to {durable}", self.shard);
        self.lane.record_in_order(self.shard, self.opened, Change::Purge(log_id)).await.map_err(as_io)?;
        Ok(())
    }
}
