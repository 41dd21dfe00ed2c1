//! The leader of the control shard: tenants, access keys, buckets, pools, the shard map, devices, nodes.

mod devices;
mod nodes;
mod once;
mod splits;

use crate::api::{BucketInfo, EtagMode, StoreError};
use crate::calls::Calls;
use crate::chunker::ChunkFormat;
use crate::control_rows::{
    ACCESS_KEYS, AccessKeyRow, BUCKETS, BucketRow, COUNTERS, POOLS, SHARDS, ShardRow, TENANT_BUCKETS, TENANT_NAMES,
    TENANTS, TenantRow, decode_pool, encode_pool,
};
use crate::delta::RowChange;
use crate::key_ranges::KeyRanges;
use crate::keyring::{NodeKeys, metadata_wrap};
use crate::keys::MetaSealer;
use crate::latch::Hold;
use crate::leader::{CommitError, DECISIONS_MAX, Draft, Leader, row_damaged};
use crate::message::{Bucket, ControlRequest, ControlResponse, Dedup, OpenShard, TenantInfo, TenantSecrets};
use kiseki_kernels::sha256::HmacSha256Key;
use kiseki_types::fragment::StripeShape;
use kiseki_types::ids::{DirId, NamespaceId, NodeId, PoolId, RequestId, ShardId, TenantId, Term};
use kiseki_types::runtime::RuntimeExt;
use kiseki_types::secret::SecretKey;
use nodes::Presence;
use std::rc::Rc;
use tracing::warn;
use zeroize::{Zeroize, Zeroizing};

/// Tenants and access keys of one cluster, buckets of one tenant: what one answer lists.
pub(crate) const LISTED_MAX: usize = 100_000;

/// The pool that buckets use until there are several.
pub const FIRST_POOL: PoolId = PoolId(0);

/// Every change of tenants, keys and buckets holds this latch: they are rare, and names must not be given out twice.
const CHANGES: &[u8] = b"changes";

/// Row of the counters that holds the number of homes.
const HOMES: &[u8] = b"homes";

/// Characters of an access key id behind its prefix, and of a secret: letters and digits, so that no client has to
/// escape them.
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// The control shard on the core that leads it.
pub struct ControlService {
    leader: Leader,
    calls: Calls,
    own: NodeId,
    secrets: MetaSealer,
    bucket_names: HmacSha256Key,
    shards_per_tenant: u16,
}

impl ControlService {
    /// Takes the leader's part of the control shard.
    #[must_use]
    pub fn new(
        leader: Leader,
        calls: Calls,
        keys: &NodeKeys,
        own: NodeId,
        shards_per_tenant: u16,
    ) -> Rc<ControlService> {
        let secrets = MetaSealer::new(keys.tenant_secrets(), &**leader.ports());
        let bucket_names = HmacSha256Key::new(keys.bucket_names().expose());
        Rc::new(ControlService { leader, calls, own, secrets, bucket_names, shards_per_tenant })
    }

    /// What a leader does before it takes requests: writes down the pool of a new cluster, and how many homes it has. A
    /// cluster from before the homes were written down has those of its only node, which starts here.
    pub async fn start(&self, first_pool: StripeShape) -> Result<(), StoreError> {
        self.leader.barrier().await?;
        self.leader.requests.load(&*self.leader.tables()).await?;
        self.decide(async |term| {
            let mut rows = Vec::new();
            if self.leader.row(POOLS, &FIRST_POOL.0.to_be_bytes()).await?.is_none() {
                rows.push(RowChange::put(POOLS, FIRST_POOL.0.to_be_bytes().to_vec(), encode_pool(first_pool)));
            }
            let homes = u64::from(self.calls.home_count());
            match self.leader.row(COUNTERS, HOMES).await? {
                None => rows.push(RowChange::put(COUNTERS, HOMES.to_vec(), homes.to_be_bytes().to_vec())),
                // Chunks would be looked for where they are not.
                Some(row) if read_be(&row)? != homes => {
                    let reason = format!("the cluster has {} homes, and this node was told of {homes}", read_be(&row)?);
                    return Err(damaged(&reason).into());
                }
                Some(_) => {}
            }
            if rows.is_empty() {
                return Ok(());
            }
            self.leader.commit(term, Draft { rows, ..Draft::default() }).await
        })
        .await
    }

