//! The devices that a running node holds: locked, their superblocks taking part in the witness of the metadata set.
//!
//! The cores have queues of their own on them; [`enroll`](crate::enroll) keeps both in step. A device that is fenced stays
//! here, and locked, until it is taken out.

use crate::devices::{Identity, NodeDevice};
use kiseki_devices::DeviceError;
use kiseki_devices::superblock::{Enrolled, MetadataEpoch, RETIRED_POOL, Superblock, SuperblockWitness};
use kiseki_types::ids::DeviceId;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// A device as the table holds it, for those who look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenDevice {
    /// Its path.
    pub path: PathBuf,
    /// What it said of itself when it was opened.
    pub superblock: Superblock,
    /// What lay at its path then.
    pub identity: Option<Identity>,
    /// Tells one opening of a device from the next.
    pub opened: u64,
}

/// See the module.
pub struct DeviceTable {
    devices: Mutex<Vec<(u64, NodeDevice)>>,
    /// Openings so far.
    openings: AtomicU64,
    witness: Arc<SuperblockWitness>,
    /// Held by whoever adds or takes out a device: one at a time.
    changing: Mutex<()>,
}

impl DeviceTable {
    /// With the devices that the start opened.
    #[must_use]
    pub fn new(devices: Vec<NodeDevice>, witness: Arc<SuperblockWitness>) -> DeviceTable {
        let openings = AtomicU64::new(devices.len() as u64);
        let devices = (0..).zip(devices).collect();
        DeviceTable { devices: Mutex::new(devices), openings, witness, changing: Mutex::new(()) }
    }

    /// Waits until no other device is being added or taken out, and keeps others from it.
    pub fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().expect("nothing panics under this lock")
    }

    /// All of them, in the order in which they came.
    #[must_use]
    pub fn all(&self) -> Vec<OpenDevice> {
        let open = |(opened, device): &(u64, NodeDevice)| OpenDevice {
            path: device.path.clone(),
            superblock: device.superblock.clone(),
            identity: device.identity,
            opened: *opened,
        };
        self.lock().iter().map(open).collect()
    }

    /// The one with this id.
    #[must_use]
    pub fn by_id(&self, id: DeviceId) -> Option<OpenDevice> {
        self.all().into_iter().find(|device| device.superblock.device == id)
    }

    /// The one that was opened at this path.
    #[must_use]
    pub fn by_path(&self, path: &Path) -> Option<OpenDevice> {
        self.all().into_iter().find(|device| device.path == path)
    }

    /// Does something about a device, unless it left or was opened anew since it was looked at.
    pub fn if_current(&self, looked_at: &OpenDevice, act: impl FnOnce()) {
        let devices = self.lock();
        if devices.iter().any(|(opened, _)| *opened == looked_at.opened) {
            act();
        }
    }

    /// Takes a device up: its superblock takes part in the witness from now on. Blocks.
    pub fn join(&self, device: NodeDevice, known: &MetadataEpoch, enrolled: Enrolled) -> Result<(), DeviceError> {
        self.witness.join(&device.keeper, known, enrolled)?;
        self.lock().push((self.openings.fetch_add(1, Ordering::Relaxed), device));
        Ok(())
    }

    /// Has a device's superblock say that it was retired: nothing lives on it. Blocks. One that is not open here is left as it is.
    pub fn mark_retired(&self, id: DeviceId) -> Result<(), DeviceError> {
        let keeper = self
            .lock()
            .iter()
            .find(|(_, device)| device.superblock.device == id)
            .map(|(_, device)| device.keeper.clone());
        keeper.map_or(Ok(()), |keeper| keeper.update(|next| next.pool = RETIRED_POOL).map(drop))
    }

    /// Lets go of a device and of its lock. Blocks. Errors: too few superblocks would be left that know the newest
    /// metadata-set epoch.
    pub fn leave(&self, id: DeviceId, known: &MetadataEpoch, enrolled: Enrolled) -> io::Result<()> {
        let keeper = self
            .lock()
            .iter()
            .find(|(_, device)| device.superblock.device == id)
            .map(|(_, device)| device.keeper.clone());
        match keeper {
            Some(keeper) => self.witness.leave(&keeper, known, enrolled)?,
            None if enrolled == Enrolled::Changes => self.witness.forget_missing(known)?,
            None => {}
        }
        self.lock().retain(|(_, device)| device.superblock.device != id);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(u64, NodeDevice)>> {
        self.devices.lock().expect("nothing panics under this lock")
    }
}
