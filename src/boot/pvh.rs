//! PVH's start info: the parameters of a payload that is entered by Xen's direct boot ABI.
//!
//! Follows Xen's `public/arch-x86/hvm/start_info.h`, version 1, which carries a memory map.

use crate::boot::memory::{MemoryRegion, Range};
use core::mem::size_of;
use zerocopy::{
    FromBytes, Immutable, IntoBytes,
    little_endian::{U32, U64},
};

/// `XEN_HVM_START_MAGIC_VALUE`: "xEn3" with the 0x80 bit of the "E" set.
pub const MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
pub const VERSION_WITH_MEMORY_MAP: u32 = 1;

/// End of the addresses that a payload can use: it is entered in 32-bit mode.
pub const LIMIT: u64 = 1 << 32;

/// Longest command line in bytes, without its NUL. The ABI does not define a limit; this is the one of x86
/// Linux (`COMMAND_LINE_SIZE` in `arch/x86/include/asm/setup.h` is 2048).
pub const CMDLINE_LIMIT: usize = 2047;

/// `struct hvm_start_info`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
#[allow(missing_docs)] // The ABI's names.
pub struct Header {
    pub magic: U32,
    pub version: U32,
    pub flags: U32,
    pub module_count: U32,
    pub modules: U64,
    pub command_line: U64,
    pub rsdp: U64,
    pub memory_map: U64,
    pub memory_map_entries: U32,
    pub reserved: U32,
}

const _: () = assert!(size_of::<Header>() == 56);

/// `struct hvm_modlist_entry`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Module {
    address: U64,
    size: U64,
    command_line: U64,
    reserved: U64,
}

const _: () = assert!(size_of::<Module>() == 32);

/// `struct hvm_memmap_table_entry`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
#[allow(missing_docs)] // The ABI's names.
pub struct Entry {
    pub address: U64,
    pub size: U64,
    pub kind: U32,
    pub reserved: U32,
}

const _: () = assert!(size_of::<Entry>() == 24);

/// Offset of the memory map in the output of [`StartInfo::write`]: after the header and one module.
const MAP_OFFSET: usize = 56 + 32;

/// The values of the start info.
#[derive(Clone, Copy, Debug)]
pub struct StartInfo<'a> {
    /// Physical address of the command line, which ends in a NUL.
    pub command_line: u64,
    /// The initrd in memory, passed as the only module.
    pub initrd: Option<Range>,
    /// The machine's memory. Empty regions are skipped.
    pub memory_map: &'a [MemoryRegion],
    /// Physical address of the ACPI root pointer; 0 if there is none.
    pub acpi_rsdp: u64,
}

impl StartInfo<'_> {
    /// Most bytes that [`Self::write`] needs.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        let entries = size_of::<Entry>().saturating_mul(self.memory_map.len());
        entries.saturating_add(MAP_OFFSET)
    }

    /// Writes the start info to the start of `out`, whose physical address is `address`; [`None`] if `out` is
    /// too small.
    pub fn write(&self, address: u64, out: &mut [u8]) -> Option<()> {
        let regions = || self.memory_map.iter().filter(|r| r.range.size() > 0);
        let modules = size_of::<Header>();
        let at = |offset: usize| address.saturating_add(offset as u64);
        let header = Header {
            magic: MAGIC.into(),
            version: VERSION_WITH_MEMORY_MAP.into(),
            flags: 0.into(),
            module_count: u32::from(self.initrd.is_some()).into(),
            modules: self.initrd.map_or(0, |_| at(modules)).into(),
            command_line: self.command_line.into(),
            rsdp: self.acpi_rsdp.into(),
            memory_map: at(MAP_OFFSET).into(),
            memory_map_entries: u32::try_from(regions().count()).ok()?.into(),
            reserved: 0.into(),
        };
        let initrd = self.initrd.unwrap_or(Range { start: 0, end: 0 });
        let module = Module {
            address: initrd.start.into(),
            size: initrd.size().into(),
            command_line: 0.into(),
            reserved: 0.into(),
        };
        let (head, rest) = out.split_at_mut_checked(modules)?;
        head.copy_from_slice(header.as_bytes());
        let (place, rest) = rest.split_at_mut_checked(size_of::<Module>())?;
        place.copy_from_slice(module.as_bytes());
        let mut places = rest.chunks_exact_mut(size_of::<Entry>());
        for region in regions() {
            let entry = Entry {
                address: region.range.start.into(),
                size: region.range.size().into(),
                kind: (region.kind as u32).into(),
                reserved: 0.into(),
            };
            places.next()?.copy_from_slice(entry.as_bytes());
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{
        bytes::{u32_le, u64_le},
        memory::MemoryKind,
        testing::region,
    };
    use std::vec;

    #[test]
    fn the_parts_are_where_the_header_says() {
        let map = [
            region(0, 0x9_fc00, MemoryKind::Usable),
            region(0x5000, 0x5000, MemoryKind::Reserved),
            region(0xfffc_0000, 1 << 32, MemoryKind::Reserved),
        ];
        let info = StartInfo {
            command_line: 0x7000,
            initrd: Some(Range::with_size(0x700_0000, 0x123)),
            memory_map: &map,
            acpi_rsdp: 0xf_5000,
        };
        let mut out = vec![0xa5; info.bytes()];
        info.write(0x6000, &mut out).unwrap();
        let word = |at| u32_le(&out, at).unwrap();
        let long = |at| u64_le(&out, at).unwrap();
        assert_eq!([0, 4, 8, 12].map(word), [MAGIC, 1, 0, 1]);
        assert_eq!([24, 32].map(long), [0x7000, 0xf_5000]);
        let module = (long(16) - 0x6000) as usize;
        assert_eq!(
            [0, 8, 16, 24].map(|at| long(module + at)),
            [0x700_0000, 0x123, 0, 0]
        );
        let entries = (long(40) - 0x6000) as usize;
        assert_eq!([word(48), word(52)], [2, 0]);
        assert_eq!(
            [0, 8, 24, 32].map(|at| long(entries + at)),
            [0, 0x9_fc00, 0xfffc_0000, 0x4_0000]
        );
        assert_eq!([16, 20, 40, 44].map(|at| word(entries + at)), [1, 0, 2, 0]);
        // The third region is empty: its place stays as it was.
        assert_eq!(out.len(), entries + 3 * 24);

        assert_eq!(info.write(0x6000, &mut out[..entries + 47]), None);
        let none = StartInfo {
            initrd: None,
            ..info
        };
        none.write(0x6000, &mut out).unwrap();
        assert_eq!((u32_le(&out, 12), u64_le(&out, 16)), (Some(0), Some(0)));
    }
}
