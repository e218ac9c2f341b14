//! How the firmware ends, with and without a device that passes an exit status to QEMU. A failure is
//! never reported as success.

use std::thread::sleep;
use std::time::Duration;

use bootshare_host::{Board, Machine, Moment, Outcome, Servers};

use crate::lab::{Run, Server, Step, demo_share, machine, run, run_with};

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

/// When QEMU ends, it discards bytes that its UART has not sent, so the firmware waits until they are
/// sent. QEMU sends about six bytes at once to this console, so the pauses begin at six places before
/// the end.
pub(crate) fn keeps_the_last_line(board: Board) {
    let machine = machine(board, Server::Embedded, demo_share(board.arch()), FAILS);
    let line = "/nosuch: no such file or directory";
    for bytes in 7..13 {
        let (from, rest) = line.split_at(line.len() - bytes);
        read_slowly(&machine, from, rest);
    }
}

/// As above, on a processor that cannot enter the firmware's 64-bit code.
pub(crate) fn keeps_the_last_line_of_32_bits(board: Board) {
    let mut machine = machine(board, Server::Embedded, demo_share(board.arch()), "");
    machine.qemu_args = ["-cpu", "qemu32"].map(Into::into).into();
    read_slowly(&machine, "choose another", " one with QEMU's -cpu");
}

/// From the text `from` on, the console is read slower than the firmware writes; `rest` ends its last
/// line.
fn read_slowly(machine: &Machine, from: &str, rest: &str) {
    let mut pause = |_: &mut Servers<'_>| sleep(Duration::from_millis(100));
    let mut pauses = vec![pause; rest.len()];
    let mut steps: Vec<Step<'_>> = vec![(Moment::Console(from), &mut pause)];
    steps.extend(
        pauses
            .iter_mut()
            .map(|pause| -> Step<'_> { (Moment::Console("."), pause) }),
    );
    let run = run_with(machine, &mut steps);
    assert!(matches!(run.outcome, Outcome::FirmwareExit(1)));
    let last = run.lines.last().unwrap();
    assert!(last.ends_with(&format!("{from}{rest}")), "{last:?}");
}
