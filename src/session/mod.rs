//! One FUSE session over a file system device's virtqueues: submit, poll, complete, deadlines,
//! reset (virtio 1.2, section 5.11).
//!
//! Floor 3. It knows devices and the wire, and nothing of paths or files. A [`Session`] is a state
//! machine that never waits and has no clock; a [`Client`] waits for it, with the platform's
//! [`Clock`](crate::hal::Clock). `unsafe` lives in three rooms, `memory`, `ring` and `transfer`, and
//! here where chains are put into rings.
//!
//! # Borrowed buffers
//!
//! File data is written by the host straight into the caller's buffer. A function that lends one
//! returns, or unwinds, only when the device has given every descriptor back or has confirmed its
//! reset. A device that does neither makes the client call
//! [`Clock::stop`](crate::hal::Clock::stop).
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

/// `VIRTIO_F_VERSION_1`: the device is a modern one (virtio 1.2, section 6).
const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_ACCESS_PLATFORM`: addresses are what the platform says, which is what [`Hal`] gives.
const ACCESS_PLATFORM: u64 = 1 << 33;

/// The queue for FORGET, which must not wait behind reads (section 5.11.2).
const HIPRIO_QUEUE: u16 = 0;
/// The first request queue. QEMU's device offers no notification queue, which would be before it.
const REQUEST_QUEUE: u16 = 1;
/// Request queues in use at most: each takes memory, and the slots do not fill more.
const MAX_REQUEST_QUEUES: usize = 4;
/// Descriptors of the hiprio queue: one a FORGET, as many as a directory's depth is as a rule.
const HIPRIO_ENTRIES: usize = 8;
/// Descriptors of a request queue: 21 READs of three, more than it takes to keep a host busy.
const REQUEST_ENTRIES: usize = 64;
/// READs that fit into one request queue.
const MAX_DEPTH: usize = REQUEST_ENTRIES / 3;

/// Largest READ. The descriptors of one request may have 2^32 bytes in all, headers included
/// (virtio 1.2, section 2.7.5), and a reply says its length in 32 bits.
const MAX_CHUNK: u32 = 1 << 30;

/// Pieces that a READ's buffer is lent in at most, where the platform does not lend it in one: 64
/// KiB, wherever in a page it starts. Three such READs fit into a queue.
const MAX_PIECES: usize = 17;

/// DMA pages that one session takes with the default [`Options`]: 14.
pub const PAGES_PER_SHARE: usize = pages_per_share(MAX_REQUEST_QUEUES);

const _: () = assert!(SHARED_POOL_PAGES == 4 * PAGES_PER_SHARE);

/// DMA pages that one session takes with so many request queues: two for each queue's ring, and the
/// request slots.
#[must_use]
pub const fn pages_per_share(request_queues: usize) -> usize {
    // The hiprio queue is one more.
    let rings = request_queues.saturating_add(1);
    slots::PAGES.saturating_add(rings.saturating_mul(2))
}

/// How long a device may take to confirm a reset (virtio 1.2, section 2.1.1). It has to give up what
/// it has in flight, so this is no matter of the share's own deadline.
const RESET_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at the device's status, which take an exit to the hypervisor each.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);

/// A session with the device, as a state machine: it never waits, and whoever calls it brings the
/// time.
///
/// A request is submitted, the device is [kicked](Session::kick), and [`Session::poll`] takes what
/// has come. [`Session::tick`] gives up a host that is silent for too long. An error that leaves the
/// host in doubt resets the device: nothing is given back to its owner before that is confirmed.
/// The requests are those of [`fuse`]. Each node that a LOOKUP gave is to be forgotten, each
/// handle released.
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
    /// Request queues that the device says it has.
    offered_queues: u32,
    phase: Phase,
    /// The way to the device. While it is here, the device may have what is in it; it goes only
    /// after a reset was confirmed.
    link: Option<Link<H>>,
    /// Why the last session ended.
    failure: Error,
    /// Where requests are made and replies looked at, away from the device.
    scratch: [u8; slots::REQUEST_BYTES],
    unique: Unique,
    tag: Tag,
    minor: u32,
    epoch: Epoch,
    /// When requests were seen to be under way with nothing coming back.
    silent_since: Option<Duration>,
    interrupts: bool,
    reset_since: Option<Duration>,
    status_seen: Duration,
}

/// What the device is up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It is to be reset because of a failure, with the next poll: whoever drives the session may
    /// say why before.
    Failed { said: bool },
    /// It was told to reset and has not confirmed it. Then it is set up again, or not.
    Resetting { connect: bool },
    /// It has not confirmed a reset for too long, but may still.
    Stuck,
    /// INIT is under way.
    Greeting(Ticket),
    /// Requests can be sent.
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

/// Which session a node or handle is of, of all that there were: to the host of another one, or
/// after a resume, they mean nothing or something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(usize);

impl Epoch {
    fn next() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The rings, and the memory of what is in them.
struct Link<H: Hal> {
    hiprio: Ring<H, HIPRIO_ENTRIES>,
    /// One at least, once the device is set up.
    requests: Vec<Ring<H, REQUEST_ENTRIES>, MAX_REQUEST_QUEUES>,
    slots: Slots<H>,
}

/// Which queue a posted request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// A request queue.
    Normal,
    /// The hiprio queue, for FORGET alone: there is no reply.
    High,
}

impl<T: Transport, H: Hal> Session<T, H> {
    /// Tells the device to reset. Polled on, it is set up (virtio 1.2, section 3.1.1), INIT is
    /// exchanged, and the session is [connected](Session::is_connected) or has
    /// [failed](Session::failure).
    ///
    /// # Errors
    ///
    /// [`DeviceError::Configuration`] if its configuration can't be read.
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

    /// Starts another session on the same device, after an error that ended this one; does nothing
    /// while it goes on. Nodes and handles of before are void.
    pub fn resume(&mut self) {
        if matches!(
            self.phase,
            Phase::Down | Phase::Stuck | Phase::Failed { .. } | Phase::Resetting { connect: false }
        ) {
            self.reset(true);
        }
    }

    /// Ends the session: the device is reset. Requests that are under way fail.
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

    /// Whether it is to be polled on until it is connected or not, or reset.
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

    /// Whether a reset is to come or under way.
    fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Failed { .. } | Phase::Resetting { .. })
    }

    /// Why the device is about to be reset, if nobody has said so yet.
    fn unsaid(&mut self) -> Option<Error> {
        let Phase::Failed { said } = &mut self.phase else {
            return None;
        };
        let is_said = mem::replace(said, true);
        (!is_said).then_some(self.failure)
    }

    /// Whether the device has nothing of ours.
    pub fn is_reset(&self) -> bool {
        self.phase == Phase::Down
    }

    /// Why the last session ended, or could not be started.
    pub fn failure(&self) -> Error {
        self.failure
    }

    /// Which session this is, of all that there were.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The share's name.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// The minor version of FUSE 7 agreed on.
    pub fn minor(&self) -> u32 {
        self.minor
    }

    /// Tells the device to reset (virtio 1.2, section 2.1.1). Until it has confirmed that, what it
    /// had stays with it.
    fn reset(&mut self, connect: bool) {
        self.phase = Phase::Resetting { connect };
        self.reset_since = None;
        self.transport.set_status(DeviceStatus::empty());
    }

    /// Ends the session because of `error`. Nothing is logged here: whoever drives the session has it
    /// locked, and a logger may use the share.
    fn fail(&mut self, error: Error) {
        self.failure = error;
        self.phase = Phase::Failed { said: false };
    }

    /// Sets the device up, after its reset (virtio 1.2, section 3.1.1), and says INIT.
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
        // From its first ring on, the device has memory of ours: `link` keeps it until the reset.
        let link = self.link.insert(Link {
            slots: Slots::new()?,
            hiprio: Ring::new(transport, HIPRIO_QUEUE)?,
            requests: Vec::new(),
        });
        let offered = self.offered_queues as usize;
        let wanted = self.options.request_queues.min(offered).max(1);
        for queue in (REQUEST_QUEUE..).take(wanted) {
            match Ring::new(transport, queue) {
                // There is room, as the options were clamped.
                Ok(ring) => _ = link.requests.push(ring),
                Err(error) if link.requests.is_empty() => return Err(error.into()),
                // One is all that it takes.
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

    /// Takes the answer to INIT.
    fn greet(&mut self, ticket: Ticket) {
        match self.take(&Init, ticket) {
            Ok(None) => {}
            Ok(Some(negotiated)) => {
                self.minor = negotiated.minor;
                self.phase = Phase::Up;
            }
            // A server that refuses INIT has no session with us.
            Err(error) => self.fail(error),
        }
    }

    /// Says whether the device is to interrupt when something has come (virtio 1.2, section 2.7.7).
    /// At first it is not. [Poll](Session::poll) once more before you sleep: what had come before is
    /// not told.
    ///
    /// In the handler, [`Session::acknowledge`] the interrupt and wake who polls; nothing else needs to
    /// be done there. Let a timer wake it too, after what [`Session::tick`] has returned.
    pub fn set_interrupts(&mut self, wanted: bool) {
        self.interrupts = wanted;
        if let Some(link) = &mut self.link {
            for ring in &mut link.requests {
                ring.set_interrupts(wanted);
            }
            link.hiprio.set_interrupts(wanted);
        }
    }

    /// Acknowledges the device's interrupt, so that it can raise another one; what it was for.
    pub fn acknowledge(&mut self) -> InterruptStatus {
        self.transport.ack_interrupt()
    }

    /// Looks at the device, and takes all that has come; whether anything has.
    ///
    /// It takes no longer for whatever the device does: no more comes than was sent.
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
        // From now on the device has nothing of ours.
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

    /// Gives the device up if it was silent for too long, or says that it needs a reset (virtio 1.2,
    /// section 2.1.2). Returns how long it has at most until then.
    ///
    /// `now` is the time since some fixed moment. The time of a request starts with the first tick
    /// after it was sent.
    pub fn tick(&mut self, now: Duration) -> Duration {
        match self.phase {
            Phase::Down | Phase::Stuck => Duration::MAX,
            // To be polled at once.
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
        // As many may be served before a request as there are slots, each within the deadline.
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

    /// Sends `operation`, in the session `epoch`. `None` if there is no room now: something must come
    /// back first. The device is told by [`Session::kick`].
    ///
    /// # Errors
    ///
    /// [`Error::Disconnected`] if that session is over, [`Error::InvalidName`] for a name that none
    /// is.
    pub fn submit<O: Operation>(
        &mut self,
        epoch: Epoch,
        operation: &O,
    ) -> Result<Option<Ticket>, Error> {
        self.check(epoch)?;
        self.send(operation, Class::Awaited, false)
    }

    /// As [`Session::submit`], for a reply with a variable part of up to a page: of a directory's
    /// entries, or a link's target. There is room for one such request at a time.
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

    /// As [`Session::submit`], for a request whose reply nobody waits for: RELEASE, FORGET. Whether
    /// there was room.
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
        // SAFETY: the page is the device's until the slot is done, as `is_page_free` sees to.
        let ticket = unsafe { link.add(slot, &message) }?;
        self.unique = unique.next();
        Ok(Some(ticket))
    }

    /// Asks for as many of the bytes at `to`, one at least, as can be lent to the device now:
    /// [`Ticket::lent`] of them. `read` says where they are in a file.
    ///
    /// `None` if there is no room now: something must come back first.
    ///
    /// # Errors
    ///
    /// As [`Session::submit`], and [`DeviceError::BufferRefused`] if nothing is lent and
    /// nevertheless not one byte can be.
    ///
    /// # Safety
    ///
    /// The bytes must be valid for writing and left alone for as long as the session
    /// [has](Session::has) the ticket; for ever, if the session is dropped before that and the device
    /// does not confirm its reset.
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
        // SAFETY: the caller promises to leave the bytes alone.
        let ticket = unsafe { link.add(slot, &message) }?;
        self.unique = unique.next();
        Ok(Some(ticket))
    }

    /// Tells the device about all that was sent.
    pub fn kick(&mut self) {
        if let Some(link) = &mut self.link {
            for ring in &mut link.requests {
                ring.kick(&mut self.transport);
            }
            link.hiprio.kick(&mut self.transport);
        }
    }

    /// Takes the reply to a request, if it has come. `operation` is what was sent.
    ///
    /// # Errors
    ///
    /// The host's, how it broke the protocol, or why the session ended in which it was sent.
    pub fn take<O: Operation>(
        &mut self,
        operation: &O,
        ticket: Ticket,
    ) -> Result<Option<O::Reply>, Error> {
        self.take_into(operation, ticket, &mut [])
    }

    /// As [`Session::take`], and copies the variable part of the reply to `page`, of the size that
    /// was asked for.
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
        // What the host may still write to is looked at in a copy.
        let size = fuse::REPLY_HEADER.saturating_add(O::REPLY_SIZE);
        let reply = self.scratch.get_mut(..size).unwrap_or_default();
        let Some(used) = link.slots.take(ticket, reply, page) else {
            return Ok(None);
        };
        let data_size = page.len().saturating_add(ticket.lent());
        let reply = fuse::decode(operation, ticket.unique, reply, data_size, used);
        Ok(Some(reply?))
    }

    /// When a request was first seen to be under way.
    fn since(&self, ticket: Ticket) -> Option<Duration> {
        self.link.as_ref()?.slots.since(ticket)
    }

    /// Counts the time of a request from then on.
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
