//! Where requests go: the endpoint, its certificate authority, and how a connection to it is made.

use super::body::Payload;
use crate::usage::usage;
use anyhow::{Context, Result, anyhow};
use http::Uri;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where Linux distributions keep the authorities that the system trusts.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Plaintext that a TLS connection takes before it waits for the socket: several records in one system call.
const TLS_BUFFER_BYTES: usize = 256 * 1024;

/// An S3 endpoint.
#[derive(Clone)]
pub struct Endpoint {
    /// As it was given.
    pub url: String,
    /// Value of the `Host` header.
    pub host: String,
    addresses: Vec<SocketAddr>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Endpoint {
    /// Resolves an URL; `ca_bundle` replaces the authorities that the system trusts. Errors: `Usage`.
    pub fn open(url: &str, ca_bundle: Option<&Path>) -> Result<Endpoint> {
        let wrong = |why: &str| usage(format!("endpoint {url}: {why}, such as https://127.0.0.1:9000"));
        let uri: Uri = url.parse().map_err(|_| wrong("this is no URL; give scheme, host and port"))?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("give an URL that starts with http:// or https://")),
        };
        if !["", "/"].contains(&uri.path()) || uri.query().is_some() {
            return Err(wrong("give scheme, host and port only; the bucket goes into --bucket"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("give a host"))?;
        let bare = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let addresses: Vec<SocketAddr> = (bare.as_str(), port)
            .to_socket_addrs()
            .map_err(|error| wrong(&format!("{bare} can't be resolved ({error}); give a host that can")))?
            .collect();
        let tls = match is_tls {
            false => None,
            true => {
                let name = ServerName::try_from(bare).map_err(|_| wrong("the host is no name for TLS; give one"))?;
                Some((TlsConnector::from(Arc::new(tls_config(ca_bundle)?)), name))
            }
        };
        Ok(Endpoint { url: url.to_owned(), host: authority.as_str().to_owned(), addresses, tls })
    }

    /// A connection that is ready for requests; a task of the calling runtime drives it.
    pub async fn connect(&self) -> Result<SendRequest<Payload>> {
        let stream = TcpStream::connect(&self.addresses[..]).await.context("connecting failed")?;
        stream.set_nodelay(true).context("connecting failed")?;
        match &self.tls {
            None => handshake(TokioIo::new(stream)).await,
            Some((connector, name)) => {
                let connecting = connector
                    .connect_with(name.clone(), stream, |session| session.set_buffer_limit(Some(TLS_BUFFER_BYTES)));
                handshake(TokioIo::new(connecting.await.context("the TLS handshake failed")?)).await
            }
        }
    }
}

async fn handshake<T>(io: T) -> Result<SendRequest<Payload>>
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(io).await.context("connecting failed")?;
    // Its errors reach whoever waits for an answer.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

fn tls_config(ca_bundle: Option<&Path>) -> Result<ClientConfig> {
    let system = || SYSTEM_BUNDLES.iter().map(PathBuf::from).find(|path| path.exists());
    let Some(path) = ca_bundle.map(Path::to_owned).or_else(system) else {
        return Err(usage("no certificate authorities are known; name a PEM file in AWS_CA_BUNDLE"));
    };
    let shown = path.display();
    let mut roots = RootCertStore::empty();
    let wrong =
        |error: &dyn std::fmt::Display| usage(format!("CA bundle {shown}: {error}; name a PEM file in AWS_CA_BUNDLE"));
    for certificate in CertificateDer::pem_file_iter(&path).map_err(|error| wrong(&error))? {
        // Systems carry a few certificates that rustls refuses; the others do.
        let _ = roots.add(certificate.map_err(|error| wrong(&error))?);
    }
    if roots.is_empty() {
        return Err(wrong(&"it holds no certificate"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| anyhow!("TLS can't be set up: {error}"))?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    // One request at a time on a connection, as S3 clients do: HTTP/2 would share connections.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Usage;

    #[test]
    fn endpoints_are_checked() {
        let good = Endpoint::open("http://127.0.0.1:9000", None).unwrap();
        assert_eq!((good.host.as_str(), good.addresses[0].port()), ("127.0.0.1:9000", 9000));
        assert_eq!(Endpoint::open("http://[::1]/", None).unwrap().addresses[0].port(), 80);
        for url in ["", "127.0.0.1:9000", "ftp://x", "http://127.0.0.1/bucket", "http://no.such.host.invalid:1"] {
            assert!(Endpoint::open(url, None).err().is_some_and(|error| error.is::<Usage>()), "{url}");
        }
        let missing = Endpoint::open("https://127.0.0.1:1", Some(Path::new("/no/such.pem"))).err().unwrap();
        assert!(missing.is::<Usage>() && missing.to_string().contains("AWS_CA_BUNDLE"), "{missing}");
    }
}
