//! The keys that a core holds: the node's own, and tenants' for as long as they are in use and fresh.

use crate::api::StoreError;
use crate::calls::Calls;
use crate::chunk_id::DedupDomain;
use crate::keys::{KekEpoch, MasterKeys, SealKind, derive, private_dek, private_naming_secret};
use crate::message::{ControlRequest, ControlResponse, Dedup, TenantSecrets};
use kiseki_types::Ports;
use kiseki_types::ids::{ChunkId, MasterEpoch, TenantId};
use kiseki_types::runtime::Instant;
use kiseki_types::secret::SecretKey;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// How long a tenant's keys are used before they are asked for again (I-K5).
pub const KEY_TTL: Duration = Duration::from_secs(60);

/// Tenants whose keys one core holds at once.
const TENANTS_MAX: usize = 4096;

/// The node's own keys, from its key store. One copy for each core.
pub struct NodeKeys {
    /// System master keys by epoch.
    pub masters: MasterKeys,
    /// Makes locators; never changes in a cluster's life.
    pub locator: SecretKey,
    /// Seals the control shard: its table file and its deltas, and what is derived from it.
    pub control: SecretKey,
}

impl NodeKeys {
    /// Key for the pages of the control shard's file.
    #[must_use]
    pub fn control_pages(&self) -> SecretKey {
        derive(&self.control, &[], &[b"kiseki/control-pages/1"])
    }
    /// Key for the control shard's deltas.
    #[must_use]
    pub fn control_deltas(&self) -> SecretKey {
        derive(&self.control, &[], &[b"kiseki/control-deltas/1"])
    }
    /// Key that seals tenants' secrets inside the control shard's rows.
    #[must_use]
    pub fn tenant_secrets(&self) -> SecretKey {
        derive(&self.control, &[], &[b"kiseki/tenant-secrets/1"])
    }
    /// Secret under which bucket names are looked up.
    #[must_use]
    pub fn bucket_names(&self) -> SecretKey {
        derive(&self.control, &[], &[b"kiseki/bucket-names/1"])
    }
}

/// Key for the pages of a tenant's shard, from its metadata key.
#[must_use]
pub fn shard_pages(metadata_key: &SecretKey) -> SecretKey {
    derive(metadata_key, &[], &[b"kiseki/shard-pages/1"])
}

/// Key for the deltas of a tenant's shard, from its metadata key.
#[must_use]
pub fn shard_deltas(metadata_key: &SecretKey) -> SecretKey {
    derive(metadata_key, &[], &[b"kiseki/shard-deltas/1"])
}

/// Key that seals the rows of a sealed file on their way to another node, from the key of its pages. The same on all nodes.
#[must_use]
pub fn snapshot_rows(pages: &SecretKey) -> SecretKey {
    derive(pages, &[], &[b"kiseki/snapshot-rows/1"])
}

/// Key under which a tenant's KEK wraps the metadata keys of its shards.
#[must_use]
pub fn metadata_wrap(kek: &SecretKey) -> SecretKey {
    derive(kek, &[], &[b"kiseki/metadata-wrap/1"])
}

/// A tenant's keys as the data path uses them.
pub struct TenantKeys {
    /// Names chunks.
    pub domain: DedupDomain,
    /// Epoch of the KEK.
    pub kek_epoch: KekEpoch,
    /// Wraps DEKs.
    pub kek: SecretKey,
    private: Option<SecretKey>,
}

impl TenantKeys {
    fn new(secrets: TenantSecrets) -> TenantKeys {
        let private = match secrets.dedup {
            Dedup::Shared => None,
            Dedup::Private => Some(secrets.private),
        };
        let domain = match &private {
            None => DedupDomain::Shared,
            Some(secret) => DedupDomain::private(&private_naming_secret(secret)),
        };
        TenantKeys { domain, kek_epoch: KekEpoch(secrets.kek_epoch), kek: secrets.kek, private }
    }

    /// The key that seals a chunk of this tenant's dedup domain.
    pub fn dek(
        &self,
        masters: &MasterKeys,
        epoch: MasterEpoch,
        chunk: &ChunkId,
        kind: SealKind,
    ) -> Result<SecretKey, StoreError> {
        match &self.private {
            Some(secret) => Ok(private_dek(secret, chunk, kind)),
            None => masters
                .shared_dek(epoch, chunk, kind)
                .map_err(|error| StoreError::Unavailable { reason: error.to_string() }),
        }
    }
}

/// Tenants' keys on one core.
pub struct Keyring {
    ports: Ports,
    calls: Calls,
    tenants: RefCell<BTreeMap<TenantId, (Instant, Rc<TenantKeys>)>>,
}

impl Keyring {
    /// An empty one.
    #[must_use]
    pub fn new(ports: Ports, calls: Calls) -> Keyring {
        Keyring { ports, calls, tenants: RefCell::default() }
    }

    /// The keys of a tenant, asked for again when they are older than [`KEY_TTL`].
    pub async fn tenant(&self, tenant: TenantId) -> Result<Rc<TenantKeys>, StoreError> {
        let now = self.ports.now();
        let known = self.tenants.borrow().get(&tenant).cloned();
        if let Some((fetched, keys)) = known
            && now.since(fetched) < KEY_TTL
        {
            return Ok(keys);
        }
        let secrets = match self.calls.control(ControlRequest::TenantSecrets(tenant)).await? {
            ControlResponse::Secrets(secrets) => secrets,
            _ => panic!("the control shard answers TenantSecrets with Secrets"),
        };
        let keys = Rc::new(TenantKeys::new(secrets));
        let mut tenants = self.tenants.borrow_mut();
        tenants.retain(|_, (fetched, _)| now.since(*fetched) < KEY_TTL);
        if tenants.len() < TENANTS_MAX {
            tenants.insert(tenant, (now, keys.clone()));
        }
        Ok(keys)
    }
}
