//! Tests of the superblock: crash at every write, damage of every copy, random bytes.

use super::*;
use crate::metadata_set::{EpochWitness, WitnessedEpoch};
use kiseki_types::BlockCount;
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

const LEN: u64 = 16 << 20;

fn sample(generation: u64) -> Superblock {
    let geometry = DeviceGeometry { block_len_bytes: 4096, block_count: BlockCount(LEN / 4096) };
    Superblock {
        cluster: ClusterId([1; 16]),
        device: DeviceId([2; 16]),
        pool: PoolId(3),
        class: DeviceClass::File,
        layout: DeviceLayout::compute(geometry, 4).unwrap(),
        generation,
        incarnation: 7,
        metadata: MetadataEpoch { epoch: 5, members: vec![MemberId([8; 16]), MemberId([9; 16])] },
    }
}

/// A device in memory that stops taking writes after a number of them, tearing the last one.
#[derive(Debug)]
struct Memory {
    bytes: Mutex<Vec<u8>>,
    writes_left: Mutex<usize>,
}

impl Memory {
    fn new(len: u64) -> Memory {
        Memory { bytes: Mutex::new(vec![0; usize::try_from(len).unwrap()]), writes_left: Mutex::new(usize::MAX) }
    }
}

impl MetaFile for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }
    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.bytes.lock().unwrap().resize(usize::try_from(len_bytes).unwrap(), 0);
        Ok(())
    }
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let found = bytes.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut left = self.writes_left.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let torn = bytes.len() / 2;
        let taken = match *left {
            0 => torn,
            _ => bytes.len(),
        };
        self.bytes.lock().unwrap()[start..start + taken].copy_from_slice(&bytes[..taken]);
        match left.checked_sub(1) {
            Some(now) => {
                *left = now;
                Ok(())
            }
            None => Err(io::Error::other("power cut")),
        }
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn read(memory: &Memory) -> SuperblockState {
    read_superblock_blocking(memory, 4096).unwrap()
}

#[test]
fn a_crash_at_any_write_leaves_the_old_or_the_new_superblock() {
    for generation in [1, 2] {
        for writes in 0..2 {
            let memory = Memory::new(LEN);
            for earlier in 0..=generation {
                write_superblock_blocking(&memory, &sample(earlier)).unwrap();
            }
            let mut next = sample(generation + 1);
            next.incarnation = 99; // so that old and new bytes differ in both halves of a torn copy
            *memory.writes_left.lock().unwrap() = writes;
            write_superblock_blocking(&memory, &next).unwrap_err();
            let found = read(&memory).present("memory").unwrap();
            assert!(found == sample(generation) || found == next, "crash after {writes} writes: {found:?}");
        }
    }
}

#[test]
fn any_three_copies_may_be_damaged_and_a_fourth_makes_it_unreadable_never_new() {
    let memory = Memory::new(LEN);
    write_superblock_blocking(&memory, &sample(4)).unwrap();
    write_superblock_blocking(&memory, &sample(5)).unwrap();
    let offsets = DeviceLayout::superblock_offsets(sample(4).layout.geometry());
    for spared in 0..SUPERBLOCK_COPIES {
        let saved = memory.bytes.lock().unwrap().clone();
        for (copy, offset) in offsets.iter().enumerate().filter(|(copy, _)| *copy != spared) {
            memory.bytes.lock().unwrap()[*offset as usize + 100 + copy] ^= 1;
        }
        let SuperblockState::Present { superblock, damaged_copies } = read(&memory) else {
            panic!("copy {spared} is whole");
        };
        assert_eq!((superblock.generation, damaged_copies), (4 + spared as u64 % 2, 3), "copy {spared}");
        memory.bytes.lock().unwrap()[offsets[spared] as usize + 200] ^= 1;
        assert!(matches!(read(&memory), SuperblockState::Unreadable { .. }), "copy {spared}");
        *memory.bytes.lock().unwrap() = saved;
    }
}

