//! The outcome and the report of a run.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::qemu::{Accel, Machine};
use crate::watch::{Found, Pattern, Watch, Watcher};

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The firmware ended the run with this status; 0 is success.
    FirmwareExit(u8),
    /// The guest powered off.
    PowerOff,
    /// The guest reset: a reboot, or a panic that reboots.
    Reset,
    /// The firmware failed on a board where it cannot report a status (aarch64 with KVM), or the
    /// guest's kernel reported a panic to QEMU.
    Panic,
    /// The time limit passed.
    TimedOut,
    /// QEMU itself failed; its exit status and the end of its error output.
    QemuFailed {
        /// The exit status as `std` prints it.
        status: String,
        /// The last of its standard error.
        stderr: String,
    },
    /// A share's server ended or did not answer while the machine needed it.
    ServerFailed {
        /// The server, and how it ended.
        what: String,
        /// The last of its standard error.
        stderr: String,
    },
    /// SIGINT, SIGTERM, SIGHUP, or QEMU's own quit key.
    Interrupted,
    /// Our standard output was closed, and no pattern was to be searched.
    OutputClosed,
    /// The console showed what was [expected](crate::watch::Watch::expect).
    Expected,
    /// The console showed [a failure](crate::watch::Watch::fail).
    FailureShown {
        /// The pattern.
        pattern: String,
        /// The line of the match.
        line: String,
    },
    /// The guest ended, or the time limit passed, before the console showed everything that was
    /// expected.
    NotShown {
        /// The pattern.
        pattern: String,
        /// Its number, and the number of expected patterns.
        place: (usize, usize),
        /// How it ended.
        end: Box<Outcome>,
    },
}

impl Outcome {
    /// Our process's exit status (see [`EXIT_STATUSES`]): 0 for success; 1 to 63 from the firmware; 1 also
    /// for a pattern that decided the run or a panic that the guest reported; 120 and above otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::FirmwareExit(status) => *status,
            Self::PowerOff | Self::Expected => 0,
            Self::NotShown { end, .. } if **end == Self::TimedOut => 124,
            Self::Panic | Self::FailureShown { .. } | Self::NotShown { .. } => 1,
            Self::Reset => 120,
            Self::QemuFailed { .. } => 121,
            Self::ServerFailed { .. } => 122,
            Self::TimedOut => 124,
            Self::Interrupted => 130,
            Self::OutputClosed => 141,
        }
    }
}

impl Outcome {
    /// Whether a limit or a signal has ended the run: nothing is waited for any more.
    pub fn is_over(&self) -> bool {
        matches!(self.end(), Self::TimedOut | Self::Interrupted)
    }

    /// How the machine ended, regardless of patterns.
    fn end(&self) -> &Self {
        match self {
            Self::NotShown { end, .. } => end,
            end => end,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirmwareExit(status) => write!(f, "the firmware ended with status {status}"),
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str(
                "the guest reset instead of powering off: look above for a panic, or power it off",
            ),
            Self::Panic => f.write_str("the firmware failed, or the guest panicked: look above"),
            Self::TimedOut => f.write_str("the time limit passed: allow more with --timeout"),
            Self::QemuFailed { status, stderr } => {
                write!(f, "QEMU failed ({status})")?;
                said(f, stderr)
            }
            Self::ServerFailed { what, stderr } => {
                f.write_str(what)?;
                said(f, stderr)
            }
            Self::Interrupted => f.write_str("interrupted"),
            Self::Expected => f.write_str("the console showed what was expected"),
            Self::FailureShown { pattern, line } => {
                write!(f, "the console showed --fail '{pattern}': {line}")
            }
            Self::OutputClosed => f.write_str("standard output was closed"),
            Self::NotShown {
                pattern,
                place: (number, of),
                end,
            } => {
                write!(f, "the console never showed --expect '{pattern}'")?;
                if *of > 1 {
                    write!(f, ", {number} of {of}")?;
                }
                write!(f, ": {end}")
            }
        }
    }
}

