//! The ordered table files of one shard, with an overlay in memory of what is applied but not yet in the files.
//!
//! An apply goes into the overlay and is read from there at once. In the background the overlay is frozen at one
//! position and folded into every file, first file first, each file in one transaction; when all have committed, the
//! snapshots that reads use are exchanged together and the frozen layer is dropped. So all files are read at one
//! position at every instant, and a later file is never ahead of an earlier one on disk. What the first file's commit
//! keeps of the later files' changes lets the next open bring them to the same position after a crash between two
//! commits; so a replay never meets rows of its own future.

mod cached_file;
mod compaction;
mod files;
mod transfer;

use crate::overlay::{Layer, Overlay, is_empty_range};
use crate::table_file::database::{FileDatabase, OpenRandom, Redo, Snapshot};
use cached_file::{CachedFile, SideReader};
use compaction::{Compaction, Compactions};
use files::{OpenedFiles, SetFiles};
use futures::channel::oneshot;
use kiseki_types::meta::MetaDir;
use kiseki_types::runtime::{LocalBoxFuture, Ports, RuntimeExt, Stopping};
use kiseki_types::secret::SecretKey;
use kiseki_types::table::{Row, Scan, TableError, TableId, TableReader, TableWrite};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
pub use transfer::{SetExport, SetImport};

/// Files of one set at most: their number is a byte, and redo rows are kept for each.
pub const SET_FILES_MAX: usize = 16;
/// Side thread queues of one set: one for writes, the others for reads, so that a read never waits for a fold.
const QUEUES_PER_SET: u64 = 8;
const READ_QUEUES: u64 = QUEUES_PER_SET - 1;

/// Layers with fewer rows are dropped where they are: to wake a thread costs more.
const ROWS_DROPPED_AT_ONCE: usize = 512;

/// One file of a set.
pub struct FileSpec {
    /// Its name in the metadata directories.
    pub name: String,
    /// The metadata key its pages are sealed under; `None` for a clear file (checksummed pages).
    pub seal: Option<SecretKey>,
}

/// Files that are together at least this long are compacted, unless it is said otherwise.
pub const COMPACT_FROM_BYTES: u64 = 64 << 20;

/// Limits of a set.
#[derive(Clone, Copy, Debug)]
pub struct TableSettings {
    /// Base of its side thread queues: it uses the numbers `queue * 8 .. queue * 8 + 8`.
    pub queue: u64,
    /// Pages of one file that redb keeps in memory, in bytes.
    pub cache_bytes: usize,
    /// Overlay rows that start a fold.
    pub fold_rows: usize,
    /// Overlay bytes that start a fold.
    pub fold_bytes: usize,
    /// Files that are together at least this long are compacted when most of it is no rows; 0: never.
    pub compact_from_bytes: u64,
}

impl TableSettings {
    /// Small defaults: 8 MiB of pages a file, folds from 8,192 rows or 4 MiB on, compactions from 64 MiB on.
    #[must_use]
    pub fn new(queue: u64) -> TableSettings {
        TableSettings {
            queue,
            cache_bytes: 8 << 20,
            fold_rows: 8192,
            fold_bytes: 4 << 20,
            compact_from_bytes: COMPACT_FROM_BYTES,
        }
    }
}

/// One row of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetRow {
    /// Number of the file.
    pub file: u8,
    /// Table in it.
    pub table: TableId,
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
}

/// Whether the set takes calls.
#[derive(Clone, Debug)]
enum Health {
    Open,
    /// I-D6: a commit failed; nothing is read or written until the files are opened and checked again.
    Fenced(TableError),
    Closed,
}

