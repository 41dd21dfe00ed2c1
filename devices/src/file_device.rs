//! Files, block devices and NVMe namespaces as [`Device`]s: opened, measured, driven by a ring per core.

#![allow(unsafe_code)]

use crate::block_discard::BlockDiscard;
use crate::error::DeviceError;
use crate::file_lock::lock_exclusive;
use crate::nvme::node::NvmeNode;
use crate::nvme::path::{PathChoice, PathInUse, PathPreference};
use crate::pool::BufferPool;
use crate::ring::backend::Backend;
use crate::ring::{Ring, RingOptions};
use kiseki_executor::core_ring;
use kiseki_types::device::{Device, DeviceGeometry};
use kiseki_types::limits::{DEVICE_BLOCK_BYTES_MAX, DEVICE_BLOCK_BYTES_MIN};
use kiseki_types::meta::MetaFile;
use kiseki_types::runtime::LocalBoxFuture;
use kiseki_types::{BlockCount, BlockIndex, IoBuf, IoBytes};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The block that every file and block device is used with, whatever smaller one it has: all that is written are
/// multiples of it, drives that emulate 512 bytes avoid read-modify-write, and images move between machines.
pub(crate) const BLOCK_LEN_BYTES: u32 = DEVICE_BLOCK_BYTES_MAX as u32;

const BLKSSZGET: libc::c_ulong = 0x1268;
/// `_IO(0x12, 95)`.
const BLKRRPART: libc::c_ulong = 0x125f;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

/// The block device of a namespace that is named by its character device; any other path as it is. Measuring, holding
/// and superblocks go through the block device, whatever the reads and writes of fragments do.
#[must_use]
pub fn block_node(path: &Path) -> PathBuf {
    NvmeNode::of(path).and_then(|node| node.block()).unwrap_or_else(|| path.to_owned())
}

/// A file or block device, open for direct I/O and measured.
#[derive(Debug)]
struct DirectFile {
    file: File,
    geometry: DeviceGeometry,
    /// All bytes, those behind the last whole block too.
    len_bytes: u64,
}

/// What a file is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    ReadWrite,
    Read,
}

impl DirectFile {
    /// Opens what is there.
    fn open(path: &Path, access: Access) -> Result<DirectFile, DeviceError> {
        let (device, path) = (path.display().to_string(), &block_node(path));
        let kind = std::fs::metadata(path).map_err(|source| DeviceError::io(&device, "opening", source))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DeviceError::NotADevice { device });
        }
        let mut options = OpenOptions::new();
        let options = options.read(true).write(access == Access::ReadWrite).custom_flags(libc::O_DIRECT);
        let file = options.open(path).map_err(|source| match source.raw_os_error() {
            Some(libc::EINVAL) => DeviceError::DirectRefused { device: device.clone() },
            Some(libc::EBUSY) => DeviceError::Busy { device: device.clone() },
            _ => DeviceError::io(&device, "opening", source),
        })?;
        let len_bytes = match kind.is_block_device() {
            true => block_device_len(&file, &device)?,
            false => file.metadata().map_err(|source| DeviceError::io(&device, "measuring", source))?.len(),
        };
        let block_count = BlockCount(len_bytes / u64::from(BLOCK_LEN_BYTES));
        let geometry = DeviceGeometry { block_len_bytes: BLOCK_LEN_BYTES, block_count };
        let opened = DirectFile { file, geometry, len_bytes };
        opened.check_direct(&device)?;
        Ok(opened)
    }

    /// Some file systems take the flag and refuse the first read.
    fn check_direct(&self, device: &str) -> Result<(), DeviceError> {
        if self.geometry.block_count.0 == 0 {
            return Ok(());
        }
        let mut first = IoBuf::zeroed(BLOCK_LEN_BYTES as usize);
        match self.file.read_exact_at(&mut first, 0) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Err(DeviceError::DirectRefused { device: device.to_owned() })
            }
            // A device with a bad first block is still a device: its superblock has other copies.
            _ => Ok(()),
        }
    }
}

pub(crate) fn block_device_len(file: &File, device: &str) -> Result<u64, DeviceError> {
    let mut block_len: libc::c_int = 0;
    let mut len_bytes: u64 = 0;
    // SAFETY: the request writes one int, into a variable of that type that lives across the call.
    let block_answer = unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &mut block_len) };
    // SAFETY: the request writes one u64, into a variable of that type that lives across the call.
    let len_answer = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &mut len_bytes) };
    if block_answer < 0 || len_answer < 0 {
        return Err(DeviceError::io(device, "measuring", io::Error::last_os_error()));
    }
    match block_len {
        512 | 4096 => Ok(len_bytes),
        other => Err(DeviceError::BlockLen {
            device: device.to_owned(),
            block_len_bytes: u32::try_from(other).unwrap_or_default(),
        }),
    }
}

/// Holds a device for this process; nobody else, another Kiseki included, opens it meanwhile.
#[derive(Debug)]
pub struct DeviceLock {
    /// A block device is held by an exclusive open, a file by a lock; both end when it is closed.
    file: File,
}

