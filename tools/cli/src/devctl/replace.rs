//! `replace`: puts a device into the place of another one.

use super::format::format_devices;
use super::format_args::format_options;
use super::join::{JoinOptions, Joiner};
use super::node::NodeArgs;
use super::plan;
use anyhow::Result;
use kiseki_server::format::plan_all;
use std::path::PathBuf;
use std::process::ExitCode;

/// Puts a device into the place of another one.
///
/// What a device held that failed or is gone is rebuilt on the devices that are there; its line in kiseki.toml becomes that of the
/// new one, and it counts as removed: to use it again it has to be formatted. One that still works is emptied first: with --wait
/// the command goes on until it is empty and has been let go.
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
