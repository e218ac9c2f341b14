//! What a payload finds of the processor and the interrupt controllers, told by one that looks
//! (`tests/payload`).

use std::fs;
use std::path::{Path, PathBuf};

use bootshare_host::debian::Release;
use bootshare_host::{Board, Outcome};

use crate::entries::write;
use crate::kernels::bzimage_of;
use crate::lab::{Server, demo_share, empty_dir, machine, run, target};
use crate::{linux, qemus};

/// Enough that the firmware rests while it is read.
const LARGE: u64 = 64 << 20;

/// Starts `kernel` on `board`, with these QEMU arguments and that QEMU, if it is another than the
/// machine's own.
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
    // The emulator's log of interrupts and exceptions.
    machine.qemu_args.extend(["-d".into(), "int".into()]);
    machine
        .qemu_args
        .extend(["-D".into(), interrupts.clone().into()]);
    let run = run(&machine);
    let line = run.line(&["payload: entered by ", protocol, ", no interrupt came"]);
    if board == Board::X86_64Q35Rom {
        // Nobody else sets them: write-back, with fixed and variable ranges in use.
        assert!(line.contains("memory types 0xc06,"), "{line}");
    }
    assert_eq!(run.outcome, Outcome::FirmwareExit(0));
    assert!(rested(&interrupts), "it did not rest while it read");
}

/// Whether the local APIC's timer woke the firmware: its vector is 0x20.
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

/// SeaBIOS enables the x2APIC mode where there may be more than 255 processors; Debian 12's QEMU
/// does not emulate it.
pub(crate) fn in_x2apic_mode(board: Board) {
    let args = ["-cpu", "max", "-smp", "2,maxcpus=288"];
    let qemu = qemus::qemu(Release::Sid);
    start(board, "x2apic", &program(), "PVH", &args, Some(qemu));
}

/// Time goes by as instructions do, so that the first tick of the PIT comes after SeaBIOS and before
/// Linux enables interrupts, always.
pub(crate) fn ticks_before_linux_is_ready(board: Board) {
    let share = demo_share(board.arch());
    let mut machine = machine(board, Server::Embedded, share, linux::OPTIONS);
    machine.qemu = Some(qemus::qemu(Release::Sid));
    machine.qemu_args = ["-icount", "shift=0,sleep=off"].map(Into::into).into();
    linux::expect_boot(&machine, share);
}
