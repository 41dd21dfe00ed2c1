//! Loads that look like what training and serving do to an object store, one or several at once.
//!
//! A profile is a round of phases (store, read, list, delete) that all its clients go through together; each profile has
//! clients of its own and is a job of its own. Reading order: this file, [`profile`], [`mod@run`].

mod order;
mod profile;
mod report;
mod run;

use crate::output::{OutputArgs, Report};
use crate::s3::servers::AdminArgs;
use crate::s3::target::TargetArgs;
use crate::stop::Stop;
use crate::units::{parse_bytes, parse_duration};
use crate::usage::usage;
use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  # training epochs and a storm of small files beside each other, for a minute
  . .kiseki/env; kiseki-bench mixed epochs small-files --runtime 60s --cleanup
  # four writers store a checkpoint of 4 GiB, twice; it is read back and compared
  kiseki-bench mixed checkpoint --checkpoint-writers 4 --checkpoint-size 1g --cleanup
  # where the time of its requests goes in the server
  kiseki-bench mixed small-files --server-admin http://127.0.0.1:9090 --cleanup
  # everything at a hundredth of its size, every byte checked
  kiseki-bench mixed epochs record-shards checkpoint kv-pages small-files --scale 0.01 --verify --cleanup --json";

/// Shapes of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProfileName {
    /// Training: all objects of 146 MB are read once in each epoch, in an order that is shuffled anew
    Epochs,
    /// Training: records of 100 to 200 KB are read by ranges out of shards of 256 MB, shuffled within a window
    RecordShards,
    /// N writers store a part each, in multipart uploads; when all are done, all is read back and compared
    Checkpoint,
    /// KV-cache pages of 64 KiB to 2 MiB: stored once, read with a hot set, deleted
    KvPages,
    /// Files of 1 to 64 KiB in directories: created, listed, asked for, read, deleted
    SmallFiles,
}

/// Arguments of `mixed`.
#[derive(Args, Clone, Debug, Serialize)]
#[command(after_help = EXAMPLES)]
pub struct MixedArgs {
    /// Profiles that run at once
    #[arg(required = true, value_enum, value_name = "PROFILE")]
    pub profiles: Vec<ProfileName>,
    /// Go on with rounds of each profile for this long (default: each goes through its rounds and ends)
    #[arg(long, value_parser = parse_duration)]
    #[serde(serialize_with = "optional_seconds")]
    pub runtime: Option<Duration>,
    /// Clients of each profile; checkpoint has --checkpoint-writers
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub clients: u16,
    /// Multiplies the defaults below: lengths of epochs, record-shards and checkpoint, counts of kv-pages and small-files
    #[arg(long, default_value_t = 1.0, value_parser = parse_scale)]
    pub scale: f64,
    /// Check every byte of GETs and every listing; checkpoint always does
    #[arg(long)]
    pub verify: bool,
    /// Rounds of epochs and record-shards
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Profiles")]
    pub epochs: u64,
    /// epochs: objects
    #[arg(long, default_value_t = 168, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Profiles")]
    pub epoch_objects: u32,
    /// epochs: bytes of an object (default: 146 MB)
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, help_heading = "Profiles")]
    pub epoch_object_size: Option<u64>,
    /// epochs: read objects in ranges of this length, one after the other (default: whole)
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, help_heading = "Profiles")]
    pub epoch_read_size: Option<u64>,
    /// record-shards: shards
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Profiles")]
    pub shards: u32,
    /// record-shards: bytes of a shard (default: 256 MB)
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, help_heading = "Profiles")]
    pub shard_size: Option<u64>,
    /// record-shards: records, of shards in shuffled order, that the next one is drawn from
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Profiles")]
    pub shuffle_window: u32,
    /// checkpoint: rounds
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Profiles")]
    pub checkpoints: u64,
    /// checkpoint: writers
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000), help_heading = "Profiles")]
    pub checkpoint_writers: u16,
    /// checkpoint: bytes that each writer stores (default: 1 GiB)
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, help_heading = "Profiles")]
    pub checkpoint_size: Option<u64>,
    /// kv-pages: pages (default: 10000)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000), help_heading = "Profiles")]
    pub kv_pages: Option<u64>,
    /// kv-pages: reads for each page in the mean
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000), help_heading = "Profiles")]
    pub kv_reads: u64,
    /// kv-pages: exponent of the hot set's Zipf distribution; 0 reads all pages alike
    #[arg(long, default_value_t = 0.99, value_name = "EXPONENT", value_parser = parse_exponent, help_heading = "Profiles")]
    pub zipf: f64,
    /// small-files: files (default: 100000)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000), help_heading = "Profiles")]
    pub files: Option<u64>,
    /// small-files: files of a directory
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Profiles")]
    pub files_per_directory: u64,
    /// Seed of contents and choices; without it every run has its own. The same seed again stores the same objects
    #[arg(long)]
    pub seed: Option<u64>,
    /// Who tells where the time went.
    #[command(flatten)]
    #[serde(flatten)]
    pub admin: AdminArgs,
    /// Where objects go.
    #[command(flatten)]
    #[serde(flatten)]
    pub target: TargetArgs,
    /// How results are written.
    #[command(flatten)]
    pub output: OutputArgs,
}

fn optional_seconds<S: serde::Serializer>(
    span: &Option<Duration>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    span.map(|span| span.as_secs_f64()).serialize(serializer)
}

fn parse_scale(text: &str) -> std::result::Result<f64, String> {
    let scale = text.parse().ok().filter(|scale: &f64| (1e-6..=1e6).contains(scale));
    scale.ok_or_else(|| format!("{text:?} is no scale; give a factor such as 0.01"))
}

fn parse_exponent(text: &str) -> std::result::Result<f64, String> {
    let exponent = text.parse().ok().filter(|exponent: &f64| (0.0..=10.0).contains(exponent));
    exponent.ok_or_else(|| format!("{text:?} is no exponent; give 0 to 10, such as 0.99"))
}

impl MixedArgs {
    fn check(&self) -> Result<()> {
        if self.runtime.is_some_and(|runtime| runtime.is_zero()) {
            return Err(usage("--runtime 0: measure for some time, such as 60s"));
        }
        let mut named = self.profiles.clone();
        named.sort();
        named.dedup();
        if named.len() < self.profiles.len() {
            return Err(usage("a profile is named twice; give it more --clients instead"));
        }
        Ok(())
    }
}

/// Measures.
pub fn run(args: &MixedArgs, stop: Stop) -> Result<Report> {
    args.check()?;
    run::run(args, &stop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Usage;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: MixedArgs,
    }

    #[test]
    fn impossible_arguments_are_refused() {
        let check = |line: &[&str]| Line::try_parse_from([&["mixed"], line].concat()).map(|line| line.args.check());
        check(&["epochs", "small-files", "--scale", "0.01"]).unwrap().unwrap();
        for wrong in [&["epochs", "epochs"][..], &["epochs", "--runtime", "0"]] {
            assert!(check(wrong).unwrap().unwrap_err().is::<Usage>(), "{wrong:?}");
        }
        for wrong in [&[][..], &["epoch"], &["epochs", "--scale", "0"], &["kv-pages", "--zipf", "-1"]] {
            assert!(check(wrong).is_err(), "{wrong:?}");
        }
    }
}
