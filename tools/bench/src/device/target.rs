//! What is measured: whether it may be written to, how long it is, and who removes it.

use super::DeviceArgs;
use crate::units::binary;
use crate::usage::usage;
use anyhow::{Context, Result};
use kiseki_devices::file_device::{DeviceLock, RawDevice, block_node, create_image};
use kiseki_devices::nvme::path::PathChoice;
use kiseki_devices::probe::{PROBE_LEN_BYTES, probe_file};
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
    /// Which way the executors drive it.
    pub choice: PathChoice,
    is_block: bool,
    /// Bytes of a file that lie nowhere: reading them reads no device.
    holes_len_bytes: u64,
    made: Option<MadeFile>,
    /// Nobody else writes it meanwhile. Only for writing: a device in use may be read.
    _lock: Option<DeviceLock>,
}

impl Target {
    /// Opens a path for what the arguments ask; makes a missing file.
    ///
    /// Errors: `Usage` where writing would destroy what nobody named, and for lengths and ways that can't be.
    pub fn open(path: &Path, args: &DeviceArgs) -> Result<Target> {
        let shown = path.display();
        // A namespace that is named by its character device is looked at as the block device that it is.
        let found = match std::fs::metadata(block_node(path)) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(usage(format!("{shown}: {error}"))),
        };
        let made = if found.is_none() { Some(MadeFile::create(path, args)?) } else { None };
        let is_block = found.as_ref().is_some_and(|found| found.file_type().is_block_device());
        let mut lock = None;
        if args.writes() {
            if made.is_none() && !args.destroy.iter().any(|named| named == path) {
                refuse_to_destroy(path, is_block)?;
            }
            lock = Some(DeviceLock::acquire(path)?);
        }
        let whole = RawDevice::open(path)?.geometry().len_bytes();
        let len_bytes = args.size.unwrap_or(whole);
        if len_bytes > whole {
            let (size, whole) = (binary(len_bytes as f64), binary(whole as f64));
            return Err(usage(format!("{shown} has {whole}, less than --size {size}; give a smaller --size")));
        }
        let choice = PathChoice::make(path, args.device_path.into()).map_err(|error| usage(error.to_string()))?;
        Ok(Target {
            path: path.to_owned(),
            len_bytes,
            choice,
            is_block,
            holes_len_bytes: found.as_ref().map_or(0, holes),
            made,
            _lock: lock,
        })
    }

    /// Whether it was made by us, and therefore has to be filled before it is measured.
    pub fn is_made(&self) -> bool {
        self.made.is_some()
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
            "made_for_this_run": self.is_made(),
            "path_in_use": self.choice.in_use.word(),
            "path_reason": self.choice.reason,
        })
    }
}

fn holes(found: &Metadata) -> u64 {
    match found.file_type().is_file() {
        true => found.len().saturating_sub(found.blocks() * 512),
        false => 0,
    }
}

/// Only what nobody can miss is overwritten unasked: a blank file.
fn refuse_to_destroy(path: &Path, is_block: bool) -> Result<()> {
    let shown = path.display();
    let refuse =
        |what: &str| Err(usage(format!("{shown} {what}; writing destroys it. To go on, add: --destroy {shown}")));
    let looking = || format!("{shown} can't be looked at");
    let raw = RawDevice::open_for_reading(path)?;
    let carried = probe_file(&raw).with_context(looking)?;
    if !carried.is_empty() {
        let names: Vec<String> = carried.iter().map(ToString::to_string).collect();
        return refuse(&format!("carries {}", names.join(" and ")));
    }
    if is_block {
        return refuse("is a block device");
    }
    let len_bytes = raw.len().with_context(looking)?;
    let mut end = vec![0; len_bytes.min(PROBE_LEN_BYTES) as usize];
    for offset in [0, len_bytes - end.len() as u64] {
        raw.read_at(offset, &mut end).with_context(looking)?;
        if end.iter().any(|byte| *byte != 0) {
            return refuse("holds data");
        }
    }
    Ok(())
}

/// A file that was made for this run and goes with it.
#[derive(Debug)]
struct MadeFile(PathBuf);

