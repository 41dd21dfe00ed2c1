//! The block devices of a machine, as the kernel tells of them in sysfs: what they are, where they sit, what lies on them.
//!
//! A pure reader: it takes the roots of the kernel's trees, opens no device, and believes nothing to be there. A machine
//! may lack any of the files; a missing one is a missing answer, never an error.

#[cfg(test)]
pub(crate) mod tests;

use crate::superblock::DeviceClass;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Longest file of sysfs: the kernel gives a page.
const ATTRIBUTE_LEN_BYTES_MAX: u64 = 4096;

/// Unit of lengths and positions in sysfs, whatever the device's blocks are.
const SECTOR_LEN_BYTES: u64 = 512;

/// Where the kernel tells about devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRoots {
    /// Usually `/sys`.
    pub sys: PathBuf,
    /// Usually `/proc`.
    pub proc: PathBuf,
    /// Usually `/dev`.
    pub dev: PathBuf,
}

impl Default for KernelRoots {
    fn default() -> KernelRoots {
        KernelRoots { sys: "/sys".into(), proc: "/proc".into(), dev: "/dev".into() }
    }
}

/// Major and minor number of a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeNumber {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl NodeNumber {
    /// Of the block device at a path.
    fn of_block_device(path: &Path) -> Option<NodeNumber> {
        let found = std::fs::metadata(path).ok().filter(|found| found.file_type().is_block_device())?;
        Some(NodeNumber { major: libc::major(found.rdev()), minor: libc::minor(found.rdev()) })
    }

    /// From `259:0`.
    pub(crate) fn parse(text: &str) -> Option<NodeNumber> {
        let (major, minor) = text.split_once(':')?;
        Some(NodeNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// A block device that is no partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// The kernel's name: `nvme0n1`, `sda`, `dm-0`.
    pub name: String,
    /// Its number.
    pub number: Option<NodeNumber>,
    /// Bytes; 0 for an empty drive.
    pub len_bytes: u64,
    /// Bytes of the block that it is addressed in.
    pub logical_block_len_bytes: u32,
    /// Bytes of the block that it works in.
    pub physical_block_len_bytes: u32,
    /// Whether it turns.
    pub is_rotational: bool,
    /// Whether it takes no writes.
    pub is_read_only: bool,
    /// Whether completed writes may be lost in a power cut until a flush, as the kernel has it.
    pub has_write_cache: bool,
    /// Model.
    pub model: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Firmware revision.
    pub firmware: Option<String>,
    /// World-wide name.
    pub wwn: Option<String>,
    /// EUI-64 of a namespace.
    pub eui64: Option<String>,
    /// NGUID of a namespace.
    pub nguid: Option<String>,
    /// What only NVMe has.
    pub nvme: Option<NvmePlace>,
    /// PCI addresses from the root port down to the device; empty for what lies on no bus.
    pub pci_path: Vec<String>,
    /// Name that a device mapper or RAID device goes by: `vg-root`, `luks-data`.
    pub mapped_name: Option<String>,
    /// File below a loop device.
    pub backing_file: Option<PathBuf>,
    /// Its partitions, by their numbers.
    pub partitions: Vec<Partition>,
    /// Devices made on it: device mapper, RAID, bcache.
    pub holders: Vec<String>,
}

/// Where a namespace sits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmePlace {
    /// Its controllers, those that this machine sees: `nvme0`.
    pub controllers: Vec<String>,
    /// Name of the subsystem: what a command that touches all namespaces touches all of.
    pub subsystem: Option<String>,
    /// Id of the namespace.
    pub namespace: u32,
    /// The character device that takes raw commands: `ng0n1`.
    pub generic: Option<String>,
    /// `pcie`, `tcp`, `rdma`, `fc`.
    pub transport: Option<String>,
}

/// A partition that the kernel knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The kernel's name: `nvme0n1p1`, `sda1`.
    pub name: String,
    /// Number in the table.
    pub index: u32,
    /// Number of its node.
    pub number: Option<NodeNumber>,
    /// First byte on the device.
    pub start_bytes: u64,
    /// Bytes.
    pub len_bytes: u64,
    /// Devices made on it.
    pub holders: Vec<String>,
}

