//! Commands to a controller: made first, so that they can be shown as they are, and run afterwards.

#![allow(unsafe_code)]

use super::identify::IDENTIFY_LEN_BYTES;
use super::smart::SMART_LEN_BYTES;
use super::status::NvmeStatus;
use crate::error::DeviceError;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

/// `_IO('N', 0x40)`.
const NVME_IOCTL_ID: libc::c_ulong = 0x4e40;
/// `_IOWR('N', 0x41, struct nvme_passthru_cmd)`.
const NVME_IOCTL_ADMIN_CMD: libc::c_ulong = 0xc048_4e41;
/// `_IO('N', 0x46)`.
const NVME_IOCTL_RESCAN: libc::c_ulong = 0x4e46;

/// Time for commands that only ask.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// Every namespace, or none in particular.
const NSID_ALL: u32 = u32::MAX;

const GET_LOG_PAGE: u8 = 0x02;
const IDENTIFY: u8 = 0x06;
const FORMAT_NVM: u8 = 0x80;

/// What becomes of the data in a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecureErase {
    /// Whatever the drive likes; the blocks may stay readable to a laboratory.
    None,
    /// All user data are erased.
    UserData,
    /// The drive throws its own key away.
    Cryptographic,
}

impl SecureErase {
    fn code(self) -> u32 {
        match self {
            SecureErase::None => 0,
            SecureErase::UserData => 1,
            SecureErase::Cryptographic => 2,
        }
    }
}

/// How a namespace is to be formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatRequest {
    /// Its id.
    pub namespace: u32,
    /// Number of the block format.
    pub format_index: u8,
    /// What becomes of the data.
    pub erase: SecureErase,
    /// How long it may take; erasing a large drive may take hours.
    pub timeout: Duration,
}

/// A command for the admin queue, exactly as it will be sent. `Display` shows all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminCommand {
    name: &'static str,
    opcode: u8,
    namespace: u32,
    /// Command dwords 10 to 15.
    dwords: [u32; 6],
    /// Bytes that the drive answers with.
    answer_len_bytes: u32,
    timeout: Duration,
}

impl AdminCommand {
    /// Asks a controller what it is.
    #[must_use]
    pub fn identify_controller() -> AdminCommand {
        AdminCommand::identify("Identify Controller", 0, 1)
    }

    /// Asks what a namespace is.
    #[must_use]
    pub fn identify_namespace(namespace: u32) -> AdminCommand {
        AdminCommand::identify("Identify Namespace", namespace, 0)
    }

    /// Asks which namespaces are active above `after`; 0 for the first.
    #[must_use]
    pub fn active_namespaces(after: u32) -> AdminCommand {
        AdminCommand::identify("Identify Active Namespaces", after, 2)
    }

    /// Asks which namespaces exist above `after`, attached to this controller or not; for drives that manage namespaces.
    #[must_use]
    pub fn allocated_namespaces(after: u32) -> AdminCommand {
        AdminCommand::identify("Identify Allocated Namespaces", after, 0x10)
    }

    fn identify(name: &'static str, namespace: u32, structure: u32) -> AdminCommand {
        let dwords = [structure, 0, 0, 0, 0, 0];
        let answer_len_bytes = IDENTIFY_LEN_BYTES as u32;
        AdminCommand { name, opcode: IDENTIFY, namespace, dwords, answer_len_bytes, timeout: QUERY_TIMEOUT }
    }

    /// Asks how the drive fares.
    #[must_use]
    pub fn smart_log() -> AdminCommand {
        let answer_len_bytes = SMART_LEN_BYTES as u32;
        let last_dword = answer_len_bytes / 4 - 1;
        AdminCommand {
            name: "Get Log Page (SMART / Health)",
            opcode: GET_LOG_PAGE,
            namespace: NSID_ALL,
            dwords: [last_dword << 16 | 2, 0, 0, 0, 0, 0],
            answer_len_bytes,
            timeout: QUERY_TIMEOUT,
        }
    }

