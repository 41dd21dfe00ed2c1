//! Configuration: flags override the environment, the environment overrides `kiseki.toml`; an unknown key refuses to
//! start; the result is made of checked types and printed at start.

use crate::inline_section::InlineSection;
use crate::log_section::{LogFormat, LogSection};
use crate::paths::{DEFAULT_DIR, KisekiDir};
use crate::peer_section::PeerSection;
use crate::pool_shape::PoolShape;
use crate::shard_admin::ShardsSection;
use crate::space::{DiscardSection, FillSection};
use crate::wear::WearLimits;
use clap::{Args, ValueEnum};
use kiseki_devices::nvme::path::PathPreference;
use kiseki_engine::rebalancer::RebalanceSettings;
use kiseki_engine::repairer::RepairSettings;
use kiseki_engine::scrubber::ScrubSettings;
use kiseki_executor::BUSY_POLL;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// Lanes that a node's devices are formatted with when nobody says otherwise.
pub const DEFAULT_LANES: u16 = 4;
/// Port of S3 when nobody says otherwise.
pub const DEFAULT_S3_PORT: u16 = 9000;
/// Port of the read-only HTTP side when nobody says otherwise.
pub const DEFAULT_ADMIN_PORT: u16 = 9090;
/// Longest configuration file.
const FILE_LEN_BYTES_MAX: u64 = 1 << 20;
/// Longest look of a core that waits.
const BUSY_POLL_US_MAX: u16 = 10_000;

/// Most cores of one node.
const CORES_MAX: u16 = 1024;
/// Most stripes that one core repairs at once: each takes its fragments in memory.
const STRIPES_AT_ONCE_MAX: usize = 64;

/// Where devices may differ by more than this, none is worth balancing: 0 says so.
const FILL_DIFFERENCE_PERCENT_MAX: u8 = 50;
/// Longest interval of scrub, ten years: longer ones are a way to say never.
const SCRUB_INTERVAL_H_MAX: u32 = 10 * 365 * 24;
/// Shortest interval of wear watch: each look takes a command of a drive's admin queue.
const SMART_INTERVAL_S_MIN: u32 = 10;
/// Longest interval of wear watch: a drive must not wear out between two looks.
const SMART_INTERVAL_S_MAX: u32 = 24 * 3600;
/// Most side threads of one node.
const SIDE_THREADS_MAX: u16 = 1024;

/// Why a configuration is refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration {path}: {source}; `kiseki-server init --dir {dir}` makes one")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Its directory.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file says something that means nothing.
    #[error("{path}: {reason}\ncorrect or remove that line; every key is described in the comments `init` writes")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What and where.
        reason: String,
    },
    /// A value can't be used.
    #[error("{key} = {value}: {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What would do.
        reason: &'static str,
    },
}

/// `kiseki.toml`. Relative paths start at the directory that holds it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileConfig {
    /// Executors; 0 means one for each CPU.
    pub cores: u16,
    /// For how many microseconds at most a core that waits for a drive looks for the answer before it sleeps; 0: never. Default 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busy_poll_us: Option<u16>,
    /// Side threads; 0 means a number that suits the cores.
    pub side_threads: u16,
    /// Directories of the metadata set.
    pub metadata_dirs: Vec<PathBuf>,
    /// Image files and block devices.
    pub devices: Vec<PathBuf>,
    /// How NVMe drives are driven.
    pub device_path: DevicePath,
    /// How the first pool of a new cluster protects chunks; by the number of devices when it is not set. What a cluster has been
    /// made with stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_pool: Option<PoolShape>,
    /// One copy of every chunk on one device: a lost device loses data. Needed to run with a single device.
    pub unsafe_single_copy: bool,
    /// Never read what nobody asks for: rot is found when it is too late. The one way to turn scrub off, and named so
    /// because it weakens durability (I-O1).
    pub unsafe_no_scrub: bool,
    /// Towards S3 clients.
    pub s3: S3Section,
    /// Repair of stripes.
    pub repair: RepairSection,
    /// Moving what is stored to where it would be put today.
    pub rebalance: RebalanceSection,
    /// Reading and checking of everything.
    pub scrub: ScrubSection,
    /// When a shard is split.
    pub shards: ShardsSection,
    /// Small objects that lie beside their names.
    pub inline: InlineSection,
    /// From when on a device is emptied.
    pub health: HealthSection,
    /// How full devices may get.
    pub fill: FillSection,
    /// Telling devices of freed space.
    pub discard: DiscardSection,
    /// Health and metrics.
    pub admin: AdminSection,
    /// Links to other nodes, and administration from elsewhere.
    pub peer: PeerSection,
    /// The key store.
    pub keys: KeysSection,
    /// What is logged.
    pub log: LogSection,
}

