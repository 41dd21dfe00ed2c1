//! Looks at a machine and a node's directory and tells what would hinder it, each finding with what mends it.

use crate::config::{Config, ConfigError, HealthSection, Overrides};
use crate::executor::BUFFER_POOL_LEN_BYTES;
use crate::smart::{self, SmartAnswer};
use crate::wear::{WearReading, findings};
use kiseki_devices::topology::{KernelRoots, Topology};
use serde::Serialize;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Lockable memory without which no executor can be made, per core: that of its rings.
const MEMLOCK_RINGS_BYTES: u64 = 512 * 1024;
/// What a core locks besides when it registers its buffers, and does without where it may not.
const MEMLOCK_BUFFERS_BYTES: u64 = BUFFER_POOL_LEN_BYTES as u64;
/// Open files: four a connection, one a device and core, metadata files.
const OPEN_FILES_MIN: u64 = 8192;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// The node runs, with something to know.
    Warning,
    /// The node does not run.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What.
    pub check: &'static str,
    /// How bad.
    pub severity: Severity,
    /// What was seen.
    pub message: String,
    /// The one command or step that mends it; empty when nothing needs mending.
    pub remedy: String,
}

/// As it should be.
pub fn ok(check: &'static str, message: impl Into<String>) -> Finding {
    Finding { check, severity: Severity::Ok, message: message.into(), remedy: String::new() }
}

/// Something to know.
pub fn warning(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { check, severity: Severity::Warning, message: message.into(), remedy: remedy.into() }
}

/// Something that has to be mended.
pub fn error(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { check, severity: Severity::Error, message: message.into(), remedy: remedy.into() }
}

/// Looks at everything.
#[must_use]
pub fn examine(overrides: &Overrides) -> Vec<Finding> {
    let mut findings = vec![cpu()];
    let config = Config::load(overrides);
    let cores = config.as_ref().map_or(1, |config| config.cores);
    findings.push(memlock(cores));
    findings.push(io_uring());
    findings.push(open_files());
    match config {
        Ok(config) => examine_node(&config, &mut findings),
        Err(ConfigError::Unreadable { path, dir, .. }) => findings.push(warning(
            "configuration",
            format!("{} is not there", path.display()),
            format!("kiseki-server init --dir {}", dir.display()),
        )),
        Err(bad) => findings.push(error("configuration", bad.to_string(), "correct the configuration")),
    }
    findings
}

fn examine_node(config: &Config, findings: &mut Vec<Finding>) {
    findings.push(ok("configuration", config.dir.config().display().to_string()));
    findings.push(match config.metadata_dirs.as_slice() {
        [one] => warning(
            "metadata directories",
            format!(
                "only {}: names, keys and the log of every change lie there alone; if it is lost, all data is lost",
                one.display()
            ),
            "make a directory on another disk, add it to metadata_dirs in kiseki.toml and restart: it is filled at start",
        ),
        many => ok("metadata directories", format!("{} with the same content", many.len())),
    });
    let (there, missing): (Vec<_>, Vec<_>) = config.metadata_dirs.iter().partition(|dir| dir.is_dir());
    for dir in missing {
        let name = dir.display();
        let remedy = format!("mount its disk; if it is lost, mkdir {name} and restart: it is filled from another one");
        findings.push(match there.is_empty() {
            true => error("metadata directory", format!("{name} is missing, as are all others"), "mount their disks"),
            false => warning("metadata directory", format!("{name} is missing; the node runs with the rest"), remedy),
        });
    }
    for dir in there {
        findings.push(direct_io("O_DIRECT in a metadata directory", dir));
    }
    let parents: std::collections::BTreeSet<&Path> =
        config.devices.iter().filter(|path| !path.starts_with("/dev")).filter_map(|path| path.parent()).collect();
    findings.extend(parents.into_iter().map(|dir| direct_io("O_DIRECT below the device images", dir)));
    findings.extend(config.devices.iter().map(|path| device(path, config)));
    findings.push(wear_watch(&config.health));
    let roots = KernelRoots::default();
    let listed = Topology::read(&roots);
    let there = config.devices.iter().filter(|path| path.exists());
    findings.extend(there.map(|path| drive_health(path, &smart::ask_listed(path, &listed, &roots), &config.health)));
    findings.push(key_store(config));
    findings.extend(config.peer.listen.map(|_| certificate(config)));
    let peer = config.peer.listen.map(|listen| ("members of the cluster", listen));
    for (what, address) in
        [("S3", config.s3.listen), ("health and metrics", config.admin.listen)].into_iter().chain(peer)
    {
        findings.push(match std::net::TcpListener::bind(address) {
            Ok(_) => ok("port", format!("{address} is free for {what}")),
            Err(problem) if problem.kind() == io::ErrorKind::AddrInUse => warning(
                "port",
                format!("{address}, wanted for {what}, is in use (by a running node, perhaps)"),
                format!("ss -ltnp 'sport = :{}'", address.port()),
            ),
            Err(problem) => error("port", format!("{address}: {problem}"), "choose another address in kiseki.toml"),
        });
    }
    for setting in config.unsafe_settings() {
        findings.push(warning("unsafe setting", format!("{setting} is set"), "set it to false in kiseki.toml"));
    }
}

