//! A controller that is reset while commands are under way: what was answered is there, nothing else than what was written ever
//! is, and the device goes on or says why it does not.

use crate::support::{BLOCK, Way, command_ways, fill, named, on_executor, open};
use kiseki_devices::nvme::node::NvmeNode;
use kiseki_types::device::Device;
use kiseki_types::{BlockIndex, IoBuf};
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Writers, each with blocks of its own: so many commands are under way at once.
const WRITERS: u64 = 32;
const BLOCKS_EACH: u64 = 8;
const RESETS: u32 = 6;

/// What a block may hold.
#[derive(Clone, Copy, Default)]
struct Known {
    /// Version of the last write that was answered; 0 for none.
    answered: u64,
    /// Version of the last one that was begun.
    begun: u64,
}

fn content(block: u64, version: u64) -> IoBuf {
    let mut buf = IoBuf::zeroed(BLOCK);
    if version > 0 {
        fill(&mut buf, block << 20 | version);
    }
    buf
}

/// Resets the controller of `path` several times. The kernel answers when it is done.
fn reset_several_times(path: &Path, done: &AtomicBool) {
    let name = NvmeNode::of(path).unwrap().controller();
    let file = Path::new("/sys/class/nvme").join(name.file_name().unwrap()).join("reset_controller");
    for _ in 0..RESETS {
        // Load between two resets; nothing to wait for.
        std::thread::sleep(Duration::from_millis(150));
        std::fs::write(&file, "1").unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
    std::thread::sleep(Duration::from_millis(150));
    done.store(true, Ordering::SeqCst);
}

struct Load {
    device: Rc<dyn Device>,
    known: RefCell<Vec<Known>>,
    failure: RefCell<Option<String>>,
    writes: Cell<u64>,
    ended: Cell<u64>,
}

async fn write_and_read(load: Rc<Load>, writer: u64, done: &'static AtomicBool) {
    let mut version = 0;
    'all: while !done.load(Ordering::SeqCst) {
        version += 1;
        for block in (writer * BLOCKS_EACH..).take(BLOCKS_EACH as usize) {
            load.known.borrow_mut()[block as usize].begun = version;
            match load.device.write(BlockIndex(block), vec![content(block, version).freeze()]).await {
                Ok(()) => load.known.borrow_mut()[block as usize].answered = version,
                Err(error) => {
                    load.failure.borrow_mut().get_or_insert(error.to_string());
                    break 'all;
                }
            }
            load.writes.set(load.writes.get() + 1);
            // Reads have to come through whatever becomes of writes.
            let found = load.device.read(BlockIndex(block), IoBuf::zeroed(BLOCK)).await.unwrap();
            assert!(
                found[..] == content(block, version)[..],
                "block {block} just after version {version} was answered"
            );
        }
    }
    load.ended.set(load.ended.get() + 1);
}

/// Returns why writing ended early.
fn under_resets(path: &Path, way: Way) -> Option<String> {
    let done: &'static AtomicBool = Box::leak(Box::default());
    let count = (WRITERS * BLOCKS_EACH) as usize;
    let (known, failure) = on_executor(async {
        let device = open(path, way, None);
        for block in 0..count as u64 {
            device.write(BlockIndex(block), vec![content(block, 0).freeze()]).await.unwrap();
        }
        device.flush().await.unwrap();
        let resetting = std::thread::spawn({
            let path = path.to_owned();
            move || reset_several_times(&path, done)
        });
        let load = Rc::new(Load {
            device,
            known: RefCell::new(vec![Known::default(); count]),
            failure: RefCell::default(),
            writes: Cell::new(0),
            ended: Cell::new(0),
        });
        for writer in 0..WRITERS {
            kiseki_executor::spawn(write_and_read(load.clone(), writer, done));
        }
        while load.ended.get() < WRITERS {
            kiseki_executor::sleep(Duration::from_millis(5)).await;
        }
        resetting.join().unwrap();
        assert!(load.writes.get() > 0, "nothing was written");
        if load.failure.borrow().is_none() {
            load.device.flush().await.unwrap();
        } else {
            let refused = load.device.write(BlockIndex(0), vec![content(0, 1).freeze()]).await.unwrap_err().to_string();
            assert!(refused.contains("not tried") && refused.contains("I-D6"), "I-D6: {refused}");
        }
        (load.known.take(), load.failure.take())
    });
    // Opened again it is trusted again, and holds what was answered.
    on_executor(async {
        let device = open(path, way, None);
        for (block, known) in (0..).zip(&known) {
            let found = device.read(BlockIndex(block), IoBuf::zeroed(BLOCK)).await.unwrap();
            let fits =
                [known.answered, known.begun].into_iter().any(|version| found[..] == content(block, version)[..]);
            let Known { answered, begun } = known;
            assert!(fits, "{way:?} on {}: block {block} holds neither version {answered} nor {begun}", path.display());
        }
        device.write(BlockIndex(0), vec![content(0, 1).freeze()]).await.unwrap();
        device.flush().await.unwrap();
    });
    failure
}

#[test]
#[ignore = "needs NVMe drives: make test-nvme"]
fn i_l5_a_drive_without_a_volatile_cache_goes_on_through_resets() {
    let path: PathBuf = named("KISEKI_NVME_CACHELESS", "a drive without a volatile cache");
    for way in command_ways() {
        let failure = under_resets(&path, way);
        assert_eq!(failure, None, "{way:?}: a reset is no reason to give up a sound drive");
    }
}

#[test]
#[ignore = "needs NVMe drives: make test-nvme"]
fn i_d6_a_drive_with_a_volatile_cache_is_fenced_by_a_reset_with_the_reason() {
    let path = named("KISEKI_NVME_SLOW", "a slow drive with a volatile cache");
    for way in command_ways() {
        let failure = under_resets(&path, way).expect("I-D6: a reset takes writes back");
        let is_told = failure.contains("controller was reset") && failure.contains("volatile cache");
        assert!(is_told || failure.contains("not tried"), "I-D6: {way:?}: {failure}");
    }
}
