//! A descriptor chain that the device has taken from the ring.

use crate::memory;

/// The buffer that a descriptor points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its address for the device.
    pub address: u64,
    /// Its size in bytes.
    pub length: u32,
}

/// A chain: the buffers of the request, then those of the reply.
///
/// It is returned to the driver once, and accessed only before that.
#[derive(Debug)]
pub struct Chain {
    pub(crate) head: u16,
    pub(crate) queue: u16,
    /// The epoch of the device in which the chain was taken; each reset starts a new one.
    pub(crate) epoch: u64,
    pub(crate) readable: Vec<Buffer>,
    pub(crate) writable: Vec<Buffer>,
}

fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.length)).sum()
}

impl Chain {
    /// A chain that no driver made.
    #[must_use]
    pub fn of(readable: Vec<Buffer>, writable: Vec<Buffer>) -> Self {
        Self {
            head: 0,
            queue: 1,
            epoch: 0,
            readable,
            writable,
        }
    }

    /// The queue that the chain was in.
    #[must_use]
    pub fn queue(&self) -> u16 {
        self.queue
    }

    /// The buffers that the device reads.
    #[must_use]
    pub fn readable(&self) -> &[Buffer] {
        &self.readable
    }

    /// The buffers that the device writes.
    #[must_use]
    pub fn writable(&self) -> &[Buffer] {
        &self.writable
    }

    /// The number of bytes that the device may write.
    #[must_use]
    pub fn writable_bytes(&self) -> u64 {
        total(&self.writable)
    }

    /// The bytes of the request.
    #[must_use]
    pub fn request(&self) -> Vec<u8> {
        gather(&self.readable, usize::MAX)
    }

    /// The first `size` bytes of the reply, as they are in memory now.
    #[must_use]
    pub fn reply(&self, size: usize) -> Vec<u8> {
        gather(&self.writable, size)
    }

    /// Overwrites all writable buffers, which a device may do as long as it has the chain.
    pub(crate) fn scribble(&self) {
        const BYTES: &[u8] = &[0xaa; 4096];
        for buffer in &self.writable {
            for start in (0..buffer.length).step_by(BYTES.len()) {
                let size = BYTES.len().min((buffer.length - start) as usize);
                // SAFETY: the driver shared this buffer for writing; the chain was not returned, and no reset
                // confirmed, since. The bytes lie in the buffer.
                unsafe { memory::write(buffer.address + u64::from(start), &BYTES[..size]) };
            }
        }
    }

    /// Writes `bytes` to the start of the reply. Bytes that do not fit are omitted.
    pub fn write(&self, mut bytes: &[u8]) {
        for buffer in &self.writable {
            let size = bytes.len().min(buffer.length as usize);
            let (now, later) = bytes.split_at(size);
            // SAFETY: the driver shared this buffer for writing, and the chain was not returned.
            unsafe { memory::write(buffer.address, now) };
            bytes = later;
        }
    }
}

fn gather(buffers: &[Buffer], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(size.min(total(buffers) as usize));
    for buffer in buffers {
        let start = out.len();
        let part = (size - start).min(buffer.length as usize);
        out.resize(start + part, 0);
        // SAFETY: the driver shared this buffer, and the chain was not returned.
        unsafe { memory::read(buffer.address, &mut out[start..]) };
    }
    out
}
