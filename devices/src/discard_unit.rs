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
    let text = |name: &str| {
        let places = [device.join("queue").join(name), device.join("../queue").join(name)];
        places.iter().find_map(|place| std::fs::read_to_string(place).ok())
    };
    unit(&text("discard_granularity")?, text("discard_max_bytes").as_deref())
}

/// `most`: the longest discard, 0 also where an operator turned them off.
fn unit(granularity: &str, most: Option<&str>) -> Option<u64> {
    let number = |text: &str| text.trim().parse::<u64>().ok().filter(|bytes| *bytes > 0);
    if most.is_some_and(|most| number(most).is_none()) {
        return None;
    }
    number(granularity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_a_unit_and_devices_that_can_not_discard_have_none() {
        let file = tempfile::tempfile().unwrap();
        assert!(of(&file, 4096).is_some_and(|unit| unit.0 >= 1));
        assert_eq!((unit("4096\n", None), unit("4096\n", Some("2147483648\n"))), (Some(4096), Some(4096)));
        for (granularity, most) in [("0\n", None), ("none", None), ("4096\n", Some("0\n"))] {
            assert_eq!(unit(granularity, most), None, "{granularity:?} {most:?}");
        }
    }
}
