//! How devices are shown, the same in every verb.

use kiseki_devices::superblock::Superblock;
use serde_json::{Value, json};
use std::path::Path;

/// What a superblock says, for `--json`.
pub fn superblock_json(path: &Path, superblock: &Superblock) -> Value {
    json!({
        "path": path.display().to_string(),
        "device": superblock.device.to_string(),
        "cluster": superblock.cluster.to_string(),
        "pool": superblock.pool.0,
        "class": superblock.class.name(),
        "lanes": superblock.layout.lanes(),
        "block_len_bytes": superblock.layout.block_len_bytes(),
        "capacity_bytes": superblock.layout.capacity_bytes(),
        "generation": superblock.generation,
        "incarnation": superblock.incarnation,
        "metadata_epoch": superblock.metadata.epoch,
    })
}
