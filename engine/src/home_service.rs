//! The leader of a home: keeps the generations, pins and intents of the chunks whose locators hash to it.
//!
//! A hit counts only for a generation that is complete (its delta is committed, so it was durable at ack width),
//! readable now, and in the pool that was asked for. A generation is freed only after it is condemned (no more hits)
//! and every shard that may name it has committed a fence and answered that it does not (I-C2).

mod generation;
mod upkeep;

pub(crate) use generation::{fuzz_generation, fuzz_generation_seed};
pub use upkeep::{GenerationBatch, HeldGeneration, RepairGuard, RepairPermit, ScrubMark};

use self::generation::{GenerationRecord, GenerationState};
use crate::api::StoreError;
use crate::background::Background;
use crate::calls::Calls;
use crate::core::Core;
use crate::delta::{ChunkName, RowChange};
use crate::device_board::DeviceBoard;
use crate::latch::{Hold, LatchGuard};
use crate::leader::{CommitError, DECISIONS_MAX, Draft, Leader, row_damaged};
use crate::machine::ROWS_FILE;
use crate::message::{BeginChunk, Collected, Decision, HomeRequest, HomeResponse, PinId, ShardRequest, ShardResponse};
use crate::repair_queue::{RepairCause, RepairQueue};
use crate::split_message::{SplitAnswer, SplitRequest};
use crate::spread::ByNode;
use crate::stripe::shape_for;
use crate::wire::SPLIT_VERSION;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::Shared;
use kiseki_types::codec::{Reader, Writer};
use kiseki_types::fragment::{FragmentStore, Located, StripeShape};
use kiseki_types::ids::{Generation, Locator, MasterEpoch, PinEpoch, PoolId, ShardId, Term};
use kiseki_types::runtime::{Instant, RuntimeExt};
use kiseki_types::table::{Direction, Scan};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;
use std::time::Duration;
use tracing::warn;

/// Table of a home: chunk name -> [`GenerationRecord`].
const GENERATIONS: u8 = 1;
/// Table of a home: (chunk name, pin id) -> shard and pin epoch.
const PINS: u8 = 2;
/// Table of a home: [`INCARNATION_KEY`] -> number of this home's starts.
const STATE: u8 = 3;
const INCARNATION_KEY: &[u8] = b"incarnation";

/// Version of the rows.
const FORMAT: u8 = 1;

/// Generations of one chunk, and pins of one generation, that are looked at together.
const ROWS_PER_CHUNK_MAX: usize = 1024;

/// Shards that may name one generation. A chunk that more shards than this write is stored once more.
const SHARDS_PER_GENERATION_MAX: usize = 4096;

/// Pins of gateways that are gone which one round of the start looks at.
const PINS_PER_ROUND: usize = 256;

/// A writer asks for its pin at once; over a slow link its question arrives within this time.
const CONFIRMED_WITHIN: Duration = Duration::from_millis(500);

/// Time before a generation that could not be collected is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// How long a shard that did not answer a fence is not asked for another one: to wait for it each time would keep everything
/// from being collected that has nothing to do with it.
const SILENT_INTERVAL: Duration = Duration::from_secs(20);

/// The key of a pin taken apart and put together, for `crate::fuzzing`.
pub(crate) fn fuzz_pin_key(key: &[u8]) -> Option<Vec<u8>> {
    parse_pin_key(key).ok().map(|(name, pin)| pin_key(name, pin))
}

/// What the homes of a core have done since the node started, in terms that are over too: counters.
#[derive(Default)]
pub struct HomeCounters {
    /// Chunks found.
    pub hits: Cell<u64>,
    /// Chunks to be written.
    pub misses: Cell<u64>,
    /// Generations freed.
    pub freed: Cell<u64>,
    /// Generations condemned and then pardoned because a shard names them.
    pub pardoned: Cell<u64>,
}

/// How a commit ends, for everyone who waits for it.
type Committing = Shared<oneshot::Receiver<Result<(), StoreError>>>;

