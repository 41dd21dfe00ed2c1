//! Changes of the list of devices in `kiseki.toml`, made where an operator can read them afterwards: comments, order and
//! everything else stay as they were written.
//!
//! The file is replaced as a whole (another file beside it, flushed, renamed, the directory flushed), so a crash leaves
//! the old one or the new one.

use crate::config::FileConfig;
use crate::files::{read_bounded, sync_parent};
use crate::paths::KisekiDir;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use thiserror::Error;
use toml_edit::{Array, DocumentMut, Item, Value};

/// Longest configuration file.
const FILE_LEN_BYTES_MAX: u64 = 1 << 20;

/// Why the configuration is not changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigEditError {
    /// It can't be read or written.
    #[error(
        "{config} can't be changed ({source}), so the node would not know the device after a restart; make the file and \
         its directory writable for the node, or stop the node, change `devices` there by hand and start it again"
    )]
    NotWritable {
        /// The file.
        config: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what a node starts with.
    #[error("{config} can't be changed: {reason}; correct it first")]
    Invalid {
        /// The file.
        config: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The path can't be written into it.
    #[error("{path:?} is no UTF-8, which a configuration is; give the device another name")]
    NotText {
        /// The path.
        path: PathBuf,
    },
    /// It does not name the device.
    #[error("{config} does not name {path} in `devices`")]
    NotNamed {
        /// The file.
        config: PathBuf,
        /// The device.
        path: PathBuf,
    },
}

/// A change of the list of devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DevicesChange {
    /// A device joins, behind the others.
    Add(PathBuf),
    /// A device leaves.
    Remove(PathBuf),
    /// A device takes the place of another one.
    Replace {
        /// The one that leaves.
        old: PathBuf,
        /// The one that joins.
        new: PathBuf,
    },
}

/// The configuration of a node as it is on disk.
pub struct ConfigFile {
    dir: KisekiDir,
    /// Behind links: what is replaced is the file, not a link to it.
    path: PathBuf,
    text: String,
    document: DocumentMut,
}

impl ConfigFile {
    /// Reads it.
    pub fn open(dir: &KisekiDir) -> Result<ConfigFile, ConfigEditError> {
        let config = dir.config();
        let not_writable = |source| ConfigEditError::NotWritable { config: config.clone(), source };
        let invalid = |reason: String| ConfigEditError::Invalid { config: config.clone(), reason };
        let path = config.canonicalize().map_err(not_writable)?;
        let bytes = read_bounded(&path, FILE_LEN_BYTES_MAX).map_err(not_writable)?;
        let text = String::from_utf8(bytes).map_err(|_| invalid("not UTF-8".to_owned()))?;
        FileConfig::parse(&text).map_err(invalid)?;
        let document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| invalid(error.to_string()))?;
        Ok(ConfigFile { dir: dir.clone(), path, text, document })
    }

    /// Sees whether it could be replaced now.
    pub fn check_writable(&self) -> Result<(), ConfigEditError> {
        let try_both = || -> io::Result<()> {
            // A file that its owner made read-only is not changed behind his back, although a rename would do it.
            OpenOptions::new().append(true).open(&self.path)?;
            let beside = self.beside();
            File::create(&beside)?;
            std::fs::remove_file(&beside)
        };
        try_both().map_err(|source| self.not_writable(source))
    }

    /// The paths of `devices`, made absolute.
    #[must_use]
    pub fn devices(&self) -> Vec<PathBuf> {
        let array = self.document.get("devices").and_then(Item::as_array);
        let paths = array.into_iter().flatten().filter_map(Value::as_str);
        paths.map(|path| self.dir.resolve(Path::new(path))).collect()
    }

    /// Whether `devices` names this path.
    #[must_use]
    pub fn names(&self, path: &Path) -> bool {
        self.devices().iter().any(|named| named == path)
    }

    /// Makes a change; durable on return.
    pub fn change(&mut self, change: &DevicesChange) -> Result<(), ConfigEditError> {
        let before = self.document.clone();
        let written = self.apply(change).and_then(|()| {
            let text = self.document.to_string();
            self.check_text(&text)?;
            self.write(&text).map_err(|source| self.not_writable(source))?;
            Ok(text)
        });
        match written {
            Ok(text) => {
                self.text = text;
                Ok(())
            }
            Err(error) => {
                self.document = before;
                Err(error)
            }
        }
    }

    fn not_writable(&self, source: io::Error) -> ConfigEditError {
        ConfigEditError::NotWritable { config: self.path.clone(), source }
    }

    fn invalid(&self, reason: String) -> ConfigEditError {
        ConfigEditError::Invalid { config: self.path.clone(), reason }
    }

    /// A node has to start with it.
    fn check_text(&self, text: &str) -> Result<(), ConfigEditError> {
        FileConfig::parse(text).map(drop).map_err(|reason| self.invalid(reason))
    }

    fn apply(&mut self, change: &DevicesChange) -> Result<(), ConfigEditError> {
        match change {
            DevicesChange::Add(path) if self.names(path) => Ok(()),
            DevicesChange::Add(path) => {
                let text = self.as_written(path)?;
                push(self.array()?, &text);
                Ok(())
            }
            DevicesChange::Remove(path) => {
                let at = self.position(path)?;
                take_out(self.array()?, at);
                Ok(())
            }
            DevicesChange::Replace { old, new } => {
                let (at, text) = (self.position(old)?, self.as_written(new)?);
                self.array()?.replace(at, text);
                Ok(())
            }
        }
    }

    fn array(&mut self) -> Result<&mut Array, ConfigEditError> {
        let missing = self.invalid("it has no list `devices`".to_owned());
        self.document.get_mut("devices").and_then(Item::as_array_mut).ok_or(missing)
    }

    fn position(&self, path: &Path) -> Result<usize, ConfigEditError> {
        let not_named = || ConfigEditError::NotNamed { config: self.path.clone(), path: path.to_owned() };
        self.devices().iter().position(|named| named == path).ok_or_else(not_named)
    }

    /// As `init` writes it: what lies in the node's directory by its path from there, everything else absolute.
    fn as_written(&self, path: &Path) -> Result<String, ConfigEditError> {
        let shown = path.strip_prefix(self.dir.path()).unwrap_or(path);
        shown.to_str().map(str::to_owned).ok_or_else(|| ConfigEditError::NotText { path: path.to_owned() })
    }

    fn beside(&self) -> PathBuf {
        let mut beside = self.path.as_os_str().to_owned();
        beside.push(".new");
        PathBuf::from(beside)
    }

    /// Replaces the file by one with the same owner and mode.
    fn write(&self, text: &str) -> io::Result<()> {
        let (beside, found) = (self.beside(), std::fs::metadata(&self.path)?);
        let mut file = File::create(&beside)?;
        file.set_permissions(std::fs::Permissions::from_mode(found.mode() & 0o7777))?;
        if let Err(error) = fchown(&file, Some(found.uid()), Some(found.gid())) {
            tracing::debug!(%error, "the configuration has another owner now");
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, &self.path)?;
        sync_parent(&self.path)
    }
}

