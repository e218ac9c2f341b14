//! Plots in SVG.

use crate::results::{Layout, Results, Series, figure};
use anyhow::{Context, Result, anyhow};
use plotters::{coord::Shift, prelude::*};
use std::path::Path;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: u32 = 900;
const HEIGHT: u32 = 480;
const MARGIN: i32 = 14;
/// The height of a row, and of the bar in it.
const ROW: i32 = 22;
const BAR: i32 = 15;
/// The heights of the title and of the panels' titles.
const HEAD: i32 = 66;
/// The width for the number after a bar.
const FIGURE: i32 = 58;

/// See [`Bars::cut`].
const CUT: f64 = 1.5;

/// Bootshare.
pub const BLUE: RGBColor = RGBColor(46, 117, 182);
/// Another form of Bootshare.
pub const LIGHT_BLUE: RGBColor = RGBColor(120, 175, 222);
/// The reference.
pub const GREY: RGBColor = RGBColor(150, 150, 150);
/// Peers.
pub const ORANGE: RGBColor = RGBColor(214, 140, 69);

/// Bars in groups, in one panel or several side by side, each with a scale of its own.
pub struct Bars {
    /// The title of the picture.
    pub title: String,
    /// The title of each panel.
    pub panels: Vec<String>,
    /// The groups, from top to bottom.
    pub groups: Vec<Group>,
    /// The value at which a line is drawn through each panel.
    pub line: Option<f64>,
    /// Bars of this colour are cut at [`CUT`] times the longest bar of the other colours.
    pub cut: Option<RGBColor>,
}

impl Bars {
    /// The number of rows: one for each heading and each bar.
    fn rows(&self) -> i32 {
        let rows: usize = (self.groups.iter()).map(|group| 1 + group.bars.len()).sum();
        rows as i32
    }
}

/// A heading with its bars.
pub struct Group {
    /// The heading.
    pub title: String,
    /// The bars, from top to bottom.
    pub bars: Vec<Bar>,
}

/// One row, with a bar in each panel.
pub struct Bar {
    /// The text before the bars.
    pub label: String,
    /// The colour of the bars.
    pub color: RGBColor,
    /// One value for each panel; `None` for no bar.
    pub values: Vec<Option<Value>>,
}

/// A median with its spread.
#[derive(Clone, Copy)]
pub struct Value {
    /// The length of the bar.
    pub median: f64,
    /// The least and the greatest value.
    pub spread: (f64, f64),
}

impl Value {
    /// The median and the spread of a series, divided by `unit`.
    pub fn of(series: &Series, unit: f64) -> Self {
        let (least, most) = series.spread();
        Self {
            median: series.median() / unit,
            spread: (least / unit, most / unit),
        }
    }
}

/// Draws `results` into `dir`: as lines if they have an axis, or else as bars.
pub fn draw(results: &Results, dir: &Path) -> Result<()> {
    let path = dir.join(format!("{}.svg", results.name));
    match &results.layout {
        Layout::Growth(axis) | Layout::Tuning(axis) => {
            lines(results, axis, &path).with_context(|| format!("cannot draw {}", path.display()))
        }
        Layout::Cases => bars(&all_bars(results), &path),
        Layout::Counts | Layout::Text(_) => Ok(()),
    }
}

/// All cases by their groups.
fn all_bars(results: &Results) -> Bars {
    let group = |title: &str| Group {
        title: title.into(),
        bars: (results.series.iter())
            .filter(|series| series.case.group == title)
            .map(|series| Bar {
                label: series.case.name.clone(),
                color: color(&series.case.name),
                values: vec![Some(Value::of(series, 1.0))],
            })
            .collect(),
    };
    Bars {
        title: results.title.clone(),
        panels: vec![String::new()],
        groups: results.groups().into_iter().map(group).collect(),
        line: None,
        cut: None,
    }
}

