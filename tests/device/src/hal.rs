//! Platforms: how memory of the driver's gets to the device and back. Each counts what is shared, and
//! verifies that it is unshared once, as it was shared.

use crate::memory;
use bootshare::hal::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ptr::NonNull,
    sync::{Mutex, MutexGuard, PoisonError},
    thread::{ThreadId, current},
};

thread_local! {
    /// How many pages there are at each address that was handed out.
    static HELD: RefCell<BTreeMap<PhysAddr, usize>> = const { RefCell::new(BTreeMap::new()) };
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// A buffer that is shared.
struct Sharing {
    address: PhysAddr,
    buffer: NonNull<[u8]>,
    direction: BufferDirection,
    /// What the device has in its place.
    bounce: Option<Box<[u8]>>,
    owner: ThreadId,
}

// SAFETY: whoever unshares a buffer has it, on whichever thread.
unsafe impl Send for Sharing {}

/// What was shared and not unshared.
static SHARED: Mutex<Vec<Sharing>> = Mutex::new(Vec::new());

fn notes() -> MutexGuard<'static, Vec<Sharing>> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of each buffer that this thread has shared, and nobody unshared.
fn shared_here() -> Vec<usize> {
    let shared = notes();
    let here = shared.iter().filter(|held| held.owner == current().id());
    here.map(|held| held.buffer.len()).collect()
}

/// Notes a buffer that the device has under `address`.
#[inline(never)] // Benchmarks leave it out by its name, and `unshared`.
fn shared(
    address: PhysAddr,
    buffer: NonNull<[u8]>,
    direction: BufferDirection,
    bounce: Option<Box<[u8]>>,
) -> PhysAddr {
    notes().push(Sharing {
        address,
        buffer,
        direction,
        bounce,
        owner: current().id(),
    });
    address
}

/// The note of a buffer that the device has no longer.
#[inline(never)] // As above.
fn unshared(address: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) -> Sharing {
    let mut shared = notes();
    let index = shared.iter().position(|held| {
        (held.address, held.buffer, held.direction) == (address, buffer, direction)
    });
    shared.swap_remove(index.expect("what is unshared was shared, just so"))
}

/// A [`Hal`] of identity addresses, with as many pages as the system has.
///
/// Pages are counted for each thread: a test runs on its own, so it sees its own pages.
#[derive(Debug)]
pub struct TestHal;

impl TestHal {
    /// Pages that this thread has and did not give back.
    #[must_use]
    pub fn pages() -> usize {
        HELD.with_borrow(|held| held.values().sum())
    }

    /// Whether this thread has pages that start at `address` and did not give them back.
    #[must_use]
    pub fn holds(address: PhysAddr) -> bool {
        HELD.with_borrow(|held| held.contains_key(&address))
    }

    /// Buffers that this thread has shared by any of the platforms here, and did not unshare: none
    /// while nothing is read.
    #[must_use]
    pub fn shared() -> usize {
        shared_here().len()
    }

    /// Lets this thread have no more than `pages` at a time.
    pub fn limit(pages: usize) {
        LIMIT.set(pages);
    }
}

fn layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).expect("a few pages")
}

// SAFETY: `dma_alloc` hands out zeroed pages of the system's allocator, aligned, each to one owner
// until it is freed.
unsafe impl Hal for TestHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        assert!(pages > 0);
        if Self::pages() + pages > LIMIT.get() {
            return (0, NonNull::dangling());
        }
        // SAFETY: the size is not zero.
        let memory = unsafe { alloc_zeroed(layout(pages)) };
        let memory = NonNull::new(memory).expect("memory for DMA");
        let address = memory.as_ptr().expose_provenance() as PhysAddr;
        HELD.with_borrow_mut(|held| held.insert(address, pages));
        (address, memory)
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        let held = HELD.with_borrow_mut(|held| held.remove(&paddr));
        assert_eq!(held, Some(pages), "only what was handed out is given back");
        // So that a device which still writes there would be seen to.
        // SAFETY: the caller owns these pages until they are freed, here.
        unsafe { vaddr.write_bytes(0xdd, pages * PAGE_SIZE) };
        // SAFETY: they came from `dma_alloc` with the same layout.
        unsafe { dealloc(vaddr.as_ptr(), layout(pages)) };
        0
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("the test transport has no registers")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        shared(exposed(buffer), buffer, direction, None)
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        unshared(paddr, buffer, direction);
    }
}

fn exposed(buffer: NonNull<[u8]>) -> PhysAddr {
    buffer.cast::<u8>().as_ptr().expose_provenance() as PhysAddr
}

/// A platform whose DMA memory is [`TestHal`]'s, and which shares buffers in its own way.
macro_rules! platform {
    ($(#[$doc:meta])* $name:ident, $share:expr, $unshare:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;

        // SAFETY: as `TestHal`, whose pages these are.
        unsafe impl Hal for $name {
            fn dma_alloc(pages: usize, direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
                TestHal::dma_alloc(pages, direction)
            }

            unsafe fn dma_dealloc(paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
                // SAFETY: promised by the caller.
                unsafe { TestHal::dma_dealloc(paddr, vaddr, pages) }
            }

            unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
                unreachable!("the test transport has no registers")
            }

            unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
                $share(buffer, direction)
            }

            unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
                $unshare(unshared(paddr, buffer, direction));
            }
        }
    };
}

platform! {
    /// A [`Hal`] of a platform whose physical pages are scattered: no two pages of a buffer are next
    /// to each other for the device, so that it refuses to share what crosses one.
    ScatteredHal,
    |buffer: NonNull<[u8]>, direction| {
        let address = exposed(buffer);
        if address as usize % PAGE_SIZE + buffer.len() > PAGE_SIZE {
            return 0;
        }
        shared(memory::scattered(address), buffer, direction, None)
    },
    |_| ()
}

platform! {
    /// A [`Hal`] that copies, because its device reaches a part of memory only: there is room for
    /// [`BouncingHal::ROOM`] bytes, and no more is shared at a time.
    BouncingHal,
    |buffer: NonNull<[u8]>, direction| {
        let used = shared_here().iter().sum();
        if buffer.len() > BouncingHal::ROOM.saturating_sub(used) {
            return 0;
        }
        let mut bounce = vec![0xbb; buffer.len()].into_boxed_slice();
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: whoever shares a buffer has it, and it is not the new one.
            unsafe { buffer.cast::<u8>().copy_to_nonoverlapping(NonNull::from(&mut *bounce).cast(), bounce.len()) };
        }
        let address = exposed(NonNull::from(&mut *bounce));
        shared(address, buffer, direction, Some(bounce))
    },
    |sharing: Sharing| {
        let bounce = sharing.bounce.expect("it bounces");
        // SAFETY: whoever unshares a buffer has it, and it is not what stood in its place.
        unsafe { sharing.buffer.cast::<u8>().copy_from_nonoverlapping(NonNull::from(&*bounce).cast(), bounce.len()) };
    }
}

impl BouncingHal {
    /// Bytes that can be shared at a time.
    pub const ROOM: usize = 5 * PAGE_SIZE;
}

platform! {
    /// A [`Hal`] of a platform with an IOMMU: the device reaches nothing but what is shared, byte for
    /// byte and by addresses that are never given twice. A device that touches anything else
    /// panics.
    IommuHal,
    |buffer: NonNull<[u8]>, direction| {
        let address = memory::map(exposed(buffer), buffer.len(), direction);
        shared(address, buffer, direction, None)
    },
    |sharing: Sharing| memory::unmap(sharing.address)
}
