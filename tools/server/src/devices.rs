//! The node's devices before any core has a queue on them: whose they are, what is wrong with them, their superblocks.

use crate::status::DeviceReport;
use kiseki_devices::DeviceError;
use kiseki_devices::file_device::{DeviceLock, RawDevice};
use kiseki_devices::nvme::path::{PathChoice, PathPreference};
use kiseki_devices::superblock::{Superblock, SuperblockKeeper, read_superblock_blocking};
use kiseki_types::fragment::DeviceState;
use kiseki_types::ids::ClusterId;
use kiseki_types::meta::MetaFile;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A device that belongs to this node, held for this process.
pub struct NodeDevice {
    /// Its path.
    pub path: PathBuf,
    /// Its superblock as it was at the start, this start's incarnation included.
    pub superblock: Superblock,
    /// Writes its superblock.
    pub keeper: Arc<SuperblockKeeper>,
    /// What lay at its path when it was opened.
    pub identity: Option<Identity>,
    /// Nobody else opens it meanwhile.
    _lock: DeviceLock,
}

/// What tells one file, device or directory from another at the same path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    special: u64,
}

impl Identity {
    /// Of what lies at `path` now; `None` when nothing does.
    #[must_use]
    pub fn of(path: &Path) -> Option<Identity> {
        let found = std::fs::metadata(path).ok()?;
        Some(Identity { device: found.dev(), inode: found.ino(), special: found.rdev() })
    }

    /// Whether both are the same device: two nodes of one block device count as one.
    #[must_use]
    pub fn is_same_device(self, other: Identity) -> bool {
        match self.special {
            0 => self == other,
            special => special == other.special,
        }
    }
}

/// A device that is ours and locked, with nothing written to it yet.
pub struct ClaimedDevice {
    path: PathBuf,
    identity: Option<Identity>,
    lock: DeviceLock,
    raw: RawDevice,
    /// What it says of itself.
    pub superblock: Superblock,
}

impl ClaimedDevice {
    /// Locks the device at `path`, reads its superblock and sees whether it is this cluster's. Errors are messages with
    /// their remedy.
    pub fn open(path: &Path, cluster: ClusterId) -> Result<ClaimedDevice, String> {
        if !path.exists() {
            let what = "it is not there; plug it in, or take it out of `devices` once its data is rebuilt";
            return Err(what.to_owned());
        }
        let name = path.display().to_string();
        let open = || -> Result<(DeviceLock, RawDevice, Superblock), DeviceError> {
            let lock = DeviceLock::acquire(path)?;
            let raw = RawDevice::open(path)?;
            let superblock = read(&raw, &name)?;
            Ok((lock, raw, superblock))
        };
        let (lock, raw, superblock) = open().map_err(|error| with_causes(&error))?;
        if superblock.is_retired() {
            return Err(format!(
                "it was retired: nothing lives on it; take it out of `devices`, or format it anew: kiseki-devctl format {name}"
            ));
        }
        if superblock.cluster != cluster {
            return Err(format!(
                "it belongs to cluster {}, this node to {cluster}; take it out of `devices`, or format it by name with \
                 kiseki-devctl",
                superblock.cluster
            ));
        }
        Ok(ClaimedDevice { path: path.to_owned(), identity: Identity::of(path), lock, raw, superblock })
    }

    /// Which way the cores are to drive it. Each makes sure of it again when it opens its queue.
    pub fn choose_path(&self, preference: PathPreference) -> Result<PathChoice, String> {
        let choice = PathChoice::make(&self.path, preference).map_err(|error| with_causes(&error))?;
        tracing::info!(device = %self.path.display(), path = %choice.in_use, reason = %choice.reason, "way to the device");
        Ok(choice)
    }

    /// Raises the incarnation, durably, before any journal of the device is appended to.
    pub fn take_up(self) -> Result<NodeDevice, String> {
        let name = self.path.display().to_string();
        let keeper = Arc::new(SuperblockKeeper::new(&name, Arc::new(self.raw) as Arc<dyn MetaFile>, self.superblock));
        let superblock = keeper.update(|next| next.incarnation += 1).map_err(|error| with_causes(&error))?;
        Ok(NodeDevice { path: self.path, superblock, keeper, identity: self.identity, _lock: self.lock })
    }
}

