//! `format`: makes devices ours.

use super::node::load;
use super::render::superblock_json;
use anyhow::{Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use kiseki_devices::superblock::DeviceClass;
use kiseki_server::config::DEFAULT_LANES;
use kiseki_server::devices::describe;
use kiseki_server::format::{FormatOptions, format_all};
use kiseki_server::key_store::{KeyStore, read_passphrase};
use kiseki_server::paths::DEFAULT_DIR;
use kiseki_types::ids::ClusterId;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Formats devices for a node; everything on them is lost.
#[derive(clap::Args)]
pub struct Args {
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
}

pub fn run(args: Args) -> Result<ExitCode> {
    let Args { devices, dir, cluster, lanes, class, wipe, json } = args;
    let options = format_options(&dir, cluster, lanes, class, wipe)?;
    format_devices(&devices, &options, json)?;
    Ok(ExitCode::SUCCESS)
}

/// What the node's key store and its other devices say about a new device.
pub fn format_options(
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

/// Formats them one after the other, with a bar.
pub fn format_devices(devices: &[PathBuf], options: &FormatOptions, json: bool) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_32_hex_digits() {
        assert_eq!(parse_cluster(&"0f".repeat(16)), Ok(ClusterId([15; 16])));
        assert!(parse_cluster("0f").is_err() && parse_cluster(&"ä".repeat(16)).is_err());
    }
}
