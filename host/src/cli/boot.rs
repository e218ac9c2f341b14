//! `bootshare-host boot`: turns its options into a machine, and the machine's outcome into an exit
//! status.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{ArgMatches, Args, ValueEnum, ValueHint, value_parser};

use bootshare_host::explain::Explain;
use bootshare_host::output::SOON;
use bootshare_host::prepare::Cache as Kernels;
use bootshare_host::serve::{Cache, Fault, MAX_REQUEST_QUEUES, MAX_THREADS, Owner};
use bootshare_host::watch::{Expect, Pattern, Watch};
use bootshare_host::{Accel, Arch, Board, Console, Machine, Outcome, Report, Share, demo, kvm};

use super::firmware::Image;
use super::{error_line, last_of, note, parsed, print, say_within, watch_startup};

pub(super) const EXAMPLES: [(&str, &str); 6] = [
    (
        "Boot a directory; Ctrl-A x ends QEMU",
        "bootshare-host boot /srv/guest",
    ),
    (
        "A new kernel over a distribution's tree, without a copy",
        "bootshare-host boot build/new-kernel /srv/debian",
    ),
    (
        "A boot test: status 0 at the login prompt, 1 after a panic, 124 after two minutes",
        "bootshare-host boot dir --timeout 2m --expect 'login: $' --fail 'Kernel panic'",
    ),
    (
        "Log in, run a command, and check its output",
        "bootshare-host boot dir -t 2m -e 'login: $' --send root -e '# $' --send 'uname -r' -e '^6'",
    ),
    (
        "List a directory as the firmware sees it",
        "bootshare-host boot dir --append 'bootshare.cmd=\"ls -l /boot\"'",
    ),
    (
        "Wait for a debugger on port 1234, with a network and a disk",
        "bootshare-host boot dir --gdb --net user --disk disk.qcow2",
    ),
];

