//! The leader of a tenant's shard: decides every change of names under latches, and proposes it as one delta.

use crate::api::{Condition, ListPage, ObjectInfo, StoreError};
use crate::background::Background;
use crate::calls::Calls;
use crate::composition::{Entry, FileEntry, Page, PageReference, attributes_fit};
use crate::core::Core;
use crate::delta::{ChunkName, Command, Outcome, RowChange};
use crate::inline::{InlinePolicy, InlineRate};
use crate::latch::{Hold, LatchGuard};
use crate::leader::{CommitError, DECISIONS_MAX, Draft, Leader, row_damaged, table_failed};
use crate::machine::current_epoch;
use crate::message::{Clip, ObjectPath, ReadId, ShardRequest, ShardResponse, WrittenPages};
use crate::names::{entry_bound, entry_key, split_key};
use crate::nodes::NodeBoard;
use crate::shard_tables::{CLOSED, DROPPED, ENTRIES, LOOSE, PAGES, page_key};
use crate::split_message::SplitCeilings;
use crate::walk;
use kiseki_types::ids::{DirId, NamespaceId, PageId, PinEpoch, RequestId, ShardId, Term};
use kiseki_types::runtime::RuntimeExt;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

mod given;
mod giving;
mod housekeeping;
mod load;
mod once;
mod open_reads;
mod taking;
mod thresholds;
mod uploads;

pub(crate) use giving::adopt;
pub use housekeeping::CollectionCounters;
use open_reads::OpenReads;

/// One tenant's shard on the core that leads it.
pub struct ShardService {
    leader: Leader,
    /// Pages that readers have open: their counts don't fall until the readers are done.
    open_reads: RefCell<OpenReads>,
    nodes: Rc<NodeBoard>,
    /// Times that housekeeping has begun to remove pages.
    pages_vanished: Cell<u64>,
    calls: Calls,
    wake: Rc<housekeeping::Wake>,
    /// Pages or candidates that the last round left for the next one.
    waiting: Cell<u64>,
    counters: Rc<CollectionCounters>,
    /// Closes pin epochs.
    epochs: housekeeping::EpochClock,
    /// Which writers of loose pages are gone.
    loose: RefCell<housekeeping::LooseClock>,
    background: Rc<Background>,
    /// Keys that lie elsewhere by now.
    given: given::Given,
    giving: giving::Giving,
    load: load::Load,
    /// What small content may lie in pages.
    inline: Rc<InlinePolicy>,
    inline_rate: InlineRate,
    thresholds: thresholds::Thresholds,
}

/// A path whose directories are latched and known, and what stands at its end.
struct Located {
    /// Keeps the namespace open, and the key here.
    _namespace: LatchGuard,
    /// Keeps the directories and the entry as they are.
    _guards: Vec<LatchGuard>,
    /// Innermost directory.
    directory: DirId,
    /// Rows that make the directories that are missing.
    new_directories: Vec<RowChange>,
    /// Table key of the entry.
    key: Vec<u8>,
    /// What is there now.
    current: Option<FileEntry>,
}

impl ShardService {
    /// Takes the leader's part of a shard.
    #[must_use]
    pub fn new(
        leader: Leader,
        core: &Core,
        background: Rc<Background>,
        pin_epoch_age: Duration,
        ceilings: SplitCeilings,
    ) -> Rc<ShardService> {
        let epochs = housekeeping::EpochClock::new(pin_epoch_age, leader.ports().now());
        let loose = RefCell::new(housekeeping::LooseClock::new(leader.ports().now()));
        let thresholds = thresholds::Thresholds::new(leader.ports().now());
        Rc::new(ShardService {
            leader,
            open_reads: RefCell::default(),
            nodes: core.nodes.clone(),
            pages_vanished: Cell::default(),
            calls: core.calls.clone(),
            wake: Rc::default(),
            waiting: Cell::default(),
            counters: core.collection_counters.clone(),
            epochs,
            loose,
            background,
            given: given::Given::default(),
            giving: giving::Giving::new(ceilings),
            load: load::Load::default(),
            inline: core.inline.clone(),
            inline_rate: InlineRate::default(),
            thresholds,
        })
    }

