//! A node among others: who it is, where the others are, and how they hear of it.
//!
//! What is known of the nodes comes from the control shard to every core ([`NodeBoard`]); [`Neighbours`] carries it from the core that
//! heard first to all others, to `nodes.json` and to the status board, and resolves names on a thread of its own, since a
//! name server may take its time.

use crate::admin_store::not_done;
use crate::core_node::CoreNode;
use crate::executor::CoreShared;
use crate::join_service::{JoinAnswer, JoinQuestion};
use crate::nodes_file::{NodeRow, NodesFile};
use crate::outcome::Outcome;
use crate::peer_section::PeerSection;
use crate::status::{NodeSeen, Phase, StatusBoard};
use anyhow::{Context, Result, bail};
use kiseki_engine::message::{ControlRequest, ControlResponse, NodeEntry};
use kiseki_engine::nodes::{NobodyElse, NodeBoard};
use kiseki_net::peer::PeerLinks;
use kiseki_types::ids::{LaneId, NodeId};
use kiseki_types::peer::{Parcel, PeerCalls, PeerLane, ServiceId};
use kiseki_types::runtime::{Instant, Ports, RuntimeExt};
use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// The node that forms a cluster.
pub const FIRST_NODE: NodeId = NodeId(1);

/// Between two looks of a core at what it has heard.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Between two resolutions of names, when nothing was heard.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);

/// Between two attempts to be heard, or to hear whether the control shard answers.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Between two attempts to have the rack recorded.
const RACK_PAUSE: Duration = Duration::from_secs(3);

/// Between two rounds in which a node that starts asks who the others are.
const ASK_INTERVAL: Duration = Duration::from_secs(2);

/// How long one of them has for its answer.
const ASK_MAX: Duration = Duration::from_secs(3);

/// Between two lines in the log while a node waits.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// Who this node is, and what it knew of the others when it started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Its number.
    pub own: NodeId,
    /// Homes of the cluster.
    pub homes: u16,
    /// Which change of the records `entries` is.
    pub version: u64,
    /// The nodes.
    pub entries: Vec<NodeEntry>,
}

impl Membership {
    /// From what the node's directories say: `nodes.json`, the note in its metadata, its lanes.
    pub fn of(
        nodes: Option<NodesFile>,
        joined: Option<crate::metadata::JoinNote>,
        forms_cluster: bool,
        lanes: u16,
    ) -> Result<Membership> {
        if forms_cluster && nodes.is_some() {
            bail!(
                "this node was to join a cluster, and that was cut off: run `kiseki-server init --join BUNDLE` again"
            );
        }
        if let (Some(note), None) = (&joined, &nodes) {
            bail!(
                "nodes.json is missing, so node {} does not know where the others are: copy the file of another node of the cluster \
                 beside kiseki.toml",
                note.node
            );
        }
        let (own, homes) = match joined {
            Some(note) => (NodeId(note.node), note.homes),
            None => (FIRST_NODE, lanes),
        };
        let (version, entries) = match &nodes {
            Some(file) => (file.version, file.entries()?),
            None => (0, Vec::new()),
        };
        Ok(Membership { own, homes, version, entries })
    }

    /// Whether there are other members, as far as it knew.
    #[must_use]
    pub fn has_others(&self) -> bool {
        self.own != FIRST_NODE || self.entries.iter().any(|entry| entry.node != self.own && entry.state.is_member())
    }
}

struct Known {
    version: u64,
    entries: Vec<NodeEntry>,
    /// Entries that the thread has not seen yet.
    is_fresh: bool,
    addresses: BTreeMap<NodeId, SocketAddr>,
}

/// The other nodes, as the cores of this one share them.
pub struct Neighbours {
    own: NodeId,
    known: Mutex<Known>,
    /// Raised with each change of addresses.
    addresses_version: AtomicU64,
    /// The newest version of entries that a core has told.
    told: AtomicU64,
}

