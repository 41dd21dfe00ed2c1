//! `kiseki-fuzz`: fresh inputs for one target or all of them, and the seeds of the corpus.

use clap::Parser;
use kiseki_fuzz::{TARGETS, Target, corpus, run};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Mutates the corpus of a target until the time is over or something breaks.
#[derive(Parser)]
struct Cli {
    /// Targets, all when none is named; `--list` names them.
    targets: Vec<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Where the inputs come from; drawn from the clock when absent.
    #[arg(long)]
    seed: Option<u64>,
    /// Names all targets.
    #[arg(long)]
    list: bool,
    /// Writes the seeds that are missing in the corpus.
    #[arg(long)]
    write_seeds: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(unknown) = cli.targets.iter().find(|name| !TARGETS.iter().any(|target| target.name == **name)) {
        eprintln!("there is no target {unknown}; --list names them");
        return ExitCode::FAILURE;
    }
    let chosen = TARGETS.iter().filter(|target| cli.targets.is_empty() || cli.targets.iter().any(|n| n == target.name));
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let seed = cli.seed.unwrap_or(clock);
    let mut failed = false;
    for target in chosen {
        if cli.list {
            println!("{}", target.name);
        } else if cli.write_seeds {
            match corpus::write_seeds(target) {
                Ok(written) => println!("{}: {written} seeds written", target.name),
                Err(error) => {
                    eprintln!("{}: {error}", target.name);
                    failed = true;
                }
            }
        } else {
            failed |= !fuzz(target, seed, Duration::from_secs(cli.seconds));
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs one target; whether nothing broke.
fn fuzz(target: &Target, seed: u64, length: Duration) -> bool {
    let inputs = match corpus::read(target) {
        Ok(inputs) => inputs.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>(),
        Err(error) => {
            eprintln!("{}: its corpus can't be read: {error}", target.name);
            return false;
        }
    };
    let start = Instant::now();
    match run::run(target, &inputs, seed, |_| start.elapsed() < length) {
        Ok(totals) => {
            let run::Totals { inputs, accepted, slowest } = totals;
            println!("{:<22} {inputs:>10} inputs {accepted:>10} accepted, slowest {slowest:?}", target.name);
            true
        }
        Err(failure) => {
            eprintln!("{}: seed {seed}, input {}: {}", target.name, failure.number, failure.what);
            match corpus::save(target, seed, failure.number, &failure.input) {
                Ok(path) => eprintln!("{}: saved {}", target.name, path.display()),
                Err(error) => eprintln!("{}: the input could not be saved: {error}", target.name),
            }
            false
        }
    }
}