    /// Tenants' shards that were made.
    pub async fn shard_count(&self) -> Result<u64, StoreError> {
        self.leader.barrier().await?;
        let mut count = 0;
        for (_, value) in self.leader.rows(SHARDS, &[], LISTED_MAX).await? {
            count += u64::from(ShardRow::decode(&value).map_err(row_damaged)?.active);
        }
        Ok(count)
    }

    /// Has tenants' shards opened: all of them on a node that is alone; otherwise those that a crash left half made, by the
    /// nodes where that began, since nobody else may make them (I-O4).
    pub async fn open_tenant_shards(&self, is_alone: bool) -> Result<(), StoreError> {
        self.leader.barrier().await?;
        for (key, value) in self.leader.rows(SHARDS, &[], LISTED_MAX).await? {
            let shard = ShardId(read_be(&key)?);
            let row = ShardRow::decode(&value).map_err(row_damaged)?;
            if row.active && !is_alone {
                continue;
            }
            // A node that is alone has every shard that was made, whoever founded it.
            let node = if is_alone && row.active { self.own } else { row.founder };
            let open = OpenShard { create: !row.active, ..self.opened(shard, &row).await? };
            match self.calls.open(node, shard, open).await {
                Ok(()) => {}
                Err(error) if node == self.own => return Err(error),
                Err(error) => {
                    warn!(%shard, %node, %error, "a shard that is half made waits for the node that founded it");
                    continue;
                }
            }
            if !row.active {
                self.activate(&[shard]).await?;
            }
        }
        Ok(())
    }

    /// What opens a shard.
    async fn opened(&self, shard: ShardId, row: &ShardRow) -> Result<OpenShard, StoreError> {
        let tenant = self.tenant(row.tenant).await?;
        let (kek, _) = self.open_secrets(row.tenant, &tenant)?;
        let metadata_key = self.unwrap_metadata_key(&kek, shard, row)?;
        Ok(OpenShard { tenant: row.tenant, metadata_key, create: false })
    }

