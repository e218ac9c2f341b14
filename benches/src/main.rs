//! Measures Bootshare beside its peers, on the same files, share and machine, interleaved.
//!
//! Each suite is a list of cases. A round runs every case once, and there are several rounds, so that
//! what else the machine does falls on all of them alike. What counts are medians and ratios; times
//! are of this machine.

mod boots;
mod disk;
mod efi;
mod growth;
mod initrd;
mod limit;
mod machines;
mod pictures;
mod plot;
mod reads;
mod results;
mod share;
mod trace;
mod trips;

use anyhow::{Context, Result};
use bootshare_host::{Arch, size};
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
    /// A large initrd beside EFI's driver, from the server's trace
    Initrd,
    /// Requests of a boot and of listings
    Trips,
    /// Time against size, entries, depth of paths, requests in flight, size of requests
    Growth,
    /// Sections, static memory and largest functions of the images
    Size,
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
    /// Where the pictures for the README go; beside the rest unless told otherwise
    #[arg(long)]
    pictures: Option<PathBuf>,
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
    let wanted = |suite| cli.only.is_empty() || cli.only.contains(&suite);
    let mut text = String::new();
    if wanted(Suite::Size) {
        text.push_str(&sizes()?);
    }
    let shares = Shares::make(&cli.out.join("share"))?;
    let all = measure(cli, &shares, wanted)?;
    for results in &all {
        text.push_str(&results.table());
        plot::draw(results, &cli.out)?;
    }
    print!("{text}");
    fs::write(cli.out.join("results.md"), text).context("cannot write the tables")?;
    Results::write_csv(&all, &cli.out.join("results.csv"))?;
    pictures::draw(&all, cli.pictures.as_ref().unwrap_or(&cli.out))
}

fn measure(cli: &Cli, shares: &Shares, wanted: impl Fn(Suite) -> bool) -> Result<Vec<Results>> {
    let mut all = Vec::new();
    if wanted(Suite::Trips) {
        all.push(trips::run(shares)?);
    }
    if wanted(Suite::Boots) {
        for id in [share::SMALL, share::LARGE] {
            all.push(boots::run(shares, id, cli.rounds)?);
        }
    }
    if wanted(Suite::Initrd) {
        all.push(initrd::run(shares, cli.rounds)?);
    }
    if wanted(Suite::Reads) {
        for &mib in &cli.size {
            all.push(reads::run(shares, mib, cli.rounds)?);
        }
    }
    if wanted(Suite::Growth) {
        all.extend(growth::run(shares, cli.rounds)?);
    }
    Ok(all)
}

/// What the images take.
fn sizes() -> Result<String> {
    let mut text = "\n### Size of the images\n".to_owned();
    for arch in Arch::ALL {
        let path = format!("target/firmware/bootshare-{}.elf", arch.name());
        let what = size::describe(path.as_ref())?;
        text.push_str(&format!("\n```text\n{what}```\n"));
    }
    Ok(text)
}
