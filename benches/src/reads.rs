//! The speed of reading one large file that is in the host's page cache: into memory that was never
//! touched (cold), as at every boot, and into the same memory again (warm).

use crate::{
    limit,
    machines::{self, Server},
    results::{Bound, Case, Layout, Results},
    share::Shares,
};
use anyhow::Result;
use bootshare_host::{Arch, Board, Machine, serve::DEFAULT_THREADS};

/// The boards to measure: both transports, both architectures.
pub const BOARDS: [(&str, Board); 4] = [
    ("microvm", Board::X86_64Microvm),
    ("q35", Board::X86_64Q35),
    ("virt", Board::Aarch64Virt),
    ("virt-pci", Board::Aarch64VirtPci),
];

/// The group of the upper limits.
const HOST: &str = "host";

/// The sizes of the server's thread pool. With 0 the thread of each queue answers its requests.
const POOLS: [u32; 3] = [0, 2, 4];

/// The server's default pool.
const DEFAULT_POOL: u32 = DEFAULT_THREADS as u32;

/// From this size on, the file is read on fewer boards and in fewer ways, because the ratios are the same
/// as those of the smaller file.
const LARGE_MIB: u64 = 1024;

/// One way to read the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A process of the host with this number of threads.
    Limit(u32),
    /// Our firmware, from a server with this thread pool.
    Ours(Board, Server, u32),
    /// Our client with the request size and depth of Hermit's: 64 KiB, one in flight. Hermit's also copies.
    Hermit(Board),
    /// Linux's driver on the same machine.
    Linux(Board),
}

/// The upper limit of the pass `how`.
pub fn limit_of(how: &str, threads: u32) -> Case {
    let plural = if threads == 1 { "" } else { "s" };
    Case::new(HOST, format!("{how}: limit, {threads} thread{plural}"))
}

/// Our firmware with the default server.
pub fn ours(group: &str, how: &str) -> Case {
    Case::new(group, format!("{how}: Bootshare, pool of {DEFAULT_POOL}"))
}

/// Linux without its page cache (O_DIRECT).
pub fn linux_direct(group: &str) -> Case {
    Case::new(group, "warm: Linux, O_DIRECT")
}

/// Linux with its page cache.
pub fn linux_buffered(group: &str) -> Case {
    Case::new(group, "buffered: Linux")
}

/// Our client with Hermit's request size and depth.
pub fn hermit(group: &str, how: &str) -> Case {
    Case::new(group, format!("{how}: 64 KiB, one in flight"))
}

/// The upper limit for a case: as many threads as it has requests answered at a time.
pub fn limit_for(case: &Case, threads: u32) -> Case {
    let how = if case.name.starts_with("cold") {
        "cold"
    } else {
        "warm"
    };
    limit_of(how, threads.max(1))
}

/// Measures a file of this size in MiB.
pub fn run(shares: &Shares, mib: u64, rounds: usize) -> Result<Results> {
    let title = format!("Reading {mib} MiB, MiB/s");
    let mut results = Results::new(format!("reads-{mib}"), title, Layout::Cases);
    results.note =
        "The limit has the host's processors for itself; a machine's own processor takes one \
                    of them while it waits."
            .into();
    for round in 0..rounds {
        eprintln!("reads of {mib} MiB: round {} of {rounds}", round + 1);
        for (group, way) in ways(mib) {
            for (case, speed) in way.run(group, shares, mib)? {
                results.add(&case, None, speed);
                if group != HOST {
                    results.compare(&case, &limit_for(&case, way.threads()));
                }
            }
        }
    }
    results
        .series
        .sort_by_key(|series| !series.case.name.starts_with("warm"));
    state_aims(&mut results);
    Ok(results)
}

