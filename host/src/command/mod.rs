//! Runs a command in a machine whose root file system is a directory of the host: what
//! `bootshare-host run` does.
//!
//! The firmware boots a temporary share of its own with the kernel and an initial RAM file system
//! that contains our init. The init mounts the tree with an overlay in memory, starts the command
//! there, and forwards its streams over a virtio console. The tree is never written to.

mod channel;
mod initrd;
mod kept;
mod kernel;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::board::{Arch, Board};
use crate::console::{Console, RawMode};
use crate::interrupt::{FORCED_GRACE, JobControl, has_come, interrupted};
use crate::modules::Modules;
use crate::qemu::{Machine, OwnTerminal, Share};
use crate::run::{Outcome, Report, socket_dir};
use crate::serve::Owner;
use channel::Event;
pub use kept::Kept;
pub use kernel::Kernel;

/// The tags of the share that the firmware boots and of the tree.
const BOOT_TAG: &str = "bootshare-run";
const ROOT_TAG: &str = "bootshare-root";

/// The init's last line on the console. After it the run need not wait for the machine to power
/// off.
const DONE: &str = "^bootshare-init: done$";

/// The text of a kernel panic. Only together with a reset of the machine (`panic=-1`) is it a
/// panic: a program may write the same text to the console or to /dev/kmsg.
const PANIC: &str = "Kernel panic - not syncing";

/// The text after a panic if the kernel does not reset the machine.
const PANIC_END: &str = r"---\[ end Kernel panic - not syncing";

/// How our init's error messages on the console begin.
const INIT_ERROR: &str = "bootshare-init: error: ";

/// The names of the command's outputs.
const STREAMS: [&str; 2] = ["standard output", "standard error"];

/// How long the machine and its servers may take to end after the init's last line. A server alone may
/// take ten seconds, for files of a file system that hangs.
const GRACE: Duration = Duration::from_secs(60);

/// How often a wait for the reader of the output looks for a signal.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The exit status when the firmware could not start the kernel.
pub const FIRMWARE_FAILED: u8 = 117;
/// The exit status when the kernel panicked.
pub const PANICKED: u8 = 118;
/// The exit status when our standard streams do not accept the command's output.
const NOT_WRITTEN: u8 = 123;
/// The exit status when our init could not set up the root file system.
pub const NO_ROOT: u8 = 119;

/// What to run, and its settings.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// The directories that are the root file system; earlier ones cover later ones.
    pub trees: Vec<PathBuf>,
    /// The command and its arguments; empty for a shell.
    pub command: Vec<OsString>,
    /// The tree's own init, instead of a command.
    pub own_init: Option<PathBuf>,
    /// Variables `NAME=VALUE`, in addition to a login's environment.
    pub environment: Vec<OsString>,
    /// The user that runs the command, by name or number; `None` is root.
    pub user: Option<String>,
    /// The command's working directory; `None` is `/`.
    pub directory: Option<PathBuf>,
    /// Which owner of the files the command sees.
    pub owner: Owner,
    /// Whether the root file system is read-only rather than an overlay in memory.
    pub read_only: bool,
    /// More shares and their mount points.
    pub shares: Vec<(Share, String)>,
    /// Whether the command gets a terminal that is connected to ours.
    pub terminal: bool,
    /// Words added to the kernel's command line.
    pub cmdline: String,
    /// Our init's program for the machine's architecture.
    pub init: Vec<u8>,
}

/// The stages of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The firmware ran but started no kernel.
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
    /// Its name in the JSON report.
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

/// The stage as the end of a sentence.
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
    /// The command ended with this status; 128 plus a signal's number if a signal ended it.
    Ended(u8),
    /// The command could not be started: the status that a shell would return, and the reason.
    Unstarted(u8, String),
    /// Our init failed.
    Failed(String),
    /// The machine ended before the command did, or before its output was taken.
    Machine(Outcome),
    /// Its output could not be written: the stream, and the reason.
    Unwritten(&'static str, io::Error),
}