/// The last error output, if there is any, on one line.
fn said(f: &mut fmt::Formatter<'_>, stderr: &str) -> fmt::Result {
    let lines = stderr
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    match lines.collect::<Vec<_>>()[..] {
        [] => Ok(()),
        ref lines => write!(f, ": {}", lines.join("; ")),
    }
}

/// The report of a finished run.
#[derive(Debug)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// Everything that the guest wrote to its console, if it was
    /// [captured](crate::Console::Capture).
    pub console: Vec<u8>,
    /// How many bytes of the console were not written to our standard output in time.
    pub unshown: u64,
    /// For each share a line about the first file that the guest could not read because of the
    /// host's permissions.
    pub denied: Vec<String>,
    /// For each share that the guest has used a line about the last requests that its server
    /// answered; servers that are programs of their own do not report them.
    pub last_requests: Vec<String>,
    /// The last lines of the console, without escape sequences.
    pub last_lines: Vec<String>,
    /// Whether the last of them is the firmware's message that it starts a kernel.
    pub is_start_last: bool,
    /// Whether the last of them is incomplete.
    pub is_cut: bool,
    /// How many steps of a test were not performed.
    pub steps_left: usize,
    /// From QEMU's start to its end.
    pub duration: Duration,
    /// The time limit; time in which this process was stopped does not count.
    pub ends_at: Option<Instant>,
}

/// Each exit status of a boot, and what it means.
pub const EXIT_STATUSES: [(&str, &str); 10] = [
    (
        "0",
        "the guest powered off, the firmware succeeded, or all of --expect was shown",
    ),
    (
        "1",
        "the firmware failed, --fail was shown, --expect was not, or the guest panicked",
    ),
    (
        "2 to 63",
        "other firmware or a payload ended with this status; Bootshare's own gives 0 or 1",
    ),
    ("120", "the guest reset: a reboot, or a panic that reboots"),
    ("121", "QEMU failed"),
    ("122", "the share's server failed, or kept QEMU waiting"),
    (
        "123",
        "nothing could be started: a wrong option, or something missing; or a full disk",
    ),
    ("124", "the time limit passed"),
    ("130", "a signal, or Ctrl-A x at the console"),
    (
        "141",
        "standard output was closed, and neither --expect nor --fail was given",
    ),
];

impl Report {
    /// A hint at what may be missing if the console shows nothing.
    pub fn hint(&self, machine: &Machine) -> Option<String> {
        let is_silent = self.last_lines.is_empty();
        let by_guest = matches!(self.outcome.end(), Outcome::Reset | Outcome::TimedOut);
        match &self.outcome {
            _ if by_guest && !machine.stays_paused() && self.is_start_last => Some(format!(
                "the kernel showed nothing: name its console with --cmdline console={}, or in the \
                 directory's own command line",
                machine.board.arch().serial()
            )),
            _ if by_guest && !machine.stays_paused() && is_silent => Some(
                "the console showed nothing, not even the firmware's first line: `bootshare-host \
                 doctor` looks for what is missing"
                    .to_owned(),
            ),
            Outcome::QemuFailed { .. } if machine.accel == Accel::Kvm && is_silent => Some(
                "KVM may not work here: use --accel tcg, or see `bootshare-host doctor`".to_owned(),
            ),
            outcome if outcome.exit_code() != 0 && machine.watch.is_used() && is_silent => {
                Some("the console showed nothing".to_owned())
            }
            _ => None,
        }
    }

    /// The console as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.console).into_owned()
    }
}

