//! Request slots: the state of each request in flight, and DMA memory for the request and the fixed
//! part of its reply. One extra page holds the variable part of a READDIR or READLINK reply.

use super::{Class, Message, Priority, memory::Pages};
use crate::{
    error::DeviceError,
    fuse::{REPLY_HEADER, REQUEST_HEADER, Unique},
    hal::{BufferDirection, Hal, PAGE_SIZE, PhysAddr},
};
use core::time::Duration;

/// Bytes of a request: the longest is a LOOKUP with a name of 255 bytes and its NUL.
pub(super) const REQUEST_BYTES: usize = 320;
/// Bytes of a reply: the longest fixed part is LOOKUP's, 128 bytes after the header.
pub(super) const REPLY_BYTES: usize = 192;
const SLOT_BYTES: usize = REQUEST_BYTES + REPLY_BYTES;
const SLOT_PAGES: usize = 3;
/// Offset of the extra page.
const PAGE: usize = SLOT_PAGES * PAGE_SIZE;
/// DMA pages of all slots, including the extra page.
pub(super) const PAGES: usize = SLOT_PAGES + 1;
/// Requests in flight at once: 21 READs of three descriptors, which fill a ring of 64, and three for
/// other users of the share.
pub(super) const COUNT: usize = SLOT_PAGES * PAGE_SIZE / SLOT_BYTES;
/// Slots that posted requests leave free for awaited ones. RELEASE leaves more than FORGET, because it
/// may take long.
const LEFT_BY_NORMAL: usize = 4;
const LEFT_BY_HIGH: usize = 2;

const _: () = assert!(REQUEST_HEADER + 256 <= REQUEST_BYTES);
const _: () = assert!(REPLY_HEADER + 128 <= REPLY_BYTES);
const _: () = assert!(COUNT == 24);

/// The number of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u8);

impl Slot {
    fn index(self) -> usize {
        usize::from(self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// The request is in a ring.
    InFlight {
        /// The reply is discarded: the slot is free as soon as the device completes the request.
        posted: bool,
    },
    /// The device has completed the request and reported this length.
    Done(u32),
}

/// Identifies a request that was sent, by its slot and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    slot: Slot,
    pub(super) unique: Unique,
    lent: u32,
}

impl Ticket {
    /// Bytes of the caller's buffer that were lent to the device for this request.
    #[must_use]
    pub fn lent(self) -> usize {
        self.lent as usize
    }
}

#[derive(Clone, Copy)]
struct Request {
    state: State,
    unique: Unique,
    /// Bytes of the caller's buffer that the device may write to now.
    lent: u32,
    /// Whether its reply uses the extra page.
    has_page: bool,
    /// When it was first seen in flight.
    since: Option<Duration>,
}

pub(super) struct Slots<H: Hal> {
    memory: Pages<H, PAGES>,
    requests: [Request; COUNT],
}

impl<H: Hal> Slots<H> {
    pub fn new() -> Result<Self, DeviceError> {
        Ok(Self {
            memory: Pages::new(BufferDirection::Both)?,
            requests: [Request {
                state: State::Free,
                unique: Unique::FIRST,
                lent: 0,
                has_page: false,
                since: None,
            }; COUNT],
        })
    }

    /// Returns a free slot. It stays free until [`set_in_flight`](Self::set_in_flight).
    pub fn free(&self, class: Class) -> Option<Slot> {
        let requests = self.requests.iter().zip(0..);
        let mut free = requests.filter(|(request, _)| request.state == State::Free);
        let left = match class {
            Class::Awaited => 0,
            Class::Posted(Priority::High) => LEFT_BY_HIGH,
            Class::Posted(Priority::Normal) => LEFT_BY_NORMAL,
        };
        free.nth(left).map(|(_, number)| Slot(number))
    }

    pub fn is_page_free(&self) -> bool {
        !self.requests.iter().any(|request| request.has_page)
    }

    /// Writes a request into a free slot, and clears the header of its reply, so that a header read
    /// later was written for this request. Returns the device's addresses of both.
    pub fn write(&mut self, slot: Slot, request: &[u8]) -> (PhysAddr, PhysAddr) {
        let start = slot.index().saturating_mul(SLOT_BYTES);
        let reply = start.saturating_add(REQUEST_BYTES);
        self.memory.copy_in(start, request);
        self.memory.write(reply, [0u64; REPLY_HEADER / 8]);
        (self.memory.address(start), self.memory.address(reply))
    }

