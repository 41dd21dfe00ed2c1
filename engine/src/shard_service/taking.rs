//! The shard that keys move to: takes pages and what they make, before anybody asks it for them (I-L6).
//!
//! What it takes is nobody's until the giver's delta says so, so the calls may be late, or never followed by that delta: each
//! handover has a number, one with a lower number is refused, and the first call of one clears what an earlier one left.

use super::{ShardService, counted, drop_file, drop_pages, namespace_latch};
use crate::api::StoreError;
use crate::composition::{Entry, Page, PartEntry};
use crate::delta::{ChunkName, RowChange};
use crate::key_ranges::{KeyRange, is_below};
use crate::latch::Hold;
use crate::leader::{CommitError, Draft, row_damaged, table_failed};
use crate::machine::count_of;
use crate::message::ShardResponse;
use crate::names::{entry_key, split_key};
use crate::shard_tables::{
    CLOSED, ENTRIES, LOOSE, PAGES, PARTS, TAKEN, UPLOADS, decode_attempt, encode_attempt, page_key, part_key,
    upload_key,
};
use crate::split_message::{Attempt, Handover, MovedItem, SplitAnswer, SplitRequest};
use crate::walk::Walk;
use kiseki_types::ids::{DirId, NamespaceId, PageId, PinEpoch};
use kiseki_types::runtime::RuntimeExt;
use std::collections::{BTreeMap, BTreeSet};

/// Objects that one delta clears.
const CLEARED_MAX: usize = 64;

/// Rows after which it clears no further object.
const CLEARED_ROWS_MAX: usize = 4096;

impl ShardService {
    pub(super) async fn handle_split(&self, request: SplitRequest) -> Result<ShardResponse, StoreError> {
        let answer = match request {
            SplitRequest::Standing => SplitAnswer::Standing(Box::new(self.standing().await?)),
            SplitRequest::Choose { namespace } => {
                self.leader.barrier().await?;
                SplitAnswer::Point(self.load.middle(namespace).filter(|(of, at)| self.may_begin_at(*of, at)))
            }
            SplitRequest::Begin(order) => SplitAnswer::State(self.begin_split(order).await?),
            SplitRequest::TakePages { namespace, pin_epoch, pages } => {
                self.take_pages(namespace, pin_epoch, &pages).await?;
                SplitAnswer::Done
            }
            SplitRequest::Take(handover) => {
                self.take(&handover).await?;
                SplitAnswer::Done
            }
            SplitRequest::CountOf(names) => {
                self.leader.barrier().await?;
                let tables = self.leader.tables();
                let counts = names.iter().map(|name| count_of(*name, &*tables));
                SplitAnswer::Counts(futures::future::try_join_all(counts).await.map_err(table_failed)?)
            }
            SplitRequest::Close { namespace, root, from, until, token } => {
                SplitAnswer::Given(self.close_part(namespace, root, &from, until.as_deref(), token).await?)
            }
            SplitRequest::Open { namespace, root, token } => {
                self.open_part(namespace, root, token).await?;
                SplitAnswer::Done
            }
            SplitRequest::Purge { namespace, root } => {
                self.purge(namespace, root).await?;
                SplitAnswer::Done
            }
        };
        Ok(ShardResponse::Split(answer))
    }

    /// Pages of what will be taken. Their chunks were adopted for this shard in the epoch that is stated (I-C2).
    async fn take_pages(
        &self,
        namespace: NamespaceId,
        pin_epoch: PinEpoch,
        pages: &[(PageId, Page)],
    ) -> Result<(), StoreError> {
        self.decide(async |term| {
            let mut draft = Draft { namespace, pin_epoch, ..Draft::default() };
            let mut added = BTreeMap::<ChunkName, u32>::new();
            for (id, page) in pages {
                draft.rows.push(RowChange::put(PAGES, page_key(*id), page.encode()));
                draft.rows.push(RowChange::put(LOOSE, page_key(*id), Vec::new()));
                for (name, count) in counted(page) {
                    *added.entry(name).or_default() += count;
                }
            }
            draft.added = added.into_iter().collect();
            self.leader.commit(term, draft).await
        })
        .await?;
        // As with pages of writers: they are given up when nobody has named them for long.
        let now = self.leader.ports().now();
        pages.iter().for_each(|(_, page)| self.loose.borrow_mut().touch(page.composition, now));
        Ok(())
    }

