//! Bytes of a device at any place, for those who look at it: through the device port, or without an executor.

use crate::device_tail::DeviceTail;
use kiseki_types::device::Device;
use kiseki_types::limits::DEVICE_BLOCK_BYTES_MAX;
use kiseki_types::meta::MetaFile;
use kiseki_types::{BlockIndex, IoBuf};
use std::io;

/// What can be read at any place.
pub(crate) trait ByteSource {
    /// Bytes in all.
    fn len_bytes(&self) -> io::Result<u64>;
    /// `len` bytes from `offset`, which have to be there.
    async fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>>;
}

/// A device, which reads whole blocks only, and what lies behind the last of them.
pub(crate) struct DeviceBytes<'a> {
    pub(crate) device: &'a dyn Device,
    pub(crate) tail: Option<&'a DeviceTail>,
}

impl ByteSource for DeviceBytes<'_> {
    fn len_bytes(&self) -> io::Result<u64> {
        let blocks = self.device.geometry().len_bytes();
        Ok(self.tail.map_or(blocks, |tail| tail.bytes().end))
    }

    async fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let end = self.device.geometry().len_bytes();
        let whole = usize::try_from(end.saturating_sub(offset)).map_or(len, |left| left.min(len));
        let mut bytes = if whole > 0 { self.read_blocks(offset, whole).await? } else { Vec::new() };
        if whole < len {
            let from = (offset + whole as u64 - end) as usize;
            let tail = self.tail.ok_or(io::ErrorKind::UnexpectedEof)?.read()?;
            bytes.extend_from_slice(tail.get(from..from + len - whole).ok_or(io::ErrorKind::UnexpectedEof)?);
        }
        Ok(bytes)
    }
}

impl DeviceBytes<'_> {
    async fn read_blocks(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let geometry = self.device.geometry();
        let block = u64::from(geometry.block_len_bytes);
        let (first, skip) = (offset / block, (offset % block) as usize);
        let unit = (block as usize).max(DEVICE_BLOCK_BYTES_MAX);
        // A buffer is a multiple of 4096 bytes; past the last such multiple a device of 512-byte blocks may end.
        let rounded = (skip + len).next_multiple_of(unit).min((geometry.len_bytes() - first * block) as usize);
        let bytes = self.device.read(BlockIndex(first), IoBuf::zeroed(rounded)).await?;
        Ok(bytes[skip..skip + len].to_vec())
    }
}

/// A file, which reads any bytes.
pub(crate) struct FileBytes<'a>(pub(crate) &'a dyn MetaFile);

impl ByteSource for FileBytes<'_> {
    fn len_bytes(&self) -> io::Result<u64> {
        self.0.len()
    }

    async fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.0.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
impl ByteSource for Vec<u8> {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    async fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        self.get(start..start + len).map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}
