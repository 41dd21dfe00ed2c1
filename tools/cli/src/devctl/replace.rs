//! `replace`: puts a device into the place of another one.

use super::format_first::FormatFirst;
use super::join::{JoinOptions, Joiner};
use super::node::{ElsewhereArgs, NodeArgs};
use anyhow::Result;
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
    #[command(flatten)]
    elsewhere: ElsewhereArgs,
    #[command(flatten)]
    first: FormatFirst,
    #[command(flatten)]
    join: JoinOptions,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let Args { old, new, node, elsewhere, first, join } = args;
    first.check(&elsewhere)?;
    let mut joiner = Joiner::new(node.dir.clone(), &elsewhere, join)?;
    joiner.check_leaving(&old, &new)?;
    let devices = [new.clone()];
    if let Some(code) = first.run(&devices, &node.dir, &mut joiner)? {
        return Ok(code);
    }
    joiner.replace(&old, &new).map_err(|error| joiner.partly(error))?;
    joiner.finish()
}
