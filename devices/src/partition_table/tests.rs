//! Tables made by hand, right and wrong ones.

use super::*;
use proptest::prelude::*;

/// Writes a GPT with both copies; partitions as (first byte, bytes).
pub(crate) fn gpt(image: &mut [u8], sector: usize, partitions: &[(usize, usize)]) {
    image[446 + 4] = TYPE_PROTECTIVE;
    image[446 + 8..446 + 12].copy_from_slice(&1u32.to_le_bytes());
    image[446 + 12..446 + 16].copy_from_slice(&u32::MAX.to_le_bytes());
    image[510..512].copy_from_slice(&BOOT_SIGNATURE);
    let last = image.len() / sector - 1;
    let table_sectors = 16384 / sector;
    for (header, table) in [(1, 2), (last, last - table_sectors)] {
        let at = header * sector;
        image[at..at + 8].copy_from_slice(b"EFI PART");
        image[at + 72..at + 80].copy_from_slice(&(table as u64).to_le_bytes());
        image[at + 80..at + 84].copy_from_slice(&128u32.to_le_bytes());
        image[at + 84..at + 88].copy_from_slice(&128u32.to_le_bytes());
        for (slot, (start, len)) in partitions.iter().enumerate() {
            let entry = table * sector + slot * 128;
            image[entry] = 0xaf;
            image[entry + 32..entry + 40].copy_from_slice(&((start / sector) as u64).to_le_bytes());
            image[entry + 40..entry + 48].copy_from_slice(&(((start + len) / sector - 1) as u64).to_le_bytes());
        }
    }
}

fn mbr_put(sector: &mut [u8], slot: usize, kind: u8, start: usize, count: usize) {
    let at = 446 + 16 * slot;
    sector[at + 4] = kind;
    sector[at + 8..at + 12].copy_from_slice(&(start as u32).to_le_bytes());
    sector[at + 12..at + 16].copy_from_slice(&(count as u32).to_le_bytes());
    sector[510..512].copy_from_slice(&BOOT_SIGNATURE);
}

/// Writes an MBR with primary partitions (type, first byte, bytes) and, behind them, logical ones (first byte, bytes),
/// each of which needs the sector in front of it.
pub(crate) fn mbr(image: &mut [u8], primary: &[(u8, usize, usize)], logical: &[(usize, usize)]) {
    for (slot, (kind, start, len)) in primary.iter().enumerate() {
        mbr_put(image, slot, *kind, start / 512, len / 512);
    }
    let Some((first, _)) = logical.first() else { return };
    let extended = first - 512;
    let len = image.len() - extended;
    mbr_put(image, primary.len(), 0x05, extended / 512, len / 512);
    for (index, (start, len)) in logical.iter().enumerate() {
        let link = start - 512;
        mbr_put(&mut image[link..], 0, 0x83, 1, len / 512);
        if let Some((next, _)) = logical.get(index + 1) {
            mbr_put(&mut image[link..], 1, 0x05, (next - 512 - extended) / 512, 1);
        }
    }
}

fn read(image: &[u8]) -> Vec<(u32, u64, u64)> {
    let found = futures::executor::block_on(read_partitions(&image.to_vec())).unwrap();
    found.into_iter().map(|part| (part.index, part.start_bytes, part.len_bytes)).collect()
}

#[test]
fn tables_of_both_kinds_and_both_sectors_are_read() {
    for sector in [512, 4096] {
        let mut image = vec![0; 8 << 20];
        gpt(&mut image, sector, &[(1 << 20, 1 << 20), (4 << 20, 2 << 20)]);
        assert_eq!(read(&image), [(1, 1 << 20, 1 << 20), (2, 4 << 20, 2 << 20)]);
    }
    let mut image = vec![0; 8 << 20];
    mbr(&mut image, &[(0x83, 64 << 10, 512 << 10)], &[(1 << 20, 1 << 20), (4 << 20, 1 << 20)]);
    let found = read(&image);
    for expected in [(1, 64 << 10, 512 << 10), (5, 1 << 20, 1 << 20), (6, 4 << 20, 1 << 20)] {
        assert!(found.contains(&expected), "{expected:?} in {found:?}");
    }
}

#[test]
fn a_partition_that_reaches_past_the_end_is_cut_and_one_beyond_it_is_none() {
    let mut image = vec![0; 8 << 20];
    gpt(&mut image, 512, &[(4 << 20, 100 << 20), (64 << 20, 1 << 20)]);
    assert_eq!(read(&image), [(1, 4 << 20, 4 << 20)]);
}

#[test]
fn a_chain_in_a_circle_ends() {
    let mut image = vec![0; 4 << 20];
    mbr(&mut image, &[], &[(1 << 20, 4096), (2 << 20, 4096)]);
    let link = (2 << 20) - 512;
    // The second points at the first: sectors are counted from the extended partition's start, which is the first.
    mbr_put(&mut image[link..], 1, 0x05, (1 << 20) / 512, 1);
    assert!(read(&image).len() <= 2 * LOGICAL_PARTITIONS_MAX as usize);
}

proptest! {
    #[test]
    fn noise_never_panics_and_stays_on_the_device(noise in prop::collection::vec(any::<u8>(), 2048), at in 0usize..6) {
        let mut image = vec![0; 64 << 10];
        let start = [0, 512, 4096, (64 << 10) - 2048, 440, 1024][at];
        image[start..start + 2048].copy_from_slice(&noise);
        for header in [512, 4096] {
            image[header..header + 8].copy_from_slice(b"EFI PART");
        }
        image[510..512].copy_from_slice(&BOOT_SIGNATURE);
        for (_, start, len) in read(&image) {
            prop_assert!(start > 0 && len > 0 && start + len <= 64 << 10);
        }
    }
}
