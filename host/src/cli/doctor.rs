//! `bootshare-host doctor`: whether this machine can boot directories, and what to do if not.
//!
//! The checks try things rather than guess: they start guests and allocate memory.

use std::fmt::Display;
use std::fs;
use std::io::{IsTerminal, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::builder::styling::{AnsiColor, Style};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create, statvfs};
use rustix::process::{Resource, getrlimit};

use bootshare_host::explain::{Explain, Interrupted};
use bootshare_host::output::Stdout;
use bootshare_host::process::output_of;
use bootshare_host::qemu::program;
use bootshare_host::{
    Accel, Arch, Board, Console, Machine, Outcome, Share, debian, demo, kvm, run, syscall,
};

use super::firmware::Image;
use super::{ERROR, coloured, print_by};

const GOOD: Style = AnsiColor::Green.on_default();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();

/// The versions of QEMU that Bootshare is tested with, in order.
const TESTED: [(u32, u32); 3] = [(7, 2), (10, 0), (11, 1)];

/// How long the trial guest may take, by QEMU's translator and by KVM: it needs a fraction of a
/// second.
const TCG_LIMIT: Duration = Duration::from_secs(30);
const KVM_LIMIT: Duration = Duration::from_secs(5);

/// Memory of the trial guest, and the free memory that a guest of the default size needs.
const TRIAL_MIB: u32 = 128;
const DEFAULT_MIB: u64 = 512;

/// What the trial guest reads from its share.
const TRIAL_FILE: &str = "trial.txt";
const TRIAL_TEXT: &str = "read over virtio-fs";

/// The number of descriptors that the server should be allowed: it keeps one for each open file.
const FILES_WANTED: u64 = 1024;

/// Checks everything; returns 1 if something failed that every boot needs.
pub(super) fn run() -> Result<u8> {
    let mut report = Report::default();
    let own = Board::of_this_machine();
    for call in syscall::CALLS {
        let found = call.check().map(|()| "allowed");
        report.line(true, &format!("system call {}", call.name), found)?;
    }
    report.line(true, "memory", memory())?;
    report.line(false, "memory of the control group", memory_of_group())?;
    report.line(true, "directory for sockets", sockets())?;
    report.line(false, "open files", open_files())?;
    for arch in Arch::ALL {
        let needed = arch == own.arch();
        let board = if needed { own } else { first_board(arch) };
        let qemu = qemu(arch);
        let version = qemu.as_ref().ok().cloned();
        let what = format!("QEMU for {}", arch.name());
        let found = qemu.map(|version| format!("{version}, with all boards and devices"));
        report.line(needed, &what, found)?;
        if let Some(version) = &version {
            report.line(false, &format!("version of {what}"), is_tested(version))?;
        }
        let image = Image::find(None, board);
        let path = image.as_ref().ok().map(|image| image.path.clone());
        let told = image.as_ref().map(Image::to_string);
        report.line(
            needed,
            &format!("firmware for {}", arch.name()),
            told.map_err(|error| anyhow::anyhow!("{error:#}")),
        )?;
        let Some(path) = path.filter(|_| version.is_some()) else {
            continue;
        };
        let name = format!("a guest on {}", board.name());
        report.line(needed, &name, trial(board, &path, Accel::Tcg))?;
        if needed {
            report.line(false, "KVM", kvm(board, &path))?;
        }
    }
    report.line(false, "demo", demo_parts(own.arch()))?;
    report.line(false, "terminal", terminal())?;
    report.end()
}

/// The results, printed line by line.
#[derive(Default)]
struct Report {
    failed: usize,
    unwritten: Option<std::io::Error>,
}

impl Report {
    /// Prints a result.
    ///
    /// # Errors
    /// The check was interrupted by a signal.
    fn line(&mut self, needed: bool, what: &str, found: Result<impl Display>) -> Result<()> {
        let (style, word, text) = match found {
            Ok(text) => (GOOD, "ok", text.to_string()),
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) if needed => {
                self.failed += 1;
                (ERROR, "fail", format!("{error:#}"))
            }
            Err(error) => (WARNING, "warn", format!("{error:#}")),
        };
        let text = text.trim().replace('\n', "; ");
        let line = format!("{style}{word:<4}{style:#}  {what}: {text}\n");
        let colours = anstream::stdout().current_choice();
        let written = Stdout.write_all(&coloured(&line, colours));
        self.unwritten = self.unwritten.take().or(written.err());
        Ok(())
    }

    fn end(self) -> Result<u8> {
        print_by(|_| self.unwritten.map_or(Ok(()), |error| Err(error.into())))?;
        Ok(u8::from(self.failed > 0))
    }
}

