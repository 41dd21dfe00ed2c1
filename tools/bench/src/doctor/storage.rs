//! Synced direct writes in a directory, and what the kernel says of the disk below it.

use super::not_measured;
use super::settings::Root;
use crate::measure::Latency;
use crate::plot::time;
use crate::stop::Stop;
use kiseki_server::doctor::{Finding, error, ok, warning};
use kiseki_types::buf::IoBuf;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions, metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

const BLOCK_BYTES: usize = 4096;
/// The file that is written over and over.
const FILE_BLOCKS: u64 = 256;
/// No drive that is not busy takes that long, and everything that commits waits for it.
const STALL: Duration = Duration::from_millis(100);
/// Faster than any medium: a cache answers.
const CACHE: Duration = Duration::from_micros(15);

/// Tries it for `for_time`.
pub fn examine(root: &Root, dir: &Path, for_time: Duration, stop: &Stop) -> Vec<Finding> {
    let mut findings = vec![match probe(dir, for_time, stop) {
        Ok(latency) => synced_writes(dir, &latency),
        Err(problem) => error(
            "synced writes",
            format!("{}: {problem}", dir.display()),
            "name a directory that can be written, on ext4, XFS or a block device: tmpfs and overlay file systems lack direct I/O",
        ),
    }];
    if let Ok(found) = metadata(dir) {
        findings.extend(scheduler(root, found.dev()));
    }
    findings
}

fn probe(dir: &Path, for_time: Duration, stop: &Stop) -> io::Result<Latency> {
    let path = dir.join(format!(".kiseki-bench-doctor-{}", std::process::id()));
    let file =
        OpenOptions::new().write(true).create_new(true).custom_flags(OFlags::DIRECT.bits() as i32).open(&path)?;
    let tried = write_for(&file, for_time, stop);
    std::fs::remove_file(&path)?;
    tried
}

fn write_for(file: &File, for_time: Duration, stop: &Stop) -> io::Result<Latency> {
    let block = IoBuf::zeroed(BLOCK_BYTES);
    // Written once before: the first write of a block is the file system's work too.
    for number in 0..FILE_BLOCKS {
        file.write_all_at(&block, number * BLOCK_BYTES as u64)?;
    }
    file.sync_all()?;
    let (mut latency, until, mut number) = (Latency::default(), Instant::now() + for_time, 0);
    while Instant::now() < until && !stop.is_set() {
        let began = Instant::now();
        file.write_all_at(&block, number % FILE_BLOCKS * BLOCK_BYTES as u64)?;
        file.sync_data()?;
        latency.record(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        number += 1;
    }
    Ok(latency)
}

fn synced_writes(dir: &Path, latency: &Latency) -> Finding {
    if latency.count() == 0 {
        return not_measured("synced writes");
    }
    let (middle, longest) = (latency.percentile_ns(50.0), latency.max_ns());
    let seen = format!(
        "{}: 4 KiB with a flush, one at a time: {} writes, p50 {}, p99 {}, at most {}",
        dir.display(),
        latency.count(),
        time(middle as f64),
        time(latency.percentile_ns(99.0) as f64),
        time(longest as f64),
    );
    if Duration::from_nanos(longest) > STALL {
        let remedy = "look who else uses the disk (iostat -x 1, /proc/pressure/io); measure longer, in turns";
        return error("synced writes", format!("{seen}: the disk stalls, and what commits waits for it"), remedy);
    }
    match Duration::from_nanos(middle) < CACHE {
        true => warning(
            "synced writes",
            format!("{seen}: a cache answers, not a medium"),
            "right for drives with power-loss protection; of others, and of virtual disks, say so beside the figures",
        ),
        false => ok("synced writes", seen),
    }
}

/// A scheduler that sorts costs time on drives that have no order.
fn scheduler(root: &Root, device: u64) -> Option<Finding> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let at = |name: &str| root.read(&format!("sys/dev/block/{major}:{minor}/{name}"));
    // A partition has the queue of its disk.
    let of = |name: &str| at(&format!("queue/{name}")).or_else(|| at(&format!("../queue/{name}")));
    let (setting, rotational) = (of("scheduler")?, of("rotational"));
    let current = setting.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("none", |(name, _)| name);
    Some(match current != "none" && rotational.as_deref() == Some("0") {
        true => warning(
            "I/O scheduler",
            format!("{current}, on a disk without moving parts: it sorts what needs no order"),
            format!("echo none > /sys/dev/block/{major}:{minor}/queue/scheduler"),
        ),
        false => ok("I/O scheduler", current),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_server::doctor::Severity;

    fn of(latencies_us: &[u64]) -> Finding {
        let mut latency = Latency::default();
        latencies_us.iter().for_each(|us| latency.record(us * 1000));
        synced_writes(Path::new("/d"), &latency)
    }

    #[test]
    fn a_disk_that_stalls_or_answers_too_soon_is_told_from_a_good_one() {
        assert_eq!(of(&[400, 500, 600]).severity, Severity::Ok);
        assert_eq!(of(&[400, 500, 200_000]).severity, Severity::Error);
        assert_eq!(of(&[3, 4, 5]).severity, Severity::Warning);
        assert!(of(&[3, 4, 5]).message.contains("a cache answers"));
    }

    #[test]
    fn an_interruption_before_the_first_write_blames_no_cache() {
        let found = of(&[]);
        assert_eq!(found.severity, Severity::Warning);
        assert!(found.message.contains("nothing was measured"), "{}", found.message);
    }

    #[test]
    fn a_directory_that_can_t_be_written_is_an_error_with_its_name() {
        let findings = examine(&Root::default(), Path::new("/nowhere/at/all"), Duration::ZERO, &Stop::default());
        assert_eq!(findings[0].severity, Severity::Error);
        assert!(findings[0].message.contains("/nowhere/at/all"), "{}", findings[0].message);
    }

    #[test]
    fn a_scheduler_that_sorts_is_told_of_a_disk_that_has_no_order() {
        let dir = tempfile::tempdir().unwrap();
        let queue = dir.path().join("sys/dev/block/254:0/queue");
        std::fs::create_dir_all(&queue).unwrap();
        std::fs::write(queue.join("scheduler"), "none [mq-deadline]\n").unwrap();
        std::fs::write(queue.join("rotational"), "0\n").unwrap();
        let root = Root::at(dir.path().to_owned());
        let found = scheduler(&root, rustix::fs::makedev(254, 0)).unwrap();
        assert_eq!((found.severity, found.message.contains("mq-deadline")), (Severity::Warning, true));
        std::fs::write(queue.join("scheduler"), "[none] mq-deadline\n").unwrap();
        assert_eq!(scheduler(&root, rustix::fs::makedev(254, 0)).unwrap().severity, Severity::Ok);
    }
}
