//! One core's connections from peers.

use crate::peer::answerer::{Answerer, Grant};
use crate::peer::counters::{LinkCounters, LinkFigures, add};
use crate::peer::gate::{Arrivals, Arrived, PeerGate};
use crate::peer::open::{self, OpenError, Opened};
use crate::peer::services::PeerServices;
use crate::peer::session::{Ended, Session};
use crate::serve::StopSignal;
use crate::socket::TcpSocket;
use futures::future::{Either, select};
use kiseki_types::buf::BufferSource;
use kiseki_types::ids::CoreId;
use kiseki_types::runtime::{Ports, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Connections of one core at once (I-O5); further ones are closed.
const CONNECTIONS_MAX: usize = 1024;

/// Of those, such that have not proved yet who they are.
const STRANGERS_MAX: usize = 64;

/// Peers whose figures are kept; the rest counts under one name.
const PEERS_COUNTED_MAX: usize = 1024;

/// After a stop, how long calls may take that have no answer yet.
const DRAIN: Duration = Duration::from_secs(2);

/// And how long their connections have to say goodbye after that.
const PARTING: Duration = Duration::from_secs(1);

/// Between two looks whether that has come.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// What is said to whoever calls later.
const STOPPING: &str = "the node is stopping";

/// What a core counts of connections from peers, besides each peer's figures.
#[derive(Default)]
pub struct AcceptCounters {
    /// Connections that are open.
    pub connections: Cell<u64>,
    /// Connections that were let in.
    pub accepted: Cell<u64>,
    /// Handshakes and hellos that failed.
    pub handshake_failures: Cell<u64>,
    /// Connections that were closed because the peer broke the rules.
    pub rules_broken: Cell<u64>,
}

/// Serves the connections that arrive at one core.
pub struct PeerServer {
    ports: Ports,
    core: CoreId,
    gate: Arc<PeerGate>,
    buffers: BufferSource,
    services: Rc<PeerServices>,
    stop: StopSignal,
    strangers: Cell<usize>,
    counters: AcceptCounters,
    /// Nobody is served any more.
    has_ended: Cell<bool>,
    peers: RefCell<BTreeMap<String, Rc<LinkCounters>>>,
}

impl PeerServer {
    /// A server that lets nobody in yet, see [`PeerServer::run`].
    #[must_use]
    pub fn new(
        ports: Ports,
        core: CoreId,
        gate: Arc<PeerGate>,
        buffers: BufferSource,
        services: Rc<PeerServices>,
        stop: StopSignal,
    ) -> Rc<PeerServer> {
        Rc::new(PeerServer {
            ports,
            core,
            gate,
            buffers,
            services,
            stop,
            strangers: Cell::new(0),
            counters: AcceptCounters::default(),
            has_ended: Cell::new(false),
            peers: RefCell::default(),
        })
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &AcceptCounters {
        &self.counters
    }

    /// Figures by peer.
    #[must_use]
    pub fn figures(&self) -> Vec<(String, LinkFigures)> {
        self.peers.borrow().iter().map(|(peer, counters)| (peer.clone(), counters.snapshot())).collect()
    }

    /// Waits until [`PeerServer::run`] is over, which is bounded once the stop has come.
    pub async fn ended(&self) {
        while !self.has_ended.get() {
            self.ports.sleep(LOOK_INTERVAL).await;
        }
    }

    /// Serves until the stop; then calls that come are refused, those that run are answered, and the connections end. What is
    /// not done within the time for that is cut off.
    pub async fn run(self: Rc<Self>, mut arrivals: Arrivals) {
        loop {
            let arrived = match select(pin!(arrivals.recv()), pin!(self.stop.stopped())).await {
                Either::Left((Some(arrived), _)) => arrived,
                Either::Left((None, _)) | Either::Right(_) => break,
            };
            let all = self.counters.connections.get() as usize + self.strangers.get();
            if self.strangers.get() >= STRANGERS_MAX || all >= CONNECTIONS_MAX {
                self.gate.refused(&arrived.from.ip().to_string(), "too many connections at once");
                continue;
            }
            self.strangers.set(self.strangers.get() + 1);
            let server = self.clone();
            self.ports.spawn("peer connection", Box::pin(async move { server.serve(arrived).await }));
        }
        let until = self.ports.now() + DRAIN + PARTING;
        while self.counters.connections.get() > 0 && self.ports.now() < until {
            self.ports.sleep(LOOK_INTERVAL).await;
        }
        self.has_ended.set(true);
    }

    async fn serve(self: Rc<Self>, Arrived { socket, from }: Arrived) {
        let opened = self.open(socket).await;
        self.strangers.set(self.strangers.get() - 1);
        match opened {
            Ok(opened) => self.carry(opened, from).await,
            Err(error) => {
                add(&self.counters.handshake_failures, 1);
                self.gate.refused(&from.ip().to_string(), error.reason());
            }
        }
    }

    async fn open(&self, socket: socket2::Socket) -> Result<Opened, OpenError> {
        let socket = TcpSocket::new(socket).map_err(|error| OpenError::Failed(error.to_string()))?;
        let (trust, shape) = (self.gate.trust(), self.gate.shape());
        open::admit(&self.ports, trust, self.buffers.clone(), socket, |proven| {
            let grant = proven.name.identity().map(Grant::to).unwrap_or(Grant { calls_max: 0, bytes_max: 0 });
            open::own_hello(trust, shape.core_count, shape.lane_count, grant.calls_max, grant.bytes_max)
        })
        .await
    }

    async fn carry(self: &Rc<Self>, opened: Opened, from: SocketAddr) {
        let Opened { stream, reader, proven, .. } = opened;
        let peer = proven.name.role.to_string();
        let Some(identity) = proven.name.identity() else { return };
        let counters = self.counters_of(&peer);
        add(&self.counters.accepted, 1);
        add(&self.counters.connections, 1);
        add(&counters.connects, 1);
        tracing::info!(%peer, %from, core = %self.core, "peer connected");
        let session = Session::new(self.ports.clone(), counters);
        let (gate, services) = (self.gate.clone(), self.services.clone());
        let end = Answerer::new(session.clone(), self.core, gate, services, proven.clone(), identity);
        let stopping = {
            let (session, stop, end, ports) = (session.clone(), self.stop.clone(), end.clone(), self.ports.clone());
            async move {
                stop.stopped().await;
                end.leave(STOPPING);
                let until = ports.now() + DRAIN;
                while end.is_busy() && ports.now() < until {
                    ports.sleep(LOOK_INTERVAL).await;
                }
                session.close(STOPPING);
                std::future::pending::<()>().await;
            }
        };
        let carrying = session.carry(stream, reader, &*end, self.gate.trust(), &proven);
        let ended = match select(pin!(carrying), pin!(stopping)).await {
            Either::Left((ended, _)) => ended,
            Either::Right(_) => unreachable!("it never ends"),
        };
        end.end();
        self.counters.connections.set(self.counters.connections.get() - 1);
        match &ended {
            Ended::Rules(reason) => {
                add(&self.counters.rules_broken, 1);
                self.gate.refused(&peer, reason);
            }
            Ended::Here(reason) if !self.stop.is_stopped() => self.gate.refused(&peer, reason),
            Ended::Here(_) | Ended::There(_) | Ended::Broken(_) => {}
        }
        tracing::info!(%peer, %from, reason = ended.reason(), "peer disconnected");
    }

    fn counters_of(&self, peer: &str) -> Rc<LinkCounters> {
        let mut peers = self.peers.borrow_mut();
        let name = if peers.len() < PEERS_COUNTED_MAX || peers.contains_key(peer) { peer } else { "others" };
        peers.entry(name.to_owned()).or_default().clone()
    }
}