struct State {
    overlay: Overlay,
    databases: Vec<Arc<FileDatabase>>,
    /// New files that are about to become these.
    coming: Vec<Arc<FileDatabase>>,
    snapshots: Vec<Rc<CachedFile>>,
    meta: BTreeMap<Vec<u8>, Vec<u8>>,
    applied: u64,
    durable: u64,
    health: Health,
    /// A fold or an installation is under way; there is one at a time.
    busy: bool,
    installing: bool,
    /// Someone waits for what is in the active layer.
    fold_wanted: bool,
    /// Number of the layer that is active; layers below `folded` are durable.
    active_layer: u64,
    folded: u64,
    waiters: Vec<(u64, oneshot::Sender<Result<(), TableError>>)>,
    idle_waiters: Vec<oneshot::Sender<()>>,
}

struct Inner {
    ports: Ports,
    files: Arc<SetFiles>,
    settings: TableSettings,
    next_read_queue: Cell<u64>,
    compactions: RefCell<Compactions>,
    /// Every import that may still be installed holds a clone.
    imports: Rc<()>,
    /// Nobody holds the set any more, but for its fold task.
    left_alone: Cell<bool>,
    state: RefCell<State>,
}

/// The table files of one shard. A clone is another handle of the same set.
#[derive(Clone)]
pub struct TableSet {
    inner: Rc<Inner>,
    /// `None` in the fold task, which is to end when nobody else has a handle.
    _owner: Option<Rc<Owner>>,
}

/// What all handles but the fold task's share.
struct Owner {
    inner: Rc<Inner>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.inner.left_alone.set(true);
        TableSet { inner: Rc::clone(&self.inner), _owner: None }.leave_compaction();
    }
}

