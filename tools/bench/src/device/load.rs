//! The executors: one thread each, as the cores of a node, with a ring on every device.

use super::DeviceArgs;
use super::target::Target;
use super::worker::{Counts, RingLoad, work};
use crate::cpus;
use crate::measure::{CpuTime, ProcessCpu};
use crate::noise::{Noise, fresh_seed};
use crate::output::{Job, Side};
use crate::progress::{Progress, TICK, Tally};
use crate::stop::Stop;
use crate::units::ns;
use anyhow::{Context, Result, anyhow};
use futures::channel::mpsc;
use futures::stream::{FuturesUnordered, StreamExt};
use kiseki_devices::file_device::{open_device, open_device_by};
use kiseki_devices::pool::{BufferPool, POOL_SLOTS_MAX, SlabClass};
use kiseki_devices::ring::RingOptions;
use kiseki_executor::{Executor, ExecutorOptions, spawn};
use kiseki_types::device::Device;
use kiseki_types::{BlockIndex, IoBytes};
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// A new file is filled in pieces of this length, so many at once.
const FILL_LEN_BYTES: u64 = 1 << 20;
const FILL_DEPTH: usize = 16;

/// What all executors share.
struct Common<'a> {
    args: &'a DeviceArgs,
    targets: &'a [Target],
    stop: &'a Stop,
    tally: Arc<Tally>,
    /// All rings are open before any of them works; the main thread waits too.
    ready: Barrier,
    epoch: OnceLock<Instant>,
    seed: u64,
}

/// Runs the load and gives one job for each device.
pub fn run(args: &DeviceArgs, targets: &[Target], stop: &Stop, warnings: &mut Vec<String>) -> Result<Vec<Job>> {
    let common = Common {
        args,
        targets,
        stop,
        tally: Arc::default(),
        ready: Barrier::new(usize::from(args.numjobs) + 1),
        epoch: OnceLock::new(),
        seed: fresh_seed(),
    };
    fill_new_files(&common)?;
    let cpus = cpus::allowed();
    if usize::from(args.numjobs) > cpus.len() {
        warnings.push(format!(
            "--numjobs {} on {} processors: executors wait for each other",
            args.numjobs,
            cpus.len()
        ));
    }
    let (results, cpu, end_ns) = thread::scope(|scope| -> Result<_> {
        let handles: Vec<_> = (0..args.numjobs)
            .map(|job| {
                let common = &common;
                let options =
                    ExecutorOptions { cpu: cpus.get(usize::from(job)).copied(), ..ExecutorOptions::default() };
                scope.spawn(move || {
                    let result = on_executor(common, options, job, load_all);
                    // An executor that never was must not keep the others waiting.
                    if result.is_err() {
                        common.ready.wait();
                    }
                    result
                })
            })
            .collect();
        common.ready.wait();
        let (cpu, end_ns) = watch(&common);
        let results = handles.into_iter().map(|handle| {
            let result = handle.join().map_err(|_| anyhow!("an executor ended before its work was done"))?;
            result.and_then(|inner| inner)
        });
        Ok((results.collect::<Result<Vec<_>>>()?, cpu, end_ns))
    })?;
    let mut jobs = Vec::new();
    for (number, target) in targets.iter().enumerate() {
        let mut counts = Counts::new(args.window());
        let mut unregistered = 0;
        for result in &results {
            counts.merge(&result.counts[number]);
            unregistered += result.unregistered;
        }
        counts.read.close(end_ns);
        counts.write.close(end_ns);
        // The processor time is that of the whole process; with several devices it stands with the first.
        jobs.push(job(args, target, counts, if number == 0 { cpu } else { CpuTime::default() }, unregistered));
    }
    Ok(jobs)
}

fn job(args: &DeviceArgs, target: &Target, counts: Counts, cpu: CpuTime, unregistered: u64) -> Job {
    let read_percent = args.rw.read_percent(args.rwmixread);
    let mut job = Job {
        name: target.path.display().to_string(),
        about: args.about(target.choice.in_use),
        read: (read_percent > 0).then(|| Side::of(counts.read)),
        write: (read_percent < 100).then(|| Side::of(counts.write)),
        sync: (args.fdatasync > 0).then_some(counts.flush),
        errors: counts.errors,
        cpu,
        ..Job::default()
    };
    job.extra.insert("unregistered_buffers".to_owned(), json!(unregistered));
    job.extra.insert("path".to_owned(), json!(target.choice.in_use.word()));
    if !target.choice.reason.is_empty() {
        job.notes.push(format!("not driven by NVMe commands: {}", target.choice.reason));
    }
    if unregistered > 0 {
        job.notes.push(format!("{unregistered} buffers were not registered with the ring"));
    }
    job
}

/// Shows progress until the window has passed; gives our processor time inside it, and when it ended.
fn watch(common: &Common<'_>) -> (CpuTime, u64) {
    let own = ProcessCpu::own();
    let epoch = *common.epoch.get_or_init(Instant::now);
    let window = common.args.window();
    let mut progress = Progress::start("measuring", Some(window.end_ns / 1_000_000));
    let mut begin = own.read().unwrap_or_default();
    let mut is_warm = false;
    loop {
        let now_ns = ns(epoch.elapsed());
        if !is_warm && now_ns >= window.start_ns {
            is_warm = true;
            begin = own.read().unwrap_or_default();
        }
        if now_ns >= window.end_ns || common.stop.is_set() {
            return (own.read().unwrap_or_default().since(&begin), now_ns);
        }
        let next_ns = if is_warm { window.end_ns } else { window.start_ns };
        thread::sleep(Duration::from_nanos(next_ns - now_ns).min(TICK));
        progress.show(now_ns / 1_000_000, &common.tally);
    }
}

