//! What the engine offers to gateways: tenants' namespaces of objects. Protocol details (headers, XML, signatures,
//! checksums) are the gateway's.

use crate::key_ranges::KeyRange;
use bytes::Bytes;
use kiseki_types::LocalBoxFuture;
use kiseki_types::ids::{NamespaceId, TenantId, UploadId};
use std::collections::BTreeMap;
use std::rc::Rc;
use thiserror::Error;

/// Why the engine did not do what was asked. "Absent" and "not yours" are the same (I-T1).
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// No such bucket, or not this tenant's.
    #[error("there is no bucket of that name")]
    NoSuchBucket,
    /// The bucket exists and is this tenant's.
    #[error("the bucket exists already and is yours")]
    BucketExists,
    /// The name is taken by another tenant.
    #[error("the bucket name is taken")]
    BucketNameTaken,
    /// The bucket still holds objects.
    #[error("the bucket is not empty")]
    BucketNotEmpty,
    /// No such object.
    #[error("there is no object of that key")]
    NoSuchKey,
    /// No such upload.
    #[error("there is no upload of that id")]
    NoSuchUpload,
    /// A part named in a completion is missing or differs.
    #[error("part {part} was not uploaded, or its ETag differs")]
    InvalidPart {
        /// Its number.
        part: u16,
    },
    /// A condition does not hold; nothing happened.
    #[error("the condition does not hold")]
    PreconditionFailed,
    /// A tenant or another named thing exists already.
    #[error("{what} exists already")]
    Exists {
        /// What.
        what: String,
    },
    /// A tenant, key or another named thing does not exist.
    #[error("{what} does not exist")]
    NotFound {
        /// What.
        what: String,
    },
    /// The request makes no sense.
    #[error("{what}")]
    Invalid {
        /// What is wrong.
        what: String,
    },
    /// More than the format takes.
    #[error("{what} is too large")]
    TooLarge {
        /// What.
        what: String,
    },
    /// No space (507).
    #[error("the pool is full: {reason}; add a device or delete data")]
    Full {
        /// Which device or pool, how much was needed.
        reason: String,
    },
    /// Too few devices, no majority, a group that can't commit, a key that is away (503). What happened is unknown to
    /// the caller unless the message says otherwise.
    #[error("not available now: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// The keys lie in another shard now; nothing happened. The engine asks there, gateways never see it.
    #[error("the keys lie in another shard now; try again")]
    Moved(Box<KeyRange>),
    /// The shard has changed its leader, or does so now: a change may have been made and may not (503). Asked of whoever leads next,
    /// the same request gets its first answer.
    #[error("not available now: {reason}")]
    Unsettled {
        /// Why.
        reason: String,
    },
    /// Stored bytes can't be read back or rebuilt: an operator must look (500).
    #[error("stored data is damaged: {reason}")]
    Damaged {
        /// What.
        reason: String,
    },
}

/// Short form.
pub type StoreFuture<'a, T> = LocalBoxFuture<'a, Result<T, StoreError>>;

/// How ETags of a bucket are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtagMode {
    /// Hex MD5 of the content (and `-N` behind the MD5 of MD5s for multipart).
    Md5,
    /// Opaque: made from ids, costs no MD5.
    Opaque,
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketInfo {
    /// Its namespace.
    pub namespace: NamespaceId,
    /// Its name.
    pub name: String,
    /// When it was made, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// How its ETags are made.
    pub etag_mode: EtagMode,
}

/// What the gateway looks up to check a signature. The secret is zeroed on drop.
pub struct AccessKey {
    /// Whose key it is.
    pub tenant: TenantId,
    /// The secret, for SigV4.
    pub secret: zeroize::Zeroizing<String>,
}

/// Properties that travel with an object and mean nothing to the engine: the gateway's headers, user metadata,
/// checksums, tags; sealed at rest.
pub type Attributes = BTreeMap<String, String>;

/// An object as listings and HEAD see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The whole key.
    pub key: String,
    /// Bytes of content.
    pub len_bytes: u64,
    /// When it was stored, milliseconds since 1970.
    pub modified_unix_ms: u64,
    /// ETag without quotes.
    pub etag: String,
    /// The gateway's properties (empty in listings).
    pub attributes: Attributes,
    /// Lengths of the parts of a multipart object, in order; empty for a plain one.
    pub part_lens_bytes: Vec<u64>,
}

/// A condition on the entry as it is when the write is decided (atomic in the shard).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Condition {
    /// None.
    #[default]
    None,
    /// Only if there is no object of that key.
    IfAbsent,
    /// Only if there is one with this ETag ("*": any). No object at all is `NoSuchKey`.
    IfMatch(String),
    /// Only if there is none with this ETag.
    IfNoneMatch(String),
}

/// What ends a write.
#[derive(Clone, Debug, Default)]
pub struct FinishWrite {
    /// The ETag; `None` lets the engine make an opaque one.
    pub etag: Option<String>,
    /// The gateway's properties.
    pub attributes: Attributes,
    /// When to write.
    pub condition: Condition,
}

/// Takes the bytes of one object or part. Dropping it abandons the write: nothing becomes visible, its space is
/// collected.
pub trait ObjectWriter {
    /// Takes bytes; waits while too much is in flight.
    fn write(&mut self, bytes: Bytes) -> StoreFuture<'_, ()>;
    /// All bytes are there: ends when they are stored, and nothing is named yet. [`ObjectWriter::finish`] does that too;
    /// a caller that has something to find out before it commits finds it out behind this.
    fn drain(&mut self) -> StoreFuture<'_, ()>;
    /// All bytes are there: commits. After Ok the write is durable and visible everywhere.
    fn finish(self: Box<Self>, finish: FinishWrite) -> StoreFuture<'static, ObjectInfo>;
}

