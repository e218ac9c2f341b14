//! One FUSE session over a file system device's virtqueues: submit, poll, complete, and a deadline
//! on progress (virtio 1.2, section 5.11).
//!
//! Floor 3. It knows devices and the wire, and nothing of paths or files. `unsafe` lives in three
//! rooms, `ring`, `slots` and `transfer`, and here where chains are put into rings.
//!
//! # Borrowed buffers
//!
//! File data is written by the host straight into the caller's buffer. A function that lends one
//! returns, or unwinds, only when the device has given every descriptor back or has confirmed its
//! reset. A device that does neither makes the client call [`Clock::stop`].
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

mod ring;
mod slots;
mod tag;
mod transfer;

pub use tag::{DeviceConfig, Tag};
pub use transfer::Part;

use crate::{
    error::{DeviceError, Error},
    fuse::{self, Destroy, Init, Operation, ReplyError, Unique, Violation},
    hal::{Clock, Hal, SHARED_POOL_PAGES},
};
use core::{
    fmt,
    mem::ManuallyDrop,
    ptr::NonNull,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use heapless::Vec;
use ring::{Chain, Full, Ring};
use slots::{Slot, SlotSet, Slots};
use transfer::Transfer;
use virtio_drivers::transport::{DeviceStatus, Transport};

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
const HIPRIO_ENTRIES: usize = 8;
/// Descriptors of a request queue: 21 READs of three, more than it takes to keep a host busy.
const REQUEST_ENTRIES: usize = 64;
/// READs that fit into one request queue.
const MAX_DEPTH: usize = REQUEST_ENTRIES / 3;

/// Largest READ. The descriptors of one request may have 2^32 bytes in all, headers included
/// (virtio 1.2, section 2.7.5), and a reply says its length in 32 bits.
const MAX_CHUNK: u32 = 1 << 30;

/// DMA pages that one session takes with the default [`Options`]: 13.
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

/// Looks at the ring between two looks at the clock.
const POLLS_PER_TICK: u32 = 64;

/// Bytes of data in flight for which a platform may rest a microsecond: 32 GiB/s, which no host
/// reads a file at, so that it has work until the end of the rest.
const REST_PER_MICROSECOND: u64 = 32 << 10;
/// Shorter rests, in microseconds, are not worth their while.
const MIN_REST: u64 = 50;

/// How a session talks to its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Longest wait for any progress of the host. Default: 10 s.
    pub deadline: Duration,
    /// Bytes that one READ asks for at most, 1 to 2^30. Default: 1 MiB.
    pub chunk_size: u32,
    /// READs in flight, 1 to 21. Default: 16.
    pub depth: usize,
    /// Request queues in use, 1 to 4, if the device offers so many. Default: 4.
    pub request_queues: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            chunk_size: 1 << 20,
            depth: 16,
            request_queues: MAX_REQUEST_QUEUES,
        }
    }
}

impl Options {
    /// With another deadline.
    #[must_use]
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// With another chunk size in bytes; 0 is taken as 1, and 2^30 is the most.
    #[must_use]
    pub const fn with_chunk_size(mut self, bytes: u32) -> Self {
        self.chunk_size = bytes;
        self
    }

    /// With another number of READs in flight.
    #[must_use]
    pub const fn with_depth(mut self, depth: usize) -> Self {
        self.depth = depth;
        self
    }

    /// With another number of request queues at most: see [`pages_per_share`] for what they take.
    #[must_use]
    pub const fn with_request_queues(mut self, queues: usize) -> Self {
        self.request_queues = queues;
        self
    }

    /// With each in its bounds.
    fn clamped(self) -> Self {
        Self {
            deadline: self.deadline,
            chunk_size: self.chunk_size.clamp(1, MAX_CHUNK),
            depth: self.depth.clamp(1, MAX_DEPTH),
            request_queues: self.request_queues.clamp(1, MAX_REQUEST_QUEUES),
        }
    }
}

/// A session: the device set up, INIT exchanged.
///
/// Dropping it resets the device; [`Session::end`] says goodbye first. After an error that ended
/// the session, [`Session::resume`] starts another one on the same device.
pub struct Session<T: Transport, C: Clock, H: Hal> {
    transport: T,
    clock: C,
    options: Options,
    /// Request queues that the device says it has.
    offered_queues: u32,
    /// The way to the device, while it runs. It goes only after the device was reset.
    link: Option<Link<H>>,
    unique: Unique,
    tag: Tag,
    minor: u32,
    epoch: Epoch,
}

