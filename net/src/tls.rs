//! TLS towards clients: rustls on aws-lc-rs, HTTP/1.1 by ALPN.

use crate::error::NetError;
use crate::socket::{Stream, TcpSocket};
use futures::future::{Either, select};
use kiseki_types::runtime::{Ports, RuntimeExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use std::time::Duration;

/// A client must end its handshake within this time, or its connection is dropped (I-O5).
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// Plaintext that rustls may hold for one connection before it takes no more: a few records, so that a large body goes
/// out in few system calls.
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Ends TLS for accepted connections. Cheap to clone.
#[derive(Clone)]
pub struct TlsAcceptor {
    inner: futures_rustls::TlsAcceptor,
}

impl TlsAcceptor {
    /// Makes an acceptor from a certificate chain and its private key, both PEM.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<TlsAcceptor, NetError> {
        let refused = |reason: String| NetError::Certificate { reason };
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| refused(error.to_string()))?;
        // The parser's message could quote what it read: name the problem only (I-K8).
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| refused("the key file holds no PEM key".into()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| refused(error.to_string()))?;
        // As S3 itself does, and for a reason: over HTTP/2 nobody answers `Expect: 100-continue` for us, and clients that
        // send it with every part (rclone, the Go SDK) would wait a second for each.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor { inner: Arc::new(config).into() })
    }

    /// Performs the handshake, within [`HANDSHAKE_LIMIT`].
    pub async fn accept(&self, socket: TcpSocket, ports: &Ports) -> Result<Stream, NetError> {
        let handshake =
            self.inner.accept_with(socket, |connection| connection.set_buffer_limit(Some(SEND_BUFFER_BYTES)));
        match select(handshake, ports.sleep(HANDSHAKE_LIMIT)).await {
            Either::Left((stream, _)) => Ok(Stream::Tls(Box::new(stream?))),
            Either::Right(_) => Err(NetError::HandshakeTimeout { limit_ms: HANDSHAKE_LIMIT.as_millis() as u64 }),
        }
    }
}
