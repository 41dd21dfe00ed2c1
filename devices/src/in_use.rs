//! Who uses a device: mounts, swap, devices made on it, loop devices, processes that hold it or write to it, its
//! partitions included; of a partition also who uses the device as a whole. What is in use is never formatted, whatever an operator confirms.
//!
//! Everything is looked up in the kernel's own lists; nothing is asked of the users. What only an exclusive open finds
//! (ZFS, a mount in another namespace) is found by one, which is given back at once.

mod processes;
#[cfg(test)]
mod tests;

pub use processes::Process;
use processes::{FileKey, OpenFiles};

use crate::error::DeviceError;
use crate::topology::{BlockDevice, KernelRoots, Node, NodeNumber, Topology};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Devices made on each other that are followed: deeper stacks are a circle of a broken tree.
const STACK_DEPTH_MAX: usize = 16;

/// One way in which a device is used. `node` is the device itself, a partition of it, or what was made on it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Use {
    /// It is mounted.
    Mounted {
        /// What is mounted.
        node: String,
        /// Where.
        at: String,
    },
    /// It is swapped to.
    Swap {
        /// What is.
        node: String,
    },
    /// A device was made on it: LVM, LUKS, RAID, bcache.
    HeldBy {
        /// What it was made on.
        node: String,
        /// The device.
        holder: String,
    },
    /// A loop device shows it.
    LoopDevice {
        /// The loop device.
        name: String,
    },
    /// A process has locked it; nodes of Kiseki do.
    Locked {
        /// Which.
        by: Process,
    },
    /// A process has it open for writing.
    OpenForWriting {
        /// What is open.
        node: String,
        /// Which process.
        by: Process,
    },
    /// Somebody holds it exclusively, and the kernel does not tell who: ZFS, a mount in another namespace.
    Exclusive {
        /// What is held.
        node: String,
    },
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Use::Mounted { node, at } => write!(f, "{node} is mounted at {at}"),
            Use::Swap { node } => write!(f, "{node} is swap space"),
            Use::HeldBy { node, holder } => write!(f, "{node} is part of {holder}"),
            Use::LoopDevice { name } => write!(f, "the loop device {name} is made of it"),
            Use::Locked { by } if by.is_node() => write!(f, "a running Kiseki node has it: {by}"),
            Use::Locked { by } => write!(f, "{by} has locked it"),
            Use::OpenForWriting { node, by } => write!(f, "{by} has {node} open for writing"),
            Use::Exclusive { node } => write!(f, "{node} is held exclusively (ZFS, RAID, or a mount elsewhere)"),
        }
    }
}

impl Use {
    /// What to do about it, for an operator.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Use::Mounted { at, .. } => format!("umount {at}"),
            Use::Swap { node } => format!("swapoff /dev/{node}"),
            Use::HeldBy { holder, .. } => format!("take {holder} apart (vgchange -an, cryptsetup close, mdadm --stop)"),
            Use::LoopDevice { name } => format!("losetup -d /dev/{name}"),
            Use::Locked { by } | Use::OpenForWriting { by, .. } => format!("stop process {}", by.pid),
            Use::Exclusive { .. } => "find its holder (zpool export, mdadm --stop, umount in containers)".to_owned(),
        }
    }
}

/// What the kernel tells of uses, read once for all devices.
#[derive(Debug)]
pub struct UsesOfMachine {
    roots: KernelRoots,
    topology: Topology,
    mounts: Vec<Mount>,
    swaps: Vec<PathBuf>,
    open: OpenFiles,
}

#[derive(Debug)]
struct Mount {
    number: Option<NodeNumber>,
    source: PathBuf,
    at: String,
}

impl UsesOfMachine {
    /// Reads mounts, swap, locks and open files. What this user may not see is not there.
    pub fn read(roots: &KernelRoots) -> std::io::Result<UsesOfMachine> {
        let topology = Topology::read(roots)?;
        Ok(UsesOfMachine {
            mounts: read_mounts(roots),
            swaps: read_swaps(roots),
            open: OpenFiles::read(roots),
            topology,
            roots: roots.clone(),
        })
    }