/// Section `[repair]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RepairSection {
    /// MiB of fragments that the node reads and writes a second for repair while no client is served.
    pub mib_per_second_max: u32,
    /// Stripes that each core repairs at once.
    pub stripes_at_once: usize,
}

/// Section `[rebalance]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RebalanceSection {
    /// Percent of fill by which devices of a pool may differ before fuller ones give to emptier ones; 0: they may differ by any.
    pub fill_difference_percent: u8,
}

/// Section `[scrub]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScrubSection {
    /// Hours in which everything is read once.
    pub interval_h: u32,
    /// MiB of fragments that the node reads a second at most for it.
    pub mib_per_second_max: u32,
}

/// Section `[health]`: when wear watch has a device emptied (I-D3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthSection {
    /// Seconds between two looks at what NVMe drives say of their health.
    pub smart_interval_s: u32,
    /// Percent of a drive's life, by its maker's estimate.
    pub used_percent_max: u8,
    /// Media errors that a drive counts itself.
    pub media_errors_max: u64,
    /// Errors that our own reads met on a device.
    pub read_errors_max: u64,
}

/// Section `[s3]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Section {
    /// Where S3 is served.
    pub listen: SocketAddr,
    /// The region that buckets say they are in.
    pub region: String,
    /// Certificate chain, PEM.
    pub certificate_file: PathBuf,
    /// Its private key, PEM.
    pub private_key_file: PathBuf,
    /// The certificate authority that clients should trust, PEM; only written into `env`.
    pub ca_file: PathBuf,
    /// Serve without TLS: anyone on the path reads and changes everything.
    pub unsafe_s3_plaintext: bool,
    /// Connections that one core serves at once.
    pub connections_per_core_max: usize,
}

/// Section `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminSection {
    /// Where health and metrics are served (read only).
    pub listen: SocketAddr,
}

/// Section `[keys]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeysSection {
    /// The key store.
    pub key_store_file: PathBuf,
    /// Holds the passphrase that opens it.
    pub passphrase_file: PathBuf,
}

/// How NVMe drives are driven; files and other block devices have one way only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DevicePath {
    /// By commands to the character device where that can be done, else through the block device.
    #[default]
    Auto,
    /// By commands; a drive that can't be is not used.
    Passthrough,
    /// Through the block device.
    IoUring,
}

impl From<DevicePath> for PathPreference {
    fn from(path: DevicePath) -> PathPreference {
        match path {
            DevicePath::Auto => PathPreference::Auto,
            DevicePath::Passthrough => PathPreference::Passthrough,
            DevicePath::IoUring => PathPreference::IoUring,
        }
    }
}

impl Default for S3Section {
    fn default() -> S3Section {
        S3Section {
            listen: SocketAddr::from(([127, 0, 0, 1], DEFAULT_S3_PORT)),
            region: "us-east-1".to_owned(),
            certificate_file: "tls/server.crt".into(),
            private_key_file: "tls/server.key".into(),
            ca_file: "tls/ca.crt".into(),
            unsafe_s3_plaintext: false,
            connections_per_core_max: 4096,
        }
    }
}

impl Default for RepairSection {
    fn default() -> RepairSection {
        RepairSection { mib_per_second_max: 400, stripes_at_once: 2 }
    }
}

impl RepairSection {
    /// One core's share.
    #[must_use]
    pub fn of_core(&self, cores: u16) -> RepairSettings {
        RepairSettings {
            bytes_per_second_max: mib_of_core(self.mib_per_second_max, cores),
            stripes_at_once: self.stripes_at_once,
        }
    }
}

impl Default for RebalanceSection {
    fn default() -> RebalanceSection {
        let RebalanceSettings { fill_difference_percent } = RebalanceSettings::default();
        RebalanceSection { fill_difference_percent }
    }
}

impl RebalanceSection {
    /// As the engine takes them.
    #[must_use]
    pub fn settings(&self) -> RebalanceSettings {
        RebalanceSettings { fill_difference_percent: self.fill_difference_percent }
    }
}

