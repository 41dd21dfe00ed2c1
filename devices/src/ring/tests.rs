//! Tests of the ring on real files through the kernel's io_uring.

use crate::file_device::{DeviceLock, create_image, open_device};
use crate::nvme::command::{CommandBackend, TransferLimits};
use crate::pool::{BufferPool, SlabClass};
use crate::ring::RingOptions;
use crate::ring::backend::Backend;
use crate::ring::cache_watch::ResetCount;
use crate::ring::patience::RetryLimits;
use crate::testing::on_executor;
use kiseki_types::device::Device;
use kiseki_types::{BlockCount, BlockIndex, IoBuf, IoBytes};
use std::cell::Cell;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

const LEN: u64 = 32 << 20;

fn image() -> (tempfile::TempDir, PathBuf) {
    // Beside the build output: a real file system, while /tmp may be one in memory.
    let dir = tempfile::tempdir_in(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    let path = dir.path().join("d.img");
    create_image(&path, LEN).unwrap();
    (dir, path)
}

fn filled(len: usize, byte: u8) -> IoBytes {
    let mut buf = IoBuf::zeroed(len);
    buf.fill(byte);
    buf.freeze()
}

fn open(path: &Path, depth: u16, pool: Option<Rc<BufferPool>>) -> Rc<dyn Device> {
    open_device(path, RingOptions { depth, ..RingOptions::default() }, pool).unwrap()
}

#[test]
fn what_is_written_reads_back_with_plain_registered_and_several_parts() {
    let (_dir, path) = image();
    on_executor(async move {
        let pool = BufferPool::new(&[SlabClass { len_bytes: 64 << 10, count: 8 }]);
        let device = open(&path, 8, Some(pool.clone()));
        let mut registered = pool.alloc(64 << 10);
        assert!(registered.slot().is_some());
        registered.fill(1);
        let registered = registered.freeze();
        device.write(BlockIndex(0), vec![registered.slice(4096..12288)]).await.unwrap();
        device.write(BlockIndex(2), vec![filled(4096, 2)]).await.unwrap();
        let parts = vec![filled(4096, 3), registered.slice(0..8192), filled(0, 9), filled(8192, 4)];
        device.write(BlockIndex(3), parts).await.unwrap();
        device.flush().await.unwrap();
        let expected: Vec<u8> = [1, 1, 2, 3, 1, 1, 4, 4, 0].iter().flat_map(|byte| [*byte; 4096]).collect();
        let plain = device.read(BlockIndex(0), IoBuf::zeroed(9 * 4096)).await.unwrap();
        assert!(plain[..] == expected[..]);
        let mut fixed = pool.alloc(9 * 4096);
        fixed.fill(0xee);
        assert!(fixed.slot().is_some());
        assert!(device.read(BlockIndex(0), fixed).await.unwrap()[..] == expected[..]);
    });
}

#[test]
fn a_write_of_more_parts_than_the_kernel_takes_arrives_whole() {
    let (_dir, path) = image();
    on_executor(async move {
        let device = open(&path, 8, None);
        let parts: Vec<IoBytes> = (0..2500u32).map(|part| filled(4096, (part % 251) as u8)).collect();
        device.write(BlockIndex(1), parts).await.unwrap();
        let found = device.read(BlockIndex(1), IoBuf::zeroed(2500 * 4096)).await.unwrap();
        for (part, bytes) in found.chunks(4096).enumerate() {
            assert!(bytes.iter().all(|byte| usize::from(*byte) == part % 251), "part {part}");
        }
    });
}

#[test]
fn i_o5_far_more_operations_than_the_ring_holds_all_finish() {
    let (_dir, path) = image();
    on_executor(async move {
        let device = open(&path, 4, None);
        let writes: Vec<_> =
            (0..500u64).map(|block| device.write(BlockIndex(block), vec![filled(4096, block as u8)])).collect();
        for write in writes {
            write.await.unwrap();
        }
        let reads: Vec<_> = (0..500u64).map(|block| device.read(BlockIndex(block), IoBuf::zeroed(4096))).collect();
        for (block, read) in reads.into_iter().enumerate() {
            assert!(read.await.unwrap().iter().all(|byte| *byte == block as u8), "block {block}");
        }
    });
}

#[test]
fn an_operation_starts_without_being_awaited_and_outlives_its_future() {
    let (_dir, path) = image();
    on_executor(async move {
        let device = open(&path, 8, None);
        for block in 0..64u64 {
            drop(device.write(BlockIndex(block), vec![filled(4096, 7)]));
            drop(device.read(BlockIndex(block), IoBuf::zeroed(4096)));
        }
        for _ in 0..100 {
            kiseki_executor::sleep(Duration::from_millis(20)).await;
            let found = device.read(BlockIndex(0), IoBuf::zeroed(64 * 4096)).await.unwrap();
            if found.iter().all(|byte| *byte == 7) {
                return;
            }
        }
        panic!("writes that nobody awaits were not done in two seconds");
    });
}

#[test]
fn dropping_the_device_or_the_executor_with_operations_in_flight_is_safe() {
    let (_dir, path) = image();
    let later = path.clone();
    on_executor(async move {
        let device = open(&path, 8, None);
        let writes: Vec<_> = (0..100u64).map(|at| device.write(BlockIndex(at * 4), vec![filled(16384, 5)])).collect();
        drop(device);
        for write in writes {
            write.await.unwrap(); // queued before the drop: still done
        }
        // These are cut off by the end of the executor.
        let device = open(&path, 8, None);
        for at in 0..100u64 {
            drop(device.write(BlockIndex(1000 + at * 4), vec![filled(16384, 6)]));
        }
    });
    let file = std::fs::File::open(later).unwrap();
    let mut bytes = vec![0; 400 * 4096];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 5));
}

