//! Online compaction: when most of a set's files is room that removed rows left, the rows are copied into new files
//! beside the present ones, which then take their place.
//!
//! The copy goes in steps, in order of (file, table, key), each from the newest committed snapshots; the *cursor* is
//! what has been copied. Folds go on between the steps. What a fold changes before the cursor is changed in the new
//! files as well; what lies behind it is read from the newer snapshot by a later step. So at the end of the copy the
//! new files hold what the present ones hold, and replace them as an installation does. Until then the present files
//! know nothing of it: a copy that fails or is stopped leaves nothing behind, and never fences the set.

use super::TableSet;
use super::cached_file::CachedFile;
use super::files::{OpenedFiles, Reservation, SetFiles};
use crate::overlay::{FileChanges, Layer, Mark};
use crate::table_file::database::{FileDatabase, Snapshot};
use futures::channel::oneshot;
use futures::future::select;
use kiseki_types::runtime::{Instant, Ports, RuntimeExt, Stopping};
use kiseki_types::table::{TableError, TableId, TableSizes};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of rows that a step copies, about: folds wait for one step at most.
pub(super) const STEP_BYTES: usize = if cfg!(test) { 2 << 10 } else { 1 << 20 };

/// Bytes that are copied in a second at most, so that the disks are there for others.
const BYTES_PER_SECOND_MAX: u64 = 32 << 20;

/// Bytes that are copied between two syncs of the new files: no fold waits until all of a large file is on the disk.
const SYNC_BYTES: u64 = 16 * STEP_BYTES as u64;

/// What a copy may be longer than the rows, for the room that it takes.
const COPY_BYTES_PER_LIVE_BYTE: u64 = 3;

/// Files that are longer than their rows by this factor are worth it.
const FILE_BYTES_PER_LIVE_BYTE: u64 = 4;

/// After a copy that failed none is tried for this long.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(3600);

/// What a set knows of its compactions beyond the one that its fold task holds.
#[derive(Default)]
pub(super) struct Compactions {
    running: bool,
    /// The running one is to give up.
    stop: bool,
    /// The set is being closed: none begins any more.
    barred: bool,
    /// Wakes the fold task while it waits between two steps.
    pause: Option<oneshot::Sender<()>>,
    /// Who waits for the end of the running one.
    ended: Vec<oneshot::Sender<()>>,
    not_before: Instant,
    /// What the last one left.
    left: Option<Sizes>,
    done: u64,
    given_back_bytes: u64,
}

/// Length of all files, and of the rows in them.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    file_bytes: u64,
    live_bytes: u64,
}

impl Sizes {
    /// Whether files like these are to be compacted, when at least `from_bytes` long; `left` is what the last
    /// compaction left of the set.
    fn are_wasteful(self, from_bytes: u64, left: Option<Sizes>) -> bool {
        let (file, live) = (u128::from(self.file_bytes), u128::from(self.live_bytes));
        // Short rows take more room than their bytes even in new files: another compaction has to halve the files.
        let promised = left.map_or(0, |left| match left.live_bytes {
            0 => u128::from(left.file_bytes),
            of => u128::from(left.file_bytes) * live / u128::from(of),
        });
        from_bytes > 0
            && self.file_bytes >= from_bytes
            && live * u128::from(FILE_BYTES_PER_LIVE_BYTE) < file
            && promised * 2 <= file
    }
}

/// How far the copy has come.
#[derive(Clone, Debug, Default)]
struct Cursor {
    /// The files before this one are copied.
    file: usize,
    /// And of this one everything up to this row.
    upto: Option<(TableId, Vec<u8>)>,
}

impl Cursor {
    /// Whether the row's place is one that the copy has passed.
    fn has_passed(&self, file: usize, table: TableId, key: &[u8]) -> bool {
        let upto = self.upto.as_ref().map(|(table, key)| (*table, key.as_slice()));
        file < self.file || (file == self.file && upto.is_some_and(|upto| (table, key) <= upto))
    }