/// Boot a directory
///
/// The directory is only read; the guest cannot change it. Its tag is bootshare. If standard input and output are
/// a terminal, all keys are sent to the guest, including Ctrl-C; Ctrl-A x ends QEMU.
#[derive(Args)]
#[command(args_override_self = true)]
pub(super) struct Boot {
    /// The directory to boot; with more than one, earlier ones cover later ones
    #[arg(value_name = "DIR", required_unless_present = "shares", value_hint = ValueHint::DirPath)]
    dirs: Vec<PathBuf>,
    /// An additional share with its tag; repeatable. Write a colon in a name as \:
    #[arg(long = "share", value_name = "TAG=DIR[:DIR...]")]
    shares: Vec<OsString>,
    /// The board, also without its architecture, e.g. q35 [default: x86_64-microvm, or aarch64-virt on an aarch64 machine]
    #[arg(short, long)]
    board: Option<Board>,
    /// Boot only the entries with this id; a glob, e.g. 'debian-*'
    #[arg(long, value_name = "NAME")]
    entry: Option<String>,
    /// Words to append to the kernel's command line, e.g. 'console=ttyS0 quiet'; repeatable
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    cmdline: Vec<String>,
    /// Do not add words to the kernel's command line: no console= on x86_64, no root= for a directory that is a root file system
    #[arg(long)]
    as_is: bool,
    /// The firmware's options, e.g. bootshare.deadline=5; words after -- go to the kernel; repeatable
    #[arg(short, long, value_name = "WORDS", allow_hyphen_values = true)]
    append: Vec<String>,
    /// The firmware's log level
    #[arg(long, value_name = "LEVEL")]
    log: Option<Level>,
    /// Guest memory, in MiB or with a unit, e.g. 2G
    #[arg(short, long, default_value = "512", value_name = "SIZE", value_parser = memory,
        allow_negative_numbers = true)]
    memory: u32,
    #[command(flatten)]
    host: Host,
    /// Start an aarch64 machine at EL2
    #[arg(long)]
    el2: bool,
    /// Wait for a debugger on this TCP port of the host, by default 1234
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true,
        default_missing_value = "1234", value_parser = value_parser!(u16).range(1..))]
    gdb: Option<u16>,
    /// Add a network card: user means QEMU's user-mode network
    #[arg(long, value_name = "NET")]
    net: Option<Net>,
    /// Add a disk that the guest can write to, raw or qcow2; repeatable
    #[arg(long = "disk", value_name = "FILE", value_hint = ValueHint::FilePath)]
    disks: Vec<PathBuf>,
    /// An additional argument for QEMU; repeatable: --qemu-arg=-device --qemu-arg=virtio-rng-pci
    #[arg(long = "qemu-arg", value_name = "WORD", allow_hyphen_values = true)]
    qemu_args: Vec<OsString>,
    /// Give up after this time: in seconds, or with a unit, e.g. 90s, 2m, 1h
    #[arg(short, long, value_name = "TIME", value_parser = duration, allow_negative_numbers = true)]
    timeout: Option<Duration>,
    /// Succeed as soon as the console output matches; ^ and $ match at line ends, $ also after a prompt. Repeatable: each must match after the previous one
    #[arg(short, long, value_name = "REGEX", allow_hyphen_values = true,
        value_parser = parsed::<Expect>)]
    expect: Vec<Expect>,
    /// Type this text and Enter once the preceding --expect has matched; end it with \c to omit Enter. After the last --expect, the guest's own exit decides the result
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = parsed::<Keys>)]
    send: Vec<Keys>,
    /// Fail as soon as the console output matches; repeatable
    #[arg(short, long, value_name = "REGEX", allow_hyphen_values = true,
        value_parser = parsed::<Pattern>)]
    fail: Vec<Pattern>,
    /// Use this virtiofsd [default: the embedded server]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::CommandName)]
    server: Option<PathBuf>,
    /// Number of request queues of each share, 1 to 8
    #[arg(long, default_value_t = 1, value_name = "N",
        value_parser = value_parser!(u32).range(1..=i64::from(MAX_REQUEST_QUEUES)))]
    request_queues: u32,
    /// Number of threads that answer requests, in addition to one thread for each queue [default: 2 of the embedded server]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(0..=MAX_THREADS as i64))]
    thread_pool_size: Option<u32>,
    /// How long the guest may cache names, attributes and content: none, auto or always
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    cache: Cache,
    /// Let the guest see extended attributes: capabilities, access control lists
    #[arg(long)]
    xattr: bool,
    /// Who owns the caller's own files in the guest: root, or as-is for the caller
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    owner: Owner,
    /// Inject faults into the server, e.g. delay=20ms,error=EIO@READ:5 (see serve --help)
    #[arg(long, value_name = "RULES", value_parser = parsed::<Fault>)]
    fault: Option<Fault>,
    /// Record all requests and replies in this file, for the command trace
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    trace: Option<PathBuf>,
    /// The firmware image [default: the board's image embedded in this program or in target/firmware]
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
    /// QEMU's exit status differs from that of this program: on success of the firmware it is 33 on x86_64, 32 on
    /// aarch64, and 0 on aarch64 with KVM. With --trace, a number is appended to the file's name for each share after
    /// the first.
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print the accelerator and QEMU's command line
    #[arg(short, long)]
    verbose: bool,
    /// Print only errors and the server's warnings, each on one line
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
}

/// The options about the host that `boot` and `run` have in common.
#[derive(Args)]
pub(super) struct Host {
    /// Number of processors
    #[arg(short = 'c', long, visible_alias = "cpus", default_value_t = 1, value_name = "N",
        value_parser = value_parser!(u32).range(1..=1024))]
    pub smp: u32,
    /// QEMU's program, or the directory of its programs [default: searched in PATH]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub qemu: Option<PathBuf>,
    /// The accelerator: auto means KVM if that works for the board, else QEMU's translator
    #[arg(long, default_value = "auto")]
    pub accel: AccelChoice,
    /// Do not unpack kernels on the host; the guest does it, and chooses the kernel's address
    #[arg(long)]
    pub no_prepare: bool,
}

impl Host {
    /// Whether kernels are prepared, and the cache to keep them in. Only this program's own
    /// firmware is known to support them.
    pub(super) fn prepare(&self, is_ours: bool) -> Option<Option<Kernels>> {
        (is_ours && !self.no_prepare).then(Kernels::of_user)
    }
}

/// The accelerator of a guest.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum AccelChoice {
    /// KVM if it works for the board, else tcg.
    Auto,
    /// QEMU's translator; works everywhere.
    Tcg,
    /// Linux's KVM; needs /dev/kvm and a host of the board's architecture.
    Kvm,
}

