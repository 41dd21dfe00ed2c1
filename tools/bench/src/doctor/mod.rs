//! `doctor`: what on this machine spoils figures, each finding with what it does to them and what mends it.

mod settings;
mod storage;
mod watch;

use crate::progress::Progress;
use crate::stop::Stop;
use crate::units::parse_duration;
use crate::usage::usage;
use anyhow::Result;
use clap::Args;
use kiseki_server::doctor::{Finding, Severity, render, warning};
use serde_json::json;
use settings::Root;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  kiseki-bench doctor
  # the disk that is going to be measured too, for a minute
  kiseki-bench doctor --dir /srv/kiseki --runtime 1m
  # in a script: measure only where nothing spoils the figures
  kiseki-bench doctor --json > doctor.json && make bench

Exit code 1: something spoils figures, or it was interrupted before everything was looked at. Warnings alone (a virtual machine, boost clocks) leave it at 0: they make figures
hard to compare with those of other machines, not wrong.";

/// Arguments of `doctor`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct DoctorArgs {
    /// How long to watch what else the machine does; leave it alone meanwhile
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "3s")]
    pub runtime: Duration,
    /// Try synced direct writes in this directory for as long again; the file is removed
    #[arg(long, value_name = "DIRECTORY")]
    pub dir: Option<PathBuf>,
    /// Print one JSON document instead of text
    #[arg(long)]
    pub json: bool,
}

/// Looks, watches, and says what it found.
pub fn run(args: &DoctorArgs) -> Result<ExitCode> {
    if args.runtime.is_zero() {
        return Err(usage("--runtime 0: watch for some time, such as 3s"));
    }
    let stop = Stop::on_signals()?;
    let mut findings = settings::examine(&Root::default());
    let progress = Progress::waiting("doctor: watching what else the machine does");
    findings.extend(watch::examine(args.runtime, &stop)?);
    drop(progress);
    if let Some(dir) = &args.dir {
        let _progress = Progress::waiting("doctor: synced writes");
        findings.extend(storage::examine(&Root::default(), dir, args.runtime, &stop));
    }
    let is_spoilt = findings.iter().any(|finding| finding.severity == Severity::Error);
    let is_interrupted = stop.is_set();
    let text = match args.json {
        true => {
            let found = json!({ "spoils_figures": is_spoilt, "interrupted": is_interrupted, "findings": findings });
            serde_json::to_string_pretty(&found)? + "\n"
        }
        false => format!("{}{}\n", render(&findings), verdict(is_spoilt, is_interrupted)),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())?;
    Ok(if is_spoilt || is_interrupted { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn verdict(is_spoilt: bool, is_interrupted: bool) -> &'static str {
    match (is_spoilt, is_interrupted) {
        (true, _) => "Figures of this machine, as it is now, are spoilt by what is called ERROR.",
        (false, true) => "Interrupted: not everything was looked at.",
        (false, false) => "Nothing here spoils figures.",
    }
}

/// What an interruption came before.
fn not_measured(check: &'static str) -> Finding {
    warning(check, "nothing was measured: it was interrupted before", "let it run to its end")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Usage;

    #[test]
    fn no_time_to_watch_is_a_bad_argument() {
        let args = DoctorArgs { runtime: Duration::ZERO, dir: None, json: false };
        assert!(run(&args).unwrap_err().is::<Usage>());
    }

    #[test]
    fn an_interrupted_look_finds_a_machine_neither_good_nor_bad() {
        assert!(verdict(false, true).contains("Interrupted") && verdict(true, true).contains("ERROR"));
        assert!(verdict(false, false).contains("Nothing"));
    }
}
