//! How the firmware ends, with and without a device that passes an exit status to QEMU. A failure is
//! never reported as success.

use bootshare_host::{Board, Outcome};

use crate::lab::{Run, Server, demo_share, machine, run};

const SUCCEEDS: &str = "bootshare.cmd=mounts";
const FAILS: &str = "bootshare.cmd=\"cat /nosuch\"";
const POWERS_OFF: &str = "bootshare.cmd=poweroff";
/// The firmware's last line where it has no way to report a failure to QEMU.
const HALTS: &str = "^bootshare: the machine halts; to end QEMU here, start it with ";

/// A machine without the devices that the host tool adds for the exit status; `more` is added instead.
fn end(board: Board, append: &str, more: &[&str]) -> Run {
    let share = demo_share(board.arch());
    let mut machine = machine(board, Server::Embedded, share, append);
    machine.without_status = true;
    machine.qemu_args = more.iter().map(Into::into).collect();
    // A machine that halts is ended by this match.
    machine.watch.fail = vec![HALTS.parse().unwrap()];
    run(&machine)
}

/// After success the machine is powered off; after a failure it halts.
pub(crate) fn without_a_status(board: Board) {
    for append in [SUCCEEDS, POWERS_OFF] {
        assert_eq!(end(board, append, &[]).outcome, Outcome::PowerOff);
    }
    expect_halt(&end(board, FAILS, &[]));
}

/// At EL2 PSCI is called by SMC instead of HVC.
pub(crate) fn at_el2(board: Board) {
    let el2 = ["-machine", "virtualization=on"];
    assert_eq!(end(board, SUCCEEDS, &el2).outcome, Outcome::PowerOff);
    expect_halt(&end(board, FAILS, &el2));
}

fn expect_halt(run: &Run) {
    assert!(
        matches!(run.outcome, Outcome::FailureShown { .. }),
        "{:?}",
        run.outcome
    );
}

/// Only the device that reports a panic is used, not the one that would end QEMU with status 0.
pub(crate) fn by_a_panic(board: Board) {
    let ours = [
        "-action",
        "panic=exit-failure",
        "-device",
        "pvpanic-pci,events=1",
    ];
    assert_eq!(end(board, SUCCEEDS, &ours).outcome, Outcome::PowerOff);
    assert_eq!(end(board, FAILS, &ours).outcome, Outcome::Panic);
    expect_halt(&end(board, FAILS, &["-device", "pvpanic-pci"]));
}
