//! The content of the page tables: which address is mapped, and how. Pure;
//! [`paging`](crate::paging) makes the CPU use it.
//!
//! Every entry is written with its accessed and dirty bits set, so that the CPU never writes to a
//! table (Intel SDM volume 3, 4.8): between two writes of the firmware the tables are constant.
#![forbid(unsafe_code)]

use bootshare::{boot::memory::Range, transport::MAX_DEVICES};
use x86_64::{
    PhysAddr,
    structures::paging::{PageTable, PageTableFlags as Flags, page_table::PageTableEntry},
};

/// The size of the smallest page in bytes.
pub const PAGE: u64 = 4 << 10;
/// The number of bytes that an entry of a page directory maps.
const LARGE: u64 = 2 << 20;
/// The number of bytes that an entry of a level 3 table maps.
const GIGABYTE: u64 = 1 << 30;
/// The number of bytes that an entry of the level 4 table maps.
const LEVEL4: u64 = 512 * GIGABYTE;

/// Index of the level 4 table among [`Tables`].
pub const ROOT: usize = 0;
/// Index of the level 3 table of the first 512 GiB.
pub const LEVEL3: usize = 1;
/// Index of the first of the directories of the first 4 GiB, in pages of 2 MiB.
pub const DIRECTORIES: usize = 2;
const DIRECTORY_COUNT: usize = 4;
/// Index of the table of the first 2 MiB, in pages of 4 KiB.
const LOW: usize = DIRECTORIES + DIRECTORY_COUNT;
/// Index of the first spare table.
const SPARE: usize = LOW + 1;
/// The number of spare tables, for devices outside of the mapped range: two level 3 tables, for
/// devices below bridges and for others, and a directory for each device. SeaBIOS distributes the
/// windows of bridges over gigabytes.
const SPARE_COUNT: usize = 2 + MAX_DEVICES;
const COUNT: usize = SPARE + SPARE_COUNT;

/// The greatest size of device memory in one call. Virtio-fs has 16 KiB of registers.
const MAX_DEVICE: u64 = 64 << 20;
/// End of the lower half of canonical addresses, where identity mapping ends.
const CANONICAL_END: u64 = 1 << 47;

/// An entry that refers to another table.
pub const TABLE: Flags = Flags::PRESENT.union(Flags::WRITABLE).union(Flags::ACCESSED);
/// A page of 4 KiB.
const SMALL_PAGE: Flags = TABLE.union(Flags::DIRTY);
/// A page of 2 MiB or 1 GiB.
pub const LARGE_PAGE: Flags = SMALL_PAGE.union(Flags::HUGE_PAGE);
/// A page of device memory.
const DEVICE_PAGE: Flags = LARGE_PAGE
    .union(Flags::NO_CACHE)
    .union(Flags::WRITE_THROUGH);

/// The abilities of the CPU.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// It supports pages of 1 GiB.
    pub gigabyte_pages: bool,
    /// It supports pages that are not executable.
    pub no_execute: bool,
    /// The end of the physical address space.
    pub physical_end: u64,
}

/// The parts of the firmware image; each starts at a page boundary.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// The first address of the code.
    pub text: u64,
    /// The first address of the constants.
    pub rodata: u64,
    /// The first address of the writable data.
    pub data: u64,
    /// The end of the image.
    pub end: u64,
}

impl Image {
    /// Whether `range` is in `mapped` and has no byte of the image.
    pub fn leaves(&self, mapped: Range, range: Range) -> bool {
        mapped.contains(&range) && (range.end <= self.text || range.start >= self.end)
    }
}

/// What [`Tables::map_memory`] maps on every CPU, devices included. [`Tables::protect`] unmaps page 0,
/// and pages of the image.
pub const FIRST_MAPPED: Range = Range {
    start: PAGE,
    end: DIRECTORY_COUNT as u64 * GIGABYTE,
};

/// All page tables of the firmware, with the indices above.
pub type Memory = [PageTable; COUNT];

/// Tables that map nothing: all bits are zero.
pub const fn empty() -> Memory {
    [const { PageTable::new() }; COUNT]
}

