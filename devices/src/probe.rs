//! Whose data a device carries: signatures of file systems, partition tables, volume managers, and of Kiseki itself.
//!
//! A device with a signature is formatted only when each of them is confirmed by name (I-D7). The list covers what
//! Linux machines carry; what it does not know is not protected, so operators name devices, never "all".
//!
//! A partition table does not hide what lies in its partitions: each of them is looked at as a device of its own, and
//! what it carries has to be named with its number (`p1:ext`).

mod known;
mod source;

use crate::device_tail::DeviceTail;
use crate::error::DeviceError;
use crate::layout::{DeviceLayout, SUPERBLOCK_LEN_BYTES};
use crate::partition_table::read_partitions;
use crate::superblock::{Superblock, SuperblockDamage};
use kiseki_types::device::{Device, DeviceGeometry};
use kiseki_types::limits::{DEVICE_BLOCK_BYTES_MAX, DEVICE_BLOCK_BYTES_MIN};
use kiseki_types::meta::MetaFile;
use kiseki_types::{BlockCount, BlockIndex, ClusterId};
use known::{KNOWN, MD_MAGIC, Place, WITH_BOOT_SECTOR};
pub(crate) use source::{ByteSource, DeviceBytes, FileBytes};
use std::fmt;
use std::io;

/// Bytes that are looked at, and at format wiped, at each end: all signatures below lie within.
pub const PROBE_LEN_BYTES: u64 = 1 << 20;

/// Something that a device carries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FoundSignature {
    /// What the operator has to repeat to have it overwritten: a word, for Kiseki with the cluster's id; what lies in a
    /// partition has its number in front, `p1:`.
    pub name: String,
    /// What it is, for people.
    pub description: String,
    /// The partition that it lies in.
    pub partition: Option<u32>,
    /// The cluster whose device this is, where no node ever used it: for the same one it may be formatted again.
    pub unused_of: Option<ClusterId>,
}

impl FoundSignature {
    fn new(name: &str, description: &str) -> FoundSignature {
        FoundSignature { name: name.to_owned(), description: description.to_owned(), partition: None, unused_of: None }
    }
}

impl fmt::Display for FoundSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}

/// The number that starts each of the 1 KiB slots in a ZFS label's ring, 128 KiB into the label.
const ZFS_MAGIC: u64 = 0x00ba_b10c;
const ZFS_RING: std::ops::Range<usize> = 128 << 10..256 << 10;
const ZFS_LABEL_LEN_BYTES: usize = 256 << 10;

/// The signatures in the first and last bytes of a device, each name once, sorted.
///
/// - `front`, `far`: what lies at the two ends, up to [`PROBE_LEN_BYTES`] each; on a small device they may overlap.
/// - `geometry`: shape of the whole device.
#[must_use]
pub fn probe(front: &[u8], far: &[u8], geometry: DeviceGeometry) -> Vec<FoundSignature> {
    let mut found: Vec<FoundSignature> = Vec::new();
    let mut add = |name: &str, description: &str| {
        if !found.iter().any(|signature| signature.name == name) {
            found.push(FoundSignature::new(name, description));
        }
    };
    for known in KNOWN {
        let area = match known.place {
            Place::Front(at) => front.get(at..),
            Place::End(back) => far.len().checked_sub(back).map(|at| &far[at..]),
        };
        if area.is_some_and(|area| area.starts_with(known.magic)) {
            add(known.name, &labelled(known.name, known.description, front));
        }
    }
    if has_old_md(far, geometry.len_bytes()) {
        add("md", "a member of a Linux RAID array");
    }
    if has_zfs(front) || far.len().checked_sub(2 * ZFS_LABEL_LEN_BYTES).is_some_and(|at| has_zfs(&far[at..])) {
        add("zfs", "a ZFS pool");
    }
    for copy in kiseki_copies(front, far, geometry) {
        match found.iter_mut().find(|signature| signature.name == copy.name) {
            // Used, as soon as one copy says so.
            Some(known) => known.unused_of = known.unused_of.filter(|_| copy.unused_of.is_some()),
            None => found.push(copy),
        }
    }
    // The first sector of a GPT is part of it, and that of some file systems part of them.
    let is_explained = found.iter().any(|signature| {
        WITH_BOOT_SECTOR.contains(&signature.name.as_str()) || signature.name == "gpt" && is_protective(front)
    });
    if has_mbr(front) && !is_explained {
        found.push(FoundSignature::new("mbr", "an MBR partition table or boot sector"));
    }
    found.sort_unstable();
    found
}

