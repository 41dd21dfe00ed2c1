//! Metadata files: what redb lives in. Blocking, so only side threads (and the start of a node) call them.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// One file in the metadata directories. To be correct: as a POSIX file with pread, pwrite, ftruncate, fdatasync;
/// unsynced writes may be lost, torn or reordered by a power cut, in units of 512 bytes; `sync` makes all completed
/// writes and the length durable **in every directory of the metadata set** before it returns.
pub trait MetaFile: Send + Sync + fmt::Debug {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends (with zeros).
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;
    /// Fills `out` from `offset`; an end of file before that is an error of kind `UnexpectedEof`.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`, extending the file where needed.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything written so far durable.
    fn sync(&self) -> io::Result<()>;
}

/// The metadata directories of a node as one directory.
///
/// To be correct: `open` of a new file, `rename` and `remove` are durable on return; `rename` replaces atomically.
/// Names are plain (no '/').
pub trait MetaDir: Send + Sync + fmt::Debug {
    /// Opens a file that must exist (`NotFound` otherwise).
    fn open(&self, name: &str) -> io::Result<Arc<dyn MetaFile>>;
    /// Makes an empty file; `AlreadyExists` when it is there.
    fn create(&self, name: &str) -> io::Result<Arc<dyn MetaFile>>;
    /// Names of all files, sorted.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Removes a file; removing what is not there is no error.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Renames, replacing what is there.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Bytes that copies of files under way may take, of all who use the directory; `None` where nobody else does.
    fn reserved(&self) -> Option<Arc<AtomicU64>> {
        None
    }
    /// How much room the file system of each directory has; none where that is not known.
    fn spaces(&self) -> io::Result<Vec<MetaSpace>> {
        Ok(Vec::new())
    }
}

/// Room of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaSpace {
    /// Bytes in use, by whomever.
    pub used_bytes: u64,
    /// Bytes that may be in use.
    pub total_bytes: u64,
    /// Tells file systems of a node apart: directories on the same one share its room.
    pub file_system: u64,
}

impl MetaSpace {
    /// How full it is, rounded up.
    #[must_use]
    pub fn fill_percent(self) -> u8 {
        let percent = (100 * u128::from(self.used_bytes)).div_ceil(u128::from(self.total_bytes.max(1)));
        u8::try_from(percent).unwrap_or(u8::MAX)
    }

    /// Bytes up to so many percent of it.
    #[must_use]
    pub fn room_to(self, percent: u8) -> u64 {
        let limit = u128::from(self.total_bytes) * u128::from(percent) / 100;
        u64::try_from(limit).unwrap_or(u64::MAX).saturating_sub(self.used_bytes)
    }

    /// What each directory may take for itself: `room` says it of a file system, whose room its directories share, since what
    /// is written to all of them is written there as often.
    pub fn rooms_of_each(spaces: &[MetaSpace], room: impl Fn(MetaSpace) -> u64) -> impl Iterator<Item = u64> {
        spaces.iter().map(move |space| {
            let sharing = spaces.iter().filter(|other| other.file_system == space.file_system).count() as u64;
            room(*space) / sharing
        })
    }
}
