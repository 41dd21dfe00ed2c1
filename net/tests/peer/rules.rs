//! What strangers and rule breakers can do: nothing, and be counted.

use crate::support::{Authority, Bundle, CLUSTER, ECHO, PATIENCE, SLOW, Served, wait};
use kiseki_net::peer::control::{Control, Hello};
use kiseki_net::peer::frame::{FrameKind, HEAD_LEN_BYTES, Head};
use kiseki_net::peer::name::cluster_id;
use kiseki_net::peer::preamble;
use kiseki_types::ids::{ClusterId, LaneId};
use kiseki_types::peer::{MESSAGE_LEN_BYTES_MAX, ServiceId};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A client that sends what it likes.
pub struct Raw(StreamOwned<ClientConnection, TcpStream>);

pub fn hello(cluster: ClusterId, node: u64, versions: (u16, u16)) -> Control {
    let (version_min, version_max) = versions;
    Control::Hello(Hello { version_min, version_max, cluster, node, cores: 0, lanes: 0, calls_max: 0, bytes_max: 0 })
}

impl Raw {
    /// A TLS connection that has said nothing yet.
    pub fn connect(bundle: &Bundle, address: SocketAddr, with_certificate: bool) -> Raw {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(bundle.authority.as_bytes()).unwrap()).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(bundle.certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(bundle.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match with_certificate {
            true => config.with_client_auth_cert(chain, key).unwrap(),
            false => config.with_no_client_auth(),
        };
        let session = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(&preamble::encode(LaneId(0))).unwrap();
        Raw(StreamOwned::new(session, socket))
    }

    /// A connection that calls can be made on, as node 3.
    pub fn open(bundle: &Bundle, address: SocketAddr) -> Raw {
        let mut raw = Raw::connect(bundle, address, true);
        raw.control(&hello(cluster_id(CLUSTER).unwrap(), 3, (1, 1)));
        assert!(matches!(raw.next_control(), Some(Control::Hello(_))));
        raw
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        // The other side may have closed already; what it said can still be read.
        let _gone = self.0.write_all(bytes).and_then(|()| self.0.flush());
    }

    pub fn control(&mut self, control: &Control) {
        let message = control.encode();
        let head = Head { message_len: message.len(), ..Head::empty(FrameKind::Control, 0) };
        self.bytes(&[head.encode(), message].concat());
    }

    pub fn call(&mut self, call: u64, service: ServiceId, message_len: usize) {
        let head = Head { service, message_len, ..Head::empty(FrameKind::Call, call) };
        self.bytes(&[head.encode(), vec![0; message_len]].concat());
    }

    /// The next control frame; parcels in between are passed over. `None` at the end.
    pub fn next_control(&mut self) -> Option<Control> {
        loop {
            let mut fixed = [0; HEAD_LEN_BYTES];
            self.0.read_exact(&mut fixed).ok()?;
            let mut lengths = vec![0; Head::lengths_len(&fixed).unwrap()];
            self.0.read_exact(&mut lengths).ok()?;
            let head = Head::decode(&fixed, &lengths).unwrap();
            let mut content = vec![0; head.content_len()];
            self.0.read_exact(&mut content).ok()?;
            if head.kind == FrameKind::Control {
                return Some(Control::decode(&content).unwrap());
            }
        }
    }

    /// The reason that the other side closes with.
    pub fn goodbye(&mut self) -> String {
        loop {
            match self.next_control() {
                Some(Control::Goodbye(reason)) => return reason,
                Some(_) => {}
                None => return String::new(),
            }
        }
    }
}

#[test]
fn i_o5_a_peer_that_breaks_the_rules_is_told_counted_and_changes_nothing() {
    let authority = Authority::new(CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    let head = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Head { service: ECHO, ..Head::empty(FrameKind::Call, 1) }.encode();
        change(&mut bytes);
        bytes
    };
    let over = (MESSAGE_LEN_BYTES_MAX as u32 + 1).to_le_bytes();
    type Sends<'a> = Box<dyn Fn(&mut Raw) + 'a>;
    let cases: [(&str, &str, Sends<'_>); 8] = [
        ("oversized", "over the limit", Box::new(|raw| raw.bytes(&head(&|bytes| bytes[4..8].copy_from_slice(&over))))),
        ("garbage", "unknown value", Box::new(|raw| raw.bytes(&[0xee; 64]))),
        (
            "control garbage",
            "control frame",
            Box::new(|raw| {
                let head = Head { message_len: 8, ..Head::empty(FrameKind::Control, 0) };
                raw.bytes(&[head.encode(), vec![0xff; 8]].concat());
            }),
        ),
        ("second hello", "hello", Box::new(|raw| raw.control(&hello(cluster_id(CLUSTER).unwrap(), 3, (1, 1))))),
        (
            "replayed",
            "again",
            Box::new(|raw| {
                raw.call(5, ECHO, 3);
                raw.call(5, ECHO, 3);
            }),
        ),
        (
            "out of turn",
            "again",
            Box::new(|raw| {
                raw.call(5, ECHO, 3);
                raw.call(4, ECHO, 3);
            }),
        ),
        ("an answer", "no call", Box::new(|raw| raw.bytes(&Head::empty(FrameKind::Answer, 1).encode()))),
        (
            "more calls than granted",
            "granted",
            Box::new(|raw| {
                (1..=129).for_each(|call| raw.call(call, ServiceId(103), 0));
            }),
        ),
    ];
    for (number, (what, words, send)) in cases.iter().enumerate() {
        let mut raw = Raw::open(&authority.node(3), served.address);
        send(&mut raw);
        let reason = raw.goodbye();
        assert!(reason.contains(words), "{what}: {reason:?}");
        let broken = number as u64 + 1;
        wait(|| served.seen.rules_broken.load(Ordering::SeqCst) == broken, "I-O5: it is counted");
    }
    served.seen.release.store(true, Ordering::SeqCst);
    // Two answers were for calls before the broken rule, the others for slow ones within the grant.
    assert_eq!(served.seen.calls.load(Ordering::SeqCst), 2 + 128, "nothing else was served");
    served.goes_on(&authority);
    served.stop();
}

#[test]
fn a_link_that_carries_pings_only_lives_on() {
    let authority = Authority::new(CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    let mut raw = Raw::open(&authority.node(3), served.address);
    for round in 0..2 {
        let last = 3_000 * (round + 1);
        (last - 2_999..=last).for_each(|number| raw.control(&Control::Ping(number)));
        loop {
            match raw.next_control() {
                Some(Control::Pong(number)) if number == last => break,
                Some(Control::Pong(_)) => {}
                other => panic!("round {round}: {other:?}"),
            }
        }
        std::thread::sleep(Duration::from_millis(1_200)); // a second later they count anew; nothing shows it
    }
    served.stop();
}

#[test]
fn another_version_or_cluster_is_refused_with_a_reason_that_can_be_read() {
    let authority = Authority::new(CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    for (said, words) in [
        (hello(cluster_id(CLUSTER).unwrap(), 3, (7, 9)), "7 to 9"),
        (hello(ClusterId([1; 16]), 3, (1, 1)), "different clusters"),
        (hello(cluster_id(CLUSTER).unwrap(), 4, (1, 1)), "node 4"),
        (Control::Ping(1), "without a hello"),
    ] {
        let before = served.gate.refused_count();
        let mut raw = Raw::connect(&authority.node(3), served.address, true);
        raw.control(&said);
        let reason = raw.goodbye();
        assert!(reason.contains(words), "{said:?}: {reason:?}");
        served.refused_after(before);
    }
    served.goes_on(&authority);
    served.stop();
}

#[test]
fn what_is_no_peer_of_ours_gets_nowhere() {
    let authority = Authority::new(CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    let before = served.gate.refused_count();
    let mut http = TcpStream::connect(served.address).unwrap();
    http.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _reset = http.read_to_end(&mut answer);
    assert!(answer.is_empty(), "nothing is said to a stranger");
    served.refused_after(before);

    let before = served.gate.refused_count();
    let mut garbage = TcpStream::connect(served.address).unwrap();
    garbage.write_all(&preamble::encode(LaneId(0))).unwrap();
    garbage.write_all(&[0x55; 4096]).unwrap();
    served.refused_after(before);

    let before = served.gate.refused_count();
    let mut truncated = TcpStream::connect(served.address).unwrap();
    truncated.write_all(&preamble::encode(LaneId(0))[..7]).unwrap();
    drop(truncated);
    served.refused_after(before);

    let before = served.gate.refused_count();
    let mut no_certificate = Raw::connect(&authority.node(3), served.address, false);
    no_certificate.control(&hello(cluster_id(CLUSTER).unwrap(), 3, (1, 1)));
    assert_eq!(no_certificate.next_control(), None, "without a certificate nothing is read");
    served.refused_after(before);

    let mut cut_off = Raw::open(&authority.node(3), served.address);
    cut_off.bytes(&Head { service: ECHO, message_len: 100, ..Head::empty(FrameKind::Call, 1) }.encode());
    drop(cut_off);
    wait(|| served.seen.connections.load(Ordering::SeqCst) == 0, "a connection that is cut off ends");
    assert_eq!(served.seen.calls.load(Ordering::SeqCst), 0, "nothing was served");
    served.goes_on(&authority);
    served.stop();
}

#[test]
fn a_recorded_connection_played_again_is_refused() {
    let authority = Authority::new(CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let (proxy_address, node_address) = (proxy.local_addr().unwrap(), served.address);
    let recording = std::thread::spawn(move || {
        let (client, _) = proxy.accept().unwrap();
        let node = TcpStream::connect(node_address).unwrap();
        let (mut answers_from, mut answers_to) = (node.try_clone().unwrap(), client.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut answers_from, &mut answers_to));
        let (mut from, mut to, mut recorded) = (client, node, Vec::new());
        let mut piece = [0; 4096];
        while let Ok(len @ 1..) = from.read(&mut piece) {
            recorded.extend_from_slice(&piece[..len]);
            to.write_all(&piece[..len]).unwrap();
        }
        recorded
    });
    let mut raw = Raw::open(&authority.node(3), proxy_address);
    raw.call(1, ECHO, 3);
    wait(|| served.seen.calls.load(Ordering::SeqCst) == 1, "the call is served once");
    drop(raw);
    let recorded = recording.join().unwrap();
    let before = served.gate.refused_count();
    let mut replay = TcpStream::connect(served.address).unwrap();
    replay.write_all(&recorded).unwrap();
    served.refused_after(before);
    assert_eq!(served.seen.calls.load(Ordering::SeqCst), 1, "the call is not served again");
    served.goes_on(&authority);
    served.stop();
}

#[test]
fn a_node_may_not_administer() {
    let authority = Authority::new(CLUSTER);
    let served = Served::start(&authority.node(1), 1);
    let before = served.gate.refused_count();
    let mut raw = Raw::open(&authority.node(3), served.address);
    raw.call(1, SLOW, 0);
    served.refused_after(before);
    assert_eq!(served.seen.calls.load(Ordering::SeqCst), 0);
    served.stop();
}