    async fn take(&self, handover: &Handover) -> Result<(), StoreError> {
        self.decide(async |term| {
            let _guard = self.leader.latches.hold(namespace_latch(handover.root), Hold::Exclusive).await;
            self.check_attempt(handover).await?;
            self.check_open(handover.namespace).await?;
            // In order, as whoever gives loose pages up takes them.
            let ids: BTreeSet<PageId> =
                handover.items.iter().flat_map(|item| item.pages().iter().map(|page| page.page)).collect();
            let mut loose = Vec::with_capacity(ids.len());
            for page in &ids {
                loose.push(self.leader.latches.hold(page_key(*page), Hold::Exclusive).await);
            }
            let mut draft = Draft { namespace: handover.namespace, ..Draft::default() };
            let mut left = true;
            while handover.follows.is_none() && left {
                let mut clearing = Draft { namespace: handover.namespace, ..Draft::default() };
                left = self.clear(handover, &mut clearing).await?;
                if !clearing.rows.is_empty() {
                    self.leader.commit(term, clearing).await?;
                }
            }
            for page in &ids {
                if self.leader.row(LOOSE, &page_key(*page)).await?.is_none() {
                    let reason = "pages that were handed over have been given up meanwhile".to_owned();
                    return Err(StoreError::Unavailable { reason }.into());
                }
                draft.rows.push(RowChange::remove(LOOSE, page_key(*page)));
            }
            self.place(handover, &mut draft).await?;
            let attempt = handover.namespace.0.to_be_bytes().to_vec();
            draft.rows.push(RowChange::put(TAKEN, attempt, encode_attempt(handover.attempt)));
            self.leader.commit(term, draft).await
        })
        .await?;
        for item in &handover.items {
            if let MovedItem::File { file, .. } = item {
                self.load.change(1, file.len_bytes as i64);
            }
        }
        Ok(())
    }

    /// A call that a later handover has overtaken, or that does not follow on its own, changes nothing.
    async fn check_attempt(&self, handover: &Handover) -> Result<(), StoreError> {
        let row = self.leader.row(TAKEN, &handover.namespace.0.to_be_bytes()).await?;
        let last: Attempt = row.map_or(Ok(Attempt::default()), |row| decode_attempt(&row)).map_err(row_damaged)?;
        let fits = match handover.follows {
            None => last < handover.attempt,
            Some(before) => last == before && last < handover.attempt,
        };
        match fits {
            true => Ok(()),
            false => Err(StoreError::Invalid { what: "a later handover of these keys has begun".to_owned() }),
        }
    }

    /// Removes some of what a handover that failed has left of these keys; whether there may be more.
    async fn clear(&self, handover: &Handover, draft: &mut Draft) -> Result<bool, StoreError> {
        let (start, end) = (handover.start.as_str(), handover.end.as_deref());
        let range = (start, end);
        let (files, more_files) = self.files_to_clear(handover.root, range, draft).await?;
        self.load.change(-files, 0);
        self.wake_if(files > 0);
        if files > 0 {
            return Ok(true); // uploads have a delta of their own
        }
        let (uploads, more_uploads) = self.uploads_to_clear(handover.namespace, range, draft).await?;
        self.wake_if(uploads > 0);
        Ok(more_files || more_uploads)
    }

    async fn files_to_clear(
        &self,
        root: DirId,
        (start, end): (&str, Option<&str>),
        draft: &mut Draft,
    ) -> Result<(i64, bool), StoreError> {
        let mut walk = Walk::new(self.leader.tables(), root);
        walk.seek(start);
        let mut cleared = 0;
        while let Some((key, file)) = walk.next().await? {
            if !is_below(&key, end) {
                break;
            }
            if cleared == CLEARED_MAX || draft.rows.len() > CLEARED_ROWS_MAX {
                return Ok((cleared as i64, true));
            }
            draft.rows.push(RowChange::remove(ENTRIES, walk.place().to_vec()));
            drop_file(Some(&file), draft);
            cleared += 1;
        }
        Ok((cleared as i64, false))
    }

    async fn uploads_to_clear(
        &self,
        namespace: NamespaceId,
        (start, end): (&str, Option<&str>),
        draft: &mut Draft,
    ) -> Result<(i64, bool), StoreError> {
        let found = self.uploads_between(namespace, start, end, CLEARED_MAX + 1).await?;
        let mut cleared = 0;
        for (key, upload, _) in &found {
            // The first may have very many parts, and fits alone.
            if draft.rows.len() > CLEARED_ROWS_MAX / 8 {
                break;
            }
            draft.rows.push(RowChange::remove(UPLOADS, upload_key(namespace, key, *upload)));
            for (part, entry) in self.parts(*upload, 0, crate::composition::PARTS_MAX).await? {
                draft.rows.push(RowChange::remove(PARTS, part_key(*upload, part)));
                drop_pages(&entry.pages, draft);
            }
            cleared += 1;
        }
        Ok((cleared, found.len() as i64 > cleared))
    }

