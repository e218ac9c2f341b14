//! QEMU's connections: one at a time, each in a thread of its own, and the way to end them.

use std::io::{PipeReader, PipeWriter, pipe};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::net::{RecvFlags, recv};
use vhost::vhost_user::{BackendReqHandler, Error};

use super::device::{Device, Workers};
use super::lock;
use super::service::Service;
use crate::fd::{either, ready};

/// How long the rest of a message may take.
const MESSAGE_LIMIT: Duration = Duration::from_secs(1);

/// How long QEMU's end is waited for after half a message.
const GRACE: Duration = Duration::from_millis(50);

/// The bytes of a message's header.
const HEADER: usize = 12;

/// What went wrong.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) what: String,
    /// Whether it is the server's own, not one of a connection.
    pub(super) fatal: bool,
}

/// How a server fares; shared by all its threads.
pub(super) struct Status {
    /// Readable as soon as the server has failed.
    failed: OwnedFd,
    failure: Mutex<Option<Failure>>,
    /// Readable as soon as the server is to end.
    stop: OwnedFd,
    stopping: AtomicBool,
    /// The socket of the QEMU that is connected.
    connection: Mutex<Option<UnixStream>>,
    /// Readable as soon as a QEMU has come and gone.
    pub(super) served: OwnedFd,
}

impl Status {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            failed: event()?,
            failure: Mutex::default(),
            stop: event()?,
            stopping: AtomicBool::new(false),
            connection: Mutex::default(),
            served: event()?,
        })
    }

    /// Notes what is wrong with the server, unless something was before.
    pub(super) fn fail(&self, what: &str) {
        self.note(what.to_owned(), true);
    }

    fn note(&self, what: String, fatal: bool) {
        lock(&self.failure).get_or_insert(Failure { what, fatal });
        raise(&self.failed);
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        lock(&self.failure).clone()
    }

    /// What went wrong, so that it is not told again.
    pub(super) fn take_failure(&self) -> Option<Failure> {
        let mut failure = lock(&self.failure);
        // There is nothing to read when it is read already.
        let _ = rustix::io::read(&self.failed, &mut [0; 8]);
        failure.take()
    }

    /// Becomes readable when something has gone wrong.
    pub(super) fn failed(&self) -> BorrowedFd<'_> {
        self.failed.as_fd()
    }

    /// Ends the server soon.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        raise(&self.stop);
        self.hang_up();
    }

    /// Ends the connection that QEMU has.
    pub(super) fn hang_up(&self) {
        if let Some(stream) = &*lock(&self.connection) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn event() -> Result<OwnedFd> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    eventfd(0, flags).context("cannot make an eventfd")
}

fn raise(event: &OwnedFd) {
    // It fails when it is raised already, 2^64 times.
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

/// A connection and its thread; dropping it waits for its end.
struct Connection {
    stream: UnixStream,
    /// At its end when the thread is.
    ended: PipeReader,
    /// Whether it was told that others are turned away.
    told: bool,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // It contains its panics.
            let _ = thread.join();
        }
    }
}

impl Connection {
    /// Whether QEMU has hung up, though its thread may be at work.
    fn is_gone(&self) -> bool {
        let fds = [(self.stream.as_fd(), PollFlags::RDHUP)];
        ready(&fds, Some(Duration::ZERO)).is_ok_and(|ready| ready == [true])
    }
}

