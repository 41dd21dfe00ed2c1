//! Sweeps: the same load at several sizes, and where more of it costs more latency than it brings throughput.
//!
//! The knee is the step of the largest power, throughput divided by latency (Kleinrock), here with the 99th percentile of
//! `lat`: while a server has room, twice the load brings nearly twice the throughput at nearly the same latency and power
//! grows; when it has none, only latency grows and power falls. Steps within [`TIE`] of the largest power are equal, since
//! percentiles of short runs are noisy; the smallest load of them is the knee. When that is the last step, power may still
//! grow: then no step is marked. Steps with failed operations are never marked.

use crate::output::Job;
use serde::Serialize;
use serde_json::json;

/// Powers that differ by less are equal.
const TIE: f64 = 0.05;

/// Most steps: each is a whole measurement.
const STEPS_MAX: usize = 64;

/// What is varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Variable {
    /// Clients of a closed loop
    Clients,
    /// Operations a second of an open one
    Rate,
    /// Operations in flight on a device
    Iodepth,
}

impl Variable {
    /// As it is typed.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Variable::Clients => "clients",
            Variable::Rate => "rate",
            Variable::Iodepth => "iodepth",
        }
    }
}

/// A variable and the values it takes, in rising order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sweep {
    /// What is varied.
    pub variable: Variable,
    /// Its values.
    pub values: Vec<f64>,
}

/// Parses `clients=1..64` and `rate=1000,2000,4000`.
pub fn parse_sweep(text: &str) -> Result<Sweep, String> {
    let wrong = || format!("{text:?} is no sweep; give such as clients=1..64 (doubling) or rate=1000,2000,4000");
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    let variables = [Variable::Clients, Variable::Rate, Variable::Iodepth];
    let variable = variables.into_iter().find(|variable| variable.word() == name).ok_or_else(wrong)?;
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| *number > 0.0 && number.is_finite());
    let values: Vec<f64> = match values.split_once("..") {
        None => values.split(',').map(number).collect::<Option<_>>().ok_or_else(wrong)?,
        Some((first, last)) => {
            let (first, last) = number(first).zip(number(last)).ok_or_else(wrong)?;
            let doubled = std::iter::successors(Some(first), |value| Some(value * 2.0));
            let below = doubled.take(STEPS_MAX).take_while(|value| *value < last);
            below.chain([last]).collect()
        }
    };
    if variable != Variable::Rate && values.iter().any(|value| value.fract() != 0.0) {
        return Err(format!("{text:?}: {name} are whole numbers"));
    }
    if !values.is_sorted_by(|one, next| one < next) || values.len() < 2 || values.len() > STEPS_MAX {
        return Err(format!("{text:?}: give 2 to {STEPS_MAX} values in rising order"));
    }
    Ok(Sweep { variable, values })
}

/// What one step achieved.
#[derive(Clone, Copy, Debug)]
struct Point {
    ops_per_second: f64,
    p99_ns: f64,
    has_errors: bool,
}

impl Point {
    fn of(job: &Job) -> Point {
        Point {
            ops_per_second: job.sides().map(|(_, side)| side.meter.iops()).sum(),
            p99_ns: job.sides().map(|(_, side)| side.meter.corrected.percentile_ns(99.0)).max().unwrap_or(0) as f64,
            has_errors: job.errors.count() > 0,
        }
    }

    /// Operations a second for each second of latency; nothing where nothing was done.
    fn power(self) -> f64 {
        if self.p99_ns > 0.0 { self.ops_per_second / (self.p99_ns / 1e9) } else { 0.0 }
    }
}

/// Where the knee is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knee {
    At(usize),
    /// Power was largest at the last step.
    Beyond,
    /// No step did anything without failures.
    Nowhere,
}

fn knee(points: &[Point]) -> Knee {
    let power = |point: &Point| if point.has_errors { 0.0 } else { point.power() };
    let largest = points.iter().map(power).fold(0.0, f64::max);
    if largest <= 0.0 {
        return Knee::Nowhere;
    }
    match points.iter().position(|point| power(point) >= largest * (1.0 - TIE)) {
        Some(at) if at + 1 < points.len() => Knee::At(at),
        _ => Knee::Beyond,
    }
}

