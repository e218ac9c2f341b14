//! `bootshare-host doctor`: whether this machine can boot directories, and what to do if not.
//!
//! What can be tried is tried, not guessed: guests are started, memory is allocated.

use std::fmt::Display;
use std::fs;
use std::io::{IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::builder::styling::{AnsiColor, Style};
use rustix::process::{Resource, getrlimit};

use bootshare_host::{Accel, Arch, Board, Console, Machine, Outcome, Share, demo, run};

use super::firmware::Image;
use super::{ERROR, print_by};

const GOOD: Style = AnsiColor::Green.on_default();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();

/// The oldest QEMU that Bootshare is tested with.
const TESTED: (u32, u32) = (7, 2);

/// How long the trial guest may take, by QEMU's translator and by KVM: it needs a fraction of a
/// second.
const TCG_LIMIT: Duration = Duration::from_secs(30);
const KVM_LIMIT: Duration = Duration::from_secs(5);

/// Memory of the trial guest, and what must be free for a guest of the default size.
const TRIAL_MIB: u32 = 128;
const DEFAULT_MIB: u64 = 512;

/// What the trial guest reads from its share.
const TRIAL_FILE: &str = "trial.txt";
const TRIAL_TEXT: &str = "read over virtio-fs";

/// Descriptors that the server wants to have: it keeps one for each file that its guest knows.
const FILES_WANTED: u64 = 1024;

/// Checks everything; 1 when something failed that every boot needs.
pub(super) fn run() -> Result<u8> {
    let mut report = Report::default();
    let own = Board::of_this_machine();
    report.line(true, "memory", memory());
    report.line(
        true,
        "directory for sockets",
        run::socket_dir().map(|dir| {
            format!(
                "{} can be written",
                dir.path().parent().unwrap_or(Path::new("/")).display()
            )
        }),
    );
    report.line(false, "open files", open_files());
    for arch in Arch::ALL {
        let needed = arch == own.arch();
        let board = if needed { own } else { first_board(arch) };
        let qemu = qemu(arch);
        let runs = qemu.is_ok();
        report.line(needed, &format!("QEMU for {}", arch.name()), qemu);
        let image = Image::find(None, board);
        let path = image.as_ref().ok().map(|image| image.path.clone());
        let told = image.as_ref().map(Image::to_string);
        report.line(
            needed,
            &format!("firmware for {}", arch.name()),
            told.map_err(|error| anyhow::anyhow!("{error:#}")),
        );
        let Some(path) = path.filter(|_| runs) else {
            continue;
        };
        let name = format!("a guest on {}", board.name());
        report.line(needed, &name, trial(board, &path, Accel::Tcg));
        if needed {
            report.line(false, "KVM", kvm(board, &path));
        }
    }
    report.line(false, "demo", demo_parts(own.arch()));
    report.line(false, "terminal", terminal());
    report.end()
}

/// What was found, printed line by line.
#[derive(Default)]
struct Report {
    failed: usize,
    unwritten: Option<std::io::Error>,
}

impl Report {
    fn line(&mut self, needed: bool, what: &str, found: Result<impl Display>) {
        let (style, word, text) = match found {
            Ok(text) => (GOOD, "ok", text.to_string()),
            Err(error) if needed => {
                self.failed += 1;
                (ERROR, "fail", format!("{error:#}"))
            }
            Err(error) => (WARNING, "warn", format!("{error:#}")),
        };
        let text = text.trim().replace('\n', "; ");
        let mut out = anstream::stdout().lock();
        let written =
            writeln!(out, "{style}{word:<4}{style:#}  {what}: {text}").and_then(|()| out.flush());
        self.unwritten = self.unwritten.take().or(written.err());
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

/// Guest memory is a memfd: neither /dev/shm nor locked memory counts.
fn memory() -> Result<String> {
    let fd: OwnedFd = rustix::fs::memfd_create("bootshare-doctor", rustix::fs::MemfdFlags::CLOEXEC)
        .context("this kernel makes no memfd, which guest memory has to be")?;
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
    rustix::fs::ftruncate(&fd, bytes)
        .with_context(|| format!("cannot make a memfd of {DEFAULT_MIB} MiB"))?;
    let info = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
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
        .context("/proc/meminfo has no MemAvailable")?
        >> 10;
    ensure!(
        free_mib >= DEFAULT_MIB,
        "{free_mib} MiB are free, and a guest has {DEFAULT_MIB} MiB: end something, or use --memory"
    );
    Ok(format!("{free_mib} MiB are free to share with guests"))
}

fn open_files() -> Result<String> {
    let limit = getrlimit(Resource::Nofile).current;
    match limit {
        Some(limit) if limit < FILES_WANTED => bail!(
            "at most {limit}, and the server keeps one for each file its guest knows: \
             `ulimit -n {FILES_WANTED}`"
        ),
        Some(limit) => Ok(format!("up to {limit}")),
        None => Ok("without limit".into()),
    }
}

/// Debian's package of QEMU for an architecture.
fn package(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "qemu-system-x86",
        Arch::Aarch64 => "qemu-system-arm",
    }
}

fn qemu(arch: Arch) -> Result<String> {
    let program = format!("qemu-system-{}", arch.name());
    let ask = |args: &[&str]| -> Result<String> {
        let output = Command::new(&program)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .with_context(|| {
                let package = package(arch);
                format!("cannot run {program}: install QEMU (Debian: apt-get install {package})")
            })?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} fails: {}", said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let text = ask(&["--version"])?;
    let version = version(&text).with_context(|| format!("{program} tells no version: {text}"))?;
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
    let numbers: Vec<u32> = version.split('.').map_while(|n| n.parse().ok()).collect();
    let (major, minor) = TESTED;
    ensure!(
        numbers.as_slice() >= &[major, minor][..],
        "{program} {version} is older than {major}.{minor}, with which Bootshare is tested"
    );
    Ok(format!("{version}, with all boards and devices"))
}

/// The version in "QEMU emulator version 7.2.22 (Debian ...)".
fn version(text: &str) -> Option<&str> {
    text.split("version ").nth(1)?.split_whitespace().next()
}

/// Boots the firmware, which reads a file from a share: all that a boot needs but a kernel.
fn trial(board: Board, firmware: &Path, accel: Accel) -> Result<String> {
    let share = tempfile::tempdir().context("cannot make a directory to share")?;
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

/// /dev/kvm may be there and still run no guest.
fn kvm(board: Board, firmware: &Path) -> Result<String> {
    let device = "/dev/kvm";
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
        .with_context(|| format!("cannot open {device}; guests run without it, by --accel tcg"))?;
    trial(board, firmware, Accel::Kvm)
        .with_context(|| format!("{device} is there, but runs no guest: leave --accel at tcg"))
}

fn demo_parts(arch: Arch) -> Result<String> {
    let dir = Path::new(demo::PARTS).join(arch.debian());
    if dir.is_dir() {
        return Ok(format!("its kernel and busybox are in {}", dir.display()));
    }
    for program in ["apt-get", "dpkg-deb", "xz"] {
        let found = Command::new(program)
            .arg("--version")
            .stdin(Stdio::null())
            .output();
        found.with_context(|| {
            format!(
                "cannot run {program}, which fetches Debian's kernel for the demo; boot a \
                 directory of your own"
            )
        })?;
    }
    Ok("its kernel and busybox will be downloaded by apt".into())
}

fn terminal() -> Result<String> {
    ensure!(
        std::io::stdin().is_terminal(),
        "standard input is none: a guest gets what is in it, and QEMU's keys have no effect"
    );
    Ok("keys go to the guest; Ctrl-A x ends QEMU".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_in_what_qemu_says() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c)";
        assert_eq!(version(text), Some("7.2.22"));
        assert_eq!(version("qemu"), None);
    }
}
