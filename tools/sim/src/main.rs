//! `kiseki-sim`: crash runs of a whole node, or of the Raft groups of several, on simulated disks, from given seeds or
//! from fresh ones.
#![forbid(unsafe_code)]

use clap::{Parser, ValueEnum};
use kiseki_sim::real::{Lie, RealNode, RealOptions};
use kiseki_sim::{ClusterOptions, NodesOptions, RunOptions, run_cluster, run_nodes, run_seed};
use kiseki_types::runtime::set_current;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// Runs a whole node on simulated disks, cuts the power at random writes, and checks that everything acknowledged is
/// back. The same seed gives the same run.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// What is run: one node with its disks and clients; Raft groups on several nodes and a network between them; or several whole
    /// nodes with their clients.
    #[arg(long, value_enum, default_value_t = Scenario::Node)]
    scenario: Scenario,
    /// The first seed.
    #[arg(long, default_value_t = 0, conflicts_with = "fresh")]
    seed: u64,
    /// How many seeds, one after the other.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Go on with further seeds until so many seconds have passed.
    #[arg(long, conflicts_with = "seeds")]
    seconds: Option<u64>,
    /// Operations of each seed (of a node).
    #[arg(long, default_value_t = RunOptions::default().operations)]
    ops: u64,
    /// Start from a seed that nobody has chosen.
    #[arg(long)]
    fresh: bool,
    /// Cores of the node; without it the seed decides.
    #[arg(long)]
    cores: Option<u16>,
    /// Disks that every start but the first finds missing, other ones each time.
    #[arg(long, default_value_t = 0)]
    absent: u16,
    /// Disks that join while the node serves; from then on disks come and go.
    #[arg(long, default_value_t = 0)]
    late: u16,
    /// Disks that are emptied and retired in the course of a run.
    #[arg(long, default_value_t = 0)]
    drain: u16,
    /// Troubles of each seed (where there are several nodes); without it as many as the tests have.
    #[arg(long)]
    troubles: Option<u64>,
    /// A control that has to fail: media that answer flushes and save nothing.
    #[arg(long, value_enum)]
    lie: Option<LieArgument>,
    /// Print a line for each seed, not only for those that fail.
    #[arg(long)]
    verbose: bool,
    /// Run this seed and nothing else, and say what came of it.
    #[arg(long, hide = true)]
    alone: Option<u64>,
    /// Filter of the node's own log, such as `kiseki_raft=debug`; it goes to standard error.
    #[arg(long)]
    log: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    Node,
    Raft,
    Nodes,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LieArgument {
    Devices,
    RaftJournals,
    MetadataDirs,
}

impl From<LieArgument> for Lie {
    fn from(lie: LieArgument) -> Lie {
        match lie {
            LieArgument::Devices => Lie::Devices,
            LieArgument::RaftJournals => Lie::RaftJournals,
            LieArgument::MetadataDirs => Lie::MetadataDirs,
        }
    }
}

impl Arguments {
    /// Runs one seed: whether all was well, and what is said of it.
    fn run(&self, seed: u64) -> (bool, String) {
        match self.scenario {
            Scenario::Node => self.run_node(seed),
            Scenario::Nodes => {
                let usual = NodesOptions::for_seed(seed);
                let troubles = self.troubles.unwrap_or(usual.troubles);
                let journals_lie = self.lie == Some(LieArgument::RaftJournals);
                let report = run_nodes(seed, NodesOptions { troubles, journals_lie, ..usual });
                (report.is_good(), report.to_string())
            }
            Scenario::Raft => {
                let usual = ClusterOptions::for_seed(seed);
                let troubles = self.troubles.unwrap_or(usual.troubles);
                let journals_lie = self.lie == Some(LieArgument::RaftJournals);
                let report = run_cluster(seed, ClusterOptions { troubles, journals_lie, ..usual });
                (report.is_good(), report.to_string())
            }
        }
    }

