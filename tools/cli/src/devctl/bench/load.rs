//! What is done to the drive for one figure.

use futures::stream::{FuturesUnordered, StreamExt};
use kiseki_devices::pool::{BufferPool, SlabClass};
use kiseki_devices::probe::PROBE_LEN_BYTES;
use kiseki_measure::latency::Latency;
use kiseki_measure::noise::{Noise, fresh_seed};
use kiseki_measure::units::ns;
use kiseki_types::BlockIndex;
use kiseki_types::device::Device;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Deepest of the steps.
pub const DEPTH_MAX: u16 = 32;

/// One figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// 4 KiB random reads, one after the other.
    RandomRead1,
    /// 4 KiB random reads, 32 at once.
    RandomRead32,
    /// 1 MiB reads in sequence, 8 at once.
    Read8,
    /// 4 KiB random writes, each flushed, one after the other.
    RandomWrite1,
    /// 4 KiB random writes, each flushed, 32 at once.
    RandomWrite32,
    /// 1 MiB writes in sequence, 8 at once, without flushes.
    Write8,
}

impl Step {
    /// All, in the order in which they are done.
    pub const ALL: [Step; 6] =
        [Step::RandomRead1, Step::RandomRead32, Step::Read8, Step::RandomWrite1, Step::RandomWrite32, Step::Write8];

    pub fn name(self) -> &'static str {
        match self {
            Step::RandomRead1 => "randread-4k-1",
            Step::RandomRead32 => "randread-4k-32",
            Step::Read8 => "read-1m-8",
            Step::RandomWrite1 => "randwrite-4k-1",
            Step::RandomWrite32 => "randwrite-4k-32",
            Step::Write8 => "write-1m-8",
        }
    }

    /// fio's word for the pattern.
    pub fn rw(self) -> &'static str {
        self.name().split('-').next().unwrap_or_default()
    }

    pub fn writes(self) -> bool {
        matches!(self, Step::RandomWrite1 | Step::RandomWrite32 | Step::Write8)
    }

    /// Whether a flush follows each operation and counts into its time.
    pub fn flushes(self) -> bool {
        matches!(self, Step::RandomWrite1 | Step::RandomWrite32)
    }

    pub fn flush_text(self) -> &'static str {
        if self.flushes() { ", fdatasync=1" } else { "" }
    }

    pub fn depth(self) -> u16 {
        match self {
            Step::RandomRead1 | Step::RandomWrite1 => 1,
            Step::RandomRead32 | Step::RandomWrite32 => DEPTH_MAX,
            Step::Read8 | Step::Write8 => 8,
        }
    }

    pub fn len_bytes(self) -> usize {
        match self {
            Step::Read8 | Step::Write8 => 1 << 20,
            _ => 4096,
        }
    }

    fn is_random(self) -> bool {
        !matches!(self, Step::Read8 | Step::Write8)
    }
}

/// What a step gave.
pub struct Measured {
    pub step: Step,
    pub latency: Latency,
    pub elapsed: Duration,
    /// What failed, if something did; the step ended with it.
    pub error: Option<String>,
}

impl Measured {
    pub fn iops(&self) -> f64 {
        match self.elapsed.as_secs_f64() {
            seconds if seconds > 0.0 => self.latency.count() as f64 / seconds,
            _ => 0.0,
        }
    }
}

/// What the slots of a step's depth share.
struct Load {
    device: Rc<dyn Device>,
    pool: Rc<BufferPool>,
    step: Step,
    begin: Instant,
    end: Instant,
    /// First block of what is used (the ends are left alone), and how many operations fit.
    first: u64,
    places: u64,
    next: Cell<u64>,
    latency: RefCell<Latency>,
    error: RefCell<Option<String>>,
}

/// Registered buffers for all steps, as a node's cores have them.
pub fn pool() -> Rc<BufferPool> {
    let slabs = |step: Step| SlabClass { len_bytes: step.len_bytes(), count: usize::from(step.depth()) };
    BufferPool::new(&[slabs(Step::RandomRead32), slabs(Step::Read8)])
}

/// Does one step for `runtime`.
pub async fn measure(device: &Rc<dyn Device>, pool: &Rc<BufferPool>, step: Step, runtime: Duration) -> Measured {
    let geometry = device.geometry();
    let block = u64::from(geometry.block_len_bytes);
    let used = geometry.len_bytes().saturating_sub(2 * PROBE_LEN_BYTES);
    let begin = Instant::now();
    let load = Load {
        device: device.clone(),
        pool: pool.clone(),
        step,
        begin,
        end: begin + runtime,
        first: PROBE_LEN_BYTES / block,
        places: (used / step.len_bytes() as u64).max(1),
        next: Cell::new(0),
        latency: RefCell::default(),
        error: RefCell::default(),
    };
    let mut seeds = Noise::new(fresh_seed());
    let slots: FuturesUnordered<_> = (0..step.depth()).map(|_| slot(&load, seeds.word())).collect();
    slots.collect::<()>().await;
    Measured { step, elapsed: load.begin.elapsed(), latency: load.latency.take(), error: load.error.take() }
}

/// One operation after the other until the time is over or something fails.
async fn slot(load: &Load, seed: u64) {
    let mut noise = Noise::new(seed);
    let blocks_each = load.step.len_bytes() as u64 / u64::from(load.device.geometry().block_len_bytes);
    let mut buf = load.pool.alloc(load.step.len_bytes());
    noise.fill(&mut buf);
    while Instant::now() < load.end && load.error.borrow().is_none() {
        let place = match load.step.is_random() {
            true => noise.below(load.places),
            false => load.next.replace((load.next.get() + 1) % load.places),
        };
        let start = BlockIndex(load.first + place * blocks_each);
        let begun = Instant::now();
        let done = if load.step.writes() {
            // Different from what was ever written, so that no drive can fold equal blocks together.
            buf.chunks_mut(4096).for_each(|page| page[..8].copy_from_slice(&noise.word().to_le_bytes()));
            let bytes = buf.freeze();
            let mut done = load.device.write(start, vec![bytes.clone()]).await;
            if done.is_ok() && load.step.flushes() {
                done = load.device.flush().await;
            }
            done.map(|()| bytes.into_buf().ok())
        } else {
            load.device.read(start, buf).await.map(Some)
        };
        match done {
            Ok(back) => {
                load.latency.borrow_mut().record(ns(begun.elapsed()));
                buf = back.unwrap_or_else(|| load.pool.alloc(load.step.len_bytes()));
            }
            Err(error) => {
                load.error.borrow_mut().get_or_insert(format!("{}: {error}", load.step.rw()));
                return;
            }
        }
    }
}