/// An NVMe controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeController {
    /// `nvme0`.
    pub name: String,
    /// Model.
    pub model: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Firmware revision.
    pub firmware: Option<String>,
    /// Its state, as the kernel has it: `live`, `connecting`, `dead`.
    pub state: Option<String>,
    /// Name of its subsystem.
    pub subsystem: Option<String>,
    /// PCI address, or the address on a fabric.
    pub address: Option<String>,
}

/// All block devices and NVMe controllers of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Block devices that are no partitions, sorted by name with numbers counted.
    pub devices: Vec<BlockDevice>,
    /// NVMe controllers, also those without a namespace.
    pub controllers: Vec<NvmeController>,
}

impl Topology {
    /// Reads what the kernel tells. Errors: `Io` when there is no list of block devices at all.
    pub fn read(roots: &KernelRoots) -> io::Result<Topology> {
        let controllers: Vec<NvmeController> =
            names_in(&roots.sys.join("class/nvme")).into_iter().map(|name| read_controller(roots, name)).collect();
        let listed = roots.sys.join("block");
        std::fs::read_dir(&listed)
            .map_err(|error| io::Error::new(error.kind(), format!("{} can't be listed: {error}", listed.display())))?;
        // A path to a namespace with several has a name of its own, and takes no requests.
        let names = names_in(&listed).into_iter().filter(|name| attribute(&listed.join(name), "hidden") != flag(true));
        let devices = names.map(|name| read_device(roots, &controllers, name)).collect();
        Ok(Topology { devices, controllers })
    }

    /// The device of that name.
    #[must_use]
    pub fn device(&self, name: &str) -> Option<&BlockDevice> {
        self.devices.iter().find(|device| device.name == name)
    }

    /// What a kernel's name means: a device, its generic node, or a partition of one.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Node<'_>> {
        self.devices.iter().find_map(|device| {
            let is_generic = device.nvme.as_ref().is_some_and(|nvme| nvme.generic.as_deref() == Some(name));
            if device.name == name || is_generic {
                return Some(Node { device, partition: None });
            }
            let partition = device.partitions.iter().find(|partition| partition.name == name)?;
            Some(Node { device, partition: Some(partition) })
        })
    }

    /// What lies at a path: links such as those in `/dev/disk/by-id` are followed. `None`: no block device.
    #[must_use]
    pub fn find_path(&self, path: &Path) -> Option<Node<'_>> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        // By number, whatever the node is called: in containers /dev/mapper holds nodes, not links.
        if let Some(number) = NodeNumber::of_block_device(&path)
            && let Some(known) = self.find_number(number)
        {
            return Some(known);
        }
        // Elsewhere a name says nothing.
        let is_node = path.parent().and_then(Path::file_name).is_some_and(|name| name == "dev");
        self.find(path.file_name()?.to_str()?).filter(|_| is_node)
    }

    fn find_number(&self, number: NodeNumber) -> Option<Node<'_>> {
        self.devices.iter().find_map(|device| {
            if device.number == Some(number) {
                return Some(Node { device, partition: None });
            }
            let partition = device.partitions.iter().find(|part| part.number == Some(number))?;
            Some(Node { device, partition: Some(partition) })
        })
    }

    /// The other namespaces of a namespace's subsystem: those that its controller may format along with it.
    #[must_use]
    pub fn siblings(&self, device: &BlockDevice) -> Vec<&BlockDevice> {
        let Some(own) = &device.nvme else { return Vec::new() };
        let is_sibling = |other: &&BlockDevice| {
            let Some(nvme) = &other.nvme else { return false };
            let same = own.subsystem.is_some() && own.subsystem == nvme.subsystem;
            let shares = nvme.controllers.iter().any(|controller| own.controllers.contains(controller));
            other.name != device.name && (same || shares)
        };
        self.devices.iter().filter(is_sibling).collect()
    }
}

/// A device, or a partition of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node<'a> {
    /// The device.
    pub device: &'a BlockDevice,
    /// The partition, when it is one that was named.
    pub partition: Option<&'a Partition>,
}

impl Node<'_> {
    /// The kernel's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.partition.map_or(&self.device.name, |partition| &partition.name)
    }
}

impl BlockDevice {
    /// What kind of hardware it is, as well as it can be told.
    #[must_use]
    pub fn class(&self) -> DeviceClass {
        match () {
            () if self.nvme.is_some() => DeviceClass::Nvme,
            // Virtual disks say that they turn, whatever lies below.
            () if self.is_rotational && self.name.starts_with("sd") => DeviceClass::Hdd,
            () => DeviceClass::Ssd,
        }
    }

