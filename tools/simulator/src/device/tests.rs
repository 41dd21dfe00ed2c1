//! Tests of the simulated disk through the device port.

use super::*;
use crate::executor::{Interrupted, NodeId};
use futures::future::{join, join_all};
use kiseki_types::runtime::RuntimeExt;
use std::cell::Cell;

const NODE: NodeId = NodeId(1);

fn disk(sim: &Sim) -> (SimDisk, Arc<CutSwitch>) {
    let switch = Arc::<CutSwitch>::default();
    (SimDisk::new(sim, DiskOptions::of_len("disk0", 1 << 20), &switch), switch)
}

fn block(byte: u8) -> Vec<IoBytes> {
    vec![IoBuf::copy_of(&[byte; 4096]).freeze()]
}

async fn byte_at(device: &Rc<dyn Device>, start: u64) -> u8 {
    device.read(BlockIndex(start), IoBuf::zeroed(4096)).await.unwrap()[0]
}

#[test]
fn what_is_written_reads_back_part_after_part() {
    let sim = Sim::new(1);
    let device = disk(&sim).0.open();
    assert_eq!(device.geometry().len_bytes(), 1 << 20);
    sim.block_on(NODE, async {
        device.write(BlockIndex(3), [block(1), block(2)].concat()).await.unwrap();
        let read = device.read(BlockIndex(2), IoBuf::zeroed(4 * 4096)).await.unwrap();
        let firsts: Vec<u8> = read.chunks(4096).map(|block| block[0]).collect();
        assert_eq!(firsts, [0, 1, 2, 0]);
        let end = device.read(BlockIndex(255), IoBuf::zeroed(2 * 4096)).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::InvalidInput);
    });
}

#[test]
fn operations_complete_out_of_order_and_the_seed_decides_how() {
    let order = |seed| {
        let sim = Sim::new(seed);
        let device = disk(&sim).0.open();
        let done = Rc::new(RefCell::new(Vec::new()));
        let writes = (0..16_u8).map(|index| {
            let (write, done) = (device.write(BlockIndex(u64::from(index)), block(1)), done.clone());
            async move {
                write.await.unwrap();
                done.borrow_mut().push(index);
            }
        });
        sim.block_on(NODE, join_all(writes));
        (done.take(), sim.trace_hash())
    };
    assert_ne!(order(1).0, (0..16).collect::<Vec<_>>());
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
}

#[test]
fn dropping_a_write_does_not_cancel_it() {
    let sim = Sim::new(2);
    let device = disk(&sim).0.open();
    let ports = sim.ports(NODE);
    sim.block_on(NODE, async {
        drop(device.write(BlockIndex(0), block(9)));
        ports.sleep(Duration::from_secs(1)).await;
        assert_eq!(byte_at(&device, 0).await, 9);
    });
}

#[test]
fn flushed_writes_survive_and_unflushed_ones_may_not() {
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..48 {
        let sim = Sim::new(seed);
        let (disk, _switch) = disk(&sim);
        let device = disk.open();
        sim.block_on(NODE, async {
            device.write(BlockIndex(0), block(1)).await.unwrap();
            device.flush().await.unwrap();
            device.write(BlockIndex(1), block(2)).await.unwrap();
        });
        drop(device.write(BlockIndex(2), block(3))); // in flight at the cut
        sim.kill(NODE);
        disk.power_cut(seed);
        assert_eq!(disk.unflushed_blocks(), 0);
        let device = disk.open();
        sim.block_on(NODE, async {
            assert_eq!(byte_at(&device, 0).await, 1, "seed {seed}");
            outcomes.insert((byte_at(&device, 1).await, byte_at(&device, 2).await));
        });
    }
    assert!(outcomes.contains(&(0, 0)) && outcomes.contains(&(2, 3)) && outcomes.len() >= 4, "{outcomes:?}");
}

