//! The blocking client: waits for the replies of a [`Session`], for one thread or several.
//!
//! The session is locked for one poll of the device at a time, and never during a wait, so that a
//! long read does not block other threads.

use super::{Epoch, Options, Priority, Session, Tag, Ticket};
use crate::{
    error::{DeviceError, Error},
    fuse::{Destroy, Errno, Operation, Violation},
    hal::{Clock, Hal, PAGE_SIZE},
};
use core::{fmt, time::Duration};
use spin::{Mutex, MutexGuard};
use virtio_drivers::transport::Transport;

/// How often the ring is polled between two reads of the clock: a few microseconds.
const POLLS_PER_TICK: u32 = 64;

/// Bytes in flight for each microsecond of rest. No host reads a file at 32 GiB/s, so the host is
/// still busy at the end of the rest.
const REST_PER_MICROSECOND: u64 = 32 << 10;
/// Shorter rests, in microseconds, cost more than they save.
const MIN_REST: u64 = 50;

/// How often a request is sent again after the server answered EINTR or EAGAIN.
pub(super) const RETRIES: u32 = 16;

/// Examines the session; returns whether the wait is over.
type Ready<'a, T, H> = dyn FnMut(&mut Session<T, H>) -> Result<bool, Error> + 'a;

/// A session, and the clock that limits the waits for it.
///
/// Dropping it resets the device; [`Client::end`] sends DESTROY before. After an error that ended
/// the session, [`Client::resume`] starts another one on the same device.
pub struct Client<T: Transport, C: Clock, H: Hal> {
    session: Mutex<Session<T, H>>,
    clock: C,
}

