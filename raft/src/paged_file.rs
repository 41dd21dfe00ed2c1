//! A redb file as slots of a metadata file: every page is bound to its place and checked on every read.
//!
//! What a slot holds beside its page is the business of a [`PageCodec`] (sealed or clear). This file keeps what both
//! share: where a page lies, the two slots of page 0, fresh pages, partial writes, and what a failure does.
//! The layout and the reasons are told in docs/formats/sealed-file.md.

use crate::file_header::{HEADER_BYTES, invalid};
use crate::page_ranges::PageRanges;
use kiseki_types::meta::MetaFile;
use redb::StorageBackend;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes of a page: redb's own page size.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Most pages that one write or read to the metadata file carries; bounds the scratch buffer.
const RUN_PAGES_MAX: u64 = 64;

/// How a page is turned into a slot and back.
pub(crate) trait PageCodec: Send + Sync + fmt::Debug + 'static {
    /// Bytes that a slot has in front of its page.
    const OVERHEAD_BYTES: usize;

    /// Turns `slot` (overhead, then the page) into what lies on disk. `counter` is never used twice by one open of
    /// the file.
    fn seal(&self, page: u64, counter: u64, slot: &mut [u8]);

    /// Turns what lies on disk into overhead and page, in place, and returns the counter it was sealed with; `None`
    /// when the slot is not what [`PageCodec::seal`] made for this file and page.
    fn open(&self, page: u64, slot: &mut [u8]) -> Option<u64>;
}

/// Page 0: redb's header, the only page that is ever overwritten while it is needed.
struct Front {
    content: Vec<u8>,
    /// The slot whose content the last finished sync made durable; it is never overwritten.
    synced_slot: Option<u64>,
    /// The write that the next sync makes durable: its slot and its counter.
    unsynced: Option<(u64, u64)>,
}

struct State {
    pages: u64,
    front: Front,
    /// Pages that this open of the file has added and nobody has written; they read as zeros.
    fresh: PageRanges,
}

/// What a file is known by beside redb.
#[derive(Debug)]
pub(crate) struct FileWatch {
    failed: AtomicBool,
    len_bytes: AtomicU64,
}

impl FileWatch {
    /// Length of the metadata file.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes.load(Ordering::Relaxed)
    }

    /// No more writes, be it the closing commit of who reads the file still: others may open it now.
    pub fn retire(&self) {
        self.failed.store(true, Ordering::Release);
    }
}

/// A [`StorageBackend`] over a metadata file.
pub(crate) struct PagedFile<C> {
    file: Arc<dyn MetaFile>,
    name: String,
    codec: C,
    counter: AtomicU64,
    watch: Arc<FileWatch>,
    state: Mutex<State>,
}

