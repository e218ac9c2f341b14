//! One FUSE session over a file system device's virtqueues: submit, poll, complete, deadlines,
//! reset (virtio 1.2, section 5.11).
//!
//! Floor 3. It depends on devices and the wire format, not on paths or files. A [`Session`] is a
//! state machine that never waits and has no clock; a [`Client`] waits for it with the platform's
//! [`Clock`](crate::hal::Clock). `unsafe` is confined to the modules `memory`, `ring` and
//! `transfer`, and to the places here that add chains to rings.
//!
//! # Borrowed buffers
//!
//! The host writes file data directly into the caller's buffer. A function that borrows such a
//! buffer returns, or unwinds, only when the device has returned every descriptor or has confirmed
//! its reset. If a device does neither, the client calls [`Clock::stop`](crate::hal::Clock::stop).
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod client;
mod memory;
mod options;
mod ring;
mod slots;
mod tag;
mod transfer;

pub use client::Client;
pub use options::Options;
pub use slots::Ticket;
pub use tag::{DeviceConfig, Tag};
pub use transfer::Part;

use crate::{
    error::{DeviceError, Error},
    fuse::{self, EncodeError, Init, Operation, Read, ReplyError, Unique, Violation},
    hal::{BufferDirection, Hal, PAGE_SIZE, SHARED_POOL_PAGES},
};
use core::{
    fmt, mem,
    ptr::NonNull,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use heapless::Vec;
use memory::or_abort;
use ring::{Buffer, Ring};
use slots::{Slot, Slots};
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};

/// `VIRTIO_F_VERSION_1`: the device complies with virtio 1.0 or later (virtio 1.2, section 6).
const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_ACCESS_PLATFORM`: the device uses the platform's DMA addresses, which [`Hal`] gives.
const ACCESS_PLATFORM: u64 = 1 << 33;

/// The queue for FORGET, which is not delayed by reads (section 5.11.2).
const HIPRIO_QUEUE: u16 = 0;
/// The first request queue. QEMU's device has no notification queue, which would come before it.
const REQUEST_QUEUE: u16 = 1;
/// The greatest number of request queues in use. Each takes memory, and the slots cannot fill more.
const MAX_REQUEST_QUEUES: usize = 4;
/// Descriptors of the hiprio queue: one for each FORGET; a path is rarely deeper.
const HIPRIO_ENTRIES: usize = 8;
/// Descriptors of a request queue: 21 READs of three descriptors, more than a busy host needs.
const REQUEST_ENTRIES: usize = 64;
/// READs that fit into one request queue.
const MAX_DEPTH: usize = REQUEST_ENTRIES / 3;

/// The size of the largest READ. The descriptors of one request may cover 2^32 bytes, headers
/// included (virtio 1.2, section 2.7.5), and the length in a reply has 32 bits.
const MAX_CHUNK: u32 = 1 << 30;

/// The greatest number of pieces of a READ's buffer, if the platform does not map the buffer in
/// one: 64 KiB at any offset in a page. Three such READs fit into a queue.
const MAX_PIECES: usize = 17;

/// The number of DMA pages of one session with the default [`Options`]: 14.
pub const PAGES_PER_SHARE: usize = pages_per_share(MAX_REQUEST_QUEUES);

const _: () = assert!(SHARED_POOL_PAGES == 4 * PAGES_PER_SHARE);

/// The number of DMA pages of one session with so many request queues: two for each queue's ring,
/// and those of the request slots.
#[must_use]
pub const fn pages_per_share(request_queues: usize) -> usize {
    // Plus the hiprio queue.
    let rings = request_queues.saturating_add(1);
    slots::PAGES.saturating_add(rings.saturating_mul(2))
}

/// How long a device may take to confirm a reset (virtio 1.2, section 2.1.1). The device has to
/// drop the requests in flight, so the share's deadline does not apply.
const RESET_DEADLINE: Duration = Duration::from_secs(10);
/// The time between two reads of the device's status; each read exits to the hypervisor.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);

/// A session with the device, as a state machine: it never waits, and its caller passes the time.
///
/// After a request is submitted and the device is [kicked](Session::kick), [`Session::poll`] takes
/// completions. [`Session::tick`] fails the session if the host is silent for too long. An error
/// after which the host cannot be trusted resets the device; no buffer returns to its owner before
/// the reset is confirmed. The requests are those of [`fuse`]. The caller has to FORGET each node
/// that a LOOKUP returned, and to release each handle.
///
/// ```no_run
/// use bootshare::{Error, Options, hal::Hal, session::Session, transport::Transport};
/// use bootshare::fuse::{GetAttr, NodeId};
/// # use core::time::Duration;
///
/// /// What a kernel does between other things: one look at the device.
/// fn look<T: Transport, H: Hal>(session: &mut Session<T, H>, now: Duration) {
///     while session.poll() {}
///     session.tick(now);
/// }
///
/// fn example<T: Transport, H: Hal>(
///     transport: T,
///     now: impl Fn() -> Duration,
/// ) -> Result<(), Error> {
///     let mut session = Session::<T, H>::start(transport, Options::default())?;
///     while session.is_changing() {
///         look(&mut session, now());
///     }
///     if !session.is_connected() {
///         return Err(session.failure());
///     }
///     let operation = GetAttr { node: NodeId::ROOT };
///     // `None` would say that there is no room now; at first there is.
///     let ticket = session.submit(session.epoch(), &operation)?.ok_or(Error::Disconnected)?;
///     session.kick();
///     loop {
///         look(&mut session, now());
///         if let Some(attr) = session.take(&operation, ticket)? {
///             log::info!("the root has {} links", attr.nlink);
///             return Ok(());
///         }
///     }
/// }
/// ```
pub struct Session<T: Transport, H: Hal> {
    transport: T,
    options: Options,
    /// The number of request queues that the device reports.
    offered_queues: u32,
    phase: Phase,
    /// The connection to the device. While it exists, the device may use its memory; it is dropped
    /// only after a confirmed reset.
    link: Option<Link<H>>,
    /// Why the last session ended.
    failure: Error,
    /// Requests are built and replies are decoded in this copy, which the device cannot reach.
    scratch: [u8; slots::REQUEST_BYTES],
    unique: Unique,
    tag: Tag,
    minor: u32,
    epoch: Epoch,
    /// When requests were first seen in flight since the last completion.
    silent_since: Option<Duration>,
    interrupts: bool,
    reset_since: Option<Duration>,
    status_seen: Duration,
}

