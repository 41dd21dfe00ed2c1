//! Raw figures of devices: the product's rings, nothing above them.
//!
//! A job is one device; `--numjobs` executors, each on a processor of its own, drive every device with one ring, as the cores
//! of a node do.

mod load;
mod target;
mod worker;

use crate::length::LengthArgs;
use crate::manifest::Manifest;
use crate::measure::Plan;
use crate::output::{Job, OutputArgs, Report};
use crate::stop::Stop;
use crate::sweep::{self, Variable};
use crate::units::{binary, parse_bytes, parse_duration};
use crate::usage::usage;
use anyhow::Result;
use clap::{Args, ValueEnum};
use kiseki_devices::nvme::path::{PathInUse, PathPreference};
use kiseki_executor::BUSY_POLL;
use kiseki_types::limits::DEVICE_BLOCK_BYTES_MAX;
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;
use target::Target;

/// Most operations that one ring takes at once.
const IODEPTH_MAX: u16 = 4096;

const EXAMPLES: &str = "\
Examples:
  # 4 KiB random reads at depth 32 from a file that is made, filled and removed again
  kiseki-bench device /data/test.img --rw randread --bs 4k --iodepth 32 --size 4g
  # two drives at once, two cores, large writes; everything on the drives is lost
  kiseki-bench device /dev/nvme0n1 /dev/nvme1n1 --rw write --bs 1m --iodepth 8 --numjobs 2 \\
      --destroy /dev/nvme0n1 --destroy /dev/nvme1n1
  # the same reads by NVMe commands and through the block device; needs no --destroy
  kiseki-bench device /dev/nvme0n1 --device-path passthrough
  kiseki-bench device /dev/nvme0n1 --device-path io_uring
  # how deep a queue is worth it: one job for each depth, the knee marked
  kiseki-bench device /data/test.img --sweep iodepth=1..128 --runtime 5s
  # durable small writes, as fio's --fdatasync=1
  kiseki-bench device /data/test.img --rw randwrite --bs 4k --iodepth 1 --fdatasync 1 --size 1g --json";

/// What is done to the device, in fio's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// Sequential reads
    Read,
    /// Sequential writes
    Write,
    /// Random reads
    Randread,
    /// Random writes
    Randwrite,
    /// Sequential, reads and writes mixed
    #[value(alias = "rw")]
    Readwrite,
    /// Random, reads and writes mixed
    Randrw,
}

impl Pattern {
    fn is_random(self) -> bool {
        matches!(self, Pattern::Randread | Pattern::Randwrite | Pattern::Randrw)
    }

    /// Share of reads, out of 100.
    fn read_percent(self, mixed: u8) -> u8 {
        match self {
            Pattern::Read | Pattern::Randread => 100,
            Pattern::Write | Pattern::Randwrite => 0,
            Pattern::Readwrite | Pattern::Randrw => mixed,
        }
    }

    fn word(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// How NVMe drives are driven, in the words of the server's `device_path`; files and other block devices have one way
/// only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum DevicePath {
    /// By commands to the character device where that can be done, else through the block device
    Auto,
    /// By commands; a drive that can't be is refused
    Passthrough,
    /// Through the block device
    IoUring,
}

impl From<DevicePath> for PathPreference {
    fn from(path: DevicePath) -> PathPreference {
        match path {
            DevicePath::Auto => PathPreference::Auto,
            DevicePath::Passthrough => PathPreference::Passthrough,
            DevicePath::IoUring => PathPreference::IoUring,
        }
    }
}

/// Arguments of `device`.
#[derive(Args, Clone, Debug, Serialize)]
#[command(after_help = EXAMPLES)]
pub struct DeviceArgs {
    /// Files and block devices; a plain file that is missing is made, filled and removed afterwards
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// What to do
    #[arg(long, value_enum, default_value = "randread")]
    pub rw: Pattern,
    /// Reads among mixed operations, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub rwmixread: u8,
    /// Bytes of an operation, a multiple of 4k
    #[arg(long, value_parser = parse_bytes, default_value = "4k")]
    pub bs: u64,
    /// Operations in flight on each device from each executor, 1 to 4096
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(IODEPTH_MAX)))]
    pub iodepth: u16,
    /// Executors, each on a processor of its own and with a queue of its own on every device
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub numjobs: u16,
    /// How long to measure
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    #[serde(serialize_with = "seconds")]
    pub runtime: Duration,
    /// How long to run before measuring
    #[arg(long, alias = "ramp_time", value_parser = parse_duration, default_value = "1s")]
    #[serde(serialize_with = "seconds")]
    pub warmup: Duration,
    /// Count, steady state, steps.
    #[command(flatten)]
    #[serde(flatten)]
    pub length: LengthArgs,
    /// Bytes of the device to use; a file that is made gets this length (default: all of it, 1g for a new file)
    #[arg(long, value_parser = parse_bytes)]
    pub size: Option<u64>,
    /// Which way to an NVMe drive, as `device_path` of a node
    #[arg(long, value_enum, default_value = "auto")]
    pub device_path: DevicePath,
    /// For how many microseconds at most an executor that waits looks for the answer before it sleeps, as `busy_poll_us` of a node; 0: never
    #[arg(long, value_name = "MICROSECONDS", default_value_t = BUSY_POLL.as_micros() as u16, value_parser = clap::value_parser!(u16).range(0..=10_000))]
    pub busy_poll_us: u16,
    /// Flush after so many writes of each operation slot; 0 never flushes
    #[arg(long, value_name = "WRITES", default_value_t = 0)]
    pub fdatasync: u32,
    /// A PATH that may be overwritten although it is a block device, carries a signature (in a partition too) or holds data; repeatable
    #[arg(long, value_name = "PATH")]
    pub destroy: Vec<PathBuf>,
    /// Direct I/O; there is no other here, so this changes nothing
    #[arg(long, value_name = "0|1", default_value_t = 1, hide = true, value_parser = clap::value_parser!(u8).range(1..=1))]
    pub direct: u8,
    /// How results are written.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Durations stand in the manifest as seconds.
