//! NVMe drives driven by commands, on real drives or emulated ones: `make test-nvme` runs these in an emulated machine.
//!
//! **They overwrite the drives.** `KISEKI_NVME_DRIVES` names the sound ones by their block devices, separated by spaces,
//! `KISEKI_NVME_FAULTY` one that fails reads of its fifth MiB's first block and writes of its ninth MiB's first block,
//! `KISEKI_NVME_CACHELESS` one without a volatile cache and `KISEKI_NVME_SLOW` one with such a cache, both so slow that commands are
//! always under way, and `KISEKI_NVME_BOUNDARY` one with an optimal I/O boundary.

mod conditions;
mod reset;
mod support;

use futures::future::join_all;
use kiseki_devices::file_device::{DeviceLock, RawDevice, open_device, open_device_by};
use kiseki_devices::nvme::admin::{AdminCommand, AdminNode, FormatRequest, SecureErase};
use kiseki_devices::nvme::identify::{ControllerIdentity, LbaFormat, NamespaceIdentity, parse_namespace_list};
use kiseki_devices::nvme::node::NvmeNode;
use kiseki_devices::nvme::path::{PathChoice, PathInUse, PathPreference};
use kiseki_devices::nvme::smart::SmartLog;
use kiseki_devices::nvme::status::NvmeStatus;
use kiseki_devices::pool::{BufferPool, SlabClass};
use kiseki_devices::ring::RingOptions;
use kiseki_executor::Rings;
use kiseki_types::device::Device;
use kiseki_types::meta::MetaFile;
use kiseki_types::{BlockCount, BlockIndex, IoBuf, IoBytes};
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;
use support::{
    BLOCK, Numbers, Way, can_poll, command_ways, drives, fill, named, on_executor, on_ring, open, open_with,
};

/// Blocks of the part of a drive that twins work on.
const REGION_BLOCKS: u64 = 8192;

fn pool() -> Rc<BufferPool> {
    BufferPool::new(&[SlabClass { len_bytes: 64 << 10, count: 16 }, SlabClass { len_bytes: 2 << 20, count: 4 }])
}

fn filled(pool: &Rc<BufferPool>, is_registered: bool, len: usize, seed: u64) -> IoBytes {
    let mut buf = if is_registered { pool.alloc(len) } else { IoBuf::zeroed(len) };
    fill(&mut buf, seed);
    buf.freeze()
}

