//! What `format` and `plan` are told.

use super::node::load;
use anyhow::{Result, bail};
use clap::ValueEnum;
use kiseki_devices::format::namespace::{BlockChoice, NamespaceChoice};
use kiseki_devices::nvme::admin::SecureErase;
use kiseki_devices::superblock::DeviceClass;
use kiseki_server::config::DEFAULT_LANES;
use kiseki_server::devices::describe;
use kiseki_server::format::FormatOptions;
use kiseki_server::key_store::{KeyStore, read_passphrase};
use kiseki_server::paths::DEFAULT_DIR;
use kiseki_types::ids::ClusterId;
use std::path::{Path, PathBuf};

/// The devices, and how they are to be formatted.
#[derive(clap::Args)]
pub struct DeviceArgs {
    /// Block devices and image files.
    #[arg(required = true)]
    pub devices: Vec<PathBuf>,
    /// Directory of the node that they are for; its key store names the cluster.
    #[arg(long, env = "KISEKI_DIR", default_value = DEFAULT_DIR)]
    pub dir: PathBuf,
    /// Cluster id in hex, instead of asking the node's key store.
    #[arg(long, value_parser = parse_cluster)]
    cluster: Option<ClusterId>,
    /// Lanes; taken from the node's other devices when it has any.
    #[arg(long)]
    lanes: Option<u16>,
    /// nvme, ssd, hdd or file; told from the device when left away.
    #[arg(long, value_parser = parse_class)]
    class: Option<DeviceClass>,
    /// Names of signatures that may be overwritten, as `inspect` prints them; comma separated or several times.
    #[arg(long, value_delimiter = ',')]
    wipe: Vec<String>,
    /// Have the drive format the namespace to its best block format: 4096 bytes where it has that.
    #[arg(long, conflicts_with_all = ["lbaf", "block_size"])]
    nvme_format: bool,
    /// Have the drive format the namespace to the block format of this number, as `inspect` lists them.
    #[arg(long, conflicts_with = "block_size")]
    lbaf: Option<u8>,
    /// Have the drive format the namespace to blocks of 4096 or 512 bytes, if it has others now.
    #[arg(long, value_parser = parse_block_size)]
    block_size: Option<u32>,
    /// Have the drive erase the namespace.
    #[arg(long, value_enum, default_value_t = EraseArg::None)]
    secure_erase: EraseArg,
}

/// How a drive erases.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EraseArg {
    /// Not at all, or as the drive likes.
    None,
    /// All user data.
    UserData,
    /// By throwing its own key away.
    Crypto,
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

fn parse_block_size(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|size| [512, 4096].contains(size)).ok_or_else(|| "4096 or 512".to_owned())
}

impl DeviceArgs {
    /// What the drive is to do.
    fn namespace(&self) -> NamespaceChoice {
        let blocks = match (self.nvme_format, self.lbaf, self.block_size) {
            (true, _, _) => BlockChoice::Preferred,
            (_, Some(index), _) => BlockChoice::Index(index),
            (_, _, Some(len)) => BlockChoice::BlockLen(len),
            _ => BlockChoice::Keep,
        };
        let erase = match self.secure_erase {
            EraseArg::None => SecureErase::None,
            EraseArg::UserData => SecureErase::UserData,
            EraseArg::Crypto => SecureErase::Cryptographic,
        };
        NamespaceChoice { blocks, erase }
    }

    /// All of it, with what the node says.
    pub fn options(&self) -> Result<FormatOptions> {
        let options = format_options(&self.dir, self.cluster, self.lanes, self.class, self.wipe.clone())?;
        Ok(FormatOptions { namespace: self.namespace(), ..options })
    }
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
        namespace: NamespaceChoice::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_32_hex_digits() {
        assert_eq!(parse_cluster(&"0f".repeat(16)), Ok(ClusterId([15; 16])));
        assert!(parse_cluster("0f").is_err() && parse_cluster(&"ä".repeat(16)).is_err());
        assert!(parse_block_size("4096").is_ok() && parse_block_size("1024").is_err());
    }
}
