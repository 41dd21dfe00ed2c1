//! The engine's face to gateways: [`ObjectStore`] on one core.

use crate::api::{
    AccessKey, Attributes, BucketInfo, CompletePart, Condition, FinishWrite, ListItem, ListPage, ListRequest,
    ObjectInfo, ObjectReader, ObjectStore, ObjectWriter, PartInfo, StoreError, StoreFuture, UploadInfo,
};
use crate::chunk_write::WriteScope;
use crate::core::Core;
use crate::key_ranges::{KEY_RANGES_MAX, is_below, lower_end};
use crate::message::{Bucket, Clip, ControlRequest, ControlResponse, ObjectPath, ReadId, ShardRequest, ShardResponse};
use crate::reader::{OpenedObject, Reader};
use crate::walk::behind_prefix;
use crate::writer::{Target, Writer};
use kiseki_types::ids::{TenantId, UploadId};
use kiseki_types::limits::KEY_LEN_BYTES_MAX;
use kiseki_types::runtime::RuntimeExt;
use std::rc::Rc;

/// The store of one core.
pub struct EngineStore {
    core: Rc<Core>,
}

impl EngineStore {
    /// On a core's data path.
    #[must_use]
    pub fn new(core: Rc<Core>) -> EngineStore {
        EngineStore { core }
    }

    async fn locate(&self, tenant: TenantId, bucket: &str, key: &str) -> Result<(Bucket, ObjectPath), StoreError> {
        if key.len() > KEY_LEN_BYTES_MAX {
            return Err(StoreError::TooLarge { what: "the key".to_owned() });
        }
        let bucket = self.core.bucket(tenant, bucket).await?;
        let path = ObjectPath { namespace: bucket.info.namespace, root: bucket.root, key: key.to_owned() };
        Ok((bucket, path))
    }

    async fn write(
        &self,
        tenant: TenantId,
        bucket: &str,
        key: &str,
        target: Target,
        len_hint_bytes: Option<u64>,
    ) -> Result<Box<dyn ObjectWriter>, StoreError> {
        let (bucket, path) = self.locate(tenant, bucket, key).await?;
        let keys = self.core.keyring.tenant(tenant).await?;
        let shard = bucket.ranges.holder(key, bucket.shard).shard;
        let scope = WriteScope { bucket, shard, keys };
        let writer = Writer::begin(self.core.clone(), scope, path, target, len_hint_bytes).await?;
        Ok(Box::new(writer))
    }

    async fn upload(
        &self,
        tenant: TenantId,
        bucket: &str,
        key: &str,
        request: impl Fn(ObjectPath) -> ShardRequest,
    ) -> Result<ShardResponse, StoreError> {
        let (mut bucket, path) = self.locate(tenant, bucket, key).await?;
        self.core.ask_holder(&mut bucket, key, || request(path.clone())).await.map(|(_, answer)| answer)
    }

    /// Asks the shards that hold some keys of a bucket one after the other, in the order of the keys.
    ///
    /// - `wanted`: the keys.
    async fn ask_holders(
        &self,
        bucket: &mut Bucket,
        wanted: Clip,
        holders: &mut impl Holders,
    ) -> Result<(), StoreError> {
        let Clip { mut from, until } = wanted;
        let mut followed = 0;
        loop {
            let holder = bucket.ranges.holder(&from, bucket.shard);
            let clip = Clip { from: from.clone(), until: lower_end(holder.until, until.clone()) };
            let Some(request) = holders.request(bucket, clip.clone()) else { return Ok(()) };
            match self.core.calls.shard(holder.shard, request).await {
                Ok(answer) => holders.take(answer),
                Err(StoreError::Moved(range)) if followed < LIST_MOVES_FOLLOWED_MAX => {
                    followed += 1;
                    self.core.learn(bucket, &range);
                    continue;
                }
                Err(StoreError::Moved(_)) => {
                    let reason = "keys of the bucket are moving; try again".to_owned();
                    return Err(StoreError::Unavailable { reason });
                }
                Err(error) => return Err(error),
            }
            match clip.until {
                Some(next) if is_below(&next, until.as_deref()) => from = next,
                _ => return Ok(()),
            }
        }
    }
}

/// The keys with a prefix, from one on.
fn keys_of(prefix: &str, from: String) -> Clip {
    Clip { from: from.max(prefix.to_owned()), until: behind_prefix(prefix) }
}

/// Ranges that one listing may learn of.
const LIST_MOVES_FOLLOWED_MAX: usize = 4 * KEY_RANGES_MAX;

/// What is asked of each shard that holds some of the keys that a listing is about.
trait Holders {
    /// The next request, of these keys; `None` when there is enough.
    fn request(&mut self, bucket: &Bucket, clip: Clip) -> Option<ShardRequest>;
    /// Takes its answer.
    fn take(&mut self, answer: ShardResponse);
}