/// MD's formats 0.90 and 1.0 lie near the end, on a boundary that depends on the length.
fn has_old_md(far: &[u8], len_bytes: u64) -> bool {
    let old = (len_bytes & !0xffff).checked_sub(0x1_0000);
    let newer = (len_bytes / 512).checked_sub(16).map(|sector| (sector & !7) * 512);
    [old, newer].into_iter().flatten().any(|at| {
        let back = len_bytes.checked_sub(at).and_then(|back| usize::try_from(back).ok());
        let start = back.and_then(|back| far.len().checked_sub(back));
        start.is_some_and(|start| far[start..].starts_with(&MD_MAGIC))
    })
}

fn has_zfs(label: &[u8]) -> bool {
    let Some(ring) = label.get(ZFS_RING) else { return false };
    ring.chunks_exact(1024).any(|slot| {
        let magic: [u8; 8] = slot[..8].try_into().expect("eight bytes");
        u64::from_le_bytes(magic) == ZFS_MAGIC || u64::from_be_bytes(magic) == ZFS_MAGIC
    })
}

/// A boot signature and, so that two bytes of chance don't count, something in front of it.
fn has_mbr(front: &[u8]) -> bool {
    front.get(..512).is_some_and(|sector| sector[510..] == [0x55, 0xaa] && sector[..510].iter().any(|byte| *byte != 0))
}

/// Whether the table's first partition is the one that keeps tools which know no GPT away.
fn is_protective(front: &[u8]) -> bool {
    front.get(446 + 4) == Some(&0xee)
}

/// The description with the label that people gave, where one is found easily.
fn labelled(name: &str, description: &str, front: &[u8]) -> String {
    let field = |at: usize, len: usize| {
        let bytes = front.get(at..at + len)?.split(|byte| *byte == 0).next()?;
        let text = std::str::from_utf8(bytes).ok()?.trim();
        (!text.is_empty() && !text.contains(char::is_control)).then_some(text)
    };
    let (label, description) = match name {
        "ext" => {
            let features = |at: usize| front.get(at).copied().unwrap_or(0);
            let (has_journal, has_extents) = (features(1024 + 92) & 4 > 0, features(1024 + 96) & 0x40 > 0);
            let version = if has_extents {
                4
            } else if has_journal {
                3
            } else {
                2
            };
            (field(1024 + 120, 16), format!("an ext{version} file system"))
        }
        "xfs" => (field(108, 12), description.to_owned()),
        "btrfs" => (field(65536 + 299, 256), description.to_owned()),
        _ => (None, description.to_owned()),
    };
    label.map_or(description.clone(), |label| format!("{description} labelled {label:?}"))
}

/// Our own superblocks, whole or damaged.
fn kiseki_copies(front: &[u8], far: &[u8], geometry: DeviceGeometry) -> Vec<FoundSignature> {
    let offsets = DeviceLayout::superblock_offsets(geometry);
    let copies = offsets.into_iter().enumerate().filter_map(|(copy, offset)| {
        let bytes = match copy < 2 {
            true => usize::try_from(offset).ok().and_then(|at| front.get(at..)),
            false => {
                let back = usize::try_from(geometry.len_bytes() - offset).ok();
                back.and_then(|back| far.len().checked_sub(back)).map(|at| &far[at..])
            }
        };
        Some(Superblock::decode(bytes?.get(..SUPERBLOCK_LEN_BYTES)?, copy))
    });
    let copies: Vec<Result<Superblock, SuperblockDamage>> = copies.collect();
    // A format that was interrupted, at whatever step, left nothing of this that could be lost.
    let marked = copies.iter().find_map(|copy| match copy {
        Err(SuperblockDamage::FormatInterrupted(marker)) => Some(*marker),
        _ => None,
    });
    // And a damaged copy beside a whole one is no second finding.
    let is_known = marked.is_some() || copies.iter().any(Result::is_ok);
    let mut found = Vec::new();
    for copy in copies {
        match copy {
            Ok(superblock) if marked.is_some_and(|marker| superblock.is_half_written(&marker)) => {}
            Ok(superblock) => found.push(FoundSignature {
                unused_of: superblock.is_unused().then_some(superblock.cluster),
                ..FoundSignature::new(
                    &format!("kiseki:{}", superblock.cluster),
                    &format!("device {} of Kiseki cluster {}", superblock.device, superblock.cluster),
                )
            }),
            Err(SuperblockDamage::NoMagic | SuperblockDamage::FormatInterrupted(_)) => {}
            Err(SuperblockDamage::Codec(_) | SuperblockDamage::Read(_)) if is_known => {}
            Err(_) => found.push(FoundSignature::new("kiseki-damaged", "a damaged or newer superblock of Kiseki")),
        }
    }
    found
}

