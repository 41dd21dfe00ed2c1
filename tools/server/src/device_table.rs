//! The devices that a running node holds: locked, their superblocks taking part in the witness of the metadata set.
//!
//! The cores have queues of their own on them; [`enroll`](crate::enroll) keeps both in step. A device that is fenced stays
//! here, and locked, until it is taken out.

use crate::devices::{Identity, NodeDevice, with_causes};
use kiseki_devices::DeviceError;
use kiseki_devices::superblock::{
    Enrolled, MetadataEpoch, RETIRED_POOL, Superblock, SuperblockKeeper, SuperblockWitness,
};
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

    /// Lets go of a device that is recorded as removed: its superblock says so from then on. Blocks. Whoever comes first
    /// does it, and a second one finds nothing left to do. Errors as [`leave`](Self::leave).
    pub fn leave_for_good(&self, id: DeviceId, known: &MetadataEpoch, enrolled: Enrolled) -> io::Result<()> {
        let marked = self.keeper(id).map_or(Ok(()), |keeper| keeper.update(|next| next.pool = RETIRED_POOL).map(drop));
        if let Err(error) = marked {
            // It is recorded all the same; only the device itself does not tell.
            tracing::warn!(device = %id, reason = %with_causes(&error), "the superblock of a removed device could not be marked");
        }
        self.leave(id, known, enrolled)
    }

    /// Lets go of a device and of its lock. Blocks. Errors: too few superblocks would be left that know the newest
    /// metadata-set epoch.
    pub fn leave(&self, id: DeviceId, known: &MetadataEpoch, enrolled: Enrolled) -> io::Result<()> {
        match self.keeper(id) {
            Some(keeper) => self.witness.leave(&keeper, known, enrolled)?,
            None if enrolled == Enrolled::Changes => self.witness.forget_missing(known)?,
            None => {}
        }
        self.lock().retain(|(_, device)| device.superblock.device != id);
        Ok(())
    }

    fn keeper(&self, id: DeviceId) -> Option<Arc<SuperblockKeeper>> {
        let devices = self.lock();
        devices.iter().find(|(_, device)| device.superblock.device == id).map(|(_, device)| device.keeper.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(u64, NodeDevice)>> {
        self.devices.lock().expect("nothing panics under this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{ClaimedDevice, describe};
    use crate::format::{FormatOptions, format_all};
    use crate::metadata::witness;
    use kiseki_devices::file_device::create_image;
    use kiseki_devices::format::namespace::NamespaceChoice;
    use kiseki_types::ids::ClusterId;

    #[test]
    fn i_d5_a_removed_device_says_so_whoever_closes_it_first() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let cluster = ClusterId([7; 16]);
        let paths: Vec<PathBuf> = (0..3).map(|number| dir.path().join(format!("d{number}.img"))).collect();
        paths.iter().for_each(|path| create_image(path, 16 << 20).unwrap());
        let options = FormatOptions {
            cluster,
            lanes: 2,
            class: None,
            metadata: MetadataEpoch::default(),
            wipe: Vec::new(),
            namespace: NamespaceChoice::default(),
        };
        format_all(&paths, &options, |_, _| ()).unwrap();
        let open = |path: &PathBuf| ClaimedDevice::open(path, cluster).unwrap().take_up().unwrap();
        let devices: Vec<NodeDevice> = paths.iter().map(open).collect();
        let ids: Vec<DeviceId> = devices.iter().map(|device| device.superblock.device).collect();
        let witness = witness(&devices, devices.len());
        let table = DeviceTable::new(devices, witness);
        let known = MetadataEpoch::default();
        // What keeps the records in step and the one that retires: either may be first, the other finds nothing to do.
        for (id, order) in
            [(ids[0], [Enrolled::Stays, Enrolled::Changes]), (ids[1], [Enrolled::Changes, Enrolled::Stays])]
        {
            for enrolled in order {
                table.leave_for_good(id, &known, enrolled).unwrap();
            }
        }
        let is_retired = |path: &PathBuf| describe(path).unwrap().superblock.is_retired();
        assert_eq!(paths.iter().map(is_retired).collect::<Vec<_>>(), [true, true, false], "I-D5");
        assert_eq!(table.all().len(), 1);
    }
}