/// A listing that is put together.
struct Listed {
    request: ListRequest,
    page: ListPage,
}

impl Holders for Listed {
    fn request(&mut self, bucket: &Bucket, clip: Clip) -> Option<ShardRequest> {
        if self.page.truncated {
            return None;
        }
        // Behind the last of what there is, and behind all keys of a common prefix that goes on in the next shard.
        let last = self.page.items.last().map(|item| match item {
            ListItem::Object(info) => info.key.clone(),
            ListItem::CommonPrefix(common) => common.clone(),
        });
        let after = last.or_else(|| self.request.after.clone());
        // One more than fits, when no more fit: then it is known that there are more.
        let limit = (self.request.limit - self.page.items.len()).max(1);
        let request = ListRequest { after, limit, ..self.request.clone() };
        Some(ShardRequest::List { namespace: bucket.info.namespace, root: bucket.root, clip, request })
    }

    fn take(&mut self, answer: ShardResponse) {
        let ShardResponse::Listing(page) = answer else { panic!("a shard answers List with Listing") };
        let room = self.request.limit - self.page.items.len();
        self.page.truncated = page.truncated || page.items.len() > room;
        self.page.items.extend(page.items.into_iter().take(room));
    }
}

/// Uploads that are put together.
struct ListedUploads {
    prefix: String,
    after: Option<(String, UploadId)>,
    limit: usize,
    uploads: Vec<UploadInfo>,
}

impl Holders for ListedUploads {
    fn request(&mut self, bucket: &Bucket, clip: Clip) -> Option<ShardRequest> {
        let (namespace, prefix, after) = (bucket.info.namespace, self.prefix.clone(), self.after.clone());
        let limit = self.limit;
        // A shard may have answered with fewer than it has: whoever asked goes on behind the last, until there are none.
        let is_wanted = limit > 0 && self.uploads.is_empty();
        is_wanted.then_some(ShardRequest::Uploads { namespace, prefix, clip, after, limit })
    }

    fn take(&mut self, answer: ShardResponse) {
        let ShardResponse::Uploads(uploads) = answer else { panic!("a shard answers Uploads with Uploads") };
        self.uploads.extend(uploads);
    }
}

impl ObjectStore for EngineStore {
    fn access_key<'a>(&'a self, access_key_id: &'a str) -> StoreFuture<'a, Option<AccessKey>> {
        Box::pin(async move {
            let found = self.core.access_key(access_key_id).await?;
            Ok(found.map(|(tenant, secret)| AccessKey { tenant, secret }))
        })
    }

    fn create_bucket<'a>(&'a self, tenant: TenantId, name: &'a str) -> StoreFuture<'a, BucketInfo> {
        Box::pin(async move {
            match self.core.calls.control(ControlRequest::CreateBucket { tenant, name: name.to_owned() }).await? {
                ControlResponse::Bucket(bucket) => Ok(bucket.info),
                _ => panic!("the control shard answers CreateBucket with Bucket"),
            }
        })
    }

    fn bucket<'a>(&'a self, tenant: TenantId, name: &'a str) -> StoreFuture<'a, BucketInfo> {
        Box::pin(async move { Ok(self.core.bucket(tenant, name).await?.info) })
    }

