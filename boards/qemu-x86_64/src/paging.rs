//! The identity map, as the CPU sees it.

use crate::{
    cpuid,
    tables::{self, Image, Tables},
};
use bootshare::boot::memory::Range;
use core::{
    cell::UnsafeCell,
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};
use x86_64::{
    instructions::tlb,
    registers::model_specific::{Efer, EferFlags},
};

/// Room for the page tables.
#[repr(transparent)]
pub struct Memory(UnsafeCell<tables::Memory>);

// SAFETY: only `Paging::take` gives the content out, once.
unsafe impl Sync for Memory {}

/// The page tables in use. The entry code fills the first three.
pub static TABLES: Memory = Memory(UnsafeCell::new(tables::empty()));

unsafe extern "C" {
    // From the linker script: addresses, not data.
    static __image_start: u8;
    static __rodata_start: u8;
    static __data_start: u8;
    static __image_end: u8;
}

/// Where the firmware is, with its stacks and tables.
pub fn image() -> Image {
    Image {
        text: (&raw const __image_start).addr() as u64,
        rodata: (&raw const __rodata_start).addr() as u64,
        data: (&raw const __data_start).addr() as u64,
        end: (&raw const __image_end).addr() as u64,
    }
}

/// Copies from physical memory; `false` if it is not mapped or is the firmware's own.
pub fn read(address: u64, buffer: &mut [u8], mapped_end: u64) -> bool {
    let range = Range::with_size(address, buffer.len() as u64);
    let image = image();
    let outside = range.end <= image.text || range.start >= image.end;
    if range.start == 0 || range.end > mapped_end || !outside {
        return false;
    }
    let source = ptr::with_exposed_provenance::<u8>(address as usize);
    // SAFETY: the range is mapped, and outside the image: it overlaps no Rust object.
    unsafe { source.copy_to_nonoverlapping(buffer.as_mut_ptr(), buffer.len()) };
    true
}

/// The page tables in use, and the right to change them.
pub struct Paging {
    tables: Tables<'static>,
    mapped_end: u64,
}

impl Paging {
    /// Maps all memory that it can. Only the first call succeeds.
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
            // SAFETY: no entry has the bit set that this gives a meaning to.
            unsafe { Efer::update(|flags| flags.insert(EferFlags::NO_EXECUTE_ENABLE)) };
        }
        // What the entry code mapped stays as it was: nothing to flush.
        let mut tables = Tables::new(memory, abilities);
        let mapped_end = tables.map_memory();
        Some(Self { tables, mapped_end })
    }

    /// Takes page 0, the `guards` pages and the image's superfluous permissions away.
    pub fn protect(&mut self, guards: &[u64]) {
        self.tables.protect(&image(), guards);
        tlb::flush_all();
    }

    /// End of the identity-mapped memory.
    pub fn mapped_end(&self) -> u64 {
        self.mapped_end
    }

    /// Maps device memory to itself, if it is not mapped yet; `false` if it can't be.
    pub fn map_device(&mut self, device: Range) -> bool {
        // The CPU keeps no record of an entry that was not present: nothing to flush.
        self.tables.map_device(device)
    }

    /// Gives everything in the first 2 MiB free, page 0 included: Linux reads the BIOS data area
    /// before it has page tables of its own.
    pub fn lift_protection(&mut self) {
        self.tables.lift_protection();
        tlb::flush_all();
    }
}