/// Serves each QEMU that connects, until told to stop.
pub(super) fn serve(
    service: &Arc<Service>,
    status: &Arc<Status>,
    listener: &UnixListener,
    request_queues: usize,
    threads: usize,
    tag: &str,
) {
    let served = (|| -> Result<()> {
        let workers = Arc::new(Workers::new(service, status, threads)?);
        let mut connection: Option<Connection> = None;
        loop {
            let mut fds = vec![(status.stop.as_fd(), PollFlags::IN)];
            fds.extend(
                connection
                    .iter()
                    .map(|now| (now.ended.as_fd(), PollFlags::IN)),
            );
            // One that connects while the last one's requests end is not one too many.
            let listens = connection.as_ref().is_none_or(|now| !now.is_gone());
            if listens {
                fds.push((listener.as_fd(), PollFlags::IN));
            }
            let ready = ready(&fds, None).context("cannot wait for QEMU")?;
            let [stop, .., last] = ready[..] else {
                bail!("nothing to wait for");
            };
            if stop || status.stopping.load(Ordering::SeqCst) {
                status.hang_up();
                return Ok(());
            }
            if connection.is_some() && ready[1] {
                connection = None;
                *lock(&status.connection) = None;
                service.forget_all();
                raise(&status.served);
            } else if listens && last && connection.as_ref().is_none_or(|now| !now.is_gone()) {
                let stream = match listener.accept() {
                    Ok((stream, _)) => stream,
                    // It has given up.
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => continue,
                    Err(error) => return Err(error).context("cannot accept a connection"),
                };
                if let Some(now) = &mut connection {
                    if !std::mem::replace(&mut now.told, true) {
                        eprintln!(
                            "bootshare-host: warning: {tag}: a second QEMU connects while the \
                             share is in use, and is turned away: start a server for each"
                        );
                    }
                    continue;
                }
                connection = Some(connect(status, &workers, stream, request_queues)?);
            }
        }
    })();
    if let Err(error) = served {
        status.fail(&format!("{error:#}"));
    }
}

fn connect(
    status: &Arc<Status>,
    workers: &Arc<Workers>,
    stream: UnixStream,
    request_queues: usize,
) -> Result<Connection> {
    let cloned = || stream.try_clone().context("cannot keep a connection");
    let known = cloned()?;
    *lock(&status.connection) = Some(cloned()?);
    let (ended, end) = pipe().context("cannot make a pipe")?;
    let (status, workers) = (Arc::clone(status), Arc::clone(workers));
    let thread = thread::Builder::new()
        .name("share-qemu".into())
        .spawn(move || {
            let _end: PipeWriter = end;
            if let Err(error) = converse(&workers, stream, request_queues) {
                status.note(format!("{error:#}"), false);
            }
        })
        .context("cannot start a thread")?;
    Ok(Connection {
        stream: known,
        ended,
        told: false,
        thread: Some(thread),
    })
}

/// Ends a connection when dropped.
struct HangUp<'a>(&'a UnixStream);

impl Drop for HangUp<'_> {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Does what QEMU's messages say until it hangs up.
fn converse(workers: &Arc<Workers>, stream: UnixStream, request_queues: usize) -> Result<()> {
    stream.set_read_timeout(Some(MESSAGE_LIMIT))?;
    let peer = stream.try_clone()?;
    let device = Device::new(workers, request_queues, event()?)?;
    let lost = device.lost();
    let device = Arc::new(Mutex::new(device));
    let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&device));
    // Whoever connects from its end on is not one too many.
    let _hang_up = HangUp(&peer);
    loop {
        let (_, gone) = either(peer.as_fd(), lost.as_fd())?;
        if gone {
            bail!("QEMU's memory file was cut short: its connection is ended");
        }
        // The library waits for the rest of a header without a limit.
        let mut header = [0; HEADER];
        let there = recv(&peer, &mut header, RecvFlags::PEEK | RecvFlags::WAITALL);
        let half = there.is_ok_and(|(_, there)| (1..HEADER).contains(&there));
        let handled = if half {
            Err(Error::PartialMessage)
        } else {
            handler.handle_request()
        };
        let Err(error) = handled else {
            continue;
        };
        // Who is killed in the middle of a message is gone soon.
        let hung_up = ready(&[(peer.as_fd(), PollFlags::RDHUP)], Some(GRACE))?;
        return match error {
            // QEMU's end, or ours, also in the middle of a message.
            Error::Disconnected | Error::SocketBroken(_) | Error::SocketError(_) => Ok(()),
            _ if hung_up == [true] => Ok(()),
            error => Err(match lock(&device).no_queue {
                // QEMU does not ask how many queues there are.
                Some(queue) => anyhow!(
                    "QEMU asked for queue {queue}, which is not there; its num-request-queues may be \
                     {request_queues}: allow more with --request-queues"
                ),
                None => {
                    anyhow!("a message of QEMU's makes no sense ({error}): its connection is ended")
                }
            }),
        };
    }
}