fn color(name: &str) -> RGBColor {
    match name {
        name if name.contains("Bootshare") => BLUE,
        name if ["Linux", "edk2", "64 KiB", "GRUB"]
            .iter()
            .any(|it| name.contains(it)) =>
        {
            ORANGE
        }
        _ => GREY,
    }
}

/// Turns an error of plotters into ours.
fn plain(error: impl std::error::Error) -> anyhow::Error {
    anyhow!("{error}")
}

/// Draws bars into the file at `path`.
pub fn bars(bars: &Bars, path: &Path) -> Result<()> {
    let height = HEAD + ROW * bars.rows() + MARGIN;
    let root = SVGBackend::new(path, (WIDTH, height as u32)).into_drawing_area();
    draw_bars(bars, &root)
        .and_then(|()| root.present().map_err(plain))
        .with_context(|| format!("cannot draw {}", path.display()))
}

fn draw_bars(bars: &Bars, root: &Area<'_>) -> Result<()> {
    // A background of its own, since pages may be light or dark.
    root.fill(&WHITE).map_err(plain)?;
    text(root, &bars.title, 17, FontStyle::Bold, (MARGIN, 12))?;
    let labels = bars.groups.iter().flat_map(|group| &group.bars);
    let longest = labels.map(|bar| bar.label.chars().count()).max();
    // An upper limit of the average width of a letter.
    let left = MARGIN + 24 + longest.unwrap_or(0) as i32 * 7;
    let panels = bars.panels.len().max(1) as i32;
    let width = (WIDTH as i32 - left - MARGIN) / panels;
    for (index, title) in bars.panels.iter().enumerate() {
        let x = left + width * index as i32;
        text(root, title, 13, FontStyle::Bold, (x, HEAD - 24))?;
        draw_panel(bars, index, (x, width - FIGURE), root)?;
    }
    let mut y = HEAD;
    for group in &bars.groups {
        text(root, &group.title, 13, FontStyle::Bold, (MARGIN, y + 3))?;
        y += ROW;
        for bar in &group.bars {
            text(
                root,
                &bar.label,
                13,
                FontStyle::Normal,
                (MARGIN + 12, y + 1),
            )?;
            y += ROW;
        }
    }
    Ok(())
}

/// Draws the bars of one panel at `x`, in this width.
fn draw_panel(bars: &Bars, index: usize, (x, width): (i32, i32), root: &Area<'_>) -> Result<()> {
    let rows = || bars.groups.iter().flat_map(|group| &group.bars);
    let top_of = |is_counted: &dyn Fn(&&Bar) -> bool| {
        let values = rows().filter(is_counted);
        let values = values.filter_map(|bar| bar.values.get(index).copied().flatten());
        values.map(|value| value.spread.1).fold(0.0, f64::max)
    };
    let uncut = top_of(&|bar| bars.cut != Some(bar.color));
    let most = top_of(&|_| true).max(bars.line.unwrap_or(0.0));
    let top = most.min(bars.cut.map_or(f64::MAX, |_| uncut * CUT));
    let place = |value: f64| x + (value.min(top) / top * f64::from(width)) as i32;
    let bottom = HEAD + ROW * bars.rows();
    if let Some(line) = bars.line {
        let line = vec![(place(line), HEAD), (place(line), bottom)];
        root.draw(&PathElement::new(line, BLACK.mix(0.4)))
            .map_err(plain)?;
    }
    let mut y = HEAD;
    for group in &bars.groups {
        y += ROW;
        for bar in &group.bars {
            if let Some(value) = bar.values.get(index).copied().flatten() {
                let end = (place(value.median), y + BAR);
                let body = Rectangle::new([(x, y), end], bar.color.filled());
                root.draw(&body).map_err(plain)?;
                let (least, most) = value.spread;
                let middle = y + BAR / 2;
                let range = vec![(place(least), middle), (place(most), middle)];
                root.draw(&PathElement::new(range, BLACK)).map_err(plain)?;
                if value.median > top {
                    let at = end.0 - 24;
                    let gap = vec![(at, y + BAR + 1), (at + 8, y - 1)];
                    root.draw(&PathElement::new(gap, WHITE.stroke_width(3)))
                        .map_err(plain)?;
                }
                let at = (place(most) + 6, y + 2);
                text(root, &figure(value.median), 13, FontStyle::Normal, at)?;
            }
            y += ROW;
        }
    }
    Ok(())
}

