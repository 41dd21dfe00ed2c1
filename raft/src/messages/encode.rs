//! Calls and answers into parcels.

use super::{
    ANSWER_WITHIN_MAX, Answer, CALLS_PER_PARCEL_MAX, Call, MESSAGE_VERSION, MessageError, Question,
    REASON_LEN_BYTES_MAX, SnapshotPiece, Weight, within,
};
use crate::network::{AppendRequest, AppendResponse, ElectionRequest};
use crate::raft_capnp::{
    answer, answers, append, call, calls, election, entry, log_id, membership, snapshot_piece, vote,
};
use crate::type_config::{Entry, LogId, Membership, Vote, term_of};
use capnp::message::{Builder, HeapAllocator};
use kiseki_types::buf::BufferSource;
use kiseki_types::peer::{BULK_LEN_BYTES_MAX, Parcel};
use openraft::EntryPayload;
use std::time::Duration;

/// Words that a message starts with; it grows as needed.
const FIRST_WORDS: u32 = 256;

fn new_message() -> Builder<HeapAllocator> {
    Builder::new(HeapAllocator::new().first_segment_words(FIRST_WORDS))
}

/// The parcel of `calls`, whose answers are wanted within `answer_within`.
///
/// Errors: they are more than one parcel carries; see [`Weight::fits`].
pub fn encode_calls(calls: &[Call], answer_within: Duration, buffers: &BufferSource) -> Result<Parcel, MessageError> {
    within("calls", calls.len() as u64, CALLS_PER_PARCEL_MAX as u64)?;
    let weight = calls.iter().map(Weight::of).fold(Weight::default(), Weight::plus);
    within("bytes beside the message", weight.bulk_len_bytes as u64, BULK_LEN_BYTES_MAX as u64)?;
    let mut bulk = Bulk::new(weight.bulk_len_bytes, buffers);
    let mut message = new_message();
    let mut root = message.init_root::<calls::Builder<'_>>();
    root.set_version(MESSAGE_VERSION);
    root.set_oldest(1);
    let within_ms = answer_within.min(ANSWER_WITHIN_MAX).as_millis();
    root.set_answer_within_ms(u32::try_from(within_ms).expect("the longest time fits"));
    let mut list = root.init_calls(count(calls.len()));
    for (number, call) in calls.iter().enumerate() {
        put_call(list.reborrow().get(count(number)), call, &mut bulk);
    }
    Ok(Parcel { message: capnp::serialize::write_message_to_words(&message), bulk: bulk.finish() })
}

/// The parcel of the answers to one parcel of calls.
#[must_use]
pub fn encode_answers(given: &[Answer]) -> Parcel {
    let mut message = new_message();
    let mut root = message.init_root::<answers::Builder<'_>>();
    root.set_version(MESSAGE_VERSION);
    root.set_oldest(1);
    let mut list = root.init_answers(count(given.len()));
    for (number, answer) in given.iter().enumerate() {
        put_answer(list.reborrow().get(count(number)), answer);
    }
    Parcel { message: capnp::serialize::write_message_to_words(&message), bulk: Vec::new() }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).expect("lists of a message are bounded")
}

/// The bytes beside a message, gathered in one buffer.
struct Bulk {
    buffer: Option<kiseki_types::buf::IoBuf>,
    used: usize,
}

impl Bulk {
    fn new(len_bytes: usize, buffers: &BufferSource) -> Bulk {
        Bulk { buffer: (len_bytes > 0).then(|| buffers(len_bytes)), used: 0 }
    }

    /// Copies `bytes` behind what is there; their length.
    fn put(&mut self, bytes: &[u8]) -> u32 {
        if let Some(buffer) = &mut self.buffer {
            buffer[self.used..self.used + bytes.len()].copy_from_slice(bytes);
            self.used += bytes.len();
        }
        count(bytes.len())
    }

    fn finish(self) -> Vec<kiseki_types::buf::IoBuf> {
        if let Some(buffer) = &self.buffer {
            assert_eq!(buffer.len(), self.used, "no stale byte of a buffer leaves the node");
        }
        self.buffer.into_iter().collect()
    }
}

fn put_call(mut out: call::Builder<'_>, call: &Call, bulk: &mut Bulk) {
    out.set_shard(call.shard.0);
    out.set_to(call.to);
    match &call.question {
        Question::Append(request) => put_append(out.init_append(), request, bulk),
        Question::Vote(request) => put_election(out.init_vote(), request),
        Question::PreVote(request) => put_election(out.init_pre_vote(), request),
        Question::Transfer(request) => {
            let mut out = out.init_transfer();
            put_vote(out.reborrow().init_from(), request.from_leader());
            out.set_to(*request.to_node_id());
            if let Some(last) = request.last_log_id() {
                put_log_id(out.init_last(), *last);
            }
        }
        Question::Snapshot(piece) => put_piece(out.init_snapshot(), piece, bulk),
        Question::Rest(request) => {
            let mut out = out.init_rest();
            put_vote(out.reborrow().init_vote(), &request.vote);
            put_log_id(out.init_last(), request.last);
        }
    }
}

