//! The executors: one thread each, as the cores of a node, with a ring on every device.

use super::DeviceArgs;
use super::target::Target;
use super::worker::{Counts, RingLoad, work};
use crate::cpus;
use crate::measure::{Course, Spent, Watched, watch};
use crate::noise::{Noise, fresh_seed};
use crate::output::{Job, Side};
use crate::progress::{Progress, Tally};
use crate::stop::Stop;
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
use std::sync::{Arc, Barrier, mpsc as threads};
use std::thread;
use std::time::Duration;

/// A new file is filled in pieces of this length, so many at once.
const FILL_LEN_BYTES: u64 = 1 << 20;
const FILL_DEPTH: usize = 16;

/// What all executors share.
struct Common<'a> {
    args: &'a DeviceArgs,
    targets: &'a [Target],
    course: Arc<Course>,
    /// All rings are open before any of them works; the main thread waits too.
    ready: Barrier,
    seed: u64,
}

/// Runs the load and gives one job for each device.
pub fn run(args: &DeviceArgs, targets: &[Target], stop: &Stop, warnings: &mut Vec<String>) -> Result<Vec<Job>> {
    let plan = args.plan();
    let common = Common {
        args,
        targets,
        course: Arc::new(Course::new(&plan, stop)),
        ready: Barrier::new(usize::from(args.numjobs) + 1),
        seed: fresh_seed(),
    };
    let busy_poll = Duration::from_micros(args.busy_poll_us.into());
    let cpus = cpus::allowed();
    if usize::from(args.numjobs) > cpus.len() {
        warnings.push(format!(
            "--numjobs {} on {} processors: executors wait for each other",
            args.numjobs,
            cpus.len()
        ));
    }
    let (results, watched) = thread::scope(|scope| -> Result<_> {
        let (working, ended) = threads::channel::<()>();
        let handles: Vec<_> = (0..args.numjobs)
            .map(|job| {
                let (common, working) = (&common, working.clone());
                let cpu = cpus.get(usize::from(job)).copied();
                let options = ExecutorOptions { cpu, busy_poll, ..ExecutorOptions::default() };
                scope.spawn(move || {
                    let result = on_executor(options, job, async || load_all(common, job).await);
                    // An executor that never was must not keep the others waiting.
                    if result.is_err() {
                        common.ready.wait();
                    }
                    drop(working);
                    result
                })
            })
            .collect();
        drop(working);
        common.ready.wait();
        let watched = watch(&plan, &common.course, &[], &ended, &mut |_| {});
        let results = handles.into_iter().map(|handle| {
            let result = handle.join().map_err(|_| anyhow!("an executor ended before its work was done"))?;
            result.and_then(|inner| inner)
        });
        Ok((results.collect::<Result<Vec<_>>>()?, watched))
    })?;
    let mut jobs = Vec::new();
    for (number, target) in targets.iter().enumerate() {
        let mut counts = Counts::new(common.course.window());
        let mut unregistered = 0;
        for result in &results {
            counts.merge(&result.counts[number]);
            unregistered += result.unregistered;
        }
        let end_ns = match plan.count {
            Some(_) => counts.read.last_end_ns().max(counts.write.last_end_ns()),
            None => watched.end_ns,
        };
        counts.read.close(end_ns);
        counts.write.close(end_ns);
        // The processor time is that of the whole process; with several devices it stands with the first.
        let spent = if number == 0 { watched.spent } else { Spent::default() };
        jobs.push(job(args, target, counts, spent, unregistered, &watched));
    }
    Ok(jobs)
}

fn job(args: &DeviceArgs, target: &Target, counts: Counts, spent: Spent, unregistered: u64, watched: &Watched) -> Job {
    let read_percent = args.rw.read_percent(args.rwmixread);
    let mut job = Job {
        name: target.path.display().to_string(),
        about: args.about(target.choice.in_use),
        read: (read_percent > 0).then(|| Side::of(counts.read)),
        write: (read_percent < 100).then(|| Side::of(counts.write)),
        sync: (args.fdatasync > 0).then_some(counts.flush),
        errors: counts.errors,
        cpu: spent.own,
        machine: spent.machine,
        ..Job::default()
    };
    job.extra.insert("unregistered_buffers".to_owned(), json!(unregistered));
    job.extra.insert("path".to_owned(), json!(target.choice.in_use.word()));
    if !target.choice.reason.is_empty() {
        job.notes.push(format!("not driven by NVMe commands: {}", target.choice.reason));
    }
    if let Some(steady) = &watched.steady {
        job.extra.insert("steadystate".to_owned(), steady.json());
        job.notes.push(steady.line());
    }
    if unregistered > 0 {
        job.notes.push(format!("{unregistered} buffers were not registered with the ring"));
    }
    job
}

