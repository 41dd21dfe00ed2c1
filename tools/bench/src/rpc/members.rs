//! A throw-away cluster: an authority and a few members.

use anyhow::{Context, Result};
use kiseki_net::peer::{PeerTrust, TrustMaterial};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use std::sync::Arc;

/// The cluster's id.
const CLUSTER: &str = "00000000000000000000000000000001";

/// PEM texts of one member.
#[derive(Clone)]
pub struct Member {
    /// The authority's certificate.
    pub authority: String,
    /// The member's certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Member {
    /// As links take it.
    pub fn trust(&self) -> Result<Arc<PeerTrust>> {
        let material = TrustMaterial {
            authority: self.authority.as_bytes(),
            certificate: self.certificate.as_bytes(),
            key: self.key.as_bytes(),
            revoked: Default::default(),
        };
        PeerTrust::new(material).context("certificates for the measurement")
    }
}

/// Makes so many nodes, numbered from 1 on.
pub fn make(count: u8) -> Result<Vec<Member>> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.subject_alt_names = vec![SanType::URI(format!("kiseki://{CLUSTER}/ca").try_into()?)];
    let authority = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    let member = |node: u8| -> Result<Member> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
        params.subject_alt_names.push(SanType::URI(format!("kiseki://{CLUSTER}/node/{node}").try_into()?));
        let certificate = params.signed_by(&key, &issuer)?.pem();
        Ok(Member { authority: authority.clone(), certificate, key: key.serialize_pem() })
    };
    (1..=count).map(member).collect()
}
