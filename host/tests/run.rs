//! How runs end, and that nothing is left of them. The guests here are Debian's kernel and the
//! demo's init, given to QEMU directly: the firmware has its own tests.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bootshare_host::guest::Parts;
use bootshare_host::{Arch, Board, Console, Machine, Outcome, Report, Share, demo};
use tempfile::TempDir;

/// Long enough for a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);

const C_SERVER: &str = "/usr/lib/qemu/virtiofsd";

fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target")
}

fn rust_server() -> PathBuf {
    let path = target().join("virtiofsd/bin/virtiofsd");
    assert!(
        path.is_file(),
        "{} is missing: run host/setup.sh test",
        path.display()
    );
    path
}

/// The demo share, made once a process.
fn demo_share(arch: Arch) -> PathBuf {
    static MADE: [OnceLock<PathBuf>; 2] = [OnceLock::new(), OnceLock::new()];
    MADE[usize::from(arch == Arch::Aarch64)]
        .get_or_init(|| {
            let parts = Parts::fetch(arch, &target().join("guest")).unwrap();
            let dir = target().join("host-tests").join(arch.name());
            demo::make(&parts, &dir).unwrap();
            dir
        })
        .clone()
}

/// A machine whose QEMU loads the demo's kernel itself.
fn linux(board: Board, words: &str) -> Machine {
    let share = demo_share(board.arch());
    let mut machine = Machine::new(board, share.join(board.arch().kernel_name()));
    let cmdline = fs::read_to_string(share.join("cmdline")).unwrap();
    // Without the frequency Linux may hang when it measures it under TCG on microvm.
    machine.append = format!("{} tsc_early_khz=2000000 {words}", cmdline.trim());
    machine.qemu_args = vec!["-initrd".into(), share.join("initrd.img").into()];
    machine.shares = vec![Share::new(demo::TAG, share)];
    machine.server = Some(C_SERVER.into());
    machine.time_limit = Some(LIMIT);
    machine
}

/// A machine that is built but never runs an instruction.
fn paused() -> Machine {
    let mut machine = linux(Board::X86_64Q35, "");
    machine.qemu_args.push("-S".into());
    machine
}

fn run(machine: &Machine) -> Report {
    machine.run(Console::Capture).unwrap()
}

/// Copies a program. Not by ourselves: while another test starts a process, that process has our
/// descriptor for writing too, and a program that is open for writing cannot be run.
fn install(from: &Path, to: &Path) {
    let mut command = Command::new("install");
    let status = command.args(["-m", "755"]).arg(from).arg(to).status();
    assert!(status.unwrap().success(), "cannot copy {}", from.display());
}

/// An executable shell script.
fn script(dir: &Path, text: &str) -> PathBuf {
    let (draft, path) = (dir.join("draft"), dir.join("server"));
    fs::write(&draft, format!("#!/bin/sh\n{text}")).unwrap();
    install(&draft, &path);
    path
}

#[test]
fn a_guest_that_powers_off_succeeds_and_its_console_is_kept() {
    for board in [Board::X86_64Q35, Board::Aarch64Virt] {
        let report = run(&linux(board, ""));
        assert_eq!(report.outcome, Outcome::PowerOff, "{}", report.text());
        assert_eq!(report.outcome.exit_code(), 0);
        let greeting = demo::GREETING.trim();
        assert!(report.text().contains(greeting), "{}", report.text());
    }
}

#[test]
fn a_guest_that_resets_fails() {
    for board in [Board::X86_64Microvm, Board::Aarch64VirtPci] {
        let report = run(&linux(board, "demo.tag=nosuch"));
        assert_eq!(report.outcome, Outcome::Reset, "{}", report.text());
        assert_ne!(report.outcome.exit_code(), 0);
        let error = "demo: error: cannot mount the share nosuch";
        assert!(report.text().contains(error), "{}", report.text());
    }
}

#[test]
fn a_machine_that_goes_on_too_long_is_ended() {
    let mut machine = paused();
    machine.time_limit = Some(Duration::from_secs(2));
    let report = run(&machine);
    assert_eq!(report.outcome, Outcome::TimedOut);
    assert_eq!(report.outcome.exit_code(), 124);
    assert!(report.duration < Duration::from_secs(20));
}

#[test]
fn what_qemu_complains_of_is_passed_on() {
    let mut machine = paused();
    machine.qemu_args.push("-nosuchoption".into());
    let outcome = run(&machine).outcome;
    assert!(
        matches!(outcome, Outcome::QemuFailed { .. }) && outcome.exit_code() != 0,
        "{outcome:?}"
    );
    assert!(outcome.to_string().contains("-nosuchoption"), "{outcome}");
}

#[test]
fn what_a_server_says_when_it_cannot_start_is_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = paused();
    machine.server = Some(script(
        dir.path(),
        "case $1 in --help) echo --shared-dir; exit ;; esac\necho out of order >&2\nexit 3\n",
    ));
    let outcome = run(&machine).outcome;
    assert!(
        matches!(outcome, Outcome::ServerFailed { .. }),
        "{outcome:?}"
    );
    assert!(outcome.to_string().contains("out of order"), "{outcome}");
}

#[test]
fn a_server_that_dies_under_a_running_machine_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = paused();
    machine.server = Some(script(
        dir.path(),
        &format!(
            "case $1 in --help) exec {C_SERVER} --help ;; esac\n\
             {C_SERVER} \"$@\" &\nsleep 2\nkill -9 $!\necho died >&2\nexit 9\n"
        ),
    ));
    let outcome = run(&machine).outcome;
    let text = outcome.to_string();
    assert!(
        matches!(outcome, Outcome::ServerFailed { .. }),
        "{outcome:?}"
    );
    assert!(text.contains("died") && text.contains('9'), "{text}");
}

