//! Results as files hold them: our own, and fio's, whose keys they share. Whatever is missing is missing; nothing is made up.

use crate::usage::usage;
use anyhow::Result;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// No result is longer: a day of intervals and distributions of hundreds of jobs stays far below.
const FILE_LEN_BYTES_MAX: u64 = 256 << 20;

/// Most jobs that are looked at.
const JOBS_MAX: usize = 10_000;

/// One result.
#[derive(Clone, Debug)]
pub struct RunResult {
    /// What to call it: the file's name without its extension.
    pub name: String,
    /// `kiseki-bench 0.1.0 (commit)` or `fio-3.33`.
    pub program: String,
    /// The manifest; empty for fio.
    pub manifest: Map<String, Value>,
    /// Options: ours as they took effect, fio's as given, those of the first job included.
    pub options: Map<String, Value>,
    /// What makes its figures mean less than they seem.
    pub warnings: Vec<String>,
    /// The jobs.
    pub jobs: Vec<JobResult>,
}

/// One job.
#[derive(Clone, Debug)]
pub struct JobResult {
    /// Its name.
    pub name: String,
    /// Failed operations.
    pub error_count: u64,
    /// The first messages.
    pub messages: Vec<String>,
    /// Directions that were used.
    pub sides: Vec<SideResult>,
    /// Our own processor time for an operation, where known.
    pub client_cpu_ns_per_op: Option<f64>,
    /// The servers'.
    pub server_cpu_ns_per_op: Option<f64>,
    /// Its place in a sweep.
    pub sweep: Option<SweepStep>,
    /// Where its time went, by stage of the server.
    pub waterfall: Option<Waterfall>,
}

/// One direction of a job.
#[derive(Clone, Debug)]
pub struct SideResult {
    /// `read` or `write`.
    pub direction: &'static str,
    /// Operations.
    pub ops: u64,
    /// Bytes.
    pub bytes: u64,
    /// Operations a second.
    pub iops: f64,
    /// Bytes a second.
    pub bandwidth_bytes: f64,
    /// From when an operation was due to its end; `None` when percentiles are missing.
    pub lat: Option<LatencyResult>,
    /// From its begin to its end.
    pub clat: Option<LatencyResult>,
    /// What happened when.
    pub intervals: Vec<IntervalResult>,
}

/// A distribution.
#[derive(Clone, Debug)]
pub struct LatencyResult {
    /// Samples.
    pub count: u64,
    /// The mean.
    pub mean_ns: f64,
    /// The largest.
    pub max_ns: f64,
    /// Percentiles and their values, ascending.
    pub percentiles: Vec<(f64, f64)>,
    /// Values and counts, ascending; empty when the file has none.
    pub bins: Vec<(f64, u64)>,
}

/// One interval.
#[derive(Clone, Copy, Debug)]
pub struct IntervalResult {
    /// Since the end of the warm-up.
    pub start_ns: f64,
    /// How long.
    pub len_ns: f64,
    /// Operations that ended in it.
    pub ops: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Median latency of these.
    pub p50_ns: f64,
    /// What one in a hundred was above.
    pub p99_ns: f64,
}

/// One step of a sweep.
#[derive(Clone, Debug)]
pub struct SweepStep {
    /// What was varied.
    pub variable: String,
    /// To what.
    pub value: f64,
    /// Whether more load brings latency rather than throughput from here on.
    pub is_knee: bool,
}

/// Stages of a server.
#[derive(Clone, Debug)]
pub struct Waterfall {
    /// Where the figures are from.
    pub source: String,
    /// In the order of the work.
    pub stages: Vec<StageResult>,
}

/// One stage.
#[derive(Clone, Debug)]
pub struct StageResult {
    /// Its name.
    pub name: String,
    /// How often it was run.
    pub count: u64,
    /// The mean.
    pub mean_ns: f64,
    /// p50, p99, p99.9.
    pub percentiles_ns: [f64; 3],
}

impl SideResult {
    /// The distribution to show: what a client sees, or what there is.
    #[must_use]
    pub fn latency(&self) -> Option<&LatencyResult> {
        self.lat.as_ref().or(self.clat.as_ref())
    }
}

impl LatencyResult {
    /// The value of a percentile, if the file has it or tells the distribution.
    #[must_use]
    pub fn percentile_ns(&self, percent: f64) -> Option<f64> {
        let named = self.percentiles.iter().find(|pair| (pair.0 - percent).abs() < 1e-9);
        if let Some(pair) = named {
            return Some(pair.1);
        }
        let total: u64 = self.bins.iter().map(|bin| bin.1).sum();
        let rank = ((percent / 100.0 * total as f64).ceil() as u64).max(1);
        let mut seen = 0;
        self.bins.iter().find_map(|bin| {
            seen += bin.1;
            (seen >= rank).then_some(bin.0)
        })
    }
}

