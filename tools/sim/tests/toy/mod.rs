//! A toy node: an honest little store, and ways to break it that the crash run must notice.
//!
//! Bytes go to a simulated disk, flushed; then one record in a log file, synced, says that they are there.

use bytes::Bytes;
use kiseki_engine::api::*;
use kiseki_sim::node::{NodeUnderTest, OpenCore, OpenError, OpenNode};
use kiseki_simulator::seed::mix64;
use kiseki_simulator::{CutSwitch, DiskOptions, NodeId, Sim, SimDisk, SimMetaDir};
use kiseki_types::buf::IoBuf;
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::device::Device;
use kiseki_types::ids::{NamespaceId, TenantId, UploadId};
use kiseki_types::meta::MetaFile;
use kiseki_types::runtime::{Ports, RuntimeExt};
use kiseki_types::{BlockIndex, LocalBoxFuture};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// What is wrong with a toy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    None,
    /// It acknowledges before its data is flushed.
    NoDataFlush,
    /// It acknowledges before its log is synced.
    NoLogSync,
    /// Its disk answers flushes without saving anything.
    FlushIsALie,
    /// It decides conditions before it waits for the disk, not when it commits.
    EarlyCondition,
    /// It answers reads from the state of a while ago.
    StaleReads,
    /// It loses removals once it is opened again.
    ForgetsRemovals,
    /// Range reads begin one byte late.
    RangeOffByOne,
}

#[derive(Clone)]
struct Object {
    start: BlockIndex,
    len: u64,
    etag: String,
    attributes: Attributes,
    part_lens: Vec<u64>,
    runs: Vec<(u64, u64)>,
}

#[derive(Clone, Default)]
struct State {
    buckets: BTreeMap<String, BTreeMap<String, Object>>,
    uploads: BTreeMap<(String, String, UploadId), BTreeMap<u16, Object>>,
}

/// The media of a toy node.
pub struct ToyNode {
    flaw: Flaw,
    switch: Arc<CutSwitch>,
    disk: SimDisk,
    dir: SimMetaDir,
}

impl ToyNode {
    /// Empty media.
    pub fn new(sim: &Sim, flaw: Flaw) -> ToyNode {
        let switch = Arc::<CutSwitch>::default();
        let disk = SimDisk::new(sim, DiskOptions::of_len("toy-disk", 1 << 30), &switch);
        disk.set_flush_is_a_lie(flaw == Flaw::FlushIsALie);
        let dir = SimMetaDir::new("toy-meta", sim.seed(), &switch);
        ToyNode { flaw, switch, disk, dir }
    }
}

impl NodeUnderTest for ToyNode {
    fn id(&self) -> NodeId {
        NodeId(1)
    }

    fn switch(&self) -> Arc<CutSwitch> {
        self.switch.clone()
    }

    fn open<'a>(&'a mut self, sim: &'a Sim) -> LocalBoxFuture<'a, Result<OpenNode, OpenError>> {
        Box::pin(async move {
            let ports = sim.ports(self.id());
            let store = ToyStore::open(self, ports.clone()).map_err(|error| OpenError(error.to_string()))?;
            Ok(OpenNode { tenant: TenantId(1), cores: vec![OpenCore { ports, store: Rc::new(store), calls: None }] })
        })
    }

    fn power_cut(&mut self, seed: u64) {
        self.disk.power_cut(seed);
        self.dir.power_cut(mix64(seed));
    }
}

struct Inner {
    flaw: Flaw,
    ports: Ports,
    device: Rc<dyn Device>,
    log: Arc<dyn MetaFile>,
    log_end: Cell<u64>,
    next_block: Cell<u64>,
    state: RefCell<State>,
    stale: RefCell<State>,
    /// One commit at a time: a record is in the log before the next one is decided.
    committing: Cell<bool>,
}

struct ToyStore(Rc<Inner>);

fn unavailable(error: impl ToString) -> StoreError {
    StoreError::Unavailable { reason: error.to_string() }
}

enum Change {
    Bucket(String, bool),
    Object(String, String, Option<Object>),
    Upload(String, String, UploadId, bool),
    Part(String, String, UploadId, u16, Object),
    Complete(String, String, UploadId, Object),
}

