//! Units of space on a device. Conversions are named; there is no `From` between units.

use crate::ids::DeviceId;
use std::fmt;

/// Position on one device, in device blocks, never bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockIndex(pub u64);

/// A number of device blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockCount(pub u64);

impl BlockIndex {
    /// The block `count` further on.
    #[must_use]
    pub fn plus(self, count: BlockCount) -> BlockIndex {
        BlockIndex(self.0.checked_add(count.0).expect("block index fits in 64 bits"))
    }
}

impl BlockCount {
    /// Blocks that hold `len_bytes` bytes, the last one perhaps in part.
    #[must_use]
    pub fn holding(len_bytes: u64, block_len_bytes: u32) -> BlockCount {
        BlockCount(len_bytes.div_ceil(u64::from(block_len_bytes)))
    }
}

/// A run of blocks on one device. Counted in blocks, so an unaligned extent can't be written down (I-C7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// The device.
    pub device: DeviceId,
    /// First block.
    pub start: BlockIndex,
    /// Number of blocks.
    pub len: BlockCount,
}

impl Extent {
    /// One past the last block.
    #[must_use]
    pub fn end(&self) -> BlockIndex {
        self.start.plus(self.len)
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}@{}", self.start.0, self.len.0, self.device)
    }
}