impl<T: Transport, C: Clock, H: Hal> fmt::Debug for Client<T, C, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The lock is released before writing: the formatter may itself use the share.
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
    /// answer, [`Error::Protocol`] if it offers no version that this client knows. Whatever the error was,
    /// it is logged, and [`DeviceError::ResetNotConfirmed`] is returned, if the device then does not confirm
    /// its reset.
    pub fn start(transport: T, clock: C, options: Options) -> Result<Self, Error> {
        let session = Mutex::new(Session::start(transport, options)?);
        let client = Self { session, clock };
        client.connect().or_else(|error| client.reset(Err(error)))?;
        Ok(client)
    }

    /// Starts a new session on the same device after an error ended the last one; does nothing while
    /// the session is connected. Nodes and handles of the last session become invalid.
    ///
    /// # Errors
    ///
    /// As [`Client::start`]; it can be called again.
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

    /// Identifies the current session; see [`Epoch`].
    pub fn epoch(&self) -> Epoch {
        self.lock().epoch()
    }

    /// The session's options, each within its bounds.
    pub fn options(&self) -> Options {
        self.lock().options
    }

    /// Whether requests can be sent.
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
    /// The host's error, or the way it broke the protocol; [`Error::TimedOut`] after the deadline,
    /// [`Error::Disconnected`] if the session is not that of `epoch`.
    pub fn call<O: Operation>(&self, epoch: Epoch, operation: &O) -> Result<O::Reply, Error> {
        self.exchange(epoch, operation, &mut [], RETRIES)
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
        self.exchange(epoch, operation, data, RETRIES)
    }

    fn exchange<O: Operation>(
        &self,
        epoch: Epoch,
        operation: &O,
        page: &mut [u8],
        mut retries: u32,
    ) -> Result<O::Reply, Error> {
        let mut pending = Pending {
            client: self,
            ticket: None,
        };
        let mut reply = None;
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
        // `wait` succeeds only after `reply` was set.
        reply.ok_or(Error::Disconnected)
    }

    /// Sends `operation` and does not wait for its reply, which is discarded when it comes.
    ///
    /// For requests whose failure needs no reaction. Does nothing if the session of `epoch` is over.
    pub fn post<O: Operation>(&self, epoch: Epoch, operation: &O, priority: Priority) {
        let sent = self.wait(&mut |session| session.post(epoch, operation, priority));
        if let Err(error) = sent {
            log::debug!(
                "request {} was not sent: {error}",
                operation.opcode() as u32
            );
        }
    }

    /// Polls until `ready` returns `true`, as long as the host makes progress. An error that
    /// ends the session is returned after the device has confirmed its reset, or its time for that is over.
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
                // The session ended during this wait: return the reason.
                Err(Error::Disconnected) if waited => session.failure(),
                Err(error) => error,
            };
            drop(session);
            self.settle();
            return Err(error);
        }
    }

    /// Logs why the session has failed, if it has, and waits until a reset in progress is confirmed or
    /// has taken too long.
    pub(super) fn settle(&self) {
        let mut looks = 0;
        loop {
            let mut session = self.lock();
            if let Some(error) = session.unsaid() {
                let tag = session.tag();
                // Unlocked first, because a logger may use the share.
                drop(session);
                // Logged before the reset: QEMU itself may block in it while the server is stopped.
                log::warn!("share {tag}: {error}; resetting the device");
            } else if !session.is_ending() {
                return;
            } else if !session.poll() {
                drop(session);
                self.pause(&mut looks);
            }
        }
    }

    /// Waits a moment after a poll without progress.
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

    /// Takes a caller's buffer back from the device, by a reset if necessary. Returns only when
    /// `is_back` confirms that the device has no descriptor of it any more.
    pub(super) fn recall(&self, is_back: impl Fn(&Session<T, H>) -> bool) {
        if is_back(&self.lock()) {
            return;
        }
        let mut session = self.lock();
        // A reset in progress is enough: another thread may be about to resume the session after it.
        if !session.is_ending() {
            session.disconnect();
        }
        // An earlier reset that was not confirmed in time may be confirmed by now.
        session.poll();
        drop(session);
        self.settle();
        if !is_back(&self.lock()) {
            self.clock.stop(
                "a virtio-fs device does not confirm its reset and may write to memory at any time: \
                 the machine is stopped; restart it",
            );
        }
    }

    /// Waits until every posted request was answered, sends DESTROY, and resets the device for the
    /// next driver.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] or [`Error::Protocol`]; the device is reset in any case.
    /// [`DeviceError::ResetNotConfirmed`] if it does not confirm its reset; another error is logged then.
    pub fn end(self) -> Result<(), Error> {
        self.reset(self.say_goodbye())
    }

    fn say_goodbye(&self) -> Result<(), Error> {
        let epoch = self.epoch();
        self.wait(&mut |session| {
            session.check(epoch)?;
            Ok(!session.any_posted())
        })?;
        // Sent once, whatever the answer: for the server, the session is over.
        match self.exchange(epoch, &Destroy, &mut [], 0) {
            // virtiofsd completes DESTROY without writing a reply.
            Err(Error::Protocol(Violation::ReplyLength)) | Ok(()) => Ok(()),
            // A server may not implement DESTROY.
            Err(Error::Host(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Resets the device at the end of a session that ended so. If that fails, it is the more important error,
    /// because the device may then still write to memory.
    fn reset(&self, ended: Result<(), Error>) -> Result<(), Error> {
        self.lock().disconnect();
        self.settle();
        if self.lock().is_reset() {
            return ended;
        }
        match ended {
            Ok(()) | Err(Error::Device(DeviceError::ResetNotConfirmed)) => {}
            Err(error) => log::error!("share {}: {error}", self.tag()),
        }
        Err(DeviceError::ResetNotConfirmed.into())
    }
}

/// Whether the server asks to send the request again (EINTR, EAGAIN).
pub(super) fn is_again<R>(answer: &Result<R, Error>) -> bool {
    matches!(answer, Err(Error::Host(Errno::EINTR | Errno::EAGAIN)))
}

impl<T: Transport, C: Clock, H: Hal> Drop for Client<T, C, H> {
    fn drop(&mut self) {
        self.lock().disconnect();
        self.settle();
    }
}

/// A request whose reply is awaited. If the wait ends early, by a panic of the clock, the request is
/// abandoned, so that its slot becomes free when the device completes it.
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
