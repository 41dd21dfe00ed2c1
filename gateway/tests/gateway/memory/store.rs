//! A fake engine: ordered maps in memory. Keys that begin with `fault/` fail in the way they name.

use bytes::Bytes;
use kiseki_engine::api::*;
use kiseki_types::ids::{NamespaceId, TenantId, UploadId};
use kiseki_types::runtime::{Clock, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use zeroize::Zeroizing;

/// Reads are handed out in pieces of this length, which divides nothing.
const PIECE_LEN_BYTES: usize = 100_003;

#[derive(Clone)]
struct Content {
    info: ObjectInfo,
    bytes: Rc<Vec<u8>>,
}

struct Upload {
    bucket: String,
    info: UploadInfo,
    parts: BTreeMap<u16, (PartInfo, Rc<Vec<u8>>)>,
}

struct Bucket {
    tenant: TenantId,
    info: BucketInfo,
    objects: BTreeMap<String, Content>,
}

#[derive(Default)]
struct State {
    buckets: BTreeMap<String, Bucket>,
    uploads: BTreeMap<UploadId, Upload>,
    namespaces: u64,
}

/// The fake.
pub struct MemoryStore {
    state: Rc<RefCell<State>>,
    ports: Rc<super::ports::TestPorts>,
    last_ms: Rc<Cell<u64>>,
}

impl MemoryStore {
    /// Knows `memory-key` of tenant 1 and `memory-other` of tenant 2, each with the secret `<key>-secret`.
    pub fn new(ports: Rc<super::ports::TestPorts>) -> MemoryStore {
        MemoryStore { state: Rc::default(), ports, last_ms: Rc::default() }
    }

    fn bucket_of<T>(
        &self,
        tenant: TenantId,
        name: &str,
        with: impl FnOnce(&mut Bucket) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut state = self.state.borrow_mut();
        let bucket = state.buckets.get_mut(name).filter(|bucket| bucket.tenant == tenant);
        with(bucket.ok_or(StoreError::NoSuchBucket)?)
    }

    fn upload_of<T>(
        &self,
        tenant: TenantId,
        bucket: &str,
        key: &str,
        upload: UploadId,
        with: impl FnOnce(&mut Upload) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.bucket_of(tenant, bucket, |_| Ok(()))?;
        let mut state = self.state.borrow_mut();
        let upload = state.uploads.get_mut(&upload).filter(|upload| upload.bucket == bucket && upload.info.key == key);
        with(upload.ok_or(StoreError::NoSuchUpload)?)
    }
}

fn done<T: 'static>(result: Result<T, StoreError>) -> StoreFuture<'static, T> {
    Box::pin(std::future::ready(result))
}

fn check(condition: &Condition, current: Option<&Content>) -> Result<(), StoreError> {
    match (condition, current) {
        (Condition::None, _) | (Condition::IfAbsent | Condition::IfNoneMatch(_), None) => Ok(()),
        (Condition::IfAbsent, Some(_)) => Err(StoreError::PreconditionFailed),
        (Condition::IfMatch(_), None) => Err(StoreError::NoSuchKey),
        (Condition::IfMatch(etag), Some(content)) if etag == "*" || *etag == content.info.etag => Ok(()),
        (Condition::IfNoneMatch(etag), Some(content)) if *etag != content.info.etag => Ok(()),
        _ => Err(StoreError::PreconditionFailed),
    }
}

enum Target {
    Object { tenant: TenantId, bucket: String, key: String },
    Part { upload: UploadId, part: u16 },
}

struct Writer {
    state: Rc<RefCell<State>>,
    target: Target,
    bytes: Vec<u8>,
    now_ms: u64,
    fault: Option<StoreError>,
}

impl ObjectWriter for Writer {
    fn write(&mut self, bytes: Bytes) -> StoreFuture<'_, ()> {
        self.bytes.extend_from_slice(&bytes);
        done(self.fault.clone().map_or(Ok(()), Err))
    }

    fn drain(&mut self) -> StoreFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn finish(self: Box<Self>, finish: FinishWrite) -> StoreFuture<'static, ObjectInfo> {
        let etag = finish.etag.unwrap_or_else(|| format!("opaque{}", self.now_ms));
        let mut info = ObjectInfo {
            key: String::new(),
            len_bytes: self.bytes.len() as u64,
            modified_unix_ms: self.now_ms,
            etag,
            attributes: finish.attributes,
            part_lens_bytes: vec![],
        };
        let Writer { state, target, bytes, .. } = *self;
        let mut state = state.borrow_mut();
        let result = match target {
            Target::Object { tenant, bucket, key } => {
                let bucket = state.buckets.get_mut(&bucket).filter(|bucket| bucket.tenant == tenant);
                match bucket {
                    None => Err(StoreError::NoSuchBucket),
                    Some(bucket) => check(&finish.condition, bucket.objects.get(&key)).map(|()| {
                        info.key = key.clone();
                        let content = Content { info: info.clone(), bytes: Rc::new(bytes) };
                        bucket.objects.insert(key, content);
                        info
                    }),
                }
            }
            Target::Part { upload, part } => match state.uploads.get_mut(&upload) {
                None => Err(StoreError::NoSuchUpload),
                Some(upload) => {
                    let part_info = PartInfo {
                        part,
                        len_bytes: info.len_bytes,
                        modified_unix_ms: info.modified_unix_ms,
                        etag: info.etag.clone(),
                        attributes: info.attributes.clone(),
                    };
                    upload.parts.insert(part, (part_info, Rc::new(bytes)));
                    info.key = upload.info.key.clone();
                    Ok(info)
                }
            },
        };
        done(result)
    }
}

