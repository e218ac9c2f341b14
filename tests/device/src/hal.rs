//! DMA memory from the system's allocator, counted.

use bootshare::hal::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ptr::NonNull,
};

thread_local! {
    /// How many pages there are at each address that was handed out.
    static HELD: RefCell<BTreeMap<PhysAddr, usize>> = const { RefCell::new(BTreeMap::new()) };
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
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

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr().expose_provenance() as PhysAddr
    }

    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}
