//! Splits, as the control shard sees them (I-L6): it makes the child, has the giver begin, and writes down where the keys lie once
//! they have all moved. Each step is in its rows before it is taken, so whoever leads next goes on with it.

use super::{CHANGES, ControlService, LISTED_MAX, damaged, read_be, tenant_bucket_key};
use crate::api::StoreError;
use crate::control_rows::{BUCKETS, BucketRow, SHARDS, SPLITS, ShardRow, SplitRow, TENANT_BUCKETS};
use crate::delta::RowChange;
use crate::keyring::metadata_wrap;
use crate::keys::MetaSealer;
use crate::latch::Hold;
use crate::leader::{Draft, row_damaged};
use crate::message::{NodeState, OpenShard, ShardRequest, ShardResponse};
use crate::split_message::{
    ShardEntry, ShardMapAnswer, ShardMapRequest, SplitAnswer, SplitOrder, SplitRequest, SplitState,
};
use crate::wire::SPLIT_VERSION;
use kiseki_types::ids::{NamespaceId, NodeId, ShardId, TenantId};
use kiseki_types::limits::KEY_LEN_BYTES_MAX;
use kiseki_types::runtime::RuntimeExt;
use kiseki_types::secret::SecretKey;
use std::collections::{BTreeMap, VecDeque};
use tracing::{debug, info, warn};

/// Shards that splits may bring a tenant to (I-O5): as many as one generation may be named by.
const SHARDS_PER_TENANT_MAX: usize = 4096;

/// Splits are begun one after the other.
const BEGINNING: &[u8] = b"splits";

/// A bucket is deleted by one at a time.
const DELETING: &[u8] = b"delete ";

fn invalid(what: String) -> StoreError {
    StoreError::Invalid { what }
}

impl ControlService {
    pub(super) async fn shard_map(&self, request: ShardMapRequest) -> Result<ShardMapAnswer, StoreError> {
        match request {
            ShardMapRequest::List => self.list_shards().await.map(ShardMapAnswer::Shards),
            ShardMapRequest::Split { shard, bucket, at } => {
                self.begin_split(shard, bucket.as_deref(), at).await.map(ShardMapAnswer::Begun)
            }
        }
    }

    async fn list_shards(&self) -> Result<Vec<ShardEntry>, StoreError> {
        let parents: BTreeMap<ShardId, ShardId> =
            self.splits().await?.into_iter().map(|(parent, split)| (split.order.child, parent)).collect();
        let rows = self.leader.rows(SHARDS, &[], LISTED_MAX).await?;
        let entry = |(key, value): &(Vec<u8>, Vec<u8>)| {
            let shard = ShardId(read_be(key)?);
            let row = ShardRow::decode(value).map_err(row_damaged)?;
            let split_of = parents.get(&shard).copied();
            Ok(ShardEntry { shard, tenant: row.tenant, is_active: row.active, split_of })
        };
        rows.iter().map(entry).collect()
    }

    async fn splits(&self) -> Result<Vec<(ShardId, SplitRow)>, StoreError> {
        let rows = self.leader.rows(SPLITS, &[], LISTED_MAX).await?;
        let row = |(key, value): &(Vec<u8>, Vec<u8>)| {
            Ok((ShardId(read_be(key)?), SplitRow::decode(value).map_err(row_damaged)?))
        };
        rows.iter().map(row).collect()
    }

    async fn shard_row(&self, shard: ShardId) -> Result<ShardRow, StoreError> {
        let row = self.leader.row(SHARDS, &shard.0.to_be_bytes()).await?;
        let row = row.ok_or_else(|| StoreError::NotFound { what: format!("shard {shard}") })?;
        ShardRow::decode(&row).map_err(row_damaged)
    }

