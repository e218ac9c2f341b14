//! One FUSE session over a file system device's virtqueues: submit, poll, complete, deadlines,
//! reset (virtio 1.2, section 5.11).
//!
//! Floor 3. It knows devices and the wire, and nothing of paths or files. A [`Session`] is a state
//! machine that never waits and has no clock; a [`Client`] waits for it, with the platform's
//! [`Clock`](crate::hal::Clock). `unsafe` is in the modules `memory`, `ring` and `transfer`, and here
//! where buffers are lent and descriptor chains are added to the rings.
//!
//! # Borrowed buffers
//!
//! The host writes file data directly into the caller's buffer. A function that borrows such a
//! buffer returns, or unwinds, only when the device has returned every descriptor or has confirmed
//! its reset. If a device does neither, the client calls [`Clock::stop`](crate::hal::Clock::stop).

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
    fmt,
    mem::{self, ManuallyDrop},
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

/// The queue for FORGET, which must not have to wait for reads (section 5.11.2).
const HIPRIO_QUEUE: u16 = 0;
/// The first request queue. QEMU's device offers no notification queue, which would have this number.
const REQUEST_QUEUE: u16 = 1;
/// Most request queues in use: each needs memory, and the slots cannot fill more of them.
const MAX_REQUEST_QUEUES: usize = 4;
/// Descriptors of the hiprio queue, one for each FORGET: resolving a path sends about one for each of
/// its directories, and few paths are deeper.
const HIPRIO_ENTRIES: usize = 8;
/// Descriptors of a request queue: 21 READs of three each, more than needed to keep a host busy.
const REQUEST_ENTRIES: usize = 64;
/// READs that fit into one request queue.
const MAX_DEPTH: usize = REQUEST_ENTRIES / 3;

/// The size of the largest READ. The descriptors of one request may cover 2^32 bytes, headers
/// included (virtio 1.2, section 2.7.5), and the length in a reply has 32 bits.
const MAX_CHUNK: u32 = 1 << 30;

/// Most pieces of one READ's buffer, where the platform does not lend it in one piece: 64 KiB at any
/// start in a page. Three such READs fit into a queue.
const MAX_PIECES: usize = 17;

/// DMA pages of one session with the default [`Options`]: 14.
pub const PAGES_PER_SHARE: usize = pages_per_share(MAX_REQUEST_QUEUES);

const _: () = assert!(SHARED_POOL_PAGES == 4 * PAGES_PER_SHARE);

/// DMA pages of one session with that number of request queues: two for each queue's ring, and those
/// of the request slots.
#[must_use]
pub const fn pages_per_share(request_queues: usize) -> usize {
    // Plus the hiprio queue.
    let rings = request_queues.saturating_add(1);
    slots::PAGES.saturating_add(rings.saturating_mul(2))
}

/// How long a device may take to confirm a reset (virtio 1.2, section 2.4.2). It must first end the
/// requests in flight, so the deadline of the share does not apply.
const RESET_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two reads of the device's status: each read is an exit to the hypervisor.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);

/// A session with the device, as a state machine: it never waits, and the caller passes the time.
///
/// A request is submitted, the device is [kicked](Session::kick), and [`Session::poll`] takes the
/// completions. [`Session::tick`] ends the session if the host is silent for too long. If the host
/// cannot be trusted after an error, the device is reset, and no buffer is returned to its owner before
/// the reset is confirmed. The requests are the operations of [`fuse`]. The caller must send FORGET
/// for each node of a LOOKUP reply, and RELEASE for each handle.
///
/// ```no_run
/// use bootshare::{Error, Options, hal::Hal, session::Session, transport::Transport};
/// use bootshare::fuse::{GetAttr, NodeId};
/// # use core::time::Duration;
///
/// /// Polls the device once, as a kernel does between other tasks.
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
///     // `None` would mean that there is no room now, which is not so at the start.
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
    /// The virtqueues and their memory. The device may use them while this is `Some`; it becomes
    /// `None` only after a confirmed reset. Nothing else drops it, not even a panic while the session
    /// is dropped.
    link: Option<ManuallyDrop<Link<H>>>,
    /// Why the last session ended.
    failure: Error,
    /// Requests are encoded and replies decoded here, in memory that the device cannot write.
    scratch: [u8; slots::REQUEST_BYTES],
    unique: Unique,
    tag: Tag,
    minor: u32,
    epoch: Epoch,
    /// Since when requests are in flight without a completion, as far as `tick` has seen.
    silent_since: Option<Duration>,
    interrupts: bool,
    reset_since: Option<Duration>,
    status_seen: Duration,
}