#[test]
fn blank_is_never_written() {
    assert_eq!(read(&Memory::new(LEN)), SuperblockState::NeverWritten);
    let error = read(&Memory::new(LEN)).present("d0.img").unwrap_err();
    assert!(error.to_string().contains("d0.img"), "{error}");
}

#[test]
fn a_shrunk_device_is_named_and_a_grown_one_still_finds_all_copies() {
    let memory = Memory::new(LEN);
    write_superblock_blocking(&memory, &sample(1)).unwrap();
    write_superblock_blocking(&memory, &sample(2)).unwrap();
    memory.set_len(LEN * 2).unwrap();
    let SuperblockState::Present { superblock, damaged_copies } = read(&memory) else { panic!("grown") };
    assert_eq!(damaged_copies, 0);
    memory.set_len(LEN / 2).unwrap();
    let SuperblockState::Present { damaged_copies, .. } = read(&memory) else { panic!("shrunk") };
    assert_eq!(damaged_copies, 2);
    let now = DeviceGeometry { block_len_bytes: 4096, block_count: BlockCount(LEN / 2 / 4096) };
    assert!(matches!(superblock.check_geometry("d", now), Err(DeviceError::Shrunk { .. })));
    let other = DeviceGeometry { block_len_bytes: 512, block_count: BlockCount(LEN / 512) };
    assert!(matches!(superblock.check_geometry("d", other), Err(DeviceError::BlockLenChanged { .. })));
    superblock.check_geometry("d", superblock.layout.geometry()).unwrap();
}

#[test]
fn a_later_format_is_refused_even_if_older_copies_are_whole() {
    let memory = Memory::new(LEN);
    write_superblock_blocking(&memory, &sample(4)).unwrap();
    let mut bytes = sample(5).encode(1);
    bytes[8..12].copy_from_slice(&(SUPERBLOCK_VERSION + 1).to_le_bytes());
    let checksum = crc32c(&bytes[..CHECKSUM_OFFSET]);
    bytes[CHECKSUM_OFFSET..].copy_from_slice(&checksum.to_le_bytes());
    memory.write_at(4096, &bytes).unwrap();
    assert_eq!(read(&memory), SuperblockState::TooNew { version: SUPERBLOCK_VERSION + 1 });
}

#[test]
fn i_d6_a_failed_update_fences_the_keeper() {
    let memory = Arc::new(Memory::new(LEN));
    let keeper = SuperblockKeeper::new("memory", memory.clone(), sample(1));
    *memory.writes_left.lock().unwrap() = 0;
    keeper.update(|_| {}).unwrap_err();
    *memory.writes_left.lock().unwrap() = usize::MAX;
    let error = keeper.update(|_| {}).unwrap_err();
    assert!(matches!(error, DeviceError::Fenced { .. }), "I-D6: a retry is not trust: {error}");
}

#[test]
fn the_witness_wants_a_majority_of_all_enrolled_devices() {
    let keepers: Vec<_> =
        (0..2).map(|_| Arc::new(SuperblockKeeper::new("memory", Arc::new(Memory::new(LEN)), sample(1)))).collect();
    let epoch = MetadataEpoch { epoch: 6, members: vec![MemberId([8; 16])] };
    let minority = SuperblockWitness::new(keepers.clone(), 4);
    minority.record(&epoch).unwrap_err();
    assert!(!minority.highest().majority);
    let majority = SuperblockWitness::new(keepers, 3);
    majority.record(&epoch).unwrap();
    assert_eq!(majority.highest(), WitnessedEpoch { newest: epoch, majority: true });
}

