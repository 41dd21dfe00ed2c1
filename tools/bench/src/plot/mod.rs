//! Plots of results as SVG: latency by percentile, throughput over time, sweeps, stages of the server.
//!
//! They say what they leave out: a plot without a line looks as if there had been nothing to see.

mod axis;
mod canvas;
mod percentiles;
mod sweep;
mod timeline;
mod waterfall;

use crate::results::{RunResult, SideResult};
use anyhow::Result;
use canvas::SERIES_MAX;
use std::collections::BTreeSet;

pub use axis::time;

/// From this mean length of an operation on, bytes a second tell more than operations.
const BULK_LEN_BYTES: f64 = 65_536.0;

/// A picture.
#[derive(Clone, Debug)]
pub struct Plot {
    /// A name for a file, without extension.
    pub file: String,
    /// What it shows.
    pub title: String,
    /// What to know about it.
    pub caption: String,
    /// The picture.
    pub svg: String,
}

/// All pictures of some results.
#[derive(Clone, Debug, Default)]
pub struct Plots {
    /// The pictures.
    pub plots: Vec<Plot>,
    /// What is not in them, and why.
    pub left_out: Vec<String>,
}

/// Draws whatever the results have data for.
pub fn of(results: &[RunResult]) -> Result<Plots> {
    let mut left_out = Vec::new();
    let mut plots = Vec::new();
    plots.extend(percentiles::plot(results, &mut left_out)?);
    plots.extend(timeline::plots(results, &mut left_out)?);
    plots.extend(sweep::plots(results, &mut left_out)?);
    plots.extend(waterfall::plots(results, &mut left_out)?);
    let mut seen = BTreeSet::new();
    left_out.retain(|line| seen.insert(line.clone()));
    Ok(Plots { plots, left_out })
}

/// How much was done in a second, and how that is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Throughput {
    /// Small operations: their number.
    Operations,
    /// Large ones: their bytes.
    Bytes,
}

impl Throughput {
    /// Which of the two suits a side.
    #[must_use]
    pub fn of(side: &SideResult) -> Throughput {
        let mean = side.bytes as f64 / (side.ops as f64).max(1.0);
        if mean >= BULK_LEN_BYTES { Throughput::Bytes } else { Throughput::Operations }
    }

    /// The figure of a side.
    #[must_use]
    pub fn amount(self, side: &SideResult) -> f64 {
        match self {
            Throughput::Operations => side.iops,
            Throughput::Bytes => side.bandwidth_bytes,
        }
    }

    /// A unit in which the largest amount has few digits, and its name.
    fn scale(self, most: f64) -> (f64, &'static str) {
        match self {
            Throughput::Operations if most < 20e3 => (1.0, "operations/s"),
            Throughput::Operations if most < 20e6 => (1e3, "thousand operations/s"),
            Throughput::Operations => (1e6, "million operations/s"),
            Throughput::Bytes if most < 2e9 => (1048576.0, "MiB/s"),
            Throughput::Bytes => (1073741824.0, "GiB/s"),
        }
    }
}

/// A direction of a job of a result.
#[derive(Clone, Debug)]
struct Series<'a> {
    result: &'a str,
    job: String,
    side: &'a SideResult,
}

impl Series<'_> {
    fn full_name(&self) -> String {
        joined(&[self.result, &self.job, self.side.direction])
    }
}

/// Parts of a name, without empty ones.
fn joined(parts: &[&str]) -> String {
    parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(", ")
}

fn all_sides(results: &[RunResult]) -> impl Iterator<Item = Series<'_>> {
    results.iter().flat_map(|result| {
        result.jobs.iter().flat_map(move |job| {
            let name = match &job.sweep {
                Some(step) => format!("{} ({} {})", job.name, step.variable, axis::short(step.value)),
                None => job.name.clone(),
            };
            job.sides.iter().map(move |side| Series { result: &result.name, job: name.clone(), side })
        })
    })
}

/// Names for a legend: only the parts in which the series differ.
fn name_series<'a>(series: impl Iterator<Item = &'a Series<'a>>) -> Vec<String> {
    let series: Vec<&Series<'_>> = series.collect();
    let differ =
        |part: &dyn Fn(&Series<'_>) -> String| series.iter().map(|one| part(one)).collect::<BTreeSet<_>>().len() > 1;
    let results = differ(&|one| one.result.to_owned());
    let jobs = differ(&|one| one.job.clone());
    let directions = differ(&|one| one.side.direction.to_owned());
    let name = |one: &&Series<'_>| {
        let result = if results { one.result } else { "" };
        let job = if jobs || !(results || directions) { one.job.as_str() } else { "" };
        joined(&[result, job, if directions || !(results || jobs) { one.side.direction } else { "" }])
    };
    series.iter().map(name).collect()
}

/// Keeps as many as a reader can tell apart.
fn cap<T>(shown: &mut Vec<T>, plot: &str, name: impl Fn(&T) -> String, left_out: &mut Vec<String>) {
    if shown.len() > SERIES_MAX {
        let names: Vec<String> = shown[SERIES_MAX..].iter().map(name).collect();
        left_out.push(format!("{plot}: only {SERIES_MAX} fit; without {}", names.join("; ")));
        shown.truncate(SERIES_MAX);
    }
}

#[cfg(test)]
mod tests;