#[test]
fn a_program_that_is_no_server_is_refused_by_name() {
    let mut machine = paused();
    machine.server = Some("/bin/true".into());
    let error = format!("{:#}", machine.run(Console::Capture).unwrap_err());
    assert!(
        error.contains("/bin/true is no virtiofsd"),
        "unexpected: {error}"
    );
}

/// The program itself, with a directory that all its files and sockets, and the command lines of
/// all its children, are in.
struct Tool {
    dir: TempDir,
}

impl Tool {
    /// All that a run needs is copied, so that an ordinary user can reach it.
    fn new(servers: &[&Path]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let share = demo_share(Arch::X86_64);
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
        Self { dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// `bootshare-host boot` of the copied share, after `wrapper`.
    fn command(&self, wrapper: &[&str], server: &str) -> Command {
        let mut words: Vec<String> = wrapper.iter().map(|&word| word.to_owned()).collect();
        words.extend([self.path("tool"), "boot".into(), self.path("share")]);
        words.extend(["--board", "x86_64-q35", "--timeout", "120", "--server"].map(String::from));
        words.extend([server.to_owned(), "--firmware".into()]);
        words.push(self.path("share/vmlinuz"));
        words.push("--append=console=ttyS0 panic=-1 quiet tsc_early_khz=2000000".into());
        words.push("--qemu-arg=-initrd".into());
        words.push(format!("--qemu-arg={}", self.path("share/initrd.img")));
        let (program, args) = words.split_first().unwrap();
        let mut command = Command::new(program);
        command
            .args(args)
            .env("TMPDIR", self.path("tmp"))
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Processes with our directory on their command line.
    fn processes(&self) -> Vec<String> {
        let dir = self.dir.path().display().to_string();
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
            .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
            .filter(|line| line.contains(&dir))
            .collect()
    }

    fn files(&self) -> usize {
        fs::read_dir(self.dir.path().join("tmp")).unwrap().count()
    }

    /// Waits until QEMU and the server run, and the sockets have served.
    fn wait_until_running(&self, tool: &mut Child) {
        let deadline = Instant::now() + LIMIT;
        while self.processes().len() < 3 || self.files() > 0 {
            assert_eq!(tool.try_wait().unwrap(), None, "the tool ended early");
            assert!(Instant::now() < deadline, "{:?}", self.processes());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn assert_nothing_is_left(&self) {
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

/// Starts the tool, sends it `signal` while its machine is paused, and returns its exit status.
fn status_after(signal: &str, server: &str) -> Option<i32> {
    let tool = Tool::new(&[]);
    let mut command = tool.command(&[], server);
    let mut child = command.arg("--qemu-arg=-S").spawn().unwrap();
    tool.wait_until_running(&mut child);
    let kill = format!("kill -{signal} {}", child.id());
    let sent = Command::new("sh").args(["-c", &kill]).status().unwrap();
    assert!(sent.success());
    let status = child.wait().unwrap();
    tool.assert_nothing_is_left();
    status.code()
}

#[test]
fn signals_leave_nothing_behind() {
    for signal in ["INT", "TERM", "HUP"] {
        assert_eq!(status_after(signal, C_SERVER), Some(130), "SIG{signal}");
    }
}

#[test]
fn sigkill_leaves_nothing_behind() {
    assert_eq!(status_after("KILL", C_SERVER), None);
    assert_eq!(
        status_after("KILL", &rust_server().display().to_string()),
        None
    );
}

#[test]
fn an_ordinary_user_boots_with_either_server() {
    // As root, become one; otherwise we are.
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
    for original in [Path::new(C_SERVER), &rust_server()] {
        let tool = Tool::new(&[original]);
        fs::set_permissions(
            tool.dir.path().join("tmp"),
            fs::Permissions::from_mode(0o777),
        )
        .unwrap();
        let output = tool
            .command(wrapper, &tool.path("server"))
            .output()
            .unwrap();
        let console = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{console}{errors}");
        assert!(console.contains(demo::GREETING.trim()), "{console}{errors}");
        tool.assert_nothing_is_left();
    }
}

/// A terminal: what its user sees, and what programs see as theirs.
fn terminal() -> (fs::File, fs::File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let name = ptsname(&user, Vec::new()).unwrap();
    let program = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    (user.into(), program)
}

#[test]
fn on_a_terminal_the_demo_gives_a_shell() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let tool = Tool::new(&[]);
    let (mut user, program) = terminal();
    let before = rustix::termios::tcgetattr(&program).unwrap();
    let mut command = tool.command(&[], C_SERVER);
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
            // A read would wait for ever: the terminal is open here as well.
            let mut polled = [PollFd::new(&*user, PollFlags::IN)];
            let limit = Timespec::try_from(LIMIT).unwrap();
            let ready = poll(&mut polled, Some(&limit)).unwrap();
            assert_ne!(ready, 0, "no {text:?} in {seen}");
            let count = user.read(&mut buffer).unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        seen.clear();
    };
    wait_for(&mut user, "/share # ");
    // Ctrl-C goes to the guest: it ends the command, not the run. Once the inner shell speaks, it
    // and what it starts own the terminal: a Ctrl-C cannot come too early for `sleep`.
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
