//! `completion`: completions for a shell.

use anyhow::Result;
use clap_complete::Shell;
use std::process::ExitCode;

/// Prints completions for a shell.
#[derive(clap::Args)]
pub struct Args {
    /// The shell.
    shell: Shell,
}

pub fn run(args: Args) -> Result<ExitCode> {
    clap_complete::generate(args.shell, &mut super::command(), "kiseki-devctl", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}
