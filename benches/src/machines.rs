//! Machines to measure, and what they say of themselves.

use crate::share::Shares;
use anyhow::{Context, Result, bail, ensure};
use bootshare_host::{Board, Console, Machine, Outcome, Report, Share, demo};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// The greatest time of one run.
pub const LIMIT: Duration = Duration::from_secs(120);

/// What the kernel's first line has.
pub const FIRST_LINE: &str = "Linux version";

/// Who serves the share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// Threads of this process.
    Embedded,
    /// virtiofsd, as the tests build it.
    Virtiofsd,
}

/// A machine with our firmware and the share of its architecture.
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

/// Has `server` serve `machine` from `threads` threads.
pub fn serve(machine: &mut Machine, server: Server, threads: u32) {
    machine.thread_pool_size = Some(threads);
    machine.server = match server {
        Server::Embedded => None,
        Server::Virtiofsd => Some(PathBuf::from("target/virtiofsd/bin/virtiofsd")),
    };
}

/// Runs it to its end; once more when that fails, and says so: an hour's other figures are not to be
/// lost by it.
pub fn run(machine: &Machine) -> Result<Report> {
    run_once(machine).or_else(|error| {
        eprintln!("bootshare-bench: warning: {error:#}\nThis run is tried again");
        run_once(machine)
    })
}

fn run_once(machine: &Machine) -> Result<Report> {
    let report = machine.run(Console::Capture)?;
    match report.outcome {
        Outcome::FirmwareExit(0) | Outcome::PowerOff | Outcome::Expected => Ok(report),
        _ => bail!("{:?}: {}\n{}", machine.board, report.outcome, report.text()),
    }
}

/// MiB a second of both passes of `read-bench`, into memory never touched and into the same again.
pub fn passes(report: &Report) -> Result<[f64; 2]> {
    Ok([speed(report, "first: ")?, speed(report, "again: ")?])
}

/// MiB a second, from a line of `read-bench`, `first: N bytes in M ms (R MiB/s), T us`: that of the
/// pass with this name.
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

/// MiB a second, from the last line of what our init says: `direct: N bytes in T ns`.
pub fn linux_speed(report: &Report, what: &str) -> Result<f64> {
    let text = report.text();
    let mut lines = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix(what));
    let line = lines.next_back();
    let line = line.with_context(|| format!("no line `{what}` in {text}"))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let [bytes, "bytes", "in", nanos, "ns"] = words[..] else {
        bail!("`{what}{line}`: that is no figure");
    };
    Ok(bytes.parse::<f64>()? / f64::from(1 << 20) / (nanos.parse::<f64>()? / 1e9))
}
