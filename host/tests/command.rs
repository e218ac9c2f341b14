//! Tests of `bootshare-host run`, with real QEMU and real kernels of Debian.

// `make test` sets the feature, unless there is no rustup.
#![cfg(feature = "embed-init")]

#[path = "run/install.rs"]
mod install;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bootshare_host::command::{How, Job, Kernel};
use bootshare_host::debian::Packages;
use bootshare_host::guest::Parts;
use bootshare_host::modules::Modules;
use bootshare_host::{Accel, Arch, Board, Machine, Outcome};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::process::{Pid, Signal, kill_process, umask};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};
use tempfile::TempDir;

use install::install;

/// The time limit of a test, long enough for a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

fn parts(arch: Arch) -> Parts {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
    Parts::fetch(arch, None, &cache).unwrap()
}

/// The directory of a kernel's unpacked packages.
fn kernel(arch: Arch) -> PathBuf {
    let busybox = parts(arch).busybox();
    busybox.ancestors().nth(2).unwrap().to_owned()
}

/// A root file system for tests: busybox, a user, and directories that a run must not change.
struct Tree {
    dir: TempDir,
    arch: Arch,
}

/// Copies Debian's kernel to `dir`, laid out like its package, with only the modules that a run needs.
fn package(arch: Arch, dir: &Path) {
    let from = parts(arch).modules().unwrap();
    let version = from.file_name().unwrap();
    let to = dir.join("lib/modules").join(version);
    fs::create_dir_all(to.join("kernel")).unwrap();
    fs::copy(from.join("modules.builtin"), to.join("modules.builtin")).unwrap();
    let names = ["virtio_mmio", "virtio_console", "virtiofs", "overlay"];
    for (name, bytes) in Modules::read(&from).unwrap().load(&names).unwrap() {
        fs::write(to.join("kernel").join(name).with_extension("ko"), bytes).unwrap();
    }
    let name = Path::new("boot").join(format!("vmlinuz-{}", version.display()));
    fs::create_dir_all(dir.join("boot")).unwrap();
    fs::copy(kernel(arch).join(&name), dir.join(name)).unwrap();
}

/// Replaces the package's kernel by a unified kernel image whose command line and initrd do not work, so that a run
/// succeeds only if it uses nothing but the kernel.
fn unified(package: &Path, to: &Path) {
    let stub = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest/stub-amd64");
    let packages = Packages {
        arch: Arch::X86_64,
        what: "EFI stub",
        choose: |_| Ok(vec!["systemd-boot-efi".to_owned()]),
    };
    packages.fetch(&stub).unwrap();
    let boot = fs::read_dir(package.join("boot")).unwrap();
    let kernel = boot.map(|entry| entry.unwrap().path()).next().unwrap();
    let wrong = package.join("wrong");
    fs::write(&wrong, "rdinit=/nosuch").unwrap();
    let mut command = Command::new("objcopy");
    for (address, name, path) in [
        ("0x10000000", ".cmdline", &wrong),
        ("0x20000000", ".initrd", &wrong),
        ("0x30000000", ".linux", &kernel),
    ] {
        command.arg(format!("--add-section={name}={}", path.display()));
        command.arg(format!("--change-section-vma={name}={address}"));
    }
    let stub = stub.join("usr/lib/systemd/boot/efi/linuxx64.efi.stub");
    assert!(command.arg(stub).arg(to).status().unwrap().success());
    fs::remove_file(kernel).unwrap();
}

/// The result of a run.
struct Ran {
    status: Option<i32>,
    out: Vec<u8>,
    errors: String,
    console: String,
}

impl Ran {
    #[track_caller]
    fn expect(&self, status: i32, out: &str, errors: &str) {
        let all = (
            self.status,
            String::from_utf8_lossy(&self.out),
            &*self.errors,
        );
        assert_eq!(all, (Some(status), out.into(), errors), "{}", self.console);
    }

    /// Asserts the status, and that the first line is an error with this text; the console's last lines follow it.
    #[track_caller]
    fn fails(&self, status: i32, line: &str) {
        let first = self.errors.lines().next().unwrap_or_default();
        assert!(
            self.status == Some(status) && first.starts_with("bootshare-host: error: "),
            "{:?} {}",
            self.status,
            self.errors
        );
        assert!(first.contains(line), "no {line:?} in {}", self.errors);
    }
}

