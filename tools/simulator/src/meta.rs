//! Metadata directories on simulated media: what survives its node, and the port on it.

use crate::cut::{CutSwitch, Power};
use crate::disk::CutMode;
use crate::seed::SeededRng;
use crate::unit_file::UnitFile;
use kiseki_types::meta::{MetaDir, MetaFile, MetaSpace};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type SharedFile = Arc<Mutex<UnitFile>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct DirState {
    files: BTreeMap<String, SharedFile>,
    /// Grows at every power cut; handles of an earlier one only give errors.
    incarnation: u64,
    /// Writes (of whatever kind) until one fails; 1 is the next one.
    fail_write: Option<u64>,
    fail_sync: Option<u64>,
    sync_is_a_lie: bool,
    is_gone: bool,
    /// Bytes that the file system says it has; 0: it says nothing.
    space_bytes: u64,
    rng: SeededRng,
}

/// One metadata directory: it survives its node. [`SimMetaDir::open`] is what the node holds of it.
#[derive(Clone)]
pub struct SimMetaDir {
    state: Arc<Mutex<DirState>>,
    switch: Arc<CutSwitch>,
    name: Arc<str>,
}

/// A metadata directory as it was at some time, for bringing back a stale one.
#[derive(Clone)]
pub struct DirImage(BTreeMap<String, UnitFile>);

impl SimMetaDir {
    /// An empty directory under the power of `switch`.
    #[must_use]
    pub fn new(name: &str, seed: u64, switch: &Arc<CutSwitch>) -> SimMetaDir {
        let state = DirState {
            files: BTreeMap::new(),
            incarnation: 0,
            fail_write: None,
            fail_sync: None,
            sync_is_a_lie: false,
            is_gone: false,
            space_bytes: 0,
            rng: SeededRng::for_part(seed, 3),
        };
        SimMetaDir { state: Arc::new(Mutex::new(state)), switch: switch.clone(), name: name.into() }
    }

    /// The port. It ends with the next power cut: open another one then.
    #[must_use]
    pub fn open(&self) -> Arc<dyn MetaDir> {
        let incarnation = lock(&self.state).incarnation;
        Arc::new(OpenDir { dir: self.clone(), incarnation })
    }

    /// The power fails: each unit of 512 bytes written since the last sync of its file becomes old or new.
    pub fn power_cut(&self, seed: u64) {
        let rng = SeededRng::new(seed);
        self.power_cut_in_mode(CutMode::draw(&rng), &rng);
    }

    /// [`SimMetaDir::power_cut`] with a chosen tendency.
    pub fn power_cut_in_mode(&self, mode: CutMode, rng: &SeededRng) {
        let mut state = lock(&self.state);
        state.incarnation += 1;
        state.files.values().for_each(|file| lock(file).power_cut(mode, rng));
    }

    /// The `write`th write, cut or extension from now fails; what of it arrives is open.
    pub fn fail_write(&self, write: u64) {
        lock(&self.state).fail_write = Some(write);
    }

    /// The `sync`th sync from now fails; each unit that it should have saved is saved or lost for good.
    pub fn fail_sync(&self, sync: u64) {
        lock(&self.state).fail_sync = Some(sync);
    }

    /// From now on syncs answer Ok and save nothing: the control that must be caught.
    pub fn set_sync_is_a_lie(&self, is_a_lie: bool) {
        lock(&self.state).sync_is_a_lie = is_a_lie;
    }

    /// How much room the file system says it has; nothing fails when that is used up.
    pub fn set_space(&self, bytes: u64) {
        lock(&self.state).space_bytes = bytes;
    }

    /// Takes the directory away (every operation fails) or brings it back.
    pub fn set_gone(&self, is_gone: bool) {
        lock(&self.state).is_gone = is_gone;
    }

    /// What is durable now.
    #[must_use]
    pub fn image(&self) -> DirImage {
        let state = lock(&self.state);
        let durable = |file: &SharedFile| {
            let mut copy = lock(file).clone();
            copy.power_cut(CutMode::DropAll, &state.rng);
            copy
        };
        DirImage(state.files.iter().map(|(name, file)| (name.clone(), durable(file))).collect())
    }

    /// Puts an earlier state in place of the present one; handles that are open end.
    pub fn restore(&self, image: &DirImage) {
        let mut state = lock(&self.state);
        state.incarnation += 1;
        let shared = |(name, file): (&String, &UnitFile)| (name.clone(), Arc::new(Mutex::new(file.clone())));
        state.files = image.0.iter().map(shared).collect();
    }

    /// Removes everything; handles that are open end.
    pub fn wipe(&self) {
        self.restore(&DirImage(BTreeMap::new()));
    }

