//! Disjoint runs of blocks, and how many of them have which length.

use std::collections::BTreeMap;

/// Runs by first block, disjoint. Runs that touch stay apart unless they are [joined](Runs::join).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs {
    /// Value: blocks.
    runs: BTreeMap<u64, u64>,
    /// How many runs have a length; never 0.
    lengths: BTreeMap<u64, u64>,
    blocks: u64,
}

impl Runs {
    /// Blocks in all.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Number of runs.
    pub fn count(&self) -> usize {
        self.runs.len()
    }

    /// Blocks of the longest run, 0 without any.
    pub fn longest(&self) -> u64 {
        self.lengths.last_key_value().map_or(0, |(len, _)| *len)
    }

    /// Blocks that pieces of `piece` blocks can be cut from.
    pub fn blocks_in_pieces(&self, piece: u64) -> u64 {
        self.lengths.iter().map(|(len, count)| len / piece * piece * count).sum()
    }

    /// The runs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs.iter().map(|(start, len)| (*start, *len))
    }

    /// The runs that start at `from` or behind it, in order.
    pub fn iter_from(&self, from: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs.range(from..).map(|(start, len)| (*start, *len))
    }

    /// The run that holds a block.
    pub fn around(&self, block: u64) -> Option<(u64, u64)> {
        let (start, len) = self.runs.range(..=block).next_back().map(|(start, len)| (*start, *len))?;
        (block < start + len).then_some((start, len))
    }

    /// Whether a run holds one of the blocks from `start` to `end`.
    pub fn overlaps(&self, start: u64, end: u64) -> bool {
        self.runs.range(..end).next_back().is_some_and(|(run, len)| run + len > start)
    }

    /// Adds a run that overlaps no other. Panics when it does: our own bug.
    pub fn insert(&mut self, start: u64, len: u64) {
        assert!(len > 0, "a run has blocks");
        assert!(!self.overlaps(start, start + len), "I-C8: run {start}+{len} overlaps another");
        self.runs.insert(start, len);
        *self.lengths.entry(len).or_default() += 1;
        self.blocks += len;
    }

    /// Takes out the run that starts at `start`.
    pub fn remove(&mut self, start: u64) -> Option<u64> {
        let len = self.runs.remove(&start)?;
        let count = self.lengths.get_mut(&len).expect("every run's length is counted");
        *count -= 1;
        if *count == 0 {
            self.lengths.remove(&len);
        }
        self.blocks -= len;
        Some(len)
    }

    /// Adds a run and joins it with those that touch it inside `within` (first block, end).
    pub fn join(&mut self, start: u64, len: u64, within: (u64, u64)) {
        let (mut run, mut end) = (start, start + len);
        if let Some((before, blocks)) = self.runs.range(within.0..run).next_back().map(|(at, blocks)| (*at, *blocks))
            && before + blocks == run
        {
            self.remove(before);
            run = before;
        }
        if end < within.1
            && let Some(blocks) = self.remove(end)
        {
            end += blocks;
        }
        self.insert(run, end - run);
    }

    /// Takes the blocks from `start` to `end` out, wherever they are in.
    pub fn cut(&mut self, start: u64, end: u64) {
        while let Some((run, len)) = self.runs.range(..end).next_back().map(|(run, len)| (*run, *len)) {
            if run + len <= start {
                return;
            }
            self.remove(run);
            if run + len > end {
                self.insert(end, run + len - end);
            }
            if run < start {
                self.insert(run, start - run);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_inside_their_zone_and_are_cut_anywhere() {
        let mut runs = Runs::default();
        for (start, len) in [(10, 5), (20, 5), (15, 5), (30, 10)] {
            runs.join(start, len, (10, 30));
        }
        assert_eq!(runs.iter().collect::<Vec<_>>(), [(10, 15), (30, 10)], "the zone ends at 30");
        assert_eq!((runs.blocks(), runs.longest(), runs.count(), runs.blocks_in_pieces(4)), (25, 15, 2, 20));
        runs.cut(12, 33);
        assert_eq!(runs.iter().collect::<Vec<_>>(), [(10, 2), (33, 7)]);
        assert_eq!((runs.blocks(), runs.longest()), (9, 7));
        assert_eq!((runs.around(11), runs.around(12), runs.around(9)), (Some((10, 2)), None, None));
        runs.cut(0, 100);
        assert_eq!(runs, Runs::default());
    }
}
