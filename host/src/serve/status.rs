//! The state of a server, which all its threads share: its first failure, the request to stop, and
//! the connection of QEMU.

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, eventfd};

use crate::lock::lock;

/// A failure of the server or of a connection.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) what: String,
    /// Whether the server has failed, rather than one connection.
    pub(super) fatal: bool,
}

/// The state that all threads of a server share.
pub(super) struct Status {
    /// Readable once there is a failure.
    failed: OwnedFd,
    failure: Mutex<Option<Failure>>,
    /// Readable once the server is to stop, and never read: it stays readable.
    pub(super) stop: OwnedFd,
    /// The socket of the QEMU that is connected.
    pub(super) connection: Mutex<Option<UnixStream>>,
    /// Readable once a QEMU has connected and disconnected.
    pub(super) served: OwnedFd,
}

impl Status {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            failed: event()?,
            failure: Mutex::default(),
            stop: event()?,
            connection: Mutex::default(),
            served: event()?,
        })
    }

    /// Records a failure of the server, unless one is recorded already.
    pub(super) fn fail(&self, what: &str) {
        self.note(what.to_owned(), true);
    }

    /// Records a failure, unless one is recorded already. A failure of the server replaces one of
    /// a connection.
    pub(super) fn note(&self, what: String, fatal: bool) {
        let mut failure = lock(&self.failure);
        if failure.as_ref().is_none_or(|known| fatal && !known.fatal) {
            *failure = Some(Failure { what, fatal });
        }
        drop(failure);
        raise(&self.failed);
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        lock(&self.failure).clone()
    }

    /// The recorded failure, which is then cleared.
    pub(super) fn take_failure(&self) -> Option<Failure> {
        let mut failure = lock(&self.failure);
        // Reading fails if there is no failure.
        let _ = rustix::io::read(&self.failed, &mut [0; 8]);
        failure.take()
    }

    /// Becomes readable when there is a failure.
    pub(super) fn failed(&self) -> BorrowedFd<'_> {
        self.failed.as_fd()
    }

    /// Asks the server to stop, and closes QEMU's connection.
    pub(super) fn stop(&self) {
        raise(&self.stop);
        self.hang_up();
    }

    /// Closes QEMU's connection, if there is one.
    pub(super) fn hang_up(&self) {
        if let Some(stream) = &*lock(&self.connection) {
            // The peer may have closed it already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

pub(super) fn event() -> Result<OwnedFd> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    eventfd(0, flags).context("cannot make an eventfd")
}

pub(super) fn raise(event: &OwnedFd) {
    // It fails only when the counter would overflow: the event is readable then.
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}
