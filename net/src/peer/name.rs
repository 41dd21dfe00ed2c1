//! Who a certificate is for: the URI in it, and what else of it matters here.

use kiseki_types::ids::{ClusterId, NodeId};
use kiseki_types::limits::COUNTER_MAX;
use kiseki_types::peer::PeerIdentity;
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Longest name of an administrator.
pub const ADMIN_NAME_LEN_BYTES_MAX: usize = 63;

/// Longest URI that is looked at: scheme, cluster, role and the longest name.
const URI_LEN_BYTES_MAX: usize = 128;

const SCHEME: &str = "kiseki://";

/// What a certificate of a cluster is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerRole {
    /// Signs the others.
    Authority,
    /// A node.
    Node(NodeId),
    /// An administrator, by name.
    Admin(String),
}

/// The name in a certificate: `kiseki://<cluster>/node/<number>`, `.../admin/<name>`, or `.../ca`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerName {
    /// The cluster.
    pub cluster: ClusterId,
    /// Who in it.
    pub role: PeerRole,
}

/// Why a certificate names nobody.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerNameError {
    /// The certificate can't be taken apart.
    #[error("the certificate can't be read")]
    Unreadable,
    /// No URI of ours, or several.
    #[error("the certificate names no member of a cluster; issue one with `kiseki ca`")]
    Missing,
    /// A URI of ours that means nothing.
    #[error("the certificate names {0:?}, which is no member of a cluster")]
    Strange(String),
}

impl PeerName {
    /// As handlers see it; an authority calls nobody.
    #[must_use]
    pub fn identity(&self) -> Option<PeerIdentity> {
        match &self.role {
            PeerRole::Authority => None,
            PeerRole::Node(node) => Some(PeerIdentity::Node(*node)),
            PeerRole::Admin(_) => Some(PeerIdentity::Admin),
        }
    }

    /// The name that a certificate carries.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<PeerName, PeerNameError> {
        let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|_| PeerNameError::Unreadable)?;
        let mut ours = parsed.valid_uri_names().filter(|uri| uri.starts_with(SCHEME));
        match (ours.next(), ours.next()) {
            (Some(uri), None) => uri.parse(),
            _ => Err(PeerNameError::Missing),
        }
    }
}

/// Whether an administrator can have this name.
#[must_use]
pub fn is_admin_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    (1..=ADMIN_NAME_LEN_BYTES_MAX).contains(&name.len())
        && name.bytes().all(plain)
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

impl fmt::Display for PeerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerRole::Authority => f.write_str("ca"),
            PeerRole::Node(node) => write!(f, "node/{}", node.0),
            PeerRole::Admin(name) => write!(f, "admin/{name}"),
        }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.cluster, self.role)
    }
}

impl FromStr for PeerName {
    type Err = PeerNameError;

    fn from_str(uri: &str) -> Result<PeerName, PeerNameError> {
        let strange = || PeerNameError::Strange(uri.chars().take(URI_LEN_BYTES_MAX).collect());
        let named = || {
            let (cluster, role) = uri.strip_prefix(SCHEME)?.split_once('/')?;
            let cluster = cluster_id(cluster)?;
            let role = match role.split_once('/') {
                None if role == "ca" => PeerRole::Authority,
                Some(("node", number)) => PeerRole::Node(node_id(number)?),
                Some(("admin", name)) if is_admin_name(name) => PeerRole::Admin(name.to_owned()),
                _ => return None,
            };
            Some(PeerName { cluster, role })
        };
        named().ok_or_else(strange)
    }
}

/// A number in the one way to write it: two names must never mean one node.
fn node_id(text: &str) -> Option<NodeId> {
    let number: u64 = text.parse().ok()?;
    ((1..=COUNTER_MAX).contains(&number) && number.to_string() == text).then_some(NodeId(number))
}

/// A cluster's id from 32 hexadecimal digits in lower case.
#[must_use]
pub fn cluster_id(text: &str) -> Option<ClusterId> {
    let digits = text.as_bytes();
    if digits.len() != 32 || !digits.iter().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(digit)) {
        return None;
    }
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(ClusterId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_way_to_be_written() {
        let cluster = ClusterId([0xab; 16]);
        for role in [PeerRole::Authority, PeerRole::Node(NodeId(3)), PeerRole::Admin("a-1.x".to_owned())] {
            let name = PeerName { cluster, role };
            assert_eq!(name.to_string().parse(), Ok(name.clone()));
        }
        let id = "ab".repeat(16);
        for bad in [
            format!("kiseki://{id}/node/0"),
            format!("kiseki://{id}/node/03"),
            format!("kiseki://{id}/node/+3"),
            format!("kiseki://{id}/node/3/"),
            format!("kiseki://{id}/node/18446744073709551615"),
            format!("kiseki://{id}/admin/"),
            format!("kiseki://{id}/admin/A"),
            format!("kiseki://{id}/admin/a/b"),
            format!("kiseki://{}/node/3", "AB".repeat(16)),
            format!("kiseki://{}/node/3", "ab".repeat(15)),
            format!("kiseki://{id}"),
            format!("https://{id}/node/3"),
        ] {
            assert!(bad.parse::<PeerName>().is_err(), "{bad}");
        }
    }
}
