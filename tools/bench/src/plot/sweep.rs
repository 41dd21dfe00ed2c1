//! What a sweep found: the p99 latency that each throughput costs, and where more load brings latency only.

use super::axis::{Axis, Panel, short};
use super::canvas::{Anchor, Canvas, Legend, Size, WIDTH, picture};
use super::{Plot, SERIES_MAX, Throughput};
use crate::results::{RunResult, SideResult};
use anyhow::Result;
use std::collections::BTreeMap;

/// One line: the steps of a sweep in one direction.
struct Line {
    name: String,
    unit: Throughput,
    steps: Vec<Step>,
}

struct Step {
    label: String,
    value: f64,
    amount: f64,
    p99_ns: f64,
    is_knee: bool,
}

/// The plots of all sweeps, one for each unit.
pub fn plots(results: &[RunResult], left_out: &mut Vec<String>) -> Result<Vec<Plot>> {
    let mut plots = Vec::new();
    let lines = lines(results, left_out);
    for unit in [Throughput::Operations, Throughput::Bytes] {
        let mut some: Vec<&Line> = lines.iter().filter(|line| line.unit == unit).collect();
        super::cap(&mut some, "sweep", |line| line.name.clone(), left_out);
        if !some.is_empty() {
            plots.push(plot(&some, unit)?);
        }
    }
    Ok(plots)
}

/// A step as a result has it: the figures, the value, whether it is the knee.
type Measured<'a> = (&'a SideResult, f64, bool);

fn lines(results: &[RunResult], left_out: &mut Vec<String>) -> Vec<Line> {
    let mut steps: BTreeMap<(usize, &str, &str), Vec<Measured<'_>>> = BTreeMap::new();
    for (number, result) in results.iter().enumerate() {
        for job in &result.jobs {
            let Some(step) = &job.sweep else { continue };
            for side in &job.sides {
                let key = (number, step.variable.as_str(), side.direction);
                steps.entry(key).or_default().push((side, step.value, step.is_knee));
            }
        }
    }
    let mut lines = Vec::new();
    for ((number, variable, direction), sides) in steps {
        let name = format!("{}: {direction} by {variable}", results[number].name);
        let unit = if sides.iter().all(|(side, ..)| Throughput::of(side) == Throughput::Bytes) {
            Throughput::Bytes
        } else {
            Throughput::Operations
        };
        let step = |(side, value, is_knee): &Measured<'_>| {
            let p99_ns = side.latency()?.percentile_ns(99.0)?;
            Some(Step { label: short(*value), value: *value, amount: unit.amount(side), p99_ns, is_knee: *is_knee })
        };
        let mut known: Vec<Step> = sides.iter().filter_map(step).collect();
        known.sort_by(|a, b| a.value.total_cmp(&b.value));
        match known.len() {
            0 | 1 => left_out.push(format!("sweep: {name} has fewer than two steps with a p99")),
            _ => lines.push(Line { name, unit, steps: known }),
        }
    }
    lines
}

fn plot(lines: &[&Line], unit: Throughput) -> Result<Plot> {
    debug_assert!(lines.len() <= SERIES_MAX);
    let legend = Legend::new(lines.iter().map(|line| line.name.clone()).collect());
    let all = || lines.iter().flat_map(|line| &line.steps);
    let most = all().map(|step| step.amount).fold(0.0, f64::max);
    let scale = unit.scale(most);
    let (low, high) =
        all().map(|step| step.p99_ns).fold((f64::INFINITY, 0.0), |(low, high), ns| (low.min(ns), f64::max(high, ns)));
    let panel = Panel::new(
        Axis::linear(format!("throughput ({})", scale.1), most / scale.0 * 1.02, short),
        Axis::latency("p99 latency", low..high * 1.1),
        200..WIDTH - 60,
        100..900,
    );
    let draw = |canvas: &Canvas<'_>| -> Result<()> {
        canvas.text("Throughput against p99 latency", (40, 45), Anchor::Start, Size::Title)?;
        panel.draw(canvas, true)?;
        let place = |step: &Step| panel.at(step.amount / scale.0, step.p99_ns);
        let mut labels: Vec<((i32, i32), String)> = Vec::new();
        for (number, line) in lines.iter().enumerate() {
            let points: Vec<(i32, i32)> = line.steps.iter().map(place).collect();
            canvas.line(&points, super::canvas::color(number), 5)?;
            points.iter().try_for_each(|point| canvas.mark(*point, number))?;
            for step in line.steps.iter().filter(|step| step.is_knee) {
                canvas.ring(place(step))?;
            }
            // The knee first: a label that would cover another is left out.
            let ordered = line.steps.iter().filter(|s| s.is_knee).chain(line.steps.iter().filter(|s| !s.is_knee));
            labels.extend(ordered.map(|step| {
                let text = if step.is_knee { format!("knee: {}", step.label) } else { step.label.clone() };
                (place(step), text)
            }));
        }
        labels.sort_by_key(|label| !label.1.starts_with("knee"));
        let mut taken: Vec<(i32, i32, i32)> = Vec::new();
        for ((x, y), text) in labels {
            let (end, y) = (x - 24, y - 26);
            let begin = end - Size::Small.width_of(&text);
            let is_free = |box_: &(i32, i32, i32)| end < box_.0 || begin > box_.1 || (y - box_.2).abs() > 30;
            if taken.iter().all(is_free) && begin > 200 {
                canvas.text(&text, (end, y), Anchor::End, Size::Small)?;
                taken.push((begin, end, y));
            }
        }
        legend.draw(canvas, 200, 1020)
    };
    let svg = picture(1020 + legend.height(), draw)?;
    let file = if unit == Throughput::Bytes { "sweep-bytes" } else { "sweep-operations" };
    Ok(Plot {
        file: file.to_owned(),
        title: "Throughput against p99 latency".to_owned(),
        caption: "One point for each step, with what was varied beside it. A ring marks the knee.".to_owned(),
        svg,
    })
}
