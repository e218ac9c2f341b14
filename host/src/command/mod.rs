//! Runs a command in a machine whose root file system is a directory of the host: what
//! `bootshare-host run` does.
//!
//! The firmware boots a share of its own that is made for this run: the kernel, and an initial RAM
//! file system with our init. That mounts the tree, lays a file system in memory over it, starts the
//! command there, and passes its streams on over a virtio console. The tree is never written to.

mod channel;
mod initrd;
mod kept;
mod kernel;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::board::{Arch, Board};
use crate::console::{Console, RawMode};
use crate::modules::Modules;
use crate::qemu::{Machine, Share};
use crate::run::{Outcome, Report, socket_dir};
use crate::serve::Owner;
use channel::Event;
pub use kept::Kept;
pub use kernel::Kernel;

/// The tags of the share that the firmware boots, and of the tree.
const BOOT_TAG: &str = "bootshare-run";
const ROOT_TAG: &str = "bootshare-root";

/// What the init says on the console when it has nothing more to do: the machine need not power off.
const DONE: &str = "^bootshare-init: done$";

/// What a kernel says when it panics. It is told to reset the machine then: who only writes this to
/// the console, or to /dev/kmsg, does not.
const PANIC: &str = "Kernel panic - not syncing";

/// What it says behind that when it does not reset the machine.
const PANIC_END: &str = r"---\[ end Kernel panic - not syncing";

/// What our init says on the console when it has failed.
const INIT_ERROR: &str = "bootshare-init: error: ";

/// How long what is on its way may take once the machine has ended, and the machine once it has
/// nothing more to do.
const GRACE: Duration = Duration::from_secs(5);

/// The exit status when the firmware could not start the kernel.
pub const FIRMWARE_FAILED: u8 = 117;
/// The exit status when the kernel panicked.
pub const PANICKED: u8 = 118;
/// The exit status when our init could not make the root file system, or not start the command in it.
pub const NO_ROOT: u8 = 119;

/// What to run, and how.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// The directories that are the root file system; earlier ones cover later ones.
    pub trees: Vec<PathBuf>,
    /// The command and its arguments; none is a shell.
    pub command: Vec<OsString>,
    /// The tree's own init, in place of a command.
    pub own_init: Option<PathBuf>,
    /// `NAME=VALUE`, in addition to a login's environment.
    pub environment: Vec<OsString>,
    /// Who runs the command, by name or number; root unless told otherwise.
    pub user: Option<String>,
    /// Where it starts; `/` unless told otherwise.
    pub directory: Option<PathBuf>,
    /// Whose the files are seen to be.
    pub owner: Owner,
    /// Whether nothing can be written, not even for this run.
    pub read_only: bool,
    /// More shares, and where they are mounted.
    pub shares: Vec<(Share, String)>,
    /// Whether the command has our terminal as its own.
    pub terminal: bool,
    /// Words added to the kernel's command line.
    pub cmdline: String,
    /// Our init, for the machine's architecture.
    pub init: Vec<u8>,
}

/// How far a run came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The firmware ran, and started no kernel.
    Firmware,
    /// The kernel was started.
    Kernel,
    /// Our init ran.
    Init,
    /// The tree was mounted.
    Mounted,
    /// The command was started, or the tree's own init.
    Command,
}

impl Stage {
    /// Its name in messages for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Firmware => "firmware",
            Self::Kernel => "kernel",
            Self::Init => "init",
            Self::Mounted => "mounted",
            Self::Command => "command",
        }
    }
}

/// How far it came, as the end of a sentence.
impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Firmware => "before the firmware started the kernel",
            Self::Kernel => "after the kernel was started, before the first program ran",
            Self::Init => "before the root file system was mounted",
            Self::Mounted => "after the root file system was mounted, before the command started",
            Self::Command => "while the command ran",
        })
    }
}

/// How the command's run ended.
#[derive(Debug)]
pub enum How {
    /// The command ended with this status; 128 and a signal's number when that ended it.
    Ended(u8),
    /// The command could not be started: a status as shells have it, and why.
    Unstarted(u8, String),
    /// Our init failed.
    Failed(String),
    /// The machine ended by itself.
    Machine(Outcome),
}

/// What a run came to.
#[derive(Debug)]
pub struct End {
    /// How it ended.
    pub how: How,
    /// How far it came.
    pub stage: Stage,
    /// All that the guest wrote to its console, and its last lines.
    pub console: Vec<u8>,
    /// The last lines of the console, without escape sequences.
    pub last_lines: Vec<String>,
    /// For each share the first file that the host's permissions have kept from the command, and why.
    pub denied: Vec<String>,
    /// The end of the command's standard output, and of its standard error.
    pub output: [Kept; 2],
    /// Whether the tree's own init ran in place of a command.
    is_own_init: bool,
}