fn cpu() -> Finding {
    let paths = crate::machine::cpu_paths();
    let text: Vec<String> = paths.iter().map(|(what, path)| format!("{what}: {path}")).collect();
    ok("CPU paths", text.join(", "))
}

/// Whether the executors of so many cores get the locked memory that they need.
#[must_use]
pub fn memlock(cores: u16) -> Finding {
    if may_lock_all() {
        return ok("locked memory", "no limit holds for this process (CAP_IPC_LOCK)");
    }
    memlock_within(rustix::process::getrlimit(rustix::process::Resource::Memlock).current, cores)
}

/// Whether the kernel asks for no limit: it looks at the capability in the first user namespace.
fn may_lock_all() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let is_first = map.split_whitespace().eq(["0", "0", "4294967295"]);
    let sets = rustix::thread::capabilities(None);
    is_first && sets.is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::IPC_LOCK))
}

fn memlock_within(limit_bytes: Option<u64>, cores: u16) -> Finding {
    let (rings, buffers) = (MEMLOCK_RINGS_BYTES * u64::from(cores), MEMLOCK_BUFFERS_BYTES * u64::from(cores));
    let remedy = "ulimit -l unlimited   (LimitMEMLOCK=infinity in a systemd unit)";
    match limit_bytes {
        Some(limit) if limit < rings => error(
            "locked memory",
            format!("the limit is {} KiB, {} KiB are needed for rings of {cores} cores", limit >> 10, rings >> 10),
            remedy,
        ),
        Some(limit) if limit < rings + buffers => warning(
            "locked memory",
            format!(
                "the limit is {} MiB, {} MiB are needed to register buffers of {cores} cores: without it each operation pins its pages",
                limit >> 20,
                (rings + buffers) >> 20
            ),
            remedy,
        ),
        Some(limit) => ok("locked memory", format!("up to {} MiB", limit >> 20)),
        None => ok("locked memory", "unlimited"),
    }
}

fn open_files() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    match limit.maximum {
        Some(limit) if limit < OPEN_FILES_MIN => warning(
            "open files",
            format!("the hard limit is {limit}; many connections need more"),
            "ulimit -Hn 1048576   (LimitNOFILE=1048576 in a systemd unit)",
        ),
        limit => ok("open files", limit.map_or("unlimited".to_owned(), |limit| format!("up to {limit}"))),
    }
}

/// Whether the kernel lets us use io_uring: tried, since a container's filter refuses what a setting allows.
#[must_use]
pub fn io_uring() -> Finding {
    match crate::machine::try_executor() {
        Ok(()) => ok("io_uring", "available"),
        Err(reason) => error(
            "io_uring",
            format!("not available: {reason}"),
            "sysctl -w kernel.io_uring_disabled=0   (in a container: allow io_uring in its seccomp profile)",
        ),
    }
}