impl Neighbours {
    /// As it was known at the start.
    #[must_use]
    pub fn new(membership: &Membership) -> Neighbours {
        let (version, entries) = (membership.version, membership.entries.clone());
        // What needs no name server is there at once.
        let addresses = others(membership.own, &entries).filter_map(|(node, entry)| {
            let literal = entry.addresses.iter().find_map(|address| address.parse().ok())?;
            Some((node, literal))
        });
        let known = Mutex::new(Known { version, addresses: addresses.collect(), is_fresh: true, entries });
        let (addresses_version, told) = (AtomicU64::new(1), AtomicU64::new(version));
        Neighbours { own: membership.own, known, addresses_version, told }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("nothing panics while it holds what is known of the nodes")
    }

    /// A core has heard of a change.
    fn tell(&self, version: u64, entries: impl FnOnce() -> Vec<NodeEntry>) {
        if version <= self.told.load(Ordering::Acquire) {
            return;
        }
        let mut known = self.known();
        if version > known.version {
            (known.version, known.entries, known.is_fresh) = (version, entries(), true);
            self.told.store(version, Ordering::Release);
        }
    }

    /// What is known, when that is newer than `version`.
    fn newer_than(&self, version: u64) -> Option<(u64, Vec<NodeEntry>)> {
        if self.told.load(Ordering::Acquire) <= version {
            return None;
        }
        let known = self.known();
        Some((known.version, known.entries.clone()))
    }

    /// What is known, as others are told.
    #[must_use]
    pub fn file(&self, shared: &CoreShared) -> NodesFile {
        let known = self.known();
        NodesFile::of(shared.keys.cluster, shared.membership.homes, known.version, &known.entries)
    }

    /// Every node with an address, when that has changed since `seen`.
    fn addresses_after(&self, seen: &mut u64) -> Option<BTreeMap<NodeId, SocketAddr>> {
        let version = self.addresses_version.load(Ordering::Acquire);
        (version != *seen).then(|| {
            *seen = version;
            self.known().addresses.clone()
        })
    }

    fn set_addresses(&self, addresses: BTreeMap<NodeId, SocketAddr>) {
        let mut known = self.known();
        if known.addresses != addresses {
            known.addresses = addresses;
            self.addresses_version.fetch_add(1, Ordering::AcqRel);
        }
    }
}

fn others(own: NodeId, entries: &[NodeEntry]) -> impl Iterator<Item = (NodeId, &NodeEntry)> {
    entries.iter().filter(move |entry| entry.node != own && entry.state.is_member()).map(|entry| (entry.node, entry))
}

/// Where a node is: the first of its addresses that means one.
fn resolve(entry: &NodeEntry) -> Option<SocketAddr> {
    entry.addresses.iter().find_map(|address| address.to_socket_addrs().ok()?.next())
}

