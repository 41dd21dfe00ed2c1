//! The directory of a node that lives as long as a run.

use super::{EngineArgs, Inline};
use crate::run_dir::RunDir;
use crate::usage::usage;
use anyhow::{Context, Result, anyhow};
use kiseki_server::config::{Config, FileConfig, Overrides};
use kiseki_server::init::{self, InitOptions};
use kiseki_server::paths::KisekiDir;
use rustix::fs::{SeekFrom, fdatasync, seek, statvfs};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Longest image file by default.
const DEVICE_LEN_BYTES_MAX: u64 = 4 << 30;

/// Shortest one: all lanes' journals and some room.
const DEVICE_LEN_BYTES_MIN: u64 = 64 << 20;

/// Share of what is free that image files may take by default, in percent; the rest is for metadata.
const FREE_PERCENT_MAX: u64 = 75;

/// Bytes of zeros that are written at once.
const ZEROS_LEN_BYTES: usize = 1 << 20;

/// The directory. It is removed when this is dropped.
pub struct NodeDir {
    dir: RunDir,
    device_len_bytes: u64,
}

impl NodeDir {
    /// Makes a directory of its own below `--dir`, and in it a new node with the server's code.
    pub fn make(args: &EngineArgs) -> Result<NodeDir> {
        let device_len_bytes = device_len_bytes(args)?;
        let node = NodeDir { dir: RunDir::make(&args.dir, "engine")?, device_len_bytes };
        let options = InitOptions {
            device_count: args.devices,
            device_len_bytes,
            metadata_dir_count: args.metadata_dirs,
            lanes: args.lanes(),
            first_pool: args.shape,
            ..InitOptions::usual(node.kiseki_dir()?)
        };
        init::run(&options).context("the node can't be made")?;
        if args.prefill {
            for number in 0..args.devices {
                let image = node.path().join(format!("devices/d{number}.img"));
                fill_holes(&image).with_context(|| format!("can't fill {}", image.display()))?;
            }
        }
        Ok(node)
    }

    fn kiseki_dir(&self) -> Result<KisekiDir> {
        Ok(KisekiDir::at(self.path())?)
    }

    /// What the node runs with: as `init` writes it, but for what the arguments say.
    pub fn config(&self, args: &EngineArgs) -> Result<Config> {
        let text = std::fs::read_to_string(self.kiseki_dir()?.config())?;
        let mut file = FileConfig::parse(&text).map_err(|reason| anyhow!("the node's configuration: {reason}"))?;
        file.cores = args.cores;
        // The node lives for one run: nobody loses anything with it.
        file.unsafe_single_copy = true;
        if args.inline == Inline::Off {
            file.inline.mb_per_second_max = 0;
        }
        if args.prefill {
            // Space that is given back would have to be allocated again.
            file.discard.classes.clear();
        }
        Ok(Config::combine(self.kiseki_dir()?, file, &Overrides::default())?)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Bytes of each image file.
    pub fn device_len_bytes(&self) -> u64 {
        self.device_len_bytes
    }

    /// What about the place makes figures mean less.
    pub fn warnings(&self) -> Vec<String> {
        self.dir.warnings()
    }
}

/// As long as was asked for, or as there is room for.
fn device_len_bytes(args: &EngineArgs) -> Result<u64> {
    let found = statvfs(&args.dir).with_context(|| format!("--dir {}", args.dir.display()))?;
    let free_bytes = found.f_bavail.saturating_mul(found.f_frsize);
    let count = u64::from(args.devices);
    let fitting = free_bytes / 100 * FREE_PERCENT_MAX / count;
    let len_bytes = args.device_size.unwrap_or(fitting.min(DEVICE_LEN_BYTES_MAX) >> 20 << 20);
    if len_bytes < DEVICE_LEN_BYTES_MIN {
        return Err(usage(format!(
            "--device-size: {len_bytes} bytes for each of {count} image files are too few; give 64m or more, where there is room"
        )));
    }
    match len_bytes.checked_mul(count) {
        Some(bytes) if bytes <= free_bytes => Ok(len_bytes),
        _ => Err(usage(format!(
            "--device-size: {count} image files of {len_bytes} bytes may grow beyond the {free_bytes} bytes that are free in {}",
            args.dir.display()
        ))),
    }
}

/// Writes zeros where a sparse file has holes; what can be read of it stays the same.
fn fill_holes(path: &Path) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let (len, zeros) = (file.metadata()?.len(), vec![0; ZEROS_LEN_BYTES]);
    let mut at = next(&file, 0, SeekFrom::Hole)?.unwrap_or(len);
    while at < len {
        let end = next(&file, at, SeekFrom::Data)?.unwrap_or(len);
        while at < end {
            let bytes = (end - at).min(ZEROS_LEN_BYTES as u64);
            file.write_all_at(&zeros[..bytes as usize], at)?;
            at += bytes;
        }
        at = next(&file, at, SeekFrom::Hole)?.unwrap_or(len);
    }
    Ok(fdatasync(&file)?)
}

/// Where the next hole or the next data begins; `None` when there is none.
fn next(file: &File, from: u64, what: fn(u64) -> SeekFrom) -> Result<Option<u64>> {
    match seek(file, what(from)) {
        Ok(at) => Ok(Some(at)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn holes_are_filled_and_data_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let file = File::create(&path).unwrap();
        file.set_len(5 << 20).unwrap();
        file.write_all_at(&[7; 5000], 3 << 20).unwrap();
        file.sync_all().unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20);
        fill_holes(&path).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 >= 5 << 20);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 5 << 20);
        assert!(bytes.iter().enumerate().all(|(at, byte)| (*byte == 7) == (3 << 20..(3 << 20) + 5000).contains(&at)));
    }
}