impl TableSet {
    /// Opens or makes the files (on a side thread). All files are at one position when it returns.
    ///
    /// - `files`: in checkpoint order, 1..=[`SET_FILES_MAX`]; their names must be unique in `dir`.
    /// - Errors: a file that is damaged, sealed under another key, or missing although later ones hold rows.
    pub fn open(
        ports: Ports,
        dir: Arc<dyn MetaDir>,
        files: Vec<FileSpec>,
        settings: TableSettings,
    ) -> LocalBoxFuture<'static, Result<TableSet, TableError>> {
        assert!((1..=SET_FILES_MAX).contains(&files.len()), "a set has 1 to {SET_FILES_MAX} files");
        let files = Arc::new(SetFiles::new(dir, files, settings.cache_bytes));
        Box::pin(async move {
            let random = files.random(&ports);
            let job_files = Arc::clone(&files);
            let opened = ports.offload(settings.queue * QUEUES_PER_SET, move || job_files.open(&random));
            let opened = opened.await.map_err(|Stopping| files.closed())??;
            let state = RefCell::new(State::new(opened));
            let (next_read_queue, compactions, imports) = (Cell::new(0), RefCell::default(), Rc::new(()));
            let left_alone = Cell::new(false);
            let inner = Inner { ports, files, settings, next_read_queue, compactions, imports, left_alone, state };
            let inner = Rc::new(inner);
            Ok(TableSet { _owner: Some(Rc::new(Owner { inner: Rc::clone(&inner) })), inner })
        })
    }

    /// Applies the writes of Raft index `position`; skipped when `position` is applied already (a replay). `meta` rows
    /// become durable with them. Visible to reads at once.
    pub fn apply(&self, position: u64, writes: Vec<TableWrite>, meta: Vec<Row>) {
        if position > self.applied_position() {
            self.put(position, writes, meta);
        }
    }

    /// [`TableSet::apply`] without the replay check, for users without positions.
    pub(crate) fn put(&self, position: u64, writes: Vec<TableWrite>, meta: Vec<Row>) {
        let (fold, busy) = {
            let mut state = self.inner.state.borrow_mut();
            if !matches!(state.health, Health::Open) {
                return; // the owner learns it from any read or checkpoint; the overlay must not grow for nothing
            }
            assert!(!state.installing, "nothing is applied while a snapshot is installed");
            assert!(position >= state.applied, "applies come in order");
            state.applied = position;
            state.note_meta(&meta);
            state.overlay.apply(position, writes, meta);
            (state.over_limit(&self.inner.settings), state.busy)
        };
        match (fold, busy) {
            (true, false) => self.start_fold(),
            (true, true) => self.wake_fold_task(),
            (false, _) => {}
        }
    }

    /// A meta row as of the last apply.
    #[must_use]
    pub fn meta(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.inner.state.borrow().meta.get(key).cloned()
    }

    /// Position of the last apply.
    #[must_use]
    pub fn applied_position(&self) -> u64 {
        self.inner.state.borrow().applied
    }

    /// Position that every file holds durably.
    #[must_use]
    pub fn durable_position(&self) -> u64 {
        self.inner.state.borrow().durable
    }

    /// Rows in the overlay.
    #[must_use]
    pub fn overlay_rows(&self) -> usize {
        self.inner.state.borrow().overlay.rows()
    }

    /// Bytes in the overlay, about. The owner slows down when this exceeds a few times `fold_bytes`.
    #[must_use]
    pub fn overlay_bytes(&self) -> usize {
        self.inner.state.borrow().overlay.bytes()
    }

    /// Why the set takes no more calls, if so.
    #[must_use]
    pub fn failure(&self) -> Option<TableError> {
        self.check().err()
    }

    /// Makes everything applied before the call durable.
    pub fn checkpoint(&self) -> LocalBoxFuture<'static, Result<(), TableError>> {
        if let Err(error) = self.check() {
            return Box::pin(std::future::ready(Err(error)));
        }
        let (receiver, idle) = {
            let mut state = self.inner.state.borrow_mut();
            let touched = state.overlay.touched();
            // The layer that must be folded: the active one if it has anything, else what is folded right now.
            let upto = if touched { state.active_layer + 1 } else { state.active_layer };
            if state.folded >= upto {
                return Box::pin(std::future::ready(Ok(())));
            }
            state.fold_wanted |= touched;
            let (sender, receiver) = oneshot::channel();
            state.waiters.push((upto, sender));
            (receiver, !state.busy)
        };
        match idle {
            true => self.start_fold(),
            false => self.wake_fold_task(),
        }
        let files = Arc::clone(&self.inner.files);
        Box::pin(async move { receiver.await.unwrap_or_else(|_| Err(files.closed())) })
    }

    /// Checkpoints and closes the files; every later call is an error.
    pub fn close(&self) -> LocalBoxFuture<'static, Result<(), TableError>> {
        let set = self.clone();
        Box::pin(async move {
            set.bar_compactions();
            let result = set.checkpoint().await;
            set.idle().await;
            let closing = set.inner.state.borrow_mut().closing_job();
            let _ = set.inner.ports.offload(set.write_queue(), closing).await;
            result
        })
    }

    fn check(&self) -> Result<(), TableError> {
        match &self.inner.state.borrow().health {
            Health::Open => Ok(()),
            Health::Fenced(error) => Err(error.clone()),
            Health::Closed => Err(self.inner.files.closed()),
        }
    }

    fn write_queue(&self) -> u64 {
        self.inner.settings.queue * QUEUES_PER_SET
    }

    fn read_queue(&self) -> u64 {
        let turn = self.inner.next_read_queue.get();
        self.inner.next_read_queue.set((turn + 1) % READ_QUEUES);
        self.write_queue() + 1 + turn
    }

    /// Starts the fold task; the caller has seen that the set is not busy.
    fn start_fold(&self) {
        self.inner.state.borrow_mut().busy = true;
        let set = TableSet { inner: Rc::clone(&self.inner), _owner: None };
        self.inner.ports.spawn("table fold", Box::pin(async move { set.fold_loop().await }));
    }

    /// Folds what is to be folded, and carries on a compaction beside that, until there is neither.
    async fn fold_loop(self) {
        let mut compaction: Option<Compaction> = None;
        loop {
            let layer = self.next_layer();
            match (&layer, &compaction) {
                (Some(layer), _) => self.fold(layer).await,
                (None, Some(running)) => self.pause(running).await,
                (None, None) => {
                    self.inner.state.borrow_mut().become_idle();
                    return;
                }
            }
            compaction = match compaction.take() {
                Some(running) => self.compact(running, layer).await,
                None => {
                    self.drop_aside(layer);
                    self.begin_compaction().await
                }
            };
        }
    }

    /// The layer to fold now, if any.
    fn next_layer(&self) -> Option<Arc<Layer>> {
        let mut state = self.inner.state.borrow_mut();
        let wanted = state.fold_wanted || state.over_limit(&self.inner.settings);
        if !matches!(state.health, Health::Open) || !wanted || !state.overlay.touched() {
            return None;
        }
        state.fold_wanted = false;
        state.active_layer += 1;
        Some(state.overlay.freeze())
    }

    async fn fold(&self, layer: &Arc<Layer>) {
        let (databases, durable) = {
            let state = self.inner.state.borrow();
            (state.databases.clone(), state.durable)
        };
        let job_layer = Arc::clone(layer);
        let job = move || fold_files(&job_layer, &databases, durable);
        let folded = self.inner.ports.offload(self.write_queue(), job).await;
        let mut state = self.inner.state.borrow_mut();
        match folded.unwrap_or_else(|Stopping| Err(self.inner.files.closed())) {
            Ok(snapshots) => {
                state.snapshots = snapshots.into_iter().map(CachedFile::new).collect();
                state.overlay.drop_frozen();
                state.durable = layer.mark.position;
                state.folded += 1;
                state.answer_waiters();
            }
            Err(error) => state.fence(error),
        }
    }

    /// Drops a folded layer: a large one, which takes milliseconds, on a side thread.
    fn drop_aside(&self, layer: Option<Arc<Layer>>) {
        if let Some(layer) = layer.filter(|layer| layer.rows() >= ROWS_DROPPED_AT_ONCE) {
            self.inner.ports.offload_job(self.write_queue(), Box::new(move || drop(layer)));
        }
    }

    /// Ends when no fold and no installation is under way; a compaction gives up for it.
    pub(crate) async fn idle(&self) {
        loop {
            self.stop_compaction();
            let receiver = {
                let mut state = self.inner.state.borrow_mut();
                if !state.busy {
                    return;
                }
                let (sender, receiver) = oneshot::channel();
                state.idle_waiters.push(sender);
                receiver
            };
            let _ = receiver.await;
        }
    }

    /// The current snapshot of a file.
    fn snapshot(&self, file: u8) -> Rc<CachedFile> {
        Rc::clone(self.inner.state.borrow().snapshots.get(usize::from(file)).expect("a read names a file of its set"))
    }
}

