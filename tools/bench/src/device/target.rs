//! What is measured: whether it may be written to, how long it is, and who removes it.

use super::DeviceArgs;
use crate::units::binary;
use crate::usage::usage;
use anyhow::{Context, Result};
use kiseki_devices::file_device::{DeviceLock, RawDevice, create_image};
use kiseki_devices::probe::{PROBE_LEN_BYTES, probe};
use kiseki_types::meta::MetaFile;
use serde_json::{Value, json};
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Length of a file that is made without `--size`.
const NEW_FILE_LEN_BYTES: u64 = 1 << 30;

/// A device or file under measurement. Dropped, it removes the file that it made.
#[derive(Debug)]
pub struct Target {
    /// Where.
    pub path: PathBuf,
    /// Bytes used, from the start; a multiple of the block.
    pub len_bytes: u64,
    /// Made by us, and therefore filled before it is measured.
    pub is_made: bool,
    is_block: bool,
    /// Bytes of a file that lie nowhere: reading them reads no device.
    holes_len_bytes: u64,
    /// Nobody else writes it meanwhile. Only for writing: a device in use may be read.
    _lock: Option<DeviceLock>,
}

impl Target {
    /// Opens a path for what the arguments ask; makes a missing file.
    ///
    /// Errors: `Usage` where writing would destroy what nobody named, and for lengths that can't be.
    pub fn open(path: &Path, args: &DeviceArgs) -> Result<Target> {
        let shown = path.display();
        let found = match std::fs::metadata(path) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(usage(format!("{shown}: {error}"))),
        };
        let is_made = found.is_none();
        if is_made {
            if path.starts_with("/dev") {
                return Err(usage(format!("{shown} does not exist; plug the device in or name another one")));
            }
            let len_bytes = args.size.unwrap_or(NEW_FILE_LEN_BYTES).next_multiple_of(args.bs);
            create_image(path, len_bytes)?;
        }
        // From here on the file, if we made it, is removed whatever happens.
        let mut target = Target {
            path: path.to_owned(),
            len_bytes: 0,
            is_made,
            is_block: found.as_ref().is_some_and(|found| found.file_type().is_block_device()),
            holes_len_bytes: found.as_ref().map_or(0, holes),
            _lock: None,
        };
        if args.writes() {
            if !is_made && !args.destroy.contains(&target.path) {
                target.refuse_to_destroy()?;
            }
            target._lock = Some(DeviceLock::acquire(path)?);
        }
        let whole = RawDevice::open(path)?.geometry().len_bytes();
        target.len_bytes = args.size.unwrap_or(whole);
        match target.len_bytes <= whole {
            true => Ok(target),
            false => {
                let (size, whole) = (binary(target.len_bytes as f64), binary(whole as f64));
                Err(usage(format!("{shown} has {whole}, less than --size {size}; give a smaller --size")))
            }
        }
    }

    /// Whether every job finds at least one block in its part.
    pub fn check_room(&self, args: &DeviceArgs) -> Result<()> {
        let parts = if args.rw.is_random() { 1 } else { u64::from(args.numjobs) };
        match self.len_bytes >= args.bs * parts {
            true => Ok(()),
            false => Err(usage(format!(
                "{} has {} to use, too little for {parts} operations of {}; use a larger one or a smaller --bs",
                self.path.display(),
                binary(self.len_bytes as f64),
                binary(args.bs as f64)
            ))),
        }
    }

    /// Only what nobody can miss is overwritten unasked: a blank file.
    fn refuse_to_destroy(&self) -> Result<()> {
        let shown = self.path.display();
        let refuse =
            |what: &str| Err(usage(format!("{shown} {what}; writing destroys it. To go on, add: --destroy {shown}")));
        let raw = RawDevice::open(&self.path)?;
        let geometry = raw.geometry();
        let len_bytes = geometry.len_bytes();
        let each = len_bytes.min(PROBE_LEN_BYTES);
        let read = |offset: u64| {
            let mut bytes = vec![0; each as usize];
            raw.read_at(offset, &mut bytes).with_context(|| format!("{shown} can't be looked at")).map(|()| bytes)
        };
        let (front, far) = (read(0)?, read(len_bytes - each)?);
        let carried = probe(&front, &far, geometry);
        if !carried.is_empty() {
            let names: Vec<String> = carried.iter().map(ToString::to_string).collect();
            return refuse(&format!("carries {}", names.join(" and ")));
        }
        if self.is_block {
            return refuse("is a block device");
        }
        if front.iter().chain(&far).any(|byte| *byte != 0) {
            return refuse("holds data");
        }
        Ok(())
    }

    /// Reads of holes come from no device and make figures too good.
    pub fn holes_warning(&self, args: &DeviceArgs) -> Option<String> {
        let reads = args.rw.read_percent(args.rwmixread) > 0;
        (reads && self.holes_len_bytes > 0).then(|| {
            let (shown, holes) = (self.path.display(), binary(self.holes_len_bytes as f64));
            format!("{shown} has {holes} of holes, which are read without a device; let kiseki-bench make the file")
        })
    }

    /// For the manifest.
    pub fn json(&self) -> Value {
        json!({
            "path": self.path,
            "kind": if self.is_block { "block device" } else { "file" },
            "len_bytes": self.len_bytes,
            "made_for_this_run": self.is_made,
        })
    }
}

