//! The data path of one core, stage by stage and whole, with the product's own functions.
//!
//! Every thread has its own input and runs the stages in the same order, all threads in the same stage at a time.

mod input;
mod path;
mod ports;
mod stages;
mod stream;

use crate::cpus;
use crate::device::seconds;
use crate::manifest::Manifest;
use crate::measure::{CpuTime, MachineCpu, Meter, Timing, Window, thread_cpu_ns};
use crate::output::{Job, OutputArgs, Report, Side};
use crate::progress::{Progress, TICK, Tally};
use crate::stop::Stop;
use crate::units::{binary, ns, parse_bytes, parse_duration};
use crate::usage::usage;
use anyhow::{Result, anyhow};
use clap::Args;
use input::{Data, Input};
use kiseki_types::fragment::StripeShape;
use serde::Serialize;
use serde_json::json;
use stages::{Direction, Stage};
use std::rc::Rc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const EXAMPLES: &str = "\
Examples:
  # every stage and the whole, on one pinned core
  kiseki-bench pipeline
  # two cores at once: what they take from each other
  kiseki-bench pipeline --threads 2 --runtime 5s
  # only what bounds ingest, over data that dedups and compresses, as JSON
  kiseki-bench pipeline --data mixed --stage kernels --stage whole --json

The stages of the write path are measured alone over chunks in memory, then `kernels` does cut, id, seal and encode
in place, and `whole` all that the server does from received bytes to fragments with headers, copies included.";

/// Arguments of `pipeline`.
#[derive(Args, Clone, Debug, Serialize)]
#[command(after_help = EXAMPLES)]
pub struct PipelineArgs {
    /// What is stored
    #[arg(long, value_enum, default_value = "random")]
    pub data: Data,
    /// Bytes of input for each thread; more than the caches hold, so that it comes from memory as received data does
    #[arg(long, value_parser = parse_bytes, default_value = "64m")]
    pub size: u64,
    /// How long to measure each stage
    #[arg(long, value_parser = parse_duration, default_value = "1s")]
    #[serde(serialize_with = "seconds")]
    pub runtime: Duration,
    /// Threads, each pinned to a processor of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: u16,
    /// Data and parity fragments
    #[arg(long, value_name = "K+M", value_parser = parse_shape, default_value = "4+2")]
    #[serde(serialize_with = "shape_text")]
    pub shape: StripeShape,
    /// Streams that `whole` stores at the same time on each thread, as a node does that takes several uploads
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub streams: u16,
    /// Only these stages; repeatable
    #[arg(long, value_enum, value_name = "STAGE")]
    pub stage: Vec<Stage>,
    /// Seed of the input; without it every run has its own
    #[arg(long)]
    pub seed: Option<u64>,
    /// How results are written.
    #[command(flatten)]
    pub output: OutputArgs,
}

fn shape_text<S: serde::Serializer>(shape: &StripeShape, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{}+{}", shape.data, shape.parity))
}

/// Parses `4+2`.
fn parse_shape(text: &str) -> std::result::Result<StripeShape, String> {
    let parts = text.split_once('+').and_then(|(data, parity)| Some((data.parse().ok()?, parity.parse().ok()?)));
    let shape = parts.map(|(data, parity)| StripeShape { data, parity });
    shape.filter(|shape| shape.data > 1 && shape.width() <= 32).ok_or_else(|| {
        format!(
            "{text:?} is no stripe; give data and parity fragments, such as 4+2, at least two and at most 32 in all"
        )
    })
}

/// What one thread found out about one stage.
struct StageResult {
    meter: Meter,
    cpu_ns: u64,
    machine: MachineCpu,
}