/// The state of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The next poll resets it because of a failure, so that the caller can log the reason first.
    Failed { said: bool },
    /// A reset was requested and is not confirmed. Afterwards the device is set up again, or not.
    Resetting { connect: bool },
    /// The reset was not confirmed in time, but may still be.
    Stuck,
    /// INIT is in flight.
    Greeting(Ticket),
    /// Connected: requests can be sent.
    Up,
    /// It is reset.
    Down,
}

impl<T: Transport, H: Hal> fmt::Debug for Session<T, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("tag", &self.tag)
            .field("epoch", &self.epoch)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

/// The number of the session that a node or a handle belongs to. To another host, or after a
/// resume, the node or handle is meaningless or means something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(usize);

impl Epoch {
    fn next() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The rings, and the memory of their requests.
struct Link<H: Hal> {
    hiprio: Ring<H, HIPRIO_ENTRIES>,
    /// At least one, once the device is set up.
    requests: Vec<Ring<H, REQUEST_ENTRIES>, MAX_REQUEST_QUEUES>,
    slots: Slots<H>,
}

/// The queue of a posted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// A request queue.
    Normal,
    /// The hiprio queue, only for FORGET, which has no reply.
    High,
}

impl<T: Transport, H: Hal> Session<T, H> {
    /// Requests a reset of the device. Further polls set it up (virtio 1.2, section 3.1.1) and
    /// exchange INIT, until the session is [connected](Session::is_connected) or has
    /// [failed](Session::failure).
    ///
    /// # Errors
    ///
    /// [`DeviceError::Configuration`] if its configuration space cannot be read.
    pub fn start(transport: T, options: Options) -> Result<Self, DeviceError> {
        let config = DeviceConfig::read(&transport)?;
        let mut session = Self {
            transport,
            options: options.clamped(),
            offered_queues: config.request_queues,
            phase: Phase::Down,
            link: None,
            failure: Error::Disconnected,
            scratch: [0; slots::REQUEST_BYTES],
            unique: Unique::FIRST,
            tag: config.tag,
            minor: 0,
            epoch: Epoch::next(),
            silent_since: None,
            interrupts: false,
            reset_since: None,
            status_seen: Duration::ZERO,
        };
        session.reset(true);
        Ok(session)
    }

