//! `kiseki-devctl`: formats, inspects, lists and verifies devices, without a running node.

use anyhow::{Context, Result, anyhow, bail};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use indicatif::{ProgressBar, ProgressStyle};
use kiseki_devices::file_device::{DeviceLock, open_device};
use kiseki_devices::fragment_scan::{DeviceScan, scan_device};
use kiseki_devices::probe::probe_device;
use kiseki_devices::ring::RingOptions;
use kiseki_devices::superblock::{DeviceClass, Superblock};
use kiseki_server::config::{Config, DEFAULT_LANES, Overrides};
use kiseki_server::devices::describe;
use kiseki_server::format::{FormatOptions, format_all, on_executor};
use kiseki_server::key_store::{KeyStore, read_passphrase};
use kiseki_server::paths::DEFAULT_DIR;
use kiseki_types::ids::ClusterId;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Formats and examines the devices of Kiseki nodes.
///
/// A device that carries somebody's data (a file system, a partition table, another cluster) is never written to
/// unless each signature on it is named with --wipe.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Formats devices for a node; everything on them is lost.
    Format {
        /// Block devices and image files.
        #[arg(required = true)]
        devices: Vec<PathBuf>,
        /// Directory of the node that they are for; its key store names the cluster.
        #[arg(long, env = "KISEKI_DIR", default_value = DEFAULT_DIR)]
        dir: PathBuf,
        /// Cluster id in hex, instead of asking the node's key store.
        #[arg(long, value_parser = parse_cluster)]
        cluster: Option<ClusterId>,
        /// Lanes; taken from the node's other devices when it has any.
        #[arg(long)]
        lanes: Option<u16>,
        /// nvme, ssd, hdd or file; told from the path when left away.
        #[arg(long, value_parser = parse_class)]
        class: Option<DeviceClass>,
        /// Name of a signature that may be overwritten, as `inspect` prints it; may be given several times.
        #[arg(long)]
        wipe: Vec<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows what a device carries: its superblock, or somebody else's signatures.
    Inspect {
        /// The device.
        device: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lists the devices of a node and what is wrong with them.
    List {
        /// Directory of the node.
        #[arg(long, env = "KISEKI_DIR", default_value = DEFAULT_DIR)]
        dir: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Reads a whole device that no node uses and checks every fragment on it.
    Verify {
        /// The device.
        device: PathBuf,
        /// List every fragment, not only problems.
        #[arg(long)]
        fragments: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prints completions for a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
}

fn parse_cluster(text: &str) -> Result<ClusterId, String> {
    let digits: Option<Vec<u8>> = (0..text.len())
        .step_by(2)
        .map(|at| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect();
    let bytes = digits.and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    bytes.map(ClusterId).ok_or_else(|| "a cluster id is 32 hex digits".to_owned())
}

fn parse_class(text: &str) -> Result<DeviceClass, String> {
    DeviceClass::from_name(text).ok_or_else(|| "one of nvme, ssd, hdd, file".to_owned())
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kiseki-devctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Format { devices, dir, cluster, lanes, class, wipe, json } => {
            let options = format_options(&dir, cluster, lanes, class, wipe)?;
            format_devices(&devices, &options, json)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Inspect { device, json } => inspect(&device, json),
        Command::List { dir, json } => list(dir, json),
        Command::Verify { device, fragments, json } => verify(&device, fragments, json),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "kiseki-devctl", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn load(dir: PathBuf) -> Result<Config> {
    Ok(Config::load(&Overrides { dir, ..Overrides::default() })?)
}

/// What the node's key store and its other devices say about a new device.
fn format_options(
    dir: &Path,
    cluster: Option<ClusterId>,
    lanes: Option<u16>,
    class: Option<DeviceClass>,
    wipe: Vec<String>,
) -> Result<FormatOptions> {
    let config = load(dir.to_owned());
    let cluster = match (cluster, &config) {
        (Some(cluster), _) => cluster,
        (None, Ok(config)) => {
            let passphrase = read_passphrase(&config.keys.passphrase_file)?;
            KeyStore::open(&config.keys.key_store_file, &passphrase)?.cluster
        }
        (None, Err(error)) => bail!("{error}\nor say which cluster the devices are for: --cluster"),
    };
    let known: Vec<PathBuf> = config.map(|config| config.devices).unwrap_or_default();
    let newest = known
        .iter()
        .filter_map(|path| describe(path).ok())
        .map(|found| found.superblock)
        .filter(|superblock| superblock.cluster == cluster)
        .max_by_key(|superblock| superblock.metadata.epoch);
    let lanes_of_node = newest.as_ref().map(|superblock| superblock.layout.lanes());
    if let (Some(asked), Some(has)) = (lanes, lanes_of_node)
        && asked != has
    {
        bail!("the node's devices have {has} lanes; leave --lanes {asked} away");
    }
    Ok(FormatOptions {
        cluster,
        lanes: lanes.or(lanes_of_node).unwrap_or(DEFAULT_LANES),
        class,
        metadata: newest.map(|superblock| superblock.metadata).unwrap_or_default(),
        wipe,
    })
}

fn format_devices(devices: &[PathBuf], options: &FormatOptions, json: bool) -> Result<()> {
    let bar = if json { ProgressBar::hidden() } else { ProgressBar::new(devices.len() as u64) };
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")?);
    let mut done = Vec::new();
    let result = format_all(devices, options, |path, superblock| {
        bar.set_message(path.display().to_string());
        bar.inc(1);
        done.push((path.to_owned(), superblock.clone()));
    });
    bar.finish_and_clear();
    for (path, superblock) in &done {
        match json {
            true => println!("{}", superblock_json(path, superblock)),
            false => println!("{}: formatted as device {}", path.display(), superblock.device),
        }
    }
    result.map_err(|error| anyhow!(error).context("nothing was changed on the device named, nor on those behind it"))
}

fn superblock_json(path: &Path, superblock: &Superblock) -> Value {
    json!({
        "path": path.display().to_string(),
        "device": superblock.device.to_string(),
        "cluster": superblock.cluster.to_string(),
        "pool": superblock.pool.0,
        "class": superblock.class.name(),
        "lanes": superblock.layout.lanes(),
        "block_len_bytes": superblock.layout.block_len_bytes(),
        "capacity_bytes": superblock.layout.capacity_bytes(),
        "generation": superblock.generation,
        "incarnation": superblock.incarnation,
        "metadata_epoch": superblock.metadata.epoch,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        assert_eq!(parse_cluster(&"0f".repeat(16)), Ok(ClusterId([15; 16])));
        assert!(parse_cluster("0f").is_err() && parse_cluster(&"ä".repeat(16)).is_err());
    }
}
