//! Makes a directory ready for a first start: configuration, certificates, key store, metadata directories, devices.
//!
//! Every step looks first and makes only what is missing, so that it can run again at any time; nothing that exists is
//! ever written over, formatted again or given new keys (I-O4).

use crate::certificates;
use crate::config::{DEFAULT_LANES, FileConfig};
use crate::devices;
use crate::files::{Readers, sync_parent, write_whole};
use crate::format::{FormatOptions, format_all};
use crate::join;
use crate::key_store::{KeyStore, read_passphrase};
use crate::metadata;
use crate::paths::KisekiDir;
use crate::pki::{Bundle, FIRST_NODE, IssueOptions, PkiDir, authority};
use crate::pool_shape::PoolShape;
use anyhow::{Context, Result, bail};
use kiseki_devices::DeviceError;
use kiseki_devices::file_device::create_image;
use kiseki_devices::format::namespace::NamespaceChoice;
use kiseki_devices::nvme::path::PathPreference;
use kiseki_net::peer::PeerRole;
use kiseki_types::ids::ClusterId;
use std::fs::DirBuilder;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Image files of a first node.
pub const DEFAULT_DEVICE_COUNT: u16 = 8;
/// Bytes of each.
pub const DEFAULT_DEVICE_LEN_BYTES: u64 = 8 << 30;

/// What to make.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// Where.
    pub dir: KisekiDir,
    /// The passphrase file to use instead of a new one below `keys/`.
    pub passphrase_file: Option<PathBuf>,
    /// Image files to make.
    pub device_count: u16,
    /// Bytes of each.
    pub device_len_bytes: u64,
    /// Metadata directories to make.
    pub metadata_dir_count: u16,
    /// Lanes to format with.
    pub lanes: u16,
    /// Further host names and addresses for the server certificate.
    pub names: Vec<String>,
    /// Where other nodes and administration from elsewhere connect; nothing listens when it is not set.
    pub peer_listen: Option<SocketAddr>,
    /// Where other nodes reach it, HOST:PORT; `peer_listen` when it is empty.
    pub peer_addresses: Vec<String>,
    /// The rack that the node is in; empty: none.
    pub rack: String,
    /// How the first pool protects chunks, when it is not to follow from the number of devices.
    pub first_pool: Option<PoolShape>,
}

impl InitOptions {
    /// What `make run` asks for.
    #[must_use]
    pub fn usual(dir: KisekiDir) -> InitOptions {
        InitOptions {
            dir,
            passphrase_file: None,
            device_count: DEFAULT_DEVICE_COUNT,
            device_len_bytes: DEFAULT_DEVICE_LEN_BYTES,
            metadata_dir_count: 2,
            lanes: DEFAULT_LANES,
            names: Vec::new(),
            peer_listen: None,
            peer_addresses: Vec::new(),
            rack: String::new(),
            first_pool: None,
        }
    }
}

/// What one run made; things that were there already are not listed.
pub type Made = Vec<String>;

/// Makes what is missing.
pub fn run(options: &InitOptions) -> Result<Made> {
    let mut made = Made::new();
    let config = write_config(options, &mut made)?;
    write_certificates(options, &config, &mut made)?;
    let keys = make_keys(options, &config, &mut made)?;
    make_pki(options, &config, keys.cluster, &mut made)?;
    for path in &config.metadata_dirs {
        let path = options.dir.resolve(path);
        if !path.exists() {
            make_dir(&path)?;
            made.push(format!("metadata directory {}", path.display()));
        }
    }
    make_devices(options, &config, keys.cluster, &mut made)?;
    make_metadata(options, &config, keys.cluster, &mut made)?;
    Ok(made)
}

/// Makes a directory for the owner only, and those above it.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path).with_context(|| format!("can't make {}", path.display()))?;
    sync_parent(path)?;
    Ok(())
}

