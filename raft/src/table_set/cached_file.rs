//! One file's rows as of its last fold, with what was read of them lately kept in memory.
//!
//! A read of the file itself goes over a side thread: two switches of threads, which cost more than everything else about
//! a small request. Rows of a snapshot never change, so what was read once, absence included, is right for as long as
//! the snapshot is the current one; a fold brings a new snapshot and with it an empty cache. Reads of the same row that
//! come while it is fetched share the fetch.

use crate::overlay::{Change, OverlayPart};
use crate::table_file::database::Snapshot;
use futures::FutureExt;
use futures::future::Shared;
use kiseki_types::runtime::LocalBoxFuture;
use kiseki_types::table::{Direction, Row, Scan, TableError, TableId, prefix_end};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;

/// What one file keeps, about (I-SF5); when there is more, all of it is dropped.
const CACHE_BYTES_MAX: usize = 2 << 20;

/// Scans that want more rows than this are listings: not kept.
const SCAN_LIMIT_MAX: usize = 256;

/// Memory that an entry costs beside its bytes: tree node, shared future, vectors.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// Memory that a row of a kept scan costs beside its bytes: two vectors.
const ROW_OVERHEAD_BYTES: usize = 48;

/// A fetch that has ended or is under way.
type Fetch<T> = Shared<LocalBoxFuture<'static, Result<Rc<T>, TableError>>>;

/// The file's rows of a prefix.
enum FileRows {
    All(Vec<Row>),
    /// Too many to be kept; the snapshot to scan.
    Many(Arc<Snapshot>),
}

/// A table and a key, or the prefix of keys.
type CacheKey = (TableId, Vec<u8>);

#[derive(Default)]
struct Cache {
    rows: BTreeMap<CacheKey, Fetch<Option<Vec<u8>>>>,
    prefixes: BTreeMap<CacheKey, Fetch<FileRows>>,
}

/// See the module.
pub(super) struct CachedFile {
    /// The rows themselves.
    pub snapshot: Arc<Snapshot>,
    cache: RefCell<Cache>,
    /// What the entries take, about; shared with the fetches under way.
    bytes: Rc<Cell<usize>>,
}

/// Runs a read on a side thread.
pub(super) trait SideReader: Clone + 'static {
    fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, TableError> + Send + 'static,
    ) -> LocalBoxFuture<'static, Result<T, TableError>>;
}

impl CachedFile {
    pub fn new(snapshot: Snapshot) -> Rc<CachedFile> {
        Rc::new(CachedFile { snapshot: Arc::new(snapshot), cache: RefCell::default(), bytes: Rc::default() })
    }

