//! `bootshare-host boot`: from words of the command line to a machine, and from its end to an exit
//! status.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum, ValueHint, value_parser};

use bootshare_host::serve::{Cache, Fault, MAX_REQUEST_QUEUES, MAX_THREADS};
use bootshare_host::watch::{Pattern, Watch};
use bootshare_host::{Accel, Board, Console, Machine, Outcome, Report, Share, demo};

use super::firmware::Image;
use super::{error_line, parsed, print, say};

const EXAMPLES: &str = "\
Examples:
  Boot a directory; Ctrl-A x ends QEMU
    bootshare-host boot /srv/guest
  A new kernel over a distribution's tree, without a copy
    bootshare-host boot build/new-kernel /srv/debian
  A boot test: 0 when the login prompt comes, 1 when a panic does, 124 after two minutes
    bootshare-host boot dir --timeout 120 --expect 'login:' --fail 'Kernel panic'
  List a directory as the firmware sees it
    bootshare-host boot dir --append 'bootshare.cmd=\"ls -l /boot\"'";

/// Boot a directory
///
/// Exit status: 0 when the guest powered off, the firmware reported success or --expect was shown;
/// 1 to 63 a failure that the firmware reported; 1 when --fail was shown, the guest ended
/// without showing --expect, or told QEMU of a panic; 120 the guest reset; 121 QEMU failed; 122 the share's server failed;
/// 123 nothing could be started; 124 the time limit passed; 130 interrupted.
#[derive(Args)]
#[command(after_help = EXAMPLES, args_override_self = true)]
pub(super) struct Boot {
    /// The directory to boot; with more than one, earlier ones cover later ones
    #[arg(value_name = "DIR", required_unless_present = "shares", value_hint = ValueHint::DirPath)]
    dirs: Vec<PathBuf>,
    /// One more share, with a tag of its own; repeatable. A colon in a name is written \:
    #[arg(long = "share", value_name = "TAG=DIR[:DIR...]")]
    shares: Vec<OsString>,
    /// The board [default: x86_64-microvm, or aarch64-virt on an aarch64 machine]
    #[arg(long)]
    board: Option<Board>,
    /// Boot only the entries with this id; a glob, e.g. 'debian-*'
    #[arg(long, value_name = "NAME")]
    entry: Option<String>,
    /// The firmware's options, e.g. bootshare.deadline=5; words after -- go to the kernel
    #[arg(
        long,
        value_name = "WORDS",
        default_value = "",
        allow_hyphen_values = true
    )]
    append: String,
    /// What the firmware reports
    #[arg(long, value_name = "LEVEL")]
    log: Option<Level>,
    /// Guest memory in MiB
    #[arg(long, default_value_t = 512, value_name = "MIB", value_parser = value_parser!(u32).range(1..))]
    memory: u32,
    /// Number of processors
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    smp: u32,
    /// The directory of QEMU's programs [default: those in PATH]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    qemu: Option<PathBuf>,
    /// What runs the guest
    #[arg(long, default_value = "tcg")]
    accel: Accel,
    /// Start aarch64 at EL2
    #[arg(long)]
    el2: bool,
    /// One more argument for QEMU; repeatable
    #[arg(long = "qemu-arg", value_name = "ARG", allow_hyphen_values = true)]
    qemu_args: Vec<OsString>,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Succeed as soon as the console shows this; ^ and $ match at lines
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true,
        value_parser = parsed::<Pattern>)]
    expect: Option<Pattern>,
    /// Fail as soon as the console shows this
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true,
        value_parser = parsed::<Pattern>)]
    fail: Option<Pattern>,
    /// Serve by this virtiofsd [default: this program serves by itself]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::CommandName)]
    server: Option<PathBuf>,
    /// How many request queues each share has
    #[arg(long, default_value_t = 1, value_name = "N",
        value_parser = value_parser!(u32).range(1..=i64::from(MAX_REQUEST_QUEUES)))]
    request_queues: u32,
    /// How many requests the server answers at a time, beside one of each queue
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(0..=MAX_THREADS as i64))]
    thread_pool_size: Option<u32>,
    /// How long the guest may rely on what the server told: none, auto or always
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    cache: Cache,
    /// Let the guest see extended attributes: capabilities, access control lists
    #[arg(long)]
    xattr: bool,
    /// Let the server do wrong on purpose, e.g. delay=20ms,error=EIO@READ:5 (see serve --help)
    #[arg(long, value_name = "RULES", value_parser = parsed::<Fault>)]
    fault: Option<Fault>,
    /// Record all requests and replies, for the command trace
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    trace: Option<PathBuf>,
    /// The firmware image [default: the board's, carried by this program or in target/firmware]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    firmware: Option<PathBuf>,
    /// Leave virtio-mmio in QEMU's default, legacy layout (which the firmware refuses)
    #[arg(long, hide = true)]
    legacy_mmio: bool,
    /// DIR is the demo share: ask its init for a shell when standard input is a terminal
    #[arg(long, hide = true)]
    demo: bool,
    /// Print the commands instead of running them
    ///
    /// QEMU's own exit status differs from ours: a firmware's success is 33 on x86_64 and 32 on
    /// aarch64, where it is 0 with KVM. With --trace, each share but the first has a file with a number behind its name.
    #[arg(long)]
    dry_run: bool,
}

