//! The engine's face to gateways: [`ObjectStore`] on one core.

use crate::api::{
    AccessKey, Attributes, BucketInfo, CompletePart, Condition, FinishWrite, ListPage, ListRequest, ObjectInfo,
    ObjectReader, ObjectStore, ObjectWriter, PartInfo, StoreError, StoreFuture, UploadInfo,
};
use crate::chunk_write::WriteScope;
use crate::core::Core;
use crate::message::{Bucket, ControlRequest, ControlResponse, ObjectPath, ReadId, ShardRequest, ShardResponse};
use crate::reader::{OpenedObject, Reader};
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
        let scope = WriteScope { bucket, keys };
        let writer = Writer::begin(self.core.clone(), scope, path, target, len_hint_bytes).await?;
        Ok(Box::new(writer))
    }

    async fn upload(
        &self,
        tenant: TenantId,
        bucket: &str,
        key: &str,
        request: impl FnOnce(ObjectPath) -> ShardRequest,
    ) -> Result<ShardResponse, StoreError> {
        let (bucket, path) = self.locate(tenant, bucket, key).await?;
        self.core.calls.shard(bucket.shard, request(path)).await
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
            self.core.calls.shard(bucket.shard, request).await?;
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
            let (bucket, path) = self.locate(tenant, bucket, key).await?;
            let keys = self.core.keyring.tenant(tenant).await?;
            let read = ReadId(self.core.ports.random());
            let open = ShardRequest::OpenRead { path, read: Some(read) };
            match self.core.calls.shard(bucket.shard, open).await? {
                ShardResponse::Opened { file, first } => {
                    let (core, key) = (self.core.clone(), key.to_owned());
                    let opened = OpenedObject { shard: bucket.shard, read, file, first };
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
            let request = |path| ShardRequest::Delete { path, condition };
            match self.upload(tenant, bucket, key, request).await? {
                ShardResponse::Deleted(deleted) => Ok(deleted),
                _ => panic!("a shard answers Delete with Deleted"),
            }
        })
    }

    fn list<'a>(&'a self, tenant: TenantId, bucket: &'a str, request: ListRequest) -> StoreFuture<'a, ListPage> {
        Box::pin(async move {
            let bucket = self.core.bucket(tenant, bucket).await?;
            let request = ShardRequest::List { root: bucket.root, request };
            match self.core.calls.shard(bucket.shard, request).await? {
                ShardResponse::Listing(page) => Ok(page),
                _ => panic!("a shard answers List with Listing"),
            }
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
            let request = |path| ShardRequest::CreateUpload { path, attributes };
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
            let bucket = self.core.bucket(tenant, bucket).await?;
            let (namespace, prefix) = (bucket.info.namespace, prefix.to_owned());
            let request = ShardRequest::Uploads { namespace, prefix, after, limit };
            match self.core.calls.shard(bucket.shard, request).await? {
                ShardResponse::Uploads(uploads) => Ok(uploads),
                _ => panic!("a shard answers Uploads with Uploads"),
            }
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
            let request = |path| ShardRequest::CompleteUpload { path, upload, parts, condition, etag, attributes };
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
