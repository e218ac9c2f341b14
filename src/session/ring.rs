//! A virtqueue whose completions are checked against what is in flight.
//!
//! A room of this floor that holds `unsafe`.

use super::slots::Slot;
use crate::{error::DeviceError, fuse::Violation, hal::Hal};
use core::{
    ptr::NonNull,
    sync::atomic::{Ordering, fence},
};
use virtio_drivers::{Error as VirtioError, queue::VirtQueue, transport::Transport};

/// The buffers of one request, in the order of its descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub request: NonNull<[u8]>,
    pub reply: Option<NonNull<[u8]>>,
    pub data: Option<NonNull<[u8]>>,
}

pub(super) struct Ring<H: Hal, const SIZE: usize> {
    queue: VirtQueue<H, SIZE>,
    index: u16,
    /// Whose chain is in flight, by its first descriptor. The device names chains by that number;
    /// it is looked up here before anything is made of it.
    in_flight: [Option<Slot>; SIZE],
    /// Something was added since the last kick.
    unannounced: bool,
}

// SAFETY: the ring and the buffers that it points to belong to this value alone, whichever thread
// has it.
unsafe impl<H: Hal, const SIZE: usize> Send for Ring<H, SIZE> {}

impl<H: Hal, const SIZE: usize> Ring<H, SIZE> {
    /// Sets queue `index` of the device up, before `DRIVER_OK`.
    pub fn new(transport: &mut impl Transport, index: u16) -> Result<Self, DeviceError> {
        let entries = transport.max_queue_size(index);
        let mut queue =
            VirtQueue::new(transport, index, false, false).map_err(|error| match error {
                VirtioError::InvalidParam => DeviceError::QueueTooSmall {
                    entries,
                    needed: SIZE as u16,
                },
                VirtioError::AlreadyUsed => DeviceError::QueueInUse,
                _ => DeviceError::NoDmaMemory,
            })?;
        // The client polls.
        queue.set_dev_notify(false);
        Ok(Self {
            queue,
            index,
            in_flight: [const { None }; SIZE],
            unannounced: false,
        })
    }

    /// Descriptors that are free.
    pub fn room(&self) -> usize {
        self.queue.available_desc()
    }

    /// Whether a request of three descriptors fits.
    pub fn has_room(&self) -> bool {
        self.room() >= 3
    }

    /// Makes the chain of `slot` available to the device; [`kick`](Self::kick) tells it.
    ///
    /// # Errors
    ///
    /// [`Full`] if there is no room; nothing was done then.
    ///
    /// # Safety
    ///
    /// The buffers must be valid, `reply` and `data` for writing, and left alone until
    /// [`reap`](Self::reap) gives the slot back or the device was reset.
    pub unsafe fn add(&mut self, slot: Slot, chain: &Chain) -> Result<(), Full> {
        if !self.has_room() {
            return Err(Full);
        }
        let queue = &mut self.queue;
        #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one inside the other")]
        // SAFETY: the caller promises valid buffers that nobody else touches.
        let token = unsafe {
            with_buffers(chain, |inputs, outputs| {
                // SAFETY: the caller promises to leave the buffers alone until they come back.
                queue.add(inputs, outputs)
            })
        };
        let token = token.map_err(|_| Full)?;
        if let Some(place) = self.in_flight.get_mut(usize::from(token)) {
            *place = Some(slot);
        }
        self.unannounced = true;
        Ok(())
    }

    /// Tells the device about all that was added, unless it said it looks by itself.
    pub fn kick(&mut self, transport: &mut impl Transport) {
        if !core::mem::take(&mut self.unannounced) {
            return;
        }
        // The store of the available index must be seen before the device's wish is read, or both
        // sides may wait for each other (virtio 1.2, section 2.7.13.4.1). `add` has its fence
        // before that store.
        fence(Ordering::SeqCst);
        if self.queue.should_notify() {
            transport.notify(self.index);
        }
    }

    /// Takes the next completion: the slot and the bytes that the device reports. `chain_of` gives
    /// the chain that was added for a slot.
    ///
    /// # Errors
    ///
    /// [`Violation::UsedId`]: the device names a chain that is not in flight. The ring is in
    /// disorder then and the device must be reset.
    ///
    /// # Safety
    ///
    /// What `chain_of` gives for a slot must be what was added for it.
    pub unsafe fn reap(
        &mut self,
        chain_of: impl Fn(Slot) -> Option<Chain>,
    ) -> Result<Option<(Slot, u32)>, Violation> {
        let Some(token) = self.queue.peek_used() else {
            return Ok(None);
        };
        let place = self.in_flight.get_mut(usize::from(token));
        let place = place.ok_or(Violation::UsedId)?;
        let slot = place.ok_or(Violation::UsedId)?;
        let chain = chain_of(slot).ok_or(Violation::UsedId)?;
        let queue = &mut self.queue;
        #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one inside the other")]
        // SAFETY: the caller promises that these are the buffers that were promised to `add` to be
        // valid until now, and the device is done with them.
        let used = unsafe {
            with_buffers(&chain, |inputs, outputs| {
                // SAFETY: these are the buffers that were added when this token was given.
                queue.pop_used(token, inputs, outputs)
            })
        };
        // The device may have changed the ring between the two looks at it.
        let used = used.map_err(|_| Violation::UsedId)?;
        *place = None;
        Ok(Some((slot, used)))
    }
}

/// There is no room in the ring.
#[derive(Debug)]
pub(super) struct Full;

/// Calls `f` with the chain's buffers as `VirtQueue` wants them.
///
/// # Safety
///
/// The chain's buffers must be valid, and nobody else may use them meanwhile.
unsafe fn with_buffers<R>(
    chain: &Chain,
    f: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> R,
) -> R {
    // SAFETY: promised by the caller.
    let request = unsafe { chain.request.as_ref() };
    // SAFETY: promised by the caller; reply and data are different buffers.
    let reply = chain.reply.map(|mut reply| unsafe { reply.as_mut() });
    // SAFETY: as above.
    let data = chain.data.map(|mut data| unsafe { data.as_mut() });
    match (reply, data) {
        (None, None) => f(&[request], &mut []),
        (Some(only), None) | (None, Some(only)) => f(&[request], &mut [only]),
        (Some(reply), Some(data)) => f(&[request], &mut [reply, data]),
    }
}