impl Tree {
    fn new(arch: Arch) -> Self {
        // Other users must reach the files.
        umask(Mode::WGRP | Mode::WOTH);
        let dir = tempfile::tempdir().unwrap();
        for name in ["root/bin", "root/etc", "root/home/me", "root/data/sub"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let tree = Self { dir, arch };
        let busybox = tree.path("bin/busybox");
        fs::copy(parts(arch).busybox(), busybox).unwrap();
        for name in [
            "cat", "chmod", "id", "ls", "mv", "pwd", "rm", "sh", "sleep", "stty", "tee", "uname",
        ] {
            symlink("busybox", tree.path("bin").join(name)).unwrap();
        }
        fs::write(
            tree.path("etc/passwd"),
            "me:x:1000:1001::/home/me:/bin/sh\n",
        )
        .unwrap();
        fs::write(tree.path("data/file"), "as it was\n").unwrap();
        fs::write(tree.path("data/sub/other"), "as well\n").unwrap();
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("root").join(name)
    }

    fn command(&self, options: &[&str], words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bootshare-host"));
        let limit = LIMIT.as_secs().to_string();
        command
            .args(["run", "--timeout", &limit, "--console"])
            .arg(self.dir.path().join("console"))
            .arg("--kernel")
            .arg(kernel(self.arch))
            // Linux leaves out its self-tests of ciphers, a sixth of its start.
            .args(["--cmdline", "cryptomgr.notests"])
            .args(options)
            .arg(self.path(""));
        if !words.is_empty() {
            command.arg("--").args(words);
        }
        command.stdin(Stdio::null());
        command
    }

    fn ran(&self, command: &mut Command) -> Ran {
        let output = command.output().unwrap();
        let console = fs::read(self.dir.path().join("console")).unwrap_or_default();
        Ran {
            status: output.status.code(),
            out: output.stdout,
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
            console: String::from_utf8_lossy(&console).into_owned(),
        }
    }

    fn run(&self, options: &[&str], words: &[&str]) -> Ran {
        self.ran(&mut self.command(options, words))
    }

    /// The state of every file by its path: mode, owner, inode number, times and content.
    fn state(&self) -> BTreeMap<PathBuf, (Vec<i64>, Vec<u8>)> {
        let mut state = BTreeMap::new();
        let mut dirs = vec![self.path("")];
        while let Some(dir) = dirs.pop() {
            let entries = fs::read_dir(&dir).unwrap();
            for path in entries.map(|entry| entry.unwrap().path()).chain([dir]) {
                let stat = fs::symlink_metadata(&path).unwrap();
                let numbers = vec![
                    i64::from(stat.mode()),
                    i64::from(stat.uid()),
                    i64::try_from(stat.ino()).unwrap(),
                    stat.mtime(),
                    stat.mtime_nsec(),
                    stat.ctime(),
                    stat.ctime_nsec(),
                ];
                let bytes = match stat.is_file() {
                    true => fs::read(&path).unwrap(),
                    false => Vec::new(),
                };
                let is_known = state.insert(path.clone(), (numbers, bytes)).is_some();
                if stat.is_dir() && !is_known {
                    dirs.push(path);
                }
            }
            dirs.retain(|dir| dir.is_dir());
        }
        state
    }
}

#[test]
fn the_streams_are_separate_and_a_signal_gives_128_plus_its_number() {
    let tree = Tree::new(Arch::X86_64);
    let junit = tree.dir.path().join("junit.xml");
    let option = format!("--junit={}", junit.display());
    let script = "echo out; echo err >&2; kill -9 $$";
    let ran = tree.run(&[&option], &["sh", "-c", script]);
    ran.expect(137, "out\n", "err\n");
    let text = fs::read_to_string(junit).unwrap();
    let document = roxmltree::Document::parse(&text).unwrap();
    let one = |name: &str| document.descendants().find(|node| node.has_tag_name(name));
    let name = format!("sh -c {script}");
    assert_eq!(one("testcase").unwrap().attribute("name"), Some(&*name));
    let message = one("failure").unwrap().attribute("message");
    assert_eq!(message, Some("the command ended with status 137"));
    assert_eq!(one("system-out").unwrap().text(), Some("out\n"));
    assert_eq!(one("system-err").unwrap().text(), Some("err\n"));
    // The kernel's messages are on the console and nowhere else.
    assert!(ran.console.contains("Linux version 6."), "{}", ran.console);
}

#[test]
fn a_status_is_passed_on_and_the_shell_reads_standard_input_without_a_command() {
    let tree = Tree::new(Arch::X86_64);
    let mut command = tree.command(&[], &[]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A process can reopen its output if that is a pipe, but not if it is a virtio console port.
    stdin
        .write_all(b"echo hello > /dev/stdout\nexit 255\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(255), "{output:?}");
    assert_eq!(output.stdout, b"hello\n");
}

#[test]
fn any_bytes_come_back_from_standard_input_to_its_end() {
    let tree = Tree::new(Arch::X86_64);
    // All byte values, in a pattern that reveals a lost or repeated block.
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    let input = tree.dir.path().join("input");
    fs::write(&input, &bytes).unwrap();
    let mut command = tree.command(&[], &["cat"]);
    let ran = tree.ran(command.stdin(File::open(&input).unwrap()));
    assert_eq!(ran.status, Some(0), "{} {}", ran.errors, ran.console);
    assert_eq!(ran.out.len(), bytes.len());
    assert!(ran.out == bytes, "the bytes differ");
}

#[test]
fn output_waits_for_a_reader_that_is_slow() {
    let tree = Tree::new(Arch::X86_64);
    // More than a pipe holds, but little enough that the command can end before any of it is read.
    let bytes: Vec<u8> = (0..150_000_u32).map(|n| n.to_be_bytes()[2]).collect();
    fs::write(tree.path("data/many"), &bytes).unwrap();
    let mut command = tree.command(&[], &["sh", "-c", "cat /data/many; echo done >&2"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut done = [0; 5];
    child
        .stderr
        .as_mut()
        .unwrap()
        .read_exact(&mut done)
        .unwrap();
    assert_eq!(&done, b"done\n");
    // Longer than any other wait at the end of a run.
    std::thread::sleep(Duration::from_secs(7));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());
}

/// The machine ends before its command: what it has sent is shown all the same.
#[test]
fn a_reader_that_is_slow_gets_what_came_before_a_reset() {
    let tree = Tree::new(Arch::X86_64);
    let bytes: Vec<u8> = (0..100_000_u32).map(|n| n.to_be_bytes()[2]).collect();
    fs::write(tree.path("data/many"), &bytes).unwrap();
    let script = "cat /data/many; sleep 1; echo b >/proc/sysrq-trigger";
    let ended = || {
        let mut command = tree.command(&[], &["sh", "-c", script]);
        command.env("TMPDIR", tree.dir.path());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        wait_until(|| qemu_in(tree.dir.path()).is_some());
        wait_until(|| qemu_in(tree.dir.path()).is_none());
        child
    };
    let child = ended();
    // Longer than any other wait at the end of a run.
    std::thread::sleep(Duration::from_secs(7));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(120), "{output:?}");
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());
    // After a signal the rest is given up, and a line says how much that is.
    let mut child = ended();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let mut errors = String::new();
    child
        .stderr
        .as_mut()
        .unwrap()
        .read_to_string(&mut errors)
        .unwrap();
    assert!(
        errors.contains("a standard stream did not take "),
        "{errors}"
    );
    // 130 if the signal came before the end of QEMU was noticed.
    let status = child.wait().unwrap().code();
    assert!(
        [Some(120), Some(130)].contains(&status),
        "{status:?} {errors}"
    );
}

#[test]
fn standard_streams_that_do_not_block_lose_nothing() {
    let tree = Tree::new(Arch::X86_64);
    let bytes: Vec<u8> = (0..150_000_u32).map(|n| n.to_be_bytes()[2]).collect();
    fs::write(tree.path("data/many"), &bytes).unwrap();
    let (input, mut keys) = io::pipe().unwrap();
    let (mut output, out) = io::pipe().unwrap();
    // Another process that shares the descriptors may have set O_NONBLOCK.
    rustix::io::ioctl_fionbio(&input, true).unwrap();
    rustix::io::ioctl_fionbio(&out, true).unwrap();
    let mut command = tree.command(&[], &["sh", "-c", "cat /data/many; cat"]);
    let mut child = command.stdin(input).stdout(out).spawn().unwrap();
    drop(command);
    let mut shown = vec![0];
    output.read_exact(&mut shown).unwrap();
    // The output is full, and there is no input yet.
    std::thread::sleep(Duration::from_millis(500));
    keys.write_all(b"typed").unwrap();
    drop(keys);
    output.read_to_end(&mut shown).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let (many, typed) = shown.split_at(bytes.len());
    assert!(many == bytes, "the bytes differ");
    assert_eq!(typed, b"typed");
}

#[test]
fn output_that_is_not_taken_is_a_failure() {
    let tree = Tree::new(Arch::X86_64);
    let full = fs::OpenOptions::new().write(true).open("/dev/full");
    let mut command = tree.command(&[], &["sh", "-c", "echo hello"]);
    let ran = command
        .stdout(full.unwrap())
        .stderr(Stdio::piped())
        .output();
    let ran = ran.unwrap();
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(123), "{errors}");
    let line = "error: cannot write the command's standard output: No space left on device \
                (os error 28): use a file";
    assert!(errors.contains(line), "{errors}");

    // The command has succeeded long ago, but its output was not read when the run is ended.
    let mut command = tree.command(&[], &["sh", "-c", "busybox head -c 200000 /dev/zero"]);
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut [0; 100])
        .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn closing_the_output_ends_the_command_by_sigpipe() {
    let tree = Tree::new(Arch::X86_64);
    let script = "while echo a line; do :; done";
    let mut command = tree.command(&[], &["sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 100]).unwrap();
    drop(out);
    // Ended by SIGPIPE, like a local command.
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn the_tree_does_not_change_while_the_command_writes_everywhere() {
    let tree = Tree::new(Arch::X86_64);
    let shared = tempfile::tempdir().unwrap();
    fs::write(shared.path().join("more"), "more\n").unwrap();
    let share = format!("--share=more={}:/mnt/more", shared.path().display());
    // A link leads to the same place in the tree, also for mounts.
    symlink("/data", tree.path("mnt")).unwrap();
    let before = tree.state();
    let script = "
        set -e
        echo new > /new; echo more >> /data/file; chmod 600 /data/sub/other
        mv /data/sub /data/moved; rm /bin/ls; echo x > /tmp/x; echo y > /run/y; echo z > /dev/shm/z
        echo $HOME $NAME; pwd; cat /sys/class/net/lo/operstate /data/file /data/moved/other /mnt/more/more
        cat /data/more/more
        test -d /lib/modules/$(uname -r)/kernel && echo modules
        echo no > /mnt/more/more && exit 9
        sleep 1000 &
    ";
    let ran = tree.run(
        &[&share, "--env=NAME=a b", "--cwd=/home"],
        &["sh", "-c", &format!("({script}) 2>/dev/null; echo left")],
    );
    let out = "/root a b\n/home\nunknown\nas it was\nmore\nas well\nmore\nmore\nmodules\nleft\n";
    ran.expect(0, out, "");
    assert!(before == tree.state(), "the tree has changed");
}

#[test]
fn read_only_makes_writes_fail_and_user_selects_the_user() {
    let tree = Tree::new(Arch::X86_64);
    // Without an overlay, the tree must contain the mount points.
    for name in ["dev", "proc", "sys", "run", "tmp"] {
        fs::create_dir(tree.path(name)).unwrap();
    }
    let script = "id; echo $USER; echo x > /tmp/x && echo y > $HOME/y";
    let ran = tree.run(&["--read-only", "--user=me"], &["sh", "-c", script]);
    let errors = "sh: can't create /home/me/y: Read-only file system\n";
    ran.expect(1, "uid=1000(me) gid=1001\nme\n", errors);
}

#[test]
fn the_callers_files_belong_to_root_and_an_unreadable_file_is_reported_once() {
    let tree = Tree::new(Arch::X86_64);
    // Everything that the ordinary user needs is in a directory that this user can access.
    let (dir, program) = (tree.dir.path(), tree.dir.path().join("tool"));
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
    install(env!("CARGO_BIN_EXE_bootshare-host").as_ref(), &program);
    package(Arch::X86_64, &dir.join("package"));
    for name in ["secret", "secret2"] {
        fs::write(tree.path("data").join(name), "").unwrap();
        let none = fs::Permissions::from_mode(0o000);
        fs::set_permissions(tree.path("data").join(name), none).unwrap();
    }
    let wrapper: &[&str] = match rustix::process::geteuid().is_root() {
        true => {
            std::os::unix::fs::chown(tree.path("data/file"), Some(65534), Some(65534)).unwrap();
            &[
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
            ]
        }
        false => &[],
    };
    let user = fs::metadata(tree.path("data/file")).unwrap();
    let run = |kernel: &str, options: &[&str], script: &str| {
        let mut command = Command::new("env");
        command
            .args(wrapper)
            .arg(&program)
            .args(["run", "--timeout=120"]);
        command.arg("--kernel").arg(dir.join(kernel)).args(options);
        command.arg(tree.path("")).args(["--", "sh", "-c", script]);
        tree.ran(command.stdin(Stdio::null()))
    };
    let script =
        "ls -n /data/file; cd /data; for i in 1 2 3; do cat file secret* 2>/dev/null; done";
    let ran = run("package", &[], script);
    let lines: Vec<_> = std::str::from_utf8(&ran.out).unwrap().lines().collect();
    let words: Vec<_> = lines[0].split_whitespace().collect();
    assert_eq!(
        (words[2], words[3], lines.len()),
        ("0", "0", 4),
        "{lines:?}"
    );
    let path = fs::canonicalize(tree.path("data/secret")).unwrap();
    let told = format!(
        "bootshare-host: warning: the guest could not read {}, and others as well: user {} of this \
         machine may not (Permission denied (os error 13))",
        path.display(),
        user.uid()
    );
    assert!(ran.errors.starts_with(&told), "{}", ran.errors);
    assert_eq!(
        (ran.status, ran.errors.lines().count()),
        (Some(1), 1),
        "{}",
        ran.errors
    );
    // A unified kernel image: only its kernel is used, with the package's modules.
    unified(&dir.join("package"), &dir.join("package/boot/uki.efi"));
    let ran = run(
        "package/boot/uki.efi",
        &["--owner=as-is"],
        "ls -n /data/file",
    );
    let out = String::from_utf8_lossy(&ran.out).into_owned();
    let owner = format!(" {} ", user.uid());
    assert!(
        ran.status == Some(0) && out.contains(&owner),
        "{out} {}",
        ran.errors
    );
    assert_eq!(ran.errors, "");
}

#[test]
fn if_kvm_fails_at_the_start_tcg_runs_the_command_with_all_of_its_input() {
    static TOLD: Mutex<String> = Mutex::new(String::new());
    let tree = Tree::new(Arch::X86_64);
    // QEMU connects all sockets before it checks the accelerator.
    let script = "case \"$*\" in *'-accel kvm'*) set -- $(echo \"$*\" | sed 's/-accel kvm/-accel no/');; esac
        exec qemu-system-x86_64 \"$@\"";
    let [qemu, draft] = ["qemu", "draft"].map(|name| tree.dir.path().join(name));
    fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
    install(&draft, &qemu);
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/firmware");
    let board = Board::X86_64Microvm;
    let mut machine = Machine::new(board, images.join(board.firmware_name()));
    machine.accel = Accel::Kvm;
    machine.qemu = Some(qemu);
    machine.memory_mib = 512;
    machine.time_limit = Some(LIMIT);
    let command = ["sh", "-c", "read n; exit $n"].map(OsString::from);
    let job = Job {
        trees: vec![tree.path("")],
        command: command.to_vec(),
        init: fs::read(images.join("init-x86_64")).unwrap(),
        ..Job::default()
    };
    let found = Kernel::find(Some(&kernel(Arch::X86_64)), None, &job.trees).unwrap();
    let modules = Modules::read(found.modules.as_deref().unwrap()).unwrap();
    let (input, mut output) = io::pipe().unwrap();
    output.write_all(b"7\n").unwrap();
    rustix::stdio::dup2_stdin(&input).unwrap();
    let end = job.run(&machine, &found, Some(&modules)).unwrap();
    assert!(
        matches!(end.how, How::Machine(Outcome::QemuFailed { .. })),
        "{end}"
    );
    machine.fallback = Some(|text| TOLD.lock().unwrap().push_str(text));
    let end = job.run(&machine, &found, Some(&modules)).unwrap();
    assert!(matches!(end.how, How::Ended(7)), "{end}");
    let told = TOLD.lock().unwrap();
    assert!(
        told.starts_with("KVM does not work: QEMU failed")
            && told.ends_with("; continuing with tcg"),
        "{told}"
    );
}

#[test]
fn each_failure_of_the_machine_has_an_error_line_and_a_status() {
    let tree = Tree::new(Arch::X86_64);
    let run = |options: &[&str], words: &[&str]| tree.run(options, words);
    let json = tree.dir.path().join("json");
    let option = format!("--json={}", json.display());
    let junit = tree.dir.path().join("junit");
    let junit_option = format!("--junit={}", junit.display());
    let ran = run(
        &[
            "--cmdline=rdinit=/nosuch",
            "--bisect",
            &option,
            &junit_option,
        ],
        &["id"],
    );
    let text = fs::read_to_string(junit).unwrap();
    assert!(
        text.contains("<skipped message=\"the kernel panicked"),
        "{text}"
    );
    ran.fails(
        125,
        "the kernel panicked after the kernel was started, before the first program",
    );
    let lines = &ran.errors;
    assert!(lines.contains("VFS: Unable to mount root fs"), "{lines}");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!(
        (&json["status"], &json["stage"]),
        (&125.into(), &"kernel".into())
    );
    assert!(
        json["error"]
            .as_str()
            .unwrap()
            .starts_with("the kernel panicked"),
        "{json}"
    );
    // A command that writes the words of a kernel panic is not mistaken for a panic.
    let script = "echo 'Kernel panic - not syncing: no' | tee /dev/kmsg /dev/console
        sleep 3; echo c > /proc/sysrq-trigger; sleep 1000";
    let start = Instant::now();
    let ran = run(&[], &["sh", "-c", script]);
    let long_enough = 5 + 2 * start.elapsed().as_secs();
    ran.fails(118, "the kernel panicked while the command ran: ");
    assert!(
        ran.errors.lines().next().unwrap().contains("crash"),
        "{}",
        ran.errors
    );
    assert_eq!(ran.out, b"Kernel panic - not syncing: no\n");
    let limit = format!("--timeout={long_enough}");
    let ran = run(&[&limit], &["sleep", "1000"]);
    ran.fails(124, "the time limit passed while the command");
    // `sleep` is a link to the tree's busybox.
    let read = ") answered last: READ /bin/busybox";
    assert!(ran.errors.contains(read), "{}", ran.errors);
    run(&[], &["sh", "-c", "echo b > /proc/sysrq-trigger"])
        .fails(120, "reset while the command ran");
}

#[test]
fn each_failure_to_start_has_an_error_line_and_a_status() {
    let tree = Tree::new(Arch::X86_64);
    let run = |options: &[&str], words: &[&str]| tree.run(options, words);
    fs::write(tree.path("bin/script"), "#!/usr/bin/nosuch\n").unwrap();
    fs::set_permissions(tree.path("bin/script"), fs::Permissions::from_mode(0o755)).unwrap();
    run(&[], &["nosuch"]).expect(
        127,
        "",
        "bootshare-host: error: nosuch: command not found\n",
    );
    run(&[], &["script"]).fails(127, "script: the tree lacks its interpreter");
    run(&[], &["/etc/passwd"]).fails(126, "/etc/passwd: cannot be executed: Permission denied");
    run(&["--cwd=/nosuch"], &["id"]).fails(119, "no directory /nosuch");
    run(&["--user=nosuch"], &["id"]).fails(119, "no user nosuch");
    // Errors that are found before anything is started.
    let file = tree.path("etc/passwd").display().to_string();
    run(&["--kernel", &file], &["id"]).fails(123, "etc/passwd is no kernel: name a bzImage");
    let cut = tree.path("data/cut").display().to_string();
    fs::write(&cut, "\x1f\u{0}").unwrap();
    run(&["--kernel", &cut], &["id"]).fails(123, "data/cut is no kernel");
    let mut elf = b"\x7fELF".to_vec();
    elf.resize(100, 0);
    elf[18] = 62;
    fs::write(&cut, elf).unwrap();
    run(&["--kernel", &cut], &["id"]).fails(117, "the firmware could not start the kernel: ");
    let empty = tree.path("data").display().to_string();
    let [json, junit] = ["json", "junit"].map(|name| tree.dir.path().join(name));
    let told = [("--json", &json), ("--junit", &junit)]
        .map(|(option, path)| format!("{option}={}", path.display()));
    for (status, more, element) in [(123, "--smp=1", "<error "), (125, "--bisect", "<skipped ")] {
        run(&["--kernel", &empty, more, &told[0], &told[1]], &["id"])
            .fails(status, "there is no kernel in");
        let object: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
        assert_eq!(
            (&object["status"], &object["stage"]),
            (&status.into(), &().into())
        );
        let text = fs::read_to_string(&junit).unwrap();
        assert!(
            text.contains(element) && text.contains("there is no kernel in"),
            "{text}"
        );
    }
    fs::write(tree.path("data/modules.builtin"), "").unwrap();
    run(&["--modules", &empty, "--board=x86_64-microvm"], &["id"]).fails(
        123,
        "the kernel has virtio_mmio neither built in nor as a module",
    );
    let lines = "kernel/drivers/virtio/virtio_mmio.ko\nkernel/drivers/char/virtio_console.ko\n";
    fs::write(tree.path("data/modules.builtin"), lines).unwrap();
    run(&["--modules", &empty, "--board=x86_64-microvm"], &["id"]).fails(
        123,
        "the kernel has virtiofs neither built in nor as a module",
    );
    let alone = tree.dir.path().join("kernel");
    package(Arch::X86_64, &alone);
    fs::remove_dir_all(alone.join("lib")).unwrap();
    let ran = run(&["--kernel", &alone.display().to_string()], &["id"]);
    ran.fails(119, "has the kernel virtio_console");
    assert!(ran.errors.contains("with --modules"), "{}", ran.errors);
    fs::remove_file(tree.path("bin/sh")).unwrap();
    run(&[], &[]).expect(
        127,
        "",
        "bootshare-host: error: /bin/sh: command not found\n",
    );
    let theirs = tree.dir.path().join("theirs");
    fs::write(&theirs, "a text").unwrap();
    for option in ["--json", "--junit", "--console"] {
        let words = ["run", option, &theirs.display().to_string()];
        let mut command = Command::new(env!("CARGO_BIN_EXE_bootshare-host"));
        command.args(words).arg(tree.path("")).args(["--", "id"]);
        tree.ran(&mut command).fails(
            123,
            "theirs: the file exists and is not from an earlier run",
        );
    }
    assert_eq!(fs::read(&theirs).unwrap(), b"a text");
    run(&["--env=NAME"], &["id"]).fails(123, "write NAME=VALUE");
    run(&["--share=a=b"], &["id"]).fails(123, "write TAG=DIR:/PATH");
}

#[test]
fn the_hosts_own_root_directory_can_be_the_root_file_system() {
    let tree = Tree::new(Arch::X86_64);
    // Not this project's directory, which may be below /tmp: that is empty in the machine.
    let dir = "/usr/lib";
    let mut command = Command::new(env!("CARGO_BIN_EXE_bootshare-host"));
    command
        .args(["run", "--cwd", dir, "--kernel"])
        .arg(kernel(Arch::X86_64))
        .args(["/", "--", "cat", "os-release"])
        .stdin(Stdio::null());
    let text = fs::read_to_string(Path::new(dir).join("os-release")).unwrap();
    tree.ran(&mut command).expect(0, &text, "");
}

#[test]
fn a_signal_ends_all_processes_of_a_run() {
    let tree = Tree::new(Arch::X86_64);
    let mut command = tree.command(&[], &["sh", "-c", "echo begin; sleep 1000"]);
    command.env("TMPDIR", tree.dir.path());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut [0; 6])
        .unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{errors}");
    // The streams ended, so QEMU has ended as well. No temporary file is left.
    let left = fs::read_dir(tree.dir.path()).unwrap();
    let mut names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["console", "root"]);
}

/// The process id of the QEMU whose sockets are in `dir`. A process that has ended has no command line.
fn qemu_in(dir: &Path) -> Option<Pid> {
    let dir = dir.to_str().unwrap();
    fs::read_dir("/proc").unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        let pid = path.file_name()?.to_str()?.parse().ok()?;
        let line = fs::read(path.join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line);
        Pid::from_raw(pid).filter(|_| line.contains("qemu-system") && line.contains(dir))
    })
}

