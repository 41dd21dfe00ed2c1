//! Two sides of results: which of their jobs belong together, and what keeps them from being compared.

use super::rule::Samples;
use crate::plot::Throughput;
use crate::results::{IntervalResult, JobResult, LatencyResult, RunResult, SideResult};
use crate::units::parse_bytes;
use serde_json::Value;
use std::collections::BTreeSet;

/// Samples that have to lie beyond a percentile for it to be told.
const BEYOND_MIN: f64 = 10.0;

/// Options that say what one operation is: with others there is nothing to compare.
const SAME_OPTIONS: [&str; 7] = ["rw", "bs", "op", "data", "shape", "fdatasync", "rwmixread"];

/// Options about where results go, and chance.
const IDLE_OPTIONS: [&str; 8] = ["output", "seed", "server_pid", "cleanup", "destroy", "direct", "bucket", "paths"];

/// What is measured, and how its numbers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Operations or bytes a second.
    Throughput(Throughput),
    /// The distribution's name and the percentile in thousandths.
    Latency(&'static str, u32),
    /// Processor time for an operation.
    Cpu(&'static str),
}

/// One line of a comparison.
#[derive(Clone, Debug)]
pub struct Line {
    /// The job.
    pub job: String,
    /// `read`, `write`, or `all` for what belongs to both.
    pub direction: &'static str,
    /// What is compared.
    pub metric: Metric,
    /// Figures of both.
    pub samples: [Samples; 2],
}

/// What belongs together.
#[derive(Clone, Debug, Default)]
pub struct Matched {
    /// What can be judged.
    pub lines: Vec<Line>,
    /// What can't, and why.
    pub refused: Vec<String>,
    /// What makes the comparison mean less.
    pub warnings: Vec<String>,
}

/// A job of one run by its name: that in the file, its step of a sweep, and its number among equals.
fn named_jobs(result: &RunResult) -> Vec<(String, &JobResult)> {
    let mut named: Vec<(String, &JobResult)> = Vec::new();
    for job in &result.jobs {
        let step = job.sweep.as_ref().map(|step| format!(" ({} {})", step.variable, step.value)).unwrap_or_default();
        let base = format!("{}{step}", job.name);
        let is_taken = |name: &String| named.iter().any(|other| other.0 == *name);
        let numbered = std::iter::once(base.clone()).chain((2..).map(|number| format!("{base} #{number}")));
        let name = numbered.into_iter().find(|name| !is_taken(name)).unwrap_or(base);
        named.push((name, job));
    }
    named
}

/// Matches the jobs of both sides by name and direction.
pub fn matched(a: &[RunResult], b: &[RunResult]) -> Matched {
    let mut found = Matched { warnings: warnings(a, b), ..Matched::default() };
    found.refused.extend(other_work(a, b));
    if !found.refused.is_empty() {
        return found;
    }
    let mut sides = [a, b].map(|side| side.iter().map(named_jobs).collect::<Vec<_>>());
    let names = |side: &[Vec<(String, &JobResult)>]| {
        let mut names: Vec<String> = Vec::new();
        for (name, _) in side.iter().flatten() {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    };
    let [mut names_a, mut names_b] = [names(&sides[0]), names(&sides[1])];
    if let ([one], [other]) = (&names_a[..], &names_b[..])
        && one != other
    {
        found.warnings.push(format!("the only jobs are compared, although their names differ: {one}; {other}"));
        let both = vec![one.clone()];
        sides[1].iter_mut().flatten().for_each(|job| job.0.clone_from(&both[0]));
        (names_a, names_b) = (both.clone(), both);
    }
    for (mine, others, which) in [(&names_a, &names_b, "A"), (&names_b, &names_a, "B")] {
        for name in mine.iter().filter(|name| !others.contains(name)) {
            found.refused.push(format!("{name}: only {which} has it"));
        }
    }
    for name in names_a.iter().filter(|name| names_b.contains(name)) {
        let jobs = [0, 1].map(|at: usize| {
            let named = sides[at].iter().flatten().filter(|job| job.0 == *name);
            named.map(|job| job.1).collect::<Vec<_>>()
        });
        lines_of(name, &jobs, &mut found);
    }
    found
}

fn lines_of(name: &str, jobs: &[Vec<&JobResult>; 2], found: &mut Matched) {
    for direction in ["read", "write"] {
        let of = |jobs: &Vec<&JobResult>| -> Vec<SideResult> {
            jobs.iter().flat_map(|job| &job.sides).filter(|side| side.direction == direction).cloned().collect()
        };
        let sides = [of(&jobs[0]), of(&jobs[1])];
        match (sides[0].is_empty(), sides[1].is_empty()) {
            (true, true) => {}
            (false, false) => side_lines(name, direction, &sides, found),
            (true, false) => found.refused.push(format!("{name}, {direction}: only B has it")),
            (false, true) => found.refused.push(format!("{name}, {direction}: only A has it")),
        }
    }
    for which in ["client", "server"] {
        let cpu =
            |job: &&JobResult| if which == "client" { job.client_cpu_ns_per_op } else { job.server_cpu_ns_per_op };
        let runs = |jobs: &Vec<&JobResult>| jobs.iter().filter_map(cpu).filter(|ns| *ns > 0.0).collect::<Vec<_>>();
        let samples = [0, 1].map(|at: usize| Samples { runs: runs(&jobs[at]), intervals: Vec::new() });
        // A single run's processor time can't be judged; nobody asked for it, so it is no refusal either.
        if samples.iter().all(|side| side.runs.len() > 1) {
            found.lines.push(Line { job: name.to_owned(), direction: "all", metric: Metric::Cpu(which), samples });
        }
    }
}

fn side_lines(job: &str, direction: &'static str, sides: &[Vec<SideResult>; 2], found: &mut Matched) {
    let mut push = |metric: Metric,
                    runs: &dyn Fn(&SideResult) -> Option<f64>,
                    intervals: &dyn Fn(&IntervalResult) -> Option<f64>| {
        let samples = [0, 1].map(|at: usize| Samples {
            runs: sides[at].iter().filter_map(runs).collect(),
            intervals: if sides[at].len() == 1 { of_intervals(&sides[at][0], intervals) } else { Vec::new() },
        });
        found.lines.push(Line { job: job.to_owned(), direction, metric, samples });
    };
    let all = || sides.iter().flatten();
    let unit = match all().all(|side| Throughput::of(side) == Throughput::Bytes) {
        true => Throughput::Bytes,
        false => Throughput::Operations,
    };
    push(Metric::Throughput(unit), &|side| Some(unit.amount(side)), &|interval| {
        let amount = if unit == Throughput::Bytes { interval.bytes } else { interval.ops };
        Some(amount as f64 * 1e9 / interval.len_ns)
    });
    // The same distribution on both sides, or none.
    type Choose = fn(&SideResult) -> Option<&LatencyResult>;
    let (lat, clat): (Choose, Choose) = (|side| side.lat.as_ref(), |side| side.clat.as_ref());
    let (word, choose) = if all().all(|side| side.lat.is_some()) { ("lat", lat) } else { ("clat", clat) };
    if !all().all(|side| choose(side).is_some()) {
        found
            .refused
            .push(format!("{job}, {direction}: latencies are told in different ways (fio: --lat_percentiles=1)"));
        return;
    }
    for thousandths in [50_000, 99_000, 99_900] {
        let beyond = |latency: &LatencyResult| latency.count as f64 * (100_000 - thousandths) as f64 / 1e5;
        if all().filter_map(choose).any(|latency| beyond(latency) < BEYOND_MIN) {
            continue;
        }
        let percent = f64::from(thousandths) / 1000.0;
        push(Metric::Latency(word, thousandths), &|side| choose(side)?.percentile_ns(percent), &|interval| {
            match thousandths {
                50_000 => Some(interval.p50_ns),
                99_000 => Some(interval.p99_ns),
                _ => None,
            }
        });
    }
    if word == "clat" {
        let note =
            "latencies are fio's clat, which leaves out the submission: run fio with --lat_percentiles=1".to_owned();
        if !found.warnings.contains(&note) {
            found.warnings.push(note);
        }
    }
}

/// Figures of whole intervals with operations.
fn of_intervals(side: &SideResult, figure: &dyn Fn(&IntervalResult) -> Option<f64>) -> Vec<f64> {
    let len_ns = side.intervals.first().map_or(0.0, |first| first.len_ns);
    let whole = side.intervals.iter().filter(|interval| interval.len_ns >= len_ns && interval.ops > 0);
    whole.filter_map(figure).collect()
}

/// A value of an option in a form in which equal ones are equal: fio writes `4k`, we write 4096.
fn plain(key: &str, value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) if key == "bs" => {
            Some(parse_bytes(text).map_or_else(|_| text.clone(), |bytes| bytes.to_string()))
        }
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

fn option(result: &RunResult, key: &str) -> Option<String> {
    plain(key, result.options.get(key)?)
}

fn fact(result: &RunResult, key: &str) -> Option<String> {
    plain(key, result.manifest.get(key)?)
}

/// Different values of something, when there is more than one.
fn values(all: &[&RunResult], of: impl Fn(&RunResult) -> Option<String>) -> Option<String> {
    let values: BTreeSet<String> = all.iter().filter_map(|result| of(result)).collect();
    (values.len() > 1).then(|| values.into_iter().collect::<Vec<_>>().join("; "))
}

/// Whether different things were measured.
fn other_work(a: &[RunResult], b: &[RunResult]) -> Vec<String> {
    let all: Vec<&RunResult> = a.iter().chain(b).collect();
    if let Some(verbs) = values(&all, |result| fact(result, "verb")) {
        return vec![format!("different verbs: {verbs}")];
    }
    let is_s3 = |result: &RunResult| fact(result, "verb").as_deref() == Some("s3");
    let mut keys = SAME_OPTIONS.to_vec();
    if all.iter().all(|result| is_s3(result)) {
        keys.push("size");
    }
    let differ =
        |key: &str| values(&all, |result| option(result, key)).map(|values| format!("--{key} differs: {values}"));
    keys.into_iter().filter_map(differ).collect()
}

/// What in the manifests differs and matters.
fn warnings(a: &[RunResult], b: &[RunResult]) -> Vec<String> {
    let all: Vec<&RunResult> = a.iter().chain(b).collect();
    let mut warnings = Vec::new();
    for (key, word) in [
        ("cpu_model", "processors"),
        ("cpu_count", "numbers of processors"),
        ("memory_bytes", "memory sizes"),
        ("kernel", "kernels"),
        ("governor", "frequency governors"),
        ("kernels", "instruction sets in use"),
        ("target", "targets"),
        ("version", "versions"),
    ] {
        if let Some(values) = values(&all, |result| fact(result, key)) {
            warnings.push(format!("different {word}: {values}"));
        }
    }
    if let Some(programs) = values(&all, |result| Some(result.program.split(' ').next().unwrap_or_default().to_owned()))
    {
        warnings.push(format!("different programs: {programs}"));
    }
    for side in [a, b] {
        if let Some(commits) = values(&side.iter().collect::<Vec<_>>(), |result| fact(result, "git_commit")) {
            warnings.push(format!("different commits within a side: {commits}"));
        }
    }
    let keys: BTreeSet<&String> = all.iter().flat_map(|result| result.options.keys()).collect();
    for key in
        keys.into_iter().filter(|key| !IDLE_OPTIONS.contains(&key.as_str()) && !SAME_OPTIONS.contains(&key.as_str()))
    {
        // fio's options are others; what both name stands in SAME_OPTIONS.
        let ours: Vec<&RunResult> = all.iter().filter(|result| !result.manifest.is_empty()).copied().collect();
        if let Some(values) =
            values(&ours, |result| Some(option(result, key).unwrap_or_else(|| "not given".to_owned())))
        {
            warnings.push(format!("different --{}: {values}", key.replace('_', "-")));
        }
    }
    for result in all {
        if fact(result, "git_commit").is_some_and(|commit| commit.ends_with("-dirty")) {
            warnings.push(format!("{}: built from sources that no commit has", result.name));
        }
        let failed: u64 = result.jobs.iter().map(|job| job.error_count).sum();
        if failed > 0 {
            warnings.push(format!("{}: {failed} operations failed", result.name));
        }
        warnings.extend(result.warnings.iter().map(|warning| format!("{}: {warning}", result.name)));
    }
    warnings
}
