//! Ordered tables in metadata files (redb in production and in the simulator), with an overlay in memory of what is
//! applied but not yet in the file.

use crate::runtime::LocalBoxFuture;
use std::ops::Bound;
use thiserror::Error;

/// Number of a table in a file; each owner names its own.
pub type TableId = u8;

/// A row: key and value.
pub type Row = (Vec<u8>, Vec<u8>);

/// Why a table could not be read or written.
#[derive(Debug, Error, Clone)]
#[non_exhaustive]
pub enum TableError {
    /// The file is damaged, sealed under another key, or its disk failed.
    #[error("metadata file {file}: {reason}")]
    File {
        /// Its name.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The node is stopping.
    #[error("metadata file {file} is closed; the node is stopping")]
    Closed {
        /// Its name.
        file: String,
    },
}

/// One change of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableWrite {
    /// Which file of the set (a lone file is 0).
    pub file: u8,
    /// Which table.
    pub table: TableId,
    /// The key.
    pub key: Vec<u8>,
    /// The new value; `None` removes the row.
    pub value: Option<Vec<u8>>,
}

/// Which rows a scan wants.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Which file of the set.
    pub file: u8,
    /// Which table.
    pub table: TableId,
    /// From here.
    pub from: Bound<Vec<u8>>,
    /// To here.
    pub to: Bound<Vec<u8>>,
    /// At most so many rows.
    pub limit: usize,
    /// From the low end or from the high end.
    pub direction: Direction,
}

/// Order of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Lowest key first.
    Forward,
    /// Highest key first.
    Backward,
}

impl Scan {
    /// All rows of `table` whose key starts with `prefix`, lowest first.
    #[must_use]
    pub fn prefix(file: u8, table: TableId, prefix: &[u8], limit: usize) -> Scan {
        Scan {
            file,
            table,
            from: Bound::Included(prefix.to_vec()),
            to: prefix_end(prefix),
            limit,
            direction: Direction::Forward,
        }
    }
}

/// The bound behind every key that starts with `prefix`.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Bound<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return Bound::Excluded(end);
        }
    }
    Bound::Unbounded
}

/// Reads of a set of table files.
///
/// To be correct: a read sees every write applied before it was called, and a scan is one snapshot of its file.
pub trait TableReader {
    /// One row.
    fn get(&self, file: u8, table: TableId, key: &[u8])
    -> LocalBoxFuture<'static, Result<Option<Vec<u8>>, TableError>>;
    /// Rows in order.
    fn scan(&self, scan: Scan) -> LocalBoxFuture<'static, Result<Vec<Row>, TableError>>;
}

/// How long a set's files are and what of it is rows: for metrics, never for a decision about data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableSizes {
    /// Length of all files, as they lie in each metadata directory.
    pub file_bytes: u64,
    /// Keys and values of all rows in them.
    pub live_bytes: u64,
    /// Compactions since the set was opened.
    pub compactions: u64,
    /// Bytes by which these made the files shorter.
    pub compacted_bytes: u64,
}

/// A table file that a room other than Raft owns (the fragment index of a lane): its durability comes from a journal
/// that the owner replays.
///
/// To be correct: `write` is visible to reads at once; all writes of one call reach the file in one transaction, in
/// call order; `checkpoint` ends when everything written before it is durable. Without a checkpoint writes are folded
/// in the background when the overlay grows.
pub trait TableStore: TableReader {
    /// Puts and removes rows, atomically.
    fn write(&self, writes: Vec<TableWrite>);
    /// Makes everything written so far durable.
    fn checkpoint(&self) -> LocalBoxFuture<'static, Result<(), TableError>>;
    /// Rows that wait in memory.
    fn overlay_rows(&self) -> usize;
}
