//! Runs a machine: its servers, QEMU, the console, the time limit, and a report of how it ended.

mod outcome;
mod servers;

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::PollFlags;
use rustix::process::Signal;
use tempfile::TempDir;

pub use outcome::{EXIT_STATUSES, Outcome, Report};
pub use servers::Servers;

use crate::console::{Console, Keys, RETRY, RawMode};
use crate::explain::{Explain, remedied};
use crate::fd::{read_rest, read_some, ready};
use crate::interrupt::{FORCED_GRACE, JobControl, has_come, interrupted};
use crate::process::{Errors, Process};
use crate::qemu::{Accel, Machine, OwnTerminal, Wiring, firmware_status};
use crate::qmp::{ANSWER_LIMIT, Monitor, Shutdown};
use crate::serve::short_enough;
use crate::spool::Spool;
use crate::startup;
use crate::watch::{Came, Found, Watcher};
use servers::Serving;

/// How long QEMU may go on after a server has ended. When QEMU exits normally, its server ends at
/// about the same time.
const SERVER_GRACE: Duration = Duration::from_secs(2);

/// How long a server may take to end after QEMU has.
const END_GRACE: Duration = Duration::from_secs(2);

/// How long a guest may go on after its console showed a failure: its next lines say more.
const FAILURE_GRACE: Duration = Duration::from_secs(1);

/// A silence after which an incomplete line is taken as complete: it is a prompt.
const SILENCE: Duration = Duration::from_millis(100);

/// A silence after which the guest is assumed to wait for input even without a prompt.
const LONG_SILENCE: Duration = Duration::from_secs(10);

/// A moment of a run at which a test acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment<'a> {
    /// The servers have been started; QEMU has not.
    Start,
    /// The console has shown this since the step before: a regular expression, for text without
    /// escape sequences in which each line ends with `\n`.
    Console(&'a str),
}

/// The action of a test's step.
pub enum Act<'a> {
    /// Types this text at the console.
    Type(&'a str),
    /// Makes servers fail, or changes their files.
    Strike(&'a mut dyn FnMut(&mut Servers<'_>)),
}

/// An action of a test and its moment; steps happen in order.
pub type Step<'a> = (Moment<'a>, Act<'a>);

/// A descriptor that poll(2) waits for.
#[derive(Clone, Copy)]
enum Source {
    Interrupt,
    JobControl,
    QemuEnd,
    Console,
    Output,
    Errors,
    Monitor,
    Keys,
    ServerEnd(usize),
    ServerErrors(usize),
}

/// Reasons to give a machine up at a certain time.
#[derive(Clone, Copy)]
enum Deadline {
    TimeLimit,
    FailureShown,
    Answer,
    Server(usize),
}

/// What ended a wait for a server.
enum Waited {
    Ended,
    Late,
    Interrupted,
}

/// A running machine. Fields are dropped in order: the terminal is restored last.
struct Run<'a, 's> {
    machine: &'a Machine,
    servers: Vec<Serving>,
    qemu: Process,
    stdout: Option<File>,
    /// The most that is read from `stdout` at once.
    at_a_time: u64,
    errors: Errors,
    monitor: Monitor,
    keys: Option<Keys>,
    /// The directory of the sockets. It is deleted once QEMU has connected, so that nothing is left
    /// even if this process is killed.
    sockets: Option<TempDir>,
    output: Output,
    watcher: Watcher,
    /// When the console will have been silent for [`SILENCE`].
    silent_at: Option<Instant>,
    /// When the guest is assumed to wait for input.
    prompt_at: Option<Instant>,
    failure_shown: Option<Instant>,
    /// The steps that are still to come.
    steps: std::slice::IterMut<'a, Step<'s>>,
    started: Instant,
    /// The time limit.
    ends_at: Option<Instant>,
    /// How long this process was stopped.
    stopped: Duration,
    interrupt: BorrowedFd<'static>,
    terminal: Option<Terminal>,
}

/// Where the console's output is written.
enum Output {
    Captured(Vec<u8>),
    Shown(Spool),
    /// Standard output was closed.
    Closed,
}

/// This process's own terminal.
struct Terminal {
    job: &'static JobControl,
    is_interactive: bool,
    /// If there is one: not in raw mode before this is true.
    begun: Option<Arc<AtomicBool>>,
    raw: Option<RawMode>,
}

