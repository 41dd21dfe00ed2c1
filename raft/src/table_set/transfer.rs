//! All rows of a set out, and all rows of a set in: what a snapshot for another voter is made of.

use super::cached_file::SideReader;
use super::{OpenedFiles, QUEUES_PER_SET, SetRow, State, TableSet};
use crate::overlay::{FileChanges, Mark};
use crate::table_file::database::{FileDatabase, Snapshot};
use kiseki_types::runtime::{LocalBoxFuture, Ports, RuntimeExt, Stopping};
use kiseki_types::table::{Row, TableError, TableId};
use std::rc::Rc;
use std::sync::Arc;

/// All rows of a set at one position. The files keep the pages of that position until it is dropped.
pub struct SetExport {
    set: TableSet,
    snapshots: Vec<Arc<Snapshot>>,
    file: usize,
    after: Option<(TableId, Vec<u8>)>,
}

impl Drop for SetExport {
    fn drop(&mut self) {
        // After an exchange of the files it may be the last holder of an old one, which writes its closing commit: never
        // on the executor.
        let snapshots = std::mem::take(&mut self.snapshots);
        self.set.inner.ports.offload_job(self.set.read_queue(), Box::new(move || drop(snapshots)));
    }
}

impl SetExport {
    /// The position of the rows.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.snapshots[0].position
    }

    /// The meta rows at that position, in order of their keys.
    #[must_use]
    pub fn meta(&self) -> Vec<Row> {
        self.snapshots[0].meta.clone().into_iter().collect()
    }

    /// The next rows in order of (file, table, key), about `max_bytes` of them; empty at the end.
    pub fn next_rows(&mut self, max_bytes: usize) -> LocalBoxFuture<'_, Result<Vec<SetRow>, TableError>> {
        Box::pin(async move {
            while let Some(snapshot) = self.snapshots.get(self.file).map(Arc::clone) {
                self.set.check()?; // once it is closed its pages may be others'
                let number = u8::try_from(self.file).expect("a set has at most 256 files");
                let after = self.after.take();
                let rows = self.set.read(move || snapshot.rows_after(number, after, max_bytes.max(1))).await?;
                if let Some(last) = rows.last() {
                    self.after = Some((last.table, last.key.clone()));
                    return Ok(rows);
                }
                self.file += 1;
            }
            Ok(Vec::new())
        })
    }
}

/// New files being filled. Dropped without an installation they are removed by the next import or open.
pub struct SetImport {
    ports: Ports,
    queue: u64,
    closed: TableError,
    databases: Vec<Arc<FileDatabase>>,
    position: u64,
    meta: Vec<Row>,
    /// No compaction begins while it is held.
    _keeps_compactions_off: Rc<()>,
}

impl SetImport {
    /// Puts rows into the new files, in any order; a later row of the same key replaces an earlier one.
    pub fn push(&mut self, rows: Vec<SetRow>) -> LocalBoxFuture<'_, Result<(), TableError>> {
        let databases = self.databases.clone();
        let closed = self.closed.clone();
        let job = self.ports.offload(self.queue, move || load(&databases, &rows));
        Box::pin(async move { job.await.unwrap_or(Err(closed)) })
    }
}

/// Rows come from a peer: a file that the set does not have is an error, not a bug of ours.
fn load(databases: &[Arc<FileDatabase>], rows: &[SetRow]) -> Result<(), TableError> {
    if let Some(foreign) = rows.iter().find(|row| usize::from(row.file) >= databases.len()) {
        return Err(databases[0].error(format!("its set has no file {} to take an imported row", foreign.file)));
    }
    for (number, database) in databases.iter().enumerate() {
        let mut own = rows.iter().filter(|row| usize::from(row.file) == number).peekable();
        if own.peek().is_some() {
            database.load_rows(own)?;
        }
    }
    Ok(())
}

impl Drop for SetImport {
    fn drop(&mut self) {
        let databases = std::mem::take(&mut self.databases);
        if !databases.is_empty() {
            self.ports.offload_job(self.queue, Box::new(move || drop(databases)));
        }
    }
}

