//! Runs a machine: servers, QEMU, console, time limit, and a clear account of how it ended.

mod outcome;
mod servers;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::PollFlags;
use tempfile::TempDir;

pub use outcome::{Outcome, Report};
pub use servers::Servers;

use crate::console::{Console, Keys, RawMode};
use crate::fd::{read_some, ready};
use crate::interrupt::interrupted;
use crate::process::{Errors, Process};
use crate::qemu::{Machine, Wiring, firmware_status};
use crate::qmp::{ANSWER_LIMIT, Monitor, Shutdown};
use crate::watch::{Found, Watcher};
use servers::Serving;

/// How long QEMU may take to build the machine and connect to the servers.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How long QEMU may go on after a server has ended: at a normal end the two are a moment apart.
const SERVER_GRACE: Duration = Duration::from_secs(2);

/// How long a server may take to end after QEMU has.
const END_GRACE: Duration = Duration::from_secs(2);

/// How long a guest may go on after its console showed a failure: its next lines say more.
const FAILURE_GRACE: Duration = Duration::from_secs(1);

/// A moment of a run at which a test acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment<'a> {
    /// The servers were started, QEMU was not yet.
    Start,
    /// The console has shown this since the step before: a regular expression, for text without
    /// escape sequences in which each line ends with `\n`.
    Console(&'a str),
}

/// What it does then.
pub enum Act<'a> {
    /// Types this at the console.
    Type(&'a str),
    /// Has servers fail, or changes their files.
    Strike(&'a mut dyn FnMut(&mut Servers<'_>)),
}

/// What a test does to a run, and when; each step comes after the one before.
pub type Step<'a> = (Moment<'a>, Act<'a>);

/// What woke poll(2).
#[derive(Clone, Copy)]
enum Source {
    Interrupt,
    QemuEnd,
    Console,
    Errors,
    Monitor,
    Keys,
    ServerEnd(usize),
    ServerErrors(usize),
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

/// A machine that is running. Fields are dropped in order: the terminal is restored last.
struct Run<'a, 's> {
    machine: &'a Machine,
    console: Console,
    servers: Vec<Serving>,
    qemu: Process,
    stdout: Option<File>,
    errors: Errors,
    monitor: Monitor,
    keys: Option<Keys>,
    /// The sockets; gone as soon as QEMU has connected, so that no death of ours leaves any.
    sockets: Option<TempDir>,
    captured: Vec<u8>,
    watcher: Watcher,
    failure_shown: Option<Instant>,
    /// Those that are still to come.
    steps: std::slice::IterMut<'a, Step<'s>>,
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
        Run::start(self, console, &mut [])?.finish()
    }

