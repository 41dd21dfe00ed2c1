//! A write in progress: cuts the stream, keeps a few chunks in flight, gathers references in pages, and ends in one
//! naming delta.

use crate::api::{FinishWrite, ObjectInfo, ObjectWriter, StoreError, StoreFuture};
use crate::chunk_write::{ChunkFailure, StoredChunk, WriteScope, chunk_buffer, store_chunk};
use crate::chunker::{Chunker, Cutter};
use crate::composition::{ChunkReference, FileEntry, PAGE_REFERENCES_MAX, Page, PageReference, PartEntry};
use crate::core::{Core, DataCounters, MOVES_FOLLOWED_MAX};
use crate::delta::ChunkName;
use crate::envelope::envelope_len;
use crate::inline::InlineContent;
use crate::inline_threshold::THRESHOLD_LEN_BYTES;
use crate::key_ranges::KeyRange;
use crate::keys::DekWrapper;
use crate::message::{HomeRequest, ObjectPath, PinId, ShardRequest, ShardResponse, WrittenPages};
use crate::shard_service::adopt;
use crate::split_message::SplitRequest;
use crate::stages::Stage;
use crate::stripe::padded_len;
use crate::wire::{INLINE_VERSION, ROOM_VERSION};
use crate::write_budget::{Grant, TURN_WAIT_MAX};
use bytes::Bytes;
use futures::channel::oneshot;
use kiseki_types::buf::IoBuf;
use kiseki_types::fragment::StripeShape;
use kiseki_types::ids::{CompositionId, PageId, PinEpoch, RequestId, ShardId, UploadId};
use kiseki_types::limits::CHUNK_LEN_BYTES_MAX;
use kiseki_types::request;
use kiseki_types::runtime::{Instant, RuntimeExt};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use tracing::warn;

/// Chunks of one stream between cut and durable. With the largest chunk that bounds a stream's memory to 20 MiB.
const CHUNKS_IN_FLIGHT_MAX: usize = 4;

/// Times that content that lies inline is in memory while it is named.
const INLINE_COPIES: usize = 5;

/// Bytes that are searched for a cut at once, so that no task holds its core for long.
const SLICE_LEN_BYTES: usize = 256 * 1024;

/// Times that a pin epoch is asked for while a page is filled: then it is committed as it is. A home gives up pins that nobody ends for
/// long, and those of an earlier term after one age of a pin epoch, which is ten of these times.
const PAGE_AGE_REFRESHES: u32 = 3;

/// What the bytes become.
pub enum Target {
    /// An object.
    Object,
    /// A part of an upload.
    Part {
        /// Which upload.
        upload: UploadId,
        /// Which part.
        part: u16,
    },
}

type Pins = Vec<(ChunkName, PinId)>;

/// A write in progress. Dropped before its end it gives everything back.
pub struct Writer {
    core: Rc<Core>,
    scope: Rc<WriteScope>,
    /// Who holds the key and the loose pages: another shard than that of the scope once the key has moved.
    holder: ShardId,
    path: ObjectPath,
    target: Target,
    chunker: Rc<Chunker>,
    cutter: Cutter,
    /// The chunk that is being filled.
    filling: Option<IoBuf>,
    /// Its memory, from the first byte of the stream to the last.
    filling_grant: Option<Grant>,
    len_hint_bytes: Option<u64>,
    len_bytes: u64,
    in_flight: VecDeque<oneshot::Receiver<Result<StoredChunk, ChunkFailure>>>,
    composition: CompositionId,
    /// Names the naming: that of inline content and, when it is refused, that of chunks are one request, so that a shard that has done
    /// one does not do the other later.
    request: RequestId,
    wrapper: DekWrapper,
    /// Pin epoch of the bucket's shard under which everything is pinned that no delta names yet, and when it was asked
    /// for. It is asked for when the first chunk is launched: small content pins nothing.
    pin_epoch: Option<PinEpoch>,
    pin_epoch_asked: Instant,
    /// When the first chunk of the page that is being filled was sent on its way.
    page_began: Instant,
    /// References of the page that is being filled, and their pins.
    references: Vec<ChunkReference>,
    pins: Pins,
    pages: Vec<PageReference>,
    loose: Vec<PageId>,
    ended: bool,
}

