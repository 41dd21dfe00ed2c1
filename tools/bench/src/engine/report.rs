//! A run from begin to end: the node's directory, the node, what its cores measured.

use super::EngineArgs;
use super::counts::Counts;
use super::load::{CoreResult, Run, on_core};
use super::node_dir::NodeDir;
use crate::manifest::Manifest;
use crate::measure::{CpuTime, Latency, Meter, Spent};
use crate::output::{Job, Report, Side};
use crate::progress::{Progress, TICK};
use crate::stop::Stop;
use crate::units::{binary, ns};
use anyhow::{Result, anyhow};
use kiseki_server::executor::CoreWork;
use kiseki_server::node;
use serde_json::json;
use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

/// Between two looks at whether the measured part has begun.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Runs it all.
pub fn run(args: &EngineArgs, stop: &Stop) -> Result<Report> {
    let seed = args.load.seed.unwrap_or_else(crate::noise::fresh_seed);
    let mut options = serde_json::to_value(args)?;
    options["seed"] = json!(seed);
    options["read_objects"] = json!(args.read_objects());
    options["lanes"] = json!(args.lanes());
    options["shape"] = json!(args.shape_text());
    let node_dir = NodeDir::make(args)?;
    options["device_size"] = json!(node_dir.device_len_bytes());
    let manifest = Manifest::new("engine", json!({"dir": node_dir.path()}), options);
    let mut warnings = node_dir.warnings();
    let (shared, config) = (Arc::new(Run::new(args, seed, stop)), node_dir.config(args)?);
    let run = shared.clone();
    let work: CoreWork = Arc::new(move |open| Box::pin(on_core(run.clone(), open)));
    let (worked, used) = thread::scope(|scope| {
        let node = scope.spawn(|| node::work(config, &work));
        let used = watch(&shared, &node);
        (node.join(), used)
    });
    let worked = worked.map_err(|_| anyhow!("the node died"))?;
    if let Some(reason) = shared.steps.failure() {
        return Err(anyhow!("{reason}"));
    }
    worked?;
    drop(node_dir);
    let used = used.ok_or_else(|| anyhow!("the node ended before anything was measured"))?;
    let job = job(&shared, shared.take_results(), used, &mut warnings);
    Ok(Report { manifest, jobs: vec![job], warnings })
}

/// What this process used during the window, and when that ended.
struct Used {
    spent: Spent,
    end_ns: u64,
}

/// Shows progress, and looks at the processor time when the window begins and ends. `None`: the node ended before.
fn watch(run: &Run, node: &ScopedJoinHandle<'_, Result<()>>) -> Option<Used> {
    let window = run.window;
    let mut progress = Progress::start("preparing", None);
    let epoch = loop {
        if let Some(epoch) = run.epoch.get() {
            break *epoch;
        }
        if node.is_finished() {
            return None;
        }
        thread::sleep(LOOK_INTERVAL);
        progress.show_count(&run.tally);
    };
    drop(progress);
    let mut progress = Progress::start("measuring", Some(window.end_ns / 1_000_000));
    let mut begin = Spent::now();
    let mut is_warm = false;
    loop {
        let now_ns = ns(epoch.elapsed());
        if !is_warm && now_ns >= window.start_ns {
            is_warm = true;
            begin = Spent::now();
        }
        if now_ns >= window.end_ns || run.stop.is_set() || node.is_finished() {
            return Some(Used { spent: Spent::now().since(&begin), end_ns: now_ns });
        }
        let next_ns = if is_warm { window.end_ns } else { window.start_ns };
        thread::sleep(Duration::from_nanos(next_ns - now_ns).min(TICK));
        progress.show(now_ns / 1_000_000, &run.tally);
    }
}

fn job(run: &Run, results: Vec<CoreResult>, used: Used, warnings: &mut Vec<String>) -> Job {
    let args = &run.args;
    let (mut read, mut write) = (Meter::new(run.window), Meter::new(run.window));
    let (mut first_byte, mut counts) = (Latency::default(), Counts::default());
    let (mut load_cpu_ns, mut never_begun, mut checked) = (0, 0, 0);
    let mut job = Job { name: args.load.op.word(), about: args.about(), ..Job::default() };
    for result in results {
        read.merge(&result.measured.read);
        write.merge(&result.measured.write);
        first_byte.merge(&result.measured.first_byte);
        job.errors.merge(&result.measured.errors);
        counts = counts.plus(&result.counts);
        load_cpu_ns += result.load_cpu_ns;
        checked += result.checked;
        never_begun += result.never_begun.len() as u64;
        // Which operation each would have been is not decided; what waited shows where most operations are.
        let meter = if args.load.op.get_percent >= 50 { &mut read } else { &mut write };
        result.never_begun.into_iter().for_each(|due_ns| meter.record_never_begun(due_ns, used.end_ns));
    }
    read.close(used.end_ns);
    write.close(used.end_ns);
    job.read = args.load.op.reads().then_some(Side { meter: read, first_byte: Some(first_byte) });
    job.write = args.load.op.writes().then(|| Side::of(write));
    job.is_open_loop = args.load.rate.is_some();
    // Making and checking contents is the load's own work, all of it in user mode.
    let own = used.spent.own;
    job.cpu = CpuTime { user_ns: own.user_ns.saturating_sub(load_cpu_ns), ..own };
    job.machine = used.spent.machine;
    let ops = job.ops();
    job.extra = counts.json(ops);
    job.notes = counts.lines(ops);
    job.extra.insert("load_cpu_ns".to_owned(), json!(load_cpu_ns));
    job.extra.insert("never_begun_ios".to_owned(), json!(never_begun));
    job.extra.insert("read_back_objects".to_owned(), json!(checked));
    if ops == 0 {
        warnings.push("no operation ended within --runtime; measure longer".to_owned());
    }
    if never_begun > 0 {
        let rate = args.load.rate.unwrap_or(0.0);
        warnings
            .push(format!("{never_begun} operations were due and never begun: --rate {rate} is more than was served"));
    }
    if args.load.verify {
        let part = if checked > 0 { format!(", {checked} objects read back") } else { String::new() };
        let bytes = job.read.as_ref().map_or(0, |side| side.meter.bytes());
        job.notes.push(format!("verify: every byte of {} of GETs{part}", binary(bytes as f64)));
    }
    job
}
