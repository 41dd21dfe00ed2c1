//! What a shard's leader does in the background: lets the counts of dropped pages fall, tells homes of generations that
//! the shard names no more, and closes pin epochs so that fences can be forgotten.

use super::{ShardService, counted};
use crate::api::StoreError;
use crate::composition::Page;
use crate::delta::{ChunkName, Command, Outcome, REFERENCES_PER_DELTA_MAX, RowChange};
use crate::latch::Hold;
use crate::leader::{Draft, row_damaged};
use crate::machine::{CANDIDATES, COUNTS_FILE, FENCES, FENCES_FORGOTTEN_MAX};
use crate::message::{Collected, HomeRequest, HomeResponse};
use crate::shard_tables::{DROPPED, LOOSE, PAGES, page_key};
use futures::StreamExt;
use futures::channel::oneshot;
use futures::future::{Either, select};
use kiseki_types::ids::PageId;
use kiseki_types::runtime::{Instant, RuntimeExt};
use kiseki_types::table::{Direction, Scan, prefix_end};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;
use std::time::Duration;
use tracing::warn;

/// Pages whose counts fall in one delta.
const PAGES_PER_DELTA: usize = 16;

/// Candidates that one round asks about.
const CANDIDATES_PER_ROUND: usize = 256;

/// Candidates that are collected at once. Each takes several commits of several groups, one after the other: singly, what is
/// written over by many clients would be freed more slowly than it comes.
const COLLECTED_AT_ONCE: usize = 16;

/// Time between rounds when nobody wakes the task: what was busy is asked again.
const ROUND_INTERVAL: Duration = Duration::from_secs(2);

/// How long the loose pages of earlier terms are left to their writers: they may be at work on another node.
const LOOSE_GRACE: Duration = Duration::from_secs(3600);

/// Loose pages that one scan notes.
const LOOSE_SCAN: usize = 1024;

const _: () = assert!(PAGES_PER_DELTA * crate::composition::PAGE_REFERENCES_MAX <= REFERENCES_PER_DELTA_MAX);

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

