//! Looks from a side thread at what a running node stands on: are the devices and metadata directories at their paths
//! still the ones that were opened?
//!
//! Operations cannot tell: the kernel goes on reading and writing a removed file, and noise over a superblock shows at
//! the next start only. What is acknowledged from there on would be gone with that start, so a device that would not be
//! opened again takes no more part (the cores fence it, see [`crate::report`]), and a metadata directory leaves the set.

use crate::device_table::OpenDevice;
use crate::devices::{Identity, describe, with_causes};
use crate::enroll::{self, ChangeMode};
use crate::executor::CoreShared;
use crate::outcome::NodeError;
use crate::status::{DeviceReport, Phase, StatusBoard};
use kiseki_devices::metadata_set::MirroredDir;
use kiseki_types::ids::DeviceId;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks. A problem counts when it is seen twice: a superblock may be written while it is read.
const INTERVAL: Duration = Duration::from_secs(1);

/// State and reason, when the next start would not open the device.
fn problem_of(device: &OpenDevice) -> Option<(&'static str, String)> {
    if !device.path.exists() {
        let reason = "it was taken away while the node runs; it is taken back when it is there again, or can be replaced: \
                      kiseki-devctl replace";
        return Some(("unreachable", reason.to_owned()));
    }
    if Identity::of(&device.path) != device.identity {
        // The drive may have been pulled and be back by now: with the right superblock that is no stranger.
        let is_back = describe(&device.path).is_ok_and(|found| found.superblock.device == device.superblock.device);
        return Some(match is_back {
            true => ("unreachable", "it was taken away for a moment; it is reopened and checked".to_owned()),
            false => {
                let reason = "another file or device took its place while the node runs; put it back, or replace it: \
                              kiseki-devctl replace";
                ("failed", reason.to_owned())
            }
        });
    }
    match describe(&device.path) {
        Ok(found) if found.superblock.device == device.superblock.device => None,
        Ok(found) => Some(("failed", format!("it says to be device {} now", found.superblock.device))),
        Err(error) => Some(("failed", format!("it was written over or cut off: {}", with_causes(&error)))),
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
    let look = move || {
        while shared.board.lock().phase == Phase::Starting {
            std::thread::sleep(INTERVAL / 20);
        }
        let paths = shared.meta.paths.iter().enumerate();
        let dirs: Vec<WatchedDir> = paths.map(|(index, path)| WatchedDir::new(path, index, shared.lanes)).collect();
        let (mut suspects, mut returns) = (BTreeMap::new(), Returns::default());
        while !shared.stop.is_stopped() {
            for device in shared.devices.all() {
                if let Some((state, reason)) = seen_twice(&mut suspects, &device.path, problem_of(&device)) {
                    let id = device.superblock.device.to_string();
                    shared.devices.if_current(&device, || shared.board.lock().lose_device(&id, state, &reason));
                }
            }
            returns.look(&shared);
            look_at_dirs(&dirs, &shared.meta.dir, &shared.board);
            std::thread::sleep(INTERVAL);
        }
    };
    std::thread::Builder::new().name("kiseki-watch".to_owned()).spawn(look).map(drop)
}

/// The problem of a device when the look before found the same; `suspects` are those problems, by path.
fn seen_twice(
    suspects: &mut BTreeMap<PathBuf, (&'static str, String)>,
    path: &Path,
    problem: Option<(&'static str, String)>,
) -> Option<(&'static str, String)> {
    let Some(problem) = problem else {
        suspects.remove(path);
        return None;
    };
    let before = suspects.insert(path.to_owned(), problem.clone());
    (before.as_ref() == Some(&problem)).then_some(problem)
}

/// Devices of the configuration that were absent and are at their paths again: each is taken back, as a start would. Not
/// those that failed: to trust one of them again is for an operator to decide (I-D6).
#[derive(Default)]
struct Returns {
    /// What a look found at the path of an absent device: it counts when two find the same.
    seen: BTreeMap<PathBuf, DeviceId>,
    /// Devices that could not be taken back, and why: told once.
    refused: BTreeMap<PathBuf, (DeviceId, String)>,
    /// The one that is being taken back.
    running: Option<JoinHandle<()>>,
}

impl Returns {
    fn look(&mut self, shared: &Arc<CoreShared>) {
        if self.running.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        self.running = None;
        let absent: Vec<DeviceReport> =
            shared.board.lock().devices.iter().filter(|device| device.state == "unreachable").cloned().collect();
        self.seen.retain(|path, _| absent.iter().any(|device| Path::new(&device.path) == path));
        self.refused.retain(|path, _| absent.iter().any(|device| Path::new(&device.path) == path));
        for device in absent {
            let path = PathBuf::from(&device.path);
            let Some(id) = self.returned(&device, &path, shared) else { continue };
            let shared = shared.clone();
            let begun = std::thread::Builder::new().name("kiseki-return".to_owned()).spawn(move || {
                take_back(&shared, &path);
            });
            match begun {
                Ok(running) => self.running = Some(running),
                Err(error) => tracing::warn!(device = %id, %error, "no thread to take the device back; tried again"),
            }
            return; // one at a time
        }
    }

    /// The device that is back at its path, seen twice; `None` also for one that was refused before.
    fn returned(&mut self, device: &DeviceReport, path: &Path, shared: &CoreShared) -> Option<DeviceId> {
        let found = describe(path).ok().map(|found| found.superblock);
        let ours = found.filter(|found| {
            let is_it = device.id.is_empty() || found.device.to_string() == device.id;
            is_it && found.cluster == shared.keys.cluster
        });
        let Some(ours) = ours else {
            self.seen.remove(path);
            self.refused.remove(path); // away again: what comes next is a new return
            return None;
        };
        let before = self.seen.insert(path.to_owned(), ours.device);
        let reason = &device.reason;
        let was_refused = self.refused.get(path).is_some_and(|(id, why)| *id == ours.device && why == reason);
        if before != Some(ours.device) || was_refused {
            return None;
        }
        // A second attempt only when something about it has changed.
        self.refused.insert(path.to_owned(), (ours.device, reason.clone()));
        Some(ours.device)
    }
}

fn take_back(shared: &CoreShared, path: &Path) {
    match enroll::enroll(shared, path, enroll::NODE_ACTOR, ChangeMode::Make) {
        Ok(_) => {}
        Err(NodeError { message, .. }) => {
            tracing::warn!(device = %path.display(), reason = %message, "a device is back and could not be taken up");
            let reason =
                format!("it is back, and could not be taken up: {message}; kiseki-devctl enroll {}", path.display());
            let mut board = shared.board.lock();
            board.devices.iter_mut().filter(|device| Path::new(&device.path) == path).for_each(|device| {
                device.reason.clone_from(&reason);
            });
        }
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
    use kiseki_devices::layout::DeviceLayout;
    use kiseki_devices::superblock::{DeviceClass, MetadataEpoch, Superblock};
    use kiseki_types::BlockCount;
    use kiseki_types::device::DeviceGeometry;
    use kiseki_types::ids::{ClusterId, PoolId};

    #[test]
    fn a_device_that_the_next_start_would_not_open_is_told_after_a_second_look() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d0.img");
        std::fs::write(&path, [0; 8192]).unwrap();
        let geometry = DeviceGeometry { block_len_bytes: 4096, block_count: BlockCount(16 << 10) };
        let superblock = Superblock {
            cluster: ClusterId([1; 16]),
            device: DeviceId([7; 16]),
            pool: PoolId(0),
            class: DeviceClass::File,
            layout: DeviceLayout::compute(geometry, 2).unwrap(),
            generation: 1,
            incarnation: 1,
            metadata: MetadataEpoch::default(),
        };
        let device = OpenDevice { path: path.clone(), superblock, identity: Identity::of(&path), opened: 0 };
        assert!(problem_of(&device).unwrap().1.contains("written over"), "{:?}", problem_of(&device));
        let beside = dir.path().join("other");
        std::fs::write(&beside, [0; 8192]).unwrap();
        std::fs::rename(&beside, &path).unwrap();
        assert!(problem_of(&device).unwrap().1.contains("another file"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(problem_of(&device).unwrap().0, "unreachable");

        let mut suspects = BTreeMap::new();
        assert_eq!(seen_twice(&mut suspects, &path, problem_of(&device)), None, "once may be chance");
        assert_eq!(seen_twice(&mut suspects, &path, problem_of(&device)).unwrap().0, "unreachable");
        assert_eq!(seen_twice(&mut suspects, &path, None), None);
        assert_eq!(seen_twice(&mut suspects, &path, problem_of(&device)), None, "it starts anew");
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
