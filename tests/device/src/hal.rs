//! Platforms: how the device accesses the driver's memory. Each verifies that every shared buffer is unshared once,
//! with the same address and direction.

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
    /// The number of pages at each allocated address.
    static HELD: RefCell<BTreeMap<PhysAddr, usize>> = const { RefCell::new(BTreeMap::new()) };
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// A shared buffer.
struct Sharing {
    address: PhysAddr,
    buffer: NonNull<[u8]>,
    direction: BufferDirection,
    /// The bounce buffer that the device uses instead. It came from a `Box`, but must not be one here: moving a `Box`
    /// ends the validity of the pointers to its content, so the device's address would be invalid.
    bounce: Option<NonNull<[u8]>>,
    owner: ThreadId,
}

// SAFETY: the caller of `unshare` owns the buffer, on any thread.
unsafe impl Send for Sharing {}

/// The buffers that are shared now.
static SHARED: Mutex<Vec<Sharing>> = Mutex::new(Vec::new());

fn notes() -> MutexGuard<'static, Vec<Sharing>> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sizes of the buffers that this thread has shared and that are not unshared.
fn shared_here() -> Vec<usize> {
    let shared = notes();
    let here = shared.iter().filter(|held| held.owner == current().id());
    here.map(|held| held.buffer.len()).collect()
}

/// Records a buffer that the device accesses at `address`.
#[inline(never)] // Benchmarks leave it out by its name, and `unshared`.
fn shared(
    address: PhysAddr,
    buffer: NonNull<[u8]>,
    direction: BufferDirection,
    bounce: Option<NonNull<[u8]>>,
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

/// Removes the record of a buffer that is unshared.
#[inline(never)] // As above.
fn unshared(address: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) -> Sharing {
    let mut shared = notes();
    let index = shared.iter().position(|held| {
        (held.address, held.buffer, held.direction) == (address, buffer, direction)
    });
    shared.swap_remove(
        index.expect("a buffer is unshared with the address and direction that it was shared with"),
    )
}

/// A [`Hal`] with identity addresses and without a limit on pages.
///
/// Pages are counted for each thread. Each test runs on its own thread, so it sees only its own pages.
#[derive(Debug)]
pub struct TestHal;

impl TestHal {
    /// The number of pages that this thread has allocated and not freed.
    #[must_use]
    pub fn pages() -> usize {
        HELD.with_borrow(|held| held.values().sum())
    }

    /// Whether this thread has allocated, and not freed, pages that start at `address`.
    #[must_use]
    pub fn holds(address: PhysAddr) -> bool {
        HELD.with_borrow(|held| held.contains_key(&address))
    }

    /// The number of buffers that this thread has shared, with any of these platforms, and not unshared: 0 if no
    /// read is in progress.
    #[must_use]
    pub fn shared() -> usize {
        shared_here().len()
    }

    /// Limits this thread to `pages` pages at the same time.
    pub fn limit(pages: usize) {
        LIMIT.set(pages);
    }
}

fn layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).expect("a few pages")
}

// SAFETY: `dma_alloc` returns zeroed, aligned pages of the system's allocator, each to one owner until it is freed.
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
        assert_eq!(held, Some(pages), "only allocated pages are freed");
        // Overwritten, so that a device that still uses the pages is noticed.
        // SAFETY: the caller owns these pages until they are freed, here.
        unsafe { vaddr.write_bytes(0xdd, pages * PAGE_SIZE) };
        // SAFETY: the pages came from `dma_alloc` with the same layout.
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

/// A platform with the DMA memory of [`TestHal`] and its own way to share buffers.
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
                // SAFETY: the caller's promise.
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
    /// A [`Hal`] whose physical pages are scattered: no two pages are contiguous for the device, so it refuses to
    /// share a buffer that crosses a page boundary.
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
    /// A [`Hal`] with bounce buffers, for a device that can access only a part of memory. At most
    /// [`BouncingHal::ROOM`] bytes can be shared at the same time.
    BouncingHal,
    |buffer: NonNull<[u8]>, direction| {
        let used = shared_here().iter().sum();
        if buffer.len() > BouncingHal::ROOM.saturating_sub(used) {
            return 0;
        }
        let bounce = NonNull::from(Box::leak(vec![0xbb; buffer.len()].into_boxed_slice()));
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: the caller owns the buffer, which does not overlap the new bounce buffer.
            unsafe { buffer.cast::<u8>().copy_to_nonoverlapping(bounce.cast(), bounce.len()) };
        }
        shared(exposed(bounce), buffer, direction, Some(bounce))
    },
    |sharing: Sharing| {
        let bounce = sharing.bounce.expect("it bounces");
        // SAFETY: the caller owns the buffer, which does not overlap its bounce buffer.
        unsafe { sharing.buffer.cast::<u8>().copy_from_nonoverlapping(bounce.cast(), bounce.len()) };
        // SAFETY: it was leaked from a `Box` when the buffer was shared, and its record is removed.
        drop(unsafe { Box::from_raw(bounce.as_ptr()) });
    }
}

impl BouncingHal {
    /// The number of bytes that can be shared at the same time.
    pub const ROOM: usize = 5 * PAGE_SIZE;
}

platform! {
    /// A [`Hal`] of a platform with an IOMMU. The device can access only the bytes that are shared, at addresses
    /// that are never used twice. Any other access of the device panics.
    IommuHal,
    |buffer: NonNull<[u8]>, direction| {
        let address = memory::map(exposed(buffer), buffer.len(), direction);
        shared(address, buffer, direction, None)
    },
    |sharing: Sharing| memory::unmap(sharing.address)
}