    /// Writes down that keys of a shard are to move to a new one. From then on it goes by itself.
    async fn begin_split(
        &self,
        shard: ShardId,
        bucket: Option<&str>,
        at: Option<String>,
    ) -> Result<SplitOrder, StoreError> {
        if let Some(node) = self.calls.lacking(SPLIT_VERSION) {
            let what = format!(
                "node {} runs an earlier release, or has not answered since this one started: all nodes have to run one that \
                 knows shards that are split",
                node.0
            );
            return Err(invalid(what));
        }
        let _one = self.leader.latches.hold(BEGINNING.to_vec(), Hold::Exclusive).await;
        let parent = self.shard_row(shard).await?;
        if !parent.active {
            return Err(invalid(format!("shard {shard} is still being made; try again")));
        }
        if self.leader.row(SPLITS, &shard.0.to_be_bytes()).await?.is_some() {
            return Err(StoreError::Exists { what: format!("a split of shard {shard}") });
        }
        let all = self.leader.rows(SHARDS, &[], LISTED_MAX).await?;
        let decoded: Result<Vec<ShardRow>, _> = all.iter().map(|(_, row)| ShardRow::decode(row)).collect();
        let of_tenant = decoded.map_err(row_damaged)?.iter().filter(|row| row.tenant == parent.tenant).count();
        if of_tenant >= SHARDS_PER_TENANT_MAX {
            return Err(invalid(format!("the tenant has {of_tenant} shards, and gets no more")));
        }
        let (key, row, start) = self.split_point(shard, parent.tenant, bucket, at).await?;
        let going_on = self.splits().await?.iter().filter(|(_, split)| split.bucket == key).count();
        if !row.ranges.has_room_for(going_on + 1) {
            return Err(invalid("the bucket lies in as many ranges of keys as it may".to_owned()));
        }
        let until = row.ranges.holder(&start, row.shard).until;
        let order = SplitOrder { child: ShardId(0), namespace: row.info.namespace, root: row.root, start, until };
        self.make_child(shard, parent.tenant, key, order).await
    }

    /// The bucket to be split, its key, and the first key that moves.
    async fn split_point(
        &self,
        shard: ShardId,
        tenant: TenantId,
        bucket: Option<&str>,
        at: Option<String>,
    ) -> Result<(Vec<u8>, BucketRow, String), StoreError> {
        let named = match bucket {
            None => None,
            Some(name) => Some((self.bucket_key(name), self.bucket(tenant, name).await?)),
        };
        let (key, row, start) = match (named, at) {
            (Some((key, row)), Some(at)) => (key, row, at),
            (None, Some(_)) => return Err(invalid("a key to split at needs the bucket that it is in".to_owned())),
            (Some((key, row)), None) => {
                let (_, at) = self.ask_where(shard, Some(row.info.namespace)).await?;
                (key, row, at)
            }
            (None, None) => {
                let (namespace, mut at) = self.ask_where(shard, None).await?;
                let (key, row) = self.bucket_of(tenant, namespace).await?;
                if row.ranges.holder(&at, row.shard).shard != shard {
                    // The shard would give all of the bucket, whose beginning was never its own.
                    (_, at) = self.ask_where(shard, Some(namespace)).await?;
                }
                (key, row, at)
            }
        };
        if start.len() > KEY_LEN_BYTES_MAX {
            return Err(invalid(format!("no key is longer than {KEY_LEN_BYTES_MAX} bytes")));
        }
        let holder = row.ranges.holder(&start, row.shard).shard;
        if holder != shard {
            return Err(invalid(format!("that key lies in shard {holder}")));
        }
        Ok((key, row, start))
    }

    async fn ask_where(
        &self,
        shard: ShardId,
        namespace: Option<NamespaceId>,
    ) -> Result<(NamespaceId, String), StoreError> {
        match self.ask_shard(shard, SplitRequest::Choose { namespace }).await? {
            SplitAnswer::Point(Some(point)) => Ok(point),
            SplitAnswer::Point(None) => {
                let what =
                    format!("shard {shard} was asked for too few keys lately to know where to split it; say where");
                Err(invalid(what))
            }
            _ => Err(unfit()),
        }
    }