    /// One row of the file.
    pub fn get(
        self: &Rc<Self>,
        side: &impl SideReader,
        table: TableId,
        key: &[u8],
    ) -> LocalBoxFuture<'static, Result<Option<Vec<u8>>, TableError>> {
        if !self.snapshot.has_table(table) {
            return Box::pin(std::future::ready(Ok(None)));
        }
        let cache_key = (table, key.to_vec());
        let known = self.cache.borrow().rows.get(&cache_key).cloned();
        if let Some(Ok(value)) = known.as_ref().and_then(Shared::peek) {
            return Box::pin(std::future::ready(Ok(Option::clone(value))));
        }
        let fetch = known.unwrap_or_else(|| {
            let (snapshot, key) = (Arc::clone(&self.snapshot), key.to_vec());
            let fetched = side.read(move || snapshot.get(table, &key));
            let fetch = self.counted(fetched, |value| value.as_ref().map_or(0, Vec::len));
            self.make_room(cache_key.1.len());
            self.cache.borrow_mut().rows.insert(cache_key.clone(), fetch.clone());
            fetch
        });
        // Weak: whoever holds the last of a file writes its closing commit, and that is not to be this future.
        let file = Rc::downgrade(self);
        Box::pin(async move {
            let value = fetch.await.inspect_err(|_| {
                if let Some(file) = file.upgrade() {
                    file.cache.borrow_mut().rows.remove(&cache_key); // the next reader tries again
                }
            })?;
            Ok(Option::clone(&value))
        })
    }

    /// What `scan` finds with `part` of the overlay laid over the file.
    pub fn scan(
        self: &Rc<Self>,
        side: &impl SideReader,
        scan: Scan,
        part: OverlayPart,
    ) -> LocalBoxFuture<'static, Result<Vec<Row>, TableError>> {
        if !self.snapshot.has_table(scan.table) {
            return Box::pin(std::future::ready(self.snapshot.scan(scan.table, part, scan.direction, scan.limit)));
        }
        let Some(prefix) = kept_prefix(&scan) else {
            let snapshot = Arc::clone(&self.snapshot);
            return side.read(move || snapshot.scan(scan.table, part, scan.direction, scan.limit));
        };
        let cache_key = (scan.table, prefix);
        let known = self.cache.borrow().prefixes.get(&cache_key).cloned();
        if let Some(Ok(rows)) = known.as_ref().and_then(Shared::peek)
            && let FileRows::All(rows) = &**rows
        {
            return Box::pin(std::future::ready(Ok(merged(rows, part.changes, scan.limit))));
        }
        let fetch = known.unwrap_or_else(|| {
            let (table, prefix) = cache_key.clone();
            let (fetched_of, limit) = (Arc::clone(&self.snapshot), SCAN_LIMIT_MAX + 1);
            let fetched = side.read(move || {
                let part = OverlayPart { to: prefix_end(&prefix), from: Bound::Included(prefix), changes: Vec::new() };
                let rows = fetched_of.scan(table, part, Direction::Forward, limit)?;
                Ok(if rows.len() < limit { FileRows::All(rows) } else { FileRows::Many(fetched_of) })
            });
            let len = |rows: &FileRows| match rows {
                FileRows::All(rows) => rows.iter().map(|row| row.0.len() + row.1.len() + ROW_OVERHEAD_BYTES).sum(),
                FileRows::Many(_) => 0,
            };
            let fetch = self.counted(fetched, len);
            self.make_room(cache_key.1.len());
            self.cache.borrow_mut().prefixes.insert(cache_key.clone(), fetch.clone());
            fetch
        });
        let (file, side) = (Rc::downgrade(self), side.clone());
        Box::pin(async move {
            let rows = fetch.await.inspect_err(|_| {
                if let Some(file) = file.upgrade() {
                    file.cache.borrow_mut().prefixes.remove(&cache_key);
                }
            })?;
            let snapshot = match &*rows {
                FileRows::All(rows) => return Ok(merged(rows, part.changes, scan.limit)),
                FileRows::Many(snapshot) => Arc::clone(snapshot),
            };
            drop(rows); // the side thread is to hold the last of it
            side.read(move || snapshot.scan(scan.table, part, scan.direction, scan.limit)).await
        })
    }

    fn counted<T: 'static>(
        &self,
        fetch: LocalBoxFuture<'static, Result<T, TableError>>,
        len: impl FnOnce(&T) -> usize + 'static,
    ) -> Fetch<T> {
        let bytes = Rc::clone(&self.bytes);
        let counted = async move {
            let value = fetch.await?;
            bytes.set(bytes.get() + len(&value));
            Ok(Rc::new(value))
        };
        counted.boxed_local().shared()
    }

    /// Counts an entry that is about to come.
    fn make_room(&self, key_len: usize) {
        if self.bytes.get() > CACHE_BYTES_MAX {
            self.bytes.set(0);
            self.cache.replace(Cache::default());
        }
        self.bytes.set(self.bytes.get() + ENTRY_OVERHEAD_BYTES + 2 * key_len);
    }
}

/// The prefix whose rows `scan` wants, if it is a scan of all rows of a prefix and small enough to be kept.
fn kept_prefix(scan: &Scan) -> Option<Vec<u8>> {
    let Bound::Included(prefix) = &scan.from else { return None };
    let wants_all = scan.direction == Direction::Forward && scan.to == prefix_end(prefix);
    (wants_all && scan.limit <= SCAN_LIMIT_MAX).then(|| prefix.clone())
}

/// Changes laid over rows, both in ascending order.
fn merged(rows: &[Row], changes: Vec<Change>, limit: usize) -> Vec<Row> {
    let mut out = Vec::with_capacity(limit.min(rows.len() + changes.len()));
    let (mut rows, mut changes) = (rows.iter().peekable(), changes.into_iter().peekable());
    while out.len() < limit {
        let row = match (rows.peek(), changes.peek()) {
            (None, None) => break,
            (Some(_), None) => rows.next().cloned(),
            (Some(row), Some((changed, _))) if row.0 < *changed => rows.next().cloned(),
            (row, Some((changed, _))) => {
                if row.is_some_and(|row| row.0 == *changed) {
                    rows.next();
                }
                changes.next().and_then(|(key, value)| Some((key, value?)))
            }
        };
        out.extend(row);
    }
    out
}