    /// Formats a namespace: **all of its data are lost**, and those of its siblings where the controller formats all at
    /// once.
    #[must_use]
    pub fn format(request: FormatRequest) -> AdminCommand {
        let index = u32::from(request.format_index);
        assert!(index < 64, "a namespace has at most 64 formats");
        let dword = index & 0xf | request.erase.code() << 9 | (index >> 4) << 12;
        AdminCommand {
            name: "Format NVM",
            opcode: FORMAT_NVM,
            namespace: request.namespace,
            dwords: [dword, 0, 0, 0, 0, 0],
            answer_len_bytes: 0,
            timeout: request.timeout,
        }
    }

    /// Its name in the specification.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its opcode.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.opcode
    }

    /// Namespace that it names.
    #[must_use]
    pub fn namespace(&self) -> u32 {
        self.namespace
    }

    /// Command dwords 10 to 15.
    #[must_use]
    pub fn dwords(&self) -> [u32; 6] {
        self.dwords
    }

    /// Bytes that the drive answers with.
    #[must_use]
    pub fn answer_len_bytes(&self) -> u32 {
        self.answer_len_bytes
    }

    /// How long it may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether it changes anything on the drive.
    #[must_use]
    pub fn is_change(&self) -> bool {
        self.opcode == FORMAT_NVM
    }

    /// The command of nvme-cli that does the same on `node`.
    #[must_use]
    pub fn nvme_cli(&self, node: &str) -> String {
        let (namespace, dword) = (self.namespace, self.dwords[0]);
        match (self.opcode, dword) {
            (IDENTIFY, 1) => format!("nvme id-ctrl {node}"),
            (IDENTIFY, 0) => format!("nvme id-ns {node} --namespace-id={namespace}"),
            (IDENTIFY, 2) => format!("nvme list-ns {node} --namespace-id={namespace}"),
            (IDENTIFY, 0x10) => format!("nvme list-ns {node} --namespace-id={namespace} --all"),
            (GET_LOG_PAGE, _) => format!("nvme smart-log {node}"),
            (FORMAT_NVM, _) => format!(
                "nvme format {node} --namespace-id={namespace} --lbaf={} --ses={} --timeout={} --force",
                dword & 0xf | dword >> 8 & 0x30,
                dword >> 9 & 7,
                self.timeout.as_millis()
            ),
            _ => unreachable!("the constructors make no other command"),
        }
    }
}

impl fmt::Display for AdminCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: opcode {:#04x}, nsid {:#x}", self.name, self.opcode, self.namespace)?;
        for (number, dword) in (10..).zip(self.dwords) {
            write!(f, ", cdw{number} {dword:#010x}")?;
        }
        write!(f, ", data {} bytes, timeout {} ms", self.answer_len_bytes, self.timeout.as_millis())
    }
}

/// `struct nvme_passthru_cmd` of the kernel.
#[repr(C)]
#[derive(Default)]
struct PassthroughCommand {
    opcode: u8,
    flags: u8,
    reserved: u16,
    namespace: u32,
    dwords_2_3: [u32; 2],
    metadata: u64,
    address: u64,
    metadata_len: u32,
    data_len: u32,
    dwords_10_15: [u32; 6],
    timeout_ms: u32,
    result: u32,
}

const _: () = assert!(size_of::<PassthroughCommand>() == 72);

/// An open node that takes admin commands: a controller, or a namespace in either form.
#[derive(Debug)]
pub struct AdminNode {
    name: String,
    file: File,
}

