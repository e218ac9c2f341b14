//! Directories and machines that cannot boot. Each gives an error line with the remedy and a non-zero
//! status, at once.

use std::fs;

use bootshare_host::{Arch, Board, Machine, Outcome, demo};

use crate::lab::{Server, demo_share, empty_dir, machine, run};

/// Runs a machine that must fail. An error line must contain all of `parts`.
fn expect_error(machine: &Machine, parts: &[&str]) {
    let run = run(machine);
    assert!(
        matches!(run.outcome, Outcome::FirmwareExit(1)),
        "{:?}",
        run.outcome
    );
    // The firmware found it without waiting for a deadline.
    assert_eq!(run.find(&["made no progress"]), None);
    let mut all = vec!["bootshare: error: "];
    all.extend(parts);
    run.line(&all);
}

fn dir_name(what: &str, board: Board) -> String {
    format!("{what}-{board:?}")
}

pub(crate) fn no_share(board: Board) {
    let mut machine = machine(board, Server::C, demo_share(board.arch()), "");
    machine.shares.clear();
    expect_error(&machine, &["no virtio-fs device", "vhost-user-fs"]);
}

pub(crate) fn wrong_tag(board: Board) {
    let share = demo_share(board.arch());
    let machine = machine(board, Server::Rust, share, "bootshare.tag=nosuch");
    expect_error(&machine, &["bootshare.tag=nosuch", demo::TAG]);
}

pub(crate) fn no_kernel(board: Board) {
    let share = empty_dir(&dir_name("no-kernel", board));
    fs::write(share.join("readme"), "nothing to boot").unwrap();
    let machine = machine(board, Server::Rust, &share, "");
    expect_error(
        &machine,
        &["no kernel", "put one at", board.arch().kernel_name()],
    );
}

pub(crate) fn empty_kernel(board: Board) {
    let share = empty_dir(&dir_name("empty-kernel", board));
    let name = board.arch().kernel_name();
    fs::write(share.join(name), "").unwrap();
    let machine = machine(board, Server::C, &share, "");
    expect_error(&machine, &[&format!("/{name}"), "empty"]);
}

pub(crate) fn foreign_kernel(board: Board) {
    let share = empty_dir(&dir_name("foreign-kernel", board));
    let name = board.arch().kernel_name();
    let (other, found) = match board.arch() {
        Arch::X86_64 => (Arch::Aarch64, "it is an arm64 kernel"),
        Arch::Aarch64 => (Arch::X86_64, "it is an x86-64 kernel"),
    };
    fs::copy(
        demo_share(other).join(other.kernel_name()),
        share.join(name),
    )
    .unwrap();
    let machine = machine(board, Server::Rust, &share, "");
    expect_error(&machine, &[&format!("/{name}"), found]);
}

/// The ROM starts at EL3 on a machine that has EL3.
pub(crate) fn el3(board: Board) {
    let mut machine = machine(board, Server::C, demo_share(board.arch()), "");
    machine.qemu_args = vec!["-machine".into(), "secure=on".into()];
    expect_error(&machine, &["EL3", "without secure=on"]);
}

pub(crate) fn long_options(board: Board) {
    let options = "x".repeat(5000);
    let machine = machine(board, Server::C, demo_share(board.arch()), &options);
    expect_error(
        &machine,
        &["fw_cfg", "opt/org.bootshare/cmdline", "too long"],
    );
}

pub(crate) fn other_chipset(board: Board) {
    let mut machine = machine(board, Server::C, demo_share(board.arch()), "");
    machine.qemu_args = vec!["-machine".into(), "pc".into()];
    expect_error(&machine, &["chipset", "q35 and microvm"]);
}

pub(crate) fn legacy_device(board: Board) {
    let share = demo_share(board.arch());
    let mut machine = machine(board, Server::C, share, "");
    machine.legacy_mmio = true;
    expect_error(&machine, &["virtio-mmio.force-legacy=false"]);
}