impl End {
    /// Our process's exit status.
    pub fn exit_code(&self) -> u8 {
        match &self.how {
            How::Ended(status) | How::Unstarted(status, _) => *status,
            How::Failed(_) => NO_ROOT,
            How::Machine(Outcome::FirmwareExit(_)) => FIRMWARE_FAILED,
            How::Machine(Outcome::FailureShown { .. } | Outcome::Panic) => PANICKED,
            How::Machine(Outcome::PowerOff) if self.is_own_init && self.is_started() => 0,
            How::Machine(Outcome::PowerOff | Outcome::Expected) => Outcome::Reset.exit_code(),
            How::Machine(outcome) => outcome.exit_code(),
        }
    }

    /// The firmware's first error.
    fn firmware_says(&self) -> &str {
        let mut lines = self.last_lines.iter();
        let error = lines.find_map(|line| line.strip_prefix("bootshare: error: "));
        error.unwrap_or("it says nothing")
    }

    /// Whether the command was started, or the tree's own init.
    pub fn is_started(&self) -> bool {
        self.stage == Stage::Command
    }
}

/// What went wrong, on one line.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = self.stage;
        match &self.how {
            How::Ended(status) => write!(f, "the command ended with status {status}"),
            How::Unstarted(_, why) | How::Failed(why) => f.write_str(why),
            How::Machine(Outcome::FailureShown { line, .. }) => {
                write!(f, "the kernel panicked {stage}: {line}")
            }
            How::Machine(Outcome::TimedOut) => {
                write!(
                    f,
                    "the time limit passed {stage}: allow more with --timeout"
                )
            }
            How::Machine(Outcome::FirmwareExit(_)) => {
                write!(
                    f,
                    "the firmware could not start the kernel: {}",
                    self.firmware_says()
                )
            }
            How::Machine(Outcome::Reset) => write!(f, "the machine was reset {stage}"),
            How::Machine(Outcome::PowerOff | Outcome::Expected) => {
                write!(f, "the machine was powered off {stage}")
            }
            How::Machine(outcome) => write!(f, "{outcome} ({stage})"),
        }
    }
}

impl Job {
    /// Runs it in `machine`, which needs no share, on `kernel`; its standard streams are ours.
    ///
    /// # Errors
    /// The machine could not be started.
    pub fn run(
        &self,
        machine: &Machine,
        kernel: &Kernel,
        modules: Option<&Modules>,
    ) -> Result<End> {
        machine.or_translated(
            |machine| self.attempt(machine.clone(), kernel, modules),
            |end| match &end.how {
                How::Machine(outcome) => (outcome, &end.last_lines),
                _ => (&Outcome::Expected, &end.last_lines),
            },
        )
    }

    /// Runs it once.
    fn attempt(
        &self,
        mut machine: Machine,
        kernel: &Kernel,
        modules: Option<&Modules>,
    ) -> Result<End> {
        let dir = socket_dir()?;
        let boot = dir.path().join("boot");
        initrd::make(&boot, self, kernel, modules, machine.board)?;
        machine.shares = vec![
            Share::new(BOOT_TAG, &boot),
            Share {
                tag: ROOT_TAG.to_owned(),
                dirs: self.trees.clone(),
            },
        ];
        machine
            .shares
            .extend(self.shares.iter().map(|(share, _)| share.clone()));
        machine.owner = self.owner;
        machine.append = format!("bootshare.tag={BOOT_TAG}");
        // The layer over the tree could not be used where something is mounted in it.
        machine.submounts = false;
        machine.watch.fail = vec![PANIC_END.parse()?];
        let console = match &self.own_init {
            Some(_) => Console::Terminal,
            None => {
                machine.watch.expect = vec![DONE.parse()?];
                Console::Capture
            }
        };
        let (events, told) = mpsc::channel();
        let control = channel::open(&mut machine, dir.path(), self.terminal, &events)?;
        let raw = self.terminal.then(RawMode::enter).transpose();
        let _raw = raw.context("cannot set the terminal to raw mode")?;
        thread::Builder::new()
            .name("machine".into())
            .spawn(move || {
                let report = machine.run(console);
                let _ = events.send(Event::Ended(report));
            })
            .context("cannot start a thread")?;
        let mut watch = Watch {
            is_own_init: self.own_init.is_some(),
            ..Watch::default()
        };
        let mut files = Some(dir);
        while let Some(event) = watch.next(&told) {
            watch.take(event)?;
            if watch.stage.is_some() {
                // The kernel is in the machine's memory: nothing reads its files any more.
                files = None;
            }
            if watch.has_all() && watch.bye.is_none() {
                control.tell("bye");
                watch.bye = Some(Instant::now());
            }
        }
        drop(files);
        Ok(watch.end())
    }

