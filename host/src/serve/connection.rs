//! Accepts QEMU's connections, one at a time, and handles each in a thread of its own.

use std::io::{PipeReader, PipeWriter, pipe};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::PollFlags;
use rustix::net::{RecvFlags, recv};
use vhost::vhost_user::{BackendReqHandler, Error};

use super::device::{Device, Workers};
use super::service::Service;
use super::status::{Status, event, raise};
use crate::explain::text_of;
use crate::fd::{either, ready};
use crate::lock::lock;
use crate::output;

/// How long the rest of a message may take.
const MESSAGE_LIMIT: Duration = Duration::from_secs(1);

/// How long to wait after a faulty message for QEMU to hang up: a QEMU that was killed while it sent
/// the message is not reported.
const GRACE: Duration = Duration::from_millis(50);

/// The size of a vhost-user message's header.
const HEADER: usize = 12;

/// A connection and its thread. Dropping it joins the thread.
struct Connection {
    stream: UnixStream,
    /// Reports the end of the file when the thread ends.
    ended: PipeReader,
    /// Whether it was reported that a second QEMU was refused.
    reported: bool,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // The thread catches its own panics.
            let _ = thread.join();
        }
    }
}

impl Connection {
    /// Whether QEMU has hung up; the thread may still be answering its requests.
    fn is_gone(&self) -> bool {
        let fds = [(self.stream.as_fd(), PollFlags::RDHUP)];
        ready(&fds, Some(Duration::ZERO)).is_ok_and(|ready| ready == [true])
    }
}

/// Serves each QEMU that connects, until [`Status::stop`].
pub(super) fn serve(
    service: &Arc<Service>,
    status: &Arc<Status>,
    listener: &UnixListener,
    request_queues: usize,
    threads: usize,
    tag: &str,
) {
    let served = (|| -> Result<()> {
        let workers = Workers::new(service, status, threads).context("cannot start threads")?;
        let workers = Arc::new(workers);
        let mut connection: Option<Connection> = None;
        loop {
            let mut fds = vec![(status.stop.as_fd(), PollFlags::IN)];
            fds.extend(
                connection
                    .iter()
                    .map(|now| (now.ended.as_fd(), PollFlags::IN)),
            );
            // A QEMU that connects after the last one hung up waits until that one's requests end;
            // it is not refused.
            let listens = connection.as_ref().is_none_or(|now| !now.is_gone());
            if listens {
                fds.push((listener.as_fd(), PollFlags::IN));
            }
            let ready = ready(&fds, None).context("cannot wait for QEMU")?;
            let [stop, .., last] = ready[..] else {
                bail!("nothing to wait for");
            };
            if stop {
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
                    // The peer has closed it before it was accepted.
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => continue,
                    Err(error) => return Err(error).context("cannot accept a connection"),
                };
                if let Some(now) = &mut connection {
                    if !std::mem::replace(&mut now.reported, true) {
                        output::note(format_args!(
                            "warning: {tag}: a second QEMU connects while the share is in use, and \
                             is refused: start a server for each"
                        ));
                    }
                    continue;
                }
                connection = Some(connect(status, &workers, stream, request_queues)?);
            }
        }
    })();
    if let Err(error) = served {
        status.fail(&text_of(&error));
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
                status.note(text_of(&error), false);
            }
        })
        .context("cannot start a thread")?;
    Ok(Connection {
        stream: known,
        ended,
        reported: false,
        thread: Some(thread),
    })
}

/// Closes a connection when dropped.
struct HangUp<'a>(&'a UnixStream);

impl Drop for HangUp<'_> {
    fn drop(&mut self) {
        // The peer may have closed it already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Handles QEMU's messages until it hangs up.
fn converse(workers: &Arc<Workers>, stream: UnixStream, request_queues: usize) -> Result<()> {
    stream.set_read_timeout(Some(MESSAGE_LIMIT))?;
    let peer = stream.try_clone()?;
    let device = Device::new(workers, request_queues, event()?).context("cannot start threads")?;
    let lost = device.lost();
    let device = Arc::new(Mutex::new(device));
    let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&device));
    // From here on another QEMU that connects is not refused.
    let _hang_up = HangUp(&peer);
    loop {
        let (_, gone) = either(peer.as_fd(), lost.as_fd())?;
        if gone {
            bail!("QEMU's memory file was cut short: the connection is closed");
        }
        // The library waits without a limit for the rest of a header: refuse half a header here.
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
        // A QEMU that was killed while it sent a message hangs up soon.
        let hung_up = ready(&[(peer.as_fd(), PollFlags::RDHUP)], Some(GRACE))?;
        return match error {
            // QEMU or this server closed the connection, possibly in the middle of a message.
            Error::Disconnected | Error::SocketBroken(_) | Error::SocketError(_) => Ok(()),
            _ if hung_up == [true] => Ok(()),
            error => Err(match lock(&device).no_queue {
                // QEMU does not ask for the number of queues.
                Some(queue) => anyhow!(
                    "QEMU asked for queue {queue}, which does not exist; its num-request-queues must not exceed \
                     {request_queues}: allow more with --request-queues"
                ),
                None => {
                    anyhow!("QEMU sent an invalid message ({error}): the connection is closed")
                }
            }),
        };
    }
}