impl Terminal {
    /// Sets the terminal to raw mode, so that each key is sent to the guest, if there is one and
    /// this process is in the foreground.
    fn take(&mut self) -> Result<()> {
        let entered = match &self.raw {
            Some(raw) => raw.enter_again(),
            None if self.wants_raw() => RawMode::enter().map(|raw| self.raw = raw),
            None => Ok(()),
        };
        entered.context("cannot set the terminal to raw mode")
    }

    fn wants_raw(&self) -> bool {
        let begun = self.begun.as_ref();
        self.is_interactive && begun.is_none_or(|begun| begun.load(Ordering::Relaxed))
    }

    fn is_taken(&self) -> bool {
        self.raw.is_some() || !self.wants_raw()
    }
}

impl Machine {
    /// Runs the machine to its end. Nothing that was started is left running, however it ends.
    ///
    /// # Errors
    /// The machine could not be started, or our own console failed. If the machine was started, the
    /// report says how it ended.
    pub fn run(&self, console: Console) -> Result<Report> {
        let run = |machine: &Self| Run::start(machine, console, &mut [])?.finish();
        self.or_translated(run, |report| {
            (&report.outcome, &report.last_lines, report.ends_at)
        })
    }

    /// Calls `run`; if there is a [`Machine::fallback`] and KVM fails before the console shows
    /// anything, calls it again with QEMU's translator, if there is time left. `end` returns the outcome, the
    /// console's last lines, and the time limit.
    pub(crate) fn or_translated<T>(
        &self,
        run: impl Fn(&Self) -> Result<T>,
        end: impl Fn(&T) -> (&Outcome, &[String], Option<Instant>),
    ) -> Result<T> {
        let mut machine = self.clone();
        let tell = machine.fallback.take();
        let ran = run(&machine)?;
        match (tell, end(&ran)) {
            (Some(tell), (outcome @ Outcome::QemuFailed { .. }, [], ends_at))
                if machine.accel == Accel::Kvm
                    && ends_at.is_none_or(|at| at > Instant::now())
                    && !has_come() =>
            {
                startup::begins_again(ends_at);
                machine.time_limit = ends_at.map(|at| at.saturating_duration_since(Instant::now()));
                tell(&format!(
                    "KVM does not work: {outcome}; continuing with tcg"
                ));
                machine.accel = Accel::Tcg;
                run(&machine)
            }
            _ => Ok(ran),
        }
    }

