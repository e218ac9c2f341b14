//! Measures Bootshare beside its peers, on the same files, share and machine, interleaved.
//!
//! Each suite is a list of cases. A round runs every case once, and there are several rounds, so that
//! what else the machine does falls on all of them alike. What counts are medians and ratios; times
//! are of this machine.

mod boots;
mod growth;
mod limit;
mod machines;
mod plot;
mod reads;
mod results;
mod share;
mod trips;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use results::Results;
use share::Shares;
use std::{fs, path::PathBuf, process::ExitCode};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Throughput of one large file, warm and cold
    Reads,
    /// From QEMU's start to the kernel's first line
    Boots,
    /// Requests of a boot and of listings
    Trips,
    /// Time against size, entries, depth of paths, requests in flight, size of requests
    Growth,
}

/// Measure Bootshare beside its peers
#[derive(Parser)]
#[command(name = "bootshare-bench", version)]
struct Cli {
    /// How often each case is run
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Only these suites
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Suite>,
    /// Where the tables, raw numbers and plots go
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// MiB of the large file; twice for more than one
    #[arg(long, default_values_t = [256, 1024])]
    size: Vec<u64>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bootshare-bench: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    fs::create_dir_all(&cli.out)
        .with_context(|| format!("cannot make the directory {}", cli.out.display()))?;
    let shares = Shares::make(&cli.out.join("share"))?;
    let wanted = |suite| cli.only.is_empty() || cli.only.contains(&suite);
    let mut all = Vec::new();
    if wanted(Suite::Reads) {
        for &mib in &cli.size {
            all.push(reads::run(&shares, mib, cli.rounds)?);
        }
    }
    if wanted(Suite::Boots) {
        for mib in [0, 256] {
            all.push(boots::run(&shares, mib, cli.rounds)?);
        }
    }
    if wanted(Suite::Trips) {
        all.push(trips::run(&shares)?);
    }
    if wanted(Suite::Growth) {
        all.extend(growth::run(&shares, cli.rounds)?);
    }
    for results in &all {
        print!("{}", results.table());
    }
    Results::write_csv(&all, &cli.out.join("results.csv"))?;
    for results in &all {
        plot::draw(results, &cli.out)?;
    }
    let text: String = all.iter().map(Results::table).collect();
    fs::write(cli.out.join("results.md"), text).context("cannot write the tables")
}
