//! What some drives have and others have not, and several cores at once.

use crate::support::{BLOCK, Way, can_poll, command_ways, drives, fill, named, on_executor, open};
use futures::future::join_all;
use kiseki_devices::nvme::admin::{AdminCommand, AdminNode};
use kiseki_devices::nvme::identify::{ControllerIdentity, NamespaceIdentity};
use kiseki_devices::nvme::node::NvmeNode;
use kiseki_devices::nvme::smart::SmartLog;
use kiseki_types::{BlockIndex, IoBuf, IoBytes};
use std::path::Path;
use std::sync::Barrier;

fn controller(path: &Path) -> ControllerIdentity {
    let page = AdminNode::open(path).unwrap().execute(&AdminCommand::identify_controller()).unwrap();
    ControllerIdentity::parse(&page).unwrap()
}

/// Reads and writes that the drive has done in its life.
fn commands_done(path: &Path) -> (u64, u64) {
    let controller = NvmeNode::of(path).unwrap().controller();
    let page = AdminNode::open(&controller).unwrap().execute(&AdminCommand::smart_log()).unwrap();
    let log = SmartLog::parse(&page).unwrap();
    (log.host_reads, log.host_writes)
}

fn stamped(blocks: usize, seed: u64) -> IoBytes {
    let mut buf = IoBuf::zeroed(blocks * BLOCK);
    fill(&mut buf, seed);
    buf.freeze()
}

#[test]
#[ignore = "needs NVMe drives: make test-nvme"]
fn a_flush_goes_to_drives_with_a_volatile_cache_and_to_no_other() {
    let cacheless = named("KISEKI_NVME_CACHELESS", "a drive without a volatile cache");
    for (path, has_cache) in [(&cacheless, false), (&drives()[0], true)] {
        assert_eq!(controller(path).has_volatile_cache, has_cache, "{}", path.display());
        for way in command_ways() {
            on_executor(async {
                let device = open(path, way, None);
                assert_eq!(device.is_flush_free(), !has_cache, "{way:?}: {}", path.display());
                device.write(BlockIndex(7), vec![stamped(1, 7)]).await.unwrap();
                let before = kiseki_executor::stats();
                device.flush().await.unwrap();
                let calls = kiseki_executor::stats().enters - before.enters;
                assert_eq!(calls > 0, has_cache, "{way:?}: {calls} calls for a flush of {}", path.display());
                let found = device.read(BlockIndex(7), IoBuf::zeroed(BLOCK)).await.unwrap();
                assert!(found[..] == stamped(1, 7)[..]);
            });
        }
    }
}

#[test]
#[ignore = "needs NVMe drives: make test-nvme"]
fn commands_do_not_cross_the_boundary_that_a_drive_names() {
    let path = named("KISEKI_NVME_BOUNDARY", "a drive with an optimal I/O boundary");
    let admin = AdminNode::open(&path).unwrap();
    let page = admin.execute(&AdminCommand::identify_namespace(admin.namespace_id().unwrap())).unwrap();
    let identity = NamespaceIdentity::parse(&page).unwrap();
    let boundary =
        u64::from(identity.boundary_blocks.expect("it names one")) * u64::from(identity.format.block_len_bytes);
    let boundary = boundary / BLOCK as u64;
    assert!(boundary >= 4, "a boundary of {boundary} blocks of 4096 bytes");
    for way in command_ways() {
        on_executor(async {
            let device = open(&path, way, None);
            // Inside, across one boundary, and across two.
            for (start, len, commands) in
                [(0, boundary, 1), (boundary - 1, 2, 2), (2 * boundary - 2, boundary + 4, 3), (3 * boundary, 1, 1)]
            {
                let (reads, writes) = commands_done(&path);
                let bytes = stamped(len as usize, start);
                device.write(BlockIndex(start), vec![bytes.clone()]).await.unwrap();
                let found = device.read(BlockIndex(start), IoBuf::zeroed(bytes.len())).await.unwrap();
                assert!(found[..] == bytes[..], "{way:?}: {len} blocks at {start}");
                let (reads_after, writes_after) = commands_done(&path);
                let done = (reads_after - reads, writes_after - writes);
                assert_eq!(done, (commands, commands), "{way:?}: {len} blocks at {start}, boundary {boundary}");
            }
        });
    }
}

#[test]
#[ignore = "needs NVMe drives: make test-nvme"]
fn several_cores_drive_one_drive_at_once() {
    const CORES: u64 = 3;
    const ROUNDS: u64 = 24;
    const LEN: u64 = 40;
    for path in drives() {
        let together = Barrier::new(CORES as usize);
        // Ranges of the cores lie between each other's, so that one that lands in the wrong place shows.
        let start = |core: u64, round: u64| BlockIndex((round * CORES + core) * LEN);
        std::thread::scope(|scope| {
            for core in 0..CORES {
                let (path, together) = (&path, &together);
                let way = if can_poll() && core % 2 == 0 { Way::Polled } else { Way::Interrupt };
                scope.spawn(move || {
                    on_executor(async {
                        let device = open(path, way, None);
                        together.wait();
                        let seed = |round: u64| core << 32 | round;
                        let writes = (0..ROUNDS)
                            .map(|round| device.write(start(core, round), vec![stamped(LEN as usize, seed(round))]));
                        for write in join_all(writes.collect::<Vec<_>>()).await {
                            write.unwrap();
                        }
                        device.flush().await.unwrap();
                        together.wait();
                        let other = (core + 1) % CORES;
                        for round in 0..ROUNDS {
                            let buf = IoBuf::zeroed(LEN as usize * BLOCK);
                            let found = device.read(start(other, round), buf).await.unwrap();
                            assert!(
                                found[..] == stamped(LEN as usize, other << 32 | round)[..],
                                "core {other}, round {round}"
                            );
                        }
                    });
                });
            }
        });
    }
}
