//! The page tables in use: the identity map.

use crate::{
    cpuid,
    tables::{self, Image, Tables},
};
use bootshare::boot::memory::Range;
use core::{
    cell::UnsafeCell,
    ptr,
    sync::atomic::{AtomicBool, Ordering, compiler_fence},
};
use x86_64::{
    instructions::tlb,
    registers::model_specific::{Efer, EferFlags},
};

/// Room for the page tables.
#[repr(transparent)]
pub struct Memory(UnsafeCell<tables::Memory>);

// SAFETY: only `Paging::take` hands out the content, once.
unsafe impl Sync for Memory {}

/// The page tables in use. The entry code fills the first three.
pub static TABLES: Memory = Memory(UnsafeCell::new(tables::empty()));

unsafe extern "C" {
    // Symbols of the linker script, of which only the addresses are used.
    static __image_start: u8;
    static __rodata_start: u8;
    static __data_start: u8;
    static __image_end: u8;
}

/// The image of the firmware, with its stacks and tables.
pub fn image() -> Image {
    Image {
        text: (&raw const __image_start).addr() as u64,
        rodata: (&raw const __rodata_start).addr() as u64,
        data: (&raw const __data_start).addr() as u64,
        end: (&raw const __image_end).addr() as u64,
    }
}

/// Copies from physical memory; `false` if the range is not in `mapped`, the addresses that are mapped
/// now, or is the firmware's own.
pub fn read(address: u64, buffer: &mut [u8], mapped: Range) -> bool {
    let range = Range::with_size(address, buffer.len() as u64);
    if range.start == 0 || !image().leaves(mapped, range) {
        return false;
    }
    let source = ptr::with_exposed_provenance::<u8>(address as usize);
    // SAFETY: the range is mapped, and outside the image: it overlaps no Rust object.
    unsafe { source.copy_to_nonoverlapping(buffer.as_mut_ptr(), buffer.len()) };
    true
}

/// The page tables in use, with the right to change them.
pub struct Paging {
    tables: Tables<'static>,
    mapped_end: u64,
}

impl Paging {
    /// Maps as much memory as possible. Only the first call succeeds.
    pub fn take() -> Option<Self> {
        static TAKEN: AtomicBool = AtomicBool::new(false);

        if TAKEN.swap(true, Ordering::Relaxed) {
            return None;
        }
        // SAFETY: this line runs once, so the reference is the only one. The CPU reads the tables
        // only: every entry has its accessed and dirty bits set (see `tables`), the entry code's
        // included.
        let memory = unsafe { &mut *TABLES.0.get() };
        let abilities = cpuid::abilities();
        if abilities.no_execute {
            // SAFETY: no entry has a bit set to which this gives a meaning.
            unsafe { Efer::update(|flags| flags.insert(EferFlags::NO_EXECUTE_ENABLE)) };
        }
        // The mappings of the entry code are unchanged, so there is nothing to flush.
        let mut tables = Tables::new(memory, abilities);
        let mapped_end = tables.map_memory();
        Some(Self { tables, mapped_end })
    }

    /// Unmaps page 0 and the `guards` pages, and removes needless permissions of the image.
    pub fn protect(&mut self, guards: &[u64]) {
        self.tables.protect(&image(), guards);
        tlb::flush_all();
    }

    /// The end of the identity-mapped memory.
    pub fn mapped_end(&self) -> u64 {
        self.mapped_end
    }

    /// Maps device memory at its physical address, unless it is mapped already; `false` if that is
    /// impossible.
    pub fn map_device(&mut self, device: Range) -> bool {
        // The CPU does not cache entries that were not present, so there is nothing to flush.
        let is_mapped = self.tables.map_device(device);
        // The compiler must not move an access to the device before the new entry.
        compiler_fence(Ordering::SeqCst);
        is_mapped
    }

    /// Makes all of the first 2 MiB accessible, including page 0: Linux reads the BIOS data area
    /// before it has page tables of its own.
    pub fn lift_protection(&mut self) {
        self.tables.lift_protection();
        tlb::flush_all();
    }
}