/// I-L10: a set of devices that the node counts as a majority knows the newest epoch, however devices came and went.
#[test]
fn i_l10_every_majority_after_devices_joined_and_left_holds_the_newest_epoch() {
    let keeper = || Arc::new(SuperblockKeeper::new("memory", Arc::new(Memory::new(LEN)), sample(1)));
    let epoch = |number| MetadataEpoch { epoch: number, members: vec![MemberId([number as u8; 16])] };
    let keepers: Vec<_> = (0..3).map(|_| keeper()).collect();
    // The third one is missing and hears of nothing.
    let witness = SuperblockWitness::new(keepers[..2].to_vec(), 3);
    witness.record(&epoch(20)).unwrap();
    let (fourth, fifth) = (keeper(), keeper());
    witness.join(&fourth, &epoch(20), Enrolled::Changes).unwrap();
    witness.join(&fifth, &epoch(20), Enrolled::Changes).unwrap();
    let mut all = [keepers.clone(), vec![fourth.clone(), fifth]].concat();
    let is_known = |all: &[Arc<SuperblockKeeper>], number| {
        // The unluckiest majority: those that know least.
        let mut epochs: Vec<u64> = all.iter().map(|keeper| keeper.current().metadata.epoch).collect();
        epochs.sort_unstable();
        epochs[all.len() / 2] == number
    };
    assert!(is_known(&all, 20), "I-L10: of five");
    // One that comes back, with another list under the same number, takes the right one over.
    keepers[2].update(|next| next.metadata = MetadataEpoch { epoch: 20, members: vec![MemberId([9; 16])] }).unwrap();
    witness.join(&keepers[2], &epoch(20), Enrolled::Stays).unwrap();
    assert_eq!(keepers[2].current().metadata, epoch(20));
    // Two leave that know of the newest one; those that were too slow for it are told.
    witness.record(&epoch(21)).unwrap();
    for stayed_away in [&keepers[2], &fourth] {
        stayed_away.update(|next| next.metadata = epoch(20)).unwrap();
    }
    for leaving in &keepers[..2] {
        witness.leave(leaving, &epoch(21), Enrolled::Changes).unwrap();
        all.retain(|other| !Arc::ptr_eq(other, leaving));
        assert!(is_known(&all, 21), "I-L10: of {}", all.len());
    }
    assert_eq!(witness.highest(), WitnessedEpoch { newest: epoch(21), majority: true });
    // Those that go missing still count; a majority of what there should be is needed to forget one.
    witness.leave(&fourth, &epoch(21), Enrolled::Stays).unwrap();
    witness.leave(&keepers[2], &epoch(21), Enrolled::Stays).unwrap();
    assert!(!witness.highest().majority);
    witness.forget_missing(&epoch(21)).unwrap_err();
}

proptest! {
    #[test]
    fn random_bytes_never_panic_and_never_verify(
        mut bytes in prop::collection::vec(any::<u8>(), SUPERBLOCK_LEN_BYTES), copy in 0usize..4, signed in any::<bool>(),
    ) {
        bytes[..8].copy_from_slice(&SUPERBLOCK_MAGIC);
        bytes[8..12].copy_from_slice(&SUPERBLOCK_VERSION.to_le_bytes());
        bytes[12] = u8::try_from(copy).unwrap();
        if signed { // behind a checksum that holds, the fields still have to make sense
            let checksum = crc32c(&bytes[..CHECKSUM_OFFSET]);
            bytes[CHECKSUM_OFFSET..].copy_from_slice(&checksum.to_le_bytes());
        }
        prop_assert!(Superblock::decode(&bytes, copy).is_err());
    }

    #[test]
    fn every_flipped_bit_is_found(bit in 0usize..SUPERBLOCK_LEN_BYTES * 8, copy in 0usize..4) {
        let mut bytes = sample(3).encode(copy);
        prop_assert_eq!(Superblock::decode(&bytes, copy).unwrap(), sample(3));
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Superblock::decode(&bytes, copy).is_err());
    }
}

#[test]
fn counters_that_no_start_can_raise_are_damage() {
    let top = kiseki_types::limits::COUNTER_MAX;
    assert!(Superblock::decode(&sample(top).encode(0), 0).is_ok());
    let epoch = MetadataEpoch { epoch: top + 1, members: Vec::new() };
    let bad = [
        sample(top + 1),
        Superblock { incarnation: u64::MAX, ..sample(1) },
        Superblock { metadata: epoch, ..sample(1) },
    ];
    for superblock in bad {
        assert!(matches!(Superblock::decode(&superblock.encode(0), 0), Err(SuperblockDamage::Codec(_))));
    }
}
