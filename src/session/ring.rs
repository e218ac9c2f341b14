//! The driver's side of a split virtqueue (virtio 1.2, section 2.7). Completions are checked
//! against the chains in flight.
//!
//! This module contains `unsafe`: callers' buffers are given back here.
//!
//! The device may write to the descriptor table and both rings at any time, so the driver never reads
//! back what it wrote there: it keeps its own copy of each chain. A used-ring entry contains only the
//! number of a chain, which is looked up in that copy, and a length.
//!
//! The order of the memory accesses is model-checked: `tests/in-process/tests/ring_model` compiles
//! this file with another `memory` module, based on loom.

use super::{
    memory::{Pages, fence, or_abort},
    slots::Slot,
};
use crate::{
    error::DeviceError,
    fuse::Violation,
    hal::{BufferDirection, Hal, PAGE_SIZE, PhysAddr},
};
use core::{ptr::NonNull, sync::atomic::Ordering};
use virtio_drivers::transport::Transport;

/// Flags of a descriptor: another one follows; the device writes to the buffer (section 2.7.5).
const NEXT: u64 = 1;
const WRITE: u64 = 2;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT` and `VIRTQ_USED_F_NO_NOTIFY` (sections 2.7.6, 2.7.8).
const NO_NOTIFICATION: u16 = 1;
const DESCRIPTOR_BYTES: usize = 16;

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buffer {
    /// The device's address of the buffer.
    pub address: PhysAddr,
    pub size: u32,
    pub writable: bool,
    /// The driver's pointer to the buffer, if the address came from [`Hal::share`].
    pub shared: Option<NonNull<u8>>,
}

/// The driver's own copy of a descriptor.
#[derive(Clone, Copy)]
struct Descriptor {
    address: PhysAddr,
    shared: Option<NonNull<u8>>,
    size: u32,
    /// The next descriptor of the chain or of the free list; `END` if this is the last.
    next: u16,
    /// The slot whose chain starts with this descriptor, while the chain is in flight.
    head_of: Option<Slot>,
}

const END: u16 = u16::MAX;

/// A virtqueue of `SIZE` descriptors, a power of two.
pub(super) struct Ring<H: Hal, const SIZE: usize> {
    /// The descriptor table and the available ring, which the device reads.
    driver: Pages<H, 1>,
    /// The used ring, which the device writes.
    device: Pages<H, 1>,
    index: u16,
    descriptors: [Descriptor; SIZE],
    free: u16,
    room: usize,
    /// Number of chains made available and taken back so far, modulo 2^16.
    available: u16,
    used: u16,
    /// A chain was added since the last kick.
    unannounced: bool,
}

// SAFETY: the pointers are only passed to `Hal::unshare`, by the thread that takes the chain back.
// The buffers' owner leaves them alone until then.
unsafe impl<H: Hal, const SIZE: usize> Send for Ring<H, SIZE> {}

impl<H: Hal, const SIZE: usize> Ring<H, SIZE> {
    /// Offset of the available ring: flags, index, and the heads of the chains.
    const AVAILABLE: usize = DESCRIPTOR_BYTES * SIZE;
    const AVAILABLE_INDEX: usize = Self::AVAILABLE + 2;
    const AVAILABLE_ENTRIES: usize = Self::AVAILABLE + 4;
    const MASK: usize = SIZE - 1;
    const FITS: () = assert!(
        SIZE.is_power_of_two()
            && Self::AVAILABLE + 6 + 2 * SIZE <= PAGE_SIZE
            && 6 + 8 * SIZE <= PAGE_SIZE
    );

    /// Offset of a descriptor in the table.
    fn descriptor(index: u16) -> usize {
        (usize::from(index) & Self::MASK).saturating_mul(DESCRIPTOR_BYTES)
    }

    /// Offset of the available ring's entry for chain number `number`.
    fn available_entry(number: u16) -> usize {
        let entry = (usize::from(number) & Self::MASK).saturating_mul(2);
        entry.saturating_add(Self::AVAILABLE_ENTRIES)
    }

    /// Offset of the used ring's entry for completion number `number`.
    fn used_entry(number: u16) -> usize {
        let entry = (usize::from(number) & Self::MASK).saturating_mul(8);
        entry.saturating_add(4)
    }

    /// Sets up queue `index` of the device, before `DRIVER_OK`.
    pub fn new(transport: &mut impl Transport, index: u16) -> Result<Self, DeviceError> {
        let () = Self::FITS;
        if transport.queue_used(index) {
            return Err(DeviceError::QueueInUse);
        }
        let entries = transport.max_queue_size(index);
        if entries < SIZE as u32 {
            return Err(DeviceError::QueueTooSmall {
                entries,
                needed: SIZE as u16,
            });
        }
        let mut ring = Self {
            driver: Pages::new(BufferDirection::DriverToDevice)?,
            device: Pages::new(BufferDirection::DeviceToDriver)?,
            index,
            descriptors: core::array::from_fn(|index| Descriptor {
                address: 0,
                shared: None,
                size: 0,
                // The last descriptor's successor does not exist, which ends the free list.
                next: (index as u16).saturating_add(1),
                head_of: None,
            }),
            free: 0,
            room: SIZE,
            available: 0,
            used: 0,
            unannounced: false,
        };
        ring.set_interrupts(false);
        let driver = &ring.driver;
        // In case a `Hal` does not zero its pages; everything else is written before it is read.
        let (available, device) = (driver.atomic(Self::AVAILABLE_INDEX), &ring.device);
        for field in [available, device.atomic(0), device.atomic(2)] {
            field.store(0, Ordering::Relaxed);
        }
        transport.queue_set(
            index,
            SIZE as u32,
            driver.address(0),
            driver.address(Self::AVAILABLE),
            ring.device.address(0),
        );
        Ok(ring)
    }

    /// Asks the device for an interrupt after each completion, or for none (section 2.7.7).
    pub fn set_interrupts(&mut self, wanted: bool) {
        let flags = self.driver.atomic(Self::AVAILABLE);
        flags.store(if wanted { 0 } else { NO_NOTIFICATION }, Ordering::Relaxed);
        // The next poll sees every completion that came before the device saw this flag (section
        // 2.7.7.2).
        fence(Ordering::SeqCst);
    }

    /// Number of free descriptors.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Makes the chain of `slot` available to the device; [`kick`](Self::kick) notifies it.
    ///
    /// # Errors
    ///
    /// [`Full`] if there is no room; then nothing was changed.
    ///
    /// # Safety
    ///
    /// The buffers must be valid, the writable ones for writing, and left alone until
    /// [`pop`](Self::pop) returns the slot, or the ring is dropped after a reset. If `shared` is set,
    /// `address` must be what [`Hal::share`] returned for it.
    pub unsafe fn add(&mut self, slot: Slot, chain: &[Buffer]) -> Result<(), Full> {
        let room = self.room.checked_sub(chain.len()).ok_or(Full)?;
        let head = self.free;
        let mut last = END;
        for (buffer, left) in chain.iter().zip((0..chain.len()).rev()) {
            last = self.free;
            let descriptor = self.descriptors.get_mut(usize::from(last)).ok_or(Full)?;
            descriptor.address = buffer.address;
            descriptor.shared = buffer.shared;
            descriptor.size = buffer.size;
            self.free = descriptor.next;
            let flags = if left > 0 { NEXT } else { 0 } | if buffer.writable { WRITE } else { 0 };
            let at = Self::descriptor(last);
            self.driver.write(at, buffer.address);
            let rest = u64::from(buffer.size) | flags << 32 | u64::from(descriptor.next) << 48;
            self.driver.write(at.saturating_add(8), rest);
        }
        let last = self.descriptors.get_mut(usize::from(last)).ok_or(Full)?;
        last.next = END;
        let first = self.descriptors.get_mut(usize::from(head)).ok_or(Full)?;
        first.head_of = Some(slot);
        self.room = room;
        let entry = Self::available_entry(self.available);
        self.driver.write(entry, head);
        self.available = self.available.wrapping_add(1);
        // The chain is written before the index that publishes it (section 2.7.13.3).
        let index = self.driver.atomic(Self::AVAILABLE_INDEX);
        index.store(self.available, Ordering::Release);
        self.unannounced = true;
        Ok(())
    }

    /// Notifies the device of the chains added, unless it has disabled notifications.
    pub fn kick(&mut self, transport: &mut impl Transport) {
        if !core::mem::take(&mut self.unannounced) {
            return;
        }
        // The available index must be visible to the device before its flag is read; otherwise each
        // side may wait for the other (section 2.7.13.4.1).
        fence(Ordering::SeqCst);
        if self.device.atomic(0).load(Ordering::Relaxed) & NO_NOTIFICATION == 0 {
            transport.notify(self.index);
        }
    }

    /// Takes the next completion: the slot, and the length that the device reports.
    ///
    /// # Errors
    ///
    /// [`Violation::UsedId`]: the device names a chain that is not in flight. The device must be reset
    /// then.
    pub fn pop(&mut self) -> Result<Option<(Slot, u32)>, Violation> {
        // Acquire: the entry is read after the index that published it.
        if self.device.atomic(2).load(Ordering::Acquire) == self.used {
            return Ok(None);
        }
        let at = Self::used_entry(self.used);
        let id: u32 = self.device.read(at);
        let size = self.device.read(at.saturating_add(4));
        let head = usize::try_from(id).ok();
        let descriptor = head.and_then(|head| self.descriptors.get_mut(head));
        let slot = descriptor.and_then(|descriptor| descriptor.head_of.take());
        let slot = slot.ok_or(Violation::UsedId)?;
        self.used = self.used.wrapping_add(1);
        self.recycle(id as u16);
        Ok(Some((slot, size)))
    }

    /// Frees the chain that starts with `head`, and unshares its buffers.
    fn recycle(&mut self, head: u16) {
        let mut next = head;
        while let Some(descriptor) = self.descriptors.get_mut(usize::from(next)) {
            give_back::<H>(descriptor);
            self.room = self.room.saturating_add(1);
            next = descriptor.next;
            if next == END {
                descriptor.next = self.free;
            }
        }
        self.free = head;
    }
}

impl<H: Hal, const SIZE: usize> Drop for Ring<H, SIZE> {
    /// The device has been reset, so it uses no chain any more.
    fn drop(&mut self) {
        self.descriptors.iter_mut().for_each(give_back::<H>);
    }
}

fn give_back<H: Hal>(descriptor: &mut Descriptor) {
    if let Some(start) = descriptor.shared.take() {
        let buffer = NonNull::slice_from_raw_parts(start, descriptor.size as usize);
        // SAFETY: `share` returned `address` for this buffer, as the caller of `add` promised. The
        // device has completed the chain or was reset.
        or_abort(|| unsafe {
            H::unshare(descriptor.address, buffer, BufferDirection::DeviceToDriver);
        });
    }
}

/// The ring has too few free descriptors.
#[derive(Debug)]
pub(super) struct Full;
