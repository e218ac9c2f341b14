//! The memory map: translation table descriptors, computed from the device tree's content.
//!
//! Addresses are physical, with 39 bits. Level 1 has an entry for each GiB: the first GiB is
//! devices; the second has a level 2 table with an entry for each 2 MiB, and the 2 MiB of the image
//! have a level 3 table with an entry for each page. `start` turns the MMU on with tables in which
//! the whole second GiB is normal memory. [`refine`] then writes the real memory map, so that a
//! stray or speculative access to anything else faults; but a whole GiB from the third on is normal
//! memory if any RAM is in it.
//!
//! Pure except for the stores to the given tables; tested on the host.

use bootshare::boot::memory::{MemoryMap, Range};
use core::sync::atomic::{AtomicU64, Ordering};

/// Descriptor of a 2 MiB or 1 GiB block (Arm ARM, D8.3).
pub const BLOCK: u64 = 0b01;
/// Descriptor of a 4 KiB page.
pub const PAGE: u64 = 0b11;

/// AF (access flag): set, so that no access causes an access flag fault.
const ACCESSED: u64 = 1 << 10;
/// SH: inner shareable.
const SHAREABLE: u64 = 0b11 << 8;
/// AP\[2\]. AP\[1\] stays 0: EL0 must have no access for EL1 to execute writable memory, and for
/// plain EL2 the bit has no meaning.
const READ_ONLY: u64 = 1 << 7;
/// UXN (XN at plain EL2) and PXN.
const EXECUTE_NEVER: u64 = 0b11 << 53;

/// Device memory, nGnRE: attribute 0 of MAIR.
pub const DEVICE: u64 = ACCESSED | EXECUTE_NEVER;
/// Normal memory, write-back, executable: attribute 1 of MAIR.
pub const NORMAL_EXECUTABLE: u64 = ACCESSED | SHAREABLE | 1 << 2;
/// Normal memory, write-back, not executable.
pub const NORMAL: u64 = NORMAL_EXECUTABLE | EXECUTE_NEVER;

const GIB: u64 = 1 << 30;
const BLOCK_SIZE: u64 = 1 << 21;
const PAGE_SIZE: u64 = 1 << 12;

/// The start of RAM: the only address, besides flash at 0, that a guest of `virt` may rely on
/// (QEMU, docs/system/arm/virt.rst).
pub const RAM_START: u64 = GIB;
/// The end of the addresses that the level 1 table can map.
pub const MAPPED_END: u64 = 512 * GIB;
/// A translation table. The processor may read it at any time, so each entry is written in one
/// store.
pub type Table = [AtomicU64; 512];

/// The parts of the image with permissions of their own, each of whole pages.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// From the first instruction to the constants.
    pub text: Range,
    /// Constants.
    pub constants: Range,
    /// The page below the stack.
    pub stack_guard: Range,
}

/// Writes entries for the RAM of `memory` and for the devices in `devices`, and removes the others.
///
/// An entry changes its permissions, or becomes valid, or becomes invalid. None changes from one
/// valid address or memory type to another, which would need break-before-make (Arm ARM, D8.16).
/// `devices` outside of the first GiB are mapped in whole GiB, and not at all if RAM is in the same
/// GiB. The caller must then invalidate the TLB.
pub fn refine(
    [level1, level2, level3]: [&Table; 3],
    memory: &MemoryMap,
    devices: &[Range],
    image: Image,
) {
    let is_ram = |range: &Range| memory.iter().any(|region| region.range.overlaps(range));
    for (entry, index) in level1.iter().zip(0u64..).skip(2) {
        let gib = Range::with_size(index * GIB, GIB);
        let descriptor = if is_ram(&gib) {
            gib.start | NORMAL | BLOCK
        } else if devices.iter().any(|device| device.overlaps(&gib)) {
            gib.start | DEVICE | BLOCK
        } else {
            0
        };
        entry.store(descriptor, Ordering::Relaxed);
    }
    for (entry, index) in level2.iter().zip(0u64..) {
        let block = Range::with_size(RAM_START + index * BLOCK_SIZE, BLOCK_SIZE);
        if !is_ram(&block) && !block.overlaps(&image.text) {
            entry.store(0, Ordering::Relaxed);
        }
    }
    let image_block = image.text.start / BLOCK_SIZE * BLOCK_SIZE;
    for (entry, index) in level3.iter().zip(0u64..) {
        let page = Range::with_size(image_block + index * PAGE_SIZE, PAGE_SIZE);
        let descriptor = if page.overlaps(&image.stack_guard) {
            0
        } else if page.overlaps(&image.text) {
            page.start | NORMAL_EXECUTABLE | READ_ONLY | PAGE
        } else if page.overlaps(&image.constants) {
            page.start | NORMAL | READ_ONLY | PAGE
        } else {
            page.start | NORMAL | PAGE
        };
        entry.store(descriptor, Ordering::Relaxed);
    }
}

