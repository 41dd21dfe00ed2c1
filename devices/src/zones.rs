//! The allocator of one lane on one device: which runs of blocks in the lane's zones are free.
//!
//! It lives in memory; the lane's journal and table make it durable. An extent is *used* from its allocation until it
//! is freed, and whoever frees it has flushed its release and waited for its reads first (I-C8).
//!
//! A free block is *undiscarded* until the device was told that it holds nothing. A run that is being discarded is
//! neither free nor used: were it given out again before the discard is done, the discard could take the new bytes.

use crate::runs::Runs;
use kiseki_types::{BlockCount, BlockIndex};
use std::collections::BTreeMap;
use thiserror::Error;

/// An extent that can't be marked as used: what a disk says about itself makes no sense.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ZoneError {
    /// It is empty or leaves the zones.
    #[error("extent at block {} of {} blocks lies outside the lane's zones", start.0, len.0)]
    Outside {
        /// First block.
        start: BlockIndex,
        /// Blocks.
        len: BlockCount,
    },
    /// Blocks of it are used by another extent.
    #[error("extent at block {} of {} blocks overlaps another one", start.0, len.0)]
    Overlap {
        /// First block.
        start: BlockIndex,
        /// Blocks.
        len: BlockCount,
    },
}

/// Most runs that one search for runs to discard looks at: slivers below the granularity must not cost a core its turn.
const DISCARD_RUNS_LOOKED_AT_MAX: usize = 1024;

/// Free and used blocks in the zones of one lane on one device. Extents never cross zones.
#[derive(Clone, Debug)]
pub struct Zones {
    /// Zones by first block, disjoint; value: blocks.
    zones: BTreeMap<u64, u64>,
    /// Free runs, none touching another in its zone.
    free: Runs,
    /// Used extents by first block; value: blocks.
    used: BTreeMap<u64, u64>,
    /// Parts of `free` that were freed since the start and not discarded.
    freed: Runs,
    /// Parts of `free` of which nobody knows whether they were discarded before the start.
    unknown: Runs,
    /// Runs out of use until their discard is done.
    discarding: Runs,
    total_blocks: u64,
    /// Where the next search starts: fresh extents move forward, so that they lie in sequence on the device.
    cursor: u64,
    /// Where the next search for runs to discard starts.
    discard_cursor: u64,
}

/// How free space is cut up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragmentation {
    /// Blocks of the longest free run.
    pub longest: BlockCount,
    /// Number of free runs.
    pub runs: u64,
    /// Blocks that extents of the asked length can be cut from.
    pub usable: BlockCount,
}

/// What to take for discarding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardWish {
    /// Most blocks.
    pub blocks_max: u64,
    /// The device discards whole units of so many blocks, counted from its first.
    pub granularity: u64,
    /// Also runs of which nobody knows whether they were discarded before the start.
    pub also_unknown: bool,
}

impl Zones {
    /// Empty zones. Panics when they overlap: a checked layout never does.
    #[must_use]
    pub fn new(zones: impl IntoIterator<Item = (BlockIndex, BlockCount)>) -> Zones {
        let zones: BTreeMap<u64, u64> = zones.into_iter().map(|(start, len)| (start.0, len.0)).collect();
        let (mut free, mut end) = (Runs::default(), 0);
        for (start, len) in &zones {
            assert!(*start >= end, "zones overlap at block {start}");
            end = start.checked_add(*len).expect("zones lie on the device");
            free.insert(*start, *len);
        }
        Zones {
            unknown: free.clone(),
            total_blocks: free.blocks(),
            free,
            zones,
            used: BTreeMap::new(),
            freed: Runs::default(),
            discarding: Runs::default(),
            cursor: 0,
            discard_cursor: 0,
        }
    }

    /// Blocks in all.
    #[must_use]
    pub fn total_blocks(&self) -> BlockCount {
        BlockCount(self.total_blocks)
    }

    /// Blocks that are free, those included whose discard is under way.
    #[must_use]
    pub fn free_blocks(&self) -> BlockCount {
        BlockCount(self.free.blocks() + self.discarding.blocks())
    }

    /// Blocks whose discard is under way.
    #[must_use]
    pub fn discarding_blocks(&self) -> BlockCount {
        BlockCount(self.discarding.blocks())
    }

    /// Blocks that were freed since the start and not discarded, and those of which nobody knows.
    #[must_use]
    pub fn undiscarded_blocks(&self) -> (BlockCount, BlockCount) {
        (BlockCount(self.freed.blocks()), BlockCount(self.unknown.blocks()))
    }

    /// How free space is cut up, for extents of `len` blocks.
    #[must_use]
    pub fn fragmentation(&self, len: BlockCount) -> Fragmentation {
        Fragmentation {
            longest: BlockCount(self.free.longest()),
            runs: self.free.count() as u64,
            usable: BlockCount(self.free.blocks_in_pieces(len.0.max(1))),
        }
    }

