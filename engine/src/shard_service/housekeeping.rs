//! What a shard's leader does in the background: lets the counts of dropped pages fall, tells homes of generations that
//! the shard names no more, and closes pin epochs so that fences can be forgotten.

use super::{ShardService, counted};
use crate::api::StoreError;
use crate::composition::{PAGE_REFERENCES_MAX, Page};
use crate::delta::{ChunkName, Command, Outcome, REFERENCES_PER_DELTA_MAX, RowChange};
use crate::latch::Hold;
use crate::leader::{Draft, row_damaged};
use crate::machine::{CANDIDATES, COUNTS_FILE, FENCES, FENCES_FORGOTTEN_MAX};
use crate::message::{Collected, HomeRequest, HomeResponse};
use crate::shard_tables::{DROPPED, LOOSE, PAGES, page_key};
use futures::StreamExt;
use futures::channel::oneshot;
use futures::future::{Either, select};
use kiseki_types::ids::{CompositionId, PageId, ShardId};
use kiseki_types::runtime::{Instant, RuntimeExt};
use kiseki_types::table::{Direction, Scan, prefix_end};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;
use std::time::Duration;
use tracing::{info, warn};

/// Pages that one delta removes; fewer where their counts are many.
const PAGES_PER_DELTA: usize = 256;

/// Pages that change hands between *loose* and *dropped* in one delta.
const LOOSE_PER_DELTA: usize = 1024;

/// Candidates that one round asks about.
const CANDIDATES_PER_ROUND: usize = 256;

/// Candidates that are collected at once. Each takes several commits of several groups, one after the other: singly, what is
/// written over by many clients would be freed more slowly than it comes.
const COLLECTED_AT_ONCE: usize = 16;

/// Time between rounds when nobody wakes the task: what was busy is asked again.
const ROUND_INTERVAL: Duration = Duration::from_secs(2);

/// How long loose pages are left to a writer that puts no other: it may be at work on another node. One that gets bytes puts a page
/// every few minutes. Also between two looks for such pages.
const LOOSE_GRACE: Duration = Duration::from_secs(3600);

/// Loose pages that one scan notes.
const LOOSE_SCAN: usize = 1024;

/// Writers of loose pages that are remembered; with more all get their time anew (I-O5).
const LOOSE_WRITERS_MAX: usize = 65_536;

const _: () = assert!(PAGE_REFERENCES_MAX <= REFERENCES_PER_DELTA_MAX);

/// Lets changes wake the background task at once.
#[derive(Default)]
pub struct Wake {
    pending: Cell<bool>,
    sleeper: RefCell<Option<oneshot::Sender<()>>>,
}

impl Wake {
    fn wake(&self) {
        self.pending.set(true);
        if let Some(sleeper) = self.sleeper.take() {
            let _ = sleeper.send(());
        }
    }
}

/// What the tenants' shards of a core have done behind the answers since the node started, in terms that are over too: counters.
#[derive(Default)]
pub struct CollectionCounters {
    /// Pages whose counts have fallen.
    pub pages_dropped: Cell<u64>,
    /// Generations that were freed.
    pub generations_freed: Cell<u64>,
    /// Rounds with an error, whose rest will be tried again.
    pub failed_rounds: Cell<u64>,
    /// Pin epochs closed.
    pub epochs_closed: Cell<u64>,
    /// Fences forgotten with them.
    pub fences_forgotten: Cell<u64>,
}

/// When the next pin epoch is closed. A clock decides only how soon fences are forgotten and how long a writer may sit
/// on its pins; that no fenced generation is named, the shard decides by epochs alone (I-C2).
pub(super) struct EpochClock {
    age: Duration,
    last_closed: Cell<Instant>,
}

impl EpochClock {
    pub(super) fn new(age: Duration, now: Instant) -> EpochClock {
        EpochClock { age, last_closed: Cell::new(now) }
    }
}

/// When writers put loose pages. A clock decides only how soon they are given up: pages are named or given up, never both (I-C2).
pub(super) struct LooseClock {
    /// Writers that are not listed have put none since.
    since: Instant,
    touched: BTreeMap<CompositionId, Instant>,
}

impl LooseClock {
    pub(super) fn new(now: Instant) -> LooseClock {
        LooseClock { since: now, touched: BTreeMap::new() }
    }

    /// A writer puts a loose page.
    pub(super) fn touch(&mut self, writer: CompositionId, now: Instant) {
        if self.touched.len() >= LOOSE_WRITERS_MAX && !self.touched.contains_key(&writer) {
            self.touched.clear();
            self.since = now;
        }
        self.touched.insert(writer, now);
    }

