//! Each command and option, used as on a command line.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::parts::{LIMIT, target};
use crate::tool::{Ran, Tool};

/// The firmware's command in these boots.
const CAT: &str = "--append=bootshare.cmd=\"cat /greeting.txt\"";

fn tool(tool: &Tool, args: &[&str]) -> Ran {
    let ran = tool.run(&mut tool.command(&[], args));
    assert_eq!(ran.status, Some(0), "{args:?}: {ran:?}");
    ran
}

#[test]
fn options_reach_qemu_and_the_firmware() {
    let tool_ = Tool::new(&[]);
    // An init that exists only inside the directory as a root: the link is absolute.
    fs::create_dir_all(tool_.path("root/sbin")).unwrap();
    symlink("/usr/lib/systemd/systemd", tool_.path("root/sbin/init")).unwrap();
    let boot = ["boot", "share", "-n"];
    let arm = ["--board", "aarch64-virt"];
    for (args, parts) in [
        (
            &["-m", "2G", "-c", "3"][..],
            &["-m 2048M", "-smp 3", "size=2048M"][..],
        ),
        (
            &["--log", "debug"],
            &["-append 'bootshare.cmdline-default=console=ttyS0 bootshare.log=debug'"],
        ),
        (
            &["--log", "debug", "--as-is"],
            &["-append bootshare.log=debug"],
        ),
        (
            &["root", "--entry", "a"],
            &["-append 'bootshare.cmdline-default=console=ttyS0 \
                bootshare.cmdline-default=\"root=bootshare rootfstype=virtiofs\" bootshare.entry=a'"],
        ),
        (
            &["root", "--entry", "a", "--as-is"],
            &["-append bootshare.entry=a"],
        ),
        (
            &[arm[0], arm[1], "--log", "debug"],
            &["-append bootshare.log=debug"],
        ),
        (&["--entry", "deb*"], &["bootshare.entry=deb*'"]),
        (&["--entry", "a b"], &["bootshare.entry=\"a b\"'"]),
        (
            &["--cmdline", "quiet"],
            &["bootshare.cmdline-default=console=ttyS0 -- quiet'"],
        ),
        (
            &["-a", "bootshare.x=1 -- a", "--cmdline", "b"],
            &["bootshare.x=1 -- a b'"],
        ),
        (&["--accel", "tcg"], &["-accel tcg"]),
        (&["--accel", "kvm"], &["-accel kvm", "-cpu host"]),
        (
            &[arm[0], arm[1], "--el2"],
            &["virt,memory-backend=ram,virtualization=on"],
        ),
        (&[arm[0], arm[1]], &["-accel tcg", "-cpu cortex-a72"]),
        (&["--gdb"], &["-gdb tcp:127.0.0.1:1234", "-S"]),
        (&["--gdb=99"], &["-gdb tcp:127.0.0.1:99"]),
        (
            &["--net", "user", "-b", "x86_64-q35"],
            &["virtio-net-pci,netdev=net"],
        ),
        (
            &["--disk", "share/vmlinuz"],
            &["format=raw,file=/", "/share/vmlinuz", "virtio-blk-device"],
        ),
        (&["--thread-pool-size", "3"], &["--thread-pool-size 3"]),
        (
            &["--request-queues", "2"],
            &["--request-queues 2", "num-request-queues=2"],
        ),
        (&["--qemu-arg=-name", "--qemu-arg=a b"], &["-name 'a b'"]),
        (&["--legacy-mmio"], &["-kernel"]),
    ] {
        let args: Vec<_> = boot.iter().chain(args).copied().collect();
        let ran = tool(&tool_, &args);
        for part in parts {
            assert!(
                ran.console.contains(part),
                "no {part:?} for {args:?}: {ran:?}"
            );
        }
        let legacy = args.contains(&"--legacy-mmio") || ran.console.contains("-pci");
        assert_eq!(!ran.console.contains("force-legacy"), legacy, "{ran:?}");
    }
}