fn put_append(mut out: append::Builder<'_>, request: &AppendRequest, bulk: &mut Bulk) {
    put_vote(out.reborrow().init_vote(), &request.vote);
    if let Some(previous) = request.prev_log_id {
        put_log_id(out.reborrow().init_previous(), previous);
    }
    if let Some(commit) = request.leader_commit {
        put_log_id(out.reborrow().init_commit(), commit);
    }
    if !request.entries.is_empty() {
        let mut entries = out.init_entries(count(request.entries.len()));
        for (number, entry) in request.entries.iter().enumerate() {
            put_entry(entries.reborrow().get(count(number)), entry, bulk);
        }
    }
}

fn put_entry(mut out: entry::Builder<'_>, entry: &Entry, bulk: &mut Bulk) {
    out.set_term(term_of(&entry.log_id));
    out.set_index(entry.log_id.index);
    match &entry.payload {
        EntryPayload::Blank => out.set_blank(()),
        EntryPayload::Normal(command) => out.set_command(bulk.put(&command.0)),
        EntryPayload::Membership(membership) => put_membership(out.init_membership(), membership),
    }
}

fn put_membership(mut out: membership::Builder<'_>, membership: &Membership) {
    let configs = membership.get_joint_config();
    let mut lists = out.reborrow().init_configs(count(configs.len()));
    for (number, config) in configs.iter().enumerate() {
        let mut voters = lists.reborrow().init(count(number), count(config.len()));
        for (at, voter) in config.iter().enumerate() {
            voters.set(count(at), *voter);
        }
    }
    let nodes: Vec<u64> = membership.nodes().map(|(node, _)| *node).collect();
    let mut members = out.init_members(count(nodes.len()));
    for (at, node) in nodes.iter().enumerate() {
        members.set(count(at), *node);
    }
}

fn put_election(mut out: election::Builder<'_>, request: &ElectionRequest) {
    put_vote(out.reborrow().init_vote(), &request.vote);
    out.set_is_transfer(request.leadership_transfer);
    if let Some(last) = request.last_log_id {
        put_log_id(out.init_last(), last);
    }
}

fn put_piece(mut out: snapshot_piece::Builder<'_>, piece: &SnapshotPiece, bulk: &mut Bulk) {
    put_vote(out.reborrow().init_vote(), &piece.vote);
    out.set_stream(piece.stream);
    out.set_number(piece.number);
    match &piece.frame {
        Some(frame) => out.set_frame(bulk.put(frame)),
        None => out.set_end(()),
    }
}

fn put_vote(mut out: vote::Builder<'_>, vote: &Vote) {
    out.set_term(vote.leader_id.term);
    out.set_voter(vote.leader_id.voted_for);
    out.set_committed(vote.committed);
}

fn put_log_id(mut out: log_id::Builder<'_>, id: LogId) {
    out.set_term(term_of(&id));
    out.set_index(id.index);
}

fn put_answer(mut out: answer::Builder<'_>, answer: &Answer) {
    match answer {
        Answer::Append(AppendResponse::Success) => out.set_appended(()),
        Answer::Append(AppendResponse::PartialSuccess(last)) => {
            let out = out.init_appended_up_to();
            if let Some(last) = last {
                put_log_id(out.init_last(), *last);
            }
        }
        Answer::Append(AppendResponse::Conflict) => out.set_conflict(()),
        Answer::Append(AppendResponse::HigherVote(vote)) => put_vote(out.init_higher_vote(), vote),
        Answer::Election(response) => {
            let mut out = out.init_election();
            put_vote(out.reborrow().init_vote(), &response.vote);
            out.set_granted(response.vote_granted);
            if let Some(last) = response.last_log_id {
                put_log_id(out.init_last(), last);
            }
        }
        Answer::TransferTaken => out.set_transfer_taken(()),
        Answer::PieceTaken => out.set_piece_taken(()),
        Answer::Installed(installed) => put_vote(out.init_installed(), &installed.vote),
        Answer::Rests(rests) => out.set_rests(*rests),
        Answer::NoReplica => out.set_no_replica(()),
        Answer::Late => out.set_late(()),
        Answer::Refused(reason) => {
            let mut end = reason.len().min(REASON_LEN_BYTES_MAX);
            while !reason.is_char_boundary(end) {
                end -= 1;
            }
            out.set_refused(&reason[..end]);
        }
    }
}