    fn is_gone(&self, writer: &CompositionId, now: Instant) -> bool {
        now.since(*self.touched.get(writer).unwrap_or(&self.since)) >= LOOSE_GRACE
    }

    /// Forgets those that are gone: they have put none since an earlier time too.
    fn prune(&mut self, now: Instant) {
        self.touched.retain(|_, touched| now.since(*touched) < LOOSE_GRACE);
    }
}

impl ShardService {
    /// Pages or candidates that the last round left for the next one.
    #[must_use]
    pub fn waiting_for_collection(&self) -> u64 {
        self.waiting.get()
    }

    pub(super) fn wake_if(&self, dropped: bool) {
        if dropped {
            self.wake.wake();
        }
    }

    /// What a leader does before it takes requests. Pages that no name reaches belong to writers, which are gone with the
    /// node that is alone, and get their time to name them where they may be on another node.
    pub async fn start(self: &Rc<Self>, writers_are_gone: bool) -> Result<(), StoreError> {
        self.leader.barrier().await?;
        self.load_given().await?;
        self.load_threshold().await?;
        self.leader.requests.load(&*self.leader.tables()).await?;
        if writers_are_gone {
            while self.abandon_loose().await? {}
        }
        self.sweep_loose_forever();
        let service = Rc::downgrade(self);
        let ports = self.leader.ports().clone();
        let wake = self.wake.clone();
        let task = async move {
            loop {
                {
                    let Some(service) = service.upgrade() else { return };
                    wake.pending.set(false);
                    // By itself: whatever else fails, directories must not fill.
                    if let Err(error) = service.lower_threshold_when_due().await {
                        warn!(shard = %service.shard(), %error, "the inline threshold can't be looked after; tried again");
                    }
                    if let Err(error) = service.round().await {
                        service.counters.failed_rounds.set(service.counters.failed_rounds.get() + 1);
                        warn!(shard = %service.shard(), %error, "background work of a shard failed; it is tried again");
                    }
                }
                if !wake.pending.get() {
                    let (sender, receiver) = oneshot::channel();
                    wake.sleeper.replace(Some(sender));
                    match select(receiver, ports.sleep(ROUND_INTERVAL)).await {
                        Either::Left(_) | Either::Right(_) => {}
                    }
                }
            }
        };
        self.background.repeat("shard housekeeping", Box::pin(task));
        self.start_giving();
        Ok(())
    }

    /// Abandons some of the loose pages; whether there may be more.
    async fn abandon_loose(&self) -> Result<bool, StoreError> {
        self.leader.barrier().await?;
        let loose = self.leader.rows(LOOSE, &[], LOOSE_PER_DELTA).await?;
        let pages: Vec<PageId> = loose.iter().map(|(key, _)| page_of(key)).collect::<Result<_, _>>()?;
        self.abandon(&pages).await?;
        Ok(!pages.is_empty())
    }

    /// Gives up the pages of writers that went down with their nodes, now and then.
    fn sweep_loose_forever(self: &Rc<Self>) {
        let (service, ports) = (Rc::downgrade(self), self.leader.ports().clone());
        let task = async move {
            let mut pause = LOOSE_GRACE;
            loop {
                ports.sleep(pause).await;
                let Some(service) = service.upgrade() else { return };
                pause = match service.sweep_loose().await {
                    Ok(()) => LOOSE_GRACE,
                    Err(error) => {
                        warn!(shard = %service.shard(), %error, "loose pages could not be given up; tried again");
                        ROUND_INTERVAL
                    }
                };
            }
        };
        self.background.repeat("loose pages", Box::pin(task));
    }

    /// Abandons the loose pages of writers that have put none for [`LOOSE_GRACE`].
    async fn sweep_loose(&self) -> Result<(), StoreError> {
        if self.nodes.is_alone() {
            return Ok(()); // its writers give up themselves what they don't name
        }
        self.leader.barrier().await?;
        let mut writers = BTreeMap::<CompositionId, Vec<PageId>>::new();
        let mut from = Bound::Unbounded;
        loop {
            let rows = self.scan_from(crate::machine::ROWS_FILE, LOOSE, from, LOOSE_SCAN).await?;
            let Some((last, _)) = rows.last() else { break };
            from = Bound::Excluded(last.clone());
            for (key, _) in &rows {
                if let Some(bytes) = self.leader.row(PAGES, key).await? {
                    let page = Page::decode(&bytes).map_err(row_damaged)?;
                    writers.entry(page.composition).or_default().push(page_of(key)?);
                }
            }
        }
        // I-C2: of a writer that is gone by now all pages were seen, so among them the one that stands for it.
        let now = self.leader.ports().now();
        self.loose.borrow_mut().prune(now);
        writers.retain(|writer, _| self.loose.borrow().is_gone(writer, now));
        let pages: Vec<PageId> = writers.into_values().flatten().collect();
        if pages.is_empty() {
            return Ok(());
        }
        info!(shard = %self.shard(), pages = pages.len(), "pages are given up whose writers are gone");
        self.abandon(&pages).await
    }

