//! A device or an image of one, for reading only: what the offline tools look through. Nothing here can write, so it
//! works on read-only files, read-only loop devices and what was copied off a dead machine.
//!
//! - **Image files are mapped.** A read is a slice of the mapping. What can't be read there (a bad sector below the file
//!   system, a file that was cut meanwhile) would be a SIGBUS, so each read first asks the kernel to bring its pages in
//!   (`MADV_POPULATE_READ`), which fails with an error instead. The file is held by a shared lock, so no node opens it
//!   and cuts or changes it; somebody who ignores locks could still cut it between the two steps, which would end a
//!   tool that only reads.
//! - **Block devices are read** with O_DIRECT in bounded chunks: one bad sector costs one chunk, not the process, and the
//!   page cache of the machine is left alone. They are opened exclusively: not while mounted, held or used by a node.

#![allow(unsafe_code)]

use crate::error::DeviceError;
use crate::file_device::{block_device_len, block_node};
use crate::file_lock::lock_shared;
use kiseki_types::buf::IoBuf;
use kiseki_types::limits::DEVICE_BLOCK_BYTES_MAX;
use memmap2::{Advice, Mmap};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, Range};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Bytes that one read of a block device takes at most.
const CHUNK_LEN_BYTES: usize = 1 << 20;

const BLOCK: u64 = DEVICE_BLOCK_BYTES_MAX as u64;

/// A device or an image of one, open for reading only.
#[derive(Debug)]
pub struct Image {
    name: String,
    len_bytes: u64,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// An image file. The file stays open for its lock, its holes, and kernels before 5.14.
    Mapped { map: Mmap, file: File },
    /// A block device.
    Direct(File),
    /// Bytes of a fuzzer or a simulated disk.
    Memory(Vec<u8>),
}

/// Bytes of an image.
pub enum ImageBytes<'a> {
    /// Where they lie.
    Mapped(&'a [u8]),
    /// Read for the caller.
    Read {
        /// Whole blocks.
        buf: IoBuf,
        /// The bytes asked for.
        range: Range<usize>,
    },
}

impl Deref for ImageBytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            ImageBytes::Mapped(bytes) => bytes,
            ImageBytes::Read { buf, range } => &buf[range.clone()],
        }
    }
}

impl Image {
    /// Opens an image file or block device that nobody uses. Errors: `Busy`, `NotADevice`, `BlockLen`, `Io`.
    pub fn open(path: &Path) -> Result<Image, DeviceError> {
        let (device, path) = (path.display().to_string(), &block_node(path));
        let failed = |operation| {
            let device = device.clone();
            move |source| DeviceError::io(&device, operation, source)
        };
        let kind = std::fs::metadata(path).map_err(failed("opening"))?.file_type();
        if kind.is_block_device() {
            let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT | libc::O_EXCL).open(path);
            let file = file.map_err(|source| match source.raw_os_error() {
                Some(libc::EBUSY) => DeviceError::Busy { device: device.clone() },
                _ => DeviceError::io(&device, "opening", source),
            })?;
            let len_bytes = block_device_len(&file, &device)?;
            return Ok(Image { name: device, len_bytes, source: Source::Direct(file) });
        }
        if !kind.is_file() {
            return Err(DeviceError::NotADevice { device });
        }
        let file = File::open(path).map_err(failed("opening"))?;
        match lock_shared(&file) {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(DeviceError::Busy { device }),
            Err(std::fs::TryLockError::Error(source)) => return Err(DeviceError::io(&device, "locking", source)),
        }
        let len_bytes = file.metadata().map_err(failed("measuring"))?.len();
        let source = match len_bytes {
            0 => Source::Memory(Vec::new()), // nothing can't be mapped
            _ => {
                // SAFETY: the mapping is private to this type, which hands out shared slices only and keeps the file
                // open and locked (shared) as long as the mapping: our own writers take an exclusive lock first, so
                // the bytes do not change under a slice. Every read goes through `populate`, so that pages that can't
                // be read are errors; see the head of this file for what is left.
                let map = unsafe { Mmap::map(&file) }.map_err(failed("mapping"))?;
                Source::Mapped { map, file }
            }
        };
        Ok(Image { name: device, len_bytes, source })
    }

    /// An image in memory: for fuzzers, and for disks that are simulated.
    #[must_use]
    pub fn of_bytes(name: &str, bytes: Vec<u8>) -> Image {
        Image { name: name.to_owned(), len_bytes: bytes.len() as u64, source: Source::Memory(bytes) }
    }

    /// Its path, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its length.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Reads `len` bytes at `offset`, which is a multiple of 4096. Errors: `UnexpectedEof` past the end, or what the
    /// disk says.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<ImageBytes<'_>> {
        assert!(offset.is_multiple_of(BLOCK), "I-C7: reads of an image start at a block");
        let end = offset.checked_add(len as u64).filter(|end| *end <= self.len_bytes);
        let end = end.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "it lies past the end"))?;
        // What is mapped or in memory fits the address space.
        let range = || offset as usize..end as usize;
        match &self.source {
            Source::Memory(bytes) => Ok(ImageBytes::Mapped(&bytes[range()])),
            Source::Mapped { map, file } => match populate(map, range()) {
                Ok(()) => Ok(ImageBytes::Mapped(&map[range()])),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => read_chunks(file, offset, len),
                Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Err(io::Error::other(
                    "the disk below the file can't read it, or the file was cut while it was looked at",
                )),
                Err(error) => Err(error),
            },
            Source::Direct(file) => read_chunks(file, offset, len),
        }
    }

    /// Reads as much of a range as the disk gives: blocks that can't be read are zeros here and named in the answer, as
    /// runs of bytes.
    pub fn read_around(&self, offset: u64, len: usize) -> (ImageBytes<'_>, Vec<Range<u64>>) {
        if let Ok(bytes) = self.read(offset, len) {
            return (bytes, Vec::new());
        }
        let mut buf = IoBuf::zeroed(len);
        let mut bad: Vec<Range<u64>> = Vec::new();
        for (number, chunk) in buf.chunks_mut(CHUNK_LEN_BYTES).enumerate() {
            let start = offset + (number * CHUNK_LEN_BYTES) as u64;
            if let Ok(bytes) = self.read(start, chunk.len()) {
                chunk.copy_from_slice(&bytes);
                continue;
            }
            for (number, block) in chunk.chunks_mut(DEVICE_BLOCK_BYTES_MAX).enumerate() {
                let at = start + (number * DEVICE_BLOCK_BYTES_MAX) as u64;
                let end = at + block.len() as u64;
                match self.read(at, block.len()) {
                    Ok(bytes) => block.copy_from_slice(&bytes),
                    Err(_) => match bad.last_mut() {
                        Some(last) if last.end == at => last.end = end,
                        _ => bad.push(at..end),
                    },
                }
            }
        }
        (ImageBytes::Read { buf, range: 0..len }, bad)
    }

    /// The first place from `offset` on that may hold data: holes of a sparse file are skipped. The image's length when
    /// there is none.
    #[must_use]
    pub fn data_from(&self, offset: u64) -> u64 {
        let Source::Mapped { file, .. } = &self.source else { return offset.min(self.len_bytes) };
        let Ok(from) = libc::off_t::try_from(offset) else { return self.len_bytes };
        // SAFETY: no memory is involved; the descriptor is open as long as `file`. The file's position moves, and
        // nobody uses it.
        let found = unsafe { libc::lseek(file.as_raw_fd(), from, libc::SEEK_DATA) };
        match u64::try_from(found) {
            Ok(at) => (at - at % BLOCK).clamp(offset, self.len_bytes.max(offset)),
            Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => self.len_bytes,
            Err(_) => offset.min(self.len_bytes), // a file system that does not tell
        }
    }
}