    /// Runs the machine to its end with its console captured, and performs `steps`.
    ///
    /// The console buffers only about 10 unread bytes, and a 16550 another 16 in its FIFO. Once these
    /// are full, the guest waits until a step is done: a step takes effect before the guest has
    /// written 32 bytes more.
    ///
    /// # Errors
    /// As for [`Machine::run`]; or a step's text is not a valid regular expression.
    pub fn run_steps(&self, steps: &mut [Step<'_>]) -> Result<Report> {
        Run::start(self, Console::Capture, steps)?.finish()
    }
}

/// The remedy for a temporary directory that cannot be made.
pub const TMPDIR: &str = "point TMPDIR at one that is writable and has room";

/// Creates a temporary directory for a run's sockets, which only this user can enter: a connection
/// controls the machine.
///
/// # Errors
/// It cannot be created.
pub fn socket_dir() -> Result<TempDir> {
    let private = Permissions::from_mode(0o700);
    let mut builder = tempfile::Builder::new();
    let dir = builder.prefix("bootshare-").permissions(private.clone());
    dir.tempdir()
        .and_then(|dir| {
            // Whatever the umask is.
            fs::set_permissions(dir.path(), private)?;
            startup::created(dir.path());
            Ok(dir)
        })
        .explain("cannot make a directory for sockets", TMPDIR)
}

/// The path of a socket in that directory.
///
/// # Errors
/// The path is too long for a socket.
pub fn socket(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    short_enough(&path, "point TMPDIR at a shorter directory")?;
    Ok(path)
}

impl<'a, 's> Run<'a, 's> {
    fn start(machine: &'a Machine, console: Console, steps: &'a mut [Step<'s>]) -> Result<Self> {
        machine.check()?;
        machine.check_host()?;
        let interrupt = interrupted().context("cannot watch for signals")?;
        let awaited = steps.iter().filter_map(|(moment, _)| match moment {
            Moment::Start => None,
            Moment::Console(text) => Some(*text),
        });
        let watcher = Watcher::new(&machine.watch, awaited)?;
        let narrow = !steps.is_empty();
        let sockets = socket_dir()?;
        let (mut servers, paths) = servers::start(machine, sockets.path())?;
        let mut steps = steps.iter_mut();
        while let [(Moment::Start, _), ..] = steps.as_slice() {
            take_step(&mut steps, &mut servers, None);
        }
        let qmp = socket(sockets.path(), "qmp")?;
        let monitor = Monitor::listen(&qmp, !machine.stays_paused())?;
        let mut terminal = None;
        let mut output = Output::Captured(Vec::new());
        let is_unused = matches!(machine.own_terminal, OwnTerminal::Unused);
        if console == Console::Terminal || !is_unused {
            let begun = match &machine.own_terminal {
                OwnTerminal::Raw(begun) => Some(begun.clone()),
                OwnTerminal::Unused | OwnTerminal::Stops => None,
            };
            terminal = Some(Terminal {
                job: JobControl::get().context("cannot watch for signals")?,
                is_interactive: console.is_interactive() || begun.is_some(),
                begun,
                raw: None,
            });
        }
        if console == Console::Terminal {
            output = Output::Shown(Spool::start()?);
        }
        let wiring = Wiring {
            sockets: paths,
            qmp: Some(qmp),
            interactive: console.is_interactive(),
        };
        let (mut qemu, stdout) = spawn(machine, &wiring, console, narrow)?;
        let ends_at = startup::ends();
        let keys = qemu.child.stdin.take();
        let keys = keys.map(|stdin| Keys::new(stdin, console)).transpose()?;
        terminal.as_mut().map_or(Ok(()), Terminal::take)?;
        let started = Instant::now();
        Ok(Self {
            machine,
            servers,
            stdout,
            at_a_time: if narrow { 1 } else { u64::MAX },
            errors: qemu.errors(),
            qemu,
            monitor,
            keys,
            sockets: Some(sockets),
            output,
            watcher,
            silent_at: None,
            prompt_at: Some(started + LONG_SILENCE),
            failure_shown: None,
            steps,
            started,
            ends_at: ends_at.or_else(|| started.checked_add(machine.time_limit?)),
            stopped: Duration::ZERO,
            interrupt,
            terminal,
        })
    }

    fn finish(mut self) -> Result<Report> {
        let outcome = self.run_until_end()?;
        let duration = self.started.elapsed();
        self.qemu.kill();
        self.drain()?;
        // From here on keys have their usual effects: Ctrl-C and Ctrl-Z are signals.
        if let Some(terminal) = &mut self.terminal {
            terminal.is_interactive = false;
            terminal.raw = None;
        }
        let outcome = self.finish_servers(outcome)?;
        let outcome = outcome::judge(&self.machine.watch, &mut self.watcher, outcome)?;
        let (outcome, unshown) = self.show_rest(outcome)?;
        Ok(Report {
            outcome,
            denied: self.servers.iter().filter_map(Serving::denied).collect(),
            last_requests: self
                .servers
                .iter()
                .filter_map(Serving::last_requests)
                .collect(),
            unshown,
            last_lines: self.watcher.last_lines(),
            is_start_last: self.watcher.shows_start(),
            is_cut: self.watcher.is_cut(),
            console: match self.output {
                Output::Captured(bytes) => bytes,
                Output::Shown(_) | Output::Closed => Vec::new(),
            },
            steps_left: self.steps.len(),
            duration,
            ends_at: self.ends_at,
        })
    }

    /// Stops the servers. Their failures change the outcome, but not after a limit or a signal: then a
    /// server that hangs is not the cause of the end.
    fn finish_servers(&mut self, mut outcome: Outcome) -> Result<Outcome> {
        self.servers.iter().for_each(Serving::begin_stop);
        let (since, stopped) = (Instant::now(), self.stopped);
        let mut is_over = outcome.is_over();
        for index in 0..self.servers.len() {
            // Time in which this process is stopped meanwhile does not count.
            let since = since + (self.stopped - stopped);
            let forced = since + FORCED_GRACE;
            let limit = self.ends_at.map(|at| at.max(forced));
            let full = since + self.servers[index].grace();
            let deadline = limit.map_or(full, |limit| limit.min(full));
            if !is_over {
                match self.wait_for_server(index, deadline)? {
                    Waited::Interrupted => {
                        outcome = Outcome::Interrupted;
                        is_over = true;
                    }
                    Waited::Late if deadline < full => {
                        if outcome.exit_code() == 0 {
                            outcome = Outcome::TimedOut;
                        }
                        is_over = true;
                    }
                    Waited::Late | Waited::Ended => {}
                }
            }
            if let Some(failure) = self.servers[index].finish(forced)?
                && !is_over
            {
                outcome = failure;
            }
        }
        Ok(outcome)
    }

    /// Waits until a server has ended.
    fn wait_for_server(&mut self, index: usize, mut deadline: Instant) -> Result<Waited> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let job = self.terminal.as_ref().map(|terminal| terminal.job.fd());
            let fds = [self.interrupt, self.servers[index].gone()];
            let fds = fds.into_iter().chain(job);
            let fds: Vec<_> = fds.map(|fd| (fd, PollFlags::IN)).collect();
            let ready = ready(&fds, Some(left)).context("cannot wait for a server")?;
            if ready[0] {
                return Ok(Waited::Interrupted);
            } else if ready[1] {
                return Ok(Waited::Ended);
            } else if ready.get(2) == Some(&true) {
                let since = Instant::now();
                self.stop()?;
                deadline += since.elapsed();
            } else if left.is_zero() {
                return Ok(Waited::Late);
            }
        }
    }

