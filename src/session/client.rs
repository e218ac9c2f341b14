//! The blocking client: waits for a session, for one thread or for several.
//!
//! The session is locked for one poll of the device at a time, and never during a wait, so a thread
//! with a long read does not keep the others out.

use super::{Epoch, Options, Part, Priority, Session, Tag, Ticket, transfer::Transfer};
use crate::{
    error::{DeviceError, Error},
    fuse::{Destroy, Errno, Operation, Violation},
    hal::{Clock, Hal, PAGE_SIZE},
};
use core::{fmt, ops::ControlFlow, time::Duration};
use spin::{Mutex, MutexGuard};
use virtio_drivers::transport::Transport;

/// How many times the used ring is polled before the clock is read again: some microseconds.
const POLLS_PER_TICK: u32 = 64;

/// A platform may rest one microsecond for each so many bytes in flight: 32 GiB/s. No host reads a
/// file faster, so it stays busy until the rest ends.
const REST_PER_MICROSECOND: u64 = 32 << 10;
/// Shorter rests, in microseconds, cost more than they save.
const MIN_REST: u64 = 50;

/// How many times a request is sent again after the server answered EINTR or EAGAIN.
pub(super) const RETRIES: u32 = 16;

/// Polls the session. Returns whether the awaited event has happened.
type Ready<'a, T, H> = dyn FnMut(&mut Session<T, H>) -> Result<bool, Error> + 'a;

/// A session, and the clock that times its waits.
///
/// Dropping it resets the device; [`Client::end`] sends DESTROY first. After an error that ended
/// the session, [`Client::resume`] starts another one on the same device.
pub struct Client<T: Transport, C: Clock, H: Hal> {
    session: Mutex<Session<T, H>>,
    clock: C,
}

impl<T: Transport, C: Clock, H: Hal> fmt::Debug for Client<T, C, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The output may go to a logger that uses the share, so the session is not locked while it
        // is written.
        let (tag, epoch) = (self.tag(), self.epoch());
        f.debug_struct("Client")
            .field("tag", &tag)
            .field("epoch", &epoch)
            .finish_non_exhaustive()
    }
}

impl<T: Transport, C: Clock, H: Hal> Client<T, C, H> {
    /// Resets the device, sets it up (virtio 1.2, section 3.1.1) and exchanges INIT.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] if the device can't be set up, [`Error::TimedOut`] if the host does not
    /// answer, [`Error::Protocol`] if it does not speak a version this client knows.
    pub fn start(transport: T, clock: C, options: Options) -> Result<Self, Error> {
        let session = Mutex::new(Session::start(transport, options)?);
        let client = Self { session, clock };
        client.connect()?;
        Ok(client)
    }

    /// Starts another session on the same device after an error ended this one. Does nothing while
    /// the session is connected. Nodes and handles of earlier sessions become invalid.
    ///
    /// # Errors
    ///
    /// As [`Client::start`]. The caller may try again.
    pub fn resume(&self) -> Result<(), Error> {
        self.lock().resume();
        self.connect()
    }