impl AccelChoice {
    /// Sets the machine's accelerator. Returns its name, and the reason if it was chosen
    /// automatically.
    pub(super) fn set(self, machine: &mut Machine) -> String {
        let board = machine.board;
        let (accel, why) = match self {
            Self::Tcg => (Accel::Tcg, "tcg".to_owned()),
            Self::Kvm => (Accel::Kvm, "KVM".to_owned()),
            Self::Auto if board.arch() != Board::of_this_machine().arch() => {
                let reason = format!("tcg, since this machine is no {}", board.arch().name());
                (Accel::Tcg, reason)
            }
            Self::Auto => match kvm::check() {
                Ok(()) => (Accel::Kvm, "KVM".to_owned()),
                Err(error) => (Accel::Tcg, format!("tcg, since {error:#}")),
            },
        };
        machine.accel = accel;
        machine.fallback = (self == Self::Auto).then_some(note);
        why
    }
}

/// A network.
#[derive(Clone, Copy, ValueEnum)]
enum Net {
    /// QEMU's own: the guest reaches what the host does, and nobody reaches the guest.
    User,
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
    /// Assigns each --send to the --expect before it; `matches` has their order on the command
    /// line.
    pub(super) fn pair(&mut self, matches: &ArgMatches) -> Result<()> {
        let places = |id| matches.indices_of(id).into_iter().flatten();
        for (keys, place) in self.send.iter().zip(places("send")) {
            let before = places("expect").take_while(|at| *at < place).count();
            let expect = before
                .checked_sub(1)
                .and_then(|last| self.expect.get_mut(last));
            let expect =
                expect.context("--send has no --expect before it: say what to wait for")?;
            expect.answer.get_or_insert_default().extend(&keys.0);
        }
        Ok(())
    }

    pub(super) fn run(mut self: Box<Self>) -> Result<u8> {
        if !self.dry_run {
            watch_startup(self.timeout, Outcome::TimedOut.exit_code(), |_| ())?;
        }
        let board = self.board.unwrap_or_else(Board::of_this_machine);
        let accel = self.host.accel;
        let is_ours = self.firmware.is_none();
        let image = Image::find(self.firmware.take(), board)?;
        let (dry_run, verbose, quiet) = (self.dry_run, self.verbose, self.quiet);
        if is_ours
            && !quiet
            && let Some(words) = self.foreign_words()
        {
            note(&format!(
                "warning: --append '{words}': this is no option of the firmware, and the kernel \
                 does not get it: use --cmdline '{words}'"
            ));
        }
        let prepare = self.host.prepare(is_ours && !dry_run);
        let mut machine = self.machine(board, &image)?;
        let by = accel.set(&mut machine);
        if quiet {
            machine.fallback = machine.fallback.map(|_| (|_| ()) as fn(&str));
        }
        machine.prepare = prepare;
        if dry_run {
            if !quiet && (machine.watch.is_used() || machine.time_limit.is_some()) {
                note(
                    "warning: --timeout, --expect, --send and --fail are not in these commands, \
                     because this program itself carries them out",
                );
            }
            print(image.dry_run(&machine)?.as_bytes())?;
            return Ok(0);
        }
        if verbose {
            note(&format!("{} by {by}; firmware: {image}", board.name()));
            note(&format!(
                "QEMU's command, without its sockets:\n{}",
                machine.command()
            ));
        }
        let report = machine.run(Console::Terminal)?;
        Ok(tell(&machine, &report, quiet))
    }

    fn machine(self, board: Board, image: &Image) -> Result<Machine> {
        let mut machine = Machine::new(board, &image.path);
        machine.append = self.words(board)?;
        machine.qemu = self.host.qemu;
        machine.shares = shares(self.dirs, self.shares)?;
        machine.memory_mib = self.memory;
        machine.smp = self.host.smp;
        machine.el2 = self.el2;
        machine.gdb = self.gdb;
        machine.has_network = self.net.is_some();
        machine.disks = self.disks;
        machine.qemu_args = self.qemu_args;
        machine.time_limit = self.timeout;
        machine.watch = Watch {
            expect: self.expect,
            fail: self.fail,
        };
        machine.server = self.server;
        machine.request_queues = self.request_queues;
        machine.thread_pool_size = self.thread_pool_size;
        machine.cache = self.cache;
        machine.xattr = self.xattr;
        machine.owner = self.owner;
        machine.fault = self.fault;
        machine.trace = self.trace;
        machine.legacy_mmio = self.legacy_mmio;
        Ok(machine)
    }

