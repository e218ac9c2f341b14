//! The minimal example firmware, run as its documentation shows.

use crate::lab::{self, Server};
use bootshare_host::{Board, Machine, Outcome};
use std::fs;
use std::path::{Path, PathBuf};

/// A machine that runs the example for `board`, and the empty directory that it shares.
fn example(board: Board) -> (Machine, PathBuf) {
    let share = lab::empty_dir(&format!("example-{}", board.arch().name()));
    let mut machine = lab::machine(board, Server::Rust, &share, "");
    let name = format!("target/examples/minimal-{}.elf", board.arch().name());
    machine.firmware = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    (machine, share)
}

fn prints_a_file(machine: &Machine, share: &Path, end: Outcome) {
    fs::write(share.join("greeting.txt"), "Hello, minimal\n").unwrap();
    let run = lab::run(machine);
    assert_eq!(run.outcome, end);
    assert_eq!(run.lines.first().unwrap(), "bootshare: Hello, minimal");
}

#[test]
fn x86_64_prints_a_file() {
    let (machine, share) = example(Board::X86_64Microvm);
    let run = lab::run(&machine);
    assert_eq!(run.outcome, Outcome::FirmwareExit(1));
    run.line(&["panicked at"]);
    prints_a_file(&machine, &share, Outcome::FirmwareExit(0));
}

#[test]
fn aarch64_prints_a_file() {
    let (mut machine, share) = example(Board::Aarch64Virt);
    // The example halts at its end, and QEMU goes on: a match of the console ends the run.
    machine.watch.fail = vec!["^panicked at".parse().unwrap()];
    let run = lab::run(&machine);
    assert!(matches!(run.outcome, Outcome::FailureShown { .. }));
    prints_a_file(&machine, &share, Outcome::PowerOff);
}
