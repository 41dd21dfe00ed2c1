//! The device port: aligned reads and writes, and a flush.

use crate::buf::{IoBuf, IoBytes};
use crate::runtime::LocalBoxFuture;
use crate::units::{BlockCount, BlockIndex};
use std::io;

/// Shape of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceGeometry {
    /// Bytes of one block: 512 or 4096.
    pub block_len_bytes: u32,
    /// Number of blocks.
    pub block_count: BlockCount,
}

impl DeviceGeometry {
    /// Bytes in all.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.block_count.0 * u64::from(self.block_len_bytes)
    }
}

/// A device as one core sees it (a submission queue of its own), or a file that stands for one.
///
/// To be correct:
/// - An operation starts when the method is called, not when its future is first polled; dropping the future cancels
///   nothing and the buffers stay alive until the device is done.
/// - Operations in flight may be done in any order. A completed write is readable at once but **not durable**.
/// - `flush` makes every write durable that had *completed* before `flush` was called, by whichever core.
/// - After a power cut each block of an unflushed write is the old one, the new one or torn; other blocks are untouched.
/// - Lengths are multiples of the block, buffers are aligned to 4096 (I-C7); violations are our own bug and panic.
/// - An error is final for that operation. After a failed write or flush the caller stops trusting the device (I-D6).
pub trait Device {
    /// Path or name, for messages.
    fn name(&self) -> &str;
    /// Shape.
    fn geometry(&self) -> DeviceGeometry;
    /// Reads `buf.len()` bytes starting at block `start`.
    fn read(&self, start: BlockIndex, buf: IoBuf) -> LocalBoxFuture<'static, io::Result<IoBuf>>;
    /// Writes the parts one after the other, starting at block `start`; each part's length is a multiple of the block.
    fn write(&self, start: BlockIndex, parts: Vec<IoBytes>) -> LocalBoxFuture<'static, io::Result<()>>;
    /// Makes completed writes durable.
    fn flush(&self) -> LocalBoxFuture<'static, io::Result<()>>;
    /// Whether a completed write is durable already, so that a flush costs nothing.
    fn is_flush_free(&self) -> bool {
        false
    }
    /// Tells the device that the blocks hold nothing; what they read as afterwards is undefined. Best effort.
    fn discard(&self, start: BlockIndex, len: BlockCount) -> LocalBoxFuture<'static, io::Result<()>>;
    /// Blocks of one unit that the device can discard, counted from its first block; `None` when it can't discard.
    fn discard_granularity(&self) -> Option<BlockCount> {
        Some(BlockCount(1))
    }
}