    /// Waits until standard output has taken the whole console. If that takes too long, returns how
    /// many bytes it has not taken.
    fn show_rest(&mut self, outcome: Outcome) -> Result<(Outcome, u64)> {
        let is_over = outcome.is_over();
        let grace = Instant::now() + FORCED_GRACE;
        loop {
            let Output::Shown(spool) = &self.output else {
                return Ok((outcome, 0));
            };
            spool.close();
            if spool.has_ended() {
                break;
            }
            let limit = match is_over {
                true => Some(grace),
                false => self.ends_at.map(|at| at.max(grace)),
            };
            let mut fds = vec![spool.news()];
            if !is_over {
                fds.push(self.interrupt);
                fds.extend(self.terminal.as_ref().map(|it| it.job.fd()));
            }
            let fds: Vec<_> = fds.into_iter().map(|fd| (fd, PollFlags::IN)).collect();
            let left = limit.map(|at| at.saturating_duration_since(Instant::now()));
            let ready = ready(&fds, left).context("cannot wait for standard output")?;
            if ready.get(1) == Some(&true) {
                return Ok((Outcome::Interrupted, spool.unshown()));
            }
            if ready.get(2) == Some(&true) {
                self.stop()?;
            } else if !ready[0] && left == Some(Duration::ZERO) {
                let end = match outcome.exit_code() {
                    0 => Outcome::TimedOut,
                    _ => outcome,
                };
                return Ok((end, spool.unshown()));
            }
        }
        if is_over {
            // An error of an output that nobody reads any more, such as a terminal after SIGHUP, is
            // not what ended the run.
            return Ok((outcome, 0));
        }
        match self.output_ended()? {
            Some(end) if outcome.exit_code() == 0 => Ok((end, 0)),
            _ => Ok((outcome, 0)),
        }
    }