#[test]
fn a_machine_with_a_network_and_disks_boots() {
    let tool_ = Tool::new(&[]);
    let path = |name: &str| tool_.path(name);
    fs::write(path("raw,disk"), [0; 1 << 20]).unwrap();
    let qcow2 = ["create", "-q", "-f", "qcow2"];
    let status = Command::new("qemu-img")
        .args(qcow2)
        .arg(path("disk"))
        .arg("1M")
        .status();
    let mut disks = vec!["--disk", "raw,disk"];
    // qemu-img is not installed with every QEMU.
    if status.is_ok_and(|status| status.success()) {
        disks.extend(["--disk", "disk"]);
    }
    for board in ["x86_64-microvm", "x86_64-q35", "aarch64-virt"] {
        let args = ["boot", "share", "--net", "user", "-b", board, CAT, "-v"];
        let args: Vec<_> = args.iter().chain(&disks).copied().collect();
        let ran = tool(&tool_, &args);
        assert!(ran.console.contains("Hello from a directory"), "{ran:?}");
        assert!(
            ran.errors.contains(&format!("bootshare-host: {board} by ")),
            "{ran:?}"
        );
        let drive = |format: &str, name: &str| {
            let drive = format!("format={format},file={}", path(name));
            ran.errors.contains(&drive)
        };
        let formats = drive("raw", "raw,,disk") && (disks.len() == 2 || drive("qcow2", "disk"));
        assert!(formats, "{ran:?}");
    }
}

#[test]
fn a_debugger_continues_the_machine() {
    let tool_ = Tool::new(&[]);
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let gdb = format!("--gdb={port}");
    let mut command = tool_.command(&[], &["boot", "share", &gdb, "--accel", "tcg", CAT]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    // The machine waits for the debugger. Once it is connected, QEMU stops the machine.
    let mut stdout = child.stdout.take().unwrap();
    let mut polled = [PollFd::new(&stdout, PollFlags::IN)];
    let limit = Timespec::try_from(Duration::from_secs(3)).unwrap();
    assert_eq!(poll(&mut polled, Some(&limit)), Ok(0), "it does not wait");
    let deadline = Instant::now() + LIMIT;
    let mut debugger = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        thread::sleep(Duration::from_millis(50));
    };
    // `continue` in GDB's remote protocol.
    debugger.write_all(b"$c#63").unwrap();
    let mut shown = String::new();
    stdout.read_to_string(&mut shown).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{shown}");
    assert!(shown.contains("Hello from a directory"), "{shown}");
}

#[test]
fn a_directory_alone_is_booted() {
    let tool_ = Tool::new(&[]);
    let ran = tool(&tool_, &["share", CAT]);
    assert!(ran.console.contains("Hello from a directory"), "{ran:?}");
}

#[test]
fn append_words_without_effect_are_warned_of() {
    let tool_ = Tool::new(&[]);
    let words = "--append=bootshare.cmd=\"cat /greeting.txt\" console=ttyS0 quiet";
    let ran = tool(&tool_, &["boot", "share", words]);
    let said = "warning: --append 'console=ttyS0 quiet': this is no option of the firmware";
    assert!(ran.errors.contains(said), "{ran:?}");
    for args in [["-q", words], ["-b", "x86_64-q35"]] {
        let args = [&["boot", "share", CAT][..], &args].concat();
        assert_eq!(tool(&tool_, &args).errors, "", "{args:?}");
    }
    let linux = tool_.run(&mut tool_.linux(&[], None));
    assert_eq!(linux.errors, "", "the firmware is not the project's");
}

#[test]
fn a_qemu_under_another_name_is_found() {
    let tool_ = Tool::new(&[]);
    let ran = tool_.run(tool_.fake(&[], "echo fake; exit 33").arg("-v"));
    ran.expect(0, &["bin/qemu-system-x86_64"]);
    let bin = tool_.path("bin");
    fs::rename(
        format!("{bin}/qemu-system-x86_64"),
        format!("{bin}/qemu-kvm"),
    )
    .unwrap();
    let boot = ["boot", "share", "-b", "x86_64-pc"];
    for (args, path) in [
        (&["--qemu", "bin/qemu-kvm"][..], "/usr/bin:/bin"),
        (&["--qemu", "bin"], "/usr/bin:/bin"),
        (&[], &*bin),
    ] {
        // The fake QEMU needs no other program.
        let args = [&boot[..], args].concat();
        let ran = tool_.run(tool_.command(&[], &args).env("PATH", path));
        ran.expect(0, &[]);
        assert_eq!(ran.console, "fake\n", "{args:?}");
    }
}

