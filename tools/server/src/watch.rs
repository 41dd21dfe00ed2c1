//! Looks from a side thread at what a running node stands on: are the devices and metadata directories at their paths
//! still the ones that were opened?
//!
//! Operations cannot tell: the kernel goes on reading and writing a removed file, and noise over a superblock shows at
//! the next start only. What is acknowledged from there on would be gone with that start, so a device that would not be
//! opened again takes no more part (the cores fence it, see [`crate::report`]), and a metadata directory leaves the set.

use crate::devices::{describe, with_causes};
use crate::executor::CoreShared;
use crate::status::{Phase, StatusBoard};
use kiseki_devices::metadata_set::MirroredDir;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Between two looks. A problem counts when it is seen twice: a superblock may be written while it is read.
const INTERVAL: Duration = Duration::from_secs(1);

/// What tells one file, device or directory from another at the same path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    special: u64,
}

impl Identity {
    fn of(path: &Path) -> Option<Identity> {
        let found = std::fs::metadata(path).ok()?;
        Some(Identity { device: found.dev(), inode: found.ino(), special: found.rdev() })
    }
}

/// A device in use.
struct WatchedDevice {
    path: PathBuf,
    id: String,
    identity: Option<Identity>,
}

impl WatchedDevice {
    /// State and reason, when the next start would not open it.
    fn problem(&self) -> Option<(&'static str, String)> {
        if !self.path.exists() {
            let reason = "it was taken away while the node runs; bring it back and restart, or replace it";
            return Some(("absent", reason.to_owned()));
        }
        if Identity::of(&self.path) != self.identity {
            let reason = "another file or device took its place while the node runs; put it back and restart";
            return Some(("failed", reason.to_owned()));
        }
        match describe(&self.path) {
            Ok(found) if found.superblock.device.to_string() == self.id => None,
            Ok(found) => Some(("failed", format!("it says to be device {} now", found.superblock.device))),
            Err(error) => Some(("failed", format!("it was written over or cut off: {}", with_causes(&error)))),
        }
    }
}

/// A metadata directory in use: itself and the journals in it, with their lengths. While a node serves all of them are
/// there and none is made anew.
struct WatchedDir {
    path: PathBuf,
    index: usize,
    files: Vec<(PathBuf, Option<Identity>, u64)>,
}

impl WatchedDir {
    fn new(path: &Path, index: usize, lanes: u16) -> WatchedDir {
        let journals = (0..lanes).map(|lane| crate::metadata::raft_journal_path(path, lane));
        let files = journals.map(|file| (file.clone(), Identity::of(&file), len_bytes(&file)));
        let dir = (path.to_owned(), Identity::of(path), 0);
        WatchedDir { path: path.to_owned(), index, files: std::iter::once(dir).chain(files).collect() }
    }

    fn problem(&self) -> Option<String> {
        let is_other = |(path, identity, len): &&(PathBuf, Option<Identity>, u64)| {
            identity.is_none() || Identity::of(path) != *identity || len_bytes(path) < *len
        };
        let (path, ..) = self.files.iter().find(is_other)?;
        Some(format!(
            "{} was removed, replaced or cut off while the node runs; once its disk is sound, empty the directory and \
             restart to have it filled",
            path.display()
        ))
    }
}

fn len_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |found| found.len())
}

/// Starts looking as soon as the node serves, until it stops.
pub fn start(shared: Arc<CoreShared>) -> std::io::Result<()> {
    let mut watched: Vec<WatchedDevice> = Vec::new();
    for device in &shared.devices {
        let id = device.superblock.device.to_string();
        watched.push(WatchedDevice { path: device.path.clone(), id, identity: Identity::of(&device.path) });
    }
    let look = move || {
        while shared.board.lock().phase == Phase::Starting {
            std::thread::sleep(INTERVAL / 20);
        }
        let paths = shared.meta.paths.iter().enumerate();
        let dirs: Vec<WatchedDir> = paths.map(|(index, path)| WatchedDir::new(path, index, shared.lanes)).collect();
        let mut suspects = BTreeMap::new();
        while !shared.stop.is_stopped() {
            look_at_devices(&watched, &shared.board, &mut suspects);
            look_at_dirs(&dirs, &shared.meta.dir, &shared.board);
            std::thread::sleep(INTERVAL);
        }
    };
    std::thread::Builder::new().name("kiseki-watch".to_owned()).spawn(look).map(drop)
}

