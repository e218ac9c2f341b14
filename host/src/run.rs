//! Runs a machine: servers, QEMU, console, time limit, and a clear account of how it ended.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::console::{Console, Keys, RawMode, Script, read_some};
use crate::interrupt::interrupted;
use crate::process::{Process, timespec};
use crate::qemu::{Machine, Wiring, firmware_status};
use crate::qmp::{self, Decoder, Message};
use crate::serve::{self, Trace};
use crate::server::Server;
use crate::watch::{Found, Pattern, Watcher};

/// How long QEMU may take to build the machine and connect to the servers.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How long QEMU may not answer us. It waits for a server without a limit of its own.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How often QEMU is asked something.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// How long QEMU may go on after a server has ended: at a normal end the two are a moment apart.
const SERVER_GRACE: Duration = Duration::from_secs(2);

/// How long a server may take to end after QEMU has.
const END_GRACE: Duration = Duration::from_secs(2);

/// How long a guest may go on after its console showed a failure: its next lines say more.
const FAILURE_GRACE: Duration = Duration::from_secs(1);

/// How much of a program's error output is kept.
const TAIL: usize = 4096;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The firmware ended the run with this status; 0 is success.
    FirmwareExit(u8),
    /// The guest powered off.
    PowerOff,
    /// The guest reset: a reboot, or a panic that reboots.
    Reset,
    /// The time limit passed.
    TimedOut,
    /// QEMU itself failed; its exit status and the end of its error output.
    QemuFailed {
        /// As `std` words it.
        status: String,
        /// The last of its standard error.
        stderr: String,
    },
    /// A share's server ended, or did not answer, while the machine needed it.
    ServerFailed {
        /// Which, and how it ended.
        what: String,
        /// The last of its standard error.
        stderr: String,
    },
    /// SIGINT, SIGTERM, SIGHUP, or QEMU's own quit key.
    Interrupted,
    /// The console showed what was [expected](crate::watch::Watch::expect).
    Expected,
    /// The console showed [a failure](crate::watch::Watch::fail).
    FailureShown {
        /// What was looked for.
        pattern: String,
        /// The line that shows it.
        line: String,
    },
    /// The guest ended, or its time was over, before its console showed what was expected.
    NotShown {
        /// What was looked for.
        pattern: String,
        /// How it ended.
        end: Box<Outcome>,
    },
}

impl Outcome {
    /// Our process's exit status: 0 for success, 1 to 63 from the firmware, 120 upwards for ends
    /// that are not the firmware's.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::FirmwareExit(status) => *status,
            Self::PowerOff | Self::Expected => 0,
            Self::NotShown { end, .. } if **end == Self::TimedOut => 124,
            Self::FailureShown { .. } | Self::NotShown { .. } => 1,
            Self::Reset => 120,
            Self::QemuFailed { .. } => 121,
            Self::ServerFailed { .. } => 122,
            Self::TimedOut => 124,
            Self::Interrupted => 130,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirmwareExit(status) => write!(f, "the firmware ended with status {status}"),
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str(
                "the guest reset instead of powering off: look for a panic above, or power off",
            ),
            Self::TimedOut => f.write_str("the time limit passed: allow more with --timeout"),
            Self::QemuFailed { status, stderr } => {
                write!(f, "QEMU failed ({status}): {}", stderr.trim_end())
            }
            Self::ServerFailed { what, stderr } => write!(f, "{what}: {}", stderr.trim_end()),
            Self::Interrupted => f.write_str("interrupted"),
            Self::Expected => f.write_str("the console showed what was expected"),
            Self::FailureShown { pattern, line } => {
                write!(f, "the console showed --fail '{pattern}': {line}")
            }
            Self::NotShown { pattern, end } => {
                write!(f, "the console never showed --expect '{pattern}': {end}")
            }
        }
    }
}

/// What a finished run left.
#[derive(Debug)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// All that the guest wrote to its console, with [`Console::Capture`].
    pub console: Vec<u8>,
    /// The last lines of the console, without escape sequences.
    pub last_lines: Vec<String>,
    /// Whether the last of them has no end.
    pub is_cut: bool,
    /// From QEMU's start to its end.
    pub duration: Duration,
}

