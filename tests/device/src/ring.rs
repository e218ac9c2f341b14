//! The device's side of a split virtqueue (virtio 1.2, section 2.7).

use crate::{
    chain::{Buffer, Chain},
    memory,
    quirks::{Area, Scribble},
};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const DESCRIPTOR: u64 = 16;
const USED_ELEMENT: u64 = 8;

/// A chain, taken from a ring.
#[derive(Debug)]
pub struct Taken {
    pub head: u16,
    pub readable: Vec<Buffer>,
    pub writable: Vec<Buffer>,
}

impl Taken {
    pub fn into_chain(self, queue: u16, epoch: u64) -> Chain {
        let Self {
            head,
            readable,
            writable,
        } = self;
        Chain {
            head,
            queue,
            epoch,
            readable,
            writable,
        }
    }
}

/// A virtqueue that the driver set up.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    /// Whether its memory is `TestHal`'s, which knows when it is freed.
    pub is_counted: bool,
    next_available: u16,
    next_used: u16,
}

impl Ring {
    pub fn new(size: u16, descriptors: u64, available: u64, used: u64) -> Self {
        Self {
            size,
            descriptors,
            available,
            used,
            is_counted: false,
            next_available: 0,
            next_used: 0,
        }
    }

    /// Takes the next available chain. The error says which rule the driver broke.
    pub fn pop(&mut self) -> Option<Result<Taken, String>> {
        // SAFETY: the driver keeps its rings shared until it resets the device.
        let published = unsafe { memory::load_index(self.available + 2) };
        let waiting = published.wrapping_sub(self.next_available);
        if waiting == 0 {
            return None;
        }
        if waiting > self.size {
            return Some(Err(format!("{waiting} chains in a ring of {}", self.size)));
        }
        let slot = u64::from(self.next_available % self.size);
        self.next_available = self.next_available.wrapping_add(1);
        // SAFETY: as above.
        let head = u16::from_le_bytes(unsafe { bytes(self.available + 4 + 2 * slot) });
        Some(self.walk(head))
    }

    fn walk(&self, head: u16) -> Result<Taken, String> {
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let mut index = head;
        for _ in 0..self.size {
            if index >= self.size {
                return Err(format!("descriptor {index} of {}", self.size));
            }
            let at = self.descriptors + DESCRIPTOR * u64::from(index);
            // SAFETY: as above; the table has `size` entries.
            let raw: [u8; 16] = unsafe { bytes(at) };
            let address = u64::from_le_bytes(raw[..8].try_into().unwrap());
            let length = u32::from_le_bytes(raw[8..12].try_into().unwrap());
            let flags = u16::from_le_bytes(raw[12..14].try_into().unwrap());
            let buffer = Buffer { address, length };
            if length == 0 || address == 0 {
                return Err(format!("an empty buffer: {buffer:?}"));
            }
            if flags & !(NEXT | WRITE) != 0 {
                return Err(format!("descriptor flags {flags:#x} were not negotiated"));
            }
            if flags & WRITE != 0 {
                writable.push(buffer);
            } else if writable.is_empty() {
                readable.push(buffer);
            } else {
                return Err("a readable descriptor after a writable one".into());
            }
            if flags & NEXT == 0 {
                return Ok(Taken {
                    head,
                    readable,
                    writable,
                });
            }
            index = u16::from_le_bytes(raw[14..].try_into().unwrap());
        }
        Err("a chain with a loop".into())
    }

    /// Whether the driver wants an interrupt for returned chains.
    pub fn wants_interrupt(&self) -> bool {
        // SAFETY: the driver keeps its rings shared until it resets the device.
        unsafe { memory::load_index(self.available) & 1 == 0 }
    }

    /// Returns a chain.
    pub fn push(&mut self, id: u32, length: u32) {
        let slot = u64::from(self.next_used % self.size);
        let element = (u64::from(length) << 32 | u64::from(id)).to_le_bytes();
        // SAFETY: as above; the used ring is shared for writing and has `size` elements.
        unsafe { memory::write(self.used + 4 + USED_ELEMENT * slot, &element) };
        self.jump(1);
    }

    /// Advances the used index, whether there are entries or not.
    pub fn jump(&mut self, by: u16) {
        self.next_used = self.next_used.wrapping_add(by);
        // SAFETY: as above.
        unsafe { memory::store_index(self.used + 2, self.next_used) };
    }

    /// Writes where the device must not write.
    pub fn scribble(&self, scribble: &Scribble) {
        let size = u64::from(self.size);
        let (start, bytes) = match scribble.area {
            Area::Used => (self.used, 4 + USED_ELEMENT * size),
            Area::Descriptors => (self.descriptors, DESCRIPTOR * size),
            Area::Available => (self.available, 4 + 2 * size),
        };
        let at = start + u64::from(scribble.offset) % (bytes - 3);
        // SAFETY: the driver shared this area until it resets the device; the bytes lie in it.
        unsafe { memory::write(at, &scribble.bytes) };
    }

    /// Sets or clears the flag that suppresses notifications.
    pub fn set_no_notify(&self, no: bool) {
        // SAFETY: as above.
        unsafe { memory::store_index(self.used, u16::from(no)) };
    }
}

/// # Safety
///
/// As [`memory::read`].
unsafe fn bytes<const N: usize>(address: u64) -> [u8; N] {
    let mut out = [0; N];
    // SAFETY: the caller's promise.
    unsafe { memory::read(address, &mut out) };
    out
}
