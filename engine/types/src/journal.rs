//! The journal port: an append-only run of records with a durable watermark. Two users: allocations of a lane on a
//! device, and the Raft logs of a lane (there the journal is mirrored over the metadata directories).

use crate::runtime::LocalBoxFuture;
use thiserror::Error;

/// Position of a record; the first of a journal is 1; numbers never come again, across restarts too.
pub type Sequence = u64;

/// Why a journal did not take or keep a record.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum JournalError {
    /// No room until older records are trimmed.
    #[error("journal {journal} is full; it is folded in the background, try again")]
    Full {
        /// Name of the journal.
        journal: String,
    },
    /// The record is longer than a journal takes.
    #[error("record of {len} bytes is over the limit of {limit}")]
    TooLong {
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// A write or flush failed; the journal takes nothing any more until it is reopened and checked (I-D6).
    #[error("journal {journal} failed: {reason}; its device is fenced until it is reopened and checked")]
    Fenced {
        /// Name of the journal.
        journal: String,
        /// What failed.
        reason: String,
    },
}

/// A journal of one lane, on one core.
///
/// To be correct:
/// - `append` only queues (no await); records are written in order, several to a block, and blocks once submitted are
///   never written again.
/// - `written(s)` ends when every record up to `s` has been written everywhere (not durable yet): then, and only then,
///   one flush of the device makes them durable.
/// - `flushed(s)` ends when every record up to `s` is durable everywhere; waiters share flushes.
/// - After a failure every waiter, present and future, gets `Fenced`.
/// - On the next open all records after the last `trim` that were flushed are replayed in order; records that were
///   written but not flushed may be replayed or not, but never with a gap before them.
pub trait Journal {
    /// Queues a record.
    fn append(&self, record: &[u8]) -> Result<Sequence, JournalError>;
    /// Waits until all records up to `sequence` are written.
    fn written(&self, sequence: Sequence) -> LocalBoxFuture<'static, Result<(), JournalError>>;
    /// Waits until all records up to `sequence` are durable.
    fn flushed(&self, sequence: Sequence) -> LocalBoxFuture<'static, Result<(), JournalError>>;
    /// Everything up to `sequence` is held durably elsewhere and need not be replayed; its space is used again.
    fn trim(&self, sequence: Sequence);
    /// Highest sequence handed out (0: none yet).
    fn last(&self) -> Sequence;
    /// Share of the journal's space in use, 0.0 to 1.0; above one half the owner folds.
    fn fill(&self) -> f64;
}

/// A record that an open found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayedRecord {
    /// Its position.
    pub sequence: Sequence,
    /// Whether the journal itself knows that the record was flushed. When false, the owner believes the record only
    /// if what it names verifies.
    pub flushed: bool,
    /// Its bytes.
    pub bytes: Vec<u8>,
}
