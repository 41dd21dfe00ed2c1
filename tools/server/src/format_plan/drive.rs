//! The drive of a namespace: asked what it is, and told to format.

use crate::format::{FormatError, FormatOptions};
use kiseki_devices::DeviceError;
use kiseki_devices::file_device::{DeviceLock, RawDevice};
use kiseki_devices::format::namespace::{
    NamespaceFacts, NamespaceFormat, NamespaceRefusal, Sibling, plan_namespace, recommended_format,
};
use kiseki_devices::in_use::UsesOfMachine;
use kiseki_devices::nvme::admin::{AdminCommand, AdminNode};
use kiseki_devices::nvme::identify::{ControllerIdentity, LbaFormat, NamespaceIdentity, parse_namespace_list};
use kiseki_devices::probe::{FoundSignature, probe_file};
use kiseki_devices::topology::{BlockDevice, KernelRoots, Topology};
use kiseki_types::BlockCount;
use kiseki_types::device::DeviceGeometry;
use kiseki_types::limits::DEVICE_BLOCK_BYTES_MAX;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How often a drive is asked how far its format is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// How long the kernel may take to show a namespace with its new blocks.
const RESCAN_TIMEOUT: Duration = Duration::from_secs(30);

/// How often it is looked at meanwhile.
const RESCAN_INTERVAL: Duration = Duration::from_millis(100);

/// What a drive says of itself and of one of its namespaces.
pub(super) struct Drive {
    roots: KernelRoots,
    device: BlockDevice,
    node: PathBuf,
    controller: ControllerIdentity,
    namespace: NamespaceIdentity,
    id: u32,
    /// Numbers of all the namespaces that it tells of.
    others: Vec<u32>,
}

/// A format that the drive does itself.
#[derive(Debug)]
pub struct DriveFormat {
    /// The node that takes the command.
    pub node: PathBuf,
    /// The format.
    pub format: NamespaceFormat,
    /// Whether an earlier one was interrupted: what can't be read then is nobody's data.
    pub is_resumed: bool,
    /// Whether the blocks that it has now are of use, so that a mark can be written.
    pub is_usable_before: bool,
    roots: KernelRoots,
    block_name: String,
    controllers: Vec<String>,
    id: u32,
}

impl Drive {
    /// Asks the drive below a namespace. Errors: what it or the kernel answers.
    pub(super) fn ask(device: &BlockDevice, roots: &KernelRoots) -> Result<Drive, FormatError> {
        let generic = device.nvme.as_ref().and_then(|nvme| nvme.generic.as_ref());
        let node = roots.dev.join(generic.unwrap_or(&device.name));
        let admin = AdminNode::open(&node)?;
        let id = admin.namespace_id()?;
        let page = |command: &AdminCommand| admin.execute(command);
        let strange = |source| FormatError::Page { device: node.display().to_string(), source };
        let controller = ControllerIdentity::parse(&page(&AdminCommand::identify_controller())?).map_err(strange)?;
        let namespace = NamespaceIdentity::parse(&page(&AdminCommand::identify_namespace(id))?).map_err(strange)?;
        // Formats reach namespaces that are attached elsewhere, or nowhere.
        let others = match controller.admin.namespace_management {
            true => parse_namespace_list(&page(&AdminCommand::allocated_namespaces(0))?).map_err(strange)?,
            // Older drives have no list; the kernel's is what there is then.
            false => page(&AdminCommand::active_namespaces(0))
                .ok()
                .and_then(|page| parse_namespace_list(&page).ok())
                .unwrap_or_default(),
        };
        Ok(Drive { roots: roots.clone(), device: device.clone(), controller, namespace, id, others, node })
    }

    /// Whether the drive has a format of its own to finish.
    pub(super) fn is_unfinished(&self) -> bool {
        self.namespace.format_remaining_percent.is_some_and(|percent| percent > 0)
    }

    /// Its size in blocks that we can use.
    pub(super) fn geometry(&self) -> DeviceGeometry {
        let block = DEVICE_BLOCK_BYTES_MAX as u64;
        DeviceGeometry {
            block_len_bytes: DEVICE_BLOCK_BYTES_MAX as u32,
            block_count: BlockCount(self.namespace.len_bytes() / block),
        }
    }

    pub(super) fn recommended(&self) -> Option<LbaFormat> {
        recommended_format(&self.namespace).filter(|_| self.controller.admin.format)
    }

    pub(super) fn plan(
        &self,
        options: &FormatOptions,
        machine: &UsesOfMachine,
    ) -> Result<Option<NamespaceFormat>, NamespaceRefusal> {
        let siblings = self.siblings(machine);
        let facts = NamespaceFacts {
            controller: &self.controller,
            namespace: &self.namespace,
            id: self.id,
            siblings: &siblings,
        };
        plan_namespace(facts, options.namespace, &options.wipe)
    }

