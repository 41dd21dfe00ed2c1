//! Bytes that give a format away, each from the format's public description.

/// Bytes that give a format away.
pub(super) struct Known {
    pub(super) name: &'static str,
    pub(super) description: &'static str,
    pub(super) place: Place,
    pub(super) magic: &'static [u8],
}

/// Where the bytes lie.
pub(super) enum Place {
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

/// First bytes of the metadata of Linux RAID.
pub(super) const MD_MAGIC: [u8; 4] = 0xa92b_4efcu32.to_le_bytes();
const BCACHE_MAGIC: [u8; 16] =
    [0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81];
pub(super) const BCACHEFS_MAGIC: [u8; 16] =
    [0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef];
const STRATIS_MAGIC: &[u8] = b"!Stra0tis\x86\xff\x02^\x41rh";

/// Signatures with a fixed place.
pub(super) const KNOWN: &[Known] = &[
    front("ext", "an ext2, ext3 or ext4 file system", 1024 + 56, &[0x53, 0xef]),
    front("xfs", "an XFS file system", 0, b"XFSB"),
    front("btrfs", "a Btrfs file system", 65536 + 64, b"_BHRfS_M"),
    front("f2fs", "an F2FS file system", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    front("erofs", "an EROFS file system", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    front("jfs", "a JFS file system", 32768, b"JFS1"),
    front("reiserfs", "a ReiserFS file system", 65536 + 52, b"ReIsEr"),
    front("nilfs2", "a NILFS2 file system", 1024 + 6, &[0x34, 0x34]),
    front("gfs2", "a GFS2 file system", 65536, &[0x01, 0x16, 0x19, 0x70]),
    front("ocfs2", "an OCFS2 file system", 1024, b"OCFSV2"),
    front("ocfs2", "an OCFS2 file system", 2048, b"OCFSV2"),
    front("ocfs2", "an OCFS2 file system", 4096, b"OCFSV2"),
    front("ocfs2", "an OCFS2 file system", 8192, b"OCFSV2"),
    front("apfs", "an APFS container", 32, b"NXSB"),
    front("hfsplus", "an HFS+ file system", 1024, b"H+"),
    front("bcache", "a bcache or bcachefs device", 4096 + 24, &BCACHE_MAGIC),
    front("bcachefs", "a bcachefs file system", 4096 + 24, &BCACHEFS_MAGIC),
    front("ntfs", "an NTFS file system", 3, b"NTFS    "),
    front("bitlocker", "a BitLocker volume", 3, b"-FVE-FS-"),
    front("exfat", "an exFAT file system", 3, b"EXFAT   "),
    front("fat", "a FAT file system", 54, b"FAT1"),
    front("fat", "a FAT file system", 82, b"FAT32"),
    front("iso9660", "an ISO 9660 image", 32769, b"CD001"),
    front("udf", "a UDF file system", 32769, b"BEA01"),
    front("squashfs", "a SquashFS image", 0, b"hsqs"),
    front("luks", "a LUKS volume", 0, b"LUKS\xba\xbe"),
    front("luks", "a LUKS volume (second header)", 16384, b"SKUL\xba\xbe"),
    front("swap", "swap space", 4096 - 10, b"SWAPSPACE2"),
    front("swap", "swap space with a suspended system", 4096 - 10, b"S1SUSPEND"),
    front("bluestore", "a Ceph BlueStore OSD", 0, b"bluestore block device"),
    front("asm", "an Oracle ASM disk", 32, b"ORCLDISK"),
    front("stratis", "a Stratis block device", 512 + 4, STRATIS_MAGIC),
    front("stratis", "a Stratis block device", 9 * 512 + 4, STRATIS_MAGIC),
    front("vdo", "a VDO volume", 0, b"dmvdo001"),
    front("lvm", "an LVM physical volume", 0, b"LABELONE"),
    front("lvm", "an LVM physical volume", 512, b"LABELONE"),
    front("lvm", "an LVM physical volume", 1024, b"LABELONE"),
    front("lvm", "an LVM physical volume", 1536, b"LABELONE"),
    front("md", "a member of a Linux RAID array", 0, &MD_MAGIC),
    front("md", "a member of a Linux RAID array", 4096, &MD_MAGIC),
    end("ddf", "a member of a DDF RAID array", 512, &[0xde, 0x11, 0xde, 0x11]),
    end("isw", "a member of an Intel RAID array", 1024, b"Intel Raid ISM Cfg Sig. "),
    front("gpt", "a GPT partition table", 512, b"EFI PART"),
    front("gpt", "a GPT partition table", 4096, b"EFI PART"),
    end("gpt", "a GPT partition table (second copy)", 512, b"EFI PART"),
    end("gpt", "a GPT partition table (second copy)", 4096, b"EFI PART"),
];

/// Systems whose first sector ends like a partition table's, and is none.
pub(super) const WITH_BOOT_SECTOR: &[&str] = &["fat", "ntfs", "exfat", "bitlocker"];