/// Brings the pages of a range in, so that touching them does not fault.
fn populate(map: &Mmap, range: Range<usize>) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    map.advise_range(Advice::PopulateRead, range.start, range.len())
}

/// Reads whole blocks around the bytes asked for.
fn read_chunks(file: &File, offset: u64, len: usize) -> io::Result<ImageBytes<'static>> {
    let mut buf = IoBuf::zeroed(len.next_multiple_of(DEVICE_BLOCK_BYTES_MAX));
    let mut done = 0;
    while done < len {
        let chunk = (len - done).next_multiple_of(DEVICE_BLOCK_BYTES_MAX).min(CHUNK_LEN_BYTES);
        match file.read_at(&mut buf[done..done + chunk], offset + done as u64) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it lies past the end")),
            Ok(count) if done + count >= len => done = len,
            Ok(count) if count % DEVICE_BLOCK_BYTES_MAX == 0 => done += count,
            Ok(_) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the device ends inside a block")),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ImageBytes::Read { buf, range: 0..len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn image_file(dir: &tempfile::TempDir, len_bytes: u64, at: u64, bytes: &[u8]) -> std::path::PathBuf {
        let path = dir.path().join("d.img");
        let file = File::create(&path).unwrap();
        file.set_len(len_bytes).unwrap();
        file.write_all_at(bytes, at).unwrap();
        path
    }

    #[test]
    fn a_read_only_file_is_mapped_and_its_end_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = image_file(&dir, (1 << 20) + 100, 8192, b"here");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        let image = Image::open(&path).unwrap();
        assert_eq!(&image.read(8192, 4).unwrap()[..], b"here");
        assert_eq!(image.read(1 << 20, 100).unwrap().len(), 100);
        for (offset, len) in [(1 << 20, 101), (2 << 20, 1), (u64::MAX - 4095, 4096)] {
            let error = image.read(offset, len).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset}+{len}");
        }
    }

    #[test]
    fn a_file_that_is_cut_while_it_is_mapped_is_an_error_and_no_signal() {
        let dir = tempfile::tempdir().unwrap();
        let path = image_file(&dir, 4 << 20, 0, b"x");
        let image = Image::open(&path).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
        assert!(image.read(0, 4096).is_ok());
        assert!(image.read(2 << 20, 4096).is_err());
    }

    #[test]
    fn what_somebody_holds_is_refused_and_two_may_look() {
        let dir = tempfile::tempdir().unwrap();
        let path = image_file(&dir, 1 << 20, 0, b"x");
        let image = Image::open(&path).unwrap();
        let _other = Image::open(&path).unwrap();
        assert!(matches!(crate::file_device::DeviceLock::acquire(&path), Err(DeviceError::Busy { .. })));
        drop((image, _other));
        let held = crate::file_device::DeviceLock::acquire(&path).unwrap();
        assert!(matches!(Image::open(&path), Err(DeviceError::Busy { .. })));
        drop(held);
        assert!(matches!(Image::open(dir.path()), Err(DeviceError::NotADevice { .. })));
    }

    #[test]
    fn holes_are_skipped() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = image_file(&dir, 64 << 20, 32 << 20, &[1; 4096]);
        let image = Image::open(&path).unwrap();
        let data = image.data_from(0);
        assert!(data == 0 || data == 32 << 20, "{data}"); // some file systems have no holes
        assert_eq!(image.data_from(32 << 20), 32 << 20);
        assert_eq!(image.data_from(64 << 20), 64 << 20);
        assert_eq!(Image::of_bytes("m", vec![0; 8192]).data_from(4096), 4096);
    }
}