impl Writer {
    /// Begins a write.
    pub async fn begin(
        core: Rc<Core>,
        scope: WriteScope,
        path: ObjectPath,
        target: Target,
        len_hint_bytes: Option<u64>,
    ) -> Result<Writer, StoreError> {
        let chunker = core.chunker(&scope.bucket.chunks)?;
        let now = core.ports.now();
        let (composition, request) = (CompositionId(core.ports.random()), RequestId(core.ports.random()));
        let (keys, tenant) = (&scope.keys, scope.bucket.tenant);
        let wrapper = DekWrapper::begin(&keys.kek, keys.kek_epoch, tenant, composition, &*core.ports);
        Ok(Writer {
            core,
            holder: scope.shard,
            scope: Rc::new(scope),
            path,
            target,
            chunker,
            cutter: Cutter::new(),
            filling: None,
            filling_grant: None,
            len_hint_bytes,
            len_bytes: 0,
            in_flight: VecDeque::new(),
            composition,
            request,
            wrapper,
            pin_epoch: None,
            pin_epoch_asked: now,
            page_began: now,
            references: Vec::new(),
            pins: Vec::new(),
            pages: Vec::new(),
            loose: Vec::new(),
            ended: false,
        })
    }

    fn shard(&self) -> ShardId {
        self.holder
    }

    /// Waits for memory to fill a chunk in: with more clients than a core has memory for, some wait with their bodies.
    async fn await_turn(&mut self) -> Result<(), StoreError> {
        if self.filling_grant.is_some() {
            return Ok(());
        }
        let longest = self.chunker.format().len_bytes_max as usize;
        let len = self.len_hint_bytes.and_then(|len| usize::try_from(len).ok()).map_or(longest, |len| len.min(longest));
        self.filling_grant = self.core.write_budget.fill(len.max(1)).await;
        if self.filling_grant.is_none() {
            let reason = format!("too many uploads at once; none of them ended in {} s", TURN_WAIT_MAX.as_secs());
            return Err(StoreError::Unavailable { reason });
        }
        Ok(())
    }

    /// Memory for a chunk in flight. Chunks of this stream that are under way end first; what others have in flight ends
    /// by itself.
    async fn grant(&mut self, bytes: usize) -> Result<Grant, StoreError> {
        let budget = self.core.write_budget.in_flight.clone();
        loop {
            if let Some(grant) = budget.try_take(bytes) {
                return Ok(grant);
            }
            if self.in_flight.is_empty() {
                return Ok(budget.take(bytes).await);
            }
            self.collect_oldest().await?;
        }
    }

    /// A buffer for the next chunk, of which `held` bytes are there: as long as the declared rest when that is short.
    fn buffer(&self, held: usize) -> IoBuf {
        let longest = self.chunker.format().len_bytes_max as usize;
        let rest = self.len_hint_bytes.map(|hint| hint.saturating_sub(self.len_bytes));
        let rest = rest.and_then(|rest| usize::try_from(rest).ok()).unwrap_or(longest);
        chunk_buffer(&self.core.buffers, longest.min(held.saturating_add(rest)), self.scope.bucket.shape)
    }

    /// Asks for the pin epoch now and then. What was pinned under an older one is committed before that is closed, and what was
    /// pinned long ago before its home gives it up.
    async fn refresh_pin_epoch(&mut self) -> Result<(), StoreError> {
        let Some(current) = self.pin_epoch else { return Ok(()) };
        let (now, refresh) = (self.core.ports.now(), self.core.pin_epoch_refresh);
        let mut epoch = current;
        if now.since(self.pin_epoch_asked) >= refresh {
            epoch = pin_epoch(&self.core, self.shard()).await?;
            self.pin_epoch_asked = now;
        }
        let is_old = self.has_pinned() && now.since(self.page_began) >= refresh * PAGE_AGE_REFRESHES;
        if is_old || epoch > current {
            while !self.in_flight.is_empty() {
                self.collect_oldest().await?;
            }
            if !self.references.is_empty() {
                self.commit_loose_page().await?;
            }
            self.pin_epoch = Some(epoch);
        }
        Ok(())
    }

    /// The pin epoch, asked for when it is needed first.
    async fn pin_epoch(&mut self) -> Result<PinEpoch, StoreError> {
        if let Some(epoch) = self.pin_epoch {
            return Ok(epoch);
        }
        self.pin_epoch_asked = self.core.ports.now();
        let epoch = pin_epoch(&self.core, self.shard()).await?;
        self.pin_epoch = Some(epoch);
        Ok(epoch)
    }

