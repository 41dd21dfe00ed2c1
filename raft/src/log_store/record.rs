//! Records of the lane's journal and rows of its log file; the layouts are told in docs/formats/raft-log.md.

use crate::type_config::{Command, Entry, LogId, Membership, StoredMembership, Vote, VoterId, log_id, term_of};
use kiseki_types::ShardId;
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::journal::Sequence;
use kiseki_types::limits::{COMMAND_LEN_BYTES_MAX, JOURNAL_RECORD_LEN_BYTES_MAX};
use openraft::{EmptyNode, EntryPayload};
use std::collections::{BTreeMap, BTreeSet};

/// Version of the journal records.
pub const RECORD_VERSION: u8 = 1;

/// Version of the rows in the log file.
pub const ROW_VERSION: u8 = 1;

/// Most entries in one append record.
pub const ENTRIES_PER_RECORD_MAX: usize = 1024;

/// An append record is closed when it grows over this, so that one batch does not become one giant record.
pub const APPEND_RECORD_LEN_BYTES: usize = 256 * 1024;

/// Most configurations in a membership (two while it changes).
pub const CONFIGS_MAX: usize = 8;

/// Most members of a group.
pub const MEMBERS_MAX: usize = 64;

/// Bytes that a record needs in front of its entries, about: for room made ahead.
const RECORD_HEAD_LEN_BYTES: usize = 64;

/// Bytes that a row needs beside its entry.
const ROW_FRAME_LEN_BYTES: usize = 8;

/// Bytes of the membership of a group with a few members, about: for room made ahead.
const MEMBERSHIP_LEN_BYTES: usize = 128;

/// Bytes of the applied state beside the membership.
const APPLIED_LEN_BYTES: usize = 21;

/// Bytes that an append record needs beside its last command.
const RECORD_OVERHEAD_BYTES: usize = 256;

const _: () = assert!(
    COMMAND_LEN_BYTES_MAX + APPEND_RECORD_LEN_BYTES / 8 + RECORD_OVERHEAD_BYTES <= JOURNAL_RECORD_LEN_BYTES_MAX
);

/// What happened to one group's log.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A vote was cast or learned.
    Vote(Vote),
    /// Entries were appended; an index ends older entries from it on.
    Append(Vec<Entry>),
    /// Entries behind this one were removed; `None`: all.
    TruncateAfter(Option<LogId>),
    /// Entries up to this one were removed, the tables hold them durably.
    Purge(LogId),
    /// Entries up to this one are committed.
    Committed(LogId),
    /// A snapshot up to this entry is about to replace the tables.
    Installing(LogId),
    /// The lane was opened; of no group.
    Opened,
    /// The replica, whose vote or log was lost, began anew as this voter: records before are of another (I-L10).
    Begun(VoterId),
}

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The group.
    pub shard: ShardId,
    /// Sequence of the lane's record before this one, 0 for the first: a chain that shows a lost record.
    pub previous: Sequence,
    /// What happened.
    pub change: Change,
}

impl Record {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let entries_len_bytes = match &self.change {
            Change::Append(entries) => entries.iter().map(entry_len_bytes).sum(),
            _ => 0,
        };
        let mut out = Writer::with_capacity(RECORD_HEAD_LEN_BYTES + entries_len_bytes);
        let kind = match &self.change {
            Change::Vote(_) => 1,
            Change::Append(_) => 2,
            Change::TruncateAfter(_) => 3,
            Change::Purge(_) => 4,
            Change::Committed(_) => 5,
            Change::Installing(_) => 6,
            Change::Opened => 7,
            Change::Begun(_) => 8,
        };
        out.u8(RECORD_VERSION).u8(kind).u64(self.shard.0).u64(self.previous);
        match &self.change {
            Change::Vote(vote) => put_vote(&mut out, vote),
            Change::Append(entries) => {
                out.u32(u32::try_from(entries.len()).expect("entries of one record are few"));
                entries.iter().for_each(|entry| put_entry(&mut out, entry));
            }
            Change::TruncateAfter(id) => put_log_id_option(&mut out, *id),
            Change::Purge(id) | Change::Committed(id) | Change::Installing(id) => put_log_id(&mut out, *id),
            Change::Opened => {}
            Change::Begun(voter) => {
                out.u64(*voter);
            }
        }
        out.finish()
    }

    /// Reads a record.
    pub fn decode(bytes: &[u8]) -> Result<Record, CodecError> {
        let mut input = Reader::new("Raft log record", bytes);
        let version = input.u8()?;
        if version != RECORD_VERSION {
            return Err(input.unknown(u64::from(version)));
        }
        let kind = input.u8()?;
        let shard = ShardId(input.u64()?);
        let previous = input.u64()?;
        let change = match kind {
            1 => Change::Vote(take_vote(&mut input)?),
            2 => {
                let count = input.count(ENTRIES_PER_RECORD_MAX)?;
                Change::Append((0..count).map(|_| take_entry(&mut input)).collect::<Result<_, _>>()?)
            }
            3 => Change::TruncateAfter(take_log_id_option(&mut input)?),
            4 => Change::Purge(take_log_id(&mut input)?),
            5 => Change::Committed(take_log_id(&mut input)?),
            6 => Change::Installing(take_log_id(&mut input)?),
            7 => Change::Opened,
            8 => Change::Begun(input.u64()?),
            other => return Err(input.unknown(u64::from(other))),
        };
        input.end()?;
        Ok(Record { shard, previous, change })
    }
}

