//! DMA pages from a static array.

use super::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use core::{cell::UnsafeCell, fmt, ptr::NonNull};
use spin::Mutex;

/// Pages of the largest pool: `DmaPool::used` has one bit for each.
const MAX_PAGES: usize = 64;

#[repr(C, align(4096))]
struct Pages<const PAGES: usize>(UnsafeCell<[[u8; PAGE_SIZE]; PAGES]>);

// SAFETY: the cell's content is accessed only through the pages that `DmaPool` hands out, each to
// one owner at a time.
unsafe impl<const PAGES: usize> Sync for Pages<PAGES> {}

/// A static pool of DMA pages, for virtqueues and request slots.
///
/// One mounted share takes [`PAGES_PER_SHARE`](crate::session::PAGES_PER_SHARE) pages. At most 64
/// pages fit into one pool.
///
/// ```
/// use bootshare::hal::DmaPool;
/// static POOL: DmaPool<16> = DmaPool::new();
/// let pages = POOL.alloc(2).unwrap();
/// // SAFETY: they are two pages of this pool, and nobody uses them.
/// unsafe { POOL.free(pages, 2) }.unwrap();
/// ```
pub struct DmaPool<const PAGES: usize> {
    pages: Pages<PAGES>,
    /// Bit `n` is set while page `n` is in use.
    used: Mutex<u64>,
}

impl<const PAGES: usize> fmt::Debug for DmaPool<PAGES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaPool")
            .field("used", &self.used)
            .finish_non_exhaustive()
    }
}

/// The pages passed to [`DmaPool::free`] are not in use, or are not from this pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFromPool;

impl<const PAGES: usize> DmaPool<PAGES> {
    const FITS: () = assert!(PAGES > 0 && PAGES <= MAX_PAGES, "a pool has 1 to 64 pages");

    /// An empty pool, for a `static`.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "only useful in a static")]
    pub const fn new() -> Self {
        let () = Self::FITS;
        Self {
            pages: Pages(UnsafeCell::new([[0; PAGE_SIZE]; PAGES])),
            used: Mutex::new(0),
        }
    }

    fn base(&self) -> NonNull<u8> {
        NonNull::from(&self.pages.0).cast()
    }

    /// The bits of `count` pages from page `first` on; `None` if they are not all in the pool.
    fn mask(first: usize, count: usize) -> Option<u64> {
        let end = first.checked_add(count)?;
        if count == 0 || end > PAGES {
            return None;
        }
        // `count` ones, then `first` zeroes.
        let ones = u64::MAX.checked_shr(MAX_PAGES.saturating_sub(count) as u32)?;
        ones.checked_shl(first as u32)
    }

    /// Takes `count` contiguous pages of 4096 bytes, zeroed; `None` if there is no such run or `count` is 0.
    pub fn alloc(&self, count: usize) -> Option<NonNull<u8>> {
        let mut used = self.used.lock();
        let (first, mask) = (0..PAGES)
            .filter_map(|first| Some((first, Self::mask(first, count)?)))
            .find(|(_, mask)| *used & mask == 0)?;
        *used |= mask;
        // SAFETY: `mask` checked that `first + count <= PAGES`, so the pointer stays inside the
        // array.
        let pages = unsafe { self.base().add(first.saturating_mul(PAGE_SIZE)) };
        // SAFETY: these pages were free, so nobody else may use a pointer to them, and the lock
        // excludes other callers until they are marked as used.
        unsafe { pages.write_bytes(0, count.saturating_mul(PAGE_SIZE)) };
        Some(pages)
    }

    /// Returns `count` pages to the pool.
    ///
    /// # Errors
    ///
    /// [`NotFromPool`] if they are not `count` pages of this pool that are in use; nothing is freed
    /// then.
    ///
    /// # Safety
    ///
    /// If they are pages of this pool, they must come from [`DmaPool::alloc`] for as many pages, and
    /// nobody may use them any more, nor the device: the pool hands them out again.
    pub unsafe fn free(&self, pages: NonNull<u8>, count: usize) -> Result<(), NotFromPool> {
        let offset = pages
            .addr()
            .get()
            .checked_sub(self.base().addr().get())
            .ok_or(NotFromPool)?;
        if !offset.is_multiple_of(PAGE_SIZE) {
            return Err(NotFromPool);
        }
        let mask = Self::mask(offset / PAGE_SIZE, count).ok_or(NotFromPool)?;
        let mut used = self.used.lock();
        if *used & mask != mask {
            return Err(NotFromPool);
        }
        *used &= !mask;
        Ok(())
    }
}

