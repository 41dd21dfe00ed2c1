//! What a drive's volatile cache may hold of one queue's writes, and whether a reset can have taken it (I-D6).
//!
//! A drive that had to be reset may have restarted and lost what was written and not flushed. The next flush would succeed all
//! the same. So every write is stamped, when it is submitted, with how many resets were seen on the drive until then, by
//! whichever core; it counts as kept only when a flush that covers it ends under the same number.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Signs of resets on one drive, seen by the queues of all cores that it was opened for.
#[derive(Clone, Debug, Default)]
pub(crate) struct ResetCount(Arc<AtomicU64>);

impl ResetCount {
    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Writes of one queue that no flush has covered.
pub(crate) struct CacheWatch {
    resets: ResetCount,
    /// Stamp of the oldest completed write that no flush covers yet.
    unflushed: Cell<Option<u64>>,
    /// The same of those that the flush in flight covers.
    flushing: Cell<Option<u64>>,
}

impl CacheWatch {
    pub fn new(resets: ResetCount) -> CacheWatch {
        CacheWatch { resets, unflushed: Cell::new(None), flushing: Cell::new(None) }
    }

    /// The stamp of what is submitted now.
    pub fn stamp(&self) -> u64 {
        self.resets.now()
    }

    /// A write has ended well. False: a reset came between, so whether the drive did it before or after is unknown.
    pub fn is_write_kept(&self, stamp: u64) -> bool {
        self.unflushed.set(oldest(self.unflushed.get(), Some(stamp)));
        stamp == self.resets.now()
    }

    /// A flush is submitted: it covers what has completed.
    pub fn flush_starts(&self) {
        self.flushing.set(oldest(self.flushing.get(), self.unflushed.take()));
    }

    /// It has ended well. False: a reset may have taken what it should have kept.
    pub fn is_flush_kept(&self) -> bool {
        self.flushing.take().is_none_or(|stamp| stamp == self.resets.now())
    }

    /// An answer told of a reset. True: writes that no flush has covered may be lost.
    pub fn reset_seen(&self) -> bool {
        self.resets.0.fetch_add(1, Ordering::SeqCst);
        self.unflushed.get().or(self.flushing.get()).is_some()
    }
}

fn oldest(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i_d6_a_reset_counts_against_what_no_flush_has_covered() {
        let drive = ResetCount::default();
        let watch = CacheWatch::new(drive.clone());
        assert!(!watch.reset_seen(), "nothing was written");
        assert!(watch.is_write_kept(watch.stamp()));
        watch.flush_starts();
        assert!(watch.is_flush_kept() && !watch.reset_seen(), "all is flushed");

        assert!(watch.is_write_kept(watch.stamp()));
        watch.flush_starts();
        assert!(watch.reset_seen() && !watch.is_flush_kept(), "I-D6: while the flush was under way");
        assert!(watch.is_write_kept(watch.stamp()));
        assert!(watch.reset_seen(), "I-D6: before there was a flush");
    }

    #[test]
    fn i_d6_a_flush_covers_only_what_had_completed() {
        let watch = CacheWatch::new(ResetCount::default());
        let (first, second) = (watch.stamp(), watch.stamp());
        assert!(watch.is_write_kept(first));
        watch.flush_starts();
        assert!(watch.is_write_kept(second), "completed too late for the flush");
        assert!(watch.is_flush_kept());
        assert!(watch.reset_seen(), "I-D6: the late one was covered by none");
    }

    #[test]
    fn i_d6_a_reset_that_another_core_saw_counts_too() {
        let drive = ResetCount::default();
        let (mine, other) = (CacheWatch::new(drive.clone()), CacheWatch::new(drive));
        let stamp = mine.stamp();
        assert!(mine.is_write_kept(stamp) && !other.reset_seen(), "it has nothing to lose itself");
        mine.flush_starts();
        assert!(!mine.is_flush_kept(), "I-D6: written before the reset, flushed after it");
        assert!(!mine.is_write_kept(stamp), "I-D6: under way during the reset");
    }
}