fn first_board(arch: Arch) -> Board {
    let mut boards = Board::ALL.into_iter();
    boards
        .find(|board| board.arch() == arch)
        .unwrap_or(Board::of_this_machine())
}

/// Guest memory is a memfd, so the limits of /dev/shm and of locked memory do not apply.
fn memory() -> Result<String> {
    let fd = memfd_create("bootshare-doctor", MemfdFlags::CLOEXEC)
        .context("cannot make a memfd, which guest memory needs")?;
    let bytes = DEFAULT_MIB << 20;
    for (name, resource) in [("-v", Resource::As), ("-f", Resource::Fsize)] {
        if let Some(limit) = getrlimit(resource).current {
            ensure!(
                limit >= 2 * bytes,
                "a limit of {} MiB is too small for a guest's memory: `ulimit {name} unlimited`",
                limit >> 20
            );
        }
    }
    ftruncate(&fd, bytes).with_context(|| format!("cannot make a memfd of {DEFAULT_MIB} MiB"))?;
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free_mib = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|text| {
            text.trim()
                .trim_end_matches("kB")
                .trim()
                .parse::<u64>()
                .ok()
        })
        .map(|kib| kib >> 10);
    let Some(free_mib) = free_mib else {
        return Ok("how much is free is unknown without /proc/meminfo".into());
    };
    ensure!(
        free_mib >= DEFAULT_MIB,
        "{free_mib} MiB are free, and a guest needs {DEFAULT_MIB} MiB: end other programs, or use --memory"
    );
    Ok(format!("{free_mib} MiB are free to share with guests"))
}

/// A container's memory limit may be lower than the machine's free memory (cgroups(7), version 2).
fn memory_of_group() -> Result<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let dir = Path::new("/sys/fs/cgroup").join(path.unwrap_or_default());
    // Each parent group may have a lower limit.
    let least = dir
        .ancestors()
        .filter_map(|dir| fs::read_to_string(dir.join("memory.max")).ok())
        .filter_map(|text| text.trim().parse::<u64>().ok())
        .min();
    let Some(least) = least else {
        return Ok("without limit".into());
    };
    let mib = least >> 20;
    ensure!(
        mib > DEFAULT_MIB,
        "at most {mib} MiB, and a guest needs {DEFAULT_MIB} MiB: raise it (docker run --memory), or use --memory"
    );
    Ok(format!("up to {mib} MiB"))
}

/// A full disk or a network file system may refuse sockets.
fn sockets() -> Result<String> {
    let dir = run::socket_dir()?;
    let name = dir.path().parent().unwrap_or(Path::new("/")).display();
    let socket = run::socket(dir.path(), "qmp")?;
    UnixListener::bind(&socket)
        .with_context(|| format!("no socket can be made in {name}: point TMPDIR elsewhere"))?;
    let disk = statvfs(dir.path()).context("cannot read the free space")?;
    let free_mib = disk.f_bavail.saturating_mul(disk.f_frsize) >> 20;
    Ok(format!(
        "sockets work in {name}; {free_mib} MiB are free there"
    ))
}

fn open_files() -> Result<String> {
    let limit = getrlimit(Resource::Nofile).current;
    match limit {
        Some(limit) if limit < FILES_WANTED => bail!(
            "at most {limit}, and the server keeps one for each file that its guest has open: \
             `ulimit -n {FILES_WANTED}`"
        ),
        Some(limit) => Ok(format!("up to {limit}")),
        None => Ok("without limit".into()),
    }
}

fn qemu(arch: Arch) -> Result<String> {
    let path = program(None, arch);
    let program = Path::new(&path).file_name().unwrap_or(&path).display();
    let ask = |args: &[&str]| -> Result<String> {
        let (status, said) = output_of(Command::new(&path).args(args)).explain(
            format_args!("cannot run {program}"),
            format_args!(
                "install QEMU (Debian: apt-get install {})",
                arch.qemu_package()
            ),
        )?;
        ensure!(status.success(), "{program} fails: {}", said.trim());
        Ok(said)
    };
    let text = ask(&["--version"])?;
    let version = version(&text).with_context(|| format!("{program} prints no version: {text}"))?;
    let machines = ask(&["-machine", "help"])?;
    let devices = ask(&["-machine", "none", "-device", "help"])?;
    for board in Board::ALL.iter().filter(|board| board.arch() == arch) {
        let machine = board.machine();
        ensure!(
            machines
                .lines()
                .any(|line| line.split(' ').next() == Some(machine)),
            "{program} {version} was built without the machine {machine}: install a complete QEMU"
        );
    }
    for device in ["vhost-user-fs-device", "vhost-user-fs-pci"] {
        ensure!(
            devices.contains(&format!("\"{device}\"")),
            "{program} {version} was built without {device}: install a complete QEMU"
        );
    }
    Ok(version.to_owned())
}