/// Runs `task` on an executor of this thread.
fn on_executor<'a, T>(
    common: &'a Common<'a>,
    options: ExecutorOptions,
    job: u16,
    task: impl AsyncFnOnce(&'a Common<'a>, u16) -> T,
) -> Result<T> {
    let executor = Executor::new(options).map_err(|error| {
        anyhow!("executor {job} can't start: {error}; raise the limit of locked memory (ulimit -l unlimited)")
    })?;
    Ok(executor.run(task(common, job)))
}

/// What one executor measured.
struct JobResult {
    /// By device.
    counts: Vec<Counts>,
    /// Buffers that were not in registered memory.
    unregistered: u64,
}

async fn load_all(common: &Common<'_>, job: u16) -> Result<JobResult> {
    let args = common.args;
    let slots = usize::from(args.iodepth) * common.targets.len();
    let pool = BufferPool::new(&[SlabClass { len_bytes: args.bs as usize, count: slots.min(POOL_SLOTS_MAX) }]);
    let opened: Result<Vec<Rc<dyn Device>>> = common
        .targets
        .iter()
        .map(|target| {
            let options = RingOptions { depth: args.iodepth, ..RingOptions::default() };
            Ok(open_device_by(&target.path, &target.choice, options, Some(pool.clone()))?)
        })
        .collect();
    common.ready.wait();
    let epoch = *common.epoch.get_or_init(Instant::now);
    let loads: Vec<Rc<RingLoad>> = opened?
        .into_iter()
        .zip(common.targets)
        .map(|(device, target)| Rc::new(ring_load(args, target, job, device, pool.clone(), epoch)))
        .collect();
    let shared_args = Rc::new(args.clone());
    let mut noise = Noise::new(common.seed ^ u64::from(job).wrapping_mul(0x5851_f42d_4c95_7f2d));
    // Tasks, as the product has them: a set of futures polled as one would cost the executor a second call in every turn that
    // all of them are ready in, at depth 1 each.
    let (working, mut ended) = mpsc::unbounded::<()>();
    for load in loads.iter().flat_map(|load| (0..args.iodepth).map(move |_| load.clone())) {
        let (args, tally, stop, working) =
            (shared_args.clone(), common.tally.clone(), common.stop.clone(), working.clone());
        let seed = noise.word();
        spawn(async move {
            work(load, args, seed, &tally, &stop).await;
            drop(working);
        });
    }
    drop(working);
    assert_eq!(ended.next().await, None, "the last one closes it");
    let unregistered = pool.usage().missed;
    let counts = loads.iter().map(|load| load.counts.replace(Counts::new(load.window))).collect();
    Ok(JobResult { counts, unregistered })
}

fn ring_load(
    args: &DeviceArgs,
    target: &Target,
    job: u16,
    device: Rc<dyn Device>,
    pool: Rc<BufferPool>,
    epoch: Instant,
) -> RingLoad {
    let all = target.len_bytes / args.bs;
    // Sequential executors go through a part each: two streams in one place would be a random load.
    let each = all / u64::from(args.numjobs);
    let window = args.window();
    RingLoad {
        device,
        pool,
        epoch,
        window,
        sequence: (each * u64::from(job), each.max(1)),
        next: Cell::new(0),
        random_count: all,
        counts: RefCell::new(Counts::new(window)),
    }
}

/// Fills the files that we made: reading holes measures nothing, and writing them allocates.
fn fill_new_files(common: &Common<'_>) -> Result<()> {
    if !common.targets.iter().any(|target| target.is_made()) {
        return Ok(());
    }
    let tally = Tally::default();
    let total: u64 = common.targets.iter().filter(|target| target.is_made()).map(|target| target.len_bytes).sum();
    let mut progress = Progress::start("filling", Some(total.div_ceil(FILL_LEN_BYTES)));
    thread::scope(|scope| {
        let filling = scope.spawn(|| {
            on_executor(common, ExecutorOptions::default(), 0, async |common, _| -> Result<()> {
                for target in common.targets.iter().filter(|target| target.is_made()) {
                    fill(common, target, &tally).await?;
                }
                Ok(())
            })
        });
        while !filling.is_finished() {
            thread::sleep(Duration::from_millis(5));
            progress.show_count(&tally);
        }
        filling.join().map_err(|_| anyhow!("filling a new file ended early"))??
    })
}

async fn fill(common: &Common<'_>, target: &Target, tally: &Tally) -> Result<()> {
    let shown = target.path.display();
    let device = open_device(&target.path, RingOptions { depth: FILL_DEPTH as u16, ..RingOptions::default() }, None)?;
    let block = u64::from(device.geometry().block_len_bytes);
    let mut bytes = kiseki_types::IoBuf::zeroed(FILL_LEN_BYTES as usize);
    Noise::new(common.seed).fill(&mut bytes);
    let bytes: IoBytes = bytes.freeze();
    let mut writing = FuturesUnordered::new();
    let mut offset = 0;
    while offset < target.len_bytes && !common.stop.is_set() {
        let len = FILL_LEN_BYTES.min(target.len_bytes - offset);
        writing.push(device.write(BlockIndex(offset / block), vec![bytes.slice(0..len as usize)]));
        offset += len;
        if writing.len() >= FILL_DEPTH {
            writing.next().await.unwrap_or(Ok(())).with_context(|| format!("{shown} can't be filled"))?;
            tally.done(FILL_LEN_BYTES);
        }
    }
    while let Some(written) = writing.next().await {
        written.with_context(|| format!("{shown} can't be filled"))?;
    }
    device.flush().await.with_context(|| format!("{shown} can't be flushed"))
}