impl Report {
    /// The console as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.console).into_owned()
    }
}

/// A moment of a run at which a test may act: see [`Machine::run_watched`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment<'a> {
    /// The servers were started, QEMU was not yet.
    Start,
    /// The guest has written to its console: all of it since its last line break.
    Console(&'a str),
}

/// Sees each [`Moment`] of a run, and may have its servers fail.
type Observer<'a> = &'a mut dyn FnMut(Moment<'_>, &mut Servers<'_>);

/// The servers of a run, by their shares' place in [`Machine::shares`], for a test that has them
/// fail. What it does to them is not taken for the run's own failure.
pub struct Servers<'a>(&'a mut [Serving]);

impl Servers<'_> {
    /// Kills one and waits for its end.
    pub fn kill(&mut self, index: usize) {
        let server = &mut self.0[index];
        if server.ended.is_none() {
            server.killed = true;
            match &mut server.server {
                Running::External(process) => process.kill(),
                Running::Embedded(server) => server.stop(),
            }
        }
    }

    /// Stops one (SIGSTOP), if it is a process of its own.
    pub fn stop(&mut self, index: usize) {
        self.0[index].signal(Signal::STOP);
    }

    /// Stops one, to go on by itself after `duration`.
    pub fn stop_for(&mut self, index: usize, duration: Duration) {
        self.stop(index);
        self.0[index].stopped_until = Some(Instant::now() + duration);
    }

    /// Has a stopped one go on (SIGCONT).
    pub fn go_on(&mut self, index: usize) {
        let server = &mut self.0[index];
        server.stopped_until = None;
        server.signal(Signal::CONT);
    }
}

/// The last bytes of an error stream.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let excess = self.0.len().saturating_sub(TAIL);
        self.0.drain(..excess);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

/// A share's server.
enum Running {
    External(Process),
    Embedded(serve::Server),
}

/// A server and the share it serves.
struct Serving {
    server: Running,
    share: String,
    stderr: Option<std::process::ChildStderr>,
    tail: Tail,
    ended: Option<Ended>,
    /// By an [`Observer`]: the machine may outlive it.
    killed: bool,
    stopped_until: Option<Instant>,
}

/// How a server ended, and when.
struct Ended {
    how: String,
    failed: bool,
    at: Instant,
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Self {
        Self {
            how: status.to_string(),
            failed: !status.success(),
            at: Instant::now(),
        }
    }
}

/// What woke poll(2).
#[derive(Clone, Copy)]
enum Source {
    Interrupt,
    QemuEnd,
    Console,
    QemuStderr,
    QmpConnect,
    Qmp,
    Keys,
    ServerEnd(usize),
    ServerStderr(usize),
}

/// A machine that is running. Fields are dropped in order: the terminal is restored last.
struct Run<'a> {
    machine: &'a Machine,
    console: Console,
    servers: Vec<Serving>,
    qemu: Process,
    stdout: Option<File>,
    stderr: Option<std::process::ChildStderr>,
    stderr_tail: Tail,
    qmp_listener: Option<UnixListener>,
    qmp: Option<UnixStream>,
    decoder: Decoder,
    question: Question,
    keys: Option<Keys>,
    /// The sockets; gone as soon as QEMU has connected, so that no death of ours leaves any.
    sockets: Option<TempDir>,
    shutdown: Option<Message>,
    captured: Vec<u8>,
    observer: Option<Observer<'a>>,
    /// Of the captured bytes, where the last line starts.
    line: usize,
    watcher: Watcher,
    failure_shown: Option<Instant>,
    /// What is still to be typed.
    script: Script<'a>,
    /// How many of the captured bytes it has gone by.
    seen: usize,
    started: Instant,
    interrupt: BorrowedFd<'static>,
    _raw: Option<RawMode>,
}