/// The outcome with regard to the patterns, once the whole console was read.
pub(super) fn judge(watch: &Watch, watcher: &mut Watcher, end: Outcome) -> Result<Outcome> {
    watcher.pause()?;
    let failure = |index: usize| watch.fail.get(index).map(Pattern::to_string);
    Ok(match (watcher.found(), end) {
        (_, Outcome::Interrupted) => Outcome::Interrupted,
        (Some(Found::Expected), _) => Outcome::Expected,
        (Some(Found::Failure(index)), _) => Outcome::FailureShown {
            pattern: failure(index).unwrap_or_default(),
            line: watcher.line(),
        },
        // Failures of QEMU and of servers take precedence.
        (None, end @ (Outcome::QemuFailed { .. } | Outcome::ServerFailed { .. })) => end,
        (None, end) => match watch.expect.get(watcher.shown()) {
            Some(expect) => Outcome::NotShown {
                pattern: expect.pattern.to_string(),
                place: (watcher.shown() + 1, watch.expect.len()),
                end: Box::new(end),
            },
            None => end,
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::Board;

    fn not_shown(end: Outcome) -> Outcome {
        Outcome::NotShown {
            pattern: "ready".to_owned(),
            place: (2, 3),
            end: Box::new(end),
        }
    }

    /// Each outcome with its exit status and its text.
    fn all() -> Vec<(Outcome, u8, &'static str)> {
        let failure = |stderr: &str| Outcome::QemuFailed {
            status: "exit status: 1".to_owned(),
            stderr: stderr.to_owned(),
        };
        let server = |stderr: &str| Outcome::ServerFailed {
            what: "the server failed".to_owned(),
            stderr: stderr.to_owned(),
        };
        let shown = Outcome::FailureShown {
            pattern: "panic".to_owned(),
            line: "a panic: no".to_owned(),
        };
        let only = Outcome::NotShown {
            pattern: "ready".to_owned(),
            place: (1, 1),
            end: Box::new(Outcome::PowerOff),
        };
        let console = "the console never showed --expect 'ready'";
        assert_eq!(
            only.to_string(),
            format!("{console}: the guest powered off")
        );
        vec![
            (
                Outcome::FirmwareExit(7),
                7,
                "the firmware ended with status 7",
            ),
            (Outcome::PowerOff, 0, "the guest powered off"),
            (
                Outcome::Reset,
                120,
                "look above for a panic, or power it off",
            ),
            (
                Outcome::Panic,
                1,
                "the firmware failed, or the guest panicked: look above",
            ),
            (
                Outcome::TimedOut,
                124,
                "the time limit passed: allow more with --timeout",
            ),
            (
                failure("bad luck\n"),
                121,
                "QEMU failed (exit status: 1): bad luck",
            ),
            (failure(" \n"), 121, "QEMU failed (exit status: 1)"),
            (server("bad luck\n"), 122, "the server failed: bad luck"),
            (server(""), 122, "the server failed"),
            (Outcome::Interrupted, 130, "interrupted"),
            (Outcome::OutputClosed, 141, "standard output was closed"),
            (Outcome::Expected, 0, "the console showed what was expected"),
            (shown, 1, "the console showed --fail 'panic': a panic: no"),
            (
                not_shown(Outcome::PowerOff),
                1,
                "'ready', 2 of 3: the guest powered off",
            ),
            (
                not_shown(Outcome::TimedOut),
                124,
                "2 of 3: the time limit passed: allow more with --timeout",
            ),
        ]
    }

    #[test]
    fn each_outcome_has_its_exit_status_and_its_text() {
        let mut statuses = BTreeSet::new();
        for (outcome, status, end) in all() {
            assert_eq!(outcome.exit_code(), status, "{outcome}");
            assert!(outcome.to_string().ends_with(end), "{outcome}");
            statuses.insert(status);
        }
        for (status, _) in EXIT_STATUSES {
            // No outcome has 123: nothing was started.
            let first = status.split(' ').next().unwrap().parse().unwrap();
            let is_known = statuses.contains(&first) || status == "2 to 63" || first == 123;
            assert!(is_known, "{status}");
        }
    }

    fn report(outcome: Outcome, lines: &[&str], is_start_last: bool) -> Report {
        Report {
            outcome,
            console: b"one\xff".to_vec(),
            unshown: 0,
            denied: Vec::new(),
            last_requests: Vec::new(),
            last_lines: lines.iter().map(|line| (*line).to_owned()).collect(),
            is_start_last,
            is_cut: false,
            steps_left: 0,
            duration: Duration::ZERO,
            ends_at: None,
        }
    }

    #[test]
    fn a_silent_machine_gets_a_hint() {
        let mut machine = Machine::new(Board::X86_64Q35, "image");
        let start = ["bootshare: starting /vmlinuz"];
        let hint = |machine: &Machine, report: Report| report.hint(machine).unwrap_or_default();
        for outcome in [Outcome::Reset, not_shown(Outcome::TimedOut)] {
            let started = hint(&machine, report(outcome.clone(), &start, true));
            assert!(started.contains("--cmdline console=ttyS0"), "{started}");
            let silent = hint(&machine, report(outcome.clone(), &[], false));
            assert!(
                silent.contains("not even the firmware's first line"),
                "{silent}"
            );
            assert_eq!(hint(&machine, report(outcome, &["text"], false)), "");
        }
        // Somebody else ended it.
        assert_eq!(hint(&machine, report(Outcome::PowerOff, &start, true)), "");
        assert_eq!(hint(&machine, report(Outcome::Panic, &[], false)), "");
        machine.watch.fail.push("panic".parse().unwrap());
        let silent = "the console showed nothing";
        assert_eq!(hint(&machine, report(Outcome::Panic, &[], false)), silent);
        assert_eq!(hint(&machine, report(Outcome::Panic, &["text"], false)), "");
        assert_eq!(hint(&machine, report(Outcome::Expected, &[], false)), "");
        // A debugger, or -S, has not started it yet.
        machine.qemu_args.push("-S".into());
        assert_eq!(hint(&machine, report(Outcome::TimedOut, &start, true)), "");
        assert_eq!(
            hint(&machine, report(Outcome::TimedOut, &[], false)),
            silent
        );
    }

    #[test]
    fn the_console_as_text_shows_bytes_that_are_no_text() {
        assert_eq!(report(Outcome::PowerOff, &[], false).text(), "one\u{fffd}");
    }

    #[test]
    fn the_patterns_decide_unless_qemu_or_a_server_failed() {
        let watch = Watch {
            expect: vec!["one".parse().unwrap(), "two$".parse().unwrap()],
            fail: vec!["bad".parse().unwrap()],
        };
        let judged = |console: &str, end: &Outcome| {
            let mut watcher = Watcher::new(&watch, std::iter::empty()).unwrap();
            watcher.feed(console.as_bytes()).unwrap();
            judge(&watch, &mut watcher, end.clone()).unwrap()
        };
        let failed = Outcome::FailureShown {
            pattern: "bad".to_owned(),
            line: "a bad end".to_owned(),
        };
        let missing = |place: usize, end: &Outcome| Outcome::NotShown {
            pattern: ["one", "two$"][place - 1].to_owned(),
            place: (place, 2),
            end: Box::new(end.clone()),
        };
        for (end, _, _) in all() {
            let is_failure = matches!(
                end,
                Outcome::QemuFailed { .. } | Outcome::ServerFailed { .. }
            );
            let (nothing, half) = match end {
                Outcome::Interrupted => (end.clone(), end.clone()),
                _ if is_failure => (end.clone(), end.clone()),
                _ => (missing(1, &end), missing(2, &end)),
            };
            assert_eq!(judged("", &end), nothing);
            assert_eq!(judged("one\n", &end), half);
            if end != Outcome::Interrupted {
                // The end of the console ends its line.
                assert_eq!(judged("one two", &end), Outcome::Expected);
                assert_eq!(judged("a bad end", &end), failed);
            }
        }
        let nothing = Watch::default();
        let mut watcher = Watcher::new(&nothing, std::iter::empty()).unwrap();
        let end = judge(&nothing, &mut watcher, Outcome::Reset).unwrap();
        assert_eq!(end, Outcome::Reset);
    }
}
