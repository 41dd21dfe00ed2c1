//! What can be found out about one device without changing it: by the kernel, by its drive, by reading it.

use super::render::{decimal, or_dash, signatures_json, superblock_json, uses_json};
use kiseki_devices::DeviceError;
use kiseki_devices::file_device::RawDevice;
use kiseki_devices::in_use::{Use, UsesOfMachine};
use kiseki_devices::layout::SUPERBLOCK_COPIES;
use kiseki_devices::nvme::admin::{AdminCommand, AdminNode};
use kiseki_devices::nvme::identify::{ControllerIdentity, NamespaceIdentity};
use kiseki_devices::probe::{FoundSignature, probe_file};
use kiseki_devices::superblock::{Superblock, SuperblockCopy, SuperblockState, read_copies_blocking};
use kiseki_devices::topology::{BlockDevice, KernelRoots};
use kiseki_server::devices::with_causes;
use kiseki_types::meta::MetaFile;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A device, looked at.
pub struct Look {
    /// As it was named.
    pub path: PathBuf,
    /// What the kernel tells; `None` for an image.
    pub device: Option<BlockDevice>,
    /// Name of the partition, when one was named.
    pub partition: Option<String>,
    /// What its drive tells, where there is one and it may be asked.
    pub identity: Option<Identity>,
    /// Who uses it.
    pub uses: Vec<Use>,
    /// What lies on it, or why it can't be read.
    pub content: Result<Content, String>,
}

/// What a drive tells of itself.
pub struct Identity {
    pub controller: ControllerIdentity,
    pub namespace: NamespaceIdentity,
}

/// What lies on a device.
pub struct Content {
    /// Bytes in all.
    pub len_bytes: u64,
    /// Each copy of the superblock.
    pub copies: [SuperblockCopy; SUPERBLOCK_COPIES],
    /// What they say together, checked against the device.
    pub superblock: Result<Superblock, DeviceError>,
    /// What it carries.
    pub signatures: Vec<FoundSignature>,
}

impl Content {
    fn read(path: &Path) -> Result<Content, DeviceError> {
        let name = path.display().to_string();
        let raw = RawDevice::open_for_reading(path)?;
        let geometry = raw.geometry();
        let failed = |source| DeviceError::io(&name, "reading", source);
        let copies = read_copies_blocking(&raw, geometry.block_len_bytes).map_err(failed)?;
        let state = SuperblockState::choose(copies.clone().map(|copy| copy.found));
        let superblock = state.present(&name).and_then(|found| {
            found.check_geometry(&name, geometry)?;
            Ok(found)
        });
        let signatures = probe_file(&raw).map_err(failed)?;
        Ok(Content { len_bytes: raw.len().map_err(failed)?, copies, superblock, signatures })
    }

    /// Whether there is or was a superblock of ours, so that its copies are worth showing.
    pub fn superblock_is_damaged(&self) -> bool {
        !matches!(self.superblock, Ok(_) | Err(DeviceError::NeverFormatted { .. }))
    }

    /// Copies that are no good, on a device that is ours.
    pub fn damaged_copies(&self) -> usize {
        self.copies.iter().filter(|copy| copy.found.is_err()).count()
    }
}

impl Identity {
    /// Asks the drive of a namespace; `None`: it is none, or may not be asked.
    fn ask(roots: &KernelRoots, device: &BlockDevice) -> Option<Identity> {
        let generic = device.nvme.as_ref()?.generic.as_ref();
        let node = AdminNode::open(&roots.dev.join(generic.unwrap_or(&device.name))).ok()?;
        let id = node.namespace_id().ok()?;
        let page = node.execute(&AdminCommand::identify_controller()).ok()?;
        let controller = ControllerIdentity::parse(&page).ok()?;
        let page = node.execute(&AdminCommand::identify_namespace(id)).ok()?;
        Some(Identity { controller, namespace: NamespaceIdentity::parse(&page).ok()? })
    }
}

/// Looks at what lies at a path: a device by any of its names, a partition, or an image.
pub fn look_at(path: &Path, machine: &UsesOfMachine, roots: &KernelRoots) -> Look {
    let node = machine.topology().find_path(path).filter(|_| !path.is_file());
    let block = match node {
        Some(node) => roots.dev.join(node.name()),
        None => path.to_owned(),
    };
    let device = node.map(|node| node.device.clone());
    let partition = node.and_then(|node| node.partition).map(|partition| partition.name.clone());
    Look {
        identity: device.as_ref().filter(|_| partition.is_none()).and_then(|device| Identity::ask(roots, device)),
        uses: machine.of_path(path),
        content: Content::read(&block).map_err(|error| with_causes(&error)),
        path: path.to_owned(),
        device,
        partition,
    }
}

