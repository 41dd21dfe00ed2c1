//! Whom a node believes: its own certificate, the authority of its cluster, and who is revoked. All of it can be replaced while
//! connections live; those that would not be let in any more are closed.

use crate::error::NetError;
use crate::peer::name::{PeerName, PeerRole};
use crate::peer::revoked::Serial;
use crate::peer::validity::Validity;
use kiseki_types::ids::NodeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// What trust is made of, as read from files.
pub struct TrustMaterial<'a> {
    /// The authority's certificate, PEM.
    pub authority: &'a [u8],
    /// The own certificate, PEM.
    pub certificate: &'a [u8],
    /// Its private key, PEM.
    pub key: &'a [u8],
    /// Certificates that are believed no more.
    pub revoked: BTreeSet<Serial>,
}

/// Who is expected behind an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// This node.
    Node(NodeId),
    /// Whatever node of the cluster has a certificate for this host name or address.
    Host(ServerName<'static>),
}

/// Who proved to be on the other side.
#[derive(Clone, Debug)]
pub struct Proven {
    /// The name in its certificate.
    pub name: PeerName,
    /// The certificate's serial number.
    pub serial: Serial,
    /// When it ends, seconds since 1970.
    pub not_after: u64,
}

impl Proven {
    /// What the first certificate in a PEM text says.
    pub fn of_pem(pem: &[u8]) -> Result<Proven, NetError> {
        Proven::of_certificate(&CertificateDer::from_pem_slice(pem).map_err(refused)?)
    }

    /// What a certificate says; whoever calls has checked its signature.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Proven, NetError> {
        let refused = |reason: &str| NetError::Certificate { reason: reason.to_owned() };
        let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|_| refused("it can't be read"))?;
        let name = PeerName::of_certificate(certificate).map_err(|error| refused(&error.to_string()))?;
        let validity = Validity::of_certificate(certificate).ok_or_else(|| refused("its validity can't be read"))?;
        Ok(Proven { name, serial: Serial::new(parsed.serial()), not_after: validity.not_after })
    }
}

struct Current {
    own: Proven,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    revoked: Arc<BTreeSet<Serial>>,
    server: Arc<ServerConfig>,
}

/// Whom to believe, shared by all cores.
pub struct PeerTrust {
    current: Mutex<Arc<Current>>,
    changes: watch::Sender<u64>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl PeerTrust {
    /// Checks the material and takes it.
    pub fn new(material: TrustMaterial<'_>) -> Result<Arc<PeerTrust>, NetError> {
        let current = Mutex::new(Arc::new(Current::new(material)?));
        Ok(Arc::new(PeerTrust { current, changes: watch::channel(0).0 }))
    }

    /// Takes other material from now on. With an error everything stays as it was.
    pub fn replace(&self, material: TrustMaterial<'_>) -> Result<(), NetError> {
        let next = Current::new(material)?;
        if next.own.name != self.own().name {
            let reason = format!("it is for {}, not for {}; restart to become another", next.own.name, self.own().name);
            return Err(NetError::Certificate { reason });
        }
        // Who was let in stays so, and was proven by the authorities of then: none of them may go meanwhile.
        if !self.current().roots.roots.iter().all(|root| next.roots.roots.contains(root)) {
            return Err(refused("it is of another authority; restart to believe it"));
        }
        *self.current.lock().expect("nothing panics while it holds the trust") = Arc::new(next);
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    fn current(&self) -> Arc<Current> {
        self.current.lock().expect("nothing panics while it holds the trust").clone()
    }

    /// Who we are.
    #[must_use]
    pub fn own(&self) -> Proven {
        self.current().own.clone()
    }

    /// Whether somebody who was let in would still be, `now` in seconds since 1970; if not, why.
    pub fn still_trusts(&self, proven: &Proven, now: u64) -> Result<(), &'static str> {
        if self.current().revoked.contains(&proven.serial) {
            return Err("the certificate is revoked");
        }
        if proven.not_after < now {
            return Err("the certificate has expired");
        }
        Ok(())
    }

    /// Tells of replacements.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// For those who connect to us.
    pub(crate) fn server_config(&self) -> Arc<ServerConfig> {
        self.current().server.clone()
    }

    /// For connecting to a node.
    pub(crate) fn client_config(&self, expect: Expect) -> Result<Arc<ClientConfig>, NetError> {
        let current = self.current();
        let verifier = NodeVerifier { trust: current.clone(), provider: provider(), expect };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map(|builder| builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)))
            .and_then(|builder| builder.with_client_auth_cert(current.chain.clone(), current.key.clone_key()))
            .map_err(refused)?;
        // A resumed session would not look at certificates again.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn refused(error: impl fmt::Display) -> NetError {
    NetError::Certificate { reason: error.to_string() }
}

