//! Records and rows of Raft logs, headers of table files, snapshots on their way.

use crate::mend;
use crate::target::{Seed, Target, Verdict, accepted, bytes_settle, bytes_survive};
use kiseki_raft::fuzzing;
use kiseki_raft::log_store::record::{
    Change, GroupRow, LaneRow, Record, encode_applied, encode_entry_row, encode_lane_row, encode_membership,
};
use kiseki_raft::type_config::{Command, Entry, Membership, StoredMembership, Vote, log_id};
use kiseki_types::ShardId;
use std::collections::BTreeSet;

/// A record of a lane's journal.
pub const RECORD: Target = Target::new("raft_record", record, record_seeds);
/// The row of an entry.
pub const ENTRY_ROW: Target = Target::new("raft_entry_row", entry_row, entry_row_seeds).mended(mend::tail);
/// The row of a group.
pub const GROUP_ROW: Target = Target::new("raft_group_row", group_row, group_row_seeds).mended(mend::tail);
/// The row of a lane.
pub const LANE_ROW: Target = Target::new("raft_lane_row", lane_row, lane_row_seeds).mended(mend::tail);
/// The applied state beside a shard's rows.
pub const APPLIED_ROW: Target = Target::new("raft_applied_row", applied_row, applied_row_seeds).mended(mend::tail);
/// A group's row and the records behind it, replayed.
pub const REPLAY: Target =
    Target::new("raft_replay", replay, replay_seeds).mended(mend::first_part_tail).allowed(96 * 1024, 64);
/// A header copy of a table file.
pub const FILE_HEADER: Target = Target::new("table_file_header", file_header, file_header_seeds).mended(mend::block);
/// A record of a snapshot stream: rows of empty strings take ten bytes of JSON.
pub const SNAPSHOT_FRAME: Target =
    Target::new("snapshot_frame", snapshot_frame, snapshot_frame_seeds).mended(mend::length).allowed(96 * 1024, 32);
/// The opened rows of a sealed record.
pub const SNAPSHOT_ROWS: Target = Target::new("snapshot_rows", snapshot_rows, snapshot_rows_seeds);

/// Calls from another node, and the bytes beside them.
pub const CALLS: Target = Target::new("raft_calls", calls, calls_seeds);
/// Answers of another node, behind how many were asked for.
pub const ANSWERS: Target = Target::new("raft_answers", answers, answers_seeds);

/// Records of one replay.
const RECORDS_MAX: usize = 64;

fn record(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, fuzzing::record)
}

fn command(text: &[u8]) -> Entry {
    Entry { log_id: log_id(2, 2), payload: openraft_payload(text) }
}

fn openraft_payload(text: &[u8]) -> kiseki_raft::fuzzing::Payload {
    kiseki_raft::fuzzing::Payload::Normal(Command(text.into()))
}

fn membership() -> Membership {
    Membership::new_with_defaults(vec![BTreeSet::from([1, 2, 3])], [4])
}

fn entries() -> Vec<Entry> {
    vec![
        Entry { log_id: log_id(1, 0), payload: fuzzing::Payload::Membership(membership()) },
        Entry { log_id: log_id(1, 1), payload: fuzzing::Payload::Blank },
        command(b"command"),
    ]
}

fn records() -> Vec<(&'static str, Vec<u8>)> {
    [
        ("append", Change::Append(entries())),
        ("vote", Change::Vote(Vote::new(3, 7))),
        ("vote-committed", Change::Vote(Vote::new_committed(4, 7))),
        ("committed", Change::Committed(log_id(2, 2))),
        ("truncate-all", Change::TruncateAfter(None)),
        ("truncate", Change::TruncateAfter(Some(log_id(1, 1)))),
        ("purge", Change::Purge(log_id(1, 1))),
        ("installing", Change::Installing(log_id(2, 11))),
        ("opened", Change::Opened),
        ("begun", Change::Begun(1 << 48 | 7)),
    ]
    .into_iter()
    .map(|(name, change)| (name, Record { shard: ShardId(1024), previous: 5, change }.encode()))
    .collect()
}

fn record_seeds() -> Vec<Seed> {
    records()
}

fn entry_row(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, fuzzing::entry_row)
}

fn entry_row_seeds() -> Vec<Seed> {
    ["membership", "blank", "command"].into_iter().zip(entries().iter().map(encode_entry_row)).collect()
}

fn group_row(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, fuzzing::group_row)
}

