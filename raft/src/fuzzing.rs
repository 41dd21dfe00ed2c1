//! What `tools/fuzz` needs of this room's private decoders, and nothing else does.
//!
//! Each function decodes bytes and gives back what the encoder makes of the result (`None`: refused), so that no private
//! type leaves the room.

use crate::file_header::{FileHeader, HEADER_COPY_BYTES};
use crate::log_store::record::{
    GroupRow, Record, decode_applied, decode_entry_row, decode_lane_row, encode_applied, encode_entry_row,
    encode_lane_row, encode_membership,
};
use crate::log_store::replay_group;
use crate::paged_file::PAGE_BYTES;
use kiseki_types::ShardId;

pub use crate::messages::{
    fuzz_answers as raft_answers, fuzz_answers_seeds as raft_answers_seeds, fuzz_calls as raft_calls,
    fuzz_calls_seeds as raft_calls_seeds,
};
pub use crate::snapshot::{
    fuzz_frame as snapshot_frame, fuzz_frame_seeds as snapshot_frame_seeds, fuzz_rows as snapshot_rows,
};

/// Magic of the headers that [`file_header`] reads.
const MAGIC: [u8; 8] = *b"KISEKIcf";

/// One copy of the header of a table file.
#[must_use]
pub fn file_header(block: &[u8]) -> Option<Vec<u8>> {
    let block = block.get(..HEADER_COPY_BYTES)?;
    let header = FileHeader::decode(block, MAGIC, PAGE_BYTES as u32, "fuzzed").ok()??;
    Some(header.encode(PAGE_BYTES as u32))
}

/// Such a copy.
#[must_use]
pub fn file_header_seed() -> Vec<u8> {
    FileHeader { magic: MAGIC, uuid: [3; 16], generation: 5, check: [0; 16] }.encode(PAGE_BYTES as u32)
}

/// The row of an entry in the log file.
#[must_use]
pub fn entry_row(bytes: &[u8]) -> Option<Vec<u8>> {
    decode_entry_row(bytes).ok().map(|entry| encode_entry_row(&entry))
}

/// The row of a group in the log file.
#[must_use]
pub fn group_row(bytes: &[u8]) -> Option<Vec<u8>> {
    GroupRow::decode(bytes).ok().map(|row| row.encode())
}

/// The row of the lane in the log file.
#[must_use]
pub fn lane_row(bytes: &[u8]) -> Option<Vec<u8>> {
    decode_lane_row(bytes).ok().map(encode_lane_row)
}

/// The applied state beside a shard's rows.
#[must_use]
pub fn applied_row(bytes: &[u8]) -> Option<Vec<u8>> {
    decode_applied(bytes).ok().map(|(applied, membership)| encode_applied(applied, &encode_membership(&membership)))
}

/// A record of the lane's journal.
#[must_use]
pub fn record(bytes: &[u8]) -> Option<Vec<u8>> {
    Record::decode(bytes).ok().map(|record| record.encode())
}

/// Replays records of one group, in order, over a group row, as the open of a lane does, and folds what is committed.
/// Gives back how many records fitted.
#[must_use]
pub fn replay(row: &[u8], records: &[&[u8]]) -> Option<usize> {
    let row = GroupRow::decode(row).ok()?;
    let changes = records.iter().map_while(|bytes| Record::decode(bytes).ok()).map(|record| record.change);
    Some(replay_group(ShardId(1024), row, changes))
}

/// What an entry carries.
pub type Payload = openraft::EntryPayload<crate::type_config::Command, u64, openraft::EmptyNode>;