#[test]
fn flushes_are_shared_and_all_answer() {
    let (_dir, path) = image();
    on_executor(async move {
        let device = open(&path, 16, None);
        device.write(BlockIndex(0), vec![filled(4096, 1)]).await.unwrap();
        let flushes: Vec<_> = (0..1000).map(|_| device.flush()).collect();
        for flush in flushes {
            flush.await.unwrap();
        }
    });
}

#[test]
fn an_idle_device_wakes_up_again() {
    let (_dir, path) = image();
    on_executor(async move {
        let device = open(&path, 16, None);
        for round in 0..20u8 {
            kiseki_executor::sleep(Duration::from_millis(u64::from(round % 5))).await;
            device.write(BlockIndex(u64::from(round)), vec![filled(4096, round)]).await.unwrap();
            device.flush().await.unwrap();
        }
    });
}

#[test]
fn discarded_space_goes_back_to_the_file_system() {
    use std::os::unix::fs::MetadataExt;
    let (_dir, path) = image();
    on_executor(async move {
        let device = open(&path, 16, None);
        device.write(BlockIndex(0), vec![filled(4 << 20, 1)]).await.unwrap();
        device.flush().await.unwrap();
        let before = std::fs::metadata(&path).unwrap().blocks();
        device.discard(BlockIndex(0), BlockCount(1024)).await.unwrap();
        let after = std::fs::metadata(&path).unwrap();
        assert!(after.blocks() + 4096 < before && after.len() == LEN, "{} then {}", before, after.blocks());
    });
}

#[test]
fn i_d6_after_a_failed_write_nothing_is_written_or_flushed() {
    // The kernel's device that is always full.
    let (dir, path) = image();
    on_executor(async move {
        let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        let ring =
            super::Ring::start("full", file, Backend::File, RingOptions { depth: 4, ..RingOptions::default() }, None)
                .unwrap();
        let error = ring.write(0, vec![filled(4096, 1)]).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        let error = ring.write(0, vec![filled(4096, 1)]).await.unwrap_err();
        assert!(error.to_string().contains("I-D6"), "{error}");
        assert!(ring.flush().await.unwrap_err().to_string().contains("I-D6"));
        assert!(ring.flush().await.is_err(), "and the gate still answers");
        ring.read(0, IoBuf::zeroed(4096)).await.unwrap();
        assert_eq!(ring.depth_now(), (0, 0));
        drop((dir, path));
    });
}