impl RunResult {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<RunResult> {
        let shown = path.display();
        let mut text = String::new();
        let file = File::open(path).map_err(|error| usage(format!("{shown} can't be read: {error}")))?;
        let read = file.take(FILE_LEN_BYTES_MAX).read_to_string(&mut text);
        read.map_err(|error| usage(format!("{shown} can't be read: {error}")))?;
        // fio says things before it prints the document.
        let begin = text.starts_with('{').then_some(0).or_else(|| Some(text.find("\n{")? + 1));
        let begin = begin.ok_or_else(|| usage(format!("{shown} is no JSON result")))?;
        let value = serde_json::Deserializer::from_str(&text[begin..]).into_iter::<Value>().next();
        let value = match value {
            Some(Ok(value)) => value,
            Some(Err(error)) => return Err(usage(format!("{shown} is no JSON result: {error}"))),
            None => return Err(usage(format!("{shown} is empty"))),
        };
        let name = path.file_stem().map_or_else(|| shown.to_string(), |stem| stem.to_string_lossy().into_owned());
        RunResult::parse(name, &value).map_err(|error| usage(format!("{shown}: {error:#}")))
    }

    /// Takes what is known out of a document.
    pub fn parse(name: String, document: &Value) -> Result<RunResult> {
        let jobs = document.get("jobs").and_then(Value::as_array);
        let jobs =
            jobs.ok_or_else(|| usage("it has no `jobs`: give results of --json, or of fio's --output-format=json"))?;
        let manifest = object(&document["manifest"]);
        let mut options = object(&document["global options"]);
        let first = jobs.first().map(|job| object(&job["job options"])).unwrap_or_default();
        options.extend(first);
        let program = match (text(&manifest, "program"), document["fio version"].as_str()) {
            (Some(program), _) => {
                let part = |key| text(&manifest, key).unwrap_or_else(|| "unknown".to_owned());
                format!("{program} {} ({})", part("version"), part("git_commit"))
            }
            (None, Some(fio)) => fio.to_owned(),
            (None, None) => "an unknown program".to_owned(),
        };
        Ok(RunResult {
            name,
            program,
            options,
            warnings: strings(&document["warnings"]),
            jobs: jobs.iter().take(JOBS_MAX).map(job).collect(),
            manifest,
        })
    }
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn text(map: &Map<String, Value>, key: &str) -> Option<String> {
    map.get(key)?.as_str().map(str::to_owned)
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A number that can be drawn: finite and not negative.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite() && *number >= 0.0)
}

fn job(job: &Value) -> JobResult {
    let messages = job["errors"]["messages"].as_array().into_iter().flatten();
    let messages = messages.filter_map(|message| message["message"].as_str()).map(str::to_owned).collect();
    let per_op = |key: &str| job[key].get("ns_per_op").and_then(number);
    JobResult {
        name: job["jobname"].as_str().unwrap_or("unnamed").to_owned(),
        error_count: job["error"].as_u64().unwrap_or(0).max(job["total_err"].as_u64().unwrap_or(0)),
        messages,
        sides: ["read", "write"].into_iter().filter_map(|direction| side(direction, &job[direction])).collect(),
        client_cpu_ns_per_op: per_op("client_cpu"),
        server_cpu_ns_per_op: per_op("server_cpu"),
        sweep: sweep(&job["sweep"]),
        waterfall: waterfall(&job["waterfall"]),
    }
}

fn side(direction: &'static str, side: &Value) -> Option<SideResult> {
    let (lat, clat) = (latency(&side["lat_ns"]), latency(&side["clat_ns"]));
    let ops = side["total_ios"].as_u64().unwrap_or(0);
    if ops == 0 && lat.is_none() && clat.is_none() {
        return None;
    }
    Some(SideResult {
        direction,
        ops,
        bytes: side["io_bytes"].as_u64().unwrap_or(0),
        iops: number(&side["iops"]).unwrap_or(0.0),
        bandwidth_bytes: number(&side["bw_bytes"]).unwrap_or(0.0),
        lat,
        clat,
        intervals: side["intervals"].as_array().into_iter().flatten().filter_map(interval).collect(),
    })
}

/// fio gives a count and a mean for `lat_ns` always, percentiles only when it is asked.
fn latency(value: &Value) -> Option<LatencyResult> {
    let count = value["N"].as_u64().filter(|count| *count > 0)?;
    let pairs = |key: &str| value[key].as_object().into_iter().flatten();
    let percentile = |(key, value): (&String, &Value)| Some((key.parse::<f64>().ok()?, number(value)?));
    let mut percentiles: Vec<(f64, f64)> = pairs("percentile").filter_map(percentile).collect();
    let bin = |(key, value): (&String, &Value)| Some((key.parse::<u64>().ok()? as f64, value.as_u64()?));
    let mut bins: Vec<(f64, u64)> = pairs("bins").filter_map(bin).filter(|bin| bin.1 > 0).collect();
    percentiles.sort_by(|a, b| a.0.total_cmp(&b.0));
    bins.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mean_ns = number(&value["mean"])?;
    let has_shape = !percentiles.is_empty() || !bins.is_empty();
    has_shape.then(|| LatencyResult { count, mean_ns, max_ns: number(&value["max"]).unwrap_or(0.0), percentiles, bins })
}