/// Names what a device carries, in its partitions too. Errors: `Io`; what can't be read can't be cleared.
///
/// - `tail`: what lies behind its last whole block, where there is such.
pub async fn probe_device(device: &dyn Device, tail: Option<&DeviceTail>) -> Result<Vec<FoundSignature>, DeviceError> {
    let found = probe_source(&DeviceBytes { device, tail }).await;
    found.map_err(|source| DeviceError::io(device.name(), "reading signatures", source))
}

/// [`probe_device`] without an executor.
pub fn probe_file(file: &dyn MetaFile) -> io::Result<Vec<FoundSignature>> {
    // Such a source is never waited for.
    futures::executor::block_on(probe_source(&FileBytes(file)))
}

async fn probe_source(source: &impl ByteSource) -> io::Result<Vec<FoundSignature>> {
    let len = source.len_bytes()?;
    let mut found = probe_window(source, 0, len).await?;
    for partition in read_partitions(source).await? {
        for inner in probe_window(source, partition.start_bytes, partition.len_bytes).await? {
            let name = format!("p{}:{}", partition.index, inner.name);
            if !found.iter().any(|known| known.name == name) {
                let description = format!("{} in partition {}", inner.description, partition.index);
                found.push(FoundSignature {
                    partition: Some(partition.index),
                    ..FoundSignature::new(&name, &description)
                });
            }
        }
    }
    Ok(found)
}

/// What a run of bytes carries, taken as a device of its own.
async fn probe_window(source: &impl ByteSource, start: u64, len: u64) -> io::Result<Vec<FoundSignature>> {
    // An image may end inside a sector; whoever made it a device counted whole ones.
    let len = len - len % DEVICE_BLOCK_BYTES_MIN as u64;
    let each = len.min(PROBE_LEN_BYTES);
    let front = source.read(start, each as usize).await?;
    let far = source.read(start + (len - each), each as usize).await?;
    let block_count = BlockCount(len / DEVICE_BLOCK_BYTES_MIN as u64);
    let geometry = DeviceGeometry { block_len_bytes: DEVICE_BLOCK_BYTES_MIN as u32, block_count };
    Ok(probe(&front, &far, geometry))
}