    fn delete_bucket<'a>(&'a self, tenant: TenantId, name: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let bucket = self.core.bucket(tenant, name).await?;
            let request = ShardRequest::CloseNamespace { namespace: bucket.info.namespace, root: bucket.root };
            match self.core.calls.shard(bucket.shard, request).await {
                // It lies in several shards: the control shard closes it in all of them.
                Ok(_) | Err(StoreError::Moved(_)) => {}
                Err(error) => return Err(error),
            }
            self.core.calls.control(ControlRequest::DeleteBucket { tenant, name: name.to_owned() }).await?;
            Ok(())
        })
    }

    fn buckets(&self, tenant: TenantId) -> StoreFuture<'_, Vec<BucketInfo>> {
        Box::pin(async move {
            match self.core.calls.control(ControlRequest::Buckets(tenant)).await? {
                ControlResponse::Buckets(buckets) => Ok(buckets),
                _ => panic!("the control shard answers Buckets with Buckets"),
            }
        })
    }

    fn put<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        len_hint_bytes: Option<u64>,
    ) -> StoreFuture<'a, Box<dyn ObjectWriter>> {
        Box::pin(self.write(tenant, bucket, key, Target::Object, len_hint_bytes))
    }

    fn head<'a>(&'a self, tenant: TenantId, bucket: &'a str, key: &'a str) -> StoreFuture<'a, ObjectInfo> {
        Box::pin(async move {
            match self.upload(tenant, bucket, key, ShardRequest::Head).await? {
                ShardResponse::Object(info) => Ok(info),
                _ => panic!("a shard answers Head with Object"),
            }
        })
    }

    fn get<'a>(&'a self, tenant: TenantId, bucket: &'a str, key: &'a str) -> StoreFuture<'a, Box<dyn ObjectReader>> {
        Box::pin(async move {
            let (mut bucket, path) = self.locate(tenant, bucket, key).await?;
            let keys = self.core.keyring.tenant(tenant).await?;
            let read = ReadId(self.core.ports.random());
            let open = || ShardRequest::OpenRead { path: path.clone(), read: Some(read) };
            match self.core.ask_holder(&mut bucket, key, open).await? {
                (shard, ShardResponse::Opened { file, first }) => {
                    let (core, key) = (self.core.clone(), key.to_owned());
                    let opened = OpenedObject { shard, read, file, first };
                    let reader = Reader::new(core, tenant, keys, key, opened);
                    Ok(Box::new(reader) as Box<dyn ObjectReader>)
                }
                _ => panic!("a shard answers OpenRead with Opened"),
            }
        })
    }

    fn delete<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        condition: Condition,
    ) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let request = |path| ShardRequest::Delete { path, condition: condition.clone() };
            match self.upload(tenant, bucket, key, request).await? {
                ShardResponse::Deleted(deleted) => Ok(deleted),
                _ => panic!("a shard answers Delete with Deleted"),
            }
        })
    }

    fn list<'a>(&'a self, tenant: TenantId, bucket: &'a str, request: ListRequest) -> StoreFuture<'a, ListPage> {
        Box::pin(async move {
            let mut bucket = self.core.bucket(tenant, bucket).await?;
            let mut listed = Listed { request, page: ListPage::default() };
            if listed.request.limit > 0 {
                let after = listed.request.after.clone().unwrap_or_default();
                let wanted = keys_of(&listed.request.prefix, after);
                self.ask_holders(&mut bucket, wanted, &mut listed).await?;
            }
            Ok(listed.page)
        })
    }

    fn create_upload<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        attributes: Attributes,
    ) -> StoreFuture<'a, UploadId> {
        Box::pin(async move {
            let request = |path| ShardRequest::CreateUpload { path, attributes: attributes.clone() };
            match self.upload(tenant, bucket, key, request).await? {
                ShardResponse::Upload(upload) => Ok(upload),
                _ => panic!("a shard answers CreateUpload with Upload"),
            }
        })
    }

    fn put_part<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        upload: UploadId,
        part: u16,
    ) -> StoreFuture<'a, Box<dyn ObjectWriter>> {
        Box::pin(async move {
            // Known before the body is taken: an upload that does not exist must not cost the client a transfer.
            self.parts(tenant, bucket, key, upload, 0, 0).await?;
            self.write(tenant, bucket, key, Target::Part { upload, part }, None).await
        })
    }

    fn parts<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        upload: UploadId,
        after: u16,
        limit: usize,
    ) -> StoreFuture<'a, (UploadInfo, Vec<PartInfo>)> {
        Box::pin(async move {
            let request = |path| ShardRequest::Parts { path, upload, after, limit };
            match self.upload(tenant, bucket, key, request).await? {
                ShardResponse::Parts(info, parts) => Ok((info, parts)),
                _ => panic!("a shard answers Parts with Parts"),
            }
        })
    }

    fn uploads<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        prefix: &'a str,
        after: Option<(String, UploadId)>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<UploadInfo>> {
        Box::pin(async move {
            let mut bucket = self.core.bucket(tenant, bucket).await?;
            let from = after.as_ref().map(|(key, _)| key.clone()).unwrap_or_default();
            let wanted = keys_of(prefix, from);
            let mut listed = ListedUploads { prefix: prefix.to_owned(), after, limit, uploads: Vec::new() };
            self.ask_holders(&mut bucket, wanted, &mut listed).await?;
            Ok(listed.uploads)
        })
    }

    fn complete_upload<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        upload: UploadId,
        parts: Vec<CompletePart>,
        finish: FinishWrite,
    ) -> StoreFuture<'a, ObjectInfo> {
        Box::pin(async move {
            let FinishWrite { etag, attributes, condition } = finish;
            let request = |path| ShardRequest::CompleteUpload {
                path,
                upload,
                parts: parts.clone(),
                condition: condition.clone(),
                etag: etag.clone(),
                attributes: attributes.clone(),
            };
            match self.upload(tenant, bucket, key, request).await? {
                ShardResponse::Object(info) => Ok(info),
                _ => panic!("a shard answers CompleteUpload with Object"),
            }
        })
    }

    fn abort_upload<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        upload: UploadId,
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.upload(tenant, bucket, key, |path| ShardRequest::AbortUpload { path, upload }).await?;
            Ok(())
        })
    }
}