    /// Words of --append that neither the firmware nor the kernel would receive: QEMU's users write
    /// the kernel's options there.
    fn foreign_words(&self) -> Option<String> {
        let (ours, _) = self.appended();
        let mut foreign = ours;
        foreign.retain(|word| !word.starts_with("bootshare."));
        (!foreign.is_empty()).then(|| foreign.join(" "))
    }

    /// The firmware's command line.
    fn words(&self, board: Board) -> Result<String> {
        let mut words = Vec::new();
        if !self.as_is && board.arch() == Arch::X86_64 {
            // On other boards Linux finds its console in the device tree.
            let serial = board.arch().serial();
            words.push(format!("bootshare.cmdline-default=console={serial}"));
        }
        if !self.as_is && self.dirs.iter().any(|dir| has_init(dir)) {
            let root = format!("root={} rootfstype=virtiofs", demo::TAG);
            words.push(format!("bootshare.cmdline-default=\"{root}\""));
        }
        if let Some(name) = &self.entry {
            ensure!(
                !name.contains('"'),
                "--entry {name}: a double quote cannot be passed on: use ? in its place"
            );
            words.push(match name.contains(char::is_whitespace) {
                true => format!("bootshare.entry=\"{name}\""),
                false => format!("bootshare.entry={name}"),
            });
        }
        if let Some(level) = self.log.as_ref().and_then(ValueEnum::to_possible_value) {
            words.push(format!("bootshare.log={}", level.get_name()));
        }
        let (ours, theirs) = self.appended();
        words.extend(ours.into_iter().map(str::to_owned));
        let shell = self.demo && std::io::stdin().is_terminal();
        let shell = shell.then_some(demo::SHELL_WORD);
        // Words after `--` are for the kernel.
        let cmdline = self.cmdline.iter().map(String::as_str);
        let kernels: Vec<_> = theirs.into_iter().chain(shell).chain(cmdline).collect();
        if !kernels.is_empty() {
            words.push("--".to_owned());
        }
        words.extend(kernels.into_iter().map(str::to_owned));
        Ok(words.join(" "))
    }

    /// The words of all --append for the firmware, and those for the kernel, after `--`. Quotation
    /// marks keep words together.
    fn appended(&self) -> (Vec<&str>, Vec<&str>) {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for append in &self.append {
            let (mut is_quoted, mut is_ours) = (false, true);
            let words = append.split(|c: char| {
                is_quoted ^= c == '"';
                c.is_whitespace() && !is_quoted
            });
            for word in words.filter(|word| !word.is_empty()) {
                match (word, is_ours) {
                    ("--", true) => is_ours = false,
                    (word, true) => ours.push(word),
                    (word, false) => theirs.push(word),
                }
            }
        }
        (ours, theirs)
    }
}

/// Whether Linux finds its first program in `dir` (`kernel_init` in Linux's `init/main.c`). A
/// symbolic link counts: its target may exist in the guest only.
fn has_init(dir: &Path) -> bool {
    ["sbin/init", "etc/init", "bin/init"]
        .iter()
        .any(|init| dir.join(init).symlink_metadata().is_ok())
}

/// The bytes that --send types.
#[derive(Clone)]
struct Keys(Vec<u8>);

impl FromStr for Keys {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut keys = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '\\' {
                keys.extend(c.encode_utf8(&mut [0; 4]).bytes());
                continue;
            }
            keys.push(match chars.next() {
                Some('c') if chars.as_str().is_empty() => return Ok(Self(keys)),
                Some('n') => b'\n',
                Some('r') => b'\r',
                Some('t') => b'\t',
                Some('e') => 0x1b,
                Some('\\') => b'\\',
                Some('x') => {
                    let digits: String = chars.by_ref().take(2).collect();
                    u8::from_str_radix(&digits, 16)
                        .ok()
                        .filter(|_| digits.len() == 2)
                        .context("\\x must be followed by two hexadecimal digits")?
                }
                _ => bail!("write \\\\ for a backslash; others are \\n \\r \\t \\e \\xNN, and \\c at the end"),
            });
        }
        keys.push(b'\r');
        Ok(Self(keys))
    }
}

/// Splits a number from its unit.
fn split_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len()))
}

