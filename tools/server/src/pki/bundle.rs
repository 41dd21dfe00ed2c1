//! The directory of one member: the authority's certificate, its own, and its private key.

use crate::files::{Readers, read_bounded, write_whole};
use anyhow::{Context, Result, anyhow, bail};
use kiseki_net::peer::revoked::Serial;
use kiseki_net::peer::{PeerTrust, TrustMaterial};
use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Longest file of a bundle.
const PEM_LEN_BYTES_MAX: u64 = 1 << 20;

/// What a member needs to prove who it is, and to know who the others are.
pub struct Bundle {
    /// The authority's certificate, PEM.
    pub authority: Vec<u8>,
    /// The member's certificate, PEM.
    pub certificate: Vec<u8>,
    /// Its private key, PEM.
    pub key: Zeroizing<Vec<u8>>,
}

impl Bundle {
    /// The three files in `dir`.
    #[must_use]
    pub fn files(dir: &Path) -> [PathBuf; 3] {
        ["ca.crt", "peer.crt", "peer.key"].map(|name| dir.join(name))
    }

    /// Reads the files in `dir`.
    pub fn read(dir: &Path) -> Result<Bundle> {
        let read = |path: &PathBuf| {
            read_bounded(path, PEM_LEN_BYTES_MAX).with_context(|| {
                format!("can't read {}; `kiseki ca issue-node` and `issue-admin` make such a directory", path.display())
            })
        };
        let [authority, certificate, key] = Bundle::files(dir);
        Ok(Bundle { authority: read(&authority)?, certificate: read(&certificate)?, key: Zeroizing::new(read(&key)?) })
    }

    /// Writes the files into `dir` (0700). Refuses to write over a key, unless `replace` says so.
    pub(crate) fn write(&self, dir: &Path, replace: bool) -> Result<()> {
        let [authority, certificate, key] = Bundle::files(dir);
        if key.exists() && !replace {
            bail!("{} exists; --replace writes a new key and certificate over it", key.display());
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("can't make {}", dir.display()))?;
        for (path, bytes, readers) in [
            (authority, &self.authority, Readers::Everybody),
            (certificate, &self.certificate, Readers::Everybody),
            (key, &*self.key, Readers::Owner),
        ] {
            write_whole(&path, bytes, readers).with_context(|| format!("can't write {}", path.display()))?;
        }
        Ok(())
    }

    /// As a connection takes it.
    #[must_use]
    pub fn material(&self, revoked: BTreeSet<Serial>) -> TrustMaterial<'_> {
        TrustMaterial { authority: &self.authority, certificate: &self.certificate, key: &self.key, revoked }
    }

    /// Checked, for whoever connects with it.
    pub fn trust(&self, dir: &Path, revoked: BTreeSet<Serial>) -> Result<Arc<PeerTrust>> {
        PeerTrust::new(self.material(revoked)).map_err(|error| anyhow!("{}: {error}", dir.display()))
    }
}