/// First block and length in bytes of the two ends of a device; they overlap on a small one.
pub(crate) fn ends(geometry: DeviceGeometry) -> ((BlockIndex, usize), (BlockIndex, usize)) {
    let len = geometry.len_bytes() - geometry.len_bytes() % DEVICE_BLOCK_BYTES_MAX as u64;
    let each = len.min(PROBE_LEN_BYTES);
    // The far end reaches to the last block, also past the last multiple of 4096.
    let far_len = (geometry.len_bytes() - (len - each)) as usize;
    let far_start = BlockIndex((len - each) / u64::from(geometry.block_len_bytes));
    ((BlockIndex(0), each as usize), (far_start, far_len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition_table::tests::{gpt, mbr};
    use crate::superblock::SUPERBLOCK_MAGIC;

    const LEN: usize = 64 << 20;

    fn geometry() -> DeviceGeometry {
        DeviceGeometry { block_len_bytes: 4096, block_count: BlockCount(LEN as u64 / 4096) }
    }

    fn found(at: usize, bytes: &[u8]) -> Vec<String> {
        let mut image = vec![0; LEN];
        image[at..at + bytes.len()].copy_from_slice(bytes);
        let probe_len = PROBE_LEN_BYTES as usize;
        probe(&image[..probe_len], &image[LEN - probe_len..], geometry()).into_iter().map(|found| found.name).collect()
    }

    #[test]
    fn i_d7_what_others_write_is_recognized_at_its_place() {
        for (name, at, bytes) in [
            ("ext", 1080, &[0x53, 0xef][..]),
            ("xfs", 0, b"XFSB"),
            ("btrfs", 65600, b"_BHRfS_M"),
            ("gpt", 512, b"EFI PART"),
            ("gpt", LEN - 512, b"EFI PART"),
            ("lvm", 512, b"LABELONE"),
            ("luks", 0, b"LUKS\xba\xbe\x00\x02"),
            ("swap", 4086, b"SWAPSPACE2"),
            ("bcachefs", 4120, &known::BCACHEFS_MAGIC),
            ("bluestore", 0, b"bluestore block device\n"),
            ("md", 4096, &MD_MAGIC),
            ("md", LEN - 65536, &MD_MAGIC),
            ("md", LEN - 8192, &MD_MAGIC),
            ("zfs", (128 << 10) + 5 * 1024, &ZFS_MAGIC.to_le_bytes()),
            ("zfs", LEN - (512 << 10) + (128 << 10), &ZFS_MAGIC.to_be_bytes()),
        ] {
            assert_eq!(found(at, bytes), [name], "{name} at {at}");
        }
        let mut boot = [0; 512];
        boot[446] = 0x80;
        boot[510..].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(found(0, &boot), ["mbr"]);
        assert!(found(0, &[]).is_empty());
    }

    fn names(image: &[u8]) -> Vec<String> {
        let found = futures::executor::block_on(probe_source(&image.to_vec())).unwrap();
        found.into_iter().map(|found| found.name).collect()
    }

    #[test]
    fn i_d7_a_partition_table_hides_nothing() {
        for sector in [512, 4096] {
            let mut image = vec![0; LEN];
            gpt(&mut image, sector, &[(2 << 20, 8 << 20), (16 << 20, 4 << 20)]);
            assert_eq!(names(&image), ["gpt"], "the table's own first sector is no second finding");
            image[(2 << 20) + 1080..(2 << 20) + 1082].copy_from_slice(&[0x53, 0xef]);
            image[(2 << 20) + 1024 + 120..][..4].copy_from_slice(b"data");
            image[(16 << 20) + 512..(16 << 20) + 520].copy_from_slice(b"LABELONE");
            assert_eq!(names(&image), ["gpt", "p1:ext", "p2:lvm"], "sectors of {sector}");
            // Without the first copy of the table the second tells.
            image[..1 << 20].fill(0);
            assert_eq!(names(&image), ["gpt", "p1:ext", "p2:lvm"], "the far table, sectors of {sector}");
        }
        let mut image = vec![0; LEN];
        mbr(&mut image, &[(0x83, 1 << 20, 4 << 20)], &[(8 << 20, 4 << 20), (16 << 20, 4 << 20)]);
        image[1 << 20..(1 << 20) + 4].copy_from_slice(b"XFSB");
        image[16 << 20..(16 << 20) + 6].copy_from_slice(b"LUKS\xba\xbe");
        assert_eq!(names(&image), ["mbr", "p1:xfs", "p6:luks"]);
    }

    #[test]
    fn i_d7_the_last_sectors_of_a_device_of_any_length_are_looked_at() {
        for extra in [0, 512, 1536, 3584, 700] {
            let mut image = vec![0; LEN + extra];
            let last = image.len() / 512 * 512 - 512;
            image[last..last + 8].copy_from_slice(b"EFI PART");
            assert_eq!(names(&image), ["gpt"], "I-D7: {extra} bytes behind the last block");
            image[last..].fill(0);
            assert!(names(&image).is_empty());
        }
    }

    #[test]
    fn labels_tell_people_what_they_would_lose() {
        let mut image = vec![0; LEN];
        image[1080..1082].copy_from_slice(&[0x53, 0xef]);
        image[1024 + 96] = 0x40;
        image[1024 + 120..1024 + 126].copy_from_slice(b"photos");
        let probe_len = PROBE_LEN_BYTES as usize;
        let found = probe(&image[..probe_len], &image[LEN - probe_len..], geometry());
        assert_eq!(found[0].description, "an ext4 file system labelled \"photos\"");
    }

    #[test]
    fn a_boot_sector_belongs_to_its_file_system() {
        let mut image = vec![0; LEN];
        image[3..11].copy_from_slice(b"NTFS    ");
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(names(&image), ["ntfs"]);
    }

    #[test]
    fn a_damaged_superblock_of_ours_is_named_too() {
        assert_eq!(found(0, &SUPERBLOCK_MAGIC), ["kiseki-damaged"]);
        assert_eq!(found(LEN - 4096, &SUPERBLOCK_MAGIC), ["kiseki-damaged"]);
    }

    #[test]
    fn small_and_empty_devices_do_not_panic() {
        for blocks in [0, 1, 2, 3, 100] {
            let geometry = DeviceGeometry { block_len_bytes: 4096, block_count: BlockCount(blocks) };
            let bytes = vec![0xff; blocks as usize * 4096];
            assert!(probe(&bytes, &bytes, geometry).is_empty(), "{blocks} blocks");
        }
    }
}
