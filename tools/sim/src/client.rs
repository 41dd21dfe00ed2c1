//! One client: it draws operations, carries them out, and tells the model what it saw.

use crate::content::{CONTENT_LEN_BYTES_MAX, Content};
use crate::model::{BUCKETS, KEYS, Model, Place, SCRATCH_BUCKETS, WRITE_ATTRIBUTE};
use crate::node::OpenCore;
use crate::register::{Bound, Tick, Value, Write, WriteId};
use kiseki_engine::api::{Condition, FinishWrite, ObjectInfo, ObjectReader, ObjectWriter, StoreError};
use kiseki_simulator::SeededRng;
use kiseki_types::ids::TenantId;
use kiseki_types::runtime::RuntimeExt;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// What clients, listings and checks need.
#[derive(Clone)]
pub struct Client {
    /// The core that it talks to.
    pub core: OpenCore,
    /// Who it is.
    pub tenant: TenantId,
    /// What is known, shared by all.
    pub model: Rc<RefCell<Model>>,
    /// Its own chance.
    pub rng: Rc<SeededRng>,
    /// Longest content that it writes.
    pub content_len_max: u64,
}

/// The ETag of a write.
#[must_use]
pub fn etag_of(id: WriteId) -> String {
    format!("{id:032x}")
}

/// The properties of a write.
#[must_use]
pub fn attributes_of(id: WriteId) -> kiseki_engine::api::Attributes {
    [(WRITE_ATTRIBUTE.to_owned(), id.to_string())].into()
}

impl Client {
    /// Works until `ops_max` operations were begun by all clients together.
    pub async fn work(&self, ops_max: u64) {
        loop {
            {
                let mut model = self.model.borrow_mut();
                if model.begun >= ops_max || !model.violations.is_empty() {
                    return;
                }
                model.begun += 1;
            }
            if self.rng.chance(1, 8) {
                let pause = self.rng.below(20_000);
                self.core.ports.sleep(Duration::from_micros(pause)).await;
            }
            self.operation().await;
        }
    }

    async fn operation(&self) {
        let place = self.draw_place();
        match self.rng.below(100) {
            0..34 => self.put(place, Bound::Free).await,
            34..41 => self.put(place, Bound::IfAbsent).await,
            41..44 => self.put_if_match(place).await,
            44..54 => self.delete(place, Bound::Free).await,
            54..57 => self.abandon(place).await,
            57..68 => self.get_all(place).await,
            68..76 => self.get_range(place).await,
            76..79 => self.head(place).await,
            79..86 => self.list().await,
            86..98 => self.multipart_step(place).await,
            98 => self.split().await,
            _ => self.scratch_bucket().await,
        }
    }

    /// A few keys are hot, so that clients meet.
    pub(crate) fn draw_place(&self) -> Place {
        let key = if self.rng.chance(1, 3) { self.rng.index(3) } else { self.rng.index(KEYS.len()) };
        Place { bucket: self.rng.index(BUCKETS.len()), key }
    }

    /// Draws a content.
    pub fn draw_content(&self) -> Content {
        Content::draw(&self.rng, self.content_len_max.min(CONTENT_LEN_BYTES_MAX))
    }

    /// Takes a point in logical time.
    pub fn tick(&self) -> Tick {
        self.model.borrow_mut().tick()
    }

    /// Reports what contradicts the model.
    pub fn violation(&self, text: String) {
        self.model.borrow_mut().violation(text);
    }

    /// Hands a content to a writer in pieces of drawn lengths.
    pub async fn write_all(&self, writer: &mut Box<dyn ObjectWriter>, content: Content) -> Result<(), StoreError> {
        let mut at = 0;
        while at < content.len() {
            let piece = self.rng.between(1..256 << 10).min(content.len() - at);
            writer.write(content.bytes(at..at + piece)).await?;
            at += piece;
        }
        Ok(())
    }

    async fn store_object(
        &self,
        place: Place,
        content: Content,
        finish: FinishWrite,
    ) -> Result<ObjectInfo, StoreError> {
        let hint = self.rng.chance(3, 4).then_some(content.len());
        let mut writer = self.core.store.put(self.tenant, place.bucket(), place.key(), hint).await?;
        self.write_all(&mut writer, content).await?;
        writer.finish(finish).await
    }

    async fn put(&self, place: Place, bound: Bound) {
        let content = self.draw_content();
        let (id, start) = self.model.borrow_mut().begin(place, Value::Object(vec![content]), bound);
        let condition = match bound {
            Bound::Free => Condition::None,
            Bound::IfAbsent => Condition::IfAbsent,
            Bound::IfMatch(other) => Condition::IfMatch(etag_of(other)),
        };
        let finish = FinishWrite { etag: Some(etag_of(id)), attributes: attributes_of(id), condition };
        let result = self.store_object(place, content, finish).await;
        let mut model = self.model.borrow_mut();
        match result {
            Ok(info) => {
                model.acknowledge(place, id);
                if info.len_bytes != content.len() || info.etag != etag_of(id) || info.key != place.key() {
                    model.violation(format!("{place}: write {id} was acknowledged as something else"));
                }
            }
            Err(error) => {
                let end = model.tick();
                let possible = refusal_is_possible(&mut model, place, id, bound, start..end, &error);
                model.fail(place, id, &error);
                if !possible {
                    model.unexplained(&format!("{place}: write {id} ({bound:?})"), &error);
                }
            }
        }
    }