fn text(root: &Area<'_>, text: &str, size: i32, style: FontStyle, at: (i32, i32)) -> Result<()> {
    let style = TextStyle::from(("sans-serif", size, style).into_font());
    root.draw_text(text, &style, at).map_err(plain)
}

/// The end points of a line in proportion to x. It ends where `points` end, and starts at the value
/// `least`.
fn proportional(points: &[(f64, f64)], least: f64) -> Option<[(f64, f64); 2]> {
    let (&(first, _), &(x, y)) = points.first().zip(points.last())?;
    let start = first.max(x * least / y);
    Some([(start, y * start / x), (x, y)])
}

/// Draws lines with both axes logarithmic; a thin line shows linear growth.
fn lines(results: &Results, axis: &str, path: &Path) -> Result<()> {
    let root = SVGBackend::new(path, (WIDTH, HEIGHT)).into_drawing_area();
    root.fill(&WHITE).map_err(plain)?;
    let series = &results.series;
    let xs = || series.iter().filter_map(|series| series.x);
    let (first, last) = (xs().fold(f64::MAX, f64::min), xs().fold(0.0, f64::max));
    let spreads = || series.iter().map(Series::spread);
    let least = spreads().map(|spread| spread.0).fold(f64::MAX, f64::min);
    let most = spreads().map(|spread| spread.1).fold(0.0, f64::max);
    // Start at a power of ten, where the axis has its first label.
    let bottom = 10_f64.powf((least * 0.8).log10().floor());
    let is_growth = matches!(results.layout, Layout::Growth(_));
    let note = if is_growth {
        " (thin: in proportion)"
    } else {
        ""
    };
    let title = format!("{}{note}", results.title);
    let mut chart = ChartBuilder::on(&root)
        .caption(&title, ("sans-serif", 18).into_font())
        .margin(MARGIN)
        .x_label_area_size(46)
        .y_label_area_size(64)
        .build_cartesian_2d(
            (first * 0.8..last * 1.25).log_scale(),
            (bottom..most * 1.6).log_scale(),
        )
        .map_err(plain)?;
    chart
        .configure_mesh()
        .x_desc(axis)
        .x_label_formatter(&|x| format!("{x}"))
        .y_label_formatter(&|y| format!("{y}"))
        .label_style(("sans-serif", 13).into_font())
        .max_light_lines(0)
        .y_labels(12)
        .draw()
        .map_err(plain)?;
    let names = results.names();
    for (number, name) in names.iter().enumerate() {
        let color = [BLUE, ORANGE, GREY][number % 3];
        let points = results.points(name);
        if is_growth {
            let line = proportional(&points, bottom).into_iter().flatten();
            chart
                .draw_series(LineSeries::new(line, BLACK.mix(0.3)))
                .map_err(plain)?;
        }
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)).point_size(3))
            .map_err(plain)?
            .label(*name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], color));
        let bars = results.of_name(name).filter_map(|series| {
            let (x, (least, most)) = (series.x?, series.spread());
            let line = color.stroke_width(1);
            Some(ErrorBar::new_vertical(
                x,
                least,
                series.median(),
                most,
                line,
                6,
            ))
        });
        chart.draw_series(bars).map_err(plain)?;
    }
    if names.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .label_font(("sans-serif", 13).into_font())
            .border_style(BLACK.mix(0.3))
            .background_style(WHITE)
            .draw()
            .map_err(plain)?;
    }
    root.present().map_err(plain)
}