/// Resolves names and writes `nodes.json` on a thread of its own, until the node stops.
pub fn watch(shared: Arc<CoreShared>) -> std::io::Result<()> {
    let look = move || {
        let (mut resolved_at, mut written) = (None::<std::time::Instant>, shared.membership.version);
        while !shared.stop.is_stopped() {
            let (version, entries, is_fresh) = {
                let mut known = shared.neighbours.known();
                (known.version, known.entries.clone(), std::mem::take(&mut known.is_fresh))
            };
            if is_fresh || resolved_at.is_none_or(|at| at.elapsed() >= RESOLVE_INTERVAL) {
                resolved_at = Some(std::time::Instant::now());
                let found = others(shared.neighbours.own, &entries);
                let found = found.filter_map(|(node, entry)| Some((node, resolve(entry)?))).collect();
                shared.neighbours.set_addresses(found);
            }
            if version > written {
                match NodesFile::of(shared.keys.cluster, shared.membership.homes, version, &entries)
                    .write(&shared.config.dir)
                {
                    Ok(()) => written = version,
                    Err(error) => {
                        tracing::warn!(error = %format!("{error:#}"), "what is known of the nodes is not on disk; tried again");
                        std::thread::sleep(RESOLVE_INTERVAL / 30);
                    }
                }
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    };
    std::thread::Builder::new().name("kiseki-nodes".to_owned()).spawn(look).map(drop)
}

/// One core's side of the cluster.
pub struct CoreCluster {
    /// The nodes as this core knows them.
    pub board: Rc<NodeBoard>,
    /// Its links, where the port for members is open.
    pub links: Option<Rc<PeerLinks>>,
}

impl CoreCluster {
    /// What was known at the start, with links where the node has any.
    #[must_use]
    pub fn new(shared: &CoreShared, links: Option<Rc<PeerLinks>>) -> CoreCluster {
        let board = NodeBoard::new(shared.membership.own);
        board.take_up(shared.membership.version, &shared.membership.entries);
        CoreCluster { board, links }
    }

    /// The way to other nodes.
    #[must_use]
    pub fn calls(&self) -> Rc<dyn PeerCalls> {
        match &self.links {
            None => Rc::new(NobodyElse),
            Some(links) => links.clone(),
        }
    }

    /// Sets addresses as they are known, now and whenever they change, and tells the other cores what this one hears.
    pub fn follow(&self, shared: &Arc<CoreShared>, ports: &Ports) {
        let (board, links) = (self.board.clone(), self.links.clone());
        let (shared, task_ports, mut seen) = (shared.clone(), ports.clone(), 0);
        let mut look = move || {
            shared.neighbours.tell(board.version(), || board.entries());
            if let Some((version, entries)) = shared.neighbours.newer_than(board.version()) {
                board.take_up(version, &entries);
            }
            let known = shared.neighbours.addresses_after(&mut seen);
            if let (Some(links), Some(known)) = (&links, known) {
                known.into_iter().for_each(|(node, address)| links.set_address(node, address));
            }
            !shared.stop.is_stopped()
        };
        look();
        let following = async move {
            while look() {
                task_ports.sleep(LOOK_INTERVAL).await;
            }
        };
        ports.spawn("nodes", Box::pin(following));
    }

    /// When each node answered this core last, boottime nanoseconds.
    #[must_use]
    pub fn heard(&self) -> BTreeMap<u64, u64> {
        let last = |entry: NodeEntry| Some((entry.node.0, self.board.last_heard(entry.node)?.0));
        self.board.others().into_iter().filter_map(last).collect()
    }
}

/// Where the others reach this node; empty when it does not know that itself.
#[must_use]
pub fn own_addresses(shared: &CoreShared) -> Vec<String> {
    let peer = &shared.config.peer;
    if !peer.addresses.is_empty() || peer.listen.is_none_or(|listen| listen.ip().is_unspecified()) {
        return peer.addresses.clone();
    }
    // The port may have been chosen by the kernel.
    let listens = shared.board.lock().peer.as_ref().map(|peer| peer.listen.clone());
    listens.filter(|listens| !listens.is_empty()).into_iter().collect()
}

/// Tells the control shard, in the background and until it has heard, that the node is here.
pub fn announce(shared: &Arc<CoreShared>, node: &Rc<CoreNode>, ports: &Ports) {
    let (shared, node, task_ports) = (shared.clone(), node.clone(), ports.clone());
    let announcing = async move {
        let mut told_at: Instant = task_ports.now();
        let (mut is_known, mut is_told) = (false, false);
        while !shared.stop.is_stopped() {
            let request = ControlRequest::NodeHere {
                node: shared.membership.own,
                addresses: own_addresses(&shared),
                lanes: shared.lanes,
                cores: shared.config.cores,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                rack: shared.config.peer.rack.clone(),
            };
            match node.engine().calls().control(request).await {
                Ok(ControlResponse::Node(entry)) => {
                    if !is_known {
                        tracing::info!(
                            node = entry.node.0,
                            state = entry.state.name(),
                            "the cluster knows that this node is here"
                        );
                    }
                    is_known = true;
                    if entry.rack == shared.config.peer.rack {
                        return;
                    }
                    // It waits for nodes that are away, or to be updated.
                    if !is_told && task_ports.now().since(told_at) >= TELL_INTERVAL {
                        is_told = true;
                        tracing::warn!(
                            rack = shared.config.peer.rack,
                            "the cluster does not know this node's rack yet: every node has to answer and to run a release that knows racks"
                        );
                    }
                    task_ports.sleep(RACK_PAUSE).await;
                }
                Ok(_) => unreachable!("the control shard answers each request in kind"),
                Err(error) if not_done(&error).outcome == Outcome::Refused => {
                    let warning = format!("the cluster does not take this node: {error}");
                    tracing::error!("{warning}");
                    return shared.board.lock().warnings.push(warning);
                }
                Err(error) => {
                    if task_ports.now().since(told_at) >= TELL_INTERVAL {
                        told_at = task_ports.now();
                        tracing::warn!(%error, "the cluster has not heard yet that this node is here; tried again");
                    }
                }
            }
            task_ports.sleep(RETRY_PAUSE).await;
        }
    };
    ports.spawn("announce", Box::pin(announcing));
}

/// While the node starts: asks the nodes that it knows of who the others are. It may have been away while all that it must reach
/// now joined or moved.
pub fn ask_around(shared: &Arc<CoreShared>, cluster: &CoreCluster, ports: &Ports) {
    let (shared, board, task_ports) = (shared.clone(), cluster.board.clone(), ports.clone());
    let Some(links) = cluster.links.clone() else { return };
    let asking = async move {
        while !shared.stop.is_stopped() && shared.board.lock().phase == Phase::Starting {
            for entry in board.others() {
                let to = PeerLane { node: entry.node, lane: LaneId(0) };
                let parcel = Parcel { message: JoinQuestion::Nodes.encode(), bulk: Vec::new() };
                // Who does not answer is asked again soon.
                let Ok(answer) = links.call(to, ServiceId::JOIN, parcel, ASK_MAX).await else { continue };
                board.heard(entry.node, task_ports.now());
                if let Ok(JoinAnswer::Nodes(file)) = JoinAnswer::decode(&answer.message)
                    && let Ok(entries) = file.entries()
                {
                    shared.neighbours.tell(file.version, || entries);
                }
            }
            task_ports.sleep(ASK_INTERVAL).await;
        }
    };
    ports.spawn("ask around", Box::pin(asking));
}

/// Waits until the control shard answers: without it nobody can be served. Says so while it waits. False: the node is to stop.
pub async fn wait_for_control(shared: &Arc<CoreShared>, node: &Rc<CoreNode>, ports: &Ports) -> bool {
    while !shared.stop.is_stopped() {
        // Any question will do.
        match node.engine().calls().control(ControlRequest::Tenants).await {
            Ok(_) => {
                shared.board.lock().waits_because.clear();
                return true;
            }
            Err(error) => shared.board.lock().waits_because = error.to_string(),
        }
        ports.sleep(RETRY_PAUSE).await;
    }
    false
}

/// While the node starts and there are others: says every ten seconds for whom it may be waiting.
pub fn tell_while_starting(shared: &Arc<CoreShared>, cluster: &CoreCluster, ports: &Ports) {
    let (shared, board, task_ports) = (shared.clone(), cluster.board.clone(), ports.clone());
    let telling = async move {
        let begin = task_ports.now();
        let mut told_at = begin;
        while !shared.stop.is_stopped() && shared.board.lock().phase == Phase::Starting {
            let now = task_ports.now();
            let waits_for = waits_for(&board, now);
            settle(&shared, now, &BTreeMap::new());
            shared.board.lock().waits_for.clone_from(&waits_for);
            if now.since(told_at) >= TELL_INTERVAL {
                told_at = now;
                let because = shared.board.lock().waits_because.clone();
                let seconds = now.since(begin).as_secs();
                tracing::info!(seconds, nodes = %waits_for, %because, "waiting for other nodes: a majority has to run");
            }
            task_ports.sleep(RETRY_PAUSE).await;
        }
        let mut report = shared.board.lock();
        report.waits_for.clear();
        report.waits_because.clear();
    };
    ports.spawn("waiting", Box::pin(telling));
}

/// The members that have not answered lately.
fn waits_for(board: &NodeBoard, now: Instant) -> String {
    let silent = board.others().into_iter().filter_map(|entry| {
        let address = entry.addresses.first().cloned().unwrap_or_default();
        match board.last_heard(entry.node) {
            Some(at) if now.since(at) < TELL_INTERVAL => None,
            Some(at) => Some(format!("node {} at {address} (silent for {} s)", entry.node.0, now.since(at).as_secs())),
            None => Some(format!("node {} at {address} (never heard)", entry.node.0)),
        }
    });
    silent.collect::<Vec<_>>().join(", ")
}

/// Puts the nodes into the report, with the devices of each that work, as far as they are known; who was heard when, the reports of
/// all cores say.
pub fn settle(shared: &CoreShared, now: Instant, devices: &BTreeMap<u64, u64>) {
    let entries = shared.neighbours.known().entries.clone();
    let mut report = shared.board.lock();
    let heard = |node: u64| {
        let at = report.core_reports.values().filter_map(|core| core.heard.get(&node)).max()?;
        Some(now.0.saturating_sub(*at) / 1_000_000)
    };
    let own_devices = report.devices.iter().filter(|device| device.is_usable()).count() as u64;
    let seen = |entry: &NodeEntry| {
        let is_here = entry.node == shared.membership.own;
        NodeSeen {
            row: NodeRow::from(entry),
            is_here,
            heard_ms_ago: if is_here { Some(0) } else { heard(entry.node.0) },
            devices: if is_here { Some(own_devices) } else { devices.get(&entry.node.0).copied() },
        }
    };
    let nodes = entries.iter().map(seen).collect();
    report.nodes = nodes;
}

/// The certificate has to name the node that the metadata names (I-L10), and a node with others needs its port.
pub fn check_port(membership: &Membership, certified: Option<NodeId>, board: &StatusBoard) -> Result<()> {
    match certified {
        Some(certified) if certified != membership.own => bail!(
            "the certificate is of node {}, this directory belongs to node {}: put the right certificate into [peer] \
             certificate_dir (a node never takes another number; to join anew, use a new directory and devices formatted anew)",
            certified.0,
            membership.own.0
        ),
        None if membership.has_others() => {
            let why = board.lock().warnings.iter().find(|warning| warning.contains("port for members")).cloned();
            Err(anyhow::anyhow!(why.unwrap_or_else(|| "[peer] listen is not set".to_owned()))).with_context(|| {
                format!(
                    "this is node {} of a cluster of several, which does nothing without its links to the others",
                    membership.own.0
                )
            })
        }
        _ => Ok(()),
    }
}

/// A node with others has to be found by them, also when it moves.
pub fn check_addresses(membership: &Membership, peer: &PeerSection) -> Result<()> {
    let listens_anywhere = peer.listen.is_some_and(|listen| listen.ip().is_unspecified());
    match membership.has_others() && listens_anywhere && peer.addresses.is_empty() {
        true => bail!("{NOBODY_FINDS}"),
        false => Ok(()),
    }
}

/// Said where a node would join or start without an address.
pub const NOBODY_FINDS: &str = "it listens at any address, so nobody would know where to call it: --peer-address HOST:PORT, or `addresses` \
                                in [peer] of kiseki.toml";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::JoinNote;
    use kiseki_engine::message::NodeState;
    use kiseki_types::ids::ClusterId;

    fn entry(node: u64, state: NodeState) -> NodeEntry {
        let addresses = vec![format!("127.0.0.{node}:9100")];
        NodeEntry { state, addresses, lanes: 2, cores: 1, ..NodeEntry::invited(NodeId(node), 0) }
    }

    #[test]
    fn a_node_that_nobody_would_find_does_not_start() {
        let of = |others: bool| Membership {
            own: FIRST_NODE,
            homes: 4,
            version: 1,
            entries: if others { vec![entry(1, NodeState::Active), entry(2, NodeState::Active)] } else { Vec::new() },
        };
        let peer = |listen: &str, addresses: &[&str]| PeerSection {
            listen: Some(listen.parse().unwrap()),
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
            ..PeerSection::default()
        };
        for (others, listen, addresses, starts) in [
            (true, "0.0.0.0:9100", &[][..], false),
            (true, "[::]:9100", &[], false),
            (true, "0.0.0.0:9100", &["storage1:9100"], true),
            (true, "10.0.0.1:9100", &[], true),
            (false, "0.0.0.0:9100", &[], true),
        ] {
            let checked = check_addresses(&of(others), &peer(listen, addresses));
            assert_eq!(checked.is_ok(), starts, "{others}, {listen}, {addresses:?}: {checked:?}");
        }
    }

    #[test]
    fn i_o4_what_was_to_join_forms_no_cluster() {
        let file = || Some(NodesFile::of(ClusterId([1; 16]), 8, 3, &[entry(1, NodeState::Active)]));
        assert!(Membership::of(file(), None, true, 4).unwrap_err().to_string().contains("--join"), "I-O4");
        let joined = Membership::of(file(), Some(JoinNote { node: 2, homes: 8 }), false, 4).unwrap();
        assert_eq!((joined.own, joined.homes, joined.has_others()), (NodeId(2), 8, true));
        let first = Membership::of(file(), None, false, 4).unwrap();
        assert_eq!((first.own, first.homes, first.has_others()), (FIRST_NODE, 4, false));
        let lost = Membership::of(None, Some(JoinNote { node: 2, homes: 8 }), false, 4).unwrap_err().to_string();
        assert!(lost.contains("copy the file"), "{lost}");
        assert!(!Membership::of(None, None, true, 4).unwrap().has_others());
    }

    #[test]
    fn i_l10_a_certificate_of_another_node_is_refused() {
        let file = NodesFile::of(ClusterId([1; 16]), 8, 3, &[]);
        let joined = Membership::of(Some(file), Some(JoinNote { node: 2, homes: 8 }), false, 4).unwrap();
        let board = StatusBoard::default();
        check_port(&joined, Some(NodeId(2)), &board).unwrap();
        let error = check_port(&joined, Some(NodeId(3)), &board).unwrap_err().to_string();
        assert!(error.contains("node 3") && error.contains("belongs to node 2"), "I-L10: {error}");
        assert!(format!("{:#}", check_port(&joined, None, &board).unwrap_err()).contains("listen"));
        let alone = Membership::of(None, None, true, 4).unwrap();
        check_port(&alone, None, &board).unwrap();
    }

    #[test]
    fn what_one_core_hears_reaches_the_addresses_once() {
        let membership =
            Membership { own: NodeId(1), homes: 2, version: 3, entries: vec![entry(2, NodeState::Active)] };
        let neighbours = Neighbours::new(&membership);
        let mut seen = 0;
        let known = neighbours.addresses_after(&mut seen).unwrap();
        assert_eq!(known, BTreeMap::from([(NodeId(2), "127.0.0.2:9100".parse().unwrap())]));
        assert!(neighbours.addresses_after(&mut seen).is_none());
        neighbours.tell(3, || panic!("nothing new"));
        neighbours.tell(4, || vec![entry(2, NodeState::Removed), entry(3, NodeState::Active)]);
        let known = neighbours.known().entries.clone();
        let found = others(NodeId(1), &known).filter_map(|(node, entry)| Some((node, resolve(entry)?))).collect();
        neighbours.set_addresses(found);
        let known = neighbours.addresses_after(&mut seen).unwrap();
        assert_eq!(known.keys().copied().collect::<Vec<_>>(), [NodeId(3)], "who was removed is not called");
    }
}
