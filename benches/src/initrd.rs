//! The time that EFI and our firmware take to read a large initrd from the same server, by the server's
//! trace.

use crate::{
    boots, efi, machines,
    results::{Bound, Case, Layout, Results},
    share::{FILLER, LARGE, Shares},
    trace,
};
use anyhow::{Context, Result, bail};
use bootshare_host::{Arch, Board, Machine};

/// The two starts of the measured time, which ends with the initrd's last byte: the first request of all,
/// and the first one for the initrd. Preparing its memory counts (edk2 touches it before the read).
const SPANS: [&str; 2] = [
    "from the first request of all",
    "from the first request for the initrd",
];

/// Measures on the boards for which there is EFI firmware.
pub fn run(shares: &Shares, rounds: usize) -> Result<Results> {
    let title = "To the last byte of an initrd of 256 MiB, as the server's trace has it, ms";
    let mut results = Results::new("initrd", title, Layout::Cases);
    results.note =
        "On q35 edk2 reads nothing for most of the second span, after it has opened the \
                    initrd: its memory is made ready then, and costs the READs nothing more."
            .into();
    for round in 0..rounds {
        eprintln!("initrd: round {} of {rounds}", round + 1);
        for board in efi::BOARDS {
            let ours = machines::ours(shares, board, &format!("bootshare.entry={LARGE}"));
            let efi = efi::machine(shares, board, LARGE)?;
            for (who, machine) in [(boots::OURS, ours), (efi::NAME, efi)] {
                let times = spans(shares, machine)?;
                for (span, time) in SPANS.iter().zip(times) {
                    results.add(&case(board, who, span), None, time);
                }
            }
        }
    }
    for board in efi::BOARDS {
        for span in SPANS {
            let (ours, efi) = (case(board, boots::OURS, span), case(board, efi::NAME, span));
            results.compare(&efi, &ours);
            results.aim(efi, ours, Bound::AtLeast(2.0));
        }
    }
    Ok(results)
}

fn case(board: Board, who: &str, span: &str) -> Case {
    Case::new(format!("{}, {span}", board.name()), who)
}

/// The times of one boot in ms.
fn spans(shares: &Shares, mut machine: Machine) -> Result<[f64; 2]> {
    machine.memory_mib = boots::MEMORY_MIB;
    machine.watch.expect = vec![machines::FIRST_LINE.parse().context("a pattern")?];
    let path = shares.dir(Arch::X86_64).with_file_name("trace");
    let requests = trace::run(&mut machine, &path)?;
    let mut lookups = requests
        .iter()
        .filter(|request| request.op == "LOOKUP" && request.name.as_deref() == Some(FILLER))
        .peekable();
    let first = lookups.peek().map(|lookup| lookup.at);
    let nodes: Vec<u64> = lookups.filter_map(|lookup| lookup.child).collect();
    let end = requests
        .iter()
        .filter(|request| request.op == "READ" && nodes.contains(&request.node))
        .map(|request| request.end)
        .reduce(f64::max);
    let (Some(first), Some(end), Some(start)) = (first, end, requests.first()) else {
        bail!("nobody read {FILLER}, says {}", path.display());
    };
    Ok([end - start.at, end - first])
}
