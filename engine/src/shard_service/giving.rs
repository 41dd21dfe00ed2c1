//! The shard that is split: gives the keys of a range away, a handful at a time, from the first on (I-L6).
//!
//! For each handful: its pages are copied to the child, whose chunks the child adopts at their homes first (I-C2); then nobody decides about
//! the keys for a moment, what they are is handed over, and one delta here lets them go. Until that delta commits they are
//! here, from then on they are there; so a leader that fails at any step leaves at most copies that nobody is sent to, and the next one
//! begins the same handful again. Deltas that commit in another term than they were decided in are refused, here as everywhere.

use super::{ShardService, drop_pages, namespace_latch};
use crate::api::StoreError;
use crate::composition::{Page, PartEntry};
use crate::delta::{ChunkName, RowChange};
use crate::key_ranges::{KeyRange, lower_end};
use crate::latch::Hold;
use crate::leader::{CommitError, Draft, row_damaged};
use crate::message::{Clip, ControlRequest, HomeRequest, HomeResponse, ShardRequest, ShardResponse};
use crate::names::split_key;
use crate::replica_keeper::voters_wanted;
use crate::shard_tables::{
    CLOSED, ENTRIES, GIVEN, PARTS, SPLITS, UPLOADS, decode_split, encode_given, encode_split, given_key, part_key,
    upload_key,
};
use crate::split_message::{
    Attempt, Handover, MovedItem, ShardMapRequest, ShardStanding, SplitAnswer, SplitCeilings, SplitOrder, SplitRequest,
    SplitState, active_nodes,
};
use crate::walk::Walk;
use futures::future::{Either, select};
use kiseki_types::ids::{NamespaceId, PageId, PinEpoch, ShardId};
use kiseki_types::runtime::{Instant, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tracing::{debug, info, warn};

/// Objects that are handed over at once: others of the range may be written meanwhile, these can't be.
const KEYS_MAX: usize = 128;

/// Bytes of rows that one delta here removes, and one there puts: both fit in a command.
const ROWS_LEN_BYTES_MAX: usize = 384 * 1024;

/// A key whose rows are longer than this can't be moved in one delta.
const KEY_ROWS_LEN_BYTES_MAX: usize = 960 * 1024;

/// Pages and bytes of them that one call carries.
const PAGES_PER_CALL: usize = 256;
const PAGES_LEN_BYTES_MAX: usize = 384 * 1024;

/// Chunks that one call adopts.
const ADOPTED_PER_CALL: usize = 256;

/// Uploads that are looked at for one handful.
const UPLOADS_MAX: usize = 128;

/// Uploads of one key that can be moved: no more fit in a delta.
const UPLOADS_OF_KEY_MAX: usize = 8192;

/// A child that does not answer so long keeps nobody waiting: the keys stay here and are tried again.
const HANDOVER_MAX: Duration = Duration::from_secs(3);

/// Before a handful that failed is tried again, and between two looks for a split. It doubles up to the longest while nothing comes
/// of it: each try copies pages.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// Between two handfuls.
const PAUSE: Duration = Duration::from_millis(2);

/// So long a shard is over a ceiling before it asks to be split.
const OVER_MIN: Duration = Duration::from_secs(60);

/// And so long it waits before it asks again: what moved is no more asked for here only after a while.
const ASK_INTERVAL: Duration = Duration::from_secs(180);

/// The split that goes on here, and when there will be one.
pub(super) struct Giving {
    ceilings: SplitCeilings,
    over_since: Cell<Option<Instant>>,
    asked_at: Cell<Option<Instant>>,
    count: Cell<u64>,
    problem: RefCell<Option<String>>,
    waiting: RefCell<Option<String>>,
}

impl Giving {
    pub(super) fn new(ceilings: SplitCeilings) -> Giving {
        Giving {
            ceilings,
            over_since: Cell::default(),
            asked_at: Cell::default(),
            count: Cell::default(),
            problem: RefCell::default(),
            waiting: RefCell::default(),
        }
    }
}

/// Some keys of a range, and what they are.
struct Handful {
    end: Option<String>,
    items: Vec<MovedItem>,
    /// Table keys of the objects.
    entries: Vec<Vec<u8>>,
}

/// What the child has of these pages, under which ids: the same page may be taken up twice by a child that lost the first.
type Copied = BTreeMap<PageId, PageId>;

fn problem(reason: &str) -> StoreError {
    StoreError::Unavailable { reason: reason.to_owned() }
}

impl ShardService {
    /// How this shard is.
    pub(super) async fn standing(&self) -> Result<ShardStanding, StoreError> {
        self.leader.barrier().await?;
        let voters = self.leader.voters();
        let wanted = voters_wanted(self.shard(), active_nodes(&self.nodes));
        let (size, is_counted) = self.load.size();
        let (writes_per_minute, reads_per_minute) = self.load.rates(self.leader.ports().now());
        let split = self.order().await?.map(|(order, _)| self.state_of(&order));
        Ok(ShardStanding {
            leader: self.nodes.own(),
            is_complete: voters.len() >= wanted,
            voters: voters.into_iter().collect(),
            keys: size.keys.max(0) as u64,
            bytes: size.bytes.max(0) as u64,
            is_counted,
            writes_per_minute,
            reads_per_minute,
            given: self.given.count() as u64,
            split,
        })
    }

    /// The split that goes on, and where its range ends.
    async fn order(&self) -> Result<Option<(SplitOrder, Option<String>)>, StoreError> {
        let rows = self.leader.rows(SPLITS, &[], 1).await?;
        rows.first().map(|(_, row)| decode_split(row).map_err(row_damaged)).transpose()
    }

    fn state_of(&self, order: &SplitOrder) -> SplitState {
        if let Some(reason) = self.giving.waiting.borrow().clone() {
            return SplitState::Waiting { reason };
        }
        let given = self.given.to(order.namespace, &order.start, order.child);
        let at = given.and_then(|range| range.end).unwrap_or_else(|| order.start.clone());
        SplitState::Moving { at, problem: self.giving.problem.borrow().clone() }
    }

    /// Whether a range may begin at a key: it is here.
    pub(super) fn may_begin_at(&self, namespace: NamespaceId, start: &str) -> bool {
        self.check_all_here(namespace, &Clip::of_key(start)).is_ok()
    }

    /// Notes that keys are to be given away, once, and says how far that is.
    pub(super) async fn begin_split(&self, order: SplitOrder) -> Result<SplitState, StoreError> {
        self.leader.barrier().await?;
        if self.order().await?.is_some_and(|(going_on, _)| going_on == order) {
            return Ok(self.state_of(&order));
        }
        let state = self
            .decide(async |term| {
                let _guard = self.leader.latches.hold(namespace_latch(order.root), Hold::Exclusive).await;
                let going_on = self.order().await?;
                if let Some((going_on, _)) = going_on {
                    return match going_on == order {
                        true => Ok(self.state_of(&order)),
                        false => Err(CommitError::Store(problem("the shard is being split already"))),
                    };
                }
                if let Some(range) = self.given.to(order.namespace, &order.start, order.child) {
                    return Ok(SplitState::Done(range));
                }
                if self.leader.row(CLOSED, &order.namespace.0.to_be_bytes()).await?.is_some() {
                    return Ok(SplitState::Stopped);
                }
                self.check_all_here(order.namespace, &Clip::of_key(&order.start))?;
                let end = lower_end(self.given.next_start(order.namespace, &order.start), order.until.clone());
                let mut draft = Draft { namespace: order.namespace, ..Draft::default() };
                let key = order.child.0.to_be_bytes().to_vec();
                draft.rows.push(RowChange::put(SPLITS, key, encode_split(&order, end.as_deref())));
                self.leader.commit(term, draft).await?;
                Ok(SplitState::Waiting { reason: "it begins".to_owned() })
            })
            .await?;
        self.wake_if(true);
        Ok(state)
    }

    /// A namespace is gone: nothing of it is given away any more.
    pub(super) async fn forget_split_of(
        &self,
        namespace: NamespaceId,
        root: kiseki_types::ids::DirId,
    ) -> Result<(), StoreError> {
        self.decide(async |term| {
            let _guard = self.leader.latches.hold(namespace_latch(root), Hold::Exclusive).await;
            let Some((order, _)) = self.order().await?.filter(|(order, _)| order.namespace == namespace) else {
                return Ok(());
            };
            let mut draft = Draft { namespace, ..Draft::default() };
            draft.rows.push(RowChange::remove(SPLITS, order.child.0.to_be_bytes().to_vec()));
            self.leader.commit(term, draft).await
        })
        .await
    }

    /// Gives away what is to be given away, for as long as this shard is led here.
    pub(super) fn start_giving(self: &Rc<Self>) {
        let (service, ports) = (Rc::downgrade(self), self.leader.ports().clone());
        let task = async move {
            let mut retry = RETRY_INTERVAL;
            loop {
                let pause = {
                    let Some(service) = service.upgrade() else { return };
                    match service.give_some().await {
                        Ok(true) => {
                            retry = RETRY_INTERVAL;
                            PAUSE
                        }
                        Ok(false) => {
                            retry = RETRY_INTERVAL;
                            service.ask_for_split_when_over().await;
                            RETRY_INTERVAL
                        }
                        Err(error) => {
                            let told = service.giving.problem.replace(Some(error.to_string()));
                            if told != Some(error.to_string()) {
                                warn!(shard = %service.shard(), %error, "keys could not be handed over; tried again");
                                retry = RETRY_INTERVAL;
                            }
                            let pause = retry;
                            retry = (2 * retry).min(RETRY_INTERVAL_MAX);
                            // As long as that is so nobody decides about some keys.
                            if service.given.is_unknown() { RETRY_INTERVAL } else { pause }
                        }
                    }
                };
                ports.sleep(pause).await;
            }
        };
        self.background.repeat("split", Box::pin(task));
    }

    /// I-L6: a shard that is over a ceiling asks the control shard to split it, where half of what is asked for lies on either side.
    async fn ask_for_split_when_over(&self) {
        let (now, SplitCeilings { keys, bytes, writes_per_minute }) = (self.leader.ports().now(), self.giving.ceilings);
        let (size, is_counted) = self.load.size();
        let (writes, _) = self.load.rates(now);
        let exceeds = |value: i64, ceiling: u64| ceiling > 0 && u64::try_from(value).is_ok_and(|value| value > ceiling);
        let is_over = is_counted && (exceeds(size.keys, keys) || exceeds(size.bytes, bytes))
            || writes_per_minute > 0 && writes > writes_per_minute;
        if !is_over {
            return self.giving.over_since.set(None);
        }
        let since = self.giving.over_since.get().unwrap_or(now);
        self.giving.over_since.set(Some(since));
        let is_early = self.giving.asked_at.get().is_some_and(|at| now.since(at) < ASK_INTERVAL);
        if now.since(since) < OVER_MIN || is_early || !matches!(self.order().await, Ok(None)) {
            return;
        }
        self.giving.asked_at.set(Some(now));
        let request = ShardMapRequest::Split { shard: self.shard(), bucket: None, at: None };
        match self.calls.control(ControlRequest::Shards(request)).await {
            Ok(_) => info!(shard = %self.shard(), "a shard is over its ceiling, and is split"),
            Err(error) => debug!(shard = %self.shard(), %error, "a shard is over its ceiling, and can't be split now"),
        }
    }

    /// One handful; whether there may be another one right away.
    async fn give_some(self: &Rc<Self>) -> Result<bool, StoreError> {
        if self.given.is_unknown() {
            self.find_out().await?;
        }
        if self.order().await?.is_none() {
            return Ok(false); // nothing is asked of the others: groups at rest stay so
        }
        self.leader.barrier().await?;
        let Some((order, end)) = self.order().await? else { return Ok(false) };
        if self.leader.row(CLOSED, &order.namespace.0.to_be_bytes()).await?.is_some() {
            // `purge` forgets the split.
            let reason = "the bucket is being deleted; where that was broken off, delete it again";
            self.giving.waiting.replace(Some(reason.to_owned()));
            return Ok(false);
        }
        let given = self.given.to(order.namespace, &order.start, order.child);
        let from = match &given {
            None => order.start.clone(),
            Some(range) => range.end.clone().ok_or_else(|| problem("a split is over and still noted"))?,
        };
        let standing = self.ask_child(order.child, SplitRequest::Standing).await?;
        let SplitAnswer::Standing(standing) = standing else { return Err(problem("the child answers something else")) };
        if !standing.is_complete {
            // What is acknowledged by the child has to survive as much as what is acknowledged here.
            let reason = format!("{} has {} voters and waits for more", order.child, standing.voters.len());
            self.giving.waiting.replace(Some(reason));
            return Ok(false);
        }
        self.giving.waiting.replace(None);
        self.lower_threshold_of(order.child).await?;
        let mut copied = Copied::new();
        let result = self.hand_over(&order, &from, end.as_deref(), &mut copied).await;
        if result.is_err() && !copied.is_empty() {
            let pages = copied.values().copied().collect();
            let _ = self.calls.shard(order.child, ShardRequest::AbandonPages(pages)).await; // else it does so by itself
        }
        let given = result?;
        self.giving.problem.replace(None);
        if given.end.as_deref() == end.as_deref() {
            info!(shard = %self.shard(), child = %order.child, "a shard is split: all keys of the range have moved");
        }
        Ok(given.end.as_deref() != end.as_deref())
    }

    async fn hand_over(
        self: &Rc<Self>,
        order: &SplitOrder,
        from: &str,
        end: Option<&str>,
        copied: &mut Copied,
    ) -> Result<KeyRange, StoreError> {
        // While everybody may still write: most of what there is to copy. What is replaced meanwhile may be collected, and is
        // nobody's loss.
        let ahead = self.handful(order, from, end).await?;
        if let Err(error) = self.copy_pages(order, &ahead, copied).await {
            debug!(shard = %self.shard(), %error, "pages could not be copied ahead");
        }
        let leaving =
            KeyRange { namespace: order.namespace, start: from.to_owned(), end: ahead.end.clone(), shard: order.child };
        let handing = self.hand(order.root, leaving).await;
        let handed = async {
            let handful = self.handful(order, from, ahead.end.as_deref()).await?;
            self.copy_pages(order, &handful, copied).await?;
            self.tell_child(order, from, &handful, copied).await?;
            Ok::<Handful, StoreError>(handful)
        };
        let timeout = self.leader.ports().sleep(HANDOVER_MAX);
        let handed = match select(pin!(handed), pin!(timeout)).await {
            Either::Left((handed, _)) => handed,
            Either::Right(_) => Err(problem("the child does not answer in time")),
        };
        let handful = match handed {
            Ok(handful) => handful,
            Err(error) => {
                handing.stay();
                return Err(error);
            }
        };
        // Whoever closes the namespace sees either that these keys are here, or where they went.
        let guard = self.leader.latches.hold(namespace_latch(order.root), Hold::Shared).await;
        let is_closed = self.leader.row(CLOSED, &order.namespace.0.to_be_bytes()).await;
        if !matches!(is_closed, Ok(None)) {
            handing.stay();
            return Err(is_closed.err().unwrap_or_else(|| problem("the bucket is being deleted")));
        }
        let is_last = handful.end.as_deref() == end;
        let range = KeyRange {
            namespace: order.namespace,
            start: order.start.clone(),
            end: handful.end.clone(),
            shard: order.child,
        };
        handing.commits();
        match self.let_go(order, &range, &handful, is_last).await {
            Ok(()) => {}
            // What became of it is not known, and `handing` keeps the keys until it is, or the term is over.
            Err(CommitError::Store(StoreError::Unsettled { .. })) => {
                return Err(problem("the leader changes while keys are handed over"));
            }
            // It is in the log and was refused, or never got there.
            Err(_) => {
                handing.stay();
                return Err(problem("the keys could not be let go"));
            }
        }
        let (keys, bytes) = handful.size();
        self.load.change(-keys, -bytes);
        handing.gone(range.clone());
        drop(guard);
        self.wake_if(true);
        let used: BTreeSet<PageId> = handful.items.iter().flat_map(MovedItem::pages).map(|page| page.page).collect();
        let unused: Vec<PageId> = copied.iter().filter(|(id, _)| !used.contains(id)).map(|(_, copy)| *copy).collect();
        if !unused.is_empty() {
            let _ = self.calls.shard(order.child, ShardRequest::AbandonPages(unused)).await; // else it does so by itself
        }
        self.tidy(order, &handful).await;
        Ok(range)
    }

    /// The next keys: as many as may be handed over at once.
    async fn handful(&self, order: &SplitOrder, from: &str, end: Option<&str>) -> Result<Handful, StoreError> {
        let mut found = self.uploads_between(order.namespace, from, end, UPLOADS_MAX + 1).await?;
        // The list is cut off: of its last key there may be more.
        let mut cut = found.get(UPLOADS_MAX).map(|(key, ..)| key.clone());
        let whole = cut.clone().filter(|key| found[0].0 == *key);
        if let Some(key) = &whole {
            // All are of one key, which goes alone, with all that there are.
            found =
                self.uploads_between(order.namespace, key, Some(&format!("{key}\0")), UPLOADS_OF_KEY_MAX + 1).await?;
            cut = found.get(UPLOADS_OF_KEY_MAX).map(|(key, ..)| key.clone());
        }
        let mut uploads = found.into_iter().peekable();
        let mut walk = Walk::new(self.leader.tables(), order.root);
        walk.seek(from);
        let mut file = self.next_file(&mut walk, end).await?;
        let mut handful = Handful { end: end.map(str::to_owned), items: Vec::new(), entries: Vec::new() };
        let (mut keys, mut len) = (0, 0);
        loop {
            let next = match (&file, uploads.peek()) {
                (Some((key, _, _)), Some((upload, _, _))) => key.min(upload).clone(),
                (Some((key, _, _)), None) => key.clone(),
                (None, Some((upload, _, _))) => upload.clone(),
                (None, None) => return Ok(handful),
            };
            // All of one key go together.
            let (mut items, mut entries) = (Vec::new(), Vec::new());
            if let Some((key, found, place)) = file.take_if(|(key, _, _)| *key == next) {
                items.push(MovedItem::File { key, file: found });
                entries.push(place);
                file = self.next_file(&mut walk, end).await?;
            }
            let mut more: usize = items.iter().map(rows_len).sum();
            while more <= KEY_ROWS_LEN_BYTES_MAX
                && let Some((key, upload, entry)) = uploads.next_if(|(key, _, _)| *key == next)
            {
                let parts = self.parts(upload, 0, crate::composition::PARTS_MAX).await?;
                let parts = parts.into_iter().map(|(part, entry)| MovedItem::Part { upload, part, entry });
                let of_upload = std::iter::once(MovedItem::Upload { key, upload, entry }).chain(parts);
                for item in of_upload {
                    more += rows_len(&item);
                    items.push(item);
                }
            }
            let is_cut = cut.as_ref() == Some(&next);
            if keys > 0 && (keys == KEYS_MAX || len + more > ROWS_LEN_BYTES_MAX || is_cut) {
                handful.end = Some(next);
                return Ok(handful);
            }
            if more > KEY_ROWS_LEN_BYTES_MAX || is_cut {
                return Err(problem("a key has more uploads than one delta can move: complete or abort some"));
            }
            keys += 1;
            len += more;
            handful.items.append(&mut items);
            handful.entries.append(&mut entries);
            if whole.as_ref() == Some(&next) {
                handful.end = Some(format!("{next}\0"));
                return Ok(handful);
            }
        }
    }

    async fn next_file(
        &self,
        walk: &mut Walk,
        end: Option<&str>,
    ) -> Result<Option<(String, crate::composition::FileEntry, Vec<u8>)>, StoreError> {
        let found = walk.next().await?.filter(|(key, _)| crate::key_ranges::is_below(key, end));
        Ok(found.map(|(key, file)| (key, file, walk.place().to_vec())))
    }

    /// Copies the pages that the child does not have yet.
    async fn copy_pages(&self, order: &SplitOrder, handful: &Handful, copied: &mut Copied) -> Result<(), StoreError> {
        let wanted: BTreeSet<PageId> = handful.items.iter().flat_map(MovedItem::pages).map(|page| page.page).collect();
        let wanted: Vec<PageId> = wanted.into_iter().filter(|page| !copied.contains_key(page)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let pin_epoch = match self.calls.shard(order.child, ShardRequest::PinEpoch).await? {
            ShardResponse::PinEpoch(epoch) => epoch,
            _ => return Err(problem("the child answers something else")),
        };
        let mut batch: Vec<(PageId, PageId, Page)> = Vec::new();
        let mut len = 0;
        for id in wanted {
            // One that is replaced meanwhile is gone; whoever looks again finds no name that leads to it.
            let Ok(page) = self.page(id).await else { continue };
            len += page.encode().len();
            batch.push((id, PageId(self.leader.ports().random()), page));
            if len >= PAGES_LEN_BYTES_MAX || batch.len() >= PAGES_PER_CALL {
                self.copy_batch(order, pin_epoch, std::mem::take(&mut batch), copied).await?;
                len = 0;
            }
        }
        self.copy_batch(order, pin_epoch, batch, copied).await
    }

    /// I-C2: the homes of all chunks know that the child may name them before it does, and after it has said which epoch that
    /// is; they stay because this shard names them all the while.
    async fn copy_batch(
        &self,
        order: &SplitOrder,
        pin_epoch: PinEpoch,
        batch: Vec<(PageId, PageId, Page)>,
        copied: &mut Copied,
    ) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let names = batch.iter().flat_map(|(_, _, page)| page.references.iter().map(|reference| reference.name()));
        adopt(&self.calls, order.child, names).await?;
        let namespace = order.namespace;
        let ids: Vec<(PageId, PageId)> = batch.iter().map(|(id, copy, _)| (*id, *copy)).collect();
        let pages = batch.into_iter().map(|(_, copy, page)| (copy, page)).collect();
        copied.extend(ids); // perhaps it is done and the answer is lost
        self.ask_child(order.child, SplitRequest::TakePages { namespace, pin_epoch, pages }).await?;
        Ok(())
    }

    /// Tells the child what the keys are, in as many calls as it needs.
    async fn tell_child(
        &self,
        order: &SplitOrder,
        from: &str,
        handful: &Handful,
        copied: &Copied,
    ) -> Result<(), StoreError> {
        let mut items = Vec::with_capacity(handful.items.len());
        for item in &handful.items {
            let mut item = item.clone();
            for page in item.pages_mut() {
                page.page = *copied.get(&page.page).ok_or_else(|| problem("a page of these keys can't be read"))?;
            }
            items.push(item);
        }
        let mut items = items.into_iter().peekable();
        let mut follows = None;
        loop {
            let (mut call, mut len) = (Vec::new(), 0);
            while let Some(item) = items.next_if(|item| call.is_empty() || len + rows_len(item) <= ROWS_LEN_BYTES_MAX) {
                len += rows_len(&item);
                call.push(item);
            }
            self.giving.count.set(self.giving.count.get() + 1);
            let attempt = Attempt { term: self.leader.term().0, count: self.giving.count.get() };
            let handover = Handover {
                namespace: order.namespace,
                root: order.root,
                start: from.to_owned(),
                end: handful.end.clone(),
                attempt,
                follows,
                items: call,
            };
            self.ask_child(order.child, SplitRequest::Take(handover)).await?;
            follows = Some(attempt);
            if items.peek().is_none() {
                return Ok(());
            }
        }
    }

    /// The one entry of this shard's log that makes the keys the child's.
    async fn let_go(
        &self,
        order: &SplitOrder,
        range: &KeyRange,
        handful: &Handful,
        is_last: bool,
    ) -> Result<(), CommitError> {
        let mut draft = Draft { namespace: order.namespace, ..Draft::default() };
        draft.rows.extend(handful.entries.iter().map(|key| RowChange::remove(ENTRIES, key.clone())));
        for item in &handful.items {
            drop_pages(item.pages(), &mut draft);
            match item {
                MovedItem::File { file, .. } => draft.dropped_bytes += file.len_bytes,
                MovedItem::Upload { key, upload, .. } => {
                    draft.rows.push(RowChange::remove(UPLOADS, upload_key(order.namespace, key, *upload)));
                }
                MovedItem::Part { upload, part, .. } => {
                    draft.rows.push(RowChange::remove(PARTS, part_key(*upload, *part)));
                }
            }
        }
        draft.rows.push(RowChange::put(GIVEN, given_key(range), encode_given(range)));
        if is_last {
            draft.rows.push(RowChange::remove(SPLITS, order.child.0.to_be_bytes().to_vec()));
        }
        self.leader.commit(self.leader.term(), draft).await
    }

    /// What became of the delta that let keys go: whatever this term proposed before a delta that is applied is applied as well, or
    /// never will be.
    async fn find_out(&self) -> Result<(), StoreError> {
        let rows = vec![RowChange::remove(SPLITS, Vec::new())]; // there is no such row
        let nothing = Draft { rows, ..Draft::default() };
        let failed = |_| problem("the leader changes while keys are handed over");
        self.leader.commit(self.leader.term(), nothing).await.map_err(failed)?;
        self.load_given().await?;
        self.given.settled();
        Ok(())
    }

    /// Directories that nothing is left in go, as after a removal.
    async fn tidy(&self, order: &SplitOrder, handful: &Handful) {
        let mut last = None;
        for (item, place) in
            handful.items.iter().filter(|item| matches!(item, MovedItem::File { .. })).zip(&handful.entries)
        {
            let (MovedItem::File { key, .. }, Some(directory)) = (item, place.first_chunk::<16>()) else { continue };
            let directory = kiseki_types::ids::DirId(*directory);
            if directory == order.root || last == Some(directory) {
                continue;
            }
            last = Some(directory);
            let (namespace, root) = (order.namespace, order.root);
            let path = crate::message::ObjectPath { namespace, root, key: key.clone() };
            if let Err(error) = self.remove_empty_directories(&path, directory).await {
                warn!(shard = %self.shard(), %error, "empty directories of keys that moved are left");
                return;
            }
        }
    }

    async fn ask_child(&self, child: ShardId, request: SplitRequest) -> Result<SplitAnswer, StoreError> {
        match self.calls.shard(child, ShardRequest::Split(Box::new(request))).await? {
            ShardResponse::Split(answer) => Ok(answer),
            _ => Err(problem("the child answers something else")),
        }
    }
}

impl Handful {
    fn size(&self) -> (i64, i64) {
        self.items.iter().fold((0, 0), |(keys, bytes), item| match item {
            MovedItem::File { file, .. } => (keys + 1, bytes + file.len_bytes as i64),
            _ => (keys, bytes),
        })
    }
}

/// Bytes of a directory's row but for its name.
const DIRECTORY_ROW_LEN: usize = 96;

/// At most so many bytes of rows does a thing cost one delta, here or there.
fn rows_len(item: &MovedItem) -> usize {
    let row = match item {
        // The child may have to make every directory of the key.
        MovedItem::File { key, file } => {
            3 * key.len() + DIRECTORY_ROW_LEN * split_key(key).directories.len() + file.encode().len()
        }
        MovedItem::Upload { key, entry, .. } => 2 * key.len() + entry.encode().len(),
        MovedItem::Part { entry, .. } => PartEntry::encode(entry).len(),
    };
    row + item.pages().len() * 32 + 128
}

/// Has the homes of chunks know that a shard may name them (I-C2).
pub(crate) async fn adopt(
    calls: &crate::calls::Calls,
    shard: ShardId,
    names: impl Iterator<Item = ChunkName>,
) -> Result<(), StoreError> {
    let mut by_home = BTreeMap::<ShardId, BTreeSet<ChunkName>>::new();
    for name in names {
        by_home.entry(calls.home_of(&name.locator)).or_default().insert(name);
    }
    let mut asked = Vec::new();
    for (home, names) in by_home {
        let names: Vec<ChunkName> = names.into_iter().collect();
        for names in names.chunks(ADOPTED_PER_CALL) {
            let request = HomeRequest::Adopt { shard, names: names.to_vec() };
            asked.push(calls.home(home, request));
        }
    }
    for answer in futures::future::join_all(asked).await {
        match answer? {
            HomeResponse::Unknown(names) if names.is_empty() => {}
            HomeResponse::Unknown(_) => return Err(problem("a chunk is being collected; try again")),
            _ => return Err(problem("a home answers something else")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::composition::FileEntry;

    #[test]
    fn i_o5_a_key_counts_with_every_directory_that_the_child_may_have_to_make() {
        let file = FileEntry {
            len_bytes: 0,
            modified_unix_ms: 0,
            etag: String::new(),
            attributes: Default::default(),
            part_lens_bytes: Vec::new(),
            pages: Vec::new(),
        };
        let key = format!("k{}", "/".repeat(1000));
        let rows = rows_len(&MovedItem::File { key, file });
        assert!(rows > 64 * 1000 && rows < KEY_ROWS_LEN_BYTES_MAX, "{rows} bytes for a thousand rows");
        let most = ROWS_LEN_BYTES_MAX.max(rows) / DIRECTORY_ROW_LEN;
        assert!(most < crate::delta::ROWS_PER_DELTA_MAX, "{most} rows of one handful");
    }
}
