//! Tests of the program: its exit status, its messages, and that a run leaves nothing behind.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bootshare_host::{Arch, Board, demo};
use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, kill_process, umask};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use tempfile::TempDir;

use crate::parts::{LIMIT, c_server, demo_share, install, rust_server, target};

/// The board for tests of the tool; the firmware's own tests use all boards.
const BOARD: Board = Board::X86_64Microvm;
const BOARD_NAME: &str = "x86_64-microvm";

/// The servers: the embedded one (`None`), and the external ones.
fn servers() -> [Option<String>; 3] {
    let rust = rust_server().display().to_string();
    [None, Some(c_server().to_owned()), Some(rust)]
}

/// The result of a run of the program.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: Option<i32>,
    pub(crate) console: String,
    pub(crate) errors: String,
}

impl Ran {
    /// Asserts the exit status, and that the error output contains each of `parts`.
    pub(crate) fn expect(&self, status: i32, parts: &[&str]) {
        assert_eq!(self.status, Some(status), "{self:?}");
        for part in parts {
            assert!(self.errors.contains(part), "no {part:?} in {self:?}");
        }
    }
}

/// The program in a directory of its own. The directory contains all its files and sockets, and its path is on the
/// command lines of all its children.
pub(crate) struct Tool {
    pub(crate) dir: TempDir,
}

impl Tool {
    /// Copies everything that a run needs, so that an ordinary user can access it.
    pub(crate) fn new(servers: &[&Path]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let share = demo_share(Arch::X86_64);
        // Other users must reach the files.
        umask(Mode::WGRP | Mode::WOTH);
        let open = |path: &Path| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        open(dir.path());
        for sub in ["share", "tmp"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
            open(&dir.path().join(sub));
        }
        for name in ["vmlinuz", "initrd.img", "cmdline", "greeting.txt"] {
            let to = dir.path().join("share").join(name);
            fs::copy(share.join(name), &to).unwrap();
            open(&to);
        }
        let program = Path::new(env!("CARGO_BIN_EXE_bootshare-host"));
        for (path, name) in [(program, "tool")]
            .into_iter()
            .chain(servers.iter().map(|path| (*path, "server")))
        {
            install(path, &dir.path().join(name));
        }
        for server in servers {
            // In unpacked packages, the server is a script that starts the program of the same name in
            // `usr/lib/qemu`.
            let libraries = server.with_file_name("usr/lib");
            let program = libraries.join("qemu").join(server.file_name().unwrap());
            if program.is_file() {
                let copied = dir.path().join("usr/lib");
                fs::create_dir_all(&copied).unwrap();
                let mut copy = Command::new("cp");
                copy.arg("--recursive")
                    .arg("--preserve=mode,links")
                    .arg(&libraries)
                    .arg(dir.path().join("usr"));
                assert!(
                    copy.status().unwrap().success(),
                    "cannot copy {}",
                    libraries.display()
                );
                install(&program, &copied.join("qemu/server"));
            }
        }
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// `bootshare-host`, started by `wrapper`. Signal dispositions are reset, because the caller of the tests may
    /// ignore signals, and children inherit that.
    pub(crate) fn command(&self, wrapper: &[&str], args: &[&str]) -> Command {
        let tool = self.path("tool");
        let mut command = Command::new("/usr/bin/env");
        command
            .arg("--default-signal=HUP,INT,QUIT,TERM,TSTP,CHLD")
            .args(wrapper)
            .arg(tool)
            .args(args)
            .env("TMPDIR", self.path("tmp"))
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// `bootshare-host boot` of the copied share, with Linux loaded by QEMU itself.
    pub(crate) fn linux(&self, wrapper: &[&str], server: Option<&str>) -> Command {
        let mut command = self.command(wrapper, &["boot", &self.path("share")]);
        command.args(["--board=x86_64-q35", "--timeout=120"]);
        command.args(server.map(|path| format!("--server={path}")));
        command.args(["--firmware", &self.path("share/vmlinuz")]);
        command.arg("--append=console=ttyS0 panic=-1 quiet tsc_early_khz=2000000 no_timer_check");
        command.arg("--qemu-arg=-initrd");
        command.arg(format!("--qemu-arg={}", self.path("share/initrd.img")));
        command
    }

    /// `bootshare-host boot ARGS` with the firmware and its options.
    pub(crate) fn firmware(&self, args: &[&OsStr], options: &str) -> Ran {
        let mut command = self.firmware_command(&[], options, Duration::from_secs(120));
        self.run(command.args(args))
    }

    /// The command of [`firmware`](Self::firmware), started by `wrapper`.
    pub(crate) fn firmware_command(
        &self,
        wrapper: &[&str],
        options: &str,
        limit: Duration,
    ) -> Command {
        let image = target().join("firmware").join(BOARD.firmware_name());
        assert!(image.is_file(), "no {}: run make firmware", image.display());
        let mut command = self.command(wrapper, &["boot", "--board", BOARD_NAME]);
        command.arg("--firmware").arg(image);
        command.arg(format!("--timeout={}ms", limit.as_millis()));
        command.arg(format!("--append={options}"));
        command
    }

    /// `bootshare-host boot share` with a shell script instead of QEMU.
    pub(crate) fn fake(&self, wrapper: &[&str], script: &str) -> Command {
        let (bin, draft) = (self.path("bin"), self.path("draft"));
        fs::create_dir_all(&bin).unwrap();
        fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
        install(draft.as_ref(), format!("{bin}/qemu-system-x86_64").as_ref());
        let image = target().join("firmware").join(BOARD.firmware_name());
        let mut command = self.command(wrapper, &["boot", "share", "--board", BOARD_NAME]);
        command.args(["--qemu", &bin]).arg("--firmware").arg(image);
        command
    }

    /// Runs a command to its end, and asserts that nothing is left.
    pub(crate) fn run(&self, command: &mut Command) -> Ran {
        let output = command.output().unwrap();
        self.assert_nothing_is_left();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran {
            status: output.status.code(),
            console: text(&output.stdout),
            errors: text(&output.stderr),
        }
    }

    /// The process whose command line contains `part`.
    pub(crate) fn process(&self, part: &str) -> Pid {
        let found = self
            .processes()
            .into_iter()
            .find(|(_, line)| line.contains(part));
        found.unwrap_or_else(|| panic!("no process has {part}")).0
    }

    /// The processes with the test's directory on their command line.
    pub(crate) fn processes(&self) -> Vec<(Pid, String)> {
        let dir = self.dir.path().display().to_string();
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let pid = Pid::from_raw(path.file_name()?.to_str()?.parse().ok()?)?;
                let line = fs::read(path.join("cmdline")).ok()?;
                Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
            })
            .filter(|(_, line)| line.contains(&dir))
            .collect()
    }

