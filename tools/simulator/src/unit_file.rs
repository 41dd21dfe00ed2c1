//! What a metadata file remembers: its present bytes, and per unit of 512 bytes what a power cut can bring back.

use crate::disk::CutMode;
use crate::seed::SeededRng;
use std::collections::{BTreeMap, BTreeSet};

/// Unsynced writes are lost, kept and reordered in such units.
pub const UNIT_BYTES: usize = 512;

/// Versions of a unit that are remembered between two syncs; of more, one in the middle is forgotten.
const VERSIONS_MAX: usize = 6;

type Unit = [u8; UNIT_BYTES];

/// A file's content. All methods are instantaneous; errors are the business of the directory around it.
#[derive(Clone, Debug, Default)]
pub struct UnitFile {
    present: Vec<u8>,
    durable: Vec<u8>,
    /// Per unit, what it held after each write since the last sync, oldest first.
    unsynced: BTreeMap<usize, Vec<Unit>>,
    /// Lengths since the last sync, oldest first.
    lens: Vec<usize>,
    /// Units that a failed sync lost: they look written, but only a new write makes them savable.
    lost: BTreeSet<usize>,
}

impl UnitFile {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.present.len()
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.present.is_empty()
    }

    /// The bytes as readers see them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.present
    }

    /// Writes, extending with zeros where needed.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if end > self.present.len() {
            self.set_len(end);
        }
        self.present[offset..end].copy_from_slice(bytes);
        self.remember(offset..end);
    }

    /// Cuts or extends with zeros.
    pub fn set_len(&mut self, len: usize) {
        let old = self.present.len();
        if len == old {
            return;
        }
        self.lens.push(len);
        if len < old {
            // Were the file to grow again, what is cut off now must read as zeros, also after a power cut.
            self.present[len..].fill(0);
            self.remember(len..old);
        }
        self.present.resize(len, 0);
    }

    fn remember(&mut self, range: std::ops::Range<usize>) {
        for unit in range.start / UNIT_BYTES..range.end.div_ceil(UNIT_BYTES) {
            let version = unit_of(&self.present, unit);
            let versions = self.unsynced.entry(unit).or_default();
            if versions.len() >= VERSIONS_MAX {
                versions.remove(VERSIONS_MAX / 2);
            }
            versions.push(version);
            self.lost.remove(&unit);
        }
    }

    /// Everything written so far becomes durable, but for what a failed sync lost.
    pub fn sync(&mut self) {
        if !self.lens.is_empty() {
            self.durable.resize(self.present.len(), 0);
            self.lens.clear();
        }
        let (lost, present, durable) = (&self.lost, &self.present, &mut self.durable);
        self.unsynced.retain(|unit, _| {
            if !lost.contains(unit) {
                copy_unit(durable, *unit, &unit_of(present, *unit));
            }
            lost.contains(unit)
        });
    }

    /// A sync that fails: each unit is saved or lost.
    pub fn fail_sync(&mut self, rng: &SeededRng) {
        let lost: Vec<usize> = self.unsynced.keys().copied().filter(|_| rng.chance(1, 2)).collect();
        self.lost.extend(lost);
        self.sync();
    }

    /// The power fails: the file gets one of its lengths, each unit one of its versions.
    pub fn power_cut(&mut self, mode: CutMode, rng: &SeededRng) {
        let (lens, unsynced) = (std::mem::take(&mut self.lens), std::mem::take(&mut self.unsynced));
        self.lost.clear();
        if mode != CutMode::DropAll {
            let old = self.durable.len();
            let lens: Vec<usize> = std::iter::once(old).chain(lens).collect();
            let len = if mode == CutMode::KeepAll { lens[lens.len() - 1] } else { *rng.pick(&lens) };
            // Written, beyond the length that survives: what was cut off and comes back is zeros, not old bytes.
            self.durable.resize(len, 0);
            for (unit, versions) in unsynced {
                let survivor = match mode {
                    CutMode::KeepAll => versions.last(),
                    _ => versions.get(rng.index(versions.len() + 1)),
                };
                if let Some(bytes) = survivor {
                    copy_unit(&mut self.durable, unit, bytes);
                }
            }
        }
        self.present.clone_from(&self.durable);
    }

    /// Units that a power cut could change now.
    #[must_use]
    pub fn unsynced_count(&self) -> usize {
        self.unsynced.len()
    }

    /// Flips bits of one byte, durably and unnoticed; false when the file is empty.
    pub fn rot(&mut self, rng: &SeededRng) -> bool {
        if self.present.is_empty() {
            return false;
        }
        let at = rng.index(self.present.len());
        let flip = 1 + rng.below(255) as u8;
        self.present[at] ^= flip;
        if let Some(byte) = self.durable.get_mut(at) {
            *byte ^= flip;
        }
        true
    }
}

