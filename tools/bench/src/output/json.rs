//! The JSON document: fio's keys where fio has one, so that tools made for fio read it.
//!
//! As in fio: `clat_ns` is from the actual start to the end, `slat_ns` what passed before the start, `lat_ns` both.
//! In an open loop `slat_ns` is the time by which an operation began late, so `lat_ns` is corrected for coordinated
//! omission. `bw` is in KiB, `runtime` and `elapsed` as in fio.

use super::{Job, Report, Side};
use crate::measure::{CpuTime, Latency, Meter, PERCENTILES, Slice, Spread};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

const KIB: f64 = 1024.0;
const GIB: f64 = (1u64 << 30) as f64;

/// Most intervals that a document shows of one direction: 20 minutes of half seconds; longer runs have longer intervals.
const INTERVALS_MAX: usize = 2400;

/// The whole document as text.
pub fn document(report: &Report) -> Result<String> {
    let mut text = serde_json::to_string_pretty(&value(report)).context("can't make JSON")?;
    text.push('\n');
    Ok(text)
}

/// The whole document.
pub fn value(report: &Report) -> Value {
    let ms = report.manifest.started_unix_ms;
    json!({
        "kiseki-bench version": env!("CARGO_PKG_VERSION"),
        "timestamp": ms / 1000,
        "timestamp_ms": ms,
        "global options": report.manifest.options,
        "jobs": report.jobs.iter().map(job).collect::<Vec<_>>(),
        "manifest": report.manifest.json(),
        "warnings": report.warnings,
    })
}

fn job(job: &Job) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    put("jobname", json!(job.name));
    put("error", json!(job.errors.count()));
    put("errors", job.errors.json());
    put("elapsed", json!(job.runtime_ns().div_ceil(1_000_000_000)));
    put("read", job.read.as_ref().map_or_else(empty_side, side));
    put("write", job.write.as_ref().map_or_else(empty_side, side));
    if !job.others.is_empty() {
        let others = job.others.iter().map(|(name, other)| ((*name).to_owned(), side(other)));
        put("operations", Value::Object(others.collect()));
    }
    if let Some(flushes) = &job.sync {
        put("sync", json!({"total_ios": flushes.count(), "lat_ns": latency(flushes)}));
    }
    let percent = |ns: u64| ns as f64 * 100.0 / (job.runtime_ns() as f64).max(1.0);
    put("usr_cpu", json!(percent(job.cpu.user_ns)));
    put("sys_cpu", json!(percent(job.cpu.system_ns)));
    put("client_cpu", cpu(job, &job.cpu));
    if !job.servers.is_empty() {
        put("server_cpu", servers(job));
    }
    job.extra.iter().for_each(|(key, value)| put(key, value.clone()));
    Value::Object(out)
}

fn cpu(job: &Job, used: &CpuTime) -> Value {
    let per = |amount: f64| if amount > 0.0 { json!(used.total_ns() as f64 / amount) } else { Value::Null };
    json!({
        "user_ns": used.user_ns,
        "system_ns": used.system_ns,
        "total_ns": used.total_ns(),
        "ns_per_op": per(job.ops() as f64),
        "ns_per_gib": per(job.bytes() as f64 / GIB),
    })
}

fn servers(job: &Job) -> Value {
    let mut all = CpuTime::default();
    let mut processes = Vec::new();
    for server in &job.servers {
        let used = server.used.unwrap_or_default();
        all = CpuTime { user_ns: all.user_ns + used.user_ns, system_ns: all.system_ns + used.system_ns };
        processes.push(json!({
            "pid": server.pid,
            "ended": server.used.is_none(),
            "user_ns": used.user_ns,
            "system_ns": used.system_ns,
        }));
    }
    let mut value = cpu(job, &all);
    value["processes"] = Value::Array(processes);
    value
}

fn side(side: &Side) -> Value {
    let meter = &side.meter;
    let bandwidth = meter.bandwidth_bytes();
    let mut value = json!({
        "io_bytes": meter.bytes(),
        "io_kbytes": meter.bytes() / 1024,
        "bw_bytes": bandwidth as u64,
        "bw": (bandwidth / KIB) as u64,
        "iops": meter.iops(),
        "runtime": meter.runtime_ns() / 1_000_000,
        "total_ios": meter.ops(),
        "slat_ns": latency(&meter.wait),
        "clat_ns": latency(&meter.service),
        "lat_ns": latency(&meter.corrected),
    });
    value["lat_ns"]["bins"] = bins(&meter.corrected);
    value["intervals"] = intervals(meter);
    spread(&mut value, "bw", meter.bandwidth_spread(), KIB);
    spread(&mut value, "iops", meter.iops_spread(), 1.0);
    if let Some(first_byte) = &side.first_byte {
        value["ttfb_ns"] = latency(first_byte);
    }
    value
}