    fn connect(&self) -> Result<(), Error> {
        self.wait(&mut |session| match session.is_connected() {
            false if !session.is_connecting() => Err(session.failure()),
            connected => Ok(connected),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Session<T, H>> {
        self.session.lock()
    }

    /// The number of this session; each session of this client has its own.
    pub fn epoch(&self) -> Epoch {
        self.lock().epoch()
    }

    /// The options of the session.
    pub fn options(&self) -> Options {
        self.lock().options
    }

    /// Whether the session is connected.
    pub fn is_connected(&self) -> bool {
        self.lock().is_connected()
    }

    /// The share's name.
    pub fn tag(&self) -> Tag {
        self.lock().tag()
    }

    /// The minor version of FUSE 7 that was negotiated.
    pub fn minor(&self) -> u32 {
        self.lock().minor()
    }

    /// Sends `operation` and waits for its reply.
    ///
    /// # Errors
    ///
    /// The host's error, or its violation of the protocol; [`Error::TimedOut`] after the deadline;
    /// [`Error::Disconnected`] if `epoch` is not the current session.
    pub fn call<O: Operation>(&self, epoch: Epoch, operation: &O) -> Result<O::Reply, Error> {
        self.exchange(epoch, operation, &mut [])
    }

    /// Sends `operation`, waits for its reply, and copies the variable part of the reply to `data`.
    ///
    /// # Errors
    ///
    /// As [`Client::call`].
    pub fn call_into<O: Operation>(
        &self,
        epoch: Epoch,
        operation: &O,
        data: &mut [u8; PAGE_SIZE],
    ) -> Result<O::Reply, Error> {
        self.exchange(epoch, operation, data)
    }

    fn exchange<O: Operation>(
        &self,
        epoch: Epoch,
        operation: &O,
        page: &mut [u8],
    ) -> Result<O::Reply, Error> {
        let mut pending = Pending {
            client: self,
            ticket: None,
        };
        let (mut retries, mut reply) = (RETRIES, None);
        self.wait(&mut |session| {
            let Some(ticket) = pending.ticket else {
                pending.ticket = if page.is_empty() {
                    session.submit(epoch, operation)
                } else {
                    session.submit_into(epoch, operation)
                }?;
                return Ok(false);
            };
            let answer = session.take_into(operation, ticket, page);
            if let Ok(None) = answer {
                return Ok(false);
            }
            pending.ticket = None;
            if is_again(&answer) && retries > 0 {
                retries = retries.saturating_sub(1);
                return Ok(false);
            }
            reply = answer?;
            Ok(true)
        })?;
        // `ready` is true only once there is a reply.
        reply.ok_or(Error::Disconnected)
    }

    /// Sends `operation` without waiting; its reply is discarded.
    ///
    /// For requests whose failure has no remedy. Does nothing if `epoch` is not the current
    /// session.
    pub fn post<O: Operation>(&self, epoch: Epoch, operation: &O, priority: Priority) {
        let sent = self.wait(&mut |session| session.post(epoch, operation, priority));
        if let Err(error) = sent {
            log::debug!(
                "request {} was not sent: {error}",
                operation.opcode() as u32
            );
        }
    }

    /// Polls until `ready` returns true, as long as the host makes progress. Before an error is
    /// returned, the device was reset, or has failed to confirm the reset in time.
    fn wait(&self, ready: &mut Ready<'_, T, H>) -> Result<(), Error> {
        let (mut looks, mut waited) = (0, false);
        loop {
            let mut session = self.lock();
            let result = ready(&mut session);
            session.kick();
            let error = match result {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    waited = true;
                    if !session.poll() {
                        drop(session);
                        self.pause(&mut looks);
                    }
                    continue;
                }
                // `ready` was false before this, so the failure of the session is the reason.
                Err(Error::Disconnected) if waited => session.failure(),
                Err(error) => error,
            };
            drop(session);
            self.settle();
            return Err(error);
        }
    }

    /// Logs why the session has failed, if it has. Waits until a pending reset is confirmed or has
    /// timed out.
    pub(super) fn settle(&self) {
        let mut looks = 0;
        loop {
            let mut session = self.lock();
            if let Some(error) = session.unsaid() {
                let tag = session.tag();
                // The session is unlocked, because a logger may use the share.
                drop(session);
                // Logged before the reset, because QEMU itself may end at the reset while its
                // server is stopped.
                log::warn!("share {tag}: {error}; resetting the device");
            } else if !session.is_ending() {
                return;
            } else if !session.poll() {
                drop(session);
                self.pause(&mut looks);
            }
        }
    }

    /// Waits a little after a poll that found nothing.
    pub(super) fn pause(&self, looks: &mut u32) {
        let rest = self.lock().lent_bytes() / REST_PER_MICROSECOND;
        let rests = rest >= MIN_REST;
        let mut left = Duration::ZERO;
        if rests || looks.is_multiple_of(POLLS_PER_TICK) {
            let now = self.clock.now();
            left = self.lock().tick(now);
        }
        *looks = looks.wrapping_add(1);
        if rests {
            self.clock.rest(Duration::from_micros(rest).min(left));
        } else {
            self.clock.relax();
        }
    }

    /// Resets the device to take back what it may still hold of a caller's buffer. Returns only
    /// when `is_back` reports that it holds nothing more.
    pub(super) fn recall(&self, is_back: impl Fn(&Session<T, H>) -> bool) {
        if is_back(&self.lock()) {
            return;
        }
        self.lock().disconnect();
        // A device that did not confirm its reset in time may have done so by now.
        self.lock().poll();
        self.settle();
        if !is_back(&self.lock()) {
            self.clock.stop(
                "a virtio-fs device does not confirm its reset and may write to memory at any time: \
                 the machine is stopped; restart it",
            );
        }
    }

    /// Reads all of `parts` directly into their buffers, in chunks of which several are in flight.
    /// Chunks are requested in order; those of the next part follow without a gap.
    ///
    /// `progress` is called from time to time, and before the return, with the number of bytes
    /// read. If it breaks, no more chunks are requested, and the read ends once the chunks in
    /// flight have come back.
    ///
    /// # Errors
    ///
    /// The error of the first part that failed; no more chunks are requested after it.
    /// [`Error::Disconnected`] for a part of another session; [`Error::Cancelled`] if `progress`
    /// broke. [`Part::come`] tells how much of a part was read.
    pub fn read(
        &self,
        parts: &mut [Part<'_>],
        progress: &mut dyn FnMut(&[Part<'_>]) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        Transfer::new(self, parts).run(progress)
    }

    /// Sends DESTROY after every posted request was answered, and resets the device, so that the
    /// next driver finds it in its initial state.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] or [`Error::Protocol`]; the device is reset in any case.
    /// [`DeviceError::ResetNotConfirmed`] if the device does not confirm the reset.
    pub fn end(self) -> Result<(), Error> {
        let epoch = self.epoch();
        self.wait(&mut |session| {
            session.check(epoch)?;
            Ok(!session.any_posted())
        })?;
        match self.call(epoch, &Destroy) {
            // virtiofsd returns the buffers of DESTROY without a reply.
            Err(Error::Protocol(Violation::ReplyLength)) | Ok(()) => {}
            // A server may not implement DESTROY.
            Err(Error::Host(_)) => {}
            Err(error) => return Err(error),
        }
        self.lock().disconnect();
        self.settle();
        let is_reset = self.lock().is_reset();
        let confirmed = is_reset.then_some(());
        confirmed.ok_or(DeviceError::ResetNotConfirmed.into())
    }
}

/// Whether the error means that the server could not serve the request at this moment.
pub(super) fn is_again<R>(answer: &Result<R, Error>) -> bool {
    matches!(answer, Err(Error::Host(Errno::EINTR | Errno::EAGAIN)))
}

impl<T: Transport, C: Clock, H: Hal> Drop for Client<T, C, H> {
    fn drop(&mut self) {
        self.lock().disconnect();
        self.settle();
    }
}

/// A request with an awaited reply. If the wait ends early, by a panic of the clock, the slot is
/// released.
struct Pending<'c, T: Transport, C: Clock, H: Hal> {
    client: &'c Client<T, C, H>,
    ticket: Option<Ticket>,
}

impl<T: Transport, C: Clock, H: Hal> Drop for Pending<'_, T, C, H> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.client.lock().abandon(ticket);
        }
    }
}
