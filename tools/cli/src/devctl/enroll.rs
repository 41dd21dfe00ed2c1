//! `enroll`: takes devices into a node, running or not.

use super::format_first::FormatFirst;
use super::join::{JoinOptions, Joiner};
use super::node::{ElsewhereArgs, NodeArgs};
use anyhow::Result;
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
    #[command(flatten)]
    elsewhere: ElsewhereArgs,
    #[command(flatten)]
    first: FormatFirst,
    #[command(flatten)]
    join: JoinOptions,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let Args { devices, node, elsewhere, first, join } = args;
    first.check(&elsewhere)?;
    let mut joiner = Joiner::new(node.dir.clone(), &elsewhere, join)?;
    if let Some(code) = first.run(&devices, &node.dir, &mut joiner)? {
        return Ok(code);
    }
    for device in &devices {
        joiner.enroll(device).map_err(|error| joiner.partly(error))?;
    }
    joiner.finish()
}