    async fn put_if_match(&self, place: Place) {
        if let Some(id) = self.draw_match(place) {
            self.put(place, Bound::IfMatch(id)).await;
        }
    }

    /// The number of a write that may be there now.
    fn draw_match(&self, place: Place) -> Option<WriteId> {
        let mut model = self.model.borrow_mut();
        let now = model.tick();
        let ids: Vec<WriteId> = model
            .register(place)
            .possible(now, now + 1)
            .filter(|write| matches!(&write.value, Value::Object(parts) if parts.len() == 1))
            .map(|write| write.id)
            .collect();
        (!ids.is_empty()).then(|| *self.rng.pick(&ids))
    }

    async fn delete(&self, place: Place, bound: Bound) {
        let bound = match self.draw_match(place) {
            Some(id) if self.rng.chance(1, 4) => Bound::IfMatch(id),
            _ => bound,
        };
        let (id, start) = self.model.borrow_mut().begin(place, Value::Absent, bound);
        let condition = match bound {
            Bound::IfMatch(other) => Condition::IfMatch(etag_of(other)),
            _ => Condition::None,
        };
        let result = self.core.store.delete(self.tenant, place.bucket(), place.key(), condition).await;
        let mut model = self.model.borrow_mut();
        match result {
            Ok(existed) => {
                let end = model.acknowledge(place, id);
                let is_possible = model
                    .register(place)
                    .possible(start, end)
                    .any(|write| write.id != id && (write.value != Value::Absent) == existed);
                if !is_possible {
                    let possible = model.register(place).describe(start, end);
                    model.violation(format!("{place}: a removal said existed={existed}, possible was {possible}"));
                }
            }
            Err(error) => {
                let end = model.tick();
                let possible = refusal_is_possible(&mut model, place, id, bound, start..end, &error);
                model.fail(place, id, &error);
                if !possible {
                    model.unexplained(&format!("{place}: removal {id} ({bound:?})"), &error);
                }
            }
        }
    }

    /// Begins a write and drops it before the end: nothing of it may ever be seen.
    async fn abandon(&self, place: Place) {
        let content = self.draw_content();
        let part = self.rng.below(content.len() + 1);
        match self.core.store.put(self.tenant, place.bucket(), place.key(), Some(content.len())).await {
            Ok(mut writer) => {
                if let Err(error) = writer.write(content.bytes(0..part)).await {
                    self.model.borrow_mut().unexplained(&format!("{place}: abandoned write"), &error);
                }
            }
            Err(error) => self.model.borrow_mut().unexplained(&format!("{place}: abandoned write"), &error),
        }
    }

    /// Opens an object and checks that it may be what is there; `None` when there is none.
    async fn open_checked(&self, place: Place) -> Option<(Box<dyn ObjectReader>, Write)> {
        let start = self.tick();
        let result = self.core.store.get(self.tenant, place.bucket(), place.key()).await;
        match result {
            Ok(reader) => {
                let write = self.check_info(place, reader.info(), start)?;
                Some((reader, write))
            }
            Err(error) => {
                self.check_missing(place, start, &error, "read");
                None
            }
        }
    }

    /// Checks an object's properties as a read that began at `start` saw them; tells the model that they were seen.
    pub fn check_info(&self, place: Place, info: &ObjectInfo, start: Tick) -> Option<Write> {
        let mut model = self.model.borrow_mut();
        let end = model.tick();
        let id = info.attributes.get(WRITE_ATTRIBUTE).and_then(|id| id.parse::<WriteId>().ok());
        let found = id.and_then(|id| model.register(place).find(id, start, end).cloned());
        let Some(write) = found else {
            let possible = model.register(place).describe(start, end);
            model.violation(format!(
                "{place}: a read saw write {id:?} of {} bytes, possible was {possible}",
                info.len_bytes
            ));
            return None;
        };
        if info.len_bytes != write.value.len_bytes() || info.etag != etag_of(write.id) || info.key != place.key() {
            model.violation(format!("{place}: the properties of write {} are not its own", write.id));
        }
        if let Some(wrong) = model.register(place).seen(write.id, end) {
            model.violation(format!("{place}: {wrong}"));
        }
        Some(write)
    }

    /// Checks that a read that began at `start` may have found nothing.
    pub fn check_missing(&self, place: Place, start: Tick, error: &StoreError, what: &str) {
        let mut model = self.model.borrow_mut();
        let end = model.tick();
        match error {
            StoreError::NoSuchKey if model.register(place).may_be_absent(start, end) => {}
            StoreError::NoSuchKey => {
                let possible = model.register(place).describe(start, end);
                model.violation(format!("{place}: a {what} found nothing, possible was {possible}"));
            }
            error => model.unexplained(&format!("{place}: {what}"), error),
        }
    }