    async fn bucket_of(&self, tenant: TenantId, namespace: NamespaceId) -> Result<(Vec<u8>, BucketRow), StoreError> {
        let key = self.leader.row(TENANT_BUCKETS, &tenant_bucket_key(tenant, namespace)).await?;
        let key = key.ok_or(StoreError::NoSuchBucket)?;
        let row = self.leader.row(BUCKETS, &key).await?.ok_or(StoreError::NoSuchBucket)?;
        Ok((key, BucketRow::decode(&row).map_err(row_damaged)?))
    }

    async fn make_child(
        &self,
        parent: ShardId,
        tenant: TenantId,
        bucket: Vec<u8>,
        order: SplitOrder,
    ) -> Result<SplitOrder, StoreError> {
        let _guard = self.leader.latches.hold(CHANGES.to_vec(), Hold::Exclusive).await;
        let (kek, _) = self.open_secrets(tenant, &self.tenant(tenant).await?)?;
        let ports = self.leader.ports();
        let wrapper = MetaSealer::new(metadata_wrap(&kek), &**ports);
        let metadata_key = SecretKey::take(&mut ports.random());
        self.decide(async |term| {
            let mut draft = Draft::default();
            let child = ShardId(self.count(&mut draft, "shard", 1, ShardId::TENANT_FIRST).await?);
            let wrapped_metadata_key = wrapper.seal(&child.0.to_le_bytes(), metadata_key.expose());
            let row = ShardRow { tenant, active: false, founder: self.own, wrapped_metadata_key };
            let order = SplitOrder { child, ..order.clone() };
            let split = SplitRow { order: order.clone(), bucket: bucket.clone() };
            draft.rows.push(RowChange::put(SHARDS, child.0.to_be_bytes().to_vec(), row.encode()));
            draft.rows.push(RowChange::put(SPLITS, parent.0.to_be_bytes().to_vec(), split.encode()));
            self.leader.commit(term, draft).await?;
            Ok(order)
        })
        .await
    }

    /// Goes on with every split, as far as each goes just now.
    pub async fn tend_splits(&self) -> Result<(), StoreError> {
        for (parent, split) in self.splits().await? {
            if let Err(error) = self.tend_split(parent, &split).await {
                debug!(shard = %parent, child = %split.order.child, %error, "a split waits; tried again");
            }
        }
        Ok(())
    }

    async fn tend_split(&self, parent: ShardId, split: &SplitRow) -> Result<(), StoreError> {
        self.leader.barrier().await?;
        let child = split.order.child;
        let row = self.shard_row(child).await?;
        if !row.active {
            if self.is_gone(row.founder).await? {
                return self.forget_child(parent, child).await;
            }
            let open = OpenShard { create: true, ..self.opened(child, &row).await? };
            self.calls.open(row.founder, child, open).await?;
            self.activate(&[child]).await?;
        }
        match self.ask_shard(parent, SplitRequest::Begin(split.order.clone())).await {
            Ok(SplitAnswer::State(SplitState::Done(range))) => {
                self.end_split(parent, split, |row| row.ranges.learn(&range)).await
            }
            // The bucket is gone; or its row lacks that these keys have moved before. The child stays, and gets new buckets.
            Ok(SplitAnswer::State(SplitState::Stopped)) | Err(StoreError::Moved(_)) => {
                self.end_split(parent, split, |_| false).await
            }
            Ok(SplitAnswer::State(SplitState::Waiting { .. } | SplitState::Moving { .. })) => Ok(()),
            Ok(_) => Err(unfit()),
            Err(error) => Err(error),
        }
    }

    async fn is_gone(&self, node: NodeId) -> Result<bool, StoreError> {
        let (_, entries) = self.node_entries().await?;
        Ok(entries.iter().any(|entry| entry.node == node && entry.state == NodeState::Removed))
    }

