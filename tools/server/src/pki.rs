//! Certificates of a cluster's members: the authority that signs them, the directories that hold them, the list of those that are
//! revoked.
//!
//! ```text
//! pki/ca.crt, pki/ca.key   the authority; its key is needed to issue, never to serve
//! pki/issued               a line of JSON for each certificate that was ever issued
//! pki/revoked              serial numbers that are believed no more; nodes read it again when it changes
//! pki/node/                ca.crt, peer.crt, peer.key of the node in this directory
//! pki/node-3/, pki/admin-alice/   the same for others: carry such a directory to where it is used
//! ```

pub mod authority;
pub mod bundle;
pub mod issued;

pub use authority::{Authority, IssueOptions};
pub use bundle::Bundle;
pub use issued::{IssuedRow, IssuedState};

use std::path::{Path, PathBuf};

/// The node's number as long as there is one only.
pub const FIRST_NODE: kiseki_types::ids::NodeId = kiseki_types::ids::NodeId(1);

/// What lies where in a directory of certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PkiDir(PathBuf);

impl PkiDir {
    /// The directory at `path`.
    #[must_use]
    pub fn at(path: &Path) -> PkiDir {
        PkiDir(path.to_owned())
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The authority's certificate.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.0.join("ca.crt")
    }

    /// The authority's private key.
    #[must_use]
    pub fn authority_key(&self) -> PathBuf {
        self.0.join("ca.key")
    }

    /// What was issued.
    #[must_use]
    pub fn issued(&self) -> PathBuf {
        self.0.join("issued")
    }

    /// What is revoked.
    #[must_use]
    pub fn revoked(&self) -> PathBuf {
        self.0.join("revoked")
    }

    /// Held locked while something is issued or revoked.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.0.join("lock")
    }
}