    /// Address on the PCI bus.
    #[must_use]
    pub fn pci_address(&self) -> Option<&str> {
        self.pci_path.last().map(String::as_str)
    }
}

fn read_controller(roots: &KernelRoots, name: String) -> NvmeController {
    let dir = roots.sys.join("class/nvme").join(&name);
    NvmeController {
        model: attribute(&dir, "model"),
        serial: attribute(&dir, "serial"),
        firmware: attribute(&dir, "firmware_rev"),
        state: attribute(&dir, "state"),
        subsystem: attribute(&dir, "subsysnqn"),
        address: attribute(&dir, "address"),
        name,
    }
}

fn read_device(roots: &KernelRoots, controllers: &[NvmeController], name: String) -> BlockDevice {
    let dir = roots.sys.join("block").join(&name);
    let hardware = dir.join("device");
    let place = dir.canonicalize().unwrap_or_else(|_| dir.clone());
    let hardware_place = hardware.canonicalize().unwrap_or_else(|_| place.clone());
    let nvme = read_nvme(roots, controllers, &name, &dir, &hardware_place);
    // A namespace with several ways to it lies below no bus; its controllers do.
    let controller = nvme.as_ref().and_then(|nvme| nvme.controllers.first());
    let controller = controller.and_then(|name| roots.sys.join("class/nvme").join(name).canonicalize().ok());
    let pci_path = pci_path(&controller.unwrap_or_else(|| if place == dir { hardware_place } else { place }));
    let known =
        controllers.iter().find(|known| nvme.as_ref().is_some_and(|nvme| nvme.controllers.contains(&known.name)));
    let partitions = read_partitions(&dir);
    BlockDevice {
        number: attribute(&dir, "dev").and_then(|text| NodeNumber::parse(&text)),
        len_bytes: number::<u64>(&dir, "size").unwrap_or(0).saturating_mul(SECTOR_LEN_BYTES),
        logical_block_len_bytes: number(&dir, "queue/logical_block_size").unwrap_or(512),
        physical_block_len_bytes: number(&dir, "queue/physical_block_size").unwrap_or(512),
        is_rotational: attribute(&dir, "queue/rotational") == flag(true),
        is_read_only: attribute(&dir, "ro") == flag(true),
        has_write_cache: attribute(&dir, "queue/write_cache").as_deref() == Some("write back"),
        model: full_model(&hardware).or_else(|| known.and_then(|known| known.model.clone())),
        serial: attribute(&hardware, "serial")
            .or_else(|| attribute(&dir, "serial"))
            .or_else(|| unit_serial(&hardware))
            .or_else(|| known.and_then(|known| known.serial.clone())),
        firmware: attribute(&hardware, "firmware_rev")
            .or_else(|| attribute(&hardware, "rev"))
            .or_else(|| known.and_then(|known| known.firmware.clone())),
        wwn: attribute(&dir, "wwid").or_else(|| attribute(&hardware, "wwid")),
        eui64: attribute(&dir, "eui").map(|text| text.replace(' ', "")).filter(|text| !is_zero(text)),
        nguid: attribute(&dir, "nguid").map(|text| text.replace('-', "")).filter(|text| !is_zero(text)),
        nvme,
        pci_path,
        mapped_name: attribute(&dir, "dm/name").or_else(|| attribute(&dir, "md/array_state").map(|_| name.clone())),
        backing_file: attribute(&dir, "loop/backing_file").map(PathBuf::from),
        partitions,
        holders: names_in(&dir.join("holders")),
        name,
    }
}