impl Default for HealthSection {
    fn default() -> HealthSection {
        HealthSection { smart_interval_s: 300, used_percent_max: 90, media_errors_max: 100, read_errors_max: 100 }
    }
}

impl HealthSection {
    /// As wear watch takes them.
    #[must_use]
    pub fn limits(&self) -> WearLimits {
        WearLimits {
            used_percent_max: self.used_percent_max,
            media_errors_max: self.media_errors_max,
            read_errors_max: self.read_errors_max,
        }
    }
}

impl Default for ScrubSection {
    fn default() -> ScrubSection {
        ScrubSection { interval_h: 336, mib_per_second_max: 200 }
    }
}

fn mib_of_core(mib: u32, cores: u16) -> u64 {
    (u64::from(mib) << 20).div_ceil(u64::from(cores.max(1)))
}

impl Default for AdminSection {
    fn default() -> AdminSection {
        AdminSection { listen: SocketAddr::from(([127, 0, 0, 1], DEFAULT_ADMIN_PORT)) }
    }
}

impl Default for KeysSection {
    fn default() -> KeysSection {
        KeysSection { key_store_file: "keys/key-store".into(), passphrase_file: "keys/passphrase".into() }
    }
}

/// Whether S3 is served over TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum S3Tls {
    /// Over TLS.
    On,
    /// Without: sets `unsafe_s3_plaintext`.
    Off,
}

/// What flags and environment say; each overrides the file.
#[derive(Debug, Clone, Default, Args)]
pub struct Overrides {
    /// The node's directory.
    #[arg(long, env = "KISEKI_DIR", default_value = DEFAULT_DIR, global = true)]
    pub dir: PathBuf,
    /// Address that S3 listens on.
    #[arg(long, env = "KISEKI_S3_HOST")]
    pub s3_host: Option<IpAddr>,
    /// Port of S3.
    #[arg(long, env = "KISEKI_S3_PORT")]
    pub s3_port: Option<u16>,
    /// Serve S3 over TLS or not.
    #[arg(long, env = "KISEKI_S3_TLS", ignore_case = true)]
    pub s3_tls: Option<S3Tls>,
    /// Port of health and metrics.
    #[arg(long, env = "KISEKI_ADMIN_PORT")]
    pub admin_port: Option<u16>,
    /// Address and port where other nodes and administration from elsewhere connect (see `[peer]` in kiseki.toml); off unless set.
    #[arg(long, env = "KISEKI_PEER_LISTEN")]
    pub peer_listen: Option<SocketAddr>,
    /// The rack that the node is in: what fails together.
    #[arg(long, env = "KISEKI_RACK")]
    pub rack: Option<String>,
    /// MB a second of small objects that a shard takes beside its names; 0: none.
    #[arg(long, env = "KISEKI_RAFT_INLINE_MBPS", value_name = "MB")]
    pub raft_inline_mbps: Option<u32>,
    /// How full, in percent, metadata directories may be before fewer small objects are taken so.
    #[arg(long, env = "KISEKI_META_SOFT_LIMIT_PCT", value_name = "PERCENT")]
    pub meta_soft_limit_pct: Option<u8>,
    /// How full, in percent, before only the smallest are.
    #[arg(long, env = "KISEKI_META_HARD_LIMIT_PCT", value_name = "PERCENT")]
    pub meta_hard_limit_pct: Option<u8>,
    /// Executors, each pinned to a CPU; 0 means one for each CPU.
    #[arg(long, env = "KISEKI_CORES")]
    pub cores: Option<u16>,
    /// For how many microseconds at most a core that waits for a drive looks for the answer before it sleeps; 0: never.
    #[arg(long, env = "KISEKI_BUSY_POLL_US", value_name = "MICROSECONDS")]
    pub busy_poll_us: Option<u16>,
    /// Side threads for metadata files; 0 means a number that suits the cores.
    #[arg(long, env = "KISEKI_SIDE_THREADS")]
    pub side_threads: Option<u16>,
    /// File with the passphrase of the key store.
    #[arg(long, env = "KISEKI_PASSPHRASE_FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Log filter, such as `info` or `info,kiseki_raft=debug`.
    #[arg(long, env = "KISEKI_LOG")]
    pub log: Option<String>,
    /// Log format.
    #[arg(long, env = "KISEKI_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// The configuration that a node runs with: checked, paths absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The node's directory.
    pub dir: KisekiDir,
    /// Executors.
    pub cores: u16,
    /// How long a core looks for answers before it sleeps, in microseconds.
    pub busy_poll_us: u16,
    /// Side threads.
    pub side_threads: u16,
    /// The metadata set.
    pub metadata_dirs: Vec<PathBuf>,
    /// Devices, in the order of the file.
    pub devices: Vec<PathBuf>,
    /// How NVMe drives are driven.
    pub device_path: DevicePath,
    /// The first pool of a new cluster, where it is chosen.
    pub first_pool: Option<PoolShape>,
    /// Run with one copy on one device.
    pub unsafe_single_copy: bool,
    /// Never scrub.
    pub unsafe_no_scrub: bool,
    /// Towards S3 clients.
    pub s3: S3Section,
    /// Repair of stripes.
    pub repair: RepairSection,
    /// Moving what is stored to where it would be put today.
    pub rebalance: RebalanceSection,
    /// Reading and checking of everything.
    pub scrub: ScrubSection,
    /// When a shard is split.
    pub shards: ShardsSection,
    /// Small objects that lie beside their names.
    pub inline: InlineSection,
    /// From when on a device is emptied.
    pub health: HealthSection,
    /// How full devices may get.
    pub fill: FillSection,
    /// Telling devices of freed space.
    pub discard: DiscardSection,
    /// Health and metrics.
    pub admin: AdminSection,
    /// Links to other nodes, and administration from elsewhere.
    pub peer: PeerSection,
    /// The key store.
    pub keys: KeysSection,
    /// What is logged.
    pub log: LogSection,
}