    /// The kernel's command line.
    fn words(&self, board: Board) -> String {
        let arch = board.arch();
        let mut words = format!("console={} panic=-1", arch.serial());
        if arch == Arch::X86_64 {
            // microvm has none of the hardware that Linux resets a PC with: reset by a triple fault.
            words.push_str(" reboot=t");
        }
        if !self.cmdline.is_empty() {
            words.push(' ');
            words.push_str(&self.cmdline);
        }
        words
    }
}

/// What a run has been told of so far.
#[derive(Default)]
struct Watch {
    stage: Option<Stage>,
    how: Option<How>,
    /// How many bytes of each output there are, once the command has ended; how many were written,
    /// and whether more can be.
    sent: [u64; 2],
    written: [u64; 2],
    output: [Kept; 2],
    closed: [bool; 2],
    connected: bool,
    silent: bool,
    bye: Option<Instant>,
    ended: Option<(Instant, Report)>,
    is_own_init: bool,
}

impl Watch {
    /// The next event, unless there is nothing more to wait for.
    fn next(&self, told: &mpsc::Receiver<Event>) -> Option<Event> {
        let is_quiet = !self.connected || (self.silent && self.closed == [true; 2]);
        if self.ended.is_some() && is_quiet {
            return None;
        }
        let since = self.ended.as_ref().map(|(at, _)| *at).or(self.bye);
        match since {
            None => told.recv().ok(),
            Some(since) => {
                let left = (since + GRACE).saturating_duration_since(Instant::now());
                // A machine that does not end is ended with this process.
                told.recv_timeout(left).ok()
            }
        }
    }

    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Connected => self.connected = true,
            Event::Line(line) => self.line(&line),
            Event::Silent => self.silent = true,
            Event::Written(index, bytes) => {
                self.written[index] += bytes.len() as u64;
                self.output[index].add(&bytes);
            }
            Event::Closed(index) => self.closed[index] = true,
            Event::Ended(report) => self.ended = Some((Instant::now(), report?)),
        }
        Ok(())
    }

    fn line(&mut self, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let mut words = rest.split(' ');
        match word {
            "stage" => {
                self.stage = match rest {
                    "init" => Some(Stage::Init),
                    "mounted" => Some(Stage::Mounted),
                    _ => Some(Stage::Command),
                };
            }
            "failed" => self.how = Some(How::Failed(rest.to_owned())),
            "unstarted" => {
                let (status, why) = rest.split_once(' ').unwrap_or(("127", rest));
                self.how = Some(How::Unstarted(
                    status.parse().unwrap_or(127),
                    why.to_owned(),
                ));
            }
            "ended" => {
                let mut number = || words.next().and_then(|word| word.parse().ok());
                let status = number().and_then(|status: u64| u8::try_from(status).ok());
                self.how = Some(How::Ended(status.unwrap_or(u8::MAX)));
                self.sent = [number().unwrap_or(0), number().unwrap_or(0)];
            }
            _ => {}
        }
    }

    /// Whether the guest has nothing that we wait for.
    fn has_all(&self) -> bool {
        let has = |index: usize| self.closed[index] || self.written[index] >= self.sent[index];
        self.how.is_some() && has(0) && has(1)
    }

    fn end(self) -> End {
        let (outcome, console, last_lines, denied) = match self.ended {
            Some((_, report)) => (
                report.outcome,
                report.console,
                report.last_lines,
                report.denied,
            ),
            None => (Outcome::PowerOff, Vec::new(), Vec::new(), Vec::new()),
        };
        let stage = self.stage.unwrap_or_else(|| {
            // The firmware's last line before it hands over (docs/firmware.md).
            let starts = |line: &[u8]| line.starts_with(b"bootshare: starting ");
            match console.split(|&byte| byte == b'\n').any(starts) {
                true => Stage::Kernel,
                false => Stage::Firmware,
            }
        });
        let mut said = last_lines.iter().rev();
        let failure = said.find_map(|line| Some(line.split_once(INIT_ERROR)?.1));
        let stage = match failure {
            // It ran, and had no port yet to tell so.
            Some(_) => stage.max(Stage::Init),
            None => stage,
        };
        let how = match (self.how, failure) {
            (Some(how), _) => how,
            (None, Some(why)) if outcome != Outcome::Interrupted => How::Failed(why.to_owned()),
            (None, _) => How::Machine(match outcome {
                // That it did not end as it should is known.
                Outcome::NotShown { end, .. } => *end,
                outcome => outcome,
            }),
        };
        let how = match (how, panic_of(&console, &last_lines)) {
            (How::Machine(Outcome::Reset), Some(line)) => How::Machine(Outcome::FailureShown {
                pattern: PANIC.to_owned(),
                line,
            }),
            (how, _) => how,
        };
        End {
            how,
            stage,
            console,
            last_lines,
            denied,
            output: self.output,
            is_own_init: self.is_own_init,
        }
    }
}

