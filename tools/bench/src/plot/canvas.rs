//! What plots are drawn on: an SVG in half pixels, colors that color-blind people tell apart, and a mark for each series, so
//! that a print without color can be read as well.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::element::{Drawable, PointCollection};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::fmt::Display;

/// Pixels that a drawing unit is smaller than one of the picture: plotters places on whole units, and curves want finer ones.
const FINE: u32 = 2;

/// Width of every plot.
pub const WIDTH: i32 = 2000;

/// Longest label; names of files can have any length.
const LABEL_LEN_MAX: usize = 60;

/// Where axes, words and the grid stand.
pub const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const GRID: RGBColor = RGBColor(0xd8, 0xd8, 0xd8);
const GRID_FINE: RGBColor = RGBColor(0xf0, 0xf0, 0xf0);

/// The colors of Okabe and Ito without the yellow, which is too light for lines on white.
const COLORS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x00, 0x00),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
];

/// Shapes of the marks; their number and that of the colors have no common divisor, so pairs repeat late.
const SHAPES: usize = 6;

/// Most series in one plot; with more, nobody finds the one that a legend names.
pub const SERIES_MAX: usize = 12;

/// How a text stands to its point.
#[derive(Clone, Copy, Debug)]
pub enum Anchor {
    /// Begins there.
    Start,
    /// Is centered there.
    Middle,
    /// Ends there.
    End,
    /// Is centered and goes upwards.
    Upwards,
}

/// The sizes of letters.
#[derive(Clone, Copy, Debug)]
pub enum Size {
    /// The title.
    Title,
    /// Axes and legend.
    Normal,
    /// Beside points.
    Small,
}

impl Size {
    fn units(self) -> i32 {
        match self {
            Size::Title => 40,
            Size::Normal => 33,
            Size::Small => 29,
        }
    }

    /// About as wide as a text gets, in units.
    #[must_use]
    pub fn width_of(self, text: &str) -> i32 {
        text.chars().count() as i32 * self.units() * 45 / 100
    }
}

/// A drawing.
pub struct Canvas<'a> {
    area: DrawingArea<SVGBackend<'a>, Shift>,
}

/// Draws a picture of this height and gives the SVG.
pub fn picture(height: i32, draw: impl FnOnce(&Canvas<'_>) -> Result<()>) -> Result<String> {
    let (width, height) = (WIDTH as u32, height.max(1) as u32);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let canvas = Canvas { area };
        draw(&canvas)?;
        canvas.area.present().map_err(failed)?;
    }
    let head = |scale: u32| format!("<svg width=\"{}\" height=\"{}\" ", width / scale, height / scale);
    Ok(svg.replacen(&head(1), &format!("{}role=\"img\" ", head(FINE)), 1))
}

fn failed(error: impl Display) -> anyhow::Error {
    anyhow!("a plot can't be drawn: {error}")
}

/// A label of bounded length that XML takes: the middle is cut out, for both ends tell names apart.
#[must_use]
pub fn label(text: &str) -> String {
    let is_bad = |c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}');
    let clean: Vec<char> = text.chars().map(|c| if is_bad(c) { '\u{fffd}' } else { c }).collect();
    if clean.len() <= LABEL_LEN_MAX {
        return clean.into_iter().collect();
    }
    let (head, tail) = (LABEL_LEN_MAX / 2, LABEL_LEN_MAX - LABEL_LEN_MAX / 2 - 1);
    let tail = clean[clean.len() - tail..].iter();
    clean[..head].iter().chain([&'…']).chain(tail).collect()
}

/// The color of a series.
#[must_use]
pub fn color(series: usize) -> RGBColor {
    COLORS[series % COLORS.len()]
}

impl<'a> Canvas<'a> {
    fn put<E>(&self, element: &E) -> Result<()>
    where
        for<'b> &'b E: PointCollection<'b, (i32, i32)>,
        E: Drawable<SVGBackend<'a>>,
    {
        self.area.draw(element).map_err(failed)
    }

    /// A text.
    pub fn text(&self, text: &str, at: (i32, i32), anchor: Anchor, size: Size) -> Result<()> {
        let position = match anchor {
            Anchor::Start => HPos::Left,
            Anchor::Middle | Anchor::Upwards => HPos::Center,
            Anchor::End => HPos::Right,
        };
        let font = match size {
            Size::Title => ("sans-serif", size.units(), FontStyle::Bold).into_font(),
            _ => ("sans-serif", size.units()).into_font(),
        };
        let font = if matches!(anchor, Anchor::Upwards) { font.transform(FontTransform::Rotate270) } else { font };
        let style = TextStyle::from(font).color(&INK).pos(Pos::new(position, VPos::Center));
        self.put(&Text::new(label(text), at, style))
    }

    /// A line through points.
    pub fn line(&self, points: &[(i32, i32)], color: RGBColor, width: u32) -> Result<()> {
        self.put(&PathElement::new(points.to_vec(), color.stroke_width(width)))
    }

