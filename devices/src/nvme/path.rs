//! Which way to a device: commands to the character device of an NVMe namespace where that can be done, the block device
//! or the file elsewhere. What is there is gathered first, then one function decides, and says why.

#![allow(unsafe_code)]

use super::admin::{AdminCommand, AdminNode};
use super::command::{CommandAnswer, CommandBackend, TransferLimits};
use super::identify::{ControllerIdentity, NamespaceIdentity};
use super::node::{NvmeNode, NvmeNodeKind};
use super::queue_facts::QueueFacts;
use crate::error::DeviceError;
use crate::file_device::BLOCK_LEN_BYTES;
use crate::ring::backend::{Backend, Step};
use crate::ring::cache_watch::ResetCount;
use crate::ring::patience::RetryLimits;
use io_uring::{IoUring, cqueue, squeue};
use kiseki_executor::Submission;
use kiseki_types::IoBuf;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Flushes what the page cache holds of a block device and forgets it.
const BLKFLSBUF: libc::c_ulong = 0x1261;

/// Longest command that we make, whatever a drive would take: more of them at once are faster than longer ones.
const COMMAND_LEN_BYTES_MAX: u64 = 1 << 20;

/// Blocks of one command that its field can count.
const COMMAND_BLOCKS_MAX: u64 = 1 << 16;

/// Times that the first block is read both ways before the two are said to differ.
const COMPARISONS_MAX: usize = 5;

/// How long a drive that asks for patience gets it: as long as the kernel gives a command, but within these bounds, for some
/// kernels are told to wait for ever.
const RETRY_SPAN_MIN: Duration = Duration::from_secs(5);
const RETRY_SPAN_MAX: Duration = Duration::from_secs(120);

/// Which way an operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathPreference {
    /// Commands where that can be done.
    #[default]
    Auto,
    /// Commands, or an error.
    Passthrough,
    /// The block device.
    IoUring,
}

/// The way that a device is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathInUse {
    /// Commands to the character device, completions by interrupts.
    Passthrough,
    /// Commands to the character device, reads and writes without interrupts.
    PassthroughPolled,
    /// Reads and writes of the block device.
    Block,
    /// Reads and writes of a file.
    File,
}

impl PathInUse {
    /// One word, for metrics and programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            PathInUse::Passthrough => "passthrough",
            PathInUse::PassthroughPolled => "passthrough_polled",
            PathInUse::Block => "block",
            PathInUse::File => "file",
        }
    }
}

impl fmt::Display for PathInUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PathInUse::Passthrough => "NVMe passthrough",
            PathInUse::PassthroughPolled => "NVMe passthrough, polled",
            PathInUse::Block => "io_uring on the block device",
            PathInUse::File => "io_uring on a file",
        })
    }
}

/// A way that was chosen, and what it takes.
#[derive(Clone, Debug)]
pub struct PathChoice {
    /// The way.
    pub in_use: PathInUse,
    /// Why an NVMe drive is not driven by commands; empty where it is, and for what is no such drive.
    pub reason: String,
    target: Option<Target>,
}

/// A namespace that is driven by commands.
#[derive(Clone, Debug)]
struct Target {
    generic: PathBuf,
    backend: CommandBackend,
}

/// What is known of a namespace before anything is decided.
#[derive(Clone, Debug)]
struct Found {
    namespace: u32,
    namespace_identity: NamespaceIdentity,
    controller: ControllerIdentity,
    queue: QueueFacts,
}

impl PathChoice {
    fn without_commands(in_use: PathInUse, reason: impl Into<String>) -> PathChoice {
        PathChoice { in_use, reason: reason.into(), target: None }
    }

