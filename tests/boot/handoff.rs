//! The state of the processor and of the interrupt controllers at the start of a payload. The payload
//! `tests/payload` prints it.

use std::fs;
use std::path::{Path, PathBuf};

use bootshare_host::debian::Release;
use bootshare_host::{Board, Outcome};

use crate::entries::write;
use crate::kernels::bzimage_of;
use crate::lab::{Server, demo_share, empty_dir, machine, run};
use crate::shared::target;
use crate::{linux, qemus};

/// A file so large that the firmware rests while the host reads it.
const LARGE: u64 = 64 << 20;

/// Starts `kernel` on `board` with these QEMU arguments, by `qemu` if it is given, or else by this
/// machine's QEMU.
fn start(
    board: Board,
    name: &str,
    kernel: &[u8],
    protocol: &str,
    args: &[&str],
    qemu: Option<PathBuf>,
) {
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
    machine.qemu = qemu;
    machine.qemu_args = args.iter().map(Into::into).collect();
    // QEMU's log of interrupts and exceptions.
    machine.qemu_args.extend(["-d".into(), "int".into()]);
    machine
        .qemu_args
        .extend(["-D".into(), interrupts.clone().into()]);
    let run = run(&machine);
    let line = run.line(&["payload: entered by ", protocol, ", no interrupt came"]);
    if board == Board::X86_64Q35Rom {
        // Only the firmware sets the MTRRs: write-back, fixed and variable ranges enabled.
        assert!(line.contains("memory types 0xc06,"), "{line}");
    }
    assert_eq!(run.outcome, Outcome::FirmwareExit(0));
    assert!(rested(&interrupts), "it did not rest while it read");
}

/// Whether the local APIC's timer, vector 0x20, has interrupted the firmware.
fn rested(interrupts: &Path) -> bool {
    let log = fs::read_to_string(interrupts).unwrap();
    log.lines().any(|line| line.contains(": v=20 "))
}

fn program() -> Vec<u8> {
    fs::read(target().join("payload/x86_64.elf")).unwrap()
}

pub(crate) fn as_linux(board: Board) {
    let kernel = bzimage_of(&program());
    start(
        board,
        "linux",
        &kernel,
        "the Linux boot protocol",
        &[],
        None,
    );
}

pub(crate) fn by_pvh(board: Board) {
    start(board, "pvh", &program(), "PVH", &[], None);
}

/// SeaBIOS enables x2APIC mode on machines that may have more than 255 processors. Debian 12's QEMU does
/// not emulate that mode.
pub(crate) fn in_x2apic_mode(board: Board) {
    let args = ["-cpu", "max", "-smp", "2,maxcpus=288"];
    let qemu = qemus::qemu(Release::Sid);
    start(board, "x2apic", &program(), "PVH", &args, Some(qemu));
}

/// The machine's time follows the count of instructions, so that the PIT's first tick always comes after
/// SeaBIOS and before Linux enables interrupts.
pub(crate) fn ticks_before_linux_is_ready(board: Board) {
    let share = demo_share(board.arch());
    let mut machine = machine(board, Server::Embedded, share, linux::OPTIONS);
    machine.qemu = Some(qemus::qemu(Release::Sid));
    machine.qemu_args = ["-icount", "shift=0,sleep=off"].map(Into::into).into();
    linux::expect_boot(&machine, share);
}
