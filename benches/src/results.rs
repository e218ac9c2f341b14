//! What was measured: series of values, their medians and ratios, as tables and as raw numbers.

use anyhow::{Context, Result};
use std::{fmt::Write, path::Path};

/// Values of one case, one a round.
#[derive(Clone, Debug)]
pub struct Series {
    /// What was measured.
    pub case: String,
    /// Where on the axis it belongs, in suites that have one.
    pub x: Option<f64>,
    /// One a round.
    pub values: Vec<f64>,
}

impl Series {
    /// The middle value.
    pub fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    /// The least and the greatest.
    pub fn spread(&self) -> (f64, f64) {
        let fold = |f: fn(f64, f64) -> f64| self.values.iter().copied().fold(f64::NAN, f);
        (fold(f64::min), fold(f64::max))
    }
}

/// What a suite found.
#[derive(Clone, Debug)]
pub struct Results {
    /// A short name, for files.
    pub name: String,
    /// What it is, with the unit.
    pub title: String,
    /// What the x axis is, if there is one.
    pub axis: Option<String>,
    /// The case that ratios are of; the first one if there is none of this name.
    pub reference: String,
    /// Case by case.
    pub series: Vec<Series>,
}

impl Results {
    /// Nothing yet.
    pub fn new(name: impl Into<String>, title: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            title: title.into(),
            axis: None,
            reference: String::new(),
            series: Vec::new(),
        }
    }

    /// Adds a value to a case, a new one at the end.
    pub fn add(&mut self, case: &str, x: Option<f64>, value: f64) {
        let same = |series: &&mut Series| series.case == case && series.x == x;
        match self.series.iter_mut().find(same) {
            Some(series) => series.values.push(value),
            None => self.series.push(Series {
                case: case.into(),
                x,
                values: vec![value],
            }),
        }
    }

    /// As a table of Markdown.
    pub fn table(&self) -> String {
        let reference = self
            .series
            .iter()
            .find(|series| series.case == self.reference);
        let reference = reference
            .or(self.series.first())
            .map_or(f64::NAN, Series::median);
        let mut text = format!("\n### {}\n\n", self.title);
        match &self.axis {
            Some(axis) => {
                _ = writeln!(
                    text,
                    "| case | {axis} | median | least | most |\n|---|--:|--:|--:|--:|"
                )
            }
            None => {
                _ = writeln!(
                    text,
                    "| case | median | least | most | ratio |\n|---|--:|--:|--:|--:|"
                )
            }
        }
        for series in &self.series {
            let (least, most) = series.spread();
            let median = series.median();
            let [middle, least, most] = [median, least, most].map(figure);
            _ = match series.x {
                Some(x) => writeln!(
                    text,
                    "| {} | {x} | {middle} | {least} | {most} |",
                    series.case
                ),
                None => {
                    let ratio = median / reference;
                    writeln!(
                        text,
                        "| {} | {middle} | {least} | {most} | {ratio:.2} |",
                        series.case
                    )
                }
            };
        }
        text
    }

    /// Writes every value of `all` to `path`.
    pub fn write_csv(all: &[Self], path: &Path) -> Result<()> {
        let context = || format!("cannot write {}", path.display());
        let mut out = csv::Writer::from_path(path).with_context(context)?;
        out.write_record(["suite", "title", "case", "x", "round", "value"])?;
        for results in all {
            for series in &results.series {
                let x = series.x.map(|x| x.to_string()).unwrap_or_default();
                for (round, value) in series.values.iter().enumerate() {
                    let (round, value) = (round.to_string(), value.to_string());
                    let record = [
                        &results.name,
                        &results.title,
                        &series.case,
                        &x,
                        &round,
                        &value,
                    ];
                    out.write_record(record)?;
                }
            }
        }
        out.flush().with_context(context)
    }
}

/// Three digits, or all before the point.
fn figure(value: f64) -> String {
    let digits = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_medians_and_ratios_of_the_reference() {
        let mut results = Results::new("t", "Title, ms");
        results.reference = "b".into();
        for value in [3.0, 1.0, 200.0] {
            results.add("a", None, value);
        }
        results.add("b", None, 6.0);
        let table = results.table();
        assert!(
            table.contains("| a | 3.00 | 1.00 | 200 | 0.50 |"),
            "{table}"
        );
        assert!(
            table.contains("| b | 6.00 | 6.00 | 6.00 | 1.00 |"),
            "{table}"
        );
    }

    #[test]
    fn an_even_number_of_values_has_its_median_between_two() {
        let series = Series {
            case: String::new(),
            x: None,
            values: vec![4.0, 1.0, 2.0, 3.0],
        };
        assert!((series.median() - 2.5).abs() < 1e-9);
    }
}