    /// Chooses the way to the file or device at `path`, which this process holds already. For commands it is made sure
    /// that they work (a block is read both ways), and that the page cache keeps nothing of the device.
    ///
    /// Errors: `PassthroughRefused` when it was asked for and can't be; what opening and measuring gives.
    pub fn make(path: &Path, preference: PathPreference) -> Result<PathChoice, DeviceError> {
        let refused = |reason: String| match preference {
            PathPreference::Passthrough => {
                Err(DeviceError::PassthroughRefused { device: path.display().to_string(), reason })
            }
            _ => Ok(PathChoice::without_commands(PathInUse::Block, reason)),
        };
        let node = NvmeNode::of(path).filter(|node| node.kind() != NvmeNodeKind::Controller);
        let Some(node) = node else {
            let is_file = std::fs::metadata(path).is_ok_and(|found| found.is_file());
            let in_use = if is_file { PathInUse::File } else { PathInUse::Block };
            return match preference {
                PathPreference::Passthrough if !is_file => refused("it is no namespace of an NVMe drive".to_owned()),
                // Files stand for devices in trials; asking for commands means the drives beside them.
                _ => Ok(PathChoice::without_commands(in_use, "")),
            };
        };
        if preference == PathPreference::IoUring {
            return Ok(PathChoice::without_commands(PathInUse::Block, "the configuration says io_uring"));
        }
        let (Some(block), Some(generic)) = (node.block(), node.generic()) else {
            unreachable!("it is a namespace");
        };
        let found = gather(&node, &generic);
        let backend = match found.and_then(|found| decide(&found)) {
            Ok(backend) => backend,
            Err(reason) => return refused(reason),
        };
        match try_commands(&block, &generic, backend) {
            Ok(backend) => {
                let in_use = if backend.is_polled { PathInUse::PassthroughPolled } else { PathInUse::Passthrough };
                Ok(PathChoice { in_use, reason: String::new(), target: Some(Target { generic, backend }) })
            }
            Err(reason) => refused(reason),
        }
    }

    /// Opens the character device for a queue; `None` where no commands are used.
    pub(crate) fn open(&self) -> Result<Option<(File, Backend)>, DeviceError> {
        let Some(target) = &self.target else { return Ok(None) };
        let file = open_generic(&target.generic)
            .map_err(|source| DeviceError::io(&target.generic.display().to_string(), "opening", source))?;
        Ok(Some((file, Backend::Commands(target.backend.clone()))))
    }

    /// Whether the device is driven by commands.
    #[must_use]
    pub fn uses_commands(&self) -> bool {
        self.target.is_some()
    }

    /// The same way, completions by interrupts.
    #[must_use]
    pub fn without_polling(mut self) -> PathChoice {
        if let Some(target) = &mut self.target {
            target.backend.is_polled = false;
            self.in_use = PathInUse::Passthrough;
        }
        self
    }
}