    /// A grid line; fine ones are lighter.
    pub fn grid_line(&self, from: (i32, i32), to: (i32, i32), is_fine: bool) -> Result<()> {
        self.line(&[from, to], if is_fine { GRID_FINE } else { GRID }, 2)
    }

    /// A filled rectangle with an outline.
    pub fn bar(&self, from: (i32, i32), to: (i32, i32), color: RGBColor) -> Result<()> {
        self.put(&Rectangle::new([from, to], color.filled()))?;
        self.put(&Rectangle::new([from, to], INK.stroke_width(2)))
    }

    /// A ring around a point.
    pub fn ring(&self, at: (i32, i32)) -> Result<()> {
        self.put(&Circle::new(at, 24, INK.stroke_width(4)))
    }

    /// The mark of a series.
    pub fn mark(&self, (x, y): (i32, i32), series: usize) -> Result<()> {
        let color = color(series);
        let polygon = |corners: &[(i32, i32)]| {
            let moved = corners.iter().map(|corner| (x + corner.0, y + corner.1)).collect::<Vec<_>>();
            self.put(&Polygon::new(moved, color.filled()))
        };
        let stroke =
            |from: (i32, i32), to: (i32, i32)| self.line(&[(x + from.0, y + from.1), (x + to.0, y + to.1)], color, 5);
        match series % SHAPES {
            0 => self.put(&Circle::new((x, y), 10, color.filled())),
            1 => polygon(&[(-10, -10), (10, -10), (10, 10), (-10, 10)]),
            2 => polygon(&[(0, -13), (12, 9), (-12, 9)]),
            3 => {
                self.put(&Circle::new((x, y), 10, WHITE.filled()))?;
                self.put(&Circle::new((x, y), 10, color.stroke_width(4)))
            }
            4 => polygon(&[(0, -14), (14, 0), (0, 14), (-14, 0)]),
            _ => {
                stroke((-11, -11), (11, 11))?;
                stroke((-11, 11), (11, -11))
            }
        }
    }

    /// A series: its line, with a mark at every point or, where they stand close, at some, each series at others.
    pub fn series(&self, points: &[(i32, i32)], series: usize, mark_distance: i32) -> Result<()> {
        let mut thin: Vec<(i32, i32)> = points.to_vec();
        thin.dedup();
        if thin.len() > 1 {
            self.line(&thin, color(series), 5)?;
        }
        let Some((first, last)) = thin.first().zip(thin.last()) else { return Ok(()) };
        let is_wide = last.0 - first.0 >= mark_distance * (thin.len() as i32 - 1);
        // Series that lie on each other still show all their marks.
        let mut next = first.0 + series as i32 % 5 * mark_distance / 5;
        for point in thin {
            if is_wide || point.0 >= next {
                self.mark(point, series)?;
                next = point.0 + mark_distance;
            }
        }
        Ok(())
    }
}

/// Labels of all series, below a plot, where they hide nothing.
#[derive(Clone, Debug)]
pub struct Legend {
    labels: Vec<String>,
    columns: usize,
}

impl Legend {
    /// Units from one row to the next.
    const ROW: i32 = 46;

    /// As many columns as fit.
    #[must_use]
    pub fn new(labels: Vec<String>) -> Legend {
        let labels: Vec<String> = labels.iter().map(|text| label(text)).collect();
        let widest = labels.iter().map(|text| Size::Normal.width_of(text)).max().unwrap_or(0) + 150;
        let columns = ((WIDTH - 200) / widest.max(1)).clamp(1, 4) as usize;
        Legend { labels, columns }
    }

    /// What it takes.
    #[must_use]
    pub fn height(&self) -> i32 {
        self.labels.len().div_ceil(self.columns) as i32 * Legend::ROW + 20
    }

    /// Draws it with its upper edge at `top`.
    pub fn draw(&self, canvas: &Canvas<'_>, left: i32, top: i32) -> Result<()> {
        let column_width = (WIDTH - 60 - left) / self.columns as i32;
        for (series, text) in self.labels.iter().enumerate() {
            let x = left + (series % self.columns) as i32 * column_width;
            let y = top + (series / self.columns) as i32 * Legend::ROW + Legend::ROW / 2;
            canvas.line(&[(x, y), (x + 70, y)], color(series), 5)?;
            canvas.mark((x + 35, y), series)?;
            canvas.text(text, (x + 88, y), Anchor::Start, Size::Normal)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short_and_fit_for_xml() {
        assert_eq!(label("a\u{1}b\u{ffff}\tc"), "a\u{fffd}b\u{fffd}\u{fffd}c");
        let long = label(&format!("{}{}", "x".repeat(500), "end"));
        assert!(long.chars().count() == LABEL_LEN_MAX && long.ends_with("xend") && long.contains('…'), "{long}");
        let svg = picture(100, |canvas| canvas.text("<script>&\"'", (5, 5), Anchor::Start, Size::Small)).unwrap();
        assert!(svg.contains("&lt;script&gt;&amp;") && !svg.contains("<script"), "{svg}");
        assert!(svg.starts_with("<svg width=\"1000\" height=\"50\" role=\"img\" viewBox=\"0 0 2000 100\""), "{svg}");
    }
}
