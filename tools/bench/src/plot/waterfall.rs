//! Where the time of an operation goes in the server: three bars for each stage.

use super::axis::{Axis, Panel, time};
use super::canvas::{Anchor, Canvas, INK, Size, WIDTH, picture};
use super::{Plot, SERIES_MAX};
use crate::results::{RunResult, StageResult, Waterfall};
use anyhow::Result;
use plotters::style::RGBColor;

/// Light to dark, so that they are told apart without color too.
const SHADES: [(&str, RGBColor); 3] =
    [("p50", RGBColor(0xd6, 0xe6, 0xf4)), ("p99", RGBColor(0x5b, 0x9b, 0xcd)), ("p99.9", RGBColor(0x08, 0x30, 0x6b))];

/// Units of a bar, and of a stage with its three.
const BAR: i32 = 30;
const ROW: i32 = 3 * BAR + 36;

/// Most stages of a picture.
const STAGES_MAX: usize = 40;

/// One plot for each job with stages.
pub fn plots(results: &[RunResult], left_out: &mut Vec<String>) -> Result<Vec<Plot>> {
    let mut found: Vec<(String, &Waterfall)> = Vec::new();
    for result in results {
        for job in &result.jobs {
            let name = super::joined(&[&result.name, &job.name]);
            found.extend(job.waterfall.as_ref().map(|waterfall| (name, waterfall)));
        }
    }
    super::cap(&mut found, "waterfall", |pair| pair.0.clone(), left_out);
    debug_assert!(found.len() <= SERIES_MAX);
    let numbered = found.into_iter().enumerate();
    numbered.map(|(number, (name, waterfall))| plot(number, &name, waterfall, left_out)).collect()
}

fn plot(number: usize, name: &str, waterfall: &Waterfall, left_out: &mut Vec<String>) -> Result<Plot> {
    let stages = &waterfall.stages[..waterfall.stages.len().min(STAGES_MAX)];
    if stages.len() < waterfall.stages.len() {
        left_out.push(format!("waterfall: {name} has {} stages, {STAGES_MAX} are shown", waterfall.stages.len()));
    }
    let values = || stages.iter().flat_map(|stage| stage.percentiles_ns).filter(|ns| *ns > 0.0);
    let (low, high) = values().fold((f64::INFINITY, 1.0), |(low, high), ns| (low.min(ns), f64::max(high, ns)));
    let top = 160;
    let bottom = top + stages.len() as i32 * ROW + 20;
    let name_width = stages.iter().map(|stage| Size::Normal.width_of(&super::canvas::label(&stage.name))).max();
    let left = (name_width.unwrap_or(0) + 60).clamp(160, 800);
    // The bars begin well below the smallest value, so that it has one.
    let across = Axis::log("time in the stage (logarithmic)", low.min(high) / 2.5..high * 2.5, time);
    let panel = Panel::new(across, Axis::linear("", 1.0, |_| String::new()), left..WIDTH - 60, top..bottom);
    let draw = |canvas: &Canvas<'_>| -> Result<()> {
        canvas.text(&format!("Stages of the server: {name}"), (40, 45), Anchor::Start, Size::Title)?;
        panel.draw_across(canvas)?;
        for (at, (word, shade)) in SHADES.iter().enumerate() {
            let x = left + at as i32 * 200;
            canvas.bar((x, 90), (x + 60, 90 + BAR), *shade)?;
            canvas.text(word, (x + 76, 90 + BAR / 2), Anchor::Start, Size::Normal)?;
        }
        stages
            .iter()
            .enumerate()
            .try_for_each(|(row, stage)| bars(canvas, &panel, stage, left, top + 20 + row as i32 * ROW))
    };
    let svg = picture(bottom + 120, draw)?;
    let file = format!("waterfall-{}", number + 1);
    let caption =
        format!("Source: {}. Percentiles of stages do not add up to those of an operation.", waterfall.source);
    Ok(Plot { file, title: format!("Stages of the server: {name}"), caption, svg })
}

fn bars(canvas: &Canvas<'_>, panel: &Panel, stage: &StageResult, left: i32, top: i32) -> Result<()> {
    canvas.text(&stage.name, (left - 18, top + 3 * BAR / 2), Anchor::End, Size::Normal)?;
    for (at, ns) in stage.percentiles_ns.into_iter().enumerate() {
        let y = top + at as i32 * BAR;
        let end = panel.at(ns, 0.0).0;
        if ns > 0.0 {
            canvas.bar((left, y + 2), (end, y + BAR - 2), SHADES[at].1)?;
        }
        let end = if ns > 0.0 { end } else { left };
        canvas.text(&time(ns), (end + 12, y + BAR / 2), Anchor::Start, Size::Small)?;
    }
    canvas.line(&[(left, top - 18), (left, top + ROW - 18)], INK, 3)
}
