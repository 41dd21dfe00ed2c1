//! An authority, nodes on executors of their own, and clients that call them.

use kiseki_executor::{Executor, ExecutorOptions};
use kiseki_net::peer::revoked::Serial;
use kiseki_net::peer::{
    Arrivals, Callers, Link, LinkInputs, LinkTarget, PeerGate, PeerLinks, PeerServer, PeerServices, PeerTrust,
    TrustMaterial,
};
use kiseki_net::{CoreRuntime, Listener, MeshShape, SidePool, Stopper};
use kiseki_types::buf::{IoBuf, stale_buffers};
use kiseki_types::ids::{CoreId, LaneId, NodeId};
use kiseki_types::peer::{Parcel, PeerHandler, ServiceId};
use kiseki_types::request::{self, RequestId};
use kiseki_types::runtime::{Ports, RuntimeExt};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber,
};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const CLUSTER: &str = "abababababababababababababababab";
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A service that answers with its lane in front of what it got.
pub const ECHO: ServiceId = ServiceId(100);
/// A service that answers when it is told to.
pub const SLOW: ServiceId = ServiceId(101);
/// A service that answers for which request it was called.
pub const REQUEST: ServiceId = ServiceId(104);
/// A service whose answers are large.
pub const LARGE: ServiceId = ServiceId(102);

pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Years of a certificate.
pub const VALID: (i32, i32) = (2020, 2100);
pub const EXPIRED: (i32, i32) = (2020, 2021);

#[derive(Clone)]
pub struct Bundle {
    pub authority: String,
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(cluster: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, format!("cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.subject_alt_names = vec![SanType::URI(format!("kiseki://{cluster}/ca").try_into().unwrap())];
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    pub fn issue(&self, name: &str, serial: u8, years: (i32, i32)) -> Bundle {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names.push(SanType::URI(format!("kiseki://{name}").try_into().unwrap()));
        params.serial_number = Some(SerialNumber::from_slice(&[serial]));
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Bundle { authority: self.pem.clone(), certificate, key: key.serialize_pem() }
    }

    pub fn node(&self, id: u8) -> Bundle {
        self.issue(&format!("{CLUSTER}/node/{id}"), id, VALID)
    }

    pub fn admin(&self, serial: u8) -> Bundle {
        self.issue(&format!("{CLUSTER}/admin/alice"), serial, VALID)
    }
}

impl Bundle {
    pub fn material(&self, revoked: &[u8]) -> TrustMaterial<'_> {
        TrustMaterial {
            authority: self.authority.as_bytes(),
            certificate: self.certificate.as_bytes(),
            key: self.key.as_bytes(),
            revoked: revoked.iter().map(|serial| Serial::new(&[*serial])).collect::<BTreeSet<_>>(),
        }
    }

    pub fn trust(&self) -> Arc<PeerTrust> {
        PeerTrust::new(self.material(&[])).unwrap()
    }
}

/// A node that serves.
pub struct Served {
    pub address: SocketAddr,
    pub gate: Arc<PeerGate>,
    pub trust: Arc<PeerTrust>,
    pub seen: Arc<Seen>,
    stopper: Stopper,
    threads: Vec<JoinHandle<()>>,
}

/// What the services of a node count.
#[derive(Default)]
pub struct Seen {
    pub calls: AtomicU64,
    pub running: AtomicU64,
    pub running_max: AtomicU64,
    pub release: AtomicBool,
    pub connections: AtomicU64,
    pub rules_broken: AtomicU64,
    pub handshake_failures: AtomicU64,
}

fn echo(seen: Arc<Seen>) -> PeerHandler {
    Rc::new(move |_, lane: LaneId, mut parcel: Parcel| {
        seen.calls.fetch_add(1, Ordering::SeqCst);
        parcel.message.splice(0..0, lane.0.to_le_bytes());
        Box::pin(async move { Ok(parcel) })
    })
}

fn request_of_call() -> PeerHandler {
    Rc::new(|_, _, _| {
        Box::pin(async {
            let message = RequestId::to_wire(request::current()).to_le_bytes().to_vec();
            Ok(Parcel { message, bulk: Vec::new() })
        })
    })
}

fn slow(seen: Arc<Seen>, ports: Ports) -> PeerHandler {
    Rc::new(move |_, _, _| {
        seen.calls.fetch_add(1, Ordering::SeqCst);
        let running = seen.running.fetch_add(1, Ordering::SeqCst) + 1;
        seen.running_max.fetch_max(running, Ordering::SeqCst);
        let (seen, ports) = (seen.clone(), ports.clone());
        Box::pin(async move {
            while !seen.release.load(Ordering::SeqCst) {
                ports.sleep(Duration::from_millis(1)).await;
            }
            seen.running.fetch_sub(1, Ordering::SeqCst);
            Ok(Parcel::default())
        })
    })
}

fn large(seen: Arc<Seen>) -> PeerHandler {
    Rc::new(move |_, _, _| {
        seen.calls.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(Parcel { message: Vec::new(), bulk: vec![IoBuf::zeroed(4 << 20)] }) })
    })
}