fn write_object(out: &mut Writer, object: &Object) {
    out.u64(object.start.0).u64(object.len).str(&object.etag).u32(object.attributes.len() as u32);
    for (name, value) in &object.attributes {
        out.str(name).str(value);
    }
    out.u32(object.part_lens.len() as u32);
    for len in &object.part_lens {
        out.u64(*len);
    }
    out.u32(object.runs.len() as u32);
    for (start, len) in &object.runs {
        out.u64(*start).u64(*len);
    }
}

fn read_object(bytes: &mut Reader<'_>) -> Result<Object, CodecError> {
    let (start, len, etag) = (BlockIndex(bytes.u64()?), bytes.u64()?, bytes.str(100)?.to_owned());
    let mut attributes = Attributes::new();
    for _ in 0..bytes.count(100)? {
        attributes.insert(bytes.str(100)?.to_owned(), bytes.str(100)?.to_owned());
    }
    let part_lens = (0..bytes.count(100)?).map(|_| bytes.u64()).collect::<Result<_, _>>()?;
    let runs = (0..bytes.count(100)?).map(|_| Ok((bytes.u64()?, bytes.u64()?))).collect::<Result<_, CodecError>>()?;
    Ok(Object { start, len, etag, attributes, part_lens, runs })
}

impl Change {
    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        match self {
            Change::Bucket(bucket, makes) => {
                out.u8(0).str(bucket).u8(u8::from(*makes));
            }
            Change::Object(bucket, key, object) => {
                out.u8(if object.is_some() { 1 } else { 2 }).str(bucket).str(key);
                object.iter().for_each(|object| write_object(&mut out, object));
            }
            Change::Upload(bucket, key, upload, makes) => {
                out.u8(if *makes { 3 } else { 4 }).str(bucket).str(key).raw(&upload.0);
            }
            Change::Part(bucket, key, upload, part, object) => {
                out.u8(5).str(bucket).str(key).raw(&upload.0).u16(*part);
                write_object(&mut out, object);
            }
            Change::Complete(bucket, key, upload, object) => {
                out.u8(6).str(bucket).str(key).raw(&upload.0);
                write_object(&mut out, object);
            }
        }
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Change, CodecError> {
        let mut bytes = Reader::new("toy record", bytes);
        let kind = bytes.u8()?;
        let bucket = bytes.str(100)?.to_owned();
        if kind == 0 {
            return Ok(Change::Bucket(bucket, bytes.u8()? == 1));
        }
        let key = bytes.str(2000)?.to_owned();
        Ok(match kind {
            1 => Change::Object(bucket, key, Some(read_object(&mut bytes)?)),
            2 => Change::Object(bucket, key, None),
            3 | 4 => Change::Upload(bucket, key, UploadId(bytes.array()?), kind == 3),
            5 => Change::Part(bucket, key, UploadId(bytes.array()?), bytes.u16()?, read_object(&mut bytes)?),
            6 => Change::Complete(bucket, key, UploadId(bytes.array()?), read_object(&mut bytes)?),
            kind => return Err(bytes.unknown(kind.into())),
        })
    }
}

impl State {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Bucket(bucket, true) => drop(self.buckets.entry(bucket).or_default()),
            Change::Bucket(bucket, false) => drop(self.buckets.remove(&bucket)),
            Change::Object(bucket, key, object) => {
                let Some(keys) = self.buckets.get_mut(&bucket) else { return };
                match object {
                    Some(object) => drop(keys.insert(key, object)),
                    None => drop(keys.remove(&key)),
                }
            }
            Change::Upload(bucket, key, upload, true) => drop(self.uploads.entry((bucket, key, upload)).or_default()),
            Change::Upload(bucket, key, upload, false) => drop(self.uploads.remove(&(bucket, key, upload))),
            Change::Part(bucket, key, upload, part, object) => {
                if let Some(parts) = self.uploads.get_mut(&(bucket, key, upload)) {
                    parts.insert(part, object);
                }
            }
            Change::Complete(bucket, key, upload, object) => {
                self.uploads.remove(&(bucket.clone(), key.clone(), upload));
                self.apply(Change::Object(bucket, key, Some(object)));
            }
        }
    }
}

const FRAME: usize = 12;

fn checksum(at: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(mix64(at), |sum, byte| mix64(sum ^ u64::from(*byte)))
}

