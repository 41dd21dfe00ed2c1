//! Messages of replicas: what is encoded comes back, what is damaged or too long is refused.

use super::fuzz::{sample_answers, samples};
use super::*;
use crate::raft_capnp::calls;
use crate::type_config::{Command, log_id};
use kiseki_types::buf::{IoBuf, plain_buffers};
use kiseki_types::limits::{COMMAND_LEN_BYTES_MAX, COUNTER_MAX};
use kiseki_types::peer::Parcel;

fn encoded(calls: &[Call]) -> Parcel {
    encode_calls(calls, Duration::from_millis(250), &kiseki_types::buf::stale_buffers()).expect("they fit a parcel")
}

fn append(entries: Vec<Entry>) -> Call {
    let previous = entries.first().and_then(|entry| entry.log_id.index.checked_sub(1)).map(|index| log_id(1, index));
    let request =
        AppendRequest { vote: Vote::new_committed(3, 1), prev_log_id: previous, entries, leader_commit: None };
    Call { shard: ShardId(1024), to: 2, question: Question::Append(request) }
}

fn command(index: u64, len: usize) -> Entry {
    Entry { log_id: log_id(3, index), payload: EntryPayload::Normal(Command(vec![7; len].into())) }
}

#[test]
fn calls_and_answers_read_back() {
    let calls = samples();
    let (read, within) = decode_calls(&encoded(&calls)).expect("whole");
    assert_eq!(within, Duration::from_millis(250));
    assert_eq!(format!("{read:?}"), format!("{calls:?}"));
    // A command's debug form hides its bytes.
    let commands = |calls: &[Call]| -> Vec<Command> {
        let appends = calls.iter().filter_map(|call| match &call.question {
            Question::Append(request) => Some(request.entries.clone()),
            _ => None,
        });
        let entries = appends.flatten();
        entries
            .filter_map(|e| if let EntryPayload::Normal(command) = e.payload { Some(command) } else { None })
            .collect()
    };
    assert!(commands(&read) == commands(&calls), "the bytes of commands differ");
    let answers = sample_answers();
    assert_eq!(decode_answers(&encode_answers(&answers), answers.len()).expect("whole"), answers);
}

#[test]
fn i_o5_a_parcel_that_is_cut_or_has_more_or_fewer_bytes_beside_it_is_refused() {
    let whole = encoded(&samples());
    let bulk = whole.bulk[0].to_vec();
    for len in 0..whole.message.len() {
        let cut = Parcel { message: whole.message[..len].to_vec(), bulk: vec![IoBuf::copy_of(&bulk)] };
        assert!(decode_calls(&cut).is_err(), "cut to {len}");
    }
    for beside in [&bulk[..bulk.len() - 1], &[&bulk[..], &[0]].concat(), &[]] {
        let other = Parcel { message: whole.message.clone(), bulk: vec![IoBuf::copy_of(beside)] };
        assert!(decode_calls(&other).is_err(), "{} bytes beside it", beside.len());
    }
    let two = Parcel { message: whole.message.clone(), bulk: vec![IoBuf::copy_of(&bulk), IoBuf::copy_of(&[])] };
    assert!(decode_calls(&two).is_err(), "two buffers");
    let longer = Parcel { message: [&whole.message[..], &[0; 8]].concat(), bulk: vec![IoBuf::copy_of(&bulk)] };
    assert!(decode_calls(&longer).is_err(), "bytes follow");
}

#[test]
fn i_o5_counters_behind_which_none_can_follow_and_entries_out_of_order_are_refused() {
    let good = append(vec![command(10, 3), command(11, 3)]);
    assert!(decode_calls(&encoded(&[good])).is_ok());
    for bad in [
        append(vec![command(10, 3), command(12, 3)]),
        append(vec![command(10, 3), command(10, 3)]),
        append(vec![command(COUNTER_MAX + 1, 3)]),
        append(vec![Entry { log_id: log_id(u64::MAX, 10), ..command(10, 3) }]),
        append(vec![command(10, COMMAND_LEN_BYTES_MAX + 1)]),
    ] {
        assert!(decode_calls(&encoded(std::slice::from_ref(&bad))).is_err(), "{bad:?}");
    }
}

