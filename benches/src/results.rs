//! Results: series of values, their medians and ratios, as tables and as raw numbers.

use anyhow::{Context, Result};
use std::{fmt::Write, path::Path};

/// An exponent up to this value counts as linear growth, because of noise.
const LINEAR: f64 = 1.15;

/// The case to which a value belongs, and its group, such as a board.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Case {
    /// The group in tables and pictures.
    pub group: String,
    /// The name of the case in its group.
    pub name: String,
}

impl Case {
    /// The case `name` of `group`.
    pub fn new(group: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            name: name.into(),
        }
    }
}

/// The values of one case.
#[derive(Clone, Debug)]
pub struct Series {
    /// The case.
    pub case: Case,
    /// The place on the axis, in suites with an axis.
    pub x: Option<f64>,
    /// The case to which this one's ratio is computed.
    pub reference: Option<Case>,
    /// The values, one for each round.
    pub values: Vec<f64>,
}

impl Series {
    /// The median.
    pub fn median(&self) -> f64 {
        median(self.values.clone())
    }

    /// The least and the greatest value.
    pub fn spread(&self) -> (f64, f64) {
        let fold = |f: fn(f64, f64) -> f64| self.values.iter().copied().fold(f64::NAN, f);
        (fold(f64::min), fold(f64::max))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// An aim for the ratio of two cases.
#[derive(Clone, Debug)]
pub struct Aim {
    case: Case,
    reference: Case,
    bound: Bound,
}

/// The bound of an aim.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// At least this value.
    AtLeast(f64),
    /// At most this value.
    AtMost(f64),
}

impl Bound {
    fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(bound) => ratio >= bound,
            Self::AtMost(bound) => ratio <= bound,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!("at least {bound}"),
            Self::AtMost(bound) => format!("at most {bound}"),
        }
    }
}

/// How results are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Cases side by side, with ratios.
    Cases,
    /// Times along an axis of this name; the work grows along the axis.
    Growth(String),
    /// Times along an axis of this name; the work is the same.
    Tuning(String),
    /// Exact numbers: the groups are columns, the cases rows.
    Counts,
    /// The output of another program.
    Text(String),
}

/// The results of one suite.
#[derive(Clone, Debug)]
pub struct Results {
    /// A short name for files.
    pub name: String,
    /// The title, with the unit.
    pub title: String,
    /// The layout.
    pub layout: Layout,
    /// The series, one for each case.
    pub series: Vec<Series>,
    /// Remarks for the reader.
    pub note: String,
    aims: Vec<Aim>,
}

impl Results {
    /// Results without values.
    pub fn new(name: impl Into<String>, title: impl Into<String>, layout: Layout) -> Self {
        Self {
            name: name.into(),
            title: title.into(),
            layout,
            series: Vec::new(),
            note: String::new(),
            aims: Vec::new(),
        }
    }

    /// Adds a value to a case; a new case is added at the end.
    pub fn add(&mut self, case: &Case, x: Option<f64>, value: f64) {
        let same = |series: &&mut Series| series.case == *case && series.x == x;
        match self.series.iter_mut().find(same) {
            Some(series) => series.values.push(value),
            None => self.series.push(Series {
                case: case.clone(),
                x,
                reference: None,
                values: vec![value],
            }),
        }
    }

    /// Shows the ratio of `case` to `reference`.
    pub fn compare(&mut self, case: &Case, reference: &Case) {
        for series in &mut self.series {
            if series.case == *case {
                series.reference = Some(reference.clone());
            }
        }
    }

    /// Adds an aim for the ratio of `case` to `reference`.
    pub fn aim(&mut self, case: Case, reference: Case, bound: Bound) {
        self.aims.push(Aim {
            case,
            reference,
            bound,
        });
    }

    /// The series of a case.
    pub fn find(&self, case: &Case) -> Option<&Series> {
        self.series.iter().find(|series| series.case == *case)
    }

    /// The median of the ratios of `case` to `reference` in each round, because a disturbance of the
    /// machine affects both values of a round. If one of them was not measured in each round, the ratio
    /// of their medians.
    pub fn ratio(&self, case: &Case, reference: &Case) -> Option<f64> {
        let [case, reference] = [self.find(case)?, self.find(reference)?];
        if case.values.len() != reference.values.len() {
            return Some(case.median() / reference.median());
        }
        let rounds = case.values.iter().zip(&reference.values);
        Some(median(rounds.map(|(value, to)| value / to).collect()))
    }

    /// The groups, in the order of their first value.
    pub fn groups(&self) -> Vec<&str> {
        distinct(self.series.iter().map(|series| series.case.group.as_str()))
    }

    /// The names of the cases, in the order of their first value.
    pub fn names(&self) -> Vec<&str> {
        distinct(self.series.iter().map(|series| series.case.name.as_str()))
    }

