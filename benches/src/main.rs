//! Measures Bootshare and its peers in turns, on the same files, share and machine.
//!
//! Each suite is a list of cases. A round runs every case once. There are several rounds, so that other
//! load on the machine affects all cases alike. Compare medians and ratios; the times are those of this
//! machine.

mod boots;
mod disk;
mod efi;
mod growth;
mod initrd;
mod limit;
mod machines;
mod needs;
mod pictures;
mod plot;
mod reads;
mod results;
mod root;
mod share;
mod trace;
mod trips;

use anyhow::{Context, Result};
use bootshare_host::{Arch, size};
use clap::{Parser, ValueEnum};
use results::{Layout, Results};
use share::Shares;
use std::{fs, path::PathBuf, process::ExitCode, time::Instant};

/// The suites.
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
    /// Programs in a guest whose root file system is the share
    Root,
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
    needs::check(&cli.out)?;
    let shares = Shares::make(&cli.out.join("share"))?;
    let mut all = Vec::new();
    for suite in Suite::value_variants() {
        if !cli.only.is_empty() && !cli.only.contains(suite) {
            continue;
        }
        let start = Instant::now();
        let found = measure(*suite, cli, &shares)?;
        found
            .iter()
            .for_each(|results| print!("{}", results.table()));
        all.extend(found);
        eprintln!("{suite:?} took {} s", start.elapsed().as_secs());
        // Write the results so far: they are kept if a later suite fails.
        report(cli, &all)?;
    }
    Ok(())
}

fn measure(suite: Suite, cli: &Cli, shares: &Shares) -> Result<Vec<Results>> {
    let rounds = cli.rounds;
    match suite {
        Suite::Trips => Ok(vec![trips::run(shares)?]),
        Suite::Boots => [share::SMALL, share::LARGE]
            .into_iter()
            .map(|id| boots::run(shares, id, rounds))
            .collect(),
        Suite::Initrd => Ok(vec![initrd::run(shares, rounds)?]),
        Suite::Reads => (cli.size.iter())
            .map(|&mib| reads::run(shares, mib, rounds))
            .collect(),
        Suite::Root => Ok(vec![root::run(&cli.out, rounds)?]),
        Suite::Growth => growth::run(shares, rounds),
        Suite::Size => sizes(),
    }
}

/// Writes tables, raw numbers and plots.
fn report(cli: &Cli, all: &[Results]) -> Result<()> {
    let text: String = all.iter().map(Results::table).collect();
    fs::write(cli.out.join("results.md"), text).context("cannot write the tables")?;
    Results::write_csv(all, &cli.out.join("results.csv"))?;
    for results in all {
        plot::draw(results, &cli.out)?;
    }
    pictures::draw(all, cli.pictures.as_ref().unwrap_or(&cli.out))
}

/// The size of the images, as `make size` prints it.
fn sizes() -> Result<Vec<Results>> {
    let describe = |arch: Arch| {
        let path = format!("target/firmware/bootshare-{}.elf", arch.name());
        let what = size::describe(path.as_ref())?;
        let name = format!("size-{}", arch.name());
        let title = format!("Size of the firmware for {}", arch.name());
        let text = format!("```text\n{what}```\n");
        Ok(Results::new(name, title, Layout::Text(text)))
    };
    Arch::ALL.into_iter().map(describe).collect()
}
