//! Raft groups of three members: how many commands are committed a second, how long one takes, what it costs.
//!
//! Each member is an executor of its own on a thread of its own, with a journal and tables on real files, and reaches the others
//! over links on the loopback, as nodes do. There is no engine: commands are bytes.

mod member;

use crate::cpus;
use crate::load_args::SpanArgs;
use crate::manifest::Manifest;
use crate::output::{Job, OutputArgs, Report, Side};
use crate::rpc::members;
use crate::run_dir::RunDir;
use crate::stop::Stop;
use crate::units::{binary, ns, parse_bytes};
use crate::usage::usage;
use anyhow::{Context, Result, anyhow};
use clap::Args;
use kiseki_executor::{BUSY_POLL, Executor, ExecutorOptions};
use kiseki_raft_members::WRITER_LEN_BYTES;
use member::{Counted, Run};
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

/// Members of a group.
const MEMBERS: u16 = 3;

/// Longest command: what a parcel takes in its message, with room for what stands around it.
const COMMAND_LEN_BYTES_MAX: u64 = 1 << 20;

const EXAMPLES: &str = "\
Examples:
  # one group, one command at a time: what a commit takes
  kiseki-bench raft --dir /data --writers 1
  # 16 groups, 256 writers; members on processors of their own
  kiseki-bench raft --dir /data --groups 16 --writers 256 --cpus 1,2,3
  # commands as long as a small object beside its name
  kiseki-bench raft --dir /data --command-bytes 4k --writers 64 --json";

/// Arguments of `raft`.
#[derive(Args, Clone, Debug, Serialize)]
#[command(after_help = EXAMPLES)]
pub struct RaftArgs {
    /// Groups; the first member leads them all, and they share its journal
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub groups: u16,
    /// Writers of all groups together, each with one command at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub writers: u16,
    /// Bytes of a command, up to 1m
    #[arg(long, value_parser = parse_bytes, default_value = "256")]
    pub command_bytes: u64,
    /// Where the members' directories are made; they are removed afterwards
    #[arg(long, default_value = ".", value_name = "DIRECTORY")]
    pub dir: PathBuf,
    /// Processors of the three members, the leader's first (default: those that may be used, in turn)
    #[arg(long, value_delimiter = ',')]
    pub cpus: Vec<usize>,
    /// For how long.
    #[command(flatten)]
    #[serde(flatten)]
    pub span: SpanArgs,
    /// How results are written.
    #[command(flatten)]
    pub output: OutputArgs,
}

impl RaftArgs {
    fn check(&self) -> Result<()> {
        if !(WRITER_LEN_BYTES as u64..=COMMAND_LEN_BYTES_MAX).contains(&self.command_bytes) {
            let bytes = self.command_bytes;
            return Err(usage(format!(
                "--command-bytes {bytes}: give {WRITER_LEN_BYTES} to {COMMAND_LEN_BYTES_MAX} bytes"
            )));
        }
        self.span.check()?;
        if !self.dir.is_dir() {
            return Err(usage(format!("--dir {}: name a directory that exists", self.dir.display())));
        }
        if !self.cpus.is_empty() && self.cpus.len() != usize::from(MEMBERS) {
            return Err(usage(format!("--cpus: {} given; name three, the leader's first", self.cpus.len())));
        }
        let allowed = cpus::allowed();
        if let Some(cpu) = self.cpus.iter().find(|cpu| !allowed.contains(cpu)) {
            return Err(usage(format!("--cpus {cpu}: this process may not use that processor")));
        }
        Ok(())
    }

    /// Where each member runs.
    fn places(&self) -> Vec<Option<usize>> {
        let cpus = if self.cpus.is_empty() { cpus::allowed() } else { self.cpus.clone() };
        (0..usize::from(MEMBERS)).map(|member| cpus.get(member % cpus.len().max(1)).copied()).collect()
    }

    fn about(&self) -> String {
        let (groups, writers, bytes) = (self.groups, self.writers, binary(self.command_bytes as f64));
        format!("bs={bytes}, groups={groups}, writers={writers}, members={MEMBERS}, path=tls over loopback")
    }
}