fn read_nvme(
    roots: &KernelRoots,
    controllers: &[NvmeController],
    name: &str,
    dir: &Path,
    hardware: &Path,
) -> Option<NvmePlace> {
    let rest = name.strip_prefix("nvme")?;
    // `device` is the controller or, with several ways to the namespace, the subsystem, which lists its controllers.
    let above = hardware.file_name()?.to_str()?;
    let own: Vec<String> = match controllers.iter().any(|controller| controller.name == above) {
        true => vec![above.to_owned()],
        false => names_in(hardware).into_iter().filter(|name| controllers.iter().any(|c| c.name == *name)).collect(),
    };
    let controller = controllers.iter().find(|controller| own.contains(&controller.name));
    let generic = format!("ng{rest}");
    let transport = controller.and_then(|c| attribute(&roots.sys.join("class/nvme").join(&c.name), "transport"));
    Some(NvmePlace {
        // Kernels before 6.7 keep it beside the identifiers; the name's number is the fallback, and usually the same.
        namespace: number(dir, "nsid").or_else(|| rest.rsplit('n').next()?.parse().ok())?,
        subsystem: controller.and_then(|controller| controller.subsystem.clone()),
        controllers: own,
        generic: roots.sys.join("class/nvme-generic").join(&generic).exists().then_some(generic),
        transport,
    })
}

fn read_partitions(dir: &Path) -> Vec<Partition> {
    let mut partitions: Vec<Partition> = names_in(dir)
        .into_iter()
        .filter_map(|name| {
            let below = dir.join(&name);
            Some(Partition {
                index: number(&below, "partition")?,
                number: attribute(&below, "dev").and_then(|text| NodeNumber::parse(&text)),
                start_bytes: number::<u64>(&below, "start").unwrap_or(0).saturating_mul(SECTOR_LEN_BYTES),
                len_bytes: number::<u64>(&below, "size").unwrap_or(0).saturating_mul(SECTOR_LEN_BYTES),
                holders: names_in(&below.join("holders")),
                name,
            })
        })
        .collect();
    partitions.sort_by_key(|partition| partition.index);
    partitions
}

/// SCSI has the vendor apart.
fn full_model(hardware: &Path) -> Option<String> {
    let model = attribute(hardware, "model")?;
    match attribute(hardware, "vendor").filter(|vendor| vendor != "ATA" && !vendor.starts_with("0x")) {
        Some(vendor) => Some(format!("{vendor} {model}")),
        None => Some(model),
    }
}

/// SCSI's page of the unit's serial number: four bytes of header, then text.
fn unit_serial(hardware: &Path) -> Option<String> {
    let bytes = bytes_of(&hardware.join("vpd_pg80"))?;
    let text = String::from_utf8_lossy(bytes.get(4..)?).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// The addresses in a path below `/sys/devices`, from the root down.
pub(crate) fn pci_path(path: &Path) -> Vec<String> {
    let names = path.components().filter_map(|component| component.as_os_str().to_str());
    names.filter(|name| is_pci_address(name)).map(str::to_owned).collect()
}

/// `0000:01:00.0`; the domain may be longer behind a volume management device.
fn is_pci_address(name: &str) -> bool {
    let parts: Vec<&str> = name.split([':', '.']).collect();
    let hex = |text: &str, lens: std::ops::RangeInclusive<usize>| {
        lens.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    matches!(parts[..], [domain, bus, slot, function]
        if hex(domain, 4..=8) && hex(bus, 2..=2) && hex(slot, 2..=2) && hex(function, 1..=1))
}

fn is_zero(text: &str) -> bool {
    text.bytes().all(|byte| byte == b'0')
}

fn flag(is_set: bool) -> Option<String> {
    Some(if is_set { "1" } else { "0" }.to_owned())
}

/// The names in a directory, sorted as people count; none when there is no directory.
pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_by_cached_key(|name| counted(name));
    names
}

/// A key by which `nvme10n1` comes behind `nvme9n1`.
fn counted(name: &str) -> Vec<(String, u64)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let word = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let digits = rest[word..].find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len() - word);
        parts.push((rest[..word].to_owned(), rest[word..word + digits].parse().unwrap_or(u64::MAX)));
        rest = &rest[word + digits..];
    }
    parts
}

fn bytes_of(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(ATTRIBUTE_LEN_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// A file of sysfs, trimmed; `None` when it is not there or empty.
pub(crate) fn attribute(dir: &Path, name: &str) -> Option<String> {
    let bytes = bytes_of(&dir.join(name))?;
    let text = String::from_utf8_lossy(&bytes).trim_matches(['\0', ' ', '\n', '\t']).to_owned();
    (!text.is_empty()).then_some(text)
}

fn number<T: std::str::FromStr>(dir: &Path, name: &str) -> Option<T> {
    attribute(dir, name)?.parse().ok()
}