    /// Used extents, in order.
    pub fn used(&self) -> impl Iterator<Item = (BlockIndex, BlockCount)> + '_ {
        self.used.iter().map(|(start, len)| (BlockIndex(*start), BlockCount(*len)))
    }

    /// How many extents are used.
    #[must_use]
    pub fn used_count(&self) -> u64 {
        self.used.len() as u64
    }

    /// Blocks of the used extent that starts at `start`.
    #[must_use]
    pub fn used_at(&self, start: BlockIndex) -> Option<BlockCount> {
        self.used.get(&start.0).copied().map(BlockCount)
    }

    /// Takes a run of `len` free blocks, the first that fits from where the last one ended; `None` when no run is long
    /// enough.
    pub fn allocate(&mut self, len: BlockCount) -> Option<BlockIndex> {
        assert!(len.0 > 0, "an extent has blocks");
        if self.free.longest() < len.0 {
            return None;
        }
        let fits = |(start, run): (u64, u64)| (run >= len.0).then_some(start);
        let start = self.free.iter_from(self.cursor).find_map(fits).or_else(|| self.free.iter().find_map(fits))?;
        let run = self.free.remove(start).expect("found above");
        if run > len.0 {
            self.free.insert(start + len.0, run - len.0);
        }
        self.take(start, len.0);
        self.cursor = start + len.0;
        Some(BlockIndex(start))
    }

    /// Marks an extent as used: what a journal or table says.
    pub fn mark_used(&mut self, start: BlockIndex, len: BlockCount) -> Result<(), ZoneError> {
        let outside = ZoneError::Outside { start, len };
        let end = start.0.checked_add(len.0).filter(|_| len.0 > 0).ok_or(outside.clone())?;
        let zone = self.zones.range(..=start.0).next_back().filter(|(zone, blocks)| end <= *zone + *blocks);
        zone.ok_or(outside)?;
        let run = self.free.around(start.0).filter(|(run, blocks)| end <= run + blocks);
        let (run, blocks) = run.ok_or(ZoneError::Overlap { start, len })?;
        self.free.remove(run);
        if run < start.0 {
            self.free.insert(run, start.0 - run);
        }
        if end < run + blocks {
            self.free.insert(end, run + blocks - end);
        }
        self.take(start.0, len.0);
        Ok(())
    }

    fn take(&mut self, start: u64, len: u64) {
        let before = self.used.range(..start + len).next_back();
        // I-C8: none is given out twice.
        assert!(
            before.is_none_or(|(used, blocks)| used + blocks <= start),
            "I-C8: block {start}+{len} is used already"
        );
        // I-C8: nor while the device may still be forgetting what it holds.
        assert!(!self.discarding.overlaps(start, start + len), "I-C8: block {start}+{len} is being discarded");
        self.used.insert(start, len);
        self.freed.cut(start, start + len);
        self.unknown.cut(start, start + len);
    }

    /// Gives an extent back. Panics when exactly this extent is not used: that is our own bug.
    pub fn free(&mut self, start: BlockIndex, len: BlockCount) {
        let used = self.used.remove(&start.0);
        assert_eq!(used, Some(len.0), "I-C8: freeing block {}+{} that is not used as such", start.0, len.0);
        let zone = self.zone_around(start.0);
        self.free.join(start.0, len.0, zone);
        self.freed.join(start.0, len.0, zone);
    }

    /// First block and end of the zone that a used block lies in.
    fn zone_around(&self, block: u64) -> (u64, u64) {
        let (zone, blocks) = self.zones.range(..=block).next_back().expect("used blocks lie in a zone");
        (*zone, zone + blocks)
    }

    /// Takes an undiscarded free run out of use, one that was freed since the start before others. It has to come back
    /// through [`Zones::discarded`].
    pub fn take_discard(&mut self, wish: DiscardWish) -> Option<(BlockIndex, BlockCount)> {
        if wish.blocks_max < wish.granularity {
            return None;
        }
        let found = self.find_discard(&self.freed, &wish);
        let found = found.or_else(|| wish.also_unknown.then(|| self.find_discard(&self.unknown, &wish)).flatten());
        let Some((start, len)) = found else {
            self.discard_cursor = self.behind_looked_at(wish.also_unknown);
            return None;
        };
        self.discard_cursor = start + len;
        self.freed.cut(start, start + len);
        self.unknown.cut(start, start + len);
        self.free.cut(start, start + len);
        self.discarding.insert(start, len);
        Some((BlockIndex(start), BlockCount(len)))
    }

    fn find_discard(&self, runs: &Runs, wish: &DiscardWish) -> Option<(u64, u64)> {
        let behind = runs.iter_from(self.discard_cursor);
        let before = runs.iter().take_while(|(start, _)| *start < self.discard_cursor);
        let looked_at = behind.chain(before).take(DISCARD_RUNS_LOOKED_AT_MAX);
        looked_at.into_iter().find_map(|run| self.discardable(run, wish.granularity, wish.blocks_max))
    }

    /// Where the search goes on that found nothing: slivers smaller than the device's unit stay where they are, and longer
    /// runs may lie behind more of them than one search looks at.
    fn behind_looked_at(&self, also_unknown: bool) -> u64 {
        let next = |runs: &Runs| runs.iter_from(self.discard_cursor).nth(DISCARD_RUNS_LOOKED_AT_MAX).map(|(at, _)| at);
        let unknown = if also_unknown { next(&self.unknown) } else { None };
        next(&self.freed).into_iter().chain(unknown).min().unwrap_or(0)
    }

    /// Whole units of the device that hold blocks of the run and are free, at most `blocks_max` blocks.
    fn discardable(&self, (start, len): (u64, u64), unit: u64, blocks_max: u64) -> Option<(u64, u64)> {
        let (free, free_len) = self.free.around(start).expect("undiscarded blocks are free");
        let first = (start / unit * unit).max(free.next_multiple_of(unit));
        let end = (start + len).next_multiple_of(unit).min((free + free_len) / unit * unit);
        let end = end.min(first.saturating_add(blocks_max / unit * unit));
        (first < end).then(|| (first, end - first))
    }

    /// The discard of a run is done: it is free again. (The run of one that failed does not come back.)
    pub fn discarded(&mut self, start: BlockIndex, len: BlockCount) {
        let found = self.discarding.remove(start.0);
        assert_eq!(found, Some(len.0), "I-C8: block {}+{} is not being discarded as such", start.0, len.0);
        let zone = self.zone_around(start.0);
        self.free.join(start.0, len.0, zone);
    }
}

#[cfg(test)]
mod tests;