    /// Starts another session on the same device after an error ended this one. Does nothing while
    /// the session is connected. Nodes and handles of earlier sessions become invalid.
    pub fn resume(&mut self) {
        if matches!(
            self.phase,
            Phase::Down | Phase::Stuck | Phase::Failed { .. } | Phase::Resetting { connect: false }
        ) {
            self.reset(true);
        }
    }

    /// Ends the session with a reset of the device. Requests in flight fail.
    pub fn disconnect(&mut self) {
        match self.phase {
            Phase::Up | Phase::Greeting(_) => {
                self.failure = Error::Disconnected;
                self.reset(false);
            }
            Phase::Failed { .. } => self.reset(false),
            Phase::Resetting { .. } | Phase::Stuck | Phase::Down => {}
        }
    }

    /// Whether requests can be sent.
    pub fn is_connected(&self) -> bool {
        matches!(self.phase, Phase::Up)
    }

    /// Whether further polls are needed until the session is connected, has failed, or is reset.
    pub fn is_changing(&self) -> bool {
        self.is_ending() || self.is_connecting()
    }

    /// Whether a session is being started.
    fn is_connecting(&self) -> bool {
        matches!(
            self.phase,
            Phase::Resetting { connect: true } | Phase::Greeting(_)
        )
    }

    /// Whether a reset is due or pending.
    fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Failed { .. } | Phase::Resetting { .. })
    }

    /// Why the device is about to be reset, unless this was logged already.
    fn unsaid(&mut self) -> Option<Error> {
        let Phase::Failed { said } = &mut self.phase else {
            return None;
        };
        let is_said = mem::replace(said, true);
        (!is_said).then_some(self.failure)
    }

    /// Whether the device holds none of our memory.
    pub fn is_reset(&self) -> bool {
        self.phase == Phase::Down
    }

    /// Why the last session ended or could not be started.
    pub fn failure(&self) -> Error {
        self.failure
    }

    /// The number of this session; each session of this device has its own.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The share's name.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// The minor version of FUSE 7 that was negotiated.
    pub fn minor(&self) -> u32 {
        self.minor
    }

    /// Requests a reset of the device (virtio 1.2, section 2.1.1). Until the device confirms it,
    /// its memory stays reserved.
    fn reset(&mut self, connect: bool) {
        self.phase = Phase::Resetting { connect };
        self.reset_since = None;
        self.transport.set_status(DeviceStatus::empty());
    }

    /// Ends the session because of `error`. Nothing is logged here: the session is locked, and a
    /// logger may use the share.
    fn fail(&mut self, error: Error) {
        self.failure = error;
        self.phase = Phase::Failed { said: false };
    }

    /// Sets the device up after its reset (virtio 1.2, section 3.1.1), and sends INIT.
    fn connect(&mut self) -> Result<(), Error> {
        let transport = &mut self.transport;
        let known = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(DeviceStatus::ACKNOWLEDGE);
        transport.set_status(known);
        let offered = transport.read_device_features();
        if offered & VERSION_1 == 0 {
            return Err(DeviceError::NotModern.into());
        }
        transport.write_driver_features(VERSION_1 | offered & ACCESS_PLATFORM);
        transport.set_status(known | DeviceStatus::FEATURES_OK);
        if !transport.get_status().contains(DeviceStatus::FEATURES_OK) {
            return Err(DeviceError::FeaturesRefused.into());
        }
        // From its first ring on, the device may use our memory: `link` keeps the memory until the
        // reset.
        let link = self.link.insert(Link {
            slots: Slots::new()?,
            hiprio: Ring::new(transport, HIPRIO_QUEUE)?,
            requests: Vec::new(),
        });
        let offered = self.offered_queues as usize;
        let wanted = self.options.request_queues.min(offered).max(1);
        for queue in (REQUEST_QUEUE..).take(wanted) {
            match Ring::new(transport, queue) {
                // There is room, because the options were clamped.
                Ok(ring) => _ = link.requests.push(ring),
                Err(error) if link.requests.is_empty() => return Err(error.into()),
                // One request queue is enough.
                Err(_) => break,
            }
        }
        transport.set_status(known | DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK);
        self.epoch = Epoch::next();
        self.silent_since = None;
        self.set_interrupts(self.interrupts);
        let ticket = self.send(&Init, Class::Awaited, false)?;
        // All slots are free.
        self.phase = Phase::Greeting(ticket.ok_or(Error::Disconnected)?);
        self.kick();
        Ok(())
    }

    /// Handles the reply to INIT.
    fn greet(&mut self, ticket: Ticket) {
        match self.take(&Init, ticket) {
            Ok(None) => {}
            Ok(Some(negotiated)) => {
                self.minor = negotiated.minor;
                self.phase = Phase::Up;
            }
            // If the server refuses INIT, there is no session.
            Err(error) => self.fail(error),
        }
    }

    /// Sets whether the device interrupts after a completion (virtio 1.2, section 2.7.7). It does
    /// not by default. [Poll](Session::poll) once more before sleeping: completions from before
    /// this call raise no interrupt.
    ///
    /// In the handler, [`Session::acknowledge`] the interrupt and wake the poller; nothing else is
    /// needed there. A timer has to wake the poller as well, after the time that [`Session::tick`]
    /// returned.
    pub fn set_interrupts(&mut self, wanted: bool) {
        self.interrupts = wanted;
        if let Some(link) = &mut self.link {
            for ring in &mut link.requests {
                ring.set_interrupts(wanted);
            }
            link.hiprio.set_interrupts(wanted);
        }
    }

    /// Acknowledges the device's interrupt, so that it can raise another one. Returns its cause.
    pub fn acknowledge(&mut self) -> InterruptStatus {
        self.transport.ack_interrupt()
    }

    /// Polls the device and takes all completions. Returns whether there were any.
    ///
    /// Its time is bounded: there are never more completions than requests in flight.
    pub fn poll(&mut self) -> bool {
        match self.phase {
            Phase::Down => false,
            Phase::Failed { .. } => {
                self.reset(false);
                true
            }
            Phase::Resetting { .. } | Phase::Stuck => self.poll_reset(),
            Phase::Up => self.reap(),
            Phase::Greeting(ticket) => {
                let progress = self.reap();
                if progress && self.phase == Phase::Greeting(ticket) {
                    self.greet(ticket);
                }
                progress
            }
        }
    }

    fn poll_reset(&mut self) -> bool {
        if !self.transport.get_status().is_empty() {
            return false;
        }
        // From here on the device holds none of our memory.
        self.link = None;
        let connect = self.phase == Phase::Resetting { connect: true };
        self.phase = Phase::Down;
        if connect && let Err(error) = self.connect() {
            self.failure = error;
            self.reset(false);
        }
        true
    }

    fn reap(&mut self) -> bool {
        match self.link.as_mut().map(Link::reap) {
            Some(Ok(false)) | None => false,
            Some(Ok(true)) => {
                self.silent_since = None;
                true
            }
            Some(Err(violation)) => {
                self.fail(violation.into());
                true
            }
        }
    }

    /// Fails the session if the device was silent for too long or reports that it needs a reset
    /// (virtio 1.2, section 2.1.2). Returns the longest time until the next call.
    ///
    /// `now` is the time since a fixed moment. The time of a request starts with the first tick
    /// after it was sent.
    pub fn tick(&mut self, now: Duration) -> Duration {
        match self.phase {
            Phase::Down | Phase::Stuck => Duration::MAX,
            // Due now.
            Phase::Failed { .. } => Duration::ZERO,
            Phase::Resetting { connect } => {
                let since = *self.reset_since.get_or_insert(now);
                let left = RESET_DEADLINE.saturating_sub(now.saturating_sub(since));
                if left.is_zero() {
                    if connect {
                        self.failure = DeviceError::ResetNotConfirmed.into();
                    }
                    self.phase = Phase::Stuck;
                }
                left
            }
            Phase::Greeting(_) | Phase::Up => {
                let left = self.time_left(now);
                match left {
                    Ok(left) => left,
                    Err(error) => {
                        self.fail(error);
                        Duration::ZERO
                    }
                }
            }
        }
    }

    fn time_left(&mut self, now: Duration) -> Result<Duration, Error> {
        let deadline = self.options.deadline;
        let Some(link) = self.link.as_mut().filter(|link| link.slots.any_in_flight()) else {
            self.silent_since = None;
            return Ok(deadline);
        };
        let since = *self.silent_since.get_or_insert(now);
        // As many requests as there are slots may be served before this one, each within the
        // deadline.
        let longest = deadline.saturating_mul(slots::COUNT as u32);
        let mut left = Duration::MAX;
        for (limit, waited) in [
            (deadline, now.saturating_sub(since)),
            (longest, link.slots.oldest(now)),
        ] {
            if waited >= limit {
                let after_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
                return Err(Error::TimedOut { after_ms });
            }
            left = left.min(limit.saturating_sub(waited));
        }
        if now.saturating_sub(self.status_seen) >= STATUS_INTERVAL {
            self.status_seen = now;
            let status = self.transport.get_status();
            if status.contains(DeviceStatus::DEVICE_NEEDS_RESET) {
                return Err(DeviceError::NeedsReset.into());
            }
        }
        Ok(left)
    }

    /// Sends `operation` in the session `epoch`. Returns `None` if there is no room until a request
    /// completes. [`Session::kick`] notifies the device.
    ///
    /// # Errors
    ///
    /// [`Error::Disconnected`] if that session has ended; [`Error::InvalidName`] for an invalid
    /// name.
    pub fn submit<O: Operation>(
        &mut self,
        epoch: Epoch,
        operation: &O,
    ) -> Result<Option<Ticket>, Error> {
        self.check(epoch)?;
        self.send(operation, Class::Awaited, false)
    }

    /// As [`Session::submit`], for a reply with a variable part of up to a page: directory entries,
    /// or the target of a link. Only one such request can be in flight.
    ///
    /// # Errors
    ///
    /// As [`Session::submit`].
    pub fn submit_into<O: Operation>(
        &mut self,
        epoch: Epoch,
        operation: &O,
    ) -> Result<Option<Ticket>, Error> {
        self.check(epoch)?;
        self.send(operation, Class::Awaited, true)
    }

    /// As [`Session::submit`], for a request without an awaited reply: RELEASE, FORGET. Returns
    /// whether there was room.
    ///
    /// # Errors
    ///
    /// As [`Session::submit`].
    pub fn post<O: Operation>(
        &mut self,
        epoch: Epoch,
        operation: &O,
        priority: Priority,
    ) -> Result<bool, Error> {
        self.check(epoch)?;
        let sent = self.send(operation, Class::Posted(priority), false)?;
        Ok(sent.is_some())
    }

    /// Whether requests of `epoch` can be sent.
    fn check(&self, epoch: Epoch) -> Result<(), Error> {
        let good = self.is_connected() && self.epoch == epoch;
        good.then_some(()).ok_or(Error::Disconnected)
    }

    fn send<O: Operation>(
        &mut self,
        operation: &O,
        class: Class,
        page: bool,
    ) -> Result<Option<Ticket>, Error> {
        let unique = self.unique;
        let request = fuse::encode(operation, unique, &mut self.scratch)?;
        let link = self.link.as_mut().ok_or(Error::Disconnected)?;
        let has_room = match class {
            Class::Posted(Priority::High) => link.hiprio.room() >= 1,
            _ => link.room() >= 3 && (!page || link.slots.is_page_free()),
        };
        let slot = link.slots.free(class);
        let Some(slot) = slot.filter(|_| has_room) else {
            return Ok(None);
        };
        let data = page.then(|| Buffer {
            address: link.slots.page(),
            size: PAGE_SIZE as u32,
            writable: true,
            shared: None,
        });
        let message = Message {
            unique,
            class,
            request,
            reply_size: fuse::REPLY_HEADER.saturating_add(O::REPLY_SIZE),
            data: data.as_slice(),
        };
        // SAFETY: the page belongs to the device until the slot is done; `is_page_free` ensures
        // that no second request uses it.
        let ticket = unsafe { link.add(slot, &message) }?;
        self.unique = unique.next();
        Ok(Some(ticket))
    }

    /// Submits a READ into the buffer at `to`, for as many of its bytes as can be mapped for the
    /// device now, at least one: [`Ticket::lent`] of them. `read` has their offset in the file.
    ///
    /// Returns `None` if there is no room until a request completes.
    ///
    /// # Errors
    ///
    /// As [`Session::submit`], and [`DeviceError::BufferRefused`] if the platform cannot map even
    /// one byte although no other buffer is mapped.
    ///
    /// # Safety
    ///
    /// The bytes must be valid for writes, and nobody may access them as long as the session
    /// [has](Session::has) the ticket; for ever, if the session is dropped before that and the
    /// device does not confirm its reset.
    pub unsafe fn submit_read(
        &mut self,
        epoch: Epoch,
        mut read: Read,
        to: NonNull<[u8]>,
    ) -> Result<Option<Ticket>, Error> {
        self.check(epoch)?;
        let unique = self.unique;
        let link = self.link.as_mut().ok_or(Error::Disconnected)?;
        let room = link.room().saturating_sub(2).min(MAX_PIECES);
        let slot = link.slots.free(Class::Awaited);
        let Some(slot) = slot.filter(|_| room > 0) else {
            return Ok(None);
        };
        let mut pieces = Vec::new();
        // SAFETY: promised by the caller.
        unsafe { lend::<H>(to, room, &mut pieces) };
        let lent: u32 = pieces.iter().map(|piece| piece.size).sum();
        if lent == 0 {
            let is_any_lent = link.slots.lent_bytes() > 0;
            return is_any_lent
                .then_some(None)
                .ok_or(DeviceError::BufferRefused.into());
        }
        read.size = lent;
        let request = fuse::encode(&read, unique, &mut self.scratch)?;
        let message = Message {
            unique,
            class: Class::Awaited,
            request,
            reply_size: fuse::REPLY_HEADER,
            data: &pieces,
        };
        // SAFETY: the caller promises that nobody accesses the bytes.
        let ticket = unsafe { link.add(slot, &message) }?;
        self.unique = unique.next();
        Ok(Some(ticket))
    }

    /// Notifies the device of all requests sent.
    pub fn kick(&mut self) {
        if let Some(link) = &mut self.link {
            for ring in &mut link.requests {
                ring.kick(&mut self.transport);
            }
            link.hiprio.kick(&mut self.transport);
        }
    }

    /// Takes the reply to a request, if there is one. `operation` is the operation that was sent.
    ///
    /// # Errors
    ///
    /// The host's error, its violation of the protocol, or why the session of the request ended.
    pub fn take<O: Operation>(
        &mut self,
        operation: &O,
        ticket: Ticket,
    ) -> Result<Option<O::Reply>, Error> {
        self.take_into(operation, ticket, &mut [])
    }

    /// As [`Session::take`], and copies the variable part of the reply to `page`, which has the
    /// requested size.
    ///
    /// # Errors
    ///
    /// As [`Session::take`].
    pub fn take_into<O: Operation>(
        &mut self,
        operation: &O,
        ticket: Ticket,
        page: &mut [u8],
    ) -> Result<Option<O::Reply>, Error> {
        let alive = matches!(self.phase, Phase::Up | Phase::Greeting(_)) && self.has(ticket);
        let link = self.link.as_mut().filter(|_| alive).ok_or(self.failure)?;
        // The host may still write to the original, so only a copy is decoded.
        let size = fuse::REPLY_HEADER.saturating_add(O::REPLY_SIZE);
        let reply = self.scratch.get_mut(..size).unwrap_or_default();
        let Some(used) = link.slots.take(ticket, reply, page) else {
            return Ok(None);
        };
        let data_size = page.len().saturating_add(ticket.lent());
        let reply = fuse::decode(operation, ticket.unique, reply, data_size, used);
        Ok(Some(reply?))
    }

    /// When a request was first seen in flight.
    fn since(&self, ticket: Ticket) -> Option<Duration> {
        self.link.as_ref()?.slots.since(ticket)
    }

    /// Sets the moment from which the time of a request counts.
    fn set_since(&mut self, ticket: Ticket, since: Option<Duration>) {
        if let Some(link) = &mut self.link {
            link.slots.set_since(ticket, since);
        }
    }

    /// Whether the device may still have what was sent with this request, or its reply was not taken.
    pub fn has(&self, ticket: Ticket) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.slots.knows(ticket))
    }

    /// Nobody waits for this request any more. The device has it nevertheless, until it is done.
    pub fn abandon(&mut self, ticket: Ticket) {
        if let Some(link) = &mut self.link {
            link.slots.abandon(ticket);
        }
    }

    fn any_posted(&self) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.slots.any_posted())
    }

    /// Bytes of callers' buffers that are with the device.
    pub fn lent_bytes(&self) -> u64 {
        self.link.as_ref().map_or(0, |link| link.slots.lent_bytes())
    }
}

