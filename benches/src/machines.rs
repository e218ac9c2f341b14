//! Machines to measure, and the results that they print.

use crate::share::Shares;
use anyhow::{Context, Result, bail, ensure};
use bootshare_host::{Board, Console, Machine, Outcome, Report, Share, demo};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// The time limit of one run.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A text in the kernel's first line.
pub const FIRST_LINE: &str = "Linux version";

/// The server of the share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// The embedded server, in this process.
    Embedded,
    /// [`VIRTIOFSD`].
    Virtiofsd,
}

/// The virtiofsd that `host/setup.sh bench` builds.
pub const VIRTIOFSD: &str = "target/virtiofsd-released/bin/virtiofsd";

/// A machine with our firmware, these options and the share of its architecture.
pub fn ours(shares: &Shares, board: Board, options: &str) -> Machine {
    let firmware = Path::new("target/firmware").join(board.firmware_name());
    let mut machine = Machine::new(board, firmware);
    machine.append = options.into();
    share(&mut machine, shares);
    machine
}

/// Gives `machine` the share of its architecture.
pub fn share(machine: &mut Machine, shares: &Shares) {
    let dir = shares.dir(machine.board.arch());
    machine.shares = vec![Share::new(demo::TAG, dir)];
    machine.time_limit = Some(LIMIT);
}

/// Sets the server of `machine` and its number of threads.
pub fn serve(machine: &mut Machine, server: Server, threads: u32) {
    machine.thread_pool_size = Some(threads);
    machine.server = match server {
        Server::Embedded => None,
        Server::Virtiofsd => Some(PathBuf::from(VIRTIOFSD)),
    };
}

/// Runs the machine to its end.
pub fn run(machine: &Machine) -> Result<Report> {
    twice(|| run_once(machine))
}

/// If `measure` fails, prints a warning and tries once more, so that one failure does not cost the results of
/// an hour.
pub fn twice<T>(measure: impl Fn() -> Result<T>) -> Result<T> {
    measure().or_else(|error| {
        eprintln!("bootshare-bench: warning: {error:#}\nThis run is tried again");
        measure()
    })
}

/// Runs the machine to its end, which must be a success.
pub fn run_once(machine: &Machine) -> Result<Report> {
    let report = machine.run(Console::Capture)?;
    match report.outcome {
        Outcome::FirmwareExit(0) | Outcome::PowerOff | Outcome::Expected => Ok(report),
        _ => bail!("{:?}: {}\n{}", machine.board, report.outcome, report.text()),
    }
}

/// The speeds of both passes of `read-bench` in MiB/s: into memory that was never touched, and into the
/// same memory again.
pub fn passes(report: &Report) -> Result<[f64; 2]> {
    Ok([speed(report, "first: ")?, speed(report, "again: ")?])
}

/// The speed in MiB/s of one pass, from the line `first: N bytes in M ms (R MiB/s), T us` of `read-bench`
/// (or `again: ...`).
fn speed(report: &Report, pass: &str) -> Result<f64> {
    let text = report.text();
    let line = text.lines().find_map(|line| line.trim().strip_prefix(pass));
    let line = line.with_context(|| format!("no line `{pass}` in {text}"))?;
    let bytes: f64 = line.split_whitespace().next().context("bytes")?.parse()?;
    let micros = line.rsplit(' ').nth(1).context("time")?;
    let seconds = micros.parse::<f64>()? / 1e6;
    ensure!(seconds > 0.0, "{line}: too short to be measured");
    Ok(bytes / f64::from(1 << 20) / seconds)
}

/// The speed in MiB/s, from the last line `direct: N bytes in T ns` (or `buffered: ...`) of our init.
pub fn linux_speed(report: &Report, what: &str) -> Result<f64> {
    let text = report.text();
    let mut lines = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix(what));
    let line = lines.next_back();
    let line = line.with_context(|| format!("no line `{what}` in {text}"))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let [bytes, "bytes", "in", nanos, "ns"] = words[..] else {
        bail!("`{what}{line}` has not the form `{what}N bytes in T ns`");
    };
    Ok(bytes.parse::<f64>()? / f64::from(1 << 20) / (nanos.parse::<f64>()? / 1e9))
}
