//! Which processes hold device nodes and files: open for writing, or locked.

use crate::topology::{KernelRoots, NodeNumber, names_in};
use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Open files that are looked at: a machine has some ten thousand.
const OPEN_FILES_MAX: usize = 4 << 20;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

impl Process {
    /// Whether it is a node of ours.
    pub(super) fn is_node(&self) -> bool {
        self.name.starts_with("kiseki-server")
    }

    fn read(roots: &KernelRoots, pid: u32) -> Process {
        let name = std::fs::read_to_string(roots.proc.join(pid.to_string()).join("comm")).unwrap_or_default();
        let name = name.trim();
        Process { pid, name: if name.is_empty() { "a process" } else { name }.to_owned() }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

/// What makes two open files the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FileKey {
    /// A block device, by whatever node.
    Block(NodeNumber),
    /// A character device, by whatever node.
    Character(NodeNumber),
    /// A file, or a node itself: the file system's number and the inode.
    File(NodeNumber, u64),
}

fn number(raw: u64) -> NodeNumber {
    NodeNumber { major: libc::major(raw), minor: libc::minor(raw) }
}

impl FileKey {
    /// A node or file by its inode, as locks have it.
    pub(super) fn of_node(path: &Path) -> Option<FileKey> {
        let found = std::fs::metadata(path).ok()?;
        Some(FileKey::File(number(found.dev()), found.ino()))
    }

    /// The character device of that name; one that is not there is the key of nothing.
    pub(super) fn character(roots: &KernelRoots, name: &str) -> FileKey {
        let raw = std::fs::metadata(roots.dev.join(name)).map_or(0, |found| found.rdev());
        FileKey::Character(number(raw))
    }
}

/// Open files and locks of all processes but this one.
#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    /// Who has which device open for writing.
    writers: BTreeMap<FileKey, Vec<Process>>,
    /// Regular files that are open for writing, by their paths: asking each for its inode might wait for a server.
    files: BTreeMap<PathBuf, Vec<Process>>,
    /// Who has locked what.
    locks: BTreeMap<FileKey, Process>,
}

impl OpenFiles {
    pub(super) fn read(roots: &KernelRoots) -> OpenFiles {
        let mut open = OpenFiles { locks: read_locks(roots), ..OpenFiles::default() };
        let own = std::process::id();
        let mut left = OPEN_FILES_MAX;
        for pid in names_in(&roots.proc).iter().filter_map(|name| name.parse::<u32>().ok()).filter(|pid| *pid != own) {
            let dir = roots.proc.join(pid.to_string());
            for fd in names_in(&dir.join("fd")) {
                left = left.saturating_sub(1);
                if left == 0 {
                    return open;
                }
                open.add(roots, pid, &dir, &fd);
            }
        }
        open
    }

    fn add(&mut self, roots: &KernelRoots, pid: u32, dir: &Path, fd: &str) {
        let link = dir.join("fd").join(fd);
        let Ok(target) = std::fs::read_link(&link) else { return };
        if !target.is_absolute() || !is_for_writing(&dir.join("fdinfo").join(fd)) {
            return;
        }
        let process = Process::read(roots, pid);
        if !target.starts_with("/dev") {
            add_once(self.files.entry(target).or_default(), process);
            return;
        }
        let Ok(found) = std::fs::metadata(&link) else { return };
        let key = match found.file_type() {
            kind if kind.is_block_device() => FileKey::Block(number(found.rdev())),
            kind if kind.is_char_device() => FileKey::Character(number(found.rdev())),
            _ => return,
        };
        add_once(self.writers.entry(key).or_default(), process);
    }

    /// Who has a device open for writing.
    pub(super) fn writers(&self, key: &FileKey) -> &[Process] {
        self.writers.get(key).map_or(&[], Vec::as_slice)
    }

    /// Who has a file open for writing.
    pub(super) fn writers_of_path(&self, path: &Path, key: &FileKey) -> Vec<Process> {
        let named = self.files.get(path).cloned().unwrap_or_default();
        if named.is_empty() { self.writers(key).to_vec() } else { named }
    }

    /// Who has locked a file or a node.
    pub(super) fn lock_on(&self, key: &FileKey) -> Option<Process> {
        self.locks.get(key).cloned()
    }
}

fn add_once(list: &mut Vec<Process>, process: Process) {
    if !list.contains(&process) {
        list.push(process);
    }
}

/// `flags:` in octal; the lowest two bits are the access mode.
fn is_for_writing(info: &Path) -> bool {
    let text = std::fs::read_to_string(info).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_ACCMODE as u32 != 0)
}

/// `1: FLOCK  ADVISORY  WRITE 708 fd:01:1234 0 EOF`: the device's numbers in hex, the inode in decimal.
fn read_locks(roots: &KernelRoots) -> BTreeMap<FileKey, Process> {
    let text = std::fs::read_to_string(roots.proc.join("locks")).unwrap_or_default();
    let own = std::process::id();
    text.lines()
        .filter_map(parse_lock)
        .filter(|(_, pid)| *pid != own)
        .map(|(key, pid)| (key, Process::read(roots, pid)))
        .collect()
}

fn parse_lock(line: &str) -> Option<(FileKey, u32)> {
    let mut fields = line.split_whitespace().skip(1).skip_while(|field| *field == "->");
    let (kind, _, _, pid, place) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    if kind != "FLOCK" {
        return None;
    }
    let mut parts = place.split(':');
    let major = u32::from_str_radix(parts.next()?, 16).ok()?;
    let minor = u32::from_str_radix(parts.next()?, 16).ok()?;
    let inode = parts.next()?.parse().ok()?;
    Some((FileKey::File(NodeNumber { major, minor }, inode), pid.parse().ok()?))
}
