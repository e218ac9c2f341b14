//! Hosts that fail while a machine boots from them.
//!
//! Each fault is injected when the console shows a certain text, while the guest waits. So the text,
//! and not the time, decides which request the fault hits. At least 32 bytes must follow it before that
//! request: the guest may be that far ahead (see [`bootshare_host::Machine::run_steps`]).

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bootshare_host::Moment::{Console, Start};
use bootshare_host::{Board, Machine, Outcome, Servers, Share, demo};

use crate::lab::{BAR, Run, Server, demo_share, empty_dir, machine, random, run_with, sha256_of};

/// The size of a file for faults in the middle of a load: far more than the 16 MiB that are requested
/// at a time.
const LARGE: u64 = 256 << 20;

/// The same for loads that are hashed, which the firmware does slowly.
const SMALLER: u64 = 80 << 20;

/// A short deadline, for faults that the firmware must detect.
const SHORT: &str = "bootshare.log=debug bootshare.deadline=3";

/// A deadline longer than any load on a busy host, for delays that must not count as faults.
const LONG: &str = "bootshare.log=debug bootshare.deadline=100";

/// Parts of the warning: what went wrong, and what the user should check.
const STALLED: &str = "the host made no progress for 3000 ms; is the share's server alive?";

/// The host made no progress until the deadline, nor after the reset: the firmware gives the share up.
fn expect_lost(run: &Run, tag: &str) {
    run.line(&[&stalled(tag)]);
    run.line(&[&format!("bootshare: error: share {tag}: {STALLED}")]);
}

fn stalled(tag: &str) -> String {
    format!("bootshare: warning: share {tag}: {STALLED}; resetting the device")
}

/// A share with one boot entry for each of `files`, tried in this order. Each entry loads that file, of
/// `size` bytes, and the demo's initramfs.
fn share(name: &str, board: Board, files: &[&str], size: u64) -> PathBuf {
    let share = empty_dir(&format!("faults-{name}-{board:?}"));
    fs::create_dir_all(share.join("loader/entries")).unwrap();
    let demo = demo_share(board.arch());
    for (from, to) in [
        (board.arch().kernel_name(), "linux"),
        ("initrd.img", "initrd"),
        ("greeting.txt", "greeting.txt"),
    ] {
        fs::copy(demo.join(from), share.join(to)).unwrap();
    }
    let words = fs::read_to_string(demo.join("cmdline")).unwrap();
    for (number, file) in files.iter().enumerate() {
        make_large(&share.join(file), size);
        let entry = format!(
            "sort-key {number}\nlinux /linux\ninitrd /initrd\ninitrd /{file}\noptions {words}\n"
        );
        fs::write(share.join(format!("loader/entries/{file}.conf")), entry).unwrap();
    }
    share
}

/// Makes a cpio archive of one file: some random blocks with holes between them.
fn make_large(path: &Path, size: u64) {
    let mut archive = demo::Archive::default();
    archive.file("padding", 0o644, &[]).unwrap();
    let mut head = archive.finish().unwrap();
    let magic = &head[..6];
    let end = 1 + head[1..].windows(6).position(|w| w == magic).unwrap();
    let trailer = head.split_off(end);
    let trailer_at = size - trailer.len() as u64;
    // c_filesize of the header (buffer-format.rst).
    let padding = trailer_at - head.len() as u64;
    head[54..62].copy_from_slice(format!("{padding:08x}").as_bytes());
    let file = File::create(path).unwrap();
    file.write_all_at(&head, 0).unwrap();
    for at in (4096..trailer_at - 512).step_by(1_000_000) {
        file.write_all_at(&random(512), at).unwrap();
    }
    file.write_all_at(&trailer, trailer_at).unwrap();
}

/// A machine with two shares: `share`, with the tag `first`, and the demo.
fn two_shares(board: Board, server: Server, share: &Path, options: &str) -> Machine {
    // The second share has no entries; its kernel is found by its conventional name.
    let options = format!("{options} bootshare.fallback=yes");
    let mut machine = with_memory(board, server, share, &options);
    machine.shares[0].tag = "first".into();
    machine.shares.push(Share {
        tag: demo::TAG.into(),
        dirs: vec![demo_share(board.arch()).into()],
    });
    machine
}

fn with_memory(board: Board, server: Server, share: &Path, options: &str) -> Machine {
    let mut machine = machine(board, server, share, options);
    machine.memory_mib = 1024;
    machine
}

