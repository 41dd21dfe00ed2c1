//! `kiseki-devctl`: the verbs that format, inspect, list and verify devices, each in a file of its own.
//!
//! A verb is a file with `Args` (its flags; the doc comment is its help) and `run`. It is added by its `mod`, its
//! variant and its arm below.

mod asking;
mod bench;
mod completion;
mod drain;
mod enroll;
mod format;
mod format_args;
mod format_first;
mod inspect;
mod join;
mod list;
mod locate;
mod look;
mod man;
mod node;
mod plan;
mod render;
mod replace;
mod retire;
mod smart;
mod verify;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use kiseki_server::outcome;
use std::process::ExitCode;

/// Formats and examines the devices of Kiseki nodes.
///
/// A device that carries somebody's data (a file system, a partition table, another cluster) is never written to
/// unless each signature on it is named with --wipe; one that is in use never is. Every verb takes --json; every verb that
/// changes something takes --dry-run.
#[derive(Parser)]
#[command(
    name = "kiseki-devctl",
    version,
    about,
    after_help = "Exit codes: 0 done and nothing wrong, 1 refused (nothing was changed) or a problem found, 2 wrong usage,
3 failed on the way, 4 partly done.
With --json an error is one object on standard error: {\"error\":{outcome, exit_code, message, causes}}.
Docs: docs/devctl.md has a drive's life from end to end."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The verbs.
#[derive(Subcommand)]
enum Command {
    List(list::Args),
    Inspect(inspect::Args),
    Plan(plan::Args),
    Format(format::Args),
    Smart(smart::Args),
    Locate(locate::Args),
    Enroll(enroll::Args),
    Replace(replace::Args),
    Drain(drain::Args),
    Retire(retire::Args),
    Verify(verify::Args),
    Bench(bench::Args),
    Completion(completion::Args),
    #[command(hide = true)]
    Man(man::Args),
}

impl Command {
    /// Whether it may end at any line that it prints: what writes to devices may not.
    fn is_read_only(&self) -> bool {
        use Command::{Completion, Inspect, List, Plan, Smart};
        matches!(self, List(_) | Inspect(_) | Plan(_) | Smart(_) | Completion(_))
    }

    fn run(self) -> Result<ExitCode> {
        if self.is_read_only() {
            sigpipe::reset();
        }
        match self {
            Command::List(args) => list::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Plan(args) => plan::run(args),
            Command::Format(args) => format::run(args),
            Command::Smart(args) => smart::run(args),
            Command::Locate(args) => locate::run(args),
            Command::Enroll(args) => enroll::run(args),
            Command::Replace(args) => replace::run(args),
            Command::Drain(args) => drain::run(args),
            Command::Retire(args) => retire::run(args),
            Command::Verify(args) => verify::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Completion(args) => completion::run(args),
            Command::Man(args) => man::run(args),
        }
    }
}

/// The whole command line, for completions and manual pages.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the command line, runs the verb, and says what its exit code is.
#[must_use]
pub fn main() -> ExitCode {
    match outcome::parse::<Cli>().command.run() {
        Ok(code) => code,
        Err(error) => outcome::fail("kiseki-devctl", &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }
}
