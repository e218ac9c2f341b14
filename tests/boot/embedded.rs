//! The host tool's embedded server with real machines: a Linux guest that tries to change files and to
//! leave the share, layers, injected faults.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bootshare_host::serve::Cache;
use bootshare_host::{Board, Outcome, demo};

use crate::lab::{Run, Server, demo_share, empty_dir, machine, run};
use crate::shared::LIMIT;
use crate::tree;

/// A share that boots the demo. The demo's init then runs `script`.
fn scripted(name: &str, board: Board, script: &str) -> PathBuf {
    let share = empty_dir(&format!("embedded-{name}-{board:?}"));
    for file in [
        board.arch().kernel_name(),
        "initrd.img",
        "cmdline",
        "greeting.txt",
    ] {
        fs::copy(demo_share(board.arch()).join(file), share.join(file)).unwrap();
    }
    fs::write(share.join("script"), script).unwrap();
    share
}

fn expect_script(board: Board, share: &Path) -> Run {
    let options = "-- demo.run=/script";
    let run = run(&machine(board, Server::Embedded, share, options));
    assert_eq!(run.outcome, Outcome::PowerOff);
    run.line(&["script: done"]);
    run
}

/// Shell commands by which a guest tries to change the share; `x` is a file, `d` a directory.
const CHANGES: [&str; 24] = [
    "echo more > x",
    "echo more >> x",
    "echo new > new",
    "truncate -s 0 x",
    "dd if=/dev/zero of=x bs=1 count=1 conv=notrunc",
    "fallocate -l 100000 x",
    "touch x",
    "touch new",
    "mkdir new",
    "rmdir d",
    "rm -f x",
    "rm -f link",
    "mv x y",
    "mv d e",
    "ln x hard",
    "ln -s x soft",
    "mkfifo fifo",
    "mknod device c 1 3",
    "chmod 777 x",
    "chmod 777 d",
    "chown 7:7 x",
    "cp x new",
    "cp /init d/init",
    "shred -n 1 x",
];

/// Linux mounts the share for writing, and the server refuses every change.
pub(crate) fn refuses_changes(board: Board) {
    let mut script = String::from("cd /share/dir\n");
    for change in CHANGES {
        script.push_str(&format!(
            "( {change} ) >/tmp 2>&1 </dev/null; echo \"script: $? $(cat /tmp): {change}\"\n"
        ));
    }
    script.push_str("cat x\necho script: done\n");
    let share = scripted("changes", board, &script);
    fs::create_dir_all(share.join("dir/d")).unwrap();
    fs::write(share.join("dir/x"), "as it was\n").unwrap();
    symlink("x", share.join("dir/link")).unwrap();
    let before = tree::walk(&share);
    let run = expect_script(board, &share);
    for change in CHANGES {
        let line = run.line(&["script: ", &format!(": {change}")]);
        assert!(!line.contains("script: 0 "), "{line}");
        assert!(line.contains("Read-only file system"), "{line}");
    }
    run.line(&["as it was"]);
    assert_eq!(tree::walk(&share), before);
}