/// What becomes of the reply to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Somebody waits for it.
    Awaited,
    /// It is thrown away.
    Posted(Priority),
}

/// Lends the device the bytes at `to`, one at least, in `room` pieces at most, which it adds to
/// `pieces`: to return them would copy them. What the platform refuses to lend in one piece is offered page by page, until it refuses a page.
///
/// # Safety
///
/// The bytes must be valid for writing.
unsafe fn lend<H: Hal>(to: NonNull<[u8]>, room: usize, pieces: &mut Vec<Buffer, MAX_PIECES>) {
    let (mut start, mut left, mut piece) = (to.cast::<u8>(), to.len(), to.len());
    while left > 0 && pieces.len() < room {
        let buffer = NonNull::slice_from_raw_parts(start, piece);
        // SAFETY: a part of the bytes that the caller promises to be valid.
        let address = or_abort(|| unsafe { H::share(buffer, BufferDirection::DeviceToDriver) });
        let to_page_end = PAGE_SIZE.saturating_sub(start.addr().get() % PAGE_SIZE);
        if address == 0 {
            if piece <= to_page_end {
                break;
            }
            piece = to_page_end;
            continue;
        }
        // There is room, as `room` is `MAX_PIECES` at most.
        _ = pieces.push(Buffer {
            address,
            size: piece as u32,
            writable: true,
            shared: Some(start),
        });
        // SAFETY: the piece is a part of what is left.
        start = unsafe { start.add(piece) };
        left = left.saturating_sub(piece);
        piece = left.min(PAGE_SIZE);
    }
}

