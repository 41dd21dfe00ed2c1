//! What the tests have in common: which drives, which ways to them, and bytes that tell one write from another.

use kiseki_devices::file_device::open_device_by;
use kiseki_devices::nvme::path::{PathChoice, PathInUse, PathPreference};
use kiseki_devices::pool::BufferPool;
use kiseki_devices::ring::RingOptions;
use kiseki_executor::{Executor, ExecutorOptions, Rings};
use kiseki_types::device::Device;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;

pub const BLOCK: usize = 4096;

pub fn drives() -> Vec<PathBuf> {
    let named = std::env::var("KISEKI_NVME_DRIVES").expect("KISEKI_NVME_DRIVES names drives that may be overwritten");
    named.split_whitespace().map(PathBuf::from).collect()
}

/// The drive that an environment variable names.
pub fn named(variable: &str, what: &str) -> PathBuf {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} names {what}")).into()
}

/// A way to a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The block device.
    Block,
    /// Commands that are answered by interrupts.
    Interrupt,
    /// Commands that are polled.
    Polled,
}

/// Whether the driver has poll queues.
pub fn can_poll() -> bool {
    std::fs::read_to_string("/sys/module/nvme/parameters/poll_queues").unwrap().trim() != "0"
}

/// How commands can be sent here, the best way last.
pub fn command_ways() -> Vec<Way> {
    if can_poll() { vec![Way::Interrupt, Way::Polled] } else { vec![Way::Interrupt] }
}

pub fn on_ring<T>(rings: Rings, task: impl Future<Output = T>) -> T {
    Executor::new(ExecutorOptions { rings, ..ExecutorOptions::default() }).expect("an executor").run(task)
}

pub fn on_executor<T>(task: impl Future<Output = T>) -> T {
    on_ring(Rings::default(), task)
}

pub fn open(path: &Path, way: Way, pool: Option<Rc<BufferPool>>) -> Rc<dyn Device> {
    open_with(path, way, RingOptions::default().depth, pool)
}

pub fn open_with(path: &Path, way: Way, depth: u16, pool: Option<Rc<BufferPool>>) -> Rc<dyn Device> {
    let preference = if way == Way::Block { PathPreference::IoUring } else { PathPreference::Passthrough };
    let mut choice = PathChoice::make(path, preference).unwrap();
    if way == Way::Interrupt {
        choice = choice.without_polling();
    }
    let wanted = match way {
        Way::Block => PathInUse::Block,
        Way::Interrupt => PathInUse::Passthrough,
        Way::Polled => PathInUse::PassthroughPolled,
    };
    assert_eq!(choice.in_use, wanted, "{}", path.display());
    open_device_by(path, &choice, RingOptions { depth, ..RingOptions::default() }, pool).unwrap()
}

/// A cheap sequence of numbers.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

pub fn fill(bytes: &mut [u8], seed: u64) {
    let mut numbers = Numbers(seed);
    for chunk in bytes.chunks_mut(8) {
        let number = numbers.next(u64::MAX).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        chunk.copy_from_slice(&number[..chunk.len()]);
    }
}
