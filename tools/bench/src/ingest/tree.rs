//! The files of a directory, one after the other, never all of them in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use walkdir::{DirEntry, IntoIter, WalkDir};

/// Names that are kept of each kind of what is left out; the count goes on.
const NAMES_MAX: usize = 20;

/// A file to upload.
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// Its path below the directory, with '/'.
    pub name: String,
}

/// What comes out of a tree.
pub enum Entry {
    /// A file.
    File(Found),
    /// Something that is not uploaded: why, and where.
    LeftOut(&'static str, PathBuf),
    /// What could not be looked at.
    Failed(String),
}

/// A walk through a directory. Holds open directories, one for each level up to a limit, and no list of files.
pub struct Tree {
    root: PathBuf,
    walk: IntoIter,
}

impl Tree {
    /// Of a directory; links are not followed.
    pub fn new(root: &Path) -> Tree {
        Tree { root: root.to_owned(), walk: WalkDir::new(root).follow_links(false).into_iter() }
    }

    fn entry(&self, entry: &DirEntry) -> Option<Entry> {
        let (kind, path) = (entry.file_type(), entry.path());
        if kind.is_dir() {
            return None;
        }
        if kind.is_symlink() {
            return Some(Entry::LeftOut("symbolic links", path.to_owned()));
        }
        if !kind.is_file() {
            return Some(Entry::LeftOut("special files", path.to_owned()));
        }
        // Keys are UTF-8; a name that is not can't be told to a server.
        match path.strip_prefix(&self.root).unwrap_or(path).to_str() {
            Some(name) => Some(Entry::File(Found { path: path.to_owned(), name: name.to_owned() })),
            None => Some(Entry::LeftOut("names that are not UTF-8", path.to_owned())),
        }
    }
}

impl Iterator for Tree {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        loop {
            let found = match self.walk.next()? {
                Ok(entry) => self.entry(&entry),
                Err(error) => Some(Entry::Failed(error.to_string())),
            };
            if found.is_some() {
                return found;
            }
        }
    }
}

/// What was left out: how much of each kind, and the names of the first.
#[derive(Clone, Debug, Default)]
pub struct LeftOut(BTreeMap<&'static str, (u64, Vec<String>)>);

impl LeftOut {
    /// Notes one.
    pub fn note(&mut self, why: &'static str, path: &Path) {
        let (count, names) = self.0.entry(why).or_default();
        *count += 1;
        if names.len() < NAMES_MAX {
            names.push(path.display().to_string());
        }
    }

    /// Kinds with their counts and names.
    pub fn kinds(&self) -> impl Iterator<Item = (&'static str, u64, &[String])> {
        self.0.iter().map(|(why, (count, names))| (*why, *count, &names[..]))
    }
}

/// Opens a file, and tells its length from what was opened. What has become no file since is an error.
pub fn open(path: &Path) -> std::io::Result<(File, u64)> {
    use rustix::fs::{Mode, OFlags};
    // A pipe or a link that has taken the file's place must neither block nor lead elsewhere.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(std::io::Error::other("it is no file any more"));
    }
    Ok((file, found.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    #[test]
    fn files_come_out_and_all_else_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::write(at("a/b/file"), b"x").unwrap();
        std::fs::write(at("empty"), b"").unwrap();
        symlink(at("a"), at("link")).unwrap();
        std::fs::write(dir.path().join(OsStr::from_bytes(b"\xff")), b"x").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let (mut names, mut left) = (Vec::new(), LeftOut::default());
        for entry in Tree::new(dir.path()) {
            match entry {
                Entry::File(found) => names.push(found.name),
                Entry::LeftOut(why, path) => left.note(why, &path),
                Entry::Failed(message) => panic!("{message}"),
            }
        }
        names.sort();
        assert_eq!(names, ["a/b/file", "empty"]);
        let kinds: Vec<_> = left.kinds().map(|(why, count, _)| (why, count)).collect();
        assert_eq!(kinds, [("names that are not UTF-8", 1), ("special files", 1), ("symbolic links", 1)]);
        let missing: Vec<Entry> = Tree::new(&at("missing")).collect();
        assert!(matches!(&missing[..], [Entry::Failed(message)] if message.contains("missing")));
    }

    #[test]
    fn only_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, b"abc").unwrap();
        symlink(&file, &link).unwrap();
        assert_eq!(open(&file).unwrap().1, 3);
        assert!(open(&link).is_err() && open(dir.path()).is_err() && open(&dir.path().join("no")).is_err());
    }
}