struct Reader {
    content: Content,
    range: std::ops::Range<usize>,
    fault_at: Option<usize>,
}

impl ObjectReader for Reader {
    fn info(&self) -> &ObjectInfo {
        &self.content.info
    }

    fn seek(&mut self, range: std::ops::Range<u64>) {
        assert!(range.start <= range.end && range.end <= self.content.info.len_bytes, "a range in the object");
        self.range = range.start as usize..range.end as usize;
    }

    fn next(&mut self) -> StoreFuture<'_, Option<Bytes>> {
        if self.fault_at.is_some_and(|at| self.range.start >= at) {
            return done(Err(StoreError::Damaged { reason: "made to fail".to_owned() }));
        }
        if self.range.is_empty() {
            return done(Ok(None));
        }
        let end = self.range.end.min(self.range.start + PIECE_LEN_BYTES);
        let piece = Bytes::copy_from_slice(&self.content.bytes[self.range.start..end]);
        self.range.start = end;
        done(Ok(Some(piece)))
    }
}

impl ObjectStore for MemoryStore {
    fn access_key<'a>(&'a self, access_key_id: &'a str) -> StoreFuture<'a, Option<AccessKey>> {
        let tenant = match access_key_id {
            "memory-key" => Some(TenantId(1)),
            "memory-other" => Some(TenantId(2)),
            _ => None,
        };
        let secret = Zeroizing::new(format!("{access_key_id}-secret"));
        done(Ok(tenant.map(|tenant| AccessKey { tenant, secret })))
    }

    fn create_bucket<'a>(&'a self, tenant: TenantId, name: &'a str) -> StoreFuture<'a, BucketInfo> {
        let mut state = self.state.borrow_mut();
        if let Some(bucket) = state.buckets.get(name) {
            return done(Err(if bucket.tenant == tenant {
                StoreError::BucketExists
            } else {
                StoreError::BucketNameTaken
            }));
        }
        state.namespaces += 1;
        let info = BucketInfo {
            namespace: NamespaceId(state.namespaces),
            name: name.to_owned(),
            created_unix_ms: self.ports.unix_time_ms(),
            etag_mode: if name.ends_with("-opaque") { EtagMode::Opaque } else { EtagMode::Md5 },
        };
        state.buckets.insert(name.to_owned(), Bucket { tenant, info: info.clone(), objects: BTreeMap::new() });
        done(Ok(info))
    }

    fn bucket<'a>(&'a self, tenant: TenantId, name: &'a str) -> StoreFuture<'a, BucketInfo> {
        done(self.bucket_of(tenant, name, |bucket| Ok(bucket.info.clone())))
    }

