//! How the time grows with the size of a file, the entries of a directory, the depth of a path, the
//! requests in flight and the size of a request.

use crate::{
    machines,
    results::{Case, Layout, Results},
    share::Shares,
    trace,
};
use anyhow::{Context, Result};
use bootshare_host::{Arch, Board, Share};
use std::{fs, os::unix::fs::symlink, path::PathBuf};

/// The board of all these measurements.
const BOARD: Board = Board::X86_64Q35;

/// The size of the file where another parameter than the size varies.
const MIB: u64 = 256;

/// The number of paths in one measurement: a single one takes too short a time.
const STATS: usize = 100;

/// Takes all these measurements.
pub fn run(shares: &Shares, rounds: usize) -> Result<Vec<Results>> {
    let of = |name, title, layout| Results::new(format!("growth-{name}"), title, layout);
    let grows = |axis: &str| Layout::Growth(axis.into());
    let tunes = |axis: &str| Layout::Tuning(axis.into());
    let mut size = of("size", "Reading a file, ms", grows("KiB"));
    let title = "Listing a directory on the console, ms";
    let mut entries = of("entries", title, grows("entries"));
    let title = "A hundred times `stat` of a path, ms";
    let mut depth = of("depth", title, grows("directories"));
    let title = "Reading 256 MiB, ms";
    let mut flight = of("flight", title, tunes("requests in flight"));
    let mut chunk = of("chunk", title, tunes("KiB a request"));
    size.note =
        "A file that fits the host's caches is copied faster than one that does not.".into();
    entries.note = "Most of it is the output, a character at a time.".into();
    depth.note =
        "`stat` looks each path up twice: for its attributes and for what it links to.".into();
    for round in 0..rounds {
        eprintln!("growth: round {} of {rounds}", round + 1);
        file_size(shares, &mut size)?;
        many_entries(shares, &mut entries)?;
        deep_paths(shares, &mut depth)?;
        for requests in [1, 2, 4, 8, 16, 21] {
            let options = format!("bootshare.depth={requests}");
            read(
                shares,
                &options,
                f64::from(requests),
                MIB << 20,
                &mut flight,
            )?;
        }
        for exponent in 16..=24 {
            let bytes = 1_u32 << exponent;
            let options = format!("bootshare.chunk-size={bytes}");
            read(
                shares,
                &options,
                f64::from(bytes >> 10),
                MIB << 20,
                &mut chunk,
            )?;
        }
    }
    let mut all = vec![size, entries, depth, flight, chunk];
    for results in &mut all {
        results.series.sort_by(|a, b| a.case.name.cmp(&b.case.name));
    }
    Ok(all)
}

/// Reads a file of `bytes` bytes and adds the times of both passes at `x`.
fn read(shares: &Shares, options: &str, x: f64, bytes: u64, results: &mut Results) -> Result<()> {
    let file = shares.file_of(Arch::X86_64, bytes)?;
    let options = format!("{options} bootshare.cmd=\"read-bench {file}\"");
    let mut machine = machines::ours(shares, BOARD, &options);
    machine.memory_mib = (bytes >> 20) as u32 + 256;
    let speeds = machines::passes(&machines::run(&machine)?)?;
    for (how, speed) in ["cold", "warm"].iter().zip(speeds) {
        let ms = bytes as f64 / f64::from(1 << 20) / speed * 1e3;
        results.add(&Case::new("", *how), Some(x), ms);
    }
    Ok(())
}

fn file_size(shares: &Shares, results: &mut Results) -> Result<()> {
    for exponent in (10..=30).step_by(2) {
        let bytes: u64 = 1 << exponent;
        read(shares, "", bytes as f64 / 1024.0, bytes, results)?;
    }
    Ok(())
}

/// The time in ms of one command in a directory of its own, from its first request to its last one in the
/// server's trace: the start and the end of the machine are not counted.
fn command(shares: &Shares, dir: PathBuf, command: &str) -> Result<f64> {
    let mut machine = machines::ours(shares, BOARD, &format!("bootshare.cmd=\"{command}\""));
    machine.shares = vec![Share::new("growth", dir)];
    let path = shares.dir(Arch::X86_64).with_file_name("trace");
    let requests = trace::run(&mut machine, &path)?;
    let (first, last) = requests.first().zip(requests.last()).context("a trace")?;
    Ok(last.end - first.at)
}

fn many_entries(shares: &Shares, results: &mut Results) -> Result<()> {
    for count in [10, 100, 1000, 10_000, 100_000] {
        let dir = shares.many(count)?;
        let took = command(shares, dir, "ls /")?;
        results.add(&Case::new("", "q35"), Some(count.into()), took);
    }
    Ok(())
}

/// Uses short symbolic links to the paths, because a PC's command line has little room.
fn deep_paths(shares: &Shares, results: &mut Results) -> Result<()> {
    let dir = shares.dir(Arch::X86_64).with_file_name("deep");
    for depth in [1, 2, 4, 8, 16, 32] {
        let path = "d/".repeat(depth);
        fs::create_dir_all(dir.join(&path))?;
        let link = dir.join(depth.to_string());
        if !link.exists() {
            symlink(&path, &link).with_context(|| format!("cannot make {}", link.display()))?;
        }
        let all = vec![format!("stat /{depth}/"); STATS].join(";");
        let took = command(shares, dir.clone(), &all)?;
        results.add(&Case::new("", "q35"), Some(depth as f64), took);
    }
    Ok(())
}