/// Runs `task` on an executor of this thread.
fn on_executor<T>(options: ExecutorOptions, job: u16, task: impl AsyncFnOnce() -> T) -> Result<T> {
    let executor = Executor::new(options).map_err(|error| {
        anyhow!("executor {job} can't start: {error}; raise the limit of locked memory (ulimit -l unlimited)")
    })?;
    Ok(executor.run(task()))
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
    let course = &common.course;
    course.epoch();
    let loads: Vec<Rc<RingLoad>> = opened?
        .into_iter()
        .zip(common.targets)
        .map(|(device, target)| Rc::new(ring_load(args, target, job, device, pool.clone(), course)))
        .collect();
    let shared_args = Rc::new(args.clone());
    let mut noise = Noise::new(common.seed ^ u64::from(job).wrapping_mul(0x5851_f42d_4c95_7f2d));
    // Tasks, as the product has them: a set of futures polled as one would cost the executor a second call in every turn that
    // all of them are ready in, at depth 1 each.
    let (working, mut ended) = mpsc::unbounded::<()>();
    for load in loads.iter().flat_map(|load| (0..args.iodepth).map(move |_| load.clone())) {
        let (args, working) = (shared_args.clone(), working.clone());
        let seed = noise.word();
        spawn(async move {
            work(load, args, seed).await;
            drop(working);
        });
    }
    drop(working);
    assert_eq!(ended.next().await, None, "the last one closes it");
    let unregistered = pool.usage().missed;
    let counts = loads.iter().map(|load| load.counts.replace(Counts::new(course.window()))).collect();
    Ok(JobResult { counts, unregistered })
}

fn ring_load(
    args: &DeviceArgs,
    target: &Target,
    job: u16,
    device: Rc<dyn Device>,
    pool: Rc<BufferPool>,
    course: &Arc<Course>,
) -> RingLoad {
    let all = target.len_bytes / args.bs;
    // Sequential executors go through a part each: two streams in one place would be a random load.
    let each = all / u64::from(args.numjobs);
    RingLoad {
        device,
        pool,
        course: course.clone(),
        sequence: (each * u64::from(job), each.max(1)),
        next: Cell::new(0),
        random_count: all,
        counts: RefCell::new(Counts::new(course.window())),
    }
}

/// Fills the files that we made: reading holes measures nothing, and writing them allocates.
pub fn fill_new_files(targets: &[Target], stop: &Stop) -> Result<()> {
    if !targets.iter().any(|target| target.is_made()) {
        return Ok(());
    }
    let tally = Tally::default();
    let total: u64 = targets.iter().filter(|target| target.is_made()).map(|target| target.len_bytes).sum();
    let mut progress = Progress::start("filling", Some(total.div_ceil(FILL_LEN_BYTES)));
    thread::scope(|scope| {
        let filling = scope.spawn(|| {
            on_executor(ExecutorOptions::default(), 0, async || -> Result<()> {
                for target in targets.iter().filter(|target| target.is_made()) {
                    fill(target, stop, &tally).await?;
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

async fn fill(target: &Target, stop: &Stop, tally: &Tally) -> Result<()> {
    let shown = target.path.display();
    let device = open_device(&target.path, RingOptions { depth: FILL_DEPTH as u16, ..RingOptions::default() }, None)?;
    let block = u64::from(device.geometry().block_len_bytes);
    let mut bytes = kiseki_types::IoBuf::zeroed(FILL_LEN_BYTES as usize);
    Noise::new(fresh_seed()).fill(&mut bytes);
    let bytes: IoBytes = bytes.freeze();
    let mut writing = FuturesUnordered::new();
    let mut offset = 0;
    while offset < target.len_bytes && !stop.is_set() {
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