impl FileConfig {
    /// Parses `kiseki.toml`.
    pub fn parse(text: &str) -> Result<FileConfig, String> {
        toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())
    }
}

impl Config {
    /// How long a core looks for answers before it sleeps.
    #[must_use]
    pub fn busy_poll(&self) -> Duration {
        Duration::from_micros(self.busy_poll_us.into())
    }

    /// Reads the file below `overrides.dir` and lays the overrides over it.
    pub fn load(overrides: &Overrides) -> Result<Config, ConfigError> {
        let dir = KisekiDir::at(&overrides.dir).map_err(|source| unreadable(&overrides.dir, source))?;
        let path = dir.config();
        let bytes = crate::files::read_bounded(&path, FILE_LEN_BYTES_MAX)
            .map_err(|source| unreadable(&overrides.dir, source))?;
        let invalid = |reason| ConfigError::Invalid { path: path.clone(), reason };
        let text = String::from_utf8(bytes).map_err(|_| invalid("not UTF-8".to_owned()))?;
        let file = FileConfig::parse(&text).map_err(invalid)?;
        Config::combine(dir, file, overrides)
    }

    /// Lays overrides over a file and checks the result.
    pub fn combine(dir: KisekiDir, file: FileConfig, overrides: &Overrides) -> Result<Config, ConfigError> {
        let FileConfig { mut s3, mut admin, mut peer, mut keys, mut log, repair, rebalance, .. } = file;
        let (scrub, shards, health, fill, discard) = (file.scrub, file.shards, file.health, file.fill, file.discard);
        let inline = file.inline.overridden(overrides);
        if let Some(host) = overrides.s3_host {
            s3.listen.set_ip(host);
        }
        if let Some(port) = overrides.s3_port {
            s3.listen.set_port(port);
        }
        if let Some(tls) = overrides.s3_tls {
            s3.unsafe_s3_plaintext = tls == S3Tls::Off;
        }
        if let Some(port) = overrides.admin_port {
            admin.listen.set_port(port);
        }
        peer.listen = overrides.peer_listen.or(peer.listen);
        peer.rack = overrides.rack.clone().unwrap_or(peer.rack);
        for path in [
            &mut s3.certificate_file,
            &mut s3.private_key_file,
            &mut s3.ca_file,
            &mut peer.certificate_dir,
            &mut peer.revoked_file,
        ] {
            *path = dir.resolve(path);
        }
        keys.key_store_file = dir.resolve(&keys.key_store_file);
        keys.passphrase_file = match &overrides.passphrase_file {
            // A flag is relative to where it is typed, a line of the file to the file.
            Some(path) => std::path::absolute(path).unwrap_or_else(|_| path.clone()),
            None => dir.resolve(&keys.passphrase_file),
        };
        log.filter = overrides.log.clone().unwrap_or(log.filter);
        log.format = overrides.log_format.unwrap_or(log.format);
        let cpus = std::thread::available_parallelism().map_or(1, |count| u16::try_from(count.get()).unwrap_or(1));
        let cores = match overrides.cores.unwrap_or(file.cores) {
            0 => cpus,
            cores => cores,
        };
        let side_threads = match overrides.side_threads.unwrap_or(file.side_threads) {
            0 => cores.saturating_mul(2).max(8), // refused below where it is too much
            threads => threads,
        };
        let config = Config {
            cores,
            busy_poll_us: overrides.busy_poll_us.or(file.busy_poll_us).unwrap_or(BUSY_POLL.as_micros() as u16),
            side_threads,
            metadata_dirs: file.metadata_dirs.iter().map(|path| dir.resolve(path)).collect(),
            devices: file.devices.iter().map(|path| dir.resolve(path)).collect(),
            device_path: file.device_path,
            first_pool: file.first_pool,
            unsafe_single_copy: file.unsafe_single_copy,
            unsafe_no_scrub: file.unsafe_no_scrub,
            s3,
            repair,
            rebalance,
            scrub,
            shards,
            inline,
            health,
            fill,
            discard,
            admin,
            peer,
            keys,
            log,
            dir,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key, value: String, reason| Err(ConfigError::Value { key, value, reason });
        if self.cores > CORES_MAX {
            return refuse("cores", self.cores.to_string(), "at most 1024");
        }
        if self.busy_poll_us > BUSY_POLL_US_MAX {
            return refuse("busy_poll_us", self.busy_poll_us.to_string(), "at most 10000");
        }
        if self.side_threads > SIDE_THREADS_MAX {
            return refuse("side_threads", self.side_threads.to_string(), "at most 1024");
        }
        if self.metadata_dirs.is_empty() {
            return refuse("metadata_dirs", "[]".to_owned(), "name at least one directory, better two on two disks");
        }
        if self.devices.is_empty() {
            return refuse("devices", "[]".to_owned(), "name at least two devices or image files");
        }
        for (key, paths) in [("metadata_dirs", &self.metadata_dirs), ("devices", &self.devices)] {
            let mut sorted = paths.clone();
            sorted.sort();
            if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
                return refuse(key, twice[0].display().to_string(), "named twice; name each once");
            }
        }
        if self.s3.connections_per_core_max == 0 {
            return refuse("s3.connections_per_core_max", "0".to_owned(), "at least 1");
        }
        if self.repair.mib_per_second_max == 0 {
            return refuse("repair.mib_per_second_max", "0".to_owned(), "at least 1: repair is never off");
        }
        if !(1..=STRIPES_AT_ONCE_MAX).contains(&self.repair.stripes_at_once) {
            return refuse("repair.stripes_at_once", self.repair.stripes_at_once.to_string(), "1 to 64");
        }
        if self.rebalance.fill_difference_percent > FILL_DIFFERENCE_PERCENT_MAX {
            let value = self.rebalance.fill_difference_percent.to_string();
            return refuse(
                "rebalance.fill_difference_percent",
                value,
                "at most 50; 0 to let devices differ as they may",
            );
        }
        self.inline.check()?;
        if self.scrub.interval_h == 0 {
            let reason = "at least 1 hour; to never read what nobody asks for, set unsafe_no_scrub = true";
            return refuse("scrub.interval_h", "0".to_owned(), reason);
        }
        if self.scrub.interval_h > SCRUB_INTERVAL_H_MAX {
            return refuse("scrub.interval_h", self.scrub.interval_h.to_string(), "at most ten years, 87600");
        }
        if self.scrub.mib_per_second_max == 0 {
            return refuse("scrub.mib_per_second_max", "0".to_owned(), "at least 1");
        }
        if !(SMART_INTERVAL_S_MIN..=SMART_INTERVAL_S_MAX).contains(&self.health.smart_interval_s) {
            let value = self.health.smart_interval_s.to_string();
            return refuse("health.smart_interval_s", value, "10 seconds to one day, 86400: wear watch is never off");
        }
        self.fill.check()?;
        if self.discard.mib_per_second_max == 0 {
            let reason = "at least 1; to discard nothing, set discard.classes = []";
            return refuse("discard.mib_per_second_max", "0".to_owned(), reason);
        }
        if self.s3.listen == self.admin.listen && self.s3.listen.port() != 0 {
            let value = self.admin.listen.to_string();
            return refuse("admin.listen", value, "S3 listens there; choose another port");
        }
        if let Some(listen) = self.peer.listen.filter(|listen| listen.port() != 0)
            && [self.s3.listen, self.admin.listen].contains(&listen)
        {
            return refuse("peer.listen", listen.to_string(), "S3 or health listens there; choose another port");
        }
        self.peer.check()?;
        if self.first_pool.is_some_and(|pool| pool.stripe().parity == 0) && !self.unsafe_single_copy {
            let reason = "a lost device loses data; choose another shape, or set unsafe_single_copy = true";
            return refuse("first_pool", String::from(self.first_pool.expect("it is set")), reason);
        }
        Ok(())
    }