impl DeviceLock {
    /// Takes the device for this process. Errors: `Busy`.
    pub fn acquire(path: &Path) -> Result<DeviceLock, DeviceError> {
        let (device, path) = (path.display().to_string(), &block_node(path));
        let is_block = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).custom_flags(if is_block { libc::O_EXCL } else { 0 });
        let file = options.open(path).map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY) => DeviceError::Busy { device: device.clone() },
            _ => DeviceError::io(&device, "opening", source),
        })?;
        match lock_exclusive(&file) {
            Ok(()) => Ok(DeviceLock { file }),
            Err(std::fs::TryLockError::WouldBlock) => Err(DeviceError::Busy { device }),
            Err(std::fs::TryLockError::Error(source)) => Err(DeviceError::io(&device, "locking", source)),
        }
    }
}

impl DeviceLock {
    /// Has the kernel read the partition table again, so that nodes of partitions that are gone go too. Best effort: a
    /// file, a partition and many virtual devices have none.
    pub fn reread_partitions(&self) {
        // SAFETY: the request takes no argument.
        unsafe { libc::ioctl(self.file.as_raw_fd(), BLKRRPART) };
    }
}

/// One core's queue on a file, a block device or a namespace.
pub struct FileDevice {
    name: String,
    geometry: DeviceGeometry,
    discard_unit: Option<BlockCount>,
    /// How a block device discards that is not driven by commands.
    block_discard: Option<BlockDiscard>,
    ring: Ring,
}

/// Opens a file or device for the calling core: a queue of its own on the core's ring, with the core's registered buffers.
/// Which way it goes is chosen by `options.path` and by the rings that the core has.
///
/// - `pool`: the registered buffers of this core; the same for all its devices.
/// - Errors: `Io`, `DirectRefused`, `NotADevice`, `BlockLen`, `PassthroughRefused`. Call from inside the executor; opening
///   blocks shortly.
pub fn open_device(
    path: &Path,
    options: RingOptions,
    pool: Option<Rc<BufferPool>>,
) -> Result<Rc<dyn Device>, DeviceError> {
    let preference = match options.path {
        // Nothing to try out where no commands can be sent.
        PathPreference::Auto if !core_ring().takes_commands() => PathPreference::IoUring,
        other => other,
    };
    open_device_by(path, &PathChoice::make(path, preference)?, options, pool)
}

/// The same on the way that was chosen. Where polling was chosen and the core can't have a ring for it, interrupts do, and a
/// warning says so.
pub fn open_device_by(
    path: &Path,
    choice: &PathChoice,
    options: RingOptions,
    pool: Option<Rc<BufferPool>>,
) -> Result<Rc<dyn Device>, DeviceError> {
    let name = path.display().to_string();
    let core = core_ring();
    if choice.uses_commands() && !core.takes_commands() {
        let reason = "the core's ring takes no commands (Linux 5.19 and later have one that does)".to_owned();
        return Err(DeviceError::PassthroughRefused { device: name, reason });
    }
    let mut choice = choice.clone();
    if choice.in_use == PathInUse::PassthroughPolled
        && let Err(error) = core.add_polled()
    {
        tracing::warn!(device = %name, %error, "no ring to poll it on this core, so it is driven by interrupts here; more locked memory may help (LimitMEMLOCK=infinity)");
        choice = choice.without_polling();
    }
    let opened = DirectFile::open(path, Access::ReadWrite)?;
    let geometry = opened.geometry;
    let mut discard_unit = crate::discard_unit::of(&opened.file, geometry.block_len_bytes);
    let is_block = opened.file.metadata().is_ok_and(|found| found.file_type().is_block_device());
    let (file, backend) = choice.open()?.unwrap_or((opened.file, Backend::File));
    let block_discard = match &backend {
        Backend::File if is_block && discard_unit.is_some() => match BlockDiscard::start(&file) {
            Ok(started) => Some(started),
            Err(error) => {
                tracing::warn!(device = %name, %error, "no thread for its discards, so freed space is not told to it until it is opened again");
                discard_unit = None;
                None
            }
        },
        Backend::File | Backend::Commands(_) => None,
    };
    let ring = Ring::start(&name, file, backend, options, pool)
        .map_err(|source| DeviceError::io(&name, "setting up io_uring", source))?;
    Ok(Rc::new(FileDevice { name, geometry, discard_unit, block_discard, ring }))
}

impl FileDevice {
    /// The byte offset of a run of blocks, which must lie inside the device and be whole and aligned (I-C7).
    fn offset(&self, start: BlockIndex, len_bytes: u64) -> u64 {
        let block = u64::from(self.geometry.block_len_bytes);
        assert!(len_bytes.is_multiple_of(block), "I-C7: {len_bytes} bytes on {}", self.name);
        let end = start.0.checked_add(len_bytes / block).expect("I-C7: a block index fits 64 bits");
        assert!(end <= self.geometry.block_count.0, "I-C7: block {end} of {}", self.geometry.block_count.0);
        start.0 * block
    }