    /// Loose pages whose writer is gone are dropped.
    pub(super) async fn abandon(&self, pages: &[PageId]) -> Result<(), StoreError> {
        // I-C2: pages of several writers may be among these, and any of them may be the one that stands for its writer. In order,
        // so that nobody waits in a circle.
        let mut loose = Vec::new();
        for page in pages.iter().copied().collect::<BTreeSet<_>>() {
            loose.push(self.leader.latches.hold(page_key(page), Hold::Exclusive).await);
        }
        for pages in pages.chunks(LOOSE_PER_DELTA) {
            self.decide(async |term| {
                let mut draft = Draft::default();
                for page in pages {
                    if self.leader.row(LOOSE, &page_key(*page)).await?.is_some() {
                        draft.rows.push(RowChange::remove(LOOSE, page_key(*page)));
                        draft.rows.push(RowChange::put(DROPPED, page_key(*page), Vec::new()));
                    }
                }
                self.leader.commit(term, draft).await
            })
            .await?;
        }
        drop(loose);
        self.wake_if(!pages.is_empty());
        Ok(())
    }

    async fn round(&self) -> Result<(), StoreError> {
        if !self.nodes.is_alone() {
            self.open_reads.borrow_mut().let_silent_go(self.leader.ports().now());
        }
        let held = self.drop_pages_that_wait().await?;
        let busy = self.settle_candidates().await?;
        self.waiting.set(held + busy);
        self.count_on().await?;
        self.close_epochs_when_due().await
    }

    /// Closes the pin epochs below the current one when they have been open long enough and there is a fence to forget.
    async fn close_epochs_when_due(&self) -> Result<(), StoreError> {
        let now = self.leader.ports().now();
        if now.since(self.epochs.last_closed.get()) < self.epochs.age {
            return Ok(());
        }
        let fence = self.scan_from(COUNTS_FILE, FENCES, Bound::Unbounded, 1).await?;
        if fence.is_empty() {
            return Ok(());
        }
        let epoch = self.pin_epoch().await?;
        self.epochs.last_closed.set(now);
        self.counters.epochs_closed.set(self.counters.epochs_closed.get() + 1);
        loop {
            // The first closes the epochs below; where it could not forget all their fences, the same goes on with them.
            let Outcome::Done { count } = self.leader.propose(&Command::ClosePinEpochs(epoch)).await? else {
                return Ok(());
            };
            self.counters.fences_forgotten.set(self.counters.fences_forgotten.get() + count);
            if count < FENCES_FORGOTTEN_MAX as u64 {
                return Ok(());
            }
        }
    }

    /// Lets the counts of all dropped pages fall but those that readers hold; how many those are.
    async fn drop_pages_that_wait(&self) -> Result<u64, StoreError> {
        let mut held = 0;
        let mut from = Bound::Unbounded;
        loop {
            self.leader.barrier().await?;
            let rows = self.scan_from(crate::machine::ROWS_FILE, DROPPED, from, PAGES_PER_DELTA).await?;
            let Some((last, _)) = rows.last() else { return Ok(held) };
            from = Bound::Excluded(last.clone());
            let (mut pages, mut references) = (Vec::new(), 0);
            for (key, _) in &rows {
                let id = page_of(key)?;
                let Some(bytes) = self.leader.row(PAGES, key).await? else { continue };
                // What it counts is all that is kept of it: some pages hold content.
                let counts = counted(&Page::decode(&bytes).map_err(row_damaged)?);
                if references + counts.len() > REFERENCES_PER_DELTA_MAX {
                    held += self.drop_batch(&std::mem::take(&mut pages)).await?;
                    references = 0;
                }
                references += counts.len();
                pages.push((id, counts));
            }
            held += self.drop_batch(&pages).await?;
        }
    }

    async fn drop_batch(&self, pages: &[(PageId, Vec<(ChunkName, u32)>)]) -> Result<u64, StoreError> {
        // Seen free and counted up in one step, see `open_read`.
        let free: Vec<_> = pages.iter().filter(|(id, _)| !self.open_reads.borrow().holds(*id)).collect();
        self.pages_vanished.set(self.pages_vanished.get() + 1);
        if free.is_empty() {
            return Ok(pages.len() as u64);
        }
        let mut counts = BTreeMap::<ChunkName, u32>::new();
        let mut rows = Vec::new();
        for (id, counted) in &free {
            rows.push(RowChange::remove(PAGES, page_key(*id)));
            rows.push(RowChange::remove(DROPPED, page_key(*id)));
            for (name, count) in counted {
                *counts.entry(*name).or_default() += count;
            }
        }
        let dropped: Vec<_> = counts.into_iter().collect();
        self.decide(async |term| {
            let draft = Draft { dropped: dropped.clone(), rows: rows.clone(), ..Draft::default() };
            self.leader.commit(term, draft).await
        })
        .await?;
        self.counters.pages_dropped.set(self.counters.pages_dropped.get() + free.len() as u64);
        Ok((pages.len() - free.len()) as u64)
    }