/// Measures.
pub fn run(args: &RaftArgs, stop: Stop) -> Result<Report> {
    args.check()?;
    let places = args.places();
    let mut options = serde_json::to_value(args)?;
    options["cpus"] = json!(places);
    let dir = RunDir::make(&args.dir, "raft")?;
    let manifest = Manifest::new("raft", json!({"dir": dir.path()}), options);
    let mut warnings = dir.warnings();
    if places.iter().any(|place| places.iter().filter(|other| *other == place).count() > 1) {
        warnings.push("members share processors: on nodes of their own they would not wait for each other".to_owned());
    }
    let members = members::make(MEMBERS as u8)?;
    let run = Run::new(args, dir.path(), &stop);
    let (counted, spent) = thread::scope(|scope| {
        let spawn = |(member, place): (usize, &Option<usize>)| {
            let (run, certificate) = (&run, &members[member]);
            let options = ExecutorOptions { cpu: *place, busy_poll: BUSY_POLL, ..ExecutorOptions::default() };
            scope.spawn(move || {
                let counted = Executor::new(options)
                    .context("no executor can be made; `kiseki-server doctor` tells what hinders it")
                    .and_then(|executor| executor.run(member::run(run, member, certificate)));
                if let Err(error) = &counted {
                    run.steps.fail(format!("{error:#}"));
                }
                counted
            })
        };
        let threads: Vec<_> = places.iter().enumerate().map(spawn).collect();
        let spent = run.wait_for_window(|| threads.iter().any(|thread| thread.is_finished()));
        let counted = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a member died"))?);
        (counted.collect::<Result<Vec<Counted>>>(), spent)
    });
    if let Some(reason) = run.steps.failure() {
        return Err(anyhow!("{reason}"));
    }
    drop(dir);
    let mut job = job(args, &run, counted?);
    (job.cpu, job.machine) = (spent.own, spent.machine);
    if job.ops() == 0 {
        warnings.push("no command was committed within --runtime; measure longer".to_owned());
    }
    Ok(Report { manifest, jobs: vec![job], warnings })
}

fn job(args: &RaftArgs, run: &Run, counted: Vec<Counted>) -> Job {
    let mut job = Job { name: "commit".to_owned(), about: args.about(), ..Job::default() };
    let flushes: Vec<u64> = counted.iter().map(|member| member.flushes).collect();
    let (parcels, calls) = counted.first().map_or((0, 0), |leader| leader.sent);
    let (mut meter, errors) = run.take_written();
    meter.close(run.end_ns());
    job.write = Some(Side::of(meter));
    job.errors = errors;
    let ops = job.ops();
    let per_op = |count: u64| count as f64 / ops.max(1) as f64;
    // Each command goes to both followers.
    let commands_per_call = (2 * ops) as f64 / calls.max(1) as f64;
    let (all, calls_per_parcel) = (flushes.iter().sum::<u64>(), calls as f64 / parcels.max(1) as f64);
    job.notes.push(format!(
        "flushes: {:.3} a commit ({:.3} of the leader), {calls_per_parcel:.2} calls a parcel, {commands_per_call:.2} commands a call",
        per_op(all),
        per_op(flushes.first().copied().unwrap_or(0)),
    ));
    let extra = json!({
        "path": "tls over loopback",
        "journal_flushes": flushes,
        "flushes_per_commit": per_op(all),
        "parcels": parcels,
        "calls_per_parcel": calls_per_parcel,
        "commands_per_call": commands_per_call,
    });
    if let serde_json::Value::Object(extra) = extra {
        job.extra = extra;
    }
    job
}

/// Nanoseconds since `epoch`.
fn since_ns(epoch: Instant) -> u64 {
    ns(epoch.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Usage;
    use clap::Parser;

    #[derive(Parser)]
    #[command(args_override_self = true)]
    struct Line {
        #[command(flatten)]
        args: RaftArgs,
    }

    fn args(more: &[&str]) -> RaftArgs {
        Line::try_parse_from([&["raft"], more].concat()).unwrap().args
    }

    #[test]
    fn commands_are_committed_and_nothing_stays() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let place = dir.path().to_str().unwrap();
        let args = args(&["--dir", place, "--runtime", "300ms", "--warmup", "0", "--groups", "3", "--writers", "8"]);
        let report = run(&args, Stop::default()).unwrap();
        let job = &report.jobs[0];
        assert_eq!(job.errors.count(), 0, "{:?}", job.errors.kinds());
        assert!(job.ops() > 0 && job.bytes() == 256 * job.ops());
        let flushes: Vec<u64> = serde_json::from_value(job.extra["journal_flushes"].clone()).unwrap();
        assert!(flushes.len() == 3 && flushes.iter().filter(|flushes| **flushes > 0).count() >= 2, "{flushes:?}");
        assert_eq!(dir.path().read_dir().unwrap().count(), 0, "the members' directories stay");
    }

    #[test]
    fn impossible_arguments_are_named_with_a_remedy() {
        for wrong in [
            &["--command-bytes", "7"][..],
            &["--command-bytes", "2m"],
            &["--runtime", "0"],
            &["--dir", "/nowhere/at/all"],
            &["--cpus", "9999,0,0"],
            &["--cpus", "0,0"],
        ] {
            let error = run(&args(wrong), Stop::default()).unwrap_err();
            assert!(error.is::<Usage>() && error.to_string().starts_with(wrong[0]), "{wrong:?}: {error:#}");
        }
        for wrong in [["--groups", "0"], ["--writers", "0"], ["--cpus", "0,x"]] {
            assert!(Line::try_parse_from([&["raft"][..], &wrong].concat()).is_err(), "{wrong:?}");
        }
    }
}