/// Waits until `is_so` returns true.
fn wait_until(is_so: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_killed_process_is_reported_and_leaves_no_other_process() {
    let tree = Tree::new(Arch::X86_64);
    for is_started in [false, true] {
        for is_tool in [false, true] {
            // With -S the guest's processor never runs the firmware's first instruction.
            let paused: &[&str] = if is_started { &[] } else { &["--qemu-arg=-S"] };
            let mut command = tree.command(paused, &["sh", "-c", "echo begin; sleep 1000"]);
            command.env("TMPDIR", tree.dir.path());
            let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            if is_started {
                let out = child.stdout.as_mut().unwrap();
                out.read_exact(&mut [0; 6]).unwrap();
            }
            wait_until(|| qemu_in(tree.dir.path()).is_some());
            let temporary = || {
                let entries = fs::read_dir(tree.dir.path()).unwrap();
                let mut names = entries.map(|entry| entry.unwrap().file_name());
                names.any(|name| name.to_string_lossy().contains("bootshare-"))
            };
            // Its files are removed a moment after the kernel has read them.
            wait_until(|| !is_started || !temporary());
            let killed = match is_tool {
                true => Pid::from_child(&child),
                false => qemu_in(tree.dir.path()).unwrap(),
            };
            kill_process(killed, Signal::KILL).unwrap();
            let output = child.wait_with_output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            if is_tool {
                assert_eq!(output.status.code(), None);
                wait_until(|| qemu_in(tree.dir.path()).is_none());
            } else {
                let place = match is_started {
                    true => "while the command ran",
                    false => "before the firmware started the kernel",
                };
                let line = format!("error: QEMU failed (signal: 9 (SIGKILL)) ({place})");
                assert_eq!(output.status.code(), Some(121), "{errors}");
                assert!(errors.contains(&line), "{errors}");
            }
            // No temporary files are left either, if the kernel has already read them.
            let left = fs::read_dir(tree.dir.path()).unwrap();
            for path in left.map(|entry| entry.unwrap().path()) {
                if path.display().to_string().contains("bootshare-") {
                    assert!(is_tool && !is_started, "{}", path.display());
                    fs::remove_dir_all(path).unwrap();
                }
            }
        }
    }
}

#[test]
fn an_unusable_tmpdir_is_reported_with_the_remedy() {
    let tree = Tree::new(Arch::X86_64);
    let long = tree.dir.path().join("x".repeat(90));
    fs::create_dir(&long).unwrap();
    for (dir, line) in [
        (
            &*long,
            "is too long for a socket: point TMPDIR at a shorter",
        ),
        (Path::new("/nosuch"), "cannot make a directory for sockets"),
    ] {
        let ran = tree.ran(tree.command(&[], &["id"]).env("TMPDIR", dir));
        ran.fails(123, line);
        assert_eq!(ran.errors.lines().count(), 1, "{}", ran.errors);
    }
    assert_eq!(fs::read_dir(&long).unwrap().count(), 0);
    let small = tree.dir.path().join("small");
    fs::create_dir(&small).unwrap();
    // A full file system, and no /dev/shm. An ordinary user may mount in a user namespace.
    let program = env!("CARGO_BIN_EXE_bootshare-host");
    let run = |size: &str| {
        let mut command = Command::new("unshare");
        let flags: &[&str] = match rustix::process::geteuid().is_root() {
            true => &["--mount"],
            false => &["--mount", "--map-root-user"],
        };
        command.args(flags).args(["sh", "-c"]).arg(
            "mount -t tmpfs -o size=$1 none $2 && mount -t tmpfs -o ro none /dev/shm || exit 99
            TMPDIR=$2 exec $3 run --timeout=120 --kernel $4 $5 -- id",
        );
        command.args(["sh", size]).arg(&small).arg(program);
        command.arg(kernel(tree.arch)).arg(tree.path(""));
        tree.ran(command.stdin(Stdio::null()))
    };
    run("1m").fails(
        123,
        "No space left on device (os error 28): point TMPDIR at a directory with room",
    );
    run("100m").expect(0, "uid=0 gid=0\n", "");
}

#[test]
fn the_board_is_chosen_by_the_kernels_architecture() {
    let tree = Tree::new(Arch::Aarch64);
    tree.run(&[], &["uname", "-m"]).expect(0, "aarch64\n", "");
}

/// A new terminal: the user's side and the programs' side.
fn terminal() -> (OwnedFd, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let user = openpt(flags).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let program = ioctl_tiocgptpeer(&user, flags).unwrap();
    (user, program)
}

#[test]
fn a_background_process_of_a_terminal_runs_and_stops_as_a_job() {
    let tree = Tree::new(Arch::X86_64);
    let (user, program) = terminal();
    // For the program in the foreground.
    rustix::io::write(&user, b"typed\n").unwrap();
    // timeout(1) puts its command into a background process group.
    let wrapped = |words: &[&str]| {
        let command = tree.command(&[], words);
        let script = "timeout -s KILL 100 \"$@\"; exit $?";
        let mut shell = Command::new("setsid");
        shell.args(["--ctty", "--wait", "sh", "-c", script, "sh"]);
        shell.arg(command.get_program()).args(command.get_args());
        shell.env("TMPDIR", tree.dir.path());
        let copy = || program.try_clone().unwrap();
        shell.stdin(copy()).stdout(copy()).stderr(Stdio::piped());
        shell.spawn().unwrap()
    };
    // Reading the terminal would stop it for ever.
    let output = wrapped(&["sh", "-c", "exit 7"]).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    // SIGTSTP stops the machine, too, and SIGCONT lets it go on.
    let child = wrapped(&["sh", "-c", "sleep 3; exit 8"]);
    wait_until(|| qemu_in(tree.dir.path()).is_some());
    let qemu = qemu_in(tree.dir.path()).unwrap();
    let state = |pid: Pid| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap();
        stat.rsplit(") ").next().unwrap().to_owned()
    };
    let parent = state(qemu).split(' ').nth(1).unwrap().parse().unwrap();
    let tool = Pid::from_raw(parent).unwrap();
    kill_process(tool, Signal::TSTP).unwrap();
    wait_until(|| [tool, qemu].iter().all(|pid| state(*pid).starts_with('T')));
    kill_process(tool, Signal::CONT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(8), "{output:?}");
}

