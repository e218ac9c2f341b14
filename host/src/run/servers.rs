//! The servers of a run: starting them, making them fail in tests, and how they end.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::process::Signal;

use super::{END_GRACE, Outcome};
use crate::explain::Explain;
use crate::process::{Errors, Process};
use crate::qemu::Machine;
use crate::qmp::LISTEN;
use crate::serve::{self, STOP_LIMIT, Trace};
use crate::virtiofsd::Virtiofsd;

/// The servers of a run, by the index of their share in [`Machine::shares`], for tests that make
/// them fail. A failure caused by a test does not fail the run.
pub struct Servers<'a>(pub(super) &'a mut [Serving]);

impl Servers<'_> {
    /// Kills a server and waits for its end.
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

    /// Stops a server with SIGSTOP, if it is a process of its own.
    pub fn stop(&mut self, index: usize) {
        self.0[index].signal(Signal::STOP);
    }

    /// Stops a server for `duration`.
    pub fn stop_for(&mut self, index: usize, duration: Duration) {
        self.stop(index);
        self.0[index].stopped_until = Some(Instant::now() + duration);
    }
}

enum Running {
    External(Process),
    Embedded(serve::Server),
}

/// A server and the share it serves.
pub(super) struct Serving {
    server: Running,
    share: String,
    pub(super) errors: Errors,
    ended: Option<Ended>,
    /// Whether a test killed it on purpose: that is no failure.
    killed: bool,
    stopped_until: Option<Instant>,
}

/// How a server ended, and when.
struct Ended {
    how: String,
    failed: bool,
    at: Instant,
}

/// Starts a server for each share; returns them, and their sockets in `dir`.
pub(super) fn start(machine: &Machine, dir: &Path) -> Result<(Vec<Serving>, Vec<PathBuf>)> {
    let external = machine.server.as_deref().map(Virtiofsd::ask).transpose()?;
    let trace = machine.trace.as_deref().map(Trace::create).transpose()?;
    let trace = trace.map(Arc::new);
    let (mut servers, mut sockets) = (Vec::new(), Vec::new());
    for (index, share) in machine.shares.iter().enumerate() {
        let socket = super::socket(dir, &format!("fs{index}"))?;
        let listener = UnixListener::bind(&socket).explain("cannot listen for QEMU", LISTEN)?;
        let mut errors = Errors::default();
        let server = match &external {
            Some(server) => {
                let mut process = server.start(share, listener, machine.thread_pool_size)?;
                errors = process.errors();
                Running::External(process)
            }
            None => {
                let options = machine.serve_options(share, trace.clone());
                Running::Embedded(serve::Server::start(&options, listener)?)
            }
        };
        servers.push(Serving {
            server,
            share: share.to_string(),
            errors,
            ended: None,
            killed: false,
            stopped_until: None,
        });
        sockets.push(socket);
    }
    Ok((servers, sockets))
}

impl Serving {
    pub(super) fn signal(&self, signal: Signal) {
        // After the process was reaped, its number may belong to another process.
        if self.ended.is_none()
            && !self.killed
            && let Running::External(process) = &self.server
        {
            process.signal(signal);
        }
    }

    /// Becomes readable when the server has ended or failed; `None` once that was recorded.
    pub(super) fn end(&self) -> Option<BorrowedFd<'_>> {
        self.ended.is_none().then(|| match &self.server {
            Running::External(process) => process.ended(),
            Running::Embedded(server) => server.failed(),
        })
    }

    /// Sends SIGCONT to a stopped server if its time is over; otherwise returns when it will be.
    pub(super) fn go_on(&mut self, now: Instant) -> Option<Instant> {
        if self.stopped_until.is_some_and(|at| at <= now) {
            self.stopped_until = None;
            self.signal(Signal::CONT);
        }
        self.stopped_until
    }

    /// Records how the server ended, if it has.
    pub(super) fn note_end(&mut self) -> Result<()> {
        if self.ended.is_some() {
            return Ok(());
        }
        let end = match &mut self.server {
            Running::External(process) => process
                .wait_until(Instant::now())?
                .map(|status| (status.to_string(), !status.success())),
            Running::Embedded(server) => server.failure().map(|how| (how, true)),
        };
        let at = Instant::now();
        self.ended = end.map(|(how, failed)| Ended { how, failed, at });
        Ok(())
    }

    /// This process was stopped for so long: that does not count as time since the server's end.
    pub(super) fn was_stopped(&mut self, time: Duration) {
        if let Some(ended) = &mut self.ended {
            ended.at += time;
        }
    }

    /// When it ended, unless a test killed it.
    pub(super) fn ended_at(&self) -> Option<Instant> {
        let ended = self.ended.as_ref().filter(|_| !self.killed);
        ended.map(|ended| ended.at)
    }

    /// The outcome of the run if the server has failed without a test's doing. Its standard error
    /// is read to the end.
    pub(super) fn own_failure(&mut self) -> Result<Option<Outcome>> {
        let ended = self.ended.as_ref().filter(|_| !self.killed);
        if !ended.is_some_and(|ended| ended.failed) {
            return Ok(None);
        }
        self.errors.drain()?;
        Ok(Some(self.failure()))
    }

    /// The outcome of a run that cannot continue without this server.
    pub(super) fn failure(&self) -> Outcome {
        let how = self.ended.as_ref();
        let how = how.map_or_else(String::new, |ended| format!(" ({})", ended.how));
        let what = match self.server {
            Running::External(_) => "ended before the machine did",
            Running::Embedded(_) => "failed",
        };
        Outcome::ServerFailed {
            what: format!("the server of {} {what}{how}", self.share),
            stderr: self.errors.text(),
        }
    }

    /// The first file that the guest could not read because of the host's permissions, and the
    /// reason.
    pub(super) fn denied(&self) -> Option<String> {
        match &self.server {
            Running::External(_) => None,
            Running::Embedded(server) => server.denied(),
        }
    }

    /// What was asked for last, if the server is our own.
    pub(super) fn last_requests(&self) -> Option<String> {
        match &self.server {
            Running::External(_) => None,
            Running::Embedded(server) => {
                let requests = server.last_requests()?;
                Some(format!(
                    "the share {} answered last: {requests}",
                    self.share
                ))
            }
        }
    }

    /// Whether it is a program of its own.
    pub(super) fn is_external(&self) -> bool {
        matches!(self.server, Running::External(_))
    }

    /// Asks the server to end. One that is a program of its own ends with QEMU's connection.
    pub(super) fn begin_stop(&self) {
        if let Running::Embedded(server) = &self.server {
            server.begin_stop();
        }
    }

    /// Becomes readable when the server has ended.
    pub(super) fn gone(&self) -> BorrowedFd<'_> {
        match &self.server {
            Running::External(process) => process.ended(),
            Running::Embedded(server) => server.ended(),
        }
    }

    /// How long the server may take to end.
    pub(super) fn grace(&self) -> Duration {
        match self.is_external() {
            true => END_GRACE,
            false => STOP_LIMIT,
        }
    }

    /// Stops the server, which may end by itself until `deadline`. Returns the run's outcome if the
    /// server has failed, even if the machine did not notice.
    pub(super) fn finish(&mut self, deadline: Instant) -> Result<Option<Outcome>> {
        match &mut self.server {
            Running::External(process) => {
                if process.wait_until(deadline)?.is_none() {
                    process.kill();
                }
                Ok(None)
            }
            Running::Embedded(server) => {
                server.stop_by(deadline);
                self.note_end()?;
                Ok(self.ended.is_some().then(|| self.failure()))
            }
        }
    }
}
