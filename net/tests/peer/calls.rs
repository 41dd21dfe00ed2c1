//! What is sent arrives, once, unchanged, on the core of its lane; bounds and deadlines hold; what broke is made again.

use crate::support::{Authority, ECHO, LARGE, PATIENCE, REQUEST, SLOW, Served, client, link_to, wait};
use futures::future::join_all;
use kiseki_net::peer::{CallFailure, Expect, PeerLinks};
use kiseki_types::buf::IoBuf;
use kiseki_types::ids::{LaneId, NodeId};
use kiseki_types::limits::DEVICE_BLOCK_BYTES_MAX;
use kiseki_types::peer::{
    BULK_BUFFERS_MAX, BULK_LEN_BYTES_MAX, MESSAGE_LEN_BYTES_MAX, Parcel, PeerCallError, PeerCalls, PeerLane, ServiceId,
};
use kiseki_types::request::{self, RequestId};
use kiseki_types::runtime::RuntimeExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn node_1(lane: u16) -> PeerLane {
    PeerLane { node: NodeId(1), lane: LaneId(lane) }
}

#[test]
fn a_call_carries_the_request_that_it_is_made_for() {
    let authority = Authority::new(crate::support::CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    let address = served.address;
    client(&authority.node(2), move |inputs| async move {
        let links = PeerLinks::new(inputs);
        links.set_address(NodeId(1), address);
        for id in [Some(RequestId(0x1234)), None, Some(RequestId(u64::MAX))] {
            let call = links.call(node_1(0), REQUEST, Parcel::default(), PATIENCE);
            let answer = request::within(id, call).await.unwrap();
            assert_eq!(answer.message, RequestId::to_wire(id).to_le_bytes());
            assert_eq!(request::current(), None);
        }
    });
}

fn pattern(len: usize, seed: usize) -> IoBuf {
    let mut buf = IoBuf::zeroed(len);
    buf.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 7 + at / 251 + seed) as u8);
    buf
}

#[test]
fn parcels_of_all_sizes_arrive_unchanged_on_the_core_of_their_lane() {
    let authority = Authority::new(crate::support::CLUSTER);
    let served = Served::start(&authority.node(1), 2);
    let address = served.address;
    client(&authority.node(2), move |inputs| async move {
        let links = PeerLinks::new(inputs);
        links.set_address(NodeId(1), address);
        let cases: [(usize, Vec<usize>); 6] = [
            (0, vec![]),
            (9, vec![0, 1, 4096, 0]),
            (MESSAGE_LEN_BYTES_MAX - 2, vec![]),
            (100, vec![BULK_LEN_BYTES_MAX]),
            (16_000, vec![BULK_LEN_BYTES_MAX / BULK_BUFFERS_MAX; BULK_BUFFERS_MAX]),
            (17, vec![16_385, 16_383, 5]),
        ];
        for round in 0..3_u16 {
            let calls = cases.iter().enumerate().map(|(number, (message_len, bulk_lens))| {
                let lane = (number as u16 + round) % 4;
                let bulk = bulk_lens.iter().map(|len| pattern(*len, number)).collect();
                let parcel = Parcel { message: vec![number as u8; *message_len], bulk };
                links.call(node_1(lane), ECHO, parcel, PATIENCE)
            });
            for (number, answer) in join_all(calls).await.into_iter().enumerate() {
                let answer = answer.unwrap();
                let lane = (number as u16 + round) % 4;
                let (message_len, bulk_lens) = &cases[number];
                assert_eq!(answer.message[..2], lane.to_le_bytes(), "case {number}");
                assert_eq!(answer.message[2..], vec![number as u8; *message_len], "case {number}");
                assert_eq!(answer.bulk.iter().map(|buf| buf.len()).collect::<Vec<_>>(), *bulk_lens);
                for buf in &answer.bulk {
                    assert!(buf[..] == pattern(buf.len(), number)[..], "case {number}: bulk bytes differ");
                    assert_eq!(buf.as_ptr().align_offset(DEVICE_BLOCK_BYTES_MAX), 0, "I-C7");
                }
            }
        }
        let figures = links.figures();
        assert_eq!(figures.len(), 2, "one link for each core");
        assert!(figures.iter().all(|(.., figures)| figures.connects == 1 && figures.in_flight == 0), "{figures:?}");
        let calls: u64 = figures.iter().map(|(.., figures)| figures.calls).sum();
        assert_eq!(calls, 18);
        assert_eq!(figures.iter().map(|(.., figures)| figures.latency.iter().sum::<u64>()).sum::<u64>(), 18);
    });
    served.stop();
}

