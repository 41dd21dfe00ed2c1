//! The one writer of a device's superblock on a running node, and the witness that superblocks bear for the metadata
//! directories.

use super::{MetadataEpoch, Superblock, write_superblock_blocking};
use crate::error::DeviceError;
use crate::metadata_set::{EpochWitness, WitnessedEpoch};
use kiseki_types::meta::MetaFile;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// The superblock of one open device. Every update goes through here, one after the other, from any thread.
///
/// It blocks, so only side threads and the start of a node call it.
pub struct SuperblockKeeper {
    name: String,
    file: Arc<dyn MetaFile>,
    state: Mutex<KeeperState>,
}

struct KeeperState {
    current: Superblock,
    /// Why nothing is written any more (I-D6).
    failed: Option<String>,
}

impl SuperblockKeeper {
    /// `file` is the whole device, for direct, synchronous access; `current` what was read from it.
    #[must_use]
    pub fn new(name: &str, file: Arc<dyn MetaFile>, current: Superblock) -> SuperblockKeeper {
        SuperblockKeeper { name: name.to_owned(), file, state: Mutex::new(KeeperState { current, failed: None }) }
    }

    /// Path or name of the device.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What was last written.
    #[must_use]
    pub fn current(&self) -> Superblock {
        self.lock().current.clone()
    }

    /// Changes the superblock and writes it as the next generation; durable on return.
    ///
    /// Errors: `Io` the first time, `Fenced` ever after (I-D6): the next generation must not go over the copies that
    /// are still good while nobody knows what became of this one.
    pub fn update(&self, change: impl FnOnce(&mut Superblock)) -> Result<Superblock, DeviceError> {
        let mut state = self.lock();
        let device = state.current.device;
        if let Some(reason) = &state.failed {
            return Err(DeviceError::Fenced { device, reason: reason.clone() });
        }
        let mut next = state.current.clone();
        change(&mut next);
        next.generation = state.current.generation + 1;
        if let Err(source) = write_superblock_blocking(&*self.file, &next) {
            state.failed = Some(format!("writing the superblock failed: {source}"));
            return Err(DeviceError::io(&self.name, "writing the superblock", source));
        }
        state.current = next.clone();
        Ok(next)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, KeeperState> {
        // A panic ends the process, so a poisoned lock is seen at most on the way out.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SuperblockKeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SuperblockKeeper({})", self.name)
    }
}

/// The superblocks of a node as the witness of metadata-set epochs: a majority has to hold each.
///
/// Devices join and leave while the node runs. Whatever the majority is counted of afterwards, it still holds the
/// newest epoch: one that joins, and every one that stays when another leaves, is brought up to it first.
#[derive(Debug)]
pub struct SuperblockWitness {
    state: Mutex<WitnessState>,
}

#[derive(Debug)]
struct WitnessState {
    keepers: Vec<Arc<SuperblockKeeper>>,
    /// Devices that the node should have, those that are missing now included.
    enrolled: usize,
}

/// How the number of devices that the node should have changes with one that joins or leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolled {
    /// It is one more, or one less.
    Changes,
    /// It stays: a device comes back, goes missing, or takes the place of another one.
    Stays,
}

impl SuperblockWitness {
    /// `enrolled` counts all devices of the node, missing ones included: a majority is one of them.
    #[must_use]
    pub fn new(keepers: Vec<Arc<SuperblockKeeper>>, enrolled: usize) -> SuperblockWitness {
        assert!(keepers.len() <= enrolled, "{} devices open, {enrolled} enrolled", keepers.len());
        SuperblockWitness { state: Mutex::new(WitnessState { keepers, enrolled }) }
    }

    /// Lets a device take part, with the newest epoch durable on it; `known` is what the directories say it is. Blocks.
    /// Errors: its superblock can't be written; then it does not take part.
    pub fn join(
        &self,
        keeper: &Arc<SuperblockKeeper>,
        known: &MetadataEpoch,
        enrolled: Enrolled,
    ) -> Result<(), DeviceError> {
        let mut state = self.lock();
        let newest = state.newest(known);
        bring_up(keeper, &newest)?;
        state.keepers.push(keeper.clone());
        state.enrolled = match enrolled {
            Enrolled::Changes => state.enrolled + 1,
            Enrolled::Stays => state.enrolled.max(state.keepers.len()),
        };
        Ok(())
    }

    /// Lets a device take no more part. Blocks. Errors: the ones that stay are no majority, or too few of them take the
    /// newest epoch; then it still takes part.
    pub fn leave(&self, keeper: &Arc<SuperblockKeeper>, known: &MetadataEpoch, enrolled: Enrolled) -> io::Result<()> {
        let mut state = self.lock();
        let newest = state.newest(known);
        let staying: Vec<_> = state.keepers.iter().filter(|other| !Arc::ptr_eq(other, keeper)).cloned().collect();
        let left = usize::from(enrolled == Enrolled::Changes);
        let next = WitnessState { keepers: staying, enrolled: state.enrolled.saturating_sub(left) };
        if enrolled == Enrolled::Changes {
            next.hold(&newest)?;
        }
        *state = next;
        Ok(())
    }

    /// A device that was not taking part is not expected any more. Blocks. Errors: as [`SuperblockWitness::leave`].
    pub fn forget_missing(&self, known: &MetadataEpoch) -> io::Result<()> {
        let mut state = self.lock();
        let enrolled = state.enrolled.saturating_sub(1).max(state.keepers.len());
        let next = WitnessState { keepers: state.keepers.clone(), enrolled };
        next.hold(&state.newest(known))?;
        *state = next;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, WitnessState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WitnessState {
    /// The newest epoch that the superblocks have or the directories are `known` to be in. A superblock may lag behind
    /// the directories (nothing is recorded without a majority), and one that was alone for a while may have another
    /// list under a number that was used again: then the directories are right.
    fn newest(&self, known: &MetadataEpoch) -> MetadataEpoch {
        let found = self.keepers.iter().map(|keeper| keeper.current().metadata).max_by_key(|found| found.epoch);
        found.filter(|found| found.epoch > known.epoch).unwrap_or_else(|| known.clone())
    }

    /// Sees to it that a majority holds `newest`.
    fn hold(&self, newest: &MetadataEpoch) -> io::Result<()> {
        let (mut holders, mut reasons) = (0, String::new());
        for keeper in &self.keepers {
            match bring_up(keeper, newest) {
                Ok(()) => holders += 1,
                Err(error) => {
                    tracing::warn!(device = keeper.name(), %error, "metadata-set epoch not recorded on this device");
                    reasons = error.to_string();
                }
            }
        }
        match holders * 2 > self.enrolled {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "metadata-set epoch {} is on {holders} of {} devices, no majority ({reasons})",
                newest.epoch, self.enrolled
            ))),
        }
    }
}

/// Makes `epoch` durable on a device that has another one.
fn bring_up(keeper: &SuperblockKeeper, epoch: &MetadataEpoch) -> Result<(), DeviceError> {
    if keeper.current().metadata == *epoch {
        return Ok(());
    }
    keeper.update(|superblock| superblock.metadata = epoch.clone()).map(drop)
}

impl EpochWitness for SuperblockWitness {
    fn record(&self, epoch: &MetadataEpoch) -> io::Result<()> {
        self.lock().hold(epoch)
    }

    fn highest(&self) -> WitnessedEpoch {
        let state = self.lock();
        WitnessedEpoch {
            newest: state.newest(&MetadataEpoch::default()),
            majority: state.keepers.len() * 2 > state.enrolled,
        }
    }
}
