//! Devices that join a node that does not run: the checks of [`enroll`](crate::enroll), and its configuration. The next
//! start opens them like all others.

use crate::config::Config;
use crate::config_edit::{ConfigFile, DevicesChange};
use crate::device_name::{self, Candidate, Standing};
use crate::devices::{ClaimedDevice, describe, with_causes};
use crate::enroll::{ChangeMode, JoinKind, JoinedDevice, check, size_warning};
use crate::key_store::{KeyStore, read_passphrase};
use crate::node::lock_dir;
use crate::replaced::{Replacement, Replacements};
use anyhow::{Context, Result, anyhow, bail};
use kiseki_devices::superblock::Superblock;
use kiseki_types::ids::ClusterId;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A node that does not run, and is kept from starting for as long as this lives.
pub struct Offline {
    _lock: File,
    config: Config,
    cluster: ClusterId,
}

impl Offline {
    /// Holds the node's directory. Errors: it runs after all, or its keys can't be read.
    pub fn begin(config: Config) -> Result<Offline> {
        let lock = lock_dir(&config.dir)?;
        let passphrase = read_passphrase(&config.keys.passphrase_file)?;
        let cluster = KeyStore::open(&config.keys.key_store_file, &passphrase)?.cluster;
        Ok(Offline { _lock: lock, config, cluster })
    }

    /// Takes the device at `path` into the configuration, in the place of `old` (a path, or the first digits of an id)
    /// if one is named; what becomes of that one the next start records.
    pub fn enroll(&mut self, path: &Path, old: Option<&str>, actor: &str, mode: ChangeMode) -> Result<JoinedDevice> {
        let mut file = ConfigFile::open(&self.config.dir)?;
        let named = file.devices();
        let others = self.others(&named, path);
        let old = old.map(|old| self.leaving(old, path, &named, &others)).transpose()?;
        self.check_majority(&named, &others, path)?;
        let claimed = ClaimedDevice::open(path, self.cluster).map_err(|why| anyhow!("{}: {why}", path.display()))?;
        let superblock = claimed.superblock.clone();
        let newest = others.iter().map(|(_, other)| other.metadata.clone()).max_by_key(|found| found.epoch);
        let newest = newest.unwrap_or_else(|| superblock.metadata.clone());
        let lanes = others.first().map_or(superblock.layout.lanes(), |(_, other)| other.layout.lanes());
        let refused = |why: String| anyhow!("{}: {why}", path.display());
        check(&superblock, self.cluster, lanes, newest.epoch).map_err(refused)?;
        if let Some((twin, _)) = others.iter().find(|(_, other)| other.device == superblock.device) {
            bail!("{}: it is a copy of {}; format it anew to use it", path.display(), twin.display());
        }
        let change = match (&old, named.iter().any(|other| other == path)) {
            // A new drive in the slot of the old one.
            (Some(old), true) if old == path && superblock.is_unused() => None,
            (Some(old), true) if old == path => bail!(
                "{0}: it has been used before, so it is the device that is to leave; put the new one there, or take this one \
                 back: `kiseki-devctl enroll {0}`",
                path.display()
            ),
            (Some(_), true) => bail!("{} is in `devices` already", path.display()),
            (Some(old), false) => Some(DevicesChange::Replace { old: old.clone(), new: path.to_owned() }),
            (None, false) => Some(DevicesChange::Add(path.to_owned())),
            (None, true) => None,
        };
        if change.is_some() {
            file.check_writable()?;
        }
        let capacity_bytes = superblock.layout.capacity_bytes();
        let sizes = others.iter().map(|(_, other)| other.layout.capacity_bytes()).collect();
        let joined = JoinedDevice {
            device: superblock.device.to_string(),
            path: path.display().to_string(),
            capacity_bytes,
            kind: match (&old, &change) {
                (Some(_), _) => JoinKind::Replaced,
                (None, Some(_)) => JoinKind::New,
                (None, None) => JoinKind::Returned,
            },
            replaced: old.as_ref().map(|old| old.display().to_string()),
            warnings: size_warning(capacity_bytes, sizes).into_iter().collect(),
        };
        if mode == ChangeMode::DryRun {
            return Ok(joined);
        }
        let notes = Replacements::open(&self.config.dir).with_context(|| {
            format!("{} can't be read; correct it first", self.config.dir.replaced_file().display())
        })?;
        let note = old.map(|old| replacement(&old, &joined, actor));
        if let Some(note) = &note {
            notes.note(note.clone()).context("what becomes of the old device can't be noted for the next start")?;
        }
        let finish = || -> Result<()> {
            let device = claimed.take_up().map_err(refused)?;
            // I-L10: a majority of the devices has to know the newest epoch, and this one counts from now on.
            let told = device.keeper.update(|next| next.metadata = newest);
            told.map_err(|error| refused(with_causes(&error)))?;
            change.map_or(Ok(()), |change| Ok(file.change(&change)?))
        };
        let done = finish();
        if let (Err(_), Some(note)) = (&done, &note) {
            // Should that fail too: a note about a device that is not configured is void.
            let _void = notes.forget(note);
        }
        done?;
        Ok(joined)
    }