    /// The results as Markdown tables.
    pub fn table(&self) -> String {
        let body = match &self.layout {
            Layout::Cases => self.ratios() + &self.verdicts(),
            Layout::Growth(axis) => self.along(axis) + &self.exponents(axis),
            Layout::Tuning(axis) => self.along(axis) + &self.fastest(axis),
            Layout::Counts => self.counts(),
            Layout::Text(text) => text.clone(),
        };
        let mut text = format!("\n### {}\n\n{body}", self.title);
        if !self.note.is_empty() {
            _ = writeln!(text, "\n{}", self.note);
        }
        text
    }

    fn ratios(&self) -> String {
        let mut text = "| | | median | least | most | ratio | to |\n\
                        |---|---|--:|--:|--:|--:|---|\n"
            .to_owned();
        for series in &self.series {
            let Case { group, name } = &series.case;
            let (least, most) = series.spread();
            let [middle, least, most] = [series.median(), least, most].map(figure);
            let reference = series.reference.as_ref();
            let ratio = reference.and_then(|to| self.ratio(&series.case, to));
            let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            let to = reference.map_or_else(String::new, |to| full(to, group));
            _ = writeln!(
                text,
                "| {group} | {name} | {middle} | {least} | {most} | {ratio} | {to} |"
            );
        }
        text
    }

    fn verdicts(&self) -> String {
        let mut text = String::new();
        for Aim {
            case,
            reference,
            bound,
        } in &self.aims
        {
            let Some(ratio) = self.ratio(case, reference) else {
                continue;
            };
            let verdict = if bound.is_met(ratio) { "yes" } else { "no" };
            let (aim, of) = (bound.text(), full(case, ""));
            let to = full(reference, &case.group);
            _ = writeln!(text, "| {of} to {to} | {aim} | {ratio:.2} | {verdict} |");
        }
        if text.is_empty() {
            return text;
        }
        format!("\n| aim: ratio of | | is | met |\n|---|---|--:|---|\n{text}")
    }

    /// A table along the axis, with each value's ratio to the first one.
    fn along(&self, axis: &str) -> String {
        let mut text =
            format!("| | {axis} | median | least | most | times |\n|---|--:|--:|--:|--:|--:|\n");
        for name in self.names() {
            let points = self.points(name);
            for (series, (x, median)) in self.of_name(name).zip(&points) {
                let (least, most) = series.spread();
                let [middle, least, most] = [*median, least, most].map(figure);
                let times = figure(median / points[0].1);
                _ = writeln!(
                    text,
                    "| {name} | {x} | {middle} | {least} | {most} | {times} |"
                );
            }
        }
        text.push('\n');
        text
    }

    fn exponents(&self, axis: &str) -> String {
        let line = |name: &str| {
            let slope = slope(&self.points(name));
            let verdict = if slope <= LINEAR {
                "linear or better"
            } else {
                "MORE THAN LINEAR"
            };
            format!("- {name}: in the end as {axis}^{slope:.2}, {verdict}\n")
        };
        self.names().into_iter().map(line).collect()
    }

    fn fastest(&self, axis: &str) -> String {
        let line = |name: &str| {
            let points = self.points(name);
            let best = points.iter().min_by(|a, b| a.1.total_cmp(&b.1));
            best.map(|(x, _)| format!("- {name}: fastest with {x} {axis}\n"))
        };
        self.names().into_iter().filter_map(line).collect()
    }

    /// The series of the cases with this name, in all groups.
    pub fn of_name(&self, name: &str) -> impl Iterator<Item = &Series> {
        let is_it = move |series: &&Series| series.case.name == name;
        self.series.iter().filter(is_it)
    }

    /// The medians of the cases with this name, along the axis.
    pub fn points(&self, name: &str) -> Vec<(f64, f64)> {
        self.of_name(name)
            .filter_map(|series| Some((series.x?, series.median())))
            .collect()
    }

    fn counts(&self) -> String {
        let groups = self.groups();
        let mut text = format!("| | {} |\n|---|", groups.join(" | "));
        text.push_str(&"--:|".repeat(groups.len()));
        text.push('\n');
        for name in self.names() {
            _ = write!(text, "| {name} |");
            for group in &groups {
                let series = self.find(&Case::new(*group, name));
                let count = series.map_or(0.0, Series::median);
                _ = write!(text, " {count} |");
            }
            text.push('\n');
        }
        text
    }