/// Tries O_DIRECT in a directory, or in the nearest one above that exists.
fn direct_io(check: &'static str, dir: &Path) -> Finding {
    let Some(dir) = dir.ancestors().find(|dir| dir.is_dir()) else {
        return error(check, format!("{} does not exist", dir.display()), "kiseki-server init");
    };
    let path = dir.join(format!(".kiseki-doctor-{}", std::process::id()));
    let tried = OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32)
        .open(&path);
    let _removed = std::fs::remove_file(&path);
    match tried {
        Ok(_) => ok(check, format!("works in {}", dir.display())),
        Err(problem) => error(
            check,
            format!("{}: {problem}", dir.display()),
            "use a directory on ext4, XFS or a block device; tmpfs and overlay file systems lack direct I/O",
        ),
    }
}

fn device(path: &Path, config: &Config) -> Finding {
    let name = path.display();
    match crate::devices::describe(path) {
        Ok(found) => ok("device", format!("{name}: {}", found.summary())),
        Err(_) if !path.exists() => warning(
            "device",
            format!("{name} is missing; the node runs with the others"),
            format!("plug it in, or `kiseki-server init --dir {}` for a new image", config.dir.path().display()),
        ),
        Err(problem) => warning("device", format!("{name}: {problem}"), format!("kiseki-devctl inspect {name}")),
    }
}

/// What has a device emptied before it fails (I-D3).
fn wear_watch(health: &HealthSection) -> Finding {
    let HealthSection { smart_interval_s, used_percent_max, media_errors_max, read_errors_max } = health;
    ok(
        "wear watch",
        format!(
            "looks every {smart_interval_s} s; a device is emptied with over {used_percent_max} % of its life used, over \
             {media_errors_max} media errors, over {read_errors_max} read errors of ours, or a critical warning"
        ),
    )
}

/// What wear watch would do about a drive now.
fn drive_health(path: &Path, answer: &SmartAnswer, health: &HealthSection) -> Finding {
    let (check, name) = ("drive health", path.display());
    let blind = "wear watch goes by read errors alone";
    match answer {
        SmartAnswer::None => ok(check, format!("{name}: no SMART log, it is no NVMe drive: {blind}")),
        SmartAnswer::Failed(reason) => warning(
            check,
            format!("{name}: its SMART log can't be read ({reason}): {blind} until it can"),
            format!("run this as root; if it says so then too: kiseki-devctl smart {name}"),
        ),
        SmartAnswer::Log(log) => {
            let reading = WearReading::of(log);
            let against = findings(0, Some(&reading), health.limits());
            match against.first() {
                None => ok(check, format!("{name}: {}", reading.summary())),
                Some((_, reason)) => warning(
                    check,
                    format!("{name}: {}; a running node empties it: {reason}", reading.summary()),
                    format!("kiseki-devctl replace {name} NEW --wait"),
                ),
            }
        }
    }
}

fn key_store(config: &Config) -> Finding {
    let opened = crate::key_store::read_passphrase(&config.keys.passphrase_file)
        .and_then(|passphrase| crate::key_store::KeyStore::open(&config.keys.key_store_file, &passphrase));
    match opened {
        Ok(keys) => ok("key store", format!("opens; cluster {}", keys.cluster)),
        Err(problem) => {
            error("key store", problem.to_string(), "restore the key store and its passphrase from their copy")
        }
    }
}

/// The certificate by which a node is known to members of its cluster.
fn certificate(config: &Config) -> Finding {
    let remedy = "kiseki ca issue-node --replace (docs/cluster.md)";
    let dir = &config.peer.certificate_dir;
    let read = || -> anyhow::Result<_> {
        let (_, revoked) = crate::pki::issued::read_revoked(&config.peer.revoked_file)?;
        Ok(crate::pki::Bundle::read(dir)?.trust(dir, revoked)?.own())
    };
    let own = match read() {
        Ok(own) => own,
        Err(problem) => return error("certificate", format!("{problem:#}"), remedy),
    };
    match own.not_after.saturating_sub(crate::pki::authority::unix_now()) {
        0 => error("certificate", format!("that of {} has expired", own.name.role), remedy),
        left if left < crate::pki::issued::RENEW_BEFORE_S => {
            warning("certificate", format!("that of {} ends in {} days", own.name.role, left / 86_400), remedy)
        }
        left => ok("certificate", format!("that of {} is valid for {} days", own.name.role, left / 86_400)),
    }
}