fn nothing(_: &mut Servers<'_>) {}

/// Checks that the kernel and its init have run.
fn expect_boot(run: &Run, kernel: &str) {
    assert_eq!(run.outcome, Outcome::PowerOff);
    run.line(&[&format!("bootshare: starting {kernel}")]);
    run.line(&["demo: Linux ", " mounted the share "]);
    run.line(&[demo::GREETING.trim()]);
}

/// Checks that the kernel of the second of [`two_shares`] has run.
fn expect_boot_of_second(run: &Run, board: Board) {
    expect_boot(
        run,
        &format!("{}:/{}", demo::TAG, board.arch().kernel_name()),
    );
}

fn expect_failure(run: &Run) {
    assert!(
        matches!(run.outcome, Outcome::FirmwareExit(1)),
        "{:?}",
        run.outcome
    );
}

pub(crate) fn killed_before_init(board: Board) {
    let share = demo_share(board.arch());
    let run = run_with(
        &machine(board, Server::Rust, share, SHORT),
        &mut [(Console("debug: mounting"), &mut |servers| servers.kill(0))],
    );
    expect_failure(&run);
    run.line(&[&stalled(demo::TAG)]);
    run.line(&["bootshare: error: virtio-", ": ", STALLED]);
}

/// The firmware cannot know whether the share has a kernel, so it reports no missing kernel.
pub(crate) fn killed_after_init(board: Board) {
    let share = demo_share(board.arch());
    let run = run_with(
        &machine(board, Server::Rust, share, SHORT),
        &mut [(Console("bootshare: mounted"), &mut |servers| {
            servers.kill(0)
        })],
    );
    expect_failure(&run);
    expect_lost(&run, demo::TAG);
    // One deadline until the share is lost, one more for the attempt to resume it. Before it is killed, the
    // server may be late as well.
    let resets = |line: &&String| line.contains("resetting the device");
    assert!(run.lines.iter().filter(resets).count() >= 2);
    assert_eq!(run.find(&["no kernel"]), None);
}

/// The server is killed after the kernel was looked up and opened, and before it is read. The second
/// share's kernel is booted.
pub(crate) fn killed_before_a_read(board: Board) {
    let share = share("before-read", board, &["large"], SMALLER);
    let run = run_with(
        &two_shares(board, Server::Rust, &share, SHORT),
        &mut [
            (Console("opened first:/initrd"), &mut nothing),
            // All files are opened before one is read.
            (Console("debug"), &mut |servers| servers.kill(0)),
        ],
    );
    expect_lost(&run, "first");
    run.line(&["bootshare: error: first:/loader/entries/large.conf: /linux: "]);
    expect_boot_of_second(&run, board);
}

/// Later entries are on the same share: the firmware tries none of them.
pub(crate) fn killed_while_reading(board: Board, server: Server) {
    let share = share(
        &format!("while-reading-{server:?}"),
        board,
        &["one", "two"],
        LARGE,
    );
    let run = run_with(
        &with_memory(board, server, &share, SHORT),
        &mut [
            (Console("loaded /initrd"), &mut nothing),
            (BAR, &mut |servers| servers.kill(0)),
        ],
    );
    expect_failure(&run);
    expect_lost(&run, demo::TAG);
    run.line(&["bootshare: error: /loader/entries/one.conf: /one: "]);
    assert_eq!(run.find(&["two"]), None);
}

/// Checks that the bytes in guest memory are those of the host's file.
fn expect_whole(run: &Run, share: &Path) {
    let digest = sha256_of(&share.join("large"));
    run.line(&[&format!("bootshare: trace: sha256 {digest} /large from 0")]);
    expect_boot(run, "/linux");
}

pub(crate) fn stopped_for_less_than_the_deadline(board: Board) {
    const STOP: Duration = Duration::from_millis(1500);
    let share = share("short-stop", board, &["large"], SMALLER);
    let options = LONG.replace("debug", "trace");
    let run = run_with(
        &with_memory(board, Server::Rust, &share, &options),
        &mut [
            (Console("loaded /initrd"), &mut nothing),
            (BAR, &mut |servers| servers.stop_for(0, STOP)),
        ],
    );
    assert_eq!(run.find(&["bootshare: warning"]), None);
    expect_whole(&run, &share);
    // The server was stopped during this load.
    let loaded = run.line(&["bootshare: loaded /large, "]);
    let millis = loaded
        .rsplit(" ms")
        .nth(1)
        .and_then(|text| text.rsplit(' ').next());
    let millis: u128 = millis.unwrap().parse().unwrap();
    assert!(millis > STOP.as_millis() / 2, "{loaded}");
}

/// At the device reset QEMU waits for its stopped server, and so does the firmware.
pub(crate) fn stopped_for_longer(board: Board) {
    let share = share("long-stop", board, &["large"], SMALLER);
    // Longer than the others, because a server that goes on may be late.
    let options = SHORT
        .replace("debug", "trace")
        .replace("deadline=3", "deadline=8");
    let run = run_with(
        &with_memory(board, Server::Rust, &share, &options),
        &mut [
            (Console("loaded /initrd"), &mut nothing),
            (BAR, &mut |servers| servers.stop(0)),
            (Console("warning: share bootshare"), &mut |servers| {
                servers.stop_for(0, Duration::from_secs(2));
            }),
        ],
    );
    run.line(&[&stalled(demo::TAG).replace("3000", "8000")]);
    run.line(&["bootshare: share bootshare: resumed"]);
    expect_whole(&run, &share);
}

/// The firmware has printed its warning before QEMU hangs with the stopped server; the host tool then
/// ends QEMU.
pub(crate) fn stopped_for_ever(board: Board) {
    let share = share("stop", board, &["large"], LARGE);
    let run = run_with(
        &with_memory(board, Server::Rust, &share, SHORT),
        &mut [
            (Console("loaded /initrd"), &mut nothing),
            (BAR, &mut |servers| servers.stop(0)),
        ],
    );
    run.line(&[&stalled(demo::TAG)]);
    match run.outcome {
        Outcome::ServerFailed { what, .. } => assert!(what.contains("a server may be stopped")),
        other => panic!("{other:?}"),
    }
}

/// The server is stopped, and killed after the warning: the firmware tries the other share.
pub(crate) fn stopped_then_killed(board: Board, server: Server) {
    let share = share(&format!("stop-kill-{server:?}"), board, &["large"], LARGE);
    let run = run_with(
        &two_shares(board, server, &share, SHORT),
        &mut [
            (Console("loaded first:/initrd"), &mut nothing),
            (BAR, &mut |servers| servers.stop(0)),
            (Console("warning: share first"), &mut |servers| {
                servers.kill(0)
            }),
        ],
    );
    expect_lost(&run, "first");
    run.line(&["bootshare: error: first:/loader/entries/large.conf: /large: "]);
    expect_boot_of_second(&run, board);
}

/// The server answers late: QEMU waits for it, and so does the firmware.
pub(crate) fn late(board: Board, server: Server) {
    let share = demo_share(board.arch());
    let late = Duration::from_secs(2);
    let run = run_with(
        &machine(board, server, share, LONG),
        &mut [
            (Start, &mut |servers| servers.stop_for(0, late)),
            (Console("debug: mounting"), &mut |servers| {
                servers.stop_for(0, late);
            }),
        ],
    );
    assert_eq!(run.find(&["bootshare: warning"]), None);
    expect_boot(&run, &format!("/{}", board.arch().kernel_name()));
}

/// The file of each entry but the last is changed while it is loaded: these entries fail, and the last
/// one boots.
pub(crate) fn files_that_change(board: Board, server: Server) {
    let files = ["cut", "grown", "written", "replaced"];
    let share = share(&format!("changing-{server:?}"), board, &files, SMALLER);
    let whole = sha256_of(&share.join("replaced"));
    let open = |name| File::options().append(true).open(share.join(name)).unwrap();
    let replace = |name: &str| {
        fs::write(share.join("new"), "another file").unwrap();
        fs::rename(share.join("new"), share.join(name)).unwrap();
    };
    let run = run_with(
        &with_memory(board, server, &share, &LONG.replace("debug", "trace")),
        &mut [
            (Console("loaded /initrd"), &mut nothing),
            (BAR, &mut |_| open("cut").set_len(SMALLER / 2).unwrap()),
            (Console("loaded /initrd"), &mut nothing),
            (BAR, &mut |_| open("grown").write_all(b"more").unwrap()),
            (Console("loaded /initrd"), &mut nothing),
            (BAR, &mut |_| {
                let file = File::options().write(true).open(share.join("written"));
                file.unwrap().write_all_at(b"other", SMALLER - 5).unwrap();
            }),
            // Replacing the path does not affect the open file.
            (Console("opened /replaced"), &mut |_| replace("replaced")),
        ],
    );
    for (name, error) in [
        (
            "cut",
            "the file ended too early; did it shrink on the host?",
        ),
        ("grown", "it changed on the host while it was read"),
        ("written", "it changed on the host while it was read"),
    ] {
        run.line(&[&format!(
            "bootshare: error: /loader/entries/{name}.conf: /{name}: {error}"
        )]);
    }
    run.line(&[&format!(
        "bootshare: trace: sha256 {whole} /replaced from 0"
    )]);
    expect_boot(&run, "/linux");
}
