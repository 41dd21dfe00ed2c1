//! `doctor`: what on this machine spoils figures, each finding with what it does to them and what mends it.

mod settings;
mod storage;
mod watch;

use crate::progress::Progress;
use crate::stop::Stop;
use crate::units::parse_duration;
use anyhow::Result;
use clap::Args;
use kiseki_server::doctor::{Finding, Severity, render};
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

Exit code 1: something spoils figures. Warnings alone (a virtual machine, boost clocks) leave it at 0: they make figures
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
    print(&findings, is_spoilt, args.json)?;
    Ok(if is_spoilt { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(findings: &[Finding], is_spoilt: bool, as_json: bool) -> Result<()> {
    let text = match as_json {
        true => serde_json::to_string_pretty(&json!({ "spoils_figures": is_spoilt, "findings": findings }))? + "\n",
        false => {
            let verdict = match is_spoilt {
                true => "Figures of this machine, as it is now, are spoilt by what is called ERROR.",
                false => "Nothing here spoils figures.",
            };
            format!("{}{verdict}\n", render(findings))
        }
    };
    let mut out = std::io::stdout().lock();
    Ok(out.write_all(text.as_bytes()).and_then(|()| out.flush())?)
}
