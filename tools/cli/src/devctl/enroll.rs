//! `enroll`: takes devices into a node, running or not.

use super::format::format_devices;
use super::format_args::format_options;
use super::join::{JoinOptions, Joiner};
use super::node::NodeArgs;
use super::plan;
use anyhow::Result;
use kiseki_server::format::plan_all;
use std::path::PathBuf;
use std::process::ExitCode;

/// Takes devices into a node, or back into it: at once when it runs, otherwise at its next start.
///
/// The path is written into the node's kiseki.toml. A device that was away or failed is reopened and checked; what it holds
/// is used again. Stripes that wait for devices are brought to full width by themselves.
#[derive(clap::Args)]
pub struct Args {
    /// Formatted devices; with --format any.
    #[arg(required = true)]
    devices: Vec<PathBuf>,
    #[command(flatten)]
    node: NodeArgs,
    /// Format them first; everything on them is lost.
    #[arg(long)]
    format: bool,
    /// With --format: names of signatures that may be overwritten, as `inspect` prints them; comma separated or several times.
    #[arg(long, requires = "format", value_delimiter = ',')]
    wipe: Vec<String>,
    #[command(flatten)]
    join: JoinOptions,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let Args { devices, node, format, wipe, join } = args;
    let mut joiner = Joiner::new(node.dir.clone(), join)?;
    if format && joiner.is_dry_run() {
        let options = format_options(&node.dir, None, None, None, wipe)?;
        return Ok(plan::show(&plan_all(&devices, &options)?, &options, joiner.is_json()));
    }
    if format {
        joiner.check_before_format(&devices)?;
        let options = format_options(&node.dir, None, None, None, wipe)?;
        format_devices(&devices, &options, joiner.is_json())?;
    }
    for device in &devices {
        joiner.enroll(device)?;
    }
    joiner.finish()
}