#[test]
fn images_pages_and_completions_are_written() {
    let tool_ = Tool::new(&[]);
    let read = |name: &str| fs::read(tool_.path(name)).unwrap();
    tool(&tool_, &["firmware", "new/images"]);
    for name in ["x86_64.elf", "x86_64.rom", "aarch64.elf", "aarch64.bin"] {
        let built = fs::read(target().join(format!("firmware/bootshare-{name}"))).unwrap();
        assert!(
            read(&format!("new/images/bootshare-{name}")) == built,
            "{name}"
        );
    }
    let elf = "new/images/bootshare-x86_64.elf";
    tool(&tool_, &["rom", elf, "new/rom"]);
    assert!(read("new/rom") == read("new/images/bootshare-x86_64.rom"));
    assert!(
        tool(&tool_, &["size", elf])
            .console
            .contains("bootshare-x86_64.elf")
    );

    tool(&tool_, &["man", "new/man"]);
    let page = String::from_utf8(read("new/man/bootshare-host-boot.1")).unwrap();
    for section in [
        "NAME",
        "OPTIONS",
        "EXIT STATUS",
        "ENVIRONMENT",
        "FILES",
        "EXAMPLES",
        "SEE ALSO",
    ] {
        assert!(
            page.contains(&format!("\n.SH \"{section}\"\n"))
                || page.contains(&format!("\n.SH {section}\n")),
            "no {section}: {page}"
        );
    }
    assert!(
        page.contains("\\fB141\\fR") && page.contains("\\-\\-expect"),
        "{page}"
    );
    let program = String::from_utf8(read("new/man/bootshare-host.1")).unwrap();
    for (name, is_there) in [
        ("serve", true),
        ("doctor", true),
        ("rom", false),
        ("size", false),
    ] {
        let page = tool_
            .dir
            .path()
            .join(format!("new/man/bootshare-host-{name}.1"));
        assert_eq!(page.exists(), is_there, "{name}");
        let named = program.contains(&format!("bootshare\\-host\\-{name}"));
        assert_eq!(named, is_there, "{name}: {program}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let ran = tool(&tool_, &["completions", shell]);
        assert!(
            ran.console.contains("--expect") || ran.console.contains("-l expect"),
            "{ran:?}"
        );
    }
}

#[test]
fn without_a_command_the_commands_are_listed() {
    let tool_ = Tool::new(&[]);
    let ran = tool_.run(&mut tool_.command(&[], &[]));
    let line = "\nbootshare-host: error: no directory and no command: name one of those above\n";
    ran.expect(123, &["\n  boot ", "\n  run ", line]);
    assert_eq!(ran.console, "");
}

#[test]
fn a_text_is_printed_completely_or_an_error() {
    let tool_ = Tool::new(&[]);
    let completions = || tool_.command(&[], &["completions", "bash"]);
    for args in [
        &["completions", "bash"][..],
        &["--help"],
        &["--version"],
        &["doctor"],
    ] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full");
        let unwritable = fs::File::open("/dev/null");
        for stdout in [full, unwritable] {
            let mut command = tool_.command(&[], args);
            // `doctor` finds no QEMU there, and ends soon.
            command.env("PATH", "/nonexistent");
            let ran = command.stdout(stdout.unwrap()).output().unwrap();
            let errors = String::from_utf8_lossy(&ran.stderr);
            assert_eq!(ran.status.code(), Some(123), "{errors}");
            let line = "bootshare-host: error: cannot write to standard output: ";
            assert!(
                errors.starts_with(line) && errors.lines().count() == 1,
                "{errors}"
            );
        }
    }

    // A reader like head(1) has enough.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ran = completions().stdout(writer).output().unwrap();
    assert_eq!((ran.status.code(), &*ran.stderr), (Some(0), &b""[..]));

    // Another process has set O_NONBLOCK, and the pipe has less space than the text needs.
    let whole = completions().output().unwrap().stdout;
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    let mut filled = 0;
    while let Ok(count) = writer.write(&[0; 4096]) {
        filled += count;
    }
    let mut command = completions();
    let mut child = command.stdout(writer).spawn().unwrap();
    drop(command);
    thread::sleep(Duration::from_millis(500));
    let mut read = Vec::new();
    reader.read_to_end(&mut read).unwrap();
    let read = &read[filled..];
    assert!(read == whole, "{} of {} bytes", read.len(), whole.len());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_follows_a_report_in_standard_outputs_file_does_not_overwrite_it() {
    let tool_ = Tool::new(&[]);
    fs::create_dir(tool_.path("empty")).unwrap();
    let script = "{ ./tool run --json /dev/stdout empty -- true; echo rest; } >file";
    let ran = tool_.run(&mut tool_.command(&["sh", "-c", script], &[]));
    ran.expect(0, &["there is no kernel in empty"]);
    let file = fs::read_to_string(tool_.path("file")).unwrap();
    let (report, rest) = file.split_once('\n').unwrap();
    assert!(report.starts_with('{') && report.ends_with('}'), "{file}");
    assert_eq!(rest, "rest\n");
}

#[test]
fn doctor_ends_with_a_signal() {
    let tool_ = Tool::new(&[]);
    let begun = tool_.path("begun");
    tool_.fake(&[], &format!(": >{begun}; sleep 1000"));
    let path = format!("{}:{}", tool_.path("bin"), std::env::var("PATH").unwrap());
    let mut command = tool_.command(&[], &["doctor"]);
    let command = command.env("PATH", path).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + LIMIT;
    while !fs::exists(&begun).unwrap() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ran = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(130), "{errors}");
    assert_eq!(errors, "bootshare-host: error: interrupted\n");
}

