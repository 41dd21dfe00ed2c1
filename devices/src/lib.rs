//! Devices of a node: layout, superblocks, rings, journals, zones, fragments, and the metadata directories.
//!
//! What this room does: open files and block devices for direct I/O with a ring per core, divide them, say whose they
//! are, and keep metadata files mirrored. What it does not: it never meets plaintext or keys, and knows nothing of
//! chunks beyond the fragment port.
//!
//! Reading order: [`layout`], [`superblock`]; what is there before it is ours: [`topology`], [`slot`], [`in_use`],
//! [`partition_table`], [`probe`], [`mod@format`]; then [`pool`], [`ring`], [`file_device`], and [`meta_dir`],
//! [`metadata_set`]. Drives: [`nvme`]. What lies in a device: [`flush_gate`], [`journal`], [`zones`],
//! [`fragment_header`], [`lane`], [`space`], [`index`], [`recovery`], [`fragment_store`]. What a stopped node's devices
//! say: [`image`], [`verify`], [`index_rebuild`].

mod block_discard;
mod checksum;
pub mod device_tail;
pub mod device_times;
mod discard_unit;
pub mod error;
pub mod file_device;
pub mod file_lock;
pub mod flush_gate;
pub mod format;
pub mod fragment_header;
pub mod fragment_store;
#[doc(hidden)]
pub mod fuzzing;
mod history;
pub mod image;
pub mod in_use;
pub mod index;
pub mod index_rebuild;
pub mod journal;
pub mod lane;
pub mod layout;
pub mod meta_dir;
pub mod metadata_set;
pub mod nvme;
pub mod partition_table;
pub mod pool;
pub mod probe;
pub mod recovery;
pub mod ring;
mod runs;
pub mod slot;
pub mod space;
pub mod superblock;
#[cfg(test)]
mod testing;
pub mod topology;
pub mod verify;
pub mod zones;

pub use checksum::crc32c;
pub use error::DeviceError;