/// Whether all of `range` is mapped as device memory.
pub fn is_device(level1: &Table, range: Range) -> bool {
    if range.size() == 0 || range.end > MAPPED_END {
        return false;
    }
    (range.start / GIB..=(range.end - 1) / GIB).all(|index| {
        level1
            .get(index as usize)
            .is_some_and(|entry| entry.load(Ordering::Relaxed) == (index * GIB) | DEVICE | BLOCK)
    })
}

/// Whether all of `range` is in the first GiB, which is device memory from the first instruction.
pub fn is_low_device(range: Range) -> bool {
    range.size() > 0 && range.end <= RAM_START
}

#[cfg(test)]
mod tests {
    use super::*;
    use bootshare::boot::memory::{MemoryKind, MemoryRegion};

    const ECAM: Range = Range {
        start: 0x40_1000_0000,
        end: 0x40_2000_0000,
    };
    const IMAGE: Image = Image {
        text: Range {
            start: 0x4020_0000,
            end: 0x4020_3000,
        },
        constants: Range {
            start: 0x4020_3000,
            end: 0x4020_4000,
        },
        stack_guard: Range {
            start: 0x4020_8000,
            end: 0x4020_9000,
        },
    };

    /// Tables as `start` leaves them, refined for `size` bytes of RAM and one device.
    fn refined(size: u64) -> [Table; 3] {
        let table = |first: u64| {
            core::array::from_fn(|index| AtomicU64::new(first.saturating_add(index as u64)))
        };
        let tables = [table(1000), table(2000), table(3000)];
        tables[0][0].store(DEVICE | BLOCK, Ordering::Relaxed);
        let region = MemoryRegion {
            range: Range::with_size(RAM_START, size),
            kind: MemoryKind::Usable,
        };
        let memory = MemoryMap::from_slice(&[region]).unwrap();
        refine(tables.each_ref(), &memory, &[ECAM], IMAGE);
        tables
    }

    fn entries(table: &Table) -> Vec<u64> {
        table.iter().map(|e| e.load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn ram_is_mapped_and_what_is_beyond_it_is_not() {
        let [level1, level2, _] = refined(256 << 20).map(|table| entries(&table));
        assert_eq!(level2[0], 2000, "left as it was");
        assert_eq!(level2[127], 2127);
        assert!(level2[128..].iter().all(|entry| *entry == 0));
        assert_eq!(level1[1], 1001, "the level 2 table");
        assert!(level1[2..256].iter().all(|entry| *entry == 0));

        let [level1, ..] = refined(8 << 30).map(|table| entries(&table));
        assert_eq!(level1[8], 8 << 30 | NORMAL | BLOCK);
        assert_eq!(level1[9], 0);
    }

    #[test]
    fn a_high_device_is_device_memory_unless_ram_is_there() {
        let [level1, ..] = refined(1 << 30);
        assert_eq!(entries(&level1)[256], 256 << 30 | DEVICE | BLOCK);
        assert!(is_device(&level1, ECAM));
        assert!(is_device(&level1, Range::with_size(0x0a00_0000, 0x200)));
        assert!(!is_device(&level1, Range::with_size(RAM_START, 1)));
        assert!(!is_device(&level1, Range::with_size(RAM_START - 1, 2)));
        assert!(!is_device(&level1, Range::with_size(257 << 30, 1)));
        assert!(!is_device(&level1, Range::with_size(MAPPED_END, 1)));
        assert!(!is_device(&level1, Range::with_size(0, u64::MAX)));
        assert!(!is_device(&level1, Range::with_size(0, 0)));

        let [level1, ..] = refined(256 << 30);
        assert_eq!(entries(&level1)[256], 256 << 30 | NORMAL | BLOCK);
        assert!(!is_device(&level1, ECAM));
    }

    #[test]
    fn the_first_gib_is_devices_before_the_tables_are_refined() {
        assert!(is_low_device(Range::with_size(0x0900_0000, 0x1000)));
        assert!(is_low_device(Range::with_size(RAM_START - 1, 1)));
        assert!(!is_low_device(Range::with_size(RAM_START - 1, 2)));
        assert!(!is_low_device(Range::with_size(1, u64::MAX)));
        assert!(!is_low_device(Range::with_size(0, 0)));
    }

    #[test]
    fn no_page_is_both_writable_and_executable() {
        let [_, _, level3] = refined(256 << 20).map(|table| entries(&table));
        for entry in &level3 {
            assert!(entry & READ_ONLY != 0 || entry & EXECUTE_NEVER != 0 || *entry == 0);
        }
        assert_eq!(
            level3[2],
            0x4020_2000 | NORMAL_EXECUTABLE | READ_ONLY | PAGE
        );
        assert_eq!(level3[3], 0x4020_3000 | NORMAL | READ_ONLY | PAGE);
        assert_eq!(level3[4], 0x4020_4000 | NORMAL | PAGE);
        assert_eq!(level3[8], 0, "the stack guard");
        assert_eq!(level3[9], 0x4020_9000 | NORMAL | PAGE);
    }
}
