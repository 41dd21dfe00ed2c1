//! The allocator of one lane on one device: which runs of blocks in the lane's zones are free.
//!
//! It lives in memory; the lane's journal and table make it durable. An extent is *used* from its allocation until it
//! is freed, and whoever frees it has flushed its release and waited for its reads first (I-C8).

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

/// Free and used blocks in the zones of one lane on one device. Extents never cross zones.
#[derive(Clone, Debug)]
pub struct Zones {
    /// Zones by first block, disjoint; value: blocks.
    zones: BTreeMap<u64, u64>,
    /// Free runs by first block, disjoint, none touching another in its zone; value: blocks.
    free: BTreeMap<u64, u64>,
    /// Used extents by first block; value: blocks.
    used: BTreeMap<u64, u64>,
    free_blocks: u64,
    total_blocks: u64,
    /// Where the next search starts: fresh extents move forward, so that they lie in sequence on the device.
    cursor: u64,
}

impl Zones {
    /// Empty zones. Panics when they overlap: a checked layout never does.
    #[must_use]
    pub fn new(zones: impl IntoIterator<Item = (BlockIndex, BlockCount)>) -> Zones {
        let zones: BTreeMap<u64, u64> = zones.into_iter().map(|(start, len)| (start.0, len.0)).collect();
        let mut end = 0;
        for (start, len) in &zones {
            assert!(*start >= end, "zones overlap at block {start}");
            end = start.checked_add(*len).expect("zones lie on the device");
        }
        let total_blocks = zones.values().sum();
        Zones { free: zones.clone(), zones, used: BTreeMap::new(), free_blocks: total_blocks, total_blocks, cursor: 0 }
    }

    /// Blocks in all.
    #[must_use]
    pub fn total_blocks(&self) -> BlockCount {
        BlockCount(self.total_blocks)
    }

    /// Blocks that are free.
    #[must_use]
    pub fn free_blocks(&self) -> BlockCount {
        BlockCount(self.free_blocks)
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
        let fits = |(start, run): (&u64, &u64)| (*run >= len.0).then_some(*start);
        let start =
            self.free.range(self.cursor..).find_map(fits).or_else(|| self.free.range(..self.cursor).find_map(fits))?;
        let run = self.free.remove(&start).expect("found above");
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
        let run = self.free.range(..=start.0).next_back().map(|(run, blocks)| (*run, *blocks));
        let (run, blocks) = run.filter(|(run, blocks)| end <= run + blocks).ok_or(ZoneError::Overlap { start, len })?;
        self.free.remove(&run);
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
        self.used.insert(start, len);
        self.free_blocks -= len;
    }

    /// Gives an extent back. Panics when exactly this extent is not used: that is our own bug.
    pub fn free(&mut self, start: BlockIndex, len: BlockCount) {
        let used = self.used.remove(&start.0);
        assert_eq!(used, Some(len.0), "I-C8: freeing block {}+{} that is not used as such", start.0, len.0);
        self.free_blocks += len.0;
        let (zone, blocks) =
            self.zones.range(..=start.0).next_back().map(|(zone, blocks)| (*zone, *blocks)).expect("used lies in one");
        let (mut run, mut end) = (start.0, start.0 + len.0);
        if let Some((before, blocks)) = self.free.range(zone..run).next_back().map(|(at, blocks)| (*at, *blocks))
            && before + blocks == run
        {
            self.free.remove(&before);
            run = before;
        }
        if end < zone + blocks
            && let Some(blocks) = self.free.remove(&end)
        {
            end += blocks;
        }
        self.free.insert(run, end - run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn zones() -> Zones {
        // two zones that touch, and one apart
        Zones::new([(10, 40), (50, 30), (100, 25)].map(|(start, len)| (BlockIndex(start), BlockCount(len))))
    }

    #[test]
    fn extents_never_cross_zones_and_come_back_whole() {
        let mut zones = zones();
        assert_eq!(zones.allocate(BlockCount(41)), None, "the longest zone has 40");
        let long = zones.allocate(BlockCount(40)).unwrap();
        assert_eq!(long, BlockIndex(10));
        let rest: Vec<_> = [30, 25].map(|len| zones.allocate(BlockCount(len)).unwrap().0).to_vec();
        assert_eq!(rest, [50, 100]);
        assert_eq!((zones.free_blocks(), zones.allocate(BlockCount(1))), (BlockCount(0), None));
        zones.free(long, BlockCount(40));
        zones.free(BlockIndex(50), BlockCount(30));
        assert_eq!(zones.allocate(BlockCount(41)), None, "touching zones stay two");
        assert!(zones.mark_used(BlockIndex(45), BlockCount(6)).unwrap_err().to_string().contains("outside"));
        assert!(matches!(zones.mark_used(BlockIndex(100), BlockCount(1)), Err(ZoneError::Overlap { .. })));
        assert!(matches!(zones.mark_used(BlockIndex(0), BlockCount(u64::MAX)), Err(ZoneError::Outside { .. })));
        zones.mark_used(BlockIndex(20), BlockCount(5)).unwrap();
        assert_eq!(
            zones.used().collect::<Vec<_>>(),
            [(BlockIndex(20), BlockCount(5)), (BlockIndex(100), BlockCount(25))]
        );
    }

    proptest! {
        /// Against a model that knows each block: no block is given twice, none is lost, and no space is left unused
        /// that would have fitted.
        #[test]
        fn i_c8_no_extent_is_given_twice_and_none_is_lost(steps in prop::collection::vec((0_u8..3, 0_u64..30), 1..300)) {
            let mut zones = zones();
            let all: BTreeSet<u64> = (10..80).chain(100..125).collect();
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            let taken = |model: &BTreeMap<u64, u64>| -> BTreeSet<u64> {
                model.iter().flat_map(|(start, len)| *start..start + len).collect()
            };
            for (step, number) in steps {
                match (step, model.len()) {
                    (0 | 1, _) => {
                        let len = 1 + number % 12;
                        let used = taken(&model);
                        match zones.allocate(BlockCount(len)) {
                            Some(start) => {
                                for block in start.0..start.0 + len {
                                    prop_assert!(all.contains(&block) && !used.contains(&block), "block {block}");
                                }
                                prop_assert!(start.0 >= 50 || start.0 + len <= 50, "crosses zones");
                                model.insert(start.0, len);
                            }
                            None => {
                                let fits = |start: u64| (start..start + len).all(|block| all.contains(&block)
                                    && !used.contains(&block)) && (start >= 50 || start + len <= 50);
                                prop_assert!(!(10..125).any(fits), "{len} blocks would have fitted");
                            }
                        }
                    }
                    (_, 0) => {}
                    (_, count) => {
                        let start = *model.keys().nth(number as usize % count).unwrap();
                        let len = model.remove(&start).unwrap();
                        zones.free(BlockIndex(start), BlockCount(len));
                    }
                }
                prop_assert_eq!(zones.free_blocks().0, 95 - model.values().sum::<u64>());
            }
            let mut rebuilt = super::tests::zones();
            for (start, len) in &model {
                rebuilt.mark_used(BlockIndex(*start), BlockCount(*len)).unwrap();
            }
            prop_assert_eq!(&rebuilt.free, &zones.free);
            prop_assert_eq!(&rebuilt.used, &zones.used);
        }
    }
}