/// Marks the steps of one target, given in the order of the sweep. Fewer jobs than values mean that it was interrupted.
pub fn mark(sweep: &Sweep, jobs: &mut [&mut Job], warnings: &mut Vec<String>) {
    let points: Vec<Point> = jobs.iter().map(|job| Point::of(job)).collect();
    let knee = knee(&points);
    let variable = sweep.variable.word();
    for (at, ((job, point), value)) in jobs.iter_mut().zip(&points).zip(&sweep.values).enumerate() {
        let is_knee = knee == Knee::At(at);
        let number = if value.fract() == 0.0 { json!(*value as u64) } else { json!(value) };
        let note = format!(
            "sweep : {variable}={number}, power={} (IOPS / p99 in s){}",
            crate::units::count(point.power()),
            if is_knee { " <- knee" } else { "" }
        );
        job.notes.push(note);
        let step = json!({"variable": variable, "value": number, "is_knee": is_knee, "power": point.power()});
        job.extra.insert("sweep".to_owned(), step);
    }
    let end = match knee {
        Knee::At(_) => return,
        Knee::Beyond => "power was largest at the last step, so the knee may lie beyond it; go further with --sweep",
        Knee::Nowhere => "no step went without failures, so no knee is marked",
    };
    warnings.push(match jobs.first() {
        Some(job) => format!("sweep of {}: {end}", job.name),
        None => format!("sweep: {end}"),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps_double_or_list() {
        let values = |text| parse_sweep(text).map(|sweep| sweep.values);
        assert_eq!(values("clients=1..64"), Ok(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]));
        assert_eq!(values("iodepth=3..20"), Ok(vec![3.0, 6.0, 12.0, 20.0]), "the end is always there");
        assert_eq!(values("rate=0.5,2000"), Ok(vec![0.5, 2000.0]));
        for text in [
            "",
            "clients",
            "clients=",
            "clients=1",
            "clients=4,2",
            "clients=2,2",
            "clients=0..4",
            "clients=1.5,2",
            "size=1..2",
            "rate=a,b",
            "rate=1..1e99",
            "clients=-1..4",
            "clients=8..1",
            "rate=1,inf",
        ] {
            assert!(parse_sweep(text).is_err(), "{text:?}");
        }
    }

    fn points(curve: &[(f64, f64)]) -> Vec<Point> {
        let point = |(ops_per_second, p99_ms): &(f64, f64)| Point {
            ops_per_second: *ops_per_second,
            p99_ns: p99_ms * 1e6,
            has_errors: false,
        };
        curve.iter().map(point).collect()
    }

    /// A server with room for `workers` at once and 1 ms for each operation, in a closed loop.
    fn closed_loop(workers: f64, noise: &[f64]) -> Vec<Point> {
        let step = |(step, noise): (usize, &f64)| {
            let clients = f64::powi(2.0, step as i32);
            let ops_per_second = 1000.0 * clients.min(workers);
            (ops_per_second, noise * clients / ops_per_second * 1000.0)
        };
        points(&noise.iter().enumerate().map(step).collect::<Vec<_>>())
    }

    #[test]
    fn the_knee_is_where_the_server_is_full() {
        assert_eq!(knee(&closed_loop(8.0, &[1.0; 8])), Knee::At(3));
        assert_eq!(knee(&closed_loop(1.0, &[1.0; 8])), Knee::At(0), "full from the start: nothing is gained");
        assert_eq!(knee(&closed_loop(1e9, &[1.0; 8])), Knee::Beyond, "never full");
        let noise = [1.3, 0.8, 1.2, 1.1, 0.9, 0.8, 1.3, 0.7];
        assert_eq!(knee(&closed_loop(8.0, &noise)), Knee::At(3), "a third of noise moves nothing");
    }

    #[test]
    fn flat_and_broken_curves_have_their_knee_early_or_not_at_all() {
        assert_eq!(knee(&points(&[(1000.0, 2.0); 5])), Knee::At(0), "more load changes nothing: the least does");
        let open = points(&[(1000.0, 2.0), (2000.0, 2.5), (4000.0, 3.0), (4100.0, 900.0), (3900.0, 2000.0)]);
        assert_eq!(knee(&open), Knee::At(2), "the last rate that was kept up with");
        assert_eq!(knee(&points(&[(0.0, 0.0), (0.0, 0.0)])), Knee::Nowhere);
        let mut failing = points(&[(1000.0, 2.0), (9000.0, 1.0), (1000.0, 9.0)]);
        failing[1].has_errors = true;
        assert_eq!(knee(&failing), Knee::At(0), "failing fast is no throughput");
        assert_eq!(
            knee(&points(&[(1000.0, 1.0), (1980.0, 1.9), (1990.0, 4.0)])),
            Knee::At(0),
            "a tie goes to the least"
        );
    }
}
