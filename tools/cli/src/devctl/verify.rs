//! `verify`: reads a whole device and checks what is on it.

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use kiseki_devices::file_device::{DeviceLock, open_device};
use kiseki_devices::fragment_scan::{DeviceScan, scan_device};
use kiseki_devices::ring::RingOptions;
use kiseki_server::devices::describe;
use kiseki_server::format::on_executor;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Reads a whole device that no node uses and checks every fragment on it.
#[derive(clap::Args)]
pub struct Args {
    /// The device.
    device: PathBuf,
    /// List every fragment, not only problems.
    #[arg(long)]
    fragments: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    verify(&args.device, args.fragments, args.json)
}

/// Scans the zones; the exit code tells whether anything is wrong.
fn verify(path: &Path, fragments: bool, json: bool) -> Result<ExitCode> {
    let superblock = describe(path)?.superblock;
    let _lock = DeviceLock::acquire(path).context("a device is verified while no node uses it")?;
    let layout = superblock.layout;
    let bar = if json { ProgressBar::hidden() } else { ProgressBar::new(layout.capacity_bytes()) };
    bar.set_style(ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left")?);
    let name = path.to_owned();
    let scan: DeviceScan = on_executor(async |_| {
        let device = open_device(&name, RingOptions::default(), None)?;
        let scan = scan_device(&device, superblock.device, &layout, |done, _| bar.set_position(done)).await;
        anyhow::Ok(scan)
    })??;
    bar.finish_and_clear();
    print_scan(&scan, fragments, json);
    Ok(if scan.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_scan(scan: &DeviceScan, fragments: bool, json: bool) {
    if json {
        let found = scan.fragments.iter().filter(|_| fragments).map(|fragment| {
            json!({
                "locator": fragment.meta.key.locator.to_string(),
                "generation": fragment.meta.key.generation.0,
                "index": fragment.meta.key.index,
                "data": fragment.meta.shape.data,
                "parity": fragment.meta.shape.parity,
                "payload_len_bytes": fragment.meta.payload_len_bytes,
                "start_block": fragment.extent.start.0,
            })
        });
        let problems = scan
            .problems
            .iter()
            .map(|problem| json!({ "start_block": problem.start.0, "kind": format!("{:?}", problem.kind) }));
        let value = json!({
            "fragment_count": scan.fragments.len(),
            "fragments": found.collect::<Vec<_>>(),
            "problems": problems.collect::<Vec<_>>(),
        });
        println!("{value:#}");
        return;
    }
    for fragment in scan.fragments.iter().filter(|_| fragments) {
        let key = &fragment.meta.key;
        println!("{} {} index {} at {}", key.locator, key.generation, key.index, fragment.extent);
    }
    for problem in &scan.problems {
        println!("block {}: {:?}", problem.start.0, problem.kind);
    }
    println!("{} fragments, {} problems", scan.fragments.len(), scan.problems.len());
}