/// `suspects` are the problems of the look before, by path.
fn look_at_devices(
    watched: &[WatchedDevice],
    board: &StatusBoard,
    suspects: &mut BTreeMap<PathBuf, (&'static str, String)>,
) {
    for device in watched {
        let Some(problem) = device.problem() else {
            suspects.remove(&device.path);
            continue;
        };
        if suspects.insert(device.path.clone(), problem.clone()).as_ref() != Some(&problem) {
            continue;
        }
        board.lock().lose_device(&device.id, problem.0, &problem.1);
    }
}

fn look_at_dirs(watched: &[WatchedDir], set: &MirroredDir, board: &StatusBoard) {
    for dir in watched {
        let members = set.members();
        let Some(member) = members.iter().find(|member| member.index == dir.index && member.healthy) else { continue };
        let Some(reason) = dir.problem() else { continue };
        // The error says that it was the last one: the set refuses everything from then on and has logged it.
        let _last = set.fence_member(member.id, &reason);
        let path = dir.path.display().to_string();
        for report in board.lock().metadata_dirs.iter_mut().filter(|report| report.path == path) {
            report.state = if dir.path.exists() { "stale" } else { "absent" }.to_owned();
            report.reason.clone_from(&reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::DeviceReport;

    #[test]
    fn a_device_that_the_next_start_would_not_open_is_told_after_a_second_look() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d0.img");
        std::fs::write(&path, [0; 8192]).unwrap();
        let device = WatchedDevice { path: path.clone(), id: "07".to_owned(), identity: Identity::of(&path) };
        assert!(device.problem().unwrap().1.contains("written over"), "{:?}", device.problem());
        let beside = dir.path().join("other");
        std::fs::write(&beside, [0; 8192]).unwrap();
        std::fs::rename(&beside, &path).unwrap();
        assert!(device.problem().unwrap().1.contains("another file"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(device.problem().unwrap().0, "absent");

        let board = StatusBoard::default();
        let healthy = DeviceReport { id: "07".to_owned(), state: "healthy".to_owned(), ..DeviceReport::default() };
        board.lock().devices.push(healthy);
        let mut suspects = BTreeMap::new();
        look_at_devices(std::slice::from_ref(&device), &board, &mut suspects);
        assert_eq!(board.snapshot().devices[0].state, "healthy", "once may be chance");
        look_at_devices(std::slice::from_ref(&device), &board, &mut suspects);
        assert_eq!(board.snapshot().devices[0].state, "absent");
    }

    #[test]
    fn a_metadata_directory_that_lost_a_journal_is_told() {
        let dir = tempfile::tempdir().unwrap();
        for lane in 0..2 {
            std::fs::write(crate::metadata::raft_journal_path(dir.path(), lane), [1; 4096]).unwrap();
        }
        let watched = WatchedDir::new(dir.path(), 0, 2);
        assert_eq!(watched.problem(), None);
        std::fs::write(dir.path().join("names"), [1; 10]).unwrap();
        assert_eq!(watched.problem(), None, "tables come and go");
        std::fs::File::options().write(true).open(dir.path().join("lane-1.journal")).unwrap().set_len(100).unwrap();
        assert!(watched.problem().unwrap().contains("lane-1.journal"));
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert!(watched.problem().is_some());
        assert!(WatchedDir::new(dir.path(), 0, 2).problem().is_some(), "gone before the first look");
    }
}