impl<T: Transport, C: Clock, H: Hal> fmt::Debug for Session<T, C, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("tag", &self.tag)
            .field("epoch", &self.epoch)
            .field("connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}

/// Which session a node or handle is of, of all that there were: to the host of another one, or
/// after [`Session::resume`], they mean nothing or something else.
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
    /// One at least.
    requests: Vec<Ring<H, REQUEST_ENTRIES>, MAX_REQUEST_QUEUES>,
    slots: Slots<H>,
}

/// What [`Session::wait`] waits for.
#[derive(Clone, Copy)]
enum Until {
    /// A slot is free.
    SlotFree,
    /// A request queue has room.
    RequestRoom,
    /// The hiprio queue has room.
    HiprioRoom,
    /// One of these slots is done.
    Done(SlotSet),
    /// No posted request is under way.
    NonePosted,
}

/// A request under way that somebody waits for.
#[derive(Clone, Copy)]
struct Ticket {
    slot: Slot,
    unique: Unique,
    data_size: usize,
}

impl<T: Transport, C: Clock, H: Hal> Session<T, C, H> {
    /// Resets the device, sets it up (virtio 1.2, section 3.1.1) and exchanges INIT.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] if the device can't be set up, [`Error::TimedOut`] if the host does not
    /// answer, [`Error::Protocol`] if it does not speak a version this client knows.
    pub fn start(transport: T, clock: C, options: Options) -> Result<Self, Error> {
        let config = DeviceConfig::read(&transport)?;
        let mut session = Self {
            transport,
            clock,
            options: options.clamped(),
            offered_queues: config.request_queues,
            link: None,
            unique: Unique::FIRST,
            tag: config.tag,
            minor: 0,
            epoch: Epoch::next(),
        };
        session.connect()?;
        Ok(session)
    }

    /// Starts another session on the same device, after an error that ended this one; does nothing
    /// while it goes on. Nodes and handles of before are void.
    ///
    /// # Errors
    ///
    /// As [`Session::start`]; it can be tried again.
    pub fn resume(&mut self) -> Result<(), Error> {
        if self.link.is_some() {
            return Ok(());
        }
        self.connect()
    }

    fn connect(&mut self) -> Result<(), Error> {
        self.reset();
        match self.set_up() {
            Ok(link) => self.link = Some(link),
            Err(error) => {
                self.reset();
                return Err(error.into());
            }
        }
        self.epoch = Epoch::next();
        // A server that refuses INIT has no session with us.
        match self.call(&Init) {
            Ok(negotiated) => self.minor = negotiated.minor,
            Err(error) => return Err(self.disconnect(error)),
        }
        Ok(())
    }

    /// Sets the device up, after its reset (virtio 1.2, section 3.1.1).
    fn set_up(&mut self) -> Result<Link<H>, DeviceError> {
        let transport = &mut self.transport;
        let known = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(DeviceStatus::ACKNOWLEDGE);
        transport.set_status(known);
        let offered = transport.read_device_features();
        if offered & VERSION_1 == 0 {
            return Err(DeviceError::NotModern);
        }
        transport.write_driver_features(VERSION_1 | offered & ACCESS_PLATFORM);
        transport.set_status(known | DeviceStatus::FEATURES_OK);
        if !transport.get_status().contains(DeviceStatus::FEATURES_OK) {
            return Err(DeviceError::FeaturesRefused);
        }
        let slots = Slots::new()?;
        let hiprio = Ring::new(transport, HIPRIO_QUEUE)?;
        let mut requests = Vec::new();
        let wanted = self
            .options
            .request_queues
            .min(self.offered_queues as usize);
        for queue in (REQUEST_QUEUE..).take(wanted.max(1)) {
            match Ring::new(transport, queue) {
                // There is room, as the options were clamped.
                Ok(ring) => _ = requests.push(ring),
                Err(error) if requests.is_empty() => {
                    // The device knows the other ring already.
                    self.reset_before_freeing(hiprio);
                    return Err(error);
                }
                // One is all that it takes.
                Err(error) => {
                    log::debug!("share {}: queue {queue} is not used: {error}", self.tag);
                    break;
                }
            }
        }
        transport.set_status(known | DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK);
        Ok(Link {
            hiprio,
            requests,
            slots,
        })
    }