    /// The device's address of the extra page.
    pub fn page(&self) -> PhysAddr {
        self.memory.address(PAGE)
    }

    pub fn set_in_flight(&mut self, slot: Slot, message: &Message<'_>) -> Ticket {
        let (unique, data) = (message.unique, message.data);
        let lent = data.iter().filter(|buffer| buffer.shared.is_some());
        let lent = lent.map(|buffer| buffer.size).sum();
        *self.request(slot) = Request {
            state: State::InFlight {
                posted: message.class != Class::Awaited,
            },
            unique,
            lent,
            has_page: data.iter().any(|buffer| buffer.shared.is_none()),
            since: None,
        };
        Ticket { slot, unique, lent }
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "`free` makes slots, of numbers below `COUNT`"
    )]
    fn request(&mut self, slot: Slot) -> &mut Request {
        &mut self.requests[slot.index() % COUNT]
    }

    /// Notes that the device has completed the request of `slot`.
    pub fn complete(&mut self, slot: Slot, used: u32) {
        let request = self.request(slot);
        match request.state {
            State::InFlight { posted: false } => request.state = State::Done(used),
            _ => request.free(),
        }
        request.lent = 0;
    }

    fn get(&self, ticket: Ticket) -> Option<&Request> {
        let request = self.requests.get(ticket.slot.index())?;
        (request.unique == ticket.unique && request.state != State::Free).then_some(request)
    }

    /// Whether that request is in flight, or completed and its reply not taken.
    pub fn knows(&self, ticket: Ticket) -> bool {
        self.get(ticket).is_some()
    }

    /// Whether a posted request is in flight.
    pub fn any_posted(&self) -> bool {
        let posted = State::InFlight { posted: true };
        self.requests.iter().any(|request| request.state == posted)
    }

    pub fn any_in_flight(&self) -> bool {
        let mut requests = self.requests.iter();
        requests.any(|request| matches!(request.state, State::InFlight { .. }))
    }

    /// Bytes of callers' buffers that the device may write to now.
    pub fn lent_bytes(&self) -> u64 {
        self.requests
            .iter()
            .map(|request| u64::from(request.lent))
            .sum()
    }

    /// Notes that the requests in flight were seen at `now`; returns for how long the oldest one has
    /// been in flight.
    pub fn oldest(&mut self, now: Duration) -> Duration {
        let under_way = self.requests.iter_mut();
        let under_way = under_way.filter(|request| matches!(request.state, State::InFlight { .. }));
        let times = under_way.map(|request| now.saturating_sub(*request.since.get_or_insert(now)));
        times.max().unwrap_or_default()
    }

    /// When that request was first seen in flight.
    pub fn since(&self, ticket: Ticket) -> Option<Duration> {
        self.get(ticket)?.since
    }

    /// Sets the time from which the request's duration is measured.
    pub fn set_since(&mut self, ticket: Ticket, since: Option<Duration>) {
        self.request(ticket.slot).since = since;
    }

    /// Copies out the fixed part of a reply, and as much of its variable part as fits into `page`, and
    /// frees the slot. Returns the length that the device reported; `None` if the reply has not arrived.
    pub fn take(&mut self, ticket: Ticket, reply: &mut [u8], page: &mut [u8]) -> Option<u32> {
        let State::Done(used) = self.get(ticket)?.state else {
            return None;
        };
        let start = ticket.slot.index().saturating_mul(SLOT_BYTES);
        self.memory
            .copy_out(start.saturating_add(REQUEST_BYTES), reply);
        // Some devices report 0: see `fuse::decode`.
        let size = match used as usize {
            0 => page.len(),
            used => used.saturating_sub(REPLY_HEADER).min(page.len()),
        };
        self.memory
            .copy_out(PAGE, page.get_mut(..size).unwrap_or_default());
        self.abandon(ticket);
        Some(used)
    }

    /// Discards the reply: the slot is free at once, or when the device completes the request.
    pub fn abandon(&mut self, ticket: Ticket) {
        if self.knows(ticket) {
            let request = self.request(ticket.slot);
            match request.state {
                State::InFlight { .. } => request.state = State::InFlight { posted: true },
                _ => request.free(),
            }
        }
    }
}

impl Request {
    fn free(&mut self) {
        self.state = State::Free;
        self.has_page = false;
    }
}
