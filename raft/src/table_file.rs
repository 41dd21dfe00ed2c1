//! One table file with its overlay, for rooms other than Raft: a [`TableSet`] of one file.

pub(crate) mod database;
mod live_count;

use crate::table_set::{FileSpec, TableSet, TableSettings};
use kiseki_types::meta::MetaDir;
use kiseki_types::runtime::{LocalBoxFuture, Ports};
use kiseki_types::secret::SecretKey;
use kiseki_types::table::{Row, Scan, TableError, TableId, TableReader, TableStore, TableWrite};
use std::sync::Arc;

/// A table file. A clone is another handle of the same file.
#[derive(Clone)]
pub struct TableFile {
    set: TableSet,
}

impl TableFile {
    /// Opens or makes the file (on a side thread).
    ///
    /// - `seal`: the metadata key its pages are encrypted under; `None` for a clear file with checksummed pages.
    /// - Errors: the file is damaged or sealed under another key.
    pub fn open(
        ports: Ports,
        dir: Arc<dyn MetaDir>,
        name: &str,
        seal: Option<SecretKey>,
        settings: TableSettings,
    ) -> LocalBoxFuture<'static, Result<TableFile, TableError>> {
        let opening = TableSet::open(ports, dir, vec![FileSpec { name: name.to_owned(), seal }], settings);
        Box::pin(async move { Ok(TableFile { set: opening.await? }) })
    }

    /// Puts and removes rows, atomically and visibly at once; `position` and `meta` become durable with them.
    ///
    /// - `position`: never lower than the one before; users without positions say 0 always.
    pub fn write(&self, writes: Vec<TableWrite>, position: u64, meta: Vec<Row>) {
        self.set.put(position, writes, meta);
    }

    /// A meta row as of the last write.
    #[must_use]
    pub fn meta(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.set.meta(key)
    }

    /// Position of the last write.
    #[must_use]
    pub fn applied_position(&self) -> u64 {
        self.set.applied_position()
    }

    /// Position that the file holds durably.
    #[must_use]
    pub fn durable_position(&self) -> u64 {
        self.set.durable_position()
    }

    /// Bytes in the overlay, about.
    #[must_use]
    pub fn overlay_bytes(&self) -> usize {
        self.set.overlay_bytes()
    }

    /// Why the file takes no more calls, if so.
    #[must_use]
    pub fn failure(&self) -> Option<TableError> {
        self.set.failure()
    }

    /// Checkpoints and closes; every later call is an error.
    pub fn close(&self) -> LocalBoxFuture<'static, Result<(), TableError>> {
        self.set.close()
    }
}

impl TableReader for TableFile {
    fn get(
        &self,
        file: u8,
        table: TableId,
        key: &[u8],
    ) -> LocalBoxFuture<'static, Result<Option<Vec<u8>>, TableError>> {
        self.set.get(file, table, key)
    }

    fn scan(&self, scan: Scan) -> LocalBoxFuture<'static, Result<Vec<Row>, TableError>> {
        self.set.scan(scan)
    }
}

impl TableStore for TableFile {
    fn write(&self, writes: Vec<TableWrite>) {
        self.set.put(self.set.applied_position(), writes, Vec::new());
    }

    fn checkpoint(&self) -> LocalBoxFuture<'static, Result<(), TableError>> {
        self.set.checkpoint()
    }

    fn overlay_rows(&self) -> usize {
        self.set.overlay_rows()
    }
}