    /// Sees whether a device can be replaced by the one at `path`, before that one is formatted.
    pub fn check_leaving(&self, old: &str, path: &Path) -> Result<()> {
        let named = ConfigFile::open(&self.config.dir)?.devices();
        self.leaving(old, path, &named, &self.others(&named, path)).map(drop)
    }

    /// The node's devices that can be read, but for the one at `path`.
    fn others(&self, named: &[PathBuf], path: &Path) -> Vec<(PathBuf, Superblock)> {
        let described = named
            .iter()
            .filter(|other| *other != path)
            .filter_map(|other| Some((other.clone(), describe(other).ok()?.superblock)));
        described.filter(|(_, superblock)| superblock.cluster == self.cluster).collect()
    }

    /// The path of a device that is to be replaced. Errors: there is none, or it works.
    fn leaving(&self, old: &str, path: &Path, named: &[PathBuf], others: &[(PathBuf, Superblock)]) -> Result<PathBuf> {
        let old = self.find(old, named, others)?;
        if others.iter().any(|(works, _)| *works == old) {
            bail!(
                "{} works, so nothing has to be rebuilt from the others: start the node, enroll {}, and drain and retire {0}",
                old.display(),
                path.display()
            );
        }
        Ok(old)
    }

    /// Which metadata directories are current is known to a majority of the devices only; a new device is told.
    fn check_majority(&self, named: &[PathBuf], others: &[(PathBuf, Superblock)], path: &Path) -> Result<()> {
        let counted = named.iter().filter(|other| *other != path).count();
        if others.len() * 2 > counted || counted == 0 {
            return Ok(());
        }
        bail!(
            "only {} of the {counted} other devices can be read, too few to say which metadata directories are current; bring \
             back more of them, or start the node and enroll {} then",
            others.len(),
            path.display()
        )
    }

    fn find(&self, old: &str, named: &[PathBuf], others: &[(PathBuf, Superblock)]) -> Result<PathBuf> {
        let ids: Vec<String> = named
            .iter()
            .map(|path| others.iter().find(|(other, _)| other == path))
            .map(|found| found.map_or_else(String::new, |(_, superblock)| superblock.device.to_string()))
            .collect();
        let known = named.iter().zip(&ids).map(|(path, id)| Candidate { id, path, standing: Standing::Configured });
        let path = self.config.dir.resolve(Path::new(old));
        let found = device_name::find(old, &path, &known.collect::<Vec<_>>());
        let at = found
            .map_err(|why| anyhow!("{why}; while the node does not run, a device that is gone is named by its path"))?;
        Ok(named[at].clone())
    }
}

/// The note of what is done here, for the next start.
fn replacement(old: &Path, joined: &JoinedDevice, actor: &str) -> Replacement {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Replacement {
        path: old.display().to_string(),
        device: None,
        by_device: joined.device.clone(),
        by_path: joined.path.clone(),
        actor: actor.to_owned(),
        at_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
    }
}