    /// Runs the machine to its end, its console captured, and takes `steps` on its way.
    ///
    /// The guest waits meanwhile: its console takes some 10 bytes more than were read, so what a step
    /// does at the start of a longer piece of text takes effect before the guest is done writing that.
    ///
    /// # Errors
    /// As [`Machine::run`]; or what a step waits for is no regular expression.
    pub fn run_steps(&self, steps: &mut [Step<'_>]) -> Result<Report> {
        Run::start(self, Console::Capture, steps)?.finish()
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

/// Where a socket is in that directory.
///
/// # Errors
/// The path is too long for a socket.
pub fn socket(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    // unix(7): sun_path holds 107 bytes and a NUL.
    ensure!(
        path.as_os_str().len() <= 107,
        "{} is too long for a socket: point TMPDIR at a shorter directory",
        path.display()
    );
    Ok(path)
}

impl<'a, 's> Run<'a, 's> {
    fn start(machine: &'a Machine, console: Console, steps: &'a mut [Step<'s>]) -> Result<Self> {
        machine.check()?;
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
        let interactive = console.is_interactive();
        let wiring = Wiring {
            sockets: paths,
            qmp: Some(qmp),
            interactive,
        };
        let (mut qemu, stdout) = spawn(machine, &wiring, console, narrow)?;
        let keys = qemu.child.stdin.take();
        let keys = keys.map(|stdin| Keys::new(stdin, console == Console::Capture));
        let raw = interactive.then(RawMode::enter).transpose();
        Ok(Self {
            machine,
            console,
            servers,
            stdout,
            errors: qemu.errors(),
            qemu,
            monitor,
            keys: keys.transpose()?,
            sockets: Some(sockets),
            captured: Vec::new(),
            watcher,
            failure_shown: None,
            steps,
            started: Instant::now(),
            interrupt,
            _raw: raw.context("cannot set the terminal to raw mode")?,
        })
    }

    fn finish(mut self) -> Result<Report> {
        let mut outcome = self.run_until_end()?;
        let duration = self.started.elapsed();
        self.qemu.kill();
        self.drain()?;
        let deadline = Instant::now() + END_GRACE;
        for server in &mut self.servers {
            if let Some(failure) = server.finish(deadline)? {
                outcome = failure;
            }
        }
        Ok(Report {
            outcome: outcome::judge(&self.machine.watch, &mut self.watcher, outcome)?,
            last_lines: self.watcher.last_lines(),
            is_cut: self.watcher.is_cut(),
            console: self.captured,
            steps_left: self.steps.len(),
            duration,
        })
    }

    fn run_until_end(&mut self) -> Result<Outcome> {
        loop {
            let now = Instant::now();
            if self.monitor.is_up() {
                self.sockets = None;
            }
            let mut due: Vec<_> = self.monitor.ask(now).into_iter().collect();
            due.extend(
                self.servers
                    .iter_mut()
                    .filter_map(|server| server.go_on(now)),
            );
            let deadlines = self.deadlines();
            if let Some((_, deadline)) = deadlines.iter().find(|(at, _)| *at <= now) {
                return Ok(self.outcome_of_deadline(*deadline));
            }
            due.extend(deadlines.iter().map(|(at, _)| *at));
            for source in self.wait(due.into_iter().min().map(|at| at - now))? {
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

    fn deadlines(&self) -> Vec<(Instant, Deadline)> {
        let limit = self.machine.time_limit.map(|limit| self.started + limit);
        let start = self.sockets.as_ref().map(|_| self.started + START_LIMIT);
        let failure = self.failure_shown.map(|at| at + FAILURE_GRACE);
        let servers = self.servers.iter().enumerate().map(|(index, server)| {
            let end = server.ended_at().map(|at| at + SERVER_GRACE);
            (end, Deadline::Server(index))
        });
        [
            (limit, Deadline::TimeLimit),
            (start, Deadline::Start),
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
            // What was shown is judged at the end.
            Deadline::TimeLimit | Deadline::FailureShown => Outcome::TimedOut,
            Deadline::Server(index) => self.servers[index].failure(),
            Deadline::Start => self.qemu_waits("build the machine", START_LIMIT),
            Deadline::Answer => self.qemu_waits("answer", ANSWER_LIMIT),
        }
    }

    fn qemu_waits(&self, what: &str, limit: Duration) -> Outcome {
        let said = self.servers.iter().map(|server| server.errors.text());
        Outcome::ServerFailed {
            what: format!(
                "QEMU did not {what} within {} s; a server may be stopped or hang",
                limit.as_secs()
            ),
            stderr: said.collect(),
        }
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
        // QEMU fails when a server does: the server's own words say more.
        for server in &mut self.servers {
            server.note_end(END_GRACE)?;
            if let Some(failure) = server.own_failure()? {
                return Ok(failure);
            }
        }
        Ok(Outcome::QemuFailed {
            status: status.to_string(),
            stderr: self.errors.text(),
        })
    }

    /// Waits for something to happen; what did may be nothing.
    fn wait(&self, limit: Option<Duration>) -> Result<Vec<Source>> {
        let sources = self.sources();
        let fds: Vec<_> = sources.iter().map(|(_, fd, flags)| (*fd, *flags)).collect();
        let ready = ready(&fds, limit).context("cannot wait for QEMU")?;
        let woken = sources.iter().zip(ready).filter(|(_, ready)| *ready);
        Ok(woken.map(|((source, ..), _)| *source).collect())
    }

    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let stdout = self.stdout.as_ref().map(AsFd::as_fd);
        let mut sources = vec![
            (Source::Interrupt, Some(self.interrupt)),
            (Source::QemuEnd, Some(self.qemu.ended())),
            (Source::Console, stdout),
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
            Source::Console => self.read_console()?,
            Source::Errors => self.errors.read()?,
            Source::Monitor => self.monitor.read()?,
            Source::Keys => {
                if let Some(keys) = &mut self.keys
                    && !keys.advance().context("cannot pass on standard input")?
                {
                    self.keys = None;
                }
            }
            Source::ServerEnd(index) => self.servers[index].note_end(Duration::ZERO)?,
            Source::ServerErrors(index) => self.servers[index].errors.read()?,
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
        for _ in 0..self.watcher.feed(&bytes)? {
            take_step(&mut self.steps, &mut self.servers, self.keys.as_mut());
        }
        match self.console {
            Console::Capture => self.captured.extend(bytes),
            Console::Terminal => {
                let mut out = io::stdout().lock();
                out.write_all(&bytes)
                    .and_then(|()| out.flush())
                    .context("cannot show the console")?;
            }
        }
        Ok(())
    }

    /// Reads what the ended QEMU had still to say.
    fn drain(&mut self) -> Result<()> {
        while self.stdout.is_some() {
            self.read_console()?;
        }
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
        (Some((_, Act::Type(text))), Some(keys)) => keys.type_text(text),
        // Nobody reads it.
        (Some((_, Act::Type(_))), None) | (None, _) => {}
    }
}

/// Starts QEMU; a `narrow` console takes next to nothing that we have not read.
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
        // socket(7): the kernel makes it its least, which six writes of a byte fill.
        rustix::net::sockopt::set_socket_send_buffer_size(&qemus, 0)
            .context("cannot make a console")?;
        command.stdout(OwnedFd::from(qemus));
        ours = Some(OwnedFd::from(end));
    }
    let mut qemu = Process::spawn(&mut command, None).map_err(|error| {
        match error.root_cause().downcast_ref::<io::Error>() {
            Some(cause) if cause.kind() == io::ErrorKind::NotFound => error.context(
                "is QEMU installed? On Debian: apt-get install qemu-system-x86 qemu-system-arm",
            ),
            _ => error,
        }
    })?;
    let stdout = ours.or(qemu.child.stdout.take().map(OwnedFd::from));
    Ok((qemu, stdout.map(File::from)))
}
