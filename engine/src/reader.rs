//! A read in progress: finds the pages of a range, reads chunks ahead, hands out plaintext in order.

use crate::api::{ObjectInfo, ObjectReader, StoreError, StoreFuture};
use crate::chunk_read::read_chunk;
use crate::composition::{ChunkReference, FileEntry, Page};
use crate::core::Core;
use crate::keyring::TenantKeys;
use crate::keys::{DekUnwrapper, KekEpoch, KeyError, WrapScope};
use crate::message::{ReadId, ShardRequest, ShardResponse};
use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc;
use kiseki_types::ids::{PageId, ShardId, TenantId};
use kiseki_types::request;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use tracing::warn;

/// Chunks that one stream reads ahead.
const READ_AHEAD_CHUNKS: usize = 2;

/// An object as its shard opened it.
pub struct OpenedObject {
    /// The shard.
    pub shard: ShardId,
    /// The read that it holds the pages for.
    pub read: ReadId,
    /// The entry.
    pub file: FileEntry,
    /// Its first page, if it has any.
    pub first: Option<Page>,
}

/// Bytes of one chunk, or of inline content, that are on their way.
struct Ahead {
    /// In their order; no more of them than a chunk has.
    parts: mpsc::UnboundedReceiver<Result<Bytes, StoreError>>,
    left_bytes: u64,
}

/// A read in progress. Its pages can't be collected before it is dropped.
pub struct Reader {
    core: Rc<Core>,
    shard: ShardId,
    read: ReadId,
    tenant: TenantId,
    keys: Rc<TenantKeys>,
    info: ObjectInfo,
    file: FileEntry,
    /// The page that is being read: its index, where it starts in the object, and its content.
    page: Option<(usize, u64, Rc<Page>)>,
    /// Next chunk of that page, and where it starts in the object.
    next_chunk: (usize, u64),
    range: Range<u64>,
    /// Where the next read-ahead starts.
    planned: u64,
    ahead: VecDeque<Ahead>,
    /// Whether its shard keeps pages for this read.
    is_held: bool,
}

impl Reader {
    /// Of an object that its shard has opened.
    #[must_use]
    pub fn new(core: Rc<Core>, tenant: TenantId, keys: Rc<TenantKeys>, key: String, opened: OpenedObject) -> Reader {
        let OpenedObject { shard, read, file, first } = opened;
        let (info, range) = (file.info(key), 0..file.len_bytes);
        let is_held = !file.is_all_of(first.as_ref());
        let page = first.map(|page| (0, 0, Rc::new(page)));
        let (next_chunk, planned, ahead) = ((0, 0), 0, VecDeque::new());
        Reader { core, shard, read, tenant, keys, info, file, page, next_chunk, range, planned, ahead, is_held }
    }

    /// Loads the page that holds `offset`, unless it is there.
    async fn load_page(&mut self, offset: u64) -> Result<(), StoreError> {
        let mut start = 0;
        for (index, reference) in self.file.pages.iter().enumerate() {
            let end = start + reference.len_bytes;
            if offset < end {
                if !matches!(&self.page, Some((loaded, _, _)) if *loaded == index) {
                    let page = self.fetch_page(reference.page).await?;
                    self.page = Some((index, start, Rc::new(page)));
                    self.next_chunk = (0, start);
                }
                return Ok(());
            }
            start = end;
        }
        let reason = format!("an object of {} bytes has pages for {start}", self.file.len_bytes);
        Err(StoreError::Damaged { reason })
    }

    async fn fetch_page(&self, page: PageId) -> Result<Page, StoreError> {
        match self.core.calls.shard(self.shard, ShardRequest::ReadPage { page, read: Some(self.read) }).await? {
            ShardResponse::Page(page) => Ok(page),
            _ => panic!("a shard answers ReadPage with Page"),
        }
    }

    /// Starts the read of the chunk that holds the next planned byte.
    async fn plan(&mut self) -> Result<(), StoreError> {
        self.load_page(self.planned).await?;
        let (_, begins, page) = self.page.clone().expect("just loaded");
        if let Some(inline) = &page.inline {
            return self.hand_out(begins, inline.open(&self.keys.kek, self.scope(&page)));
        }
        let (mut index, mut start) = self.next_chunk;
        let reference = loop {
            let reference = page.references.get(index).ok_or_else(|| StoreError::Damaged {
                reason: "a page holds fewer bytes than its composition says".to_owned(),
            })?;
            index += 1;
            let end = start + u64::from(reference.len_bytes);
            if self.planned < end {
                break reference.clone();
            }
            start = end;
        };
        let end = start + u64::from(reference.len_bytes);
        let wanted = (self.planned - start) as u32..(self.range.end.min(end) - start) as u32;
        self.next_chunk = (index, end);
        self.planned = self.range.end.min(end);
        self.launch(&page, reference, wanted)
    }