/// The findings as text, worst first.
#[must_use]
pub fn render(findings: &[Finding]) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let mut text = String::new();
    for finding in sorted {
        let mark = match finding.severity {
            Severity::Ok => "ok     ",
            Severity::Warning => "WARNING",
            Severity::Error => "ERROR  ",
        };
        text.push_str(&format!("{mark}  {}: {}\n", finding.check, finding.message));
        if !finding.remedy.is_empty() {
            text.push_str(&format!("         mend: {}\n", finding.remedy));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_metadata_directory_is_told_with_its_meaning() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("kiseki.toml"), "metadata_dirs = ['meta0']\ndevices = ['d0']\n").unwrap();
        let overrides = Overrides { dir: dir.path().to_owned(), ..Overrides::default() };
        let findings = examine(&overrides);
        let found = findings.iter().find(|finding| finding.check == "metadata directories").unwrap();
        assert_eq!(found.severity, Severity::Warning);
        assert!(found.message.contains("lost"), "{}", found.message);
        let missing = findings.iter().find(|finding| finding.check == "device").unwrap();
        assert!(missing.message.contains("missing"));
        assert!(findings.iter().all(|finding| (finding.severity == Severity::Ok) == finding.remedy.is_empty()));
        let keys = findings.iter().find(|finding| finding.check == "key store").unwrap();
        assert_eq!(keys.severity, Severity::Error, "I-K18: no keys, no start");
    }

    #[test]
    fn too_little_locked_memory_stops_a_node_or_slows_it() {
        for (limit, cores, severity, words) in [
            (Some(1 << 20), 3, Severity::Error, "the limit is 1024 KiB, 1536 KiB are needed"),
            (Some(8 << 20), 2, Severity::Warning, "the limit is 8 MiB, 129 MiB are needed"),
            (Some(129 << 20), 2, Severity::Ok, "up to 129 MiB"),
            (None, 64, Severity::Ok, "unlimited"),
        ] {
            let found = memlock_within(limit, cores);
            assert_eq!(found.severity, severity, "{}", found.message);
            assert!(found.message.contains(words), "{}", found.message);
        }
    }

    #[test]
    fn i_d3_what_wear_watch_goes_by_and_would_do_is_told_of_each_drive() {
        let health = HealthSection { used_percent_max: 80, ..HealthSection::default() };
        let told = wear_watch(&health);
        assert!(told.message.contains("over 80 % of its life") && told.message.contains("300 s"), "{}", told.message);
        let log = |used: u8, critical: u8| {
            let mut page = vec![0; kiseki_devices::nvme::smart::SMART_LEN_BYTES];
            (page[0], page[3], page[5]) = (critical, 100, used);
            SmartAnswer::Log(Box::new(kiseki_devices::nvme::smart::SmartLog::parse(&page).unwrap()))
        };
        let failed = || SmartAnswer::Failed("Permission denied".to_owned());
        for (answer, severity, words) in [
            (log(80, 0), Severity::Ok, "80 % of its life used, 100 % spare"),
            (log(81, 0), Severity::Warning, "a running node empties it: 81 % of its life are used, 80 are allowed"),
            (log(5, 4), Severity::Warning, "it warns: reliability is degraded"),
            (failed(), Severity::Warning, "can't be read (Permission denied)"),
            (SmartAnswer::None, Severity::Ok, "wear watch goes by read errors alone"),
        ] {
            let found = drive_health(Path::new("/dev/nvme0n1"), &answer, &health);
            assert_eq!(found.severity, severity, "I-D3: {}", found.message);
            assert!(found.message.contains(words), "I-D3: {}", found.message);
        }
    }
}