/// Memory, in MiB.
pub(super) fn memory(text: &str) -> Result<u32, String> {
    let (number, unit) = split_unit(text);
    let shift = match unit {
        "" | "M" | "m" | "MB" | "MiB" => 0,
        "G" | "g" | "GB" | "GiB" => 10,
        "T" | "t" | "TB" | "TiB" => 20,
        _ => return Err(format!("{unit} is no unit of memory: use M, G or T")),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "write a whole number followed by M, G or T, e.g. 2G".to_owned())?;
    match number.checked_shl(shift) {
        Some(mib) if number > 0 && mib < u64::from(MIN_MIB) => Err(format!(
            "the firmware needs {MIN_MIB} MiB, and a Linux guest some 128"
        )),
        Some(mib @ 1..=MAX_MIB) if mib >> shift == number => Ok(mib as u32),
        _ => Err(format!("use {MIN_MIB}M to {}T", MAX_MIB >> 20)),
    }
}

/// The least that the firmware needs, and more than any machine has.
const MIN_MIB: u32 = 4;
const MAX_MIB: u64 = 64 << 20;

/// A time, in seconds if it has no unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let seconds = match unit {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{unit} is no unit of time: use ms, s, m or h")),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| "write a number followed by s, m or h, e.g. 90s".to_owned())?;
    let range = 0.001..=MAX_HOURS * 3600.0;
    Some(number * seconds)
        .filter(|seconds| range.contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("use 1ms to {MAX_HOURS}h, or leave it out for no limit"))
}

/// About eleven years.
const MAX_HOURS: f64 = 100_000.0;

/// Reports how a machine ended, and returns our exit status.
fn tell(machine: &Machine, report: &Report, quiet: bool) -> u8 {
    let text = end_of_run(machine, report, quiet);
    say_within(&text, Limit(report.ends_at).left());
    report.outcome.exit_code()
}

/// The end of the time limit, also for outputs and messages. Standard error may be the same pipe as
/// standard output, which nobody reads.
pub(super) struct Limit(pub(super) Option<Instant>);

impl Limit {
    /// How long the next output or message may take.
    pub(super) fn left(&self) -> Option<Duration> {
        let left = |at: Instant| at.saturating_duration_since(Instant::now());
        self.0.map(|at| left(at).max(SOON))
    }
}

/// The message about bytes of a text that were not read in time.
pub(super) fn not_taken(by: &str, bytes: u64, of: &str) -> String {
    error_line(format_args!(
        "{by} did not take {bytes} bytes of {of} in time: read it, or allow more with --timeout"
    ))
}

/// The messages about how a machine ended.
fn end_of_run(machine: &Machine, report: &Report, quiet: bool) -> String {
    let has_failed = report.outcome.exit_code() != 0;
    let watched = machine.watch.is_used();
    let mut text = String::new();
    if watched && report.is_cut {
        // Start a new line for what follows: our messages, or a shell's prompt.
        text.push('\n');
    }
    if report.unshown > 0 {
        text.push_str(&not_taken("standard output", report.unshown, "the console"));
    }
    for line in report.denied.iter().filter(|_| !quiet) {
        text.push_str(&format!("bootshare-host: warning: {line}\n"));
    }
    // A reader that closed standard output wants no messages either.
    if has_failed && report.outcome != Outcome::OutputClosed {
        text.push_str(&error_line(&report.outcome));
    }
    if !has_failed || report.outcome == Outcome::Interrupted || quiet {
        return text;
    }
    if let Some(hint) = report.hint(machine) {
        text.push_str(&format!("bootshare-host: {hint}\n"));
    }
    if !watched || (report.last_lines.is_empty() && report.last_requests.is_empty()) {
        return text;
    }
    text.push_str(&last_of(&report.last_lines, &report.last_requests));
    text.push_str(
        "bootshare-host: `--log debug` shows what the firmware does, `--trace FILE` what it and the \
         kernel ask the share for\n",
    );
    text
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
        let share = tagged(&word).explain(
            format_args!("--share {said}"),
            "write TAG=DIR, or TAG=DIR:DIR",
        )?;
        shares.push(share);
    }
    Ok(shares)
}