fn holes(found: &Metadata) -> u64 {
    match found.file_type().is_file() {
        true => found.len().saturating_sub(found.blocks() * 512),
        false => 0,
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.is_made
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            eprintln!("kiseki-bench: {} can't be removed: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Usage;
    use clap::Parser;
    use std::os::unix::fs::FileExt;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: DeviceArgs,
    }

    fn args(path: &Path, more: &[&str]) -> DeviceArgs {
        let mut line = vec!["device", path.to_str().unwrap()];
        line.extend_from_slice(more);
        Line::try_parse_from(line).unwrap().args
    }

    /// Beside the sources: a temporary file system in memory has no direct I/O.
    fn dir() -> tempfile::TempDir {
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap()
    }

    fn image(dir: &tempfile::TempDir, at: u64, bytes: &[u8]) -> PathBuf {
        let path = dir.path().join("d.img");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(bytes, at).unwrap();
        path
    }

    #[test]
    fn what_carries_a_signature_is_not_written_to_unless_it_is_named() {
        for (at, bytes, what) in
            [(1080, &[0x53, 0xef][..], "an ext2"), (0, b"XFSB", "an XFS"), ((8 << 20) - 512, b"EFI PART", "a GPT")]
        {
            let dir = dir();
            let path = image(&dir, at, bytes);
            let before = std::fs::read(&path).unwrap();
            let error = Target::open(&path, &args(&path, &["--rw", "randwrite"])).unwrap_err();
            let text = error.to_string();
            assert!(error.is::<Usage>() && text.contains(what) && text.contains("--destroy"), "{text}");
            assert!(std::fs::read(&path).unwrap() == before && path.exists());
            Target::open(&path, &args(&path, &["--rw", "randread"])).expect("reading harms nobody");
            let named = args(&path, &["--rw", "randwrite", "--destroy", path.to_str().unwrap()]);
            let target = Target::open(&path, &named).expect("it was named");
            drop(target);
            assert!(path.exists(), "what was there before is not removed");
        }
    }

    #[test]
    fn a_file_that_holds_data_is_refused_and_a_blank_one_is_not() {
        let dir = dir();
        let path = image(&dir, 5 << 10, b"a letter");
        assert!(Target::open(&path, &args(&path, &["--rw", "write"])).unwrap_err().is::<Usage>());
        let blank = image(&dir, 0, &[]);
        Target::open(&blank, &args(&blank, &["--rw", "write"])).unwrap();
    }

    #[test]
    fn a_missing_file_is_made_and_removed() {
        let dir = dir();
        let path = dir.path().join("new.img");
        let target = Target::open(&path, &args(&path, &["--rw", "randread", "--size", "4m"])).unwrap();
        assert_eq!((target.is_made, target.len_bytes), (true, 4 << 20));
        assert!(path.exists());
        drop(target);
        assert!(!path.exists());
        let missing = Path::new("/dev/no-such-device");
        assert!(Target::open(missing, &args(missing, &[])).unwrap_err().is::<Usage>());
    }

    #[test]
    fn lengths_have_to_fit() {
        let dir = dir();
        let path = image(&dir, 0, &[]);
        assert!(Target::open(&path, &args(&path, &["--size", "16m"])).unwrap_err().is::<Usage>());
        let wide = args(&path, &["--rw", "read", "--bs", "4m", "--numjobs", "3"]);
        assert!(Target::open(&path, &wide).unwrap().check_room(&wide).is_err());
    }
}
