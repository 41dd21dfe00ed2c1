//! Who is let in, and who is believed to be the one meant.

use crate::support::{Authority, Bundle, CLUSTER, ECHO, EXPIRED, PATIENCE, SLOW, Served, VALID, client, link_to, wait};
use kiseki_net::peer::{CallFailure, Expect};
use kiseki_types::ids::{LaneId, NodeId};
use kiseki_types::peer::Parcel;
use kiseki_types::runtime::RuntimeExt;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Why a client with this bundle can't call.
fn refusal(bundle: &Bundle, address: SocketAddr, expect: Expect) -> String {
    let reason = std::rc::Rc::new(std::cell::RefCell::new(String::new()));
    let told = reason.clone();
    client(bundle, move |inputs| async move {
        let link = link_to(inputs, address, expect);
        match link.call(ECHO, LaneId(0), Parcel::default(), PATIENCE).await {
            Err(CallFailure::Refused(why)) => *told.borrow_mut() = why,
            Err(other) => panic!("not refused but {other:?}"),
            Ok(_) => panic!("a call was answered"),
        }
    });
    reason.take()
}

#[test]
fn strangers_are_turned_away_with_the_reason_and_the_node_goes_on() {
    let (authority, other) = (Authority::new(CLUSTER), Authority::new(CLUSTER));
    let served = Served::start(&authority.node(1), 1);
    served.trust.replace(authority.node(1).material(&[66])).unwrap();
    let foreign_name = "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd/node/2";
    // A client of another authority believes our server no more than we believe it: it is given ours to get so far.
    let foreign = Bundle { authority: authority.pem.clone(), ..other.node(2) };
    let expired = authority.issue(&format!("{CLUSTER}/node/2"), 2, EXPIRED);
    let revoked = authority.issue(&format!("{CLUSTER}/node/2"), 66, VALID);
    for (what, bundle, words) in [
        ("foreign", foreign, "another cluster's authority"),
        ("expired", expired, "expired"),
        ("revoked", revoked, "revoked"),
    ] {
        let before = served.gate.refused_count();
        let why = refusal(&bundle, served.address, Expect::Node(NodeId(1)));
        assert!(why.contains(words), "{what}: {why}");
        served.refused_after(before);
    }
    let misnamed = authority.issue(foreign_name, 3, VALID);
    let trust = kiseki_net::peer::PeerTrust::new(misnamed.material(&[]));
    assert!(trust.is_err(), "a certificate of another cluster than its authority's");
    assert_eq!(served.seen.calls.load(Ordering::SeqCst), 0, "nothing was served");
    served.goes_on(&authority);
    served.stop();
}

#[test]
fn i_l10_only_the_node_that_is_meant_is_called() {
    let authority = Authority::new(CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    let client = authority.node(2);
    let why = refusal(&client, served.address, Expect::Node(NodeId(3)));
    assert!(why.contains("node/1"), "I-L10: {why}");
    let host = |name: &'static str| Expect::Host(name.try_into().unwrap());
    let why = refusal(&client, served.address, host("storage.example"));
    assert!(why.contains("localhost"), "it says which names would do: {why}");
    let admin = Served::start(&authority.admin(8), 1);
    let why = refusal(&client, admin.address, host("localhost"));
    assert!(why.contains("admin/alice"), "I-L10: an administrator's certificate makes no node: {why}");
    assert_eq!(served.seen.calls.load(Ordering::SeqCst) + admin.seen.calls.load(Ordering::SeqCst), 0);
    served.goes_on(&authority);
    served.stop();
    admin.stop();
}

#[test]
fn a_service_is_for_nodes_or_for_administrators() {
    let authority = Authority::new(CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    served.seen.release.store(true, Ordering::SeqCst);
    for (bundle, granted, denied) in [(authority.node(2), ECHO, SLOW), (authority.admin(7), SLOW, ECHO)] {
        let address = served.address;
        client(&bundle, move |inputs| async move {
            let link = link_to(inputs, address, Expect::Node(NodeId(1)));
            let call = |service| link.clone().call(service, LaneId(0), Parcel::default(), PATIENCE);
            call(granted).await.unwrap();
            assert!(matches!(call(denied).await, Err(CallFailure::Refused(why)) if why.contains("only")));
            let unknown = call(kiseki_types::peer::ServiceId(999)).await;
            assert!(matches!(unknown, Err(CallFailure::Refused(why)) if why.contains("999")));
            let lane = link.clone().call(granted, LaneId(900), Parcel::default(), PATIENCE).await;
            assert!(matches!(lane, Err(CallFailure::Refused(_))), "a lane that is not there");
            call(granted).await.expect("a refused call costs only itself");
        });
    }
    served.stop();
}

#[test]
fn a_certificate_that_is_revoked_loses_its_connections() {
    let authority = Authority::new(CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    let (address, trust, own) = (served.address, served.trust.clone(), authority.node(1));
    served.seen.release.store(true, Ordering::SeqCst);
    client(&authority.admin(7), move |inputs| async move {
        let ports = inputs.ports.clone();
        let link = link_to(inputs, address, Expect::Node(NodeId(1)));
        let call = || link.clone().call(SLOW, LaneId(0), Parcel::default(), PATIENCE);
        call().await.unwrap();
        trust.replace(own.material(&[8])).unwrap();
        ports.sleep(Duration::from_millis(20)).await;
        call().await.expect("somebody else's certificate");
        trust.replace(own.material(&[7, 8])).unwrap();
        let deadline = ports.now() + PATIENCE;
        loop {
            match call().await {
                Err(CallFailure::Refused(why)) => {
                    assert!(why.contains("revoked"), "{why}");
                    break;
                }
                _ => assert!(ports.now() < deadline, "it is still let in"),
            }
            ports.sleep(Duration::from_millis(5)).await;
        }
    });
    wait(|| served.seen.connections.load(Ordering::SeqCst) == 0, "the connection is closed");
    served.goes_on(&authority);
    served.stop();
}

#[test]
fn another_authority_is_not_believed_while_connections_of_the_former_live() {
    let (authority, other) = (Authority::new(CLUSTER), Authority::new(CLUSTER));
    let trust = authority.node(1).trust();
    let refused = trust.replace(other.node(1).material(&[])).unwrap_err().to_string();
    assert!(refused.contains("another authority"), "{refused}");
    let both = Bundle { authority: format!("{}{}", authority.pem, other.pem), ..authority.node(1) };
    trust.replace(both.material(&[])).expect("one more");
    assert!(trust.replace(authority.node(1).material(&[])).is_err(), "nor one less");
}

#[test]
fn i_k8_a_key_that_is_none_is_refused_without_quoting_it() {
    let bundle = Bundle { key: "very secret text".to_owned(), ..Authority::new(CLUSTER).node(1) };
    let error = kiseki_net::peer::PeerTrust::new(bundle.material(&[])).err().unwrap();
    assert!(!error.to_string().contains("secret"), "I-K8: {error}");
}
