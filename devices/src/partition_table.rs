//! Partition tables: which runs of a device somebody made partitions of.
//!
//! Read to protect, not to use: a table that is damaged, stale or a copy counts as much as one that verifies, and a
//! place that two tables tell of differently is looked at twice. Sectors of 512 and of 4096 bytes are both tried, since an
//! image does not tell which it was made with. Sources: UEFI 2.10, chapter 5; the MBR as every BIOS reads it.

#[cfg(test)]
pub(crate) mod tests;

use crate::probe::ByteSource;
use std::io;

/// Sectors that tables are counted in.
const SECTORS: [u64; 2] = [512, 4096];

/// Entries of a GPT that are looked at: tables have 128, few more.
const GPT_ENTRIES_MAX: u32 = 1024;
/// Longest entry of a GPT that is believed.
const GPT_ENTRY_LEN_BYTES_MAX: u32 = 1024;
/// Logical partitions of an MBR that are looked at: a chain that is longer runs in a circle.
const LOGICAL_PARTITIONS_MAX: u32 = 128;
/// Partitions that are looked at in all: each costs reads at both of its ends.
const PARTITIONS_MAX: usize = 2048;

const BOOT_SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// Type of the one partition that an MBR in front of a GPT has.
const TYPE_PROTECTIVE: u8 = 0xee;
/// Types of the partition that holds logical ones.
const TYPES_EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// A partition that a table tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TablePartition {
    /// Its number, as Linux counts.
    pub index: u32,
    /// First byte.
    pub start_bytes: u64,
    /// Bytes, as far as they lie on the device.
    pub len_bytes: u64,
}

/// All partitions that the tables of a device tell of, sorted.
pub(crate) async fn read_partitions(source: &impl ByteSource) -> io::Result<Vec<TablePartition>> {
    let mut found = Vec::new();
    let len = source.len_bytes()?;
    for sector in SECTORS {
        for header in [sector, (len / sector).saturating_sub(1) * sector] {
            read_gpt(source, sector, header, &mut found).await?;
        }
        read_mbr(source, sector, &mut found).await?;
    }
    found.sort_unstable();
    found.dedup();
    found.truncate(PARTITIONS_MAX);
    Ok(found)
}

/// `part` as far as it lies on the device; empty ones, and those that would be the whole device, are none.
fn add(found: &mut Vec<TablePartition>, len: u64, part: TablePartition) {
    let len_bytes = part.len_bytes.min(len.saturating_sub(part.start_bytes));
    if part.start_bytes > 0 && len_bytes > 0 {
        found.push(TablePartition { len_bytes, ..part });
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The partitions of the GPT whose header lies at byte `header`, if one does.
async fn read_gpt(
    source: &impl ByteSource,
    sector: u64,
    header: u64,
    found: &mut Vec<TablePartition>,
) -> io::Result<()> {
    let len = source.len_bytes()?;
    if header.checked_add(92).is_none_or(|end| end > len) {
        return Ok(());
    }
    let head = source.read(header, 92).await?;
    if !head.starts_with(b"EFI PART") {
        return Ok(());
    }
    let count = u32_at(&head, 80).min(GPT_ENTRIES_MAX);
    let entry_len = u32_at(&head, 84);
    let Some(start) = u64_at(&head, 72).checked_mul(sector).filter(|start| *start < len) else { return Ok(()) };
    if !(128..=GPT_ENTRY_LEN_BYTES_MAX).contains(&entry_len) {
        return Ok(());
    }
    let table_len = (u64::from(count) * u64::from(entry_len)).min(len - start);
    let table = source.read(start, table_len as usize).await?;
    for (index, entry) in (1..).zip(table.chunks_exact(entry_len as usize)) {
        if entry[..16] == [0; 16] {
            continue;
        }
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let blocks = last.checked_sub(first).and_then(|blocks| blocks.checked_add(1));
        let run = blocks.and_then(|blocks| Some((first.checked_mul(sector)?, blocks.checked_mul(sector)?)));
        if let Some((start_bytes, len_bytes)) = run {
            add(found, len, TablePartition { index, start_bytes, len_bytes });
        }
    }
    Ok(())
}

/// One entry of an MBR: type, first sector, sectors.
fn mbr_entry(sector: &[u8], slot: usize) -> (u8, u64, u64) {
    let at = 446 + 16 * slot;
    (sector[at + 4], u64::from(u32_at(sector, at + 8)), u64::from(u32_at(sector, at + 12)))
}

async fn read_mbr(source: &impl ByteSource, sector: u64, found: &mut Vec<TablePartition>) -> io::Result<()> {
    let len = source.len_bytes()?;
    if len < 512 {
        return Ok(());
    }
    let head = source.read(0, 512).await?;
    if head[510..] != BOOT_SIGNATURE {
        return Ok(());
    }
    for (index, slot) in (1..).zip(0..4) {
        let (kind, start, count) = mbr_entry(&head, slot);
        if kind == 0 || kind == TYPE_PROTECTIVE {
            continue;
        }
        if TYPES_EXTENDED.contains(&kind) {
            read_logical(source, sector, start, found).await?;
            continue;
        }
        add(found, len, TablePartition { index, start_bytes: start * sector, len_bytes: count * sector });
    }
    Ok(())
}

/// The chain of logical partitions in the extended one that starts at sector `extended`.
async fn read_logical(
    source: &impl ByteSource,
    sector: u64,
    extended: u64,
    found: &mut Vec<TablePartition>,
) -> io::Result<()> {
    let len = source.len_bytes()?;
    let mut at = extended;
    for index in 5..5 + LOGICAL_PARTITIONS_MAX {
        if at == 0 || (at * sector).checked_add(512).is_none_or(|end| end > len) {
            return Ok(());
        }
        let link = source.read(at * sector, 512).await?;
        if link[510..] != BOOT_SIGNATURE {
            return Ok(());
        }
        let (kind, start, count) = mbr_entry(&link, 0);
        if kind != 0 {
            add(found, len, TablePartition { index, start_bytes: (at + start) * sector, len_bytes: count * sector });
        }
        match mbr_entry(&link, 1) {
            (kind, next, _) if kind != 0 && next > 0 => at = extended + next,
            _ => return Ok(()),
        }
    }
    Ok(())
}
