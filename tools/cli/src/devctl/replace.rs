//! `replace`: puts a device into the place of one that can't be used any more.

use super::format::format_devices;
use super::format_args::format_options;
use super::join::{JoinOptions, Joiner};
use super::node::NodeArgs;
use super::plan;
use anyhow::Result;
use kiseki_server::format::plan_all;
use std::path::PathBuf;
use std::process::ExitCode;

/// Puts a device into the place of one that failed or is gone; what that one held is rebuilt on the devices that are
/// there.
///
/// The line of the old device in kiseki.toml becomes that of the new one, and the old one counts as removed: to use it again it
/// has to be formatted. A device that still works is not replaced in one step: enroll the new one, drain the old one,
/// retire it when it is empty.
#[derive(clap::Args)]
pub struct Args {
    /// The device that leaves: its path, or the first digits of its id.
    old: String,
    /// The formatted device that comes; with --format any.
    new: PathBuf,
    #[command(flatten)]
    node: NodeArgs,
    /// Format the new one first; everything on it is lost.
    #[arg(long)]
    format: bool,
    /// With --format: names of signatures that may be overwritten, as `inspect` prints them; comma separated or several times.
    #[arg(long, requires = "format", value_delimiter = ',')]
    wipe: Vec<String>,
    #[command(flatten)]
    join: JoinOptions,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let Args { old, new, node, format, wipe, join } = args;
    let mut joiner = Joiner::new(node.dir.clone(), join)?;
    let devices = [new.clone()];
    if format && joiner.is_dry_run() {
        let options = format_options(&node.dir, None, None, None, wipe)?;
        return Ok(plan::show(&plan_all(&devices, &options)?, &options, joiner.is_json()));
    }
    if format {
        joiner.check_before_format(&devices)?;
        let options = format_options(&node.dir, None, None, None, wipe)?;
        format_devices(&devices, &options, joiner.is_json())?;
    }
    joiner.replace(&old, &new)?;
    joiner.finish()
}