    /// The node that was to make the child is gone for good, and nobody knows of it yet.
    async fn forget_child(&self, parent: ShardId, child: ShardId) -> Result<(), StoreError> {
        let _guard = self.leader.latches.hold(CHANGES.to_vec(), Hold::Exclusive).await;
        self.decide(async |term| {
            let mut draft = Draft::default();
            draft.rows.push(RowChange::remove(SPLITS, parent.0.to_be_bytes().to_vec()));
            draft.rows.push(RowChange::remove(SHARDS, child.0.to_be_bytes().to_vec()));
            self.leader.commit(term, draft).await
        })
        .await?;
        warn!(shard = %parent, %child, "a split is given up: the node that was to begin it is gone");
        Ok(())
    }

    /// The split is over. Where the bucket's map is full, or the bucket is gone, the giver alone says where its keys lie.
    async fn end_split(
        &self,
        parent: ShardId,
        split: &SplitRow,
        change: impl Fn(&mut BucketRow) -> bool,
    ) -> Result<(), StoreError> {
        let _guard = self.leader.latches.hold(CHANGES.to_vec(), Hold::Exclusive).await;
        self.decide(async |term| {
            let mut draft = Draft::default();
            draft.rows.push(RowChange::remove(SPLITS, parent.0.to_be_bytes().to_vec()));
            if let Some(row) = self.leader.row(BUCKETS, &split.bucket).await? {
                let mut row = BucketRow::decode(&row).map_err(row_damaged)?;
                if row.info.namespace == split.order.namespace && change(&mut row) {
                    draft.rows.push(RowChange::put(BUCKETS, split.bucket.clone(), row.encode()));
                }
            }
            self.leader.commit(term, draft).await
        })
        .await?;
        info!(shard = %parent, child = %split.order.child, "a split is over");
        Ok(())
    }

    /// Closes a bucket in every shard that holds keys of it, or in none: who gave keys away is closed before it says to whom.
    pub(super) async fn close_everywhere(&self, row: &BucketRow) -> Result<(), StoreError> {
        let (namespace, root) = (row.info.namespace, row.root);
        let token: [u8; 16] = self.leader.ports().random();
        let mut parts = VecDeque::from([(row.shard, String::new(), None)]);
        // What is being filled may hold what nobody is sent to: there is none of these keys to be found, and it is closed and cleared.
        for (_, split) in self.splits().await? {
            let SplitOrder { child, namespace: of, start, .. } = split.order;
            if of == namespace && self.shard_row(child).await?.active {
                parts.push_back((child, start.clone(), Some(start)));
            }
        }
        let mut closed = Vec::new();
        while let Some((shard, from, until)) = parts.pop_front() {
            closed.push(shard); // should it not answer, it may be closed all the same
            match self.ask_shard(shard, SplitRequest::Close { namespace, root, from, until, token }).await {
                Ok(SplitAnswer::Given(ranges)) => {
                    parts.extend(ranges.into_iter().map(|range| (range.shard, range.start, range.end)));
                }
                answer => {
                    for shard in closed {
                        if let Err(error) = self.ask_shard(shard, SplitRequest::Open { namespace, root, token }).await {
                            warn!(%shard, %error, "a bucket that is not empty stays closed here until it is deleted again");
                        }
                    }
                    return Err(answer.err().unwrap_or_else(unfit));
                }
            }
        }
        for shard in closed {
            self.ask_shard(shard, SplitRequest::Purge { namespace, root }).await?;
        }
        Ok(())
    }

    /// Whether keys of a bucket are on their way to another shard.
    pub(super) async fn is_being_split(&self, name: &str) -> Result<bool, StoreError> {
        let key = self.bucket_key(name);
        Ok(self.splits().await?.iter().any(|(_, split)| split.bucket == key))
    }

    /// Latch of whoever deletes a bucket.
    pub(super) fn deleting(&self, name: &str) -> Vec<u8> {
        [DELETING, self.bucket_key(name).as_slice()].concat()
    }

    async fn ask_shard(&self, shard: ShardId, request: SplitRequest) -> Result<SplitAnswer, StoreError> {
        match self.calls.shard(shard, ShardRequest::Split(Box::new(request))).await? {
            ShardResponse::Split(answer) => Ok(answer),
            _ => Err(unfit()),
        }
    }
}

fn unfit() -> StoreError {
    damaged(&"a shard answers something else than it was asked")
}
