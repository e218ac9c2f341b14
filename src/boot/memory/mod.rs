//! The memory map, and the planner that places payloads in it.

mod planner;
#[cfg(test)]
mod tests;

pub use planner::{ClaimError, MAX_FREE, Obstacle, PlacementError, Planner, Request, Side};

use core::fmt;
use heapless::Vec;

/// Most regions of a [`MemoryMap`]: as many as fit into a zero page (`e820_table` of the Linux x86 boot
/// protocol).
pub const MAX_REGIONS: usize = 128;

const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Physical addresses from `start` (inclusive) to `end` (exclusive).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first address.
    pub start: u64,
    /// The address after the last one.
    pub end: u64,
}

impl Range {
    /// `size` bytes from `start`, truncated at the end of the address space.
    #[must_use]
    pub const fn with_size(start: u64, size: u64) -> Self {
        Self {
            start,
            end: start.saturating_add(size),
        }
    }

    /// Size in bytes; 0 if `end` is not above `start`.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether the ranges have an address in common.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Whether every address of `other` is in this range.
    #[must_use]
    pub const fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The addresses that are in both ranges; has size 0 if there are none.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self {
            start: self.start.max(other.start),
            end: self.end.min(other.end),
        }
    }

    /// The parts of it before and after `other`; either may be empty.
    #[must_use]
    pub fn outside(&self, other: &Self) -> [Self; 2] {
        let before = Self {
            start: self.start,
            end: self.end.min(other.start),
        };
        let after = Self {
            start: self.start.max(other.end),
            end: self.end,
        };
        [before, after]
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

/// Displays a number of bytes with a unit: `512 MiB`, `1.5 KiB`, `17 bytes`.
///
/// A fraction is truncated after one digit, and omitted if it is exactly zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0;
        // GiB only for whole numbers: 1536 MiB is easier to compare with 512 MiB than 1.5 GiB.
        let (shift, unit) = if size >= GIB && size.is_multiple_of(GIB) {
            (30_u32, "GiB")
        } else if size >= MIB {
            (20, "MiB")
        } else if size >= KIB {
            (10, "KiB")
        } else {
            return write!(f, "{size} bytes");
        };
        let whole = size >> shift;
        let rest = size & !(u64::MAX << shift);
        if rest == 0 {
            write!(f, "{whole} {unit}")
        } else {
            // No overflow: `rest` is below 2^30.
            write!(f, "{whole}.{} {unit}", rest.saturating_mul(10) >> shift)
        }
    }
}

/// The type of a region in the memory map; the numbers are those of e820 (ACPI 6.5, table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// RAM for general use.
    Usable = 1,
    /// Must not be used.
    Reserved = 2,
    /// ACPI tables; usable as RAM after they were read.
    AcpiReclaimable = 3,
    /// ACPI's own storage.
    AcpiNvs = 4,
    /// Broken RAM.
    Unusable = 5,
    /// Persistent memory.
    Persistent = 7,
}

/// One region of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// Its addresses.
    pub range: Range,
    /// Its type.
    pub kind: MemoryKind,
}

/// The machine's memory as its platform describes it. It is passed on to the kernel unchanged.
pub type MemoryMap = Vec<MemoryRegion, MAX_REGIONS>;