fn open_generic(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Asks drive and kernel. The error is the reason not to use commands.
fn gather(node: &NvmeNode, generic: &Path) -> Result<Found, String> {
    let name = generic.display();
    if !generic.exists() {
        return Err(format!("there is no {name} (Linux 5.13 and later have it)"));
    }
    let admin = AdminNode::open(generic).map_err(|error| with_cause(&error))?;
    let namespace = admin.namespace_id().map_err(|error| with_cause(&error))?;
    let ask = |command: AdminCommand| admin.execute(&command).map_err(|error| with_cause(&error));
    let controller = ControllerIdentity::parse(&ask(AdminCommand::identify_controller())?);
    let identity = NamespaceIdentity::parse(&ask(AdminCommand::identify_namespace(namespace))?);
    Ok(Found {
        namespace,
        namespace_identity: identity.map_err(|error| error.to_string())?,
        controller: controller.map_err(|error| error.to_string())?,
        queue: QueueFacts::read(Path::new("/sys/block"), &node.block_name().expect("it is a namespace"))?,
    })
}

/// How to drive a namespace by commands, or why not.
fn decide(found: &Found) -> Result<CommandBackend, String> {
    let Found { namespace, namespace_identity: identity, controller, queue } = found;
    let format = identity.format;
    if !matches!(format.block_len_bytes, 512 | 4096) {
        return Err(format!("its blocks have {} bytes", format.block_len_bytes));
    }
    if format.metadata_len_bytes > 0 || identity.protection > 0 {
        return Err(format!("its blocks carry {} bytes of metadata", format.metadata_len_bytes));
    }
    if queue.is_zoned {
        return Err("it is zoned".to_owned());
    }
    if queue.is_read_only {
        return Err("it takes no writes".to_owned());
    }
    if queue.occupants > 0 {
        return Err(format!("it carries {} partitions or devices on top", queue.occupants));
    }
    if identity.len_bytes() != queue.len_bytes {
        let (drive, kernel) = (identity.len_bytes(), queue.len_bytes);
        return Err(format!("the drive says {drive} bytes and the kernel {kernel}: rescan it"));
    }
    let block = u64::from(BLOCK_LEN_BYTES);
    // Every run of memory is whole blocks of ours, so none needs more than one segment for each.
    let len_bytes_max = [
        controller.transfer_len_bytes_max.unwrap_or(u64::MAX),
        queue.transfer_len_bytes_max,
        queue.segments_max.saturating_mul(block),
        u64::from(format.block_len_bytes) * COMMAND_BLOCKS_MAX,
        COMMAND_LEN_BYTES_MAX,
    ];
    let len_bytes_max = len_bytes_max.into_iter().min().unwrap_or(0) / block * block;
    if len_bytes_max == 0 {
        return Err(format!("its commands transfer fewer than {block} bytes"));
    }
    let boundary = identity.boundary_blocks.map(|blocks| u64::from(blocks) * u64::from(format.block_len_bytes));
    Ok(CommandBackend {
        namespace: *namespace,
        block_len_bytes: format.block_len_bytes,
        limits: TransferLimits {
            len_bytes_max: usize::try_from(len_bytes_max).expect("at most COMMAND_LEN_BYTES_MAX"),
            // A boundary inside our block can't be kept; it is a hint.
            boundary_bytes: boundary.filter(|bytes| bytes.is_multiple_of(block)),
        },
        is_polled: queue.can_poll,
        is_local: queue.is_local,
        has_paths: queue.has_paths,
        has_volatile_cache: controller.has_volatile_cache,
        resets: ResetCount::default(),
        can_deallocate: controller.commands.dataset_management,
        retry: RetryLimits {
            span_max: queue.io_timeout.clamp(RETRY_SPAN_MIN, RETRY_SPAN_MAX),
            named: controller.retry_delays,
        },
    })
}

/// Reads the first block by a command and through the block device: kernels, permissions and policies that forbid
/// commands, and a character device of another namespace, show here and not in the first write. Returns how commands
/// work: without polling, where that alone fails.
fn try_commands(block: &Path, generic: &Path, backend: CommandBackend) -> Result<CommandBackend, String> {
    let device = OpenOptions::new().read(true).write(true).custom_flags_direct().open(block);
    let device = device.map_err(|error| format!("{}: {error}", block.display()))?;
    // What somebody wrote through the page cache must not come over our blocks later, nor hide them.
    // SAFETY: the request takes no argument.
    if unsafe { libc::ioctl(device.as_raw_fd(), BLKFLSBUF) } < 0 {
        return Err(format!("the page cache of {} stays: {}", block.display(), io::Error::last_os_error()));
    }
    let file = open_generic(generic).map_err(|error| format!("{}: {error}", generic.display()))?;
    let check = |backend: &CommandBackend| {
        // The superblock may be written while it is read, by ourselves.
        for _ in 0..COMPARISONS_MAX {
            let mut expected = IoBuf::zeroed(BLOCK_LEN_BYTES as usize);
            let is_readable = device.read_exact_at(&mut expected, 0).is_ok();
            match read_first_block(&file, backend) {
                Ok(Some(found)) if is_readable && found[..] != expected[..] => {}
                // A bad first block is no reason: superblocks have other copies.
                Ok(_) => return Ok(()),
                Err(error) => return Err(format!("{} takes no commands: {error}", generic.display())),
            }
        }
        Err(format!("{} and {} are not the same", generic.display(), block.display()))
    };
    let mut plain = backend.clone();
    plain.is_polled = false;
    check(&plain)?;
    if backend.is_polled && check(&backend).is_ok() { Ok(backend) } else { Ok(plain) }
}

/// `None`: the drive answered, with an error.
fn read_first_block(file: &File, backend: &CommandBackend) -> io::Result<Option<IoBuf>> {
    let mut buf = IoBuf::zeroed(BLOCK_LEN_BYTES as usize);
    let mut builder = IoUring::<squeue::Entry128, cqueue::Entry32>::builder();
    if backend.is_polled {
        builder.setup_iopoll();
    }
    let mut ring = builder.build(1)?;
    ring.submitter().register_files(&[file.as_raw_fd()])?;
    // As the cores do it: commands on registered memory came later than commands. Without the right to lock memory the
    // cores register none either.
    let iovec = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: `buf` outlives the ring, or is never given back.
    let slot = unsafe { ring.submitter().register_buffers(&[iovec]) }.is_ok().then_some(0);
    let step = Step::Read { offset: 0, address: buf.as_mut_ptr(), len_bytes: BLOCK_LEN_BYTES, slot };
    let (Submission::Wide(entry), _) = backend.submission(step, io_uring::types::Fixed(0), false) else {
        unreachable!("commands are wide");
    };
    // SAFETY: the entry names `buf`, which lives until the answer is taken below.
    unsafe { ring.submission().push(&entry).expect("the ring is empty") };
    let answer = loop {
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                // Whether the kernel still has the buffer is unknown: it is never given back.
                std::mem::forget(buf);
                return Err(error);
            }
        }
        if let Some(answer) = ring.completion().next() {
            let answer: cqueue::Entry = answer.into();
            break answer.result();
        }
    };
    match CommandAnswer::of(answer, backend) {
        CommandAnswer::Done => Ok(Some(buf)),
        CommandAnswer::Refused(status) if status.is_media_error() => Ok(None),
        CommandAnswer::Refused(status) => Err(status.io_error()),
        CommandAnswer::Crowded => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
        CommandAnswer::NoPath => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        CommandAnswer::TakenBack => Err(io::Error::from_raw_os_error(libc::EINTR)),
        CommandAnswer::Failed(errno) => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// An error and its cause.
fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Direct I/O, in one word.
trait Direct {
    fn custom_flags_direct(&mut self) -> &mut Self;
}

impl Direct for OpenOptions {
    fn custom_flags_direct(&mut self) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::custom_flags(self, libc::O_DIRECT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::identify::IDENTIFY_LEN_BYTES;

    /// A sound namespace of 1024 blocks of `1 << power` bytes.
    fn found(power: u8) -> Found {
        let mut page = vec![0; IDENTIFY_LEN_BYTES];
        page[1] = 4;
        page[130] = power;
        let mut controller = vec![0; IDENTIFY_LEN_BYTES];
        controller[77] = 5;
        controller[520] = 1 << 2;
        let queue = QueueFacts {
            len_bytes: 1024 << power,
            occupants: 0,
            is_zoned: false,
            is_read_only: false,
            transfer_len_bytes_max: 512 << 10,
            segments_max: 127,
            can_poll: false,
            is_local: true,
            has_paths: false,
            io_timeout: Duration::from_secs(30),
        };
        Found {
            namespace: 1,
            namespace_identity: NamespaceIdentity::parse(&page).unwrap(),
            controller: ControllerIdentity::parse(&controller).unwrap(),
            queue,
        }
    }

    #[test]
    fn the_tightest_limit_counts() {
        let mut drive = found(9);
        assert_eq!(decide(&drive).unwrap().limits.len_bytes_max, 128 << 10, "MDTS");
        drive.controller.transfer_len_bytes_max = None;
        assert_eq!(decide(&drive).unwrap().limits.len_bytes_max, 127 * 4096, "segments");
        drive.queue.segments_max = 1000;
        assert_eq!(decide(&drive).unwrap().limits.len_bytes_max, 512 << 10, "the driver");
        drive.queue.transfer_len_bytes_max = 1 << 30;
        drive.queue.segments_max = 1 << 20;
        assert_eq!(decide(&drive).unwrap().limits.len_bytes_max, 1 << 20, "ours");
        drive.queue.transfer_len_bytes_max = 6 << 10;
        assert_eq!(decide(&drive).unwrap().limits.len_bytes_max, 4096, "whole blocks");
        drive.queue.transfer_len_bytes_max = 2 << 10;
        decide(&drive).unwrap_err();
        let mut drive = found(12);
        for (timeout_s, span_s) in [(30, 30), (1, 5), (4_294_967, 120)] {
            drive.queue.io_timeout = Duration::from_secs(timeout_s);
            assert_eq!(decide(&drive).unwrap().retry.span_max, Duration::from_secs(span_s), "{timeout_s} s");
        }
        drive.namespace_identity.boundary_blocks = Some(32);
        assert_eq!(decide(&drive).unwrap().limits.boundary_bytes, Some(128 << 10));
        let mut drive = found(9);
        drive.namespace_identity.boundary_blocks = Some(3);
        assert_eq!(decide(&drive).unwrap().limits.boundary_bytes, None);
    }

    #[test]
    fn what_can_not_be_driven_by_commands_is_told() {
        type Spoil = fn(&mut Found);
        let cases: [(&str, Spoil); 7] = [
            ("metadata", |found| found.namespace_identity.format.metadata_len_bytes = 8),
            ("metadata", |found| found.namespace_identity.protection = 1),
            ("zoned", |found| found.queue.is_zoned = true),
            ("no writes", |found| found.queue.is_read_only = true),
            ("partitions", |found| found.queue.occupants = 2),
            ("rescan", |found| found.queue.len_bytes += 512),
            ("1024 bytes", |found| found.namespace_identity.format.block_len_bytes = 1024),
        ];
        for (word, spoil) in cases {
            let mut drive = found(12);
            assert!(decide(&drive).is_ok());
            spoil(&mut drive);
            let reason = decide(&drive).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn files_are_files_whatever_is_preferred() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for preference in [PathPreference::Auto, PathPreference::Passthrough, PathPreference::IoUring] {
            let choice = PathChoice::make(file.path(), preference).unwrap();
            assert_eq!((choice.in_use, choice.reason.as_str()), (PathInUse::File, ""), "{preference:?}");
            assert!(choice.open().unwrap().is_none());
        }
    }

    #[test]
    fn a_drive_without_its_character_device_is_told_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let block = dir.path().join("nvme0n1");
        std::fs::write(&block, b"").unwrap();
        let choice = PathChoice::make(&block, PathPreference::Auto).unwrap();
        assert!(choice.in_use == PathInUse::Block && choice.reason.contains("ng0n1"), "{choice:?}");
        let refused = PathChoice::make(&block, PathPreference::Passthrough).unwrap_err();
        assert!(matches!(refused, DeviceError::PassthroughRefused { .. }), "{refused}");
    }

    #[test]
    fn polling_can_be_left_away() {
        let backend = CommandBackend { is_polled: true, ..decide(&found(12)).unwrap() };
        let target = Some(Target { generic: "/dev/ng0n1".into(), backend });
        let choice = PathChoice { in_use: PathInUse::PassthroughPolled, reason: String::new(), target };
        let plain = choice.without_polling();
        assert!(
            plain.uses_commands() && plain.in_use == PathInUse::Passthrough && !plain.target.unwrap().backend.is_polled
        );
        let block = PathChoice::without_commands(PathInUse::Block, "").without_polling();
        assert!(!block.uses_commands() && block.in_use == PathInUse::Block);
    }
}