impl Look {
    /// The block format in use: its bytes, those of its metadata, its number.
    pub fn block_format(&self) -> String {
        match (&self.identity, &self.device) {
            (Some(Identity { namespace, .. }), _) => {
                let format = namespace.format;
                format!("{}+{} lbaf {}", format.block_len_bytes, format.metadata_len_bytes, format.index)
            }
            (None, Some(device)) => device.logical_block_len_bytes.to_string(),
            (None, None) => "-".to_owned(),
        }
    }

    /// What it carries, in a few words.
    pub fn carries(&self) -> String {
        let content = match &self.content {
            Ok(content) => content,
            Err(error) => return format!("can't be read: {error}"),
        };
        match &content.superblock {
            Ok(found) => {
                let damaged = match content.damaged_copies() {
                    0 => String::new(),
                    count => format!(", {count} superblock copies damaged"),
                };
                format!("kiseki device {} of cluster {}{damaged}", short(found.device), short(found.cluster))
            }
            Err(DeviceError::FormatInterrupted { cluster, .. }) => {
                format!("an interrupted format for cluster {}", short(cluster))
            }
            Err(_) if content.signatures.is_empty() => "nothing known".to_owned(),
            Err(_) => content.signatures.iter().map(|found| found.name.clone()).collect::<Vec<_>>().join(", "),
        }
    }

    /// Who uses it, in one line.
    pub fn in_use(&self) -> String {
        if self.uses.is_empty() {
            return "-".to_owned();
        }
        self.uses.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    /// Bytes in all.
    pub fn len_bytes(&self) -> u64 {
        match (&self.content, &self.device) {
            (Ok(content), _) => content.len_bytes,
            (Err(_), Some(device)) => device.len_bytes,
            (Err(_), None) => 0,
        }
    }

    /// Identifier that does not change with the slot.
    pub fn id(&self) -> Option<String> {
        let device = self.device.as_ref()?;
        let eui = device.eui64.as_ref().map(|eui| format!("eui.{eui}"));
        let nguid = device.nguid.as_ref().map(|nguid| format!("nguid.{nguid}"));
        eui.or(nguid).or_else(|| device.wwn.clone())
    }

    /// One line of `list`.
    pub fn row(&self) -> Vec<String> {
        let device = self.device.as_ref();
        let field = |get: fn(&BlockDevice) -> Option<&String>| or_dash(device.and_then(get).map(String::as_str));
        let class = match (&self.content, device) {
            (Ok(Content { superblock: Ok(found), .. }), _) => found.class.name(),
            (_, Some(device)) => device.class().name(),
            (_, None) => "file",
        };
        vec![
            self.path.display().to_string(),
            or_dash(device.and_then(|device| device.nvme.as_ref()).and_then(|nvme| nvme.generic.as_deref())),
            field(|device| device.model.as_ref()),
            field(|device| device.serial.as_ref()),
            or_dash(self.id().as_deref()),
            decimal(self.len_bytes()),
            self.block_format(),
            field(|device| device.firmware.as_ref()),
            class.to_owned(),
            self.carries(),
            self.in_use(),
        ]
    }

    /// Everything that `list` knows, for `--json`.
    pub fn json(&self) -> Value {
        let mut value = match &self.content {
            Ok(Content { superblock: Ok(found), .. }) => superblock_json(&self.path, found),
            _ => json!({ "path": self.path.display().to_string() }),
        };
        if let Some(device) = &self.device {
            let nvme = device.nvme.as_ref();
            value["node"] = json!(self.partition.as_ref().unwrap_or(&device.name));
            value["generic"] = json!(nvme.and_then(|nvme| nvme.generic.as_ref()));
            value["controllers"] = json!(nvme.map(|nvme| &nvme.controllers));
            value["namespace"] = json!(nvme.map(|nvme| nvme.namespace));
            value["model"] = json!(device.model);
            value["serial"] = json!(device.serial);
            value["firmware"] = json!(device.firmware);
            value["eui64"] = json!(device.eui64);
            value["nguid"] = json!(device.nguid);
            value["wwn"] = json!(device.wwn);
            value["pci_address"] = json!(device.pci_address());
            value["logical_block_len_bytes"] = json!(device.logical_block_len_bytes);
            value["physical_block_len_bytes"] = json!(device.physical_block_len_bytes);
            if value.get("class").is_none() {
                value["class"] = json!(device.class().name());
            }
        }
        value["len_bytes"] = json!(self.len_bytes());
        value["block_format"] = json!(self.block_format());
        value["carries"] = json!(self.carries());
        value["in_use"] = uses_json(&self.uses);
        match &self.content {
            Ok(content) => {
                value["signatures"] = signatures_json(&content.signatures);
                if let Err(error) = &content.superblock {
                    value["error"] = json!(error.to_string());
                }
            }
            Err(error) => value["error"] = json!(error),
        }
        value
    }
}

/// Enough of an id to tell devices apart.
fn short(id: impl ToString) -> String {
    id.to_string().chars().take(8).collect()
}