#[test]
fn i_d6_what_waits_when_a_write_fails_is_not_tried() {
    on_executor(async move {
        let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        let options = RingOptions { depth: 1, ..RingOptions::default() };
        let ring = super::Ring::start("full", file, Backend::File, options, None).unwrap();
        let writes: Vec<_> = (0..8).map(|_| ring.write(0, vec![filled(4096, 1)])).collect();
        let (flush, read) = (ring.flush(), ring.read(0, IoBuf::zeroed(4096)));
        let errors: Vec<String> =
            futures::future::join_all(writes).await.into_iter().map(|done| done.unwrap_err().to_string()).collect();
        assert!(!errors[0].contains("I-D6"), "{}", errors[0]);
        assert!(errors[1..].iter().all(|error| error.contains("I-D6")), "{errors:?}");
        assert!(flush.await.unwrap_err().to_string().contains("I-D6"));
        read.await.unwrap();
        assert_eq!(ring.depth_now(), (0, 0));
    });
}

/// A namespace behind the kernel's device that takes every command and does nothing.
fn null_drive() -> CommandBackend {
    CommandBackend {
        namespace: 1,
        block_len_bytes: 4096,
        limits: TransferLimits { len_bytes_max: 1 << 20, boundary_bytes: None },
        is_polled: false,
        is_local: true,
        has_paths: false,
        has_volatile_cache: true,
        resets: ResetCount::default(),
        can_deallocate: false,
        retry: RetryLimits { span_max: Duration::from_secs(1), named: [Duration::ZERO; 3] },
    }
}

#[test]
fn i_d6_a_reset_over_unflushed_writes_fences_a_drive_with_a_volatile_cache() {
    const TAKEN_BACK: i32 = -libc::EINTR;
    on_executor(async move {
        let drive = |backend: &CommandBackend| {
            let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
            let backend = Backend::Commands(backend.clone());
            super::Ring::start("null", file, backend, RingOptions::default(), None).unwrap()
        };
        let write = |ring: &super::Ring| ring.write(0, vec![filled(4096, 1)]);

        let backend = null_drive();
        let ring = drive(&backend);
        write(&ring).await.unwrap();
        ring.flush().await.unwrap();
        ring.shared.look_for_reset(TAKEN_BACK);
        write(&ring).await.expect("all was flushed, so nothing was lost");
        ring.shared.look_for_reset(0x281);
        ring.flush().await.expect("a bad block is no reset");
        write(&ring).await.unwrap();
        // As a read is answered that was under way.
        ring.shared.look_for_reset(TAKEN_BACK);
        for error in [ring.flush().await.unwrap_err(), write(&ring).await.unwrap_err()] {
            let text = error.to_string();
            assert!(text.contains("volatile cache") && text.contains("I-D6"), "{text}");
        }
        ring.read(0, IoBuf::zeroed(4096)).await.expect("reads go on");

        // Seen by another core, which has nothing to lose itself.
        let backend = null_drive();
        let (mine, other) = (drive(&backend), drive(&backend));
        write(&mine).await.unwrap();
        other.shared.look_for_reset(0x370);
        assert!(mine.flush().await.unwrap_err().to_string().contains("volatile cache"));
        assert!(write(&mine).await.unwrap_err().to_string().contains("I-D6"));
        write(&other).await.unwrap();
        let under_way = write(&other);
        other.flush().await.unwrap();
        under_way.await.unwrap();
        other.shared.look_for_reset(0x371);
        assert!(other.flush().await.unwrap_err().to_string().contains("I-D6"), "one that no flush covered");

        let ring = drive(&CommandBackend { has_volatile_cache: false, ..null_drive() });
        write(&ring).await.unwrap();
        ring.shared.look_for_reset(TAKEN_BACK);
        write(&ring).await.expect("what is written there is kept");
        ring.flush().await.unwrap();
    });
}

#[test]
fn reading_a_cut_off_file_is_an_error_not_zeros() {
    let (_dir, path) = image();
    on_executor(async move {
        let device = open(&path, 4, None);
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8192).unwrap();
        let error = device.read(BlockIndex(0), IoBuf::zeroed(16384)).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    });
}

#[test]
#[should_panic(expected = "I-C7")]
fn i_c7_a_partial_block_is_our_own_bug() {
    let (_dir, path) = image();
    on_executor(async move {
        drop(open(&path, 4, None).write(BlockIndex(0), vec![filled(8192, 1).slice(0..512)]));
    });
}