/// How long a home waits for writers of which it hears nothing. A clock decides only how soon their pins are settled; whoever comes too
/// late after that meets the fence (I-C2).
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long writers of earlier terms may still be at work.
    pub grace: Duration,
    /// How long a writer on another node may rely on a pin without ending it.
    pub pin_life: Duration,
}

/// One home on the core that leads it.
pub struct HomeService {
    leader: Leader,
    calls: Calls,
    fragments: Rc<dyn FragmentStore>,
    devices: Rc<DeviceBoard>,
    /// Counts the starts of this home, through its log: generations are numbered (incarnation, sequence), so a number
    /// that was handed out but not committed before a crash never comes again.
    incarnation: Cell<u64>,
    sequence: Cell<u64>,
    /// Pins of this incarnation whose writers have not settled them, and since when. Pins in the table but not here belong to
    /// writers that went down with their node.
    live_pins: RefCell<BTreeMap<PinId, Instant>>,
    /// Pins and intents that are being committed, until their writers have asked.
    committing: RefCell<BTreeMap<PinId, Committing>>,
    /// Pins of earlier terms whose writers have ended them here.
    ended_pins: RefCell<BTreeSet<PinId>>,
    /// Until then writers of earlier terms may be at work: a new leader does not know which of them live.
    grace_until: Instant,
    /// Where there are other nodes, a pin that is so old belongs to a writer that is gone, or whose goodbye was lost.
    pin_life: Duration,
    /// Whether there may be such pins.
    unsettled: Cell<bool>,
    /// Key of the pin behind which the next round of settling goes on; `None`: it begins at the front.
    settled_to: RefCell<Option<Vec<u8>>>,
    /// Shards that did not answer a fence, until they are asked again.
    silent: RefCell<BTreeMap<ShardId, Instant>>,
    /// Generations that are not collected because a repair has them.
    repairing: RefCell<upkeep::Repairing>,
    /// Where stripes of this home are queued for repair.
    repairs: Rc<RepairQueue>,
    background: Rc<Background>,
    /// Pins and intents of writers that are gone, still to be settled.
    stale_pins: Cell<u64>,
    counters: Rc<HomeCounters>,
}

impl HomeService {
    /// Takes the leader's part of a home.
    #[must_use]
    pub fn new(leader: Leader, core: &Core, background: Rc<Background>, patience: Patience) -> Rc<HomeService> {
        let grace_until = leader.ports().now() + patience.grace;
        Rc::new(HomeService {
            grace_until,
            pin_life: patience.pin_life,
            ended_pins: RefCell::default(),
            leader,
            background,
            repairs: core.repairs.clone(),
            repairing: RefCell::default(),
            unsettled: Cell::new(true),
            settled_to: RefCell::default(),
            silent: RefCell::default(),
            calls: core.calls.clone(),
            fragments: core.fragments.clone(),
            devices: core.devices.clone(),
            incarnation: Cell::new(0),
            sequence: Cell::new(0),
            live_pins: RefCell::default(),
            committing: RefCell::default(),
            stale_pins: Cell::default(),
            counters: core.homes.counters.clone(),
        })
    }

    /// Pins and intents of writers that are gone, still to be settled.
    #[must_use]
    pub fn stale_pins(&self) -> u64 {
        self.stale_pins.get()
    }

    /// What a leader does before it takes requests: counts its start.
    pub async fn start(&self) -> Result<(), StoreError> {
        let incarnation = self
            .decide(async |term| {
                let row = self.leader.row(STATE, INCARNATION_KEY).await?;
                let before =
                    row.map_or(Ok(0), |bytes| Reader::new("incarnation", &bytes).u64()).map_err(row_damaged)?;
                let next = before + 1;
                let row = RowChange::put(STATE, INCARNATION_KEY.to_vec(), next.to_le_bytes().to_vec());
                self.leader.commit(term, Draft { rows: vec![row], ..Draft::default() }).await?;
                Ok(next)
            })
            .await?;
        assert!(incarnation < 1 << 32, "a home has been started {incarnation} times");
        self.incarnation.set(incarnation);
        Ok(())
    }