/// The page tables, with the state needed to extend them.
#[derive(Debug)]
pub struct Tables<'a> {
    tables: &'a mut Memory,
    /// The number of spare tables in use.
    spare_used: usize,
    abilities: Abilities,
}

impl<'a> Tables<'a> {
    /// Takes tables in which at most the first 2 MiB pages are mapped, for a CPU with these
    /// abilities.
    pub fn new(tables: &'a mut Memory, abilities: Abilities) -> Self {
        Self {
            tables,
            spare_used: 0,
            abilities,
        }
    }

    /// Maps the first 4 GiB, or 512 GiB if the CPU has pages of 1 GiB. Returns the end of the
    /// mapped range.
    pub fn map_memory(&mut self) -> u64 {
        let directories = DIRECTORIES..DIRECTORIES + DIRECTORY_COUNT;
        for (page, entry) in pages(LARGE).zip(
            self.tables[directories.clone()]
                .iter_mut()
                .flat_map(PageTable::iter_mut),
        ) {
            set(entry, page, LARGE_PAGE);
        }
        for (index, directory) in directories.enumerate() {
            self.link(LEVEL3, index, directory);
        }
        self.link(ROOT, 0, LEVEL3);
        if !self.abilities.gigabyte_pages {
            return DIRECTORY_COUNT as u64 * GIGABYTE;
        }
        for (page, entry) in pages(GIGABYTE)
            .zip(self.tables[LEVEL3].iter_mut())
            .skip(DIRECTORY_COUNT)
        {
            set(entry, page, LARGE_PAGE);
        }
        LEVEL4.min(self.abilities.physical_end)
    }

    /// Restricts the first 2 MiB: unmaps page 0 and the `guards` pages; in the image, code and
    /// constants become read-only, and only code stays executable.
    pub fn protect(&mut self, image: &Image, guards: &[u64]) {
        let no_execute = if self.abilities.no_execute {
            Flags::NO_EXECUTE
        } else {
            Flags::empty()
        };
        for (page, entry) in pages(PAGE).zip(self.tables[LOW].iter_mut()) {
            let flags = if page == 0 || guards.contains(&page) {
                Flags::empty()
            } else if (image.text..image.rodata).contains(&page) {
                SMALL_PAGE.difference(Flags::WRITABLE)
            } else if (image.rodata..image.data).contains(&page) {
                SMALL_PAGE.difference(Flags::WRITABLE).union(no_execute)
            } else if (image.data..image.end).contains(&page) {
                SMALL_PAGE.union(no_execute)
            } else {
                SMALL_PAGE
            };
            set(entry, page, flags);
        }
        self.link(DIRECTORIES, 0, LOW);
    }

    /// Undoes [`Tables::protect`]: all of the first 2 MiB becomes readable, writable and
    /// executable.
    pub fn lift_protection(&mut self) {
        set(&mut self.tables[DIRECTORIES][0], 0, LARGE_PAGE);
    }

    /// Maps device memory where nothing is mapped yet. An existing mapping stays as it is, and is one of
    /// ordinary memory: there, the MTRRs alone decide what is cached. Returns `false` if it is
    /// impossible: the range is outside of the address space or too large, or no spare table is left.
    pub fn map_device(&mut self, device: Range) -> bool {
        let first = device.start / LARGE;
        let last = device.end.div_ceil(LARGE);
        device.size() <= MAX_DEVICE
            && device.end <= self.abilities.physical_end.min(CANONICAL_END)
            && (first..last).all(|page| self.map_device_page(page * LARGE))
    }

    fn map_device_page(&mut self, page: u64) -> bool {
        let mut table = ROOT;
        for shift in [39, 30] {
            let index = (page >> shift) as usize % 512;
            if self.tables[table][index].flags().contains(Flags::HUGE_PAGE) {
                return true;
            }
            let Some(next) = self.next(table, index) else {
                return false;
            };
            table = next;
        }
        let entry = &mut self.tables[table][(page >> 21) as usize % 512];
        if entry.is_unused() {
            set(entry, page, DEVICE_PAGE);
        }
        entry.flags().contains(Flags::HUGE_PAGE)
    }