/// A guest tries to leave the share by `..`, by links that point outside, and by a directory that the host
/// moves out of the share and back again and again.
pub(crate) fn keeps_guests_in(board: Board) {
    // Only commands of the shell itself: most of the time of others is that of their start.
    let script = r#"
        show() {
            for file; do
                while read -r line; do echo "$line"; done <"$file"
            done 2>/dev/null
        }
        for n in $(seq 600); do
            cd /share
            show dir/moving/../secret dir/moving/../../secret absolute up/secret dir/../../secret
            cd dir/moving 2>/dev/null && show ../secret ../../secret ./secret below/../../secret file
            cd /share
            show dir/moving/file
            echo dir/moving/../* dir/moving/../../* up/*
        done
        echo script: done
        "#;
    let share = scripted("ways-out", board, script);
    let outside = empty_dir(&format!("embedded-outside-{board:?}"));
    fs::write(outside.join("secret"), "the secret\n").unwrap();
    fs::create_dir_all(share.join("dir/moving/below")).unwrap();
    fs::write(share.join("dir/moving/file"), "moving about\n").unwrap();
    symlink(outside.join("secret"), share.join("absolute")).unwrap();
    symlink("../".repeat(40), share.join("up")).unwrap();

    let over = AtomicBool::new(false);
    let places = [share.join("dir/moving"), outside.join("moving")];
    let run = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                fs::rename(&places[0], &places[1]).unwrap();
                std::thread::sleep(Duration::from_micros(500));
                fs::rename(&places[1], &places[0]).unwrap();
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        let run = std::panic::catch_unwind(|| expect_script(board, &share));
        over.store(true, Ordering::Relaxed);
        run
    });
    let run = run.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert_eq!(run.find(&["the secret"]), None);
    // Without this the test would prove nothing: the guest must have seen the directory.
    run.line(&["moving about"]);
}

/// A kernel and a command line in a layer above the demo; the demo is not copied.
pub(crate) fn boots_layers(board: Board) {
    let demo = demo_share(board.arch());
    let (top, middle) = (
        empty_dir(&format!("embedded-top-{board:?}")),
        empty_dir(&format!("embedded-middle-{board:?}")),
    );
    let kernel = board.arch().kernel_name();
    fs::copy(demo.join(kernel), top.join(kernel)).unwrap();
    fs::write(middle.join(kernel), "this is covered").unwrap();
    fs::write(middle.join("greeting.txt"), "Hello from between.\n").unwrap();
    let cmdline = fs::read_to_string(demo.join("cmdline")).unwrap();
    fs::write(
        top.join("cmdline"),
        format!("{} demo.layers", cmdline.trim()),
    )
    .unwrap();
    let mut machine = machine(board, Server::Embedded, &top, "bootshare.log=debug");
    machine.shares[0].dirs.extend([middle, demo.to_owned()]);
    let run = run(&machine);
    assert_eq!(run.outcome, Outcome::PowerOff);
    run.line(&["bootshare: debug: command line: ", "demo.layers"]);
    run.line(&["demo: Linux ", &format!("mounted the share {}", demo::TAG)]);
    run.line(&["Hello from between."]);
}

fn trace_table(trace: &Path) -> String {
    let mut table = Vec::new();
    bootshare_host::serve::print(trace, &mut table).unwrap();
    String::from_utf8(table).unwrap()
}

/// With `--cache always` a guest that has gone through a tree asks nothing when it does so again.
/// Mounted for writing, Linux would ask once more for the attributes of what it has read, because
/// its time of access may have changed.
pub(crate) fn asks_nothing_twice(board: Board) {
    let script = "mount -o remount,ro /share;
        find /share -exec ls -ld {} + > /tree; [ -e /share/first ];
        find /share -exec ls -ld {} + | cmp - /tree; [ -e /share/second ];
        echo 'script: done'";
    let share = scripted("always", board, script);
    for number in 0..300 {
        let dir = share.join(format!("dir/{}", number % 3));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(number.to_string()), "text").unwrap();
        symlink("0/0", share.join(format!("dir/link{number}"))).unwrap();
    }
    let mut machine = machine(board, Server::Embedded, &share, "-- demo.run=/script");
    machine.cache = Cache::Always;
    let dir = empty_dir(&format!("embedded-always-trace-{board:?}"));
    machine.trace = Some(dir.join("trace"));
    let run = run(&machine);
    assert_eq!(run.outcome, Outcome::PowerOff);
    run.line(&["script: done"]);
    let table = trace_table(&dir.join("trace"));
    // The names that do not exist mark places in the trace.
    let line = |name: &str| {
        let at = table.lines().position(|line| line.contains(name));
        at.unwrap_or_else(|| panic!("no line has {name}:\n{table}"))
    };
    assert!(line("READDIRPLUS") < line("/first "), "{table}");
    assert_eq!(line("/first ") + 1, line("/second "), "{table}");
}

/// While the answer to one READ of the kernel is delayed, all other requests are answered, among them
/// the READs of the initrd.
pub(crate) fn reads_all_files_at_once(board: Board) {
    let dir = empty_dir(&format!("embedded-at-once-{board:?}"));
    let mut machine = machine(board, Server::Embedded, demo_share(board.arch()), "");
    // The first two READs are those of the kernel's head and of the command line.
    machine.fault = Some("delay=9s@READ:3".parse().unwrap());
    machine.thread_pool_size = Some(2);
    machine.trace = Some(dir.join("trace"));
    assert_eq!(run(&machine).outcome, Outcome::PowerOff);
    // In the order of the replies.
    let table = trace_table(&dir.join("trace"));
    let line = |parts: [&str; 2]| {
        let found = |line: &str| parts.iter().all(|part| line.contains(part));
        let at = table.lines().position(found);
        at.unwrap_or_else(|| panic!("no line has {parts:?}:\n{table}"))
    };
    let kernel = board.arch().kernel_name();
    let initrd = line(["READ", "/initrd.img"]);
    assert!(initrd < line([kernel, "(fault: delay 9s)"]), "{table}");
}

/// The firmware names each fault of a faulty server, and the trace records it.
pub(crate) fn faults(board: Board) {
    let share = demo_share(board.arch());
    let with = |fault: &str, options: &str| {
        let mut machine = machine(board, Server::Embedded, share, options);
        machine.fault = Some(fault.parse().unwrap());
        machine
    };
    let command = "bootshare.cmd=\"sha256 /random.bin\"";
    let error = run(&with("error=EIO@READ:3", command));
    assert!(matches!(error.outcome, Outcome::FirmwareExit(1)));
    error.line(&["bootshare: error: ", "/random.bin"]);

    // Slow but correct: READs are answered in another order than they were sent.
    let dir = empty_dir(&format!("embedded-trace-{board:?}"));
    let mut slow = with("delay=20ms@READ:50%,delay=5ms@LOOKUP", command);
    slow.thread_pool_size = Some(4);
    slow.trace = Some(dir.join("trace"));
    let slow = run(&slow);
    assert_eq!(slow.outcome, Outcome::FirmwareExit(0));
    let digest = crate::lab::sha256_of(&share.join("random.bin"));
    assert_eq!(slow.output(), [format!("{digest}  /random.bin")]);
    let table = trace_table(&dir.join("trace"));
    for parts in [
        &["READ", "/random.bin", "1048592", "ok, 1048576 at "][..],
        &["LOOKUP", "/random.bin", "(fault: delay 5ms)"],
        &["operations in ", "round trips"],
    ] {
        let found = table
            .lines()
            .any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "no line has {parts:?}:\n{table}");
    }

    // A server that closes its connection counts as gone.
    let gone = run(&with(
        "disconnect-after=12",
        &format!("bootshare.deadline=1 {command}"),
    ));
    assert!(matches!(gone.outcome, Outcome::FirmwareExit(1)));
    gone.line(&["bootshare: error: "]);

    // A server that exits by itself ends the run, with a message that names the server.
    let failed = run(&with("panic=READ:2", "bootshare.on-error=halt"));
    let Outcome::ServerFailed { what, .. } = &failed.outcome else {
        panic!("{:?}", failed.outcome);
    };
    assert!(what.contains(demo::TAG), "{what}");
    assert!(what.contains("as the fault asks"), "{what}");
}

/// However a run ends, no file of the share stays open in this process.
pub(crate) fn leaves_nothing(board: Board) {
    let share = empty_dir(&format!("embedded-left-{board:?}"));
    let share = fs::canonicalize(share).unwrap();
    let open_files = || {
        let entries = fs::read_dir("/proc/self/fd").unwrap();
        let targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        targets.filter(|target| target.starts_with(&share)).count()
    };
    let path = share.join("file");
    fs::write(&path, "content").unwrap();
    let file = fs::File::open(&path).unwrap();
    assert_eq!(open_files(), 1);
    drop(file);
    for (options, args) in [
        ("bootshare.cmd=\"cat /file\"", &[][..]),
        // QEMU fails at its start; QEMU is killed during the run.
        ("", &["-nosuchoption"]),
        ("", &["-S"]),
    ] {
        let mut machine = machine(board, Server::Embedded, &share, options);
        machine.qemu_args = args.iter().map(Into::into).collect();
        if args == ["-S"] {
            machine.time_limit = Some(Duration::from_secs(2));
        }
        run(&machine);
        // After a time limit, threads of the server that are slow to end are not waited for.
        let end = Instant::now() + LIMIT;
        while open_files() > 0 {
            assert!(
                Instant::now() < end,
                "files of the share are open, after {args:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