impl Machine {
    /// Runs the machine to its end. Nothing that was started is left running, however it ends.
    ///
    /// # Errors
    /// The machine could not be started, or our own console failed. How a machine that was
    /// started ended is in the report.
    pub fn run(&self, console: Console) -> Result<Report> {
        self.run_with(console, None, &[])
    }

    /// Runs the machine to its end, its console captured, and types `script` at it.
    ///
    /// # Errors
    /// As [`Machine::run`].
    pub fn run_typing(&self, script: Script<'_>) -> Result<Report> {
        self.run_with(Console::Capture, None, script)
    }

    /// Runs the machine to its end, its console captured, and calls `observer` at each [`Moment`].
    ///
    /// The guest waits for the observer: its console takes some 10 bytes more than were read, so
    /// what `observer` does when it sees the start of a longer piece of text takes effect before
    /// the guest is done writing that.
    ///
    /// # Errors
    /// As [`Machine::run`].
    pub fn run_watched(
        &self,
        mut observer: impl FnMut(Moment<'_>, &mut Servers<'_>),
    ) -> Result<Report> {
        self.run_with(Console::Capture, Some(&mut observer), &[])
    }

    fn run_with<'a>(
        &'a self,
        console: Console,
        observer: Option<Observer<'a>>,
        script: Script<'a>,
    ) -> Result<Report> {
        self.check()?;
        let interrupt = interrupted().context("cannot watch for signals")?;
        let run = Run::start(self, console, observer, script, interrupt)?;
        run.finish()
    }
}

/// Makes the directory that a run's sockets are in for a moment.
///
/// # Errors
/// There is no place for it.
pub fn socket_dir() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("bootshare-")
        .tempdir()
        .context("cannot make a directory for sockets: point TMPDIR at one that is writable")
}

impl<'a> Run<'a> {
    fn start(
        machine: &'a Machine,
        console: Console,
        mut observer: Option<Observer<'a>>,
        script: Script<'a>,
        interrupt: BorrowedFd<'static>,
    ) -> Result<Self> {
        let watcher = Watcher::new(&machine.watch)?;
        let sockets = socket_dir()?;
        let place = |name: &str| -> Result<_> {
            let path = sockets.path().join(name);
            // unix(7): sun_path holds 107 bytes and a NUL.
            ensure!(
                path.as_os_str().len() <= 107,
                "{} is too long for a socket: point TMPDIR at a shorter directory",
                path.display()
            );
            Ok(path)
        };

        let mut servers = Vec::new();
        let mut paths = Vec::new();
        let external = machine.server.as_deref().map(Server::ask).transpose()?;
        let trace = machine.trace.as_deref().map(Trace::create).transpose()?;
        let trace = trace.map(Arc::new);
        for (index, share) in machine.shares.iter().enumerate() {
            let path = place(&format!("fs{index}"))?;
            let listener = UnixListener::bind(&path).context("cannot listen for QEMU")?;
            let server = match &external {
                Some(server) => {
                    Running::External(server.start(share, listener, machine.thread_pool_size)?)
                }
                None => {
                    let options = machine.serve_options(share, trace.clone());
                    Running::Embedded(serve::Server::start(&options, listener)?)
                }
            };
            servers.push(Serving::new(server, share.to_string()));
            paths.push(path);
        }

        if let Some(observer) = &mut observer {
            observer(Moment::Start, &mut Servers(&mut servers));
        }

        let qmp = place("qmp")?;
        let qmp_listener = UnixListener::bind(&qmp).context("cannot listen for QEMU")?;
        let interactive = console.is_interactive();
        let wiring = Wiring {
            sockets: paths,
            qmp: Some(qmp),
            interactive,
        };
        let invocation = machine.invocation(&wiring);
        let mut command = invocation.command();
        command.stdin(match console {
            Console::Capture if script.is_empty() => Stdio::null(),
            Console::Terminal | Console::Capture => Stdio::piped(),
        });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let narrow = match observer {
            Some(_) => {
                let (ours, qemus) = narrow_pair().context("cannot make a console")?;
                command.stdout(qemus);
                Some(ours)
            }
            None => None,
        };
        let mut qemu = Process::spawn(&mut command, None).context(
            "is QEMU installed? On Debian: apt-get install qemu-system-x86 qemu-system-arm",
        )?;
        let stdin = qemu.child.stdin.take();
        let keys = stdin
            .map(|stdin| Keys::new(stdin, console == Console::Capture))
            .transpose()?;
        let raw = if interactive {
            Some(RawMode::enter().context("cannot set the terminal to raw mode")?)
        } else {
            None
        };
        Ok(Self {
            machine,
            console,
            servers,
            stdout: narrow
                .or(qemu.child.stdout.take().map(OwnedFd::from))
                .map(File::from),
            stderr: qemu.child.stderr.take(),
            qemu,
            stderr_tail: Tail::default(),
            qmp_listener: Some(qmp_listener),
            qmp: None,
            decoder: Decoder::default(),
            question: Question::NotYet,
            keys,
            sockets: Some(sockets),
            shutdown: None,
            captured: Vec::new(),
            watcher,
            observer,
            line: 0,
            failure_shown: None,
            script,
            seen: 0,
            started: Instant::now(),
            interrupt,
            _raw: raw,
        })
    }