    /// Answers a request, behind a read barrier; `once` is the one that a change carries out.
    async fn answer(&self, request: ControlRequest, once: Option<RequestId>) -> Result<ControlResponse, StoreError> {
        match request {
            ControlRequest::AccessKey(id) => self.access_key(&id).await.map(ControlResponse::AccessKey),
            ControlRequest::TenantSecrets(tenant) => {
                let row = self.tenant(tenant).await?;
                let (kek, private) = self.open_secrets(tenant, &row)?;
                let secrets = TenantSecrets { dedup: row.dedup, kek_epoch: row.kek_epoch, kek, private };
                Ok(ControlResponse::Secrets(secrets))
            }
            ControlRequest::CreateTenant { name, dedup } => {
                self.create_tenant(once, &name, dedup).await.map(ControlResponse::Tenant)
            }
            ControlRequest::Tenants => self.tenants().await.map(ControlResponse::Tenants),
            ControlRequest::CreateAccessKey { tenant } => {
                let (id, secret) = self.create_access_key(once, &tenant).await?;
                Ok(ControlResponse::NewAccessKey(id, secret))
            }
            ControlRequest::AccessKeys { tenant } => self.access_keys(&tenant).await.map(ControlResponse::AccessKeys),
            ControlRequest::CreateBucket { tenant, name } => {
                let bucket = self.create_bucket(once, tenant, &name).await?;
                Ok(ControlResponse::Bucket(Box::new(bucket)))
            }
            ControlRequest::Bucket { tenant, name } => {
                let row = self.bucket(tenant, &name).await?;
                Ok(ControlResponse::Bucket(Box::new(self.with_pool(row).await?)))
            }
            ControlRequest::DeleteBucket { tenant, name } => {
                match self.delete_bucket(once, tenant, &name).await {
                    // Nothing has changed.
                    Err(error @ (StoreError::NoSuchBucket | StoreError::BucketNotEmpty)) => Err(error),
                    deleted => self.forgotten(deleted).await,
                }
            }
            ControlRequest::SetBucketEtag { tenant, name, mode } => {
                let changed = self.set_bucket_etag(once, &tenant, &name, mode).await;
                self.forgotten(changed).await
            }
            ControlRequest::Buckets(tenant) => self.buckets(tenant).await.map(ControlResponse::Buckets),
            ControlRequest::Devices => {
                let (version, records) = self.device_records().await?;
                Ok(ControlResponse::Devices(version, records))
            }
            ControlRequest::Nodes => {
                let (version, entries) = self.node_entries().await?;
                Ok(ControlResponse::Nodes(version, entries))
            }
            ControlRequest::InviteNode => self.invite_node(once).await.map(ControlResponse::Node),
            ControlRequest::NodeHere { node, addresses, lanes, cores, version, rack } => {
                let here = Presence { addresses, lanes, cores, version, rack };
                self.node_here(node, here).await.map(ControlResponse::Node)
            }
            ControlRequest::SetNodeState { node, state } => {
                self.set_node_state(once, node, state).await.map(ControlResponse::Node)
            }
            ControlRequest::ShardKey(shard) => {
                let row = self.leader.row(SHARDS, &shard.0.to_be_bytes()).await?;
                let row = row.ok_or_else(|| StoreError::NotFound { what: format!("shard {shard}") })?;
                let row = ShardRow::decode(&row).map_err(row_damaged)?;
                self.opened(shard, &row).await.map(ControlResponse::ShardKey)
            }
            ControlRequest::Shards(request) => self.shard_map(request).await.map(ControlResponse::Shards),
            ControlRequest::UpdateDevice { device, update } => {
                let record = self.update_device(once, device, update).await?;
                Ok(ControlResponse::Device(Box::new(record)))
            }
        }
    }

    /// Answers a change of a bucket once no core believes in what was before it; after an error it may have happened.
    async fn forgotten(&self, changed: Result<Bucket, StoreError>) -> Result<ControlResponse, StoreError> {
        self.calls.forget_everywhere().await;
        changed.map(|bucket| ControlResponse::Bucket(Box::new(bucket)))
    }

    async fn tenant(&self, tenant: TenantId) -> Result<TenantRow, StoreError> {
        match self.leader.row(TENANTS, &tenant.0.to_be_bytes()).await? {
            Some(bytes) => TenantRow::decode(&bytes).map_err(row_damaged),
            None => Err(StoreError::NotFound { what: format!("tenant {tenant}") }),
        }
    }

    async fn tenant_named(&self, name: &str) -> Result<TenantId, StoreError> {
        match self.leader.row(TENANT_NAMES, name.as_bytes()).await? {
            Some(bytes) => Ok(TenantId(read_be(&bytes)?)),
            None => Err(StoreError::NotFound { what: format!("tenant '{name}'") }),
        }
    }

    async fn tenants(&self) -> Result<Vec<TenantInfo>, StoreError> {
        let rows = self.leader.rows(TENANTS, &[], LISTED_MAX).await?;
        rows.iter()
            .map(|(key, value)| {
                let row = TenantRow::decode(value).map_err(row_damaged)?;
                let TenantRow { name, dedup, created_unix_ms, .. } = row;
                Ok(TenantInfo { tenant: TenantId(read_be(key)?), name, dedup, created_unix_ms })
            })
            .collect()
    }

