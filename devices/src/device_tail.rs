//! The bytes of a device behind its last whole block of 4096: a disk of 512-byte sectors, or an image, need not be a
//! multiple. Nothing of ours lies there, but the second copy of a partition table may, so it is looked at and cleared.

use crate::error::DeviceError;
use crate::file_device::{RawDevice, block_node};
use kiseki_types::meta::MetaFile;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The end of one device, open for writing.
#[derive(Debug)]
pub struct DeviceTail {
    name: String,
    /// Through the page cache: what is left is no whole block of anything.
    file: File,
    bytes: Range<u64>,
}

impl DeviceTail {
    /// Opens it; `None` when the device ends with a whole block. Errors: `Io`, and what keeps a device from being opened.
    pub fn open(path: &Path) -> Result<Option<DeviceTail>, DeviceError> {
        let name = path.display().to_string();
        let failed = |source| DeviceError::io(&name, "opening", source);
        let raw = RawDevice::open_for_reading(path)?;
        let bytes = raw.geometry().len_bytes()..raw.len().map_err(failed)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let file = OpenOptions::new().read(true).write(true).open(block_node(path)).map_err(failed)?;
        Ok(Some(DeviceTail { name, file, bytes }))
    }

    /// Where it lies.
    #[must_use]
    pub fn bytes(&self) -> Range<u64> {
        self.bytes.clone()
    }

    /// What lies there.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.len()];
        self.file.read_exact_at(&mut bytes, self.bytes.start)?;
        Ok(bytes)
    }

    /// Writes zeros over it, durably. Blocks: for tools.
    pub fn zero(&self) -> Result<(), DeviceError> {
        let zeroed =
            self.file.write_all_at(&vec![0; self.len()], self.bytes.start).and_then(|()| self.file.sync_data());
        zeroed.map_err(|source| DeviceError::io(&self.name, "clearing the end", source))
    }

    fn len(&self) -> usize {
        (self.bytes.end - self.bytes.start) as usize // less than a block
    }
}
