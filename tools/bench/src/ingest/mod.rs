//! Uploads a real directory, and tells how fast that went and what deduplication can find in it.
//!
//! Memory does not grow with the number of files: the directory is walked as files are taken, each client holds one part of
//! one file, and the chunks that are known are bounded (see [`dedup`]).

mod dedup;
mod metrics;
mod run;
mod tree;

use crate::output::{OutputArgs, Report};
use crate::s3::target::TargetArgs;
use crate::stop::Stop;
use crate::usage::usage;
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  # what the product's chunking finds in a directory; no server is asked
  kiseki-bench ingest /data/models --dry-run
  # upload it with 16 clients, and tell what the node stored
  . .kiseki/env; kiseki-bench ingest /data/models --clients 16 --server-admin http://127.0.0.1:9090
  # how fast the upload is alone, without cutting and naming chunks in the client
  kiseki-bench ingest /data/models --no-dedup --cleanup --json";

/// Arguments of `ingest`.
#[derive(Args, Clone, Debug, Serialize)]
#[command(after_help = EXAMPLES)]
pub struct IngestArgs {
    /// The directory; links and special files in it are left out
    #[arg(value_name = "DIRECTORY")]
    pub directory: PathBuf,
    /// Clients, each with one file at a time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub clients: u16,
    /// Only read, cut and name chunks; nothing is uploaded, no endpoint is needed
    #[arg(long)]
    pub dry_run: bool,
    /// Only upload; cutting and naming chunks costs a processor about half a second for each GiB
    #[arg(long, conflicts_with = "dry_run")]
    pub no_dedup: bool,
    /// Admin port of a Kiseki node, such as http://127.0.0.1:9090, to tell what it stored meanwhile
    #[arg(long, value_name = "URL", conflicts_with = "dry_run")]
    pub server_admin: Option<String>,
    /// Where objects go.
    #[command(flatten)]
    #[serde(flatten)]
    pub target: TargetArgs,
    /// How results are written.
    #[command(flatten)]
    pub output: OutputArgs,
}

impl IngestArgs {
    fn check(&self) -> Result<()> {
        let shown = self.directory.display();
        let found = std::fs::metadata(&self.directory);
        if !found.map_err(|error| usage(format!("{shown}: {error}; name a directory")))?.is_dir() {
            return Err(usage(format!("{shown} is no directory; name one")));
        }
        if self.target.part_size < crate::s3::PART_LEN_BYTES_MIN {
            return Err(usage("--part-size: parts have at least 5m"));
        }
        self.target.check()
    }
}

/// Uploads and measures.
pub fn run(args: &IngestArgs, stop: Stop) -> Result<Report> {
    args.check()?;
    run::run(args, &stop)
}