/// Parses a share `TAG=DIR:DIR`. A backslash makes a following colon or backslash literal.
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
    use clap::FromArgMatches;

    use super::*;

    /// The options of `bootshare-host boot ARGS`.
    fn boot(args: &[&str]) -> Result<Boot> {
        let words = ["boot"].iter().chain(args);
        let command = Boot::augment_args(clap::Command::new("boot"));
        let matches = command.try_get_matches_from(words)?;
        let mut boot = Boot::from_arg_matches(&matches)?;
        boot.pair(&matches)?;
        Ok(boot)
    }

    #[test]
    fn each_text_is_sent_after_the_pattern_before_it() {
        let words = "d -e one --send a --send b -e two -e three --send c";
        let words: Vec<_> = words.split(' ').collect();
        let expect = boot(&words).unwrap().expect;
        let answers = expect.into_iter().map(|it| it.answer);
        let sent = [Some(b"a\rb\r".to_vec()), None, Some(b"c\r".to_vec())];
        assert!(answers.eq(sent));
        for words in [&["d", "--send", "a"][..], &["d", "--send", "a", "-e", "x"]] {
            let error = boot(words).err().unwrap().to_string();
            assert!(error.contains("no --expect before it"), "{error}");
        }
    }

    #[test]
    fn options_become_words_for_the_firmware_and_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("etc")).unwrap();
        // A link whose target exists in the guest only.
        std::os::unix::fs::symlink("/lib/systemd", tree.join("etc/init")).unwrap();
        let (tree, empty) = (tree.to_str().unwrap(), dir.path().to_str().unwrap());
        let console = "bootshare.cmdline-default=console=ttyS0";
        let root = "bootshare.cmdline-default=\"root=bootshare rootfstype=virtiofs\"";
        let (x86, arm) = (Board::X86_64Q35, Board::Aarch64Virt);
        for (args, board, words) in [
            (&[empty][..], x86, console.to_owned()),
            (&[tree], x86, format!("{console} {root}")),
            (&[empty, tree], arm, root.to_owned()),
            (&[tree, "--as-is"], x86, String::new()),
            (&[empty], arm, String::new()),
            (
                &[empty, "--entry", "a*"],
                arm,
                "bootshare.entry=a*".to_owned(),
            ),
            (
                &[empty, "--entry", "a b"],
                arm,
                "bootshare.entry=\"a b\"".to_owned(),
            ),
            (
                &[empty, "--log=debug"],
                arm,
                "bootshare.log=debug".to_owned(),
            ),
            (&[empty, "-a", ""], arm, String::new()),
            (&[empty, "-a", "b -- c"], arm, "b -- c".to_owned()),
            (&[empty, "--cmdline", "c d"], arm, "-- c d".to_owned()),
            (&[empty, "-a", "b", "--cmdline=c"], arm, "b -- c".to_owned()),
            (
                &[empty, "-a", "b -- c", "--cmdline=d"],
                arm,
                "b -- c d".to_owned(),
            ),
            (
                &[empty, "-a", "b -- c", "-a=d", "--cmdline=e", "--cmdline=f"],
                arm,
                "b d -- c e f".to_owned(),
            ),
            (
                &[empty, "-a", "bootshare.cmd=\"ls -- /\"", "--cmdline=c"],
                arm,
                "bootshare.cmd=\"ls -- /\" -- c".to_owned(),
            ),
        ] {
            assert_eq!(boot(args).unwrap().words(board).unwrap(), words, "{args:?}");
        }
        let quoted = boot(&[empty, "--entry", "a\"b"]).unwrap();
        let error = quoted.words(arm).unwrap_err().to_string();
        assert!(error.contains("use ? in its place"), "{error}");
    }

    #[test]
    fn words_that_neither_the_firmware_nor_the_kernel_gets_are_found() {
        for (append, foreign) in [
            ("console=ttyS0", Some("console=ttyS0")),
            ("bootshare.log=info quiet  ro -- splash", Some("quiet ro")),
            ("bootshare.cmd=\"ls /; walk /\"", None),
            ("bootshare.cmd=\"ls /\" x=\"a b\" y", Some("x=\"a b\" y")),
            ("-- console=ttyS0", None),
            ("", None),
        ] {
            let words = boot(&["d", "--append", append]).unwrap().foreign_words();
            assert_eq!(words.as_deref(), foreign, "{append}");
        }
        assert_eq!(boot(&["d"]).unwrap().foreign_words(), None);
    }

    #[test]
    fn kernels_are_prepared_for_our_own_firmware_only() {
        let host = boot(&["d"]).unwrap().host;
        assert!(host.prepare(true).is_some());
        assert!(host.prepare(false).is_none());
        let host = boot(&["d", "--no-prepare"]).unwrap().host;
        assert!(host.prepare(true).is_none());
    }

    #[test]
    fn an_accelerator_is_used_as_it_was_asked_for() {
        let other = match Board::of_this_machine().arch() {
            Arch::X86_64 => Board::Aarch64Virt,
            Arch::Aarch64 => Board::X86_64Q35,
        };
        let foreign = format!("tcg, since this machine is no {}", other.arch().name());
        for (choice, board, accel, by, has_fallback) in [
            ("tcg", Board::of_this_machine(), Accel::Tcg, "tcg", false),
            ("kvm", Board::of_this_machine(), Accel::Kvm, "KVM", false),
            ("auto", other, Accel::Tcg, &*foreign, true),
        ] {
            let mut machine = Machine::new(board, "image");
            let host = boot(&["d", "--accel", choice]).unwrap().host;
            assert_eq!(host.accel.set(&mut machine), by);
            assert_eq!(machine.accel, accel);
            assert_eq!(machine.fallback.is_some(), has_fallback);
        }
        let mut machine = Machine::new(Board::of_this_machine(), "image");
        let by = boot(&["d"]).unwrap().host.accel.set(&mut machine);
        let has_kvm = kvm::check().is_ok();
        assert_eq!(machine.accel == Accel::Kvm, has_kvm);
        assert_eq!(by == "KVM", has_kvm);
        assert_eq!(by.starts_with("tcg, since "), !has_kvm);
    }

    #[test]
    fn the_end_of_a_run_is_reported_by_what_helps() {
        fn report(outcome: Outcome) -> Report {
            Report {
                outcome,
                console: Vec::new(),
                unshown: 0,
                denied: vec!["denied".to_owned()],
                last_requests: vec!["asked".to_owned()],
                last_lines: vec!["shown".to_owned()],
                is_start_last: false,
                is_cut: true,
                steps_left: 0,
                duration: Duration::ZERO,
                ends_at: None,
            }
        }
        let mut machine = Machine::new(Board::X86_64Q35, "image");
        let plain = |text: String| anstream::adapter::strip_str(&text).to_string();
        let warning = "bootshare-host: warning: denied\n";
        let error = "bootshare-host: error: the time limit passed: allow more with --timeout\n";
        let text = end_of_run(&machine, &report(Outcome::TimedOut), false);
        assert_eq!(plain(text), format!("{warning}{error}"));
        let text = end_of_run(&machine, &report(Outcome::TimedOut), true);
        assert_eq!(plain(text), error);
        let text = end_of_run(&machine, &report(Outcome::PowerOff), false);
        assert_eq!(plain(text), warning);
        let text = end_of_run(&machine, &report(Outcome::OutputClosed), true);
        assert_eq!(text, "");

        machine.watch.fail.push("panic".parse().unwrap());
        let lines = "bootshare-host: the console's last lines:\n    shown\n";
        let asked = "bootshare-host: asked\n";
        let more = "bootshare-host: `--log debug` shows what the firmware does, `--trace FILE` \
                    what it and the kernel ask the share for\n";
        let text = end_of_run(&machine, &report(Outcome::TimedOut), false);
        assert_eq!(
            plain(text),
            format!("\n{warning}{error}{lines}{asked}{more}")
        );
        let text = end_of_run(&machine, &report(Outcome::TimedOut), true);
        assert_eq!(plain(text), format!("\n{error}"));
        let text = end_of_run(&machine, &report(Outcome::Expected), false);
        assert_eq!(plain(text), format!("\n{warning}"));
        let text = end_of_run(&machine, &report(Outcome::Interrupted), false);
        let interrupted = "bootshare-host: error: interrupted\n";
        assert_eq!(plain(text), format!("\n{warning}{interrupted}"));

        let mut silent = report(Outcome::TimedOut);
        silent.last_lines.clear();
        silent.is_cut = false;
        let text = plain(end_of_run(&machine, &silent, false));
        assert!(text.starts_with(&format!(
            "{warning}{error}bootshare-host: the console showed nothing"
        )));
        assert!(
            text.ends_with(&format!("doctor` looks for what is missing\n{asked}{more}")),
            "{text}"
        );
        silent.last_requests.clear();
        let text = plain(end_of_run(&machine, &silent, false));
        assert!(text.ends_with("looks for what is missing\n"), "{text}");
        let mut unread = report(Outcome::TimedOut);
        unread.unshown = 7;
        let text = plain(end_of_run(&machine, &unread, true));
        let said = "\nbootshare-host: error: standard output did not take 7 bytes of the console";
        assert!(text.starts_with(said) && text.ends_with(error), "{text}");
    }

    #[test]
    fn options_reach_the_machine() {
        let words = "d --share t=e:f -m 2G -c 3 --el2 --gdb --net user --disk k --qemu-arg=-x -t 2m \
                     -f bad -e good --server s --request-queues 2 --thread-pool-size 4 \
                     --cache=always --xattr --owner root --fault drop=READ --trace u --qemu q \
                     --legacy-mmio";
        let words: Vec<_> = words.split_whitespace().collect();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image.elf");
        std::fs::write(&file, b"\x7fELF").unwrap();
        let board = Board::X86_64Q35;
        let image = Image::find(Some(file.clone()), board).unwrap();
        let machine = boot(&words).unwrap().machine(board, &image).unwrap();
        let shares: Vec<_> = machine.shares.iter().map(ToString::to_string).collect();
        assert_eq!(shares, ["bootshare (d)", "t (e, f)"]);
        assert_eq!((machine.board, machine.firmware), (board, file));
        assert_eq!(machine.append, "bootshare.cmdline-default=console=ttyS0");
        assert_eq!((machine.memory_mib, machine.smp), (2048, 3));
        assert_eq!(
            (machine.request_queues, machine.thread_pool_size),
            (2, Some(4))
        );
        assert_eq!((machine.gdb, machine.has_network), (Some(1234), true));
        assert!(machine.el2 && machine.xattr && machine.legacy_mmio);
        assert_eq!(
            (machine.disks, machine.qemu_args),
            (vec!["k".into()], vec!["-x".into()])
        );
        assert_eq!(machine.time_limit, Some(Duration::from_secs(120)));
        assert_eq!(
            (machine.watch.expect.len(), machine.watch.fail.len()),
            (1, 1)
        );
        assert_eq!((machine.cache, machine.owner), (Cache::Always, Owner::Root));
        assert_eq!(machine.fault.unwrap().to_string(), "drop=READ");
        let [server, trace, qemu] =
            [machine.server, machine.trace, machine.qemu].map(Option::unwrap);
        assert_eq!([server, trace, qemu], ["s", "u", "q"].map(PathBuf::from));
        // None of them is on by itself.
        let machine = boot(&["d"]).unwrap().machine(board, &image).unwrap();
        assert!(!machine.el2 && !machine.xattr && !machine.legacy_mmio && !machine.has_network);
        assert!(!machine.watch.is_used() && machine.shares.len() == 1);
        let error = boot(&["--share", "t"])
            .unwrap()
            .machine(board, &image)
            .err()
            .unwrap();
        assert_eq!(error.to_string().lines().count(), 1);
    }

    #[test]
    fn memory_and_times_have_units_and_ranges() {
        for (text, mib) in [
            ("4", 4),
            ("512", 512),
            ("512M", 512),
            ("2G", 2048),
            ("2GiB", 2048),
            ("1T", 1 << 20),
        ] {
            assert_eq!(memory(text), Ok(mib), "{text}");
        }
        for text in [
            "",
            "0",
            "1",
            "3M",
            "-1",
            "1.5G",
            "2K",
            "2GG",
            "G",
            "99T",
            "18446744073709551615T",
            "18014398509481985G",
        ] {
            assert!(memory(text).is_err(), "{text}");
        }
        for (text, millis) in [
            ("90", 90_000),
            ("1.5", 1500),
            ("90s", 90_000),
            ("2m", 120_000),
            ("2min", 120_000),
            ("1h", 3_600_000),
            ("250ms", 250),
            ("100000h", 360_000_000_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "0",
            "-1",
            "s",
            "2d",
            "inf",
            "nan",
            "1e30",
            "18446744073709551615",
            "0.1ms",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn keys_end_with_enter_unless_told_otherwise() {
        let keys = |text: &str| text.parse::<Keys>().map(|keys| keys.0);
        for (text, typed) in [
            ("root", &b"root\r"[..]),
            ("", b"\r"),
            (r"\x01x\c", b"\x01x"),
            (r"a\\c", b"a\\c\r"),
            (r"\e\n\t\r", b"\x1b\n\t\r\r"),
            ("\u{e9}", b"\xc3\xa9\r"),
        ] {
            assert_eq!(keys(text).unwrap(), typed, "{text}");
        }
        for text in [r"\", r"\q", r"\x1", r"\xg0", r"\cx"] {
            assert!(keys(text).is_err(), "{text}");
        }
    }

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
