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
#[derive(Debug)]
pub struct SuperblockWitness {
    keepers: Vec<Arc<SuperblockKeeper>>,
    /// Devices that the node should have, those that are missing now included.
    enrolled: usize,
}

impl SuperblockWitness {
    /// `enrolled` counts all devices of the node, missing ones included: a majority is one of them.
    #[must_use]
    pub fn new(keepers: Vec<Arc<SuperblockKeeper>>, enrolled: usize) -> SuperblockWitness {
        assert!(keepers.len() <= enrolled, "{} devices open, {enrolled} enrolled", keepers.len());
        SuperblockWitness { keepers, enrolled }
    }
}

impl EpochWitness for SuperblockWitness {
    fn record(&self, epoch: &MetadataEpoch) -> io::Result<()> {
        let mut recorded = 0;
        let mut reasons = String::new();
        for keeper in &self.keepers {
            match keeper.update(|superblock| superblock.metadata = epoch.clone()) {
                Ok(_) => recorded += 1,
                Err(error) => {
                    tracing::warn!(device = keeper.name(), %error, "metadata-set epoch not recorded on this device");
                    reasons = error.to_string();
                }
            }
        }
        match recorded * 2 > self.enrolled {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "metadata-set epoch {} is on {recorded} of {} devices, no majority ({reasons})",
                epoch.epoch, self.enrolled
            ))),
        }
    }

    fn highest(&self) -> WitnessedEpoch {
        let newest = self.keepers.iter().map(|keeper| keeper.current().metadata).max_by_key(|found| found.epoch);
        WitnessedEpoch { newest: newest.unwrap_or_default(), majority: self.keepers.len() * 2 > self.enrolled }
    }
}
