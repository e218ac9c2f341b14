//! How time grows: with the size of a file, entries of a directory, depth of a path, requests in
//! flight and the size of each.

use crate::{machines, results::Results, share::Shares};
use anyhow::{Context, Result};
use bootshare_host::{Arch, Board, Report, Share};
use std::{fs, path::PathBuf, time::Duration};

/// The board of all of them.
const BOARD: Board = Board::X86_64Q35;

/// Measures each.
pub fn run(shares: &Shares, rounds: usize) -> Result<Vec<Results>> {
    Ok(vec![
        file_size(shares, rounds)?,
        entries(shares, rounds)?,
        depth(shares, rounds)?,
        in_flight(shares, rounds)?,
        chunk_size(shares, rounds)?,
    ])
}

fn results(name: &str, title: &str, axis: &str) -> Results {
    let mut results = Results::new(name, title);
    results.axis = Some(axis.into());
    results
}

/// Milliseconds of the server's side of a run: from the first request that counts to the last.
fn bench(shares: &Shares, options: &str, file: &str, mib: u64) -> Result<Report> {
    let options = format!("{options} bootshare.cmd=\"read-bench {file}\"");
    let mut machine = machines::ours(shares, BOARD, &options);
    machine.memory_mib = mib as u32 + 256;
    machines::run(&machine)
}

fn file_size(shares: &Shares, rounds: usize) -> Result<Results> {
    let mut results = results("growth-size", "Reading a file, warm, ms", "KiB");
    for _ in 0..rounds {
        for exponent in (10..=30).step_by(2) {
            let bytes: u64 = 1 << exponent;
            let file = shares.file_of(Arch::X86_64, bytes)?;
            let report = bench(shares, "", &file, bytes >> 20)?;
            let mib = bytes as f64 / f64::from(1 << 20);
            let ms = mib / machines::speed(&report, "again: ")? * 1e3;
            results.add("q35", Some(bytes as f64 / 1024.0), ms);
        }
    }
    Ok(results)
}

fn in_flight(shares: &Shares, rounds: usize) -> Result<Results> {
    let mut results = results(
        "growth-flight",
        "Reading 256 MiB, MiB/s",
        "requests in flight",
    );
    let file = shares.file(Arch::X86_64, 256)?;
    for _ in 0..rounds {
        for depth in [1, 2, 4, 8, 12, 16, 21] {
            let report = bench(shares, &format!("bootshare.depth={depth}"), &file, 256)?;
            for (pass, case) in [("first: ", "cold"), ("again: ", "warm")] {
                results.add(
                    case,
                    Some(f64::from(depth)),
                    machines::speed(&report, pass)?,
                );
            }
        }
    }
    results.series.sort_by(|a, b| a.case.cmp(&b.case));
    Ok(results)
}

fn chunk_size(shares: &Shares, rounds: usize) -> Result<Results> {
    let mut results = results("growth-chunk", "Reading 256 MiB, MiB/s", "KiB a request");
    let file = shares.file(Arch::X86_64, 256)?;
    for _ in 0..rounds {
        for exponent in 16..=24 {
            let bytes: u32 = 1 << exponent;
            let report = bench(shares, &format!("bootshare.chunk-size={bytes}"), &file, 256)?;
            for (pass, case) in [("first: ", "cold"), ("again: ", "warm")] {
                let kib = f64::from(bytes >> 10);
                results.add(case, Some(kib), machines::speed(&report, pass)?);
            }
        }
    }
    results.series.sort_by(|a, b| a.case.cmp(&b.case));
    Ok(results)
}

/// Time of one command in a directory of its own, less that of a machine that does nothing.
fn command(shares: &Shares, dir: PathBuf, command: &str) -> Result<Duration> {
    let mut machine = machines::ours(shares, BOARD, &format!("bootshare.cmd=\"{command}\""));
    machine.shares = vec![Share::new("growth", dir)];
    Ok(machines::run(&machine)?.duration)
}

fn entries(shares: &Shares, rounds: usize) -> Result<Results> {
    let mut results = results(
        "growth-entries",
        "A machine that lists a directory, ms",
        "entries",
    );
    for _ in 0..rounds {
        for count in [10, 100, 1000, 10_000, 100_000_u32] {
            let dir = shares
                .dir(Arch::X86_64)
                .with_file_name(format!("many-{count}"));
            if !dir.exists() {
                fs::create_dir_all(&dir)?;
                for n in 0..count {
                    fs::write(dir.join(format!("{n:06}")), "").context("a file")?;
                }
            }
            let took = command(shares, dir, "ls /")?;
            results.add("q35", Some(count.into()), took.as_secs_f64() * 1e3);
        }
    }
    Ok(results)
}

fn depth(shares: &Shares, rounds: usize) -> Result<Results> {
    let title = "A machine that asks a hundred times what a path is, ms";
    let mut results = results("growth-depth", title, "directories");
    for _ in 0..rounds {
        for depth in [1, 2, 4, 8, 16, 32] {
            let dir = shares.dir(Arch::X86_64).with_file_name("deep");
            let path = "d/".repeat(depth);
            fs::create_dir_all(dir.join(&path))?;
            let all = format!("stat /{path}; ").repeat(100);
            let took = command(shares, dir, all.trim_end_matches("; "))?;
            results.add("q35", Some(depth as f64), took.as_secs_f64() * 1e3);
        }
    }
    Ok(results)
}