/// Before the command begins, a machine may hang: the keys are still those of this terminal.
#[test]
fn ctrl_c_ends_a_shell_that_has_not_begun() {
    let tree = Tree::new(Arch::X86_64);
    let (user, program) = terminal();
    let command = tree.command(&[], &[]);
    let mut session = Command::new("env");
    // A shell's background ignores the signal, which its children inherit.
    session.args(["--default-signal=INT", "setsid", "--ctty", "--wait"]);
    session.arg(command.get_program()).args(command.get_args());
    session.env("TMPDIR", tree.dir.path());
    let copy = || program.try_clone().unwrap();
    session.stdin(copy()).stdout(copy()).stderr(copy());
    let mut child = session.spawn().unwrap();
    wait_until(|| qemu_in(tree.dir.path()).is_some());
    kill_process(qemu_in(tree.dir.path()).unwrap(), Signal::STOP).unwrap();
    // In raw mode, which would have been entered by now, the key is none of this terminal's.
    std::thread::sleep(Duration::from_secs(1));
    rustix::io::write(&user, b"\x03").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_shell_gets_the_terminals_size_and_keys() {
    let tree = Tree::new(Arch::X86_64);
    let (user, program) = terminal();
    let mut size = Winsize {
        ws_row: 33,
        ws_col: 101,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&user, size).unwrap();
    let before = tcgetattr(&program).unwrap();
    let mut command = tree.command(&[], &[]);
    command
        // A job of this process's session, which SIGTSTP stops.
        .process_group(0)
        .env("TERM", "xterm-kitty")
        .stdin(program.try_clone().unwrap())
        .stdout(program.try_clone().unwrap())
        .stderr(program.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    drop(command);

    let mut user = File::from(user);
    let mut typed = |text: &str, answer: &str| {
        user.write_all(text.as_bytes()).unwrap();
        let mut seen = String::new();
        while !seen.contains(answer) {
            let mut polled = [PollFd::new(&user, PollFlags::IN)];
            let limit = Timespec::try_from(LIMIT).unwrap();
            assert_ne!(
                poll(&mut polled, Some(&limit)).unwrap(),
                0,
                "no {answer:?} in {seen}"
            );
            let mut buffer = [0; 4096];
            let count = user.read(&mut buffer).unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        seen
    };
    typed("", "# ");
    let seen = typed("stty size; tty; echo $TERM\n", "xterm-kitty");
    assert!(
        seen.contains("33 101") && seen.contains("/dev/pts/0"),
        "{seen}"
    );
    typed("sh -c 'echo be''gin; sleep 1000'\n", "begin");
    typed("\x03", "# ");
    typed("echo status $?\n", "status 130");
    // A stopped job leaves the terminal to the shell, and takes it again when it continues.
    let pid = Pid::from_child(&child);
    let state = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        stat.rsplit(") ").next().unwrap().chars().next()
    };
    let modes = || tcgetattr(&program).unwrap().local_modes;
    let raw = modes();
    assert_ne!(raw, before.local_modes);
    kill_process(pid, Signal::TSTP).unwrap();
    wait_until(|| state() == Some('T'));
    assert_eq!(modes(), before.local_modes);
    kill_process(pid, Signal::CONT).unwrap();
    wait_until(|| modes() == raw);
    (size.ws_row, size.ws_col) = (20, 40);
    tcsetwinsize(&program, size).unwrap();
    kill_process(Pid::from_child(&child), Signal::WINCH).unwrap();
    // The new size arrives while the loop runs.
    typed(
        "while [ \"$(stty size)\" != '20 40' ]; do :; done; echo re''sized\n",
        "resized",
    );
    typed("exit 3\n", "exit 3");
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert_eq!(before.local_modes, tcgetattr(&program).unwrap().local_modes);
}

/// Replacements for programs that need minutes, or the network.
const STAND_INS: [(&str, &str); 2] = [
    (
        "make",
        r#"case "$*" in
        *selftests*)
            for word; do case $word in INSTALL_PATH=*) to=${word#*=};; esac; done
            mkdir -p "$to"
            printf '#!/bin/sh\npwd; echo ok 1; exit 4\n' > "$to/run_kselftest.sh"
            chmod +x "$to/run_kselftest.sh" ;;
        *bzImage*)
            mkdir -p arch/x86/boot
            if grep -q broken source; then echo none; else cat "$PACKAGE"/boot/vmlinuz-*; fi > arch/x86/boot/bzImage ;;
        esac"#,
    ),
    (
        "mmdebstrap",
        r#"for word; do tar=$word; done; tar -C "$TREE" -cf "$tar" ."#,
    ),
];

