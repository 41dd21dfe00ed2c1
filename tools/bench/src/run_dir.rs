//! The directory of one run, for verbs that make what they measure.

use anyhow::{Result, anyhow};
use rustix::fs::statfs;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// What the kernel calls a file system in memory.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// The directory. It is removed, with all that is in it, when this is dropped.
pub struct RunDir(PathBuf);

impl RunDir {
    /// Makes it below `parent`, named after the verb.
    pub fn make(parent: &Path, verb: &str) -> Result<RunDir> {
        // Several may be made by one process, as in tests.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("kiseki-bench-{verb}-{}-{number}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(RunDir(path)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Err(anyhow!("{} is there already; remove it", path.display()))
            }
            Err(error) => Err(anyhow!("can't make {}: {error}", path.display())),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What about the place makes figures mean less.
    pub fn warnings(&self) -> Vec<String> {
        let is_memory = statfs(&self.0).is_ok_and(|found| found.f_type as u64 == TMPFS_MAGIC);
        let text = || format!("{} lies in memory: flushes cost nothing there; name another --dir", self.0.display());
        is_memory.then(text).into_iter().collect()
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("kiseki-bench: {} can't be removed: {error}", self.0.display());
        }
    }
}