fn interval(value: &Value) -> Option<IntervalResult> {
    Some(IntervalResult {
        start_ns: number(&value["start_ns"])?,
        len_ns: number(&value["len_ns"]).filter(|len| *len > 0.0)?,
        ops: value["total_ios"].as_u64()?,
        bytes: value["io_bytes"].as_u64()?,
        p50_ns: number(&value["p50_ns"])?,
        p99_ns: number(&value["p99_ns"])?,
    })
}

fn sweep(value: &Value) -> Option<SweepStep> {
    Some(SweepStep {
        variable: value["variable"].as_str()?.to_owned(),
        value: number(&value["value"])?,
        is_knee: value["is_knee"].as_bool().unwrap_or(false),
    })
}

fn waterfall(value: &Value) -> Option<Waterfall> {
    let stage = |stage: &Value| {
        let ns = |key: &str| number(&stage[key]);
        Some(StageResult {
            name: stage["name"].as_str()?.to_owned(),
            count: stage["count"].as_u64()?,
            mean_ns: ns("mean_ns")?,
            percentiles_ns: [ns("p50_ns")?, ns("p99_ns")?, ns("p999_ns")?],
        })
    };
    let stages: Vec<StageResult> = value["stages"].as_array()?.iter().filter_map(stage).collect();
    let source = value["source"].as_str().unwrap_or("unknown").to_owned();
    (!stages.is_empty()).then_some(Waterfall { source, stages })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::Write;

    fn of_text(text: &str) -> Result<RunResult> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        RunResult::read(file.path())
    }

    #[test]
    fn fio_s_own_document_is_read_with_what_fio_says_before_it() {
        let latency = json!({"N": 2000, "mean": 5.5, "max": 90, "percentile": {"50.000000": 5, "99.000000": 9}});
        let document = json!({
            "fio version": "fio-3.33", "global options": {"bs": "4k"},
            "jobs": [{"jobname": "x", "error": 0, "job options": {"rw": "randread"},
                "read": {"total_ios": 2000, "io_bytes": 8_192_000, "iops": 200.0, "bw_bytes": 819_200,
                    "lat_ns": {"N": 2000, "mean": 6.0, "max": 91}, "clat_ns": latency},
                "write": {"total_ios": 0, "iops": 0.0, "clat_ns": {"N": 0, "mean": 0.0}}}]});
        let read = of_text(&format!("fio: this needs {{care}}\n{document}\n")).unwrap();
        assert_eq!((read.program.as_str(), read.options["rw"].as_str()), ("fio-3.33", Some("randread")));
        let [side] = &read.jobs[0].sides[..] else { panic!("one direction was used: {:?}", read.jobs[0].sides) };
        assert!(side.lat.is_none(), "fio's lat has no percentiles unless it is asked");
        let latency = side.latency().unwrap();
        assert_eq!((latency.percentile_ns(99.0), latency.percentile_ns(99.9)), (Some(9.0), None));
    }

    #[test]
    fn what_is_no_result_is_refused_and_odd_values_are_left_out() {
        for text in ["", "x", "{}", "{\"jobs\": 3}", "{\"jobs\": [", "[1]"] {
            let error = of_text(text).expect_err(text);
            assert!(error.is::<crate::usage::Usage>(), "{text:?}: {error:#}");
        }
        let odd = json!({"jobs": [7, {"read": {"total_ios": 1, "iops": -3, "intervals": [{"start_ns": "x"}, 4],
            "lat_ns": {"N": 5, "mean": 1.0, "bins": {"a": 1, "10": 4, "-4": 2, "7": 1}}},
            "sweep": {"variable": 3}, "waterfall": {"stages": [{}, 1]}}]});
        let read = of_text(&odd.to_string()).unwrap();
        let job = &read.jobs[1];
        assert!(read.jobs[0].sides.is_empty() && job.sweep.is_none() && job.waterfall.is_none());
        assert_eq!((job.sides[0].iops, job.sides[0].intervals.len()), (0.0, 0));
        let latency = job.sides[0].latency().unwrap();
        assert_eq!(latency.bins, [(7.0, 1), (10.0, 4)]);
        assert_eq!((latency.percentile_ns(20.0), latency.percentile_ns(99.9)), (Some(7.0), Some(10.0)));
    }
}
