//! Where connections of peers come in: one core accepts, reads where they want to go, and hands the raw socket over.

use crate::listener::Listener;
use crate::mesh::MeshShape;
use crate::peer::preamble::{self, PREAMBLE_LEN_BYTES};
use crate::peer::refusals::Refusals;
use crate::peer::trust::PeerTrust;
use crate::runtime::boottime;
use crate::serve::{StopSignal, accept_each};
use crate::socket::TcpSocket;
use futures::future::{Either, select};
use futures::io::AsyncReadExt;
use kiseki_types::runtime::{Ports, RuntimeExt};
use socket2::Socket;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

/// A connection must say where it wants to go within this time.
const PREAMBLE_LIMIT: Duration = Duration::from_secs(5);

/// Connections that are asked at once; further ones wait in the kernel's queue (I-O5).
const PREAMBLES_MAX: usize = 256;

/// Sockets that wait for their core; with more, further ones are closed.
const SOCKETS_WAITING_MAX: usize = 64;

/// A socket on its way to its core.
pub struct Arrived {
    pub(crate) socket: Socket,
    pub(crate) from: SocketAddr,
}

/// Sockets as a core receives them.
pub type Arrivals = mpsc::Receiver<Arrived>;

/// What all cores of a node know about connections of peers.
pub struct PeerGate {
    trust: Arc<PeerTrust>,
    shape: MeshShape,
    doors: Vec<mpsc::Sender<Arrived>>,
    refusals: Refusals,
}

impl PeerGate {
    /// The gate of a node, and the arrivals of each of its cores.
    #[must_use]
    pub fn new(trust: Arc<PeerTrust>, shape: MeshShape) -> (Arc<PeerGate>, Vec<Arrivals>) {
        let (doors, arrivals) = (0..shape.core_count).map(|_| mpsc::channel(SOCKETS_WAITING_MAX)).unzip();
        (Arc::new(PeerGate { trust, shape, doors, refusals: Refusals::default() }), arrivals)
    }

    /// Whom the node believes.
    #[must_use]
    pub fn trust(&self) -> &Arc<PeerTrust> {
        &self.trust
    }

    /// Which core holds which lane.
    #[must_use]
    pub fn shape(&self) -> MeshShape {
        self.shape
    }

    /// How often somebody was turned away.
    #[must_use]
    pub fn refused_count(&self) -> u64 {
        self.refusals.count()
    }

    /// Somebody is turned away.
    pub(crate) fn refused(&self, peer: &str, reason: &str) {
        if self.refusals.note(peer, reason, boottime()) {
            tracing::warn!(%peer, %reason, "peer turned away; counted, and not logged again for an hour");
        }
    }

    /// Accepts until `stop`.
    pub async fn accept(self: Arc<Self>, listener: Listener, ports: Ports, stop: StopSignal) {
        let room = Arc::new(Semaphore::new(PREAMBLES_MAX));
        accept_each(listener, &ports, &room, &stop, "peer preamble", |socket, from| {
            let (gate, ports) = (self.clone(), ports.clone());
            async move { gate.route(socket, from, &ports).await }
        })
        .await;
    }

    async fn route(&self, mut socket: TcpSocket, from: SocketAddr, ports: &Ports) {
        let mut bytes = [0; PREAMBLE_LEN_BYTES];
        let read = match select(pin!(socket.read_exact(&mut bytes)), ports.sleep(PREAMBLE_LIMIT)).await {
            Either::Left((read, _)) => Some(read.is_ok()),
            Either::Right(_) => None,
        };
        // Reasons without what was sent: whoever sends something else each time must not fill the log.
        let lane = match read {
            Some(true) => preamble::decode(&bytes).map_err(|_| "it sends no preamble of ours"),
            Some(false) => Err("it closes before its preamble is whole"),
            None => Err("it sends no preamble in time"),
        };
        let peer = from.ip().to_string();
        match lane {
            Err(reason) => self.refused(&peer, reason),
            Ok(lane) if lane.0 >= self.shape.lane_count => self.refused(&peer, "it wants a lane that is not there"),
            Ok(lane) => {
                let door = &self.doors[usize::from(self.shape.core_of(lane).0)];
                let arrived = Arrived { socket: socket.into_inner(), from };
                if door.try_send(arrived).is_err() {
                    self.refused(&peer, "the node is starting, stopping or overloaded");
                }
            }
        }
    }
}
