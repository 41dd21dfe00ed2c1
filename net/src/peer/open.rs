//! From a socket to an open connection: TLS, then the hellos; each step has a deadline.

use crate::peer::control::{Control, Hello};
use crate::peer::frame::{FrameKind, Head};
use crate::peer::outbox::Outbox;
use crate::peer::preamble;
use crate::peer::reader::{FrameReader, ReadError};
use crate::peer::stream::{PeerStream, ReadAhead, SEND_BUFFER_BYTES};
use crate::peer::trust::{Expect, PeerTrust, Proven};
use crate::socket::TcpSocket;
use futures::future::{Either, poll_fn, select};
use futures::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use kiseki_types::buf::BufferSource;
use kiseki_types::ids::LaneId;
use kiseki_types::runtime::{Ports, RuntimeExt};
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// Lowest and highest version of messages that we speak.
/// Version 2: a call names the client's request that it is made for.
pub const VERSIONS: (u16, u16) = (1, 2);

/// How long connecting a socket may take, and each step after it.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// Why a connection did not come to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// It failed on the way.
    Failed(String),
    /// We or the peer will not have it: trying again does not help until somebody changes something.
    Refused(String),
}

impl OpenError {
    /// The reason.
    #[must_use]
    pub fn reason(&self) -> &str {
        let (OpenError::Failed(reason) | OpenError::Refused(reason)) = self;
        reason
    }
}

/// An open connection, before any call.
pub(crate) struct Opened {
    pub stream: PeerStream,
    pub reader: FrameReader,
    pub proven: Proven,
    pub peer: Hello,
}

async fn within<T>(ports: &Ports, limit: Duration, what: &str, step: impl Future<Output = T>) -> Result<T, OpenError> {
    match select(pin!(step), ports.sleep(limit)).await {
        Either::Left((done, _)) => Ok(done),
        Either::Right(_) => Err(OpenError::Failed(format!("{what} took longer than {} s", limit.as_secs()))),
    }
}

/// What went wrong with a socket or with TLS, in words for an operator.
pub(crate) fn failure_text(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error) => tls_words(error),
        None => error.to_string(),
    }
}

fn tls_words(error: &rustls::Error) -> String {
    use rustls::Error;
    let words = match error {
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => "the peer refuses our certificate: it has expired",
            AlertDescription::CertificateRevoked => "the peer refuses our certificate: it is revoked",
            // The second one when the other authority has the same name: its signature does not fit.
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                "the peer refuses our certificate: another cluster's authority signed it"
            }
            AlertDescription::CertificateRequired => "the peer wants a certificate",
            AlertDescription::AccessDenied => "the peer refuses our certificate: it names no member of its cluster",
            AlertDescription::BadCertificate | AlertDescription::UnsupportedCertificate => {
                "the peer refuses our certificate"
            }
            _ => return error.to_string(),
        },
        Error::InvalidCertificate(reason) => match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "its certificate has expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet; compare the clocks"
            }
            CertificateError::Revoked => "its certificate is revoked",
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "another authority than this cluster's signed its certificate"
            }
            CertificateError::ApplicationVerificationFailure => "its certificate names no member of this cluster",
            CertificateError::NotValidForNameContext { expected, presented } => {
                let names = presented.join(", ");
                return format!(
                    "its certificate is not for {}, only for {names}; use one of these, or issue it again with --address",
                    expected.to_str()
                );
            }
            _ => return format!("its certificate is not believed: {error}"),
        },
        Error::NoCertificatesPresented => "it presents no certificate",
        Error::General(reason) => return reason.clone(),
        _ => return error.to_string(),
    };
    words.to_owned()
}

fn is_refusal(error: &io::Error) -> bool {
    use rustls::Error;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    matches!(
        inner,
        Some(
            Error::AlertReceived(_)
                | Error::InvalidCertificate(_)
                | Error::NoCertificatesPresented
                | Error::General(_)
                | Error::PeerIncompatible(_)
        )
    )
}

fn open_error(error: &io::Error) -> OpenError {
    match is_refusal(error) {
        true => OpenError::Refused(failure_text(error)),
        false => OpenError::Failed(failure_text(error)),
    }
}