    /// Resets the device, and frees the link.
    fn reset(&mut self) {
        let link = self.link.take();
        self.reset_before_freeing(link);
    }

    /// Resets the device and waits until it confirms (virtio 1.2, section 2.1.1): from then on it
    /// writes to no memory of ours, and `memory` is freed. Does not return otherwise.
    fn reset_before_freeing<M>(&mut self, memory: M) {
        // Should `stop` unwind, as in a test, the memory stays allocated: the device may still
        // write to it.
        let memory = ManuallyDrop::new(memory);
        let (transport, clock) = (&mut self.transport, &self.clock);
        transport.set_status(DeviceStatus::empty());
        let start = clock.now();
        while !transport.get_status().is_empty() {
            if clock.now().saturating_sub(start) >= self.options.deadline {
                clock.stop(
                    "a virtio-fs device does not confirm its reset and may write to memory at any \
                     time: the machine is stopped; restart it",
                );
            }
            clock.relax();
        }
        drop(ManuallyDrop::into_inner(memory));
    }

    /// Which session this is, of those on this device.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether the session goes on.
    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    fn link(&mut self) -> Result<&mut Link<H>, Error> {
        self.link.as_mut().ok_or(Error::Disconnected)
    }

    /// The share's name.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// The minor version of FUSE 7 agreed on.
    pub fn minor(&self) -> u32 {
        self.minor
    }

    /// Sends `operation` and waits for its reply.
    ///
    /// # Errors
    ///
    /// The host's error, or how it broke the protocol; [`Error::TimedOut`] after the deadline.
    pub fn call<O: Operation>(&mut self, operation: &O) -> Result<O::Reply, Error> {
        self.exchange(operation, None)
    }

    /// Sends `operation` and waits for its reply, whose variable part the host writes into `data`.
    ///
    /// # Errors
    ///
    /// As [`Session::call`].
    pub fn call_into<O: Operation>(
        &mut self,
        operation: &O,
        data: &mut [u8],
    ) -> Result<O::Reply, Error> {
        let lent = Lent { session: self };
        let data = NonNull::from(data);
        lent.session.exchange(operation, Some(data))
    }

    /// Sends and waits. If `data` is given, a [`Lent`] of the caller's watches over it.
    fn exchange<O: Operation>(
        &mut self,
        operation: &O,
        data: Option<NonNull<[u8]>>,
    ) -> Result<O::Reply, Error> {
        let ticket = self.submit(operation, data)?;
        self.wait(Until::Done(ticket.slot.into()))?;
        Ok(self.finish(operation, ticket)?)
    }

    /// Sends `operation` and does not wait: its reply is thrown away when it comes.
    ///
    /// For requests whose failure nobody can do anything about. On a session that is no longer
    /// connected it does nothing.
    pub fn post<O: Operation>(&mut self, operation: &O, priority: Priority) {
        if let Err(error) = self.try_post(operation, priority) {
            log::debug!("request {} was not sent: {error}", O::OPCODE as u32);
        }
    }

    fn try_post<O: Operation>(&mut self, operation: &O, priority: Priority) -> Result<(), Error> {
        let (slot, size, _) = self.encode(operation)?;
        match priority {
            Priority::High => self.send_hiprio(slot, size),
            Priority::Normal => {
                self.send(slot, size, reply_size::<O>(), None, true)?;
                self.kick();
                Ok(())
            }
        }
    }

    /// Takes a slot and writes the request for `operation` into it. Gives its size too.
    fn encode<O: Operation>(&mut self, operation: &O) -> Result<(Slot, usize, Unique), Error> {
        let (slot, unique) = self.take_slot()?;
        let slots = &mut self.link()?.slots;
        match fuse::encode(operation, unique, slots.request_mut(slot)) {
            Ok(size) => Ok((slot, size, unique)),
            Err(_) => {
                slots.free(slot);
                Err(Error::InvalidName)
            }
        }
    }

    fn take_slot(&mut self) -> Result<(Slot, Unique), Error> {
        self.wait(Until::SlotFree)?;
        let slot = self.link()?.slots.take().ok_or(Error::Disconnected)?;
        let unique = self.unique;
        self.unique = unique.next();
        Ok((slot, unique))
    }