/// A log level of the firmware.
#[derive(Clone, Copy, ValueEnum)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Boot {
    pub(super) fn run(mut self: Box<Self>) -> Result<u8> {
        let board = self.board.unwrap_or_else(Board::of_this_machine);
        let image = Image::find(self.firmware.take(), board)?;
        let dry_run = self.dry_run;
        let machine = self.machine(board, &image)?;
        if dry_run {
            print(image.dry_run(&machine)?.as_bytes())?;
            return Ok(0);
        }
        let watched = machine.watch.expect.is_some() || machine.watch.fail.is_some();
        let report = machine.run(Console::Terminal)?;
        Ok(tell(&report, watched))
    }

    fn machine(self, board: Board, image: &Image) -> Result<Machine> {
        let mut machine = Machine::new(board, &image.path);
        machine.append = self.words()?;
        machine.qemu = self.qemu;
        machine.shares = shares(self.dirs, self.shares)?;
        machine.memory_mib = self.memory;
        machine.smp = self.smp;
        machine.accel = self.accel;
        machine.el2 = self.el2;
        machine.qemu_args = self.qemu_args;
        machine.time_limit = self.timeout.map(Duration::from_secs);
        machine.watch = Watch {
            expect: self.expect,
            fail: self.fail,
        };
        machine.server = self.server;
        machine.request_queues = self.request_queues;
        machine.thread_pool_size = self.thread_pool_size;
        machine.cache = self.cache;
        machine.xattr = self.xattr;
        machine.fault = self.fault;
        machine.trace = self.trace;
        machine.legacy_mmio = self.legacy_mmio;
        Ok(machine)
    }

    /// The firmware's command line.
    fn words(&self) -> Result<String> {
        let mut words = Vec::new();
        if let Some(name) = &self.entry {
            ensure!(
                !name.contains('"'),
                "--entry {name}: a double quote cannot be passed on"
            );
            words.push(match name.contains(char::is_whitespace) {
                true => format!("bootshare.entry=\"{name}\""),
                false => format!("bootshare.entry={name}"),
            });
        }
        if let Some(level) = self.log.as_ref().and_then(ValueEnum::to_possible_value) {
            words.push(format!("bootshare.log={}", level.get_name()));
        }
        if !self.append.is_empty() {
            words.push(self.append.clone());
        }
        if self.demo && std::io::stdin().is_terminal() {
            // Words after `--` are the kernel's.
            if !self.append.split_whitespace().any(|word| word == "--") {
                words.push("--".to_owned());
            }
            words.push(demo::SHELL_WORD.to_owned());
        }
        Ok(words.join(" "))
    }
}

/// Tells how a machine ended, and returns our exit status.
fn tell(report: &Report, watched: bool) -> u8 {
    let code = report.outcome.exit_code();
    let mut text = String::new();
    if watched && report.is_cut {
        // What follows, a shell's prompt at least, begins a line of its own.
        text.push('\n');
    }
    if code != 0 {
        text.push_str(&error_line(&report.outcome));
    }
    if watched && code != 0 && report.outcome != Outcome::Interrupted {
        text.push_str(match report.last_lines.is_empty() {
            true => "bootshare-host: the console showed nothing\n",
            false => "bootshare-host: the console's last lines:\n",
        });
        for line in &report.last_lines {
            text.push_str(&format!("    {line}\n"));
        }
    }
    say(&text);
    code
}

/// The shares in device order: the directories, then what `--share` adds.
fn shares(dirs: Vec<PathBuf>, more: Vec<OsString>) -> Result<Vec<Share>> {
    let mut shares = Vec::new();
    if !dirs.is_empty() {
        let tag = demo::TAG.to_owned();
        shares.push(Share { tag, dirs });
    }
    for word in more {
        let said = word.display();
        let share = tagged(&word)
            .with_context(|| format!("--share {said}: write TAG=DIR, or TAG=DIR:DIR"))?;
        shares.push(share);
    }
    Ok(shares)
}

/// The share that `TAG=DIR:DIR` stands for. A backslash takes a colon's meaning, or its own.
fn tagged(word: &OsStr) -> Result<Share> {
    let bytes = word.as_bytes();
    let at = bytes.iter().position(|&byte| byte == b'=');
    let (tag, dirs) = bytes.split_at(at.context("it has no =")?);
    let tag = std::str::from_utf8(tag).context("the tag is not UTF-8")?;
    let mut list = vec![Vec::new()];
    let mut bytes = dirs.iter().skip(1).copied();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b':' => {
                list.push(Vec::new());
                continue;
            }
            b'\\' => bytes.next().unwrap_or(b'\\'),
            byte => byte,
        };
        if let Some(dir) = list.last_mut() {
            dir.push(byte);
        }
    }
    if list.iter().any(Vec::is_empty) {
        bail!("a directory is missing");
    }
    Ok(Share {
        tag: tag.to_owned(),
        dirs: list
            .into_iter()
            .map(|dir| OsString::from_vec(dir).into())
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(word: &[u8]) -> Vec<PathBuf> {
        tagged(OsStr::from_bytes(word)).unwrap().dirs
    }

    #[test]
    fn a_share_has_a_tag_and_directories() {
        let share = tagged(OsStr::new("root=/srv/a=b, c")).unwrap();
        assert_eq!(share.tag, "root");
        assert_eq!(share.dirs, [PathBuf::from("/srv/a=b, c")]);
        assert_eq!(dirs(b"t=a:b:-c"), ["a", "b", "-c"].map(PathBuf::from));
        assert_eq!(dirs(br"t=a\:b\\:c"), [r"a:b\", "c"].map(PathBuf::from));
        assert_eq!(dirs(b"t=\xff")[0].as_os_str().as_bytes(), b"\xff");
        for word in ["", "tag", "tag=", "tag=a:", "tag=:a"] {
            assert!(tagged(OsStr::new(word)).is_err(), "{word}");
        }
    }
}