/// What waits, and what was done: gauges and counters of one shard.
#[derive(Default)]
pub struct ShardBacklog {
    /// Pages whose counts have fallen.
    pub pages_dropped: Cell<u64>,
    /// Generations that were freed.
    pub generations_freed: Cell<u64>,
    /// Pages or candidates that the last round left for the next one.
    pub waiting: Cell<u64>,
    /// Rounds that ended with an error and will be tried again.
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

impl ShardService {
    /// Counters of the background work.
    #[must_use]
    pub fn backlog(&self) -> &ShardBacklog {
        &self.backlog
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
        if writers_are_gone {
            while self.abandon_loose().await? {}
        } else {
            self.abandon_loose_later().await?;
        }
        let service = Rc::downgrade(self);
        let ports = self.leader.ports().clone();
        let wake = self.wake.clone();
        let task = async move {
            loop {
                {
                    let Some(service) = service.upgrade() else { return };
                    wake.pending.set(false);
                    if let Err(error) = service.round().await {
                        service.backlog.failed_rounds.set(service.backlog.failed_rounds.get() + 1);
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
        Ok(())
    }

    /// Abandons some of the loose pages; whether there may be more.
    async fn abandon_loose(&self) -> Result<bool, StoreError> {
        self.leader.barrier().await?;
        let loose = self.leader.rows(LOOSE, &[], PAGES_PER_DELTA * 64).await?;
        let pages: Vec<PageId> = loose.iter().map(|(key, _)| page_of(key)).collect::<Result<_, _>>()?;
        self.abandon(&pages).await?;
        Ok(!pages.is_empty())
    }

    /// Abandons those pages that are loose now and still are in [`LOOSE_GRACE`].
    async fn abandon_loose_later(self: &Rc<Self>) -> Result<(), StoreError> {
        let mut then = BTreeSet::new();
        let mut from = Bound::Unbounded;
        loop {
            let rows = self.scan_from(crate::machine::ROWS_FILE, LOOSE, from, LOOSE_SCAN).await?;
            let Some((last, _)) = rows.last() else { break };
            from = Bound::Excluded(last.clone());
            for (key, _) in &rows {
                then.insert(page_of(key)?);
            }
        }
        if then.is_empty() {
            return Ok(());
        }
        let (service, ports) = (Rc::downgrade(self), self.leader.ports().clone());
        let task = async move {
            ports.sleep(LOOSE_GRACE).await;
            let pages: Vec<PageId> = then.into_iter().collect();
            while let Some(service) = service.upgrade() {
                match service.abandon(&pages).await {
                    Ok(()) => return,
                    Err(error) => {
                        warn!(shard = %service.shard(), %error, "loose pages could not be given up; tried again");
                    }
                }
                drop(service);
                ports.sleep(ROUND_INTERVAL).await;
            }
        };
        self.background.repeat("loose pages", Box::pin(task));
        Ok(())
    }

    /// Loose pages whose writer is gone are dropped.
    pub(super) async fn abandon(&self, pages: &[PageId]) -> Result<(), StoreError> {
        // I-C2: pages of several writers may be among these, and any of them may be the one that stands for its writer. In order,
        // so that nobody waits in a circle.
        let mut loose = Vec::new();
        for page in pages.iter().copied().collect::<BTreeSet<_>>() {
            loose.push(self.leader.latches.hold(page_key(page), Hold::Exclusive).await);
        }
        for pages in pages.chunks(PAGES_PER_DELTA * 64) {
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
        let held = self.drop_pages_that_wait().await?;
        let busy = self.settle_candidates().await?;
        self.backlog.waiting.set(held + busy);
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
        self.backlog.epochs_closed.set(self.backlog.epochs_closed.get() + 1);
        loop {
            // The first closes the epochs below; where it could not forget all their fences, the same goes on with them.
            let Outcome::Done { count } = self.leader.propose(&Command::ClosePinEpochs(epoch)).await? else {
                return Ok(());
            };
            self.backlog.fences_forgotten.set(self.backlog.fences_forgotten.get() + count);
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
            let mut pages = Vec::with_capacity(rows.len());
            for (key, _) in &rows {
                let id = page_of(key)?;
                if let Some(bytes) = self.leader.row(PAGES, key).await? {
                    pages.push((id, Page::decode(&bytes).map_err(row_damaged)?));
                }
            }
            held += self.drop_batch(&pages).await?;
        }
    }

    async fn drop_batch(&self, pages: &[(PageId, Page)]) -> Result<u64, StoreError> {
        // Seen free and counted up in one step, see `open_read`.
        let free: Vec<&(PageId, Page)> = pages.iter().filter(|(id, _)| !self.is_held(*id)).collect();
        self.pages_vanished.set(self.pages_vanished.get() + 1);
        free.iter().for_each(|(id, _)| drop(self.open_pages.borrow_mut().remove(id))); // readers that are gone
        if free.is_empty() {
            return Ok(pages.len() as u64);
        }
        let mut counts = BTreeMap::<ChunkName, u32>::new();
        let mut rows = Vec::new();
        for (id, page) in &free {
            rows.push(RowChange::remove(PAGES, page_key(*id)));
            rows.push(RowChange::remove(DROPPED, page_key(*id)));
            for (name, count) in counted(page) {
                *counts.entry(name).or_default() += count;
            }
        }
        let dropped: Vec<_> = counts.into_iter().collect();
        self.decide(async |term| {
            let draft = Draft { dropped: dropped.clone(), rows: rows.clone(), ..Draft::default() };
            self.leader.commit(term, draft).await
        })
        .await?;
        self.backlog.pages_dropped.set(self.backlog.pages_dropped.get() + free.len() as u64);
        Ok((pages.len() - free.len()) as u64)
    }

    /// Asks the homes of all candidates to collect them; how many have to wait.
    async fn settle_candidates(&self) -> Result<u64, StoreError> {
        let mut busy = 0;
        let mut from = Bound::Unbounded;
        loop {
            let rows = self.scan_from(COUNTS_FILE, CANDIDATES, from, CANDIDATES_PER_ROUND).await?;
            let Some((last, _)) = rows.last() else { return Ok(busy) };
            from = Bound::Excluded(last.clone());
            let names = rows.iter().map(|(key, _)| ChunkName::from_key(key).map_err(row_damaged));
            let names = names.collect::<Result<Vec<_>, _>>()?;
            let settling = futures::stream::iter(names).map(|name| self.settle_candidate(name));
            // All of them come to an end, whatever becomes of one.
            for outcome in settling.buffer_unordered(COLLECTED_AT_ONCE).collect::<Vec<_>>().await {
                busy += u64::from(outcome? == Collected::Busy);
            }
        }
    }

    /// Asks the home of a candidate to collect it, and forgets it unless it is busy.
    async fn settle_candidate(&self, name: ChunkName) -> Result<Collected, StoreError> {
        let home = self.calls.home_of(&name.locator);
        let HomeResponse::Collected(outcome) = self.calls.home(home, HomeRequest::Collect(name)).await? else {
            panic!("a home answers Collect with Collected");
        };
        if outcome != Collected::Busy {
            let freed = u64::from(outcome == Collected::Freed);
            self.backlog.generations_freed.set(self.backlog.generations_freed.get() + freed);
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