/// Runs the `number`th recipe of docs/run.md.
fn recipe(number: usize, dir: &Path, tree: &Path) -> (Option<i32>, String, String) {
    let page = include_str!("../../docs/run.md");
    let recipes = page.split_once("\n## Recipes\n").unwrap().1;
    let script = recipes.split("```sh\n").nth(number).unwrap();
    run_script(script.split("```").next().unwrap(), dir, tree)
}

/// Runs a script with these replacements in PATH. Returns its status and outputs.
fn run_script(script: &str, dir: &Path, tree: &Path) -> (Option<i32>, String, String) {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).unwrap();
    let program = env!("CARGO_BIN_EXE_bootshare-host");
    let tool = format!("exec '{program}' \"$@\"");
    for (name, text) in STAND_INS.into_iter().chain([("bootshare-host", &*tool)]) {
        let draft = dir.join("draft");
        fs::write(&draft, format!("#!/bin/sh\n{text}\n")).unwrap();
        install(&draft, &bin.join(name));
    }
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("sh")
        .args(["-ec", script])
        .current_dir(dir.join("work"))
        .env("PATH", format!("{}:{path}", bin.display()))
        .env("PACKAGE", dir.join("package"))
        .env("TREE", tree)
        .env_remove("CARGO_TARGET_DIR")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// A directory outside of /tmp, so that the machine sees it, with a kernel as a build and as a package leave it.
