//! The minimal examples, as a reader of the documentation would run them.

use crate::lab::{self, Server};
use bootshare_host::{Board, Outcome};
use std::fs;
use std::path::Path;

/// The first line that the example for `board` prints of a share.
fn first_line(board: Board, share: &Path) -> (String, Outcome) {
    let mut machine = lab::machine(board, Server::Rust, share, "");
    let name = format!("target/examples/minimal-{}.elf", board.arch().name());
    machine.firmware = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let run = lab::run(&machine);
    (
        run.lines.into_iter().next().unwrap_or_default(),
        run.outcome,
    )
}

fn prints_a_file(board: Board, end: Outcome) {
    let share = lab::empty_dir(&format!("example-{}", board.arch().name()));
    let (line, _) = first_line(board, &share);
    assert!(
        line.contains("panicked at"),
        "there is no such file yet: {line}"
    );
    fs::write(share.join("greeting.txt"), "Hello, minimal\n").unwrap();
    let expected = ("bootshare: Hello, minimal".to_string(), end);
    assert_eq!(first_line(board, &share), expected);
}

#[test]
fn x86_64_prints_a_file() {
    prints_a_file(Board::X86_64Microvm, Outcome::FirmwareExit(0));
}

#[test]
fn aarch64_prints_a_file() {
    prints_a_file(Board::Aarch64Virt, Outcome::PowerOff);
}