    async fn create_tenant(
        &self,
        request: Option<RequestId>,
        name: &str,
        dedup: Dedup,
    ) -> Result<TenantInfo, StoreError> {
        let well_formed = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.');
        if name.is_empty() || name.len() > 63 || !name.chars().all(well_formed) {
            let what = "a tenant's name has 1 to 63 letters, digits, '-', '_' or '.'".to_owned();
            return Err(StoreError::Invalid { what });
        }
        let _guard = self.leader.latches.hold(CHANGES.to_vec(), Hold::Exclusive).await;
        let ports = self.leader.ports();
        let created_unix_ms = ports.unix_time_ms();
        let mut bytes: [u8; 64] = ports.random();
        let kek = SecretKey::take((&mut bytes[..32]).try_into().expect("32 bytes"));
        let (tenant, shards) = self
            .decide(async |term| {
                if self.leader.row(TENANT_NAMES, name.as_bytes()).await?.is_some() {
                    return Err(StoreError::Exists { what: format!("tenant '{name}'") }.into());
                }
                let mut draft = Draft { request, ..Draft::default() };
                let tenant = TenantId(self.count(&mut draft, "tenant", 1, 1).await?);
                draft.answer = tenant.0.to_be_bytes().to_vec();
                let shard_count = u64::from(self.shards_per_tenant);
                let first = self.count(&mut draft, "shard", shard_count, ShardId::TENANT_FIRST).await?;
                let mut secrets = Zeroizing::new([0; 64]);
                secrets[..32].copy_from_slice(kek.expose());
                secrets[32..].copy_from_slice(&bytes[32..]);
                let sealed_secrets = self.secrets.seal(&tenant.0.to_le_bytes(), &*secrets);
                let row = TenantRow { name: name.to_owned(), dedup, created_unix_ms, kek_epoch: 1, sealed_secrets };
                draft.rows.push(RowChange::put(TENANTS, tenant.0.to_be_bytes().to_vec(), row.encode()));
                let id = tenant.0.to_be_bytes().to_vec();
                draft.rows.push(RowChange::put(TENANT_NAMES, name.as_bytes().to_vec(), id));
                let wrapper = MetaSealer::new(metadata_wrap(&kek), &**ports);
                let mut shards = Vec::new();
                for shard in (first..first + shard_count).map(ShardId) {
                    let metadata_key = SecretKey::take(&mut ports.random());
                    let wrapped_metadata_key = wrapper.seal(&shard.0.to_le_bytes(), metadata_key.expose());
                    let row = ShardRow { tenant, active: false, founder: self.own, wrapped_metadata_key };
                    draft.rows.push(RowChange::put(SHARDS, shard.0.to_be_bytes().to_vec(), row.encode()));
                    shards.push((shard, metadata_key));
                }
                self.leader.commit(term, draft).await?;
                Ok((tenant, shards))
            })
            .await?;
        bytes.zeroize();
        let ids: Vec<ShardId> = shards.iter().map(|(shard, _)| *shard).collect();
        for (shard, metadata_key) in shards {
            self.calls.open(self.own, shard, OpenShard { tenant, metadata_key, create: true }).await?;
        }
        self.activate(&ids).await?;
        Ok(TenantInfo { tenant, name: name.to_owned(), dedup, created_unix_ms })
    }

    /// From now on these shards exist: should their logs be missing, they are lost, not new (I-L10).
    async fn activate(&self, shards: &[ShardId]) -> Result<(), StoreError> {
        self.decide(async |term| {
            let mut draft = Draft::default();
            for shard in shards {
                let key = shard.0.to_be_bytes();
                let bytes = self.leader.row(SHARDS, &key).await?;
                let bytes = bytes.ok_or_else(|| StoreError::NotFound { what: format!("shard {shard}") })?;
                let row = ShardRow { active: true, ..ShardRow::decode(&bytes).map_err(row_damaged)? };
                draft.rows.push(RowChange::put(SHARDS, key.to_vec(), row.encode()));
            }
            self.leader.commit(term, draft).await
        })
        .await
    }