    /// The other namespaces of the drive, by what the kernel shows and by what the drive says.
    fn siblings(&self, machine: &UsesOfMachine) -> Vec<Sibling> {
        let shown = machine.topology().siblings(&self.device);
        let mut siblings: Vec<Sibling> = shown
            .iter()
            .map(|device| Sibling {
                name: Some(device.name.clone()),
                namespace: device.nvme.as_ref().map_or(0, |nvme| nvme.namespace),
                uses: machine.of_device(device),
                signatures: self.look_at(device).map_err(|error| error.to_string()),
            })
            .collect();
        for namespace in self.others.iter().filter(|id| **id != self.id) {
            if !siblings.iter().any(|sibling| sibling.namespace == *namespace) {
                siblings.push(Sibling {
                    name: None,
                    namespace: *namespace,
                    uses: Vec::new(),
                    signatures: Ok(Vec::new()),
                });
            }
        }
        siblings
    }

    fn look_at(&self, device: &BlockDevice) -> Result<Vec<FoundSignature>, DeviceError> {
        let path = self.roots.dev.join(&device.name);
        let raw = RawDevice::open_for_reading(&path)?;
        probe_file(&raw).map_err(|source| DeviceError::io(&path.display().to_string(), "reading signatures", source))
    }

    pub(super) fn into_format(self, format: NamespaceFormat) -> DriveFormat {
        let now = self.namespace.format;
        DriveFormat {
            is_resumed: self.is_unfinished(),
            is_usable_before: now.metadata_len_bytes == 0 && matches!(now.block_len_bytes, 512 | 4096),
            controllers: self.device.nvme.map(|nvme| nvme.controllers).unwrap_or_default(),
            block_name: self.device.name,
            roots: self.roots,
            node: self.node,
            id: self.id,
            format,
        }
    }
}

impl DriveFormat {
    /// Holds the namespaces that are lost along with this one, so that nobody begins to use them meanwhile.
    pub fn lock_others(&self) -> Result<Vec<DeviceLock>, DeviceError> {
        let names = self.format.also_lost.iter().filter(|name| name.starts_with("nvme"));
        names.map(|name| DeviceLock::acquire(&self.roots.dev.join(name))).collect()
    }

    /// Sends the command and waits until the drive is done and the kernel shows the new blocks. `progress` hears what is
    /// left in percent, where the drive tells.
    pub fn run(&self, mut progress: impl FnMut(Option<u8>)) -> Result<(), FormatError> {
        let (sender, done) = channel();
        let admin = AdminNode::open(&self.node)?;
        let command = self.format.command.clone();
        let sent = std::thread::Builder::new().name("nvme format".to_owned()).spawn(move || {
            // Nobody listens any more only when this tool ends.
            let _ = sender.send(admin.execute(&command));
        });
        sent.map_err(|source| DeviceError::io(&self.node.display().to_string(), "starting a thread", source))?;
        let asked = AdminNode::open(&self.node)?;
        loop {
            match done.recv_timeout(PROGRESS_INTERVAL) {
                Ok(answer) => {
                    answer?;
                    break;
                }
                Err(RecvTimeoutError::Timeout) => progress(self.remaining(&asked)),
                Err(RecvTimeoutError::Disconnected) => unreachable!("the thread sends before it ends"),
            }
        }
        // Some drives answer at once and format in the background.
        while self.remaining(&asked).is_some_and(|percent| percent > 0) {
            progress(self.remaining(&asked));
            std::thread::sleep(PROGRESS_INTERVAL);
        }
        progress(Some(0));
        self.await_kernel()
    }

    fn remaining(&self, node: &AdminNode) -> Option<u8> {
        let page = node.execute(&AdminCommand::identify_namespace(self.id)).ok()?;
        NamespaceIdentity::parse(&page).ok()?.format_remaining_percent
    }

    /// The kernel looks at the namespace again by itself after a format; older ones have to be told.
    fn await_kernel(&self) -> Result<(), FormatError> {
        let wanted = self.format.format.block_len_bytes;
        let started = Instant::now();
        for controller in &self.controllers {
            // A kernel that refuses has done so by itself.
            let _ = AdminNode::open(&self.roots.dev.join(controller)).and_then(|node| node.rescan());
        }
        loop {
            let found = Topology::read(&self.roots).ok();
            let device = found.as_ref().and_then(|found| found.device(&self.block_name));
            if device.is_some_and(|device| device.logical_block_len_bytes == wanted && device.len_bytes > 0) {
                return Ok(());
            }
            if started.elapsed() > RESCAN_TIMEOUT {
                return Err(FormatError::NotShown { device: self.block_name.clone(), block_len_bytes: wanted });
            }
            std::thread::sleep(RESCAN_INTERVAL);
        }
    }
}