pub fn seconds<S: serde::Serializer>(span: &Duration, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_f64(span.as_secs_f64())
}

impl DeviceArgs {
    fn writes(&self) -> bool {
        self.rw.read_percent(self.rwmixread) < 100
    }

    fn plan(&self) -> Plan {
        Plan { warmup: self.warmup, runtime: self.runtime, count: self.length.count, steady: self.length.steady() }
    }

    /// The loads to run one after the other: one, or the steps of a sweep.
    fn steps(&self) -> Vec<DeviceArgs> {
        let Some(sweep) = &self.length.sweep else { return vec![self.clone()] };
        let step = |value: &f64| DeviceArgs { iodepth: *value as u16, ..self.clone() };
        sweep.values.iter().map(step).collect()
    }

    fn check(&self) -> Result<()> {
        if !self.bs.is_multiple_of(DEVICE_BLOCK_BYTES_MAX as u64) || self.bs > 1 << 30 {
            return Err(usage(format!("--bs {}: give a multiple of 4k up to 1g", self.bs)));
        }
        if self.runtime.is_zero() {
            return Err(usage("--runtime 0: measure for some time, such as 10s"));
        }
        self.length.check()?;
        if let Some(sweep) = &self.length.sweep {
            let last = sweep.values.last().copied().unwrap_or(0.0);
            if sweep.variable != Variable::Iodepth || last > f64::from(IODEPTH_MAX) {
                return Err(usage(format!(
                    "--sweep: devices are swept by iodepth, up to {IODEPTH_MAX}, such as iodepth=1..128"
                )));
            }
        }
        for named in &self.destroy {
            if !self.paths.contains(named) {
                let named = named.display();
                return Err(usage(format!("--destroy {named} is none of the paths given; name the same path twice")));
            }
        }
        Ok(())
    }

    fn about(&self, path: PathInUse) -> String {
        format!(
            "rw={}, bs={}, ioengine=kiseki-ring, path={}, iodepth={}, numjobs={}, direct=1",
            self.rw.word(),
            binary(self.bs as f64),
            path.word(),
            self.iodepth,
            self.numjobs
        )
    }
}

/// Measures.
pub fn run(args: &DeviceArgs, stop: Stop) -> Result<Report> {
    args.check()?;
    let targets = args.paths.iter().map(|path| Target::open(path, args)).collect::<Result<Vec<_>>>()?;
    for target in &targets {
        target.check_room(args)?;
    }
    let described: Vec<_> = targets.iter().map(Target::json).collect();
    let manifest = Manifest::new("device", json!(described), serde_json::to_value(args)?);
    let mut warnings: Vec<String> = targets.iter().filter_map(|target| target.holes_warning(args)).collect();
    load::fill_new_files(&targets, &stop)?;
    let mut jobs = Vec::new();
    for step in args.steps() {
        jobs.extend(load::run(&step, &targets, &stop, &mut warnings)?);
        if stop.is_set() {
            break;
        }
    }
    warnings.dedup();
    if let Some(sweep) = &args.length.sweep {
        for number in 0..targets.len() {
            let mut steps: Vec<&mut Job> = jobs.iter_mut().skip(number).step_by(targets.len()).collect();
            sweep::mark(sweep, &mut steps, &mut warnings);
        }
    }
    Ok(Report { manifest, jobs, warnings })
}
