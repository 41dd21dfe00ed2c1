//! Parcels into calls and answers. Whatever a peer sends is input: every count, length and counter is checked (I-O5).

use super::{
    ANSWER_WITHIN_MAX, Answer, CALLS_PER_PARCEL_MAX, Call, ENTRIES_PER_APPEND_MAX, ENTRIES_PER_PARCEL_MAX,
    MESSAGE_VERSION, MessageError, Question, REASON_LEN_BYTES_MAX, SnapshotPiece, within,
};
use crate::log_store::record::{CONFIGS_MAX, MEMBERS_MAX};
use crate::network::{
    AppendRequest, AppendResponse, ElectionRequest, ElectionResponse, RestRequest, SnapshotAnswer, TransferRequest,
};
use crate::raft_capnp::{
    answer, answers, append, call, calls, election, entry, log_id, membership, snapshot_piece, vote,
};
use crate::snapshot::FRAME_LEN_BYTES_MAX;
use crate::type_config::{Command, Entry, LogId, Membership, Vote, log_id};
use capnp::message::{Reader, ReaderOptions};
use capnp::serialize::OwnedSegments;
use kiseki_types::ShardId;
use kiseki_types::limits::{COMMAND_LEN_BYTES_MAX, COUNTER_MAX};
use kiseki_types::peer::{BULK_LEN_BYTES_MAX, MESSAGE_LEN_BYTES_MAX, Parcel};
use openraft::{EmptyNode, EntryPayload};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Words that reading one message may visit: a message names each of its words once.
const TRAVERSED_WORDS_MAX: usize = MESSAGE_LEN_BYTES_MAX / 8 + 1024;

/// Deepest nesting: calls, entries, a membership, its configurations, and their voters.
const NESTING_MAX: i32 = 12;

impl From<capnp::Error> for MessageError {
    fn from(error: capnp::Error) -> MessageError {
        MessageError::Malformed(error.to_string())
    }
}

impl From<capnp::NotInSchema> for MessageError {
    fn from(error: capnp::NotInSchema) -> MessageError {
        MessageError::Malformed(error.to_string())
    }
}

fn malformed(reason: &str) -> MessageError {
    MessageError::Malformed(reason.to_owned())
}

fn read(bytes: &[u8]) -> Result<Reader<OwnedSegments>, MessageError> {
    within("bytes", bytes.len() as u64, MESSAGE_LEN_BYTES_MAX as u64)?;
    // The reader makes room for what the head says before it looks whether that is there.
    if declared_len_bytes(bytes) != Some(bytes.len() as u64) {
        return Err(malformed("its length is not what its head says"));
    }
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(TRAVERSED_WORDS_MAX)).nesting_limit(NESTING_MAX);
    Ok(capnp::serialize::read_message(bytes, options)?)
}

/// Bytes of a message by its head: the number of its segments less one, the words of each, padded to whole words.
fn declared_len_bytes(bytes: &[u8]) -> Option<u64> {
    let numbers = bytes.as_chunks::<4>().0;
    let segments = u64::from(u32::from_le_bytes(*numbers.first()?)) + 1;
    let words = numbers.get(1..)?.get(..usize::try_from(segments).ok()?)?;
    let head = (4 + 4 * segments).next_multiple_of(8);
    Some(head + words.iter().map(|words| 8 * u64::from(u32::from_le_bytes(*words))).sum::<u64>())
}

fn check_version(version: u16, oldest: u16) -> Result<(), MessageError> {
    match oldest {
        _ if version == 0 || oldest == 0 || oldest > version => Err(malformed("its version makes no sense")),
        _ if oldest > MESSAGE_VERSION => Err(MessageError::TooNew { oldest }),
        _ => Ok(()),
    }
}

/// The calls of a parcel, and within which time the sender wants its answers.
pub fn decode_calls(parcel: &Parcel) -> Result<(Vec<Call>, Duration), MessageError> {
    let message = read(&parcel.message)?;
    let root = message.get_root::<calls::Reader<'_>>()?;
    check_version(root.get_version(), root.get_oldest())?;
    let answer_within = Duration::from_millis(u64::from(root.get_answer_within_ms())).min(ANSWER_WITHIN_MAX);
    let list = root.get_calls()?;
    within("calls", u64::from(list.len()), CALLS_PER_PARCEL_MAX as u64)?;
    let mut bulk = Bulk::new(parcel)?;
    within("calls", u64::from(list.len()), bulk.words)?;
    let calls = list.iter().map(|call| take_call(call, &mut bulk)).collect::<Result<Vec<Call>, MessageError>>()?;
    bulk.end()?;
    Ok((calls, answer_within))
}

