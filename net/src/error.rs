//! What can go wrong between this node and a socket.

use std::io;
use std::net::SocketAddr;
use thiserror::Error;

/// Why a socket, a certificate or a connection can't be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NetError {
    /// Somebody else listens there.
    #[error("{address} is in use by another process; stop it, or choose another port")]
    AddressInUse {
        /// The address.
        address: SocketAddr,
    },
    /// The address can't be listened on.
    #[error("can't listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A connection failed or was not accepted.
    #[error("connection failed")]
    Connection(#[from] io::Error),
    /// The certificate or its private key can't be used.
    #[error("the TLS certificate or its private key can't be used: {reason}")]
    Certificate {
        /// Why; never key material.
        reason: String,
    },
    /// The client did not end the handshake in time.
    #[error("TLS handshake not done within {limit_ms} ms")]
    HandshakeTimeout {
        /// The limit.
        limit_ms: u64,
    },
}
