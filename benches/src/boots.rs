//! From QEMU's start to the kernel's first line, with our firmware and QEMU's own loader.

use crate::{machines, results::Results, share::Shares};
use anyhow::{Context, Result};
use bootshare_host::{Arch, Board, Machine, watch::Watch};
use std::fs;

/// What the kernel's first line has.
const FIRST_LINE: &str = "Linux version";

/// Who loads the kernel.
enum Loader {
    /// Our firmware, from the share.
    Ours,
    /// QEMU, from its own command line.
    Qemu,
}

/// Measures boots with an initrd of that many MiB, or with a small one.
pub fn run(shares: &Shares, mib: u64, rounds: usize) -> Result<Results> {
    let what = if mib == 0 {
        "a small initrd".into()
    } else {
        format!("an initrd of {mib} MiB")
    };
    let mut results = Results::new(
        format!("boots-{mib}"),
        format!("From QEMU's start to the kernel's first line with {what}, ms"),
    );
    let mut cases = Vec::new();
    for board in Board::ALL {
        let name = board_name(board);
        if !board.is_rom() {
            cases.push((format!("{name}: QEMU's -kernel"), board, Loader::Qemu));
        }
        cases.push((format!("{name}: bootshare"), board, Loader::Ours));
    }
    for round in 0..rounds {
        eprintln!("boots with {what}: round {} of {rounds}", round + 1);
        for (name, board, loader) in &cases {
            let machine = machine(shares, *board, loader, mib)?;
            let report = machines::run(&machine)?;
            results.add(name, None, report.duration.as_secs_f64() * 1e3);
        }
    }
    Ok(results)
}

/// As on the command line.
pub fn board_name(board: Board) -> String {
    use clap::ValueEnum;
    board
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().into())
}

fn machine(shares: &Shares, board: Board, loader: &Loader, mib: u64) -> Result<Machine> {
    let arch = board.arch();
    let dir = shares.dir(arch);
    let id = if mib == 0 { "small" } else { "large" };
    let mut machine = match loader {
        Loader::Ours => machines::ours(shares, board, &format!("bootshare.entry={id}")),
        Loader::Qemu => {
            let mut machine = Machine::new(board, dir.join(arch.kernel_name()));
            machines::share(&mut machine, shares);
            machine.append = options(shares, arch, id)?;
            let initrd = joined_initrd(shares, arch, id)?;
            machine.qemu_args = vec!["-initrd".into(), initrd.into()];
            machine
        }
    };
    machine.memory_mib = 1024;
    machine.watch = Watch {
        expect: Some(FIRST_LINE.parse().context("a pattern")?),
        fail: None,
    };
    Ok(machine)
}

/// The kernel's command line in the entry `id`.
fn options(shares: &Shares, arch: Arch, id: &str) -> Result<String> {
    let path = shares.dir(arch).join(format!("loader/entries/{id}.conf"));
    let text = fs::read_to_string(path)?;
    let options = text.lines().find_map(|line| line.strip_prefix("options "));
    Ok(options.context("an entry without options")?.into())
}

/// The entry's initrds as one file, for loaders that take one.
fn joined_initrd(shares: &Shares, arch: Arch, id: &str) -> Result<std::path::PathBuf> {
    let dir = shares.dir(arch);
    let small = dir.join("initrd.img");
    if id == "small" {
        return Ok(small);
    }
    let joined = dir.join("joined.img");
    if !joined.exists() {
        let mut bytes = fs::read(&small)?;
        // The kernel wants what follows at a multiple of 4.
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(fs::read(dir.join("filler-256.cpio"))?);
        fs::write(&joined, bytes)?;
    }
    Ok(joined)
}