#[test]
#[should_panic(expected = "I-C7")]
fn i_c7_an_unaligned_buffer_is_our_own_bug() {
    let (_dir, path) = image();
    on_executor(async move {
        drop(open(&path, 4, None).write(BlockIndex(0), vec![filled(8192, 1).slice(512..4608)]));
    });
}

#[test]
fn a_device_is_locked_against_a_second_process_and_what_is_no_device_is_refused() {
    let (dir, path) = image();
    let lock = DeviceLock::acquire(&path).unwrap();
    assert!(DeviceLock::acquire(&path).unwrap_err().to_string().contains("in use"));
    drop(lock);
    DeviceLock::acquire(&path).unwrap();
    let error = crate::file_device::RawDevice::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("neither"), "{error}");
    crate::file_device::RawDevice::open(&dir.path().join("absent")).unwrap_err();
}

#[test]
fn a_drive_starts_in_the_middle_of_a_turn_and_one_operation_costs_no_extra_call() {
    let (_dir, path) = image();
    on_executor(async move {
        let device = open(&path, 8, None);
        let read = |block| device.read(BlockIndex(block), IoBuf::zeroed(4096));
        let calls = || kiseki_executor::stats().enters;
        let before = calls();
        let first = read(0);
        assert_eq!(calls(), before, "one alone waits for the call that ends the turn");
        let second = read(1);
        assert_eq!(calls(), before + 1, "two are handed over though the turn goes on");
        let third = read(2);
        assert_eq!(calls(), before + 1);
        for done in [first, second, third] {
            done.await.unwrap();
        }
    });
}

#[test]
fn what_was_queued_does_not_wait_behind_long_tasks() {
    let (_dir, path) = image();
    on_executor(async move {
        let device = open(&path, 8, None);
        let calls = || kiseki_executor::stats().enters;
        let (before, seen) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (noted, looked) = (before.clone(), seen.clone());
        kiseki_executor::spawn(async move {
            noted.set(calls());
            drop(device.read(BlockIndex(0), IoBuf::zeroed(4096)));
            let start = Instant::now();
            while start.elapsed() < Duration::from_micros(50) {}
        });
        kiseki_executor::spawn(async move { looked.set(calls()) });
        while seen.get() == 0 {
            kiseki_executor::yield_now().await;
        }
        assert!(seen.get() > before.get(), "the next task runs after it was handed over");
    });
}

#[test]
fn files_work_on_rings_of_every_kind() {
    use kiseki_executor::{Executor, ExecutorOptions, Rings};
    let (_dir, path) = image();
    for (byte, rings, polled) in [(1, Rings::Plain, false), (2, Rings::Wide, false), (3, Rings::Wide, true)] {
        Executor::new(ExecutorOptions { rings, ..ExecutorOptions::default() }).unwrap().run(async {
            let core = kiseki_executor::core_ring();
            assert_eq!(core.takes_commands(), rings == Rings::Wide, "{rings:?}: this kernel has wide rings");
            let pool = BufferPool::new(&[SlabClass { len_bytes: 64 << 10, count: 2 }]);
            let device = open(&path, 8, Some(pool.clone()));
            if polled {
                // Later than a file and the registered memory.
                core.add_polled().unwrap();
                core.add_polled().unwrap();
            }
            let mut registered = pool.alloc(64 << 10);
            registered.fill(byte);
            let parts = vec![registered.freeze(), filled(4096, byte + 10)];
            device.write(BlockIndex(0), parts).await.unwrap();
            device.flush().await.unwrap();
            let found = device.read(BlockIndex(0), pool.alloc(64 << 10)).await.unwrap();
            assert!(found.iter().all(|found| *found == byte), "{rings:?}");
            drop(device);
            let again = open(&path, 8, Some(pool.clone()));
            assert_eq!(again.read(BlockIndex(16), IoBuf::zeroed(4096)).await.unwrap()[0], byte + 10, "{rings:?}");
            // Nothing is on the polled ring, so the core sleeps.
            let sleeps = kiseki_executor::stats().sleeps;
            kiseki_executor::sleep(Duration::from_millis(5)).await;
            assert!(kiseki_executor::stats().sleeps > sleeps, "{rings:?}");
        });
    }
}