    /// Puts a request into the ring, without a kick.
    ///
    /// `data`, if any, must stay valid and untouched until the slot is done or the device reset:
    /// whoever passes it holds a [`Lent`].
    fn submit<O: Operation>(
        &mut self,
        operation: &O,
        data: Option<NonNull<[u8]>>,
    ) -> Result<Ticket, Error> {
        let data_size = data.map_or(0, |data| data.len());
        let (slot, size, unique) = self.encode(operation)?;
        self.send(slot, size, reply_size::<O>(), data, false)?;
        Ok(Ticket {
            slot,
            unique,
            data_size,
        })
    }

    /// Hands the request in `slot`, of `size` bytes, to the request queue.
    fn send(
        &mut self,
        slot: Slot,
        size: usize,
        reply_size: usize,
        data: Option<NonNull<[u8]>>,
        posted: bool,
    ) -> Result<(), Error> {
        self.wait(Until::RequestRoom)?;
        let link = self.link()?;
        let chain = Chain {
            request: link.slots.request(slot, size),
            reply: Some(link.slots.reply(slot, reply_size)),
            // A descriptor must not be empty; a reply that does not fit is then one without data.
            data: data.filter(|data| !data.is_empty()),
        };
        // The first of those with the most room: a device with a thread a queue serves them at the
        // same time.
        let ring = link
            .requests
            .iter_mut()
            .rev()
            .max_by_key(|ring| ring.room());
        let added = ring.map_or(Err(Full), |ring| {
            // SAFETY: request and reply lie in their slot, which is the device's until it is done;
            // the data buffer is watched over by the caller's `Lent`.
            unsafe { ring.add(slot, &chain) }
        });
        self.sent(slot, chain, added, posted)
    }

    /// Hands the request in `slot`, of `size` bytes, to the hiprio queue. There is no reply.
    fn send_hiprio(&mut self, slot: Slot, size: usize) -> Result<(), Error> {
        self.wait(Until::HiprioRoom)?;
        let link = self.link()?;
        let chain = Chain {
            request: link.slots.request(slot, size),
            reply: None,
            data: None,
        };
        // SAFETY: the request lies in its slot, as above.
        let added = unsafe { link.hiprio.add(slot, &chain) };
        self.sent(slot, chain, added, true)?;
        self.kick();
        Ok(())
    }

    fn sent(
        &mut self,
        slot: Slot,
        chain: Chain,
        added: Result<(), Full>,
        posted: bool,
    ) -> Result<(), Error> {
        match added {
            Ok(()) => {
                self.link()?.slots.set_in_flight(slot, chain, posted);
                Ok(())
            }
            // There was room a moment ago.
            Err(Full) => Err(self.disconnect(Violation::UsedId.into())),
        }
    }

    /// Tells the device about all that was sent.
    fn kick(&mut self) {
        if let Some(link) = &mut self.link {
            for ring in &mut link.requests {
                ring.kick(&mut self.transport);
            }
            link.hiprio.kick(&mut self.transport);
        }
    }

    /// Reads the reply of a request that is done and frees its slot.
    fn finish<O: Operation>(
        &mut self,
        operation: &O,
        ticket: Ticket,
    ) -> Result<O::Reply, ReplyError> {
        let not_done = || ReplyError::Malformed(Violation::UsedId);
        let slots = &mut self.link.as_mut().ok_or_else(not_done)?.slots;
        let (reply, used) = slots.done(ticket.slot).ok_or_else(not_done)?;
        let Ticket {
            unique, data_size, ..
        } = ticket;
        let result = fuse::decode(operation, unique, reply, data_size, used);
        slots.free(ticket.slot);
        result
    }

    /// Takes all completions that are there. Bounded by the number of slots, since no chain
    /// completes twice.
    fn poll(&mut self) -> Result<bool, Error> {
        match self.link()?.reap_all() {
            Ok(progress) => Ok(progress),
            Err(violation) => Err(self.disconnect(violation.into())),
        }
    }

    /// Kicks, then polls until it is so, as long as the host makes progress.
    fn wait(&mut self, until: Until) -> Result<(), Error> {
        if self.link()?.is_so(until) {
            return Ok(());
        }
        self.kick();
        let mut last_progress = self.clock.now();
        loop {
            for _ in 0..POLLS_PER_TICK {
                let progress = self.poll()?;
                if self.link()?.is_so(until) {
                    return Ok(());
                }
                if progress {
                    last_progress = self.clock.now();
                    continue;
                }
                match self.link()?.slots.lent_bytes() / REST_PER_MICROSECOND {
                    micros @ MIN_REST.. => self.clock.rest(Duration::from_micros(micros)),
                    _ => self.clock.relax(),
                }
            }
            if self.clock.now().saturating_sub(last_progress) >= self.options.deadline {
                let after_ms = self.options.deadline.as_millis().try_into();
                return Err(self.disconnect(Error::TimedOut {
                    after_ms: after_ms.unwrap_or(u32::MAX),
                }));
            }
        }
    }