    /// Whether there are chunks, stored or on their way, that no page names yet.
    fn has_pinned(&self) -> bool {
        !self.references.is_empty() || !self.in_flight.is_empty()
    }

    async fn take(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        self.await_turn().await?;
        self.refresh_pin_epoch().await?;
        while !bytes.is_empty() {
            let mut filling = match self.filling.take() {
                Some(filling) => filling,
                None => self.buffer(0),
            };
            let longest = self.chunker.format().len_bytes_max as usize;
            let start = filling.len();
            let room = longest.min(usable_capacity(&filling, self.scope.bucket.shape)).saturating_sub(start);
            if room == 0 {
                // More came than was declared: go on in a buffer of full size.
                let mut larger = chunk_buffer(&self.core.buffers, longest, self.scope.bucket.shape).resized(start);
                larger.copy_from_slice(&filling);
                self.filling = Some(larger);
                self.len_hint_bytes = None;
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(room).min(SLICE_LEN_BYTES));
            filling.set_len(start + now.len());
            filling[start..].copy_from_slice(now);
            self.len_bytes += now.len() as u64;
            bytes = later;
            while let Some(len) = self.cutter.cut(&self.chunker, &filling) {
                let mut rest = self.buffer(filling.len() - len);
                rest.set_len(filling.len() - len);
                rest.copy_from_slice(&filling[len..]);
                filling.set_len(len);
                self.launch(filling).await?;
                filling = rest;
            }
            self.filling = (!filling.is_empty()).then_some(filling);
            self.core.ports.yield_now().await;
        }
        Ok(())
    }

    /// Sends a chunk on its way; waits for the oldest when too many are under way.
    async fn launch(&mut self, plaintext: IoBuf) -> Result<(), StoreError> {
        while self.in_flight.len() >= CHUNKS_IN_FLIGHT_MAX {
            self.collect_oldest().await?;
        }
        let pin_epoch = self.pin_epoch().await?;
        let grant = self.grant(plaintext.len()).await?;
        if !self.has_pinned() {
            self.page_began = self.core.ports.now();
        }
        let (sender, receiver) = oneshot::channel();
        let (core, scope) = (self.core.clone(), self.scope.clone());
        let task = async move {
            let _grant = grant;
            // Should the writer be gone, its pin is aborted here: nobody else knows of it.
            if let Err(Ok(chunk)) = sender.send(store_chunk(&core, &scope, pin_epoch, plaintext).await) {
                abort(&core, vec![(chunk.name, chunk.pin)]).await;
            }
        };
        let task = request::within(request::current(), Box::pin(task));
        self.core.background.finish("store chunk", task);
        self.in_flight.push_back(receiver);
        Ok(())
    }

    async fn collect_oldest(&mut self) -> Result<(), StoreError> {
        let receiver = self.in_flight.front_mut().expect("called with a chunk in flight");
        let result = receiver.await;
        self.in_flight.pop_front();
        let stored = match result {
            Ok(Ok(stored)) => stored,
            Ok(Err(failure)) => {
                self.pins.extend(failure.pinned);
                return Err(failure.error);
            }
            Err(_) => return Err(StoreError::Unavailable { reason: "the node is stopping".to_owned() }),
        };
        if self.references.len() == PAGE_REFERENCES_MAX
            && let Err(error) = self.commit_loose_page().await
        {
            self.pins.push((stored.name, stored.pin)); // to be aborted with the others
            return Err(error);
        }
        let wrapped_dek = self.wrapper.wrap(&stored.chunk, &stored.dek);
        self.references.push(ChunkReference {
            chunk: stored.chunk,
            locator: stored.name.locator,
            generation: stored.name.generation,
            len_bytes: stored.len_bytes,
            wrapped_dek,
        });
        self.pins.push((stored.name, stored.pin));
        Ok(())
    }

    /// The page that is being filled, full or the last.
    fn take_page(&mut self) -> (PageId, Page) {
        let references = std::mem::take(&mut self.references);
        self.page_of(references, None)
    }