/// The state of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The session has failed, and the next poll resets the device. `said` is set once the caller has
    /// taken the reason, to log it.
    Failed { said: bool },
    /// The reset was requested and is not confirmed yet. With `connect`, the device is set up again
    /// afterwards.
    Resetting { connect: bool },
    /// It has not confirmed its reset within the deadline, but still may.
    Stuck,
    /// INIT is in flight.
    Greeting(Ticket),
    /// The session is connected.
    Up,
    /// Its reset is confirmed.
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

/// Identifies one session among all that the program has started. A node or handle is valid only in
/// the session that it came from, not in another share's or after a resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(usize);

impl Epoch {
    fn next() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The virtqueues, and the request slots whose memory they refer to.
struct Link<H: Hal> {
    hiprio: Ring<H, HIPRIO_ENTRIES>,
    /// At least one, once the device is set up.
    requests: Vec<Ring<H, REQUEST_ENTRIES>, MAX_REQUEST_QUEUES>,
    slots: Slots<H>,
}

/// The queue for a posted request.
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

    /// Starts a new session on the same device after an error ended the last one; does nothing while
    /// the session is connected. Nodes and handles of the last session become invalid.
    pub fn resume(&mut self) {
        if matches!(
            self.phase,
            Phase::Down | Phase::Stuck | Phase::Failed { .. } | Phase::Resetting { connect: false }
        ) {
            self.reset(true);
        }
    }

    /// Ends the session: the device is reset, and requests in flight fail. A reset in progress is not
    /// followed by a new session.
    pub fn disconnect(&mut self) {
        match self.phase {
            Phase::Up | Phase::Greeting(_) => {
                self.failure = Error::Disconnected;
                self.reset(false);
            }
            Phase::Failed { .. } => self.reset(false),
            Phase::Resetting { .. } => self.phase = Phase::Resetting { connect: false },
            Phase::Stuck | Phase::Down => {}
        }
    }

    /// Whether requests can be sent.
    pub fn is_connected(&self) -> bool {
        matches!(self.phase, Phase::Up)
    }

    /// Whether it must be polled further, until it is connected, has failed, or is reset.
    pub fn is_changing(&self) -> bool {
        self.is_ending() || self.is_connecting()
    }

    /// Whether a session is being set up.
    fn is_connecting(&self) -> bool {
        matches!(
            self.phase,
            Phase::Resetting { connect: true } | Phase::Greeting(_)
        )
    }