    fn next_file(&self) -> Cursor {
        Cursor { file: self.file + 1, upto: None }
    }
}

/// New files on the way to replace the present ones. Dropped before they do, they are removed.
pub(super) struct Compaction {
    ports: Ports,
    queue: u64,
    files: Arc<SetFiles>,
    databases: Vec<Arc<FileDatabase>>,
    /// What it may take.
    room: Option<Reservation>,
    cursor: Cursor,
    unsynced_bytes: u64,
    next_step: Instant,
    /// The names of the files are not to be removed: they may be others' by now.
    leaves_names: bool,
}

impl Drop for Compaction {
    fn drop(&mut self) {
        let (databases, files) = (std::mem::take(&mut self.databases), Arc::clone(&self.files));
        let (leaves_names, room) = (self.leaves_names, self.room.take());
        let job = move || {
            drop(databases);
            if !leaves_names {
                files.remove_next();
            }
            drop(room);
        };
        self.ports.offload_job(self.queue, Box::new(job));
    }
}

/// Why new files did not take the place of the present ones.
enum Failure {
    /// They could not be finished; nothing has happened to the present ones.
    Copy(TableError),
    /// Some names may be exchanged and others not: the next open finds out (I-D6).
    Exchange(TableError),
}

impl TableSet {
    /// How long the files are, what of it is rows, and what compactions gave back since the set was opened.
    #[must_use]
    pub fn sizes(&self) -> TableSizes {
        let (file_bytes, live_bytes) = self.measure();
        let compactions = self.inner.compactions.borrow();
        TableSizes {
            file_bytes,
            live_bytes: live_bytes.unwrap_or(file_bytes),
            compactions: compactions.done,
            compacted_bytes: compactions.given_back_bytes,
        }
    }

    fn measure(&self) -> (u64, Option<u64>) {
        let state = self.inner.state.borrow();
        let file_bytes = state.databases.iter().map(|database| database.file_bytes()).sum();
        (file_bytes, state.databases.iter().map(|database| database.live_bytes()).sum())
    }

    /// Begins a compaction if one is due. The fold task asks after each fold.
    pub(super) async fn begin_compaction(&self) -> Option<Compaction> {
        if !self.compaction_is_due() {
            return None;
        }
        {
            let mut compactions = self.inner.compactions.borrow_mut();
            (compactions.running, compactions.stop) = (true, false);
        }
        let (ports, files) = (self.inner.ports.clone(), Arc::clone(&self.inner.files));
        let (random, next_step) = (files.random(&ports), ports.now());
        let job_files = Arc::clone(&files);
        let (file_bytes, live_bytes) = self.measure();
        // New files are shorter than the present ones, which have holes.
        let longest =
            live_bytes.unwrap_or(file_bytes).saturating_mul(COPY_BYTES_PER_LIVE_BYTE).saturating_add(SYNC_BYTES);
        let wanted = file_bytes.min(longest);
        let job = move || {
            let room = job_files.reserve(wanted)?;
            Ok((job_files.create_next(&random)?, room))
        };
        let created = ports.offload(self.write_queue(), job).await;
        let mut compaction = Compaction {
            ports,
            queue: self.write_queue(),
            files,
            databases: Vec::new(),
            room: None,
            cursor: Cursor::default(),
            unsynced_bytes: 0,
            next_step,
            leaves_names: false,
        };
        match created.unwrap_or_else(|Stopping| Err(self.inner.files.closed())) {
            Ok((databases, room)) => {
                compaction.room = Some(room);
                compaction.databases = databases.into_iter().map(Arc::new).collect();
                Some(compaction)
            }
            Err(error) => self.give_up(compaction, Some(&error)),
        }
    }