impl AdminNode {
    /// Opens it for reading, which is all that commands need; formatting takes the right to administer the system.
    pub fn open(path: &Path) -> Result<AdminNode, DeviceError> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|source| DeviceError::io(&name, "opening", source))?;
        Ok(AdminNode { name, file })
    }

    /// The path that it was opened by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Id of the namespace whose node this is. Errors: `Io`, also for a controller and for what is no NVMe.
    pub fn namespace_id(&self) -> Result<u32, DeviceError> {
        // SAFETY: the request takes no argument.
        let id = unsafe { libc::ioctl(self.file.as_raw_fd(), NVME_IOCTL_ID) };
        match u32::try_from(id) {
            Ok(id) if id > 0 => Ok(id),
            _ => Err(DeviceError::io(&self.name, "asking for the namespace's id", io::Error::last_os_error())),
        }
    }

    /// Runs a command and gives back what the drive answered. Blocks until it is done.
    pub fn execute(&self, command: &AdminCommand) -> Result<Vec<u8>, DeviceError> {
        let mut answer = vec![0; command.answer_len_bytes as usize];
        let mut raw = PassthroughCommand {
            opcode: command.opcode,
            namespace: command.namespace,
            address: if answer.is_empty() { 0 } else { answer.as_mut_ptr() as u64 },
            data_len: command.answer_len_bytes,
            dwords_10_15: command.dwords,
            timeout_ms: u32::try_from(command.timeout.as_millis()).unwrap_or(u32::MAX),
            ..PassthroughCommand::default()
        };
        // SAFETY: `raw` has the layout of the request's argument; the kernel writes at most `data_len` bytes to `address`,
        // which is `answer`; both live across the call, and the kernel waits for the drive before it returns.
        let status = unsafe { libc::ioctl(self.file.as_raw_fd(), NVME_IOCTL_ADMIN_CMD, &mut raw) };
        match u16::try_from(status) {
            Ok(0) => Ok(answer),
            Ok(status) => {
                let error =
                    NvmeStatus::new(status).map_or_else(|| io::Error::other("unknown status"), |s| s.io_error());
                Err(DeviceError::io(&self.name, command.name, error))
            }
            Err(_) => Err(DeviceError::io(&self.name, command.name, io::Error::last_os_error())),
        }
    }

    /// Has the kernel look at the controller's namespaces again, after a format with another block length. Only a
    /// controller's node takes it.
    pub fn rescan(&self) -> Result<(), DeviceError> {
        // SAFETY: the request takes no argument.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), NVME_IOCTL_RESCAN) } {
            0 => Ok(()),
            _ => Err(DeviceError::io(&self.name, "looking for namespaces again", io::Error::last_os_error())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_they_are_sent() {
        let format = AdminCommand::format(FormatRequest {
            namespace: 3,
            format_index: 0x12,
            erase: SecureErase::UserData,
            timeout: Duration::from_secs(600),
        });
        assert_eq!(
            format.to_string(),
            "Format NVM: opcode 0x80, nsid 0x3, cdw10 0x00001202, cdw11 0x00000000, cdw12 0x00000000, \
             cdw13 0x00000000, cdw14 0x00000000, cdw15 0x00000000, data 0 bytes, timeout 600000 ms"
        );
        assert_eq!(
            format.nvme_cli("/dev/nvme0"),
            "nvme format /dev/nvme0 --namespace-id=3 --lbaf=18 --ses=1 --timeout=600000 --force"
        );
        assert!(format.is_change() && !AdminCommand::smart_log().is_change());
        for (command, opcode, dword, cli) in [
            (AdminCommand::identify_controller(), 6, 1, "nvme id-ctrl /dev/ng0n1"),
            (AdminCommand::identify_namespace(2), 6, 0, "nvme id-ns /dev/ng0n1 --namespace-id=2"),
            (AdminCommand::active_namespaces(0), 6, 2, "nvme list-ns /dev/ng0n1 --namespace-id=0"),
            (AdminCommand::allocated_namespaces(0), 6, 16, "nvme list-ns /dev/ng0n1 --namespace-id=0 --all"),
            (AdminCommand::smart_log(), 2, 0x007f_0002, "nvme smart-log /dev/ng0n1"),
        ] {
            assert_eq!((command.opcode(), command.dwords()[0]), (opcode, dword), "{command}");
            assert_eq!(command.nvme_cli("/dev/ng0n1"), cli);
        }
    }

    #[test]
    fn what_is_no_drive_is_told_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let node = AdminNode::open(file.path()).unwrap();
        let error = node.execute(&AdminCommand::identify_controller()).unwrap_err();
        assert!(error.to_string().contains("Identify Controller on"), "{error}");
        node.namespace_id().unwrap_err();
        node.rescan().unwrap_err();
        AdminNode::open(Path::new("/nowhere/nvme0")).unwrap_err();
    }
}
