//! Whose data a device carries: signatures of file systems, partition tables, volume managers, and of Kiseki itself.
//!
//! A device with a signature is formatted only when each of them is confirmed by name (I-D7). The list covers what
//! Linux machines carry; what it does not know is not protected, so operators name devices, never "all".

use crate::error::DeviceError;
use crate::layout::{DeviceLayout, SUPERBLOCK_LEN_BYTES};
use crate::superblock::{Superblock, SuperblockDamage};
use kiseki_types::device::{Device, DeviceGeometry};
use kiseki_types::limits::DEVICE_BLOCK_BYTES_MAX;
use kiseki_types::{BlockIndex, IoBuf};
use std::fmt;

/// Bytes that are looked at, and at format wiped, at each end: all signatures below lie within.
pub const PROBE_LEN_BYTES: u64 = 1 << 20;

/// Something that a device carries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FoundSignature {
    /// What the operator has to repeat to have it overwritten: a word, for Kiseki with the cluster's id.
    pub name: String,
    /// What it is, for people.
    pub description: String,
}

impl fmt::Display for FoundSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}

/// Bytes that give a format away.
struct Known {
    name: &'static str,
    description: &'static str,
    place: Place,
    magic: &'static [u8],
}

/// Where the bytes lie.
enum Place {
    /// From the start of the device.
    Front(usize),
    /// Back from its end.
    End(usize),
}

const fn front(name: &'static str, description: &'static str, at: usize, magic: &'static [u8]) -> Known {
    Known { name, description, place: Place::Front(at), magic }
}

const fn end(name: &'static str, description: &'static str, back: usize, magic: &'static [u8]) -> Known {
    Known { name, description, place: Place::End(back), magic }
}

/// Signatures with a fixed place, each from the format's public description.
const KNOWN: &[Known] = &[
    front("ext", "an ext2, ext3 or ext4 file system", 1024 + 56, &[0x53, 0xef]),
    front("xfs", "an XFS file system", 0, b"XFSB"),
    front("btrfs", "a Btrfs file system", 65536 + 64, b"_BHRfS_M"),
    front("f2fs", "an F2FS file system", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    front("bcache", "a bcache or bcachefs device", 4096 + 24, &BCACHE_MAGIC),
    front("ntfs", "an NTFS file system", 3, b"NTFS    "),
    front("exfat", "an exFAT file system", 3, b"EXFAT   "),
    front("fat", "a FAT file system", 54, b"FAT1"),
    front("fat", "a FAT file system", 82, b"FAT32"),
    front("iso9660", "an ISO 9660 image", 32769, b"CD001"),
    front("squashfs", "a SquashFS image", 0, b"hsqs"),
    front("luks", "a LUKS volume", 0, b"LUKS\xba\xbe"),
    front("luks", "a LUKS volume (second header)", 16384, b"SKUL\xba\xbe"),
    front("swap", "swap space", 4096 - 10, b"SWAPSPACE2"),
    front("bluestore", "a Ceph BlueStore OSD", 0, b"bluestore block device"),
    front("lvm", "an LVM physical volume", 0, b"LABELONE"),
    front("lvm", "an LVM physical volume", 512, b"LABELONE"),
    front("lvm", "an LVM physical volume", 1024, b"LABELONE"),
    front("lvm", "an LVM physical volume", 1536, b"LABELONE"),
    front("md", "a member of a Linux RAID array", 0, &MD_MAGIC),
    front("md", "a member of a Linux RAID array", 4096, &MD_MAGIC),
    front("gpt", "a GPT partition table", 512, b"EFI PART"),
    front("gpt", "a GPT partition table", 4096, b"EFI PART"),
    end("gpt", "a GPT partition table (second copy)", 512, b"EFI PART"),
    end("gpt", "a GPT partition table (second copy)", 4096, b"EFI PART"),
];

const MD_MAGIC: [u8; 4] = 0xa92b_4efcu32.to_le_bytes();
const BCACHE_MAGIC: [u8; 16] =
    [0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81];
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
            found.push(FoundSignature { name: name.to_owned(), description: description.to_owned() });
        }
    };
    for known in KNOWN {
        let area = match known.place {
            Place::Front(at) => front.get(at..),
            Place::End(back) => far.len().checked_sub(back).map(|at| &far[at..]),
        };
        if area.is_some_and(|area| area.starts_with(known.magic)) {
            add(known.name, known.description);
        }
    }
    if has_old_md(far, geometry.len_bytes()) {
        add("md", "a member of a Linux RAID array");
    }
    if has_zfs(front) || far.len().checked_sub(2 * ZFS_LABEL_LEN_BYTES).is_some_and(|at| has_zfs(&far[at..])) {
        add("zfs", "a ZFS pool");
    }
    if has_mbr(front) {
        add("mbr", "an MBR partition table or boot sector");
    }
    for (name, description) in kiseki_copies(front, far, geometry) {
        add(&name, &description);
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

/// Names and descriptions of our own superblocks, whole or damaged.
fn kiseki_copies(front: &[u8], far: &[u8], geometry: DeviceGeometry) -> Vec<(String, String)> {
    let offsets = DeviceLayout::superblock_offsets(geometry);
    let mut found = Vec::new();
    for (copy, offset) in offsets.into_iter().enumerate() {
        let bytes = match copy < 2 {
            true => usize::try_from(offset).ok().and_then(|at| front.get(at..)),
            false => {
                let back = usize::try_from(geometry.len_bytes() - offset).ok();
                back.and_then(|back| far.len().checked_sub(back)).map(|at| &far[at..])
            }
        };
        let Some(bytes) = bytes.and_then(|bytes| bytes.get(..SUPERBLOCK_LEN_BYTES)) else { continue };
        match Superblock::decode(bytes, copy) {
            Ok(superblock) => found.push((
                format!("kiseki:{}", superblock.cluster),
                format!("device {} of Kiseki cluster {}", superblock.device, superblock.cluster),
            )),
            Err(SuperblockDamage::NoMagic) => {}
            Err(_) => found.push(("kiseki-damaged".to_owned(), "a damaged or newer superblock of Kiseki".to_owned())),
        }
    }
    found
}

/// Reads both ends of a device and names what it carries. Errors: `Io`; what can't be read can't be cleared.
pub async fn probe_device(device: &dyn Device) -> Result<Vec<FoundSignature>, DeviceError> {
    let geometry = device.geometry();
    let (front, far) = ends(geometry);
    let read = async |(start, len): (BlockIndex, usize)| {
        let bytes = device.read(start, IoBuf::zeroed(len)).await;
        bytes.map_err(|source| DeviceError::io(device.name(), "reading signatures", source))
    };
    let (front, far) = (read(front).await?, read(far).await?);
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
    use crate::superblock::SUPERBLOCK_MAGIC;
    use kiseki_types::BlockCount;

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