impl SideReader for TableSet {
    fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, TableError> + Send + 'static,
    ) -> LocalBoxFuture<'static, Result<T, TableError>> {
        let running = self.inner.ports.offload(self.read_queue(), job);
        let files = Arc::clone(&self.inner.files);
        Box::pin(async move { running.await.unwrap_or_else(|Stopping| Err(files.closed())) })
    }
}

/// Commits one layer to all files, in order (I-V2: a later file is never ahead of an earlier one).
fn fold_files(layer: &Arc<Layer>, databases: &[Arc<FileDatabase>], from: u64) -> Result<Vec<Snapshot>, TableError> {
    for (number, database) in databases.iter().enumerate() {
        let redo = (number == 0 && databases.len() > 1).then(|| Redo { from, layer: Arc::clone(layer) });
        database.fold(&layer.mark, &layer.files[number], redo.as_ref())?;
    }
    databases.iter().map(|database| database.snapshot()).collect()
}

impl State {
    fn new(opened: OpenedFiles) -> State {
        let OpenedFiles { databases, snapshots } = opened;
        let position = snapshots[0].position;
        State {
            overlay: Overlay::new(databases.len(), position),
            meta: snapshots[0].meta.clone(),
            applied: position,
            durable: position,
            databases,
            coming: Vec::new(),
            snapshots: snapshots.into_iter().map(CachedFile::new).collect(),
            health: Health::Open,
            busy: false,
            installing: false,
            fold_wanted: false,
            active_layer: 0,
            folded: 0,
            waiters: Vec::new(),
            idle_waiters: Vec::new(),
        }
    }