impl ToyStore {
    fn open(node: &ToyNode, ports: Ports) -> std::io::Result<ToyStore> {
        let dir = node.dir.open();
        let log = match dir.open("log") {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => dir.create("log")?,
            log => log?,
        };
        let mut bytes = vec![0; log.len()? as usize];
        log.read_at(0, &mut bytes)?;
        let (mut at, mut state, mut next_block) = (0, State::default(), 0);
        while let Some(frame) = bytes.get(at..at + FRAME) {
            let len = u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize;
            let sum = u64::from_le_bytes(frame[4..].try_into().unwrap());
            let Some(record) = bytes.get(at + FRAME..at + FRAME + len) else { break };
            if len == 0 || sum != checksum(at as u64, record) {
                break;
            }
            let Ok(change) = Change::decode(record) else { break };
            if let Change::Object(_, _, Some(object)) | Change::Part(_, _, _, _, object) = &change {
                next_block = next_block.max(object.start.0 + object.len.div_ceil(4096));
            }
            if !(node.flaw == Flaw::ForgetsRemovals && matches!(change, Change::Object(_, _, None))) {
                state.apply(change);
            }
            at += FRAME + len;
        }
        log.set_len(at as u64)?;
        log.sync()?;
        let inner = Inner {
            flaw: node.flaw,
            ports,
            device: node.disk.open(),
            log,
            log_end: Cell::new(at as u64),
            next_block: Cell::new(next_block),
            stale: RefCell::new(state.clone()),
            state: RefCell::new(state),
            committing: Cell::new(false),
        };
        Ok(ToyStore(Rc::new(inner)))
    }
}

impl Inner {
    fn seen(&self) -> State {
        if self.flaw == Flaw::StaleReads { self.stale.borrow().clone() } else { self.state.borrow().clone() }
    }

    /// Decides on the present state, then makes the change durable, then visible.
    async fn commit<T>(
        &self,
        decide: impl FnOnce(&State) -> Result<(Option<Change>, T), StoreError>,
    ) -> Result<T, StoreError> {
        let mut decide = Some(decide);
        let mut decided = None;
        if self.flaw == Flaw::EarlyCondition {
            decided = Some((decide.take().unwrap())(&self.state.borrow())?);
            self.ports.sleep(std::time::Duration::from_millis(1)).await;
        }
        while self.committing.replace(true) {
            self.ports.sleep(std::time::Duration::from_micros(10)).await;
        }
        let result = async {
            let (change, value) = match decided {
                Some(decided) => decided,
                None => (decide.take().unwrap())(&self.state.borrow())?,
            };
            if let Some(change) = change {
                let record = change.encode();
                let at = self.log_end.get();
                let mut frame = (record.len() as u32).to_le_bytes().to_vec();
                frame.extend(checksum(at, &record).to_le_bytes());
                frame.extend(&record);
                let (log, len) = (self.log.clone(), frame.len() as u64);
                let syncs = self.flaw != Flaw::NoLogSync;
                self.ports
                    .offload(0, move || {
                        log.write_at(at, &frame)?;
                        if syncs { log.sync() } else { Ok(()) }
                    })
                    .await
                    .map_err(unavailable)?
                    .map_err(unavailable)?;
                self.log_end.set(at + len);
                if len % 7 == 0 {
                    self.stale.replace(self.state.borrow().clone());
                }
                self.state.borrow_mut().apply(change);
            }
            Ok(value)
        }
        .await;
        self.committing.set(false);
        result
    }

    async fn store(&self, bytes: &[u8]) -> Result<(BlockIndex, u64), StoreError> {
        let blocks = bytes.len().div_ceil(4096);
        let start = BlockIndex(self.next_block.replace(self.next_block.get() + blocks as u64));
        let mut buf = IoBuf::zeroed(blocks * 4096);
        buf[..bytes.len()].copy_from_slice(bytes);
        self.device.write(start, vec![buf.freeze()]).await.map_err(unavailable)?;
        if self.flaw != Flaw::NoDataFlush {
            self.device.flush().await.map_err(unavailable)?;
        }
        Ok((start, bytes.len() as u64))
    }

    fn info(&self, key: &str, object: &Object) -> ObjectInfo {
        ObjectInfo {
            key: key.to_owned(),
            len_bytes: object.len,
            modified_unix_ms: 0,
            etag: object.etag.clone(),
            attributes: object.attributes.clone(),
            part_lens_bytes: object.part_lens.clone(),
        }
    }
}