    /// The outcome after standard output has failed or was closed. The run goes on if the console
    /// is searched for patterns.
    fn output_ended(&mut self) -> Result<Option<Outcome>> {
        let Output::Shown(spool) = &self.output else {
            return Ok(None);
        };
        let failure = spool.failure();
        self.output = Output::Closed;
        match failure {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).explain(
                "cannot show the console",
                "use a file or pipe that accepts all of it",
            ),
            Some(_) if !self.machine.watch.is_used() => Ok(Some(Outcome::OutputClosed)),
            _ => Ok(None),
        }
    }

    fn run_until_end(&mut self) -> Result<Outcome> {
        loop {
            if self.monitor.is_up() {
                self.sockets = None;
            }
            let limit = self
                .next_due()?
                .map(|at| at.saturating_duration_since(Instant::now()));
            for source in self.wait(limit)? {
                match source {
                    Source::Interrupt => return Ok(Outcome::Interrupted),
                    Source::QemuEnd => {
                        self.drain()?;
                        let status = self.qemu.end()?;
                        return self.outcome_of_exit(status);
                    }
                    Source::Output => {
                        if let Output::Shown(spool) = &self.output
                            && spool.has_ended()
                            && let Some(end) = self.output_ended()?
                        {
                            return Ok(end);
                        }
                    }
                    source => self.serve(source)?,
                }
            }
            // Input was handled above, so time in which this process itself was stopped does not
            // count as the guest's silence.
            let now = Instant::now();
            if self.silent_at.is_some_and(|at| at <= now) {
                self.silent_at = None;
                let came = self.watcher.pause()?;
                self.take_steps(came);
            }
            if self.prompt_at.is_some_and(|at| at <= now) {
                self.prompt_at = None;
                // A kernel may be silent for long while it boots.
                if let Some(keys) = &mut self.keys
                    && !self.watcher.shows_start()
                {
                    keys.has_prompt();
                }
            }
            match self.watcher.found() {
                Some(Found::Expected) => return Ok(Outcome::Expected),
                Some(Found::Failure(_)) if self.failure_shown.is_none() => {
                    self.failure_shown = Some(now);
                }
                _ => {}
            }
            let deadlines = self.deadlines();
            if let Some((_, deadline)) = deadlines.iter().find(|(at, _)| *at <= now) {
                return Ok(self.outcome_of_deadline(*deadline));
            }
        }
    }

    /// When something is due next, even without any event.
    fn next_due(&mut self) -> Result<Option<Instant>> {
        let now = Instant::now();
        // First, because a query that is sent now has a deadline.
        let mut due: Vec<_> = self.monitor.ask(now).into_iter().collect();
        due.extend(self.deadlines().into_iter().map(|(at, _)| at));
        let servers = self.servers.iter_mut();
        due.extend(servers.filter_map(|server| server.go_on(now)));
        due.extend(self.silent_at);
        due.extend(self.prompt_at);
        if let Some(terminal) = &mut self.terminal
            && !terminal.is_taken()
        {
            terminal.take()?;
            due.push(now + RETRY);
        }
        Ok(due.into_iter().min())
    }

    fn deadlines(&self) -> Vec<(Instant, Deadline)> {
        let failure = self.failure_shown.map(|at| at + FAILURE_GRACE);
        let servers = self.servers.iter().enumerate().map(|(index, server)| {
            let end = server.ended_at().map(|at| at + SERVER_GRACE);
            (end, Deadline::Server(index))
        });
        [
            (self.ends_at, Deadline::TimeLimit),
            (self.monitor.deadline(), Deadline::Answer),
            (failure, Deadline::FailureShown),
        ]
        .into_iter()
        .chain(servers)
        .filter_map(|(at, deadline)| Some((at?, deadline)))
        .collect()
    }

    fn outcome_of_deadline(&self, deadline: Deadline) -> Outcome {
        match deadline {
            // What the console showed is judged at the end.
            Deadline::TimeLimit | Deadline::FailureShown => Outcome::TimedOut,
            Deadline::Server(index) => self.servers[index].failure(),
            Deadline::Answer => {
                let said = self.servers.iter().map(|server| server.errors.text());
                let seconds = ANSWER_LIMIT.as_secs();
                Outcome::ServerFailed {
                    what: format!(
                        "QEMU did not answer within {seconds} s; a server may be stopped or hang"
                    ),
                    stderr: said.collect(),
                }
            }
        }
    }

    /// Stops this process and its children, as a shell stops a job, until SIGCONT.
    fn stop(&mut self) -> Result<()> {
        let Some(terminal) = &mut self.terminal else {
            return Ok(());
        };
        if terminal.job.is_asked_to_stop() {
            terminal.raw = None;
            let since = Instant::now();
            self.qemu.signal(Signal::STOP);
            self.servers
                .iter()
                .for_each(|server| server.signal(Signal::STOP));
            terminal.job.stop().context("cannot stop")?;
            self.servers
                .iter()
                .for_each(|server| server.signal(Signal::CONT));
            self.qemu.signal(Signal::CONT);
            self.monitor.was_stopped();
            let stopped = since.elapsed();
            // The guest was not silent in this time, but stopped, too.
            for at in [
                &mut self.ends_at,
                &mut self.silent_at,
                &mut self.prompt_at,
                &mut self.failure_shown,
            ] {
                *at = at.and_then(|at| at.checked_add(stopped));
            }
            for server in &mut self.servers {
                server.was_stopped(stopped);
            }
            self.stopped += stopped;
        }
        terminal.take()
    }

    fn outcome_of_exit(&mut self, status: ExitStatus) -> Result<Outcome> {
        let code = status.code();
        if let Some(status) = code.and_then(|code| firmware_status(self.machine.board.arch(), code))
        {
            return Ok(Outcome::FirmwareExit(status));
        }
        match self.monitor.shutdown() {
            Some(Shutdown::Quit) => return Ok(Outcome::Interrupted),
            Some(Shutdown::Panic) => return Ok(Outcome::Panic),
            Some(Shutdown::Reset) if code == Some(0) => return Ok(Outcome::Reset),
            Some(_) if code == Some(0) => return Ok(Outcome::PowerOff),
            _ => {}
        }
        // QEMU fails when a server fails, and the server's own messages say more.
        let now = Instant::now();
        let deadline = now + END_GRACE;
        let limit = self.ends_at.map(|at| at.max(now + FORCED_GRACE));
        let deadline = limit.map_or(deadline, |limit| limit.min(deadline));
        for index in 0..self.servers.len() {
            if self.servers[index].is_external() {
                self.wait_for_server(index, deadline)?;
            }
            self.servers[index].note_end()?;
            if let Some(failure) = self.servers[index].own_failure()? {
                return Ok(failure);
            }
        }
        Ok(Outcome::QemuFailed {
            status: status.to_string(),
            stderr: self.errors.text(),
        })
    }

    /// Waits for events; the result may be empty.
    fn wait(&self, limit: Option<Duration>) -> Result<Vec<Source>> {
        let sources = self.sources();
        let fds: Vec<_> = sources.iter().map(|(_, fd, flags)| (*fd, *flags)).collect();
        let ready = ready(&fds, limit).context("cannot wait for QEMU")?;
        let woken = sources.iter().zip(ready).filter(|(_, ready)| *ready);
        Ok(woken.map(|((source, ..), _)| *source).collect())
    }

    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let stdout = self.stdout.as_ref().map(AsFd::as_fd);
        let spool = match &self.output {
            Output::Shown(spool) => Some(spool),
            Output::Captured(_) | Output::Closed => None,
        };
        // If the spool is full, the console is not read, so the guest waits.
        let has_room = spool.is_none_or(Spool::has_room);
        let mut sources = vec![
            (Source::Interrupt, Some(self.interrupt)),
            (
                Source::JobControl,
                self.terminal.as_ref().map(|it| it.job.fd()),
            ),
            (Source::QemuEnd, Some(self.qemu.ended())),
            (Source::Console, stdout.filter(|_| has_room)),
            (Source::Output, spool.map(Spool::news)),
            (Source::Errors, self.errors.fd()),
            (Source::Monitor, self.monitor.fd()),
        ];
        for (index, server) in self.servers.iter().enumerate() {
            sources.push((Source::ServerEnd(index), server.end()));
            sources.push((Source::ServerErrors(index), server.errors.fd()));
        }
        let keys = self.keys.as_ref().and_then(Keys::interest);
        sources
            .into_iter()
            .filter_map(|(source, fd)| Some((source, fd?, PollFlags::IN)))
            .chain(keys.map(|(fd, flags)| (Source::Keys, fd, flags)))
            .collect()
    }

    fn serve(&mut self, source: Source) -> Result<()> {
        match source {
            Source::JobControl => self.stop()?,
            Source::Console => drop(self.read_console()?),
            Source::Errors => drop(self.errors.read()?),
            Source::Monitor => drop(self.monitor.read()?),
            Source::Keys => {
                if let Some(keys) = &mut self.keys
                    && !keys.advance().context("cannot pass on standard input")?
                {
                    self.keys = None;
                }
            }
            Source::ServerEnd(index) => self.servers[index].note_end()?,
            Source::ServerErrors(index) => drop(self.servers[index].errors.read()?),
            Source::Interrupt | Source::QemuEnd | Source::Output => {}
        }
        Ok(())
    }

    /// Reads the available output; returns its size.
    fn read_console(&mut self) -> Result<usize> {
        let Some(stream) = &mut self.stdout else {
            return Ok(0);
        };
        let Some(bytes) = read_some(&mut stream.take(self.at_a_time))? else {
            self.stdout = None;
            return Ok(0);
        };
        let came = self.watcher.feed(&bytes)?;
        self.take_steps(came);
        let now = Instant::now();
        self.silent_at = self.watcher.looks_ahead().then(|| now + SILENCE);
        let waits = self.keys.as_ref().is_some_and(Keys::waits_for_prompt);
        self.prompt_at = waits.then(|| match self.watcher.is_cut() {
            true => now + SILENCE,
            false => now + LONG_SILENCE,
        });
        match &mut self.output {
            Output::Captured(captured) => captured.extend_from_slice(&bytes),
            Output::Shown(spool) => spool.push(&bytes),
            Output::Closed => {}
        }
        Ok(bytes.len())
    }

    /// Types the texts of --send and performs the test's steps that are due.
    fn take_steps(&mut self, came: Came) {
        for text in came.answers {
            if let Some(keys) = &mut self.keys {
                keys.type_text(&text);
            }
        }
        for _ in 0..came.awaited {
            take_step(&mut self.steps, &mut self.servers, self.keys.as_mut());
        }
    }

    /// Reads the rest of QEMU's output after it has ended.
    fn drain(&mut self) -> Result<()> {
        read_rest(
            self,
            |run| Some(run.stdout.as_ref()?.as_fd()),
            Self::read_console,
        )?;
        self.errors.drain()?;
        self.monitor.drain()
    }
}

