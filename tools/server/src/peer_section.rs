//! Section `[peer]` of the configuration: how this node stands to the others.

use crate::config::ConfigError;
use crate::nodes_file::is_address;
use kiseki_engine::racks::{RACK_NAMES, is_rack_name};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Section `[peer]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeerSection {
    /// Where members of the cluster connect; nothing listens when it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Where other nodes reach it, HOST:PORT, the best first; `listen` when it is empty.
    pub addresses: Vec<String>,
    /// What fails together: the fragments of a stripe and the voters of a shard are spread over racks. Empty: the node is in none,
    /// and fails alone.
    pub rack: String,
    /// Directory of the node's certificate.
    pub certificate_dir: PathBuf,
    /// The list of revoked certificates; it is read again when it changes.
    pub revoked_file: PathBuf,
}

impl Default for PeerSection {
    fn default() -> PeerSection {
        PeerSection {
            listen: None,
            addresses: Vec::new(),
            rack: String::new(),
            certificate_dir: "pki/node".into(),
            revoked_file: "pki/revoked".into(),
        }
    }
}

impl PeerSection {
    /// Refuses what other nodes could not use.
    pub fn check(&self) -> Result<(), ConfigError> {
        if let Some(address) = self.addresses.iter().find(|address| !is_address(address)) {
            let reason = "HOST:PORT, as other nodes reach this one";
            return Err(ConfigError::Value { key: "peer.addresses", value: address.clone(), reason });
        }
        if !self.rack.is_empty() && !is_rack_name(&self.rack) {
            return Err(ConfigError::Value { key: "peer.rack", value: self.rack.clone(), reason: RACK_NAMES });
        }
        Ok(())
    }
}
