//! Hands a descriptor chain to a server in a `virtio-queue` queue.
//!
//! The device has already taken the chain from the driver's ring, and may answer several at a time. Since
//! `virtio-queue` makes chains only from a ring, each chain gets a ring of its own.

use bootshare_test_device::raw::{Buffer, Chain};
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap, bitmap::Bitmap};

/// More descriptors than the longest request has.
const SIZE: u16 = 8;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A virtqueue in which one chain is available.
#[repr(C, align(16))]
pub struct OneChain {
    descriptors: [Descriptor; SIZE as usize],
    available: [u16; 3 + SIZE as usize],
    used: [u32; 2 + 2 * SIZE as usize],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

fn address<T>(value: &T) -> GuestAddress {
    GuestAddress(std::ptr::from_ref(value).expose_provenance() as u64)
}

impl OneChain {
    /// Writes descriptors for the buffers of `chain`.
    pub fn new(chain: &Chain) -> Box<Self> {
        let mut one = Box::new(Self {
            descriptors: [Descriptor::default(); SIZE as usize],
            // The available ring: flags, index, and the head of chain 0.
            available: [0; 3 + SIZE as usize],
            used: [0; 2 + 2 * SIZE as usize],
        });
        one.available[1] = 1;
        let readable = chain.readable().iter().map(|buffer| (buffer, 0));
        let writable = chain.writable().iter().map(|buffer| (buffer, WRITE));
        let count = chain.readable().len() + chain.writable().len();
        assert!((1..=usize::from(SIZE)).contains(&count));
        for (index, (&Buffer { address, length }, flags)) in readable.chain(writable).enumerate() {
            let last = index + 1 == count;
            one.descriptors[index] = Descriptor {
                address,
                length,
                flags: if last { flags } else { flags | NEXT },
                next: index as u16 + 1,
            };
        }
        one
    }

    /// Takes the chain.
    pub fn take<'m, B: Bitmap>(
        &self,
        memory: &'m GuestMemoryMmap<B>,
    ) -> DescriptorChain<&'m GuestMemoryMmap<B>> {
        let mut queue = Queue::new(SIZE).expect("a power of two");
        queue
            .try_set_desc_table_address(address(&self.descriptors))
            .expect("aligned");
        queue
            .try_set_avail_ring_address(address(&self.available))
            .expect("aligned");
        queue
            .try_set_used_ring_address(address(&self.used))
            .expect("aligned");
        queue.set_ready(true);
        queue.pop_descriptor_chain(memory).expect("there is one")
    }
}