/// Measures.
pub fn run(args: &PipelineArgs, stop: Stop) -> Result<Report> {
    if args.size < 16 << 20 || args.size > 16 << 30 {
        return Err(usage(format!("--size {}: give 16m to 16g, so that there are some chunks", args.size)));
    }
    if args.runtime.is_zero() {
        return Err(usage("--runtime 0: measure for some time, such as 1s"));
    }
    let mut stages: Vec<Stage> = Stage::all().into_iter().filter(|stage| args.stage.contains(stage)).collect();
    if stages.is_empty() {
        stages = Stage::all();
    }
    let cpus = cpus::allowed();
    let mut warnings = Vec::new();
    if usize::from(args.threads) > cpus.len() {
        warnings.push(format!("--threads {} on {} processors: threads wait for each other", args.threads, cpus.len()));
    }
    let seed = args.seed.unwrap_or_else(crate::noise::fresh_seed);
    let mut options = serde_json::to_value(args)?;
    options["seed"] = json!(seed);
    let manifest = Manifest::new("pipeline", json!("memory"), options);
    let (barrier, tally, ended) = (Barrier::new(usize::from(args.threads)), Tally::default(), AtomicBool::new(false));
    let results = thread::scope(|scope| -> Result<Vec<Vec<StageResult>>> {
        let handles: Vec<_> = (0..args.threads)
            .map(|number| {
                let cpu = (usize::from(number) < cpus.len()).then(|| cpus[usize::from(number)]);
                let (barrier, tally, stop, stages) = (&barrier, &tally, &stop, &stages);
                scope.spawn(move || {
                    // Refused, it runs where the system puts it: the figures are noisier, not wrong.
                    let _ = cpu.map(cpus::pin);
                    let input =
                        Rc::new(Input::new(args.data, args.size as usize, seed.wrapping_add(u64::from(number))));
                    let run_stage = |stage: &Stage| measure(*stage, args, &input, barrier, tally, stop);
                    stages.iter().map(run_stage).collect::<Vec<_>>()
                })
            })
            .collect();
        scope.spawn(|| show(ns(args.runtime) / 1_000_000 * stages.len() as u64, &tally, &ended));
        let results = handles.into_iter().map(|handle| handle.join().map_err(|_| anyhow!("a thread ended early")));
        let results = results.collect();
        ended.store(true, Ordering::Relaxed);
        results
    })?;
    let jobs = stages.iter().enumerate().map(|(at, stage)| {
        let of_stage: Vec<&StageResult> = results.iter().filter_map(|thread| thread.get(at)).collect();
        job(*stage, args, &of_stage)
    });
    Ok(Report { manifest, jobs: jobs.collect(), warnings })
}

/// Runs one stage on this thread: once through for warmth, then until the time is over.
fn measure(
    stage: Stage,
    args: &PipelineArgs,
    input: &Rc<Input>,
    barrier: &Barrier,
    tally: &Tally,
    stop: &Stop,
) -> StageResult {
    let window = Window { start_ns: 0, end_ns: ns(args.runtime) };
    let mut work = stage.prepare(input, args.shape, args.streams);
    let mut warm = 0;
    while warm < input.bytes().len() as u64 && !stop.is_set() {
        warm += work.step().max(1);
    }
    let mut meter = Meter::new(window);
    barrier.wait();
    let (machine_begin, begin, cpu_begin_ns) = (MachineCpu::now(), Instant::now(), thread_cpu_ns());
    let mut start_ns = 0;
    while start_ns < window.end_ns && !stop.is_set() {
        let bytes = work.step();
        let end_ns = ns(begin.elapsed());
        meter.record(Timing { intended_ns: start_ns, start_ns, end_ns }, bytes);
        tally.done(bytes);
        start_ns = end_ns;
    }
    let cpu_ns = thread_cpu_ns() - cpu_begin_ns;
    let machine = machine_begin.and_then(|begin| Some(MachineCpu::now()?.since(&begin)));
    meter.close(start_ns);
    StageResult { meter, cpu_ns, machine: machine.unwrap_or_default() }
}

fn show(all_ms: u64, tally: &Tally, ended: &AtomicBool) {
    let mut progress = Progress::start("measuring", Some(all_ms));
    let begin = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        thread::sleep(TICK / 4);
        progress.show(ns(begin.elapsed()) / 1_000_000, tally);
    }
}

fn job(stage: Stage, args: &PipelineArgs, results: &[&StageResult]) -> Job {
    let mut meter = results[0].meter.clone();
    results[1..].iter().for_each(|result| meter.merge(&result.meter));
    let cpu_ns: u64 = results.iter().map(|result| result.cpu_ns).sum();
    let per_core = meter.bandwidth_bytes() / results.len() as f64;
    let per_cpu_second = if cpu_ns > 0 { meter.bytes() as f64 * 1e9 / cpu_ns as f64 } else { 0.0 };
    let about =
        format!("{}, data={}, {} threads", stage.about(args.shape, args.streams), args.data.word(), results.len());
    let mut job = Job { name: stage.word(), about, ..Job::default() };
    job.cpu = CpuTime { user_ns: cpu_ns, system_ns: 0 };
    job.machine = results[0].machine;
    job.extra.insert("bw_per_core_bytes".to_owned(), json!(per_core as u64));
    job.extra.insert("bw_per_cpu_second_bytes".to_owned(), json!(per_cpu_second as u64));
    job.notes.push(format!(
        "core  : {}/s ({:.3} GiB/s) of wall time, {:.3} GiB/s of processor time",
        binary(per_core),
        per_core / (1u64 << 30) as f64,
        per_cpu_second / (1u64 << 30) as f64
    ));
    match stage.direction() {
        Direction::Write => job.write = Some(Side::of(meter)),
        Direction::Read => job.read = Some(Side::of(meter)),
    }
    job
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_checked() {
        assert_eq!(parse_shape("4+2"), Ok(StripeShape { data: 4, parity: 2 }));
        for text in ["", "4", "1+2", "0+0", "30+3", "4+2+1", "a+b", "300+1"] {
            assert!(parse_shape(text).is_err(), "{text:?}");
        }
    }
}
