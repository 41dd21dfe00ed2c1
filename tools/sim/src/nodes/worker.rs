//! A client: it puts, gets, deletes and lists through whichever node is up, and tells the book what it saw.

mod listing;

use crate::client::{attributes_of, etag_of};
use crate::content::Content;
use crate::model::{Place, WRITE_ATTRIBUTE, is_final};
use crate::node::OpenNode;
use crate::register::{Bound, Register, Tick, Value, WriteId};
use futures::channel::oneshot;
use futures::future::{Either, select};
use kiseki_engine::api::{Condition, FinishWrite, StoreError};
use kiseki_simulator::SeededRng;
use kiseki_types::runtime::{Ports, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

/// A request that has no answer after so long never gets one.
const PATIENCE: Duration = Duration::from_secs(60);

/// Contradictions that are kept; more say nothing new.
const VIOLATIONS_MAX: usize = 12;

/// What is known of all keys, and what contradicts it.
#[derive(Default)]
pub struct Book {
    now: Cell<Tick>,
    next_write: Cell<WriteId>,
    registers: RefCell<BTreeMap<Place, Register>>,
    violations: RefCell<Vec<String>>,
    /// Writes acknowledged.
    pub acknowledged: Cell<u64>,
    /// Reads answered.
    pub reads: Cell<u64>,
    /// Requests without a final answer.
    pub unknown: Cell<u64>,
    /// Splits of shards that were begun.
    pub splits: Cell<u64>,
    /// What was said instead, of the last one.
    pub last_unknown: RefCell<String>,
}

impl Book {
    fn tick(&self) -> Tick {
        self.now.set(self.now.get() + 1);
        self.now.get()
    }

    fn on<T>(&self, place: Place, act: impl FnOnce(&mut Register) -> T) -> T {
        act(self.registers.borrow_mut().entry(place).or_default())
    }

    /// Something is wrong.
    pub fn violation(&self, text: String) {
        let mut violations = self.violations.borrow_mut();
        if violations.len() < VIOLATIONS_MAX {
            violations.push(text);
        }
    }

    /// What is wrong.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.violations.borrow().clone()
    }

    /// A request has no final answer.
    fn unknown(&self, why: String) {
        self.unknown.set(self.unknown.get() + 1);
        self.last_unknown.replace(why);
    }

    fn happened(&self, place: Place, id: WriteId) {
        let now = self.tick();
        if let Some(wrong) = self.on(place, |register| register.happened(id, now)) {
            self.violation(format!("{place}: {wrong}"));
        }
    }
}

/// The nodes that serve just now.
pub type Serving = Rc<RefCell<BTreeMap<u32, OpenNode>>>;

/// One client.
pub struct Worker {
    /// Ports of the harness.
    pub ports: Ports,
    /// Whom it may ask.
    pub serving: Serving,
    /// What is known.
    pub book: Rc<Book>,
    /// Its chance.
    pub rng: Rc<SeededRng>,
    /// It works for as long as this says so.
    pub is_on: Rc<Cell<bool>>,
    /// Longest content.
    pub content_len_max: u64,
}

/// A write as it was seen: its number and whether all bytes were right.
type Seen = Result<(Option<WriteId>, Vec<u8>), StoreError>;

impl Worker {
    /// Works until it is told to stop.
    pub async fn work(self) {
        while self.is_on.get() {
            let pause = if self.rng.chance(1, 3) { self.rng.below(400_000) } else { self.rng.below(20_000) };
            self.ports.sleep(Duration::from_micros(pause)).await;
            let Some(node) = self.draw_node() else { continue };
            let place = Place { bucket: 0, key: self.rng.index(12) };
            match self.rng.below(20) {
                0..8 => self.put(&node, place).await,
                8 | 9 => self.delete(&node, place).await,
                10 | 11 => self.list(&node).await,
                _ => self.get(&node, place).await,
            }
        }
    }

    fn draw_node(&self) -> Option<OpenNode> {
        let serving = self.serving.borrow();
        let nodes: Vec<&OpenNode> = serving.values().collect();
        (!nodes.is_empty()).then(|| (*self.rng.pick(&nodes)).clone())
    }