    /// The devices of the machine.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Who uses a block device, one of its partitions, or an image file. Sorted; empty: nobody.
    #[must_use]
    pub fn of_path(&self, path: &Path) -> Vec<Use> {
        match self.topology.find_path(path) {
            Some(node) if path_is_node(path) => self.of_node(node),
            _ => self.of_file(path),
        }
    }

    /// Who uses a device.
    #[must_use]
    pub fn of_device(&self, device: &BlockDevice) -> Vec<Use> {
        self.of_node(Node { device, partition: None })
    }

    fn of_node(&self, node: Node<'_>) -> Vec<Use> {
        let mut uses = BTreeSet::new();
        let mut below: Vec<(String, Option<NodeNumber>)> = Vec::new();
        let mut holders: Vec<(String, String)> = Vec::new();
        match node.partition {
            Some(part) => {
                below.push((part.name.clone(), part.number));
                holders.extend(part.holders.iter().map(|holder| (part.name.clone(), holder.clone())));
                // Who has the whole device has the partition; its other partitions are none of its business.
                let whole = node.device;
                below.push((whole.name.clone(), whole.number));
                holders.extend(whole.holders.iter().map(|holder| (whole.name.clone(), holder.clone())));
            }
            None => add_device(node.device, &mut below, &mut holders),
        }
        let own = below.len();
        for _ in 0..STACK_DEPTH_MAX {
            let found = std::mem::take(&mut holders);
            for (node, holder) in found {
                let shown = self.shown_name(&holder);
                if uses.insert(Use::HeldBy { node, holder: shown })
                    && let Some(device) = self.topology.device(&holder)
                {
                    add_device(device, &mut below, &mut holders);
                }
            }
        }
        for (name, number) in &below {
            self.add_mounts(name, *number, &mut uses);
            self.add_loops(&self.roots.dev.join(name), &mut uses);
        }
        for (name, number) in &below[..own] {
            self.add_processes(name, *number, &mut uses);
        }
        // The generic node of a namespace takes writes past the block device, and locks do not meet there.
        if let Some(generic) = node.device.nvme.as_ref().and_then(|nvme| nvme.generic.as_ref()) {
            for by in self.open.writers(&FileKey::character(&self.roots, generic)) {
                uses.insert(Use::OpenForWriting { node: generic.clone(), by: by.clone() });
            }
        }
        if uses.is_empty() {
            // The kernel lets nobody hold a partition of what is held as a whole, so for a partition its own node tells; the
            // whole device would be held as soon as any other partition is.
            let asked = if node.partition.is_some() { &below[..1] } else { &below[..own] };
            let held = asked.iter().find(|(name, _)| is_held(&self.roots.dev.join(name)));
            uses.extend(held.map(|(name, _)| Use::Exclusive { node: name.clone() }));
        }
        uses.into_iter().collect()
    }

    fn add_mounts(&self, name: &str, number: Option<NodeNumber>, uses: &mut BTreeSet<Use>) {
        let is_this = |path: &Path| {
            let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            path.starts_with("/dev") && path.file_name().is_some_and(|last| last == name)
        };
        let shown = self.shown_name(name);
        for mount in &self.mounts {
            if number.is_some() && mount.number == number || is_this(&mount.source) {
                uses.insert(Use::Mounted { node: shown.clone(), at: mount.at.clone() });
            }
        }
        if self.swaps.iter().any(|path| is_this(path)) {
            uses.insert(Use::Swap { node: shown });
        }
    }

    /// Loop devices hold neither a file nor a device exclusively.
    fn add_loops(&self, below: &Path, uses: &mut BTreeSet<Use>) {
        for device in self.topology.devices.iter().filter(|device| device.backing_file.as_deref() == Some(below)) {
            uses.insert(Use::LoopDevice { name: device.name.clone() });
        }
    }

    fn add_processes(&self, name: &str, number: Option<NodeNumber>, uses: &mut BTreeSet<Use>) {
        let key = number.map(FileKey::Block);
        if let Some(by) = FileKey::of_node(&self.roots.dev.join(name)).and_then(|key| self.open.lock_on(&key)) {
            uses.insert(Use::Locked { by });
            return;
        }
        for by in key.iter().flat_map(|key| self.open.writers(key)) {
            uses.insert(Use::OpenForWriting { node: name.to_owned(), by: by.clone() });
        }
    }

