//! One metadata directory on a file system: plain files, written with pwrite, made durable with fdatasync.

use crate::file_lock::lock_exclusive;
use kiseki_types::meta::{MetaDir, MetaFile, MetaSpace};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest file name, as file systems have it.
const NAME_LEN_BYTES_MAX: usize = 255;

/// A directory of a file system, held for this process.
#[derive(Debug)]
pub struct FsDir {
    path: PathBuf,
    /// Open for fsync, and locked.
    dir: File,
}

impl FsDir {
    /// Opens a directory that exists and locks it. Errors: `ResourceBusy` when another process has it.
    pub fn open(path: &Path) -> io::Result<FsDir> {
        let dir = File::open(path)?;
        if !dir.metadata()?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{} is no directory", path.display())));
        }
        match lock_exclusive(&dir) {
            Ok(()) => Ok(FsDir { path: path.to_owned(), dir }),
            Err(TryLockError::WouldBlock) => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("{} is in use by another process; stop that first", path.display()),
            )),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Makes the directory (its parent must exist) and opens it. Only when a node is set up: a directory that is
    /// missing later is a disk that is not mounted.
    pub fn create(path: &Path) -> io::Result<FsDir> {
        std::fs::DirBuilder::new().mode(0o700).create(path)?;
        File::open(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?
            .sync_all()?;
        FsDir::open(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn file_path(&self, name: &str) -> io::Result<PathBuf> {
        let plain = !name.is_empty() && name.len() <= NAME_LEN_BYTES_MAX && !name.contains(['/', '\0']);
        match plain && name != "." && name != ".." {
            true => Ok(self.path.join(name)),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a plain file name")),
        }
    }
}

impl MetaDir for FsDir {
    fn open(&self, name: &str) -> io::Result<Arc<dyn MetaFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.file_path(name)?)?;
        Ok(Arc::new(FsFile { file }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn MetaFile>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(self.file_path(name)?)?;
        file.sync_all()?;
        self.dir.sync_all()?;
        Ok(Arc::new(FsFile { file }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            // Only what we could have made; a lost+found of the file system is none of ours.
            if let (true, Ok(name)) = (entry.file_type()?.is_file(), entry.file_name().into_string()) {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.file_path(name)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.dir.sync_all(),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.file_path(from)?, self.file_path(to)?)?;
        self.dir.sync_all()
    }

    fn spaces(&self) -> io::Result<Vec<MetaSpace>> {
        let space = rustix::fs::fstatvfs(&self.dir)?;
        // As df shows it: what only root may use counts for neither side.
        let used = space.f_blocks.saturating_sub(space.f_bfree);
        let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
        let total_bytes = bytes(used.saturating_add(space.f_bavail));
        let file_system = rustix::fs::fstat(&self.dir)?.st_dev;
        Ok(vec![MetaSpace { used_bytes: bytes(used), total_bytes, file_system }])
    }
}

/// A file in an [`FsDir`].
#[derive(Debug)]
struct FsFile {
    file: File,
}

impl MetaFile for FsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.file.set_len(len_bytes)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_says_how_full_its_file_system_is() {
        let temp = tempfile::tempdir().unwrap();
        let dir = FsDir::create(&temp.path().join("meta0")).unwrap();
        let shown = std::process::Command::new("df").arg("--output=pcent").arg(temp.path()).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        let shown: i16 = shown.lines().nth(1).unwrap().trim().trim_end_matches('%').parse().unwrap();
        let said = i16::from(dir.spaces().unwrap()[0].fill_percent());
        assert!((said - shown).abs() <= 1, "{said}, and df says {shown}: others write there too");
    }

    #[test]
    fn files_are_made_written_renamed_listed_and_removed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = FsDir::create(&temp.path().join("meta0")).unwrap();
        let file = dir.create("b").unwrap();
        assert_eq!(dir.create("b").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        file.write_at(5, b"hello").unwrap();
        file.sync().unwrap();
        let mut out = [9; 10];
        file.read_at(0, &mut out).unwrap();
        assert_eq!(&out, b"\0\0\0\0\0hello");
        assert_eq!(file.read_at(1, &mut out).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        dir.create("a").unwrap();
        std::fs::create_dir(dir.path().join("lost+found")).unwrap();
        assert_eq!(dir.list().unwrap(), ["a", "b"]);
        dir.rename("b", "a").unwrap();
        assert_eq!(dir.open("a").unwrap().len().unwrap(), 10);
        assert_eq!(dir.open("b").unwrap_err().kind(), io::ErrorKind::NotFound);
        dir.remove("a").unwrap();
        dir.remove("a").unwrap();
        assert!(dir.list().unwrap().is_empty());
        for name in ["", ".", "..", "a/b", "/etc/passwd"] {
            assert_eq!(dir.create(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
    }

    #[test]
    fn a_second_process_is_kept_out_and_a_missing_directory_is_not_made() {
        let temp = tempfile::tempdir().unwrap();
        let dir = FsDir::open(temp.path()).unwrap();
        assert_eq!(FsDir::open(temp.path()).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(dir);
        FsDir::open(temp.path()).unwrap();
        assert_eq!(FsDir::open(&temp.path().join("gone")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