    /// Asks the homes of all candidates to collect them; how many have to wait. A home that does not answer is asked no more in
    /// this round, and keeps nothing waiting that is another's.
    async fn settle_candidates(&self) -> Result<u64, StoreError> {
        let mut busy = 0;
        let silent = RefCell::new(BTreeSet::new());
        let mut from = Bound::Unbounded;
        loop {
            let rows = self.scan_from(COUNTS_FILE, CANDIDATES, from, CANDIDATES_PER_ROUND).await?;
            let Some((last, _)) = rows.last() else { break };
            from = Bound::Excluded(last.clone());
            let names = rows.iter().map(|(key, _)| ChunkName::from_key(key).map_err(row_damaged));
            let names = names.collect::<Result<Vec<_>, _>>()?;
            let settling = futures::stream::iter(names).map(|name| self.settle_candidate(name, &silent));
            // All of them come to an end, whatever becomes of one.
            for outcome in settling.buffer_unordered(COLLECTED_AT_ONCE).collect::<Vec<_>>().await {
                busy += u64::from(outcome? == Collected::Busy);
            }
        }
        if !silent.borrow().is_empty() {
            self.counters.failed_rounds.set(self.counters.failed_rounds.get() + 1);
        }
        Ok(busy)
    }

    /// Asks the home of a candidate to collect it, and forgets it unless it is busy. One that is among the `silent` homes, or
    /// joins them, is busy.
    async fn settle_candidate(
        &self,
        name: ChunkName,
        silent: &RefCell<BTreeSet<ShardId>>,
    ) -> Result<Collected, StoreError> {
        let home = self.calls.home_of(&name.locator);
        if silent.borrow().contains(&home) {
            return Ok(Collected::Busy);
        }
        let outcome = match self.calls.home(home, HomeRequest::Collect(name)).await {
            Ok(HomeResponse::Collected(outcome)) => outcome,
            Ok(_) => panic!("a home answers Collect with Collected"),
            Err(error) => {
                if silent.borrow_mut().insert(home) {
                    warn!(shard = %self.shard(), %home, %error, "a home does not collect; it is asked again");
                }
                return Ok(Collected::Busy);
            }
        };
        if outcome != Collected::Busy {
            let freed = u64::from(outcome == Collected::Freed);
            self.counters.generations_freed.set(self.counters.generations_freed.get() + freed);
            self.leader.propose(&Command::ForgetCandidate(name)).await?;
        }
        Ok(outcome)
    }

    async fn scan_from(
        &self,
        file: u8,
        table: u8,
        from: Bound<Vec<u8>>,
        limit: usize,
    ) -> Result<Vec<kiseki_types::table::Row>, StoreError> {
        let scan = Scan { file, table, from, to: prefix_end(&[]), limit, direction: Direction::Forward };
        self.leader.scan(scan).await
    }
}

fn page_of(key: &[u8]) -> Result<PageId, StoreError> {
    let bytes = key.try_into();
    bytes.map(PageId).map_err(|_| StoreError::Damaged { reason: "a page's key is not well formed".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i_o5_a_writer_is_gone_an_hour_after_its_last_page_and_with_too_many_all_get_their_time_anew() {
        let writer = |number: u32| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_be_bytes());
            CompositionId(id)
        };
        let at = |seconds: u64| Instant(0) + Duration::from_secs(seconds);
        let mut clock = LooseClock::new(at(0));
        clock.touch(writer(1), at(100));
        assert!(!clock.is_gone(&writer(1), at(3699)) && clock.is_gone(&writer(1), at(3700)));
        assert!(!clock.is_gone(&writer(2), at(3599)) && clock.is_gone(&writer(2), at(3600)), "of an earlier term");
        clock.prune(at(3700));
        assert!(clock.touched.is_empty() && clock.is_gone(&writer(1), at(3700)));
        (0..LOOSE_WRITERS_MAX as u32).for_each(|number| clock.touch(writer(number), at(4000)));
        clock.touch(writer(u32::MAX), at(7500));
        assert_eq!(clock.touched.len(), 1, "I-O5");
        assert!(!clock.is_gone(&writer(1), at(11_000)), "it may have put one just before");
    }
}