impl Current {
    fn new(material: TrustMaterial<'_>) -> Result<Current, NetError> {
        let chain =
            CertificateDer::pem_slice_iter(material.certificate).collect::<Result<Vec<_>, _>>().map_err(refused)?;
        let own = Proven::of_certificate(chain.first().ok_or_else(|| refused("the file holds no certificate"))?)?;
        // The parser's message could quote what it read: name the problem only (I-K8).
        let key = PrivateKeyDer::from_pem_slice(material.key).map_err(|_| refused("the key file holds no PEM key"))?;
        let mut roots = RootCertStore::empty();
        let mut signed_here = false;
        for authority in CertificateDer::pem_slice_iter(material.authority) {
            let authority = authority.map_err(refused)?;
            let name = PeerName::of_certificate(&authority).map_err(refused)?;
            signed_here |= name == PeerName { cluster: own.name.cluster, role: PeerRole::Authority };
            roots.add(authority).map_err(refused)?;
        }
        if !signed_here {
            return Err(refused(format!("the authority is not that of cluster {}", own.name.cluster)));
        }
        let (roots, revoked) = (Arc::new(roots), Arc::new(material.revoked));
        let inner = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build().map_err(refused)?;
        let verifier = MemberVerifier { inner, own: own.clone(), revoked: revoked.clone() };
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map(|builder| builder.with_client_cert_verifier(Arc::new(verifier)))
            .and_then(|builder| builder.with_single_cert(chain.clone(), key.clone_key()))
            .map_err(refused)?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Current { own, chain, key, roots, revoked, server: Arc::new(server) })
    }
}

/// Whether a certificate is one of this cluster's members, and not revoked.
fn member(own: &Proven, revoked: &BTreeSet<Serial>, certificate: &CertificateDer<'_>) -> Result<PeerName, Error> {
    let denied = || Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
    let proven = Proven::of_certificate(certificate).map_err(|_| denied())?;
    if revoked.contains(&proven.serial) {
        return Err(Error::InvalidCertificate(CertificateError::Revoked));
    }
    match proven.name.cluster == own.name.cluster && proven.name.identity().is_some() {
        true => Ok(proven.name),
        false => Err(denied()),
    }
}

/// Lets in who has a certificate of the cluster: signed, valid now, for clients, named, not revoked.
struct MemberVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    own: Proven,
    revoked: Arc<BTreeSet<Serial>>,
}

impl fmt::Debug for MemberVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemberVerifier({})", self.own.name)
    }
}

impl ClientCertVerifier for MemberVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        member(&self.own, &self.revoked, end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Believes that the node meant answers, and nobody else (I-L10 rests on it: a vote counts for who was asked).
struct NodeVerifier {
    trust: Arc<Current>,
    provider: Arc<CryptoProvider>,
    expect: Expect,
}

impl fmt::Debug for NodeVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeVerifier({:?})", self.expect)
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.trust.roots, intermediates, now, algorithms)?;
        let name = member(&self.trust.own, &self.trust.revoked, end_entity)?;
        match (&self.expect, &name.role) {
            (Expect::Node(expected), PeerRole::Node(node)) if expected == node => {}
            (Expect::Host(host), PeerRole::Node(_)) => verify_server_name(&parsed, host)?,
            _ => return Err(Error::General(format!("{name} answers there, which is not who is meant"))),
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
