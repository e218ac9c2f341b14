//! The boards on the QEMU versions and with the kernels of several Debian releases.

use std::collections::BTreeSet;
use std::io::{Write, stderr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use bootshare_host::debian::Release;
use bootshare_host::{Board, unpacked};

use crate::lab::Server;
use crate::linux;
use crate::shared::target;

/// The number of additional boots of `microvm`. QEMU's versions differ most there: QEMU's own firmware
/// sets up almost nothing before it starts ours.
const MICROVM_ROUNDS: usize = 20;

/// Boots `board` on the newest QEMU with the kernel of the Debian release `linux`.
pub(crate) fn newest(board: Board, server: Server, linux: Release) {
    linux::boots_on(board, server, &qemu(Release::Sid), linux);
}

/// The directory with QEMU of `release`.
pub(crate) fn qemu(release: Release) -> PathBuf {
    let dir = unpacked::fetch(release, &target().join("qemu"));
    dir.unwrap_or_else(|error| panic!("{error:#}"))
}

/// One boot of the matrix: the indices of its QEMU, board and kernel.
#[derive(Clone, Copy)]
struct Cell {
    qemu: usize,
    board: Board,
    linux: Release,
    server: Server,
}

/// Boots each board on each QEMU with each kernel, and prints a table for docs/testing.md.
#[test]
#[ignore = "some ten minutes on two idle cores: make test-qemus"]
fn all_boards_boot_on_all_qemus_with_all_kernels() {
    let qemus = Release::ALL.map(qemu);
    let mut cells = Vec::new();
    // The servers take turns, so that each board and each QEMU runs with all of them.
    let mut add = |qemu, board, linux| {
        let server = [Server::Embedded, Server::Rust, Server::C][cells.len() % 3];
        cells.push(Cell {
            qemu,
            board,
            linux,
            server,
        });
    };
    for qemu in 0..qemus.len() {
        for round in 0..MICROVM_ROUNDS {
            let linux = Release::ALL[round % Release::ALL.len()];
            add(qemu, Board::X86_64Microvm, linux);
        }
        for board in Board::ALL {
            for linux in Release::ALL {
                add(qemu, board, linux);
            }
        }
    }

    let waiting = Mutex::new(cells.iter());
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap().next();
                    let Some(&cell) = next else { return };
                    let boot =
                        || linux::boots_on(cell.board, cell.server, &qemus[cell.qemu], cell.linux);
                    let booted = catch_unwind(AssertUnwindSafe(boot)).ok();
                    let version = booted.map(|run| {
                        let line = run.line(&["demo: Linux "]);
                        line.split(' ').nth(2).unwrap().to_owned()
                    });
                    say(if version.is_some() { "." } else { "F" });
                    results.lock().unwrap().push((cell, version));
                }
            });
        }
    });

    let results = results.into_inner().unwrap();
    say(&table(&qemus, &results));
    let failed: Vec<_> = results
        .iter()
        .filter(|(_, version)| version.is_none())
        .map(|(cell, _)| {
            let Cell {
                qemu,
                board,
                linux,
                server,
            } = cell;
            let qemu = Release::ALL[*qemu];
            format!("{board:?}, QEMU of {qemu:?}, Linux of {linux:?}, server {server:?}")
        })
        .collect();
    assert!(failed.is_empty(), "failed: {failed:#?}");
}

/// The table of successful boots by board and QEMU, in Markdown.
fn table(qemus: &[PathBuf], results: &[(Cell, Option<String>)]) -> String {
    let mut text = String::from("\n\n| board |");
    for dir in qemus {
        let output = Command::new(dir.join("qemu-system-x86_64"))
            .arg("--version")
            .output()
            .unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let version = output.split(' ').nth(3).unwrap();
        text.push_str(&format!(" QEMU {version} |"));
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(qemus.len()));
    for board in Board::ALL {
        text.push_str(&format!("\n| `{}` |", board.name()));
        for qemu in 0..qemus.len() {
            let cells = results
                .iter()
                .filter(|(cell, _)| cell.board == board && cell.qemu == qemu);
            let (count, good) = cells.fold((0, 0), |(count, good), (_, version)| {
                (count + 1, good + usize::from(version.is_some()))
            });
            text.push_str(&format!(" {good} of {count} |"));
        }
    }
    let kernels: BTreeSet<_> = results
        .iter()
        .filter_map(|(_, version)| version.as_deref())
        .collect();
    let kernels: Vec<_> = kernels.into_iter().collect();
    text.push_str(&format!("\n\nKernels: {}\n", kernels.join(", ")));
    text
}

/// Prints at once: `println!` would be held back until the test has ended.
fn say(text: &str) {
    stderr().write_all(text.as_bytes()).unwrap();
}
