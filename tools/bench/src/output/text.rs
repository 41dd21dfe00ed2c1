//! The text output, after fio's.

use super::{Job, Report, Side};
use crate::measure::{CpuTime, Latency, PERCENTILES};
use crate::units::{binary, count, decimal};
use std::fmt::Write;

/// A whole result. Writing into a `String` can't fail, so the results of `write!` are dropped.
pub fn page(report: &Report) -> String {
    let mut out = String::new();
    for (number, job) in report.jobs.iter().enumerate() {
        let _ = writeln!(out, "{}: (g={number}): {}", job.name, job.about);
        job.sides().for_each(|(direction, side)| direction_lines(&mut out, direction, side, job.is_open_loop));
        job.others.iter().for_each(|(name, side)| direction_lines(&mut out, name, side, false));
        if let Some(flushes) = &job.sync {
            latency_lines(&mut out, "sync", flushes);
        }
        cpu_lines(&mut out, job);
        for note in &job.notes {
            let _ = writeln!(out, "  {note}");
        }
        error_lines(&mut out, job);
    }
    for warning in &report.warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
    let _ = writeln!(out, "{}", report.manifest.line());
    out
}

fn direction_lines(out: &mut String, direction: &str, side: &Side, is_open_loop: bool) {
    let meter = &side.meter;
    let bandwidth = meter.bandwidth_bytes();
    let _ = writeln!(
        out,
        "  {direction}: IOPS={}, BW={}/s ({}/s)({}/{}msec)",
        count(meter.iops()),
        binary(bandwidth),
        decimal(bandwidth),
        binary(meter.bytes() as f64),
        meter.runtime_ns() / 1_000_000,
    );
    if is_open_loop {
        latency_lines(out, "slat", &meter.wait);
        latency_lines(out, "clat", &meter.service);
        latency_lines(out, " lat", &meter.corrected);
    } else {
        latency_lines(out, "clat", &meter.service);
    }
    if let Some(first_byte) = &side.first_byte {
        latency_lines(out, "ttfb", first_byte);
    }
    let (bw, iops) = (meter.bandwidth_spread(), meter.iops_spread());
    if bw.samples > 0 {
        let _ = writeln!(
            out,
            "   bw  : min={}/s, max={}/s, avg={}/s, stdev={}/s, samples={}",
            binary(bw.min),
            binary(bw.max),
            binary(bw.mean),
            binary(bw.stdev),
            bw.samples
        );
        let _ = writeln!(
            out,
            "   iops: min={:.0}, max={:.0}, avg={:.2}, stdev={:.2}, samples={}",
            iops.min, iops.max, iops.mean, iops.stdev, iops.samples
        );
    }
}

/// The unit in which the mean has a few digits, and its length in nanoseconds.
fn unit(latency: &Latency) -> (&'static str, f64) {
    match latency.mean_ns() {
        mean if mean < 10_000.0 => ("nsec", 1.0),
        mean if mean < 10_000_000.0 => ("usec", 1e3),
        _ => ("msec", 1e6),
    }
}

fn latency_lines(out: &mut String, name: &str, latency: &Latency) {
    if latency.count() == 0 {
        return;
    }
    let (unit, len_ns) = unit(latency);
    let show = |ns: f64| match ns / len_ns {
        value if value >= 100.0 || len_ns == 1.0 => format!("{value:.0}"),
        value => format!("{value:.2}"),
    };
    let _ = writeln!(
        out,
        "    {name} ({unit}): min={}, max={}, avg={}, stdev={}, N={}",
        show(latency.min_ns() as f64),
        show(latency.max_ns() as f64),
        show(latency.mean_ns()),
        show(latency.stdev_ns()),
        latency.count()
    );
    let values: Vec<String> = PERCENTILES
        .iter()
        .map(|percent| format!("{percent:.2}th=[{:>6}]", show(latency.percentile_ns(*percent) as f64)))
        .collect();
    let _ = writeln!(out, "     | {}, max=[{:>6}]", values.join(", "), show(latency.max_ns() as f64));
}

/// `398 us/op, 12.4 s/GiB`.
fn cost(job: &Job, used: &CpuTime) -> String {
    let mut parts = Vec::new();
    let ns = used.total_ns() as f64;
    if job.ops() > 0 {
        parts.push(format!("{:.1} us/op", ns / 1e3 / job.ops() as f64));
    }
    if job.bytes() > 0 {
        parts.push(format!("{:.3} s/GiB", ns / 1e9 / (job.bytes() as f64 / (1u64 << 30) as f64)));
    }
    parts.join(", ")
}

fn cpu_lines(out: &mut String, job: &Job) {
    let percent = |ns: u64| ns as f64 * 100.0 / (job.runtime_ns() as f64).max(1.0);
    if job.cpu.total_ns() > 0 {
        let (user, system) = (percent(job.cpu.user_ns), percent(job.cpu.system_ns));
        let _ = writeln!(out, "  cpu   : usr={user:.2}%, sys={system:.2}%, {}", cost(job, &job.cpu));
    }
    for server in &job.servers {
        let _ = match &server.used {
            Some(used) => {
                let (user, system) = (percent(used.user_ns), percent(used.system_ns));
                let pid = server.pid;
                writeln!(out, "  server: pid={pid}, usr={user:.2}%, sys={system:.2}%, {}", cost(job, used))
            }
            None => writeln!(out, "  server: pid={} ended during the run", server.pid),
        };
    }
}

fn error_lines(out: &mut String, job: &Job) {
    if job.errors.count() > 0 {
        let _ = writeln!(out, "  errors: {}", job.errors.count());
        for (message, times) in job.errors.kinds() {
            let _ = writeln!(out, "    {times} x {message}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;
    use crate::measure::{Meter, Timing, Window};
    use serde_json::json;

    #[test]
    fn it_reads_like_fio() {
        let mut meter = Meter::new(Window { start_ns: 0, end_ns: 1_000_000_000 });
        (0..1000).for_each(|i| meter.record(Timing { intended_ns: i, start_ns: i, end_ns: i + 50_000 }, 4096));
        let mut job = Job { name: "d".to_owned(), about: "rw=randread".to_owned(), ..Job::default() };
        job.read = Some(Side::of(meter));
        job.errors.record("bad");
        let manifest = Manifest::new("device", json!("d"), json!({}));
        let text = page(&Report { manifest, jobs: vec![job], warnings: vec!["careful".to_owned()] });
        for part in [
            "d: (g=0): rw=randread\n",
            "  read: IOPS=1.00k, BW=3.91MiB/s (4.10MB/s)(3.91MiB/1000msec)\n",
            "    clat (usec): min=50.00, max=50.00, avg=50.00",
            "99.99th=[ 50.00]",
            "  errors: 1\n    1 x bad\n",
            "warning: careful\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
