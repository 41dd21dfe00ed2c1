//! Throughput over time, and below it the p99 of the operations that ended in each interval.

use super::axis::{Axis, Panel, short};
use super::canvas::{Anchor, Canvas, Legend, Size, WIDTH, picture};
use super::{Plot, Series, Throughput, name_series};
use crate::results::{IntervalResult, RunResult};
use anyhow::Result;

/// The plots: one for operations, one for bytes, where jobs are told in different units.
pub fn plots(results: &[RunResult], left_out: &mut Vec<String>) -> Result<Vec<Plot>> {
    let mut series: Vec<Series<'_>> = Vec::new();
    for shown in super::all_sides(results) {
        match whole(&shown.side.intervals).count() {
            0 | 1 => left_out.push(format!("over time: {} has fewer than two whole intervals", shown.full_name())),
            _ => series.push(shown),
        }
    }
    let mut plots = Vec::new();
    for unit in [Throughput::Operations, Throughput::Bytes] {
        let mut some: Vec<Series<'_>> =
            series.iter().filter(|shown| Throughput::of(shown.side) == unit).cloned().collect();
        super::cap(&mut some, "over time", Series::full_name, left_out);
        if !some.is_empty() {
            plots.push(plot(&some, unit)?);
        }
    }
    Ok(plots)
}

/// A short rest of an interval tells no rate.
fn whole(intervals: &[IntervalResult]) -> impl Iterator<Item = &IntervalResult> {
    let len_ns = intervals.first().map_or(0.0, |first| first.len_ns);
    intervals.iter().filter(move |interval| interval.len_ns >= len_ns / 2.0)
}

fn plot(series: &[Series<'_>], unit: Throughput) -> Result<Plot> {
    let legend = Legend::new(name_series(series.iter()));
    let all = || series.iter().flat_map(|shown| whole(&shown.side.intervals));
    let amount = |interval: &IntervalResult| match unit {
        Throughput::Operations => interval.ops as f64 * 1e9 / interval.len_ns,
        Throughput::Bytes => interval.bytes as f64 * 1e9 / interval.len_ns,
    };
    let end_s = all().map(|interval| (interval.start_ns + interval.len_ns) / 1e9).fold(0.0, f64::max) / 1.04;
    let time_axis = || Axis::linear("time since the end of the warm-up (s)", end_s, short);
    let scale = unit.scale(all().map(amount).fold(0.0, f64::max));
    let highest = all().map(amount).fold(0.0, f64::max) / scale.0;
    let latencies = || all().filter(|interval| interval.ops > 0).map(|interval| interval.p99_ns);
    let (low, high) = (latencies().fold(f64::INFINITY, f64::min), latencies().fold(0.0, f64::max));
    let across = 200..WIDTH - 60;
    let throughput = Axis::linear(format!("throughput ({})", scale.1), highest, short);
    let above = Panel::new(time_axis(), throughput, across.clone(), 100..560);
    let below = Panel::new(time_axis(), Axis::latency("p99 latency", low.min(high)..high), across, 620..1000);
    let draw = |canvas: &Canvas<'_>| -> Result<()> {
        canvas.text("Throughput and p99 latency over time", (40, 45), Anchor::Start, Size::Title)?;
        above.draw(canvas, false)?;
        below.draw(canvas, true)?;
        for (number, shown) in series.iter().enumerate() {
            let middle_s = |interval: &IntervalResult| (interval.start_ns + interval.len_ns / 2.0) / 1e9;
            let rates =
                whole(&shown.side.intervals).map(|i| above.at(middle_s(i), amount(i) / scale.0)).collect::<Vec<_>>();
            canvas.series(&rates, number, 60)?;
            // Where nothing ended there is no latency: the line has a gap.
            let intervals: Vec<&IntervalResult> = whole(&shown.side.intervals).collect();
            for part in intervals.split(|interval| interval.ops == 0) {
                let points: Vec<(i32, i32)> = part.iter().map(|i| below.at(middle_s(i), i.p99_ns)).collect();
                canvas.series(&points, number, 60)?;
            }
        }
        legend.draw(canvas, 200, 1110)
    };
    let svg = picture(1110 + legend.height(), draw)?;
    let (file, caption) = match unit {
        Throughput::Operations => ("time-operations", "Operations that ended in each interval."),
        Throughput::Bytes => ("time-bytes", "Bytes of the operations that ended in each interval."),
    };
    Ok(Plot {
        file: file.to_owned(),
        title: "Throughput and p99 latency over time".to_owned(),
        caption: format!("{caption} Latencies here are told to within 2 %."),
        svg,
    })
}
