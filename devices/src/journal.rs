//! The journal: an append-only run of records in a ring of pages, mirrored over one or more devices. One design for
//! both users: allocations of a lane on a device, and the Raft logs of a lane.
//!
//! - Records queue in memory; one write takes all that wait (group commit) as one *frame*: whole pages, a checksum over
//!   them, the checksum of the frame before (the chain). Frames are written once and never again; the next one starts on
//!   a fresh page.
//! - Each start is an *incarnation*: its number is flushed in a region header before its first frame.
//! - Each frame and header states through which record everything was durable when it was submitted. That tells a torn
//!   tail from damage at the next open.
//! - Trimming writes a region header; the space is used again only when that header is durable (I-C8).
//! - A failed write or flush fences the mirror (I-D6). With several mirrors the journal goes on with the rest only after
//!   the owner has made the new set of mirrors durable elsewhere.
//!
//! Layout: `docs/formats/journal.md`.

mod examine;
mod frame;
mod fuzz;
mod open;
mod region;
mod scan;
#[cfg(test)]
mod tests;
mod writer;

#[doc(hidden)]
pub use fuzz::fuzz_region;
pub(crate) use fuzz::fuzz_scan;

pub(crate) use examine::{ChainEnd, Examined, ReadJournal, TornFrame, examine};
pub use frame::{JournalId, PAGE_LEN_BYTES, REGION_LEN_BYTES_MAX};
pub use open::{JournalReport, format, open};
pub use region::{MirrorContent, MirrorRegion, RING_PAGES_MIN};

use frame::RECORD_HEADER_BYTES;
use kiseki_types::buf::BufferSource;
use kiseki_types::journal::{Journal, JournalError, ReplayedRecord, Sequence};
use kiseki_types::limits::JOURNAL_RECORD_LEN_BYTES_MAX;
use kiseki_types::runtime::{LocalBoxFuture, Ports};
use std::io;
use std::rc::Rc;
use thiserror::Error;
use writer::Writer;

/// Asks the owner whether the journal may go on without a mirror (its index, and what failed there). `Ok` means that
/// the new set of mirrors is durable elsewhere (a higher metadata-set epoch), so the lost one is never replayed again.
/// With a single mirror the answer is ignored: the journal is fenced.
pub type MirrorFailed = Rc<dyn Fn(usize, io::Error) -> LocalBoxFuture<'static, Result<(), String>>>;

/// What a journal is opened with.
#[derive(Clone)]
pub struct JournalConfig {
    /// For messages, such as `lane l0 on /dev/nvme0n1`.
    pub name: String,
    /// Which journal it must be.
    pub id: JournalId,
    /// Time and tasks.
    pub ports: Ports,
    /// Where the buffers of frames come from.
    pub buffers: BufferSource,
    /// Where it lies: at least one mirror, all regions of one length.
    pub mirrors: Vec<MirrorRegion>,
    /// What to do when a mirror fails.
    pub on_mirror_failed: MirrorFailed,
}

/// Why a journal could not be opened or formatted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JournalOpenError {
    /// The region was never formatted. It is not an empty journal: a missing one is lost, never new (I-L10).
    #[error("journal {journal} was never formatted in its region; it is missing, not empty")]
    Missing {
        /// Name of the journal.
        journal: String,
    },
    /// The region holds another journal.
    #[error("the region of journal {journal} holds another journal; it is left alone")]
    Foreign {
        /// Name of the journal.
        journal: String,
    },
    /// The chain breaks below what was flushed, on every mirror: records that somebody was told are safe are gone.
    #[error("journal {journal} is damaged: {reason}")]
    Damaged {
        /// Name of the journal.
        journal: String,
        /// Where and how.
        reason: String,
        /// What can be read before the break.
        readable: Vec<ReplayedRecord>,
    },
    /// No mirror can be read or written.
    #[error("journal {journal} can't be opened")]
    Io {
        /// Name of the journal.
        journal: String,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// The region is too small or too large, or the mirrors differ.
    #[error("journal {journal}: a region of {pages} pages does not fit; {needed} are needed")]
    Region {
        /// Name of the journal.
        journal: String,
        /// Pages that are there.
        pages: u64,
        /// Pages needed.
        needed: u64,
    },
}

/// A journal of one lane, on one core.
pub struct LaneJournal {
    writer: Rc<Writer>,
}

impl LaneJournal {
    /// One flush of every mirror, submitted after this call (so it covers whatever the caller has written to the same
    /// devices before), which also makes all records written so far durable.
    pub fn flush_now(&self) -> LocalBoxFuture<'static, Result<(), JournalError>> {
        let writer = self.writer.clone();
        Box::pin(async move { writer.flush_now().await })
    }

    /// Waits until the space of everything trimmed so far is durably given back.
    pub fn trim_persisted(&self) -> LocalBoxFuture<'static, Result<(), JournalError>> {
        let writer = self.writer.clone();
        Box::pin(async move { writer.trim_persisted().await })
    }

    /// Waits until `fill` is at most `fill_max`. The caller must have seen to it that somebody trims.
    pub fn room(&self, fill_max: f64) -> LocalBoxFuture<'static, Result<(), JournalError>> {
        let writer = self.writer.clone();
        Box::pin(async move { writer.room(fill_max).await })
    }

    /// Takes nothing any more and answers everybody who waits: its only device is not used any more (I-D6).
    pub(crate) fn fence(&self, reason: &str) {
        self.writer.fence(reason);
    }

    /// Everything up to here is durable.
    #[must_use]
    pub fn flushed_through(&self) -> Sequence {
        self.writer.flushed_through()
    }

    /// Everything up to here is durably trimmed.
    #[must_use]
    pub fn trimmed_through(&self) -> Sequence {
        self.writer.trimmed_through()
    }

    /// Mirrors that the journal still writes to.
    #[must_use]
    pub fn mirrors_live(&self) -> Vec<bool> {
        self.writer.mirrors_live()
    }
}

impl Journal for LaneJournal {
    fn append(&self, record: &[u8]) -> Result<Sequence, JournalError> {
        if record.len() > JOURNAL_RECORD_LEN_BYTES_MAX {
            return Err(JournalError::TooLong { len: record.len(), limit: JOURNAL_RECORD_LEN_BYTES_MAX });
        }
        self.writer.clone().append(record)
    }

    fn written(&self, sequence: Sequence) -> LocalBoxFuture<'static, Result<(), JournalError>> {
        let writer = self.writer.clone();
        Box::pin(async move { writer.written(sequence).await })
    }

    fn flushed(&self, sequence: Sequence) -> LocalBoxFuture<'static, Result<(), JournalError>> {
        let writer = self.writer.clone();
        Box::pin(async move { writer.flushed(sequence).await })
    }

    fn trim(&self, sequence: Sequence) {
        self.writer.clone().trim(sequence);
    }

    fn last(&self) -> Sequence {
        self.writer.last()
    }

    fn fill(&self) -> f64 {
        self.writer.fill()
    }
}

/// Bytes that a record takes in a frame.
fn record_space(record_len: usize) -> usize {
    RECORD_HEADER_BYTES + record_len
}