/// Writes and reads of all shapes through `device`, and a model of what the region must hold.
async fn work(device: &Rc<dyn Device>, pool: &Rc<BufferPool>, model: &mut [u8], seed: u64) {
    let mut numbers = Numbers(seed);
    for round in 0..40 {
        let mut writes = Vec::new();
        // Ranges side by side, so that none of a round overlaps another.
        let mut start = numbers.next(64);
        while start + 600 < REGION_BLOCKS && writes.len() < 12 {
            let len = [1, 2, 3, 16, 33, 127, 129, 300, 512][numbers.next(9) as usize];
            let parts = match numbers.next(3) {
                0 => vec![filled(pool, false, len * BLOCK, seed ^ round << 32 | start)],
                1 => vec![filled(pool, true, len * BLOCK, seed ^ round << 32 | start)],
                _ => {
                    let whole = filled(pool, true, len * BLOCK, seed ^ round << 32 | start);
                    let cut = BLOCK * (1 + numbers.next(len as u64) as usize).min(len);
                    let plain = IoBuf::copy_of(&whole[cut..]).freeze();
                    vec![whole.slice(0..cut), plain]
                }
            };
            let mut at = start as usize * BLOCK;
            for part in &parts {
                model[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
            writes.push(device.write(BlockIndex(start), parts));
            start += len as u64 + numbers.next(600);
        }
        for write in join_all(writes).await {
            write.unwrap();
        }
        let len = [1, 8, 64, 200, 512][numbers.next(5) as usize];
        let start = numbers.next(REGION_BLOCKS - len as u64);
        let buf = if numbers.next(2) == 0 { pool.alloc(len * BLOCK) } else { IoBuf::zeroed(len * BLOCK) };
        let found = device.read(BlockIndex(start), buf).await.unwrap();
        let offset = start as usize * BLOCK;
        assert!(found[..] == model[offset..offset + found.len()], "round {round}: {len} blocks at {start}");
    }
    device.flush().await.unwrap();
}

async fn read_all(device: &Rc<dyn Device>) -> Vec<u8> {
    let mut all = Vec::new();
    for start in (0..REGION_BLOCKS).step_by(256) {
        all.extend_from_slice(&device.read(BlockIndex(start), IoBuf::zeroed(256 * BLOCK)).await.unwrap());
    }
    all
}

#[test]
#[ignore = "needs NVMe drives: make test-nvme"]
fn twins_what_commands_write_the_block_device_reads_and_the_other_way_round() {
    for path in drives() {
        let mut model = vec![0; REGION_BLOCKS as usize * BLOCK];
        on_executor(async {
            let block = open(&path, Way::Block, None);
            for start in (0..REGION_BLOCKS).step_by(256) {
                block.write(BlockIndex(start), vec![IoBuf::zeroed(256 * BLOCK).freeze()]).await.unwrap();
            }
        });
        let turns = command_ways().into_iter().flat_map(|way| [(way, Way::Block), (Way::Block, way)]);
        for (seed, (way, twin)) in (1..).zip(turns) {
            on_executor(async {
                let pool = pool();
                let device = open(&path, way, Some(pool.clone()));
                work(&device, &pool, &mut model, seed).await;
                assert!(read_all(&device).await == model, "{way:?} on {}", path.display());
                let other = open(&path, twin, Some(pool.clone()));
                assert_eq!(other.geometry(), device.geometry());
                assert!(read_all(&other).await == model, "{twin:?} after {way:?} on {}", path.display());
            });
        }
    }
}

#[test]
#[ignore = "needs NVMe drives: make test-nvme"]
fn commands_are_chosen_by_themselves_and_as_the_core_and_the_operator_allow() {
    for path in drives() {
        let generic = NvmeNode::of(&path).unwrap().generic().unwrap();
        let _held = DeviceLock::acquire(&path).unwrap();
        assert!(DeviceLock::acquire(&generic).is_err(), "held by either name");
        let choice = PathChoice::make(&path, PathPreference::Auto).unwrap();
        let wanted = if can_poll() { PathInUse::PassthroughPolled } else { PathInUse::Passthrough };
        assert_eq!((choice.in_use, choice.reason.as_str()), (wanted, ""), "{}", path.display());
        let block = PathChoice::make(&path, PathPreference::IoUring).unwrap();
        assert_eq!(block.in_use, PathInUse::Block);
        assert_eq!(PathChoice::make(&generic, PathPreference::Auto).unwrap().in_use, wanted);
        on_ring(Rings::Plain, async {
            let device = open_device(&path, RingOptions::default(), None).unwrap();
            device.read(BlockIndex(0), IoBuf::zeroed(BLOCK)).await.unwrap();
            let forced = RingOptions { path: PathPreference::Passthrough, ..RingOptions::default() };
            let error = open_device(&path, forced, None).err().unwrap().to_string();
            assert!(error.contains("ring takes no commands"), "{error}");
        });
        on_executor(async {
            let choice = choice.clone().without_polling();
            assert_eq!(choice.in_use, PathInUse::Passthrough);
            let device = open_device_by(&generic, &choice, RingOptions::default(), None).unwrap();
            device.read(BlockIndex(0), IoBuf::zeroed(BLOCK)).await.unwrap();
        });
    }
}

#[test]
#[ignore = "needs NVMe drives: make test-nvme"]
fn i_o5_far_more_operations_than_a_queue_holds_all_finish() {
    for path in drives() {
        for way in command_ways() {
            on_executor(async {
                let device = open_with(&path, way, 4096, None);
                let block = |number: u64| {
                    let mut buf = IoBuf::zeroed(BLOCK);
                    buf[..8].copy_from_slice(&(number ^ 0x5a5a).to_le_bytes());
                    buf
                };
                // More than any queue of the driver has tags.
                let writes = (0..6000).map(|number| device.write(BlockIndex(number), vec![block(number).freeze()]));
                for write in join_all(writes.collect::<Vec<_>>()).await {
                    write.unwrap();
                }
                let reads = (0..6000).map(|number| device.read(BlockIndex(number), IoBuf::zeroed(BLOCK)));
                for (number, read) in (0..).zip(join_all(reads.collect::<Vec<_>>()).await) {
                    assert!(read.unwrap()[..] == block(number)[..], "{way:?}: block {number}");
                }
            });
        }
    }
}

#[test]
#[ignore = "needs NVMe drives: make test-nvme"]
fn operations_go_on_when_nobody_waits_and_outlive_their_executor() {
    for path in drives() {
        for (first, way) in [1, 100].into_iter().zip(command_ways()) {
            on_executor(async {
                let device = open(&path, way, None);
                for number in 0..64 {
                    let mut buf = IoBuf::zeroed(300 * BLOCK);
                    buf.fill(first + number as u8);
                    drop(device.write(BlockIndex(300 * number), vec![buf.freeze()]));
                    drop(device.read(BlockIndex(300 * number), IoBuf::zeroed(300 * BLOCK)));
                }
            });
            on_executor(async {
                let device = open(&path, Way::Block, None);
                for number in 0..64 {
                    let found = device.read(BlockIndex(300 * number), IoBuf::zeroed(300 * BLOCK)).await.unwrap();
                    assert!(found.iter().all(|byte| *byte == first + number as u8), "{way:?}: {number}");
                }
            });
        }
    }
}

#[test]
#[ignore = "needs NVMe drives: make test-nvme"]
fn a_core_sleeps_between_interrupts_and_not_while_it_polls() {
    let path = &drives()[0];
    let sleeps = |way| {
        on_executor(async {
            let device = open(path, way, None);
            for _ in 0..200 {
                device.read(BlockIndex(1), IoBuf::zeroed(BLOCK)).await.unwrap();
            }
            let stats = kiseki_executor::stats();
            // Idle, it sleeps whatever rings it has.
            kiseki_executor::sleep(Duration::from_millis(300)).await;
            assert!(kiseki_executor::stats().enters - stats.enters < 10, "{way:?}: an idle core spins");
            stats.sleeps
        })
    };
    let interrupts = sleeps(Way::Interrupt);
    assert!(interrupts > 50, "{interrupts} sleeps");
    if can_poll() {
        let polled = sleeps(Way::Polled);
        assert!(polled < 5, "{polled} sleeps over a polled ring");
    }
}

#[test]
#[ignore = "needs NVMe drives: make test-nvme"]
fn discarded_blocks_take_new_data() {
    for path in drives() {
        on_executor(async {
            for way in command_ways().into_iter().chain([Way::Block]) {
                let device = open(&path, way, None);
                let ones = |blocks: usize, byte: u8| {
                    let mut buf = IoBuf::zeroed(blocks * BLOCK);
                    buf.fill(byte);
                    vec![buf.freeze()]
                };
                device.write(BlockIndex(0), ones(1024, 1)).await.unwrap();
                device.discard(BlockIndex(16), BlockCount(512)).await.unwrap();
                device.write(BlockIndex(100), ones(4, 2)).await.unwrap();
                device.flush().await.unwrap();
                let found = device.read(BlockIndex(0), IoBuf::zeroed(1024 * BLOCK)).await.unwrap();
                let byte = |block: usize| found[block * BLOCK];
                assert!(found[..16 * BLOCK].iter().all(|byte| *byte == 1), "in front");
                assert!(found[528 * BLOCK..].iter().all(|byte| *byte == 1), "behind");
                // The emulated drive's read as zeros; any other's may read as they like.
                assert_eq!((byte(99), byte(100), byte(103), byte(104)), (0, 2, 2, 0), "{way:?}");
            }
        });
    }
}

/// The status that a failed operation names.
fn status_of(error: &io::Error) -> u16 {
    let found = error.get_ref().and_then(|inner| inner.downcast_ref::<NvmeStatus>());
    found.unwrap_or_else(|| panic!("no status in {error}")).code()
}

#[test]
#[ignore = "needs NVMe drives: make test-nvme"]
fn i_d6_media_errors_are_named_and_a_failed_write_fences_the_device() {
    let path = named("KISEKI_NVME_FAULTY", "a drive with faults");
    for way in command_ways() {
        on_executor(async {
            let device = open(&path, way, None);
            let mib = |index: u64| BlockIndex(index * 256);
            let block = || vec![IoBuf::zeroed(BLOCK).freeze()];
            let error = device.read(mib(4), IoBuf::zeroed(BLOCK)).await.unwrap_err();
            assert_eq!(status_of(&error), 0x281, "{error}");
            assert!(error.to_string().contains("unrecovered read error"), "{error}");
            // A long read that is cut fails as a whole, and the queue goes on.
            let long = device.read(mib(3), IoBuf::zeroed(4 << 20)).await.unwrap_err();
            assert_eq!(status_of(&long), 0x281, "{long}");
            device.write(mib(1), block()).await.unwrap();
            device.flush().await.unwrap();

            let failed = device.write(mib(8), block()).await.unwrap_err();
            assert_eq!(status_of(&failed), 0x280, "{failed}");
            let after = device.write(mib(1), block()).await.unwrap_err().to_string();
            assert!(after.contains("not tried") && after.contains("write fault"), "I-D6: {after}");
            let flush = device.flush().await.unwrap_err().to_string();
            assert!(flush.contains("write fault"), "I-D6: {flush}");
            device.read(mib(1), IoBuf::zeroed(BLOCK)).await.unwrap();
        });
    }
}

#[test]
#[ignore = "needs NVMe drives: make test-nvme"]
fn drives_say_what_they_are_and_how_they_fare() {
    for (index, path) in drives().iter().enumerate() {
        let node = NvmeNode::of(path).unwrap();
        for name in [path.clone(), node.generic().unwrap()] {
            let admin = AdminNode::open(&name).unwrap();
            let namespace = admin.namespace_id().unwrap();
            let ask = |command: AdminCommand| admin.execute(&command).unwrap();
            let controller = ControllerIdentity::parse(&ask(AdminCommand::identify_controller())).unwrap();
            assert_eq!(controller.serial, format!("kiseki{index}"), "{controller:?}");
            assert!(controller.model.contains("QEMU") && controller.admin.format, "{controller:?}");
            let identity = NamespaceIdentity::parse(&ask(AdminCommand::identify_namespace(namespace))).unwrap();
            assert_eq!(identity.len_bytes(), RawDevice::open(&name).unwrap().geometry().len_bytes());
            let list = parse_namespace_list(&ask(AdminCommand::active_namespaces(0))).unwrap();
            assert!(list.contains(&namespace), "{list:?}");
            let smart = SmartLog::parse(&ask(AdminCommand::smart_log())).unwrap();
            assert!(smart.temperature_celsius().is_some_and(|celsius| (10..90).contains(&celsius)), "{smart:?}");
            let refused = admin.execute(&AdminCommand::identify_namespace(4711)).unwrap_err();
            let cause = std::error::Error::source(&refused).unwrap().to_string();
            assert!(cause.contains("NVMe status"), "{cause}");
        }
    }
}

#[test]
#[ignore = "needs NVMe drives: make test-nvme"]
fn a_format_changes_the_block_and_commands_follow() {
    let path = drives().pop().unwrap();
    let node = NvmeNode::of(&path).unwrap();
    for block_len_bytes in [512, 4096, 512] {
        let admin = AdminNode::open(&path).unwrap();
        let namespace = admin.namespace_id().unwrap();
        let page = admin.execute(&AdminCommand::identify_namespace(namespace)).unwrap();
        let formats = NamespaceIdentity::parse(&page).unwrap().formats;
        let fits = |format: &&LbaFormat| format.block_len_bytes == block_len_bytes && format.metadata_len_bytes == 0;
        let format_index = formats.iter().find(fits).unwrap().index;
        let timeout = Duration::from_secs(60);
        let request = FormatRequest { namespace, format_index, erase: SecureErase::None, timeout };
        AdminNode::open(&node.controller()).unwrap().execute(&AdminCommand::format(request)).unwrap();
        drop(admin);
        on_executor(async {
            let pool = pool();
            let device = open(&path, command_ways().pop().unwrap(), Some(pool.clone()));
            let bytes = filled(&pool, true, 2 << 20, u64::from(block_len_bytes));
            device.write(BlockIndex(3), vec![bytes.clone()]).await.unwrap();
            device.flush().await.unwrap();
            let raw = RawDevice::open(&path).unwrap();
            let mut found = vec![0; 2 << 20];
            raw.read_at(3 * BLOCK as u64, &mut found).unwrap();
            assert!(found[..] == bytes[..], "blocks of {block_len_bytes}");
            raw.write_at(0, &[7; BLOCK]).unwrap();
            let first = device.read(BlockIndex(0), IoBuf::zeroed(BLOCK)).await.unwrap();
            assert!(first.iter().all(|byte| *byte == 7), "a superblock that a side thread writes");
        });
    }
}

/// `BLKRRPART`: looks for partitions again.
const BLKRRPART: libc::c_ulong = 0x125f;

#[test]
#[ignore = "needs NVMe drives: make test-nvme"]
#[allow(unsafe_code)]
fn a_drive_with_partitions_is_left_to_the_block_device() {
    let path = &drives()[0];
    let reread = || {
        let file = std::fs::File::open(path).unwrap();
        // SAFETY: the request takes no argument.
        assert_eq!(unsafe { libc::ioctl(file.as_raw_fd(), BLKRRPART) }, 0, "{}", io::Error::last_os_error());
    };
    let raw = RawDevice::open(path).unwrap();
    let mut table = vec![0; BLOCK];
    table[446 + 4] = 0x83;
    table[446 + 8..446 + 16].copy_from_slice(&[0, 8, 0, 0, 0, 8, 0, 0]);
    table[510..512].copy_from_slice(&[0x55, 0xaa]);
    raw.write_at(0, &table).unwrap();
    reread();
    let choice = PathChoice::make(path, PathPreference::Auto).unwrap();
    assert!(choice.in_use == PathInUse::Block && choice.reason.contains("1 partition"), "{choice:?}");
    PathChoice::make(path, PathPreference::Passthrough).unwrap_err();
    raw.write_at(0, &[0; BLOCK]).unwrap();
    reread();
    assert_ne!(PathChoice::make(path, PathPreference::Auto).unwrap().in_use, PathInUse::Block);
}