/// Writes the configuration unless there is one, and reads it.
pub(crate) fn write_config(options: &InitOptions, made: &mut Made) -> Result<FileConfig> {
    make_dir(options.dir.path())?;
    let path = options.dir.config();
    if !path.exists() {
        write_whole(&path, config_text(options).as_bytes(), Readers::Everybody)
            .with_context(|| format!("can't write {}", path.display()))?;
        made.push(format!("configuration {}", path.display()));
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    match FileConfig::parse(&text) {
        Ok(config) => Ok(config),
        Err(reason) => bail!("{}: {reason}", path.display()),
    }
}

fn config_text(options: &InitOptions) -> String {
    let list = |paths: Vec<String>| paths.iter().map(|path| format!("\"{path}\"")).collect::<Vec<_>>().join(", ");
    let metadata = list((0..options.metadata_dir_count).map(|index| format!("meta{index}")).collect());
    let peer_listen = match options.peer_listen {
        Some(listen) => format!("listen = \"{listen}\""),
        None => "# listen = \"0.0.0.0:9100\"".to_owned(),
    };
    let peer_addresses = list(options.peer_addresses.clone());
    let rack = match options.rack.as_str() {
        "" => "# rack = \"r7\"".to_owned(),
        rack => format!("rack = \"{rack}\""),
    };
    let first_pool = match options.first_pool {
        Some(shape) => format!("first_pool = \"{}\"", String::from(shape)),
        None => "# first_pool = \"4+2\"".to_owned(),
    };
    let devices = list((0..options.device_count).map(|index| format!("devices/d{index}.img")).collect());
    format!(
        "# Kiseki node. Relative paths start at this directory. Flags override the environment, the environment\n\
         # overrides this file; an unknown key refuses to start.\n\
         \n\
         # Executors, each pinned to a CPU; 0 means one for each CPU.\n\
         cores = 0\n\
         # For how many microseconds at most a core that waits for a drive looks for the answer before it sleeps: sooner answers\n\
         # for processor time. 0: never.\n\
         # busy_poll_us = 200\n\
         # Threads for metadata files; 0 means a number that suits the cores.\n\
         side_threads = 0\n\
         # Directories that hold the same metadata. Put them on different disks: with one left nothing is lost.\n\
         metadata_dirs = [{metadata}]\n\
         # Image files and block devices, formatted by `kiseki-devctl format`. The order does not matter.\n\
         devices = [{devices}]\n\
         # How NVMe drives are driven: \"auto\" (by commands where that can be done), \"passthrough\" or \"io_uring\".\n\
         device_path = \"auto\"\n\
         # How a new cluster's first pool protects chunks: \"4+2\" (data and parity), \"2 copies\". Unless this is set it\n\
         # follows from the number of devices. A cluster that exists keeps what it was made with.\n\
         {first_pool}\n\
         # Run on a single device, one copy of everything: a lost device loses its data. Shown in health.\n\
         unsafe_single_copy = false\n\
         # Never read what nobody asks for, so that rot is found when it is too late. Shown in health.\n\
         unsafe_no_scrub = false\n\
         \n\
         [repair]\n\
         # MiB of fragments that the node reads and writes a second to bring stripes back to full width; a quarter of\n\
         # it while clients are served, except for stripes that can't afford another loss.\n\
         mib_per_second_max = 400\n\
         # Stripes that each core repairs at once.\n\
         stripes_at_once = 2\n\
         \n\
         [rebalance]\n\
         # When devices of a pool differ in fill by more than so many points of a hundred, fuller ones give to emptier ones, at the\n\
         # pace of repair; 0: never. Stripes spread over nodes that join in any case.\n\
         fill_difference_percent = 5\n\
         \n\
         [scrub]\n\
         # Everything is read and checked once in so many hours, at no more than so many MiB a second.\n\
         interval_h = 336\n\
         mib_per_second_max = 200\n\
         \n\
         [shards]\n\
         # A shard of a tenant's names that holds more objects or GiB than this for a minute, or whose names change more\n\
         # often, has itself split where half of what is asked for lies on either side. 0: never for this.\n\
         split_objects = 0\n\
         split_gib = 0\n\
         split_writes_per_minute = 0\n\
         \n\
         [inline]\n\
         # Small objects lie beside their names, in the metadata directories of three nodes, and not in chunks on the devices. So\n\
         # many MB a second of them in each shard of a tenant's names, then they become chunks; 0: none.\n\
         mb_per_second_max = 10\n\
         # Up to which length: each shard has a threshold, 4 KiB at first, that falls within these bounds with the room that\n\
         # metadata directories have; it rises by `kiseki shard threshold`.\n\
         floor_bytes = 128\n\
         ceiling_bytes = 65536\n\
         # It falls faster while metadata directories are fuller than so many percent, and is at the floor beyond the second.\n\
         metadata_soft_percent_max = 50\n\
         metadata_fill_percent_max = 75\n\
         \n\
         [health]\n\
         # Seconds between two looks at the health that NVMe drives report.\n\
         smart_interval_s = 300\n\
         # A device is emptied before it fails: when more than so many percent of its life are used, or when it counts\n\
         # more than so many media errors, or our own reads met more than so many. `kiseki-devctl drain --cancel` keeps it.\n\
         used_percent_max = 90\n\
         media_errors_max = 100\n\
         read_errors_max = 100\n\
         \n\
         # How full devices of a class may get, in percent: from warn on status warns, at critical the pool refuses new\n\
         # data of clients with 507 (deletes and repair go on), at read-only a device takes nothing more. Also\n\
         # [fill.nvme], [fill.ssd], [fill.hdd].\n\
         [fill.file]\n\
         warn_percent = 80\n\
         critical_percent = 90\n\
         read_only_percent = 95\n\
         \n\
         [discard]\n\
         # Classes whose devices are told of freed space (TRIM; image files give it back to their file system), at no\n\
         # more than so many MiB a second each; after a start once for all free space.\n\
         classes = [\"nvme\", \"ssd\", \"file\"]\n\
         mib_per_second_max = 512\n\
         after_start = true\n\
         \n\
         [s3]\n\
         listen = \"127.0.0.1:9000\"\n\
         region = \"us-east-1\"\n\
         certificate_file = \"tls/server.crt\"\n\
         private_key_file = \"tls/server.key\"\n\
         # What clients trust; only written into `env` and the clients' configurations.\n\
         ca_file = \"tls/ca.crt\"\n\
         # Serve S3 without TLS: anyone on the path reads and changes everything. Shown in health.\n\
         unsafe_s3_plaintext = false\n\
         connections_per_core_max = 4096\n\
         \n\
         [admin]\n\
         # Health and metrics, read only. Changes go through admin.sock in this directory.\n\
         listen = \"127.0.0.1:9090\"\n\
         \n\
         [peer]\n\
         # Other nodes of the cluster (`kiseki node add`) and administration from elsewhere (`kiseki --node HOST:PORT --cert DIR`),\n\
         # over TLS, for holders of a certificate of this cluster. Nothing listens unless this is set:\n\
         {peer_listen}\n\
         # Where the other nodes reach this one, as HOST:PORT, the best first; needed where `listen` is 0.0.0.0 or [::].\n\
         addresses = [{peer_addresses}]\n\
         # What fails together, such as the nodes behind one switch: no rack gets more of a stripe than can be lost where there are\n\
         # racks enough, and the voters of a shard are in different ones. A node that names none fails alone.\n\
         {rack}\n\
         # The node's certificate, and the list of revoked ones, which is read again when it changes.\n\
         certificate_dir = \"pki/node\"\n\
         revoked_file = \"pki/revoked\"\n\
         \n\
         [keys]\n\
         # Keep a copy of both files in another place: without them the data can't be read.\n\
         key_store_file = \"keys/key-store\"\n\
         passphrase_file = \"keys/passphrase\"\n\
         \n\
         [log]\n\
         filter = \"info\"\n\
         format = \"text\"\n\
         slow_request_ms = 1000\n"
    )
}

fn write_certificates(options: &InitOptions, config: &FileConfig, made: &mut Made) -> Result<()> {
    let certificate = options.dir.resolve(&config.s3.certificate_file);
    let key = options.dir.resolve(&config.s3.private_key_file);
    let ca = options.dir.resolve(&config.s3.ca_file);
    if key.exists() && certificate.exists() {
        return Ok(());
    }
    let generated = certificates::generate(&options.names).context("can't make certificates")?;
    for path in [&certificate, &key, &ca] {
        make_dir(path.parent().context("a certificate lies in a directory")?)?;
    }
    // The key is written last: as long as it is missing a second run starts over.
    write_whole(&ca, generated.ca.as_bytes(), Readers::Everybody)?;
    write_whole(&certificate, generated.server.as_bytes(), Readers::Everybody)?;
    write_whole(&key, generated.server_key.as_bytes(), Readers::Owner)?;
    made.push(format!("certificates in {}", certificate.parent().unwrap_or(&certificate).display()));
    Ok(())
}

fn make_keys(options: &InitOptions, config: &FileConfig, made: &mut Made) -> Result<KeyStore> {
    let store = options.dir.resolve(&config.keys.key_store_file);
    let passphrase_file = passphrase_file(options, config);
    if store.exists() {
        return Ok(KeyStore::open(&store, &read_passphrase(&passphrase_file)?)?);
    }
    // Keys that are gone while devices are there: new keys would only hide the loss (I-O4, I-K18).
    let mut devices = config.devices.iter().map(|path| options.dir.resolve(path));
    let device = devices.find(|path| path.exists() && !was_never_formatted(path));
    if let Some(device) = device {
        bail!(
            "{} is missing, but the device {} exists: its data can be read with its own keys only; restore the key \
             store and its passphrase from their copy",
            store.display(),
            device.display()
        );
    }
    if options.dir.nodes_file().exists() {
        bail!("this directory was to join a cluster and has no keys yet: run `kiseki-server init --join BUNDLE` again");
    }
    // The node that forms a cluster has its keys before its certificate, so one without keys is of another cluster (I-O4).
    let member = options.dir.resolve(&config.peer.certificate_dir);
    if let Some(found) = Bundle::files(&member).into_iter().find(|path| path.exists()) {
        bail!(
            "{} is there and {} is not: a directory that was to join goes on with `kiseki-server init --join BUNDLE`; one that \
             had keys gets them from their copy",
            found.display(),
            store.display()
        );
    }
    let keys = KeyStore::generate(fill_random);
    store_keys(options, config, &keys, made)?;
    Ok(keys)
}

/// Seals keys under this node's own passphrase, which is made when it is not there.
pub(crate) fn store_keys(options: &InitOptions, config: &FileConfig, keys: &KeyStore, made: &mut Made) -> Result<()> {
    let store = options.dir.resolve(&config.keys.key_store_file);
    let passphrase_file = passphrase_file(options, config);
    for path in [&store, &passphrase_file] {
        make_dir(path.parent().context("a key file lies in a directory")?)?;
    }
    if !passphrase_file.exists() {
        let mut bytes = Zeroizing::new([0; 32]);
        fill_random(&mut *bytes);
        let mut text = Zeroizing::new(hex::encode(*bytes));
        text.push('\n');
        write_whole(&passphrase_file, text.as_bytes(), Readers::Owner)?;
        made.push(format!("passphrase {}", passphrase_file.display()));
    }
    keys.create(&store, &read_passphrase(&passphrase_file)?, fill_random)?;
    made.push(format!("key store {}", store.display()));
    Ok(())
}

fn passphrase_file(options: &InitOptions, config: &FileConfig) -> PathBuf {
    options.passphrase_file.clone().unwrap_or_else(|| options.dir.resolve(&config.keys.passphrase_file))
}

/// Makes the cluster's authority and this node's certificate, unless they come from somewhere else.
fn make_pki(options: &InitOptions, config: &FileConfig, cluster: ClusterId, made: &mut Made) -> Result<()> {
    let dir = PkiDir::at(&options.dir.pki());
    let out = options.dir.resolve(&config.peer.certificate_dir);
    let files = Bundle::files(&out);
    let (there, missing): (Vec<&PathBuf>, Vec<&PathBuf>) = files.iter().partition(|path| path.exists());
    let Some(first_missing) = missing.first() else { return Ok(()) };
    // A bundle is written with its key last, so what has a key was whole, and may be of an authority elsewhere.
    let [_, _, key] = &files;
    if key.exists() {
        bail!(
            "{} is there and {} is not: copy what is missing from where it was issued, or move the key away for a new \
             certificate",
            key.display(),
            first_missing.display()
        );
    }
    // A node may also have the list of revoked certificates from there.
    let revoked = dir.revoked();
    let from_elsewhere = there.into_iter().chain(revoked.exists().then_some(&revoked)).next();
    let was_begun_here = dir.authority().exists() || dir.issued().exists();
    if let Some(found) = from_elsewhere.filter(|_| !was_begun_here) {
        bail!(
            "{} comes from an authority elsewhere: copy the rest of what `kiseki ca issue-node` made there into {}",
            found.display(),
            out.display()
        );
    }
    let (authority, is_new) = authority::open_or_create(&dir, cluster)?;
    if is_new {
        made.push(format!(
            "authority of the cluster in {} (keep a copy of ca.key in another place)",
            dir.path().display()
        ));
    }
    let issue = IssueOptions {
        role: PeerRole::Node(FIRST_NODE),
        addresses: options.names.clone(),
        days: authority::NODE_DAYS,
        out: out.clone(),
        replace: false,
    };
    authority.issue(&issue)?;
    made.push(format!("certificate of the node in {}", out.display()));
    Ok(())
}

/// The kernel's generator; without it no key is safe, so there is nothing to go on with.
fn fill_random(out: &mut [u8]) {
    getrandom::fill(out).expect("the kernel's random generator answers");
}

/// Makes and formats the image files that are not there.
///
/// Each is made under another name and renamed when formatted: whatever carries a device's name is a device, and an
/// existing one is never touched.
fn make_devices(options: &InitOptions, config: &FileConfig, cluster: ClusterId, made: &mut Made) -> Result<()> {
    let all: Vec<PathBuf> = config.devices.iter().map(|path| options.dir.resolve(path)).collect();
    let missing: Vec<&PathBuf> = all.iter().filter(|path| !path.exists()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    // A node that runs already has a metadata-set epoch, which a new device must know too.
    let others = all.iter().filter(|path| path.exists()).filter_map(|path| devices::describe(path).ok());
    let newest = others.max_by_key(|other| other.superblock.metadata.epoch).map(|other| other.superblock);
    let format = FormatOptions {
        cluster,
        lanes: newest.as_ref().map_or(options.lanes, |superblock| superblock.layout.lanes()),
        class: None,
        metadata: newest.map(|superblock| superblock.metadata).unwrap_or_default(),
        wipe: Vec::new(),
        namespace: NamespaceChoice::default(),
    };
    let mut unfinished = Vec::new();
    for path in &missing {
        if path.starts_with("/dev") {
            bail!("{} does not exist; plug the device in, or take it out of `devices`", path.display());
        }
        make_dir(path.parent().context("a device lies in a directory")?)?;
        let beside = unfinished_name(path);
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => create_image(&beside, options.device_len_bytes)?,
        }
        unfinished.push(beside);
    }
    format_all(&unfinished, &format, |_, _| {}).context("can't format")?;
    for (path, beside) in missing.into_iter().zip(&unfinished) {
        std::fs::rename(beside, path)?;
        sync_parent(path)?;
        made.push(format!("device {} ({} MiB, sparse)", path.display(), options.device_len_bytes >> 20));
    }
    Ok(())
}

/// A bare drive, named in the configuration before it is formatted. What can't be read may be anything.
fn was_never_formatted(path: &Path) -> bool {
    matches!(devices::describe(path), Err(DeviceError::NeverFormatted { .. }))
}

fn unfinished_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

/// Makes the metadata set in its directories, unless the devices know of one.
fn make_metadata(options: &InitOptions, config: &FileConfig, cluster: ClusterId, made: &mut Made) -> Result<()> {
    let resolve = |paths: &[PathBuf]| paths.iter().map(|path| options.dir.resolve(path)).collect::<Vec<_>>();
    let knows_of_set = |path: &PathBuf| devices::describe(path).is_ok_and(|found| found.superblock.metadata.epoch > 0);
    let paths = resolve(&config.devices);
    if paths.iter().any(knows_of_set) {
        return note_joined(options, config, cluster);
    }
    // Bare drives are formatted by name, never by the way.
    if paths.iter().all(|path| was_never_formatted(path)) {
        let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        made.push(format!("next: `kiseki-devctl format {}`, then `kiseki-server init` again", names.join(" ")));
        return Ok(());
    }
    let found = devices::open_all(&paths, cluster, PathPreference::IoUring);
    let witness = metadata::witness(&found.usable, paths.len());
    if metadata::create_if_new(cluster, &resolve(&config.metadata_dirs), witness)? {
        made.push("metadata set".to_owned());
    }
    drop(found); // its devices are opened again
    note_joined(options, config, cluster)
}

/// Notes in the metadata directories that the node belongs to a cluster that others have formed (I-O4), where that is so.
fn note_joined(options: &InitOptions, config: &FileConfig, cluster: ClusterId) -> Result<()> {
    let resolve = |paths: &[PathBuf]| paths.iter().map(|path| options.dir.resolve(path)).collect::<Vec<_>>();
    let dirs = resolve(&config.metadata_dirs);
    if !options.dir.nodes_file().exists() || metadata::is_settled(&dirs) {
        return Ok(());
    }
    // A node that runs has noted it, or has formed the cluster.
    let Ok(_alone) = crate::node::lock_dir(&options.dir) else { return Ok(()) };
    let devices = resolve(&config.devices);
    let found = devices::open_all(&devices, cluster, PathPreference::IoUring);
    let metadata = metadata::open(cluster, &dirs, metadata::witness(&found.usable, devices.len()))?;
    if metadata.forms_cluster()
        && let Some(note) = join::note_of(&options.dir, config)?
    {
        metadata::note_joined(&metadata.dir, note)?;
    }
    metadata.dir.close().context("the metadata directories can't be closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(dir: &Path) -> InitOptions {
        let dir = KisekiDir::at(dir).unwrap();
        InitOptions { device_count: 3, device_len_bytes: 64 << 20, lanes: 2, ..InitOptions::usual(dir) }
    }

    #[test]
    fn i_o4_a_second_run_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let options = small(&dir.path().join("node"));
        assert_eq!(run(&options).unwrap().len(), 1 + 1 + 2 + 2 + 2 + 3 + 1);
        let bytes = |name: &str| std::fs::read(options.dir.path().join(name)).unwrap();
        let names = [
            "kiseki.toml",
            "tls/server.key",
            "keys/key-store",
            "keys/passphrase",
            "pki/ca.key",
            "pki/node/peer.key",
            "devices/d1.img",
        ];
        let before: Vec<_> = names.iter().map(|name| bytes(name)).collect();
        assert!(run(&options).unwrap().is_empty());
        let after: Vec<_> = names.iter().map(|name| bytes(name)).collect();
        assert!(before == after, "I-O4: what exists stays as it is");
    }

    #[test]
    fn a_member_s_key_and_what_comes_from_another_authority_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let options = small(&dir.path().join("node"));
        run(&options).unwrap();
        let pki = options.dir.pki();
        let file = |name: &str| pki.join("node").join(name);
        let key = std::fs::read(file("peer.key")).unwrap();
        let certificate = std::fs::read(file("peer.crt")).unwrap();
        std::fs::remove_file(file("peer.crt")).unwrap();
        let refused = run(&options).unwrap_err().to_string();
        assert!(refused.contains("peer.key") && std::fs::read(file("peer.key")).unwrap() == key, "{refused}");
        // A crash leaves a bundle without its key.
        std::fs::remove_file(file("peer.key")).unwrap();
        assert_eq!(run(&options).unwrap().len(), 1);
        assert_ne!(std::fs::read(file("peer.crt")).unwrap(), certificate);
        // This directory's authority is gone, and what is left of the member came from elsewhere.
        for name in ["ca.crt", "ca.key", "issued"] {
            std::fs::remove_file(pki.join(name)).unwrap();
        }
        std::fs::remove_file(file("peer.key")).unwrap();
        let refused = run(&options).unwrap_err().to_string();
        assert!(refused.contains("elsewhere") && !pki.join("ca.crt").exists(), "{refused}");
    }

    #[test]
    fn i_o4_a_directory_that_joins_notes_who_it_is_before_it_can_start() {
        let dir = tempfile::tempdir().unwrap();
        let options = small(&dir.path().join("node"));
        let config = write_config(&options, &mut Made::new()).unwrap();
        let keys = KeyStore::generate(fill_random);
        let (authority, _) =
            authority::open_or_create(&PkiDir::at(&dir.path().join("authority")), keys.cluster).unwrap();
        let out = options.dir.resolve(&config.peer.certificate_dir);
        let role = PeerRole::Node(kiseki_types::ids::NodeId(3));
        authority.issue(&IssueOptions { role, addresses: Vec::new(), days: 90, out, replace: false }).unwrap();
        crate::nodes_file::NodesFile::of(keys.cluster, 8, 1, &[]).write(&options.dir).unwrap();
        let refused = run(&options).unwrap_err().to_string();
        assert!(refused.contains("--join"), "I-O4: cut off before the keys came, no new ones are made: {refused}");
        store_keys(&options, &config, &keys, &mut Made::new()).unwrap();
        run(&options).unwrap();
        let devices: Vec<PathBuf> = config.devices.iter().map(|path| options.dir.resolve(path)).collect();
        let dirs: Vec<PathBuf> = config.metadata_dirs.iter().map(|path| options.dir.resolve(path)).collect();
        let found = devices::open_all(&devices, keys.cluster, PathPreference::IoUring);
        let metadata = metadata::open(keys.cluster, &dirs, metadata::witness(&found.usable, 3)).unwrap();
        assert_eq!(metadata.joined, Some(metadata::JoinNote { node: 3, homes: 8 }));
        assert!(metadata.is_new && !metadata.forms_cluster(), "I-O4: it makes its lanes, and no cluster");
        let other = metadata::note_joined(&metadata.dir, metadata::JoinNote { node: 4, homes: 8 });
        assert!(other.unwrap_err().to_string().contains("belongs to node 3"), "I-L10");
        drop((metadata, found));
        assert!(run(&options).unwrap().is_empty(), "nothing is left to make");
    }

    #[test]
    fn bare_drives_are_formatted_by_name_before_they_carry_a_metadata_set() {
        let dir = tempfile::tempdir().unwrap();
        let options = small(dir.path());
        let drives = [0, 1].map(|index| options.dir.path().join(format!("drive{index}")));
        drives.iter().for_each(|path| create_image(path, 64 << 20).unwrap());
        std::fs::write(options.dir.config(), "metadata_dirs = [\"meta\"]\ndevices = [\"drive0\", \"drive1\"]\n")
            .unwrap();
        let made = run(&options).unwrap();
        assert!(
            made.last().unwrap().contains("kiseki-devctl format") && made.last().unwrap().contains("drive1"),
            "{made:?}"
        );
        assert!(drives.iter().all(|path| was_never_formatted(path)), "I-D7");
        let passphrase = read_passphrase(&options.dir.path().join("keys/passphrase")).unwrap();
        let keys = KeyStore::open(&options.dir.path().join("keys/key-store"), &passphrase).unwrap();
        let format = FormatOptions {
            cluster: keys.cluster,
            lanes: 2,
            class: None,
            metadata: Default::default(),
            wipe: Vec::new(),
            namespace: NamespaceChoice::default(),
        };
        format_all(&drives, &format, |_, _| {}).unwrap();
        assert!(run(&options).unwrap().contains(&"metadata set".to_owned()));
        assert!(run(&options).unwrap().is_empty(), "nothing is left to make");
    }

    #[test]
    fn i_o4_lost_keys_are_not_replaced_while_devices_exist() {
        let dir = tempfile::tempdir().unwrap();
        let options = small(&dir.path().join("node"));
        run(&options).unwrap();
        std::fs::remove_file(options.dir.path().join("keys/key-store")).unwrap();
        let error = run(&options).unwrap_err().to_string();
        assert!(error.contains("restore"), "{error}");
        assert!(!options.dir.path().join("keys/key-store").exists());
    }
}