    fn finish(mut self) -> Result<Report> {
        let mut outcome = self.run_until_end()?;
        let duration = self.started.elapsed();
        self.qemu.kill();
        self.drain()?;
        let deadline = Instant::now() + END_GRACE;
        for index in 0..self.servers.len() {
            match &mut self.servers[index].server {
                Running::External(process) => {
                    if process.wait_until(deadline)?.is_none() {
                        process.kill();
                    }
                }
                Running::Embedded(server) => {
                    server.stop();
                    // Also when the machine did not notice.
                    if server.failure().is_some() {
                        self.servers[index].note_end(Duration::ZERO)?;
                        outcome = self.server_failed(index);
                    }
                }
            }
        }
        Ok(Report {
            outcome: self.judge(outcome)?,
            last_lines: self.watcher.last_lines(),
            is_cut: self.watcher.is_cut(),
            console: std::mem::take(&mut self.captured),
            duration,
        })
    }

    fn run_until_end(&mut self) -> Result<Outcome> {
        loop {
            let now = Instant::now();
            let deadlines = self.deadlines();
            if let Some((_, outcome)) = deadlines.iter().find(|(at, _)| *at <= now) {
                return Ok(self.outcome_of_deadline(*outcome));
            }
            let next = deadlines.iter().map(|(at, _)| *at);
            let due = [self.continue_servers(now), self.ask(now)];
            let next = next.chain(due.into_iter().flatten()).min();
            let next = next.map(|at| at - now);
            for source in self.wait(next)? {
                match source {
                    Source::Interrupt => return Ok(Outcome::Interrupted),
                    Source::QemuEnd => {
                        let status = self.qemu.child.wait()?;
                        self.drain()?;
                        return self.outcome_of_exit(status);
                    }
                    source => self.serve(source)?,
                }
            }
            match self.watcher.found() {
                Some(Found::Expected) => return Ok(Outcome::Expected),
                Some(Found::Failure) if self.failure_shown.is_none() => {
                    self.failure_shown = Some(Instant::now());
                }
                _ => {}
            }
        }
    }

    /// Has those servers go on that were stopped until now; when the next one is due.
    fn continue_servers(&mut self, now: Instant) -> Option<Instant> {
        for index in 0..self.servers.len() {
            if self.servers[index]
                .stopped_until
                .is_some_and(|at| at <= now)
            {
                Servers(&mut self.servers).go_on(index);
            }
        }
        let due = self
            .servers
            .iter()
            .filter_map(|server| server.stopped_until);
        due.min()
    }

