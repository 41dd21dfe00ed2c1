//! Checks that no compiler makes: which room imports which, that invariants have tests, that files stay readable.
//!
//! `cargo run -p xtask -- check` reports everything it finds and never edits.
#![forbid(unsafe_code)]

mod invariants;
mod rooms;
mod sources;

use anyhow::Result;
use clap::{Parser, Subcommand};
use sources::Tree;
use std::path::PathBuf;
use std::process::ExitCode;

/// Checks of the whole tree.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Checks and reports; edits nothing.
    Check {
        /// Top of the tree.
        #[arg(long, default_value = ".")]
        root: PathBuf,
    },
}

fn main() -> Result<ExitCode> {
    let Command::Check { root } = Cli::parse().command;
    let tree = Tree::read(&root)?;
    let checks: [(&str, Vec<String>); 5] = [
        ("files open with //!", sources::openings(&tree)),
        ("files stay readable", sources::lengths(&tree)),
        ("words", sources::words(&tree)),
        ("rooms import as the style guide says", rooms::check(&tree)),
        ("invariants have tests", invariants::check(&tree)),
    ];
    let mut failed = 0;
    for (name, problems) in &checks {
        println!("{} {name}", if problems.is_empty() { "ok  " } else { "FAIL" });
        for problem in problems {
            println!("       {problem}");
        }
        failed += usize::from(!problems.is_empty());
    }
    println!("{} passed, {failed} failed", checks.len() - failed);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