/// The distribution as fio's `json+` has it: values and how often they came.
fn bins(latency: &Latency) -> Value {
    Value::Object(latency.bins().into_iter().map(|(value_ns, count)| (value_ns.to_string(), json!(count))).collect())
}

fn intervals(meter: &Meter) -> Value {
    let slices = meter.timeline();
    let slices = Slice::join(&slices, slices.len().div_ceil(INTERVALS_MAX).next_power_of_two());
    let shown = slices.iter().map(|slice| {
        json!({
            "start_ns": slice.start_ns,
            "len_ns": slice.len_ns,
            "total_ios": slice.interval.ops,
            "io_bytes": slice.interval.bytes,
            "p50_ns": slice.interval.percentile_ns(50.0),
            "p99_ns": slice.interval.percentile_ns(99.0),
            "max_ns": slice.interval.max_ns,
        })
    });
    Value::Array(shown.collect())
}

/// fio shows a direction that was not used as zeros, and its readers expect that.
fn empty_side() -> Value {
    let zeros = ["io_bytes", "io_kbytes", "bw_bytes", "bw", "iops", "runtime", "total_ios"];
    let mut value = Value::Object(zeros.into_iter().map(|key| (key.to_owned(), json!(0))).collect());
    for key in ["slat_ns", "clat_ns", "lat_ns"] {
        value[key] = latency(&Latency::default());
    }
    value
}

fn spread(value: &mut Value, name: &str, spread: Spread, unit: f64) {
    value[format!("{name}_min")] = json!((spread.min / unit) as u64);
    value[format!("{name}_max")] = json!((spread.max / unit) as u64);
    value[format!("{name}_mean")] = json!(spread.mean / unit);
    // fio's own two spellings
    let deviation = if name == "bw" { "bw_dev" } else { "iops_stddev" };
    value[deviation] = json!(spread.stdev / unit);
    value[format!("{name}_samples")] = json!(spread.samples);
}

fn latency(latency: &Latency) -> Value {
    let percentiles: Map<String, Value> =
        PERCENTILES.iter().map(|percent| (format!("{percent:.6}"), json!(latency.percentile_ns(*percent)))).collect();
    json!({
        "min": latency.min_ns(),
        "max": latency.max_ns(),
        "mean": latency.mean_ns(),
        "stddev": latency.stdev_ns(),
        "N": latency.count(),
        "percentile": percentiles,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;
    use crate::measure::{Meter, Timing, Window};

    #[test]
    fn fio_s_keys_are_there_for_both_directions() {
        let mut meter = Meter::new(Window { start_ns: 0, end_ns: 2_000_000_000 });
        (0..1000).for_each(|i| meter.record(Timing { intended_ns: i, start_ns: i, end_ns: i + 1000 }, 4096));
        let job = Job { name: "x".to_owned(), read: Some(Side::of(meter)), ..Job::default() };
        let manifest = Manifest::new("device", json!("here"), json!({}));
        let report = Report { manifest, jobs: vec![job], warnings: Vec::new() };
        let value: Value = serde_json::from_str(&document(&report).unwrap()).unwrap();
        let read = &value["jobs"][0]["read"];
        assert_eq!((read["bw_bytes"].as_u64(), read["iops"].as_f64()), (Some(2_048_000), Some(500.0)));
        assert_eq!((read["bw"].as_u64(), read["runtime"].as_u64()), (Some(2000), Some(2000)));
        assert_eq!(read["clat_ns"]["N"], 1000);
        assert_eq!(read["lat_ns"]["bins"], json!({"1000": 1000}));
        let first = json!({"start_ns": 0, "len_ns": 500_000_000, "total_ios": 1000, "io_bytes": 4_096_000, "p50_ns": 999,
            "p99_ns": 999, "max_ns": 1000});
        assert_eq!((&read["intervals"][0], read["intervals"].as_array().map(Vec::len)), (&first, Some(4)));
        assert_eq!(read["clat_ns"]["percentile"]["99.990000"], 1000);
        assert_eq!(value["jobs"][0]["write"]["clat_ns"]["percentile"]["50.000000"], 0);
        for key in ["program", "version", "git_commit", "kernel", "cpu_model", "cpu_features", "options", "target"] {
            assert!(!value["manifest"][key].is_null(), "{key}");
        }
    }
}