/// The last line that tells of a panic, of a console that was captured, else of its last lines.
fn panic_of(console: &[u8], last_lines: &[String]) -> Option<String> {
    let text = String::from_utf8_lossy(console);
    let mut lines = last_lines.iter().map(String::as_str).chain(text.lines());
    let line = lines.rfind(|line| line.contains(PANIC))?;
    Some(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a run comes to in which the guest said `lines`, and whose machine ended so.
    fn end(outcome: Outcome, console: &str, lines: &[&str]) -> End {
        let mut watch = Watch::default();
        for line in lines {
            watch.line(line);
        }
        watch.ended = Some((
            Instant::now(),
            Report {
                outcome,
                console: console.into(),
                last_lines: console.lines().map(str::to_owned).collect(),
                unshown: 0,
                denied: Vec::new(),
                is_start_last: false,
                is_cut: false,
                steps_left: 0,
                duration: Duration::ZERO,
            },
        ));
        watch.end()
    }

    #[test]
    fn how_far_a_run_came_is_told_whatever_ends_it() {
        let started = "bootshare: starting /kernel\n";
        let stages: [(&str, &[&str], &str); 5] = [
            (
                "bootshare: mounted\n",
                &[],
                "before the firmware started the kernel",
            ),
            (started, &[], "before the first program ran"),
            (
                started,
                &["stage init"],
                "before the root file system was mounted",
            ),
            (
                started,
                &["stage init", "stage mounted"],
                "before the command started",
            ),
            (
                started,
                &["stage init", "stage mounted", "stage command"],
                "while the command ran",
            ),
        ];
        let qemu = Outcome::QemuFailed {
            status: "signal: 9 (SIGKILL)".into(),
            stderr: String::new(),
        };
        let server = Outcome::ServerFailed {
            what: "the server of bootshare-root (/) failed".into(),
            stderr: String::new(),
        };
        for (console, lines, place) in stages {
            for (outcome, code, what) in [
                (qemu.clone(), 121, "QEMU failed (signal: 9 (SIGKILL))"),
                (
                    server.clone(),
                    122,
                    "the server of bootshare-root (/) failed",
                ),
                (Outcome::Reset, 120, "the machine was reset"),
                (Outcome::PowerOff, 120, "the machine was powered off"),
                (Outcome::TimedOut, 124, "the time limit passed"),
                (Outcome::Interrupted, 130, "interrupted"),
            ] {
                let end = end(outcome, console, lines);
                let line = end.to_string();
                assert!(line.starts_with(what) && line.contains(place), "{line}");
                assert_eq!((end.exit_code(), line.lines().count()), (code, 1), "{line}");
            }
            let console = format!("{console}[ 1.5] Kernel panic - not syncing: why\r\n");
            let end = end(Outcome::Reset, &console, lines);
            assert_eq!(end.exit_code(), 118);
            let line = end.to_string();
            assert!(
                line.contains(place) && line.ends_with("not syncing: why"),
                "{line}"
            );
        }
        let failed = end(
            Outcome::PowerOff,
            started,
            &["stage init", "failed no virtiofs"],
        );
        assert_eq!(
            (failed.exit_code(), &*failed.to_string()),
            (119, "no virtiofs")
        );
        // Where there are no ports yet the console has it.
        let console = format!("{started}bootshare-init: error: no ports\n");
        let failed = end(Outcome::PowerOff, &console, &[]);
        assert_eq!(
            (failed.exit_code(), &*failed.to_string()),
            (119, "no ports")
        );
        assert_eq!(failed.stage, Stage::Init);
        // What the command came to stands, whatever becomes of the machine.
        let ended = end(qemu, started, &["stage command", "ended 3 0 0"]);
        assert_eq!(ended.exit_code(), 3);
    }
}