#[test]
fn i_o5_what_is_over_a_limit_is_not_sent() {
    let authority = Authority::new(crate::support::CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    let address = served.address;
    client(&authority.node(2), move |inputs| async move {
        let links = PeerLinks::new(inputs);
        links.set_address(NodeId(1), address);
        for parcel in [
            Parcel { message: vec![0; MESSAGE_LEN_BYTES_MAX + 1], bulk: Vec::new() },
            Parcel { message: Vec::new(), bulk: vec![IoBuf::zeroed(BULK_LEN_BYTES_MAX), IoBuf::zeroed(1)] },
            Parcel { message: Vec::new(), bulk: (0..=BULK_BUFFERS_MAX).map(|_| IoBuf::zeroed(1)).collect() },
        ] {
            let refused = links.call(node_1(0), ECHO, parcel, PATIENCE).await;
            assert!(matches!(refused, Err(PeerCallError::TooLarge { .. })), "I-O5");
        }
        // The answer is longer by two bytes than the question.
        let parcel = Parcel { message: vec![0; MESSAGE_LEN_BYTES_MAX], bulk: Vec::new() };
        let unknown = links.call(node_1(0), ECHO, parcel, PATIENCE).await;
        assert!(matches!(unknown, Err(PeerCallError::Unreachable { reason, .. }) if reason.contains("was run")));
        links.call(node_1(0), ECHO, Parcel::default(), PATIENCE).await.unwrap();
    });
    assert_eq!(served.seen.calls.load(Ordering::SeqCst), 2);
    served.stop();
}

#[test]
fn i_o5_calls_over_what_the_peer_grants_wait_and_all_are_answered() {
    let authority = Authority::new(crate::support::CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    let (address, seen) = (served.address, served.seen.clone());
    client(&authority.node(2), move |inputs| async move {
        let ports = inputs.ports.clone();
        let links = PeerLinks::new(inputs);
        links.set_address(NodeId(1), address);
        let calls = (0..400).map(|_| links.call(node_1(0), ServiceId(103), Parcel::default(), PATIENCE));
        let watched = seen.clone();
        let release = async move {
            while watched.running.load(Ordering::SeqCst) < 128 {
                ports.sleep(Duration::from_millis(1)).await;
            }
            ports.sleep(Duration::from_millis(50)).await; // time to break the bound, if it can be broken
            watched.release.store(true, Ordering::SeqCst);
        };
        let (answers, ()) = futures::join!(join_all(calls), release);
        assert!(answers.into_iter().all(|answer| answer.is_ok()));
    });
    assert_eq!(served.seen.running_max.load(Ordering::SeqCst), 128, "I-O5: as many as are granted");
    assert_eq!(served.seen.calls.load(Ordering::SeqCst), 400, "each once");
    served.stop();
}

#[test]
fn a_call_without_answer_ends_at_its_deadline_and_its_credit_comes_back() {
    let authority = Authority::new(crate::support::CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    let (address, seen) = (served.address, served.seen.clone());
    // Administrators are granted four calls.
    client(&authority.admin(7), move |inputs| async move {
        let link = link_to(inputs, address, Expect::Node(NodeId(1)));
        let call = |deadline| link.clone().call(SLOW, LaneId(0), Parcel::default(), deadline);
        let late = join_all((0..4).map(|_| call(Duration::from_millis(100)))).await;
        assert!(late.iter().all(|outcome| matches!(outcome, Err(CallFailure::Deadline))));
        let waits = call(Duration::from_millis(100)).await;
        assert!(matches!(waits, Err(CallFailure::Deadline)), "the peer still works on four: the wait counts too");
        assert_eq!(seen.calls.load(Ordering::SeqCst), 4, "the fifth was not sent");
        seen.release.store(true, Ordering::SeqCst);
        assert!(join_all((0..8).map(|_| call(PATIENCE))).await.iter().all(Result::is_ok));
        assert_eq!(seen.calls.load(Ordering::SeqCst), 12);
    });
    served.stop();
}

#[test]
fn calls_on_a_connection_that_breaks_end_and_the_link_is_made_again() {
    let authority = Authority::new(crate::support::CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    let (address, seen, bundle) = (served.address, served.seen.clone(), authority.node(1));
    client(&authority.node(2), move |inputs| async move {
        let ports = inputs.ports.clone();
        let links = PeerLinks::new(inputs);
        links.set_address(NodeId(1), address);
        let waiting = links.call(node_1(0), ServiceId(103), Parcel::default(), PATIENCE);
        let stopping = async {
            while seen.running.load(Ordering::SeqCst) < 1 {
                ports.sleep(Duration::from_millis(1)).await;
            }
            std::thread::spawn(move || served.stop())
        };
        let (outcome, stopped) = futures::join!(waiting, stopping);
        let unknown = matches!(outcome, Err(PeerCallError::Unreachable { node: NodeId(1), .. }));
        assert!(unknown, "it was sent, and what came of it is not known: {:?}", outcome.err());
        seen.release.store(true, Ordering::SeqCst);
        let address = stopped.join().unwrap();
        let outcome = links.call(node_1(0), ECHO, Parcel::default(), PATIENCE).await;
        let not_sent = matches!(outcome, Err(PeerCallError::NotSent { node: NodeId(1), .. }));
        assert!(not_sent, "nobody is there, so nothing happened: {:?}", outcome.err());
        let again = Served::start_at(&bundle, 1, &address.to_string());
        let deadline = ports.now() + PATIENCE;
        while links.call(node_1(0), ECHO, Parcel::default(), PATIENCE).await.is_err() {
            assert!(ports.now() < deadline, "the link is not made again");
            ports.sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(links.figures()[0].2.connects, 2);
        again.stop();
    });
}

#[test]
fn a_node_that_stops_answers_what_runs_and_refuses_what_comes() {
    let authority = Authority::new(crate::support::CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    let (address, seen) = (served.address, served.seen.clone());
    client(&authority.node(2), move |inputs| async move {
        let ports = inputs.ports.clone();
        let links = PeerLinks::new(inputs);
        links.set_address(NodeId(1), address);
        let running = links.call(node_1(0), ServiceId(103), Parcel::default(), PATIENCE);
        let stopping = async {
            while seen.running.load(Ordering::SeqCst) < 1 {
                ports.sleep(Duration::from_millis(1)).await;
            }
            let stopped = std::thread::spawn(move || served.stop());
            let refused = loop {
                match links.call(node_1(0), ECHO, Parcel::default(), PATIENCE).await {
                    Ok(_) => ports.sleep(Duration::from_millis(1)).await,
                    Err(error) => break error,
                }
            };
            seen.release.store(true, Ordering::SeqCst);
            (refused, stopped)
        };
        let (outcome, (refused, stopped)) = futures::join!(running, stopping);
        assert!(matches!(refused, PeerCallError::Refused { .. }), "nothing has happened, and it is said: {refused}");
        assert!(outcome.is_ok(), "what ran is answered: {:?}", outcome.err());
        stopped.join().unwrap();
    });
}

#[test]
fn i_o5_a_peer_that_takes_no_answers_is_not_read_any_more_and_holds_up_nobody_else() {
    let authority = Authority::new(crate::support::CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    let mut greedy = crate::rules::Raw::open(&authority.node(3), served.address);
    greedy.call(1, LARGE, 0);
    wait(|| served.seen.calls.load(Ordering::SeqCst) == 1, "how large the answers are is seen");
    for call in 2..=100 {
        greedy.call(call, LARGE, 0);
    }
    wait(|| served.seen.calls.load(Ordering::SeqCst) >= 3, "some calls are served");
    for _ in 0..3 {
        served.goes_on(&authority);
    }
    let served_calls = served.seen.calls.load(Ordering::SeqCst) - 3;
    assert!(served_calls <= 24, "I-O5: {served_calls} answers of 4 MiB wait for a peer that takes none");
    served.stop();
}

#[test]
fn a_peer_that_reads_no_further_call_says_that_it_is_there() {
    use kiseki_net::peer::control::Control;
    let authority = Authority::new(crate::support::CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    let mut raw = crate::rules::Raw::open(&authority.node(3), served.address);
    // One large answer, then calls of which as large ones are expected, and which take their time.
    raw.call(1, LARGE, 0);
    wait(|| served.seen.calls.load(Ordering::SeqCst) == 1, "how large the answers are is seen");
    for call in 2..=9 {
        raw.call(call, ServiceId(103), 0);
    }
    raw.control(&Control::Ping(77));
    let said = raw.next_control();
    assert!(matches!(said, Some(Control::Pong(_))), "a call under way, and no sign of life: {said:?}");
    assert!(served.seen.running.load(Ordering::SeqCst) < 8, "it reads on, so nothing was shown");
    served.seen.release.store(true, Ordering::SeqCst);
    served.stop();
}

#[test]
fn a_connection_that_ends_late_leaves_the_newer_one_alone() {
    let authority = Authority::new(crate::support::CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    let address = served.address;
    client(&authority.node(2), move |inputs| async move {
        let ports = inputs.ports.clone();
        let link = link_to(inputs, address, Expect::Node(NodeId(1)));
        link.connected().await.unwrap();
        link.close("a test");
        // The first of them begins to connect; the one that was closed ends while they wait.
        let again = (0..40).map(|moment| {
            let (link, wait) = (&link, ports.sleep(Duration::from_micros(100) * moment));
            async move {
                if moment > 0 {
                    wait.await;
                }
                link.connected().await.map(drop)
            }
        });
        let again = join_all(again).await;
        assert!(again.iter().all(Result::is_ok), "{again:?}");
        link.clone().call(ECHO, LaneId(0), Parcel::default(), PATIENCE).await.unwrap();
        assert_eq!(link.figures().connects, 2);
    });
    served.stop();
}