/// Other versions may work as well: the trial guest shows it.
fn is_tested(version: &str) -> Result<String> {
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    let version = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    let tested = TESTED.map(|(major, minor)| format!("{major}.{minor}"));
    let tested = tested.join(", ");
    ensure!(
        version >= TESTED[0],
        "it is older than those that Bootshare is tested with, {tested}: if the guest below \
         fails, install a newer QEMU"
    );
    Ok(match TESTED.contains(&version) {
        true => "Bootshare is tested with it".into(),
        false => format!("Bootshare is tested with {tested}"),
    })
}

/// The version in "QEMU emulator version 7.2.22 (Debian ...)".
fn version(text: &str) -> Option<&str> {
    text.split("version ").nth(1)?.split_whitespace().next()
}

/// Boots the firmware, which reads a file from a share: everything that a boot needs except a
/// kernel.
fn trial(board: Board, firmware: &Path, accel: Accel) -> Result<String> {
    let share = tempfile::tempdir().explain("cannot make a directory to share", run::TMPDIR)?;
    fs::write(share.path().join(TRIAL_FILE), TRIAL_TEXT).context("cannot write to a share")?;
    let mut machine = Machine::new(board, firmware);
    machine.shares = vec![Share::new(demo::TAG, share.path())];
    machine.append = format!("bootshare.cmd=\"cat /{TRIAL_FILE}\"");
    machine.accel = accel;
    machine.memory_mib = TRIAL_MIB;
    machine.time_limit = Some(match accel {
        Accel::Tcg => TCG_LIMIT,
        Accel::Kvm => KVM_LIMIT,
    });
    let report = machine.run(Console::Capture)?;
    match report.outcome {
        Outcome::FirmwareExit(0) if report.text().contains(TRIAL_TEXT) => {}
        Outcome::Interrupted => return Err(Interrupted.into()),
        Outcome::TimedOut => bail!(
            "it did not end within {:?}",
            machine.time_limit.unwrap_or_default()
        ),
        outcome if report.last_lines.is_empty() => bail!("{outcome}"),
        outcome => bail!("{outcome}; it showed: {}", report.last_lines.join(" / ")),
    }
    let seconds = report.duration.as_secs_f32();
    Ok(format!(
        "read a file from a shared directory, in {seconds:.1} s"
    ))
}

/// Creates a virtual machine first, because QEMU's messages about failures of KVM name no remedy.
fn kvm(board: Board, firmware: &Path) -> Result<String> {
    kvm::check()
        .and_then(|()| trial(board, firmware, Accel::Kvm))
        .map_err(|error| match error.is::<Interrupted>() {
            true => error,
            false => anyhow!("{error:#}; guests run without it, with --accel tcg"),
        })
}

fn demo_parts(arch: Arch) -> Result<String> {
    let dir = super::cache("guest")?.join(arch.debian());
    if dir.is_dir() {
        return Ok(format!("its kernel and busybox are in {}", dir.display()));
    }
    debian::check_tools()?;
    Ok("its kernel and busybox will be downloaded by apt".into())
}

fn terminal() -> Result<String> {
    ensure!(
        std::io::stdin().is_terminal(),
        "standard input is not a terminal: its content is sent to the guest, and Ctrl-A x has no effect"
    );
    Ok("keys go to the guest; Ctrl-A x ends QEMU".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_in_qemus_output() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c)";
        assert_eq!(version(text), Some("7.2.22"));
        assert_eq!(version("qemu"), None);
    }

    #[test]
    fn only_a_qemu_older_than_the_tested_ones_gives_a_warning() {
        let tested = "Bootshare is tested with it";
        assert_eq!(is_tested("7.2.22").unwrap(), tested);
        assert_eq!(is_tested("10.0.13").unwrap(), tested);
        for newer in ["8.2.2", "12.0.50", "11.1-rc1"] {
            assert!(
                is_tested(newer).unwrap().contains("7.2, 10.0, 11.1"),
                "{newer}"
            );
        }
        for older in ["7.1.99", "6.2.0"] {
            let error = is_tested(older).unwrap_err().to_string();
            assert!(error.contains("install a newer QEMU"), "{error}");
        }
    }
}
