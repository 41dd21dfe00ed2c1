//! Listening sockets: one per core on the same port, so that the kernel spreads connections over the cores.

use crate::error::NetError;
use crate::socket::{TcpSocket, acceptable};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;

/// Connections that the kernel keeps waiting for one listener.
const BACKLOG: i32 = 1024;

/// A listening socket of one core.
pub struct Listener {
    socket: Socket,
    address: SocketAddr,
}

impl Listener {
    /// Fails with [`NetError::AddressInUse`] when anybody listens on `address`.
    ///
    /// Listeners of our cores share their port, and so the kernel would let a second node of the same user join in
    /// silently and take half of the first one's connections. The node calls this once, before any core listens.
    pub fn probe(address: SocketAddr) -> Result<(), NetError> {
        if address.port() == 0 {
            return Ok(());
        }
        new_socket(address)
            .and_then(|socket| {
                socket.bind(&address.into())?;
                socket.listen(1)
            })
            .map_err(|source| listen_error(address, source))
    }

    /// Listens on `address` beside other cores of this process. Port 0 lets the kernel choose one.
    pub fn bind(address: SocketAddr) -> Result<Listener, NetError> {
        let listen = || -> io::Result<Listener> {
            let socket = new_socket(address)?;
            socket.set_reuse_port(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            let bound = socket.local_addr()?.as_socket().unwrap_or(address);
            Ok(Listener { socket, address: bound })
        };
        listen().map_err(|source| listen_error(address, source))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection. Must run on the executor that will serve it.
    pub async fn accept(&self) -> io::Result<(TcpSocket, SocketAddr)> {
        loop {
            match self.socket.accept() {
                Ok((socket, peer)) => {
                    let peer = peer.as_socket().ok_or_else(|| io::Error::other("a TCP peer has a TCP address"))?;
                    return Ok((TcpSocket::new(socket)?, peer));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => acceptable(&self.socket).await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn new_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?; // a restart must not wait for the old connections' last minutes
    Ok(socket)
}

fn listen_error(address: SocketAddr, source: io::Error) -> NetError {
    match source.kind() {
        io::ErrorKind::AddrInUse => NetError::AddressInUse { address },
        _ => NetError::Listen { address, source },
    }
}