fn workplace() -> TempDir {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let (package, work) = (dir.path().join("package"), dir.path().join("work"));
    self::package(Arch::X86_64, &package);
    fs::create_dir_all(work.join("scripts")).unwrap();
    symlink("/bin/true", work.join("scripts/config")).unwrap();
    symlink(package.join("lib"), work.join("lib")).unwrap();
    symlink(&package, work.join("linux-image-6.1")).unwrap();
    fs::write(work.join("source"), "good\n").unwrap();
    dir
}

#[test]
fn the_recipes_for_a_built_kernel_run_unchanged() {
    let dir = workplace();
    let version = fs::read_dir(dir.path().join("package/lib/modules")).unwrap();
    let version = version
        .map(|entry| entry.unwrap().file_name())
        .next()
        .unwrap();
    let (status, out, errors) = recipe(1, dir.path(), Path::new(""));
    let expected = format!("{}\n", version.display());
    assert_eq!((status, out, errors), (Some(0), expected, String::new()));
    let (status, out, errors) = recipe(3, dir.path(), Path::new(""));
    let expected = "/kselftest\nok 1\n".to_owned();
    assert_eq!((status, out, errors), (Some(4), expected, String::new()));
    let console = fs::read(dir.path().join("work/kernel.log")).unwrap();
    assert!(String::from_utf8_lossy(&console).contains("Linux version"));
}