impl TableSet {
    /// A checkpoint, then all rows of all files at one position, at or after everything applied before the call.
    pub fn export(&self) -> LocalBoxFuture<'static, Result<SetExport, TableError>> {
        let set = self.clone();
        let checkpoint = self.checkpoint();
        Box::pin(async move {
            checkpoint.await?;
            set.check()?;
            let files = set.inner.state.borrow().snapshots.clone();
            let snapshots = files.iter().map(|file| Arc::clone(&file.snapshot)).collect();
            Ok(SetExport { set, snapshots, file: 0, after: None })
        })
    }

    /// Starts new files beside the present ones, to be filled with rows and then installed. One import at a time.
    ///
    /// - `position`: the Raft index that the rows stand for. `meta`: the meta rows that go with it.
    pub fn import(&self, position: u64, meta: Vec<Row>) -> LocalBoxFuture<'static, Result<SetImport, TableError>> {
        let set = self.clone();
        Box::pin(async move {
            set.check()?;
            let inner = &set.inner;
            // Both fill files of the same names.
            let keeps_compactions_off = Rc::clone(&inner.imports);
            set.compaction_ended().await;
            let (files, random) = (Arc::clone(&inner.files), inner.files.random(&inner.ports));
            let queue = inner.settings.queue * QUEUES_PER_SET;
            let created = inner.ports.offload(queue, move || files.create_next(&random)).await;
            let databases = created.map_err(|Stopping| inner.files.closed())??;
            let databases = databases.into_iter().map(Arc::new).collect();
            let (ports, closed) = (inner.ports.clone(), inner.files.closed());
            Ok(SetImport {
                ports,
                queue,
                closed,
                databases,
                position,
                meta,
                _keeps_compactions_off: keeps_compactions_off,
            })
        })
    }

    /// Replaces the present files by the imported ones, atomically also against a power cut. This handle and all its
    /// clones go on with the new state: what was applied before is gone from them, and waiting checkpoints end.
    ///
    /// Nothing may be applied between the call and its end. After an error the set is fenced (I-D6); the next open
    /// finds either all of the old files or all of the new ones.
    pub fn install(&self, mut import: SetImport) -> LocalBoxFuture<'static, Result<(), TableError>> {
        let set = self.clone();
        Box::pin(async move {
            set.idle().await;
            set.check()?;
            {
                let mut state = set.inner.state.borrow_mut();
                (state.busy, state.installing) = (true, true);
            }
            let mark = Mark { position: import.position, meta: std::mem::take(&mut import.meta).into_iter().collect() };
            let databases = std::mem::take(&mut import.databases);
            let files = Arc::clone(&set.inner.files);
            let job = move || -> Result<OpenedFiles, TableError> {
                for database in &databases {
                    database.fold(&mark, &FileChanges::new(), None)?;
                }
                files.declare_next()??;
                files.swap_in_next()?;
                let snapshots = databases.iter().map(|database| database.snapshot()).collect::<Result<_, _>>()?;
                Ok(OpenedFiles { databases, snapshots })
            };
            let result = set.inner.ports.offload(set.write_queue(), job).await;
            let result = result.unwrap_or_else(|Stopping| Err(set.inner.files.closed()));
            set.finish_install(result)
        })
    }

    fn finish_install(&self, result: Result<OpenedFiles, TableError>) -> Result<(), TableError> {
        self.forget_compactions();
        let mut state = self.inner.state.borrow_mut();
        state.installing = false;
        let outcome = match result {
            Ok(opened) => {
                let waiters = std::mem::take(&mut state.waiters);
                let idle_waiters = std::mem::take(&mut state.idle_waiters);
                let mut old = std::mem::replace(&mut *state, State::new(opened));
                state.idle_waiters = idle_waiters;
                for (_, waiter) in waiters {
                    let _ = waiter.send(Ok(()));
                }
                let (snapshots, databases) = (old.take_snapshots(), old.databases);
                self.inner.ports.offload_job(self.write_queue(), Box::new(move || drop((snapshots, databases))));
                Ok(())
            }
            Err(error) => {
                state.fence(error.clone());
                Err(error)
            }
        };
        state.become_idle();
        outcome
    }
}
