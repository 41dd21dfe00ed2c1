//! `tools/fuzz/corpus/<target>/`: seeds that the real encoders made, and inputs that once broke something.

use crate::target::Target;
use std::io;
use std::path::{Path, PathBuf};

/// Start of the names of files that [`write_seeds`] makes.
pub const SEED_PREFIX: &str = "seed-";

/// Start of the names of files that a run saves; whoever mends the parser gives them a better one.
pub const FOUND_PREFIX: &str = "found-";

/// The directory in the tree.
#[must_use]
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The inputs of one target: (file name, bytes), by name.
pub fn read(target: &Target) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut inputs = Vec::new();
    for entry in std::fs::read_dir(directory().join(target.name))? {
        let entry = entry?;
        inputs.push((entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?));
    }
    inputs.sort();
    Ok(inputs)
}

/// Writes the seeds of a target; returns how many. Files that are there already stay: an old one shows that what an
/// earlier encoder wrote is still read.
pub fn write_seeds(target: &Target) -> io::Result<usize> {
    let directory = directory().join(target.name);
    std::fs::create_dir_all(&directory)?;
    let mut written = 0;
    for (name, bytes) in (target.seeds)() {
        let path = directory.join(format!("{SEED_PREFIX}{name}"));
        if !path.exists() {
            std::fs::write(path, bytes)?;
            written += 1;
        }
    }
    Ok(written)
}

/// Saves an input that broke something; returns where.
pub fn save(target: &Target, seed: u64, number: u64, input: &[u8]) -> io::Result<PathBuf> {
    let directory = directory().join(target.name);
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{FOUND_PREFIX}{seed:x}-{number}"));
    std::fs::write(&path, input)?;
    Ok(path)
}
