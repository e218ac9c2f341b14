//! The process's memory, as the servers' crates want to see it.

use std::ptr::with_exposed_provenance_mut;
use vm_memory::{
    GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion, bitmap::Bitmap, mmap::NewBitmap,
};

/// First address of the space: nothing is ever at 0.
const START: u64 = 0x1000;
/// Behind the last address a process has on x86-64 and on arm64 with its usual page tables.
const END: u64 = 0x7fff_ffff_e000;

/// The whole address space of the process as one region of guest memory, for servers that reach
/// it through `vm-memory`.
///
/// Buffers are lent from stacks, from the heap and from DMA pages alike, so no smaller region has
/// them all; an arena would need every caller's buffer to come from it. The region owns nothing
/// and maps nothing: a server touches the addresses in a chain's descriptors only, which the
/// driver shared.
pub fn address_space<B: Bitmap + NewBitmap>() -> GuestMemoryMmap<B> {
    let start = with_exposed_provenance_mut(START as usize);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the region is only a way to compute pointers; it is never unmapped by it, and
    // whoever goes through it does so with the addresses of a chain.
    let region = unsafe { MmapRegion::build_raw(start, (END - START) as usize, protection, flags) };
    let region = region.expect("the start is aligned");
    let region = GuestRegionMmap::new(region, GuestAddress(START)).expect("no overflow");
    GuestMemoryMmap::from_regions(vec![region]).expect("one region overlaps nothing")
}