/// Hands out the bytes of one object, as it was when it was opened.
pub trait ObjectReader {
    /// The object.
    fn info(&self) -> &ObjectInfo;
    /// Chooses the bytes to hand out, before the first `next`; the range must lie in the object.
    fn seek(&mut self, range: std::ops::Range<u64>);
    /// The next bytes; `None` at the end. Every byte is checked; what can't be read or rebuilt is an error.
    fn next(&mut self) -> StoreFuture<'_, Option<Bytes>>;
}

/// A listing to be made.
#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    /// Only keys that start with this.
    pub prefix: String,
    /// Only keys (and common prefixes) behind this one, exclusive.
    pub after: Option<String>,
    /// Roll up keys at the first occurrence behind the prefix. Any string.
    pub delimiter: Option<String>,
    /// At most so many keys and common prefixes together.
    pub limit: usize,
}

/// One step of a listing, in S3's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListItem {
    /// A key.
    Object(ObjectInfo),
    /// A common prefix, delimiter included.
    CommonPrefix(String),
}

/// A page of a listing.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// Keys and common prefixes in byte order.
    pub items: Vec<ListItem>,
    /// Whether more follow; then go on after the last item (behind all keys of a common prefix).
    pub truncated: bool,
}

/// An upload in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadInfo {
    /// Its id.
    pub upload: UploadId,
    /// The key that it will become.
    pub key: String,
    /// When it was begun, milliseconds since 1970.
    pub initiated_unix_ms: u64,
    /// The gateway's properties for the object.
    pub attributes: Attributes,
}

/// A part of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartInfo {
    /// Its number, 1 to 10,000.
    pub part: u16,
    /// Its bytes.
    pub len_bytes: u64,
    /// When it was stored, milliseconds since 1970.
    pub modified_unix_ms: u64,
    /// ETag without quotes.
    pub etag: String,
    /// The gateway's properties (its checksums).
    pub attributes: Attributes,
}

/// A part as a completion names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompletePart {
    /// Its number.
    pub part: u16,
    /// Its ETag without quotes; it must match.
    pub etag: String,
}

/// What stores objects. One per core; all cores show the same.
///
/// Consistency: after a method has answered Ok, every later call on any core sees what it did.
pub trait ObjectStore {
    /// Whose key this is; `None` when there is no such key.
    fn access_key<'a>(&'a self, access_key_id: &'a str) -> StoreFuture<'a, Option<AccessKey>>;

    /// Makes a bucket.
    fn create_bucket<'a>(&'a self, tenant: TenantId, name: &'a str) -> StoreFuture<'a, BucketInfo>;
    /// Looks a bucket up.
    fn bucket<'a>(&'a self, tenant: TenantId, name: &'a str) -> StoreFuture<'a, BucketInfo>;
    /// Removes an empty bucket.
    fn delete_bucket<'a>(&'a self, tenant: TenantId, name: &'a str) -> StoreFuture<'a, ()>;
    /// All buckets of a tenant, by name.
    fn buckets(&self, tenant: TenantId) -> StoreFuture<'_, Vec<BucketInfo>>;

    /// Begins an object. `len_hint_bytes` is the declared length, when there is one.
    fn put<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        len_hint_bytes: Option<u64>,
    ) -> StoreFuture<'a, Box<dyn ObjectWriter>>;
    /// An object's properties.
    fn head<'a>(&'a self, tenant: TenantId, bucket: &'a str, key: &'a str) -> StoreFuture<'a, ObjectInfo>;
    /// Opens an object for reading.
    fn get<'a>(&'a self, tenant: TenantId, bucket: &'a str, key: &'a str) -> StoreFuture<'a, Box<dyn ObjectReader>>;
    /// Removes an object. Removing what is not there is Ok(false), unless the condition asks for it.
    fn delete<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        condition: Condition,
    ) -> StoreFuture<'a, bool>;
    /// Lists objects.
    fn list<'a>(&'a self, tenant: TenantId, bucket: &'a str, request: ListRequest) -> StoreFuture<'a, ListPage>;

    /// Begins a multipart upload.
    fn create_upload<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        attributes: Attributes,
    ) -> StoreFuture<'a, UploadId>;
    /// Begins a part; a second one of the same number replaces the first when it finishes.
    fn put_part<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        upload: UploadId,
        part: u16,
    ) -> StoreFuture<'a, Box<dyn ObjectWriter>>;
    /// An upload and its parts with numbers above `after`, at most `limit`.
    fn parts<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        upload: UploadId,
        after: u16,
        limit: usize,
    ) -> StoreFuture<'a, (UploadInfo, Vec<PartInfo>)>;
    /// Uploads in progress whose (key, upload id) lies behind `after`, in order, with this prefix, at most `limit`. Only none at all
    /// means that there are no more.
    fn uploads<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        prefix: &'a str,
        after: Option<(String, UploadId)>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<UploadInfo>>;
    /// Makes an object of the named parts, in the order given (ascending numbers), in one delta. `finish.attributes`
    /// are added to those given when the upload was begun.
    fn complete_upload<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        upload: UploadId,
        parts: Vec<CompletePart>,
        finish: FinishWrite,
    ) -> StoreFuture<'a, ObjectInfo>;
    /// Gives an upload up.
    fn abort_upload<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        upload: UploadId,
    ) -> StoreFuture<'a, ()>;
}

/// The store as gateways hold it.
pub type Store = Rc<dyn ObjectStore>;