#[test]
fn a_flush_does_not_cover_a_write_that_completes_after_it_was_called() {
    let mut lost = 0;
    for seed in 0..48 {
        let sim = Sim::new(seed);
        let (disk, _switch) = disk(&sim);
        let device = disk.open();
        sim.block_on(NODE, async {
            let (write, flush) = (device.write(BlockIndex(0), block(1)), device.flush());
            let (write, flush) = join(write, flush).await;
            write.and(flush).unwrap();
        });
        disk.power_cut_in_mode(CutMode::DropAll, &SeededRng::new(seed));
        lost += usize::from(disk.peek(BlockIndex(0), BlockCount(1))[0] == 0);
    }
    assert_eq!(lost, 48);
}

#[test]
fn the_nth_write_meets_the_cut_and_nothing_completes_behind_it() {
    for seed in 0..16 {
        let sim = Sim::new(seed);
        let (disk, switch) = disk(&sim);
        let other = SimDisk::new(&sim, DiskOptions::of_len("disk1", 1 << 20), &switch);
        let (device, other_device) = (disk.open(), other.open());
        let done = Cell::new(0);
        switch.arm(5);
        let writes = async {
            for index in 0..8 {
                let device = if index % 2 == 0 { &device } else { &other_device };
                device.write(BlockIndex(index), block(1)).await.unwrap();
                device.flush().await.unwrap();
                done.set(done.get() + 1);
            }
        };
        let result = sim.block_on_or_cut(NODE, writes, &switch);
        assert!(matches!(result, Err(Interrupted::PowerCut)));
        assert_eq!(done.get(), 4);
        sim.kill(NODE);
        disk.power_cut(seed);
        other.power_cut(seed);
        switch.restore();
        assert!(sim.try_block_on(NODE, device.flush()).is_err(), "an old queue never answers");
        for index in 0..8 {
            let disk = if index % 2 == 0 { &disk } else { &other };
            let bytes = disk.peek(BlockIndex(index), BlockCount(1));
            match index {
                0..4 => assert!(bytes.iter().all(|byte| *byte == 1), "seed {seed} block {index}"),
                4 => {}
                _ => assert!(bytes.iter().all(|byte| *byte == 0), "seed {seed} block {index}"),
            }
        }
    }
}

#[test]
fn killing_a_process_leaves_the_disk_its_writes() {
    let sim = Sim::new(3);
    let (disk, _switch) = disk(&sim);
    let device = disk.open();
    drop(device.write(BlockIndex(0), block(1)));
    sim.kill(NODE);
    let ports = sim.ports(NODE);
    sim.block_on(NODE, async { ports.sleep(Duration::from_secs(1)).await });
    assert_eq!(disk.peek(BlockIndex(0), BlockCount(1))[0], 1);
}

#[test]
fn planned_faults_hit_the_planned_operation() {
    let sim = Sim::new(4);
    let (disk, _switch) = disk(&sim);
    let device = disk.open();
    sim.block_on(NODE, async {
        disk.fail_write(2);
        disk.fail_flush(1);
        disk.fail_read(2);
        device.write(BlockIndex(0), block(1)).await.unwrap();
        device.write(BlockIndex(0), block(2)).await.unwrap_err();
        device.write(BlockIndex(0), block(3)).await.unwrap();
        device.flush().await.unwrap_err();
        device.flush().await.unwrap();
        assert_eq!(byte_at(&device, 0).await, 3);
        device.read(BlockIndex(0), IoBuf::zeroed(4096)).await.unwrap_err();
        disk.misdirect_write(2, 10);
        device.write(BlockIndex(5), block(5)).await.unwrap();
        device.write(BlockIndex(6), block(6)).await.unwrap();
        assert_eq!((byte_at(&device, 5).await, byte_at(&device, 6).await, byte_at(&device, 16).await), (5, 0, 6));
        disk.misdirect_read(2, 11);
        assert_eq!((byte_at(&device, 5).await, byte_at(&device, 5).await, byte_at(&device, 5).await), (5, 6, 5));
        disk.set_gone(true);
        assert!(device.read(BlockIndex(0), IoBuf::zeroed(4096)).await.is_err());
        assert!(device.write(BlockIndex(0), block(1)).await.is_err() && device.flush().await.is_err());
        disk.set_gone(false);
        assert_eq!(byte_at(&device, 5).await, 5);
    });
    assert_eq!(disk.rot(4).len(), 4);
}