    fn compaction_is_due(&self) -> bool {
        let compactions = self.inner.compactions.borrow();
        // An import is the one that fills files beside the present ones.
        let is_awaited = !self.inner.state.borrow().idle_waiters.is_empty();
        let kept_off =
            compactions.barred || is_awaited || self.is_left_alone() || Rc::strong_count(&self.inner.imports) > 1;
        if kept_off || self.inner.ports.now() < compactions.not_before || self.check().is_err() {
            return false;
        }
        let (file_bytes, live_bytes) = self.measure();
        let sizes = live_bytes.map(|live_bytes| Sizes { file_bytes, live_bytes });
        sizes.is_some_and(|sizes| sizes.are_wasteful(self.inner.settings.compact_from_bytes, compactions.left))
    }

    /// Whether nobody holds the set but its fold task: the owner has dropped it, and may have opened its files again.
    fn is_left_alone(&self) -> bool {
        self.inner.left_alone.get()
    }

    /// The last handle is gone. A fold comes to its end as ever; where only a compaction is under way, the files are
    /// closed at once, as if it were not: their owner may open them now.
    pub(super) fn leave_compaction(&self) {
        if self.inner.compactions.borrow().running {
            let mut state = self.inner.state.borrow_mut();
            if !state.has_to_fold() {
                let closing = state.closing_job();
                self.inner.ports.offload_job(self.write_queue(), Box::new(closing));
            }
        }
        self.wake_fold_task();
    }

    /// Whether a running compaction is to give up: somebody wants the set for something else, or nobody wants it.
    fn compaction_is_unwanted(&self) -> bool {
        self.is_left_alone() || self.inner.compactions.borrow().stop || self.check().is_err()
    }

    /// One turn of a compaction, after a turn of the fold task: what was folded in it goes into the new files too, then
    /// comes a step, if one is due. `None` when it has ended.
    pub(super) async fn compact(&self, mut running: Compaction, folded: Option<Arc<Layer>>) -> Option<Compaction> {
        if self.compaction_is_unwanted() {
            return self.give_up(running, None);
        }
        if let Some(layer) = folded {
            let (databases, cursor) = (running.databases.clone(), running.cursor.clone());
            let carrying = running.ports.offload(running.queue, move || carry(&layer, &databases, &cursor)).await;
            if let Err(error) = carrying.unwrap_or_else(|Stopping| Err(self.inner.files.closed())) {
                return self.give_up(running, Some(&error));
            }
            // Whoever dropped or stopped the set meanwhile finds nothing under way.
            if self.compaction_is_unwanted() {
                return self.give_up(running, None);
            }
        }
        if running.ports.now() < running.next_step {
            return Some(running);
        }
        if running.cursor.file == running.databases.len() {
            self.finish(running).await;
            return None;
        }
        let step = self.step(&mut running).await;
        running.ports.yield_now().await;
        match step {
            Ok(()) => Some(running),
            Err(error) => self.give_up(running, Some(&error)),
        }
    }

    async fn step(&self, running: &mut Compaction) -> Result<(), TableError> {
        let number = running.cursor.file;
        let snapshot = Arc::clone(&self.inner.state.borrow().snapshots[number].snapshot);
        let (databases, cursor) = (running.databases.clone(), running.cursor.clone());
        let (unsynced_bytes, files) = (running.unsynced_bytes, Arc::clone(&running.files));
        let job = move || -> Result<(Cursor, u64, u64), TableError> {
            let (next, copied_bytes) = copy(&snapshot, &databases[number], &cursor)?;
            if unsynced_bytes + copied_bytes < SYNC_BYTES {
                return Ok((next, copied_bytes, unsynced_bytes + copied_bytes));
            }
            // Others fill the directories too.
            files.check_room(SYNC_BYTES)?;
            for database in &databases {
                database.fold(&Mark::default(), &FileChanges::new(), None)?;
            }
            Ok((next, copied_bytes, 0))
        };
        let stepped = running.ports.offload(running.queue, job).await;
        let (cursor, copied_bytes, unsynced_bytes) =
            stepped.unwrap_or_else(|Stopping| Err(self.inner.files.closed()))?;
        let pause = Duration::from_nanos(copied_bytes.saturating_mul(1_000_000_000) / BYTES_PER_SECOND_MAX);
        running.next_step = running.ports.now() + pause;
        (running.cursor, running.unsynced_bytes) = (cursor, unsynced_bytes);
        Ok(())
    }