    /// Runs a request on the node; `None` when no answer comes.
    async fn ask<T: 'static>(&self, node: &OpenNode, request: impl Future<Output = T> + 'static) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        let task = async move {
            let _gone = sender.send(request.await);
        };
        node.cores[0].ports.spawn("client", Box::pin(task));
        match select(receiver, pin!(self.ports.sleep(PATIENCE))).await {
            Either::Left((answer, _)) => answer.ok(),
            Either::Right(_) => None,
        }
    }

    async fn put(&self, node: &OpenNode, place: Place) {
        let content = Content::draw(&self.rng, self.content_len_max);
        let if_absent = self.rng.chance(1, 5);
        let (bound, condition) = match if_absent {
            true => (Bound::IfAbsent, Condition::IfAbsent),
            false => (Bound::Free, Condition::None),
        };
        self.book.next_write.set(self.book.next_write.get() + 1);
        let id = self.book.next_write.get();
        let now = self.book.tick();
        self.book.on(place, |register| register.begin(id, Value::Object(vec![content]), bound, now));
        let (store, tenant) = (node.cores[0].store.clone(), node.tenant);
        let request = async move {
            let mut writer = store.put(tenant, place.bucket(), place.key(), Some(content.len())).await?;
            writer.write(content.bytes(0..content.len())).await?;
            let finish = FinishWrite { etag: Some(etag_of(id)), attributes: attributes_of(id), condition };
            writer.finish(finish).await.map(drop)
        };
        let answer = self.ask(node, request).await;
        self.wrote(place, id, answer);
    }

    async fn delete(&self, node: &OpenNode, place: Place) {
        self.book.next_write.set(self.book.next_write.get() + 1);
        let id = self.book.next_write.get();
        let now = self.book.tick();
        self.book.on(place, |register| register.begin(id, Value::Absent, Bound::Free, now));
        let (store, tenant) = (node.cores[0].store.clone(), node.tenant);
        let request = async move { store.delete(tenant, place.bucket(), place.key(), Condition::None).await.map(drop) };
        let answer = self.ask(node, request).await;
        self.wrote(place, id, answer);
    }

    fn wrote(&self, place: Place, id: WriteId, answer: Option<Result<(), StoreError>>) {
        match answer {
            Some(Ok(())) => {
                self.book.acknowledged.set(self.book.acknowledged.get() + 1);
                self.book.happened(place, id);
            }
            Some(Err(error)) if is_final(&error) => self.book.on(place, |register| register.refused(id)),
            Some(Err(StoreError::Damaged { reason })) => {
                self.book.violation(format!("{place}: a write met damage: {reason}"));
            }
            answer => self.book.unknown(format!("{place}: a write: {answer:?}")),
        }
    }

    async fn get(&self, node: &OpenNode, place: Place) {
        let start = self.book.tick();
        let (store, tenant) = (node.cores[0].store.clone(), node.tenant);
        let request = async move { read(store, tenant, place).await };
        match self.ask(node, request).await {
            Some(seen) => self.saw(place, start, seen, false),
            None => self.book.unknown(format!("{place}: a read without an answer")),
        }
    }

    /// Reads a key through a node in peace: it must answer.
    pub async fn check(&self, node: &OpenNode, place: Place) {
        let start = self.book.tick();
        let (store, tenant) = (node.cores[0].store.clone(), node.tenant);
        match self.ask(node, async move { read(store, tenant, place).await }).await {
            Some(seen) => self.saw(place, start, seen, true),
            None => self.book.violation(format!("{place}: no answer in peace")),
        }
    }

    fn saw(&self, place: Place, start: Tick, seen: Seen, is_peace: bool) {
        let book = &self.book;
        let end = book.tick();
        match seen {
            Ok((id, bytes)) => {
                let found = id.and_then(|id| book.on(place, |register| register.find(id, start, end).cloned()));
                let Some(write) = found else {
                    let possible = book.on(place, |register| register.describe(start, end));
                    let len = bytes.len();
                    return book.violation(format!(
                        "{place}: a read saw write {id:?} of {len} bytes, possible was {possible}"
                    ));
                };
                let Value::Object(parts) = &write.value else {
                    return book.violation(format!("{place}: a read saw a removal"));
                };
                let wanted: Vec<u8> = parts.iter().flat_map(|part| part.bytes(0..part.len()).to_vec()).collect();
                if wanted != bytes {
                    book.violation(format!("{place}: write {} came back with other bytes", write.id));
                }
                if let Some(wrong) = book.on(place, |register| register.seen(write.id, end)) {
                    book.violation(format!("{place}: {wrong}"));
                }
                book.reads.set(book.reads.get() + 1);
            }
            Err(StoreError::NoSuchKey) => {
                if !book.on(place, |register| register.may_be_absent(start, end)) {
                    let possible = book.on(place, |register| register.describe(start, end));
                    book.violation(format!("{place}: a read found nothing, possible was {possible}"));
                }
                book.reads.set(book.reads.get() + 1);
            }
            Err(error) if is_peace => book.violation(format!("{place}: not readable in peace: {error}")),
            Err(error @ (StoreError::Unavailable { .. } | StoreError::Unsettled { .. })) => {
                book.unknown(format!("{place}: a read: {error}"));
            }
            // A page that was collected while its reader's leader changed: an error, never a wrong byte.
            Err(error @ StoreError::Damaged { .. }) => book.unknown(format!("{place}: a read: {error}")),
            Err(error) => book.violation(format!("{place}: a read failed: {error}")),
        }
    }
}

/// A whole object and the number of its write.
async fn read(store: kiseki_engine::api::Store, tenant: kiseki_types::ids::TenantId, place: Place) -> Seen {
    let mut reader = store.get(tenant, place.bucket(), place.key()).await?;
    let info = reader.info().clone();
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok((info.attributes.get(WRITE_ATTRIBUTE).and_then(|id| id.parse().ok()), bytes))
}