    /// Which shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.leader.shard()
    }

    /// Answers a request; `once` is the one that a change carries out.
    async fn answer(&self, request: ShardRequest, once: Option<RequestId>) -> Result<ShardResponse, StoreError> {
        if let Some(refusal) = self.refusal(&request) {
            return Ok(refusal);
        }
        match request {
            ShardRequest::PinEpoch => self.pin_epoch().await.map(ShardResponse::PinEpoch),
            ShardRequest::PutLoosePage { namespace, pin_epoch, id, page } => {
                self.put_loose_page(once, namespace, pin_epoch, id, &page).await?;
                Ok(ShardResponse::Count(0))
            }
            ShardRequest::AbandonPages(pages) => {
                self.abandon(&pages).await?;
                Ok(ShardResponse::Count(0))
            }
            ShardRequest::PutEntry { path, condition, file, written } => {
                self.put_entry(once, &path, &condition, file, written).await.map(ShardResponse::Object)
            }
            ShardRequest::Head(path) => {
                self.load.read(path.namespace, &path.key);
                let file = self.file(&path).await?;
                Ok(ShardResponse::Object(file.info(path.key)))
            }
            ShardRequest::OpenRead { path, read } => self.open_read(&path, read).await,
            ShardRequest::ReadPage { page, read } => {
                self.open_reads.borrow_mut().touch(read, page, self.leader.ports().now());
                self.page(page).await.map(ShardResponse::Page)
            }
            ShardRequest::CloseRead { pages, read } => {
                self.open_reads.borrow_mut().close(read, &pages);
                Ok(ShardResponse::Count(0))
            }
            ShardRequest::Delete { path, condition } => {
                self.delete(once, &path, &condition).await.map(ShardResponse::Deleted)
            }
            ShardRequest::List { namespace, root, clip, request } => loop {
                self.leader.barrier().await?;
                if namespace == NamespaceId(0) && self.given.count() > 0 {
                    // An earlier release lists without saying which keys it means, and would take what is here for all.
                    let reason = "the bucket lies in several shards, which this node does not know: update it";
                    return Err(StoreError::Unavailable { reason: reason.to_owned() });
                }
                self.check_all_here(namespace, &clip)?;
                let page: ListPage = walk::list(self.leader.tables(), root, &clip, &request).await?;
                if self.were_here(namespace, &clip).await? {
                    return Ok(ShardResponse::Listing(page));
                }
            },
            ShardRequest::Split(request) => self.handle_split(*request).await,
            ShardRequest::Inline(request) => self.handle_inline(request).await,
            ShardRequest::CloseNamespace { namespace, root } => {
                self.close_namespace(namespace, root).await?;
                Ok(ShardResponse::Count(0))
            }
            ShardRequest::Fence(name) => self.fence(name).await.map(ShardResponse::Count),
            ShardRequest::Unfence(name) => {
                self.leader.propose(&Command::Unfence(name)).await?;
                Ok(ShardResponse::Count(0))
            }
            uploads => self.handle_upload(uploads, once).await,
        }
    }

    async fn pin_epoch(&self) -> Result<PinEpoch, StoreError> {
        self.leader.barrier().await?;
        current_epoch(&*self.leader.tables()).await.map_err(table_failed)
    }

    /// The file at a path, by a linearizable read.
    async fn file(&self, path: &ObjectPath) -> Result<FileEntry, StoreError> {
        loop {
            self.leader.barrier().await?;
            self.check_here(path)?;
            match self.find(path).await {
                // What was found was here; what was not found may have left meanwhile.
                Err(StoreError::NoSuchKey) if !self.were_here(path.namespace, &Clip::of_key(&path.key)).await? => {}
                found => return found,
            }
        }
    }

    async fn find(&self, path: &ObjectPath) -> Result<FileEntry, StoreError> {
        let parts = split_key(&path.key);
        let mut directory = path.root;
        for name in parts.directories {
            match self.entry(directory, name).await? {
                Some(Entry::Directory { id, .. }) => directory = id,
                _ => return Err(StoreError::NoSuchKey),
            }
        }
        match self.entry(directory, parts.name).await? {
            Some(Entry::File(file)) => Ok(file),
            _ => Err(StoreError::NoSuchKey),
        }
    }

    async fn entry(&self, directory: DirId, name: &str) -> Result<Option<Entry>, StoreError> {
        let row = self.leader.row(ENTRIES, &entry_key(directory, name)).await?;
        row.map(|bytes| Entry::decode(&bytes).map_err(row_damaged)).transpose()
    }

    /// Latches the directories of a path (shared) and its entry (exclusive), from the root down, so that nobody waits
    /// in a circle. Where a directory is missing its entry is latched exclusively and rows that make it are returned:
    /// what lies below has an id that nobody else knows, so it needs no latch.
    ///
    /// - `namespace`: what [`ShardService::enter`] gave; it is held as long as the result.
    async fn locate(&self, path: &ObjectPath, namespace: LatchGuard) -> Result<Located, StoreError> {
        let parts = split_key(&path.key);
        'again: loop {
            let mut guards = Vec::with_capacity(parts.directories.len() + 1);
            let mut directory = path.root;
            let mut new_directories = Vec::new();
            for name in &parts.directories {
                let key = entry_key(directory, name);
                if new_directories.is_empty() {
                    let guard = self.leader.latches.hold(key.clone(), Hold::Shared).await;
                    if let Some(Entry::Directory { id, .. }) = self.entry(directory, name).await? {
                        guards.push(guard);
                        directory = id;
                        continue;
                    }
                    drop(guard);
                    let guard = self.leader.latches.hold(key.clone(), Hold::Exclusive).await;
                    if self.entry(directory, name).await?.is_some() {
                        continue 'again; // made in between
                    }
                    guards.push(guard);
                }
                let id = DirId(self.leader.ports().random());
                let entry = Entry::Directory { id, shard: self.shard() };
                new_directories.push(RowChange::put(ENTRIES, key, entry.encode()));
                directory = id;
            }
            let key = entry_key(directory, parts.name);
            let mut current = None;
            if new_directories.is_empty() {
                guards.push(self.leader.latches.hold(key.clone(), Hold::Exclusive).await);
                current = match self.entry(directory, parts.name).await? {
                    Some(Entry::File(file)) => Some(file),
                    Some(Entry::Directory { .. }) => {
                        return Err(StoreError::Damaged {
                            reason: "a directory stands under a file's name".to_owned(),
                        });
                    }
                    None => None,
                };
            }
            return Ok(Located { _namespace: namespace, _guards: guards, directory, new_directories, key, current });
        }
    }

    async fn put_loose_page(
        &self,
        request: Option<RequestId>,
        namespace: NamespaceId,
        pin_epoch: PinEpoch,
        id: PageId,
        page: &Page,
    ) -> Result<(), StoreError> {
        self.loose.borrow_mut().touch(page.composition, self.leader.ports().now());
        self.decide(async |term| {
            let rows = vec![
                RowChange::put(PAGES, page_key(id), page.encode()),
                RowChange::put(LOOSE, page_key(id), Vec::new()),
            ];
            let draft = Draft { namespace, pin_epoch, added: counted(page), rows, request, ..Draft::default() };
            self.leader.commit(term, draft).await
        })
        .await
    }

    async fn put_entry(
        &self,
        request: Option<RequestId>,
        path: &ObjectPath,
        condition: &Condition,
        file: FileEntry,
        written: WrittenPages,
    ) -> Result<ObjectInfo, StoreError> {
        check_attributes(&file)?;
        self.load.wrote(path.namespace, &path.key);
        self.decide(async |term| {
            let located = self.locate(path, self.enter(path).await?).await?;
            check_condition(condition, located.current.as_ref())?;
            self.check_open(path.namespace).await?;
            let _loose = self.latch_loose(&written.loose).await;
            let mut draft = Draft { request, ..self.draft_of(path.namespace, &written).await? };
            draft.added_bytes = file.len_bytes;
            drop_file(located.current.as_ref(), &mut draft);
            draft.rows.extend(located.new_directories.iter().cloned());
            draft.rows.push(RowChange::put(ENTRIES, located.key.clone(), Entry::File(file.clone()).encode()));
            self.leader.commit(term, draft).await?;
            self.named(located.current.as_ref(), Some(&file));
            self.wake_if(located.current.is_some()); // its pages are dropped
            Ok(file.info(path.key.clone()))
        })
        .await
    }

    /// An entry has changed: counts what is here.
    fn named(&self, before: Option<&FileEntry>, after: Option<&FileEntry>) {
        let size = |file: Option<&FileEntry>| file.map_or((0, 0), |file| (1, file.len_bytes as i64));
        let ((keys_before, bytes_before), (keys, bytes)) = (size(before), size(after));
        self.load.change(keys - keys_before, bytes - bytes_before);
    }

    /// I-C2: loose pages are named or given up, never both. A client that goes away gives them up while the delta that names
    /// them may still be on its way to the log. The first page stands for all of a writer.
    async fn latch_loose(&self, pages: &[PageId]) -> Option<LatchGuard> {
        let first = pages.first()?;
        Some(self.leader.latches.hold(page_key(*first), Hold::Exclusive).await)
    }

    /// The part of a draft that a writer's pages make: the last page is put and counted, the loose ones are loose no
    /// more. Loose pages that are gone mean that the writer was taken for dead.
    async fn draft_of(&self, namespace: NamespaceId, written: &WrittenPages) -> Result<Draft, StoreError> {
        let mut draft = Draft { namespace, pin_epoch: written.pin_epoch, ..Draft::default() };
        for page in &written.loose {
            if self.leader.row(LOOSE, &page_key(*page)).await?.is_none() {
                return Err(StoreError::Unavailable { reason: "the upload was given up; send it again".to_owned() });
            }
            draft.rows.push(RowChange::remove(LOOSE, page_key(*page)));
        }
        if let Some((id, page)) = &written.last {
            draft.rows.push(RowChange::put(PAGES, page_key(*id), page.encode()));
            draft.added = counted(page);
        }
        Ok(draft)
    }

    async fn delete(
        &self,
        request: Option<RequestId>,
        path: &ObjectPath,
        condition: &Condition,
    ) -> Result<bool, StoreError> {
        self.load.wrote(path.namespace, &path.key);
        let deleted = self
            .decide(async |term| {
                let located = self.locate(path, self.enter(path).await?).await?;
                check_condition(condition, located.current.as_ref())?;
                let Some(file) = &located.current else { return Ok(None) };
                let mut draft = Draft { namespace: path.namespace, request, ..Draft::default() };
                drop_file(Some(file), &mut draft);
                draft.rows.push(RowChange::remove(ENTRIES, located.key.clone()));
                self.leader.commit(term, draft).await?;
                self.named(Some(file), None);
                Ok(Some(located.directory))
            })
            .await?;
        self.wake_if(deleted.is_some());
        if let Some(directory) = deleted.filter(|directory| *directory != path.root) {
            self.remove_empty_directories(path, directory).await?;
        }
        Ok(deleted.is_some())
    }

    /// Removes the implicit directories of a path that hold nothing any more, innermost first. A listing shows no
    /// empty one anyway, so a crash in between harms nothing.
    async fn remove_empty_directories(&self, path: &ObjectPath, innermost: DirId) -> Result<(), StoreError> {
        let names = split_key(&path.key).directories;
        let mut directory = innermost;
        for depth in (0..names.len()).rev() {
            if !self.is_empty(directory).await? {
                return Ok(());
            }
            let Some(parent) = self.remove_if_empty(path, &names[..=depth], directory).await? else { return Ok(()) };
            directory = parent;
        }
        Ok(())
    }

    /// Removes one directory if it is empty; its parent when it was removed.
    async fn remove_if_empty(
        &self,
        path: &ObjectPath,
        names: &[&str],
        expected: DirId,
    ) -> Result<Option<DirId>, StoreError> {
        self.decide(async |term| {
            let (last, above) = names.split_last().expect("at least one name");
            let mut guards = vec![self.leader.latches.hold(namespace_latch(path.root), Hold::Shared).await];
            let mut parent = path.root;
            for name in above {
                guards.push(self.leader.latches.hold(entry_key(parent, name), Hold::Shared).await);
                match self.entry(parent, name).await? {
                    Some(Entry::Directory { id, .. }) => parent = id,
                    _ => return Ok(None),
                }
            }
            let key = entry_key(parent, last);
            guards.push(self.leader.latches.hold(key.clone(), Hold::Exclusive).await);
            match self.entry(parent, last).await? {
                Some(Entry::Directory { id, .. }) if id == expected => {}
                _ => return Ok(None),
            }
            if !self.is_empty(expected).await? {
                return Ok(None);
            }
            let mut draft = Draft { namespace: path.namespace, ..Draft::default() };
            draft.rows.push(RowChange::remove(ENTRIES, key));
            self.leader.commit(term, draft).await?;
            Ok(Some(parent))
        })
        .await
    }

    async fn is_empty(&self, directory: DirId) -> Result<bool, StoreError> {
        Ok(self.leader.rows(ENTRIES, &entry_bound(directory, &[]), 1).await?.is_empty())
    }

    async fn close_namespace(&self, namespace: NamespaceId, root: DirId) -> Result<(), StoreError> {
        self.decide(async |term| {
            let _guard = self.leader.latches.hold(namespace_latch(root), Hold::Exclusive).await;
            // Whoever deletes a bucket that lies in several shards has the control shard close them.
            self.check_known()?;
            self.check_all_here(namespace, &Clip::default())?;
            if walk::Walk::new(self.leader.tables(), root).next().await?.is_some() {
                return Err(StoreError::BucketNotEmpty.into());
            }
            let mut draft = Draft { namespace, ..Draft::default() };
            draft.rows.push(RowChange::put(CLOSED, namespace.0.to_be_bytes().to_vec(), Vec::new()));
            self.leader.commit(term, draft).await
        })
        .await?;
        self.abort_uploads_of(namespace, root).await
    }

    async fn check_open(&self, namespace: NamespaceId) -> Result<(), StoreError> {
        match self.leader.row(CLOSED, &namespace.0.to_be_bytes()).await? {
            None => Ok(()),
            Some(by) if by.is_empty() => Err(StoreError::NoSuchBucket),
            // Whether it goes is known when all shards that hold keys of it are closed.
            Some(_) => Err(StoreError::Unavailable { reason: "the bucket is being deleted; try again".to_owned() }),
        }
    }

    async fn open_read(&self, path: &ObjectPath, read: Option<ReadId>) -> Result<ShardResponse, StoreError> {
        self.load.read(path.namespace, &path.key);
        // A page vanishes only after housekeeping has seen that nobody holds it and has counted that up, in one step.
        // So when the count stands still from before the read of the entry until the hold, the pages are all there.
        let file = loop {
            let vanished = self.pages_vanished.get();
            let file = self.file(path).await?;
            if self.pages_vanished.get() == vanished {
                let pages = file.pages.iter().map(|page| page.page).collect();
                self.open_reads.borrow_mut().open(read, pages, self.leader.ports().now());
                break file;
            }
        };
        let first = match file.pages.first() {
            None => None,
            Some(reference) => match self.page(reference.page).await {
                Ok(page) => Some(page),
                Err(error) => {
                    let pages: Vec<PageId> = file.pages.iter().map(|page| page.page).collect();
                    self.open_reads.borrow_mut().close(read, &pages);
                    return Err(error);
                }
            },
        };
        if file.is_all_of(first.as_ref()) {
            let pages: Vec<PageId> = file.pages.iter().map(|page| page.page).collect();
            self.open_reads.borrow_mut().close(read, &pages); // the reader has everything
        }
        Ok(ShardResponse::Opened { file, first })
    }

    async fn page(&self, id: PageId) -> Result<Page, StoreError> {
        match self.leader.row(PAGES, &page_key(id)).await? {
            Some(bytes) => Page::decode(&bytes).map_err(row_damaged),
            None => Err(StoreError::Damaged { reason: format!("page {id} is missing") }),
        }
    }

    async fn fence(&self, name: ChunkName) -> Result<u64, StoreError> {
        match self.leader.propose(&Command::Fence(name)).await? {
            Outcome::Done { count } => Ok(count),
            other => Err(StoreError::Unavailable { reason: format!("the fence was refused: {other:?}") }),
        }
    }

    /// Decides and commits, again when the term changed in between.
    async fn decide<T>(&self, decision: impl AsyncFn(Term) -> Result<T, CommitError>) -> Result<T, StoreError> {
        for _ in 0..DECISIONS_MAX {
            let term = self.leader.barrier().await?;
            match decision(term).await {
                Ok(result) => return Ok(result),
                Err(CommitError::Again) => {}
                Err(CommitError::Store(error)) => return Err(error),
                Err(CommitError::Fenced(_) | CommitError::EpochClosed) => {
                    let reason = "a chunk was collected while it was written; send the object again".to_owned();
                    return Err(StoreError::Unavailable { reason });
                }
            }
        }
        Err(StoreError::Unsettled { reason: "the leader changes too often; try again".to_owned() })
    }
}