    /// Rots one byte of a file; false when there is no such byte.
    pub fn rot(&self, name: &str) -> bool {
        let state = lock(&self.state);
        state.files.get(name).is_some_and(|file| lock(file).rot(&state.rng))
    }

    /// Bytes of a file as they are now, for looking at what lies on the medium.
    #[must_use]
    pub fn peek(&self, name: &str) -> Option<Vec<u8>> {
        lock(&self.state).files.get(name).map(|file| lock(file).bytes().to_vec())
    }

    /// Names of all files.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        lock(&self.state).files.keys().cloned().collect()
    }

    /// The state, when a handle of `incarnation` may still use it.
    fn reach(&self, incarnation: u64) -> io::Result<MutexGuard<'_, DirState>> {
        let state = lock(&self.state);
        if state.incarnation != incarnation || self.switch.power() == Power::Off {
            return Err(power_is_cut());
        }
        if state.is_gone {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "simulated metadata directory is gone"));
        }
        Ok(state)
    }

    /// Makes a change, or meets the cut: then the change happens or not, and the caller gets an error.
    fn change<T>(&self, incarnation: u64, act: impl FnOnce(&mut DirState) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.reach(incarnation)?;
        match self.switch.count_write() {
            Power::Off => return Err(power_is_cut()),
            Power::CutNow => {
                if state.rng.chance(1, 2) {
                    act(&mut state)?;
                }
                return Err(power_is_cut());
            }
            Power::On => {}
        }
        if count_down(&mut state.fail_write) {
            if state.rng.chance(1, 2) {
                act(&mut state)?;
            }
            return Err(io::Error::other("simulated metadata write failure"));
        }
        act(&mut state)
    }
}

fn count_down(left: &mut Option<u64>) -> bool {
    match left {
        Some(1) => left.take().is_some(),
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

fn power_is_cut() -> io::Error {
    io::Error::other("the simulated power is cut")
}

fn no_such_file(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("there is no metadata file {name}"))
}

/// A directory as a node holds it.
struct OpenDir {
    dir: SimMetaDir,
    incarnation: u64,
}

impl OpenDir {
    fn file(&self, name: &str, content: SharedFile) -> Arc<dyn MetaFile> {
        Arc::new(OpenFile { dir: self.dir.clone(), incarnation: self.incarnation, name: name.to_owned(), content })
    }
}

impl fmt::Debug for OpenDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimMetaDir({})", self.dir.name)
    }
}

impl MetaDir for OpenDir {
    fn open(&self, name: &str) -> io::Result<Arc<dyn MetaFile>> {
        let content = self.dir.reach(self.incarnation)?.files.get(name).cloned();
        content.map(|content| self.file(name, content)).ok_or_else(|| no_such_file(name))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn MetaFile>> {
        assert!(!name.is_empty() && !name.contains('/'), "names are plain: {name:?}");
        if self.dir.reach(self.incarnation)?.files.contains_key(name) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("metadata file {name} exists")));
        }
        let content = SharedFile::default();
        self.dir.change(self.incarnation, |state| {
            state.files.insert(name.to_owned(), content.clone());
            Ok(self.file(name, content))
        })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.dir.reach(self.incarnation)?.files.keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.dir.change(self.incarnation, |state| {
            state.files.remove(name);
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        assert!(!to.is_empty() && !to.contains('/'), "names are plain: {to:?}");
        self.dir.change(self.incarnation, |state| {
            let content = state.files.remove(from).ok_or_else(|| no_such_file(from))?;
            state.files.insert(to.to_owned(), content);
            Ok(())
        })
    }

    fn spaces(&self) -> io::Result<Vec<MetaSpace>> {
        let state = self.dir.reach(self.incarnation)?;
        let used_bytes = state.files.values().map(|file| lock(file).len() as u64).sum();
        let space = MetaSpace { used_bytes, total_bytes: state.space_bytes, file_system: 0 };
        Ok(if state.space_bytes == 0 { Vec::new() } else { vec![space] })
    }
}

/// A file as a node holds it; it stays usable when the directory no longer names it.
struct OpenFile {
    dir: SimMetaDir,
    incarnation: u64,
    name: String,
    content: SharedFile,
}

impl fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimMetaFile({}/{})", self.dir.name, self.name)
    }
}

/// Longest metadata file, so that a wild offset is an error and not an allocation.
const FILE_LEN_BYTES_MAX: u64 = 1 << 32;

fn position(value: u64, len: usize) -> io::Result<usize> {
    match value.checked_add(len as u64) {
        Some(end) if end <= FILE_LEN_BYTES_MAX => Ok(value as usize),
        _ => Err(io::Error::new(io::ErrorKind::FileTooLarge, "behind the longest simulated metadata file")),
    }
}

