//! `kiseki-bench`: measures devices, the data path of one core, whole engines, Raft groups, links between cores, and S3
//! endpoints, ours or others'.
//!
//! It drives the product's own code (rings, kernels) from outside, and S3 as any client does. What the figures mean is
//! told in `docs/bench.md`. Reading order: [`measure`], [`output`], then a verb: [`device`], [`pipeline`],
//! [`engine`], [`raft`], [`rpc`], [`s3`], and on its client [`mixed`] and [`ingest`]. [`doctor`] looks at the machine.
#![forbid(unsafe_code)]

mod compare;
mod cpus;
mod device;
mod doctor;
mod engine;
mod ingest;
mod length;
mod load_args;
mod manifest;
mod measure;
mod mixed;
mod output;
mod pipeline;
mod plot;
mod progress;
mod raft;
mod report;
mod results;
mod rpc;
mod run_dir;
mod s3;
mod stop;
mod sweep;
mod usage;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use kiseki_measure::{noise, units};
use output::{Job, OutputArgs, Report};
use std::process::ExitCode;
use stop::Stop;
use usage::Usage;

/// Of a machine that is measured. Above it, a percentile that one operation in a hundred decides may be somebody else's.
const STEAL_IN_RUN_PERCENT_MAX: f64 = 1.0;

/// Measures devices, the data path of one core, engines, Raft groups, links between cores, and S3 endpoints.
///
/// Words and JSON keys are fio's. Exit code: 0 when all went well, 1 when an operation failed, 2 for bad arguments.
/// Ctrl-C ends a measurement early and reports what there is; a second one ends the program.
#[derive(Parser)]
#[command(name = "kiseki-bench", version, about, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Raw figures of files and block devices through the product's rings, with direct I/O
    Device(device::DeviceArgs),
    /// Each stage of the data path alone and all of them together, on pinned cores, in bytes a second
    Pipeline(pipeline::PipelineArgs),
    /// PUT and GET through the engine of a node that is made for the run, without a network
    Engine(engine::EngineArgs),
    /// Calls between two cores over TLS on the loopback, as nodes make them, beside plain rustls
    #[command(visible_alias = "link")]
    Rpc(rpc::RpcArgs),
    /// Commits of Raft groups with three members, each on an executor of its own, over links on the loopback
    Raft(raft::RaftArgs),
    /// PUT and GET against an S3 endpoint, closed loop or at a rate
    S3(s3::S3Args),
    /// Loads shaped like training and serving against an S3 endpoint, one or several at once
    Mixed(mixed::MixedArgs),
    /// Uploads a directory to an S3 endpoint, and tells what the product's chunking finds twice in it
    Ingest(ingest::IngestArgs),
    /// A page and plots from results that are there already
    Report(report::ReportArgs),
    /// Two sides of results: medians, spread, and a plain verdict
    Compare(compare::CompareArgs),
    /// What on this machine spoils figures: clocks, other work, steal, stalls of disks, limits
    Doctor(doctor::DoctorArgs),
    /// Prints completions for a shell
    #[command(after_help = "Example:\n  kiseki-bench completion bash > /etc/bash_completion.d/kiseki-bench")]
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Writes the manual pages into a directory
    #[command(hide = true)]
    Man {
        /// The directory
        dir: std::path::PathBuf,
    },
}

/// The server's heap, so that what runs in this process costs what it costs there. Tests count what is allocated instead.
#[cfg(not(test))]
#[global_allocator]
static HEAP: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Refused where there are no huge pages: then they are small.
    let _ = kiseki_server::heap::keep_pages_small();
    match run(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kiseki-bench: {error:#}");
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Device(args) => finish(&args.output, |stop| device::run(&args, stop)),
        Verb::Pipeline(args) => finish(&args.output, |stop| pipeline::run(&args, stop)),
        Verb::Engine(args) => finish(&args.output, |stop| engine::run(&args, stop)),
        Verb::Rpc(args) => finish(&args.output, |stop| rpc::run(&args, stop)),
        Verb::Raft(args) => finish(&args.output, |stop| raft::run(&args, stop)),
        Verb::S3(args) => finish(&args.output, |stop| s3::run(&args, stop)),
        Verb::Mixed(args) => finish(&args.output, |stop| mixed::run(&args, stop)),
        Verb::Ingest(args) => finish(&args.output, |stop| ingest::run(&args, stop)),
        Verb::Report(args) => report::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Compare(args) => compare::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "kiseki-bench", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Man { dir } => {
            clap_mangen::generate_to(Cli::command(), dir)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn finish(output: &OutputArgs, measure: impl FnOnce(Stop) -> Result<Report>) -> Result<ExitCode> {
    output.check()?;
    let mut report = measure(Stop::on_signals()?)?;
    report.warnings.extend(steal_warning(&report.jobs));
    report.print(output)?;
    Ok(if report.error_count() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a run has to say of time that other machines took while it was measured.
fn steal_warning(jobs: &[Job]) -> Option<String> {
    let percents = jobs.iter().map(|job| (job.machine.percent(job.machine.steal), job));
    let (percent, job) = percents.max_by(|one, other| one.0.total_cmp(&other.0))?;
    let of = if jobs.len() > 1 { format!("of {} ({}) ", job.name, job.about) } else { String::new() };
    (percent > STEAL_IN_RUN_PERCENT_MAX).then(|| {
        format!("other machines took {percent:.1} % of the processors' time in the measured part {of}(steal): measure again, in turns; see `kiseki-bench doctor`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use measure::MachineCpu;

    #[test]
    fn the_arguments_make_sense() {
        Cli::command().debug_assert();
        // As with fio, an option given again counts; one that gathers values gathers.
        let line = ["kiseki-bench", "s3", "--size", "1k", "--server-pid", "1", "--size", "2k", "--server-pid", "2"];
        let Verb::S3(args) = Cli::parse_from(line).verb else { panic!("the verb is s3") };
        assert_eq!((args.load.size, args.target.server_pid), (2048, vec![1, 2]));
    }

    #[test]
    fn a_job_that_other_machines_took_time_from_says_so() {
        let job = |name: &str, steal| Job {
            name: name.to_owned(),
            machine: MachineCpu { total: 1000, busy: 800, steal },
            ..Job::default()
        };
        assert_eq!(steal_warning(&[job("a", 10)]), None);
        assert!(steal_warning(&[job("a", 11)]).is_some_and(|text| text.contains("1.1 %")));
        let text = steal_warning(&[job("a", 0), job("b", 20), job("c", 11)]).unwrap();
        assert!(text.contains("2.0 %") && text.contains("of b"), "{text}");
        assert_eq!(steal_warning(&[Job::default()]), None, "where the kernel does not say");
    }
}