    fn assert_aligned(&self, bytes: &[u8]) {
        let skew = bytes.as_ptr().align_offset(self.geometry.block_len_bytes as usize);
        assert_eq!(skew, 0, "I-C7: buffer not aligned, on {}", self.name);
    }
}

impl Device for FileDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> DeviceGeometry {
        self.geometry
    }

    fn read(&self, start: BlockIndex, buf: IoBuf) -> LocalBoxFuture<'static, io::Result<IoBuf>> {
        self.assert_aligned(&buf);
        self.ring.read(self.offset(start, buf.len() as u64), buf)
    }

    fn write(&self, start: BlockIndex, parts: Vec<IoBytes>) -> LocalBoxFuture<'static, io::Result<()>> {
        let mut len_bytes = 0;
        for part in &parts {
            self.assert_aligned(part);
            assert!(part.len().is_multiple_of(self.geometry.block_len_bytes as usize), "I-C7: part of {}", part.len());
            len_bytes += part.len() as u64;
        }
        self.ring.write(self.offset(start, len_bytes), parts)
    }

    fn is_flush_free(&self) -> bool {
        !self.ring.needs_flush()
    }

    fn flush(&self) -> LocalBoxFuture<'static, io::Result<()>> {
        self.ring.flush()
    }

    fn discard(&self, start: BlockIndex, len: BlockCount) -> LocalBoxFuture<'static, io::Result<()>> {
        let len_bytes = len.0 * u64::from(self.geometry.block_len_bytes);
        let offset = self.offset(start, len_bytes);
        match (len_bytes, &self.block_discard) {
            (0, _) => Box::pin(std::future::ready(Ok(()))),
            (_, Some(block)) => block.discard(offset, len_bytes),
            // On a block device the ring would write zeros.
            (_, None) if self.discard_unit.is_none() => Box::pin(std::future::ready(Ok(()))),
            (_, None) => self.ring.discard(offset, len_bytes),
        }
    }

    fn discard_granularity(&self) -> Option<BlockCount> {
        self.discard_unit.filter(|_| self.block_discard.as_ref().is_none_or(BlockDiscard::is_possible))
    }
}

impl fmt::Debug for FileDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileDevice({})", self.name)
    }
}

/// A device as a file for side threads: direct and blocking, in whole blocks. For superblocks and for tools.
#[derive(Debug)]
pub struct RawDevice {
    direct: DirectFile,
}

impl RawDevice {
    /// Opens a file or block device. Errors as [`open_device`].
    pub fn open(path: &Path) -> Result<RawDevice, DeviceError> {
        Ok(RawDevice { direct: DirectFile::open(path, Access::ReadWrite)? })
    }

    /// Opens it for reading alone: nothing that watches devices for writers is disturbed, and read-only ones open too.
    pub fn open_for_reading(path: &Path) -> Result<RawDevice, DeviceError> {
        Ok(RawDevice { direct: DirectFile::open(path, Access::Read)? })
    }

    /// Shape of the device.
    #[must_use]
    pub fn geometry(&self) -> DeviceGeometry {
        self.direct.geometry
    }
}

impl MetaFile for RawDevice {
    fn len(&self) -> io::Result<u64> {
        Ok(self.direct.len_bytes)
    }

    fn set_len(&self, _len_bytes: u64) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a device keeps its length"))
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let block = u64::from(BLOCK_LEN_BYTES);
        let start = offset - offset % block;
        let skip = usize::try_from(offset - start).map_err(io::Error::other)?;
        let wanted = skip + out.len();
        let mut aligned = IoBuf::zeroed(wanted.next_multiple_of(BLOCK_LEN_BYTES as usize));
        let mut done = 0;
        // The last block may be no whole one.
        while done < wanted {
            match self.direct.file.read_at(&mut aligned[done..], start + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) if done + count < wanted && count % DEVICE_BLOCK_BYTES_MIN != 0 => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        out.copy_from_slice(&aligned[skip..wanted]);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let block = u64::from(BLOCK_LEN_BYTES);
        // I-C7: a partial block would need a read first, and a crash between would tear what others wrote.
        assert!(offset.is_multiple_of(block) && (bytes.len() as u64).is_multiple_of(block), "I-C7: write at {offset}");
        self.direct.file.write_all_at(&IoBuf::copy_of(bytes), offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.direct.file.sync_data()
    }
}

/// Makes an image file of `len_bytes`, sparse: it takes space as it is written. Errors: `Io`, also when it exists.
pub fn create_image(path: &Path, len_bytes: u64) -> Result<(), DeviceError> {
    let device = path.display().to_string();
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).and_then(|file| {
        file.set_len(len_bytes)?;
        file.sync_all()?;
        // The name has to be durable too, or a power cut takes the whole device.
        File::open(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
    });
    made.map_err(|source| DeviceError::io(&device, "creating the image", source))
}
