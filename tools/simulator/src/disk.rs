//! What a medium remembers: durable blocks, and for each block the versions that were written but not flushed.

use crate::seed::SeededRng;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A drive writes this much at once or not at all; larger blocks can tear between these units.
pub const SECTOR_BYTES: usize = 512;

/// A block's bytes; `None` are zeros.
type Block = Option<Arc<[u8]>>;

/// A write to one block that is not durable.
#[derive(Clone)]
struct Version {
    /// When it completed, counted in completions of this medium.
    completed: u64,
    /// Lost by a failed flush: readable, but no later flush saves it.
    is_lost: bool,
    bytes: Block,
}

/// What a power cut tends to do; drawn once per cut, so that the extremes come up often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutMode {
    /// Nothing unflushed survives.
    DropAll,
    /// Everything unflushed survives, writes in flight included.
    KeepAll,
    /// Each block decides for itself.
    Mixed,
}

impl CutMode {
    /// One of the modes.
    #[must_use]
    pub fn draw(rng: &SeededRng) -> CutMode {
        match rng.below(6) {
            0 | 1 => CutMode::DropAll,
            2 => CutMode::KeepAll,
            _ => CutMode::Mixed,
        }
    }
}

/// The blocks of one medium.
#[derive(Clone)]
pub struct Blocks {
    block_len: usize,
    durable: BTreeMap<u64, Arc<[u8]>>,
    /// Versions of a block, oldest completion first; never an empty vector.
    unflushed: BTreeMap<u64, Vec<Version>>,
    completions: u64,
}

impl Blocks {
    /// A medium full of zeros.
    #[must_use]
    pub fn new(block_len: usize) -> Blocks {
        Blocks { block_len, durable: BTreeMap::new(), unflushed: BTreeMap::new(), completions: 0 }
    }

    /// The present content of the blocks from `start` on.
    pub fn read(&self, start: u64, out: &mut [u8]) {
        for (index, out) in (start..).zip(out.chunks_mut(self.block_len)) {
            match self.latest(index) {
                Some(bytes) => out.copy_from_slice(bytes),
                None => out.fill(0),
            }
        }
    }

    fn latest(&self, index: u64) -> Option<&[u8]> {
        match self.unflushed.get(&index).and_then(|versions| versions.last()) {
            Some(version) => version.bytes.as_deref(),
            None => self.durable.get(&index).map(|bytes| &**bytes),
        }
    }

    /// A write of whole blocks completes.
    pub fn write(&mut self, start: u64, bytes: &[u8]) {
        self.completions += 1;
        for (index, bytes) in (start..).zip(bytes.chunks(self.block_len)) {
            let version = Version { completed: self.completions, is_lost: false, bytes: block(bytes) };
            self.unflushed.entry(index).or_default().push(version);
        }
    }

    /// A write of one block completes, of bytes that may be shared with many others.
    pub fn write_shared(&mut self, index: u64, bytes: &Arc<[u8]>) {
        self.completions += 1;
        let bytes = is_set(bytes).then(|| bytes.clone());
        let version = Version { completed: self.completions, is_lost: false, bytes };
        self.unflushed.entry(index).or_default().push(version);
    }

    /// What a flush that is submitted now will cover: hand it to [`Blocks::flush`] when it completes.
    #[must_use]
    pub fn flush_mark(&self) -> u64 {
        self.completions
    }

    /// A flush completes: what had completed when it was submitted becomes durable.
    pub fn flush(&mut self, mark: u64) {
        let durable = &mut self.durable;
        self.unflushed.retain(|index, versions| {
            // What an earlier failed flush lost stays lost, whatever later flushes answer.
            let is_saved = |version: &Version| version.completed <= mark && !version.is_lost;
            if let Some(saved) = versions.iter().rposition(is_saved) {
                put(durable, *index, versions[saved].bytes.take());
                versions.drain(..=saved);
            }
            !versions.is_empty()
        });
    }

    /// A flush fails: each covered version is saved or lost, and looks the same to readers either way.
    pub fn fail_flush(&mut self, mark: u64, rng: &SeededRng) {
        for versions in self.unflushed.values_mut() {
            for version in versions.iter_mut().filter(|version| version.completed <= mark) {
                version.is_lost |= rng.chance(1, 2);
            }
        }
        self.flush(mark);
    }

    /// The power fails. Writes that had not completed may have reached the medium: they are to be written before.
    ///
    /// Each block written since its last flush becomes one of its versions (the durable one included) or, per sector,
    /// a mixture of them. Other blocks stay as they are.
    pub fn power_cut(&mut self, mode: CutMode, rng: &SeededRng) {
        for (index, mut versions) in std::mem::take(&mut self.unflushed) {
            let survivor = match mode {
                CutMode::DropAll => continue,
                CutMode::KeepAll => versions.pop().expect("never empty").bytes,
                CutMode::Mixed => {
                    let old = Version { completed: 0, is_lost: false, bytes: self.durable.get(&index).cloned() };
                    versions.insert(0, old);
                    if rng.chance(1, 3) {
                        self.torn(&versions, rng)
                    } else {
                        versions.swap_remove(rng.index(versions.len())).bytes
                    }
                }
            };
            put(&mut self.durable, index, survivor);
        }
    }

    /// A block of which each sector is from one of the versions.
    fn torn(&self, versions: &[Version], rng: &SeededRng) -> Block {
        let mut bytes = vec![0; self.block_len];
        for (sector, out) in bytes.chunks_mut(SECTOR_BYTES).enumerate() {
            if let Some(from) = &rng.pick(versions).bytes {
                let at = sector * SECTOR_BYTES;
                out.copy_from_slice(&from[at..at + out.len()]);
            }
        }
        block(&bytes)
    }

