//! Throughput of one large file that is in the host's page cache: into memory never touched before
//! (cold), as every boot does, and into the same again (warm).

use crate::{
    limit,
    machines::{self, Server},
    results::Results,
    share::Shares,
};
use anyhow::Result;
use bootshare_host::{Arch, Board};

/// Boards whose reads are measured: both transports, both architectures.
const BOARDS: [(&str, Board); 4] = [
    ("microvm", Board::X86_64Microvm),
    ("q35", Board::X86_64Q35),
    ("virt", Board::Aarch64Virt),
    ("virt-pci", Board::Aarch64VirtPci),
];

/// One way to read the file.
enum Case {
    /// A process of the host, with that many threads.
    Limit(usize),
    /// Our firmware.
    Ours(Board, Server, u32),
    /// Our client as Hermit's: 64 KiB at a time, one in flight. Hermit copies as well.
    Hermit(Board),
    /// Linux's driver in the same machine.
    Linux(Board),
}

/// Measures a file of that many MiB.
pub fn run(shares: &Shares, mib: u64, rounds: usize) -> Result<Results> {
    let mut results = Results::new(format!("reads-{mib}"), format!("Reading {mib} MiB, MiB/s"));
    results.reference = "warm: host process, 2 threads".into();
    let mut names = Vec::new();
    for threads in [1, 2, 4] {
        let plural = if threads == 1 { "" } else { "s" };
        names.push((
            format!("host process, {threads} thread{plural}"),
            Case::Limit(threads),
        ));
    }
    for (name, board) in BOARDS {
        for threads in [1, 2, 4] {
            let label = format!("{name}, embedded server, {threads} threads");
            names.push((label, Case::Ours(board, Server::Embedded, threads)));
        }
    }
    for threads in [0, 2] {
        for (name, board) in &BOARDS[..2] {
            let label = format!("{name}, virtiofsd, pool of {threads}");
            names.push((label, Case::Ours(*board, Server::Virtiofsd, threads)));
        }
    }
    for (name, board) in &BOARDS[..2] {
        names.push((format!("{name}, 64 KiB one by one"), Case::Hermit(*board)));
        names.push((format!("{name}, Linux"), Case::Linux(*board)));
    }
    for round in 0..rounds {
        eprintln!("reads of {mib} MiB: round {} of {rounds}", round + 1);
        for (name, case) in &names {
            for (how, speed) in case.run(shares, mib)? {
                results.add(&format!("{how}: {name}"), None, speed);
            }
        }
    }
    results
        .series
        .sort_by_key(|series| !series.case.starts_with("warm"));
    Ok(results)
}

impl Case {
    /// MiB a second, and how they were read.
    fn run(&self, shares: &Shares, mib: u64) -> Result<Vec<(&'static str, f64)>> {
        match *self {
            Self::Limit(threads) => {
                let name = shares.file(Arch::X86_64, mib)?;
                let path = shares.dir(Arch::X86_64).join(&name[1..]);
                let [cold, warm] = limit::cold_and_warm(&path, threads)?;
                Ok(vec![("cold", cold), ("warm", warm)])
            }
            Self::Ours(board, server, threads) => ours(shares, board, mib, "", |machine| {
                machines::serve(machine, server, threads);
            }),
            Self::Hermit(board) => {
                let options = "bootshare.chunk-size=65536 bootshare.depth=1 ";
                ours(shares, board, mib, options, |_| ())
            }
            Self::Linux(board) => {
                let name = shares.file(board.arch(), mib)?;
                let options = format!("bootshare.entry=reading -- loglevel=3 file={name}");
                let mut machine = machines::ours(shares, board, &options);
                machine.memory_mib = mib as u32 + 768;
                let report = machines::run(&machine)?;
                Ok(vec![
                    ("warm", machines::linux_speed(&report, "direct: ")?),
                    ("buffered", machines::linux_speed(&report, "buffered: ")?),
                ])
            }
        }
    }
}

/// Both passes of our firmware's `read-bench`.
fn ours(
    shares: &Shares,
    board: Board,
    mib: u64,
    options: &str,
    change: impl FnOnce(&mut bootshare_host::Machine),
) -> Result<Vec<(&'static str, f64)>> {
    let name = shares.file(board.arch(), mib)?;
    let options = format!("{options}bootshare.cmd=\"read-bench {name}\"");
    let mut machine = machines::ours(shares, board, &options);
    machine.memory_mib = mib as u32 + 256;
    change(&mut machine);
    let report = machines::run(&machine)?;
    Ok(vec![
        ("cold", machines::speed(&report, "first: ")?),
        ("warm", machines::speed(&report, "again: ")?),
    ])
}
