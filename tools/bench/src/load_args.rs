//! Options that several verbs have: what is done to objects, and for how long it is measured.

use crate::device::seconds;
use crate::measure::Window;
use crate::s3::{Mix, mix_text, parse_mix, parse_rate, parse_ratio};
use crate::units::{ns, parse_bytes, parse_duration};
use crate::usage::usage;
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use std::time::Duration;

/// Objects that are read by default: as many as make so many bytes, within limits.
const READ_OBJECTS_MIN: u64 = 8;
const READ_OBJECTS_MAX: u64 = 1000;

/// What is done to objects.
#[derive(Args, Clone, Debug, Serialize)]
pub struct LoadArgs {
    /// put, get, or mixed:GET/PUT in percent
    #[arg(long, value_parser = parse_mix, default_value = "put")]
    #[serde(serialize_with = "mix_text")]
    pub op: Mix,
    /// Bytes of an object
    #[arg(long, value_parser = parse_bytes, default_value = "1m")]
    pub size: u64,
    /// Objects to read, and keys that PUTs write over and over (default: 1 GiB of objects to read, with engine 256 MiB, at
    /// least 8 and at most 1000; a new key for every PUT)
    #[arg(long)]
    pub objects: Option<u64>,
    /// Operations a second that become due in an open loop, of all clients together; latencies count from then
    #[arg(long, value_parser = parse_rate, value_name = "OPS")]
    pub rate: Option<f64>,
    /// Check every byte of GETs; after the measurement, read back and check what was PUT
    #[arg(long)]
    pub verify: bool,
    /// Share of objects that all hold the same bytes; other objects have nothing in common
    #[arg(long, value_parser = parse_ratio, default_value = "0", value_name = "RATIO")]
    pub dedup_ratio: f64,
    /// Seed of contents and choices; without it every run has its own. The same seed again stores the same objects
    #[arg(long)]
    pub seed: Option<u64>,
}

impl LoadArgs {
    /// Errors: `Usage`.
    pub fn check(&self, clients: u16) -> Result<()> {
        if self.objects == Some(0) {
            return Err(usage("--objects 0: name at least one object"));
        }
        if self.op.writes() && self.objects.is_some_and(|objects| objects < u64::from(clients)) {
            return Err(usage(format!(
                "--objects: {clients} clients that write need a key each; give {clients} or more"
            )));
        }
        Ok(())
    }

    /// Objects that are stored first and then read; without `--objects` those that make `set_len_bytes`.
    #[must_use]
    pub fn read_objects(&self, set_len_bytes: u64) -> u64 {
        let by_default = (set_len_bytes / self.size).clamp(READ_OBJECTS_MIN, READ_OBJECTS_MAX);
        if self.op.reads() { self.objects.unwrap_or(by_default) } else { 0 }
    }
}

/// For how long it is measured.
#[derive(Args, Clone, Debug, Serialize)]
pub struct SpanArgs {
    /// How long to measure
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    #[serde(serialize_with = "seconds")]
    pub runtime: Duration,
    /// How long to run before measuring
    #[arg(long, value_parser = parse_duration, default_value = "2s")]
    #[serde(serialize_with = "seconds")]
    pub warmup: Duration,
}

impl SpanArgs {
    /// Errors: `Usage`.
    pub fn check(&self) -> Result<()> {
        match self.runtime.is_zero() {
            true => Err(usage("--runtime 0: measure for some time, such as 10s")),
            false => Ok(()),
        }
    }

    /// The measured part.
    #[must_use]
    pub fn window(&self) -> Window {
        let start_ns = ns(self.warmup);
        Window { start_ns, end_ns: start_ns + ns(self.runtime) }
    }
}