    fn note_meta(&mut self, rows: &[Row]) {
        for (key, value) in rows {
            match self.meta.get_mut(key) {
                Some(old) => old.clone_from(value),
                None => drop(self.meta.insert(key.clone(), value.clone())),
            }
        }
    }

    /// Whether a fold is under way, or somebody waits for one.
    fn has_to_fold(&self) -> bool {
        self.fold_wanted || self.overlay.is_being_folded() || !self.waiters.is_empty()
    }

    fn over_limit(&self, settings: &TableSettings) -> bool {
        self.overlay.active_rows() >= settings.fold_rows || self.overlay.active_bytes() >= settings.fold_bytes
    }

    /// The rows without what is kept of them, to be dropped elsewhere.
    fn take_snapshots(&mut self) -> Vec<Arc<Snapshot>> {
        std::mem::take(&mut self.snapshots).iter().map(|file| Arc::clone(&file.snapshot)).collect()
    }

    /// Takes the files away; the job closes them. The last holder of a redb file writes its closing commit: never on the
    /// executor, and never when the job has ended and others may have opened the file.
    fn closing_job(&mut self) -> impl FnOnce() + Send + 'static {
        self.health = Health::Closed;
        let databases = [std::mem::take(&mut self.databases), std::mem::take(&mut self.coming)].concat();
        let snapshots = self.take_snapshots();
        move || {
            drop(snapshots);
            databases.into_iter().for_each(FileDatabase::close);
        }
    }

    fn become_idle(&mut self) {
        self.busy = false;
        for waiter in self.idle_waiters.drain(..) {
            let _ = waiter.send(());
        }
    }

    fn answer_waiters(&mut self) {
        let folded = self.folded;
        for (_, waiter) in self.waiters.extract_if(.., |(upto, _)| *upto <= folded) {
            let _ = waiter.send(Ok(()));
        }
    }

    fn fence(&mut self, error: TableError) {
        for (_, waiter) in self.waiters.drain(..) {
            let _ = waiter.send(Err(error.clone()));
        }
        self.health = Health::Fenced(error);
    }
}

impl TableReader for TableSet {
    fn get(
        &self,
        file: u8,
        table: TableId,
        key: &[u8],
    ) -> LocalBoxFuture<'static, Result<Option<Vec<u8>>, TableError>> {
        if let Err(error) = self.check() {
            return Box::pin(std::future::ready(Err(error)));
        }
        let changed = self.inner.state.borrow().overlay.lookup(file, table, key).cloned();
        if let Some(value) = changed {
            return Box::pin(std::future::ready(Ok(value)));
        }
        self.snapshot(file).get(self, table, key)
    }

    fn scan(&self, scan: Scan) -> LocalBoxFuture<'static, Result<Vec<Row>, TableError>> {
        if let Err(error) = self.check() {
            return Box::pin(std::future::ready(Err(error)));
        }
        if scan.limit == 0 || is_empty_range(&scan.from, &scan.to) {
            return Box::pin(std::future::ready(Ok(Vec::new())));
        }
        let part = self.inner.state.borrow().overlay.part(&scan);
        self.snapshot(scan.file).scan(self, scan, part)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if !state.databases.is_empty() {
            let closing = state.closing_job();
            self.ports.offload_job(self.settings.queue * QUEUES_PER_SET, Box::new(closing));
        }
    }
}

/// Randomness for one open of all files.
type SetRandom = Vec<OpenRandom>;

#[cfg(test)]
mod tests;
