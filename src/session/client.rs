//! A session that is waited for, by one thread or by several.
//!
//! The session is locked for one look at the device at a time, and never while it is waited for: who
//! reads much does not keep others out.

use super::{Epoch, Options, Part, Priority, Session, Tag, Ticket, transfer::Transfer};
use crate::{
    error::{DeviceError, Error},
    fuse::{Destroy, Errno, Operation, Violation},
    hal::{Clock, Hal, PAGE_SIZE},
};
use core::{fmt, ops::ControlFlow, time::Duration};
use spin::{Mutex, MutexGuard};
use virtio_drivers::transport::Transport;

/// Looks at the ring between two looks at the clock: some microseconds.
const POLLS_PER_TICK: u32 = 64;

/// Bytes of data in flight for which a platform may rest a microsecond: 32 GiB/s, which no host
/// reads a file at, so that it has work until the end of the rest.
const REST_PER_MICROSECOND: u64 = 32 << 10;
/// Shorter rests, in microseconds, are not worth their while.
const MIN_REST: u64 = 50;

/// How often a request is sent again that a server has not served: EINTR and EAGAIN.
pub(super) const RETRIES: u32 = 16;

/// Looks at the session, and says whether what is waited for has come.
type Ready<'a, T, H> = dyn FnMut(&mut Session<T, H>) -> Result<bool, Error> + 'a;

/// A session, and the clock with which it is waited for.
///
/// Dropping it resets the device; [`Client::end`] says goodbye first. After an error that ended
/// the session, [`Client::resume`] starts another one on the same device.
pub struct Client<T: Transport, C: Clock, H: Hal> {
    session: Mutex<Session<T, H>>,
    clock: C,
}

impl<T: Transport, C: Clock, H: Hal> fmt::Debug for Client<T, C, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is written may be so by way of the share.
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

    /// Starts another session on the same device, after an error that ended this one; does nothing
    /// while it goes on. Nodes and handles of before are void.
    ///
    /// # Errors
    ///
    /// As [`Client::start`]; it can be tried again.
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

    /// Which session this is, of all that there were.
    pub fn epoch(&self) -> Epoch {
        self.lock().epoch()
    }

    /// How the session talks to its host.
    pub fn options(&self) -> Options {
        self.lock().options
    }

    /// Whether the session goes on.
    pub fn is_connected(&self) -> bool {
        self.lock().is_connected()
    }

    /// The share's name.
    pub fn tag(&self) -> Tag {
        self.lock().tag()
    }

    /// The minor version of FUSE 7 agreed on.
    pub fn minor(&self) -> u32 {
        self.lock().minor()
    }

    /// Sends `operation` and waits for its reply.
    ///
    /// # Errors
    ///
    /// The host's error, or how it broke the protocol; [`Error::TimedOut`] after the deadline,
    /// [`Error::Disconnected`] if the session is not that of `epoch`.
    pub fn call<O: Operation>(&self, epoch: Epoch, operation: &O) -> Result<O::Reply, Error> {
        self.exchange(epoch, operation, &mut [])
    }

    /// Sends `operation` and waits for its reply, whose variable part is copied to `data`.
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
        // It is ready with a reply only.
        reply.ok_or(Error::Disconnected)
    }

    /// Sends `operation` and does not wait: its reply is thrown away when it comes.
    ///
    /// For requests whose failure nobody can do anything about. On a session that is no longer that
    /// of `epoch` it does nothing.
    pub fn post<O: Operation>(&self, epoch: Epoch, operation: &O, priority: Priority) {
        let sent = self.wait(&mut |session| session.post(epoch, operation, priority));
        if let Err(error) = sent {
            log::debug!(
                "request {} was not sent: {error}",
                operation.opcode() as u32
            );
        }
    }

    /// Polls until it is `ready`, as long as the host makes progress. If there is an error, the
    /// device was reset before it is returned, or has not confirmed that in time.
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
                // It was not so before: what has ended the session is the reason.
                Err(Error::Disconnected) if waited => session.failure(),
                Err(error) => error,
            };
            drop(session);
            self.settle();
            return Err(error);
        }
    }

    /// Says why the session has failed, if it has, and waits until a reset that is under way is
    /// confirmed or has taken too long.
    pub(super) fn settle(&self) {
        let mut looks = 0;
        loop {
            let mut session = self.lock();
            if let Some(error) = session.unsaid() {
                let tag = session.tag();
                // A logger may use the share.
                drop(session);
                // Before the reset, which QEMU itself may not survive when its server is stopped.
                log::warn!("share {tag}: {error}; resetting the device");
            } else if !session.is_ending() {
                return;
            } else if !session.poll() {
                drop(session);
                self.pause(&mut looks);
            }
        }
    }

    /// Lets time pass after a look at the device that has shown nothing.
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

    /// Takes back what the device may have of a caller's buffer, for which it is reset. Does not
    /// return unless `is_back` says that it has nothing any more.
    pub(super) fn recall(&self, is_back: impl Fn(&Session<T, H>) -> bool) {
        if is_back(&self.lock()) {
            return;
        }
        self.lock().disconnect();
        // One that has not confirmed its reset in time may have done so by now.
        self.lock().poll();
        self.settle();
        if !is_back(&self.lock()) {
            self.clock.stop(
                "a virtio-fs device does not confirm its reset and may write to memory at any time: \
                 the machine is stopped; restart it",
            );
        }
    }

    /// Reads all of `parts`, straight into their buffers, in chunks kept in flight: what comes
    /// first is asked for first, and the next part's chunks follow without a gap.
    ///
    /// `progress` is called from time to time, and before the return, with what has come. If it breaks,
    /// nothing more is asked for, and the read ends when what is in flight has come back.
    ///
    /// # Errors
    ///
    /// That of the first part that failed; nothing more is asked for then. [`Error::Disconnected`]
    /// for a part of another session, [`Error::Cancelled`] if `progress` has broken. What has come, [`Part::come`] tells.
    pub fn read(
        &self,
        parts: &mut [Part<'_>],
        progress: &mut dyn FnMut(&[Part<'_>]) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        Transfer::new(self, parts).run(progress)
    }

    /// Says DESTROY after every posted request was answered, and resets the device, so that the
    /// next driver finds it as new.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] or [`Error::Protocol`]; the device is reset all the same.
    /// [`DeviceError::ResetNotConfirmed`] if it does not confirm that.
    pub fn end(self) -> Result<(), Error> {
        let epoch = self.epoch();
        self.wait(&mut |session| {
            session.check(epoch)?;
            Ok(!session.any_posted())
        })?;
        match self.call(epoch, &Destroy) {
            // virtiofsd gives the buffers back without a reply.
            Err(Error::Protocol(Violation::ReplyLength)) | Ok(()) => {}
            // A server need not know DESTROY.
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

/// Whether a server says that it was not able to serve a request just now.
pub(super) fn is_again<R>(answer: &Result<R, Error>) -> bool {
    matches!(answer, Err(Error::Host(Errno::EINTR | Errno::EAGAIN)))
}

impl<T: Transport, C: Clock, H: Hal> Drop for Client<T, C, H> {
    fn drop(&mut self) {
        self.lock().disconnect();
        self.settle();
    }
}

/// A request whose reply is waited for. If that ends early, by a panic of the clock, its slot is
/// nobody's.
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
