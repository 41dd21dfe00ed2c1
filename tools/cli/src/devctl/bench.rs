//! `bench`: a quick figure of a drive, through the queue that a node uses. `kiseki-bench device` measures at length.

mod load;

use anyhow::{Context, Result, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use kiseki_devices::device_tail::DeviceTail;
use kiseki_devices::file_device::{DeviceLock, open_device};
use kiseki_devices::in_use::refuse_in_use;
use kiseki_devices::probe::{FoundSignature, PROBE_LEN_BYTES, probe_device};
use kiseki_devices::ring::RingOptions;
use kiseki_measure::units::{binary, count, parse_duration};
use kiseki_server::format::on_executor;
use kiseki_types::device::Device;
use kiseki_types::{BlockIndex, IoBuf};
use load::{Measured, Step};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

/// Shortest device that figures say anything about: the ends are left alone, and between them there must be room.
const LEN_BYTES_MIN: u64 = 16 << 20;

/// Percentiles that are shown.
const PERCENTILES: [f64; 3] = [50.0, 99.0, 99.9];

/// Measures a drive that no node uses: reads, and with --write writes.
///
/// 4 KiB random at depth 1 and 32, 1 MiB sequential at depth 8, with direct I/O through the queue that a node uses.
/// Small writes are each followed by a flush. Writing overwrites the whole device: one that carries a signature needs
/// each of them named in --wipe, as for format. Exit code: 0, or 1 when an operation failed.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiseki-devctl bench /dev/nvme1n1
  kiseki-devctl bench /dev/nvme1n1 --write --wipe gpt --runtime 10s --json")]
pub struct Args {
    /// Block device or image file.
    device: PathBuf,
    /// Measure writes too; everything on the device is lost.
    #[arg(long)]
    write: bool,
    /// Names of signatures that may be overwritten, as `inspect` prints them; comma separated or several times.
    #[arg(long, requires = "write", value_delimiter = ',')]
    wipe: Vec<String>,
    /// Time for each figure.
    #[arg(long, value_parser = parse_duration, default_value = "3s")]
    runtime: Duration,
    /// Print JSON, in fio's words.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let path = &args.device;
    let shown = path.display();
    refuse_in_use(path)?;
    let _lock = DeviceLock::acquire(path).context("a drive is measured while nobody uses it")?;
    let steps: Vec<Step> = Step::ALL.into_iter().filter(|step| args.write || !step.writes()).collect();
    let bar = if args.json { ProgressBar::hidden() } else { ProgressBar::new(steps.len() as u64) };
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")?);
    let measured: Vec<Measured> = on_executor(async |_| {
        let pool = load::pool();
        let device =
            open_device(path, RingOptions { depth: load::DEPTH_MAX, ..RingOptions::default() }, Some(pool.clone()))?;
        let len_bytes = device.geometry().len_bytes();
        if len_bytes < LEN_BYTES_MIN {
            bail!("{shown} has {}; figures need {} at least", HumanBytes(len_bytes), HumanBytes(LEN_BYTES_MIN));
        }
        if args.write {
            clear(&device, DeviceTail::open(path)?.as_ref(), &args.wipe).await?;
        }
        let mut measured = Vec::new();
        for step in steps {
            bar.set_message(step.name());
            measured.push(load::measure(&device, &pool, step, args.runtime).await);
            bar.inc(1);
        }
        anyhow::Ok(measured)
    })??;
    bar.finish_and_clear();
    let warning = (!args.write).then(|| holes_warning(path)).flatten();
    match args.json {
        true => println!("{:#}", report_json(path, &measured, warning.as_deref())),
        false => {
            println!("{shown}: direct=1, ioengine=kiseki-ring, runtime={:?} each", args.runtime);
            measured.iter().for_each(print);
            warning.iter().for_each(|warning| println!("  warning: {warning}"));
        }
    }
    let is_good = measured.iter().all(|step| step.error.is_none());
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// I-D7: what carries a signature is overwritten only when each is named. Then its ends go first, so that nothing takes
/// what the writes leave for what was there.
async fn clear(device: &Rc<dyn Device>, tail: Option<&DeviceTail>, wipe: &[String]) -> Result<()> {
    let found = probe_device(&**device, tail).await?;
    let unnamed: Vec<&FoundSignature> = found.iter().filter(|signature| !wipe.contains(&signature.name)).collect();
    if !unnamed.is_empty() {
        let carried: Vec<String> = unnamed.iter().map(ToString::to_string).collect();
        let names: Vec<String> = unnamed.iter().map(|signature| format!("--wipe {}", signature.name)).collect();
        bail!(
            "{} carries {}; writing destroys it. To go on, add: {}",
            device.name(),
            carried.join(" and "),
            names.join(" ")
        );
    }
    let block = u64::from(device.geometry().block_len_bytes);
    let far = device.geometry().len_bytes() / block * block - PROBE_LEN_BYTES;
    for offset in [0, far / block * block] {
        let zeros = IoBuf::zeroed(PROBE_LEN_BYTES as usize).freeze();
        device.write(BlockIndex(offset / block), vec![zeros]).await.context("clearing the ends failed")?;
    }
    tail.map_or(Ok(()), DeviceTail::zero)?;
    device.flush().await.context("clearing the ends failed")
}

/// Reads of holes come from no disk.
fn holes_warning(path: &Path) -> Option<String> {
    let found = std::fs::metadata(path).ok().filter(|found| found.file_type().is_file())?;
    let holes = found.len().saturating_sub(found.blocks() * 512);
    (holes > 0).then(|| format!("{} of the file are holes, which are read without a disk", HumanBytes(holes)))
}

fn print(measured: &Measured) {
    let step = measured.step;
    println!("  {}: bs={}, iodepth={}{}", step.rw(), binary(step.len_bytes() as f64), step.depth(), step.flush_text());
    let [p50, p99, p999] = PERCENTILES.map(|percent| measured.latency.percentile_ns(percent) as f64 / 1000.0);
    println!(
        "    IOPS={}, BW={}/s, clat (usec): p50={p50:.1}, p99={p99:.1}, p99.9={p999:.1}",
        count(measured.iops()),
        binary(measured.iops() * step.len_bytes() as f64)
    );
    if let Some(error) = &measured.error {
        println!("    FAILED: {error}");
    }
}

fn report_json(path: &Path, measured: &[Measured], warning: Option<&str>) -> Value {
    let jobs = measured.iter().map(|measured| {
        let step = measured.step;
        let percentile = |percent: f64| measured.latency.percentile_ns(percent);
        json!({
            "jobname": step.name(),
            "rw": step.rw(),
            "bs": step.len_bytes(),
            "iodepth": step.depth(),
            "fdatasync": u8::from(step.flushes()),
            "total_ios": measured.latency.count(),
            "runtime_ns": u64::try_from(measured.elapsed.as_nanos()).unwrap_or(u64::MAX),
            "iops": measured.iops(),
            "bw_bytes": measured.iops() * step.len_bytes() as f64,
            "clat_ns": {
                "mean": measured.latency.mean_ns(),
                "max": measured.latency.max_ns(),
                "percentile": {
                    "50.000000": percentile(50.0), "99.000000": percentile(99.0), "99.900000": percentile(99.9),
                },
            },
            "error": measured.error,
        })
    });
    json!({ "path": path.display().to_string(), "jobs": jobs.collect::<Vec<_>>(), "warning": warning })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn image(dir: &tempfile::TempDir, bytes: &[u8]) -> PathBuf {
        let path = dir.path().join("d.img");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(32 << 20).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        path
    }

    fn args(device: PathBuf, write: bool, wipe: &[&str]) -> Args {
        let wipe = wipe.iter().map(|name| (*name).to_owned()).collect();
        Args { device, write, wipe, runtime: Duration::from_millis(30), json: true }
    }

    #[test]
    fn i_d7_writing_needs_each_signature_named_and_reading_changes_nothing() {
        // Beside the sources: a temporary file system in memory has no direct I/O.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = image(&dir, b"XFSB");
        let before = std::fs::read(&path).unwrap();
        assert_eq!(run(args(path.clone(), false, &[])).unwrap(), ExitCode::SUCCESS);
        let error = run(args(path.clone(), true, &["ext"])).unwrap_err().to_string();
        assert!(error.contains("an XFS") && error.contains("--wipe xfs"), "{error}");
        assert!(std::fs::read(&path).unwrap() == before, "I-D7: nothing was written");
        assert_eq!(run(args(path.clone(), true, &["xfs"])).unwrap(), ExitCode::SUCCESS);
        let after = std::fs::read(&path).unwrap();
        assert!(after[..PROBE_LEN_BYTES as usize].iter().all(|byte| *byte == 0), "the old signature is gone");
        assert!(after.iter().any(|byte| *byte != 0), "and something was written");
        // Blank at both ends now: a second run needs no name.
        assert_eq!(run(args(path.clone(), true, &[])).unwrap(), ExitCode::SUCCESS);
        let _held = DeviceLock::acquire(&path).unwrap();
        assert!(run(args(path, false, &[])).is_err(), "what somebody uses is not measured");
    }
}
