//! `replace`: puts a device into the place of one that can't be used any more.

use super::format::{format_devices, format_options};
use super::join::{JoinOptions, Joiner};
use super::node::NodeArgs;
use anyhow::Result;
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
    /// With --format: name of a signature that may be overwritten, as `inspect` prints it; may be given several times.
    #[arg(long, requires = "format")]
    wipe: Vec<String>,
    #[command(flatten)]
    join: JoinOptions,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let Args { old, new, node, format, wipe, join } = args;
    let mut joiner = Joiner::new(node.dir.clone(), join)?;
    let devices = [new.clone()];
    if format && joiner.is_dry_run() {
        return joiner.dry_run_of_format(&devices, &wipe);
    }
    if format {
        joiner.check_before_format(&devices)?;
        let options = format_options(&node.dir, None, None, None, wipe)?;
        format_devices(&devices, &options, joiner.is_json())?;
    }
    joiner.replace(&old, &new)?;
    joiner.finish()
}