fn check(condition: &Condition, present: Option<&Object>) -> Result<(), StoreError> {
    match (condition, present) {
        (Condition::IfAbsent, Some(_)) => Err(StoreError::PreconditionFailed),
        (Condition::IfMatch(_), None) => Err(StoreError::NoSuchKey),
        (Condition::IfMatch(etag), Some(object)) if *etag != object.etag => Err(StoreError::PreconditionFailed),
        _ => Ok(()),
    }
}

struct ToyWriter {
    inner: Rc<Inner>,
    bucket: String,
    key: String,
    part: Option<(UploadId, u16)>,
    bytes: Vec<u8>,
}

impl ObjectWriter for ToyWriter {
    fn write(&mut self, bytes: Bytes) -> StoreFuture<'_, ()> {
        self.bytes.extend_from_slice(&bytes);
        Box::pin(async { Ok(()) })
    }

    fn drain(&mut self) -> StoreFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn finish(self: Box<Self>, finish: FinishWrite) -> StoreFuture<'static, ObjectInfo> {
        Box::pin(async move {
            let ToyWriter { inner, bucket, key, part, bytes } = *self;
            let (start, len) = inner.store(&bytes).await?;
            let object = Object {
                start,
                len,
                etag: finish.etag.unwrap_or_else(|| format!("{start:?}")),
                attributes: finish.attributes,
                part_lens: Vec::new(),
                runs: vec![(start.0, len)],
            };
            let info = inner.info(&key, &object);
            let decide = |state: &State| {
                let present = state.buckets.get(&bucket).ok_or(StoreError::NoSuchBucket)?.get(&key);
                let change = match part {
                    None => {
                        check(&finish.condition, present)?;
                        Change::Object(bucket, key, Some(object))
                    }
                    Some((upload, _)) if !state.uploads.contains_key(&(bucket.clone(), key.clone(), upload)) => {
                        return Err(StoreError::NoSuchUpload);
                    }
                    Some((upload, part)) => Change::Part(bucket, key, upload, part, object),
                };
                Ok((Some(change), ()))
            };
            inner.commit(decide).await?;
            Ok(info)
        })
    }
}

struct ToyReader {
    inner: Rc<Inner>,
    info: ObjectInfo,
    runs: Vec<(u64, u64)>,
    range: Range<u64>,
}

impl ObjectReader for ToyReader {
    fn info(&self) -> &ObjectInfo {
        &self.info
    }

    fn seek(&mut self, range: Range<u64>) {
        self.range = if self.inner.flaw == Flaw::RangeOffByOne && range.end < self.info.len_bytes {
            range.start + 1..range.end + 1
        } else {
            range
        };
    }

    fn next(&mut self) -> StoreFuture<'_, Option<Bytes>> {
        Box::pin(async move {
            let mut part_start = 0;
            for (start, len) in self.runs.clone() {
                let (from, to) = (self.range.start.max(part_start), self.range.end.min(part_start + len));
                if from < to {
                    let (from, to) = (from - part_start, to - part_start);
                    let blocks = from / 4096..to.div_ceil(4096);
                    let buf = IoBuf::zeroed(((blocks.end - blocks.start) * 4096) as usize);
                    let read = self.inner.device.read(BlockIndex(start + blocks.start), buf).await;
                    let read = read.map_err(unavailable)?;
                    let skip = (from - blocks.start * 4096) as usize;
                    self.range.start += to - from;
                    return Ok(Some(Bytes::copy_from_slice(&read[skip..skip + (to - from) as usize])));
                }
                part_start += len;
            }
            Ok(None)
        })
    }
}

impl ObjectStore for ToyStore {
    fn access_key<'a>(&'a self, _: &'a str) -> StoreFuture<'a, Option<AccessKey>> {
        Box::pin(async { Ok(None) })
    }

    fn create_bucket<'a>(&'a self, _: TenantId, name: &'a str) -> StoreFuture<'a, BucketInfo> {
        Box::pin(async move {
            let decide = |state: &State| match state.buckets.contains_key(name) {
                true => Err(StoreError::BucketExists),
                false => Ok((Some(Change::Bucket(name.to_owned(), true)), ())),
            };
            self.0.commit(decide).await?;
            self.bucket(TenantId(1), name).await
        })
    }

