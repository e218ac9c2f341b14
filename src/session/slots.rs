//! Request slots: DMA memory for the fixed part of each request and its reply.
//!
//! A room of this floor that holds `unsafe`. A slot's memory is the driver's while
//! the slot is taken and not in flight, and the device's while it is.

use super::ring::Chain;
use crate::{
    error::DeviceError,
    fuse::{Errno, REPLY_HEADER, REQUEST_HEADER},
    hal::{BufferDirection, Hal, PAGE_SIZE, PhysAddr},
};
use core::{marker::PhantomData, ptr::NonNull};

/// Bytes for a request: the longest is a LOOKUP of a name of 255 bytes and its NUL.
const REQUEST_BYTES: usize = 320;
/// Bytes for a reply: the longest fixed part is LOOKUP's, 128 bytes behind the header.
const REPLY_BYTES: usize = 192;
const SLOT_BYTES: usize = REQUEST_BYTES + REPLY_BYTES;
/// Pages that the slots take.
pub(super) const PAGES: usize = 3;
/// Requests that can be under way at once. A ring of 64 descriptors takes 21 READs of three; the
/// others are for requests without a data part, and for other rings.
pub(super) const COUNT: usize = PAGES * PAGE_SIZE / SLOT_BYTES;

const _: () = assert!(REQUEST_HEADER + 256 <= REQUEST_BYTES);
const _: () = assert!(REPLY_HEADER + 128 <= REPLY_BYTES);
const _: () = assert!(COUNT == 24);
// Every Linux error number fits an `Errno`.
const _: () = assert!(size_of::<Errno>() == 2);

/// A slot, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u8);

impl Slot {
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Several slots: bit `n` stands for slot `n`.
#[derive(Clone, Copy)]
pub(super) struct SlotSet(u32);

const _: () = assert!(COUNT <= u32::BITS as usize);

impl From<Slot> for SlotSet {
    fn from(slot: Slot) -> Self {
        Self(1 << slot.0)
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        Self(slots.into_iter().fold(0, |set, slot| set | 1 << slot.0))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Taken by the driver, with no request under way.
    Taken,
    /// The device has it.
    InFlight {
        /// Nobody waits: the slot is free when the device gives it back.
        posted: bool,
    },
    /// The device gave it back and reports that many bytes.
    Done(u32),
}

pub(super) struct Slots<H: Hal> {
    base: NonNull<u8>,
    paddr: PhysAddr,
    states: [State; COUNT],
    /// What the device has of each slot that is in flight.
    chains: [Option<Chain>; COUNT],
    hal: PhantomData<H>,
}

// SAFETY: the memory belongs to this value alone, whichever thread has it.
unsafe impl<H: Hal> Send for Slots<H> {}

impl<H: Hal> Slots<H> {
    pub fn new() -> Result<Self, DeviceError> {
        let (paddr, base) = H::dma_alloc(PAGES, BufferDirection::Both);
        if paddr == 0 {
            return Err(DeviceError::NoDmaMemory);
        }
        Ok(Self {
            base,
            paddr,
            states: [State::Free; COUNT],
            chains: [None; COUNT],
            hal: PhantomData,
        })
    }

    fn part(&self, slot: Slot, offset: usize, size: usize) -> NonNull<[u8]> {
        let start = slot
            .index()
            .saturating_mul(SLOT_BYTES)
            .saturating_add(offset);
        debug_assert!(start.saturating_add(size) <= PAGES * PAGE_SIZE);
        // SAFETY: slot numbers are below `COUNT` (`take` makes them all), so that the part is
        // inside the `PAGES` pages at `base`.
        let start = unsafe { self.base.add(start) };
        NonNull::slice_from_raw_parts(start, size)
    }

    fn state(&self, slot: Slot) -> State {
        // `take` makes all slot numbers.
        self.states
            .get(slot.index())
            .copied()
            .unwrap_or(State::Free)
    }

    fn set_state(&mut self, slot: Slot, state: State) {
        if let Some(place) = self.states.get_mut(slot.index()) {
            *place = state;
        }
    }

