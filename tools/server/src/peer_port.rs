//! The port for members of the cluster: whom the node believes there, and what it answers: other nodes' questions, and
//! administration, to holders of an administrator's certificate. Certificates and the list of revoked ones are read again when they change.

use crate::admin::server::AdminDesk;
use crate::admin::{AdminRequest, AdminResponse, LINE_LEN_BYTES_MAX};
use crate::config::Config;
use crate::core_node::CoreNode;
use crate::executor::CoreShared;
use crate::join_service;
use crate::pki::issued::{RENEW_BEFORE_S, read_revoked};
use crate::pki::{Bundle, authority};
use crate::status::{LinkReport, PeerReport, StatusBoard};
use anyhow::{Context, Result, anyhow, bail};
use futures::channel::oneshot;
use kiseki_devices::pool::BufferPool;
use kiseki_engine::nodes::NodeBoard;
use kiseki_net::peer::counters::LinkFigures;
use kiseki_net::peer::{
    Arrivals, Callers, LinkInputs, PeerGate, PeerLinks, PeerRole, PeerServer, PeerServices, PeerTrust,
};
use kiseki_net::{Listener, MeshShape};
use kiseki_types::buf::BufferSource;
use kiseki_types::ids::{ClusterId, CoreId, NodeId};
use kiseki_types::peer::{Parcel, PeerHandler, PeerIdentity, ServiceId};
use kiseki_types::runtime::Ports;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Between two looks at the files of certificates.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Requests of administrators that are answered at once: each has a thread (I-O5).
const REQUESTS_MAX: usize = 16;

/// Whom the node believes, before anything is opened.
pub struct PeerTrustOfNode {
    listen: SocketAddr,
    trust: Arc<PeerTrust>,
    report: PeerReport,
}

impl PeerTrustOfNode {
    /// Reads the files that the configuration names; `None` when the port is closed.
    pub fn read(config: &Config, cluster: ClusterId) -> Result<Option<PeerTrustOfNode>> {
        let Some(listen) = config.peer.listen else { return Ok(None) };
        let dir = &config.peer.certificate_dir;
        let hint = "; `kiseki-server init` makes what is missing, or take `listen` out of [peer]";
        let bundle = Bundle::read(dir).with_context(|| format!("[peer] listen is set{hint}"))?;
        let (_, revoked) = read_revoked(&config.peer.revoked_file)?;
        let count = revoked.len() as u64;
        let trust = bundle.trust(dir, revoked)?;
        let own = trust.own();
        let PeerRole::Node(_) = own.name.role else {
            bail!("{} holds the certificate of {}, which is no node", dir.display(), own.name);
        };
        if own.name.cluster != cluster {
            bail!("{} holds a certificate of cluster {}; this is cluster {cluster}", dir.display(), own.name.cluster);
        }
        let report = PeerReport { listen: listen.to_string(), revoked: count, ..describe(&trust) };
        Ok(Some(PeerTrustOfNode { listen, trust, report }))
    }

    /// The node that the certificate names.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        match self.trust.own().name.role {
            PeerRole::Node(node) => Some(node),
            PeerRole::Admin(_) | PeerRole::Authority => None,
        }
    }

    /// The port, to be served by the cores.
    #[must_use]
    pub fn open(self, shape: MeshShape, board: &StatusBoard) -> PeerPort {
        let (gate, arrivals) = PeerGate::new(self.trust, shape);
        board.lock().peer = Some(self.report);
        let arrivals = Mutex::new(arrivals.into_iter().map(Some).collect());
        PeerPort { listen: self.listen, gate, arrivals, requests: Arc::default() }
    }
}

/// The port as the cores share it.
pub struct PeerPort {
    listen: SocketAddr,
    gate: Arc<PeerGate>,
    arrivals: Mutex<Vec<Option<Arrivals>>>,
    requests: Arc<AtomicUsize>,
}

impl PeerPort {
    /// Connections and calls that were turned away since the start.
    #[must_use]
    pub fn refused_count(&self) -> u64 {
        self.gate.refused_count()
    }

    /// Links to other nodes, of one core.
    #[must_use]
    pub fn links(&self, pool: &Rc<BufferPool>, ports: &Ports) -> Rc<PeerLinks> {
        PeerLinks::new(LinkInputs { ports: ports.clone(), trust: self.gate.trust().clone(), buffers: buffers(pool) })
    }
}

fn describe(trust: &PeerTrust) -> PeerReport {
    let own = trust.own();
    PeerReport { name: own.name.role.to_string(), not_after_unix: own.not_after, ..PeerReport::default() }
}

fn buffers(pool: &Rc<BufferPool>) -> BufferSource {
    let pool = pool.clone();
    Rc::new(move |len_bytes| pool.alloc(len_bytes))
}