impl<C> fmt::Debug for PagedFile<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PagedFile").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<C: PageCodec> PagedFile<C> {
    const SLOT_BYTES: usize = C::OVERHEAD_BYTES + PAGE_BYTES;

    /// A file without pages, behind a header that is written already.
    pub fn new_empty(file: Arc<dyn MetaFile>, name: &str, codec: C) -> io::Result<PagedFile<C>> {
        file.set_len(HEADER_BYTES)?;
        let front = Front { content: vec![0; PAGE_BYTES], synced_slot: None, unsynced: None };
        Ok(Self::assemble(file, name, codec, 0, State { pages: 0, front, fresh: PageRanges::default() }))
    }

    /// Opens the pages of a file that was completely created earlier: page 0 must be there.
    pub fn open(file: Arc<dyn MetaFile>, name: &str, codec: C) -> io::Result<PagedFile<C>> {
        let pages = Self::pages_in(file.len()?);
        if pages == 0 {
            return Err(invalid(format!("{name} has no pages")));
        }
        let mut newest: Option<(u64, u64, Vec<u8>, Vec<u8>)> = None;
        for slot in [0, 1] {
            let mut raw = vec![0; Self::SLOT_BYTES];
            file.read_at(Self::slot_offset(slot), &mut raw)?;
            let mut opened = raw.clone();
            // A slot that does not open is a write that a power cut tore, or rot; the other slot answers for both.
            let Some(counter) = codec.open(0, &mut opened) else { continue };
            if newest.as_ref().is_none_or(|(best, ..)| counter > *best) {
                newest = Some((counter, slot, raw, opened));
            }
        }
        let Some((counter, slot, raw, opened)) = newest else {
            return Err(invalid(format!("both copies of page 0 of {name} are damaged")));
        };
        // What was read may be in a cache only (after a kill), or whole in one metadata directory and torn in the
        // other: the same bytes again, then a sync, make it the durable copy everywhere before anything relies on it.
        file.write_at(Self::slot_offset(slot), &raw)?;
        file.sync()?;
        let content = opened[C::OVERHEAD_BYTES..].to_vec();
        let front = Front { content, synced_slot: Some(slot), unsynced: None };
        let state = State { pages, front, fresh: PageRanges::default() };
        let paged = Self::assemble(file, name, codec, counter + 1, state);
        // The other slot too, durably, before the first page is overwritten: in some metadata directory it may hold a
        // whole header of a commit that this open did not choose.
        paged.mirror_front(&paged.lock())?;
        paged.file.sync()?;
        Ok(paged)
    }

    fn assemble(file: Arc<dyn MetaFile>, name: &str, codec: C, counter: u64, state: State) -> PagedFile<C> {
        PagedFile {
            file,
            name: name.to_owned(),
            codec,
            counter: AtomicU64::new(counter),
            watch: Arc::new(FileWatch { failed: AtomicBool::new(false), len_bytes: Self::len_of(state.pages).into() }),
            state: Mutex::new(state),
        }
    }

    /// What can be said of the file, and to it, once redb has it.
    pub fn watch(&self) -> Arc<FileWatch> {
        Arc::clone(&self.watch)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the page state")
    }

    /// Page 0 has the slots 0 and 1, page n the slot n + 1.
    fn slot_offset(slot: u64) -> u64 {
        HEADER_BYTES + slot * Self::SLOT_BYTES as u64
    }

    fn len_of(pages: u64) -> u64 {
        if pages == 0 { HEADER_BYTES } else { Self::slot_offset(pages + 1) }
    }

    fn pages_in(len_bytes: u64) -> u64 {
        (len_bytes.saturating_sub(HEADER_BYTES) / Self::SLOT_BYTES as u64).saturating_sub(1)
    }

    fn next_counter(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    /// I-D6: after a failed write or sync nothing is written any more until the file is opened and checked again.
    fn guarded<T>(&self, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.watch.failed.load(Ordering::Acquire) {
            return Err(io::Error::other(format!(
                "{} failed before and takes no writes until it is reopened",
                self.name
            )));
        }
        change().inspect_err(|_| self.watch.failed.store(true, Ordering::Release))
    }

    fn damaged(&self, page: u64) -> io::Error {
        invalid(format!("page {page} of {} is damaged or was never written", self.name))
    }

    fn seal_slot(&self, page: u64, content: &[u8], slot: &mut [u8]) -> u64 {
        let counter = self.next_counter();
        slot[C::OVERHEAD_BYTES..].copy_from_slice(content);
        self.codec.seal(page, counter, slot);
        counter
    }

    fn write_front(&self, state: &mut State) -> io::Result<()> {
        let slot = match state.front.synced_slot {
            Some(synced) => synced ^ 1,
            None => 0,
        };
        let mut sealed = vec![0; Self::SLOT_BYTES];
        let counter = self.seal_slot(0, &state.front.content, &mut sealed);
        self.file.write_at(Self::slot_offset(slot), &sealed)?;
        state.front.unsynced = Some((slot, counter));
        Ok(())
    }

    /// Writes page 0 to the slot that is not the durable one as well, so that rot in one slot takes back nothing.
    fn mirror_front(&self, state: &State) -> io::Result<()> {
        let Some(synced) = state.front.synced_slot else { return Ok(()) };
        let mut sealed = vec![0; Self::SLOT_BYTES];
        self.seal_slot(0, &state.front.content, &mut sealed);
        self.file.write_at(Self::slot_offset(synced ^ 1), &sealed)
    }

    /// Reads the pages `first..first + count`, none of them page 0, into `out`, whole.
    fn read_pages(&self, first: u64, count: u64, out: &mut [u8]) -> io::Result<()> {
        let mut slots = vec![0; count as usize * Self::SLOT_BYTES];
        self.file.read_at(Self::slot_offset(first + 1), &mut slots)?;
        for (index, (slot, page_out)) in
            slots.chunks_exact_mut(Self::SLOT_BYTES).zip(out.chunks_exact_mut(PAGE_BYTES)).enumerate()
        {
            let page = first + index as u64;
            self.codec.open(page, slot).ok_or_else(|| self.damaged(page))?;
            page_out.copy_from_slice(&slot[C::OVERHEAD_BYTES..]);
        }
        Ok(())
    }

    /// The content of one page, wherever it is kept.
    fn read_page(&self, page: u64, out: &mut [u8]) -> io::Result<()> {
        {
            let state = self.lock();
            if page == 0 {
                out.copy_from_slice(&state.front.content);
                return Ok(());
            }
            if state.fresh.contains(page) {
                out.fill(0);
                return Ok(());
            }
        }
        self.read_pages(page, 1, out)
    }

    /// Writes whole pages, none of them page 0.
    fn write_pages(&self, first: u64, content: &[u8]) -> io::Result<()> {
        let count = content.len() / PAGE_BYTES;
        let mut slots = vec![0; count * Self::SLOT_BYTES];
        for (index, (slot, page_content)) in
            slots.chunks_exact_mut(Self::SLOT_BYTES).zip(content.chunks_exact(PAGE_BYTES)).enumerate()
        {
            self.seal_slot(first + index as u64, page_content, slot);
        }
        self.file.write_at(Self::slot_offset(first + 1), &slots)?;
        self.lock().fresh.remove(first, first + count as u64);
        Ok(())
    }

    fn write_parts(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(data.len() as u64).ok_or_else(|| invalid("write beyond 2^64".to_owned()))?;
        if end > self.lock().pages * PAGE_BYTES as u64 {
            self.resize(end.div_ceil(PAGE_BYTES as u64))?;
        }
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let page = at / PAGE_BYTES as u64;
            let within = (at % PAGE_BYTES as u64) as usize;
            let taken;
            if page == 0 {
                taken = rest.len().min(PAGE_BYTES - within);
                let mut state = self.lock();
                state.front.content[within..within + taken].copy_from_slice(&rest[..taken]);
                self.write_front(&mut state)?;
            } else if within == 0 && rest.len() >= PAGE_BYTES {
                taken = (rest.len() / PAGE_BYTES).min(RUN_PAGES_MAX as usize) * PAGE_BYTES;
                self.write_pages(page, &rest[..taken])?;
            } else {
                taken = rest.len().min(PAGE_BYTES - within);
                let mut content = vec![0; PAGE_BYTES];
                self.read_page(page, &mut content)?;
                content[within..within + taken].copy_from_slice(&rest[..taken]);
                self.write_pages(page, &content)?;
            }
            at += taken as u64;
            rest = &rest[taken..];
        }
        Ok(())
    }

    fn resize(&self, pages: u64) -> io::Result<()> {
        self.file.set_len(Self::len_of(pages))?;
        self.watch.len_bytes.store(Self::len_of(pages), Ordering::Relaxed);
        let mut state = self.lock();
        let before = state.pages;
        state.pages = pages;
        if pages < before {
            state.fresh.remove(pages, before);
        } else {
            state.fresh.add(before.max(1), pages);
        }
        if pages == 0 {
            state.front = Front { content: vec![0; PAGE_BYTES], synced_slot: None, unsynced: None };
        }
        Ok(())
    }
}

