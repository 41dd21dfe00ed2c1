//! A metadata directory that is looked at and never changed: what is written goes to memory and is forgotten.
//!
//! Opening a table file may write (redb settles what a crash left), and a tool that only looks must not.

use kiseki_types::meta::{MetaDir, MetaFile};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Unit in which written bytes are kept.
const PAGE_LEN_BYTES: u64 = 4096;

/// A directory below which nothing changes.
#[derive(Debug)]
pub struct ScratchDir {
    path: PathBuf,
    /// What differs from the directory: files made or written, `None` for removed ones.
    changed: Mutex<BTreeMap<String, Option<Arc<ScratchFile>>>>,
}

impl ScratchDir {
    /// The directory at `path`. Errors: there is none.
    pub fn open(path: &Path) -> io::Result<ScratchDir> {
        std::fs::read_dir(path)?;
        Ok(ScratchDir { path: path.to_owned(), changed: Mutex::default() })
    }

    fn changed(&self) -> MutexGuard<'_, BTreeMap<String, Option<Arc<ScratchFile>>>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MetaDir for ScratchDir {
    fn open(&self, name: &str) -> io::Result<Arc<dyn MetaFile>> {
        let mut changed = self.changed();
        match changed.get(name) {
            Some(Some(file)) => Ok(file.clone()),
            Some(None) => Err(io::ErrorKind::NotFound.into()),
            None => {
                let file = File::open(self.path.join(name))?;
                let len_bytes = file.metadata()?.len();
                let file = Arc::new(ScratchFile::over(Some(file), len_bytes));
                changed.insert(name.to_owned(), Some(file.clone()));
                Ok(file)
            }
        }
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn MetaFile>> {
        if self.list()?.iter().any(|other| other == name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Arc::new(ScratchFile::over(None, 0));
        self.changed().insert(name.to_owned(), Some(file.clone()));
        Ok(file)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let changed = self.changed();
        let mut names: Vec<String> =
            changed.iter().filter(|(_, file)| file.is_some()).map(|(name, _)| name.clone()).collect();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if let (true, Ok(name)) = (entry.file_type()?.is_file(), entry.file_name().into_string())
                && !changed.contains_key(&name)
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.changed().insert(name.to_owned(), None);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.open(from)?;
        let mut changed = self.changed();
        let file = changed.insert(from.to_owned(), None).flatten();
        changed.insert(to.to_owned(), file);
        Ok(())
    }
}

/// A file with its changes in memory.
#[derive(Debug)]
struct ScratchFile {
    base: Option<File>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    len_bytes: u64,
    /// Bytes of the base that still count: what was cut off once reads as zeros.
    base_len_bytes: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl ScratchFile {
    fn over(base: Option<File>, len_bytes: u64) -> ScratchFile {
        ScratchFile { base, state: Mutex::new(State { len_bytes, base_len_bytes: len_bytes, pages: BTreeMap::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What page `page` holds.
    fn page(&self, state: &State, page: u64) -> io::Result<Box<[u8]>> {
        if let Some(bytes) = state.pages.get(&page) {
            return Ok(bytes.clone());
        }
        let mut bytes = vec![0; PAGE_LEN_BYTES as usize].into_boxed_slice();
        let start = page * PAGE_LEN_BYTES;
        let there = state.base_len_bytes.saturating_sub(start).min(PAGE_LEN_BYTES) as usize;
        if let Some(base) = &self.base {
            base.read_exact_at(&mut bytes[..there], start)?;
        }
        Ok(bytes)
    }
}

/// The parts of `len` bytes from `offset` on, page by page: (page, start in it, bytes).
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len as u64;
    (offset / PAGE_LEN_BYTES..end.div_ceil(PAGE_LEN_BYTES)).map(move |page| {
        let start = offset.max(page * PAGE_LEN_BYTES);
        let until = end.min((page + 1) * PAGE_LEN_BYTES);
        (page, (start - page * PAGE_LEN_BYTES) as usize, (until - start) as usize)
    })
}

impl MetaFile for ScratchFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().len_bytes)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        let mut state = self.state();
        if len_bytes < state.len_bytes {
            let cut = len_bytes / PAGE_LEN_BYTES;
            let mut last = self.page(&state, cut)?;
            last[(len_bytes % PAGE_LEN_BYTES) as usize..].fill(0);
            state.pages.split_off(&cut);
            state.pages.insert(cut, last);
        }
        state.base_len_bytes = state.base_len_bytes.min(len_bytes);
        state.len_bytes = len_bytes;
        Ok(())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if offset + out.len() as u64 > state.len_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        for (page, start, len) in parts(offset, out.len()) {
            out[done..done + len].copy_from_slice(&self.page(&state, page)?[start..start + len]);
            done += len;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let mut done = 0;
        for (page, start, len) in parts(offset, bytes.len()) {
            let mut whole = self.page(&state, page)?;
            whole[start..start + len].copy_from_slice(&bytes[done..done + len]);
            state.pages.insert(page, whole);
            done += len;
        }
        state.len_bytes = state.len_bytes.max(offset + bytes.len() as u64);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_seen_and_the_directory_stays_as_it_was() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("a"), vec![7; 10_000]).unwrap();
        let dir = ScratchDir::open(temp.path()).unwrap();
        let file = dir.open("a").unwrap();
        file.write_at(4090, &[1; 20]).unwrap();
        let mut out = [0; 30];
        file.read_at(4085, &mut out).unwrap();
        assert_eq!(out, [&[7; 5][..], &[1; 20], &[7; 5]].concat()[..]);
        file.set_len(5000).unwrap();
        file.set_len(9000).unwrap();
        file.read_at(4990, &mut out).unwrap();
        assert_eq!(out, [&[7; 10][..], &[0; 20]].concat()[..], "what was cut off reads as zeros");
        assert_eq!(file.read_at(8990, &mut out).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(dir.create("a").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        dir.create("b").unwrap().write_at(0, b"new").unwrap();
        dir.rename("b", "c").unwrap();
        assert_eq!(dir.list().unwrap(), ["a", "c"]);
        dir.remove("a").unwrap();
        assert_eq!((dir.list().unwrap(), dir.open("a").is_err()), (vec!["c".to_owned()], true));
        assert_eq!(std::fs::read(temp.path().join("a")).unwrap(), vec![7; 10_000]);
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
    }
}