    fn open_secrets(&self, tenant: TenantId, row: &TenantRow) -> Result<(SecretKey, SecretKey), StoreError> {
        let opened = self.secrets.open(&tenant.0.to_le_bytes(), &row.sealed_secrets);
        let mut opened = opened.map(Zeroizing::new).map_err(|error| damaged(&error))?;
        let [kek, private] = opened.as_chunks_mut::<32>().0 else {
            return Err(damaged(&"a tenant's secrets have the wrong length"));
        };
        Ok((SecretKey::take(kek), SecretKey::take(private)))
    }

    fn unwrap_metadata_key(&self, kek: &SecretKey, shard: ShardId, row: &ShardRow) -> Result<SecretKey, StoreError> {
        let wrapper = MetaSealer::new(metadata_wrap(kek), &**self.leader.ports());
        let opened = wrapper.open(&shard.0.to_le_bytes(), &row.wrapped_metadata_key);
        let mut opened = opened.map(Zeroizing::new).map_err(|error| damaged(&error))?;
        let [key] = opened.as_chunks_mut::<32>().0 else {
            return Err(damaged(&"a shard's metadata key has the wrong length"));
        };
        Ok(SecretKey::take(key))
    }

    async fn access_key(&self, id: &str) -> Result<Option<(TenantId, Zeroizing<String>)>, StoreError> {
        let Some(bytes) = self.leader.row(ACCESS_KEYS, id.as_bytes()).await? else { return Ok(None) };
        let row = AccessKeyRow::decode(&bytes).map_err(row_damaged)?;
        let secret = self.secrets.open(id.as_bytes(), &row.sealed_secret).map_err(|error| damaged(&error))?;
        let secret = String::from_utf8(secret).map_err(|_| damaged(&"a secret is not text"))?;
        Ok(Some((row.tenant, Zeroizing::new(secret))))
    }

    async fn create_access_key(
        &self,
        request: Option<RequestId>,
        tenant: &str,
    ) -> Result<(String, Zeroizing<String>), StoreError> {
        let tenant = self.tenant_named(tenant).await?;
        let ports = self.leader.ports();
        let id = format!("KSK{}", &*letters(&ports.random::<17>()));
        let secret = letters(&ports.random::<40>());
        let sealed_secret = self.secrets.seal(id.as_bytes(), secret.as_bytes());
        let row = AccessKeyRow { tenant, created_unix_ms: ports.unix_time_ms(), sealed_secret };
        self.decide(async |term| {
            let rows = vec![RowChange::put(ACCESS_KEYS, id.as_bytes().to_vec(), row.encode())];
            let answer = id.as_bytes().to_vec();
            self.leader.commit(term, Draft { rows, request, answer, ..Draft::default() }).await
        })
        .await?;
        Ok((id, secret))
    }

    async fn access_keys(&self, tenant: &str) -> Result<Vec<String>, StoreError> {
        let tenant = self.tenant_named(tenant).await?;
        let mut ids = Vec::new();
        for (key, value) in self.leader.rows(ACCESS_KEYS, &[], LISTED_MAX).await? {
            if AccessKeyRow::decode(&value).map_err(row_damaged)?.tenant == tenant {
                ids.push(String::from_utf8(key).map_err(|_| damaged(&"an access key id is not text"))?);
            }
        }
        Ok(ids)
    }

    fn bucket_key(&self, name: &str) -> Vec<u8> {
        self.bucket_names.mac(name.as_bytes()).to_vec()
    }

    async fn bucket_row(&self, name: &str) -> Result<Option<BucketRow>, StoreError> {
        let row = self.leader.row(BUCKETS, &self.bucket_key(name)).await?;
        row.map(|bytes| BucketRow::decode(&bytes).map_err(row_damaged)).transpose()
    }

    /// A bucket of this tenant; another's looks absent (I-T1).
    async fn bucket(&self, tenant: TenantId, name: &str) -> Result<BucketRow, StoreError> {
        let row = self.bucket_row(name).await?.filter(|row| row.tenant == tenant);
        row.ok_or(StoreError::NoSuchBucket)
    }

