//! Decoding and encoding again, for `crate::fuzzing`.

use super::{Answer, Call, Question, SnapshotPiece, decode_answers, decode_calls, encode_answers, encode_calls};
use crate::log_store::record::{Change, Record};
use crate::network::{
    AppendRequest, AppendResponse, ElectionRequest, ElectionResponse, RestRequest, SnapshotAnswer, TransferRequest,
};
use crate::type_config::{Command, Entry, Membership, Vote, log_id};
use kiseki_types::ShardId;
use kiseki_types::buf::{IoBuf, plain_buffers};
use kiseki_types::peer::Parcel;
use openraft::EntryPayload;
use std::collections::BTreeSet;
use std::time::Duration;

/// A message and the bytes beside it.
type Bytes = (Vec<u8>, Vec<u8>);

fn parcel(message: &[u8], beside: &[u8]) -> Parcel {
    let bulk = if beside.is_empty() { Vec::new() } else { vec![IoBuf::copy_of(beside)] };
    Parcel { message: message.to_vec(), bulk }
}

fn bytes(parcel: Parcel) -> Bytes {
    let beside = parcel.bulk.first().map_or(Vec::new(), |buffer| buffer.to_vec());
    (parcel.message, beside)
}

/// Calls, decoded as a receiver does and encoded again.
#[must_use]
pub fn fuzz_calls(message: &[u8], beside: &[u8]) -> Option<Bytes> {
    let (calls, within) = decode_calls(&parcel(message, beside)).ok()?;
    for call in &calls {
        if let Question::Append(request) = &call.question {
            // What a peer sends goes into this node's log, which reads it back with limits of its own.
            let record = Record { shard: call.shard, previous: 0, change: Change::Append(request.entries.clone()) };
            assert!(
                request.entries.len() > crate::log_store::record::ENTRIES_PER_RECORD_MAX
                    || Record::decode(&record.encode()).is_ok(),
                "an entry that was taken can be read back from the log"
            );
        }
    }
    Some(bytes(encode_calls(&calls, within, &plain_buffers()).expect("what came in a parcel fits one")))
}

/// As many answers as there are, decoded as a sender does and encoded again.
#[must_use]
pub fn fuzz_answers(message: &[u8], expected: usize) -> Option<Vec<u8>> {
    let answers = decode_answers(&parcel(message, &[]), expected).ok()?;
    Some(encode_answers(&answers).message)
}

/// Calls of each kind.
#[must_use]
pub fn fuzz_calls_seeds() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let seed = |name, calls: &[Call]| {
        let parcel = encode_calls(calls, Duration::from_millis(200), &plain_buffers()).expect("they fit");
        let (message, beside) = bytes(parcel);
        (name, message, beside)
    };
    let all = samples();
    vec![
        seed("appends", &all[..2]),
        seed("elections", &all[2..4]),
        seed("transfer", &all[4..5]),
        seed("snapshot", &all[5..7]),
        seed("rest", &all[7..]),
        seed("all", &all),
        seed("none", &[]),
    ]
}

/// Answers of each kind.
#[must_use]
pub fn fuzz_answers_seeds() -> Vec<(&'static str, Vec<u8>, usize)> {
    let answers = sample_answers();
    let one = encode_answers(&answers[..1]).message;
    vec![("one", one, 1), ("all", encode_answers(&answers).message, answers.len())]
}

/// A call of each kind: a heartbeat, an append, two elections, a transfer, two pieces of a snapshot, a rest.
pub(super) fn samples() -> Vec<Call> {
    let to_all = |question| Call { shard: ShardId(1024), to: 2, question };
    let membership = Membership::new_with_defaults(vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 2, 4])], [5]);
    let entries = vec![
        Entry { log_id: log_id(2, 10), payload: EntryPayload::Membership(membership) },
        Entry { log_id: log_id(2, 11), payload: EntryPayload::Blank },
        Entry { log_id: log_id(3, 12), payload: EntryPayload::Normal(Command(b"command".to_vec().into())) },
        Entry { log_id: log_id(3, 13), payload: EntryPayload::Normal(Command(Vec::new().into())) },
    ];
    let vote = Vote::new_committed(3, 1);
    let heartbeat = AppendRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
    let append = AppendRequest { vote, prev_log_id: Some(log_id(2, 9)), entries, leader_commit: Some(log_id(2, 8)) };
    let mut transferred = ElectionRequest::new(Vote::new(4, 2), Some(log_id(3, 13)));
    transferred.leadership_transfer = true;
    let piece = |number, frame| Question::Snapshot(SnapshotPiece { vote, stream: 77, number, frame });
    [
        Question::Append(heartbeat),
        Question::Append(append),
        Question::Vote(transferred),
        Question::PreVote(ElectionRequest::new(Vote::new(5, 3), None)),
        Question::Transfer(TransferRequest::new(vote, 2, Some(log_id(3, 13)))),
        piece(0, Some(b"a frame".to_vec())),
        piece(1, None),
        Question::Rest(RestRequest { vote, last: log_id(3, 13) }),
    ]
    .into_iter()
    .map(to_all)
    .collect()
}

/// An answer of each kind.
pub(super) fn sample_answers() -> Vec<Answer> {
    vec![
        Answer::Append(AppendResponse::Success),
        Answer::Append(AppendResponse::PartialSuccess(None)),
        Answer::Append(AppendResponse::PartialSuccess(Some(log_id(2, 9)))),
        Answer::Append(AppendResponse::Conflict),
        Answer::Append(AppendResponse::HigherVote(Vote::new(9, 3))),
        Answer::Election(ElectionResponse::new(Vote::new(9, 3), Some(log_id(2, 9)), true)),
        Answer::Election(ElectionResponse::new(Vote::new_committed(9, 3), None, false)),
        Answer::TransferTaken,
        Answer::PieceTaken,
        Answer::Rests(true),
        Answer::Rests(false),
        Answer::Installed(SnapshotAnswer::new(Vote::new_committed(9, 3))),
        Answer::NoReplica,
        Answer::Late,
        Answer::Refused("the group is being rebuilt".to_owned()),
    ]
}