    fn of_file(&self, path: &Path) -> Vec<Use> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let mut uses = BTreeSet::new();
        let node = path.display().to_string();
        self.add_loops(&path, &mut uses);
        if self.swaps.contains(&path) {
            uses.insert(Use::Swap { node: node.clone() });
        }
        let Some(key) = FileKey::of_node(&path) else { return uses.into_iter().collect() };
        match self.open.lock_on(&key) {
            Some(by) => {
                uses.insert(Use::Locked { by });
            }
            None => {
                for by in self.open.writers_of_path(&path, &key) {
                    uses.insert(Use::OpenForWriting { node: node.clone(), by });
                }
            }
        }
        uses.into_iter().collect()
    }

    /// `dm-0` says nothing to an operator, `vg-root (dm-0)` does.
    fn shown_name(&self, name: &str) -> String {
        let mapped = self.topology.device(name).and_then(|device| device.mapped_name.clone());
        mapped.filter(|mapped| mapped != name).map_or(name.to_owned(), |mapped| format!("{mapped} ({name})"))
    }
}

fn add_device(
    device: &BlockDevice,
    below: &mut Vec<(String, Option<NodeNumber>)>,
    holders: &mut Vec<(String, String)>,
) {
    below.push((device.name.clone(), device.number));
    holders.extend(device.holders.iter().map(|holder| (device.name.clone(), holder.clone())));
    for part in &device.partitions {
        below.push((part.name.clone(), part.number));
        holders.extend(part.holders.iter().map(|holder| (part.name.clone(), holder.clone())));
    }
}

/// An image may carry the name of a device.
fn path_is_node(path: &Path) -> bool {
    !std::fs::metadata(path).is_ok_and(|found| found.is_file())
}

/// Whether somebody holds a block device exclusively: found by doing so for a moment.
fn is_held(node: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    if !std::fs::metadata(node).is_ok_and(|found| found.file_type().is_block_device()) {
        return false;
    }
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(node);
    opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

fn read_mounts(roots: &KernelRoots) -> Vec<Mount> {
    let text = std::fs::read_to_string(roots.proc.join("self/mountinfo")).unwrap_or_default();
    text.lines().filter_map(parse_mount).collect()
}

/// `36 35 98:0 /root /mnt rw,noatime shared:1 - ext4 /dev/sda1 rw`
fn parse_mount(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut fields = front.split(' ').skip(2);
    let number = NodeNumber::parse(fields.next()?);
    let at = unescaped(fields.nth(1)?);
    let source = PathBuf::from(unescaped(back.split(' ').nth(1)?));
    Some(Mount { number, source, at })
}

fn read_swaps(roots: &KernelRoots) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(roots.proc.join("swaps")).unwrap_or_default();
    let paths = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    paths.map(|path| PathBuf::from(unescaped(path))).collect()
}

/// The kernel writes spaces and the like as `\040`.
fn unescaped(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match (first, code) {
            (b'\\', Some(code)) => {
                out.push(code);
                rest = &after[3..];
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Refuses a device that somebody uses. Errors: `InUse`, with each use and what to do; `Io` when that can't be told.
pub fn refuse_in_use(path: &Path) -> Result<(), DeviceError> {
    let device = path.display().to_string();
    let machine = UsesOfMachine::read(&KernelRoots::default());
    let machine = machine.map_err(|source| DeviceError::io(&device, "asking the kernel who uses it", source))?;
    refuse(&device, &machine.of_path(path))
}

/// [`refuse_in_use`] of what is known already.
pub fn refuse(device: &str, uses: &[Use]) -> Result<(), DeviceError> {
    if uses.is_empty() {
        return Ok(());
    }
    let by: Vec<String> = uses.iter().map(|found| format!("{found} ({})", found.remedy())).collect();
    Err(DeviceError::InUse { device: device.to_owned(), by: by.join("; ") })
}