    /// Ends the session after `error`: the device is reset before anything else happens.
    fn disconnect(&mut self, error: Error) -> Error {
        if self.link.is_some() {
            // Said before the reset, which QEMU itself may not survive when its server is stopped.
            log::warn!("share {}: {error}; resetting the device", self.tag);
            self.reset();
        }
        error
    }

    /// Reads all of `parts`, straight into their buffers, in chunks kept in flight: what comes
    /// first is asked for first, and the next part's chunks follow without a gap.
    ///
    /// `progress` is called from time to time, and before the return, with what has come.
    ///
    /// # Errors
    ///
    /// That of the first part that failed; nothing more is asked for then. [`Error::Disconnected`]
    /// for a part of another session. What has come, [`Part::come`] tells.
    pub fn read(
        &mut self,
        parts: &mut [Part<'_>],
        progress: &mut dyn FnMut(&[Part<'_>]),
    ) -> Result<(), Error> {
        let lent = Lent { session: self };
        Transfer::new(parts).run(lent.session, progress)
    }

    /// Says DESTROY after every posted request was answered, and resets the device, so that the
    /// next driver finds it as new.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] or [`Error::Protocol`]; the device is reset all the same.
    pub fn end(mut self) -> Result<(), Error> {
        self.wait(Until::NonePosted)?;
        match self.call(&Destroy) {
            // virtiofsd gives the buffers back without a reply.
            Err(Error::Protocol(Violation::ReplyLength)) | Ok(()) => Ok(()),
            // A server need not know DESTROY.
            Err(Error::Host(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Bytes of the client's own memory that a reply takes.
const fn reply_size<O: Operation>() -> usize {
    fuse::REPLY_HEADER.saturating_add(O::REPLY_SIZE)
}

/// Which queue a posted request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// A request queue.
    Normal,
    /// The hiprio queue, for FORGET alone: there is no reply.
    High,
}

impl<T: Transport, C: Clock, H: Hal> Drop for Session<T, C, H> {
    fn drop(&mut self) {
        if self.link.is_some() {
            self.reset();
        }
    }
}

impl<H: Hal> Link<H> {
    fn is_so(&self, until: Until) -> bool {
        match until {
            Until::SlotFree => self.slots.any_free(),
            Until::RequestRoom => self.requests.iter().any(Ring::has_room),
            Until::HiprioRoom => self.hiprio.has_room(),
            Until::Done(set) => self.slots.any_done(set),
            Until::NonePosted => !self.slots.any_posted(),
        }
    }

    /// Takes all completions that are there; whether there were any.
    fn reap_all(&mut self) -> Result<bool, Violation> {
        let mut progress = reap(&mut self.hiprio, &mut self.slots)?;
        for ring in &mut self.requests {
            progress |= reap(ring, &mut self.slots)?;
        }
        Ok(progress)
    }
}

/// Takes all completions that are in `ring`; whether there were any.
fn reap<H: Hal, const SIZE: usize>(
    ring: &mut Ring<H, SIZE>,
    slots: &mut Slots<H>,
) -> Result<bool, Violation> {
    let mut progress = false;
    // SAFETY: the slots keep what was added for them while it is in flight.
    while let Some((slot, used)) = unsafe { ring.reap(|slot| slots.chain(slot)) }? {
        slots.complete(slot, used);
        progress = true;
    }
    Ok(progress)
}

/// A caller's buffer is lent to the device while this lives. Dropped early, by an error or a
/// panic, it resets the device, so that the buffer is the caller's again.
struct Lent<'a, T: Transport, C: Clock, H: Hal> {
    session: &'a mut Session<T, C, H>,
}

impl<T: Transport, C: Clock, H: Hal> Drop for Lent<'_, T, C, H> {
    fn drop(&mut self) {
        let link = self.session.link.as_ref();
        if link.is_some_and(|link| link.slots.lent_bytes() > 0) {
            self.session.disconnect(Error::Disconnected);
        }
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