    /// Rows of what is taken, and of the directories that it needs.
    async fn place(&self, handover: &Handover, draft: &mut Draft) -> Result<(), StoreError> {
        let mut made = BTreeMap::<Vec<u8>, DirId>::new();
        for item in &handover.items {
            match item {
                MovedItem::File { key, file } => {
                    let path = split_key(key);
                    let mut directory = handover.root;
                    for name in path.directories {
                        directory =
                            self.directory(entry_key(directory, name), directory, name, &mut made, draft).await?;
                    }
                    let row = Entry::File(file.clone()).encode();
                    draft.rows.push(RowChange::put(ENTRIES, entry_key(directory, path.name), row));
                    draft.added_bytes += file.len_bytes;
                }
                MovedItem::Upload { key, upload, entry } => {
                    let row = upload_key(handover.namespace, key, *upload);
                    draft.rows.push(RowChange::put(UPLOADS, row, entry.encode()));
                }
                MovedItem::Part { upload, part, entry } => {
                    draft.rows.push(RowChange::put(PARTS, part_key(*upload, *part), PartEntry::encode(entry)));
                }
            }
        }
        Ok(())
    }

    async fn directory(
        &self,
        key: Vec<u8>,
        parent: DirId,
        name: &str,
        made: &mut BTreeMap<Vec<u8>, DirId>,
        draft: &mut Draft,
    ) -> Result<DirId, StoreError> {
        if let Some(id) = made.get(&key) {
            return Ok(*id);
        }
        if let Some(Entry::Directory { id, .. }) = self.entry(parent, name).await? {
            made.insert(key, id);
            return Ok(id);
        }
        let id = DirId(self.leader.ports().random());
        let entry = Entry::Directory { id, shard: self.shard() };
        draft.rows.push(RowChange::put(ENTRIES, key.clone(), entry.encode()));
        made.insert(key, id);
        Ok(id)
    }

    /// Takes no objects of a namespace any more, if there are none among these keys; where the others lie. The giver is closed
    /// before it is asked of whom it gave to, so that nothing slips from one to the other in between.
    async fn close_part(
        &self,
        namespace: NamespaceId,
        root: DirId,
        from: &str,
        until: Option<&str>,
        token: [u8; 16],
    ) -> Result<Vec<KeyRange>, StoreError> {
        self.decide(async |term| {
            let _guard = self.leader.latches.hold(namespace_latch(root), Hold::Exclusive).await;
            self.check_known()?;
            let mut walk = Walk::new(self.leader.tables(), root);
            walk.seek(from);
            if walk.next().await?.is_some_and(|(key, _)| is_below(&key, until)) {
                return Err(StoreError::BucketNotEmpty.into());
            }
            let mut draft = Draft { namespace, ..Draft::default() };
            draft.rows.push(RowChange::put(CLOSED, namespace.0.to_be_bytes().to_vec(), token.to_vec()));
            self.leader.commit(term, draft).await
        })
        .await?;
        Ok(self.given.all_of(namespace))
    }

    async fn open_part(&self, namespace: NamespaceId, root: DirId, token: [u8; 16]) -> Result<(), StoreError> {
        self.decide(async |term| {
            let _guard = self.leader.latches.hold(namespace_latch(root), Hold::Exclusive).await;
            let key = namespace.0.to_be_bytes().to_vec();
            if self.leader.row(CLOSED, &key).await?.is_none_or(|by| by != token) {
                return Ok(());
            }
            let mut draft = Draft { namespace, ..Draft::default() };
            draft.rows.push(RowChange::remove(CLOSED, key));
            self.leader.commit(term, draft).await
        })
        .await
    }

    /// What is left of a namespace that is closed and empty everywhere: uploads, and what was taken and never became ours.
    async fn purge(&self, namespace: NamespaceId, root: DirId) -> Result<(), StoreError> {
        loop {
            let more = self
                .decide(async |term| {
                    let _guard = self.leader.latches.hold(namespace_latch(root), Hold::Exclusive).await;
                    if self.leader.row(CLOSED, &namespace.0.to_be_bytes()).await?.is_none() {
                        return Err(CommitError::Store(StoreError::Invalid {
                            what: "the bucket is not being deleted".to_owned(),
                        }));
                    }
                    let mut draft = Draft { namespace, ..Draft::default() };
                    let (files, more) = self.files_to_clear(root, ("", None), &mut draft).await?;
                    if files > 0 {
                        self.leader.commit(term, draft).await?;
                        self.load.change(-files, 0);
                    }
                    Ok(more)
                })
                .await?;
            if !more {
                break;
            }
        }
        self.wake_if(true);
        self.forget_split_of(namespace, root).await?;
        self.abort_uploads_of(namespace, root).await
    }
}
