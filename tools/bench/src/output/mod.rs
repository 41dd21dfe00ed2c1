//! Results, as text for people, as JSON for programs, as `.hgrm` for plotters, as a page to keep.

mod hgrm;
mod interval_log;
mod json;
mod text;

use crate::manifest::Manifest;
use crate::measure::{CpuTime, ErrorLog, Latency, MachineCpu, Meter};
use crate::report;
use crate::results::RunResult;
use crate::usage::usage;
use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};
use std::io::Write;
use std::path::PathBuf;

/// What every verb offers for its results.
#[derive(Args, Clone, Debug, Serialize)]
pub struct OutputArgs {
    /// Print one JSON document with fio's key names instead of text
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Write the latency distribution for HdrHistogram's plotters, in ms; with several directions or jobs one file
    /// each, their names before the extension
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub hgrm: Option<PathBuf>,
    /// Write a CSV line for each 500 ms and direction: operations, bytes, latencies
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub interval_log: Option<PathBuf>,
    /// Write a page with plots, tables and manifest, complete in one file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub html: Option<PathBuf>,
}

impl OutputArgs {
    /// Finds out before the run, not after it, that a file can't be written.
    pub fn check(&self) -> Result<()> {
        let files = [("--hgrm", &self.hgrm), ("--interval-log", &self.interval_log), ("--html", &self.html)];
        files.into_iter().filter_map(|(option, path)| Some((option, path.as_ref()?))).try_for_each(check_file)
    }
}

/// Refuses a path that no file can be written to.
pub fn check_file((option, path): (&str, &PathBuf)) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match parent.is_none_or(|parent| parent.is_dir()) && !path.is_dir() {
        true => Ok(()),
        false => Err(usage(format!("{option} {}: name a file in a directory that exists", path.display()))),
    }
}

/// Operations of one direction with what belongs to them.
#[derive(Clone, Debug)]
pub struct Side {
    /// Counts and latencies.
    pub meter: Meter,
    /// Until the first byte of the answer, where that is known.
    pub first_byte: Option<Latency>,
}

impl Side {
    /// Without a first byte.
    #[must_use]
    pub fn of(meter: Meter) -> Side {
        Side { meter, first_byte: None }
    }
}

/// A server's processor time during the window.
#[derive(Clone, Debug)]
pub struct ServerCpu {
    /// Which process.
    pub pid: u32,
    /// What it used; `None` when it ended meanwhile.
    pub used: Option<CpuTime>,
}

/// One job of a run: a device, a stage, a load on an endpoint.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// Its name.
    pub name: String,
    /// Its main options, as fio puts them behind the name.
    pub about: String,
    /// Reads or GETs.
    pub read: Option<Side>,
    /// Writes or PUTs; stages of the write path too.
    pub write: Option<Side>,
    /// Operations without a direction (listings, deletions), by name.
    pub others: Vec<(&'static str, Side)>,
    /// Flushes.
    pub sync: Option<Latency>,
    /// Whether starts were scheduled.
    pub is_open_loop: bool,
    /// Failed operations.
    pub errors: ErrorLog,
    /// How long it took, where its directions were not all used at the same time.
    pub wall_ns: Option<u64>,
    /// Our own processor time during the window.
    pub cpu: CpuTime,
    /// That of the whole machine during it; zero where it is not known, or stands with another job.
    pub machine: MachineCpu,
    /// Servers' processor time during the window.
    pub servers: Vec<ServerCpu>,
    /// What only this verb knows, by JSON key.
    pub extra: Map<String, Value>,
    /// The same for people, a line each.
    pub notes: Vec<String>,
}

impl Job {
    /// Both directions that were used, with fio's name for them.
    pub fn sides(&self) -> impl Iterator<Item = (&'static str, &Side)> {
        let named = [("read", &self.read), ("write", &self.write)];
        named.into_iter().filter_map(|(name, side)| Some((name, side.as_ref()?)))
    }

    /// Operations of all kinds that ended in the window.
    #[must_use]
    pub fn ops(&self) -> u64 {
        let others = self.others.iter().map(|(_, side)| side.meter.ops());
        self.sides().map(|(_, side)| side.meter.ops()).chain(others).sum()
    }

    /// Bytes of both.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.sides().map(|(_, side)| side.meter.bytes()).sum()
    }

    /// Length of the window.
    #[must_use]
    pub fn runtime_ns(&self) -> u64 {
        let longest = || self.sides().map(|(_, side)| side.meter.runtime_ns()).max().unwrap_or(0);
        self.wall_ns.unwrap_or_else(longest)
    }
}

/// A whole result.
#[derive(Clone, Debug)]
pub struct Report {
    /// What it depends on.
    pub manifest: Manifest,
    /// The jobs.
    pub jobs: Vec<Job>,
    /// What may make a figure mean less than it seems.
    pub warnings: Vec<String>,
}

impl Report {
    /// Prints the result and writes the files that were asked for.
    pub fn print(&self, args: &OutputArgs) -> Result<()> {
        let text = if args.json { json::document(self)? } else { text::page(self) };
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("can't write the result to stdout")?;
        if let Some(path) = &args.hgrm {
            hgrm::write(self, path)?;
        }
        if let Some(path) = &args.interval_log {
            interval_log::write(self, path)?;
        }
        if let Some(path) = &args.html {
            let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
            report::write_page(&[RunResult::parse(name, &json::value(self))?], path)?;
        }
        Ok(())
    }

    /// Failed operations of all jobs.
    #[must_use]
    pub fn error_count(&self) -> u64 {
        self.jobs.iter().map(|job| job.errors.count()).sum()
    }
}