/// Latch of a whole namespace: shared by every change of a name, exclusive to close it.
fn namespace_latch(root: DirId) -> Vec<u8> {
    root.0.to_vec()
}

/// References of a page, counted by generation.
fn counted(page: &Page) -> Vec<(ChunkName, u32)> {
    let mut counts = BTreeMap::<ChunkName, u32>::new();
    for reference in &page.references {
        *counts.entry(reference.name()).or_default() += 1;
    }
    counts.into_iter().collect()
}

/// The pages of a file that is replaced or removed: no name reaches them, their counts fall later.
fn drop_file(file: Option<&FileEntry>, draft: &mut Draft) {
    let Some(file) = file else { return };
    draft.dropped_bytes += file.len_bytes;
    drop_pages(&file.pages, draft);
}

fn drop_pages(pages: &[PageReference], draft: &mut Draft) {
    draft.rows.extend(pages.iter().map(|page| RowChange::put(DROPPED, page_key(page.page), Vec::new())));
}

fn check_attributes(file: &FileEntry) -> Result<(), StoreError> {
    match attributes_fit(&file.attributes) {
        true => Ok(()),
        false => Err(StoreError::TooLarge { what: "the object's metadata".to_owned() }),
    }
}

fn check_condition(condition: &Condition, current: Option<&FileEntry>) -> Result<(), StoreError> {
    let holds = match (condition, current) {
        (Condition::None, _) | (Condition::IfAbsent | Condition::IfNoneMatch(_), None) => true,
        (Condition::IfAbsent, Some(_)) => false,
        (Condition::IfMatch(_), None) => return Err(StoreError::NoSuchKey),
        (Condition::IfMatch(etag), Some(file)) => etag == "*" || *etag == file.etag,
        (Condition::IfNoneMatch(etag), Some(file)) => etag != "*" && *etag != file.etag,
    };
    match holds {
        true => Ok(()),
        false => Err(StoreError::PreconditionFailed),
    }
}