#[test]
fn a_discard_may_overtake_a_write_to_the_same_blocks_and_leaves_others_alone() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..32 {
        let sim = Sim::new(seed);
        let (disk, _switch) = disk(&sim);
        let device = disk.open();
        sim.block_on(NODE, async {
            device.write(BlockIndex(3), block(1)).await.unwrap();
            let (discard, write) =
                (device.discard(BlockIndex(4), BlockCount(2)), device.write(BlockIndex(5), block(7)));
            let (discard, write) = join(discard, write).await;
            discard.and(write).unwrap();
            assert_eq!(byte_at(&device, 3).await, 1);
            if byte_at(&device, 5).await == 7 { kept += 1 } else { lost += 1 }
        });
        assert_eq!(disk.counts().discards, 1);
    }
    assert!(lost > 2 && kept > 2, "{lost} lost, {kept} kept");
}

#[test]
fn a_recorded_run_gives_the_image_of_each_moment() {
    let sim = Sim::new(8);
    let (first, switch) = disk(&sim);
    let recorder = Recorder::default();
    first.record(&recorder);
    let device = first.open();
    sim.block_on(NODE, async {
        device.write(BlockIndex(1), block(1)).await.unwrap();
        device.flush().await.unwrap();
        first.file().write_at(8192, &[2; 4096]).unwrap();
    });
    assert_eq!(recorder.len(), 6, "submitted and completed: write, flush, write");
    let mut replay = recorder.replay();
    replay.advance_to(6);
    let image = replay.images(CutMode::DropAll, &SeededRng::new(1)).remove(0);
    let copy = SimDisk::with_image(&sim, DiskOptions::of_len("copy", 1 << 20), &switch, image);
    assert_eq!((copy.peek(BlockIndex(1), BlockCount(1))[0], copy.peek(BlockIndex(2), BlockCount(1))[0]), (1, 0));
}

#[test]
fn a_lying_flush_saves_nothing() {
    let sim = Sim::new(5);
    let (disk, _switch) = disk(&sim);
    let device = disk.open();
    disk.set_flush_is_a_lie(true);
    sim.block_on(NODE, async {
        device.write(BlockIndex(0), block(1)).await.unwrap();
        device.flush().await.unwrap();
    });
    disk.power_cut_in_mode(CutMode::DropAll, &SeededRng::new(0));
    assert_eq!(disk.peek(BlockIndex(0), BlockCount(1))[0], 0);
}

#[test]
#[should_panic(expected = "I-C7")]
fn i_c7_a_misaligned_buffer_is_our_own_bug() {
    let sim = Sim::new(6);
    let device = disk(&sim).0.open();
    let part = IoBuf::zeroed(8192).freeze().slice(512..4608);
    drop(device.write(BlockIndex(0), vec![part]));
}

#[test]
#[should_panic(expected = "I-C7")]
fn i_c7_a_partial_block_is_our_own_bug() {
    let sim = Sim::new(6);
    let device = disk(&sim).0.open();
    drop(device.read(BlockIndex(0), IoBuf::zeroed(4095)));
}

#[test]
fn the_disk_as_a_file_is_the_same_medium() {
    let sim = Sim::new(7);
    let (disk, switch) = disk(&sim);
    let (file, device) = (disk.file(), disk.open());
    assert_eq!(file.len().unwrap(), 1 << 20);
    file.write_at(4096 + 100, &[7; 4096]).unwrap();
    assert_eq!(sim.block_on(NODE, byte_at(&device, 2)), 7);
    file.sync().unwrap();
    switch.arm(1);
    file.write_at(0, &[9; 512]).unwrap_err();
    file.read_at(0, &mut [0]).unwrap_err();
    disk.power_cut_in_mode(CutMode::DropAll, &SeededRng::new(0));
    switch.restore();
    assert!(file.len().is_err(), "it ends with the power");
    let mut bytes = [0; 4096];
    disk.file().read_at(4096 + 100, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 4096]);
    disk.file().read_at(0, &mut bytes[..512]).unwrap();
    assert_eq!(bytes[..512], [0; 512]);
    assert!(disk.file().write_at(1 << 20, &[1]).is_err());
}
