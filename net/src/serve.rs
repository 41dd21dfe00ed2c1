//! The accept loop of one core: from a listener to a handler per connection, bounded, and a clean stop.

use crate::error::NetError;
use crate::hyper_io::HyperIo;
use crate::listener::Listener;
use crate::socket::{Stream, TcpSocket};
use crate::tls::TlsAcceptor;
use futures::future::{Either, select};
use kiseki_types::runtime::{LocalBoxFuture, Ports, RuntimeExt};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// Pause after an accept that failed for want of file descriptors or memory: the cause does not go away at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Limits of one core's accept loop (I-O5).
#[derive(Clone, Copy, Debug)]
pub struct ServeLimits {
    /// Connections served at once; further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// After a stop, how long connections may take to end by themselves.
    pub drain: Duration,
}

impl Default for ServeLimits {
    fn default() -> ServeLimits {
        ServeLimits { connections_max: 4096, drain: Duration::from_secs(10) }
    }
}

/// The switch that stops accept loops.
pub struct Stopper(watch::Sender<bool>);

/// What an accept loop and its connections watch.
#[derive(Clone)]
pub struct StopSignal(watch::Receiver<bool>);

impl Stopper {
    /// A switch that is off.
    #[must_use]
    pub fn new() -> (Stopper, StopSignal) {
        let (sender, receiver) = watch::channel(false);
        (Stopper(sender), StopSignal(receiver))
    }

    /// Stops everything that watches.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl StopSignal {
    /// Ends when the switch is thrown, or is gone.
    pub async fn stopped(&self) {
        let mut receiver = self.0.clone();
        let _ = receiver.wait_for(|stopped| *stopped).await;
    }

    /// Whether the switch is thrown.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        *self.0.borrow()
    }
}

/// An accepted connection, its handshake done.
pub struct Connection {
    /// Its bytes.
    pub io: HyperIo<Stream>,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Ends when the connection should finish what it is doing and close.
    pub stop: StopSignal,
}

/// Serves one connection to its end.
pub type ConnectionHandler = Rc<dyn Fn(Connection) -> LocalBoxFuture<'static, ()>>;

/// Accepts until `stop`, hands every connection to `handler` in a task of its own, then waits until they have ended or
/// the drain limit has passed.
pub async fn serve(
    listener: Listener,
    tls: Option<TlsAcceptor>,
    ports: Ports,
    limits: ServeLimits,
    stop: StopSignal,
    handler: ConnectionHandler,
) {
    let room = Arc::new(Semaphore::new(limits.connections_max));
    accept_each(listener, &ports, &room, &stop, "connection", |socket, peer| {
        let (tls, handler, stop, ports) = (tls.clone(), handler.clone(), stop.clone(), ports.clone());
        async move {
            match open(socket, tls, &ports).await {
                Ok(stream) => handler(Connection { io: HyperIo::new(stream, ports.clone()), peer, stop }).await,
                // A client that gives up or speaks no TLS is daily life.
                Err(error) => tracing::debug!(%peer, %error, "connection dropped before its first request"),
            }
        }
    })
    .await;
    let all = u32::try_from(limits.connections_max).unwrap_or(u32::MAX);
    let mut drained = pin!(room.acquire_many(all));
    let in_time = matches!(select(drained.as_mut(), ports.sleep(limits.drain)).await, Either::Left(_));
    if !in_time {
        let left = limits.connections_max - room.available_permits();
        tracing::warn!(connections = left, "stopping with connections that did not end in time");
    }
}

/// Accepts until `stop`, and gives every connection a task of its own. While it runs it holds a permit of `room`; with none
/// left, further connections wait in the kernel's queue.
pub(crate) async fn accept_each<F: Future<Output = ()> + 'static>(
    listener: Listener,
    ports: &Ports,
    room: &Arc<Semaphore>,
    stop: &StopSignal,
    task: &'static str,
    serve: impl Fn(TcpSocket, SocketAddr) -> F,
) {
    loop {
        let next = async {
            let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
            (permit, listener.accept().await)
        };
        let (permit, accepted) = match select(pin!(next), pin!(stop.stopped())).await {
            Either::Left((next, _)) => next,
            Either::Right(_) => return,
        };
        match accepted {
            Ok((socket, from)) => {
                let serving = serve(socket, from);
                let held = async move {
                    let _permit = permit;
                    serving.await;
                };
                ports.spawn(task, Box::pin(held));
            }
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                ports.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn open(socket: TcpSocket, tls: Option<TlsAcceptor>, ports: &Ports) -> Result<Stream, NetError> {
    match tls {
        Some(tls) => tls.accept(socket, ports).await,
        None => Ok(Stream::Plain(socket)),
    }
}