    /// Asks QEMU whether it still does anything; when it is to be asked next.
    fn ask(&mut self, now: Instant) -> Option<Instant> {
        let Question::Due(at) = self.question else {
            return None;
        };
        let stream = self.qmp.as_mut()?;
        if at > now {
            return Some(at);
        }
        // That QEMU has ended is seen elsewhere.
        _ = qmp::ask(stream);
        self.question = Question::Asked(now);
        Some(now + ANSWER_LIMIT)
    }

    /// What the console showed decides, once it has come to its end.
    fn judge(&mut self, end: Outcome) -> Result<Outcome> {
        self.watcher.end()?;
        let watch = &self.machine.watch;
        let text = |pattern: &Option<Pattern>| pattern.as_ref().map(Pattern::to_string);
        Ok(match (self.watcher.found(), end) {
            (_, Outcome::Interrupted) => Outcome::Interrupted,
            (Some(Found::Expected), _) => Outcome::Expected,
            (Some(Found::Failure), _) => Outcome::FailureShown {
                pattern: text(&watch.fail).unwrap_or_default(),
                line: self.watcher.line(),
            },
            // QEMU's and the server's own failures are not the guest's.
            (None, end @ (Outcome::QemuFailed { .. } | Outcome::ServerFailed { .. })) => end,
            (None, end) => match text(&watch.expect) {
                Some(pattern) => Outcome::NotShown {
                    pattern,
                    end: Box::new(end),
                },
                None => end,
            },
        })
    }

    fn deadlines(&self) -> Vec<(Instant, Deadline)> {
        let mut deadlines = Vec::new();
        if let Some(limit) = self.machine.time_limit {
            deadlines.push((self.started + limit, Deadline::TimeLimit));
        }
        if self.sockets.is_some() {
            deadlines.push((self.started + START_LIMIT, Deadline::Start));
        }
        if let Question::Asked(at) = self.question {
            deadlines.push((at + ANSWER_LIMIT, Deadline::Answer));
        }
        if let Some(at) = self.failure_shown {
            deadlines.push((at + FAILURE_GRACE, Deadline::FailureShown));
        }
        for (index, server) in self.servers.iter().enumerate() {
            if let Some(ended) = &server.ended
                && !server.killed
            {
                deadlines.push((ended.at + SERVER_GRACE, Deadline::Server(index)));
            }
        }
        deadlines
    }

    fn outcome_of_deadline(&self, deadline: Deadline) -> Outcome {
        match deadline {
            // What was shown is judged at the end.
            Deadline::TimeLimit | Deadline::FailureShown => Outcome::TimedOut,
            Deadline::Server(index) => self.server_failed(index),
            Deadline::Start => self.qemu_waits("build the machine", START_LIMIT),
            Deadline::Answer => self.qemu_waits("answer", ANSWER_LIMIT),
        }
    }

    fn qemu_waits(&self, what: &str, limit: Duration) -> Outcome {
        let tails = self.servers.iter().map(|server| server.tail.text());
        Outcome::ServerFailed {
            what: format!(
                "QEMU did not {what} within {} s; a server may be stopped or hang",
                limit.as_secs()
            ),
            stderr: tails.collect(),
        }
    }

    fn server_failed(&self, index: usize) -> Outcome {
        let server = &self.servers[index];
        let how = server.ended.as_ref();
        let how = how.map_or_else(String::new, |ended| format!(" ({})", ended.how));
        let what = match server.server {
            Running::External(_) => "ended before the machine did",
            Running::Embedded(_) => "failed",
        };
        Outcome::ServerFailed {
            what: format!("the server of {} {what}{how}", server.share),
            stderr: server.tail.text(),
        }
    }

    fn outcome_of_exit(&mut self, status: ExitStatus) -> Result<Outcome> {
        let code = status.code();
        if let Some(status) = code.and_then(|code| firmware_status(self.machine.board.arch(), code))
        {
            return Ok(Outcome::FirmwareExit(status));
        }
        match self.shutdown {
            Some(Message::Quit) => return Ok(Outcome::Interrupted),
            Some(Message::Reset) if code == Some(0) => return Ok(Outcome::Reset),
            Some(_) if code == Some(0) => return Ok(Outcome::PowerOff),
            _ => {}
        }
        // QEMU fails when a server does: the server's own words say more.
        for index in 0..self.servers.len() {
            let server = &mut self.servers[index];
            server.note_end(END_GRACE)?;
            if !server.killed && server.ended.as_ref().is_some_and(|ended| ended.failed) {
                self.drain()?;
                return Ok(self.server_failed(index));
            }
        }
        Ok(Outcome::QemuFailed {
            status: status.to_string(),
            stderr: self.stderr_tail.text(),
        })
    }