    fn page_of(&mut self, references: Vec<ChunkReference>, inline: Option<Box<InlineContent>>) -> (PageId, Page) {
        let id = PageId(self.core.ports.random());
        let scope = self.wrapper.scope();
        let (composition, wrap_salt, kek_epoch) = (self.composition, scope.attempt, scope.kek_epoch.0);
        let page = Page { composition, wrap_salt, kek_epoch, references, inline };
        self.pages.push(PageReference { page: id, len_bytes: page.len_bytes() });
        (id, page)
    }

    /// Whether all content is here, and little enough to be offered to the shard as it is.
    fn is_small(&self) -> bool {
        let len = self.filling.as_ref().map_or(0, |filling| filling.len());
        let is_all = self.pages.is_empty() && !self.has_pinned();
        is_all && self.core.calls.lacking(INLINE_VERSION).is_none() && {
            let may_be_long = len > THRESHOLD_LEN_BYTES as usize && self.core.calls.lacking(ROOM_VERSION).is_none();
            self.core.inline.is_offered(self.shard(), len, may_be_long, self.core.ports.now())
        }
    }

    /// Small content that is all here keeps no memory for more, however long it takes to be named; what is not that small is counted
    /// on (I-O5).
    fn shrink(&mut self) {
        if let Some(content) = self.filling.take() {
            let mut short =
                chunk_buffer(&self.core.buffers, content.len(), self.scope.bucket.shape).resized(content.len());
            short.copy_from_slice(&content);
            self.filling = Some(short);
        }
        if self.len_bytes <= u64::from(THRESHOLD_LEN_BYTES) {
            self.filling_grant = None;
        }
    }

    /// A page that holds the content, where that is small.
    fn inline_page(&mut self) -> Option<(PageId, Page)> {
        if !self.is_small() {
            return None;
        }
        let content = self.filling.take()?;
        let inline = InlineContent::seal(&mut self.wrapper, &*self.core.ports, &content);
        self.filling = Some(content); // should the shard refuse
        Some(self.page_of(Vec::new(), Some(Box::new(inline))))
    }

    async fn commit_loose_page(&mut self) -> Result<(), StoreError> {
        let (id, page) = self.take_page();
        self.loose.push(id);
        let (namespace, pin_epoch) = (self.path.namespace, self.pin_epoch().await?);
        let request = ShardRequest::PutLoosePage { namespace, pin_epoch, id, page };
        self.core.calls.shard(self.shard(), request).await?;
        self.page_began = self.core.ports.now();
        settle(&self.core, std::mem::take(&mut self.pins));
        Ok(())
    }

    /// Sends the last chunk on its way and waits for all.
    async fn collect_all(&mut self) -> Result<(), StoreError> {
        if let Some(last) = self.filling.take() {
            self.launch(last).await?;
        }
        self.filling_grant = None;
        while !self.in_flight.is_empty() {
            self.collect_oldest().await?;
        }
        Ok(())
    }

    async fn end(&mut self, finish: FinishWrite) -> Result<ObjectInfo, StoreError> {
        let modified_unix_ms = self.core.ports.unix_time_ms();
        // I-O5: there are the content, sealed as well, the page, the message and what may be sent again. Nobody waits for room for that:
        // what finds none becomes chunks.
        let is_long = self.len_bytes > u64::from(THRESHOLD_LEN_BYTES) && self.is_small();
        let naming = &self.core.write_budget.naming;
        let copies = if is_long { naming.try_take(INLINE_COPIES * self.len_bytes as usize) } else { None };
        if copies.is_some() {
            self.filling_grant = None;
        }
        if is_long == copies.is_some()
            && let Some(page) = self.inline_page()
        {
            match self.name(&finish, modified_unix_ms, Some(page)).await? {
                ShardResponse::NotInline { limit } => {
                    self.pages.clear();
                    self.core.inline.was_refused(self.shard(), self.len_bytes, limit, self.core.ports.now());
                }
                answer => {
                    DataCounters::add(&self.core.inline.writes, 1);
                    DataCounters::add(&self.core.inline.bytes, self.len_bytes);
                    return Ok(self.named(answer));
                }
            }
        }
        self.collect_all().await?;
        let last = (!self.references.is_empty()).then(|| self.take_page());
        let answer = self.name(&finish, modified_unix_ms, last).await?;
        Ok(self.named(answer))
    }