    async fn with_pool(&self, row: BucketRow) -> Result<Bucket, StoreError> {
        let shape = self.pool_shape(row.pool).await?;
        let BucketRow { tenant, info, shard, ranges, root, pool, chunks } = row;
        Ok(Bucket { info, tenant, shard, ranges, root, pool, shape, chunks })
    }

    async fn pool_shape(&self, pool: PoolId) -> Result<StripeShape, StoreError> {
        let row = self.leader.row(POOLS, &pool.0.to_be_bytes()).await?;
        decode_pool(&row.ok_or_else(|| damaged(&"a pool does not exist"))?).map_err(row_damaged)
    }

    /// Shape of the first pool's stripes: as it was when the cluster was made, whatever devices there are by now.
    pub async fn first_pool(&self) -> Result<StripeShape, StoreError> {
        self.leader.barrier().await?;
        self.pool_shape(FIRST_POOL).await
    }

    async fn create_bucket(
        &self,
        request: Option<RequestId>,
        tenant: TenantId,
        name: &str,
    ) -> Result<Bucket, StoreError> {
        let _guard = self.leader.latches.hold(CHANGES.to_vec(), Hold::Exclusive).await;
        let ports = self.leader.ports();
        let root = DirId(ports.random());
        let created_unix_ms = ports.unix_time_ms();
        let row = self
            .decide(async |term| {
                match self.bucket_row(name).await? {
                    Some(row) if row.tenant == tenant => return Err(StoreError::BucketExists.into()),
                    Some(_) => return Err(StoreError::BucketNameTaken.into()),
                    None => {}
                }
                let shards = self.shards_of(tenant).await?;
                let mut draft = Draft::default();
                let namespace = NamespaceId(self.count(&mut draft, "namespace", 1, 1).await?);
                let shard = shards[(namespace.0 % shards.len() as u64) as usize];
                let etag_mode = EtagMode::Md5;
                let info = BucketInfo { namespace, name: name.to_owned(), created_unix_ms, etag_mode };
                let chunks = ChunkFormat::default();
                let (ranges, pool) = (KeyRanges::default(), FIRST_POOL);
                let row = BucketRow { tenant, info, shard, ranges, root, pool, chunks };
                draft.namespace = namespace;
                (draft.request, draft.answer) = (request, row.encode());
                draft.rows.push(RowChange::put(BUCKETS, self.bucket_key(name), row.encode()));
                let key = tenant_bucket_key(tenant, namespace);
                draft.rows.push(RowChange::put(TENANT_BUCKETS, key, self.bucket_key(name)));
                self.leader.commit(term, draft).await?;
                Ok(row)
            })
            .await?;
        self.with_pool(row).await
    }

    async fn shards_of(&self, tenant: TenantId) -> Result<Vec<ShardId>, StoreError> {
        let mut shards = Vec::new();
        for (key, value) in self.leader.rows(SHARDS, &[], LISTED_MAX).await? {
            let row = ShardRow::decode(&value).map_err(row_damaged)?;
            if row.tenant == tenant && row.active {
                shards.push(ShardId(read_be(&key)?));
            }
        }
        match shards.is_empty() {
            true => Err(StoreError::Unavailable { reason: format!("tenant {tenant} has no shard yet; try again") }),
            false => Ok(shards),
        }
    }