    /// Settles the pins and intents that writers left when their node went down, or that could not be settled when a
    /// writer gave up. Call it when all shards answer.
    ///
    /// - `grace`: not before that, since writers of earlier terms may live.
    pub fn settle_stale_pins(self: &Rc<Self>, grace: Duration) {
        let service = self.clone();
        let task = async move {
            service.leader.ports().sleep(grace).await;
            loop {
                service.let_old_pins_go();
                if service.unsettled.replace(false)
                    && let Err(error) = service.settle_round().await
                {
                    service.unsettled.set(true);
                    warn!(home = %service.leader.shard(), %error, "stale pins could not be settled; tried again");
                }
                service.leader.ports().sleep(RETRY_INTERVAL).await;
            }
        };
        self.background.repeat("settle stale pins", Box::pin(task));
    }

    /// Settles some of the pins, and remembers where the next round goes on: what stays busy keeps nothing behind it waiting.
    async fn settle_round(&self) -> Result<(), StoreError> {
        self.leader.barrier().await?;
        let mut names = BTreeSet::new();
        let limit = PINS_PER_ROUND + self.live_pins.borrow().len();
        let after = self.settled_to.take();
        let is_from_front = after.is_none();
        let scan = Scan {
            file: ROWS_FILE,
            table: PINS,
            from: after.map_or(Bound::Unbounded, Bound::Excluded),
            to: Bound::Unbounded,
            limit,
            direction: Direction::Forward,
        };
        let rows = self.leader.scan(scan).await?;
        for (key, _) in &rows {
            let (name, pin) = parse_pin_key(key)?;
            if !self.live_pins.borrow().contains_key(&pin) {
                names.insert(name);
            }
        }
        let next = rows.last().filter(|_| rows.len() == limit).map(|(key, _)| key.clone());
        let before = if is_from_front { 0 } else { self.stale_pins.get() };
        self.stale_pins.set(before + names.len() as u64);
        if !names.is_empty() || next.is_some() || !is_from_front {
            self.unsettled.set(true); // there may be more, or some are still busy
        }
        self.settled_to.replace(next);
        let mut failed = None;
        for name in &names {
            if let Err(error) = self.collect(*name).await {
                failed = Some(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Answers a request.
    pub async fn handle(&self, request: HomeRequest) -> Result<HomeResponse, StoreError> {
        match request {
            HomeRequest::Begin { shard, pin_epoch, pool, shape, master_epoch, chunks } => {
                let begin = Begin { shard, pin_epoch, pool, shape, master_epoch };
                self.begin(&begin, &chunks).await.map(HomeResponse::Decisions)
            }
            HomeRequest::Confirm(pin) => {
                self.confirm(pin).await?;
                Ok(HomeResponse::Decisions(Vec::new()))
            }
            HomeRequest::Settle { complete, abort } => {
                self.complete(&complete).await?;
                self.abort(&abort).await;
                Ok(HomeResponse::Decisions(Vec::new()))
            }
            HomeRequest::Collect(name) => self.collect(name).await.map(HomeResponse::Collected),
            HomeRequest::Repair { name, margin, cause } => {
                self.repairs.report(name, margin, cause);
                Ok(HomeResponse::Decisions(Vec::new()))
            }
            HomeRequest::Evacuate(names) => self.evacuate(&names).await.map(HomeResponse::Evacuating),
            HomeRequest::Unknown(names) => self.unknown(&names).await.map(HomeResponse::Unknown),
            HomeRequest::Adopt { shard, names } => self.adopt(shard, names).await.map(HomeResponse::Unknown),
        }
    }

    async fn begin(&self, begin: &Begin, chunks: &[BeginChunk]) -> Result<Vec<Decision>, StoreError> {
        let guards = self.latch(chunks.iter().map(|chunk| chunk.locator)).await;
        let term = self.leader.barrier().await?;
        let mut draft = Draft::default();
        let mut decisions = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            decisions.push(self.decide_chunk(begin, chunk, &mut draft).await?);
        }
        // Fragments of an intent that a crash cuts off here are orphans: the next start finds that no home knows them.
        let (sender, committed) = oneshot::channel();
        let committed = committed.shared();
        let now = self.leader.ports().now();
        self.live_pins.borrow_mut().extend(chunks.iter().map(|chunk| (chunk.pin, now)));
        self.committing.borrow_mut().extend(chunks.iter().map(|chunk| (chunk.pin, committed.clone())));
        let leader = self.leader.clone();
        self.background.finish("commit pins", async move {
            let result = match leader.commit(term, draft).await {
                Ok(()) => Ok(()),
                Err(CommitError::Store(error)) => Err(error),
                Err(_) => Err(StoreError::Unsettled { reason: "the home changed its leader; try again".to_owned() }),
            };
            drop(guards); // whoever decides about these chunks next sees this decision applied
            let _nobody_waits = sender.send(result);
        });
        for decision in &decisions {
            let counter = match decision {
                Decision::Hit(_) => &self.counters.hits,
                Decision::Miss(_) => &self.counters.misses,
            };
            counter.set(counter.get() + 1);
        }
        Ok(decisions)
    }

    /// Pins whose writers are about to ask whether they are committed: a leader of another term could not tell them. Those that have
    /// not asked for a while are gone, or their question is lost.
    #[must_use]
    pub fn unconfirmed(&self) -> usize {
        let (now, live) = (self.leader.ports().now(), self.live_pins.borrow());
        let is_fresh = |pin: &&PinId| live.get(*pin).is_some_and(|since| now.since(*since) < CONFIRMED_WITHIN);
        self.committing.borrow().keys().filter(is_fresh).count()
    }

    async fn confirm(&self, pin: PinId) -> Result<(), StoreError> {
        let committing = self.committing.borrow().get(&pin).cloned();
        let stopped = || StoreError::Unsettled { reason: "the home has been restarted; try again".to_owned() };
        let result = committing.ok_or_else(stopped)?.await.unwrap_or_else(|oneshot::Canceled| Err(stopped()));
        self.committing.borrow_mut().remove(&pin);
        result
    }

    async fn decide_chunk(&self, begin: &Begin, chunk: &BeginChunk, draft: &mut Draft) -> Result<Decision, StoreError> {
        let mut pin = Writer::new();
        pin.u8(FORMAT).u64(begin.shard.0).u64(begin.pin_epoch.0);
        let found = self.readable_generation(begin, chunk).await?;
        let (name, record, decision) = match found {
            Some((name, mut record)) => {
                record.shards.insert(begin.shard);
                (name, record, Decision::Hit(name.generation))
            }
            None => {
                let generation = self.next_generation();
                let record = GenerationRecord {
                    state: GenerationState::Intent,
                    pool: begin.pool,
                    shape: shape_for(begin.shape, chunk.envelope_len_bytes),
                    envelope_len_bytes: chunk.envelope_len_bytes,
                    master_epoch: begin.master_epoch,
                    shards: BTreeSet::from([begin.shard]),
                };
                (ChunkName { locator: chunk.locator, generation }, record, Decision::Miss(generation))
            }
        };
        draft.rows.push(RowChange::put(GENERATIONS, name.to_key(), record.encode()));
        draft.rows.push(RowChange::put(PINS, pin_key(name, chunk.pin), pin.finish()));
        Ok(decision)
    }

    /// A generation that a writer may reference instead of writing the chunk again.
    async fn readable_generation(
        &self,
        begin: &Begin,
        chunk: &BeginChunk,
    ) -> Result<Option<(ChunkName, GenerationRecord)>, StoreError> {
        for (name, record) in self.generations(&chunk.locator).await? {
            let fits = record.state == GenerationState::Complete
                && record.pool == begin.pool
                && record.master_epoch == begin.master_epoch
                && record.envelope_len_bytes == chunk.envelope_len_bytes
                && (record.shards.contains(&begin.shard) || record.shards.len() < SHARDS_PER_GENERATION_MAX);
            if fits && self.is_readable(name, record.pool, record.shape).await? {
                return Ok(Some((name, record)));
            }
        }
        Ok(None)
    }

    /// Whether a generation may be named by one more delta: what can be read of it now would be acknowledged if it was written
    /// like that now.
    async fn is_readable(&self, name: ChunkName, pool: PoolId, shape: StripeShape) -> Result<bool, StoreError> {
        let stored = self.fragments.locate(name.locator, name.generation).await;
        let stored = stored.map_err(|error| StoreError::Unavailable { reason: error.to_string() })?;
        let devices = self.devices.devices();
        let (mut indices, mut used, mut by_node) = (BTreeSet::new(), BTreeSet::new(), ByNode::new());
        for found in &stored.found {
            let (index, id) = (found.meta.key.index, found.extent.device);
            let Some(device) = devices.iter().find(|device| device.id == id && device.state.is_readable()) else {
                continue;
            };
            if !indices.contains(&index) && used.insert(id) {
                indices.insert(index);
                *by_node.entry(device.node).or_default() += 1;
            }
        }
        Ok(self.devices.spread(&devices, pool, self.leader.ports().now()).is_enough(shape, &by_node))
    }

    async fn generations(&self, locator: &Locator) -> Result<Vec<(ChunkName, GenerationRecord)>, StoreError> {
        let rows = self.leader.rows(GENERATIONS, &locator.0, ROWS_PER_CHUNK_MAX).await?;
        rows.iter()
            .map(|(key, value)| {
                let name = ChunkName::from_key(key).map_err(row_damaged)?;
                Ok((name, GenerationRecord::decode(value).map_err(row_damaged)?))
            })
            .collect()
    }

    async fn record(&self, name: ChunkName) -> Result<Option<GenerationRecord>, StoreError> {
        let row = self.leader.row(GENERATIONS, &name.to_key()).await?;
        row.map(|bytes| GenerationRecord::decode(&bytes).map_err(row_damaged)).transpose()
    }

    /// Whether a writer may still rely on a pin: one of this term that has not ended it, or one of an earlier term that has
    /// had no time to do so.
    fn may_live(&self, pin: &PinId) -> bool {
        if self.live_pins.borrow().contains_key(pin) {
            return true;
        }
        self.leader.ports().now() < self.grace_until && !self.ended_pins.borrow().contains(pin)
    }

    /// Writers on other nodes may be gone without a word. One that makes progress ends its pins with each page that it
    /// commits.
    fn let_old_pins_go(&self) {
        if self.calls.is_alone() {
            return;
        }
        let now = self.leader.ports().now();
        let mut live = self.live_pins.borrow_mut();
        let before = live.len();
        live.retain(|_, since| now.since(*since) < self.pin_life);
        if live.len() < before {
            self.committing.borrow_mut().retain(|pin, _| live.contains_key(pin));
            self.unsettled.set(true);
        }
    }

    fn pin_ended(&self, pin: PinId) {
        let was_of_this_term = self.live_pins.borrow_mut().remove(&pin).is_some();
        if !was_of_this_term && self.leader.ports().now() < self.grace_until {
            self.ended_pins.borrow_mut().insert(pin);
        }
    }

    /// Whether this home has given out the number.
    fn has_numbered(&self, generation: Generation) -> bool {
        generation.0 < (self.incarnation.get() << 32 | self.sequence.get())
    }

    fn next_generation(&self) -> Generation {
        let sequence = self.sequence.get();
        self.sequence.set(sequence + 1);
        assert!(sequence < 1 << 32, "a home has numbered {sequence} generations since its start");
        Generation(self.incarnation.get() << 32 | sequence)
    }

    async fn complete(&self, pins: &[(ChunkName, PinId)]) -> Result<(), StoreError> {
        if pins.is_empty() {
            return Ok(());
        }
        let _guards = self.latch(pins.iter().map(|(name, _)| name.locator)).await;
        let kept = self
            .decide(async |term| {
                let (mut rows, mut kept) = (Vec::new(), Vec::new());
                let mut completed = BTreeMap::new();
                for (name, pin) in pins {
                    match self.record(*name).await? {
                        // I-C2: a delta names it, and its collection has not come to an end. The pin is what has it looked at
                        // again: then it is pardoned.
                        Some(record) if record.state == GenerationState::Condemned => {
                            kept.push(*pin);
                            continue;
                        }
                        Some(mut record) if record.state == GenerationState::Intent => {
                            record.state = GenerationState::Complete;
                            completed.insert(*name, record);
                        }
                        _ => {}
                    }
                    rows.push(RowChange::remove(PINS, pin_key(*name, *pin)));
                }
                rows.extend(
                    completed.iter().map(|(name, record)| RowChange::put(GENERATIONS, name.to_key(), record.encode())),
                );
                if !rows.is_empty() {
                    self.leader.commit(term, Draft { rows, ..Draft::default() }).await?;
                }
                Ok(kept)
            })
            .await?;
        if !kept.is_empty() {
            kept.into_iter().for_each(|pin| self.pin_ended(pin));
            self.unsettled.set(true);
        }
        let mut live = self.live_pins.borrow_mut();
        for (_, pin) in pins {
            live.remove(pin);
        }
        Ok(())
    }

    /// Pins whose writers have given up. What can't be collected now is settled later: its pin is in the table.
    async fn abort(&self, pins: &[(ChunkName, PinId)]) {
        for (_, pin) in pins {
            self.pin_ended(*pin);
            self.committing.borrow_mut().remove(pin);
        }
        for (name, _) in pins {
            match self.collect(*name).await {
                Ok(Collected::Freed | Collected::Named) => {}
                Ok(Collected::Busy) => self.unsettled.set(true),
                Err(error) => {
                    warn!(home = %self.leader.shard(), %error, "what a writer gave up could not be collected; tried again");
                    self.unsettled.set(true);
                }
            }
        }
    }

    /// Frees a generation that nobody names. Any step can be cut off by a crash: it is condemned until it is freed or
    /// pardoned, and whoever asked asks again.
    async fn collect(&self, name: ChunkName) -> Result<Collected, StoreError> {
        let _guards = self.latch([name.locator].into_iter()).await;
        // Whoever is told that it is freed forgets it: a home that is deposed may not have heard of it yet.
        self.leader.barrier().await?;
        let Some(mut record) = self.record(name).await? else {
            if !self.pins(name).await?.is_empty() {
                self.forget(name).await?;
            }
            return Ok(Collected::Freed);
        };
        // I-C2: what is freed while a repair writes it would come back, and nobody would free that.
        if self.is_being_repaired(&name) {
            return Ok(Collected::Busy);
        }
        let pins = self.pins(name).await?;
        if pins.iter().any(|pin| self.may_live(pin)) {
            return Ok(Collected::Busy);
        }
        if record.state == GenerationState::Complete
            && pins.is_empty()
            && record.shards.len() > 1
            && self.calls.lacking(SPLIT_VERSION).is_none()
        {
            match self.is_named(name, &record).await {
                Some(true) => return Ok(Collected::Named),
                Some(false) => {}
                None => return Ok(Collected::Busy),
            }
        }
        if record.state != GenerationState::Freeing {
            if record.state != GenerationState::Condemned {
                record.state = GenerationState::Condemned;
                self.put_record(name, &record, &[]).await?;
            }
            match self.fence_everywhere(name, &record).await {
                None => return Ok(Collected::Busy),
                Some(0) => {}
                Some(_) => return self.pardon(name, record, &pins).await,
            }
            record.state = GenerationState::Freeing;
            self.put_record(name, &record, &[]).await?;
        }
        if !self.release(name).await? {
            return Ok(Collected::Busy);
        }
        self.forget(name).await?;
        self.counters.freed.set(self.counters.freed.get() + 1);
        Ok(Collected::Freed)
    }

    /// Whether one of several shards names the generation just now: it will ask by itself when it does no more, so nobody has to be
    /// fenced. When keys move to another shard all their chunks come by here. `None` when one did not answer.
    async fn is_named(&self, name: ChunkName, record: &GenerationRecord) -> Option<bool> {
        self.forget_silence();
        for shard in &record.shards {
            if self.silent.borrow().contains_key(shard) {
                return None;
            }
            let request = ShardRequest::Split(Box::new(SplitRequest::CountOf(vec![name])));
            match self.calls.shard(*shard, request).await {
                Ok(ShardResponse::Split(SplitAnswer::Counts(counts))) => {
                    if counts.first().is_some_and(|count| *count > 0) {
                        return Some(true);
                    }
                }
                Ok(_) => panic!("a shard answers CountOf with Counts"),
                Err(error) => {
                    warn!(%shard, %error, "a shard did not say whether it names a generation; it is kept for now");
                    self.silent.borrow_mut().insert(*shard, self.leader.ports().now() + SILENT_INTERVAL);
                    return None;
                }
            }
        }
        Some(false)
    }

    fn forget_silence(&self) {
        let now = self.leader.ports().now();
        self.silent.borrow_mut().retain(|_, until| now < *until);
    }

    /// A shard may name these from now on, and is fenced before they are freed. Refused is what may be on its way to be freed
    /// already: its shards may have been asked.
    async fn adopt(&self, shard: ShardId, names: Vec<ChunkName>) -> Result<Vec<ChunkName>, StoreError> {
        let names: BTreeSet<ChunkName> = names.into_iter().collect();
        let _guards = self.latch(names.iter().map(|name| name.locator)).await;
        self.decide(async |term| {
            let (mut rows, mut refused) = (Vec::new(), Vec::new());
            for name in &names {
                match self.record(*name).await? {
                    Some(mut record) if record.may_be_named_by(shard) => {
                        if record.shards.insert(shard) {
                            rows.push(RowChange::put(GENERATIONS, name.to_key(), record.encode()));
                        }
                    }
                    _ => refused.push(*name),
                }
            }
            if !rows.is_empty() {
                self.leader.commit(term, Draft { rows, ..Draft::default() }).await?;
            }
            Ok(refused)
        })
        .await
    }

    /// Sets the fence in every shard that may name the generation, and adds up how often they do. `None` when one did
    /// not answer: then nothing may be freed.
    async fn fence_everywhere(&self, name: ChunkName, record: &GenerationRecord) -> Option<u64> {
        let mut named = 0;
        self.forget_silence();
        for shard in &record.shards {
            if self.silent.borrow().contains_key(shard) {
                return None;
            }
            match self.calls.shard(*shard, ShardRequest::Fence(name)).await {
                Ok(ShardResponse::Count(count)) => named += count,
                Ok(_) => panic!("a shard answers Fence with Count"),
                Err(error) => {
                    warn!(%shard, %error, "a shard did not answer a fence; its generation stays condemned for now");
                    self.silent.borrow_mut().insert(*shard, self.leader.ports().now() + SILENT_INTERVAL);
                    return None;
                }
            }
        }
        Some(named)
    }

    /// A shard names it after all: a delta was committed whose writer did not live to say so.
    async fn pardon(
        &self,
        name: ChunkName,
        mut record: GenerationRecord,
        pins: &[PinId],
    ) -> Result<Collected, StoreError> {
        record.state = GenerationState::Complete;
        for shard in &record.shards {
            self.calls.shard(*shard, ShardRequest::Unfence(name)).await?;
        }
        self.put_record(name, &record, pins).await?;
        // While it was condemned no walk looked after it.
        self.repairs.offer(name, 0, RepairCause::Missing);
        self.counters.pardoned.set(self.counters.pardoned.get() + 1);
        Ok(Collected::Named)
    }

    /// Frees the fragments; false when a device or a node did not answer.
    async fn release(&self, name: ChunkName) -> Result<bool, StoreError> {
        let located = self.fragments.locate(name.locator, name.generation).await;
        let stored = match located.and_then(Located::all) {
            Ok(stored) => stored,
            Err(error) => {
                warn!(%error, "fragments of a condemned generation could not be listed; tried again");
                return Ok(false);
            }
        };
        let readable = self.devices.readable();
        let mut all = true;
        for fragment in stored {
            // A fragment on a device that is away keeps the generation condemned: should the device come back, the
            // fragment is freed then, not left behind as an orphan. One that is gone for good is let go of.
            let device = fragment.extent.device;
            let freed = match self.devices.is_removed(device) {
                true => self.fragments.forget(&fragment).await,
                false if readable.contains(&device) => self.fragments.release(&fragment).await,
                false => {
                    all = false;
                    continue;
                }
            };
            if let Err(error) = freed {
                warn!(%error, "a fragment of a condemned generation could not be freed; tried again");
                all = false;
            }
        }
        Ok(all)
    }

    async fn put_record(&self, name: ChunkName, record: &GenerationRecord, ended: &[PinId]) -> Result<(), StoreError> {
        self.decide(async |term| {
            let mut rows = vec![RowChange::put(GENERATIONS, name.to_key(), record.encode())];
            rows.extend(ended.iter().map(|pin| RowChange::remove(PINS, pin_key(name, *pin))));
            self.leader.commit(term, Draft { rows, ..Draft::default() }).await
        })
        .await
    }

    /// Removes a generation and all its pins. A number is never given out again, so nobody pins it any more.
    async fn forget(&self, name: ChunkName) -> Result<(), StoreError> {
        loop {
            let pins = self.pins(name).await?;
            self.decide(async |term| {
                let mut rows = vec![RowChange::remove(GENERATIONS, name.to_key())];
                rows.extend(pins.iter().map(|pin| RowChange::remove(PINS, pin_key(name, *pin))));
                self.leader.commit(term, Draft { rows, ..Draft::default() }).await
            })
            .await?;
            if pins.len() < ROWS_PER_CHUNK_MAX {
                return Ok(());
            }
        }
    }

    /// Pins of a generation, [`ROWS_PER_CHUNK_MAX`] at most.
    async fn pins(&self, name: ChunkName) -> Result<Vec<PinId>, StoreError> {
        let rows = self.leader.rows(PINS, &name.to_key(), ROWS_PER_CHUNK_MAX).await?;
        rows.iter().map(|(key, _)| parse_pin_key(key).map(|(_, pin)| pin)).collect()
    }

    /// Latches chunks in the order of their locators, so that nobody waits in a circle.
    async fn latch(&self, locators: impl Iterator<Item = Locator>) -> Vec<LatchGuard> {
        let mut guards = Vec::new();
        for locator in locators.collect::<BTreeSet<_>>() {
            guards.push(self.leader.latches.hold(locator.0.to_vec(), Hold::Exclusive).await);
        }
        guards
    }

    async fn decide<T>(&self, decision: impl AsyncFn(Term) -> Result<T, CommitError>) -> Result<T, StoreError> {
        for _ in 0..DECISIONS_MAX {
            match decision(self.leader.barrier().await?).await {
                Ok(result) => return Ok(result),
                Err(CommitError::Again) => {}
                Err(CommitError::Store(error)) => return Err(error),
                Err(CommitError::Fenced(_) | CommitError::EpochClosed) => panic!("a home has no fences and no epochs"),
            }
        }
        Err(StoreError::Unsettled { reason: "the leader changes too often; try again".to_owned() })
    }
}

/// What all chunks of one request have in common.
struct Begin {
    shard: ShardId,
    pin_epoch: PinEpoch,
    pool: PoolId,
    shape: StripeShape,
    master_epoch: MasterEpoch,
}

fn pin_key(name: ChunkName, pin: PinId) -> Vec<u8> {
    let mut key = name.to_key();
    key.extend_from_slice(&pin);
    key
}

fn parse_pin_key(key: &[u8]) -> Result<(ChunkName, PinId), StoreError> {
    let damaged = || StoreError::Damaged { reason: "a pin's key is not well formed".to_owned() };
    let (name, pin) = key.split_at_checked(40).ok_or_else(damaged)?;
    Ok((ChunkName::from_key(name).map_err(row_damaged)?, pin.try_into().map_err(|_| damaged())?))
}