    fn files(&self) -> usize {
        fs::read_dir(self.dir.path().join("tmp")).unwrap().count()
    }

    /// Waits until `count` processes run, QEMU among them, and the sockets have been removed.
    pub(crate) fn wait_until_running(&self, tool: &mut Child, count: usize) {
        let deadline = Instant::now() + LIMIT;
        while self.processes().len() < count || self.files() > 0 {
            assert_eq!(tool.try_wait().unwrap(), None, "the tool ended early");
            assert!(Instant::now() < deadline, "{:?}", self.processes());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn assert_nothing_is_left(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.processes().is_empty() {
            assert!(
                Instant::now() < deadline,
                "left behind: {:?}",
                self.processes()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(self.files(), 0, "a socket was left behind");
    }
}

/// Starts a paused machine, applies `act`, and returns the program's exit status.
fn status_after(server: Option<&str>, act: impl FnOnce(&Tool, &Child)) -> Option<i32> {
    let tool = Tool::new(&[]);
    let mut command = tool.linux(&[], server);
    // A pattern that never matches must not hide how the run ended.
    let mut child = command
        .args(["--qemu-arg=-S", "--expect=never"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The processes are the program, QEMU and perhaps a server.
    tool.wait_until_running(&mut child, if server.is_some() { 3 } else { 2 });
    act(&tool, &child);
    let status = child.wait().unwrap();
    tool.assert_nothing_is_left();
    status.code()
}

/// An `act` for `status_after`: sends a signal to the program.
fn send(signal: Signal) -> impl FnOnce(&Tool, &Child) {
    move |_, child| kill_process(Pid::from_child(child), signal).unwrap()
}

#[test]
fn signals_leave_nothing_behind() {
    for server in [None, Some(c_server())] {
        for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
            assert_eq!(status_after(server, send(signal)), Some(130), "{signal:?}");
        }
    }
}

#[test]
fn sigkill_leaves_nothing_behind() {
    for server in servers() {
        assert_eq!(status_after(server.as_deref(), send(Signal::KILL)), None);
    }
}

#[test]
fn a_crash_of_qemu_leaves_nothing_behind() {
    for server in servers() {
        let crash = |tool: &Tool, _: &Child| {
            kill_process(tool.process("memory-backend-memfd"), Signal::SEGV).unwrap();
        };
        assert_eq!(status_after(server.as_deref(), crash), Some(121));
    }
}

#[test]
fn a_crash_of_the_server_leaves_nothing_behind() {
    for server in servers().into_iter().flatten() {
        let crash = |tool: &Tool, child: &Child| {
            // The C server consists of two processes, and either may crash.
            let own = Pid::from_child(child);
            let found = tool.processes().into_iter();
            let mut servers = found.filter(|(pid, line)| *pid != own && line.contains("virtiofsd"));
            kill_process(servers.next().unwrap().0, Signal::KILL).unwrap();
        };
        assert_eq!(status_after(Some(&server), crash), Some(122), "{server}");
    }
}

#[test]
fn a_failing_embedded_server_leaves_nothing_behind() {
    let tool = Tool::new(&[]);
    let ran = tool.firmware(
        &["share", "--fault=disconnect-after=3"].map(OsStr::new),
        "bootshare.deadline=1",
    );
    ran.expect(
        1,
        &["bootshare-host: error: the firmware ended with status 1"],
    );
    assert!(ran.console.contains("made no progress"), "{ran:?}");
    // A server that fails at the very end of the run is also a failure.
    let args = ["share", "--fault=panic=DESTROY"].map(OsStr::new);
    let ran = tool.firmware(&args, "bootshare.cmd=\"cat /greeting.txt\"");
    ran.expect(122, &["failed (it panicked: as the fault asks)\n"]);
}

#[test]
fn a_kernel_that_cannot_be_prepared_is_started_unprepared() {
    let tool = Tool::new(&[]);
    let started = |args: &[&str]| {
        let all = ["boot", "share", "--board", BOARD_NAME, "--timeout=120"];
        let mut command = tool.command(&[], &all);
        command
            .args(["--expect=starting /vmlinuz", "--accel=tcg"])
            .args(args);
        command.env("XDG_CACHE_HOME", tool.path("cache"));
        let ran = tool.run(&mut command);
        ran.expect(0, &[]);
        ran
    };
    let kept = || fs::read_dir(tool.path("cache/bootshare/kernels")).map_or(0, Iterator::count);
    let ran = started(&["--no-prepare"]);
    assert!(!ran.console.contains(", prepared"), "{ran:?}");
    assert_eq!((ran.errors.as_str(), kept()), ("", 0));
    let ran = started(&[]);
    assert!(ran.console.contains(", prepared"), "{ran:?}");
    assert_eq!((ran.errors.as_str(), kept()), ("", 1));
    // Damages the middle of the compressed data.
    let path = tool.path("share/vmlinuz");
    let mut kernel = fs::read(&path).unwrap();
    let middle = kernel.len() / 2;
    kernel[middle..middle + 0x1000].fill(0x55);
    fs::write(&path, kernel).unwrap();
    let ran = started(&[]);
    assert!(!ran.console.contains(", prepared"), "{ran:?}");
    let warning = "bootshare-host: warning: the kernel vmlinuz is not prepared: cannot unpack it (";
    assert!(ran.errors.starts_with(warning), "{ran:?}");
    assert_eq!((ran.errors.lines().count(), kept()), (1, 1));
    // If the cache directory is inside the share, nothing is written to it.
    let mut command = tool.command(&[], &["boot", "share", "--board", BOARD_NAME]);
    command.args(["--expect=starting /vmlinuz", "--timeout=120", "--accel=tcg"]);
    tool.run(command.env("XDG_CACHE_HOME", tool.path("share/cache")));
    assert!(!Path::new(&tool.path("share/cache")).exists());
}

#[test]
fn a_server_closes_all_descriptors_of_a_connection() {
    const CONNECTIONS: usize = 50;
    let tool = Tool::new(&[]);
    let socket = tool.path("tmp/socket");
    let mut command = tool.command(&[], &["serve", "share", "--socket", &socket]);
    let mut child = command.spawn().unwrap();
    let open_files = format!("/proc/{}/fd", child.id());
    let open_files = || fs::read_dir(&open_files).unwrap().count();
    let deadline = Instant::now() + LIMIT;
    while UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < deadline, "it does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
    let before = open_files();
    for _ in 0..CONNECTIONS {
        UnixStream::connect(&socket).unwrap();
    }
    // All of them were served before this one, which stays open.
    let mut last = UnixStream::connect(&socket).unwrap();
    // VHOST_USER_GET_FEATURES: the message's number, version 1, no payload.
    last.write_all(&[1_u32, 1, 0].map(u32::to_le_bytes).concat())
        .unwrap();
    last.read_exact(&mut [0; 20]).unwrap();
    let after = open_files();
    send(Signal::TERM)(&tool, &child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(
        after < before + CONNECTIONS,
        "{before} files were open, then {after}"
    );
    tool.assert_nothing_is_left();
}

#[test]
fn no_console_text_is_lost_while_nobody_reads_it() {
    let tool = Tool::new(&[]);
    let text: String = (0..10_000)
        .map(|line| format!("line {line:06} of a long text on the console\n"))
        .collect();
    fs::write(tool.dir.path().join("share/text"), &text).unwrap();
    let image = target().join("firmware").join(BOARD.firmware_name());
    let board = ["--board", BOARD_NAME, "--firmware", image.to_str().unwrap()];
    let mut command = tool.command(&[], &["boot", "share"]);
    command
        .args(board)
        .arg("--append=bootshare.cmd=\"cat /text\"");
    // Standard input is /dev/null, as in CI jobs.
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let mut shown = String::new();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_to_string(&mut shown).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(shown.replace('\r', "").ends_with(&text), "text is missing");
}

#[test]
fn files_of_other_programs_are_kept() {
    const THEIRS: &str = "somebody's";
    let tool = Tool::new(&[]);
    let write = |name: &str| {
        let path = tool.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, THEIRS).unwrap();
        path
    };
    let (file, kernel, elf) = (write("file"), write("own/vmlinuz"), write("elf"));
    let link = tool.dir.path().join("link");
    symlink(&file, &link).unwrap();
    let firmware = target().join("firmware").join(BOARD.firmware_name());
    fs::copy(firmware, &elf).unwrap();
    let image = fs::read(&elf).unwrap();
    for (args, part) in [
        (
            &["serve", "share", "--socket", "file"][..],
            "is not a socket",
        ),
        (&["serve", "share", "--socket", "link"], "is not a socket"),
        (
            &[
                "serve",
                "share",
                "--socket",
                "tmp/socket",
                "--trace",
                "file",
            ],
            "is not a trace",
        ),
        (&["boot", "share", "--trace", "file"], "is not a trace"),
        (
            &["demo", "own"],
            "own/vmlinuz exists and was not made by demo",
        ),
        (&["rom", "elf", "elf"], "would replace the image"),
    ] {
        tool.run(&mut tool.command(&[], args)).expect(123, &[part]);
    }
    assert_eq!(fs::read(&elf).unwrap(), image);
    for path in [&file, &link, &kernel] {
        assert_eq!(fs::read_to_string(path).unwrap(), THEIRS);
    }
    assert!(link.is_symlink());
    tool.assert_nothing_is_left();
}

#[test]
fn a_server_removes_no_socket_but_its_own() {
    let tool = Tool::new(&[]);
    let path = tool.path("tmp/socket");
    let serve = || {
        let mut command = tool.command(&[], &["serve", "share", "--socket", &path]);
        command.spawn().unwrap()
    };
    let mut first = serve();
    let deadline = Instant::now() + LIMIT;
    while UnixStream::connect(&path).is_err() {
        assert!(Instant::now() < deadline, "it does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
    fs::remove_file(&path).unwrap();
    let _second = UnixListener::bind(&path).unwrap();
    send(Signal::TERM)(&tool, &first);
    assert_eq!(first.wait().unwrap().code(), Some(0));
    assert!(
        fs::symlink_metadata(&path).is_ok(),
        "it removed another server's socket"
    );
}

#[test]
fn a_hangup_that_nohup_ignores_is_ignored() {
    let tool = Tool::new(&[]);
    let mut command = tool.linux(&["nohup"], None);
    command
        .arg("--qemu-arg=-S")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    tool.wait_until_running(&mut child, 2);
    // proc_pid_status(5): a mask of ignored signals; the lowest bit is SIGHUP.
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = u64::from_str_radix(ignored.unwrap().trim(), 16).unwrap();
    assert_eq!(mask & 1, 1, "{status}");
    for signal in [Signal::HUP, Signal::TERM] {
        kill_process(Pid::from_child(&child), signal).unwrap();
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
    tool.assert_nothing_is_left();
}

/// A wrapper that runs a command in new namespaces, whose kinds `flags` name.
pub(crate) fn namespace(flags: &[&'static str]) -> Vec<&'static str> {
    let user: &[_] = match rustix::process::geteuid().is_root() {
        true => &[],
        false => &["--map-root-user"],
    };
    [&["unshare"], user, flags].concat()
}

/// For a PID namespace that ends with its wrapper.
pub(crate) const PID: [&str; 3] = ["--pid", "--fork", "--kill-child"];

#[test]
fn a_full_disk_leaves_nothing_behind() {
    let tool = Tool::new(&[]);
    // The script runs in a mount namespace of its own, so the mount disappears with it in any case. The file system
    // has space for $INODES inodes, the root directory included, and for 4 KiB.
    let script = r#"
        mount -t tmpfs -o size=4k,nr_inodes=$INODES tmpfs "$TMPDIR" || exit 99
        [ -z "$FULL" ] || head -c 4096 /dev/zero >"$TMPDIR/full"
        "$@"; status=$?
        ls -A "$TMPDIR" >&2
        exit $status"#;
    let wrapper = [namespace(&["--mount"]), vec!["sh", "-c", script, "sh"]].concat();

    // First there is no inode for the sockets' directory, then none for a socket.
    for (inodes, part) in [
        ("1", "cannot make a directory for sockets"),
        ("2", "cannot listen"),
    ] {
        let ran = tool.run(tool.linux(&wrapper, None).env("INODES", inodes));
        ran.expect(123, &["No space left on device", part]);
        assert_eq!(ran.errors.lines().count(), 1, "{ran:?}");
    }
    // Sockets and their directory need no data block, but a trace does.
    let trace = format!("--trace={}", tool.path("tmp/trace"));
    let mut command = tool.linux(&wrapper, None);
    let ran = tool.run(command.envs([("INODES", "20"), ("FULL", "yes")]).arg(trace));
    ran.expect(
        123,
        &[
            "trace: No space left on device (os error 28): name a place with room",
            "No space left on device",
            "\nfull\n",
        ],
    );
    let mut command = tool.linux(&wrapper, None);
    let ran = tool.run(command.envs([("INODES", "20"), ("FULL", "yes")]));
    ran.expect(0, &[]);
    assert_eq!(ran.errors, "full\n");
    let out = tool.path("tmp/demo");
    let parts = target().join("guest").canonicalize().unwrap();
    let args = ["demo", "--parts", parts.to_str().unwrap(), &out];
    let ran = tool.run(tool.command(&wrapper, &args).env("INODES", "20"));
    ran.expect(123, &["cannot write", "No space left on device"]);
}

#[test]
fn limits_of_the_caller_are_raised_or_named() {
    let tool = Tool::new(&[]);
    let limited = |limit| ["sh", "-c", "ulimit $0; exec \"$@\"", limit];
    // A soft limit of open files is raised.
    let mut command = tool.fake(&limited("-Sn 8"), "exit 33");
    tool.run(&mut command).expect(0, &[]);
    let mut command = tool.fake(&limited("-n 8"), "exit 33");
    let remedy = "Too many open files (os error 24): raise the hard limit of open files";
    tool.run(&mut command).expect(123, &[remedy]);
    let bisect = ["run", "--bisect", "share", "--kernel", "share/vmlinuz"];
    let ran = tool.run(&mut tool.command(&limited("-n 8"), &bisect));
    ran.expect(125, &[remedy]);
    // No limit of processes applies to root.
    let user: &[_] = match rustix::process::geteuid().is_root() {
        true => &["setpriv", "--reuid=65534", "--clear-groups"],
        false => &[],
    };
    let few = [user, &["prlimit", "--nproc=1"]].concat();
    let ran = tool.run(&mut tool.fake(&few, "exit 33"));
    let remedy = "Resource temporarily unavailable (os error 11): end other programs, or raise the limit of processes";
    ran.expect(123, &[remedy]);
    // The program has a stack of its own.
    let mut command = tool.command(&limited("-s 128"), &["boot", "--help"]);
    tool.run(&mut command).expect(0, &[]);
    let args = ["completions", "bash"];
    let mut command = tool.command(&limited("-f 1"), &args);
    let file = fs::File::create(tool.path("out")).unwrap();
    let child = command.stdout(file).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(123), "{errors}");
    let remedy = "raise the limit of a file's size";
    assert!(errors.contains(remedy), "{errors}");
    let mut command = tool.command(&limited("-f 1"), &["man", "pages"]);
    tool.run(&mut command).expect(123, &["pages/", remedy]);
}

#[test]
fn a_console_that_cannot_be_shown_ends_the_run() {
    let tool = Tool::new(&[]);
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut command = tool.linux(&[], None);
    let child = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(123), "{errors}");
    assert!(errors.contains("cannot show the console"), "{errors}");
    tool.assert_nothing_is_left();
}

#[test]
fn an_ordinary_user_boots_with_any_server() {
    // If the test runs as root, it becomes an ordinary user.
    let wrapper: &[&str] = if rustix::process::geteuid().is_root() {
        &[
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ]
    } else {
        &[]
    };
    for original in servers() {
        let copied: Vec<_> = original.iter().map(Path::new).collect();
        let tool = Tool::new(&copied);
        fs::set_permissions(
            tool.dir.path().join("tmp"),
            fs::Permissions::from_mode(0o777),
        )
        .unwrap();
        let server = original.map(|_| tool.path("server"));
        let ran = tool.run(&mut tool.linux(wrapper, server.as_deref()));
        ran.expect(0, &[]);
        assert!(ran.console.contains(demo::GREETING.trim()), "{ran:?}");
    }
}

#[test]
fn the_console_decides_the_result_of_a_boot_test() {
    let tool = Tool::new(&[]);
    let ran = tool.run(
        tool.linux(&[], None)
            .args(["--expect", "^Hello from a dir"]),
    );
    ran.expect(0, &[]);
    assert_eq!(ran.errors.trim(), "");
    // Messages begin on a new line.
    for (text, end) in [("READY\\n", ""), ("READY", "\n")] {
        let mut command = tool.fake(&[], &format!("printf '{text}'; exec sleep 1000"));
        let ran = tool.run(command.args(["--expect", "^READY$"]));
        ran.expect(0, &[]);
        assert_eq!(ran.errors, end);
    }
    // A failure of QEMU is not a failure of the guest.
    let ran = tool.run(
        tool.fake(&[], "echo bad luck >&2; exit 1")
            .args(["-e", "never"]),
    );
    ran.expect(121, &["error: QEMU failed (exit status: 1): bad luck"]);

    let ran = tool.run(
        tool.linux(&[], None)
            .args(["--fail=^Hello from a dir", "--expect=never"]),
    );
    ran.expect(
        1,
        &["error: the console showed --fail '^Hello from a dir': Hello from a directory"],
    );
    let last = "\n    demo: Linux ";
    let more = "\nbootshare-host: `--log debug` shows what the firmware does, `--trace FILE`";
    ran.expect(1, &["the console's last lines:\n", last, more]);
    // The file that the guest's kernel has read last.
    let share = "\nbootshare-host: the share bootshare (";
    ran.expect(
        1,
        &[share, ") answered last: READ /greeting.txt: 57 bytes at 0"],
    );

    let ran = tool.run(tool.linux(&[], None).arg("--expect=never"));
    let said = "the console never showed --expect 'never': the guest powered off";
    ran.expect(1, &[said, last]);

    let mut command = tool.linux(&[], None);
    command.args(["--timeout=10", "--expect=never", "--qemu-arg=-S"]);
    let ran = tool.run(&mut command);
    ran.expect(
        124,
        &[
            "--expect 'never': the time limit passed",
            "the console showed nothing",
        ],
    );
}

#[test]
fn a_directory_may_have_any_name() {
    let tool = Tool::new(&[]);
    let names: [&[u8]; 8] = [
        b"a b",
        b"a,b",
        b"a:b",
        b"-dash",
        b"a=b",
        b"quote'\"$x\\",
        b"line\nend",
        b"\xff\xfe",
    ];
    for name in names.map(OsStr::from_bytes) {
        let dir = tool.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("name"), name.as_bytes()).unwrap();
        let mut escaped = b"--share=x=".to_vec();
        for &byte in name.as_bytes() {
            if matches!(byte, b':' | b'\\') {
                escaped.push(b'\\');
            }
            escaped.push(byte);
        }
        let server = servers().map(|server| server.map(|path| format!("--server={path}")));
        for server in server.iter().map(|server| server.as_ref().map(OsStr::new)) {
            let is_rust =
                server.is_some_and(|word| !word.as_bytes().ends_with(c_server().as_bytes()));
            if is_rust && name.to_str().is_none() {
                // This server accepts only UTF-8.
                continue;
            }
            for words in [
                vec![OsStr::new("--"), name],
                vec![OsStr::from_bytes(&escaped)],
            ] {
                let args: Vec<_> = server.into_iter().chain(words).collect();
                let ran = tool.firmware(&args, "bootshare.cmd=\"stat /name\"");
                ran.expect(0, &[]);
                let size = format!("size   {}\r\n", name.len());
                assert!(ran.console.contains(&size), "{args:?}: {ran:?}");
            }
        }
    }
    // The command that is printed is right for a shell.
    let parts = target().join("guest").canonicalize().unwrap();
    let args = ["demo", "--parts", parts.to_str().unwrap(), "--", "-a b;c"];
    let ran = tool.run(&mut tool.command(&[], &args));
    ran.expect(0, &["`bootshare-host boot './-a b;c' -b "]);
}

#[test]
fn a_device_has_the_requested_number_of_request_queues() {
    let tool = Tool::new(&[]);
    // Many reads in flight, so that all queues are used.
    let command = "bootshare.cmd=\"devices; read-bench /vmlinuz\" bootshare.chunk-size=65536";
    for board in ["--board=x86_64-microvm", "--board=x86_64-q35"] {
        let args = ["share", "--request-queues=3", board].map(OsStr::new);
        let ran = tool.firmware(&args, command);
        ran.expect(0, &[]);
        for part in ["request queues: 3\r\n", "again: "] {
            assert!(ran.console.contains(part), "{ran:?}");
        }
    }
    let ran = tool.run(tool.linux(&[], None).arg("--request-queues=3"));
    ran.expect(0, &[]);
    assert!(ran.console.contains(demo::GREETING.trim()), "{ran:?}");
    for server in servers().into_iter().flatten() {
        let mut command = tool.linux(&[], Some(&server));
        let ran = tool.run(command.arg("--request-queues=2"));
        ran.expect(
            123,
            &[
                "serves one request queue: leave out --request-queues",
                &server,
            ],
        );
    }
}

#[test]
fn a_file_that_is_not_firmware_is_refused() {
    let tool = Tool::new(&[]);
    let elf = target().join("firmware").join(BOARD.firmware_name());
    let elf = elf.to_str().unwrap();
    let no_image = "it is no image for ";
    for (board, file, part) in [
        (BOARD_NAME, "nosuch", "No such file"),
        (BOARD_NAME, "share", "it is not a file"),
        ("aarch64-virt", "share/greeting.txt", no_image),
        ("x86_64-q35-rom", elf, no_image),
    ] {
        let args = ["boot", "share", "--board", board, "--firmware", file];
        let ran = tool.run(&mut tool.command(&[], &args));
        ran.expect(123, &[&format!("error: --firmware {file}: "), part]);
        assert_eq!(ran.errors.lines().count(), 1, "{ran:?}");
    }
}

#[test]
fn a_directory_that_cannot_be_shared_is_refused() {
    let tool = Tool::new(&[]);
    fs::write(tool.dir.path().join("file"), "").unwrap();
    for (dir, part) in [("nosuch", "No such file"), ("file", "Not a directory")] {
        let ran = tool.firmware(&[OsStr::new(dir)], "");
        ran.expect(123, &[&format!("cannot share {dir}: "), part]);
        assert_eq!(ran.errors.lines().count(), 1, "{ran:?}");
    }
    fs::create_dir(tool.dir.path().join("empty")).unwrap();
    let ran = tool.firmware(&[OsStr::new("empty")], "");
    ran.expect(1, &["the firmware ended with status 1"]);
    assert!(ran.console.contains("bootshare: error: "), "{ran:?}");
}

#[test]
fn a_directory_without_read_permission_is_refused() {
    let tool = Tool::new(&[]);
    let wrapper: &[&str] = match rustix::process::geteuid().is_root() {
        true => &["setpriv", "--reuid=65534", "--clear-groups"],
        false => &[],
    };
    let dir = tool.dir.path().join("closed");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o000)).unwrap();
    let image = tool.path("share/vmlinuz");
    let mut command = tool.command(wrapper, &["boot", "closed", "--firmware", &image]);
    let ran = tool.run(command.current_dir(tool.dir.path()));
    ran.expect(123, &["cannot share closed: ", "Permission denied"]);
}

#[test]
fn the_commands_of_a_dry_run_boot_and_leave_nothing_behind() {
    let tool = Tool::new(&[]);
    for server in servers() {
        // The Rust virtiofsd accepts only UTF-8.
        let name: &[u8] = match &server {
            Some(path) if path != c_server() => b"it's odd",
            _ => b"it's \xff",
        };
        let odd = OsStr::from_bytes(name);
        fs::create_dir_all(tool.dir.path().join(odd)).unwrap();
        fs::write(tool.dir.path().join(odd).join("hello"), "well met\n").unwrap();
        let server = server.map(|path| format!("--server={path}"));
        let args: Vec<_> = server
            .iter()
            .map(OsStr::new)
            .chain([odd, OsStr::new("--dry-run")])
            .collect();
        let printed = tool.firmware(&args, "bootshare.cmd=\"cat /hello\"");
        printed.expect(0, &[]);
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &printed.console])
            .env("TMPDIR", tool.path("tmp"));
        let output = shell.stdin(Stdio::null()).output().unwrap();
        // QEMU's exit status for a success of the firmware.
        assert_eq!(output.status.code(), Some(33), "{output:?}");
        let console = String::from_utf8_lossy(&output.stdout);
        assert!(console.contains("well met"), "{console}");
        tool.assert_nothing_is_left();
    }
}

// `make test` enables this feature.
#[cfg(feature = "embed-firmware")]
#[test]
fn the_program_boots_with_its_embedded_firmware() {
    let tool = Tool::new(&[]);
    let options = "--append=bootshare.cmd=\"cat /greeting.txt\"";
    // The last namespace has the /proc of the outer one, with other numbers.
    for (board, wrapper) in [
        (BOARD_NAME, vec![]),
        ("x86_64-q35-rom", vec![]),
        ("aarch64-virt", vec![]),
        (BOARD_NAME, namespace(&PID)),
    ] {
        let args = ["boot", "share", "--board", board, options];
        let ran = tool.run(&mut tool.command(&wrapper, &args));
        ran.expect(0, &[]);
        assert!(ran.console.contains(demo::GREETING.trim()), "{ran:?}");
    }
    let ran = tool.run(&mut tool.command(&[], &["boot", "share", options, "--dry-run"]));
    ran.expect(0, &[]);
    let image = "-kernel \"$dir\"/bootshare-";
    assert!(ran.console.contains(image), "{ran:?}");
    assert!(ran.console.contains("/tool firmware \"$dir\""), "{ran:?}");
}

#[test]
fn doctor_passes_on_this_machine_and_names_what_is_missing_elsewhere() {
    let tool = Tool::new(&[]);
    fs::create_dir_all(tool.dir.path().join("target/firmware")).unwrap();
    for board in [Board::X86_64Microvm, Board::Aarch64Virt] {
        let name = board.firmware_name();
        let to = tool.dir.path().join("target/firmware").join(name);
        fs::copy(target().join("firmware").join(name), to).unwrap();
    }
    let ran = tool.run(&mut tool.command(&[], &["doctor"]));
    ran.expect(0, &[]);
    for board in ["x86_64-microvm", "aarch64-virt"] {
        let line = format!("ok    a guest on {board}: read a file from a shared directory");
        assert!(ran.console.contains(&line), "{ran:?}");
    }
    let script = "mount --bind /dev/null /proc/meminfo || exit 99; PATH=/nonexistent; exec \"$@\"";
    let wrapper = [namespace(&["--mount"]), vec!["sh", "-c", script, "sh"]].concat();
    let mut elsewhere = tool.command(&wrapper, &["doctor"]);
    elsewhere.env("XDG_CACHE_HOME", tool.path("tmp")); // Nothing was downloaded to this directory.
    let ran = tool.run(&mut elsewhere);
    assert_eq!(ran.status, Some(1), "{ran:?}");
    for line in [
        "ok    memory: how much is free is unknown",
        "fail  QEMU for x86_64: cannot run",
        "apt-get install qemu-system-x86",
        "warn  demo: there is no apt-get",
    ] {
        assert!(ran.console.contains(line), "no {line:?} in {ran:?}");
    }
    let ran = tool.run(
        tool.command(&[], &["demo", "out"])
            .env("PATH", "/nonexistent")
            // An empty cache, without the downloads of other runs.
            .env("XDG_CACHE_HOME", tool.path("tmp")),
    );
    ran.expect(123, &["there is no apt-get", "`bootshare-host boot /boot`"]);
    assert_eq!(ran.errors.lines().count(), 1, "{ran:?}");
}

#[test]
fn doctor_knows_the_version_of_qemu_and_warns_of_an_old_one() {
    let tool = Tool::new(&[]);
    let bin = tool.dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let doctor = |version: &str, rest: &str| {
        let stub = format!(
            "#!/bin/sh\ncase $1 in --version) echo 'QEMU emulator version {version} (Stub)' ;; \
             *) {rest} ;; esac\n"
        );
        fs::write(tool.dir.path().join("stub"), stub).unwrap();
        install(
            &tool.dir.path().join("stub"),
            &bin.join("qemu-system-x86_64"),
        );
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        tool.run(tool.command(&[], &["doctor"]).env("PATH", path))
    };
    let real = "PATH=${PATH#*:}; exec qemu-system-x86_64 \"$@\"";
    let ran = doctor("6.2.0", real);
    for line in [
        "ok    QEMU for x86_64: 6.2.0, with all boards",
        "warn  version of QEMU for x86_64: it is older than those that Bootshare is tested with",
    ] {
        assert!(ran.console.contains(line), "{ran:?}");
    }
    let ran = doctor("4.1.0", "echo none");
    assert_eq!(ran.status, Some(1), "{ran:?}");
    let line =
        "fail  QEMU for x86_64: qemu-system-x86_64 4.1.0 was built without the machine microvm";
    assert!(ran.console.contains(line), "{ran:?}");
}

/// Makes the kernel answer one system call of the program with an error, like the seccomp filter of a container
/// that does not know the call.
fn refuse(command: &mut Command, call: i64, errno: i32) -> &mut Command {
    let filter = SeccompFilter::new(
        [(call, vec![])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.cast_unsigned()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    // SAFETY: the closure makes two system calls and allocates nothing, as is required between
    // fork and exec.
    unsafe {
        command.pre_exec(move || {
            seccompiler::apply_filter(&program).map_err(|_| std::io::Error::last_os_error())
        })
    }
}

#[test]
fn a_system_call_refused_by_a_seccomp_filter_is_reported_with_the_remedy() {
    let tool = Tool::new(&[]);
    let image = target().join("firmware").join(BOARD.firmware_name());
    let boot = ["boot", "share", "--firmware", image.to_str().unwrap()];
    let serve = ["serve", "share", "--socket", "tmp/socket"];
    for (call, name, errno, said) in [
        (libc::SYS_openat2, "openat2", libc::EPERM, "EPERM"),
        (libc::SYS_openat2, "openat2", libc::ENOSYS, "ENOSYS"),
        (libc::SYS_pidfd_open, "pidfd_open", libc::EPERM, "EPERM"),
    ] {
        let refused = format!("{name}(2) is refused with {said}, as by a container's seccomp");
        let parts = [&*refused, "--security-opt seccomp=unconfined"];
        let ran = tool.run(refuse(&mut tool.command(&[], &boot), call, errno));
        ran.expect(123, &parts);
        assert_eq!(ran.errors.lines().count(), 1, "{ran:?}");
        assert!(!ran.errors.contains("is QEMU installed"), "{ran:?}");
        if name == "openat2" {
            let ran = tool.run(refuse(&mut tool.command(&[], &serve), call, errno));
            ran.expect(123, &parts);
        }
        let ran = tool.run(refuse(&mut tool.command(&[], &["doctor"]), call, errno));
        assert_eq!(ran.status, Some(1), "{ran:?}");
        let line = format!("fail  system call {name}: {refused}");
        assert!(ran.console.contains(&line), "{ran:?}");
    }
}

/// A new pseudo-terminal: the user's side and the programs' side.
pub(crate) fn terminal() -> (fs::File, fs::File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let name = ptsname(&user, Vec::new()).unwrap();
    // The leader of a session without a terminal would get this one.
    let program = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOCTTY.bits() as i32)
        .open(name.to_str().unwrap())
        .unwrap();
    (user.into(), program)
}

#[test]
fn the_demo_starts_a_shell_on_a_terminal() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let tool = Tool::new(&[]);
    let (mut user, program) = terminal();
    let before = rustix::termios::tcgetattr(&program).unwrap();
    let mut command = tool.linux(&[], Some(c_server()));
    command
        .arg("--demo")
        .stdin(program.try_clone().unwrap())
        .stdout(program.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    drop(command);

    let mut seen = String::new();
    let mut wait_for = |user: &mut fs::File, text: &str| {
        let mut buffer = [0; 4096];
        while !seen.contains(text) {
            // A read would not end, because the test has the programs' side open as well.
            let mut polled = [PollFd::new(&*user, PollFlags::IN)];
            let limit = Timespec::try_from(LIMIT).unwrap();
            let ready = retry_on_intr(|| poll(&mut polled, Some(&limit))).unwrap();
            assert_ne!(ready, 0, "no {text:?} in {seen}");
            let count = user.read(&mut buffer).unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        seen.clear();
    };
    wait_for(&mut user, "/share # ");
    // Ctrl-C is sent to the guest: it ends the command, not the run. After the inner shell's output, the shell and
    // its children own the terminal, so Ctrl-C cannot come too early for `sleep`.
    user.write_all(b"sh -c 'echo begin; sleep 1000'\n").unwrap();
    wait_for(&mut user, "\nbegin");
    user.write_all(b"\x03").unwrap();
    wait_for(&mut user, "/share # ");
    user.write_all(b"echo status $? on $(tty)\n").unwrap();
    wait_for(&mut user, "\nstatus 130 on /dev/ttyS0");
    user.write_all(b"exit\n").unwrap();
    wait_for(&mut user, "reboot: Power down");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let after = rustix::termios::tcgetattr(&program).unwrap();
    assert_eq!(before.local_modes, after.local_modes);
    assert_eq!(before.input_modes, after.input_modes);
    tool.assert_nothing_is_left();
}