/// What one core answers there.
#[must_use]
pub fn services(
    shared: &Arc<CoreShared>,
    node: &Rc<CoreNode>,
    board: &Rc<NodeBoard>,
    desk: AdminDesk<CoreShared>,
) -> Rc<PeerServices> {
    let services = Rc::new(PeerServices::default());
    if let Some(port) = &shared.peer {
        services.serve(ServiceId::ADMIN, Callers::Admins, admin_handler(desk, port.requests.clone()));
    }
    // It asks the control shard itself who may.
    services.serve(ServiceId::JOIN, Callers::Nodes, join_service::handler(shared.clone(), node.clone()));
    for (service, handler) in node.peer_services() {
        services.serve(service, Callers::Nodes, for_members(board.clone(), handler));
    }
    services
}

/// Turns away whoever comes in the name of a node that was removed, or that nobody invited: a certificate is not enough.
fn for_members(board: Rc<NodeBoard>, handler: PeerHandler) -> PeerHandler {
    Rc::new(move |caller, lane, parcel| {
        let is_stranger = match caller {
            PeerIdentity::Node(node) => board.is_stranger(node),
            PeerIdentity::Admin => true,
        };
        match is_stranger {
            true => {
                Box::pin(async { Err("the cluster has no such node: it was removed, or never invited".to_owned()) })
            }
            false => handler(caller, lane, parcel),
        }
    })
}

/// Serves the port on one core; core 0 accepts for all.
pub fn serve(
    shared: &Arc<CoreShared>,
    core: CoreId,
    pool: &Rc<BufferPool>,
    services: Rc<PeerServices>,
    ports: &Ports,
) -> Result<Option<Rc<PeerServer>>> {
    let Some(port) = &shared.peer else { return Ok(None) };
    let (gate, stop) = (port.gate.clone(), shared.ending.members());
    let server = PeerServer::new(ports.clone(), core, gate.clone(), buffers(pool), services, stop.clone());
    let mut arrivals = port.arrivals.lock().expect("nothing panics while it takes its arrivals");
    let arrivals = arrivals[usize::from(core.0)].take().expect("a core serves its arrivals once");
    ports.spawn("peer server", Box::pin(server.clone().run(arrivals)));
    if core == CoreId(0) {
        let listener = Listener::bind(port.listen)?;
        if let Some(report) = &mut shared.board.lock().peer {
            report.listen = listener.address().to_string();
        }
        ports.spawn("peer accept", Box::pin(gate.accept(listener, ports.clone(), stop)));
    }
    Ok(Some(server))
}

/// Answers what the admin socket answers, each request on a thread of its own: what is asked may take its time.
fn admin_handler(desk: AdminDesk<CoreShared>, requests: Arc<AtomicUsize>) -> PeerHandler {
    Rc::new(move |_, _, parcel: Parcel| {
        let asked = ask(desk.clone(), requests.clone(), parcel);
        Box::pin(async move {
            let message = match asked?.await {
                Ok(answer) => answer?,
                Err(oneshot::Canceled) => unknown("the node is stopping"),
            };
            Ok(Parcel { message, bulk: Vec::new() })
        })
    })
}

/// The answer when it is too late to refuse: what was asked for may be done, or on its way.
fn unknown(reason: &str) -> Vec<u8> {
    let response = AdminResponse::failed(format!("{reason}; whether it was done is not known: look with `status`"));
    serde_json::to_vec(&response).expect("two texts")
}

/// Why a request is answered on the socket only. Records name who asked, and from here it would be whoever the caller likes.
fn for_the_socket(message: &[u8]) -> Option<String> {
    match serde_json::from_slice(message) {
        Ok(AdminRequest::DeviceEnroll { .. } | AdminRequest::DeviceReplace { .. }) => {
            Some("device changes go through the socket on the node so far: use kiseki-devctl there".to_owned())
        }
        _ => None,
    }
}

type Answer = oneshot::Receiver<Result<Vec<u8>, String>>;

fn ask(mut desk: AdminDesk<CoreShared>, requests: Arc<AtomicUsize>, parcel: Parcel) -> Result<Answer, String> {
    if parcel.message.len() > LINE_LEN_BYTES_MAX || !parcel.bulk.is_empty() {
        return Err(format!("a request is one JSON object of at most {LINE_LEN_BYTES_MAX} bytes"));
    }
    if requests.fetch_add(1, Ordering::Relaxed) >= REQUESTS_MAX {
        requests.fetch_sub(1, Ordering::Relaxed);
        return Err(format!("{REQUESTS_MAX} requests are being answered already; try again"));
    }
    let (sender, receiver) = oneshot::channel();
    let count = requests.clone();
    let spawned = std::thread::Builder::new().name("kiseki-admin-peer".to_owned()).spawn(move || {
        let answer = for_the_socket(&parcel.message)
            .map_or_else(|| Ok(desk.answer(&parcel.message).unwrap_or_else(|error| unknown(&error.to_string()))), Err);
        count.fetch_sub(1, Ordering::Relaxed);
        let _gone = sender.send(answer);
    });
    if let Err(error) = spawned {
        requests.fetch_sub(1, Ordering::Relaxed);
        return Err(format!("no thread for the request: {error}"));
    }
    Ok(receiver)
}