    fn bucket<'a>(&'a self, _: TenantId, name: &'a str) -> StoreFuture<'a, BucketInfo> {
        Box::pin(async move {
            let exists = self.0.state.borrow().buckets.contains_key(name);
            let info = BucketInfo {
                namespace: NamespaceId(1),
                name: name.to_owned(),
                created_unix_ms: 0,
                etag_mode: EtagMode::Md5,
            };
            if exists { Ok(info) } else { Err(StoreError::NoSuchBucket) }
        })
    }

    fn delete_bucket<'a>(&'a self, _: TenantId, name: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let decide = |state: &State| match state.buckets.get(name) {
                None => Err(StoreError::NoSuchBucket),
                Some(keys) if !keys.is_empty() => Err(StoreError::BucketNotEmpty),
                Some(_) => Ok((Some(Change::Bucket(name.to_owned(), false)), ())),
            };
            self.0.commit(decide).await
        })
    }

    fn buckets(&self, _: TenantId) -> StoreFuture<'_, Vec<BucketInfo>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn put<'a>(
        &'a self,
        _: TenantId,
        bucket: &'a str,
        key: &'a str,
        _: Option<u64>,
    ) -> StoreFuture<'a, Box<dyn ObjectWriter>> {
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        let writer = ToyWriter { inner: self.0.clone(), bucket, key, part: None, bytes: Vec::new() };
        Box::pin(async { Ok(Box::new(writer) as Box<dyn ObjectWriter>) })
    }

    fn head<'a>(&'a self, tenant: TenantId, bucket: &'a str, key: &'a str) -> StoreFuture<'a, ObjectInfo> {
        Box::pin(async move { Ok(self.get(tenant, bucket, key).await?.info().clone()) })
    }

    fn get<'a>(&'a self, _: TenantId, bucket: &'a str, key: &'a str) -> StoreFuture<'a, Box<dyn ObjectReader>> {
        Box::pin(async move {
            let state = self.0.seen();
            let keys = state.buckets.get(bucket).ok_or(StoreError::NoSuchBucket)?;
            let object = keys.get(key).ok_or(StoreError::NoSuchKey)?;
            let info = self.0.info(key, object);
            let reader = ToyReader { inner: self.0.clone(), range: 0..info.len_bytes, info, runs: object.runs.clone() };
            Ok(Box::new(reader) as Box<dyn ObjectReader>)
        })
    }

    fn delete<'a>(&'a self, _: TenantId, bucket: &'a str, key: &'a str, condition: Condition) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let decide = |state: &State| {
                let present = state.buckets.get(bucket).ok_or(StoreError::NoSuchBucket)?.get(key);
                check(&condition, present)?;
                let change = present.map(|_| Change::Object(bucket.to_owned(), key.to_owned(), None));
                Ok((change, present.is_some()))
            };
            self.0.commit(decide).await
        })
    }

    fn list<'a>(&'a self, _: TenantId, bucket: &'a str, request: ListRequest) -> StoreFuture<'a, ListPage> {
        Box::pin(async move {
            let state = self.0.seen();
            let keys = state.buckets.get(bucket).ok_or(StoreError::NoSuchBucket)?;
            let mut page = ListPage::default();
            for (key, object) in keys {
                if !key.starts_with(&request.prefix) || request.after.as_ref().is_some_and(|after| key <= after) {
                    continue;
                }
                let delimiter = request.delimiter.as_deref();
                let rolled = delimiter.and_then(|delimiter| {
                    let at = key[request.prefix.len()..].find(delimiter)?;
                    Some(key[..request.prefix.len() + at + delimiter.len()].to_owned())
                });
                let item = match rolled {
                    Some(prefix) => ListItem::CommonPrefix(prefix),
                    None => ListItem::Object(ObjectInfo { attributes: Attributes::new(), ..self.0.info(key, object) }),
                };
                if page.items.last() == Some(&item) {
                    continue;
                }
                if page.items.len() == request.limit {
                    page.truncated = true;
                    break;
                }
                page.items.push(item);
            }
            Ok(page)
        })
    }

    fn create_upload<'a>(
        &'a self,
        _: TenantId,
        bucket: &'a str,
        key: &'a str,
        _: Attributes,
    ) -> StoreFuture<'a, UploadId> {
        Box::pin(async move {
            let upload = UploadId(self.0.ports.random());
            let change = Change::Upload(bucket.to_owned(), key.to_owned(), upload, true);
            self.0.commit(|_| Ok((Some(change), upload))).await
        })
    }

    fn put_part<'a>(
        &'a self,
        _: TenantId,
        bucket: &'a str,
        key: &'a str,
        upload: UploadId,
        part: u16,
    ) -> StoreFuture<'a, Box<dyn ObjectWriter>> {
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        let writer = ToyWriter { inner: self.0.clone(), bucket, key, part: Some((upload, part)), bytes: Vec::new() };
        Box::pin(async { Ok(Box::new(writer) as Box<dyn ObjectWriter>) })
    }

    fn parts<'a>(
        &'a self,
        _: TenantId,
        bucket: &'a str,
        key: &'a str,
        upload: UploadId,
        after: u16,
        limit: usize,
    ) -> StoreFuture<'a, (UploadInfo, Vec<PartInfo>)> {
        Box::pin(async move {
            let state = self.0.state.borrow();
            let parts = state.uploads.get(&(bucket.to_owned(), key.to_owned(), upload));
            let info = |(part, object): (&u16, &Object)| PartInfo {
                part: *part,
                len_bytes: object.len,
                modified_unix_ms: 0,
                etag: object.etag.clone(),
                attributes: Attributes::new(),
            };
            let page = parts.ok_or(StoreError::NoSuchUpload)?.range(after + 1..).take(limit).map(info).collect();
            let upload =
                UploadInfo { upload, key: key.to_owned(), initiated_unix_ms: 0, attributes: Attributes::new() };
            Ok((upload, page))
        })
    }

    fn uploads<'a>(
        &'a self,
        _: TenantId,
        bucket: &'a str,
        prefix: &'a str,
        after: Option<(String, UploadId)>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<UploadInfo>> {
        Box::pin(async move {
            let state = self.0.state.borrow();
            let of_bucket = state.uploads.keys().filter(|(of, key, _)| of == bucket && key.starts_with(prefix));
            let behind =
                of_bucket.filter(|(_, key, upload)| after.as_ref().is_none_or(|(last, id)| (key, upload) > (last, id)));
            let info = |(_, key, upload): &(String, String, UploadId)| UploadInfo {
                upload: *upload,
                key: key.clone(),
                initiated_unix_ms: 0,
                attributes: Attributes::new(),
            };
            Ok(behind.take(limit).map(info).collect())
        })
    }

    fn complete_upload<'a>(
        &'a self,
        _: TenantId,
        bucket: &'a str,
        key: &'a str,
        upload: UploadId,
        parts: Vec<CompletePart>,
        finish: FinishWrite,
    ) -> StoreFuture<'a, ObjectInfo> {
        Box::pin(async move {
            let decide = |state: &State| {
                let known = state.uploads.get(&(bucket.to_owned(), key.to_owned(), upload));
                let known = known.ok_or(StoreError::NoSuchUpload)?;
                let mut object = Object {
                    start: BlockIndex(0),
                    len: 0,
                    etag: finish.etag.unwrap_or_default(),
                    attributes: finish.attributes,
                    part_lens: Vec::new(),
                    runs: Vec::new(),
                };
                for part in &parts {
                    let found = known.get(&part.part).filter(|found| found.etag == part.etag);
                    let found = found.ok_or(StoreError::InvalidPart { part: part.part })?;
                    object.len += found.len;
                    object.part_lens.push(found.len);
                    object.runs.extend(&found.runs);
                }
                let info = self.0.info(key, &object);
                Ok((Some(Change::Complete(bucket.to_owned(), key.to_owned(), upload, object)), info))
            };
            self.0.commit(decide).await
        })
    }

    fn abort_upload<'a>(&'a self, _: TenantId, bucket: &'a str, key: &'a str, upload: UploadId) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let (bucket, key) = (bucket.to_owned(), key.to_owned());
            let decide = |state: &State| match state.uploads.contains_key(&(bucket.clone(), key.clone(), upload)) {
                false => Err(StoreError::NoSuchUpload),
                true => Ok((Some(Change::Upload(bucket, key, upload, false)), ())),
            };
            self.0.commit(decide).await
        })
    }
}
