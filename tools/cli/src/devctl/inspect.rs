//! `inspect`: what one device carries.

use super::render::superblock_json;
use anyhow::Result;
use kiseki_devices::file_device::open_device;
use kiseki_devices::probe::probe_device;
use kiseki_devices::ring::RingOptions;
use kiseki_server::devices::describe;
use kiseki_server::format::on_executor;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Shows what a device carries: its superblock, or somebody else's signatures.
#[derive(clap::Args)]
pub struct Args {
    /// The device.
    device: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    inspect(&args.device, args.json)
}

fn inspect(path: &Path, json: bool) -> Result<ExitCode> {
    let described = describe(path);
    let name = path.to_owned();
    let signatures = on_executor(async |_| {
        let device = open_device(&name, RingOptions::default(), None)?;
        probe_device(&*device).await
    })??;
    let names: Vec<&str> = signatures.iter().map(|signature| signature.name.as_str()).collect();
    match (&described, json) {
        (Ok(found), true) => {
            let mut value = superblock_json(path, &found.superblock);
            value["signatures"] = json!(names);
            println!("{value:#}");
        }
        (Err(error), true) => println!(
            "{:#}",
            json!({ "path": path.display().to_string(), "error": error.to_string(), "signatures": names })
        ),
        (Ok(found), false) => println!("{}: {}", path.display(), found.summary()),
        (Err(error), false) => println!("{}: {error}", path.display()),
    }
    if !json {
        for signature in &signatures {
            println!("  carries {signature}; formatting it anew needs --wipe {}", signature.name);
        }
    }
    Ok(if described.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