/// What a core says of its links.
pub fn report(peers: &PeerServer, values: &mut BTreeMap<String, u64>) -> Vec<LinkReport> {
    let counters = peers.counters();
    for (name, value) in [
        ("peer_connections", counters.connections.get()),
        ("peer_accepted_total", counters.accepted.get()),
        ("peer_handshake_failures_total", counters.handshake_failures.get()),
        ("peer_rules_broken_total", counters.rules_broken.get()),
    ] {
        *values.entry(name.to_owned()).or_default() += value;
    }
    peers.figures().into_iter().map(|(peer, figures)| link_report(peer, "in", figures)).collect()
}

/// What a core says of its links to other nodes, those to the cores of one added up by whoever reads them.
pub fn report_out(links: &PeerLinks) -> Vec<LinkReport> {
    let link = |(node, _, figures): (NodeId, u16, LinkFigures)| link_report(format!("node/{}", node.0), "out", figures);
    links.figures().into_iter().map(link).collect()
}

fn link_report(peer: String, way: &str, figures: LinkFigures) -> LinkReport {
    LinkReport {
        peer,
        way: way.to_owned(),
        calls: figures.calls,
        in_flight: figures.in_flight,
        bytes_in: figures.bytes_in,
        bytes_out: figures.bytes_out,
        connects: figures.connects,
        connect_failures: figures.connect_failures,
        refused: figures.refused,
        latency: figures.latency,
        latency_sum_us: figures.latency_sum_us,
    }
}

/// Size, time and number of each file: whether one was changed or replaced.
fn looks(files: &[PathBuf]) -> Vec<Option<(u64, i64, i64, u64)>> {
    let look = |path: &PathBuf| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.len(), found.mtime(), found.mtime_nsec(), found.ino()))
    };
    files.iter().map(look).collect()
}

/// Looks from a thread of its own whether the files have changed, until the node stops.
pub fn watch(shared: Arc<CoreShared>) -> io::Result<()> {
    let mut files: Vec<PathBuf> = Bundle::files(&shared.config.peer.certificate_dir).into();
    files.push(shared.config.peer.revoked_file.clone());
    // Taken at first too: what was changed between the first reading and now must not be missed.
    let (mut seen, mut taken) = (Vec::new(), Vec::new());
    std::thread::Builder::new().name("kiseki-peer-watch".to_owned()).spawn(move || {
        let mut told_expiry = false;
        while !shared.stop.is_stopped() {
            let now = looks(&files);
            // Seen twice: of three files that are being written the first may be there without the others.
            if now == seen && now != taken {
                take_again(&shared);
                taken.clone_from(&now);
            }
            seen = now;
            told_expiry = told_expiry || tell_expiry(&shared);
            std::thread::sleep(LOOK_INTERVAL);
        }
    })?;
    Ok(())
}

/// Reads the files; when they make no sense the node goes on with what it knows.
fn take_again(shared: &CoreShared) {
    let Some(port) = &shared.peer else { return };
    let peer = &shared.config.peer;
    let taken = || -> Result<u64> {
        let bundle = Bundle::read(&peer.certificate_dir)?;
        let (_, revoked) = read_revoked(&peer.revoked_file)?;
        let count = revoked.len() as u64;
        let replaced = port.gate.trust().replace(bundle.material(revoked));
        replaced.map_err(|error| anyhow!("{}: {error}", peer.certificate_dir.display()))?;
        Ok(count)
    };
    let taken = taken();
    let mut board = shared.board.lock();
    let Some(report) = &mut board.peer else { return };
    match taken {
        Ok(revoked) => {
            let known = report.revoked;
            *report = PeerReport {
                listen: std::mem::take(&mut report.listen),
                refused: report.refused,
                revoked,
                ..describe(port.gate.trust())
            };
            if known != revoked {
                tracing::info!(revoked, "the list of revoked certificates was read again");
            }
        }
        Err(error) => {
            report.problem = format!("{error:#}; the node goes on with what it read before");
            tracing::warn!(error = %report.problem, "certificates have changed and can't be read");
        }
    }
}

/// Warns once when the node's certificate ends soon; whether it did.
fn tell_expiry(shared: &CoreShared) -> bool {
    let board = shared.board.lock();
    let Some(report) = &board.peer else { return true };
    let left = report.not_after_unix.saturating_sub(authority::unix_now());
    if left >= RENEW_BEFORE_S {
        return false;
    }
    tracing::warn!(
        days = left / 86_400,
        "the node's certificate ends; issue a new one: kiseki ca issue-node --replace"
    );
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_who_asked_is_not_taken_from_elsewhere() {
        let actor = || "node".to_owned();
        let enroll = AdminRequest::DeviceEnroll { path: "d".into(), actor: actor(), mode: Default::default() };
        let device = "0".to_owned();
        let replace =
            AdminRequest::DeviceReplace { device, path: "d".into(), actor: actor(), mode: Default::default() };
        for request in [enroll, replace] {
            assert!(for_the_socket(&serde_json::to_vec(&request).unwrap()).unwrap().contains("socket"));
        }
        assert_eq!(for_the_socket(&serde_json::to_vec(&AdminRequest::Status).unwrap()), None);
        assert_eq!(for_the_socket(b"nonsense"), None, "the desk says so");
    }
}
