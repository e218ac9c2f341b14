//! The two pictures for the README: reads and boots.

use crate::{
    boots, disk, efi,
    plot::{self, BLUE, Bar, Bars, GREY, Group, LIGHT_BLUE, ORANGE, Value},
    reads,
    results::{Case, Results},
};
use anyhow::Result;
use plotters::style::RGBColor;
use std::path::Path;

/// Draws those pictures into `dir` whose suites were run.
pub fn draw(all: &[Results], dir: &Path) -> Result<()> {
    let find = |name: &str| all.iter().find(|results| results.name == name);
    if let (Some(small), Some(large)) = (find("boots-small"), find("boots-large")) {
        plot::bars(&boots(small, large), &dir.join("bench-boots.svg"))?;
    }
    if let Some(results) = find("reads-256") {
        plot::bars(&reads(results), &dir.join("bench-reads.svg"))?;
    }
    Ok(())
}

fn boots(small: &Results, large: &Results) -> Bars {
    let group = |board: &str| {
        let bar = |(name, color): (&str, RGBColor)| {
            let case = Case::new(board, name);
            let value = |from: &Results| from.find(&case).map(|series| Value::of(series, 1.0));
            let values = vec![value(small), value(large)];
            values.iter().any(Option::is_some).then(|| Bar {
                label: name.into(),
                color,
                values,
            })
        };
        let all = [
            (boots::QEMU, GREY),
            (boots::OURS, BLUE),
            (boots::OURS_AS_ROM, LIGHT_BLUE),
            (efi::NAME, ORANGE),
            (disk::NAME, ORANGE),
        ];
        Group {
            title: board.into(),
            bars: all.into_iter().filter_map(bar).collect(),
        }
    };
    Bars {
        title: "From QEMU's start to the kernel's first line, ms (less is better)".into(),
        panels: vec!["a small initrd".into(), "an initrd of 256 MiB".into()],
        groups: small.groups().into_iter().map(group).collect(),
        line: None,
        cut: Some(ORANGE),
    }
}

/// Each speed, relative to that of a process of the host with as many threads.
fn reads(results: &Results) -> Bars {
    let group = |board: &str| {
        let bar = |label: &str, color, cases: [Option<Case>; 2]| {
            let value = |case: &Case| {
                let series = results.find(case)?;
                let limit = results.find(series.reference.as_ref()?)?.median();
                Some(Value::of(series, limit))
            };
            let values = cases.map(|case| case.as_ref().and_then(value)).into();
            Bar {
                label: label.into(),
                color,
                values,
            }
        };
        let both = |of: fn(&str, &str) -> Case| ["warm", "cold"].map(|how| Some(of(board, how)));
        let bars = [
            bar("Bootshare", BLUE, both(reads::ours)),
            bar(
                "Hermit's way: 64 KiB, one in flight",
                ORANGE,
                both(reads::hermit),
            ),
            bar(
                "Linux, O_DIRECT",
                ORANGE,
                [Some(reads::linux_direct(board)), None],
            ),
            bar(
                "Linux, buffered",
                ORANGE,
                [Some(reads::linux_buffered(board)), None],
            ),
        ];
        Group {
            title: board.into(),
            bars: bars
                .into_iter()
                .filter(|bar| bar.values.iter().any(Option::is_some))
                .collect(),
        }
    };
    Bars {
        title:
            "Reading 256 MiB, beside what a process of the host reaches (the line; more is better)"
                .into(),
        panels: vec![
            "into the same memory again".into(),
            "into memory never touched".into(),
        ],
        groups: reads::BOARDS.map(|(name, _)| group(name)).into(),
        line: Some(1.0),
        cut: None,
    }
}
