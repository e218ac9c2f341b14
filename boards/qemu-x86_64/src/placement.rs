//! The addresses for device memory on a PC.
#![forbid(unsafe_code)]

use bootshare::boot::memory::{MemoryMap, Range};

/// The chipset's own range: I/O APIC, HPET, local APIC and the firmware's flash, up to 4 GiB.
const CHIPSET: Range = Range {
    start: 0xfec0_0000,
    end: 1 << 32,
};
/// The memory of the original PC: RAM, VGA, option ROMs.
const FIRST_MEGABYTE: Range = Range {
    start: 0,
    end: 1 << 20,
};

/// Whether a PCI device may have its memory there: neither the platform's memory map nor the
/// chipset uses the range. A hostile host may put any address into a BAR.
pub fn is_device_memory(memory_map: &MemoryMap, range: Range) -> bool {
    range.size() != 0
        && range.end != u64::MAX
        && !range.overlaps(&CHIPSET)
        && !range.overlaps(&FIRST_MEGABYTE)
        && memory_map
            .iter()
            .all(|region| !region.range.overlaps(&range))
}

/// The addresses for BARs below 4 GiB on `q35`: above the RAM and configuration space.
pub fn pci_window(memory_map: &MemoryMap) -> core::ops::Range<u64> {
    let low = memory_map.iter().map(|region| region.range.end);
    let start = low.filter(|end| *end < CHIPSET.start).max();
    start.unwrap_or(CHIPSET.start)..CHIPSET.start
}

#[cfg(test)]
mod tests {
    use super::*;
    use bootshare::boot::memory::{MemoryKind, MemoryRegion};

    fn map() -> MemoryMap {
        let mut map = MemoryMap::new();
        for (start, end, kind) in [
            (0, 0x9_fc00, MemoryKind::Usable),
            (0x10_0000, 0x7ffd_f000, MemoryKind::Usable),
            (0x7ffd_f000, 0x8000_0000, MemoryKind::Reserved),
            (0xb000_0000, 0xc000_0000, MemoryKind::Reserved),
            (1 << 32, 6 << 30, MemoryKind::Usable),
        ] {
            let range = Range { start, end };
            map.push(MemoryRegion { range, kind }).unwrap();
        }
        map
    }

    #[test]
    fn a_bar_in_a_pci_window_is_device_memory() {
        for address in [0xfe00_0000, 0xc000_0000, 6 << 30, 0xff_ffe0_0000] {
            assert!(is_device_memory(&map(), Range::with_size(address, 0x4000)));
        }
    }

    #[test]
    fn the_pci_window_is_above_all_memory_and_below_the_chipset() {
        let mut map = map();
        assert_eq!(pci_window(&map), 0xc000_0000..0xfec0_0000);
        let range = Range::with_size(0xfeff_c000, 0x4000);
        let kind = MemoryKind::Reserved;
        map.push(MemoryRegion { range, kind }).unwrap();
        assert_eq!(pci_window(&map), 0xc000_0000..0xfec0_0000);
        assert!(pci_window(&MemoryMap::new()).is_empty());
    }

    #[test]
    fn a_bar_over_memory_or_the_chipset_is_not_device_memory() {
        for address in [
            0,
            0xa_0000,
            0x10_0000,
            0x7fff_e000,
            0xb800_0000,
            0xfebf_e000,
            0xfee0_0000,
            (6 << 30) - 0x1000,
            u64::MAX - 0x3fff,
        ] {
            assert!(
                !is_device_memory(&map(), Range::with_size(address, 0x4000)),
                "{address:#x}"
            );
        }
        assert!(!is_device_memory(&map(), Range::with_size(0xc000_0000, 0)));
    }
}
