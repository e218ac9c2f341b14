//! Tests of how runs end, and that they leave nothing behind. The guests are Debian's kernel with the demo's init,
//! loaded by QEMU itself; the firmware has its own tests.

#[cfg(feature = "embed-firmware")]
mod commands;
mod console;
mod downloads;
mod install;
mod parts;
#[path = "../../../tests/boot/shared.rs"]
mod shared;
mod tool;
#[cfg(feature = "embed-firmware")]
mod wrong;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bootshare_host::{Board, Console, Machine, Outcome, Report, Share, demo};

use parts::{LIMIT, c_server, demo_share, install};

/// A machine whose kernel is loaded by QEMU itself.
fn linux(board: Board, words: &str) -> Machine {
    let share = demo_share(board.arch());
    let mut machine = Machine::new(board, share.join(board.arch().kernel_name()));
    let cmdline = fs::read_to_string(share.join("cmdline")).unwrap();
    // Without this frequency, Linux measures it, which may hang under TCG on microvm. Its check of
    // the timer may panic if this machine is busy.
    machine.append = format!(
        "{} tsc_early_khz=2000000 no_timer_check {words}",
        cmdline.trim()
    );
    machine.qemu_args = vec!["-initrd".into(), share.join("initrd.img").into()];
    machine.shares = vec![Share::new(demo::TAG, share)];
    machine.server = Some(c_server().into());
    machine.time_limit = Some(LIMIT);
    machine
}

/// A machine that never executes an instruction.
fn paused() -> Machine {
    let mut machine = linux(Board::X86_64Q35, "");
    machine.qemu_args.push("-S".into());
    machine
}

fn run(machine: &Machine) -> Report {
    machine.run(Console::Capture).unwrap()
}

/// An executable shell script.
fn script(dir: &Path, text: &str) -> PathBuf {
    let (draft, path) = (dir.join("draft"), dir.join("server"));
    fs::write(&draft, format!("#!/bin/sh\n{text}")).unwrap();
    install(&draft, &path);
    path
}

#[test]
fn a_guest_that_powers_off_succeeds_and_its_console_is_kept() {
    for board in [Board::X86_64Q35, Board::Aarch64Virt] {
        let report = run(&linux(board, ""));
        assert_eq!(report.outcome, Outcome::PowerOff, "{}", report.text());
        assert_eq!(report.outcome.exit_code(), 0);
        let greeting = demo::GREETING.trim();
        assert!(report.text().contains(greeting), "{}", report.text());
    }
}

#[test]
fn a_guest_that_resets_fails() {
    for board in [Board::X86_64Microvm, Board::Aarch64VirtPci] {
        let report = run(&linux(board, "demo.tag=nosuch"));
        assert_eq!(report.outcome, Outcome::Reset, "{}", report.text());
        assert_eq!(report.outcome.exit_code(), 120);
        let error = "demo: error: cannot mount the share nosuch";
        assert!(report.text().contains(error), "{}", report.text());
    }
}

#[test]
fn a_machine_is_ended_at_the_time_limit() {
    let mut machine = paused();
    machine.time_limit = Some(Duration::from_secs(2));
    let report = run(&machine);
    assert_eq!(report.outcome, Outcome::TimedOut);
    assert_eq!(report.outcome.exit_code(), 124);
    assert!(report.duration < Duration::from_secs(20));
}

#[test]
fn error_messages_of_qemu_are_passed_on() {
    let mut machine = paused();
    machine.qemu_args.push("-nosuchoption".into());
    let outcome = run(&machine).outcome;
    assert!(
        matches!(outcome, Outcome::QemuFailed { .. }) && outcome.exit_code() != 0,
        "{outcome:?}"
    );
    assert!(outcome.to_string().contains("-nosuchoption"), "{outcome}");
}

#[test]
fn error_messages_of_a_server_that_cannot_start_are_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = paused();
    machine.server = Some(script(
        dir.path(),
        "case $1 in --help) echo --shared-dir; exit ;; esac\necho out of order >&2\nexit 3\n",
    ));
    let outcome = run(&machine).outcome;
    assert!(
        matches!(outcome, Outcome::ServerFailed { .. }),
        "{outcome:?}"
    );
    assert!(outcome.to_string().contains("out of order"), "{outcome}");
}

#[test]
fn a_server_that_dies_under_a_running_machine_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = paused();
    let server = c_server();
    machine.server = Some(script(
        dir.path(),
        &format!(
            "case $1 in --help) exec '{server}' --help ;; esac\n\
             '{server}' \"$@\" &\nsleep 2\nkill -9 $!\necho died >&2\nexit 9\n"
        ),
    ));
    let outcome = run(&machine).outcome;
    let text = outcome.to_string();
    assert!(
        matches!(outcome, Outcome::ServerFailed { .. }),
        "{outcome:?}"
    );
    assert!(text.contains("died") && text.contains('9'), "{text}");
}

#[test]
fn a_program_that_is_not_a_virtiofsd_is_refused() {
    let mut machine = paused();
    machine.server = Some("/bin/true".into());
    let error = format!("{:#}", machine.run(Console::Capture).unwrap_err());
    assert!(
        error.contains("/bin/true is no virtiofsd"),
        "unexpected: {error}"
    );
}