/// Appends an entry that looks like the one before it: on a line of its own where those are.
fn push(array: &mut Array, text: &str) {
    let mut value = Value::from(text);
    if let Some(last) = array.iter().last() {
        let prefix = last.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default();
        // A comment above the last entry is about that one.
        let prefix = match prefix.rfind('\n') {
            Some(line) => prefix[line..].to_owned(),
            None if array.len() == 1 => " ".to_owned(),
            None => prefix.to_owned(),
        };
        *value.decor_mut() = toml_edit::Decor::new(prefix, "");
    }
    // What follows the last entry (a comment behind it, the line break before the bracket) stays behind it.
    if !array.trailing_comma()
        && let Some(last) = array.len().checked_sub(1).and_then(|at| array.get_mut(at))
    {
        let suffix = last.decor().suffix().and_then(|suffix| suffix.as_str()).unwrap_or_default().to_owned();
        last.decor_mut().set_suffix("");
        // Behind the comma that comes now a comment still stands on its entry's line.
        let (comment, end) = suffix.rfind('\n').map_or(("", suffix.as_str()), |at| suffix.split_at(at));
        let prefix = value.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default();
        let prefix = format!("{comment}{prefix}");
        value.decor_mut().set_prefix(prefix);
        value.decor_mut().set_suffix(end);
    }
    array.push_formatted(value);
}