    /// Reads an object whole and compares every byte.
    pub async fn get_all(&self, place: Place) {
        let Some((reader, write)) = self.open_checked(place).await else { return };
        let len = write.value.len_bytes();
        self.compare(place, reader, &write, 0..len).await;
    }

    async fn get_range(&self, place: Place) {
        let Some((mut reader, write)) = self.open_checked(place).await else { return };
        let len = write.value.len_bytes();
        if len == 0 {
            return;
        }
        let start = self.rng.below(len);
        let end = if self.rng.chance(1, 2) { (start + 1 + self.rng.below(5000)).min(len) } else { len };
        reader.seek(start..end);
        self.compare(place, reader, &write, start..end).await;
    }

    async fn head(&self, place: Place) {
        let start = self.tick();
        let result = self.core.store.head(self.tenant, place.bucket(), place.key()).await;
        match result {
            Ok(info) => drop(self.check_info(place, &info, start)),
            Err(error) => self.check_missing(place, start, &error, "head"),
        }
    }

    /// Compares what a reader hands out with the bytes of `range` of a write.
    async fn compare(&self, place: Place, mut reader: Box<dyn ObjectReader>, write: &Write, range: Range<u64>) {
        let mut at = range.start;
        loop {
            match reader.next().await {
                Ok(Some(bytes)) => {
                    let end = at + bytes.len() as u64;
                    if end > range.end || !equals(&write.value, at, &bytes) {
                        return self.violation(format!(
                            "{place}: bytes {at}..{end} of write {} ({} bytes, asked for {range:?}) are wrong",
                            write.id,
                            write.value.len_bytes()
                        ));
                    }
                    at = end;
                }
                Ok(None) if at == range.end => return,
                Ok(None) => return self.violation(format!("{place}: write {} ends at {at} of {range:?}", write.id)),
                Err(error) => {
                    let what = format!("{place}: read of write {} at {at}", write.id);
                    return self.model.borrow_mut().unexplained(&what, &error);
                }
            }
        }
    }

    /// Makes or removes one of the buckets that come and go.
    async fn scratch_bucket(&self) {
        let index = self.rng.index(SCRATCH_BUCKETS.len());
        let name = SCRATCH_BUCKETS[index];
        let makes = self.rng.chance(1, 2);
        let value = if makes { Value::Object(Vec::new()) } else { Value::Absent };
        let (id, start) = {
            let mut model = self.model.borrow_mut();
            let (id, now) = (model.new_id(), model.tick());
            model.scratch.entry(index).or_default().begin(id, value, Bound::Free, now);
            (id, now)
        };
        let result = if makes {
            self.core.store.create_bucket(self.tenant, name).await.map(drop)
        } else {
            self.core.store.delete_bucket(self.tenant, name).await
        };
        let mut model = self.model.borrow_mut();
        let now = model.tick();
        let register = model.scratch.entry(index).or_default();
        match result {
            Ok(()) => drop(register.happened(id, now)),
            Err(error) => {
                let others = |present: bool| {
                    register
                        .possible(start, now)
                        .any(|write| write.id != id && (write.value != Value::Absent) == present)
                };
                let explained = match error {
                    StoreError::BucketExists => makes && others(true),
                    StoreError::NoSuchBucket => !makes && others(false),
                    _ => false,
                };
                model.fail_bucket(index, id, &error);
                if !explained {
                    model.unexplained(&format!("bucket {name} (make: {makes})"), &error);
                }
            }
        }
    }
}

/// Whether a refusal may be right: its condition may not have held at some time in `span`.
fn refusal_is_possible(
    model: &mut Model,
    place: Place,
    id: WriteId,
    bound: Bound,
    span: Range<Tick>,
    error: &StoreError,
) -> bool {
    let mut others = model.register(place).possible(span.start, span.end).filter(|write| write.id != id);
    match (bound, error) {
        (Bound::IfAbsent, StoreError::PreconditionFailed) => others.any(|write| write.value != Value::Absent),
        (Bound::IfMatch(of), StoreError::PreconditionFailed) => {
            others.any(|write| write.id != of && write.value != Value::Absent)
        }
        (Bound::IfMatch(_), StoreError::NoSuchKey) => others.any(|write| write.value == Value::Absent),
        _ => false,
    }
}

/// Whether `bytes` are those of `value` from `at` on.
fn equals(value: &Value, at: u64, bytes: &[u8]) -> bool {
    let Value::Object(parts) = value else { return false };
    let end = at + bytes.len() as u64;
    let mut part_start = 0;
    let mut checked = 0_u64;
    for part in parts {
        let (from, to) = (at.max(part_start), end.min(part_start + part.len()));
        if from < to {
            let expected = part.bytes(from - part_start..to - part_start);
            if expected != bytes[(from - at) as usize..(to - at) as usize] {
                return false;
            }
            checked += to - from;
        }
        part_start += part.len();
    }
    checked == bytes.len() as u64
}