/// Bytes that an entry takes in a record or row.
#[must_use]
pub fn entry_len_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Blank => 17,
        EntryPayload::Normal(command) => 21 + command.0.len(),
        EntryPayload::Membership(membership) => 64 + membership.nodes().count() * 24,
    }
}

fn put_log_id(out: &mut Writer, id: LogId) {
    out.u64(term_of(&id)).u64(id.index);
}

fn take_log_id(input: &mut Reader<'_>) -> Result<LogId, CodecError> {
    Ok(log_id(input.counter()?, input.counter()?)) // openraft and this room count on from both
}

fn put_log_id_option(out: &mut Writer, id: Option<LogId>) {
    out.u8(u8::from(id.is_some()));
    put_log_id(out, id.unwrap_or(log_id(0, 0)));
}

fn take_log_id_option(input: &mut Reader<'_>) -> Result<Option<LogId>, CodecError> {
    let there = take_bool(input)?;
    let id = take_log_id(input)?;
    Ok(there.then_some(id))
}

fn take_bool(input: &mut Reader<'_>) -> Result<bool, CodecError> {
    match input.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(input.unknown(u64::from(other))),
    }
}

fn put_vote(out: &mut Writer, vote: &Vote) {
    out.u64(vote.leader_id.term).u64(vote.leader_id.voted_for).u8(u8::from(vote.committed));
}

fn take_vote(input: &mut Reader<'_>) -> Result<Vote, CodecError> {
    let (term, voted_for, committed) = (input.counter()?, input.u64()?, take_bool(input)?);
    Ok(if committed { Vote::new_committed(term, voted_for) } else { Vote::new(term, voted_for) })
}

fn put_membership(out: &mut Writer, membership: &Membership) {
    let configs = membership.get_joint_config();
    out.u8(u8::try_from(configs.len()).expect("configurations are few"));
    for config in configs {
        out.u16(u16::try_from(config.len()).expect("members are few"));
        config.iter().for_each(|voter| {
            out.u64(*voter);
        });
    }
    let nodes: Vec<u64> = membership.nodes().map(|(node, _)| *node).collect();
    out.u16(u16::try_from(nodes.len()).expect("members are few"));
    nodes.iter().for_each(|node| {
        out.u64(*node);
    });
}

fn take_ids(input: &mut Reader<'_>) -> Result<BTreeSet<u64>, CodecError> {
    let count = usize::from(input.u16()?);
    if count > MEMBERS_MAX {
        return Err(CodecError::TooLong { what: "Raft membership", len: count as u64, limit: MEMBERS_MAX });
    }
    (0..count).map(|_| input.u64()).collect()
}

fn take_membership(input: &mut Reader<'_>) -> Result<Membership, CodecError> {
    let count = usize::from(input.u8()?);
    if count > CONFIGS_MAX {
        return Err(CodecError::TooLong { what: "Raft membership", len: count as u64, limit: CONFIGS_MAX });
    }
    let configs = (0..count).map(|_| take_ids(input)).collect::<Result<Vec<_>, _>>()?;
    let nodes: BTreeMap<u64, EmptyNode> = take_ids(input)?.into_iter().map(|node| (node, EmptyNode {})).collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| CodecError::Unknown { what: "Raft membership", value: count as u64 })
}

fn put_entry(out: &mut Writer, entry: &Entry) {
    put_log_id(out, entry.log_id);
    match &entry.payload {
        EntryPayload::Blank => {
            out.u8(0);
        }
        EntryPayload::Normal(command) => {
            out.u8(1).bytes(&command.0);
        }
        EntryPayload::Membership(membership) => {
            out.u8(2);
            put_membership(out, membership);
        }
    }
}

