//! PUT and GET of objects through the engine of a node, without a network, HTTP or signatures.
//!
//! The node is one of ours in all but its ports: the server's own code makes its directory, opens its devices, journals and tables,
//! and starts its cores. Clients are tasks on those cores and call what the gateway calls.

mod client;
mod counts;
mod load;
mod node_dir;
mod reading;
mod report;

use crate::cpus;
use crate::load_args::{LoadArgs, SpanArgs};
use crate::output::{OutputArgs, Report};
use crate::stop::Stop;
use crate::units::{binary, parse_bytes};
use crate::usage::usage;
use anyhow::Result;
use clap::{Args, ValueEnum};
use kiseki_server::config::DEFAULT_LANES;
use kiseki_server::pool_shape::PoolShape;
use kiseki_server::status::shape_for;
use serde::Serialize;
use std::path::PathBuf;

/// Most bytes of an object: PUTs of one stream, without parts.
const SIZE_MAX: u64 = 5 << 30;

/// Objects that are read by default: as many as hold this much, within the limits beside it.
const READ_SET_LEN_BYTES: u64 = 256 << 20;

const EXAMPLES: &str = "\
Examples:
  # durable PUTs of 4 KiB by 16 clients on one core; they lie beside their names
  kiseki-bench engine --dir /data --op put --size 4k --clients 16
  # the same as chunks on the devices
  kiseki-bench engine --dir /data --op put --size 4k --clients 16 --inline off
  # GETs of 1 MiB on two cores, every byte checked
  kiseki-bench engine --dir /data --op get --size 1m --cores 2 --verify
  # 70 % GET, 30 % PUT at 2000 operations a second, three copies of everything
  kiseki-bench engine --dir /data --op mixed:70/30 --size 64k --rate 2000 --shape '3 copies' --json";

/// Whether small objects lie beside their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Inline {
    /// Up to the shard's threshold and rate, as every node begins: 4 KiB, 10 MB a second
    On,
    /// All objects become chunks
    Off,
}

/// Arguments of `engine`.
#[derive(Args, Clone, Debug, Serialize)]
#[command(after_help = EXAMPLES)]
pub struct EngineArgs {
    /// What is done.
    #[command(flatten)]
    #[serde(flatten)]
    pub load: LoadArgs,
    /// For how long.
    #[command(flatten)]
    #[serde(flatten)]
    pub span: SpanArgs,
    /// Clients of all cores together, each with one operation at a time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub clients: u16,
    /// Whether small objects lie beside their names
    #[arg(long, value_enum, default_value = "on")]
    pub inline: Inline,
    /// Cores of the node, each an executor pinned to a processor
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub cores: u16,
    /// Lanes that devices are formatted with (default: 4, or as many as there are cores)
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub lanes: Option<u16>,
    /// Where the node's directory is made; it is removed afterwards
    #[arg(long, default_value = ".", value_name = "DIRECTORY")]
    pub dir: PathBuf,
    /// Image files that stand for devices
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub devices: u16,
    /// Bytes of each, sparse (default: 4g, or what the file system has room for)
    #[arg(long, value_parser = parse_bytes)]
    pub device_size: Option<u64>,
    /// Write image files once before the run, so that no measured write allocates space in their file system
    #[arg(long)]
    pub prefill: bool,
    /// Metadata directories: mirrors of Raft journals and tables, all in the node's directory
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=8))]
    pub metadata_dirs: u16,
    /// How chunks are protected, such as 4+2 or '2 copies' (default: by the number of devices, as `kiseki-server init`)
    #[arg(long)]
    pub shape: Option<PoolShape>,
    /// How results are written.
    #[command(flatten)]
    pub output: OutputArgs,
}

impl EngineArgs {
    fn check(&self) -> Result<()> {
        self.span.check()?;
        self.load.check(self.clients)?;
        if self.load.size > SIZE_MAX {
            return Err(usage(format!("--size {}: give 5g at most", self.load.size)));
        }
        if self.lanes() < self.cores {
            let (lanes, cores) = (self.lanes(), self.cores);
            return Err(usage(format!("--lanes {lanes}: {cores} cores need a lane each; give {cores} or more")));
        }
        let cpus = cpus::allowed().len();
        if usize::from(self.cores) > cpus {
            return Err(usage(format!("--cores {}: {cpus} processors may be used here", self.cores)));
        }
        let width = self.shape.map_or(0, |shape| shape.stripe().width());
        if width > usize::from(self.devices) {
            let devices = self.devices;
            return Err(usage(format!("--shape: a stripe has {width} fragments, for {devices} --devices; give more")));
        }
        if !self.dir.is_dir() {
            return Err(usage(format!("--dir {}: name a directory that exists", self.dir.display())));
        }
        Ok(())
    }

    fn lanes(&self) -> u16 {
        self.lanes.unwrap_or(DEFAULT_LANES.max(self.cores))
    }

    /// Objects that are stored first and then read.
    fn read_objects(&self) -> u64 {
        self.load.read_objects(READ_SET_LEN_BYTES)
    }

    /// Keys of each client before it begins again.
    fn slots_per_client(&self) -> Option<u64> {
        self.load.objects.map(|objects| (objects / u64::from(self.clients)).max(1))
    }

    fn shape_text(&self) -> String {
        let stripe = self.shape.map_or_else(|| shape_for(usize::from(self.devices)), PoolShape::stripe);
        match (stripe.data, stripe.width()) {
            (1, copies) => format!("copies:{copies}"),
            (data, _) => format!("{data}+{}", stripe.parity),
        }
    }

    fn about(&self) -> String {
        let rate = self.load.rate.map_or_else(String::new, |rate| format!(", rate={rate}"));
        let inline = if self.inline == Inline::On { "on" } else { "off" };
        format!(
            "op={}, bs={}, clients={}, cores={}, shape={}, inline={inline}{rate}, no network",
            self.load.op.word(),
            binary(self.load.size as f64),
            self.clients,
            self.cores,
            self.shape_text(),
        )
    }
}

/// Measures.
pub fn run(args: &EngineArgs, stop: Stop) -> Result<Report> {
    args.check()?;
    report::run(args, &stop)
}

#[cfg(test)]
mod tests;
