//! One slot of a ring's depth: it has at most one operation in flight, and begins the next when that has ended.

use super::DeviceArgs;
use crate::measure::{Course, ErrorLog, Latency, Meter, Timing, Window};
use crate::noise::Noise;
use kiseki_devices::pool::BufferPool;
use kiseki_types::device::Device;
use kiseki_types::limits::DEVICE_BLOCK_BYTES_MAX;
use kiseki_types::{BlockIndex, IoBuf};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

/// Failures after which a slot gives up: a device that fails writes is fenced by its ring and would fail for ever.
const FAILURES_MAX: u32 = 100;

/// What all slots of one ring share.
pub struct RingLoad {
    /// The device through this executor's ring.
    pub device: Rc<dyn Device>,
    /// Registered memory.
    pub pool: Rc<BufferPool>,
    /// Clock and end of the run.
    pub course: Arc<Course>,
    /// Operations of the part of the device that sequential slots go through: first and count.
    pub sequence: (u64, u64),
    /// Next one of them.
    pub next: Cell<u64>,
    /// Operations of the whole device, for random ones.
    pub random_count: u64,
    /// Where results gather.
    pub counts: RefCell<Counts>,
}

/// Results of one ring.
pub struct Counts {
    /// Reads.
    pub read: Meter,
    /// Writes.
    pub write: Meter,
    /// Flushes.
    pub flush: Latency,
    /// Failures.
    pub errors: ErrorLog,
}

impl Counts {
    /// Nothing counted yet.
    pub fn new(window: Window) -> Counts {
        let (read, write) = (Meter::new(window), Meter::new(window));
        Counts { read, write, flush: Latency::default(), errors: ErrorLog::default() }
    }

    fn record(&mut self, window: Window, reads: bool, start_ns: u64, end_ns: u64, bytes: u64) {
        let meter = if reads { &mut self.read } else { &mut self.write };
        meter.set_window(window);
        meter.record(Timing { intended_ns: start_ns, start_ns, end_ns }, bytes);
    }

    /// Adds another ring's.
    pub fn merge(&mut self, other: &Counts) {
        self.read.merge(&other.read);
        self.write.merge(&other.write);
        self.flush.merge(&other.flush);
        self.errors.merge(&other.errors);
    }
}

impl RingLoad {
    /// The operation to do next, counted in units of the block size.
    fn place(&self, is_random: bool, noise: &mut Noise) -> u64 {
        if is_random {
            return noise.below(self.random_count);
        }
        let (first, count) = self.sequence;
        first + self.next.replace((self.next.get() + 1) % count)
    }
}

/// Works until the window ends.
pub async fn work(load: Rc<RingLoad>, args: Rc<DeviceArgs>, seed: u64) {
    let course = load.course.clone();
    let mut noise = Noise::new(seed);
    let is_random = args.rw.is_random();
    let read_percent = u64::from(args.rw.read_percent(args.rwmixread));
    let blocks_each = args.bs / u64::from(load.device.geometry().block_len_bytes);
    let mut buf = load.pool.alloc(args.bs as usize);
    noise.fill(&mut buf);
    let (mut writes, mut failures) = (0u32, 0);
    while failures < FAILURES_MAX && course.may_begin() {
        let place = load.place(is_random, &mut noise);
        let start = BlockIndex(place * blocks_each);
        let reads = noise.below(100) < read_percent;
        let start_ns = course.now_ns();
        let result = match reads {
            true => load.device.read(start, buf).await.map(Some),
            false => {
                stamp(&mut buf, place, start_ns);
                let bytes = buf.freeze();
                let written = load.device.write(start, vec![bytes.clone()]).await;
                // The ring is done with the memory: it comes back without a copy.
                written.map(|()| bytes.into_buf().ok())
            }
        };
        let now_ns = course.now_ns();
        match result {
            Ok(back) => {
                load.counts.borrow_mut().record(course.window(), reads, start_ns, now_ns, args.bs);
                course.tally.done_in(args.bs, now_ns - start_ns);
                buf = back.unwrap_or_else(|| load.pool.alloc(args.bs as usize));
            }
            Err(error) => {
                let message = format!("{}: {error}", if reads { "read" } else { "write" });
                load.counts.borrow_mut().errors.record(&message);
                course.tally.failed();
                failures += 1;
                buf = load.pool.alloc(args.bs as usize);
            }
        }
        writes += u32::from(!reads);
        if args.fdatasync > 0 && writes >= args.fdatasync {
            writes = 0;
            flush(&load).await;
        }
    }
}

async fn flush(load: &RingLoad) {
    let course = &load.course;
    let start_ns = course.now_ns();
    let flushed = load.device.flush().await;
    let mut counts = load.counts.borrow_mut();
    match flushed {
        Ok(()) if course.window().contains(start_ns) => counts.flush.record(course.now_ns() - start_ns),
        Ok(()) => {}
        Err(error) => counts.errors.record(&format!("flush: {error}")),
    }
}

/// Makes every block different from what was ever written, so that no drive can fold equal ones together.
fn stamp(buf: &mut IoBuf, place: u64, now_ns: u64) {
    for (number, block) in buf.chunks_mut(DEVICE_BLOCK_BYTES_MAX).enumerate() {
        block[..8].copy_from_slice(&(place << 20 | number as u64).to_le_bytes());
        block[8..16].copy_from_slice(&now_ns.to_le_bytes());
    }
}