    /// Whether a reset is about to start or in progress.
    fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Failed { .. } | Phase::Resetting { .. })
    }

    /// Why the device is about to be reset, if the caller has not taken the reason yet.
    fn unsaid(&mut self) -> Option<Error> {
        let Phase::Failed { said } = &mut self.phase else {
            return None;
        };
        let is_said = mem::replace(said, true);
        (!is_said).then_some(self.failure)
    }

    /// Whether the device is reset and has no descriptor of ours.
    pub fn is_reset(&self) -> bool {
        self.phase == Phase::Down
    }

    /// The error that ended the last session, or why it could not be started.
    pub fn failure(&self) -> Error {
        self.failure
    }

    /// Identifies the current session.
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

    /// Requests a reset (virtio 1.2, section 2.4.2). Until the device has confirmed the reset,
    /// it may use all buffers of the requests in flight.
    fn reset(&mut self, connect: bool) {
        self.phase = Phase::Resetting { connect };
        self.reset_since = None;
        self.transport.set_status(DeviceStatus::empty());
    }

    /// Ends the session because of `error`. Nothing is logged here: the caller has the session locked,
    /// and a logger may use the share.
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
        // From the first `queue_set` on, the device may use this memory: `link` keeps it until the
        // next confirmed reset.
        let link = self.link.insert(ManuallyDrop::new(Link {
            slots: Slots::new()?,
            hiprio: Ring::new(transport, HIPRIO_QUEUE)?,
            requests: Vec::new(),
        }));
        let offered = self.offered_queues as usize;
        let wanted = self.options.request_queues.min(offered).max(1);
        for queue in (REQUEST_QUEUE..).take(wanted) {
            match Ring::new(transport, queue) {
                // This cannot fail: the options were clamped to the vector's capacity.
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
        // `None` cannot happen: all slots are free.
        self.phase = Phase::Greeting(ticket.ok_or(Error::Disconnected)?);
        self.kick();
        Ok(())
    }

    /// Takes the reply to INIT, if it has arrived.
    fn greet(&mut self, ticket: Ticket) {
        match self.take(&Init, ticket) {
            Ok(None) => {}
            Ok(Some(negotiated)) => {
                self.minor = negotiated.minor;
                self.phase = Phase::Up;
            }
            // Without INIT there is no session.
            Err(error) => self.fail(error),
        }
    }

    /// Asks the device for an interrupt after each completion, or for none (virtio 1.2, section 2.7.7).
    /// At the start there are none. [Poll](Session::poll) once more before you sleep: there is no
    /// interrupt for a completion that came before this call.
    ///
    /// `pci::probe` and `pci::scan` disable the device's interrupt pin: clear `INTERRUPT_DISABLE` in its
    /// command register afterwards. There is no support for MSI-X.
    ///
    /// The interrupt handler only has to call [`Session::acknowledge`] and wake the code that polls.
    /// A timer must wake it too, after the time that [`Session::tick`] returned.
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

    /// Takes all completions of the device, and continues a reset or set-up. Returns whether there was
    /// any progress.
    ///
    /// The time it takes is bounded whatever the device does: there cannot be more completions than
    /// requests in flight.
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
                if progress {
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
        // The reset is confirmed: the device no longer uses this memory.
        drop(self.link.take().map(ManuallyDrop::into_inner));
        if self.phase != (Phase::Resetting { connect: true }) {
            self.phase = Phase::Down;
            return true;
        }
        // If the transport panics in the middle, the device must be reset again.
        self.phase = Phase::Failed { said: true };
        if let Err(error) = self.connect() {
            self.failure = error;
            self.reset(false);
        }
        true
    }

    fn reap(&mut self) -> bool {
        match self.link.as_mut().map(|link| link.reap()) {
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

    /// Ends the session if the device was silent for too long, or has set `DEVICE_NEEDS_RESET` (virtio
    /// 1.2, section 2.1.2). Returns the time after which it must be called again at the latest.
    ///
    /// `now` is the time since a fixed moment. The time of a request starts with the first tick
    /// after it was sent.
    pub fn tick(&mut self, now: Duration) -> Duration {
        match self.phase {
            Phase::Down | Phase::Stuck => Duration::MAX,
            // Poll at once.
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
        // All other slots' requests may be served before a request, each within the deadline.
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

    /// Adds `operation` to a request queue, in the session `epoch`. `None` if there is no room now:
    /// another request must complete first. [`Session::kick`] notifies the device.
    ///
    /// # Errors
    ///
    /// [`Error::Disconnected`] if that session is over, [`Error::InvalidName`] if the operation's name
    /// is not a valid file name.
    pub fn submit<O: Operation>(
        &mut self,
        epoch: Epoch,
        operation: &O,
    ) -> Result<Option<Ticket>, Error> {
        self.check(epoch)?;
        self.send(operation, Class::Awaited, false)
    }

    /// As [`Session::submit`], for a reply with a variable part of up to one page: the entries of a
    /// directory, or the target of a symbolic link. Only one such request can be in flight.
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

    /// As [`Session::submit`], for a request whose reply is discarded: RELEASE, FORGET. Returns `false`
    /// if there is no room now.
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
        // `Operation` is a safe trait, and the device writes as many bytes as it says.
        const {
            assert!(
                O::REPLY_SIZE <= slots::REPLY_BYTES - fuse::REPLY_HEADER,
                "the fixed part of this operation's reply is larger than a slot's"
            );
        }
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
        // SAFETY: the page stays reserved until the slot is done: `is_page_free` was checked. The
        // reply fits into the slot, as asserted above.
        let ticket = unsafe { link.add(slot, &message) }?;
        self.unique = unique.next();
        Ok(Some(ticket))
    }

    /// Adds a READ into `to`, which must not be empty, for as many bytes from its start as can be lent
    /// to the device now, at most 2^30: [`Ticket::lent`] of them. `read` says which file and offset;
    /// its `size` is ignored.
    ///
    /// `None` if there is no room now: another request must complete first.
    ///
    /// # Errors
    ///
    /// As [`Session::submit`], and [`DeviceError::BufferRefused`] if the platform lends not one byte
    /// although no other buffer is lent.
    ///
    /// # Safety
    ///
    /// The bytes must be valid for writing and left alone for as long as the session
    /// [has](Session::has) the ticket; and for ever, if the session is dropped earlier and the device
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
        let most = to.len().min(MAX_CHUNK as usize);
        let to = NonNull::slice_from_raw_parts(to.cast(), most);
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
        // SAFETY: the caller promises that nobody accesses the bytes. The slot has room for a header.
        let ticket = unsafe { link.add(slot, &message) }?;
        self.unique = unique.next();
        Ok(Some(ticket))
    }

    /// Notifies the device of all requests added since the last call.
    pub fn kick(&mut self) {
        if let Some(link) = &mut self.link {
            for ring in &mut link.requests {
                ring.kick(&mut self.transport);
            }
            link.hiprio.kick(&mut self.transport);
        }
    }

    /// Takes the reply to a request, if it has arrived. `operation` must be the one submitted.
    ///
    /// # Errors
    ///
    /// The host's error, the way it broke the protocol, or why the session of the request ended.
    pub fn take<O: Operation>(
        &mut self,
        operation: &O,
        ticket: Ticket,
    ) -> Result<Option<O::Reply>, Error> {
        self.take_into(operation, ticket, &mut [])
    }

    /// As [`Session::take`], and copies the variable part of the reply to `page`, which must have the
    /// size that was asked for.
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
        // The host may still write to the reply, so it is decoded from a copy.
        let size = fuse::REPLY_HEADER.saturating_add(O::REPLY_SIZE);
        let reply = self.scratch.get_mut(..size).unwrap_or_default();
        let Some(used) = link.slots.take(ticket, reply, page) else {
            return Ok(None);
        };
        let data_size = page.len().saturating_add(ticket.lent());
        let reply = fuse::decode(operation, ticket.unique, reply, data_size, used);
        Ok(Some(reply?))
    }

    /// When `tick` first saw the request in flight.
    fn since(&self, ticket: Ticket) -> Option<Duration> {
        self.link.as_ref()?.slots.since(ticket)
    }

    /// Sets the time from which the request's duration is measured.
    fn set_since(&mut self, ticket: Ticket, since: Option<Duration>) {
        if let Some(link) = &mut self.link {
            link.slots.set_since(ticket, since);
        }
    }

    /// Whether the device may still use the request's buffers, or its reply was not taken yet.
    pub fn has(&self, ticket: Ticket) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.slots.knows(ticket))
    }

    /// Discards the reply to this request. The device keeps the request until it has completed it.
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

    /// Bytes of callers' buffers that the device may write to now.
    pub fn lent_bytes(&self) -> u64 {
        self.link.as_ref().map_or(0, |link| link.slots.lent_bytes())
    }
}

