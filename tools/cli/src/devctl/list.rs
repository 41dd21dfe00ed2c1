//! `list`: the devices of a node.

use super::node::{NodeArgs, load};
use super::render::superblock_json;
use anyhow::Result;
use kiseki_server::devices::describe;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

/// Lists the devices of a node and what is wrong with them.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    list(args.node.dir, args.json)
}

fn list(dir: PathBuf, json: bool) -> Result<ExitCode> {
    let config = load(dir)?;
    let mut rows = Vec::new();
    for path in &config.devices {
        match describe(path) {
            Ok(found) if json => rows.push(superblock_json(path, &found.superblock)),
            Ok(found) => println!("{}: {}", path.display(), found.summary()),
            Err(error) if json => {
                rows.push(json!({ "path": path.display().to_string(), "error": error.to_string() }));
            }
            Err(error) => println!("{}: {error}", path.display()),
        }
    }
    if json {
        println!("{:#}", Value::Array(rows));
    }
    Ok(ExitCode::SUCCESS)
}
