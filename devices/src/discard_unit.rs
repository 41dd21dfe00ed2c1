//! The unit in which a file or block device can be told that blocks hold nothing.

use kiseki_types::BlockCount;
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

/// Blocks (of `block_len_bytes`) of one unit; `None` when the kernel says that the device can't discard, or nothing.
pub(crate) fn of(file: &File, block_len_bytes: u32) -> Option<BlockCount> {
    let found = file.metadata().ok()?;
    let unit_bytes = if found.file_type().is_block_device() { of_queue(&found)? } else { found.blksize() };
    Some(BlockCount::holding(unit_bytes.max(1), block_len_bytes))
}

/// What the block layer says of the device, or of the one that a partition lies on. 0 means that it can't.
fn of_queue(found: &Metadata) -> Option<u64> {
    let (major, minor) = (libc::major(found.rdev()), libc::minor(found.rdev()));
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let places = [device.join("queue/discard_granularity"), device.join("../queue/discard_granularity")];
    let text = places.iter().find_map(|place| std::fs::read_to_string(place).ok())?;
    granularity(&text)
}

fn granularity(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_a_unit_and_devices_that_can_not_discard_have_none() {
        let file = tempfile::tempfile().unwrap();
        assert!(of(&file, 4096).is_some_and(|unit| unit.0 >= 1));
        assert_eq!(granularity("4096\n"), Some(4096));
        assert_eq!((granularity("0\n"), granularity("none")), (None, None));
    }
}