/// The answers to a parcel of `expected` calls.
pub fn decode_answers(parcel: &Parcel, expected: usize) -> Result<Vec<Answer>, MessageError> {
    let message = read(&parcel.message)?;
    let root = message.get_root::<answers::Reader<'_>>()?;
    check_version(root.get_version(), root.get_oldest())?;
    let list = root.get_answers()?;
    if list.len() as usize != expected || !parcel.bulk.is_empty() {
        return Err(malformed("it does not answer what was asked"));
    }
    list.iter().map(take_answer).collect()
}

/// The version that whoever answered speaks.
pub fn version_of_answers(parcel: &Parcel) -> Result<u16, MessageError> {
    let message = read(&parcel.message)?;
    Ok(message.get_root::<answers::Reader<'_>>()?.get_version())
}

/// The bytes beside a message.
struct Bulk<'a> {
    left: &'a [u8],
    entries: usize,
    /// Words of the message. A list may say that its elements take no room: so many are believed, and none is a call or
    /// an entry of ours.
    words: u64,
}

impl<'a> Bulk<'a> {
    fn new(parcel: &'a Parcel) -> Result<Bulk<'a>, MessageError> {
        within("buffers beside it", parcel.bulk.len() as u64, 1)?;
        let left = parcel.bulk.first().map_or(&[][..], |buffer| buffer);
        within("bytes beside it", left.len() as u64, BULK_LEN_BYTES_MAX as u64)?;
        Ok(Bulk { left, entries: 0, words: parcel.message.len() as u64 / 8 })
    }

    fn take(&mut self, what: &'static str, len: u32, limit: usize) -> Result<&'a [u8], MessageError> {
        within(what, u64::from(len), limit as u64)?;
        let (bytes, left) = self
            .left
            .split_at_checked(len as usize)
            .ok_or_else(|| malformed("fewer bytes stand beside it than it says"))?;
        self.left = left;
        Ok(bytes)
    }

    fn count_entry(&mut self) -> Result<(), MessageError> {
        self.entries += 1;
        within("entries", self.entries as u64, self.words.min(ENTRIES_PER_PARCEL_MAX as u64)).map(drop)
    }

    fn end(self) -> Result<(), MessageError> {
        if self.left.is_empty() { Ok(()) } else { Err(malformed("more bytes stand beside it than it says")) }
    }
}

fn take_call(call: call::Reader<'_>, bulk: &mut Bulk<'_>) -> Result<Call, MessageError> {
    let question = match call.which()? {
        call::Append(append) => Question::Append(take_append(append?, bulk)?),
        call::Vote(election) => Question::Vote(take_election(election?)?),
        call::PreVote(election) => Question::PreVote(take_election(election?)?),
        call::Transfer(transfer) => {
            let transfer = transfer?;
            let last = if transfer.has_last() { Some(take_log_id(transfer.get_last()?)?) } else { None };
            let from = take_leader_vote(transfer.get_from()?)?;
            Question::Transfer(TransferRequest::new(from, transfer.get_to(), last))
        }
        call::Snapshot(piece) => Question::Snapshot(take_piece(piece?, bulk)?),
        call::Rest(rest) => {
            let rest = rest?;
            let (vote, last) = (take_leader_vote(rest.get_vote()?)?, take_log_id(rest.get_last()?)?);
            Question::Rest(RestRequest { vote, last })
        }
    };
    Ok(Call { shard: ShardId(call.get_shard()), to: call.get_to(), question })
}

fn take_append(append: append::Reader<'_>, bulk: &mut Bulk<'_>) -> Result<AppendRequest, MessageError> {
    let vote = take_leader_vote(append.get_vote()?)?;
    let prev_log_id = if append.has_previous() { Some(take_log_id(append.get_previous()?)?) } else { None };
    let leader_commit = if append.has_commit() { Some(take_log_id(append.get_commit()?)?) } else { None };
    let list = append.get_entries()?;
    within("entries of an append", u64::from(list.len()), ENTRIES_PER_APPEND_MAX as u64)?;
    let mut entries: Vec<Entry> = Vec::new();
    let first = prev_log_id.map_or(0, |id| id.index + 1);
    for (index, entry) in (first..).zip(list.iter()) {
        bulk.count_entry()?;
        let entry = take_entry(entry, bulk)?;
        // openraft takes for granted that entries follow one another and what is in front of them.
        if entry.log_id.index != index {
            return Err(malformed("its entries do not follow one another"));
        }
        entries.push(entry);
    }
    Ok(AppendRequest { vote, prev_log_id, entries, leader_commit })
}

fn take_entry(entry: entry::Reader<'_>, bulk: &mut Bulk<'_>) -> Result<Entry, MessageError> {
    let log_id = log_id(counter("a term", entry.get_term())?, counter("an index", entry.get_index())?);
    let payload = match entry.which()? {
        entry::Blank(()) => EntryPayload::Blank,
        entry::Command(len) => {
            EntryPayload::Normal(Command(bulk.take("bytes of a command", len, COMMAND_LEN_BYTES_MAX)?.into()))
        }
        entry::Membership(membership) => EntryPayload::Membership(take_membership(membership?)?),
    };
    Ok(Entry { log_id, payload })
}

fn take_ids(list: capnp::primitive_list::Reader<'_, u64>) -> Result<BTreeSet<u64>, MessageError> {
    within("members", u64::from(list.len()), MEMBERS_MAX as u64)?;
    Ok(list.iter().collect())
}

fn take_membership(membership: membership::Reader<'_>) -> Result<Membership, MessageError> {
    let lists = membership.get_configs()?;
    within("configurations", u64::from(lists.len()), CONFIGS_MAX as u64)?;
    let configs = lists.iter().map(|list| take_ids(list?)).collect::<Result<Vec<_>, MessageError>>()?;
    let nodes: BTreeMap<u64, EmptyNode> =
        take_ids(membership.get_members()?)?.into_iter().map(|node| (node, EmptyNode {})).collect();
    Membership::new(configs, nodes).map_err(|error| MessageError::Malformed(error.to_string()))
}

fn take_election(election: election::Reader<'_>) -> Result<ElectionRequest, MessageError> {
    let last_log_id = if election.has_last() { Some(take_log_id(election.get_last()?)?) } else { None };
    let vote = take_vote(election.get_vote()?)?;
    if vote.is_committed() {
        return Err(malformed("whoever stands for election leads already"));
    }
    let mut request = ElectionRequest::new(vote, last_log_id);
    request.leadership_transfer = election.get_is_transfer();
    Ok(request)
}

fn take_piece(piece: snapshot_piece::Reader<'_>, bulk: &mut Bulk<'_>) -> Result<SnapshotPiece, MessageError> {
    let frame = match piece.which()? {
        snapshot_piece::Frame(len) => Some(bulk.take("bytes of a frame", len, FRAME_LEN_BYTES_MAX)?.to_vec()),
        snapshot_piece::End(()) => None,
    };
    let vote = take_leader_vote(piece.get_vote()?)?;
    Ok(SnapshotPiece { vote, stream: piece.get_stream(), number: piece.get_number(), frame })
}

fn counter(what: &'static str, value: u64) -> Result<u64, MessageError> {
    within(what, value, COUNTER_MAX)
}

fn take_vote(vote: vote::Reader<'_>) -> Result<Vote, MessageError> {
    let (term, voter) = (counter("a term", vote.get_term())?, vote.get_voter());
    Ok(if vote.get_committed() { Vote::new_committed(term, voter) } else { Vote::new(term, voter) })
}

/// The vote of a leader, which a majority granted: openraft would take one that was not granted for that of a candidate.
fn take_leader_vote(vote: vote::Reader<'_>) -> Result<Vote, MessageError> {
    let vote = take_vote(vote)?;
    if vote.is_committed() { Ok(vote) } else { Err(malformed("it comes from no elected leader")) }
}

fn take_log_id(id: log_id::Reader<'_>) -> Result<LogId, MessageError> {
    Ok(log_id(counter("a term", id.get_term())?, counter("an index", id.get_index())?))
}

fn take_answer(answer: answer::Reader<'_>) -> Result<Answer, MessageError> {
    Ok(match answer.which()? {
        answer::Appended(()) => Answer::Append(AppendResponse::Success),
        answer::AppendedUpTo(up_to) => {
            let up_to = up_to?;
            let last = if up_to.has_last() { Some(take_log_id(up_to.get_last()?)?) } else { None };
            Answer::Append(AppendResponse::PartialSuccess(last))
        }
        answer::Conflict(()) => Answer::Append(AppendResponse::Conflict),
        answer::HigherVote(vote) => Answer::Append(AppendResponse::HigherVote(take_vote(vote?)?)),
        answer::Election(election) => {
            let election = election?;
            let last = if election.has_last() { Some(take_log_id(election.get_last()?)?) } else { None };
            Answer::Election(ElectionResponse::new(take_vote(election.get_vote()?)?, last, election.get_granted()))
        }
        answer::TransferTaken(()) => Answer::TransferTaken,
        answer::PieceTaken(()) => Answer::PieceTaken,
        answer::Installed(vote) => Answer::Installed(SnapshotAnswer::new(take_vote(vote?)?)),
        answer::Rests(rests) => Answer::Rests(rests),
        answer::NoReplica(()) => Answer::NoReplica,
        answer::Late(()) => Answer::Late,
        answer::Refused(reason) => {
            let reason = reason?;
            within("bytes of a reason", reason.len() as u64, REASON_LEN_BYTES_MAX as u64)?;
            let text = reason.to_str().map_err(|_| malformed("a reason is no text"))?;
            Answer::Refused(text.to_owned())
        }
    })
}