impl MadeFile {
    fn create(path: &Path, args: &DeviceArgs) -> Result<MadeFile> {
        if path.starts_with("/dev") {
            let shown = path.display();
            return Err(usage(format!("{shown} does not exist; plug the device in or name another one")));
        }
        create_image(path, args.size.unwrap_or(NEW_FILE_LEN_BYTES).next_multiple_of(args.bs))?;
        Ok(MadeFile(path.to_owned()))
    }
}

impl Drop for MadeFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            eprintln!("kiseki-bench: {} can't be removed: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Usage;
    use clap::Parser;
    use kiseki_devices::nvme::path::PathInUse;
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
    fn what_lies_in_a_partition_is_named_too() {
        let dir = dir();
        let mut table = [0; 512];
        // One partition of Linux, from 2 MiB on, 4 MiB long.
        table[446 + 4] = 0x83;
        table[446 + 8..446 + 12].copy_from_slice(&(2u32 << 11).to_le_bytes());
        table[446 + 12..446 + 16].copy_from_slice(&(4u32 << 11).to_le_bytes());
        table[510..].copy_from_slice(&[0x55, 0xaa]);
        let path = image(&dir, 0, &table);
        std::fs::File::options().write(true).open(&path).unwrap().write_all_at(b"XFSB", 2 << 20).unwrap();
        let error = Target::open(&path, &args(&path, &["--rw", "write"])).unwrap_err();
        assert!(error.is::<Usage>() && error.to_string().contains("an XFS file system in partition 1"), "{error}");
    }

    #[test]
    fn a_file_that_holds_data_is_refused_and_a_blank_one_is_not() {
        let dir = dir();
        let path = image(&dir, 5 << 10, b"a letter");
        assert!(Target::open(&path, &args(&path, &["--rw", "write"])).unwrap_err().is::<Usage>());
        // Behind the last whole block.
        let path = image(&dir, 8 << 20, b"a letter");
        assert!(Target::open(&path, &args(&path, &["--rw", "write"])).unwrap_err().is::<Usage>());
        let blank = image(&dir, 0, &[]);
        Target::open(&blank, &args(&blank, &["--rw", "write"])).unwrap();
    }

    #[test]
    fn a_namespace_named_by_its_character_device_is_spared_as_its_block_device_is() {
        let dir = dir();
        let block = image(&dir, 0, b"XFSB");
        let (named, generic) = (dir.path().join("nvme7n1"), dir.path().join("ng7n1"));
        std::fs::rename(&block, &named).unwrap();
        std::fs::write(&generic, b"").unwrap();
        let before = std::fs::read(&named).unwrap();
        let error = Target::open(&generic, &args(&generic, &["--rw", "write"])).unwrap_err();
        assert!(error.is::<Usage>() && error.to_string().contains("an XFS"), "{error}");
        assert!(std::fs::read(&named).unwrap() == before);
        assert_eq!(Target::open(&generic, &args(&generic, &[])).unwrap().len_bytes, before.len() as u64);
    }

    #[test]
    fn the_way_is_chosen_as_a_node_chooses_it() {
        let dir = dir();
        let file = image(&dir, 0, &[]);
        for way in ["auto", "passthrough", "io_uring"] {
            let target = Target::open(&file, &args(&file, &["--device-path", way])).unwrap();
            assert_eq!(target.choice.in_use, PathInUse::File, "{way}: files stand for drives");
        }
        // Named as a namespace, without a character device.
        let drive = dir.path().join("nvme7n1");
        std::fs::rename(&file, &drive).unwrap();
        let refused = Target::open(&drive, &args(&drive, &["--device-path", "passthrough"])).unwrap_err();
        assert!(refused.is::<Usage>() && refused.to_string().contains("ng7n1"), "{refused}");
        let target = Target::open(&drive, &args(&drive, &[])).unwrap();
        assert_eq!(target.choice.in_use, PathInUse::Block);
        assert!(target.json()["path_reason"].as_str().unwrap().contains("ng7n1"), "{}", target.json());
    }

    #[test]
    fn a_missing_file_is_made_and_removed() {
        let dir = dir();
        let path = dir.path().join("new.img");
        let target = Target::open(&path, &args(&path, &["--rw", "randread", "--size", "4m"])).unwrap();
        assert_eq!((target.is_made(), target.len_bytes), (true, 4 << 20));
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