    /// Everything is copied: the new files take the place of the present ones. The overlay lies over them as before.
    async fn finish(&self, mut running: Compaction) {
        let present: Vec<Arc<Snapshot>> =
            self.inner.state.borrow().snapshots.iter().map(|file| Arc::clone(&file.snapshot)).collect();
        self.inner.state.borrow_mut().coming.clone_from(&running.databases);
        let (databases, files) = (running.databases.clone(), Arc::clone(&running.files));
        let finishing = running.ports.offload(running.queue, move || complete(databases, &files, &present)).await;
        let closed = |Stopping| Err(Failure::Exchange(self.inner.files.closed()));
        self.inner.state.borrow_mut().coming.clear();
        match finishing.unwrap_or_else(closed) {
            Ok(opened) => {
                running.leaves_names = true;
                match self.check() {
                    Ok(()) => self.exchange(opened),
                    Err(_) => self.inner.ports.offload_job(self.write_queue(), Box::new(move || drop(opened))),
                }
                self.end_of_compaction();
            }
            Err(Failure::Copy(error)) => drop(self.give_up(running, Some(&error))),
            Err(Failure::Exchange(error)) => {
                running.leaves_names = true;
                self.inner.state.borrow_mut().fence(error);
                self.end_of_compaction();
            }
        }
    }

    fn exchange(&self, opened: OpenedFiles) {
        let (before_bytes, _) = self.measure();
        {
            let mut state = self.inner.state.borrow_mut();
            let OpenedFiles { databases, snapshots } = opened;
            // I-V2: reads see the overlay over these files, so they stand where the overlay begins.
            assert_eq!(snapshots[0].position, state.durable, "I-V2: compacted files stand elsewhere than the set");
            let old = (state.take_snapshots(), std::mem::replace(&mut state.databases, databases));
            state.snapshots = snapshots.into_iter().map(CachedFile::new).collect();
            // The last holder of a redb file writes its closing commit: never on the executor.
            self.inner.ports.offload_job(self.write_queue(), Box::new(move || drop(old)));
        }
        let (file_bytes, live_bytes) = self.measure();
        let given_back_bytes = before_bytes.saturating_sub(file_bytes);
        let mut compactions = self.inner.compactions.borrow_mut();
        compactions.left = live_bytes.map(|live_bytes| Sizes { file_bytes, live_bytes });
        compactions.done += 1;
        compactions.given_back_bytes += given_back_bytes;
        tracing::info!(file = self.inner.files.name(), before_bytes, file_bytes, live_bytes, "table files compacted");
    }

    /// The end of a compaction that changed nothing; with an error none is tried for a while.
    fn give_up(&self, mut running: Compaction, error: Option<&TableError>) -> Option<Compaction> {
        // Another open of the files removes the new ones before it does anything else; those there then are its own.
        running.leaves_names |= self.is_left_alone();
        // The removal of its files is queued before anybody who waits for its end can make files of the same names.
        drop(running);
        if let Some(error) = error {
            let (file, retry_after_s) = (self.inner.files.name(), RETRY_AFTER.as_secs());
            tracing::warn!(file, %error, retry_after_s, "compaction of table files given up; they stay as they are");
            self.inner.compactions.borrow_mut().not_before = self.inner.ports.now() + RETRY_AFTER;
        }
        self.end_of_compaction();
        None
    }

    fn end_of_compaction(&self) {
        let mut compactions = self.inner.compactions.borrow_mut();
        compactions.running = false;
        compactions.ended.clear(); // a sender that is gone is the answer
    }

    /// Waits for the next step of `running`, or until somebody needs the fold task.
    pub(super) async fn pause(&self, running: &Compaction) {
        if self.compaction_is_unwanted() {
            return;
        }
        let (sender, woken) = oneshot::channel();
        self.inner.compactions.borrow_mut().pause = Some(sender);
        select(self.inner.ports.sleep_until(running.next_step), woken).await;
        self.inner.compactions.borrow_mut().pause = None;
    }