    /// The same in a process of its own: nodes that crash in a run leave memory behind, some hundred MiB a seed.
    fn run_apart(seed: u64) -> std::io::Result<(bool, String)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(std::env::args_os().skip(1)).arg("--alone").arg(seed.to_string());
        let done = command.stderr(Stdio::inherit()).output()?;
        let said = String::from_utf8_lossy(&done.stdout).trim_end().to_owned();
        Ok(match done.status.code() {
            Some(_) if !said.is_empty() => (done.status.success(), said),
            _ => (false, format!("seed {seed}: the run broke off: {}", done.status)),
        })
    }

    fn run_node(&self, seed: u64) -> (bool, String) {
        let options = RunOptions { operations: self.ops, ..RunOptions::default() };
        let report = run_seed(seed, options, |sim| {
            let usual = RealOptions::for_seed(seed);
            let cores = self.cores.unwrap_or(usual.cores);
            RealNode::new(
                sim,
                RealOptions {
                    cores,
                    absent: self.absent,
                    late: self.late,
                    drain: self.drain,
                    lie: self.lie.map_or(Lie::Nobody, Lie::from),
                    ..usual
                },
            )
        });
        (report.is_good(), report.to_string())
    }

    /// What to type to see one seed again.
    fn replay(&self, seed: u64) -> String {
        let troubles = self.troubles.map(|troubles| format!(" --troubles {troubles}")).unwrap_or_default();
        if self.scenario == Scenario::Nodes {
            let lie = if self.lie.is_some() { " --lie raft-journals" } else { "" };
            return format!("cargo run --release -p kiseki-sim -- --scenario nodes --seed {seed}{troubles}{lie}");
        }
        if self.scenario == Scenario::Raft {
            let lie = if self.lie.is_some() { " --lie raft-journals" } else { "" };
            return format!("cargo run --release -p kiseki-sim -- --scenario raft --seed {seed}{troubles}{lie}");
        }
        let cores = self.cores.map(|cores| format!(" --cores {cores}")).unwrap_or_default();
        let absent = if self.absent > 0 { format!(" --absent {}", self.absent) } else { String::new() };
        let late = if self.late > 0 { format!(" --late {}", self.late) } else { String::new() };
        let drain = if self.drain > 0 { format!(" --drain {}", self.drain) } else { String::new() };
        let lie = self.lie.and_then(|lie| lie.to_possible_value()).map(|value| format!(" --lie {}", value.get_name()));
        format!(
            "cargo run --release -p kiseki-sim -- --seed {seed} --ops {}{cores}{absent}{late}{drain}{}",
            self.ops,
            lie.unwrap_or_default()
        )
    }
}

/// The time of the run, in seconds, in front of each line of a node's log.
struct VirtualTime;

impl FormatTime for VirtualTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let ports = set_current(None);
        set_current(ports.clone());
        match ports {
            Some(ports) => write!(writer, "{:10.3}", ports.now().0 as f64 / 1e9 - 1000.0),
            None => write!(writer, "         -"),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(filter) = &arguments.log {
        tracing_subscriber::fmt().with_env_filter(filter).with_timer(VirtualTime).with_writer(std::io::stderr).init();
    }
    if let Some(seed) = arguments.alone {
        let (is_good, text) = arguments.run(seed);
        println!("{text}");
        return if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let is_one = arguments.seeds == 1 && arguments.seconds.is_none();
    let first = if arguments.fresh { RandomState::new().build_hasher().finish() } else { arguments.seed };
    let (mut failed, mut done) = (0_u64, 0_u64);
    let start = Instant::now();
    let is_wanted = |done| match arguments.seconds {
        Some(seconds) => start.elapsed() < Duration::from_secs(seconds),
        None => done < arguments.seeds,
    };
    while is_wanted(done) {
        let seed = first.wrapping_add(done);
        let (is_good, text) = match is_one {
            true => arguments.run(seed),
            false => Arguments::run_apart(seed)
                .unwrap_or_else(|error| (false, format!("seed {seed}: no process could be started: {error}"))),
        };
        if !is_good {
            failed += 1;
            println!("FAILED {text}\n  replay: {}", arguments.replay(seed));
        } else if arguments.verbose {
            println!("ok {text}");
        }
        done += 1;
    }
    println!("{done} seeds from {first}: {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