fn take_step(
    steps: &mut std::slice::IterMut<'_, Step<'_>>,
    servers: &mut [Serving],
    keys: Option<&mut Keys>,
) {
    match (steps.next(), keys) {
        (Some((_, Act::Strike(act))), _) => act(&mut Servers(servers)),
        (Some((_, Act::Type(text))), Some(keys)) => keys.type_text(text.as_bytes()),
        // The console has no input.
        (Some((_, Act::Type(_))), None) | (None, _) => {}
    }
}

/// Starts QEMU. A `narrow` console buffers as little unread output as possible.
fn spawn(
    machine: &Machine,
    wiring: &Wiring,
    console: Console,
    narrow: bool,
) -> Result<(Process, Option<File>)> {
    let mut command = machine.invocation(wiring).command();
    command.stdin(match console {
        Console::Capture if !narrow => Stdio::null(),
        Console::Terminal | Console::Capture => Stdio::piped(),
    });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut ours = None;
    if narrow {
        let (end, qemus) = UnixStream::pair().context("cannot make a console")?;
        // socket(7): the kernel raises this to its minimum, which six writes of one byte fill.
        rustix::net::sockopt::set_socket_send_buffer_size(&qemus, 0)
            .context("cannot make a console")?;
        command.stdout(OwnedFd::from(qemus));
        ours = Some(OwnedFd::from(end));
    }
    let mut qemu = Process::spawn(&mut command, None).map_err(|error| {
        match error.root_cause().downcast_ref::<io::Error>() {
            Some(cause) if cause.kind() == io::ErrorKind::NotFound => {
                let package = machine.board.arch().qemu_package();
                let remedy = format!(
                    "install QEMU (Debian: apt-get install {package}), or name it with --qemu"
                );
                remedied(&error, remedy)
            }
            Some(_) if machine.qemu.is_some() => {
                remedied(&error, "name QEMU's program with --qemu")
            }
            Some(_) => remedied(&error, "`bootshare-host doctor` looks for what is missing"),
            None => error,
        }
    })?;
    let stdout = ours.or(qemu.child.stdout.take().map(OwnedFd::from));
    Ok((qemu, stdout.map(File::from)))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::Board;

    #[test]
    fn a_second_attempt_gets_the_rest_of_the_limit() {
        let mut machine = Machine::new(Board::X86_64Q35, Path::new("firmware"));
        machine.accel = Accel::Kvm;
        machine.fallback = Some(|_| ());
        let hour = Duration::from_secs(3600);
        let now = Instant::now();
        for (ends_at, attempts) in [(None, 2), (Some(now + hour), 2), (Some(now), 1)] {
            let count = Cell::new(0);
            let run = |machine: &Machine| {
                count.set(count.get() + 1);
                let failed = Outcome::QemuFailed {
                    status: "exit status: 1".to_owned(),
                    stderr: String::new(),
                };
                Ok((failed, machine.time_limit))
            };
            let last = machine.or_translated(run, |(failed, _)| (failed, &[], ends_at));
            assert_eq!(count.get(), attempts, "{ends_at:?}");
            let (_, limit) = last.unwrap();
            assert_eq!(limit.is_some(), ends_at == Some(now + hour));
            assert!(limit.is_none_or(|limit| limit <= hour));
        }
    }
}