    /// Of inline content, which begins at `start` of the object, what of it is to be read.
    fn hand_out(&mut self, start: u64, opened: Result<Vec<u8>, KeyError>) -> Result<(), StoreError> {
        let content = opened.map_err(|error| StoreError::Damaged { reason: error.to_string() })?;
        let end = start + content.len() as u64;
        if !(start..end).contains(&self.planned) {
            let reason = "a page holds less content than its composition says".to_owned();
            return Err(StoreError::Damaged { reason });
        }
        let wanted = (self.planned - start) as usize..(self.range.end.min(end) - start) as usize;
        self.planned = self.range.end.min(end);
        let (sender, parts) = mpsc::unbounded();
        self.ahead.push_back(Ahead { parts, left_bytes: wanted.len() as u64 });
        let _ = sender.unbounded_send(Ok(Bytes::from(content).slice(wanted))); // the receiver is here
        Ok(())
    }

    fn scope(&self, page: &Page) -> WrapScope {
        let kek_epoch = KekEpoch(page.kek_epoch);
        WrapScope { tenant: self.tenant, kek_epoch, composition: page.composition, attempt: page.wrap_salt }
    }

    fn launch(&mut self, page: &Page, reference: ChunkReference, wanted: Range<u32>) -> Result<(), StoreError> {
        let dek = DekUnwrapper::new(&self.keys.kek, self.scope(page)).unwrap(&reference.chunk, &reference.wrapped_dek);
        let dek = dek.map_err(|error| StoreError::Damaged { reason: error.to_string() })?;
        let (sender, parts) = mpsc::unbounded();
        self.ahead.push_back(Ahead { parts, left_bytes: wanted.len() as u64 });
        let core = self.core.clone();
        let task = async move {
            // Who reads may have gone.
            let hand_out = |part| drop(sender.unbounded_send(Ok(part)));
            if let Err(error) = read_chunk(&core, &reference, &dek, wanted, hand_out).await {
                let _ = sender.unbounded_send(Err(error));
            }
        };
        let task = request::within(request::current(), Box::pin(task));
        self.core.ports.spawn("read chunk", Box::pin(task));
        Ok(())
    }
}

impl ObjectReader for Reader {
    fn info(&self) -> &ObjectInfo {
        &self.info
    }

    fn seek(&mut self, range: Range<u64>) {
        assert!(range.start <= range.end && range.end <= self.file.len_bytes, "range {range:?} of an object");
        assert!(self.ahead.is_empty(), "seek comes before the first next");
        self.planned = range.start;
        self.range = range;
        self.next_chunk = (0, self.page.as_ref().map_or(0, |(_, start, _)| *start));
    }

    fn next(&mut self) -> StoreFuture<'_, Option<Bytes>> {
        Box::pin(async move {
            while self.ahead.len() <= READ_AHEAD_CHUNKS && self.planned < self.range.end {
                self.plan().await?;
            }
            let Some(oldest) = self.ahead.front_mut() else { return Ok(None) };
            let stopping = || StoreError::Unavailable { reason: "the node is stopping".to_owned() };
            let part = oldest.parts.next().await.ok_or_else(stopping)??;
            oldest.left_bytes -= part.len() as u64;
            if oldest.left_bytes == 0 {
                self.ahead.pop_front();
            }
            Ok(Some(part))
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let (core, shard, read) = (self.core.clone(), self.shard, Some(self.read));
        let pages: Vec<PageId> = self.file.pages.iter().map(|page| page.page).collect();
        if pages.is_empty() || !self.is_held {
            return;
        }
        let task = async move {
            if let Err(error) = core.calls.shard(shard, ShardRequest::CloseRead { pages, read }).await {
                warn!(%error, "a finished read could not be closed; its pages stay until the next start");
            }
        };
        self.core.background.finish("close read", task);
    }
}