fn take_entry(input: &mut Reader<'_>) -> Result<Entry, CodecError> {
    let log_id = take_log_id(input)?;
    let payload = match input.u8()? {
        0 => EntryPayload::Blank,
        1 => EntryPayload::Normal(Command(input.bytes(COMMAND_LEN_BYTES_MAX)?.into())),
        2 => EntryPayload::Membership(take_membership(input)?),
        other => return Err(input.unknown(u64::from(other))),
    };
    Ok(Entry { log_id, payload })
}

/// Appends the CRC32C of what is written so far.
fn seal_row(mut out: Writer) -> Vec<u8> {
    let crc = crc32c(out.as_slice());
    out.u32(crc);
    out.finish()
}

fn crc32c(bytes: &[u8]) -> u32 {
    u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes)).expect("a CRC32 fits 32 bits")
}

fn open_row<'a>(what: &'static str, bytes: &'a [u8]) -> Result<Reader<'a>, CodecError> {
    let body_len = bytes.len().saturating_sub(4);
    let (body, crc) = bytes.split_at(body_len);
    if crc32c(body).to_le_bytes() != crc {
        return Err(CodecError::Checksum { what });
    }
    let mut input = Reader::new(what, body);
    let version = input.u8()?;
    if version != ROW_VERSION {
        return Err(input.unknown(u64::from(version)));
    }
    Ok(input)
}

/// An entry as a row of the log file.
#[must_use]
pub fn encode_entry_row(entry: &Entry) -> Vec<u8> {
    let mut out = Writer::with_capacity(ROW_FRAME_LEN_BYTES + entry_len_bytes(entry));
    out.u8(ROW_VERSION);
    put_entry(&mut out, entry);
    seal_row(out)
}

/// Reads an entry's row.
pub fn decode_entry_row(bytes: &[u8]) -> Result<Entry, CodecError> {
    let mut input = open_row("Raft entry row", bytes)?;
    let entry = take_entry(&mut input)?;
    input.end()?;
    Ok(entry)
}

/// What the log file says of one group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupRow {
    /// The voter that this replica votes as.
    pub voter: u64,
    /// Something was acknowledged once: from then on a missing vote or log is a lost one (I-L10).
    pub live: bool,
    /// Part of the vote or log was found missing; for good.
    pub lost: bool,
    /// The vote, as of the last fold.
    pub vote: Option<Vote>,
    /// Highest committed entry, as of the last fold.
    pub committed: Option<LogId>,
    /// Highest purged entry, as of the last fold.
    pub purged: Option<LogId>,
    /// Highest entry that is in the log file, or purged.
    pub folded: Option<LogId>,
    /// Highest entry that an announced snapshot holds.
    pub installing: Option<LogId>,
}

impl GroupRow {
    /// The row's value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(ROW_VERSION).u64(self.voter).u8(u8::from(self.live)).u8(u8::from(self.lost));
        out.u8(u8::from(self.vote.is_some()));
        put_vote(&mut out, &self.vote.unwrap_or(Vote::new(0, 0)));
        for id in [self.committed, self.purged, self.folded, self.installing] {
            put_log_id_option(&mut out, id);
        }
        seal_row(out)
    }

    /// Reads a row's value.
    pub fn decode(bytes: &[u8]) -> Result<GroupRow, CodecError> {
        let mut input = open_row("Raft group row", bytes)?;
        let (voter, live, lost) = (input.u64()?, take_bool(&mut input)?, take_bool(&mut input)?);
        let (voted, vote) = (take_bool(&mut input)?, take_vote(&mut input)?);
        let mut ids = [None; 4];
        for id in &mut ids {
            *id = take_log_id_option(&mut input)?;
        }
        input.end()?;
        let [committed, purged, folded, installing] = ids;
        Ok(GroupRow { voter, live, lost, vote: voted.then_some(vote), committed, purged, folded, installing })
    }
}

/// What the log file says of its lane's journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneRow {
    /// Records up to this one are in the log file, so the journal may have trimmed them.
    pub folded: Sequence,
    /// The journal was flushed up to this record: one that does not hold this record is another one, or has lost its end
    /// (I-L10). Ahead of `folded`, but in rows that older versions wrote and in that of a replaced journal which had no room
    /// for a record.
    pub reached: Sequence,
}

/// The lane's row.
#[must_use]
pub fn encode_lane_row(row: LaneRow) -> Vec<u8> {
    let mut out = Writer::new();
    out.u8(ROW_VERSION).u64(row.folded).u64(row.reached);
    seal_row(out)
}