#[test]
fn the_github_workflow_runs_its_command_unchanged() {
    let dir = workplace();
    let workflow = include_str!("../../examples/ci/github-actions.yml");
    // The YAML value is folded: each line end is a space.
    let step = workflow.split_once("run: >\n").unwrap().1;
    let lines = step
        .lines()
        .take_while(|line| line.starts_with("          "));
    let line = lines.map(str::trim).collect::<Vec<_>>().join(" ");
    let build = workflow.split_once("make defconfig").unwrap().1;
    let build = build.split_once("\n\n").unwrap().0;
    let build: Vec<_> = build.lines().map(str::trim).collect();
    let script = format!("make defconfig{}\n{line}", build.join("\n"));
    let script = script.replace("bootshare/target/release/bootshare-host", "bootshare-host");
    let (status, out, errors) = run_script(&script, dir.path(), Path::new(""));
    assert_eq!((status, &*errors), (Some(0), ""), "{out}");
    let work = dir.path().join("work");
    let text = fs::read_to_string(work.join("boot-test.xml")).unwrap();
    let document = roxmltree::Document::parse(&text).unwrap();
    let out_told = document
        .descendants()
        .find(|node| node.has_tag_name("system-out"));
    assert_eq!(out_told.unwrap().text(), Some(&*out));
    assert!(work.join("console.log").is_file());
}

