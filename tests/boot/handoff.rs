//! What a payload finds of the processor and the interrupt controllers, told by one that looks
//! (`tests/payload`).

use std::fs;
use std::path::Path;

use bootshare_host::{Board, Outcome};

use crate::entries::write;
use crate::kernels::bzimage_of;
use crate::lab::{Server, empty_dir, machine, run, target};

/// Enough that the firmware rests while it is read.
const LARGE: u64 = 64 << 20;

/// A share whose only entry is `kernel`, with a large initrd.
fn start(board: Board, name: &str, kernel: &[u8], protocol: &str) {
    let share = empty_dir(&format!("handoff-{name}-{board:?}"));
    fs::write(share.join("linux"), kernel).unwrap();
    let initrd = fs::File::create(share.join("initrd")).unwrap();
    initrd.set_len(LARGE).unwrap();
    write(
        &share,
        "loader/entries/payload.conf",
        "linux /linux\ninitrd /initrd\n",
    );
    let interrupts = share.join("interrupts");
    let mut machine = machine(board, Server::Embedded, &share, "");
    // The emulator's log of interrupts and exceptions.
    machine.qemu_args.extend(["-d".into(), "int".into()]);
    machine
        .qemu_args
        .extend(["-D".into(), interrupts.clone().into()]);
    let run = run(&machine);
    run.line(&["payload: entered by ", protocol, ", no interrupt came"]);
    assert_eq!(run.outcome, Outcome::FirmwareExit(0));
    assert!(rested(&interrupts), "it did not rest while it read");
}

/// Whether the local APIC's timer woke the firmware: its vector is 0x20.
fn rested(interrupts: &Path) -> bool {
    let log = fs::read_to_string(interrupts).unwrap();
    log.lines().any(|line| line.contains(": v=20 "))
}

pub(crate) fn as_linux(board: Board) {
    let program = fs::read(target().join("payload/x86_64.elf")).unwrap();
    start(
        board,
        "linux",
        &bzimage_of(&program),
        "the Linux boot protocol",
    );
}

pub(crate) fn by_pvh(board: Board) {
    let program = fs::read(target().join("payload/x86_64.elf")).unwrap();
    start(board, "pvh", &program, "PVH");
}