    /// Flips bits of one byte of a block, durably and unnoticed.
    pub fn rot(&mut self, index: u64, rng: &SeededRng) {
        let mut bytes = vec![0; self.block_len];
        self.read(index, &mut bytes);
        bytes[rng.index(self.block_len)] ^= 1 + rng.below(255) as u8;
        self.unflushed.remove(&index);
        put(&mut self.durable, index, block(&bytes));
    }

    /// Blocks that differ from the durable state.
    #[must_use]
    pub fn unflushed_count(&self) -> usize {
        self.unflushed.len()
    }

    /// Indexes of the blocks that hold something, in order.
    #[must_use]
    pub fn used(&self) -> Vec<u64> {
        let mut used: Vec<u64> = self.durable.keys().chain(self.unflushed.keys()).copied().collect();
        used.sort_unstable();
        used.dedup();
        used
    }
}

fn block(bytes: &[u8]) -> Block {
    is_set(bytes).then(|| bytes.into())
}

fn is_set(bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| *byte != 0)
}

fn put(durable: &mut BTreeMap<u64, Arc<[u8]>>, index: u64, bytes: Block) {
    match bytes {
        Some(bytes) => drop(durable.insert(index, bytes)),
        None => drop(durable.remove(&index)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 4096;

    fn content(blocks: &Blocks, index: u64) -> Vec<u8> {
        let mut out = vec![0; LEN];
        blocks.read(index, &mut out);
        out
    }

    #[test]
    fn a_completed_write_is_readable_but_a_cut_may_take_it() {
        let mut kept = [false; 2];
        for seed in 0..64 {
            let mut blocks = Blocks::new(LEN);
            blocks.write(5, &[1; LEN]);
            assert_eq!(content(&blocks, 5), [1; LEN]);
            let rng = SeededRng::new(seed);
            blocks.power_cut(CutMode::draw(&rng), &rng);
            match content(&blocks, 5) {
                bytes if bytes == [0; LEN] => kept[0] = true,
                bytes if bytes == [1; LEN] => kept[1] = true,
                _ => {}
            }
        }
        assert_eq!(kept, [true, true], "both outcomes come up");
    }

    #[test]
    fn flushed_blocks_survive_every_cut() {
        for seed in 0..64 {
            let mut blocks = Blocks::new(LEN);
            blocks.write(0, &[1; 2 * LEN]);
            let mark = blocks.flush_mark();
            blocks.write(1, &[2; LEN]);
            blocks.flush(mark);
            let rng = SeededRng::new(seed);
            blocks.write(7, &[9; LEN]);
            blocks.power_cut(CutMode::draw(&rng), &rng);
            assert_eq!(content(&blocks, 0), [1; LEN], "seed {seed}");
            assert!(
                content(&blocks, 1).iter().all(|byte| [1, 2].contains(byte)),
                "seed {seed}: never before the flush"
            );
            assert!(content(&blocks, 7).iter().all(|byte| [0, 9].contains(byte)), "seed {seed}");
        }
    }

    #[test]
    fn a_flush_covers_only_what_had_completed_when_it_was_submitted() {
        let mut blocks = Blocks::new(LEN);
        let mark = blocks.flush_mark();
        blocks.write(3, &[1; LEN]);
        blocks.flush(mark);
        blocks.power_cut(CutMode::DropAll, &SeededRng::new(1));
        assert_eq!(content(&blocks, 3), [0; LEN]);
    }

    #[test]
    fn blocks_tear_at_sectors_and_only_there() {
        let mut torn = 0;
        for seed in 0..64 {
            let mut blocks = Blocks::new(LEN);
            blocks.write(0, &[1; LEN]);
            blocks.flush(blocks.flush_mark());
            blocks.write(0, &[2; LEN]);
            blocks.power_cut(CutMode::Mixed, &SeededRng::new(seed));
            let bytes = content(&blocks, 0);
            for sector in bytes.chunks(SECTOR_BYTES) {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "seed {seed}: torn inside a sector");
            }
            torn += usize::from(bytes.contains(&1) && bytes.contains(&2));
        }
        assert!(torn > 5, "tearing comes up: {torn}");
    }

    #[test]
    fn a_retry_after_a_failed_flush_saves_nothing_that_was_lost() {
        let mut lost = 0;
        for seed in 0..32 {
            let mut blocks = Blocks::new(LEN);
            blocks.write(0, &[1; LEN]);
            blocks.fail_flush(blocks.flush_mark(), &SeededRng::new(seed));
            assert_eq!(content(&blocks, 0), [1; LEN], "it looks well");
            blocks.flush(blocks.flush_mark());
            blocks.power_cut(CutMode::DropAll, &SeededRng::new(seed));
            lost += usize::from(content(&blocks, 0) == [0; LEN]);
        }
        assert!((5..27).contains(&lost), "{lost}");
    }

    #[test]
    fn rot_changes_exactly_one_block() {
        for seed in 0..64 {
            let mut blocks = Blocks::new(LEN);
            blocks.write(0, &[1; 3 * LEN]);
            blocks.rot(1, &SeededRng::new(seed));
            assert_eq!(content(&blocks, 0), [1; LEN]);
            assert_ne!(content(&blocks, 1), [1; LEN], "seed {seed}");
            assert_eq!(content(&blocks, 2), [1; LEN]);
        }
    }
}
