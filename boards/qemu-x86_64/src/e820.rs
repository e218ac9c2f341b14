//! The memory map of a ROM: QEMU's map from fw_cfg (`etc/e820`, QEMU's
//! hw/i386/e820_memory_layout.c), with the ranges that a firmware reserves on a PC. Pure.
#![forbid(unsafe_code)]

use crate::start_info::region;
use bootshare::boot::memory::{MemoryKind, MemoryMap, MemoryRegion, Range};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U32, U64},
};

/// The extended BIOS data area, which a firmware places at the end of conventional memory. An
/// operating system searches its first KiB for ACPI's root pointer (ACPI 6.5, section 5.2.5.1).
pub const EBDA: Range = Range {
    start: 0x9_fc00,
    end: 0xa_0000,
};

/// The [`EBDA`], and from there to 1 MiB: VGA, option ROMs, and the BIOS, which this firmware does
/// not have.
const UPPER_MEMORY: Range = Range {
    start: EBDA.start,
    end: 1 << 20,
};

/// `struct e820_entry`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Entry {
    address: U64,
    size: U64,
    kind: U32,
}

/// The memory map of these entries.
///
/// # Errors
///
/// What is wrong with it, as a message for the console.
pub fn memory_map(entries: &[Entry]) -> Result<MemoryMap, &'static str> {
    let mut map = MemoryMap::new();
    for entry in entries {
        if let Some(region) = region(entry.address.get(), entry.size.get(), entry.kind.get()) {
            map.push(region).map_err(|_| TOO_LONG)?;
        }
    }
    reserve(&mut map, UPPER_MEMORY)?;
    Ok(map)
}

/// The message for a memory map with too many entries.
pub const TOO_LONG: &str = "the memory map has too many entries; use fewer memory devices";

/// Removes `range` from the usable memory, and lists it as reserved.
///
/// # Errors
///
/// The map becomes too long.
pub fn reserve(map: &mut MemoryMap, range: Range) -> Result<(), &'static str> {
    for index in 0..map.len() {
        let Some(region) = map.get_mut(index) else {
            break;
        };
        if region.kind != MemoryKind::Usable || !region.range.overlaps(&range) {
            continue;
        }
        let [below, above] = region.range.outside(&range);
        region.range = below;
        if above.size() != 0 {
            let above = MemoryRegion {
                range: above,
                ..*region
            };
            map.push(above).map_err(|_| TOO_LONG)?;
        }
    }
    map.retain(|region| region.range.size() != 0);
    let kind = MemoryKind::Reserved;
    map.push(MemoryRegion { range, kind }).map_err(|_| TOO_LONG)
}

/// The last `size` bytes, in whole pages, of usable memory below 4 GiB, or as many as there are
/// above `floor`.
pub fn top(map: &MemoryMap, floor: u64, size: u64) -> Option<Range> {
    const PAGES: u64 = !0xfff;

    let usable = map
        .iter()
        .filter(|region| region.kind == MemoryKind::Usable && region.range.end <= 1 << 32)
        .max_by_key(|region| region.range.end)?
        .range;
    let end = usable.end & PAGES;
    let floor = floor.max(usable.start).checked_add(0xfff)?;
    let start = end.saturating_sub(size).max(floor) & PAGES;
    (start < end).then_some(Range { start, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(address: u64, size: u64, kind: u32) -> Entry {
        Entry {
            address: address.into(),
            size: size.into(),
            kind: kind.into(),
        }
    }

    /// QEMU's memory map of a PC with 4 GiB.
    fn map() -> MemoryMap {
        memory_map(&[
            entry(0xfeff_c000, 0x4000, 2),
            entry(0, 0x8000_0000, 1),
            entry(1 << 32, 0x8000_0000, 1),
            entry(0, 0, 0),
        ])
        .unwrap()
    }

    fn of_kind(map: &MemoryMap, kind: MemoryKind) -> Vec<(u64, u64)> {
        let mut ranges: Vec<_> = map
            .iter()
            .filter(|region| region.kind == kind)
            .map(|region| (region.range.start, region.range.end))
            .collect();
        ranges.sort_unstable();
        ranges
    }

    #[test]
    fn an_entry_has_20_bytes() {
        assert_eq!(size_of::<Entry>(), 20);
    }

    #[test]
    fn upper_memory_is_never_used() {
        let map = map();
        assert_eq!(
            of_kind(&map, MemoryKind::Usable),
            [
                (0, 0x9_fc00),
                (1 << 20, 0x8000_0000),
                (1 << 32, 0x1_8000_0000)
            ]
        );
        assert_eq!(
            of_kind(&map, MemoryKind::Reserved),
            [(0x9_fc00, 1 << 20), (0xfeff_c000, 0xff00_0000)]
        );
    }

    #[test]
    fn memory_is_reserved_at_the_ends_of_a_region_in_its_middle_and_outside() {
        let mut map = map();
        for (start, end) in [
            (0x7fff_0000, 0x8000_0000),
            (1 << 20, 2 << 20),
            (0x1000_0000, 0x1000_1000),
            (0xb000_0000, 0xc000_0000),
            (0xffff_0000, 0x1_8000_0000),
        ] {
            reserve(&mut map, Range { start, end }).unwrap();
        }
        assert_eq!(
            of_kind(&map, MemoryKind::Usable),
            [
                (0, 0x9_fc00),
                (2 << 20, 0x1000_0000),
                (0x1000_1000, 0x7fff_0000)
            ]
        );
        assert_eq!(of_kind(&map, MemoryKind::Reserved).len(), 7);
    }

    #[test]
    fn the_top_is_below_4_gib_and_above_the_floor() {
        let (map, floor) = (map(), 2 << 20);
        let top = |size| top(&map, floor, size).unwrap();
        assert_eq!(top(4 << 20), Range::with_size(0x7fc0_0000, 4 << 20));
        assert_eq!(top(1), Range::with_size(0x7fff_f000, 0x1000));
        assert_eq!(top(1 << 40).start, floor);
        assert_eq!(super::top(&map, 0x8000_0000, 1), None);
        assert_eq!(super::top(&MemoryMap::new(), floor, 1), None);
    }

    #[test]
    fn a_map_that_grows_too_long_is_an_error() {
        let entries: Vec<_> = (0..128)
            .map(|n| entry((n + 1) << 24, 0x1_0000, 1))
            .collect();
        assert!(memory_map(&entries[..127]).is_ok());
        assert!(memory_map(&entries).is_err());
    }
}