fn unit_of(bytes: &[u8], unit: usize) -> Unit {
    let mut out = [0; UNIT_BYTES];
    let start = (unit * UNIT_BYTES).min(bytes.len());
    let end = (start + UNIT_BYTES).min(bytes.len());
    out[..end - start].copy_from_slice(&bytes[start..end]);
    out
}

/// Copies what of the unit lies within the file.
fn copy_unit(bytes: &mut [u8], unit: usize, from: &Unit) {
    let start = (unit * UNIT_BYTES).min(bytes.len());
    let end = (start + UNIT_BYTES).min(bytes.len());
    bytes[start..end].copy_from_slice(&from[..end - start]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synced_bytes_survive_every_cut_and_others_may_not() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..64 {
            let mut file = UnitFile::default();
            file.write(0, &[1; 2048]);
            file.sync();
            file.write(512, &[2; 1024]);
            let rng = SeededRng::new(seed);
            file.power_cut(CutMode::draw(&rng), &rng);
            assert_eq!(file.len(), 2048);
            assert!(file.bytes()[..512].iter().chain(&file.bytes()[1536..]).all(|byte| *byte == 1), "seed {seed}");
            for unit in file.bytes().chunks(UNIT_BYTES) {
                assert!(unit.iter().all(|byte| *byte == unit[0]), "seed {seed}: torn inside a unit");
            }
            outcomes.insert((file.bytes()[512], file.bytes()[1024]));
        }
        // Both units on their own, so also the later one without the earlier one.
        assert_eq!(outcomes, BTreeSet::from([(1, 1), (1, 2), (2, 1), (2, 2)]));
    }

    #[test]
    fn an_unsynced_length_may_come_back() {
        let mut lens = BTreeSet::new();
        for seed in 0..64 {
            let mut file = UnitFile::default();
            file.write(0, &[1; 1000]);
            file.sync();
            file.set_len(100);
            file.set_len(3000);
            assert!(file.bytes()[100..].iter().all(|byte| *byte == 0));
            file.power_cut(CutMode::Mixed, &SeededRng::new(seed));
            lens.insert(file.len());
            assert!(file.bytes()[..100].iter().all(|byte| *byte == 1), "seed {seed}: nobody wrote there");
        }
        assert_eq!(lens, BTreeSet::from([100, 1000, 3000]));
    }

    #[test]
    fn a_cut_and_regrown_file_is_zeros_once_synced() {
        let mut file = UnitFile::default();
        file.write(0, &[7; 1500]);
        file.sync();
        file.set_len(10);
        file.set_len(1500);
        file.sync();
        file.power_cut(CutMode::DropAll, &SeededRng::new(0));
        assert_eq!(file.bytes()[..10], [7; 10]);
        assert!(file.bytes()[10..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_second_sync_saves_nothing_that_a_failed_one_lost() {
        let mut lost = 0;
        for seed in 0..32 {
            let mut file = UnitFile::default();
            file.write(0, &[1; 512]);
            file.sync();
            file.write(0, &[2; 512]);
            file.fail_sync(&SeededRng::new(seed));
            file.sync();
            assert_eq!(file.bytes()[0], 2, "it looks well");
            file.power_cut(CutMode::DropAll, &SeededRng::new(seed));
            lost += usize::from(file.bytes()[0] == 1);
        }
        assert!((5..27).contains(&lost), "{lost}");
    }

    #[test]
    fn matches_a_plain_vector_while_the_power_is_on() {
        let rng = SeededRng::new(9);
        let (mut file, mut plain) = (UnitFile::default(), Vec::new());
        for _ in 0..2000 {
            match rng.below(8) {
                0 => {
                    let len = rng.index(5000);
                    file.set_len(len);
                    plain.resize(len, 0);
                }
                1 => file.sync(),
                _ => {
                    let (at, len, byte) = (rng.index(4000), rng.index(1500), rng.below(256) as u8);
                    file.write(at, &vec![byte; len]);
                    if plain.len() < at + len {
                        plain.resize(at + len, 0);
                    }
                    plain[at..at + len].fill(byte);
                }
            }
            assert_eq!(file.bytes(), plain);
        }
        file.sync();
        file.power_cut(CutMode::DropAll, &rng);
        assert_eq!(file.bytes(), plain);
    }
}