/// The pages of the crate's own pool: enough for four shares with all their queues.
pub(crate) const SHARED_POOL_PAGES: usize = 56;

static SHARED_POOL: DmaPool<SHARED_POOL_PAGES> = DmaPool::new();

/// The [`Hal`] of a platform whose virtual addresses equal the physical ones and whose caches are
/// coherent with DMA, such as QEMU's `virt`, `microvm` and PC machines with an identity map.
///
/// It must be used only on such a platform: elsewhere, the device would write to other memory than it
/// was lent. Whoever makes the transport vouches for that (see the guide on [DMA](crate::guide::dma)).
///
/// Its pages come from one static pool inside the crate, linked only if this type is used.
#[derive(Debug)]
pub struct IdentityHal;

// SAFETY: `dma_alloc` hands out zeroed, page-aligned pages of a static array, each to one owner
// until it is freed.
unsafe impl Hal for IdentityHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        match SHARED_POOL.alloc(pages) {
            // Exposed, because the receiver may turn the address into a pointer again.
            Some(pages) => (pages.as_ptr().expose_provenance() as PhysAddr, pages),
            // In this trait, address 0 means that there is no memory.
            None => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller promises that they came from `dma_alloc` and are not used any more.
        match unsafe { SHARED_POOL.free(vaddr, pages) } {
            Ok(()) => 0,
            Err(NotFromPool) => -1,
        }
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        NonNull::new(core::ptr::with_exposed_provenance_mut(paddr as usize))
            .unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr().expose_provenance() as PhysAddr
    }

    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_aligned_distinct_and_zero_again_after_reuse() {
        static POOL: DmaPool<4> = DmaPool::new();
        let a = POOL.alloc(1).unwrap();
        let b = POOL.alloc(2).unwrap();
        assert!(a.addr().get().is_multiple_of(PAGE_SIZE));
        assert_eq!(b.addr().get() - a.addr().get(), PAGE_SIZE);
        // SAFETY: `a` is one whole page that this test owns.
        unsafe { a.write_bytes(0xff, PAGE_SIZE) };
        // SAFETY: it is one page of this pool, and this test no longer uses it.
        unsafe { POOL.free(a, 1) }.unwrap();
        let again = POOL.alloc(1).unwrap();
        assert_eq!(again, a);
        // SAFETY: as above.
        assert_eq!(unsafe { again.read() }, 0);
    }

    #[test]
    fn an_exhausted_or_fragmented_pool_says_so() {
        static POOL: DmaPool<3> = DmaPool::new();
        let a = POOL.alloc(1).unwrap();
        let b = POOL.alloc(1).unwrap();
        assert_eq!(POOL.alloc(2), None);
        // SAFETY: it is one page of this pool that nobody uses.
        unsafe { POOL.free(a, 1) }.unwrap();
        assert_eq!(POOL.alloc(2), None, "pages 0 and 2 are not contiguous");
        // SAFETY: as above.
        unsafe { POOL.free(b, 1) }.unwrap();
        assert!(POOL.alloc(3).is_some());
        assert_eq!(POOL.alloc(1), None);
        assert_eq!(POOL.alloc(0), None);
        assert_eq!(POOL.alloc(usize::MAX), None);
    }

    #[test]
    fn foreign_pages_are_refused() {
        static POOL: DmaPool<2> = DmaPool::new();
        let a = POOL.alloc(1).unwrap();
        // SAFETY: nobody uses the pages of this pool.
        let free = |pages, count| unsafe { POOL.free(pages, count) };
        assert_eq!(free(a, 2), Err(NotFromPool));
        assert_eq!(free(NonNull::dangling(), 1), Err(NotFromPool));
        free(a, 1).unwrap();
        assert_eq!(free(a, 1), Err(NotFromPool));
    }
}
