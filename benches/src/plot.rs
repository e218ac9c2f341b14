//! Plots, as SVG.

use crate::results::{Results, Series};
use anyhow::{Context, Result};
use plotters::prelude::*;
use std::{collections::BTreeSet, path::Path};

const SIZE: (u32, u32) = (900, 480);
const LABELS: u32 = 360;

/// Draws `results` into `dir`, as bars or, where there is an axis, as lines.
pub fn draw(results: &Results, dir: &Path) -> Result<()> {
    let path = dir.join(format!("{}.svg", results.name));
    let drawn = match &results.axis {
        Some(axis) => lines(results, axis, &path),
        None => bars(results, &path),
    };
    drawn.with_context(|| format!("cannot draw {}", path.display()))
}

fn greatest(series: &[Series]) -> f64 {
    let tops = series.iter().map(|series| series.spread().1);
    tops.fold(0.0, f64::max)
}

fn bars(results: &Results, path: &Path) -> Result<()> {
    let rows = results.series.len() as u32;
    let root = SVGBackend::new(path, (SIZE.0, 70 + 24 * rows)).into_drawing_area();
    let error = |error: DrawingAreaErrorKind<_>| anyhow::anyhow!("{error}");
    root.fill(&WHITE).map_err(error)?;
    let top = greatest(&results.series);
    let scale = f64::from(SIZE.0 - LABELS - 80) / top;
    let title = TextStyle::from(("sans-serif", 18).into_font());
    root.draw_text(&results.title, &title, (10, 12))
        .map_err(error)?;
    let label = TextStyle::from(("sans-serif", 13).into_font());
    for (row, series) in results.series.iter().enumerate() {
        let y = 50 + 24 * row as i32;
        let x = |value: f64| LABELS as i32 + (value * scale) as i32;
        let (least, most) = series.spread();
        let ours = !["host", "Linux", "QEMU"]
            .iter()
            .any(|peer| series.case.contains(peer));
        let color = if ours {
            RGBColor(46, 117, 182)
        } else {
            RGBColor(160, 160, 160)
        };
        root.draw_text(&series.case, &label, (10, y + 3))
            .map_err(error)?;
        let bar = Rectangle::new([(x(0.0), y), (x(series.median()), y + 16)], color.filled());
        root.draw(&bar).map_err(error)?;
        let range = PathElement::new(vec![(x(least), y + 8), (x(most), y + 8)], BLACK);
        root.draw(&range).map_err(error)?;
        let text = format!("{:.0}", series.median());
        root.draw_text(&text, &label, (x(most) + 6, y + 3))
            .map_err(error)?;
    }
    root.present().map_err(error)
}

fn lines(results: &Results, axis: &str, path: &Path) -> Result<()> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    let error = |error: DrawingAreaErrorKind<_>| anyhow::anyhow!("{error}");
    root.fill(&WHITE).map_err(error)?;
    let xs = || results.series.iter().filter_map(|series| series.x);
    let (first, last) = (xs().fold(f64::MAX, f64::min), xs().fold(0.0, f64::max));
    let mut chart = ChartBuilder::on(&root)
        .caption(&results.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(
            (first..last).log_scale(),
            0.0..greatest(&results.series) * 1.05,
        )
        .map_err(error)?;
    chart.configure_mesh().x_desc(axis).draw().map_err(error)?;
    let cases: BTreeSet<&str> = results
        .series
        .iter()
        .map(|series| series.case.as_str())
        .collect();
    for (number, case) in cases.into_iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        let of_case = || results.series.iter().filter(|series| series.case == case);
        let points = of_case().filter_map(|series| Some((series.x?, series.median())));
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)).point_size(3))
            .map_err(error)?
            .label(case)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], color));
        let bars = of_case().filter_map(|series| {
            let (least, most) = series.spread();
            Some(ErrorBar::new_vertical(
                series.x?,
                least,
                series.median(),
                most,
                color,
                6,
            ))
        });
        chart.draw_series(bars).map_err(error)?;
    }
    chart
        .configure_series_labels()
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()
        .map_err(error)?;
    root.present().map_err(error)
}