    /// Has the shard name everything, or the one that holds the key by now.
    async fn name(
        &mut self,
        finish: &FinishWrite,
        modified_unix_ms: u64,
        last: Option<(PageId, Page)>,
    ) -> Result<ShardResponse, StoreError> {
        let mut followed = 0;
        loop {
            let request = self.naming(finish, modified_unix_ms, last.as_ref());
            let asked = self.core.calls.shard_once(self.shard(), request, self.request);
            match self.core.stages.time(Stage::Name, &self.core.ports, asked).await {
                Err(StoreError::Moved(range)) if followed < MOVES_FOLLOWED_MAX => {
                    followed += 1;
                    self.follow(&range, last.as_ref()).await?;
                }
                answer => return answer,
            }
        }
    }

    /// Everything is named.
    fn named(&mut self, answer: ShardResponse) -> ObjectInfo {
        let info = match answer {
            ShardResponse::Object(info) => info,
            ShardResponse::Part(part) => ObjectInfo {
                key: self.path.key.clone(),
                len_bytes: part.len_bytes,
                modified_unix_ms: part.modified_unix_ms,
                etag: part.etag,
                attributes: part.attributes,
                part_lens_bytes: Vec::new(),
            },
            _ => panic!("a shard answers a write with what was written"),
        };
        self.ended = true;
        settle(&self.core, std::mem::take(&mut self.pins));
        info
    }

    /// What names everything.
    fn naming(&self, finish: &FinishWrite, modified_unix_ms: u64, last: Option<&(PageId, Page)>) -> ShardRequest {
        let (pages, loose, last) = (self.pages.clone(), self.loose.clone(), last.cloned());
        let pin_epoch = self.pin_epoch.unwrap_or_default(); // without one nothing is pinned
        let written = WrittenPages { pages, loose, last, pin_epoch };
        let etag = finish.etag.clone().unwrap_or_else(|| self.composition.to_string());
        let (path, attributes, pages) = (self.path.clone(), finish.attributes.clone(), self.pages.clone());
        let (len_bytes, condition) = (self.len_bytes, finish.condition.clone());
        match &self.target {
            Target::Object => {
                let part_lens_bytes = Vec::new();
                let file = FileEntry { len_bytes, modified_unix_ms, etag, attributes, part_lens_bytes, pages };
                ShardRequest::PutEntry { path, condition, file, written }
            }
            Target::Part { upload, part } => {
                let entry = PartEntry { len_bytes, modified_unix_ms, etag, attributes, pages };
                ShardRequest::PutPart { path, upload: *upload, part: *part, entry, written }
            }
        }
    }

    /// The key has moved: the loose pages are copied to the shard that holds it now, and the chunks of all pages are adopted for
    /// it (I-C2). Chunks of the last page stay because they are pinned, those of loose pages because they are named.
    async fn follow(&mut self, range: &KeyRange, last: Option<&(PageId, Page)>) -> Result<(), StoreError> {
        let (before, shard) = (self.holder, range.shard);
        let mut scope = WriteScope { shard, ..(*self.scope).clone() };
        self.core.learn(&mut scope.bucket, range);
        let pin_epoch = pin_epoch(&self.core, shard).await?;
        if let Some((_, page)) = last {
            adopt(&self.core.calls, shard, page.references.iter().map(ChunkReference::name)).await?;
        }
        for id in &self.loose {
            if let Err(error) = self.copy_loose(*id, shard, pin_epoch).await {
                self.abandon_at(shard);
                return Err(error);
            }
        }
        self.abandon_at(before);
        (self.holder, self.pin_epoch) = (shard, Some(pin_epoch));
        // I-C2: should the shard refuse inline content, its chunks are pinned for the one that will name them.
        self.scope = Rc::new(scope);
        Ok(())
    }

    async fn copy_loose(&self, id: PageId, shard: ShardId, pin_epoch: PinEpoch) -> Result<(), StoreError> {
        let request = ShardRequest::ReadPage { page: id, read: None };
        let page = match self.core.calls.shard(self.holder, request).await? {
            ShardResponse::Page(page) => page,
            _ => panic!("a shard answers ReadPage with Page"),
        };
        adopt(&self.core.calls, shard, page.references.iter().map(ChunkReference::name)).await?;
        let (namespace, pages) = (self.path.namespace, vec![(id, page)]);
        let request = SplitRequest::TakePages { namespace, pin_epoch, pages };
        self.core.calls.shard(shard, ShardRequest::Split(Box::new(request))).await?;
        Ok(())
    }