    /// Takes a free slot.
    pub fn take(&mut self) -> Option<Slot> {
        let mut states = self.states.iter_mut().zip(0..);
        let (state, number) = states.find(|(state, _)| **state == State::Free)?;
        *state = State::Taken;
        Some(Slot(number))
    }

    pub fn any_free(&self) -> bool {
        self.states.contains(&State::Free)
    }

    /// Whether the device gave one of these back.
    pub fn any_done(&self, set: SlotSet) -> bool {
        let mut states = self.states.iter().enumerate();
        states.any(|(index, state)| set.0 & 1 << index != 0 && matches!(state, State::Done(_)))
    }

    /// Whether a posted request is still under way.
    pub fn any_posted(&self) -> bool {
        self.states.contains(&State::InFlight { posted: true })
    }

    /// Bytes of callers' buffers that are with the device.
    pub fn lent_bytes(&self) -> u64 {
        let data = self.chains.iter().flatten().filter_map(|chain| chain.data);
        data.fold(0, |sum, data| sum.saturating_add(data.len() as u64))
    }

    /// What the device has of a slot in flight.
    pub fn chain(&self, slot: Slot) -> Option<Chain> {
        self.chains.get(slot.index()).copied().flatten()
    }

    fn set_chain(&mut self, slot: Slot, chain: Option<Chain>) {
        if let Some(place) = self.chains.get_mut(slot.index()) {
            *place = chain;
        }
    }

    /// Where the request is written.
    pub fn request_mut(&mut self, slot: Slot) -> &mut [u8] {
        assert!(matches!(self.state(slot), State::Taken));
        let mut part = self.part(slot, 0, REQUEST_BYTES);
        // SAFETY: the part is ours alone: the slot is taken, so the device does not have it, and
        // `&mut self` keeps other borrows of it away.
        unsafe { part.as_mut() }
    }

    /// The first `size` bytes of the request, for a descriptor.
    pub fn request(&self, slot: Slot, size: usize) -> NonNull<[u8]> {
        self.part(slot, 0, size.min(REQUEST_BYTES))
    }

    /// The first `size` bytes of the reply, for a descriptor, with its header cleared: what is
    /// read there afterwards was written by the device for this request.
    pub fn reply(&mut self, slot: Slot, size: usize) -> NonNull<[u8]> {
        assert!(matches!(self.state(slot), State::Taken));
        let mut header = self.part(slot, REQUEST_BYTES, REPLY_HEADER);
        // SAFETY: as in `request_mut`.
        unsafe { header.as_mut() }.fill(0);
        self.part(slot, REQUEST_BYTES, size.min(REPLY_BYTES))
    }

    pub fn set_in_flight(&mut self, slot: Slot, chain: Chain, posted: bool) {
        self.set_chain(slot, Some(chain));
        self.set_state(slot, State::InFlight { posted });
    }

    /// The device gave the slot back.
    pub fn complete(&mut self, slot: Slot, used: u32) {
        self.set_chain(slot, None);
        let state = match self.state(slot) {
            State::InFlight { posted: false } => State::Done(used),
            _ => State::Free,
        };
        self.set_state(slot, state);
    }

    /// The whole reply part and the length reported, once the device gave the slot back.
    pub fn done(&self, slot: Slot) -> Option<(&[u8], u32)> {
        let State::Done(used) = self.state(slot) else {
            return None;
        };
        let part = self.part(slot, REQUEST_BYTES, REPLY_BYTES);
        // SAFETY: the device gave the slot back and it was not sent again, so nobody writes to it
        // while `&self` is borrowed.
        Some((unsafe { part.as_ref() }, used))
    }

    /// Gives a slot back that is not in flight.
    pub fn free(&mut self, slot: Slot) {
        debug_assert!(!matches!(self.state(slot), State::InFlight { .. }));
        self.set_state(slot, State::Free);
    }
}

impl<H: Hal> Drop for Slots<H> {
    fn drop(&mut self) {
        // SAFETY: `base` and `paddr` came from `dma_alloc` of `PAGES` pages, in `new`. The session
        // resets the device before it drops its slots.
        let result = unsafe { H::dma_dealloc(self.paddr, self.base, PAGES) };
        debug_assert_eq!(result, 0);
    }
}