/// A request on its way.
struct Message<'m> {
    unique: Unique,
    class: Class,
    request: &'m [u8],
    /// Bytes of the client's own memory that the reply takes.
    reply_size: usize,
    /// What the device writes behind them.
    data: &'m [Buffer],
}

impl<T: Transport, H: Hal> Drop for Session<T, H> {
    fn drop(&mut self) {
        if self.link.is_some() {
            self.disconnect();
            self.poll_reset();
        }
        if self.link.is_some() {
            log::error!(
                "share {}: {}; its memory is lost",
                self.tag,
                DeviceError::ResetNotConfirmed
            );
            mem::forget(self.link.take());
        }
    }
}

impl<H: Hal> Link<H> {
    /// Descriptors that are free in the request queue with the most.
    fn room(&self) -> usize {
        self.requests.iter().map(Ring::room).max().unwrap_or(0)
    }

    /// Puts a request into a ring.
    ///
    /// # Safety
    ///
    /// As [`Ring::add`], for the data.
    unsafe fn add(&mut self, slot: Slot, message: &Message<'_>) -> Result<Ticket, Error> {
        let (request, reply) = self.slots.write(slot, message.request);
        let own = |address, size: usize, writable| Buffer {
            address,
            size: size as u32,
            writable,
            shared: None,
        };
        let mut chain = Vec::<_, { MAX_PIECES + 2 }>::new();
        // There is room for both, and for as many pieces as a READ has.
        _ = chain.push(own(request, message.request.len(), false));
        let added = if message.class == Class::Posted(Priority::High) {
            // SAFETY: the request lies in its slot, which is the device's until it is done.
            unsafe { self.hiprio.add(slot, &chain) }
        } else {
            _ = chain.push(own(reply, message.reply_size, true));
            _ = chain.extend_from_slice(message.data);
            // The first of those with the most room: a device with a thread a queue serves them at
            // the same time.
            let rings = self.requests.iter_mut().rev();
            let ring = rings.max_by_key(|ring| ring.room());
            // SAFETY: as above, and the data is as the caller promises.
            ring.map_or(Err(ring::Full), |ring| unsafe { ring.add(slot, &chain) })
        };
        // Whoever calls this has asked for the room.
        added.map_err(|ring::Full| Violation::UsedId)?;
        Ok(self.slots.set_in_flight(slot, message))
    }

    /// Takes all completions that are there; whether there were any.
    fn reap(&mut self) -> Result<bool, Violation> {
        let mut progress = false;
        while let Some((slot, used)) = self.hiprio.pop()? {
            self.slots.complete(slot, used);
            progress = true;
        }
        for ring in &mut self.requests {
            while let Some((slot, used)) = ring.pop()? {
                self.slots.complete(slot, used);
                progress = true;
            }
        }
        Ok(progress)
    }
}

impl From<ReplyError> for Error {
    fn from(error: ReplyError) -> Self {
        match error {
            ReplyError::Server(errno) => errno.into(),
            ReplyError::Malformed(violation) => violation.into(),
        }
    }
}

impl From<EncodeError> for Error {
    fn from(_: EncodeError) -> Self {
        Self::InvalidName
    }
}
