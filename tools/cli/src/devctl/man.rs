//! `man`: the manual pages, one for each verb.

use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;

/// Writes the manual pages into a directory.
#[derive(clap::Args)]
pub struct Args {
    /// The directory.
    dir: PathBuf,
}

pub fn run(args: Args) -> Result<ExitCode> {
    clap_mangen::generate_to(super::command(), args.dir)?;
    Ok(ExitCode::SUCCESS)
}