/// Takes an entry out; the first one that is left is not indented by what stood between two.
fn take_out(array: &mut Array, at: usize) {
    let removed = array.remove(at);
    if at == 0
        && let (Some(prefix), Some(first)) = (removed.decor().prefix().cloned(), array.get_mut(0))
        && first.decor().prefix().and_then(|prefix| prefix.as_str()).is_none_or(|prefix| !prefix.contains('\n'))
    {
        first.decor_mut().set_prefix(prefix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(text: &str, changes: &[DevicesChange]) -> Result<String, ConfigEditError> {
        let dir = tempfile::tempdir().unwrap();
        let node = KisekiDir::at(dir.path()).unwrap();
        std::fs::write(node.config(), text).unwrap();
        let mut file = ConfigFile::open(&node).unwrap();
        file.check_writable().unwrap();
        for change in changes {
            file.change(change)?;
        }
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing is left beside it: {left:?}");
        Ok(std::fs::read_to_string(node.config()).unwrap())
    }

    fn add(path: &str) -> DevicesChange {
        DevicesChange::Add(PathBuf::from(path))
    }

    #[test]
    fn a_device_joins_behind_the_others_and_nothing_else_changes() {
        for (before, after) in [
            ("devices = ['/dev/a', '/dev/b'] # two\n", "devices = ['/dev/a', '/dev/b', \"/dev/c\"] # two\n"),
            ("devices = ['/dev/a']\n", "devices = ['/dev/a', \"/dev/c\"]\n"),
            ("devices = []\n", "devices = [\"/dev/c\"]\n"),
            (
                "# top\ndevices = [\n  # first rack\n  '/dev/a', # new\n  '/dev/b',\n]\n\n[s3] # here\n",
                "# top\ndevices = [\n  # first rack\n  '/dev/a', # new\n  '/dev/b',\n  \"/dev/c\",\n]\n\n[s3] # here\n",
            ),
            (
                "devices = [\n  '/dev/a', # one\n  '/dev/b' # two\n]\n",
                "devices = [\n  '/dev/a', # one\n  '/dev/b', # two\n  \"/dev/c\"\n]\n",
            ),
            ("devices = [\n  '/dev/a',\n  '/dev/b'\n]\n", "devices = [\n  '/dev/a',\n  '/dev/b',\n  \"/dev/c\"\n]\n"),
        ] {
            assert_eq!(edited(before, &[add("/dev/c")]).unwrap(), after, "{before}");
            assert_eq!(edited(before, &[add("/dev/c"), add("/dev/c")]).unwrap(), after, "once only: {before}");
        }
    }

    #[test]
    fn a_device_leaves_or_is_replaced_in_its_place() {
        let text = "devices = ['/dev/a', '/dev/b', '/dev/c'] # three\n";
        let remove = |path: &str| DevicesChange::Remove(PathBuf::from(path));
        let replace = |old: &str, new: &str| DevicesChange::Replace { old: old.into(), new: new.into() };
        for (change, after) in [
            (remove("/dev/a"), "devices = ['/dev/b', '/dev/c'] # three\n"),
            (remove("/dev/b"), "devices = ['/dev/a', '/dev/c'] # three\n"),
            (remove("/dev/c"), "devices = ['/dev/a', '/dev/b'] # three\n"),
            (replace("/dev/b", "/dev/d"), "devices = ['/dev/a', \"/dev/d\", '/dev/c'] # three\n"),
        ] {
            assert_eq!(edited(text, std::slice::from_ref(&change)).unwrap(), after, "{change:?}");
        }
        let error = edited(text, &[remove("/dev/x")]).unwrap_err();
        assert!(matches!(error, ConfigEditError::NotNamed { .. }), "{error}");
    }

    #[test]
    fn paths_in_the_directory_of_the_node_are_written_from_there() {
        let dir = tempfile::tempdir().unwrap();
        let node = KisekiDir::at(dir.path()).unwrap();
        std::fs::write(node.config(), "devices = [\"devices/d0.img\"]\n").unwrap();
        let mut file = ConfigFile::open(&node).unwrap();
        assert!(file.names(&dir.path().join("devices/d0.img")));
        file.change(&DevicesChange::Add(dir.path().join("devices/d1.img"))).unwrap();
        let text = std::fs::read_to_string(node.config()).unwrap();
        assert_eq!(text, "devices = [\"devices/d0.img\", \"devices/d1.img\"]\n");
    }

    #[test]
    fn the_mode_stays_a_link_stays_a_link_and_what_can_not_be_written_is_refused_first() {
        let dir = tempfile::tempdir().unwrap();
        let (node, elsewhere) = (dir.path().join("node"), dir.path().join("etc"));
        std::fs::create_dir(&node).unwrap();
        std::fs::create_dir(&elsewhere).unwrap();
        let real = elsewhere.join("kiseki.toml");
        std::fs::write(&real, "devices = ['/dev/a']\n").unwrap();
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&real, node.join("kiseki.toml")).unwrap();
        let mut file = ConfigFile::open(&KisekiDir::at(&node).unwrap()).unwrap();
        file.change(&add("/dev/b")).unwrap();
        assert!(std::fs::symlink_metadata(node.join("kiseki.toml")).unwrap().is_symlink());
        assert_eq!(std::fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(std::fs::read_to_string(&real).unwrap().contains("/dev/b"));
        // A directory in the way of the file beside it stands for every reason not to be able to write there.
        std::fs::create_dir(elsewhere.join("kiseki.toml.new")).unwrap();
        let error = file.check_writable().unwrap_err().to_string();
        assert!(error.contains("can't be changed") && error.contains("by hand"), "{error}");
    }
}