    /// Waits for something to happen; what did may be nothing.
    fn wait(&self, limit: Option<Duration>) -> Result<Vec<Source>> {
        let mut sources = vec![
            (Source::Interrupt, self.interrupt, PollFlags::IN),
            (Source::QemuEnd, self.qemu.ended(), PollFlags::IN),
        ];
        if let Some(stream) = &self.stdout {
            sources.push((Source::Console, stream.as_fd(), PollFlags::IN));
        }
        if let Some(stream) = &self.stderr {
            sources.push((Source::QemuStderr, stream.as_fd(), PollFlags::IN));
        }
        if let Some(listener) = &self.qmp_listener {
            sources.push((Source::QmpConnect, listener.as_fd(), PollFlags::IN));
        }
        if let Some(stream) = &self.qmp {
            sources.push((Source::Qmp, stream.as_fd(), PollFlags::IN));
        }
        if let Some((fd, flags)) = self.keys.as_ref().and_then(Keys::interest) {
            sources.push((Source::Keys, fd, flags));
        }
        for (index, server) in self.servers.iter().enumerate() {
            if server.ended.is_none() {
                let ended = match &server.server {
                    Running::External(process) => process.ended(),
                    Running::Embedded(server) => server.failed(),
                };
                sources.push((Source::ServerEnd(index), ended, PollFlags::IN));
            }
            if let Some(stream) = &server.stderr {
                sources.push((Source::ServerStderr(index), stream.as_fd(), PollFlags::IN));
            }
        }
        let mut fds: Vec<_> = sources
            .iter()
            .map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        match poll(&mut fds, limit.map(timespec).as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error).context("cannot wait for QEMU"),
        }
        let ready = fds.iter().map(|fd| !fd.revents().is_empty());
        Ok(sources
            .iter()
            .zip(ready)
            .filter(|(_, ready)| *ready)
            .map(|((s, ..), _)| *s)
            .collect())
    }

    fn serve(&mut self, source: Source) -> Result<()> {
        match source {
            Source::Console => self.read_console()?,
            Source::QemuStderr => self.read_stderr()?,
            Source::QmpConnect => {
                if let Some(listener) = self.qmp_listener.take() {
                    let (mut stream, _) = listener.accept().context("cannot talk to QEMU")?;
                    qmp::hello(&mut stream)?;
                    self.qmp = Some(stream);
                }
            }
            Source::Qmp => self.read_qmp()?,
            Source::Keys => {
                if let Some(keys) = &mut self.keys
                    && !keys.advance().context("cannot pass on standard input")?
                {
                    self.keys = None;
                }
            }
            Source::ServerEnd(index) => {
                self.servers[index].note_end(Duration::ZERO)?;
            }
            Source::ServerStderr(index) => self.servers[index].read_stderr()?,
            Source::Interrupt | Source::QemuEnd => {}
        }
        Ok(())
    }

    fn read_console(&mut self) -> Result<()> {
        let Some(stream) = &mut self.stdout else {
            return Ok(());
        };
        let Some(bytes) = read_some(stream)? else {
            self.stdout = None;
            return Ok(());
        };
        self.watcher.feed(&bytes)?;
        match self.console {
            Console::Capture => {
                self.capture(&bytes);
                if let Some(keys) = &mut self.keys {
                    keys.follow(&mut self.script, &self.captured, &mut self.seen);
                }
            }
            Console::Terminal => {
                let mut out = io::stdout().lock();
                out.write_all(&bytes)
                    .and_then(|()| out.flush())
                    .context("cannot show the console")?;
            }
        }
        Ok(())
    }

    fn capture(&mut self, bytes: &[u8]) {
        let Some(observer) = &mut self.observer else {
            return self.captured.extend(bytes);
        };
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.captured.extend(piece);
            let line = String::from_utf8_lossy(&self.captured[self.line..]);
            observer(Moment::Console(&line), &mut Servers(&mut self.servers));
            if piece.ends_with(b"\n") {
                self.line = self.captured.len();
            }
        }
    }

    fn read_stderr(&mut self) -> Result<()> {
        let Some(stream) = &mut self.stderr else {
            return Ok(());
        };
        match read_some(stream)? {
            None => self.stderr = None,
            Some(bytes) => self.stderr_tail.push(&bytes),
        }
        Ok(())
    }

    fn read_qmp(&mut self) -> Result<()> {
        let Some(stream) = &mut self.qmp else {
            return Ok(());
        };
        let Some(bytes) = read_some(stream)? else {
            self.qmp = None;
            return Ok(());
        };
        let mut messages = Vec::new();
        self.decoder.feed(&bytes, &mut messages);
        for message in messages {
            match message {
                Message::Answer => {
                    self.sockets = None;
                    self.question = Question::Due(Instant::now() + ASK_EVERY);
                }
                end => self.shutdown = Some(end),
            }
        }
        Ok(())
    }

    /// Reads what the ended QEMU, and servers, had still to say.
    fn drain(&mut self) -> Result<()> {
        while self.stdout.is_some() {
            self.read_console()?;
        }
        while self.stderr.is_some() {
            self.read_stderr()?;
        }
        while self.qmp.is_some() {
            self.read_qmp()?;
        }
        for server in self
            .servers
            .iter_mut()
            .filter(|server| server.ended.is_some())
        {
            while server.stderr.is_some() {
                server.read_stderr()?;
            }
        }
        Ok(())
    }
}