fn on_core(core: u16, side: Arc<SidePool>, body: impl AsyncFnOnce(Ports) + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(move || {
        Executor::new(ExecutorOptions::default())
            .unwrap()
            .run(async move { body(Rc::new(CoreRuntime::new(CoreId(core), side))).await });
    })
}

impl Served {
    /// A node of `cores` cores and four lanes on `address`.
    pub fn start_at(bundle: &Bundle, cores: u16, address: &str) -> Served {
        let trust = bundle.trust();
        let (gate, arrivals) = PeerGate::new(trust.clone(), MeshShape { core_count: cores, lane_count: 4 });
        let (stopper, stop) = Stopper::new();
        let seen = Arc::<Seen>::default();
        let side = SidePool::start(1).unwrap();
        let (sender, bound) = mpsc::channel();
        let mut threads = Vec::new();
        for (core, arrivals) in arrivals.into_iter().enumerate() {
            let core = core as u16;
            let (gate, stop, seen, sender) = (gate.clone(), stop.clone(), seen.clone(), sender.clone());
            let address: SocketAddr = address.parse().unwrap();
            threads.push(on_core(core, side.clone(), async move |ports: Ports| {
                if core == 0 {
                    let listener = Listener::bind(address).unwrap();
                    sender.send(listener.address()).unwrap();
                    ports.spawn("accept", Box::pin(gate.clone().accept(listener, ports.clone(), stop.clone())));
                }
                core_of(core, gate, stop, seen, ports, arrivals).await;
            }));
        }
        let address = bound.recv().unwrap();
        Served { address, gate, trust, seen, stopper, threads }
    }

    pub fn start(bundle: &Bundle, cores: u16) -> Served {
        Served::start_at(bundle, cores, "127.0.0.1:0")
    }

    pub fn stop(self) -> SocketAddr {
        self.stopper.stop();
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.address
    }

    /// Waits until somebody else has been turned away.
    pub fn refused_after(&self, before: u64) {
        wait(|| self.gate.refused_count() > before, "somebody is turned away");
    }

    /// A call by a good client works: the node goes on.
    pub fn goes_on(&self, authority: &Authority) {
        let address = self.address;
        client(&authority.node(9), move |inputs| async move {
            let links = PeerLinks::new(inputs);
            links.set_address(NodeId(1), address);
            let to = kiseki_types::peer::PeerLane { node: NodeId(1), lane: LaneId(0) };
            use kiseki_types::peer::PeerCalls;
            links.call(to, ECHO, Parcel::default(), PATIENCE).await.unwrap();
        });
    }
}

async fn core_of(
    core: u16,
    gate: Arc<PeerGate>,
    stop: kiseki_net::StopSignal,
    seen: Arc<Seen>,
    ports: Ports,
    arrivals: Arrivals,
) {
    let services = Rc::new(PeerServices::default());
    services.serve(ECHO, Callers::Nodes, echo(seen.clone()));
    services.serve(SLOW, Callers::Admins, slow(seen.clone(), ports.clone()));
    services.serve(ServiceId(103), Callers::Nodes, slow(seen.clone(), ports.clone()));
    services.serve(REQUEST, Callers::Nodes, request_of_call());
    services.serve(LARGE, Callers::Nodes, large(seen.clone()));
    let server = PeerServer::new(ports.clone(), CoreId(core), gate, stale_buffers(), services, stop.clone());
    let (watched, watch_ports) = (server.clone(), ports.clone());
    let counting = async move {
        loop {
            let counters = watched.counters();
            seen.connections.store(counters.connections.get(), Ordering::SeqCst);
            seen.rules_broken.store(counters.rules_broken.get(), Ordering::SeqCst);
            seen.handshake_failures.store(counters.handshake_failures.get(), Ordering::SeqCst);
            watch_ports.sleep(Duration::from_millis(1)).await;
        }
    };
    ports.spawn("counting", Box::pin(counting));
    server.run(arrivals).await;
}

/// Runs a client on an executor of its own, to its end.
pub fn client<F: Future<Output = ()> + 'static>(bundle: &Bundle, body: impl FnOnce(LinkInputs) -> F) {
    let side = SidePool::start(1).unwrap();
    let trust = bundle.trust();
    let executor = Executor::new(ExecutorOptions::default()).unwrap();
    executor.run(async {
        let ports: Ports = Rc::new(CoreRuntime::new(CoreId(0), side.clone()));
        body(LinkInputs { ports, trust, buffers: stale_buffers() }).await;
    });
}

/// A link to the node at `address` that must be `expect`.
pub fn link_to(inputs: LinkInputs, address: SocketAddr, expect: kiseki_net::peer::Expect) -> Rc<Link> {
    Link::new(inputs, LinkTarget { addresses: vec![address], expect, lane: LaneId(0) })
}

pub fn wait(condition: impl Fn() -> bool, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