    /// Writes all values of `all` to `path`.
    pub fn write_csv(all: &[Self], path: &Path) -> Result<()> {
        let context = || format!("cannot write {}", path.display());
        let mut out = csv::Writer::from_path(path).with_context(context)?;
        out.write_record(["suite", "title", "group", "case", "x", "round", "value"])?;
        for results in all {
            for series in &results.series {
                let Case { group, name } = &series.case;
                let x = series.x.map(|x| x.to_string()).unwrap_or_default();
                for (round, value) in series.values.iter().enumerate() {
                    let (round, value) = (round.to_string(), value.to_string());
                    let (suite, title) = (&results.name, &results.title);
                    out.write_record([suite, title, group, name, &x, &round, &value])?;
                }
            }
        }
        out.flush().with_context(context)
    }
}

/// The name of a case, with its group if that is not `here`.
fn full(case: &Case, here: &str) -> String {
    if case.group == here {
        case.name.clone()
    } else {
        format!("{}: {}", case.group, case.name)
    }
}

/// The exponent of the growth of y in the upper half of the points, where constant costs count least: the
/// slope of a least-squares line through the logarithms of x and y.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let upper = &points[points.len() / 2..];
    let logs = || upper.iter().map(|(x, y)| (x.ln(), y.ln()));
    let count = upper.len() as f64;
    let mean_x = logs().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = logs().map(|(_, y)| y).sum::<f64>() / count;
    let both: f64 = logs().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let square: f64 = logs().map(|(x, _)| (x - mean_x).powi(2)).sum();
    both / square
}

fn distinct<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found = Vec::new();
    for one in all {
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

/// The number with three digits, or with all digits before the point.
pub fn figure(value: f64) -> String {
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

    fn two_cases() -> (Results, Case, Case) {
        let mut results = Results::new("t", "Title, ms", Layout::Cases);
        let (a, b) = (Case::new("q35", "a"), Case::new("host", "b"));
        for value in [3.0, 1.0, 200.0] {
            results.add(&a, None, value);
        }
        results.add(&b, None, 6.0);
        results.compare(&a, &b);
        (results, a, b)
    }

    #[test]
    fn a_table_has_medians_and_says_what_a_ratio_is_to() {
        let table = two_cases().0.table();
        for line in [
            "| q35 | a | 3.00 | 1.00 | 200 | 0.50 | host: b |",
            "| host | b | 6.00 | 6.00 | 6.00 |  |  |",
        ] {
            assert!(table.contains(line), "{table}");
        }
    }

    #[test]
    fn a_ratio_is_the_median_of_those_of_the_rounds() {
        let mut results = Results::new("t", "Title, ms", Layout::Cases);
        let [a, b] = ["a", "b"].map(|name| Case::new("", name));
        // The machine is slow in the second round. The ratio of the medians is 1.
        for (ours, theirs) in [(1.0, 2.0), (50.0, 100.0), (2.0, 1.0)] {
            results.add(&a, None, ours);
            results.add(&b, None, theirs);
        }
        assert_eq!(results.ratio(&a, &b), Some(0.5));
    }

    #[test]
    fn an_aim_is_met_on_its_side_only() {
        let (mut results, a, b) = two_cases();
        results.aim(a.clone(), b.clone(), Bound::AtLeast(0.9));
        results.aim(b, a, Bound::AtLeast(2.0));
        let table = results.table();
        for line in [
            "| q35: a to host: b | at least 0.9 | 0.50 | no |",
            "| host: b to q35: a | at least 2 | 2.00 | yes |",
        ] {
            assert!(table.contains(line), "{table}");
        }
    }

    #[test]
    fn growth_that_is_more_than_linear_is_told() {
        let table = |power: i32| {
            let mut results = Results::new("t", "Title, ms", Layout::Growth("n".into()));
            for x in [1.0_f64, 10.0, 100.0, 1000.0] {
                results.add(&Case::new("", "a"), Some(x), x.powi(power));
            }
            results.table()
        };
        let (linear, square) = (table(1), table(2));
        assert!(
            linear.contains("| a | 100 | 100 | 100 | 100 | 100 |"),
            "{linear}"
        );
        assert!(linear.contains("n^1.00, linear or better"), "{linear}");
        assert!(square.contains("n^2.00, MORE THAN LINEAR"), "{square}");
    }

    #[test]
    fn counts_are_a_matrix() {
        let mut results = Results::new("t", "Title", Layout::Counts);
        results.add(&Case::new("boot", "READ"), None, 20.0);
        results.add(&Case::new("ls", "LOOKUP"), None, 1.0);
        let table = results.table();
        assert!(
            table.contains("| | boot | ls |\n|---|--:|--:|\n"),
            "{table}"
        );
        assert!(
            table.contains("| READ | 20 | 0 |\n| LOOKUP | 0 | 1 |"),
            "{table}"
        );
    }

    #[test]
    fn an_even_number_of_values_has_its_median_between_two() {
        let series = Series {
            case: Case::default(),
            x: None,
            reference: None,
            values: vec![4.0, 1.0, 2.0, 3.0],
        };
        assert!((series.median() - 2.5).abs() < 1e-9);
    }
}