    async fn delete_bucket(
        &self,
        request: Option<RequestId>,
        tenant: TenantId,
        name: &str,
    ) -> Result<Bucket, StoreError> {
        let _one = self.leader.latches.hold(self.deleting(name), Hold::Exclusive).await;
        let mut is_closed = false;
        let (_guard, row) = loop {
            let guard = self.leader.latches.hold(CHANGES.to_vec(), Hold::Exclusive).await;
            let row = self.bucket(tenant, name).await?;
            // With this latch held no split begins or ends.
            let is_split = !row.ranges.is_empty() || self.is_being_split(name).await?;
            if is_closed || !is_split {
                break (guard, row);
            }
            drop(guard);
            self.close_everywhere(&row).await?;
            is_closed = true;
        };
        self.decide(async |term| {
            let rows = vec![
                RowChange::remove(BUCKETS, self.bucket_key(name)),
                RowChange::remove(TENANT_BUCKETS, tenant_bucket_key(tenant, row.info.namespace)),
            ];
            let answer = row.encode();
            self.leader.commit(term, Draft { rows, request, answer, ..Draft::default() }).await
        })
        .await?;
        self.with_pool(row).await
    }

    async fn buckets(&self, tenant: TenantId) -> Result<Vec<BucketInfo>, StoreError> {
        let mut buckets = Vec::new();
        for (_, name) in self.leader.rows(TENANT_BUCKETS, &tenant.0.to_be_bytes(), LISTED_MAX).await? {
            if let Some(bytes) = self.leader.row(BUCKETS, &name).await? {
                buckets.push(BucketRow::decode(&bytes).map_err(row_damaged)?.info);
            }
        }
        buckets.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(buckets)
    }

    async fn set_bucket_etag(
        &self,
        request: Option<RequestId>,
        tenant: &str,
        name: &str,
        mode: EtagMode,
    ) -> Result<Bucket, StoreError> {
        let tenant = self.tenant_named(tenant).await?;
        let _guard = self.leader.latches.hold(CHANGES.to_vec(), Hold::Exclusive).await;
        let mut row = self.bucket(tenant, name).await?;
        row.info.etag_mode = mode;
        self.decide(async |term| {
            let rows = vec![RowChange::put(BUCKETS, self.bucket_key(name), row.encode())];
            let answer = row.encode();
            self.leader.commit(term, Draft { rows, request, answer, ..Draft::default() }).await
        })
        .await?;
        self.with_pool(row).await
    }

    /// Takes `count` numbers from a counter that starts at `first`; the new value becomes part of the draft.
    async fn count(&self, draft: &mut Draft, name: &str, count: u64, first: u64) -> Result<u64, StoreError> {
        let next = self.next_number(name, first).await?;
        let value = (next + count).to_be_bytes().to_vec();
        draft.rows.push(RowChange::put(COUNTERS, name.as_bytes().to_vec(), value));
        Ok(next)
    }

    /// What a counter that starts at `first` gives out next.
    async fn next_number(&self, name: &str, first: u64) -> Result<u64, StoreError> {
        let row = self.leader.row(COUNTERS, name.as_bytes()).await?;
        row.map_or(Ok(first), |bytes| read_be(&bytes))
    }

    async fn decide<T>(&self, decision: impl AsyncFn(Term) -> Result<T, CommitError>) -> Result<T, StoreError> {
        for _ in 0..DECISIONS_MAX {
            match decision(self.leader.barrier().await?).await {
                Ok(result) => return Ok(result),
                Err(CommitError::Again) => {}
                Err(CommitError::Store(error)) => return Err(error),
                Err(CommitError::Fenced(_) | CommitError::EpochClosed) => panic!("the control shard has no fences"),
            }
        }
        Err(StoreError::Unsettled { reason: "the leader changes too often; try again".to_owned() })
    }
}

fn tenant_bucket_key(tenant: TenantId, namespace: NamespaceId) -> Vec<u8> {
    [tenant.0.to_be_bytes(), namespace.0.to_be_bytes()].concat()
}

fn read_be(bytes: &[u8]) -> Result<u64, StoreError> {
    bytes.try_into().map(u64::from_be_bytes).map_err(|_| damaged(&"a number has the wrong length"))
}

fn damaged(reason: &dyn std::fmt::Display) -> StoreError {
    StoreError::Damaged { reason: format!("control shard: {reason}") }
}

/// Five bits of each byte as a character.
fn letters(random: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(random.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect())
}