impl Serving {
    fn signal(&self, signal: Signal) {
        // Once reaped, the number may belong to somebody else.
        if self.ended.is_none()
            && !self.killed
            && let Running::External(process) = &self.server
        {
            process.signal(signal);
        }
    }

    fn new(mut server: Running, share: String) -> Self {
        let stderr = match &mut server {
            Running::External(process) => process.child.stderr.take(),
            Running::Embedded(_) => None,
        };
        Self {
            server,
            share,
            stderr,
            tail: Tail::default(),
            ended: None,
            killed: false,
            stopped_until: None,
        }
    }

    /// Notes how the server ended, if it ends within `limit`.
    fn note_end(&mut self, limit: Duration) -> Result<()> {
        if self.ended.is_some() {
            return Ok(());
        }
        self.ended = match &mut self.server {
            Running::External(process) => {
                let status = process.wait_until(Instant::now() + limit)?;
                status.map(Ended::from)
            }
            Running::Embedded(server) => server.failure().map(|how| Ended {
                how,
                failed: true,
                at: Instant::now(),
            }),
        };
        Ok(())
    }

    fn read_stderr(&mut self) -> Result<()> {
        let Some(stream) = &mut self.stderr else {
            return Ok(());
        };
        match read_some(stream)? {
            None => self.stderr = None,
            Some(bytes) => self.tail.push(&bytes),
        }
        Ok(())
    }
}

/// Our end of a console, and QEMU's, which takes next to nothing that we have not read.
fn narrow_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, qemus) = UnixStream::pair()?;
    // socket(7): the kernel makes it its least, which six writes of a byte fill.
    rustix::net::sockopt::set_socket_send_buffer_size(&qemus, 0)?;
    Ok((ours.into(), qemus.into()))
}

/// Whether QEMU is asked something.
#[derive(Clone, Copy)]
enum Question {
    NotYet,
    Due(Instant),
    Asked(Instant),
}

/// Why a machine may be given up.
#[derive(Clone, Copy)]
enum Deadline {
    TimeLimit,
    FailureShown,
    Start,
    Answer,
    Server(usize),
}