    /// One core's share of scrub.
    #[must_use]
    pub fn scrub_of_core(&self) -> Option<ScrubSettings> {
        let settings = ScrubSettings {
            interval: Duration::from_secs(u64::from(self.scrub.interval_h) * 3600),
            bytes_per_second_max: mib_of_core(self.scrub.mib_per_second_max, self.cores),
        };
        (!self.unsafe_no_scrub).then_some(settings)
    }

    /// Where clients reach S3.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let scheme = if self.s3.unsafe_s3_plaintext { "http" } else { "https" };
        format!("{scheme}://{}", self.s3.listen)
    }

    /// What weakens durability or secrecy in this configuration, for health (I-O1).
    #[must_use]
    pub fn unsafe_settings(&self) -> Vec<&'static str> {
        let settings = [
            ("unsafe_s3_plaintext", self.s3.unsafe_s3_plaintext),
            ("unsafe_single_copy", self.unsafe_single_copy),
            ("unsafe_no_scrub", self.unsafe_no_scrub),
        ];
        settings.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect()
    }

    /// The configuration as text, for the log at start. It holds no secret.
    #[must_use]
    pub fn describe(&self) -> String {
        let file = FileConfig {
            cores: self.cores,
            busy_poll_us: Some(self.busy_poll_us),
            side_threads: self.side_threads,
            metadata_dirs: self.metadata_dirs.clone(),
            devices: self.devices.clone(),
            device_path: self.device_path,
            first_pool: self.first_pool,
            unsafe_single_copy: self.unsafe_single_copy,
            unsafe_no_scrub: self.unsafe_no_scrub,
            s3: self.s3.clone(),
            repair: self.repair.clone(),
            rebalance: self.rebalance.clone(),
            scrub: self.scrub.clone(),
            shards: self.shards.clone(),
            inline: self.inline.clone(),
            health: self.health.clone(),
            fill: self.fill.clone(),
            discard: self.discard.clone(),
            admin: self.admin.clone(),
            peer: self.peer.clone(),
            keys: self.keys.clone(),
            log: self.log.clone(),
        };
        toml::to_string(&file).expect("a configuration is plain TOML")
    }
}