/// Reads the lane's row.
pub fn decode_lane_row(bytes: &[u8]) -> Result<LaneRow, CodecError> {
    let mut input = open_row("Raft lane row", bytes)?;
    let folded = input.u64()?;
    // Rows written before there was a second number say no more than that.
    let reached = if input.left() == 0 { folded } else { input.u64()? };
    input.end()?;
    Ok(LaneRow { folded, reached })
}

/// The membership's part of what [`encode_applied`] writes: it is the same for very many entries.
#[must_use]
pub fn encode_membership(membership: &StoredMembership) -> Vec<u8> {
    let mut out = Writer::with_capacity(MEMBERSHIP_LEN_BYTES);
    put_log_id_option(&mut out, *membership.log_id());
    put_membership(&mut out, membership.membership());
    out.finish()
}

/// The state that a shard's tables keep beside their rows: the last applied entry and the membership, as
/// [`encode_membership`] wrote it.
#[must_use]
pub fn encode_applied(applied: LogId, membership: &[u8]) -> Vec<u8> {
    let mut out = Writer::with_capacity(APPLIED_LEN_BYTES + membership.len());
    out.u8(ROW_VERSION);
    put_log_id(&mut out, applied);
    out.raw(membership);
    seal_row(out)
}

/// Reads what [`encode_applied`] wrote.
pub fn decode_applied(bytes: &[u8]) -> Result<(LogId, StoredMembership), CodecError> {
    let mut input = open_row("applied state", bytes)?;
    let applied = take_log_id(&mut input)?;
    let at = take_log_id_option(&mut input)?;
    let membership = take_membership(&mut input)?;
    input.end()?;
    Ok((applied, StoredMembership::new(at, membership)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let membership =
            Membership::new(vec![BTreeSet::from([1, 2, 3])], BTreeMap::from([1, 2, 3, 4].map(|n| (n, EmptyNode {}))))
                .expect("valid");
        let entries = vec![
            Entry { log_id: log_id(1, 0), payload: EntryPayload::Membership(membership) },
            Entry { log_id: log_id(1, 1), payload: EntryPayload::Blank },
            Entry { log_id: log_id(2, 2), payload: EntryPayload::Normal(Command(b"command".to_vec().into())) },
        ];
        [
            Change::Vote(Vote::new(3, 7)),
            Change::Vote(Vote::new_committed(4, 7)),
            Change::Append(entries),
            Change::TruncateAfter(None),
            Change::TruncateAfter(Some(log_id(1, 2))),
            Change::Purge(log_id(1, 9)),
            Change::Committed(log_id(2, 10)),
            Change::Installing(log_id(2, 11)),
            Change::Opened,
            Change::Begun(1 << 48 | 7),
        ]
        .into_iter()
        .map(|change| Record { shard: ShardId(1024), previous: 5, change })
        .collect()
    }

    #[test]
    fn records_read_back_and_every_truncation_is_an_error() {
        for record in records() {
            let bytes = record.encode();
            assert_eq!(Record::decode(&bytes).expect("whole record"), record);
            for len in 0..bytes.len() {
                assert!(Record::decode(&bytes[..len]).is_err(), "{record:?} cut to {len}");
            }
        }
    }

    #[test]
    fn rows_read_back_and_every_flipped_bit_is_an_error() {
        let row = GroupRow {
            voter: 7,
            live: true,
            lost: false,
            vote: Some(Vote::new_committed(4, 7)),
            committed: Some(log_id(4, 9)),
            purged: None,
            folded: Some(log_id(4, 8)),
            installing: None,
        };
        let bytes = row.encode();
        assert_eq!(GroupRow::decode(&bytes).expect("whole row"), row);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(GroupRow::decode(&bad).is_err(), "bit {bit}");
        }
    }
    #[test]
    fn terms_and_indexes_behind_which_none_can_follow_are_refused() {
        for (term, index, fits) in [(1, 2, true), (u64::MAX, 2, false), (1, u64::MAX, false)] {
            let record = Record { shard: ShardId(1024), previous: 5, change: Change::Purge(log_id(term, index)) };
            assert_eq!(Record::decode(&record.encode()).is_ok(), fits, "term {term}, index {index}");
        }
        let vote = Record { shard: ShardId(1024), previous: 5, change: Change::Vote(Vote::new(u64::MAX, 7)) };
        assert!(Record::decode(&vote.encode()).is_err());
    }
}