fn proven(certificates: Option<&[rustls::pki_types::CertificateDer<'_>]>) -> Result<Proven, OpenError> {
    let first = certificates.and_then(<[_]>::first);
    let first = first.ok_or_else(|| OpenError::Refused("it presents no certificate".to_owned()))?;
    Proven::of_certificate(first).map_err(|error| OpenError::Refused(error.to_string()))
}

/// Connects to a peer.
pub(crate) async fn dial(
    ports: &Ports,
    trust: &Arc<PeerTrust>,
    buffers: BufferSource,
    addresses: &[SocketAddr],
    lane: LaneId,
    expect: Expect,
) -> Result<Opened, OpenError> {
    let config = trust.client_config(expect).map_err(|error| OpenError::Refused(error.to_string()))?;
    let mut socket = connect(ports, addresses).await?;
    let hello = socket.write_all(&preamble::encode(lane)).await;
    hello.map_err(|error| OpenError::Failed(error.to_string()))?;
    // What the certificate is checked against is in the configuration; this name only fills its place.
    let name = ServerName::try_from("kiseki").expect("a name");
    let connector = futures_rustls::TlsConnector::from(config);
    let limited = |session: &mut rustls::ClientConnection| session.set_buffer_limit(Some(SEND_BUFFER_BYTES));
    let handshake = connector.connect_with(name, ReadAhead::new(socket), limited);
    let stream = within(ports, HANDSHAKE_LIMIT, "the TLS handshake", handshake).await?;
    let stream = stream.map_err(|error| open_error(&error))?;
    let proven = proven(stream.get_ref().1.peer_certificates())?;
    let own = own_hello(trust, 0, 0, 0, 0);
    greet(ports, stream.into(), buffers, proven, own).await
}

async fn connect(ports: &Ports, addresses: &[SocketAddr]) -> Result<TcpSocket, OpenError> {
    let mut failure = "it has no address".to_owned();
    for address in addresses {
        match within(ports, CONNECT_LIMIT, "connecting", TcpSocket::connect(*address)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => failure = format!("{address}: {error}"),
            Err(late) => failure = format!("{address}: {}", late.reason()),
        }
    }
    Err(OpenError::Failed(failure))
}

/// Lets a peer in. The hello is made when it is known who it is.
pub(crate) async fn admit(
    ports: &Ports,
    trust: &Arc<PeerTrust>,
    buffers: BufferSource,
    socket: TcpSocket,
    hello: impl FnOnce(&Proven) -> Hello,
) -> Result<Opened, OpenError> {
    let acceptor = futures_rustls::TlsAcceptor::from(trust.server_config());
    let limited = |session: &mut rustls::ServerConnection| session.set_buffer_limit(Some(SEND_BUFFER_BYTES));
    let handshake = acceptor.accept_with(ReadAhead::new(socket), limited);
    let stream = within(ports, HANDSHAKE_LIMIT, "the TLS handshake", handshake).await?;
    let stream = stream.map_err(|error| open_error(&error))?;
    let proven = proven(stream.get_ref().1.peer_certificates())?;
    let own = hello(&proven);
    greet(ports, stream.into(), buffers, proven, own).await
}

/// The hello of the owner of `trust`.
pub(crate) fn own_hello(trust: &PeerTrust, cores: u16, lanes: u16, calls_max: u32, bytes_max: u64) -> Hello {
    let own = trust.own().name;
    let node = match own.role {
        super::name::PeerRole::Node(node) => node.0,
        _ => 0,
    };
    let (version_min, version_max) = VERSIONS;
    Hello { version_min, version_max, cluster: own.cluster, node, cores, lanes, calls_max, bytes_max }
}

/// Says hello, and hears whether the other side can be talked to.
async fn greet(
    ports: &Ports,
    mut stream: PeerStream,
    buffers: BufferSource,
    proven: Proven,
    own: Hello,
) -> Result<Opened, OpenError> {
    let mut reader = FrameReader::new(buffers);
    let exchange = async {
        send(&mut stream, &Control::Hello(own)).await?;
        receive(&mut stream, &mut reader).await
    };
    let said = within(ports, HELLO_LIMIT, "the hello", exchange).await??;
    let refusal = match said {
        Control::Hello(peer) => match why_not(&own, &peer, &proven) {
            None => return Ok(Opened { stream, reader, proven, peer }),
            Some(why) => why,
        },
        Control::Goodbye(reason) => return Err(OpenError::Refused(reason)),
        _ => "it begins without a hello".to_owned(),
    };
    let parting = async {
        let _told = (send(&mut stream, &Control::Goodbye(refusal.clone())).await, stream.close().await);
    };
    let _in_time = within(ports, HELLO_LIMIT, "the goodbye", parting).await;
    Err(OpenError::Refused(refusal))
}

/// Why two sides can't talk; both find the same.
fn why_not(own: &Hello, peer: &Hello, proven: &Proven) -> Option<String> {
    if own.cluster != peer.cluster {
        return Some("the two sides belong to different clusters".to_owned());
    }
    let named = match proven.name.role {
        super::name::PeerRole::Node(node) => node.0,
        _ => 0,
    };
    if named != peer.node {
        return Some(format!("it says to be node {}, its certificate is for {}", peer.node, proven.name.role));
    }
    if own.common_version(peer).is_none() {
        let range = |hello: &Hello| format!("{} to {}", hello.version_min, hello.version_max);
        return Some(format!(
            "no common version of messages: one side speaks {}, the other {}; bring both to the same release",
            range(own),
            range(peer)
        ));
    }
    None
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), control: &Control) -> Result<(), OpenError> {
    let mut outbox = Outbox::default();
    outbox.control(control);
    let mut sent = 0;
    let result = poll_fn(|cx| outbox.poll_send(cx, stream, &mut sent)).await;
    result.map_err(|error| open_error(&error))
}

async fn receive(stream: &mut (impl AsyncRead + Unpin), reader: &mut FrameReader) -> Result<Control, OpenError> {
    let only_control = |head: &Head| match head.kind {
        FrameKind::Control => Ok(()),
        _ => Err("it begins without a hello".to_owned()),
    };
    let frame = poll_fn(|cx| reader.poll_frame(cx, stream, &mut { only_control })).await;
    let frame = frame.map_err(|error| match error {
        ReadError::Io(error) => open_error(&error),
        ReadError::Closed => OpenError::Failed("it closed the connection before its hello".to_owned()),
        ReadError::Rules(rule) => OpenError::Refused(rule),
    })?;
    Control::decode(&frame.message).map_err(|error| OpenError::Refused(error.to_string()))
}