impl MetaFile for OpenFile {
    fn len(&self) -> io::Result<u64> {
        let _reach = self.dir.reach(self.incarnation)?;
        Ok(lock(&self.content).len() as u64)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        let len = position(len_bytes, 0)?;
        self.dir.change(self.incarnation, |_| {
            lock(&self.content).set_len(len);
            Ok(())
        })
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = position(offset, out.len())?;
        let _reach = self.dir.reach(self.incarnation)?;
        let content = lock(&self.content);
        let bytes = content.bytes().get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let start = position(offset, bytes.len())?;
        self.dir.change(self.incarnation, |_| {
            lock(&self.content).write(start, bytes);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.dir.reach(self.incarnation)?;
        if count_down(&mut state.fail_sync) {
            lock(&self.content).fail_sync(&state.rng);
            return Err(io::Error::other("simulated metadata sync failure"));
        }
        if !state.sync_is_a_lie {
            lock(&self.content).sync();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> (SimMetaDir, Arc<CutSwitch>) {
        let switch = Arc::<CutSwitch>::default();
        (SimMetaDir::new("meta0", 1, &switch), switch)
    }

    #[test]
    fn names_are_durable_at_once_and_bytes_after_a_sync() {
        let (dir, _switch) = dir();
        let open = dir.open();
        open.create("a").unwrap().write_at(0, b"never synced").unwrap();
        let file = open.create("b.new").unwrap();
        file.write_at(0, b"synced").unwrap();
        file.sync().unwrap();
        open.rename("b.new", "b").unwrap();
        open.create("c").unwrap();
        open.remove("c").unwrap();
        dir.power_cut_in_mode(CutMode::DropAll, &SeededRng::new(0));
        assert!(open.list().is_err() && file.len().is_err(), "handles end with the power");
        let open = dir.open();
        assert_eq!(open.list().unwrap(), ["a", "b"]);
        assert_eq!(open.open("a").unwrap().len().unwrap(), 0);
        let mut bytes = [0; 6];
        open.open("b").unwrap().read_at(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"synced");
    }

    #[test]
    fn the_errors_are_those_of_a_file_system() {
        let (dir, _switch) = dir();
        let open = dir.open();
        assert_eq!(open.open("x").unwrap_err().kind(), io::ErrorKind::NotFound);
        let file = open.create("x").unwrap();
        assert_eq!(open.create("x").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(file.read_at(0, &mut [0]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(file.write_at(u64::MAX, &[0]).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        open.remove("absent").unwrap();
        dir.set_gone(true);
        assert!(open.list().is_err() && file.sync().is_err());
        dir.set_gone(false);
        file.sync().unwrap();
    }

    #[test]
    fn the_cut_switch_counts_metadata_writes_and_ends_them() {
        let (dir, switch) = dir();
        let open = dir.open();
        let file = open.create("x").unwrap();
        switch.arm(2);
        file.write_at(0, &[1; 512]).unwrap();
        file.sync().unwrap();
        file.write_at(0, &[2; 512]).unwrap_err();
        assert!(switch.is_cut());
        file.sync().unwrap_err();
        dir.power_cut(3);
        switch.restore();
        let mut bytes = [0; 512];
        dir.open().open("x").unwrap().read_at(0, &mut bytes).unwrap();
        assert!([[1; 512], [2; 512]].contains(&bytes));
    }

    #[test]
    fn planned_failures_hit_the_planned_operation() {
        let (dir, _switch) = dir();
        let file = dir.open().create("x").unwrap();
        dir.fail_write(2);
        file.write_at(0, &[1]).unwrap();
        file.write_at(0, &[1]).unwrap_err();
        file.write_at(0, &[1]).unwrap();
        dir.fail_sync(1);
        file.sync().unwrap_err();
        file.sync().unwrap();
    }

    #[test]
    fn a_stale_directory_can_be_brought_back() {
        let (dir, _switch) = dir();
        let file = dir.open().create("x").unwrap();
        file.write_at(0, b"old").unwrap();
        file.sync().unwrap();
        file.write_at(0, b"mid").unwrap();
        let image = dir.image();
        file.write_at(0, b"new").unwrap();
        file.sync().unwrap();
        assert_eq!(dir.peek("x").unwrap(), b"new");
        dir.restore(&image);
        assert_eq!(dir.peek("x").unwrap(), b"old", "only what was durable is in an image");
        assert!(file.len().is_err());
    }

    #[test]
    fn a_lying_sync_saves_nothing() {
        let (dir, _switch) = dir();
        let file = dir.open().create("x").unwrap();
        dir.set_sync_is_a_lie(true);
        file.write_at(0, b"gone").unwrap();
        file.sync().unwrap();
        dir.power_cut_in_mode(CutMode::DropAll, &SeededRng::new(0));
        assert_eq!(dir.peek("x").unwrap(), b"");
    }
}
