//! How time grows: with the size of a file, entries of a directory, depth of a path, requests in
//! flight and the size of each.

use crate::{
    machines,
    results::{Case, Layout, Results},
    share::Shares,
};
use anyhow::Result;
use bootshare_host::{Arch, Board, Share};
use std::{fs, path::PathBuf};

/// The board of all of them.
const BOARD: Board = Board::X86_64Q35;

/// Of the file for reads that differ in something else.
const MIB: u64 = 256;

/// How many paths are asked for: one takes too little to be measured.
const STATS: usize = 100;

/// Measures each.
pub fn run(shares: &Shares, rounds: usize) -> Result<Vec<Results>> {
    let [mut size, mut entries, mut depth, mut flight, mut chunk] = [
        ("size", "Reading a file, ms", "KiB"),
        (
            "entries",
            "Listing a directory on the console, ms",
            "entries",
        ),
        (
            "depth",
            "A hundred times `stat` of a path, ms",
            "directories",
        ),
        (
            "flight",
            "Reading 256 MiB, ms",
            "requests in flight, at most",
        ),
        ("chunk", "Reading 256 MiB, ms", "KiB a request"),
    ]
    .map(|(name, title, axis)| {
        Results::new(format!("growth-{name}"), title, Layout::Axis(axis.into()))
    });
    for round in 0..rounds {
        eprintln!("growth: round {} of {rounds}", round + 1);
        file_size(shares, &mut size)?;
        many_entries(shares, &mut entries)?;
        deep_paths(shares, &mut depth)?;
        for requests in [1, 2, 4, 8, 16] {
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

/// Reads a file of that many bytes, and adds both passes at `x`.
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

/// Milliseconds of one command in a directory of its own, start and end of the machine included.
fn command(shares: &Shares, dir: PathBuf, command: &str) -> Result<f64> {
    let mut machine = machines::ours(shares, BOARD, &format!("bootshare.cmd=\"{command}\""));
    machine.shares = vec![Share::new("growth", dir)];
    Ok(machines::run(&machine)?.duration.as_secs_f64() * 1e3)
}

fn many_entries(shares: &Shares, results: &mut Results) -> Result<()> {
    for count in [10, 100, 1000, 10_000, 100_000] {
        let dir = shares.many(count)?;
        let took = command(shares, dir, "ls /")?;
        results.add(&Case::new("", "q35"), Some(count.into()), took);
    }
    Ok(())
}

fn deep_paths(shares: &Shares, results: &mut Results) -> Result<()> {
    let dir = shares.dir(Arch::X86_64).with_file_name("deep");
    for depth in [1, 2, 4, 8, 16, 32] {
        let path = "d/".repeat(depth);
        fs::create_dir_all(dir.join(&path))?;
        let all = vec![format!("stat /{path}"); STATS].join("; ");
        let took = command(shares, dir.clone(), &all)?;
        results.add(&Case::new("", "q35"), Some(depth as f64), took);
    }
    Ok(())
}