    fn delete_bucket<'a>(&'a self, tenant: TenantId, name: &'a str) -> StoreFuture<'a, ()> {
        let result = self.bucket_of(tenant, name, |bucket| {
            if bucket.objects.is_empty() { Ok(()) } else { Err(StoreError::BucketNotEmpty) }
        });
        if result.is_ok() {
            self.state.borrow_mut().buckets.remove(name);
        }
        done(result)
    }

    fn buckets(&self, tenant: TenantId) -> StoreFuture<'_, Vec<BucketInfo>> {
        let state = self.state.borrow();
        let buckets = state.buckets.values().filter(|bucket| bucket.tenant == tenant);
        done(Ok(buckets.map(|bucket| bucket.info.clone()).collect()))
    }

    fn put<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        _len_hint_bytes: Option<u64>,
    ) -> StoreFuture<'a, Box<dyn ObjectWriter>> {
        let fault = match key {
            "fault/full" => Some(StoreError::Full { reason: "pool p0 is full".to_owned() }),
            "fault/unavailable" => Some(StoreError::Unavailable { reason: "no majority".to_owned() }),
            _ => None,
        };
        let target = Target::Object { tenant, bucket: bucket.to_owned(), key: key.to_owned() };
        done(self.bucket_of(tenant, bucket, |_| Ok(())).map(|()| {
            let now_ms = self.ports.unix_time_ms().max(self.last_ms.get() + 1);
            self.last_ms.set(now_ms);
            Box::new(Writer { state: self.state.clone(), target, bytes: vec![], now_ms, fault })
                as Box<dyn ObjectWriter>
        }))
    }

    fn head<'a>(&'a self, tenant: TenantId, bucket: &'a str, key: &'a str) -> StoreFuture<'a, ObjectInfo> {
        done(self.bucket_of(tenant, bucket, |bucket| {
            bucket.objects.get(key).map(|content| content.info.clone()).ok_or(StoreError::NoSuchKey)
        }))
    }

    fn get<'a>(&'a self, tenant: TenantId, bucket: &'a str, key: &'a str) -> StoreFuture<'a, Box<dyn ObjectReader>> {
        done(self.bucket_of(tenant, bucket, |bucket| {
            let content = bucket.objects.get(key).cloned().ok_or(StoreError::NoSuchKey)?;
            let range = 0..content.bytes.len();
            let fault_at = match key {
                "fault/damaged" => Some(0),
                "fault/damaged-late" => Some(1),
                _ => None,
            };
            Ok(Box::new(Reader { content, range, fault_at }) as Box<dyn ObjectReader>)
        }))
    }

    fn delete<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        condition: Condition,
    ) -> StoreFuture<'a, bool> {
        done(self.bucket_of(tenant, bucket, |bucket| {
            check(&condition, bucket.objects.get(key))?;
            Ok(bucket.objects.remove(key).is_some())
        }))
    }

    fn list<'a>(&'a self, tenant: TenantId, bucket: &'a str, request: ListRequest) -> StoreFuture<'a, ListPage> {
        done(self.bucket_of(tenant, bucket, |bucket| {
            let mut items: Vec<ListItem> = Vec::new();
            for content in bucket.objects.values() {
                let key = &content.info.key;
                let Some(rest) = key.strip_prefix(request.prefix.as_str()) else { continue };
                let rolled = request.delimiter.as_deref().and_then(|delimiter| {
                    rest.find(delimiter).map(|at| &key[..request.prefix.len() + at + delimiter.len()])
                });
                let name = rolled.unwrap_or(key);
                if request.after.as_deref().is_some_and(|after| name <= after) {
                    continue;
                }
                let item = match rolled {
                    Some(rolled) => ListItem::CommonPrefix(rolled.to_owned()),
                    None => {
                        let info = ObjectInfo { attributes: Attributes::new(), ..content.info.clone() };
                        ListItem::Object(info)
                    }
                };
                if items.last() == Some(&item) {
                    continue;
                }
                if items.len() == request.limit {
                    return Ok(ListPage { items, truncated: true });
                }
                items.push(item);
            }
            Ok(ListPage { items, truncated: false })
        }))
    }

    fn create_upload<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        attributes: Attributes,
    ) -> StoreFuture<'a, UploadId> {
        done(self.bucket_of(tenant, bucket, |_| Ok(())).map(|()| {
            let upload = UploadId(self.ports.random());
            let info =
                UploadInfo { upload, key: key.to_owned(), initiated_unix_ms: self.ports.unix_time_ms(), attributes };
            let entry = Upload { bucket: bucket.to_owned(), info, parts: BTreeMap::new() };
            self.state.borrow_mut().uploads.insert(upload, entry);
            upload
        }))
    }

    fn put_part<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        upload: UploadId,
        part: u16,
    ) -> StoreFuture<'a, Box<dyn ObjectWriter>> {
        done(self.upload_of(tenant, bucket, key, upload, |_| Ok(())).map(|()| {
            Box::new(Writer {
                state: self.state.clone(),
                target: Target::Part { upload, part },
                bytes: vec![],
                now_ms: self.ports.unix_time_ms(),
                fault: None,
            }) as Box<dyn ObjectWriter>
        }))
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
        done(self.upload_of(tenant, bucket, key, upload, |upload| {
            let parts = upload.parts.values().filter(|(part, _)| part.part > after).take(limit);
            Ok((upload.info.clone(), parts.map(|(part, _)| part.clone()).collect()))
        }))
    }

    fn uploads<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        prefix: &'a str,
        after: Option<(String, UploadId)>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<UploadInfo>> {
        done(self.bucket_of(tenant, bucket, |_| Ok(())).map(|()| {
            let state = self.state.borrow();
            let mut uploads: Vec<UploadInfo> = state
                .uploads
                .values()
                .filter(|upload| upload.bucket == bucket && upload.info.key.starts_with(prefix))
                .map(|upload| upload.info.clone())
                .filter(|info| after.as_ref().is_none_or(|after| (&info.key, info.upload) > (&after.0, after.1)))
                .collect();
            uploads.sort_by(|left, right| (&left.key, left.upload).cmp(&(&right.key, right.upload)));
            uploads.truncate(limit);
            uploads
        }))
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
        let assembled = self.upload_of(tenant, bucket, key, upload, |upload| {
            let mut bytes = Vec::new();
            let mut part_lens_bytes = Vec::new();
            for named in &parts {
                let invalid = StoreError::InvalidPart { part: named.part };
                let (info, content) = upload.parts.get(&named.part).ok_or(invalid.clone())?;
                if info.etag != named.etag {
                    return Err(invalid);
                }
                part_lens_bytes.push(info.len_bytes);
                bytes.extend_from_slice(content);
            }
            let mut attributes = upload.info.attributes.clone();
            attributes.extend(finish.attributes.clone());
            Ok((bytes, part_lens_bytes, attributes))
        });
        let result = assembled.and_then(|(bytes, part_lens_bytes, attributes)| {
            let info = ObjectInfo {
                key: key.to_owned(),
                len_bytes: bytes.len() as u64,
                modified_unix_ms: self.ports.unix_time_ms(),
                etag: finish.etag.clone().unwrap_or_else(|| format!("opaque-{upload}")),
                attributes,
                part_lens_bytes,
            };
            self.bucket_of(tenant, bucket, |bucket| {
                check(&finish.condition, bucket.objects.get(key))?;
                let content = Content { info: info.clone(), bytes: Rc::new(bytes) };
                bucket.objects.insert(key.to_owned(), content);
                Ok(info)
            })
        });
        if result.is_ok() {
            self.state.borrow_mut().uploads.remove(&upload);
        }
        done(result)
    }

    fn abort_upload<'a>(
        &'a self,
        tenant: TenantId,
        bucket: &'a str,
        key: &'a str,
        upload: UploadId,
    ) -> StoreFuture<'a, ()> {
        let result = self.upload_of(tenant, bucket, key, upload, |_| Ok(()));
        if result.is_ok() {
            self.state.borrow_mut().uploads.remove(&upload);
        }
        done(result)
    }
}
