//! From QEMU's start to the kernel's first line: our firmware, QEMU's own loader, EFI, a disk image.

use crate::{
    disk, efi, machines,
    results::{Bound, Case, Layout, Results},
    share::{SMALL, Shares},
};
use anyhow::{Context, Result};
use bootshare_host::{Arch, Board, Machine, prepare::Cache};

/// The name of our firmware in tables.
pub const OURS: &str = "Bootshare";
/// Our firmware on a board that resets into it (`-bios`).
pub const OURS_AS_ROM: &str = "Bootshare as a ROM";
/// Our firmware with a kernel that the host tool has decompressed.
pub const PREPARED: &str = "Bootshare, kernel prepared";
/// QEMU's own loader, `-kernel`.
pub const QEMU: &str = "QEMU's -kernel";

/// The memory of each machine.
pub const MEMORY_MIB: u32 = 1024;

/// The program that loads the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loader {
    /// Our firmware, from the share.
    Ours,
    /// Our firmware, with a kernel that the host tool has decompressed.
    Prepared,
    /// QEMU, from the host's files.
    Qemu,
    /// EFI, from the share.
    Efi,
    /// GRUB, from a disk image.
    Disk,
}

/// Measures boots with a small initrd (`id` is [`SMALL`]) or a large one.
pub fn run(shares: &Shares, id: &str, rounds: usize) -> Result<Results> {
    let what = match id {
        SMALL => "a small initrd",
        _ => "an initrd of 256 MiB",
    };
    let title = format!("From QEMU's start to the kernel's first line with {what}, ms");
    let mut results = Results::new(format!("boots-{id}"), title, Layout::Cases);
    let cases = cases();
    for round in 0..rounds {
        eprintln!("boots with {what}: round {} of {rounds}", round + 1);
        for (case, board, loader) in &cases {
            let machine = machine(shares, *board, *loader, id)?;
            let report = machines::run(&machine)?;
            results.add(case, None, report.duration.as_secs_f64() * 1e3);
        }
    }
    for (case, _, loader) in cases {
        let qemu = Case::new(&case.group, QEMU);
        if case != qemu {
            results.compare(&case, &qemu);
        }
        let most = match id {
            SMALL if case.name == OURS => 1.1,
            _ => 1.0,
        };
        match loader {
            Loader::Ours => results.aim(case, qemu, Bound::AtMost(most)),
            Loader::Efi => {
                let ours = Case::new(&case.group, OURS);
                results.aim(case, ours, Bound::AtLeast(2.5));
            }
            Loader::Prepared => results.aim(case, qemu, Bound::AtMost(0.6)),
            Loader::Qemu | Loader::Disk => (),
        }
    }
    Ok(results)
}

/// Every board with each loader that it has, in one group for each machine.
fn cases() -> Vec<(Case, Board, Loader)> {
    let mut cases = Vec::new();
    for board in Board::ALL {
        let name = board.name();
        if board.is_rom() {
            // In the group of the machine that starts our ELF file.
            let group = name.trim_end_matches("-rom");
            cases.push((Case::new(group, OURS_AS_ROM), board, Loader::Ours));
            continue;
        }
        cases.push((Case::new(&name, QEMU), board, Loader::Qemu));
        cases.push((Case::new(&name, OURS), board, Loader::Ours));
        // The share for arm64 has an uncompressed kernel.
        if board.arch() == Arch::X86_64 {
            cases.push((Case::new(&name, PREPARED), board, Loader::Prepared));
        }
        if efi::BOARDS.contains(&board) {
            cases.push((Case::new(&name, efi::NAME), board, Loader::Efi));
        }
        if board == disk::BOARD {
            cases.push((Case::new(&name, disk::NAME), board, Loader::Disk));
        }
    }
    let order: Vec<String> = Board::ALL.into_iter().map(Board::name).collect();
    cases.sort_by_key(|(case, ..)| order.iter().position(|name| *name == case.group));
    cases
}

fn machine(shares: &Shares, board: Board, loader: Loader, id: &str) -> Result<Machine> {
    let mut machine = match loader {
        Loader::Ours => machines::ours(shares, board, &format!("bootshare.entry={id}")),
        Loader::Prepared => {
            let mut machine = machines::ours(shares, board, &format!("bootshare.entry={id}"));
            machine.prepare = Some(Some(Cache::at("target/bench/kernels")));
            machine
        }
        Loader::Efi => efi::machine(shares, board, id)?,
        Loader::Disk => disk::machine(shares, id)?,
        Loader::Qemu => {
            let arch = board.arch();
            let kernel = shares.dir(arch).join(arch.kernel_name());
            let mut machine = Machine::new(board, kernel);
            machines::share(&mut machine, shares);
            machine.append = shares.options(arch, id)?;
            let initrd = shares.joined_initrd(arch, id)?;
            machine.qemu_args = vec!["-initrd".into(), initrd.into()];
            machine
        }
    };
    machine.memory_mib = MEMORY_MIB;
    machine.watch.expect = vec![machines::FIRST_LINE.parse().context("a pattern")?];
    Ok(machine)
}