/// The result of a run.
#[derive(Debug)]
pub struct End {
    /// How it ended.
    pub how: How,
    /// The last stage that it reached.
    pub stage: Stage,
    /// Everything that the guest wrote to its console; `None` if the machine had not ended a minute after
    /// its command.
    pub console: Option<Vec<u8>>,
    /// The last lines of the console, without escape sequences.
    pub last_lines: Vec<String>,
    /// For each share that the guest has used a line about the last requests that its server
    /// answered.
    pub last_requests: Vec<String>,
    /// For each share the first file that the command could not read because of the host's
    /// permissions, and the reason.
    pub denied: Vec<String>,
    /// The end of the command's standard output, and of its standard error.
    pub output: [Kept; 2],
    /// How many bytes of them our standard streams did not take in time.
    pub unshown: u64,
    /// The time limit, if the machine has ended.
    pub ends_at: Option<Instant>,
    /// Whether the tree's own init ran instead of a command.
    is_own_init: bool,
}

impl End {
    /// Our process's exit status.
    pub fn exit_code(&self) -> u8 {
        match &self.how {
            How::Ended(status) | How::Unstarted(status, _) => *status,
            How::Failed(_) => NO_ROOT,
            How::Unwritten(..) => NOT_WRITTEN,
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
        error.unwrap_or("it printed no reason")
    }

    /// Whether the command was started, or the tree's own init.
    pub fn is_started(&self) -> bool {
        self.stage == Stage::Command
    }
}

/// What failed, on one line.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = self.stage;
        match &self.how {
            How::Ended(status) => write!(f, "the command ended with status {status}"),
            How::Unstarted(_, why) | How::Failed(why) => f.write_str(why),
            How::Unwritten(name, why) => write!(
                f,
                "cannot write the command's {name}: {why}: use a file or a pipe that takes all of it"
            ),
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
    /// Runs the job under `kernel` in `machine`, whose own shares are not used. The command's standard
    /// streams are connected to ours.
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
                How::Machine(outcome) => (outcome, &end.last_lines, end.ends_at),
                _ => (&Outcome::Expected, &end.last_lines, end.ends_at),
            },
        )
    }

    /// Runs the job once.
    fn attempt(
        &self,
        mut machine: Machine,
        kernel: &Kernel,
        modules: Option<&Modules>,
    ) -> Result<End> {
        // From here on, a signal removes the directory before the process ends.
        interrupted().context("cannot watch for signals")?;
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
        // The overlay could not be used on submounts of the tree.
        machine.submounts = false;
        // Before the command begins, Ctrl-C and Ctrl-Z are keys for this process.
        let begun = Arc::new(AtomicBool::new(false));
        machine.own_terminal = match self.terminal {
            true => OwnTerminal::Raw(begun.clone()),
            false => OwnTerminal::Stops,
        };
        machine.watch.fail = vec![PANIC_END.parse()?];
        let console = match &self.own_init {
            Some(_) => Console::Terminal,
            None => {
                machine.watch.expect = vec![DONE.parse()?];
                Console::Capture
            }
        };
        let (events, told) = mpsc::channel();
        let control = channel::open(
            &mut machine,
            dir.path(),
            self.terminal.then_some(begun),
            &events,
        )?;
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
                // The kernel runs in memory: its files are no longer needed.
                files = None;
            }
            if watch.has_all() && watch.bye.is_none() {
                control.tell("bye");
                watch.bye = Some(Instant::now());
            }
        }
        drop(files);
        if watch.ended.is_none() {
            // The machine's thread still has it.
            RawMode::leave();
        }
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

/// The events of a run so far.
#[derive(Default)]
struct Watch {
    stage: Option<Stage>,
    how: Option<How>,
    /// For each output: its size, known once the command has ended; how much has arrived; how much
    /// was written; whether more can be written.
    sent: [u64; 2],
    received: [u64; 2],
    written: [u64; 2],
    output: [Kept; 2],
    closed: [bool; 2],
    /// For each output why it can no longer be written.
    unwritable: [Option<io::Error>; 2],
    connected: bool,
    silent: bool,
    bye: Option<Instant>,
    ended: Option<(Instant, Report)>,
    is_own_init: bool,
}

impl Watch {
    /// The next event; `None` if there is nothing to wait for.
    fn next(&self, told: &mpsc::Receiver<Event>) -> Option<Event> {
        let is_quiet = !self.connected || (self.silent && self.closed == [true; 2]);
        if self.ended.is_some() && is_quiet {
            return None;
        }
        let until = match (&self.ended, self.bye) {
            (Some((at, _)), _) if self.is_over() => *at + FORCED_GRACE,
            (Some((at, report)), _) => {
                return next_of_rest(told, *at + FORCED_GRACE, report.ends_at);
            }
            // A machine that does not end is killed when this process ends.
            (None, Some(bye)) => bye + GRACE,
            (None, None) => return told.recv().ok(),
        };
        let left = until.saturating_duration_since(Instant::now());
        told.recv_timeout(left).ok()
    }

