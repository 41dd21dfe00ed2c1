//! What a format of one device would do, looked up and decided before anything happens: who uses it, what it carries, what
//! its drive is told, what is written. `format` does exactly this; `kiseki-devctl plan` shows it.

mod drive;

pub use drive::DriveFormat;

use crate::format::{FormatError, FormatOptions};
use drive::Drive;
use kiseki_devices::DeviceError;
use kiseki_devices::file_device::RawDevice;
use kiseki_devices::format::namespace::NamespaceRefusal;
use kiseki_devices::format::{PlannedWrite, planned_writes, refuse_unconfirmed};
use kiseki_devices::in_use::{Use, UsesOfMachine, refuse};
use kiseki_devices::layout::DeviceLayout;
use kiseki_devices::nvme::identify::LbaFormat;
use kiseki_devices::probe::{FoundSignature, probe_file};
use kiseki_devices::superblock::{DeviceClass, Superblock, SuperblockState, read_superblock_blocking};
use kiseki_devices::topology::KernelRoots;
use kiseki_types::ids::ClusterId;
use kiseki_types::meta::MetaFile;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// What a format of one device would do.
#[derive(Debug)]
pub struct DevicePlan {
    /// The device, as it was named.
    pub path: PathBuf,
    /// The class that it gets.
    pub class: DeviceClass,
    /// Who uses it: nothing overrides that.
    pub uses: Vec<Use>,
    /// What it carries.
    pub signatures: Vec<FoundSignature>,
    /// Its superblock, if it is formatted as asked already and no node ever used it: nothing is left to do.
    pub done: Option<Box<Superblock>>,
    /// What its drive is told first.
    pub drive: Option<DriveFormat>,
    /// Block format that would serve better, where nothing is asked for.
    pub recommended: Option<LbaFormat>,
    /// How it is divided.
    pub layout: DeviceLayout,
    /// What is written, in this order.
    pub writes: Vec<PlannedWrite>,
    refusal: Option<NamespaceRefusal>,
    cluster: ClusterId,
    confirmed: Vec<String>,
}

impl DevicePlan {
    /// Why this is not done: in use, not confirmed, not possible. Nothing was changed.
    pub fn check(&self) -> Result<(), FormatError> {
        let name = self.path.display().to_string();
        refuse(&name, &self.uses)?;
        if self.done.is_some() {
            return Ok(());
        }
        refuse_unconfirmed(&name, &self.signatures, self.cluster, &self.confirmed)?;
        match &self.refusal {
            Some(refusal) => Err(FormatError::Drive { device: name, refusal: refusal.clone() }),
            None => Ok(()),
        }
    }
}

/// Looks at a device and decides. Errors: what can't be opened or read, and what is too small; a device that may not be
/// formatted has a plan that says so.
pub fn plan_device(path: &Path, options: &FormatOptions, machine: &UsesOfMachine) -> Result<DevicePlan, FormatError> {
    let roots = KernelRoots::default();
    let node = machine.topology().find_path(path).filter(|_| !path.is_file());
    // The generic node of a namespace names it as well, and takes no blocks.
    let is_generic = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_char_device());
    let block = node.filter(|_| is_generic).map(|node| roots.dev.join(node.name()));
    let path = block.as_deref().unwrap_or(path);
    let name = path.display().to_string();
    let class = options.class.unwrap_or_else(|| node.map_or(DeviceClass::File, |node| node.device.class()));
    let namespace = node.filter(|node| node.partition.is_none() && node.device.nvme.is_some());
    let is_asked = !options.namespace.is_default();
    let drive = match namespace.map(|node| Drive::ask(node.device, &roots)) {
        Some(Ok(drive)) => Some(drive),
        // A drive that does not answer matters to those who want something of it.
        Some(Err(error)) if is_asked => return Err(error),
        None if is_asked => return Err(FormatError::NoDrive { device: name }),
        Some(Err(_)) | None => None,
    };
    let planned = match &drive {
        Some(drive) if is_asked => drive.plan(options, machine),
        _ => Ok(None),
    };
    let (planned, refusal) = match planned {
        Ok(planned) => (planned, None),
        Err(refusal) => (None, Some(refusal)),
    };
    let is_resumed = drive.as_ref().is_some_and(Drive::is_unfinished) && planned.is_some();
    let raw = RawDevice::open_for_reading(path)?;
    let signatures = match probe_file(&raw) {
        Ok(found) => found,
        Err(_) if is_resumed => Vec::new(),
        Err(source) => return Err(DeviceError::io(&name, "reading signatures", source).into()),
    };
    let geometry = match &drive {
        // Blocks that the kernel can't use make it show a length of 0.
        Some(drive) if planned.is_some() && raw.geometry().block_count.0 == 0 => drive.geometry(),
        _ => raw.geometry(),
    };
    let layout = DeviceLayout::compute(geometry, options.lanes)?;
    // What others left behind our superblocks is to go, so then something is left to do.
    let is_all_ours = signatures.iter().all(|found| found.unused_of == Some(options.cluster));
    let done = finished(&raw, options, class, layout).filter(|_| planned.is_none() && refusal.is_none() && is_all_ours);
    let len_bytes = raw.len().map_err(|source| DeviceError::io(&name, "measuring", source))?;
    let tail = Some(raw.geometry().len_bytes()..len_bytes).filter(|tail| planned.is_none() && !tail.is_empty());
    Ok(DevicePlan {
        path: path.to_owned(),
        class,
        uses: machine.of_path(path),
        signatures,
        done,
        recommended: drive.as_ref().filter(|_| !is_asked).and_then(Drive::recommended),
        drive: drive.zip(planned).map(|(drive, format)| drive.into_format(format)),
        layout,
        writes: planned_writes(&layout, tail),
        refusal,
        cluster: options.cluster,
        confirmed: options.wipe.clone(),
    })
}

/// The superblock of a device that is exactly what is asked for, and that no node ever used: an earlier run of the same
/// command was interrupted behind it.
fn finished(
    raw: &RawDevice,
    options: &FormatOptions,
    class: DeviceClass,
    layout: DeviceLayout,
) -> Option<Box<Superblock>> {
    let state = read_superblock_blocking(raw, raw.geometry().block_len_bytes).ok()?;
    let SuperblockState::Present { superblock, damaged_copies: 0 } = state else { return None };
    let found = (superblock.cluster, superblock.class, superblock.layout, &superblock.metadata);
    let is_wanted = found == (options.cluster, class, layout, &options.metadata);
    (is_wanted && superblock.is_unused()).then_some(superblock)
}
