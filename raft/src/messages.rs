//! Messages between replicas on different nodes: what a parcel of the Raft service says, and its limits.
//!
//! One parcel holds many calls, of any groups; its answer holds as many answers in the same order. Commands and frames of
//! snapshots travel beside the message, so each is copied once. The layout is told in docs/formats/raft-messages.md.

mod decode;
mod encode;
mod fuzz;
#[cfg(test)]
mod tests;

pub use decode::{decode_answers, decode_calls, version_of_answers};
pub use encode::{encode_answers, encode_calls};
pub use fuzz::{fuzz_answers, fuzz_answers_seeds, fuzz_calls, fuzz_calls_seeds};

use crate::log_store::record::entry_len_bytes;
use crate::network::{
    AppendRequest, AppendResponse, ElectionRequest, ElectionResponse, RestRequest, SnapshotAnswer, TransferRequest,
};
use crate::type_config::{Entry, Vote, VoterId};
use kiseki_types::ShardId;
use kiseki_types::peer::{BULK_LEN_BYTES_MAX, MESSAGE_LEN_BYTES_MAX};
use openraft::EntryPayload;
use std::time::Duration;
use thiserror::Error;

/// What this release speaks. A field may be added without a new version when a reader that ignores it does right.
///
/// - 2: calls to rest.
pub const MESSAGE_VERSION: u16 = 2;

/// The oldest version whose reader knows calls to rest.
pub const RESTS_SINCE_VERSION: u16 = 2;

/// Most calls of one parcel.
pub const CALLS_PER_PARCEL_MAX: usize = 1024;

/// Most entries of one append.
pub const ENTRIES_PER_APPEND_MAX: usize = 4096;

/// Most entries of one parcel.
pub const ENTRIES_PER_PARCEL_MAX: usize = 16 * 1024;

/// Longest reason of a refusal; more is cut off.
pub const REASON_LEN_BYTES_MAX: usize = 512;

/// Longest time within which a sender may want its answers.
pub const ANSWER_WITHIN_MAX: Duration = Duration::from_secs(60);

/// Bytes of the message that a call takes, beside its entries.
const CALL_LEN_BYTES: usize = 256;

/// Bytes of the message that an entry takes, whose command travels beside it.
const ENTRY_LEN_BYTES: usize = 40;

const _: () =
    assert!(CALLS_PER_PARCEL_MAX * CALL_LEN_BYTES + ENTRIES_PER_PARCEL_MAX * ENTRY_LEN_BYTES < MESSAGE_LEN_BYTES_MAX);

/// What is asked of a replica.
#[derive(Clone, Debug)]
pub enum Question {
    /// Entries, or a heartbeat.
    Append(AppendRequest),
    /// An election.
    Vote(ElectionRequest),
    /// Whether an election would be won.
    PreVote(ElectionRequest),
    /// The leader gives its leadership away.
    Transfer(TransferRequest),
    /// A piece of a snapshot.
    Snapshot(SnapshotPiece),
    /// The leader rests, or wants to.
    Rest(RestRequest),
}

/// A piece of a snapshot on its way.
#[derive(Clone, Debug)]
pub struct SnapshotPiece {
    /// The leader's vote.
    pub vote: Vote,
    /// Tells one sending from another.
    pub stream: u64,
    /// Pieces are numbered from 0.
    pub number: u32,
    /// A frame; `None` behind the last.
    pub frame: Option<Vec<u8>>,
}

/// A question to a replica.
#[derive(Clone, Debug)]
pub struct Call {
    /// The shard.
    pub shard: ShardId,
    /// The voter that the replica votes as.
    pub to: VoterId,
    /// What is asked.
    pub question: Question,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To an append.
    Append(AppendResponse),
    /// To a vote or pre-vote.
    Election(ElectionResponse),
    /// The transfer was heard.
    TransferTaken,
    /// The piece was taken; the next may come.
    PieceTaken,
    /// The snapshot was installed, or is not needed.
    Installed(SnapshotAnswer),
    /// Whether the replica rests as well.
    Rests(bool),
    /// No replica here votes under that id.
    NoReplica,
    /// No answer within the time that the sender gave; it may still be acted upon.
    Late,
    /// The replica can't answer; the reason is for people.
    Refused(String),
}

/// Why bytes are no message.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageError {
    /// It is no message of this schema.
    #[error("no Raft message: {0}")]
    Malformed(String),
    /// Only a newer release understands it.
    #[error("the Raft message needs version {oldest}, this node speaks {MESSAGE_VERSION}; update this node")]
    TooNew {
        /// The oldest version that understands it.
        oldest: u16,
    },
    /// More or longer than a named limit allows (I-O5).
    #[error("{what} of a Raft message: {found}, at most {limit} allowed")]
    OverLimit {
        /// What.
        what: &'static str,
        /// How many.
        found: u64,
        /// The limit.
        limit: u64,
    },
}

fn within(what: &'static str, found: u64, limit: u64) -> Result<u64, MessageError> {
    if found <= limit { Ok(found) } else { Err(MessageError::OverLimit { what, found, limit }) }
}

/// What a call takes of a parcel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Bytes of the message, at most.
    pub message_len_bytes: usize,
    /// Bytes beside the message.
    pub bulk_len_bytes: usize,
    /// Entries.
    pub entries: usize,
}

impl Weight {
    /// Of one call.
    #[must_use]
    pub fn of(call: &Call) -> Weight {
        let mut weight = Weight { message_len_bytes: CALL_LEN_BYTES, ..Weight::default() };
        match &call.question {
            Question::Append(request) => request.entries.iter().for_each(|entry| weight.add_entry(entry)),
            Question::Snapshot(piece) => weight.bulk_len_bytes = piece.frame.as_ref().map_or(0, Vec::len),
            Question::Vote(_) | Question::PreVote(_) | Question::Transfer(_) | Question::Rest(_) => {}
        }
        weight
    }

    fn add_entry(&mut self, entry: &Entry) {
        self.entries += 1;
        self.message_len_bytes += ENTRY_LEN_BYTES;
        match &entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(command) => self.bulk_len_bytes += command.0.len(),
            EntryPayload::Membership(_) => self.message_len_bytes += 2 * entry_len_bytes(entry),
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Weight) -> Weight {
        Weight {
            message_len_bytes: self.message_len_bytes + other.message_len_bytes,
            bulk_len_bytes: self.bulk_len_bytes + other.bulk_len_bytes,
            entries: self.entries + other.entries,
        }
    }

    /// Whether a parcel can carry it.
    #[must_use]
    pub fn fits(self) -> bool {
        self.message_len_bytes <= MESSAGE_LEN_BYTES_MAX
            && self.bulk_len_bytes <= BULK_LEN_BYTES_MAX
            && self.entries <= ENTRIES_PER_PARCEL_MAX
    }
}