    /// Whether a limit or a signal has ended the machine.
    fn is_over(&self) -> bool {
        let ended = self.ended.as_ref();
        ended.is_some_and(|(_, report)| report.outcome.is_over())
    }

    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Connected => self.connected = true,
            Event::Line(line) => self.line(&line),
            Event::Silent => self.silent = true,
            Event::Received(index, count) => self.received[index] += count as u64,
            Event::Written(index, bytes) => {
                self.written[index] += bytes.len() as u64;
                self.output[index].add(&bytes);
            }
            Event::Closed(index, failure) => {
                self.closed[index] = true;
                self.unwritable[index] = failure;
            }
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

    /// Whether nothing more is expected from the guest.
    fn has_all(&self) -> bool {
        let has = |index: usize| self.closed[index] || self.written[index] >= self.sent[index];
        self.how.is_some() && has(0) && has(1)
    }

    /// How many bytes of the command's output were not written.
    fn unshown(&self) -> u64 {
        let rest = |index: usize| match self.unwritable[index] {
            Some(_) => 0,
            None => {
                let size = self.sent[index].max(self.received[index]);
                size.saturating_sub(self.written[index])
            }
        };
        rest(0) + rest(1)
    }

    fn end(self) -> End {
        let unshown = self.unshown();
        let is_over = self.is_over();
        let has_console = self.ended.is_some();
        let of_console = self.ended.as_ref().map_or(0, |(_, report)| report.unshown);
        let ends_at = self.ended.as_ref().and_then(|(_, report)| report.ends_at);
        let (outcome, console, [last_lines, last_requests, denied]) = match self.ended {
            Some((_, report)) => (
                report.outcome,
                report.console,
                [report.last_lines, report.last_requests, report.denied],
            ),
            None => (Outcome::PowerOff, Vec::new(), Default::default()),
        };
        let stage = self.stage.unwrap_or_else(|| {
            // The firmware's last line before the hand-off (docs/firmware.md).
            let starts = |line: &[u8]| line.starts_with(b"bootshare: starting ");
            match console.split(|&byte| byte == b'\n').any(starts) {
                true => Stage::Kernel,
                false => Stage::Firmware,
            }
        });
        let mut said = last_lines.iter().rev();
        let failure = said.find_map(|line| Some(line.split_once(INIT_ERROR)?.1));
        let stage = match failure {
            // The init ran, but had no port yet to report it.
            Some(_) => stage.max(Stage::Init),
            None => stage,
        };
        // The status is not reported if a part of the output was not written.
        let how = self.how.filter(|_| unshown == 0);
        let how = match (how, failure) {
            (Some(how), _) => how,
            (None, Some(why)) if outcome != Outcome::Interrupted => How::Failed(why.to_owned()),
            (None, _) => How::Machine(match outcome {
                // The failure is known already.
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
        // After a limit or a signal an error is no cause: the terminal may be gone (SIGHUP).
        let unwritten = STREAMS.into_iter().zip(self.unwritable);
        let mut unwritten = unwritten.filter_map(|(name, why)| Some((name, why?)));
        // If the reader closes the pipe, that is no failure; the command has received SIGPIPE.
        let is_failure = |why: &io::Error| !is_over && why.kind() != io::ErrorKind::BrokenPipe;
        let how = match unwritten.find(|(_, why)| is_failure(why)) {
            Some((name, why)) => How::Unwritten(name, why),
            None => how,
        };
        End {
            how,
            stage,
            console: has_console.then_some(console),
            last_lines,
            last_requests,
            denied,
            output: self.output,
            unshown: unshown + of_console,
            ends_at,
            is_own_init: self.is_own_init,
        }
    }
}

/// The next event after the machine has ended by itself. A slow reader may still have to take the
/// output: `None` after a signal or the time limit `ends_at`, but not before `grace`.
fn next_of_rest(
    told: &mpsc::Receiver<Event>,
    grace: Instant,
    ends_at: Option<Instant>,
) -> Option<Event> {
    loop {
        match told.recv_timeout(LOOK_EVERY) {
            Ok(event) => return Some(event),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
        // An error of these could not be reported before the output; the wait goes on.
        if let Ok(job) = JobControl::get()
            && job.is_asked_to_stop()
        {
            let _ = job.stop();
        }
        let now = Instant::now();
        let is_late = ends_at.is_some_and(|at| at <= now) || has_come();
        if is_late && grace <= now {
            return None;
        }
    }
}

/// The last line about a panic in the captured console, or else in its last lines.
fn panic_of(console: &[u8], last_lines: &[String]) -> Option<String> {
    let text = String::from_utf8_lossy(console);
    let mut lines = last_lines.iter().map(String::as_str).chain(text.lines());
    let line = lines.rfind(|line| line.contains(PANIC))?;
    Some(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of a run in which the guest has sent `lines` and the machine ended with `outcome`.
    fn end(outcome: Outcome, console: &str, lines: &[&str]) -> End {
        let mut watch = Watch::default();
        for line in lines {
            watch.line(line);
        }
        watch.ended = Some((Instant::now(), report(outcome, console)));
        watch.end()
    }

    fn report(outcome: Outcome, console: &str) -> Report {
        Report {
            outcome,
            console: console.into(),
            last_lines: console.lines().map(str::to_owned).collect(),
            unshown: 0,
            denied: Vec::new(),
            last_requests: Vec::new(),
            is_start_last: false,
            is_cut: false,
            steps_left: 0,
            duration: Duration::ZERO,
            ends_at: None,
        }
    }

    #[test]
    fn an_output_that_fails_is_a_failure_unless_its_reader_or_the_run_is_over() {
        for (outcome, kind, code) in [
            (Outcome::PowerOff, io::ErrorKind::StorageFull, 123),
            (Outcome::PowerOff, io::ErrorKind::BrokenPipe, 3),
            (Outcome::Interrupted, io::ErrorKind::StorageFull, 3),
        ] {
            let mut watch = Watch::default();
            watch.line("ended 3 100 100");
            watch.written = [100, 0];
            watch.take(Event::Closed(1, Some(kind.into()))).unwrap();
            watch.ended = Some((Instant::now(), report(outcome, "")));
            assert_eq!(watch.end().exit_code(), code, "{kind}");
        }
        let mut watch = Watch::default();
        watch.line("ended 0 100 0");
        watch.written = [40, 0];
        watch.ended = Some((Instant::now(), report(Outcome::TimedOut, "")));
        let end = watch.end();
        assert_eq!((end.exit_code(), end.unshown), (124, 60));
    }

    #[test]
    fn the_stage_of_a_run_is_reported_for_every_end() {
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
        // If the ports do not exist yet, the init prints the error on the console.
        let console = format!("{started}bootshare-init: error: no ports\n");
        let failed = end(Outcome::PowerOff, &console, &[]);
        assert_eq!(
            (failed.exit_code(), &*failed.to_string()),
            (119, "no ports")
        );
        assert_eq!(failed.stage, Stage::Init);
        // After a signal it is no failure of the machine.
        let signalled = end(Outcome::Interrupted, &console, &[]);
        assert_eq!(signalled.exit_code(), 130);
        // The firmware's first error is the reason.
        let console = "bootshare: error: no entry\nbootshare: error: giving up\n";
        for (console, why) in [(console, "no entry"), ("", "it printed no reason")] {
            let line = end(Outcome::FirmwareExit(2), console, &[]).to_string();
            assert!(line.ends_with(why), "{line}");
        }
        // The tree's own init may power the machine off, a command may not.
        for (is_own_init, code) in [(true, 0), (false, 120)] {
            let mut end = end(Outcome::PowerOff, started, &["stage command"]);
            end.is_own_init = is_own_init;
            assert_eq!(end.exit_code(), code);
        }
        let unstarted = end(
            Outcome::Expected,
            started,
            &["unstarted 126 not executable"],
        );
        assert_eq!(
            (unstarted.exit_code(), &*unstarted.to_string()),
            (126, "not executable")
        );
        // The command's status is reported even if QEMU fails afterwards.
        let ended = end(qemu, started, &["stage command", "ended 3 0 0"]);
        assert_eq!(ended.exit_code(), 3);
    }
}