    /// The table that an entry refers to; an unused entry gets a spare table.
    fn next(&mut self, table: usize, index: usize) -> Option<usize> {
        let entry = &self.tables[table][index];
        if entry.is_unused() {
            let spare = SPARE + self.spare_used;
            if spare == COUNT {
                return None;
            }
            self.spare_used += 1;
            self.link(table, index, spare);
            return Some(spare);
        }
        let address = entry.addr().as_u64();
        (0..COUNT).find(|&next| self.address(next) == address)
    }

    fn link(&mut self, table: usize, index: usize, next: usize) {
        let address = self.address(next);
        set(&mut self.tables[table][index], address, TABLE);
    }

    fn address(&self, table: usize) -> u64 {
        (&raw const self.tables[table]).addr() as u64
    }
}

/// The addresses from 0 in steps of `size`.
fn pages(size: u64) -> impl Iterator<Item = u64> {
    (0..).map(move |page: u64| page * size)
}

fn set(entry: &mut PageTableEntry, address: u64, flags: Flags) {
    entry.set_addr(PhysAddr::new_truncate(address), flags);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL_CPU: Abilities = Abilities {
        gigabyte_pages: false,
        no_execute: true,
        physical_end: 1 << 40,
    };
    const LARGE_CPU: Abilities = Abilities {
        gigabyte_pages: true,
        ..SMALL_CPU
    };
    const IMAGE: Image = Image {
        text: 0x10_0000,
        rodata: 0x10_2000,
        data: 0x10_3000,
        end: 0x10_8000,
    };

    fn memory() -> Box<Memory> {
        Box::new(empty())
    }

    /// Translates `address` as the CPU does; returns the result and the flags of the last entry.
    fn translate(tables: &Tables<'_>, address: u64) -> Option<(u64, Flags)> {
        let mut table = ROOT;
        for shift in [39, 30, 21, 12] {
            let entry = &tables.tables[table][(address >> shift) as usize % 512];
            let flags = entry.flags();
            if !flags.contains(Flags::PRESENT) {
                return None;
            }
            assert!(flags.contains(Flags::ACCESSED));
            if shift == 12 || flags.contains(Flags::HUGE_PAGE) {
                assert!(flags.contains(Flags::DIRTY));
                let offset = address & ((1 << shift) - 1);
                return Some((entry.addr().as_u64() + offset, flags));
            }
            table = (0..COUNT)
                .find(|&next| tables.address(next) == entry.addr().as_u64())
                .unwrap();
        }
        unreachable!()
    }

    fn maps_to(tables: &Tables<'_>, address: u64) -> Option<u64> {
        translate(tables, address).map(|(physical, _)| physical)
    }

    #[test]
    fn memory_is_identity_mapped_up_to_the_given_end() {
        let mut memory = memory();
        let mut tables = Tables::new(&mut memory, SMALL_CPU);
        assert_eq!(tables.map_memory(), 4 << 30);
        for address in [0, 0x12_3456, 0x7fff_ffff, 0xfeb0_0e00, (4 << 30) - 1] {
            assert_eq!(maps_to(&tables, address), Some(address));
        }
        assert_eq!(maps_to(&tables, 4 << 30), None);
    }

    #[test]
    fn a_cpu_with_pages_of_a_gigabyte_gets_512_of_them_but_no_more_than_it_can_address() {
        let mut memory = memory();
        let mut tables = Tables::new(&mut memory, LARGE_CPU);
        assert_eq!(tables.map_memory(), 512 << 30);
        for address in [0, 0xfeb0_0e00, 4 << 30, (512 << 30) - 1] {
            assert_eq!(maps_to(&tables, address), Some(address));
        }
        assert_eq!(maps_to(&tables, 512 << 30), None);
        let cpu = Abilities {
            physical_end: 1 << 36,
            ..LARGE_CPU
        };
        assert_eq!(Tables::new(&mut memory, cpu).map_memory(), 1 << 36);
    }

    #[test]
    fn no_page_of_the_image_is_both_writable_and_executable() {
        let mut memory = memory();
        let mut tables = Tables::new(&mut memory, SMALL_CPU);
        tables.map_memory();
        tables.protect(&IMAGE, &[0x10_4000]);
        for page in (IMAGE.text..IMAGE.end).step_by(PAGE as usize) {
            let Some((physical, flags)) = translate(&tables, page) else {
                assert_eq!(page, 0x10_4000);
                continue;
            };
            assert_eq!(physical, page);
            let executable = !flags.contains(Flags::NO_EXECUTE);
            assert_eq!(executable, page < IMAGE.rodata);
            assert_eq!(flags.contains(Flags::WRITABLE), page >= IMAGE.data);
        }
        assert_eq!(maps_to(&tables, 0), None, "the null page");
        assert_eq!(maps_to(&tables, 0x9_f000), Some(0x9_f000));
        assert_eq!(maps_to(&tables, 0x20_0000), Some(0x20_0000));

        tables.lift_protection();
        for page in [0, IMAGE.text, 0x10_4000] {
            assert_eq!(translate(&tables, page), Some((page, LARGE_PAGE)));
        }
    }

    #[test]
    fn what_the_image_leaves_is_mapped_whatever_is_protected() {
        let mut memory = memory();
        let mut tables = Tables::new(&mut memory, SMALL_CPU);
        tables.map_memory();
        tables.protect(&IMAGE, &[0x10_4000]);
        let leaves = |address| IMAGE.leaves(FIRST_MAPPED, Range::with_size(address, 4));
        for address in [PAGE, IMAGE.text - 4, IMAGE.end, (4 << 30) - 4] {
            assert!(leaves(address), "{address:#x}");
            assert_eq!(maps_to(&tables, address), Some(address));
        }
        // The offset of a length in a table at 0; then around the image, and the end.
        let others = [4, PAGE - 3, IMAGE.text - 3, 0x10_4000, IMAGE.end - 1];
        for address in others.into_iter().chain([(4 << 30) - 3, u64::MAX - 1]) {
            assert!(!leaves(address), "{address:#x}");
        }
    }

    #[test]
    fn a_device_is_mapped_wherever_the_cpu_can_address_it() {
        for cpu in [SMALL_CPU, LARGE_CPU] {
            let mut memory = memory();
            let mut tables = Tables::new(&mut memory, cpu);
            tables.map_memory();
            for address in [0xfe00_0000, 0x3_8000_0000, 0x80_0000_0000, 0xff_fffe_0000] {
                let device = Range::with_size(address, 0x4000);
                for _again in 0..2 {
                    assert!(tables.map_device(device), "{device:?}");
                    assert_eq!(maps_to(&tables, address + 0x3fff), Some(address + 0x3fff));
                }
            }
        }
    }

    #[test]
    fn the_largest_number_of_devices_can_be_mapped() {
        let mut memory = memory();
        let mut tables = Tables::new(&mut memory, SMALL_CPU);
        tables.map_memory();
        // The addresses that SeaBIOS chooses below bridges, with more than 4 GiB of memory.
        for device in 0..MAX_DEVICES as u64 {
            let device = Range::with_size(0xc0_0000_0000 - (device << 30), 0x4000);
            assert!(tables.map_device(device), "{device:?}");
        }
    }

    #[test]
    fn a_device_that_spans_two_large_pages_is_mapped_whole() {
        let mut memory = memory();
        let mut tables = Tables::new(&mut memory, SMALL_CPU);
        tables.map_memory();
        let device = Range::with_size((8 << 30) - 0x1000, 0x2000);
        assert!(tables.map_device(device));
        assert_eq!(maps_to(&tables, device.start), Some(device.start));
        assert_eq!(maps_to(&tables, device.end - 1), Some(device.end - 1));
    }

    #[test]
    fn a_device_that_cannot_be_mapped_is_refused() {
        let mut memory = memory();
        let mut tables = Tables::new(&mut memory, SMALL_CPU);
        tables.map_memory();
        let beyond = Range::with_size(1 << 40, 0x1000);
        assert!(!tables.map_device(beyond));
        let huge = Range::with_size(8 << 30, MAX_DEVICE + 1);
        assert!(!tables.map_device(huge));
        let wrapped = Range::with_size(u64::MAX - 1, 0x1000);
        assert!(!tables.map_device(wrapped));
        let many =
            (8..64).filter(|gigabyte| tables.map_device(Range::with_size(gigabyte << 30, 0x1000)));
        assert_eq!(many.count(), SPARE_COUNT);
    }
}