    /// The loose pages are not needed there.
    fn abandon_at(&self, shard: ShardId) {
        if self.loose.is_empty() {
            return;
        }
        let (core, loose) = (self.core.clone(), self.loose.clone());
        let task = async move {
            if let Err(error) = core.calls.shard(shard, ShardRequest::AbandonPages(loose)).await {
                warn!(%error, "pages of a write whose key has moved are left; a later leader collects them");
            }
        };
        self.core.background.finish("abandon copied pages", task);
    }
}

async fn pin_epoch(core: &Core, shard: ShardId) -> Result<PinEpoch, StoreError> {
    match core.calls.shard(shard, ShardRequest::PinEpoch).await? {
        ShardResponse::PinEpoch(epoch) => Ok(epoch),
        _ => panic!("a shard answers PinEpoch with PinEpoch"),
    }
}

/// Bytes of plaintext that a buffer made by [`chunk_buffer`] can hold and still be sealed in place, in whichever shape.
fn usable_capacity(buffer: &IoBuf, shape: StripeShape) -> usize {
    let copies = shape.as_copies();
    let fits = |len: usize| {
        let envelope = envelope_len(len as u32);
        padded_len(envelope, shape).max(padded_len(envelope, copies)) <= buffer.capacity()
    };
    // Both lengths grow with the plaintext, so the longest that fits is found by halving.
    let (mut low, mut high) = (0, buffer.capacity().min(CHUNK_LEN_BYTES_MAX));
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

impl ObjectWriter for Writer {
    fn write(&mut self, bytes: Bytes) -> StoreFuture<'_, ()> {
        Box::pin(async move { self.take(&bytes).await })
    }

    fn drain(&mut self) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            match self.is_small() {
                true => self.shrink(),
                false => self.collect_all().await?,
            }
            Ok(())
        })
    }

    fn finish(mut self: Box<Self>, finish: FinishWrite) -> StoreFuture<'static, ObjectInfo> {
        Box::pin(async move { self.end(finish).await })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        DataCounters::add(&self.core.counters.writes_abandoned, 1);
        let (core, shard) = (self.core.clone(), self.shard());
        let (mut pins, loose) = (std::mem::take(&mut self.pins), std::mem::take(&mut self.loose));
        let in_flight = std::mem::take(&mut self.in_flight);
        let task = async move {
            for receiver in in_flight {
                match receiver.await {
                    Ok(Ok(stored)) => pins.push((stored.name, stored.pin)),
                    Ok(Err(failure)) => pins.extend(failure.pinned),
                    Err(_) => {}
                }
            }
            if !loose.is_empty()
                && let Err(error) = core.calls.shard(shard, ShardRequest::AbandonPages(loose)).await
            {
                warn!(%error, "pages of an abandoned write are left; the next start collects them");
            }
            abort(&core, pins).await;
        };
        self.core.background.finish("abandon write", task);
    }
}

/// Tells the homes, in the background, that these generations are complete (step 11 of the write path). Should that be
/// lost, the next start asks the shard.
fn settle(core: &Rc<Core>, pins: Pins) {
    if pins.is_empty() {
        return;
    }
    let settled = core.clone();
    let task = async move {
        for (home, pins) in by_home(&settled, pins) {
            let request = HomeRequest::Settle { complete: pins, abort: Vec::new() };
            if let Err(error) = settled.calls.home(home, request).await {
                warn!(%home, %error, "a home was not told of complete chunks; the next start settles them");
            }
        }
    };
    core.background.finish("settle pins", task);
}

/// Tells the homes that no delta will name these generations.
async fn abort(core: &Rc<Core>, pins: Pins) {
    for (home, pins) in by_home(core, pins) {
        let request = HomeRequest::Settle { complete: Vec::new(), abort: pins };
        if let Err(error) = core.calls.home(home, request).await {
            warn!(%home, %error, "a home was not told of abandoned chunks; the next start collects them");
        }
    }
}

fn by_home(core: &Core, pins: Pins) -> BTreeMap<ShardId, Pins> {
    let mut homes = BTreeMap::<ShardId, Pins>::new();
    for (name, pin) in pins {
        homes.entry(core.calls.home_of(&name.locator)).or_default().push((name, pin));
    }
    homes
}