/// What opening the configured devices gave.
pub struct NodeDevices {
    /// Those that can be used.
    pub usable: Vec<NodeDevice>,
    /// One report for each configured device, in their order.
    pub reports: Vec<DeviceReport>,
    /// Lanes that they were formatted with; 0 when none is usable.
    pub lanes: u16,
}

/// What a device says of itself.
pub struct DeviceDescription {
    /// Its superblock.
    pub superblock: Superblock,
}

impl DeviceDescription {
    /// One line for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let block = &self.superblock;
        let retired = if block.is_retired() { "retired, nothing lives on it: " } else { "" };
        format!(
            "{retired}device {} of cluster {}, {} lanes, {:.1} GiB for fragments, generation {}",
            block.device,
            block.cluster,
            block.layout.lanes(),
            block.layout.capacity_bytes() as f64 / f64::from(1 << 30),
            block.generation
        )
    }
}

/// Reads a device's superblock.
pub fn describe(path: &Path) -> Result<DeviceDescription, DeviceError> {
    let device = RawDevice::open(path)?;
    let name = path.display().to_string();
    Ok(DeviceDescription { superblock: read(&device, &name)? })
}

fn read(device: &RawDevice, name: &str) -> Result<Superblock, DeviceError> {
    let geometry = device.geometry();
    let state = read_superblock_blocking(device, geometry.block_len_bytes)
        .map_err(|source| DeviceError::io(name, "reading the superblock", source))?;
    let superblock = state.present(name)?;
    superblock.check_geometry(name, geometry)?;
    Ok(superblock)
}

/// Opens what can be opened. A device that is missing, foreign or damaged is one warning with its remedy; the node goes
/// on with the rest (I-O3).
pub fn open_all(paths: &[PathBuf], cluster: ClusterId, preference: PathPreference) -> NodeDevices {
    let mut opened: Vec<Option<NodeDevice>> = Vec::new();
    let mut reports = Vec::new();
    for path in paths {
        let mut report = DeviceReport { path: path.display().to_string(), ..DeviceReport::default() };
        let device = ClaimedDevice::open(path, cluster).and_then(|claimed| {
            let choice = claimed.choose_path(preference)?;
            report.drive_by(&choice);
            claimed.take_up()
        });
        let device = match device {
            Ok(device) => {
                report.id = device.superblock.device.to_string();
                report.state = "healthy".to_owned();
                report.capacity_bytes = device.superblock.layout.capacity_bytes();
                Some(device)
            }
            Err(reason) => {
                report.state = if path.exists() { "failed" } else { "unreachable" }.to_owned();
                report.reason = reason;
                if describe(path).is_ok_and(|found| found.superblock.is_retired()) {
                    report.state = DeviceState::Removed.name().to_owned();
                }
                None
            }
        };
        opened.push(device);
        reports.push(report);
    }
    // Lanes are the node's: a device formatted with another number can't be part of it.
    let lanes = most_common(opened.iter().flatten().map(|device| device.superblock.layout.lanes())).unwrap_or(0);
    let mut usable: Vec<NodeDevice> = Vec::new();
    for (device, report) in opened.into_iter().zip(&mut reports) {
        let Some(device) = device else { continue };
        let found = device.superblock.layout.lanes();
        let twin = usable.iter().find(|other| other.superblock.device == device.superblock.device);
        let reason = match twin {
            Some(twin) => format!("it is a copy of {}; take one of them out", twin.path.display()),
            None if found != lanes => format!("it was formatted with {found} lanes, the node has {lanes}"),
            None => {
                usable.push(device);
                continue;
            }
        };
        report.state = "failed".to_owned();
        report.reason = reason;
    }
    for report in reports.iter().filter(|report| report.state != "healthy") {
        tracing::warn!(device = %report.path, reason = %report.reason, "device not used; going on without it");
    }
    NodeDevices { usable, reports, lanes }
}

/// The most frequent value; of equally frequent ones the smallest.
fn most_common(values: impl Iterator<Item = u16>) -> Option<u16> {
    let mut counts = std::collections::BTreeMap::<u16, usize>::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    counts.into_iter().max_by_key(|(value, count)| (*count, std::cmp::Reverse(*value))).map(|(value, _)| value)
}

/// An error and what caused it, in one line.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_majority_decides_how_many_lanes_a_node_has() {
        assert_eq!(most_common([4, 4, 2].into_iter()), Some(4));
        assert_eq!(most_common([2, 4].into_iter()), Some(2));
        assert_eq!(most_common([].into_iter()), None);
    }
}