fn ways(mib: u64) -> Vec<(&'static str, Way)> {
    let mut ways = Vec::new();
    let is_large = mib >= LARGE_MIB;
    let boards = if is_large { &BOARDS[..2] } else { &BOARDS[..] };
    for &(name, board) in boards {
        // Measure the limit next to each case that it limits, more often than there are rounds.
        ways.extend([1, 2, 4].map(|threads| (HOST, Way::Limit(threads))));
        ways.extend(POOLS.map(|pool| (name, Way::Ours(board, Server::Embedded, pool))));
    }
    for &(name, board) in &BOARDS[..2] {
        ways.push((name, Way::Linux(board)));
        if !is_large {
            ways.push((name, Way::Hermit(board)));
            ways.extend([0, 2].map(|pool| (name, Way::Ours(board, Server::Virtiofsd, pool))));
        }
    }
    ways
}

/// The large file on one board of each transport.
fn state_aims(results: &mut Results) {
    for (name, _) in &BOARDS[..2] {
        for pool in POOLS {
            for (how, least) in [("warm", 0.9), ("cold", 0.85)] {
                let case = Case::new(*name, format!("{how}: Bootshare, pool of {pool}"));
                let limit = limit_for(&case, pool);
                results.aim(case, limit, Bound::AtLeast(least));
            }
        }
        let warm = || ours(name, "warm");
        // The embedded server polls between requests that follow each other so quickly.
        results.aim(warm(), hermit(name, "warm"), Bound::AtLeast(2.0));
        results.aim(warm(), linux_direct(name), Bound::AtLeast(3.0));
    }
}

impl Way {
    /// The number of requests that are answered at a time.
    fn threads(self) -> u32 {
        match self {
            Self::Limit(threads) | Self::Ours(_, _, threads) => threads,
            Self::Hermit(_) => 1,
            Self::Linux(_) => DEFAULT_POOL,
        }
    }

    /// The speed of each pass in MiB/s.
    fn run(self, group: &str, shares: &Shares, mib: u64) -> Result<Vec<(Case, f64)>> {
        match self {
            Self::Limit(threads) => {
                let name = shares.file(Arch::X86_64, mib)?;
                let path = shares.dir(Arch::X86_64).join(&name[1..]);
                let [cold, warm] = limit::cold_and_warm(&path, threads as usize)?;
                Ok(vec![
                    (limit_of("cold", threads), cold),
                    (limit_of("warm", threads), warm),
                ])
            }
            Self::Ours(board, server, pool) => {
                let change = |machine: &mut Machine| machines::serve(machine, server, pool);
                let who = match server {
                    Server::Embedded => "Bootshare",
                    Server::Virtiofsd => "Bootshare, virtiofsd",
                };
                let [cold, warm] = read_bench(shares, board, mib, "", change)?;
                let case = |how| Case::new(group, format!("{how}: {who}, pool of {pool}"));
                Ok(vec![(case("cold"), cold), (case("warm"), warm)])
            }
            Self::Hermit(board) => {
                let options = "bootshare.chunk-size=65536 bootshare.depth=1 ";
                let [cold, warm] = read_bench(shares, board, mib, options, |_| ())?;
                Ok(vec![
                    (hermit(group, "cold"), cold),
                    (hermit(group, "warm"), warm),
                ])
            }
            Self::Linux(board) => {
                let name = shares.file(board.arch(), mib)?;
                let options = format!("bootshare.entry=reading -- loglevel=3 file={name}");
                let mut machine = machines::ours(shares, board, &options);
                machine.memory_mib = mib as u32 + 768;
                let report = machines::run(&machine)?;
                let direct = machines::linux_speed(&report, "direct: ")?;
                let buffered = machines::linux_speed(&report, "buffered: ")?;
                Ok(vec![
                    (linux_direct(group), direct),
                    (linux_buffered(group), buffered),
                ])
            }
        }
    }
}

/// The speeds of our firmware's `read-bench` in MiB/s, cold and warm.
fn read_bench(
    shares: &Shares,
    board: Board,
    mib: u64,
    options: &str,
    change: impl FnOnce(&mut Machine),
) -> Result<[f64; 2]> {
    let name = shares.file(board.arch(), mib)?;
    let options = format!("{options}bootshare.cmd=\"read-bench {name}\"");
    let mut machine = machines::ours(shares, board, &options);
    machine.memory_mib = mib as u32 + 256;
    change(&mut machine);
    machines::passes(&machines::run(&machine)?)
}
