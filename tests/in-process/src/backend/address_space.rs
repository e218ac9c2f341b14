//! The process's memory in the form that the servers' crates expect.

use std::ptr::with_exposed_provenance_mut;
use vm_memory::{
    GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion, bitmap::Bitmap, mmap::NewBitmap,
};

/// The first address of the space. Nothing is mapped at 0.
const START: u64 = 0x1000;
/// The end of a process's addresses on x86-64, and on arm64 with its usual page tables.
const END: u64 = 0x7fff_ffff_e000;

/// The whole address space of the process as one region of guest memory, for servers that access it
/// through `vm-memory`.
///
/// Buffers may be on stacks, on the heap and in DMA pages, so a smaller region would not contain all of
/// them, and an arena would have to provide every caller's buffer. The region owns and maps nothing: a
/// server accesses only the addresses in a chain's descriptors, which the driver has shared.
pub fn address_space<B: Bitmap + NewBitmap>() -> GuestMemoryMmap<B> {
    let start = with_exposed_provenance_mut(START as usize);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the region only computes pointers. It never unmaps the memory, and it is accessed only
    // at the addresses of a chain.
    let region = unsafe { MmapRegion::build_raw(start, (END - START) as usize, protection, flags) };
    let region = region.expect("the start is aligned");
    let region = GuestRegionMmap::new(region, GuestAddress(START)).expect("no overflow");
    GuestMemoryMmap::from_regions(vec![region]).expect("one region overlaps nothing")
}
