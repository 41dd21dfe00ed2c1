//! Latency by percentile: each nine takes as much room as the next, so that the tail is seen.

use super::axis::{Axis, Panel, percentile_place};
use super::canvas::{Anchor, Canvas, Legend, SERIES_MAX, Size, WIDTH, picture};
use super::{Plot, Series, name_series};
use crate::results::{LatencyResult, RunResult};
use anyhow::Result;

/// The plot of all distributions; what can't be shown is said in `left_out`.
pub fn plot(results: &[RunResult], left_out: &mut Vec<String>) -> Result<Option<Plot>> {
    let mut series: Vec<(Series<'_>, Curve)> = Vec::new();
    for shown in super::all_sides(results) {
        match shown.side.latency() {
            Some(latency) => series.push((shown, Curve::of(latency))),
            None => left_out.push(format!("latency by percentile: {} has no distribution", shown.full_name())),
        }
    }
    super::cap(&mut series, "latency by percentile", |pair| pair.0.full_name(), left_out);
    if series.is_empty() {
        return Ok(None);
    }
    debug_assert!(series.len() <= SERIES_MAX);
    let legend = Legend::new(name_series(series.iter().map(|pair| &pair.0)));
    let count = series.iter().map(|pair| pair.1.count).fold(0.0, f64::max);
    let values = || series.iter().flat_map(|pair| pair.1.points.iter().map(|point| point.1)).filter(|ns| *ns > 0.0);
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    let bottom = 900;
    let panel = Panel::new(
        Axis::percentiles("percentile (%), at the logarithm of 1/(1 − p)", count),
        Axis::latency("latency", low.min(high)..high),
        200..WIDTH - 60,
        100..bottom,
    );
    let draw = |canvas: &Canvas<'_>| -> Result<()> {
        canvas.text("Latency by percentile", (40, 45), Anchor::Start, Size::Title)?;
        panel.draw(canvas, true)?;
        for (number, (_, curve)) in series.iter().enumerate() {
            let points: Vec<(i32, i32)> = curve.points.iter().map(|point| panel.at(point.0, point.1)).collect();
            canvas.series(&points, number, if curve.is_sparse { 1 } else { 220 })?;
        }
        legend.draw(canvas, 200, bottom + 120)
    };
    let svg = picture(bottom + 120 + legend.height(), draw)?;
    let caption = "From when an operation was due to its end. The last step of each line is its largest value.";
    Ok(Some(Plot {
        file: "latency".to_owned(),
        title: "Latency by percentile".to_owned(),
        caption: caption.to_owned(),
        svg,
    }))
}

/// A distribution as a line.
struct Curve {
    count: f64,
    points: Vec<(f64, f64)>,
    /// Known at some percentiles only.
    is_sparse: bool,
}

impl Curve {
    fn of(latency: &LatencyResult) -> Curve {
        let total: u64 = latency.bins.iter().map(|bin| bin.1).sum();
        if total == 0 {
            let inside = latency.percentiles.iter().filter(|pair| pair.0 < 100.0);
            let points = inside.map(|(percent, ns)| (percentile_place(1.0 - percent / 100.0), *ns)).collect::<Vec<_>>();
            let last = points.last().map_or(0.0, |point: &(f64, f64)| point.0);
            return Curve { count: 10f64.powf(last), points, is_sparse: true };
        }
        let count = total as f64;
        let (mut points, mut seen) = (Vec::new(), 0);
        for (value, times) in &latency.bins {
            // A bin's value is that of all percentiles from the bin before it to its own end: a step.
            let begin = percentile_place(1.0 - seen as f64 / count);
            seen += times;
            let end = percentile_place(((total - seen) as f64 / count).max(1.0 / count));
            points.push((begin, *value));
            points.push((end, *value));
        }
        Curve { count, points, is_sparse: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_reaches_to_its_percentile() {
        let mut latency =
            LatencyResult { count: 1000, mean_ns: 1.0, max_ns: 70.0, percentiles: Vec::new(), bins: Vec::new() };
        latency.bins = vec![(10.0, 900), (20.0, 99), (70.0, 1)];
        let curve = Curve::of(&latency);
        let points: Vec<(i64, f64)> =
            curve.points.iter().map(|point| ((point.0 * 1e6).round() as i64, point.1)).collect();
        let wanted =
            [(0, 10.0), (1_000_000, 10.0), (1_000_000, 20.0), (3_000_000, 20.0), (3_000_000, 70.0), (3_000_000, 70.0)];
        assert_eq!((points.as_slice(), curve.is_sparse), (wanted.as_slice(), false));
        latency.bins.clear();
        latency.percentiles = vec![(50.0, 5.0), (99.0, 9.0), (100.0, 11.0)];
        let curve = Curve::of(&latency);
        assert_eq!((curve.points.len(), curve.is_sparse, curve.points[1].0.round()), (2, true, 2.0));
    }
}