impl<C: PageCodec> StorageBackend for PagedFile<C> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().pages * PAGE_BYTES as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64).ok_or_else(|| invalid("read beyond 2^64".to_owned()))?;
        if end > self.lock().pages * PAGE_BYTES as u64 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("read behind the end of {}", self.name)));
        }
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let page = at / PAGE_BYTES as u64;
            let within = (at % PAGE_BYTES as u64) as usize;
            let whole = if within == 0 { (rest.len() / PAGE_BYTES).min(RUN_PAGES_MAX as usize) as u64 } else { 0 };
            let plain_run = whole > 1 && page > 0 && {
                let state = self.lock();
                (page..page + whole).all(|page| !state.fresh.contains(page))
            };
            let taken;
            if plain_run {
                taken = whole as usize * PAGE_BYTES;
                self.read_pages(page, whole, &mut rest[..taken])?;
            } else {
                taken = rest.len().min(PAGE_BYTES - within);
                let mut content = vec![0; PAGE_BYTES];
                self.read_page(page, &mut content)?;
                rest[..taken].copy_from_slice(&content[within..within + taken]);
            }
            at += taken as u64;
            rest = &mut rest[taken..];
        }
        Ok(())
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        if !len_bytes.is_multiple_of(PAGE_BYTES as u64) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a paged file is as long as whole pages"));
        }
        self.guarded(|| self.resize(len_bytes / PAGE_BYTES as u64))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.guarded(|| {
            let covered = self.lock().front.unsynced;
            self.file.sync()?;
            let mut state = self.lock();
            // A write of page 0 that began after the sync is not covered by it.
            if let Some((slot, _)) = covered
                && state.front.unsynced == covered
            {
                state.front.synced_slot = Some(slot);
                state.front.unsynced = None;
                self.mirror_front(&state)?;
            }
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.guarded(|| self.write_parts(offset, data))
    }
}
