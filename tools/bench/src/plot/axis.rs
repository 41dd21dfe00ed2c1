//! Axes: from a range of values to a range of the picture, with ticks at numbers that people would choose.

use super::canvas::{Anchor, Canvas, INK, Size};
use anyhow::Result;
use plotters::coord::CoordTranslate;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::Cartesian2d;
use std::ops::Range;

/// Ticks that a linear axis aims at.
const TICKS: f64 = 6.0;

/// One axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it shows, with the unit.
    pub label: String,
    range: Range<f64>,
    is_log: bool,
    ticks: Vec<(f64, String)>,
    fine: Vec<f64>,
}

/// A number as short as it can be said.
#[must_use]
pub fn short(number: f64) -> String {
    let text = format!("{number:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text.is_empty() || text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// A time with its unit.
#[must_use]
pub fn time(ns: f64) -> String {
    let (unit_ns, unit) = match ns {
        ns if ns < 999.5 => (1.0, "ns"),
        ns if ns < 999_500.0 => (1e3, "µs"),
        ns if ns < 999_500_000.0 => (1e6, "ms"),
        _ => (1e9, "s"),
    };
    let value = ns / unit_ns;
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} {unit}")
}

impl Axis {
    /// From 0 to a little above `max`.
    #[must_use]
    pub fn linear(label: impl Into<String>, max: f64, tick_label: impl Fn(f64) -> String) -> Axis {
        let max = if max > 0.0 { max * 1.04 } else { 1.0 };
        let magnitude = 10f64.powf((max / TICKS).log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * magnitude);
        let step = steps.into_iter().find(|step| max / step <= TICKS).unwrap_or(steps[3]);
        let ticks = (0..=(max / step) as u32).map(|tick| f64::from(tick) * step);
        let ticks = ticks.map(|at| (at, tick_label(at))).collect();
        Axis { label: label.into(), range: 0.0..max, is_log: false, ticks, fine: Vec::new() }
    }

    /// Logarithmic around the values.
    #[must_use]
    pub fn log(label: impl Into<String>, values: Range<f64>, tick_label: impl Fn(f64) -> String) -> Axis {
        let (low, high) = (values.start.max(1e-9), values.end.max(values.start.max(1e-9) * 1.5));
        let (low, high) = ((low / 1.15).log10(), (high * 1.15).log10());
        let at = |decade: i32, digit: u32| f64::from(decade) + f64::from(digit).log10();
        let all =
            (low.floor() as i32..=high.ceil() as i32).flat_map(|decade| (1..10).map(move |digit| (decade, digit)));
        let inside: Vec<(i32, u32)> =
            all.filter(|(decade, digit)| (low..=high).contains(&at(*decade, *digit))).collect();
        let digits: &[u32] = match high - low {
            span if span > 3.5 => &[1],
            span if span > 0.7 => &[1, 2, 5],
            _ => &[1, 2, 3, 4, 5, 6, 7, 8, 9],
        };
        let (named, fine): (Vec<_>, Vec<_>) = inside.into_iter().partition(|(_, digit)| digits.contains(digit));
        let tick = |(decade, digit): (i32, u32)| (at(decade, digit), tick_label(f64::from(digit) * 10f64.powi(decade)));
        Axis {
            label: label.into(),
            range: low..high,
            is_log: true,
            ticks: named.into_iter().map(tick).collect(),
            fine: fine.into_iter().map(|(decade, digit)| at(decade, digit)).collect(),
        }
    }

    /// Latencies: logarithmic when they span much.
    #[must_use]
    pub fn latency(label: impl Into<String>, values: Range<f64>) -> Axis {
        if values.end / values.start.max(1.0) > 8.0 {
            return Axis::log(label, values.start.max(1.0)..values.end, time);
        }
        Axis::linear(label, values.end, time)
    }

    /// Percentiles up to one in `count`, each nine as far from the next.
    #[must_use]
    pub fn percentiles(label: impl Into<String>, count: f64) -> Axis {
        let end = count.max(10.0).log10() * 1.02;
        let nine = |nines: u32| match nines {
            1 => "90".to_owned(),
            2 => "99".to_owned(),
            nines => format!("99.{}", "9".repeat(nines as usize - 2)),
        };
        let nines = (1..=end as u32).map(|nines| (f64::from(nines), nine(nines)));
        let mut ticks = vec![(0.0, "0".to_owned()), (2f64.log10(), "50".to_owned())];
        ticks.extend(nines);
        Axis { label: label.into(), range: 0.0..end, is_log: false, ticks, fine: Vec::new() }
    }

    fn place(&self, value: f64) -> f64 {
        let value = if self.is_log { value.max(1e-9).log10() } else { value };
        value.clamp(self.range.start, self.range.end)
    }
}

/// Where a percentile stands on its axis: at the logarithm of 1/(1-p).
#[must_use]
pub fn percentile_place(share_above: f64) -> f64 {
    -share_above.max(1e-12).log10()
}

/// The two axes of a plot and their place in the picture.
pub struct Panel {
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
    place: Cartesian2d<RangedCoordf64, RangedCoordf64>,
}

impl Panel {
    /// Axes around a part of the picture.
    #[must_use]
    pub fn new(x: Axis, y: Axis, across: Range<i32>, down: Range<i32>) -> Panel {
        let pixels = (across.clone(), down.end..down.start);
        let place = Cartesian2d::new(x.range.clone(), y.range.clone(), pixels);
        Panel { x, y, left: across.start, right: across.end, top: down.start, bottom: down.end, place }
    }

    /// The place of a point.
    #[must_use]
    pub fn at(&self, x: f64, y: f64) -> (i32, i32) {
        self.place.translate(&(self.x.place(x), self.y.place(y)))
    }

    /// Draws grid, ticks and labels; `x` is left out above another panel with the same one.
    pub fn draw(&self, canvas: &Canvas<'_>, shows_x: bool) -> Result<()> {
        let row = |at: f64| self.place.translate(&(self.x.range.start, at)).1;
        self.grid_across(canvas)?;
        let named: Vec<f64> = self.y.ticks.iter().map(|tick| tick.0).collect();
        for (places, is_fine) in [(&self.y.fine, true), (&named, false)] {
            for y in places.iter().map(|at| row(*at)) {
                canvas.grid_line((self.left, y), (self.right, y), is_fine)?;
            }
        }
        canvas.line(&[(self.left, self.top), (self.left, self.bottom)], INK, 3)?;
        for (at, text) in &self.y.ticks {
            let y = row(*at);
            canvas.line(&[(self.left - 10, y), (self.left, y)], INK, 3)?;
            canvas.text(text, (self.left - 18, y), Anchor::End, Size::Normal)?;
        }
        canvas.text(&self.y.label, (38, (self.top + self.bottom) / 2), Anchor::Upwards, Size::Normal)?;
        self.draw_ticks_across(canvas, shows_x)
    }

    /// Draws grid, ticks and label of the axis to the right alone.
    pub fn draw_across(&self, canvas: &Canvas<'_>) -> Result<()> {
        self.grid_across(canvas)?;
        self.draw_ticks_across(canvas, true)
    }

    fn column(&self, at: f64) -> i32 {
        self.place.translate(&(at, self.y.range.start)).0
    }

    fn grid_across(&self, canvas: &Canvas<'_>) -> Result<()> {
        let named: Vec<f64> = self.x.ticks.iter().map(|tick| tick.0).collect();
        for (places, is_fine) in [(&self.x.fine, true), (&named, false)] {
            for x in places.iter().map(|at| self.column(*at)) {
                canvas.grid_line((x, self.top), (x, self.bottom), is_fine)?;
            }
        }
        Ok(())
    }

    fn draw_ticks_across(&self, canvas: &Canvas<'_>, shows_words: bool) -> Result<()> {
        canvas.line(&[(self.left, self.bottom), (self.right, self.bottom)], INK, 3)?;
        for (at, text) in &self.x.ticks {
            let x = self.column(*at);
            canvas.line(&[(x, self.bottom), (x, self.bottom + 10)], INK, 3)?;
            if shows_words {
                canvas.text(text, (x, self.bottom + 34), Anchor::Middle, Size::Normal)?;
            }
        }
        if shows_words {
            canvas.text(
                &self.x.label,
                ((self.left + self.right) / 2, self.bottom + 84),
                Anchor::Middle,
                Size::Normal,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|tick| tick.1.as_str()).collect()
    }

    #[test]
    fn ticks_are_numbers_that_people_choose() {
        assert_eq!(labels(&Axis::linear("", 4.8, short)), ["0", "1", "2", "3", "4"]);
        assert_eq!(labels(&Axis::linear("", 0.0, short)), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(labels(&Axis::linear("", 1234.0, short)), ["0", "500", "1000"]);
        let log = Axis::log("", 800.0..60_000.0, time);
        assert_eq!(labels(&log), ["1 µs", "2 µs", "5 µs", "10 µs", "20 µs", "50 µs"]);
        assert_eq!(labels(&Axis::log("", 5e3..3e9, time)), ["10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s"]);
        assert_eq!(labels(&Axis::percentiles("", 1e5)), ["0", "50", "90", "99", "99.9", "99.99", "99.999"]);
        assert!(!labels(&Axis::latency("", 0.0..0.0)).is_empty() && !labels(&Axis::log("", 7.0..7.0, time)).is_empty());
    }

    #[test]
    fn places_follow_the_axes_and_stay_inside() {
        let panel = Panel::new(Axis::linear("", 100.0, short), Axis::log("", 10.0..1000.0, time), 0..1040, 0..500);
        assert_eq!((panel.at(0.0, 100.0).0, panel.at(50.0, 100.0).0), (0, 500));
        let rows = [1.0, 10.0, 100.0, 1000.0, 1e9].map(|value| panel.at(0.0, value).1);
        assert!(rows.is_sorted_by(|a, b| a > b) && rows[0] == 500 && rows[4] == 0, "{rows:?}");
        assert!((percentile_place(0.001) - 3.0).abs() < 1e-9 && percentile_place(0.0).is_finite());
    }

    #[test]
    fn times_keep_their_digits() {
        let shown = [0.0, 1.0, 999.4, 1000.0, 12_340.0, 999_600.0, 250e6, 100e3, 3e9].map(time);
        assert_eq!(shown, ["0 ns", "1 ns", "999 ns", "1 µs", "12.3 µs", "1 ms", "250 ms", "100 µs", "3 s"]);
    }
}