    /// Ends the fold task's wait between two steps.
    pub(super) fn wake_fold_task(&self) {
        if let Some(sender) = self.inner.compactions.borrow_mut().pause.take() {
            let _ = sender.send(());
        }
    }

    /// Has a running compaction give up soon.
    pub(super) fn stop_compaction(&self) {
        let running = {
            let mut compactions = self.inner.compactions.borrow_mut();
            compactions.stop = compactions.running;
            compactions.running
        };
        if running {
            self.wake_fold_task();
        }
    }

    /// Has a running compaction give up and waits until it has. None begins while somebody holds an import.
    pub(super) async fn compaction_ended(&self) {
        self.stop_compaction();
        let ended = {
            let mut compactions = self.inner.compactions.borrow_mut();
            if !compactions.running {
                return;
            }
            let (sender, receiver) = oneshot::channel();
            compactions.ended.push(sender);
            receiver
        };
        let _ = ended.await;
    }

    /// No compaction begins any more.
    pub(super) fn bar_compactions(&self) {
        self.inner.compactions.borrow_mut().barred = true;
    }

    /// The files are others than those that the last compaction left.
    pub(super) fn forget_compactions(&self) {
        self.inner.compactions.borrow_mut().left = None;
    }
}

/// Copies the next rows of a file; where the cursor stands then, and how many bytes they were.
fn copy(present: &Snapshot, new: &FileDatabase, cursor: &Cursor) -> Result<(Cursor, u64), TableError> {
    let number = u8::try_from(cursor.file).expect("a set has at most 256 files");
    let rows = present.rows_after(number, cursor.upto.clone(), STEP_BYTES)?;
    let Some(last) = rows.last() else { return Ok((cursor.next_file(), 0)) };
    new.load_rows(rows.iter())?;
    let bytes = rows.iter().map(|row| (row.key.len() + row.value.len()) as u64).sum();
    Ok((Cursor { file: cursor.file, upto: Some((last.table, last.key.clone())) }, bytes))
}

/// Changes in the new files what a fold has changed in the present ones, as far as it is copied.
fn carry(layer: &Layer, databases: &[Arc<FileDatabase>], cursor: &Cursor) -> Result<(), TableError> {
    for (number, (database, changes)) in databases.iter().zip(&layer.files).enumerate() {
        let rows = changes.iter().flat_map(|(table, changes)| changes.iter().map(|change| (*table, change)));
        let mut passed = rows
            .filter(|(table, (key, _))| cursor.has_passed(number, *table, key))
            .map(|(table, (key, value))| (table, key.as_slice(), value.as_deref()))
            .peekable();
        if passed.peek().is_some() {
            database.load_changes(passed)?;
        }
    }
    Ok(())
}

/// Makes the new files durable at the position of `present`, and exchanges the names.
fn complete(
    databases: Vec<Arc<FileDatabase>>,
    files: &SetFiles,
    present: &[Arc<Snapshot>],
) -> Result<OpenedFiles, Failure> {
    let mark = Mark { position: present[0].position, meta: present[0].meta.clone() };
    let mut snapshots = Vec::new();
    for (database, present) in databases.iter().zip(present) {
        database.fold(&mark, &FileChanges::new(), None).map_err(Failure::Copy)?;
        let snapshot = database.snapshot().map_err(Failure::Copy)?;
        let (new, old) = (snapshot.row_counts(), present.row_counts());
        let (new, old) = (new.map_err(Failure::Copy)?, old.map_err(Failure::Copy)?);
        // What is not in the new files would be lost with the present ones.
        if new != old {
            return Err(Failure::Copy(database.error(format!("its copy has {new:?} rows by table, not {old:?}"))));
        }
        snapshots.push(snapshot);
    }
    files.declare_next().map_err(Failure::Exchange)?.map_err(Failure::Copy)?;
    files.swap_in_next().map_err(Failure::Exchange)?;
    Ok(OpenedFiles { databases, snapshots })
}

#[cfg(test)]
mod tests;
