//! DMA pages, and the only code that touches their bytes.
//!
//! This module contains `unsafe`. The device may write to these pages at any time, so no reference to
//! their bytes is ever made: they are copied by volatile loads before they are interpreted.

use crate::{
    error::DeviceError,
    hal::{BufferDirection, Hal, PAGE_SIZE, PhysAddr},
};
pub(super) use core::sync::atomic::fence;
use core::{marker::PhantomData, mem, ptr::NonNull, sync::atomic::AtomicU16};
use zerocopy::{FromBytes, IntoBytes};

/// `COUNT` contiguous DMA pages, freed when this is dropped. The device must have been reset before.
pub(super) struct Pages<H: Hal, const COUNT: usize> {
    base: NonNull<u8>,
    paddr: PhysAddr,
    hal: PhantomData<H>,
}

// SAFETY: the memory belongs to this value alone, whichever thread owns the value.
unsafe impl<H: Hal, const COUNT: usize> Send for Pages<H, COUNT> {}

impl<H: Hal, const COUNT: usize> Pages<H, COUNT> {
    const BYTES: usize = COUNT * PAGE_SIZE;

    pub fn new(direction: BufferDirection) -> Result<Self, DeviceError> {
        let (paddr, base) = H::dma_alloc(COUNT, direction);
        if paddr == 0 {
            return Err(DeviceError::NoDmaMemory);
        }
        let hal = PhantomData;
        Ok(Self { base, paddr, hal })
    }

    /// The device's address of the byte at `offset`.
    pub fn address(&self, offset: usize) -> PhysAddr {
        self.paddr.saturating_add(offset as PhysAddr)
    }

    /// A pointer to a `T` at `offset`, which is inside the pages and aligned.
    fn at<T>(&self, offset: usize) -> NonNull<T> {
        let fits = offset <= Self::BYTES.saturating_sub(size_of::<T>());
        assert!(fits && offset.is_multiple_of(align_of::<T>()));
        // SAFETY: the offset is inside the `COUNT` pages at `base`; it was checked above.
        unsafe { self.base.add(offset) }.cast()
    }

    pub fn read<T: FromBytes>(&self, offset: usize) -> T {
        // SAFETY: `at` gives an aligned pointer into pages that were zeroed, of which any bytes are
        // a `T`. The load is volatile because the device may write there at the same time.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    pub fn write<T: IntoBytes>(&mut self, offset: usize, value: T) {
        // SAFETY: as in `read`; `&mut self` excludes other accesses of the driver.
        unsafe { self.at(offset).write_volatile(value) };
    }

    /// The 16 bits at `offset`, for accesses that are ordered with those of other data.
    pub fn atomic(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: `at` gives an aligned pointer into pages that live as long as `self`. A reference
        // to an atomic may exist while the device writes to it.
        unsafe { self.at::<AtomicU16>(offset).as_ref() }
    }

    /// Copies bytes out, eight at a time; `offset` must be a multiple of eight.
    pub fn copy_out(&self, offset: usize, out: &mut [u8]) {
        assert!(offset.saturating_add(out.len()) <= Self::BYTES && offset.is_multiple_of(8));
        let (words, rest) = out.as_chunks_mut::<8>();
        let start = offset.saturating_add(words.as_flattened().len());
        // SAFETY: `offset` plus the length of `out` is inside the pages, as checked above.
        let mut from = unsafe { self.base.add(offset) }.cast::<u64>();
        for word in words {
            // SAFETY: as in `read`: eight bytes inside the pages, aligned.
            *word = unsafe { from.read_volatile() }.to_ne_bytes();
            // SAFETY: at most one past the last of these bytes.
            from = unsafe { from.add(1) };
        }
        for (byte, at) in rest.iter_mut().zip(start..) {
            *byte = self.read(at);
        }
    }

    /// Copies bytes in, to a place for which the device has no descriptor.
    pub fn copy_in(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset.saturating_add(bytes.len());
        assert!(end <= Self::BYTES);
        // SAFETY: `offset` is inside the pages, as checked above.
        let to = unsafe { self.base.add(offset) };
        // SAFETY: the pages have room for `bytes` there, as checked above. They belong to this value
        // alone, and there are no references to them but those of `atomic`, so `bytes` cannot overlap
        // them.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
    }
}

impl<H: Hal, const COUNT: usize> Drop for Pages<H, COUNT> {
    fn drop(&mut self) {
        // SAFETY: `base` and `paddr` came from `dma_alloc` for as many pages, in `new`.
        let result = unsafe { H::dma_dealloc(self.paddr, self.base, COUNT) };
        debug_assert_eq!(result, 0);
    }
}

/// Runs `act`, which must not unwind: the device would keep a caller's buffer or its mapping. A panic
/// in `act` aborts the program, because the drop of `Bomb` panics during the unwinding.
pub(super) fn or_abort<R>(act: impl FnOnce() -> R) -> R {
    struct Bomb;
    impl Drop for Bomb {
        #[expect(clippy::panic, reason = "`core` has no other way to abort")]
        fn drop(&mut self) {
            panic!("the platform's code panicked while the device had a buffer of the caller's");
        }
    }
    let bomb = Bomb;
    let result = act();
    mem::forget(bomb);
    result
}