fn unreadable(dir: &std::path::Path, source: std::io::Error) -> ConfigError {
    ConfigError::Unreadable { path: dir.join("kiseki.toml"), dir: dir.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn combine(text: &str, overrides: &Overrides) -> Result<Config, ConfigError> {
        let dir = KisekiDir::at(Path::new("/node")).unwrap();
        Config::combine(dir, FileConfig::parse(text).unwrap(), overrides)
    }

    const SMALL: &str = "metadata_dirs = ['meta0']\ndevices = ['d0', '/dev/d1']\n";

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        for text in ["flush_everything = true", "[s3]\nregoin = 'x'", "[s4]"] {
            let reason = FileConfig::parse(text).unwrap_err();
            assert!(reason.contains("unknown field"), "{text}: {reason}");
        }
    }

    #[test]
    fn the_way_to_drives_is_one_of_three() {
        assert_eq!(combine(SMALL, &Overrides::default()).unwrap().device_path, DevicePath::Auto);
        let config = combine(&format!("device_path = 'io_uring'\n{SMALL}"), &Overrides::default()).unwrap();
        assert_eq!(PathPreference::from(config.device_path), PathPreference::IoUring);
        assert!(config.describe().contains("device_path = \"io_uring\""));
        assert!(FileConfig::parse("device_path = 'spdk'").unwrap_err().contains("passthrough"));
    }

    #[test]
    fn overrides_win_over_the_file_and_paths_start_at_the_directory() {
        let text = format!("cores = 3\n{SMALL}[s3]\nlisten = '0.0.0.0:7000'\n");
        let config = combine(&text, &Overrides::default()).unwrap();
        assert_eq!(config.cores, 3);
        assert_eq!(config.devices, [Path::new("/node/d0"), Path::new("/dev/d1")]);
        assert_eq!(config.endpoint(), "https://0.0.0.0:7000");
        assert!(config.unsafe_settings().is_empty());
        let overrides =
            Overrides { s3_port: Some(7001), s3_tls: Some(S3Tls::Off), cores: Some(1), ..Overrides::default() };
        let config = combine(&text, &overrides).unwrap();
        assert_eq!(config.endpoint(), "http://0.0.0.0:7001");
        assert_eq!(config.cores, 1);
        assert_eq!(config.unsafe_settings(), ["unsafe_s3_plaintext"], "I-O1: shown in health");
    }

    #[test]
    fn values_that_can_not_work_are_named() {
        for (text, key) in [
            ("cores = 40000\nmetadata_dirs = ['m']\ndevices = ['d']", "cores"),
            ("busy_poll_us = 10001\nmetadata_dirs = ['m']\ndevices = ['d']", "busy_poll_us"),
            ("devices = ['d0']", "metadata_dirs"),
            ("metadata_dirs = ['m']", "devices"),
            ("metadata_dirs = ['m']\ndevices = ['d', 'd']", "devices"),
            ("metadata_dirs = ['m']\ndevices = ['d']\n[scrub]\ninterval_h = 0", "scrub.interval_h"),
            ("metadata_dirs = ['m']\ndevices = ['d']\n[repair]\nstripes_at_once = 0", "repair.stripes_at_once"),
            (
                "metadata_dirs = ['m']\ndevices = ['d']\n[rebalance]\nfill_difference_percent = 51",
                "rebalance.fill_difference_percent",
            ),
            ("metadata_dirs = ['m']\ndevices = ['d']\n[health]\nsmart_interval_s = 0", "health.smart_interval_s"),
            ("metadata_dirs = ['m']\ndevices = ['d']\n[fill.ssd]\nwarn_percent = 91", "fill.ssd"),
            ("metadata_dirs = ['m']\ndevices = ['d']\n[discard]\nmib_per_second_max = 0", "discard.mib_per_second_max"),
            ("metadata_dirs = ['m']\ndevices = ['d']\n[admin]\nlisten = '127.0.0.1:9000'", "admin.listen"),
            ("metadata_dirs = ['m']\ndevices = ['d']\n[peer]\nlisten = '127.0.0.1:9000'", "peer.listen"),
            ("metadata_dirs = ['m']\ndevices = ['d']\n[peer]\naddresses = ['storage1']", "peer.addresses"),
            ("metadata_dirs = ['m']\ndevices = ['d']\n[peer]\nrack = 'row 3'", "peer.rack"),
            ("first_pool = '1 copy'\nmetadata_dirs = ['m']\ndevices = ['d']", "first_pool"),
        ] {
            let error = combine(text, &Overrides::default()).unwrap_err();
            assert!(error.to_string().starts_with(key), "{text}: {error}");
        }
    }

    #[test]
    fn scrub_is_off_only_by_a_name_that_says_what_it_costs() {
        let config = combine(SMALL, &Overrides { cores: Some(2), ..Overrides::default() }).unwrap();
        let scrub = config.scrub_of_core().expect("on when nobody says otherwise");
        assert_eq!((scrub.interval, scrub.bytes_per_second_max), (Duration::from_secs(336 * 3600), 100 << 20));
        let config = combine(&format!("unsafe_no_scrub = true\n{SMALL}"), &Overrides::default()).unwrap();
        assert_eq!(config.scrub_of_core(), None);
        assert_eq!(config.unsafe_settings(), ["unsafe_no_scrub"], "I-O1: shown in health");
    }

    #[test]
    fn what_is_printed_at_start_parses_to_the_same() {
        let text = format!("first_pool = '4+2'\n{SMALL}[peer]\nlisten = '[::]:9100'\naddresses = ['storage1:9100']\n");
        let config = combine(&text, &Overrides::default()).unwrap();
        let again = FileConfig::parse(&config.describe()).unwrap();
        let again = Config::combine(config.dir.clone(), again, &Overrides::default()).unwrap();
        assert_eq!(again, config);
    }
}