/// What happens with the reply to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// The reply is kept until it is taken.
    Awaited,
    /// The reply is discarded.
    Posted(Priority),
}

/// Lends the bytes at `to`, at least one and at most [`MAX_CHUNK`], to the device in at most `room`
/// pieces, and appends these to `pieces` (returning a vector would copy it). If the platform refuses to
/// lend the buffer in one piece, it is lent page by page until the platform refuses a page.
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
        // This cannot fail: `room` is at most `MAX_PIECES`.
        _ = pieces.push(Buffer {
            address,
            size: piece as u32,
            writable: true,
            shared: Some(start),
        });
        // SAFETY: `piece` is at most `left`, so this is at most one past the last byte.
        start = unsafe { start.add(piece) };
        left = left.saturating_sub(piece);
        piece = left.min(PAGE_SIZE);
    }
}

/// A request to be added to a ring.
struct Message<'m> {
    unique: Unique,
    class: Class,
    request: &'m [u8],
    /// Bytes of the reply that are written to the slot.
    reply_size: usize,
    /// The buffers for the rest of the reply.
    data: &'m [Buffer],
}

impl<T: Transport, H: Hal> Drop for Session<T, H> {
    fn drop(&mut self) {
        if !self.is_reset() {
            self.disconnect();
            self.poll_reset();
        }
        if self.link.is_some() {
            log::error!(
                "share {}: {}; its memory is lost",
                self.tag,
                DeviceError::ResetNotConfirmed
            );
        }
    }
}

impl<H: Hal> Link<H> {
    /// Free descriptors of the request queue that has the most.
    fn room(&self) -> usize {
        self.requests.iter().map(Ring::room).max().unwrap_or(0)
    }

    /// Puts a request into a ring.
    ///
    /// # Safety
    ///
    /// As [`Ring::add`], for the data; and `reply_size` must be at most [`slots::REPLY_BYTES`].
    unsafe fn add(&mut self, slot: Slot, message: &Message<'_>) -> Result<Ticket, Error> {
        let (request, reply) = self.slots.write(slot, message.request);
        let own = |address, size: usize, writable| Buffer {
            address,
            size: size as u32,
            writable,
            shared: None,
        };
        let mut chain = Vec::<_, { MAX_PIECES + 2 }>::new();
        // This cannot fail: the vector has room for both headers and `MAX_PIECES`.
        _ = chain.push(own(request, message.request.len(), false));
        let added = if message.class == Class::Posted(Priority::High) {
            // SAFETY: the request is in its slot, which stays untouched until the slot is done.
            // `Slots::write` checked its size.
            unsafe { self.hiprio.add(slot, &chain) }
        } else {
            _ = chain.push(own(reply, message.reply_size, true));
            _ = chain.extend_from_slice(message.data);
            // The first queue among those with the most room: a device with one thread for each queue
            // then serves them in parallel.
            let rings = self.requests.iter_mut().rev();
            let ring = rings.max_by_key(|ring| ring.room());
            // SAFETY: as above, and the caller promises the size of the reply, and the data.
            ring.map_or(Err(ring::Full), |ring| unsafe { ring.add(slot, &chain) })
        };
        // The callers have checked that there is room.
        added.map_err(|ring::Full| Violation::UsedId)?;
        Ok(self.slots.set_in_flight(slot, message))
    }

    /// Takes all completions; returns whether there were any.
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
