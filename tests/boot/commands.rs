//! The firmware's shell commands, run by `bootshare.cmd`.

use std::fs;

use bootshare_host::board::Transport;
use bootshare_host::{Board, Outcome, Share, demo};

use crate::lab::{Run, Server, demo_share, empty_dir, machine, run, sha256};
use crate::tree;

fn succeed(run: Run) -> Run {
    assert_eq!(run.outcome, Outcome::FirmwareExit(0));
    run
}

pub(crate) fn list(board: Board) {
    let share = demo_share(board.arch());
    let kernel = board.arch().kernel_name();
    let size = fs::metadata(share.join(kernel)).unwrap().len().to_string();
    let run_commands = |commands: &str| {
        let options = format!("bootshare.cmd=\"{commands}\"");
        run(&machine(board, Server::Rust, share, &options))
    };

    let devices = succeed(run_commands("devices"));
    let transport = match board.transport() {
        Transport::Mmio => "virtio-mmio",
        Transport::Pci => "virtio-pci",
    };
    devices.line(&[transport, demo::TAG]);
    // The firmware prints this line first.
    let version = concat!("bootshare: version ", env!("CARGO_PKG_VERSION"));
    assert_eq!(devices.line(&["bootshare: "]), version);

    let files = succeed(run_commands(&format!(
        "ls -l /; stat /{kernel}; cat /greeting.txt"
    )));
    let output = files.output();
    for name in [
        kernel,
        "cmdline",
        "greeting.txt",
        "initrd.img",
        "random.bin",
    ] {
        assert!(
            output.iter().any(|line| line.ends_with(name)),
            "ls shows no {name}"
        );
    }
    let sized = output
        .iter()
        .filter(|line| line.split(|c: char| !c.is_ascii_digit()).any(|w| w == size));
    assert!(
        sized.count() >= 2,
        "ls -l and stat both tell the size {size}"
    );
    assert!(output.contains(&demo::GREETING.trim()));

    // The exit status is that of the commands.
    let missing = run_commands("cat /nosuch");
    assert!(matches!(missing.outcome, Outcome::FirmwareExit(1)));
    missing.line(&["bootshare: error: ", "/nosuch"]);
}

pub(crate) fn two_shares(board: Board) {
    let dirs = ["first", "second"].map(|name| {
        let dir = empty_dir(&format!("{name}-{board:?}"));
        fs::write(dir.join("which"), format!("the {name} share\n")).unwrap();
        dir
    });
    let mut machine = machine(board, Server::Rust, &dirs[0], "");
    machine.shares = ["first", "second"]
        .into_iter()
        .zip(dirs)
        .map(|(tag, dir)| Share::new(tag, dir))
        .collect();
    let one = ["bootshare.tag=first", "bootshare.tag=second"];
    for (tag, option) in ["first", "second"].into_iter().zip(one) {
        machine.append = format!("{option} bootshare.cmd=\"cat /which; mounts; devices\"");
        let run = succeed(run(&machine));
        let mounted = format!("bootshare: mounted {tag} (");
        run.line(&[&mounted]);
        let output = run.output();
        assert!(output.contains(&&*format!("the {tag} share")));
        assert_eq!(
            output.iter().filter(|line| line.contains(" on ")).count(),
            1
        );
        // `devices` lists both shares, also when only one is mounted.
        run.line(&["virtio-", "first"]);
        run.line(&["virtio-", "second"]);
    }
    for (tag, other, options) in [
        ("first", "second", ""),
        (
            "second",
            "first",
            "bootshare.tag=second bootshare.tag=first",
        ),
    ] {
        machine.append = format!(
            "{options} bootshare.cmd=\"mounts; cat /which; cat {other}:/which; sha256 {tag}:which; \
             ls {other}:; stat first:/nosuch\""
        );
        let run = run(&machine);
        assert!(matches!(run.outcome, Outcome::FirmwareExit(1)));
        run.line(&["bootshare: error: first:/nosuch: no such file"]);
        let digest = sha256(format!("the {tag} share\n").as_bytes());
        let output = run.output();
        assert!(output[0].starts_with(&format!("{tag} on / and {tag}:/ (FUSE 7.")));
        assert!(output[1].starts_with(&format!("{other} on {other}:/ (FUSE 7.")));
        let expected = [
            format!("the {tag} share"),
            format!("the {other} share"),
            format!("{digest}  {tag}:which"),
            "which".into(),
        ];
        assert_eq!(output[2..], expected);
    }
}

pub(crate) fn walk(board: Board, server: Server) {
    let share = empty_dir(&format!("odd-{board:?}"));
    tree::make(&share);
    let options = "bootshare.cmd=\"walk /\"";
    let run = succeed(run(&machine(board, server, &share, options)));
    let (expected, output) = (tree::walk(&share), run.output());
    for (expected, line) in expected.iter().zip(&output) {
        assert_eq!(line, expected);
    }
    assert_eq!(output.len(), expected.len());
}