#[test]
fn the_recipe_for_a_debian_tree_runs_unchanged() {
    let dir = workplace();
    let tree = Tree::new(Arch::X86_64);
    package(Arch::X86_64, &tree.path(""));
    fs::create_dir(tree.path("dev")).unwrap();
    fs::write(tree.path("dev/null"), "").unwrap();
    fs::write(
        tree.path("bin/apt"),
        "#!/bin/sh\necho $@; ls -n bin | grep -c ' 0  *0 '\n",
    )
    .unwrap();
    fs::set_permissions(tree.path("bin/apt"), fs::Permissions::from_mode(0o755)).unwrap();
    let count = fs::read_dir(tree.path("bin")).unwrap().count();
    let (status, out, errors) = recipe(2, dir.path(), &tree.path(""));
    let expected = format!("list --installed\n{count}\n");
    assert_eq!((status, out, errors), (Some(0), expected, String::new()));
    assert!(!dir.path().join("work/debian/dev/null").exists());
}

#[test]
fn the_recipe_for_a_crates_tests_runs_unchanged() {
    let dir = workplace();
    let work = dir.path().join("work");
    fs::create_dir(work.join("src")).unwrap();
    fs::write(
        work.join("Cargo.toml"),
        "[package]\nname = \"one\"\nedition = \"2024\"\n[workspace]\n",
    )
    .unwrap();
    let test = "#[test]\nfn old() { let id = std::process::id(); assert!(id < 1000, \"{id}\"); }\n";
    fs::write(work.join("src/lib.rs"), test).unwrap();
    let (status, out, errors) = recipe(4, dir.path(), Path::new(""));
    assert_eq!(status, Some(0), "{out} {errors}");
    assert!(out.contains("test old ... ok"), "{out} {errors}");
    fs::write(
        work.join("src/lib.rs"),
        "#[test]\nfn fails() { panic!() }\n",
    )
    .unwrap();
    let (status, out, errors) = recipe(4, dir.path(), Path::new(""));
    assert_eq!(status, Some(101), "{out} {errors}");
}

#[test]
fn the_recipe_for_git_bisect_runs_unchanged() {
    let dir = workplace();
    let work = dir.path().join("work");
    let git = |words: &[&str]| {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=me", "-c", "user.email=me@localhost"]);
        let output = git.args(words).current_dir(&work).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    git(&["init", "--quiet"]);
    let reproducer = "#!/bin/sh\necho \"$(uname -r) $(cat source)\"; grep -q good source\n";
    fs::write(work.join("reproducer"), reproducer).unwrap();
    fs::set_permissions(work.join("reproducer"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(work.join(".gitignore"), "/lib\n/arch\n").unwrap();
    for (index, kind) in ["good", "good", "broken", "good", "bad", "bad"]
        .iter()
        .enumerate()
    {
        fs::write(work.join("source"), format!("{index} {kind}\n")).unwrap();
        git(&["add", "."]);
        git(&["commit", "--quiet", "--message", &format!("{index} {kind}")]);
    }
    git(&["bisect", "start", "HEAD", "HEAD~5"]);
    let (status, out, errors) = recipe(5, dir.path(), Path::new(""));
    assert_eq!(status, Some(0), "{out} {errors}");
    assert!(
        out.contains("is the first bad commit") && out.contains("    4 bad"),
        "{out} {errors}"
    );
    // `git bisect` skips a kernel that does not start.
    assert!(
        errors.contains("the firmware could not start the kernel"),
        "{out} {errors}"
    );
}

#[test]
fn modules_in_every_compression_of_a_kernel_build_are_unpacked() {
    let dir = parts(Arch::X86_64).modules().unwrap();
    // A module of Debian 12's and 13's kernels that needs other modules.
    let module = "vsock_loopback";
    let plain = Modules::read(&dir).unwrap().load(&[module]).unwrap();
    let names: Vec<_> = plain.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.last(), Some(&module));
    assert!(names.len() > 1, "{names:?}");
    let packed = tempfile::tempdir().unwrap();
    fs::create_dir(packed.path().join("kernel")).unwrap();
    fs::copy(
        dir.join("modules.builtin"),
        packed.path().join("modules.builtin"),
    )
    .unwrap();
    for (program, ending) in [("xz", "xz"), ("gzip", "gz"), ("zstd", "zst")] {
        for (name, bytes) in &plain {
            let path = packed.path().join("kernel").join(format!("{name}.ko"));
            fs::write(&path, bytes).unwrap();
            // The kernel's scripts/Makefile.modinst calls xz with this check, because the kernel itself supports no
            // other.
            let check: &[&str] = if program == "xz" {
                &["--check=crc32"]
            } else {
                &[]
            };
            let to = path.with_extension(format!("ko.{ending}"));
            let out = File::create(&to).unwrap();
            let mut command = Command::new(program);
            command.args(check).arg("-c").arg(&path).stdout(out);
            assert!(command.status().unwrap().success(), "{program}");
            fs::remove_file(&path).unwrap();
        }
        let unpacked = Modules::read(packed.path())
            .unwrap()
            .load(&[module])
            .unwrap();
        assert!(unpacked == plain, "{program}");
        for entry in fs::read_dir(packed.path().join("kernel")).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(path.extension(), Some(OsStr::new(ending)));
            fs::remove_file(path).unwrap();
        }
    }
}