#[test]
fn images_and_pages_replace_only_earlier_ones() {
    let tool_ = Tool::new(&[]);
    for (args, names, what) in [
        (
            ["firmware", "new"],
            ["bootshare-x86_64.elf", "bootshare-aarch64.bin"],
            "an image of this firmware",
        ),
        (
            ["man", "new"],
            ["bootshare-host.1", "bootshare-host-serve.1"],
            "a manual page",
        ),
    ] {
        let path = |name: &str| tool_.path(&format!("new/{name}"));
        tool(&tool_, &args);
        let whole = fs::read(path(names[0])).unwrap();
        fs::write(path(names[0]), &whole[..100]).unwrap();
        tool(&tool_, &args);
        assert!(fs::read(path(names[0])).unwrap() == whole, "{args:?}");

        fs::write(path(names[0]), &whole[..100]).unwrap();
        fs::write(path(names[1]), "of somebody else").unwrap();
        let ran = tool_.run(&mut tool_.command(&[], &args));
        let taken = format!(
            "cannot write new/{}: the file exists and is not {what}: choose another name, or remove it",
            names[1]
        );
        ran.expect(123, &[&taken]);
        assert_eq!(fs::read(path(names[1])).unwrap(), b"of somebody else");
        assert_eq!(fs::read(path(names[0])).unwrap().len(), 100, "{args:?}");
        fs::remove_file(path(names[1])).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path(names[1]), rustix::fs::Mode::RUSR).unwrap();
        let ran = tool_.run(&mut tool_.command(&[], &args));
        ran.expect(123, &["it is no file: name a file"]);
        fs::remove_file(path(names[1])).unwrap();
    }
}

#[test]
fn the_tests_named_in_the_documentation_exist() {
    fn sources(dir: &Path, text: &mut String) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.extension().and_then(OsStr::to_str) {
                None => sources(&path, text),
                Some("rs") => text.push_str(&fs::read_to_string(&path).unwrap()),
                _ => {}
            }
        }
    }
    let host = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    sources(&host.join("src"), &mut text);
    sources(&host.join("tests"), &mut text);
    let page = fs::read_to_string(host.join("../docs/testing.md")).unwrap();
    let table = page.split("| what goes wrong |").nth(1).unwrap();
    let rows: Vec<_> = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert!(rows.len() > 20, "{rows:?}");
    for row in rows {
        let names = row
            .split('|')
            .nth_back(1)
            .unwrap()
            .split('`')
            .skip(1)
            .step_by(2);
        for name in names.filter(|name| !name.contains('/')) {
            assert!(
                text.contains(&format!("#[test]\n    fn {name}()"))
                    || text.contains(&format!("#[test]\nfn {name}()")),
                "no {name}"
            );
        }
    }
}

#[test]
fn a_trace_is_printed_as_a_table() {
    let tool_ = Tool::new(&[]);
    tool(&tool_, &["boot", "share", "--trace", "t", CAT]);
    let ran = tool(&tool_, &["trace", "t"]);
    for part in ["bootshare:/greeting.txt", "operation       count", "READ "] {
        assert!(ran.console.contains(part), "no {part:?} in {ran:?}");
    }
}

#[test]
fn after_a_silent_boot_a_hint_says_what_may_be_missing() {
    let tool_ = Tool::new(&[]);
    fs::create_dir(tool_.path("silent")).unwrap();
    fs::copy(tool_.path("share/vmlinuz"), tool_.path("silent/vmlinuz")).unwrap();
    fs::write(tool_.path("silent/cmdline"), "panic=-1").unwrap();
    let ran = tool_.run(&mut tool_.command(
        &[],
        &["boot", "silent", "--as-is", "-t", "120", "-b", "x86_64-q35"],
    ));
    ran.expect(
        120,
        &["\nbootshare-host: the kernel showed nothing: name its console with"],
    );
    let ran = tool_.run(tool_.fake(&[], "exec sleep 1000").args(["-t", "10"]));
    ran.expect(
        124,
        &["\nbootshare-host: the console showed nothing, not even the firmware's"],
    );
    let ran = tool_.run(tool_.fake(&[], "exec sleep 1000").args(["-t", "10", "-q"]));
    ran.expect(124, &[]);
    assert_eq!(ran.errors.lines().count(), 1, "{ran:?}");
}