#[test]
fn only_elected_leaders_send_entries_and_only_candidates_stand_for_election() {
    let (elected, candidate) = (Vote::new_committed(3, 1), Vote::new(3, 1));
    let append =
        |vote| Question::Append(AppendRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None });
    let transfer = |vote| Question::Transfer(TransferRequest::new(vote, 2, None));
    let piece = |vote| Question::Snapshot(SnapshotPiece { vote, stream: 7, number: 0, frame: None });
    let election = |vote| Question::Vote(ElectionRequest::new(vote, None));
    let pre_election = |vote| Question::PreVote(ElectionRequest::new(vote, None));
    for (good, bad) in [
        (append(elected), append(candidate)),
        (transfer(elected), transfer(candidate)),
        (piece(elected), piece(candidate)),
        (election(candidate), election(elected)),
        (pre_election(candidate), pre_election(elected)),
    ] {
        let read = |question| decode_calls(&encoded(&[Call { shard: ShardId(1024), to: 2, question }]));
        assert!(read(good).is_ok());
        let read = read(bad);
        assert!(matches!(read, Err(MessageError::Malformed(_))), "{read:?}");
    }
}

#[test]
fn i_o5_more_calls_than_a_parcel_carries_are_refused_on_both_sides() {
    let many: Vec<Call> = (0..=CALLS_PER_PARCEL_MAX).map(|_| append(Vec::new())).collect();
    assert!(encode_calls(&many, Duration::ZERO, &plain_buffers()).is_err());
    let mut message = capnp::message::Builder::new_default();
    let mut root = message.init_root::<calls::Builder<'_>>();
    root.set_version(1);
    root.set_oldest(1);
    root.init_calls(u32::try_from(CALLS_PER_PARCEL_MAX + 1).expect("few"));
    let parcel = Parcel { message: capnp::serialize::write_message_to_words(&message), bulk: Vec::new() };
    assert!(matches!(decode_calls(&parcel), Err(MessageError::OverLimit { what: "calls", .. })));
}

#[test]
fn a_newer_sender_is_understood_unless_it_says_that_it_can_not_be() {
    let parcel_of = |version, oldest| {
        let mut message = capnp::message::Builder::new_default();
        let mut root = message.init_root::<calls::Builder<'_>>();
        root.set_version(version);
        root.set_oldest(oldest);
        Parcel { message: capnp::serialize::write_message_to_words(&message), bulk: Vec::new() }
    };
    assert!(decode_calls(&parcel_of(MESSAGE_VERSION + 1, MESSAGE_VERSION)).is_ok());
    let too_new = decode_calls(&parcel_of(MESSAGE_VERSION + 1, MESSAGE_VERSION + 1));
    assert_eq!(too_new.unwrap_err(), MessageError::TooNew { oldest: MESSAGE_VERSION + 1 });
    for (version, oldest) in [(0, 0), (1, 0), (1, 2)] {
        assert!(decode_calls(&parcel_of(version, oldest)).is_err(), "version {version}, oldest {oldest}");
    }
}

#[test]
fn a_long_reason_is_cut_where_a_character_ends() {
    let reason = format!("x{}", "é".repeat(REASON_LEN_BYTES_MAX));
    let parcel = encode_answers(&[Answer::Refused(reason)]);
    let answers = decode_answers(&parcel, 1).expect("whole");
    assert!(matches!(&answers[..], [Answer::Refused(text)] if text.len() == REASON_LEN_BYTES_MAX - 1));
    assert!(decode_answers(&parcel, 2).is_err(), "one answer for two calls");
}

#[test]
fn the_weight_of_calls_is_what_their_parcel_takes_at_most() {
    let calls = [&samples()[..], &[append((0..500).map(|n| command(10 + n, 300)).collect())]].concat();
    let weight = calls.iter().map(Weight::of).fold(Weight::default(), Weight::plus);
    let parcel = encoded(&calls);
    assert_eq!(weight.bulk_len_bytes, parcel.bulk[0].len());
    assert!(parcel.message.len() <= weight.message_len_bytes, "{} bytes, {weight:?}", parcel.message.len());
    assert!(weight.fits());
}