fn row() -> GroupRow {
    GroupRow {
        voter: 7,
        live: true,
        lost: false,
        vote: Some(Vote::new_committed(4, 7)),
        committed: Some(log_id(4, 9)),
        purged: None,
        folded: Some(log_id(4, 8)),
        installing: None,
    }
}

fn group_row_seeds() -> Vec<Seed> {
    vec![("live", row().encode()), ("new", GroupRow::default().encode())]
}

fn lane_row(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, fuzzing::lane_row)
}

fn lane_row_seeds() -> Vec<Seed> {
    vec![("lane", encode_lane_row(LaneRow { folded: 77, reached: 91 }))]
}

fn applied_row(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, fuzzing::applied_row)
}

fn applied() -> Vec<u8> {
    encode_applied(log_id(2, 9), &encode_membership(&StoredMembership::new(Some(log_id(1, 0)), membership())))
}

fn applied_row_seeds() -> Vec<Seed> {
    vec![("applied", applied())]
}

fn replay(bytes: &[u8]) -> Verdict {
    let parts = mend::unpack(bytes, RECORDS_MAX);
    let Some((row, records)) = parts.split_first() else { return Verdict::Refused };
    accepted(fuzzing::replay(row, records))
}

fn replay_seeds() -> Vec<Seed> {
    let records = records();
    let parts = |row: Vec<u8>, names: &[&str]| {
        let chosen = names.iter().map(|name| records.iter().find(|(found, _)| found == name).expect("a name above"));
        let parts: Vec<Vec<u8>> = std::iter::once(row).chain(chosen.map(|(_, bytes)| bytes.clone())).collect();
        mend::pack(parts.iter().map(|part| &part[..]))
    };
    vec![
        ("grown", parts(GroupRow::default().encode(), &["vote", "append", "committed", "purge", "append"])),
        ("cut", parts(GroupRow::default().encode(), &["append", "truncate", "append", "truncate-all", "installing"])),
        ("behind-a-fold", parts(row().encode(), &["append", "committed", "opened", "vote-committed"])),
    ]
}

fn file_header(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, fuzzing::file_header)
}

fn file_header_seeds() -> Vec<Seed> {
    vec![("clear", mend::block_body(&fuzzing::file_header_seed()))]
}

fn snapshot_frame(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, fuzzing::snapshot_frame)
}

fn snapshot_frame_seeds() -> Vec<Seed> {
    fuzzing::snapshot_frame_seeds(&applied())
}

fn snapshot_rows(bytes: &[u8]) -> Verdict {
    bytes_survive(bytes, fuzzing::snapshot_rows)
}

fn snapshot_rows_seeds() -> Vec<Seed> {
    let row = |key: &[u8], value: &[u8]| {
        let mut row = vec![1];
        for field in [key, value] {
            row.extend_from_slice(&(field.len() as u32).to_le_bytes());
            row.extend_from_slice(field);
        }
        row
    };
    vec![("two", [2u32.to_le_bytes().to_vec(), row(b"a", b"value"), row(b"b", b"")].concat())]
}

fn calls(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, |bytes| {
        let parts = mend::unpack(bytes, 2);
        let (message, beside) = (parts.first()?, parts.get(1).copied().unwrap_or_default());
        let (message, beside) = fuzzing::raft_calls(message, beside)?;
        // An input that only a longer message could say again is not one of a corpus.
        let fits = message.len() <= usize::from(u16::MAX) && beside.len() <= usize::from(u16::MAX);
        fits.then(|| mend::pack([&message[..], &beside]))
    })
}

fn calls_seeds() -> Vec<Seed> {
    let packed =
        |(name, message, beside): (&'static str, Vec<u8>, Vec<u8>)| (name, mend::pack([&message[..], &beside]));
    fuzzing::raft_calls_seeds().into_iter().map(packed).collect()
}

fn answers(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, |bytes| {
        let (expected, message) = bytes.split_first()?;
        let message = fuzzing::raft_answers(message, usize::from(*expected))?;
        Some([&[*expected], &message[..]].concat())
    })
}

fn answers_seeds() -> Vec<Seed> {
    let counted = |(name, message, expected): (&'static str, Vec<u8>, usize)| {
        let expected = u8::try_from(expected).expect("few");
        (name, [&[expected], &message[..]].concat())
    };
    fuzzing::raft_answers_seeds().into_iter().map(counted).collect()
}
